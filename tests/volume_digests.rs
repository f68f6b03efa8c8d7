//! Digests of the log: what a killed volume costs to open, and that it is the same volume whatever has become of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::digest::Stretch;
use ashlar::format::keys::Keys;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};
use ashlar::units::Seq;
use ashlar::volume::{
    self, Budget, CreateOptions, FencedBy, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

const BLOCK: u64 = 4096;
/// Blocks of a segment.
const BLOCKS: u64 = 16;

/// A store that counts requests, and may refuse digests.
#[derive(Debug, Default)]
struct Watched {
    objects: MemoryStore,
    requests: AtomicU64,
    /// What was asked for, for whoever wants to know why these are so many.
    asked: Mutex<Vec<String>>,
    hides_digests: AtomicBool,
    refuses_digests: AtomicBool,
}

impl Watched {
    fn of(objects: MemoryStore) -> Arc<Watched> {
        Arc::new(Watched { objects, ..Watched::default() })
    }

    fn count(&self, what: &str, key: &str) {
        self.requests.fetch_add(1, Relaxed);
        self.asked.lock().push(format!("{what} {key}"));
    }

    fn look(&self, key: &Key) -> Result<()> {
        self.count("GET", key.as_str());
        match Keys::is_digest(key) && self.hides_digests.load(Relaxed) {
            true => Err(StoreError::new(ErrorKind::Denied, "this one is not for you")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Watched {
    fn url(&self) -> String {
        self.objects.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.count("PUT", key.as_str());
        if Keys::is_digest(key) && self.refuses_digests.load(Relaxed) {
            return Err(StoreError::new(ErrorKind::Retryable, "not now"));
        }
        self.objects.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.look(key)?;
        self.objects.get_range(key, range).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.look(key)?;
        self.objects.get_front(key, len).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.look(key)?;
        self.objects.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<ListPage> {
        self.count("LIST", prefix);
        self.objects.list(prefix, after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.objects.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.objects.delete(keys).await
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// No checkpoint comes, and nothing is collected.
fn quiet() -> Options {
    let day = Duration::from_secs(86_400);
    let mut options = Options {
        segment_size: BLOCKS * BLOCK,
        checkpoint_bytes: 1 << 40,
        checkpoint_interval: day,
        ..Options::default()
    };
    options.gc.quiet_after = day;
    options.gc.garbage_min = 1 << 40;
    (options.gc.sweep_grace, options.gc.sweep_interval) = (day, day);
    options
}

async fn open(store: Arc<dyn Store>, server: u64, disk: &CrashDisk, options: Options) -> Arc<Volume> {
    let outside = Outside {
        budget: Budget::new(&options),
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(server.into()), name: format!("number-{server}") },
        ..outside::plain(store, Arc::new(disk.clone()), Random::seeded(server))
    };
    let flags = OpenFlags { takeover: server > 1, ..OpenFlags::default() };
    Volume::open(outside, &name(), options, journal::Options::default(), flags).await.unwrap()
}

/// A volume, and what it must hold.
struct World {
    store: Arc<Watched>,
    keys: Keys,
    /// Which value each block has that was written.
    model: HashMap<u64, u8>,
    written: u64,
}

impl World {
    async fn new(fenced_by: FencedBy) -> World {
        let store = Arc::new(Watched::default());
        let create = CreateOptions { size: 1 << 30, fenced_by, ..CreateOptions::default() };
        volume::create(&*store, &Random::seeded(1), &Clock::System, &name(), create).await.unwrap();
        let keys = Keys::of(&volume::description::load(&*store, &name()).await.unwrap().meta);
        World { store, keys, model: HashMap::new(), written: 0 }
    }

    /// So many segments, each with blocks of those before among its own.
    async fn write(&mut self, volume: &Volume, segments: u64) {
        for _ in 0..segments {
            self.written += 1;
            for n in 0..BLOCKS {
                let block = if n < 4 { n } else { self.written * BLOCKS + 2 * n };
                let value = (self.written % 251) as u8 + 1;
                volume.write(block * BLOCK, Bytes::from(vec![value; BLOCK as usize]), false).await.unwrap();
                self.model.insert(block, value);
            }
            volume.save().await.unwrap();
        }
    }

    async fn check(&self, volume: &Volume, what: &str) {
        for (block, value) in &self.model {
            let read = volume.read(block * BLOCK, BLOCK as u32).await.unwrap().concat();
            assert!(read.iter().all(|byte| byte == value), "{what}: block {block} is {}, not {value}", read[0]);
        }
    }

    fn digests(&self) -> Vec<(Stretch, Bytes)> {
        digests(&self.store.objects, &self.keys)
    }
}

fn digests(store: &MemoryStore, keys: &Keys) -> Vec<(Stretch, Bytes)> {
    store.objects().into_iter().filter_map(|(key, bytes)| Some((keys.stretch(&key)?, bytes))).collect()
}

/// What comes to pass without anybody waiting for it.
async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Requests that an opening makes.
async fn opened(store: &Arc<Watched>, server: u64) -> (Arc<Volume>, u64) {
    store.asked.lock().clear();
    let before = store.requests.load(Relaxed);
    let volume = open(store.clone(), server, &CrashDisk::new(server), quiet()).await;
    (volume, store.requests.load(Relaxed) - before)
}

/// As many slots as a GiB of writes has with segments of 64 MiB and of 8 MiB, of twice that size, which they are under load; and as many as there are digests for in one go.
#[tokio::test(start_paused = true)]
async fn sixteen_requests_open_what_was_killed_after_a_gib() {
    for slots in [8, 16, 66, 96] {
        let mut world = World::new(FencedBy::CreateOnly).await;
        let volume = open(world.store.clone(), 1, &CrashDisk::new(1), quiet()).await;
        let before = world.store.requests.load(Relaxed);
        world.write(&volume, slots).await;
        a_moment().await;
        let put = world.store.requests.load(Relaxed) - before;
        drop(volume);
        assert_eq!(world.digests().len() as u64, slots / 4);
        assert_eq!(put, slots + slots / 4, "{slots} slots");
        let without = world.store.objects.fork();
        digests(&without, &world.keys)
            .iter()
            .for_each(|(stretch, _)| assert!(without.remove(&world.keys.digest(*stretch))));
        let (volume, requests) = opened(&world.store, 2).await;
        let asked = world.store.asked.lock().clone();
        world.check(&volume, "with digests").await;
        let (volume, many) = opened(&Watched::of(without), 2).await;
        world.check(&volume, "without").await;
        println!("{slots} slots: {requests} requests, {many} without digests: {asked:#?}");
        assert!(requests <= 16, "{slots} slots: {asked:#?}");
        assert!(many > requests, "{slots} slots: {many} requests without digests");
    }
}

/// The volume is the same, and goes on at the same place.
async fn is_the_same(world: &World, store: &Arc<Watched>, what: &str) {
    let shared: Arc<dyn Store> = store.clone();
    let source = Source::of(shared, &name(), &Options::default(), None, &Secrets::default()).await.unwrap();
    let (by_digests, by_slots) = (source.scan().await.unwrap(), source.scan_slots().await.unwrap());
    let place = |scan: &ashlar::opening::scan::Scan| {
        let fence = scan.fence.as_ref().map(|(seq, fence)| (*seq, fence.epoch));
        (scan.covers, scan.committed, scan.next, fence, scan.bytes_since_checkpoint, scan.fences_since, scan.closed)
    };
    assert_eq!(place(&by_digests), place(&by_slots), "{what}");
    let volume = open(store.clone(), 9, &CrashDisk::new(9), quiet()).await;
    world.check(&volume, what).await;
    let dynamic: Arc<dyn Store> = store.clone();
    let report = ashlar::check::check(&dynamic, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean() && report.orphans.is_empty(), "{what}: {report:?}");
}

async fn whatever_becomes_of_digests(fenced_by: FencedBy) {
    let mut world = World::new(fenced_by).await;
    let volume = open(world.store.clone(), 1, &CrashDisk::new(1), quiet()).await;
    world.write(&volume, 21).await;
    a_moment().await;
    // Another life of the volume, killed like the first.
    drop(volume);
    let volume = open(world.store.clone(), 2, &CrashDisk::new(2), quiet()).await;
    world.write(&volume, 14).await;
    a_moment().await;
    // What the server does that is displaced here, in a store of its own.
    let aside = Watched::of(world.store.objects.fork());
    drop(volume);
    let mut other =
        World { store: aside.clone(), keys: world.keys.clone(), model: world.model.clone(), written: world.written };
    let displaced = open(aside, 3, &CrashDisk::new(3), quiet()).await;
    other.write(&displaced, 12).await;
    a_moment().await;
    drop(displaced);
    let volume = open(world.store.clone(), 4, &CrashDisk::new(4), quiet()).await;
    world.written += 1000;
    world.write(&volume, 6).await;
    a_moment().await;
    drop(volume);

    let all = world.digests();
    assert!(all.len() >= 8, "{all:?}");
    let with = |change: &dyn Fn(&MemoryStore)| {
        let fork = world.store.objects.fork();
        change(&fork);
        Watched::of(fork)
    };
    let each = |change: &dyn Fn(&Bytes) -> Option<Bytes>| {
        with(&|fork| {
            for (stretch, bytes) in &all {
                let key = world.keys.digest(*stretch);
                match change(bytes) {
                    Some(bytes) => fork.replace(&key, bytes),
                    None => assert!(fork.remove(&key)),
                }
            }
        })
    };
    is_the_same(&world, &with(&|_| {}), "as it is").await;
    is_the_same(&world, &each(&|_| None), "without digests").await;
    is_the_same(&world, &each(&|bytes| Some(bytes.slice(..bytes.len() / 2))), "with torn digests").await;
    is_the_same(&world, &each(&|_| Some(Bytes::new())), "with empty digests").await;
    let harmed = |bytes: &Bytes| {
        let mut bytes = bytes.to_vec();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        Some(bytes.into())
    };
    is_the_same(&world, &each(&harmed), "with damaged digests").await;
    let refused = with(&|_| {});
    refused.hides_digests.store(true, Relaxed);
    is_the_same(&world, &refused, "with digests that cannot be read").await;
    for lost in 0..all.len() {
        let key = world.keys.digest(all[lost].0);
        is_the_same(&world, &with(&|fork| assert!(fork.remove(&key))), "without one of them").await;
        let (_, bytes) = &all[(lost + 1) % all.len()];
        is_the_same(&world, &with(&|fork| fork.replace(&key, bytes.clone())), "with one in another's place").await;
    }
    let of_another_past = with(&|fork| {
        let theirs = digests(&other.store.objects, &world.keys);
        let new: Vec<_> = theirs.iter().filter(|(stretch, _)| !all.iter().any(|(known, _)| known == stretch)).collect();
        assert!(!new.is_empty());
        new.iter().for_each(|(stretch, bytes)| fork.replace(&world.keys.digest(*stretch), bytes.clone()));
    });
    is_the_same(&world, &of_another_past, "with digests of a server that was displaced").await;
    // Of the same slots, which are filled here, too.
    let of_the_same_slots = with(&|fork| {
        let theirs = digests(&other.store.objects, &world.keys);
        let mut other = theirs
            .iter()
            .filter(|(stretch, bytes)| all.iter().any(|(known, ours)| known == stretch && ours != bytes))
            .peekable();
        assert!(other.peek().is_some());
        other.for_each(|(stretch, bytes)| fork.replace(&world.keys.digest(*stretch), bytes.clone()));
    });
    is_the_same(&world, &of_the_same_slots, "with what a server that was displaced tells of the same slots").await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_the_same_whatever_becomes_of_its_digests() {
    whatever_becomes_of_digests(FencedBy::CreateOnly).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_verified_mode_is_the_same_whatever_becomes_of_its_digests() {
    whatever_becomes_of_digests(FencedBy::Verified).await;
}

/// A slot that ends what a digest tells is read: if it is not there the log ends where it ends without the digest.
#[tokio::test(start_paused = true)]
async fn a_slot_that_is_gone_is_gone_whatever_a_digest_tells() {
    let mut world = World::new(FencedBy::CreateOnly).await;
    let volume = open(world.store.clone(), 1, &CrashDisk::new(1), quiet()).await;
    world.write(&volume, 8).await;
    a_moment().await;
    drop(volume);
    let last = world.digests().last().unwrap().0.last;
    assert!(world.store.objects.remove(&world.keys.segment(last)));
    let store: Arc<dyn Store> = world.store.clone();
    let source = Source::of(store, &name(), &Options::default(), None, &Secrets::default()).await.unwrap();
    let (by_digests, by_slots) = (source.scan().await.unwrap(), source.scan_slots().await.unwrap());
    assert_eq!((by_digests.committed, by_digests.next), (by_slots.committed, by_slots.next));
    assert_eq!(by_slots.next, last);
}

/// A checkpoint makes needless what it covers, also what was found at the opening; what has slots after it stays.
#[tokio::test(start_paused = true)]
async fn digests_go_with_the_checkpoint_that_covers_them() {
    let mut world = World::new(FencedBy::CreateOnly).await;
    let volume = open(world.store.clone(), 1, &CrashDisk::new(1), quiet()).await;
    world.write(&volume, 13).await;
    a_moment().await;
    drop(volume);
    assert_eq!(world.digests().len(), 3);
    let options = Options { checkpoint_interval: Duration::from_secs(20), ..quiet() };
    let volume = open(world.store.clone(), 2, &CrashDisk::new(2), options).await;
    world.write(&volume, 5).await;
    a_moment().await;
    assert_eq!(world.digests().len(), 4);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let newest = world
        .store
        .objects
        .objects()
        .iter()
        .filter(|(key, _)| key.as_str().starts_with(&world.keys.checkpoints()))
        .filter_map(|(key, _)| Keys::number(key))
        .max();
    let left = world.digests();
    assert!(left.is_empty(), "{left:?} after checkpoint {newest:?}");
    // The store refuses some: the next tells of their slots, too.
    world.store.refuses_digests.store(true, Relaxed);
    world.write(&volume, 16).await;
    a_moment().await;
    assert!(world.digests().is_empty());
    world.store.refuses_digests.store(false, Relaxed);
    world.write(&volume, 4).await;
    a_moment().await;
    let [(stretch, _)] = &world.digests()[..] else { panic!("{:?}", world.digests()) };
    assert_eq!((stretch.slots(), stretch.first > Seq(newest.unwrap())), (20, true));
    volume.close().await.unwrap();
    assert!(world.digests().is_empty(), "a clean end has a checkpoint");
    let store: Arc<dyn Store> = world.store.clone();
    let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean() && report.orphans.is_empty(), "{report:?}");
}

/// Whoever deletes a volume deletes its digests.
#[tokio::test(start_paused = true)]
async fn digests_go_with_their_volume() {
    let mut world = World::new(FencedBy::CreateOnly).await;
    let volume = open(world.store.clone(), 1, &CrashDisk::new(1), quiet()).await;
    world.write(&volume, 4).await;
    a_moment().await;
    drop(volume);
    assert_eq!(world.digests().len(), 1);
    let store: Arc<dyn Store> = world.store.clone();
    let server = ServerIdentity { uuid: uuid::Uuid::from_u128(7), name: "number-7".into() };
    let (random, secrets) = (Random::seeded(7), Secrets::default());
    volume::delete(&store, &random, &Clock::System, &server, &name(), true, &secrets, &|_| {}).await.unwrap();
    assert!(world.digests().is_empty());
}
