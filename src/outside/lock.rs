//! A lock that tells, if somebody asks, for how long it was held and where. While nobody does, that costs one look at a flag each time that
//! it is taken.
//!
//! A thread that holds a lock may lose its processor to another one, so a hold has two lengths: on the clock, and in processor time. The
//! first is what those who wait feel on this machine now; the second is what the code asks for.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};

static IS_WATCHED: AtomicBool = AtomicBool::new(false);
static HOLDS: Mutex<BTreeMap<Place, Holds>> = Mutex::new(BTreeMap::new());

/// File and line.
type Place = (&'static str, u32);

/// How one place in the program held locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// How often.
    pub count: u64,
    /// All of them together, on the clock.
    pub sum: Duration,
    /// The longest, on the clock.
    pub longest: Duration,
    /// The longest, in processor time of the thread that held it.
    pub longest_cpu: Duration,
}

/// From now on holds of all locks of this process are measured, or no more.
pub fn watch(on: bool) {
    IS_WATCHED.store(on, Ordering::Relaxed);
}

/// What was measured since the last call, by the place in the program that took the lock.
pub fn take_holds() -> BTreeMap<Place, Holds> {
    std::mem::take(&mut *HOLDS.lock())
}

/// See the module.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock(Mutex::new(value))
    }

    /// Waits for its turn.
    #[track_caller]
    pub fn lock(&self) -> Held<'_, T> {
        let (caller, guard) = (Location::caller(), self.0.lock());
        let hold = IS_WATCHED.load(Ordering::Relaxed).then(|| Hold::begin(caller));
        Held { guard: MutexGuard::map(guard, |value| value), _hold: hold }
    }
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held<'a, T> {
    guard: MappedMutexGuard<'a, T>,
    /// Dropped after the guard: whoever waits for the lock does not wait for its measurement.
    _hold: Option<Hold>,
}

impl<'a, T> Held<'a, T> {
    /// The same hold, of a part of what is guarded.
    pub fn map<U>(held: Held<'a, T>, part: impl FnOnce(&mut T) -> &mut U) -> Held<'a, U> {
        Held { guard: MappedMutexGuard::map(held.guard, part), _hold: held._hold }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Debug)]
struct Hold {
    place: Place,
    began: Instant,
    cpu_began: Duration,
}

impl Hold {
    #[allow(clippy::disallowed_methods)] // what is measured is the real time of this machine, and nothing is decided by it
    fn begin(at: &'static Location<'static>) -> Hold {
        Hold { place: (at.file(), at.line()), began: Instant::now(), cpu_began: thread_time() }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (held, cpu) = (self.began.elapsed(), thread_time().saturating_sub(self.cpu_began));
        let mut holds = HOLDS.lock();
        let holds = holds.entry(self.place).or_default();
        holds.count += 1;
        holds.sum += held;
        holds.longest = holds.longest.max(held);
        holds.longest_cpu = holds.longest_cpu.max(cpu);
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_measured_by_place_while_they_are_watched() {
        let lock = Lock::new(1);
        *lock.lock() += 1;
        watch(true);
        let line = line!() + 1;
        let mut held = lock.lock();
        *held += 1;
        let until = thread_time() + Duration::from_millis(3);
        while thread_time() < until {}
        drop(held);
        watch(false);
        assert_eq!(*lock.lock(), 3);
        let here = |holds: BTreeMap<Place, Holds>| holds.get(&(file!(), line)).copied();
        let Some(holds) = here(take_holds()) else { panic!("a hold is missing") };
        assert_eq!(holds.count, 1);
        assert!(holds.longest_cpu >= Duration::from_millis(3) && holds.sum == holds.longest, "{holds:?}");
        assert_eq!(here(take_holds()), None);
    }
}
