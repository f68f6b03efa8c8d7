//! Garbage collection, the part that knows how far it is: has the live blocks of the victims that [`crate::gc`] chose gathered
//! (`upkeep/gather`), and hands them, sorted by block, to the log as segments of moved data. Pure.
//!
//! What makes it safe:
//!
//! - The last committed place of the log is noted *before* the map is asked what is live. A moved block counts only if,
//!   when its segment takes effect, the map still points to a segment at or before that place: whatever changed the
//!   block after it was looked up wins ([`crate::map::ExtentMap::apply`]). Recovery applies the same segments in the same
//!   order to the same map, and so decides the same.
//! - A victim stays in the store until a checkpoint is durable that does not need it, like every dead segment; so a crash
//!   anywhere leaves the data in its old place, in its new one, or in both.
//! - While victims are read, a reader's ticket keeps them in the store.
//! - What cannot be proven is not copied: a damaged victim is left as it is, with all its evidence.
//!
//! What is live in victims is asked of the map block by block; where that would read much of it, a *survey* walks over all of it once for
//! many of them ([`crate::map::survey`]), and rounds live on what it found until that is used up or has aged.
//!
//! Victims are read in *rounds* of up to `gc.batch` live bytes. While space is not short one round follows the other, with
//! rests between them; when it is, the next one is read while the last one is uploaded.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::engine::core::{Chore, Effect, Now, Report};
use crate::engine::ledger::Ledger;
use crate::engine::log::LARGE;
use crate::engine::purse::Thrift;
use crate::gc::{self, Activity};
use crate::map::{MapPage, NeedPages, PageRef, Parts};
use crate::reading::objects::LoadedPages;
use crate::space::carriers::CARRIED_MAX;
use crate::space::{Cargo, Counter, SegmentInfo, Span, Totals};
use crate::store::StoreError;
use crate::units::{Extent, Seq};

/// A volume of fewer segments is small.
const FEW_SEGMENTS: u64 = 64;

/// This part of what is live may be dead and not deleted.
const LITTER_PART: u64 = 9;

/// Of a map of so many entries at most, all runs are merged only to count what is dead: that takes seconds.
const MERGE_FOR_COUNTS: u64 = 4 << 20;

/// The pause after the store failed a read of ours; it doubles up to a hundred times as much.
const RETRY: Duration = Duration::from_secs(5);

/// Live data that is to be written again, as one segment.
#[derive(Debug)]
pub struct Move {
    /// Sorted by block.
    pub data: Vec<(Extent, Bytes)>,
    /// See [`crate::format::segment::SegmentHead::as_of`].
    pub as_of: Seq,
    /// If it is to carry segments: see [`crate::format::segment::SegmentHead::cargo`].
    pub cargo: Option<Cargo>,
    /// Its round's place in memory.
    _held: Held,
}

impl Move {
    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        self.data.iter().map(|(_, data)| data.len() as u64).sum()
    }
}

/// A place in memory, held by all that is of one round.
pub type Held = Option<Arc<OwnedSemaphorePermit>>;

/// What came of reading victims.
#[derive(Debug)]
pub struct Gathered {
    /// Its round's place in memory.
    pub held: Held,
    /// All of them.
    pub victims: Vec<Seq>,
    /// What is live in them, sorted by block.
    pub data: Vec<(Extent, Bytes)>,
    /// The map was as of this slot, or later.
    pub as_of: Seq,
    /// If one segment is to carry victims: those of which it has all that is needed.
    pub cargo: Option<Cargo>,
    /// Victims that are not what was written, or not there.
    pub damaged: Vec<Seq>,
    /// Victims in which nothing is live.
    pub empty: Vec<Seq>,
    /// The store failed: nothing came of it.
    pub failed: Option<StoreError>,
}

impl Gathered {
    /// Nothing of these victims yet.
    pub fn new(held: Held, victims: Vec<Seq>, as_of: Seq) -> Gathered {
        let (data, damaged, empty) = (Vec::new(), Vec::new(), Vec::new());
        Gathered { held, victims, data, as_of, cargo: None, damaged, empty, failed: None }
    }
}

/// What is live in some segments, as a survey found it.
#[derive(Clone, Debug, Default)]
pub struct Surveyed {
    /// The map was as of this slot, or later.
    pub as_of: Seq,
    /// What of each was.
    pub live: BTreeMap<Seq, Arc<Parts>>,
}

impl Surveyed {
    /// Those of some segments.
    fn of(&self, victims: &[Seq]) -> Surveyed {
        let live = victims.iter().filter_map(|seq| Some((*seq, self.live.get(seq)?.clone()))).collect();
        Surveyed { as_of: self.as_of, live }
    }
}

/// Why a survey came to nothing.
#[derive(Clone, Debug)]
pub enum SurveyFailed {
    /// The store failed; worth trying again.
    Store(String),
    /// A page of the map cannot be proven: who does not need that one does better without surveys.
    Damaged(String),
}

/// The collection of one volume.
#[derive(Debug, Default)]
pub(super) struct Collection {
    is_gathering: bool,
    /// Pages of the table are brought in, to choose.
    is_looking: bool,
    /// Those that came in.
    pages: HashMap<PageRef, Arc<MapPage>>,
    /// What is sealed with a rotated key is looked for from this span on; whether some was found since the first one.
    resealing: (Span, bool),
    /// Waiting for a slot of the log.
    moves: VecDeque<Move>,
    /// In a slot, not committed: bytes of data, in the order of the log.
    uploading: VecDeque<u64>,
    /// The rounds of which not everything is committed, oldest first.
    rounds: VecDeque<Round>,
    /// What was surveyed, and not moved yet.
    survey: Surveyed,
    /// Counters of what was to be surveyed.
    surveyed: BTreeMap<Seq, Counter>,
    /// A page of the map is damaged.
    no_surveys: bool,
    /// Victims that cannot be read.
    damaged: BTreeSet<Seq>,
    /// Victims in which nothing was live although the table says so, and what it says: merging the map's layers will count that.
    uncounted: BTreeMap<Seq, u32>,
    began: Option<Instant>,
    /// When the last work ended, and how long it took.
    worked: Option<(Instant, Duration)>,
    /// The store failed; when to ask it again.
    retry_at: Option<Instant>,
    failures: u32,
    /// Space is short, and will be less so when what is doomed is gone.
    waits_for_deletion: bool,
    /// Something was moved that no checkpoint covers: its victims still take space.
    owes_checkpoint: bool,
    /// There was nothing to do when the volume stood here.
    settled: Option<Settled>,
    /// Nothing was worth carrying as of this checkpoint, then.
    held_settled: Option<(Seq, Activity)>,
    /// No references were worth being given up as of this checkpoint.
    references_settled: Option<Seq>,
}

/// Victims that are being moved together.
#[derive(Debug)]
struct Round {
    victims: Vec<Seq>,
    /// Segments that are not committed; they are committed in the order of the rounds.
    left: usize,
}

/// Where a volume stands, as far as it makes a difference to what is garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settled {
    committed: Seq,
    checkpointed: Seq,
    activity: Activity,
}

impl Collection {
    /// Puts the next batch under way, if there is something worth it.
    pub fn start(&mut self, ledger: &mut Ledger, is_closing: bool, now: Now) -> Option<Effect> {
        if is_closing {
            // What has no slot yet is still where it was.
            self.give_up_moves();
            (self.worked, self.retry_at) = (None, None);
            self.waits_for_deletion = false;
            self.pages.clear();
            self.end_survey();
            return std::mem::take(&mut self.is_gathering).then_some(Effect::StopGathering);
        }
        if self.is_gathering || self.is_looking || self.has_moves() {
            return None;
        }
        let is_pressed = self.pace(ledger, now.at).time_percent >= 100;
        self.waits_for_deletion = is_pressed && is_littered(ledger);
        if self.began.is_some() {
            // What it waited for last, deletions or pages, is there. Or the next work, a day later, would seem to have taken a day, and the rest after it
            // were days.
            self.note_if_done(now.at);
        }
        debug_assert!(self.began.is_none() || self.is_working(), "whoever does nothing has begun nothing");
        if self.waits_for_deletion
            || self.is_working() && !is_pressed
            || self.pause(ledger, now.at).is_some_and(|end| end > now.at)
            || self.is_spared(ledger, now)
        {
            return None;
        }
        (self.worked, self.retry_at) = (None, None);
        let log = &ledger.log;
        let activity = ledger.activity(now.at);
        let here = Settled { committed: log.committed(), checkpointed: log.checkpointed(), activity };
        if !self.is_worth_a_look(ledger, here) {
            return None;
        }
        let chore = match self.choose(ledger, here) {
            Ok(chore) => chore,
            Err(need) => {
                self.is_looking = true;
                return Some(Effect::Chore(Chore::Look(need)));
            }
        };
        self.pages.clear();
        let Some(chore) = chore else {
            self.settled = Some(here);
            if activity == Activity::Quiet {
                self.end_survey();
            }
            if !self.is_working() {
                self.reseal_tables(ledger);
            }
            return None;
        };
        self.began.get_or_insert(now.at);
        self.is_gathering = true;
        Some(Effect::Chore(chore))
    }

    /// What to move next, if anything, or the pages of the table that are needed to choose it.
    fn choose(&mut self, ledger: &Ledger, here: Settled) -> Result<Option<Chore>, NeedPages> {
        let (map, options) = (&ledger.log.map, &ledger.rules.options);
        let counter = |seq| map.counter(seq).ok().flatten();
        let being_moved: BTreeSet<Seq> = self.rounds.iter().flat_map(|round| round.victims.iter().copied()).collect();
        let mut totals = gc::make_way(&map.space().collectable(), self.passing_bytes(ledger), &options.gc);
        let moving: u64 =
            being_moved.iter().filter_map(|seq| counter(*seq)).map(|counter| counter.sparse_bytes()).sum();
        totals.stored_bytes = totals.stored_bytes.saturating_sub(moving);
        let sizes = gc::Sizes { segment: options.segment_size, block: ledger.rules.block_size.bytes().into() };
        self.uncounted.retain(|seq, live| counter(*seq).is_none_or(|counter| counter.live_blocks == *live));
        let free: BTreeSet<Seq> =
            self.damaged.iter().chain(self.uncounted.keys()).copied().chain(being_moved).collect();
        let (head, activity) = (here.committed, here.activity);
        if let Some(victims) = self.choose_referring(ledger, here, sizes, &free)? {
            return Ok(Some(Chore::Gather(victims, head, None)));
        }
        let spared: BTreeSet<Seq> = free.iter().copied().chain(tied(ledger, sizes)).collect();
        if let Some(victims) = self.choose_surveyed(ledger, &totals, sizes, activity, &spared) {
            let surveyed = self.survey.of(&victims);
            return Ok(Some(Chore::Gather(victims, head, Some(surveyed))));
        }
        for want in gc::look(&totals, head, sizes, &options.gc, activity) {
            let candidates = map.candidates(&want, &spared, &self.pages)?.into_iter();
            let victims = gc::choose(candidates, &totals, head, sizes, &options.gc, activity, &spared);
            if !victims.is_empty() {
                let survey = self.choose_to_survey(ledger, &totals, here, sizes, &spared)?;
                return Ok(Some(survey.unwrap_or(Chore::Gather(victims, head, None))));
            }
        }
        if let Some(victims) = self.choose_held(ledger, here, sizes, &spared)? {
            return Ok(Some(Chore::Carry(victims)));
        }
        let retired = if ledger.may_reseal { self.choose_retired(ledger, sizes, &free)? } else { Vec::new() };
        Ok((!retired.is_empty()).then_some(Chore::Gather(retired, head, None)))
    }

    /// What to survey, if that is better than to ask for the blocks of what is to be moved next: all candidates that there is room for.
    fn choose_to_survey(
        &mut self,
        ledger: &Ledger,
        totals: &Totals,
        here: Settled,
        sizes: gc::Sizes,
        spared: &BTreeSet<Seq>,
    ) -> Result<Option<Chore>, NeedPages> {
        let (map, head) = (&ledger.log.map, here.committed);
        if self.no_surveys || map.is_exact() || !gc::is_due(totals, &ledger.rules.options.gc, here.activity) {
            return Ok(None);
        }
        let options = gc::to_survey(&ledger.rules.options.gc, map.stored_bytes(), sizes);
        let looked = gc::look(totals, head, sizes, &options, here.activity);
        let Some(want) = looked.first() else { return Ok(None) };
        let candidates = map.candidates(want, spared, &self.pages)?;
        let victims = gc::choose(candidates.iter().copied(), totals, head, sizes, &options, here.activity, spared);
        let chosen = |(seq, _): &(Seq, Counter)| victims.binary_search(seq).is_ok();
        let chosen: BTreeMap<Seq, Counter> = candidates.into_iter().filter(chosen).collect();
        let blocks = chosen.values().map(|counter| u64::from(counter.blocks)).sum();
        if !gc::is_survey_worth_it(blocks, map.entries()) {
            return Ok(None);
        }
        self.end_survey();
        self.surveyed = chosen;
        Ok(Some(Chore::Survey(victims, head)))
    }

    /// What to move next of what was surveyed, if anything.
    fn choose_surveyed(
        &mut self,
        ledger: &Ledger,
        totals: &Totals,
        sizes: gc::Sizes,
        activity: Activity,
        spared: &BTreeSet<Seq>,
    ) -> Option<Vec<Seq>> {
        let map = &ledger.log.map;
        if map.entries_since(self.survey.as_of) > gc::SURVEY_AGES {
            self.end_survey();
        }
        let is_free = |seq: Seq| !map.space().is_held(seq) && map.space().carriers().holder(seq) == seq;
        let surveyed = &self.surveyed;
        self.survey.live.retain(|seq, _| surveyed.contains_key(seq) && is_free(*seq));
        let counted = |(seq, parts): (&Seq, &Arc<Parts>)| {
            let live_blocks = u32::try_from(parts.blocks()).unwrap_or(u32::MAX);
            Some((*seq, Counter { live_blocks, ..*surveyed.get(seq)? }))
        };
        let candidates = self.survey.live.iter().filter_map(counted).filter(|(seq, _)| !spared.contains(seq));
        let victims = gc::choose_in_order(candidates, totals, sizes, &ledger.rules.options.gc, activity);
        (!victims.is_empty()).then_some(victims)
    }

    fn end_survey(&mut self) {
        (self.survey, self.surveyed) = Default::default();
    }

    /// Takes in what a survey found.
    pub fn take_survey(
        &mut self,
        ledger: &Ledger,
        surveyed: Result<Surveyed, SurveyFailed>,
        at: Instant,
    ) -> Option<Effect> {
        if !std::mem::take(&mut self.is_gathering) {
            return None;
        }
        let why = match surveyed {
            Ok(mut surveyed) => {
                self.failures = 0;
                let empty: Vec<Seq> =
                    surveyed.live.iter().filter(|(_, parts)| parts.blocks() == 0).map(|(seq, _)| *seq).collect();
                surveyed.live.retain(|_, parts| parts.blocks() > 0);
                self.note_empty(ledger, &empty);
                self.survey = surveyed;
                self.note_if_done(at);
                return None;
            }
            Err(SurveyFailed::Damaged(why)) => {
                self.no_surveys = true;
                why
            }
            Err(SurveyFailed::Store(why)) => why,
        };
        self.end_survey();
        self.pause_after(why, at)
    }

    /// In these nothing was found to be live.
    fn note_empty(&mut self, ledger: &Ledger, empty: &[Seq]) {
        let live = |seq: &Seq| {
            let counter = ledger.log.map.counter(*seq).ok().flatten().or_else(|| self.surveyed.get(seq).copied());
            let live = counter.map_or(0, |counter| counter.live_blocks);
            (live > 0).then_some((*seq, live))
        };
        let live: Vec<(Seq, u32)> = empty.iter().filter_map(live).collect();
        self.uncounted.extend(live);
    }

    /// What one segment is to carry next of those that kept versions need as they are. Nothing, once nothing was found, before the next checkpoint: its sums
    /// are as of that.
    fn choose_held(
        &mut self,
        ledger: &Ledger,
        here: Settled,
        sizes: gc::Sizes,
        spared: &BTreeSet<Seq>,
    ) -> Result<Option<Vec<Seq>>, NeedPages> {
        let (space, options) = (ledger.log.map.space(), &ledger.rules.options.gc);
        let is_due = gc::is_due(&space.held_totals(), options, here.activity);
        if !is_due
            || self.held_settled == Some((here.checkpointed, here.activity))
            || ledger.versions_settled().is_none()
        {
            return Ok(None);
        }
        let held = ledger.log.map.held_candidates(spared, &self.pages)?;
        let kept: Vec<Seq> = space.durable().kept.iter().map(|version| version.seq).collect();
        let candidates = held.into_iter().map(|(seq, counter)| {
            let birth = space.carriers().birth(seq);
            (kept.partition_point(|version| *version < birth), seq, counter)
        });
        let room = CARRIED_MAX.saturating_sub(space.carriers().carried());
        let victims = gc::choose_held(candidates, LARGE * sizes.segment, sizes.block, room, options, here.activity);
        if victims.is_empty() {
            self.held_settled = Some((here.checkpointed, here.activity));
        }
        Ok((!victims.is_empty()).then_some(victims))
    }

    /// Segments whose references are to be given up: what is live of them is moved as data, and they go, and then what they referred to. That is due where more stays in the store for
    /// them alone than they save, and where it is sealed with a rotated key. Nothing, once nothing was found, before the next checkpoint.
    fn choose_referring(
        &mut self,
        ledger: &Ledger,
        here: Settled,
        sizes: gc::Sizes,
        spared: &BTreeSet<Seq>,
    ) -> Result<Option<Vec<Seq>>, NeedPages> {
        let (map, space) = (&ledger.log.map, ledger.log.map.space());
        let references = space.references();
        if references.is_empty() || self.references_settled == Some(here.checkpointed) {
            return Ok(None);
        }
        let (mut need, mut infos) = (BTreeSet::new(), HashMap::new());
        let spans: BTreeSet<Span> =
            references.targets().chain(references.iter().map(|(seq, _)| seq)).map(Span::of).collect();
        for span in spans {
            match map.infos(span, &self.pages) {
                Ok(of) => infos.extend(of),
                Err(NeedPages(pages)) => need.extend(pages),
            }
        }
        if !need.is_empty() {
            return Err(NeedPages(need.into_iter().collect()));
        }
        let is_free = |seq: Seq| !spared.contains(&seq) && !space.is_held(seq) && space.carriers().holder(seq) == seq;
        let mut costs: HashMap<Seq, gc::Tie> = HashMap::new();
        for (seq, refers) in references.iter() {
            let Some(of) = infos.get(&seq).filter(|info| info.live_blocks > 0) else { continue };
            for (to, blocks) in refers {
                let Some(info) = infos.get(to) else { continue };
                let tie = costs.entry(*to).or_insert_with(|| gc::Tie::of(&info.counter()));
                tie.save(*blocks, &of.counter());
                tie.is_old |= ledger.may_reseal
                    && ledger.rules.sealer.is_retired(&info.salt)
                    && !ledger.rules.sealer.is_retired(&of.salt);
            }
        }
        costs.retain(|_, tie| tie.is_worth_untying());
        let (mut victims, mut bytes) = (Vec::new(), 0);
        for (seq, refers) in references.iter().filter(|(seq, _)| is_free(*seq)) {
            let Some(info) = infos.get(&seq).filter(|info| info.live_blocks > 0) else { continue };
            let of_seq = u64::from(info.live_blocks) * sizes.block;
            if !refers.iter().any(|(to, _)| costs.contains_key(to))
                || !victims.is_empty() && bytes + of_seq > ledger.rules.options.gc.batch
            {
                continue;
            }
            victims.push(seq);
            bytes += of_seq;
        }
        if victims.is_empty() {
            self.references_settled = Some(here.checkpointed);
        }
        Ok((!victims.is_empty()).then_some(victims))
    }

    /// The first that are sealed with a rotated key, of one span at a time. There are none if a walk over all spans found none.
    fn choose_retired(
        &mut self,
        ledger: &Ledger,
        sizes: gc::Sizes,
        spared: &BTreeSet<Seq>,
    ) -> Result<Vec<Seq>, NeedPages> {
        loop {
            let map = &ledger.log.map;
            let Some(span) =
                map.space().spans().find(|span| *span >= self.resealing.0.max(Span::of(map.space().kept())))
            else {
                if std::mem::take(&mut self.resealing).1 {
                    continue;
                }
                return Ok(Vec::new());
            };
            let infos = map.infos(span, &self.pages)?.into_iter().filter(|(seq, _)| !map.space().is_held(*seq));
            let is_retired = |info: &SegmentInfo| ledger.rules.sealer.is_retired(&info.salt);
            let victims = gc::choose_retired(infos, sizes, &ledger.rules.options.gc, spared, is_retired);
            if !victims.is_empty() {
                self.resealing.1 = true;
                return Ok(victims);
            }
            self.resealing.0 = Span(span.0 + 1);
        }
    }

    /// No segment is to be sealed anew any more: then pages of the map are, with the next checkpoints.
    fn reseal_tables(&mut self, ledger: &mut Ledger) {
        if ledger.may_reseal {
            ledger.may_reseal = ledger.has_retired_checkpoints();
            self.owes_checkpoint |= ledger.may_reseal;
            ledger.merge_all |= ledger.may_reseal;
        }
    }

    /// Takes in what was gathered.
    pub fn take(&mut self, ledger: &mut Ledger, gathered: Gathered, at: Instant) -> Option<Effect> {
        if !std::mem::take(&mut self.is_gathering) {
            // It ended while it was being ended.
            return None;
        }
        self.damaged.extend(&gathered.damaged);
        ledger.gc.damaged_segments = self.damaged.len() as u64;
        let before = self.uncounted.len();
        self.note_empty(ledger, &gathered.empty);
        ledger.merge_all |= self.uncounted.len() > before && ledger.log.map.entries() <= MERGE_FOR_COUNTS;
        let Some(error) = gathered.failed else {
            // What was surveyed of them is used up.
            gathered.victims.iter().for_each(|seq| {
                self.survey.live.remove(seq);
                self.surveyed.remove(seq);
            });
            self.failures = 0;
            self.moves = match gathered.cargo {
                None => {
                    let size = LARGE * ledger.rules.options.segment_size;
                    cut(gathered.data, size, gathered.as_of, &gathered.held)
                }
                // What carries segments takes effect as a whole.
                cargo if !gathered.data.is_empty() => {
                    [Move { data: gathered.data, as_of: gathered.as_of, cargo, _held: gathered.held }].into()
                }
                Some(_) => VecDeque::new(),
            };
            if self.has_moves() {
                self.rounds.push_back(Round { victims: gathered.victims, left: self.moves.len() });
            }
            self.note_if_done(at);
            return None;
        };
        self.pause_after(error.to_string(), at)
    }

    /// Takes in pages of the table that were needed to choose.
    pub fn take_pages(&mut self, loaded: Result<LoadedPages, String>, at: Instant) -> Option<Effect> {
        self.is_looking = false;
        match loaded {
            Ok(loaded) => {
                self.pages.extend(loaded);
                None
            }
            Err(error) => {
                self.pages.clear();
                self.pause_after(error, at)
            }
        }
    }

    fn pause_after(&mut self, error: String, at: Instant) -> Option<Effect> {
        let pause = RETRY * 2u32.pow(self.failures.min(6));
        self.failures += 1;
        self.note_if_done(at);
        self.worked = None;
        self.retry_at = Some(at + pause);
        (self.failures == 1).then_some(Effect::Report(Report::CollectionPauses(error)))
    }

    /// Whether data waits for a slot.
    pub fn has_moves(&self) -> bool {
        !self.moves.is_empty()
    }

    /// The next segment's worth; it has a slot now.
    pub fn next_move(&mut self) -> Option<Move> {
        let next = self.moves.pop_front()?;
        self.uploading.push_back(next.bytes());
        Some(next)
    }

    /// A segment of ours took effect.
    pub fn committed(&mut self, at: Instant) {
        self.uploading.pop_front();
        if let Some(round) = self.rounds.front_mut() {
            round.left -= 1;
            if round.left == 0 {
                self.rounds.pop_front();
            }
        }
        self.owes_checkpoint = true;
        self.note_if_done(at);
    }

    /// Whether it is time to checkpoint for what was moved: nothing more is to be done, and nobody writes.
    pub fn wants_checkpoint(&self, ledger: &Ledger, at: Instant) -> bool {
        self.owes_checkpoint && !self.is_working() && ledger.activity(at) == Activity::Quiet
    }

    /// A checkpoint begins.
    pub fn checkpoint_begins(&mut self) {
        self.owes_checkpoint = false;
    }

    /// When there may be something to do although nothing happens.
    pub fn deadline(&self, ledger: &Ledger, at: Instant) -> Option<Instant> {
        if self.is_working() {
            return None;
        }
        if let Some(end) = self.pause(ledger, at) {
            return Some(end);
        }
        let (totals, options) = (ledger.log.map.space().collectable(), &ledger.rules.options.gc);
        let waits = ledger.activity(at) == Activity::Busy && ledger.log.dirty_bytes() == 0;
        let is_due = self.owes_checkpoint
            || gc::is_due(&totals, options, Activity::Quiet)
            || self.is_held_due(ledger, Activity::Quiet);
        (waits && is_due).then_some(ledger.committed_at? + options.quiet_after)
    }

    /// Whether it begins nothing, to save requests: not where space is short.
    pub fn is_spared(&self, ledger: &Ledger, now: Now) -> bool {
        now.thrift.0 != Thrift::Free && self.pace(ledger, now.at).client == gc::Client::Free
    }

    /// Whether it may have uploads under way.
    pub fn pace(&self, ledger: &Ledger, at: Instant) -> gc::Pace {
        let (totals, options) = (ledger.log.map.space().collectable(), &ledger.rules.options);
        gc::pace(&totals, self.passing_bytes(ledger), &options.gc, ledger.activity(at), options.upload_window)
    }

    /// What takes space for a while only: dead objects that will go soon, and segments under way. A volume of a few segments
    /// would never be within its bounds if they counted in full. What a mirror lacks goes nobody knows when, and nobody is held back for it.
    fn passing_bytes(&self, ledger: &Ledger) -> u64 {
        let totals = ledger.log.map.space().collectable();
        let going = totals.dead_bytes.saturating_sub(ledger.doomed.held_bytes());
        let dead = if ledger.doomed.is_stuck { 0 } else { going };
        let passing = dead + ledger.log.uploading_bytes() + self.uploading.iter().sum::<u64>();
        let full = (FEW_SEGMENTS * ledger.rules.options.segment_size).max(totals.live_bytes).max(1);
        (u128::from(passing) * u128::from(totals.live_bytes) / u128::from(full)) as u64
    }

    /// Whether something is being gathered or uploaded.
    pub fn is_working(&self) -> bool {
        self.is_gathering || self.is_looking || !self.rounds.is_empty() || self.waits_for_deletion
    }

    /// Until when it does nothing: after a failure, and after work in proportion to it. The shorter space has become
    /// meanwhile, the sooner that ends.
    fn pause(&self, ledger: &Ledger, at: Instant) -> Option<Instant> {
        let rest = self.worked.map(|(ended, worked)| ended + gc::rest(worked, self.pace(ledger, at)));
        self.retry_at.max(rest)
    }

    /// What waits for a slot, all of it of the last round, is not moved.
    fn give_up_moves(&mut self) {
        if let Some(round) = self.rounds.back_mut() {
            round.left -= self.moves.len();
        }
        self.moves.clear();
        self.rounds.retain(|round| round.left > 0);
    }

    /// Not at every commit: looking at all segments takes its time.
    fn is_worth_a_look(&self, ledger: &Ledger, here: Settled) -> bool {
        if self.settled == Some(here) {
            return false;
        }
        let options = &ledger.rules.options.gc;
        let merge_after = u64::from(options.merge_count.max(2));
        let many = self.settled.is_none_or(|then| here.committed.0 >= then.committed.0 + merge_after);
        let fell_quiet = self.settled.is_none_or(|then| then.activity != here.activity);
        let totals = gc::make_way(&ledger.log.map.space().collectable(), self.passing_bytes(ledger), options);
        many || fell_quiet
            || ledger.may_reseal
            || gc::is_due(&totals, options, here.activity)
            || self.is_held_due(ledger, here.activity)
    }

    /// Whether what kept versions need may be worth carrying.
    fn is_held_due(&self, ledger: &Ledger, activity: Activity) -> bool {
        let (space, options) = (ledger.log.map.space(), &ledger.rules.options.gc);
        self.held_settled != Some((ledger.log.checkpointed(), activity))
            && gc::is_due(&space.held_totals(), options, activity)
    }

    /// After work comes rest.
    fn note_if_done(&mut self, at: Instant) {
        if !self.is_working() {
            self.worked = self.began.take().map(|began| (at, at.duration_since(began)));
        }
    }
}

/// Segments whose moving frees nothing, or less than it takes: those that others refer to, and those that have most of their data elsewhere.
fn tied(ledger: &Ledger, sizes: gc::Sizes) -> impl Iterator<Item = Seq> + '_ {
    let (map, references) = (&ledger.log.map, ledger.log.map.space().references());
    let is_dear = move |seq: &Seq| match map.counter(*seq) {
        Ok(Some(counter)) => u64::from(counter.live_blocks) * sizes.block > counter.stored_bytes,
        _ => true,
    };
    references.targets().chain(references.iter().map(|(seq, _)| seq).filter(is_dear))
}

/// Whether so much is about to be deleted that moving more had better wait for it: what is moved is stored twice until then.
fn is_littered(ledger: &Ledger) -> bool {
    let totals = ledger.log.map.space().collectable();
    let doomed = &ledger.doomed;
    // What a mirror lacks goes nobody knows when.
    let dead = totals.dead_bytes.saturating_sub(doomed.held_bytes());
    doomed.segments_to_go() > 0 && !doomed.is_stuck && dead >= totals.live_bytes / LITTER_PART
}

/// Cuts sorted data into segments of about the same size, which is as near to `segment_size` as can be: two thirds to one
/// and a half of it, or less if that is all.
fn cut(data: Vec<(Extent, Bytes)>, segment_size: u64, as_of: Seq, held: &Held) -> VecDeque<Move> {
    let total: u64 = data.iter().map(|(_, data)| data.len() as u64).sum();
    let even = total.div_ceil(((total + segment_size / 2) / segment_size).max(1));
    let mut moves = VecDeque::new();
    let (mut bytes, mut part) = (0, Vec::new());
    for piece in data {
        if bytes >= even {
            moves.push_back(Move { data: std::mem::take(&mut part), as_of, cargo: None, _held: held.clone() });
            bytes = 0;
        }
        bytes += piece.1.len() as u64;
        part.push(piece);
    }
    if !part.is_empty() {
        moves.push_back(Move { data: part, as_of, cargo: None, _held: held.clone() });
    }
    moves
}
