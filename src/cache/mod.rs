//! Clean blocks near the reader: opened frames, keyed by their address in an immutable segment. Such an entry is right
//! for ever, so there is no invalidation, no dirty bit and no coherence argument (rule R1). The cache does not know the
//! store: the fetch is handed in.

use std::hash::{BuildHasherDefault, DefaultHasher};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::units::FrameAddr;

pub mod flight;
pub mod readahead;

/// Options of the block cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bytes of opened frames in memory, for all volumes of the server together.
    #[serde(with = "crate::human::bytes")]
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory: 256 << 20 }
    }
}

/// Opened frames of all volumes of a server, bounded by bytes.
#[derive(Debug)]
pub struct BlockCache(Cache<(Uuid, FrameAddr), Bytes, ByLength, Hashing>);

/// Without a random key, so that one seed replays one run (rule R14); no client chooses what is hashed.
type Hashing = BuildHasherDefault<DefaultHasher>;

#[derive(Clone, Debug)]
struct ByLength;

/// What an entry takes beside its data, in bytes, rounded up.
const ENTRY_OVERHEAD: u64 = 128;

impl Weighter<(Uuid, FrameAddr), Bytes> for ByLength {
    fn weight(&self, _: &(Uuid, FrameAddr), data: &Bytes) -> u64 {
        data.len() as u64 + ENTRY_OVERHEAD
    }
}

impl BlockCache {
    /// A cache within the given options.
    pub fn new(options: &Options) -> BlockCache {
        let typical_entry = 16 << 10;
        let entries = (options.memory / typical_entry).max(16) as usize;
        let (hashing, lifecycle) = (Hashing::default(), DefaultLifecycle::default());
        BlockCache(Cache::with(entries, options.memory, ByLength, hashing, lifecycle))
    }

    /// The opened frame, if it is here.
    pub fn get(&self, volume: Uuid, frame: FrameAddr) -> Option<Bytes> {
        self.0.get(&(volume, frame))
    }

    /// Keeps an opened frame, and lets others go for it. `data` must own its memory: a slice of something larger would
    /// keep all of it.
    pub fn insert(&self, volume: Uuid, frame: FrameAddr, data: Bytes) {
        self.0.insert((volume, frame), data);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.0.weight()
    }
}
