//! What of a log moves next from the store that is near to the other one ([`crate::store::tiers`]). Pure.
//!
//! Only what a durable checkpoint covers: nobody reads that as a slot of the log any more, to find out whether it is free. What is old goes, and the oldest go when there is too
//! much of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::tiers::{Cooling, Held};
use crate::units::Seq;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<K> {
    /// These move now, the oldest first.
    pub due: Vec<K>,
    /// When the next of those that may move is old enough, if nothing else happens.
    pub next: Option<Instant>,
}

/// Of all that is in the near store, what moves now. `may_move` is told of each.
pub fn plan<K: Clone + Ord>(
    held: &[(K, Held)],
    may_move: impl Fn(&K) -> bool,
    now: Instant,
    cooling: &Cooling,
) -> Plan<K> {
    let mut bytes: u64 = held.iter().map(|(_, held)| held.bytes).sum();
    let mut all: Vec<_> = held.iter().filter(|(key, _)| may_move(key)).collect();
    all.sort_by(|(a, one), (b, other)| (one.since, a).cmp(&(other.since, b)));
    let mut plan = Plan { due: Vec::new(), next: None };
    for (key, Held { bytes: own, since }) in all {
        let age = now.saturating_duration_since(*since);
        if age < cooling.after && bytes <= cooling.size {
            plan.next = Some(now + (cooling.after - age));
            break;
        }
        bytes -= own;
        plan.due.push(key.clone());
    }
    plan
}

/// Whether a durable checkpoint covers a slot.
pub fn is_covered(slot: Seq, checkpointed: Seq) -> bool {
    slot <= checkpointed
}

/// How old the oldest is.
pub fn oldest<K>(held: &[(K, Held)], now: Instant) -> Duration {
    held.iter().map(|(_, held)| now.saturating_duration_since(held.since)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_old_go_and_the_oldest_if_there_is_too_much() {
        let start = Instant::now();
        let held = |key: u64, bytes, at| (key, Held { bytes, since: start + seconds(at) });
        let held = [held(1, 10, 0), held(2, 10, 20), held(3, 10, 10), held(4, 10, 30)];
        let plan = |at, size, covered| {
            let cooling = Cooling { after: seconds(60), size };
            plan(&held, |key| is_covered(Seq(*key), Seq(covered)), start + seconds(at), &cooling)
        };
        assert_eq!(plan(59, 100, 9), Plan { due: vec![], next: Some(start + seconds(60)) });
        assert_eq!(plan(60, 100, 9), Plan { due: vec![1], next: Some(start + seconds(70)) });
        assert_eq!(plan(85, 100, 9).due, [1, 3, 2]);
        assert_eq!(plan(500, 100, 9), Plan { due: vec![1, 3, 2, 4], next: None });
        assert_eq!(plan(500, 100, 2).due, [1, 2]);
        // Whatever may not move takes its place all the same.
        assert_eq!(plan(40, 25, 9).due, [1, 3]);
        assert_eq!(plan(40, 25, 1).due, [1]);
        assert_eq!(oldest(&held, start + seconds(40)), seconds(40));
    }

    proptest! {
        #[test]
        fn no_more_moves_than_must_and_no_less(
            objects in proptest::collection::vec((0..40u64, 1..9u64, any::<bool>()), 0..30),
            size in 0..80u64,
            after in 0..40u64,
        ) {
            let start = Instant::now();
            let now = start + seconds(40);
            let held: Vec<(usize, Held)> =
                objects.iter().enumerate().map(|(n, (at, bytes, _))| (n, Held { bytes: *bytes, since: start + seconds(*at) })).collect();
            let may = |n: &usize| objects[*n].2;
            let plan = plan(&held, may, now, &Cooling { after: seconds(after), size });
            prop_assert!(plan.due.iter().all(may));
            let stays = |n: &usize| !plan.due.contains(n);
            let rest: u64 = (0..objects.len()).filter(stays).map(|n| objects[n].1).sum();
            let can_go: Vec<usize> = (0..objects.len()).filter(|n| stays(n) && may(n)).collect();
            // What stays is young, and fits, as far as anything can be done about it.
            prop_assert!(can_go.iter().all(|n| 40 - objects[*n].0 < after));
            prop_assert!(rest <= size || can_go.is_empty());
            // The last that goes had to: it was old, or there was too much with it.
            if let Some(last) = plan.due.last() {
                prop_assert!(40 - objects[*last].0 >= after || rest + objects[*last].1 > size);
            }
            prop_assert_eq!(plan.next, can_go.iter().map(|n| held[*n].1.since + seconds(after)).min());
        }
    }
}
