//! The format of a slab: bundles, one behind the other, each written at once. Pure.
//!
//! | offset | bytes | what |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic `ashB` |
//! | 4 | 4 | number of frames |
//! | 8 | 4 | bytes of the frames together |
//! | 12 | 4 | CRC-32C over the slab's number (4 bytes), the bundle's offset in it (8), the two fields before, the table |
//! | 16 | 12 × n | the table: of each frame the key (8 bytes) and the length (4) |
//! | … | … | the frames, sealed as in their objects, one behind the other |
//!
//! Integers are little-endian. The table is a hint where to look: a frame proves itself when it is read, by the seal of its
//! object. So what a crash leaves of a bundle needs no care beyond this: the end of a slab is the first place where no bundle
//! of this slab and offset stands.

use bytes::{BufMut, Bytes, BytesMut};

const MAGIC: [u8; 4] = *b"ashB";

/// Bytes before the table.
pub const FRONT_BYTES: usize = 16;

/// Bytes of one frame in the table.
const ENTRY_BYTES: usize = 12;

/// Where one frame lies in its slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: u64,
    /// Its offset in the slab.
    pub at: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// What the beginning of a bundle says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// So many bytes of it are needed.
    NeedMore(usize),
    /// There is no bundle.
    None,
    /// Its frames, and the offset of its end.
    Whole(Vec<Entry>, u64),
}

/// Bytes before the frames of a bundle of so many.
pub fn head_bytes(frames: usize) -> usize {
    FRONT_BYTES + frames * ENTRY_BYTES
}

/// What goes before the frames with these keys and lengths in a bundle at `at` of slab number `slab`.
pub fn encode_head(slab: u32, at: u64, frames: &[(u64, u32)]) -> Bytes {
    let mut head = BytesMut::with_capacity(head_bytes(frames.len()));
    head.put_slice(&MAGIC);
    head.put_u32_le(frames.len() as u32);
    head.put_u32_le(frames.iter().map(|(_, len)| len).sum());
    head.put_u32_le(0);
    for (key, len) in frames {
        head.put_u64_le(*key);
        head.put_u32_le(*len);
    }
    let check = check(slab, at, &head);
    head[12..16].copy_from_slice(&check.to_le_bytes());
    head.freeze()
}

/// Reads the head of the bundle at `at` of slab number `slab`, which is `slab_bytes` long, from its first `bytes`.
pub fn decode_head(slab: u32, at: u64, slab_bytes: u64, bytes: &[u8]) -> Head {
    let Some(front) = bytes.get(..FRONT_BYTES) else { return Head::NeedMore(FRONT_BYTES) };
    let word = |at: usize| u32::from_le_bytes([front[at], front[at + 1], front[at + 2], front[at + 3]]);
    let (count, frames_bytes) = (word(4) as usize, u64::from(word(8)));
    let head_len = FRONT_BYTES as u64 + count as u64 * ENTRY_BYTES as u64;
    let end = at + head_len + frames_bytes;
    if front[..4] != MAGIC || count == 0 || end > slab_bytes {
        return Head::None;
    }
    // No more than there is in the slab, so no more than its length.
    let Some(head) = bytes.get(..head_len as usize) else { return Head::NeedMore(head_len as usize) };
    if check(slab, at, head) != word(12) {
        return Head::None;
    }
    let mut next = at + head_len;
    let entries = head[FRONT_BYTES..].chunks_exact(ENTRY_BYTES).map(|entry| {
        let (key, len) = entry.split_at(8);
        let key = key.iter().rev().fold(0, |key, byte| key << 8 | u64::from(*byte));
        let len = len.iter().rev().fold(0, |len, byte| len << 8 | u32::from(*byte));
        let at = next;
        next += u64::from(len);
        Entry { key, at, len }
    });
    let entries: Vec<Entry> = entries.collect();
    if next == end { Head::Whole(entries, end) } else { Head::None }
}

fn check(slab: u32, at: u64, head: &[u8]) -> u32 {
    let check = crc32c::crc32c(&slab.to_le_bytes());
    let check = crc32c::crc32c_append(check, &at.to_le_bytes());
    let check = crc32c::crc32c_append(check, &head[4..12]);
    crc32c::crc32c_append(check, &head[FRONT_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLAB_BYTES: u64 = 1 << 30;

    proptest! {
        #[test]
        fn a_head_is_read_back_in_its_own_place_only(
            frames in prop::collection::vec((any::<u64>(), 0u32..100_000), 1..200), slab: u32, at in 0u64..1 << 29,
        ) {
            let head = encode_head(slab, at, &frames);
            let Head::Whole(entries, end) = decode_head(slab, at, SLAB_BYTES, &head) else { panic!() };
            let read: Vec<_> = entries.iter().map(|entry| (entry.key, entry.len)).collect();
            prop_assert_eq!(&read, &frames);
            prop_assert_eq!(entries[0].at, at + head.len() as u64);
            prop_assert_eq!(end, at + head.len() as u64 + frames.iter().map(|(_, len)| u64::from(*len)).sum::<u64>());
            prop_assert_eq!(decode_head(slab ^ 1, at, SLAB_BYTES, &head), Head::None);
            prop_assert_eq!(decode_head(slab, at + 1, SLAB_BYTES, &head), Head::None);
            prop_assert_eq!(decode_head(slab, at, end - 1, &head), Head::None);
            prop_assert_eq!(decode_head(slab, at, SLAB_BYTES, &head[..head.len() - 1]), Head::NeedMore(head.len()));
        }

        #[test]
        fn arbitrary_bytes_are_no_bundle(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0u32..30) {
            let front = [&MAGIC[..], &count.to_le_bytes()].concat();
            for bytes in [bytes.clone(), [front, bytes].concat()] {
                prop_assert!(!matches!(decode_head(1, 0, SLAB_BYTES, &bytes), Head::Whole(..)));
            }
        }
    }

    #[test]
    fn the_format_is_the_one_that_is_written_down() {
        let head = encode_head(7, 512, &[(0x0102_0304_0506_0708, 4116)]);
        let expected = [
            &b"ashB"[..],
            &[1, 0, 0, 0, 0x14, 0x10, 0, 0],
            &0x63c5_1a38_u32.to_le_bytes(),
            &[8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x10, 0, 0],
        ];
        assert_eq!(head, expected.concat());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let head = encode_head(7, 512, &[(3, 5), (u64::MAX, 70_000)]);
        for bit in 0..head.len() * 8 {
            let mut harmed = head.to_vec();
            harmed[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode_head(7, 512, SLAB_BYTES, &harmed), Head::Whole(..)), "bit {bit}");
        }
    }
}
