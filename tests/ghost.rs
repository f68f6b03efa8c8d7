//! A ghost (`examples/ghost`) is a volume like any other, and a volume of 100 TiB is one like a small one: opened, read, written, trimmed,
//! checkpointed, collected, opened again. Time is virtual.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

#[path = "../examples/ghost/world/mod.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Store, list_all};
use ashlar::volume::clones::{self, Wanted};
use ashlar::volume::{Budget, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName};
use bytes::Bytes;
use world::Ghost;
use world::shape::{BLOCK, Place, Shape};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

async fn open(ghost: &Arc<Ghost>, options: Options) -> Arc<Volume> {
    open_named(ghost, world::NAME, options).await
}

async fn open_named(ghost: &Arc<Ghost>, name: &str, options: Options) -> Arc<Volume> {
    open_in(ghost.clone(), name, options).await
}

async fn open_in(store: Arc<dyn Store>, name: &str, options: Options) -> Arc<Volume> {
    let outside = Outside {
        budget: Budget::new(&options),
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(2), name: "one".into() },
        ..outside::plain(store, Arc::new(CrashDisk::new(3)), Random::seeded(4))
    };
    let name = VolumeName::new(name).unwrap();
    Volume::open(outside, &name, options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// What the volume must hold.
struct Model {
    ghost: Arc<Ghost>,
    /// Versions of blocks that were written.
    written: HashMap<u64, u64>,
    /// Ranges that were given up before that, by their first block.
    trimmed: BTreeMap<u64, u64>,
}

impl Model {
    fn expected(&self, block: u64) -> Vec<u8> {
        let is_trimmed = self.trimmed.range(..=block).next_back().is_some_and(|(_, end)| block < *end);
        match self.written.get(&block) {
            Some(version) => self.ghost.shape.content(block, *version),
            None if is_trimmed => vec![0; BLOCK as usize],
            None => self.ghost.content(block).unwrap_or(vec![0; BLOCK as usize]),
        }
    }

    async fn check(&self, volume: &Volume, block: u64, blocks: u64) {
        let read = volume.read(block * BLOCK, (blocks * BLOCK) as u32).await.unwrap();
        let read = read.concat();
        for n in 0..blocks {
            let (from, to) = ((n * BLOCK) as usize, ((n + 1) * BLOCK) as usize);
            assert!(read[from..to] == self.expected(block + n), "block {} is not what it must be", block + n);
        }
    }

    async fn write(&mut self, volume: &Volume, block: u64) {
        let version = self.written.get(&block).copied().unwrap_or(0) + 1;
        volume.write(block * BLOCK, Bytes::from(self.ghost.shape.content(block, version)), false).await.unwrap();
        self.written.insert(block, version);
    }

    async fn trim(&mut self, volume: &Volume, block: u64, blocks: u64) {
        volume.trim(block * BLOCK, blocks * BLOCK, false).await.unwrap();
        self.written.retain(|at, _| !(block..block + blocks).contains(at));
        self.trimmed.insert(block, block + blocks);
    }
}

async fn make(bytes: u64, segment: u64, hollow_every: u64) -> Model {
    let shape = Shape { hollow_every, ..Shape::new(bytes, segment, 99) };
    let ghost = Ghost::new(shape, Arc::new(MemoryStore::new()), &Random::seeded(5)).await;
    ghost.set_round_trip(Duration::from_millis(20));
    Model { ghost, written: HashMap::new(), trimmed: BTreeMap::new() }
}

#[test]
fn every_block_has_one_place_and_segments_have_their_blocks_in_order() {
    for (segments, hollow_every) in [(2, 0), (6, 3), (74, 8), (128, 0)] {
        let shape = Shape { hollow_every, ..Shape::new(segments * (512 << 10), 512 << 10, 7) };
        let mut seen = BTreeSet::new();
        for segment in 0..segments {
            let blocks: Vec<u64> = (0..shape.segment_blocks).map(|rank| shape.block(Place { segment, rank })).collect();
            assert!(blocks.is_sorted_by(|a, b| a < b), "{segments} {segment}: {blocks:?}");
            let places: Vec<Place> = blocks.iter().map(|block| shape.place(*block)).collect();
            assert!(places.iter().enumerate().all(|(rank, place)| *place == Place { segment, rank: rank as u64 }));
            let live = places.iter().filter(|place| shape.is_live(**place)).count() as u64;
            assert_eq!(live, shape.live_blocks(segment));
            seen.extend(blocks);
        }
        assert_eq!(seen.len() as u64, shape.blocks);
        assert_eq!(seen.last(), Some(&(shape.blocks - 1)));
    }
}

#[tokio::test]
async fn a_ghost_lists_what_it_has() {
    let Model { ghost, .. } = make(8 * GIB, 4 << 20, 0).await;
    ghost.set_round_trip(Duration::ZERO);
    let all = list_all(&*ghost, "").await.unwrap();
    assert!(all.is_sorted_by(|a, b| a.key < b.key));
    // The description, the root and the close are real.
    assert_eq!(all.len() as u64, 2048 + ghost.map_objects() + 3);
    let dead: Vec<_> =
        all.iter().filter(|entry| entry.key.as_str().ends_with('7')).map(|entry| entry.key.clone()).collect();
    for key in &dead {
        ghost.get_range(key, 0..8).await.unwrap();
    }
    ghost.delete(&dead).await.unwrap();
    let left = list_all(&*ghost, "").await.unwrap();
    assert_eq!(left.len(), all.len() - dead.len());
    for key in &dead {
        ghost.get_range(key, 0..8).await.unwrap_err();
    }
    let segment = left.iter().find(|entry| entry.key.as_str().contains("segments")).unwrap();
    assert_eq!(ghost.get(&segment.key).await.unwrap().len() as u64, segment.size);
}

/// What a volume goes through; so many checkpoints are waited for.
async fn live(model: &mut Model, options: Options, checkpoints: usize) {
    let ghost = model.ghost.clone();
    let blocks = ghost.shape.blocks;
    let random = Random::seeded(6);
    let volume = open(&ghost, options.clone()).await;
    for _ in 0..20 {
        model.check(&volume, random.below(blocks - 3), 3).await;
    }
    model.check(&volume, 0, 2).await;
    model.check(&volume, blocks - 2, 2).await;
    for _ in 0..checkpoints {
        for _ in 0..300 {
            model.write(&volume, random.below(blocks)).await;
        }
        let before = ghost.counts.checkpoints_put.load(Ordering::Relaxed);
        volume.flush().await.unwrap();
        while ghost.counts.checkpoints_put.load(Ordering::Relaxed) == before {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    for _ in 0..100 {
        model.write(&volume, random.below(blocks)).await;
    }
    model.trim(&volume, blocks / 3, blocks / 64).await;
    model.write(&volume, blocks / 3 + 5).await;
    for at in [0, 3, blocks / 64 - 2] {
        model.check(&volume, blocks / 3 + at, 5).await;
    }
    let written: Vec<u64> = model.written.keys().copied().take(100).collect();
    for &block in &written {
        model.check(&volume, block, 1).await;
    }
    volume.close().await.unwrap();

    let volume = open(&ghost, options).await;
    for block in written.iter().copied().chain((0..30).map(|_| random.below(blocks))) {
        model.check(&volume, block, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ghost_of_some_gib_lives_like_a_volume() {
    live(&mut make(4 * GIB, 8 << 20, 0).await, Options::default(), 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_ghost_of_100_tib_lives_like_a_volume() {
    // Large segments, because the table of segments is made and read as a whole.
    live(&mut make(100 * TIB, 256 << 20, 0).await, Options::default(), 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_ghost_is_collected() {
    let model = make(GIB, 2 << 20, 8).await;
    let ghost = model.ghost.clone();
    let mut options = Options { segment_size: 2 << 20, ..Options::default() };
    options.gc.quiet_percent = 105;
    options.gc.batch = 2 << 20;
    let volume = open(&ghost, options.clone()).await;
    let written = |volume: &Volume| volume.status().gc.segments_written;
    while written(&volume) < 4 || ghost.counts.objects_deleted.load(Ordering::Relaxed) < 4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The first hollow segment and its neighbours, most of whose blocks are where they were.
    let all = |segment: u64| (0..64).map(move |n| Place { segment, rank: n * 8 });
    for place in (3..6).flat_map(all) {
        model.check(&volume, ghost.shape.block(place), 1).await;
    }
    assert_eq!(volume.status().gc.damaged_segments, 0);
    volume.close().await.unwrap();
    let volume = open(&ghost, options).await;
    for place in (3..6).flat_map(all) {
        model.check(&volume, ghost.shape.block(place), 1).await;
    }
}

/// What is live is found in few requests, although no page of the map stays in memory: there are 128 pages of it.
#[tokio::test(start_paused = true)]
async fn collection_on_a_cold_map_takes_few_requests() {
    let model = make(GIB, 8 << 20, 10).await;
    let ghost = model.ghost.clone();
    let mut options = Options { map_memory: 64 << 10, ..Options::default() };
    options.gc.quiet_percent = 105;
    options.gc.quiet_after = Duration::from_millis(10);
    let hollow: Vec<u64> = (0..ghost.shape.segments).filter(|segment| segment % 10 == 5).collect();
    let live: u64 = hollow.iter().map(|segment| ghost.shape.live_blocks(*segment)).sum();
    let volume = open(&ghost, options).await;
    let before = ghost.counts.gets.load(Ordering::Relaxed);
    let moved = || volume.status().since_open.bytes_moved;
    while moved() < live * BLOCK / 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gets = ghost.counts.gets.load(Ordering::Relaxed) - before;
    assert!(gets <= 2 * (moved() >> 20), "{gets} GETs for {} MiB", moved() >> 20);
}

/// Blocks that a client overwrites or gives up after a survey of the map found them, and before it was their turn to be moved, are not
/// moved.
#[tokio::test(start_paused = true)]
async fn what_changes_after_a_survey_is_not_moved() {
    let mut model = make(GIB / 4, 512 << 10, 8).await;
    let ghost = model.ghost.clone();
    let mut options = Options { segment_size: 512 << 10, map_memory: 64 << 10, ..Options::default() };
    options.gc.quiet_percent = 105;
    options.gc.quiet_after = Duration::from_millis(10);
    options.gc.batch = 512 << 10;
    let volume = open(&ghost, options.clone()).await;
    let hollow: Vec<u64> = (0..ghost.shape.segments).filter(|segment| segment % 8 == 4).collect();
    let live_blocks = ghost.shape.live_blocks(4);
    let block = |segment: u64, n: u64| ghost.shape.block(Place { segment, rank: n * 4 });
    let random = Random::seeded(7);
    let moved = || volume.status().since_open.bytes_moved;
    let all = hollow.len() as u64 * live_blocks * BLOCK;
    let mut before = 0;
    // Until nearly all was moved, and what is left was overwritten.
    while moved() < all / 2 {
        while moved() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        before = moved();
        for _ in 0..20 {
            let at = block(hollow[random.below(hollow.len() as u64) as usize], random.below(live_blocks));
            model.write(&volume, at).await;
        }
        let at = block(hollow[random.below(hollow.len() as u64) as usize], random.below(live_blocks));
        model.trim(&volume, at, 1).await;
        volume.flush().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(volume.status().gc.damaged_segments, 0);
    let changed: Vec<u64> = model.written.keys().chain(model.trimmed.keys()).copied().collect();
    let others: Vec<u64> = hollow.iter().flat_map(|segment| [block(*segment, 0), block(*segment, 17)]).collect();
    for at in changed.iter().chain(&others) {
        model.check(&volume, *at, 1).await;
    }
    volume.close().await.unwrap();
    let volume = open(&ghost, options).await;
    for at in changed.iter().chain(&others) {
        model.check(&volume, *at, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_a_ghost_can_be_given_up() {
    let mut model = make(4 * GIB, 8 << 20, 0).await;
    let ghost = model.ghost.clone();
    let volume = open(&ghost, Options::default()).await;
    model.trim(&volume, 0, ghost.shape.blocks).await;
    model.check(&volume, 70, 2).await;
    volume.flush().await.unwrap();
    // Nothing of what was made up is left.
    while ghost.counts.objects_deleted.load(Ordering::Relaxed) < ghost.shape.segments + ghost.map_objects() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    volume.close().await.unwrap();
    let volume = open(&ghost, Options::default()).await;
    model.check(&volume, ghost.shape.blocks - 9, 9).await;
    assert_eq!(volume.status().mapped_bytes, 0);
}

/// The checkpoint objects of an old volume are thousands, and a page of a listing has a thousand: they are listed once to find the newest, and from
/// there on to see that there is no newer one.
#[tokio::test(start_paused = true)]
async fn an_old_volume_is_listed_once() {
    let model = make(100 * TIB, 64 << 20, 0).await;
    let volume = open(&model.ghost, Options::default()).await;
    let pages = model.ghost.map_objects().div_ceil(1000);
    assert!(pages > 10, "{pages}");
    // Its description, and whether it was described anew or has a newer checkpoint meanwhile.
    assert_eq!(model.ghost.counts.lists.load(Ordering::Relaxed), pages + 3);
    volume.close().await.unwrap();
}

/// A clone of a dense volume of 1 TiB at 20 ms for each request is there within half a second, and its first reads take as long as those of its parent. Virtual
/// time counts round trips, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_clone_of_a_tebibyte_is_there_at_once() {
    let model = make(TIB, 8 << 20, 0).await;
    let parent = open(&model.ghost, Options::default()).await;
    let near = (Arc::new(BlockCache::in_memory(0)), Workers::Inline);
    let (random, clock, secrets) = (Random::seeded(6), Clock::System, Secrets::default());
    let store: Arc<dyn Store> = model.ghost.clone();
    let options = Options::default();
    // The second one: the description of the parent says that there may be clones.
    for n in 0..2 {
        let name = VolumeName::new(format!("clone{n}")).unwrap();
        let begun = tokio::time::Instant::now();
        let source =
            Source::of(store.clone(), &parent.meta().name, &options, Some(near.clone()), &secrets).await.unwrap();
        let clone = clones::plan(&*store, &random, &name).await.unwrap();
        let shown = parent.register_clone(None, 1, clone.clone()).await.unwrap();
        let create = CreateOptions { size: TIB, ..CreateOptions::default() };
        let wanted = Wanted { name: name.clone(), options: create };
        let at = (&clone, shown.seq);
        clones::make(&source, &random, &clock, wanted, at).await.unwrap();
        assert!(begun.elapsed() <= Duration::from_millis(500), "clone {n} took {:?}", begun.elapsed());
    }
    let clone = open_named(&model.ghost, "clone1", Options::default()).await;
    let opened = model.ghost.counts.gets.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Pages of the index of its parent, once.
    let asked = model.ghost.counts.gets.load(Ordering::Relaxed) - opened;
    assert!(asked <= 128, "{asked} GETs after the opening");
    for block in [77 << 20, 11 << 20, 33 << 20] {
        let begun = tokio::time::Instant::now();
        let read = clone.read(block * BLOCK, BLOCK as u32).await.unwrap().concat();
        assert!(read == model.expected(block));
        // A leaf of the parent's map, then at once the frame and what opens its segment.
        assert!(begun.elapsed() <= Duration::from_millis(40), "{:?}", begun.elapsed());
    }
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}

/// A cold read takes two round trips, a leaf and a frame, once the pages that find leaves and open segments have come; and they are not asked for before
/// somebody reads.
#[tokio::test(start_paused = true)]
async fn a_cold_read_takes_two_round_trips() {
    let model = make(TIB, 8 << 20, 0).await;
    let volume = open(&model.ghost, Options::default()).await;
    let asked = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &model.ghost.counts;
    // Description, root, the slots after it, the fence, and once more whether anything moved.
    assert_eq!((asked(&counts.lists), asked(&counts.gets), asked(&counts.puts)), (4, 7, 1), "to open it");
    // The checkpoint after an opening reads some pages.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = asked(&counts.gets);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(asked(&counts.gets), before, "nobody reads");
    let random = Random::seeded(7);
    for n in 0..60 {
        let block = random.below(model.ghost.shape.blocks);
        let begun = tokio::time::Instant::now();
        let read = volume.read(block * BLOCK, BLOCK as u32).await.unwrap().concat();
        assert!(read == model.expected(block));
        let trips = if n == 0 { 3 } else { 2 };
        assert!(begun.elapsed() <= Duration::from_millis(20 * trips), "read {n}: {:?}", begun.elapsed());
        if n == 0 {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }
    volume.close().await.unwrap();
}

/// Nothing is believed of what was fetched before it was known what opens it: a frame that came with a flipped bit is read again.
#[tokio::test(start_paused = true)]
async fn a_frame_that_was_fetched_beside_its_salt_is_proven() {
    let model = make(TIB, 8 << 20, 0).await;
    let faulty = FaultyStore::new(model.ghost.clone(), FaultOptions::default(), Random::seeded(8));
    let faults = faulty.faults();
    // No page stays in memory, so salts are looked for each time.
    let options = Options { map_memory: 0, ..Options::default() };
    let volume = open_in(Arc::new(faulty), world::NAME, options).await;
    faults.set_options(FaultOptions { corrupt: 150, ..FaultOptions::default() });
    let random = Random::seeded(9);
    let mut wrong = 0;
    for _ in 0..100 {
        let block = random.below(model.ghost.shape.blocks);
        match volume.read(block * BLOCK, BLOCK as u32).await {
            Ok(read) => assert!(read.concat() == model.expected(block)),
            Err(_) => wrong += 1,
        }
    }
    assert!(wrong < 10, "{wrong} reads of 100 failed, although each is tried three times");
    faults.set_options(FaultOptions::default());
    volume.close().await.unwrap();
}
