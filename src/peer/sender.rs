//! What is sent to the peer, and what its word is good for. Pure: no clock, no socket.
//!
//! ```text
//!          linked            begin               ready
//!   Away ─────────→ Linked ─────────→ Begun ─────────→ Kept
//!     ↑                │ the store     │ sent, and no    │ the peer's
//!     └──── lose ──────┴ has all       ┴ word counts ────┴ word counts
//!                        before
//! ```
//!
//! - **Away**: nothing is kept for the peer. Everybody waits for the store.
//! - **Linked**: there is a connection. Changes are queued from now on. As soon as the store has all before the first of them, the copy may begin. What the store
//!   gets meanwhile leaves the queue; if the queue is full, its oldest leave it, and the store has to have those, too.
//! - **Begun**: a new copy was asked for. It takes the place of the one before, of which everything is in the store.
//! - **Kept**: the peer has said that the copy began. A change counts once the peer has said that it has it.
//!
//! Whatever goes wrong leads to *away*, and everybody who waits is told: the changes for which nobody was answered yet are in the local journal, and get into the store.
//! What was answered for is in the copy, which stays what it is until the next one begins.

use std::collections::VecDeque;

use crate::change::Numbered;
use crate::journal::record::record_len;
use crate::units::ChangeNo;

/// How far the peer is to have a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// In a file of the peer: the death of this host, or of the peer's process, does not lose it.
    Had,
    /// Synced in it: nor does the death of both hosts.
    Kept,
}

/// Whether the peer's word answers for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It does.
    Given,
    /// It may, later.
    Awaited,
    /// It does not: the store has to.
    None,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is no peer.
    Away,
    /// There is one, and the store lacks something before what is queued.
    Linked,
    /// A copy was asked for.
    Begun,
    /// There is one.
    Kept,
}

/// See the module.
#[derive(Debug)]
pub struct Sender {
    phase: Phase,
    /// Which connection this is.
    connection: u64,
    /// The number of the next change.
    next: ChangeNo,
    /// The store has all up to here.
    covers: ChangeNo,
    /// Not sent yet.
    queue: VecDeque<Numbered>,
    queue_bytes: u64,
    /// Sent, and not had.
    flight: VecDeque<(ChangeNo, u64)>,
    flight_bytes: u64,
    /// The last that was sent.
    sent: ChangeNo,
    had: ChangeNo,
    kept: ChangeNo,
    /// Somebody waits until this is synced.
    wanted: ChangeNo,
    /// So far a sync was asked for.
    asked: ChangeNo,
    /// What may be queued and under way.
    lag_bytes: u64,
}

impl Sender {
    /// Away; the next change will be `next`, and the store has all up to `covers`.
    pub fn new(next: ChangeNo, covers: ChangeNo, lag_bytes: u64) -> Sender {
        Sender {
            phase: Phase::Away,
            connection: 0,
            next,
            covers,
            queue: VecDeque::new(),
            queue_bytes: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
            sent: ChangeNo(0),
            had: ChangeNo(0),
            kept: ChangeNo(0),
            wanted: ChangeNo(0),
            asked: ChangeNo(0),
            lag_bytes,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The connection that counts now; others are over.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Bytes that are queued or under way.
    pub fn lag(&self) -> u64 {
        self.queue_bytes + self.flight_bytes
    }

    /// The last change that the peer's word answers for just now.
    pub fn answered(&self, promise: Promise) -> Option<ChangeNo> {
        (self.phase == Phase::Kept).then(|| self.reached(promise))
    }

    /// A change was accepted. False if the peer has fallen behind, and is away now.
    pub fn append(&mut self, numbered: &Numbered) -> bool {
        self.next = numbered.no.next();
        if self.phase == Phase::Away {
            return true;
        }
        self.queue_bytes += record_len(&numbered.change);
        self.queue.push_back(numbered.clone());
        if self.lag() <= self.lag_bytes {
            return true;
        }
        if self.phase == Phase::Linked {
            while self.lag() > self.lag_bytes && self.drop_first() {}
            return true;
        }
        self.lose();
        false
    }

    /// There is a connection: returns its number.
    pub fn linked(&mut self) -> u64 {
        self.lose();
        self.phase = Phase::Linked;
        self.connection
    }

    /// What the store has to have before a copy can begin, if that is waited for.
    pub fn owed(&self) -> Option<ChangeNo> {
        (self.phase == Phase::Linked).then(|| before(self.first()))
    }

    /// Whether a copy may begin now, and with which change.
    pub fn begin(&mut self) -> Option<ChangeNo> {
        while self.queue.front().is_some_and(|queued| queued.no <= self.covers) {
            self.drop_first();
        }
        let first = self.first();
        if self.phase != Phase::Linked || before(first) > self.covers {
            return None;
        }
        self.phase = Phase::Begun;
        let last = before(first);
        (self.sent, self.had, self.kept, self.wanted, self.asked) = (last, last, last, last, last);
        Some(first)
    }

    /// The next changes to send, as many as fit `room` bytes and one at least.
    pub fn take(&mut self, room: u64) -> Vec<Numbered> {
        let mut taken = Vec::new();
        if !matches!(self.phase, Phase::Begun | Phase::Kept) {
            return taken;
        }
        let mut bytes = 0;
        while let Some(queued) = self.queue.front() {
            let len = record_len(&queued.change);
            if bytes + len > room && !taken.is_empty() {
                break;
            }
            bytes += len;
            self.queue_bytes -= len;
            self.flight_bytes += len;
            self.flight.push_back((queued.no, len));
            self.sent = queued.no;
            taken.extend(self.queue.pop_front());
        }
        taken
    }

    /// Whether a sync is to be asked for now: somebody waits for what was sent.
    pub fn asks_for_sync(&mut self) -> bool {
        let asks = self.phase == Phase::Kept && self.wanted > self.asked && self.sent >= self.wanted;
        if asks {
            self.asked = self.sent;
        }
        asks
    }

    /// The peer says that the copy began.
    pub fn ready(&mut self) -> Result<(), &'static str> {
        match self.phase {
            Phase::Begun => {
                self.phase = Phase::Kept;
                Ok(())
            }
            _ => Err("it says that a copy began that was not asked for"),
        }
    }

    /// The peer says how far the copy is.
    pub fn has(&mut self, had: ChangeNo, kept: ChangeNo) -> Result<(), &'static str> {
        // An answer to a question that was asked before there was a copy.
        if self.phase == Phase::Linked {
            return Ok(());
        }
        if had > self.sent || kept > had {
            return Err("it says that it has what it was not sent");
        }
        // What was answered to a question in front of the copy may say less.
        self.had = self.had.max(had);
        self.kept = self.kept.max(kept);
        while let Some((_, len)) = self.flight.pop_front_if(|(no, _)| *no <= self.had) {
            self.flight_bytes -= len;
        }
        Ok(())
    }

    /// The store has all up to `covers`.
    pub fn release(&mut self, covers: ChangeNo) {
        self.covers = self.covers.max(covers);
    }

    /// What the store has.
    pub fn covers(&self) -> ChangeNo {
        self.covers
    }

    /// Whether the peer answers for a change and all before it.
    pub fn word(&mut self, no: ChangeNo, promise: Promise) -> Word {
        if self.phase != Phase::Kept {
            return Word::None;
        }
        if no <= self.reached(promise) {
            return Word::Given;
        }
        if promise == Promise::Kept {
            self.wanted = self.wanted.max(no);
        }
        Word::Awaited
    }

    /// The connection is lost, or the peer refused: its word counts no more. Whether it did.
    pub fn lose(&mut self) -> bool {
        let counted = self.phase == Phase::Kept;
        self.connection += 1;
        self.phase = Phase::Away;
        self.queue.clear();
        self.flight.clear();
        (self.queue_bytes, self.flight_bytes) = (0, 0);
        counted
    }

    fn reached(&self, promise: Promise) -> ChangeNo {
        match promise {
            Promise::Had => self.had,
            Promise::Kept => self.kept,
        }
    }

    /// The first change that a copy would have.
    fn first(&self) -> ChangeNo {
        self.queue.front().map_or(self.next, |queued| queued.no)
    }

    fn drop_first(&mut self) -> bool {
        let Some(first) = self.queue.pop_front() else { return false };
        self.queue_bytes -= record_len(&first.change);
        true
    }
}

fn before(no: ChangeNo) -> ChangeNo {
    ChangeNo(no.0.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::units::Extent;

    fn change(no: u64) -> Numbered {
        Numbered { no: ChangeNo(no), change: Change::Hole(Extent::new(no, 1)) }
    }

    fn append(sender: &mut Sender, nos: std::ops::RangeInclusive<u64>) {
        nos.for_each(|no| assert!(sender.append(&change(no))));
    }

    fn taken(sender: &mut Sender) -> Vec<u64> {
        sender.take(u64::MAX).iter().map(|taken| taken.no.0).collect()
    }

    fn word(sender: &mut Sender, no: u64) -> [Word; 2] {
        [Promise::Had, Promise::Kept].map(|promise| sender.word(ChangeNo(no), promise))
    }

    /// One that is kept, with changes from 6 on.
    fn kept() -> Sender {
        let mut sender = Sender::new(ChangeNo(6), ChangeNo(5), 1 << 20);
        sender.linked();
        assert_eq!(sender.begin(), Some(ChangeNo(6)));
        sender.ready().unwrap();
        sender
    }

    #[test]
    fn the_peers_word_counts_from_the_beginning_of_a_copy_to_the_end_of_its_connection() {
        use Word::{Awaited, Given, None};
        let mut sender = Sender::new(ChangeNo(6), ChangeNo(5), 1 << 20);
        append(&mut sender, 6..=7);
        assert_eq!(word(&mut sender, 5), [None; 2], "away");
        sender.linked();
        append(&mut sender, 8..=8);
        assert_eq!((sender.owed(), sender.begin()), (Some(ChangeNo(7)), Option::None), "the store lacks 6 and 7");
        sender.release(ChangeNo(6));
        assert_eq!(sender.begin(), Option::None);
        sender.release(ChangeNo(7));
        assert_eq!(sender.begin(), Some(ChangeNo(8)));
        assert_eq!(taken(&mut sender), [8]);
        assert_eq!(word(&mut sender, 7), [None; 2], "it may not have begun yet");
        sender.ready().unwrap();
        assert_eq!(word(&mut sender, 7), [Given; 2], "the store has it");
        assert_eq!(word(&mut sender, 8), [Awaited; 2]);
        sender.has(ChangeNo(8), ChangeNo(7)).unwrap();
        assert_eq!(word(&mut sender, 8), [Given, Awaited]);
        sender.has(ChangeNo(8), ChangeNo(8)).unwrap();
        assert_eq!(word(&mut sender, 8), [Given; 2]);
        assert!(sender.lose());
        assert_eq!(word(&mut sender, 8), [None; 2]);
        assert_eq!(word(&mut sender, 5), [None; 2]);
    }

    #[test]
    fn a_copy_begins_behind_what_the_store_has_got_meanwhile() {
        let mut sender = Sender::new(ChangeNo(6), ChangeNo(5), 1 << 20);
        sender.linked();
        append(&mut sender, 6..=9);
        sender.release(ChangeNo(7));
        assert_eq!(sender.begin(), Some(ChangeNo(8)));
        assert_eq!(taken(&mut sender), [8, 9]);
    }

    #[test]
    fn a_queue_that_is_full_leaves_its_oldest_to_the_store() {
        let mut sender = Sender::new(ChangeNo(1), ChangeNo(0), 3 * 64);
        sender.linked();
        append(&mut sender, 1..=5);
        assert_eq!((sender.owed(), sender.lag()), (Some(ChangeNo(2)), 3 * 64));
        assert_eq!(sender.begin(), None);
        sender.release(ChangeNo(2));
        assert_eq!(sender.begin(), Some(ChangeNo(3)));
    }

    #[test]
    fn a_peer_that_falls_behind_is_away() {
        let mut sender = Sender::new(ChangeNo(1), ChangeNo(0), 3 * 64);
        let connection = sender.linked();
        sender.begin().unwrap();
        sender.ready().unwrap();
        append(&mut sender, 1..=2);
        assert_eq!(taken(&mut sender), [1, 2]);
        append(&mut sender, 3..=3);
        sender.has(ChangeNo(1), ChangeNo(0)).unwrap();
        append(&mut sender, 4..=4);
        assert!(!sender.append(&change(5)));
        assert_eq!((sender.phase(), sender.lag()), (Phase::Away, 0));
        assert_ne!(sender.connection(), connection);
    }

    #[test]
    fn a_sync_is_asked_for_once_for_all_who_wait_for_what_was_sent() {
        let mut sender = kept();
        append(&mut sender, 6..=8);
        assert!(!sender.asks_for_sync(), "nobody waits");
        word(&mut sender, 7);
        assert!(!sender.asks_for_sync(), "it is not sent");
        taken(&mut sender);
        assert!(sender.asks_for_sync() && !sender.asks_for_sync());
        word(&mut sender, 8);
        assert!(!sender.asks_for_sync(), "that one covers it");
    }

    #[test]
    fn a_peer_that_says_what_cannot_be_is_not_believed() {
        let mut sender = kept();
        append(&mut sender, 6..=7);
        sender.ready().unwrap_err();
        sender.has(ChangeNo(6), ChangeNo(5)).unwrap_err();
        taken(&mut sender);
        sender.has(ChangeNo(8), ChangeNo(5)).unwrap_err();
        sender.has(ChangeNo(6), ChangeNo(7)).unwrap_err();
        sender.has(ChangeNo(7), ChangeNo(6)).unwrap();
        assert_eq!(sender.answered(Promise::Had), Some(ChangeNo(7)));
        sender.has(ChangeNo(6), ChangeNo(5)).unwrap();
        assert_eq!(sender.answered(Promise::Had), Some(ChangeNo(7)), "it does not go back");
    }

    #[test]
    fn changes_go_out_as_they_fit() {
        let mut sender = kept();
        append(&mut sender, 6..=9);
        assert_eq!(sender.take(130).len(), 2);
        assert_eq!(sender.take(1).len(), 1, "one at least");
        assert_eq!(sender.take(130).len(), 1);
        assert_eq!(sender.lag(), 4 * 64);
    }
}
