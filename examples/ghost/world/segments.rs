//! The segments of a ghost: heads that name their blocks, and frames of one block each.
//!
//! Frames must lie where the map says without the head being made, so all heads have one length. What is left over are holes beyond the end of
//! the volume, as a volume has them that was larger once.

use ashlar::codec::frame::{Compression, FRAME_OVERHEAD, Frames};
use ashlar::codec::object::{ObjectKind, PREFIX_BYTES, encode};
use ashlar::codec::seal::{Salt, Sealer, TAG_BYTES};
use ashlar::format::segment::{Entry, EntryKind, SegmentHead};
use ashlar::map::SegmentInfo;
use ashlar::units::{ChangeNo, Epoch, Extent, Seq};
use uuid::Uuid;

use super::pages;
use super::shape::{BLOCK, Place, Shape};

/// The slot of the first segment: the fence of the epoch that wrote them stood before it.
pub const FIRST: u64 = 2;

/// The sealed length of a frame: it does not compress.
const FRAME: u32 = BLOCK as u32 + FRAME_OVERHEAD as u32;

/// What a head may be longer than the longest of some samples.
const SLACK: usize = 1024;

/// See the module.
#[derive(Clone, Debug)]
pub struct Segments {
    shape: Shape,
    frames_at: u32,
}

impl Segments {
    /// All of them.
    pub fn new(shape: &Shape) -> Segments {
        let mut segments = Segments { shape: shape.clone(), frames_at: 0 };
        let samples = (0..4).map(|n| segments.head(n * (shape.segments - 1) / 3, 0).encode().len());
        segments.frames_at = (PREFIX_BYTES + samples.max().unwrap_or_default() + SLACK) as u32;
        segments
    }

    /// The slot of a segment.
    pub fn seq(&self, segment: u64) -> Seq {
        Seq(FIRST + segment)
    }

    /// The segment in a slot.
    pub fn of(&self, seq: Seq) -> Option<u64> {
        seq.0.checked_sub(FIRST).filter(|segment| *segment < self.shape.segments)
    }

    /// Offset and length of the frame of a block in its segment.
    pub fn frame(&self, rank: u64) -> (u32, u32) {
        (self.frames_at + rank as u32 * FRAME, FRAME)
    }

    /// Bytes of a segment.
    pub fn bytes(&self) -> u64 {
        u64::from(self.frames_at) + self.shape.segment_blocks * u64::from(FRAME)
    }

    /// What the table says of a segment.
    pub fn info(&self, segment: u64) -> SegmentInfo {
        SegmentInfo {
            salt: pages::salt(ObjectKind::Segment, self.seq(segment)),
            stored_bytes: self.bytes(),
            blocks: self.shape.segment_blocks as u32,
            live_blocks: self.shape.live_blocks(segment) as u32,
        }
    }

    /// The piece of a segment in which a byte lies: where it begins, and its bytes.
    pub fn piece(&self, sealer: &Sealer, segment: u64, byte: u64) -> (u64, Vec<u8>) {
        let (seq, salt) = (self.seq(segment), pages::salt(ObjectKind::Segment, self.seq(segment)));
        let Some(offset) = byte.checked_sub(u64::from(self.frames_at)) else {
            return (0, self.front(sealer, segment, &salt));
        };
        let rank = offset / u64::from(FRAME);
        let content = self.shape.content(self.shape.block(Place { segment, rank }), 0);
        let mut sealed = vec![0; TAG_BYTES];
        sealed.push(0);
        sealed.extend_from_slice(&(BLOCK as u32).to_le_bytes()[..3]);
        sealed.extend_from_slice(&content);
        let at = self.frame(rank).0;
        let key = sealer.object_key(ObjectKind::Segment, seq, &salt).expect("a plain volume");
        let tag = key.seal(u64::from(at), &[], &mut sealed[TAG_BYTES..]).expect("a frame is short");
        sealed[..TAG_BYTES].copy_from_slice(&tag);
        (u64::from(at), sealed)
    }

    fn front(&self, sealer: &Sealer, segment: u64, salt: &Salt) -> Vec<u8> {
        let len = self.frames_at as usize - PREFIX_BYTES;
        let fill = len - self.head(segment, 0).encode().len();
        let head = self.head(segment, fill).encode();
        assert!(head.len() == len, "the head of a segment of a ghost is filled up to its length");
        let none = Frames::with_capacity(0, 0, Compression::None);
        let object = encode(sealer, ObjectKind::Segment, self.seq(segment), *salt, &head, none);
        object.expect("a head of a ghost is short").parts.concat()
    }

    /// The head with so many bytes of holes beyond the end.
    fn head(&self, segment: u64, fill: usize) -> SegmentHead {
        let entry = |rank| Entry {
            extent: Extent::new(self.shape.block(Place { segment, rank }), 1),
            kind: EntryKind::Data { stored_len: FRAME },
        };
        let mut entries: Vec<Entry> = (0..self.shape.segment_blocks).map(entry).collect();
        let end = entries.last().map_or(0, |entry| entry.extent.end().0);
        // A hole of one block right behind the one before takes two bytes, and a longer one as many more as its length has. The first takes
        // more, because there is a gap before it.
        let mut at = self.shape.blocks;
        let mut left = fill.saturating_sub(varint_len((at - end) << 2) - 1);
        while left >= 2 {
            let more = (left - 2).min(4);
            let more = if left - 2 - more == 1 { more - 1 } else { more };
            let count = if more == 0 { 1 } else { 1 + (1 << (7 * more)) };
            entries.push(Entry { extent: Extent::new(at, count), kind: EntryKind::Hole });
            at += count;
            left -= 2 + more;
        }
        let covers = ChangeNo((segment + 1) * self.shape.segment_blocks);
        SegmentHead {
            epoch: Epoch(1),
            server: Uuid::from_u128(1),
            covers,
            entries,
            as_of: None,
            cargo: None,
            refers: Default::default(),
        }
    }
}

fn varint_len(n: u64) -> usize {
    (u64::BITS - n.leading_zeros()).div_ceil(7).max(1) as usize
}
