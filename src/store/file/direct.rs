//! Reading and writing large files past the page cache.
//!
//! An object is written once, synced at once, and read back through our own cache: going through the page
//! cache, each byte would be copied to or from pages that have to be found first, and would push out what the host needs more.
//! On a virtual machine whose host takes back unused memory, finding pages costs more than everything else together.
//!
//! Memory, offsets and lengths must be aligned for it. So a body is copied through a small buffer, and the last
//! piece is filled up with zeros and the file then cut to its length; a range is read with what stands before and behind it up to
//! the next boundaries, and cut out. The memory is used again and again ([`Buffers`]). A filesystem that refuses is not asked again,
//! and files are written and read as usual. So are small ones: the kernel reads ahead of them.

#![allow(clippy::disallowed_methods)] // this is the door to the files of a store

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::OFlags;

use super::super::buffers::{ALIGN, Buffers};

/// Smaller bodies are not worth the wait for the disk that each write then is.
const BODY_MIN: usize = 1 << 20;
/// Smaller ranges are as quick through the page cache, and may be there.
const RANGE_MIN: u64 = 256 << 10;
/// What is written by one call, at most.
const PIECE: usize = 2 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Direct {
    refused: AtomicBool,
    pub buffers: Buffers,
}

impl Direct {
    /// Whether a body of so many bytes should go this way.
    pub fn suits(&self, len: usize) -> bool {
        len >= BODY_MIN && !self.refused.load(Ordering::Relaxed)
    }

    /// Whether so many bytes should be read this way.
    pub fn suits_range(&self, len: u64) -> bool {
        len >= RANGE_MIN && !self.refused.load(Ordering::Relaxed)
    }

    /// Writes `body` into a new file at `path`; not synced yet. `None` if the filesystem cannot do it this way: then a part
    /// of it may be there.
    pub fn write(&self, path: &Path, body: &[Bytes]) -> io::Result<Option<File>> {
        // No more than the body takes, so that all bodies under way take no more than that.
        let len = body.iter().map(Bytes::len).sum::<usize>().next_multiple_of(ALIGN).clamp(ALIGN, PIECE);
        let mut buffer = self.buffers.lend(len);
        self.unless_refused(write_new(path, body, &mut buffer.aligned()[..len]))
    }

    /// Reads the bytes `range`, which lie within the file at `path`. `None` if the filesystem cannot do it this way.
    pub fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Option<Bytes>> {
        let from = range.start - range.start % ALIGN as u64;
        let (skip, end) = ((range.start - from) as usize, (range.end - from) as usize);
        let mut buffer = self.buffers.lend(end.next_multiple_of(ALIGN));
        let read = read_aligned(path, from, end, &mut buffer.aligned()[..end.next_multiple_of(ALIGN)]);
        Ok(self.unless_refused(read)?.map(|()| buffer.into_bytes(skip..end)))
    }

    fn unless_refused<T>(&self, done: io::Result<T>) -> io::Result<Option<T>> {
        match done {
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(None)
            }
            done => done.map(Some),
        }
    }
}

/// Fills `buffer` from offset `from` on, at least up to `need` bytes of it: behind them the file may end.
fn read_aligned(path: &Path, from: u64, need: usize, buffer: &mut [u8]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let mut filled = 0;
    while filled < need {
        match file.read_at(&mut buffer[filled..], from + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_new(path: &Path, body: &[Bytes], piece: &mut [u8]) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path)?;
    let (mut filled, mut offset) = (0, 0);
    for mut part in body.iter().map(|part| &part[..]) {
        while !part.is_empty() {
            let take = part.len().min(piece.len() - filled);
            piece[filled..filled + take].copy_from_slice(&part[..take]);
            (filled, part) = (filled + take, &part[take..]);
            if filled == piece.len() {
                file.write_all_at(piece, offset)?;
                (filled, offset) = (0, offset + piece.len() as u64);
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
        assert_eq!(direct.buffers.idle(), 2, "buffers are used again, those for short bodies too");
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

    #[test]
    fn any_range_is_read_whole() {
        let root = tempfile::tempdir().unwrap();
        let (direct, path) = (Direct::default(), root.path().join("file"));
        let whole: Vec<u8> = (0..3 * BODY_MIN + 17).map(|i| (i / 5) as u8).collect();
        std::fs::write(&path, &whole).unwrap();
        let len = whole.len();
        for range in [0..len, 1..len - 1, ALIGN..2 * ALIGN, len - 17..len, len - 18..len, 5000..5001, 7..7] {
            let Some(read) = direct.read(&path, range.start as u64..range.end as u64).unwrap() else {
                assert!(!direct.suits_range(RANGE_MIN), "a filesystem that refuses is not asked again");
                return;
            };
            assert!(read == whole[range.clone()], "{range:?}");
        }
        let beyond = direct.read(&path, len as u64 - 5..len as u64 + 1).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
