//! A volume whose log is in a store of its own: whatever dies, and whichever of the two stores is cut off after whatever operation, it opens with every change that was
//! acknowledged; what has cooled is in the other store, byte for byte; and when the store with the log is lost, that is said, and nothing is made up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::change::{Change, Numbered};
use ashlar::check::Report;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::gc;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::memory::MemoryStore;
use ashlar::store::tiers::{BesideStore, Cooling, Near};
use ashlar::store::{ErrorKind, Key, ListPage, Result as Answer, Store, StoreError};
use ashlar::volume::{
    self, Budget, CreateOptions, NearStatus, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError,
    VolumeName, Witness,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const COOL_AFTER: Duration = Duration::from_secs(60);

const NONE: OpenFlags = OpenFlags {
    takeover: false,
    accept_loss: false,
    drop_journal: false,
    accept_rollback: false,
    accept_log_loss: false,
    breaks_line: false,
};
const TAKEOVER: OpenFlags = OpenFlags { takeover: true, ..NONE };
const LOST: OpenFlags = OpenFlags { takeover: true, accept_log_loss: true, ..NONE };

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// The changes of both stores together, and after which nobody reaches them any more.
#[derive(Debug, Default)]
struct Cut {
    made: AtomicU64,
    left: Mutex<Option<u64>>,
}

impl Cut {
    fn change(&self) -> bool {
        let mut left = self.left.lock();
        let goes = match left.as_mut() {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        };
        self.made.fetch_add(u64::from(goes), Ordering::Relaxed);
        goes
    }

    fn is_over(&self) -> bool {
        *self.left.lock() == Some(0)
    }
}

/// One server's way to a store.
#[derive(Clone, Debug)]
struct Door {
    name: &'static str,
    objects: MemoryStore,
    cut: Arc<Cut>,
    is_away: Arc<AtomicBool>,
    /// A PUT into the log waits as long as somebody holds this.
    gate: Arc<tokio::sync::Mutex<()>>,
    sloppy: bool,
    /// Some of what is asked fails, done or not.
    faults: Arc<Mutex<Option<Random>>>,
}

impl Door {
    fn new(name: &'static str, cut: &Arc<Cut>) -> Door {
        Door {
            name,
            objects: MemoryStore::new(),
            cut: cut.clone(),
            is_away: Arc::default(),
            gate: Arc::default(),
            sloppy: false,
            faults: Arc::default(),
        }
    }

    /// The same objects, seen by somebody else.
    fn of_another(&self, cut: &Arc<Cut>) -> Door {
        Door { cut: cut.clone(), is_away: Arc::default(), gate: Arc::default(), faults: Arc::default(), ..self.clone() }
    }

    fn away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    fn answer(&self) -> Answer<()> {
        let fails = self.faults.lock().as_ref().is_some_and(|random| random.below(25) == 0);
        match fails || self.is_away.load(Ordering::Relaxed) || self.cut.is_over() {
            true => Err(StoreError::new(ErrorKind::Retryable, format!("{} is away", self.name))),
            false => Ok(()),
        }
    }

    fn change(&self) -> Answer<()> {
        self.answer()?;
        match self.cut.change() {
            true => Ok(()),
            false => Err(StoreError::new(ErrorKind::Retryable, "it breaks off")),
        }
    }

    fn segments(&self) -> BTreeMap<Key, Bytes> {
        self.objects.objects().into_iter().filter(|(key, _)| key.as_str().contains("/segments/")).collect()
    }
}

#[async_trait]
impl Store for Door {
    fn url(&self) -> String {
        format!("door://{}", self.name)
    }
    fn keeps_create_only(&self) -> bool {
        !self.sloppy
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Answer<()> {
        tokio::time::sleep(Duration::from_millis(3)).await;
        if key.as_str().contains("/segments/") {
            drop(self.gate.lock().await);
        }
        self.change()?;
        self.objects.put(key, body).await?;
        // It is there, and nobody learns it.
        self.answer()
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Answer<Bytes> {
        self.answer()?;
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> Answer<Bytes> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.answer()?;
        self.objects.get(key).await
    }
    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Answer<ListPage> {
        self.answer()?;
        self.objects.list(prefix, start_after).await
    }
    async fn list_top(&self) -> Answer<Vec<String>> {
        self.answer()?;
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> Answer<()> {
        for key in keys {
            self.change()?;
            self.objects.delete(std::slice::from_ref(key)).await?;
        }
        self.answer()
    }
}

/// The changes of a volume, as it took them.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<BTreeMap<u64, Change>>>);

impl Record {
    fn witness(&self) -> Witness {
        let changes = self.0.clone();
        Witness(Some(Arc::new(move |numbered: &Numbered| {
            changes.lock().insert(numbered.no.0, numbered.change.clone());
        })))
    }

    fn last(&self) -> u64 {
        self.0.lock().last_key_value().map_or(0, |(no, _)| *no)
    }

    /// What the volume holds after that change.
    fn content(&self, after: u64) -> Vec<u8> {
        let mut content = vec![0; (BLOCKS * BLOCK) as usize];
        for change in self.0.lock().range(..=after).map(|(_, change)| change) {
            let extent = change.extent();
            let range = (extent.start.0 * BLOCK) as usize..((extent.end().0 * BLOCK) as usize).min(content.len());
            match change {
                Change::Write(_, data) => content[range].copy_from_slice(data),
                Change::Zero(_) | Change::Hole(_) => content[range].fill(0),
            }
        }
        content
    }
}

fn options() -> Options {
    Options {
        segment_size: 64 << 10,
        segment_size_max: 64 << 10,
        checkpoint_interval: Duration::from_secs(10),
        writeback_delay: Duration::from_millis(500),
        gc: gc::Options { garbage_min: 64 << 10, sweep_grace: Duration::from_secs(120), ..gc::Options::default() },
        ..Options::default()
    }
}

struct World {
    near: Door,
    rest: Door,
    cut: Arc<Cut>,
    disk: CrashDisk,
    random: Random,
    record: Record,
    cooling: Cooling,
}

impl World {
    async fn new(seed: u64) -> World {
        let cut = Arc::default();
        let world = World {
            near: Door::new("near", &cut),
            rest: Door::new("rest", &cut),
            cut,
            disk: CrashDisk::new(seed),
            random: Random::seeded(seed),
            record: Record::default(),
            cooling: Cooling { after: COOL_AFTER, size: 1 << 30 },
        };
        let options = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
        volume::create(&*world.store(), &world.random, &Clock::System, &name(), options).await.unwrap();
        world
    }

    /// The same stores, seen by a server on another host, whose changes nothing cuts off.
    fn elsewhere(&self, seed: u64) -> World {
        let cut = Arc::default();
        World {
            near: self.near.of_another(&cut),
            rest: self.rest.of_another(&cut),
            cut,
            disk: CrashDisk::new(seed),
            random: Random::seeded(seed),
            record: self.record.clone(),
            cooling: self.cooling,
        }
    }

    /// The same host after it died: nothing that it had under way arrives any more.
    fn after_a_crash(&self) -> World {
        let next = self.elsewhere(99);
        World { disk: self.disk.crash(), ..next }
    }

    fn store(&self) -> Arc<dyn Store> {
        let near = Near { store: Arc::new(self.near.clone()), cooling: self.cooling };
        Arc::new(BesideStore::new(Arc::new(self.rest.clone()), near))
    }

    async fn try_open_in(
        &self,
        store: Arc<dyn Store>,
        server: u128,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: format!("server-{server}") },
            witness: self.record.witness(),
            ..outside::plain(store, Arc::new(self.disk.clone()), self.random.clone())
        };
        Volume::open(outside, &name(), options(), journal::Options::default(), flags).await
    }

    async fn try_open(&self, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        self.try_open_in(self.store(), 1, flags).await
    }

    async fn open(&self) -> Arc<Volume> {
        self.try_open(NONE).await.unwrap()
    }

    async fn check(&self) -> Report {
        ashlar::check::check(&self.store(), &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap()
    }

    async fn is_clean(&self) {
        let report = self.check().await;
        assert!(report.is_clean() && report.lost.is_empty(), "{:#?}", report.problems);
    }

    /// A key that is in both has the same bytes in both.
    fn agree(&self) {
        let rest = self.rest.segments();
        for (key, bytes) in self.near.segments() {
            assert!(rest.get(&key).is_none_or(|there| *there == bytes), "{key}");
        }
    }
}

/// A block that begins with that byte, and that nothing makes smaller.
fn block_of(fill: u8) -> Bytes {
    let mut state = u64::from(fill) + 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::once(fill).chain(std::iter::repeat_with(&mut noise)).take(BLOCK as usize).collect::<Vec<_>>().into()
}

async fn write(volume: &Volume, block: u64, fill: u8) {
    volume.write(block * BLOCK, block_of(fill), false).await.unwrap();
}

async fn all_of(volume: &Volume) -> Vec<u8> {
    volume.read(0, volume.info().size as u32).await.unwrap().concat()
}

fn near(volume: &Volume) -> NearStatus {
    volume.near().unwrap()
}

/// Waits until that is so.
async fn until(volume: &Volume, asked: impl Fn(&NearStatus) -> bool) -> NearStatus {
    for _ in 0..100_000 {
        let now = near(volume);
        if asked(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it stays as it is: {:?}", near(volume));
}

/// Fences and close entries are small, and stay.
const FEW_BYTES: u64 = 2000;

#[tokio::test(start_paused = true)]
async fn the_log_is_near_until_it_has_cooled_and_everything_else_is_not() {
    let world = World::new(1).await;
    let volume = world.open().await;
    for n in 0..40 {
        write(&volume, n, n as u8 + 1).await;
    }
    volume.flush().await.unwrap();
    assert!(world.rest.segments().is_empty() && near(&volume).bytes > 40 * 100);
    let hot = world.near.segments();
    let keys = |door: &Door| door.objects.objects().into_iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>();
    assert!(keys(&world.near).iter().all(|key| key.contains("/segments/") || key.contains("/near/")));
    let cooled = until(&volume, |now| now.bytes < FEW_BYTES).await;
    assert!(cooled.cooled_bytes > 0 && cooled.trouble.is_none());
    let rest = world.rest.segments();
    assert!(!rest.is_empty() && rest.iter().all(|(key, bytes)| hot[key] == *bytes), "byte for byte");
    assert!(keys(&world.rest).iter().any(|key| key.contains("/checkpoints/")));
    assert!(all_of(&volume).await == world.record.content(world.record.last()));
    // Quiet: not one request more.
    let made = world.cut.made.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.cut.made.load(Ordering::Relaxed), made);
    volume.close().await.unwrap();
    world.is_clean().await;
    let volume = world.open().await;
    assert!(all_of(&volume).await == world.record.content(world.record.last()));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_oldest_moves_when_there_is_too_much() {
    let mut world = World::new(2).await;
    world.cooling = Cooling { after: Duration::from_secs(86_400), size: 64 << 10 };
    let volume = world.open().await;
    let noise = |n: u64| Bytes::from((0..BLOCK).map(|at| ((at * at * (n + 3)) >> 5) as u8).collect::<Vec<_>>());
    for n in 0..BLOCKS {
        volume.write(n * BLOCK, noise(n), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    assert!(near(&volume).bytes > 64 << 10, "{:?}", near(&volume));
    let left = until(&volume, |now| now.bytes <= 64 << 10).await;
    assert!(left.bytes > 20 << 10, "no more than must: {left:?}");
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// Space comes back in both: what is dead before it cools never leaves, and what died later goes from where it is.
#[tokio::test(start_paused = true)]
async fn what_is_dead_goes_from_both_stores() {
    let world = World::new(3).await;
    let volume = world.open().await;
    for round in 0..30u64 {
        for n in 0..BLOCKS {
            write(&volume, n, (round * 7 + n) as u8 | 1).await;
        }
        volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    volume.trim(0, BLOCKS * BLOCK, false).await.unwrap();
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert!(world.rest.segments().is_empty(), "{:?}", world.rest.segments().keys());
    assert!(near(&volume).bytes < FEW_BYTES);
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// What a client does, seeded: writes, flushes, trims, and time that goes by.
async fn live(world: &World, volume: &Volume, steps: u64, flushed: &AtomicU64) {
    for _ in 0..steps {
        let (block, fill) = (world.random.below(BLOCKS), world.random.below(255) as u8 + 1);
        let done = match world.random.below(12) {
            0..7 => volume.write(block * BLOCK, block_of(fill), false).await,
            7 => volume.trim(block * BLOCK, BLOCK * 4.min(BLOCKS - block), false).await,
            8..10 => {
                let before = world.record.last();
                let done = tokio::time::timeout(Duration::from_secs(60), volume.flush()).await.unwrap_or(Ok(()));
                if !world.cut.is_over() && done.is_ok() {
                    flushed.fetch_max(before, Ordering::Relaxed);
                }
                done
            }
            _ => {
                tokio::time::sleep(Duration::from_secs(world.random.below(30))).await;
                Ok(())
            }
        };
        if done.is_err() || world.cut.is_over() {
            return;
        }
    }
}

/// After whichever change of either store the server dies: it opens on the same host with all that was acknowledged, and elsewhere with all that was flushed.
#[tokio::test(start_paused = true)]
async fn a_cut_after_every_operation_is_survived() {
    let steps = 90;
    let life = async |seed, left| {
        let mut world = World::new(seed).await;
        world.cooling.after = Duration::from_secs(15);
        *world.cut.left.lock() = left;
        let flushed = AtomicU64::new(0);
        if let Ok(volume) = tokio::time::timeout(Duration::from_secs(60), world.try_open(NONE))
            .await
            .unwrap_or(Err(VolumeError::Invalid("cut".into())))
        {
            live(&world, &volume, steps, &flushed).await;
            drop(volume);
        }
        (world, flushed.into_inner())
    };
    for seed in 10..13 {
        let (whole, _) = life(seed, None).await;
        let operations = whole.cut.made.load(Ordering::Relaxed);
        assert!(!whole.rest.segments().is_empty(), "something cools meanwhile");
        for k in (0..operations).step_by(3) {
            let (world, flushed) = life(seed, Some(k)).await;
            world.agree();
            let acknowledged = world.record.last();
            let same_host = k % 2 == 0;
            let next = match same_host {
                true => World { disk: world.disk.kill(), ..world.elsewhere(99) },
                false => world.elsewhere(50 + k),
            };
            let flags = if same_host { NONE } else { TAKEOVER };
            let volume = match next.try_open_in(next.store(), 1 + u128::from(!same_host), flags).await {
                Err(VolumeError::NeedlessFlag { .. }) => next.try_open_in(next.store(), 2, NONE).await,
                opened => opened,
            };
            let volume = volume.unwrap_or_else(|error| panic!("seed {seed}, cut {k}: {error}"));
            let there = all_of(&volume).await;
            let from = if same_host { acknowledged } else { flushed };
            let prefix = (from..=acknowledged).find(|after| there == next.record.content(*after));
            assert!(
                prefix.is_some(),
                "seed {seed}, cut {k}: it is no prefix that holds change {from} of {acknowledged}"
            );
            write(&volume, 0, 0xee).await;
            volume.flush().await.unwrap();
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert!(near(&volume).bytes < FEW_BYTES * 4, "seed {seed}, cut {k}: {:?}", near(&volume));
            volume.close().await.unwrap();
            next.agree();
            next.is_clean().await;
        }
    }
}

/// Whatever fails on the way, done or not, and whoever takes the volume from whom: nothing that was flushed is lost.
#[tokio::test(start_paused = true)]
async fn servers_that_take_the_volume_from_each_other_over_bad_stores_lose_nothing() {
    for seed in 20..30 {
        let mut world = World::new(seed).await;
        world.cooling.after = Duration::from_secs(10);
        let mut volume = world.open().await;
        for turn in 0..6u64 {
            for (n, door) in [&world.near, &world.rest].into_iter().enumerate() {
                *door.faults.lock() = Some(Random::seeded(seed * 100 + turn * 2 + n as u64));
            }
            let flushed = AtomicU64::new(0);
            live(&world, &volume, 60, &flushed).await;
            let record = world.record.clone();
            let mut next = world.elsewhere(seed * 100 + turn);
            next.cooling = world.cooling;
            next.record = Record::default();
            next.record.0.lock().clone_from(&record.0.lock());
            let taken = next.try_open_in(next.store(), u128::from(turn) + 10, TAKEOVER).await.unwrap();
            let there = all_of(&taken).await;
            let (from, to) = (flushed.into_inner(), record.last());
            let prefix = (from..=to).find(|after| there == record.content(*after));
            assert!(prefix.is_some(), "seed {seed}, turn {turn}: change {from} of {to} is missing");
            next.record.0.lock().retain(|no, _| *no <= prefix.unwrap());
            // The displaced one goes on for a while, and does no harm.
            *world.near.faults.lock() = None;
            *world.rest.faults.lock() = None;
            let _ = volume.write(0, Bytes::from(vec![1; BLOCK as usize]), false).await;
            let after = tokio::time::timeout(Duration::from_secs(300), volume.flush()).await.unwrap();
            assert!(after.is_err(), "seed {seed}, turn {turn}: it was displaced");
            assert!(all_of(&taken).await == next.record.content(prefix.unwrap()));
            drop(volume);
            next.agree();
            (world, volume) = (next, taken);
        }
        tokio::time::sleep(Duration::from_secs(200)).await;
        let there = all_of(&volume).await;
        assert!(there == world.record.content(world.record.last()), "seed {seed}");
        volume.close().await.unwrap();
        world.is_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_either_store_is_away_nothing_is_lost_and_then_it_goes_on() {
    let world = World::new(4).await;
    let volume = world.open().await;
    for n in 0..20 {
        write(&volume, n, 7).await;
    }
    volume.flush().await.unwrap();
    // The rest is away: a FLUSH needs only the near one.
    world.rest.away(true);
    for n in 0..10 {
        write(&volume, n, 8).await;
        tokio::time::timeout(Duration::from_secs(5), volume.flush()).await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(near(&volume).bytes > FEW_BYTES);
    world.rest.away(false);
    until(&volume, |now| now.bytes < FEW_BYTES).await;
    world.near.away(true);
    write(&volume, 30, 9).await;
    assert!(
        tokio::time::timeout(Duration::from_secs(60), volume.flush()).await.is_err(),
        "it waits for the near store"
    );
    assert!(volume.read(0, BLOCK as u32).await.unwrap().concat()[0] == 8, "what has cooled is read without it");
    world.near.away(false);
    volume.flush().await.unwrap();
    assert!(all_of(&volume).await == world.record.content(world.record.last()));
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// A taker that slept between its look and its fence finds the slot empty, because what was there has cooled: its fence is void, and takes nothing with it, also if the
/// taker dies before it finds that out.
#[tokio::test(start_paused = true)]
async fn a_fence_in_a_slot_that_has_cooled_is_void_and_hides_nothing() {
    for dies in [false, true] {
        let world = World::new(50).await;
        let volume = world.open().await;
        write(&volume, 0, 1).await;
        volume.flush().await.unwrap();
        let taker = world.elsewhere(51);
        if dies {
            *taker.cut.left.lock() = Some(1);
        }
        let gate = taker.near.gate.clone();
        let asleep = gate.lock().await;
        let taking = async { taker.try_open_in(taker.store(), 2, TAKEOVER).await };
        let living = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for n in 1..20 {
                write(&volume, n, n as u8 + 1).await;
                volume.flush().await.unwrap();
            }
            until(&volume, |now| now.bytes < FEW_BYTES).await;
            let cooled = world.rest.segments();
            drop(asleep);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(cooled.iter().all(|(key, bytes)| world.rest.segments().get(key) == Some(bytes)), "nothing goes");
            for n in 0..20 {
                assert_eq!(volume.read(n * BLOCK, BLOCK as u32).await.unwrap().concat(), block_of(n as u8 + 1));
            }
        };
        let (taken, ()) = tokio::join!(taking, living);
        assert_eq!(taken.is_err(), dies);
        let last = match taken {
            Ok(taken) => {
                assert!(volume.write(0, block_of(9), true).await.is_err(), "it was displaced");
                taken
            }
            Err(_) => {
                assert!(
                    world.near.segments().keys().any(|key| world.rest.segments().contains_key(key)),
                    "it hides one"
                );
                volume.close().await.unwrap();
                world.elsewhere(52).open().await
            }
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        for n in 0..20 {
            assert_eq!(last.read(n * BLOCK, BLOCK as u32).await.unwrap().concat(), block_of(n as u8 + 1));
        }
        last.close().await.unwrap();
        world.elsewhere(53).is_clean().await;
    }
}

/// An opening that finds no log, or another one, is refused in one sentence, and changes nothing.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_not_at_hand_is_not_done_without() {
    let world = World::new(5).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    volume.close().await.unwrap();
    let before = (world.near.objects.objects(), world.rest.objects.objects());
    let refused = async |store: Arc<dyn Store>, what: &str| {
        let error = world.try_open_in(store.clone(), 1, NONE).await.unwrap_err().to_string();
        assert!(
            error.starts_with("the log of volume v is in a store of its own, door://near when that was made, and"),
            "{error}"
        );
        assert!(error.contains(what) && error.contains("--accept-log-loss"), "{error}");
        let checked = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await;
        assert!(checked.unwrap_err().to_string().contains(what));
    };
    refused(Arc::new(world.rest.clone()), "store.log names none").await;
    let mut empty = world.elsewhere(1);
    empty.near.objects = MemoryStore::new();
    refused(empty.store(), "is not it, or is empty").await;
    let other = World::new(6).await;
    empty.near.objects = other.near.objects.clone();
    refused(empty.store(), "is not it, or is empty").await;
    assert!(before == (world.near.objects.objects(), world.rest.objects.objects()));
    let needless = world.try_open(OpenFlags { accept_log_loss: true, ..NONE }).await.unwrap_err();
    assert!(
        needless.to_string().contains("--accept-log-loss was given for volume \"v\", but its log is at hand"),
        "{needless}"
    );
    // A store that is away is no store that is lost.
    world.near.away(true);
    let away = world.try_open(OpenFlags { accept_log_loss: true, ..NONE }).await.unwrap_err();
    assert!(away.to_string().contains("near is away"), "{away}");
    world.near.away(false);
    world.open().await.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_keep_servers_apart_gets_no_log_and_no_volume_with_one() {
    for (near, rest) in [(true, false), (false, true)] {
        let mut world = World::new(7).await;
        (world.near.sloppy, world.rest.sloppy) = (near, rest);
        let options = CreateOptions { size: BLOCK, ..CreateOptions::default() };
        let (store, other) = (world.store(), VolumeName::new("w").unwrap());
        let made = volume::create(&*store, &world.random, &Clock::System, &other, options).await;
        let refused = made.unwrap_err().to_string();
        assert!(refused.contains("create-only PUT"), "{refused}");
        let refused = world.try_open(NONE).await.unwrap_err().to_string();
        assert!(refused.contains("create-only"), "{refused}");
    }
}

/// What was not moved is lost, and said: reading it is an error, and never zeros; everything else is as of the newest checkpoint. And a server that has the old log
/// all the same, and goes on with it, does no harm.
#[tokio::test(start_paused = true)]
async fn the_near_store_is_lost() {
    for (has_another, goes_on) in [(true, false), (false, false), (true, true), (false, true)] {
        let world = World::new(30).await;
        let volume = world.open().await;
        for n in 0..20 {
            write(&volume, n, n as u8 + 1).await;
        }
        volume.flush().await.unwrap();
        until(&volume, |now| now.bytes < FEW_BYTES).await;
        // In a checkpoint, and not moved.
        for n in 10..30 {
            write(&volume, n, n as u8 + 100).await;
        }
        volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(15)).await;
        let hot: BTreeSet<Key> = world.near.segments().into_keys().collect();
        assert!(near(&volume).bytes > 40 << 10, "{:?}", near(&volume));
        // In no checkpoint.
        write(&volume, 0, 0x66).await;
        write(&volume, 40, 0x66).await;
        volume.flush().await.unwrap();

        let mut next = world.elsewhere(31);
        next.record = Record::default();
        next.near.objects = MemoryStore::new();
        let store: Arc<dyn Store> = if has_another { next.store() } else { Arc::new(next.rest.clone()) };
        let lost = next.try_open_in(store.clone(), 2, LOST).await.unwrap();
        assert_eq!(lost.near().is_some(), has_another);
        let block = async |n: u64| lost.read(n * BLOCK, BLOCK as u32).await.map(|pieces| pieces.concat()[0]);
        for n in 0..10 {
            assert_eq!(block(n).await.unwrap(), n as u8 + 1);
        }
        for n in 10..30 {
            let error = block(n).await.unwrap_err().to_string();
            assert!(error.contains("/segments/"), "{error}");
        }
        assert_eq!(block(40).await.unwrap(), 0, "it was in no checkpoint: the volume is as of before that");
        for n in 10..15 {
            write(&lost, n, 0x77).await;
        }
        lost.flush().await.unwrap();
        if goes_on {
            // It believes in its log. What it deletes and moves meanwhile is nothing that is needed.
            for round in 0..20u64 {
                for n in 0..9 {
                    if volume.write(n * BLOCK, Bytes::from(vec![round as u8; BLOCK as usize]), false).await.is_err() {
                        break;
                    }
                }
                let _ = volume.flush().await;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            let ended = volume.status().ended.unwrap_or_default();
            assert!(ended.contains("its log was given up by somebody"), "{ended}");
        }
        drop(volume);
        tokio::time::sleep(Duration::from_secs(300)).await;
        for n in 0..10 {
            assert_eq!(block(n).await.unwrap(), n as u8 + 1);
        }
        assert_eq!(block(14).await.unwrap(), 0x77);
        assert!(block(20).await.is_err());
        lost.close().await.unwrap();
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        let named: BTreeSet<&str> = report.problems.iter().map(|problem| problem.object.as_str()).collect();
        assert!(
            !named.is_empty() && named.iter().all(|named| hot.iter().any(|key| key.as_str() == *named)),
            "{report:#?}"
        );
        let lost_bytes: u64 = report.lost.iter().map(|range| range.length).sum();
        assert_eq!((report.lost[0].offset, lost_bytes), (15 * BLOCK, 15 * BLOCK));
        // Once it is accepted, it is a volume like any other; what is lost can be written anew.
        let again = next.try_open_in(store.clone(), 2, NONE).await.unwrap();
        again.trim(10 * BLOCK, 20 * BLOCK, false).await.unwrap();
        for n in 10..30 {
            write(&again, n, 0x78).await;
        }
        again.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        again.close().await.unwrap();
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean() && report.lost.is_empty(), "{:#?}", report.problems);
    }
}

/// Wherever giving up the log breaks off, it goes on with the next opening.
#[tokio::test(start_paused = true)]
async fn giving_up_the_log_breaks_off_anywhere() {
    for left in 0..12 {
        let world = World::new(32).await;
        let volume = world.open().await;
        for n in 0..20 {
            write(&volume, n, n as u8 + 1).await;
        }
        volume.flush().await.unwrap();
        until(&volume, |now| now.bytes < FEW_BYTES).await;
        drop(volume);
        let mut next = world.elsewhere(33);
        next.record = Record::default();
        next.near.objects = MemoryStore::new();
        *next.cut.left.lock() = Some(left);
        let opened = tokio::time::timeout(Duration::from_secs(100), next.try_open_in(next.store(), 2, LOST)).await;
        drop(opened);
        let mut last = next.elsewhere(34);
        last.record = Record::default();
        let opened = match last.try_open_in(last.store(), 3, TAKEOVER).await {
            Err(VolumeError::LogNotHere { .. }) => last.try_open_in(last.store(), 3, LOST).await,
            Err(VolumeError::NeedlessFlag { .. }) => last.try_open_in(last.store(), 3, NONE).await,
            opened => opened,
        };
        let volume = opened.unwrap_or_else(|error| panic!("{left}: {error}"));
        for n in 0..20 {
            assert_eq!(volume.read(n * BLOCK, BLOCK as u32).await.unwrap().concat()[0], n as u8 + 1);
        }
        write(&volume, 1, 0x44).await;
        tokio::time::sleep(Duration::from_secs(200)).await;
        volume.close().await.unwrap();
        last.is_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_cools_with_the_rest_and_reads_the_same() {
    let world = World::new(8).await;
    let volume = world.open().await;
    for n in 0..20 {
        write(&volume, n, 3).await;
    }
    volume.take_snapshot(Label { name: "before".into(), ..Label::default() }).await.unwrap();
    for n in 0..20 {
        write(&volume, n, 4).await;
    }
    volume.flush().await.unwrap();
    until(&volume, |now| now.bytes < FEW_BYTES).await;
    volume.close().await.unwrap();
    world.is_clean().await;
    let cache = (Arc::new(BlockCache::in_memory(0)), Workers::Inline);
    let (budget, secrets) = (Budget::default(), Secrets::default());
    let past =
        volume::Past::open(world.store(), &name(), "before", &options(), &budget, cache, &secrets).await.unwrap();
    assert_eq!(past.read(0, (20 * BLOCK) as u32).await.unwrap().concat(), block_of(3).repeat(20));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_leaves_its_fences_and_nothing_else() {
    let world = World::new(9).await;
    let volume = world.open().await;
    for n in 0..20 {
        write(&volume, n, 3).await;
    }
    volume.flush().await.unwrap();
    until(&volume, |now| now.bytes < FEW_BYTES).await;
    write(&volume, 0, 4).await;
    volume.close().await.unwrap();
    let server = ServerIdentity { uuid: uuid::Uuid::from_u128(9), name: "deleter".into() };
    let secrets = Secrets::default();
    volume::delete(&world.store(), &world.random, &Clock::System, &server, &name(), false, &secrets, &|_| {})
        .await
        .unwrap();
    assert!(world.near.segments().values().all(|bytes| bytes.len() < 400), "fences");
    assert_eq!(world.rest.objects.object_count(), 1, "the tombstone");
    let options = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
    volume::create(&*world.store(), &world.random, &Clock::System, &name(), options).await.unwrap();
    let again = world.elsewhere(10);
    let volume = again.open().await;
    assert!(all_of(&volume).await.iter().all(|byte| *byte == 0));
    volume.close().await.unwrap();
}

/// A volume gets a store for its log, and leaves it: nothing is lost, whoever comes meanwhile, and wherever it breaks off.
#[tokio::test(start_paused = true)]
async fn the_log_moves_there_and_back() {
    let world = World::new(40).await;
    let plain: Arc<dyn Store> = Arc::new(world.rest.clone());
    let other = VolumeName::new("w").unwrap();
    let create = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
    volume::create(&*plain, &world.random, &Clock::System, &other, create).await.unwrap();
    let fill = async |volume: &Volume, fill: u8| {
        for n in 0..20 {
            write(volume, n, fill).await;
        }
        volume.flush().await.unwrap();
    };
    let holds = async |volume: &Volume, fill: u8| {
        assert_eq!(volume.read(0, 20 * BLOCK as u32).await.unwrap().concat(), block_of(fill).repeat(20));
    };
    let (disk, secrets) = (CrashDisk::new(41), Secrets::default());
    let outside = |store: Arc<dyn Store>| Outside {
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "server".into() },
        secrets: secrets.clone(),
        ..outside::plain(store, Arc::new(disk.clone()), world.random.clone())
    };
    let open = async |store: Arc<dyn Store>| {
        Volume::open(outside(store), &other, options(), journal::Options::default(), NONE).await
    };
    let move_log = async |to_near| {
        Volume::move_log(outside(world.store()), &other, options(), journal::Options::default(), to_near).await
    };
    let is_clean = async |store: Arc<dyn Store>| {
        let report = ashlar::check::check(&store, &other, true, &|_, _| {}, &secrets).await.unwrap();
        assert!(report.is_clean() && report.lost.is_empty(), "{:#?}", report.problems);
    };
    let volume = open(plain.clone()).await.unwrap();
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    assert!(move_log(false).await.unwrap_err().to_string().contains("is where everything else is already"));
    for round in 0..3u8 {
        assert_eq!(move_log(true).await.unwrap(), 0);
        assert!(move_log(true).await.unwrap_err().to_string().contains("is in door://near already"));
        assert!(matches!(open(plain.clone()).await.unwrap_err(), VolumeError::LogNotHere { .. }));
        is_clean(world.store()).await;
        let volume = open(world.store()).await.unwrap();
        holds(&volume, 2 * round + 1).await;
        fill(&volume, 2 * round + 2).await;
        assert!(near(&volume).bytes > FEW_BYTES / 4);
        volume.close().await.unwrap();
        assert!(move_log(false).await.unwrap() > 0);
        is_clean(plain.clone()).await;
        // Also a server that still names the near store puts nothing there any more.
        let volume = open(world.store()).await.unwrap();
        assert!(volume.near().is_none());
        holds(&volume, 2 * round + 2).await;
        volume.close().await.unwrap();
        let volume = open(plain.clone()).await.unwrap();
        fill(&volume, 2 * round + 3).await;
        tokio::time::sleep(Duration::from_secs(400)).await;
        volume.close().await.unwrap();
        is_clean(plain.clone()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_of_the_log_breaks_off_anywhere() {
    let (mut went, mut stayed) = (0, 0);
    for left in 0..60 {
        let world = World::new(42).await;
        let volume = world.open().await;
        for n in 0..20 {
            write(&volume, n, n as u8 + 1).await;
        }
        volume.close().await.unwrap();
        let next = world.after_a_crash();
        *next.cut.left.lock() = Some(left);
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "server-1".into() },
            ..outside::plain(next.store(), Arc::new(next.disk.clone()), next.random.clone())
        };
        let name = name();
        let moved = Volume::move_log(outside, &name, options(), journal::Options::default(), false);
        let moved = tokio::time::timeout(Duration::from_secs(100), moved).await;
        let is_done = matches!(moved, Ok(Ok(_)));
        let last = next.after_a_crash();
        let opened = match last.try_open_in(last.store(), 2, TAKEOVER).await {
            Err(VolumeError::NeedlessFlag { .. }) => last.try_open_in(last.store(), 2, NONE).await,
            Err(VolumeError::StaleJournal { .. }) => {
                last.try_open_in(last.store(), 2, OpenFlags { drop_journal: true, ..TAKEOVER }).await
            }
            opened => opened,
        };
        let volume = opened.unwrap_or_else(|error| panic!("{left}: {error}"));
        for n in 0..20 {
            assert_eq!(volume.read(n * BLOCK, BLOCK as u32).await.unwrap().concat()[0], n as u8 + 1, "{left}");
        }
        let is_near = volume.near().is_some();
        assert!(!(is_done && is_near), "{left}");
        (went, stayed) = (went + u32::from(!is_near), stayed + u32::from(is_near));
        write(&volume, 0, 0x33).await;
        tokio::time::sleep(Duration::from_secs(200)).await;
        volume.close().await.unwrap();
        last.is_clean().await;
    }
    assert!(went > 3 && stayed > 3, "{went} went, {stayed} stayed");
}

/// A server that takes the volume at whatever moment of a move loses nothing, nor does whoever comes after both.
#[tokio::test(start_paused = true)]
async fn a_move_and_a_takeover_at_the_same_time() {
    for delay in 0..60u64 {
        let world = World::new(43).await;
        let volume = world.open().await;
        for n in 0..8 {
            write(&volume, n, n as u8 + 1).await;
        }
        volume.close().await.unwrap();
        let (mover, taker) = (world.after_a_crash(), world.elsewhere(44));
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "server-1".into() },
            ..outside::plain(mover.store(), Arc::new(mover.disk.clone()), mover.random.clone())
        };
        let (name, journal_options) = (name(), journal::Options::default());
        let moving = Volume::move_log(outside, &name, options(), journal_options, false);
        let taking = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let mut volume = taker.try_open_in(taker.store(), 2, TAKEOVER).await;
            if let Err(VolumeError::NeedlessFlag { .. }) = volume {
                volume = taker.try_open_in(taker.store(), 2, NONE).await;
            }
            let Ok(volume) = volume else { return false };
            let written = volume.write(0, Bytes::from(vec![0x77; BLOCK as usize]), true).await.is_ok();
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(volume);
            written
        };
        let (_moved, written) = tokio::join!(moving, taking);
        let last = world.elsewhere(45);
        let opened = match last.try_open_in(last.store(), 3, TAKEOVER).await {
            Err(VolumeError::NeedlessFlag { .. }) => last.try_open_in(last.store(), 3, NONE).await,
            opened => opened,
        };
        let volume = opened.unwrap_or_else(|error| panic!("{delay}: {error}"));
        let first = volume.read(0, BLOCK as u32).await.unwrap().concat()[0];
        assert!(!written || first == 0x77, "{delay}: what was acknowledged is gone");
        for n in 1..8 {
            assert_eq!(volume.read(n * BLOCK, BLOCK as u32).await.unwrap().concat()[0], n as u8 + 1, "{delay}");
        }
        volume.close().await.unwrap();
        last.is_clean().await;
    }
}
