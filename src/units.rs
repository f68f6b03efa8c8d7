//! Quantities as types, so that an index, a count and a number of bytes cannot be confused.
//!
//! Everything may use this module; it uses nothing of ours.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The index of a block of a volume, from 0.
    BlockIndex
}
number! {
    /// A number of consecutive blocks.
    BlockCount
}
number! {
    /// A segment's place in the log, from 1; 0 means "before the log".
    Seq
}
number! {
    /// The number of a fence: every server that takes a volume begins the next epoch. 0 means "never taken".
    Epoch
}
number! {
    /// The number of an accepted change (write, trim, zero), consecutive within a volume's history from 1;
    /// it is the position in the journal too. 0 means "before the first change".
    ChangeNo
}

/// No [`Seq`], [`Epoch`] or [`ChangeNo`] is greater: a volume that is written a thousand million times a second comes there after a
/// hundred years. What claims to be is forged or damaged, and is refused where it is read, so that no sum of ours overflows.
pub const ORDINAL_MAX: u64 = 1 << 62;

impl Add<BlockCount> for BlockIndex {
    type Output = BlockIndex;
    fn add(self, count: BlockCount) -> BlockIndex {
        BlockIndex(self.0 + count.0)
    }
}

impl Sub for BlockIndex {
    type Output = BlockCount;
    fn sub(self, start: BlockIndex) -> BlockCount {
        BlockCount(self.0 - start.0)
    }
}

impl AddAssign for BlockCount {
    fn add_assign(&mut self, more: BlockCount) {
        self.0 += more.0;
    }
}

impl Seq {
    /// The place after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch that the next fence begins.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl ChangeNo {
    /// The number of the change after this one.
    pub fn next(self) -> ChangeNo {
        ChangeNo(self.0 + 1)
    }
}

/// The unit of mapping of a volume: a power of two from 512 B to 64 KiB, fixed at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BlockSize(u32);

impl BlockSize {
    /// The smallest block size in bytes.
    pub const MIN: u32 = 512;
    /// The largest block size in bytes.
    pub const MAX: u32 = 64 * 1024;

    /// Checks a block size in bytes.
    pub fn new(bytes: u64) -> Result<BlockSize, BadBlockSize> {
        match u32::try_from(bytes) {
            Ok(b) if b.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&b) => Ok(BlockSize(b)),
            _ => Err(BadBlockSize(bytes)),
        }
    }

    /// Bytes in one block.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The block that holds the byte at `offset`.
    pub fn block_of(self, offset: u64) -> BlockIndex {
        BlockIndex(offset >> self.shift())
    }

    /// The byte at which `block` begins.
    pub fn offset_of(self, block: BlockIndex) -> u64 {
        block.0 << self.shift()
    }

    /// Bytes in `count` blocks.
    pub fn bytes_in(self, count: BlockCount) -> u64 {
        count.0 << self.shift()
    }

    /// Whether `offset` (or a length) is a whole number of blocks.
    pub fn aligned(self, offset: u64) -> bool {
        offset & u64::from(self.0 - 1) == 0
    }

    /// The extent of all blocks that the bytes `offset .. offset + len` touch.
    pub fn cover(self, offset: u64, len: u64) -> Extent {
        let start = self.block_of(offset);
        let end = BlockIndex((offset + len).div_ceil(u64::from(self.0)));
        Extent::between(start, end)
    }

    /// The extent of all blocks that lie wholly inside the bytes `offset .. offset + len`; may be empty.
    pub fn inside(self, offset: u64, len: u64) -> Extent {
        let start = BlockIndex(offset.div_ceil(u64::from(self.0)));
        let end = self.block_of(offset + len);
        Extent::between(start, end.max(start))
    }

    fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        BlockSize(4096)
    }
}

impl TryFrom<u32> for BlockSize {
    type Error = BadBlockSize;
    fn try_from(bytes: u32) -> Result<Self, BadBlockSize> {
        BlockSize::new(u64::from(bytes))
    }
}

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> u32 {
        size.0
    }
}

/// A block size that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("block size {0} is not a power of two from 512 B to 64 KiB; 4 KiB suits most filesystems")]
pub struct BadBlockSize(u64);

/// A run of consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first block.
    pub start: BlockIndex,
    /// How many blocks; 0 is an empty extent.
    pub count: BlockCount,
}

impl Extent {
    /// The extent of `count` blocks from `start`.
    pub fn new(start: u64, count: u64) -> Extent {
        Extent { start: BlockIndex(start), count: BlockCount(count) }
    }

    /// The extent from `start` up to, and without, `end`.
    pub fn between(start: BlockIndex, end: BlockIndex) -> Extent {
        Extent { start, count: end - start }
    }

    /// The block after the last.
    pub fn end(&self) -> BlockIndex {
        self.start + self.count
    }

    /// Whether there is no block in it.
    pub fn is_empty(&self) -> bool {
        self.count.0 == 0
    }

    /// Whether `block` is one of its blocks.
    pub fn contains(&self, block: BlockIndex) -> bool {
        self.start <= block && block < self.end()
    }

    /// The blocks that both have, if any.
    pub fn intersect(&self, other: &Extent) -> Option<Extent> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Extent::between(start, end))
    }

    /// Whether they share a block.
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.intersect(other).is_some()
    }
}

/// Where the sealed bytes of a frame lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameAddr {
    /// The segment.
    pub seq: Seq,
    /// Byte offset in the segment's object.
    pub offset: u32,
    /// Sealed length in bytes.
    pub len: u32,
}

/// Where a page lies in the store: a frame of a checkpoint object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRef {
    /// The checkpoint object.
    pub checkpoint: Seq,
    /// Byte offset among its frames.
    pub offset: u32,
    /// Sealed length in bytes.
    pub len: u32,
}

/// Where a block's data lies: a frame, and the block's position among the frame's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The frame.
    pub frame: FrameAddr,
    /// The position inside the opened frame, in blocks.
    pub block: u16,
}

impl Location {
    /// The location of the block `count` further on in the same frame.
    pub fn skip(self, count: BlockCount) -> Location {
        // A frame has at most 128 blocks (64 KiB of 512 B), so the sum stays in range.
        Location { block: self.block + count.0 as u16, ..self }
    }
}

/// A frame holds at most this many bytes of data before compression, or one block.
pub const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// A volume has at most this many bytes: 8 EiB less one block, the most that a Linux block device can have.
pub const VOLUME_BYTES_MAX: u64 = (1 << 63) - BlockSize::MAX as u64;

/// A frame has at most this many blocks: 64 KiB of the smallest.
pub const FRAME_BLOCKS_MAX: u64 = (FRAME_BYTES_MAX / BlockSize::MIN) as u64;

/// A volume has at most this many blocks, whatever their size.
pub const VOLUME_BLOCKS_MAX: u64 = VOLUME_BYTES_MAX / BlockSize::MIN as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_in_bounds() {
        for good in [512, 4096, 65536] {
            assert!(BlockSize::new(good).is_ok());
        }
        for bad in [0, 1, 256, 4095, 12288, 131072, 1 << 32] {
            assert!(BlockSize::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cover_rounds_outward_and_inside_inward() {
        let b = BlockSize::default();
        assert_eq!(b.cover(1, 4096), Extent::new(0, 2));
        assert_eq!(b.inside(1, 4096), Extent::new(1, 0));
        assert_eq!(b.inside(1, 8191), Extent::new(1, 1));
        assert_eq!(b.inside(10, 20), Extent::new(1, 0));
        assert_eq!(b.cover(4096, 4096), b.inside(4096, 4096));
    }
}
