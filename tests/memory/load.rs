//! Many volumes, each with many writers of large requests that never pause, over a store that does not answer, and then over
//! one that does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::local::LocalDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::file::FileStore;
use ashlar::volume::{
    self, Budget, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName, Witness,
};

use crate::counting::Count;
use crate::hanging::Hanging;

pub const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const VOLUMES: usize = 6;
const WRITERS: usize = 8;
/// Bytes of one volume.
const SIZE: u64 = 16 * MIB;
/// The largest request.
const REQUEST: u64 = MIB / 2;

/// All bounds small; those of a single volume, times the volumes, are far more than those of all.
pub fn options() -> Options {
    let mut options = Options {
        segment_size: MIB,
        dirty_bytes: 16 * MIB,
        total_dirty_bytes: 24 * MIB,
        total_upload_bytes: 8 * MIB,
        map_memory: MIB,
        total_map_memory: 2 * MIB,
        ..Options::default()
    };
    options.gc.batch = 4 * MIB;
    options
}

const CACHE: u64 = 8 * MIB;
/// What its frames keep beside themselves, of memory that they shared with others which have gone.
const CACHE_BESIDE: u64 = CACHE / 2;

/// What the directory keeps for its next reads and writes.
const IDLE_BUFFERS: u64 = 4 * MIB;

/// Tables, tasks, the journals' heads.
const FIXED: u64 = 4 * MIB;

/// Payloads of requests that are not answered, and the most that there were.
#[derive(Default)]
pub struct InFlight {
    now: AtomicU64,
    most: AtomicU64,
}

impl InFlight {
    fn begin(&self, bytes: u64) {
        self.most.fetch_max(self.now.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    /// Those that there are now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn end(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// The most bytes that there were.
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }
}

/// What is allowed while nothing reaches the store: payloads, what is dirty, what is encoded.
fn budget_hanging(options: &Options, requests: u64) -> u64 {
    requests + options.total_dirty_bytes + options.total_upload_bytes + FIXED
}

/// What `docs/memory.md` allows for these options.
pub fn budget(options: &Options, requests: u64) -> u64 {
    // Of a round: the live data; objects that are read whole, into buffers that may be a quarter longer; and four others.
    let rounds =
        u64::from(options.gc.rounds) * (options.gc.batch + 2 * options.gc.batch * 5 / 4 + 4 * options.segment_size);
    // The directory's own buffers, in which a body is laid out for the disk, and those that wait for their next use.
    let bodies = options.total_upload_bytes + IDLE_BUFFERS;
    requests
        + options.total_dirty_bytes
        + options.total_upload_bytes
        + bodies
        + CACHE
        + options.total_map_memory
        + rounds
        + FIXED
}

async fn open(
    store: &Arc<Hanging>,
    folder: &std::path::Path,
    cache: &Arc<BlockCache>,
    budget: &Budget,
    n: usize,
) -> Arc<Volume> {
    let disk = LocalDisk::new(folder.join(format!("journal{n}")), Workers::Threads);
    open_on(Arc::new(disk), store, cache, budget, n).await
}

/// Makes volume `n` and opens it, with its journal on that disk.
pub async fn open_on(
    disk: Arc<dyn Disk>,
    store: &Arc<Hanging>,
    cache: &Arc<BlockCache>,
    budget: &Budget,
    n: usize,
) -> Arc<Volume> {
    open_sized(disk, Place { store, cache, budget, options: &options() }, n, SIZE).await
}

/// What volumes have in common.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub store: &'a Arc<Hanging>,
    pub cache: &'a Arc<BlockCache>,
    pub budget: &'a Budget,
    pub options: &'a Options,
}

/// The same with a volume of so many bytes.
pub async fn open_sized(disk: Arc<dyn Disk>, place: Place<'_>, n: usize, size: u64) -> Arc<Volume> {
    let Place { store, cache, budget, options } = place;
    let random = Random::seeded(n as u64);
    let name = VolumeName::new(format!("v{n}")).unwrap();
    let created = CreateOptions { size, ..CreateOptions::default() };
    volume::create(&**store, &random, &Clock::System, &name, created).await.unwrap();
    let outside = Outside {
        store: store.clone(),
        disk,
        cache: cache.clone(),
        budget: budget.clone(),
        clock: Clock::System,
        random,
        workers: Workers::Threads,
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "one".into() },
        secrets: Secrets::default(),
        witness: Witness::default(),
    };
    Volume::open(outside, &name, options.clone(), journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// What is written.
#[derive(Clone, Copy)]
pub enum Data {
    Noise,
    /// A hundredth of it is stored.
    Pattern,
}

/// Requests of all sizes, at random places, until so many bytes are written.
pub async fn write_much(volume: Arc<Volume>, random: Random, bytes: u64, data: Data, in_flight: Arc<InFlight>) {
    write_much_of(SIZE, volume, random, bytes, data, in_flight).await;
}

/// The same into the first `size` bytes.
pub async fn write_much_of(
    size: u64,
    volume: Arc<Volume>,
    random: Random,
    bytes: u64,
    data: Data,
    in_flight: Arc<InFlight>,
) {
    let mut written = 0;
    while written < bytes {
        let len = BLOCK << random.below(8); // up to REQUEST
        in_flight.begin(len);
        let mut payload = vec![0xd5; len as usize];
        if let Data::Noise = data {
            blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut payload);
        }
        let at = random.below((size - len) / BLOCK) * BLOCK;
        volume.write(at, payload.into(), false).await.unwrap();
        in_flight.end(len);
        written += len;
    }
}

/// With so many threads for whatever takes long: compression, the store's files, the journal's.
fn run(threads: usize, data: Data) {
    // Time is virtual: it passes only when everybody waits, also for the disk.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).max_blocking_threads(threads);
    runtime.build().unwrap().block_on(many_volumes_under_load(data));
}

#[test]
fn many_volumes_under_load_stay_within_the_budget_whether_the_store_answers_or_not() {
    run(512, Data::Noise);
}

#[test]
fn they_do_with_data_that_compresses_well() {
    run(512, Data::Pattern);
}

#[test]
fn they_do_when_one_thread_does_all_that_takes_long() {
    run(1, Data::Noise);
}

async fn many_volumes_under_load(data: Data) {
    let mut count = Count::begin();
    let folder = tempfile::tempdir().unwrap();
    let objects = FileStore::open(folder.path().join("store"), Workers::Threads, Random::seeded(1)).await.unwrap();
    let objects = objects.with_idle_buffers(IDLE_BUFFERS);
    let store = Hanging::new(Arc::new(objects), "");
    let (cache, shared) = (Arc::new(BlockCache::in_memory(CACHE)), Budget::new(&options()));
    let mut volumes = Vec::new();
    for n in 0..VOLUMES {
        volumes.push(open(&store, folder.path(), &cache, &shared, n).await);
    }
    count.again();

    store.hang();
    let in_flight = Arc::new(InFlight::default());
    let writer = |n: usize| {
        let volume = volumes[n % VOLUMES].clone();
        tokio::spawn(write_much(volume, Random::seeded(100 + n as u64), 10 * MIB, data, in_flight.clone()))
    };
    let writers: Vec<_> = (0..VOLUMES * WRITERS).map(writer).collect();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let requests = || in_flight.most();
    let (hanging, allowed) = (count.most(), budget_hanging(&options(), requests()));
    let dirty: u64 = volumes.iter().map(|volume| volume.status().dirty_bytes).sum();
    println!("{} MiB of {} while the store hangs, {} MiB of it dirty", hanging / MIB, allowed / MIB, dirty / MIB);
    assert!(writers.iter().all(|writer| !writer.is_finished()), "everybody waits");
    assert!(
        dirty > options().total_dirty_bytes - REQUEST - MIB && dirty <= options().total_dirty_bytes,
        "{dirty} bytes are dirty"
    );
    assert!(hanging <= allowed, "{hanging} bytes where {allowed} are allowed");

    store.go_on();
    for writer in writers {
        writer.await.unwrap();
    }
    for volume in &volumes {
        volume.flush().await.unwrap();
    }
    let collected: u64 = volumes.iter().map(|volume| volume.status().gc.segments_written).sum();
    let allowed = budget(&options(), requests());
    println!("{} MiB in all, of {} MiB; {collected} segments of moved data", count.most() / MIB, allowed / MIB);
    assert!(collected > 0 && count.most() <= allowed, "{} bytes where {allowed} are allowed", count.most());

    // Nothing stays but what is kept on purpose, and no volume keeps a part of what all share.
    for volume in volumes {
        volume.close().await.unwrap();
    }
    let kept = CACHE + CACHE_BESIDE + IDLE_BUFFERS + FIXED;
    // Tasks that were ended let go of what they have when the runtime gets to them, which takes a while on a busy machine.
    for _ in 0..600 {
        if count.now() <= kept {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(count.now() <= kept, "{} bytes stay where {kept} are kept on purpose", count.now());
    let volume = open(&store, folder.path(), &cache, &shared, VOLUMES).await;
    write_much(volume, Random::seeded(1), 2 * options().dirty_bytes, data, in_flight).await;
}
