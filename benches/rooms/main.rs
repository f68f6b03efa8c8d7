//! How fast the pure rooms are, each by itself: what a change costs or gains is seen here before any disk or network
//! blurs it. `cargo bench --bench rooms -- map` runs those with "map" in their name.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod buffer;
mod cache;
mod codec;
mod map;
mod planner;
mod tally;

use bytes::Bytes;
use criterion::{criterion_group, criterion_main};

criterion_group!(rooms, codec::all, map::all, buffer::all, cache::all, planner::all, tally::all);
criterion_main!(rooms);

/// Bytes that do not compress.
fn noise(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Numbers below `bound`, in no order, the same in every run.
fn scattered(bound: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    })
}
