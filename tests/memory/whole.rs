//! `memory` set to something small: several volumes under load take no more than that together, and the cache has what the others leave.

use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::config::{Effective, Flag, Inputs, load};
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::local::LocalDisk;
use ashlar::memory::keeper::keep;
use ashlar::memory::{Balance, Keeper, Limits, Seen};
use ashlar::outside::{Random, Workers};
use ashlar::store::buffers::Buffers;
use ashlar::store::file::FileStore;
use ashlar::volume::{Budget, Volume};

use crate::counting::{self, Count};
use crate::hanging::Hanging;
use crate::load::{Data, InFlight, MIB, Place, open_sized, write_much_of};

const MEMORY: u64 = 192 * MIB;
/// What may be taken before the cache has given way to it: it is looked again when half of this was taken.
const BETWEEN_LOOKS: u64 = MEMORY / 32;
const VOLUMES: usize = 6;
const WRITERS: usize = 8;
/// Bytes of one volume: all of them do not fit into memory.
const SIZE: u64 = 40 * MIB;
/// One read.
const READ: u32 = 1 << 20;
/// What one takes, beside what it waits for: 250 MiB a second.
const EACH_READ: Duration = Duration::from_millis(4);

fn config() -> Effective {
    let flag = |key, value: &str| Flag { name: "--x", key, value: value.to_owned() };
    let flags = vec![flag("memory", "192MiB"), flag("volume.segment_size", "1MiB"), flag("nbd.max_payload", "1MiB")];
    load(Inputs { flags, ..Inputs::default() }).unwrap()
}

/// What a server's keeper does, by what the allocator gave out.
struct Counted {
    before: u64,
    cache: Arc<BlockCache>,
    budget: Budget,
    in_flight: Arc<InFlight>,
    buffers: Buffers,
    volumes: Vec<Arc<Volume>>,
}

impl Keeper for Counted {
    fn look(&mut self) -> Seen {
        let used = self.budget.used();
        Seen {
            resident: Some(counting::now().saturating_sub(self.before)),
            others: self.in_flight.now()
                + used.dirty
                + used.uploads
                + used.collection
                + self.buffers.kept_bytes().0
                + self.buffers.spare_bytes()
                + self.cache.memory_beside(),
            map: self.volumes.iter().map(|volume| volume.map_memory()).sum(),
            cache: self.cache.memory_used(),
        }
    }

    fn cache(&self) -> u64 {
        self.cache.memory_size()
    }

    fn apply(&mut self, limits: &Limits) {
        self.cache.resize(limits.cache);
        self.budget.set_map_memory(limits.map);
    }
}

#[test]
fn several_volumes_under_load_take_no_more_than_memory_and_the_cache_has_the_rest() {
    // Time is virtual: it passes only when everybody waits, also for the disk.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true);
    runtime.build().unwrap().block_on(under_load());
}

async fn under_load() {
    let mut count = Count::begin();
    let folder = tempfile::tempdir().unwrap();
    let (config, random) = (config(), Random::seeded(1));
    let objects = FileStore::open(folder.path().join("store"), Workers::Threads, random).await.unwrap();
    let objects = objects.with_idle_buffers(config.store.idle_buffers);
    let buffers = objects.buffers();
    let store = Hanging::new(Arc::new(objects), "");
    let cache = Arc::new(BlockCache::elastic(config.cache.memory, config.division().cache_least(), None));
    let (budget, in_flight) = (Budget::new(&config.volume), Arc::new(InFlight::default()));
    let mut volumes = Vec::new();
    for n in 0..VOLUMES {
        let disk: Arc<dyn Disk> = Arc::new(LocalDisk::new(folder.path().join(format!("journal{n}")), Workers::Threads));
        let place = Place { store: &store, cache: &cache, budget: &budget, options: &config.volume };
        volumes.push(open_sized(disk, place, n, SIZE).await);
    }
    count.again();
    let keeper = Counted {
        before: counting::now(),
        cache: cache.clone(),
        budget: budget.clone(),
        in_flight: in_flight.clone(),
        buffers: buffers.clone(),
        volumes: volumes.clone(),
    };
    buffers.tell(budget.pressure());
    let keeping = tokio::spawn(keep(keeper, Balance::new(config.division().bounds()), budget.pressure().clone()));
    let write = |round: u64| {
        let writer = |n: usize| {
            let random = Random::seeded(100 * round + n as u64);
            tokio::spawn(write_much_of(
                SIZE,
                volumes[n % VOLUMES].clone(),
                random,
                12 * MIB,
                Data::Noise,
                in_flight.clone(),
            ))
        };
        (0..VOLUMES * WRITERS).map(writer).collect::<Vec<_>>()
    };
    let read_all = async || {
        for volume in &volumes {
            for at in (0..SIZE).step_by(READ as usize) {
                volume.read(at, READ).await.unwrap();
                tokio::time::sleep(EACH_READ).await;
            }
        }
    };
    let rest = async || tokio::time::sleep(Duration::from_secs(120)).await;
    let holds = |count: &Count, when: &str| {
        let (now, most, cached) = (count.now(), count.most(), cache.status().memory_used);
        println!("{when}: {} MiB, {} at most, {} of them in the cache", now / MIB, most / MIB, cached / MIB);
        assert!(most <= MEMORY + BETWEEN_LOOKS, "{when}: {most} bytes where {MEMORY} are allowed");
        cached
    };

    for writer in write(1) {
        writer.await.unwrap();
    }
    holds(&count, "after the first writes");
    for volume in &volumes {
        volume.flush().await.unwrap();
    }
    rest().await;
    read_all().await;
    let alone = holds(&count, "after reading");
    assert!(alone > MEMORY / 2, "{alone} bytes are in the cache that has nobody beside it");

    store.hang();
    let writers = write(2);
    rest().await;
    let dirty: u64 = volumes.iter().map(|volume| volume.status().dirty_bytes).sum();
    assert!(writers.iter().all(|writer| !writer.is_finished()), "everybody waits");
    assert!(dirty > config.volume.total_dirty_bytes * 9 / 10, "{dirty} bytes are dirty");
    let beside = holds(&count, "while the store hangs");
    assert!(beside + dirty / 2 < alone, "{beside} bytes are in the cache, and there were {alone}");

    store.go_on();
    for writer in writers {
        writer.await.unwrap();
    }
    for volume in &volumes {
        volume.flush().await.unwrap();
    }
    rest().await;
    read_all().await;
    let again = holds(&count, "after reading again");
    assert!(again > MEMORY / 2, "{again} bytes are in the cache, and there were {alone}");
    keeping.abort();
}
