//! What has changed in a volume since a snapshot of it, without reading data: true at every stage of a change's way, and little work at a time
//! however dense the maps are. That nothing is called unchanged that is not, whatever happens, is held against histories in `volume_snapshots` and
//! `volume_clones`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

#[path = "support/compared.rs"]
#[allow(dead_code)]
mod compared;

use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::{Device, RUNS_MAX, Version};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::{Follower, Glass};
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::Store;
use ashlar::store::memory::MemoryStore;
use ashlar::units::BlockSize;
use ashlar::volume::{self, Budget, CreateOptions, OpenFlags, Options, Outside, Past, Volume, VolumeName};
use bytes::Bytes;

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;

struct World {
    store: Arc<MemoryStore>,
    disk: Arc<CrashDisk>,
    options: Options,
}

impl World {
    async fn new(size: u64, block_size: u64, options: Options) -> World {
        let store = Arc::new(MemoryStore::default());
        let created =
            CreateOptions { size, block_size: BlockSize::new(block_size).unwrap(), ..CreateOptions::default() };
        volume::create(&*store, &Random::seeded(7), &Clock::System, &name(), created).await.unwrap();
        World { store, disk: Arc::new(CrashDisk::new(7)), options }
    }

    async fn open(&self) -> Arc<Volume> {
        let outside = Outside {
            budget: Budget::new(&self.options),
            ..outside::plain(self.store.clone(), self.disk.clone(), Random::seeded(8))
        };
        let options = self.options.clone();
        Volume::open(outside, &name(), options, journal::Options::default(), OpenFlags::default()).await.unwrap()
    }

    fn near(&self) -> (Arc<BlockCache>, Workers) {
        (Arc::new(BlockCache::in_memory(0)), Workers::Inline)
    }

    async fn past(&self, snapshot: &str) -> Past {
        let store: Arc<dyn Store> = self.store.clone();
        let (budget, secrets) = (Budget::new(&self.options), Secrets::default());
        Past::open(store, &name(), snapshot, &self.options, &budget, self.near(), &secrets).await.unwrap()
    }

    async fn follow(&self) -> Follower {
        let glass = Glass {
            store: self.store.clone(),
            options: self.options.clone(),
            budget: Budget::new(&self.options),
            near: self.near(),
            secrets: Secrets::default(),
        };
        Follower::open(glass, &name(), Duration::from_secs(1)).await.unwrap()
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn label(name: &str) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, keep_until_unix_millis: 0, ..Label::default() }
}

fn blocks(of: u8, count: u64) -> Bytes {
    vec![of; (count * BLOCK) as usize].into()
}

/// The blocks that are said to have changed.
async fn changed(device: &dyn Device, since: &str) -> Vec<u64> {
    let (mut at, mut changed) = (0, Vec::new());
    for part in compared::compared(device, since, 1000).await {
        assert!(part.len.is_multiple_of(BLOCK));
        changed.extend((at / BLOCK..(at + part.len) / BLOCK).filter(|_| part.differs));
        at += part.len;
    }
    changed
}

async fn version(device: &dyn Device, name: &str) -> Version {
    device.versions().await.unwrap().into_iter().find(|version| version.name == name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_is_known_from_the_buffer_to_the_store() {
    let world = World::new(SIZE, BLOCK, Options::default()).await;
    let mut volume = world.open().await;
    volume.write(0, blocks(1, 16), false).await.unwrap();
    volume.write_zeroes(32 * BLOCK, 4 * BLOCK, true, false).await.unwrap();
    volume.take_snapshot(label("monday")).await.unwrap();
    assert_eq!(changed(&*volume, "monday").await, Vec::<u64>::new());
    volume.write(3 * BLOCK, blocks(2, 1), false).await.unwrap();
    volume.write(5 * BLOCK + 7, vec![2; 3].into(), false).await.unwrap();
    volume.trim(8 * BLOCK, 2 * BLOCK, false).await.unwrap();
    volume.trim(33 * BLOCK, BLOCK, false).await.unwrap();
    volume.write_zeroes(14 * BLOCK, 4 * BLOCK, false, false).await.unwrap();
    volume.write(100 * BLOCK, blocks(2, 1), false).await.unwrap();
    // Blocks 16 and 17 were holes, and are. While that is in the buffer nobody looks.
    let buffered = [3, 5, 8, 9, 14, 15, 16, 17, 33, 100];
    let settled = [3, 5, 8, 9, 14, 15, 33, 100];
    for stage in ["in the buffer", "committed", "opened again"] {
        let expected = if stage == "in the buffer" { &buffered[..] } else { &settled };
        assert_eq!(changed(&*volume, "monday").await, expected, "{stage}");
        let monday = version(&*volume, "monday").await;
        let part = volume.compare(&monday, 3 * BLOCK - 1, BLOCK + 2, 9).await.unwrap();
        let lens: Vec<_> = part.iter().map(|part| (part.len, part.differs)).collect();
        assert_eq!(lens, [(1, false), (BLOCK, true), (1, false)], "{stage}");
        if stage == "in the buffer" {
            volume.flush().await.unwrap();
        } else {
            volume.close().await.unwrap();
            volume = world.open().await;
        }
    }
    volume.take_snapshot(label("tuesday")).await.unwrap();
    volume.write(0, blocks(3, 1), true).await.unwrap();
    assert_eq!(changed(&*volume, "tuesday").await, [0]);
    // Between two snapshots, whichever is asked.
    assert_eq!(changed(&world.past("tuesday").await, "monday").await, settled);
    assert_eq!(changed(&world.past("monday").await, "tuesday").await, settled);
    assert_eq!(changed(&world.past("monday").await, "monday").await, Vec::<u64>::new());
    // And of a volume that is only followed.
    volume.close().await.unwrap();
    let follower = world.follow().await;
    assert_eq!(changed(&follower, "tuesday").await, [0]);
}

/// What was larger or smaller then.
#[tokio::test(start_paused = true)]
async fn what_is_beyond_a_snapshots_end_has_changed_if_something_is_there() {
    let world = World::new(SIZE, BLOCK, Options::default()).await;
    let volume = world.open().await;
    volume.write(0, blocks(1, SIZE / BLOCK), true).await.unwrap();
    volume.take_snapshot(label("small")).await.unwrap();
    let description = volume::description::load(&*world.store, &name()).await.unwrap();
    let sealer = description.unlock(&Secrets::default()).await.unwrap();
    volume::resize::grow(&*world.store, &Random::seeded(9), &description, &sealer, 2 * SIZE).await.unwrap();
    volume.reload().await.unwrap();
    assert_eq!(changed(&*volume, "small").await, Vec::<u64>::new());
    volume.write(SIZE + 4 * BLOCK, blocks(1, 1), true).await.unwrap();
    assert_eq!(changed(&*volume, "small").await, [SIZE / BLOCK + 4]);
    volume.take_snapshot(label("large")).await.unwrap();
    volume.shrink(SIZE / 2, true).await.unwrap();
    assert_eq!(changed(&*volume, "large").await, Vec::<u64>::new());
    volume.close().await.unwrap();
}

/// Nobody gets an answer that is of another snapshot, or of none.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_deleted_is_an_error_and_one_that_was_renamed_is_not() {
    let world = World::new(SIZE, BLOCK, Options::default()).await;
    let volume = world.open().await;
    volume.write(0, blocks(1, 16), true).await.unwrap();
    for name in ["a", "b"] {
        volume.take_snapshot(label(name)).await.unwrap();
        volume.write(0, blocks(2, 1), true).await.unwrap();
    }
    let (a, b, past) = (version(&*volume, "a").await, version(&*volume, "b").await, world.past("b").await);
    for is_known in [false, true] {
        if is_known {
            volume.compare(&a, 0, SIZE, 9).await.unwrap();
        }
        volume.rename_snapshot(if is_known { "c" } else { "a" }, if is_known { "a" } else { "c" }).await.unwrap();
        assert!(volume.compare(&a, 0, SIZE, 9).await.unwrap()[0].differs);
    }
    volume.delete_snapshot("a").await.unwrap();
    volume.take_snapshot(label("a")).await.unwrap();
    volume.write(8 * BLOCK, blocks(2, 1), true).await.unwrap();
    let told = volume.compare(&a, 0, SIZE, 9).await.unwrap_err().to_string();
    assert_eq!(told, "snapshot a was deleted: what has changed since is not known any more");
    let told = past.compare(&a, 0, SIZE, 9).await.unwrap_err().to_string();
    assert_eq!(told, "snapshot a was deleted: what has changed since is not known any more");
    assert_ne!(version(&*volume, "a").await.number, a.number);
    assert_eq!((changed(&*volume, "a").await, changed(&*volume, "b").await), (vec![8], vec![0, 8]));
    // One that is there for its clones only cannot be named, and so it is gone.
    let (random, to) = (Random::seeded(9), VolumeName::new("w").unwrap());
    let clone = volume::clones::plan(&*world.store, &random, &to).await.unwrap();
    volume.register_clone(Some("b"), 1, clone).await.unwrap();
    volume.delete_snapshot("b").await.unwrap();
    assert!(volume.compare(&b, 0, SIZE, 9).await.unwrap_err().to_string().contains("snapshot b was deleted"));
    volume.close().await.unwrap();
    assert!(volume.compare(&version(&*world.open().await, "a").await, 0, SIZE, 9).await.is_err(), "it is closed");
}

/// Collection moves what only the head needs, and not what a snapshot has too: that stays the same.
#[tokio::test(start_paused = true)]
async fn what_collection_moves_has_not_changed() {
    let mut options = Options { segment_size: 64 << 10, segment_size_max: 64 << 10, ..Options::default() };
    options.gc.garbage_min = 0;
    let world = World::new(SIZE, BLOCK, options).await;
    let volume = world.open().await;
    let random = Random::seeded(5);
    let noise =
        |count: u64| Bytes::from((0..count * BLOCK / 64).flat_map(|_| random.bytes::<64>()).collect::<Vec<u8>>());
    volume.write(0, noise(SIZE / BLOCK), true).await.unwrap();
    // Of each segment most is dead before the snapshot.
    for block in (0..SIZE / BLOCK).filter(|block| block % 8 != 0) {
        volume.write(block * BLOCK, noise(1), false).await.unwrap();
    }
    volume.take_snapshot(label("then")).await.unwrap();
    for _ in 0..6 {
        volume.write(0, noise(1), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
    }
    assert!(volume.status().gc.segments_written > 0, "{:?}", volume.status().gc);
    assert_eq!(changed(&*volume, "then").await, [0]);
    volume.close().await.unwrap();
}

/// Neither map is loaded to compare them. Here every other block of 512 bytes was written then, and every third since, on pages of which a tenth of one may be in
/// memory.
#[tokio::test(start_paused = true)]
async fn dense_maps_are_compared_in_parts_and_never_loaded_whole() {
    const PART: u64 = 1 << 20;
    let size = 2 * (16384 * 512);
    let options = Options { map_memory: 160 << 10, segment_size: PART, ..Options::default() };
    let options = Options { total_map_memory: 2 * options.map_memory, ..options };
    let world = World::new(size, 512, options).await;
    let volume = world.open().await;
    let part: Bytes =
        (0..PART / 512).flat_map(|n| if n % 2 == 0 { [7; 512] } else { [0; 512] }).collect::<Vec<_>>().into();
    for at in (0..size).step_by(PART as usize) {
        volume.write(at, part.clone(), false).await.unwrap();
    }
    volume.take_snapshot(label("then")).await.unwrap();
    for block in (0..size / 512).step_by(3) {
        volume.write(block * 512, vec![8; 512].into(), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = world.open().await;
    let then = version(&*volume, "then").await;
    let (mut at, mut calls) = (0, 0);
    while at < size {
        let parts = volume.compare(&then, at, size - at, RUNS_MAX).await.unwrap();
        assert!(!parts.is_empty() && parts.len() <= RUNS_MAX);
        for part in parts {
            let first = at / 512;
            // A call may end in the middle of the two that are the same.
            assert!(part.differs == first.is_multiple_of(3) && part.len <= 1024, "{part:?} at block {first}");
            at += part.len;
        }
        calls += 1;
        let in_memory = volume.status().map_memory;
        assert!(in_memory <= 160 << 10, "{in_memory} bytes of map after {calls} calls");
    }
    assert!(calls <= 3 * size / 512 / RUNS_MAX as u64, "each call says much: {calls}");
    let asked = (0..16).map(|n| volume.compare(&then, n * (size / 16), size / 16, 100));
    assert!(futures::future::join_all(asked).await.into_iter().all(|parts| parts.unwrap().len() == 100));
    volume.close().await.unwrap();
}

/// All of 16 TiB that nobody wrote to is one answer.
#[tokio::test(start_paused = true)]
async fn nothing_has_changed_in_an_empty_volume_however_large() {
    let size = 16 << 40;
    let world = World::new(size, BLOCK, Options::default()).await;
    let volume = world.open().await;
    volume.take_snapshot(label("then")).await.unwrap();
    let then = version(&*volume, "then").await;
    let parts = volume.compare(&then, 0, size, 9).await.unwrap();
    assert_eq!((parts.len(), parts[0].len, parts[0].differs), (1, size, false));
    volume.write(3 << 40, blocks(1, 1), true).await.unwrap();
    let parts = volume.compare(&then, 0, size, 9).await.unwrap();
    assert_eq!(parts.iter().map(|part| part.len).collect::<Vec<_>>(), [3 << 40, BLOCK, size - (3 << 40) - BLOCK]);
}
