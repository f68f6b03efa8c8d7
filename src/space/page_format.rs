//! Pages of the table as bytes: counters, salts, deltas, the directory (`docs/format.md`).
//!
//! Columns, not rows: neighbours are alike, so that a column mostly compresses to nothing.

use super::counter::Counter;
use super::directory::SpanEntry;
use super::summary::{SHARES, SMALL, Share, Summary};
use super::{Counted, Delta, GROUP, Page, PageKind, SPAN, Span, Totals};
use crate::codec::EncodeError;
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::units::{PageRef, Seq};

/// The most deltas of one page.
pub const PAGE_DELTAS_MAX: usize = 32 << 10;

/// Reads a page: of which span or group it is says `number`.
pub fn decode(kind: PageKind, number: u64, bytes: &[u8]) -> Result<Page, Malformed> {
    let mut r = Reader::new(bytes);
    let page = match kind {
        PageKind::Counters => Page::Counters(read_counters(&mut r, Span(number))?),
        PageKind::Salts => Page::Salts(read_salts(&mut r, Span(number))?),
        PageKind::Directory => Page::Directory(read_directory(&mut r, number)?),
        PageKind::Deltas => Page::Deltas(read_deltas(&mut r, PAGE_DELTAS_MAX)?),
    };
    r.finish()?;
    Ok(page)
}

/// The bytes of a page of the span or group `number`.
pub fn encode(number: u64, page: &Page) -> Result<Vec<u8>, EncodeError> {
    let mut w = Writer::new();
    match page {
        Page::Counters(counters) => write_counters(&mut w, Span(number), counters)?,
        Page::Salts(salts) => write_salts(&mut w, Span(number), salts)?,
        Page::Directory(entries) => {
            w.varint(number);
            write_entries(&mut w, entries);
        }
        Page::Deltas(deltas) => write_deltas(&mut w, deltas),
    }
    Ok(w.finish())
}

/// The places of segments in their span.
fn write_places(w: &mut Writer, span: Span, seqs: impl ExactSizeIterator<Item = Seq>) -> Result<(), EncodeError> {
    w.varint(span.0);
    w.varint(seqs.len() as u64);
    let mut next = span.first();
    for seq in seqs {
        if seq < next || seq > span.last() {
            return Err(EncodeError::new(format!("segment {seq} is out of order in span {} of the table", span.0)));
        }
        w.varint(seq.0 - next.0);
        next = seq.next();
    }
    Ok(())
}

fn read_places(r: &mut Reader<'_>, span: Span) -> Result<Vec<Seq>, Malformed> {
    if r.varint()? != span.0 {
        return Err(r.bad("a page of another span"));
    }
    let count = r.count(1)?;
    let (mut seqs, mut next) = (Vec::with_capacity(count.min(SPAN as usize)), span.first().0);
    for _ in 0..count {
        let gap = r.varint_up_to(SPAN)?;
        let seq = next + gap;
        if seq > span.last().0 {
            return Err(r.bad("a segment of another span"));
        }
        seqs.push(Seq(seq));
        next = seq + 1;
    }
    Ok(seqs)
}

fn write_counters(w: &mut Writer, span: Span, counters: &Counted) -> Result<(), EncodeError> {
    write_places(w, span, counters.iter().map(|(seq, _)| *seq))?;
    let (mut stored, mut blocks) = (0, 0);
    for (seq, counter) in counters {
        if counter.stored_bytes > STORED_MAX {
            return Err(EncodeError::new(format!("segment {seq} has {} bytes", counter.stored_bytes)));
        }
        w.varint_signed(counter.stored_bytes.wrapping_sub(stored).cast_signed());
        stored = counter.stored_bytes;
    }
    for (_, counter) in counters {
        w.varint_signed(i64::from(counter.blocks) - blocks);
        blocks = i64::from(counter.blocks);
    }
    for (seq, counter) in counters {
        let dead = counter.blocks.checked_sub(counter.live_blocks);
        w.varint(dead.ok_or_else(|| EncodeError::new(format!("segment {seq} lives more than it has")))?.into());
    }
    Ok(())
}

fn read_counters(r: &mut Reader<'_>, span: Span) -> Result<Counted, Malformed> {
    let seqs = read_places(r, span)?;
    let mut counters: Counted = seqs.into_iter().map(|seq| (seq, Counter::default())).collect();
    let (mut stored, mut blocks) = (0_u64, 0_i64);
    for (_, counter) in &mut counters {
        stored = stored.wrapping_add(r.varint_signed()?.cast_unsigned());
        counter.stored_bytes = bytes(r, stored)?;
    }
    for (_, counter) in &mut counters {
        let sum = blocks.checked_add(r.varint_signed()?).filter(|blocks| u32::try_from(*blocks).is_ok());
        blocks = sum.ok_or_else(|| r.bad("a number of blocks that cannot be"))?;
        counter.blocks = blocks as u32;
    }
    for (_, counter) in &mut counters {
        let dead = r.varint_up_to(counter.blocks.into())?;
        counter.live_blocks = counter.blocks - dead as u32;
    }
    Ok(counters)
}

/// No object has more bytes; what claims to would make sums overflow.
const STORED_MAX: u64 = u32::MAX as u64;

fn bytes(r: &Reader<'_>, bytes: u64) -> Result<u64, Malformed> {
    if bytes <= STORED_MAX { Ok(bytes) } else { Err(r.bad("an object of more than 4 GiB")) }
}

fn write_salts(w: &mut Writer, span: Span, salts: &[(Seq, [u8; 16])]) -> Result<(), EncodeError> {
    write_places(w, span, salts.iter().map(|(seq, _)| *seq))?;
    salts.iter().for_each(|(_, salt)| w.bytes(salt));
    Ok(())
}

fn read_salts(r: &mut Reader<'_>, span: Span) -> Result<Vec<(Seq, [u8; 16])>, Malformed> {
    let seqs = read_places(r, span)?;
    seqs.into_iter().map(|seq| Ok((seq, r.array()?))).collect()
}

/// Also in a root.
pub fn write_deltas(w: &mut Writer, deltas: &[(Seq, Delta)]) {
    w.varint(deltas.len() as u64);
    let mut next = 0;
    for (seq, delta) in deltas {
        w.varint(seq.0 - next);
        w.varint(match delta {
            Delta::Died(blocks) => u64::from(*blocks) << 1,
            Delta::Gone(blocks) => u64::from(*blocks) << 1 | 1,
        });
        next = seq.0 + 1;
    }
}

/// At most so many.
pub fn read_deltas(r: &mut Reader<'_>, most: usize) -> Result<Vec<(Seq, Delta)>, Malformed> {
    let count = r.count(2)?;
    if count > most {
        return Err(r.bad("more deltas than a page has"));
    }
    let (mut deltas, mut next) = (Vec::with_capacity(count), 0_u64);
    for _ in 0..count {
        let gap = r.ordinal()?;
        let seq = next.checked_add(gap).filter(|seq| *seq <= crate::units::ORDINAL_MAX);
        let seq = seq.ok_or_else(|| r.bad("a delta of a segment that cannot be"))?;
        let delta = match r.varint_up_to(u64::from(u32::MAX) << 1 | 1)? {
            0 => return Err(r.bad("a delta of nothing")),
            gone if gone & 1 != 0 => Delta::Gone((gone >> 1) as u32),
            died => Delta::Died((died >> 1) as u32),
        };
        deltas.push((Seq(seq), delta));
        next = seq + 1;
    }
    Ok(deltas)
}

fn read_directory(r: &mut Reader<'_>, group: u64) -> Result<Vec<SpanEntry>, Malformed> {
    if r.varint()? != group {
        return Err(r.bad("a page of another group"));
    }
    let entries = read_entries(r, GROUP as usize)?;
    if entries.is_empty() || entries.iter().any(|entry| entry.span.group() != group) {
        return Err(r.bad("a span of another group"));
    }
    Ok(entries)
}

/// Also in a root.
pub fn write_entries(w: &mut Writer, entries: &[SpanEntry]) {
    w.varint(entries.len() as u64);
    let (mut next, mut object) = (0, 0);
    for entry in entries {
        w.varint(entry.span.0 - next);
        next = entry.span.0 + 1;
        w.u8(u8::from(entry.is_dead));
        write_ref(w, &mut object, &entry.counters);
        write_ref(w, &mut object, &entry.salts);
        write_summary(w, &entry.summary);
    }
}

/// At most so many.
pub fn read_entries(r: &mut Reader<'_>, most: usize) -> Result<Vec<SpanEntry>, Malformed> {
    let count = r.count(20)?;
    if count > most {
        return Err(r.bad("more spans than there can be"));
    }
    let (mut entries, mut next, mut object) = (Vec::with_capacity(count), 0_u64, 0);
    for _ in 0..count {
        let gap = r.ordinal()?;
        let span = next.checked_add(gap).filter(|span| *span <= crate::units::ORDINAL_MAX / SPAN);
        let span = span.ok_or_else(|| r.bad("a span that cannot be"))?;
        next = span + 1;
        let is_dead = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(r.bad("a span that is neither dead nor not")),
        };
        let (counters, salts) = (read_ref(r, &mut object)?, read_ref(r, &mut object)?);
        entries.push(SpanEntry { span: Span(span), is_dead, counters, salts, summary: read_summary(r)? });
    }
    Ok(entries)
}

/// The checkpoint is told by its distance from the one that was named last.
pub fn write_ref(w: &mut Writer, object: &mut u64, at: &PageRef) {
    w.varint_signed(at.checkpoint.0.wrapping_sub(*object).cast_signed());
    w.varint(at.offset.into());
    w.varint(at.len.into());
    *object = at.checkpoint.0;
}

/// As it was written.
pub fn read_ref(r: &mut Reader<'_>, object: &mut u64) -> Result<PageRef, Malformed> {
    let seq = object.wrapping_add(r.varint_signed()?.cast_unsigned());
    if seq > crate::units::ORDINAL_MAX {
        return Err(r.bad("a page in no object"));
    }
    *object = seq;
    let (offset, len) = (r.varint_u32()?, r.varint_u32()?);
    offset.checked_add(len).ok_or_else(|| r.bad("a page beyond 4 GiB"))?;
    Ok(PageRef { checkpoint: Seq(seq), offset, len })
}

fn write_summary(w: &mut Writer, summary: &Summary) {
    let Totals { objects, stored_bytes, live_blocks, live_bytes, dead_objects, dead_bytes } = summary.totals;
    let counts = [summary.segments.into(), summary.dead.into(), objects, dead_objects];
    let sums = [stored_bytes, live_blocks, live_bytes, dead_bytes];
    counts.into_iter().chain(sums).for_each(|sum| w.varint(sum));
    for share in &summary.shares {
        w.varint(share.segments.into());
        if share.segments > 0 {
            w.varint(share.stored_bytes);
        }
    }
    summary.small.iter().for_each(|segments| w.varint((*segments).into()));
}

fn read_summary(r: &mut Reader<'_>) -> Result<Summary, Malformed> {
    let segments = r.varint_up_to(SPAN)? as u32;
    let most = u64::from(segments);
    let (dead, objects, dead_objects) = (r.varint_up_to(most)? as u32, r.varint_up_to(most)?, r.varint_up_to(most)?);
    // No sum of ours overflows.
    let sum = |r: &mut Reader<'_>| r.varint_up_to(most << 32);
    let (stored_bytes, live_blocks, live_bytes, dead_bytes) = (sum(r)?, sum(r)?, sum(r)?, sum(r)?);
    let mut summary = Summary {
        segments,
        dead,
        totals: Totals { objects, stored_bytes, live_blocks, live_bytes, dead_objects, dead_bytes },
        ..Summary::default()
    };
    for class in 0..SHARES {
        let segments = r.varint_up_to(most)? as u32;
        let stored_bytes = if segments > 0 { sum(r)? } else { 0 };
        summary.shares[class] = Share { segments, stored_bytes };
    }
    for class in 0..SMALL.len() {
        summary.small[class] = r.varint_up_to(most)? as u32;
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted() -> impl Strategy<Value = (Span, Counted)> {
        let counter = (any::<u32>(), any::<u32>(), any::<u32>());
        (0_u64..1 << 40, prop::collection::btree_map(0_u64..SPAN, counter, 0..40)).prop_map(|(span, counters)| {
            let span = Span(span);
            let counted = counters.into_iter().map(|(at, (stored, a, b))| {
                let counter = Counter { stored_bytes: stored.into(), blocks: a.max(b), live_blocks: a.min(b) };
                (Seq(span.first().0 + at), counter)
            });
            (span, counted.collect())
        })
    }

    fn page_ref() -> impl Strategy<Value = PageRef> {
        (0_u64..1 << 60, 0_u32..1 << 30, 0_u32..1 << 20).prop_map(|(seq, offset, len)| PageRef {
            checkpoint: Seq(seq),
            offset,
            len,
        })
    }

    fn deltas() -> impl Strategy<Value = Vec<(Seq, Delta)>> {
        let delta = prop_oneof![any::<u32>().prop_map(Delta::Gone), (1_u32..).prop_map(Delta::Died)];
        prop::collection::btree_map(0_u64..1 << 60, delta, 0..40)
            .prop_map(|deltas| deltas.into_iter().map(|(seq, delta)| (Seq(seq), delta)).collect())
    }

    fn pages() -> impl Strategy<Value = (PageKind, u64, Page)> {
        let entries = prop::collection::btree_map(0..GROUP, (any::<bool>(), page_ref(), page_ref(), counted()), 1..9);
        let directory = (0_u64..1 << 40, entries).prop_map(|(group, entries)| {
            let entry =
                |(at, (is_dead, counters, salts, (_, counted))): (u64, (bool, PageRef, PageRef, (Span, Counted)))| {
                    let summary = Summary::of(counted.iter().map(|(_, counter)| counter));
                    SpanEntry { span: Span(group * GROUP + at), is_dead, counters, salts, summary }
                };
            (PageKind::Directory, group, Page::Directory(entries.into_iter().map(entry).collect()))
        });
        prop_oneof![
            counted().prop_map(|(span, counted)| (PageKind::Counters, span.0, Page::Counters(counted))),
            (counted(), any::<[u8; 16]>()).prop_map(|((span, counted), salt)| {
                let salts = counted.into_iter().map(|(seq, _)| (seq, salt)).collect();
                (PageKind::Salts, span.0, Page::Salts(salts))
            }),
            deltas().prop_map(|deltas| (PageKind::Deltas, 0, Page::Deltas(deltas))),
            directory,
        ]
    }

    proptest! {
        #[test]
        fn a_page_comes_back((kind, number, page) in pages()) {
            let bytes = encode(number, &page).unwrap();
            prop_assert_eq!(decode(kind, number, &bytes), Ok(page.clone()));
            if !matches!(page, Page::Deltas(_)) {
                prop_assert!(decode(kind, number + 1, &bytes).is_err(), "of another place");
            }
        }

        #[test]
        fn a_harmed_page_is_refused_or_can_be_written((kind, number, page) in pages(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encode(number, &page).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(page) = decode(kind, number, &bytes) {
                let again = encode(number, &page).unwrap();
                prop_assert_eq!(decode(kind, number, &again), Ok(page));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), number in 0u64..3) {
            for kind in [PageKind::Counters, PageKind::Salts, PageKind::Directory, PageKind::Deltas] {
                let _ = decode(kind, number, &bytes);
            }
        }
    }
}
