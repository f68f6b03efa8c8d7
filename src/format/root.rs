//! Checkpoints: the extent map and the table of segments as of a place in the log, in one object. The root stands in the object's head and
//! finds the runs of the map, the pages of the table, and the newest fence; behind it stand, as frames, the pages that this checkpoint
//! wrote. Other pages stay in the objects of older checkpoints, which live as long as a run or the table has pages in them.
//!
//! Pages name each other by their places among the frames of an object: where those begin is known only when the root is
//! written, and stands in later roots ([`CheckpointInfo::frames_at`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{FRAME_OVERHEAD, Frames, decompress_up_to};
use crate::codec::object::{
    CARRYING, CLONED, Decoded, Encoded, Found, LAYERED, ObjectKind, PAGED, REFERRING, decode_head, encode, encode_as,
};
use crate::codec::seal::{Salt, Sealer};
use crate::codec::{CorruptError, EncodeError, expect_len};
use crate::format::account::Account;
use crate::format::segment::Fence;
use crate::format::segment::fence::WINDOW_MAX;
use crate::map::leaf_format::{PAGE_BYTES_MAX, decode_index, decode_leaf, read_refs, write_refs};
use crate::map::{Leaf, MapPage, PageAt, PageIndex, PageKind, PageRef, Part, Run, SegmentInfo};
use crate::space::TableRoot;
use crate::space::directory::kept_objects;
use crate::units::{BlockIndex, ChangeNo, Extent, Seq, VOLUME_BLOCKS_MAX};

mod fixed;
mod table;

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
    /// What finds the pages of the table of segments.
    pub table: TableRoot,
    /// Segments that are in no page of the table: mostly none; of the formats before its pages, all of them.
    pub segments: Vec<(Seq, SegmentInfo)>,
    /// Checkpoint objects, this one too, in which a run or the table has pages.
    pub checkpoints: Vec<(Seq, CheckpointInfo)>,
    /// The runs of the map, newest first.
    pub runs: Vec<Run>,
    /// Allocated zero that no run has: of the formats before the layers only, which kept it beside the pages.
    pub zeroed: Vec<Extent>,
    /// Sealed lengths of this object's own pages.
    pub own: Vec<u32>,
    /// What the volume has cost since it was created.
    pub account: Account,
}

/// What is known of a checkpoint object that holds pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// The salt of its encoding: pages cannot be opened without it.
    pub salt: Salt,
    /// Where the first of its pages begins, in bytes: places of pages count from there. 0 in the formats before the layers.
    pub frames_at: u32,
}

/// A checkpoint ready for the store.
#[derive(Clone, Debug)]
pub struct EncodedCheckpoint {
    /// The object.
    pub object: Encoded,
    /// The root, equal to what a reader of the object gets.
    pub root: Root,
}

/// Makes a checkpoint of a root and the pages that its runs and its table have in this object, in the order of their places.
/// Checkpoints in which neither has pages leave the root.
pub fn encode_checkpoint(
    sealer: &Sealer,
    salt: Salt,
    root: Root,
    pages: Frames,
) -> Result<EncodedCheckpoint, EncodeError> {
    let mut needed: BTreeSet<Seq> = root.runs.iter().flat_map(|run| run.objects.keys().copied()).collect();
    needed.extend(&root.table.objects);
    needed.extend(kept_objects(&root.table.kept));
    let mut root = Root { own: pages.lens().to_vec(), ..root };
    root.checkpoints.retain(|(seq, _)| needed.contains(seq) && *seq != root.seq);
    let older = root.checkpoints.clone();
    root.checkpoints.extend(needed.contains(&root.seq).then_some((root.seq, CheckpointInfo { salt, frames_at: 0 })));
    check(&root).map_err(|what| EncodeError::new(format!("checkpoint {}: {what}", root.seq)))?;
    let head = encode_root(&root, &older);
    let object = match version_of(&root) {
        None => encode(sealer, ObjectKind::Checkpoint, root.seq, salt, &head, pages)?,
        Some(version) => encode_as(sealer, ObjectKind::Checkpoint, version, root.seq, salt, &head, pages)?,
    };
    root.checkpoints
        .iter_mut()
        .filter(|(seq, _)| *seq == root.seq)
        .for_each(|(_, info)| info.frames_at = object.frames_at);
    Ok(EncodedCheckpoint { object, root })
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
    root.own.iter().map(|len| u64::from(*len)).sum::<u64>() + u64::from(decoded.frames_at)
}

/// Proves a whole checkpoint object, every page of it, and that nothing follows.
pub fn verify_checkpoint(sealer: &Sealer, seq: Seq, bytes: &Bytes) -> Result<Root, CorruptError> {
    let decoded = decode_head(sealer, &[ObjectKind::Checkpoint], seq, bytes)?.whole(bytes.len())?;
    let root = decode_root(seq, &decoded)?;
    expect_len(bytes.len(), total_of(&root, &decoded))?;
    let mut offset = decoded.frames_at;
    for len in &root.own {
        let sealed = bytes.slice(offset as usize..(offset + len) as usize);
        decompress_up_to(&decoded.key.open_frame(offset, &sealed)?, page_bytes_max(&decoded))?;
        offset += len;
    }
    Ok(root)
}

fn page_bytes_max(decoded: &Decoded) -> u32 {
    if decoded.version < LAYERED { crate::map::fixed::PAGE_BYTES_MAX } else { PAGE_BYTES_MAX }
}

/// Opens a page that was read from where it lies; `info` is of its checkpoint.
pub fn open_page(
    sealer: &Sealer,
    info: &CheckpointInfo,
    page: &PageAt,
    sealed: &Bytes,
) -> Result<MapPage, CorruptError> {
    let PageAt { at, first, kind } = page;
    expect_len(sealed.len(), u64::from(at.len))?;
    let key = sealer.object_key(ObjectKind::Checkpoint, at.checkpoint, &info.salt)?;
    let most = if *kind == PageKind::Fixed { crate::map::fixed::PAGE_BYTES_MAX } else { PAGE_BYTES_MAX };
    let bytes = decompress_up_to(&key.open_frame(place_of(info, at), sealed)?, most)?;
    Ok(match kind {
        PageKind::Leaf => MapPage::Leaf(Leaf::new(&decode_leaf(*first, &bytes)?)),
        PageKind::Index => MapPage::Index(decode_index(*first, &bytes)?),
        PageKind::Fixed => MapPage::Leaf(Leaf::new(&crate::map::fixed::decode_page(PageIndex::of(*first), &bytes)?)),
        PageKind::Table(kind) => MapPage::Table(crate::space::page_format::decode(*kind, first.0, &bytes)?),
        PageKind::Carrier(_) => return Err(CorruptError::WrongKind { found: ObjectKind::Segment }),
    })
}

/// The byte of a checkpoint object at which a page begins. One beyond 4 GiB cannot be proven there, nor anywhere.
pub fn place_of(info: &CheckpointInfo, at: &PageRef) -> u32 {
    info.frames_at.saturating_add(at.offset)
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
    let known = |seq: &Seq| root.checkpoints.binary_search_by_key(seq, |(seq, _)| *seq).is_ok();
    ensure(
        root.runs.iter().all(|run| run.objects.keys().all(known)),
        "a run has pages in a checkpoint that is not listed",
    )?;
    ensure(
        kept_objects(&root.table.kept).all(|seq| known(&seq)),
        "a version that it keeps needs a checkpoint that is not listed",
    )?;
    ensure(root.table.objects.iter().all(known), "the table has pages in a checkpoint that is not listed")?;
    table::check(&root.table, root.next_slot)?;
    root.runs.iter().try_for_each(check_run)?;
    ensure(root.runs.is_sorted_by(|newer, older| newer.through >= older.through), "its runs are out of order")?;
    ensure(root.runs.first().is_none_or(|run| run.through <= root.seq), "a run reaches beyond it")?;
    let meets = |both: &[Run]| both[1].part != Part::Input || both[1].from == meeting_point(&both[0]);
    ensure(root.runs.windows(2).all(meets), "a run that is merged does not begin where its output ends")?;
    let parts = || std::iter::once(Part::Whole).chain(root.runs.iter().map(|run| run.part));
    let follows = |(before, part)| part != Part::Input || before != Part::Whole;
    ensure(parts().zip(parts().skip(1)).all(follows), "a run is merged into nothing")
}

/// Where the inputs behind this run begin: an output ends there, and an input begins where its neighbour does.
fn meeting_point(run: &Run) -> BlockIndex {
    if run.part == Part::Output { run.upto } else { run.from }
}

fn check_run(run: &Run) -> Result<(), &'static str> {
    let ensure = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
    ensure(run.from <= run.upto, "a run ends before it begins")?;
    ensure(run.pages.is_sorted_by(|a, b| a.0 < b.0), "its pages are out of order")?;
    ensure(
        run.pages.last().is_none_or(|(last, _)| last.0 < VOLUME_BLOCKS_MAX),
        "a page is beyond the end of any volume",
    )?;
    let most = if run.kind == PageKind::Fixed { crate::map::fixed::PAGE_BYTES_MAX } else { PAGE_BYTES_MAX };
    let lens = FRAME_OVERHEAD as u32 + 1..=most + FRAME_OVERHEAD as u32;
    ensure(run.pages.iter().all(|(_, at)| lens.contains(&at.len)), "a page has a length that cannot be")?;
    let known = |(_, at): &(BlockIndex, PageRef)| run.objects.contains_key(&at.checkpoint) || run.part == Part::Input;
    ensure(run.pages.iter().all(known), "a page is in a checkpoint that is not listed")
}

/// The version that a root needs, if it says what those before cannot say.
fn version_of(root: &Root) -> Option<u16> {
    let is_cloned = root.table.kept.iter().any(|version| !version.label.clones.is_empty());
    let carries = !root.table.carriers.is_empty();
    let refers = !root.table.references.is_empty();
    refers.then_some(REFERRING).or(is_cloned.then_some(CLONED)).or(carries.then_some(CARRYING))
}

const FENCED: u8 = 1;
const COUNTED: u8 = 2;

fn encode_root(root: &Root, older: &[(Seq, CheckpointInfo)]) -> Vec<u8> {
    let pages: usize = root.runs.iter().map(|run| run.pages.len()).sum();
    let room =
        root.table.spans.len() * 80 + root.segments.len() * 28 + older.len() * 24 + pages * 10 + root.own.len() * 3;
    let mut w = Writer::with_capacity(512 + room);
    let is_counted = root.account != Account::default();
    w.u8(if root.fence.is_some() { FENCED } else { 0 } | if is_counted { COUNTED } else { 0 });
    w.varint(root.covers.0);
    w.varint(root.next_slot.0 - root.seq.0);
    if let Some((seq, fence)) = &root.fence {
        w.varint(seq.0);
        fence.write(&mut w);
    }
    table::write(&mut w, &root.table);
    write_segments(&mut w, &root.segments);
    write_checkpoints(&mut w, older);
    w.varint(root.own.len() as u64);
    root.own.iter().for_each(|len| w.varint(u64::from(*len)));
    // No volume but its own.
    w.varint(0);
    w.varint(root.runs.len() as u64);
    root.runs.iter().for_each(|run| write_run(&mut w, run));
    if is_counted {
        root.account.write(&mut w);
    }
    let version = version_of(root);
    if version.is_some() {
        table::write_carriers(&mut w, &root.table.carriers);
    }
    if version >= Some(CLONED) {
        table::write_clones(&mut w, &root.table.kept);
    }
    if version >= Some(REFERRING) {
        table::write_references(&mut w, &root.table.references);
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
    let root = Root { seq, covers, next_slot, fence, ..Root::default() };
    let root = match decoded.version < LAYERED {
        true => fixed::read(&mut r, root, decoded)?,
        false => read_layers(&mut r, root, decoded)?,
    };
    let account = if flags & COUNTED == 0 { Account::default() } else { Account::read(&mut r)? };
    let mut root = Root { account, ..root };
    if decoded.version >= CARRYING {
        root.table.carriers = table::read_carriers(&mut r)?;
    }
    if decoded.version >= CLONED {
        table::read_clones(&mut r, &mut root.table.kept)?;
    }
    if decoded.version >= REFERRING {
        root.table.references = table::read_references(&mut r)?;
    }
    let end = r.clone();
    r.finish()?;
    check(&root).map_err(|what| end.bad(what))?;
    Ok(root)
}

fn read_layers(r: &mut Reader<'_>, root: Root, decoded: &Decoded) -> Result<Root, Malformed> {
    let table = if decoded.version < PAGED { TableRoot::default() } else { table::read(r)? };
    let segments = read_segments(r)?;
    let mut checkpoints = read_checkpoints(r)?;
    if checkpoints.last().is_some_and(|(last, _)| *last >= root.seq) {
        return Err(r.bad("it names a checkpoint after itself"));
    }
    let own = read_list(r, 1, |r| r.varint_u32())?;
    let bytes = own.iter().try_fold(decoded.frames_at, |sum, len| sum.checked_add(*len));
    bytes.ok_or_else(|| r.bad("pages beyond 4 GiB"))?;
    if r.varint()? != 0 {
        return Err(r.bad("runs of other volumes"));
    }
    let runs = read_list(r, 8, read_run)?;
    if runs.iter().any(|run| run.objects.contains_key(&root.seq))
        || table.objects.contains(&root.seq)
        || kept_objects(&table.kept).any(|seq| seq == root.seq)
    {
        checkpoints.push((root.seq, CheckpointInfo { salt: decoded.salt, frames_at: decoded.frames_at }));
    }
    Ok(Root { table, segments, checkpoints, own, runs, ..root })
}

const KIND_AT: u8 = 3;
const IS_LAST: u8 = 4;

fn write_run(w: &mut Writer, run: &Run) {
    let part = match run.part {
        Part::Whole => 0,
        Part::Output => 1,
        Part::Input => 2,
    };
    let kind = match run.kind {
        // No run has others.
        PageKind::Leaf | PageKind::Table(_) | PageKind::Carrier(_) => 0,
        PageKind::Index => 1,
        PageKind::Fixed => 2,
    };
    w.u8(part | if run.is_last { IS_LAST } else { 0 } | kind << KIND_AT);
    w.varint(run.from.0);
    // The end of the largest volume is 0.
    w.varint(run.upto.0.wrapping_add(1));
    w.varint(run.through.0);
    w.varint(run.entries);
    w.varint(run.owing);
    w.varint(run.objects.len() as u64);
    let mut last = 0;
    for (seq, bytes) in &run.objects {
        w.varint(seq.0 - last);
        w.varint(*bytes);
        last = seq.0;
    }
    write_refs(w, &run.pages);
}

fn read_run(r: &mut Reader<'_>) -> Result<Run, Malformed> {
    let flags = r.u8()?;
    let part = match flags & 3 {
        0 => Part::Whole,
        1 => Part::Output,
        2 => Part::Input,
        _ => return Err(r.bad("a run of unknown kind")),
    };
    let kind = match flags >> KIND_AT {
        0 => PageKind::Leaf,
        1 => PageKind::Index,
        2 => PageKind::Fixed,
        _ => return Err(r.bad("a run of unknown kind")),
    };
    let from = BlockIndex(r.varint()?);
    let upto = BlockIndex(r.varint()?.wrapping_sub(1));
    let through = Seq(r.ordinal()?);
    let (entries, owing) = (r.varint()?, r.varint()?);
    let mut last = 0;
    let objects = read_list(r, 2, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok((Seq(last), r.varint()?))
    })?;
    let pages = read_refs(r, usize::MAX)?;
    let objects: BTreeMap<Seq, u64> = objects.into_iter().collect();
    let is_last = flags & IS_LAST != 0;
    Ok(Run { part, from, upto, through, is_last, kind, pages: Arc::new(pages), entries, owing, objects })
}

/// `at` and `gap` further.
fn advance(r: &Reader<'_>, at: u64, gap: u64) -> Result<u64, Malformed> {
    at.checked_add(gap).ok_or_else(|| r.bad("a number beyond 64 bits"))
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
        w.varint(u64::from(info.frames_at));
        last = seq.0;
    }
}

fn read_checkpoints(r: &mut Reader<'_>) -> Result<Vec<(Seq, CheckpointInfo)>, Malformed> {
    let mut last = 0;
    read_list(r, 18, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok((Seq(last), CheckpointInfo { salt: r.array()?, frames_at: r.varint_u32()? }))
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
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::codec::frame::Compression;
    use crate::codec::object::PREFIX_BYTES;
    use crate::format::segment::Durability;
    use crate::map::compaction::END;
    use crate::map::leaf_format::encode_leaf;
    use crate::map::{Entry, Placement};
    use crate::space::directory::List;
    use crate::space::{Carrier, CloneRef, Counter, Delta, KeptVersion, Label, Listed, Span, SpanEntry, Summary};
    use crate::units::{BlockCount, Epoch, ORDINAL_MAX};

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(4), None)
    }

    fn info(salt: u8) -> SegmentInfo {
        SegmentInfo { salt: [salt; 16], stored_bytes: 8 << 20, blocks: 2048, live_blocks: u32::from(salt) }
    }

    /// A span and a list of deltas, in these objects.
    fn table(objects: &[u64]) -> TableRoot {
        let page = |n: usize, len| PageRef { checkpoint: Seq(objects[n % objects.len()]), offset: n as u32 * 900, len };
        let counter = Counter { stored_bytes: 8 << 20, blocks: 2048, live_blocks: 1000 };
        let summary = Summary::of([&counter; 3]);
        let entry =
            |(n, span)| SpanEntry { span, is_dead: n == 1, counters: page(n, 300), salts: page(n + 2, 400), summary };
        TableRoot {
            objects: objects.iter().map(|seq| Seq(*seq)).collect(),
            spans: [Span(0)].into_iter().enumerate().map(entry).collect(),
            groups: Vec::new(),
            lists: vec![Listed { pages: [5, 5 + 2 * objects.len()].map(|n| page(n, 70)).to_vec() }],
            recent: vec![(Seq(3), Delta::Died(7)), (Seq(4), Delta::Gone(0))],
            kept: vec![version(objects[0], page(3, 80))],
            carriers: Vec::new(),
            references: Vec::new(),
        }
    }

    #[test]
    fn clones_are_said_only_where_there_are_some() {
        let mut root = sample();
        let version = |bytes: &Bytes| u16::from_le_bytes([bytes[8], bytes[9]]);
        assert_eq!(version(&make(root.clone(), 0).1), PAGED);
        let clone = |n| CloneRef { uuid: Uuid::from_u128(n), name: format!("clone{n}"), after: n as u64 };
        root.table.kept[0].label.clones = vec![clone(1), clone(9)];
        root.table.kept[0].label = root.table.kept[0].label.clone().hidden();
        let (encoded, bytes) = make(root.clone(), 0);
        assert_eq!((version(&bytes), decode(20, &bytes)), (CLONED, Ok(encoded.root)));
        root.table.kept[0].label.clones = Vec::new();
        let bad = encode_checkpoint(&sealer(), [1; 16], root, frames(0)).unwrap_err().to_string();
        assert!(bad.contains("a version without a name has no clone"), "{bad}");
    }

    /// What only the table needs stays listed, whatever runs and versions need.
    #[test]
    fn checkpoints_in_which_the_table_has_pages_stay() {
        let mut root = sample();
        root.table.kept = Vec::new();
        root.runs.clear();
        let (encoded, bytes) = make(root, 0);
        let listed: Vec<Seq> = encoded.root.checkpoints.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(listed, [Seq(5), Seq(9)]);
        assert_eq!(decode(20, &bytes), Ok(encoded.root));
    }

    /// A version that holds some deaths in a page, and one in the root.
    fn version(seq: u64, page: PageRef) -> KeptVersion {
        let list = |pages, entries| Arc::new(List { pages, entries, ..List::default() });
        KeptVersion {
            seq: Seq(seq),
            label: Label {
                name: "monday".into(),
                taken_unix_millis: 1_700_000_000_000,
                keep_until_unix_millis: 5,
                ..Label::default()
            },
            blocks: BlockCount(1000),
            objects: [Seq(seq)].into(),
            held: vec![list(vec![page], vec![]), list(vec![], vec![(Seq(0), Delta::Died(3))])],
        }
    }

    fn run(objects: &[u64]) -> Run {
        let page = |(i, seq): (usize, &u64)| {
            (BlockIndex(i as u64 * 50), PageRef { checkpoint: Seq(*seq), offset: i as u32 * 900, len: 800 })
        };
        let pages: Vec<_> = objects.iter().enumerate().map(page).collect();
        let objects = objects.iter().map(|seq| (Seq(*seq), 800)).collect();
        Run { pages: Arc::new(pages), objects, entries: 70, owing: 3, ..Run::empty() }
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
            table: table(&[5, 9]),
            segments: vec![(Seq(3), info(1)), (Seq(19), info(2)), (Seq(20), info(0))],
            checkpoints: [5, 7, 9].map(|seq| (Seq(seq), CheckpointInfo { salt: [1; 16], frames_at: 500 })).to_vec(),
            runs: vec![run(&[7]), Run { is_last: true, ..run(&[5, 7]) }],
            account: Account { puts: 300, bytes_put: 1 << 40, bytes_moved: 7, ..Account::default() },
            ..Root::default()
        }
    }

    fn leaf() -> Vec<u8> {
        encode_leaf(&[Entry { extent: Extent::new(3, 9), placement: Placement::Zero, owes: false }]).unwrap()
    }

    fn frames(count: usize) -> Frames {
        let mut frames = Frames::with_capacity(count, 0, Compression::Lz4);
        for _ in 0..count {
            frames.push(&[&leaf()]).unwrap();
        }
        frames
    }

    fn make(root: Root, pages: usize) -> (EncodedCheckpoint, Bytes) {
        let encoded = encode_checkpoint(&sealer(), [root.seq.0 as u8; 16], root, frames(pages)).unwrap();
        let bytes = Bytes::from(encoded.object.parts.concat());
        (encoded, bytes)
    }

    fn decode(seq: u64, bytes: &Bytes) -> Result<Root, CorruptError> {
        decode_checkpoint(&sealer(), Seq(seq), bytes)?.whole(bytes.len())
    }

    #[test]
    fn what_is_written_is_what_the_writer_holds() {
        let own = |root: Root| Root { runs: vec![run(&[20]), run(&[5, 7])], ..root };
        let (encoded, bytes) = make(own(sample()), 2);
        assert_eq!(decode(20, &bytes).unwrap(), encoded.root);
        assert_eq!(encoded.object.total, bytes.len() as u64);
        assert_eq!(verify_checkpoint(&sealer(), Seq(20), &bytes).unwrap(), encoded.root);
        let (_, info) = encoded.root.checkpoints[3];
        let frame = encoded.object.frames[0];
        assert_eq!(frame.0, info.frames_at);
        let at = PageRef { checkpoint: Seq(20), offset: 0, len: frame.1 };
        let sealed = bytes.slice(frame.0 as usize..(frame.0 + frame.1) as usize);
        let page = PageAt { first: BlockIndex(3), at, kind: PageKind::Leaf };
        assert!(open_page(&sealer(), &info, &page, &sealed).is_ok());
        let elsewhere = CheckpointInfo { frames_at: info.frames_at + 1, ..info };
        assert_eq!(open_page(&sealer(), &elsewhere, &page, &sealed), Err(CorruptError::TagMismatch));
        let (empty, bytes) = make(Root { next_slot: Seq(1), ..Root::default() }, 0);
        assert_eq!(decode(0, &bytes).unwrap(), empty.root);
    }

    #[test]
    fn a_checkpoint_in_which_nothing_has_pages_leaves_the_root() {
        let (encoded, bytes) = make(Root { table: TableRoot::default(), ..sample() }, 1);
        assert_eq!(encoded.root.checkpoints.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(decode(20, &bytes).unwrap(), encoded.root);
        let (encoded, bytes) = make(sample(), 1);
        assert_eq!(encoded.root.checkpoints.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!(decode(20, &bytes).unwrap(), encoded.root);
        assert_eq!(encoded.root.own.len(), 1, "what was written and merged at once");
    }

    #[test]
    fn a_root_that_contradicts_itself_is_not_written() {
        let refused = |what: &str, change: &dyn Fn(&mut Root)| {
            let mut root = sample();
            change(&mut root);
            let error = encode_checkpoint(&sealer(), [0; 16], root, frames(0)).map(|_| ()).map_err(|e| e.to_string());
            assert_eq!(error, Err(format!("cannot be encoded: checkpoint 20: {what}")));
        };
        refused("its next slot is not after it", &|root| root.next_slot = Seq(20));
        refused("its next slot is beyond any window", &|root| root.next_slot = Seq(20 + 1025));
        let continues = |root: &mut Root, at| root.fence.iter_mut().for_each(|(_, fence)| fence.continues_at = Seq(at));
        refused("its fence stands where it cannot", &|root| continues(root, 12));
        refused("its fence stands where it cannot", &|root| continues(root, 12 + 1025));
        refused("its segments are out of order", &|root| root.segments.swap(0, 1));
        refused("a segment lives more than it has", &|root| root.segments[1].1.live_blocks = 2049);
        refused("it names a segment beyond its next slot", &|root| root.segments[2].0 = Seq(30));
        let not_listed = "a page of its table is in a checkpoint that is not listed, or of no length that can be";
        refused("the table has pages in a checkpoint that is not listed", &|root| {
            root.table.objects.insert(Seq(6));
        });
        refused(not_listed, &|root| root.table.spans[0].salts.checkpoint = Seq(7));
        refused(not_listed, &|root| root.table.spans[0].counters.len = 20);
        refused(not_listed, &|root| root.table.groups = vec![(0, PageRef { checkpoint: Seq(7), offset: 0, len: 100 })]);
        let group = (0, PageRef { checkpoint: Seq(5), offset: 0, len: 100 });
        refused("spans of its table stand in two places", &|root| root.table.groups = vec![group]);
        refused("spans of its table are out of order", &|root| root.table.spans = vec![root.table.spans[0]; 2]);
        refused("groups of its table are out of order", &|root| {
            (root.table.spans, root.table.groups) = (Vec::new(), vec![group; 2]);
        });
        refused("its table has a span beyond its next slot", &|root| root.table.spans[0].span = Span(1));
        refused("its table has a group beyond its next slot", &|root| {
            (root.table.spans, root.table.groups) = (Vec::new(), vec![(1, group.1)]);
        });
        refused("a list of its table is empty, or in two checkpoints", &|root| root.table.lists[0].pages.clear());
        refused("a list of its table is empty, or in two checkpoints", &|root| {
            root.table.lists[0].pages[1].checkpoint = Seq(5);
        });
        refused("lists of its table are out of order", &|root| root.table.lists = vec![root.table.lists[0].clone(); 2]);
        refused("deltas of its table are out of order", &|root| root.table.recent.swap(0, 1));
        let carries = |root: &mut Root, carriers: &[(u64, &[u64])]| {
            let carrier = |(seq, carried): &(u64, &[u64])| {
                (Seq(*seq), Carrier { salt: [0; 16], carried: carried.iter().map(|seq| Seq(*seq)).collect() })
            };
            root.table.carriers = carriers.iter().map(carrier).collect();
        };
        refused("segments that carry others are out of order", &|root| carries(root, &[(9, &[1]), (8, &[2])]));
        refused("a segment carries others beyond its next slot", &|root| carries(root, &[(30, &[1])]));
        refused("a segment carries none, or one that is not older", &|root| carries(root, &[(9, &[])]));
        refused("a segment carries none, or one that is not older", &|root| carries(root, &[(9, &[3, 9])]));
        refused("a segment carries none, or one that is not older", &|root| carries(root, &[(9, &[3, 2])]));
        refused("a segment is carried twice", &|root| carries(root, &[(9, &[3]), (10, &[3])]));
        refused("a segment that carries others is carried", &|root| carries(root, &[(9, &[3]), (10, &[9])]));
        refused("a run has pages in a checkpoint that is not listed", &|root| root.checkpoints.truncate(0));
        refused("a page is in a checkpoint that is not listed", &|root| root.runs[0].objects.clear());
        refused("its runs are out of order", &|root| root.runs[1].through = Seq(1));
        refused("a run reaches beyond it", &|root| root.runs[0].through = Seq(21));
        refused("a run that is merged does not begin where its output ends", &|root| {
            (root.runs[0].part, root.runs[0].upto) = (Part::Output, BlockIndex(7));
            root.runs[1].part = Part::Input;
        });
        refused("a run is merged into nothing", &|root| root.runs[1].part = Part::Input);
        let page = |root: &mut Root, block, len| {
            let at = PageRef { checkpoint: Seq(7), offset: 0, len };
            root.runs[0].pages = Arc::new(vec![(BlockIndex(block), at)]);
        };
        refused("a page has a length that cannot be", &|root| page(root, 0, 20));
        refused("a page is beyond the end of any volume", &|root| page(root, VOLUME_BLOCKS_MAX, 100));
    }

    fn roots() -> impl Strategy<Value = Root> {
        let objects = prop::collection::btree_set(0u64..6, 1..4);
        let part = prop_oneof![Just(Part::Whole), Just(Part::Output)];
        let run = (prop::collection::vec(0u64..6, 0..8), part, any::<bool>(), 0u64..1 << 50, any::<[u64; 2]>());
        let runs = prop::collection::vec(run, 0..6);
        (objects, runs, any::<bool>(), any::<[u64; 2]>()).prop_map(|(objects, runs, plain, n)| {
            let carrier = |seq: u64| (Seq(seq), Carrier { salt: [3; 16], carried: vec![Seq(seq - 2), Seq(seq - 1)] });
            let carriers = if n[0] % 2 == 0 { Vec::new() } else { vec![carrier(7), carrier(10 + n[1] % (1 << 29))] };
            let refers = |seq: u64| (Seq(seq), vec![(Seq(seq - 3), 1), (Seq(seq - 1), 9 + n[0] as u32 % 100)]);
            let references = if n[1] % 3 == 0 { vec![refers(5), refers(9 + n[0] % (1 << 29))] } else { Vec::new() };
            let table = match plain {
                true => TableRoot::default(),
                false => TableRoot { carriers, references, ..table(&objects.into_iter().collect::<Vec<_>>()[..1]) },
            };
            let run = |(objects, part, is_last, from, [entries, owing]): (Vec<u64>, Part, bool, u64, [u64; 2])| {
                let upto = if part == Part::Whole { END } else { BlockIndex(from + 1) };
                let kind = if is_last { PageKind::Index } else { PageKind::Leaf };
                Run { part, is_last, kind, from: BlockIndex(from), upto, entries, owing, ..self::run(&objects) }
            };
            let checkpoint = |seq| (Seq(seq), CheckpointInfo { salt: [seq as u8; 16], frames_at: n[0] as u32 });
            Root {
                seq: Seq(1 << 30),
                covers: ChangeNo(n[1] % ORDINAL_MAX),
                next_slot: Seq((1 << 30) + 1 + n[0] % u64::from(WINDOW_MAX)),
                fence: if plain { None } else { sample().fence },
                table,
                checkpoints: (0..6).map(checkpoint).collect(),
                runs: runs.into_iter().map(run).collect(),
                account: if plain { Account::default() } else { Account { gets: n[0], ..Account::default() } },
                ..Root::default()
            }
        })
    }

    proptest! {
        #[test]
        fn a_root_comes_back(root in roots(), pages in 0usize..4) {
            let (encoded, bytes) = make(root, pages);
            prop_assert_eq!(decode(1 << 30, &bytes).unwrap(), encoded.root);
        }

        #[test]
        fn a_harmed_root_with_a_good_tag_is_refused_or_consistent(root in roots(), at: prop::sample::Index, flip in 1u8..) {
            let (encoded, _) = make(root, 1);
            let mut head = encoded.object.parts[0][PREFIX_BYTES..].to_vec();
            let at = at.index(head.len());
            head[at] ^= flip;
            let object = encode(&sealer(), ObjectKind::Checkpoint, Seq(1 << 30), [0; 16], &head, frames(0)).unwrap();
            match decode_checkpoint(&sealer(), Seq(1 << 30), &object.parts[0]) {
                Ok(Found::Whole(root)) => prop_assert_eq!(check(&root), Ok(())),
                Ok(Found::NeedMore { .. }) => prop_assert!(false, "the head was there"),
                Err(e) => prop_assert!(matches!(e, CorruptError::Malformed(_)), "{e}"),
            }
        }
    }
}
