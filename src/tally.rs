//! What was asked, what came of it, and how long it took: counters that cost a request little.
//!
//! A look at the clock costs more than all the rest: some 30 ns, of which two are a few hundredths of what a read of a block takes that is
//! in memory. So a request that is answered without waiting for anything is timed only if its turn has come, one in [`TURN`], and then
//! stands for those before it. Whatever waits, be it for a moment, is timed by itself: no slow request is missed.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// The upper bounds of [`Durations`]' buckets, in seconds: from a block that is in memory to a store that is nearly away.
pub const BOUNDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 60.0,
];

/// Of so many requests that did not wait, one is timed.
pub const TURN: u64 = 16;

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Durations {
    /// The last one is for what took longer than all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// A [`Durations`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distribution {
    /// How many fell between the bound before and this one; the last is beyond all.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All of them together, in seconds.
    pub seconds: f64,
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Durations {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        self.record_all(1, took);
    }

    /// Counts so many that took as long.
    fn record_all(&self, many: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(many, Ordering::Relaxed);
        self.nanos.fetch_add(many.wrapping_mul(took.as_nanos() as u64), Ordering::Relaxed);
    }

    /// As of now.
    pub fn snapshot(&self) -> Distribution {
        Distribution {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            seconds: self.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

/// One kind of request.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    /// Those that did not wait since one of them was timed.
    not_timed: AtomicU64,
    durations: Durations,
}

/// A [`Tally`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tallied {
    /// Requests that have ended.
    pub count: u64,
    /// Bytes that the requests were about, failed ones aside.
    pub bytes: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How long they took, failed ones too; the last of those that did not wait, fewer than [`TURN`], are missing.
    pub durations: Distribution,
}

impl Tally {
    /// Counts a request for so many bytes when it has ended.
    pub async fn record<T, E>(&self, bytes: u64, request: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let its_turn = self.count.load(Ordering::Relaxed).is_multiple_of(TURN);
        let begun = its_turn.then(Instant::now);
        let mut request = pin!(request);
        let ended = match futures::poll!(request.as_mut()) {
            Poll::Ready(ended) => {
                self.did_not_wait(begun);
                ended
            }
            Poll::Pending => {
                // What it did before it waited is nothing beside the waiting.
                let begun = begun.unwrap_or_else(Instant::now);
                let ended = request.await;
                self.durations.record(begun.elapsed());
                ended
            }
        };
        self.count.fetch_add(1, Ordering::Relaxed);
        match &ended {
            Ok(_) => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            Err(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        ended
    }

    fn did_not_wait(&self, begun: Option<Instant>) {
        match begun {
            None => drop(self.not_timed.fetch_add(1, Ordering::Relaxed)),
            Some(begun) => {
                let before = self.not_timed.swap(0, Ordering::Relaxed);
                self.durations.record_all(before + 1, begun.elapsed());
            }
        }
    }

    /// As of now.
    pub fn snapshot(&self) -> Tallied {
        Tallied {
            count: self.count.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            durations: self.durations.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_what_they_took() {
        let tally = Tally::default();
        let request = |millis, is_good: bool| {
            let wait = tokio::time::sleep(Duration::from_millis(millis));
            tally.record(4096, async move {
                wait.await;
                is_good.then_some(()).ok_or(())
            })
        };
        request(2, true).await.unwrap();
        request(70_000, true).await.unwrap();
        request(10, false).await.unwrap_err();
        let tallied = tally.snapshot();
        assert_eq!((tallied.count, tallied.bytes, tallied.failed, tallied.durations.count()), (3, 8192, 1, 3));
        let buckets = tallied.durations.buckets;
        assert_eq!((buckets[5], buckets[7], buckets[BOUNDS.len()]), (1, 1, 1), "2.5 ms, 10 ms, beyond");
        assert!((tallied.durations.seconds - 70.012).abs() < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_that_do_not_wait_some_are_timed_and_of_the_others_all() {
        let tally = Tally::default();
        let counts = || (tally.snapshot().count, tally.snapshot().durations.count());
        for no in 0..TURN {
            assert_eq!(counts(), (no, no.min(1)), "the first is timed, and stands for itself");
            tally.record(1, async { Ok::<(), ()>(()) }).await.unwrap();
        }
        tally.record(1, async { Ok::<(), ()>(()) }).await.unwrap();
        assert_eq!(counts(), (TURN + 1, TURN + 1), "the next one stands for those before it");
        // Whatever its number, one that waits is seen.
        for no in 1..=TURN {
            let waits = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<(), ()>(())
            };
            tally.record(1, waits).await.unwrap();
            assert_eq!(tally.snapshot().durations.buckets[13..=14].iter().sum::<u64>(), no);
        }
        assert_eq!(counts(), (2 * TURN + 1, 2 * TURN + 1));
    }

    #[test]
    fn the_bounds_are_in_order() {
        assert!(BOUNDS.is_sorted());
        let durations = Durations::default();
        durations.record(Duration::from_micros(50));
        assert_eq!(durations.snapshot().buckets[0], 1, "a bound is in its own bucket");
    }
}
