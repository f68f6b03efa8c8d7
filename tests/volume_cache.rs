//! The block cache under a volume: what it spares the store, and that nothing it holds is believed without proof.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::cache::disk::DiskTier;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::crash::{CrashDisk, DiskFaults};
use ashlar::journal;
use ashlar::keyring::slot::Cost;
use ashlar::keyring::unlock::SecretSource;
use ashlar::keyring::{Secret, Secrets};
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{self, CreateOptions, NewEncryption, OpenFlags, Options, Outside, Volume, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;

const SIZE: u64 = 64 << 20;

/// A store with volumes, and the local disks of one server.
struct World {
    store: Arc<MemoryStore>,
    journals: BTreeMap<&'static str, CrashDisk>,
    cache_disk: CrashDisk,
    random: Random,
    options: Options,
}

impl World {
    async fn new(volumes: &[&'static str]) -> World {
        let (store, random) = (Arc::new(MemoryStore::default()), Random::seeded(7));
        for name in volumes {
            let secret = NewEncryption { secret: key(), cost: Cost::LEAST, recovery: false };
            let encryption = (*name == "secret").then_some(secret);
            let options = CreateOptions { size: SIZE, encryption, ..CreateOptions::default() };
            volume::create(&*store, &random, &Clock::System, &VolumeName::new(*name).unwrap(), options).await.unwrap();
        }
        let options = Options { read_ahead: 0, ..Options::default() };
        let journals = volumes.iter().map(|name| (*name, CrashDisk::new(1))).collect();
        World { store, journals, cache_disk: CrashDisk::new(2), random, options }
    }

    /// The same store, seen from other hosts.
    fn of(other: &World) -> World {
        let World { store, random, options, .. } = other;
        let journals = other.journals.keys().map(|name| (*name, CrashDisk::new(1))).collect();
        let (store, random, options) = (store.clone(), random.clone(), options.clone());
        World { store, journals, cache_disk: CrashDisk::new(2), random, options }
    }

    /// A server with so much cache in memory, and its tier on the disk.
    async fn server(&self, memory: u64) -> Server<'_> {
        let disk = DiskTier::start(Arc::new(self.cache_disk.clone()), 32 << 20);
        disk.settled().await;
        Server { world: self, cache: Arc::new(BlockCache::new(memory, Some(disk))) }
    }

    /// The process dies, and the disks are there for the next one.
    fn kill(&mut self) {
        self.journals.values_mut().for_each(|disk| *disk = disk.kill());
        self.cache_disk = self.cache_disk.kill();
    }
}

fn key() -> Secret {
    Secret::key_file(vec![7; 32].into()).unwrap()
}

#[derive(Debug)]
struct TheKey;

#[async_trait]
impl SecretSource for TheKey {
    async fn secrets(&self, _volume: &str) -> Result<Vec<Secret>, String> {
        Ok(vec![key()])
    }
}

struct Server<'a> {
    world: &'a World,
    cache: Arc<BlockCache>,
}

impl Server<'_> {
    async fn open(&self, name: &str) -> Arc<Volume> {
        self.open_from(name, self.world.store.clone()).await
    }

    async fn open_from(&self, name: &str, store: Arc<dyn Store>) -> Arc<Volume> {
        let outside = Outside {
            cache: self.cache.clone(),
            secrets: Secrets::new(Arc::new(TheKey), Workers::Inline),
            ..outside::plain(store, Arc::new(self.world.journals[name].clone()), self.world.random.clone())
        };
        let name = VolumeName::new(name).unwrap();
        let (options, journal) = (self.world.options.clone(), journal::Options::default());
        Volume::open(outside, &name, options, journal, OpenFlags::default()).await.unwrap()
    }

    fn disk(&self) -> &DiskTier {
        self.cache.disk().unwrap()
    }
}

fn holds(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

/// Data that does not compress.
fn noise(seed: u64, len: usize) -> Bytes {
    let random = Random::seeded(seed);
    (0..len / 64).flat_map(|_| random.bytes::<64>()).collect::<Vec<_>>().into()
}

async fn read(volume: &Volume, offset: u64, len: u32) -> Vec<u8> {
    volume.read(offset, len).await.unwrap().concat()
}

/// Reads the map's pages into memory, so that only data is asked for from then on.
async fn gets_of_reading(volume: &Volume, data: &Bytes) -> u64 {
    volume.read(SIZE - 4096, 4096).await.unwrap();
    let before = volume.status().since_open.gets;
    assert_eq!(read(volume, 0, data.len() as u32).await, data[..]);
    volume.status().since_open.gets - before
}

#[tokio::test(start_paused = true)]
async fn what_was_read_once_is_read_from_the_disk_after_a_restart() {
    let mut world = World::new(&["a", "b"]).await;
    let data = [noise(1, 1 << 20), noise(2, 1 << 20)];
    {
        let server = world.server(64 << 20).await;
        for (name, data) in ["a", "b"].into_iter().zip(&data) {
            let volume = server.open(name).await;
            volume.write(0, data.clone(), false).await.unwrap();
            volume.close().await.unwrap();
        }
    }
    world.cache_disk = CrashDisk::new(3);
    {
        let server = world.server(64 << 20).await;
        let volumes = [server.open("a").await, server.open("b").await];
        for (volume, data) in volumes.iter().zip(&data) {
            assert!(gets_of_reading(volume, data).await >= 1);
            assert_eq!(gets_of_reading(volume, data).await, 0, "it is in memory");
            volume.close().await.unwrap();
        }
        server.disk().settled().await;
    }
    world.kill();
    let server = world.server(64 << 20).await;
    for (name, data) in ["a", "b"].into_iter().zip(&data) {
        let volume = server.open(name).await;
        assert_eq!(gets_of_reading(&volume, data).await, 0, "it is on the disk");
        volume.close().await.unwrap();
    }
    let status = server.disk().status();
    assert_eq!((status.hits, status.bad), (32, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_disk_of_an_encrypted_volume_is_encrypted() {
    let world = World::new(&["a", "secret"]).await;
    let data = noise(1, 256 << 10);
    let mut in_plain = Vec::new();
    for name in ["a", "secret"] {
        let mut world = World::of(&world);
        // Once from the commit, and once more, with an empty cache, from the store.
        for read_again in [false, true] {
            let server = world.server(64 << 10).await;
            let volume = server.open(name).await;
            if !read_again {
                volume.write(0, data.clone(), true).await.unwrap();
            }
            server.disk().settled().await;
            assert_eq!(gets_of_reading(&volume, &data).await > 0, read_again);
            server.disk().settled().await;
            assert_eq!(server.disk().status().frames, 4);
            volume.close().await.unwrap();
            let slab = world.cache_disk.open("slab-00000001").await.unwrap().read_at(0, 1 << 20).await.unwrap();
            in_plain.push(usize::from(holds(&slab, &data[1000..1032])));
            world.kill();
            world.cache_disk = CrashDisk::new(3);
        }
    }
    assert_eq!(in_plain, [1, 1, 0, 0], "in the order: not encrypted, encrypted");
}

#[tokio::test(start_paused = true)]
async fn a_harmed_frame_on_the_disk_is_a_miss() {
    let mut world = World::new(&["a"]).await;
    let data = noise(1, 256 << 10);
    {
        let server = world.server(64 << 20).await;
        let volume = server.open("a").await;
        volume.write(0, data.clone(), false).await.unwrap();
        volume.close().await.unwrap();
        let volume = server.open("a").await;
        gets_of_reading(&volume, &data).await;
        volume.close().await.unwrap();
        server.disk().settled().await;
    }
    world.kill();
    // One byte of each frame; the tables stay whole.
    let slab = world.cache_disk.list("").await.unwrap().remove(0);
    let len = world.cache_disk.open(&slab).await.unwrap().len().await.unwrap();
    for at in (1000..len).step_by(16 << 10) {
        assert!(world.cache_disk.damage(&slab, at, 1));
    }
    let server = world.server(64 << 20).await;
    let volume = server.open("a").await;
    assert!(gets_of_reading(&volume, &data).await >= 1);
    let status = server.disk().status();
    assert_eq!((status.bad, status.hits, status.off), (4, 0, None));
    // And now the good ones are kept.
    server.disk().settled().await;
    assert_eq!(server.disk().status().frames, 4);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_dies_under_the_cache_fails_no_read() {
    let mut world = World::new(&["a"]).await;
    let data = noise(1, 1 << 20);
    let server = world.server(64 << 20).await;
    let volume = server.open("a").await;
    volume.write(0, data.clone(), false).await.unwrap();
    volume.close().await.unwrap();
    server.disk().settled().await;
    drop((volume, server));
    world.kill();
    for dies in ["reads", "writes", "answers"] {
        let server = world.server(64 << 10).await;
        let volume = server.open("a").await;
        let next = match dies {
            "reads" => Some(world.cache_disk.kill()),
            "writes" => {
                world.cache_disk.set_faults(DiskFaults { write: 1000, create: 1000, ..DiskFaults::default() });
                None
            }
            _ => {
                let delay_max = Duration::from_secs(1000);
                world.cache_disk.set_faults(DiskFaults { delay_max, ..DiskFaults::default() });
                None
            }
        };
        for _ in 0..3 {
            gets_of_reading(&volume, &data).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        world.cache_disk.set_faults(DiskFaults::default());
        volume.close().await.unwrap();
        drop((volume, server));
        world.cache_disk = next.unwrap_or(world.cache_disk.clone());
        world.kill();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_just_written_is_read_without_a_request() {
    let mut world = World::new(&["a"]).await;
    world.options.segment_size = 1 << 20;
    let data = noise(1, 4 << 20);
    for memory in [64 << 20, 64 << 10] {
        let server = world.server(memory).await;
        let volume = server.open("a").await;
        // In two halves that share a block, and with zeroes between, so that frames consist of several changes.
        volume.write(0, data.slice(..1_000_000), false).await.unwrap();
        volume.write(1_000_000, data.slice(1_000_000..), false).await.unwrap();
        volume.write(8 << 20, Bytes::from(vec![0; 8192]), false).await.unwrap();
        volume.flush().await.unwrap();
        server.disk().settled().await;
        assert_eq!(volume.status().dirty_bytes, 0);
        assert_eq!(gets_of_reading(&volume, &data).await, 0, "with {memory} bytes of memory");
        assert_eq!(server.disk().status().hits > 0, memory == 64 << 10, "the disk has what memory has not");
        volume.close().await.unwrap();
        drop((volume, server));
        world.kill();
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_write_stays_within_the_cache_and_does_not_drive_out_what_is_read_again_and_again() {
    const MEMORY: u64 = 16 << 20;
    let world = World::new(&["a"]).await;
    let server = Server { world: &world, cache: Arc::new(BlockCache::in_memory(MEMORY)) };
    let volume = server.open("a").await;
    let hot = noise(1, 1 << 20);
    volume.write(0, hot.clone(), false).await.unwrap();
    volume.flush().await.unwrap();
    for _ in 0..4 {
        gets_of_reading(&volume, &hot).await;
    }
    for i in 1..60 {
        volume.write(i << 20, noise(i, 1 << 20), false).await.unwrap();
        volume.flush().await.unwrap();
        assert!(server.cache.status().memory_used <= MEMORY);
    }
    assert_eq!(gets_of_reading(&volume, &hot).await, 0);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_long_sequential_read_is_fetched_once_and_does_not_drive_out_what_is_read_again_and_again() {
    const MEMORY: u64 = 32 << 20;
    let mut world = World::new(&["a"]).await;
    world.options.read_ahead = 64 << 20;
    let data = noise(1, 48 << 20);
    {
        let server = world.server(1 << 20).await;
        let volume = server.open("a").await;
        volume.write(0, data.clone(), false).await.unwrap();
        volume.close().await.unwrap();
    }
    let server = Server { world: &world, cache: Arc::new(BlockCache::in_memory(MEMORY)) };
    let faults = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
    let far = Arc::new(FaultyStore::new(world.store.clone(), faults, Random::seeded(1)));
    let volume = server.open_from("a", far).await;
    // In no order, so that this is no stream; enough of it to fill what such frames may take.
    let hot = |i: u64| (40 << 20) + (i * 37 % 128) * (64 << 10);
    let read_hot = async || {
        let before = volume.status().since_open.bytes_got;
        for i in 0..128 {
            assert_eq!(read(&volume, hot(i), 4096).await, data[hot(i) as usize..][..4096]);
        }
        volume.status().since_open.bytes_got - before
    };
    for _ in 0..4 {
        read_hot().await;
    }
    let (before, began) = (volume.status().since_open.bytes_got, tokio::time::Instant::now());
    for at in (0..32 << 20).step_by(256 << 10) {
        assert_eq!(read(&volume, at, 256 << 10).await, data[at as usize..][..256 << 10]);
    }
    let got = volume.status().since_open.bytes_got - before;
    assert!(got < 41 << 20, "each byte once, and at most what is ahead of the end: {got}");
    assert!(began.elapsed() < Duration::from_secs(1), "128 reads of 20 ms took {:?}", began.elapsed());
    let again = read_hot().await;
    assert!(again < 1 << 20, "{again} bytes of 8 MiB were driven out");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_read_does_not_wait_for_what_is_fetched_ahead() {
    const SEGMENTS: u64 = 120;
    let mut world = World::new(&["a"]).await;
    world.options.read_parallel = 4;
    let blocks: Vec<Bytes> = (0..=SEGMENTS).map(|i| noise(i, 4096)).collect();
    {
        let server = Server { world: &world, cache: Arc::new(BlockCache::in_memory(0)) };
        let volume = server.open("a").await;
        // A segment for each block.
        for (i, block) in blocks.iter().enumerate() {
            volume.write(i as u64 * 4096, block.clone(), true).await.unwrap();
        }
        volume.close().await.unwrap();
    }
    let delay = Duration::from_millis(20);
    let faults = FaultOptions { delay_min: delay, ..FaultOptions::default() };
    let far = Arc::new(FaultyStore::new(world.store.clone(), faults, Random::seeded(1)));
    let server = Server { world: &world, cache: Arc::new(BlockCache::in_memory(16 << 20)) };
    let volume = server.open_from("a", far).await;
    volume.read(SIZE - 4096, 4096).await.unwrap();
    let began = tokio::time::Instant::now();
    let ahead = async {
        volume.cache(0, SEGMENTS * 4096).await.unwrap();
        began.elapsed()
    };
    let reading = async {
        tokio::time::sleep(delay / 2).await;
        let began = tokio::time::Instant::now();
        assert_eq!(read(&volume, SEGMENTS * 4096, 4096).await, blocks[SEGMENTS as usize]);
        began.elapsed()
    };
    let (ahead, reading) = tokio::join!(ahead, reading);
    assert!(ahead >= 10 * delay, "many requests: {ahead:?}");
    assert!(reading < 2 * delay, "{reading:?} while {ahead:?} worth of requests waited");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_readers_of_one_frame_make_one_get() {
    let world = World::new(&["a"]).await;
    let data = noise(1, 64 << 10);
    {
        let server = world.server(1 << 20).await;
        let volume = server.open("a").await;
        volume.write(0, data.clone(), false).await.unwrap();
        volume.close().await.unwrap();
    }
    let faults = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
    let far = Arc::new(FaultyStore::new(world.store.clone(), faults, Random::seeded(1)));
    let server = Server { world: &world, cache: Arc::new(BlockCache::in_memory(1 << 20)) };
    let volume = server.open_from("a", far).await;
    volume.read(SIZE - 4096, 4096).await.unwrap();
    let before = volume.status().since_open.gets;
    let readers = (0..64u64).map(|i| {
        let (volume, data) = (volume.clone(), data.slice(i as usize * 1024..64 << 10));
        tokio::spawn(async move {
            // Some while the GET is under way.
            tokio::time::sleep(Duration::from_millis(i % 16)).await;
            assert_eq!(read(&volume, i * 1024, data.len() as u32).await, data);
        })
    });
    for reader in futures::future::join_all(readers).await {
        reader.unwrap();
    }
    assert_eq!(volume.status().since_open.gets - before, 1);
    volume.close().await.unwrap();
}
