//! What a world is like: how its store and its disks behave, what its volumes are like, and how little they may have.

use std::time::Duration;

use ashlar::disk::crash::{CrashDisk, DiskFaults};
use ashlar::format::segment::Durability;
use ashlar::gc;
use ashlar::outside::Random;
use ashlar::store::faults::FaultOptions;
use ashlar::store::limit::LimitOptions;
use ashlar::volume::{FencedBy, Options};

use crate::life::Way;

/// See the module.
#[derive(Clone)]
pub struct Climate {
    pub options: Options,
    /// From the servers to the store.
    pub way: Way,
    pub disk_faults: DiskFaults,
    /// Volumes of one server.
    pub volumes: u64,
    /// The first volume has hundreds of pages.
    pub is_wide: bool,
    pub has_disk_cache: bool,
    /// Bytes of a server's cache in memory.
    pub cache_memory: u64,
}

impl Climate {
    /// A random one.
    pub fn draw(random: &Random, fenced_by: FencedBy) -> Climate {
        let pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
        Climate {
            options: options(random),
            way: way(random, fenced_by),
            disk_faults: DiskFaults {
                write: pick(&[0, 0, 0, 5]) as u32,
                sync: pick(&[0, 0, 0, 20]) as u32,
                delay_max: Duration::from_millis(pick(&[0, 2, 30])),
                ..DiskFaults::default()
            },
            volumes: pick(&[1, 1, 2, 3]),
            is_wide: random.below(4) == 0,
            has_disk_cache: random.below(2) == 0,
            cache_memory: pick(&[0, 64 << 10]),
        }
    }

    /// The same without faults and want, with one small volume.
    pub fn fair(&self) -> Climate {
        let (faults, limit) = (FaultOptions::default(), LimitOptions::default());
        let way = Way { faults, delete_delay: Duration::ZERO, limit, ..self.way };
        Climate { way, disk_faults: DiskFaults::default(), volumes: 1, is_wide: false, ..self.clone() }
    }

    /// A new disk.
    pub fn disk(&self, random: &Random) -> CrashDisk {
        let disk = CrashDisk::new(random.below(u64::MAX));
        disk.set_faults(self.disk_faults);
        disk
    }
}

fn options(random: &Random) -> Options {
    let pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
    let dirty_bytes = pick(&[512 << 10, 512 << 10, 4 << 20]);
    let map_memory = pick(&[0, 64 << 10, 1 << 20]);
    let mut options = Options {
        durability: if random.below(2) == 0 { Durability::Store } else { Durability::Journal },
        segment_size: 64 << 10,
        // All of them at once would be far too few for one.
        digest_slots: 2,
        writeback_delay: Duration::from_millis(pick(&[10, 200, 5000])),
        dirty_bytes,
        // All volumes together may have no more than each.
        total_dirty_bytes: dirty_bytes * pick(&[1, 4]),
        total_upload_bytes: pick(&[256 << 10, 8 << 20]),
        upload_window: pick(&[1, 1, 2, 5]) as u32,
        map_memory,
        total_map_memory: map_memory * pick(&[1, 4]),
        read_parallel: pick(&[1, 2, 32]) as u32,
        // Every page and every frame has a request of its own, or what lies together is read together.
        read_max: pick(&[1, 1 << 20]),
        checkpoint_bytes: pick(&[4 << 10, 64 << 10, 1 << 30]),
        checkpoint_interval: Duration::from_millis(pick(&[50, 1000, 30_000])),
        retry_pause_max: Duration::from_millis(500),
        gc: gc::Options {
            busy_percent: pick(&[105, 110, 145]) as u32,
            quiet_percent: 105,
            limit_percent: pick(&[146, 200]) as u32,
            quiet_after: Duration::from_millis(pick(&[10, 500, 5000])),
            share_percent: pick(&[100, 25, 1]) as u32,
            sweep_interval: Duration::from_secs(pick(&[10, 86_400])),
            sweep_grace: Duration::from_secs(pick(&[1, 3600])),
            garbage_min: pick(&[1, 1, 16 << 10]),
            batch: pick(&[64 << 10, 256 << 10]),
            merge_count: pick(&[2, 8, 64]) as u32,
            ..gc::Options::default()
        },
        ..Options::default()
    };
    options.gc.hold_percent = options.gc.limit_percent + 1;
    options
}

fn way(random: &Random, fenced_by: FencedBy) -> Way {
    let pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
    let faults = FaultOptions {
        delay_spread: Duration::from_millis(pick(&[1, 20, 100])),
        refuse: pick(&[0, 0, 20, 200]) as u32,
        throttle: pick(&[0, 0, 20]) as u32,
        fail_after: pick(&[0, 0, 20, 200]) as u32,
        time_out: pick(&[0, 0, 20]) as u32,
        time_out_after: Duration::from_secs(2),
        short: pick(&[0, 0, 20]) as u32,
        half: pick(&[0, 0, 10, 50]) as u32,
        ..FaultOptions::default()
    };
    // A store that keeps what came of a broken PUT, and overwrites, is refused.
    let faults = if fenced_by == FencedBy::Verified { FaultOptions { half: 0, ..faults } } else { faults };
    let permits = |random: &Random, plenty: usize| [1, 2, plenty][random.below(3) as usize];
    Way {
        faults,
        delete_delay: Duration::from_millis(pick(&[0, 0, 300, 2000])),
        limit: LimitOptions {
            reads: permits(random, 64),
            writes: permits(random, 32),
            deletes: permits(random, 4),
            background: permits(random, 8),
        },
        fenced_by,
    }
}
