//! What a durable checkpoint says of the table: an entry for each span, and lists of deltas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::kept::Deaths;
use super::references::Referring;
use super::{
    Carrier, Carriers, Delta, GROUP, KeptVersion, Need, Page, PageAt, PageKind, Pages, References, Span, Summary,
};
use crate::units::{PageRef, Seq};

/// A span of the table in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanEntry {
    /// Its number.
    pub span: Span,
    /// All of its segments died since its counters were written.
    pub is_dead: bool,
    /// Its counters.
    pub counters: PageRef,
    /// Its salts, of some that are gone, too.
    pub salts: PageRef,
    /// What its counters say.
    pub summary: Summary,
}

/// What the root of a checkpoint says of the table. A few spans, and a few deltas, stand in the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRoot {
    /// The checkpoint objects in which the table has pages.
    pub objects: BTreeSet<Seq>,
    /// Entries of spans, unless there are pages of the directory.
    pub spans: Vec<SpanEntry>,
    /// Pages of the directory, each with the number of its group.
    pub groups: Vec<(u64, PageRef)>,
    /// Lists of deltas, oldest first.
    pub lists: Vec<Listed>,
    /// The deltas of one more list, as of this checkpoint.
    pub recent: Vec<(Seq, Delta)>,
    /// Versions that are kept, oldest first. No list of theirs that lies in pages is in memory.
    pub kept: Vec<KeptVersion>,
    /// Segments that carry others, in order.
    pub carriers: Vec<(Seq, Carrier)>,
    /// Segments that refer to others, in order: each of those, in order, and how many of its blocks.
    pub references: Vec<Referring>,
}

/// Where a list of deltas lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its pages, in order; one at least, all in the checkpoint as of which it is.
    pub pages: Vec<PageRef>,
}

/// Deltas as of a checkpoint. They are about spans whose counters are older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The checkpoint.
    pub at: Seq,
    /// Its pages; none if it stands in the root.
    pub pages: Vec<PageRef>,
    /// In order.
    pub entries: Vec<(Seq, Delta)>,
    /// What is known of it without them.
    pub known: Known,
}

/// How many blocks died by a list whose deltas are not in memory, if that is known. It is no part of what the list is: two are equal whatever is known.
#[derive(Debug, Default)]
pub struct Known {
    all: OnceLock<u64>,
    /// Those of segments after a place of the log.
    after: Mutex<Option<(Seq, u64)>>,
}

impl Clone for Known {
    fn clone(&self) -> Known {
        Known { all: self.all.clone(), after: Mutex::new(*self.after.lock()) }
    }
}

impl PartialEq for Known {
    fn eq(&self, _: &Known) -> bool {
        true
    }
}

impl Eq for Known {}

impl List {
    /// Blocks that died by those of its deltas that are in memory.
    pub fn blocks(&self) -> u64 {
        self.entries.iter().map(|(_, delta)| delta.blocks()).sum()
    }

    /// Blocks that died by it, if that is known.
    pub fn known_blocks(&self) -> Option<u64> {
        match self.pages.is_empty() || !self.entries.is_empty() {
            true => Some(self.blocks()),
            false => self.known.all.get().copied(),
        }
    }

    /// The same of segments after `place`.
    pub fn known_blocks_after(&self, place: Seq) -> Option<u64> {
        if place == Seq(0) {
            return self.known_blocks();
        }
        match self.pages.is_empty() || !self.entries.is_empty() {
            true => {
                let from = self.entries.partition_point(|(seq, _)| *seq <= place);
                Some(self.entries[from..].iter().map(|(_, delta)| delta.blocks()).sum())
            }
            false => self.known.after.lock().filter(|(known, _)| *known == place).map(|(_, blocks)| blocks),
        }
    }

    /// These died by it, as its pages say; it is remembered how many, and how many of segments after `place`.
    pub fn know(&self, deaths: &Deaths, place: Seq) {
        // Whoever said it before had read the same pages.
        let _ = self.known.all.set(deaths.values().sum());
        *self.known.after.lock() = Some((place, deaths.range(place.next()..).map(|(_, blocks)| blocks).sum()));
    }

    /// Its pages.
    pub fn need(&self) -> Need {
        Need(self.pages.iter().map(|at| PageAt { kind: PageKind::Deltas, number: 0, at: *at }).collect())
    }

    /// Without its deltas in memory, which its pages have.
    pub fn out_of_memory(mut self) -> List {
        let _ = self.known.all.set(self.blocks());
        self.entries = Vec::new();
        self
    }

    /// Its deltas for a span.
    pub fn of(&self, span: Span) -> &[(Seq, Delta)] {
        let from = self.entries.partition_point(|(seq, _)| *seq < span.first());
        let to = self.entries.partition_point(|(seq, _)| *seq <= span.last());
        &self.entries[from..to]
    }

    /// Its delta for a segment.
    pub fn get(&self, seq: Seq) -> Option<Delta> {
        self.entries.binary_search_by_key(&seq, |(seq, _)| *seq).ok().map(|at| self.entries[at].1)
    }

    /// Whether it has something to say of the span with that entry.
    pub fn is_about(&self, entry: &SpanEntry) -> bool {
        self.at > entry.counters.checkpoint
    }
}

/// Entries of neighbouring spans: one page of the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Where it lies; nothing if it stands in the root.
    pub at: Option<PageRef>,
    /// In order; one at least.
    pub entries: Arc<Vec<SpanEntry>>,
}

/// See the module. Shared, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The checkpoint that says it; 0 if there is none.
    pub at: Seq,
    /// By number.
    pub groups: BTreeMap<u64, Group>,
    /// Oldest first.
    pub lists: Vec<Arc<List>>,
    /// Versions that are kept, oldest first.
    pub kept: Vec<KeptVersion>,
    /// Segments that carry others.
    pub carriers: Arc<Carriers>,
    /// Segments that refer to others.
    pub references: Arc<References>,
}

impl Durable {
    /// Of the root of the checkpoint at `seq`; asks for the pages that it needs.
    pub fn new(seq: Seq, root: &TableRoot, pages: &dyn Pages) -> Result<Durable, Need> {
        let (mut durable, mut need) = (Durable { at: seq, ..Durable::default() }, Need::default());
        for entry in &root.spans {
            Arc::make_mut(&mut durable.groups.entry(entry.span.group()).or_default().entries).push(*entry);
        }
        for (number, at) in &root.groups {
            match pages.page(at) {
                Some(Page::Directory(entries)) => {
                    let group = Group { at: Some(*at), entries: Arc::new(entries.clone()) };
                    durable.groups.insert(*number, group);
                }
                _ => drop(need.0.insert(PageAt { kind: PageKind::Directory, number: *number, at: *at })),
            }
        }
        for listed in &root.lists {
            let at = listed.pages.first().map_or(seq, |page| page.checkpoint);
            let mut list = List { at, pages: listed.pages.clone(), ..List::default() };
            for at in &listed.pages {
                match pages.page(at) {
                    Some(Page::Deltas(deltas)) => list.entries.extend(deltas),
                    _ => drop(need.0.insert(PageAt { kind: PageKind::Deltas, number: 0, at: *at })),
                }
            }
            durable.lists.push(Arc::new(list));
        }
        if !root.recent.is_empty() {
            durable.lists.push(Arc::new(List { at: seq, entries: root.recent.clone(), ..List::default() }));
        }
        durable.kept.clone_from(&root.kept);
        durable.carriers = Arc::new(Carriers::new(root.carriers.iter().cloned()));
        durable.references = Arc::new(References::new(root.references.iter().cloned()));
        // The newest one gets more of what it holds.
        if let Some(newest) = durable.kept.last_mut() {
            for list in newest.held.iter_mut().filter(|list| list.entries.is_empty()) {
                let list = Arc::make_mut(list);
                for at in &list.pages {
                    match pages.page(at) {
                        Some(Page::Deltas(deltas)) => list.entries.extend(deltas),
                        _ => drop(need.0.insert(PageAt { kind: PageKind::Deltas, number: 0, at: *at })),
                    }
                }
            }
        }
        if need.0.is_empty() { Ok(durable) } else { Err(need) }
    }

    /// The entry of a span.
    pub fn entry(&self, span: Span) -> Option<&SpanEntry> {
        let entries = &self.groups.get(&span.group())?.entries;
        entries.binary_search_by_key(&span, |entry| entry.span).ok().map(|at| &entries[at])
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = &SpanEntry> {
        self.groups.values().flat_map(|group| group.entries.iter())
    }

    /// How many spans.
    pub fn spans(&self) -> usize {
        self.groups.values().map(|group| group.entries.len()).sum()
    }

    /// How many deltas.
    pub fn deltas(&self) -> usize {
        self.lists.iter().map(|list| list.entries.len()).sum()
    }

    /// What it says of the table in a root.
    pub fn root(&self) -> TableRoot {
        let mut root = TableRoot::default();
        for (number, group) in &self.groups {
            match group.at {
                Some(at) => root.groups.push((*number, at)),
                None => root.spans.extend(group.entries.iter()),
            }
        }
        for list in &self.lists {
            match list.pages.is_empty() {
                true => root.recent.clone_from(&list.entries),
                false => root.lists.push(Listed { pages: list.pages.clone() }),
            }
        }
        root.objects = self.objects().into_keys().collect();
        root.kept.clone_from(&self.kept);
        root.carriers = self.carriers.iter().map(|(seq, carrier)| (*seq, carrier.clone())).collect();
        root.references = self.references.iter().map(|(seq, refers)| (seq, refers.to_vec())).collect();
        for list in root.kept.iter_mut().flat_map(|version| &mut version.held) {
            if !list.pages.is_empty() && !list.entries.is_empty() {
                *list = Arc::new(List::clone(list).out_of_memory());
            }
        }
        root
    }

    /// The checkpoint objects in which it has pages, and how many sealed bytes.
    pub fn objects(&self) -> BTreeMap<Seq, u64> {
        let mut objects = BTreeMap::new();
        let mut count = |at: &PageRef| *objects.entry(at.checkpoint).or_default() += u64::from(at.len);
        self.groups.values().filter_map(|group| group.at.as_ref()).for_each(&mut count);
        self.entries().for_each(|entry| {
            count(&entry.counters);
            count(&entry.salts);
        });
        self.lists.iter().flat_map(|list| &list.pages).for_each(&mut count);
        objects
    }

    /// The checkpoint objects that versions need which are kept, and those in which it stands what these hold.
    pub fn kept_objects(&self) -> impl Iterator<Item = Seq> + '_ {
        kept_objects(&self.kept)
    }

    /// If the checkpoint is itself kept, it needs these objects of the map's, and those of the table.
    pub fn needs_as_a_version(&mut self, of_map: impl Iterator<Item = Seq>) {
        let of_table = self.objects();
        if let Some(own) = self.kept.last_mut().filter(|version| version.seq == self.at) {
            own.objects.extend(of_map.chain(of_table.into_keys()));
        }
    }

    /// The last place of the log that a version has which is kept; 0 if there is none.
    pub fn newest_kept(&self) -> Seq {
        self.kept.last().map_or(Seq(0), |version| version.seq)
    }

    /// Sealed bytes of its pages.
    pub fn bytes(&self) -> u64 {
        let groups = self.groups.values().filter_map(|group| group.at.as_ref());
        let spans = self.entries().flat_map(|entry| [&entry.counters, &entry.salts]);
        let lists = self.lists.iter().flat_map(|list| &list.pages);
        groups.chain(spans).chain(lists).map(|at| u64::from(at.len)).sum()
    }

    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        let held: usize = self.kept.iter().flat_map(|version| &version.held).map(|list| list.entries.len()).sum();
        self.carriers.memory()
            + self.references.memory()
            + self.spans() * size_of::<SpanEntry>()
            + (self.deltas() + held) * size_of::<(Seq, Delta)>()
    }
}

/// The checkpoint objects that these versions need, and those in which it stands what they hold.
pub fn kept_objects(kept: &[KeptVersion]) -> impl Iterator<Item = Seq> + '_ {
    kept.iter().flat_map(|version| version.objects.iter().copied().chain(version.pages().map(|at| at.checkpoint)))
}

/// The spans of a group.
pub fn spans_of(group: u64) -> std::ops::Range<u64> {
    group * GROUP..(group + 1) * GROUP
}
