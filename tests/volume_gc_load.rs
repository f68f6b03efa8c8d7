//! The bound on what is stored holds however fast the client and however slow the store: clients that never pause, over a
//! memory store behind a line with a round trip and a bandwidth. Time is virtual.
//!
//! The world is a sixteenth of a volume of 1 GiB behind 20 ms and 200 MB/s: live bytes, segments, bounds and bandwidth are
//! all divided by 16, so that requests, times and ratios are those of the large one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::outside::{Clock, Random};
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Volume, VolumeName};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use support::far::{Far, Fault};

const BLOCK: u64 = 4096;
const SCALE: u64 = 16;
const LIVE: u64 = (1 << 30) / SCALE;
const BLOCKS: u64 = LIVE / BLOCK;
/// Bytes a second, in each direction.
const BANDWIDTH: u64 = 200_000_000 / SCALE;

fn options() -> Options {
    let mut options = Options::default();
    options.segment_size /= SCALE;
    options.dirty_bytes /= SCALE;
    options.checkpoint_bytes /= SCALE;
    options.gc.batch /= SCALE;
    options
}

async fn open(store: &Arc<Far>, random: &Random, options: Options) -> Arc<Volume> {
    let name = VolumeName::new("v").unwrap();
    let created = CreateOptions { size: LIVE, ..CreateOptions::default() };
    volume::create(&**store, random, &Clock::System, &name, created).await.unwrap();
    let outside = support::outside::plain(store.clone(), Arc::new(CrashDisk::new(7)), random.clone());
    Volume::open(outside, &name, options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

/// Bytes that do not compress.
fn noise(random: &Random, blocks: u64) -> Bytes {
    let mut data = vec![0; (blocks * BLOCK) as usize];
    blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut data);
    data.into()
}

/// 1.6, and what a few segments under way are of a volume of this size: seeds 1 to 7 gave 1.61 to 1.68, as one change or another falls
/// just before a checkpoint or just after it.
const BOUND: f64 = 1.7;

/// What came of a run.
#[derive(Debug)]
struct Seen {
    /// The most that was stored for each live byte, at any moment.
    most: f64,
    puts_per_gib: f64,
    moved: f64,
    /// Of what the line can carry to the store, the part that was the client's.
    share: f64,
    /// The longest FLUSH.
    flush: Duration,
}

/// Overwrites blocks at random with 32 writers that never pause, after the volume was filled; `flushes`: one of
/// them flushes after each of its so many writes.
async fn hammer(volumes_worth: u64, flushes: Option<u64>, fault: Fault) -> Seen {
    let store = Arc::new(Far::new(BANDWIDTH, fault));
    let random = Random::seeded(7);
    let volume = open(&store, &random, options()).await;
    let model = Arc::new(Mutex::new(Vec::new()));
    for at in (0..BLOCKS).step_by(64) {
        let data = noise(&random, 64);
        volume.write(at * BLOCK, data.clone(), false).await.unwrap();
        model.lock().extend((0..64).map(|i| data.slice(i * BLOCK as usize..(i + 1) * BLOCK as usize)));
    }
    volume.flush().await.unwrap();
    let (puts, moved, began) = (store.puts(), volume.status().since_open.bytes_moved, Instant::now());
    let each = volumes_worth * BLOCKS / 32;
    let writers = (0..32u64).map(|writer| {
        let (volume, random, model) = (volume.clone(), random.clone(), model.clone());
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for i in 0..each {
                // Blocks of its own, so that it knows what stands there.
                let block = random.below(BLOCKS / 32) * 32 + writer;
                let data = noise(&random, 1);
                volume.write(block * BLOCK, data.clone(), false).await.unwrap();
                model.lock()[block as usize] = data;
                if writer == 0 && flushes.is_some_and(|every| i % every == 0) {
                    let asked = Instant::now();
                    volume.flush().await.unwrap();
                    longest = longest.max(asked.elapsed());
                }
            }
            longest
        })
    });
    let writers = futures::future::join_all(writers);
    tokio::pin!(writers);
    let mut most = 0;
    let ended = loop {
        tokio::select! {
            ended = &mut writers => break ended,
            () = tokio::time::sleep(Duration::from_millis(10)) => most = most.max(store.objects.total_bytes()),
        }
    };
    volume.flush().await.unwrap();
    let written = 32 * each * BLOCK;
    let (status, took) = (volume.status(), began.elapsed());
    if fault != Fault::NoReads {
        let model = model.lock().clone();
        is_as_written(&volume, &model).await;
    }
    Seen {
        most: most as f64 / LIVE as f64,
        puts_per_gib: (store.puts() - puts) as f64 * LIVE as f64 / written as f64,
        moved: (status.since_open.bytes_moved - moved) as f64 / written as f64,
        share: written as f64 / took.as_secs_f64() / BANDWIDTH as f64,
        flush: ended.into_iter().map(Result::unwrap).max().unwrap(),
    }
}

/// Every block is as it was written last, wherever collection moved it.
async fn is_as_written(volume: &Volume, model: &[Bytes]) {
    for (chunk, expected) in model.chunks(256).enumerate() {
        let at = chunk as u64 * 256 * BLOCK;
        let read = volume.read(at, (expected.len() as u64 * BLOCK) as u32).await.unwrap().concat();
        let wrong = read.chunks(BLOCK as usize).zip(expected).position(|(read, expected)| read != expected);
        assert_eq!(wrong, None, "the first block from byte {at} on that is not as it was written");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_pauses_is_held_back_rather_than_the_bound_exceeded() {
    let seen = hammer(5, None, Fault::None).await;
    println!("{seen:?}");
    assert!(seen.most <= BOUND && seen.puts_per_gib <= 140.0, "{seen:?}");
    // Four parts of what is written are the client's for three that are moved, and the line is hardly ever idle.
    assert!(seen.share > 0.38, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn the_bound_holds_for_a_client_that_flushes_as_well_and_its_flushes_return() {
    let seen = hammer(4, Some(64), Fault::None).await;
    println!("{seen:?}");
    assert!(seen.most <= BOUND, "{seen:?}");
    // All dirty bytes before it take 1.3 s without any collection.
    assert!(seen.flush < Duration::from_secs(5), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_deletes_nothing_does_not_hold_the_client_back_for_ever() {
    let seen = hammer(3, None, Fault::NoDeletes).await;
    println!("{seen:?}");
    assert!(seen.most > 3.0 && seen.share > 0.4, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn collection_that_makes_no_progress_lets_the_client_trickle() {
    let seen = hammer(1, None, Fault::NoReads).await;
    println!("{seen:?}");
    // One segment, an eighth of a second's worth of the line, every five seconds once space is short.
    assert!(seen.share > 0.01 && seen.moved == 0.0, "{seen:?}");
}
