//! Live blocks of every segment, exact, kept with each change of the map.

use std::collections::BTreeMap;

use super::{Content, Mapped, Page, SegmentInfo};
use crate::units::{BlockCount, Seq};

/// The segments in the store and what the map still needs of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    segments: BTreeMap<Seq, SegmentInfo>,
    /// Counts that contradicted each other: a bug or a damaged checkpoint; such a segment is never deleted.
    pub inconsistencies: u64,
}

/// Sums over all segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// Objects of the log that are in the store.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Data blocks that the map needs.
    pub live_blocks: u64,
}

impl Usage {
    /// The table of a checkpoint.
    pub fn from_segments(segments: impl IntoIterator<Item = (Seq, SegmentInfo)>) -> Usage {
        Usage { segments: segments.into_iter().collect(), inconsistencies: 0 }
    }

    /// A segment took effect: all of its data blocks are live.
    pub fn born(&mut self, seq: Seq, info: SegmentInfo) {
        self.segments.insert(seq, info);
    }

    /// A piece left the map.
    pub fn died(&mut self, gone: &Mapped) {
        if let Content::Data(location) = gone.content {
            self.subtract(location.frame.seq, gone.extent.count);
        }
    }

    /// A whole page left the map.
    pub fn page_died(&mut self, page: &Page) {
        page.iter().for_each(|mapped| self.died(&mapped));
    }

    /// The object is no longer in the store.
    pub fn forget(&mut self, seq: Seq) {
        self.segments.remove(&seq);
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
        self.segments.values().fold(UsageTotals::default(), |sum, info| UsageTotals {
            // Slots that a fence voided are in the table, but most were never objects.
            objects: sum.objects + u64::from(info.stored_bytes > 0),
            stored_bytes: sum.stored_bytes + info.stored_bytes,
            live_blocks: sum.live_blocks + u64::from(info.live_blocks),
        })
    }

    fn subtract(&mut self, seq: Seq, count: BlockCount) {
        let Some(info) = self.segments.get_mut(&seq) else {
            self.inconsistencies += 1;
            return;
        };
        match u64::from(info.live_blocks).checked_sub(count.0) {
            Some(left) => info.live_blocks = left as u32,
            None => {
                // Fail closed: a segment whose count is wrong keeps a live block for ever.
                self.inconsistencies += 1;
                info.live_blocks = info.live_blocks.max(1);
            }
        }
    }
}
