//! Pages of the formats before the layers, as bytes: the extents of [`PAGE_BLOCKS`] blocks. They are read, and written no more.
//!
//! First a table of the segments that the page refers to, then the extents in the order of blocks. A frame's offset is
//! written as the distance from the end of the frame of the same segment that was named last, so that what was written
//! in one go costs one byte there: about 8 bytes for an extent of sequential data, 11 for a random block.

use super::leaf_format::{read_location, read_segments};
use super::{Entry, PAGE_BLOCKS, PageIndex, Placement};
use crate::codec::cursor::{Malformed, Reader};
use crate::codec::frame::SEALED_BYTES_MAX;
use crate::units::{BlockCount, BlockIndex, Extent, FRAME_BLOCKS_MAX, Location, Seq, VOLUME_BLOCKS_MAX};

/// The most bytes that an encoded page can have.
pub const PAGE_BYTES_MAX: u32 = 4 << 20;

// The two low bits of an extent's first varint; 3 is free.
const ZERO: u64 = 0;
/// Data that begins at the first block of its frame.
const DATA: u64 = 1;
/// Data that begins further on.
const DATA_WITHIN: u64 = 2;

/// Pages of the largest volume.
pub const PAGES_MAX: u64 = VOLUME_BLOCKS_MAX.div_ceil(PAGE_BLOCKS);

/// The fewest bytes that an extent, or a segment of the table, takes.
const EXTENT_BYTES_MIN: usize = 2;
const SEGMENT_BYTES_MIN: usize = 1;

/// Whether an extent can be one of `page`.
fn fits(page: PageIndex, m: &Entry) -> bool {
    let Extent { start, count } = page.extent();
    let Extent { start: first, count: blocks } = m.extent;
    let inside = first >= start && (first - start) < count && blocks.0 >= 1 && blocks.0 <= count.0 - (first - start).0;
    match m.placement {
        Placement::Zero => inside,
        Placement::Hole => false,
        Placement::Data(Location { frame, block }) => {
            inside
                && u64::from(block) + blocks.0 <= FRAME_BLOCKS_MAX
                && frame.len <= SEALED_BYTES_MAX
                && frame.offset.checked_add(frame.len).is_some()
        }
    }
}

/// The mapped extents of `page` from its bytes; sorted by block, not overlapping, inside the page.
pub fn decode_page(page: PageIndex, bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let mut r = Reader::new(bytes);
    if page.0 >= PAGES_MAX {
        return Err(r.bad("a page beyond the end of any volume"));
    }
    let segments = decode_segments(&mut r)?;
    let count = r.count(EXTENT_BYTES_MIN)?;
    // An extent has a block at least. Some KiB can decompress to PAGE_BYTES_MAX, and that can claim two million extents.
    if count as u64 > PAGE_BLOCKS {
        return Err(r.bad("more extents than a page has blocks"));
    }
    let mut ends = vec![0; segments.len()];
    let mut mapped = Vec::with_capacity(count);
    let mut end = page.extent().start;
    for _ in 0..count {
        let m = decode_extent(&mut r, end, &segments, &mut ends)?;
        if !fits(page, &m) {
            return Err(r.bad("an extent outside its page or frame"));
        }
        end = m.extent.end();
        mapped.push(m);
    }
    r.finish()?;
    Ok(mapped)
}

fn decode_segments(r: &mut Reader<'_>) -> Result<Vec<Seq>, Malformed> {
    let count = r.count(SEGMENT_BYTES_MIN)?;
    if count as u64 > PAGE_BLOCKS {
        return Err(r.bad("more segments than a page has blocks"));
    }
    read_segments(r, count)
}

fn decode_extent(r: &mut Reader<'_>, end: BlockIndex, segments: &[Seq], ends: &mut [i64]) -> Result<Entry, Malformed> {
    let first = r.varint()?;
    let count_less_one = r.varint_up_to(PAGE_BLOCKS - 1)?;
    // No overflow: the gap is below 2^62, the page ends below 2^55. `fits` judges whether the extent lies in the page.
    let start = BlockIndex(end.0 + (first >> 2));
    let extent = Extent { start, count: BlockCount(count_less_one + 1) };
    let placement = match first & 3 {
        ZERO => Placement::Zero,
        kind @ (DATA | DATA_WITHIN) => Placement::Data(read_location(r, segments, ends, None, kind == DATA_WITHIN)?),
        _ => return Err(r.bad("an extent of unknown kind")),
    };
    Ok(Entry { extent, placement, owes: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::EncodeError;
    use crate::codec::cursor::Writer;
    use crate::map::leaf::segments_of;
    use crate::units::FrameAddr;
    use proptest::prelude::*;

    /// The bytes of `page`; `mapped` is sorted by block, not overlapping, inside the page, none empty.
    fn encode_page(page: PageIndex, mapped: &[Entry]) -> Result<Vec<u8>, EncodeError> {
        if page.0 >= PAGES_MAX {
            return Err(EncodeError::new(format!("page {} is beyond the end of any volume", page.0)));
        }
        let segments = segments_of(mapped);
        let mut w = Writer::with_capacity(16 + segments.len() * 4 + mapped.len() * 12);
        w.varint(segments.len() as u64);
        let mut last = 0;
        for seq in &segments {
            w.varint(seq.0 - last);
            last = seq.0;
        }
        w.varint(mapped.len() as u64);
        let mut ends = vec![0; segments.len()];
        let mut end = page.extent().start;
        for m in mapped {
            if m.extent.start < end || !fits(page, m) {
                return Err(EncodeError::new(format!("page {}: {m:?} after block {end}: no sorted page", page.0)));
            }
            let gap = (m.extent.start - end).0 << 2;
            match m.placement {
                Placement::Hole => unreachable!("such a page has none"),
                Placement::Zero => {
                    w.varint(gap | ZERO);
                    w.varint(m.extent.count.0 - 1);
                }
                Placement::Data(Location { frame, block }) => {
                    w.varint(gap | if block == 0 { DATA } else { DATA_WITHIN });
                    w.varint(m.extent.count.0 - 1);
                    let i = segments.partition_point(|seq| *seq < frame.seq);
                    w.varint(i as u64);
                    w.varint_signed(i64::from(frame.offset) - ends[i]);
                    w.varint(u64::from(frame.len));
                    if block != 0 {
                        w.varint(u64::from(block));
                    }
                    ends[i] = i64::from(frame.offset) + i64::from(frame.len);
                }
            }
            end = m.extent.end();
        }
        Ok(w.finish())
    }

    fn page() -> impl Strategy<Value = (PageIndex, Vec<Entry>)> {
        let location = (0u64..5, 0u32..1000, 0u32..=SEALED_BYTES_MAX, prop_oneof![Just(0u16), 0u16..128]);
        let content = prop_oneof![
            1 => Just(None),
            4 => location.prop_map(|(seq, offset, len, block)| {
                let frame = FrameAddr { seq: Seq(seq * 1_000_003), offset: offset * 4_000_000, len };
                Some(Location { frame, block })
            }),
        ];
        let gap = prop_oneof![Just(0u64), 0u64..600];
        let item = (gap, 1u64..=128, content);
        (0u64..PAGES_MAX, prop::collection::vec(item, 0..60)).prop_map(|(page, items)| {
            let page = PageIndex(page);
            let mut end = page.extent().start;
            let mut mapped = Vec::new();
            for (gap, count, content) in items {
                let start = end + BlockCount(gap);
                let count = content.map_or(count, |location| count.min(128 - u64::from(location.block)));
                if start + BlockCount(count) <= page.extent().end() {
                    let extent = Extent::new(start.0, count);
                    mapped.push(Entry {
                        extent,
                        placement: content.map_or(Placement::Zero, Placement::Data),
                        owes: false,
                    });
                    end = extent.end();
                }
            }
            (page, mapped)
        })
    }

    proptest! {
        #[test]
        fn a_page_comes_back((page, mapped) in page()) {
            let bytes = encode_page(page, &mapped).unwrap();
            prop_assert_eq!(decode_page(page, &bytes), Ok(mapped));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_mean_one_page(bytes in prop::collection::vec(any::<u8>(), 0..60), segments in 0u8..4) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = segments;
            }
            let page = PageIndex(3);
            if let Ok(mapped) = decode_page(page, &bytes) {
                let again = encode_page(page, &mapped).unwrap();
                prop_assert_eq!(decode_page(page, &again), Ok(mapped));
            }
        }

        #[test]
        fn a_harmed_page_is_refused_or_in_order((page, mapped) in page(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encode_page(page, &mapped).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(mapped) = decode_page(page, &bytes) {
                prop_assert!(mapped.is_sorted_by(|a, b| a.extent.end() <= b.extent.start));
                prop_assert!(mapped.iter().all(|m| fits(page, m)));
            }
        }
    }

    fn data(start: u64, count: u64, offset: u32, block: u16) -> Entry {
        let frame = FrameAddr { seq: Seq(1), offset, len: 100 };
        Entry { extent: Extent::new(start, count), placement: Placement::Data(Location { frame, block }), owes: false }
    }

    #[test]
    fn what_is_no_page_is_not_written() {
        let page = PageIndex(1);
        let at = PAGE_BLOCKS;
        assert!(encode_page(page, &[data(at, 128, 50, 0), data(at + 128, 1, 150, 127)]).is_ok());
        for bad in [
            vec![data(at - 1, 2, 50, 0)],
            vec![data(at + PAGE_BLOCKS - 1, 2, 50, 0)],
            vec![data(at, 2, 50, 0), data(at + 1, 2, 50, 0)],
            vec![data(at, 0, 50, 0)],
            vec![data(at, 1, 50, 128)],
            vec![data(at, 129, 50, 0)],
            vec![data(at, 1, u32::MAX - 99, 0)],
        ] {
            assert!(encode_page(page, &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_page_of_another_place_keeps_its_order_but_not_its_blocks() {
        let bytes = encode_page(PageIndex(1), &[data(PAGE_BLOCKS + 5, 1, 50, 0)]).unwrap();
        assert_eq!(decode_page(PageIndex(2), &bytes).unwrap()[0].extent.start, BlockIndex(2 * PAGE_BLOCKS + 5));
        assert!(decode_page(PageIndex(PAGES_MAX - 1), &bytes).is_ok());
        assert!(
            decode_page(PageIndex(PAGES_MAX), &bytes).is_err() && decode_page(PageIndex(u64::MAX), &bytes).is_err()
        );
        assert!(encode_page(PageIndex(PAGES_MAX), &[]).is_err());
    }

    #[test]
    fn a_page_that_claims_more_than_it_can_have_is_refused_before_memory_is_taken_for_it() {
        // Decompressed, a few KiB can be PAGE_BYTES_MAX, and an extent in memory is larger than the fewest bytes that it takes there.
        let decode = |counts: &[u64]| {
            let mut w = Writer::new();
            counts.iter().for_each(|count| w.varint(*count));
            w.bytes(&vec![0; PAGE_BYTES_MAX as usize / 2]);
            decode_page(PageIndex(1), &w.finish()).map_err(|e| e.what)
        };
        assert_eq!(decode(&[0, PAGE_BLOCKS + 1]), Err("more extents than a page has blocks"));
        assert_eq!(decode(&[PAGE_BLOCKS + 1]), Err("more segments than a page has blocks"));
        assert_eq!(decode(&[0, PAGE_BLOCKS]), Err("bytes follow where it should end"));
    }

    #[test]
    fn sequential_data_costs_eight_bytes_an_extent_and_random_blocks_eleven() {
        let page = |step: u32, blocks: u64| -> Vec<Entry> {
            let extent = |i| data(i * blocks, blocks, (48 + i as u32 * 100).wrapping_mul(step) % 8_000_000, 0);
            (0..PAGE_BLOCKS / blocks).map(extent).collect()
        };
        let cost = |mapped: &[Entry]| encode_page(PageIndex(0), mapped).unwrap().len() as f64 / mapped.len() as f64;
        assert!(cost(&page(1, 16)) <= 8.0);
        assert!(cost(&page(2_654_435_761, 1)) <= 11.0);
    }

    #[test]
    fn the_worst_page_stays_below_the_bound() {
        let worst = |i: u64| {
            let offset = if i.is_multiple_of(2) { 0 } else { u32::MAX - 70_000 };
            let frame = FrameAddr { seq: Seq(i << 49), offset, len: 65_556 };
            Entry { extent: Extent::new(i, 1), placement: Placement::Data(Location { frame, block: 127 }), owes: false }
        };
        let mapped: Vec<Entry> = (0..PAGE_BLOCKS).map(worst).collect();
        let bytes = encode_page(PageIndex(0), &mapped).unwrap().len();
        assert!(bytes < PAGE_BYTES_MAX as usize / 4, "{bytes} bytes");
    }
}
