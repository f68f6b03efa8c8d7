//! What a root says of the table of segments.

use std::collections::BTreeSet;

use super::{advance, read_list};
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::FRAME_OVERHEAD;
use crate::map::leaf_format::PAGE_BYTES_MAX;
use crate::space::directory::spans_of;
use crate::space::page_format::{
    PAGE_DELTAS_MAX, read_deltas, read_entries, read_ref, write_deltas, write_entries, write_ref,
};
use crate::space::{Listed, SPAN, TableRoot};
use crate::units::{PageRef, Seq};

/// The most spans that stand in a root itself.
const SPANS_MAX: usize = 1 << 12;

/// The most pages of one list of deltas.
const LIST_PAGES_MAX: usize = 1 << 12;

pub(super) fn write(w: &mut Writer, table: &TableRoot) {
    w.varint(table.objects.len() as u64);
    let mut last = 0;
    for seq in &table.objects {
        w.varint(seq.0 - last);
        last = seq.0;
    }
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
}

pub(super) fn read(r: &mut Reader<'_>) -> Result<TableRoot, Malformed> {
    let mut last = 0;
    let objects = read_list(r, 1, |r| {
        let gap = r.varint()?;
        last = advance(r, last, gap)?;
        Ok(Seq(last))
    })?;
    let known: BTreeSet<Seq> = objects.iter().copied().collect();
    if known.len() < objects.len() {
        return Err(r.bad("its objects are out of order"));
    }
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
    Ok(TableRoot { objects: known, spans, groups, lists, recent })
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
    ensure(table.recent.is_sorted_by(|a, b| a.0 < b.0), "deltas of its table are out of order")
}
