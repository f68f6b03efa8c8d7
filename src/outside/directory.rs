//! Which directory is at a path: a mount that vanishes leaves another one of the same path behind, which is empty.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells files and directories apart while their filesystem is mounted. The time of birth is not among it: an overlay changes
/// that of a directory with the first write into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    device: u64,
    inode: u64,
}

impl Numbers {
    /// Of what was found.
    pub fn of(found: &Metadata) -> Numbers {
        Numbers { device: found.dev(), inode: found.ino() }
    }

    /// Of what is at `path`.
    pub fn at(path: &Path) -> io::Result<Numbers> {
        Ok(Numbers::of(&fs::metadata(path)?))
    }
}
