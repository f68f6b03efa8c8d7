//! Garbage collection, the part that works: has the live blocks of the victims that [`crate::gc`] chose gathered
//! ([`super::gather`]), and hands them, sorted by block, to the log as segments of moved data.
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
//! Victims are read in *rounds* of up to `gc.batch` live bytes. While space is not short one round follows the other, with
//! rests between them; when it is, the next one is read while the last one is uploaded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::gc::{self, Activity};
use crate::map::SegmentInfo;
use crate::units::{Extent, Seq};
use crate::volume::effect::{self, Effect};
use crate::volume::gather::{Gathered, gather};
use crate::volume::shared::{Inner, Shared};
use crate::volume::state::LARGE;

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
pub(super) struct Move {
    /// Sorted by block.
    pub data: Vec<(Extent, Bytes)>,
    /// See [`segment::SegmentHead::as_of`].
    pub as_of: Seq,
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
pub(super) type Held = Option<Arc<OwnedSemaphorePermit>>;

/// The collector of one volume; the log task owns it.
#[derive(Default)]
pub(super) struct Collector {
    gathering: Option<Effect<Gathered>>,
    /// Waiting for a slot of the log.
    moves: VecDeque<Move>,
    /// In a slot, not committed: bytes of data, in the order of the log.
    uploading: VecDeque<u64>,
    /// The rounds of which not everything is committed, oldest first.
    rounds: VecDeque<Round>,
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
}

/// Victims that are being moved together.
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

impl Collector {
    /// Puts the next batch under way, if there is something worth it.
    pub fn start(&mut self, shared: &Arc<Shared>) {
        if shared.is_closing() {
            // What has no slot yet is still where it was.
            self.gathering = None;
            self.give_up_moves();
            (self.worked, self.retry_at) = (None, None);
            self.waits_for_deletion = false;
            return;
        }
        if self.gathering.is_some() || self.has_moves() {
            return;
        }
        let (victims, as_of) = {
            let inner = shared.inner.lock();
            let is_pressed = self.pace(shared, &inner).time_percent >= 100;
            self.waits_for_deletion = is_pressed && is_littered(&inner);
            if self.waits_for_deletion
                || self.is_working() && !is_pressed
                || self.pause(shared, &inner).is_some_and(|end| end > Instant::now())
            {
                return;
            }
            (self.worked, self.retry_at) = (None, None);
            let activity = activity(shared, &inner);
            let here =
                Settled { committed: inner.state.committed(), checkpointed: inner.state.checkpointed(), activity };
            if !self.is_worth_a_look(shared, &inner, here) {
                return;
            }
            let usage = inner.state.map.usage();
            let being_moved: BTreeSet<Seq> =
                self.rounds.iter().flat_map(|round| round.victims.iter().copied()).collect();
            let mut totals = gc::make_way(&usage.totals(), self.passing_bytes(shared, &inner), &shared.options.gc);
            totals.stored_bytes -= being_moved.iter().filter_map(|&seq| usage.get(seq)).map(sparse_bytes).sum::<u64>();
            let sizes = gc::Sizes { segment: shared.options.segment_size, block: shared.block_size.bytes().into() };
            let options = &shared.options.gc;
            self.uncounted.retain(|seq, live| usage.get(*seq).is_some_and(|info| info.live_blocks == *live));
            let spared = self.damaged.iter().chain(self.uncounted.keys()).copied().chain(being_moved).collect();
            let mut victims = gc::choose(usage.iter(), &totals, here.committed, sizes, options, activity, &spared);
            if victims.is_empty() && inner.may_reseal {
                victims = gc::choose_retired(usage.iter(), sizes, options, &spared, |info| {
                    shared.sealer.is_retired(&info.salt)
                });
            }
            if victims.is_empty() {
                self.settled = Some(here);
                drop(inner);
                if !self.is_working() {
                    self.reseal_tables(shared);
                }
                return;
            }
            (victims, here.committed)
        };
        self.began.get_or_insert_with(Instant::now);
        self.gathering = Some(Effect::start(gather(shared.clone(), victims, as_of)));
    }

    /// No segment is to be sealed anew any more: then pages of the map are, with the next checkpoints.
    fn reseal_tables(&mut self, shared: &Shared) {
        let mut inner = shared.inner.lock();
        if inner.may_reseal {
            inner.may_reseal = inner.checkpoints.values().any(|info| shared.sealer.is_retired(&info.salt));
            self.owes_checkpoint |= inner.may_reseal;
            inner.merge_all |= inner.may_reseal;
        }
    }

    /// The gathered data, once there is some; never, if nothing is being gathered.
    pub async fn gathered(&mut self) -> Gathered {
        effect::ended(&mut self.gathering).await
    }

    /// Takes in what [`Collector::gathered`] returned.
    pub fn take(&mut self, shared: &Shared, gathered: Gathered) {
        self.damaged.extend(&gathered.damaged);
        {
            let mut inner = shared.inner.lock();
            inner.gc.damaged_segments = self.damaged.len() as u64;
            let usage = inner.state.map.usage();
            let live = |seq: &Seq| Some((*seq, usage.get(*seq)?.live_blocks)).filter(|(_, live)| *live > 0);
            let uncounted: Vec<_> = gathered.empty.iter().filter_map(live).collect();
            inner.merge_all |= !uncounted.is_empty() && inner.state.map.entries() <= MERGE_FOR_COUNTS;
            self.uncounted.extend(uncounted);
        }
        match gathered.failed {
            Some(error) => {
                let pause = RETRY * 2u32.pow(self.failures.min(6));
                if self.failures == 0 {
                    tracing::warn!(volume = %shared.meta.name, "garbage collection pauses: {error}");
                }
                self.failures += 1;
                self.note_if_done();
                self.worked = None;
                self.retry_at = Some(Instant::now() + pause);
            }
            None => {
                self.failures = 0;
                self.moves = cut(gathered.data, LARGE * shared.options.segment_size, gathered.as_of, &gathered.held);
                if self.has_moves() {
                    self.rounds.push_back(Round { victims: gathered.victims, left: self.moves.len() });
                }
                self.note_if_done();
            }
        }
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
    pub fn committed(&mut self) {
        self.uploading.pop_front();
        if let Some(round) = self.rounds.front_mut() {
            round.left -= 1;
            if round.left == 0 {
                self.rounds.pop_front();
            }
        }
        self.owes_checkpoint = true;
        self.note_if_done();
    }

    /// Whether it is time to checkpoint for what was moved: nothing more is to be done, and nobody writes.
    pub fn wants_checkpoint(&self, shared: &Shared, inner: &Inner) -> bool {
        self.owes_checkpoint && !self.is_working() && activity(shared, inner) == Activity::Quiet
    }

    /// A checkpoint begins.
    pub fn checkpoint_begins(&mut self) {
        self.owes_checkpoint = false;
    }

    /// When there may be something to do although nothing happens.
    pub fn deadline(&self, shared: &Shared, inner: &Inner) -> Option<Instant> {
        if self.is_working() {
            return None;
        }
        if let Some(end) = self.pause(shared, inner) {
            return Some(end);
        }
        let totals = inner.state.map.usage().totals();
        let waits = activity(shared, inner) == Activity::Busy && inner.state.dirty_bytes() == 0;
        let is_due = self.owes_checkpoint || gc::is_due(&totals, &shared.options.gc, Activity::Quiet);
        (waits && is_due).then_some(inner.committed_at? + shared.options.gc.quiet_after)
    }

    /// Whether it may have uploads under way.
    pub fn pace(&self, shared: &Shared, inner: &Inner) -> gc::Pace {
        let totals = inner.state.map.usage().totals();
        gc::pace(
            &totals,
            self.passing_bytes(shared, inner),
            &shared.options.gc,
            activity(shared, inner),
            shared.options.upload_window,
        )
    }

    /// What takes space for a while only: dead objects that will go soon, and segments under way. A volume of a few segments
    /// would never be within its bounds if they counted in full.
    fn passing_bytes(&self, shared: &Shared, inner: &Inner) -> u64 {
        let totals = inner.state.map.usage().totals();
        let dead = if inner.doomed.is_stuck { 0 } else { totals.dead_bytes };
        let passing = dead + inner.state.uploading_bytes() + self.uploading.iter().sum::<u64>();
        let full = (FEW_SEGMENTS * shared.options.segment_size).max(totals.live_bytes).max(1);
        (u128::from(passing) * u128::from(totals.live_bytes) / u128::from(full)) as u64
    }

    /// Whether something is being gathered or uploaded.
    pub fn is_working(&self) -> bool {
        self.gathering.is_some() || !self.rounds.is_empty() || self.waits_for_deletion
    }

    /// Until when it does nothing: after a failure, and after work in proportion to it. The shorter space has become
    /// meanwhile, the sooner that ends.
    fn pause(&self, shared: &Shared, inner: &Inner) -> Option<Instant> {
        let rest = self.worked.map(|(ended, worked)| ended + gc::rest(worked, self.pace(shared, inner)));
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
    fn is_worth_a_look(&self, shared: &Shared, inner: &Inner, here: Settled) -> bool {
        if self.settled == Some(here) {
            return false;
        }
        let options = &shared.options.gc;
        let merge_after = u64::from(options.merge_count.max(2));
        let many = self.settled.is_none_or(|then| here.committed.0 >= then.committed.0 + merge_after);
        let fell_quiet = self.settled.is_none_or(|then| then.activity != here.activity);
        let totals = gc::make_way(&inner.state.map.usage().totals(), self.passing_bytes(shared, inner), options);
        many || fell_quiet || inner.may_reseal || gc::is_due(&totals, options, here.activity)
    }

    /// After work comes rest.
    fn note_if_done(&mut self) {
        if !self.is_working() {
            self.worked = self.began.take().map(|began| (Instant::now(), began.elapsed()));
        }
    }
}

/// Whether so much is about to be deleted that moving more had better wait for it: what is moved is stored twice until then.
fn is_littered(inner: &Inner) -> bool {
    let totals = inner.state.map.usage().totals();
    !inner.doomed.segments.is_empty() && !inner.doomed.is_stuck && totals.dead_bytes >= totals.live_bytes / LITTER_PART
}

/// What moving a segment would free.
fn sparse_bytes(info: &SegmentInfo) -> u64 {
    if info.live_blocks == 0 { 0 } else { info.stored_bytes.saturating_sub(info.live_bytes()) }
}

/// Whether somebody writes.
pub(super) fn activity(shared: &Shared, inner: &Inner) -> Activity {
    let rested = inner.committed_at.is_none_or(|at| at.elapsed() >= shared.options.gc.quiet_after);
    if rested && inner.state.dirty_bytes() == 0 { Activity::Quiet } else { Activity::Busy }
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
            moves.push_back(Move { data: std::mem::take(&mut part), as_of, _held: held.clone() });
            bytes = 0;
        }
        bytes += piece.1.len() as u64;
        part.push(piece);
    }
    if !part.is_empty() {
        moves.push_back(Move { data: part, as_of, _held: held.clone() });
    }
    moves
}
