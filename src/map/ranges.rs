//! A set of numbers, kept as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64` as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Whether `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    /// Whether `number` is in the set, and up to where, but not beyond `end`, that is the same.
    pub fn stretch(&self, number: u64, end: u64) -> (bool, u64) {
        match self.0.range(..=number).next_back() {
            Some((_, &until)) if number < until => (true, until.min(end)),
            _ => (false, self.0.range(number..end.max(number)).next().map_or(end, |(&start, _)| start)),
        }
    }

    /// Adds all of `run`.
    pub fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let (mut start, mut end) = (run.start, run.end);
        // Ranges that overlap or touch the new one, from the last that begins at or before its end backwards.
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.0.remove(&s);
        }
        self.0.insert(start, end);
    }

    /// Removes all of `run`.
    pub fn remove(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.0.range(..run.end).next_back() {
            if e <= run.start {
                break;
            }
            self.0.remove(&s);
            if s < run.start {
                self.0.insert(s, run.start);
            }
            if run.end < e {
                self.0.insert(run.end, e);
            }
        }
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// How many numbers of `range` are in the set.
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        let overlap = |(&s, &e): (&u64, &u64)| e.min(range.end).saturating_sub(s.max(range.start));
        self.0.range(first..range.end.max(first)).map(overlap).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_equal_a_plain_set(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..20), 0..60)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                let run = start..start + len;
                if insert {
                    ranges.insert(run.clone());
                    model.extend(run);
                } else {
                    ranges.remove(run.clone());
                    model.retain(|n| !run.contains(n));
                }
                prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                let apart = ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.end < b.start);
                prop_assert!(apart, "ranges touch: {:?}", ranges);
                prop_assert_eq!(ranges.count_in(10..40), model.range(10..40).count() as u64);
                for n in 0..90 {
                    prop_assert_eq!(ranges.contains(n), model.contains(&n));
                    let same = (n..95).take_while(|other| model.contains(other) == model.contains(&n)).count() as u64;
                    prop_assert_eq!(ranges.stretch(n, 95), (model.contains(&n), n + same));
                }
            }
        }
    }
}
