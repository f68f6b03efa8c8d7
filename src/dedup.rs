//! De-duplication: which blocks of what is about to be stored are stored already. Pure.
//!
//! Of segments that were written lately the *tags* of their blocks are kept in memory, as long as there is room: 32 bytes of keyed BLAKE3 each. Two blocks of one tag are taken for equal, which is as
//! good as the assumption that nobody finds a collision of BLAKE3. The key is drawn when a volume is opened and is never stored, so nobody can make blocks whose tags are of use to them, and no
//! tag is of any to anybody else.
//!
//! Only *runs* are found: [`RUN_BYTES`] or more of blocks that follow each other here and there. So a read of what was found takes a request for a run, not for each block; and of all
//! tags it is enough to look up a sample, and to compare the neighbours of what that finds.

use std::collections::{HashMap, VecDeque};

use crate::codec::seal::Salt;
use crate::format::segment::Referred;
use crate::format::segment::reference::Part;
use crate::units::{BlockCount, BlockIndex, BlockSize, Extent, FrameAddr, Seq};

/// Blocks of so many bytes in a row are found, or none, unless somebody says otherwise.
pub const RUN_BYTES: u64 = 32 << 10;

/// One tag in so many can be looked up, where a run has so many blocks. Of a run of eight one in ten is missed then, of sixteen one in a hundred.
const SAMPLE: u8 = 4;
const SAMPLED_RUN: u64 = 8;

/// What a tag that can be looked up takes in memory beside itself, about.
const LOOKUP_MEMORY: usize = 64;
/// What a segment takes.
const SEGMENT_MEMORY: usize = 256;

/// What tells a block from all others.
pub type Tag = [u8; 32];

/// Makes tags.
#[derive(Clone, Debug)]
pub struct Tagger([u8; 32]);

impl Tagger {
    /// With that key.
    pub fn new(key: [u8; 32]) -> Tagger {
        Tagger(key)
    }

    /// The tag of a block.
    pub fn tag(&self, block: &[u8]) -> Tag {
        *blake3::keyed_hash(&self.0, block).as_bytes()
    }
}

/// A segment whose tags are known: those of blocks that are data in it, in the order in which they lie there.
#[derive(Debug)]
struct Known {
    salt: Salt,
    tags: Vec<Tag>,
    /// Its frames, each with the number of its first block.
    frames: Vec<(u32, FrameAddr)>,
    /// Something was found in it since it was last spared.
    is_used: bool,
}

impl Known {
    fn memory(&self, sample: u8) -> usize {
        let sampled = self.tags.len() / usize::from(sample);
        SEGMENT_MEMORY + self.tags.len() * size_of::<Tag>() + self.frames.len() * 24 + sampled * LOOKUP_MEMORY
    }

    /// Where these blocks of it are.
    fn parts(&self, mut from: u32, to: u32) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = self.frames.partition_point(|(first, _)| *first <= from) - 1;
        while from < to {
            let (first, frame) = self.frames[at];
            let end = self.frames.get(at + 1).map_or(self.tags.len() as u32, |(next, _)| *next).min(to);
            parts.push(Part { frame, salt: self.salt, block: (from - first) as u8, blocks: (end - from) as u8 });
            (from, at) = (end, at + 1);
        }
        parts
    }
}

/// Tags of what is stored. See the module.
#[derive(Debug)]
pub struct Index {
    /// Blocks of the shortest run.
    run_min: u64,
    /// One tag in so many can be looked up.
    sample: u8,
    segments: HashMap<Seq, Known>,
    /// By the first bytes of a tag that can be looked up: the newest segment that has it, and which block of that.
    by_tag: HashMap<u64, (Seq, u32)>,
    /// Oldest first, but for those that were of use.
    order: VecDeque<Seq>,
    memory: usize,
}

/// What a tag is looked up by, if it is one of a sample of one in so many.
fn lookup_of(tag: &Tag, sample: u8) -> Option<u64> {
    let [first, rest @ ..] = tag;
    let mut key = [0; 8];
    key.copy_from_slice(&rest[..8]);
    first.is_multiple_of(sample).then(|| u64::from_le_bytes(key))
}

impl Index {
    /// Nothing yet, of blocks of that size. Runs of so many bytes or more are found.
    pub fn new(block_size: BlockSize, run_bytes: u64) -> Index {
        let run_min = (run_bytes / u64::from(block_size.bytes())).max(1);
        let sample = if run_min >= SAMPLED_RUN { SAMPLE } else { 1 };
        let (segments, by_tag, order) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Index { run_min, sample, segments, by_tag, order, memory: 0 }
    }

    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// How many segments it knows.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// A segment took effect, with these frames of data, each with the tags of its blocks; in the order in which they lie in it. What is known altogether takes `bound` bytes at most.
    pub fn add(&mut self, seq: Seq, salt: Salt, frames: impl IntoIterator<Item = (FrameAddr, Vec<Tag>)>, bound: usize) {
        self.forget(seq);
        let mut known = Known { salt, tags: Vec::new(), frames: Vec::new(), is_used: false };
        for (frame, tags) in frames {
            known.frames.push((known.tags.len() as u32, frame));
            known.tags.extend(tags);
        }
        if known.tags.is_empty() {
            return self.trim(bound);
        }
        for (at, tag) in known.tags.iter().enumerate() {
            if let Some(key) = lookup_of(tag, self.sample) {
                self.by_tag.insert(key, (seq, at as u32));
            }
        }
        known.tags.shrink_to_fit();
        self.memory += known.memory(self.sample);
        self.segments.insert(seq, known);
        self.order.push_back(seq);
        self.trim(bound);
    }

    /// Nothing of a segment is to be found any more.
    pub fn forget(&mut self, seq: Seq) {
        let Some(known) = self.segments.remove(&seq) else { return };
        self.memory -= known.memory(self.sample);
        for key in known.tags.iter().filter_map(|tag| lookup_of(tag, self.sample)) {
            if self.by_tag.get(&key).is_some_and(|(of, _)| *of == seq) {
                self.by_tag.remove(&key);
            }
        }
        self.order.retain(|other| *other != seq);
    }

    /// What is known takes so many bytes at most: the oldest goes first, but for what was of use since it was spared last.
    pub fn trim(&mut self, bound: usize) {
        while self.memory > bound {
            let Some(seq) = self.order.front().copied() else { return };
            match self.segments.get_mut(&seq) {
                Some(known) if known.is_used => {
                    known.is_used = false;
                    self.order.rotate_left(1);
                }
                _ => self.forget(seq),
            }
        }
    }

    /// The runs among these blocks, which come in order, that are stored already.
    pub fn find(&mut self, blocks: &[(BlockIndex, Tag)]) -> Vec<Referred> {
        let (mut found, mut at, mut free) = (Vec::new(), 0, 0);
        while at < blocks.len() {
            let Some((seq, no)) = lookup_of(&blocks[at].1, self.sample).and_then(|key| self.by_tag.get(&key).copied())
            else {
                at += 1;
                continue;
            };
            let Some(known) = self.segments.get_mut(&seq) else {
                at += 1;
                continue;
            };
            let is_same = |here: usize, there: usize| known.tags.get(there) == Some(&blocks[here].1);
            let follows = |here: usize| blocks[here - 1].0.0 + 1 == blocks[here].0.0;
            if !is_same(at, no as usize) {
                at += 1;
                continue;
            }
            let (mut from, mut first) = (at, no as usize);
            while from > free && first > 0 && follows(from) && is_same(from - 1, first - 1) {
                (from, first) = (from - 1, first - 1);
            }
            let (mut to, mut end) = (at + 1, no as usize + 1);
            while to < blocks.len() && follows(to) && is_same(to, end) {
                (to, end) = (to + 1, end + 1);
            }
            if ((to - from) as u64) < self.run_min {
                at += 1;
                continue;
            }
            let extent = Extent { start: blocks[from].0, count: BlockCount((to - from) as u64) };
            found.push(Referred { extent, parts: known.parts(first as u32, end as u32) });
            known.is_used = true;
            (at, free) = (to, to);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tagger() -> Tagger {
        Tagger::new([7; 32])
    }

    /// The tag of a block of that content.
    fn tag(content: u64) -> Tag {
        tagger().tag(&content.to_le_bytes())
    }

    fn frame(seq: u64, no: usize) -> FrameAddr {
        FrameAddr { seq: Seq(seq), offset: 100 * no as u32, len: 50 }
    }

    /// What a segment holds, in frames of so many blocks.
    fn add(index: &mut Index, seq: u64, contents: &[u64], blocks: usize, bound: usize) {
        let frames = contents.chunks(blocks).enumerate();
        let frames = frames.map(|(no, some)| (frame(seq, no), some.iter().map(|content| tag(*content)).collect()));
        index.add(Seq(seq), [seq as u8; 16], frames, bound);
    }

    fn blocks(from: u64, contents: &[u64]) -> Vec<(BlockIndex, Tag)> {
        contents.iter().enumerate().map(|(at, content)| (BlockIndex(from + at as u64), tag(*content))).collect()
    }

    #[test]
    fn a_run_is_found_wherever_it_lies_and_a_shorter_one_is_not() {
        let mut index = Index::new(BlockSize::default(), RUN_BYTES);
        let stored: Vec<u64> = (0..64).collect();
        add(&mut index, 5, &stored, 16, usize::MAX);
        // By three blocks, and in the middle of something else.
        let here: Vec<u64> = [900, 901].into_iter().chain(10..40).chain([902]).collect();
        let found = index.find(&blocks(1003, &here));
        let [run] = &found[..] else { panic!("{found:?}") };
        assert_eq!(run.extent, Extent::new(1005, 30));
        let part = |no, block, blocks| Part { frame: frame(5, no), salt: [5; 16], block, blocks };
        assert_eq!(run.parts, [part(0, 10, 6), part(1, 0, 16), part(2, 0, 8)]);
        assert_eq!(index.find(&blocks(0, &(10..17).collect::<Vec<_>>())), []);
        // Blocks that do not follow on each other are no run.
        let apart: Vec<_> = blocks(0, &stored).into_iter().map(|(at, tag)| (BlockIndex(at.0 * 2), tag)).collect();
        assert_eq!(index.find(&apart), []);
        index.forget(Seq(5));
        assert_eq!((index.find(&blocks(0, &stored)), index.memory(), index.by_tag.len()), (vec![], 0, 0));
    }

    #[test]
    fn what_is_of_use_stays_and_the_bound_holds() {
        let mut index = Index::new(BlockSize::default(), RUN_BYTES);
        let contents = |seq: u64| (seq * 1000..seq * 1000 + 256).collect::<Vec<u64>>();
        add(&mut index, 1, &contents(1), 16, usize::MAX);
        let bound = index.memory() * 3;
        for seq in 2..20 {
            assert_eq!(index.find(&blocks(0, &contents(1))).len(), 1, "before {seq}");
            add(&mut index, seq, &contents(seq), 16, bound);
            assert!(index.memory() <= bound);
        }
        assert_eq!((index.segments(), index.find(&blocks(0, &contents(2))).len()), (3, 0));
        index.trim(0);
        assert_eq!((index.memory(), index.segments(), index.by_tag.len(), index.order.len()), (0, 0, 0, 0));
    }

    proptest! {
        /// Whatever is found is there, block by block, in one piece; nothing is found twice.
        #[test]
        fn what_is_found_is_what_was_stored(
            segments in prop::collection::vec((prop::collection::vec(0u64..12, 1..60), 1usize..20), 1..6),
            gone in prop::collection::vec(0usize..6, 0..3),
            here in prop::collection::vec((0u64..12, prop::bool::weighted(0.05)), 0..120),
            bound in prop_oneof![Just(usize::MAX), 0usize..20_000],
        ) {
            let mut index = Index::new(BlockSize::default(), RUN_BYTES);
            for (at, (contents, blocks)) in segments.iter().enumerate() {
                add(&mut index, at as u64 + 1, contents, *blocks, bound);
                prop_assert!(index.memory() <= bound);
            }
            gone.iter().for_each(|at| index.forget(Seq(*at as u64 + 1)));
            let (mut next, mut written) = (0, Vec::new());
            for (content, skips) in here {
                next += 1 + u64::from(skips);
                written.push((BlockIndex(next), content));
            }
            let tags: Vec<_> = written.iter().map(|(at, content)| (*at, tag(*content))).collect();
            let mut last = BlockIndex(0);
            for Referred { extent, parts } in index.find(&tags) {
                prop_assert!(extent.start >= last && extent.count.0 >= 8);
                last = extent.end();
                let mut at = extent.start;
                for Part { frame, block, blocks: count, .. } in parts {
                    let (contents, blocks) = &segments[frame.seq.0 as usize - 1];
                    prop_assert!(!gone.contains(&(frame.seq.0 as usize - 1)));
                    for no in 0..count {
                        let stored = contents[frame.offset as usize / 100 * blocks + usize::from(block + no)];
                        let here = written.iter().find(|(index, _)| *index == at).map(|(_, content)| *content);
                        prop_assert_eq!(here, Some(stored));
                        at.0 += 1;
                    }
                    prop_assert!(usize::from(block + count) <= *blocks);
                }
                prop_assert_eq!(at, extent.end());
            }
            index.trim(0);
            prop_assert_eq!((index.memory(), index.by_tag.len(), index.order.len()), (0, 0, 0));
        }
    }
}
