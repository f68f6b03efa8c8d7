//! Reading a volume's objects: frames and map pages, each verified before use (rule R9), each fetched once however many
//! wait for it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::cache::BlockCache;
use crate::cache::flight::{Flight, Flights};
use crate::codec::object::ObjectKind;
use crate::codec::seal::{Salt, Sealer};
use crate::codec::{CorruptError, frame};
use crate::map::{Page, PageIndex, PageRef};
use crate::store::{Key, Store, StoreError};
use crate::units::{FRAME_BYTES_MAX, FrameAddr};
use crate::volume::fetch::{self, Get};
use crate::volume::keys::Keys;
use crate::volume::options::Options;
use crate::volume::root;

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
    #[error("object {key} is corrupt at byte {offset}: {why}")]
    Corrupt {
        /// The object.
        key: Key,
        /// The byte offset.
        offset: u64,
        /// What is wrong.
        why: CorruptError,
    },
}

/// The frames that one GET brought, or why not.
type Brought = Result<Arc<HashMap<FrameAddr, Bytes>>, ReadError>;
/// The pages that one GET brought, or why not.
type BroughtPages = Result<Arc<HashMap<PagePlace, Arc<Page>>>, ReadError>;

/// A page and where it lies.
type PagePlace = (PageIndex, u64, u32);

/// Pages of one checkpoint object that one GET brings, in the order of their offsets.
struct PageGet {
    range: Range<u64>,
    pages: Vec<(PageIndex, PageRef)>,
}

fn place(index: PageIndex, at: PageRef) -> PagePlace {
    (index, at.checkpoint.0, at.offset)
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
    sealer: Sealer,
    cache: Arc<BlockCache>,
    requests: Semaphore,
    read_gap: u64,
    read_max: u64,
    frames: Flights<FrameAddr, Brought>,
    pages: Flights<PagePlace, BroughtPages>,
}

impl Objects {
    /// A reader of the volume's objects.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        volume: Uuid,
        sealer: Sealer,
        cache: Arc<BlockCache>,
        options: &Options,
    ) -> Objects {
        let inner = Inner {
            store,
            keys,
            volume,
            sealer,
            cache,
            requests: Semaphore::new(options.read_parallel.max(1) as usize),
            read_gap: options.read_gap,
            read_max: options.read_max,
            frames: Flights::default(),
            pages: Flights::default(),
        };
        Objects { inner: Arc::new(inner) }
    }

    /// The opened frames, from the cache or the store.
    pub async fn frames(&self, wanted: &[(FrameAddr, Salt)]) -> Result<HashMap<FrameAddr, Bytes>, ReadError> {
        let mut have = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        let mut salts = HashMap::new();
        let mut flights: Vec<Flight<Brought>> = Vec::new();
        for &(frame, salt) in wanted {
            if let Some(data) = self.inner.cache.get(self.inner.volume, frame) {
                have.insert(frame, data);
            } else if let Some(flight) = self.inner.frames.find(frame) {
                flights.push(flight);
            } else {
                missing.push(frame);
                salts.insert(frame.seq, salt);
            }
        }
        for get in fetch::plan(missing, self.inner.read_gap, self.inner.read_max) {
            let salt = salts.get(&get.seq).copied().unwrap_or_default();
            let frames = get.frames.clone();
            flights.push(self.inner.frames.launch(frames, self.inner.clone().bring(get, salt)));
        }
        let mut landing: FuturesUnordered<_> = flights.into_iter().collect();
        while let Some(brought) = landing.next().await {
            let brought = brought?;
            have.extend(wanted.iter().filter_map(|(frame, _)| Some((*frame, brought.get(frame)?.clone()))));
        }
        Ok(have)
    }

    /// The pages at the given places; the salt is that of the checkpoint object.
    pub async fn pages(
        &self,
        wanted: Vec<(PageIndex, PageRef, Salt)>,
    ) -> Result<Vec<(PageIndex, PageRef, Arc<Page>)>, ReadError> {
        let flights = &self.inner.pages;
        let mut flying: Vec<Flight<BroughtPages>> = Vec::new();
        let (mut missing, mut salts) = (Vec::new(), HashMap::new());
        for &(index, at, salt) in &wanted {
            match flights.find(place(index, at)) {
                Some(flight) => flying.push(flight),
                None => {
                    missing.push((index, at));
                    salts.insert(at.checkpoint, salt);
                }
            }
        }
        for get in plan_pages(missing, self.inner.read_gap, self.inner.read_max) {
            let salt = get.pages.first().and_then(|(_, at)| salts.get(&at.checkpoint)).copied().unwrap_or_default();
            let places = get.pages.iter().map(|&(index, at)| place(index, at)).collect();
            flying.push(flights.launch(places, self.inner.clone().bring_pages(get, salt)));
        }
        let mut have = HashMap::with_capacity(wanted.len());
        let mut landing: FuturesUnordered<_> = flying.into_iter().collect();
        while let Some(brought) = landing.next().await {
            have.extend(brought?.iter().map(|(place, page)| (*place, page.clone())));
        }
        let page = |(index, at, _)| have.get(&place(index, at)).map(|page| (index, at, page.clone()));
        Ok(wanted.into_iter().filter_map(page).collect())
    }
}

impl Inner {
    /// Reads again once what could not be proven: it may have been harmed on the way, not in the store.
    async fn bring(self: Arc<Self>, get: Get, salt: Salt) -> Brought {
        match self.bring_once(&get, &salt).await {
            Err(ReadError::Corrupt { .. }) => self.bring_once(&get, &salt).await,
            brought => brought,
        }
    }

    async fn bring_pages(self: Arc<Self>, get: PageGet, salt: Salt) -> BroughtPages {
        match self.bring_pages_once(&get, &salt).await {
            Err(ReadError::Corrupt { .. }) => self.bring_pages_once(&get, &salt).await,
            brought => brought,
        }
    }

    async fn bring_once(&self, get: &Get, salt: &Salt) -> Brought {
        let key = self.keys.segment(get.seq);
        let bytes = self.read(&key, get.range.clone()).await?;
        let object_key = self.sealer.object_key(ObjectKind::Segment, get.seq, salt);
        let object_key = object_key.map_err(|why| corrupt(&key, 0, why))?;
        let mut opened = HashMap::with_capacity(get.frames.len());
        for &frame in &get.frames {
            let from = (u64::from(frame.offset) - get.range.start) as usize;
            let sealed = bytes.slice(from..from + frame.len as usize);
            let body = object_key.open_frame(frame.offset, &sealed);
            let data = body.and_then(|body| frame::decompress_up_to(&body, FRAME_BYTES_MAX));
            let data = data.map_err(|why| corrupt(&key, u64::from(frame.offset), why))?;
            // A frame that was stored as it is would keep the whole GET alive.
            let data = Bytes::copy_from_slice(&data);
            self.cache.insert(self.volume, frame, data.clone());
            opened.insert(frame, data);
        }
        Ok(Arc::new(opened))
    }

    async fn bring_pages_once(&self, get: &PageGet, salt: &Salt) -> BroughtPages {
        let Some((_, first)) = get.pages.first() else { return Ok(Arc::default()) };
        let key = self.keys.checkpoint(first.checkpoint);
        let bytes = self.read(&key, get.range.clone()).await?;
        let mut opened = HashMap::with_capacity(get.pages.len());
        for &(index, at) in &get.pages {
            let from = (u64::from(at.offset) - get.range.start) as usize;
            let sealed = bytes.slice(from..from + at.len as usize);
            let mapped = root::open_page(&self.sealer, salt, index, at, &sealed);
            let mapped = mapped.map_err(|why| corrupt(&key, u64::from(at.offset), why))?;
            opened.insert(place(index, at), Arc::new(Page::from_mapped(&mapped)));
        }
        Ok(Arc::new(opened))
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

/// Joins pages of one object that lie at most `gap` bytes apart into one GET of at most `max` bytes (a single page may
/// be longer).
fn plan_pages(mut pages: Vec<(PageIndex, PageRef)>, gap: u64, max: u64) -> Vec<PageGet> {
    pages.sort_unstable_by_key(|(index, at)| (at.checkpoint, at.offset, *index));
    pages.dedup();
    let mut gets: Vec<PageGet> = Vec::new();
    for (index, at) in pages {
        let range = u64::from(at.offset)..u64::from(at.offset) + u64::from(at.len);
        match gets.last_mut() {
            Some(get)
                if get.pages.last().is_some_and(|(_, last)| last.checkpoint == at.checkpoint)
                    && range.start <= get.range.end + gap
                    && range.end.max(get.range.end) - get.range.start <= max =>
            {
                get.range.end = get.range.end.max(range.end);
                get.pages.push((index, at));
            }
            _ => gets.push(PageGet { range, pages: vec![(index, at)] }),
        }
    }
    gets
}

fn corrupt(key: &Key, offset: u64, why: CorruptError) -> ReadError {
    tracing::error!(object = %key, offset, "corrupt object: {why}");
    ReadError::Corrupt { key: key.clone(), offset, why }
}
