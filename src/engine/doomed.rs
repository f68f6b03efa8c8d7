//! Objects that nothing needs any more, as of the newest durable checkpoint. Pure.
//!
//! There may be tens of thousands of them. What is deleted next is therefore handed over whole, and nothing is copied under the
//! volume's lock: what becomes doomed meanwhile is noted apart, and has its turn when all of that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::space::Counted;
use crate::units::Seq;

/// So many dead segments are known by name at most.
const DOOMED_MAX: usize = 32 << 10;

/// What is deleted together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Dead segments, each with its bytes.
    pub segments: BTreeMap<Seq, u64>,
    /// Checkpoint objects that hold no page of the map or the table of segments.
    pub checkpoints: BTreeSet<Seq>,
}

impl Batch {
    fn len(&self) -> usize {
        self.segments.len() + self.checkpoints.len()
    }
}

/// A batch, and how many of it are gone: the first ones of each kind.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// What is, or was, to be deleted.
    pub batch: Arc<Batch>,
    /// Segments that are gone.
    pub segments_gone: usize,
    /// Checkpoint objects that are gone.
    pub checkpoints_gone: usize,
}

impl Planned {
    /// The segments that are still there.
    pub fn segments(&self) -> impl Iterator<Item = Seq> + '_ {
        self.batch.segments.keys().copied().skip(self.segments_gone)
    }

    /// The checkpoint objects that are still there.
    pub fn checkpoints(&self) -> impl Iterator<Item = Seq> + '_ {
        self.batch.checkpoints.iter().copied().skip(self.checkpoints_gone)
    }

    fn len(&self) -> usize {
        self.batch.len() - self.segments_gone - self.checkpoints_gone
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Doomed {
    /// What nobody deletes yet; not all dead segments, if there are very many.
    fresh: Batch,
    /// What is being deleted, or is to be deleted again.
    planned: Planned,
    /// Bytes of the segments.
    bytes: u64,
    /// The store did not delete them when it was asked last: nobody knows when they will go.
    pub is_stuck: bool,
}

impl Doomed {
    /// These are.
    pub fn new(segments: BTreeMap<Seq, u64>, checkpoints: BTreeSet<Seq>) -> Doomed {
        Doomed { bytes: segments.values().sum(), fresh: Batch { segments, checkpoints }, ..Doomed::default() }
    }

    /// These segments, too.
    pub fn add(&mut self, dead: Counted) {
        for (seq, counter) in dead {
            let is_known = self.planned.batch.segments.contains_key(&seq);
            if !is_known && self.fresh.segments.insert(seq, counter.stored_bytes).is_none() {
                self.bytes += counter.stored_bytes;
            }
        }
    }

    /// These checkpoint objects, too.
    pub fn add_checkpoints(&mut self, mut superseded: BTreeSet<Seq>) {
        // The many take the few in.
        if superseded.len() > self.fresh.checkpoints.len() {
            std::mem::swap(&mut self.fresh.checkpoints, &mut superseded);
        }
        self.fresh.checkpoints.extend(superseded);
    }

    /// What is to be deleted next: what is left of what was planned before, else all that there is, checkpoint objects only if they may go.
    pub fn plan(&mut self, may_delete_checkpoints: bool) -> Planned {
        if self.planned.len() == 0 {
            let segments = std::mem::take(&mut self.fresh.segments);
            let checkpoints = match may_delete_checkpoints {
                true => std::mem::take(&mut self.fresh.checkpoints),
                false => BTreeSet::new(),
            };
            self.planned = Planned { batch: Arc::new(Batch { segments, checkpoints }), ..Planned::default() };
        }
        self.planned.clone()
    }

    /// So many more of the planned checkpoint objects are gone.
    pub fn checkpoints_gone(&mut self, count: usize) {
        self.planned.checkpoints_gone += count;
    }

    /// The next of the planned segments is gone, this one; how many bytes it had.
    pub fn segment_gone(&mut self, gone: Seq) -> Option<u64> {
        let bytes = *self.planned.batch.segments.get(&gone)?;
        self.planned.segments_gone += 1;
        self.bytes -= bytes;
        Some(bytes)
    }

    /// All that was planned is gone. Whoever deleted it has the batch, too, and lets go of it without a lock: freeing tens of thousands of entries takes
    /// long.
    pub fn planned_is_gone(&mut self) {
        if self.planned.len() == 0 {
            self.planned = Planned::default();
        }
    }

    /// Whether nothing is to be deleted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no more dead segments are looked for until some of these are gone.
    pub fn is_full(&self) -> bool {
        self.segments() >= DOOMED_MAX
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.fresh.len() + self.planned.len()
    }

    /// How many segments.
    pub fn segments(&self) -> usize {
        self.fresh.segments.len() + self.planned.batch.segments.len() - self.planned.segments_gone
    }

    /// Bytes of the segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many may go now, if checkpoint objects may or must not.
    pub fn deletable(&self, may_delete_checkpoints: bool) -> usize {
        let checkpoints = if may_delete_checkpoints { self.fresh.checkpoints.len() } else { 0 };
        self.planned.len() + self.fresh.segments.len() + checkpoints
    }

    /// The checkpoint objects.
    pub fn checkpoints(&self) -> impl Iterator<Item = Seq> + '_ {
        self.fresh.checkpoints.iter().copied().chain(self.planned.checkpoints())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Counter;

    fn dead(seqs: impl IntoIterator<Item = u64>) -> Counted {
        seqs.into_iter().map(|seq| (Seq(seq), Counter { stored_bytes: 10, ..Counter::default() })).collect()
    }

    fn seqs(seqs: impl IntoIterator<Item = Seq>) -> Vec<u64> {
        seqs.into_iter().map(|seq| seq.0).collect()
    }

    #[test]
    fn what_was_planned_goes_first_and_what_came_meanwhile_after_it() {
        let mut doomed = Doomed::new(BTreeMap::from([(Seq(1), 10), (Seq(2), 10)]), BTreeSet::from([Seq(7)]));
        assert_eq!((doomed.len(), doomed.bytes(), doomed.deletable(false)), (3, 20, 2));
        let planned = doomed.plan(false);
        assert_eq!((seqs(planned.segments()), seqs(planned.checkpoints())), (vec![1, 2], vec![]));
        // A look finds again what is being deleted.
        doomed.add(dead([1, 2, 3]));
        doomed.add_checkpoints(BTreeSet::from([Seq(8), Seq(9)]));
        assert_eq!((doomed.len(), doomed.segments(), doomed.bytes()), (6, 3, 30));
        assert_eq!(doomed.segment_gone(Seq(1)), Some(10));
        doomed.planned_is_gone();
        // The store failed: the rest is tried again, and it alone.
        let again = doomed.plan(true);
        assert_eq!((seqs(again.segments()), seqs(again.checkpoints())), (vec![2], vec![]));
        assert_eq!(doomed.segment_gone(Seq(2)), Some(10));
        doomed.planned_is_gone();
        assert_eq!((doomed.segments(), doomed.bytes(), doomed.deletable(true)), (1, 10, 4));
        let last = doomed.plan(true);
        assert_eq!((seqs(last.segments()), seqs(last.checkpoints())), (vec![3], vec![7, 8, 9]));
        doomed.checkpoints_gone(2);
        assert_eq!(seqs(doomed.checkpoints()), [9]);
        doomed.checkpoints_gone(1);
        doomed.segment_gone(Seq(3));
        assert!(doomed.is_empty() && doomed.bytes() == 0 && seqs(doomed.plan(true).segments()).is_empty());
    }

    #[test]
    fn no_more_are_looked_for_while_there_are_very_many() {
        let mut doomed = Doomed::default();
        doomed.add(dead(1..DOOMED_MAX as u64));
        assert!(!doomed.is_full());
        doomed.plan(true);
        doomed.add(dead([DOOMED_MAX as u64]));
        assert!(doomed.is_full());
        doomed.segment_gone(Seq(1));
        assert!(!doomed.is_full());
    }
}
