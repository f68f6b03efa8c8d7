//! A page of a run in memory: its entries, packed.

use super::table::fill;
use super::{Entry, Placement};
use crate::units::{BlockCount, BlockIndex, Extent, FrameAddr, Location, Seq};

/// Sorted entries that do not overlap, 24 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The segments that the entries name, sorted.
    segments: Vec<Seq>,
    entries: Vec<Packed>,
}

/// An entry. `what` is, from its lowest bit: whether it owes, the kind (2 bits), the block in the frame (8), the frame's length (21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed {
    start: u64,
    count: u32,
    /// The place in `segments`; of zero or hole the upper half of the count.
    of: u32,
    offset: u32,
    what: u32,
}

const OWES: u32 = 1;
const ZERO: u32 = 0 << 1;
const HOLE: u32 = 1 << 1;
const DATA: u32 = 2 << 1;
const KIND: u32 = 3 << 1;
const BLOCK_AT: u32 = 3;
const LEN_AT: u32 = 11;

/// The segments that the entries name, sorted.
pub(super) fn segments_of(entries: &[Entry]) -> Vec<Seq> {
    let seq = |entry: &Entry| match entry.placement {
        Placement::Data(location) => Some(location.frame.seq),
        Placement::Zero | Placement::Hole => None,
    };
    let mut segments: Vec<Seq> = entries.iter().filter_map(seq).collect();
    segments.sort_unstable();
    segments.dedup();
    segments.shrink_to_fit();
    segments
}

impl Leaf {
    /// Of sorted entries that do not overlap. A frame has at most 2^21 bytes and 2^8 blocks, as both ways in have checked.
    pub fn new(entries: &[Entry]) -> Leaf {
        let segments = segments_of(entries);
        let pack = |entry: &Entry| {
            let (start, count, owes) = (entry.extent.start.0, entry.extent.count.0, u32::from(entry.owes));
            match entry.placement {
                Placement::Data(Location { frame, block }) => Packed {
                    start,
                    count: count as u32,
                    of: segments.partition_point(|seq| *seq < frame.seq) as u32,
                    offset: frame.offset,
                    what: owes | DATA | u32::from(block) << BLOCK_AT | frame.len << LEN_AT,
                },
                empty => Packed {
                    start,
                    count: count as u32,
                    of: (count >> 32) as u32,
                    offset: 0,
                    what: owes | if empty == Placement::Zero { ZERO } else { HOLE },
                },
            }
        };
        let entries = entries.iter().map(pack).collect();
        Leaf { segments, entries }
    }

    fn unpack(&self, packed: &Packed) -> Entry {
        let (placement, count) = match packed.what & KIND {
            DATA => {
                let seq = self.segments[packed.of as usize];
                let frame = FrameAddr { seq, offset: packed.offset, len: packed.what >> LEN_AT };
                let block = (packed.what >> BLOCK_AT & 0xff) as u16;
                (Placement::Data(Location { frame, block }), u64::from(packed.count))
            }
            kind => {
                let placement = if kind == ZERO { Placement::Zero } else { Placement::Hole };
                (placement, u64::from(packed.of) << 32 | u64::from(packed.count))
            }
        };
        let extent = Extent { start: BlockIndex(packed.start), count: BlockCount(count) };
        Entry { extent, placement, owes: packed.what & OWES != 0 }
    }

    /// Its entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().map(|packed| self.unpack(packed))
    }

    /// The entries that have blocks in `extent`, in order, whole.
    pub fn overlapping(&self, extent: Extent) -> impl Iterator<Item = Entry> + '_ {
        let after = self.entries.partition_point(|packed| packed.start <= extent.start.0);
        let entries = self.entries[after.saturating_sub(1)..].iter();
        entries
            .take_while(move |packed| packed.start < extent.end().0)
            .map(|packed| self.unpack(packed))
            .filter(move |entry| entry.extent.overlaps(&extent))
    }

    /// What it says of `extent`, in order and without gaps; nothing where it is silent.
    pub fn lookup(&self, extent: Extent, found: impl FnMut(Extent, Option<Entry>)) {
        fill(extent, self.overlapping(extent), found);
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that it takes in memory.
    pub fn memory(&self) -> usize {
        size_of::<Leaf>() + self.segments.capacity() * size_of::<Seq>() + self.entries.capacity() * size_of::<Packed>()
    }
}
