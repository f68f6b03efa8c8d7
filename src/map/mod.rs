//! The extent map: block → frame and position, or zero, or hole. Pure; knows no I/O and no time (rule R13).
//!
//! It is layered. What was committed since the last checkpoint is a [`Table`] in memory. Each checkpoint makes a [`Run`] of it: immutable,
//! sorted, cut into pages that are loaded on demand, found by an index that is pages too. Newer layers hide older ones. [`compaction`]
//! merges runs in small steps, so that there are few of them. So a change costs the same on every volume, however large its map is.
//!
//! Live blocks of every segment are counted in [`crate::space`]: exactly and at once while all of the map fits into memory, and else
//! when layers are merged; until then too many are, never too few ([`merge`]).

pub mod compaction;
pub mod extent_map;
pub mod fixed;
pub mod layout;
pub mod leaf;
pub mod leaf_format;
pub mod merge;
pub mod page_cache;
pub mod page_writer;
pub mod placement;
pub mod ranges;
pub mod run;
pub mod table;
pub mod walk;
pub mod survey;
pub mod difference;

#[cfg(test)]
mod model_tests;

pub use extent_map::{Checkpointed, ExtentMap, MapSnapshot, NeedPages, Superseded};
pub use leaf::Leaf;
pub use merge::Deaths;
pub use page_writer::PageWriter;
pub use placement::{Entry, Placement};
pub use ranges::Ranges;
pub use run::{Found, MapPage, PageAt, PageKind, Part, Run};
pub use survey::{Parts, Survey};
pub use table::Table;

pub use crate::space::SegmentInfo;
pub use crate::units::PageRef;
use crate::units::{BlockIndex, Extent};

/// The most entries that a leaf can have.
pub const LEAF_ENTRIES_MAX: usize = 16 << 10;

/// The index of a page of the formats before the layers: a fixed range of the volume, [`PAGE_BLOCKS`] long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

/// Blocks in the range that such a page owned: 64 MiB of 4 KiB blocks.
pub const PAGE_BLOCKS: u64 = 1 << 14;

impl PageIndex {
    /// The page that owns `block`.
    pub fn of(block: BlockIndex) -> PageIndex {
        PageIndex(block.0 / PAGE_BLOCKS)
    }

    /// The blocks that the page owns (in the last page of a volume, some of them beyond its end).
    pub fn extent(self) -> Extent {
        Extent::new(self.0 * PAGE_BLOCKS, PAGE_BLOCKS)
    }
}
