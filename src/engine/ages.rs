//! Since when the oldest change waits that is not in the store: to a second, for whoever watches.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::units::ChangeNo;

/// A mark is made at most so often.
const GRAIN: Duration = Duration::from_secs(1);

/// When which change was accepted, for one change in each second: as many marks as changes wait at most, which the bound on dirty
/// bytes bounds.
#[derive(Debug, Default)]
pub(super) struct Ages(VecDeque<(ChangeNo, Instant)>);

impl Ages {
    /// A change is accepted now; all up to `covers` are in the store.
    pub fn accepted(&mut self, no: ChangeNo, covers: ChangeNo, now: Instant) {
        if self.0.back().is_some_and(|(_, at)| now - *at < GRAIN) {
            return;
        }
        self.forget(covers);
        self.0.push_back((no, now));
    }

    /// How long the oldest change has waited that `covers` does not have; `last` is the last accepted one. A second too long
    /// at most.
    pub fn oldest(&mut self, covers: ChangeNo, last: ChangeNo, now: Instant) -> Option<Duration> {
        self.forget(covers);
        let (_, at) = self.0.front().filter(|_| covers < last)?;
        Some(now.duration_since(*at))
    }

    /// Marks before the one that the first change in question has.
    fn forget(&mut self, covers: ChangeNo) {
        while self.0.get(1).is_some_and(|(no, _)| *no <= covers.next()) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_change_that_is_not_in_the_store_has_its_age_to_a_second() {
        let (mut ages, mut now) = (Ages::default(), Instant::now());
        assert_eq!(ages.oldest(ChangeNo(0), ChangeNo(0), now), None);
        for no in 1..=40 {
            ages.accepted(ChangeNo(no), ChangeNo(0), now);
            now += Duration::from_millis(250);
        }
        assert_eq!(ages.oldest(ChangeNo(0), ChangeNo(40), now), Some(Duration::from_secs(10)));
        let fifth = ages.oldest(ChangeNo(5), ChangeNo(40), now).unwrap();
        assert!(fifth >= Duration::from_millis(8750) && fifth < Duration::from_millis(9750), "{fifth:?}");
        assert!(ages.0.len() <= 10);
        assert_eq!(ages.oldest(ChangeNo(40), ChangeNo(40), now), None, "everything is in the store");
    }
}
