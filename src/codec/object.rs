//! The container that all objects of a volume but its description share.
//!
//! | offset | bytes | what |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `89 41 53 48 4c 41 52 0a` (`\x89ASHLAR\n`) |
//! | 8 | 2 | format version: 4 of checkpoints, 2 of the others, 5 where a segment carries others, 6 of checkpoints of volumes that have clones, 7 where a segment refers to others; 1 knows neither moved data nor accounts, 1 and 2 of checkpoints know no layers, 3 has all of the table of segments in the root: they are read |
//! | 10 | 1 | kind ([`ObjectKind`]) |
//! | 11 | 1 | seal ([`super::seal::Seal`]) |
//! | 12 | 4 | length of the head |
//! | 16 | 16 | salt |
//! | 32 | 16 | tag over bytes 0 … 32 and the head |
//! | 48 | … | the head |
//! | … | … | sealed frames, one behind the other |
//!
//! The head records the frames' lengths, not their offsets: it is made before its own length is known. Readers sum up
//! from its end ([`Decoded::frames_at`]).

use std::fmt;

use bytes::Bytes;

use super::frame::{FRAME_OVERHEAD, Frames, Lent};
use super::seal::{ObjectKey, Salt, Seal, Sealer, TAG_BYTES};
use super::{CorruptError, EncodeError};
use crate::outside::Turns;
use crate::units::Seq;

/// Bytes before the head.
pub const PREFIX_BYTES: usize = 48;

/// From this version on the map of a checkpoint is layered.
pub const LAYERED: u16 = 3;

/// From this version on the table of segments of a checkpoint lies in pages.
pub const PAGED: u16 = 4;

/// From this version on a segment may carry others, and a checkpoint says so. Written only where one does.
pub const CARRYING: u16 = 5;

/// From this version on a checkpoint says which clones its volume has. Written only where there is one.
pub const CLONED: u16 = 6;

/// From this version on a segment may refer to data in others, and a checkpoint says so; it is the newest that we read. Written only where one does.
pub const REFERRING: u16 = 7;

const MAGIC: [u8; 8] = *b"\x89ASHLAR\n";
const KIND_AT: usize = 10;
const TAG_AT: usize = PREFIX_BYTES - TAG_BYTES;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A batch of changes.
    Segment = 1,
    /// The entry by which a server takes the volume.
    Fence = 2,
    /// The entry by which a server gives the volume up.
    Close = 3,
    /// The extent map as of a seq.
    Checkpoint = 4,
    /// The fronts of some segments.
    Digest = 5,
}

impl ObjectKind {
    fn from_byte(byte: u8) -> Result<ObjectKind, CorruptError> {
        match byte {
            1 => Ok(ObjectKind::Segment),
            2 => Ok(ObjectKind::Fence),
            3 => Ok(ObjectKind::Close),
            4 => Ok(ObjectKind::Checkpoint),
            5 => Ok(ObjectKind::Digest),
            other => Err(CorruptError::UnknownKind(other)),
        }
    }

    /// The version that we mostly write. An older ashlar, which would not understand it, refuses it by this number.
    fn version(self) -> u16 {
        match self {
            ObjectKind::Checkpoint => PAGED,
            ObjectKind::Segment | ObjectKind::Fence | ObjectKind::Close | ObjectKind::Digest => 2,
        }
    }

    /// The most bytes that a head of this kind may have.
    fn head_bytes_max(self) -> u32 {
        match self {
            ObjectKind::Segment => 64 << 20,
            ObjectKind::Fence | ObjectKind::Close => 4 << 10,
            ObjectKind::Checkpoint => 1 << 30,
            ObjectKind::Digest => 16 << 20,
        }
    }
}

/// The most bytes that an object of this kind has if it has no frames.
pub fn bytes_max(kind: ObjectKind) -> u64 {
    PREFIX_BYTES as u64 + u64::from(kind.head_bytes_max())
}

/// What an object says that it is, by its first bytes; nothing is proven.
pub fn kind_of(begin: &[u8]) -> Option<ObjectKind> {
    (begin.starts_with(&MAGIC) && begin.len() >= PREFIX_BYTES).then(|| ObjectKind::from_byte(begin[KIND_AT]).ok())?
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Segment => "segment",
            ObjectKind::Fence => "fence",
            ObjectKind::Close => "close entry",
            ObjectKind::Checkpoint => "checkpoint",
            ObjectKind::Digest => "digest",
        })
    }
}

/// An object ready for the store.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its bytes: these joined.
    pub parts: Vec<Bytes>,
    /// Offset and sealed length of each frame in bytes, in order.
    pub frames: Vec<(u32, u32)>,
    /// Where its first frame begins, in bytes.
    pub frames_at: u32,
    /// Its length in bytes.
    pub total: u64,
}

impl Encoded {
    /// Prefix and head: what is before the first frame.
    pub fn front(&self) -> Bytes {
        self.parts.first().cloned().unwrap_or_default()
    }
}

/// Seals `head` and `frames` into an object.
pub fn encode(
    sealer: &Sealer,
    kind: ObjectKind,
    seq: Seq,
    salt: Salt,
    head: &[u8],
    frames: Frames,
) -> Result<Encoded, EncodeError> {
    encode_as(sealer, kind, kind.version(), seq, salt, head, frames)
}

/// [`encode`], in a version that is written only where it is needed.
pub fn encode_as(
    sealer: &Sealer,
    kind: ObjectKind,
    version: u16,
    seq: Seq,
    salt: Salt,
    head: &[u8],
    frames: Frames,
) -> Result<Encoded, EncodeError> {
    if head.len() > kind.head_bytes_max() as usize {
        return Err(EncodeError(format!(
            "the head of a {kind} of {} bytes; the most is {}",
            head.len(),
            kind.head_bytes_max()
        )));
    }
    let total = (PREFIX_BYTES + head.len()) as u64 + frames.total();
    if total > u64::from(u32::MAX) {
        return Err(EncodeError(format!("a {kind} of {total} bytes; the most is {}", u32::MAX)));
    }
    let key = sealer.object_key(kind, seq, &salt).map_err(|error| EncodeError(error.to_string()))?;
    let front = encode_front(sealer.seal(), kind, version, salt, head, &key)?;
    let (mut bytes, lens, lent) = frames.into_parts();
    let frames_at = front.len() as u32;
    let frames = seal_frames(&key, frames_at, &mut bytes, &lens, &lent)?;
    let mut parts = vec![Bytes::from(front)];
    // It had room for the data as it was before compression, and may stay until a slow store has it.
    if bytes.len() < bytes.capacity() - bytes.capacity() / 8 {
        bytes.shrink_to_fit();
    }
    let (mut rest, mut at) = (Bytes::from(bytes), 0);
    for lent in lent {
        parts.extend([rest.split_to(lent.at - at), lent.data]);
        at = lent.at;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    Ok(Encoded { parts, frames, frames_at, total })
}

fn encode_front(
    seal: Seal,
    kind: ObjectKind,
    version: u16,
    salt: Salt,
    head: &[u8],
    key: &ObjectKey,
) -> Result<Vec<u8>, EncodeError> {
    let mut front = Vec::with_capacity(PREFIX_BYTES + head.len());
    front.extend_from_slice(&MAGIC);
    front.extend_from_slice(&version.to_le_bytes());
    front.extend_from_slice(&[kind as u8, seal as u8]);
    front.extend_from_slice(&(head.len() as u32).to_le_bytes());
    front.extend_from_slice(&salt);
    front.extend_from_slice(&[0; TAG_BYTES]);
    front.extend_from_slice(head);
    let (prefix, rest) = front.split_at_mut(TAG_AT);
    let (tag, head) = rest.split_at_mut(TAG_BYTES);
    tag.copy_from_slice(&key.seal_head(prefix, head)?);
    Ok(front)
}

/// Fills in the tags of the frames in `bytes`, which will lie at `frames_at` in the object, and of those whose data was lent.
fn seal_frames(
    key: &ObjectKey,
    frames_at: u32,
    bytes: &mut [u8],
    lens: &[u32],
    lent: &[Lent],
) -> Result<Vec<(u32, u32)>, EncodeError> {
    let (mut at, mut offset, mut lent) = (0, frames_at, lent.iter().peekable());
    let mut frames = Vec::with_capacity(lens.len());
    let mut turns = Turns::default();
    for &len in lens {
        let end = match lent.next_if(|lent| lent.at == at + FRAME_OVERHEAD) {
            Some(lent) => {
                key.tag_lent_frame(offset, &mut bytes[at..lent.at], &lent.data)?;
                lent.at
            }
            None => {
                let end = at + len as usize;
                key.seal_frame(offset, &mut bytes[at..end])?;
                end
            }
        };
        turns.worked(len as usize);
        frames.push((offset, len));
        (at, offset) = (end, offset + len);
    }
    Ok(frames)
}

/// The proven front of an object.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// What it is.
    pub kind: ObjectKind,
    /// Its format version.
    pub version: u16,
    /// Its head.
    pub head: Bytes,
    /// The salt of its encoding.
    pub salt: Salt,
    /// Where its first frame begins, in bytes.
    pub frames_at: u32,
    /// What opens its frames.
    pub key: ObjectKey,
}

/// What the beginning of an object yields.
#[derive(Clone, Debug)]
pub enum Found<T> {
    /// There was enough of it.
    Whole(T),
    /// At least the first `total` bytes of the object are needed.
    NeedMore {
        /// How many.
        total: u64,
    },
}

impl<T> Found<T> {
    /// For a caller who handed in the whole object, of `len` bytes: needing more means that it is truncated.
    pub fn whole(self, len: usize) -> Result<T, CorruptError> {
        match self {
            Found::Whole(it) => Ok(it),
            Found::NeedMore { total } => Err(CorruptError::Truncated { have: len as u64, need: total }),
        }
    }

    /// What `f` makes of it.
    pub fn and_then<U>(self, f: impl FnOnce(T) -> Result<U, CorruptError>) -> Result<Found<U>, CorruptError> {
        match self {
            Found::Whole(it) => f(it).map(Found::Whole),
            Found::NeedMore { total } => Ok(Found::NeedMore { total }),
        }
    }
}

/// Proves the head of the object at `seq`, which must be of one of the `expected` kinds. `bytes` is the object or its
/// beginning.
pub fn decode_head(
    sealer: &Sealer,
    expected: &[ObjectKind],
    seq: Seq,
    bytes: &Bytes,
) -> Result<Found<Decoded>, CorruptError> {
    let mark = bytes.len().min(MAGIC.len());
    if bytes[..mark] != MAGIC[..mark] {
        return Err(CorruptError::BadMagic);
    }
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(Found::NeedMore { total: PREFIX_BYTES as u64 });
    };
    let (kind, version, head_len) = check_prefix(prefix, sealer.seal(), expected)?;
    let frames_at = PREFIX_BYTES as u32 + head_len;
    if bytes.len() < frames_at as usize {
        return Ok(Found::NeedMore { total: u64::from(frames_at) });
    }
    let mut salt = Salt::default();
    salt.copy_from_slice(&prefix[16..TAG_AT]);
    let key = sealer.object_key(kind, seq, &salt)?;
    let head = key.open_head(&prefix[..TAG_AT], &prefix[TAG_AT..], bytes.slice(PREFIX_BYTES..frames_at as usize))?;
    Ok(Found::Whole(Decoded { kind, version, head, salt, frames_at, key }))
}

/// Kind, version and length of the head.
fn check_prefix(
    prefix: &[u8; PREFIX_BYTES],
    seal: Seal,
    expected: &[ObjectKind],
) -> Result<(ObjectKind, u16, u32), CorruptError> {
    let version = u16::from_le_bytes([prefix[8], prefix[9]]);
    if version == 0 || version > REFERRING {
        return Err(CorruptError::UnknownVersion { found: version, known: REFERRING });
    }
    let kind = ObjectKind::from_byte(prefix[10])?;
    if !expected.contains(&kind) {
        return Err(CorruptError::WrongKind { found: kind });
    }
    let sealed_with = Seal::from_byte(prefix[11])?;
    if sealed_with != seal {
        return Err(CorruptError::OtherSeal { found: sealed_with, expected: seal });
    }
    let len = u32::from_le_bytes([prefix[12], prefix[13], prefix[14], prefix[15]]);
    match kind.head_bytes_max() {
        max if len > max => Err(CorruptError::HeadTooLong { len, max, kind }),
        _ => Ok((kind, version, len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::Compression;
    use proptest::prelude::*;
    use uuid::Uuid;

    const ALL: [ObjectKind; 5] =
        [ObjectKind::Segment, ObjectKind::Fence, ObjectKind::Close, ObjectKind::Checkpoint, ObjectKind::Digest];

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(5), None)
    }

    fn sample() -> (Encoded, Bytes) {
        let mut frames = Frames::with_capacity(2, 100, Compression::Lz4);
        frames.push(&[b"first frame"]).unwrap();
        frames.push(&[&[3; 600], &[4; 600]]).unwrap();
        let encoded = encode(&sealer(), ObjectKind::Segment, Seq(3), [8; 16], b"the head", frames).unwrap();
        let bytes = Bytes::from(encoded.parts.concat());
        (encoded, bytes)
    }

    fn decode(bytes: &Bytes) -> Result<Decoded, CorruptError> {
        decode_head(&sealer(), &ALL, Seq(3), bytes)?.whole(bytes.len())
    }

    /// The sample with `byte` at `at`, and its tag made right again.
    fn resealed(at: usize, byte: u8) -> Bytes {
        let mut bytes = sample().1.to_vec();
        bytes[at] = byte;
        let key = sealer().object_key(ObjectKind::Segment, Seq(3), &[8; 16]).unwrap();
        let tag = key.seal_head(&bytes[..TAG_AT], &mut b"the head".to_vec()).unwrap();
        bytes[TAG_AT..PREFIX_BYTES].copy_from_slice(&tag);
        bytes.into()
    }

    #[test]
    fn head_and_frames_come_back() {
        let (encoded, bytes) = sample();
        assert_eq!(encoded.total, bytes.len() as u64);
        let decoded = decode(&bytes).unwrap();
        assert_eq!((decoded.kind, &decoded.head[..], decoded.salt), (ObjectKind::Segment, &b"the head"[..], [8; 16]));
        assert_eq!(encoded.frames[0].0, decoded.frames_at);
        for (&(offset, len), raw) in encoded.frames.iter().zip([11, 1200]) {
            let sealed = bytes.slice(offset as usize..(offset + len) as usize);
            let body = decoded.key.open_frame(offset, &sealed).unwrap();
            assert_eq!(super::super::frame::decompress(&body, raw).unwrap().len(), raw as usize);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..7, len in 0u8..80) {
            let front = [&MAGIC[..], &[1, 0, kind, 0, len, 0, 0, 0]].concat();
            for bytes in [bytes.clone(), [front, bytes].concat()] {
                prop_assert!(bytes.is_empty() || decode(&bytes.into()).is_err());
            }
        }
    }

    #[test]
    fn the_beginning_of_an_object_says_how_much_is_needed() {
        let bytes = sample().1;
        for len in 0..bytes.len() {
            match decode_head(&sealer(), &ALL, Seq(3), &bytes.slice(..len)).unwrap() {
                Found::NeedMore { total } => assert_eq!(total, if len < 48 { 48 } else { 56 }),
                Found::Whole(decoded) => assert!(len >= 56 && decoded.head == b"the head"[..]),
            }
        }
        assert_eq!(decode(&bytes.slice(..50)).unwrap_err(), CorruptError::Truncated { have: 50, need: 56 });
    }

    #[test]
    fn what_cannot_be_read_is_said_in_words() {
        let text = |bytes: Bytes| decode(&bytes).unwrap_err().to_string();
        assert_eq!(
            text(resealed(0, 0)),
            "it does not begin with ashlar's magic number: another program wrote it, or overwrote it"
        );
        assert_eq!(
            text(resealed(8, 9)),
            "its format version 9 is unknown (this ashlar reads up to 7): a newer ashlar is needed"
        );
        assert_eq!(text(resealed(10, 77)), "its kind 77 is unknown");
        assert_eq!(
            text(resealed(11, 1)),
            "it is sealed with ChaCha20-Poly1305 where BLAKE3 is expected: it was put here by somebody else"
        );
        assert_eq!(text(resealed(11, 2)), "its seal 2 is unknown");
        assert_eq!(
            text(resealed(15, 5)),
            "its head claims 83886088 bytes, more than the 67108864 that a segment may have"
        );
        let other = decode_head(&sealer(), &ALL, Seq(4), &sample().1).unwrap_err();
        assert_eq!(
            other.to_string(),
            "its tag does not match: bytes changed, or it was moved here from another place or volume"
        );
        let wrong = decode_head(&sealer(), &[ObjectKind::Checkpoint], Seq(3), &sample().1).unwrap_err();
        assert_eq!(wrong.to_string(), "it is a segment, which does not belong here");
    }

    #[test]
    fn what_is_lent_is_not_copied_and_the_object_is_the_same() {
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let noise = Bytes::from(noise);
        // The second one becomes smaller, and has no bytes of the lender's in it.
        let all = [noise.slice(..65536), vec![7; 65536].into(), noise.slice(65536..), noise.slice(..4096)];
        let (mut lent, mut copied) = [(); 2].map(|()| Frames::with_capacity(4, 0, Compression::Lz4)).into();
        for data in &all {
            assert_eq!(lent.lend(data).unwrap(), copied.push(&[data]).unwrap());
        }
        assert_eq!((lent.lens(), lent.total()), (copied.lens(), copied.total()));
        let [lent, copied] = [lent, copied]
            .map(|frames| encode(&sealer(), ObjectKind::Segment, Seq(3), [8; 16], b"head", frames).unwrap());
        assert_eq!(lent.parts.concat(), copied.parts.concat());
        assert_eq!((&lent.frames, copied.parts.len()), (&copied.frames, 2));
        for data in [&all[0], &all[2], &all[3]] {
            assert!(lent.parts.iter().any(|part| part.as_ptr() == data.as_ptr() && part.len() == data.len()));
        }
    }

    #[test]
    fn every_flipped_bit_of_prefix_and_head_is_found() {
        let bytes = sample().1;
        for bit in 0..56 * 8 {
            let mut harmed = bytes.to_vec();
            harmed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&harmed.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_head_beyond_its_bound_is_not_written() {
        let frames = Frames::with_capacity(0, 0, Compression::None);
        assert!(encode(&sealer(), ObjectKind::Fence, Seq(3), [8; 16], &[0; 4097], frames).is_err());
    }
}
