//! Space comes back: what a volume keeps in a memory store after churn, and what it does when deleting goes wrong. Time is
//! virtual. Crashes at every step are the simulation's business (`tests/sim`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::keys::Keys;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random};
use ashlar::store::memory::MemoryStore;
use ashlar::store::prices::Prices;
use ashlar::store::{ErrorKind, Key, ListPage, Store, StoreError};
use ashlar::units::Seq;
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;

const BLOCK: u64 = 4096;

/// A memory store that can be told to refuse deletions.
#[derive(Debug, Default)]
struct Keeper {
    objects: MemoryStore,
    refuses: AtomicBool,
}

#[async_trait]
impl Store for Keeper {
    fn url(&self) -> String {
        self.objects.url()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        self.objects.put(key, body).await
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.objects.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.objects.list(prefix, after).await
    }
    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(StoreError::new(ErrorKind::Denied, "deleting is forbidden")),
            false => self.objects.delete(keys).await,
        }
    }
}

struct World {
    store: Arc<Keeper>,
    disk: CrashDisk,
    random: Random,
    name: VolumeName,
    options: Options,
}

impl World {
    async fn new(size: u64) -> World {
        let random = Random::seeded(7);
        let store = Arc::new(Keeper::default());
        let name = VolumeName::new("v").unwrap();
        let options = CreateOptions { size, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name, options).await.unwrap();
        World { store, disk: CrashDisk::new(7), random, name, options: Options::default() }
    }

    /// Where its objects are.
    async fn keys(&self) -> Keys {
        Keys::of(&volume::description::load(&*self.store, &self.name).await.unwrap().meta)
    }

    async fn open(&self, server: u128, flags: OpenFlags) -> Arc<Volume> {
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: "one".into() },
            ..outside::plain(self.store.clone(), Arc::new(self.disk.clone()), self.random.clone())
        };
        Volume::open(outside, &self.name, self.options.clone(), journal::Options::default(), flags).await.unwrap()
    }

    fn stored(&self) -> u64 {
        self.store.objects.total_bytes()
    }

    async fn check(&self) -> ashlar::check::Report {
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &self.name, true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
        report
    }
}

/// Bytes that do not compress.
fn noise(random: &Random, blocks: u64) -> Bytes {
    let mut data = vec![0; (blocks * BLOCK) as usize];
    blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut data);
    data.into()
}

async fn minute() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn after_random_overwrites_and_a_quiet_minute_little_more_is_stored_than_is_live() {
    const LIVE: u64 = 64 << 20;
    let world = World::new(LIVE).await;
    let volume = world.open(1, OpenFlags::default()).await;
    let mut model = vec![Bytes::new(); (LIVE / BLOCK) as usize];
    let mut written = 0;
    for round in 0..4 {
        for _ in 0..LIVE / BLOCK {
            let block = if round == 0 { written } else { world.random.below(LIVE / BLOCK) };
            let data = noise(&world.random, 1);
            volume.write(block * BLOCK, data.clone(), false).await.unwrap();
            model[block as usize] = data;
            written += 1;
        }
    }
    minute().await;
    let (stored, status) = (world.stored(), volume.status());
    assert_eq!((status.live_bytes / LIVE, status.mapped_bytes), (1, LIVE), "{status:?}");
    assert!(stored * 100 <= LIVE * 125, "{stored} bytes stored for {LIVE} live ones; {status:?}");
    assert!(status.gc.segments_written > 0 && status.since_open.bytes_moved < 3 * LIVE * 3 / 2, "{status:?}");

    let asked = status.since_open;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(volume.status().since_open, asked, "an idle volume makes no request");

    for (block, data) in model.iter().enumerate() {
        assert_eq!(volume.read(block as u64 * BLOCK, BLOCK as u32).await.unwrap().concat(), *data, "block {block}");
    }
    volume.close().await.unwrap();
    let report = world.check().await;
    assert!(report.orphans.is_empty(), "{:?}", report.orphans);
    let volume = world.open(1, OpenFlags::default()).await;
    assert_eq!(volume.read(9 * BLOCK, BLOCK as u32).await.unwrap().concat(), model[9]);
    let remembered = volume.status().since_creation;
    assert_eq!((remembered.bytes_written, remembered.bytes_moved), (asked.bytes_written, asked.bytes_moved));
    assert!(
        remembered.puts + 3 >= asked.puts && remembered.request_cost(&Prices::default()) > 0.0,
        "{remembered:?} {asked:?}"
    );
}

/// Overwrites blocks that `draw` chooses, at about 16 MiB a second, and watches the store meanwhile.
async fn overwrite_for_long(draw: impl Fn(&Random, u64) -> u64, moved_max: f64) {
    const LIVE: u64 = 64 << 20;
    const BLOCKS: u64 = LIVE / BLOCK;
    let mut world = World::new(LIVE).await;
    // So that a volume of this size has as many segments as a real one of half a gigabyte.
    world.options.segment_size = 1 << 20;
    let volume = world.open(1, OpenFlags::default()).await;
    for block in 0..BLOCKS {
        volume.write(block * BLOCK, noise(&world.random, 1), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    let (mut most, mut written) = (0, 0);
    let before = volume.status().since_open;
    for i in 0..6 * BLOCKS {
        let block = draw(&world.random, BLOCKS);
        volume.write(block * BLOCK, noise(&world.random, 1), false).await.unwrap();
        written += BLOCK;
        if i % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(16)).await;
            most = most.max(world.stored());
        }
    }
    let status = volume.status();
    let moved = (status.since_open.bytes_moved - before.bytes_moved) as f64 / written as f64;
    println!("most stored {:.2} x live, moved {moved:.2} x written", most as f64 / LIVE as f64);
    assert!(most * 100 <= LIVE * 160, "{most} bytes stored for {LIVE} live ones; {status:?}");
    assert!(moved <= moved_max, "{moved} bytes moved for each one written");
}

#[tokio::test(start_paused = true)]
async fn under_sustained_uniform_overwriting_the_store_stays_within_its_bound() {
    overwrite_for_long(|random, blocks| random.below(blocks), 1.5).await;
}

#[tokio::test(start_paused = true)]
async fn under_sustained_skewed_overwriting_the_store_stays_within_its_bound() {
    // Nine of ten writes go to a tenth of the blocks.
    let draw = |random: &Random, blocks| random.below(if random.below(10) < 9 { blocks / 10 } else { blocks });
    overwrite_for_long(draw, 0.7).await;
}

#[tokio::test(start_paused = true)]
async fn every_other_file_deleted_gives_half_the_space_back() {
    const SIZE: u64 = 64 << 20;
    let world = World::new(SIZE).await;
    let volume = world.open(1, OpenFlags::default()).await;
    for block in (0..SIZE / BLOCK).step_by(16) {
        volume.write(block * BLOCK, noise(&world.random, 16), false).await.unwrap();
    }
    for block in (0..SIZE / BLOCK).step_by(32) {
        volume.trim(block * BLOCK, 16 * BLOCK, false).await.unwrap();
    }
    minute().await;
    let live = SIZE / 2;
    assert_eq!(volume.status().mapped_bytes, live);
    assert!(world.stored() * 100 <= live * 125, "{} bytes stored for {live} live ones", world.stored());
}

#[tokio::test(start_paused = true)]
async fn many_small_flushes_end_in_few_objects() {
    let world = World::new(64 << 20).await;
    let volume = world.open(1, OpenFlags::default()).await;
    for i in 0..500 {
        volume.write(i * 7 % 4000 * BLOCK, noise(&world.random, 1), true).await.unwrap();
    }
    let flushed = volume.status().since_open.puts;
    assert!(flushed >= 500, "each FUA is a PUT: {flushed}");
    minute().await;
    let objects = world.store.objects.object_count();
    assert!(objects < 70, "{objects} objects are left");
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn full_segments_of_data_that_compresses_well_are_left_alone() {
    const SEGMENT: u64 = 64 << 10;
    let mut world = World::new(64 << 20).await;
    world.options.segment_size = SEGMENT;
    let volume = world.open(1, OpenFlags::default()).await;
    for i in 0..200 {
        volume.write(i * SEGMENT, Bytes::from(vec![7; SEGMENT as usize]), true).await.unwrap();
    }
    minute().await;
    let asked = volume.status().since_open;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(volume.status().since_open, asked, "an idle volume makes no request");
    assert_eq!(volume.status().gc.segments_written, 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_small_trims_and_one_of_16_tib_cost_next_to_nothing() {
    const SIZE: u64 = 16 << 40;
    let world = World::new(SIZE).await;
    let volume = world.open(1, OpenFlags::default()).await;
    volume.write(1 << 40, noise(&world.random, 64), true).await.unwrap();
    let before = volume.status().since_open;
    volume.trim(0, SIZE, true).await.unwrap();
    assert_eq!(volume.status().since_open.puts, before.puts + 1, "one segment says it all");
    for i in 0..20_000 {
        volume.trim((i * 7919 % (SIZE / BLOCK)) * BLOCK, BLOCK, false).await.unwrap();
    }
    volume.flush().await.unwrap();
    assert_eq!(volume.read(1 << 40, BLOCK as u32).await.unwrap().concat(), vec![0; BLOCK as usize]);
    minute().await;
    assert!(world.stored() < 1 << 20, "{} bytes are left", world.stored());
    let after = volume.status().since_open;
    assert!(after.puts - before.puts < 20 && after.gets - before.gets < 60, "{before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forbids_deletion_is_asked_again_and_the_volume_goes_on_even_after_a_restart() {
    let world = World::new(64 << 20).await;
    world.store.refuses.store(true, Ordering::Relaxed);
    let volume = world.open(1, OpenFlags::default()).await;
    volume.write(0, noise(&world.random, 2048), true).await.unwrap();
    volume.trim(0, 2048 * BLOCK, true).await.unwrap();
    minute().await;
    let stored = world.stored();
    assert!(stored > 8 << 20 && volume.status().gc.doomed_objects > 0);
    volume.write(4096, noise(&world.random, 1), true).await.unwrap();
    volume.close().await.unwrap();

    let volume = world.open(1, OpenFlags::default()).await;
    minute().await;
    assert!(world.stored() > 8 << 20);
    world.store.refuses.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert!(world.stored() < 100 << 10, "{} bytes are left", world.stored());
    assert_eq!(volume.status().gc.doomed_objects, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_haste_leaves_dead_objects_to_the_next_opening() {
    let world = World::new(64 << 20).await;
    for in_haste in [false, true] {
        let volume = world.open(1, OpenFlags::default()).await;
        volume.write(0, noise(&world.random, 2048), true).await.unwrap();
        volume.trim(0, 2048 * BLOCK, true).await.unwrap();
        if in_haste {
            volume.leave_deletions();
        }
        volume.close().await.unwrap();
        assert_eq!(world.stored() > 8 << 20, in_haste, "{} bytes are left", world.stored());
        world.check().await;
    }
    let _volume = world.open(2, OpenFlags::default()).await;
    minute().await;
    assert!(world.stored() < 100 << 10, "{} bytes are left", world.stored());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_is_left_alone_and_the_others_are_collected() {
    let world = World::new(64 << 20).await;
    let volume = world.open(1, OpenFlags::default()).await;
    let kept = noise(&world.random, 1);
    for part in 0..4 {
        volume.write(part * 2048 * BLOCK, noise(&world.random, 2048), true).await.unwrap();
    }
    volume.write(3 * 2048 * BLOCK, kept.clone(), true).await.unwrap();
    // The first segment decays where its last block is, which stays live.
    let keys = world.keys().await;
    let (key, body) = world.store.objects.objects().into_iter().find(|(_, body)| body.len() > 8 << 20).unwrap();
    assert_eq!(key, keys.segment(Seq(2)));
    let mut harmed = body.to_vec();
    *harmed.last_mut().unwrap() ^= 1;
    world.store.objects.replace(&key, harmed.into());
    for part in 0..4 {
        volume.trim((part * 2048 + 1) * BLOCK, 2046 * BLOCK, false).await.unwrap();
    }
    volume.flush().await.unwrap();
    minute().await;
    let status = volume.status();
    assert_eq!(status.gc.damaged_segments, 1);
    assert!(world.stored() < 9 << 20, "{} bytes are left", world.stored());
    assert!(volume.read(2047 * BLOCK, BLOCK as u32).await.is_err(), "damage is an error, never other data");
    assert_eq!(volume.read(3 * 2048 * BLOCK, BLOCK as u32).await.unwrap().concat(), kept);
}

#[tokio::test(start_paused = true)]
async fn objects_that_nobody_owns_go_after_a_grace_time_and_fences_stay() {
    let mut world = World::new(64 << 20).await;
    let first = world.open(1, OpenFlags::default()).await;
    first.write(0, noise(&world.random, 1), true).await.unwrap();
    drop(first); // it dies
    world.disk = CrashDisk::new(9); // and another one takes over
    let volume = world.open(2, OpenFlags { takeover: true, ..OpenFlags::default() }).await;
    let keys = world.keys().await;
    let stray = keys.segment(Seq(2));
    let body = world.store.get(&stray).await.unwrap();
    volume.write(0, noise(&world.random, 1), true).await.unwrap();
    minute().await;
    assert!(world.store.get(&stray).await.is_err(), "it was dead");
    // The next checkpoint no longer lists what was deleted after the one before.
    volume.write(4096, noise(&world.random, 1), true).await.unwrap();
    minute().await;
    // A request of the dead server's arrives at last; somebody keeps notes here; and something cannot be read.
    let (foreign, unreadable) = (Key::new(format!("{}notes.txt", keys.all())).unwrap(), keys.segment(Seq(5)));
    world.store.put(&stray, vec![body.clone()]).await.unwrap();
    world.store.put(&foreign, vec![Bytes::from_static(b"mine")]).await.unwrap();
    world.store.put(&unreadable, vec![body]).await.unwrap();
    let report = world.check().await;
    assert_eq!(report.orphans.len(), 3, "{:?}", report.orphans);

    tokio::time::sleep(Duration::from_secs(3 * 86_400)).await;
    let lists = || volume.status().since_open.lists;
    let before = lists();
    for (block, wait) in [(2, 3700), (3, 60)] {
        assert!(world.store.get(&stray).await.is_ok(), "a quiet volume is not listed, and one listing is not enough");
        volume.write(block * 4096, noise(&world.random, 1), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
    assert!(world.store.get(&stray).await.is_err(), "removed");
    assert!((2..=6).contains(&(lists() - before)), "two searches: {}", lists() - before);
    assert!(world.store.get(&foreign).await.is_ok() && world.store.get(&unreadable).await.is_ok());
    assert!(world.store.get(&keys.segment(Seq(3))).await.is_ok(), "the fence that displaced the first server");
    assert_eq!(volume.sweep().await.unwrap().left, [foreign, unreadable]);
}
