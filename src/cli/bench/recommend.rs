//! From what was measured to settings. Pure.
//!
//! | setting | from |
//! | --- | --- |
//! | `segment_size` | the least at which a PUT spends a fifth of its time or less on latency |
//! | `upload_window` | as many such PUTs as fill the best bandwidth seen (Little's law), and one more |
//! | `dirty_bytes` | two windows, so that clients go on while one is under way |
//! | `read_parallel` | the least parallelism with nine tenths of the best rate of small GETs |
//! | `read_max` | the least range with nine tenths of the best bandwidth of GETs |
//! | `read_gap` | what one GET moves in the time that beginning another would take |
//! | `limit.reads`, `limit.writes` | room for all of that, and for a second volume |

use super::measure::{Cell, Measured};
use super::plan::Operation;
use crate::human::exact_bytes;
use crate::volume;

const MIB: f64 = (1 << 20) as f64;

/// Recommended settings, in bytes and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    segment_size: u64,
    upload_window: u32,
    dirty_bytes: u64,
    read_parallel: u32,
    read_max: u64,
    read_gap: u64,
    limit_reads: u32,
    limit_writes: u32,
}

/// What suits a store that answered like this.
pub fn settings(measured: &Measured) -> Settings {
    let default = volume::Options::default();
    let (put, get) = (Line::through(measured, Operation::Put), Line::through(measured, Operation::Get));
    let segment_size = power_of_two(4.0 * put.latency * put.stream, 4.0 * MIB, 32.0 * MIB);
    let window = put.best * (put.latency + segment_size as f64 / put.stream) / segment_size as f64;
    let upload_window = (window.ceil() as u32 + 1).clamp(2, 32);
    let dirty_bytes = default.dirty_bytes.max(2 * u64::from(upload_window) * segment_size);
    let read_parallel = enough(measured, |cell| (cell.parallel, cell.requests_per_second()), smallest(measured));
    let read_parallel = read_parallel.unwrap_or(default.read_parallel).max(8);
    let gets = |cell: &&Cell| cell.operation == Operation::Get;
    let read_max = enough(measured, |cell| (cell.size, cell.bytes_per_second()), gets).unwrap_or(default.read_max);
    Settings {
        segment_size,
        upload_window,
        dirty_bytes,
        read_parallel,
        read_max: power_of_two(read_max as f64, 256.0 * 1024.0, 8.0 * MIB),
        read_gap: power_of_two(get.latency * get.stream / 2.0, 16.0 * 1024.0, MIB / 2.0),
        limit_reads: 2 * read_parallel,
        limit_writes: 2 * upload_window,
    }
}

impl Settings {
    /// As a part of `ashlar.toml`.
    pub fn to_toml(self) -> String {
        let Settings { segment_size, upload_window, dirty_bytes, read_parallel, read_max, read_gap, .. } = self;
        let [segment_size, dirty_bytes, read_max, read_gap] =
            [segment_size, dirty_bytes, read_max, read_gap].map(exact_bytes);
        format!(
            "# Recommended for this store, from here; copy it into ashlar.toml.\n\
             [volume]\n\
             segment_size = \"{segment_size}\"\n\
             upload_window = {upload_window}\n\
             dirty_bytes = \"{dirty_bytes}\"\n\
             read_parallel = {read_parallel}\n\
             read_gap = \"{read_gap}\"\n\
             read_max = \"{read_max}\"\n\
             \n\
             [store.limit]\n\
             reads = {}\n\
             writes = {}",
            self.limit_reads, self.limit_writes
        )
    }
}

/// One kind of request as a straight line: so long to begin with, and then so many bytes in a second.
struct Line {
    /// Seconds that a request takes however small it is.
    latency: f64,
    /// Bytes in a second of one request, once it moves.
    stream: f64,
    /// Bytes in a second of all, at best.
    best: f64,
}

impl Line {
    fn through(measured: &Measured, operation: Operation) -> Line {
        let cells = || measured.cells.iter().filter(|cell| cell.operation == operation);
        let alone = || cells().filter(|cell| Some(cell.parallel) == cells().map(|cell| cell.parallel).min());
        let seconds = |cell: &Cell| cell.p50_micros.max(1) as f64 / 1e6;
        let best = cells().map(Cell::bytes_per_second).fold(1.0, f64::max);
        let small = alone().min_by_key(|cell| cell.size);
        let large = alone().max_by_key(|cell| cell.size);
        let latency = small.map_or(0.02, seconds);
        let stream = match (small, large) {
            (Some(small), Some(large)) if large.size > small.size && seconds(large) > latency => {
                (large.size - small.size) as f64 / (seconds(large) - latency)
            }
            _ => best,
        };
        Line { latency, stream, best }
    }
}

/// The smallest GETs.
fn smallest(measured: &Measured) -> impl Fn(&&Cell) -> bool {
    let gets = measured.cells.iter().filter(|cell| cell.operation == Operation::Get);
    let size = gets.map(|cell| cell.size).min();
    move |cell| cell.operation == Operation::Get && Some(cell.size) == size
}

/// The least of something that has nine tenths of the best rate.
fn enough<T: Ord>(measured: &Measured, of: impl Fn(&Cell) -> (T, f64), which: impl Fn(&&Cell) -> bool) -> Option<T> {
    let rated: Vec<(T, f64)> = measured.cells.iter().filter(which).map(of).collect();
    let best = rated.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    rated.into_iter().filter(|(_, rate)| *rate >= 0.9 * best).map(|(what, _)| what).min()
}

/// The nearest power of two within the bounds.
fn power_of_two(wanted: f64, least: f64, most: f64) -> u64 {
    1 << (wanted.clamp(least, most).log2().round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, load};

    /// A store with this latency, where one request moves `stream` bytes in a second, and all together `best`.
    fn store(latency: f64, stream: f64, best: f64) -> Measured {
        let mut cells = Vec::new();
        for operation in [Operation::Put, Operation::Get] {
            for size in [4096, 128 << 10, 1 << 20, 8 << 20] {
                for parallel in [1, 8, 32] {
                    let one = latency + size as f64 / stream;
                    let seconds = (100.0 * one / f64::from(parallel)).max(100.0 * size as f64 / best);
                    let p50_micros = (one * 1e6) as u64;
                    let p99_micros = p50_micros;
                    cells.push(Cell { operation, size, parallel, requests: 100, seconds, p50_micros, p99_micros });
                }
            }
        }
        Measured { probe: None, cells }
    }

    #[test]
    fn far_and_wide_wants_large_segments_and_a_wide_window() {
        let near = settings(&store(0.001, 200.0 * MIB, 200.0 * MIB));
        let far = settings(&store(0.05, 80.0 * MIB, 800.0 * MIB));
        assert_eq!((near.segment_size, near.upload_window, near.dirty_bytes), (4 << 20, 3, 256 << 20));
        assert_eq!((far.segment_size, far.upload_window), (16 << 20, 14));
        assert_eq!(far.dirty_bytes, 2 * 14 * (16 << 20));
        assert!(near.read_gap < far.read_gap);
        assert_eq!((far.read_parallel, far.limit_reads), (32, 64));
    }

    #[test]
    fn what_is_recommended_is_accepted_as_configuration() {
        for measured in
            [store(0.0, 1e12, 1e12), store(0.02, 50.0 * MIB, 300.0 * MIB), Measured { probe: None, cells: vec![] }]
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ashlar.toml");
            let settings = settings(&measured);
            #[allow(clippy::disallowed_methods)] // a test's own file
            std::fs::write(&path, settings.to_toml()).unwrap();
            let config = load(Inputs { file: Some(path), ..Inputs::default() }).unwrap();
            assert_eq!(config.volume.segment_size, settings.segment_size);
            assert_eq!(config.store.limit.reads, settings.limit_reads as usize);
            config.volume.check().unwrap();
        }
    }
}
