//! The map of a ghost: one last run of leaves and index pages, each made when it is asked for.
//!
//! Where a page lies must be known without making those before it. So all leaves have one length, and all index pages: that of what
//! they would have, and a little more. What is left over is a skippable frame of Zstandard, which every decoder passes over.

use ashlar::codec::frame::{Compression, Frames};
use ashlar::codec::object::ObjectKind;
use ashlar::codec::seal::{Salt, Sealer, TAG_BYTES};
use ashlar::map::compaction::Sizes;
use ashlar::map::leaf_format::{encode_index, encode_leaf};
use ashlar::map::{Entry, PageRef, Placement};
use ashlar::units::{BlockIndex, Extent, FrameAddr, Location, Seq};

use super::segments::Segments;
use super::shape::{Shape, mix};

/// Where the pages of a checkpoint begin: its head is nobody's concern, the root that counts is another's.
pub const FRAMES_AT: u32 = 48;

/// Pages that are looked at to know how long they all are.
const SAMPLES: u64 = 64;

/// What a page may be longer than the longest of these: one part of so many, and the overhead of what is skipped.
const SLACK_PART: usize = 20;
const SKIP_OVERHEAD: usize = 8;
const SKIP_MAGIC: u32 = 0x184d_2a50;

/// Codec 2 of a frame.
const ZSTD: u8 = 2;

/// See the module.
#[derive(Clone, Debug)]
pub struct Pages {
    shape: Shape,
    segments: Segments,
    /// The first checkpoint that holds some.
    pub first: Seq,
    /// How many checkpoints do: one for each index page and its leaves.
    pub objects: u64,
    leaf_entries: u64,
    index_leaves: u64,
    leaf_len: u32,
    index_len: u32,
}

impl Pages {
    /// Of checkpoints that lie directly before `root`.
    pub fn new(shape: &Shape, segments: &Segments, root: Seq) -> Pages {
        let sizes = Sizes::default();
        let (leaf_entries, index_leaves) = (sizes.leaf_entries as u64, sizes.index_leaves as u64);
        let objects = shape.blocks.div_ceil(leaf_entries * index_leaves);
        let mut pages = Pages {
            shape: shape.clone(),
            segments: segments.clone(),
            first: Seq(root.0 - objects),
            objects,
            leaf_entries,
            index_leaves,
            leaf_len: 0,
            index_len: 0,
        };
        let longest = |count: u64, text: &dyn Fn(u64) -> Vec<u8>| {
            let sampled = (0..SAMPLES).map(|n| sealed_len(&text(mix(n) % count))).max().unwrap_or_default();
            (sampled + sampled / SLACK_PART + 64) as u32
        };
        pages.leaf_len = longest(pages.leaves(), &|n| pages.leaf(n));
        pages.index_len = longest(objects, &|n| pages.index(n));
        pages
    }

    fn leaves(&self) -> u64 {
        self.shape.blocks.div_ceil(self.leaf_entries)
    }

    /// Leaves of the object of that number.
    fn leaves_of(&self, object: u64) -> u64 {
        self.index_leaves.min(self.leaves() - object * self.index_leaves)
    }

    /// Bytes of the pages in the object of that number.
    pub fn bytes_of(&self, object: u64) -> u64 {
        self.leaves_of(object) * u64::from(self.leaf_len) + u64::from(self.index_len)
    }

    /// Entries of the run.
    pub fn entries(&self) -> u64 {
        (0..self.shape.segments).map(|segment| self.shape.live_blocks(segment)).sum()
    }

    /// The index pages, as the root finds them.
    pub fn indexes(&self) -> Vec<(BlockIndex, PageRef)> {
        let at = |object| PageRef {
            checkpoint: Seq(self.first.0 + object),
            offset: self.leaves_of(object) as u32 * self.leaf_len,
            len: self.index_len,
        };
        (0..self.objects).map(|object| (self.first_of(object * self.index_leaves), at(object))).collect()
    }

    /// The block with which a leaf begins.
    fn first_of(&self, leaf: u64) -> BlockIndex {
        let is_live = |block: &u64| self.shape.is_live(self.shape.place(*block));
        BlockIndex((leaf * self.leaf_entries..).find(is_live).unwrap_or_default())
    }

    fn leaf(&self, leaf: u64) -> Vec<u8> {
        let blocks = leaf * self.leaf_entries..self.shape.blocks.min((leaf + 1) * self.leaf_entries);
        let entry = |block| {
            let place = self.shape.place(block);
            let (offset, len) = self.segments.frame(place.rank);
            let frame = FrameAddr { seq: self.segments.seq(place.segment), offset, len };
            let placement = Placement::Data(Location { frame, block: 0 });
            self.shape.is_live(place).then(|| Entry { extent: Extent::new(block, 1), placement, owes: false })
        };
        encode_leaf(&blocks.filter_map(entry).collect::<Vec<_>>()).expect("a leaf of a ghost is sorted")
    }

    fn index(&self, object: u64) -> Vec<u8> {
        let checkpoint = Seq(self.first.0 + object);
        let at = |n| PageRef { checkpoint, offset: n as u32 * self.leaf_len, len: self.leaf_len };
        let first = object * self.index_leaves;
        let leaves: Vec<_> = (0..self.leaves_of(object)).map(|n| (self.first_of(first + n), at(n))).collect();
        encode_index(&leaves).expect("an index page of a ghost is sorted")
    }

    /// The page of an object in which a byte lies: where it begins, and its bytes.
    pub fn page(&self, sealer: &Sealer, salt: &Salt, object: u64, byte: u64) -> (u64, Vec<u8>) {
        let Some(offset) = byte.checked_sub(u64::from(FRAMES_AT)) else {
            return (0, vec![0; FRAMES_AT as usize]);
        };
        let leaf = (offset / u64::from(self.leaf_len)).min(self.leaves_of(object));
        let (text, len) = match leaf < self.leaves_of(object) {
            true => (self.leaf(object * self.index_leaves + leaf), self.leaf_len),
            false => (self.index(object), self.index_len),
        };
        let mut sealed = padded(&text, len as usize);
        let begins = u64::from(FRAMES_AT) + leaf * u64::from(self.leaf_len);
        let key = sealer.object_key(ObjectKind::Checkpoint, Seq(self.first.0 + object), salt).expect("a plain volume");
        let tag = key.seal(begins, &[], &mut sealed[TAG_BYTES..]).expect("a page is short");
        sealed[..TAG_BYTES].copy_from_slice(&tag);
        (begins, sealed)
    }
}

/// The salt of an object.
pub fn salt(kind: ObjectKind, seq: Seq) -> Salt {
    (u128::from(mix(seq.0 ^ (kind as u64) << 56)) << 64 | u128::from(mix(!seq.0))).to_le_bytes()
}

/// As a checkpoint would write it, or as it is made here if that is longer.
fn sealed_len(text: &[u8]) -> usize {
    let mut frames = Frames::with_capacity(1, text.len(), Compression::Lz4);
    let written = frames.push(&[text]).expect("a page is short") as usize;
    written.max(front(text).len() + SKIP_OVERHEAD)
}

/// A frame but for what is to be skipped.
fn front(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; TAG_BYTES];
    frame.push(ZSTD);
    frame.extend_from_slice(&(text.len() as u32).to_le_bytes()[..3]);
    frame.extend_from_slice(&zstd::bulk::compress(text, 1).expect("compressing in memory"));
    frame
}

/// A frame of exactly that length, room for its tag first.
fn padded(text: &[u8], len: usize) -> Vec<u8> {
    let mut frame = front(text);
    let skip = len.checked_sub(frame.len() + SKIP_OVERHEAD);
    let skip = skip.unwrap_or_else(|| panic!("a page of {} bytes does not fit into {len}", frame.len()));
    frame.extend_from_slice(&SKIP_MAGIC.to_le_bytes());
    frame.extend_from_slice(&(skip as u32).to_le_bytes());
    frame.resize(len, 0);
    frame
}
