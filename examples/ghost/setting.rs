//! A ghost, the volume on it, and those who use it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::disk::local::LocalDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{Budget, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeName, Witness};
use bytes::Bytes;

use crate::Arguments;
use crate::world::shape::{BLOCK, Place, Shape};
use crate::world::{self, Ghost, NAME};

/// Clients that ask at the same time.
pub const CLIENTS: u64 = 32;
pub const CACHE: u64 = 64 << 20;

/// See the module.
pub struct Setting {
    pub ghost: Arc<Ghost>,
    /// What the program wrote itself.
    pub behind: MemoryStore,
    pub random: Random,
    folder: tempfile::TempDir,
    opened: AtomicU64,
}

/// Counts of requests as of a moment, or of a while.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub puts: u64,
    pub gets: u64,
    pub lists: u64,
    pub deletes: u64,
    pub objects_deleted: u64,
    pub checkpoints_put: u64,
    pub segment_bytes: u64,
    pub checkpoint_bytes: u64,
    pub waves: u64,
    pub ghost_cpu: Duration,
}

impl Counted {
    /// All but deletions.
    pub fn requests(&self) -> u64 {
        self.puts + self.gets + self.lists
    }
}

impl Setting {
    /// A ghost, of which one segment of so many is hollow.
    pub async fn new(arguments: &Arguments, hollow_every: u64) -> Setting {
        let size = arguments.size.as_u64();
        let default = if size >= 16 << 40 { 64 << 20 } else { 8 << 20 };
        let segment = arguments.segment.map_or(default, |bytes| bytes.as_u64());
        let (behind, random) = (MemoryStore::new(), Random::seeded(size));
        let shape = Shape { hollow_every, ..Shape::new(size, segment, 1) };
        let folder = tempfile::tempdir().unwrap();
        let opened = AtomicU64::new(0);
        if !arguments.real {
            let ghost = Ghost::new(shape, Arc::new(behind.clone()), &random).await;
            return Setting { ghost, behind, random, folder, opened };
        }
        let meta = world::create(&shape, &behind, &random).await;
        let ghost = Ghost::real(shape.clone(), &meta, Arc::new(behind.clone()));
        let setting = Setting { ghost, behind: behind.clone(), random, folder, opened };
        setting.fill().await;
        // Counts from the beginning again.
        Setting { ghost: Ghost::real(shape, &meta, Arc::new(behind)), ..setting }
    }

    /// Writes the volume as if it were a ghost: every block once, in the order of their places.
    async fn fill(&self) {
        let mut options = Options::default();
        // Nothing is collected meanwhile.
        options.gc.quiet_after = Duration::from_secs(24 * 3600);
        let volume = self.open(&options, self.disk()).await;
        let shape = &self.ghost.shape;
        for segment in 0..shape.segments {
            for rank in 0..shape.segment_blocks {
                let block = shape.block(Place { segment, rank });
                volume.write(block * BLOCK, shape.content(block, 0).into(), false).await.unwrap();
            }
        }
        for block in (0..shape.blocks).filter(|block| !shape.is_live(shape.place(*block))) {
            volume.trim(block * BLOCK, BLOCK, false).await.unwrap();
        }
        volume.close().await.unwrap();
    }

    /// A directory for a journal.
    pub fn disk(&self) -> Arc<dyn Disk> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        Arc::new(LocalDisk::new(self.folder.path().join(number.to_string()), Workers::Threads))
    }

    /// Opens the volume as a server does, with its journal on `disk`.
    pub async fn open(&self, options: &Options, disk: Arc<dyn Disk>) -> Arc<Volume> {
        let outside = Outside {
            store: self.ghost.clone(),
            disk,
            cache: Arc::new(BlockCache::in_memory(CACHE)),
            budget: Budget::new(options),
            clock: Clock::System,
            random: self.random.clone(),
            workers: Workers::Threads,
            server: ServerIdentity { uuid: self.random.uuid(), name: "one".into() },
            secrets: Secrets::default(),
            witness: Witness::default(),
        };
        let name = VolumeName::new(NAME).unwrap();
        let journal_options = journal::Options::default();
        Volume::open(outside, &name, options.clone(), journal_options, OpenFlags::default()).await.unwrap()
    }

    /// Has [`CLIENTS`] clients write single blocks at random, until they wrote so many together. Returns the versions of all blocks.
    pub async fn write_at_random(&self, volume: &Arc<Volume>, blocks: u64) -> HashMap<u64, u64> {
        let each = blocks / CLIENTS;
        let clients = (0..CLIENTS).map(|client| {
            let (ghost, volume, random) = (self.ghost.clone(), volume.clone(), self.random.clone());
            tokio::spawn(async move {
                let mut written = HashMap::new();
                for version in 1..=each {
                    // Blocks of its own, so that it knows what stands there.
                    let block = random.below(ghost.shape.blocks / CLIENTS) * CLIENTS + client;
                    let data = ghost.aside(|| Bytes::from(ghost.shape.content(block, version)));
                    volume.write(block * BLOCK, data, false).await.unwrap();
                    written.insert(block, version);
                }
                written
            })
        });
        let mut written = HashMap::new();
        for client in clients.collect::<Vec<_>>() {
            written.extend(client.await.unwrap());
        }
        written
    }

    /// Reads a block and proves that it is what it must be.
    pub async fn check(&self, volume: &Volume, block: u64, version: u64) {
        let read = volume.read(block * BLOCK, BLOCK as u32).await.unwrap().concat();
        let must = match version {
            0 => self.ghost.content(block).unwrap_or(vec![0; BLOCK as usize]),
            version => self.ghost.shape.content(block, version),
        };
        assert!(read == must, "block {block} is not what it must be (version {version})");
    }

    /// Proves some of what was written, and some of what was not.
    pub async fn check_some(&self, volume: &Volume, written: &HashMap<u64, u64>) {
        for (block, version) in written.iter().take(40) {
            self.check(volume, *block, *version).await;
        }
        for _ in 0..40 {
            let block = self.random.below(self.ghost.shape.blocks);
            self.check(volume, block, written.get(&block).copied().unwrap_or(0)).await;
        }
    }

    /// The counts since `before`, or since the beginning.
    pub fn counted(&self, before: Option<Counted>) -> Counted {
        let counts = &self.ghost.counts;
        let get = |counter: &AtomicU64, before: Option<u64>| counter.load(Ordering::Relaxed) - before.unwrap_or(0);
        let [segments, checkpoints] = &counts.bytes_put;
        Counted {
            puts: get(&counts.puts, before.map(|b| b.puts)),
            gets: get(&counts.gets, before.map(|b| b.gets)),
            lists: get(&counts.lists, before.map(|b| b.lists)),
            deletes: get(&counts.deletes, before.map(|b| b.deletes)),
            objects_deleted: get(&counts.objects_deleted, before.map(|b| b.objects_deleted)),
            checkpoints_put: get(&counts.checkpoints_put, before.map(|b| b.checkpoints_put)),
            segment_bytes: get(segments, before.map(|b| b.segment_bytes)),
            checkpoint_bytes: get(checkpoints, before.map(|b| b.checkpoint_bytes)),
            waves: get(&counts.waves, before.map(|b| b.waves)),
            ghost_cpu: Duration::from_nanos(get(&counts.cpu_nanos, before.map(|b| b.ghost_cpu.as_nanos() as u64))),
        }
    }
}

/// A disk whose state after a kill can be had.
pub fn disk_to_kill() -> CrashDisk {
    CrashDisk::new(1)
}
