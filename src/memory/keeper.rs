//! The task that keeps a process within its memory: it looks, has [`Balance`] decide, and has that done; every second, and whenever much was taken
//! meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::balance::{Balance, Limits, Seen};

/// What is looked at, and what can be done about it.
pub trait Keeper: Send {
    /// What there is now.
    fn look(&mut self) -> Seen;

    /// Bytes that the cache may take now.
    fn cache(&self) -> u64;

    /// Does what was decided.
    fn apply(&mut self, limits: &Limits);
}

/// How often is looked if little was taken.
const EVERY: Duration = Duration::from_secs(1);

/// Looks, decides and acts, again and again. It never returns.
pub async fn keep(mut keeper: impl Keeper, mut balance: Balance, pressure: Pressure) {
    pressure.wake_at(balance.burst());
    let mut last = Instant::now();
    loop {
        let since = last.elapsed();
        last += since;
        let (seen, cache) = (keeper.look(), keeper.cache());
        keeper.apply(&balance.decide(seen, cache, since));
        let _ = timeout(EVERY, pressure.wake()).await;
    }
}

/// Told by everybody who takes memory, so that what gives way does so before much was taken. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    bytes: AtomicU64,
    /// So many of them wake the keeper; 0 if there is none.
    step: AtomicU64,
    wake: Notify,
}

impl Pressure {
    /// So many bytes were taken.
    pub fn took(&self, bytes: u64) {
        let Taken { bytes: all, step, wake } = &*self.0;
        let step = step.load(Ordering::Relaxed);
        if step > 0 && all.fetch_add(bytes, Ordering::Relaxed) + bytes >= step {
            all.store(0, Ordering::Relaxed);
            wake.notify_one();
        }
    }

    /// From now on so many bytes end [`Pressure::wake`].
    fn wake_at(&self, bytes: u64) {
        self.0.step.store(bytes.max(1), Ordering::Relaxed);
    }

    /// Waits until much was taken.
    async fn wake(&self) {
        self.0.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::memory::balance::Bounds;

    struct Looks(Arc<AtomicUsize>);

    impl Keeper for Looks {
        fn look(&mut self) -> Seen {
            self.0.fetch_add(1, Ordering::Relaxed);
            Seen::default()
        }

        fn cache(&self) -> u64 {
            0
        }

        fn apply(&mut self, _: &Limits) {}
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_every_second_and_at_once_when_much_was_taken() {
        let (looks, pressure) = (Arc::new(AtomicUsize::new(0)), Pressure::default());
        pressure.took(1 << 40); // nobody is there yet
        let bounds = Bounds { memory: 64 << 20, others: 0, cache: 0..=1, map: 0..=1, overhead: 0 };
        let keeping = keep(Looks(Arc::clone(&looks)), Balance::new(bounds), pressure.clone());
        let keeping = tokio::spawn(keeping);
        let after = async |wait: Duration| {
            tokio::time::sleep(wait).await;
            looks.load(Ordering::Relaxed)
        };
        let (moment, tick) = (Duration::from_millis(1), EVERY);
        assert_eq!(after(moment).await, 1);
        assert_eq!(after(tick).await, 2);
        pressure.took((1 << 20) - 1);
        assert_eq!(after(moment).await, 2, "little");
        pressure.took(1);
        assert_eq!(after(moment).await, 3);
        pressure.took(1 << 19);
        assert_eq!(after(moment).await, 3, "it is counted anew");
        assert_eq!(after(tick).await, 4);
        keeping.abort();
    }
}
