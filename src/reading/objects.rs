//! Reading a volume's objects: frames and map pages, each verified before use (rule R9), each fetched once however many
//! wait for it. A frame comes from memory, from the local disk, or from the store, and is the same wherever it comes from:
//! what is not in memory is opened with the key of its object.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::cache::disk::Run;
use crate::cache::flight::{Flight, Flights};
use crate::cache::{BlockCache, Content, Purpose};
use crate::codec::CorruptError;
use crate::codec::object::ObjectKind;
use crate::codec::seal::{ObjectKey, Salt, Sealer};
use crate::format::keys::Keys;
use crate::format::places::{PLACES_MAX, place};
use crate::format::segment::{self, Opened};
use crate::map::PageRef;
use crate::outside::Workers;
use crate::part::{Owner, Part};
use crate::reading::again::READS;
use crate::reading::fetch::{self, Get};
use crate::store::{ErrorKind, Key, Store, StoreError};
use crate::units::{BlockSize, FrameAddr, Seq};

mod keep;
mod pages;
mod referred;
mod sealed;

use pages::BroughtPages;
pub use pages::{LoadedPages, WantedPage};
pub use sealed::Sealed;

/// Why bytes could not be had from the store; cheap to hand to everybody who waits.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed, or has no such object.
    #[error("reading {key} at {offset}: {source}")]
    Store {
        /// The object.
        key: Key,
        /// The byte offset.
        offset: u64,
        /// The store's own words.
        source: StoreError,
    },
    /// The object is not what was written.
    #[error("object {key} is corrupt at byte {offset}: {why} [A02]")]
    Corrupt {
        /// The object.
        key: Key,
        /// The byte offset.
        offset: u64,
        /// What is wrong.
        why: CorruptError,
    },
}

impl ReadError {
    /// Whether the store was asked again and again, and did not answer.
    fn is_retryable(&self) -> bool {
        matches!(self, ReadError::Store { source, .. } if source.kind == ErrorKind::Retryable)
    }
}

/// The frames that one GET brought, or why not.
type Brought = Result<Arc<HashMap<FrameAddr, Part>>, ReadError>;
/// What a fetch needs to know beside its frames.
#[derive(Debug)]
struct How {
    /// The salts of the segments.
    salts: Salts,
    /// What it is for.
    purpose: Purpose,
    /// The most bytes of one request.
    request: u64,
    /// They are what others refer to: none of them is itself a reference.
    is_referred: bool,
}

type Salts = HashMap<Seq, Salt>;

/// Frames of more bytes than this together are opened by the workers; fewer take less time than going there.
const INLINE_BYTES: usize = 96 << 10;

/// One of so many requests stays free for reads, however much is being fetched ahead: what lies in many segments takes many
/// requests, and a read would wait for all of them.
const AHEAD_LEAVES: usize = 4;

/// How a volume is read.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Requests that are under way at once.
    pub parallel: u32,
    /// Frames of one segment that lie at most this many bytes apart are read in one request.
    pub gap: u64,
    /// The most bytes that one request reads.
    pub max: u64,
}

/// The reader of one volume's objects.
#[derive(Clone, Debug)]
pub struct Objects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    keys: Keys,
    volume: Uuid,
    block_bytes: usize,
    sealer: Sealer,
    cache: Arc<BlockCache>,
    workers: Workers,
    requests: Semaphore,
    /// The part of them that what nobody waits for may have.
    requests_ahead: Semaphore,
    read_gap: u64,
    read_max: u64,
    frames: Flights<FrameAddr, Brought>,
    /// What frames refer to. One fetch brings several frames, from the disk of several segments: were these among the others, a fetch could come to wait for itself.
    referred: Flights<FrameAddr, Brought>,
    pages: Flights<PageRef, BroughtPages>,
}

impl Objects {
    /// Bytes that the cache may take in memory.
    pub fn cache_memory(&self) -> u64 {
        self.inner.cache.memory_size()
    }

    /// A reader of the volume's objects.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        (volume, block_size): (Uuid, BlockSize),
        sealer: Sealer,
        cache: Arc<BlockCache>,
        workers: Workers,
        limits: ReadLimits,
    ) -> Objects {
        let requests = limits.parallel.max(1) as usize;
        let inner = Inner {
            store,
            keys,
            volume,
            block_bytes: block_size.bytes() as usize,
            sealer,
            cache,
            workers,
            requests: Semaphore::new(requests),
            requests_ahead: Semaphore::new(requests - requests / AHEAD_LEAVES),
            read_gap: limits.gap,
            read_max: limits.max,
            frames: Flights::default(),
            referred: Flights::default(),
            pages: Flights::default(),
        };
        Objects { inner: Arc::new(inner) }
    }

    /// The opened frames, from the cache or the store; from the latter with requests of up to `request` bytes, or `read_max`
    /// if that is more, but for those that were fetched already.
    pub async fn frames(
        &self,
        wanted: &[(FrameAddr, Salt)],
        purpose: Purpose,
        request: u64,
        sealed: Sealed,
    ) -> Result<HashMap<FrameAddr, Part>, ReadError> {
        let mut have = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for &(frame, salt) in wanted {
            match self.inner.cache.get(self.inner.volume, frame, purpose) {
                Some(data) => drop(have.insert(frame, data)),
                None => missing.push((frame, salt)),
            }
        }
        self.inner.cache.count(have.len(), missing.len(), purpose);
        if !missing.is_empty() {
            let mut landing: FuturesUnordered<_> =
                self.flights(missing, &mut have, purpose, request, sealed, false).into_iter().collect();
            while let Some(brought) = landing.next().await {
                have.extend(brought?.iter().map(|(frame, data)| (*frame, data.clone())));
            }
        }
        Ok(have)
    }

    /// The flights that bring the frames, new ones for those that nobody has asked for; what came meanwhile is added to
    /// `have`.
    fn flights(
        &self,
        wanted: Vec<(FrameAddr, Salt)>,
        have: &mut HashMap<FrameAddr, Part>,
        purpose: Purpose,
        request: u64,
        mut sealed: Sealed,
        is_referred: bool,
    ) -> Vec<Flight<Brought>> {
        let inner = &self.inner;
        let (mut flights, mut missing, mut fetched, mut salts) = (Vec::new(), Vec::new(), Vec::new(), Salts::new());
        // While we look nobody else can launch, nor land.
        let mut board = if is_referred { inner.referred.board() } else { inner.frames.board() };
        for (frame, salt) in wanted {
            if let Some(flight) = board.find(frame) {
                flights.push(flight);
            } else if let Some(data) = inner.cache.get(inner.volume, frame, purpose) {
                have.insert(frame, data);
            } else {
                match sealed.remove(&frame) {
                    Some(bytes) => fetched.push((frame, bytes)),
                    None => missing.push(frame),
                }
                salts.insert(frame.seq, salt);
            }
        }
        let how = Arc::new(How { salts, purpose, request: request.max(inner.read_max), is_referred });
        for (frame, bytes) in fetched {
            flights.push(board.launch(vec![frame], inner.clone().open_fetched(frame, bytes, how.clone())));
        }
        if let Some(disk) = inner.cache.disk() {
            let (runs, elsewhere) = disk.find(inner.volume, missing);
            missing = elsewhere;
            for run in runs {
                let frames = run.frames().collect();
                flights.push(board.launch(frames, inner.clone().bring_from_disk(run, how.clone())));
            }
        }
        for get in inner.plan(missing, &how) {
            let frames = get.frames.clone();
            flights.push(board.launch(frames, inner.clone().bring(get, how.clone())));
        }
        flights
    }
}

impl Inner {
    fn plan(&self, frames: Vec<FrameAddr>, how: &How) -> Vec<Get> {
        fetch::plan(frames, self.read_gap, how.request)
    }

    /// What the disk does not have after all, or cannot prove, comes from the store.
    async fn bring_from_disk(self: Arc<Self>, run: Run, how: Arc<How>) -> Brought {
        let (Some(disk), Some(read)) = (self.cache.disk(), self.read_disk(&run).await) else {
            return self.bring_all(run.frames().collect(), &how).await;
        };
        let (mut opened, mut missing) = (HashMap::with_capacity(read.len()), Vec::new());
        for (frame, result) in self.open(read, run.bytes(), &how).await? {
            match result {
                Ok(data) => drop(opened.insert(frame, data)),
                Err(_) => {
                    disk.reject(self.volume, &run, frame);
                    missing.push(frame);
                }
            }
        }
        disk.accept(opened.len());
        if missing.is_empty() {
            return Ok(Arc::new(opened));
        }
        let rest = self.bring_all(missing, &how).await?;
        opened.extend(rest.iter().map(|(frame, data)| (*frame, data.clone())));
        Ok(Arc::new(opened))
    }

    async fn read_disk(&self, run: &Run) -> Option<Vec<(FrameAddr, Bytes)>> {
        self.cache.disk()?.read(run).await
    }

    async fn bring_all(self: &Arc<Self>, frames: Vec<FrameAddr>, how: &Arc<How>) -> Brought {
        let gets = self.plan(frames, how).into_iter().map(|get| self.clone().bring(get, how.clone()));
        let all = try_join_all(gets).await?;
        let all = all.iter().flat_map(|some| some.iter()).map(|(frame, data)| (*frame, data.clone()));
        Ok(Arc::new(all.collect()))
    }

    async fn bring(self: Arc<Self>, get: Get, how: Arc<How>) -> Brought {
        self.try_places(&self.keys.segment(get.seq), |key| self.bring_once(key, &get, &how)).await
    }

    /// What `read` proves at one of the places of an object; mostly there is only one. What could not be proven anywhere is
    /// read again: it may have been harmed on the way, not in the store ([`crate::reading::again`]).
    async fn try_places<T, F>(&self, own: &Key, read: impl Fn(Key) -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, ReadError>>,
    {
        for n in 0..PLACES_MAX {
            let Ok(key) = place(own, n) else { break };
            match read(key).await {
                Err(ReadError::Corrupt { .. }) => {}
                Err(ReadError::Store { source, .. }) if n > 0 && source.kind == ErrorKind::NotFound => break,
                read => return read,
            }
        }
        let mut again = read(own.clone()).await;
        for _ in 2..READS {
            if matches!(again, Err(ReadError::Corrupt { .. })) {
                again = read(own.clone()).await;
            }
        }
        if let Err(ReadError::Corrupt { key, offset, why }) = &again {
            tracing::error!(object = %key, offset, "corrupt object: {why}");
        }
        again
    }

    async fn bring_once(self: &Arc<Self>, key: Key, get: &Get, how: &How) -> Brought {
        let turn = match how.purpose {
            Purpose::Ahead => self.requests_ahead.acquire().await.ok(),
            Purpose::Read | Purpose::Stream => None,
        };
        let bytes = self.read(&key, get.range.clone()).await?;
        drop(turn);
        let cut = |&frame: &FrameAddr| {
            let from = (u64::from(frame.offset) - get.range.start) as usize;
            (frame, bytes.slice(from..from + frame.len as usize))
        };
        let mut opened = HashMap::with_capacity(get.frames.len());
        for (frame, result) in self.open(get.frames.iter().map(cut).collect(), bytes.len() as u64, how).await? {
            opened.insert(frame, result.map_err(|why| corrupt(&key, u64::from(frame.offset), why))?);
        }
        // Only what is proven goes to the disk.
        if let Some(disk) = self.cache.disk() {
            disk.offer(self.volume, &bytes, get.range.start, get.frames.iter().copied());
        }
        Ok(Arc::new(opened))
    }

    /// Proves and decompresses frames, which came in so many bytes in one piece, and puts what is proven into memory. Fails as a whole only if what they
    /// refer to cannot be had.
    async fn open(
        self: &Arc<Self>,
        sealed: Vec<(FrameAddr, Bytes)>,
        piece: u64,
        how: &How,
    ) -> Result<Vec<(FrameAddr, Result<Part, CorruptError>)>, ReadError> {
        let bytes: usize = sealed.iter().map(|(_, sealed)| sealed.len()).sum();
        let mut keys: HashMap<Seq, Result<ObjectKey, CorruptError>> = HashMap::new();
        for (frame, _) in &sealed {
            let salt = how.salts.get(&frame.seq).copied().unwrap_or_default();
            let key = || self.sealer.object_key(ObjectKind::Segment, frame.seq, &salt);
            keys.entry(frame.seq).or_insert_with(key);
        }
        let open = move || {
            let open = |(frame, sealed): &(FrameAddr, Bytes)| open_frame(keys.get(&frame.seq), *frame, sealed);
            let (mut opened, mut data, mut referring) = (Vec::with_capacity(sealed.len()), Vec::new(), Vec::new());
            for (frame, sealed) in sealed {
                match open(&(frame, sealed.clone())) {
                    Ok(Opened::Reference(len, reference)) => referring.push((frame, len, reference)),
                    Ok(Opened::Data(bytes)) => {
                        data.push((frame, sealed));
                        opened.push(Ok(bytes));
                    }
                    Err(why) => {
                        data.push((frame, sealed));
                        opened.push(Err(why));
                    }
                }
            }
            let sealed = data;
            let stays = |((_, sealed), opened): (&(FrameAddr, Bytes), &Result<Bytes, CorruptError>)| {
                opened.as_ref().is_ok_and(|data| is_within(data, sealed)).then_some(sealed.len() as u64)
            };
            let memory = Memory::of(sealed.iter().zip(&opened).filter_map(stays), piece);
            let owner = sealed.first().map_or(Owner::NONE, |(_, first)| Owner::of_piece(first, piece as usize));
            let content = |((frame, sealed), opened): ((FrameAddr, Bytes), Result<Bytes, CorruptError>)| {
                (frame, opened.map(|data| memory.content(data, &sealed, owner)))
            };
            (sealed.into_iter().zip(opened).map(content).collect::<Vec<_>>(), referring)
        };
        let (mut opened, referring) = if bytes > INLINE_BYTES { self.workers.run(open).await } else { open() };
        if !referring.is_empty() {
            opened.extend(self.resolve(referring, how).await?);
        }
        let keep = |(frame, opened): (FrameAddr, Result<Content, CorruptError>)| {
            let opened = opened.map(|content| {
                self.cache.insert(self.volume, frame, content.clone(), how.purpose);
                content.into_part()
            });
            (frame, opened)
        };
        Ok(opened.into_iter().map(keep).collect())
    }

    /// Exactly the bytes of the range.
    async fn read(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ReadError> {
        let _permit = self.requests.acquire().await;
        let (offset, len) = (range.start, range.end - range.start);
        let read = self.store.get_range(key, range).await;
        let bytes = read.map_err(|source| ReadError::Store { key: key.clone(), offset, source })?;
        match bytes.len() as u64 {
            have if have == len => Ok(bytes),
            have => Err(corrupt(key, offset, CorruptError::Truncated { have, need: len })),
        }
    }
}

/// What becomes of the memory in which frames came. One that was stored as it is can stay there, but keeps all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// It is one frame's.
    OfOne,
    /// Frames that came together fill it, and will share it.
    OfMany,
    /// Too much of it is something else: frames are copied out of it.
    Scratch,
}

impl Memory {
    /// Of `piece` bytes that came together, among them frames of these lengths that could stay there.
    fn of(frames: impl Iterator<Item = u64>, piece: u64) -> Memory {
        let (count, bytes) = frames.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
        match bytes >= piece - piece / 8 {
            true if count == 1 => Memory::OfOne,
            true => Memory::OfMany,
            false => Memory::Scratch,
        }
    }

    /// What is kept of a frame that came as `sealed`, in memory of `owner`.
    fn content(self, data: Bytes, sealed: &Bytes, owner: Owner) -> Content {
        match (self, is_within(&data, sealed)) {
            (Memory::OfMany, true) => Content::Shared(Part::within(data, owner)),
            (Memory::Scratch, true) => Content::Own(Bytes::copy_from_slice(&data)),
            (Memory::OfOne, true) | (_, false) => Content::Own(data),
        }
    }
}

fn is_within(data: &Bytes, sealed: &Bytes) -> bool {
    sealed.as_ptr_range().contains(&data.as_ptr())
}

fn open_frame(
    key: Option<&Result<ObjectKey, CorruptError>>,
    addr: FrameAddr,
    sealed: &Bytes,
) -> Result<Opened, CorruptError> {
    let key = key.ok_or(CorruptError::TagMismatch)?.as_ref().map_err(Clone::clone)?;
    segment::open_any(key, addr, sealed)
}

fn corrupt(key: &Key, offset: u64, why: CorruptError) -> ReadError {
    ReadError::Corrupt { key: key.clone(), offset, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_stay_in_the_memory_in_which_they_came_only_if_they_fill_it() {
        let memory = |frames: &[u64], piece| Memory::of(frames.iter().copied(), piece);
        assert_eq!(memory(&[4116], 4116), Memory::OfOne);
        assert_eq!(memory(&[4116], 16 << 10), Memory::Scratch);
        assert_eq!(memory(&[65556; 16], 16 * 65556), Memory::OfMany);
        assert_eq!(memory(&[65556; 15], 16 * 65556), Memory::OfMany);
        assert_eq!(memory(&[65556; 13], 16 * 65556), Memory::Scratch, "the others were compressed, or not asked for");
        assert_eq!(memory(&[], 1), Memory::Scratch);
        let sealed = Bytes::from(vec![7; 100]);
        let (within, apart) = (sealed.slice(20..), Bytes::from(vec![8; 200]));
        let kept = |memory: Memory, data: &Bytes| memory.content(data.clone(), &sealed, Owner::of(&sealed));
        assert!(
            matches!(kept(Memory::OfMany, &within), Content::Shared(part) if part.data().as_ptr() == within.as_ptr())
        );
        assert!(matches!(kept(Memory::OfOne, &within), Content::Own(data) if data.as_ptr() == within.as_ptr()));
        assert!(matches!(kept(Memory::Scratch, &within), Content::Own(data) if data.as_ptr() != within.as_ptr()));
        for memory in [Memory::OfOne, Memory::OfMany, Memory::Scratch] {
            assert!(matches!(kept(memory, &apart), Content::Own(data) if data.as_ptr() == apart.as_ptr()));
        }
    }
}
