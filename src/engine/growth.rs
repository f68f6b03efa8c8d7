//! A volume that becomes larger while its store does not answer. The size stands in the description, in the store; until that says it, the
//! server owes it:
//!
//! 1. The size is *asked for*: nobody makes the volume smaller meanwhile.
//! 2. It is noted on the local disk, beside the journal ([`Growth`]).
//! 3. It is served, and *owed*. Nothing gets a slot of the log and no checkpoint begins, so that nothing is in the store beyond the end that
//!    the description says there.
//! 4. The description is put, as often as it takes, before anything else goes to the store. Then the note is removed.
//!
//! So a client that writes beyond the old end is in the state of any client while the store is away: with `durability = "journal"` its
//! changes are as durable as the note, on the same disk; with `"store"` no FLUSH returns before the description is there, too. A server
//! that starts again on the same disk puts the description before it takes the volume ([`crate::opening::recover`]); one elsewhere, which
//! has neither journal nor note, finds the old size and nothing beyond. The note is of one epoch, and counts for nobody once another
//! server, or another opening, has had the volume.

use serde::{Deserialize, Serialize};

use crate::disk::note::Note;

/// Where a size is noted.
pub const NOTE: Note = Note("growing");

/// A size that is owed, as it is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The epoch in which it was asked for.
    pub epoch: u64,
    /// Bytes that the volume is to have.
    pub size: u64,
}

/// What becomes of the size: see the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growing {
    asked: Option<u64>,
    owed: Option<u64>,
    /// The volume is becoming smaller.
    is_barred: bool,
}

impl Growing {
    /// Step 1; not if another size is asked for just now, or the volume is becoming smaller.
    pub fn ask(&mut self, size: u64) -> bool {
        let may = self.asked.is_none() && !self.is_barred;
        if may {
            self.asked = Some(size);
        }
        may
    }

    /// Nobody asks for a size until [`Growing::lift_bar`]; not if one is asked for or owed.
    pub fn bar(&mut self) -> bool {
        let may = *self == Growing::default();
        self.is_barred |= may;
        may
    }

    /// Sizes may be asked for again.
    pub fn lift_bar(&mut self) {
        self.is_barred = false;
    }

    /// It is not to be.
    pub fn take_back(&mut self) {
        self.asked = None;
    }

    /// Step 3: the size that is owed from here on, if one was asked for.
    pub fn owe(&mut self) -> Option<u64> {
        let asked = self.asked.take();
        self.owed = self.owed.max(asked);
        asked
    }

    /// The description says this size.
    pub fn described(&mut self, size: u64) {
        self.owed = self.owed.filter(|owed| *owed > size);
    }

    /// Bytes that the store is still to be told.
    pub fn owed(&self) -> Option<u64> {
        self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_owed_until_the_description_says_it_or_more() {
        let mut growing = Growing::default();
        assert_eq!(growing.owe(), None);
        assert!(growing.ask(20) && !growing.ask(30), "one at a time");
        assert_eq!((growing.owed(), growing.bar()), (None, false));
        assert_eq!(growing.owe(), Some(20));
        growing.described(10);
        assert_eq!(growing.owed(), Some(20));
        // Larger once more, before the store knows of the first.
        assert!(growing.ask(30));
        growing.described(20);
        assert!(!growing.bar());
        growing.take_back();
        assert!(growing.bar() && !growing.ask(40), "not while it becomes smaller");
        growing.lift_bar();
        assert!(growing.ask(40));
        assert_eq!((growing.owe(), growing.bar()), (Some(40), false));
        growing.described(50);
        assert!(growing.bar());
    }
}
