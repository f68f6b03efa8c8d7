//! The core: everything that is decided about an open volume while it is served. Pure: no I/O, no clock, no task.
//!
//! Whatever happens, the same questions are asked, in this order: whether the store is to be told a size, which batches and which moved data get a slot of the log, whether the oldest
//! upload may take effect, whether something is to be collected, checkpointed, told of in a digest, deleted or swept, whether a failed journal is begun
//! anew, and whether a volume that is being closed has nothing left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::device::DeviceError;
use crate::engine::collection::{Collection, Gathered, Move, SurveyFailed, Surveyed};
use crate::engine::commit::Uploaded;
use crate::engine::deletions::{self, Deletions, Outcome};
use crate::engine::digests;
use crate::engine::ledger::{CheckpointPlan, Ledger};
use crate::engine::log::Batch;
use crate::engine::purse::{Advice, PATIENCE, Thrift};
use crate::engine::sweeps::Sweeps;
use crate::gc::Client;
use crate::map::NeedPages;
use crate::reading::objects::LoadedPages;
use crate::store::{Key, StoreError};
use crate::units::{ChangeNo, Seq};

/// While space is short and collection works, a batch gets a slot at least this often,
const TRICKLE: Duration = Duration::from_secs(5);
/// and this often while somebody waits for it with a FLUSH.
const TRICKLE_WAITED_FOR: Duration = Duration::from_secs(1);

/// An opening that finds more fences than this after the newest checkpoint has one written at once: a server that dies soon after each
/// opening never gets to one otherwise, and each opening reads one fence more than the one before.
const FENCES_MAX: u32 = 8;

/// A checkpoint is due when the newest table of the map has so many entries: some 28 MiB in memory, 3 in the store.
const CHECKPOINT_ENTRIES: usize = 256 << 10;

/// A checkpoint is due when so many segments' worth of bytes died that it would let go,
const LITTER_SEGMENTS: u64 = 2;
/// and at least this part of what is live.
const LITTER_PART: u64 = 16;

/// What the outside is when something is decided.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The time.
    pub at: Instant,
    /// Bytes that the map may have in memory.
    pub map_memory: u64,
    /// How sparing to be with requests, and until when that lasts.
    pub thrift: Advice,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// Something may be due: time went by, a change was accepted, somebody waits, the volume is being closed.
    Look,
    /// An upload ended: its segment is in its slot, or the volume cannot go on.
    Uploaded(Seq, Result<Box<Uploaded>, End>),
    /// A segment took effect.
    Committed {
        /// It was moved data.
        moved: bool,
    },
    /// The checkpoint under way ended.
    Checkpointed,
    /// The digest under way ended: whether it is there.
    Digested(bool),
    /// The store was told the size that was owed.
    Described,
    /// Pages of the table of segments are there that were needed to choose victims; nothing, if they cannot be had.
    Looked(Result<LoadedPages, String>),
    /// It was found what is live in victims.
    Surveyed(Result<Surveyed, SurveyFailed>),
    /// Victims were read.
    Gathered(Gathered),
    /// The deletions under way ended.
    Deleted(Outcome),
    /// The sweep under way ended: the objects that it found for the first time.
    Swept(Result<BTreeSet<Key>, StoreError>),
    /// A failed journal was begun anew.
    JournalBegun,
    /// Something found that the volume cannot go on.
    Ended(End),
}

/// Something is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Encode the batch and put it into this slot of the log.
    Upload(Seq, Arc<Batch>),
    /// The same, for moved data; the change is the last one before it.
    UploadMove(Seq, ChangeNo, Move),
    /// Have a segment take effect that is in its slot, as all before it are; the batch that it is made of, if it is no moved data.
    Commit(Box<Uploaded>, Option<Arc<Batch>>),
    /// Put the description that says the size which is owed.
    Describe,
    /// Begin work that tidies.
    Chore(Chore),
    /// End the gathering under way.
    StopGathering,
    /// Begin a new journal with this change.
    BeginJournal(ChangeNo),
    /// Wake those who wait to be accepted.
    WakeWriters,
    /// Say something to the operator.
    Report(Report),
    /// Put the close entry, and let the journal go.
    Close(Closing),
    /// End: the volume cannot go on.
    End(End),
}

/// Work that tidies: it wins space back, or saves the next opening time. One of each kind is under way at most.
#[derive(Debug)]
pub enum Chore {
    /// Write a checkpoint.
    Checkpoint(Box<CheckpointPlan>),
    /// Put a digest.
    Digest(digests::Plan),
    /// Bring in pages of the table of segments, to choose victims.
    Look(NeedPages),
    /// Find what is live in the victims, by a walk over the whole map; it is as of the slot, or later.
    Survey(Vec<Seq>, Seq),
    /// Read what is live in the victims; the map is as of the slot, or later. What was found in them, if it was.
    Gather(Vec<Seq>, Seq, Option<Surveyed>),
    /// Read what the head and the versions that are kept need of these segments, which one segment is to carry from then on.
    Carry(Vec<Seq>),
    /// Delete what is doomed.
    Delete(deletions::Plan),
    /// Look for objects that nobody owns, and delete those of the suspects that still belong to nobody.
    Sweep(BTreeSet<Key>),
}

/// Something that the operator wants to know.
#[derive(Debug)]
pub enum Report {
    /// The store failed collection, for the first time in a row.
    CollectionPauses(String),
    /// Doomed objects were not deleted, for the first time in a row or not.
    NotDeleted {
        /// How many are doomed.
        objects: usize,
        /// The store's answer.
        error: StoreError,
        /// It was deleting before.
        is_first: bool,
    },
    /// It deletes again.
    DeletesAgain,
    /// The search for objects without an owner broke off.
    SweepBrokeOff(StoreError),
}

/// What a close entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Its slot.
    pub seq: Seq,
    /// The last committed change.
    pub covers: ChangeNo,
    /// The last accepted one.
    pub last: ChangeNo,
}

/// How a volume ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Closed on purpose.
    Closed,
    /// Another server took it.
    Fenced(String),
    /// The map cannot be read or an object of ours is damaged: going on would risk data.
    Failed(String),
}

impl From<End> for DeviceError {
    fn from(end: End) -> DeviceError {
        match end {
            End::Closed => DeviceError::ShuttingDown,
            End::Fenced(who) => DeviceError::Fenced(who),
            End::Failed(why) => DeviceError::Io(why),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    /// What the volume has and knows.
    pub ledger: Ledger,
    collection: Collection,
    deletions: Deletions,
    sweeps: Sweeps,
    /// Uploads that ended and wait until those before them took effect.
    arrived: BTreeMap<Seq, Result<Box<Uploaded>, End>>,
    is_committing: bool,
    is_checkpointing: bool,
    /// The description is being put.
    is_describing: bool,
    /// When a batch got a slot last.
    client_slot_at: Instant,
    /// The volume is being closed.
    is_closing: bool,
    /// Somebody found that it cannot go on.
    failed: Option<End>,
}

impl Core {
    /// Of a volume that was just opened.
    pub fn new(ledger: Ledger, at: Instant) -> Core {
        Core {
            sweeps: Sweeps::new(at, &ledger.rules.options.gc),
            ledger,
            collection: Collection::default(),
            deletions: Deletions::default(),
            arrived: BTreeMap::new(),
            is_committing: false,
            is_checkpointing: false,
            is_describing: false,
            client_slot_at: at,
            is_closing: false,
            failed: None,
        }
    }

    /// Somebody who is no chore found that the volume cannot go on: the next look ends it.
    pub fn fail(&mut self, end: End) {
        self.failed = Some(end);
    }

    /// Nothing is accepted any more; the next look closes the volume as soon as nothing is left to do.
    pub fn begin_closing(&mut self) {
        self.is_closing = true;
    }

    /// Closing the volume waits for no deletion: somebody waits for whoever opens it next, and that one deletes.
    pub fn leave_deletions(&mut self) {
        self.deletions.leave();
    }

    /// Takes in what happened, and decides what is to be done.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(end) = self.failed.take() {
            return vec![Effect::End(end)];
        }
        if let Err(end) = self.take(event, now, &mut effects) {
            return vec![Effect::End(end)];
        }
        loop {
            self.decide(now, &mut effects);
            // What was decided last, too, may be what a batch waited for: collection that ended, a journal that is begun anew. No event follows
            // that, and time alone may bring nothing.
            if !self.has_idle_slot(now) {
                return effects;
            }
        }
    }

    /// Asks every question once.
    fn decide(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.is_describing && self.ledger.owed_size().is_some() {
            self.is_describing = true;
            effects.push(Effect::Describe);
        }
        self.start_uploads(now, effects);
        let closing = self.is_closing;
        effects.extend(self.collection.start(&mut self.ledger, closing, now));
        self.start_moves(now, effects);
        self.start_checkpoint(now, effects);
        self.start_commit(now, effects);
        self.start_digest(now, effects);
        let doomed = self.deletions.start(&mut self.ledger, closing, now.at);
        effects.extend(doomed.map(|plan| Effect::Chore(Chore::Delete(plan))));
        let suspects = self.sweeps.start(closing, now.at);
        effects.extend(suspects.map(|suspects| Effect::Chore(Chore::Sweep(suspects))));
        if self.is_drained() {
            let log = &self.ledger.log;
            effects.push(Effect::Close(Closing { seq: log.next_seq(), covers: log.covers(), last: log.last() }));
        } else {
            effects.extend(self.ledger.begin_journal(now.at).map(Effect::BeginJournal));
        }
    }

    fn take(&mut self, event: Event, now: Now, effects: &mut Vec<Effect>) -> Result<(), End> {
        match event {
            Event::Look => {}
            Event::Uploaded(seq, uploaded) => {
                // A slot that nobody gave out, or one twice: nothing that is decided from here on could be trusted.
                if !self.ledger.log.is_under_way(seq) || self.arrived.insert(seq, uploaded).is_some() {
                    return Err(End::Failed(format!(
                        "slot {seq} of the log was filled, and nothing was to be put there"
                    )));
                }
            }
            Event::Committed { moved } => {
                self.is_committing = false;
                self.sweeps.note_commit();
                if moved {
                    self.collection.committed(now.at);
                }
            }
            Event::Checkpointed => self.is_checkpointing = false,
            Event::Digested(is_there) => self.ledger.digest_ended(is_there),
            Event::Described => self.is_describing = false,
            Event::Looked(loaded) => effects.extend(self.collection.take_pages(loaded, now.at)),
            Event::Surveyed(surveyed) => effects.extend(self.collection.take_survey(&self.ledger, surveyed, now.at)),
            Event::Gathered(gathered) => effects.extend(self.collection.take(&mut self.ledger, gathered, now.at)),
            Event::Deleted(outcome) => effects.extend(self.deletions.take(&mut self.ledger, outcome, now.at)),
            Event::Swept(found) => {
                effects.extend(self.sweeps.take(found, now.at, &self.ledger.rules.options.gc).map(Effect::Report));
            }
            Event::JournalBegun => {
                self.ledger.journal_begun();
                effects.push(Effect::WakeWriters);
            }
            Event::Ended(end) => return Err(end),
        }
        Ok(())
    }

    /// Seals what is due and puts it under way.
    fn start_uploads(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let window = self.window();
        if self.ledger.wants_mark() {
            self.ledger.log.mark();
        }
        loop {
            let share = self.client_share(now);
            let log = &self.ledger.log;
            if log.has_slot(window, share) && log.waiting() == 0 && self.is_due(now) {
                self.ledger.log.freeze();
            }
            self.ledger.note_age(now.at);
            let Some((seq, batch)) = self.ledger.log.next_upload(window, share) else { return };
            self.client_slot_at = now.at;
            effects.push(Effect::Upload(seq, batch));
        }
    }

    /// Whether a batch may have a slot at once, and has none: one that waits, or that is to be made.
    pub fn has_idle_slot(&self, now: Now) -> bool {
        let log = &self.ledger.log;
        log.has_slot(self.window(), self.client_share(now)) && (log.waiting() > 0 || self.is_due(now))
    }

    /// Segments that may be under way at a time; none while the description does not say the size: nothing is in the store beyond its end.
    fn window(&self) -> u32 {
        if self.ledger.owed_size().is_some() { 0 } else { self.ledger.rules.options.upload_window }
    }

    /// Of the window of uploads, what is the client's: all of it, but for what collection needs now.
    fn client_share(&self, now: Now) -> u32 {
        let window = self.ledger.rules.options.upload_window;
        let pace = self.collection.pace(&self.ledger, now.at);
        let moves_wait = self.collection.has_moves();
        let rest = match window.saturating_sub(pace.uploads) {
            // A single slot: in turns.
            0 => u32::from(!moves_wait || self.ledger.log.moved_last()),
            rest => rest,
        };
        match pace.client {
            Client::Free if !moves_wait => window,
            Client::Free => rest,
            _ if !self.collection.is_working() => window,
            Client::Shares => rest,
            Client::Trickles => u32::from(now.at >= self.trickle_at()),
        }
    }

    /// When the client gets a slot although space is short: nobody waits for ever for a collection that makes no progress.
    fn trickle_at(&self) -> Instant {
        self.client_slot_at + if self.ledger.log.is_waited_for() { TRICKLE_WAITED_FOR } else { TRICKLE }
    }

    /// Puts moved data under way, as much as its share allows.
    fn start_moves(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while self.collection.has_moves() {
            let pace = self.collection.pace(&self.ledger, now.at);
            let Some((seq, covers)) = self.ledger.log.next_move(self.window(), pace.uploads) else { return };
            let Some(data) = self.collection.next_move() else { return };
            effects.push(Effect::UploadMove(seq, covers, data));
        }
    }

    /// Has the oldest upload take effect, once it is in the store. One that failed ends the volume when all before it took effect.
    fn start_commit(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.is_committing || self.waits_for_checkpoint(now) {
            return;
        }
        let oldest = self.ledger.log.oldest_slot();
        match oldest.and_then(|seq| self.arrived.remove(&seq)) {
            None => {}
            Some(Ok(uploaded)) => {
                self.is_committing = true;
                effects.push(Effect::Commit(uploaded, self.ledger.log.oldest_upload()));
            }
            Some(Err(end)) => effects.push(Effect::End(end)),
        }
    }

    /// Whether the buffer is to be sealed now.
    fn is_due(&self, now: Now) -> bool {
        let (ledger, options) = (&self.ledger, &self.ledger.rules.options);
        let old = ledger.active_since.is_some_and(|since| now.at.duration_since(since) >= self.writeback_delay(now));
        let asked = ledger.log.is_wanted() || ledger.is_paused || ledger.writers_waiting > 0 || ledger.wants_place();
        // An upload that has ended may make full what was not.
        let full = ledger.log.is_full(options.segment_size);
        ledger.log.has_active() && (old || asked || full || self.is_closing)
    }

    /// How old the buffer becomes before it is sealed although nobody asked for it.
    fn writeback_delay(&self, now: Now) -> Duration {
        let delay = self.ledger.rules.options.writeback_delay;
        if now.thrift.0 == Thrift::Free { delay } else { delay * PATIENCE }
    }

    /// Whether everything that has a slot took effect.
    fn is_idle(&self) -> bool {
        self.ledger.log.uploading() == 0 && !self.is_committing
    }

    fn start_checkpoint(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.may_checkpoint() && self.ledger.log.needs_checkpoint() && self.is_checkpoint_due(now) {
            self.collection.checkpoint_begins();
            self.is_checkpointing = true;
            effects.push(Effect::Chore(Chore::Checkpoint(Box::new(self.ledger.begin_checkpoint()))));
        }
    }

    /// Begins a digest if one is due. Nothing needs it: none while requests are dear, nor at the end, when a checkpoint comes.
    fn start_digest(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.is_closing && !self.is_committing && now.thrift.0 == Thrift::Free {
            let Ledger { digests, rules, .. } = &mut self.ledger;
            let plan = digests.start(&rules.options, now.at);
            effects.extend(plan.map(|plan| Effect::Chore(Chore::Digest(plan))));
        }
    }

    /// Whether a checkpoint may begin: a part of a segment must not be in it, nor a size that the description does not say.
    fn may_checkpoint(&self) -> bool {
        !self.is_checkpointing && !self.is_committing && self.ledger.owed_size().is_none()
    }

    fn is_checkpoint_due(&self, now: Now) -> bool {
        let Ledger { rules, log, doomed, uncheckpointed_since, .. } = &self.ledger;
        let options = &rules.options;
        let old = uncheckpointed_since.is_some_and(|since| now.at.duration_since(since) >= options.checkpoint_interval);
        let long =
            log.bytes_since_checkpoint() >= options.checkpoint_bytes || log.map.newest_entries() >= CHECKPOINT_ENTRIES;
        let half = now.map_memory / 2;
        let crowded = log.map.memory() as u64 > half && log.map.dirty_memory() as u64 > half;
        // The last one comes after what is being deleted, so that its table forgets that.
        let last = self.is_closing && self.is_idle() && !log.has_changes() && self.deletions.lets_close(&self.ledger);
        let totals = log.map.space().totals();
        // Of very many not all are known by name: a checkpoint does not change that.
        let tied = log.map.space().tied_totals().dead_bytes;
        let dead = if doomed.is_full() { 0 } else { totals.dead_bytes.saturating_sub(doomed.bytes() + tied) };
        let littered = dead >= (LITTER_SEGMENTS * options.segment_size).max(totals.live_bytes / LITTER_PART)
            || self.collection.wants_checkpoint(&self.ledger, now.at);
        // Each opening after a short life reads all of them.
        let fenced = rules.fences_since > FENCES_MAX && log.checkpointed() < rules.fence;
        let asked = self.ledger.is_to_change_versions();
        asked || old || long || crowded || littered || fenced || last
    }

    /// Whether commits wait for the checkpoint under way: it makes pages of the map clean, and those that changed already take all
    /// that the map may have.
    fn waits_for_checkpoint(&self, now: Now) -> bool {
        self.is_checkpointing && self.ledger.log.map.dirty_memory() as u64 > now.map_memory
    }

    /// When something becomes due by time alone.
    pub fn deadline(&self, now: Now) -> Option<Instant> {
        let ledger = &self.ledger;
        let options = &ledger.rules.options;
        let share = self.client_share(now);
        let slot_free = ledger.log.has_slot(self.window(), share);
        // Past it, the slot is denied because it is the other's turn: the next commit changes that, not time.
        let trickle = Some(self.trickle_at()).filter(|at| share == 0 && ledger.log.has_changes() && *at > now.at);
        let seal = ledger.active_since.filter(|_| slot_free).map(|since| since + self.writeback_delay(now));
        let checkpoint = ledger.uncheckpointed_since.filter(|_| self.may_checkpoint());
        let checkpoint = checkpoint.map(|since| since + options.checkpoint_interval);
        let journal = ledger.journal_retry.filter(|_| !ledger.is_paused);
        // What it has to do waits until there is more to spend.
        let collect = self.collection.deadline(ledger, now.at).filter(|_| !self.collection.is_spared(ledger, now));
        [seal, trickle, checkpoint, journal, collect, now.thrift.1, self.deletions.deadline(self.is_closing)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a clean stop has nothing left to do.
    fn is_drained(&self) -> bool {
        self.is_closing
            && self.ledger.log.is_drained()
            && self.is_idle()
            && !self.is_checkpointing
            && !self.is_describing
            && self.deletions.lets_close(&self.ledger)
    }
}
