//! The ledger of an open volume: what it has and knows. The core decides by it; whoever does what was decided enters the result here,
//! under the volume's lock. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::change::{Change, Numbered};
use crate::codec::frame::Compression;
use crate::codec::seal::{Salt, Sealer};
use crate::engine::ages::Ages;
use crate::engine::commit::Uploaded;
use crate::engine::digests::Digests;
use crate::engine::doomed::{Doomed, Hold};
use crate::engine::growth::Growing;
use crate::engine::log::{Lacking, Log, Piece};
use crate::engine::options::Options;
use crate::format::account::Account;
use crate::format::meta::Meta;
use crate::format::root::{CheckpointInfo, Root};
use crate::format::segment::Referred;
use crate::format::segment::reference::Part;
use crate::gc::Activity;
use crate::keyring::Keyring;
use crate::map::{Checkpointed, MapPage, MapSnapshot, NeedPages, PageAt, PageKind, PageRef, Superseded};
use crate::reading::objects::{LoadedPages, WantedPage};
use crate::space::kept;
use crate::space::references::{REFERENCES_MAX, TARGETS_MAX};
use crate::space::{SegmentInfo, Span};
use crate::units::{BlockCount, BlockIndex, BlockSize, ChangeNo, Extent, Seq};

/// This part of what the map may have in memory may be all of a map whose live blocks are counted at once. Looking up what
/// every block took the place of takes some microseconds each under the lock, which is too long for larger maps.
const EXACT_PART: u64 = 8;

/// Of a segment to which nobody refers yet, so many parts of so many are live, or nobody will: it will soon be collected.
const DENSE: (u64, u64) = (3, 4);

/// How often a journal that failed is tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(10);

/// What decisions go by. Only some of the options change while the volume is open ([`settings::at_once`](super::settings::at_once)).
#[derive(Debug)]
pub struct Rules {
    /// What the operator set, of the server and of the volume.
    pub options: Options,
    /// The unit of mapping.
    pub block_size: BlockSize,
    /// The slot of our fence.
    pub fence: Seq,
    /// The slot at which the log goes on after it.
    pub continues_at: Seq,
    /// Fences in the log after the checkpoint that the opening began with; ours is one.
    pub fences_since: u32,
    /// Tells which data key an object is sealed with.
    pub sealer: Sealer,
}

impl Rules {
    /// The first slot after `seq` that may hold a fence of somebody else.
    pub fn slot_after(&self, seq: Seq) -> Seq {
        if seq <= self.fence { self.continues_at } else { seq.next() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    pub(super) rules: Rules,
    pub(super) log: Log,
    /// The number of the newest description that we know.
    description: u64,
    /// Nothing is accepted at this block or later, although the volume may still be larger ([`crate::opening::resize`]).
    lowered: Option<BlockIndex>,
    /// A size that the store does not know yet.
    growing: Growing,
    /// The checkpoint objects that hold pages of the newest root. Of a large volume there are many: they are shared, never copied under the lock.
    checkpoints: Arc<BTreeMap<Seq, CheckpointInfo>>,
    /// What is still to be deleted.
    pub(super) doomed: Doomed,
    /// What tells the next opening of the log.
    pub(super) digests: Digests,
    /// Bytes written and moved since the volume was opened; the meter has the requests.
    account: Account,
    /// How new frames are compressed.
    compression: Compression,
    /// Something may still be sealed with a rotated data key.
    pub(super) may_reseal: bool,
    /// The next checkpoint that can is to begin a merge of all runs of the map.
    pub(super) merge_all: bool,
    /// What is to become of the versions that are kept; one checkpoint does one change.
    version_changes: VecDeque<kept::Change>,
    /// How many changes there were to do, and how many are durable.
    versions_asked: u64,
    versions_done: u64,
    /// The checkpoint under way does one.
    is_changing_versions: bool,
    /// How many changes a checkpoint began to do.
    versions_begun: u64,
    /// What garbage collection has done.
    pub(super) gc: GcStatus,
    /// When a change was committed last.
    pub(super) committed_at: Option<Instant>,
    /// Since when the oldest change waits in the buffer.
    pub(super) active_since: Option<Instant>,
    /// When changes were accepted.
    ages: Ages,
    /// Since when a commit waits for a checkpoint.
    pub(super) uncheckpointed_since: Option<Instant>,
    /// Room of committed changes that nobody gets yet, because the journal still keeps their records in memory.
    withheld: u64,
    /// Writers that wait for room.
    pub(super) writers_waiting: usize,
    /// Accepting pauses while a failed journal is begun anew.
    pub(super) is_paused: bool,
    /// The journal failed; when to try it again.
    pub(super) journal_retry: Option<Instant>,
}

/// What garbage collection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcStatus {
    /// Bytes that it will free when the volume is quiet.
    pub backlog_bytes: u64,
    /// Objects that wait for their deletion.
    pub doomed_objects: u64,
    /// Segments that it has written since the volume was opened.
    pub segments_written: u64,
    /// Segments that it cannot read, and so leaves alone.
    pub damaged_segments: u64,
}

/// Spans of the table of segments that are looked at under one lock.
const SPANS_AT_ONCE: usize = 16;

/// Of those, what is looked at under one lock: a thousand segments each.
const SPANS_OF_A_HOLD: usize = 2;

/// The volume at one instant, for a checkpoint.
#[derive(Debug)]
pub struct CheckpointPlan {
    /// The map.
    pub map: MapSnapshot,
    /// But for its checkpoints, runs and segments, and for the requests of its account.
    pub root: Root,
    /// The objects that hold pages of the checkpoint before.
    pub checkpoints: Arc<BTreeMap<Seq, CheckpointInfo>>,
    /// Everything is to be merged into one run.
    pub merge_all: bool,
    /// Bytes of segments that it will cover, of those that no checkpoint covered before.
    pub bytes: u64,
}

/// A checkpoint that is durable.
#[derive(Debug)]
pub struct Written {
    /// The slot that it covers.
    pub seq: Seq,
    /// What the map is now.
    pub map: Checkpointed,
    /// The objects that hold its pages.
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
    /// Those of the checkpoints before that hold none any more ([`superseded`]).
    pub superseded: BTreeSet<Seq>,
    /// It began the merge of all runs.
    pub has_begun_all: bool,
    /// See [`CheckpointPlan::bytes`].
    pub bytes: u64,
}

/// Of the objects that held pages before, those that hold none of a new checkpoint's.
pub fn superseded(
    before: &BTreeMap<Seq, CheckpointInfo>,
    checkpoints: &BTreeMap<Seq, CheckpointInfo>,
) -> BTreeSet<Seq> {
    before.keys().copied().filter(|seq| !checkpoints.contains_key(seq)).collect()
}

/// What took memory until a checkpoint was durable.
#[derive(Debug)]
pub struct LetGo {
    _map: Superseded,
    _checkpoints: Arc<BTreeMap<Seq, CheckpointInfo>>,
}

/// Why a change is not accepted just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It lies beyond the end.
    BeyondEnd,
    /// Somebody completes partial blocks there, or accepting pauses.
    NotNow,
}

/// Who changes a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A client: waits for whoever completes partial blocks there.
    Client,
    /// Who completes partial blocks there, and nobody else meanwhile.
    Completer,
    /// Who makes the volume smaller: may give up what lies beyond its end.
    Shrinker,
}

impl Ledger {
    /// Of a volume that was just opened; its log may hold replayed changes already.
    pub fn new(
        rules: Rules,
        log: Log,
        (description, compression): (u64, Compression),
        checkpoints: BTreeMap<Seq, CheckpointInfo>,
        (doomed, digests): (Doomed, Digests),
        at: Instant,
    ) -> Ledger {
        let mut ledger = Ledger {
            may_reseal: rules.sealer.keyring().is_some_and(Keyring::has_retired),
            rules,
            log,
            description,
            lowered: None,
            growing: Growing::default(),
            checkpoints: Arc::new(checkpoints),
            doomed,
            digests,
            account: Account::default(),
            compression,
            merge_all: false,
            version_changes: VecDeque::new(),
            versions_asked: 0,
            versions_done: 0,
            is_changing_versions: false,
            versions_begun: 0,
            gc: GcStatus::default(),
            committed_at: None,
            active_since: None,
            ages: Ages::default(),
            uncheckpointed_since: None,
            withheld: 0,
            writers_waiting: 0,
            is_paused: false,
            journal_retry: None,
        };
        let covers = ledger.log.covers();
        ledger.note_age(at);
        ledger.note_commit(at);
        ledger.ages.accepted(covers.next(), covers, at);
        ledger
    }

    /// The log: what is buffered, under way, and mapped.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether a change could be accepted now.
    pub fn may_accept(&self, extent: Extent, by: By) -> Result<(), Refusal> {
        if extent.end() > self.end() && by != By::Shrinker {
            return Err(Refusal::BeyondEnd);
        }
        match !self.is_paused && (by == By::Completer || self.log.is_free(extent)) {
            true => Ok(()),
            false => Err(Refusal::NotNow),
        }
    }

    /// Takes a change into the buffer and numbers it; whether there is something for the core to decide.
    pub fn accept(&mut self, change: Change, at: Instant) -> (Numbered, bool) {
        let frozen_before = self.log.waiting();
        let numbered = self.log.accept(change, self.rules.options.segment_size);
        self.ages.accepted(numbered.no, self.log.covers(), at);
        let is_first = self.note_age(at);
        (numbered, is_first || self.log.waiting() > frozen_before)
    }

    /// Asks for all changes up to `no` to be committed soon; whether they are already.
    pub fn want(&mut self, no: ChangeNo) -> bool {
        let is_covered = self.log.covers() >= no;
        if !is_covered {
            self.log.want(no);
        }
        is_covered
    }

    /// Begins to complete partial blocks of `extent`, unless somebody else does in it.
    pub fn begin_completing(&mut self, extent: Extent) -> bool {
        self.log.begin_completing(extent)
    }

    /// The partial blocks of `extent` are complete, or given up.
    pub fn end_completing(&mut self, extent: Extent) {
        self.log.end_completing(extent);
    }

    /// One more writer waits for room.
    pub fn begin_waiting(&mut self) {
        self.writers_waiting += 1;
    }

    /// It waits no more.
    pub fn end_waiting(&mut self) {
        self.writers_waiting -= 1;
    }

    /// Writers that wait for room.
    pub fn writers_waiting(&self) -> usize {
        self.writers_waiting
    }

    /// A plan for reading `extent`, with the pages that were loaded for it; the map keeps `map_memory` bytes.
    pub fn plan_read(
        &mut self,
        extent: Extent,
        loaded: LoadedPages,
        map_memory: u64,
    ) -> Result<Vec<(Extent, Piece)>, Lacking> {
        self.with_pages(loaded, map_memory, |log| log.plan_read(extent))
    }

    /// See [`Log::written_together`].
    pub fn written_together(&mut self, extent: Extent) -> u64 {
        self.log.written_together(extent)
    }

    /// Looks into the log with the pages that were loaded for it; the map keeps `map_memory` bytes afterwards. Pages may leave again
    /// at once: whoever needs them brings all of them each time, also because one finds the next.
    pub fn with_pages<T>(&mut self, loaded: LoadedPages, map_memory: u64, look: impl FnOnce(&mut Log) -> T) -> T {
        self.take_pages(loaded);
        let found = look(&mut self.log);
        self.log.map.evict(map_memory as usize);
        found
    }

    fn take_pages(&mut self, pages: LoadedPages) {
        for (at, page) in pages {
            self.log.map.page_loaded(at, page);
        }
    }

    /// A read was planned, or will be: its ticket. No object is deleted that the map refers to now until it ended.
    pub fn begin_reading(&mut self) -> u64 {
        self.log.readers().begin()
    }

    /// It ended.
    pub fn end_reading(&mut self, ticket: u64) {
        self.log.readers().end(ticket);
    }

    /// Whether every read before the line has ended.
    pub fn has_passed(&mut self, line: u64) -> bool {
        self.log.readers().passed(line)
    }

    /// These pages and what is needed to read them. What a checkpoint has made needless meanwhile is left out: whoever asked for it
    /// looks again.
    pub fn wanted(&self, need: NeedPages) -> Vec<WantedPage> {
        let wanted = |page: PageAt| match page.kind {
            PageKind::Carrier(_) => Some((page, CheckpointInfo::default())),
            _ => Some((page, *self.checkpoints.get(&page.at.checkpoint)?)),
        };
        need.0.into_iter().filter_map(wanted).collect()
    }

    /// A segment is in its slot, as all before it are: a part of it takes effect ([`Log::commit`]).
    pub fn commit(
        &mut self,
        uploaded: &Uploaded,
        part: (&mut usize, usize),
        loaded: LoadedPages,
        map_memory: u64,
        at: Instant,
    ) -> Result<Option<u64>, NeedPages> {
        self.take_pages(loaded);
        self.log.map.count_exactly_within(map_memory / EXACT_PART);
        let Uploaded { seq, info, placements, moved, front, refers, .. } = uploaded;
        let (done, at_most) = part;
        let released = self.log.commit((*seq, *info), placements, moved.as_ref(), done, at_most)?;
        self.log.map.evict(map_memory as usize);
        if released.is_none() {
            return Ok(None);
        }
        self.log.map.refer(*seq, refers);
        self.note_commit(at);
        let data = self.rules.block_size.bytes_in(BlockCount(info.blocks.into()));
        self.digests.committed(*seq, front.clone(), data);
        match moved {
            None => {
                self.committed_at = Some(at);
                self.account.bytes_written += data;
            }
            Some(_) => {
                self.gc.segments_written += 1;
                self.account.bytes_moved += data;
            }
        }
        Ok(released)
    }

    /// Those of the runs, which are stored already, that the segment at `seq` may refer to, and from now on does: what they are in stays in the store as long as that segment. And the
    /// segments to which nobody is to refer any more.
    ///
    /// What is referred to took effect, is in the table, and is needed anyhow as of now: so it is neither gone nor about to go ([`Space::dead`]), and is not before its reference is
    /// known here. It is mostly live, or is referred to already: what is about to be collected is not to stay because of that. It is not sealed with a rotated key.
    ///
    /// [`Space::dead`]: crate::space::Space::dead
    pub fn refer(&mut self, seq: Seq, runs: Vec<Referred>) -> (Vec<Referred>, BTreeSet<Seq>) {
        let (mut chosen, mut useless, mut refers) = (Vec::new(), BTreeSet::new(), BTreeMap::<Seq, u32>::new());
        for run in runs {
            let Some(Part { frame, salt, .. }) = run.parts.first().copied() else { continue };
            if useless.contains(&frame.seq) {
                continue;
            }
            if !self.may_be_referred_to(frame.seq, &salt) {
                useless.insert(frame.seq);
                continue;
            }
            let references = self.log.map.space().references();
            let is_new = !refers.contains_key(&frame.seq);
            let to_new = refers.keys().filter(|to| !references.holds(**to)).count() + usize::from(is_new);
            if references.len() + refers.len() + usize::from(is_new) > REFERENCES_MAX
                || references.target_count() + to_new > TARGETS_MAX
            {
                continue;
            }
            *refers.entry(frame.seq).or_default() += run.extent.count.0 as u32;
            chosen.push(run);
        }
        let refers: Vec<(Seq, u32)> = refers.into_iter().collect();
        self.log.map.refer(seq, &refers);
        (chosen, useless)
    }

    fn may_be_referred_to(&self, seq: Seq, salt: &Salt) -> bool {
        let map = &self.log.map;
        let is_it = matches!(map.salt(seq), Ok(Some(own)) if own == *salt);
        let Ok(Some(counter)) = map.counter(seq) else { return false };
        let is_dense = u64::from(counter.live_blocks) * DENSE.1 >= u64::from(counter.blocks) * DENSE.0;
        let stays = map.space().references().holds(seq);
        seq <= self.log.committed()
            && is_it
            && !counter.is_dead()
            && (is_dense || stays)
            && !self.doomed.names(seq)
            && !self.rules.sealer.is_retired(salt)
    }

    /// Takes `committed` bytes of room back, and returns what of it, and of what was withheld before, somebody else may have: all but what the
    /// journal still keeps of committed changes in memory (rule R6).
    pub fn room_back(&mut self, committed: u64, kept_by_journal: u64) -> u64 {
        self.withheld += committed;
        let back = self.withheld.saturating_sub(kept_by_journal);
        self.withheld -= back;
        back
    }

    /// The volume as it is now, for a checkpoint. What is committed from here on goes into a new table of the map.
    pub(crate) fn begin_checkpoint(&mut self) -> CheckpointPlan {
        let seq = self.log.committed();
        let root = Root {
            seq,
            covers: self.log.covers(),
            next_slot: self.rules.slot_after(seq),
            account: self.account,
            ..Root::default()
        };
        let bytes = self.log.bytes_since_checkpoint();
        if let Some(change) = self.version_changes.pop_front() {
            self.is_changing_versions = true;
            self.versions_begun += 1;
            self.log.map.change_versions(seq, change);
        }
        self.digests.checkpoint_begins(seq);
        let (map, checkpoints) = (self.log.map.begin_checkpoint(), self.checkpoints.clone());
        CheckpointPlan { map, root, checkpoints, merge_all: self.merge_all, bytes }
    }

    /// A checkpoint is durable: what nothing needs as of it is doomed. `map_memory` is what the map keeps in memory.
    /// Returns what may be let go of without a lock. What can wait is left to [`Ledger::tidy`].
    #[must_use]
    pub fn checkpoint_written(&mut self, written: Written, map_memory: u64, at: Instant) -> LetGo {
        let Written { seq, map, checkpoints, mut superseded, has_begun_all, bytes } = written;
        let newest = self.log.checkpointed();
        superseded.extend((newest.0 > 0 && !checkpoints.contains_key(&newest)).then_some(newest));
        let map = self.log.map.checkpointed(map);
        // What was kept only because it had to be written may go.
        self.log.map.evict(map_memory as usize);
        let before = std::mem::replace(&mut self.checkpoints, Arc::new(checkpoints));
        self.doomed.add_checkpoints(superseded);
        self.doomed.add_digests(self.digests.checkpointed(seq));
        self.merge_all &= !has_begun_all;
        self.versions_done += u64::from(std::mem::take(&mut self.is_changing_versions));
        self.log.checkpoint_done(seq, bytes);
        self.uncheckpointed_since = None;
        self.note_commit(at);
        LetGo { _map: map, _checkpoints: before }
    }

    /// Does some of what a checkpoint left that can wait; nothing if all is done, else pages that are to be let go of without a lock.
    pub fn tidy(&mut self) -> Option<Vec<Arc<MapPage>>> {
        self.log.map.tidy(|checkpoint| self.checkpoints.contains_key(&checkpoint))
    }

    /// Has a checkpoint change the versions that are kept, after those changes that were asked for before. Returns which change it is:
    /// it is durable when so many are ([`Ledger::versions_done`]).
    pub fn change_versions(&mut self, change: kept::Change) -> u64 {
        self.version_changes.push_back(change);
        self.versions_asked += 1;
        self.versions_asked
    }

    /// How many changes of the versions that are kept were asked for.
    pub fn versions_asked(&self) -> u64 {
        self.versions_asked
    }

    /// How many changes of the versions that are kept are durable.
    pub fn versions_done(&self) -> u64 {
        self.versions_done
    }

    /// How many changes of the versions that are kept began, if all of them are durable: then those are kept that the last checkpoint says, and no other can
    /// be needed.
    pub fn versions_settled(&self) -> Option<u64> {
        (self.versions_begun == self.versions_done).then_some(self.versions_begun)
    }

    /// Whether the versions that are kept are to change.
    pub(super) fn is_to_change_versions(&self) -> bool {
        !self.version_changes.is_empty()
    }

    /// Whether that has to wait for the next place of the log: the newest has its checkpoint.
    pub(super) fn wants_place(&self) -> bool {
        self.is_to_change_versions() && !self.log.needs_checkpoint()
    }

    /// Whether that has to wait for a slot of the log that nothing else takes: a checkpoint stands for a place, and one place has one.
    pub(super) fn wants_mark(&self) -> bool {
        let log = &self.log;
        self.wants_place() && log.uploading() == 0 && !log.has_changes()
    }

    /// Takes note of segments that are dead as of the last durable checkpoint, in some spans of their table from that one on, with the pages
    /// that were loaded for it. Returns the span to go on with, and the pages that are needed for it.
    pub fn doom(&mut self, from: Span, pages: &HashMap<PageRef, Arc<MapPage>>) -> Option<(Span, NeedPages)> {
        let spans: Vec<Span> = self.log.map.space().spans_with_dead(from).take(SPANS_AT_ONCE).collect();
        if spans.is_empty() || self.doomed.is_full() {
            return None;
        }
        let (mut next, mut need, mut done) = (from, NeedPages(Vec::new()), 0);
        for span in spans {
            if done == SPANS_OF_A_HOLD {
                break;
            }
            match self.log.map.dead(span, pages) {
                Ok(dead) if need.0.is_empty() => {
                    self.doomed.add(dead);
                    next = Span(span.0 + 1);
                    done += 1;
                }
                Ok(_) => {}
                Err(NeedPages(missing)) => need.0.extend(missing),
            }
        }
        Some((next, need))
    }

    /// Pages come into memory, and the map keeps `map_memory` bytes.
    pub fn bring(&mut self, pages: LoadedPages, map_memory: u64) {
        self.with_pages(pages, map_memory, |_| ());
    }

    /// Pages of the table come into memory; they leave as those do that a read brought.
    pub fn keep_pages(&mut self, pages: LoadedPages) {
        self.take_pages(pages);
    }

    /// Checkpoint objects that are sealed with a rotated data key, if what is in them is to be sealed anew.
    pub fn retired_checkpoints(&self) -> BTreeSet<Seq> {
        if !self.may_reseal {
            return BTreeSet::new();
        }
        let is_retired = |info: &CheckpointInfo| self.rules.sealer.is_retired(&info.salt);
        let retired = self.checkpoints.iter().filter(|(_, info)| is_retired(info)).map(|(seq, _)| *seq);
        let table = self.log.map.space().durable().objects();
        let is_head =
            |seq: &Seq| table.contains_key(seq) || self.log.map.runs().iter().any(|run| run.objects.contains_key(seq));
        retired.filter(is_head).collect()
    }

    /// What is still to be deleted.
    pub fn doomed(&self) -> &Doomed {
        &self.doomed
    }

    /// Whether superseded checkpoint objects may go: not before a checkpoint of our own is durable. A server that we displaced, and that does not
    /// know it, may have begun with an older checkpoint than we did, if a newer one landed late, and build its next one on that.
    /// Until ours is there, which is beyond all that it can write, that one may be the newest.
    pub(super) fn may_delete_checkpoints(&self) -> bool {
        self.log.checkpointed() >= self.rules.fence
    }

    /// The oldest checkpoint object that is there after that one, if it is durable.
    pub fn checkpoint_after(&self, seq: Seq) -> Option<Seq> {
        let needed = self.checkpoints.range(seq.next()..).next().map(|(seq, _)| *seq);
        let newest = Some(self.log.checkpointed()).filter(|newest| *newest > seq);
        [needed, newest, self.doomed.checkpoint_after(seq)].into_iter().flatten().min()
    }

    /// What of the doomed stays from now on because a mirror does not have it. Returns whether this is to be asked for again.
    #[must_use]
    pub fn hold(&mut self, hold: Hold) -> bool {
        self.doomed.hold(hold)
    }

    /// How many doomed objects may go now.
    pub(super) fn deletable(&self) -> usize {
        self.doomed.deletable(self.may_delete_checkpoints())
    }

    /// So many more of the checkpoint objects that were planned to go are gone.
    pub fn checkpoints_deleted(&mut self, count: usize) {
        self.doomed.checkpoints_gone(count);
    }

    /// The next of the segments that were planned to go are gone, these.
    pub fn segments_deleted(&mut self, deleted: &[Seq]) {
        for seq in deleted {
            if let Some(bytes) = self.doomed.segment_gone(*seq) {
                self.log.map.forget(*seq, bytes);
            }
        }
    }

    /// So many more of the digests that were planned to go are gone.
    pub fn digests_deleted(&mut self, count: usize) {
        self.doomed.digests_gone(count);
    }

    /// The digest under way is there, or nobody knows.
    pub(super) fn digest_ended(&mut self, is_there: bool) {
        let needless = self.digests.ended(is_there, self.log.checkpointed());
        self.doomed.add_digests(needless.into_iter().collect());
    }

    /// All of these are gone.
    pub fn planned_is_gone(&mut self) {
        self.doomed.planned_is_gone();
    }

    /// The checkpoint objects that a listing may show: those with pages that are needed, the doomed ones, and the newest.
    pub fn known_checkpoints(&self) -> BTreeSet<Seq> {
        let known = self.checkpoints.keys().copied().chain(self.doomed.checkpoints());
        known.chain([self.log.checkpointed()]).collect()
    }

    /// The checkpoint objects that hold pages of the newest root.
    pub fn checkpoints(&self) -> &Arc<BTreeMap<Seq, CheckpointInfo>> {
        &self.checkpoints
    }

    /// How many checkpoint objects hold pages that are needed.
    pub fn checkpoint_objects(&self) -> usize {
        self.checkpoints.len()
    }

    /// Whether pages that are needed are sealed with a rotated data key, and can be sealed anew: those of a kept version stay as they are.
    pub(super) fn has_retired_checkpoints(&self) -> bool {
        !self.retired_checkpoints().is_empty()
    }

    /// Bytes of objects that are still needed and sealed with a rotated data key, and are to be sealed anew: what kept versions need stays as it is.
    pub fn retired_bytes(&self) -> u64 {
        if !self.may_reseal {
            return 0;
        }
        let (map, none) = (&self.log.map, HashMap::new());
        let is_retired = |info: &SegmentInfo| self.rules.sealer.is_retired(&info.salt);
        let of_span = |span| match map.infos(span, &none) {
            Ok(infos) => {
                let free = infos.iter().filter(|(seq, info)| is_retired(info) && !map.space().is_held(*seq));
                let is_tied = |seq: &Seq| map.space().references().holds(*seq);
                free.map(|(seq, info)| if is_tied(seq) { info.stored_bytes } else { info.live_bytes() }).sum()
            }
            // Its salts are not in memory: all of it may be.
            Err(_) => map.space().summary(span).map_or(0, |summary| summary.totals.live_bytes),
        };
        let first = Span::of(map.space().kept());
        let segments: u64 = map.space().spans().filter(|span| *span >= first).map(of_span).sum();
        let bytes = |seq: &Seq| self.log.map.runs().iter().filter_map(|run| run.objects.get(seq)).sum::<u64>();
        let is_kept = |seq: &Seq| map.space().durable().kept.iter().any(|version| version.objects.contains(seq));
        let tables = self.checkpoints.iter().filter(|(seq, _)| !is_kept(seq));
        let tables = tables.map(|(seq, info)| (info.salt, bytes(seq)));
        let tables = tables.filter(|(salt, _)| self.rules.sealer.is_retired(salt)).map(|(_, bytes)| bytes);
        segments + tables.sum::<u64>()
    }

    /// Has all runs of the map merged, with the next checkpoints.
    pub fn merge_map(&mut self) {
        self.merge_all = true;
    }

    /// What garbage collection has done.
    pub fn gc(&self) -> GcStatus {
        self.gc
    }

    /// What the volume cost since it was opened, but for requests.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// How new frames are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The number of the newest description that we know.
    pub fn description(&self) -> u64 {
        self.description
    }

    /// Takes over what a proven description says, but for its keys. A size that is owed stays until it says that. Fails with the first block
    /// that would be cut off and was not given up before.
    pub fn adopt(&mut self, number: u64, meta: &Meta) -> Result<(), BlockIndex> {
        self.description = number;
        self.compression = meta.compression;
        self.may_reseal = self.rules.sealer.keyring().is_some_and(Keyring::has_retired);
        self.growing.described(meta.size);
        let end = self.rules.block_size.block_of(meta.size.max(self.growing.owed().unwrap_or(0)));
        if end < self.end() {
            return Err(end);
        }
        self.log.map.resize(end - BlockIndex(0))?;
        self.lowered = None;
        Ok(())
    }

    /// The options that hold now.
    pub fn options(&self) -> &Options {
        &self.rules.options
    }

    /// Others hold from now on.
    pub fn set_options(&mut self, options: Options) {
        self.rules.options = options;
    }

    /// Nothing is accepted from there on, or again up to the end of the volume.
    pub fn lower(&mut self, end: Option<BlockIndex>) {
        self.lowered = end;
    }

    /// The volume begins to become smaller, and nobody makes it larger until [`Ledger::end_shrinking`]; not while it becomes larger.
    pub fn begin_shrinking(&mut self) -> bool {
        self.growing.bar()
    }

    /// It is smaller, or not to be.
    pub fn end_shrinking(&mut self) {
        self.growing.lift_bar();
    }

    /// Another size is asked for ([`growth`](crate::engine::growth), step 1); not while the volume becomes smaller, or larger.
    pub fn ask_for_size(&mut self, size: u64) -> bool {
        self.lowered.is_none() && self.growing.ask(size)
    }

    /// It is not to be.
    pub fn take_size_back(&mut self) {
        self.growing.take_back();
    }

    /// It is served from here on, and owed (step 3).
    pub fn owe_size(&mut self) {
        if let Some(size) = self.growing.owe() {
            let blocks = self.rules.block_size.block_of(size) - BlockIndex(0);
            assert!(self.log.map.resize(blocks).is_ok(), "a volume that becomes larger cuts nothing off");
        }
    }

    /// Bytes that the volume has and the store is still to be told.
    pub fn owed_size(&self) -> Option<u64> {
        self.growing.owed()
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.rules.block_size.bytes_in(self.log.map.volume().count)
    }

    /// Whether that is so.
    pub fn is_lowered(&self) -> bool {
        self.lowered.is_some()
    }

    /// The first slot that may hold a fence of somebody else: what is committed is ours.
    pub fn first_foreign_slot(&self) -> Seq {
        self.rules.slot_after(self.log.committed())
    }

    /// The first block at which nothing is accepted.
    fn end(&self) -> BlockIndex {
        self.lowered.unwrap_or(self.log.map.volume().end())
    }

    /// How long the oldest change has waited that is not in the store, a second too long at most.
    pub fn oldest_dirty(&mut self, at: Instant) -> Duration {
        self.ages.oldest(self.log.covers(), self.log.last(), at).unwrap_or_default()
    }

    /// Whether somebody writes.
    pub fn activity(&self, at: Instant) -> Activity {
        let quiet_after = self.rules.options.gc.quiet_after;
        let rested = self.committed_at.is_none_or(|then| at.duration_since(then) >= quiet_after);
        if rested && self.log.dirty_bytes() == 0 { Activity::Quiet } else { Activity::Busy }
    }

    /// The journal failed: it is tried again after a while. Whether that is news.
    pub fn journal_failed(&mut self, at: Instant) -> bool {
        let is_news = self.journal_retry.is_none();
        self.journal_retry.get_or_insert(at + JOURNAL_RETRY);
        is_news
    }

    /// The change with which a failed journal begins anew, when its time has come: accepting pauses until everything is committed, so that
    /// the new one has no gap.
    pub(super) fn begin_journal(&mut self, at: Instant) -> Option<ChangeNo> {
        if self.journal_retry.is_none_or(|retry| at < retry) {
            return None;
        }
        self.is_paused = true;
        let last = self.log.last();
        (self.log.covers() == last).then(|| {
            self.journal_retry = None;
            last.next()
        })
    }

    /// It was begun anew.
    pub(super) fn journal_begun(&mut self) {
        self.is_paused = false;
    }

    /// Keeps `active_since` true; whether the buffer just became non-empty.
    pub(super) fn note_age(&mut self, at: Instant) -> bool {
        if !self.log.has_active() {
            self.active_since = None;
            return false;
        }
        let began = self.active_since.is_none();
        self.active_since.get_or_insert(at);
        began
    }

    /// Keeps `uncheckpointed_since` true.
    fn note_commit(&mut self, at: Instant) {
        match self.log.needs_checkpoint() {
            true => drop(self.uncheckpointed_since.get_or_insert(at)),
            false => self.uncheckpointed_since = None,
        }
    }
}
