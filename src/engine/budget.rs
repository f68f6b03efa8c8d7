//! What the volumes of a server may hold in memory, one by one and all together (rule R6). `docs/memory.md` is the account.
//!
//! | what | of a volume | of all | who waits |
//! | --- | --- | --- | --- |
//! | acknowledged changes that are not in the store | `dirty_bytes` | `total_dirty_bytes` | writes |
//! | encoded segments on their way to the store | `upload_window` segments | `total_upload_bytes` | uploads, before they are encoded |
//! | what garbage collection read | one round | `gc.rounds` | collection |
//! | pages of the map | `map_memory` | `total_map_memory`, in equal parts | nobody: clean pages leave |
//!
//! Nobody waits in a circle: an upload needs nothing more once it has its bytes, and gives them back when the store has the
//! segment; whoever waits for room or for a round waits for uploads alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::engine::options::Options;
use crate::engine::purse::Purse;
use crate::memory::Pressure;

/// What all volumes of a server share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shares>, Purse);

#[derive(Debug)]
struct Shares {
    dirty: Arc<Semaphore>,
    /// What `dirty` began with.
    dirty_bytes: u64,
    uploads: Arc<Semaphore>,
    /// What `uploads` began with.
    upload_bytes: u64,
    rounds: Arc<Semaphore>,
    /// What `rounds` began with, and what one of them holds at most.
    round: (usize, u64),
    map_bytes: AtomicU64,
    volumes: AtomicUsize,
    dedup_bytes: u64,
    /// Volumes that are de-duplicated.
    dedup_volumes: AtomicUsize,
    pressure: Pressure,
}

impl Budget {
    /// The budget that the options set; requests may be spent without any bound.
    pub fn new(options: &Options) -> Budget {
        let shares = Arc::new(Shares {
            dirty: semaphore(options.total_dirty_bytes),
            dirty_bytes: options.total_dirty_bytes,
            uploads: semaphore(options.total_upload_bytes),
            upload_bytes: options.total_upload_bytes,
            rounds: Arc::new(Semaphore::new(options.gc.rounds as usize)),
            round: (options.gc.rounds as usize, 3 * options.gc.batch + 4 * options.segment_size),
            map_bytes: AtomicU64::new(options.total_map_memory),
            volumes: AtomicUsize::new(0),
            dedup_bytes: options.total_dedup_memory,
            dedup_volumes: AtomicUsize::new(0),
            pressure: Pressure::default(),
        });
        Budget(shares, Purse::boundless())
    }

    /// The same, with what they may spend on requests.
    pub fn with_purse(self, purse: Purse) -> Budget {
        Budget(self.0, purse)
    }

    /// What they may spend on requests.
    pub fn purse(&self) -> &Purse {
        &self.1
    }

    /// Told of what is taken.
    pub fn pressure(&self) -> &Pressure {
        &self.0.pressure
    }

    /// What all volumes together hold of what they may, but for what was replayed beyond the bounds.
    pub fn used(&self) -> Used {
        let held = |bound: u64, rest: &Semaphore| permits(bound).saturating_sub(rest.available_permits()) as u64;
        let Shares { dirty, dirty_bytes, uploads, upload_bytes, rounds, round, map_bytes, .. } = &*self.0;
        Used {
            dirty: held(*dirty_bytes, dirty),
            dirty_bound: *dirty_bytes,
            uploads: held(*upload_bytes, uploads),
            uploads_bound: *upload_bytes,
            collection: round.0.saturating_sub(rounds.available_permits()) as u64 * round.1,
            map_bound: map_bytes.load(Ordering::Relaxed),
        }
    }

    /// From now on their maps may keep so many bytes together. A volume whose map keeps more lets it go when it is next asked for something, or told
    /// to.
    pub fn set_map_memory(&self, bytes: u64) {
        self.0.map_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A place for one more volume, whose buffer holds `replayed` bytes already: these may exceed the bounds, were the bounds
    /// lower than what the journal held. What exceeds them is the first to go when changes are committed.
    pub(crate) fn seat(&self, options: &Options, replayed: u64) -> Seat {
        let within = replayed.min(options.dirty_bytes);
        let own = Semaphore::new(permits(options.dirty_bytes - within));
        let of_all = self.take_up_to(replayed);
        let held =
            Held { dirty: replayed, beyond_own: replayed - within, beyond_all: replayed - of_all, has_ended: false };
        self.0.volumes.fetch_add(1, Ordering::Relaxed);
        Seat { budget: self.clone(), own, held: Mutex::new(held), map_memory: options.map_memory }
    }

    /// A part of what may say what is stored already, for one more volume that is de-duplicated.
    pub(crate) fn dedup(&self) -> DedupShare {
        self.0.dedup_volumes.fetch_add(1, Ordering::Relaxed);
        DedupShare(self.clone())
    }

    /// Takes as much of what all may hold as there is, up to `bytes`, and returns how much that is.
    fn take_up_to(&self, bytes: u64) -> u64 {
        let mut taken = 0;
        while taken < bytes {
            let some = (bytes - taken).min(self.0.dirty.available_permits() as u64).min(u64::from(u32::MAX)) as u32;
            match self.0.dirty.try_acquire_many(some) {
                _ if some == 0 => break,
                Ok(permit) => permit.forget(),
                // Somebody else was quicker.
                Err(_) => continue,
            }
            taken += u64::from(some);
        }
        taken
    }
}

/// What the volumes of a server hold together, in bytes, and what they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Acknowledged changes that are not in the store.
    pub dirty: u64,
    /// `total_dirty_bytes`.
    pub dirty_bound: u64,
    /// Encoded segments on their way to the store.
    pub uploads: u64,
    /// `total_upload_bytes`.
    pub uploads_bound: u64,
    /// Rounds of garbage collection, each as if it held all that it may.
    pub collection: u64,
    /// What their maps may keep: `total_map_memory`, unless it was changed.
    pub map_bound: u64,
}

impl Default for Budget {
    /// The budget of the default options.
    fn default() -> Budget {
        Budget::new(&Options::default())
    }
}

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits(bytes)))
}

fn permits(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

/// See [`Budget::dedup`].
#[derive(Debug)]
pub(crate) struct DedupShare(Budget);

impl DedupShare {
    /// How many bytes that is now.
    pub fn bytes(&self) -> usize {
        let Shares { dedup_bytes, dedup_volumes, .. } = &*self.0.0;
        let volumes = dedup_volumes.load(Ordering::Relaxed).max(1) as u64;
        usize::try_from(dedup_bytes / volumes).unwrap_or(usize::MAX)
    }
}

impl Drop for DedupShare {
    fn drop(&mut self) {
        self.0.0.dedup_volumes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one volume in the budget; what it holds goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    budget: Budget,
    /// Dirty bytes that the volume may still take.
    own: Semaphore,
    held: Mutex<Held>,
    map_memory: u64,
}

/// Dirty bytes of a volume.
#[derive(Debug)]
struct Held {
    /// All of them. Those that are not beyond a bound are taken from it.
    dirty: u64,
    /// Of them, what was replayed beyond the volume's own bound,
    beyond_own: u64,
    /// and beyond the bound of all.
    beyond_all: u64,
    /// Nothing is taken of what all share, nor given back to it, any more.
    has_ended: bool,
}

impl Held {
    fn of_all(&self) -> u64 {
        if self.has_ended { 0 } else { self.dirty - self.beyond_all }
    }
}

/// Room for a change.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    seat: &'a Seat,
    own: SemaphorePermit<'a>,
    all: OwnedSemaphorePermit,
}

impl<'a> Room<'a> {
    /// Counts the room as dirty. This comes before the change is accepted: from then on a commit may give it back at any
    /// moment.
    pub fn keep(self) -> Kept<'a> {
        let bytes = self.all.num_permits() as u64;
        let mut held = self.seat.held.lock();
        held.dirty += bytes;
        self.own.forget();
        // A volume that has ended gives back to the others at once.
        if !held.has_ended {
            self.all.forget();
        }
        drop(held);
        self.seat.budget.0.pressure.took(bytes);
        Kept { seat: self.seat, bytes }
    }
}

/// Room that counts as dirty, for a change that is not accepted yet. Unless it is, the room is given back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Kept<'a> {
    seat: &'a Seat,
    bytes: u64,
}

impl Kept<'_> {
    /// The change was accepted: its commit gives the room back, or has done so already.
    pub fn accepted(self) {
        std::mem::forget(self);
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.seat.give_back(self.bytes);
    }
}

impl Seat {
    /// A place beside it, for what may hold pages of a map, and nothing that is dirty.
    pub fn beside(&self) -> Seat {
        self.budget.0.volumes.fetch_add(1, Ordering::Relaxed);
        let held = Held { dirty: 0, beyond_own: 0, beyond_all: 0, has_ended: false };
        Seat {
            budget: self.budget.clone(),
            own: Semaphore::new(0),
            held: Mutex::new(held),
            map_memory: self.map_memory,
        }
    }

    /// Room for so many dirty bytes, if there is some now.
    pub fn try_room(&self, bytes: u32) -> Option<Room<'_>> {
        let own = self.own.try_acquire_many(bytes).ok()?;
        let all = self.budget.0.dirty.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Room { seat: self, own, all })
    }

    /// Room for so many dirty bytes, once there is some; none if the volume has ended.
    pub async fn room(&self, bytes: u32) -> Option<Room<'_>> {
        let own = self.own.acquire_many(bytes).await.ok()?;
        let all = self.budget.0.dirty.clone().acquire_many_owned(bytes).await.ok()?;
        Some(Room { seat: self, own, all })
    }

    /// So many bytes are dirty no longer.
    pub fn give_back(&self, bytes: u64) {
        let mut held = self.held.lock();
        // Bytes that were never taken would let clients in beyond the bound for the life of the server.
        assert!(bytes <= held.dirty, "{bytes} dirty bytes are given back where {} are held", held.dirty);
        let of_all = held.of_all();
        let surplus = bytes.min(held.beyond_own);
        held.dirty -= bytes;
        held.beyond_own -= surplus;
        held.beyond_all -= bytes.min(held.beyond_all);
        self.own.add_permits((bytes - surplus) as usize);
        self.budget.0.dirty.add_permits((of_all - held.of_all()) as usize);
    }

    /// The volume has ended: nobody gets room any more, and what it took goes to others. Its client may stay for long, and
    /// with some such volumes all the others would wait for room that never comes.
    pub fn close(&self) {
        self.own.close();
        self.leave();
    }

    fn leave(&self) {
        let mut held = self.held.lock();
        self.budget.0.dirty.add_permits(held.of_all() as usize);
        held.has_ended = true;
    }

    /// Waits until a segment of so many bytes may be encoded; to be held until the store has it.
    pub async fn upload(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.budget.0.upload_bytes).min(u64::from(u32::MAX)) as u32;
        let permit = self.budget.0.uploads.clone().acquire_many_owned(bytes).await.ok()?;
        self.budget.0.pressure.took(bytes.into());
        Some(permit)
    }

    /// Waits until a round of garbage collection may be read; to be held until the last of it is encoded.
    pub async fn round(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.budget.0.rounds.clone().acquire_owned().await.ok()?;
        self.budget.0.pressure.took(self.budget.0.round.1);
        Some(permit)
    }

    /// Bytes of map pages that the volume may keep now.
    pub fn map_memory(&self) -> u64 {
        self.map_memory.min(self.map_part())
    }

    fn map_part(&self) -> u64 {
        let volumes = self.budget.0.volumes.load(Ordering::Relaxed).max(1) as u64;
        self.budget.0.map_bytes.load(Ordering::Relaxed) / volumes
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
        self.budget.0.volumes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> Options {
        Options {
            dirty_bytes: 100,
            total_dirty_bytes: 150,
            map_memory: 60,
            total_map_memory: 100,
            ..Options::default()
        }
    }

    #[tokio::test]
    async fn volumes_share_what_may_be_dirty_and_one_that_goes_leaves_its_part() {
        let budget = Budget::new(&options());
        let (one, other) = (budget.seat(&options(), 0), budget.seat(&options(), 0));
        one.try_room(100).unwrap().keep().accepted();
        assert!(one.try_room(1).is_none() && other.try_room(51).is_none(), "at its own bound, and at that of all");
        other.try_room(50).unwrap().keep().accepted();
        assert_eq!((budget.used().dirty, budget.used().dirty_bound), (150, 150));
        one.give_back(30);
        assert_eq!(budget.used().dirty, 120);
        other.try_room(30).unwrap().keep().accepted();
        drop(one);
        assert!(other.try_room(21).is_none(), "its own bound");
        drop(other);
        assert_eq!(budget.0.dirty.available_permits(), 150);
    }

    #[tokio::test]
    async fn what_an_ended_volume_took_goes_to_others_that_wait() {
        let budget = Budget::new(&options());
        let (one, other) = (budget.seat(&options(), 0), budget.seat(&options(), 0));
        one.try_room(100).unwrap().keep().accepted();
        let mut waiting = std::pin::pin!(other.room(80));
        assert!(futures::poll!(&mut waiting).is_pending());
        one.close();
        assert!(futures::poll!(&mut waiting).is_ready());
        one.give_back(100);
        drop(one);
        assert_eq!(budget.0.dirty.available_permits(), 150);
    }

    #[test]
    fn what_was_replayed_beyond_the_bounds_is_given_back_once() {
        let budget = Budget::new(&options());
        let (within, beyond) = (budget.seat(&options(), 120), budget.seat(&options(), 1000));
        beyond.give_back(1000);
        assert_eq!(budget.0.dirty.available_permits(), 30);
        within.give_back(120);
        assert_eq!(budget.0.dirty.available_permits(), 150);
    }

    #[test]
    fn after_a_replay_beyond_the_bound_the_bound_holds_again() {
        let budget = Budget::new(&options());
        let seat = budget.seat(&options(), 1000);
        seat.give_back(850);
        assert!(seat.try_room(1).is_none(), "150 are held where 100 may be");
        seat.give_back(150);
        assert!(seat.try_room(101).is_none() && seat.try_room(100).is_some());
    }

    #[test]
    fn a_commit_may_come_before_the_writer_goes_on() {
        let budget = Budget::new(&options());
        let seat = budget.seat(&options(), 0);
        let kept = seat.try_room(60).unwrap().keep();
        seat.give_back(60); // its change was accepted, uploaded and committed while the writer's thread was away
        kept.accepted();
        drop(seat.try_room(40).unwrap().keep()); // a change that was not accepted
        assert_eq!(seat.held.lock().dirty, 0);
        assert_eq!((seat.own.available_permits(), budget.0.dirty.available_permits()), (100, 150));
    }

    #[test]
    fn room_that_an_ended_volume_had_goes_back_at_once() {
        let budget = Budget::new(&options());
        let seat = budget.seat(&options(), 0);
        let room = seat.try_room(60).unwrap();
        seat.close();
        let kept = room.keep();
        assert_eq!(budget.0.dirty.available_permits(), 150);
        drop(kept);
        drop(seat);
        assert_eq!(budget.0.dirty.available_permits(), 150);
    }

    #[test]
    #[should_panic(expected = "11 dirty bytes are given back where 10 are held")]
    fn more_is_never_given_back_than_was_taken() {
        let seat = Budget::new(&options()).seat(&options(), 10);
        seat.give_back(11);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u64),
        Write { volume: usize, bytes: u32, is_accepted: bool },
        Commit { volume: usize, bytes: u64 },
        End(usize),
        Drop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0u64..200).prop_map(Step::Open),
            6 => (any::<usize>(), 1u32..120, any::<bool>())
                .prop_map(|(volume, bytes, is_accepted)| Step::Write { volume, bytes, is_accepted }),
            4 => (any::<usize>(), 1u64..150).prop_map(|(volume, bytes)| Step::Commit { volume, bytes }),
            1 => any::<usize>().prop_map(Step::End),
            1 => any::<usize>().prop_map(Step::Drop),
        ]
    }

    proptest! {
        /// The model: what each volume holds, of it what lies beyond the bounds since the replay, and whether it has ended.
        #[test]
        fn whatever_happens_each_byte_is_counted_once(steps in prop::collection::vec(step(), 1..60)) {
            let (own, all) = (options().dirty_bytes, options().total_dirty_bytes);
            let budget = Budget::new(&options());
            let mut seats: Vec<(Seat, u64, u64, u64, bool)> = Vec::new();
            for step in steps {
                let free = all - seats.iter().map(|(_, held, _, beyond, ended)| if *ended { 0 } else { held - beyond }).sum::<u64>();
                let at = |volume: usize| (!seats.is_empty()).then(|| volume % seats.len());
                match step {
                    Step::Open(bytes) => {
                        let beyond = (bytes.saturating_sub(own), bytes.saturating_sub(free));
                        seats.push((budget.seat(&options(), bytes), bytes, beyond.0, beyond.1, false));
                    }
                    Step::Write { volume, bytes, is_accepted } => {
                        let Some(at) = at(volume) else { continue };
                        let (seat, held, beyond_own, beyond_all, ended) = &mut seats[at];
                        let fits = !*ended && u64::from(bytes) + *held - *beyond_own <= own && u64::from(bytes) <= free;
                        let room = seat.try_room(bytes);
                        prop_assert_eq!(room.is_some(), fits, "{} bytes, {} free", bytes, free);
                        let Some(kept) = room.map(Room::keep) else { continue };
                        match is_accepted {
                            true => {
                                kept.accepted();
                                *held += u64::from(bytes);
                            }
                            false => {
                                // Room that comes back pays first for what lies beyond the bounds.
                                drop(kept);
                                *beyond_own -= (*beyond_own).min(u64::from(bytes));
                                *beyond_all -= (*beyond_all).min(u64::from(bytes));
                            }
                        }
                    }
                    Step::Commit { volume, bytes } => {
                        let Some(at) = at(volume) else { continue };
                        let (seat, held, beyond_own, beyond_all, _) = &mut seats[at];
                        let bytes = bytes.min(*held);
                        seat.give_back(bytes);
                        *held -= bytes;
                        *beyond_own -= bytes.min(*beyond_own);
                        *beyond_all -= bytes.min(*beyond_all);
                    }
                    Step::End(volume) => {
                        let Some(at) = at(volume) else { continue };
                        seats[at].0.close();
                        seats[at].4 = true;
                    }
                    Step::Drop(volume) => {
                        let Some(at) = at(volume) else { continue };
                        seats.remove(at);
                    }
                }
            }
            seats.clear();
            prop_assert_eq!(budget.0.dirty.available_permits() as u64, all);
        }
    }

    #[test]
    fn the_map_is_shared_in_equal_parts() {
        let budget = Budget::new(&options());
        let one = budget.seat(&options(), 0);
        assert_eq!(one.map_memory(), 60);
        let _other = budget.seat(&options(), 0);
        assert_eq!(one.map_memory(), 50);
    }

    #[tokio::test]
    async fn a_segment_that_is_larger_than_all_uploads_may_be_goes_alone() {
        let options = Options { total_upload_bytes: 10, ..options() };
        let budget = Budget::new(&options);
        let seat = budget.seat(&options, 0);
        let held = seat.upload(1000).await;
        assert_eq!(budget.0.uploads.available_permits(), 0);
        drop(held);
        assert!(seat.upload(10).await.is_some());
    }
}
