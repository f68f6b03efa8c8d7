//! Roots of the formats before the layers: the map was cut into fixed pages, each in one place. They are read as one last run, and
//! written no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{CheckpointInfo, Root, advance, read_list, read_segments};
use crate::codec::cursor::{Malformed, Reader};
use crate::codec::object::{Decoded, PREFIX_BYTES};
use crate::map::fixed::PAGES_MAX;
use crate::map::{PAGE_BLOCKS, PageIndex, PageKind, PageRef, Run};
use crate::units::{BlockIndex, Extent, Seq};

/// A page of some KiB has about so many entries for each of its bytes: one for 9.
const BYTES_PER_ENTRY: u64 = 9;

/// What follows the fence.
pub(super) fn read(r: &mut Reader<'_>, root: Root, decoded: &Decoded) -> Result<Root, Malformed> {
    let zeroed = read_zeroed(r)?;
    let segments = read_segments(r)?;
    let mut checkpoints = read_checkpoints(r)?;
    if checkpoints.last().is_some_and(|(last, _)| *last >= root.seq) {
        return Err(r.bad("it names a checkpoint after itself"));
    }
    let mut pages = read_pages(r, root.seq, &checkpoints)?;
    let has_page = |zero: &Extent| {
        let next = pages.get(pages.partition_point(|(page, _)| page.extent().start < zero.start));
        next.is_some_and(|(page, _)| zero.contains(page.extent().start))
    };
    if zeroed.iter().any(has_page) {
        return Err(r.bad("a page is zeroed and mapped"));
    }
    let own: Vec<u32> =
        place_own(&mut pages, root.seq, decoded.frames_at).ok_or_else(|| r.bad("pages beyond 4 GiB"))?;
    if !own.is_empty() {
        checkpoints.push((root.seq, CheckpointInfo { salt: decoded.salt, frames_at: 0 }));
    }
    let needed: BTreeMap<Seq, u64> = pages.iter().fold(BTreeMap::new(), |mut sums, (_, at)| {
        *sums.entry(at.checkpoint).or_default() += u64::from(at.len);
        sums
    });
    checkpoints.retain(|(seq, _)| needed.contains_key(seq));
    let entries = needed.values().sum::<u64>() / BYTES_PER_ENTRY;
    let pages: Vec<(BlockIndex, PageRef)> = pages.into_iter().map(|(page, at)| (page.extent().start, at)).collect();
    let run = Run {
        through: root.seq,
        is_last: true,
        kind: PageKind::Fixed,
        pages: Arc::new(pages),
        entries,
        objects: needed,
        ..Run::empty()
    };
    let runs = vec![run];
    Ok(Root { zeroed, segments, checkpoints, runs, own, ..root })
}

/// Gives the pages of the root's own object their offsets; returns their lengths.
fn place_own(pages: &mut [(PageIndex, PageRef)], own: Seq, frames_at: u32) -> Option<Vec<u32>> {
    let (mut offset, mut lens) = (frames_at, Vec::new());
    for (_, at) in pages.iter_mut().filter(|(_, at)| at.checkpoint == own) {
        at.offset = offset;
        offset = offset.checked_add(at.len)?;
        lens.push(at.len);
    }
    Some(lens)
}

fn read_zeroed(r: &mut Reader<'_>) -> Result<Vec<Extent>, Malformed> {
    let mut end = 0;
    read_list(r, 2, |r| {
        let gap = r.varint()?;
        let first = advance(r, end, gap)?;
        let count = r.varint()?;
        end = advance(r, first, count)?;
        if count == 0 || end > PAGES_MAX {
            return Err(r.bad("its zeroed pages are out of order, or beyond the end of any volume"));
        }
        Ok(Extent::new(first * PAGE_BLOCKS, count * PAGE_BLOCKS))
    })
}

fn read_checkpoints(r: &mut Reader<'_>) -> Result<Vec<(Seq, CheckpointInfo)>, Malformed> {
    let mut last = 0;
    read_list(r, 18, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        let info = CheckpointInfo { salt: r.array()?, frames_at: 0 };
        r.varint()?; // bytes of all its pages
        Ok((Seq(last), info))
    })
}

/// Of each page: the gap to the one before; 0 for this object, or 1 and more for an older one and the distance from
/// the end of the page of that object that was named last; the length.
fn read_pages(
    r: &mut Reader<'_>,
    own: Seq,
    older: &[(Seq, CheckpointInfo)],
) -> Result<Vec<(PageIndex, PageRef)>, Malformed> {
    let mut next = 0;
    let mut ends = vec![0i64; older.len()];
    read_list(r, 3, |r| {
        let gap = r.varint()?;
        let page = advance(r, next, gap)?;
        if page >= PAGES_MAX {
            return Err(r.bad("a page is beyond the end of any volume"));
        }
        next = advance(r, page, 1)?;
        let Some(i) = (r.varint()? as usize).checked_sub(1) else {
            return Ok((PageIndex(page), PageRef { checkpoint: own, offset: 0, len: r.varint_u32()? }));
        };
        let (Some((checkpoint, _)), Some(end)) = (older.get(i), ends.get_mut(i)) else {
            return Err(r.bad("a checkpoint that is not listed"));
        };
        let distance = r.varint_signed()?;
        let offset = end.checked_add(distance).and_then(|offset| u32::try_from(offset).ok());
        let offset = offset.filter(|offset| *offset as usize >= PREFIX_BYTES);
        let offset = offset.ok_or_else(|| r.bad("a page at an offset that cannot be"))?;
        let len = r.varint_u32()?;
        *end = i64::from(offset) + i64::from(len);
        Ok((PageIndex(page), PageRef { checkpoint: *checkpoint, offset, len }))
    })
}
