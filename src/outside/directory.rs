//! Which directory is at a path: a mount that vanishes leaves another one of the same path behind, which is empty.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// What tells files and directories apart while their filesystem is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    device: u64,
    inode: u64,
    /// Where the filesystem keeps it: an inode may be used again.
    born: Option<SystemTime>,
}

impl Numbers {
    /// Of what was found.
    pub fn of(found: &Metadata) -> Numbers {
        Numbers { device: found.dev(), inode: found.ino(), born: found.created().ok() }
    }

    /// Of what is at `path`.
    pub fn at(path: &Path) -> io::Result<Numbers> {
        Ok(Numbers::of(&fs::metadata(path)?))
    }
}
