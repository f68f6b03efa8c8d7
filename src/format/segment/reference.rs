//! A reference: what stands in the frame of a segment in place of data that is stored already, in other segments of the same volume.
//!
//! It says of each part in which frame it is and what opens that, so that whoever reads it needs no table. A reference is to data, never to a reference: nobody goes
//! further than once. With it stands a digest of the data, and what comes of the parts counts only if it has that.

use crate::codec::CorruptError;
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{FRAME_OVERHEAD, SEALED_BYTES_MAX};
use crate::codec::seal::Salt;
use crate::units::{FRAME_BLOCKS_MAX, FrameAddr, Seq};

/// The fewest bytes that a part takes.
const PART_BYTES_MIN: usize = 21;

/// Blocks of a frame of another segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The frame.
    pub frame: FrameAddr,
    /// What opens it.
    pub salt: Salt,
    /// The first block of it.
    pub block: u8,
    /// How many blocks; one at least.
    pub blocks: u8,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The first bytes of the BLAKE3 of the data.
    pub digest: [u8; 16],
    /// Where it is, in order; one part at least.
    pub parts: Vec<Part>,
}

/// The digest of data that stands in these pieces, joined.
pub fn digest<P: AsRef<[u8]>>(pieces: &[P]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for piece in pieces {
        hasher.update(piece.as_ref());
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

impl Reference {
    /// As bytes, if it stands in the segment at `seq`.
    pub fn encode(&self, seq: Seq) -> Vec<u8> {
        let mut w = Writer::with_capacity(32 + self.parts.len() * 32);
        w.bytes(&self.digest);
        w.varint(self.parts.len() as u64);
        for Part { frame, salt, block, blocks } in &self.parts {
            w.varint(seq.0 - frame.seq.0);
            w.bytes(salt);
            w.varint(frame.offset.into());
            w.varint(frame.len.into());
            w.u8(*block);
            w.u8(*blocks);
        }
        w.finish()
    }

    /// From what stands in a frame of the segment at `seq`.
    pub fn decode(seq: Seq, bytes: &[u8]) -> Result<Reference, Malformed> {
        let mut r = Reader::new(bytes);
        let digest = r.array()?;
        let count = r.count(PART_BYTES_MIN)?;
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            let back = r.varint()?;
            let of = seq.0.checked_sub(back).filter(|of| back > 0 && *of > 0);
            let of = Seq(of.ok_or_else(|| r.bad("a reference to a segment that is not before it"))?);
            let salt = r.array()?;
            let frame = FrameAddr { seq: of, offset: r.varint_u32()?, len: r.varint_u32()? };
            let (block, blocks) = (r.u8()?, r.u8()?);
            if !(FRAME_OVERHEAD as u32 + 1..=SEALED_BYTES_MAX).contains(&frame.len) {
                return Err(r.bad("a reference to a frame of a length that cannot be"));
            }
            if blocks == 0 || u64::from(block) + u64::from(blocks) > FRAME_BLOCKS_MAX {
                return Err(r.bad("a reference to blocks that no frame has"));
            }
            parts.push(Part { frame, salt, block, blocks });
        }
        if parts.is_empty() {
            return Err(r.bad("a reference to nothing"));
        }
        r.finish()?;
        Ok(Reference { digest, parts })
    }

    /// The data, of the frames that it names, of which `part` has each: so many bytes, with the digest that it says.
    pub fn resolve<'d>(
        &self,
        len: u32,
        block_bytes: usize,
        part: impl Fn(&FrameAddr) -> Option<&'d [u8]>,
    ) -> Result<Vec<u8>, CorruptError> {
        let mut data = Vec::with_capacity(len as usize);
        for Part { frame, block, blocks, .. } in &self.parts {
            let (from, bytes) = (usize::from(*block) * block_bytes, usize::from(*blocks) * block_bytes);
            let of = part(frame).unwrap_or_default();
            let found = CorruptError::FrameLength { found: of.len() as u32, expected: (from + bytes) as u32 };
            data.extend_from_slice(of.get(from..from + bytes).ok_or(found)?);
        }
        if data.len() != len as usize {
            return Err(CorruptError::FrameLength { found: data.len() as u32, expected: len });
        }
        if digest(&[&data]) != self.digest {
            return Err(CorruptError::OtherData);
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(seq: u64) -> Part {
        Part { frame: FrameAddr { seq: Seq(seq), offset: 100, len: 50 }, salt: [7; 16], block: 1, blocks: 2 }
    }

    #[test]
    fn a_reference_comes_back_and_what_cannot_be_is_refused() {
        let reference = Reference { digest: [9; 16], parts: vec![part(3), part(8)] };
        assert_eq!(Reference::decode(Seq(9), &reference.encode(Seq(9))), Ok(reference.clone()));
        let refused = |parts: Vec<Part>| {
            let bytes = Reference { parts, ..reference.clone() }.encode(Seq(9));
            Reference::decode(Seq(9), &bytes).unwrap_err().what
        };
        assert_eq!(refused(vec![]), "a reference to nothing");
        assert_eq!(refused(vec![part(9)]), "a reference to a segment that is not before it");
        assert_eq!(refused(vec![part(0)]), "a reference to a segment that is not before it");
        assert_eq!(refused(vec![Part { blocks: 0, ..part(1) }]), "a reference to blocks that no frame has");
        assert_eq!(refused(vec![Part { block: 127, ..part(1) }]), "a reference to blocks that no frame has");
        let short = FrameAddr { len: 20, ..part(1).frame };
        assert_eq!(
            refused(vec![Part { frame: short, ..part(1) }]),
            "a reference to a frame of a length that cannot be"
        );
    }

    #[test]
    fn what_comes_of_it_has_its_length_and_its_digest_or_is_not_believed() {
        let frame: Vec<u8> = (0..4 * 512).map(|n| (n / 512) as u8).collect();
        let data = frame[512..3 * 512].to_vec();
        let reference = Reference { digest: digest(&[&data]), parts: vec![part(3)] };
        let of = |len, frame: Option<&[u8]>| reference.resolve(len, 512, |_| frame);
        assert_eq!(of(1024, Some(&frame)), Ok(data));
        assert!(matches!(of(1024, Some(&frame[..1024])), Err(CorruptError::FrameLength { .. })));
        assert!(matches!(of(1024, None), Err(CorruptError::FrameLength { .. })));
        assert!(matches!(of(512, Some(&frame)), Err(CorruptError::FrameLength { .. })));
        let mut other = frame.clone();
        other[1000] ^= 1;
        assert_eq!(of(1024, Some(&other)), Err(CorruptError::OtherData));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_mean_one_reference(bytes in prop::collection::vec(any::<u8>(), 0..90), seq in 1u64..200) {
            let mut bytes = bytes;
            if bytes.len() > 16 {
                bytes[16] &= 3;
            }
            if let Ok(reference) = Reference::decode(Seq(seq), &bytes) {
                prop_assert_eq!(reference.encode(Seq(seq)), bytes);
            }
        }
    }
}
