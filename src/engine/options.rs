//! What an operator may tune of a volume; every limit with its name, unit and default.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dedup::RUN_BYTES;
use crate::error::VolumeError;
use crate::format::segment::Durability;
use crate::format::segment::fence::WINDOW_MAX;
use crate::gc;
use crate::human::{self, exact_bytes};
use crate::reading::ReadLimits;
use crate::units::BlockSize;

/// Options of the volumes that a server serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What a successful FLUSH promises: in the store, or on this host's disk.
    pub durability: Durability,
    /// Bytes of data at which a batch of changes is sealed into a segment; up to twice as many while others are under way.
    #[serde(with = "human::bytes")]
    pub segment_size: u64,
    /// A volume of more than a million segments of that size has larger ones, so that they stay as many; up to this size, and up to a quarter of
    /// `dirty_bytes` and of `total_upload_bytes`.
    #[serde(with = "human::bytes")]
    pub segment_size_max: u64,
    /// The longest that an acknowledged change waits before it is uploaded.
    #[serde(with = "human::duration")]
    pub writeback_delay: Duration,
    /// Bytes of acknowledged changes that are not yet in the store; at the bound, writers wait.
    #[serde(with = "human::bytes")]
    pub dirty_bytes: u64,
    /// The same, of all volumes of a server together.
    #[serde(with = "human::bytes")]
    pub total_dirty_bytes: u64,
    /// Segments that may be under way to the store at once (the window W of the design).
    pub upload_window: u32,
    /// Bytes of segments that all volumes of a server together may have encoded and on their way to the store.
    #[serde(with = "human::bytes")]
    pub total_upload_bytes: u64,
    /// Bytes of map pages in memory; beyond it, clean pages leave and are read again when needed.
    #[serde(with = "human::bytes")]
    pub map_memory: u64,
    /// The same, of all volumes of a server together: each has an equal part of it at most.
    #[serde(with = "human::bytes")]
    pub total_map_memory: u64,
    /// Whether data that is stored already is referred to in place of being stored once more: `docs/dedup.md`.
    pub dedup: bool,
    /// Bytes in memory that say what is stored already, of all volumes of a server together: each that is de-duplicated has an equal part.
    #[serde(with = "human::bytes")]
    pub total_dedup_memory: u64,
    /// Bytes of segments after which the map is checkpointed: bounds what opening has to read.
    #[serde(with = "human::bytes")]
    pub checkpoint_bytes: u64,
    /// The longest that changes in the store wait for a checkpoint; dead objects are deleted after it.
    #[serde(with = "human::duration")]
    pub checkpoint_interval: Duration,
    /// Requests of reads to the store that one volume has under way at once.
    pub read_parallel: u32,
    /// Frames of one segment that lie at most this many bytes apart are read in one request.
    #[serde(with = "human::bytes")]
    pub read_gap: u64,
    /// The most bytes that one request reads.
    #[serde(with = "human::bytes")]
    pub read_max: u64,
    /// The most bytes that are fetched ahead of a client that reads in sequence; 0 turns it off. All streams of a volume
    /// together are ahead by a quarter of the cache's memory at most.
    #[serde(with = "human::bytes")]
    pub read_ahead: u64,
    /// Garbage collection.
    pub gc: gc::Options,
    /// The longest pause between two tries of an upload that fails; it is tried for ever.
    #[serde(with = "human::duration")]
    pub retry_pause_max: Duration,
    /// The most snapshots that a volume may have, automatic ones and others together: each takes some memory, and a place in each checkpoint.
    pub max_snapshots: u64,
    /// A digest is due when so many slots of the log have none, however little they hold. No key of the configuration: tests make it small.
    #[serde(skip)]
    pub digest_slots: u64,
    /// Blocks of so many bytes in a row are de-duplicated, or none. No key of the configuration: tests make it small.
    #[serde(skip)]
    pub dedup_run: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Store,
            segment_size: 8 << 20,
            segment_size_max: 64 << 20,
            writeback_delay: Duration::from_secs(5),
            dirty_bytes: 256 << 20,
            total_dirty_bytes: 1 << 30,
            upload_window: 8,
            total_upload_bytes: 512 << 20,
            map_memory: 256 << 20,
            total_map_memory: 1 << 30,
            dedup: false,
            total_dedup_memory: 64 << 20,
            checkpoint_bytes: 512 << 20,
            checkpoint_interval: Duration::from_secs(30),
            read_parallel: 32,
            read_gap: 32 << 10,
            read_max: 1 << 20,
            read_ahead: 64 << 20,
            gc: gc::Options::default(),
            retry_pause_max: Duration::from_secs(10),
            max_snapshots: 1024,
            digest_slots: 32,
            dedup_run: RUN_BYTES,
        }
    }
}

impl Options {
    /// Refuses values that no volume could work with.
    pub fn check(&self) -> Result<(), BadOption> {
        let (segment_min, dirty_min) = (u64::from(BlockSize::MAX), 8 * u64::from(BlockSize::MAX));
        let refuse = |key, accepted| Err(BadOption { key, accepted });
        if !(segment_min..=SEGMENT_SIZE_MAX).contains(&self.segment_size) {
            return refuse(
                "segment_size",
                format!("{} to {}", exact_bytes(segment_min), exact_bytes(SEGMENT_SIZE_MAX)),
            );
        }
        if !(segment_min..=SEGMENT_SIZE_MAX).contains(&self.segment_size_max) {
            return refuse(
                "segment_size_max",
                format!("{} to {}", exact_bytes(segment_min), exact_bytes(SEGMENT_SIZE_MAX)),
            );
        }
        if self.dirty_bytes < dirty_min {
            return refuse("dirty_bytes", format!("{} or more", exact_bytes(dirty_min)));
        }
        if self.total_dirty_bytes < self.dirty_bytes {
            return refuse("total_dirty_bytes", "volume.dirty_bytes or more".into());
        }
        if self.total_upload_bytes < 4 * self.segment_size {
            return refuse("total_upload_bytes", "4 times volume.segment_size or more".into());
        }
        if !(1..=WINDOW_MAX).contains(&self.upload_window) {
            return refuse("upload_window", format!("1 to {WINDOW_MAX}"));
        }
        self.check_gc()
    }

    /// The same for a volume of so many bytes: its segments are as large as that wants.
    pub fn for_volume(self, bytes: u64) -> Options {
        let wanted = bytes.div_ceil(SEGMENTS_OF_A_VOLUME).next_power_of_two();
        let most = self.segment_size_max.min(self.dirty_bytes / 4).min(self.total_upload_bytes / 4);
        Options { segment_size: wanted.min(most).max(self.segment_size), ..self }
    }

    /// How volumes are read.
    pub fn read_limits(&self) -> ReadLimits {
        ReadLimits { parallel: self.read_parallel, gap: self.read_gap, max: self.read_max }
    }

    fn check_gc(&self) -> Result<(), BadOption> {
        let gc = &self.gc;
        let refuse = |key, accepted: &str| Err(BadOption { key, accepted: accepted.into() });
        if gc.quiet_percent < GC_PERCENT_MIN {
            return refuse(
                "gc.quiet_percent",
                "105 or more: closer to what is live, every byte would be copied many times",
            );
        }
        if gc.busy_percent < gc.quiet_percent {
            return refuse("gc.busy_percent", "gc.quiet_percent or more");
        }
        if gc.limit_percent <= gc.busy_percent {
            return refuse("gc.limit_percent", "more than gc.busy_percent");
        }
        if gc.hold_percent <= gc.limit_percent {
            return refuse("gc.hold_percent", "more than gc.limit_percent");
        }
        if !(1..=100).contains(&gc.share_percent) {
            return refuse("gc.share_percent", "1 to 100");
        }
        if gc.batch < u64::from(BlockSize::MAX) {
            return refuse("gc.batch", "64 KiB or more");
        }
        if !(1..=ROUNDS_MAX).contains(&gc.rounds) {
            return refuse("gc.rounds", &format!("1 to {ROUNDS_MAX}"));
        }
        if gc.merge_count < 2 {
            return refuse("gc.merge_count", "2 or more");
        }
        if gc.delete_rate == 0 {
            return refuse("gc.delete_rate", "1 or more");
        }
        Ok(())
    }
}

/// An option out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("volume.{key} is out of bounds; accepted is {accepted}")]
pub struct BadOption {
    /// The name of the option.
    pub key: &'static str,
    /// Its bounds.
    pub accepted: String,
}

impl From<BadOption> for VolumeError {
    fn from(error: BadOption) -> VolumeError {
        VolumeError::Invalid(error.to_string())
    }
}

/// The lowest bound on stored bytes in percent of live ones.
const GC_PERCENT_MIN: u32 = 105;

/// Each round of collection is a task that has memory of its own.
const ROUNDS_MAX: u32 = 64;

/// About as many segments as a full volume has at most, as long as they can be made larger.
const SEGMENTS_OF_A_VOLUME: u64 = 1 << 20;

/// A segment is one PUT, and frames are found by 32-bit offsets.
const SEGMENT_SIZE_MAX: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_grow_with_the_volume() {
        let options = Options::default();
        let size = |bytes: u64| options.clone().for_volume(bytes).segment_size >> 20;
        let tib = 1_u64 << 40;
        assert_eq!(
            [0, tib >> 10, 8 * tib, 9 * tib, 16 * tib, 50 * tib, 100 * tib, 1024 * tib].map(size),
            [8, 8, 8, 16, 16, 64, 64, 64]
        );
        let large = Options { segment_size: 128 << 20, ..Options::default() };
        assert_eq!(large.for_volume(100 * tib).segment_size, 128 << 20, "what was asked for is kept");
        let little = Options { dirty_bytes: 64 << 20, ..Options::default() };
        assert_eq!(
            little.for_volume(100 * tib).segment_size,
            16 << 20,
            "some of them are to fit into what may be dirty"
        );
        let none = Options { segment_size_max: 8 << 20, ..Options::default() };
        assert_eq!(none.for_volume(100 * tib).segment_size, 8 << 20);
    }

    #[test]
    fn a_largest_segment_of_nothing_is_refused() {
        let refused = Options { segment_size_max: 0, ..Options::default() }.check().unwrap_err();
        assert!(
            refused.to_string().starts_with("volume.segment_size_max is out of bounds; accepted is 64 KiB to 1 GiB"),
            "{refused}"
        );
    }
}
