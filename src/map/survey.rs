//! What is live of some segments, found by one walk over the whole map: each page is read once, in order, however many blocks the segments
//! have. Pure: it says which pages it needs.
//!
//! Asking the map for each block of a segment costs a page for each of them once the map is much larger than what is asked for. A walk costs
//! all pages, but those lie side by side in their objects, and hundreds come with one request; and it serves as many segments as
//! their lists fit into memory.
//!
//! Commits go on meanwhile, and checkpoints change the runs. What is found is true all the same:
//!
//! 1. The segments took effect at `as_of` or before. So a block that is found in one of them has been there since before `as_of`: a segment
//!    gets blocks when it takes effect, and never after.
//! 2. What the runs say of the next blocks is read without a lock, of runs that never change. It counts only if the map still has these very
//!    runs when the tables above them are looked at, under the lock: both together are the map at that instant.
//! 3. Whether a block is still there later is another question, which [`ExtentMap::unchanged_with`] answers before it is moved: nothing
//!    may have been committed for it after `as_of`.
//!
//! What is not found is not moved, and stays where it is.

use std::collections::HashMap;
use std::sync::Arc;

use super::compaction::{END, step};
use super::merge::merge;
use super::{Deaths, Entry, ExtentMap, MapPage, NeedPages, PageAt, PageKind, PageRef, Placement, Run, Table};
use crate::space::Carriers;
use crate::units::{BlockCount, BlockIndex, Extent, Seq};

/// Leaves of each run that are looked at together.
const LEAVES: usize = 16;

/// Extents in order that do not overlap, packed: some four bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Of each, what lies between it and the one before, and whether it is longer than a block; then its length.
    packed: Vec<u8>,
    end: BlockIndex,
    blocks: u64,
    count: u64,
}

impl Parts {
    /// Adds one that begins at or behind the end of the last one.
    fn push(&mut self, extent: Extent) {
        let is_long = extent.count.0 > 1;
        put(&mut self.packed, (extent.start.0 - self.end.0) << 1 | u64::from(is_long));
        if is_long {
            put(&mut self.packed, extent.count.0);
        }
        self.end = extent.end();
        self.blocks += extent.count.0;
        self.count += 1;
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        let (mut rest, mut at) = (&self.packed[..], 0);
        std::iter::from_fn(move || {
            let gap = take(&mut rest)?;
            let count = if gap & 1 == 0 { 1 } else { take(&mut rest)? };
            let extent = Extent { start: BlockIndex(at + (gap >> 1)), count: BlockCount(count) };
            at = extent.end().0;
            Some(extent)
        })
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many blocks they have together.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes that they take in memory.
    pub fn memory(&self) -> usize {
        size_of::<Parts>() + self.packed.capacity()
    }
}

/// Seven bits in each byte, the lowest first; the eighth says that there are more.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Survey {
    live: HashMap<Seq, Parts>,
    from: BlockIndex,
}

/// What the runs say of some blocks in a row.
#[derive(Debug)]
pub struct Strip {
    runs: Arc<Vec<Run>>,
    part: Extent,
    /// Of the segments that are wanted.
    entries: Vec<Entry>,
}

/// How much of a strip was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All of it.
    All,
    /// Not all.
    Some,
    /// No more of it can be.
    Stale,
}

impl Survey {
    /// Of these segments, all of which took effect.
    pub fn of(victims: impl IntoIterator<Item = Seq>) -> Survey {
        Survey { live: victims.into_iter().map(|seq| (seq, Parts::default())).collect(), from: BlockIndex(0) }
    }

    /// Everything before this block was looked at; nothing is left after the end.
    pub fn position(&self) -> Option<BlockIndex> {
        (self.from < END).then_some(self.from)
    }

    /// What these runs say of the next blocks. Takes long, and needs no lock.
    pub fn read<'p>(
        &self,
        runs: &Arc<Vec<Run>>,
        carriers: &Carriers,
        page: &impl Fn(&PageRef) -> Option<&'p MapPage>,
    ) -> Result<Strip, NeedPages> {
        let mut stepped = step(runs, self.from, false, LEAVES, page)?;
        stepped.entries.retain(|entry| self.victim(entry, carriers).is_some());
        Ok(Strip { runs: runs.clone(), part: Extent::between(self.from, stepped.to), entries: stepped.entries })
    }

    /// Takes that in, with what the tables of the map say above it, of which about so many entries are looked at; it has to be asked again until it has
    /// all. Nothing more can be taken if the map has other runs by now.
    pub fn take(&mut self, strip: &mut Strip, map: &ExtentMap, entries: usize) -> Taken {
        if !Arc::ptr_eq(&strip.runs, map.shared_runs()) {
            return Taken::Stale;
        }
        let carriers = map.space().carriers();
        let tables: Vec<&Table> = map.tables().collect();
        let from = strip.part.start;
        let ends = tables.iter().filter_map(|table| table.start_after(from, entries.max(1)));
        let part = Extent::between(from, ends.chain([strip.part.end()]).min().unwrap_or(from));
        let below: Vec<Entry> = strip.entries.iter().filter_map(|entry| entry.within(&part)).collect();
        let over = |below: Vec<Entry>, table: &&Table| {
            let mut within = Vec::new();
            table.lookup(part, |_, entry| within.extend(entry));
            merge(&within, &below, &mut Deaths::default())
        };
        for entry in tables.iter().rev().fold(below, over) {
            let Some(victim) = self.victim(&entry, carriers) else { continue };
            if let Some(parts) = self.live.get_mut(&victim) {
                parts.push(entry.extent);
            }
        }
        self.from = part.end();
        strip.part = Extent::between(part.end(), strip.part.end());
        if strip.part.is_empty() { Taken::All } else { Taken::Some }
    }

    /// Which of the segments has what an entry says, if one of them has.
    fn victim(&self, entry: &Entry, carriers: &Carriers) -> Option<Seq> {
        let Placement::Data(location) = entry.placement else { return None };
        Some(carriers.holder(location.frame.seq)).filter(|seq| self.live.contains_key(seq))
    }

    /// What is live of each segment.
    pub fn into_live(self) -> impl Iterator<Item = (Seq, Parts)> {
        self.live.into_iter().map(|(seq, mut parts)| {
            parts.packed.shrink_to_fit();
            (seq, parts)
        })
    }
}

/// The page that a walk needs next of a run from `from` on and does not have, and the leaves behind it that lie in the same object, within so many bytes
/// from it: they come with it. An index page comes alone; the leaves that it finds were written before it.
pub fn leaves_ahead<'p>(
    run: &Run,
    from: BlockIndex,
    bytes: u64,
    has: impl Fn(&PageRef) -> bool,
    page: &impl Fn(&PageRef) -> Option<&'p MapPage>,
) -> Vec<PageAt> {
    let mut ahead: Vec<PageAt> = Vec::new();
    for leaf in run.leaves(from, page).skip_while(|leaf| leaf.as_ref().is_ok_and(|leaf| has(&leaf.at))) {
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(index) if ahead.is_empty() => return vec![index],
            Err(_) => break,
        };
        let (first, end) =
            (ahead.first().map_or(leaf.at, |first| first.at), u64::from(leaf.at.offset) + u64::from(leaf.at.len));
        let is_near = leaf.at.offset >= first.offset && end - u64::from(first.offset) <= bytes;
        if leaf.kind == PageKind::Index
            || !ahead.is_empty() && (leaf.at.checkpoint != first.checkpoint || !is_near || has(&leaf.at))
        {
            break;
        }
        ahead.push(leaf);
    }
    ahead
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_what_was_added(items in prop::collection::vec((0..1_u64 << 40, 1..1_u64 << 20), 0..50)) {
            let (mut parts, mut extents, mut at) = (Parts::default(), Vec::new(), 0);
            for (gap, count) in items {
                // Often next to each other, often single blocks.
                let (gap, count) = (gap.saturating_sub(1 << 38), if count % 2 == 0 { 1 } else { count });
                extents.push(Extent::new(at + gap, count));
                parts.push(Extent::new(at + gap, count));
                at += gap + count;
            }
            prop_assert_eq!(parts.iter().collect::<Vec<_>>(), extents.clone());
            prop_assert_eq!(parts.count(), extents.len() as u64);
            prop_assert_eq!(parts.blocks(), extents.iter().map(|extent| extent.count.0).sum::<u64>());
        }
    }
}
