//! The simulation: one seed is one world. A server with one volume or several, small ones or ones with hundreds of pages,
//! that share permits and budgets of which there may be one or two; a store and disks that misbehave; clients that write at
//! once into a few hot places, whole blocks or a few bytes of one; servers that are stopped under load, killed, lose power,
//! are displaced and go on as zombies; snapshots, and in two thirds of the worlds rollbacks, clones, clones that become
//! independent or are deleted, and schedules; and an oracle that knows what clients sent, and the order in which it was accepted.
//!
//! Every read returns what clients sent, acknowledged or under way (rule R5). After every recovery (rule R3): the volume
//! equals the first k accepted changes for the k that it claims, byte for byte as clients sent them; k is not below what was
//! flushed, nor, after a clean stop or a mere kill, below what was acknowledged; and `check` finds nothing. Nothing that a
//! server is asked to do takes a day (rule R10). One seed is one run (rule R14).
//!
//! Worlds of two hosts that stand by for each other have a network between them and hosts that stand still or are lost for good: see [`hosts`].
//!
//! `ASHLAR_TEST_SEED=n cargo test --test sim one_seed` replays a seed; `scripts/soak sim` tries many fresh ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a simulation that finds something ends

mod places;
mod record;
mod client;
mod life;
mod climate;
mod seals;
mod snapshots;
mod family;
mod hosts;
mod network;
#[path = "../support/sloppy.rs"]
mod sloppy;
mod world;

use std::time::{Duration, Instant};

use ashlar::store::faults::Trap;
use family::Events;
use hosts::Standing;
use world::{End, Kind, Outcome, REPEATING, World};

/// Runs a world from a seed: two thirds of them with a family.
fn run(seed: u64) -> Outcome {
    run_as(seed, if seed.is_multiple_of(3) { Kind::Alone } else { Kind::Family })
}

fn run_as(seed: u64, kind: Kind) -> Outcome {
    let result = std::panic::catch_unwind(|| in_virtual_time(World::lives(seed, kind)));
    result.unwrap_or_else(|panic| {
        let test = if kind == Kind::Hosts { "a_seed_of_two_hosts" } else { "one_seed" };
        eprintln!("\nreproduce with: ASHLAR_TEST_SEED={seed} cargo test --test sim {test} -- --nocapture\n");
        std::panic::resume_unwind(panic)
    })
}

fn in_virtual_time<T>(world: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // What the world itself does not notice to stand still: when everybody waits, virtual time jumps to here.
    let stuck = Duration::from_secs(365 * 86_400);
    // On the heap: a debug build moves it around, and the stack of a test has 2 MiB.
    let world = Box::pin(world);
    runtime.block_on(async { tokio::time::timeout(stuck, world).await.expect("the world does not stand still") })
}

/// A number that the environment may give.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// The seed that the environment gives, and then everything is said.
fn given_seed() -> Option<u64> {
    let seed = number("ASHLAR_TEST_SEED");
    if seed.is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).try_init().ok();
    }
    seed
}

#[test]
fn one_seed() {
    run(given_seed().unwrap_or(1));
}

#[test]
fn a_seed_of_two_hosts() {
    run_as(given_seed().unwrap_or(1), Kind::Hosts);
}

/// Two hosts stand by for each other, and whatever happens to one of them, to the network or to the store loses nothing that was acknowledged.
#[test]
fn fixed_seeds_of_two_hosts() {
    let worlds = number("ASHLAR_TEST_HOSTS").unwrap_or(12);
    let outcomes = (0..worlds).map(|seed| run_as(seed, Kind::Hosts).standing);
    let standing = outcomes.fold(Standing::default(), Standing::plus);
    println!("{worlds} worlds of two hosts: {standing:?}");
    assert!(standing.rarest() >= 5, "a simulation worth its name has hosts that die: {standing:?}");
}

#[test]
fn fixed_seeds() {
    // The last ones found something once: after a loss of power the identity file of a journal had lost its end, and gave an
    // old mark back when it grew; a checkpoint asked for all dropped pages at once until a bad store gave all of them; a batch that gave way to
    // collection was forgotten when that ended (three times, once under writers that waited at the bound); a zombie let go of a snapshot under its successor's eyes; it put a segment beside a
    // torn one while its successor looked, which took that for damage; of a volume that was trimmed whole something stayed in the sums that was
    // deleted.
    let found = [
        1_795_772_345_776,
        1_795_773_303_662,
        1_795_842_558_131,
        1_795_843_002_859,
        1_795_850_001_570,
        1_795_843_007_231,
        1_795_843_009_356,
        1_795_850_009_529,
    ];
    let alone = (100..160).chain(found).map(|seed| run_as(seed, Kind::Alone));
    let outcomes: Vec<Outcome> = alone.chain((160..200).map(|seed| run_as(seed, Kind::Family))).collect();
    let (collected, requests): (u64, u64) =
        (outcomes.iter().map(|it| it.collected).sum(), outcomes.iter().map(|it| it.requests).sum());
    println!("{} worlds, {requests} requests of clients; collection wrote {collected} segments", outcomes.len());
    let events = outcomes.iter().fold(Events::default(), |sum, it| sum.plus(it.events));
    let Events { rollbacks, clones, clones_of_automatic, independent, deleted, hidden } = events;
    let rarest = [rollbacks, clones, clones_of_automatic, independent, deleted, hidden].into_iter().min();
    assert!(rarest >= Some(1), "a simulation worth its name has families: {events:?}");
    assert!(collected > 200, "a simulation worth its name collects garbage: {collected} segments");
}

/// Worlds in which equal data is stored once, of clients that write much that is equal.
#[test]
fn fixed_seeds_that_repeat_themselves() {
    let first = REPEATING.start;
    let alone = (first..first + 25).map(|seed| run_as(seed, Kind::Alone));
    let outcomes: Vec<Outcome> = alone.chain((first + 25..first + 50).map(|seed| run_as(seed, Kind::Family))).collect();
    let (collected, saved): (u64, u64) =
        (outcomes.iter().map(|it| it.collected).sum(), outcomes.iter().map(|it| it.saved).sum());
    println!("{} worlds; collection wrote {collected} segments, {saved} bytes were stored already", outcomes.len());
    assert!(collected > 50 && saved > 1 << 20, "{collected} segments collected, {saved} bytes saved");
    assert_eq!(run(first), run(first));
}

#[test]
fn a_seed_twice_is_one_run_twice() {
    for seed in 200..208 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_eq!(run_as(208, Kind::Hosts), run_as(208, Kind::Hosts), "two hosts");
}

/// Fresh seeds: as many as `ASHLAR_TEST_SEEDS` says, or for `ASHLAR_TEST_SECONDS` (5 unless told otherwise).
#[test]
#[allow(clippy::disallowed_methods)] // how long to go on, and where to begin, are the tester's business
fn fresh_seeds() {
    let seeds = number("ASHLAR_TEST_SEEDS");
    let seconds = number("ASHLAR_TEST_SECONDS").unwrap_or(if seeds.is_some() { u64::MAX } else { 5 });
    let began = Instant::now();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let first = number("ASHLAR_TEST_SEED").unwrap_or_else(now);
    let (mut worlds, mut requests, mut events, mut standing) = (0, 0, Events::default(), Standing::default());
    while worlds < seeds.unwrap_or(u64::MAX) && began.elapsed() < Duration::from_secs(seconds) {
        // A quarter of them of two hosts.
        let outcome = if worlds % 4 == 3 { run_as(first + worlds, Kind::Hosts) } else { run(first + worlds) };
        standing = standing.plus(outcome.standing);
        (requests, events) = (requests + outcome.requests, events.plus(outcome.events));
        worlds += 1;
    }
    let took = began.elapsed().as_secs();
    println!("{worlds} worlds from seed {first}, {requests} requests of clients, {took} s; {events:?}; {standing:?}");
}

/// Whatever the last operation of the store or the disk is, what was promised is there: a schedule is run once to count,
/// and then cut after each operation; or, unless `ASHLAR_TEST_CUTS=1` asks for each, after every so many.
#[test]
fn a_cut_after_every_operation_is_survived() {
    let stride = number("ASHLAR_TEST_CUTS").unwrap_or(8).max(1);
    let (mut store, mut disk, mut cuts) = (0, 0, 0);
    for seed in (11..21).chain(REPEATING.take(2)) {
        let kind = if seed < 19 || seed == REPEATING.start { Kind::Alone } else { Kind::Family };
        let counted = in_virtual_time(World::cut(seed, End::Never, kind));
        let chosen = |k: &u64| (k + seed).is_multiple_of(stride);
        for k in (1..=counted.store).filter(chosen) {
            // Before and after the operation, and what a PUT that is cut in the middle leaves.
            for trap in [Trap::CutBefore, Trap::CutAfter, Trap::CutHalf, Trap::KeepHalf] {
                in_virtual_time(World::cut(seed, End::Store { k, trap }, kind));
            }
            cuts += 4;
        }
        for k in (1..=counted.disk).filter(chosen) {
            in_virtual_time(World::cut(seed, End::Disk { k }, kind));
            cuts += 1;
        }
        (store, disk) = (store + counted.store, disk + counted.disk);
    }
    println!("{cuts} cuts in {store} operations of the store and {disk} of the disk");
    assert!(store > 100 && disk > 100, "schedules worth cutting: {store}, {disk}");
}
