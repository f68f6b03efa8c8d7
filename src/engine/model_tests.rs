//! The core without a runtime: whatever happens in whatever order, it is held against the client's own record of its bytes, and against
//! what a store would hold. What the shell and its tasks do is done here by hand, one effect at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;
use uuid::Uuid;

use super::collection::{Gathered, Move, SurveyFailed, Surveyed};
use super::commit::Uploaded;
use super::core::{Chore, Core, Effect, End, Event, Now, Report};
use super::deletions::Outcome;
use super::ledger::{self, By, CheckpointPlan, Ledger, Rules, Written};
use super::log::{Batch, Log, Origin, Piece};
use crate::change::Change;
use crate::codec::frame::Compression;
use crate::codec::seal::Sealer;
use crate::engine::options::Options;
use crate::engine::purse::Thrift;
use crate::format::digest::Stretch;
use crate::format::meta::{FencedBy, Layout as Where, Meta, Settings, VolumeName};
use crate::format::root::CheckpointInfo;
use crate::format::segment::{Moved, Payload};
use crate::map::compaction::Sizes;
use crate::map::layout::{Layout, Progress};
use crate::map::survey::Taken;
use crate::map::{Checkpointed, ExtentMap, MapPage, NeedPages, PageRef, Placement, Run, SegmentInfo, Survey, Table};
use crate::space::{self, Bounds, Durable, Fold, Space, Span};
use crate::store::{ErrorKind, StoreError};
use crate::units::{BlockCount, BlockSize, ChangeNo, Extent, FrameAddr, Location, Seq};

const BLOCKS: u64 = 48;
const BLOCK: usize = 512;
const SEGMENT: u64 = 8 * BLOCK as u64;
/// The slot of our fence.
const FENCE: Seq = Seq(1);

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Trim(u64, u64),
    /// A FLUSH of everything up to now.
    Flush,
    /// What is under way ends, the one of this number; `fails` if it can.
    Finish {
        which: usize,
        fails: bool,
    },
    /// Time goes by.
    Wait(u64),
    /// What the map may have in memory changes.
    Memory(u64),
    JournalFails,
    /// The volume becomes larger, which the store is to be told.
    Grow,
    /// A writer begins or ceases to wait for room.
    WriterWaits(bool),
    /// What may be spent on requests becomes more or less.
    Thrift(Thrift),
    /// A stop is to wait for no deletion.
    LeaveDeletions,
    Close,
}

/// What is told of a slot.
fn front(seq: Seq) -> Bytes {
    Bytes::from(seq.0.to_le_bytes().to_vec())
}

/// So much of what a segment places takes effect at once.
const PART: usize = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = || (0..BLOCKS, prop_oneof![5 => 1..6_u64, 1 => 1..BLOCKS]);
    let step = prop_oneof![
        12 => extent().prop_map(|(at, len)| Step::Write(at, len)),
        2 => extent().prop_map(|(at, len)| Step::Trim(at, len)),
        3 => Just(Step::Flush),
        20 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(which, fails)| Step::Finish { which, fails }),
        4 => prop_oneof![Just(10), Just(1_500), Just(6_000), Just(40_000)].prop_map(Step::Wait),
        2 => prop_oneof![Just(0), Just(1 << 20)].prop_map(Step::Memory),
        1 => Just(Step::JournalFails),
        1 => Just(Step::Grow),
        1 => Just(Step::LeaveDeletions),
        1 => any::<bool>().prop_map(Step::WriterWaits),
        1 => prop_oneof![Just(Thrift::Free), Just(Thrift::Sparing), Just(Thrift::Spent)].prop_map(Step::Thrift),
    ];
    prop::collection::vec(step, 1..150)
}

/// An object of the log.
struct Stored {
    uploaded: Uploaded,
    covers: ChangeNo,
}

/// A durable checkpoint.
#[derive(Clone, Default)]
struct Base {
    seq: Seq,
    covers: ChangeNo,
    runs: Vec<Run>,
    table: Durable,
}

/// A volume, its client and its store.
struct World {
    core: Core,
    now: Now,
    window: u32,
    /// Every change, in order.
    accepted: Vec<Change>,
    /// All up to here was promised to be durable.
    flushed: ChangeNo,
    running: Vec<Effect>,
    /// So much of the segment that is being committed took effect.
    committed: usize,
    objects: BTreeMap<Seq, Stored>,
    frames: HashMap<FrameAddr, Bytes>,
    pages: HashMap<PageRef, MapPage>,
    digests: BTreeSet<Stretch>,
    base: Base,
    /// Its number.
    description: u64,
    /// These chores never end.
    hangs: fn(&Chore) -> bool,
    closed: bool,
    ended: Option<End>,
    writer_waits: bool,
    gathers: usize,
    surveys: usize,
    /// A task has entered its result into the ledger, and its end is not an event yet.
    is_ending: bool,
}

/// Every page is small and is read again: what is worth it in a large volume happens in a small one.
fn bounds() -> Bounds {
    Bounds {
        deltas: 3,
        part: 0,
        few: 0,
        deltas_of_few: 1,
        spans_in_root: 0,
        deltas_in_root: 1,
        lists: 2,
        objects: 3,
        spans: 1,
    }
}

impl World {
    fn new(window: u32) -> World {
        let block_size = BlockSize::new(BLOCK as u64).unwrap();
        let mut options = Options { segment_size: SEGMENT, upload_window: window, ..Options::default() };
        options.checkpoint_bytes = 4 * SEGMENT;
        options.digest_slots = 2;
        options.gc.garbage_min = 0;
        options.gc.batch = 2 * SEGMENT;
        options.gc.merge_count = 4;
        let at = Instant::now();
        let sealer = Sealer::new(Uuid::nil(), None);
        let rules = Rules { options, block_size, fence: FENCE, continues_at: FENCE.next(), fences_since: 1, sealer };
        let origin = Origin {
            map: ExtentMap::new(BlockCount(BLOCKS)),
            covers: ChangeNo(0),
            committed: FENCE,
            next_seq: FENCE.next(),
            checkpointed: Seq(0),
            bytes_since_checkpoint: 0,
        };
        let log = Log::new(block_size, origin);
        let ledger = Ledger::new(rules, log, (1, Compression::None), BTreeMap::new(), Default::default(), at);
        World {
            core: Core::new(ledger, at),
            now: Now { at, map_memory: 1 << 20, thrift: (Thrift::Free, None) },
            window,
            accepted: Vec::new(),
            flushed: ChangeNo(0),
            running: Vec::new(),
            committed: 0,
            objects: BTreeMap::new(),
            frames: HashMap::new(),
            pages: HashMap::new(),
            digests: BTreeSet::new(),
            base: Base::default(),
            description: 1,
            hangs: |_| false,
            closed: false,
            ended: None,
            writer_waits: false,
            gathers: 0,
            surveys: 0,
            is_ending: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(at, len) => {
                let extent = Extent::new(at, len.min(BLOCKS - at).min(8));
                // Each block says which change it is of.
                let no = self.accepted.len() as u64 + 1;
                let data = Bytes::from(no.to_le_bytes().repeat(extent.count.0 as usize * BLOCK / 8));
                self.accept(Change::Write(extent, data));
            }
            Step::Trim(at, len) => self.accept(Change::Hole(Extent::new(at, len.min(BLOCKS - at)))),
            Step::Flush => {
                let last = self.core.ledger.log().last();
                self.core.ledger.want(last);
                self.handle(Event::Look);
            }
            Step::Finish { which, fails } => {
                let may_end: Vec<usize> = (0..self.running.len()).filter(|&at| !self.is_hanging(at)).collect();
                if !may_end.is_empty() {
                    let effect = self.running.remove(may_end[which % may_end.len()]);
                    self.finish(effect, fails);
                }
            }
            Step::Wait(millis) => {
                self.now.at += Duration::from_millis(millis);
                self.handle(Event::Look);
            }
            Step::Memory(bytes) => self.now.map_memory = bytes,
            Step::Thrift(thrift) => self.now.thrift = (thrift, None),
            Step::JournalFails => {
                self.core.ledger.journal_failed(self.now.at);
                self.handle(Event::Look);
            }
            Step::Grow => {
                let size = self.core.ledger.size() + BLOCK as u64;
                assert!(self.core.ledger.ask_for_size(size));
                self.core.ledger.owe_size();
                self.handle(Event::Look);
            }
            Step::WriterWaits(waits) => {
                match (self.writer_waits, waits) {
                    (false, true) => self.core.ledger.begin_waiting(),
                    (true, false) => self.core.ledger.end_waiting(),
                    _ => {}
                }
                self.writer_waits = waits;
                self.handle(Event::Look);
            }
            Step::LeaveDeletions => {
                self.core.leave_deletions();
                self.handle(Event::Look);
            }
            Step::Close => {
                self.core.begin_closing();
                self.handle(Event::Look);
            }
        }
    }

    fn is_hanging(&self, at: usize) -> bool {
        matches!(&self.running[at], Effect::Chore(chore) if (self.hangs)(chore))
    }

    fn accept(&mut self, change: Change) {
        if self.core.ledger.may_accept(change.extent(), By::Client).is_err() {
            return;
        }
        let (numbered, is_due) = self.core.ledger.accept(change.clone(), self.now.at);
        self.accepted.push(change);
        assert_eq!(numbered.no, ChangeNo(self.accepted.len() as u64));
        if is_due {
            self.handle(Event::Look);
        }
    }

    fn handle(&mut self, event: Event) {
        if self.closed || self.ended.is_some() {
            return;
        }
        let effects = self.core.handle(event, self.now);
        for effect in effects {
            match effect {
                Effect::Close(closing) => {
                    assert_eq!((closing.covers, closing.last), (ChangeNo(self.accepted.len() as u64), closing.covers));
                    // Looking changes nothing.
                    let goes_on = |effect: &Effect| {
                        matches!(
                            effect,
                            Effect::Chore(Chore::Sweep(_) | Chore::Delete(_) | Chore::Look(_) | Chore::Digest(_))
                        )
                    };
                    assert!(!self.is_running(|effect| !goes_on(effect)));
                    assert!(!self.is_ending, "closed while a task is not over");
                    self.closed = true;
                }
                Effect::End(end) => self.ended = Some(end),
                Effect::BeginJournal(first) => {
                    let log = self.core.ledger.log();
                    assert_eq!((log.last(), first), (log.covers(), log.covers().next()), "the new journal has a gap");
                    self.handle(Event::JournalBegun);
                }
                Effect::StopGathering => {
                    let ends = |effect: &Effect| matches!(effect, Effect::Chore(Chore::Survey(..) | Chore::Gather(..)));
                    self.running.retain(|effect| !ends(effect));
                }
                Effect::WakeWriters | Effect::Report(_) => {}
                effect => self.begin(effect),
            }
        }
        self.check();
    }

    fn is_running(&self, is_it: impl Fn(&Effect) -> bool) -> bool {
        self.running.iter().any(is_it)
    }

    fn begin(&mut self, effect: Effect) {
        let kind = std::mem::discriminant(&effect);
        let twin = |other: &Effect| match (&effect, other) {
            (Effect::Chore(one), Effect::Chore(other)) => std::mem::discriminant(one) == std::mem::discriminant(other),
            (Effect::Commit(..) | Effect::Describe, _) => std::mem::discriminant(other) == kind,
            _ => false,
        };
        assert!(!self.is_running(twin), "two of a kind: {effect:?}");
        if let Effect::Upload(..) | Effect::UploadMove(..) | Effect::Chore(Chore::Checkpoint(_)) = &effect {
            let owed = self.core.ledger.owed_size();
            assert_eq!(owed, None, "before the description says the size: {effect:?}");
        }
        if let Effect::Chore(Chore::Survey(..) | Chore::Gather(..)) = &effect {
            self.gathers += 1;
        }
        self.running.push(effect);
    }

    fn finish(&mut self, effect: Effect, fails: bool) {
        let refusal = || StoreError::new(ErrorKind::Retryable, "away");
        let is_waited_for = matches!(&effect, Effect::Commit(..) | Effect::Chore(Chore::Checkpoint(_)));
        let event = match effect {
            Effect::Upload(seq, batch) => self.upload(seq, &batch),
            Effect::UploadMove(seq, covers, data) => self.upload_move(seq, covers, &data),
            Effect::Commit(uploaded, batch) => match self.commit(&uploaded) {
                Some(event) => event,
                None => {
                    self.running.push(Effect::Commit(uploaded, batch));
                    return self.handle(Event::Look);
                }
            },
            // It tries again until it is done.
            Effect::Describe if fails => return self.running.push(Effect::Describe),
            Effect::Describe => {
                if let Some(size) = self.core.ledger.owed_size() {
                    self.description += 1;
                    self.core.ledger.adopt(self.description, &described(size)).unwrap();
                }
                Event::Described
            }
            Effect::Chore(Chore::Checkpoint(plan)) => self.checkpoint(*plan),
            Effect::Chore(Chore::Digest(_)) if fails => Event::Digested(false),
            Effect::Chore(Chore::Digest(plan)) => {
                let slots = (plan.stretch.first.0..=plan.stretch.last.0).map(Seq);
                assert!(plan.stretch.first > FENCE && plan.stretch.last <= self.core.ledger.log().committed());
                assert!(slots.map(front).eq(plan.fronts));
                assert!(self.digests.insert(plan.stretch));
                Event::Digested(true)
            }
            Effect::Chore(Chore::Look(_)) if fails => Event::Looked(Err("away".into())),
            Effect::Chore(Chore::Look(NeedPages(need))) => {
                // Of what a checkpoint has superseded meanwhile there is nothing.
                let there = need.into_iter().filter(|page| self.pages.contains_key(&page.at)).collect();
                let loaded = self.load(NeedPages(there));
                self.core.ledger.keep_pages(loaded.clone());
                Event::Looked(Ok(loaded))
            }
            Effect::Chore(Chore::Survey(..)) if fails => Event::Surveyed(Err(SurveyFailed::Store("away".into()))),
            Effect::Chore(Chore::Survey(victims, as_of)) => Event::Surveyed(Ok(self.survey(victims, as_of))),
            Effect::Chore(Chore::Gather(victims, as_of, surveyed)) => {
                let mut gathered = self.gather(victims, as_of, surveyed);
                gathered.failed = fails.then(refusal);
                Event::Gathered(gathered)
            }
            Effect::Chore(Chore::Delete(_)) if fails => Event::Deleted(Outcome::Postponed(refusal())),
            Effect::Chore(Chore::Delete(plan)) => {
                assert!(self.core.ledger.has_passed(plan.line), "no read is under way");
                let segments: Vec<Seq> = plan.objects.segments().collect();
                let checkpoints: BTreeSet<Seq> = plan.objects.checkpoints().collect();
                segments.iter().for_each(|seq| drop(self.objects.remove(seq)));
                self.pages.retain(|at, _| !checkpoints.contains(&at.checkpoint));
                for digest in plan.objects.digests() {
                    assert!(digest.last <= self.base.seq, "a digest goes before a checkpoint is there in its place");
                    // It may never have come.
                    self.digests.remove(&digest);
                }
                self.core.ledger.digests_deleted(plan.objects.digests().count());
                self.core.ledger.checkpoints_deleted(checkpoints.len());
                self.core.ledger.segments_deleted(&segments);
                self.core.ledger.planned_is_gone();
                Event::Deleted(Outcome::Done)
            }
            Effect::Chore(Chore::Sweep(_)) if fails => Event::Swept(Err(refusal())),
            Effect::Chore(Chore::Sweep(_)) => Event::Swept(Ok(Default::default())),
            other => panic!("{other:?} is no task"),
        };
        // The core may be asked in between. What was deleted may end with the volume.
        self.is_ending = is_waited_for;
        self.handle(Event::Look);
        self.is_ending = false;
        self.handle(event);
    }

    /// The object is in the store.
    fn put(&mut self, seq: Seq, covers: ChangeNo, pieces: Vec<(Extent, Option<Bytes>)>, moved: Option<Moved>) -> Event {
        let (mut placements, mut blocks) = (Vec::new(), 0);
        for (n, (extent, data)) in pieces.into_iter().enumerate() {
            let frame = FrameAddr { seq, offset: n as u32, len: 1 };
            let placement = match data {
                None => Placement::Hole,
                Some(data) => {
                    blocks += extent.count.0 as u32;
                    self.frames.insert(frame, data);
                    Placement::Data(Location { frame, block: 0 })
                }
            };
            placements.push((extent, placement));
        }
        let stored_bytes = u64::from(blocks) * BLOCK as u64 + 100;
        let info = SegmentInfo { stored_bytes, blocks, live_blocks: blocks, ..SegmentInfo::default() };
        let uploaded = || Uploaded {
            seq,
            info,
            placements: placements.clone(),
            moved: moved.clone(),
            front: front(seq),
            sealed: Vec::new(),
            refers: Vec::new(),
            tagged: Vec::new(),
        };
        let before = self.objects.insert(seq, Stored { uploaded: uploaded(), covers });
        assert!(before.is_none(), "slot {seq} is filled twice");
        Event::Uploaded(seq, Ok(Box::new(uploaded())))
    }

    fn upload(&mut self, seq: Seq, batch: &Batch) -> Event {
        let piece = |(extent, payload): (Extent, &Payload)| match payload {
            Payload::Data(data) => (extent, Some(data.clone())),
            Payload::Zero | Payload::Hole => (extent, None),
        };
        self.put(seq, batch.covers, batch.buffer.iter().map(piece).collect(), None)
    }

    fn upload_move(&mut self, seq: Seq, covers: ChangeNo, moved: &Move) -> Event {
        let pieces = moved.data.iter().map(|(extent, data)| (*extent, Some(data.clone()))).collect();
        self.put(seq, covers, pieces, Some(Moved { as_of: moved.as_of, cargo: None }))
    }

    /// One more part of it takes effect.
    fn commit(&mut self, uploaded: &Uploaded) -> Option<Event> {
        let before = self.core.ledger.log().committed();
        assert_eq!(uploaded.seq, before.next(), "in the order of the log");
        let mut loaded = Vec::new();
        loop {
            let (part, now) = ((&mut self.committed, PART), self.now);
            match self.core.ledger.commit(uploaded, part, loaded.clone(), now.map_memory, now.at) {
                Ok(None) => return None,
                Ok(Some(_)) => break,
                Err(need) => loaded.extend(self.load(need)),
            }
        }
        self.committed = 0;
        Some(Event::Committed { moved: uploaded.moved.is_some() })
    }

    fn load(&self, NeedPages(need): NeedPages) -> Vec<(PageRef, Arc<MapPage>)> {
        need.into_iter().map(|page| (page.at, Arc::new(self.pages[&page.at].clone()))).collect()
    }

    fn checkpoint(&mut self, plan: CheckpointPlan) -> Event {
        let CheckpointPlan { map, root, checkpoints: before, merge_all, bytes } = plan;
        let mut layout = Layout::new(root.seq, &map, merge_all, 0, Sizes::default()).unwrap();
        loop {
            match layout.go_on().unwrap() {
                Progress::GoOn => {}
                Progress::Needs(need) => layout.take_pages(self.load(need)),
                Progress::Done => break,
            }
        }
        let mut done = layout.into_laid_out();
        let mut fold = Fold::new(root.seq, &map.table, done.deaths.iter(), BTreeSet::new(), bounds());
        let mut loaded: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
        loop {
            match fold.go_on(&loaded, &mut done.writer).unwrap() {
                space::Progress::GoOn => {}
                space::Progress::Needs(need) => loaded.extend(self.load(need.into())),
                space::Progress::Done => break,
            }
        }
        let table = fold.finish(&mut done.writer).unwrap();
        assert!(table.loose.is_empty() && table.contradictions == 0);
        self.pages.extend(std::mem::take(&mut done.writer.all));
        let (_, pages) = done.writer.finish();
        let named = done.runs.iter().flat_map(|run| run.objects.keys().copied());
        let objects: BTreeSet<Seq> = named.chain(table.durable.objects().into_keys()).collect();
        let checkpoints = objects.iter().map(|seq| (*seq, CheckpointInfo::default())).collect();
        let superseded = ledger::superseded(&before, &checkpoints);
        let durable = table.durable.clone();
        self.base = Base { seq: root.seq, covers: root.covers, runs: done.runs.clone(), table: durable };
        let map = Checkpointed { runs: done.runs, table, pages };
        let has_begun_all = done.has_begun_all;
        let written = Written { seq: root.seq, map, checkpoints, superseded, has_begun_all, bytes };
        drop(self.core.ledger.checkpoint_written(written, self.now.map_memory, self.now.at));
        while self.core.ledger.tidy().is_some() {}
        self.doom();
        Event::Checkpointed
    }

    /// What is dead is to be deleted.
    fn doom(&mut self) {
        let (mut from, mut pages) = (Span(0), HashMap::new());
        while let Some((next, need)) = self.core.ledger.doom(from, &pages) {
            pages = self.load(need).into_iter().collect();
            from = next;
        }
    }

    fn survey(&mut self, victims: Vec<Seq>, as_of: Seq) -> Surveyed {
        self.surveys += 1;
        let mut survey = Survey::of(victims);
        while survey.position().is_some() {
            let map = &self.core.ledger.log().map;
            let pages = |at: &PageRef| self.pages.get(at);
            let mut strip = survey.read(map.shared_runs(), map.space().carriers(), &pages).unwrap();
            assert_eq!(survey.take(&mut strip, map, usize::MAX), Taken::All);
        }
        Surveyed { as_of, live: survey.into_live().map(|(seq, parts)| (seq, Arc::new(parts))).collect() }
    }

    /// What a survey found, as far as it is unchanged, as one who has no map reads it.
    fn gather_surveyed(&mut self, victims: Vec<Seq>, as_of: Seq, surveyed: &Surveyed) -> Gathered {
        let (mut data, mut loaded) = (Vec::new(), HashMap::new());
        for victim in &victims {
            for part in surveyed.live[victim].iter() {
                let unchanged = loop {
                    match self.core.ledger.log().map.unchanged_with(part, surveyed.as_of, &loaded) {
                        Ok(unchanged) => break unchanged,
                        Err(need) => loaded.extend(self.load(need)),
                    }
                };
                for part in unchanged {
                    for (extent, placement) in &self.objects[victim].uploaded.placements {
                        if let (Some(within), Placement::Data(location)) = (extent.intersect(&part), placement) {
                            data.push((within, self.bytes_at(location.skip(within.start - extent.start), within)));
                        }
                    }
                }
            }
        }
        data.sort_by_key(|(extent, _): &(Extent, Bytes)| extent.start);
        Gathered { data, ..Gathered::new(None, victims, as_of) }
    }

    fn gather(&mut self, victims: Vec<Seq>, as_of: Seq, surveyed: Option<Surveyed>) -> Gathered {
        if let Some(surveyed) = surveyed {
            return self.gather_surveyed(victims, as_of, &surveyed);
        }
        let all = self.placed();
        let (mut data, mut empty) = (Vec::new(), Vec::new());
        for victim in &victims {
            let live = |(_, placement): &&(Extent, Placement)| matches!(placement, Placement::Data(location) if location.frame.seq == *victim);
            let before = data.len();
            for (extent, placement) in all.iter().filter(live) {
                let Placement::Data(location) = placement else { unreachable!() };
                data.push((*extent, self.bytes_at(*location, *extent)));
            }
            if data.len() == before {
                empty.push(*victim);
            }
        }
        data.sort_by_key(|(extent, _): &(Extent, Bytes)| extent.start);
        Gathered { held: None, victims, data, as_of, cargo: None, damaged: Vec::new(), empty, failed: None }
    }

    /// What the map says of every block.
    fn placed(&mut self) -> Vec<(Extent, Placement)> {
        let all = Extent::new(0, BLOCKS);
        let mut loaded = HashMap::new();
        loop {
            match self.core.ledger.log().map.lookup_with(all, &loaded) {
                Ok(placed) => return placed,
                Err(need) => loaded.extend(self.load(need)),
            }
        }
    }

    /// What the store has there; the object must not have been deleted.
    fn bytes_at(&self, location: Location, extent: Extent) -> Bytes {
        assert!(self.objects.contains_key(&location.frame.seq), "{location:?} is needed, and gone");
        let from = usize::from(location.block) * BLOCK;
        self.frames[&location.frame].slice(from..from + extent.count.0 as usize * BLOCK)
    }

    /// Which change each block is of, by the client's record; 0 is none.
    fn record(&self, upto: ChangeNo) -> Vec<u64> {
        let mut blocks = vec![0; BLOCKS as usize];
        for (change, no) in self.accepted.iter().zip(1..=upto.0) {
            let extent = change.extent();
            let is_data = matches!(change, Change::Write(..));
            blocks[extent.start.0 as usize..extent.end().0 as usize].fill(if is_data { no } else { 0 });
        }
        blocks
    }

    /// A read of everything brings what the client wrote last; and no batch waits that nothing holds up.
    fn check(&mut self) {
        assert!(!self.core.has_idle_slot(self.now), "a batch waits beside a slot that it may have");
        let due = self.core.deadline(self.now);
        assert!(
            due.is_none_or(|due| due > self.now.at),
            "what is due is done, or waits for an event: else the shell never rests"
        );
        let log = self.core.ledger.log();
        assert!(log.uploading() <= self.window as usize);
        assert!(self.flushed <= log.covers());
        if log.covers() == log.last() {
            self.flushed = log.covers();
        }
        let all = Extent::new(0, BLOCKS);
        let mut loaded = Vec::new();
        let pieces = loop {
            match self.core.ledger.plan_read(all, loaded.clone(), self.now.map_memory) {
                Ok(pieces) => break pieces,
                Err(lacking) => loaded.extend(self.load(lacking.into())),
            }
        };
        let mut found = Vec::new();
        for (extent, piece) in pieces {
            let data = match piece {
                Piece::Held(Payload::Data(data), _) => Some(data),
                Piece::Frame(location, _) => Some(self.bytes_at(location, extent)),
                Piece::Held(..) | Piece::Zero | Piece::Hole => None,
            };
            found.extend(changes_in(data, extent));
        }
        assert_eq!(found, self.record(ChangeNo(self.accepted.len() as u64)));
    }

    /// Whoever opens the volume after a crash now finds a prefix that holds all that was promised.
    fn check_crash(&self) {
        let Base { seq, mut covers, runs, table } = self.base.clone();
        let mut map = ExtentMap::restore(BlockCount(BLOCKS), runs, Table::default(), Space::restore(table, []));
        let mut next = if seq < FENCE { FENCE.next() } else { seq.next() };
        while let Some(stored) = self.objects.get(&next) {
            let Uploaded { info, placements, moved, .. } = &stored.uploaded;
            while let Err(need) = map.apply(next, *info, placements, moved.as_ref().map(|moved| moved.as_of)) {
                self.load(need).into_iter().for_each(|(at, page)| map.page_loaded(at, page));
            }
            covers = covers.max(stored.covers);
            next = next.next();
        }
        assert!(covers >= self.flushed, "promised up to {}, found up to {covers}", self.flushed);
        let placed = loop {
            match map.lookup(Extent::new(0, BLOCKS)) {
                Ok(placed) => break placed,
                Err(need) => self.load(need).into_iter().for_each(|(at, page)| map.page_loaded(at, page)),
            }
        };
        let mut found = Vec::new();
        for (extent, placement) in placed {
            let data = match placement {
                Placement::Data(location) => Some(self.bytes_at(location, extent)),
                Placement::Zero | Placement::Hole => None,
            };
            found.extend(changes_in(data, extent));
        }
        assert_eq!(found, self.record(covers));
    }

    /// Everything that can end does, and time goes by, until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..2000 {
            if let Some(at) = (0..self.running.len()).find(|&at| !self.is_hanging(at)) {
                let effect = self.running.remove(at);
                self.finish(effect, false);
                continue;
            }
            let Some(deadline) = self.core.deadline(self.now).filter(|_| !self.closed) else { return };
            self.now.at = self.now.at.max(deadline);
            self.handle(Event::Look);
        }
        panic!("it never comes to rest: {:?}", self.running);
    }
}

/// What a description says of a volume of that size.
fn described(size: u64) -> Meta {
    Meta {
        name: VolumeName::new("v").unwrap(),
        uuid: Uuid::nil(),
        size,
        block_size: BlockSize::new(BLOCK as u64).unwrap(),
        created_unix_millis: 0,
        compression: Compression::None,
        encryption: None,
        deleted: false,
        layout: Where::ByUuid,
        fenced_by: FencedBy::CreateOnly,
        schedule: None,
        keep_until_unix_millis: 0,
        parent: None,
        may_have_clones: false,
        copy: None,
        log: None,
        settings: Settings::default(),
    }
}

/// Which change each block of a piece is of.
fn changes_in(data: Option<Bytes>, extent: Extent) -> Vec<u64> {
    let Some(data) = data else { return vec![0; extent.count.0 as usize] };
    assert_eq!(data.len(), extent.count.0 as usize * BLOCK);
    data.chunks(BLOCK).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// A clean stop under load: whatever is under way when it begins, it ends, and owes nothing then.
    #[test]
    fn a_stop_under_load_ends_and_owes_nothing(steps in steps(), window in 1_u32..5, close_at in 0..150_usize) {
        let mut world = World::new(window);
        for (n, step) in steps.into_iter().enumerate() {
            if n == close_at {
                world.step(Step::Close);
            }
            // A volume that is being closed accepts nothing, and becomes no larger.
            if n < close_at || !matches!(step, Step::Write(..) | Step::Trim(..) | Step::Grow) {
                world.step(step);
            }
        }
        world.step(Step::WriterWaits(false));
        world.step(Step::Close);
        world.settle();
        prop_assert!(world.closed && world.core.ledger.owed_size().is_none());
        world.flushed = ChangeNo(world.accepted.len() as u64);
        world.check_crash();
    }

    /// Reads, crashes and the order of the log, whatever happens when; in the end everything is committed, an idle volume does nothing, and a
    /// clean stop ends with nothing owed.
    #[test]
    fn the_core_keeps_what_it_promised(steps in steps(), window in 1_u32..5) {
        let mut world = World::new(window);
        for step in steps {
            world.step(step);
            world.check_crash();
        }
        world.step(Step::WriterWaits(false));
        world.settle();
        world.check_crash();
        prop_assert!(world.ended.is_none());
        let log = world.core.ledger.log();
        prop_assert_eq!((log.covers(), log.checkpointed()), (log.last(), log.committed()));
        prop_assert!(world.core.ledger.doomed().is_empty());
        let newest = world.base.seq;
        prop_assert!(world.digests.iter().all(|digest| digest.last > newest), "{:?} of {newest}", world.digests);
        // Woken in the quiet for the first time, it may look into its table of segments, and gather what it surveyed before.
        world.step(Step::Wait(10_000));
        let may_begin = |effect: &Effect| matches!(effect, Effect::Chore(Chore::Look(_) | Chore::Gather(_, _, Some(_))));
        prop_assert!(!world.is_running(|effect| !may_begin(effect)), "{:?}", world.running);
        world.settle();
        let gathers = world.gathers;
        world.step(Step::Wait(100 * 3_600_000));
        prop_assert!(world.running.is_empty() && world.gathers == gathers, "an idle volume begins {:?}", world.running);
        world.step(Step::Close);
        world.settle();
        prop_assert!(world.closed);
    }

    /// What hangs stops nothing but what waits for its result: everything is committed although a chore never ends.
    #[test]
    fn a_chore_that_hangs_stops_no_commit(steps in steps(), window in 1_u32..5, which in 0_usize..4) {
        let mut world = World::new(window);
        world.hangs = [
            |chore: &Chore| matches!(chore, Chore::Checkpoint(_)),
            |chore: &Chore| matches!(chore, Chore::Survey(..) | Chore::Gather(..)),
            |chore: &Chore| matches!(chore, Chore::Delete(_)),
            |chore: &Chore| matches!(chore, Chore::Sweep(_)),
        ][which];
        for step in steps {
            // Commits do wait for the checkpoint that makes room for the map.
            if !matches!(step, Step::Memory(_)) {
                world.step(step);
            }
        }
        world.settle();
        world.check_crash();
        let log = world.core.ledger.log();
        prop_assert_eq!(log.covers(), log.last());
    }
}

/// Where the map is not in memory, one survey finds what is live for several rounds.
#[test]
fn rounds_live_on_one_survey() {
    let mut world = World::new(4);
    world.core.ledger.rules.options.gc.batch = 4 * BLOCK as u64;
    world.step(Step::Memory(0));
    write_some(&mut world, BLOCKS / 8);
    world.settle();
    (0..BLOCKS).step_by(2).for_each(|block| world.step(Step::Write(block, 1)));
    world.settle();
    world.check_crash();
    let rounds = world.gathers - world.surveys;
    assert!(world.surveys > 0 && rounds > 2 * world.surveys, "{} surveys, {rounds} rounds", world.surveys);
}

fn write_some(world: &mut World, count: u64) {
    (0..count).for_each(|n| world.step(Step::Write(n * 8 % BLOCKS, 8)));
}

#[test]
fn an_upload_that_failed_ends_the_volume_when_all_before_it_took_effect() {
    let mut world = World::new(4);
    write_some(&mut world, 4);
    assert_eq!(world.running.len(), 2, "the third fills up behind the others");
    let Effect::Upload(second, _) = world.running.pop().unwrap() else { panic!() };
    world.handle(Event::Uploaded(second, Err(End::Fenced("by b".into()))));
    assert_eq!(world.ended, None);
    world.step(Step::Finish { which: 0, fails: false });
    world.step(Step::Finish { which: 0, fails: false });
    assert_eq!(world.core.ledger.log().committed(), FENCE.next());
    assert_eq!(world.ended, Some(End::Fenced("by b".into())));
}

#[test]
fn a_slot_that_nobody_gave_out_ends_the_volume() {
    let mut world = World::new(4);
    write_some(&mut world, 1);
    world.step(Step::Flush);
    world.handle(Event::Uploaded(Seq(7), Err(End::Closed)));
    assert!(matches!(&world.ended, Some(End::Failed(why)) if why.contains("slot 7")), "{:?}", world.ended);
}

#[test]
fn commits_wait_for_the_checkpoint_that_makes_room_for_the_map() {
    let mut world = World::new(2);
    world.hangs = |chore| matches!(chore, Chore::Checkpoint(_));
    write_some(&mut world, 40);
    world.settle();
    let covers = world.core.ledger.log().covers();
    assert!(world.is_running(|effect| matches!(effect, Effect::Chore(Chore::Checkpoint(_)))));
    world.now.map_memory = 0;
    write_some(&mut world, 4);
    world.step(Step::Flush);
    world.settle();
    assert_eq!(world.core.ledger.log().covers(), covers);
    world.hangs = |_| false;
    world.settle();
    assert_eq!(world.core.ledger.log().covers(), world.core.ledger.log().last());
}

#[test]
fn a_refused_deletion_is_asked_again_less_and_less_often_and_said_once() {
    let mut world = World::new(2);
    write_some(&mut world, 12);
    world.step(Step::Trim(0, BLOCKS));
    world.step(Step::Flush);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        while let Some(at) =
            (0..world.running.len()).find(|&at| !matches!(&world.running[at], Effect::Chore(Chore::Delete(_))))
        {
            let effect = world.running.remove(at);
            world.finish(effect, false);
        }
        let Some(deadline) = world.core.deadline(world.now) else { break };
        world.now.at = world.now.at.max(deadline);
        world.handle(Event::Look);
    }
    for n in 0..8 {
        assert!(matches!(world.running.pop(), Some(Effect::Chore(Chore::Delete(_)))), "{n}");
        let refused = Outcome::Postponed(StoreError::new(ErrorKind::Denied, "no"));
        let effects = world.core.handle(Event::Deleted(refused), world.now);
        let said = |effect: &Effect| matches!(effect, Effect::Report(Report::NotDeleted { is_first: true, .. }));
        assert_eq!(effects.iter().any(said), n == 0);
        let deadline = world.core.deadline(world.now).unwrap();
        pauses.push((deadline - world.now.at).as_secs());
        world.now.at = deadline;
        world.handle(Event::Look);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600]);
}
