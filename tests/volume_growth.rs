//! A volume that becomes larger while its store is away (`src/engine/growth.rs`): what was said is kept, and nothing in the store lies beyond
//! the end that its description says, wherever a server dies or is displaced meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::{Device, DeviceError};
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::segment::Durability;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::description::{self, Description};
use ashlar::outside::{Clock, Random};
use ashlar::store::Store;
use ashlar::store::faults::{Counted, FaultOptions, Faults, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{
    self, CreateOptions, FencedBy, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
};
use bytes::Bytes;

const MIB: u64 = 1 << 20;
const SMALL: u64 = 8 * MIB;
const LARGE: u64 = 100 * MIB;
const BEYOND: u64 = 90 * MIB;
const BLOCK: usize = 4096;
const BOTH: [Durability; 2] = [Durability::Store, Durability::Journal];

struct World {
    store: MemoryStore,
    random: Random,
    durability: Durability,
}

impl World {
    async fn new(durability: Durability, fenced_by: FencedBy) -> World {
        let (store, random) = (MemoryStore::new(), Random::seeded(12));
        let options = CreateOptions { size: SMALL, fenced_by, ..CreateOptions::default() };
        volume::create(&store, &random, &Clock::System, &name(), options).await.unwrap();
        World { store, random, durability }
    }

    async fn open(
        &self,
        server: u128,
        disk: &CrashDisk,
        flags: OpenFlags,
    ) -> Result<(Arc<Volume>, Faults), VolumeError> {
        let faulty = FaultyStore::new(Arc::new(self.store.clone()), FaultOptions::default(), Random::seeded(1));
        let faults = faulty.faults();
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: format!("number-{server}") },
            ..outside::plain(Arc::new(faulty), Arc::new(disk.clone()), self.random.clone())
        };
        let options = Options { durability: self.durability, ..Options::default() };
        Ok((Volume::open(outside, &name(), options, journal::Options::default(), flags).await?, faults))
    }

    /// By the server that had it, on what is left of its disk.
    async fn open_again(&self, disk: &CrashDisk) -> Arc<Volume> {
        self.open(1, disk, OpenFlags::default()).await.unwrap().0
    }

    /// By a server that had nothing to do with it yet.
    async fn take(&self, server: u128) -> Arc<Volume> {
        let accept_loss = self.durability == Durability::Journal;
        let takeover = OpenFlags { takeover: true, accept_loss, ..OpenFlags::default() };
        self.open(server, &CrashDisk::new(7), takeover).await.unwrap().0
    }

    /// A volume that became larger while the store was away, with a change beyond its old end.
    async fn grown(&self, disk: &CrashDisk) -> (Arc<Volume>, Faults) {
        let (volume, faults) = self.open(1, disk, OpenFlags::default()).await.unwrap();
        write(&volume, 0, 1).await;
        volume.save().await.unwrap();
        faults.set_options(AWAY);
        assert!(!volume.grow(LARGE, Duration::from_millis(100)).await.unwrap(), "the store is away");
        assert_eq!((volume.info().size, volume.status().size_owed), (LARGE, true));
        write(&volume, BEYOND, 2).await;
        (volume, faults)
    }

    async fn described(&self) -> Description {
        description::load(&self.store, &name()).await.unwrap()
    }

    async fn check(&self) {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
    }

    /// Closed, it is sound, has that size, and owes nothing.
    async fn close(&self, volume: Arc<Volume>, size: u64) {
        volume.close().await.unwrap();
        assert_eq!(self.described().await.meta.size, size);
        self.check().await;
    }
}

const AWAY: FaultOptions = FaultOptions {
    delay_min: Duration::ZERO,
    delay_spread: Duration::ZERO,
    refuse: 1000,
    throttle: 0,
    fail_after: 0,
    time_out: 0,
    time_out_after: Duration::ZERO,
    short: 0,
    corrupt: 0,
    half: 0,
    panic: 0,
};

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

async fn write(volume: &Volume, at: u64, mark: u8) {
    volume.write(at, Bytes::from(vec![mark; BLOCK]), false).await.unwrap();
}

async fn mark_at(volume: &Volume, at: u64) -> u8 {
    let read = volume.read(at, BLOCK as u32).await.unwrap().concat();
    assert!(read.iter().all(|byte| *byte == read[0]), "a block is half of one change");
    read[0]
}

async fn flushes(volume: &Volume) -> bool {
    tokio::time::timeout(Duration::from_secs(20), volume.flush()).await.is_ok_and(|flushed| flushed.is_ok())
}

async fn notes(disk: &CrashDisk) -> usize {
    disk.list("").await.unwrap().iter().filter(|name| name.starts_with("growing")).count()
}

async fn settled(volume: &Volume) {
    while volume.status().size_owed {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_becomes_larger_while_its_store_is_away_and_the_store_learns_it_first() {
    for (durability, fenced_by) in
        BOTH.into_iter().flat_map(|it| [(it, FencedBy::CreateOnly), (it, FencedBy::Verified)])
    {
        let (world, disk) = (World::new(durability, fenced_by).await, CrashDisk::new(1));
        let (volume, faults) = world.grown(&disk).await;
        // What a FLUSH promises is as it was: nothing is in the store.
        assert_eq!(flushes(&volume).await, durability == Durability::Journal);
        assert_eq!(mark_at(&volume, BEYOND).await, 2);
        let beyond = volume.write(LARGE, Bytes::from(vec![3; BLOCK]), false).await;
        assert!(matches!(beyond, Err(DeviceError::BeyondEnd)), "{beyond:?}");
        // Larger once more, before the store knows of the first.
        assert!(!volume.grow(LARGE + MIB, Duration::ZERO).await.unwrap());
        let refused = volume.grow(LARGE, Duration::ZERO).await.unwrap_err().to_string();
        assert!(refused.contains("which 104857600 is not more than"), "{refused}");
        let shrink = volume.shrink(SMALL, true);
        tokio::time::timeout(Duration::from_secs(60), shrink).await.expect("a store that is away refuses").unwrap_err();
        let before = world.described().await;
        assert_eq!(before.meta.size, SMALL);
        // Somebody else changes it meanwhile.
        let meta = volume::Meta { keep_until_unix_millis: 9, ..before.meta.clone() };
        before.replace(&world.store, &world.random, &meta, None).await.unwrap();
        faults.set_options(FaultOptions::default());
        // The server does not know yet that the store is back.
        let refused = volume.shrink(SMALL, true).await.unwrap_err().to_string();
        assert!(refused.contains("became larger, and the store was not told yet"), "{refused}");
        volume.flush().await.unwrap();
        if durability == Durability::Journal {
            settled(&volume).await;
        }
        let described = world.described().await.meta;
        assert_eq!((described.size, described.keep_until_unix_millis), (LARGE + MIB, 9));
        settled(&volume).await;
        assert_eq!(notes(&disk).await, 0);
        world.close(volume, LARGE + MIB).await;
        let volume = world.open_again(&disk).await;
        assert_eq!((volume.info().size, mark_at(&volume, BEYOND).await), (LARGE + MIB, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_store_that_answers_it_knows_at_once() {
    let (world, disk) = (World::new(Durability::Store, FencedBy::CreateOnly).await, CrashDisk::new(1));
    let volume = world.open_again(&disk).await;
    assert!(volume.grow(LARGE, Duration::from_secs(1)).await.unwrap());
    assert_eq!((world.described().await.meta.size, notes(&disk).await), (LARGE, 0));
    // Smaller, it stays so.
    volume.shrink(SMALL, false).await.unwrap();
    drop(volume);
    let volume = world.open_again(&disk.kill()).await;
    assert_eq!(volume.info().size, SMALL);
    world.close(volume, SMALL).await;
}

/// The server, or its host, dies at any operation with which it tells the store, or before the first. What was noted on its disk is kept; elsewhere the
/// volume has one size or the other, and is sound.
#[tokio::test(start_paused = true)]
async fn whenever_the_server_dies_the_size_is_kept_and_the_store_is_sound() {
    for durability in BOTH {
        let mut sizes = Vec::new();
        for k in 1..40 {
            for (how, trap) in [Trap::CutBefore, Trap::CutAfter, Trap::CutHalf].into_iter().enumerate() {
                let (world, disk) = (World::new(durability, FencedBy::CreateOnly).await, CrashDisk::new(k));
                let what = format!("{durability:?}, {trap:?} at {k}");
                let (volume, faults) = world.grown(&disk).await;
                let promised = flushes(&volume).await;
                faults.set_options(FaultOptions::default());
                faults.set_trap(Counted::Mutations, faults.mutations() + k, trap);
                let flushed = flushes(&volume).await;
                let after = if k % 2 == 0 { disk.kill() } else { disk.crash() };
                let elsewhere = (k as usize + how).is_multiple_of(3);
                drop(volume);
                let volume = if elsewhere { world.take(2).await } else { world.open_again(&after).await };
                let size = volume.info().size;
                sizes.push(size);
                // With the disk of the server, or once a FLUSH promised it without.
                let is_kept = !elsewhere || flushed && durability == Durability::Store;
                assert!(size == LARGE || size == SMALL && !is_kept, "{what}: {size}");
                assert_eq!(mark_at(&volume, 0).await, 1, "{what}");
                if size == LARGE {
                    let found = mark_at(&volume, BEYOND).await;
                    let is_there = (promised || flushed) && is_kept;
                    assert!(found == 2 || found == 0 && !is_there, "{what}: {found}, {promised}, {flushed}");
                }
                assert!(elsewhere || notes(&after).await == 0, "{what}: a size is still noted");
                world.close(volume, size).await;
            }
        }
        assert!(sizes.contains(&SMALL) && sizes.contains(&LARGE), "{sizes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_displaced_meanwhile_makes_nothing_larger() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let (world, disk) = (World::new(Durability::Journal, fenced_by).await, CrashDisk::new(1));
        let (volume, faults) = world.grown(&disk).await;
        let other = world.take(2).await;
        assert_eq!(other.info().size, SMALL);
        faults.set_options(FaultOptions::default());
        while volume.status().ended.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(matches!(volume.flush().await, Err(DeviceError::Fenced(_))));
        // And what is noted is of an epoch that is over, also if the first server takes the volume back.
        drop(volume);
        let back = OpenFlags { takeover: true, accept_loss: true, drop_journal: true, ..OpenFlags::default() };
        let (volume, _) = world.open(1, &disk.kill(), back).await.unwrap();
        drop(other);
        world.close(volume, SMALL).await;
    }
}

/// Whoever makes it smaller waits for commits, and whoever makes it larger holds them back: never both.
#[tokio::test(start_paused = true)]
async fn it_becomes_larger_before_or_after_it_becomes_smaller() {
    let (mut refused, mut grown) = (0, 0);
    for seconds in 0..90 {
        let (world, disk) = (World::new(Durability::Store, FencedBy::CreateOnly).await, CrashDisk::new(1));
        let (volume, faults) = world.open(1, &disk, OpenFlags::default()).await.unwrap();
        write(&volume, 0, 1).await;
        faults.set_options(FaultOptions { delay_min: Duration::from_secs(5), ..FaultOptions::default() });
        let smaller = tokio::time::timeout(Duration::from_secs(600), volume.shrink(SMALL / 2, false));
        let larger = async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            volume.grow(LARGE, Duration::ZERO).await
        };
        let (smaller, larger) = tokio::join!(smaller, larger);
        let smaller = smaller.expect("they wait for each other");
        let size = if larger.is_ok() { LARGE } else { SMALL / 2 };
        assert!(smaller.is_ok() || larger.is_ok(), "after {seconds} s: {smaller:?}, {larger:?}");
        assert_eq!(volume.info().size, size, "after {seconds} s: {smaller:?}, {larger:?}");
        refused += u32::from(larger.is_err());
        grown += u32::from(larger.is_ok());
        faults.set_options(FaultOptions::default());
        settled(&volume).await;
        world.close(volume, size).await;
    }
    assert!(refused > 0 && grown > 0, "{refused}, {grown}");
}

#[tokio::test(start_paused = true)]
async fn a_note_that_went_bad_is_not_taken_for_none() {
    let (world, disk) = (World::new(Durability::Journal, FencedBy::CreateOnly).await, CrashDisk::new(1));
    drop(world.grown(&disk).await);
    let disk = disk.kill();
    assert!(disk.cut("growing-0000000000000001", 10));
    let refused = world.open(1, &disk, OpenFlags::default()).await.unwrap_err().to_string();
    assert!(
        refused.contains("growing-0000000000000001 is damaged") && refused.contains("--accept-rollback"),
        "{refused}"
    );
    let (volume, _) = world.open(1, &disk, OpenFlags { accept_rollback: true, ..OpenFlags::default() }).await.unwrap();
    world.close(volume, SMALL).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_no_note_leaves_the_size() {
    let (world, disk) = (World::new(Durability::Store, FencedBy::CreateOnly).await, CrashDisk::new(1));
    let volume = world.open_again(&disk).await;
    disk.limit_bytes(disk.stored_bytes());
    let refused = volume.grow(LARGE, Duration::ZERO).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be noted in /crash-disk, and stays"), "{refused}");
    assert_eq!((volume.info().size, volume.status().size_owed), (SMALL, false));
    // Nothing is asked for any more.
    disk.limit_bytes(u64::MAX);
    volume.shrink(SMALL / 2, false).await.unwrap();
    world.close(volume, SMALL / 2).await;
}
