//! The volume over a memory store and a disk in memory: what it promises, one behaviour a test. Faults and crashes at
//! every step are the simulation's business (`tests/sim`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::{Device, DeviceError, Pieces};
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random};
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Store, list_all};
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeName};
use bytes::Bytes;

const SIZE: u64 = 64 << 20;

struct World {
    store: Arc<dyn Store>,
    disk: Arc<CrashDisk>,
    random: Random,
    name: VolumeName,
    options: Options,
    cache_memory: u64,
}

impl World {
    async fn new() -> World {
        World::of_size(SIZE).await
    }

    async fn of_size(size: u64) -> World {
        let random = Random::seeded(7);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let name = VolumeName::new("v").unwrap();
        let options = CreateOptions { size, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name, options).await.unwrap();
        let disk = Arc::new(CrashDisk::new(7));
        let options = Options { segment_size: 256 << 10, ..Options::default() };
        World { store, disk, random, name, options, cache_memory: 256 << 20 }
    }

    fn outside(&self) -> Outside {
        Outside {
            cache: Arc::new(BlockCache::in_memory(self.cache_memory)),
            ..outside::plain(self.store.clone(), self.disk.clone(), self.random.clone())
        }
    }

    async fn open(&self) -> Arc<Volume> {
        self.try_open(OpenFlags::default()).await.unwrap()
    }

    async fn try_open(&self, flags: OpenFlags) -> Result<Arc<Volume>, volume::VolumeError> {
        Volume::open(self.outside(), &self.name, self.options.clone(), journal::Options::default(), flags).await
    }

    /// After the volume was dropped or closed: it holds together, every frame of it.
    async fn check(&self) {
        let report =
            ashlar::check::check(&self.store, &self.name, true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
    }

    async fn objects(&self, prefix: &str) -> usize {
        list_all(&*self.store, &self.below(prefix).await).await.unwrap().len()
    }

    /// A prefix in the volume's folder.
    async fn below(&self, prefix: &str) -> String {
        let meta = volume::description::load(&*self.store, &self.name).await.unwrap().meta;
        format!("{}{prefix}", ashlar::format::keys::Keys::of(&meta).all())
    }
}

fn pattern(seed: u64, len: usize) -> Bytes {
    (0..len as u64).map(|i| (i.wrapping_mul(seed * 2 + 1) >> 3) as u8 | 1).collect::<Vec<_>>().into()
}

fn joined(pieces: Pieces) -> Vec<u8> {
    pieces.concat()
}

async fn read(volume: &Volume, offset: u64, len: u32) -> Vec<u8> {
    joined(volume.read(offset, len).await.unwrap())
}

#[tokio::test]
async fn what_was_written_is_read_back_before_and_after_commit_and_reopening() {
    let world = World::new().await;
    let volume = world.open().await;
    let data = pattern(3, 1 << 20);
    volume.write(8192, data.clone(), false).await.unwrap();
    assert_eq!(read(&volume, 8192, 1 << 20).await, data);
    volume.flush().await.unwrap();
    assert_eq!(read(&volume, 8192, 1 << 20).await, data);
    assert_eq!(read(&volume, 0, 8192).await, vec![0; 8192]);
    volume.close().await.unwrap();
    let volume = world.open().await;
    assert_eq!(read(&volume, 8192 + 100, 5000).await, data[100..5100]);
    assert_eq!(read(&volume, SIZE - 10, 10).await, vec![0; 10]);
    drop(volume);
    world.check().await;
}

#[tokio::test]
async fn flushes_that_wait_together_share_one_put() {
    let world = World::new().await;
    let volume = world.open().await;
    let puts = || volume.status().since_open.puts;
    for round in 0..3 {
        let before = puts();
        volume.write(round * 4096, pattern(round, 4096), false).await.unwrap();
        for flushed in futures::future::join_all((0..32).map(|_| volume.flush())).await {
            flushed.unwrap();
        }
        assert_eq!(puts() - before, 1, "round {round}");
    }
    let before = puts();
    let write_and_flush = async |no: u64| {
        volume.write(no * 4096, pattern(no, 4096), false).await.unwrap();
        volume.flush().await.unwrap();
    };
    futures::future::join_all((0..32).map(write_and_flush)).await;
    assert!(puts() - before <= 2, "one that was too early for some, and one for them: {}", puts() - before);
    volume.flush().await.unwrap();
    assert!(puts() - before <= 2, "a flush with nothing to do asks for nothing");
}

#[tokio::test]
async fn unaligned_writes_change_exactly_their_bytes() {
    let world = World::new().await;
    let volume = world.open().await;
    let mut model = vec![0u8; 64 << 10];
    for (i, (at, len)) in
        [(1, 1), (511, 2), (4095, 2), (4096, 4096), (100, 9000), (8191, 1), (20_000, 30_000)].into_iter().enumerate()
    {
        let data = pattern(i as u64 + 1, len);
        volume.write(at as u64, data.clone(), i % 2 == 0).await.unwrap();
        model[at..at + len].copy_from_slice(&data);
        assert_eq!(read(&volume, 0, model.len() as u32).await, model, "after write {i}");
    }
    volume.write_zeroes(5000, 7000, false, false).await.unwrap();
    model[5000..12_000].fill(0);
    volume.trim(4097, 8191, false).await.unwrap();
    model[8192..12_288].fill(0);
    volume.write_zeroes(33_000, 10, true, true).await.unwrap();
    model[33_000..33_010].fill(0);
    assert_eq!(read(&volume, 0, model.len() as u32).await, model);
}

/// A store that takes its time, so that whoever completes a block waits for it and others come meanwhile.
fn far(store: Arc<dyn Store>) -> Arc<dyn Store> {
    let milliseconds = Duration::from_millis;
    let delays =
        FaultOptions { delay_min: milliseconds(20), delay_spread: milliseconds(20), ..FaultOptions::default() };
    Arc::new(FaultyStore::new(store, delays, Random::seeded(3)))
}

#[tokio::test(start_paused = true)]
async fn two_writers_into_one_block_lose_nothing() {
    let mut world = World::new().await;
    world.store = far(world.store);
    world.cache_memory = 0;
    let volume = world.open().await;
    for round in 0..20 {
        let at = round * 4096;
        // In the store and nowhere else: all who complete it read it there.
        volume.write(at, pattern(round, 4096), true).await.unwrap();
        let gets = volume.status().since_open.gets;
        let writers = (0..64u64).map(|i| {
            let (volume, data) = (volume.clone(), Bytes::from(vec![i as u8 + 1; 64]));
            tokio::spawn(async move { volume.write(at + i * 64, data, false).await.unwrap() })
        });
        futures::future::join_all(writers).await;
        let expected: Vec<u8> = (0..64u8).flat_map(|i| [i + 1; 64]).collect();
        assert_eq!(read(&volume, at, 4096).await, expected, "round {round}");
        assert!(volume.status().since_open.gets > gets, "they met: the first had to wait for the store");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_whole_blocks_is_not_undone_by_one_who_completes_them() {
    let mut world = World::new().await;
    world.store = far(world.store);
    world.cache_memory = 0;
    let volume = world.open().await;
    let change = async |what: u64, at: u64| match what {
        0 => volume.write(at, Bytes::from(vec![0xaa; 4096]), false).await.unwrap(),
        1 => volume.trim(at, 4096, false).await.unwrap(),
        _ => volume.write_zeroes(at, 4096, true, false).await.unwrap(),
    };
    for round in 0..15 {
        let at = round * 4096;
        volume.write(at, pattern(round, 4096), true).await.unwrap();
        // It waits for the store when the change comes.
        let mut partial = std::pin::pin!(volume.write(at + 100, Bytes::from(vec![0xee; 50]), false));
        assert!(futures::poll!(&mut partial).is_pending());
        let (done, ()) = tokio::join!(partial, change(round % 3, at));
        done.unwrap();
        let block = read(&volume, at, 4096).await;
        let whole = if round % 3 == 0 { 0xaa } else { 0 };
        let old = block.iter().position(|byte| ![whole, 0xee].contains(byte));
        assert_eq!(old, None, "round {round}: a byte from before an acknowledged change of the whole block");
    }
}

#[tokio::test]
async fn a_killed_server_loses_no_acknowledged_write() {
    let world = World::new().await;
    let data = pattern(5, 300_000);
    {
        let volume = world.open().await;
        volume.write(12_345, data.clone(), false).await.unwrap();
        volume.trim(16_384, 4096, false).await.unwrap();
    }
    world.check().await;
    let volume = world.open().await;
    let mut expected = data.to_vec();
    expected[16_384 - 12_345..20_480 - 12_345].fill(0);
    assert_eq!(read(&volume, 12_345, 300_000).await, expected);
    volume.close().await.unwrap();
    let left = world.disk.list("").await.unwrap();
    assert!(left.iter().all(|name| name.starts_with("seen-")), "a clean stop leaves no journal: {left:?}");
}

#[tokio::test]
async fn a_killed_server_that_comes_back_and_has_nothing_to_do_closes_cleanly() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, pattern(1, 4096), true).await.unwrap();
    drop(volume);
    // Its checkpoint covers the fence, and names the slots after it that the fence voided.
    world.open().await.close().await.unwrap();
    world.check().await;
    let volume = world.open().await;
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_trimmed_whole_ends_with_no_segments() {
    let world = World::new().await;
    let volume = world.open().await;
    for i in 0..20 {
        volume.write(i * (1 << 20), pattern(i, 1 << 20), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    assert!(world.objects("segments/").await >= 20);
    volume.trim(0, SIZE, false).await.unwrap();
    volume.close().await.unwrap();
    let volume = world.open().await;
    volume.flush().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    assert_eq!(world.objects("segments/").await, 0, "idle, checkpointed, nothing live");
    assert_eq!(world.objects("checkpoints/").await, 1);
}

#[tokio::test]
async fn sixteen_tebibytes_open_trim_and_close_at_once() {
    let world = World::of_size(16 << 40).await;
    let volume = world.open().await;
    volume.trim(0, 16 << 40, false).await.unwrap();
    volume.write_zeroes(0, 16 << 40, true, false).await.unwrap();
    volume.write(5 << 40, pattern(1, 4096), false).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(read(&volume, (5 << 40) - 10, 20).await[10..], pattern(1, 4096)[..10]);
    volume.trim(4096, (16 << 40) - 4096, true).await.unwrap();
    assert_eq!(read(&volume, 5 << 40, 4096).await, vec![0; 4096]);
    volume.close().await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn a_volume_that_another_server_has_is_refused_and_the_displaced_one_can_write_no_more() {
    let mut world = World::new().await;
    let first = world.open().await;
    first.write(0, pattern(1, 4096), true).await.unwrap();
    let first_disk = std::mem::replace(&mut world.disk, Arc::new(CrashDisk::new(9)));
    let refused = world.try_open(OpenFlags::default()).await.unwrap_err();
    assert!(refused.to_string().contains("was opened by server one"), "{refused}");
    assert!(refused.to_string().contains("--takeover"), "{refused}");
    let takeover = OpenFlags { takeover: true, ..OpenFlags::default() };
    let second = world.try_open(takeover).await.unwrap();
    assert_eq!(read(&second, 0, 4096).await, pattern(1, 4096));
    second.write(0, pattern(2, 4096), true).await.unwrap();
    let error = first.write(0, pattern(3, 4096), true).await.unwrap_err();
    assert!(error.to_string().contains("was taken over by server one"), "{error}");
    assert!(first.flush().await.is_err());
    assert_eq!(read(&second, 0, 4096).await, pattern(2, 4096));
    second.close().await.unwrap();
    world.check().await;
    drop(first);
    // Back on the first host: its journal holds a write that was never committed and must not come back.
    world.disk = first_disk;
    let refused = world.try_open(OpenFlags::default()).await.unwrap_err();
    assert!(refused.to_string().contains("--drop-journal"), "{refused}");
    let drop_journal = OpenFlags { drop_journal: true, ..OpenFlags::default() };
    let third = world.try_open(drop_journal).await.unwrap();
    assert_eq!(read(&third, 0, 4096).await, pattern(2, 4096));
}

/// Rule R12: no pair of key and nonce seals two texts, because each encoding of each object has a salt of its own.
#[tokio::test(start_paused = true)]
async fn every_object_has_a_salt_of_its_own() {
    let world = World::new().await;
    let volume = world.open().await;
    for i in 0..5 {
        volume.write(i << 20, pattern(i, 4096), true).await.unwrap();
    }
    volume.close().await.unwrap();
    let mut salts = std::collections::BTreeSet::new();
    let mut objects = 0;
    for folder in ["segments/", "checkpoints/"] {
        for entry in list_all(&*world.store, &world.below(folder).await).await.unwrap() {
            salts.insert(world.store.get_range(&entry.key, 16..32).await.unwrap());
            objects += 1;
        }
    }
    assert!(objects > 5, "{objects} objects");
    assert_eq!(salts.len(), objects);
}

/// Rule R9: an answer with less than was asked for is an error that names the object, not data.
#[tokio::test(start_paused = true)]
async fn a_get_that_returns_less_than_was_asked_for_is_an_error() {
    let mut world = World::new().await;
    world.cache_memory = 0;
    let memory = Arc::new(MemoryStore::default());
    for (key, body) in copy(&*world.store).await {
        memory.put(&key, vec![body]).await.unwrap();
    }
    world.store = memory.clone();
    let volume = world.open().await;
    volume.write(0, pattern(1, 128 << 10), true).await.unwrap();
    let (key, whole) = copy(&*memory).await.into_iter().max_by_key(|(_, body)| body.len()).unwrap();
    memory.replace(&key, whole.slice(..whole.len() - 1));
    let error = volume.read(0, 128 << 10).await.unwrap_err().to_string();
    assert!(error.contains(key.as_str()) && error.contains("it is truncated"), "{error}");
    memory.replace(&key, whole);
    assert_eq!(read(&volume, 0, 128 << 10).await, pattern(1, 128 << 10));
}

#[tokio::test(start_paused = true)]
async fn writers_wait_at_the_bound_on_dirty_bytes_and_get_no_error() {
    let mut world = World::new().await;
    world.store = far(world.store);
    world.options.dirty_bytes = 1 << 20;
    let volume = world.open().await;
    for i in 0..32 {
        volume.write(i << 20, pattern(i, 1 << 20), false).await.unwrap();
        assert!(volume.status().dirty_bytes <= 1 << 20);
    }
    assert_eq!(read(&volume, 31 << 20, 1 << 20).await, pattern(31, 1 << 20));
}

/// A replay may exceed the bound, if that was higher when it was written; what comes after it may not.
#[tokio::test(start_paused = true)]
async fn the_bound_on_dirty_bytes_holds_after_a_replay_that_exceeded_it() {
    const STEP: u64 = 128 << 10;
    let mut world = World::new().await;
    let backend = world.store.clone();
    let cut_off = |world: &mut World| {
        let faulty = FaultyStore::new(backend.clone(), FaultOptions::default(), Random::seeded(3));
        let faults = faulty.faults();
        world.store = Arc::new(faulty);
        faults
    };
    let faults = cut_off(&mut world);
    world.options.writeback_delay = Duration::from_secs(9999);
    let volume = world.open().await;
    faults.isolate();
    for i in 0..64 {
        volume.write(i * STEP, pattern(i, STEP as usize), false).await.unwrap();
    }
    drop(volume);
    world.disk = Arc::new(world.disk.kill());
    let faults = cut_off(&mut world);
    world.options.dirty_bytes = 512 << 10;
    let volume = world.open().await;
    assert!(volume.status().dirty_bytes >= 64 * STEP, "the replay is taken in whole");
    volume.flush().await.unwrap();
    assert_eq!(volume.status().dirty_bytes, 0);
    faults.isolate();
    let mut most = 0;
    let held = async {
        for i in 0..64 {
            volume.write(i * STEP, pattern(i + 1, STEP as usize), false).await.unwrap();
            most = most.max(volume.status().dirty_bytes);
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(3600), held).await.is_err(), "writers wait at the bound");
    assert!((256 << 10..=512 << 10).contains(&most), "{most} bytes are dirty where 512 KiB may be");
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_makes_no_request() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, pattern(1, 1 << 20), false).await.unwrap();
    let sleep = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let account = || volume.status().since_open;
    sleep(60).await;
    assert_eq!(volume.status().dirty_bytes, 0);
    let (after_a_minute, checkpoints) = (account(), world.objects("checkpoints/").await);
    assert!(after_a_minute.puts > 2 && checkpoints > 0, "{after_a_minute:?}, {checkpoints} checkpoints");
    for _ in 0..3 {
        sleep(86_400).await;
        volume.flush().await.unwrap();
        sleep(60).await;
    }
    assert_eq!(account(), after_a_minute, "an idle volume makes no request, and a FLUSH of nothing none either");
    // The search for objects that nobody owns was due, and comes with what is written next; then there is silence again.
    volume.write(0, pattern(2, 4096), false).await.unwrap();
    sleep(60).await;
    let after_another = account();
    assert!(after_another.lists > after_a_minute.lists, "{after_another:?}");
    sleep(30 * 86_400).await;
    assert_eq!(account(), after_another, "an idle volume makes no request");
}

#[tokio::test]
async fn damage_is_an_error_that_names_the_object_and_check_finds_it() {
    let mut world = World::new().await;
    let memory = Arc::new(MemoryStore::default());
    for (key, body) in copy(&*world.store).await {
        memory.put(&key, vec![body]).await.unwrap();
    }
    world.store = memory.clone();
    let volume = world.open().await;
    volume.write(0, pattern(1, 128 << 10), false).await.unwrap();
    volume.close().await.unwrap();
    // With an empty cache.
    let volume = world.open().await;
    let segment = list_all(&*world.store, &world.below("segments/").await)
        .await
        .unwrap()
        .into_iter()
        .max_by_key(|entry| entry.size)
        .unwrap();
    let mut body = world.store.get(&segment.key).await.unwrap().to_vec();
    let last = body.len() - 1;
    body[last] ^= 1;
    memory.replace(&segment.key, body.into());
    assert_eq!(read(&volume, 0, 64 << 10).await, pattern(1, 128 << 10)[..64 << 10], "the other frame is unharmed");
    let error = volume.read(64 << 10, 4096).await.unwrap_err().to_string();
    assert!(error.contains(segment.key.as_str()) && error.contains("its tag does not match"), "{error}");
    for (offset, first) in [(4096, 64 << 10), (5, 64 << 10), ((64 << 10) + 700, (64 << 10) + 700)] {
        let error = volume.read(offset, 64 << 10).await.unwrap_err();
        assert!(matches!(error, DeviceError::Unreadable { offset, .. } if offset == first), "{offset}: {error:?}");
    }
    volume.close().await.unwrap();
    let report = ashlar::check::check(&world.store, &world.name, false, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "without reading data nothing is found");
    let report = ashlar::check::check(&world.store, &world.name, true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].object, segment.key.to_string());

    memory.remove(&segment.key);
    let report = ashlar::check::check(&world.store, &world.name, false, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert_eq!(report.problems[0].what, "it is missing, and the map needs it");
}

#[tokio::test]
async fn a_corrupt_checkpoint_is_refused_by_name() {
    let world = World::new().await;
    let memory = Arc::new(MemoryStore::default());
    world.open().await.close().await.unwrap();
    let all = copy(&*world.store).await;
    let root = all
        .iter()
        .filter(|(key, _)| key.as_str().contains("checkpoints"))
        .max_by_key(|(key, _)| key.clone())
        .unwrap()
        .0
        .clone();
    for (key, mut body) in all {
        if key == root {
            let mut bytes = body.to_vec();
            bytes[60] ^= 4;
            body = bytes.into();
        }
        memory.put(&key, vec![body]).await.unwrap();
    }
    let world = World { store: memory, ..world };
    let error = world.try_open(OpenFlags::default()).await.unwrap_err().to_string();
    let expected = format!(
        "object {root} is corrupt: its tag does not match: bytes changed, or it was moved here from another place or volume; \
         `ashlar check` reads the whole volume and names every damaged object [A02]"
    );
    assert_eq!(error, expected);
}

async fn copy(store: &dyn Store) -> Vec<(ashlar::store::Key, Bytes)> {
    let mut all = Vec::new();
    for entry in list_all(store, "").await.unwrap() {
        all.push((entry.key.clone(), store.get(&entry.key).await.unwrap()));
    }
    all
}

#[tokio::test]
async fn with_the_disk_full_under_the_journal_a_write_is_acknowledged_once_the_store_has_it() {
    let mut world = World::new().await;
    let volume = world.open().await;
    world.disk.limit_bytes(world.disk.stored_bytes() + 8192);
    volume.write(0, pattern(1, 1 << 20), false).await.unwrap();
    let status = volume.status();
    assert_eq!(status.committed, status.accepted, "nothing is acknowledged that a kill would lose");
    drop(volume);
    world.disk = Arc::new(world.disk.kill());
    world.disk.limit_bytes(u64::MAX);
    let volume = world.open().await;
    assert_eq!(read(&volume, 0, 1 << 20).await, pattern(1, 1 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_cold_sequential_read_is_fetched_ahead_in_parallel_and_random_reads_are_not() {
    const LEN: u64 = 48 << 20;
    let mut world = World::new().await;
    world.options.segment_size = 8 << 20;
    let volume = world.open().await;
    let data: Vec<Bytes> = (0..48).map(|i| pattern(i + 1, 1 << 20)).collect();
    for (i, data) in data.iter().enumerate() {
        volume.write((i as u64) << 20, data.clone(), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let far = |options: Options| {
        let delay = Duration::from_millis(20);
        let faults = FaultOptions { delay_min: delay, ..FaultOptions::default() };
        World {
            store: Arc::new(FaultyStore::new(world.store.clone(), faults, Random::seeded(1))),
            disk: world.disk.clone(),
            random: world.random.clone(),
            name: world.name.clone(),
            options,
            cache_memory: world.cache_memory,
        }
    };
    let mut took = Vec::new();
    for read_ahead in [0, 16 << 20] {
        let volume = far(Options { read_ahead, ..world.options.clone() }).open().await;
        read(&volume, 20 << 20, 512).await; // the map is in memory
        let (began, gets) = (tokio::time::Instant::now(), volume.status().since_open.gets);
        for at in (0..LEN).step_by(128 << 10) {
            assert_eq!(read(&volume, at, 16).await, data[(at >> 20) as usize][(at & 0xf_ffff) as usize..][..16]);
            volume.read(at, 128 << 10).await.unwrap();
        }
        took.push((began.elapsed(), volume.status().since_open.gets - gets));
        let gets = volume.status().since_open.gets;
        volume.close().await.unwrap();
        drop(volume);
        let volume = far(Options { read_ahead, ..world.options.clone() }).open().await;
        for i in 0..100u64 {
            read(&volume, (i * 7919 % 767) * (64 << 10), 4096).await;
        }
        let random = volume.status().since_open;
        assert!(random.bytes_got < 100 * (80 << 10) + (1 << 20), "{random:?} after {gets}");
        volume.close().await.unwrap();
    }
    let [(alone, many), (ahead, few)] = took[..] else { panic!() };
    assert!(ahead * 5 < alone && few < many, "{alone:?} and {many} GETs, ahead {ahead:?} and {few} GETs");
}

/// Who closes a volume that somebody else closes returns when it is closed, not before.
#[tokio::test(start_paused = true)]
async fn whoever_closes_a_volume_second_waits_for_the_first() {
    let world = World::new().await;
    let faulty = FaultyStore::new(world.store.clone(), FaultOptions::default(), Random::seeded(3));
    let (faults, store) = (faulty.faults(), Arc::new(faulty) as Arc<dyn Store>);
    let volume = World { store, ..world }.open().await;
    volume.write(0, pattern(1, 4096), false).await.unwrap();
    faults.set_options(FaultOptions { refuse: 1000, ..FaultOptions::default() });
    let mut first = Box::pin(volume.close());
    let a_while = Duration::from_secs(60);
    assert!(tokio::time::timeout(a_while, &mut first).await.is_err());
    assert!(tokio::time::timeout(a_while, volume.close()).await.is_err(), "it is not closed yet");
    faults.set_options(FaultOptions::default());
    let (first, second) = tokio::join!(first, volume.close());
    first.unwrap();
    second.unwrap();
    volume.close().await.unwrap();
}

/// A client that waits for the store waits, be it with FLUSH or with FUA (QEMU's cache modes send either).
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_store_is_counted() {
    let world = World::new().await;
    let faulty = FaultyStore::new(world.store.clone(), FaultOptions::default(), Random::seeded(3));
    let (faults, store) = (faulty.faults(), Arc::new(faulty) as Arc<dyn Store>);
    let volume = World { store, ..world }.open().await;
    faults.set_options(FaultOptions { refuse: 1000, ..FaultOptions::default() });
    let waiting = || volume.status().flushes_waiting;
    let mut write = Box::pin(volume.write(0, pattern(1, 4096), true));
    let a_while = Duration::from_secs(10);
    assert!(tokio::time::timeout(a_while, &mut write).await.is_err());
    assert_eq!(waiting(), 1);
    let mut flush = Box::pin(volume.flush());
    assert!(tokio::time::timeout(a_while, &mut flush).await.is_err());
    assert_eq!(waiting(), 2);
    volume.write(8192, pattern(1, 4096), false).await.unwrap();
    assert_eq!(waiting(), 2, "the journal has it");
    faults.set_options(FaultOptions::default());
    let (write, flush) = tokio::join!(write, flush);
    write.unwrap();
    flush.unwrap();
    assert_eq!(waiting(), 0);
}

/// Nor does the second return before the first has let go of the journal of a volume that had ended, and a first that does not wait
/// to the end leaves it to the second.
#[tokio::test(start_paused = true)]
async fn whoever_closes_a_volume_that_ended_waits_for_its_journal_also_in_place_of_the_first() {
    let mut world = World::new().await;
    let ended = world.open().await;
    ended.write(0, pattern(1, 4096), true).await.unwrap();
    world.disk = Arc::new(CrashDisk::new(9));
    let takeover = OpenFlags { takeover: true, ..OpenFlags::default() };
    let _second_server = world.try_open(takeover).await.unwrap();
    assert!(ended.write(0, pattern(3, 4096), true).await.is_err());
    let (mut first, mut second) = (Box::pin(ended.close()), Box::pin(ended.close()));
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending(), "its journal is still open");
    drop(first);
    let why = second.await.unwrap_err().to_string();
    assert!(why.contains("was taken over"), "{why}");
    assert_eq!(ended.close().await.unwrap_err().to_string(), why);
}

/// Another server may have it by now, and its clients another state.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_closed_is_not_read() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, pattern(1, 4096), true).await.unwrap();
    volume.close().await.unwrap();
    assert!(matches!(volume.read(0, 4096).await, Err(DeviceError::ShuttingDown)));
    assert!(matches!(volume.extents(0, 4096, 1).await, Err(DeviceError::ShuttingDown)));
    assert!(matches!(volume.cache(0, 4096).await, Err(DeviceError::ShuttingDown)));
    assert!(volume.write(0, pattern(1, 4096), false).await.is_err() && volume.flush().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_clients_ask_is_counted_by_operation() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, pattern(1, 8192), false).await.unwrap();
    volume.write(8192, pattern(2, 4096), false).await.unwrap();
    volume.trim(4096, 4096, false).await.unwrap();
    volume.write_zeroes(1 << 20, 1 << 20, false, false).await.unwrap();
    volume.flush().await.unwrap();
    read(&volume, 0, 4096).await;
    volume.cache(0, 4096).await.unwrap();
    volume.extents(0, SIZE, 10).await.unwrap();
    let (_, puts) = volume.store_requests().outcomes()[0];
    assert!(puts.answered > 0 && puts.durations.count() == puts.answered, "{puts:?}");
    volume.close().await.unwrap();
    volume.write(0, pattern(3, 4096), false).await.unwrap_err();
    let counted = volume.operations().map(|(name, tallied)| (name, tallied.count, tallied.bytes, tallied.failed));
    let expected = [
        ("read", 1, 4096, 0),
        ("write", 3, 12288, 1),
        ("flush", 1, 0, 0),
        ("trim", 1, 4096, 0),
        ("write_zeroes", 1, 1 << 20, 0),
        ("cache", 1, 4096, 0),
        ("block_status", 1, SIZE, 0),
    ];
    assert_eq!(counted, expected);
}

/// What of it costs most is the clock, so a request that waits for nothing does not look at it each time.
#[tokio::test]
async fn a_read_from_memory_waits_for_nothing_and_one_in_sixteen_is_timed() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, pattern(1, 4096), false).await.unwrap();
    volume.flush().await.unwrap();
    for _ in 0..40 {
        read(&volume, 0, 4096).await;
    }
    let (_, reads) = volume.operations()[0];
    assert_eq!((reads.count, reads.bytes, reads.durations.count()), (40, 40 * 4096, 33));
}

#[tokio::test(start_paused = true)]
async fn the_status_says_how_long_the_oldest_change_waits_and_what_holds_it() {
    let world = World::new().await;
    let options = Options { writeback_delay: Duration::from_secs(3600), ..world.options.clone() };
    let world = World { options, ..world };
    let volume = world.open().await;
    assert_eq!((volume.status().dirty_millis, volume.status().journal_bytes), (0, 0));
    for no in 0..30 {
        volume.write(no * 4096, pattern(no, 4096), false).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let status = volume.status();
    assert!((30_000..32_000).contains(&status.dirty_millis), "{}", status.dirty_millis);
    assert_eq!(status.dirty_bound, world.options.dirty_bytes);
    assert!(status.journal_bytes >= 30 * 4096 && status.journal_suspended.is_none(), "{}", status.journal_bytes);
    assert_eq!((status.uploads, status.writes_waiting), (0, 0));
    volume.flush().await.unwrap();
    assert_eq!(volume.status().dirty_millis, 0);
    volume.write(0, pattern(9, 4096), false).await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!((5_000..7_000).contains(&volume.status().dirty_millis), "the age is that of this one");
}
