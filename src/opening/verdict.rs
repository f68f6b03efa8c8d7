//! The recovery decision (rules R3, R4): what was found, what it means, what is done. Pure.
//!
//! | | last fence's server | journal here | it means | done |
//! | --- | --- | --- | --- | --- |
//! | A | none: never opened | none | a new volume | begin a journal |
//! | B | closed | none, or an empty one, or the one that the fence names | nothing is owed | begin a journal |
//! | C | did not close | the one that the fence names | our own earlier self died | accept its uncommitted changes again |
//! | D | did not close | another or none | another server may be alive | refuse; with `takeover`, E or F |
//! | E | as D, durability store | | what it flushed is in the store | begin a journal |
//! | F | as D, durability journal | | it may have promised more than the store has | refuse; with `accept_loss`, as E |
//! | G | any | one with changes that the fence does not name | the volume moved on without it: another server, or a copy of this one | refuse; with `drop_journal`, set it aside and go on as if none were here |
//! | H | did not close | the one that the fence names, but its first change is beyond what the store has next | the store lost segments, or the journal its oldest file | refuse; with `drop_journal`, set it aside and begin one |
//! | I | did not close | the one that the fence names, but it ends before what it had synced, or its identity file is gone | the disk lost what was promised to be on it | refuse; with `accept_loss`, C with what is there |
//! | J | any | files that contradict each other, do not verify, or cannot be read | nobody can tell what is in it | refuse; with `drop_journal`, set it aside and go on as if none were here |
//! | K | any | that of another volume | somebody mixed up directories | refuse |
//! | L | any | one of a later format | a newer ashlar wrote it | refuse |
//! | M | did not close | none, or as in G or J; and, kept here as a peer, a copy of the one that the fence names | its server may be alive; what it acknowledged is in the copy or in the store | refuse; with `takeover` the copy becomes the journal, and then C, H, I |
//!
//! Whatever did not close may be alive: another server, or our earlier self on another host that shares or copied this directory. So
//! the fence displaces it, in C as in E: see [`LogEvidence::displaces`].
//!
//! A copy that the fence does not name is of an epoch that is over, and counts for nothing: what was acknowledged by its word is in the journal that it was a copy of, which went on.
//!
//! A flag names one danger. Where the danger is not, the flag is refused ([`needless`]), so that it does not become a habit.
//!
//! A crash after the fence was put and before anything else leads back into the table: the fence names the journal that
//! is here, so that the next opening is C.

use uuid::Uuid;

use crate::error::Flag;
use crate::format::segment::{Durability, Fence};
use crate::units::ChangeNo;

/// What an operator allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Take the volume from a server that did not close it.
    pub takeover: bool,
    /// Go on although changes may be missing that only a lost or damaged journal holds.
    pub accept_loss: bool,
    /// Set aside a journal that the volume moved on without, or that cannot be read.
    pub drop_journal: bool,
    /// Open although the store holds an older state than this server has seen.
    pub accept_rollback: bool,
    /// Open although the store that has its log is not at hand, and go on without what is only there.
    pub accept_log_loss: bool,
    /// What is opened will not be what clients had: no device goes on with it.
    pub breaks_line: bool,
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

impl LogEvidence<'_> {
    /// Whether the fence that is put now displaces somebody who may be alive.
    pub fn displaces(&self) -> bool {
        self.fence.is_some() && !self.closed
    }
}

/// The journal's side: the state of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalEvidence<'a> {
    /// There is no journal.
    None,
    /// One that could be read, or the part of it that could.
    Here(JournalHere<'a>),
    /// J
    Damaged,
    /// K
    Foreign,
    /// L
    Unknown,
}

/// A journal that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHere<'a> {
    /// By which fences name it.
    pub names: &'a [Uuid],
    /// First and last change in it, if it has any.
    pub changes: Option<(ChangeNo, ChangeNo)>,
    /// Every change up to this one was on the disk.
    pub synced: ChangeNo,
    /// Whether it can be told that nothing is missing at its end.
    pub whole: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Begin a new journal. `aside`: keep the files of the one that is here, which hold what nobody else has; otherwise remove them.
    Begin {
        /// Whether what is here is kept.
        aside: bool,
    },
    /// Go on with the journal that is here, accepting its changes after the last committed one again.
    Resume,
    /// The same with the copy that is kept here. `aside`: as in [`Verdict::Begin`], of the journal in whose place it comes.
    Adopt {
        /// Whether what is here is kept.
        aside: bool,
    },
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
    /// I
    JournalCut,
    /// J, K, L: whoever read the directory knows the words.
    Unusable,
}

/// The table. `copy` is one of the journal that the newest fence names, if this server keeps one.
pub fn decide(
    log: &LogEvidence<'_>,
    journal: JournalEvidence<'_>,
    copy: Option<JournalHere<'_>>,
    flags: OpenFlags,
) -> Verdict {
    match journal {
        JournalEvidence::Foreign | JournalEvidence::Unknown => Verdict::Refuse(Refusal::Unusable),
        JournalEvidence::Damaged if !flags.drop_journal => Verdict::Refuse(Refusal::Unusable),
        JournalEvidence::Damaged => without_journal(log, copy, flags, true),
        JournalEvidence::None => without_journal(log, copy, flags, false),
        JournalEvidence::Here(here) => with_journal(log, here, copy, flags),
    }
}

fn with_journal(
    log: &LogEvidence<'_>,
    here: JournalHere<'_>,
    copy: Option<JournalHere<'_>>,
    flags: OpenFlags,
) -> Verdict {
    let own = log.fence.is_some_and(|fence| here.names.contains(&fence.journal));
    match (own, log.closed) {
        (true, false) => own_journal(log, here, flags),
        // What a closed volume's own journal still holds is all in the store.
        (true, true) => without_journal(log, copy, flags, false),
        // Another's, and there is nothing in it that could be missed.
        (false, _) if here.changes.is_none() && here.whole => without_journal(log, copy, flags, false),
        // G
        (false, _) if !flags.drop_journal => Verdict::Refuse(Refusal::StaleJournal),
        (false, _) => without_journal(log, copy, flags, true),
    }
}

/// C, H, I.
fn own_journal(log: &LogEvidence<'_>, here: JournalHere<'_>, flags: OpenFlags) -> Verdict {
    let first_needed = log.covers.next();
    let last = here.changes.map_or(log.covers, |(_, last)| last.max(log.covers));
    if here.changes.is_some_and(|(first, _)| first > first_needed) {
        return match flags.drop_journal {
            false => Verdict::Refuse(Refusal::StoreBehind),
            true => Verdict::Begin { aside: true },
        };
    }
    let is_cut = last < here.synced || !here.whole;
    if is_cut && !flags.accept_loss { Verdict::Refuse(Refusal::JournalCut) } else { Verdict::Resume }
}

/// A, B, D, E, F, M.
fn without_journal(log: &LogEvidence<'_>, copy: Option<JournalHere<'_>>, flags: OpenFlags, aside: bool) -> Verdict {
    let Some(fence) = log.fence.filter(|_| !log.closed) else { return Verdict::Begin { aside } };
    if !flags.takeover {
        return Verdict::Refuse(Refusal::Held);
    }
    match copy.filter(|copy| copy.names.contains(&fence.journal)).map(|copy| own_journal(log, copy, flags)) {
        Some(Verdict::Refuse(refusal)) => return Verdict::Refuse(refusal),
        Some(Verdict::Resume) => return Verdict::Adopt { aside },
        // It is of no use, and that is accepted.
        _ => {}
    }
    match fence.durability == Durability::Journal && !flags.accept_loss {
        true => Verdict::Refuse(Refusal::Owed),
        false => Verdict::Begin { aside },
    }
}

/// A flag whose danger is not there: without it the volume would be opened the same way.
pub fn needless(
    log: &LogEvidence<'_>,
    journal: JournalEvidence<'_>,
    copy: Option<JournalHere<'_>>,
    flags: OpenFlags,
) -> Option<Flag> {
    let verdict = decide(log, journal, copy, flags);
    if matches!(verdict, Verdict::Refuse(_)) {
        return None;
    }
    let without = [
        (flags.takeover, Flag::Takeover, OpenFlags { takeover: false, ..flags }),
        (flags.accept_loss, Flag::AcceptLoss, OpenFlags { accept_loss: false, ..flags }),
        (flags.drop_journal, Flag::DropJournal, OpenFlags { drop_journal: false, ..flags }),
    ];
    let same =
        |(is_set, _, without): &(bool, Flag, OpenFlags)| *is_set && decide(log, journal, copy, *without) == verdict;
    without.into_iter().find(same).map(|(_, flag, _)| flag)
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
        let names: Vec<Uuid> = journal.iter().map(|(name, _)| *name).collect();
        let here = journal.map(|(_, changes)| here(&names, changes, 0));
        check_state(fence, closed, here.map_or(JournalEvidence::None, JournalEvidence::Here), flags)
    }

    fn here(names: &[Uuid], changes: Option<(u64, u64)>, synced: u64) -> JournalHere<'_> {
        let changes = changes.map(|(first, last)| (ChangeNo(first), ChangeNo(last)));
        JournalHere { names, changes, synced: ChangeNo(synced), whole: true }
    }

    fn check_state(fence: Option<Fence>, closed: bool, journal: JournalEvidence<'_>, flags: OpenFlags) -> Verdict {
        let log = LogEvidence { fence: fence.as_ref(), closed, covers: ChangeNo(10) };
        decide(&log, journal, None, flags)
    }

    const NONE: OpenFlags = OpenFlags {
        takeover: false,
        accept_loss: false,
        drop_journal: false,
        accept_rollback: false,
        accept_log_loss: false,
        breaks_line: false,
    };

    #[test]
    fn a_new_and_b_closed_volumes_begin_a_journal() {
        assert_eq!(check(None, false, None, NONE), Verdict::Begin { aside: false });
        let closed = Some(fence(OURS, Durability::Journal));
        assert_eq!(check(closed.clone(), true, None, NONE), Verdict::Begin { aside: false });
        assert_eq!(check(closed.clone(), true, Some((OURS, Some((4, 9)))), NONE), Verdict::Begin { aside: false });
        assert_eq!(check(closed, true, Some((OTHER, None)), NONE), Verdict::Begin { aside: false });
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
        assert_eq!(check(held, false, None, takeover), Verdict::Begin { aside: false });
    }

    #[test]
    fn f_a_lost_journal_that_owes_data_needs_a_second_flag() {
        let owed = Some(fence(OTHER, Durability::Journal));
        let takeover = OpenFlags { takeover: true, ..NONE };
        assert_eq!(check(owed.clone(), false, None, takeover), Verdict::Refuse(Refusal::Owed));
        let both = OpenFlags { accept_loss: true, ..takeover };
        assert_eq!(check(owed, false, None, both), Verdict::Begin { aside: false });
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
        assert_eq!(check(moved_on.clone(), true, stale, dropped), Verdict::Begin { aside: true });
        assert_eq!(check(moved_on, false, stale, dropped), Verdict::Refuse(Refusal::Held));
    }

    #[test]
    fn h_a_store_that_lost_segments_is_noticed() {
        let ours = Some(fence(OURS, Durability::Store));
        let beyond = Some((OURS, Some((15, 20))));
        assert_eq!(check(ours.clone(), false, beyond, NONE), Verdict::Refuse(Refusal::StoreBehind));
        let dropped = OpenFlags { drop_journal: true, ..NONE };
        assert_eq!(check(ours, false, beyond, dropped), Verdict::Begin { aside: true });
    }

    #[test]
    fn c_a_journal_goes_by_each_of_its_names() {
        let names = [OTHER, OURS];
        for name in names {
            let fence = Some(fence(name, Durability::Store));
            let journal = JournalEvidence::Here(here(&names, Some((5, 20)), 0));
            assert_eq!(check_state(fence, false, journal, NONE), Verdict::Resume);
        }
    }

    #[test]
    fn i_a_journal_that_lost_what_it_had_synced_is_not_taken_for_whole() {
        let accept = OpenFlags { accept_loss: true, ..NONE };
        let cut = Verdict::Refuse(Refusal::JournalCut);
        for durability in [Durability::Store, Durability::Journal] {
            let fence = || Some(fence(OURS, durability));
            let state = |changes, synced| JournalEvidence::Here(here(&[OURS], changes, synced));
            // A torn tail after the last sync is what a crash is; what the store has cannot be missed.
            for (changes, synced) in [(Some((5, 20)), 20), (Some((5, 20)), 7), (None, 10), (Some((3, 7)), 10)] {
                assert_eq!(check_state(fence(), false, state(changes, synced), NONE), Verdict::Resume);
            }
            for (changes, synced) in [(Some((5, 20)), 21), (None, 11), (Some((3, 7)), 11)] {
                assert_eq!(check_state(fence(), false, state(changes, synced), NONE), cut);
                assert_eq!(check_state(fence(), false, state(changes, synced), accept), Verdict::Resume);
                let begin = Verdict::Begin { aside: false };
                assert_eq!(
                    check_state(fence(), true, state(changes, synced), NONE),
                    begin,
                    "a closed volume owes nothing"
                );
            }
            let headless = JournalEvidence::Here(JournalHere { whole: false, ..here(&[OURS], Some((5, 20)), 0) });
            assert_eq!(check_state(fence(), false, headless, NONE), cut);
            assert_eq!(check_state(fence(), false, headless, accept), Verdict::Resume);
        }
    }

    #[test]
    fn j_a_damaged_journal_is_set_aside_and_then_the_others_are_asked() {
        let drop_journal = OpenFlags { drop_journal: true, ..NONE };
        let takeover = OpenFlags { takeover: true, ..drop_journal };
        let both = OpenFlags { accept_loss: true, ..takeover };
        let damaged = JournalEvidence::Damaged;
        let held = |durability| Some(fence(OURS, durability));
        for fence in [None, held(Durability::Store), held(Durability::Journal)] {
            let flags = OpenFlags { drop_journal: false, ..both };
            assert_eq!(check_state(fence, false, damaged, flags), Verdict::Refuse(Refusal::Unusable));
        }
        let aside = Verdict::Begin { aside: true };
        assert_eq!(check_state(None, false, damaged, drop_journal), aside);
        assert_eq!(check_state(held(Durability::Journal), true, damaged, drop_journal), aside);
        let held_store = || held(Durability::Store);
        assert_eq!(check_state(held_store(), false, damaged, drop_journal), Verdict::Refuse(Refusal::Held));
        assert_eq!(check_state(held_store(), false, damaged, takeover), aside);
        assert_eq!(check_state(held(Durability::Journal), false, damaged, takeover), Verdict::Refuse(Refusal::Owed));
        assert_eq!(check_state(held(Durability::Journal), false, damaged, both), aside);
    }

    #[test]
    fn k_l_what_is_not_ours_to_drop_is_refused_whatever_the_flags() {
        let all = OpenFlags { takeover: true, accept_loss: true, drop_journal: true, ..NONE };
        for journal in [JournalEvidence::Foreign, JournalEvidence::Unknown] {
            for closed in [false, true] {
                let fence = Some(fence(OURS, Durability::Store));
                assert_eq!(check_state(fence, closed, journal, all), Verdict::Refuse(Refusal::Unusable));
            }
        }
    }

    #[test]
    fn a_flag_is_refused_where_its_danger_is_not_there() {
        let takeover = OpenFlags { takeover: true, ..NONE };
        let accept = OpenFlags { accept_loss: true, ..NONE };
        let drop_journal = OpenFlags { drop_journal: true, ..NONE };
        let both = OpenFlags { accept_loss: true, ..takeover };
        let names = [OURS];
        let own = JournalEvidence::Here(here(&names, Some((5, 20)), 20));
        let cut = JournalEvidence::Here(here(&names, Some((5, 20)), 21));
        let needless = |fence: Option<&Fence>, journal, flags| {
            needless(&LogEvidence { fence, closed: false, covers: ChangeNo(10) }, journal, None, flags)
        };
        let (mine, held, owed) =
            (fence(OURS, Durability::Journal), fence(OTHER, Durability::Store), fence(OTHER, Durability::Journal));
        for (flags, flag) in [(takeover, Flag::Takeover), (accept, Flag::AcceptLoss), (drop_journal, Flag::DropJournal)]
        {
            assert_eq!(needless(None, JournalEvidence::None, flags), Some(flag));
            assert_eq!(needless(Some(&mine), own, flags), Some(flag));
        }
        assert_eq!(needless(Some(&mine), cut, accept), None);
        assert_eq!(needless(Some(&mine), cut, both), Some(Flag::Takeover));
        assert_eq!(needless(Some(&held), JournalEvidence::None, takeover), None);
        assert_eq!(needless(Some(&held), JournalEvidence::None, both), Some(Flag::AcceptLoss));
        assert_eq!(needless(Some(&owed), JournalEvidence::None, both), None);
        assert_eq!(needless(Some(&owed), JournalEvidence::None, drop_journal), None, "refused for another reason");
        assert_eq!(needless(None, JournalEvidence::Damaged, drop_journal), None);
        assert_eq!(needless(Some(&held), own, OpenFlags { drop_journal: true, ..takeover }), None, "G");
    }

    #[test]
    fn m_the_copy_that_a_peer_keeps_is_its_journal_once_the_volume_is_taken_over() {
        let held = || Some(fence(OTHER, Durability::Journal));
        let takeover = OpenFlags { takeover: true, ..NONE };
        let accept = OpenFlags { accept_loss: true, ..takeover };
        let dropped = OpenFlags { drop_journal: true, ..takeover };
        let names = [OTHER];
        let decide = |closed, journal, copy, flags| {
            let fence = held();
            decide(&LogEvidence { fence: fence.as_ref(), closed, covers: ChangeNo(10) }, journal, copy, flags)
        };
        let none = JournalEvidence::None;
        let copy = |changes, synced| Some(here(&names, changes, synced));
        let whole = copy(Some((5, 20)), 20);
        assert_eq!(decide(false, none, whole, NONE), Verdict::Refuse(Refusal::Held), "its server may be alive");
        assert_eq!(decide(false, none, whole, takeover), Verdict::Adopt { aside: false });
        assert_eq!(decide(false, none, copy(None, 10), takeover), Verdict::Adopt { aside: false }, "an empty one");
        assert_eq!(decide(true, none, whole, NONE), Verdict::Begin { aside: false }, "a closed volume owes nothing");
        // It does not reach as far as was promised; or it begins beyond what the store has.
        let cut = copy(Some((5, 20)), 21);
        assert_eq!(decide(false, none, cut, takeover), Verdict::Refuse(Refusal::JournalCut));
        assert_eq!(decide(false, none, cut, accept), Verdict::Adopt { aside: false });
        let beyond = copy(Some((15, 20)), 20);
        assert_eq!(decide(false, none, beyond, takeover), Verdict::Refuse(Refusal::StoreBehind));
        assert_eq!(decide(false, none, beyond, dropped), Verdict::Refuse(Refusal::Owed), "as if none were here");
        // Of an epoch that is over.
        let of_before = Some(here(&[OURS], Some((5, 20)), 20));
        assert_eq!(decide(false, none, of_before, takeover), Verdict::Refuse(Refusal::Owed));
        // A journal of our own from before.
        let stale = JournalEvidence::Here(here(&[OURS], Some((2, 4)), 4));
        assert_eq!(decide(false, stale, whole, takeover), Verdict::Refuse(Refusal::StaleJournal));
        assert_eq!(decide(false, stale, whole, dropped), Verdict::Adopt { aside: true });
        let empty = JournalEvidence::Here(here(&[OURS], None, 0));
        assert_eq!(decide(false, empty, whole, takeover), Verdict::Adopt { aside: false });
        // One's own goes first: it has all that the copy has.
        let own = JournalEvidence::Here(here(&names, Some((5, 22)), 22));
        assert_eq!(decide(false, own, whole, NONE), Verdict::Resume);
    }

    #[test]
    fn whoever_did_not_close_is_displaced() {
        let fence = fence(OURS, Durability::Store);
        let displaces = |fence, closed| LogEvidence { fence, closed, covers: ChangeNo(0) }.displaces();
        assert_eq!([displaces(None, false), displaces(Some(&fence), true)], [false; 2]);
        assert!(displaces(Some(&fence), false), "also our earlier self");
    }
}
