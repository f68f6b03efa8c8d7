//! What the first store has deleted, and the mirror has not. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::units::Seq;

/// So much of it is known by name. What is beyond is found by looking through the mirror.
pub const NOTES_MAX: usize = 64 << 10;

/// An object that the first store deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deleted {
    /// A slot of the log.
    Slot(Seq),
    /// A checkpoint.
    Checkpoint(Seq),
}

#[derive(Clone, Copy, Debug)]
struct Note {
    object: Deleted,
    /// The newest checkpoint of the first store then: it does not need the object.
    checkpoint: Seq,
    at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Notes {
    notes: VecDeque<Note>,
    lost: bool,
}

impl Notes {
    /// The first store deleted that now, when this was its newest checkpoint.
    pub fn add(&mut self, object: Deleted, checkpoint: Seq, at: Instant) {
        match self.notes.len() < NOTES_MAX {
            true => self.notes.push_back(Note { object, checkpoint, at }),
            false => self.lost = true,
        }
    }

    /// Whether something was deleted there that is not known by name; asked once.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// What may be deleted here, in the order in which it was there, so many at most: `checkpoint` is the newest of the mirror, and it was deleted so
    /// long ago.
    pub fn due(&self, checkpoint: Seq, after: Duration, now: Instant, at_most: usize) -> Vec<Deleted> {
        let is_due = |note: &&Note| note.checkpoint <= checkpoint && note.at + after <= now;
        self.notes.iter().take_while(is_due).take(at_most).map(|note| note.object).collect()
    }

    /// So many of these are gone here.
    pub fn gone(&mut self, count: usize) {
        self.notes.drain(..count);
    }

    /// When the next may be deleted by time alone, if `checkpoint` is the newest of the mirror.
    pub fn next_at(&self, checkpoint: Seq, after: Duration) -> Option<Instant> {
        self.notes.front().filter(|note| note.checkpoint <= checkpoint).map(|note| note.at + after)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.notes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_waits_for_a_checkpoint_and_its_time() {
        let (mut notes, start, after) = (Notes::default(), Instant::now(), Duration::from_secs(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        notes.add(Deleted::Slot(Seq(1)), Seq(10), at(0));
        notes.add(Deleted::Checkpoint(Seq(2)), Seq(20), at(1));
        let due = |notes: &Notes, checkpoint, seconds| notes.due(Seq(checkpoint), after, at(seconds), 10);
        assert_eq!(due(&notes, 9, 100), []);
        assert_eq!(due(&notes, 10, 59), []);
        assert_eq!((notes.next_at(Seq(9), after), notes.next_at(Seq(10), after)), (None, Some(at(60))));
        assert_eq!(due(&notes, 10, 100), [Deleted::Slot(Seq(1))]);
        assert_eq!(due(&notes, 20, 100), [Deleted::Slot(Seq(1)), Deleted::Checkpoint(Seq(2))]);
        assert_eq!(notes.due(Seq(20), after, at(100), 1).len(), 1);
        notes.gone(1);
        assert_eq!(due(&notes, 20, 60), []);
        assert_eq!(due(&notes, 20, 61), [Deleted::Checkpoint(Seq(2))]);
    }

    #[test]
    fn of_very_much_it_is_known_that_it_is_not_known() {
        let (mut notes, now) = (Notes::default(), Instant::now());
        (0..NOTES_MAX as u64).for_each(|seq| notes.add(Deleted::Slot(Seq(seq)), Seq(1), now));
        assert!(!notes.take_lost());
        notes.add(Deleted::Slot(Seq(1)), Seq(1), now);
        assert!(notes.take_lost() && !notes.take_lost() && notes.len() == NOTES_MAX);
    }
}
