//! Clean blocks near the reader: frames, keyed by their address in an immutable segment. Such an entry is right for ever,
//! so there is no invalidation, no dirty bit and no coherence argument (rule R1). In memory they are opened; on the local
//! disk ([`disk`], if it is configured) they are as in their objects. The cache does not know the store: the fetch is
//! handed in.
//!
//! In memory a frame that is read once goes as it came, first in first out, and one that is read again stays. Being fetched
//! ahead of a stream is no reading: the stream's own read of it is the first one. So a scan, however long, leaves what is
//! read again and again where it is.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::units::FrameAddr;

use disk::DiskTier;

pub mod disk;
pub mod flight;
pub mod readahead;

/// Options of the block cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bytes of opened frames in memory, for all volumes of the server together.
    #[serde(with = "crate::human::bytes")]
    pub memory: u64,
    /// The tier on the local disk.
    pub disk: disk::Options,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory: 256 << 20, disk: disk::Options::default() }
    }
}

impl Options {
    /// Refuses values with which there could be no cache: the key, and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match self.disk.size {
            0 | disk::SIZE_MIN.. => Ok(()),
            _ => Err(("disk.size", format!("0, or {} or more", crate::human::exact_bytes(disk::SIZE_MIN)))),
        }
    }
}

/// Frames of all volumes of a server, bounded by bytes.
#[derive(Debug)]
pub struct BlockCache {
    memory: Cache<(Uuid, FrameAddr), Arc<Frame>, ByLength, Hashing>,
    disk: Option<DiskTier>,
}

/// What the cache is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bytes that it may take in memory.
    pub memory_size: u64,
    /// Bytes that it takes there.
    pub memory_used: u64,
    /// The tier on the local disk, if it is configured.
    pub disk: Option<disk::Status>,
}

/// The part of the memory that what is read again may take from what is read once. The rest is also what frames that were
/// fetched ahead have until they are read: see `docs/decisions/0002-block-cache.md` for what it costs.
const AGAIN_SHARE: f64 = 0.7;

/// Without a random key, so that one seed replays one run (rule R14); no client chooses what is hashed.
type Hashing = BuildHasherDefault<DefaultHasher>;

#[derive(Clone, Debug)]
struct ByLength;

/// What an entry takes beside its data, in bytes, rounded up.
const ENTRY_OVERHEAD: u64 = 160;

impl Weighter<(Uuid, FrameAddr), Arc<Frame>> for ByLength {
    fn weight(&self, _: &(Uuid, FrameAddr), frame: &Arc<Frame>) -> u64 {
        frame.data.len() as u64 + ENTRY_OVERHEAD
    }
}

/// An opened frame in memory.
#[derive(Debug)]
struct Frame {
    data: Bytes,
    /// It was fetched ahead, and nobody has read it yet.
    unread: AtomicBool,
}

/// Why a frame is looked for, or brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody reads it.
    Read,
    /// Somebody reads it in the course of a stream, which has probably fetched it ahead.
    Stream,
    /// Nobody does yet.
    Ahead,
}

impl BlockCache {
    /// A cache of so many bytes of memory.
    pub fn in_memory(bytes: u64) -> BlockCache {
        BlockCache::new(bytes, None)
    }

    /// A cache of so many bytes of memory, with a tier below it or without.
    pub fn new(memory: u64, disk: Option<DiskTier>) -> BlockCache {
        let typical_entry = 16 << 10;
        let entries = (memory / typical_entry).max(16) as usize;
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(entries).weight_capacity(memory).hot_allocation(AGAIN_SHARE);
        let (hashing, lifecycle) = (Hashing::default(), DefaultLifecycle::default());
        let memory = match options.build() {
            Ok(options) => Cache::with_options(options, ByLength, hashing, lifecycle),
            // Only for want of a capacity.
            Err(_) => Cache::with(entries, memory, ByLength, hashing, lifecycle),
        };
        BlockCache { memory, disk }
    }

    /// The opened frame, if it is in memory.
    pub fn get(&self, volume: Uuid, frame: FrameAddr, purpose: Purpose) -> Option<Bytes> {
        let key = (volume, frame);
        let found = match purpose {
            Purpose::Read => self.memory.get(&key)?,
            Purpose::Ahead => self.memory.peek(&key)?,
            Purpose::Stream => {
                let found = self.memory.peek(&key)?;
                if !found.unread.swap(false, Ordering::Relaxed) {
                    self.memory.get(&key);
                }
                found
            }
        };
        Some(found.data.clone())
    }

    /// Keeps an opened frame in memory, and lets others go for it. `data` must own its memory: a slice of something larger
    /// would keep all of it.
    pub fn insert(&self, volume: Uuid, frame: FrameAddr, data: Bytes, purpose: Purpose) {
        let unread = AtomicBool::new(purpose == Purpose::Ahead);
        self.memory.insert((volume, frame), Arc::new(Frame { data, unread }));
    }

    /// The tier on the local disk.
    pub fn disk(&self) -> Option<&DiskTier> {
        self.disk.as_ref()
    }

    /// Bytes that it may take in memory.
    pub fn memory_size(&self) -> u64 {
        self.memory.capacity()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        Status {
            memory_size: self.memory_size(),
            memory_used: self.memory.weight(),
            disk: self.disk.as_ref().map(DiskTier::status),
        }
    }
}
