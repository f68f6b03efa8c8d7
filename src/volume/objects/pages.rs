//! Reading pages of the map out of checkpoint objects: as frames are read, but not cached; the map itself keeps them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};

use super::{Inner, Objects, ReadError, corrupt};
use crate::cache::flight::Flight;
use crate::codec::seal::Salt;
use crate::map::{Page, PageIndex, PageRef};
use crate::store::Key;
use crate::volume::root;

/// The pages that one GET brought, or why not.
pub(super) type BroughtPages = Result<Arc<HashMap<PagePlace, Arc<Page>>>, ReadError>;

/// Pages of the map as they lie in the store.
pub type LoadedPages = Vec<(PageIndex, PageRef, Arc<Page>)>;

/// A page and where it lies.
pub(super) type PagePlace = (PageIndex, u64, u32);

/// Pages of one checkpoint object that one GET brings, in the order of their offsets.
struct PageGet {
    range: Range<u64>,
    pages: Vec<(PageIndex, PageRef)>,
}

fn place(index: PageIndex, at: PageRef) -> PagePlace {
    (index, at.checkpoint.0, at.offset)
}

impl Objects {
    /// The pages at the given places; the salt is that of the checkpoint object.
    pub async fn pages(&self, wanted: Vec<(PageIndex, PageRef, Salt)>) -> Result<LoadedPages, ReadError> {
        let flights = &self.inner.pages;
        let mut flying: Vec<Flight<BroughtPages>> = Vec::new();
        let (mut missing, mut salts) = (Vec::new(), HashMap::new());
        {
            let mut board = flights.board();
            for &(index, at, salt) in &wanted {
                match board.find(place(index, at)) {
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
                flying.push(board.launch(places, self.inner.clone().bring_pages(get, salt)));
            }
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
    async fn bring_pages(self: Arc<Self>, get: PageGet, salt: Salt) -> BroughtPages {
        let Some((_, first)) = get.pages.first() else { return Ok(Arc::default()) };
        let own = self.keys.checkpoint(first.checkpoint);
        self.try_places(&own, |key| self.bring_pages_once(key, &get, &salt)).await
    }

    async fn bring_pages_once(&self, key: Key, get: &PageGet, salt: &Salt) -> BroughtPages {
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
