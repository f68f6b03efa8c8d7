//! Pages of a run as bytes: leaves, which hold entries, and index pages, which find leaves.
//!
//! A leaf: the block at which it begins; a table of the segments that it names, by volume (0 is its own, the only one so far); then the
//! entries in the order of blocks. A frame's offset is written as the distance from the end of the frame of the same segment that was
//! named last, and lengths that repeat are left out: some 8 bytes for an extent of data.

use super::leaf::segments_of;
use super::{Entry, LEAF_ENTRIES_MAX, PageRef, Placement};
use crate::codec::EncodeError;
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::SEALED_BYTES_MAX;
use crate::units::{BlockCount, BlockIndex, Extent, FRAME_BLOCKS_MAX, FrameAddr, Location, Seq, VOLUME_BLOCKS_MAX};

/// The most bytes that an encoded page can have; the largest that is written stays far below.
pub const PAGE_BYTES_MAX: u32 = 1 << 20;

/// The most pages that an index page finds.
pub const INDEX_PAGES_MAX: usize = 4096;

// The lowest bits of an entry's first varint.
const ZERO: u64 = 0;
const HOLE: u64 = 1;
/// Data that begins at the first block of its frame.
const DATA: u64 = 2;
/// Data that begins further on.
const DATA_WITHIN: u64 = 3;
const OWES: u64 = 4;
/// As many blocks, and if it is data a frame as long, as the entry before of the same leaf.
const ALIKE: u64 = 8;
const GAP_AT: u32 = 4;

/// The only volume that is known: the one that the run belongs to.
const OWN_VOLUME: u64 = 0;

/// Whether an entry can be one. Encoding and decoding ask the same.
fn fits(entry: &Entry) -> bool {
    let Extent { start, count } = entry.extent;
    let inside = count.0 >= 1 && start.0 < VOLUME_BLOCKS_MAX && count.0 <= VOLUME_BLOCKS_MAX - start.0;
    inside
        && match entry.placement {
            Placement::Zero | Placement::Hole => true,
            Placement::Data(Location { frame, block }) => {
                u64::from(block) + count.0 <= FRAME_BLOCKS_MAX
                    && frame.len <= SEALED_BYTES_MAX
                    && frame.offset.checked_add(frame.len).is_some()
            }
        }
}

/// The bytes of a leaf: sorted entries that do not overlap, one at least.
pub fn encode_leaf(entries: &[Entry]) -> Result<Vec<u8>, EncodeError> {
    let first = entries.first().ok_or_else(|| EncodeError::new("a page of the map without entries".to_owned()))?;
    if entries.len() > LEAF_ENTRIES_MAX {
        return Err(EncodeError::new(format!("a page of the map with {} entries", entries.len())));
    }
    let segments = segments_of(entries);
    let mut w = Writer::with_capacity(16 + segments.len() * 4 + entries.len() * 10);
    w.varint(first.extent.start.0);
    w.varint(u64::from(!segments.is_empty()));
    if !segments.is_empty() {
        w.varint(OWN_VOLUME);
        w.varint(segments.len() as u64);
        let mut last = 0;
        for seq in &segments {
            w.varint(seq.0 - last);
            last = seq.0;
        }
    }
    w.varint(entries.len() as u64);
    let mut ends = vec![0; segments.len()];
    let (mut end, mut before) = (first.extent.start, (0, 0));
    for entry in entries {
        if entry.extent.start < end || !fits(entry) {
            return Err(EncodeError::new(format!("{entry:?} after block {end}: no sorted page")));
        }
        let (kind, len) = match entry.placement {
            Placement::Zero => (ZERO, before.1),
            Placement::Hole => (HOLE, before.1),
            Placement::Data(location) => (if location.block == 0 { DATA } else { DATA_WITHIN }, location.frame.len),
        };
        let count = entry.extent.count.0;
        let alike = (count, len) == before;
        let flags = kind | if entry.owes { OWES } else { 0 } | if alike { ALIKE } else { 0 };
        w.varint((entry.extent.start - end).0 << GAP_AT | flags);
        if !alike {
            w.varint(count - 1);
        }
        if let Placement::Data(Location { frame, block }) = entry.placement {
            let i = segments.partition_point(|seq| *seq < frame.seq);
            w.varint(i as u64);
            w.varint_signed(i64::from(frame.offset) - ends[i]);
            if !alike {
                w.varint(u64::from(frame.len));
            }
            if block != 0 {
                w.varint(u64::from(block));
            }
            ends[i] = i64::from(frame.offset) + i64::from(frame.len);
        }
        before = (count, len);
        end = entry.extent.end();
    }
    Ok(w.finish())
}

/// The entries of the leaf that begins at `first`: sorted, not overlapping, one at least.
pub fn decode_leaf(first: BlockIndex, bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let mut r = Reader::new(bytes);
    if r.varint()? != first.0 {
        return Err(r.bad("a page that begins at another block"));
    }
    let segments = decode_segments(&mut r)?;
    let count = r.count(1)?;
    if count == 0 || count > LEAF_ENTRIES_MAX {
        return Err(r.bad("more or fewer entries than a page has"));
    }
    let mut ends = vec![0; segments.len()];
    let mut entries = Vec::with_capacity(count);
    let (mut end, mut before) = (first, (0, 0));
    for _ in 0..count {
        let entry = decode_entry(&mut r, end, &segments, &mut ends, &mut before)?;
        if !fits(&entry) {
            return Err(r.bad("an entry outside its volume or frame"));
        }
        end = entry.extent.end();
        entries.push(entry);
    }
    if entries.first().is_some_and(|entry| entry.extent.start != first) {
        return Err(r.bad("a page that does not begin with its first entry"));
    }
    r.finish()?;
    Ok(entries)
}

fn decode_segments(r: &mut Reader<'_>) -> Result<Vec<Seq>, Malformed> {
    match r.varint()? {
        0 => return Ok(Vec::new()),
        1 => {}
        _ => return Err(r.bad("segments of several volumes")),
    }
    if r.varint()? != OWN_VOLUME {
        return Err(r.bad("segments of another volume"));
    }
    let count = r.count(1)?;
    if count == 0 || count > LEAF_ENTRIES_MAX {
        return Err(r.bad("more or fewer segments than a page has"));
    }
    read_segments(r, count)
}

/// So many segments, each later than the one before.
pub(super) fn read_segments(r: &mut Reader<'_>, count: usize) -> Result<Vec<Seq>, Malformed> {
    let mut segments = Vec::with_capacity(count);
    let mut last = 0u64;
    for i in 0..count {
        let gap = r.varint()?;
        last = last.checked_add(gap).filter(|_| gap > 0 || i == 0).ok_or_else(|| r.bad("a segment out of order"))?;
        segments.push(Seq(last));
    }
    Ok(segments)
}

fn decode_entry(
    r: &mut Reader<'_>,
    end: BlockIndex,
    segments: &[Seq],
    ends: &mut [i64],
    before: &mut (u64, u32),
) -> Result<Entry, Malformed> {
    let flags = r.varint()?;
    let (alike, owes) = (flags & ALIKE != 0, flags & OWES != 0);
    // No overflow: the gap is below 2^60, and the entry before ends below 2^55.
    let start = BlockIndex(end.0 + (flags >> GAP_AT));
    let count = match alike {
        true if before.0 > 0 => before.0,
        true => return Err(r.bad("a first entry like the one before")),
        false => r.varint_up_to(VOLUME_BLOCKS_MAX - 1)? + 1,
    };
    let mut len = before.1;
    let placement = match flags & 3 {
        ZERO => Placement::Zero,
        HOLE => Placement::Hole,
        kind => {
            let location = read_location(r, segments, ends, alike.then_some(len), kind == DATA_WITHIN)?;
            len = location.frame.len;
            Placement::Data(location)
        }
    };
    *before = (count, len);
    Ok(Entry { extent: Extent { start, count: BlockCount(count) }, placement, owes })
}

/// A place in one of the segments, whose frame named last ends at its `ends`. The frame's length is read if it is not `known`, and so
/// is the position in it if the data begins further on.
pub(super) fn read_location(
    r: &mut Reader<'_>,
    segments: &[Seq],
    ends: &mut [i64],
    known: Option<u32>,
    is_within: bool,
) -> Result<Location, Malformed> {
    let i = r.varint()? as usize;
    let (Some(&seq), Some(end)) = (segments.get(i), ends.get_mut(i)) else {
        return Err(r.bad("a segment that is not in the page's table"));
    };
    let distance = r.varint_signed()?;
    let offset = end.checked_add(distance).and_then(|offset| u32::try_from(offset).ok());
    let offset = offset.ok_or_else(|| r.bad("a frame beyond 4 GiB"))?;
    let len = known.map_or_else(|| r.varint_u32(), Ok)?;
    *end = i64::from(offset) + i64::from(len);
    let block = match is_within {
        false => 0,
        true => match r.varint_up_to(FRAME_BLOCKS_MAX)? {
            0 => return Err(r.bad("a position not in its shortest form")),
            block => block as u16,
        },
    };
    Ok(Location { frame: FrameAddr { seq, offset, len }, block })
}

/// Pages of a run, each with the block at which it begins: as an index page, or as the root holds them.
pub fn write_refs(w: &mut Writer, pages: &[(BlockIndex, PageRef)]) {
    w.varint(pages.len() as u64);
    let (mut first, mut object, mut end) = (0, 0, 0);
    for (block, at) in pages {
        w.varint(block.0 - first);
        w.varint_signed(at.checkpoint.0.cast_signed() - object);
        if at.checkpoint.0.cast_signed() != object {
            end = 0;
        }
        w.varint_signed(i64::from(at.offset) - end);
        w.varint(u64::from(at.len));
        (first, object, end) = (block.0, at.checkpoint.0.cast_signed(), i64::from(at.offset) + i64::from(at.len));
    }
}

/// What [`write_refs`] wrote: at most `max`, the blocks in order.
pub fn read_refs(r: &mut Reader<'_>, max: usize) -> Result<Vec<(BlockIndex, PageRef)>, Malformed> {
    let count = r.count(4)?;
    if count > max {
        return Err(r.bad("more pages than an index has"));
    }
    let mut pages = Vec::with_capacity(count);
    let (mut first, mut object, mut end) = (0u64, 0i64, 0i64);
    for i in 0..count {
        let gap = r.varint()?;
        let next = first.checked_add(gap).filter(|block| (gap > 0 || i == 0) && *block < VOLUME_BLOCKS_MAX);
        first = next.ok_or_else(|| r.bad("a page out of order"))?;
        let distance = r.varint_signed()?;
        let at = object.checked_add(distance).filter(|seq| *seq >= 0).ok_or_else(|| r.bad("a page in no object"))?;
        if at != object {
            end = 0;
        }
        object = at;
        let distance = r.varint_signed()?;
        let offset = end.checked_add(distance).and_then(|offset| u32::try_from(offset).ok());
        let offset = offset.ok_or_else(|| r.bad("a page beyond 4 GiB"))?;
        let len = r.varint_u32()?;
        offset.checked_add(len).ok_or_else(|| r.bad("a page beyond 4 GiB"))?;
        end = i64::from(offset) + i64::from(len);
        pages.push((BlockIndex(first), PageRef { checkpoint: Seq(object.cast_unsigned()), offset, len }));
    }
    Ok(pages)
}

/// The bytes of an index page.
pub fn encode_index(pages: &[(BlockIndex, PageRef)]) -> Result<Vec<u8>, EncodeError> {
    if pages.is_empty() || pages.len() > INDEX_PAGES_MAX || !pages.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(EncodeError::new(format!("an index page of {} pages, or out of order", pages.len())));
    }
    let mut w = Writer::with_capacity(8 + pages.len() * 10);
    write_refs(&mut w, pages);
    Ok(w.finish())
}

/// The pages that the index page finds which begins at `first`.
pub fn decode_index(first: BlockIndex, bytes: &[u8]) -> Result<Vec<(BlockIndex, PageRef)>, Malformed> {
    let mut r = Reader::new(bytes);
    let pages = read_refs(&mut r, INDEX_PAGES_MAX)?;
    if pages.first().is_none_or(|(block, _)| *block != first) {
        return Err(r.bad("an index page that begins at another block"));
    }
    r.finish()?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::Leaf;

    fn leaf() -> impl Strategy<Value = Vec<Entry>> {
        let location = (
            0u64..5,
            0u32..1000,
            prop_oneof![Just(4112_u32), 0u32..=SEALED_BYTES_MAX],
            prop_oneof![Just(0u16), 0u16..128],
        );
        let placement = prop_oneof![
            1 => Just(Placement::Zero),
            1 => Just(Placement::Hole),
            6 => location.prop_map(|(seq, offset, len, block)| {
                let frame = FrameAddr { seq: Seq(seq * 1_000_003), offset: offset * 4_000_000, len };
                Placement::Data(Location { frame, block })
            }),
        ];
        let item =
            (prop_oneof![Just(0u64), 0u64..600], prop_oneof![Just(1u64), 1u64..=1 << 40], placement, any::<bool>());
        (0u64..1 << 40, prop::collection::vec(item, 1..60)).prop_map(|(start, items)| {
            let mut end = BlockIndex(start);
            let entry = |(gap, count, placement, owes): (u64, u64, Placement, bool)| {
                let count = match placement {
                    Placement::Data(location) => count.min(128 - u64::from(location.block)),
                    _ => count,
                };
                let extent = Extent { start: end + BlockCount(gap), count: BlockCount(count) };
                end = extent.end();
                Entry { extent, placement, owes }
            };
            items.into_iter().map(entry).collect()
        })
    }

    fn refs() -> impl Strategy<Value = Vec<(BlockIndex, PageRef)>> {
        prop::collection::btree_map(0u64..1 << 50, (0u64..1 << 40, 0u32..1 << 30, 1u32..1 << 20), 1..50).prop_map(
            |pages| {
                let page =
                    |(first, (seq, offset, len))| (BlockIndex(first), PageRef { checkpoint: Seq(seq), offset, len });
                pages.into_iter().map(page).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn a_leaf_comes_back_from_bytes_and_from_memory(entries in leaf()) {
            let bytes = encode_leaf(&entries).unwrap();
            prop_assert_eq!(decode_leaf(entries[0].extent.start, &bytes), Ok(entries.clone()));
            let leaf = Leaf::new(&entries);
            prop_assert_eq!(leaf.iter().collect::<Vec<_>>(), entries);
        }

        #[test]
        fn an_index_page_comes_back(pages in refs()) {
            let bytes = encode_index(&pages).unwrap();
            prop_assert_eq!(decode_index(pages[0].0, &bytes), Ok(pages));
        }

        #[test]
        fn a_harmed_page_is_refused_or_in_order(entries in leaf(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encode_leaf(&entries).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(entries) = decode_leaf(entries[0].extent.start, &bytes) {
                prop_assert!(entries.is_sorted_by(|a, b| a.extent.end() <= b.extent.start));
                prop_assert!(entries.iter().all(fits));
                prop_assert_eq!(Leaf::new(&entries).iter().collect::<Vec<_>>(), entries);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), first in 0u64..4) {
            let _ = decode_leaf(BlockIndex(first), &bytes);
            let _ = decode_index(BlockIndex(first), &bytes);
        }
    }
}
