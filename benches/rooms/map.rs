//! The extent map: committing a segment of random 4 KiB writes, and looking blocks up, in maps of several sizes.

use ashlar::map::{ExtentMap, Placement, SegmentInfo};
use ashlar::units::{BlockCount, Extent, FrameAddr, Location, Seq};
use criterion::{BatchSize, Criterion, Throughput};

use crate::scattered;

/// 64 GiB of 4 KiB blocks.
const BLOCKS: u64 = 16 << 20;
/// Random writes of 4 KiB that make a segment of 8 MiB.
const SEGMENT_EXTENTS: usize = 2048;

pub fn all(criterion: &mut Criterion) {
    for segments in [16, 512] {
        let mut map = filled(segments);
        let extents = segments as usize * SEGMENT_EXTENTS;
        let mut group = criterion.benchmark_group("map");
        group.throughput(Throughput::Elements(SEGMENT_EXTENTS as u64)).sample_size(20);
        group.bench_function(format!("look up 2048 blocks in {extents} extents"), |bencher| {
            bencher.iter(|| {
                for at in scattered(BLOCKS).take(SEGMENT_EXTENTS) {
                    std::hint::black_box(map.lookup(Extent::new(at, 1)).unwrap());
                }
            });
        });
        // The map grows a little while this runs.
        let mut seq = segments;
        group.bench_function(format!("commit 2048 random writes to {extents} extents"), |bencher| {
            let next = || {
                seq += 1;
                (seq, changes(seq))
            };
            bencher.iter_batched(
                next,
                |(seq, changes)| map.apply(Seq(seq), info(), &changes, None).unwrap(),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn filled(segments: u64) -> ExtentMap {
    let mut map = ExtentMap::new(BlockCount(BLOCKS));
    (1..=segments).for_each(|seq| map.apply(Seq(seq), info(), &changes(seq), None).unwrap());
    map
}

fn info() -> SegmentInfo {
    SegmentInfo { salt: [0; 16], stored_bytes: 8 << 20, blocks: SEGMENT_EXTENTS as u32, live_blocks: 0 }
}

/// What a segment of random writes does, sorted by block as segments are.
fn changes(seq: u64) -> Vec<(Extent, Placement)> {
    let mut blocks: Vec<u64> = scattered(BLOCKS).skip(seq as usize * SEGMENT_EXTENTS).take(SEGMENT_EXTENTS).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let placement = |(n, block): (usize, u64)| {
        let frame = FrameAddr { seq: Seq(seq), offset: n as u32 * 4116, len: 4116 };
        (Extent::new(block, 1), Placement::Data(Location { frame, block: 0 }))
    };
    blocks.into_iter().enumerate().map(placement).collect()
}
