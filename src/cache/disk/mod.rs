//! The disk tier of the block cache: frames as they stand in their objects, compressed and sealed, on the server's own
//! disk, for all volumes together.
//!
//! - **Shape.** A ring of files, the slabs, each a sixty-fourth of the tier. Frames are appended to the newest in bundles
//!   ([`bundle`]); when the tier is full the oldest slab is deleted whole, after those of its frames that were asked for
//!   since they were written have been written again, at most half a slab of them. So the disk sees only large writes in
//!   sequence, there is nothing to allocate and nothing to compact, and the bound on bytes holds exactly.
//! - **Off the path of reads.** What was fetched is offered and forgotten; one task ([`keeper`]) writes it. What waits is
//!   bounded; beyond that an offer is dropped. Nothing is ever synced: a cache owes nobody anything.
//! - **Proof.** The tier does not judge what it gives out. A frame is opened with the key of its object like one from the
//!   store, which binds it to volume, object and place (rule R9); one that does not open is reported with [`DiskTier::reject`]
//!   and fetched from the store. An encrypted volume's frames are as secret here as in the bucket.
//! - **Restart.** The keeper reads the bundles' tables again and goes on; until it has, frames are misses.
//! - **Trouble.** When the disk is full, fails, or takes longer than [`PATIENCE`] for a read or a write, the tier turns itself off until
//!   the server is started again, and says so once in the log and in the status. A full disk gets its space back.
//!
//! It does not know the store, nor what a frame holds.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::disk::{Disk, DiskFile};
use crate::units::FrameAddr;

pub mod bundle;
pub mod index;
mod keeper;

use index::{Index, Place, SLAB_BYTES_MAX, key_of};

/// Options of the disk tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bytes of local disk for frames of all volumes together; 0 turns the tier off, and less than [`SIZE_MIN`] is refused.
    /// The index takes up to a hundredth of it in memory.
    #[serde(with = "crate::human::bytes")]
    pub size: u64,
    /// The directory; `cache` in the state directory if none is named.
    pub directory: Option<PathBuf>,
}

/// The smallest size of the tier in bytes, unless there is none.
pub const SIZE_MIN: u64 = 16 << 20;

/// Slabs that the tier is divided into, as long as they are neither too small nor too large.
const SLABS: u64 = 64;
const SLAB_BYTES_MIN: u64 = 1 << 20;

/// Longer frames are none of ours.
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// Bytes of bodies that wait to be written.
const QUEUE_BYTES: usize = 64 << 20;

/// A read or a write that takes longer is given up, and the tier with it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Frames this many bytes apart in one slab are read together, up to so many bytes.
const READ_GAP: u64 = 32 << 10;
const READ_MAX: u64 = 1 << 20;

/// What the tier is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bytes that it may take.
    pub size: u64,
    /// Bytes of its files.
    pub used: u64,
    /// Frames in it.
    pub frames: u64,
    /// Frames that were read from it and proved themselves.
    pub hits: u64,
    /// Frames that were asked for and not there.
    pub misses: u64,
    /// Frames that did not prove themselves; each was fetched from the store instead.
    pub bad: u64,
    /// Frames that were written, those that were written again included.
    pub written: u64,
    /// Frames that were offered while too much waited to be written.
    pub dropped: u64,
    /// Why it has turned itself off, if it has.
    pub off: Option<String>,
}

/// The tier. Dropping it ends its task and leaves the files for the next start.
#[derive(Debug)]
pub struct DiskTier {
    tier: Arc<Tier>,
    offers: UnboundedSender<Offer>,
    keeper: Option<JoinHandle<()>>,
}

/// What the handle and the keeper share.
#[derive(Debug)]
struct Tier {
    disk: Option<Arc<dyn Disk>>,
    size: u64,
    slab_bytes: u64,
    /// Held for a few synchronous lines, never across an await.
    index: Mutex<Index>,
    off: Mutex<Option<String>>,
    room: Arc<Semaphore>,
    /// Something was written, or will never be.
    room_made: Notify,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    bad: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// Frames to be kept, and the bytes in which they stand.
#[derive(Debug)]
struct Offer {
    frames: Vec<(u64, Bytes)>,
    _room: OwnedSemaphorePermit,
}

/// Frames that one read of the disk brings.
#[derive(Clone, Debug)]
pub struct Run {
    file: Arc<dyn DiskFile>,
    slab: u32,
    range: Range<u64>,
    frames: Vec<(FrameAddr, u64)>,
}

impl Run {
    /// Its frames, in the order in which they lie there.
    pub fn frames(&self) -> impl Iterator<Item = FrameAddr> {
        self.frames.iter().map(|(frame, _)| *frame)
    }

    /// Bytes of the read.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl DiskTier {
    /// The tier of so many bytes in the directory `disk`, which nobody else uses; it begins to read what is there.
    pub fn start(disk: Arc<dyn Disk>, size: u64) -> DiskTier {
        let tier = Arc::new(Tier::new(Some(disk.clone()), size));
        let (offers, waiting) = unbounded_channel();
        // It counts as a waiting offer until it has read what is there.
        let reading = tier.room.clone().try_acquire_owned().ok();
        let keeper = tokio::spawn(keeper::run(tier.clone(), disk, waiting, reading));
        DiskTier { tier, offers, keeper: Some(keeper) }
    }

    /// A tier that cannot be had, and why.
    pub fn unusable(place: &str, size: u64, why: &str) -> DiskTier {
        let tier = Arc::new(Tier::new(None, size));
        tier.turn_off(place, why);
        let (offers, _) = unbounded_channel();
        DiskTier { tier, offers, keeper: None }
    }

    /// The reads that bring those frames of a volume that are there, and the frames that are not.
    pub fn find(&self, volume: Uuid, wanted: Vec<FrameAddr>) -> (Vec<Run>, Vec<FrameAddr>) {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        if wanted.is_empty() {
            return (Vec::new(), missing);
        }
        {
            let mut index = self.tier.index.lock();
            for frame in wanted {
                match index.find(key_of(volume, frame)) {
                    Some((place, file)) => found.push((place, frame, file)),
                    None => missing.push(frame),
                }
            }
        }
        self.tier.counts.misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
        (runs(found), missing)
    }

    /// The bytes of the run's frames, in their order; `None` if the disk does not give them.
    pub async fn read(&self, run: &Run) -> Option<Vec<(FrameAddr, Bytes)>> {
        let len = (run.range.end - run.range.start) as usize;
        let bytes = match tokio::time::timeout(PATIENCE, run.file.read_at(run.range.start, len)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                self.tier.fail("a read failed", &error);
                return None;
            }
            Err(_) => {
                self.tier.fail("a read failed", &no_answer());
                return None;
            }
        };
        // A file that was cut off gives less; what is missing does not open.
        let cut = |&(frame, at): &(FrameAddr, u64)| {
            let from = ((at - run.range.start) as usize).min(bytes.len());
            (frame, bytes.slice(from..(from + frame.len as usize).min(bytes.len())))
        };
        Some(run.frames.iter().map(cut).collect())
    }

    /// So many frames of it proved themselves.
    pub fn accept(&self, frames: usize) {
        self.tier.counts.hits.fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// A frame of the run did not prove itself: it is forgotten.
    pub fn reject(&self, volume: Uuid, run: &Run, frame: FrameAddr) {
        let Some((_, at)) = run.frames.iter().find(|(found, _)| *found == frame) else { return };
        self.tier.index.lock().remove(key_of(volume, frame), Place::new(run.slab, *at));
        if self.tier.counts.bad.fetch_add(1, Ordering::Relaxed) == 0 {
            let place = self.tier.place();
            tracing::warn!(
                slab = run.slab,
                at,
                "the disk cache in {place} holds a frame that cannot be proven; it is read from the store, as further ones \
                 will be without a word"
            );
        }
    }

    /// Offers frames that stand in `body`, the bytes of their object from `start` on. They are kept if there is time.
    pub fn offer(&self, volume: Uuid, body: &Bytes, start: u64, frames: impl IntoIterator<Item = FrameAddr>) {
        let room = u32::try_from(body.len().max(1)).ok();
        let room = room.and_then(|len| self.tier.room.clone().try_acquire_many_owned(len).ok());
        let cut = |frame: FrameAddr| {
            let from = u64::from(frame.offset).checked_sub(start)? as usize;
            let end = from.checked_add(frame.len as usize).filter(|end| *end <= body.len())?;
            if frame.len > FRAME_BYTES_MAX {
                return None;
            }
            Some((key_of(volume, frame), body.slice(from..end)))
        };
        match room {
            Some(room) if !self.offers.is_closed() => {
                let frames = frames.into_iter().filter_map(cut).collect();
                // Were it closed just now, nobody would need them.
                let _ = self.offers.send(Offer { frames, _room: room });
            }
            _ => {
                self.tier.counts.dropped.fetch_add(frames.into_iter().count() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Waits until so many bytes may be offered without being dropped: for whoever wants the tier to be filled.
    pub async fn wait_for_room(&self, bytes: usize) {
        let enough = || self.tier.room.available_permits() >= bytes.min(QUEUE_BYTES);
        loop {
            // Before the look, so that what is written right after it is not missed.
            let written = self.tier.room_made.notified();
            if enough() {
                return;
            }
            written.await;
        }
    }

    /// Waits until everything that was offered is written or given up.
    pub async fn settled(&self) {
        drop(self.tier.room.acquire_many(QUEUE_BYTES as u32).await);
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let (used, frames) = {
            let index = self.tier.index.lock();
            (index.bytes(), index.frames())
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.tier.counts;
        Status {
            size: self.tier.size,
            used,
            frames,
            hits: count(&counts.hits),
            misses: count(&counts.misses),
            bad: count(&counts.bad),
            written: count(&counts.written),
            dropped: count(&counts.dropped),
            off: self.tier.off.lock().clone(),
        }
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

impl Tier {
    fn new(disk: Option<Arc<dyn Disk>>, size: u64) -> Tier {
        Tier {
            disk,
            size,
            slab_bytes: (size / SLABS).clamp(SLAB_BYTES_MIN, SLAB_BYTES_MAX),
            index: Mutex::default(),
            off: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            room_made: Notify::new(),
            counts: Counts::default(),
        }
    }

    fn place(&self) -> String {
        self.disk.as_ref().map(|disk| disk.path()).unwrap_or_default()
    }

    fn is_off(&self) -> bool {
        self.off.lock().is_some()
    }

    fn fail(&self, what: &str, error: &io::Error) {
        self.turn_off(&self.place(), &format!("{what}: {error}"));
    }

    /// From now on it has nothing and takes nothing. Returns the slabs that it had.
    fn turn_off(&self, place: &str, why: &str) -> Vec<u32> {
        let mut off = self.off.lock();
        if off.is_none() {
            tracing::warn!("the disk cache in {place} is off until the server is started again: {why}");
            *off = Some(why.to_owned());
        }
        self.index.lock().clear()
    }
}

fn no_answer() -> io::Error {
    io::Error::other(format!("no answer in {} s", PATIENCE.as_secs()))
}

/// Joins frames that lie near each other in one slab.
fn runs(mut found: Vec<(Place, FrameAddr, Arc<dyn DiskFile>)>) -> Vec<Run> {
    found.sort_unstable_by_key(|(place, ..)| (place.slab, place.at()));
    let mut runs: Vec<Run> = Vec::new();
    for (place, frame, file) in found {
        let range = place.at()..place.at() + u64::from(frame.len);
        match runs.last_mut() {
            Some(run)
                if run.slab == place.slab
                    && range.start <= run.range.end + READ_GAP
                    && range.end - run.range.start <= READ_MAX =>
            {
                run.range.end = run.range.end.max(range.end);
                run.frames.push((frame, place.at()));
            }
            _ => runs.push(Run { file, slab: place.slab, range, frames: vec![(frame, place.at())] }),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
