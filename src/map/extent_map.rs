//! The pages of a volume's map: those in memory, where the others lie, and what each change does to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Placement;
use super::{Content, PAGE_BLOCKS, Page, PageIndex, PageRef, Runs, SegmentInfo, Usage};
use crate::units::{BlockCount, BlockIndex, Extent, Seq};

/// A page takes about so many times the bytes in memory that it takes in the store: an extent of 8 to 11 bytes takes 96. Where pages
/// can be compressed it is more, which is known when they were in memory once.
const LOADED_PER_STORED: u64 = 12;

/// The map of one volume.
#[derive(Debug)]
pub struct ExtentMap {
    volume: Extent,
    pages: BTreeMap<PageIndex, Slot>,
    zeroed: Runs,
    usage: Usage,
    /// Pages that a trim or zero dropped without reading them: their blocks are dead, but still counted as live.
    released: Vec<(PageIndex, PageRef)>,
    loaded: Loaded,
    /// Bytes of pages as a checkpoint under way saw them, which changed since: both forms are in memory.
    superseded: usize,
    tick: u64,
}

/// The pages in memory: what they take, and which go first. Kept with each change, so that nothing looks at all pages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loaded {
    memory: usize,
    /// Of it, what a checkpoint must write before it can leave.
    dirty: usize,
    /// The others, by when they were last used.
    clean: BTreeSet<(u64, PageIndex)>,
}

impl Loaded {
    /// A slot as it is now, before it is changed.
    fn subtract(&mut self, index: PageIndex, slot: &Slot) {
        let Some(page) = &slot.page else { return };
        self.memory -= page.memory();
        match slot.dirty {
            true => self.dirty -= page.memory(),
            false => drop(self.clean.remove(&(slot.used, index))),
        }
    }

    /// A slot as it is now, after it was changed.
    fn add(&mut self, index: PageIndex, slot: &Slot) {
        let Some(page) = &slot.page else { return };
        self.memory += page.memory();
        match slot.dirty {
            true => self.dirty += page.memory(),
            false => drop(self.clean.insert((slot.used, index))),
        }
    }
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
    /// Bytes that it took when it was in memory last; 0 if it never was.
    took: u32,
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
            loaded: Loaded::default(),
            superseded: 0,
            tick: 0,
        }
    }

    /// The blocks of the volume.
    pub fn volume(&self) -> Extent {
        self.volume
    }

    /// The volume has so many blocks from now on. What it loses must have been given up before: fails, and changes nothing, with
    /// the first block beyond the end that is known to be mapped.
    pub fn resize(&mut self, blocks: BlockCount) -> Result<(), BlockIndex> {
        match self.mapped_beyond(BlockIndex(blocks.0)) {
            Some(block) => Err(block),
            None => {
                self.volume.count = blocks;
                Ok(())
            }
        }
    }

    /// The first block at `end` or later that is mapped, as far as the pages in memory tell; of a page that is not there, the
    /// first if all of it lies beyond.
    fn mapped_beyond(&self, end: BlockIndex) -> Option<BlockIndex> {
        let in_page = |(index, slot): (&PageIndex, &Slot)| match &slot.page {
            Some(page) => page.iter().find(|m| m.extent.end() > end).map(|m| m.extent.start.max(end)),
            None => Some(index.extent().start).filter(|start| *start >= end),
        };
        let mapped = self.pages.range(PageIndex::of(end)..).find_map(in_page);
        let first = end.0.div_ceil(PAGE_BLOCKS);
        let zeroed = self.zeroed.iter().find(|run| run.end > first).map(|run| run.start.max(first) * PAGE_BLOCKS);
        mapped.into_iter().chain(zeroed.map(BlockIndex)).min()
    }

    /// What the blocks of `extent` hold, in order, without gaps; neighbours of one kind may be apart.
    pub fn lookup(&mut self, extent: Extent) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        self.need(self.pages_missing(extent))?;
        self.tick += 1;
        let mut found = Vec::new();
        for (index, part) in parts(extent) {
            let tick = self.tick;
            self.change(index, |slot| slot.used = tick);
            match self.pages.get(&index) {
                Some(Slot { page: Some(page), .. }) => {
                    page.lookup(part, |extent, content| found.push((extent, placement(content))));
                }
                _ if self.zeroed.contains(index.0) => found.push((part, Placement::Zero)),
                _ => found.push((part, Placement::Hole)),
            }
        }
        Ok(found)
    }

    /// What the first block of `extent` holds, and how many blocks of it from there on, one at least, are known to hold the same
    /// in one piece. The extent is not empty. However long it is, this looks at one page.
    pub fn first(&mut self, extent: Extent) -> Result<(BlockCount, Placement), NeedPages> {
        let index = PageIndex::of(extent.start);
        match self.pages.get(&index) {
            Some(Slot { page: None, stored: Some(stored), .. }) => return Err(NeedPages(vec![(index, *stored)])),
            Some(Slot { page: Some(page), used, .. }) => {
                let part = index.extent().intersect(&extent).unwrap_or(extent);
                let (count, content) = page.first(part);
                let (tick, is_new) = (self.tick, self.tick > *used);
                if is_new {
                    self.change(index, |slot| slot.used = tick);
                }
                return Ok((count, placement(content)));
            }
            _ => {}
        }
        // No page: up to the next one it is all zero, or all hole.
        let end = PageIndex(extent.end().0.div_ceil(PAGE_BLOCKS));
        let next = self.pages.range(PageIndex(index.0 + 1)..end.max(PageIndex(index.0 + 1))).next();
        let (is_zero, end) = self.zeroed.stretch(index.0, next.map_or(end, |(&next, _)| next).0);
        let count = end.saturating_mul(PAGE_BLOCKS).min(extent.end().0) - extent.start.0;
        Ok((BlockCount(count), if is_zero { Placement::Zero } else { Placement::Hole }))
    }

    /// The pages under `extent` that are not in memory.
    pub fn missing(&self, extent: Extent) -> impl Iterator<Item = (PageIndex, PageRef)> + '_ {
        self.slots(extent).filter_map(|(&index, slot)| slot.page.is_none().then_some((index, slot.stored?)))
    }

    /// As [`ExtentMap::lookup`], but pages that are not in memory are taken from `pages`, if they are the newest there are. No
    /// page counts as used.
    pub fn lookup_with(
        &self,
        extent: Extent,
        pages: &HashMap<PageIndex, (PageRef, Arc<Page>)>,
    ) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        let mut found = Vec::new();
        for (index, part) in parts(extent) {
            let page = match self.pages.get(&index) {
                Some(Slot { page: Some(page), .. }) => Some(page),
                Some(Slot { stored: Some(stored), .. }) => match pages.get(&index).filter(|(at, _)| at == stored) {
                    Some((_, page)) => Some(page),
                    None => return Err(NeedPages(vec![(index, *stored)])),
                },
                _ => None,
            };
            match page {
                Some(page) => page.lookup(part, |extent, content| found.push((extent, placement(content)))),
                None if self.zeroed.contains(index.0) => found.push((part, Placement::Zero)),
                None => found.push((part, Placement::Hole)),
            }
        }
        Ok(found)
    }

    /// A segment takes effect: live commit, recovery and garbage collection all come through here, in log order. Either
    /// all of it is applied or, if pages are missing, nothing.
    ///
    /// `as_of` is for a segment of moved data, which was copied from segments at or before that place in the log: it
    /// counts only where the map still points to one of those. Whatever changed a block meanwhile wins.
    pub fn apply(
        &mut self,
        seq: Seq,
        info: SegmentInfo,
        changes: &[(Extent, Placement)],
        as_of: Option<Seq>,
    ) -> Result<(), NeedPages> {
        self.need(self.missing_for(changes, as_of))?;
        self.tick += 1;
        self.usage.born(seq, info);
        if let Some(as_of) = as_of {
            changes.iter().for_each(|&(extent, placement)| self.move_data(extent, placement, as_of));
            return Ok(());
        }
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
    pub fn page_loaded(&mut self, index: PageIndex, from: PageRef, page: Arc<Page>) {
        let tick = self.tick;
        self.change(index, |slot| {
            if slot.page.is_none() && slot.stored == Some(from) {
                slot.used = tick;
                slot.page = Some(page);
            }
        });
    }

    /// Bytes of pages in memory, about.
    pub fn memory(&self) -> usize {
        self.loaded.memory + self.superseded
    }

    /// Bytes of pages in memory that a checkpoint must write before they can leave, about; what a checkpoint under way still
    /// holds of pages that changed since is among them.
    pub fn dirty_memory(&self) -> usize {
        self.loaded.dirty + self.superseded
    }

    /// Lets clean pages go, least recently used first, until at most `bound` bytes are left or none is clean.
    pub fn evict(&mut self, bound: usize) {
        while self.memory() > bound {
            let Some(&(_, index)) = self.loaded.clean.first() else { return };
            self.change(index, |slot| slot.took = slot.page.take().map_or(0, |page| page.memory() as u32));
        }
    }

    /// Changes a slot, if there is one, and keeps count.
    fn change(&mut self, index: PageIndex, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.pages.get_mut(&index) {
            self.loaded.subtract(index, slot);
            change(slot);
            self.loaded.add(index, slot);
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

    /// Takes pages that were dropped unread, of so many sealed bytes together, one at least; each goes back through
    /// [`ExtentMap::account_released`].
    pub fn take_released(&mut self, bytes: u64) -> Vec<(PageIndex, PageRef)> {
        let mut sum = 0;
        let fits = self.released.iter().rev().take_while(|(_, at)| {
            sum += u64::from(at.len);
            sum <= bytes
        });
        let count = fits.count().max(1).min(self.released.len());
        let left = self.released.len() - count;
        self.released.split_off(left)
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
        self.superseded = 0;
        for (index, written, stored) in pages {
            let mut is_empty = false;
            self.change(index, |slot| {
                slot.stored = stored;
                // Unless it changed again meanwhile, the page in memory is the one in the store.
                if slot.page.as_ref().is_some_and(|page| Arc::ptr_eq(page, &written)) {
                    slot.dirty = false;
                    is_empty = stored.is_none();
                }
            });
            if is_empty {
                self.take_slot(index);
            }
        }
    }

    /// Rewrites a page with the next checkpoint, if it still lies there, so that the object which holds it can go.
    pub fn mark_for_rewrite(&mut self, index: PageIndex, at: PageRef) {
        self.change(index, |slot| slot.dirty |= slot.page.is_some() && slot.stored == Some(at));
    }

    /// Where every stored page lies, dirty ones too.
    pub fn stored_pages(&self) -> impl Iterator<Item = (PageIndex, PageRef)> + '_ {
        self.pages.iter().filter_map(|(&index, slot)| Some((index, slot.stored?)))
    }

    /// All pages that are not in memory.
    pub fn unloaded(&self) -> Vec<(PageIndex, PageRef)> {
        self.missing(self.volume).collect()
    }

    /// Whether a page is in memory.
    pub fn has_page(&self, index: PageIndex) -> bool {
        self.pages.get(&index).is_some_and(|slot| slot.page.is_some())
    }

    /// A page that is in memory.
    pub fn page(&self, index: PageIndex) -> Option<&Page> {
        self.pages.get(&index).and_then(|slot| slot.page.as_deref())
    }

    /// Bytes that a page takes in memory, about, be it there or not.
    pub fn page_memory(&self, index: PageIndex) -> u64 {
        match self.pages.get(&index) {
            Some(Slot { page: Some(page), .. }) => page.memory() as u64,
            Some(Slot { took, .. }) if *took > 0 => u64::from(*took),
            Some(Slot { stored: Some(stored), .. }) => u64::from(stored.len) * LOADED_PER_STORED,
            _ => 0,
        }
    }

    /// Where a page that is not in memory lies.
    pub fn stored(&self, index: PageIndex) -> Option<PageRef> {
        self.pages.get(&index).filter(|slot| slot.page.is_none()).and_then(|slot| slot.stored)
    }

    /// The indices of all pages, in order.
    pub fn page_indices(&self) -> Vec<PageIndex> {
        self.pages.keys().copied().collect()
    }

    /// The pages in memory.
    pub fn loaded(&self) -> impl Iterator<Item = (PageIndex, &Page)> {
        self.pages.iter().filter_map(|(&index, slot)| Some((index, &**slot.page.as_ref()?)))
    }

    /// Blocks of allocated zero that are kept as whole pages.
    pub fn zeroed_blocks(&self) -> u64 {
        let whole =
            |run: std::ops::Range<u64>| Extent::new(run.start * PAGE_BLOCKS, (run.end - run.start) * PAGE_BLOCKS);
        self.zeroed.iter().filter_map(|run| whole(run).intersect(&self.volume)).map(|extent| extent.count.0).sum()
    }

    /// The pages that [`ExtentMap::apply`] would ask for.
    pub fn missing_for(&self, changes: &[(Extent, Placement)], as_of: Option<Seq>) -> BTreeMap<PageIndex, PageRef> {
        let needed = |(extent, _): &(Extent, Placement)| match as_of {
            Some(_) => self.pages_missing(*extent),
            None => self.pages_cut(*extent),
        };
        changes.iter().flat_map(needed).collect()
    }

    fn need(&self, missing: BTreeMap<PageIndex, PageRef>) -> Result<(), NeedPages> {
        if missing.is_empty() { Ok(()) } else { Err(NeedPages(missing.into_iter().collect())) }
    }

    /// The pages under `extent` that are not in memory.
    fn pages_missing(&self, extent: Extent) -> BTreeMap<PageIndex, PageRef> {
        self.missing(extent).collect()
    }

    fn slots(&self, extent: Extent) -> impl Iterator<Item = (&PageIndex, &Slot)> {
        let end = PageIndex(extent.end().0.div_ceil(PAGE_BLOCKS));
        let first = PageIndex::of(extent.start).min(end);
        self.pages.range(if extent.is_empty() { end..end } else { first..end })
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
                && part != index.extent()
            {
                missing.extend(self.pages_missing(part));
            }
        }
        missing
    }

    /// Points the blocks of `extent` to `placement`, but only those whose data lies in a segment at or before `as_of`;
    /// what was moved in vain is dead at birth. The pages are in memory.
    fn move_data(&mut self, extent: Extent, placement: Placement, as_of: Seq) {
        let Placement::Data(to) = placement else { return };
        let mut unchanged = Vec::new();
        for (index, part) in parts(extent) {
            let Some(Slot { page: Some(page), .. }) = self.pages.get(&index) else { continue };
            page.lookup(part, |part, content| match content {
                Some(Content::Data(from)) if from.frame.seq <= as_of => unchanged.push(part),
                _ => {}
            });
        }
        let moved: u64 = unchanged.iter().map(|part| part.count.0).sum();
        self.usage.stillborn(to.frame.seq, BlockCount(extent.count.0 - moved));
        for part in unchanged {
            self.set(part, Some(Content::Data(to.skip(part.start - extent.start))));
        }
    }

    /// Sets the content of an extent, page by page. The pages are in memory, or covered whole.
    fn set(&mut self, extent: Extent, content: Option<Content>) {
        for (index, part) in parts(extent) {
            let skipped = part.start - extent.start;
            self.set_part(index, part, content.map(|content| content.skip(skipped)));
        }
    }

    fn set_part(&mut self, index: PageIndex, part: Extent, content: Option<Content>) {
        if part == index.extent() {
            self.drop_page(index);
        }
        let was_zeroed = self.zeroed.contains(index.0);
        if was_zeroed {
            self.zeroed.remove(index.0..index.0 + 1);
        }
        let slot = self.pages.entry(index).or_default();
        self.loaded.subtract(index, slot);
        slot.used = self.tick;
        // Somebody else still has it: it is copied below.
        if let Some(page) = slot.page.as_ref().filter(|page| slot.dirty && Arc::strong_count(page) > 1) {
            self.superseded += page.memory();
        }
        slot.dirty = true;
        let page = Arc::make_mut(slot.page.get_or_insert_with(|| match was_zeroed {
            true => Arc::new(Page::zeroed(index, self.volume)),
            false => Arc::default(),
        }));
        page.set(part, content, |gone| self.usage.died(&gone));
        self.loaded.add(index, slot);
    }

    /// Makes an extent allocated zero or hole: its edges page by page, everything between at once.
    fn clear(&mut self, extent: Extent, zero: bool) {
        let content = zero.then_some(Content::Zero);
        let whole = ExtentMap::whole_pages(extent);
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

    /// The pages that `extent` covers whole, up to the last block that they can have: the volume may have been larger when the change was
    /// made than whoever replays it knows, and what lies there is not given up.
    fn whole_pages(extent: Extent) -> std::ops::Range<u64> {
        let first = extent.start.0.div_ceil(PAGE_BLOCKS);
        first..(extent.end().0 / PAGE_BLOCKS).max(first)
    }

    /// Takes a page out of the table; its blocks are dead, now or when it has been read.
    fn drop_page(&mut self, index: PageIndex) {
        let Some(slot) = self.take_slot(index) else { return };
        match (slot.page, slot.stored) {
            (Some(page), _) => self.usage.page_died(&page),
            (None, Some(stored)) => self.released.push((index, stored)),
            (None, None) => {}
        }
    }

    fn take_slot(&mut self, index: PageIndex) -> Option<Slot> {
        let slot = self.pages.remove(&index)?;
        self.loaded.subtract(index, &slot);
        Some(slot)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Mapped;
    use crate::units::{FrameAddr, Location};
    use proptest::prelude::*;

    /// Three pages, the last of them cut short by the end of the volume.
    const BLOCKS: u64 = 2 * PAGE_BLOCKS + 100;

    /// Places where extents begin and end: page boundaries and their neighbours, so that cases meet.
    fn place() -> impl Strategy<Value = u64> {
        let near = |at: u64| (0..6u64).prop_map(move |d| (at + d).saturating_sub(3).min(BLOCKS));
        prop_oneof![near(0), near(PAGE_BLOCKS), near(2 * PAGE_BLOCKS), near(BLOCKS), near(40), near(PAGE_BLOCKS + 60)]
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64, u64, u8),
        /// Moves what lies in segments up to that many ago, as the map is now or was an operation ago.
        Move(u64, bool),
        /// Checkpoint: every changed page is stored.
        Store,
        /// Forget the clean pages, as eviction or reopening does.
        Evict,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (place(), place(), 0u8..4).prop_map(|(a, b, kind)| Op::Set(a.min(b), a.max(b), kind)),
            2 => (0u64..6, any::<bool>()).prop_map(|(back, late)| Op::Move(back, late)),
            1 => Just(Op::Store),
            1 => Just(Op::Evict),
        ]
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Block {
        Hole,
        Zero,
        /// Written by this segment.
        Data(Seq),
    }

    /// The store side of the test: pages by place.
    #[derive(Default)]
    struct Stored(BTreeMap<(Seq, u32), Page>);

    impl Stored {
        fn load(&self, map: &mut ExtentMap, need: NeedPages) {
            for (index, at) in need.0 {
                map.page_loaded(index, at, Arc::new(self.0[&(at.checkpoint, at.offset)].clone()));
            }
        }

        fn checkpoint(&mut self, map: &mut ExtentMap, seq: Seq) {
            for (_, at) in map.take_released(u64::MAX) {
                map.account_released(&self.0[&(at.checkpoint, at.offset)]);
            }
            let changed = map.snapshot().unwrap().changed;
            let place = |(index, page): (PageIndex, Arc<Page>)| {
                let at = PageRef { checkpoint: seq, offset: index.0 as u32, len: 1 };
                (index, page.clone(), (!page.is_empty()).then_some(at))
            };
            let placed: Vec<_> = changed.into_iter().map(place).collect();
            for (index, page, at) in &placed {
                if at.is_some() {
                    self.0.insert((seq, index.0 as u32), (**page).clone());
                }
            }
            map.checkpointed(placed);
        }
    }

    /// Frames hold at most 16 blocks here, as with blocks of 4 KiB.
    fn changes(seq: Seq, start: u64, end: u64, kind: u8) -> Vec<(Extent, Placement)> {
        match kind {
            0 => vec![(Extent::new(start, end - start), Placement::Zero)],
            1 => vec![(Extent::new(start, end - start), Placement::Hole)],
            _ => (start..end.min(start + 48))
                .step_by(16)
                .map(|at| {
                    let frame = FrameAddr { seq, offset: at as u32, len: 1 };
                    let count = 16.min(end.min(start + 48) - at);
                    (Extent::new(at, count), Placement::Data(Location { frame, block: 0 }))
                })
                .collect(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The dumb model: one entry a block.
        #[test]
        fn the_map_equals_an_array(ops in prop::collection::vec(op(), 1..25)) {
            let mut map = ExtentMap::new(BlockCount(BLOCKS));
            let mut model = vec![Block::Hole; BLOCKS as usize];
            let mut stored = Stored::default();
            let mut before = model.clone();
            for (n, op) in ops.into_iter().enumerate() {
                let seq = Seq(n as u64 + 1);
                let now = model.clone();
                match op {
                    Op::Move(back, late) => {
                        // A plan made an operation ago knows nothing of the segment before this one.
                        let as_of = Seq((seq.0 - 1).saturating_sub(back + u64::from(late)));
                        let planned = if late { &before } else { &model };
                        let moves = |block: &Block| matches!(block, Block::Data(from) if *from <= as_of);
                        let mut moved = Vec::new();
                        for block in (0..BLOCKS).filter(|&block| moves(&planned[block as usize])) {
                            let frame = FrameAddr { seq, offset: block as u32, len: 1 };
                            moved.push((Extent::new(block, 1), Placement::Data(Location { frame, block: 0 })));
                        }
                        let blocks = moved.len() as u32;
                        let info = SegmentInfo { blocks, live_blocks: blocks, ..SegmentInfo::default() };
                        while let Err(need) = map.apply(seq, info, &moved, Some(as_of)) {
                            stored.load(&mut map, need);
                        }
                        for (extent, _) in moved {
                            let block = &mut model[extent.start.0 as usize];
                            if moves(block) {
                                *block = Block::Data(seq);
                            }
                        }
                    }
                    Op::Set(start, end, _) if start == end => {}
                    Op::Set(start, end, kind) => {
                        let changes = changes(seq, start, end, kind);
                        let blocks = match kind { 0 | 1 => 0, _ => end.min(start + 48) - start };
                        let info = SegmentInfo { blocks: blocks as u32, live_blocks: blocks as u32, ..SegmentInfo::default() };
                        while let Err(need) = map.apply(seq, info, &changes, None) {
                            stored.load(&mut map, need);
                        }
                        for (extent, placement) in changes {
                            let block = match placement {
                                Placement::Data(_) => Block::Data(seq),
                                Placement::Zero => Block::Zero,
                                Placement::Hole => Block::Hole,
                            };
                            model[extent.start.0 as usize..extent.end().0 as usize].fill(block);
                        }
                    }
                    Op::Store => stored.checkpoint(&mut map, seq),
                    Op::Evict => map.evict(0),
                }
                let mut counted = Loaded::default();
                map.pages.iter().for_each(|(&index, slot)| counted.add(index, slot));
                prop_assert_eq!(&map.loaded, &counted);
                before = now;
            }
            stored.checkpoint(&mut map, Seq(1000));
            map.evict(0);
            prop_assert_eq!(map.memory(), 0);
            let found = loop {
                match map.lookup(Extent::new(0, BLOCKS)) {
                    Ok(found) => break found,
                    Err(need) => stored.load(&mut map, need),
                }
            };
            let mut at = 0;
            for (extent, placement) in found {
                prop_assert_eq!(extent.start.0, at, "a gap or an overlap");
                for block in extent.start.0..extent.end().0 {
                    let have = match placement {
                        Placement::Hole => Block::Hole,
                        Placement::Zero => Block::Zero,
                        Placement::Data(location) => {
                            let position = location.skip(BlockCount(block - extent.start.0)).block;
                            prop_assert_eq!(u64::from(location.frame.offset) + u64::from(position), block);
                            Block::Data(location.frame.seq)
                        }
                    };
                    prop_assert_eq!(have, model[block as usize], "block {}", block);
                }
                at = extent.end().0;
            }
            prop_assert_eq!(at, BLOCKS);
            map.evict(0);
            let mut rest = Extent::new(0, BLOCKS);
            while !rest.is_empty() {
                let (count, placement) = loop {
                    match map.first(rest) {
                        Ok(first) => break first,
                        Err(need) => {
                            prop_assert_eq!(need.0.len(), 1, "one page is enough");
                            stored.load(&mut map, need);
                        }
                    }
                };
                prop_assert!(count.0 > 0 && count <= rest.count);
                for block in rest.start.0..rest.start.0 + count.0 {
                    let same = match (placement, model[block as usize]) {
                        (Placement::Hole, Block::Hole) | (Placement::Zero, Block::Zero) => true,
                        (Placement::Data(location), Block::Data(seq)) => location.frame.seq == seq,
                        _ => false,
                    };
                    prop_assert!(same, "block {}", block);
                }
                rest = Extent::between(rest.start + count, rest.end());
            }
            prop_assert_eq!(map.usage().inconsistencies, 0);
            for (seq, info) in map.usage().iter() {
                let live = model.iter().filter(|block| **block == Block::Data(seq)).count();
                prop_assert_eq!(info.live_blocks as usize, live, "live blocks of segment {}", seq);
            }
        }
    }

    #[test]
    fn the_clean_page_that_was_used_least_recently_leaves_first() {
        let mut map = ExtentMap::new(BlockCount(6 * PAGE_BLOCKS));
        let mut stored = Stored::default();
        for page in 0..5 {
            let seq = Seq(page + 1);
            map.apply(seq, SegmentInfo::default(), &changes(seq, page * PAGE_BLOCKS, page * PAGE_BLOCKS + 16, 2), None)
                .unwrap();
        }
        stored.checkpoint(&mut map, Seq(9));
        let look = |map: &mut ExtentMap, page: u64| map.lookup(Extent::new(page * PAGE_BLOCKS, 1)).map(drop);
        look(&mut map, 0).unwrap();
        map.apply(Seq(6), SegmentInfo::default(), &changes(Seq(6), PAGE_BLOCKS, PAGE_BLOCKS + 16, 2), None).unwrap();
        let one = map.memory() / 5;
        assert_eq!((map.memory(), map.dirty_memory()), (5 * one, one));
        map.evict(3 * one);
        let there: Vec<_> = map.loaded().map(|(index, _)| index.0).collect();
        assert_eq!(there, [0, 1, 4], "2 and 3 were used before");
        map.evict(0);
        let there: Vec<_> = map.loaded().map(|(index, _)| index.0).collect();
        assert_eq!((there, map.memory()), (vec![1], one), "what changed stays");
        assert!(look(&mut map, 4).is_err());
    }

    /// Whoever replays the log may know an older, smaller size of the volume than those had who wrote it.
    #[test]
    fn what_lies_beyond_the_end_is_not_given_up_with_all_before_it() {
        let (end, beyond) = (PAGE_BLOCKS + 100, PAGE_BLOCKS + 200);
        for placement in [Placement::Hole, Placement::Zero] {
            let mut map = ExtentMap::new(BlockCount(end));
            map.apply(Seq(1), SegmentInfo::default(), &changes(Seq(1), beyond, beyond + 16, 2), None).unwrap();
            map.apply(Seq(2), SegmentInfo::default(), &[(Extent::new(10, end - 10), placement)], None).unwrap();
            map.resize(BlockCount(2 * PAGE_BLOCKS)).unwrap();
            let (count, found) = map.first(Extent::new(beyond, 1)).unwrap();
            assert!(count == BlockCount(1) && matches!(found, Placement::Data(_)), "{found:?}");
        }
    }

    #[test]
    fn a_map_becomes_smaller_only_where_nothing_is_mapped() {
        let mut map = ExtentMap::new(BlockCount(3 * PAGE_BLOCKS + 100));
        let mut stored = Stored::default();
        let end = PAGE_BLOCKS + 10;
        map.apply(Seq(1), SegmentInfo::default(), &changes(Seq(1), end - 16, end, 2), None).unwrap();
        let placements = [
            (Extent::new(end - 1, 2), Placement::Zero),
            (Extent::new(2 * PAGE_BLOCKS, PAGE_BLOCKS), Placement::Zero),
            (Extent::new(3 * PAGE_BLOCKS + 1, 1), Placement::Zero),
        ];
        map.apply(Seq(2), SegmentInfo::default(), &placements, None).unwrap();
        for (hole, beyond) in [(end, end), (end + 1, 2 * PAGE_BLOCKS), (3 * PAGE_BLOCKS, 3 * PAGE_BLOCKS + 1)] {
            assert_eq!(map.resize(BlockCount(end)), Err(BlockIndex(beyond)), "after a hole from {hole} on");
            let extent = Extent::between(
                BlockIndex(hole),
                if hole == end { BlockIndex(end + 1) } else { BlockIndex(3 * PAGE_BLOCKS) },
            );
            map.apply(Seq(3), SegmentInfo::default(), &[(extent, Placement::Hole)], None).unwrap();
        }
        // Of pages that are not in memory it is known that they are not empty.
        stored.checkpoint(&mut map, Seq(3));
        map.evict(0);
        assert_eq!(map.resize(BlockCount(end)), Err(BlockIndex(3 * PAGE_BLOCKS)));
        let extent = Extent::between(BlockIndex(end), map.volume().end());
        while let Err(need) = map.apply(Seq(4), SegmentInfo::default(), &[(extent, Placement::Hole)], None) {
            stored.load(&mut map, need);
        }
        assert_eq!(map.resize(BlockCount(end)), Ok(()));
        assert_eq!(map.volume(), Extent::new(0, end));
    }

    #[test]
    fn a_page_that_comes_in_too_late_changes_nothing() {
        let mut map = ExtentMap::new(BlockCount(BLOCKS));
        let at = PageRef { checkpoint: Seq(1), offset: 0, len: 1 };
        let stale = [Mapped { extent: Extent::new(0, 4), content: Content::Zero }];
        map.page_loaded(PageIndex(0), at, Arc::new(Page::from_mapped(&stale)));
        assert_eq!(map.lookup(Extent::new(0, 4)).unwrap(), [(Extent::new(0, 4), Placement::Hole)]);
    }
}
