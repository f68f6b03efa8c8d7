//! A page of the extent map as bytes: the mapped extents of [`PAGE_BLOCKS`] blocks.
//!
//! First a table of the segments that the page refers to, then the extents in the order of blocks. A frame's offset is written as
//! the distance from the end of the frame of the same segment that was named last, so that what was written in one go costs one
//! byte there: about 8 bytes for an extent of sequential data, 11 for a random block.

use super::{Content, Mapped, PAGE_BLOCKS, PageIndex};
use crate::codec::EncodeError;
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::units::{BlockCount, BlockIndex, BlockSize, Extent, FRAME_BYTES_MAX, FrameAddr, Location, Seq};

/// The most bytes that an encoded page can have; [`encode_page`] of the worst page stays far below.
pub const PAGE_BYTES_MAX: u32 = 4 << 20;

// The two low bits of an extent's first varint; 3 is free.
const ZERO: u64 = 0;
/// Data that begins at the first block of its frame.
const DATA: u64 = 1;
/// Data that begins further on.
const DATA_WITHIN: u64 = 2;

/// The most blocks that a frame can have: 64 KiB of the smallest.
const FRAME_BLOCKS_MAX: u64 = (FRAME_BYTES_MAX / BlockSize::MIN) as u64;

/// The fewest bytes that an extent, or a segment of the table, takes.
const EXTENT_BYTES_MIN: usize = 2;
const SEGMENT_BYTES_MIN: usize = 1;

impl PageIndex {
    /// The page that owns `block`.
    pub fn of(block: BlockIndex) -> PageIndex {
        PageIndex(block.0 / PAGE_BLOCKS)
    }

    /// The blocks that it owns.
    pub fn extent(self) -> Extent {
        Extent::new(self.0 * PAGE_BLOCKS, PAGE_BLOCKS)
    }
}

/// The bytes of `page`; `mapped` is sorted by block, not overlapping, inside the page, none empty.
pub fn encode_page(page: PageIndex, mapped: &[Mapped]) -> Result<Vec<u8>, EncodeError> {
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
        match m.content {
            Content::Zero => {
                w.varint(gap | ZERO);
                w.varint(m.extent.count.0 - 1);
            }
            Content::Data(Location { frame, block }) => {
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

fn segments_of(mapped: &[Mapped]) -> Vec<Seq> {
    let seq = |m: &Mapped| match m.content {
        Content::Data(location) => Some(location.frame.seq),
        Content::Zero => None,
    };
    let mut segments: Vec<Seq> = mapped.iter().filter_map(seq).collect();
    segments.sort_unstable();
    segments.dedup();
    segments
}

/// Whether an extent can be one of `page`. Encoding and decoding ask the same.
fn fits(page: PageIndex, m: &Mapped) -> bool {
    let Extent { start, count } = page.extent();
    let Extent { start: first, count: blocks } = m.extent;
    let inside = first >= start && (first - start) < count && blocks.0 >= 1 && blocks.0 <= count.0 - (first - start).0;
    match m.content {
        Content::Zero => inside,
        Content::Data(Location { frame, block }) => {
            inside && u64::from(block) + blocks.0 <= FRAME_BLOCKS_MAX && frame.offset.checked_add(frame.len).is_some()
        }
    }
}

/// The mapped extents of `page` from its bytes; sorted by block, not overlapping, inside the page.
pub fn decode_page(page: PageIndex, bytes: &[u8]) -> Result<Vec<Mapped>, Malformed> {
    let mut r = Reader::new(bytes);
    let segments = decode_segments(&mut r)?;
    let count = r.count(EXTENT_BYTES_MIN)?;
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
    let mut segments = Vec::with_capacity(count);
    let mut last = 0u64;
    for i in 0..count {
        let gap = r.varint()?;
        last = last.checked_add(gap).filter(|_| gap > 0 || i == 0).ok_or_else(|| r.bad("a segment out of order"))?;
        segments.push(Seq(last));
    }
    Ok(segments)
}

fn decode_extent(r: &mut Reader<'_>, end: BlockIndex, segments: &[Seq], ends: &mut [i64]) -> Result<Mapped, Malformed> {
    let first = r.varint()?;
    let count_less_one = r.varint_up_to(PAGE_BLOCKS - 1)?;
    // The gap is at most 2^62 and the page's start below 2^63, as `fits` then judges.
    let start = BlockIndex(end.0.checked_add(first >> 2).ok_or_else(|| r.bad("an extent outside its page or frame"))?);
    let extent = Extent { start, count: BlockCount(count_less_one + 1) };
    let content = match first & 3 {
        ZERO => Content::Zero,
        kind @ (DATA | DATA_WITHIN) => Content::Data(decode_location(r, kind, segments, ends)?),
        _ => return Err(r.bad("an extent of unknown kind")),
    };
    Ok(Mapped { extent, content })
}

fn decode_location(r: &mut Reader<'_>, kind: u64, segments: &[Seq], ends: &mut [i64]) -> Result<Location, Malformed> {
    let i = r.varint()? as usize;
    let (Some(&seq), Some(end)) = (segments.get(i), ends.get_mut(i)) else {
        return Err(r.bad("a segment that is not in the page's table"));
    };
    let distance = r.varint_signed()?;
    let offset = end.checked_add(distance).and_then(|offset| u32::try_from(offset).ok());
    let offset = offset.ok_or_else(|| r.bad("a frame beyond 4 GiB"))?;
    let len = r.varint_u32()?;
    *end = i64::from(offset) + i64::from(len);
    let block = match kind {
        DATA => 0,
        _ => match r.varint_up_to(FRAME_BLOCKS_MAX)? {
            0 => return Err(r.bad("a position not in its shortest form")),
            block => block as u16,
        },
    };
    Ok(Location { frame: FrameAddr { seq, offset, len }, block })
}
