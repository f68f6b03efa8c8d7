//! A volume that an older ashlar wrote: it is served, and moves over as it is written.
//!
//! `tests/golden/volume-v2` is the folder of a store as the last ashlar before the layered map left it, whose map is cut into fixed pages;
//! `tests/golden/volume-v3` as the last one before the table of segments had pages left it, which stands in the root. Two runs of a server
//! each, with data, zeroes in part of a page and in whole ones, overwritten and given up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods)] // golden files are read where they lie

#[path = "support/outside.rs"]
mod outside;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ashlar::check;
use ashlar::device::{Allocation, Device};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::Random;
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, Store};
use ashlar::volume::{OpenFlags, Options, Outside, Volume, VolumeName};
use bytes::Bytes;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 300 * MIB;

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// A store with what the older ashlar left.
async fn older(folder: &str) -> Arc<dyn Store> {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { files(&entry, found) } else { found.push(entry) }
        }
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut found = Vec::new();
    files(&root, &mut found);
    let store = MemoryStore::default();
    for path in found {
        let key = Key::new(path.strip_prefix(&root).unwrap().to_str().unwrap()).unwrap();
        store.put(&key, vec![Bytes::from(std::fs::read(&path).unwrap())]).await.unwrap();
    }
    Arc::new(store)
}

async fn open(store: &Arc<dyn Store>, disk: &Arc<CrashDisk>, options: Options) -> Arc<Volume> {
    let outside = Outside {
        budget: ashlar::volume::Budget::new(&options),
        ..outside::plain(store.clone(), disk.clone(), Random::seeded(8))
    };
    Volume::open(outside, &name(), options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// What was written to it: of each area the byte.
fn image() -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    let areas = [
        (0, 4096, b'a'),
        (70 * MIB, 65536, b'b'),
        (64 * MIB - 4096, 4096, b'c'),
        (70 * MIB + 8192, 4096, b'e'),
        (290 * MIB, 12288, b'f'),
    ];
    for (at, len, byte) in areas {
        image[at as usize..(at + len) as usize].fill(byte);
    }
    image
}

async fn holds(volume: &Volume, image: &[u8]) {
    for (at, expected) in image.chunks(MIB as usize).enumerate() {
        let read = volume.read(at as u64 * MIB, MIB as u32).await.unwrap().concat();
        assert!(read == expected, "from MiB {at} on");
    }
}

async fn is_clean(store: &Arc<dyn Store>) {
    let report = check::check(store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    assert_eq!(report.orphans, Vec::<String>::new());
}

fn data(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 4096])
}

#[tokio::test(start_paused = true)]
async fn an_older_volume_is_served_as_it_is_and_moves_over_as_it_is_written() {
    // All of the map in memory, and hardly any of it.
    let memory = [256 << 20, 16 << 10];
    let cases = memory.into_iter().flat_map(|map_memory| [("volume-v2", 6, map_memory), ("volume-v3", 1, map_memory)]);
    for (folder, older_pages, map_memory) in cases {
        let options = Options { map_memory, ..Options::default() };
        let (store, disk, mut image) = (older(folder).await, Arc::new(CrashDisk::new(7)), image());
        is_clean(&store).await;
        let volume = open(&store, &disk, options.clone()).await;
        assert_eq!(volume.older_pages(), older_pages);
        holds(&volume, &image).await;
        let zeroed = volume.extents(130 * MIB, MIB, 10).await.unwrap();
        assert_eq!(zeroed.iter().map(|run| run.allocation).collect::<Vec<_>>(), [Allocation::Zero]);
        for (n, at) in [0, 70 * MIB, 130 * MIB, 200 * MIB, 290 * MIB].into_iter().enumerate() {
            let byte = n as u8 + 1;
            volume.write(at, data(byte), true).await.unwrap();
            image[at as usize..at as usize + 4096].fill(byte);
        }
        volume.trim(70 * MIB + 16384, 8192, true).await.unwrap();
        image[(70 * MIB + 16384) as usize..(70 * MIB + 24576) as usize].fill(0);
        tokio::time::sleep(Duration::from_secs(120)).await;
        holds(&volume, &image).await;
        assert_eq!(volume.older_pages(), 0, "so small a map moves over with its first checkpoint");
        volume.close().await.unwrap();
        is_clean(&store).await;
        let volume = open(&store, &disk, options).await;
        holds(&volume, &image).await;
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_moved_over_with_nothing_written() {
    for folder in ["volume-v2", "volume-v3"] {
        let (store, disk) = (older(folder).await, Arc::new(CrashDisk::new(7)));
        let volume = open(&store, &disk, Options::default()).await;
        volume.merge_map();
        volume.close().await.unwrap();
        is_clean(&store).await;
        let volume = open(&store, &disk, Options::default()).await;
        assert_eq!(volume.older_pages(), 0);
        holds(&volume, &image()).await;
        volume.close().await.unwrap();
    }
}
