//! What the table says, layer over layer: pages, lists of deltas, what a checkpoint under way writes, and what happened since.

use super::deltas::{self, Contradiction, Layer};
use super::{Counted, Counter, Durable, Need, Pages, Span, SpanEntry};
use crate::units::Seq;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What the last checkpoint says.
    pub durable: &'a Durable,
    /// What happened after it, oldest first.
    pub above: [Option<&'a Layer>; 2],
}

impl View<'_> {
    /// What is counted of the segments of a span, and how many contradictions there were.
    pub fn span(&self, span: Span, pages: &dyn Pages) -> Result<(Counted, u64), Need> {
        let (mut counters, mut contradictions) = match self.durable.entry(span) {
            Some(entry) => self.base(entry, pages)?,
            None => (Vec::new(), 0),
        };
        for layer in self.above.iter().flatten() {
            contradictions += layer.apply_to(span, &mut counters);
        }
        Ok((counters, contradictions))
    }

    /// What is durable of it.
    fn base(&self, entry: &SpanEntry, pages: &dyn Pages) -> Result<(Counted, u64), Need> {
        let mut counters = pages.counters(entry.span, &entry.counters)?.clone();
        if entry.is_dead {
            counters.iter_mut().for_each(|(_, counter)| counter.live_blocks = 0);
        }
        let lists = self.durable.lists.iter().filter(|list| list.is_about(entry));
        let contradictions =
            lists.map(|list| deltas::apply_all(list.of(entry.span).iter().copied(), &mut counters)).sum();
        Ok((counters, contradictions))
    }

    /// What is counted of one segment; nothing if it is not in the table.
    pub fn counter(&self, seq: Seq, pages: &dyn Pages) -> Result<Option<Counter>, Need> {
        let births = self.above.iter().map(|layer| layer.and_then(|layer| layer.births.get(&seq)));
        let born = births.enumerate().filter_map(|(at, info)| Some((at + 1, info?.counter()))).next_back();
        let (from, mut counter) = match (born, self.durable.entry(Span::of(seq))) {
            (Some((layer, counter)), _) => (layer, Some(counter)),
            (None, Some(entry)) => (0, self.durable_counter(seq, entry, pages)?),
            (None, None) => return Ok(None),
        };
        for layer in self.above[from..].iter().flatten() {
            if let Some(counter) = counter.as_mut().filter(|_| layer.all_died) {
                counter.live_blocks = 0;
            }
            counter = less(counter, layer.deltas.get(&seq).copied());
        }
        Ok(counter)
    }

    fn durable_counter(&self, seq: Seq, entry: &SpanEntry, pages: &dyn Pages) -> Result<Option<Counter>, Need> {
        let counters = pages.counters(entry.span, &entry.counters)?;
        let found = counters.binary_search_by_key(&seq, |(seq, _)| *seq).ok().map(|at| counters[at].1);
        let found = found.map(|counter| match entry.is_dead {
            true => Counter { live_blocks: 0, ..counter },
            false => counter,
        });
        let lists = self.durable.lists.iter().filter(|list| list.is_about(entry));
        Ok(lists.fold(found, |counter, list| less(counter, list.get(seq))))
    }

    /// The salt of a segment; nothing if it is not in the table.
    pub fn salt(&self, seq: Seq, pages: &dyn Pages) -> Result<Option<[u8; 16]>, Need> {
        if let Some(info) = self.above.iter().flatten().rev().find_map(|layer| layer.births.get(&seq)) {
            return Ok(Some(info.salt));
        }
        let Some(entry) = self.durable.entry(Span::of(seq)) else { return Ok(None) };
        let salts = pages.salts(entry.span, &entry.salts)?;
        Ok(salts.binary_search_by_key(&seq, |(seq, _)| *seq).ok().map(|at| salts[at].1))
    }

    /// The spans of which it knows segments, in order.
    pub fn spans(&self) -> std::collections::BTreeSet<Span> {
        let births = self.above.iter().flatten().flat_map(|layer| layer.births.keys());
        let mut spans: std::collections::BTreeSet<Span> = births.map(|seq| Span::of(*seq)).collect();
        spans.extend(self.durable.entries().map(|entry| entry.span));
        spans
    }
}

fn less(counter: Option<Counter>, delta: Option<deltas::Delta>) -> Option<Counter> {
    match (counter, delta) {
        (Some(counter), Some(delta)) => deltas::apply(counter, delta).unwrap_or_else(|Contradiction(left)| Some(left)),
        (counter, _) => counter,
    }
}
