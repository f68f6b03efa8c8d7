//! Encoding a segment of 8 MiB, opening its frames, and a journal record; each plain and encrypted, side by side.

use ashlar::change::{Change, Numbered};
use ashlar::codec::frame::Compression;
use ashlar::codec::seal::{Salt, Sealer};
use ashlar::format::segment::{EncodedSegment, Payload, Stamp, encode_segment, open_frame};
use ashlar::journal::record::{FileHeader, HEAD_BYTES, encode as encode_record};
use ashlar::keyring::{Keyring, Locked};
use ashlar::units::{BlockSize, ChangeNo, Epoch, Extent, Seq};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use uuid::Uuid;

use crate::noise;

const SEGMENT_BYTES: usize = 8 << 20;
const BLOCK_BYTES: usize = 4096;
/// Its first byte is the generation of the data key.
const SALT: Salt = [1; 16];

fn sealers() -> [(&'static str, Sealer); 2] {
    let keyring = || Keyring::new((1, Locked::take(&mut [3; 32])), [], None);
    [("plain", None), ("encrypted", Some(keyring()))]
        .map(|(name, keyring)| (name, Sealer::new(Uuid::from_u128(1), keyring)))
}

pub fn all(criterion: &mut Criterion) {
    let text: Bytes = b"the same words over and over, ".iter().copied().cycle().take(SEGMENT_BYTES).collect();
    for (name, data) in [("noise", noise(SEGMENT_BYTES)), ("text", text)] {
        for extent_blocks in [1, 16] {
            let changes = changes(&data, extent_blocks);
            for (seal, sealer) in sealers() {
                let name = format!("{name}, extents of {} KiB, {seal}", extent_blocks * 4);
                segment(criterion, &name, &sealer, &changes);
            }
        }
    }
    sealers().into_iter().for_each(|(seal, sealer)| journal_record(criterion, seal, &sealer));
}

/// `data` as extents of that many blocks, with a hole after each.
fn changes(data: &Bytes, extent_blocks: usize) -> Vec<(Extent, Payload)> {
    let bytes = extent_blocks * BLOCK_BYTES;
    let parts = data.len() / bytes;
    let extent = |part: usize| Extent::new((part * (extent_blocks + 1)) as u64, extent_blocks as u64);
    (0..parts).map(|part| (extent(part), Payload::Data(data.slice(part * bytes..(part + 1) * bytes)))).collect()
}

fn encode(sealer: &Sealer, changes: &[(Extent, Payload)]) -> EncodedSegment {
    let stamp =
        Stamp { epoch: Epoch(1), server: Uuid::from_u128(2), covers: ChangeNo(3), compression: Compression::Lz4 };
    let block_size = BlockSize::new(BLOCK_BYTES as u64).unwrap();
    encode_segment(sealer, Seq(4), SALT, block_size, &stamp, changes).unwrap()
}

fn segment(criterion: &mut Criterion, name: &str, sealer: &Sealer, changes: &[(Extent, Payload)]) {
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(SEGMENT_BYTES as u64)).sample_size(20);
    group.bench_function(format!("encode a segment: {name}"), |bencher| bencher.iter(|| encode(sealer, changes)));

    let encoded = encode(sealer, changes);
    let object = Bytes::from(encoded.object.parts.concat());
    group.bench_function(format!("open its frames: {name}"), |bencher| {
        bencher.iter(|| {
            for (extent, placement) in &encoded.placements {
                let ashlar::map::Placement::Data(at) = placement else { continue };
                let frame = at.frame;
                let sealed = object.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
                let len = extent.count.0 as u32 * BLOCK_BYTES as u32;
                std::hint::black_box(open_frame(sealer, &SALT, frame, len, &sealed).unwrap());
            }
        });
    });
    group.finish();
}

fn journal_record(criterion: &mut Criterion, seal: &str, sealer: &Sealer) {
    let block_size = BlockSize::new(BLOCK_BYTES as u64).unwrap();
    let key = FileHeader::new(sealer, Uuid::from_u128(2), block_size, 3, SALT).key(sealer).unwrap();
    let mut group = criterion.benchmark_group("codec");
    for bytes in [BLOCK_BYTES, 1 << 20] {
        group.throughput(Throughput::Bytes(bytes as u64));
        let change = Change::Write(Extent::new(5, (bytes / BLOCK_BYTES) as u64), noise(bytes));
        let numbered = Numbered { no: ChangeNo(6), change };
        group.bench_function(format!("a journal record of {} KiB, {seal}", bytes >> 10), |bencher| {
            bencher.iter_batched_ref(
                || [0; HEAD_BYTES],
                |head| encode_record(&key, 4096, ChangeNo(0), Epoch(1), numbered.clone(), head).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
