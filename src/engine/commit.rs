//! A segment takes effect. One after the other, in the order of the log:
//!
//! 1. Its frames go into the cache: a read finds its data in the batch until it takes effect, and in the cache from then on.
//!    All before it is in the store, so whatever happens now, this place of the log will hold this for ever.
//! 2. Under the lock the map is changed, part by part if there is much of it: nobody waits for long. Where all of the map may be in memory, the pages that tell what the change takes the place of
//!    are brought in first, under that same lock: others who need room in memory cannot let them go in between. A larger map
//!    needs none of its pages for a commit ([`crate::map`]).
//! 3. Those who wait are told, and what the change held is given back.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::cache::Content;
use crate::dedup::Tag;
use crate::engine::backoff::Backoff;
use crate::engine::buffer::WriteBuffer;
use crate::engine::core::{End, Event};
use crate::engine::log::Batch;
use crate::engine::shared::Shared;
use crate::engine::slot;
use crate::format::segment::{Moved, Payload};
use crate::map::{Placement, SegmentInfo};
use crate::part::{Owner, Part};
use crate::reading::objects::{LoadedPages, ReadError};
use crate::space::Cargo;
use crate::units::{ChangeNo, Extent, FrameAddr, Seq};

/// So much of what a segment places takes effect at once. Of a small map each takes some three microseconds, for what it takes the place of is looked up.
const PART: usize = 128;

/// A segment that is in the store.
#[derive(Debug)]
pub struct Uploaded {
    /// Its slot.
    pub seq: Seq,
    /// What the table of segments says of it.
    pub info: SegmentInfo,
    /// Where what it brings lies in it.
    pub placements: Vec<(Extent, Placement)>,
    /// What it says of moved data.
    pub moved: Option<Moved>,
    /// Prefix and head, as they are in the store.
    pub front: Bytes,
    /// The object as it is in the store, if somebody wants it.
    pub sealed: Vec<Bytes>,
    /// See [`crate::format::segment::SegmentHead::refers`].
    pub refers: Vec<(Seq, u32)>,
    /// Its own data, with what tells blocks of that from others, if somebody wants to know.
    pub tagged: Vec<(FrameAddr, Vec<Tag>)>,
}

/// Makes it take effect; `batch` is what it was made of, unless it is moved data.
pub(super) async fn run(shared: Arc<Shared>, mut uploaded: Box<Uploaded>, batch: Option<Arc<Batch>>) -> Event {
    // The log lets go of it under the lock, and must not be the last one: tens of thousands of pieces take long to be freed.
    let _outlives_the_lock = batch.clone();
    if let Some(batch) = batch {
        let bytes = batch.buffer.data_bytes();
        let extents: Vec<Extent> = uploaded.placements.iter().map(|(extent, _)| *extent).collect();
        let used = OnceLock::new();
        let content = move |extent| {
            // Not before, since it is worth the way to the workers.
            let used = used.get_or_init(|| memory_used(&batch.buffer, &extents));
            content(&batch.buffer, extent, used)
        };
        shared.doors.objects.keep_opened(&uploaded.placements, bytes, content).await;
    }
    shared.doors.objects.keep_sealed(&uploaded.placements, &uploaded.sealed);
    let moved = uploaded.moved.is_some();
    let (seq, stored_bytes) = (uploaded.seq, uploaded.info.stored_bytes);
    let (salt, refers, tagged) = (uploaded.info.salt, uploaded.refers.clone(), std::mem::take(&mut uploaded.tagged));
    match take_effect(&shared, *uploaded).await {
        Ok((released, covers)) => {
            shared.following.committed(seq, stored_bytes);
            if let Some(dedup) = &shared.doors.dedup {
                dedup.took_effect((seq, salt), tagged, &refers);
            }
            if !moved {
                shared.doors.journal.release(covers);
                if let Some(standby) = shared.doors.standby.get() {
                    // Before those who wait for the store are told: a copy may begin then.
                    standby.release(covers);
                }
                shared.give_back_room(released);
                shared.waits.progress.change(|progress| progress.covers = covers);
            }
            Event::Committed { moved }
        }
        Err(end) => Event::Ended(end),
    }
}

/// Step 2: the bytes that its changes no longer hold, and the last change that is committed now. Fails only if the volume cannot go on.
async fn take_effect(shared: &Shared, mut uploaded: Uploaded) -> Result<(u64, ChangeNo), End> {
    let mut carries = uploaded.moved.as_ref().is_some_and(|moved| moved.cargo.is_some());
    let mut backoff = Backoff::new(shared);
    let _reading = shared.begin_reading();
    let (mut done, mut loaded) = (0, LoadedPages::new());
    loop {
        let now = shared.now();
        let need = {
            let mut ledger = shared.ledger();
            match ledger.commit(&uploaded, (&mut done, PART), loaded.clone(), now.map_memory, now.at) {
                Ok(Some(released)) => return Ok((released, ledger.log().covers())),
                Ok(None) => None,
                Err(need) => Some(need),
            }
        };
        let Some(need) = need else {
            loaded.clear();
            tokio::task::yield_now().await;
            continue;
        };
        match shared.fetch_pages(need).await {
            Ok(pages) => loaded.extend(pages),
            // It is not known how much it carries. What it was to carry stays.
            Err(damaged @ ReadError::Corrupt { .. }) if carries => {
                tracing::error!(volume = %shared.facts.meta.name, "segment {} carries nothing: {damaged}", uploaded.seq);
                uploaded.moved = Some(Moved { as_of: uploaded.seq, cargo: Some(Cargo::default()) });
                carries = false;
            }
            Err(error) => slot::bear(shared, error, "loading a page of the map", &mut backoff).await?,
        }
    }
}

/// How many bytes of larger payloads lie in frames each of which lies in that payload alone.
type Used = HashMap<Owner, usize>;

fn memory_used(buffer: &WriteBuffer, frames: &[Extent]) -> Used {
    let mut used = Used::new();
    for (data, owner) in frames.iter().filter_map(|frame| in_one_piece(buffer, *frame)) {
        if owner != Owner::of(&data) {
            *used.entry(owner).or_default() += data.len();
        }
    }
    used
}

/// The data of `extent` and the payload that it is a part of, if it is a part of one.
fn in_one_piece(buffer: &WriteBuffer, extent: Extent) -> Option<(Bytes, Owner)> {
    let (mut found, mut is_one) = (None, true);
    let add = |_, payload, owner| match (payload, &found) {
        (Payload::Data(data), None) => found = Some((data, owner)),
        _ => is_one = false,
    };
    let mut is_known = true;
    buffer.lookup(extent, add, |_| is_known = false);
    found.filter(|_| is_one && is_known)
}

/// The data of `extent`: where it lies if frames fill that memory, else in memory of its own. `None` if the buffer does not have all of it.
fn content(buffer: &WriteBuffer, extent: Extent, used: &Used) -> Option<Content> {
    match in_one_piece(buffer, extent) {
        Some((data, owner)) if owner == Owner::of(&data) => return Some(Content::Own(data)),
        Some((data, owner)) if used.get(&owner).is_some_and(|used| owner.is_filled_by(*used)) => {
            return Some(Content::Shared(Part::within(data, owner)));
        }
        _ => {}
    }
    let (mut parts, mut whole) = (Vec::new(), true);
    let mut missing = false;
    let add = |_, payload, _| match payload {
        Payload::Data(part) => parts.push(part),
        Payload::Zero | Payload::Hole => whole = false,
    };
    buffer.lookup(extent, add, |_| missing = true);
    (whole && !missing).then(|| Content::Own(parts.concat().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::units::{BlockSize, ChangeNo};

    #[test]
    fn a_frame_is_put_together_from_its_changes_or_not_at_all() {
        let mut buffer = WriteBuffer::new(BlockSize::default());
        let data = |fill| Bytes::from(vec![fill; 8192]);
        buffer.insert(ChangeNo(1), Change::Write(Extent::new(0, 2), data(1)));
        buffer.insert(ChangeNo(2), Change::Write(Extent::new(1, 2), data(2)));
        buffer.insert(ChangeNo(3), Change::Zero(Extent::new(3, 1)));
        let content = |extent| content(&buffer, extent, &memory_used(&buffer, &[extent]));
        let expected = [vec![1; 4096], vec![2; 8192]].concat();
        assert_eq!(content(Extent::new(0, 3)).unwrap().into_part().data(), &expected);
        assert!(content(Extent::new(0, 4)).is_none());
        assert!(content(Extent::new(4, 1)).is_none());
    }

    #[test]
    fn a_frame_stays_in_the_payload_that_frames_fill_and_is_copied_out_of_any_other() {
        let mut buffer = WriteBuffer::new(BlockSize::default());
        let payload = |blocks: usize| Bytes::from(vec![7; blocks * 4096]);
        let (alone, filled, torn) = (payload(1), payload(48), payload(48));
        for (no, start, data) in [(1, 0, &alone), (2, 16, &filled), (3, 64, &torn)] {
            buffer.insert(ChangeNo(no), Change::Write(Extent::new(start, data.len() as u64 / 4096), data.clone()));
        }
        buffer.insert(ChangeNo(4), Change::Write(Extent::new(80, 8), payload(8)));
        let frames =
            [(0, 1), (16, 16), (32, 16), (48, 16), (64, 16), (80, 16), (96, 16)].map(|(at, len)| Extent::new(at, len));
        let used = memory_used(&buffer, &frames);
        let kept = frames.map(|frame| content(&buffer, frame, &used).unwrap());
        assert!(matches!(&kept[0], Content::Own(data) if data.as_ptr() == alone.as_ptr()));
        for (i, kept) in kept[1..4].iter().enumerate() {
            let place = filled[i * 65536..].as_ptr();
            assert!(matches!(kept, Content::Shared(part) if part.data().as_ptr() == place));
        }
        // Of the last one a third is another's, or was.
        for kept in &kept[4..] {
            assert!(matches!(kept, Content::Own(data) if !torn.as_ptr_range().contains(&data.as_ptr())));
        }
    }
}
