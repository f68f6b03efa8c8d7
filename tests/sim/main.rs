//! The simulation: one seed is one world. A volume over a store and a disk that misbehave, clients that write at once
//! into a few hot places, servers that are killed, lose power, are displaced and go on as zombies; and an oracle that
//! knows the order in which changes were accepted.
//!
//! After every recovery (rule R3): the volume equals the first k accepted changes for the k that it claims; k is not below
//! what was flushed, nor, after a mere kill, below what was acknowledged; and `check` finds nothing.
//!
//! `ASHLAR_TEST_SEED=n cargo test --test sim one_seed` replays a seed; `scripts/soak --seconds n` tries fresh ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a simulation that finds something ends

mod oracle;
mod life;
mod seals;
mod world;

use std::time::{Duration, Instant};

use ashlar::store::faults::Trap;
use world::{End, World};

/// Runs a world from a seed; see [`World::lives`].
fn run(seed: u64) -> (String, u64) {
    let result = std::panic::catch_unwind(|| in_virtual_time(World::lives(seed)));
    result.unwrap_or_else(|panic| {
        eprintln!("\nreproduce with: ASHLAR_TEST_SEED={seed} cargo test --test sim one_seed -- --nocapture\n");
        std::panic::resume_unwind(panic)
    })
}

fn in_virtual_time<T>(world: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // When everybody waits for somebody else, virtual time jumps to here.
    let stuck = Duration::from_secs(7 * 86_400);
    runtime.block_on(async { tokio::time::timeout(stuck, world).await.expect("the world does not stand still") })
}

#[test]
fn one_seed() {
    let seed = std::env::var("ASHLAR_TEST_SEED").map_or(1, |seed| seed.parse().expect("ASHLAR_TEST_SEED is a number"));
    if std::env::var_os("ASHLAR_TEST_SEED").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    }
    run(seed);
}

#[test]
fn fixed_seeds() {
    // The last two found something once: a taker's scan beside the old owner's checkpoint, before and after its fence.
    let seeds = (100..160).chain([1_795_228_147_834, 1_795_239_872_019]);
    let collected: u64 = seeds.map(|seed| run(seed).1).sum();
    println!("garbage collection wrote {collected} segments");
    assert!(collected > 200, "a simulation worth its name collects garbage: {collected} segments");
}

/// Fresh seeds for `ASHLAR_TEST_SECONDS` (5 unless told otherwise).
#[test]
#[allow(clippy::disallowed_methods)] // how long to go on, and where to begin, are the tester's business
fn fresh_seeds() {
    let seconds =
        std::env::var("ASHLAR_TEST_SECONDS").map_or(5, |s| s.parse().expect("ASHLAR_TEST_SECONDS is a number"));
    let began = Instant::now();
    let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let mut worlds = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        run(first + worlds);
        worlds += 1;
    }
    println!("{worlds} worlds from seed {first}");
}

/// Whatever the last operation of the store or the disk is, what was promised is there: a schedule is run once to count,
/// and then cut after each operation.
#[test]
fn a_cut_after_every_operation_is_survived() {
    let (mut store, mut disk) = (0, 0);
    for seed in 11..19 {
        let counted = in_virtual_time(World::cut(seed, End::Never));
        for k in 1..=counted.store {
            for trap in [Trap::CutAfter, Trap::CutBefore] {
                in_virtual_time(World::cut(seed, End::Store { k, trap }));
            }
            // What a PUT that is cut in the middle leaves, or a store that is slow to say that it did.
            if seed < 13 {
                in_virtual_time(World::cut(seed, End::Store { k, trap: Trap::CutHalf }));
                in_virtual_time(World::cut(seed, End::Store { k, trap: Trap::KeepHalf }));
            }
        }
        for k in 1..=counted.disk {
            in_virtual_time(World::cut(seed, End::Disk { k }));
        }
        println!("seed {seed}: {} operations of the store, {} of the disk", counted.store, counted.disk);
        (store, disk) = (store + counted.store, disk + counted.disk);
    }
    println!("cut after each of {store} operations of the store and {disk} of the disk");
    assert!(store > 100 && disk > 100, "schedules worth cutting: {store}, {disk}");
}
