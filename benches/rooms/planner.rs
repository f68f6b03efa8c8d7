//! The read planner: many frames into few ranged GETs.

use ashlar::reading::fetch::plan;
use ashlar::units::{FrameAddr, Seq};
use criterion::{BatchSize, Criterion, Throughput};

use crate::scattered;

const FRAMES: usize = 4096;

pub fn all(criterion: &mut Criterion) {
    let frame = |no: u64| FrameAddr { seq: Seq(no / 2048), offset: (no % 2048) as u32 * 4116, len: 4116 };
    let layouts: [(&str, Vec<FrameAddr>); 2] = [
        ("in a row", (0..FRAMES as u64).map(frame).collect()),
        ("scattered over 64 segments", scattered(64 * 2048).take(FRAMES).map(frame).collect()),
    ];
    let mut group = criterion.benchmark_group("planner");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for (name, frames) in layouts {
        group.bench_function(format!("4096 frames {name}"), |bencher| {
            bencher.iter_batched(|| frames.clone(), |frames| plan(frames, 32 << 10, 1 << 20), BatchSize::SmallInput);
        });
    }
    group.finish();
}
