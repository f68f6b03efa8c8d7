//! Reading pages of the map out of checkpoint objects: as frames are read, but not cached; the map itself keeps them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};

use super::{Inner, Objects, ReadError, corrupt};
use crate::cache::flight::Flight;
use crate::codec::CorruptError;
use crate::codec::seal::Salt;
use crate::error::VolumeError;
use crate::format::root::{self, CheckpointInfo, place_of};
use crate::format::segment::LogObject;
use crate::map::{MapPage, PageAt, PageKind, PageRef, Placement};
use crate::reading::{Slot, slots};
use crate::store::{Key, StoreError};

/// The pages that one GET brought, or why not.
pub(super) type BroughtPages = Result<Arc<HashMap<PageRef, Arc<MapPage>>>, ReadError>;

/// Pages of the map as they lie in the store.
pub type LoadedPages = Vec<(PageRef, Arc<MapPage>)>;

/// A page that is wanted, and what is known of its checkpoint.
pub type WantedPage = (PageAt, CheckpointInfo);

/// Pages of one checkpoint object that one GET brings, in the order of their offsets.
struct PageGet {
    range: Range<u64>,
    info: CheckpointInfo,
    pages: Vec<PageAt>,
}

impl Objects {
    /// The pages at the given places.
    pub async fn pages(&self, wanted: Vec<WantedPage>) -> Result<LoadedPages, ReadError> {
        let flights = &self.inner.pages;
        let mut flying: Vec<Flight<BroughtPages>> = Vec::new();
        let mut missing = Vec::new();
        {
            let mut board = flights.board();
            for &(page, info) in &wanted {
                match (board.find(page.at), page.kind) {
                    (Some(flight), _) => flying.push(flight),
                    (None, PageKind::Carrier(salt)) => {
                        flying.push(board.launch(vec![page.at], self.inner.clone().bring_places(page.at, salt)));
                    }
                    (None, _) => missing.push((page, info)),
                }
            }
            for get in plan_pages(missing, self.inner.read_gap, self.inner.read_max) {
                let places = get.pages.iter().map(|page| page.at).collect();
                flying.push(board.launch(places, self.inner.clone().bring_pages(get)));
            }
        }
        let mut have = HashMap::with_capacity(wanted.len());
        let mut landing: FuturesUnordered<_> = flying.into_iter().collect();
        while let Some(brought) = landing.next().await {
            have.extend(brought?.iter().map(|(at, page)| (*at, page.clone())));
        }
        Ok(wanted.into_iter().filter_map(|(page, _)| Some((page.at, have.get(&page.at)?.clone()))).collect())
    }
}

impl Inner {
    async fn bring_pages(self: Arc<Self>, get: PageGet) -> BroughtPages {
        let Some(first) = get.pages.first() else { return Ok(Arc::default()) };
        let own = self.keys.checkpoint(first.at.checkpoint);
        self.try_places(&own, |key| self.bring_pages_once(key, &get)).await
    }

    /// What lies where in a segment that carries others.
    async fn bring_places(self: Arc<Self>, at: PageRef, salt: Salt) -> BroughtPages {
        let _permit = self.requests.acquire().await;
        let (seq, own) = (at.checkpoint, self.keys.segment(at.checkpoint));
        let gone = || ReadError::Store { key: own.clone(), offset: 0, source: StoreError::not_found(&own) };
        let read = match slots::read_slot(&*self.store, &self.keys, &self.sealer, seq).await {
            Ok(Slot::Holds(read, _)) if read.salt == salt => read,
            // Another encoding than the one that was committed.
            Ok(Slot::Holds(_, key)) => return Err(corrupt(&key, 0, CorruptError::TagMismatch)),
            Ok(Slot::Free | Slot::Torn(_)) => return Err(gone()),
            Err(VolumeError::Store { source, .. }) => return Err(ReadError::Store { key: own, offset: 0, source }),
            Err(damaged) => {
                tracing::error!(object = %own, "corrupt object: {damaged}");
                return Err(corrupt(&own, 0, CorruptError::TagMismatch));
            }
        };
        let LogObject::Segment(head) = &read.object else {
            return Err(corrupt(&own, 0, CorruptError::TagMismatch));
        };
        let place = |(extent, placement)| match placement {
            Placement::Data(location) => Some((extent, location)),
            Placement::Zero | Placement::Hole => None,
        };
        let places = head.placements(seq, read.frames_at).into_iter().filter_map(place).collect();
        Ok(Arc::new(HashMap::from([(at, Arc::new(MapPage::Carrier(places)))])))
    }

    async fn bring_pages_once(&self, key: Key, get: &PageGet) -> BroughtPages {
        let bytes = self.read(&key, get.range.clone()).await?;
        let mut opened = HashMap::with_capacity(get.pages.len());
        for page in &get.pages {
            let offset = u64::from(place_of(&get.info, &page.at));
            let from = (offset - get.range.start) as usize;
            let sealed = bytes.slice(from..from + page.at.len as usize);
            let opens = root::open_page(&self.sealer, &get.info, page, &sealed);
            opened.insert(page.at, Arc::new(opens.map_err(|why| corrupt(&key, offset, why))?));
        }
        Ok(Arc::new(opened))
    }
}

/// Joins pages of one object that lie at most `gap` bytes apart into one GET of at most `max` bytes (a single page may
/// be longer).
fn plan_pages(mut pages: Vec<WantedPage>, gap: u64, max: u64) -> Vec<PageGet> {
    pages.sort_unstable_by_key(|(page, _)| (page.at.checkpoint, page.at.offset));
    pages.dedup();
    let mut gets: Vec<PageGet> = Vec::new();
    for (page, info) in pages {
        let offset = u64::from(place_of(&info, &page.at));
        let range = offset..offset + u64::from(page.at.len);
        match gets.last_mut() {
            Some(get)
                if get.pages.last().is_some_and(|last| last.at.checkpoint == page.at.checkpoint)
                    && range.start <= get.range.end + gap
                    && range.end.max(get.range.end) - get.range.start <= max =>
            {
                get.range.end = get.range.end.max(range.end);
                get.pages.push(page);
            }
            _ => gets.push(PageGet { range, info, pages: vec![page] }),
        }
    }
    gets
}
