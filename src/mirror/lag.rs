//! How far a mirror is behind: since when, and how many bytes. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::units::Seq;

/// So many commits are remembered one by one. Of more, neighbours count as one, since the older of them.
const ENTRIES_MAX: usize = 1024;

/// What was committed in the first store, and is not in the mirror.
#[derive(Debug, Default)]
pub struct Lag {
    /// The last slot of each, and since when it waits.
    entries: VecDeque<(Seq, Instant)>,
    bytes: u64,
}

impl Lag {
    /// All up to that slot is committed now, so many bytes more than before.
    pub fn committed(&mut self, slot: Seq, bytes: u64, at: Instant) {
        self.bytes += bytes;
        self.entries.push_back((slot, at));
        if self.entries.len() > ENTRIES_MAX {
            let older: Vec<_> = self.entries.drain(..).collect();
            self.entries = older.chunks(2).map(|pair| (pair[pair.len() - 1].0, pair[0].1)).collect();
        }
    }

    /// All up to that slot had been committed before anything that is known.
    pub fn committed_before(&mut self, slot: Seq, bytes: u64, at: Instant) {
        self.bytes += bytes;
        self.entries.push_front((slot, at));
    }

    /// So many bytes more are in the mirror, and all before that slot.
    pub fn mirrored(&mut self, next: Seq, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        while self.entries.front().is_some_and(|(last, _)| *last < next) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.bytes = 0;
        }
    }

    /// How long the oldest of it has been committed; nothing if the mirror has all.
    pub fn since(&self, now: Instant) -> Duration {
        self.entries.front().map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at))
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_old_as_the_oldest_commit_that_is_not_there() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((lag.since(start), lag.bytes()), (Duration::ZERO, 0));
        (1..=3).for_each(|n| lag.committed(Seq(n), 10, after(n)));
        assert_eq!((lag.since(after(5)), lag.bytes()), (Duration::from_secs(4), 30));
        lag.mirrored(Seq(3), 20);
        assert_eq!((lag.since(after(5)), lag.bytes()), (Duration::from_secs(2), 10));
        lag.mirrored(Seq(4), 10);
        assert_eq!((lag.since(after(5)), lag.bytes()), (Duration::ZERO, 0));
    }

    #[test]
    fn it_is_bounded_and_never_said_to_be_less_than_it_is() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        (1..=10_000).for_each(|n| lag.committed(Seq(n), 1, after(n)));
        assert!(lag.entries.len() <= ENTRIES_MAX);
        for next in [2, 5000, 9999, 10_000] {
            lag.mirrored(Seq(next), 0);
            assert!(lag.since(after(20_000)) >= Duration::from_secs(20_000 - next), "{next}");
        }
        lag.mirrored(Seq(10_001), 0);
        assert_eq!(lag.since(after(20_000)), Duration::ZERO);
    }
}
