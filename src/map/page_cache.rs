//! The pages of the map that are in memory. What was used since the hand came by stays (a clock), and what finds other pages stays several times.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{MapPage, PageRef};
use crate::space;

/// What a page takes besides itself: its places in the tables, about.
const PAGE_MEMORY: usize = 160;

/// How often the hand passes by a page of the upper part that is not used.
const UPPER_STAYS: u8 = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct PageCache {
    /// Each with how often the hand still passes it by.
    pages: HashMap<PageRef, (Arc<MapPage>, AtomicU8)>,
    /// Where the hand comes next.
    hand: VecDeque<PageRef>,
    memory: usize,
}

impl PageCache {
    /// A page, if it is there; it counts as used.
    pub fn get(&self, at: &PageRef) -> Option<&MapPage> {
        let (page, stays) = self.pages.get(at)?;
        stays.store(stays_for(page), Ordering::Relaxed);
        Some(page)
    }

    /// A page, if it is there, for somebody who keeps it.
    pub fn share(&self, at: &PageRef) -> Option<Arc<MapPage>> {
        self.pages.get(at).map(|(page, _)| page.clone())
    }

    /// Whether a page is there; it does not count as used.
    pub fn has(&self, at: &PageRef) -> bool {
        self.pages.contains_key(at)
    }

    /// Adds a page.
    pub fn insert(&mut self, at: PageRef, page: Arc<MapPage>) {
        let takes = page.memory() + PAGE_MEMORY;
        let stays = AtomicU8::new(stays_for(&page));
        if self.pages.insert(at, (page, stays)).is_none() {
            self.memory += takes;
            self.hand.push_back(at);
        }
    }

    /// Bytes that the pages take.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Lets pages go until at most `bound` bytes are left.
    pub fn evict(&mut self, bound: usize) {
        while self.memory > bound {
            let Some(at) = self.hand.pop_front() else { return };
            match self.pages.get(&at) {
                Some((_, stays)) if stays.load(Ordering::Relaxed) > 0 => {
                    stays.fetch_sub(1, Ordering::Relaxed);
                    self.hand.push_back(at);
                }
                Some((page, _)) => {
                    self.memory -= page.memory() + PAGE_MEMORY;
                    self.pages.remove(&at);
                }
                None => {}
            }
        }
    }

    /// Lets the pages go that `is_needed` does not need.
    pub fn retain(&mut self, is_needed: impl Fn(&PageRef) -> bool) {
        self.hand.retain(|at| is_needed(at));
        let memory = &mut self.memory;
        self.pages.retain(|at, (page, _)| {
            let stays = is_needed(at);
            *memory -= if stays { 0 } else { page.memory() + PAGE_MEMORY };
            stays
        });
    }
}

/// How often the hand passes by this page, once it was used.
fn stays_for(page: &MapPage) -> u8 {
    if page.is_upper() { UPPER_STAYS } else { 1 }
}

impl space::Pages for PageCache {
    fn page(&self, at: &PageRef) -> Option<&space::Page> {
        table_page(self.get(at))
    }
}

impl space::Pages for HashMap<PageRef, Arc<MapPage>> {
    fn page(&self, at: &PageRef) -> Option<&space::Page> {
        table_page(self.get(at).map(|page| &**page))
    }
}

/// The pages in memory, and some more that are there for a while only.
pub struct WithMore<'a> {
    /// Those that stay.
    pub pages: &'a PageCache,
    /// The others.
    pub more: &'a HashMap<PageRef, Arc<MapPage>>,
}

impl space::Pages for WithMore<'_> {
    fn page(&self, at: &PageRef) -> Option<&space::Page> {
        table_page(self.pages.get(at).or_else(|| self.more.get(at).map(|page| &**page)))
    }
}

fn table_page(page: Option<&MapPage>) -> Option<&space::Page> {
    match page {
        Some(MapPage::Table(page)) => Some(page),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Leaf;
    use crate::units::Seq;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut cache = PageCache::default();
        let at = |n| PageRef { checkpoint: Seq(n), offset: 0, len: 1 };
        let page = Arc::new(MapPage::Leaf(Leaf::default()));
        let each = page.memory() + PAGE_MEMORY;
        (0..10).for_each(|n| cache.insert(at(n), page.clone()));
        assert_eq!(cache.memory(), 10 * each);
        cache.evict(10 * each - 1);
        cache.get(&at(5));
        cache.evict(2 * each);
        assert_eq!(cache.memory(), 2 * each);
        assert!(cache.get(&at(5)).is_some() && cache.share(&at(1)).is_none());
        cache.retain(|page| *page != at(5));
        assert!(cache.get(&at(5)).is_none());
        cache.evict(0);
        assert_eq!((cache.memory(), cache.pages.len(), cache.hand.len()), (0, 0, 0));
    }
}
