//! De-duplication: what is stored already is stored once, and is there for as long as anybody needs it, whatever becomes of those who wrote it first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::memory::MemoryStore;
use ashlar::store::{self, Key, ListPage, Store};
use ashlar::volume::{self, Budget, CreateOptions, OpenFlags, Options, Past, Volume, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 512;
const SIZE: u64 = BLOCKS * BLOCK;

/// A store in which PUTs of segments wait for their turn, and deletions for theirs.
#[derive(Debug)]
struct Turns {
    objects: Arc<MemoryStore>,
    turns: Semaphore,
    deletions: Semaphore,
}

/// So many turns that nobody waits.
const FREE: usize = 1 << 20;

async fn hold(turns: &Semaphore) {
    turns.acquire_many(turns.available_permits() as u32).await.unwrap().forget();
}

#[async_trait]
impl Store for Turns {
    fn url(&self) -> String {
        self.objects.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> store::Result<()> {
        if key.as_str().contains("/segments/") {
            self.turns.acquire().await.unwrap().forget();
        }
        self.objects.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> store::Result<Bytes> {
        self.objects.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> store::Result<Bytes> {
        self.objects.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> store::Result<ListPage> {
        self.objects.list(prefix, after).await
    }

    async fn list_top(&self) -> store::Result<Vec<String>> {
        self.objects.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> store::Result<()> {
        self.deletions.acquire().await.unwrap().forget();
        self.objects.delete(keys).await
    }
}

struct World {
    objects: Arc<MemoryStore>,
    store: Arc<Turns>,
    disk: CrashDisk,
    random: Random,
    options: Options,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn label(name: &str) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, keep_until_unix_millis: 0, ..Label::default() }
}

impl World {
    async fn new(seed: u64) -> World {
        let (objects, random) = (Arc::new(MemoryStore::default()), Random::seeded(seed));
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        volume::create(&*objects, &random, &Clock::System, &name(), options).await.unwrap();
        let mut options = Options {
            segment_size: 256 << 10,
            segment_size_max: 256 << 10,
            checkpoint_bytes: 1 << 20,
            // Some maps are counted exactly, others only when runs are merged.
            map_memory: if seed.is_multiple_of(2) { 64 << 10 } else { 16 << 20 },
            dedup: true,
            ..Options::default()
        };
        options.gc.garbage_min = 0;
        let store =
            Arc::new(Turns { objects: objects.clone(), turns: Semaphore::new(FREE), deletions: Semaphore::new(FREE) });
        World { objects, store, disk: CrashDisk::new(seed), random, options }
    }

    async fn open(&self) -> Arc<Volume> {
        let outside = outside::plain(self.store.clone(), Arc::new(self.disk.clone()), self.random.clone());
        let journal = journal::Options::default();
        Volume::open(outside, &name(), self.options.clone(), journal, OpenFlags::default()).await.unwrap()
    }

    async fn past(&self, snapshot: &str) -> Past {
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let (store, budget) = (self.objects.clone(), Budget::default());
        Past::open(store, &name(), snapshot, &self.options, &budget, near, &Secrets::default()).await.unwrap()
    }

    async fn check(&self) -> ashlar::check::Report {
        let store: Arc<dyn Store> = self.objects.clone();
        ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap()
    }

    async fn is_clean(&self) {
        let report = self.check().await;
        assert!(report.is_clean(), "{report:#?}");
    }

    fn segments(&self) -> BTreeMap<Key, u64> {
        let objects = self.objects.objects();
        let is_segment = |key: &Key| key.as_str().contains("/segments/");
        objects
            .iter()
            .filter(|(key, _)| is_segment(key))
            .map(|(key, object)| (key.clone(), object.len() as u64))
            .collect()
    }

    fn stored(&self) -> u64 {
        self.segments().values().sum()
    }
}

/// The block of that number: noise, and nothing for 0.
fn block(content: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK as usize];
    if content > 0 {
        blake3::Hasher::new().update(&content.to_le_bytes()).finalize_xof().fill(&mut data);
    }
    data
}

fn blocks(contents: impl IntoIterator<Item = u64>) -> Bytes {
    contents.into_iter().flat_map(block).collect::<Vec<u8>>().into()
}

async fn write(volume: &Volume, at: u64, contents: impl IntoIterator<Item = u64>) {
    volume.write(at * BLOCK, blocks(contents), false).await.unwrap();
}

async fn holds(device: &dyn Device, at: u64, contents: impl IntoIterator<Item = u64>) -> bool {
    let expected = blocks(contents);
    device.read(at * BLOCK, expected.len() as u32).await.unwrap().concat() == expected
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(60 * count)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_already_is_stored_once_and_stays_until_nobody_needs_it() {
    for seed in 0..2 {
        let world = World::new(seed).await;
        let volume = world.open().await;
        write(&volume, 0, 1..65).await;
        volume.flush().await.unwrap();
        let once = world.stored();
        // Not where frames begin, and in the middle of something else.
        write(&volume, 103, (500..503).chain(1..65).chain(600..603)).await;
        volume.flush().await.unwrap();
        let status = volume.status().dedup.unwrap();
        // The last three came with the next segment.
        assert_eq!((status.saved_bytes, status.referring_segments, status.referred_segments), (61 * BLOCK, 1, 1));
        assert!(world.stored() < once + 10 * BLOCK, "{} after {once}", world.stored());
        let copy = || (500..503).chain(1..65).chain(600..603);
        assert!(holds(&*volume, 103, copy()).await);
        // Once more: then that it stays is worth it.
        write(&volume, 300, 1..65).await;
        volume.flush().await.unwrap();
        // Whoever wrote it first does not need it any more.
        write(&volume, 0, 1000..1064).await;
        volume.flush().await.unwrap();
        minutes(30).await;
        assert!(holds(&*volume, 103, copy()).await);
        drop(volume);
        let volume = world.open().await;
        minutes(30).await;
        assert!(holds(&*volume, 103, copy()).await && holds(&*volume, 300, 1..65).await);
        assert!(holds(&*volume, 0, 1000..1064).await);
        assert_eq!(volume.status().dedup.unwrap().referred_segments, 1);
        volume.close().await.unwrap();
        world.is_clean().await;
        let volume = world.open().await;
        volume.trim(0, SIZE, true).await.unwrap();
        for _ in 0..3 {
            write(&volume, 0, [7]).await;
            volume.flush().await.unwrap();
            minutes(30).await;
        }
        let status = volume.status().dedup.unwrap();
        assert_eq!((status.referring_segments, status.referred_segments), (0, 0));
        assert!(world.stored() < 16 * BLOCK, "{} stored", world.stored());
        volume.close().await.unwrap();
        world.is_clean().await;
    }
}

/// What is referred to is overwritten, and nothing of it is live as of a checkpoint, before the segment that refers to it is in the store.
#[tokio::test(start_paused = true)]
async fn what_was_chosen_stays_while_the_segment_that_refers_to_it_is_under_way() {
    let world = World::new(1).await;
    let volume = world.open().await;
    write(&volume, 0, 1..65).await;
    volume.flush().await.unwrap();
    minutes(5).await;
    hold(&world.store.turns).await;
    // Slot by slot: what takes its place, and what refers to it.
    write(&volume, 0, 1000..1064).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    write(&volume, 200, 1..65).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.store.turns.add_permits(1);
    minutes(30).await;
    assert_eq!(volume.status().dedup.unwrap().saved_bytes, 0, "it is under way");
    world.store.turns.add_permits(FREE);
    volume.flush().await.unwrap();
    assert_eq!(volume.status().dedup.unwrap().saved_bytes, 64 * BLOCK);
    assert!(holds(&*volume, 200, 1..65).await && holds(&*volume, 0, 1000..1064).await);
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// What is dead as of a checkpoint is on its way out, whether it has gone or not.
#[tokio::test(start_paused = true)]
async fn nobody_refers_to_what_is_dead_and_about_to_go() {
    let world = World::new(1).await;
    let volume = world.open().await;
    write(&volume, 0, 1..65).await;
    volume.flush().await.unwrap();
    hold(&world.store.deletions).await;
    write(&volume, 0, 1000..1064).await;
    volume.flush().await.unwrap();
    minutes(5).await;
    write(&volume, 200, 1..65).await;
    volume.flush().await.unwrap();
    world.store.deletions.add_permits(FREE);
    minutes(5).await;
    assert!(holds(&*volume, 200, 1..65).await);
    assert_eq!(volume.status().dedup.unwrap().saved_bytes, 0);
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// The checkpoint says of what is referred to that it is live, and the log behind that nothing is, and that something refers to it.
#[tokio::test(start_paused = true)]
async fn what_refers_behind_the_checkpoint_holds_after_a_kill() {
    let world = World::new(1).await;
    let volume = world.open().await;
    write(&volume, 0, 1..65).await;
    volume.flush().await.unwrap();
    minutes(5).await;
    write(&volume, 200, 1..65).await;
    volume.flush().await.unwrap();
    write(&volume, 0, 1000..1064).await;
    volume.flush().await.unwrap();
    drop(volume);
    let volume = world.open().await;
    assert_eq!(volume.status().dedup.unwrap().referred_segments, 1);
    minutes(30).await;
    assert!(holds(&*volume, 200, 1..65).await && holds(&*volume, 0, 1000..1064).await);
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// A reference is read as what it was written for or not at all, and a check says what is lost.
#[tokio::test(start_paused = true)]
async fn what_is_lost_with_what_is_referred_to_is_said() {
    let world = World::new(1).await;
    let volume = world.open().await;
    write(&volume, 0, 1..65).await;
    volume.flush().await.unwrap();
    let first: Vec<Key> = world.segments().into_keys().collect();
    write(&volume, 200, 1..65).await;
    write(&volume, 0, 1000..1064).await;
    volume.flush().await.unwrap();
    minutes(30).await;
    volume.close().await.unwrap();
    world.is_clean().await;
    let largest =
        first.iter().filter(|key| world.segments().contains_key(key)).max_by_key(|key| world.segments()[*key]);
    world.objects.delete(std::slice::from_ref(largest.unwrap())).await.unwrap();
    let report = world.check().await;
    assert!(!report.is_clean());
    let lost: Vec<(u64, u64)> = report.lost.iter().map(|lost| (lost.offset / BLOCK, lost.length / BLOCK)).collect();
    assert_eq!(lost, [(200, 64)], "{report:#?}");
    let volume = world.open().await;
    assert!(volume.read(200 * BLOCK, 4096).await.is_err());
    assert!(holds(&*volume, 0, 1000..1064).await);
}

/// More is never kept for references than they save.
#[tokio::test(start_paused = true)]
async fn references_that_cost_more_than_they_save_are_given_up() {
    for seed in 0..2 {
        let world = World::new(seed).await;
        let volume = world.open().await;
        write(&volume, 0, 1..129).await;
        volume.flush().await.unwrap();
        write(&volume, 300, 10..20).await;
        volume.flush().await.unwrap();
        assert_eq!(volume.status().dedup.unwrap().referred_segments, 1);
        write(&volume, 0, 1000..1128).await;
        volume.flush().await.unwrap();
        for at in 0..6 {
            volume.merge_map();
            write(&volume, 450 + at, [2000 + at]).await;
            volume.flush().await.unwrap();
            minutes(30).await;
        }
        assert_eq!(volume.status().dedup.unwrap().referred_segments, 0);
        assert!(holds(&*volume, 300, 10..20).await);
        assert!(world.stored() < 170 * BLOCK, "{} stored", world.stored() / BLOCK);
        volume.close().await.unwrap();
        world.is_clean().await;
    }
}

/// What every block holds, in the head and in each snapshot.
#[derive(Clone)]
struct Record {
    head: Vec<u64>,
    snapshots: BTreeMap<String, Vec<u64>>,
}

async fn is_as_recorded(world: &World, volume: &Volume, record: &Record) {
    assert!(holds(volume, 0, record.head.iter().copied()).await);
    for (snapshot, contents) in &record.snapshots {
        assert!(holds(&world.past(snapshot).await, 0, contents.iter().copied()).await, "{snapshot}");
    }
}

/// The same contents are written at many places, overwritten, given up, collected, kept in snapshots, and read after crashes.
#[tokio::test(start_paused = true)]
async fn whatever_is_written_where_every_byte_is_what_was_written_last() {
    let (mut saved, mut moved, mut tied) = (0, 0, 0);
    for seed in 0..8 {
        let world = World::new(seed).await;
        let below = |bound: u64| world.random.below(bound);
        let mut volume = world.open().await;
        let mut record = Record { head: vec![0; BLOCKS as usize], snapshots: BTreeMap::new() };
        let (mut next, mut names) = (1, 0);
        for step in 0..120 {
            match below(20) {
                0..7 => {
                    // A part of what is, or was, somewhere, wherever it goes.
                    let (at, len) = (below(BLOCKS - 100), 6 + below(90));
                    let from = below(BLOCKS - len);
                    let of = match record.snapshots.values().next() {
                        Some(snapshot) if below(3) == 0 => snapshot,
                        _ => &record.head,
                    };
                    let contents = of[from as usize..(from + len) as usize].to_vec();
                    write(&volume, at, contents.iter().copied()).await;
                    record.head[at as usize..(at + len) as usize].copy_from_slice(&contents);
                }
                7..11 => {
                    let (at, len) = (below(BLOCKS - 100), 1 + below(90));
                    write(&volume, at, next..next + len).await;
                    (at..at + len).zip(next..).for_each(|(at, content)| record.head[at as usize] = content);
                    next += len;
                }
                11..13 => {
                    let (at, len) = (below(BLOCKS - 200), 1 + below(190));
                    match below(2) {
                        0 => volume.trim(at * BLOCK, len * BLOCK, false).await.unwrap(),
                        _ => volume.write_zeroes(at * BLOCK, len * BLOCK, true, false).await.unwrap(),
                    }
                    record.head[at as usize..(at + len) as usize].fill(0);
                }
                13 => volume.flush().await.unwrap(),
                14 => minutes(1 + below(10)).await,
                15 if record.snapshots.len() < 3 => {
                    names += 1;
                    let name = format!("s{names}");
                    volume.take_snapshot(label(&name)).await.unwrap();
                    record.snapshots.insert(name, record.head.clone());
                }
                16 if !record.snapshots.is_empty() => {
                    let which = below(record.snapshots.len() as u64) as usize;
                    let name = record.snapshots.keys().nth(which).unwrap().clone();
                    volume.delete_snapshot(&name).await.unwrap();
                    record.snapshots.remove(&name);
                }
                17 => {
                    volume.merge_map();
                    minutes(2).await;
                }
                18 if step % 3 == 0 => {
                    let status = volume.status();
                    saved += status.dedup.unwrap().saved_bytes;
                    moved += status.gc.segments_written;
                    // A kill: the next one begins with what its journal has.
                    match below(2) {
                        0 => drop(volume),
                        _ => volume.close().await.unwrap(),
                    }
                    world.is_clean().await;
                    volume = world.open().await;
                }
                _ => is_as_recorded(&world, &volume, &record).await,
            }
            tied += u64::from(volume.status().dedup.unwrap().referred_segments > 0);
        }
        is_as_recorded(&world, &volume, &record).await;
        volume.close().await.unwrap();
        world.is_clean().await;
        let volume = world.open().await;
        is_as_recorded(&world, &volume, &record).await;
        for name in record.snapshots.keys() {
            volume.delete_snapshot(name).await.unwrap();
        }
        volume.trim(0, SIZE, true).await.unwrap();
        for content in 0..4 {
            write(&volume, 0, [1 << 40 | content]).await;
            volume.flush().await.unwrap();
            minutes(30).await;
        }
        let status = volume.status().dedup.unwrap();
        assert_eq!((status.referring_segments, status.referred_segments), (0, 0), "seed {seed}");
        assert!(world.stored() < 16 * BLOCK, "{} stored", world.stored());
        volume.close().await.unwrap();
        world.is_clean().await;
    }
    assert!(saved > 5 << 20 && moved > 40 && tied > 200, "{saved} bytes saved, {moved} moved, {tied} steps");
}
