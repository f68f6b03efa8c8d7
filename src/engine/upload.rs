//! Encoding a segment and putting it into its slot of the log, for as long as that takes.

use std::sync::Arc;

use crate::codec::EncodeError;
use crate::engine::collection::Move;
use crate::engine::commit::Uploaded;
use crate::engine::core::{End, Event};
use crate::engine::log::Batch;
use crate::engine::shared::Shared;
use crate::engine::slot;
use crate::format::segment::{self, EncodedSegment, Moved};
use crate::units::{ChangeNo, Seq};

/// Puts a batch.
pub(super) async fn batch(shared: Arc<Shared>, seq: Seq, batch: Arc<Batch>) -> Event {
    let (sealer, block_size, salt) = (shared.doors.sealer.clone(), shared.facts.block_size, shared.salt());
    let stamp = shared.stamp(batch.covers);
    let _held = shared.doors.seat.upload(batch.buffer.data_bytes()).await;
    let encode = move || {
        let changes: Vec<_> = batch.buffer.iter().map(|(extent, payload)| (extent, payload.clone())).collect();
        segment::encode_segment(&sealer, seq, salt, block_size, &stamp, &changes)
    };
    let encoded = shared.doors.workers.run(encode).await;
    Event::Uploaded(seq, put(&shared, seq, encoded).await.map(Box::new))
}

/// Puts moved data; `covers` is the last change in the log before it.
pub(super) async fn moved(shared: Arc<Shared>, seq: Seq, covers: ChangeNo, moved: Move) -> Event {
    let (sealer, block_size, salt) = (shared.doors.sealer.clone(), shared.facts.block_size, shared.salt());
    let stamp = shared.stamp(covers);
    let _held = shared.doors.seat.upload(moved.bytes()).await;
    let encode = move || {
        let Move { data, as_of, cargo, .. } = moved;
        segment::encode_moved(&sealer, seq, salt, block_size, &stamp, &data, Moved { as_of, cargo })
    };
    let encoded = shared.doors.workers.run(encode).await;
    Event::Uploaded(seq, put(&shared, seq, encoded).await.map(Box::new))
}

async fn put(shared: &Shared, seq: Seq, encoded: Result<EncodedSegment, EncodeError>) -> Result<Uploaded, End> {
    let EncodedSegment { object, placements, info, moved } =
        encoded.map_err(|error| End::Failed(format!("segment {seq} {error}")))?;
    // In one piece: a frame is kept from where it lies.
    let sealed = if shared.doors.objects.keeps_sealed() { vec![object.parts.concat().into()] } else { Vec::new() };
    let front = object.front();
    slot::put_until_done(shared, seq, object.parts).await?;
    Ok(Uploaded { seq, info, placements, moved, front, sealed })
}
