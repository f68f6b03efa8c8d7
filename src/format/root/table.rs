//! What a root says of the table of segments.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{advance, read_list};
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::FRAME_OVERHEAD;
use crate::format::meta::VolumeName;
use crate::map::leaf_format::PAGE_BYTES_MAX;
use crate::space::carriers::CARRIED_MAX;
use crate::space::directory::{List, spans_of};
use crate::space::kept::CLONES_MAX;
use crate::space::page_format::{
    PAGE_DELTAS_MAX, read_deltas, read_entries, read_ref, write_deltas, write_entries, write_ref,
};
use crate::space::references::{REFERENCES_MAX, Referring, TARGETS_MAX};
use crate::space::{Carrier, CloneRef, Delta, KeptVersion, Label, Listed, SPAN, TableRoot};
use crate::units::{BlockCount, PageRef, Seq, VOLUME_BLOCKS_MAX};

/// The most spans that stand in a root itself.
const SPANS_MAX: usize = 1 << 12;

/// The most pages of one list of deltas.
const LIST_PAGES_MAX: usize = 1 << 12;

pub(super) fn write(w: &mut Writer, table: &TableRoot) {
    write_seqs(w, table.objects.iter());
    write_entries(w, &table.spans);
    w.varint(table.groups.len() as u64);
    let (mut next, mut object) = (0, 0);
    for (number, at) in &table.groups {
        w.varint(number - next);
        next = number + 1;
        write_ref(w, &mut object, at);
    }
    w.varint(table.lists.len() as u64);
    for list in &table.lists {
        w.varint(list.pages.len() as u64);
        list.pages.iter().for_each(|at| write_ref(w, &mut object, at));
    }
    write_deltas(w, &table.recent);
    w.varint(table.kept.len() as u64);
    table.kept.iter().fold(0, |last, version| write_version(w, version, last));
}

/// What only a root has whose volume has segments that carry others.
pub(super) fn write_carriers(w: &mut Writer, carriers: &[(Seq, Carrier)]) {
    w.varint(carriers.len() as u64);
    carriers.iter().fold(0, |last, (seq, carrier)| {
        w.varint(seq.0 - last);
        w.bytes(&carrier.salt);
        write_seqs(w, carrier.carried.iter());
        seq.0
    });
}

pub(super) fn read_carriers(r: &mut Reader<'_>) -> Result<Vec<(Seq, Carrier)>, Malformed> {
    let mut last = 0;
    read_list(r, 18, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok((Seq(last), Carrier { salt: r.array()?, carried: read_seqs(r)?.into_iter().collect() }))
    })
}

/// What only a root has whose volume has segments that refer to others.
pub(super) fn write_references(w: &mut Writer, references: &[Referring]) {
    w.varint(references.len() as u64);
    references.iter().fold(0, |last, (seq, refers)| {
        w.varint(seq.0 - last);
        w.varint(refers.len() as u64);
        refers.iter().fold(0, |last, (to, blocks)| {
            w.varint(to.0 - last);
            w.varint((*blocks).into());
            to.0
        });
        seq.0
    });
}

pub(super) fn read_references(r: &mut Reader<'_>) -> Result<Vec<Referring>, Malformed> {
    let mut last = 0;
    let references = read_list(r, 4, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        let mut before = 0;
        let refers = read_list(r, 2, |r| {
            let gap = r.varint()?;
            before = advance(r, before, gap)?;
            Ok((Seq(before), r.varint_u32()?))
        })?;
        Ok((Seq(last), refers))
    })?;
    match references.is_empty() {
        true => Err(r.bad("no segment refers to another")),
        false => Ok(references),
    }
}

/// What only a root has whose volume has clones: for each version that it keeps, in order, those of it.
pub(super) fn write_clones(w: &mut Writer, kept: &[KeptVersion]) {
    for KeptVersion { label, .. } in kept {
        w.varint(label.clones.len() as u64);
        for CloneRef { uuid, name, after } in &label.clones {
            w.uuid(*uuid);
            w.string(name, VolumeName::MAX);
            w.varint(*after);
        }
    }
}

pub(super) fn read_clones(r: &mut Reader<'_>, kept: &mut [KeptVersion]) -> Result<(), Malformed> {
    for version in kept {
        version.label.clones = read_list(r, 18, |r| {
            Ok(CloneRef { uuid: r.uuid()?, name: r.string(VolumeName::MAX)?.to_string(), after: r.ordinal()? })
        })?;
    }
    Ok(())
}

/// Returns its place in the log.
fn write_version(w: &mut Writer, version: &KeptVersion, last: u64) -> u64 {
    w.varint(version.seq.0 - last);
    w.string(&version.label.name, VolumeName::MAX);
    w.varint(version.label.taken_unix_millis);
    w.varint(version.label.keep_until_unix_millis);
    w.varint(version.blocks.0);
    write_seqs(w, version.objects.iter());
    w.varint(version.held.len() as u64);
    let mut object = 0;
    for list in &version.held {
        w.varint(list.pages.len() as u64);
        match list.pages.is_empty() {
            true => write_deltas(w, &list.entries),
            false => list.pages.iter().for_each(|at| write_ref(w, &mut object, at)),
        }
    }
    version.seq.0
}

fn read_version(r: &mut Reader<'_>, last: u64) -> Result<KeptVersion, Malformed> {
    let gap = r.varint()?;
    let seq = Seq(advance(r, last, gap)?);
    let label = Label {
        name: r.string(VolumeName::MAX)?.to_string(),
        taken_unix_millis: r.varint()?,
        keep_until_unix_millis: r.varint()?,
        clones: Vec::new(),
    };
    let blocks = BlockCount(r.varint()?);
    let objects = read_seqs(r)?;
    let mut object = 0;
    let held = read_list(r, 1, |r| {
        let pages = read_list(r, 3, |r| read_ref(r, &mut object))?;
        let entries = if pages.is_empty() { read_deltas(r, PAGE_DELTAS_MAX)? } else { Vec::new() };
        Ok(Arc::new(List { pages, entries, ..List::default() }))
    })?;
    Ok(KeptVersion { seq, label, blocks, objects, held })
}

fn write_seqs<'a>(w: &mut Writer, seqs: impl ExactSizeIterator<Item = &'a Seq>) {
    w.varint(seqs.len() as u64);
    let mut last = 0;
    for seq in seqs {
        w.varint(seq.0 - last);
        last = seq.0;
    }
}

fn read_seqs(r: &mut Reader<'_>) -> Result<BTreeSet<Seq>, Malformed> {
    let mut last = 0;
    let seqs = read_list(r, 1, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok(Seq(last))
    })?;
    let known: BTreeSet<Seq> = seqs.iter().copied().collect();
    if known.len() < seqs.len() {
        return Err(r.bad("places of the log are out of order"));
    }
    Ok(known)
}

pub(super) fn read(r: &mut Reader<'_>) -> Result<TableRoot, Malformed> {
    let objects = read_seqs(r)?;
    let spans = read_entries(r, SPANS_MAX)?;
    let (mut next, mut object) = (0, 0);
    let groups = read_list(r, 4, |r| {
        let gap = r.varint()?;
        let number = advance(r, next, gap)?;
        next = advance(r, number, 1)?;
        Ok((number, read_ref(r, &mut object)?))
    })?;
    let lists = read_list(r, 4, |r| {
        let pages = read_list(r, 3, |r| read_ref(r, &mut object))?;
        Ok(Listed { pages })
    })?;
    let recent = read_deltas(r, PAGE_DELTAS_MAX)?;
    let mut last = 0;
    let kept = read_list(r, 8, |r| {
        let version = read_version(r, last)?;
        last = version.seq.0;
        Ok(version)
    })?;
    Ok(TableRoot { objects, spans, groups, lists, recent, kept, carriers: Vec::new(), references: Vec::new() })
}

/// What it must be, for its writer and its reader alike.
pub(super) fn check(table: &TableRoot, next_slot: Seq) -> Result<(), &'static str> {
    let ensure = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
    let lens = FRAME_OVERHEAD as u32 + 1..=PAGE_BYTES_MAX + FRAME_OVERHEAD as u32;
    let fits = |at: &PageRef| table.objects.contains(&at.checkpoint) && lens.contains(&at.len);
    let mut pages = table.spans.iter().flat_map(|entry| [&entry.counters, &entry.salts]);
    ensure(pages.all(fits), "a page of its table is in a checkpoint that is not listed, or of no length that can be")?;
    let mut pages = table.groups.iter().map(|(_, at)| at).chain(table.lists.iter().flat_map(|list| &list.pages));
    ensure(pages.all(fits), "a page of its table is in a checkpoint that is not listed, or of no length that can be")?;
    ensure(table.spans.is_empty() || table.groups.is_empty(), "spans of its table stand in two places")?;
    ensure(table.spans.is_sorted_by(|a, b| a.span < b.span), "spans of its table are out of order")?;
    ensure(table.groups.is_sorted_by(|a, b| a.0 < b.0), "groups of its table are out of order")?;
    let last = next_slot.0 / SPAN;
    ensure(table.spans.last().is_none_or(|entry| entry.span.0 <= last), "its table has a span beyond its next slot")?;
    ensure(
        table
            .groups
            .last()
            .is_none_or(|(group, _)| group.checked_mul(spans_of(1).start).is_some_and(|span| span <= last)),
        "its table has a group beyond its next slot",
    )?;
    let is_one =
        |pages: &[PageRef]| pages.first().is_some_and(|one| pages.iter().all(|at| at.checkpoint == one.checkpoint));
    let is_list = |pages: &Vec<PageRef>| pages.len() <= LIST_PAGES_MAX && is_one(pages);
    ensure(table.lists.iter().all(|list| is_list(&list.pages)), "a list of its table is empty, or in two checkpoints")?;
    let as_of = |pages: &Vec<PageRef>| pages.first().map_or(Seq(0), |at| at.checkpoint);
    ensure(
        table.lists.is_sorted_by(|older, newer| as_of(&older.pages) < as_of(&newer.pages)),
        "lists of its table are out of order",
    )?;
    ensure(table.recent.is_sorted_by(|a, b| a.0 < b.0), "deltas of its table are out of order")?;
    ensure(table.kept.is_sorted_by(|a, b| a.seq < b.seq), "versions that it keeps are out of order")?;
    ensure(table.kept.last().is_none_or(|version| version.seq < next_slot), "it keeps a version beyond its next slot")?;
    let names: BTreeSet<&str> = table.kept.iter().map(|version| version.label.name.as_str()).collect();
    ensure(names.len() == table.kept.len(), "two versions that it keeps have one name")?;
    let can_be = |label: &Label| label.is_hidden() || VolumeName::new(label.name.as_str()).is_ok();
    ensure(table.kept.iter().all(|version| can_be(&version.label)), "a version that it keeps has no name that can be")?;
    let clones = |version: &KeptVersion| version.label.clones.len();
    ensure(table.kept.iter().map(clones).sum::<usize>() <= CLONES_MAX, "it has too many clones")?;
    let is_needed = |version: &KeptVersion| !version.label.is_hidden() || clones(version) > 0;
    ensure(table.kept.iter().all(is_needed), "a version without a name has no clone")?;
    table.kept.iter().try_for_each(check_version)?;
    ensure(table.carriers.is_sorted_by(|a, b| a.0 < b.0), "segments that carry others are out of order")?;
    ensure(
        table.carriers.last().is_none_or(|(last, _)| *last < next_slot),
        "a segment carries others beyond its next slot",
    )?;
    let fits = |(seq, carrier): &(Seq, Carrier)| {
        let in_order = carrier.carried.is_sorted_by(|a, b| a < b);
        in_order && carrier.carried.last().is_some_and(|last| last < seq)
    };
    ensure(table.carriers.iter().all(fits), "a segment carries none, or one that is not older")?;
    let all: BTreeSet<Seq> = table.carriers.iter().flat_map(|(_, carrier)| carrier.carried.iter().copied()).collect();
    let count: usize = table.carriers.iter().map(|(_, carrier)| carrier.carried.len()).sum();
    ensure(all.len() == count, "a segment is carried twice")?;
    ensure(table.carriers.iter().all(|(seq, _)| !all.contains(seq)), "a segment that carries others is carried")?;
    ensure(count <= CARRIED_MAX, "more segments are carried than can be")?;
    let references = &table.references;
    ensure(references.is_sorted_by(|a, b| a.0 < b.0), "segments that refer to others are out of order")?;
    ensure(
        references.last().is_none_or(|(last, _)| *last < next_slot),
        "a segment refers to others beyond its next slot",
    )?;
    let fits = |(seq, refers): &Referring| {
        let in_order = refers.is_sorted_by(|a, b| a.0 < b.0) && refers.iter().all(|(_, blocks)| *blocks > 0);
        in_order && refers.last().is_some_and(|(last, _)| last < seq)
    };
    ensure(references.iter().all(fits), "a segment refers to none, or to one that is not older")?;
    let pairs: usize = references.iter().map(|(_, refers)| refers.len()).sum();
    ensure(pairs <= REFERENCES_MAX, "more segments refer to others than can")?;
    let targets: BTreeSet<Seq> = references.iter().flat_map(|(_, refers)| refers.iter().map(|(to, _)| *to)).collect();
    ensure(targets.len() <= TARGETS_MAX, "more segments are referred to than can be")
}

fn check_version(version: &KeptVersion) -> Result<(), &'static str> {
    let ensure = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
    ensure(version.objects.contains(&version.seq), "a version that it keeps does not need its own checkpoint")?;
    ensure(version.objects.last() == Some(&version.seq), "a version that it keeps needs a checkpoint after it")?;
    ensure(version.blocks.0 <= VOLUME_BLOCKS_MAX, "a version that it keeps is larger than any volume")?;
    let lens = FRAME_OVERHEAD as u32 + 1..=PAGE_BYTES_MAX + FRAME_OVERHEAD as u32;
    ensure(version.pages().all(|at| lens.contains(&at.len)), "a page has a length that cannot be")?;
    let holds = |(seq, delta): &(Seq, Delta)| *seq <= version.seq && !delta.is_gone();
    let fits = |list: &Arc<List>| {
        list.pages.len() <= LIST_PAGES_MAX
            && (!list.pages.is_empty() || !list.entries.is_empty())
            && list.entries.is_sorted_by(|a, b| a.0 < b.0)
            && list.entries.iter().all(holds)
    };
    ensure(version.held.iter().all(fits), "what a version holds that it keeps cannot be")
}
