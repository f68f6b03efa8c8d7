//! What a BLOCK_STATUS is answered with: the runs of a device as descriptors of `base:allocation`, and what was compared as those of
//! `ashlar:changed`. Pure.
//!
//! A client that keeps to a minimum block size reckons with descriptors that do so too (rule K20; QEMU's client calls others
//! a fault of the server). So what a smaller unit of mapping leaves finer than that is made coarse, on the safe side: a block
//! of which a part is data is data, one that is not all hole is allocated, and one of which a part has changed has changed.

use super::wire::{allocation, changed};
use crate::device::{Allocation, Compared, Run};

/// A descriptor: bytes, and flags of [`allocation`] or of [`changed`].
pub type Descriptor = (u64, u32);

/// What a client asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The first byte.
    pub offset: u64,
    /// Bytes; one at least.
    pub len: u64,
    /// Whether it wants one descriptor.
    pub one: bool,
    /// The minimum block size, a power of two.
    pub unit: u32,
}

/// The descriptors of `base:allocation`; `None` if the runs are not what a device may say.
pub fn descriptors(runs: &[Run], asked: &Asked) -> Option<Vec<Descriptor>> {
    coarse(runs.iter().map(|run| (run.len, flags(run.allocation))), asked, |one, other| one & other)
}

/// The descriptors of `ashlar:changed`; `None` if that is not what a device may say.
pub fn changes(compared: &[Compared], asked: &Asked) -> Option<Vec<Descriptor>> {
    let flags = |differs| if differs { changed::CHANGED } else { 0 };
    coarse(compared.iter().map(|part| (part.len, flags(part.differs))), asked, |one, other| one | other)
}

/// Whole units of that; `both` says what is true of a unit of which parts are different.
fn coarse(
    parts: impl ExactSizeIterator<Item = Descriptor> + Clone,
    asked: &Asked,
    both: fn(u32, u32) -> u32,
) -> Option<Vec<Descriptor>> {
    let add = |sum: u64, (len, _)| if len == 0 { None } else { sum.checked_add(len) };
    let sum = parts.clone().try_fold(0_u64, add)?;
    if sum == 0 || sum > asked.len {
        return None;
    }
    let (at, unit) = (asked.offset, u64::from(asked.unit));
    let mut units = Units { at, unit, both, cut: None, done: Vec::with_capacity(parts.len()) };
    parts.for_each(|(len, flags)| units.take(len, flags));
    // A block whose end was not looked at is left for the next request, unless it is all there is, or the client cut it.
    if let Some((len, flags)) = units.cut.take()
        && (units.done.is_empty() || sum == asked.len)
    {
        units.push(len, flags);
    }
    if asked.one {
        units.done.truncate(1);
    }
    Some(units.done)
}

fn flags(allocation: Allocation) -> u32 {
    match allocation {
        Allocation::Data => 0,
        Allocation::Zero => allocation::ZERO,
        Allocation::Hole => allocation::HOLE | allocation::ZERO,
    }
}

struct Units {
    at: u64,
    unit: u64,
    both: fn(u32, u32) -> u32,
    /// The part of a block that was seen, and what is true of all of it.
    cut: Option<Descriptor>,
    done: Vec<Descriptor>,
}

impl Units {
    fn take(&mut self, len: u64, flags: u32) {
        let mut left = len;
        while left > 0 {
            let whole = left - left % self.unit;
            let here = match self.at % self.unit {
                0 if whole > 0 => whole,
                0 => left,
                into => left.min(self.unit - into),
            };
            let (before, so_far) = self.cut.take().unwrap_or((0, flags));
            self.at += here;
            left -= here;
            match self.at % self.unit {
                0 => self.push(before + here, (self.both)(so_far, flags)),
                _ => self.cut = Some((before + here, (self.both)(so_far, flags))),
            }
        }
    }

    fn push(&mut self, len: u64, flags: u32) {
        match self.done.last_mut() {
            Some((before, same)) if *same == flags => *before += len,
            _ => self.done.push((len, flags)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(len: u64, allocation: Allocation) -> Run {
        Run { len, allocation }
    }

    #[test]
    fn k22_holes_are_zero_and_zeroes_are_not_holes() {
        let runs = [run(512, Allocation::Data), run(512, Allocation::Zero), run(512, Allocation::Hole)];
        let asked = Asked { offset: 0, len: 4096, one: false, unit: 1 };
        assert_eq!(descriptors(&runs, &asked), Some(vec![(512, 0), (512, 2), (512, 3)]));
        assert_eq!(descriptors(&runs, &Asked { one: true, ..asked }), Some(vec![(512, 0)]));
    }

    #[test]
    fn a_unit_of_which_a_part_has_changed_has_changed() {
        let part = |len, differs| Compared { len, differs };
        let parts = [part(512, false), part(512, true), part(7168, false), part(8192, true)];
        let asked = |unit| Asked { offset: 0, len: 16384, one: false, unit };
        assert_eq!(changes(&parts, &asked(512)), Some(vec![(512, 0), (512, 1), (7168, 0), (8192, 1)]));
        assert_eq!(changes(&parts, &asked(4096)), Some(vec![(4096, 1), (4096, 0), (8192, 1)]));
        assert_eq!(changes(&parts, &asked(16384)), Some(vec![(16384, 1)]));
        assert_eq!(changes(&parts, &Asked { one: true, ..asked(4096) }), Some(vec![(4096, 1)]));
        assert_eq!(changes(&[part(0, true)], &asked(512)), None);
    }

    #[test]
    fn what_no_device_may_say_is_not_sent() {
        let asked = Asked { offset: 0, len: 1024, one: false, unit: 1 };
        let data = |lens: &[u64]| lens.iter().map(|&len| run(len, Allocation::Data)).collect::<Vec<_>>();
        for bad in [&[][..], &[0], &[512, 0], &[1025], &[1024, 1], &[u64::MAX, 2]] {
            assert_eq!(descriptors(&data(bad), &asked), None, "{bad:?}");
        }
    }

    proptest! {
        /// Of each byte that is answered for, no more is claimed than the device did.
        #[test]
        fn k19_k20_descriptors_are_whole_blocks_and_claim_no_more_than_the_device(
            runs in prop::collection::vec((1_u64..40, 0_usize..3), 1..12),
            offset in 0_u64..70, more in 0_u64..20, one: bool, shift in 0_u32..6,
        ) {
            let kinds = [Allocation::Data, Allocation::Zero, Allocation::Hole];
            let runs: Vec<Run> = runs.into_iter().map(|(len, kind)| run(len, kinds[kind])).collect();
            let claims: Vec<u32> = runs.iter().flat_map(|run| vec![flags(run.allocation); run.len as usize]).collect();
            let (len, unit) = (claims.len() as u64 + more, 1_u32 << shift);
            let found = descriptors(&runs, &Asked { offset, len, one, unit }).unwrap();
            prop_assert!(!found.is_empty() && (!one || found.len() == 1));
            let mut at = offset;
            for (no, &(len, flags)) in found.iter().enumerate() {
                prop_assert!(len > 0);
                prop_assert!(no == 0 || found[no - 1].1 != flags, "neighbours differ");
                for byte in at..at + len {
                    prop_assert_eq!(flags & !claims[(byte - offset) as usize], 0);
                }
                at += len;
                let is_cut = at == offset + claims.len() as u64 && (more == 0 || found.len() == 1);
                prop_assert!(at.is_multiple_of(u64::from(unit)) || is_cut, "{} {:?}", at, found);
            }
            if unit == 1 && !one {
                prop_assert_eq!(at - offset, claims.len() as u64, "nothing is left out");
            }
        }
    }
}
