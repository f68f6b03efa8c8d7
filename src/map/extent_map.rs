//! The map of a volume: the newest table, what a checkpoint under way writes, and the runs in the store; and the table of segments, whose
//! pages are in memory beside those of the map.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::page_cache::{PageCache, WithMore};
use super::{Deaths, Entry, Found, MapPage, PageAt, PageKind, PageRef, Placement, Run, SegmentInfo, Table};
use crate::space::{self, Cargo, Carriers, Counted, Counter, Folded, Need, Page, Space, Span, Want, carriers};
use crate::units::{BlockCount, BlockIndex, Extent, Location, Seq};

/// An entry of a run takes so many bytes in memory, about.
const ENTRY_MEMORY: u64 = 32;

/// What a change of more blocks takes the place of is not looked up in runs, but counted when they are merged.
const LOOK_BLOCKS_MAX: u64 = 32 << 10;

/// A hole of fewer blocks over nothing is left out of the newest table; a longer one would fall apart.
const SHORT_HOLE: u64 = 128;

/// The map of one volume.
#[derive(Debug)]
pub struct ExtentMap {
    volume: Extent,
    newest: Table,
    /// What the checkpoint under way writes.
    frozen: Option<Arc<Table>>,
    /// Newest first.
    runs: Arc<Vec<Run>>,
    pages: PageCache,
    space: Space,
    /// Live blocks are counted exactly, at once, while all of the map takes at most so many bytes.
    exact_memory: u64,
}

/// Pages that must be in memory before the operation can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedPages(pub Vec<PageAt>);

impl From<Need> for NeedPages {
    fn from(need: Need) -> NeedPages {
        let page = |page: space::PageAt| PageAt {
            first: BlockIndex(page.number),
            at: page.at,
            kind: PageKind::Table(page.kind),
        };
        NeedPages(need.0.into_iter().map(page).collect())
    }
}

/// What a checkpoint writes: the map at one instant.
#[derive(Clone, Debug)]
pub struct MapSnapshot {
    /// What was committed since the last checkpoint.
    pub newest: Arc<Table>,
    /// The runs below it, newest first.
    pub runs: Arc<Vec<Run>>,
    /// The table of segments.
    pub table: space::Snapshot,
    /// Blocks that are live, about.
    pub live_blocks: u64,
    /// Runs below it of which nothing is left, if that is so: nobody needs them, but to let go of them takes longer than a lock should be held.
    pub forgotten: Option<Arc<Vec<Run>>>,
}

/// What a durable checkpoint made of a [`MapSnapshot`].
#[derive(Debug, Default)]
pub struct Checkpointed {
    /// The runs as they are now.
    pub runs: Vec<Run>,
    /// The table of segments, those deaths counted.
    pub table: Folded,
    /// Pages that it wrote.
    pub pages: Vec<(PageRef, Arc<MapPage>)>,
}

/// What was in memory until a checkpoint had it, and what it took the place of.
#[derive(Debug)]
pub struct Superseded {
    _table: Option<Arc<Table>>,
    _runs: Arc<Vec<Run>>,
    _space: space::Superseded,
}

/// What the layers below the newest table say.
#[derive(Default)]
struct Below {
    /// Nothing where no layer says anything.
    found: Vec<(Extent, Option<Entry>)>,
    /// What cannot be said without a page.
    unknown: Vec<Extent>,
    missing: BTreeSet<PageAt>,
}

impl ExtentMap {
    /// The empty map of a volume of `blocks`.
    pub fn new(blocks: BlockCount) -> ExtentMap {
        ExtentMap::restore(blocks, Vec::new(), Table::default(), Space::default())
    }

    /// The map of a checkpoint, no page loaded. `newest` lies above the runs.
    pub fn restore(blocks: BlockCount, runs: Vec<Run>, newest: Table, space: Space) -> ExtentMap {
        ExtentMap {
            volume: Extent { start: BlockIndex(0), count: blocks },
            newest,
            frozen: None,
            runs: Arc::new(runs),
            pages: PageCache::default(),
            space,
            exact_memory: 0,
        }
    }

    /// Live blocks are counted exactly, at once, while all of the map takes at most so many bytes; then a change needs the pages that
    /// it touches. Beyond that nothing is loaded for a change, and what it took the place of is counted when runs are merged.
    pub fn count_exactly_within(&mut self, bytes: u64) {
        self.exact_memory = bytes;
    }

    /// Whether all of the map may be in memory.
    pub fn is_exact(&self) -> bool {
        self.entries() * ENTRY_MEMORY + self.dirty_memory() as u64 <= self.exact_memory
    }

    /// Entries of all runs.
    pub fn entries(&self) -> u64 {
        self.runs.iter().map(|run| run.entries).sum()
    }

    /// The blocks of the volume.
    pub fn volume(&self) -> Extent {
        self.volume
    }

    /// The runs, newest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs, as one can keep them: they never change, the map gets others.
    pub fn shared_runs(&self) -> &Arc<Vec<Run>> {
        &self.runs
    }

    /// Sealed bytes of the pages of its runs, about.
    pub fn stored_bytes(&self) -> u64 {
        self.runs.iter().flat_map(|run| run.objects.values()).sum()
    }

    /// Entries of the runs of which something may have been committed after `as_of`.
    pub fn entries_since(&self, as_of: Seq) -> u64 {
        self.runs.iter().take_while(|run| run.through > as_of).map(|run| run.entries).sum()
    }

    /// The pages of its upper part that are not in memory: see [`PageKind::is_upper`].
    pub fn upper(&self) -> Vec<PageAt> {
        let salts = self.space.durable().entries().map(|entry| PageAt {
            first: BlockIndex(entry.span.0),
            at: entry.salts,
            kind: PageKind::Table(space::PageKind::Salts),
        });
        let runs = self.runs.iter().filter(|run| run.kind == PageKind::Index);
        let indexes =
            runs.flat_map(|run| run.pages.iter().map(|&(first, at)| PageAt { first, at, kind: PageKind::Index }));
        salts.chain(indexes).filter(|page| !self.pages.has(&page.at)).collect()
    }

    /// The volume has so many blocks from now on. What it loses must have been given up before: fails, and changes nothing, with
    /// the first block beyond the end that is known to be mapped.
    pub fn resize(&mut self, blocks: BlockCount) -> Result<(), BlockIndex> {
        let end = BlockIndex(blocks.0);
        if end < self.volume.end() {
            let is_mapped = |(_, placement): &&(Extent, Placement)| *placement != Placement::Hole;
            let (placed, _) = self.placed(Extent::between(end, self.volume.end()), &HashMap::new());
            if let Some((extent, _)) = placed.iter().find(is_mapped) {
                return Err(extent.start);
            }
        }
        self.volume.count = blocks;
        Ok(())
    }

    /// Where what the blocks of `extent` hold lies, in order, without gaps; neighbours of one kind may be apart.
    pub fn lookup(&self, extent: Extent) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        self.lookup_with(extent, &HashMap::new())
    }

    /// As [`ExtentMap::lookup`], but pages that are not in memory are taken from `more`.
    pub fn lookup_with(
        &self,
        extent: Extent,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        let (placed, mut missing) = self.placed(extent, more);
        let held = self.held(placed, more, &mut missing);
        need(missing)?;
        Ok(held)
    }

    /// As [`ExtentMap::lookup_with`], but what is carried is said to be where it was before.
    pub fn named_with(
        &self,
        extent: Extent,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Vec<(Extent, Placement)>, NeedPages> {
        let (placed, missing) = self.placed(extent, more);
        need(missing)?;
        Ok(placed)
    }

    /// What is placed in segments that are carried is in their carriers, each block where the carrier's head says. One that is not there stays where it
    /// was: whoever reads it fails.
    fn held(
        &self,
        placed: Vec<(Extent, Placement)>,
        more: &HashMap<PageRef, Arc<MapPage>>,
        missing: &mut BTreeSet<PageAt>,
    ) -> Vec<(Extent, Placement)> {
        let carriers = self.space.carriers();
        if carriers.is_empty() {
            return placed;
        }
        let mut held = Vec::with_capacity(placed.len());
        for (part, placement) in placed {
            let carrier = match placement {
                Placement::Data(location) => carriers.carrier_of(location.frame.seq),
                Placement::Zero | Placement::Hole => None,
            };
            let Some((carrier, salt)) = carrier else {
                held.push((part, placement));
                continue;
            };
            let at = carriers::places_of(carrier);
            match self.pages.get(&at).or_else(|| more.get(&at).map(|page| &**page)) {
                Some(MapPage::Carrier(places)) => {
                    super::table::fill(part, placed_in(places, part), |at, found| {
                        let stays = || placement.skip(at.start - part.start);
                        held.push((at, found.map_or_else(stays, |entry| entry.placement)));
                    });
                }
                _ => drop(missing.insert(PageAt { first: BlockIndex(0), at, kind: PageKind::Carrier(salt) })),
            }
        }
        held
    }

    /// What is known of `extent`, in order, and the pages that are missing to know all of it.
    fn placed(
        &self,
        extent: Extent,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> (Vec<(Extent, Placement)>, BTreeSet<PageAt>) {
        let (mut placed, mut gaps) = (Vec::new(), Vec::new());
        self.newest.lookup(extent, |part, entry| match entry {
            Some(entry) => placed.push((part, entry.placement)),
            None => gaps.push(part),
        });
        let Below { found, missing, .. } = self.below(gaps, more, true);
        let hole =
            |(part, entry): (Extent, Option<Entry>)| (part, entry.map_or(Placement::Hole, |entry| entry.placement));
        placed.extend(found.into_iter().map(hole));
        placed.sort_unstable_by_key(|(part, _)| part.start);
        (placed, missing)
    }

    /// What the layers below the newest table say of these extents. `all` asks for every page that may be missing; otherwise those of
    /// the first layer in which one is are enough.
    fn below(&self, extents: Vec<Extent>, more: &HashMap<PageRef, Arc<MapPage>>, all: bool) -> Below {
        // Neighbours are mostly on the same pages: the last leaf and the last index page are not looked for again.
        let last: [Cell<Option<(PageRef, &MapPage)>>; 2] = Default::default();
        let page = |at: &PageRef| {
            if let Some((_, page)) = last.iter().filter_map(Cell::get).find(|(have, _)| have == at) {
                return Some(page);
            }
            let page = self.pages.get(at).or_else(|| more.get(at).map(|page| &**page))?;
            last[usize::from(matches!(page, MapPage::Index(_)))].set(Some((*at, page)));
            Some(page)
        };
        let (mut below, mut clear) = (Below::default(), extents);
        if let Some(frozen) = &self.frozen {
            let mut deeper = Vec::new();
            for extent in clear {
                frozen.lookup(extent, |part, entry| match entry {
                    Some(_) => below.found.push((part, entry)),
                    None => deeper.push(part),
                });
            }
            clear = deeper;
        }
        // What lies under a page that is missing: it may be hidden, but if not, its pages are needed too.
        let mut dim: Vec<Extent> = Vec::new();
        for run in self.runs.iter() {
            let (mut deeper, mut dimmer) = (Vec::new(), Vec::new());
            for extent in clear {
                run.lookup(extent, &page, &mut |found| match found {
                    Found::Entry(entry) => below.found.push((entry.extent, Some(entry))),
                    Found::Gap(part) => deeper.push(part),
                    Found::Missing(part, at) => {
                        below.unknown.push(part);
                        below.missing.insert(at);
                        dimmer.push(part);
                    }
                });
            }
            for extent in if all { dim } else { Vec::new() } {
                run.lookup(extent, &page, &mut |found| match found {
                    Found::Entry(_) => {}
                    Found::Gap(part) => dimmer.push(part),
                    Found::Missing(part, at) => {
                        below.missing.insert(at);
                        dimmer.push(part);
                    }
                });
            }
            (clear, dim) = (deeper, dimmer);
            if clear.is_empty() && (dim.is_empty() || !all) {
                break;
            }
        }
        below.found.extend(clear.into_iter().map(|part| (part, None)));
        below
    }

    /// What the table that a checkpoint under way writes says of these extents; what is below it is unknown, if there is something.
    fn just_below(&self, extents: Vec<Extent>) -> Below {
        let mut below = Below::default();
        let Some(frozen) = &self.frozen else {
            below.unknown = extents;
            return below;
        };
        for extent in extents {
            frozen.lookup(extent, |part, entry| match entry {
                Some(_) => below.found.push((part, entry)),
                None => below.unknown.push(part),
            });
        }
        below
    }

    /// What the first block of `extent` holds, and how many blocks of it from there on, one at least, are known to hold the same
    /// in one piece. The extent is not empty. However long it is, this looks at one page of each run.
    pub fn first(&self, extent: Extent) -> Result<(BlockCount, Placement), NeedPages> {
        let page = |at: &PageRef| self.pages.get(at);
        let (mut rest, mut missing) = (extent, BTreeSet::new());
        for table in std::iter::once(&self.newest).chain(self.frozen.as_deref()) {
            match table.first(rest) {
                Found::Entry(entry) => return Ok((entry.extent.count, entry.placement)),
                Found::Gap(part) => rest = part,
                Found::Missing(..) => {}
            }
        }
        for run in self.runs.iter() {
            match run.first(rest, &page) {
                Found::Entry(entry) if missing.is_empty() => return Ok((entry.extent.count, entry.placement)),
                Found::Entry(_) => break,
                Found::Gap(part) => rest = part,
                Found::Missing(_, at) => drop(missing.insert(at)),
            }
        }
        need(missing)?;
        Ok((rest.count, Placement::Hole))
    }

    /// The pages that a lookup of `extent` would ask for next.
    pub fn missing(&self, extent: Extent) -> Vec<PageAt> {
        let (placed, mut missing) = self.placed(extent, &HashMap::new());
        self.held(placed, &HashMap::new(), &mut missing);
        missing.into_iter().collect()
    }

    /// A segment takes effect: live commit, recovery and garbage collection all come through here, in log order. Either
    /// all of it is applied or, if pages are missing, nothing.
    ///
    /// `as_of` is for a segment of moved data, which was copied from segments at or before that place in the log: it
    /// counts only where the map still points to one of those. Whatever changed a block meanwhile wins.
    pub fn apply(
        &mut self,
        seq: Seq,
        info: SegmentInfo,
        changes: &[(Extent, Placement)],
        as_of: Option<Seq>,
    ) -> Result<(), NeedPages> {
        self.apply_part(Some((seq, info)), changes, as_of)
    }

    /// As [`ExtentMap::apply`], of some of a segment's changes: the first part brings the segment into the table.
    pub fn apply_part(
        &mut self,
        born: Option<(Seq, SegmentInfo)>,
        changes: &[(Extent, Placement)],
        as_of: Option<Seq>,
    ) -> Result<(), NeedPages> {
        let looked = self.look_below(changes, as_of);
        need(looked.missing)?;
        if let Some((seq, info)) = born {
            self.space.born(seq, info);
        }
        let mut deaths = Deaths::default();
        for &(extent, placement) in changes {
            match as_of {
                Some(as_of) => self.move_data(extent, placement, as_of, &looked.found, &mut deaths),
                None => self.set(extent, placement, &looked.found, &mut deaths),
            }
        }
        // Once for each segment, not for each block.
        deaths.iter().for_each(|(seq, blocks)| self.space.died(seq, blocks, &self.pages));
        Ok(())
    }

    /// A segment that carries others takes effect: see [`Space::carry`].
    pub fn carry(&mut self, seq: Seq, info: SegmentInfo, cargo: &Cargo) -> Result<(), NeedPages> {
        Ok(self.space.carry(seq, info, cargo, &self.pages)?)
    }

    /// See [`Space::refer`].
    pub fn refer(&mut self, seq: Seq, refers: &[(Seq, u32)]) {
        self.space.refer(seq, refers);
    }

    /// A newer checkpoint says who carries whom.
    pub fn follow_carriers(&mut self, carriers: Arc<Carriers>) {
        self.space.follow_carriers(carriers);
    }

    /// The pages that [`ExtentMap::apply`] would ask for.
    pub fn missing_for(&self, changes: &[(Extent, Placement)], as_of: Option<Seq>) -> BTreeSet<PageAt> {
        self.look_below(changes, as_of).missing
    }

    /// What the layers below the newest table say of the blocks that these changes take the place of, in order of blocks, and all pages
    /// that are missing for them; if nothing is looked up in runs, what is found is empty.
    fn look_below(&self, changes: &[(Extent, Placement)], as_of: Option<Seq>) -> Below {
        let mut unchanged = BTreeSet::new();
        if let Some(as_of) = as_of {
            let more = HashMap::new();
            changes.iter().for_each(|(extent, _)| drop(self.unchanged(*extent, as_of, &more, &mut unchanged)));
        }
        let mut gaps = Vec::new();
        if self.is_exact() {
            for (extent, _) in changes.iter().filter(|(extent, _)| is_looked_up(extent)) {
                let gap = |part, entry: Option<Entry>| gaps.extend(entry.is_none().then_some(part));
                self.newest.lookup(*extent, gap);
            }
        }
        let mut below = self.below(joined(gaps), &HashMap::new(), true);
        below.missing.append(&mut unchanged);
        below.found.sort_unstable_by_key(|(part, _)| part.start);
        below
    }

    /// Points the blocks of `extent` to `placement`, but only those that did not change since `as_of`; what was moved in vain is
    /// dead at birth. The pages are in memory.
    fn move_data(
        &mut self,
        extent: Extent,
        placement: Placement,
        as_of: Seq,
        looked: &[(Extent, Option<Entry>)],
        deaths: &mut Deaths,
    ) {
        let Placement::Data(to) = placement else { return };
        let unmoved = self.unchanged(extent, as_of, &HashMap::new(), &mut BTreeSet::new());
        let moved: u64 = unmoved.iter().map(|part| part.count.0).sum();
        self.space.died(to.frame.seq, extent.count.0 - moved, &self.pages);
        for part in unmoved {
            self.set(part, placement.skip(part.start - extent.start), looked, deaths);
        }
    }

    /// The parts of `extent`, which was mapped to data at `as_of`, for which nothing was committed after it, in order. Pages that are not in
    /// memory are taken from `more`.
    pub fn unchanged_with(
        &self,
        extent: Extent,
        as_of: Seq,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Vec<Extent>, NeedPages> {
        let mut missing = BTreeSet::new();
        let unchanged = self.unchanged(extent, as_of, more, &mut missing);
        need(missing)?;
        Ok(unchanged)
    }

    /// The parts of `extent`, which was mapped at `as_of`, for which nothing was committed after it; pages without which that is not
    /// known go to `missing`. Only layers that reach beyond `as_of` are asked. Where they say nothing, nothing changed, but that a last
    /// run has no holes; else what is on top decides: data that was there at `as_of` is the same as then, and all else is newer. So every server that replays
    /// this decides the same, however the layers were merged meanwhile.
    fn unchanged(
        &self,
        extent: Extent,
        as_of: Seq,
        more: &HashMap<PageRef, Arc<MapPage>>,
        missing: &mut BTreeSet<PageAt>,
    ) -> Vec<Extent> {
        let page = |at: &PageRef| self.pages.get(at).or_else(|| more.get(at).map(|page| &**page));
        let (mut unchanged, mut rest) = (Vec::new(), vec![extent]);
        for table in self.tables() {
            let mut deeper = Vec::new();
            for extent in rest {
                table.lookup(extent, |part, entry| match entry {
                    Some(entry) if is_older(&entry.placement, as_of) => unchanged.push(part),
                    Some(_) => {}
                    None => deeper.push(part),
                });
            }
            rest = deeper;
        }
        for run in self.runs.iter().take_while(|run| run.through > as_of) {
            let mut deeper = Vec::new();
            for extent in rest {
                run.lookup(extent, &page, &mut |found| match found {
                    Found::Entry(entry) if is_older(&entry.placement, as_of) => unchanged.push(entry.extent),
                    Found::Entry(_) => {}
                    // A last run says nothing of what was given up.
                    Found::Gap(part) if run.is_last => deeper.extend(run.outside(part)),
                    Found::Gap(part) => deeper.push(part),
                    Found::Missing(part, at) => {
                        missing.insert(at);
                        deeper.push(part);
                    }
                });
            }
            rest = deeper;
        }
        unchanged.extend(rest);
        unchanged.sort_unstable();
        unchanged
    }

    /// Sets what the blocks of `extent` hold, and counts what that takes the place of as far as it is known: what is in the newest table, and
    /// what was `looked` up below it.
    fn set(&mut self, extent: Extent, placement: Placement, looked: &[(Extent, Option<Entry>)], deaths: &mut Deaths) {
        let entry =
            |part: Extent, owes| Entry { extent: part, placement: placement.skip(part.start - extent.start), owes };
        let taken = self.newest.take(extent);
        let (mut entries, mut gaps) = (Vec::with_capacity(taken.len() + 1), Vec::new());
        super::table::fill(extent, taken.into_iter(), |part, before| match before {
            Some(before) => {
                deaths.note(&before);
                entries.push(entry(part, before.owes));
            }
            None => gaps.push(part),
        });
        let mut note = |part: Extent, found: Option<Entry>| match found {
            Some(before) => {
                deaths.note(&before);
                entries.push(entry(part, false));
            }
            // A hole over nothing says nothing.
            None if placement == Placement::Hole && extent.count.0 < SHORT_HOLE => {}
            None => entries.push(entry(part, false)),
        };
        let unknown = match looked.is_empty() || !is_looked_up(&extent) {
            // Hardly all of it would be found in the runs of a large map, and looking takes longer than all else.
            true => {
                let below = self.just_below(gaps);
                below.found.into_iter().for_each(|(part, found)| note(part, found));
                below.unknown
            }
            false => {
                gaps.iter().for_each(|gap| found_in(looked, *gap).for_each(|(part, found)| note(part, found)));
                Vec::new()
            }
        };
        entries.extend(unknown.into_iter().map(|part| entry(part, true)));
        entries.sort_unstable_by_key(|entry| entry.extent.start);
        entries.into_iter().for_each(|entry| self.newest.insert(entry));
    }

    /// A page that was asked for came in.
    pub fn page_loaded(&mut self, at: PageRef, page: Arc<MapPage>) {
        let span = match &*page {
            MapPage::Table(Page::Counters(counters)) => counters.first().map(|(seq, _)| Span::of(*seq)),
            _ => None,
        };
        self.pages.insert(at, page);
        if let Some(span) = span {
            self.space.counters_loaded(span, &self.pages);
        }
    }

    /// A page, if it is in memory.
    pub fn page(&self, at: &PageRef) -> Option<Arc<MapPage>> {
        self.pages.share(at)
    }

    /// Bytes that the map takes in memory, about.
    pub fn memory(&self) -> usize {
        self.pages.memory() + self.space.memory() + self.newest_memory()
    }

    /// Bytes in memory that a checkpoint must write before they can leave, about; what one under way writes is among them.
    pub fn dirty_memory(&self) -> usize {
        self.newest_memory() + self.space.dirty_memory()
    }

    fn newest_memory(&self) -> usize {
        self.newest.memory() + self.frozen.as_ref().map_or(0, |frozen| frozen.memory())
    }

    /// Lets pages go, least recently used first, until at most `bound` bytes are left or there is no page.
    pub fn evict(&mut self, bound: usize) {
        self.pages.evict(bound.saturating_sub(self.newest_memory() + self.space.memory()));
    }

    /// The table of segments.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// A slot of the log took effect that has no data, or is void.
    pub fn born(&mut self, seq: Seq, info: SegmentInfo) {
        self.space.born(seq, info);
    }

    /// An object that was dead is no longer in the store; it had so many bytes.
    pub fn forget(&mut self, seq: Seq, stored_bytes: u64) {
        self.space.forget(seq, stored_bytes, &self.pages);
    }

    /// The salt that opens a segment; nothing if it is not in the table.
    pub fn salt(&self, seq: Seq) -> Result<Option<[u8; 16]>, NeedPages> {
        match self.space.carriers().salt(seq) {
            Some(salt) => Ok(Some(salt)),
            None => Ok(self.space.salt(seq, &self.pages)?),
        }
    }

    /// What is counted of a segment; nothing if it is not in the table.
    pub fn counter(&self, seq: Seq) -> Result<Option<Counter>, NeedPages> {
        Ok(self.space.counter(seq, &self.pages)?)
    }

    /// What is counted of the segments of a span. Pages that are not in memory are taken from `more`.
    pub fn counters(&self, span: Span, more: &HashMap<PageRef, Arc<MapPage>>) -> Result<Counted, NeedPages> {
        Ok(self.space.span(span, &WithMore { pages: &self.pages, more })?)
    }

    /// What is known of the segments of a span. Pages that are not in memory are taken from `more`.
    pub fn infos(
        &self,
        span: Span,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Vec<(Seq, SegmentInfo)>, NeedPages> {
        Ok(self.space.infos(span, &WithMore { pages: &self.pages, more })?)
    }

    /// The pages of a span that are not in memory.
    pub fn lacks(&self, span: Span) -> Vec<PageAt> {
        let need = self.space.infos(span, &self.pages).err();
        need.map_or_else(Vec::new, |need| NeedPages::from(need).0)
    }

    /// The salts of the segments of a span, as far as pages are there; pages that are not in memory are taken from `more`.
    pub fn salts(&self, span: Span, more: &HashMap<PageRef, Arc<MapPage>>) -> Vec<(Seq, [u8; 16])> {
        self.space.salts(span, &WithMore { pages: &self.pages, more })
    }

    /// See [`Space::candidates`]; pages that are not in memory are taken from `more`.
    pub fn candidates(
        &self,
        want: &Want,
        spared: &BTreeSet<Seq>,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Counted, NeedPages> {
        Ok(self.space.candidates(want, spared, &WithMore { pages: &self.pages, more })?)
    }

    /// See [`Space::held_candidates`]; pages that are not in memory are taken from `more`.
    pub fn held_candidates(
        &self,
        spared: &BTreeSet<Seq>,
        more: &HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<Counted, NeedPages> {
        Ok(self.space.held_candidates(spared, &WithMore { pages: &self.pages, more })?)
    }

    /// See [`Space::dead`]; pages that are not in memory are taken from `more`.
    pub fn dead(&self, span: Span, more: &HashMap<PageRef, Arc<MapPage>>) -> Result<Counted, NeedPages> {
        Ok(self.space.dead(span, &WithMore { pages: &self.pages, more })?)
    }

    /// The next checkpoint, at `at`, changes the versions that are kept.
    pub fn change_versions(&mut self, at: Seq, change: space::kept::Change) {
        self.space.change_versions(at, change);
    }

    /// The map as of now, for a checkpoint; one at a time. Changes go into a new table from here on.
    ///
    /// # Panics
    ///
    /// If the checkpoint before is not done: what it writes would be hidden by what this one writes, and lost.
    pub fn begin_checkpoint(&mut self) -> MapSnapshot {
        assert!(self.frozen.is_none(), "a checkpoint of the map begins while another one is under way");
        let is_covered = !self.runs.is_empty() && self.newest.covers(self.volume);
        let forgotten = if is_covered { self.forget_runs() } else { None };
        let newest = Arc::new(std::mem::take(&mut self.newest));
        self.frozen = Some(newest.clone());
        let live_blocks = self.space.totals().live_blocks;
        let table = self.space.begin_checkpoint();
        MapSnapshot { newest, runs: self.runs.clone(), table, live_blocks, forgotten }
    }

    /// Every block was changed since: whatever the runs say, only what the newest table points to is live.
    fn forget_runs(&mut self) -> Option<Arc<Vec<Run>>> {
        let mut live = HashMap::new();
        for entry in self.newest.iter() {
            if let Placement::Data(location) = entry.placement {
                *live.entry(location.frame.seq).or_insert(0) += entry.extent.count.0;
            }
        }
        if !self.space.all_died_but(&live) {
            return None;
        }
        // Its holes stay: they say what changed.
        self.newest.owe_nothing();
        Some(std::mem::take(&mut self.runs))
    }

    /// A checkpoint is durable. Returns what it wrote and what it takes the place of: to let go of that takes longer than a lock should be
    /// held. What can wait is left to [`ExtentMap::tidy`].
    #[must_use]
    pub fn checkpointed(&mut self, done: Checkpointed) -> Superseded {
        let table = self.frozen.take();
        let runs = std::mem::replace(&mut self.runs, Arc::new(done.runs));
        done.pages.into_iter().for_each(|(at, page)| self.pages.insert(at, page));
        let space = self.space.checkpointed(done.table, &self.pages);
        self.pages.has_stale();
        Superseded { _table: table, _runs: runs, _space: space }
    }

    /// Does some of what is left to do since a checkpoint became durable, which is needed by nobody soon: of more spans the sums are made anew, and pages
    /// that are in no checkpoint object which is still needed are taken out, for the caller to let go of. Nothing if all is done.
    pub fn tidy(&mut self, is_needed: impl Fn(Seq) -> bool) -> Option<Vec<Arc<MapPage>>> {
        if self.space.sum_up_more(&self.pages) {
            return Some(Vec::new());
        }
        let carriers = self.space.carriers();
        let is_places = |at: &PageRef| carriers.is_carrier(at.checkpoint) && *at == carriers::places_of(at.checkpoint);
        self.pages.let_go(|at| is_needed(at.checkpoint) || is_places(at))
    }

    /// Entries of the newest table.
    pub fn newest_entries(&self) -> usize {
        self.newest.len()
    }

    /// All entries of the newest table, and of what a checkpoint under way writes.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.newest).chain(self.frozen.as_deref())
    }
}

/// Whether what a change of that extent takes the place of is looked up in runs, if anything is.
fn is_looked_up(extent: &Extent) -> bool {
    extent.count.0 <= LOOK_BLOCKS_MAX
}

/// Extents of these blocks that are sorted and do not overlap.
fn joined(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_unstable_by_key(|extent| extent.start);
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match joined.last_mut() {
            Some(last) if extent.start <= last.end() => {
                *last = Extent::between(last.start, last.end().max(extent.end()))
            }
            _ => joined.push(extent),
        }
    }
    joined
}

/// The parts inside `extent` of what was found, which is sorted and does not overlap.
fn found_in(found: &[(Extent, Option<Entry>)], extent: Extent) -> impl Iterator<Item = (Extent, Option<Entry>)> + '_ {
    let from = found.partition_point(|(part, _)| part.end() <= extent.start);
    let within = move |(part, entry): &(Extent, Option<Entry>)| {
        Some((part.intersect(&extent)?, entry.and_then(|entry| entry.within(&extent))))
    };
    found[from..].iter().map_while(within)
}

/// What of an extent lies where, by the places of a carrier.
fn placed_in(places: &[(Extent, Location)], extent: Extent) -> impl Iterator<Item = Entry> + '_ {
    let from = places.partition_point(|(part, _)| part.end() <= extent.start);
    let within = places[from..].iter().take_while(move |(part, _)| part.start < extent.end());
    within.map(|(part, location)| Entry { extent: *part, placement: Placement::Data(*location), owes: false })
}

/// Whether it is data that was there at `as_of`.
fn is_older(placement: &Placement, as_of: Seq) -> bool {
    match placement {
        Placement::Data(location) => location.frame.seq <= as_of,
        Placement::Zero | Placement::Hole => false,
    }
}

fn need(missing: BTreeSet<PageAt>) -> Result<(), NeedPages> {
    if missing.is_empty() { Ok(()) } else { Err(NeedPages(missing.into_iter().collect())) }
}
