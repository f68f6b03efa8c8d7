//! A volume goes on and stops well while everything is scarce: permits, pages of the map, slots, time. Time is virtual, so
//! what hangs for ever hangs for a day of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::outside::{Clock, Random};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::limit::{LimitOptions, LimitStore};
use ashlar::store::memory::MemoryStore;
use ashlar::units::BlockSize;
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeName};
use bytes::Bytes;

use support::far::{Far, Fault};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Bytes of a volume of blocks of 512 bytes that one page of the map describes.
const PAGE: u64 = 16384 * 512;

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).unwrap()
}

async fn create(store: &dyn Store, volume: &str, size: u64, block_size: u64) {
    let block_size = BlockSize::new(block_size).unwrap();
    let options = CreateOptions { size, block_size, ..CreateOptions::default() };
    volume::create(store, &Random::seeded(1), &Clock::System, &name(volume), options).await.unwrap();
}

async fn open(store: Arc<dyn Store>, volume: &str, disk: &CrashDisk, options: Options) -> Arc<Volume> {
    let budget = volume::Budget::new(&options);
    open_within(budget, store, volume, disk, options).await
}

async fn open_within(
    budget: volume::Budget,
    store: Arc<dyn Store>,
    volume: &str,
    disk: &CrashDisk,
    options: Options,
) -> Arc<Volume> {
    let outside = Outside { budget, ..support::outside::plain(store, Arc::new(disk.clone()), Random::seeded(9)) };
    Volume::open(outside, &name(volume), options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// Bytes that do not compress.
fn noise(random: &Random, bytes: u64) -> Bytes {
    let mut data = vec![0; bytes as usize];
    blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut data);
    data.into()
}

/// One life: a volume is overwritten by clients that never pause, more than there is space for, and closed in the middle of
/// it. Returns the changes that were acknowledged, and those that are there when it is opened again.
async fn stopped_under_load(seed: u64) -> (u64, u64) {
    const SCALE: u64 = 16;
    const SIZE: u64 = (1 << 30) / SCALE;
    const WRITE: u64 = 512 << 10;
    let mut options = Options::default();
    options.segment_size /= SCALE;
    options.dirty_bytes /= SCALE;
    options.checkpoint_bytes /= SCALE;
    options.gc.batch /= SCALE;
    let store = Arc::new(Far::new(200_000_000 / SCALE, Fault::SlowDeletes));
    let (random, disk) = (Random::seeded(seed), CrashDisk::new(seed));
    create(&*store, "v", SIZE, 4096).await;
    let volume = open(store.clone(), "v", &disk, options.clone()).await;
    for at in (0..SIZE).step_by(WRITE as usize) {
        volume.write(at, noise(&random, WRITE), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    let acknowledged = Arc::new(AtomicU64::new(volume.status().accepted));
    let writers = (0..32).map(|_| {
        let (volume, random, acknowledged) = (volume.clone(), random.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let block = |random: &Random| random.below((SIZE - WRITE) / 4096) * 4096;
            while volume.write(block(&random), noise(&random, WRITE), false).await.is_ok() {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::time::sleep(Duration::from_millis(3000 + seed * 777 % 20_000)).await;
    volume.close().await.unwrap();
    futures::future::join_all(writers).await;
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    drop(volume);
    let volume = open(store, "v", &disk.kill(), options).await;
    (acknowledged, volume.status().accepted)
}

/// Batches waited for slots while space was short and deletions were under way; the stop looked at the buffer only, wrote
/// its close entry, and discarded the journal that had them.
#[tokio::test(start_paused = true)]
async fn a_clean_stop_under_load_loses_nothing() {
    // With the fault about one stop in ten lost something.
    for seed in 0..20 {
        let (acknowledged, found) = stopped_under_load(seed).await;
        assert!(found >= acknowledged, "seed {seed}: {acknowledged} changes were acknowledged, {found} are there");
    }
}

/// A volume whose map has many pages, none of them in memory, over a store 20 ms away.
async fn cold(backend: &Arc<MemoryStore>, store: Arc<dyn Store>, volume: &str, options: &Options) -> Arc<Volume> {
    create(&**backend, volume, 400 * PAGE, 512).await;
    let disk = CrashDisk::new(7);
    let before = open(backend.clone(), volume, &disk, options.clone()).await;
    for page in 0..300 {
        before.write(page * PAGE, Bytes::from(vec![page as u8 | 1; 512]), false).await.unwrap();
    }
    before.close().await.unwrap();
    open(store, volume, &disk, options.clone()).await
}

/// One GET for each page, as it is when pages are long, and checkpoints that begin at once.
fn scarce(read_parallel: u32) -> Options {
    Options {
        read_parallel,
        read_max: 1,
        checkpoint_interval: Duration::from_millis(10),
        writeback_delay: Duration::from_millis(5),
        ..Options::default()
    }
}

/// Drops pages that the next checkpoint has to read, and goes on writing into others that are not in memory.
async fn trim_and_write(volume: &Volume) {
    volume.trim(0, 200 * PAGE, true).await.unwrap();
    for page in 250..300 {
        volume.write(page * PAGE + 1024, Bytes::from(vec![7; 512]), true).await.unwrap();
    }
}

fn far(backend: &Arc<MemoryStore>) -> Arc<dyn Store> {
    let faults = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
    Arc::new(FaultyStore::new(backend.clone(), faults, Random::seeded(3)))
}

/// A checkpoint that waited for pages held all permits, and the commit that waited for one kept it from going on.
#[tokio::test(start_paused = true)]
async fn commits_and_checkpoints_that_both_need_pages_do_not_wait_for_each_other() {
    for read_parallel in [1, 4, 32] {
        let backend = Arc::new(MemoryStore::default());
        let volume = cold(&backend, far(&backend), "v", &scarce(read_parallel)).await;
        let work = tokio::time::timeout(DAY, trim_and_write(&volume)).await;
        assert!(work.is_ok(), "hangs with {read_parallel} permits");
        tokio::time::timeout(DAY, volume.close()).await.expect("the stop hangs").unwrap();
    }
}

/// The same by way of collection: it reads the pages of what is live in its victims, more of them than there are permits, and a
/// client's commits need pages as well.
#[tokio::test(start_paused = true)]
async fn commits_and_collection_that_both_need_pages_do_not_wait_for_each_other() {
    for (seed, read_parallel) in [(1, 1), (2, 4), (3, 32), (4, 32)] {
        let backend = Arc::new(MemoryStore::default());
        create(&*backend, "v", 400 * PAGE, 512).await;
        let mut options = Options { read_parallel, read_max: 1, ..Options::default() };
        options.gc.garbage_min = 1;
        let mut lazy = options.clone();
        (lazy.gc.quiet_percent, lazy.gc.busy_percent) = (90_000, 90_001);
        (lazy.gc.limit_percent, lazy.gc.hold_percent) = (90_002, 90_003);
        let (random, disk) = (Random::seeded(seed), CrashDisk::new(7));
        let volume = open(backend.clone(), "v", &disk, lazy).await;
        // One segment with blocks in 300 pages, of which every second is overwritten, twice.
        for round in 0..3 {
            for page in (0..300).filter(|page| round == 0 || page % 2 == 0) {
                volume.write(page * PAGE, noise(&random, 512), false).await.unwrap();
            }
            volume.flush().await.unwrap();
        }
        volume.close().await.unwrap();
        let volume = open(far(&backend), "v", &disk, options).await;
        let work = async {
            for i in 0..400 {
                let page = 299 - i % 40;
                volume.write(page * PAGE + 1024 + i * 512, noise(&random, 512), true).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(DAY, work).await.is_ok(), "hangs with {read_parallel} permits");
        let moved = volume.status().since_open.bytes_moved;
        assert!(moved > 0, "nothing was collected beside the client");
        tokio::time::timeout(DAY, volume.close()).await.expect("the stop hangs").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn volumes_that_share_one_permit_of_the_server_do_not_wait_for_each_other() {
    let backend = Arc::new(MemoryStore::default());
    let limit = LimitOptions { reads: 1, writes: 1, deletes: 1, background: 1 };
    let store: Arc<dyn Store> = Arc::new(LimitStore::new(far(&backend), limit));
    let volumes = [
        cold(&backend, store.clone(), "a", &scarce(1)).await,
        cold(&backend, store.clone(), "b", &scarce(4)).await,
        cold(&backend, store.clone(), "c", &scarce(32)).await,
    ];
    let work = futures::future::join_all(volumes.iter().map(|volume| trim_and_write(volume)));
    assert!(tokio::time::timeout(DAY, work).await.is_ok(), "hangs");
    for volume in volumes {
        tokio::time::timeout(DAY, volume.close()).await.expect("the stop hangs").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_lets_go_of_what_it_has_beyond_its_part_when_it_is_told_to_and_may_have_more_again() {
    let backend = Arc::new(MemoryStore::default());
    create(&*backend, "v", 64 * PAGE, 512).await;
    let (disk, options) = (CrashDisk::new(7), Options::default());
    let volume = open(backend.clone(), "v", &disk, options.clone()).await;
    let places = || (0..8192).map(|n| n % 64 * PAGE + n / 64 * 1024);
    for place in places() {
        volume.write(place, noise(&Random::seeded(place), 512), false).await.unwrap();
    }
    volume.close().await.unwrap();
    drop(volume);
    let budget = volume::Budget::new(&options);
    let volume = open_within(budget.clone(), backend, "v", &disk.kill(), options.clone()).await;
    let read = async || {
        for place in places().step_by(61) {
            let found = volume.read(place, 512).await.unwrap().concat();
            assert_eq!(found, noise(&Random::seeded(place), 512));
        }
        volume.map_memory()
    };
    let all = read().await;
    let part = all / 4;
    budget.set_map_memory(part);
    assert_eq!(volume.map_memory(), all, "nobody asked for anything");
    volume.let_map_go();
    assert!(volume.map_memory() <= part, "{} of {all} bytes", volume.map_memory());
    let fewer = read().await;
    assert!(fewer <= part, "{fewer} of {all} bytes");
    budget.set_map_memory(options.total_map_memory);
    let again = read().await;
    assert!(again > 2 * part, "{again} of {all} bytes");
    volume.close().await.unwrap();
}

/// Random overwrites of a volume whose map is many times what may be in memory, of data of which little is left in the store:
/// collection ends, and costs requests in proportion to what it moves.
#[tokio::test(start_paused = true)]
async fn collection_on_a_map_that_does_not_fit_ends() {
    for compressible in [true, false] {
        let backend = Arc::new(MemoryStore::default());
        create(&*backend, "v", 64 * PAGE, 512).await;
        let mut options = Options { map_memory: 64 << 10, segment_size: 256 << 10, ..Options::default() };
        options.gc.batch = 1 << 20;
        options.gc.merge_count = 8;
        options.checkpoint_bytes = 8 << 20;
        options.total_map_memory = options.map_memory;
        let (random, disk) = (Random::seeded(5), CrashDisk::new(7));
        let volume = open(backend.clone(), "v", &disk, options.clone()).await;
        for _ in 0..20_000 {
            let block = random.below(64) * PAGE + random.below(256) * 512;
            let data = if compressible { Bytes::from(vec![7; 512]) } else { noise(&random, 512) };
            volume.write(block, data, false).await.unwrap();
        }
        volume.close().await.unwrap();
        drop(volume);
        let volume = open(backend.clone(), "v", &disk.kill(), options).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = volume.status();
        let requests = |account: volume::Account| account.puts + account.gets + account.lists + account.deletes;
        let after_a_minute = requests(status.since_open);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(requests(volume.status().since_open), after_a_minute, "an idle volume makes no request");
        let account = status.since_open;
        let moved_mib = account.bytes_moved as f64 / 1_048_576.0;
        println!("compressible: {compressible}; {} GETs for {moved_mib:.2} MiB moved", account.gets);
        // Of the frames that are moved, and of each page of the map once for a round. (It was a GET for every few blocks.)
        assert!(moved_mib > 0.5 && (account.gets as f64) < 60.0 * moved_mib, "{account:?}");
        let stored = status.live_bytes * 125 / 100 + (256 << 10);
        assert!(status.stored_bytes <= stored, "{} stored, {} live", status.stored_bytes, status.live_bytes);
        assert!(status.map_memory <= 64 << 10, "{} bytes of map", status.map_memory);
        volume.close().await.unwrap();
    }
}

/// Random overwrites of a volume whose map is dense and many times what may be in memory: between commits it keeps to that, and
/// what checkpoints put and commits get is in proportion to what is written. Without collection, so that only the map is seen. The
/// figures of `docs/memory.md` are this test's.
#[tokio::test(start_paused = true)]
async fn a_dense_map_that_does_not_fit_keeps_to_its_memory_and_costs_little_to_put() {
    const PAGES: u64 = 300;
    const WRITES: u64 = 4000;
    let backend = Arc::new(MemoryStore::default());
    create(&*backend, "v", PAGES * PAGE, 512).await;
    let mut options = Options { map_memory: 150 << 10, segment_size: 64 << 10, ..Options::default() };
    (options.gc.quiet_percent, options.gc.busy_percent) = (90_000, 90_001);
    (options.gc.limit_percent, options.gc.hold_percent) = (90_002, 90_003);
    options.gc.merge_count = 1_000_000;
    let (random, disk) = (Random::seeded(4), CrashDisk::new(1));
    let fill = Options { map_memory: 1 << 30, segment_size: 4 << 20, ..options.clone() };
    let volume = open(backend.clone(), "v", &disk, fill).await;
    let block = |random: &Random| (random.below(PAGES) * PAGE) + random.below(512) * 2 * 512;
    for at in (0..512).flat_map(|extent| (0..PAGES).map(move |page| page * PAGE + extent * 2 * 512)) {
        volume.write(at, Bytes::from_static(&[7; 512]), false).await.unwrap();
    }
    volume.close().await.unwrap();
    drop(volume);
    let volume = open(backend, "v", &disk.kill(), options).await;
    let mut most = 0;
    for _ in 0..WRITES {
        volume.write(block(&random), noise(&random, 512), false).await.unwrap();
        most = most.max(volume.status().map_memory);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let cost = volume.status().since_open;
    let for_each = |bytes: u64| bytes as f64 / (WRITES * 512) as f64;
    let (put, got) = (for_each(cost.bytes_put), for_each(cost.bytes_got));
    println!("at most {most} bytes of map; for each byte written {put:.2} were put and {got:.2} got; {cost:?}");
    assert!(most <= 150 << 10, "{most} bytes of map where 153600 may be");
    assert!(put < 2.0 && got < 4.0, "for each byte written {put:.2} were put and {got:.2} got");
    volume.close().await.unwrap();
}
