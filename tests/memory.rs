//! Memory is bounded by configuration (rule R6), whatever clients and store do: many volumes, each with many writers of large
//! requests that never pause, over a store that does not answer, and then over one that does. An allocator counts.
//! The account that this proves is `docs/memory.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::local::LocalDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::file::FileStore;
use ashlar::store::{Key, ObjectEntry, Store};
use ashlar::volume::budget::ROUNDS;
use ashlar::volume::{
    self, Budget, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName, Witness,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

/// The system's allocator, and how many bytes it has given out.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn gave(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        gave(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        gave(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const VOLUMES: usize = 6;
const WRITERS: usize = 8;
/// Bytes of one volume.
const SIZE: u64 = 16 * MIB;
/// The largest request.
const REQUEST: u64 = MIB / 2;

/// A directory as a store; its PUTs of large objects do not end while it hangs.
#[derive(Debug)]
struct Hanging {
    objects: FileStore,
    hangs: AtomicBool,
    goes_on: Notify,
}

#[async_trait]
impl Store for Hanging {
    fn url(&self) -> String {
        self.objects.url()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        loop {
            let goes_on = self.goes_on.notified();
            if !self.hangs.load(Ordering::SeqCst) {
                return self.objects.put(key, body).await;
            }
            goes_on.await;
        }
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.objects.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&Key>) -> ashlar::store::Result<Vec<ObjectEntry>> {
        self.objects.list(prefix, after).await
    }
    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        self.objects.delete(keys).await
    }
}

/// All bounds small; those of a single volume, times the volumes, are far more than those of all.
fn options() -> Options {
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

/// What `docs/memory.md` allows for these options.
fn budget(options: &Options) -> u64 {
    let requests = (VOLUMES * WRITERS) as u64 * REQUEST;
    // Of a round: the live bytes, and four segments of up to three times `segment_size` that are being read.
    let rounds = ROUNDS as u64 * (options.gc.batch + 4 * 3 * options.segment_size);
    // The directory's own buffers, in which a body is laid out for the disk.
    let bodies = options.total_upload_bytes;
    let fixed = 8 * MIB;
    requests
        + options.total_dirty_bytes
        + options.total_upload_bytes
        + bodies
        + CACHE
        + options.total_map_memory
        + rounds
        + fixed
}

async fn open(
    store: &Arc<Hanging>,
    folder: &std::path::Path,
    cache: &Arc<BlockCache>,
    budget: &Budget,
    n: usize,
) -> Arc<Volume> {
    let random = Random::seeded(n as u64);
    let name = VolumeName::new(format!("v{n}")).unwrap();
    let created = CreateOptions { size: SIZE, ..CreateOptions::default() };
    volume::create(&**store, &random, &Clock::System, &name, created).await.unwrap();
    let disk = LocalDisk::new(folder.join(format!("journal{n}")), Workers::Threads);
    let outside = Outside {
        store: store.clone(),
        disk: Arc::new(disk) as Arc<dyn Disk>,
        cache: cache.clone(),
        budget: budget.clone(),
        clock: Clock::System,
        random,
        workers: Workers::Threads,
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "one".into() },
        secrets: Secrets::default(),
        witness: Witness::default(),
    };
    Volume::open(outside, &name, options(), journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// Requests of all sizes, at random places, until so many bytes are written.
async fn write_much(volume: Arc<Volume>, random: Random, bytes: u64) {
    let mut written = 0;
    while written < bytes {
        let len = BLOCK << random.below(8); // up to REQUEST
        let mut data = vec![0; len as usize];
        blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut data);
        let at = random.below((SIZE - len) / BLOCK) * BLOCK;
        volume.write(at, data.into(), false).await.unwrap();
        written += len;
    }
}

// Time is virtual: it passes only when everybody waits, also for the disk.
#[tokio::test(start_paused = true)]
async fn many_volumes_under_load_stay_within_the_budget_whether_the_store_answers_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let objects = FileStore::open(folder.path().join("store"), Workers::Threads, Random::seeded(1)).await.unwrap();
    let store = Arc::new(Hanging { objects, hangs: AtomicBool::new(false), goes_on: Notify::new() });
    let (cache, shared) = (Arc::new(BlockCache::in_memory(CACHE)), Budget::new(&options()));
    let mut volumes = Vec::new();
    for n in 0..VOLUMES {
        volumes.push(open(&store, folder.path(), &cache, &shared, n).await);
    }
    let before = NOW.load(Ordering::Relaxed);
    let most = || (MOST.load(Ordering::Relaxed).saturating_sub(before)) as u64;

    store.hangs.store(true, Ordering::SeqCst);
    let writers: Vec<_> = (0..VOLUMES * WRITERS)
        .map(|n| tokio::spawn(write_much(volumes[n % VOLUMES].clone(), Random::seeded(100 + n as u64), 10 * MIB)))
        .collect();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (hanging, allowed) = (most(), budget(&options()));
    let dirty: u64 = volumes.iter().map(|volume| volume.status().dirty_bytes).sum();
    println!("{} MiB while the store hangs, {} MiB of it dirty", hanging / MIB, dirty / MIB);
    assert!(writers.iter().all(|writer| !writer.is_finished()), "everybody waits");
    assert!(
        dirty > options().total_dirty_bytes - REQUEST - MIB && dirty <= options().total_dirty_bytes,
        "{dirty} bytes are dirty"
    );
    assert!(hanging <= allowed, "{hanging} bytes where {allowed} are allowed");

    store.hangs.store(false, Ordering::SeqCst);
    store.goes_on.notify_waiters();
    for writer in writers {
        writer.await.unwrap();
    }
    for volume in &volumes {
        volume.flush().await.unwrap();
    }
    let collected: u64 = volumes.iter().map(|volume| volume.status().gc.segments_written).sum();
    println!("{} MiB in all, of {} MiB; {collected} segments of moved data", most() / MIB, allowed / MIB);
    assert!(collected > 0 && most() <= allowed, "{} bytes where {allowed} are allowed", most());

    // Nothing stays but what is kept on purpose, and no volume keeps a part of what all share.
    for volume in volumes {
        volume.close().await.unwrap();
    }
    let volume = open(&store, folder.path(), &cache, &shared, VOLUMES).await;
    write_much(volume, Random::seeded(1), 2 * options().dirty_bytes).await;
}
