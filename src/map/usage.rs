//! Live blocks of every segment, exact, kept with each change of the map.

use std::collections::{BTreeMap, HashMap};

use super::{Entry, Placement, SegmentInfo};
use crate::units::{BlockCount, Seq};

/// The segments in the store and what the map still needs of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    segments: BTreeMap<Seq, SegmentInfo>,
    totals: UsageTotals,
    /// Counts that contradicted each other: a bug or a damaged checkpoint; such a segment is never deleted.
    pub inconsistencies: u64,
}

/// Sums over all segments, kept with each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// Objects of the log that are in the store.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Data blocks that the map needs.
    pub live_blocks: u64,
    /// Bytes of the objects that they are in, in proportion: see [`SegmentInfo::live_bytes`].
    pub live_bytes: u64,
    /// Objects without a block that the map needs.
    pub dead_objects: u64,
    /// Their bytes.
    pub dead_bytes: u64,
}

impl UsageTotals {
    /// Bytes of objects that are partly live, beyond the live bytes: what rewriting them would free.
    pub fn sparse_bytes(&self) -> u64 {
        self.stored_bytes.saturating_sub(self.dead_bytes + self.live_bytes)
    }

    fn add(&mut self, info: &SegmentInfo) {
        let dead = info.live_blocks == 0;
        // Slots that a fence voided are in the table, but most were never objects.
        let objects = u64::from(info.stored_bytes > 0);
        self.objects += objects;
        self.stored_bytes += info.stored_bytes;
        self.live_blocks += u64::from(info.live_blocks);
        self.live_bytes += info.live_bytes();
        self.dead_objects += if dead { objects } else { 0 };
        self.dead_bytes += if dead { info.stored_bytes } else { 0 };
    }

    fn subtract(&mut self, info: &SegmentInfo) {
        let mut gone = UsageTotals::default();
        gone.add(info);
        self.objects -= gone.objects;
        self.stored_bytes -= gone.stored_bytes;
        self.live_blocks -= gone.live_blocks;
        self.live_bytes -= gone.live_bytes;
        self.dead_objects -= gone.dead_objects;
        self.dead_bytes -= gone.dead_bytes;
    }
}

impl Usage {
    /// The table of a checkpoint.
    pub fn from_segments(segments: impl IntoIterator<Item = (Seq, SegmentInfo)>) -> Usage {
        let mut usage = Usage::default();
        segments.into_iter().for_each(|(seq, info)| usage.born(seq, info));
        usage
    }

    /// A segment took effect: all of its data blocks are live.
    pub fn born(&mut self, seq: Seq, info: SegmentInfo) {
        self.totals.add(&info);
        if let Some(before) = self.segments.insert(seq, info) {
            self.totals.subtract(&before);
        }
    }

    /// That many blocks of a segment were dead at its birth: what it was to move was changed meanwhile.
    pub fn stillborn(&mut self, seq: Seq, count: BlockCount) {
        if count.0 > 0 {
            self.subtract(seq, count);
        }
    }

    /// An entry is hidden by a newer one.
    pub fn died(&mut self, gone: &Entry) {
        if let Placement::Data(location) = gone.placement {
            self.subtract(location.frame.seq, gone.extent.count);
        }
    }

    /// So many blocks of a segment turned out to be dead.
    pub fn dead_blocks(&mut self, seq: Seq, count: BlockCount) {
        self.subtract(seq, count);
    }

    /// Exactly these blocks of each segment are live, and none of the others.
    pub fn recount(&mut self, live: &HashMap<Seq, u64>) {
        let mut again = Usage { inconsistencies: self.inconsistencies, ..Usage::default() };
        for (seq, info) in self.iter() {
            let live_blocks = live.get(&seq).map_or(0, |blocks| (*blocks).min(u64::from(info.blocks)) as u32);
            again.born(seq, SegmentInfo { live_blocks, ..*info });
        }
        *self = again;
    }

    /// The object is no longer in the store.
    pub fn forget(&mut self, seq: Seq) {
        if let Some(info) = self.segments.remove(&seq) {
            self.totals.subtract(&info);
        }
    }

    /// What is known of one segment.
    pub fn get(&self, seq: Seq) -> Option<&SegmentInfo> {
        self.segments.get(&seq)
    }

    /// All segments, in log order.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, &SegmentInfo)> {
        self.segments.iter().map(|(&seq, info)| (seq, info))
    }

    /// The objects at or before `upto` that the map does not need.
    pub fn dead(&self, upto: Seq) -> Vec<Seq> {
        let dead = self.segments.range(..=upto).filter(|(_, info)| info.live_blocks == 0);
        dead.map(|(&seq, _)| seq).collect()
    }

    /// Sums.
    pub fn totals(&self) -> UsageTotals {
        self.totals
    }

    fn subtract(&mut self, seq: Seq, count: BlockCount) {
        let Some(info) = self.segments.get_mut(&seq) else {
            self.inconsistencies += 1;
            return;
        };
        self.totals.subtract(info);
        match u64::from(info.live_blocks).checked_sub(count.0) {
            Some(left) => info.live_blocks = left as u32,
            None => {
                // Fail closed: a segment whose count is wrong keeps a live block for ever.
                self.inconsistencies += 1;
                info.live_blocks = info.live_blocks.max(1);
            }
        }
        self.totals.add(info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Extent, FrameAddr, Location};
    use proptest::prelude::*;

    #[test]
    fn what_died_after_the_checkpoint_is_not_dead_yet() {
        let mut usage = Usage::default();
        let info = |live_blocks| SegmentInfo { blocks: 1, live_blocks, ..SegmentInfo::default() };
        [(1, 0), (2, 1), (3, 0), (4, 0)].into_iter().for_each(|(seq, live)| usage.born(Seq(seq), info(live)));
        assert_eq!(usage.dead(Seq(3)), [Seq(1), Seq(3)]);
    }

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_table(ops in prop::collection::vec((0u8..4, 1u64..6, 0u32..50), 0..60)) {
            let mut usage = Usage::default();
            for (op, seq, n) in ops {
                let frame = FrameAddr { seq: Seq(seq), offset: 0, len: 1 };
                match op {
                    0 => {
                        let info = SegmentInfo { stored_bytes: u64::from(n) * 999, blocks: n, live_blocks: n, ..SegmentInfo::default() };
                        usage.born(Seq(seq), info);
                    }
                    1 => usage.forget(Seq(seq)),
                    _ => usage.died(&Entry {
                        extent: Extent::new(0, u64::from(n % 5)),
                        placement: Placement::Data(Location { frame, block: 0 }),
                        owes: false,
                    }),
                }
                prop_assert_eq!(Usage::from_segments(usage.iter().map(|(seq, info)| (seq, *info))).totals(), usage.totals());
            }
        }
    }
}
