//! Clean blocks near the reader: frames, keyed by their address in an immutable segment. Such an entry is right for ever,
//! so there is no invalidation, no dirty bit and no coherence argument (rule R1). In memory they are opened; on the local
//! disk ([`disk`], if it is configured) they are as in their objects. The cache does not know the store: the fetch is
//! handed in.
//!
//! In memory a frame that is read once goes as it came, first in first out, and one that is read again stays. Being fetched
//! ahead of a stream is no reading: the stream's own read of it is the first one. So a scan, however long, leaves what is
//! read again and again where it is.
//!
//! Frames that came together may share the memory in which they came, which is there until the last of them has gone. Since
//! they go as they came, that is soon after the first. One that is read again, and therefore stays, gets memory of its own.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::part::Part;
use crate::units::FrameAddr;

use disk::DiskTier;
use sharing::Sharing;

pub mod disk;
pub mod flight;
pub mod readahead;
mod sharing;

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
    /// What `memory` may take.
    size: AtomicU64,
    sharing: Arc<Sharing>,
    hits: AtomicU64,
    misses: AtomicU64,
    disk: Option<DiskTier>,
}

/// What the cache is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bytes that it may take in memory.
    pub memory_size: u64,
    /// Bytes that it takes there.
    pub memory_used: u64,
    /// Frames that somebody read and that were there.
    #[serde(default)]
    pub memory_hits: u64,
    /// Frames that somebody read and that were not there.
    #[serde(default)]
    pub memory_misses: u64,
    /// The tier on the local disk, if it is configured.
    pub disk: Option<disk::Status>,
}

/// The part of the memory that what is read again may take from what is read once. The rest is also what frames that were
/// fetched ahead have until they are read: see `docs/decisions/0002-block-cache.md` for what it costs.
const AGAIN_SHARE: f64 = 0.7;

/// Bytes of each of the parts of the memory that have a lock of their own, at least.
const SHARD_LEAST: u64 = 512 << 10;

/// Without a random key, so that one seed replays one run (rule R14); no client chooses what is hashed.
type Hashing = BuildHasherDefault<DefaultHasher>;

#[derive(Clone, Debug)]
struct ByLength;

/// What an entry takes beside its data, in bytes, rounded up.
const ENTRY_OVERHEAD: u64 = 160;

impl Weighter<(Uuid, FrameAddr), Arc<Frame>> for ByLength {
    fn weight(&self, _: &(Uuid, FrameAddr), frame: &Arc<Frame>) -> u64 {
        frame.part.data().len() as u64 + ENTRY_OVERHEAD
    }
}

/// An opened frame in memory.
#[derive(Debug)]
struct Frame {
    part: Part,
    /// It was fetched ahead, and nobody has read it yet.
    unread: AtomicBool,
    /// It keeps the memory of those that came with it.
    shares: Option<Arc<Sharing>>,
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(sharing) = &self.shares {
            sharing.went(&self.part);
        }
    }
}

/// What is to be kept in memory of a frame.
#[derive(Clone, Debug)]
pub enum Content {
    /// Memory that is the frame's alone.
    Own(Bytes),
    /// A part of memory that is nearly filled by frames which are handed in together.
    Shared(Part),
}

impl Content {
    /// The data, and what it keeps alive.
    pub fn into_part(self) -> Part {
        match self {
            Content::Own(data) => Part::own(data),
            Content::Shared(part) => part,
        }
    }
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
        BlockCache::elastic(memory, memory, disk)
    }

    /// The same, of which it will have `least` at least if that changes ([`BlockCache::resize`]).
    pub fn elastic(memory: u64, least: u64, disk: Option<DiskTier>) -> BlockCache {
        let size = AtomicU64::new(memory);
        let typical_entry = 16 << 10;
        let entries = (memory / typical_entry).max(16) as usize;
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(entries).weight_capacity(memory).hot_allocation(AGAIN_SHARE);
        if least < memory {
            // A frame must fit into its shard, also when there is little.
            let most = 4 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            options.shards((least / SHARD_LEAST).clamp(1, most as u64) as usize);
        }
        let (hashing, lifecycle) = (Hashing::default(), DefaultLifecycle::default());
        let memory = match options.build() {
            Ok(options) => Cache::with_options(options, ByLength, hashing, lifecycle),
            // Only for want of a capacity.
            Err(_) => Cache::with(entries, memory, ByLength, hashing, lifecycle),
        };
        BlockCache { memory, size, sharing: Arc::default(), hits: AtomicU64::new(0), misses: AtomicU64::new(0), disk }
    }

    /// From now on it may take so many bytes; what is beyond that leaves at once.
    pub fn resize(&self, memory: u64) {
        if self.size.swap(memory, Ordering::Relaxed) != memory {
            self.memory.set_capacity(memory);
        }
    }

    /// The opened frame, if it is in memory.
    pub fn get(&self, volume: Uuid, frame: FrameAddr, purpose: Purpose) -> Option<Part> {
        let key = (volume, frame);
        let (found, again) = match purpose {
            Purpose::Read => (self.memory.get(&key)?, true),
            Purpose::Ahead => (self.memory.peek(&key)?, false),
            Purpose::Stream => {
                let found = self.memory.peek(&key)?;
                let again = !found.unread.swap(false, Ordering::Relaxed);
                if again {
                    self.memory.get(&key);
                }
                (found, again)
            }
        };
        if again && found.shares.is_some() {
            // In the place of the other one.
            let data = Bytes::copy_from_slice(found.part.data());
            self.insert(volume, frame, Content::Own(data.clone()), purpose);
            return Some(Part::own(data));
        }
        Some(found.part.clone())
    }

    /// Keeps an opened frame in memory, and lets others go for it.
    pub fn insert(&self, volume: Uuid, frame: FrameAddr, content: Content, purpose: Purpose) {
        let unread = AtomicBool::new(purpose == Purpose::Ahead);
        let shares = matches!(content, Content::Shared(_)).then(|| Arc::clone(&self.sharing));
        let part = content.into_part();
        if let Some(sharing) = &shares {
            sharing.came(&part);
        }
        self.memory.insert((volume, frame), Arc::new(Frame { part, unread, shares }));
    }

    /// Counts what somebody read, and was in memory or was not. What is looked for ahead counts for nothing.
    pub fn count(&self, hits: usize, misses: usize, purpose: Purpose) {
        if purpose == Purpose::Ahead {
            return;
        }
        for (count, more) in [(&self.hits, hits), (&self.misses, misses)] {
            // All reads of all volumes count here: what does not change is left to the others' caches.
            if more > 0 {
                count.fetch_add(more as u64, Ordering::Relaxed);
            }
        }
    }

    /// The tier on the local disk.
    pub fn disk(&self) -> Option<&DiskTier> {
        self.disk.as_ref()
    }

    /// Bytes that it may take in memory.
    pub fn memory_size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Bytes that it takes in memory.
    pub fn memory_used(&self) -> u64 {
        self.memory.weight()
    }

    /// Bytes that it keeps alive beside that: of memory that frames share of which some have gone.
    pub fn memory_beside(&self) -> u64 {
        self.sharing.beside()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        Status {
            memory_size: self.memory_size(),
            memory_used: self.memory_used(),
            memory_hits: self.hits.load(Ordering::Relaxed),
            memory_misses: self.misses.load(Ordering::Relaxed),
            disk: self.disk.as_ref().map(DiskTier::status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seq;

    const VOLUME: Uuid = Uuid::nil();
    const FRAME_BYTES: usize = 64 << 10;

    fn frame(no: usize) -> FrameAddr {
        FrameAddr { seq: Seq(1), offset: (no * FRAME_BYTES) as u32, len: FRAME_BYTES as u32 }
    }

    /// Sixteen frames that came together, for `purpose`, and where their memory begins.
    fn shared(cache: &BlockCache, purpose: Purpose) -> (Bytes, *const u8) {
        let whole = Bytes::from((0..16 * FRAME_BYTES).map(|i| (i / FRAME_BYTES) as u8).collect::<Vec<_>>());
        for no in 0..16 {
            let part = Part::own(whole.clone()).slice(no * FRAME_BYTES..(no + 1) * FRAME_BYTES);
            cache.insert(VOLUME, frame(no), Content::Shared(part), purpose);
        }
        let place = whole.as_ptr();
        (whole, place)
    }

    fn read_from(cache: &BlockCache, purpose: Purpose) -> Bytes {
        cache.get(VOLUME, frame(0), purpose).unwrap().data().clone()
    }

    #[test]
    fn a_frame_that_is_read_again_gets_memory_of_its_own() {
        for (purpose, reads) in [(Purpose::Read, [Purpose::Read; 2]), (Purpose::Ahead, [Purpose::Stream; 2])] {
            let cache = BlockCache::in_memory(64 << 20);
            let (mut whole, place) = shared(&cache, purpose);
            let data: Vec<Bytes> = reads.iter().map(|read| read_from(&cache, *read)).collect();
            assert!(data.iter().all(|data| data[..] == whole[..FRAME_BYTES]));
            // The stream's own read of what was fetched ahead for it is the first one.
            assert_eq!(data[0].as_ptr() == place, purpose == Purpose::Ahead);
            assert_ne!(data[1].as_ptr(), place);
            assert_eq!(read_from(&cache, Purpose::Read).as_ptr(), data[1].as_ptr());
            drop(data);
            for no in 1..16 {
                cache.get(VOLUME, frame(no), Purpose::Read).unwrap();
                cache.get(VOLUME, frame(no), Purpose::Read).unwrap();
            }
            assert_eq!(cache.memory_beside(), 0);
            whole = whole.try_into_mut().map(|whole| whole.freeze()).expect("nobody else keeps it");
            assert_eq!(whole.as_ptr(), place);
        }
    }

    #[test]
    fn what_looks_ahead_copies_nothing() {
        let cache = BlockCache::in_memory(64 << 20);
        let (_, place) = shared(&cache, Purpose::Read);
        for _ in 0..3 {
            assert_eq!(read_from(&cache, Purpose::Ahead).as_ptr(), place);
        }
    }

    /// Frames `range` of [`FRAME_BYTES`], each read twice so that it stays as long as it can.
    fn fill(cache: &BlockCache, range: std::ops::Range<usize>) {
        for no in range {
            cache.insert(VOLUME, frame(no), Content::Own(Bytes::from(vec![0; FRAME_BYTES])), Purpose::Read);
            cache.get(VOLUME, frame(no), Purpose::Read).unwrap();
        }
    }

    #[test]
    fn it_shrinks_at_once_keeps_what_is_read_again_and_grows_again() {
        const LEAST: u64 = 2 << 20;
        let cache = BlockCache::elastic(32 << 20, LEAST, None);
        fill(&cache, 0..2000);
        assert!(cache.status().memory_used > 30 << 20);
        for (size, more) in [(16 << 20, 2000..2100), (LEAST, 2100..2200), (24 << 20, 2200..4000)] {
            cache.resize(size);
            let status = cache.status();
            assert!(status.memory_size == size && status.memory_used <= size, "{status:?}");
            let last = more.end - 1;
            fill(&cache, more);
            let used = cache.status().memory_used;
            assert!(used <= size && used > size / 2, "{used} of {size}");
            assert!(cache.get(VOLUME, frame(last), Purpose::Read).is_some());
        }
    }

    #[test]
    fn shared_memory_goes_with_the_frames_that_came_in_it() {
        const MEMORY: u64 = 64 << 20;
        let cache = BlockCache::in_memory(MEMORY);
        let alive = Arc::new(());
        let (mut most, mut beside) = (0, 0);
        for group in 0..1000u32 {
            // The count of this is that of the groups in memory.
            struct Group {
                memory: Vec<u8>,
                _alive: Arc<()>,
            }
            impl AsRef<[u8]> for Group {
                fn as_ref(&self) -> &[u8] {
                    &self.memory
                }
            }
            let whole = Part::own(Bytes::from_owner(Group { memory: vec![0; 16 * 4096], _alive: alive.clone() }));
            for no in 0..16u32 {
                let frame = FrameAddr { seq: Seq(u64::from(group)), offset: no * 4096, len: 4096 };
                let part = whole.slice(no as usize * 4096..(no as usize + 1) * 4096);
                cache.insert(VOLUME, frame, Content::Shared(part), Purpose::Ahead);
            }
            drop(whole);
            let held = Arc::strong_count(&alive) - 1;
            most = most.max(held);
            let frames = cache.status().memory_used - ENTRY_OVERHEAD * cache.memory.len() as u64;
            assert_eq!(cache.memory_beside(), (held * 16 * 4096) as u64 - frames);
            beside = beside.max(cache.memory_beside());
        }
        assert!(beside > 0);
        let held = (most * 16 * 4096) as u64;
        assert!(held <= MEMORY + MEMORY / 4, "{held} bytes are held for {MEMORY}");
    }
}
