//! In what two maps of one volume differ. Pure; pages are the business of whoever reads both.
//!
//! Two places that are equal hold the same, since nothing is overwritten. Two that differ may hold the same all the same, if a client wrote it
//! twice, or collection has moved it: what is said to differ is never too little.

use std::collections::VecDeque;

use super::table::fill;
use super::{Entry, Placement};
use crate::device::Allocation;
use crate::units::{BlockIndex, Extent};

/// The beginning of a map, as far as it is known.
#[derive(Debug, Default)]
pub struct Known {
    entries: VecDeque<Entry>,
    upto: BlockIndex,
}

impl Known {
    /// What comes next, up to that block.
    pub fn add(&mut self, entries: Vec<Entry>, upto: BlockIndex) {
        self.entries.extend(entries);
        self.upto = upto;
    }

    /// The block up to which it is known.
    pub fn upto(&self) -> BlockIndex {
        self.upto
    }

    fn take(&mut self, extent: Extent) -> Vec<Entry> {
        let ends_before = |entry: &Entry, end| entry.extent.end() <= end;
        while self.entries.front().is_some_and(|entry| ends_before(entry, extent.start)) {
            self.entries.pop_front();
        }
        self.entries.iter().take_while(|entry| entry.extent.start < extent.end()).copied().collect()
    }
}

/// Hands over the parts of the extent in which both differ, in order, and what the other has there; of both it is known.
pub fn between(extent: Extent, one: &mut Known, other: &mut Known, mut differs: impl FnMut(Extent, Allocation)) {
    let (ones, others) = (one.take(extent), other.take(extent));
    let mut last: Option<(Extent, Allocation)> = None;
    fill(extent, ones.into_iter(), |part, entry| {
        let before = entry.map_or(Placement::Hole, |entry| entry.placement);
        let from = others.partition_point(|entry| entry.extent.end() <= part.start);
        fill(
            part,
            others[from..].iter().take_while(|entry| entry.extent.start < part.end()).copied(),
            |part_of, entry| {
                let after = entry.map_or(Placement::Hole, |entry| entry.placement);
                if before.skip(part_of.start - part.start) == after {
                    return;
                }
                let has = after.allocation();
                match &mut last {
                    Some((last, had)) if last.end() == part_of.start && *had == has => last.count += part_of.count,
                    last => last.replace((part_of, has)).into_iter().for_each(|(extent, has)| differs(extent, has)),
                }
            },
        );
    });
    last.into_iter().for_each(|(extent, has)| differs(extent, has));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{BlockCount, FrameAddr, Location, Seq};

    const BLOCKS: u64 = 24;

    /// Blocks of one kind: nothing, zero, or so many blocks of a segment.
    fn map() -> impl Strategy<Value = Vec<(u8, u64)>> {
        proptest::collection::vec((0..4u8, 1..6u64), 0..8)
    }

    fn entries(kinds: &[(u8, u64)]) -> Vec<Entry> {
        let (mut at, mut entries) = (0, Vec::new());
        for (kind, count) in kinds {
            let count = (*count).min(BLOCKS - at);
            let location =
                Location { frame: FrameAddr { seq: Seq(u64::from(*kind)), offset: 8, len: 8 }, block: at as u16 };
            let placement = match kind {
                0 => Placement::Hole,
                1 => Placement::Zero,
                _ => Placement::Data(location),
            };
            if count > 0 && *kind > 0 {
                entries.push(Entry { extent: Extent::new(at, count), placement, owes: false });
            }
            at += count;
        }
        entries
    }

    fn of_blocks(entries: &[Entry]) -> Vec<Placement> {
        let mut blocks = vec![Placement::Hole; BLOCKS as usize];
        for entry in entries {
            for n in 0..entry.extent.count.0 {
                blocks[(entry.extent.start.0 + n) as usize] = entry.placement.skip(BlockCount(n));
            }
        }
        blocks
    }

    proptest! {
        /// In whatever steps they are known, what differs is what differs block by block.
        #[test]
        fn what_differs_block_by_block_is_found(one in map(), other in map(), steps in proptest::collection::vec(1..9u64, 1..9)) {
            let (one, other) = (entries(&one), entries(&other));
            let (mut first, mut second) = (Known::default(), Known::default());
            first.add(one.clone(), BlockIndex(BLOCKS));
            second.add(other.clone(), BlockIndex(BLOCKS));
            let (mut found, mut at) = (vec![false; BLOCKS as usize], 0);
            for step in steps.into_iter().chain([BLOCKS]) {
                let upto = (at + step).min(BLOCKS);
                between(Extent::between(BlockIndex(at), BlockIndex(upto)), &mut first, &mut second, |extent, has| {
                    let are = |placement: &Placement| placement.allocation() == has;
                    assert!(of_blocks(&other)[extent.start.0 as usize..extent.end().0 as usize].iter().all(are));
                    (extent.start.0..extent.end().0).for_each(|block| found[block as usize] = true);
                });
                at = upto;
            }
            let differ: Vec<bool> = of_blocks(&one).iter().zip(of_blocks(&other)).map(|(a, b)| *a != b).collect();
            prop_assert_eq!(found, differ);
        }
    }
}
