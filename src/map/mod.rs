//! The extent map: block → frame and position, or zero, or hole. Pure; knows no I/O and no time (rule R13).

pub mod page_format;
pub mod placement;

use crate::units::{Extent, Location, Seq};

/// What a mapped extent holds. A hole is the absence of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The extent's first block is at this location; the others follow in the same frame.
    Data(Location),
    /// Allocated zero.
    Zero,
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
