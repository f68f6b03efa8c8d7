//! What was asked, what came of it, and how long it took: counters that cost a request some tens of nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The upper bounds of [`Durations`]' buckets, in seconds: from a block that is in memory to a store that is nearly away.
pub const BOUNDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 60.0,
];

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
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
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
    bytes: AtomicU64,
    failed: AtomicU64,
    durations: Durations,
}

/// A [`Tally`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tallied {
    /// Bytes that the requests were about, failed ones aside.
    pub bytes: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How long all of them took, failed ones too.
    pub durations: Distribution,
}

impl Tally {
    /// Counts a request for so many bytes when it has ended.
    pub async fn record<T, E>(&self, bytes: u64, request: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let ended = request.await;
        self.durations.record(begun.elapsed());
        match &ended {
            Ok(_) => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            Err(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        ended
    }

    /// As of now.
    pub fn snapshot(&self) -> Tallied {
        Tallied {
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
        assert_eq!((tallied.bytes, tallied.failed, tallied.durations.count()), (8192, 1, 3));
        let buckets = tallied.durations.buckets;
        assert_eq!((buckets[5], buckets[7], buckets[BOUNDS.len()]), (1, 1, 1), "2.5 ms, 10 ms, beyond");
        assert!((tallied.durations.seconds - 70.012).abs() < 0.01);
    }

    #[test]
    fn the_bounds_are_in_order() {
        assert!(BOUNDS.is_sorted());
        let durations = Durations::default();
        durations.record(Duration::from_micros(50));
        assert_eq!(durations.snapshot().buckets[0], 1, "a bound is in its own bucket");
    }
}
