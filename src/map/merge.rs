//! Layers that become one, and the accounts that they settle.
//!
//! An entry *owes* where nobody has looked yet what it took the place of: the first entry below it still counts as live. When
//! both meet, that one is counted as dead, and the upper one inherits what the lower one owed. This is the same in whatever order
//! neighbouring layers are joined.

use std::collections::BTreeMap;

use super::{Entry, Placement};
use crate::units::{BlockIndex, Extent, Seq};

/// Blocks of segments that died.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths(BTreeMap<Seq, u64>);

impl Deaths {
    /// An entry is no longer needed.
    pub fn note(&mut self, entry: &Entry) {
        if let Placement::Data(location) = entry.placement {
            *self.0.entry(location.frame.seq).or_default() += entry.extent.count.0;
        }
    }

    /// All of `other`, too.
    pub fn add(&mut self, other: &Deaths) {
        other.iter().for_each(|(seq, blocks)| *self.0.entry(seq).or_default() += blocks);
    }

    /// The segments and how many of their blocks.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, u64)> + '_ {
        self.0.iter().map(|(&seq, &blocks)| (seq, blocks))
    }
}

/// What two neighbouring layers say together; both are sorted and do not overlap in themselves.
pub fn merge(upper: &[Entry], lower: &[Entry], deaths: &mut Deaths) -> Vec<Entry> {
    let mut merged = Merged(Vec::with_capacity(upper.len() + lower.len()));
    let mut below = lower.iter().copied();
    let mut next = below.next();
    for over in upper {
        let mut at = over.extent.start;
        while let Some(under) = next.filter(|under| under.extent.start < over.extent.end()) {
            if under.extent.end() <= over.extent.start {
                merged.push(under);
                next = below.next();
                continue;
            }
            // What stands out on the left.
            if let Some(left) = part(&under, under.extent.start, over.extent.start) {
                merged.push(left);
            }
            let (from, to) = (under.extent.start.max(over.extent.start), under.extent.end().min(over.extent.end()));
            if let Some(free) = part(over, at, from) {
                merged.push(free);
            }
            if let (Some(hidden), Some(hides)) = (part(&under, from, to), part(over, from, to)) {
                if over.owes {
                    deaths.note(&hidden);
                }
                merged.push(Entry { owes: under.owes, ..hides });
            }
            at = to;
            next = part(&under, over.extent.end(), under.extent.end()).or_else(|| below.next());
        }
        if let Some(free) = part(over, at, over.extent.end()) {
            merged.push(free);
        }
    }
    next.into_iter().chain(below).for_each(|under| merged.push(under));
    merged.0
}

/// What a layer says below which there is nothing: it hides nothing, and owes nothing.
pub fn settle(entries: Vec<Entry>) -> Vec<Entry> {
    let mut settled = Merged(Vec::with_capacity(entries.len()));
    let kept = entries.into_iter().filter(|entry| entry.placement != Placement::Hole);
    kept.for_each(|entry| settled.push(Entry { owes: false, ..entry }));
    settled.0
}

fn part(entry: &Entry, from: BlockIndex, to: BlockIndex) -> Option<Entry> {
    (from < to).then(|| entry.within(&Extent::between(from, to))).flatten()
}

struct Merged(Vec<Entry>);

impl Merged {
    fn push(&mut self, entry: Entry) {
        if !self.0.last_mut().is_some_and(|last| last.join(&entry)) {
            self.0.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{FrameAddr, Location};

    const BLOCKS: u64 = 60;

    /// A block of a layer: what it says and whether it owes.
    type Model = Vec<Option<(Placement, bool)>>;

    fn block(entries: &[Entry]) -> Model {
        let mut model = vec![None; BLOCKS as usize];
        for entry in entries {
            for n in 0..entry.extent.count.0 {
                let at = entry.extent.start.0 + n;
                model[at as usize] = Some((entry.placement.skip(crate::units::BlockCount(n)), entry.owes));
            }
        }
        model
    }

    fn layer() -> impl Strategy<Value = Vec<Entry>> {
        let item = (0_u64..6, 1_u64..9, 0_u8..5, 0_u64..4, any::<bool>());
        prop::collection::vec(item, 0..12).prop_map(|items| {
            let (mut at, mut entries) = (0, Vec::new());
            for (gap, count, kind, seq, owes) in items {
                at += gap;
                if at + count > BLOCKS {
                    break;
                }
                let frame = FrameAddr { seq: Seq(seq), offset: at as u32, len: 100 };
                let placement = match kind {
                    0 => Placement::Zero,
                    1 => Placement::Hole,
                    _ => Placement::Data(Location { frame, block: 0 }),
                };
                entries.push(Entry { extent: Extent::new(at, count), placement, owes });
                at += count;
            }
            entries
        })
    }

    proptest! {
        #[test]
        fn two_layers_are_one_block_by_block(upper in layer(), lower in layer()) {
            let mut deaths = Deaths::default();
            let merged = merge(&upper, &lower, &mut deaths);
            prop_assert!(merged.is_sorted_by(|a, b| a.extent.end() <= b.extent.start));
            let mut died = Deaths::default();
            let expected: Model = block(&upper).into_iter().zip(block(&lower)).enumerate().map(|(at, both)| match both {
                (Some((over, owes)), Some((under, deeper))) => {
                    if owes {
                        died.note(&Entry { extent: Extent::new(at as u64, 1), placement: under, owes });
                    }
                    Some((over, deeper))
                }
                (over, under) => over.or(under),
            }).collect();
            prop_assert_eq!(block(&merged), expected);
            prop_assert_eq!(deaths, died);
        }

        #[test]
        fn the_order_of_joining_makes_no_difference(a in layer(), b in layer(), c in layer()) {
            let (mut above, mut below) = (Deaths::default(), Deaths::default());
            let first = merge(&a, &b, &mut above);
            let first = merge(&first, &c, &mut above);
            let second = merge(&b, &c, &mut below);
            let second = merge(&a, &second, &mut below);
            prop_assert_eq!(block(&first), block(&second));
            prop_assert_eq!(above, below);
        }
    }
}
