//! A reply that its client does not fetch keeps little more than its own length, whatever it was cut from.

use std::path::Path;
use std::sync::Arc;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::local::LocalDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::Store;
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{
    self, Budget, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName, Witness,
};

use crate::counting::Count;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// A new volume over a memory store, with its journal in `folder`; nothing is cached.
pub async fn open(size: u64, options: Options, folder: &Path) -> Arc<Volume> {
    open_over(Arc::new(MemoryStore::default()), size, options, folder).await
}

/// The same over another store.
pub async fn open_over(store: Arc<dyn Store>, size: u64, options: Options, folder: &Path) -> Arc<Volume> {
    open_created(store, CreateOptions { size, ..CreateOptions::default() }, options, folder).await
}

/// The same, with all that can be chosen.
pub async fn open_created(
    store: Arc<dyn Store>,
    created: CreateOptions,
    options: Options,
    folder: &Path,
) -> Arc<Volume> {
    let random = Random::seeded(1);
    let name = VolumeName::new("v").unwrap();
    volume::create(&*store, &random, &Clock::System, &name, created).await.unwrap();
    let outside = Outside {
        store,
        disk: Arc::new(LocalDisk::new(folder.to_owned(), Workers::Inline)) as Arc<dyn Disk>,
        cache: Arc::new(BlockCache::in_memory(0)),
        budget: Budget::new(&options),
        clock: Clock::System,
        random,
        workers: Workers::Inline,
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "one".into() },
        secrets: Secrets::default(),
        witness: Witness::default(),
    };
    Volume::open(outside, &name, options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// Compresses to nothing, so that what the store holds of it does not count for much.
fn pattern(len: u64) -> Vec<u8> {
    vec![0xa5; len as usize]
}

#[tokio::test(start_paused = true)]
async fn a_small_reply_does_not_keep_the_large_write_that_it_was_cut_from() {
    let (mut count, folder) = (Count::begin(), tempfile::tempdir().unwrap());
    let volume = open(64 * MIB, Options::default(), folder.path()).await;
    let mut replies = Vec::new();
    count.again();
    for i in 0..64 {
        volume.write(i * MIB, pattern(MIB).into(), false).await.unwrap();
        // While it is in the buffer, whole and after a part of it was overwritten.
        replies.push(volume.read(i * MIB + 512, 512).await.unwrap());
        volume.write(i * MIB, pattern(BLOCK).into(), false).await.unwrap();
        replies.push(volume.read(i * MIB + 2 * BLOCK, 512).await.unwrap());
        volume.flush().await.unwrap();
    }
    assert!(replies.iter().all(|reply| reply.concat() == [0xa5; 512]));
    println!("{} KiB stay", count.now() >> 10);
    let kept = 8 * MIB;
    assert!(count.now() < kept, "{} bytes are kept by {} replies of 512 bytes", count.now(), replies.len());
}

#[tokio::test(start_paused = true)]
async fn a_small_reply_does_not_keep_the_frame_that_it_was_cut_from() {
    let (mut count, folder) = (Count::begin(), tempfile::tempdir().unwrap());
    let volume = open(64 * MIB, Options::default(), folder.path()).await;
    for i in 0..64 {
        volume.write(i * MIB, pattern(MIB).into(), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    count.again();
    let mut replies = Vec::new();
    for i in 0..1024 {
        replies.push(volume.read(i * (64 << 10) + 512, 512).await.unwrap());
    }
    assert!(replies.iter().all(|reply| reply.concat() == [0xa5; 512]));
    println!("{} KiB stay", count.now() >> 10);
    assert!(count.now() < 8 * MIB, "{} bytes are kept by {} replies of 512 bytes", count.now(), replies.len());
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_large_write_that_is_committed_keeps_no_memory_of_the_rest() {
    const WRITE: u64 = 16 * MIB;
    let (mut count, folder) = (Count::begin(), tempfile::tempdir().unwrap());
    let options = Options { segment_size: MIB, upload_window: 1, dirty_bytes: WRITE, ..Options::default() };
    let volume = open(64 * MIB, options, folder.path()).await;
    count.again();
    // Its last part waits in the buffer for more, the others are in the store.
    volume.write(0, pattern(WRITE + BLOCK).into(), false).await.unwrap();
    let dirty = volume.status().dirty_bytes;
    println!("{} KiB stay for {} KiB dirty", count.now() >> 10, dirty >> 10);
    assert!(dirty < 4 * MIB, "{dirty} bytes are dirty");
    assert!(count.now() < dirty + 4 * MIB, "{} bytes are kept for {dirty} dirty ones", count.now());
}
