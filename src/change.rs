//! One accepted change of a volume: what a client did, at block granularity, in the order of acceptance.
//! The journal keeps these, the write buffer coalesces them.

use bytes::Bytes;

use crate::units::{BlockIndex, BlockSize, ChangeNo, Extent};

/// What happens to an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The blocks hold this data; its length is the extent's.
    Write(Extent, Bytes),
    /// The blocks read as zero and stay allocated ("allocated zero").
    Zero(Extent),
    /// The blocks read as zero and are given up.
    Hole(Extent),
}

impl Change {
    /// The blocks that change.
    pub fn extent(&self) -> Extent {
        match self {
            Change::Write(extent, _) | Change::Zero(extent) | Change::Hole(extent) => *extent,
        }
    }

    /// The same change, whose data is no slice of anything larger.
    pub fn into_own(self) -> Change {
        match self {
            Change::Write(extent, data) => Change::Write(extent, Bytes::copy_from_slice(&data)),
            other => other,
        }
    }

    /// What it changes of a volume that ends at `end`. A change that lies wholly beyond is still one, and keeps its number, but it
    /// brings nothing there.
    pub fn within(self, end: BlockIndex, block_size: BlockSize) -> Change {
        let extent = self.extent();
        if extent.end() <= end {
            return self;
        }
        if extent.start >= end {
            return Change::Hole(extent);
        }
        let inside = Extent::between(extent.start, end);
        match self {
            Change::Write(_, data) => Change::Write(inside, data.slice(..block_size.bytes_in(inside.count) as usize)),
            Change::Zero(_) => Change::Zero(inside),
            Change::Hole(_) => Change::Hole(inside),
        }
    }

    /// Bytes of data that it carries.
    pub fn data_len(&self) -> u64 {
        match self {
            Change::Write(_, data) => data.len() as u64,
            Change::Zero(_) | Change::Hole(_) => 0,
        }
    }
}

/// A change and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its place in the history of the volume.
    pub no: ChangeNo,
    /// The change.
    pub change: Change,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_beyond_the_end_brings_nothing_there() {
        let block_size = BlockSize::new(512).unwrap_or_default();
        let write = |start, count| Change::Write(Extent::new(start, count), Bytes::from(vec![7; 512 * count as usize]));
        let end = BlockIndex(10);
        assert_eq!(write(4, 6).within(end, block_size), write(4, 6));
        assert_eq!(write(8, 6).within(end, block_size), write(8, 2));
        assert_eq!(write(10, 2).within(end, block_size), Change::Hole(Extent::new(10, 2)));
        assert_eq!(Change::Zero(Extent::new(0, 1 << 40)).within(end, block_size), Change::Zero(Extent::new(0, 10)));
        assert_eq!(Change::Hole(Extent::new(9, 2)).within(end, block_size), Change::Hole(Extent::new(9, 1)));
    }
}
