//! One accepted change of a volume: what a client did, at block granularity, in the order of acceptance.
//! The journal keeps these, the write buffer coalesces them.

use bytes::Bytes;

use crate::units::{ChangeNo, Extent};

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
