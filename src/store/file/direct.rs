//! Writing large files past the page cache.
//!
//! An object is written once, synced at once, and read back seldom and through our own cache: going through the page
//! cache, each byte would be copied to pages that have to be found first, and would push out what the host needs more. On
//! a virtual machine whose host takes back unused memory, finding pages costs more than everything else together.
//!
//! Memory, offsets and lengths must be aligned for it. So the body is copied through a small buffer that is used again
//! and again, the last piece is filled up with zeros, and the file is then cut to its length. A filesystem that refuses
//! is not asked again, and files are written as usual.

#![allow(clippy::disallowed_methods)] // this is the door to the files of a store

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;

/// Smaller bodies are not worth the wait for the disk that each write then is.
const BODY_MIN: usize = 1 << 20;
/// What is written by one call.
const PIECE: usize = 2 << 20;
/// A multiple of what any disk asks for.
const ALIGN: usize = 4096;
/// Buffers that are kept.
const KEPT_MAX: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Direct {
    refused: AtomicBool,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Direct {
    /// Whether a body of so many bytes should go this way.
    pub fn suits(&self, len: usize) -> bool {
        len >= BODY_MIN && !self.refused.load(Ordering::Relaxed)
    }

    /// Writes `body` into a new file at `path`; not synced yet. `None` if the filesystem cannot do it this way: then a part
    /// of it may be there.
    pub fn write(&self, path: &Path, body: &[Bytes]) -> io::Result<Option<File>> {
        let mut buffer = self.buffers.lock().pop().unwrap_or_else(|| vec![0; PIECE + ALIGN]);
        let written = write_new(path, body, &mut buffer);
        let mut kept = self.buffers.lock();
        if kept.len() < KEPT_MAX {
            kept.push(buffer);
        }
        match written {
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(None)
            }
            written => written.map(Some),
        }
    }
}

fn write_new(path: &Path, body: &[Bytes], buffer: &mut [u8]) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path)?;
    let skip = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
    let piece = &mut buffer[skip..skip + PIECE];
    let (mut filled, mut offset) = (0, 0);
    for mut part in body.iter().map(|part| &part[..]) {
        while !part.is_empty() {
            let take = part.len().min(PIECE - filled);
            piece[filled..filled + take].copy_from_slice(&part[..take]);
            (filled, part) = (filled + take, &part[take..]);
            if filled == PIECE {
                file.write_all_at(piece, offset)?;
                (filled, offset) = (0, offset + PIECE as u64);
            }
        }
    }
    let padded = filled.next_multiple_of(ALIGN);
    piece[filled..padded].fill(0);
    file.write_all_at(&piece[..padded], offset)?;
    if padded > filled {
        file.set_len(offset + filled as u64)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_its_length_and_parts_a_body_is_written_whole() {
        let root = tempfile::tempdir().unwrap();
        let direct = Direct::default();
        for (no, len) in [BODY_MIN, PIECE, PIECE + 1, 3 * PIECE - 1, 3 * PIECE + ALIGN].into_iter().enumerate() {
            let whole: Bytes = (0..len).map(|i| (i / 7 + no) as u8).collect();
            let body = [whole.slice(..48), Bytes::new(), whole.slice(48..50_001), whole.slice(50_001..)];
            let path = root.path().join(no.to_string());
            let Some(file) = direct.write(&path, &body).unwrap() else {
                assert!(!direct.suits(len), "a filesystem that refuses is not asked again");
                return;
            };
            file.sync_all().unwrap();
            assert!(std::fs::read(&path).unwrap() == whole, "{len} bytes");
        }
        assert!(direct.buffers.lock().len() == 1, "the buffer is used again");
    }

    #[test]
    fn what_is_small_goes_the_usual_way() {
        let direct = Direct::default();
        assert!(!direct.suits(BODY_MIN - 1) && direct.suits(BODY_MIN));
        direct.refused.store(true, Ordering::Relaxed);
        assert!(!direct.suits(BODY_MIN));
    }

    #[test]
    fn a_name_that_is_taken_stays_an_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("there");
        std::fs::write(&path, "something").unwrap();
        let refused = Direct::default().write(&path, &[Bytes::from(vec![1; BODY_MIN])]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    }
}
