//! Where two maps of one volume differ, without reading data: a device as it is, and a version that is kept.
//!
//! Nothing is overwritten in the store, so what lies at one place in both is the same. What is in the write buffer differs, and so may what a client
//! wrote twice. The work of one call is bounded as that of [`super::extents`] is, whose bounds these are: neither map fits into memory. The lock of one side
//! is held at a time.

use std::collections::VecDeque;

use tokio::sync::Semaphore;

use crate::device::{Compared, DeviceError};
use crate::engine::extents::{LOADS_MAX, STEPS_AT_ONCE, STEPS_MAX, Stopped, with_more};
use crate::engine::log::{First, Log};
use crate::engine::read::io_error;
use crate::engine::shared::Shared;
use crate::map::{NeedPages, Placement};
use crate::reading::objects::LoadedPages;
use crate::units::{BlockCount, BlockSize, Extent};

/// One of the two that are compared.
pub(crate) trait Side: Sync {
    /// Looks into it, with the pages that were loaded for that.
    fn look<T>(&self, loaded: &LoadedPages, look: impl FnOnce(&mut Log) -> T) -> T;

    /// Loads pages of its map.
    fn load(&self, need: NeedPages) -> impl Future<Output = Result<LoadedPages, DeviceError>> + Send;
}

impl Side for Shared {
    fn look<T>(&self, loaded: &LoadedPages, look: impl FnOnce(&mut Log) -> T) -> T {
        let map_memory = self.doors.seat.map_memory();
        self.ledger().with_pages(loaded.clone(), map_memory, look)
    }

    async fn load(&self, need: NeedPages) -> Result<LoadedPages, DeviceError> {
        self.fetch_pages(need).await.map_err(io_error)
    }
}

/// See [`crate::device::Device::compare`]. Whoever has the turn may load pages.
pub(crate) async fn compare(
    (new, old): (&impl Side, &impl Side),
    turn: &Semaphore,
    block_size: BlockSize,
    (offset, len): (u64, u64),
    most: usize,
) -> Result<Vec<Compared>, DeviceError> {
    let mut both = Comparison::new(block_size.cover(offset, len), most);
    let (mut of_new, mut of_old) = (LoadedPages::new(), LoadedPages::new());
    let (mut has_turn, mut loads) = (None, 0);
    loop {
        let is_old = !both.pieces.is_empty();
        let stopped = match is_old {
            true => old.look(&of_old, |log| both.look_at_old(log)),
            false => new.look(&of_new, |log| both.look_at_new(log)),
        };
        let need = match stopped {
            Stopped::Done => break,
            Stopped::Resting => {
                tokio::task::yield_now().await;
                continue;
            }
            Stopped::Needs(need) => need,
        };
        if loads >= LOADS_MAX && !both.found.is_empty() {
            break;
        }
        if has_turn.is_none() {
            has_turn = turn.acquire().await.ok();
            continue;
        }
        loads += 1;
        let loaded = if is_old { old.load(need).await } else { new.load(need).await };
        match loaded {
            Ok(pages) if is_old => of_old.extend(pages),
            Ok(pages) => of_new.extend(pages),
            // What is known is true, and the rest will be asked for again.
            Err(_) if !both.found.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    let bytes = |extent: Extent| {
        let start = block_size.offset_of(extent.start).max(offset);
        block_size.offset_of(extent.end()).min(offset + len) - start
    };
    Ok(both.found.into_iter().map(|(extent, differs)| Compared { len: bytes(extent), differs }).collect())
}

/// How far a call has come. Pure.
struct Comparison {
    /// What was not looked at in the new one.
    rest: Extent,
    /// What was, and not in the old one yet: where it lies, if it is in the map.
    pieces: VecDeque<(Extent, Option<Placement>)>,
    most: usize,
    steps_left: usize,
    found: Vec<(Extent, bool)>,
}

impl Comparison {
    fn new(extent: Extent, most: usize) -> Comparison {
        Comparison { rest: extent, pieces: VecDeque::new(), most, steps_left: STEPS_MAX, found: Vec::new() }
    }

    fn look_at_new(&mut self, log: &mut Log) -> Stopped {
        for _ in 0..STEPS_AT_ONCE {
            if self.rest.is_empty() || self.steps_left == 0 {
                break;
            }
            let (count, first) = match log.first(self.rest) {
                Ok(found) => found,
                Err(NeedPages(first)) if self.pieces.is_empty() => {
                    return Stopped::Needs(with_more(log, self.rest, first));
                }
                Err(_) => break,
            };
            self.steps_left -= 1;
            let placement = match first {
                First::Held(_) => None,
                First::Placed(placement) => Some(placement),
            };
            self.pieces.push_back((Extent { start: self.rest.start, count }, placement));
            self.rest = after(self.rest, count);
        }
        if self.pieces.is_empty() { Stopped::Done } else { Stopped::Resting }
    }

    fn look_at_old(&mut self, log: &mut Log) -> Stopped {
        for _ in 0..STEPS_AT_ONCE {
            let Some((extent, placement)) = self.pieces.pop_front() else { break };
            let looked = match placement {
                None => Ok((extent.count, true)),
                Some(placement) => log.first(extent).map(|(count, first)| (count, first != First::Placed(placement))),
            };
            let (count, differs) = match looked {
                Ok(looked) => looked,
                Err(NeedPages(first)) => {
                    self.pieces.push_front((extent, placement));
                    return Stopped::Needs(with_more(log, extent, first));
                }
            };
            let is_full = self.found.len() == self.most;
            match self.found.last_mut() {
                Some((before, same)) if *same == differs => before.count += count,
                _ if is_full => return Stopped::Done,
                _ => self.found.push((Extent { start: extent.start, count }, differs)),
            }
            let left = after(extent, count);
            if !left.is_empty() {
                self.pieces.push_front((left, placement.map(|placement| placement.skip(count))));
            }
            if self.steps_left == 0 {
                return Stopped::Done;
            }
            self.steps_left -= 1;
        }
        Stopped::Resting
    }
}

/// The extent without its first blocks.
fn after(extent: Extent, count: BlockCount) -> Extent {
    Extent::between(extent.start + count, extent.end())
}
