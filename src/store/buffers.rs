//! Memory for large reads and writes that is used again and again: of files, and of bodies from the network.
//!
//! Fresh memory is dear: the kernel finds pages, clears them and maps them one by one, and on a virtual machine whose host takes
//! back unused memory, the host does so once more. So what a read or write used is kept for the next one, up to a bound.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::memory::Pressure;

/// A multiple of what any disk asks of the place in memory, the offset and the length, in bytes.
pub const ALIGN: usize = 4096;

/// Bytes that are kept for later, at most, unless [`Buffers::keep_at_most`] says otherwise.
pub const IDLE_BYTES: u64 = 64 << 20;

/// New buffers are a multiple of this long and [`MARGIN`] bytes, so that reads of about the same length can use the same ones.
const GRAIN: usize = 256 << 10;
/// What comes on top of round lengths: what sealing adds to the data, and aligning.
const MARGIN: usize = 64 << 10;

/// The buffers that wait for use. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    /// Told of what is lent.
    pressure: Pressure,
    /// Bytes that may be kept.
    most: usize,
    /// The one that came back last is last: it is most likely still in the processor's cache.
    idle: Vec<Vec<u8>>,
    bytes: usize,
    /// Bytes of those that are in use, but for what was read into them.
    spare: usize,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { pressure: Pressure::default(), most: IDLE_BYTES as usize, idle: Vec::new(), bytes: 0, spare: 0 }
    }
}

impl Buffers {
    /// From now on keeps so many bytes for later, at most.
    pub fn keep_at_most(&self, bytes: u64) {
        let mut kept = self.0.lock();
        kept.most = usize::try_from(bytes).unwrap_or(usize::MAX);
        kept.let_go();
    }

    /// From now on tells this one of what is lent.
    pub fn tell(&self, pressure: &Pressure) {
        self.0.lock().pressure = pressure.clone();
    }

    /// A buffer of at least `len` bytes that begins at a multiple of [`ALIGN`]. What is in it is left from its last use.
    pub fn lend(&self, len: usize) -> Lent {
        let need = len + ALIGN;
        let len = need.saturating_sub(MARGIN).next_multiple_of(GRAIN) + MARGIN;
        let taken = self.0.lock().take(need);
        let memory = taken.unwrap_or_else(|| vec![0; len]);
        self.0.lock().lend(memory.len());
        let read = 0;
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Lent { memory, start, read, buffers: self.clone() }
    }

    /// Bytes that are kept for later, and how many at most.
    pub fn kept_bytes(&self) -> (u64, u64) {
        let kept = self.0.lock();
        (kept.bytes as u64, kept.most as u64)
    }

    /// Bytes of the buffers that are in use, but for what was read into them: that is somebody's, such as the block cache's.
    pub fn spare_bytes(&self) -> u64 {
        self.0.lock().spare as u64
    }

    /// How many are kept for later.
    #[cfg(test)]
    pub fn idle(&self) -> usize {
        self.0.lock().idle.len()
    }
}

impl Kept {
    /// One of `need` bytes or a little more: the block cache may keep it.
    fn take(&mut self, need: usize) -> Option<Vec<u8>> {
        let fits = |memory: &Vec<u8>| (need..=need + need / 4 + MARGIN).contains(&memory.len());
        let memory = self.idle.remove(self.idle.iter().rposition(fits)?);
        self.bytes -= memory.len();
        Some(memory)
    }

    fn lend(&mut self, bytes: usize) {
        self.spare += bytes;
        self.pressure.took(bytes as u64);
    }

    fn put(&mut self, memory: Vec<u8>, read: usize) {
        self.spare -= memory.len() - read;
        self.bytes += memory.len();
        self.idle.push(memory);
        self.let_go();
    }

    fn let_go(&mut self) {
        // What has not been used for longest goes first: those are lengths that nobody asks for any more.
        while self.bytes > self.most {
            self.bytes -= self.idle.remove(0).len();
        }
    }
}

/// A buffer in use. It goes back when this is dropped.
#[derive(Debug)]
pub struct Lent {
    memory: Vec<u8>,
    start: usize,
    /// Bytes that were read into it.
    read: usize,
    buffers: Buffers,
}

impl Lent {
    /// The part of it that is aligned; at least as long as was asked for.
    pub fn aligned(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    /// The bytes `range` of its aligned part, which goes back when the last slice of them is dropped.
    pub fn into_bytes(mut self, range: Range<usize>) -> Bytes {
        self.read = range.len();
        self.buffers.0.lock().spare -= self.read;
        let range = self.start + range.start..self.start + range.end;
        Bytes::from_owner(self).slice(range)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.0.lock().put(std::mem::take(&mut self.memory), self.read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_used_again_once_its_last_slice_is_gone() {
        let buffers = Buffers::default();
        let mut lent = buffers.lend(GRAIN);
        let aligned = lent.aligned();
        assert!(aligned.len() >= GRAIN && aligned.as_ptr().align_offset(ALIGN) == 0);
        aligned[100..103].copy_from_slice(b"abc");
        let place = aligned.as_ptr();
        assert_eq!(buffers.spare_bytes(), (GRAIN + MARGIN) as u64);
        let bytes = lent.into_bytes(100..103);
        assert_eq!(buffers.spare_bytes(), (GRAIN + MARGIN - 3) as u64);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&slice[..], buffers.kept_bytes()), (&b"bc"[..], (0, IDLE_BYTES)));
        drop(slice);
        assert_eq!(
            (buffers.spare_bytes(), buffers.idle(), buffers.kept_bytes()),
            (0, 1, ((GRAIN + MARGIN) as u64, IDLE_BYTES))
        );
        assert_eq!(buffers.lend(GRAIN - ALIGN).aligned().as_ptr(), place);
    }

    #[test]
    fn a_read_takes_little_more_than_it_needs() {
        let buffers = Buffers::default();
        for len in [GRAIN, 1 << 20, 4 << 20] {
            let room = buffers.lend(len + len / 4000 + ALIGN).aligned().len();
            assert!((len..=len + 2 * MARGIN).contains(&room), "{room} for {len}");
        }
        assert!(buffers.lend(2 << 20).aligned().len() < 3 << 20, "not that of 4 MiB");
        assert!(buffers.lend((4 << 20) - (300 << 10)).aligned().len() >= 4 << 20, "that of 4 MiB");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_was_used_last_stays() {
        let buffers = Buffers::default();
        let lent: Vec<Lent> = (0..5).map(|_| buffers.lend(16 << 20)).collect();
        drop(buffers.lend(GRAIN));
        drop(lent);
        assert_eq!(buffers.idle(), 3, "a fourth one of a little more than 16 MiB is too much");
        let kept = buffers.0.lock();
        assert!(kept.bytes as u64 <= IDLE_BYTES && kept.bytes == kept.idle.iter().map(Vec::len).sum::<usize>());
        drop(kept);
        buffers.keep_at_most(20 << 20);
        assert_eq!(buffers.idle(), 1);
    }
}
