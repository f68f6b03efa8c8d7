//! A ghost: a volume of any size every block of which was written, in random order and in pieces of 4 KiB, and of which nothing is there.
//! Its segments and the pages of its map are made up when they are asked for, each in constant time, with right seals and the bytes that
//! the blocks must have; what the program writes itself goes into a real store behind it. So a volume of 100 TiB can be opened, read, written,
//! trimmed, collected and checkpointed like any other.
//!
//! [`shape`] says which block lies where, [`segments`] and [`pages`] make bytes of that, [`root`] makes the objects that are real from
//! the beginning, and this is the store. A round trip and counters are in it, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a ghost that cannot be made stops what it was made for
#![allow(dead_code)] // each program uses a part

pub mod pages;
pub mod root;
pub mod segments;
pub mod shape;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::codec::object::ObjectKind;
use ashlar::codec::seal::Sealer;
use ashlar::format::keys::Keys;
use ashlar::outside::{Clock, Random};
use ashlar::store::memory::PAGE_OBJECTS;
use ashlar::store::{Front, Key, ListPage, ObjectEntry, Result, Store, StoreError};
use ashlar::units::Seq;
use ashlar::volume::{self, CreateOptions, Meta, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use pages::{FRAMES_AT, Pages};
use segments::Segments;
use shape::Shape;

/// The name of the volume.
pub const NAME: &str = "ghost";

/// See the module.
#[derive(Debug)]
pub struct Ghost {
    pub shape: Shape,
    segments: Segments,
    pages: Pages,
    keys: Keys,
    sealer: Sealer,
    /// What is really there.
    behind: Arc<dyn Store>,
    /// Made-up objects that were deleted, a bit for each.
    gone: Mutex<Gone>,
    /// Of each request.
    round_trip: Mutex<Duration>,
    under_way: AtomicU64,
    /// What was asked of it.
    pub counts: Counts,
    /// Bytes of the root that was there from the beginning.
    pub root_bytes: u64,
}

#[derive(Debug)]
struct Gone {
    segments: Vec<u64>,
    checkpoints: Vec<u64>,
}

/// Requests and bytes. Whoever wants those of a while takes two and subtracts.
#[derive(Debug, Default)]
pub struct Counts {
    pub puts: AtomicU64,
    pub gets: AtomicU64,
    pub lists: AtomicU64,
    pub deletes: AtomicU64,
    pub objects_deleted: AtomicU64,
    pub bytes_got: AtomicU64,
    /// Of segments and checkpoints.
    pub bytes_put: [AtomicU64; 2],
    pub checkpoints_put: AtomicU64,
    /// How often a request began while no other one was under way: for whoever asks one thing at a time, the round trips that it waits for.
    pub waves: AtomicU64,
    /// Processor time of making things up, in nanoseconds.
    pub cpu_nanos: AtomicU64,
}

/// What an object of the volume is, by its key.
enum What {
    Segment(u64),
    /// The pages of that number.
    Checkpoint(u64),
    Real,
}

impl Ghost {
    /// A ghost in front of a store that is empty.
    pub async fn new(shape: Shape, behind: Arc<dyn Store>, random: &Random) -> Arc<Ghost> {
        let meta = create(&shape, &*behind, random).await;
        let (keys, sealer) = (Keys::of(&meta), Sealer::new(meta.uuid, None));
        let segments = Segments::new(&shape);
        let pages = Pages::new(&shape, &segments, root::seq(&shape));
        let [(at, checkpoint), (close_at, close)] = root::objects(&sealer, &shape, &segments, &pages).unwrap();
        let root_bytes = checkpoint.total;
        behind.put(&keys.checkpoint(at), checkpoint.parts).await.unwrap();
        behind.put(&keys.segment(close_at), close.parts).await.unwrap();
        let ghost = Ghost::of(shape, segments, pages, &meta, behind, 0);
        Arc::new(Ghost { root_bytes, ..ghost })
    }

    /// No ghost, but the real volume that lies in `behind`, and the same round trip and counters.
    pub fn real(shape: Shape, meta: &Meta, behind: Arc<dyn Store>) -> Arc<Ghost> {
        let segments = Segments::new(&shape);
        let pages = Pages::new(&shape, &segments, root::seq(&shape));
        // Nothing is made up: all of it has gone.
        Arc::new(Ghost::of(shape, segments, pages, meta, behind, u64::MAX))
    }

    fn of(shape: Shape, segments: Segments, pages: Pages, meta: &Meta, behind: Arc<dyn Store>, gone: u64) -> Ghost {
        let bits = |count: u64| vec![gone; count.div_ceil(64) as usize];
        let gone = Mutex::new(Gone { segments: bits(shape.segments), checkpoints: bits(pages.objects) });
        let (keys, sealer) = (Keys::of(meta), Sealer::new(meta.uuid, None));
        Ghost {
            shape,
            segments,
            pages,
            keys,
            sealer,
            behind,
            gone,
            round_trip: Mutex::new(Duration::ZERO),
            under_way: AtomicU64::new(0),
            counts: Counts::default(),
            root_bytes: 0,
        }
    }

    /// How long each request takes from now on.
    pub fn set_round_trip(&self, time: Duration) {
        *self.round_trip.lock() = time;
    }

    /// Bytes of the pages of the map, made up ones.
    pub fn map_bytes(&self) -> u64 {
        (0..self.pages.objects).map(|object| self.pages.bytes_of(object)).sum()
    }

    /// Objects that hold them.
    pub fn map_objects(&self) -> u64 {
        self.pages.objects
    }

    /// What a block held at first; nothing if it was given up.
    pub fn content(&self, block: u64) -> Option<Vec<u8>> {
        self.shape.is_live(self.shape.place(block)).then(|| self.shape.content(block, 0))
    }

    /// Runs `work`, whose processor time is the ghost's and not that of the program under test.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = thread_time();
        let result = work();
        self.counts.cpu_nanos.fetch_add((thread_time() - began).as_nanos() as u64, Ordering::Relaxed);
        result
    }

    async fn travel(&self) {
        let time = *self.round_trip.lock();
        if !time.is_zero() {
            let is_first = self.under_way.fetch_add(1, Ordering::Relaxed) == 0;
            self.counts.waves.fetch_add(u64::from(is_first), Ordering::Relaxed);
            let _travelling = Travelling(&self.under_way);
            tokio::time::sleep(time).await;
        }
    }

    fn what(&self, key: &Key) -> What {
        let seq = Keys::number(key).map(Seq);
        let segment = seq.filter(|seq| *key == self.keys.segment(*seq)).and_then(|seq| self.segments.of(seq));
        let checkpoint = seq.filter(|seq| *key == self.keys.checkpoint(*seq)).and_then(|seq| self.object_at(seq));
        let gone = self.gone.lock();
        match (segment, checkpoint) {
            (Some(segment), _) if !has(&gone.segments, segment) => What::Segment(segment),
            (_, Some(object)) if !has(&gone.checkpoints, object) => What::Checkpoint(object),
            _ => What::Real,
        }
    }

    fn object_at(&self, seq: Seq) -> Option<u64> {
        seq.0.checked_sub(self.pages.first.0).filter(|object| *object < self.pages.objects)
    }

    fn length(&self, what: &What) -> u64 {
        match what {
            What::Segment(_) => self.segments.bytes(),
            What::Checkpoint(object) => u64::from(FRAMES_AT) + self.pages.bytes_of(*object),
            What::Real => 0,
        }
    }

    /// The bytes `range` of something made up, cut at its end.
    fn made_up(&self, what: &What, range: Range<u64>) -> Bytes {
        let end = range.end.min(self.length(what));
        let (mut at, mut bytes) = (range.start, Vec::new());
        while at < end {
            let (begins, piece) = match what {
                What::Segment(segment) => self.segments.piece(&self.sealer, *segment, at),
                What::Checkpoint(object) => {
                    let salt = pages::salt(ObjectKind::Checkpoint, Seq(self.pages.first.0 + object));
                    self.pages.page(&self.sealer, &salt, *object, at)
                }
                What::Real => return Bytes::new(),
            };
            let to = (begins + piece.len() as u64).min(end);
            bytes.extend_from_slice(&piece[(at - begins) as usize..(to - begins) as usize]);
            at = to;
        }
        bytes.into()
    }

    /// The keys of made-up objects after `after`, at most a page of them, in order.
    fn listed(&self, prefix: &str, after: Option<&Key>) -> Vec<ObjectEntry> {
        let mut found = Vec::new();
        let checkpoints = self.keys.checkpoints();
        let of_checkpoint = |seq| self.keys.checkpoint(Seq(seq));
        let first = self.pages.first.0;
        self.list_folder(&checkpoints, prefix, after, (first, 1, self.pages.objects), &of_checkpoint, &mut found);
        let of_segment = |seq| self.keys.segment(Seq(seq));
        for low in 0..256u64 {
            let folder = format!("{}{low:02x}/", self.keys.segments());
            let first = segments::FIRST + low.wrapping_sub(segments::FIRST) % 256;
            let count = (segments::FIRST + self.shape.segments).saturating_sub(first).div_ceil(256);
            self.list_folder(&folder, prefix, after, (first, 256, count), &of_segment, &mut found);
            if found.len() >= PAGE_OBJECTS {
                break;
            }
        }
        found.truncate(PAGE_OBJECTS);
        found
    }

    /// Those of one folder: numbers from the first on, so far apart, so many.
    fn list_folder(
        &self,
        folder: &str,
        prefix: &str,
        after: Option<&Key>,
        (first, step, count): (u64, u64, u64),
        key: &dyn Fn(u64) -> Key,
        found: &mut Vec<ObjectEntry>,
    ) {
        if !folder.starts_with(prefix) && !prefix.starts_with(folder) {
            return;
        }
        let from = match after.map(Key::as_str) {
            Some(after) if after.starts_with(folder) => {
                let number = u64::from_str_radix(after[folder.len()..].get(..16).unwrap_or_default(), 16).unwrap_or(0);
                number.saturating_sub(first) / step
            }
            Some(after) if after > folder => count,
            _ => 0,
        };
        let keys = (from..count).map(|n| key(first + n * step)).filter(|key| after.is_none_or(|after| key > after));
        let there = keys.filter(|key| key.as_str().starts_with(prefix)).filter_map(|key| match self.what(&key) {
            What::Real => None,
            what => Some(ObjectEntry { size: self.length(&what), key }),
        });
        found.extend(there.take(PAGE_OBJECTS));
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The description of an empty volume of that shape.
pub async fn create(shape: &Shape, store: &dyn Store, random: &Random) -> Meta {
    let options = CreateOptions { size: shape.blocks * shape::BLOCK, ..CreateOptions::default() };
    let name = VolumeName::new(NAME).unwrap();
    volume::create(store, random, &Clock::System, &name, options).await.unwrap().meta
}

/// A request on its way, whatever becomes of it.
struct Travelling<'a>(&'a AtomicU64);

impl Drop for Travelling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn has(bits: &[u64], n: u64) -> bool {
    bits[(n / 64) as usize] >> (n % 64) & 1 == 1
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[async_trait]
impl Store for Ghost {
    fn url(&self) -> String {
        format!("ghost://{}", self.shape.blocks)
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.count(&self.counts.puts);
        let is_checkpoint = key.as_str().starts_with(&self.keys.checkpoints());
        let bytes: u64 = body.iter().map(|part| part.len() as u64).sum();
        self.counts.bytes_put[usize::from(is_checkpoint)].fetch_add(bytes, Ordering::Relaxed);
        self.counts.checkpoints_put.fetch_add(u64::from(is_checkpoint), Ordering::Relaxed);
        self.travel().await;
        match self.what(key) {
            What::Real => self.behind.put(key, body).await,
            _ => Err(StoreError::already_exists(key)),
        }
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        tracing::trace!(%key, ?range, "get");
        self.count(&self.counts.gets);
        self.travel().await;
        let bytes = match self.what(key) {
            What::Real => self.behind.get_range(key, range).await?,
            what => self.aside(|| self.made_up(&what, range)),
        };
        self.counts.bytes_got.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let total = match self.what(key) {
            What::Real => self.behind.get_front(key, 0).await.ok().and_then(|front| front.total),
            what => Some(self.length(&what)),
        };
        Ok(Front { bytes: self.get_range(key, 0..len).await?, total })
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        tracing::trace!(%key, "get all");
        self.count(&self.counts.gets);
        self.travel().await;
        let bytes = match self.what(key) {
            What::Real => self.behind.get(key).await?,
            what => self.aside(|| self.made_up(&what, 0..u64::MAX)),
        };
        self.counts.bytes_got.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.count(&self.counts.lists);
        self.travel().await;
        let mut entries: Vec<_> = self.behind.list(prefix, start_after).await?.into_iter().collect();
        entries.extend(self.aside(|| self.listed(prefix, start_after)));
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        entries.truncate(PAGE_OBJECTS);
        Ok(ListPage::new(entries, true))
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.behind.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.count(&self.counts.deletes);
        self.counts.objects_deleted.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.travel().await;
        let mut real = Vec::new();
        for key in keys {
            let set = |bits: &mut Vec<u64>, n: u64| bits[(n / 64) as usize] |= 1 << (n % 64);
            match self.what(key) {
                What::Segment(segment) => set(&mut self.gone.lock().segments, segment),
                What::Checkpoint(object) => set(&mut self.gone.lock().checkpoints, object),
                What::Real => real.push(key.clone()),
            }
        }
        self.behind.delete(&real).await
    }
}
