//! What a volume says of a range without reading it: true at every stage of a change's way, and little work at a time however
//! dense the map is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::{Allocation, Device, RUNS_MAX, Run};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::outside::{Clock, Random};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::units::BlockSize;
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeName};
use bytes::Bytes;
use proptest::prelude::*;

struct World {
    store: Arc<dyn Store>,
    disk: Arc<CrashDisk>,
    options: Options,
}

impl World {
    async fn new(size: u64, block_size: u64, options: Options) -> World {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let created =
            CreateOptions { size, block_size: BlockSize::new(block_size).unwrap(), ..CreateOptions::default() };
        volume::create(&*store, &Random::seeded(7), &Clock::System, &name(), created).await.unwrap();
        World { store, disk: Arc::new(CrashDisk::new(7)), options }
    }

    async fn open(&self) -> Arc<Volume> {
        let outside = Outside {
            budget: volume::Budget::new(&self.options),
            ..outside::plain(self.store.clone(), self.disk.clone(), Random::seeded(8))
        };
        let options = self.options.clone();
        Volume::open(outside, &name(), options, journal::Options::default(), OpenFlags::default()).await.unwrap()
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn runs(of: &[(u64, Allocation)]) -> Vec<Run> {
    of.iter().map(|&(len, allocation)| Run { len, allocation }).collect()
}

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// K15: what was zeroed with NO_HOLE is zero and allocated, what was given up is a hole, at whatever stage the change is.
#[tokio::test(start_paused = true)]
async fn k15_k22_data_zero_and_hole_are_told_apart_from_the_buffer_to_the_store() {
    let world = World::new(SIZE, BLOCK, Options::default()).await;
    let mut volume = world.open().await;
    assert_eq!(volume.extents(0, SIZE, 9).await.unwrap(), runs(&[(SIZE, Allocation::Hole)]));
    volume.write(0, vec![7; 8 * BLOCK as usize].into(), false).await.unwrap();
    volume.write_zeroes(2 * BLOCK, 2 * BLOCK, true, false).await.unwrap();
    volume.trim(5 * BLOCK, BLOCK + 5, false).await.unwrap();
    volume.write_zeroes(SIZE - 3 * BLOCK, BLOCK, true, false).await.unwrap();
    let expected = runs(&[
        (2 * BLOCK, Allocation::Data),
        (2 * BLOCK, Allocation::Zero),
        (BLOCK, Allocation::Data),
        (BLOCK, Allocation::Hole),
        (2 * BLOCK, Allocation::Data),
        (SIZE - 11 * BLOCK, Allocation::Hole),
        (BLOCK, Allocation::Zero),
        (2 * BLOCK, Allocation::Hole),
    ]);
    for stage in ["in the buffer", "committed", "opened again"] {
        assert_eq!(volume.extents(0, SIZE, 9).await.unwrap(), expected, "{stage}");
        assert_eq!(volume.extents(0, SIZE, 3).await.unwrap(), expected[..3], "{stage}");
        let inside = [(1, Allocation::Data), (2 * BLOCK, Allocation::Zero), (7, Allocation::Data)];
        assert_eq!(volume.extents(2 * BLOCK - 1, 2 * BLOCK + 8, 9).await.unwrap(), runs(&inside), "{stage}");
        assert_eq!(volume.extents(2 * BLOCK + 1, 1, 1).await.unwrap(), runs(&[(1, Allocation::Zero)]), "{stage}");
        if stage == "in the buffer" {
            volume.flush().await.unwrap();
        } else {
            volume.close().await.unwrap();
            volume = world.open().await;
        }
    }
}

/// The whole of 16 TiB is one answer while nothing is there, and after all of it was zeroed.
#[tokio::test(start_paused = true)]
async fn an_empty_volume_is_one_hole_however_large() {
    let size = 16 << 40;
    let world = World::new(size, BLOCK, Options::default()).await;
    let volume = world.open().await;
    assert_eq!(volume.extents(0, size, 9).await.unwrap(), runs(&[(size, Allocation::Hole)]));
    volume.write(3 << 40, vec![1; 100].into(), true).await.unwrap();
    let around =
        [((3 << 40) - 1, Allocation::Hole), (BLOCK, Allocation::Data), (size - (3 << 40) - BLOCK, Allocation::Hole)];
    assert_eq!(volume.extents(1, size - 1, 9).await.unwrap(), runs(&around));
    volume.write_zeroes(0, size, true, true).await.unwrap();
    assert_eq!(volume.extents(0, size, 9).await.unwrap(), runs(&[(size, Allocation::Zero)]));
    volume.trim(0, size, true).await.unwrap();
    assert_eq!(volume.extents(0, size, 9).await.unwrap(), runs(&[(size, Allocation::Hole)]));
}

/// The map of a dense volume is not loaded to say what is in it. Here every other block of 512 bytes is data, on 8 pages
/// of which a tenth of one may be in memory.
#[tokio::test(start_paused = true)]
async fn a_dense_map_is_answered_in_parts_and_never_loaded_whole() {
    const PART: u64 = 1 << 20;
    let size = 8 * (16384 * 512);
    let options = Options { map_memory: 160 << 10, segment_size: PART, ..Options::default() };
    let options = Options { total_map_memory: options.map_memory, ..options };
    let world = World::new(size, 512, options).await;
    let volume = world.open().await;
    let block = |n: u64| if n.is_multiple_of(2) { [7; 512] } else { [0; 512] };
    let part: Bytes = (0..PART / 512).flat_map(block).collect::<Vec<_>>().into();
    for at in (0..size).step_by(PART as usize) {
        volume.write(at, part.clone(), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = world.open().await;
    let (mut at, mut calls) = (0, 0);
    while at < size {
        let runs = volume.extents(at, size - at, RUNS_MAX).await.unwrap();
        assert!(!runs.is_empty() && runs.len() <= RUNS_MAX);
        for run in runs {
            let expected = if at / 512 % 2 == 0 { Allocation::Data } else { Allocation::Zero };
            assert_eq!((run.len, run.allocation), (512, expected), "at {at}");
            at += run.len;
        }
        calls += 1;
        let in_memory = volume.status().map_memory;
        assert!(in_memory <= 160 << 10, "{in_memory} bytes of map after {calls} calls");
    }
    assert_eq!(calls, size / 512 / RUNS_MAX as u64, "each call says as much as it may");

    // All clients ask at once, and wait for each other's pages instead of loading them together.
    let asked = (0..16).map(|n| volume.extents(n * (size / 16), size / 16, RUNS_MAX));
    let answers = futures::future::join_all(asked).await;
    assert!(answers.into_iter().all(|runs| runs.unwrap().len() == RUNS_MAX));
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, bool),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..SIZE, 1_u64..60_000).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)));
    let op = prop_oneof![
        4 => (range(), any::<bool>()).prop_map(|((offset, len), zero)| Op::Write(offset, len, zero)),
        2 => range().prop_map(|(offset, len)| Op::Trim(offset, len)),
        2 => (range(), any::<bool>()).prop_map(|((offset, len), no_hole)| Op::Zero(offset, len, no_hole)),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..14)
}

async fn apply(world: &World, volume: &mut Arc<Volume>, op: Op) {
    match op {
        Op::Write(offset, len, zero) => {
            let data = vec![if zero { 0 } else { 9 }; len as usize];
            volume.write(offset, data.into(), false).await.unwrap();
        }
        Op::Trim(offset, len) => volume.trim(offset, len, false).await.unwrap(),
        Op::Zero(offset, len, no_hole) => volume.write_zeroes(offset, len, no_hole, false).await.unwrap(),
        Op::Flush => volume.flush().await.unwrap(),
        Op::Reopen => {
            volume.close().await.unwrap();
            *volume = world.open().await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// K20, K21: an answer covers the range from its start, in runs that differ, and what it calls zero or a hole reads as
    /// zero, whatever of the changes is in the buffer, in a batch, or in the store. And the other way round: the bytes of a READ
    /// that are known to be zero come as no bytes.
    #[test]
    fn k20_k21_what_is_said_to_be_zero_reads_as_zero(
        ops in ops(), asked in prop::collection::vec((0..SIZE, 1..=SIZE, 1_usize..40), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let options = Options { segment_size: 64 << 10, map_memory: 1, total_map_memory: 1, ..Options::default() };
            let mut world = World::new(SIZE, BLOCK, options).await;
            // Uploads take their time, and none of it passes while there is something to do: batches wait, or are under way.
            let slow = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
            world.store = Arc::new(FaultyStore::new(world.store, slow, Random::seeded(1)));
            let mut volume = world.open().await;
            for op in ops {
                apply(&world, &mut volume, op).await;
                for &(offset, len, most) in &asked {
                    let len = len.min(SIZE - offset);
                    let runs = volume.extents(offset, len, most).await.unwrap();
                    assert!((1..=most).contains(&runs.len()));
                    let said: u64 = runs.iter().map(|run| run.len).sum();
                    assert!(said == len || said < len && runs.len() == most, "{said} of {len}");
                    let mut at = offset;
                    for (no, run) in runs.iter().enumerate() {
                        assert!(run.len > 0 && (no == 0 || runs[no - 1].allocation != run.allocation));
                        let read = volume.read(at, run.len as u32).await.unwrap();
                        let is_zero = read.concat().iter().all(|byte| *byte == 0);
                        assert!(is_zero || run.allocation == Allocation::Data, "{run:?} at {at}");
                        let sent: u64 = read.iter().filter(|piece| matches!(piece, ashlar::device::Piece::Data(_))).map(|piece| piece.len()).sum();
                        // Zeroes that were written are data until they are in the store, where they may be by now.
                        assert!(sent == 0 || run.allocation == Allocation::Data, "{run:?} at {at}");
                        at += run.len;
                    }
                }
            }
        });
    }
}
