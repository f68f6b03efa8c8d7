//! The table of an open volume: what is durable, what happened since, and summaries of the spans as they are now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::deltas::{self, Contradiction, Delta, Layer};
use super::directory::{Durable, List};
use super::fold::Folded;
use super::summary::{SHARES, SMALL};
use super::{
    Cargo, Carriers, Counted, Counter, Need, Pages, References, SegmentInfo, Span, Summary, Totals, View, kept,
};
use crate::units::Seq;

/// Of a checkpoint that became durable, the summaries of so many spans are made anew at once,
const SPANS_AT_ONCE: usize = 64;
/// and of these so many by a look at their pages, which takes some ten microseconds each.
const RECOUNT_AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Space {
    durable: Arc<Durable>,
    /// What the checkpoint under way writes.
    frozen: Option<Arc<Layer>>,
    newest: Layer,
    spans: BTreeMap<Span, Now>,
    totals: Totals,
    /// Spans with partly live segments, by share; with small ones, by size; with dead ones.
    pub(super) by_share: [BTreeSet<Span>; SHARES],
    pub(super) by_size: [BTreeSet<Span>; SMALL.len()],
    pub(super) with_dead: BTreeSet<Span>,
    /// The last place of the log that a version has which is, or will be, kept: deaths of segments up to there are held.
    kept: Seq,
    /// Segments that carry others.
    carriers: Arc<Carriers>,
    /// Segments that refer to others, those under way among them.
    references: Arc<References>,
    /// Sums of segments that others refer to, and that no version holds.
    tied: Totals,
    /// Spans of which the last checkpoint says something else than their summaries ([`Space::sum_up_more`]).
    unsummed: BTreeSet<Span>,
    /// What the next checkpoint does to the versions that are kept, and where it is.
    next_change: (Seq, kept::Change),
    /// Sums of segments up to there, and of those that carry such, that are not dead.
    held: Totals,
    /// Counts that contradicted each other: a bug or a damaged checkpoint; such a segment is never deleted.
    pub inconsistencies: u64,
}

/// A span as it is now.
#[derive(Clone, Copy, Debug, Default)]
struct Now {
    summary: Summary,
    /// The summary is exact; else blocks died and nobody looked in which segments.
    is_exact: bool,
}

/// The table as of a checkpoint, for its writer.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the checkpoint before says.
    pub durable: Arc<Durable>,
    /// What happened since.
    pub frozen: Arc<Layer>,
    /// What it does to the versions that are kept.
    pub change: kept::Change,
    /// Segments that carry others.
    pub carriers: Arc<Carriers>,
    /// Segments that refer to others.
    pub references: Arc<References>,
    /// If the head becomes a version that is kept: what that needs, by the places at which maps have the blocks. All of it is counted once more.
    pub revived: kept::Deaths,
}

/// What was in memory until a checkpoint had it, and what it took the place of.
#[derive(Debug)]
pub struct Superseded {
    _layer: Option<Arc<Layer>>,
    _durable: Arc<Durable>,
}

impl Space {
    /// What a checkpoint says: of some segments, and in the formats before its pages of all, in its root. The next checkpoint writes them
    /// as pages.
    pub fn restore(durable: Durable, loose: impl IntoIterator<Item = (Seq, SegmentInfo)>) -> Space {
        let kept = durable.newest_kept();
        let (carriers, references) = (durable.carriers.clone(), durable.references.clone());
        let mut space = Space { durable: Arc::new(durable), kept, carriers, references, ..Space::default() };
        let durable = space.durable.clone();
        for entry in durable.entries() {
            let mut now = Now { summary: entry.summary, is_exact: true };
            if entry.is_dead {
                now.summary.kill();
            }
            for list in durable.lists.iter().filter(|list| list.is_about(entry)) {
                list.of(entry.span).iter().for_each(|(_, delta)| now.note_blindly(*delta));
            }
            space.set(entry.span, Some(now));
        }
        loose.into_iter().for_each(|(seq, info)| space.born(seq, info));
        space
    }

    fn view(&self) -> View<'_> {
        View { durable: &self.durable, above: [self.frozen.as_deref(), Some(&self.newest)] }
    }

    /// A segment took effect: so many of its data blocks are live.
    pub fn born(&mut self, seq: Seq, info: SegmentInfo) {
        let before = self.newest.births.insert(seq, info);
        self.change(Span::of(seq), before.map(|info| info.counter()), Some(info.counter()));
    }

    /// So many blocks that maps place in a segment died. Its page need not be in memory.
    pub fn died(&mut self, seq: Seq, blocks: u64, pages: &dyn Pages) {
        match seq <= self.kept {
            true if blocks == 0 => {}
            true => *self.newest.held.entry(seq).or_default() += blocks,
            false => self.count_deaths(self.carriers.holder(seq), blocks, pages),
        }
    }

    /// So many blocks of a segment are needed by nobody.
    fn count_deaths(&mut self, seq: Seq, blocks: u64, pages: &dyn Pages) {
        if blocks == 0 {
            return;
        }
        let span = Span::of(seq);
        if let Some(info) = self.newest.births.get(&seq) {
            let before = info.counter();
            self.inconsistencies += u64::from(self.newest.note_deaths(seq, blocks).is_err());
            let now = self.newest.births.get(&seq).map(SegmentInfo::counter);
            return self.change(span, Some(before), now);
        }
        let delta = Delta::Died(u32::try_from(blocks).unwrap_or(u32::MAX));
        match self.view().counter(seq, pages) {
            Ok(None) => self.inconsistencies += 1,
            Ok(Some(before)) => {
                let left = deltas::apply(before, delta);
                self.inconsistencies += u64::from(left.is_err());
                self.newest.note(seq, delta);
                self.change(span, Some(before), left.unwrap_or_else(|Contradiction(now)| Some(now)));
            }
            Err(_) => {
                self.newest.note(seq, delta);
                self.note_blindly(span, delta);
            }
        }
    }

    /// A segment took effect that carries others: it takes the counts of its victims, which are dead from then on. It has no effect if a version is kept that it
    /// does not know of.
    pub fn carry(&mut self, seq: Seq, info: SegmentInfo, cargo: &Cargo, pages: &dyn Pages) -> Result<(), Need> {
        let is_known =
            |version: &kept::KeptVersion| version.seq >= cargo.as_of || cargo.versions.contains(&version.seq);
        if !self.durable.kept.iter().all(is_known) {
            self.born(seq, SegmentInfo { live_blocks: 0, ..info });
            return Ok(());
        }
        let (mut victims, mut need) = (Counted::new(), Need::default());
        for victim in &cargo.victims {
            match self.view().counter(*victim, pages) {
                Ok(counter) => victims.extend(counter.map(|counter| (*victim, counter))),
                Err(lacks) => need.0.extend(lacks.0),
            }
        }
        if !need.0.is_empty() {
            return Err(need);
        }
        let live: u64 = victims.iter().map(|(_, counter)| u64::from(counter.live_blocks)).sum();
        let live_blocks = u32::try_from(live).unwrap_or(u32::MAX);
        // Those that died and were not counted yet will be: they are among what it seems to have brought.
        let info = SegmentInfo { blocks: info.blocks.max(live_blocks), live_blocks, ..info };
        self.born(seq, info);
        self.held.add(&Totals::of(&info.counter()).without_dead());
        for (victim, counter) in victims {
            self.held.subtract(&Totals::of(&counter).without_dead());
            self.count_deaths(victim, counter.live_blocks.into(), pages);
        }
        if live > 0 {
            Arc::make_mut(&mut self.carriers).carry(seq, info.salt, &cargo.victims);
        }
        Ok(())
    }

    /// Segments that carry others.
    pub fn carriers(&self) -> &Arc<Carriers> {
        &self.carriers
    }

    /// A segment that takes effect, or will, has data in these: they stay as long as it does.
    pub fn refer(&mut self, seq: Seq, refers: &[(Seq, u32)]) {
        if !refers.is_empty() {
            Arc::make_mut(&mut self.references).refer(seq, refers.to_vec());
        }
    }

    /// Segments that refer to others.
    pub fn references(&self) -> &Arc<References> {
        &self.references
    }

    /// The sums of segments that others refer to, as of the last checkpoint: what is dead of them is not about to go.
    pub fn tied_totals(&self) -> Totals {
        self.tied
    }

    /// Sums up what others refer to.
    fn sum_up_tied(&mut self, pages: &dyn Pages) {
        let mut tied = Totals::default();
        for seq in self.references.targets().filter(|seq| !self.is_held(*seq)) {
            if let Ok(Some(counter)) = self.counter(seq, pages) {
                tied.add(&Totals::of(&counter));
            }
        }
        self.tied = tied;
    }

    /// A newer checkpoint than the one that this is says who carries whom.
    pub fn follow_carriers(&mut self, carriers: Arc<Carriers>) {
        self.carriers = carriers;
    }

    /// The object is no longer in the store; it had so many bytes and nothing live.
    pub fn forget(&mut self, seq: Seq, stored_bytes: u64, pages: &dyn Pages) {
        let span = Span::of(seq);
        let before = self.view().counter(seq, pages);
        self.newest.births.remove(&seq);
        if self.carriers.is_carrier(seq) {
            Arc::make_mut(&mut self.carriers).forget(seq);
        }
        if self.references.refers(seq) {
            Arc::make_mut(&mut self.references).forget(seq);
        }
        if self.frozen.as_ref().is_some_and(|frozen| frozen.births.contains_key(&seq))
            || self.durable.entry(span).is_some()
        {
            self.newest.note(seq, Delta::Gone(0));
        }
        let dead = Counter { stored_bytes, ..Counter::default() };
        match before {
            // Its page is there: what was guessed at of the span is known from here on, also of what is no longer in it.
            Ok(_) if self.spans.get(&span).is_some_and(|now| !now.is_exact) => self.recount(span, pages),
            Ok(None) => {}
            Ok(before) => self.change(span, before, None),
            Err(_) => self.change(span, Some(dead), None),
        }
    }

    /// Every block was changed since the last checkpoint: only these blocks of segments that took effect since are live. Returns
    /// false, and changes nothing, if a segment among them is older, a checkpoint is under way, or a version is kept.
    pub fn all_died_but(&mut self, live: &HashMap<Seq, u64>) -> bool {
        let is_new = |seq: &Seq| self.newest.births.contains_key(seq) && self.carriers.holder(*seq) == *seq;
        if self.frozen.is_some() || self.kept > Seq(0) || !live.keys().all(is_new) {
            return false;
        }
        for (seq, info) in &mut self.newest.births {
            info.live_blocks = live.get(seq).map_or(0, |blocks| (*blocks).min(u64::from(info.blocks)) as u32);
        }
        self.newest.all_died = true;
        self.newest.deltas.retain(|_, delta| delta.is_gone());
        self.newest.deltas.values_mut().for_each(|delta| *delta = Delta::Gone(0));
        // All of them at once, and not one after the other as everywhere else: there may be thousands.
        self.totals = Totals::default();
        // Whatever the last checkpoint says of others, nothing of it is live.
        self.unsummed.clear();
        for now in self.spans.values_mut() {
            now.summary.kill();
            self.totals.add(&now.summary.totals);
        }
        self.by_share = Default::default();
        self.by_size = Default::default();
        self.with_dead = self.spans.iter().filter(|(_, now)| now.summary.dead > 0).map(|(span, _)| *span).collect();
        let live = self.newest.births.iter().filter(|(_, info)| info.live_blocks > 0);
        let live: Vec<(Seq, Counter)> = live.map(|(seq, info)| (*seq, info.counter())).collect();
        for (seq, counter) in live {
            self.change(Span::of(seq), Some(Counter { live_blocks: 0, ..counter }), Some(counter));
        }
        true
    }

    /// What the durable part says of a span, deltas guessed at.
    fn durable_now(&self, span: Span) -> Now {
        let mut now = Now { summary: Summary::default(), is_exact: true };
        if let Some(entry) = self.durable.entry(span) {
            now.summary = entry.summary;
            if entry.is_dead {
                now.summary.kill();
            }
            for list in self.durable.lists.iter().filter(|list| list.is_about(entry)) {
                list.of(span).iter().for_each(|(_, delta)| now.note_blindly(*delta));
            }
        }
        now
    }

    /// What is counted of one segment; nothing if it is not in the table.
    pub fn counter(&self, seq: Seq, pages: &dyn Pages) -> Result<Option<Counter>, Need> {
        self.view().counter(seq, pages)
    }

    /// The salt of a segment; nothing if it is not in the table.
    pub fn salt(&self, seq: Seq, pages: &dyn Pages) -> Result<Option<[u8; 16]>, Need> {
        self.view().salt(seq, pages)
    }

    /// What is counted of the segments of a span.
    pub fn span(&self, span: Span, pages: &dyn Pages) -> Result<Counted, Need> {
        self.view().span(span, pages).map(|(counters, _)| counters)
    }

    /// What is known of the segments of a span.
    pub fn infos(&self, span: Span, pages: &dyn Pages) -> Result<Vec<(Seq, SegmentInfo)>, Need> {
        let mut need = Need::default();
        let counters = self.span(span, pages).unwrap_or_else(|lacks| {
            need.0.extend(lacks.0);
            Vec::new()
        });
        if let Some(entry) = self.durable.entry(span)
            && let Err(lacks) = pages.salts(span, &entry.salts)
        {
            need.0.extend(lacks.0);
        }
        if !need.0.is_empty() {
            return Err(need);
        }
        let info = |(seq, counter): (Seq, Counter)| {
            let Counter { stored_bytes, blocks, live_blocks } = counter;
            let salt = self.salt(seq, pages)?.unwrap_or_default();
            Ok((seq, SegmentInfo { salt, stored_bytes, blocks, live_blocks }))
        };
        counters.into_iter().map(info).collect()
    }

    /// The salts of the segments of a span, of some that are gone, too: as far as pages are there.
    pub fn salts(&self, span: Span, pages: &dyn Pages) -> Vec<(Seq, [u8; 16])> {
        let page = self.durable.entry(span).and_then(|entry| pages.salts(span, &entry.salts).ok());
        let mut salts: BTreeMap<Seq, [u8; 16]> = page.into_iter().flatten().copied().collect();
        for layer in self.view().above.iter().flatten() {
            let births = layer.births.range(span.first()..=span.last());
            salts.extend(births.map(|(seq, info)| (*seq, info.salt)));
        }
        salts.into_iter().collect()
    }

    /// The spans of which it knows segments, in order.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.keys().copied()
    }

    /// How many spans.
    pub fn span_count(&self) -> usize {
        self.spans.len()
    }

    /// What is known of a span without its page.
    pub fn summary(&self, span: Span) -> Option<&Summary> {
        self.spans.get(&span).map(|now| &now.summary)
    }

    /// Sums: exact but for what died, in spans whose counters were not in memory, since these were written.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The sums that collection can do something about: without segments that a kept version needs as they are, and those that others refer to.
    pub fn collectable(&self) -> Totals {
        let mut totals = self.totals;
        totals.subtract(&self.held);
        totals.subtract(&self.tied);
        totals
    }

    /// The sums of what kept versions need as it is, or what carries it.
    pub fn held_totals(&self) -> Totals {
        self.held
    }

    /// Whether a kept version may need something that maps place in that segment, or in one that it carries.
    pub fn is_held(&self, seq: Seq) -> bool {
        self.carriers.birth(seq) <= self.kept
    }

    /// The last place of the log that a version has which is, or will be, kept.
    pub fn kept(&self) -> Seq {
        self.kept
    }

    /// Deaths that the newest version holds which is kept.
    pub fn held(&self) -> kept::Deaths {
        let mut held = self.durable.kept.last().map(kept::KeptVersion::deaths).unwrap_or_default();
        self.held_since().into_iter().for_each(|(seq, blocks)| *held.entry(seq).or_default() += blocks);
        held
    }

    /// Of those, the ones that were found since the last durable checkpoint.
    pub fn held_since(&self) -> kept::Deaths {
        let mut held = self.newest.held.clone();
        let frozen = self.frozen.iter().flat_map(|layer| &layer.held);
        frozen.for_each(|(seq, blocks)| *held.entry(*seq).or_default() += blocks);
        held
    }

    /// The same, cheaply for whoever only looks on: lists of them, to be added up without the lock of the volume, and blocks that died since.
    pub fn newly_held(&self) -> (Vec<Arc<List>>, u64) {
        let lists = self.durable.kept.last().map(|version| version.held.clone()).unwrap_or_default();
        let layers = [Some(&self.newest), self.frozen.as_deref()];
        (lists, layers.into_iter().flatten().flat_map(|layer| layer.held.values()).sum())
    }

    /// Blocks that only versions hold which are kept, as far as deaths were found; none if a list of theirs has not been read.
    pub fn held_by_versions(&self) -> Option<u64> {
        let lists = self.durable.kept.iter().flat_map(|version| &version.held);
        let known: Option<u64> = lists.map(|list| list.known_blocks()).sum();
        Some(known? + self.newly_held().1)
    }

    /// Of those, the blocks that no version needs which anybody can name: they are there for clones only.
    pub fn held_for_clones(&self) -> Option<u64> {
        let (mut shown, mut blocks) = (Seq(0), 0);
        for version in &self.durable.kept {
            if !version.label.is_hidden() {
                shown = version.seq;
                continue;
            }
            let known: Option<u64> = version.held.iter().map(|list| list.known_blocks_after(shown)).sum();
            blocks += known?;
        }
        let is_hidden = self.durable.kept.last().is_some_and(|version| version.label.is_hidden());
        let since = if is_hidden { self.held_since() } else { kept::Deaths::new() };
        Some(blocks + since.range(shown.next()..).map(|(_, blocks)| blocks).sum::<u64>())
    }

    /// Sums up what is at or before the newest version that is kept. A span that it shares with newer segments counts only if its page is in
    /// memory: mostly it was just written.
    fn sum_up_held(&mut self, pages: &dyn Pages) {
        self.held = Totals::default();
        let shared = Span::of(self.kept);
        for (_, now) in self.spans.range(..shared) {
            self.held.add(&now.summary.totals.without_dead());
        }
        let counters = self.span(shared, pages).unwrap_or_default();
        let counters = counters.into_iter().filter(|(seq, _)| *seq <= self.kept).map(|(_, counter)| counter);
        let later = self.carriers.iter().filter(|(seq, _)| **seq > self.kept && self.is_held(**seq));
        let later = later.filter_map(|(seq, _)| self.counter(*seq, pages).ok().flatten());
        for counter in counters.chain(later).filter(|counter| !counter.is_dead()).collect::<Vec<_>>() {
            self.held.add(&Totals::of(&counter));
        }
    }

    /// The segments of a span in which nothing is live as of the last durable checkpoint, which covers them, and that were not deleted
    /// since. What another segment refers to is not among them, however dead.
    pub fn dead(&self, span: Span, pages: &dyn Pages) -> Result<Counted, Need> {
        let durable = View { durable: &self.durable, above: [None, None] };
        let (mut dead, _) = durable.span(span, pages)?;
        // What is dead stays dead: where a newer layer contradicts that, in doubt the object is kept.
        let (now, _) = self.view().span(span, pages)?;
        let is_dead_now =
            |seq: &Seq| now.binary_search_by_key(seq, |(seq, _)| *seq).is_ok_and(|at| now[at].1.is_dead());
        let is_free = |seq: &Seq| !self.references.holds(*seq);
        dead.retain(|(seq, counter)| *seq <= self.durable.at && counter.is_dead() && is_dead_now(seq) && is_free(seq));
        Ok(dead)
    }

    /// Spans in which segments may be dead, from one on, in order.
    pub fn spans_with_dead(&self, from: Span) -> impl Iterator<Item = Span> + '_ {
        self.with_dead.range(from..).copied()
    }

    /// A page of counters came into memory.
    pub fn counters_loaded(&mut self, span: Span, pages: &dyn Pages) {
        if self.kept > Seq(0) && span == Span::of(self.kept) {
            self.sum_up_held(pages);
        }
        if self.spans.get(&span).is_some_and(|now| !now.is_exact) {
            self.recount(span, pages);
        }
    }

    fn recount(&mut self, span: Span, pages: &dyn Pages) {
        if let Ok((counters, _)) = self.view().span(span, pages) {
            let summary = Summary::of(counters.iter().map(|(_, counter)| counter));
            self.set(span, (summary.segments > 0).then_some(Now { summary, is_exact: true }));
        }
    }

    /// Bytes that it takes in memory beside pages, about; all of it until a checkpoint has written it.
    pub fn memory(&self) -> usize {
        self.dirty_memory() + self.durable.memory() + self.spans.len() * (size_of::<Now>() + 64)
    }

    /// Bytes in memory that a checkpoint must write before they can leave, about.
    pub fn dirty_memory(&self) -> usize {
        self.newest.memory() + self.frozen.as_ref().map_or(0, |frozen| frozen.memory())
    }

    /// Whether all of it stands in the root of the last checkpoint, as in the formats before its pages.
    pub fn is_in_root(&self) -> bool {
        self.durable.at.0 > 0 && self.durable.spans() == 0 && !self.newest.births.is_empty()
    }

    /// What is durable.
    pub fn durable(&self) -> &Arc<Durable> {
        &self.durable
    }

    /// The next checkpoint, at `at`, changes the versions that are kept. Deaths after its beginning are held by the newest one that it keeps.
    pub fn change_versions(&mut self, at: Seq, change: kept::Change) {
        self.next_change = (at, change);
    }

    /// The table as of now, for a checkpoint; one at a time. What happens from here on goes into a new layer.
    ///
    /// # Panics
    ///
    /// If the checkpoint before is not done: what it writes would be lost.
    pub fn begin_checkpoint(&mut self) -> Snapshot {
        assert!(self.frozen.is_none(), "a checkpoint of the table begins while another one is under way");
        let frozen = Arc::new(std::mem::take(&mut self.newest));
        self.frozen = Some(frozen.clone());
        let (at, change) = std::mem::take(&mut self.next_change);
        let stay = self.durable.kept.iter().map(|version| version.seq).filter(|seq| !change.drop.contains(seq));
        self.kept = if change.take.is_none() { stay.max().unwrap_or_default() } else { at };
        Snapshot {
            durable: self.durable.clone(),
            frozen,
            change,
            carriers: self.carriers.clone(),
            references: self.references.clone(),
            revived: kept::Deaths::new(),
        }
    }

    /// A checkpoint is durable. `pages` has the pages that it wrote, as far as they are to stay in memory. The summaries are as they were:
    /// see [`Space::sum_up_more`].
    /// Returns what it wrote, and what it takes the place of.
    #[must_use]
    pub fn checkpointed(&mut self, folded: Folded, pages: &dyn Pages) -> Superseded {
        let frozen = self.frozen.take();
        let durable = std::mem::replace(&mut self.durable, Arc::new(folded.durable));
        self.inconsistencies += folded.contradictions;
        self.hand_on(&folded.free, pages);
        folded.loose.into_iter().for_each(|(seq, info)| self.stay_loose(seq, info));
        self.unsummed.extend(folded.changed);
        self.sum_up_held(pages);
        self.sum_up_tied(pages);
        Superseded { _layer: frozen, _durable: durable }
    }

    /// Makes the summaries of some more spans anew of which the last checkpoint says something else; whether there were any. Those of spans whose pages are not
    /// in memory are estimates until somebody looks at these.
    pub fn sum_up_more(&mut self, pages: &dyn Pages) -> bool {
        let (mut left, mut recounts) = (SPANS_AT_ONCE, RECOUNT_AT_ONCE);
        let any = !self.unsummed.is_empty();
        while left > 0
            && recounts > 0
            && let Some(span) = self.unsummed.pop_first()
        {
            left -= 1;
            recounts -= usize::from(self.sum_up(span, pages));
        }
        if any && self.unsummed.is_empty() {
            self.sum_up_held(pages);
        }
        any
    }

    /// Makes the summary of a span anew; whether that took a look at its page.
    fn sum_up(&mut self, span: Span, pages: &dyn Pages) -> bool {
        let durable = self.durable_now(span);
        let range = span.first()..=span.last();
        let is_in = |layer: &Layer| {
            layer.births.range(range.clone()).next().is_some() || layer.deltas.range(range.clone()).next().is_some()
        };
        let is_changed = self.layers().any(is_in);
        if !is_changed {
            self.set(span, (durable.summary.segments > 0).then_some(durable));
            if durable.is_exact {
                return false;
            }
        }
        let counters = self.durable.entry(span).map(|entry| entry.counters);
        if counters.is_none_or(|at| pages.page(&at).is_some()) {
            self.recount(span, pages);
            return true;
        }
        if is_changed {
            self.estimate(span, durable);
        }
        false
    }

    /// Deaths that the checkpoint counted to segments which were emptied since: their carriers took the counts with these in it.
    fn hand_on(&mut self, free: &kept::Deaths, pages: &dyn Pages) {
        let (then, now) = (self.durable.carriers.clone(), self.carriers.clone());
        for (seq, blocks) in free {
            let (from, to) = (then.holder(*seq), now.holder(*seq));
            if from != to {
                self.inconsistencies += u64::from(!self.newest.take_back(from, *blocks));
                self.count_deaths(to, *blocks, pages);
            }
        }
    }

    /// A segment took effect before the checkpoint, and is in no page of it.
    fn stay_loose(&mut self, seq: Seq, info: SegmentInfo) {
        let left = match self.newest.deltas.remove(&seq) {
            Some(delta) => deltas::apply(info.counter(), delta).unwrap_or_else(|Contradiction(now)| Some(now)),
            None => Some(info.counter()),
        };
        if let Some(Counter { live_blocks, .. }) = left {
            self.newest.births.insert(seq, SegmentInfo { live_blocks, ..info });
        }
    }

    /// What is durable of a span, and what is known of what happened to it since.
    fn estimate(&mut self, span: Span, durable: Now) {
        self.set(span, Some(durable));
        let range = span.first()..=span.last();
        let (mut deltas, mut births) = (Vec::new(), Vec::new());
        for layer in self.layers() {
            deltas.extend(layer.deltas.range(range.clone()).map(|(_, delta)| *delta));
            births.extend(layer.births.range(range.clone()).map(|(_, info)| info.counter()));
        }
        deltas.into_iter().for_each(|delta| self.note_blindly(span, delta));
        births.into_iter().for_each(|counter| self.change(span, None, Some(counter)));
    }

    /// What happened since the last durable checkpoint, oldest first.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.frozen.as_deref().into_iter().chain([&self.newest])
    }

    fn change(&mut self, span: Span, before: Option<Counter>, now: Option<Counter>) {
        let mut to = self.spans.get(&span).copied().unwrap_or(Now { summary: Summary::default(), is_exact: true });
        if let Some(before) = before {
            to.summary.remove(&before);
        }
        if let Some(now) = now {
            to.summary.add(&now);
        }
        self.set(span, (to.summary.segments > 0 || !to.is_exact).then_some(to));
    }

    fn note_blindly(&mut self, span: Span, delta: Delta) {
        let mut now = self.spans.get(&span).copied().unwrap_or_default();
        now.note_blindly(delta);
        self.set(span, Some(now));
    }

    /// The only place where a summary changes: sums and classes follow.
    fn set(&mut self, span: Span, now: Option<Now>) {
        let before = match now {
            Some(now) => self.spans.insert(span, now),
            None => self.spans.remove(&span),
        };
        let before = before.map(|now| now.summary).unwrap_or_default();
        let now = now.map(|now| now.summary).unwrap_or_default();
        self.totals.subtract(&before.totals);
        self.totals.add(&now.totals);
        for (class, spans) in self.by_share.iter_mut().enumerate() {
            mark(spans, span, before.shares[class].segments, now.shares[class].segments);
        }
        for (class, spans) in self.by_size.iter_mut().enumerate() {
            mark(spans, span, before.small[class], now.small[class]);
        }
        mark(&mut self.with_dead, span, before.dead, now.dead);
    }
}

impl Now {
    fn note_blindly(&mut self, delta: Delta) {
        self.is_exact = false;
        match delta {
            Delta::Died(blocks) => self.summary.estimate_deaths(blocks.into()),
            // It was dead; how large it was is not known.
            Delta::Gone(blocks) => {
                self.summary.estimate_deaths(blocks.into());
                self.summary.segments = self.summary.segments.saturating_sub(1);
                self.summary.dead = self.summary.dead.saturating_sub(1);
            }
        }
    }
}

fn mark(spans: &mut BTreeSet<Span>, span: Span, before: u32, now: u32) {
    match (before, now) {
        (0, 1..) => drop(spans.insert(span)),
        (1.., 0) => drop(spans.remove(&span)),
        _ => {}
    }
}
