//! Objects that nothing needs any more, as of the newest durable checkpoint. Pure.
//!
//! There may be tens of thousands of them. What is deleted next is therefore handed over whole, and nothing is copied under the
//! volume's lock: what becomes doomed meanwhile is noted apart, and has its turn when all of that is gone.
//!
//! Of a volume that has a mirror, what is not there yet is *held*: it stays, however dead, and nobody waits for it ([`crate::mirror`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::format::digest::Stretch;
use crate::mirror::Plan;
use crate::space::Counted;
use crate::units::Seq;

/// So many dead segments are known by name at most.
const DOOMED_MAX: usize = 32 << 10;

/// Objects that are let go of by a mirror under one lock.
const RELEASED_AT_ONCE: usize = 1024;

/// What stays because a mirror does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing: there is no mirror, or none that goes on.
    #[default]
    Nothing,
    /// Everything: it is not known how far the mirror is.
    Everything,
    /// What it has not, and it has this.
    Beyond(Plan),
}

impl Hold {
    fn holds_segment(self, seq: Seq) -> bool {
        match self {
            Hold::Nothing => false,
            Hold::Everything => true,
            Hold::Beyond(plan) => !plan.has(seq),
        }
    }

    fn holds_checkpoint(self, seq: Seq) -> bool {
        match self {
            Hold::Nothing => false,
            Hold::Everything => true,
            Hold::Beyond(plan) => seq > plan.checkpoint,
        }
    }
}

/// What is deleted together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Dead segments, each with its bytes.
    pub segments: BTreeMap<Seq, u64>,
    /// Checkpoint objects that hold no page of the map or the table of segments.
    pub checkpoints: BTreeSet<Seq>,
    /// Digests of slots that a checkpoint covers. No mirror has any.
    pub digests: BTreeSet<Stretch>,
}

impl Batch {
    fn len(&self) -> usize {
        self.segments.len() + self.checkpoints.len() + self.digests.len()
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
    /// Digests that are gone.
    pub digests_gone: usize,
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

    /// The digests that are still there.
    pub fn digests(&self) -> impl Iterator<Item = Stretch> + '_ {
        self.batch.digests.iter().copied().skip(self.digests_gone)
    }

    fn len(&self) -> usize {
        self.batch.len() - self.segments_gone - self.checkpoints_gone - self.digests_gone
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Doomed {
    /// What nobody deletes yet; not all dead segments, if there are very many.
    fresh: Batch,
    /// What a mirror does not have.
    held: Batch,
    held_bytes: u64,
    hold: Hold,
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
        Doomed {
            bytes: segments.values().sum(),
            fresh: Batch { segments, checkpoints, ..Batch::default() },
            ..Doomed::default()
        }
    }

    /// Holds that from now on, of what nobody deletes yet. Returns whether there is more to be let go of, which is to be asked for again.
    #[must_use]
    pub fn hold(&mut self, hold: Hold) -> bool {
        if hold == Hold::Everything {
            self.held_bytes += self.fresh.segments.values().sum::<u64>();
            self.held.segments.append(&mut self.fresh.segments);
            self.held.checkpoints.append(&mut self.fresh.checkpoints);
        }
        self.hold = hold;
        for _ in 0..RELEASED_AT_ONCE {
            let segment = self.held.segments.first_key_value().map(|(seq, _)| *seq);
            if segment.is_some_and(|seq| !hold.holds_segment(seq)) {
                let Some((seq, bytes)) = self.held.segments.pop_first() else { return false };
                self.held_bytes -= bytes;
                self.fresh.segments.insert(seq, bytes);
                continue;
            }
            let checkpoint = self.held.checkpoints.first().copied();
            match checkpoint.filter(|seq| !hold.holds_checkpoint(*seq)) {
                Some(seq) => drop(self.held.checkpoints.pop_first().map(|_| self.fresh.checkpoints.insert(seq))),
                None => return false,
            }
        }
        true
    }

    /// The oldest checkpoint object after that one.
    pub fn checkpoint_after(&self, seq: Seq) -> Option<Seq> {
        let of = |batch: &Batch| batch.checkpoints.range(seq.next()..).next().copied();
        [of(&self.fresh), of(&self.held), of(&self.planned.batch)].into_iter().flatten().min()
    }

    /// Whether that segment is one of them.
    pub fn names(&self, seq: Seq) -> bool {
        [&self.fresh, &self.held, &*self.planned.batch].iter().any(|batch| batch.segments.contains_key(&seq))
    }

    /// These segments, too.
    pub fn add(&mut self, dead: Counted) {
        for (seq, counter) in dead {
            let is_held = self.hold.holds_segment(seq);
            let is_known = self.planned.batch.segments.contains_key(&seq);
            let into = if is_held { &mut self.held.segments } else { &mut self.fresh.segments };
            if !is_known && into.insert(seq, counter.stored_bytes).is_none() {
                self.bytes += counter.stored_bytes;
                self.held_bytes += if is_held { counter.stored_bytes } else { 0 };
            }
        }
    }

    /// These checkpoint objects, too.
    pub fn add_checkpoints(&mut self, mut superseded: BTreeSet<Seq>) {
        if self.hold != Hold::Nothing {
            let (held, free) = superseded.into_iter().partition(|seq| self.hold.holds_checkpoint(*seq));
            self.held.checkpoints.extend::<BTreeSet<Seq>>(held);
            superseded = free;
        }
        // The many take the few in.
        if superseded.len() > self.fresh.checkpoints.len() {
            std::mem::swap(&mut self.fresh.checkpoints, &mut superseded);
        }
        self.fresh.checkpoints.extend(superseded);
    }

    /// These digests, too.
    pub fn add_digests(&mut self, mut needless: BTreeSet<Stretch>) {
        self.fresh.digests.append(&mut needless);
    }

    /// What is to be deleted next: what is left of what was planned before, else all that there is, checkpoint objects and digests only if they may go.
    pub fn plan(&mut self, may_delete_checkpoints: bool) -> Planned {
        if self.planned.len() == 0 {
            let segments = std::mem::take(&mut self.fresh.segments);
            let (checkpoints, digests) = match may_delete_checkpoints {
                true => (std::mem::take(&mut self.fresh.checkpoints), std::mem::take(&mut self.fresh.digests)),
                false => Default::default(),
            };
            self.planned = Planned { batch: Arc::new(Batch { segments, checkpoints, digests }), ..Planned::default() };
        }
        self.planned.clone()
    }

    /// So many more of the planned checkpoint objects are gone.
    pub fn checkpoints_gone(&mut self, count: usize) {
        self.planned.checkpoints_gone += count;
    }

    /// So many more of the planned digests are gone.
    pub fn digests_gone(&mut self, count: usize) {
        self.planned.digests_gone += count;
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
        self.fresh.len() + self.held.len() + self.planned.len()
    }

    /// How many segments.
    pub fn segments(&self) -> usize {
        self.held.segments.len() + self.segments_to_go()
    }

    /// How many segments that no mirror lacks.
    pub fn segments_to_go(&self) -> usize {
        self.fresh.segments.len() + self.planned.batch.segments.len() - self.planned.segments_gone
    }

    /// Bytes of the segments that a mirror lacks.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes of the segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many may go now, if checkpoint objects and digests may or must not.
    pub fn deletable(&self, may_delete_checkpoints: bool) -> usize {
        let others = self.fresh.checkpoints.len() + self.fresh.digests.len();
        self.planned.len() + self.fresh.segments.len() + if may_delete_checkpoints { others } else { 0 }
    }

    /// The checkpoint objects.
    pub fn checkpoints(&self) -> impl Iterator<Item = Seq> + '_ {
        let free = self.fresh.checkpoints.iter().chain(&self.held.checkpoints);
        free.copied().chain(self.planned.checkpoints())
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
    fn what_a_mirror_lacks_stays_and_is_let_go_of_as_it_comes_there() {
        let mut doomed = Doomed::new(BTreeMap::from([(Seq(1), 10), (Seq(5), 10)]), BTreeSet::from([Seq(2), Seq(7)]));
        assert!(!doomed.hold(Hold::Everything));
        assert_eq!((doomed.deletable(true), doomed.len(), doomed.bytes(), doomed.held_bytes()), (0, 4, 20, 20));
        assert_eq!(doomed.checkpoint_after(Seq(2)), Some(Seq(7)));
        assert!(!doomed.hold(Hold::Beyond(Plan { next: Seq(5), checkpoint: Seq(2) })));
        assert_eq!((doomed.deletable(true), doomed.segments_to_go(), doomed.held_bytes()), (2, 1, 10));
        // A look finds them again.
        doomed.add(dead([1, 4, 5, 6]));
        doomed.add_checkpoints(BTreeSet::from([Seq(2), Seq(7), Seq(9)]));
        assert_eq!((doomed.bytes(), doomed.held_bytes(), doomed.len()), (40, 20, 7));
        let planned = doomed.plan(true);
        assert_eq!((seqs(planned.segments()), seqs(planned.checkpoints())), (vec![1, 4], vec![2]));
        assert_eq!(seqs(doomed.checkpoints()), [7, 9, 2]);
        assert!(!doomed.hold(Hold::Beyond(Plan { next: Seq(6), checkpoint: Seq(7) })));
        assert_eq!((doomed.held_bytes(), doomed.checkpoint_after(Seq(7))), (10, Some(Seq(9))));
        doomed.add_checkpoints(BTreeSet::from([Seq(8)]));
        assert!(!doomed.hold(Hold::Nothing));
        assert_eq!((doomed.held_bytes(), doomed.len(), doomed.deletable(true)), (0, 8, 8));
    }

    #[test]
    fn what_is_let_go_of_is_so_a_part_at_a_time() {
        // A checkpoint stays until it is there itself, however far the log is.
        let mut doomed = Doomed::new(BTreeMap::new(), BTreeSet::from([Seq(2), Seq(7)]));
        let _ = doomed.hold(Hold::Everything);
        let _ = doomed.hold(Hold::Beyond(Plan { next: Seq(10), checkpoint: Seq(2) }));
        assert_eq!((doomed.deletable(true), seqs(doomed.plan(true).checkpoints())), (1, vec![2]));
        let mut doomed = Doomed::default();
        let _ = doomed.hold(Hold::Everything);
        doomed.add(dead(0..2 * RELEASED_AT_ONCE as u64));
        doomed.add_checkpoints(BTreeSet::from([Seq(1)]));
        let holds = [(); 3].map(|()| (doomed.hold(Hold::Nothing), doomed.segments_to_go()));
        assert_eq!(holds, [(true, RELEASED_AT_ONCE), (true, 2 * RELEASED_AT_ONCE), (false, 2 * RELEASED_AT_ONCE)]);
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
