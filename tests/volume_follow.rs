//! A volume that another server writes, followed: whole checkpoints and nothing else, without taking anything, and for no requests while nobody
//! reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::{Allocation, Device, DeviceError};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::{Follower, Glass, description};
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Key, ListPage, Store, StoreError};
use ashlar::volume::{self, Budget, CreateOptions, OpenFlags, Options, ServerIdentity, Volume, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::sleep;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const SIZE: u64 = (BLOCK * BLOCKS) as u64;
const SECOND: Duration = Duration::from_secs(1);

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// The way of a follower to the store: with credentials that can only GET and LIST. It counts, may be away, and may hold one GET of a segment.
#[derive(Debug)]
struct Way {
    inner: MemoryStore,
    gets: AtomicUsize,
    lists: AtomicUsize,
    is_away: AtomicBool,
    holds: AtomicBool,
    /// The same of a LIST of checkpoints, when it is answered.
    holds_list: AtomicBool,
    held: Notify,
    open: Notify,
}

impl Way {
    fn new(inner: &MemoryStore) -> Arc<Way> {
        Arc::new(Way {
            inner: inner.clone(),
            gets: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            holds_list: AtomicBool::new(false),
            held: Notify::new(),
            open: Notify::new(),
        })
    }

    /// LISTs and GETs until now.
    fn asked(&self) -> (usize, usize) {
        (self.lists.load(Ordering::Relaxed), self.gets.load(Ordering::Relaxed))
    }

    fn check(&self, count: &AtomicUsize) -> Result<(), StoreError> {
        count.fetch_add(1, Ordering::Relaxed);
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(StoreError::new(ErrorKind::Denied, "it is away")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Way {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, _: Vec<Bytes>) -> Result<(), StoreError> {
        panic!("a follower puts {key}");
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check(&self.gets)?;
        if key.as_str().contains("/segments/") && self.holds.swap(false, Ordering::Relaxed) {
            self.held.notify_one();
            self.open.notified().await;
        }
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.check(&self.gets)?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage, StoreError> {
        self.check(&self.lists)?;
        let listed = self.inner.list(prefix, start_after).await;
        if prefix.contains("/checkpoints/") && self.holds_list.swap(false, Ordering::Relaxed) {
            self.held.notify_one();
            self.open.notified().await;
        }
        listed
    }

    async fn list_top(&self) -> Result<Vec<String>, StoreError> {
        self.check(&self.lists)?;
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<(), StoreError> {
        panic!("a follower deletes {keys:?}");
    }
}

/// A store with one volume.
struct World {
    store: MemoryStore,
    random: Random,
}

impl World {
    async fn new(seed: u64) -> World {
        let world = World { store: MemoryStore::new(), random: Random::seeded(seed) };
        world.create().await;
        world
    }

    async fn create(&self) {
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        volume::create(&self.store, &self.random, &Clock::System, &name(), options).await.unwrap();
    }

    async fn delete(&self) {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let server = ServerIdentity { uuid: uuid::Uuid::from_u128(9), name: "nine".into() };
        let secrets = Secrets::default();
        volume::delete(&store, &self.random, &Clock::System, &server, &name(), false, &secrets, &|_| ()).await.unwrap();
    }

    /// A writer that checkpoints often, and deletes at once.
    async fn write(&self) -> Arc<Volume> {
        let outside = outside::plain(Arc::new(self.store.clone()), Arc::new(CrashDisk::new(1)), self.random.clone());
        let options = Options {
            segment_size: 2 << 20,
            writeback_delay: SECOND,
            checkpoint_interval: 2 * SECOND,
            ..Options::default()
        };
        let flags = OpenFlags::default();
        Volume::open(outside, &name(), options, journal::Options::default(), flags).await.unwrap()
    }

    async fn follow(&self, way: &Arc<Way>, cache: u64) -> Result<Follower, volume::VolumeError> {
        let glass = Glass {
            store: way.clone(),
            options: Options::default(),
            budget: Budget::default(),
            near: (Arc::new(BlockCache::in_memory(cache)), Workers::Inline),
            secrets: Secrets::default(),
        };
        Follower::open(glass, &name(), SECOND).await
    }

    /// The first block of that number is noise; so that nothing is compressed away, and all blocks say which round they are of.
    fn round(&self, round: u8) -> Bytes {
        let mut all = vec![0; SIZE as usize];
        for block in all.chunks_mut(BLOCK) {
            block[0] = round;
            for eight in block[8..].chunks_mut(8) {
                eight.copy_from_slice(&self.random.below(u64::MAX).to_le_bytes());
            }
        }
        all.into()
    }
}

/// Of which round the volume is, every block of it.
async fn round_of(device: &dyn Device) -> Result<u8, DeviceError> {
    let all = device.read(0, SIZE as u32).await?.concat();
    let round = all[0];
    assert!(all.chunks(BLOCK).all(|block| block[0] == round), "a mix of versions");
    Ok(round)
}

/// Checkpoints come as fast as they can, and what they made needless goes; a follower without a cache reads all the time. It gets each time
/// one version whole, never an older one than before, and at last the newest.
#[tokio::test(start_paused = true)]
async fn a_follower_reads_one_checkpoint_whole_and_never_goes_back() {
    let world = World::new(1).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = Arc::new(world.follow(&way, 0).await.unwrap());
    let reader = {
        let follower = follower.clone();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let round = round_of(&*follower).await.unwrap();
                assert!(seen.last().is_none_or(|last| *last <= round), "{round} after {seen:?}");
                seen.push(round);
                if round == 60 {
                    return seen;
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    };
    for round in 2..=60 {
        // One change, in one segment: a checkpoint has it, or it has it not.
        volume.write(0, world.round(round), round % 3 == 0).await.unwrap();
        sleep(Duration::from_millis(700)).await;
    }
    sleep(10 * SECOND).await;
    let mut seen = reader.await.unwrap();
    seen.dedup();
    assert!(seen.len() > 10, "{seen:?}");
    volume.close().await.unwrap();
}

/// What a read needs is deleted while it is under way: it is answered from the newest checkpoint, and the client sees no error. Also if that
/// happens to the newest one in turn.
#[tokio::test(start_paused = true)]
async fn what_the_writer_deletes_under_a_read_is_read_anew() {
    let world = World::new(2).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = Arc::new(world.follow(&way, 0).await.unwrap());
    way.holds.store(true, Ordering::Relaxed);
    let mut reading = tokio::spawn({
        let follower = follower.clone();
        async move { round_of(&*follower).await }
    });
    for round in 2..5 {
        tokio::select! {
            () = way.held.notified() => {}
            ended = &mut reading => panic!("the read ended early: {ended:?}"),
        }
        let before: Vec<Key> = world.store.objects().into_iter().map(|(key, _)| key).collect();
        volume.write(0, world.round(round), true).await.unwrap();
        sleep(20 * SECOND).await;
        let gone =
            before.iter().filter(|key| key.as_str().contains("/segments/")).filter(|key| !world.has(key)).count();
        assert!(gone > 0, "{gone} segments went");
        way.holds.store(round < 4, Ordering::Relaxed);
        way.open.notify_one();
    }
    assert_eq!(reading.await.unwrap().unwrap(), 4);
    volume.close().await.unwrap();
}

impl World {
    fn has(&self, key: &Key) -> bool {
        self.store.objects().iter().any(|(there, _)| there == key)
    }
}

/// Nobody reads: nothing is asked. Somebody does: one LIST in a second, and nothing else while nothing is new and the cache has it.
#[tokio::test(start_paused = true)]
async fn nobody_looking_costs_no_request() {
    let world = World::new(3).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = world.follow(&way, 16 << 20).await.unwrap();
    assert_eq!(round_of(&follower).await.unwrap(), 1);
    let (lists, gets) = way.asked();
    volume.write(0, world.round(2), true).await.unwrap();
    sleep(86_400 * SECOND).await;
    assert_eq!(way.asked(), (lists, gets), "nobody reads");
    // One look finds it.
    assert_eq!(round_of(&follower).await.unwrap(), 2);
    volume.close().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(round_of(&follower).await.unwrap(), 2);
    let (lists, gets) = way.asked();
    for _ in 0..10 {
        // Ten reads in each second.
        for _ in 0..10 {
            assert_eq!(round_of(&follower).await.unwrap(), 2);
        }
        sleep(SECOND).await;
    }
    assert_eq!(way.asked(), (lists + 9, gets), "one LIST in a second");
}

/// The store is away: what is in the cache is read on, and what is new comes when it is back.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_leaves_what_is_known() {
    let world = World::new(4).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = world.follow(&way, 16 << 20).await.unwrap();
    assert_eq!(round_of(&follower).await.unwrap(), 1);
    way.is_away.store(true, Ordering::Relaxed);
    volume.write(0, world.round(2), true).await.unwrap();
    for _ in 0..5 {
        sleep(5 * SECOND).await;
        assert_eq!(round_of(&follower).await.unwrap(), 1);
    }
    way.is_away.store(false, Ordering::Relaxed);
    sleep(SECOND).await;
    assert_eq!(round_of(&follower).await.unwrap(), 2);
    // Who has nothing of it in its cache is told.
    let without = world.follow(&way, 0).await.unwrap();
    way.is_away.store(true, Ordering::Relaxed);
    let error = round_of(&without).await.unwrap_err().to_string();
    assert!(error.contains("it is away"), "{error}");
    volume.close().await.unwrap();
}

/// One request looks for news at a store that does not answer any more: others do not wait for it for ever, and get what is in the cache.
#[tokio::test(start_paused = true)]
async fn a_look_that_never_ends_keeps_nobody_else_from_what_is_known() {
    let world = World::new(8).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    volume.close().await.unwrap();
    let way = Way::new(&world.store);
    let follower = Arc::new(world.follow(&way, 16 << 20).await.unwrap());
    let known = follower.read(0, BLOCK as u32).await.unwrap().concat();
    let objects = world.store.objects().into_iter().map(|(key, _)| key);
    let segments: Vec<Key> = objects.filter(|key| key.as_str().contains("/segments/")).collect();
    world.store.delete(&segments).await.unwrap();
    way.holds_list.store(true, Ordering::Relaxed);
    let looking = tokio::spawn({
        let follower = follower.clone();
        async move { follower.read(SIZE - BLOCK as u64, BLOCK as u32).await }
    });
    way.held.notified().await;
    sleep(2 * SECOND).await;
    let read = tokio::time::timeout(60 * SECOND, follower.read(0, BLOCK as u32)).await;
    assert_eq!(read.expect("it waits for the other").unwrap().concat(), known);
    way.open.notify_one();
    assert!(looking.await.unwrap().is_err());
}

/// A name is not an identity: a follower never shows what another volume of that name has.
#[tokio::test(start_paused = true)]
async fn a_volume_that_comes_after_is_not_followed() {
    let world = World::new(5).await;
    let way = Way::new(&world.store);
    for round in 1..3 {
        let volume = world.write().await;
        volume.write(0, world.round(round), true).await.unwrap();
        volume.close().await.unwrap();
        drop(volume);
        let follower = world.follow(&way, 0).await.unwrap();
        assert_eq!(round_of(&follower).await.unwrap(), round);
        world.delete().await;
        sleep(2 * SECOND).await;
        assert!(round_of(&follower).await.is_err());
        world.create().await;
        sleep(2 * SECOND).await;
        assert!(round_of(&follower).await.is_err());
    }
    let empty = world.follow(&way, 0).await.unwrap();
    assert_eq!(empty.read(0, SIZE as u32).await.unwrap().concat(), vec![0; SIZE as usize], "nothing was ever written");
}

/// The same, while a follower has found a newer checkpoint of the one that it follows, and has not opened it yet.
#[tokio::test(start_paused = true)]
async fn a_volume_that_comes_while_one_looks_is_not_followed() {
    let world = World::new(7).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = Arc::new(world.follow(&way, 0).await.unwrap());
    volume.write(0, world.round(2), true).await.unwrap();
    volume.close().await.unwrap();
    sleep(SECOND).await;
    way.holds_list.store(true, Ordering::Relaxed);
    let reading = tokio::spawn(async move { round_of(&*follower).await });
    way.held.notified().await;
    world.delete().await;
    world.create().await;
    let next = world.write().await;
    for round in 3..20 {
        next.write(0, world.round(round), true).await.unwrap();
    }
    next.close().await.unwrap();
    way.open.notify_one();
    let error = reading.await.unwrap().unwrap_err().to_string();
    assert!(error.starts_with("volume v is another one now ("), "{error}");
}

/// The volume becomes larger and smaller under its follower: what is beyond the end reads as zero, and changes are refused.
#[tokio::test(start_paused = true)]
async fn a_followed_volume_has_the_size_of_its_checkpoint_and_is_not_changed() {
    let world = World::new(6).await;
    let volume = world.write().await;
    volume.write(0, world.round(1), true).await.unwrap();
    sleep(5 * SECOND).await;
    let way = Way::new(&world.store);
    let follower = world.follow(&way, 0).await.unwrap();
    assert_eq!((follower.info().size, follower.info().read_only), (SIZE, true));
    volume.shrink(SIZE / 2, true).await.unwrap();
    volume.write(0, Bytes::from(vec![7; BLOCK]), true).await.unwrap();
    sleep(5 * SECOND).await;
    let all = follower.read(0, SIZE as u32).await.unwrap().concat();
    assert_eq!((all.len() as u64, &all[..BLOCK]), (SIZE, &[7; BLOCK][..]));
    assert!(all[SIZE as usize / 2..].iter().all(|byte| *byte == 0));
    assert_eq!(follower.info().size, SIZE / 2);
    let beyond = follower.extents(SIZE - 4096, 4096, 9).await.unwrap();
    assert_eq!(beyond.iter().map(|run| (run.len, run.allocation)).collect::<Vec<_>>(), [(4096, Allocation::Hole)]);
    follower.cache(SIZE - 4096, 4096).await.unwrap();
    let sealer = description::load(&world.store, &name()).await.unwrap().unlock(&Secrets::default()).await.unwrap();
    let described = description::load(&world.store, &name()).await.unwrap();
    volume::resize::grow(&world.store, &world.random, &described, &sealer, 2 * SIZE).await.unwrap();
    volume.reload().await.unwrap();
    volume.write(2 * SIZE - BLOCK as u64, Bytes::from(vec![8; BLOCK]), true).await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(follower.read(0, 4096).await.unwrap().concat(), [7; BLOCK]);
    assert_eq!(follower.info().size, 2 * SIZE);
    assert_eq!(follower.read(2 * SIZE - BLOCK as u64, BLOCK as u32).await.unwrap().concat(), [8; BLOCK]);
    let refused = follower.write(0, Bytes::from(vec![1; BLOCK]), false).await;
    assert!(matches!(refused, Err(DeviceError::ReadOnly(_))), "{refused:?}");
    volume.close().await.unwrap();
}
