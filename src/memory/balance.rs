//! Who gives way when memory gets short: the cache, and what the map has beyond its part. Both can leave at any moment, at the cost of a GET; all else
//! has bounds of its own, at which clients wait, and takes what it needs within them. Pure: [`Balance::decide`] is asked again and again with
//! what is seen, and says what the two may have.
//!
//! What is counted is less than what the process takes: there are the program, its tasks, and the holes that the allocator has between what is in
//! use. That is the *overhead*. It is what is seen right after free memory was given back to the system; later it seems to be more by
//! whatever left meanwhile, and a cache that shrank for what it left behind would shrink for ever. So it is known to be more only where the process takes
//! more than the most that was counted since.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What is seen at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What the process takes; `None` if that cannot be found out.
    pub resident: Option<u64>,
    /// What is counted, but for the cache and the map.
    pub others: u64,
    /// What the map takes.
    pub map: u64,
    /// What the cache takes.
    pub cache: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the cache may take from now on.
    pub cache: u64,
    /// Bytes that the map may take.
    pub map: u64,
    /// Whether the map takes more than that.
    pub map_is_over: bool,
    /// Whether free memory is to be given back to the system now.
    pub give_back: bool,
}

/// What there is to decide about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes that the process may take.
    pub memory: u64,
    /// Bytes that all but the cache and the map may take by their own bounds.
    pub others: u64,
    /// What the cache may be given: one number, if somebody has set it.
    pub cache: RangeInclusive<u64>,
    /// What the map may be given.
    pub map: RangeInclusive<u64>,
    /// What is beside all of that until more is known.
    pub overhead: u64,
}

/// Decides; see the module.
#[derive(Clone, Debug)]
pub struct Balance {
    bounds: Bounds,
    overhead: u64,
    /// What was resident when memory was last given back, if that was at the last decision.
    gave_back: Option<u64>,
    /// The most that was counted since.
    most: u64,
    /// How long giving back has to wait.
    rest: Duration,
    /// How long it waits the next time.
    pause: Duration,
}

/// Memory is given back once all but this part of it is taken: what is found to be overhead then is made up for in time.
const NEAR_PART: u64 = 64;
/// Close to it, what cannot be but overhead is taken for that before memory is given back.
const CLOSE_PART: u64 = 8;
/// It is given back at most this often; less and less often, as long as that is of little use.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(64));
/// It was of use if so much of all memory came free.
const USE_PART: u64 = 64;
/// What is kept free for what comes before the next look: a quarter of what the others may still take, but no more than the one part of all, and no
/// less than the other.
const UNUSED_PART: u64 = 4;
const RESERVE_PARTS: (u64, u64) = (16, 32);
/// What is taken at once is much if it is this part of all.
const BURST_PART: u64 = 64;
/// The overhead is believed to be less by this part of the difference at each look.
const LESS_PART: u64 = 16;
/// The cache grows by this part of all memory or not at all: each change costs it some of what it knows of what it let go.
const STEP_PART: u64 = 64;

impl Balance {
    /// For a process that has just begun.
    pub fn new(bounds: Bounds) -> Balance {
        let overhead = bounds.overhead;
        Balance { bounds, overhead, gave_back: None, most: 0, rest: Duration::ZERO, pause: PAUSE.0 }
    }

    /// What is to be done about what is seen, `since` the last decision; `cache` is what the cache may take now.
    pub fn decide(&mut self, seen: Seen, cache: u64, since: Duration) -> Limits {
        let Bounds { memory, others: others_most, .. } = self.bounds;
        self.rest = self.rest.saturating_sub(since);
        self.learn(&seen);
        let is_over = self.is_beyond(&seen, NEAR_PART);
        let give_back = is_over && self.rest.is_zero();
        self.gave_back = if give_back { seen.resident } else { None };
        if give_back {
            self.rest = self.pause;
        } else if self.is_beyond(&seen, CLOSE_PART) {
            // What was counted and is not there any more would be used again first.
            self.overhead = self.overhead.max(seen.resident.unwrap_or_default().saturating_sub(self.most));
        }
        let unused = others_most.saturating_sub(seen.others);
        let reserve = (unused / UNUSED_PART).clamp(memory / RESERVE_PARTS.1, memory / RESERVE_PARTS.0);
        let room = memory.saturating_sub(reserve).saturating_sub(self.overhead).saturating_sub(seen.others);
        let map = within(room.saturating_sub(*self.bounds.cache.start()), &self.bounds.map);
        let wanted = within(room.saturating_sub(seen.map), &self.bounds.cache);
        Limits { cache: self.step(cache, wanted, is_over), map, map_is_over: seen.map > map, give_back }
    }

    /// So many bytes that somebody takes are a reason to look at once.
    pub fn burst(&self) -> u64 {
        self.bounds.memory / BURST_PART
    }

    /// What is beside everything that is counted, as far as is known.
    pub fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Whether the process takes all but this part of its memory, and more.
    fn is_beyond(&self, seen: &Seen, part: u64) -> bool {
        seen.resident.is_some_and(|resident| resident > self.bounds.memory - self.bounds.memory / part)
    }

    fn learn(&mut self, seen: &Seen) {
        let Some(resident) = seen.resident else { return };
        let counted = seen.others + seen.map + seen.cache;
        let beside = resident.saturating_sub(counted);
        self.most = self.most.max(counted);
        match self.gave_back.take() {
            Some(before) => {
                (self.overhead, self.most) = (beside, counted);
                let of_use = before.saturating_sub(resident) >= self.bounds.memory / USE_PART;
                self.pause = if of_use { PAUSE.0 } else { (self.pause * 2).min(PAUSE.1) };
            }
            None => self.overhead -= self.overhead.saturating_sub(beside).div_ceil(LESS_PART),
        }
    }

    /// The cache shrinks at once, and grows if it is worth it and there is nothing to be given back.
    fn step(&self, now: u64, wanted: u64, is_over: bool) -> u64 {
        let is_much =
            wanted >= now.saturating_add(self.bounds.memory / STEP_PART) || wanted == *self.bounds.cache.end();
        if wanted < now || is_much && !is_over { wanted } else { now.max(*self.bounds.cache.start()) }
    }
}

fn within(bytes: u64, range: &RangeInclusive<u64>) -> u64 {
    bytes.max(*range.start()).min(*range.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const MEMORY: u64 = 1024 * MIB;
    const SOON: Duration = Duration::from_millis(100);
    const LATER: Duration = Duration::from_secs(1);

    fn bounds() -> Bounds {
        Bounds {
            memory: MEMORY,
            others: 600 * MIB,
            cache: 16 * MIB..=MEMORY,
            map: 100 * MIB..=512 * MIB,
            overhead: 190 * MIB,
        }
    }

    /// What is seen of a process that takes `beside` what is counted.
    fn seen(others: u64, map: u64, cache: u64, beside: u64) -> Seen {
        Seen {
            resident: Some((others + map + cache + beside) * MIB),
            others: others * MIB,
            map: map * MIB,
            cache: cache * MIB,
        }
    }

    /// A balance that has seen a process at rest for long.
    fn settled(beside: u64) -> Balance {
        let mut balance = Balance::new(bounds());
        for _ in 0..1000 {
            balance.decide(seen(0, 0, 0, beside), 0, LATER);
        }
        balance
    }

    #[test]
    fn the_cache_has_what_the_others_leave_and_the_map_before_it() {
        let mut balance = settled(30);
        let mut decide = |others, map| {
            let limits = balance.decide(seen(others, map, 0, 30), 0, LATER);
            (limits.cache / MIB, limits.map / MIB)
        };
        // A sixteenth is kept free for what comes next.
        assert_eq!(decide(0, 0), (1024 - 64 - 30, 512));
        assert_eq!(decide(300, 0), (1024 - 64 - 30 - 300, 512));
        // A quarter of what the others may still take, if that is less, and still something.
        assert_eq!(decide(400, 0), (1024 - 50 - 30 - 400, 512));
        assert_eq!(decide(500, 0), (1024 - 32 - 30 - 500, 1024 - 32 - 30 - 500 - 16));
        assert_eq!(decide(600, 200), (1024 - 32 - 30 - 600 - 200, 1024 - 32 - 30 - 600 - 16));
        assert_eq!(decide(600, 346), (16, 346));
        assert_eq!(decide(900, 90), (16, 100), "both have what they have at least");
    }

    #[test]
    fn the_cache_grows_if_it_is_worth_it_and_shrinks_at_once() {
        let mut balance = settled(30);
        let mut limit = |now: u64| balance.decide(seen(0, 0, 0, 30), now * MIB, LATER).cache / MIB;
        assert_eq!(
            [limit(100), limit(914), limit(915), limit(929), limit(931), limit(1000)],
            [930, 930, 915, 929, 930, 930]
        );
    }

    #[test]
    fn what_leaves_the_cache_is_no_reason_to_take_more_from_it() {
        let mut balance = settled(30);
        balance.decide(seen(0, 0, 900, 30), 900 * MIB, SOON);
        // 500 MiB left the cache, and are holes until they are given back.
        let full = balance.decide(seen(500, 0, 400, 530), 400 * MIB, SOON);
        assert!(full.give_back && full.cache == 400 * MIB, "{full:?}");
        let after = balance.decide(seen(500, 0, 400, 40), 400 * MIB, SOON);
        assert!(!after.give_back && balance.overhead() == 40 * MIB, "{after:?}");
        assert_eq!(after.cache, (1024 - 32 - 40 - 500) * MIB, "it even has some more");
    }

    #[test]
    fn what_is_taken_beyond_all_that_was_counted_is_made_up_for_at_once() {
        let mut balance = settled(30);
        let full = 1024 - 64 - 30;
        assert_eq!(balance.decide(seen(0, 0, full, 30), full * MIB, SOON).cache, full * MIB);
        // The same frames keep 40 MiB more.
        let less = balance.decide(seen(0, 0, full, 70), full * MIB, SOON);
        assert!(!less.give_back && less.cache == (full - 40) * MIB, "{less:?}");
        // They have left, and what they took is not free yet.
        let same = balance.decide(seen(0, 0, full - 40, 120), less.cache, SOON);
        assert!(same.give_back && same.cache == less.cache, "{same:?}");
        // Once it is, that is what counts.
        balance.decide(seen(0, 0, full - 40, 20), less.cache, SOON);
        assert_eq!(balance.overhead(), 20 * MIB);
    }

    #[test]
    fn giving_back_rests_and_ever_longer_if_it_is_of_no_use() {
        let mut balance = settled(30);
        let mut times = Vec::new();
        for at in 0..2000 {
            if balance.decide(seen(600, 378, 16, 100), 16 * MIB, SOON).give_back {
                times.push(at);
            }
        }
        assert_eq!(times, [0, 5, 15, 35, 75, 155, 315, 635, 1275, 1915]);
        balance.decide(seen(600, 378, 16, 100), 16 * MIB, PAUSE.1);
        balance.decide(seen(600, 300, 16, 50), 16 * MIB, SOON);
        assert_eq!(balance.pause, PAUSE.0, "it was of use");
    }

    #[test]
    fn a_process_of_which_nothing_can_be_seen_has_its_overhead_taken_for_granted() {
        let blind = |others: u64| Seen { resident: None, others: others * MIB, ..Seen::default() };
        let mut balance = Balance::new(bounds());
        for _ in 0..100 {
            let limits = balance.decide(blind(400), 0, LATER);
            assert!(!limits.give_back && limits.cache / MIB == 1024 - 50 - 190 - 400, "{limits:?}");
        }
    }

    #[test]
    fn what_somebody_has_set_is_not_touched() {
        let set = Bounds { cache: 300 * MIB..=300 * MIB, map: 50 * MIB..=50 * MIB, ..bounds() };
        let mut balance = Balance::new(set);
        for others in [0, 600, 2000] {
            let limits = balance.decide(seen(others, 0, 0, 30), 300 * MIB, LATER);
            assert_eq!((limits.cache, limits.map), (300 * MIB, 50 * MIB));
        }
    }

    /// A process with an allocator: what is freed stays as holes, of which some part can be used again, and some part cannot be given back.
    struct World {
        base: u64,
        seen: Seen,
        limit: u64,
        map_wanted: u64,
        holes: u64,
        used_again: f64,
        stuck: f64,
    }

    impl World {
        fn change(&mut self, what: fn(&mut Seen) -> &mut u64, to: u64) {
            let now = what(&mut self.seen);
            let (more, less) = (to.saturating_sub(*now), now.saturating_sub(to));
            *now = to;
            self.holes = self.holes + less - more.min((self.holes as f64 * self.used_again) as u64);
        }

        fn look(&mut self) -> Seen {
            let Seen { others, map, cache, .. } = self.seen;
            Seen { resident: Some(self.base + others + map + cache + self.holes), ..self.seen }
        }

        /// One look; the cache takes whatever it may.
        fn step(&mut self, balance: &mut Balance, since: Duration) {
            let limits = balance.decide(self.look(), self.limit, since);
            self.limit = limits.cache;
            self.change(|seen| &mut seen.map, self.map_wanted.min(limits.map));
            self.change(|seen| &mut seen.cache, limits.cache);
            if limits.give_back {
                self.holes = (self.holes as f64 * self.stuck) as u64;
            }
        }
    }

    proptest! {
        /// Once the others rest, the process takes what it may, and no more: whatever went before, and whatever the allocator keeps.
        #[test]
        fn after_any_load_memory_is_used_and_not_exceeded(
            base in 10 * MIB..100 * MIB,
            used_again in 0.0..1.0f64,
            stuck in 0.0..0.3f64,
            loads in prop::collection::vec((0..500 * MIB, 0..400 * MIB, 1..50usize), 1..20),
        ) {
            let mut balance = Balance::new(bounds());
            let mut world = World { base, seen: Seen::default(), limit: 64 * MIB, map_wanted: 0, holes: 0, used_again, stuck };
            for (others, map, looks) in &loads {
                world.change(|seen| &mut seen.others, *others);
                world.map_wanted = *map;
                for _ in 0..*looks {
                    world.step(&mut balance, SOON);
                    prop_assert!((16 * MIB..=MEMORY).contains(&world.limit));
                }
            }
            for _ in 0..5000 {
                world.step(&mut balance, LATER);
            }
            let Seen { resident, cache, .. } = world.look();
            let resident = resident.unwrap();
            // What is stuck, and cannot be used again, may be more than there is room for.
            let least = base + world.seen.others + world.seen.map + world.holes;
            prop_assert!(resident <= MEMORY - MEMORY / NEAR_PART || cache == 16 * MIB && least + 16 * MIB > MEMORY - MEMORY / NEAR_PART, "{} MiB, of which the cache {}", resident / MIB, cache / MIB);
            prop_assert!(resident >= MEMORY - MEMORY / RESERVE_PARTS.0 - MEMORY / STEP_PART - MIB || cache == 16 * MIB, "{} MiB", resident / MIB);
        }
    }
}
