//! Local files: the one door to the server's own disk (journal and disk cache).
//!
//! [`local`] is the real one; [`crash`] is a disk in memory that forgets, in part and torn, what was not synced. [`note`] keeps small documents on either.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub mod crash;
pub mod local;
pub mod note;

/// A directory of the local disk. Names are plain file names or relative paths with `/`.
#[async_trait]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Where this is, for people.
    fn path(&self) -> String;

    /// Which life of the host this is: what was written and not synced is there for as long as it stays the same. `None` if
    /// nobody knows.
    fn host_life(&self) -> Option<String>;

    /// Names of the files directly in `dir` ("" is the directory itself), in order; empty if there is no such directory.
    async fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a new, empty file (its directories too) and makes its name durable. `AlreadyExists` if there is one.
    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file, durably; one that is not there counts as removed.
    async fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name (whose directories are made), durably. What had that name before is replaced.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;
}

/// An open file.
#[allow(clippy::len_without_is_empty)] // nobody asks
#[async_trait]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Its length in bytes.
    async fn len(&self) -> io::Result<u64>;

    /// Up to `len` bytes at `offset`; fewer only at the end of the file.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Writes the parts, joined, at `offset`. Returns once the operating system has them: they survive the death of
    /// this process, not that of the host.
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()>;

    /// As [`DiskFile::write_at`], and returns once these bytes are durable, too. Says nothing about others: what was
    /// written before elsewhere in the file need not go to the disk for it.
    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()>;

    /// Makes everything written before the call durable (fdatasync).
    async fn sync(&self) -> io::Result<()>;
}
