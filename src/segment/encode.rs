//! Sealing: a batch of changes becomes a segment object. This is the CPU-heavy part (comparing, compressing, hashing), to be called
//! through [`crate::outside::Workers`].
//!
//! 1. Blocks that are all zero are mapped as zero instead of being stored (older kernels zero by writing zeros).
//! 2. Neighbours of one kind are joined, across the changes that they came with.
//! 3. Data is cut into frames at multiples of 64 KiB *of the volume*, so that an overwrite of a range lines up with the frames
//!    of the earlier write and kills them whole.
//! 4. Frames are compressed, then everything is sealed.

use bytes::Bytes;
use uuid::Uuid;

use super::head::{END_MAX, Entry, EntryKind, SegmentHead};
use crate::codec::EncodeError;
use crate::codec::frame::Frames;
use crate::codec::object::{Encoded, ObjectKind, encode};
use crate::codec::seal::{Salt, Sealer};
use crate::map::SegmentInfo;
use crate::map::placement::Placement;
use crate::units::{BlockIndex, BlockSize, ChangeNo, Epoch, Extent, FRAME_BYTES_MAX, Seq};

/// What an extent of a batch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Data, as long as the extent.
    Data(Bytes),
    /// Allocated zero.
    Zero,
    /// Nothing.
    Hole,
}

/// Who seals, and how far the history reaches with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch.
    pub epoch: Epoch,
    /// The server.
    pub server: Uuid,
    /// The last change that the segment and its predecessors contain.
    pub covers: ChangeNo,
}

/// A segment ready for the store, and what it does once it is there.
#[derive(Clone, Debug)]
pub struct EncodedSegment {
    /// The object.
    pub object: Encoded,
    /// What it does to the map, in the order of blocks: the same that recovery finds in it.
    pub placements: Vec<(Extent, Placement)>,
    /// What to keep of it.
    pub info: SegmentInfo,
}

/// Seals `changes`, which are sorted by block, not overlapping and not empty, into the segment at `seq`.
pub fn encode_segment(
    sealer: &Sealer,
    seq: Seq,
    salt: Salt,
    block_size: BlockSize,
    stamp: &Stamp,
    changes: &[(Extent, Payload)],
) -> Result<EncodedSegment, EncodeError> {
    check_batch(block_size, changes)?;
    let (entries, frames) = Plan::of(block_size, changes).compress()?;
    let head = SegmentHead { epoch: stamp.epoch, server: stamp.server, covers: stamp.covers, entries };
    let head_bytes = head.encode();
    let object = encode(sealer, ObjectKind::Segment, seq, salt, &head_bytes, frames)?;
    let frames_at = object.frames_at;
    Ok(EncodedSegment { object, placements: head.placements(seq, frames_at), info: head.info(salt, frames_at) })
}

/// Refuses a batch from which a segment would come that nobody could read.
fn check_batch(block_size: BlockSize, changes: &[(Extent, Payload)]) -> Result<(), EncodeError> {
    let mut end = BlockIndex(0);
    for (extent, payload) in changes {
        let Extent { start, count } = *extent;
        if start < end || count.0 == 0 || start.0 >= END_MAX || count.0 > END_MAX - start.0 {
            return Err(EncodeError::new(format!(
                "{count} blocks from block {start} after block {end}: no sorted batch"
            )));
        }
        if let Payload::Data(data) = payload
            && data.len() as u64 != block_size.bytes_in(count)
        {
            return Err(EncodeError::new(format!(
                "{} bytes of data for {count} blocks from block {start}",
                data.len()
            )));
        }
        end = extent.end();
    }
    Ok(())
}

/// The entries of the segment to be, with the data of each still in the pieces that it came in.
struct Plan<'a> {
    block_bytes: usize,
    runs: Vec<Run>,
    pieces: Vec<&'a [u8]>,
}

/// Blocks of one kind; if they are data, one frame.
struct Run {
    extent: Extent,
    content: RunContent,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunContent {
    /// These of the plan's pieces, joined.
    Data {
        first_piece: usize,
        pieces: usize,
    },
    Zero,
    Hole,
}

impl<'a> Plan<'a> {
    fn of(block_size: BlockSize, changes: &'a [(Extent, Payload)]) -> Plan<'a> {
        let block_bytes = block_size.bytes() as usize;
        let mut plan = Plan { block_bytes, runs: Vec::with_capacity(changes.len()), pieces: Vec::new() };
        for (extent, payload) in changes {
            match payload {
                Payload::Data(data) => plan.push_data(extent.start, data),
                Payload::Zero => plan.push_blank(*extent, RunContent::Zero),
                Payload::Hole => plan.push_blank(*extent, RunContent::Hole),
            }
        }
        plan
    }

    /// Splits data into runs that are all zero or all not, none of them across the end of a frame.
    fn push_data(&mut self, start: BlockIndex, data: &'a [u8]) {
        let (mut at, mut rest) = (start, data);
        while !rest.is_empty() {
            let zero = is_zero(&rest[..self.block_bytes]);
            let blocks = rest
                .chunks_exact(self.block_bytes)
                .take(self.blocks_to_cut(at))
                .take_while(|block| is_zero(block) == zero)
                .count();
            let (piece, after) = rest.split_at(blocks * self.block_bytes);
            let extent = Extent::new(at.0, blocks as u64);
            match zero {
                true => self.push_blank(extent, RunContent::Zero),
                false => self.push_piece(extent, piece),
            }
            (at, rest) = (extent.end(), after);
        }
    }

    /// How many blocks from `at` on may share a frame.
    fn blocks_to_cut(&self, at: BlockIndex) -> usize {
        let frame_blocks = u64::from(FRAME_BYTES_MAX) / self.block_bytes as u64;
        (frame_blocks - at.0 % frame_blocks) as usize
    }

    fn push_piece(&mut self, extent: Extent, piece: &'a [u8]) {
        let starts_frame = extent.start.0.is_multiple_of(u64::from(FRAME_BYTES_MAX) / self.block_bytes as u64);
        self.pieces.push(piece);
        match self.runs.last_mut() {
            Some(Run { extent: last, content: RunContent::Data { pieces, .. } })
                if last.end() == extent.start && !starts_frame =>
            {
                last.count += extent.count;
                *pieces += 1;
            }
            _ => {
                let content = RunContent::Data { first_piece: self.pieces.len() - 1, pieces: 1 };
                self.runs.push(Run { extent, content });
            }
        }
    }

    fn push_blank(&mut self, extent: Extent, content: RunContent) {
        match self.runs.last_mut() {
            Some(last) if last.content == content && last.extent.end() == extent.start => {
                last.extent.count += extent.count;
            }
            _ => self.runs.push(Run { extent, content }),
        }
    }

    fn compress(&self) -> Result<(Vec<Entry>, Frames), EncodeError> {
        let frame_count = self.runs.iter().filter(|run| matches!(run.content, RunContent::Data { .. })).count();
        let mut frames = Frames::with_capacity(frame_count, self.pieces.iter().map(|piece| piece.len()).sum());
        let mut entries = Vec::with_capacity(self.runs.len());
        for Run { extent, content } in &self.runs {
            let kind = match *content {
                RunContent::Data { first_piece, pieces } => {
                    EntryKind::Data { stored_len: frames.push(&self.pieces[first_piece..first_piece + pieces])? }
                }
                RunContent::Zero => EntryKind::Zero,
                RunContent::Hole => EntryKind::Hole,
            };
            entries.push(Entry { extent: *extent, kind });
        }
        Ok((entries, frames))
    }
}

static ZEROS: [u8; BlockSize::MAX as usize] = [0; BlockSize::MAX as usize];

/// Whether a block is all zero: a memcmp, after a look at the first byte, which settles most.
fn is_zero(block: &[u8]) -> bool {
    block.first() == Some(&0) && *block == ZEROS[..block.len()]
}
