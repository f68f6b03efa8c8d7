//! Copies of snapshots in another store: whatever happens to the volume, and wherever copying breaks off, a copy that is done is the snapshot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ashlar::cache::BlockCache;
use ashlar::device::{Device, DeviceError, DeviceInfo, Pieces, Run};
use ashlar::disk::crash::CrashDisk;
use ashlar::format::meta::CopyOf;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::Store;
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{
    self, Budget, Copied, CreateOptions, OpenFlags, Options, Outside, Past, Volume, VolumeError, VolumeName,
    description, resize,
};
use async_trait::async_trait;
use bytes::Bytes;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;

/// A volume of its own store, and the disk of its server.
struct Place {
    store: Arc<MemoryStore>,
    disk: CrashDisk,
    random: Random,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn near() -> (Arc<BlockCache>, Workers) {
    (Arc::new(BlockCache::in_memory(0)), Workers::Inline)
}

impl Place {
    async fn new(random: &Random, copy: Option<CopyOf>) -> Place {
        let (store, random) = (Arc::new(MemoryStore::default()), random.clone());
        let options = CreateOptions { size: BLOCKS * BLOCK, copy, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name(), options).await.unwrap();
        Place { store, disk: CrashDisk::new(7), random }
    }

    async fn open(&self) -> Arc<Volume> {
        let options = Options { segment_size: 256 << 10, segment_size_max: 256 << 10, ..Options::default() };
        let outside = Outside {
            cache: near().0,
            ..outside::plain(self.store.clone(), Arc::new(self.disk.clone()), self.random.clone())
        };
        Volume::open(outside, &name(), options, journal::Options::default(), OpenFlags::default()).await.unwrap()
    }

    async fn source(&self) -> Source {
        let store: Arc<dyn Store> = self.store.clone();
        Source::of(store, &name(), &Options::default(), Some(near()), &Secrets::default()).await.unwrap()
    }

    async fn past(&self, snapshot: &str) -> Past {
        let (options, budget, secrets) = (Options::default(), Budget::default(), Secrets::default());
        Past::open(self.store.clone(), &name(), snapshot, &options, &budget, near(), &secrets).await.unwrap()
    }

    async fn grow(&self, volume: &Volume, size: u64) {
        let found = description::load(&*self.store, &name()).await.unwrap();
        let sealer = found.unlock(&Secrets::default()).await.unwrap();
        resize::grow(&*self.store, &self.random, &found, &sealer, size).await.unwrap();
        volume.reload().await.unwrap();
    }
}

/// What is read of a snapshot, until so many reads are done.
#[derive(Debug)]
struct Broken(Past, AtomicU64);

#[async_trait]
impl Device for Broken {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => self.0.read(offset, len).await,
            Err(_) => Err(DeviceError::Io("it breaks off".into())),
        }
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), DeviceError> {
        unreachable!("it is only read")
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        unreachable!("it is only read")
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
        unreachable!("it is only read")
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn cache(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        self.0.extents(offset, len, most).await
    }
}

async fn all_of(device: &dyn Device) -> Vec<u8> {
    device.read(0, device.info().size as u32).await.unwrap().concat()
}

/// Copies that snapshot, with so many reads.
async fn copy(from: &Place, to: &Volume, snapshot: &str, reads: u64) -> Result<Option<Copied>, VolumeError> {
    let source = from.source().await;
    let versions = source.versions().await.unwrap();
    let version = versions.iter().find(|version| version.label.name == snapshot).unwrap();
    let past = Broken(from.past(snapshot).await, AtomicU64::new(reads));
    to.copy_in(&source, version, &past, |_, _| {}, |_| {}).await
}

/// Somebody stops, or dies.
async fn end(place: &mut Place, volume: Arc<Volume>, dies: bool) {
    match dies {
        true => {
            drop(volume);
            place.disk = place.disk.kill();
        }
        false => volume.close().await.unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_done_is_the_snapshot() {
    let seeds = std::env::var("ASHLAR_TEST_SEEDS").map_or(24, |seeds| seeds.parse().unwrap());
    let first: u64 = std::env::var("ASHLAR_TEST_SEED").map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + seeds {
        history(seed).await;
    }
}

async fn history(seed: u64) {
    let random = Random::seeded(seed);
    let below = |n: u64| random.below(n);
    let from = Place::new(&random, None).await;
    let volume = from.open().await;
    let of = CopyOf { uuid: volume.meta().uuid, under_way: None };
    let mut to = Place::new(&random, Some(of)).await;
    let mut holds = vec![0_u8; (BLOCKS * BLOCK) as usize];
    let mut done: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in 0..14 {
        let blocks = holds.len() as u64 / BLOCK;
        for n in 0..1 + below(6) {
            let at = below(blocks);
            let len = 1 + below((blocks - at).min(400));
            let range = (at * BLOCK) as usize..((at + len) * BLOCK) as usize;
            match below(4) {
                0 => volume.trim(at * BLOCK, len * BLOCK, false).await.unwrap(),
                1 => volume.write_zeroes(at * BLOCK, len * BLOCK, true, false).await.unwrap(),
                _ => {
                    let byte = (step * 16 + n) as u8 + 1;
                    volume.write(at * BLOCK, vec![byte; (len * BLOCK) as usize].into(), false).await.unwrap();
                    holds[range].fill(byte);
                    continue;
                }
            }
            holds[range].fill(0);
        }
        if below(4) == 0 {
            let size = (512 + 256 * below(4)) * BLOCK;
            match size.cmp(&(holds.len() as u64)) {
                std::cmp::Ordering::Less => volume.shrink(size, true).await.unwrap(),
                std::cmp::Ordering::Greater => from.grow(&volume, size).await,
                std::cmp::Ordering::Equal => {}
            }
            holds.resize(size as usize, 0);
        }
        let snapshot = format!("s{step:02}");
        let label = Label { name: snapshot.clone(), taken_unix_millis: step + 1, ..Label::default() };
        volume.take_snapshot(label).await.unwrap();
        // Some are never whole.
        for reads in [below(4), below(4), u64::MAX].into_iter().skip(below(3) as usize).take(1 + below(3) as usize) {
            let copying = to.open().await;
            match copy(&from, &copying, &snapshot, reads).await {
                Ok(_) => drop(done.insert(snapshot.clone(), holds.clone())),
                Err(error) => assert!(error.to_string().contains("it breaks off"), "seed {seed}: {error}"),
            }
            end(&mut to, copying, below(2) == 0).await;
        }
        for (snapshot, holds) in &done {
            assert!(all_of(&to.past(snapshot).await).await == *holds, "seed {seed}, step {step}: {snapshot}");
        }
    }
    volume.close().await.unwrap();
    to.open().await.close().await.unwrap();
    let store: Arc<dyn Store> = to.store.clone();
    let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// What is there already is found, and what nobody copied is not taken for it.
#[tokio::test(start_paused = true)]
async fn what_differs_is_copied_and_what_is_something_else_is_refused() {
    let random = Random::seeded(1);
    let from = Place::new(&random, None).await;
    let volume = from.open().await;
    let to = Place::new(&random, Some(CopyOf { uuid: volume.meta().uuid, under_way: None })).await;
    let label = |name: &str| Label { name: name.into(), taken_unix_millis: 1, ..Label::default() };
    volume.write(0, vec![1; 512 << 10].into(), false).await.unwrap();
    volume.take_snapshot(label("a")).await.unwrap();
    volume.write(64 << 10, vec![2; 64 << 10].into(), false).await.unwrap();
    volume.take_snapshot(label("b")).await.unwrap();
    let copied = |since: Option<&str>, bytes| Some(Copied { since: since.map(str::to_owned), bytes });
    let copying = to.open().await;
    assert_eq!(copy(&from, &copying, "a", u64::MAX).await.unwrap(), copied(None, 512 << 10));
    assert_eq!(copy(&from, &copying, "b", u64::MAX).await.unwrap(), copied(Some("a"), 64 << 10));
    assert_eq!(copy(&from, &copying, "b", 0).await.unwrap(), None);
    // Also what is in the journal only was written by somebody else.
    copying.write(0, vec![9; 4096].into(), false).await.unwrap();
    volume.take_snapshot(label("c")).await.unwrap();
    let told = copy(&from, &copying, "c", u64::MAX).await.unwrap_err().to_string();
    assert!(told.contains("was changed by somebody else since its last snapshot"), "{told}");
    copying.close().await.unwrap();
    let other = Place::new(&random, None).await;
    let copying = other.open().await;
    let told = copy(&from, &copying, "a", u64::MAX).await.unwrap_err().to_string();
    assert!(told.contains("is no copy; give another name with --as"), "{told}");
    copying.close().await.unwrap();
    volume.close().await.unwrap();
}
