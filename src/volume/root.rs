//! Checkpoints: the extent map as of a place in the log, in one object. The root stands in the object's head and finds
//! every page of the map, the live blocks of every segment, and the newest fence; behind it stand the pages that
//! changed since the checkpoint before, as frames. Pages that did not change stay in the objects of older checkpoints,
//! which live as long as a page in them is referred to.
//!
//! The root is written before the offsets of its own pages are known: it records their lengths, and readers sum up.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{Compression, FRAME_OVERHEAD, Frames, decompress_up_to};
use crate::codec::object::{Decoded, Encoded, Found, ObjectKind, PREFIX_BYTES, decode_head, encode};
use crate::codec::seal::{Salt, Sealer};
use crate::codec::{CorruptError, EncodeError, expect_len};
use crate::map::page_format::{PAGE_BYTES_MAX, PAGES_MAX, decode_page, encode_page};
use crate::map::{Mapped, PageIndex, PageRef, SegmentInfo};
use crate::segment::Fence;
use crate::segment::fence::WINDOW_MAX;
use crate::units::{ChangeNo, Seq};
use crate::volume::account::Account;

/// What a checkpoint says, but for the content of the pages. All lists are sorted by their first member, without
/// doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The last log object whose effect is in it; also its place among the checkpoints.
    pub seq: Seq,
    /// The last change that the log contains up to there.
    pub covers: ChangeNo,
    /// Where the next log object will be: after `seq`, or where the newest fence says that its epoch continues.
    pub next_slot: Seq,
    /// The newest fence, and where it stands.
    pub fence: Option<(Seq, Fence)>,
    /// Runs of whole pages that are allocated zero (first page, number of pages); not listed in `pages`.
    pub zeroed: Vec<(PageIndex, u64)>,
    /// Segments that are in the store.
    pub segments: Vec<(Seq, SegmentInfo)>,
    /// Checkpoint objects, this one too, that hold a page of `pages`.
    pub checkpoints: Vec<(Seq, CheckpointInfo)>,
    /// Where the pages are. A page that is neither here nor in `zeroed` is a hole.
    pub pages: Vec<(PageIndex, PageRef)>,
    /// What the volume has cost since it was created.
    pub account: Account,
}

/// What is known of a checkpoint object that holds pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// The salt of its encoding: pages cannot be opened without it.
    pub salt: Salt,
    /// Sealed bytes of all the pages that it was written with, referred to or not.
    pub page_bytes: u64,
}

/// A checkpoint ready for the store.
#[derive(Clone, Debug)]
pub struct EncodedCheckpoint {
    /// The object.
    pub object: Encoded,
    /// Where the changed pages will be, in the order of pages; none for those that became empty.
    pub refs: Vec<(PageIndex, PageRef)>,
    /// The root, equal to what a reader of the object gets.
    pub root: Root,
}

/// Makes a checkpoint: `root` with the pages as they were, `changed` with the pages that take their place, sorted. A
/// changed page without extents leaves the root. Checkpoints to which no page refers any more leave it too.
pub fn encode_checkpoint(
    sealer: &Sealer,
    salt: Salt,
    root: Root,
    changed: &[(PageIndex, Vec<Mapped>)],
) -> Result<EncodedCheckpoint, EncodeError> {
    let refuse = |what| EncodeError::new(format!("checkpoint {}: {what}", root.seq));
    if root.pages.iter().any(|(_, at)| at.checkpoint >= root.seq) {
        return Err(refuse("a page is in a checkpoint that is not before it"));
    }
    // Frames stand in the order of pages: readers count on it when they sum up.
    if !changed.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(refuse("its changed pages are out of order"));
    }
    let raw_bytes = changed.iter().map(|(_, mapped)| mapped.len() * 12).sum();
    let mut frames = Frames::with_capacity(changed.len(), raw_bytes, Compression::Lz4);
    let mut own = Vec::with_capacity(changed.len());
    for (page, mapped) in changed {
        if !mapped.is_empty() {
            own.push((*page, frames.push(&[&encode_page(*page, mapped)?])?));
        }
    }
    let root = with_pages(root, salt, changed, &own);
    check(&root).map_err(|what| EncodeError::new(format!("checkpoint {}: {what}", root.seq)))?;
    let head = encode_root(&root);
    let object = encode(sealer, ObjectKind::Checkpoint, root.seq, salt, &head, frames)?;
    let root = place_own_pages(root, object.frames_at).map_err(EncodeError::new)?;
    let refs = root.pages.iter().filter(|(_, at)| at.checkpoint == root.seq).copied().collect();
    Ok(EncodedCheckpoint { object, refs, root })
}

/// The root with the changed pages in it, its own ones at offset 0 still, and with the checkpoints that are needed.
fn with_pages(mut root: Root, salt: Salt, changed: &[(PageIndex, Vec<Mapped>)], own: &[(PageIndex, u32)]) -> Root {
    let mut pages: BTreeMap<PageIndex, PageRef> = root.pages.into_iter().collect();
    for (page, _) in changed {
        pages.remove(page);
    }
    for &(page, len) in own {
        pages.insert(page, PageRef { checkpoint: root.seq, offset: 0, len });
    }
    let needed: BTreeSet<Seq> = pages.values().map(|at| at.checkpoint).collect();
    root.pages = pages.into_iter().collect();
    root.checkpoints.retain(|(seq, _)| needed.contains(seq));
    if !own.is_empty() {
        let page_bytes = own.iter().map(|(_, len)| u64::from(*len)).sum();
        root.checkpoints.push((root.seq, CheckpointInfo { salt, page_bytes }));
    }
    root
}

/// Gives the pages of the root's own object their offsets.
fn place_own_pages(mut root: Root, frames_at: u32) -> Result<Root, &'static str> {
    let mut offset = frames_at;
    for (_, at) in root.pages.iter_mut().filter(|(_, at)| at.checkpoint == root.seq) {
        at.offset = offset;
        offset = offset.checked_add(at.len).ok_or("pages beyond 4 GiB")?;
    }
    Ok(root)
}

/// Proves and decodes the root of the checkpoint at `seq`. `bytes` is the object or its beginning; the pages need not
/// be there.
pub fn decode_checkpoint(sealer: &Sealer, seq: Seq, bytes: &Bytes) -> Result<Found<Root>, CorruptError> {
    decode_head(sealer, &[ObjectKind::Checkpoint], seq, bytes)?.and_then(|decoded| Ok(decode_root(seq, &decoded)?))
}

/// [`decode_checkpoint`], and how many bytes the object has when it is whole.
pub fn decode_checkpoint_and_total(
    sealer: &Sealer,
    seq: Seq,
    bytes: &Bytes,
) -> Result<Found<(Root, u64)>, CorruptError> {
    decode_head(sealer, &[ObjectKind::Checkpoint], seq, bytes)?.and_then(|decoded| {
        let root = decode_root(seq, &decoded)?;
        let total = total_of(&root, &decoded);
        Ok((root, total))
    })
}

fn total_of(root: &Root, decoded: &Decoded) -> u64 {
    let own = root.pages.iter().filter(|(_, at)| at.checkpoint == root.seq);
    own.map(|(_, at)| u64::from(at.len)).sum::<u64>() + u64::from(decoded.frames_at)
}

/// Proves a whole checkpoint object, every page of it, and that nothing follows.
pub fn verify_checkpoint(sealer: &Sealer, seq: Seq, bytes: &Bytes) -> Result<Root, CorruptError> {
    let decoded = decode_head(sealer, &[ObjectKind::Checkpoint], seq, bytes)?.whole(bytes.len())?;
    let root = decode_root(seq, &decoded)?;
    let own = || root.pages.iter().filter(|(_, at)| at.checkpoint == seq);
    expect_len(bytes.len(), total_of(&root, &decoded))?;
    for (page, at) in own() {
        let sealed = bytes.slice(at.offset as usize..(at.offset + at.len) as usize);
        open_page(sealer, &decoded.salt, *page, *at, &sealed)?;
    }
    Ok(root)
}

/// Opens the page that was read from where `at` says, in a checkpoint whose encoding had `salt`.
pub fn open_page(
    sealer: &Sealer,
    salt: &Salt,
    page: PageIndex,
    at: PageRef,
    sealed: &Bytes,
) -> Result<Vec<Mapped>, CorruptError> {
    expect_len(sealed.len(), u64::from(at.len))?;
    let key = sealer.object_key(ObjectKind::Checkpoint, at.checkpoint, salt)?;
    let bytes = decompress_up_to(&key.open_frame(at.offset, sealed)?, PAGE_BYTES_MAX)?;
    Ok(decode_page(page, &bytes)?)
}

/// What a root must be, for its writer and its reader alike.
fn check(root: &Root) -> Result<(), &'static str> {
    let ensure = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
    ensure(root.next_slot > root.seq, "its next slot is not after it")?;
    ensure(root.next_slot.0 - root.seq.0 <= u64::from(WINDOW_MAX), "its next slot is beyond any window")?;
    let fence_fits = |(at, fence): &(Seq, Fence)| *at <= root.seq && fence.can_stand_at(*at);
    ensure(root.fence.as_ref().is_none_or(fence_fits), "its fence stands where it cannot")?;
    ensure(root.segments.is_sorted_by(|a, b| a.0 < b.0), "its segments are out of order")?;
    ensure(root.segments.iter().all(|(_, info)| info.live_blocks <= info.blocks), "a segment lives more than it has")?;
    // Between `seq` and `next_slot` lie the void slots of a fence that nothing has followed yet: strays to be swept.
    ensure(
        root.segments.last().is_none_or(|(last, _)| *last < root.next_slot),
        "it names a segment beyond its next slot",
    )?;
    ensure(root.checkpoints.is_sorted_by(|a, b| a.0 < b.0), "its checkpoints are out of order")?;
    ensure(root.checkpoints.last().is_none_or(|(last, _)| *last <= root.seq), "it names a checkpoint after itself")?;
    ensure(root.pages.is_sorted_by(|a, b| a.0 < b.0), "its pages are out of order")?;
    ensure(root.pages.last().is_none_or(|(last, _)| last.0 < PAGES_MAX), "a page is beyond the end of any volume")?;
    ensure(zeroed_is_sorted(root), "its zeroed pages are out of order, or beyond the end of any volume")?;
    let is_page = |(first, count): &(PageIndex, u64)| {
        let after = root.pages.partition_point(|(page, _)| page < first);
        root.pages.get(after).is_some_and(|(page, _)| page.0 - first.0 < *count)
    };
    ensure(!root.zeroed.iter().any(is_page), "a page is zeroed and mapped")?;
    let known = |at: &PageRef| root.checkpoints.binary_search_by_key(&at.checkpoint, |(seq, _)| *seq).is_ok();
    ensure(root.pages.iter().all(|(_, at)| known(at)), "a page is in a checkpoint that is not listed")?;
    let lens = FRAME_OVERHEAD as u32 + 1..=PAGE_BYTES_MAX + FRAME_OVERHEAD as u32;
    ensure(root.pages.iter().all(|(_, at)| lens.contains(&at.len)), "a page has a length that cannot be")
}

fn zeroed_is_sorted(root: &Root) -> bool {
    let mut end = 0u64;
    root.zeroed.iter().all(|(first, count)| {
        let good = first.0 >= end && *count > 0 && first.0 < PAGES_MAX && *count <= PAGES_MAX - first.0;
        end = first.0.saturating_add(*count);
        good
    })
}

const FENCED: u8 = 1;
const COUNTED: u8 = 2;

fn encode_root(root: &Root) -> Vec<u8> {
    let room = root.zeroed.len() * 6 + root.segments.len() * 28 + root.checkpoints.len() * 24 + root.pages.len() * 9;
    let mut w = Writer::with_capacity(512 + room);
    let is_counted = root.account != Account::default();
    w.u8(if root.fence.is_some() { FENCED } else { 0 } | if is_counted { COUNTED } else { 0 });
    w.varint(root.covers.0);
    w.varint(root.next_slot.0 - root.seq.0);
    if let Some((seq, fence)) = &root.fence {
        w.varint(seq.0);
        fence.write(&mut w);
    }
    write_zeroed(&mut w, &root.zeroed);
    write_segments(&mut w, &root.segments);
    let older: Vec<_> = root.checkpoints.iter().filter(|(seq, _)| *seq != root.seq).copied().collect();
    write_checkpoints(&mut w, &older);
    write_pages(&mut w, root, &older);
    if is_counted {
        root.account.write(&mut w);
    }
    w.finish()
}

fn decode_root(seq: Seq, decoded: &Decoded) -> Result<Root, Malformed> {
    let mut r = Reader::new(&decoded.head);
    let flags = r.u8()?;
    if flags & !(FENCED | COUNTED) != 0 {
        return Err(r.bad("flags that are unknown"));
    }
    let covers = ChangeNo(r.ordinal()?);
    let slots = r.varint()?;
    let next_slot = Seq(advance(&r, seq.0, slots)?);
    let fence = if flags & FENCED == 0 { None } else { Some((Seq(r.ordinal()?), Fence::read(&mut r)?)) };
    let zeroed = read_zeroed(&mut r)?;
    let segments = read_segments(&mut r)?;
    let mut checkpoints = read_checkpoints(&mut r)?;
    if checkpoints.last().is_some_and(|(last, _)| *last >= seq) {
        return Err(r.bad("it names a checkpoint after itself"));
    }
    let pages = read_pages(&mut r, seq, &checkpoints)?;
    let own = pages.iter().filter(|(_, at)| at.checkpoint == seq);
    let page_bytes = own.map(|(_, at)| u64::from(at.len)).sum();
    if page_bytes > 0 {
        checkpoints.push((seq, CheckpointInfo { salt: decoded.salt, page_bytes }));
    }
    let account = if flags & COUNTED == 0 { Account::default() } else { Account::read(&mut r)? };
    let root = Root { seq, covers, next_slot, fence, zeroed, segments, checkpoints, pages, account };
    let end = r.clone();
    r.finish()?;
    check(&root).map_err(|what| end.bad(what))?;
    place_own_pages(root, decoded.frames_at).map_err(|what| end.bad(what))
}

/// `at` and `gap` further.
fn advance(r: &Reader<'_>, at: u64, gap: u64) -> Result<u64, Malformed> {
    at.checked_add(gap).ok_or_else(|| r.bad("a number beyond 64 bits"))
}

fn write_zeroed(w: &mut Writer, zeroed: &[(PageIndex, u64)]) {
    w.varint(zeroed.len() as u64);
    let mut end = 0;
    for (first, count) in zeroed {
        w.varint(first.0 - end);
        w.varint(*count);
        end = first.0 + count;
    }
}

fn read_zeroed(r: &mut Reader<'_>) -> Result<Vec<(PageIndex, u64)>, Malformed> {
    let mut end = 0;
    read_list(r, 2, |r| {
        let gap = r.varint()?;
        let first = advance(r, end, gap)?;
        let count = r.varint()?;
        end = advance(r, first, count)?;
        Ok((PageIndex(first), count))
    })
}

fn write_segments(w: &mut Writer, segments: &[(Seq, SegmentInfo)]) {
    w.varint(segments.len() as u64);
    let mut last = 0;
    for (seq, info) in segments {
        w.varint(seq.0 - last);
        w.bytes(&info.salt);
        w.varint(info.stored_bytes);
        w.varint(u64::from(info.blocks));
        w.varint(u64::from(info.live_blocks));
        last = seq.0;
    }
}

fn read_segments(r: &mut Reader<'_>) -> Result<Vec<(Seq, SegmentInfo)>, Malformed> {
    let mut last = 0;
    read_list(r, 20, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        let info = SegmentInfo {
            salt: r.array()?,
            stored_bytes: r.varint()?,
            blocks: r.varint_u32()?,
            live_blocks: r.varint_u32()?,
        };
        Ok((Seq(last), info))
    })
}

fn write_checkpoints(w: &mut Writer, older: &[(Seq, CheckpointInfo)]) {
    w.varint(older.len() as u64);
    let mut last = 0;
    for (seq, info) in older {
        w.varint(seq.0 - last);
        w.bytes(&info.salt);
        w.varint(info.page_bytes);
        last = seq.0;
    }
}

fn read_checkpoints(r: &mut Reader<'_>) -> Result<Vec<(Seq, CheckpointInfo)>, Malformed> {
    let mut last = 0;
    read_list(r, 18, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok((Seq(last), CheckpointInfo { salt: r.array()?, page_bytes: r.varint()? }))
    })
}

/// Of each page: the gap to the one before; 0 for this object, or 1 and more for an older one and the distance from
/// the end of the page of that object that was named last; the length.
fn write_pages(w: &mut Writer, root: &Root, older: &[(Seq, CheckpointInfo)]) {
    w.varint(root.pages.len() as u64);
    let mut next = 0;
    let mut ends = vec![0; older.len()];
    for (page, at) in &root.pages {
        w.varint(page.0 - next);
        // `check` found every checkpoint in the list, so what is not an older one is this.
        match older.binary_search_by_key(&at.checkpoint, |(seq, _)| *seq) {
            Ok(i) => {
                w.varint(i as u64 + 1);
                w.varint_signed(i64::from(at.offset) - ends[i]);
                ends[i] = i64::from(at.offset) + i64::from(at.len);
            }
            Err(_) => w.varint(0),
        }
        w.varint(u64::from(at.len));
        next = page.0 + 1;
    }
}

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

fn read_list<T>(
    r: &mut Reader<'_>,
    item_bytes: usize,
    mut item: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = r.count(item_bytes)?;
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        list.push(item(r)?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::object::Found;
    use crate::map::{Content, PAGE_BLOCKS};
    use crate::segment::Durability;
    use crate::units::{Epoch, Extent, FrameAddr, Location, ORDINAL_MAX};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(4), None)
    }

    fn mapped(page: u64, blocks: u64) -> (PageIndex, Vec<Mapped>) {
        let frame = FrameAddr { seq: Seq(3), offset: 100, len: 200 };
        let extent = |i| Mapped {
            extent: Extent::new(page * PAGE_BLOCKS + i * 2, 1),
            content: Content::Data(Location { frame, block: i as u16 }),
        };
        (PageIndex(page), (0..blocks).map(extent).collect())
    }

    fn info(salt: u8) -> SegmentInfo {
        SegmentInfo { salt: [salt; 16], stored_bytes: 8 << 20, blocks: 2048, live_blocks: u32::from(salt) }
    }

    fn sample() -> Root {
        let fence = Fence {
            epoch: Epoch(4),
            server: Uuid::from_u128(1),
            server_name: "alpha".into(),
            time_unix_millis: 1_700_000_000_000,
            journal: Uuid::from_u128(2),
            window: 8,
            continues_at: Seq(30),
            durability: Durability::Journal,
            covers: ChangeNo(99),
            displaces: true,
        };
        Root {
            seq: Seq(20),
            covers: ChangeNo(99),
            next_slot: Seq(30),
            fence: Some((Seq(12), fence)),
            zeroed: vec![(PageIndex(50), 3), (PageIndex(53), PAGES_MAX - 53)],
            segments: vec![(Seq(3), info(1)), (Seq(19), info(2)), (Seq(20), info(0))],
            checkpoints: Vec::new(),
            pages: Vec::new(),
            account: Account { puts: 300, bytes_put: 1 << 40, bytes_moved: 7, ..Account::default() },
        }
    }

    fn make(root: Root, changed: &[(PageIndex, Vec<Mapped>)]) -> (EncodedCheckpoint, Bytes) {
        let encoded = encode_checkpoint(&sealer(), [root.seq.0 as u8; 16], root, changed).unwrap();
        let bytes = Bytes::from(encoded.object.parts.concat());
        (encoded, bytes)
    }

    fn decode(seq: u64, bytes: &Bytes) -> Result<Root, CorruptError> {
        decode_checkpoint(&sealer(), Seq(seq), bytes)?.whole(bytes.len())
    }

    fn open(root: &Root, page: PageIndex, objects: &BTreeMap<Seq, Bytes>) -> Vec<Mapped> {
        let (_, at) = root.pages[root.pages.binary_search_by_key(&page, |(page, _)| *page).unwrap()];
        let (_, info) = root.checkpoints.iter().find(|(seq, _)| *seq == at.checkpoint).unwrap();
        let sealed = objects[&at.checkpoint].slice(at.offset as usize..(at.offset + at.len) as usize);
        open_page(&sealer(), &info.salt, page, at, &sealed).unwrap()
    }

    #[test]
    fn what_is_written_is_what_the_writer_holds() {
        let (encoded, bytes) = make(sample(), &[mapped(2, 5), mapped(9, 1)]);
        assert_eq!(decode(20, &bytes).unwrap(), encoded.root);
        assert_eq!(encoded.object.total, bytes.len() as u64);
        assert_eq!(encoded.refs, encoded.root.pages);
        let places: Vec<_> = encoded.refs.iter().map(|(_, at)| (at.offset, at.len)).collect();
        assert_eq!(places, encoded.object.frames);
        let (empty, bytes) = make(Root { next_slot: Seq(1), ..Root::default() }, &[]);
        assert_eq!(decode(0, &bytes).unwrap(), empty.root);
        assert!(empty.root.checkpoints.is_empty());
    }

    #[test]
    fn pages_that_did_not_change_stay_where_they_are() {
        let (first, bytes20) = make(sample(), &[mapped(2, 5), mapped(9, 1), mapped(11, 3)]);
        let next = |root: Root, seq| Root { seq: Seq(seq), next_slot: Seq(seq + 1), ..root };
        let (second, bytes40) = make(next(first.root, 40), &[mapped(9, 7), (PageIndex(11), vec![]), mapped(12, 2)]);
        let (third, bytes50) = make(next(second.root.clone(), 50), &[]);
        let objects = BTreeMap::from([(Seq(20), bytes20), (Seq(40), bytes40), (Seq(50), bytes50)]);
        for (seq, root) in [(40, second.root), (50, third.root)] {
            assert_eq!(decode(seq, &objects[&Seq(seq)]).unwrap(), root);
            let places: Vec<_> = root.pages.iter().map(|(page, at)| (page.0, at.checkpoint.0)).collect();
            assert_eq!(places, [(2, 20), (9, 40), (12, 40)]);
            for (page, blocks) in [(2, 5), (9, 7), (12, 2)] {
                assert_eq!(open(&root, PageIndex(page), &objects), mapped(page, blocks).1);
            }
            assert_eq!(root.checkpoints.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [20, 40]);
        }
    }

    #[test]
    fn a_checkpoint_to_which_no_page_refers_leaves_the_root() {
        let (first, _) = make(sample(), &[mapped(2, 5)]);
        let (second, bytes) = make(Root { seq: Seq(40), next_slot: Seq(41), ..first.root }, &[mapped(2, 6)]);
        assert_eq!(second.root.checkpoints.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [40]);
        assert_eq!(decode(40, &bytes).unwrap(), second.root);
    }

    #[test]
    fn a_page_opens_only_where_it_belongs() {
        let (encoded, bytes) = make(sample(), &[mapped(2, 5), mapped(9, 5)]);
        let (page, at) = encoded.refs[0];
        let sealed = bytes.slice(at.offset as usize..(at.offset + at.len) as usize);
        let open = |salt: u8, at: PageRef, sealed: &Bytes| open_page(&sealer(), &[salt; 16], page, at, sealed);
        assert_eq!(open(20, at, &sealed), Ok(mapped(2, 5).1));
        assert_eq!(open(21, at, &sealed), Err(CorruptError::TagMismatch));
        assert_eq!(open(20, PageRef { checkpoint: Seq(21), ..at }, &sealed), Err(CorruptError::TagMismatch));
        assert_eq!(open(20, PageRef { offset: at.offset + 1, ..at }, &sealed), Err(CorruptError::TagMismatch));
        assert!(matches!(open(20, at, &sealed.slice(1..)), Err(CorruptError::Truncated { .. })));
        let longer = PageRef { len: at.len - 1, ..at };
        assert!(matches!(open(20, longer, &sealed), Err(CorruptError::Overlong { .. })));
    }

    #[test]
    fn a_root_that_contradicts_itself_is_not_written() {
        let page_at = |seq, len| (PageIndex(1), PageRef { checkpoint: Seq(seq), offset: 48, len });
        let known = vec![(Seq(5), CheckpointInfo { salt: [0; 16], page_bytes: 1 })];
        let with = |change: &dyn Fn(&mut Root)| {
            let mut root = sample();
            change(&mut root);
            encode_checkpoint(&sealer(), [0; 16], root, &[mapped(60, 1)]).map(|_| ()).map_err(|e| e.to_string())
        };
        let says = |what: &str| Err(format!("cannot be encoded: checkpoint 20: {what}"));
        assert_eq!(with(&|root| root.zeroed.clear()), Ok(()));
        assert_eq!(with(&|_| ()), says("a page is zeroed and mapped"));
        let refused = |what, change: &dyn Fn(&mut Root)| {
            let both = |root: &mut Root| {
                root.zeroed.clear();
                change(root);
            };
            assert_eq!(with(&both), says(what));
        };
        refused("its next slot is not after it", &|root| root.next_slot = Seq(20));
        refused("its next slot is beyond any window", &|root| root.next_slot = Seq(20 + 1025));
        let continues = |root: &mut Root, at| root.fence.iter_mut().for_each(|(_, fence)| fence.continues_at = Seq(at));
        refused("its fence stands where it cannot", &|root| continues(root, 12));
        refused("its fence stands where it cannot", &|root| continues(root, 12 + 1025));
        refused("its segments are out of order", &|root| root.segments.swap(0, 1));
        refused("a segment lives more than it has", &|root| root.segments[1].1.live_blocks = 2049);
        refused("it names a segment beyond its next slot", &|root| root.segments[2].0 = Seq(30));
        refused("a page is in a checkpoint that is not listed", &|root| root.pages = vec![page_at(5, 100)]);
        refused("a page has a length that cannot be", &|root| {
            root.pages = vec![page_at(5, 20)];
            root.checkpoints = known.clone();
        });
        refused("a page is in a checkpoint that is not before it", &|root| root.pages = vec![page_at(20, 100)]);
        let zeroed = "its zeroed pages are out of order, or beyond the end of any volume";
        refused(zeroed, &|root| root.zeroed = vec![(PageIndex(3), 2), (PageIndex(4), 1)]);
        refused(zeroed, &|root| root.zeroed = vec![(PageIndex(3), 0)]);
        refused(zeroed, &|root| root.zeroed = vec![(PageIndex(3), u64::MAX)]);
    }

    #[test]
    fn changed_pages_out_of_order_are_refused() {
        let unsorted = [mapped(9, 1), mapped(2, 5)];
        let error = encode_checkpoint(&sealer(), [0; 16], sample(), &unsorted).unwrap_err();
        assert_eq!(error.to_string(), "cannot be encoded: checkpoint 20: its changed pages are out of order");
        assert!(encode_checkpoint(&sealer(), [0; 16], sample(), &[mapped(2, 1), mapped(2, 1)]).is_err());
    }

    fn roots() -> impl Strategy<Value = Root> {
        let segments = prop::collection::btree_map(0u64..1 << 30, (any::<[u8; 16]>(), any::<[u32; 3]>()), 0..20);
        let pages = prop::collection::btree_map(0u64..1000, (0u64..6, 48u32..=u32::MAX, 21u32..4_000_000), 0..40);
        let zeroed = prop::collection::btree_map(1000u64..2000, 1u64..100, 0..5);
        (segments, pages, zeroed, any::<bool>(), any::<[u64; 2]>()).prop_map(|(segments, pages, zeroed, plain, n)| {
            let segment = |(seq, (salt, [stored, a, b])): (u64, ([u8; 16], [u32; 3]))| {
                let info =
                    SegmentInfo { salt, stored_bytes: u64::from(stored), blocks: a.max(b), live_blocks: a.min(b) };
                (Seq(seq), info)
            };
            let page = |(page, (seq, offset, len))| (PageIndex(page), PageRef { checkpoint: Seq(seq), offset, len });
            let mut runs: Vec<(PageIndex, u64)> = Vec::new();
            for (first, count) in zeroed {
                if runs.last().is_none_or(|(last, count)| last.0 + count <= first) {
                    runs.push((PageIndex(first), count));
                }
            }
            let checkpoint = |seq| (Seq(seq), CheckpointInfo { salt: [seq as u8; 16], page_bytes: n[0] });
            Root {
                seq: Seq(1 << 30),
                covers: ChangeNo(n[1] % ORDINAL_MAX),
                next_slot: Seq((1 << 30) + 1 + n[0] % u64::from(WINDOW_MAX)),
                fence: if plain { None } else { sample().fence },
                zeroed: runs,
                segments: segments.into_iter().map(segment).collect(),
                checkpoints: (0..6).map(checkpoint).collect(),
                pages: pages.into_iter().map(page).collect(),
                account: if plain { Account::default() } else { Account { gets: n[0], ..Account::default() } },
            }
        })
    }

    proptest! {
        #[test]
        fn a_root_comes_back(root in roots(), changed in prop::collection::btree_map(0u64..1000, 0u64..30, 0..6)) {
            let changed: Vec<_> = changed.into_iter().map(|(page, blocks)| mapped(page, blocks)).collect();
            let (encoded, bytes) = make(root, &changed);
            prop_assert_eq!(decode(1 << 30, &bytes).unwrap(), encoded.root.clone());
            for (page, extents) in changed.iter().filter(|(_, extents)| !extents.is_empty()) {
                let objects = BTreeMap::from([(Seq(1 << 30), bytes.clone())]);
                prop_assert_eq!(&open(&encoded.root, *page, &objects), extents);
            }
        }

        #[test]
        fn a_harmed_root_with_a_good_tag_is_refused_or_consistent(root in roots(), at: prop::sample::Index, flip in 1u8..) {
            let (encoded, _) = make(root, &[mapped(3, 2)]);
            let mut head = encoded.object.parts[0][PREFIX_BYTES..].to_vec();
            let at = at.index(head.len());
            head[at] ^= flip;
            let frames = Frames::with_capacity(0, 0, Compression::None);
            let object = encode(&sealer(), ObjectKind::Checkpoint, Seq(1 << 30), [0; 16], &head, frames).unwrap();
            match decode_checkpoint(&sealer(), Seq(1 << 30), &object.parts[0]) {
                Ok(Found::Whole(root)) => prop_assert_eq!(check(&root), Ok(())),
                Ok(Found::NeedMore { .. }) => prop_assert!(false, "the head was there"),
                Err(e) => prop_assert!(matches!(e, CorruptError::Malformed(_)), "{e}"),
            }
        }
    }
}
