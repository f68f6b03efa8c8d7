//! Clones: a volume that begins as a version of another one, and is its own from then on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

#[path = "support/compared.rs"]
#[allow(dead_code)]
mod compared;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::{Allocation, Device, Run};
use ashlar::disk::crash::CrashDisk;
use ashlar::format::meta::{Meta, Parent};
use ashlar::journal;
use ashlar::keyring::slot::Cost;
use ashlar::keyring::unlock::SecretSource;
use ashlar::keyring::{Secret, Secrets};
use ashlar::opening::key_slots::{Rotation, Slots};
use ashlar::opening::lifecycle::NewEncryption;
use ashlar::opening::scan::Source;
use ashlar::opening::{Follower, Glass};
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::Store;
use ashlar::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::clones::{self, Wanted};
use ashlar::volume::{
    self, Budget, CreateOptions, OpenFlags, Options, Outside, Past, ServerIdentity, Volume, VolumeError, VolumeName,
    description,
};
use async_trait::async_trait;
use bytes::Bytes;
use zeroize::Zeroizing;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
const SIZE: u64 = BLOCKS * BLOCK;
const FOREVER: Duration = Duration::from_secs(1000);
const DAY: Duration = Duration::from_secs(25 * 60 * 60);

/// A store with volumes of small segments, and the disks of their server.
struct World {
    store: Arc<MemoryStore>,
    disks: parking_lot::Mutex<BTreeMap<String, CrashDisk>>,
    random: Random,
    options: Options,
    /// Each request to the store takes some milliseconds.
    is_far: bool,
    secrets: Secrets,
}

/// Each volume has a key file of its own; but for those that are not at hand.
struct KeyFiles {
    missing: Vec<&'static str>,
}

fn key_of(volume: &str) -> Secret {
    Secret::KeyFile(Zeroizing::new([&[7; 32], volume.as_bytes()].concat()))
}

#[async_trait]
impl SecretSource for KeyFiles {
    async fn secrets(&self, volume: &str) -> Result<Vec<Secret>, String> {
        Ok(if self.missing.contains(&volume) { Vec::new() } else { vec![key_of(volume)] })
    }
}

fn secrets_but(missing: &[&'static str]) -> Secrets {
    Secrets::new(Arc::new(KeyFiles { missing: missing.to_vec() }), Workers::Inline)
}

fn encrypted(volume: &str) -> Option<NewEncryption> {
    Some(NewEncryption { secret: key_of(volume), cost: Cost::LEAST, recovery: false })
}

fn name(text: &str) -> VolumeName {
    VolumeName::new(text).unwrap()
}

impl World {
    async fn new(seed: u64) -> World {
        World::of(SIZE, seed).await
    }

    async fn of(size: u64, seed: u64) -> World {
        let (store, random) = (Arc::new(MemoryStore::default()), Random::seeded(seed));
        let options = CreateOptions { size, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name("parent"), options).await.unwrap();
        let mut options = Options {
            segment_size: 64 << 10,
            segment_size_max: 64 << 10,
            checkpoint_bytes: 256 << 10,
            // Some maps are counted exactly, others only when runs are merged.
            map_memory: if seed.is_multiple_of(2) { 64 << 10 } else { 16 << 20 },
            ..Options::default()
        };
        options.gc.garbage_min = 0;
        World {
            store,
            disks: parking_lot::Mutex::default(),
            random,
            options,
            is_far: false,
            secrets: Secrets::default(),
        }
    }

    fn outside(&self, of: &str) -> Outside {
        let mut disks = self.disks.lock();
        let disk = disks.entry(of.to_owned()).or_insert_with(|| CrashDisk::new(7)).clone();
        let millis = Duration::from_millis;
        let slow = FaultOptions { delay_min: millis(5), delay_spread: millis(20), ..FaultOptions::default() };
        let store: Arc<dyn Store> = match self.is_far {
            true => Arc::new(FaultyStore::new(self.store.clone(), slow, self.random.clone())),
            false => self.store.clone(),
        };
        Outside {
            cache: Arc::new(BlockCache::in_memory(if self.is_far { 0 } else { 1 << 20 })),
            secrets: self.secrets.clone(),
            ..outside::plain(store, Arc::new(disk), self.random.clone())
        }
    }

    /// The server of that volume dies.
    fn kill(&self, of: &str) {
        let mut disks = self.disks.lock();
        let next = disks[of].kill();
        disks.insert(of.to_owned(), next);
    }

    async fn try_open(&self, of: &str) -> Result<Arc<Volume>, VolumeError> {
        let (options, journal) = (self.options.clone(), journal::Options::default());
        Volume::open(self.outside(of), &name(of), options, journal, OpenFlags::default()).await
    }

    async fn open(&self, of: &str) -> Arc<Volume> {
        self.try_open(of).await.unwrap()
    }

    /// Makes a clone of an open volume, of this snapshot or as it is now.
    async fn clone_of(&self, parent: &Volume, snapshot: Option<&str>, to: &str) -> Result<(), VolumeError> {
        self.clone_with(parent, snapshot, to, None).await
    }

    async fn clone_with(
        &self,
        parent: &Volume,
        snapshot: Option<&str>,
        to: &str,
        size: Option<u64>,
    ) -> Result<(), VolumeError> {
        let store: Arc<dyn Store> = self.store.clone();
        let clone = clones::plan(&*store, &self.random, &name(to)).await?;
        let shown = parent.register_clone(snapshot, 1, clone.clone()).await?;
        self.make(parent.meta().name.as_str(), &clone, shown.seq, size).await
    }

    async fn make(
        &self,
        parent: &str,
        clone: &ashlar::space::CloneRef,
        version: ashlar::units::Seq,
        size: Option<u64>,
    ) -> Result<(), VolumeError> {
        let store: Arc<dyn Store> = self.store.clone();
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let parent = Source::of(store, &name(parent), &Options::default(), Some(near.clone()), &self.secrets).await?;
        let options = CreateOptions {
            encryption: parent.meta.encryption.as_ref().and_then(|_| encrypted(&clone.name)),
            size: size.unwrap_or(parent.meta.size),
            block_size: parent.meta.block_size,
            ..CreateOptions::default()
        };
        let wanted = Wanted { name: name(&clone.name), options };
        let at = (clone, version);
        clones::make(&parent, &self.random, &Clock::System, wanted, at).await.map(drop)
    }

    async fn past(&self, of: &str, snapshot: &str) -> Past {
        let store: Arc<dyn Store> = self.store.clone();
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let secrets = Secrets::default();
        Past::open(store, &name(of), snapshot, &self.options, &Budget::default(), near, &secrets).await.unwrap()
    }

    /// Reads the newest checkpoint of a volume that somebody else has.
    async fn follow(&self, of: &str) -> Follower {
        let glass = Glass {
            store: self.store.clone(),
            options: self.options.clone(),
            budget: Budget::default(),
            near: (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline),
            secrets: Secrets::default(),
        };
        Follower::open(glass, &name(of), Duration::from_secs(1)).await.unwrap()
    }

    async fn delete(&self, of: &str) -> Result<u64, VolumeError> {
        self.delete_with(of, false).await
    }

    async fn delete_with(&self, of: &str, takeover: bool) -> Result<u64, VolumeError> {
        let store: Arc<dyn Store> = self.store.clone();
        let server = ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "one".into() };
        let (clock, secrets) = (Clock::System, Secrets::default());
        volume::delete(&store, &self.random, &clock, &server, &name(of), takeover, &secrets, &|_| ()).await
    }

    async fn is_clean(&self, of: &str) {
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &name(of), true, &|_, _| {}, &self.secrets).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }

    fn objects_of(&self, of: &str) -> usize {
        let prefix = format!("{of}/");
        self.store.objects().iter().filter(|(key, _)| key.as_str().starts_with(&prefix)).count()
    }
}

fn label(name: &str) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, ..Label::default() }
}

async fn all_of(device: &dyn Device) -> Vec<u8> {
    device.read(0, device.info().size as u32).await.unwrap().concat().to_vec()
}

fn noise(random: &Random, blocks: u64) -> Bytes {
    (0..blocks * BLOCK / 64).flat_map(|_| random.bytes::<64>()).collect::<Vec<u8>>().into()
}

/// All that is known of a device, in as many calls as it takes.
async fn runs_of(device: &dyn Device, most: usize) -> Vec<Run> {
    let (mut runs, mut at, size) = (Vec::new(), 0, device.info().size);
    while at < size {
        let found = device.extents(at, size - at, most).await.unwrap();
        assert!(!found.is_empty() && found.len() <= most);
        at += found.iter().map(|run| run.len).sum::<u64>();
        runs.extend(found);
    }
    assert_eq!(at, size);
    runs
}

/// Whatever is said to be zero is.
async fn knows_what_it_holds(device: &dyn Device, holds: &[u8]) {
    for most in [1, 3, 1000] {
        let mut at = 0;
        for run in runs_of(device, most).await {
            let end = at + run.len as usize;
            if run.allocation != Allocation::Data {
                assert!(holds[at..end].iter().all(|byte| *byte == 0), "{run:?} at {at}");
            }
            at = end;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_begins_as_the_version_and_is_its_own_from_then_on() {
    let world = World::new(1).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 64), false).await.unwrap();
    parent.take_snapshot(label("monday")).await.unwrap();
    let monday = all_of(&*parent).await;
    parent.write(8 * BLOCK, noise(&world.random, 16), false).await.unwrap();
    let before = world.objects_of("parent");
    world.clone_of(&parent, Some("monday"), "a").await.unwrap();
    world.clone_of(&parent, None, "b").await.unwrap();
    assert_eq!((world.objects_of("a"), world.objects_of("b")), (1, 1), "no data is copied");
    assert!(world.objects_of("parent") <= before + 4);
    let now = all_of(&*parent).await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    assert!(all_of(&*a).await == monday && all_of(&*b).await == now);
    let runs: Vec<_> = runs_of(&*a, 10).await.iter().map(|run| (run.len, run.allocation)).collect();
    assert_eq!(runs, [(64 * BLOCK, Allocation::Data), (SIZE - 64 * BLOCK, Allocation::Hole)]);
    // Part of a block, a block, and what is given up.
    let mut holds = monday.clone();
    a.write(100, Bytes::from_static(b"part"), false).await.unwrap();
    holds[100..104].copy_from_slice(b"part");
    a.trim(4 * BLOCK, 2 * BLOCK, false).await.unwrap();
    a.write_zeroes(10 * BLOCK, BLOCK, false, false).await.unwrap();
    holds[4 * BLOCK as usize..6 * BLOCK as usize].fill(0);
    holds[10 * BLOCK as usize..11 * BLOCK as usize].fill(0);
    assert!(all_of(&*a).await == holds);
    a.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(all_of(&*a).await == holds);
    knows_what_it_holds(&*a, &holds).await;
    a.close().await.unwrap();
    let a = world.open("a").await;
    assert!(all_of(&*a).await == holds, "what was given up stays so");
    // Nobody else sees any of that, and nothing of what happens to the others is seen here.
    parent.trim(0, SIZE, true).await.unwrap();
    assert!(all_of(&*b).await == now && all_of(&*a).await == holds);
    assert!(all_of(&world.past("parent", "monday").await).await == monday);
    for volume in [a, b, parent] {
        volume.close().await.unwrap();
    }
    for volume in ["parent", "a", "b"] {
        world.is_clean(volume).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_may_be_larger_and_grow_and_not_shrink() {
    let world = World::new(2).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, BLOCKS), false).await.unwrap();
    let shown = all_of(&*parent).await;
    world.clone_with(&parent, None, "larger", Some(2 * SIZE)).await.unwrap();
    let larger = world.open("larger").await;
    let holds = all_of(&*larger).await;
    assert!(holds[..SIZE as usize] == shown[..] && holds[SIZE as usize..].iter().all(|byte| *byte == 0));
    // A range over the end of what the parent has.
    let edge = larger.read(SIZE - BLOCK - 7, 3 * BLOCK as u32).await.unwrap().concat();
    assert!(edge == holds[(SIZE - BLOCK - 7) as usize..][..3 * BLOCK as usize]);
    knows_what_it_holds(&*larger, &holds).await;
    let told = world.clone_with(&parent, None, "smaller", Some(SIZE / 2)).await.unwrap_err().to_string();
    assert!(told.contains("clone smaller cannot have 524288 bytes: what it shows has 1048576"), "{told}");
    assert!(matches!(world.try_open("smaller").await, Err(VolumeError::NotFound { .. })));
    let told = larger.shrink(SIZE, true).await.unwrap_err().to_string();
    assert!(told.contains("is a clone, and cannot be made smaller"), "{told}");
    larger.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_clone_needs_stays() {
    let world = World::new(3).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 64), false).await.unwrap();
    parent.take_snapshot(label("monday")).await.unwrap();
    let monday = all_of(&*parent).await;
    world.clone_of(&parent, Some("monday"), "a").await.unwrap();
    world.clone_of(&parent, Some("monday"), "b").await.unwrap();
    assert_eq!(parent.delete_snapshot("monday").await.unwrap(), ["a", "b"]);
    let told = parent.delete_snapshot("monday").await.unwrap_err().to_string();
    assert!(told.contains("has no snapshot \"monday\"; it has none"), "{told}");
    assert_eq!(parent.status().snapshots, 0);
    // The name is free.
    parent.take_snapshot(label("monday")).await.unwrap();
    parent.delete_snapshot("monday").await.unwrap();
    for _ in 0..8 {
        parent.write(0, noise(&world.random, 128), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
    let a = world.open("a").await;
    assert!(all_of(&*a).await == monday);
    a.close().await.unwrap();
    parent.close().await.unwrap();
    let told = world.delete("parent").await.unwrap_err().to_string();
    assert!(told.contains("volume parent has clones, which show its data: a, b; it cannot be deleted"), "{told}");
    world.delete("a").await.unwrap();
    assert!(world.delete("parent").await.unwrap_err().to_string().contains("its data: b;"));
    let parent = world.open("parent").await;
    assert_eq!(parent.snapshots().len(), 1);
    let b = description::load(&*world.store, &name("b")).await.unwrap().meta;
    world.delete("b").await.unwrap();
    parent.forget_gone_clone(b.uuid).await.unwrap();
    assert_eq!(parent.snapshots(), []);
    parent.close().await.unwrap();
    world.is_clean("parent").await;
    world.delete("parent").await.unwrap();
}

/// Whoever makes a clone dies after its parent was told: nothing is left in anybody's way, and it does not come into being later.
#[tokio::test(start_paused = true)]
async fn a_clone_that_was_never_made_never_will_be() {
    let world = World::new(4).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 64), false).await.unwrap();
    parent.take_snapshot(label("monday")).await.unwrap();
    let store: Arc<dyn Store> = world.store.clone();
    let clone = clones::plan(&*store, &world.random, &name("a")).await.unwrap();
    let shown = parent.register_clone(Some("monday"), 1, clone.clone()).await.unwrap();
    assert_eq!(parent.delete_snapshot("monday").await.unwrap(), Vec::<String>::new());
    assert_eq!(parent.snapshots(), []);
    let late = world.make("parent", &clone, shown.seq, None).await.unwrap_err();
    assert!(late.to_string().contains("changed its snapshots before its clone a was there"), "{late}");
    assert!(matches!(description::load(&*store, &name("a")).await, Err(VolumeError::NotFound { .. })));
    // The name is free for another.
    world.clone_of(&parent, None, "a").await.unwrap();
    let a = world.open("a").await;
    a.close().await.unwrap();
    parent.close().await.unwrap();
    // And the other way round: its parent goes in between.
    let parent = world.open("parent").await;
    let clone = clones::plan(&*store, &world.random, &name("c")).await.unwrap();
    let shown = parent.register_clone(None, 1, clone.clone()).await.unwrap();
    parent.close().await.unwrap();
    world.delete("a").await.unwrap();
    world.delete("parent").await.unwrap();
    assert!(world.make("parent", &clone, shown.seq, None).await.is_err());
    assert!(matches!(description::load(&*store, &name("c")).await, Err(VolumeError::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_clone_without_its_parent_says_so() {
    let world = World::new(5).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 4), false).await.unwrap();
    world.clone_of(&parent, None, "a").await.unwrap();
    parent.close().await.unwrap();
    // Somebody deletes the objects by hand.
    for (key, _) in world.store.objects() {
        if key.as_str().starts_with("parent/") {
            world.store.delete(&[key]).await.unwrap();
        }
    }
    let told = world.try_open("a").await.unwrap_err().to_string();
    assert!(
        told.contains("volume a is a clone of volume parent") && told.contains("not in the store any more"),
        "{told}"
    );
    let store: Arc<dyn Store> = world.store.clone();
    let report = ashlar::check::check(&store, &name("a"), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(!report.is_clean());
}

/// A checkpoint that does not know a clone does not take the place of one that does, however well the log goes on after it; and a parent that is
/// back there all the same is not deleted.
#[tokio::test(start_paused = true)]
async fn a_parent_is_not_repaired_to_before_its_clones() {
    let world = World::new(10).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 4), true).await.unwrap();
    parent.take_snapshot(label("monday")).await.unwrap();
    parent.write(0, noise(&world.random, 4), true).await.unwrap();
    world.clone_of(&parent, None, "a").await.unwrap();
    drop(parent);
    world.kill("parent");
    let is_checkpoint = |key: &str| key.starts_with("parent/") && key.contains("/checkpoints/");
    let newest = world.store.objects().into_iter().rfind(|(key, _)| is_checkpoint(key.as_str())).unwrap();
    let mut damaged = newest.1.to_vec();
    damaged[60..70].fill(0);
    world.store.delete(std::slice::from_ref(&newest.0)).await.unwrap();
    world.store.put(&newest.0, vec![damaged.into()]).await.unwrap();
    let store: Arc<dyn Store> = world.store.clone();
    let report = ashlar::check::check(&store, &name("parent"), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert_eq!(report.instead_of_newest, None);
    assert!(
        report.problems[0].what.contains("it does not know clone a, which shows what was kept after it"),
        "{report:#?}"
    );
    for _ in 0..2 {
        let told = world.delete_with("parent", true).await.unwrap_err().to_string();
        assert!(told.contains("which show its data: a; it cannot be deleted"), "{told}");
        // Somebody takes the damaged one away by hand.
        world.store.delete(std::slice::from_ref(&newest.0)).await.unwrap();
    }
}

/// Without its parent's word a clone is none: what it shows could be gone at any time.
#[tokio::test(start_paused = true)]
async fn a_clone_that_its_parent_does_not_know_is_none() {
    let world = World::new(8).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 4), false).await.unwrap();
    let kept = parent.take_snapshot(label("monday")).await.unwrap();
    let store: Arc<dyn Store> = world.store.clone();
    let clone = clones::plan(&*store, &world.random, &name("a")).await.unwrap();
    let told = world.make("parent", &clone, kept.seq, None).await.unwrap_err().to_string();
    assert!(told.ends_with(", which has not kept what it is a clone of"), "{told}");
    assert!(matches!(world.try_open("a").await, Err(VolumeError::NotFound { .. })));
    world.clone_of(&parent, None, "a").await.unwrap();
    world.open("a").await.close().await.unwrap();
    // It says that it shows another version, which is kept, but not for it.
    let found = description::load(&*store, &name("a")).await.unwrap();
    let shows = Parent { version: kept.seq.0, ..found.meta.parent.clone().unwrap() };
    let meta = Meta { parent: Some(shows), ..found.meta.clone() };
    found.replace(&*store, &world.random, &meta, None).await.unwrap();
    let told = world.try_open("a").await.unwrap_err().to_string();
    assert!(told.ends_with(", which has not kept what it is a clone of"), "{told}");
    parent.close().await.unwrap();
}

/// Reading a snapshot of a clone, and following it, takes nothing either.
#[tokio::test(start_paused = true)]
async fn snapshots_of_clones_show_what_their_parents_hold() {
    let world = World::new(6).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, 64), false).await.unwrap();
    world.clone_of(&parent, None, "a").await.unwrap();
    let a = world.open("a").await;
    a.write(8 * BLOCK, noise(&world.random, 8), false).await.unwrap();
    a.take_snapshot(label("s")).await.unwrap();
    let shown = all_of(&*a).await;
    a.trim(0, SIZE, true).await.unwrap();
    world.clone_of(&a, Some("s"), "aa").await.unwrap();
    let aa = world.open("aa").await;
    aa.write(0, noise(&world.random, 2), false).await.unwrap();
    let now = [&all_of(&*aa).await[..2 * BLOCK as usize], &shown[2 * BLOCK as usize..]].concat();
    assert!(all_of(&*aa).await == now);
    parent.write(0, noise(&world.random, 128), true).await.unwrap();
    let faulty = FaultyStore::new(world.store.clone(), FaultOptions::default(), Random::seeded(1));
    let faults = faulty.faults();
    let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
    let (budget, secrets) = (Budget::default(), Secrets::default());
    let past = Past::open(Arc::new(faulty), &name("a"), "s", &world.options, &budget, near, &secrets).await.unwrap();
    assert!(all_of(&past).await == shown);
    knows_what_it_holds(&past, &shown).await;
    assert_eq!(faults.mutations(), 0);
    // Going back to a snapshot, the clone shows its parent again.
    a.close().await.unwrap();
    let (options, journal) = (world.options.clone(), journal::Options::default());
    let to = ("s", label("before"));
    Volume::roll_back(world.outside("a"), &name("a"), options, journal, OpenFlags::default(), to).await.unwrap();
    let a = world.open("a").await;
    assert!(all_of(&*a).await == shown);
    for volume in [a, aa, parent] {
        volume.close().await.unwrap();
    }
    for volume in ["parent", "a", "aa"] {
        world.is_clean(volume).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_becomes_independent_while_it_is_written_to() {
    for seed in 0..8 {
        let mut world = World::new(seed).await;
        let parent = world.open("parent").await;
        for at in (0..BLOCKS).step_by(3) {
            parent.write(at * BLOCK, noise(&world.random, 1 + at % 3), false).await.unwrap();
        }
        parent.trim(100 * BLOCK, 50 * BLOCK, false).await.unwrap();
        world.clone_of(&parent, None, "a").await.unwrap();
        // Clients write while what is below is on its way.
        world.is_far = true;
        let a = world.open("a").await;
        a.take_snapshot(label("s")).await.unwrap();
        let told = a.detach(0, FOREVER).await.unwrap_err().to_string();
        assert!(told.contains("volume a has snapshots that show volume parent: s; delete them"), "{told}");
        a.delete_snapshot("s").await.unwrap();
        let mut holds = all_of(&*a).await;
        let writes = async {
            for turn in 0..64 {
                let at = world.random.below(SIZE - 3 * BLOCK);
                let data = noise(&world.random, 2).slice(..(1 + world.random.below(2 * BLOCK)) as usize);
                match turn % 4 {
                    0 => {
                        let at = at / BLOCK * BLOCK;
                        a.trim(at, 2 * BLOCK, false).await.unwrap();
                        holds[at as usize..(at + 2 * BLOCK) as usize].fill(0);
                    }
                    _ => {
                        a.write(at, data.clone(), false).await.unwrap();
                        holds[at as usize..at as usize + data.len()].copy_from_slice(&data);
                    }
                }
                tokio::time::sleep(Duration::from_micros(world.random.below(3000))).await;
            }
        };
        let (detached, ()) = tokio::join!(a.detach(0, FOREVER), writes);
        detached.unwrap();
        assert!(all_of(&*a).await == holds, "seed {seed}");
        // What is given up now is a hole, and nothing shows through it.
        a.trim(0, 8 * BLOCK, true).await.unwrap();
        holds[..8 * BLOCK as usize].fill(0);
        assert!(a.detach(0, FOREVER).await.unwrap_err().to_string().contains("is no clone, or independent already"));
        let hidden = parent.snapshots();
        assert_eq!(hidden.len(), 1);
        let uuid = hidden[0].label.clones[0].uuid;
        parent.forget_gone_clone(uuid).await.unwrap();
        assert_eq!(parent.snapshots(), []);
        parent.close().await.unwrap();
        world.delete("parent").await.unwrap();
        a.close().await.unwrap();
        let a = world.open("a").await;
        assert!(all_of(&*a).await == holds, "seed {seed}");
        knows_what_it_holds(&*a, &holds).await;
        a.close().await.unwrap();
        world.is_clean("a").await;
    }
}

/// What breaks off goes on: what was copied is not copied again.
#[tokio::test(start_paused = true)]
async fn becoming_independent_breaks_off_and_goes_on() {
    const LARGE: u64 = 6 << 20;
    let mut world = World::of(LARGE, 9).await;
    // No checkpoint but those that something wants.
    world.options.checkpoint_bytes = 64 << 20;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, LARGE / BLOCK), true).await.unwrap();
    let shown = all_of(&*parent).await;
    world.clone_of(&parent, None, "a").await.unwrap();
    let mut from = 0;
    for turn in 0..40 {
        let a = world.open("a").await;
        assert_eq!(a.detaching(), None, "nobody asked since it was opened");
        let done = a.detach(from, Duration::ZERO).await.unwrap();
        assert_eq!(a.detaching(), done);
        // Whoever asks may know nothing of what was done before, or say something that is not so.
        from = [LARGE, done.map_or(0, |far| far.at), 0][turn % 3];
        assert!(all_of(&*a).await == shown);
        let is_done = done.is_none();
        // Whoever reads only its newest checkpoint finds all of it, too.
        assert!(all_of(&world.follow("a").await).await == shown, "turn {turn}");
        match turn % 2 {
            0 if !is_done => {
                drop(a);
                world.kill("a");
            }
            _ => a.close().await.unwrap(),
        }
        if is_done {
            break;
        }
        assert!(turn < 39, "it never ends");
    }
    parent.close().await.unwrap();
    world.delete("parent").await.unwrap();
    let a = world.open("a").await;
    assert!(all_of(&*a).await == shown);
    a.close().await.unwrap();
    world.is_clean("a").await;
}

/// What a volume of the history is to hold.
struct Known {
    volume: Option<Arc<Volume>>,
    holds: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    /// Whose clone it is.
    parent: Option<String>,
}

/// Random histories of a family of volumes, against what each client wrote.
#[tokio::test(start_paused = true)]
async fn families_hold_what_their_clients_wrote() {
    let seeds = std::env::var("ASHLAR_TEST_SEEDS").map_or(12, |seeds| seeds.parse().unwrap());
    let first: u64 = std::env::var("ASHLAR_TEST_SEED").map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + seeds {
        family(seed).await;
    }
}

async fn family(seed: u64) {
    let world = World::new(seed).await;
    let random = Random::seeded(seed ^ 0xfa31);
    let below = |n: u64| random.below(n);
    let mut family: BTreeMap<String, Known> = BTreeMap::new();
    let first = Known { volume: None, holds: vec![0; SIZE as usize], snapshots: BTreeMap::new(), parent: None };
    family.insert("parent".into(), first);
    let mut born = 0;
    for step in 0..60 {
        let who = family.keys().nth(below(family.len() as u64) as usize).unwrap().clone();
        let others: Vec<String> = family.keys().cloned().collect();
        let is_parent = family.values().any(|known| known.parent.as_deref() == Some(who.as_str()));
        let known = family.get_mut(&who).unwrap();
        let volume = match &known.volume {
            Some(volume) => volume.clone(),
            None => known.volume.insert(world.open(&who).await).clone(),
        };
        match below(16) {
            0..=4 => {
                for _ in 0..1 + below(6) {
                    let at = below(SIZE - 1);
                    let len = (1 + below(24 * BLOCK)).min(SIZE - at);
                    let data = noise(&random, 24).slice(..len as usize);
                    volume.write(at, data.clone(), below(4) == 0).await.unwrap();
                    known.holds[at as usize..(at + len) as usize].copy_from_slice(&data);
                }
            }
            5..=6 => {
                let at = below(BLOCKS - 1);
                let len = 1 + below(BLOCKS - at);
                let range = (at * BLOCK) as usize..((at + len) * BLOCK) as usize;
                match below(3) {
                    0 => volume.write_zeroes(at * BLOCK, len * BLOCK, below(2) == 0, false).await.unwrap(),
                    _ => volume.trim(at * BLOCK, len * BLOCK, false).await.unwrap(),
                }
                known.holds[range].fill(0);
            }
            7 => {
                let name = format!("s{step}");
                volume.take_snapshot(label(&name)).await.unwrap();
                known.snapshots.insert(name, known.holds.clone());
            }
            8 => {
                if let Some(name) = known.snapshots.keys().next().cloned() {
                    volume.delete_snapshot(&name).await.unwrap();
                    known.snapshots.remove(&name);
                }
            }
            9..=10 if others.len() < 6 => {
                born += 1;
                let to = format!("c{born}");
                let snapshot = known.snapshots.keys().next_back().filter(|_| below(2) == 0).cloned();
                let holds = snapshot.as_ref().map_or(&known.holds, |name| &known.snapshots[name]).clone();
                world.clone_of(&volume, snapshot.as_deref(), &to).await.unwrap();
                let clone = Known { volume: None, holds, snapshots: BTreeMap::new(), parent: Some(who.clone()) };
                family.insert(to, clone);
            }
            11 => {
                volume.close().await.unwrap();
                known.volume = None;
            }
            // What is acknowledged is in the journal.
            12 => {
                known.volume = None;
                drop(volume);
                world.kill(&who);
                continue;
            }
            13 if known.parent.is_some() && known.snapshots.is_empty() => {
                let detached = volume.detach(0, FOREVER).await;
                // Hidden ones of clones of its own show its parent, too.
                match detached {
                    Ok(_) => known.parent = None,
                    Err(error) => assert!(
                        error.to_string().contains("has snapshots that show")
                            || error.to_string().contains("has clones"),
                        "{error}"
                    ),
                }
            }
            14 => {
                let told = volume.close().await;
                told.unwrap();
                known.volume = None;
                let deleted = world.delete(&who).await;
                match is_parent {
                    true => assert!(deleted.unwrap_err().to_string().contains("has clones"), "seed {seed}"),
                    false if who == "parent" => {
                        deleted.unwrap();
                        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
                        volume::create(&*world.store, &world.random, &Clock::System, &name("parent"), options)
                            .await
                            .unwrap();
                        world.disks.lock().remove("parent");
                        known.holds.fill(0);
                        known.snapshots.clear();
                    }
                    false => {
                        deleted.unwrap();
                        family.remove(&who);
                        world.disks.lock().remove(&who);
                    }
                }
                continue;
            }
            _ => tokio::time::sleep(Duration::from_secs(below(100))).await,
        }
        let known = &family[&who];
        if let Some(volume) = &known.volume {
            assert!(all_of(&**volume).await == known.holds, "seed {seed}, step {step}: {who}");
            compared::knows_what_has_changed(&**volume, &known.holds, &known.snapshots).await;
        }
    }
    for (who, known) in &family {
        let volume = match &known.volume {
            Some(volume) => volume.clone(),
            None => world.open(who).await,
        };
        assert!(all_of(&*volume).await == known.holds, "seed {seed}, in the end: {who}");
        knows_what_it_holds(&*volume, &known.holds).await;
        for (snapshot, holds) in &known.snapshots {
            assert!(all_of(&world.past(who, snapshot).await).await == *holds, "seed {seed}: {who}@{snapshot}");
        }
        volume.close().await.unwrap();
    }
    for who in family.keys() {
        world.is_clean(who).await;
    }
}

/// Whoever deletes a clone may not reach the server of its parent: that finds out by itself, and asks nothing of a volume without clones.
#[tokio::test(start_paused = true)]
async fn what_was_kept_for_clones_that_are_gone_goes_within_a_day() {
    let world = World::new(1).await;
    let parent = world.open("parent").await;
    parent.write(0, noise(&world.random, BLOCKS), true).await.unwrap();
    let stored = world.store.total_bytes();
    for clone in ["first", "second"] {
        world.clone_of(&parent, None, clone).await.unwrap();
    }
    parent.trim(0, SIZE, true).await.unwrap();
    tokio::time::sleep(DAY).await;
    assert!(parent.snapshots().len() == 2 && world.store.total_bytes() >= stored, "both clones are there");
    world.delete("second").await.unwrap();
    let other = world.open("first").await;
    other.detach(0, FOREVER).await.unwrap();
    other.close().await.unwrap();
    tokio::time::sleep(DAY).await;
    assert_eq!(parent.snapshots().len(), 0);
    world.delete("first").await.unwrap();
    tokio::time::sleep(DAY).await;
    assert!(world.store.total_bytes() < stored / 8, "{} of {stored} bytes", world.store.total_bytes());
    let asked = parent.status().since_open;
    tokio::time::sleep(3 * DAY).await;
    assert_eq!(parent.status().since_open, asked);
    parent.close().await.unwrap();
    world.is_clean("parent").await;
}

/// A version that is kept: its name, unless nobody can name it, its clones, and the write that each block is of.
struct Kept {
    name: Option<String>,
    clones: Vec<String>,
    blocks: Vec<u64>,
}

/// Bytes that nothing has which anybody can name.
fn held_for_clones(head: &[u64], versions: &[Kept]) -> u64 {
    let shown = || versions.iter().filter(|version| version.name.is_some());
    let has = |block: usize, write: u64| {
        write == 0 || head[block] == write || shown().any(|version| version.blocks[block] == write)
    };
    let hidden = versions.iter().filter(|version| version.name.is_none());
    let of_hidden = hidden.flat_map(|version| version.blocks.iter().copied().enumerate());
    let held: BTreeSet<_> = of_hidden.filter(|(block, write)| !has(*block, *write)).collect();
    held.len() as u64 * BLOCK
}

/// As a record of all writes says it, by the server, and by whoever looks at the store. What an opening does not know is not told before it was read.
#[tokio::test(start_paused = true)]
async fn what_only_clones_hold_is_what_nothing_has_that_can_be_named() {
    // Of maps that are counted exactly. What collection moves for the volume alone is there twice, and counts.
    for seed in [1, 3] {
        let mut world = World::new(seed).await;
        world.options.gc.garbage_min = 1 << 30;
        let store: Arc<dyn Store> = world.store.clone();
        let below = |end| world.random.below(end);
        let mut volume = world.open("parent").await;
        let (mut head, mut versions) = (vec![0; BLOCKS as usize], Vec::<Kept>::new());
        let (mut most, mut absent) = (0, 0);
        for step in 1..=400u64 {
            let (first, count) = (below(BLOCKS - 8), 1 + below(8));
            let blocks = first as usize..(first + count) as usize;
            let named = versions.iter().position(|version| version.name.is_some() && below(3) == 0);
            let cloned = versions.iter().position(|version| !version.clones.is_empty() && below(3) == 0);
            match (below(40), named, cloned) {
                (0, ..) => {
                    volume.close().await.unwrap();
                    let info = volume::inspect(&store, &name("parent"), &Secrets::default()).await.unwrap();
                    assert_eq!(info.clones_held_bytes, held_for_clones(&head, &versions), "seed {seed}, step {step}");
                    volume = world.open("parent").await;
                }
                (1, ..) => {
                    let taken = format!("s{step}");
                    volume.take_snapshot(label(&taken)).await.unwrap();
                    versions.push(Kept { name: Some(taken), clones: vec![], blocks: head.clone() });
                }
                (2, Some(at), _) => {
                    let version = &mut versions[at];
                    volume.delete_snapshot(&version.name.take().unwrap()).await.unwrap();
                    if version.clones.is_empty() {
                        versions.remove(at);
                    }
                }
                (3 | 4, ..) => {
                    let clone = format!("c{step}");
                    world.clone_of(&volume, None, &clone).await.unwrap();
                    versions.push(Kept { name: None, clones: vec![clone], blocks: head.clone() });
                }
                (5, Some(at), _) => {
                    let (version, clone) = (&mut versions[at], format!("c{step}"));
                    world.clone_of(&volume, version.name.as_deref(), &clone).await.unwrap();
                    version.clones.push(clone);
                }
                (6, _, Some(at)) => {
                    let version = &mut versions[at];
                    let gone = version.clones.pop().unwrap();
                    let uuid = description::load(&*store, &name(&gone)).await.unwrap().meta.uuid;
                    world.delete(&gone).await.unwrap();
                    volume.forget_gone_clone(uuid).await.unwrap();
                    if version.name.is_none() && version.clones.is_empty() {
                        versions.remove(at);
                    }
                }
                (7, ..) => tokio::time::sleep(Duration::from_secs(60)).await,
                (8, ..) => {
                    volume.trim(first * BLOCK, count * BLOCK, true).await.unwrap();
                    head[blocks].fill(0);
                }
                _ => {
                    volume.write(first * BLOCK, noise(&world.random, count), true).await.unwrap();
                    head[blocks].fill(step);
                }
            }
            let held = held_for_clones(&head, &versions);
            let status = volume.status();
            let clones = versions.iter().map(|version| version.clones.len()).sum::<usize>();
            assert_eq!(status.clones.len(), clones, "seed {seed}, step {step}");
            match status.clones_held_bytes {
                Some(told) => assert_eq!(told, held, "seed {seed}, step {step}"),
                None => absent += 1,
            }
            most = most.max(held);
        }
        assert!(most > SIZE / 4 && absent > 0, "{most} bytes at most, not known {absent} times");
        // A checkpoint or two later all is known.
        for _ in 0..2 {
            volume.write(0, noise(&world.random, 1), true).await.unwrap();
            head[0] = u64::MAX;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(volume.status().clones_held_bytes, Some(held_for_clones(&head, &versions)));
        volume.close().await.unwrap();
        world.is_clean("parent").await;
    }
}

impl World {
    async fn rotate(&self, of: &str, secrets: &Secrets) -> Result<Rotation, VolumeError> {
        let (name, clock) = (name(of), Clock::System);
        let slots = Slots { store: &*self.store, name: &name, secrets, random: &self.random, clock: &clock };
        slots.rotate(Cost::LEAST).await
    }

    /// Writes a volume full, with snapshots s0 to s3 in between: one that is deleted leaves holes in what the others need.
    async fn fill(&self, volume: &Volume) -> Vec<u8> {
        volume.write(0, noise(&self.random, BLOCKS), true).await.unwrap();
        for kept in 0..4 {
            volume.take_snapshot(label(&format!("s{kept}"))).await.unwrap();
            for _ in 0..BLOCKS {
                let block = self.random.below(BLOCKS);
                volume.write(block * BLOCK, noise(&self.random, 1), false).await.unwrap();
            }
        }
        all_of(volume).await
    }

    /// Rotates the data key of a volume that is open, and has collection move what its snapshots and clones need. Returns which of its clones were told.
    async fn rotate_served(&self, volume: &Volume, snapshot: &str) -> Vec<String> {
        let rotation = self.rotate(volume.meta().name.as_str(), &self.secrets).await.unwrap();
        rotation.outcome.unwrap();
        volume.reload().await.unwrap();
        volume.delete_snapshot(snapshot).await.unwrap();
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(volume.status().retired_bytes, 0);
        rotation.clones
    }
}

/// A parent and its clones are open at servers of their own, of which none is told of a rotation but the one whose volume it is.
#[tokio::test(start_paused = true)]
async fn a_clone_that_is_read_has_the_new_data_key_of_its_parent() {
    let mut world = World::new(1).await;
    world.secrets = secrets_but(&[]);
    // Without a cache.
    world.is_far = true;
    world.delete("parent").await.unwrap();
    let options = CreateOptions { size: SIZE, encryption: encrypted("parent"), ..CreateOptions::default() };
    volume::create(&*world.store, &world.random, &Clock::System, &name("parent"), options).await.unwrap();
    let parent = world.open("parent").await;
    let shown = world.fill(&parent).await;
    world.clone_of(&parent, None, "child").await.unwrap();
    let child = world.open("child").await;
    child.write(0, noise(&world.random, 1), true).await.unwrap();
    world.clone_of(&child, None, "grandchild").await.unwrap();
    let grandchild = world.open("grandchild").await;
    let shown = [&*child.read(0, BLOCK as u32).await.unwrap().concat(), &shown[BLOCK as usize..]].concat();

    // A clone whose key is not at hand could not read what its parent seals: nothing is changed.
    let error = world.rotate("parent", &secrets_but(&["child"])).await.unwrap_err().to_string();
    assert!(
        error.contains("has a clone child, which must be given the new data key, and child stays locked"),
        "{error}"
    );
    assert_eq!(description::load(&*world.store, &name("parent")).await.unwrap().meta.encryption.unwrap().generation, 1);

    assert_eq!(world.rotate_served(&parent, "s0").await, ["child"]);
    assert!(all_of(&*child).await == shown && all_of(&*grandchild).await == shown);
    // Twice, before anybody reads, and on two levels.
    assert_eq!(world.rotate_served(&parent, "s1").await, ["child"]);
    world.rotate("child", &world.secrets).await.unwrap().outcome.unwrap();
    child.reload().await.unwrap();
    assert_eq!(world.rotate_served(&parent, "s2").await, ["child"]);
    assert!(all_of(&*grandchild).await == shown && all_of(&*child).await == shown);
    // A clone that is made while the key is rotated has the old one: it is not made, whoever read the parent before, and nothing is damaged.
    let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
    let store: Arc<dyn Store> = world.store.clone();
    let source = Source::of(store, &name("parent"), &Options::default(), Some(near), &world.secrets).await.unwrap();
    let late = clones::plan(&*world.store, &world.random, &name("late")).await.unwrap();
    let version = parent.register_clone(None, 1, late.clone()).await.unwrap().seq;
    world.rotate("parent", &world.secrets).await.unwrap().outcome.unwrap();
    parent.reload().await.unwrap();
    parent.write(0, noise(&world.random, 1), true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let options = CreateOptions { size: SIZE, encryption: encrypted("late"), ..CreateOptions::default() };
    let wanted = Wanted { name: name("late"), options };
    let made = clones::make(&source, &world.random, &Clock::System, wanted, (&late, version)).await;
    let error = made.unwrap_err().to_string();
    assert!(error.contains("the data key of volume parent was rotated at the same time"), "{error}");
    assert!(matches!(description::load(&*world.store, &name("late")).await, Err(VolumeError::NotFound { .. })));
    world.clone_of(&parent, None, "late").await.unwrap();
    for volume in [parent, child, grandchild] {
        volume.close().await.unwrap();
    }
    for who in ["parent", "child", "grandchild"] {
        world.is_clean(who).await;
    }

    // One that breaks off anywhere leaves all of them readable, and the next one goes through.
    for mutation in 1.. {
        let faulty = FaultyStore::new(world.store.clone(), FaultOptions::default(), world.random.clone());
        faulty.faults().set_trap(Counted::Mutations, mutation, Trap::FailBefore);
        let (name, clock) = (name("child"), Clock::System);
        let slots =
            Slots { store: &faulty, name: &name, secrets: &world.secrets, random: &world.random, clock: &clock };
        let is_done = slots.rotate(Cost::LEAST).await.is_ok_and(|rotation| rotation.outcome.is_ok());
        for who in ["child", "grandchild"] {
            let volume = world.open(who).await;
            assert!(all_of(&*volume).await == shown, "{who} after mutation {mutation}");
            volume.close().await.unwrap();
        }
        if is_done {
            assert!(mutation > 2, "a description of the clone, and one of its parent");
            break;
        }
    }
}

/// Of two rotations at once one counts, and the clone has its key, whichever gave it one last.
#[tokio::test(start_paused = true)]
async fn of_two_rotations_at_once_the_clone_has_the_key_that_counts() {
    for seed in 0..24 {
        let mut world = World::new(seed).await;
        world.secrets = secrets_but(&[]);
        world.delete("parent").await.unwrap();
        let options = CreateOptions { size: SIZE, encryption: encrypted("parent"), ..CreateOptions::default() };
        volume::create(&*world.store, &world.random, &Clock::System, &name("parent"), options).await.unwrap();
        let parent = world.open("parent").await;
        world.clone_of(&parent, None, "child").await.unwrap();
        parent.close().await.unwrap();
        let millis = Duration::from_millis;
        let slow = FaultOptions { delay_min: millis(1), delay_spread: millis(20), ..FaultOptions::default() };
        let far = FaultyStore::new(world.store.clone(), slow, world.random.clone());
        let (name, clock) = (name("parent"), Clock::System);
        let slots = Slots { store: &far, name: &name, secrets: &world.secrets, random: &world.random, clock: &clock };
        // Both may give up where they meet.
        let (_first, _second) = tokio::join!(slots.rotate(Cost::LEAST), slots.rotate(Cost::LEAST));
        world.open("child").await.close().await.unwrap();
    }
}
