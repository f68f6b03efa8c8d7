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

/// So many pages are passed by or let go at once: whoever waits for the lock of the volume does not wait for the hand to come around.
const STEPS: usize = 512;
/// By less than this part of the bound it may be exceeded until the hand comes by again.
const SLACK_PART: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub struct PageCache {
    /// Each with how often the hand still passes it by.
    pages: HashMap<PageRef, (Arc<MapPage>, AtomicU8)>,
    /// Where the hand comes next.
    hand: VecDeque<PageRef>,
    memory: usize,
    /// So many places, from the hand on, may have pages that are not needed any more.
    stale: usize,
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

    /// Lets pages go until at most `bound` bytes are left; a little later if the hand would have to pass by very many for that.
    pub fn evict(&mut self, bound: usize) {
        let mut steps = 0;
        while self.memory > bound {
            if steps >= STEPS && self.memory - bound < bound / SLACK_PART {
                return;
            }
            steps += 1;
            let Some(at) = self.hand.pop_front() else { return };
            match self.pages.get(&at) {
                Some((_, stays)) if stays.load(Ordering::Relaxed) > 0 => {
                    stays.fetch_sub(1, Ordering::Relaxed);
                    self.hand.push_back(at);
                }
                Some(_) => drop(self.remove(&at)),
                None => {}
            }
        }
    }

    /// Other pages are needed from now on than before: [`PageCache::let_go`] will find those that are not.
    pub fn has_stale(&mut self) {
        self.stale = self.hand.len();
    }

    /// Takes out pages that `is_needed` does not need, among the next few; nothing if all have been looked at.
    pub fn let_go(&mut self, is_needed: impl Fn(&PageRef) -> bool) -> Option<Vec<Arc<MapPage>>> {
        let steps = self.stale.min(STEPS);
        self.stale -= steps;
        let (mut gone, mut looked) = (Vec::new(), 0);
        while looked < steps
            && let Some(at) = self.hand.pop_front()
        {
            looked += 1;
            match is_needed(&at) {
                true => self.hand.push_back(at),
                false => gone.extend(self.remove(&at)),
            }
        }
        (looked > 0).then_some(gone)
    }

    fn remove(&mut self, at: &PageRef) -> Option<Arc<MapPage>> {
        let (page, _) = self.pages.remove(at)?;
        self.memory -= page.memory() + PAGE_MEMORY;
        Some(page)
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
        assert!(cache.let_go(|_| false).is_none(), "nobody said that something else is needed now");
        cache.has_stale();
        assert_eq!(cache.let_go(|page| *page != at(5)).map(|gone| gone.len()), Some(1));
        assert!(cache.get(&at(5)).is_none() && cache.let_go(|_| false).is_none());
        cache.evict(0);
        assert_eq!((cache.memory(), cache.pages.len(), cache.hand.len()), (0, 0, 0));
    }

    /// Of many pages that are all in use none goes for a little room, until the hand has come around, and all of them are looked at in the end.
    #[test]
    fn the_hand_passes_by_few_pages_at_once() {
        let mut cache = PageCache::default();
        let at = |n| PageRef { checkpoint: Seq(n), offset: 0, len: 1 };
        let page = Arc::new(MapPage::Leaf(Leaf::default()));
        let (each, many) = (page.memory() + PAGE_MEMORY, 3 * STEPS as u64);
        (0..many).for_each(|n| cache.insert(at(n), page.clone()));
        (0..many).for_each(|n| assert!(cache.get(&at(n)).is_some()));
        let bound = (many as usize - 8) * each;
        for turn in 0..3 {
            assert_eq!(cache.pages.len(), many as usize, "turn {turn}");
            cache.evict(bound);
        }
        cache.evict(bound);
        assert_eq!(cache.memory(), bound);
        cache.evict(bound / 2);
        assert!(cache.memory() <= bound / 2 + bound / SLACK_PART, "much too much is never kept");
        cache.has_stale();
        let mut looks = 0;
        while cache.let_go(|page| page.checkpoint.0 % 2 == 0).is_some() {
            looks += 1;
            cache.insert(at(many + looks), page.clone());
        }
        assert_eq!(looks, 2);
        assert!(cache.pages.keys().all(|page| page.checkpoint.0 % 2 == 0 || page.checkpoint.0 > many));
    }
}
