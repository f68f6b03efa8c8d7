//! The log of a volume: its objects under `segments/`, numbered by [`Seq`], and their formats. Pure (rule R13).
//!
//! Each place in the log holds one of three objects:
//!
//! | object | what it says |
//! | --- | --- |
//! | segment ([`head`], [`encode`]) | a batch of changes, each block at most once, with the data in frames |
//! | fence ([`fence`]) | a server takes the volume: a new epoch begins |
//! | close ([`fence`]) | the server gave the volume up and left nothing behind |
//!
//! Whoever finds one in its place, live, in recovery or in `check`, learns from it the same placements as
//! the one who wrote it: [`encode::encode_segment`] itself goes through [`SegmentHead::placements`].
//!
//! Does not know: the extent map, the store, what is live.

pub mod head;
pub mod fence;
pub mod encode;
pub mod reference;

use bytes::Bytes;

pub use encode::{EncodedSegment, Moved, Payload, Referred, Stamp, encode_moved, encode_referring, encode_segment};
pub use fence::{Close, Durability, Fence};
pub use head::{Entry, EntryKind, SegmentHead};
pub use reference::Reference;

use crate::codec::cursor::Malformed;
use crate::codec::frame;
use crate::codec::object::{Decoded, Found, ObjectKind, decode_head};
use crate::codec::seal::{ObjectKey, Salt, Sealer};
use crate::codec::{CorruptError, expect_len};
use crate::units::{BlockSize, ChangeNo, Epoch, FRAME_BYTES_MAX, FrameAddr, Seq};

/// The kinds of objects that the log has.
pub const LOG_KINDS: &[ObjectKind] = &[ObjectKind::Segment, ObjectKind::Fence, ObjectKind::Close];

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogObject {
    /// Changes.
    Segment(SegmentHead),
    /// A server took the volume.
    Fence(Fence),
    /// A server gave it up.
    Close(Close),
}

impl LogObject {
    /// What it is, with its article.
    pub fn name(&self) -> &'static str {
        match self {
            LogObject::Segment(_) => "a segment",
            LogObject::Fence(_) => "a fence",
            LogObject::Close(_) => "a close entry",
        }
    }

    /// The epoch that wrote it, or that begins with it.
    pub fn epoch(&self) -> Epoch {
        match self {
            LogObject::Segment(head) => head.epoch,
            LogObject::Fence(fence) => fence.epoch,
            LogObject::Close(close) => close.epoch,
        }
    }

    /// The last change that it and its predecessors contain.
    pub fn covers(&self) -> ChangeNo {
        match self {
            LogObject::Segment(head) => head.covers,
            LogObject::Fence(fence) => fence.covers,
            LogObject::Close(close) => close.covers,
        }
    }
}

/// A proven log object, and what opens and places its frames.
#[derive(Clone, Debug)]
pub struct LogRead {
    /// What it says.
    pub object: LogObject,
    /// The salt of its encoding.
    pub salt: Salt,
    /// Where its first frame begins, in bytes.
    pub frames_at: u32,
    /// What opens its frames.
    pub key: ObjectKey,
}

impl LogRead {
    /// How many bytes the object has when it is whole.
    pub fn total(&self) -> u64 {
        match &self.object {
            LogObject::Segment(head) => head.info(self.salt, self.frames_at).stored_bytes,
            LogObject::Fence(_) | LogObject::Close(_) => u64::from(self.frames_at),
        }
    }
}

/// Whether `object`, all that there is of it, is the first part of a log object at `seq`: as far as it goes there is nothing
/// wrong with it, but it ends early.
pub fn is_torn(sealer: &Sealer, seq: Seq, object: &Bytes) -> bool {
    match decode_log_object(sealer, seq, object) {
        Ok(Found::Whole(read)) => (object.len() as u64) < read.total(),
        Ok(Found::NeedMore { .. }) => true,
        Err(_) => false,
    }
}

/// Proves and decodes the log object at `seq`. `bytes` is the object or its beginning; the frames need not be there.
pub fn decode_log_object(sealer: &Sealer, seq: Seq, bytes: &Bytes) -> Result<Found<LogRead>, CorruptError> {
    decode_head(sealer, LOG_KINDS, seq, bytes)?.and_then(|decoded| {
        let object = decode_content(seq, &decoded)?;
        Ok(LogRead { object, salt: decoded.salt, frames_at: decoded.frames_at, key: decoded.key })
    })
}

fn decode_content(seq: Seq, decoded: &Decoded) -> Result<LogObject, CorruptError> {
    match decoded.kind {
        ObjectKind::Segment => {
            let head = SegmentHead::decode(&decoded.head, decoded.frames_at, decoded.version)?;
            match head.refers.last() {
                Some((last, _)) if *last >= seq => {
                    Err(Malformed { at: 0, what: "a segment that refers to one that is not before it" }.into())
                }
                _ => Ok(LogObject::Segment(head)),
            }
        }
        ObjectKind::Fence => match Fence::decode(&decoded.head)? {
            fence if fence.can_stand_at(seq) => Ok(LogObject::Fence(fence)),
            _ => Err(Malformed { at: 0, what: "a fence whose epoch continues where it cannot" }.into()),
        },
        ObjectKind::Close => Ok(LogObject::Close(Close::decode(&decoded.head)?)),
        found @ (ObjectKind::Checkpoint | ObjectKind::Digest) => Err(CorruptError::WrongKind { found }),
    }
}

/// Opens the frame at `addr` of the segment whose encoding had `salt`: the data of `data_len` bytes that it must hold.
pub fn open_frame(
    sealer: &Sealer,
    salt: &Salt,
    addr: FrameAddr,
    data_len: u32,
    sealed: &Bytes,
) -> Result<Bytes, CorruptError> {
    let key = sealer.object_key(ObjectKind::Segment, addr.seq, salt)?;
    open_frame_with(&key, addr, data_len, sealed)
}

/// [`open_frame`] with the object's key at hand.
pub fn open_frame_with(key: &ObjectKey, addr: FrameAddr, data_len: u32, sealed: &Bytes) -> Result<Bytes, CorruptError> {
    expect_len(sealed.len(), u64::from(addr.len))?;
    frame::decompress(&key.open_frame(addr.offset, sealed)?, data_len)
}

/// What a frame of a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Data.
    Data(Bytes),
    /// Where so many bytes of data are.
    Reference(u32, Reference),
}

impl Opened {
    /// How many bytes of data it is, or stands for.
    pub fn len(&self) -> u32 {
        match self {
            Opened::Data(data) => data.len() as u32,
            Opened::Reference(len, _) => *len,
        }
    }

    /// Whether it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens a frame that may be a reference.
pub fn open_any(key: &ObjectKey, addr: FrameAddr, sealed: &Bytes) -> Result<Opened, CorruptError> {
    expect_len(sealed.len(), u64::from(addr.len))?;
    Ok(match frame::held(&key.open_frame(addr.offset, sealed)?)? {
        frame::Held::Data(data) => Opened::Data(data),
        frame::Held::Reference { len, what } => Opened::Reference(len, Reference::decode(addr.seq, &what)?),
    })
}

/// [`open_frame_with`] for whoever does not know how much data the frame holds: at most 64 KiB.
pub fn open_frame_up_to(key: &ObjectKey, addr: FrameAddr, sealed: &Bytes) -> Result<Bytes, CorruptError> {
    expect_len(sealed.len(), u64::from(addr.len))?;
    frame::decompress_up_to(&key.open_frame(addr.offset, sealed)?, FRAME_BYTES_MAX)
}

/// Proves a whole log object, every frame of it, and that nothing follows. What references refer to is not looked at.
pub fn verify_log_object(
    sealer: &Sealer,
    block_size: BlockSize,
    seq: Seq,
    bytes: &Bytes,
) -> Result<LogObject, CorruptError> {
    let read = decode_log_object(sealer, seq, bytes)?.whole(bytes.len())?;
    expect_len(bytes.len(), read.total())?;
    let LogObject::Segment(head) = &read.object else { return Ok(read.object) };
    for (extent, addr) in head.frames(seq, read.frames_at) {
        let sealed = bytes.slice(addr.offset as usize..(addr.offset + addr.len) as usize);
        let data_len = u32::try_from(block_size.bytes_in(extent.count)).unwrap_or(u32::MAX);
        match open_any(&read.key, addr, &sealed)?.len() {
            len if len == data_len => {}
            found => return Err(CorruptError::FrameLength { found, expected: data_len }),
        }
    }
    Ok(read.object)
}
