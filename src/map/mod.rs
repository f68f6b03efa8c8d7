//! The extent map: block → frame and position, or zero, or hole. Pure; knows no I/O and no time (rule R13).
//!
//! It is layered. What was committed since the last checkpoint is a [`Table`] in memory. Each checkpoint makes a [`Run`] of it: immutable,
//! sorted, cut into pages that are loaded on demand, found by an index that is pages too. Newer layers hide older ones. [`compaction`]
//! merges runs in small steps, so that there are few of them. So a change costs the same on every volume, however large its map is.
//!
//! [`Usage`] counts the live blocks of every segment: exactly and at once while all of the map fits into memory, and else when
//! layers are merged; until then it says too many, never too few ([`merge`]).

pub mod compaction;
pub mod extent_map;
pub mod fixed;
pub mod layout;
pub mod leaf;
pub mod leaf_format;
pub mod merge;
pub mod page_cache;
pub mod placement;
pub mod ranges;
pub mod run;
pub mod table;
pub mod usage;

#[cfg(test)]
mod model_tests;

pub use extent_map::{Checkpointed, ExtentMap, MapSnapshot, NeedPages};
pub use leaf::Leaf;
pub use merge::Deaths;
pub use placement::{Entry, Placement};
pub use ranges::Ranges;
pub use run::{Found, MapPage, PageAt, PageKind, PageRef, Part, Run};
pub use table::Table;
pub use usage::{Usage, UsageTotals};

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

/// What is known of a segment that is in the store, for reading, accounting and garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The salt of its encoding: frames cannot be opened without it.
    pub salt: [u8; 16],
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// Data blocks that it brought.
    pub blocks: u32,
    /// How many of them the map still needs, or a few more if not all is counted yet.
    pub live_blocks: u32,
}

impl SegmentInfo {
    /// Bytes of the object that belong to live blocks: exact but for how much better or worse those compress than the
    /// dead ones.
    pub fn live_bytes(&self) -> u64 {
        match self.blocks {
            0 => 0,
            blocks => (u128::from(self.stored_bytes) * u128::from(self.live_blocks) / u128::from(blocks)) as u64,
        }
    }
}
