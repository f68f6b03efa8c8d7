//! Runs: immutable layers of the map in the store, cut into pages that come in when they are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Entry, Leaf, PAGE_BLOCKS, PageIndex};
use crate::space;
use crate::units::{BlockCount, BlockIndex, Extent, Location, PageRef, Seq};

/// A page of the map: where it lies, and what it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    /// The block at which it begins.
    pub first: BlockIndex,
    /// Where it lies.
    pub at: PageRef,
    /// What it is.
    pub kind: PageKind,
}

/// What a page of the map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// It holds entries.
    Leaf,
    /// It finds leaves.
    Index,
    /// It holds the extents of a fixed range, as the formats before the layers had them.
    Fixed,
    /// It is of the table of segments; the number of what it is about stands in the place of its first block.
    Table(space::PageKind),
    /// It is no page of a checkpoint, but the head of a segment that carries others, whose encoding has this salt.
    Carrier([u8; 16]),
}

impl PageKind {
    /// Whether it is of the upper part: it finds other pages, or says what opens segments.
    pub fn is_upper(&self) -> bool {
        matches!(self, PageKind::Index | PageKind::Table(space::PageKind::Salts))
    }
}

/// A page of the map in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapPage {
    /// Entries.
    Leaf(Leaf),
    /// The leaves that it finds, each with the block at which it begins.
    Index(Vec<(BlockIndex, PageRef)>),
    /// Of the table of segments.
    Table(space::Page),
    /// What lies where in a segment that carries others, in the order of blocks.
    Carrier(Vec<(Extent, Location)>),
}

impl MapPage {
    /// Adds the deaths that stand in it, if it is such a page.
    pub fn add_deaths(&self, deaths: &mut space::kept::Deaths) {
        if let MapPage::Table(space::Page::Deltas(deltas)) = self {
            deltas.iter().for_each(|(seq, delta)| *deaths.entry(*seq).or_default() += delta.blocks());
        }
    }

    /// Whether it is of the upper part: see [`PageKind::is_upper`].
    pub fn is_upper(&self) -> bool {
        matches!(self, MapPage::Index(_) | MapPage::Table(space::Page::Salts(_)))
    }

    /// Bytes that it takes in memory.
    pub fn memory(&self) -> usize {
        match self {
            MapPage::Leaf(leaf) => leaf.memory(),
            MapPage::Index(pages) => pages.capacity() * size_of::<(BlockIndex, PageRef)>(),
            MapPage::Table(page) => page.memory(),
            MapPage::Carrier(places) => places.capacity() * size_of::<(Extent, Location)>(),
        }
    }
}

/// Whether a run is on its way into another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// It is not.
    #[default]
    Whole,
    /// It grows out of the runs behind it that are [`Part::Input`].
    Output,
    /// From its `from` on it is still needed; what is before has gone into the [`Part::Output`] in front of it.
    Input,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether it is being merged.
    pub part: Part,
    /// It says nothing of blocks before this one,
    pub from: BlockIndex,
    /// nor of this one and those after it.
    pub upto: BlockIndex,
    /// The last place in the log of which it may say something: less than that of any newer run.
    pub through: Seq,
    /// Nothing lies below it: it has no holes, and owes nothing.
    pub is_last: bool,
    /// What `pages` are.
    pub kind: PageKind,
    /// Its pages, or the index pages that find them, in the order of blocks. A page ends where the next one begins.
    pub pages: Arc<Vec<(BlockIndex, PageRef)>>,
    /// How many entries it was written with.
    pub entries: u64,
    /// Blocks of entries that owe ([`Entry::owes`]), about.
    pub owing: u64,
    /// The checkpoint objects in which its pages lie, and how many sealed bytes.
    pub objects: BTreeMap<Seq, u64>,
}

/// What a run says of a part of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This.
    Entry(Entry),
    /// Nothing.
    Gap(Extent),
    /// This page must be looked at first.
    Missing(Extent, PageAt),
}

impl Run {
    /// What it says of `extent`, in order and without gaps. `page` hands out the pages in memory.
    pub fn lookup<'a>(
        &self,
        extent: Extent,
        page: &impl Fn(&PageRef) -> Option<&'a MapPage>,
        found: &mut impl FnMut(Found),
    ) {
        let mut at = extent.start;
        let inside = extent.intersect(&Extent::between(self.from, self.upto.max(self.from)));
        if let Some(inside) = inside {
            self.each_leaf(inside, page, |part, leaf| {
                if at < part.start {
                    found(Found::Gap(Extent::between(at, part.start)));
                }
                at = part.end();
                match leaf {
                    Ok(leaf) => leaf.lookup(part, |part, entry| found(entry.map_or(Found::Gap(part), Found::Entry))),
                    Err(missing) => found(Found::Missing(part, missing)),
                }
            });
        }
        if at < extent.end() {
            found(Found::Gap(Extent::between(at, extent.end())));
        }
    }

    /// What it says of the first block of `extent`, clipped to it; of a gap, how far it goes at least.
    pub fn first<'a>(&self, extent: Extent, page: &impl Fn(&PageRef) -> Option<&'a MapPage>) -> Found {
        let one = Extent { start: extent.start, count: BlockCount(1) };
        let mut first = None;
        self.lookup(one, page, &mut |found| first = Some(found));
        match first {
            Some(Found::Entry(_)) => {
                // Once more with all of it: the entry's leaf is in memory.
                let leaf = self.leaf_of(extent.start, page).and_then(Result::ok);
                let entry = leaf.and_then(|leaf| leaf.overlapping(extent).next());
                let inside = Extent::between(self.from, self.upto.max(self.from));
                entry.and_then(|entry| entry.within(&extent)?.within(&inside)).map_or(Found::Gap(one), Found::Entry)
            }
            Some(missing @ Found::Missing(..)) => missing,
            Some(Found::Gap(_)) | None => Found::Gap(Extent::between(extent.start, self.gap_end(extent, page))),
        }
    }

    /// Where a gap that begins with `extent` ends at the earliest.
    fn gap_end<'a>(&self, extent: Extent, page: &impl Fn(&PageRef) -> Option<&'a MapPage>) -> BlockIndex {
        if extent.start < self.from {
            return self.from.min(extent.end());
        }
        if extent.start >= self.upto {
            return extent.end();
        }
        if let Some(Ok(leaf)) = self.leaf_of(extent.start, page)
            && let Some(next) = leaf.overlapping(extent).next()
        {
            return next.extent.start;
        }
        let end = self.page_after(extent.start, page).unwrap_or(self.upto);
        end.min(extent.end()).max(BlockIndex(extent.start.0 + 1))
    }

    /// The leaf in which `block` would be.
    fn leaf_of<'a>(
        &self,
        block: BlockIndex,
        page: &impl Fn(&PageRef) -> Option<&'a MapPage>,
    ) -> Option<Result<&'a Leaf, PageAt>> {
        let mut found = None;
        self.each_leaf(Extent { start: block, count: BlockCount(1) }, page, |_, leaf| found = Some(leaf));
        found
    }

    /// Where the page after that of `block` begins, as far as is known.
    fn page_after<'a>(&self, block: BlockIndex, page: &impl Fn(&PageRef) -> Option<&'a MapPage>) -> Option<BlockIndex> {
        let after = self.pages.partition_point(|(first, _)| *first <= block);
        let next = self.pages.get(after).map(|(first, _)| *first);
        if self.kind == PageKind::Index
            && let Some((_, at)) = after.checked_sub(1).and_then(|i| self.pages.get(i))
            && let Some(MapPage::Index(leaves)) = page(at)
            && let Some((first, _)) = leaves.get(leaves.partition_point(|(first, _)| *first <= block))
        {
            return Some(*first);
        }
        next
    }

    /// The leaves that may have entries in `extent`, each with its part of it; in place of one the page that is missing.
    fn each_leaf<'a>(
        &self,
        extent: Extent,
        page: &impl Fn(&PageRef) -> Option<&'a MapPage>,
        mut visit: impl FnMut(Extent, Result<&'a Leaf, PageAt>),
    ) {
        let mut leaf = |kind, part: Extent, first, at: &PageRef| match page(at) {
            Some(MapPage::Leaf(leaf)) => visit(part, Ok(leaf)),
            _ => visit(part, Err(PageAt { first, at: *at, kind })),
        };
        for (part, first, at) in covering(&self.pages, extent) {
            match self.kind {
                PageKind::Leaf => leaf(PageKind::Leaf, part, first, at),
                PageKind::Fixed => {
                    if let Some(part) = part.intersect(&PageIndex(first.0 / PAGE_BLOCKS).extent()) {
                        leaf(PageKind::Fixed, part, first, at);
                    }
                }
                PageKind::Index => match page(at) {
                    Some(MapPage::Index(leaves)) => {
                        for (part, first, at) in covering(leaves, part) {
                            leaf(PageKind::Leaf, part, first, at);
                        }
                    }
                    _ => leaf(PageKind::Index, part, first, at),
                },
                // No run has such pages.
                PageKind::Table(_) | PageKind::Carrier(_) => {}
            }
        }
    }

    /// Its leaves from that which has `from` on, or the index page that must be looked at to know the next.
    pub fn leaves<'r, 'a: 'r>(
        &'r self,
        from: BlockIndex,
        page: &'r impl Fn(&PageRef) -> Option<&'a MapPage>,
    ) -> impl Iterator<Item = Result<PageAt, PageAt>> + 'r {
        let from = from.max(self.from);
        let rest = Extent::between(from, self.upto.max(from));
        covering(&self.pages, rest).flat_map(move |(part, first, at)| {
            let own = PageAt { first, at: *at, kind: self.kind };
            let found: Box<dyn Iterator<Item = Result<PageAt, PageAt>> + 'r> = match (self.kind, page(at)) {
                (PageKind::Index, Some(MapPage::Index(leaves))) => Box::new(
                    covering(leaves, part).map(|(_, first, at)| Ok(PageAt { first, at: *at, kind: PageKind::Leaf })),
                ),
                (PageKind::Index, _) => Box::new(std::iter::once(Err(own))),
                _ => Box::new(std::iter::once(Ok(own))),
            };
            found
        })
    }

    /// The parts of `extent` of which it does not speak, because they are before or behind it.
    pub fn outside(&self, extent: Extent) -> impl Iterator<Item = Extent> {
        let before = Extent::between(extent.start, self.from.clamp(extent.start, extent.end()));
        let behind = Extent::between(self.upto.max(self.from).clamp(extent.start, extent.end()), extent.end());
        [before, behind].into_iter().filter(|part| !part.is_empty())
    }
}

/// The pages that may have something of `extent`, and which part of it.
fn covering(pages: &[(BlockIndex, PageRef)], extent: Extent) -> impl Iterator<Item = (Extent, BlockIndex, &PageRef)> {
    let begin = pages.partition_point(|(first, _)| *first <= extent.start).saturating_sub(1);
    let pages = &pages[begin..];
    pages
        .iter()
        .enumerate()
        .map_while(move |(i, (first, at))| {
            let end = pages.get(i + 1).map_or(extent.end(), |(next, _)| (*next).min(extent.end()));
            (*first < extent.end())
                .then(|| (Extent::between((*first).max(extent.start), end.max(*first).max(extent.start)), *first, at))
        })
        .filter(|(part, _, _)| !part.is_empty())
}
