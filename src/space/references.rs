//! Segments that refer to data in others, in place of having it: what de-duplication makes.
//!
//! A map names only the segment that refers; where that says the data is, is a matter of its frames, and the map, what is counted by it, versions and collection know nothing of it. So
//! one thing is to be known here: *a segment that another refers to stays in the store as long as that one does*, whatever is live of it ([`super::Space::dead`]).
//!
//! A reference counts from the moment at which it is chosen, before its segment has it written down: under the same lock it is looked whether what it refers to is needed anyhow.
//! It ends when the segment that refers is no longer in the store. Between the two it stands in every checkpoint.
//!
//! What is referred to is data, never a reference, so nobody goes further than one step; but a segment that refers may be referred to itself, for other blocks.

use std::collections::BTreeMap;

use crate::units::Seq;

/// So many pairs of segments of which one refers to the other there are at most: each stands in every checkpoint, with three or four bytes. Beyond that nothing is de-duplicated.
pub const REFERENCES_MAX: usize = 16 << 10;

/// So many segments are referred to at most: what is counted of each is looked at with every checkpoint.
pub const TARGETS_MAX: usize = 4096;

/// A segment that refers to others: those, in order, and how many of its blocks are in each.
pub type Referring = (Seq, Vec<(Seq, u32)>);

/// All references of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// By the segment that refers: the segments that have its data, in order, and how many of its blocks.
    by: BTreeMap<Seq, Vec<(Seq, u32)>>,
    /// How many segments refer to each.
    to: BTreeMap<Seq, u32>,
    /// How many pairs there are.
    pairs: usize,
}

impl References {
    /// Of what a root says.
    pub fn new(references: impl IntoIterator<Item = Referring>) -> References {
        let mut all = References::default();
        references.into_iter().for_each(|(seq, refers)| all.refer(seq, refers));
        all
    }

    /// A segment refers to these from now on.
    pub fn refer(&mut self, seq: Seq, refers: Vec<(Seq, u32)>) {
        self.forget(seq);
        if refers.is_empty() {
            return;
        }
        refers.iter().for_each(|(to, _)| *self.to.entry(*to).or_default() += 1);
        self.pairs += refers.len();
        self.by.insert(seq, refers);
    }

    /// The segment is no longer in the store.
    pub fn forget(&mut self, seq: Seq) {
        for (to, _) in self.by.remove(&seq).into_iter().flatten() {
            self.pairs -= 1;
            match self.to.get_mut(&to) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.to.remove(&to)),
            }
        }
    }

    /// Whether a segment refers to that one: then that stays.
    pub fn holds(&self, seq: Seq) -> bool {
        self.to.contains_key(&seq)
    }

    /// Whether that segment refers to others.
    pub fn refers(&self, seq: Seq) -> bool {
        self.by.contains_key(&seq)
    }

    /// The segments that refer to others, in order, each with those.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, &[(Seq, u32)])> {
        self.by.iter().map(|(seq, refers)| (*seq, &refers[..]))
    }

    /// The segments that are referred to, in order.
    pub fn targets(&self) -> impl Iterator<Item = Seq> + '_ {
        self.to.keys().copied()
    }

    /// How many segments are referred to.
    pub fn target_count(&self) -> usize {
        self.to.len()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by.is_empty()
    }

    /// Those of segments up to a place in the log.
    pub fn up_to(&self, last: Seq) -> References {
        References::new(self.by.range(..=last).map(|(seq, refers)| (*seq, refers.clone())))
    }

    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        self.len() * size_of::<(Seq, u32)>() + (self.by.len() + self.to.len()) * 80
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_held_is_what_somebody_refers_to(
            steps in prop::collection::vec((1u64..12, prop::option::of(prop::collection::btree_set(1u64..12, 0..4))), 0..60),
        ) {
            let (mut all, mut model) = (References::default(), BTreeMap::<u64, BTreeSet<u64>>::new());
            for (seq, refers) in steps {
                match refers {
                    Some(to) => {
                        all.refer(Seq(seq), to.iter().map(|to| (Seq(*to), 1)).collect());
                        model.insert(seq, to);
                    }
                    None => {
                        all.forget(Seq(seq));
                        model.remove(&seq);
                    }
                }
                model.retain(|_, to| !to.is_empty());
                for seq in 0..13 {
                    prop_assert_eq!(all.holds(Seq(seq)), model.values().any(|to| to.contains(&seq)));
                    prop_assert_eq!(all.refers(Seq(seq)), model.contains_key(&seq));
                }
                prop_assert_eq!(all.len(), model.values().map(BTreeSet::len).sum::<usize>());
                prop_assert_eq!(all.targets().count(), all.target_count());
                let again = References::new(all.iter().map(|(seq, refers)| (seq, refers.to_vec())));
                prop_assert_eq!(&again, &all);
                prop_assert!(all.up_to(Seq(6)).iter().all(|(seq, _)| seq <= Seq(6)));
            }
        }
    }
}
