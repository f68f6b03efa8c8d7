//! Volumes whose journals lie on a disk that is far slower than the store, under writers that never pause.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::disk::local::LocalDisk;
use ashlar::disk::{Disk, DiskFile};
use ashlar::outside::{Random, Workers};
use ashlar::store::file::FileStore;
use ashlar::volume::Budget;
use async_trait::async_trait;
use bytes::Bytes;

use crate::counting::Count;
use crate::hanging::Hanging;
use crate::load::{Data, InFlight, MIB, budget, open_on, options, write_much};

const VOLUMES: usize = 2;
const WRITERS: usize = 64;
/// What each writes: together ten times what all may hold.
const BYTES: u64 = 2 * MIB;
/// Bytes that the disk takes in a second.
const RATE: u64 = MIB;

/// A disk that takes its time for what is written and synced.
#[derive(Debug)]
struct SlowDisk(LocalDisk);

#[derive(Debug)]
struct SlowFile(Arc<dyn DiskFile>);

#[async_trait]
impl Disk for SlowDisk {
    fn path(&self) -> String {
        self.0.path()
    }
    fn host_life(&self) -> Option<String> {
        self.0.host_life()
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir).await
    }
    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.create(name).await?)))
    }
    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.open(name).await?)))
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to).await
    }
}

async fn take_time(parts: &[Bytes]) {
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    tokio::time::sleep(Duration::from_secs(bytes as u64) / RATE as u32).await;
}

#[async_trait]
impl DiskFile for SlowFile {
    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.read_at(offset, len).await
    }
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        take_time(&parts).await;
        self.0.write_at(offset, parts).await
    }
    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        take_time(&parts).await;
        self.0.write_durably_at(offset, parts).await
    }
    async fn sync(&self) -> io::Result<()> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.sync().await
    }
}

/// What is committed is dirty no longer; but its record may still wait for the disk, and is memory until it is written. The clients
/// wait for that, and get no error.
#[test]
fn a_journal_on_a_slow_disk_is_waited_for_and_not_kept_in_memory() {
    // Time is virtual: it passes only when everybody waits.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(under_load());
}

async fn under_load() {
    let mut count = Count::begin();
    let folder = tempfile::tempdir().unwrap();
    let objects = FileStore::open(folder.path().join("store"), Workers::Threads, Random::seeded(1)).await.unwrap();
    let store = Hanging::new(Arc::new(objects.with_idle_buffers(0)), "");
    let (cache, shared) = (Arc::new(BlockCache::in_memory(0)), Budget::new(&options()));
    let mut volumes = Vec::new();
    for n in 0..VOLUMES {
        let disk = SlowDisk(LocalDisk::new(folder.path().join(format!("journal{n}")), Workers::Threads));
        volumes.push(open_on(Arc::new(disk), &store, &cache, &shared, n).await);
    }
    count.again();
    let (in_flight, begin) = (Arc::new(InFlight::default()), tokio::time::Instant::now());
    let writer = |n: usize| {
        let volume = volumes[n % VOLUMES].clone();
        tokio::spawn(write_much(volume, Random::seeded(100 + n as u64), BYTES, Data::Noise, in_flight.clone()))
    };
    let writers: Vec<_> = (0..VOLUMES * WRITERS).map(writer).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let (most, took) = (count.most(), begin.elapsed());
    let allowed = budget(&options(), in_flight.most());
    println!("{} MiB of {} in {took:?}", most / MIB, allowed / MIB);
    assert!(most <= allowed, "{most} bytes where {allowed} are allowed");
    // All but what is still on its way went over the disk.
    let least = (VOLUMES * WRITERS) as u64 * BYTES - allowed;
    assert!(took >= Duration::from_secs(least) / (VOLUMES as u64 * RATE) as u32, "{took:?}: the clients waited");
    for volume in &volumes {
        assert_eq!(volume.status().ended, None);
        volume.close().await.unwrap();
    }
}
