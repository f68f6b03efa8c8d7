//! A segment takes effect. One after the other, in the order of the log:
//!
//! 1. Its frames go into the cache: a read finds its data in the batch until it takes effect, and in the cache from then on.
//!    All before it is in the store, so whatever happens now, this place of the log will hold this for ever.
//! 2. Under one lock the map is changed. Where all of the map may be in memory, the pages that tell what the change takes the place of
//!    are brought in first, under that same lock: others who need room in memory cannot let them go in between. A larger map
//!    needs none of its pages for a commit ([`crate::map`]).
//! 3. Those who wait are told, and what the change held is given back.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::map::{Placement, SegmentInfo};
use crate::store::ErrorKind;
use crate::units::{BlockCount, Extent, Seq};
use crate::volume::backoff::Backoff;
use crate::volume::objects::{LoadedPages, ReadError};
use crate::volume::shared::{End, Inner, Shared};

/// This part of what the map may have in memory may be all of a map whose live blocks are counted at once. Looking up what
/// every block took the place of takes some microseconds each under the lock, which is too long for larger maps.
const EXACT_PART: u64 = 8;

/// A segment that is in the store.
pub(super) struct Uploaded {
    pub seq: Seq,
    pub info: SegmentInfo,
    pub placements: Vec<(Extent, Placement)>,
    /// Of moved data: see [`crate::segment::SegmentHead::as_of`].
    pub as_of: Option<Seq>,
    /// The object as it is in the store, if somebody wants it.
    pub sealed: Vec<Bytes>,
}

/// A segment that took effect.
pub(super) struct Committed {
    /// Whether it was moved data.
    pub moved: bool,
}

/// Makes it take effect. Fails only if the volume cannot go on.
pub(super) async fn run(shared: Arc<Shared>, uploaded: Uploaded) -> Result<Committed, End> {
    let batch = shared.inner.lock().state.oldest_upload();
    if let Some(batch) = batch {
        shared.objects.keep_opened(&uploaded.placements, batch).await;
    }
    shared.objects.keep_sealed(&uploaded.placements, &uploaded.sealed);
    let mut backoff = Backoff::new(&shared);
    let _reading = shared.begin_reading();
    let mut loaded = LoadedPages::new();
    loop {
        let need = {
            let mut inner = shared.inner.lock();
            inner.take_pages(loaded.clone());
            inner.state.map.count_exactly_within(shared.seat.map_memory() / EXACT_PART);
            match inner.state.commit(uploaded.seq, uploaded.info, &uploaded.placements, uploaded.as_of) {
                Ok(released) => {
                    account(&shared, &mut inner, &uploaded);
                    let covers = inner.state.covers();
                    drop(inner);
                    if uploaded.as_of.is_none() {
                        shared.journal.release(covers);
                        shared.give_back_room(released);
                        shared.progress.change(|progress| progress.covers = covers);
                    }
                    return Ok(Committed { moved: uploaded.as_of.is_some() });
                }
                Err(need) => need,
            }
        };
        match shared.fetch_pages(need).await {
            Ok(pages) => loaded.extend(pages),
            Err(ReadError::Store { source, .. }) if source.kind != ErrorKind::NotFound => {
                backoff.pause("loading a page of the map", &source).await;
                continue;
            }
            Err(damaged) => return Err(End::Failed(damaged.to_string())),
        }
    }
}

fn account(shared: &Shared, inner: &mut Inner, uploaded: &Uploaded) {
    inner.note_commit();
    inner.state.map.evict(shared.seat.map_memory() as usize);
    let data = shared.block_size.bytes_in(BlockCount(uploaded.info.blocks.into()));
    match uploaded.as_of {
        None => {
            inner.committed_at = Some(Instant::now());
            inner.account.bytes_written += data;
        }
        Some(_) => {
            inner.gc.segments_written += 1;
            inner.account.bytes_moved += data;
        }
    }
}
