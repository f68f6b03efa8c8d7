//! Digests of the log ([`crate::format::digest`]): of which slots there are some, and when the next is due. Pure; `upkeep/digest` puts them.
//!
//! After a kill an opening reads the digests since the newest checkpoint, and the slots that none has: so few have none. Each digest is a PUT more, for
//! four slots one: of those there are enough for a GiB, and then one for each checkpoint, or nearly so, because a client that never pauses pays for each of them and seldom
//! gains by one. A digest tells of the slots that have none, and of what the newest digests tell that have no more than three times as many slots as it has by
//! then: so there are few digests that count at any time, and a front is put a few times only. When those that are held here have [`WHOLE`] bytes, one has
//! all of them, and the next begins anew.
//!
//! What a checkpoint covers needs no digest: those that have nothing else are doomed with it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::options::Options;
use crate::format::digest::{FRONTS_BYTES_MAX, Stretch};
use crate::units::Seq;

/// A digest is due when so many slots have none,
const SLOTS: u64 = 4;
/// which hold as much as so many segments of full size; or so many slots as the options say, whatever they hold: a client that asks for a FLUSH after
/// each write makes tiny ones. Of very many slots
const SEGMENTS: u64 = 2;
/// since the newest checkpoint it is this part: a probe more for so many.
const PART: u64 = 256;
/// So many digests may follow each other closely: enough for a GiB in segments of 16 MiB, which a client that writes as fast as it can makes.
const SAVED: u32 = 24;
/// After those there is one in so long a time, which is how often there is a checkpoint, too.
const EACH: Duration = Duration::from_secs(30);
/// A digest has the slots of the one before, too, if that has at most so many times as many.
const JOINS: u64 = 3;
/// So many bytes of fronts are held.
const WHOLE: usize = 3 << 19;

/// See the module.
#[derive(Debug, Default)]
pub struct Digests {
    /// Fronts of the last slots that took effect, which follow each other.
    held: VecDeque<Bytes>,
    /// The slot of the first of them.
    first: Seq,
    held_bytes: usize,
    /// Digests of those, oldest first, as far as no newer one has all of its slots.
    pieces: Vec<Stretch>,
    /// Slots since the last digest was begun, or a checkpoint that will cover them, and what they hold in bytes.
    fresh: u64,
    fresh_bytes: u64,
    /// A checkpoint covers this slot, or will.
    covered: Seq,
    under_way: Option<Plan>,
    /// How many may be put as of when; all of them if that was never asked.
    saved: Option<(u32, Instant)>,
    /// Digests that are in the store, or may be, and have slots that no checkpoint covers.
    there: BTreeSet<Stretch>,
}

/// What is put as a digest.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its slots.
    pub stretch: Stretch,
    /// Their fronts.
    pub fronts: Vec<Bytes>,
    /// It has all that is held.
    is_whole: bool,
}

impl Digests {
    /// Of a volume that was just opened: these digests were found, and a checkpoint covers that slot.
    pub fn new(there: BTreeSet<Stretch>, covered: Seq) -> Digests {
        Digests { there, covered, ..Digests::default() }
    }

    /// A slot took effect that holds so many bytes of blocks.
    pub fn committed(&mut self, seq: Seq, front: Bytes, bytes: u64) {
        if seq.0 != self.first.0 + self.held.len() as u64 || self.held_bytes + front.len() > FRONTS_BYTES_MAX {
            self.let_go();
            self.first = seq;
        }
        self.held_bytes += front.len();
        self.held.push_back(front);
        self.fresh += 1;
        self.fresh_bytes += bytes;
    }

    fn let_go(&mut self) {
        self.held = VecDeque::new();
        self.pieces = Vec::new();
        self.held_bytes = 0;
    }

    fn last(&self) -> Seq {
        Seq((self.first.0 + self.held.len() as u64).saturating_sub(1))
    }

    fn is_due(&self, options: &Options) -> bool {
        let is_full = self.fresh_bytes >= SEGMENTS * options.segment_size;
        let least = if is_full { SLOTS.min(options.digest_slots) } else { options.digest_slots };
        let since = self.last().0.saturating_sub(self.covered.0);
        !self.held.is_empty() && self.fresh >= least.max(since / PART)
    }

    /// Takes one of those that may be put; whether there was one.
    fn take_one(&mut self, at: Instant) -> bool {
        let (saved, since) = self.saved.unwrap_or((SAVED, at));
        let came = u32::try_from(at.saturating_duration_since(since).as_secs() / EACH.as_secs()).unwrap_or(SAVED);
        let (saved, since) = match saved.saturating_add(came) {
            saved if saved >= SAVED => (SAVED, at),
            saved => (saved, since + EACH * came),
        };
        self.saved = Some((saved.saturating_sub(1), since));
        saved > 0
    }

    /// Begins one if it is due.
    pub fn start(&mut self, options: &Options, at: Instant) -> Option<Plan> {
        if self.under_way.is_some() || !self.is_due(options) || !self.take_one(at) {
            return None;
        }
        let last = self.last();
        let is_whole = self.held_bytes >= WHOLE;
        let mut stretch = Stretch { first: self.pieces.last().map_or(self.first, |piece| piece.last.next()), last };
        for piece in self.pieces.iter().rev() {
            if is_whole || piece.slots() <= JOINS * stretch.slots() {
                stretch.first = piece.first;
            } else {
                break;
            }
        }
        let from = (stretch.first.0 - self.first.0) as usize;
        let plan = Plan { stretch, fronts: self.held.range(from..).cloned().collect(), is_whole };
        (self.fresh, self.fresh_bytes) = (0, 0);
        // Whatever is said of it, it may be there from now on.
        self.there.insert(stretch);
        self.under_way = Some(plan.clone());
        Some(plan)
    }

    /// The one under way is there, or nobody knows. Returns it if a checkpoint has made it needless meanwhile.
    pub fn ended(&mut self, is_there: bool, checkpointed: Seq) -> Option<Stretch> {
        let Plan { stretch, is_whole, .. } = self.under_way.take()?;
        if stretch.last <= checkpointed {
            self.there.remove(&stretch);
            return Some(stretch);
        }
        // Unless what was held was let go of.
        if is_there && (self.first..=self.last()).contains(&stretch.last) {
            self.pieces.retain(|piece| piece.last < stretch.first);
            self.pieces.push(Stretch { first: stretch.first.max(self.first), ..stretch });
            if is_whole {
                self.forget_through(stretch.last);
            }
        }
        None
    }

    /// A checkpoint is being written that covers all slots up to this one.
    pub fn checkpoint_begins(&mut self, seq: Seq) {
        (self.fresh, self.fresh_bytes) = (0, 0);
        self.covered = self.covered.max(seq);
    }

    /// It is durable. Returns the digests that are needless now.
    pub fn checkpointed(&mut self, seq: Seq) -> BTreeSet<Stretch> {
        self.forget_through(seq);
        let under_way = self.under_way.as_ref().map(|plan| plan.stretch);
        self.there.extract_if(.., |stretch| stretch.last <= seq && Some(*stretch) != under_way).collect()
    }

    fn forget_through(&mut self, seq: Seq) {
        while self.first <= seq
            && let Some(front) = self.held.pop_front()
        {
            self.held_bytes -= front.len();
            self.first = self.first.next();
        }
        self.pieces.retain(|piece| piece.last > seq);
        self.pieces.iter_mut().for_each(|piece| piece.first = piece.first.max(seq.next()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> Options {
        Options { segment_size: 8 << 20, digest_slots: 32, ..Options::default() }
    }

    fn front(seq: u64, len: usize) -> Bytes {
        let mut front = vec![0; len.max(8)];
        front[..8].copy_from_slice(&seq.to_le_bytes());
        front.into()
    }

    /// Requests that an opening makes for slots `1..=last`, if `there` are the digests: the fewest digests that have most of them, and the slots
    /// behind those. Panics if there is a gap before.
    fn requests(there: &BTreeSet<Stretch>, last: u64) -> (usize, u64) {
        let (mut next, mut read) = (Seq(1), 0);
        while let Some(best) = there.iter().filter(|stretch| stretch.has(next)).max_by_key(|stretch| stretch.last) {
            (next, read) = (best.last.next(), read + 1);
        }
        assert!(there.iter().all(|stretch| stretch.last < next), "a gap at {next}");
        (read, last + 1 - next.0)
    }

    struct Cost {
        puts: usize,
        bytes: usize,
        digests: usize,
        slots: u64,
    }

    /// The most that an opening reads during a GiB that comes so fast, and what was put.
    fn a_gib(slots: u64, front_bytes: usize, took: Duration) -> Cost {
        let mut at = Instant::now();
        let mut digests = Digests::new(BTreeSet::new(), Seq(0));
        let mut cost = Cost { puts: 0, bytes: 0, digests: 0, slots: 0 };
        for seq in 1..=slots {
            at += took / slots as u32;
            digests.committed(Seq(seq), front(seq, front_bytes), (1 << 30) / slots);
            if let Some(plan) = digests.start(&options(), at) {
                cost.puts += 1;
                cost.bytes += plan.fronts.iter().map(Bytes::len).sum::<usize>();
                assert!(digests.ended(true, Seq(0)).is_none());
            }
            let (read, rest) = requests(&digests.there, seq);
            (cost.digests, cost.slots) = (cost.digests.max(read), cost.slots.max(rest));
        }
        cost
    }

    /// Fronts of random blocks of 4 KiB take 8 bytes for each; the sizes of segments are those that volumes have, and what a FLUSH makes.
    #[test]
    fn few_are_read_and_few_are_put() {
        for (slots, seconds, puts, mib, digests, rest) in [
            (8, 5, 2, 4, 2, 3),
            (16, 5, 4, 4, 2, 3),
            (64, 5, 16, 8, 2, 3),
            (128, 5, 24, 8, 3, 32),
            // What was saved up is spent, and little comes.
            (512, 5, 24, 8, 4, 415),
            // A FLUSH for each half of a MiB, and each of them takes a while.
            (2048, 2048, 64, 12, 5, 31),
        ] {
            let cost = a_gib(slots, (2 << 20) / slots as usize + 90, Duration::from_secs(seconds));
            let said = format!(
                "{slots}: {} PUTs, {} bytes; {} digests, {} slots",
                cost.puts, cost.bytes, cost.digests, cost.slots
            );
            println!("{said}");
            assert!(cost.puts <= puts && cost.bytes <= mib << 20, "{said}");
            assert!(cost.digests <= digests && cost.slots <= rest, "{said}");
        }
    }

    proptest! {
        /// Whatever happens when: a digest has the fronts of its slots, none but those that took effect; none is forgotten that is there, and
        /// those go that a checkpoint covers.
        #[test]
        fn digests_hold_what_took_effect(steps in prop::collection::vec((0..10u8, any::<bool>()), 1..400), front_bytes in 40..200_000_usize) {
            let mut digests = Digests::new(BTreeSet::new(), Seq(1));
            let (mut last, mut filled, mut begun, mut checkpointed) = (1, 1, 1, 1);
            let mut at = Instant::now();
            let (mut under_way, mut put, mut doomed) = (None, BTreeSet::new(), BTreeSet::new());
            for (step, is_there) in steps {
                at += Duration::from_secs(7);
                match step {
                    0 => {
                        digests.checkpoint_begins(Seq(last));
                        begun = last;
                    }
                    1 => {
                        checkpointed = begun;
                        doomed.extend(digests.checkpointed(Seq(checkpointed)));
                    }
                    2 | 3 if under_way.take().is_some() => doomed.extend(digests.ended(is_there, Seq(checkpointed))),
                    // A place of the log that is nobody's.
                    4 => last += 1,
                    _ => {
                        last += 1;
                        filled = last;
                        digests.committed(Seq(last), front(last, front_bytes), 8 << 20);
                    }
                }
                if let Some(Plan { stretch, fronts, .. }) = digests.start(&options(), at) {
                    prop_assert!(under_way.replace(stretch).is_none(), "two at once");
                    prop_assert!(put.insert(stretch), "twice the same");
                    prop_assert_eq!((stretch.last, stretch.slots()), (Seq(filled), fronts.len() as u64));
                    for (seq, held) in (stretch.first.0..).zip(fronts) {
                        prop_assert_eq!(held, front(seq, front_bytes));
                    }
                }
                prop_assert!(digests.held_bytes <= FRONTS_BYTES_MAX);
                prop_assert_eq!(digests.held_bytes, digests.held.iter().map(Bytes::len).sum::<usize>());
                let there: BTreeSet<Stretch> = put.difference(&doomed).copied().collect();
                prop_assert_eq!(&digests.there, &there);
                prop_assert!(doomed.iter().all(|stretch: &Stretch| stretch.last.0 <= checkpointed));
                let late = |stretch: &&Stretch| stretch.last.0 <= checkpointed && Some(**stretch) != under_way;
                prop_assert!(!there.iter().any(|stretch| late(&stretch)));
            }
        }
    }
}
