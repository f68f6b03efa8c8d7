//! What a checkpoint writes of the table. Pure: it says which pages it needs, and goes on when it has them.
//!
//! Births have to go into the pages of their spans. Other spans are *folded*, their deltas counted into a new page, where that pays: where
//! many deltas have come together, in the few spans where most died (there is space to win), and in as many more as it takes for all
//! deltas to stay within their bound. What is left becomes a list; lists are joined so that each is longer than all newer ones, and few.
//!
//! A page that is not written again keeps the checkpoint alive in which it lies. So that these stay few, what is left of the table in the objects
//! that hold least of it is *carried* into this one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::deltas::{Delta, Layer};
use super::directory::{Durable, Group, List, SpanEntry};
use super::kept::{self, Versions};
use super::page_format::{self, PAGE_DELTAS_MAX};
use super::table::Snapshot;
use super::{Carriers, Need, Page, Pages, References, SegmentInfo, Sink, Span, Summary, View};
use crate::codec::EncodeError;
use crate::units::{PageRef, Seq};

/// Spans that are looked at in one step.
const STEP: usize = 32;

/// What bounds the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Deltas that wait to be folded; they are in memory.
    pub deltas: usize,
    /// A span is folded if it has, in all lists together, as many deltas as this part of its segments: each was written some three times
    /// by then, and a page takes about as many bytes.
    pub part: u64,
    /// Spans that are folded because most died in them, at most.
    pub few: usize,
    /// One of these for so many deltas of the checkpoint.
    pub deltas_of_few: usize,
    /// Spans that may stand in a root.
    pub spans_in_root: usize,
    /// Deltas that may stand in a root.
    pub deltas_in_root: usize,
    /// Lists of deltas.
    pub lists: usize,
    /// Checkpoint objects in which the table has pages.
    pub objects: usize,
    /// Spans that one checkpoint writes because of the other bounds.
    pub spans: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            deltas: 512 << 10,
            part: 1,
            few: 16,
            deltas_of_few: 64,
            spans_in_root: 16,
            deltas_in_root: 256,
            lists: 8,
            objects: 64,
            spans: 2048,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fold {
    at: Seq,
    bounds: Bounds,
    durable: Arc<Durable>,
    /// What happened since, deaths found by this checkpoint among it.
    layer: Layer,
    /// Spans in which it found deaths.
    found: BTreeSet<Span>,
    versions: Versions,
    carriers: Arc<Carriers>,
    references: Arc<References>,
    free: kept::Deaths,
    /// Blocks that live once more, by who holds them.
    revived: kept::Deaths,
    tasks: VecDeque<Task>,
    /// Objects that are to be left behind.
    left: BTreeSet<Seq>,
    done: BTreeMap<Span, Option<SpanEntry>>,
    contradictions: u64,
}

/// A span that is written anew.
#[derive(Clone, Copy, Debug)]
struct Task {
    span: Span,
    /// It has births, which must not be lost.
    is_needed: bool,
    salts: bool,
}

/// How far it is.
#[derive(Debug)]
pub enum Progress {
    /// There is more to do.
    GoOn,
    /// These pages are needed first.
    Needs(Need),
    /// Nothing is left to do but [`Fold::finish`].
    Done,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Folded {
    /// What the checkpoint says of the table.
    pub durable: Durable,
    /// Spans of which it says something else than was known.
    pub changed: BTreeSet<Span>,
    /// Segments that are in no page, because a page of their span cannot be read.
    pub loose: Vec<(Seq, SegmentInfo)>,
    /// Counts that contradicted each other.
    pub contradictions: u64,
    /// Deaths that it found or that no version holds any more, by the places at which maps have the blocks: they are counted to who held these then.
    pub free: kept::Deaths,
}

impl Fold {
    /// Of the checkpoint at `at`, which found these blocks of segments dead. What lies in the objects of `leave` is written anew.
    pub fn new(
        at: Seq,
        snapshot: &Snapshot,
        deaths: impl Iterator<Item = (Seq, u64)>,
        leave: BTreeSet<Seq>,
        bounds: Bounds,
    ) -> Fold {
        let mut fold = Fold {
            at,
            bounds,
            durable: snapshot.durable.clone(),
            layer: (*snapshot.frozen).clone(),
            found: BTreeSet::new(),
            versions: Versions::new(&snapshot.durable.kept, &snapshot.frozen.held),
            carriers: snapshot.carriers.clone(),
            references: snapshot.references.clone(),
            free: kept::Deaths::new(),
            revived: kept::Deaths::new(),
            tasks: VecDeque::new(),
            left: leave,
            done: BTreeMap::new(),
            contradictions: 0,
        };
        let mut free = kept::Deaths::new();
        for (seq, blocks) in deaths {
            if !fold.versions.hold(seq, blocks) {
                *free.entry(seq).or_default() += blocks;
            }
        }
        for (seq, blocks) in fold.versions.change(at, &snapshot.change) {
            *free.entry(seq).or_default() += blocks;
        }
        for (seq, blocks) in &free {
            let holder = fold.carriers.holder(*seq);
            fold.found.insert(Span::of(holder));
            fold.contradictions += u64::from(fold.layer.note_deaths(holder, *blocks).is_err());
        }
        fold.free = free;
        for (seq, blocks) in &snapshot.revived {
            *fold.revived.entry(fold.carriers.holder(*seq)).or_default() += blocks;
        }
        fold.plan();
        fold
    }

    fn plan(&mut self) {
        // What is counted once more must not be lost either.
        let needed = self.layer.births.keys().chain(self.revived.keys());
        let born: BTreeSet<Span> = needed.map(|seq| Span::of(*seq)).collect();
        let mut chosen: BTreeSet<Span> = born.clone();
        let pending = self.pending();
        let segments = |span: &Span| self.durable.entry(*span).map_or(0, |entry| u64::from(entry.summary.segments));
        chosen.extend(
            pending.iter().filter(|(span, of)| of.deltas * self.bounds.part >= segments(span)).map(|(span, _)| *span),
        );
        let mut rest: Vec<(Span, Pending)> =
            pending.iter().filter(|(span, _)| !chosen.contains(span)).map(|(span, of)| (*span, *of)).collect();
        rest.sort_unstable_by_key(|(span, of)| (std::cmp::Reverse(of.blocks), *span));
        let few = self.bounds.few.min(1 + self.layer.deltas.len() / self.bounds.deltas_of_few.max(1));
        chosen.extend(rest.drain(..rest.len().min(few)).map(|(span, _)| span));
        let mut left: u64 = rest.iter().map(|(_, of)| of.deltas).sum();
        if left > self.bounds.deltas as u64 {
            rest.sort_unstable_by_key(|(span, of)| (std::cmp::Reverse(of.deltas), *span));
            for (span, of) in rest.into_iter().take(self.bounds.spans) {
                if left <= self.bounds.deltas as u64 / 4 {
                    break;
                }
                left -= of.deltas;
                chosen.insert(span);
            }
        }
        let carried = self.carried(&chosen);
        chosen.extend(carried.iter().take(self.bounds.spans));
        // A span that only deltas name is in no checkpoint: they contradict the table.
        chosen.retain(|span| born.contains(span) || self.durable.entry(*span).is_some());
        let task = |span: Span| {
            let is_needed = born.contains(&span);
            let is_left = |entry: &SpanEntry| self.left.contains(&entry.salts.checkpoint);
            let salts = is_needed || self.durable.entry(span).is_some_and(is_left);
            Task { span, is_needed, salts }
        };
        let mut tasks: VecDeque<Task> = chosen.into_iter().map(task).collect();
        // What is needed comes first: what is left may be given up.
        tasks.make_contiguous().sort_by_key(|task| !task.is_needed);
        self.tasks = tasks;
    }

    /// How much is pending for each span, this layer's deltas included.
    fn pending(&self) -> BTreeMap<Span, Pending> {
        let mut pending: BTreeMap<Span, Pending> = BTreeMap::new();
        let mut count = |seq: &Seq, delta: &Delta| {
            let of = pending.entry(Span::of(*seq)).or_default();
            of.deltas += 1;
            of.blocks += match delta {
                Delta::Died(blocks) => u64::from(*blocks),
                Delta::Gone(blocks) => u64::from(*blocks).max(1),
            };
        };
        self.layer.deltas.iter().for_each(|(seq, delta)| count(seq, delta));
        for list in &self.durable.lists {
            list.entries
                .iter()
                .filter(|(seq, delta)| self.counts(list, *seq, *delta))
                .for_each(|(seq, delta)| count(seq, delta));
        }
        pending
    }

    /// Whether a delta of an older list says something that is not counted yet.
    fn counts(&self, list: &List, seq: Seq, delta: Delta) -> bool {
        let span = Span::of(seq);
        let is_void = self.layer.all_died && !delta.is_gone() || self.done.contains_key(&span);
        !is_void && self.durable.entry(span).is_some_and(|entry| list.is_about(entry))
    }

    /// The spans that have pages in objects that are to be left behind, so that there are not too many.
    fn carried(&mut self, chosen: &BTreeSet<Span>) -> BTreeSet<Span> {
        let mut objects: BTreeMap<Seq, Vec<Span>> = BTreeMap::new();
        for group in self.durable.groups.values() {
            if let Some(at) = &group.at {
                objects.entry(at.checkpoint).or_default();
            }
        }
        for entry in self.durable.entries() {
            // The counters of what is chosen are written anew, but not its salts.
            let counters = (!chosen.contains(&entry.span)).then_some(&entry.counters);
            for at in counters.into_iter().chain([&entry.salts]) {
                objects.entry(at.checkpoint).or_default().push(entry.span);
            }
        }
        for at in self.durable.lists.iter().flat_map(|list| &list.pages) {
            objects.entry(at.checkpoint).or_default();
        }
        let mut carried: BTreeSet<Span> =
            self.left.iter().filter_map(|seq| objects.get(seq)).flatten().copied().collect();
        let Some(excess) = objects.len().checked_sub(self.bounds.objects + 1) else { return carried };
        let mut by_size: Vec<(usize, Seq)> = objects.iter().map(|(seq, spans)| (spans.len(), *seq)).collect();
        by_size.sort_unstable();
        for (spans, seq) in by_size.into_iter().take(excess + 1 + self.bounds.objects / 4) {
            if carried.len() + spans > self.bounds.spans && !carried.is_empty() {
                break;
            }
            carried.extend(&objects[&seq]);
            self.left.insert(seq);
        }
        carried
    }

    /// Does some more.
    pub fn go_on(&mut self, pages: &dyn Pages, sink: &mut dyn Sink) -> Result<Progress, EncodeError> {
        let step: Vec<Task> = self.tasks.iter().take(STEP).copied().collect();
        let mut need = Need::default();
        for task in &step {
            if let Some(entry) = self.durable.entry(task.span) {
                let counters = pages.counters(task.span, &entry.counters).map(|_| ());
                let salts = if task.salts { pages.salts(task.span, &entry.salts).map(|_| ()) } else { Ok(()) };
                [counters, salts].into_iter().filter_map(Result::err).for_each(|lacks| need.0.extend(lacks.0));
            }
        }
        if !need.0.is_empty() {
            return Ok(Progress::Needs(need));
        }
        for task in &step {
            self.fold(*task, pages, sink)?;
        }
        self.tasks.drain(..step.len());
        Ok(if self.tasks.is_empty() { Progress::Done } else { Progress::GoOn })
    }

    /// Pages that were needed cannot be had: what can wait is left as it is. Returns false if births would be lost.
    pub fn give_up(&mut self) -> bool {
        self.tasks.retain(|task| task.is_needed);
        self.left.clear();
        self.tasks.is_empty()
    }

    /// Pages that are needed for births cannot be read, ever: these births stay in the root. What is to be counted once more is not then, and [`Fold::finish`]
    /// fails.
    pub fn set_aside(&mut self, need: &Need) {
        let spans: BTreeSet<Span> = need.0.iter().map(|page| Span(page.number)).collect();
        self.tasks.retain(|task| !spans.contains(&task.span));
    }

    fn fold(&mut self, task: Task, pages: &dyn Pages, sink: &mut dyn Sink) -> Result<(), EncodeError> {
        let (span, before) = (task.span, self.durable.entry(task.span).copied());
        let view = View { durable: &self.durable, above: [Some(&self.layer), None] };
        let lacks = |_| EncodeError::new("a page of the table left while it was folded");
        let (mut counters, contradictions) = view.span(span, pages).map_err(lacks)?;
        self.contradictions += contradictions;
        for (seq, blocks) in self.revived.range(span.first()..=span.last()) {
            let at = counters.binary_search_by_key(seq, |(seq, _)| *seq);
            let at =
                at.map_err(|_| EncodeError::new(format!("a snapshot needs segment {seq}, which is not in the table")))?;
            let counter = &mut counters[at].1;
            let live = u64::from(counter.live_blocks) + blocks;
            counter.live_blocks = u32::try_from(live).unwrap_or(u32::MAX);
            // It may live in the head and in versions that do not follow on one another.
            counter.blocks = counter.blocks.max(counter.live_blocks);
        }
        if counters.is_empty() {
            self.done.insert(span, None);
            return Ok(());
        }
        let salts = match before.filter(|_| !task.salts) {
            Some(entry) => entry.salts,
            None => {
                let mut salts = Vec::with_capacity(counters.len());
                for (seq, _) in &counters {
                    salts.push((*seq, view.salt(*seq, pages).map_err(lacks)?.unwrap_or_default()));
                }
                put(sink, span.0, Page::Salts(salts))?
            }
        };
        let summary = Summary::of(counters.iter().map(|(_, counter)| counter));
        let counters = put(sink, span.0, Page::Counters(counters))?;
        self.done.insert(span, Some(SpanEntry { span, is_dead: false, counters, salts, summary }));
        Ok(())
    }

    /// The rest: lists of deltas and the directory.
    pub fn finish(mut self, sink: &mut dyn Sink) -> Result<Folded, EncodeError> {
        if let Some(seq) = self.revived.keys().find(|seq| !self.done.contains_key(&Span::of(**seq))) {
            return Err(EncodeError::new(format!("what is counted of segment {seq} cannot be read")));
        }
        let lists = self.lists(sink)?;
        let groups = self.groups(sink)?;
        let versions = std::mem::take(&mut self.versions);
        let kept = versions
            .finish(self.bounds.deltas_in_root, |entries, in_root| write_list(self.at, entries, in_root, sink))?;
        let is_loose = |seq: &Seq| !self.done.contains_key(&Span::of(*seq));
        let loose =
            self.layer.births.iter().filter(|(seq, _)| is_loose(seq)).map(|(seq, info)| (*seq, *info)).collect();
        let changed = self.done.into_keys().chain(self.found).collect();
        Ok(Folded {
            loose,
            durable: Durable {
                at: self.at,
                groups,
                lists,
                kept,
                carriers: self.carriers,
                // What is under way counts already, and is in no checkpoint before it took effect.
                references: Arc::new(self.references.up_to(self.at)),
            },
            changed,
            contradictions: self.contradictions,
            free: self.free,
        })
    }

    fn lists(&mut self, sink: &mut dyn Sink) -> Result<Vec<Arc<List>>, EncodeError> {
        let mut fresh = std::mem::take(&mut self.layer.deltas);
        fresh.retain(|seq, delta| {
            let span = Span::of(*seq);
            let is_known = self.durable.entry(span).is_some();
            let is_folded = self.done.contains_key(&span);
            // Nothing is known of the segment: whoever counted its blocks is wrong. Nothing follows from that.
            self.contradictions += u64::from(!is_known && !is_folded && !delta.is_gone());
            is_known && !is_folded
        });
        let mut lists: Vec<Arc<List>> = self.durable.lists.clone();
        lists.retain(|list| list.entries.iter().any(|(seq, delta)| self.counts(list, *seq, *delta)));
        // From the first list on that has to be written anew, all are joined.
        let is_left = |list: &Arc<List>| list.pages.iter().any(|at| self.left.contains(&at.checkpoint));
        let first = lists.iter().position(|list| self.layer.all_died || list.pages.is_empty() || is_left(list));
        while let Some(last) = lists.last() {
            let has_to = first.is_some_and(|first| lists.len() > first) || lists.len() >= self.bounds.lists;
            if !has_to && (fresh.is_empty() || last.entries.len() > 2 * fresh.len()) {
                break;
            }
            for (seq, delta) in last.entries.iter().filter(|(seq, delta)| self.counts(last, *seq, *delta)) {
                // Where all died, that is counted already.
                let delta = if self.layer.all_died { Delta::Gone(0) } else { *delta };
                fresh.entry(*seq).and_modify(|later| *later = delta.and(*later)).or_insert(delta);
            }
            lists.pop();
        }
        if !fresh.is_empty() {
            let entries = fresh.into_iter().collect();
            lists.push(Arc::new(write_list(self.at, entries, self.bounds.deltas_in_root, sink)?));
        }
        Ok(lists)
    }

    fn groups(&self, sink: &mut dyn Sink) -> Result<BTreeMap<u64, Group>, EncodeError> {
        let mut groups = self.durable.groups.clone();
        if self.layer.all_died {
            for group in groups.values_mut() {
                group.at = None;
                for entry in Arc::make_mut(&mut group.entries) {
                    entry.is_dead = true;
                    entry.summary.kill();
                }
            }
        }
        for (span, entry) in &self.done {
            let group = groups.entry(span.group()).or_default();
            group.at = None;
            let entries = Arc::make_mut(&mut group.entries);
            let place = entries.binary_search_by_key(span, |entry| entry.span);
            match (place, entry) {
                (Ok(at), Some(entry)) => entries[at] = *entry,
                (Ok(at), None) => drop(entries.remove(at)),
                (Err(at), Some(entry)) => entries.insert(at, *entry),
                (Err(_), None) => {}
            }
        }
        groups.retain(|_, group| !group.entries.is_empty());
        let spans: usize = groups.values().map(|group| group.entries.len()).sum();
        for (number, group) in &mut groups {
            if spans <= self.bounds.spans_in_root {
                group.at = None;
            } else if group.at.is_none_or(|at| self.left.contains(&at.checkpoint)) {
                group.at = Some(put(sink, *number, Page::Directory(group.entries.to_vec()))?);
            }
        }
        Ok(groups)
    }
}

/// What waits for one span.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    deltas: u64,
    blocks: u64,
}

/// A list as of a checkpoint, in pages if it has more entries than that.
fn write_list(at: Seq, entries: Vec<(Seq, Delta)>, in_root: usize, sink: &mut dyn Sink) -> Result<List, EncodeError> {
    let mut list = List { at, entries, ..List::default() };
    if list.entries.len() > in_root {
        for part in list.entries.chunks(PAGE_DELTAS_MAX) {
            list.pages.push(put(sink, 0, Page::Deltas(part.to_vec()))?);
        }
    }
    Ok(list)
}

fn put(sink: &mut dyn Sink, number: u64, page: Page) -> Result<PageRef, EncodeError> {
    let bytes = page_format::encode(number, &page)?;
    sink.put(&bytes, page)
}
