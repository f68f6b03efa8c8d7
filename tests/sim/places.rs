//! Where clients write and what is looked at: a few places of a volume that is large and mostly empty.

use std::ops::Range;

use ashlar::outside::Random;

/// Bytes of a block.
pub const BLOCK: u64 = 512;
/// Blocks of a page of the map.
const PAGE_BLOCKS: u64 = 16_384;

/// The places of one volume, as ranges of bytes in order.
#[derive(Debug)]
pub struct Places {
    /// Bytes of the volume.
    pub size: u64,
    /// Where clients write.
    pub clusters: Vec<Range<u64>>,
    /// What is looked at: the clusters, and blocks that only changes of whole stretches touch.
    areas: Vec<Range<u64>>,
}

impl Places {
    /// Four pages, the last one cut short, and four clusters around their boundaries: the same blocks are written often.
    pub fn narrow() -> Places {
        let blocks = 49_200;
        Places::new(blocks, &[0, 16_350, 32_700, 49_100], 64, &[8_000, 20_000, 40_000, blocks - 1])
    }

    /// Some hundred pages with a small cluster in each, so that far more of the map is in use than fits into memory.
    pub fn wide(random: &Random) -> Places {
        let pages = 120 + random.below(240);
        let blocks = pages * PAGE_BLOCKS + 100;
        // Every seventh lies on the boundary of two pages.
        let start =
            |page: u64| page * PAGE_BLOCKS + if page % 7 == 6 { PAGE_BLOCKS - 4 } else { 8 + random.below(1000) };
        let starts: Vec<u64> = (0..pages).map(start).collect();
        Places::new(blocks, &starts, 8, &[5_000, blocks - 1])
    }

    fn new(blocks: u64, starts: &[u64], count: u64, singles: &[u64]) -> Places {
        let bytes = |start: u64, count: u64| start * BLOCK..(start + count) * BLOCK;
        let clusters: Vec<_> = starts.iter().map(|&start| bytes(start, count)).collect();
        let mut areas: Vec<_> = clusters.iter().cloned().chain(singles.iter().map(|&block| bytes(block, 1))).collect();
        areas.sort_by_key(|area| area.start);
        assert!(areas.windows(2).all(|pair| pair[0].end <= pair[1].start), "areas do not overlap: {areas:?}");
        Places { size: blocks * BLOCK, clusters, areas }
    }

    /// Whether there are many pages.
    pub fn are_wide(&self) -> bool {
        self.clusters.len() > 100
    }

    /// What is looked at, in order.
    pub fn areas(&self) -> &[Range<u64>] {
        &self.areas
    }

    /// Bytes of all areas together: an image is as long.
    pub fn watched_bytes(&self) -> usize {
        self.areas.iter().map(|area| (area.end - area.start) as usize).sum()
    }

    /// The parts of `range` that are looked at: where they stand in an image, and which bytes of the volume they are.
    pub fn watched(&self, range: &Range<u64>) -> Vec<(usize, Range<u64>)> {
        let (mut at, mut parts) = (0, Vec::new());
        for area in &self.areas {
            let part = area.start.max(range.start)..area.end.min(range.end);
            if part.start < part.end {
                parts.push((at + (part.start - area.start) as usize, part));
            }
            at += (area.end - area.start) as usize;
        }
        parts
    }
}
