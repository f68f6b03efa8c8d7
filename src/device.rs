//! The seam between protocol and storage: what a block device can be asked.
//!
//! `nbd/` sees only this; `volume/` is one implementation, [`crate::device::memory`] (tests) another.
//! The caller has checked that `offset + len` lies inside the device; any alignment down to one byte is
//! served. A device may be made larger or smaller meanwhile: a change that ends past the new end fails, what is read there is zero. All methods may run concurrently; a change is visible to every read that starts after it returned.
//! A client that leaves gives its requests up: a future that is dropped before it is ready may or may not have taken
//! effect, and must leave the device as sound as if it had not been called.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub mod memory;
mod pieces;
pub mod read_only;

pub use pieces::{Piece, Pieces, zeroes};

/// Why a request failed, by what the client is told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// Data could not be read, or not be proven right (NBD_EIO).
    #[error("{0}")]
    Io(String),
    /// The same, and it is known which byte it begins with (NBD_EIO, at that offset).
    #[error("{why}")]
    Unreadable {
        /// The first byte of the device that was asked for and cannot be had.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Another server took the volume: nothing is accepted any more (NBD_EIO; the text says who).
    #[error("{0}")]
    Fenced(String),
    /// The device is read-only (NBD_EPERM).
    #[error("the volume is read-only: {0}")]
    ReadOnly(String),
    /// The device has become smaller, and the range ends past its end now (NBD_ENOSPC).
    #[error("the range ends past the end of the volume, which was made smaller")]
    BeyondEnd,
    /// The device is closing (NBD_ESHUTDOWN).
    #[error("the volume is closing")]
    ShuttingDown,
}

/// What a client is told of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes.
    pub size: u64,
    /// The unit of mapping in bytes: I/O in multiples of it needs no completing of partial blocks.
    pub block_size: u32,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// The most runs that [`Device::extents`] is asked for.
pub const RUNS_MAX: usize = 4096;

/// What is known of bytes that nobody has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocation {
    /// They may be anything.
    Data,
    /// They read as zero, and are to be reported as allocated.
    Zero,
    /// They read as zero, and nothing was ever written or what was has been given up.
    Hole,
}

/// Bytes in a row of which the same is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many; at least one.
    pub len: u64,
    /// What is known of them.
    pub allocation: Allocation,
}

/// A version of a device that is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Its name.
    pub name: String,
    /// What tells it from all others, also from a later one of that name.
    pub number: u64,
}

/// Bytes in a row, all of which may differ from what a version has there, or none of which does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// How many; at least one.
    pub len: u64,
    /// Whether they may differ.
    pub differs: bool,
}

/// A block device.
#[async_trait]
pub trait Device: Send + Sync {
    /// Size and block size. The size may change in the life of a connection, the rest does not.
    fn info(&self) -> DeviceInfo;

    /// The bytes `offset .. offset + len`; the pieces' lengths sum to `len`, and they keep not much more memory
    /// than that. What is known to be zero comes as a number, not as bytes.
    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError>;

    /// Accepts `data` at `offset`; with `fua` returns once it is stable. `data` keeps no more memory than its length.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError>;

    /// Gives up the blocks that lie wholly inside the range; they read as zero afterwards, nothing else changes.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), DeviceError>;

    /// Zeroes exactly the range. With `no_hole` the whole blocks stay allocated ("allocated zero").
    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), DeviceError>;

    /// Returns once every change that had returned before the call is stable.
    async fn flush(&self) -> Result<(), DeviceError>;

    /// Asks for the range to be near; a hint.
    async fn cache(&self, offset: u64, len: u64) -> Result<(), DeviceError>;

    /// What is known of the bytes from `offset` on: one run at least, `most` at most, in order and without gaps, neighbours
    /// different. Together they may be shorter than `len`, where more would be too much work for one call, and never longer.
    /// `len` is at least one, and `most` too. A run is said to be zero or a hole only if it read as zero at some moment of the
    /// call: changes that are made meanwhile may count or not.
    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError>;

    /// The versions that it can be compared with, oldest first.
    async fn versions(&self) -> Result<Vec<Version>, DeviceError> {
        Ok(Vec::new())
    }

    /// Where the bytes from `offset` on may differ from what that version has there, as [`Device::extents`] says what they are. What is said not to
    /// differ was the same at some moment of the call. Fails if the version is not there any more.
    async fn compare(
        &self,
        since: &Version,
        _offset: u64,
        _len: u64,
        _most: usize,
    ) -> Result<Vec<Compared>, DeviceError> {
        Err(DeviceError::Io(format!("it cannot be compared with {:?}", since.name)))
    }
}

/// One line of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// The name that a client asks for.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Why an export cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExportError {
    /// There is none of that name (NBD_REP_ERR_UNKNOWN).
    #[error("no export named {0:?}; see the list of exports")]
    Unknown(String),
    /// There is one, but it cannot be served now (NBD_REP_ERR_POLICY); the text says why and the way out.
    #[error("{0}")]
    Unavailable(String),
    /// Another server has it, or will (NBD_REP_ERR_POLICY); the text says who.
    #[error("{0}")]
    Elsewhere(String),
    /// The server is closing (NBD_REP_ERR_SHUTDOWN).
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What stands in the name of an export between that of a disk and that of a version of it: `db@monday`. No other name has it.
pub const AT: char = '@';

/// What a server serves: the names, and the devices behind them.
#[async_trait]
pub trait Exports: Send + Sync {
    /// All exports, by name.
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError>;

    /// The export that the empty name asks for, if there is one: the only one that there is. Versions of a disk beside it do not count.
    async fn default_name(&self) -> Result<Option<String>, ExportError> {
        let listed = self.list().await?;
        Ok(<[ExportEntry; 1]>::try_from(listed).ok().map(|[only]| only.name))
    }

    /// The device of that name. The empty name asks for the default export
    /// (proto.md, NBD_OPT_EXPORT_NAME). Connections of one export share one device.
    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError>;
}
