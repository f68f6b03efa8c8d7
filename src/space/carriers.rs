//! Carriers: how collection goes on while versions are kept.
//!
//! The map of a version never changes, and what it needs of an old segment it needs at that segment's place. So what the head and all
//! versions still need of some old segments is copied into one new segment, their *carrier*, and the table says of each of them who carries it.
//! Maps go on naming the old place. Whoever reads there goes to the carrier instead, and looks the block up in its head: of segments that were born
//! between the same two versions at most one has a block that anybody needs, since a later one hid the others before the next version
//! was taken. So a carrier is found by its blocks alone. (Once a volume was rolled back there can be two; they are not carried together, see `upkeep/carry.rs`.)
//!
//! ```text
//!  a map says:  block 7 is in segment 12      the table says:  12 is carried by 90      the head of 90 says where block 7 is in it
//! ```
//!
//! A carrier takes the counts of those that it carries; they are dead from then on, and are deleted as all dead segments are. Deaths go on
//! being found at the old places: whether a version holds one is a matter of the old place ([`super::kept`]), and one that nobody holds is counted to the carrier.
//! A carrier that is carried itself hands on what it carries, so nobody ever has to go further than once.

use std::collections::BTreeMap;

use crate::units::{PageRef, Seq};

/// So many segments are carried at most: each stands in every checkpoint with two or three bytes. Beyond that, old segments stay as they are until
/// nobody needs them.
pub const CARRIED_MAX: usize = 16 << 10;

/// A segment that carries others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carrier {
    /// The salt of its encoding.
    pub salt: [u8; 16],
    /// Those that it carries, in order; one at least, and all older than it.
    pub carried: Vec<Seq>,
}

/// What a carrier says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cargo {
    /// The segments of which it has all that was needed, in order: carriers among them hand on what they carry.
    pub victims: Vec<Seq>,
    /// The versions that were kept then, in order. If the volume that it takes effect in keeps another one of that time, it has no effect.
    pub versions: Vec<Seq>,
    /// What was needed was found out after this place of the log took effect.
    pub as_of: Seq,
}

/// All carriers of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    carriers: BTreeMap<Seq, Carrier>,
    /// Who carries a segment.
    by: BTreeMap<Seq, Seq>,
}

impl Carriers {
    /// Of what a root says.
    pub fn new(carriers: impl IntoIterator<Item = (Seq, Carrier)>) -> Carriers {
        let mut all = Carriers::default();
        for (seq, carrier) in carriers {
            all.by.extend(carrier.carried.iter().map(|carried| (*carried, seq)));
            all.carriers.insert(seq, carrier);
        }
        all
    }

    /// The carriers, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Seq, &Carrier)> {
        self.carriers.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.carriers.is_empty()
    }

    /// How many segments are carried.
    pub fn carried(&self) -> usize {
        self.by.len()
    }

    /// Where what maps place in that segment is: in its carrier, or in itself.
    pub fn holder(&self, seq: Seq) -> Seq {
        self.by.get(&seq).copied().unwrap_or(seq)
    }

    /// The carrier of a segment that is carried, and its salt.
    pub fn carrier_of(&self, seq: Seq) -> Option<(Seq, [u8; 16])> {
        let carrier = self.by.get(&seq)?;
        Some((*carrier, self.carriers.get(carrier)?.salt))
    }

    /// The salt of a segment that carries others.
    pub fn salt(&self, seq: Seq) -> Option<[u8; 16]> {
        self.carriers.get(&seq).map(|carrier| carrier.salt)
    }

    /// A place in the log that has what the segment holds: its own, or one of those that it carries.
    pub fn birth(&self, seq: Seq) -> Seq {
        self.carriers.get(&seq).and_then(|carrier| carrier.carried.last().copied()).unwrap_or(seq)
    }

    /// A segment carries these from now on.
    pub fn carry(&mut self, seq: Seq, salt: [u8; 16], victims: &[Seq]) {
        let handed =
            |victim: &Seq| self.carriers.remove(victim).map_or_else(|| vec![*victim], |carrier| carrier.carried);
        let mut carried: Vec<Seq> = victims.iter().flat_map(handed).collect();
        carried.sort_unstable();
        self.by.extend(carried.iter().map(|carried| (*carried, seq)));
        self.carriers.insert(seq, Carrier { salt, carried });
    }

    /// The segment is no longer in the store.
    pub fn forget(&mut self, seq: Seq) {
        for carried in self.carriers.remove(&seq).into_iter().flat_map(|carrier| carrier.carried) {
            self.by.remove(&carried);
        }
    }

    /// Whether it is a carrier.
    pub fn is_carrier(&self, seq: Seq) -> bool {
        self.carriers.contains_key(&seq)
    }

    /// Bytes that they take in memory, about.
    pub fn memory(&self) -> usize {
        self.by.len() * 64 + self.carriers.len() * 96
    }
}

/// Where the places of a carrier are kept in memory: no page of a checkpoint lies at such a place.
pub fn places_of(carrier: Seq) -> PageRef {
    PageRef { checkpoint: carrier, offset: 0, len: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_that_is_carried_hands_on_what_it_carries() {
        let mut all = Carriers::default();
        all.carry(Seq(20), [1; 16], &[Seq(3), Seq(7)]);
        all.carry(Seq(30), [2; 16], &[Seq(5), Seq(20)]);
        all.carry(Seq(31), [3; 16], &[Seq(11)]);
        assert_eq!([3, 5, 7, 11, 12].map(|seq| all.holder(Seq(seq)).0), [30, 30, 30, 31, 12]);
        assert_eq!((all.birth(Seq(30)), all.birth(Seq(9)), all.carried()), (Seq(7), Seq(9), 4));
        assert!(!all.is_carrier(Seq(20)) && all.is_carrier(Seq(30)));
        assert_eq!(all.carrier_of(Seq(5)), Some((Seq(30), [2; 16])));
        assert_eq!(Carriers::new(all.iter().map(|(seq, carrier)| (*seq, carrier.clone()))), all);
        all.forget(Seq(30));
        assert_eq!((all.holder(Seq(3)), all.carried(), all.is_empty()), (Seq(3), 1, false));
    }
}
