//! A name is not an identity (rule R16): volumes that follow one another under one name never meet, whoever of them still
//! has a server, and whatever dies while they are created and deleted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::codec::frame::Compression;
use ashlar::codec::object::{ObjectKind, kind_of};
use ashlar::codec::seal::Sealer;
use ashlar::device::{Device, DeviceError};
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::keys::Keys;
use ashlar::format::meta::{FencedBy, Layout, Meta};
use ashlar::format::segment::{Durability, Fence};
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::description;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, ListPage, Store, StoreError, list_all};
use ashlar::units::{BlockSize, ChangeNo, Epoch, Seq};
use ashlar::volume::{
    self, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use uuid::Uuid;

const SIZE: u64 = 64 << 20;
const TAKEOVER: OpenFlags = OpenFlags {
    takeover: true,
    accept_loss: false,
    drop_journal: false,
    accept_rollback: false,
    accept_log_loss: false,
    breaks_line: false,
};

/// A store, and whoever comes and goes.
struct World {
    memory: MemoryStore,
    random: Random,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn identity(server: u128) -> ServerIdentity {
    ServerIdentity { uuid: Uuid::from_u128(server), name: format!("server-{server}") }
}

impl World {
    fn new() -> World {
        World { memory: MemoryStore::default(), random: Random::seeded(7) }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.memory.clone())
    }

    async fn create(&self) -> Result<Uuid, VolumeError> {
        self.create_through(&*self.store()).await
    }

    async fn create_through(&self, store: &dyn Store) -> Result<Uuid, VolumeError> {
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        Ok(volume::create(store, &self.random, &Clock::System, &name(), options).await?.meta.uuid)
    }

    async fn delete(&self, takeover: bool) -> Result<u64, VolumeError> {
        self.delete_through(&self.store(), takeover).await
    }

    async fn delete_through(&self, store: &Arc<dyn Store>, takeover: bool) -> Result<u64, VolumeError> {
        let (clock, secrets) = (Clock::System, Secrets::default());
        volume::delete(store, &self.random, &clock, &identity(99), &name(), takeover, &secrets, &|_| ()).await
    }

    async fn open(&self, server: u128, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        self.open_through(self.store(), server, flags).await
    }

    /// On a disk of its own that holds nothing yet.
    async fn open_through(
        &self,
        store: Arc<dyn Store>,
        server: u128,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            server: identity(server),
            ..outside::plain(store, Arc::new(CrashDisk::new(1)), self.random.clone())
        };
        Volume::open(outside, &name(), Options::default(), journal::Options::default(), flags).await
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        list_all(&self.memory, prefix).await.unwrap().into_iter().map(|entry| entry.key.to_string()).collect()
    }

    /// The volume of that name is whole, every frame of it, and opens, keeps data, closes and opens again.
    async fn is_usable(&self) {
        for round in 0..2u8 {
            let volume = self.open(50, OpenFlags::default()).await.unwrap();
            for i in 0..20 {
                volume.write(i * 4096, block(round), true).await.unwrap();
            }
            volume.close().await.unwrap();
            let report =
                ashlar::check::check(&self.store(), &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
            assert!(report.is_clean() && report.orphans.is_empty(), "{report:#?}");
        }
    }
}

fn block(byte: u8) -> Bytes {
    Bytes::from(vec![byte + 1; 4096])
}

/// What ends it first is a page that a commit needs and that is gone, with the volume: it asks why.
#[tokio::test(start_paused = true)]
async fn a_server_that_misses_a_page_is_told_that_it_was_displaced() {
    let world = World::new();
    world.create_used().await;
    let gate = Gate::new(&world, "get_range", "/checkpoints/");
    gate.closed.store(false, std::sync::atomic::Ordering::SeqCst);
    let displaced = world.open_through(gate.clone(), 2, OpenFlags::default()).await.unwrap();
    gate.closed.store(true, std::sync::atomic::Ordering::SeqCst);
    let writing = displaced.write(0, block(2), true);
    let deleting = async {
        // Its segment is in the store.
        gate.reached.notified().await;
        world.delete(true).await.unwrap();
        gate.open.notify_one();
    };
    let (told, ()) = tokio::join!(writing, deleting);
    assert!(matches!(told, Err(DeviceError::Fenced(_))), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_displaced_server_is_told_and_the_next_volume_of_that_name_lives() {
    let world = World::new();
    world.create().await.unwrap();
    let displaced = world.open(1, OpenFlags::default()).await.unwrap();
    for i in 0..5 {
        displaced.write(i * 4096, block(0), true).await.unwrap();
    }
    assert!(matches!(world.delete(false).await, Err(VolumeError::Held { .. })));
    world.delete(true).await.unwrap();
    // It goes on, and is not told by anybody.
    displaced.write(0, block(9), false).await.unwrap();
    assert!(matches!(displaced.flush().await, Err(DeviceError::Fenced(_))));
    assert!(displaced.write(0, block(9), true).await.is_err());
    world.create().await.unwrap();
    assert!(displaced.write(0, block(9), true).await.is_err());
    world.is_usable().await;
}

impl World {
    /// A volume as an ashlar made it that knew no folders.
    async fn create_old(&self) -> Meta {
        let meta = Meta {
            name: name(),
            uuid: self.random.uuid(),
            size: SIZE,
            block_size: BlockSize::default(),
            created_unix_millis: 1_700_000_000_000,
            compression: Compression::Lz4,
            encryption: None,
            deleted: false,
            layout: Layout::ByName,
            fenced_by: FencedBy::CreateOnly,
            schedule: None,
            keep_until_unix_millis: 0,
            parent: None,
            may_have_clones: false,
            copy: None,
            settings: Default::default(),
            log: None,
        };
        let encoded = meta.encode(None);
        assert!(encoded.starts_with(b"{\n  \"format\": 1,"), "as it always was");
        self.memory.put(&Keys::meta(&name(), 1), vec![encoded.into()]).await.unwrap();
        meta
    }

    /// A volume with something in it, that its server closed.
    async fn create_used(&self) -> Uuid {
        let uuid = self.create().await.unwrap();
        self.use_and_close().await;
        uuid
    }

    async fn use_and_close(&self) {
        let volume = self.open(1, OpenFlags::default()).await.unwrap();
        for i in 0..5 {
            volume.write(i * 4096, block(i as u8), true).await.unwrap();
        }
        volume.close().await.unwrap();
    }

    async fn is_listed(&self) -> bool {
        let names = volume::names(&*self.store()).await.unwrap();
        assert!(names.iter().all(|listed| *listed == name()));
        !names.is_empty()
    }

    /// What is left under a name that is free: one tombstone, and fences.
    async fn only_what_stays_is_left(&self) {
        let listed = list_all(&self.memory, "v/").await.unwrap();
        let (metas, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|entry| entry.key.as_str().starts_with("v/meta/"));
        assert!(metas.len() <= 1, "{metas:?}");
        for entry in metas.iter().chain(&others) {
            let body = self.memory.get(&entry.key).await.unwrap();
            let is_meta = entry.key.as_str().starts_with("v/meta/");
            let stays = if is_meta {
                Meta::decode(&name(), &body).unwrap().deleted
            } else {
                kind_of(&body) == Some(ObjectKind::Fence)
            };
            assert!(stays, "{} is left", entry.key);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn everything_but_the_description_lies_in_a_folder_with_the_uuid() {
    let world = World::new();
    let uuid = world.create_used().await;
    let folder = format!("v/{}/", &uuid.to_string()[..8]);
    let keys = world.keys("").await;
    let (metas, others): (Vec<_>, Vec<_>) = keys.iter().partition(|key| key.starts_with("v/meta/"));
    assert_eq!(metas, ["v/meta/0000000000000001"]);
    assert!(others.len() > 1 && others.iter().all(|key| key.starts_with(&folder)), "{others:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_name_that_is_deleted_is_gone_and_may_be_deleted_and_made_again() {
    let world = World::new();
    assert!(matches!(world.delete(false).await, Err(VolumeError::NotFound { .. })));
    for round in 0..3 {
        world.create_used().await;
        assert!(matches!(world.create().await, Err(VolumeError::AlreadyExists { .. })));
        assert!(world.is_listed().await);
        assert!(world.delete(false).await.unwrap() > 2);
        assert!(!world.is_listed().await);
        world.only_what_stays_is_left().await;
        let inspected = volume::inspect(&world.store(), &name(), &Secrets::default()).await;
        assert!(matches!(inspected, Err(VolumeError::NotFound { .. })));
        assert!(matches!(world.delete(false).await, Err(VolumeError::NotFound { .. })), "round {round}");
    }
    // One that was never opened.
    world.create().await.unwrap();
    world.delete(false).await.unwrap();
    world.only_what_stays_is_left().await;
}

/// A server that was displaced long before, by another server, is no different.
#[tokio::test(start_paused = true)]
async fn every_server_that_was_ever_displaced_is_told_after_the_deletion() {
    let world = World::new();
    world.create().await.unwrap();
    let mut displaced = Vec::new();
    for server in 1..4u8 {
        let volume =
            world.open(server.into(), if server == 1 { OpenFlags::default() } else { TAKEOVER }).await.unwrap();
        volume.write(0, block(server), true).await.unwrap();
        displaced.push(volume);
    }
    world.delete(true).await.unwrap();
    world.only_what_stays_is_left().await;
    world.create().await.unwrap();
    for volume in displaced {
        let told = volume.write(4096, block(9), true).await;
        assert!(matches!(told, Err(DeviceError::Fenced(_))), "{told:?}");
    }
    world.is_usable().await;
}

#[tokio::test(start_paused = true)]
async fn what_arrives_late_from_a_displaced_server_changes_nothing_and_goes_with_the_next_deletion() {
    for layout in [Layout::ByName, Layout::ByUuid] {
        let world = World::new();
        match layout {
            Layout::ByName => drop(world.create_old().await),
            Layout::ByUuid => drop(world.create().await.unwrap()),
        }
        world.use_and_close().await;
        let before: Vec<(Key, Bytes)> = world.memory.objects();
        world.delete(false).await.unwrap();
        world.create().await.unwrap();
        // Every request that it ever had under way arrives now, but for what a create-only PUT refuses.
        for (key, body) in &before {
            let _ = world.memory.put(key, vec![body.clone()]).await;
        }
        world.is_usable().await;
        assert!(world.delete(false).await.unwrap() >= before.len() as u64 - 1);
        world.only_what_stays_is_left().await;
        // And once more into the free name.
        for (key, body) in &before {
            let _ = world.memory.put(key, vec![body.clone()]).await;
        }
        assert!(!world.is_listed().await);
        world.create().await.unwrap();
        world.is_usable().await;
        let listed = world.keys("v/").await;
        assert!(
            !listed
                .iter()
                .any(|key| key.contains("/checkpoints/") && before.iter().any(|(old, _)| old.as_str() == key))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_is_not_empty_is_not_taken() {
    let uuid = World::new().create().await.unwrap();
    let world = World::new(); // the same seed
    let stray = Key::new(format!("{}segments/01/0000000000000001", Keys::folder(&name(), uuid))).unwrap();
    world.memory.put(&stray, vec![Bytes::from_static(b"old")]).await.unwrap();
    assert_ne!(world.create().await.unwrap(), uuid);
    world.is_usable().await;
}

#[tokio::test(start_paused = true)]
async fn of_many_that_create_at_once_one_does() {
    for seed in 0..20 {
        let world = World::new();
        if seed % 2 == 0 {
            world.create_used().await;
            world.delete(false).await.unwrap();
        }
        let options = FaultOptions {
            delay_spread: Duration::from_millis(20),
            fail_after: if seed % 3 == 0 { 200 } else { 0 },
            ..FaultOptions::default()
        };
        let store = FaultyStore::new(world.store(), options, Random::seeded(seed));
        let made = futures::future::join_all((0..5).map(|_| world.create_through(&store))).await;
        let made: Vec<Uuid> = made.into_iter().filter_map(Result::ok).collect();
        assert!(made.len() <= 1, "seed {seed}: {made:?}");
        if let Some(uuid) = made.first() {
            assert_eq!(description::load(&world.memory, &name()).await.unwrap().meta.uuid, *uuid);
            world.is_usable().await;
        }
        assert!(!made.is_empty() || seed % 3 == 0);
    }
}

/// What was being done when everything stopped.
#[derive(Clone, Copy, Debug)]
enum Doing {
    CreateFirst,
    CreateAgain,
    DeleteUnused,
    DeleteClosed,
    DeleteOld,
    DeleteHeld,
}

/// Whatever dies between two store operations of creating and deleting leaves a state that both know: the table in
/// `opening/removal.rs`.
#[tokio::test(start_paused = true)]
async fn creating_and_deleting_die_anywhere() {
    use Doing::*;
    let mut tried = 0;
    for doing in [CreateFirst, CreateAgain, DeleteUnused, DeleteClosed, DeleteOld, DeleteHeld] {
        for trap in [Trap::CutBefore, Trap::CutAfter, Trap::FailBefore, Trap::FailAfter] {
            for k in 1.. {
                if !dies(doing, trap, k).await {
                    break;
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried}");
}

/// Whether there was a `k`-th change to fail at.
async fn dies(doing: Doing, trap: Trap, k: u64) -> bool {
    let world = World::new();
    let mut server = None;
    match doing {
        Doing::CreateFirst => {}
        Doing::CreateAgain => {
            world.create_used().await;
            world.delete(false).await.unwrap();
            // Something is left to be deleted.
            let stray = Key::new("v/01234567/segments/09/0000000000000009").unwrap();
            world.memory.put(&stray, vec![Bytes::from_static(b"late")]).await.unwrap();
        }
        Doing::DeleteUnused => drop(world.create().await.unwrap()),
        Doing::DeleteClosed => drop(world.create_used().await),
        Doing::DeleteOld => {
            world.create_old().await;
            world.use_and_close().await;
        }
        Doing::DeleteHeld => {
            world.create_used().await;
            let volume = world.open(2, OpenFlags::default()).await.unwrap();
            volume.write(0, block(3), true).await.unwrap();
            server = Some(volume);
        }
    }
    let faulty = FaultyStore::new(world.store(), FaultOptions::default(), Random::seeded(1));
    let faults = faulty.faults();
    faults.set_trap(Counted::Mutations, k, trap);
    let store: Arc<dyn Store> = Arc::new(faulty);
    let held = matches!(doing, Doing::DeleteHeld);
    let work = async {
        match doing {
            Doing::CreateFirst | Doing::CreateAgain => world.create_through(&*store).await.map(drop),
            _ => world.delete_through(&store, held).await.map(drop),
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    let what = format!("{doing:?}, {trap:?} at change {k}: {done:?}");
    let reached = faults.mutations() >= k || faults.is_isolated();
    let is_creation = matches!(doing, Doing::CreateFirst | Doing::CreateAgain);
    if matches!(done, Ok(Ok(()))) {
        assert_eq!(world.is_listed().await, is_creation, "{what}");
    }
    // The volume, if there is one, is whole; a fence of the deletion may stand behind its log.
    if world.is_listed().await {
        let report =
            ashlar::check::check(&world.store(), &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{what}: {report:#?}");
    }
    // One half goes on by deleting, the other by creating.
    match (world.is_listed().await, k % 2) {
        (true, 0) if is_creation => world.is_usable().await,
        (true, _) => drop(world.delete(held).await.unwrap_or_else(|error| panic!("{what}: {error}"))),
        (false, 0) => match world.delete(false).await {
            Ok(_) | Err(VolumeError::NotFound { .. }) => {}
            Err(error) => panic!("{what}: {error}"),
        },
        (false, _) => {}
    }
    if !world.is_listed().await {
        if k.is_multiple_of(2) {
            world.only_what_stays_is_left().await;
        }
        world.create().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    if let Some(displaced) = server {
        let told = displaced.write(8192, block(7), true).await;
        assert!(matches!(told, Err(DeviceError::Fenced(_))), "{what}: {told:?}");
    }
    world.is_usable().await;
    world.delete(false).await.unwrap();
    world.only_what_stays_is_left().await;
    reached
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_broke_off_in_the_middle_of_a_batch_is_finished() {
    for round in 0..40 {
        let world = World::new();
        (0..round).for_each(|_| assert!(world.random.below(2) < 2)); // another half each time
        world.create_used().await;
        let found = description::load(&world.memory, &name()).await.unwrap();
        let next = Keys::meta(&name(), found.number + 1);
        world.memory.put(&next, vec![found.meta.tombstone().encode(None).into()]).await.unwrap();
        let objects = world.memory.objects().into_iter().map(|(key, _)| key);
        let part = objects.filter(|key| !key.as_str().starts_with("v/meta/") && world.random.below(2) == 0);
        let part: Vec<Key> = part.collect();
        world.memory.delete(&part).await.unwrap();
        if round % 2 == 0 {
            world.delete(false).await.unwrap();
            world.only_what_stays_is_left().await;
        }
        world.create().await.unwrap();
        world.is_usable().await;
        world.delete(false).await.unwrap();
        world.only_what_stays_is_left().await;
    }
}

/// A store that holds the first PUT, LIST or ranged GET whose key or prefix contains what it is told to, or is that after a `=`, until it is let go.
#[derive(Debug)]
struct Gate {
    inner: MemoryStore,
    verb: &'static str,
    part: &'static str,
    closed: std::sync::atomic::AtomicBool,
    reached: Notify,
    open: Notify,
}

impl Gate {
    fn new(world: &World, verb: &'static str, part: &'static str) -> Arc<Gate> {
        let (inner, closed) = (world.memory.clone(), true.into());
        Arc::new(Gate { inner, verb, part, closed, reached: Notify::new(), open: Notify::new() })
    }

    async fn pass(&self, verb: &str, what: &str) {
        let is_there = match self.part.strip_prefix('=') {
            Some(whole) => what == whole,
            None => what.contains(self.part),
        };
        let is_here = verb == self.verb && is_there;
        if is_here && self.closed.swap(false, std::sync::atomic::Ordering::SeqCst) {
            self.reached.notify_one();
            self.open.notified().await;
        }
    }
}

#[async_trait]
impl Store for Gate {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<(), StoreError> {
        self.pass("put", key.as_str()).await;
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.pass("get_range", key.as_str()).await;
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage, StoreError> {
        self.pass("list", prefix).await;
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>, StoreError> {
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<(), StoreError> {
        self.inner.delete(keys).await
    }
}

/// Whoever opens a volume while it is deleted gets an error, then or with the first thing that is to be durable.
#[tokio::test(start_paused = true)]
async fn nobody_opens_what_is_being_deleted() {
    for flags in [OpenFlags::default(), TAKEOVER] {
        for (verb, part) in [("list", "/checkpoints/"), ("put", "/segments/")] {
            let world = World::new();
            world.create_used().await;
            if flags.takeover {
                drop(world.open(2, OpenFlags::default()).await.unwrap()); // it dies
            }
            let gate = Gate::new(&world, verb, part);
            let opening = world.open_through(gate.clone(), 3, flags);
            let deleting = async {
                gate.reached.notified().await;
                world.delete(flags.takeover).await.unwrap();
                world.create().await.unwrap();
                gate.open.notify_one();
            };
            let (opened, ()) = tokio::join!(opening, deleting);
            assert!(opened.is_err(), "{flags:?}, held at {verb} {part}");
            world.is_usable().await;
        }
    }
}

/// Somebody takes the volume from the one who is deleting it, between the fence and the tombstone.
#[tokio::test(start_paused = true)]
async fn whoever_takes_a_volume_from_its_deletion_is_fenced_too() {
    let world = World::new();
    world.create_used().await;
    let gate = Gate::new(&world, "put", "/meta/");
    let store: Arc<dyn Store> = gate.clone();
    let deleting = world.delete_through(&store, false);
    let taking = async {
        gate.reached.notified().await;
        assert!(matches!(world.open(3, OpenFlags::default()).await, Err(VolumeError::Held { .. })));
        let volume = world.open(3, TAKEOVER).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        gate.open.notify_one();
        volume
    };
    let (deleted, volume) = tokio::join!(deleting, taking);
    deleted.unwrap();
    let told = volume.write(0, block(1), true).await;
    assert!(matches!(told, Err(DeviceError::Fenced(_))), "{told:?}");
    world.create().await.unwrap();
    world.is_usable().await;
}

/// In the year 2100.
const FAR: u64 = 4_102_444_800_000;

fn kept_until(until: u64) -> Label {
    Label { name: "audit".into(), taken_unix_millis: 1, keep_until_unix_millis: until, ..Label::default() }
}

const KEPT: &str =
    "volume v has a snapshot audit that is to be kept until 2100-01-01T00:00:00Z; it cannot be deleted before";

/// Neither by a flag, nor because nobody can read which snapshots there are. A server that has the volume does not even notice.
#[tokio::test(start_paused = true)]
async fn a_volume_with_a_snapshot_that_is_to_be_kept_is_not_deleted() {
    let world = World::new();
    world.create().await.unwrap();
    let volume = world.open(1, OpenFlags::default()).await.unwrap();
    volume.write(0, block(1), true).await.unwrap();
    volume.take_snapshot(kept_until(FAR)).await.unwrap();
    let before = world.keys("").await;
    assert_eq!(world.delete(true).await.unwrap_err().to_string(), KEPT);
    assert_eq!(world.keys("").await, before, "nothing was changed, not even a fence put");
    volume.write(0, block(2), true).await.unwrap();
    volume.close().await.unwrap();
    drop(volume);
    for takeover in [false, true] {
        assert_eq!(world.delete(takeover).await.unwrap_err().to_string(), KEPT);
    }
    // Its checkpoints are damaged: only the description tells.
    let found = description::load(&world.memory, &name()).await.unwrap();
    for key in world.keys(&Keys::of(&found.meta).checkpoints()).await {
        let key = Key::new(&key).unwrap();
        let bytes = world.memory.get(&key).await.unwrap();
        world.memory.delete(std::slice::from_ref(&key)).await.unwrap();
        world.memory.put(&key, vec![bytes.iter().map(|byte| !byte).collect()]).await.unwrap();
    }
    assert!(matches!(world.delete(false).await, Err(VolumeError::Corrupt { .. })));
    let unread = "volume v may have snapshots that are to be kept until 2100-01-01T00:00:00Z, which cannot be read; it cannot be deleted \
                  before";
    assert_eq!(world.delete(true).await.unwrap_err().to_string(), unread);
    // When that time is over, it goes as ever.
    let sealer = Sealer::new(found.meta.uuid, None);
    let over = Meta { keep_until_unix_millis: 1, ..found.meta.clone() };
    found.replace(&world.memory, &world.random, &over, sealer.keyring()).await.unwrap();
    world.delete(true).await.unwrap();
    assert!(matches!(world.delete(true).await, Err(VolumeError::NotFound { .. })));
}

/// The server that has the volume keeps a snapshot after the deletion has looked, and before it puts its fence. The description needs no change
/// for it, as with the second one that a schedule keeps: so only a second look tells.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_kept_while_its_volume_is_being_deleted_stays() {
    let world = World::new();
    world.create_used().await;
    let found = description::load(&world.memory, &name()).await.unwrap();
    let meta = Meta { keep_until_unix_millis: FAR, ..found.meta.clone() };
    found.replace(&world.memory, &world.random, &meta, None).await.unwrap();
    let volume = world.open(2, OpenFlags::default()).await.unwrap();
    let gate = Gate::new(&world, "put", "/segments/");
    let store: Arc<dyn Store> = gate.clone();
    let deleting = world.delete_through(&store, true);
    let keeping = async {
        gate.reached.notified().await;
        volume.write(0, block(7), true).await.unwrap();
        volume.take_snapshot(kept_until(FAR)).await.unwrap();
        gate.open.notify_one();
    };
    let (deleted, ()) = tokio::join!(deleting, keeping);
    assert_eq!(deleted.unwrap_err().to_string(), KEPT);
    assert_eq!(world.delete(true).await.unwrap_err().to_string(), KEPT);
    let (budget, cache) = (volume::Budget::default(), (Arc::new(BlockCache::in_memory(0)), Workers::Inline));
    let (options, secrets) = (Options::default(), Secrets::default());
    let past = volume::Past::open(world.store(), &name(), "audit", &options, &budget, cache, &secrets).await.unwrap();
    assert_eq!(past.read(0, 4096).await.unwrap().concat(), block(7));
}

/// A deletion that is slow to list what it is to delete meets the next volume.
#[tokio::test(start_paused = true)]
async fn a_slow_deletion_spares_the_volume_that_was_made_meanwhile() {
    for old in [true, false] {
        let world = World::new();
        if old {
            world.create_old().await;
            world.use_and_close().await;
        } else {
            world.create_used().await;
        }
        let gate = Gate::new(&world, "list", "=v/");
        let store: Arc<dyn Store> = gate.clone();
        let deleting = world.delete_through(&store, false);
        let making = async {
            gate.reached.notified().await;
            world.create().await.unwrap();
            let volume = world.open(3, OpenFlags::default()).await.unwrap();
            volume.write(0, block(1), true).await.unwrap();
            gate.open.notify_one();
            volume
        };
        let (deleted, volume) = tokio::join!(deleting, making);
        deleted.unwrap();
        volume.write(4096, block(2), true).await.unwrap();
        volume.close().await.unwrap();
        let report =
            ashlar::check::check(&world.store(), &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
        world.is_usable().await;
        world.delete(false).await.unwrap();
        world.only_what_stays_is_left().await;
    }
}

/// A store that keeps the first part of what was sent: the fence of a deletion stands beside it. Were that part deleted, the slot
/// would be free for the displaced server.
#[tokio::test(start_paused = true)]
async fn a_fence_beside_a_torn_object_keeps_the_slot() {
    let world = World::new();
    world.create().await.unwrap();
    let displaced = world.open(1, OpenFlags::default()).await.unwrap();
    displaced.write(0, block(1), true).await.unwrap();
    let keys = Keys::of(&description::load(&world.memory, &name()).await.unwrap().meta);
    let last = world.keys(&keys.segments()).await.len() as u64;
    // The next slot holds the beginning of a segment: of one whose upload broke off.
    let whole = world.memory.get(&keys.segment(Seq(last))).await.unwrap();
    let torn = keys.segment(Seq(last + 1));
    world.memory.put(&torn, vec![whole.slice(..20)]).await.unwrap();
    world.delete(true).await.unwrap();
    let beside = Key::new(format!("{torn}.1")).unwrap();
    assert_eq!(kind_of(&world.memory.get(&beside).await.unwrap()), Some(ObjectKind::Fence));
    let told = displaced.write(0, block(2), true).await;
    assert!(matches!(told, Err(DeviceError::Fenced(_))), "{told:?}");
    assert!(world.memory.get(&torn).await.is_ok());
    world.create().await.unwrap();
    world.is_usable().await;
}

/// A description that broke off is none: the deletion and the next volume go on beside it.
#[tokio::test(start_paused = true)]
async fn a_torn_tombstone_and_a_torn_claim_change_nothing() {
    let world = World::new();
    world.create_used().await;
    for number in [2, 4] {
        world.memory.put(&Keys::meta(&name(), number), vec![Bytes::from_static(b"{\n  \"form")]).await.unwrap();
    }
    assert!(world.is_listed().await);
    world.delete(false).await.unwrap();
    assert!(!world.is_listed().await);
    assert_eq!(description::newest(&world.memory, &name()).await.unwrap().unwrap().number, 3);
    world.create().await.unwrap();
    assert_eq!(description::newest(&world.memory, &name()).await.unwrap().unwrap().number, 5);
    world.is_usable().await;
}

/// A key slot or a setting is changed at the same time: one of the two gets the number.
#[tokio::test(start_paused = true)]
async fn a_description_that_changes_while_the_volume_is_deleted_is_no_tombstone() {
    let world = World::new();
    world.create_used().await;
    let gate = Gate::new(&world, "put", "/meta/");
    let store: Arc<dyn Store> = gate.clone();
    let deleting = world.delete_through(&store, false);
    let changing = async {
        gate.reached.notified().await;
        let found = description::load(&world.memory, &name()).await.unwrap();
        let meta = Meta { compression: Compression::None, ..found.meta.clone() };
        found.replace(&world.memory, &Random::seeded(9), &meta, None).await.unwrap();
        gate.open.notify_one();
        (found, meta)
    };
    let (deleted, (found, meta)) = tokio::join!(deleting, changing);
    deleted.unwrap();
    assert!(!world.is_listed().await);
    // And the other way round, however late.
    assert!(found.replace(&world.memory, &Random::seeded(9), &meta, None).await.is_ok() || !world.is_listed().await);
    assert!(!world.is_listed().await);
    world.create().await.unwrap();
    let _ = found.replace(&world.memory, &Random::seeded(9), &meta, None).await;
    world.is_usable().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_the_old_layout_does_all_that_it_did() {
    let world = World::new();
    let meta = world.create_old().await;
    let server = world.open(1, OpenFlags::default()).await.unwrap();
    server.write(0, block(1), true).await.unwrap();
    assert!(world.is_listed().await);
    assert_eq!(volume::inspect(&world.store(), &name(), &Secrets::default()).await.unwrap().uuid, meta.uuid);
    let taker = world.open(2, TAKEOVER).await.unwrap();
    assert!(server.write(0, block(2), true).await.is_err());
    taker.write(4096, block(2), true).await.unwrap();
    // A change of its description leaves it where it is.
    let found = description::load(&world.memory, &name()).await.unwrap();
    let changed = Meta { compression: Compression::Zstd(3), ..found.meta.clone() };
    found.replace(&world.memory, &Random::seeded(9), &changed, None).await.unwrap();
    taker.reload().await.unwrap();
    taker.close().await.unwrap();
    assert!(matches!(world.create().await, Err(VolumeError::AlreadyExists { .. })));
    world.is_usable().await;
    let keys = world.keys("").await;
    assert!(keys.iter().all(|key| ["v/meta/", "v/segments/", "v/checkpoints/"].iter().any(|at| key.starts_with(at))));
    let last = world.open(3, OpenFlags::default()).await.unwrap();
    last.write(0, block(4), true).await.unwrap();
    world.delete(true).await.unwrap();
    world.only_what_stays_is_left().await;
    assert!(last.write(0, block(4), true).await.is_err());
    world.create().await.unwrap();
    assert!(server.write(0, block(2), true).await.is_err());
    world.is_usable().await;
    assert!(world.keys("v/segments/").await.len() >= 2, "the fences of the old one");
}

/// A fence that sends whoever follows it over more slots than can be is refused in a sentence, and soon.
#[tokio::test(start_paused = true)]
async fn a_fence_beyond_any_window_is_damage() {
    for (continues_at, says) in
        [(1 << 60, "continues where it cannot"), (1, "continues where it cannot"), (9, "had 1 in flight")]
    {
        let world = World::new();
        let uuid = world.create().await.unwrap();
        let fence = Fence {
            epoch: Epoch(1),
            server: Uuid::nil(),
            server_name: "forger".into(),
            time_unix_millis: 0,
            journal: Uuid::from_u128(1),
            window: 8,
            continues_at: Seq(continues_at),
            durability: Durability::Store,
            covers: ChangeNo(0),
            displaces: false,
        };
        let object = fence.encode(&Sealer::new(uuid, None), Seq(1), [7; 16]).unwrap();
        let keys = Keys::of(&description::load(&world.memory, &name()).await.unwrap().meta);
        world.memory.put(&keys.segment(Seq(1)), object.parts).await.unwrap();
        let refused = world.open(1, TAKEOVER).await.unwrap_err();
        assert!(matches!(refused, VolumeError::Corrupt { .. }) && refused.to_string().contains(says), "{refused}");
    }
}

/// However many objects a volume has, a page of its listing is deleted at a time, and the places of one object are judged together: what stands before a fence
/// keeps that from being free again, also if the fence comes with the next page.
#[tokio::test]
async fn a_large_volume_is_deleted_a_page_at_a_time() {
    let world = World::new();
    let uuid = world.create().await.unwrap();
    let keys = Keys::of(&description::load(&world.memory, &name()).await.unwrap().meta);
    for seq in 1..=2500 {
        world.memory.put(&keys.segment(Seq(seq)), vec![Bytes::from_static(b"a part")]).await.unwrap();
    }
    let listed = world.memory.list("v/", None).await.unwrap();
    let last = listed.iter().last().unwrap().key.clone();
    let seq = Keys::number(&last).map(Seq).unwrap();
    let fence = Fence {
        epoch: Epoch(1),
        server: Uuid::nil(),
        server_name: "other".into(),
        time_unix_millis: 0,
        journal: Uuid::from_u128(1),
        window: 8,
        continues_at: Seq(seq.0 + 1),
        durability: Durability::Store,
        covers: ChangeNo(0),
        displaces: true,
    };
    let object = fence.encode(&Sealer::new(uuid, None), seq, [7; 16]).unwrap();
    world.memory.put(&Key::new(format!("{last}.1")).unwrap(), object.parts).await.unwrap();
    let told = std::sync::Mutex::new(Vec::new());
    let (store, clock, secrets) = (world.store(), Clock::System, Secrets::default());
    let progress = |gone| told.lock().unwrap().push(gone);
    let delete =
        volume::delete(&store, &world.random, &clock, &identity(99), &name(), true, &secrets, &progress).await.unwrap();
    // The description goes last, without a word.
    assert_eq!((delete, *told.lock().unwrap().last().unwrap()), (2500, 2499));
    let steps: Vec<u64> = told.lock().unwrap().windows(2).map(|two| two[1] - two[0]).collect();
    assert!(steps.len() == 2 && steps.iter().all(|step| *step <= 1000), "{steps:?}");
    let left = world.keys("v/").await;
    let stays = [last.to_string(), format!("{last}.1")];
    assert!(left.len() == 3 && stays.iter().all(|key| left.contains(key)), "{left:?}");
}

impl World {
    async fn open_on(&self, disk: &CrashDisk, flags: OpenFlags) -> Arc<Volume> {
        let outside = Outside {
            server: identity(1),
            ..outside::plain(self.store(), Arc::new(disk.clone()), self.random.clone())
        };
        Volume::open(outside, &name(), Options::default(), journal::Options::default(), flags).await.unwrap()
    }
}

/// The epoch, and since which epoch it has everything that was acknowledged.
fn line(volume: &Volume) -> (u64, u64) {
    let (epoch, _, since) = volume.line();
    (epoch.0, since.0)
}

#[tokio::test(start_paused = true)]
async fn a_server_says_since_when_nothing_acknowledged_was_lost() {
    let world = World::new();
    world.create().await.unwrap();
    let none = OpenFlags::default();
    let disk = CrashDisk::new(1);
    let volume = world.open_on(&disk, none).await;
    assert_eq!(line(&volume), (1, 1));
    volume.write(0, block(1), false).await.unwrap();
    // The process dies, twice: everything acknowledged is in the journal.
    let opening = volume.line().1;
    drop(volume);
    let disk = disk.kill();
    drop(world.open_on(&disk, none).await);
    let disk = disk.kill();
    let volume = world.open_on(&disk, none).await;
    assert_eq!(line(&volume), (3, 1));
    assert_ne!(volume.line().1, opening);
    // The host dies: what was not flushed may be gone.
    volume.write(0, block(2), false).await.unwrap();
    drop(volume);
    let disk = disk.crash();
    let volume = world.open_on(&disk, none).await;
    assert_eq!(line(&volume), (4, 4));
    // A clean stop: nothing can be gone, whatever becomes of the host, and on another as well.
    volume.close().await.unwrap();
    let disk = disk.crash();
    let volume = world.open_on(&disk, none).await;
    assert_eq!(line(&volume), (5, 4));
    volume.close().await.unwrap();
    let elsewhere = CrashDisk::new(2);
    let volume = world.open_on(&elsewhere, none).await;
    assert_eq!(line(&volume), (6, 5), "of what was before epoch 5 it does not know");
    volume.write(0, block(3), false).await.unwrap();
    drop(volume);
    // Without its journal.
    let volume = world.open_on(&disk, TAKEOVER).await;
    assert_eq!(line(&volume), (7, 7));
    drop(volume);
    drop(world.open_on(&disk.kill(), none).await);
}

#[tokio::test(start_paused = true)]
async fn a_journal_of_which_a_loss_was_accepted_breaks_the_line() {
    let world = World::new();
    world.create().await.unwrap();
    let disk = CrashDisk::new(1);
    let volume = world.open_on(&disk, OpenFlags::default()).await;
    volume.write(0, block(1), false).await.unwrap();
    drop(volume);
    let disk = disk.kill();
    // The first of the journal's files is the one that says what it is.
    let files = disk.list("").await.unwrap();
    let identity = files.iter().find(|file| !file.starts_with("seen")).unwrap();
    disk.remove(identity).await.unwrap();
    let accept = OpenFlags { accept_loss: true, ..OpenFlags::default() };
    let volume = world.open_on(&disk, accept).await;
    assert_eq!(line(&volume), (2, 2));
}
