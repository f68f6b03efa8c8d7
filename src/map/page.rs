//! One page of the extent map: the sorted, disjoint extents of its range.

use std::collections::BTreeMap;

use super::{Content, Mapped, PageIndex};
use crate::units::{BlockCount, BlockIndex, Extent};

/// The extents of one page's range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    extents: BTreeMap<BlockIndex, (BlockCount, Content)>,
}

/// What one extent costs in memory, in bytes, tree overhead included: measured on pages that were filled in sequence, whose
/// nodes are half full (`tests/memory/map.rs`). A page as it comes from the store takes less.
const EXTENT_MEMORY: usize = 96;

/// What a page takes besides if it is not empty: a node of the tree that may be nearly so.
const NODE_MEMORY: usize = 640;

impl Page {
    /// A page that holds `mapped`: sorted, disjoint, inside one page's range (as decoding has checked).
    pub fn from_mapped(mapped: &[Mapped]) -> Page {
        Page { extents: mapped.iter().map(|m| (m.extent.start, (m.extent.count, m.content))).collect() }
    }

    /// A page whose whole range is allocated zero.
    pub fn zeroed(index: PageIndex, volume: Extent) -> Page {
        let mut page = Page::default();
        if let Some(extent) = index.extent().intersect(&volume) {
            page.extents.insert(extent.start, (extent.count, Content::Zero));
        }
        page
    }

    /// Its extents, in order.
    pub fn iter(&self) -> impl Iterator<Item = Mapped> + '_ {
        self.extents.iter().map(|(&start, &(count, content))| Mapped { extent: Extent { start, count }, content })
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        match self.extents.len() {
            0 => size_of::<Page>(),
            count => size_of::<Page>() + NODE_MEMORY + count * EXTENT_MEMORY,
        }
    }

    /// Sets what `extent` holds (`None` is a hole) and hands each piece that it replaces to `replaced`.
    pub fn set(&mut self, extent: Extent, content: Option<Content>, mut replaced: impl FnMut(Mapped)) {
        while let Some((&start, &(count, old))) = self.extents.range(..extent.end()).next_back() {
            let have = Extent { start, count };
            let Some(gone) = have.intersect(&extent) else { break };
            self.extents.remove(&start);
            replaced(Mapped { extent: gone, content: old.skip(gone.start - start) });
            if start < gone.start {
                self.extents.insert(start, (gone.start - start, old));
            }
            if gone.end() < have.end() {
                self.extents.insert(gone.end(), (have.end() - gone.end(), old.skip(gone.end() - start)));
            }
        }
        if let Some(content) = content {
            self.insert_joined(extent, content);
        }
    }

    /// What the blocks of `extent` hold, in order and without gaps.
    pub fn lookup(&self, extent: Extent, mut found: impl FnMut(Extent, Option<Content>)) {
        let first = self.extents.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        let mut at = extent.start;
        for (&start, &(count, content)) in self.extents.range(first..extent.end()) {
            let Some(part) = (Extent { start, count }).intersect(&extent) else { continue };
            if at < part.start {
                found(Extent::between(at, part.start), None);
            }
            found(part, Some(content.skip(part.start - start)));
            at = part.end();
        }
        if at < extent.end() {
            found(Extent::between(at, extent.end()), None);
        }
    }

    /// What the first block of `extent` holds, and how many blocks of it from there on lie in the same piece. The extent is not
    /// empty.
    pub fn first(&self, extent: Extent) -> (BlockCount, Option<Content>) {
        if let Some((&start, &(count, content))) = self.extents.range(..=extent.start).next_back()
            && let Some(part) = (Extent { start, count }).intersect(&extent)
        {
            return (part.count, Some(content.skip(part.start - start)));
        }
        let next = self.extents.range(extent.start..extent.end()).next();
        (next.map_or(extent.end(), |(&start, _)| start) - extent.start, None)
    }

    /// Inserts into a gap; zero runs that touch become one.
    fn insert_joined(&mut self, mut extent: Extent, content: Content) {
        if content == Content::Zero {
            if let Some((&start, &(count, Content::Zero))) = self.extents.range(..extent.start).next_back()
                && start + count == extent.start
            {
                self.extents.remove(&start);
                extent = Extent::between(start, extent.end());
            }
            if let Some(&(count, Content::Zero)) = self.extents.get(&extent.end()) {
                self.extents.remove(&extent.end());
                extent = Extent::between(extent.start, extent.end() + count);
            }
        }
        self.extents.insert(extent.start, (extent.count, content));
    }
}
