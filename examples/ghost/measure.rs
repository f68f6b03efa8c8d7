//! What is measured, one function for each line or two of the table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ashlar::device::Device;
use ashlar::gc;
use ashlar::outside::lock;
use ashlar::volume::{Options, Volume};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

use crate::Arguments;
use crate::setting::{CACHE, Setting, disk_to_kill};
use crate::world::shape::BLOCK;

/// Random reads of a cold volume.
const READS: usize = 101;

/// Checkpoints of a volume that is all but idle.
const CHECKPOINTS: u64 = 8;

/// How long is waited for deletions.
const DELETIONS: Duration = Duration::from_secs(20);

const MIB: f64 = (1 << 20) as f64;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// Opening a volume that was closed, and reading single blocks of it at random, one after the other.
pub async fn open(arguments: &Arguments) -> Map<String, Value> {
    let setting = Setting::new(arguments, 0).await;
    setting.ghost.set_round_trip(arguments.round_trip);
    let (before, began) = (setting.counted(None), Instant::now());
    let volume = setting.open(&Options::default(), setting.disk()).await;
    let (opened, took) = (setting.counted(Some(before)), began.elapsed());
    let (mut round_trips, mut times) = (Vec::new(), Vec::new());
    for _ in 0..READS {
        let block = setting.random.below(setting.ghost.shape.blocks);
        let (before, began) = (setting.counted(None), Instant::now());
        setting.check(&volume, block, 0).await;
        times.push(began.elapsed());
        round_trips.push(setting.counted(Some(before)).waves);
    }
    round_trips.sort_unstable();
    times.sort_unstable();
    object(json!({
        "root_bytes": setting.ghost.root_bytes,
        "map_bytes": setting.ghost.map_bytes(),
        "segments": setting.ghost.shape.segments,
        "open_closed": { "requests": opened.requests(), "seconds": took.as_secs_f64() },
        "read": { "round_trips": round_trips[READS / 2], "p50_ms": times[READS / 2].as_secs_f64() * 1e3, "p99_ms": times[READS - 1].as_secs_f64() * 1e3 },
    }))
}

/// Single writes, each of which is in the store and in a checkpoint before the next one comes.
pub async fn idle(arguments: &Arguments) -> Map<String, Value> {
    let setting = Setting::new(arguments, 0).await;
    setting.ghost.set_round_trip(arguments.round_trip);
    let options = Options { checkpoint_interval: Duration::from_millis(500), ..Options::default() };
    let volume = setting.open(&options, setting.disk()).await;
    // The first one covers the fence, too.
    let mut first = None;
    for _ in 0..=CHECKPOINTS {
        let before = setting.counted(None);
        let block = setting.random.below(setting.ghost.shape.blocks);
        volume.write(block * BLOCK, vec![7; BLOCK as usize].into(), true).await.unwrap();
        while setting.counted(Some(before)).checkpoints_put == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(arguments.round_trip * 20).await;
        first.get_or_insert_with(|| setting.counted(None));
    }
    let all = setting.counted(first);
    object(json!({
        "idle": {
            "puts": all.puts as f64 / CHECKPOINTS as f64,
            "bytes": (all.segment_bytes + all.checkpoint_bytes) as f64 / CHECKPOINTS as f64,
        },
    }))
}

/// Random writes of single blocks at depth 32 until they are in the store: how fast, for how much processor time, what is put for
/// the map, how much memory that takes while it goes on and after a quiet while, and for how long the lock is held.
pub async fn write(arguments: &Arguments) -> Map<String, Value> {
    let setting = Setting::new(arguments, 0).await;
    setting.ghost.set_round_trip(arguments.round_trip);
    let options = Options::default();
    let volume = setting.open(&options, setting.disk()).await;
    let watched = tokio::spawn(most_memory(setting.behind.clone()));
    lock::watch(true);
    let blocks = arguments.write.as_u64() / BLOCK;
    let (before, began, cpu_before) = (setting.counted(None), Instant::now(), processor_time());
    let written = setting.write_at_random(&volume, blocks).await;
    volume.save().await.unwrap();
    let (took, cpu) = (began.elapsed(), processor_time() - cpu_before);
    let while_writing = setting.counted(Some(before));
    setting.check_some(&volume, &written).await;
    let longest = longest_holds();
    watched.abort();
    let most = watched_memory();
    tokio::time::sleep(arguments.quiet).await;
    let (quiet, map) = (resident().saturating_sub(setting.behind.total_bytes()), volume.status().map_memory);
    let all = setting.counted(Some(before));
    let gib = arguments.write.as_u64() as f64 / f64::from(1 << 30);
    object(json!({
        "write": {
            "iops": blocks as f64 / took.as_secs_f64(),
            "cpu_seconds_per_gib": cpu.saturating_sub(while_writing.ghost_cpu).as_secs_f64() / gib,
            "put_per_byte": all.checkpoint_bytes as f64 / arguments.write.as_u64() as f64,
            "checkpoints": all.checkpoints_put,
            "gets": while_writing.gets,
        },
        "memory": {
            "most": most, "bounds": bounds(&options), "quiet": quiet,
            // The cache, and the map.
            "on_purpose": CACHE + map,
        },
        "lock": longest,
    }))
}

/// The longest holds of the lock since it is watched: on the clock, in processor time, and by place; it is watched no more.
fn longest_holds() -> Value {
    let holds = lock::take_holds();
    lock::watch(false);
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let longest = |of: fn(&lock::Holds) -> Duration| {
        let (place, holds) = holds.iter().max_by_key(|(_, holds)| of(holds)).unwrap();
        json!({ "ms": millis(of(holds)), "at": format!("{}:{}", place.0, place.1) })
    };
    let is_long = |holds: &&lock::Holds| holds.longest_cpu > Duration::from_millis(1);
    let places: Map<String, Value> = holds
        .iter()
        .filter(|(_, holds)| is_long(holds))
        .map(|(place, holds)| (format!("{}:{}", place.0, place.1), millis(holds.longest_cpu).into()))
        .collect();
    json!({ "clock": longest(|holds| holds.longest), "cpu": longest(|holds| holds.longest_cpu), "cpu_ms_above_1": places })
}

/// What memory is bounded by (`docs/memory.md`): dirty bytes, uploads, collection, the map and its merges, the cache.
fn bounds(options: &Options) -> u64 {
    let uploads = u64::from(options.upload_window) * 2 * options.segment_size;
    let collection = 3 * options.gc.batch + options.gc.batch / 2 + 4 * options.segment_size;
    let merges = (18 << 20) + (16 << 20);
    options.dirty_bytes + uploads + collection + options.map_memory + merges + CACHE
}

static MOST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn watched_memory() -> u64 {
    MOST.load(std::sync::atomic::Ordering::Relaxed)
}

/// Keeps the most memory that the process took at any moment, but for the objects of the store.
async fn most_memory(behind: ashlar::store::memory::MemoryStore) {
    MOST.store(0, std::sync::atomic::Ordering::Relaxed);
    loop {
        let now = resident().saturating_sub(behind.total_bytes());
        MOST.fetch_max(now, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap()
}

/// Opening after a server was killed that had written 1 GiB since its last checkpoint, and then giving all of the volume up.
pub async fn kill(arguments: &Arguments) -> Map<String, Value> {
    let setting = Setting::new(arguments, 0).await;
    let day = Duration::from_secs(24 * 3600);
    let options = Options { checkpoint_bytes: 1 << 40, checkpoint_interval: day, ..Options::default() };
    let disk = disk_to_kill();
    let volume = setting.open(&options, Arc::new(disk.clone())).await;
    // A little less: at so many blocks a checkpoint is made whatever the options say.
    let written = setting.write_at_random(&volume, ((1 << 30) - (2 << 20)) / BLOCK).await;
    volume.save().await.unwrap();
    let segments = setting.counted(None).puts;
    let disk = disk.kill();
    drop(volume);
    setting.ghost.set_round_trip(arguments.round_trip);
    let (before, began) = (setting.counted(None), Instant::now());
    let mut options = Options { checkpoint_interval: Duration::from_millis(500), ..Options::default() };
    options.gc.quiet_after = day;
    let volume = setting.open(&options, Arc::new(disk)).await;
    let (opened, took) = (setting.counted(Some(before)), began.elapsed());
    setting.check_some(&volume, &written).await;
    let mut found = object(json!({
        "open": {
            "requests": opened.requests(), "gets": opened.gets, "lists": opened.lists, "puts": opened.puts,
            "seconds": took.as_secs_f64(), "segments_since": segments,
        },
    }));
    found.extend(trim(arguments, &setting, &volume).await);
    found
}

/// TRIM of the whole volume: how long it takes, and what is asked of the store until all that is left to do is deleting.
async fn trim(arguments: &Arguments, setting: &Setting, volume: &Volume) -> Map<String, Value> {
    settle(setting).await;
    lock::watch(true);
    let (before, began) = (setting.counted(None), Instant::now());
    volume.trim(0, arguments.size.as_u64(), false).await.unwrap();
    volume.flush().await.unwrap();
    let took = began.elapsed();
    // A checkpoint later everything that the volume had is known to be dead.
    let most = || volume.status().gc.doomed_objects.max(setting.counted(Some(before)).objects_deleted);
    while most() < setting.ghost.shape.segments / 2 && began.elapsed() < DELETIONS * 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let until = began.elapsed();
    let asked = setting.counted(Some(before));
    while volume.status().gc.doomed_objects > 0 && began.elapsed() < until + DELETIONS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let deleted = setting.counted(Some(before));
    let longest = longest_holds();
    object(json!({
        "trim": {
            "seconds": took.as_secs_f64(),
            "until_only_deletes": until.as_secs_f64(),
            "requests": asked.requests(),
            "deletes": deleted.deletes,
            "objects_deleted": deleted.objects_deleted,
            "left": volume.status().gc.doomed_objects,
            "bytes_put": asked.segment_bytes + asked.checkpoint_bytes,
            "lock": longest,
        },
    }))
}

/// Waits until nothing is asked of the store any more, but not for ever.
async fn settle(setting: &Setting) {
    for _ in 0..30 {
        let before = setting.counted(None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let since = setting.counted(Some(before));
        if since.requests() + since.deletes == 0 {
            return;
        }
    }
}

/// Collection of a volume of which one segment of ten is a quarter live, with little memory for the map and none of it there.
pub async fn collection(arguments: &Arguments) -> Map<String, Value> {
    let setting = Setting::new(arguments, 10).await;
    setting.ghost.set_round_trip(arguments.round_trip);
    let mut options = Options { map_memory: 16 << 20, ..Options::default() };
    options.gc.quiet_percent = 105;
    options.gc.quiet_after = Duration::from_millis(100);
    lock::watch(true);
    let volume = setting.open(&options, setting.disk()).await;
    let (before, began) = (setting.counted(None), Instant::now());
    let moved = |volume: &Volume| volume.status().since_open.bytes_moved as f64 / MIB;
    // What one survey of the map finds work for, whole, or all that there is.
    let hollow = setting.ghost.shape.segments / 10 * setting.ghost.shape.segment_blocks / 4 * BLOCK;
    let sizes = gc::Sizes { segment: options.segment_size, block: BLOCK };
    let surveyed = gc::to_survey(&options.gc, setting.ghost.map_bytes(), sizes).batch;
    let enough = 0.9 * surveyed.min(hollow) as f64 / MIB;
    while began.elapsed() < arguments.patience && moved(&volume) < enough {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (all, took) = (setting.counted(Some(before)), began.elapsed());
    let longest = longest_holds();
    object(json!({
        "gc": {
            "moved_mib": moved(&volume), "enough_mib": enough, "gets": all.gets, "seconds": took.as_secs_f64(),
            "mib_got": setting.ghost.counts.bytes_got.load(std::sync::atomic::Ordering::Relaxed) as f64 / MIB,
            "lock": longest,
        },
    }))
}
