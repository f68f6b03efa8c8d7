//! Garbage collection, the part that reads and writes: gathers the live blocks of the victims that [`crate::gc`] chose,
//! and hands them, sorted by block, to the log as segments of moved data.
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

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::codec::CorruptError;
use crate::gc::{self, Activity};
use crate::map::Placement;
use crate::segment::{self, LogObject, LogRead};
use crate::store::{ErrorKind, StoreError};
use crate::units::{Extent, FrameAddr, Location, Seq};
use crate::volume::fetch;
use crate::volume::objects::ReadError;
use crate::volume::scan;
use crate::volume::shared::{Inner, Shared};
use crate::volume::state::LARGE;

/// Victims that are read at one time.
const PARALLEL: usize = 4;

/// Objects up to this length, and those that are mostly live, are read whole: one request instead of several.
const WHOLE_BYTES: u64 = 512 << 10;

/// Dead bytes between live frames that are read along with them: collection is not in a hurry, requests cost money.
const READ_GAP: u64 = 256 << 10;

/// The most that one request reads.
const READ_MAX: u64 = 8 << 20;

/// Extents that are looked up in the map under one lock.
const LOOKUPS: usize = 256;

/// The pause after the store failed a read of ours; it doubles up to a hundred times as much.
const RETRY: Duration = Duration::from_secs(5);

/// Live data that is to be written again, as one segment.
#[derive(Debug)]
pub(super) struct Move {
    /// Sorted by block.
    pub data: Vec<(Extent, Bytes)>,
    /// See [`segment::SegmentHead::as_of`].
    pub as_of: Seq,
}

/// The collector of one volume; the log task owns it.
#[derive(Default)]
pub(super) struct Collector {
    gathering: Option<BoxFuture<'static, Gathered>>,
    /// Waiting for a slot of the log.
    moves: VecDeque<Move>,
    /// In a slot, not committed.
    uploading: usize,
    /// Victims that cannot be read.
    damaged: BTreeSet<Seq>,
    /// Victims in which nothing was live although the table says so, as of the checkpoint at this place: the map dropped
    /// pages without reading them, and the next checkpoint will count what was in them.
    uncounted: (Seq, BTreeSet<Seq>),
    began: Option<Instant>,
    rest_until: Option<Instant>,
    failures: u32,
    /// Something was moved that no checkpoint covers: its victims still take space.
    owes_checkpoint: bool,
    /// There was nothing to do when the volume stood here.
    settled: Option<Settled>,
}

/// Where a volume stands, as far as it makes a difference to what is garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settled {
    committed: Seq,
    checkpointed: Seq,
    activity: Activity,
}

/// What came of reading victims.
pub(super) struct Gathered {
    data: Vec<(Extent, Bytes)>,
    as_of: Seq,
    damaged: Vec<Seq>,
    empty: Vec<Seq>,
    failed: Option<StoreError>,
}

impl Collector {
    /// Puts the next batch under way, if there is something worth it.
    pub fn start(&mut self, shared: &Arc<Shared>) {
        if shared.is_closing() {
            // What has no slot yet is still where it was.
            self.gathering = None;
            self.moves.clear();
            self.rest_until = None;
            return;
        }
        if self.is_working() || self.rest_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.rest_until = None;
        let (victims, as_of) = {
            let inner = shared.inner.lock();
            let activity = activity(shared, &inner);
            let here =
                Settled { committed: inner.state.committed(), checkpointed: inner.state.checkpointed(), activity };
            if !self.is_worth_a_look(shared, &inner, here) {
                return;
            }
            let usage = inner.state.map.usage();
            let size = shared.options.segment_size;
            let options = &shared.options.gc;
            if self.uncounted.0 != here.checkpointed {
                self.uncounted = (here.checkpointed, BTreeSet::new());
            }
            let spared = self.damaged.union(&self.uncounted.1).copied().collect();
            let mut victims =
                gc::choose(usage.iter(), &usage.totals(), here.committed, size, options, activity, &spared);
            if victims.is_empty() && inner.may_reseal {
                victims =
                    gc::choose_retired(usage.iter(), options, &spared, |info| shared.sealer.is_retired(&info.salt));
            }
            if victims.is_empty() {
                self.settled = Some(here);
                drop(inner);
                self.reseal_tables(shared);
                return;
            }
            (victims, here.committed)
        };
        self.began = Some(Instant::now());
        self.gathering = Some(Box::pin(gather(shared.clone(), victims, as_of)));
    }

    /// No segment is to be sealed anew any more: then pages of the map are, with the next checkpoints.
    fn reseal_tables(&mut self, shared: &Shared) {
        let mut inner = shared.inner.lock();
        if inner.may_reseal {
            inner.may_reseal = inner.checkpoints.values().any(|info| shared.sealer.is_retired(&info.salt));
            self.owes_checkpoint |= inner.may_reseal;
        }
    }

    /// The gathered data, once there is some; never, if nothing is being gathered.
    pub async fn gathered(&mut self) -> Gathered {
        match &mut self.gathering {
            Some(gathering) => gathering.await,
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Collector::gathered`] returned.
    pub fn take(&mut self, shared: &Shared, gathered: Gathered) {
        self.gathering = None;
        self.damaged.extend(&gathered.damaged);
        shared.inner.lock().gc.damaged_segments = self.damaged.len() as u64;
        self.uncounted.1.extend(&gathered.empty);
        match gathered.failed {
            Some(error) => {
                let pause = RETRY * 2u32.pow(self.failures.min(6));
                if self.failures == 0 {
                    tracing::warn!(volume = %shared.meta.name, "garbage collection pauses: {error}");
                }
                self.failures += 1;
                self.rest_until = Some(Instant::now() + pause);
            }
            None => {
                self.failures = 0;
                self.moves = cut(gathered.data, LARGE * shared.options.segment_size, gathered.as_of);
                self.rest_if_done(shared);
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
        self.uploading += 1;
        Some(next)
    }

    /// A segment of ours took effect.
    pub fn committed(&mut self, shared: &Shared) {
        self.uploading -= 1;
        self.owes_checkpoint = true;
        self.rest_if_done(shared);
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
        if let Some(until) = self.rest_until {
            return Some(until);
        }
        let totals = inner.state.map.usage().totals();
        let waits = activity(shared, inner) == Activity::Busy && inner.state.dirty_bytes() == 0;
        let is_due = self.owes_checkpoint || gc::is_due(&totals, &shared.options.gc, Activity::Quiet);
        (waits && is_due).then_some(inner.committed_at? + shared.options.gc.quiet_after)
    }

    /// Whether it may have uploads under way.
    pub fn pace(&self, shared: &Shared, inner: &Inner) -> gc::Pace {
        let totals = inner.state.map.usage().totals();
        gc::pace(&totals, &shared.options.gc, activity(shared, inner), shared.options.upload_window)
    }

    fn is_working(&self) -> bool {
        self.gathering.is_some() || !self.moves.is_empty() || self.uploading > 0
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
        many || fell_quiet || inner.may_reseal || gc::is_due(&inner.state.map.usage().totals(), options, here.activity)
    }

    /// After work comes rest, in proportion.
    fn rest_if_done(&mut self, shared: &Shared) {
        if self.is_working() {
            return;
        }
        if let Some(began) = self.began.take() {
            let pace = self.pace(shared, &shared.inner.lock());
            let rest = gc::rest(began.elapsed(), pace);
            self.rest_until = (!rest.is_zero()).then(|| Instant::now() + rest);
        }
    }
}

/// Whether somebody writes.
pub(super) fn activity(shared: &Shared, inner: &Inner) -> Activity {
    let rested = inner.committed_at.is_none_or(|at| at.elapsed() >= shared.options.gc.quiet_after);
    if rested && inner.state.dirty_bytes() == 0 { Activity::Quiet } else { Activity::Busy }
}

/// Cuts sorted data into segments.
fn cut(data: Vec<(Extent, Bytes)>, segment_size: u64, as_of: Seq) -> VecDeque<Move> {
    let mut moves = VecDeque::new();
    let mut bytes = 0;
    let mut part = Vec::new();
    for piece in data {
        if bytes + piece.1.len() as u64 > segment_size && !part.is_empty() {
            moves.push_back(Move { data: std::mem::take(&mut part), as_of });
            bytes = 0;
        }
        bytes += piece.1.len() as u64;
        part.push(piece);
    }
    if !part.is_empty() {
        moves.push_back(Move { data: part, as_of });
    }
    moves
}

/// Reads what is live in the victims.
async fn gather(shared: Arc<Shared>, victims: Vec<Seq>, as_of: Seq) -> Gathered {
    let _reading = shared.begin_reading();
    let mut gathered = Gathered { data: Vec::new(), as_of, damaged: Vec::new(), empty: Vec::new(), failed: None };
    let reads = victims.into_iter().map(|seq| {
        let shared = &shared;
        async move { (seq, read_live(shared, seq).await) }
    });
    let mut reads = stream::iter(reads).buffered(PARALLEL);
    while let Some((seq, read)) = reads.next().await {
        match read {
            Ok(data) if data.is_empty() => gathered.empty.push(seq),
            Ok(data) => gathered.data.extend(data),
            Err(Unread::Store(error)) => {
                gathered.failed = Some(error);
                return gathered;
            }
            Err(Unread::Damaged(why)) => {
                tracing::error!(object = %shared.keys.segment(seq), "not collected: {why}");
                gathered.damaged.push(seq);
            }
        }
    }
    gathered.data.sort_unstable_by_key(|(extent, _)| extent.start);
    gathered
}

/// Why a victim could not be read.
enum Unread {
    /// The store failed; worth trying again.
    Store(StoreError),
    /// It is not what was written, or not there.
    Damaged(String),
}

/// The live blocks of one victim and their data.
async fn read_live(shared: &Shared, seq: Seq) -> Result<Vec<(Extent, Bytes)>, Unread> {
    let info = shared.inner.lock().state.map.usage().get(seq).copied();
    let Some(info) = info else { return Ok(Vec::new()) }; // it died meanwhile
    let key = shared.keys.segment(seq);
    let store_failed = |error: StoreError| match error.kind {
        ErrorKind::NotFound => Unread::Damaged(error.to_string()),
        _ => Unread::Store(error),
    };
    let whole = match info.stored_bytes <= WHOLE_BYTES || info.live_bytes() * 2 > info.stored_bytes {
        true => Some(shared.background.get(&key).await.map_err(store_failed)?),
        false => None,
    };
    let read = match &whole {
        Some(bytes) => {
            segment::decode_log_object(&shared.sealer, seq, bytes).and_then(|found| found.whole(bytes.len()))
        }
        None => match scan::read_slot(&*shared.background, &shared.keys, &shared.sealer, seq).await {
            Ok(Some(read)) => Ok(read),
            Ok(None) => return Err(Unread::Damaged("it is missing, and the map needs it".into())),
            Err(crate::volume::VolumeError::Store { source, .. }) => return Err(Unread::Store(source)),
            Err(damaged) => return Err(Unread::Damaged(damaged.to_string())),
        },
    };
    let read = read.map_err(|why| Unread::Damaged(why.to_string()))?;
    let LogObject::Segment(head) = &read.object else {
        return Err(Unread::Damaged("the map needs data in it, but it is no segment".into()));
    };
    if read.salt != info.salt {
        return Err(Unread::Damaged("it is another encoding than the one that was committed".into()));
    }
    let extents: Vec<Extent> = head.frames(seq, read.frames_at).into_iter().map(|(extent, _)| extent).collect();
    let live = live_parts(shared, seq, &extents).await?;
    let mut bytes = Pieces(Vec::new());
    match whole {
        Some(object) => bytes.0.push((0, object)),
        None => {
            let frames = live.iter().map(|(_, location)| location.frame).collect();
            let gets = fetch::plan(frames, READ_GAP, READ_MAX);
            let mut gets = stream::iter(gets.into_iter().map(|get| {
                let key = &key;
                async move { (get.range.start, shared.background.get_range(key, get.range).await) }
            }))
            .buffered(PARALLEL);
            while let Some((start, got)) = gets.next().await {
                bytes.0.push((start, got.map_err(store_failed)?));
            }
        }
    }
    let block_bytes = shared.block_size.bytes() as usize;
    let opened = shared.workers.run(move || open(&read, &live, &bytes, block_bytes)).await;
    opened.map_err(|why| Unread::Damaged(why.to_string()))
}

/// The parts of the extents that the map still places in `seq`.
async fn live_parts(shared: &Shared, seq: Seq, extents: &[Extent]) -> Result<Vec<(Extent, Location)>, Unread> {
    let mut live = Vec::new();
    for some in extents.chunks(LOOKUPS) {
        let mut found = Vec::new();
        loop {
            let need = {
                let mut inner = shared.inner.lock();
                found.clear();
                match some
                    .iter()
                    .try_for_each(|extent| inner.state.map.lookup(*extent).map(|parts| found.extend(parts)))
                {
                    Ok(()) => {
                        inner.state.map.evict(shared.options.map_memory as usize);
                        break;
                    }
                    Err(need) => need,
                }
            };
            shared.load_pages(need).await.map_err(|error| match error {
                ReadError::Store { source, .. } => Unread::Store(source),
                // Not the victim's fault, but what is live in it cannot be known.
                damaged => Unread::Damaged(damaged.to_string()),
            })?;
        }
        live.extend(found.into_iter().filter_map(|(extent, placement)| match placement {
            Placement::Data(location) if location.frame.seq == seq => Some((extent, location)),
            _ => None,
        }));
    }
    Ok(live)
}

/// Parts of an object, by the offset at which each begins.
struct Pieces(Vec<(u64, Bytes)>);

impl Pieces {
    fn frame(&self, frame: FrameAddr) -> Result<Bytes, CorruptError> {
        let (from, to) = (u64::from(frame.offset), u64::from(frame.offset) + u64::from(frame.len));
        let piece = self.0.iter().find(|(start, bytes)| *start <= from && to <= start + bytes.len() as u64);
        let (start, bytes) = piece.ok_or(CorruptError::Truncated { have: 0, need: to })?;
        Ok(bytes.slice((from - start) as usize..(to - start) as usize))
    }
}

/// Proves the frames and copies out what is live in them.
fn open(
    read: &LogRead,
    live: &[(Extent, Location)],
    bytes: &Pieces,
    block_bytes: usize,
) -> Result<Vec<(Extent, Bytes)>, CorruptError> {
    // Live parts come in the order of blocks, and so of frames.
    let mut opened: Option<(FrameAddr, Bytes)> = None;
    let mut data = Vec::with_capacity(live.len());
    for (extent, location) in live {
        let frame = match opened.take().filter(|(frame, _)| *frame == location.frame) {
            Some((_, frame)) => frame,
            None => segment::open_frame_up_to(&read.key, location.frame, &bytes.frame(location.frame)?)?,
        };
        let (from, len) = (usize::from(location.block) * block_bytes, extent.count.0 as usize * block_bytes);
        let part = frame
            .get(from..from + len)
            .ok_or(CorruptError::FrameLength { found: frame.len() as u32, expected: (from + len) as u32 })?;
        data.push((*extent, Bytes::copy_from_slice(part)));
        opened = Some((location.frame, frame));
    }
    Ok(data)
}
