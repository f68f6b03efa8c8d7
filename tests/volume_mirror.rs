//! A second store behind the first: whatever happens to servers and stores, and wherever copying is cut off, the mirror is a volume that opens, and holds
//! what the first one held after some change; and whoever goes on with the first store does no harm to what was made of the mirror.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::change::{Change, Numbered};
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::gc;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::mirror;
use ashlar::opening::promote::{self, Lack, Position};
use ashlar::outside::{Clock, Random};
use ashlar::space::Label;
use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Key, ListPage, Result as Answer, Store, StoreError, list_all};
use ashlar::volume::{
    self, CreateOptions, FencedBy, Mirror, Mirrored, OpenFlags, Options, Outside, ServerIdentity, Standing, Volume,
    VolumeError, VolumeName, Witness, description, resize,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const DELETE_AFTER: Duration = Duration::from_secs(60);

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// A store that may be away, and that keeps what it was after each change of it, if it is to.
#[derive(Debug, Default)]
struct Door {
    objects: MemoryStore,
    is_away: AtomicBool,
    keeps_cuts: AtomicBool,
    cuts: Mutex<Vec<MemoryStore>>,
    is_sloppy: AtomicBool,
    puts: AtomicU64,
    /// So many changes of it are made, and then nobody reaches it.
    left: Mutex<Option<u64>>,
    /// A PUT waits as long as somebody holds this.
    gate: tokio::sync::Mutex<()>,
    /// Some of what is asked fails, done or not.
    faults: Mutex<Option<Random>>,
}

impl Door {
    fn away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    fn answer(&self) -> Answer<()> {
        let fails = self.faults.lock().as_ref().is_some_and(|random| random.below(30) == 0);
        match fails || self.is_away.load(Ordering::Relaxed) {
            true => Err(StoreError::new(ErrorKind::Retryable, "the store is away")),
            false => Ok(()),
        }
    }

    fn change(&self) -> Answer<()> {
        self.answer()?;
        let mut left = self.left.lock();
        if let Some(left) = left.as_mut() {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => return Err(StoreError::new(ErrorKind::Denied, "it breaks off")),
            }
        }
        Ok(())
    }

    fn keep(&self) {
        if self.keeps_cuts.load(Ordering::Relaxed) {
            self.cuts.lock().push(self.objects.fork());
        }
    }
}

#[async_trait]
impl Store for Door {
    fn url(&self) -> String {
        format!("door://{:p}", self)
    }
    fn keeps_create_only(&self) -> bool {
        !self.is_sloppy.load(Ordering::Relaxed)
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Answer<()> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let _open = self.gate.lock().await;
        self.change()?;
        self.objects.put(key, body).await?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.keep();
        // It is there, and nobody learns it.
        self.answer()
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Answer<Bytes> {
        self.answer()?;
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> Answer<Bytes> {
        tokio::time::sleep(Duration::from_millis(5)).await;
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
        self.change()?;
        for key in keys {
            self.objects.delete(std::slice::from_ref(key)).await?;
            self.keep();
        }
        Ok(())
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
    first: Arc<Door>,
    mirror: Arc<Door>,
    disk: CrashDisk,
    random: Random,
    record: Record,
    options: mirror::Options,
}

/// What opens a volume in a store.
fn outside(store: Arc<dyn Store>, disk: &CrashDisk, random: &Random, server: u128, witness: Witness) -> Outside {
    Outside {
        cache: Arc::new(BlockCache::in_memory(1 << 20)),
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: format!("server-{server}") },
        witness,
        ..outside::plain(store, Arc::new(disk.clone()), random.clone())
    }
}

impl World {
    async fn new(seed: u64) -> World {
        let world = World {
            first: Arc::default(),
            mirror: Arc::default(),
            disk: CrashDisk::new(seed),
            random: Random::seeded(seed),
            record: Record::default(),
            options: mirror::Options {
                url: "door://".into(),
                delete_after: DELETE_AFTER,
                ..mirror::Options::default()
            },
        };
        let options = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
        volume::create(&*world.first, &world.random, &Clock::System, &name(), options).await.unwrap();
        world
    }

    fn mirror(&self) -> Mirror {
        let store: Arc<dyn Store> = self.mirror.clone();
        let open = move || {
            let store = store.clone();
            Box::pin(async move {
                store.list("x", None).await?;
                Ok(store)
            }) as futures::future::BoxFuture<'static, Answer<Arc<dyn Store>>>
        };
        Mirror::new("door://mirror".into(), self.options.clone(), Arc::new(open))
    }

    async fn try_open(&self, mirror: Option<Mirror>, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        let outside = outside(self.first.clone(), &self.disk, &self.random, 1, self.record.witness());
        Volume::open_with(outside, &name(), options(), journal::Options::default(), flags, mirror).await
    }

    async fn open(&self) -> Arc<Volume> {
        self.try_open(Some(self.mirror()), OpenFlags::default()).await.unwrap()
    }

    fn store(&self) -> Arc<dyn Store> {
        self.mirror.clone()
    }

    async fn promote(&self, takeover: bool) -> Result<Position, VolumeError> {
        promote(&self.store(), &self.random, takeover).await
    }

    async fn lacks(&self) -> Lack {
        let found = promote::look(&self.store(), &name(), &Secrets::default()).await.unwrap();
        found.lacks(self.first.clone(), &Secrets::default()).await.unwrap()
    }

    /// All of what the mirror held when it was promoted is what the volume held after that change; and it goes on as a volume.
    async fn check_promoted(&self, position: &Position) {
        check_promoted(&self.store(), &self.record, position).await;
    }
}

async fn promote(store: &Arc<dyn Store>, random: &Random, takeover: bool) -> Result<Position, VolumeError> {
    let secrets = Secrets::default();
    let server = ServerIdentity { uuid: uuid::Uuid::from_u128(99), name: "promoter".into() };
    let found = promote::look(store, &name(), &secrets).await?;
    found.promote((random, &Clock::System), &server, &secrets, takeover).await
}

async fn open_promoted(store: &Arc<dyn Store>) -> Arc<Volume> {
    let outside = outside(store.clone(), &CrashDisk::new(3), &Random::seeded(33), 2, Witness::default());
    Volume::open(outside, &name(), options(), journal::Options::default(), OpenFlags::default()).await.unwrap()
}

async fn all_of(volume: &Volume) -> Vec<u8> {
    volume.read(0, volume.info().size as u32).await.unwrap().concat()
}

async fn check_promoted(store: &Arc<dyn Store>, record: &Record, position: &Position) {
    let report = ashlar::check::check(store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    let volume = open_promoted(store).await;
    let there = all_of(&volume).await;
    let expected = record.content(position.covers.0);
    assert!(there[..] == expected[..there.len()], "it is not what was after change {}", position.covers);
    volume.write(0, Bytes::from(vec![0xee; BLOCK as usize]), true).await.unwrap();
    assert_eq!(volume.read(0, BLOCK as u32).await.unwrap().concat(), vec![0xee; BLOCK as usize]);
    volume.close().await.unwrap();
}

fn mirrored(volume: &Volume) -> Mirrored {
    volume.mirrored().unwrap()
}

/// Waits until that is so.
async fn until(volume: &Volume, asked: impl Fn(&Mirrored) -> bool) -> Mirrored {
    for _ in 0..100_000 {
        let now = mirrored(volume);
        if asked(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it stays as it is: {:?}", mirrored(volume));
}

/// Waits until the mirror has all that is committed.
async fn caught_up(volume: &Volume) -> Mirrored {
    volume.flush().await.unwrap();
    until(volume, |now| now.state == Standing::Following && now.lag_bytes == 0 && now.lag_millis == 0).await
}

async fn write(volume: &Volume, block: u64, fill: u8) {
    volume.write(block * BLOCK, Bytes::from(vec![fill; BLOCK as usize]), false).await.unwrap();
}

async fn ended(volume: &Volume) -> String {
    let now = until(volume, |now| now.state == Standing::Ended).await;
    assert_eq!(now.held_bytes, 0, "nothing is held for it");
    now.trouble.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_first_store_may_vanish() {
    let world = World::new(1).await;
    let volume = world.open().await;
    for n in 0..40 {
        write(&volume, n % BLOCKS, n as u8 + 1).await;
        if n % 7 == 0 {
            volume.flush().await.unwrap();
        }
    }
    volume.trim(3 * BLOCK, 5 * BLOCK, false).await.unwrap();
    let there = caught_up(&volume).await;
    assert!(there.objects > 5 && there.trouble.is_none(), "{there:?}");
    assert_eq!(world.lacks().await, Lack::default());
    world.first.away(true);
    drop(volume);
    let position = world.promote(true).await.unwrap();
    assert_eq!(position.covers.0, world.record.last());
    world.check_promoted(&position).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_there_before_is_copied_and_what_is_written_meanwhile() {
    let world = World::new(2).await;
    let volume = world.try_open(None, OpenFlags::default()).await.unwrap();
    for n in 0..60 {
        write(&volume, n % BLOCKS, n as u8 + 1).await;
        volume.flush().await.unwrap();
        if n % 20 == 19 {
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
    }
    volume.close().await.unwrap();
    let volume = world.open().await;
    // In the middle of it there is no volume in the mirror.
    until(&volume, |now| now.objects > 3).await;
    assert_eq!(mirrored(&volume).state, Standing::FirstCopy);
    let refused = world.promote(true).await.unwrap_err().to_string();
    assert!(refused.contains("its first copy is not done yet"), "{refused}");
    for n in 0..20 {
        write(&volume, n, 0x80 + n as u8).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    caught_up(&volume).await;
    drop(volume);
    world.check_promoted(&world.promote(true).await.unwrap()).await;
}

/// What a server does in one life.
async fn live(world: &World, volume: &Arc<Volume>, steps: u64) {
    for _ in 0..steps {
        let block = world.random.below(BLOCKS);
        match world.random.below(24) {
            0..=12 => {
                let count = 1 + world.random.below(4).min(BLOCKS - 1 - block.min(BLOCKS - 1));
                let data: Vec<u8> =
                    (0..count * BLOCK / 8).flat_map(|_| world.random.below(u64::MAX).to_le_bytes()).collect();
                if block + count <= BLOCKS {
                    volume.write(block * BLOCK, data.into(), false).await.unwrap();
                }
            }
            13..=14 => {
                let count = 1 + world.random.below(BLOCKS - block);
                volume.trim(block * BLOCK, count * BLOCK, false).await.unwrap();
            }
            15..=18 => volume.flush().await.unwrap(),
            19 => tokio::time::sleep(Duration::from_secs(world.random.below(30))).await,
            20 => drop(
                volume
                    .take_snapshot(Label { taken_unix_millis: world.random.below(1 << 40), ..Label::default() })
                    .await,
            ),
            21 => {
                if let Some(oldest) = volume.snapshots().first() {
                    volume.delete_snapshot(&oldest.label.name).await.unwrap();
                }
            }
            22 => world.mirror.away(world.random.below(2) == 0),
            _ => tokio::time::sleep(Duration::from_millis(world.random.below(300))).await,
        }
    }
}

/// One seed: servers that are closed, killed, and displaced, and a mirror that comes and goes. Returns how many cuts there were, and how many of them were a volume.
async fn every_cut_opens(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed).await;
    world.mirror.keeps_cuts.store(true, Ordering::Relaxed);
    *world.mirror.faults.lock() = (seed % 2 == 1).then(|| Random::seeded(seed));
    for life in 0..4 {
        let volume = world.open().await;
        live(&world, &volume, 20 + world.random.below(60)).await;
        match world.random.below(3) {
            0 => volume.close().await.unwrap(),
            1 => {
                drop(volume);
                world.disk = world.disk.kill();
            }
            _ => {
                world.mirror.away(false);
                caught_up(&volume).await;
                tokio::time::sleep(DELETE_AFTER * world.random.below(4) as u32).await;
                drop(volume);
                world.disk = world.disk.kill();
            }
        }
        tracing::info!(life, "over");
    }
    world.mirror.away(false);
    *world.mirror.faults.lock() = None;
    let volume = world.open().await;
    caught_up(&volume).await;
    // What the first store deleted goes here, too, and nothing else is left.
    tokio::time::sleep(DELETE_AFTER * 3).await;
    caught_up(&volume).await;
    tokio::time::sleep(DELETE_AFTER * 3).await;
    caught_up(&volume).await;
    let in_folder = |entry: &ashlar::store::ObjectEntry| !entry.key.as_str().starts_with("v/m");
    let keys = |store: Arc<dyn Store>| async move {
        let listed = list_all(&*store, "v/").await.unwrap();
        listed.into_iter().filter(in_folder).map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(world.first.clone()).await, keys(world.mirror.clone()).await, "seed {seed}");
    volume.close().await.unwrap();
    assert_eq!(world.lacks().await, Lack::default(), "seed {seed}");
    world.mirror.keeps_cuts.store(false, Ordering::Relaxed);
    let cuts = std::mem::take(&mut *world.mirror.cuts.lock());
    let (mut volumes, mut covers) = (0, 0);
    let total = cuts.len();
    for (at, cut) in cuts.into_iter().enumerate() {
        let store: Arc<dyn Store> = Arc::new(cut);
        if description::mirrored(&*store, &name()).await.unwrap().is_none() {
            assert_eq!(volumes, 0, "seed {seed}, cut {at}: it was a volume before");
            continue;
        }
        volumes += 1;
        let position =
            promote(&store, &world.random, true).await.unwrap_or_else(|why| panic!("seed {seed}, cut {at}: {why}"));
        assert!(position.covers.0 >= covers, "seed {seed}, cut {at}: it has gone back");
        covers = position.covers.0;
        check_promoted(&store, &world.record, &position).await;
    }
    assert_eq!(covers, world.record.last(), "seed {seed}");
    (total, volumes)
}

#[tokio::test(start_paused = true)]
async fn every_cut_of_the_mirror_opens_and_is_a_prefix() {
    let (mut cuts, mut volumes) = (0, 0);
    let first = std::env::var("ASHLAR_TEST_SEED").ok().map_or(0, |seed| seed.parse().unwrap());
    let seeds = std::env::var("ASHLAR_TEST_SEEDS").ok().map_or(6, |seeds| seeds.parse().unwrap());
    for seed in first..first + seeds {
        let (all, of) = every_cut_opens(seed).await;
        (cuts, volumes) = (cuts + all, volumes + of);
    }
    assert!(volumes > 50 * seeds as usize && cuts > volumes, "{cuts} {volumes}");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_is_away_slows_nobody_and_gets_all_when_it_is_back() {
    let world = World::new(3).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    caught_up(&volume).await;
    world.mirror.away(true);
    let began = tokio::time::Instant::now();
    for round in 0..200u64 {
        write(&volume, round % BLOCKS, round as u8).await;
        volume.flush().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let away = mirrored(&volume);
    assert!(away.lag_bytes > 200 * 100 && away.lag_millis >= 60_000, "{away:?}");
    assert!(away.trouble.as_ref().unwrap().contains("the store is away") && away.held_bytes > 0, "{away:?}");
    let lack = world.lacks_while_away().await;
    assert!(lack.changes >= 200 && lack.objects >= 200 && lack.gone == 0, "{lack:?}");
    // A stop waits for nobody who is not there.
    let began = tokio::time::Instant::now();
    volume.close().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let volume = world.open().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(mirrored(&volume).trouble.is_some());
    world.mirror.away(false);
    let back = caught_up(&volume).await;
    assert_eq!((back.held_bytes, &back.trouble), (0, &None));
    volume.close().await.unwrap();
    assert_eq!(world.lacks().await, Lack::default());
    world.check_promoted(&world.promote(false).await.unwrap()).await;
}

impl World {
    /// As [`World::lacks`], by whoever reaches the mirror when its server does not.
    async fn lacks_while_away(&self) -> Lack {
        let store: Arc<dyn Store> = Arc::new(self.mirror.objects.fork());
        let found = promote::look(&store, &name(), &Secrets::default()).await.unwrap();
        found.lacks(self.first.clone(), &Secrets::default()).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_first_store_deletes_is_deleted_last_and_late() {
    let world = World::new(4).await;
    let volume = world.open().await;
    for round in 0..30u64 {
        write(&volume, round % 8, round as u8).await;
        volume.flush().await.unwrap();
    }
    caught_up(&volume).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    caught_up(&volume).await;
    let segments =
        |store: &Door| store.objects.objects().iter().filter(|(key, _)| key.as_str().contains("/segments/")).count();
    let (here, there) = (segments(&world.first), segments(&world.mirror));
    assert!(here + 20 < there, "{here} {there}");
    tokio::time::sleep(2 * DELETE_AFTER).await;
    let now = caught_up(&volume).await;
    assert!(segments(&world.mirror) <= segments(&world.first) + 1 && now.deleted_objects > 20, "{now:?}");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_server_that_died_left_to_be_deleted_is_found() {
    let mut world = World::new(5).await;
    let volume = world.open().await;
    for round in 0..30u64 {
        write(&volume, round % 8, round as u8).await;
        volume.flush().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(40)).await;
    caught_up(&volume).await;
    drop(volume);
    world.disk = world.disk.kill();
    assert!(world.first.objects.object_count() + 15 < world.mirror.objects.object_count(), "nothing was deleted");
    let count = world.mirror.objects.object_count();
    let volume = world.open().await;
    write(&volume, 9, 1).await;
    caught_up(&volume).await;
    assert!(world.mirror.objects.object_count() >= count);
    tokio::time::sleep(2 * DELETE_AFTER).await;
    let now = caught_up(&volume).await;
    let left = world.mirror.objects.object_count();
    assert!(now.deleted_objects > 20 && left + 15 < count, "{now:?}, {left} of {count}");
    volume.close().await.unwrap();
    world.check_promoted(&world.promote(false).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_with_the_first_store_does_no_harm_to_what_was_promoted() {
    for seed in 10..16 {
        let world = World::new(seed).await;
        let volume = world.open().await;
        live_there(&volume, &world.random, 40).await;
        caught_up(&volume).await;
        let position = world.promote(true).await.unwrap();
        let promoted = open_promoted(&world.store()).await;
        let mut content = world.record.content(position.covers.0);
        assert_eq!(all_of(&promoted).await, content);
        // Both are written, and both delete.
        for round in 0..60u8 {
            live_there(&volume, &world.random, 4).await;
            let block = world.random.below(BLOCKS);
            let data = vec![round + 100; BLOCK as usize];
            content[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].copy_from_slice(&data);
            promoted.write(block * BLOCK, data.into(), true).await.unwrap();
            tokio::time::sleep(Duration::from_secs(u64::from(round) % 7)).await;
        }
        let why = ended(&volume).await;
        assert!(why.contains("was promoted by server promoter"), "{why}");
        tokio::time::sleep(3 * DELETE_AFTER).await;
        assert_eq!(all_of(&volume).await, world.record.content(world.record.last()), "the first one goes on");
        volume.close().await.unwrap();
        promoted.close().await.unwrap();
        // A new life of the old server finds a volume where its mirror was.
        let volume = world.open().await;
        let why = ended(&volume).await;
        assert!(why.contains("holds volume v itself: the mirror was promoted"), "{why}");
        volume.close().await.unwrap();
        let report =
            ashlar::check::check(&world.store(), &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
        let promoted = open_promoted(&world.store()).await;
        assert_eq!(all_of(&promoted).await, content);
    }
}

/// Writes, trims and flushes of one who knows of no mirror.
async fn live_there(volume: &Volume, random: &Random, steps: u64) {
    for _ in 0..steps {
        let block = random.below(BLOCKS);
        match random.below(10) {
            0 => volume.trim(block * BLOCK, (BLOCKS - block).min(9) * BLOCK, false).await.unwrap(),
            1..=3 => volume.flush().await.unwrap(),
            _ => write(volume, block, random.below(200) as u8 + 1).await,
        }
    }
}

/// A planned move: the last change, the checkpoint and the close entry are there when the stop is done.
#[tokio::test(start_paused = true)]
async fn a_clean_stop_brings_all_of_it() {
    let world = World::new(6).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    caught_up(&volume).await;
    for n in 0..30 {
        write(&volume, n, 7).await;
    }
    volume.close().await.unwrap();
    assert_eq!(world.lacks().await, Lack::default());
    let position = world.promote(false).await.unwrap();
    assert!(position.is_closed && position.covers.0 == world.record.last());
    world.check_promoted(&position).await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_is_opened_by_nobody_and_promoted_once() {
    let world = World::new(7).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    caught_up(&volume).await;
    let store = world.store();
    let refused = |error: VolumeError| error.to_string();
    let said = refused(description::load(&*store, &name()).await.unwrap_err());
    assert!(said.contains("is a mirror, which nobody may open: `ashlar promote v` makes a volume of it"), "{said}");
    let outside = outside(store.clone(), &CrashDisk::new(3), &world.random, 2, Witness::default());
    let opened = Volume::open(outside, &name(), options(), journal::Options::default(), OpenFlags::default()).await;
    assert!(matches!(opened, Err(VolumeError::IsMirror { .. })), "{opened:?}");
    let create = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
    let created = volume::create(&*store, &world.random, &Clock::System, &name(), create).await;
    assert!(matches!(created, Err(VolumeError::IsMirror { .. })), "{created:?}");
    assert!(volume::names(&*store).await.unwrap().is_empty());
    let said = refused(world.promote(false).await.unwrap_err());
    assert!(said.contains("which did not close the volume") && said.contains("--takeover"), "{said}");
    caught_up(&volume).await;
    world.promote(true).await.unwrap();
    let said = refused(world.promote(true).await.unwrap_err());
    assert!(said.contains("was promoted already"), "{said}");
    let said = refused(promote(&(world.first.clone() as Arc<dyn Store>), &world.random, true).await.unwrap_err());
    assert!(said.contains("is a volume and no mirror"), "{said}");
    let other = VolumeName::new("w").unwrap();
    let said = refused(promote::look(&store, &other, &Secrets::default()).await.unwrap_err());
    assert!(said.contains("there is no mirror of volume w"), "{said}");
}

/// The mirror has the log up to somewhere, and a server that does not know of it deletes what comes then.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_was_left_out_is_not_gone_on_with() {
    let world = World::new(8).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    caught_up(&volume).await;
    volume.close().await.unwrap();
    let had = world.record.last();
    let volume = world.try_open(None, OpenFlags::default()).await.unwrap();
    assert_eq!(volume.mirrored(), None);
    for round in 0..40u64 {
        write(&volume, 1, round as u8).await;
        volume.flush().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    volume.close().await.unwrap();
    let volume = world.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("is not in door://") && why.contains("without this mirror in its configuration"), "{why}");
    write(&volume, 2, 2).await;
    volume.close().await.unwrap();
    let position = world.promote(true).await.unwrap();
    assert_eq!(position.covers.0, had);
    world.check_promoted(&position).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_have_no_mirror_is_refused_in_words() {
    // A store that is put back to an older state.
    let world = World::new(9).await;
    let volume = world.open().await;
    let before = world.first.objects.fork();
    for round in 0..25 {
        write(&volume, round, 1).await;
        volume.flush().await.unwrap();
    }
    caught_up(&volume).await;
    drop(volume);
    let old = World { first: Arc::new(Door { objects: before, ..Door::default() }), disk: CrashDisk::new(5), ..world };
    let flags = OpenFlags { takeover: true, ..OpenFlags::default() };
    let volume = old.try_open(Some(old.mirror()), flags).await.unwrap();
    let why = ended(&volume).await;
    assert!(why.contains("was put back to an older state"), "{why}");
    drop(volume);

    // One that was, and was gone on with, until it has more than the mirror.
    let volume = old.try_open(None, OpenFlags::default()).await.unwrap();
    for round in 0..30 {
        write(&volume, round, 2).await;
        volume.flush().await.unwrap();
    }
    // Before a checkpoint lets anything go.
    drop(volume);
    let volume = old.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("they went apart"), "{why}");
    drop(volume);

    // Another volume of that name.
    let world = World { first: Arc::default(), disk: CrashDisk::new(6), record: Record::default(), ..old };
    let create = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
    volume::create(&*world.first, &world.random, &Clock::System, &name(), create).await.unwrap();
    let volume = world.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("holds the mirror of another volume v"), "{why}");
    volume.close().await.unwrap();

    // A store that does not keep two servers apart.
    let world = World { mirror: Arc::default(), ..world };
    world.mirror.is_sloppy.store(true, Ordering::Relaxed);
    let volume = world.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("does not keep create-only PUTs apart"), "{why}");
    volume.close().await.unwrap();

    // The store itself.
    let world = World { mirror: world.first.clone(), ..world };
    let volume = world.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("or it is the store of this server"), "{why}");
    volume.close().await.unwrap();

    // A volume in verified mode.
    let world = World { first: Arc::default(), mirror: Arc::default(), disk: CrashDisk::new(8), ..world };
    world.first.is_sloppy.store(true, Ordering::Relaxed);
    let create = CreateOptions { size: BLOCKS * BLOCK, fenced_by: FencedBy::Verified, ..CreateOptions::default() };
    volume::create(&*world.first, &world.random, &Clock::System, &name(), create).await.unwrap();
    let volume = world.open().await;
    let why = ended(&volume).await;
    assert!(why.contains("is in verified mode"), "{why}");
    volume.close().await.unwrap();
    assert_eq!(world.mirror.puts.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn another_size_is_there_when_what_needs_it_is() {
    let world = World::new(20).await;
    world.mirror.keeps_cuts.store(true, Ordering::Relaxed);
    let volume = world.open().await;
    for n in 0..BLOCKS {
        write(&volume, n, 3).await;
    }
    caught_up(&volume).await;
    world.mirror.away(true);
    volume.shrink(BLOCKS / 2 * BLOCK, true).await.unwrap();
    write(&volume, 1, 9).await;
    volume.flush().await.unwrap();
    world.mirror.away(false);
    caught_up(&volume).await;
    // The description comes behind the log that it needs.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.mirror.away(true);
    let found = description::load(&*world.first, &name()).await.unwrap();
    let sealer = found.unlock(&Secrets::default()).await.unwrap();
    resize::grow(&*world.first, &world.random, &found, &sealer, (BLOCKS - 4) * BLOCK).await.unwrap();
    volume.reload().await.unwrap();
    write(&volume, BLOCKS - 5, 8).await;
    volume.flush().await.unwrap();
    world.mirror.away(false);
    caught_up(&volume).await;
    volume.close().await.unwrap();
    let (cuts, mut sizes) = (std::mem::take(&mut *world.mirror.cuts.lock()), Vec::new());
    for cut in cuts {
        let store: Arc<dyn Store> = Arc::new(cut);
        if description::mirrored(&*store, &name()).await.unwrap().is_some() {
            let position = promote(&store, &world.random, true).await.unwrap();
            sizes.push(description::load(&*store, &name()).await.unwrap().meta.size / BLOCK);
            check_promoted(&store, &world.record, &position).await;
        }
    }
    sizes.dedup();
    assert_eq!(sizes, [BLOCKS, BLOCKS / 2, BLOCKS - 4]);
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_in_the_first_store_is_copied_as_it_is_and_said() {
    let world = World::new(21).await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    caught_up(&volume).await;
    world.mirror.away(true);
    let before: Vec<Key> = world.first.objects.objects().into_iter().map(|(key, _)| key).collect();
    let data: Vec<u8> = (0..8 * BLOCK / 8).flat_map(|_| world.random.below(u64::MAX).to_le_bytes()).collect();
    volume.write(0, data.into(), true).await.unwrap();
    let objects = world.first.objects.objects();
    let (key, bytes) =
        objects.into_iter().find(|(key, _)| !before.contains(key) && key.as_str().contains("/segments/")).unwrap();
    let mut damaged = bytes.to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    world.first.objects.replace(&key, damaged.clone().into());
    write(&volume, 30, 5).await;
    volume.flush().await.unwrap();
    world.mirror.away(false);
    let now = caught_up(&volume).await;
    assert_eq!(now.damaged_objects, 1);
    assert_eq!(world.mirror.objects.get(&key).await.unwrap(), damaged);
    volume.close().await.unwrap();
}

/// A promotion that breaks off is done again, whatever the copier does meanwhile.
#[tokio::test(start_paused = true)]
async fn a_promotion_that_breaks_off_is_done_again() {
    let (mut broke, mut goes_on) = (0, 0);
    for left in 0.. {
        let world = World::new(30 + left).await;
        let volume = world.open().await;
        live_there(&volume, &world.random, 20).await;
        caught_up(&volume).await;
        *world.mirror.left.lock() = Some(left);
        let first = world.promote(true).await;
        *world.mirror.left.lock() = None;
        if first.is_ok() {
            assert_eq!(broke, left);
            break;
        }
        broke += 1;
        live_there(&volume, &world.random, 20).await;
        volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        goes_on += u64::from(mirrored(&volume).state == Standing::Following);
        let position = match world.promote(true).await {
            Ok(position) => position,
            // The description was there, and only that was not said.
            Err(said) => {
                assert!(said.to_string().contains("was promoted already"), "{said}");
                continue;
            }
        };
        assert_eq!(mirrored(&volume).state == Standing::Following, position.covers.0 == world.record.last());
        live_there(&volume, &world.random, 20).await;
        volume.flush().await.unwrap();
        ended(&volume).await;
        world.check_promoted(&position).await;
    }
    assert!(broke >= 3 && goes_on == 1, "{broke} {goes_on}");
}

/// A PUT of the copier may arrive at any time later: the slot is taken for ever, also of a mirror that ended with a clean stop.
#[tokio::test(start_paused = true)]
async fn a_copy_that_arrives_late_finds_its_slot_taken() {
    let world = World::new(60).await;
    let volume = world.open().await;
    live_there(&volume, &world.random, 20).await;
    caught_up(&volume).await;
    volume.close().await.unwrap();
    let late = world.mirror.gate.lock().await;
    let volume = world.open().await;
    write(&volume, 1, 1).await;
    volume.flush().await.unwrap();
    // It is on its way: the fence of this opening.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(mirrored(&volume).objects, 0);
    let objects = world.mirror.objects.clone();
    let store: Arc<dyn Store> = Arc::new(Door { objects, ..Door::default() });
    let position = promote(&store, &world.random, false).await.unwrap();
    let promoted = open_promoted(&store).await;
    let mut content = world.record.content(position.covers.0);
    for round in 0..60u8 {
        content[..BLOCK as usize].fill(round);
        promoted.write(0, vec![round; BLOCK as usize].into(), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(DELETE_AFTER).await;
    drop(late);
    let why = ended(&volume).await;
    assert!(why.contains("was promoted by server promoter"), "{why}");
    live_there(&volume, &world.random, 20).await;
    volume.close().await.unwrap();
    assert_eq!(all_of(&promoted).await, content);
    promoted.close().await.unwrap();
    let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    let promoted = open_promoted(&store).await;
    assert_eq!(all_of(&promoted).await, content);
}

/// How long a client takes that overwrites a volume at random, with a mirror that is away or without any; and whether collection moved something.
async fn overwritten(mirror: bool) -> (Duration, u64) {
    let mut world = World::new(70).await;
    let first: Arc<Door> = Arc::default();
    let create = CreateOptions { size: 16 << 20, ..CreateOptions::default() };
    volume::create(&*first, &world.random, &Clock::System, &name(), create).await.unwrap();
    world.first = first;
    world.mirror.away(true);
    let volume = world.try_open(mirror.then(|| world.mirror()), OpenFlags::default()).await.unwrap();
    let data = |random: &Random, len: u64| -> Bytes {
        (0..len / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect::<Vec<_>>().into()
    };
    for at in (0..8 << 20).step_by(64 << 10) {
        volume.write(at, data(&world.random, 64 << 10), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    let began = tokio::time::Instant::now();
    for round in 0..4000 {
        let block = world.random.below((8 << 20) / BLOCK);
        volume.write(block * BLOCK, data(&world.random, BLOCK), false).await.unwrap();
        if round % 16 == 15 {
            volume.flush().await.unwrap();
        }
    }
    let took = began.elapsed();
    let status = volume.status();
    assert!(!mirror || volume.mirrored().unwrap().held_bytes > 4 << 20, "{:?}", volume.mirrored());
    (took, status.gc.segments_written)
}

/// What a mirror lacks stays in the first store, and is no reason to hold a client back.
#[tokio::test(start_paused = true)]
async fn nobody_is_held_back_for_space_that_a_mirror_keeps() {
    let (without, moved_without) = overwritten(false).await;
    let (with, moved) = overwritten(true).await;
    assert!(moved > 0 && moved_without > 0, "{moved} {moved_without}");
    // Time is virtual.
    assert!(with <= without * 11 / 10, "{with:?} {without:?}");
}

/// What the first store deleted, as of a checkpoint that the mirror does not have yet, stays there, also if nobody has noted it.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_is_far_behind_keeps_what_its_own_checkpoint_needs() {
    let mut world = World::new(80).await;
    let volume = world.open().await;
    for block in 0..BLOCKS {
        write(&volume, block, 1).await;
        volume.flush().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let there = caught_up(&volume).await;
    assert!(there.checkpoint > 0, "{there:?}");
    world.mirror.away(true);
    for block in 0..BLOCKS {
        let data: Vec<u8> = (0..BLOCK / 8).flat_map(|_| world.random.below(u64::MAX).to_le_bytes()).collect();
        volume.write(block * BLOCK, data.into(), true).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let old: Vec<Key> = world.mirror.objects.objects().into_iter().map(|(key, _)| key).collect();
    let left = world.first.objects.objects().into_iter().filter(|(key, _)| old.contains(key)).count();
    assert!(left + 40 < old.len(), "what the mirror has was deleted in the first store: {left} of {}", old.len());
    drop(volume);
    world.disk = world.disk.kill();
    world.mirror.away(false);
    world.options.bandwidth = 1000;
    let volume = world.open().await;
    tokio::time::sleep(3 * DELETE_AFTER).await;
    let now = mirrored(&volume);
    assert!(now.state == Standing::Following && now.lag_bytes > 10_000 && now.objects > 10, "{now:?}");
    let cut: Arc<dyn Store> = Arc::new(world.mirror.objects.fork());
    let position = promote(&cut, &world.random, true).await.unwrap();
    assert!(position.covers.0 > BLOCKS, "it has gone back: {position:?}");
    check_promoted(&cut, &world.record, &position).await;
    caught_up(&volume).await;
    tokio::time::sleep(3 * DELETE_AFTER).await;
    let now = caught_up(&volume).await;
    assert!(now.deleted_objects > 40, "{now:?}");
    volume.close().await.unwrap();
    world.check_promoted(&world.promote(false).await.unwrap()).await;
}
