//! Snapshots: what was is read as it was, whatever happens to the head, and what only a snapshot needed goes with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

#[path = "support/compared.rs"]
#[allow(dead_code)]
mod compared;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::{Allocation, Device, DeviceError};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{self, Key, ListPage, Store};
use ashlar::volume::{self, Budget, CreateOptions, OpenFlags, Options, Outside, Past, Volume, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 512;
const SIZE: u64 = BLOCKS * BLOCK;

/// A store whose GETs take a second, and whose checkpoints take three: whoever reads a lot is overtaken by what is written, and that by more.
#[derive(Debug)]
struct SlowGets(Arc<MemoryStore>);

#[async_trait]
impl Store for SlowGets {
    fn url(&self) -> String {
        self.0.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> store::Result<()> {
        if key.as_str().contains("/checkpoints/") {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        self.0.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> store::Result<Bytes> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> store::Result<Bytes> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> store::Result<ListPage> {
        self.0.list(prefix, start_after).await
    }

    async fn list_top(&self) -> store::Result<Vec<String>> {
        self.0.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> store::Result<()> {
        self.0.delete(keys).await
    }
}

/// A store with one volume of small segments, and the disk of its server.
struct World {
    store: Arc<MemoryStore>,
    disk: CrashDisk,
    random: Random,
    options: Options,
    /// What is between its server and the store.
    way: Way,
}

/// The way of a server to the store.
#[derive(Clone, Copy)]
enum Way {
    None,
    Far,
    SlowGets,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

impl World {
    async fn new(seed: u64) -> World {
        let (store, random) = (Arc::new(MemoryStore::default()), Random::seeded(seed));
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name(), options).await.unwrap();
        let mut options = Options {
            segment_size: 64 << 10,
            segment_size_max: 64 << 10,
            checkpoint_bytes: 512 << 10,
            // Some maps are counted exactly, others only when runs are merged.
            map_memory: if seed.is_multiple_of(2) { 64 << 10 } else { 16 << 20 },
            ..Options::default()
        };
        options.gc.garbage_min = 0;
        World { store, disk: CrashDisk::new(seed), random, options, way: Way::None }
    }

    fn outside(&self, cache: u64) -> Outside {
        let millis = Duration::from_millis;
        let faults = FaultOptions { delay_min: millis(5), delay_spread: millis(20), ..FaultOptions::default() };
        let store: Arc<dyn Store> = match self.way {
            Way::None => self.store.clone(),
            Way::Far => Arc::new(FaultyStore::new(self.store.clone(), faults, self.random.clone())),
            Way::SlowGets => Arc::new(SlowGets(self.store.clone())),
        };
        Outside {
            cache: Arc::new(BlockCache::in_memory(cache)),
            ..outside::plain(store, Arc::new(self.disk.clone()), self.random.clone())
        }
    }

    async fn open(&self, cache: u64) -> Arc<Volume> {
        let journal = journal::Options::default();
        Volume::open(self.outside(cache), &name(), self.options.clone(), journal, OpenFlags::default()).await.unwrap()
    }

    /// What the volume holds.
    async fn open_and_close(&self) -> Vec<u8> {
        let volume = self.open(0).await;
        let all = all_of(&*volume).await;
        volume.close().await.unwrap();
        all
    }

    async fn roll_back(&self, snapshot: &str, before: &str) -> Result<(), volume::VolumeError> {
        let flags = OpenFlags::default();
        let (options, journal) = (self.options.clone(), journal::Options::default());
        let to = (snapshot, label(before));
        Volume::roll_back(self.outside(0), &name(), options, journal, flags, to).await.map(|_| ())
    }

    async fn past(&self, snapshot: &str) -> Result<Past, volume::VolumeError> {
        self.past_through(self.store.clone(), snapshot).await
    }

    async fn past_through(&self, store: Arc<dyn Store>, snapshot: &str) -> Result<Past, volume::VolumeError> {
        let cache = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        Past::open(store, &name(), snapshot, &self.options, &Budget::default(), cache, &Secrets::default()).await
    }

    /// Deletes all snapshots and closes the volume: the space of what nobody needs comes back.
    async fn all_goes_but_the_head(&self, volume: &Volume) {
        for kept in volume.snapshots() {
            volume.delete_snapshot(&kept.label.name).await.unwrap();
        }
        // A write now and then lets checkpoints come that find what died.
        for _ in 0..4 {
            volume.merge_map();
            volume.write(0, noise(&self.random, 1).into(), true).await.unwrap();
            tokio::time::sleep(Duration::from_secs(300)).await;
        }
        let live = needed_by(&all_of(volume).await);
        assert!(self.stored() * 10 <= live * 13 + 10 * (256 << 10), "{} stored for {live}", self.stored());
        volume.close().await.unwrap();
        self.is_clean().await;
    }

    async fn is_clean(&self) {
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }

    fn stored(&self) -> u64 {
        let segments = |key: &str| key.contains("/segments/");
        self.store
            .objects()
            .iter()
            .filter(|(key, _)| segments(key.as_str()))
            .map(|(_, object)| object.len() as u64)
            .sum()
    }
}

fn label(name: &str) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, keep_until_unix_millis: 0, ..Label::default() }
}

async fn all_of(device: &dyn Device) -> Vec<u8> {
    device.read(0, SIZE as u32).await.unwrap().concat().to_vec()
}

fn noise(random: &Random, blocks: u64) -> Vec<u8> {
    (0..blocks * BLOCK / 64).flat_map(|_| random.bytes::<64>()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_what_was_when_it_was_taken() {
    let world = World::new(1).await;
    let volume = world.open(0).await;
    let before = Bytes::from(noise(&world.random, 64));
    volume.write(0, before.clone(), false).await.unwrap();
    volume.take_snapshot(label("monday")).await.unwrap();
    volume.write(0, Bytes::from(noise(&world.random, 32)), false).await.unwrap();
    volume.trim(32 * BLOCK, 16 * BLOCK, false).await.unwrap();
    // Nothing has changed since: there is one all the same.
    volume.take_snapshot(label("tuesday")).await.unwrap();
    volume.take_snapshot(label("wednesday")).await.unwrap();
    let told = volume.take_snapshot(label("tuesday")).await.unwrap_err().to_string();
    assert!(told.contains("has a snapshot \"tuesday\" already"), "{told}");
    let past = world.past("monday").await.unwrap();
    assert_eq!(all_of(&past).await[..before.len()], before[..]);
    assert!(past.info().read_only);
    assert!(matches!(past.write(0, before.clone(), false).await, Err(DeviceError::ReadOnly(_))));
    let runs = past.extents(0, SIZE, 10).await.unwrap();
    assert_eq!(
        runs.iter().map(|run| (run.len, run.allocation)).collect::<Vec<_>>()[..2],
        [(64 * BLOCK, Allocation::Data), (SIZE - 64 * BLOCK, Allocation::Hole)]
    );
    let [tuesday, wednesday] = [world.past("tuesday").await.unwrap(), world.past("wednesday").await.unwrap()];
    let now = all_of(&*volume).await;
    assert_eq!((all_of(&tuesday).await, all_of(&wednesday).await), (now.clone(), now));
    let told = world.past("sunday").await.unwrap_err().to_string();
    assert!(told.contains("no snapshot \"sunday\"; it has monday, tuesday, wednesday"), "{told}");
    volume.rename_snapshot("monday", "first").await.unwrap();
    volume.delete_snapshot("tuesday").await.unwrap();
    volume.close().await.unwrap();
    let names: Vec<String> = world.open(0).await.snapshots().into_iter().map(|kept| kept.label.name).collect();
    assert_eq!(names, ["first", "wednesday"]);
    assert_eq!(all_of(&world.past("first").await.unwrap()).await[..before.len()], before[..]);
    world.is_clean().await;
}

/// Reading one takes nothing: credentials that can only GET and LIST are enough.
#[tokio::test(start_paused = true)]
async fn the_past_is_read_without_a_change_to_the_store() {
    let world = World::new(3).await;
    let volume = world.open(0).await;
    volume.write(0, Bytes::from(noise(&world.random, 64)), false).await.unwrap();
    volume.take_snapshot(label("a")).await.unwrap();
    let faulty = FaultyStore::new(world.store.clone(), FaultOptions::default(), Random::seeded(1));
    let faults = faulty.faults();
    let past = world.past_through(Arc::new(faulty), "a").await.unwrap();
    all_of(&past).await;
    assert_eq!(faults.mutations(), 0);
}

/// A volume whose every block was changed forgets its map at once, but not while a snapshot needs it.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_trimmed_whole_keeps_what_a_snapshot_needs() {
    for seed in 0..2 {
        let world = World::new(seed).await;
        let volume = world.open(0).await;
        let before = noise(&world.random, BLOCKS);
        volume.write(0, before.clone().into(), false).await.unwrap();
        volume.take_snapshot(label("before")).await.unwrap();
        volume.trim(0, SIZE, true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(all_of(&world.past("before").await.unwrap()).await == before);
        world.is_clean().await;
        volume.delete_snapshot("before").await.unwrap();
        volume.write(0, vec![1; BLOCK as usize].into(), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(world.stored() < SIZE / 16, "{} stored", world.stored());
        volume.close().await.unwrap();
        world.is_clean().await;
    }
}

/// A checkpoint stands for a place of the log: what was written since the last one must not keep the next waiting for as long as it may wait itself.
#[tokio::test(start_paused = true)]
async fn snapshots_are_changed_at_once_whatever_waits_to_be_stored() {
    let mut world = World::new(5).await;
    world.options.writeback_delay = Duration::from_secs(3600);
    let volume = world.open(0).await;
    let begun = tokio::time::Instant::now();
    for name in ["a", "b"] {
        volume.write(0, Bytes::from(noise(&world.random, 4)), false).await.unwrap();
        volume.take_snapshot(label(name)).await.unwrap();
    }
    volume.write(0, Bytes::from(noise(&world.random, 4)), false).await.unwrap();
    volume.rename_snapshot("a", "c").await.unwrap();
    volume.write(0, Bytes::from(noise(&world.random, 4)), false).await.unwrap();
    volume.delete_snapshot("b").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(volume.snapshots().len(), 1);
    volume.close().await.unwrap();
}

/// What every block was, in the head and in each snapshot: the number of a write, 0 where there is nothing.
#[derive(Default)]
struct Record {
    head: Vec<u64>,
    snapshots: BTreeMap<String, Vec<u64>>,
    writes: u64,
}

impl Record {
    /// Bytes that a snapshot has, each once, and the head has not.
    fn held(&self) -> u64 {
        let all = self.snapshots.values().flat_map(|blocks| blocks.iter().enumerate());
        let held: BTreeSet<_> = all.filter(|(block, write)| **write > 0 && self.head[*block] != **write).collect();
        held.len() as u64 * BLOCK
    }
}

/// As a record of all writes says it, by the server, and by whoever looks at the store. What an opening does not know is not told before it was read.
#[tokio::test(start_paused = true)]
async fn what_snapshots_hold_is_what_the_volume_had_and_has_no_more() {
    // Of maps that are counted exactly.
    for seed in [1, 3] {
        let world = World::new(seed).await;
        let mut record = Record { head: vec![0; BLOCKS as usize], ..Record::default() };
        let mut volume = world.open(0).await;
        let (mut most, mut absent) = (0, 0);
        for step in 0..400 {
            let (first, count) = (world.random.below(BLOCKS - 8), 1 + world.random.below(8));
            let blocks = first as usize..(first + count) as usize;
            match world.random.below(40) {
                0 => {
                    volume.close().await.unwrap();
                    let store: Arc<dyn Store> = world.store.clone();
                    let info = volume::inspect(&store, &name(), &Secrets::default()).await.unwrap();
                    assert_eq!(info.snapshots_held_bytes, record.held(), "seed {seed}, step {step}");
                    volume = world.open(0).await;
                }
                1 | 2 => {
                    volume.take_snapshot(label(&format!("s{step}"))).await.unwrap();
                    record.snapshots.insert(format!("s{step}"), record.head.clone());
                }
                3 if !record.snapshots.is_empty() => {
                    let gone = world.random.below(record.snapshots.len() as u64) as usize;
                    let gone = record.snapshots.keys().nth(gone).unwrap().clone();
                    volume.delete_snapshot(&gone).await.unwrap();
                    record.snapshots.remove(&gone);
                }
                4 => tokio::time::sleep(Duration::from_secs(60)).await,
                5 => {
                    volume.trim(first * BLOCK, count * BLOCK, true).await.unwrap();
                    record.head[blocks].fill(0);
                }
                _ => {
                    volume.write(first * BLOCK, noise(&world.random, count).into(), true).await.unwrap();
                    record.writes += 1;
                    record.head[blocks].fill(record.writes);
                }
            }
            match volume.status().snapshots_held_bytes {
                Some(held) => assert_eq!(held, record.held(), "seed {seed}, step {step}"),
                None => absent += 1,
            }
            most = most.max(record.held());
        }
        assert!(most > SIZE / 4 && absent > 0, "{most} bytes at most, not known {absent} times");
        // A checkpoint or two later all is known.
        for _ in 0..2 {
            volume.write(0, noise(&world.random, 1).into(), true).await.unwrap();
            record.writes += 1;
            record.head[0] = record.writes;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(volume.status().snapshots_held_bytes, Some(record.held()));
        volume.close().await.unwrap();
    }
}

/// For whoever only looks on, without a request: how many snapshots there are, when the newest was taken, and what it keeps.
#[tokio::test(start_paused = true)]
async fn the_status_says_how_old_the_newest_snapshot_is_and_what_it_keeps() {
    let world = World::new(1).await;
    let volume = world.open(0).await;
    let told = |volume: &Volume| {
        let status = volume.status();
        (status.snapshots, status.newest_snapshot_unix_millis, status.newest_snapshot_held_bytes / BLOCK)
    };
    volume.write(0, Bytes::from(noise(&world.random, 8)), true).await.unwrap();
    assert_eq!(told(&volume), (0, 0, 0));
    volume.take_snapshot(Label { taken_unix_millis: 1000, ..label("a") }).await.unwrap();
    assert_eq!(told(&volume), (1, 1000, 0));
    // Of three of its blocks there is something newer, and then something newer still.
    for _ in 0..2 {
        volume.write(0, Bytes::from(noise(&world.random, 3)), true).await.unwrap();
        assert_eq!(told(&volume), (1, 1000, 3));
    }
    volume.take_snapshot(Label { taken_unix_millis: 2000, ..label("b") }).await.unwrap();
    assert_eq!(told(&volume), (2, 2000, 0));
    volume.trim(0, BLOCK, true).await.unwrap();
    assert_eq!(told(&volume), (2, 2000, 1));
    volume.close().await.unwrap();
    let volume = world.open(0).await;
    assert_eq!(told(&volume), (2, 2000, 1), "as of the last checkpoint");
    // What the older one keeps is the newest's again.
    volume.delete_snapshot("b").await.unwrap();
    assert_eq!(told(&volume), (1, 1000, 3));
    volume.close().await.unwrap();
}

/// Whoever asked for a snapshot went away, and asks again: the first request is still under way, and there is one snapshot of that name.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_asked_for_again_is_taken_once() {
    let world = World::new(1).await;
    let volume = world.open(0).await;
    volume.write(0, Bytes::from(noise(&world.random, 4)), true).await.unwrap();
    for _ in 0..3 {
        let asking = volume.take_snapshot(label("a"));
        // It is asked for, and nobody waits for the answer.
        assert!(asking.now_or_never().is_none_or(|done| done.is_err()));
    }
    let told = volume.take_snapshot(label("a")).await.unwrap_err().to_string();
    assert!(told.contains("already"), "{told}");
    assert_eq!(volume.snapshots().len(), 1);
    volume.write(0, Bytes::from(noise(&world.random, 4)), true).await.unwrap();
    volume.close().await.unwrap();
}

/// Different contents of one block that somebody needs, over all blocks, in bytes.
fn needed<'a>(states: impl Iterator<Item = &'a Vec<u8>>) -> u64 {
    let block = BLOCK as usize;
    let mut contents: Vec<BTreeSet<&[u8]>> = vec![BTreeSet::new(); BLOCKS as usize];
    for state in states {
        for (at, data) in state.chunks(block).enumerate().filter(|(_, data)| data.iter().any(|byte| *byte != 0)) {
            contents[at].insert(data);
        }
    }
    contents.iter().map(|of| of.len() as u64).sum::<u64>() * BLOCK
}

/// Collection goes on in what snapshots need: what neither they nor the head need does not stay because something beside it is needed.
#[tokio::test(start_paused = true)]
async fn space_comes_back_while_snapshots_are_kept() {
    for seed in 0..4 {
        let world = World::new(seed).await;
        let random = Random::seeded(seed ^ 0xace);
        let volume = world.open(1 << 20).await;
        let (mut head, mut kept) = (vec![0; SIZE as usize], BTreeMap::new());
        // Readers that stay while what they read is put elsewhere.
        let mut readers = Vec::new();
        for round in 0..24 {
            for _ in 0..96 {
                // One half is overwritten more often than the other.
                let start = random.below(BLOCKS) >> random.below(2);
                let data = noise(&random, 1);
                head[(start * BLOCK) as usize..((start + 1) * BLOCK) as usize].copy_from_slice(&data);
                volume.write(start * BLOCK, data.into(), false).await.unwrap();
            }
            let name = format!("s{round:02}");
            volume.take_snapshot(label(&name)).await.unwrap();
            kept.insert(name.clone(), head.clone());
            if round % 8 == 7 {
                let way = Arc::new(SlowGets(world.store.clone()));
                readers.push((name.clone(), world.past_through(way, &name).await.unwrap()));
            }
            tokio::time::sleep(Duration::from_secs(random.below(40))).await;
        }
        // Most go, as a schedule thins them out.
        let stays: BTreeSet<&String> = readers.iter().map(|(name, _)| name).collect();
        for name in kept.keys().filter(|name| !stays.contains(name)) {
            volume.delete_snapshot(name).await.unwrap();
        }
        kept.retain(|name, _| stays.contains(name));
        for _ in 0..4 {
            volume.merge_map();
            let data = noise(&random, 1);
            head[..BLOCK as usize].copy_from_slice(&data);
            volume.write(0, data.into(), true).await.unwrap();
            tokio::time::sleep(Duration::from_secs(300)).await;
        }
        let needed = needed(kept.values().chain([&head]));
        let stored = world.stored();
        assert!(
            stored * 10 <= needed * 13 + 10 * (256 << 10),
            "seed {seed}: {stored} stored for {needed} that are needed"
        );
        for (name, past) in &readers {
            // Several reads at once find out that it was put elsewhere.
            let reads = (0..SIZE).step_by(1 << 18).map(|at| past.read(at, 1 << 18));
            let read = join_all(reads).await.into_iter().map(|read| read.unwrap().concat()).collect::<Vec<_>>();
            assert!(read.concat() == kept[name], "seed {seed}, reader of {name}");
        }
        for (name, was) in &kept {
            assert!(all_of(&world.past(name).await.unwrap()).await == *was, "seed {seed}, {name}");
        }
        assert!(all_of(&*volume).await == head, "seed {seed}");
        world.is_clean().await;
        volume.close().await.unwrap();
        let volume = world.open(0).await;
        assert!(all_of(&*volume).await == head, "seed {seed}, opened again");
        world.all_goes_but_the_head(&volume).await;
    }
}

fn needed_by(head: &Vec<u8>) -> u64 {
    needed(std::iter::once(head))
}

/// Any history: every snapshot stays what it was, and so does the head; and in the end all of the space comes back.
async fn history(seed: u64, steps: u64) {
    let mut world = World::new(seed).await;
    world.way = [Way::None, Way::Far, Way::SlowGets][seed as usize % 3];
    let random = Random::seeded(seed ^ 0x5eed);
    let mut volume = world.open(1 << 20).await;
    let mut head = vec![0; SIZE as usize];
    let mut kept: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in 0..steps {
        match random.below(20) {
            0 if kept.len() < 6 => {
                let name = format!("s{step}");
                volume.take_snapshot(label(&name)).await.unwrap();
                kept.insert(name, head.clone());
            }
            1 if !kept.is_empty() => {
                let name = kept.keys().nth(random.below(kept.len() as u64) as usize).unwrap().clone();
                volume.delete_snapshot(&name).await.unwrap();
                kept.remove(&name);
            }
            2 => {
                let (start, count) = (random.below(BLOCKS), 1 + random.below(BLOCKS / 2));
                let count = count.min(BLOCKS - start);
                volume.trim(start * BLOCK, count * BLOCK, false).await.unwrap();
                head[(start * BLOCK) as usize..((start + count) * BLOCK) as usize].fill(0);
            }
            3 => {
                volume.flush().await.unwrap();
                if random.below(2) == 0 {
                    volume.close().await.unwrap();
                } else {
                    // It dies: the journal has the rest.
                    world.disk = world.disk.kill();
                }
                drop(volume);
                volume = world.open(1 << 20).await;
            }
            4 => tokio::time::sleep(Duration::from_secs(random.below(30))).await,
            5 if !kept.is_empty() && kept.len() < 8 => {
                volume.close().await.unwrap();
                drop(volume);
                let to = kept.keys().nth(random.below(kept.len() as u64) as usize).unwrap().clone();
                let before = format!("b{step}");
                world.roll_back(&to, &before).await.unwrap();
                kept.insert(before, std::mem::replace(&mut head, kept[&to].clone()));
                volume = world.open(1 << 20).await;
            }
            _ => {
                for _ in 0..1 + random.below(12) {
                    let start = random.below(BLOCKS);
                    let count = (1 + random.below(24)).min(BLOCKS - start);
                    let data = noise(&random, count);
                    head[(start * BLOCK) as usize..((start + count) * BLOCK) as usize].copy_from_slice(&data);
                    volume.write(start * BLOCK, data.into(), false).await.unwrap();
                }
            }
        }
        if step % 16 == 15 || step + 1 == steps {
            assert_eq!(all_of(&*volume).await, head, "seed {seed}, step {step}");
            compared::knows_what_has_changed(&*volume, &head, &kept).await;
            for (name, was) in &kept {
                let past = world.past(name).await.unwrap();
                assert_eq!(all_of(&past).await, *was, "seed {seed}, step {step}, snapshot {name}");
            }
        }
    }
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    volume.save().await.unwrap();
    world.is_clean().await;
    for (name, was) in &kept {
        let past = world.past(name).await.unwrap();
        assert_eq!(all_of(&past).await, *was, "seed {seed}, at the end, snapshot {name}");
        compared::knows_what_has_changed(&past, was, &kept).await;
    }
    for name in kept.keys() {
        volume.delete_snapshot(name).await.unwrap();
    }
    volume.merge_map();
    // A write now and then lets checkpoints come that find what died.
    for _ in 0..4 {
        volume.write(0, Bytes::from(vec![7; BLOCK as usize]), true).await.unwrap();
        head[..BLOCK as usize].fill(7);
        tokio::time::sleep(Duration::from_secs(300)).await;
    }
    assert_eq!(all_of(&*volume).await, head);
    let live = head.chunks(BLOCK as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * BLOCK;
    assert!(world.stored() <= live * 3 / 2 + (256 << 10), "seed {seed}: {} stored for {live}", world.stored());
    volume.close().await.unwrap();
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_stay_what_they_were_whatever_happens() {
    let seeds = std::env::var("ASHLAR_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(10);
    for seed in 0..seeds {
        history(seed, 160).await;
    }
}

/// The old state becomes the newest, what was newest is a snapshot, and that can be gone back to as well.
#[tokio::test(start_paused = true)]
async fn a_volume_goes_back_and_forth() {
    for seed in 0..4 {
        let world = World::new(seed).await;
        let random = Random::seeded(seed);
        let volume = world.open(0).await;
        let mut states = Vec::new();
        for name in ["a", "b", "c"] {
            volume.write(random.below(64) * BLOCK, noise(&random, 200).into(), false).await.unwrap();
            volume.trim((300 + random.below(50)) * BLOCK, 50 * BLOCK, false).await.unwrap();
            states.push(all_of(&*volume).await);
            volume.take_snapshot(label(name)).await.unwrap();
        }
        volume.write(random.below(64) * BLOCK, noise(&random, 100).into(), false).await.unwrap();
        let newest = all_of(&*volume).await;
        let line = volume.line().2;
        volume.close().await.unwrap();
        let told = world.roll_back("x", "d").await.unwrap_err().to_string();
        assert!(told.contains("no snapshot \"x\"; it has a, b, c"), "{told}");
        assert_eq!(world.open_and_close().await, newest);
        world.roll_back("a", "d").await.unwrap();
        world.is_clean().await;
        assert_eq!(world.open_and_close().await, states[0]);
        let volume = world.open(0).await;
        assert!(volume.line().2 > line, "no device goes on with it");
        volume.write(0, noise(&random, 300).into(), false).await.unwrap();
        let fourth = all_of(&*volume).await;
        volume.close().await.unwrap();
        world.roll_back("d", "e").await.unwrap();
        assert_eq!(world.open_and_close().await, newest);
        world.roll_back("a", "f").await.unwrap();
        world.roll_back("e", "g").await.unwrap();
        assert_eq!(world.open_and_close().await, fourth);
        for (name, state) in [("a", &states[0]), ("b", &states[1]), ("c", &states[2]), ("d", &newest), ("e", &fourth)] {
            assert!(all_of(&world.past(name).await.unwrap()).await == *state, "seed {seed}, {name}");
        }
        world.is_clean().await;
        // Everything but the head goes, and its space comes back.
        let volume = world.open(0).await;
        world.all_goes_but_the_head(&volume).await;
    }
}

/// Whenever its server dies, the volume is what it was, or what it was to be.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_breaks_off_is_done_or_not_begun() {
    let (mut done, mut step) = (BTreeSet::new(), 0);
    while !done.contains("all of it") {
        let mut world = World { way: Way::Far, ..World::new(1).await };
        let random = Random::seeded(7);
        let volume = world.open(0).await;
        volume.write(0, noise(&random, 100).into(), false).await.unwrap();
        let past = all_of(&*volume).await;
        volume.take_snapshot(label("a")).await.unwrap();
        volume.write(50 * BLOCK, noise(&random, 200).into(), false).await.unwrap();
        let newest = all_of(&*volume).await;
        volume.close().await.unwrap();
        step += 1;
        assert!(step < 1000, "a rollback does not end");
        let within = Duration::from_millis(step * 15);
        let rolled = tokio::time::timeout(within, world.roll_back("a", "d")).await;
        world.disk = world.disk.kill();
        world.is_clean().await;
        let now = world.open_and_close().await;
        done.insert(match rolled {
            Ok(rolled) => {
                rolled.unwrap();
                assert!(now == past);
                "all of it"
            }
            Err(_) if now == past => "it, but for the end",
            Err(_) => {
                assert!(now == newest, "after {within:?}");
                "nothing"
            }
        });
        world.is_clean().await;
        assert!(all_of(&world.past("a").await.unwrap()).await == past);
        if let Ok(kept) = world.past("d").await {
            assert!(all_of(&kept).await == newest);
        }
    }
    assert_eq!(done.len(), 3, "{done:?}");
}

/// A version that is being taken while collection looks for what is needed may be the only one that needs what is overwritten before it is there.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind_that_only_a_version_needs_which_is_being_taken() {
    for seed in 0..6 {
        let world = World { way: Way::SlowGets, ..World::new(seed).await };
        let random = Random::seeded(seed ^ 0xfee);
        let volume = world.open(1 << 20).await;
        let (mut head, mut kept) = (vec![0; SIZE as usize], BTreeMap::<String, Vec<u8>>::new());
        for round in 0..60 {
            let name = format!("s{round:02}");
            let mut after = head.clone();
            let changing = async {
                // The checkpoint is on its way by then.
                tokio::time::sleep(Duration::from_millis(200 + random.below(2000))).await;
                for _ in 0..32 {
                    let start = random.below(BLOCKS / 2);
                    let data = noise(&random, 1);
                    after[(start * BLOCK) as usize..((start + 1) * BLOCK) as usize].copy_from_slice(&data);
                    volume.write(start * BLOCK, data.into(), false).await.unwrap();
                }
                volume.save().await.unwrap();
            };
            let (taken, ()) = tokio::join!(volume.take_snapshot(label(&name)), changing);
            taken.unwrap();
            kept.insert(name, std::mem::replace(&mut head, after));
            while kept.len() > 4 {
                let name = kept.keys().nth(random.below(4) as usize).unwrap().clone();
                volume.delete_snapshot(&name).await.unwrap();
                kept.remove(&name);
            }
            tokio::time::sleep(Duration::from_millis(random.below(3000))).await;
            if round % 10 == 9 {
                for (name, was) in &kept {
                    assert!(all_of(&world.past(name).await.unwrap()).await == *was, "seed {seed}, {round}: {name}");
                }
            }
        }
        assert!(all_of(&*volume).await == head, "seed {seed}");
        volume.close().await.unwrap();
        world.is_clean().await;
    }
}
