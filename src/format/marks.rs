//! The marks of verified mode: claims to an epoch, and fences that follow them; which of them count. Pure;
//! [`crate::opening::verified`] is the argument.

use std::collections::BTreeMap;

use crate::format::keys::Keys;
use crate::store::{Key, ObjectEntry};
use crate::units::{Epoch, ORDINAL_MAX, Seq};

/// Who wants an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The epoch.
    pub epoch: Epoch,
    /// Told apart from every other claim by this.
    pub nonce: u64,
}

/// What the key of a fence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Whose it is.
    pub claim: Claim,
    /// The first slot that the epoch before does not have.
    pub slot: Seq,
    /// The epoch that it follows; 0 if it is the first.
    pub after: Epoch,
}

/// An object in `fences/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A claim.
    Claim(Claim),
    /// A fence.
    Fence(Placed),
}

impl Mark {
    /// Whose it is.
    pub fn claim(self) -> Claim {
        match self {
            Mark::Claim(claim) => claim,
            Mark::Fence(placed) => placed.claim,
        }
    }
}

/// What is in `fences/`, in the order of epochs.
#[derive(Clone, Debug, Default)]
pub struct Listed(Vec<Mark>);

impl Listed {
    /// Of a listing; what is nothing of ours is passed over.
    pub fn of(keys: &Keys, entries: &[ObjectEntry]) -> Listed {
        let mut marks: Vec<Mark> = entries.iter().filter_map(|entry| keys.mark(&entry.key)).collect();
        marks.sort_by_key(|mark| mark.claim());
        marks.dedup();
        Listed(marks)
    }

    /// The epoch for the next claim: higher than every one that was ever seen.
    pub fn next_epoch(&self) -> Option<Epoch> {
        let newest = self.0.last().map_or(Epoch(0), |mark| mark.claim().epoch);
        (newest.0 < ORDINAL_MAX).then(|| newest.next())
    }

    /// The epoch of the newest fence; 0 if there is none.
    pub fn newest_fence(&self) -> Epoch {
        let fence = self.0.iter().rev().find(|mark| matches!(mark, Mark::Fence(_)));
        fence.map_or(Epoch(0), |mark| mark.claim().epoch)
    }

    /// Whether somebody else wants this epoch, or has a higher one.
    pub fn contests(&self, claim: Claim) -> bool {
        self.0.iter().map(|mark| mark.claim()).any(|other| other != claim && other.epoch >= claim.epoch)
    }

    /// The fences that count, after that of epoch `base`: the newest, the one that it follows, and so on; in the order of
    /// epochs. Nothing if one of them is not there.
    pub fn chain(&self, base: Epoch) -> Option<Vec<Placed>> {
        let fences = self.0.iter().filter_map(|mark| match mark {
            Mark::Fence(placed) => Some((placed.claim.epoch, *placed)),
            Mark::Claim(_) => None,
        });
        let fences: BTreeMap<Epoch, Placed> = fences.collect();
        let mut chain = Vec::new();
        let mut epoch = fences.last_key_value().map_or(base, |(newest, _)| *newest);
        while epoch > base {
            let placed = *fences.get(&epoch)?;
            chain.push(placed);
            // A fence follows an earlier one, or somebody forged its key.
            epoch = Some(placed.after).filter(|after| *after < epoch)?;
        }
        // Whoever wrote the base was in the chain.
        (epoch == base || chain.is_empty()).then(|| chain.into_iter().rev().collect())
    }

    /// Takes a fence for a mere claim: it is not whole.
    pub fn pass_over(&mut self, placed: Placed) {
        self.0
            .iter_mut()
            .filter(|mark| **mark == Mark::Fence(placed))
            .for_each(|mark| *mark = Mark::Claim(placed.claim));
    }

    /// The keys of what is before an epoch.
    pub fn before(&self, keys: &Keys, epoch: Epoch) -> Vec<Key> {
        self.0.iter().filter(|mark| mark.claim().epoch < epoch).map(|mark| keys.of_mark(*mark)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: u64, nonce: u64) -> Claim {
        Claim { epoch: Epoch(epoch), nonce }
    }

    fn fence(epoch: u64, slot: u64, after: u64) -> Mark {
        Mark::Fence(Placed { claim: claim(epoch, 0), slot: Seq(slot), after: Epoch(after) })
    }

    #[test]
    fn two_claims_to_one_epoch_contest_each_other_and_a_higher_one_contests_both() {
        let listed = Listed(vec![fence(1, 4, 0), Mark::Claim(claim(2, 7)), Mark::Claim(claim(2, 9))]);
        assert!(listed.contests(claim(2, 7)) && listed.contests(claim(2, 9)));
        assert_eq!(listed.next_epoch(), Some(Epoch(3)));
        let alone = Listed(vec![fence(1, 4, 0), Mark::Claim(claim(2, 7)), Mark::Claim(claim(3, 1))]);
        assert!(!alone.contests(claim(3, 1)), "a lower one will see this one");
        assert!(alone.contests(claim(2, 7)));
        assert!(Listed(vec![fence(2, 4, 0)]).contests(claim(2, 7)), "a fence is a claim, too");
        assert_eq!(Listed(vec![Mark::Claim(claim(ORDINAL_MAX, 0))]).next_epoch(), None);
    }

    #[test]
    fn only_what_the_newest_fence_follows_counts() {
        let epochs = |listed: &Listed, base| {
            listed.chain(Epoch(base)).map(|chain| chain.iter().map(|placed| placed.claim.epoch.0).collect::<Vec<_>>())
        };
        // The fence of epoch 5 was put too late: that of 6 follows 4.
        let listed =
            Listed(vec![fence(3, 9, 0), fence(4, 20, 3), fence(5, 30, 4), fence(6, 31, 4), Mark::Claim(claim(9, 1))]);
        assert_eq!(epochs(&listed, 0), Some(vec![3, 4, 6]));
        assert_eq!(epochs(&listed, 4), Some(vec![6]));
        assert_eq!(epochs(&listed, 6), Some(vec![]));
        assert_eq!(epochs(&listed, 7), Some(vec![]), "the checkpoint is newer than the listing");
        assert_eq!(epochs(&listed, 5), None, "nobody wrote a checkpoint in an epoch that does not count");
        assert_eq!(epochs(&Listed(vec![fence(4, 20, 3)]), 0), None, "a fence is missing");
        assert_eq!(epochs(&Listed(vec![fence(4, 20, 4)]), 0), None, "forged");
        assert_eq!(epochs(&Listed::default(), 0), Some(vec![]));
    }
}
