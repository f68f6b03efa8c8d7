//! Digests: the fronts of some segments that follow each other in the log, in one object, so that opening a volume need not read each of them
//! where it lies. A front is prefix and head of a segment, byte for byte: it proves itself as it does there.
//!
//! A digest is a hint. Whoever has none, or one that cannot be read, reads the slots.

use bytes::Bytes;

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{Compression, Frames};
use crate::codec::object::{Encoded, ObjectKind, PREFIX_BYTES, bytes_max, decode_head, encode};
use crate::codec::seal::{Salt, Sealer};
use crate::codec::{CorruptError, EncodeError, expect_len};
use crate::units::Seq;

/// Slots of the log, one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stretch {
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
}

impl Stretch {
    /// How many.
    pub fn slots(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Whether that slot is one of them.
    pub fn has(&self, seq: Seq) -> bool {
        (self.first..=self.last).contains(&seq)
    }
}

/// The most bytes that fronts of one digest have together: the rest of what there may be is for their lengths.
pub const FRONTS_BYTES_MAX: usize = 12 << 20;

/// Whether an object of so many bytes may be a digest.
pub fn may_be(bytes: u64) -> bool {
    bytes <= bytes_max(ObjectKind::Digest)
}

/// Makes a digest of the fronts of a stretch, in the order of its slots.
pub fn encode_digest(sealer: &Sealer, stretch: Stretch, salt: Salt, fronts: &[Bytes]) -> Result<Encoded, EncodeError> {
    if stretch.slots() != fronts.len() as u64 {
        return Err(EncodeError::new(format!("a digest of {} slots with {} fronts", stretch.slots(), fronts.len())));
    }
    let mut w = Writer::with_capacity(fronts.iter().map(|front| front.len() + 4).sum::<usize>() + 16);
    w.varint(stretch.first.0);
    w.varint(fronts.len() as u64);
    for front in fronts {
        w.varint(front.len() as u64);
        w.bytes(front);
    }
    let none = Frames::with_capacity(0, 0, Compression::None);
    encode(sealer, ObjectKind::Digest, stretch.last, salt, &w.finish(), none)
}

/// The fronts of a stretch, from the whole object. That they are those of their slots is for each of them to prove.
pub fn decode_digest(sealer: &Sealer, stretch: Stretch, bytes: &Bytes) -> Result<Vec<Bytes>, CorruptError> {
    let decoded = decode_head(sealer, &[ObjectKind::Digest], stretch.last, bytes)?.whole(bytes.len())?;
    expect_len(bytes.len(), u64::from(decoded.frames_at))?;
    let mut r = Reader::new(&decoded.head);
    let (first, count) = (r.ordinal()?, r.count(PREFIX_BYTES)?);
    if first != stretch.first.0 || count as u64 != stretch.slots() {
        return Err(Malformed { at: 0, what: "a digest of other slots than its key says" }.into());
    }
    let mut fronts = Vec::with_capacity(count);
    for _ in 0..count {
        let len = r.varint_u32()? as usize;
        fronts.push(decoded.head.slice_ref(r.take(len)?));
    }
    r.finish()?;
    Ok(fronts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const STRETCH: Stretch = Stretch { first: Seq(7), last: Seq(9) };

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(5), None)
    }

    fn sample() -> (Vec<Bytes>, Bytes) {
        let fronts = [48, 300, 70].map(|len| Bytes::from(vec![len as u8; len])).to_vec();
        let encoded = encode_digest(&sealer(), STRETCH, [8; 16], &fronts).unwrap();
        (fronts, encoded.parts.concat().into())
    }

    #[test]
    fn fronts_come_back_and_nothing_else_does() {
        let (fronts, bytes) = sample();
        assert_eq!(decode_digest(&sealer(), STRETCH, &bytes).unwrap(), fronts);
        for len in 0..bytes.len() {
            assert!(decode_digest(&sealer(), STRETCH, &bytes.slice(..len)).is_err(), "the first {len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut harmed = bytes.to_vec();
            harmed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_digest(&sealer(), STRETCH, &harmed.into()).is_err(), "bit {bit}");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(decode_digest(&sealer(), STRETCH, &longer).is_err());
    }

    #[test]
    fn it_is_bound_to_its_slots_and_its_volume() {
        let (fronts, bytes) = sample();
        for (first, last) in [(6, 9), (8, 9), (7, 10), (8, 10)] {
            let other = Stretch { first: Seq(first), last: Seq(last) };
            assert!(decode_digest(&sealer(), other, &bytes).is_err(), "{first} {last}");
        }
        assert!(decode_digest(&Sealer::new(Uuid::from_u128(6), None), STRETCH, &bytes).is_err());
        assert!(encode_digest(&sealer(), STRETCH, [8; 16], &fronts[..2]).is_err());
    }
}
