//! The write buffer: filling one segment's worth, in order, in no order, and over and over; and reading from it.

use ashlar::change::Change;
use ashlar::engine::buffer::WriteBuffer;
use ashlar::units::{BlockSize, ChangeNo, Extent};
use criterion::{Criterion, Throughput};

use crate::{noise, scattered};

const WRITES: usize = 2048;

pub fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("buffer");
    group.throughput(Throughput::Elements(WRITES as u64));
    let orders: [(&str, Vec<u64>); 3] = [
        ("in order", (0..WRITES as u64).collect()),
        ("at random", scattered(1 << 24).take(WRITES).collect()),
        ("over 64 blocks again and again", scattered(64).take(WRITES).collect()),
    ];
    for (name, blocks) in &orders {
        group.bench_function(format!("2048 writes of 4 KiB {name}"), |bencher| bencher.iter(|| filled(blocks)));
    }
    let buffer = filled(&orders[1].1);
    group.bench_function("2048 look-ups of what is not there", |bencher| {
        bencher.iter(|| {
            for at in scattered(1 << 24).skip(WRITES).take(WRITES) {
                let mut unknown = 0;
                buffer.lookup(Extent::new(at, 1), |_, _, _| {}, |extent| unknown += extent.count.0);
                std::hint::black_box(unknown);
            }
        });
    });
    group.finish();
}

fn filled(blocks: &[u64]) -> WriteBuffer {
    let data = noise(4096);
    let mut buffer = WriteBuffer::new(BlockSize::new(4096).unwrap());
    for (no, &block) in blocks.iter().enumerate() {
        buffer.insert(ChangeNo(no as u64 + 1), Change::Write(Extent::new(block, 1), data.clone()));
    }
    buffer
}
