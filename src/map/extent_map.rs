//! The pages of a volume's map: those in memory, where the others lie, and what each change does to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Placement;
use super::{Content, PAGE_BLOCKS, Page, PageIndex, PageRef, Runs, SegmentInfo, Usage};
use crate::units::{BlockCount, BlockIndex, Extent, Seq};

/// The map of one volume.
#[derive(Debug)]
pub struct ExtentMap {
    volume: Extent,
    pages: BTreeMap<PageIndex, Slot>,
    zeroed: Runs,
    usage: Usage,
    /// Pages that a trim or zero dropped without reading them: their blocks are dead, but still counted as live.
    released: Vec<(PageIndex, PageRef)>,
    memory: usize,
    tick: u64,
}

/// A page's place in the table. A slot without `page` has a `stored` place to load it from.
#[derive(Debug, Default)]
struct Slot {
    page: Option<Arc<Page>>,
    /// Where its newest durable form lies; behind `page` while `dirty`.
    stored: Option<PageRef>,
    dirty: bool,
    /// When it was last used, in ticks.
    used: u64,
}

/// Pages that must be loaded before the operation can be done.
#[derive(Debug, PartialEq, Eq)]
pub struct NeedPages(pub Vec<(PageIndex, PageRef)>);

/// What a checkpoint writes: the map at one instant.
#[derive(Debug)]
pub struct MapSnapshot {
    /// Pages that changed since they were last stored; an empty one is stored no more.
    pub changed: Vec<(PageIndex, Arc<Page>)>,
    /// Where the unchanged pages lie.
    pub unchanged: Vec<(PageIndex, PageRef)>,
    /// Runs of whole pages of allocated zero.
    pub zeroed: Runs,
    /// Live blocks by segment.
    pub usage: Usage,
}

impl ExtentMap {
    /// The empty map of a volume of `blocks`.
    pub fn new(blocks: BlockCount) -> ExtentMap {
        ExtentMap::restore(blocks, Vec::new(), Runs::default(), Usage::default())
    }

    /// The map of a checkpoint, no page loaded.
    pub fn restore(
        blocks: BlockCount,
        pages: impl IntoIterator<Item = (PageIndex, PageRef)>,
        zeroed: Runs,
        usage: Usage,
    ) -> ExtentMap {
        let slot = |stored| Slot { stored: Some(stored), ..Slot::default() };
        ExtentMap {
            volume: Extent { start: BlockIndex(0), count: blocks },
            pages: pages.into_iter().map(|(index, stored)| (index, slot(stored))).collect(),
            zeroed,
            usage,
            released: Vec::new(),
            memory: 0,
            tick: 0,
        }
    }

    /// What the blocks of `extent` hold, in order, without gaps; neighbours of one kind may be apart.
    pub fn lookup(&mut self, extent: Extent) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        self.need(self.pages_missing(extent))?;
        self.tick += 1;
        let mut found = Vec::new();
        for (index, part) in parts(extent) {
            match self.pages.get_mut(&index) {
                Some(Slot { page: Some(page), used, .. }) => {
                    *used = self.tick;
                    page.lookup(part, |extent, content| found.push((extent, placement(content))));
                }
                _ if self.zeroed.contains(index.0) => found.push((part, Placement::Zero)),
                _ => found.push((part, Placement::Hole)),
            }
        }
        Ok(found)
    }

    /// A segment takes effect: live commit and recovery both come through here, in log order. Either all of it is
    /// applied or, if pages are missing, nothing.
    pub fn apply(&mut self, seq: Seq, info: SegmentInfo, changes: &[(Extent, Placement)]) -> Result<(), NeedPages> {
        let missing = changes.iter().flat_map(|(extent, _)| self.pages_cut(*extent)).collect::<BTreeMap<_, _>>();
        self.need(missing)?;
        self.tick += 1;
        self.usage.born(seq, info);
        for &(extent, placement) in changes {
            match placement {
                Placement::Data(location) => self.set(extent, Some(Content::Data(location))),
                Placement::Zero => self.clear(extent, true),
                Placement::Hole => self.clear(extent, false),
            }
        }
        Ok(())
    }

    /// A page that was asked for came in. Too late is fine: the page may have gone or changed meanwhile.
    pub fn page_loaded(&mut self, index: PageIndex, from: PageRef, page: Page) {
        if let Some(slot) = self.pages.get_mut(&index)
            && slot.page.is_none()
            && slot.stored == Some(from)
        {
            self.memory += page.memory();
            slot.used = self.tick;
            slot.page = Some(Arc::new(page));
        }
    }

    /// Bytes of pages in memory, about.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes of pages in memory that a checkpoint must write before they can leave, about.
    pub fn dirty_memory(&self) -> usize {
        self.pages.values().filter(|slot| slot.dirty).filter_map(|slot| slot.page.as_ref()).map(|p| p.memory()).sum()
    }

    /// Lets clean pages go, least recently used first, until at most `bound` bytes are left or none is clean.
    pub fn evict(&mut self, bound: usize) {
        if self.memory <= bound {
            return;
        }
        let clean =
            |(&index, slot): (&PageIndex, &Slot)| (!slot.dirty && slot.page.is_some()).then_some((slot.used, index));
        let mut candidates: Vec<_> = self.pages.iter().filter_map(clean).collect();
        candidates.sort_unstable();
        for (_, index) in candidates {
            if self.memory <= bound {
                return;
            }
            if let Some(page) = self.pages.get_mut(&index).and_then(|slot| slot.page.take()) {
                self.memory -= page.memory();
            }
        }
    }

    /// The accounting table.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The accounting table, to forget objects that were deleted.
    pub fn usage_mut(&mut self) -> &mut Usage {
        &mut self.usage
    }

    /// Takes the list of pages that were dropped unread; each goes back through [`ExtentMap::account_released`].
    pub fn take_released(&mut self) -> Vec<(PageIndex, PageRef)> {
        std::mem::take(&mut self.released)
    }

    /// Puts back released pages that could not be read.
    pub fn put_back_released(&mut self, pages: Vec<(PageIndex, PageRef)>) {
        self.released.extend(pages);
    }

    /// Counts the blocks of a released page as dead.
    pub fn account_released(&mut self, page: &Page) {
        self.usage.page_died(page);
    }

    /// The map as of now, for a checkpoint; nothing while released pages are not accounted, because the counts of live
    /// blocks would be wrong for ever.
    pub fn snapshot(&self) -> Option<MapSnapshot> {
        if !self.released.is_empty() {
            return None;
        }
        let mut snapshot = MapSnapshot {
            changed: Vec::new(),
            unchanged: Vec::new(),
            zeroed: self.zeroed.clone(),
            usage: self.usage.clone(),
        };
        for (&index, slot) in &self.pages {
            match (&slot.page, slot.stored) {
                (Some(page), _) if slot.dirty => snapshot.changed.push((index, page.clone())),
                (_, Some(stored)) => snapshot.unchanged.push((index, stored)),
                (_, None) => {}
            }
        }
        Some(snapshot)
    }

    /// A checkpoint is durable: where the pages that it wrote lie now (`None`: the page was empty).
    pub fn checkpointed(&mut self, pages: Vec<(PageIndex, Arc<Page>, Option<PageRef>)>) {
        for (index, written, stored) in pages {
            let Some(slot) = self.pages.get_mut(&index) else { continue };
            slot.stored = stored;
            // Unless it changed again meanwhile, the page in memory is the one in the store.
            if slot.page.as_ref().is_some_and(|page| Arc::ptr_eq(page, &written)) {
                slot.dirty = false;
                if stored.is_none() {
                    self.memory -= written.memory();
                    self.pages.remove(&index);
                }
            }
        }
    }

    /// Rewrites these pages with the next checkpoint, so that the objects which hold them now can go.
    pub fn mark_for_rewrite(&mut self, index: PageIndex) {
        if let Some(slot) = self.pages.get_mut(&index)
            && slot.page.is_some()
        {
            slot.dirty = true;
        }
    }

    /// Where every stored page lies, dirty ones too.
    pub fn stored_pages(&self) -> impl Iterator<Item = (PageIndex, PageRef)> + '_ {
        self.pages.iter().filter_map(|(&index, slot)| Some((index, slot.stored?)))
    }

    /// All pages that are not in memory.
    pub fn unloaded(&self) -> Vec<(PageIndex, PageRef)> {
        let unloaded = |(&index, slot): (&PageIndex, &Slot)| slot.page.is_none().then_some((index, slot.stored?));
        self.pages.iter().filter_map(unloaded).collect()
    }

    /// Blocks of allocated zero that are kept as whole pages.
    pub fn zeroed_blocks(&self) -> u64 {
        let whole =
            |run: std::ops::Range<u64>| Extent::new(run.start * PAGE_BLOCKS, (run.end - run.start) * PAGE_BLOCKS);
        self.zeroed.iter().filter_map(|run| whole(run).intersect(&self.volume)).map(|extent| extent.count.0).sum()
    }

    fn need(&self, missing: BTreeMap<PageIndex, PageRef>) -> Result<(), NeedPages> {
        if missing.is_empty() { Ok(()) } else { Err(NeedPages(missing.into_iter().collect())) }
    }

    /// The pages under `extent` that are not in memory.
    fn pages_missing(&self, extent: Extent) -> BTreeMap<PageIndex, PageRef> {
        if extent.is_empty() {
            return BTreeMap::new();
        }
        let last = PageIndex::of(BlockIndex(extent.end().0 - 1));
        let missing = |(&index, slot): (&PageIndex, &Slot)| slot.page.is_none().then_some((index, slot.stored?));
        self.pages.range(PageIndex::of(extent.start)..=last).filter_map(missing).collect()
    }

    /// The pages not in memory that `extent` changes in part: those it covers whole need not be read.
    fn pages_cut(&self, extent: Extent) -> BTreeMap<PageIndex, PageRef> {
        let mut missing = BTreeMap::new();
        if extent.is_empty() {
            return missing;
        }
        let edges = [PageIndex::of(extent.start), PageIndex::of(BlockIndex(extent.end().0 - 1))];
        for index in edges {
            if let Some(part) = index.extent().intersect(&extent)
                && !self.is_whole(index, part)
            {
                missing.extend(self.pages_missing(part));
            }
        }
        missing
    }

    /// Whether `part` is all that the volume has of that page.
    fn is_whole(&self, index: PageIndex, part: Extent) -> bool {
        index.extent().intersect(&self.volume) == Some(part)
    }

    /// Sets the content of an extent, page by page. The pages are in memory, or covered whole.
    fn set(&mut self, extent: Extent, content: Option<Content>) {
        for (index, part) in parts(extent) {
            let skipped = part.start - extent.start;
            self.set_part(index, part, content.map(|content| content.skip(skipped)));
        }
    }

    fn set_part(&mut self, index: PageIndex, part: Extent, content: Option<Content>) {
        if self.is_whole(index, part) {
            self.drop_page(index);
        }
        let was_zeroed = self.zeroed.contains(index.0);
        if was_zeroed {
            self.zeroed.remove(index.0..index.0 + 1);
        }
        let slot = self.pages.entry(index).or_default();
        let before = slot.page.as_ref().map_or(0, |page| page.memory());
        slot.used = self.tick;
        slot.dirty = true;
        let page = Arc::make_mut(slot.page.get_or_insert_with(|| match was_zeroed {
            true => Arc::new(Page::zeroed(index, self.volume)),
            false => Arc::default(),
        }));
        page.set(part, content, |gone| self.usage.died(&gone));
        self.memory = self.memory + page.memory() - before;
    }

    /// Makes an extent allocated zero or hole: its edges page by page, everything between at once.
    fn clear(&mut self, extent: Extent, zero: bool) {
        let content = zero.then_some(Content::Zero);
        let whole = self.whole_pages(extent);
        if whole.is_empty() {
            return self.set_unless_hole(extent, content);
        }
        let indexes: Vec<_> = self.pages.range(PageIndex(whole.start)..PageIndex(whole.end)).map(|(&i, _)| i).collect();
        indexes.into_iter().for_each(|index| self.drop_page(index));
        match zero {
            true => self.zeroed.insert(whole.clone()),
            false => self.zeroed.remove(whole.clone()),
        }
        let inner = Extent::new(whole.start * PAGE_BLOCKS, (whole.end - whole.start) * PAGE_BLOCKS);
        if extent.start < inner.start {
            self.set_unless_hole(Extent::between(extent.start, inner.start), content);
        }
        if inner.end() < extent.end() {
            self.set_unless_hole(Extent::between(inner.end(), extent.end()), content);
        }
    }

    /// As [`ExtentMap::set`], but a hole in a page that is not there makes no page.
    fn set_unless_hole(&mut self, extent: Extent, content: Option<Content>) {
        for (index, part) in parts(extent) {
            if content.is_some() || self.pages.contains_key(&index) || self.zeroed.contains(index.0) {
                self.set_part(index, part, content);
            }
        }
    }

    /// The pages that `extent` covers whole (the volume's last page up to the volume's end).
    fn whole_pages(&self, extent: Extent) -> std::ops::Range<u64> {
        let first = extent.start.0.div_ceil(PAGE_BLOCKS);
        let end = if extent.end() == self.volume.end() {
            extent.end().0.div_ceil(PAGE_BLOCKS)
        } else {
            extent.end().0 / PAGE_BLOCKS
        };
        first..end.max(first)
    }

    /// Takes a page out of the table; its blocks are dead, now or when it has been read.
    fn drop_page(&mut self, index: PageIndex) {
        let Some(slot) = self.pages.remove(&index) else { return };
        match (slot.page, slot.stored) {
            (Some(page), _) => {
                self.memory -= page.memory();
                self.usage.page_died(&page);
            }
            (None, Some(stored)) => self.released.push((index, stored)),
            (None, None) => {}
        }
    }
}

fn placement(content: Option<Content>) -> Placement {
    match content {
        Some(Content::Data(location)) => Placement::Data(location),
        Some(Content::Zero) => Placement::Zero,
        None => Placement::Hole,
    }
}

/// `extent`, cut at page boundaries.
fn parts(extent: Extent) -> impl Iterator<Item = (PageIndex, Extent)> {
    let first = PageIndex::of(extent.start).0;
    let end = extent.end().0.div_ceil(PAGE_BLOCKS);
    (first..end).filter_map(move |index| Some((PageIndex(index), PageIndex(index).extent().intersect(&extent)?)))
}
