//! The recovery decision (rules R3, R4): what was found, what it means, what is done. Pure.
//!
//! | | last fence's server | journal here | it means | done |
//! | --- | --- | --- | --- | --- |
//! | A | none: never opened | none | a new volume | begin a journal |
//! | B | closed | none, or an empty one | nothing is owed | begin a journal |
//! | C | did not close | the one that the fence names | our own earlier self died | accept its uncommitted changes again |
//! | D | did not close | another or none | another server may be alive | refuse; with `takeover`, E or F |
//! | E | as D, durability store | | what it flushed is in the store | displace it, begin a journal |
//! | F | as D, durability journal | | it may have promised more than the store has | refuse; with `accept_loss`, as E |
//! | G | any | one with changes that the fence does not name | the volume moved on without it | refuse; with `drop_journal`, drop it and look again |
//! | H | did not close | the one that the fence names, but its first change is beyond what the store has next | the store lost segments | refuse; with `drop_journal`, drop its changes and go on |
//!
//! A crash after the fence was put and before anything else leads back into the table: the fence names the journal that
//! is here, so that the next opening is C.

use uuid::Uuid;

use crate::segment::{Durability, Fence};
use crate::units::ChangeNo;

/// What an operator allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Take the volume from a server that did not close it.
    pub takeover: bool,
    /// Go on although changes may be missing that only a lost journal holds.
    pub accept_loss: bool,
    /// Drop a journal that the volume moved on without.
    pub drop_journal: bool,
    /// Open although the store holds an older state than this server has seen.
    pub accept_rollback: bool,
}

/// The log's side of the evidence.
#[derive(Clone, Debug)]
pub struct LogEvidence<'a> {
    /// The newest fence.
    pub fence: Option<&'a Fence>,
    /// Whether its server closed the volume.
    pub closed: bool,
    /// The last committed change.
    pub covers: ChangeNo,
}

/// The journal's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEvidence {
    /// Its id.
    pub id: Uuid,
    /// First and last change in it, if it has any.
    pub changes: Option<(ChangeNo, ChangeNo)>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Remove the journal's files if there are any, and begin a new one. `displaces`: another server may be alive.
    Begin {
        /// Whether the fence displaces a server that may be alive.
        displaces: bool,
    },
    /// Go on with the journal that is here, accepting its changes after the last committed one again.
    Resume,
    /// Refused.
    Refuse(Refusal),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// D
    Held,
    /// F
    Owed,
    /// G
    StaleJournal,
    /// H
    StoreBehind,
}

/// The table.
pub fn decide(log: &LogEvidence<'_>, journal: Option<JournalEvidence>, flags: OpenFlags) -> Verdict {
    let own = log.fence.zip(journal).is_some_and(|(fence, journal)| fence.journal == journal.id);
    match (log.fence, log.closed, journal) {
        // H and C
        (Some(_), false, Some(journal)) if own => match journal.changes {
            Some((first, _)) if first > log.covers.next() => match flags.drop_journal {
                false => Verdict::Refuse(Refusal::StoreBehind),
                true => Verdict::Begin { displaces: false },
            },
            _ => Verdict::Resume,
        },
        // G; what a closed volume's own journal still holds is all in the store
        (_, closed, Some(JournalEvidence { changes: Some(_), .. })) if !(flags.drop_journal || closed && own) => {
            Verdict::Refuse(Refusal::StaleJournal)
        }
        // A, B
        (None, _, _) | (Some(_), true, _) => Verdict::Begin { displaces: false },
        // D, F, E
        (Some(_), false, _) if !flags.takeover => Verdict::Refuse(Refusal::Held),
        (Some(fence), false, _) if fence.durability == Durability::Journal && !flags.accept_loss => {
            Verdict::Refuse(Refusal::Owed)
        }
        (Some(_), false, _) => Verdict::Begin { displaces: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, Seq};

    const OURS: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn fence(journal: Uuid, durability: Durability) -> Fence {
        Fence {
            epoch: Epoch(3),
            server: OTHER,
            server_name: "b".into(),
            time_unix_millis: 0,
            journal,
            window: 8,
            continues_at: Seq(9),
            durability,
            covers: ChangeNo(10),
            displaces: false,
        }
    }

    fn check(
        fence: Option<Fence>,
        closed: bool,
        journal: Option<(Uuid, Option<(u64, u64)>)>,
        flags: OpenFlags,
    ) -> Verdict {
        let log = LogEvidence { fence: fence.as_ref(), closed, covers: ChangeNo(10) };
        let journal = journal.map(|(id, changes)| JournalEvidence {
            id,
            changes: changes.map(|(first, last)| (ChangeNo(first), ChangeNo(last))),
        });
        decide(&log, journal, flags)
    }

    const NONE: OpenFlags =
        OpenFlags { takeover: false, accept_loss: false, drop_journal: false, accept_rollback: false };

    #[test]
    fn a_new_and_b_closed_volumes_begin_a_journal() {
        assert_eq!(check(None, false, None, NONE), Verdict::Begin { displaces: false });
        let closed = Some(fence(OURS, Durability::Journal));
        assert_eq!(check(closed.clone(), true, None, NONE), Verdict::Begin { displaces: false });
        assert_eq!(check(closed.clone(), true, Some((OURS, Some((4, 9)))), NONE), Verdict::Begin { displaces: false });
        assert_eq!(check(closed, true, Some((OTHER, None)), NONE), Verdict::Begin { displaces: false });
    }

    #[test]
    fn c_our_own_journal_is_resumed_without_a_flag() {
        for durability in [Durability::Store, Durability::Journal] {
            let fence = Some(fence(OURS, durability));
            assert_eq!(check(fence.clone(), false, Some((OURS, Some((5, 20)))), NONE), Verdict::Resume);
            assert_eq!(check(fence.clone(), false, Some((OURS, Some((11, 20)))), NONE), Verdict::Resume);
            assert_eq!(check(fence, false, Some((OURS, None)), NONE), Verdict::Resume);
        }
    }

    #[test]
    fn d_e_another_server_is_displaced_only_when_told_to() {
        let held = Some(fence(OTHER, Durability::Store));
        let takeover = OpenFlags { takeover: true, ..NONE };
        assert_eq!(check(held.clone(), false, None, NONE), Verdict::Refuse(Refusal::Held));
        assert_eq!(check(held.clone(), false, Some((OURS, None)), NONE), Verdict::Refuse(Refusal::Held));
        assert_eq!(check(held, false, None, takeover), Verdict::Begin { displaces: true });
    }

    #[test]
    fn f_a_lost_journal_that_owes_data_needs_a_second_flag() {
        let owed = Some(fence(OTHER, Durability::Journal));
        let takeover = OpenFlags { takeover: true, ..NONE };
        assert_eq!(check(owed.clone(), false, None, takeover), Verdict::Refuse(Refusal::Owed));
        let both = OpenFlags { accept_loss: true, ..takeover };
        assert_eq!(check(owed, false, None, both), Verdict::Begin { displaces: true });
    }

    #[test]
    fn g_a_journal_that_the_volume_moved_on_without_is_never_replayed() {
        let moved_on = Some(fence(OTHER, Durability::Store));
        let stale = Some((OURS, Some((11, 20))));
        let dropped = OpenFlags { drop_journal: true, ..NONE };
        for closed in [false, true] {
            let flags = OpenFlags { takeover: true, ..NONE };
            assert_eq!(check(moved_on.clone(), closed, stale, flags), Verdict::Refuse(Refusal::StaleJournal));
        }
        assert_eq!(check(None, false, stale, NONE), Verdict::Refuse(Refusal::StaleJournal));
        assert_eq!(check(moved_on.clone(), true, stale, dropped), Verdict::Begin { displaces: false });
        assert_eq!(check(moved_on, false, stale, dropped), Verdict::Refuse(Refusal::Held));
    }

    #[test]
    fn h_a_store_that_lost_segments_is_noticed() {
        let ours = Some(fence(OURS, Durability::Store));
        let beyond = Some((OURS, Some((15, 20))));
        assert_eq!(check(ours.clone(), false, beyond, NONE), Verdict::Refuse(Refusal::StoreBehind));
        let dropped = OpenFlags { drop_journal: true, ..NONE };
        assert_eq!(check(ours, false, beyond, dropped), Verdict::Begin { displaces: false });
    }
}
