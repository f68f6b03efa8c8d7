//! Which object is copied next. Pure.

use crate::units::Seq;

/// How far a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The next slot of the log.
    pub next: Seq,
    /// The newest checkpoint that is there; 0 if there is none.
    pub checkpoint: Seq,
}

/// What the first store has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct First {
    /// The last slot of the log that took effect. What stands behind it may be void.
    pub committed: Seq,
    /// The oldest checkpoint after the newest one of the mirror.
    pub checkpoint: Option<Seq>,
    /// There is a description that the mirror does not have; it goes there when this slot is there, at once for 0.
    pub description: Option<Seq>,
}

/// What is copied next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The newest description.
    Description,
    /// That checkpoint.
    Checkpoint(Seq),
    /// That slot of the log.
    Slot(Seq),
}

/// What of a description decides when it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Bytes of the volume.
    pub size: u64,
    /// The data key that seals; 0 without encryption.
    pub generation: u8,
}

/// The slot that is to be in the mirror before a newer description: 0 if it may go at once. `committed` is the last slot that had taken effect
/// when that description was in the first store.
///
/// The mirror's first description makes a volume of it, so all goes before that. One that makes the volume smaller needs the hole before it. Any other
/// may come early, and one with a new data key must: what is sealed with that comes next. (What does both at once, as the mirror was away meanwhile, comes early, and
/// the volume may hold something beyond its end until the hole is there.)
pub fn description_after(there: Option<Described>, newer: Described, committed: Seq) -> Seq {
    match there {
        None => committed,
        Some(there) if newer.size < there.size && newer.generation == there.generation => committed,
        Some(_) => Seq(0),
    }
}

impl Plan {
    /// The next step, if there is anything to be copied.
    ///
    /// A description goes before what may be sealed with its keys, and that may be a checkpoint of before it. It goes behind the hole
    /// that it needs, if it makes the volume smaller.
    pub fn step(&self, first: &First) -> Option<Step> {
        if first.description.is_some_and(|after| after < self.next) {
            return Some(Step::Description);
        }
        if let Some(checkpoint) = first.checkpoint.filter(|checkpoint| *checkpoint < self.next) {
            return Some(Step::Checkpoint(checkpoint));
        }
        (self.next <= first.committed).then_some(Step::Slot(self.next))
    }

    /// The next slot is there. If it is a fence, the log goes on where that says: what stands in between is void.
    pub fn slot_copied(&mut self, continues_at: Option<Seq>) {
        self.next = continues_at.unwrap_or(self.next.next());
    }

    /// That checkpoint is there.
    pub fn checkpoint_copied(&mut self, checkpoint: Seq) {
        self.checkpoint = checkpoint;
    }

    /// Whether the mirror has all up to that slot of the log.
    pub fn has(&self, slot: Seq) -> bool {
        slot < self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(committed: u64, checkpoint: Option<u64>, description: Option<u64>) -> First {
        First { committed: Seq(committed), checkpoint: checkpoint.map(Seq), description: description.map(Seq) }
    }

    #[test]
    fn the_log_goes_in_its_order_and_a_checkpoint_behind_all_that_it_covers() {
        let mut plan = Plan { next: Seq(5), checkpoint: Seq(2) };
        assert_eq!(plan.step(&first(4, None, None)), None);
        assert_eq!(plan.step(&first(6, Some(5), None)), Some(Step::Slot(Seq(5))));
        plan.slot_copied(None);
        assert_eq!(plan.step(&first(6, Some(5), None)), Some(Step::Checkpoint(Seq(5))));
        plan.checkpoint_copied(Seq(5));
        assert_eq!(plan.step(&first(6, None, None)), Some(Step::Slot(Seq(6))));
        // A fence: slots 7 to 9 are void, whatever stands there.
        plan.slot_copied(Some(Seq(10)));
        assert!(plan.has(Seq(9)) && !plan.has(Seq(10)));
        assert_eq!(plan.step(&first(9, None, None)), None);
    }

    #[test]
    fn a_description_goes_first_but_for_one_that_needs_a_slot() {
        let plan = Plan { next: Seq(5), checkpoint: Seq(2) };
        assert_eq!(plan.step(&first(6, Some(3), Some(0))), Some(Step::Description));
        assert_eq!(plan.step(&first(6, Some(3), Some(5))), Some(Step::Checkpoint(Seq(3))));
        assert_eq!(plan.step(&first(6, None, Some(5))), Some(Step::Slot(Seq(5))));
        assert_eq!(plan.step(&first(6, None, Some(4))), Some(Step::Description));
    }

    #[test]
    fn only_the_first_description_and_one_of_a_smaller_volume_wait_for_the_log() {
        let described = |size, generation| Described { size, generation };
        let after = |there, newer| description_after(there, newer, Seq(7));
        assert_eq!(after(None, described(10, 1)), Seq(7));
        assert_eq!(after(Some(described(10, 1)), described(9, 1)), Seq(7));
        for newer in [described(10, 1), described(11, 1), described(10, 2), described(9, 2)] {
            assert_eq!(after(Some(described(10, 1)), newer), Seq(0));
        }
    }
}
