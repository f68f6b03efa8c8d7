//! How memory is divided among kinds of things, each with a weight, with the least that it works with and the most that is of use to it, unless
//! somebody has set it. Pure.

/// What one kind of thing may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its part, in proportion to those of the others.
    pub weight: u64,
    /// Bytes below which it does not work.
    pub least: u64,
    /// Bytes beyond which more is of no use.
    pub most: u64,
    /// Bytes that it has whatever the others have, if somebody said so.
    pub set: Option<u64>,
}

impl Share {
    /// The least that it can have.
    fn needs(&self) -> u64 {
        self.set.unwrap_or(self.least)
    }
}

/// The least memory that can be divided.
pub fn least(shares: &[Share]) -> u64 {
    shares.iter().map(Share::needs).fold(0, u64::saturating_add)
}

/// What each has of `memory`, which is [`least`] or more: in proportion to the weights, but for what is set, what would have less than it
/// works with, and what is of no use. No more than `memory` together.
pub fn divide<const N: usize>(memory: u64, shares: &[Share; N]) -> [u64; N] {
    let mut fixed = shares.map(|share| share.set);
    loop {
        let free = memory.saturating_sub(fixed.iter().flatten().fold(0, |sum, bytes| sum.saturating_add(*bytes)));
        let open = |at: usize| fixed[at].is_none();
        let weight: u64 = (0..N).filter(|at| open(*at)).map(|at| shares[at].weight).sum();
        let part = |at: usize| portion(free, shares[at].weight, weight);
        let poor: Vec<usize> = (0..N).filter(|at| open(*at) && part(*at) < shares[*at].least).collect();
        if poor.is_empty() {
            return std::array::from_fn(|at| fixed[at].unwrap_or_else(|| part(at).min(shares[at].most)));
        }
        poor.into_iter().for_each(|at| fixed[at] = Some(shares[at].least));
    }
}

/// The memory with which what is not set has what it would have of `usual` if nothing were set; `usual` at least.
pub fn fitting(usual: u64, shares: &[Share]) -> u64 {
    let weight = |shares: &mut dyn Iterator<Item = &Share>| shares.map(|share| share.weight).sum::<u64>();
    let (all, open) = (weight(&mut shares.iter()), weight(&mut shares.iter().filter(|share| share.set.is_none())));
    let set = shares.iter().filter_map(|share| share.set).fold(0, u64::saturating_add);
    usual.max(least(shares)).max(set.saturating_add(portion(usual, open, all)))
}

fn portion(of: u64, weight: u64, weights: u64) -> u64 {
    (u128::from(of) * u128::from(weight) / u128::from(weights.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: Share = Share { weight: 1, least: 0, most: u64::MAX, set: None };

    #[test]
    fn each_has_its_weight_unless_it_is_set_or_needs_more_or_less() {
        assert_eq!(divide(80, &[Share { weight: 3, ..ANY }, ANY]), [60, 20]);
        assert_eq!(divide(80, &[Share { set: Some(70), ..ANY }, ANY]), [70, 10]);
        assert_eq!(divide(80, &[Share { least: 60, ..ANY }, ANY, ANY]), [60, 10, 10]);
        assert_eq!(divide(80, &[Share { most: 10, ..ANY }, ANY]), [10, 40], "the rest is nobody's yet");
        assert_eq!(divide(80, &[Share { least: 60, ..ANY }, Share { least: 15, ..ANY }, ANY]), [60, 15, 5]);
    }

    #[test]
    fn what_is_set_comes_on_top_where_nobody_said_how_much_there_is() {
        let large = Share { set: Some(1000), ..ANY };
        assert_eq!(fitting(80, &[large, Share { weight: 3, ..ANY }]), 1060);
        assert_eq!(divide(1060, &[large, Share { weight: 3, ..ANY }]), [1000, 60], "as of 80 without it");
        assert_eq!(
            fitting(80, &[Share { set: Some(5), ..ANY }, ANY]),
            80,
            "and what is set low leaves its part to the others"
        );
        assert_eq!(fitting(80, &[Share { least: 200, ..ANY }, ANY]), 200);
    }

    fn share() -> impl Strategy<Value = Share> {
        let set = prop::option::weighted(0.3, 0u64..1 << 40);
        (1u64..20, 0u64..1 << 30, 0u64..1 << 34, set).prop_map(|(weight, least, more, set)| Share {
            weight,
            least,
            most: least + more,
            set,
        })
    }

    proptest! {
        #[test]
        fn whatever_is_divided_nobody_has_too_little_and_all_together_no_more_than_there_is(
            shares in prop::array::uniform8(share()),
            more in 0u64..1 << 40,
            usual in 0u64..1 << 40,
        ) {
            let memory = least(&shares) + more;
            let parts = divide(memory, &shares);
            prop_assert!(parts.iter().sum::<u64>() <= memory);
            for (part, share) in parts.iter().zip(&shares) {
                match share.set {
                    Some(set) => prop_assert_eq!(*part, set),
                    None => prop_assert!((share.least..=share.most).contains(part)),
                }
            }
            let grown = divide(memory + (1 << 20), &shares);
            prop_assert!(grown.iter().zip(&parts).all(|(grown, part)| grown >= part), "more memory takes nothing from anybody");
            let fits = fitting(usual, &shares);
            prop_assert!(fits >= usual && fits >= least(&shares));
        }
    }
}
