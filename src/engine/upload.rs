//! Encoding a segment and putting it into its slot of the log, for as long as that takes.

use std::sync::Arc;

use crate::codec::EncodeError;
use crate::engine::collection::Move;
use crate::engine::commit::Uploaded;
use crate::engine::core::{End, Event};
use crate::engine::deduplication::{Dedup, Tagged, Tags, tagged};
use crate::engine::log::Batch;
use crate::engine::shared::Shared;
use crate::engine::slot;
use crate::format::segment::{self, EncodedSegment, Moved, Payload, Referred};
use crate::units::{ChangeNo, Extent, Seq};

/// A segment, and what is to be known of its data, if that is to be known.
type Encoded = Result<(EncodedSegment, Tagged), EncodeError>;

/// Puts a batch.
pub(super) async fn batch(shared: Arc<Shared>, seq: Seq, batch: Arc<Batch>) -> Event {
    let (sealer, block_size, salt) = (shared.doors.sealer.clone(), shared.facts.block_size, shared.salt());
    let stamp = shared.stamp(batch.covers);
    let _held = shared.doors.seat.upload(batch.buffer.data_bytes()).await;
    let (tags, referred) = match &shared.doors.dedup {
        None => (Tags::new(), Vec::new()),
        Some(dedup) => choose(&shared, dedup, seq, &batch).await,
    };
    let encode = move || {
        let encoded =
            segment::encode_referring(&sealer, seq, salt, block_size, &stamp, &changes_of(&batch), &referred)?;
        let tagged = if tags.is_empty() { Tagged::new() } else { tagged(&encoded, &tags) };
        Ok((encoded, tagged))
    };
    let encoded = shared.doors.workers.run(encode).await;
    Event::Uploaded(seq, put(&shared, seq, encoded).await.map(Box::new))
}

fn changes_of(batch: &Batch) -> Vec<(Extent, Payload)> {
    batch.buffer.iter().map(|(extent, payload)| (extent, payload.clone())).collect()
}

/// The tags of a batch, and what of it its segment refers to, which stays from here on.
async fn choose(shared: &Shared, dedup: &Arc<Dedup>, seq: Seq, batch: &Arc<Batch>) -> (Tags, Vec<Referred>) {
    let (work, batch) = (dedup.clone(), batch.clone());
    let find = move || {
        let tags = work.tags(&changes_of(&batch));
        let found = work.find(&tags);
        (tags, found)
    };
    let (tags, found) = shared.doors.workers.run(find).await;
    let (referred, useless) = shared.ledger().refer(seq, found);
    dedup.forget(useless);
    (tags, referred)
}

/// Puts moved data; `covers` is the last change in the log before it.
pub(super) async fn moved(shared: Arc<Shared>, seq: Seq, covers: ChangeNo, moved: Move) -> Event {
    let (sealer, block_size, salt) = (shared.doors.sealer.clone(), shared.facts.block_size, shared.salt());
    let stamp = shared.stamp(covers);
    let _held = shared.doors.seat.upload(moved.bytes()).await;
    let dedup = shared.doors.dedup.clone();
    let encode = move || {
        let Move { data, as_of, cargo, .. } = moved;
        // What is carried is found by its blocks at another place.
        let tags = dedup.filter(|_| cargo.is_none()).map(|dedup| dedup.tags_of_moved(&data)).unwrap_or_default();
        let encoded = segment::encode_moved(&sealer, seq, salt, block_size, &stamp, &data, Moved { as_of, cargo })?;
        let tagged = if tags.is_empty() { Tagged::new() } else { tagged(&encoded, &tags) };
        Ok((encoded, tagged))
    };
    let encoded = shared.doors.workers.run(encode).await;
    Event::Uploaded(seq, put(&shared, seq, encoded).await.map(Box::new))
}

async fn put(shared: &Shared, seq: Seq, encoded: Encoded) -> Result<Uploaded, End> {
    let (encoded, tagged) = encoded.map_err(|error| End::Failed(format!("segment {seq} {error}")))?;
    let EncodedSegment { object, placements, info, moved, refers, .. } = encoded;
    // In one piece: a frame is kept from where it lies.
    let sealed = if shared.doors.objects.keeps_sealed() { vec![object.parts.concat().into()] } else { Vec::new() };
    let front = object.front();
    slot::put_until_done(shared, seq, object.parts).await?;
    Ok(Uploaded { seq, info, placements, moved, front, sealed, refers, tagged })
}
