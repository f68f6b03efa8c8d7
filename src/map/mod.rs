//! The extent map: block → frame and position, or zero, or hole. Pure; knows no I/O and no time (rule R13).
//!
//! The volume is cut into fixed ranges of [`PAGE_BLOCKS`] blocks; each range with anything in it owns a [`Page`] of
//! sorted extents. [`ExtentMap`] keeps the pages that are in memory, knows where the others lie in the store, and says
//! which it needs instead of fetching them. Whole pages of allocated zero are a range set, so that zeroing or trimming
//! 16 TiB costs what is there, not what could be. [`Usage`] counts, with each change, the live blocks of every segment.

pub mod extent_map;
pub mod page;
pub mod page_format;
pub mod placement;
pub mod runs;
pub mod usage;

pub use extent_map::{ExtentMap, MapSnapshot, NeedPages};
pub use page::Page;
pub use placement::Placement;
pub use runs::Runs;
pub use usage::{Usage, UsageTotals};

use crate::units::{BlockIndex, Extent, Location, Seq};

/// What a mapped extent holds. A hole is the absence of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The extent's first block is at this location; the others follow in the same frame.
    Data(Location),
    /// Allocated zero.
    Zero,
}

impl Content {
    /// The content `blocks` further on in the same extent.
    pub fn skip(self, blocks: crate::units::BlockCount) -> Content {
        match self {
            Content::Data(location) => Content::Data(location.skip(blocks)),
            Content::Zero => Content::Zero,
        }
    }
}

/// An extent and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The blocks.
    pub extent: Extent,
    /// What they hold.
    pub content: Content,
}

/// The index of a page: a fixed range of the volume, [`PAGE_BLOCKS`] long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

/// Blocks in the range that a page owns: 64 MiB of 4 KiB blocks.
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

/// Where a page lies in the store: a frame of a checkpoint object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// The checkpoint object.
    pub checkpoint: Seq,
    /// Byte offset in it.
    pub offset: u32,
    /// Sealed length in bytes.
    pub len: u32,
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
    /// How many of them the map still needs.
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
