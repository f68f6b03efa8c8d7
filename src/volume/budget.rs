//! What the volumes of a server may hold in memory, one by one and all together (rule R6). `docs/memory.md` is the account.
//!
//! | what | of a volume | of all | who waits |
//! | --- | --- | --- | --- |
//! | acknowledged changes that are not in the store | `dirty_bytes` | `total_dirty_bytes` | writes |
//! | encoded segments on their way to the store | `upload_window` segments | `total_upload_bytes` | uploads, before they are encoded |
//! | what garbage collection read | one round | [`ROUNDS`] rounds | collection |
//! | pages of the map | `map_memory` | `total_map_memory`, in equal parts | nobody: clean pages leave |
//!
//! Nobody waits in a circle: an upload needs nothing more once it has its bytes, and gives them back when the store has the
//! segment; whoever waits for room or for a round waits for uploads alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::volume::options::Options;

/// Rounds of garbage collection that all volumes together have in memory: each is up to `gc.batch` of live bytes, and the
/// segments that are being read for it.
pub const ROUNDS: usize = 2;

/// What all volumes of a server share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    dirty: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// What `uploads` began with.
    upload_bytes: u64,
    rounds: Arc<Semaphore>,
    map_bytes: u64,
    volumes: AtomicUsize,
}

impl Budget {
    /// The budget that the options set.
    pub fn new(options: &Options) -> Budget {
        Budget(Arc::new(Shares {
            dirty: semaphore(options.total_dirty_bytes),
            uploads: semaphore(options.total_upload_bytes),
            upload_bytes: options.total_upload_bytes,
            rounds: Arc::new(Semaphore::new(ROUNDS)),
            map_bytes: options.total_map_memory,
            volumes: AtomicUsize::new(0),
        }))
    }

    /// A place for one more volume, whose buffer holds `replayed` bytes already: these may exceed the bounds until they are
    /// committed, were the bounds lower than what the journal held.
    pub(super) fn seat(&self, options: &Options, replayed: u64) -> Seat {
        let own = Semaphore::new(options.dirty_bytes.max(replayed) as usize);
        own.forget_permits(replayed as usize);
        let taken = match u32::try_from(replayed).ok().and_then(|bytes| self.0.dirty.try_acquire_many(bytes).ok()) {
            Some(permit) => {
                permit.forget();
                replayed
            }
            None => 0,
        };
        self.0.volumes.fetch_add(1, Ordering::Relaxed);
        Seat { budget: self.clone(), own, taken: AtomicU64::new(taken), map_memory: options.map_memory }
    }
}

impl Default for Budget {
    /// The budget of the default options.
    fn default() -> Budget {
        Budget::new(&Options::default())
    }
}

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)))
}

/// The place of one volume in the budget; what it holds goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    budget: Budget,
    /// Dirty bytes that the volume may still take.
    own: Semaphore,
    /// Dirty bytes that it has taken of what all share.
    taken: AtomicU64,
    map_memory: u64,
}

/// Room for a change.
#[derive(Debug)]
pub(super) struct Room<'a> {
    seat: &'a Seat,
    own: SemaphorePermit<'a>,
    all: OwnedSemaphorePermit,
}

impl Room<'_> {
    /// From here on the room belongs to the change: [`Seat::give_back`] ends that.
    pub fn keep(self) {
        self.seat.taken.fetch_add(self.all.num_permits() as u64, Ordering::Relaxed);
        self.own.forget();
        self.all.forget();
    }
}

impl Seat {
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
        self.own.add_permits(bytes as usize);
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            Some(taken.saturating_sub(bytes)) // what was replayed may never have been taken
        });
        self.budget.0.dirty.add_permits(before.unwrap_or_else(|taken| taken).min(bytes) as usize);
    }

    /// The volume has ended: nobody gets room any more, and what it took goes to others. Its client may stay for long, and
    /// with some such volumes all the others would wait for room that never comes.
    pub fn close(&self) {
        self.own.close();
        self.leave();
    }

    fn leave(&self) {
        self.budget.0.dirty.add_permits(self.taken.swap(0, Ordering::Relaxed) as usize);
    }

    /// Waits until a segment of so many bytes may be encoded; to be held until the store has it.
    pub async fn upload(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.budget.0.upload_bytes).min(u64::from(u32::MAX)) as u32;
        self.budget.0.uploads.clone().acquire_many_owned(bytes).await.ok()
    }

    /// Waits until a round of garbage collection may be read; to be held until the last of it is encoded.
    pub async fn round(&self) -> Option<OwnedSemaphorePermit> {
        self.budget.0.rounds.clone().acquire_owned().await.ok()
    }

    /// Bytes of map pages that the volume may keep now.
    pub fn map_memory(&self) -> u64 {
        let volumes = self.budget.0.volumes.load(Ordering::Relaxed).max(1) as u64;
        self.map_memory.min(self.budget.0.map_bytes / volumes)
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
        one.try_room(100).unwrap().keep();
        assert!(one.try_room(1).is_none() && other.try_room(51).is_none(), "at its own bound, and at that of all");
        other.try_room(50).unwrap().keep();
        one.give_back(30);
        other.try_room(30).unwrap().keep();
        drop(one);
        assert!(other.try_room(21).is_none(), "its own bound");
        drop(other);
        assert_eq!(budget.0.dirty.available_permits(), 150);
    }

    #[tokio::test]
    async fn what_an_ended_volume_took_goes_to_others_that_wait() {
        let budget = Budget::new(&options());
        let (one, other) = (budget.seat(&options(), 0), budget.seat(&options(), 0));
        one.try_room(100).unwrap().keep();
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
