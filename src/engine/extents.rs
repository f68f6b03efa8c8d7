//! What is known of a range without reading it: data, zero, or hole, by the write buffer, the sealed batches and the map.
//!
//! The map of a dense volume does not fit into memory, and a client may ask for all of it. So one call does a bounded amount
//! of work and answers for the beginning of the range, as the protocol allows (proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS"):
//! the lock is held for [`STEPS_AT_ONCE`] pieces, pages that are not in memory are loaded [`PAGES_AT_ONCE`] at a time by one
//! call at a time, and after [`STEPS_MAX`] pieces or [`LOADS_MAX`] loads it is enough. What goes past the lock may change
//! meanwhile: each run was true at some moment of the call.

use crate::device::{Allocation, DeviceError, Run};
use crate::engine::log::Log;
use crate::engine::read::io_error;
use crate::engine::shared::Shared;
use crate::map::{NeedPages, PageAt};
use crate::reading::objects::LoadedPages;
use crate::units::{BlockCount, BlockSize, Extent};

/// Pieces that are looked at while the lock is held.
pub(super) const STEPS_AT_ONCE: usize = 512;

/// Pieces that one call looks at. A page that was written in blocks has 16384.
pub(super) const STEPS_MAX: usize = 128 * STEPS_AT_ONCE;

/// Pages that are loaded together: one round trip, some MiB at most.
const PAGES_AT_ONCE: usize = 4;

/// How many times one call loads pages.
pub(crate) const LOADS_MAX: usize = 8;

/// So many blocks ahead are looked at for pages that are missing too.
const BLOCKS_AHEAD: u64 = 16 << 10;

impl Shared {
    /// See [`crate::device::Device::extents`].
    pub(crate) async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        let _reading = self.begin_reading();
        let below = self.doors.below();
        let mut walk = Walk::new(self.facts.block_size.cover(offset, len), most);
        let mut loaded = LoadedPages::new();
        let (mut turn, mut loads) = (None, 0);
        loop {
            let map_memory = self.doors.seat.map_memory();
            let stopped = self.ledger().with_pages(loaded.clone(), map_memory, |log| walk.go_on(log));
            let need = match stopped {
                Stopped::Done => break,
                Stopped::Resting => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Stopped::Needs(need) => need,
            };
            if loads >= LOADS_MAX && walk.has_found() {
                break;
            }
            // Whoever had the turn before may have brought what is missing: look again. It is kept as long as the pages are.
            if turn.is_none() {
                turn = self.waits.loading_for_extents.acquire().await.ok();
                continue;
            }
            loads += 1;
            match self.fetch_pages(need).await {
                Ok(pages) => loaded.extend(pages),
                // What is known is true, and the rest will be asked for again.
                Err(_) if walk.has_found() => break,
                Err(error) => return Err(io_error(error)),
            }
        }
        let runs = walk.runs(self.facts.block_size, offset, len);
        match below {
            None => Ok(runs),
            Some(below) => below.extents(runs, offset, most).await,
        }
    }
}

/// How far a call has come. Pure.
pub(crate) struct Walk {
    /// What was not looked at.
    rest: Extent,
    most: usize,
    steps_left: usize,
    found: Vec<(Extent, Allocation)>,
}

pub(crate) enum Stopped {
    /// It is enough.
    Done,
    /// Others want the lock.
    Resting,
    /// These pages are not in memory.
    Needs(NeedPages),
}

impl Walk {
    pub(crate) fn new(extent: Extent, most: usize) -> Walk {
        Walk { rest: extent, most, steps_left: STEPS_MAX, found: Vec::new() }
    }

    pub(crate) fn go_on(&mut self, log: &mut Log) -> Stopped {
        for _ in 0..STEPS_AT_ONCE {
            if self.rest.is_empty() || self.steps_left == 0 {
                return Stopped::Done;
            }
            let (count, allocation) = match log.first_run(self.rest) {
                Ok(run) => run,
                Err(NeedPages(first)) => return Stopped::Needs(with_more(log, self.rest, first)),
            };
            self.steps_left -= 1;
            let is_full = self.found.len() == self.most;
            match self.found.last_mut() {
                Some((extent, before)) if *before == allocation => extent.count += count,
                _ if is_full => return Stopped::Done,
                _ => self.found.push((Extent { start: self.rest.start, count }, allocation)),
            }
            self.rest = Extent::between(self.rest.start + count, self.rest.end());
        }
        Stopped::Resting
    }

    /// Whether anything is known yet.
    pub(crate) fn has_found(&self) -> bool {
        !self.found.is_empty()
    }

    /// What is known of the bytes `offset .. offset + len`.
    pub(crate) fn runs(self, block_size: BlockSize, offset: u64, len: u64) -> Vec<Run> {
        let bytes = |extent: Extent| {
            let start = block_size.offset_of(extent.start).max(offset);
            block_size.offset_of(extent.end()).min(offset + len) - start
        };
        self.found.into_iter().map(|(extent, allocation)| Run { len: bytes(extent), allocation }).collect()
    }
}

/// The pages that are missing now to look at the beginning of `rest`, and some that will be.
pub(super) fn with_more(log: &Log, rest: Extent, first: Vec<PageAt>) -> NeedPages {
    let near = Extent { start: rest.start, count: BlockCount(rest.count.0.min(BLOCKS_AHEAD)) };
    let most = first.len().max(PAGES_AT_ONCE);
    let mut need = first;
    for page in log.map.missing(near) {
        if need.len() < most && !need.contains(&page) {
            need.push(page);
        }
    }
    NeedPages(need)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::Change;
    use crate::engine::log::Origin;
    use crate::map::ExtentMap;
    use crate::units::{ChangeNo, Seq};

    /// Rule R8: a call looks at so many pieces and no more, though all of them are one run.
    #[test]
    fn a_call_ends_after_so_many_pieces_and_rests_between() {
        let pieces = STEPS_MAX as u64 + 1000;
        let origin = Origin {
            map: ExtentMap::new(BlockCount(2 * pieces)),
            covers: ChangeNo(0),
            committed: Seq(1),
            next_seq: Seq(2),
            checkpointed: Seq(0),
            bytes_since_checkpoint: 0,
        };
        let mut log = Log::new(BlockSize::new(512).unwrap(), origin);
        let block = Bytes::from(vec![1; 512]);
        for at in 0..pieces {
            log.accept(Change::Write(Extent::new(at, 1), block.clone()), u64::MAX / 8);
        }
        let (mut walk, mut rests) = (Walk::new(Extent::new(0, 2 * pieces), 10), 0);
        while let Stopped::Resting = walk.go_on(&mut log) {
            rests += 1;
        }
        assert_eq!(rests, STEPS_MAX / STEPS_AT_ONCE);
        assert_eq!(walk.found, [(Extent::new(0, STEPS_MAX as u64), Allocation::Data)]);
    }
}
