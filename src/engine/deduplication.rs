//! De-duplication of an open volume: before a batch is encoded it is looked which of its blocks are stored already ([`crate::dedup`]), and the segment refers to these.
//!
//! 1. A worker makes the tags of the batch's blocks, and what is known says which runs of them are stored, and where.
//! 2. Under the lock of the volume it is looked whether what they are in may be referred to ([`Ledger::refer`]): it took effect, is needed anyhow, and is mostly live. From this moment on it
//!    stays in the store as long as the new segment does ([`crate::space::references`]); so nothing that was chosen can go before the segment that refers to it has its slot.
//! 3. The segment is encoded, with references in place of these runs.
//! 4. When it has taken effect, what it has of data itself is known, too. What collection moves is known where it was moved to.
//!
//! The log is applied in its order, so whoever recovers finds a reference only behind what it refers to. What is known is lost when the volume is closed: then what is written is found again that is written from then on.
//!
//! [`Ledger::refer`]: crate::engine::ledger::Ledger::refer

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::codec::seal::Salt;
use crate::dedup::{Index, Tag, Tagger};
use crate::engine::budget::DedupShare;
use crate::format::segment::{EncodedSegment, Payload, Referred};
use crate::map::Placement;
use crate::units::{BlockIndex, BlockSize, Extent, FrameAddr, Seq};

/// The de-duplication of one volume.
#[derive(Debug)]
pub(crate) struct Dedup {
    tagger: Tagger,
    block_size: BlockSize,
    index: Mutex<Index>,
    share: DedupShare,
    saved: AtomicU64,
}

/// How a volume is de-duplicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupStatus {
    /// Bytes before compression that were written since the volume was opened, and only referred to.
    pub saved_bytes: u64,
    /// Bytes in memory that say what is stored already.
    pub index_bytes: u64,
    /// Segments of which that is known.
    pub index_segments: u64,
    /// Segments that refer to others.
    pub referring_segments: u64,
    /// Segments that others refer to.
    pub referred_segments: u64,
}

/// The tags of some blocks, in order.
pub(super) type Tags = Vec<(BlockIndex, Tag)>;

/// What a segment has of data itself.
pub(super) type Tagged = Vec<(FrameAddr, Vec<Tag>)>;

impl Dedup {
    /// Nothing is known yet. `key` is of this opening.
    pub fn new(key: [u8; 32], block_size: BlockSize, run_bytes: u64, share: DedupShare) -> Dedup {
        let (tagger, index) = (Tagger::new(key), Mutex::new(Index::new(block_size, run_bytes)));
        Dedup { tagger, block_size, index, share, saved: AtomicU64::new(0) }
    }

    /// The tags of a batch, but of blocks that are all zero: those are not stored.
    pub fn tags(&self, changes: &[(Extent, Payload)]) -> Tags {
        let data = changes.iter().filter_map(|(extent, payload)| match payload {
            Payload::Data(data) => Some((*extent, data)),
            Payload::Zero | Payload::Hole => None,
        });
        data.flat_map(|(extent, data)| self.tags_of(extent, data).filter(|(_, block)| holds_something(block)))
            .map(|(at, block)| (at, self.tagger.tag(block)))
            .collect()
    }

    /// The tags of moved data.
    pub fn tags_of_moved(&self, data: &[(Extent, Bytes)]) -> Tags {
        let blocks = data.iter().flat_map(|(extent, data)| self.tags_of(*extent, data));
        blocks.map(|(at, block)| (at, self.tagger.tag(block))).collect()
    }

    fn tags_of<'d>(&self, extent: Extent, data: &'d Bytes) -> impl Iterator<Item = (BlockIndex, &'d [u8])> + use<'d> {
        let blocks = data.chunks_exact(self.block_size.bytes() as usize).enumerate();
        blocks.map(move |(no, block)| (BlockIndex(extent.start.0 + no as u64), block))
    }

    /// The runs of these blocks that are stored already, as far as that is known.
    pub fn find(&self, tags: &Tags) -> Vec<Referred> {
        self.index.lock().find(tags)
    }

    /// Nothing of these segments is worth being referred to.
    pub fn forget(&self, segments: impl IntoIterator<Item = Seq>) {
        let mut index = self.index.lock();
        segments.into_iter().for_each(|seq| index.forget(seq));
    }

    /// A segment took effect that has this.
    pub fn took_effect(&self, (seq, salt): (Seq, Salt), tagged: Tagged, refers: &[(Seq, u32)]) {
        let blocks: u64 = refers.iter().map(|(_, blocks)| u64::from(*blocks)).sum();
        self.saved.fetch_add(blocks * u64::from(self.block_size.bytes()), Ordering::Relaxed);
        self.index.lock().add(seq, salt, tagged, self.share.bytes());
    }

    /// How it is going; of a volume in which so many segments refer to others, and so many are referred to.
    pub fn status(&self, (referring_segments, referred_segments): (u64, u64)) -> DedupStatus {
        let index = self.index.lock();
        DedupStatus {
            saved_bytes: self.saved.load(Ordering::Relaxed),
            index_bytes: index.memory() as u64,
            index_segments: index.segments() as u64,
            referring_segments,
            referred_segments,
        }
    }
}

fn holds_something(block: &[u8]) -> bool {
    block.iter().any(|byte| *byte != 0)
}

/// The frames of an encoded segment that are data, with the tags of their blocks, which are among those.
pub(super) fn tagged(encoded: &EncodedSegment, tags: &Tags) -> Tagged {
    let is_data = |extent: &Extent| encoded.referring.binary_search_by_key(&extent.start, |at| at.start).is_err();
    let frame = |(extent, placement): &(Extent, Placement)| match placement {
        Placement::Data(location) if is_data(extent) => {
            let from = tags.partition_point(|(at, _)| *at < extent.start);
            let of: Vec<Tag> =
                tags[from..].iter().take_while(|(at, _)| *at < extent.end()).map(|(_, tag)| *tag).collect();
            (of.len() as u64 == extent.count.0).then_some((location.frame, of))
        }
        _ => None,
    };
    encoded.placements.iter().filter_map(frame).collect()
}
