//! The block cache: hits, and insertions that let others go.

use ashlar::cache::{BlockCache, Content, Purpose};
use ashlar::units::{FrameAddr, Seq};
use criterion::{Criterion, Throughput};
use uuid::Uuid;

use crate::{noise, scattered};

const ENTRIES: u64 = 4096;
const FRAME_BYTES: usize = 4096;

pub fn all(criterion: &mut Criterion) {
    let volume = Uuid::from_u128(1);
    let data = noise(FRAME_BYTES);
    let frame = |no: u64| FrameAddr { seq: Seq(no / 64), offset: (no % 64) as u32 * 8192, len: 4116 };
    let cache = BlockCache::in_memory(2 * ENTRIES * FRAME_BYTES as u64);
    (0..ENTRIES).for_each(|no| cache.insert(volume, frame(no), Content::Own(data.clone()), Purpose::Read));
    let mut group = criterion.benchmark_group("cache");
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("4096 hits", |bencher| {
        bencher.iter(|| {
            for no in scattered(ENTRIES).take(ENTRIES as usize) {
                std::hint::black_box(cache.get(volume, frame(no), Purpose::Read));
            }
        });
    });
    let mut next = ENTRIES;
    group.bench_function("4096 insertions into a full cache", |bencher| {
        bencher.iter(|| {
            for _ in 0..ENTRIES {
                next += 1;
                cache.insert(volume, frame(next), Content::Own(data.clone()), Purpose::Read);
            }
        });
    });
    group.finish();
}
