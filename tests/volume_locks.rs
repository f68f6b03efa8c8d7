//! Object lock: what snapshots need that are kept until a date stays in the store, whoever deletes what he can there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::retention::Schedule;
use ashlar::space::Label;
use ashlar::store::faults::FaultOptions;
use ashlar::store::hedge::HedgeOptions;
use ashlar::store::look::LookStore;
use ashlar::store::memory::MemoryStore;
use ashlar::store::open::{StoreOptions, stack};
use ashlar::store::{self, ErrorKind, Key, ListPage, Store, StoreError};
use ashlar::volume::clones::{self, Wanted};
use ashlar::volume::{
    self, Budget, CreateOptions, Locked, Meta, OpenFlags, Options, Outside, Past, Volume, VolumeError, VolumeName,
    description,
};
use async_trait::async_trait;
use bytes::Bytes;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
const SIZE: u64 = BLOCKS * BLOCK;
const DAY: u64 = 86_400_000;

/// A store with object lock that may refuse to lock anything.
#[derive(Debug, Clone)]
struct Way {
    inner: MemoryStore,
    refuses: Arc<AtomicBool>,
    locked: Arc<AtomicU64>,
}

#[async_trait]
impl Store for Way {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> store::Result<()> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> store::Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> store::Result<Bytes> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> store::Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> store::Result<Vec<String>> {
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> store::Result<()> {
        self.inner.delete(keys).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> store::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Denied, "nobody may lock anything"));
        }
        self.inner.retain(key, until_unix_millis).await?;
        self.locked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct World {
    store: Way,
    clock: Arc<AtomicU64>,
    random: Random,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn options() -> Options {
    let mut options = Options {
        segment_size: 64 << 10,
        segment_size_max: 64 << 10,
        checkpoint_bytes: 256 << 10,
        map_memory: 64 << 10,
        ..Options::default()
    };
    options.gc.garbage_min = 0;
    options
}

impl World {
    async fn new(inner: MemoryStore) -> World {
        let (random, clock) = (Random::seeded(1), Arc::new(AtomicU64::new(DAY)));
        let create = CreateOptions { size: SIZE, ..CreateOptions::default() };
        volume::create(&inner, &random, &Clock::Manual(clock.clone()), &name(), create).await.unwrap();
        let store = Way { inner, refuses: Arc::default(), locked: Arc::default() };
        World { store, clock, random }
    }

    async fn open(&self) -> Arc<Volume> {
        self.open_in(Arc::new(self.store.clone()), CrashDisk::new(1), OpenFlags::default()).await.unwrap()
    }

    async fn open_in(
        &self,
        store: Arc<dyn Store>,
        disk: CrashDisk,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        let outside = self.outside(store, disk);
        self.open_with(outside, &name(), flags).await
    }

    fn outside(&self, store: Arc<dyn Store>, disk: CrashDisk) -> Outside {
        Outside {
            cache: Arc::new(BlockCache::in_memory(1 << 20)),
            clock: Clock::Manual(self.clock.clone()),
            ..outside::plain(store, Arc::new(disk), self.random.clone())
        }
    }

    async fn open_with(
        &self,
        outside: Outside,
        name: &VolumeName,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        Volume::open(outside, name, options(), journal::Options::default(), flags).await
    }

    /// A clone of an open volume as it is now, opened.
    async fn clone_of(&self, parent: &Volume, to: &str) -> Arc<Volume> {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let to = VolumeName::new(to).unwrap();
        let clone = clones::plan(&*store, &self.random, &to).await.unwrap();
        let shown = parent.register_clone(None, 1, clone.clone()).await.unwrap();
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        let source = Source::of(store, &parent.meta().name, &self::options(), None, &Secrets::default()).await.unwrap();
        let (clock, wanted) = (Clock::Manual(self.clock.clone()), Wanted { name: to.clone(), options });
        clones::make(&source, &self.random, &clock, wanted, (&clone, shown.seq)).await.unwrap();
        let outside = self.outside(Arc::new(self.store.clone()), CrashDisk::new(3));
        self.open_with(outside, &to, OpenFlags::default()).await.unwrap()
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Both clocks go on.
    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        self.clock.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    /// Writes what will be needed in part, if somebody keeps it.
    async fn fill(&self, volume: &Volume) {
        volume.write(0, noise(&self.random, 128), true).await.unwrap();
        for block in (0..128).step_by(2) {
            volume.write(block * BLOCK, noise(&self.random, 1), false).await.unwrap();
        }
    }

    /// Overwrites everything again and again, until what was there at first lies elsewhere.
    async fn churn(&self, volume: &Volume) {
        for _ in 0..8 {
            volume.write(0, noise(&self.random, 128), true).await.unwrap();
            self.pass(120).await;
        }
    }

    /// The snapshot in what is left when somebody deleted all that he can, at that time.
    async fn in_the_wreck(&self, unix_millis: u64, snapshot: &str) -> Result<Vec<u8>, VolumeError> {
        self.in_the_wreck_of("v", unix_millis, snapshot).await
    }

    async fn in_the_wreck_of(&self, of: &str, unix_millis: u64, snapshot: &str) -> Result<Vec<u8>, VolumeError> {
        let store: Arc<dyn Store> = Arc::new(self.store.inner.wreck(unix_millis));
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let past = Past::open(
            store,
            &VolumeName::new(of).unwrap(),
            snapshot,
            &options(),
            &Budget::default(),
            near,
            &Secrets::default(),
        )
        .await?;
        Ok(all_of(&past).await)
    }

    fn segments(&self) -> Vec<Key> {
        let objects = self.store.inner.objects().into_iter().map(|(key, _)| key);
        objects.filter(|key| key.as_str().contains("/segments/")).collect()
    }
}

fn label(name: &str, until: u64) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, keep_until_unix_millis: until, ..Label::default() }
}

async fn all_of(device: &dyn Device) -> Vec<u8> {
    device.read(0, SIZE as u32).await.unwrap().concat().to_vec()
}

fn noise(random: &Random, blocks: u64) -> Bytes {
    (0..blocks * BLOCK / 64).flat_map(|_| random.bytes::<64>()).collect::<Vec<u8>>().into()
}

/// Also while collection goes on in what the snapshot needs, and with the volume as it was then: the rest of the bucket is gone.
#[tokio::test(start_paused = true)]
async fn what_a_snapshot_needs_outlives_whoever_deletes_everything() {
    let world = World::new(MemoryStore::with_object_lock()).await;
    let volume = world.open().await;
    volume.write(0, noise(&world.random, 128), false).await.unwrap();
    volume.take_snapshot(label("free", 0)).await.unwrap();
    volume.settle_locks().await.unwrap();
    world.pass(300).await;
    assert_eq!(world.store.locked.load(Ordering::Relaxed), 0, "nothing is kept until a date");
    volume.delete_snapshot("free").await.unwrap();
    world.fill(&volume).await;
    let until = world.now() + 30 * DAY;
    volume.take_snapshot(label("kept", until)).await.unwrap();
    volume.settle_locks().await.unwrap();
    let (kept, before) = (all_of(&*volume).await, world.segments());
    assert!(world.in_the_wreck(world.now(), "kept").await.unwrap() == kept);

    world.churn(&volume).await;
    assert!(before.iter().any(|key| !world.segments().contains(key)), "collection went on");
    assert!(world.in_the_wreck(until - 1, "kept").await.unwrap() == kept);
    assert_eq!(world.store.inner.wreck(until).object_count(), 0, "and not a second longer than asked for");
    let told = volume.locked().unwrap();
    assert_eq!((told.until_unix_millis, told.is_behind, &told.trouble), (until, false, &None));

    // The volume opens as what it was then.
    let wreck: Arc<dyn Store> = Arc::new(world.store.inner.wreck(world.now()));
    let flags = OpenFlags { takeover: true, ..OpenFlags::default() };
    let opened = world.open_in(wreck.clone(), CrashDisk::new(2), flags).await.unwrap();
    assert!(all_of(&*opened).await == kept);
    opened.close().await.unwrap();
    let report = ashlar::check::check(&wreck, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// What a clone shows of its parent is locked with the snapshots of the clone, also while the server of the parent moves it; and of the parent's parent.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_clone_outlives_whoever_deletes_all_of_its_parents() {
    let world = World::new(MemoryStore::with_object_lock()).await;
    let parent = world.open().await;
    world.fill(&parent).await;
    let child = world.clone_of(&parent, "child").await;
    child.write(100 * BLOCK, noise(&world.random, 64), false).await.unwrap();
    let grandchild = world.clone_of(&child, "grandchild").await;
    grandchild.write(160 * BLOCK, noise(&world.random, 64), false).await.unwrap();
    let kept = all_of(&*grandchild).await;
    for _ in 0..4 {
        world.churn(&parent).await;
        let until = world.now() + 30 * DAY;
        grandchild.take_snapshot(label(&format!("kept-{until}"), until)).await.unwrap();
        grandchild.settle_locks().await.unwrap();
        let locked = world.store.locked.load(Ordering::Relaxed);
        world.churn(&parent).await;
        child.trim(0, SIZE, true).await.unwrap();
        world.pass(300).await;
        assert_eq!(world.store.locked.load(Ordering::Relaxed), locked, "there is nothing more to be locked");
        let found = world.in_the_wreck_of("grandchild", until - 1, &format!("kept-{until}")).await.unwrap();
        assert!(found == kept);
    }
}

/// What the snapshot needs has moved by then, or moves after that.
#[tokio::test(start_paused = true)]
async fn a_later_date_is_for_what_is_needed_by_then() {
    let world = World::new(MemoryStore::with_object_lock()).await;
    let volume = world.open().await;
    world.fill(&volume).await;
    let (soon, later) = (world.now() + DAY, world.now() + 9 * DAY);
    volume.take_snapshot(label("kept", soon)).await.unwrap();
    volume.settle_locks().await.unwrap();
    let kept = all_of(&*volume).await;
    let before = world.segments();
    world.churn(&volume).await;
    assert!(before.iter().any(|key| !world.segments().contains(key)), "collection went on");
    volume.keep_snapshot_until("kept", later).await.unwrap();
    volume.settle_locks().await.unwrap();
    assert!(world.in_the_wreck(later - 1, "kept").await.unwrap() == kept);
    world.churn(&volume).await;
    assert!(world.in_the_wreck(later - 1, "kept").await.unwrap() == kept);

    // Whoever opens it begins anew: what was written by a server that did not lock is locked then.
    volume.close().await.unwrap();
    let plain = World { store: Way { inner: world.store.inner.fork(), ..world.store.clone() }, ..world };
    let inner = MemoryStore::with_object_lock();
    for (key, body) in plain.store.inner.objects() {
        inner.put(&key, vec![body]).await.unwrap();
    }
    let world = World { store: Way { inner, ..plain.store }, ..plain };
    assert!(world.in_the_wreck(world.now(), "kept").await.is_err());
    let volume = world.open_in(Arc::new(world.store.clone()), CrashDisk::new(3), OpenFlags::default()).await.unwrap();
    volume.settle_locks().await.unwrap();
    assert!(world.in_the_wreck(later - 1, "kept").await.unwrap() == kept);
}

/// Not everything with each snapshot.
#[tokio::test(start_paused = true)]
async fn a_schedule_locks_an_object_a_few_times() {
    let world = World::new(MemoryStore::with_object_lock()).await;
    let hour = Duration::from_secs(3600);
    let schedule = Schedule::new(Duration::from_secs(60), "3 x 1m".parse().unwrap()).unwrap();
    let schedule = schedule.kept_for(Some(36 * hour)).unwrap();
    let found = description::load(&world.store, &name()).await.unwrap();
    let meta = Meta { schedule: Some(schedule), ..found.meta.clone() };
    found.replace(&world.store, &world.random, &meta, None).await.unwrap();
    let volume = world.open().await;
    let (mut put, mut known) = (0, Vec::new());
    for _ in 0..120 {
        volume.write(0, noise(&world.random, 8), true).await.unwrap();
        world.pass(60).await;
        let now = world.store.inner.objects().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        put += now.iter().filter(|key| !known.contains(*key)).count() as u64;
        known = now;
    }
    let kept = volume.snapshots();
    assert!(kept.len() > 100, "{}", kept.len());
    let newest = kept.last().unwrap().label.clone();
    volume.settle_locks().await.unwrap();
    world.in_the_wreck(newest.keep_until_unix_millis - 1, &newest.name).await.unwrap();
    let locked = world.store.locked.load(Ordering::Relaxed);
    assert!(locked > put / 2 && locked < 2 * put, "{locked} locks of {put} objects");
    assert_eq!(volume.locked().unwrap().objects, locked);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_to_lock_is_told_of_and_asked_again() {
    let world = World::new(MemoryStore::with_object_lock()).await;
    let volume = world.open().await;
    world.store.refuses.store(true, Ordering::Relaxed);
    volume.write(0, noise(&world.random, 8), false).await.unwrap();
    let until = world.now() + DAY;
    volume.take_snapshot(label("kept", until)).await.unwrap();
    let told = volume.settle_locks().await.unwrap_err().to_string();
    let expected = "snapshots of volume v are kept, and not locked in the store yet, which is tried again while it is open: nobody may lock anything";
    assert_eq!(told, expected);
    let trouble = Some("nobody may lock anything".to_owned());
    assert_eq!(
        volume.locked(),
        Some(Locked { until_unix_millis: 0, is_behind: true, objects: 0, trouble: trouble.clone() })
    );
    world.store.refuses.store(false, Ordering::Relaxed);
    world.pass(600).await;
    let told = volume.locked().unwrap();
    assert_eq!((told.until_unix_millis, told.is_behind, told.trouble), (until, false, None));
    // Nobody waits for a volume that is closed.
    world.store.refuses.store(true, Ordering::Relaxed);
    volume.take_snapshot(label("another", until + 1)).await.unwrap();
    volume.close().await.unwrap();
    assert!(volume.settle_locks().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_without_object_lock_is_asked_for_none() {
    let world = World::new(MemoryStore::default()).await;
    let volume = world.open().await;
    volume.take_snapshot(label("kept", world.now() + DAY)).await.unwrap();
    volume.settle_locks().await.unwrap();
    assert_eq!((volume.locked(), world.store.locked.load(Ordering::Relaxed)), (None, 0));
    let error = Store::retain(&MemoryStore::default(), &Key::new("v/1").unwrap(), 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn every_wrapper_hands_a_lock_on() {
    let memory = MemoryStore::with_object_lock();
    let faults = FaultOptions { refuse: 300, fail_after: 300, ..FaultOptions::default() };
    let hedge = HedgeOptions { share_percent: 50, ..HedgeOptions::default() };
    let options = StoreOptions { faults, hedge, ..StoreOptions::default() };
    let opened = stack(Arc::new(memory.clone()), &options, &Random::seeded(1));
    let (tower, meter) = (LookStore(opened.store), opened.meter);
    let key = Key::new("v/1").unwrap();
    assert!(tower.retains());
    let plain = stack(Arc::new(MemoryStore::default()), &options, &Random::seeded(1));
    assert!(!LookStore(plain.store).retains());
    assert_eq!(tower.retain(&key, 5).await.unwrap_err().kind, ErrorKind::NotFound);
    memory.put(&key, vec![Bytes::from_static(b"body")]).await.unwrap();
    let before = meter.snapshot().put.count;
    tower.retain(&key, 5).await.unwrap();
    tower.delete(std::slice::from_ref(&key)).await.unwrap();
    assert_eq!((memory.object_count(), memory.wreck(4).object_count(), memory.wreck(5).object_count()), (0, 1, 0));
    assert!(meter.snapshot().put.count > before, "it is paid for");
}
