//! The log task: the one owner of the log's head. It decides when a batch is sealed, keeps up to W uploads under way,
//! has them take effect in order, and starts checkpoints. It only waits and reports; [`State`] decides.
//!
//! Whatever takes time is an [`Effect`]: it goes on while the log task is busy with something else, and the log task is
//! never busy for long.
//!
//! [`State`]: crate::volume::state::State

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesOrdered, StreamExt};
use tokio::time::Instant;

use crate::codec::EncodeError;
use crate::gc::Client;
use crate::journal;
use crate::segment::{self, Close, EncodedSegment};
use crate::units::{ChangeNo, Seq};
use crate::volume::checkpoint;
use crate::volume::commit::{self, Committed, Uploaded};
use crate::volume::deletion::Deletion;
use crate::volume::effect::{self, Effect};
use crate::volume::gc::{Collector, Move};
use crate::volume::shared::{End, Inner, Shared};
use crate::volume::slot;
use crate::volume::state::Batch;
use crate::volume::sweep::Sweeper;

struct Log {
    shared: Arc<Shared>,
    /// In the order of the log: the next to finish is the next to commit.
    uploads: FuturesOrdered<Effect<Result<Uploaded, End>>>,
    /// The oldest of them, taking effect.
    commit: Option<Effect<Result<Committed, End>>>,
    /// When a batch was put under way last.
    client_slot_at: Instant,
    checkpoint: Option<Effect<Result<(), End>>>,
    deletion: Deletion,
    collector: Collector,
    sweeper: Sweeper,
}

/// Runs until the volume is closed or ends. The owner of the volume holds the task's handle and aborts it when dropped.
pub(super) async fn run(shared: Arc<Shared>) -> Result<(), End> {
    let _whatever_happens = EndWithTask(shared.clone());
    let mut log = Log {
        shared: shared.clone(),
        uploads: FuturesOrdered::new(),
        commit: None,
        client_slot_at: Instant::now(),
        checkpoint: None,
        deletion: Deletion::default(),
        collector: Collector::default(),
        sweeper: Sweeper::new(&shared),
    };
    let result = log.serve().await;
    match &result {
        Ok(()) => shared.end(End::Closed),
        Err(end) => {
            // Whoever closes it is told, and says it.
            if !shared.is_closing() {
                let why = crate::device::DeviceError::from(end.clone());
                tracing::error!(volume = %shared.meta.name, "the volume has ended: {why}");
            }
            shared.end(end.clone());
        }
    }
    result
}

/// Nobody waits for a log task that is gone.
struct EndWithTask(Arc<Shared>);

impl Drop for EndWithTask {
    fn drop(&mut self) {
        if self.0.progress.now().end.is_none() {
            self.0.end(End::Failed("the volume was dropped".into()));
        }
    }
}

impl Log {
    async fn serve(&mut self) -> Result<(), End> {
        loop {
            self.start_uploads();
            self.collector.start(&self.shared);
            self.start_moves();
            self.start_checkpoint();
            self.deletion.start(&self.shared);
            self.sweeper.start(&self.shared);
            if self.is_drained() {
                return self.close().await;
            }
            self.restart_journal();
            let deadline = self.deadline();
            let shared = self.shared.clone();
            // Nothing is awaited in the branches.
            tokio::select! {
                biased;
                committed = effect::ended(&mut self.commit) => self.note_commit(&committed?),
                Some(uploaded) = self.uploads.next(), if self.commit.is_none() && !self.waits_for_checkpoint() => {
                    self.commit = Some(Effect::start(commit::run(shared, uploaded?)));
                }
                done = effect::ended(&mut self.checkpoint) => done?,
                gathered = self.collector.gathered() => self.collector.take(&shared, gathered),
                found = self.sweeper.ended() => self.sweeper.take(&shared, found)?,
                outcome = self.deletion.ended() => self.deletion.take(&shared, outcome?),
                () = shared.journal.let_go() => shared.give_back_room(0),
                () = shared.wake.notified() => {}
                () = sleep_until(deadline), if deadline.is_some() => {}
            }
        }
    }

    /// Seals what is due and puts it under way.
    fn start_uploads(&mut self) {
        loop {
            let next = {
                let mut inner = self.shared.inner.lock();
                let (window, share) = (self.shared.options.upload_window, self.client_share(&inner));
                let slot_free = inner.state.has_slot(window, share) && inner.state.waiting() == 0;
                if slot_free && self.is_due(&inner) {
                    inner.state.freeze();
                }
                inner.note_age();
                inner.state.next_upload(window, share)
            };
            let Some((seq, batch)) = next else { return };
            self.client_slot_at = Instant::now();
            self.uploads.push_back(Effect::start(upload(self.shared.clone(), seq, batch)));
        }
    }

    /// Of the window of uploads, what is the client's: all of it, but for what collection needs now.
    fn client_share(&self, inner: &Inner) -> u32 {
        let window = self.shared.options.upload_window;
        let pace = self.collector.pace(&self.shared, inner);
        let moves_wait = self.collector.has_moves();
        let rest = match window.saturating_sub(pace.uploads) {
            // A single slot: in turns.
            0 => u32::from(!moves_wait || inner.state.moved_last()),
            rest => rest,
        };
        match pace.client {
            Client::Free if !moves_wait => window,
            Client::Free => rest,
            _ if !self.collector.is_working() => window,
            Client::Shares => rest,
            Client::Trickles => u32::from(Instant::now() >= self.trickle_at(inner)),
        }
    }

    /// When the client gets a slot although space is short: nobody waits for ever for a collection that makes no progress.
    fn trickle_at(&self, inner: &Inner) -> Instant {
        self.client_slot_at + if inner.state.is_waited_for() { TRICKLE_WAITED_FOR } else { TRICKLE }
    }

    /// Puts moved data under way, as much as its share allows.
    fn start_moves(&mut self) {
        while self.collector.has_moves() {
            let next = {
                let mut inner = self.shared.inner.lock();
                let pace = self.collector.pace(&self.shared, &inner);
                inner.state.next_move(self.shared.options.upload_window, pace.uploads)
            };
            let Some((seq, covers)) = next else { return };
            let Some(data) = self.collector.next_move() else { return };
            self.uploads.push_back(Effect::start(upload_move(self.shared.clone(), seq, covers, data)));
        }
    }

    /// Whether the buffer is to be sealed now.
    fn is_due(&self, inner: &Inner) -> bool {
        let old = inner.active_since.is_some_and(|since| since.elapsed() >= self.shared.options.writeback_delay);
        let asked = inner.state.is_wanted() || inner.paused || self.shared.is_short_of_room();
        // An upload that has ended may make full what was not.
        let full = inner.state.is_full(self.shared.options.segment_size);
        inner.state.has_active() && (old || asked || full || self.shared.is_closing())
    }

    /// A segment took effect.
    fn note_commit(&mut self, committed: &Committed) {
        self.sweeper.note_commit();
        if committed.moved {
            self.collector.committed();
        }
    }

    /// Whether everything that has a slot took effect.
    fn is_idle(&self) -> bool {
        self.uploads.is_empty() && self.commit.is_none()
    }

    fn start_checkpoint(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        let due = {
            let inner = self.shared.inner.lock();
            let options = &self.shared.options;
            let old = inner.uncheckpointed_since.is_some_and(|since| since.elapsed() >= options.checkpoint_interval);
            let long = inner.state.bytes_since_checkpoint() >= options.checkpoint_bytes
                || inner.state.map.newest_entries() >= CHECKPOINT_ENTRIES;
            let map_memory = self.shared.seat.map_memory();
            let crowded = inner.state.map.memory() as u64 > map_memory / 2
                && inner.state.map.dirty_memory() as u64 > map_memory / 2;
            // The last one comes after what is being deleted, so that its table forgets that.
            let last = self.shared.is_closing()
                && self.is_idle()
                && !inner.state.has_changes()
                && self.deletion.lets_close(&inner);
            let totals = inner.state.map.usage().totals();
            let dead = totals.dead_bytes.saturating_sub(inner.doomed.bytes);
            let littered = dead >= (LITTER_SEGMENTS * options.segment_size).max(totals.live_bytes / LITTER_PART)
                || self.collector.wants_checkpoint(&self.shared, &inner);
            // Each opening after a short life reads all of them.
            let fenced = self.shared.fences_since > FENCES_MAX && inner.state.checkpointed() < self.shared.fence.0;
            inner.state.needs_checkpoint() && (old || long || crowded || littered || fenced || last)
        };
        if due {
            self.collector.checkpoint_begins();
            self.checkpoint = Some(Effect::start(checkpoint::run(self.shared.clone())));
        }
    }

    /// Whether commits wait for the checkpoint under way: it makes pages of the map clean, and those that changed already take all
    /// that the map may have.
    fn waits_for_checkpoint(&self) -> bool {
        let map_memory = self.shared.seat.map_memory() as usize;
        self.checkpoint.is_some() && self.shared.inner.lock().state.map.dirty_memory() > map_memory
    }

    /// Begins a journal that failed anew, when its time has come: accepting pauses until everything is committed, so
    /// that the new one has no gap.
    fn restart_journal(&mut self) {
        let last = {
            let mut inner = self.shared.inner.lock();
            match inner.journal_retry {
                Some(at) if Instant::now() >= at => inner.paused = true,
                _ => return,
            }
            if inner.state.covers() < inner.state.last() {
                return;
            }
            inner.state.last()
        };
        self.shared.journal.restart_from(last.next());
        {
            let mut inner = self.shared.inner.lock();
            inner.paused = false;
            inner.journal_retry = None;
        }
        self.shared.completed.notify_waiters();
        tracing::info!(volume = %self.shared.meta.name, "the journal is tried again");
    }

    /// When something becomes due by time alone.
    fn deadline(&self) -> Option<Instant> {
        let inner = self.shared.inner.lock();
        let options = &self.shared.options;
        let share = self.client_share(&inner);
        let slot_free = inner.state.has_slot(options.upload_window, share);
        // Past it, the slot is denied because it is the other's turn: the next commit changes that, not time.
        let trickle =
            Some(self.trickle_at(&inner)).filter(|at| share == 0 && inner.state.has_changes() && *at > Instant::now());
        let seal = inner.active_since.filter(|_| slot_free).map(|since| since + options.writeback_delay);
        let checkpoint = inner.uncheckpointed_since.filter(|_| self.checkpoint.is_none());
        let checkpoint = checkpoint.map(|since| since + options.checkpoint_interval);
        let journal = inner.journal_retry.filter(|_| !inner.paused);
        let collect = self.collector.deadline(&self.shared, &inner);
        [seal, trickle, checkpoint, journal, collect, self.deletion.deadline()].into_iter().flatten().min()
    }

    /// Whether a clean stop has nothing left to do.
    fn is_drained(&self) -> bool {
        let inner = self.shared.inner.lock();
        self.shared.is_closing()
            && inner.state.is_drained()
            && self.is_idle()
            && self.checkpoint.is_none()
            && self.deletion.lets_close(&inner)
    }

    /// The last entry of a clean stop: whoever opens next need not ask whether this server is alive.
    async fn close(&mut self) -> Result<(), End> {
        let (seq, covers, last) = {
            let inner = self.shared.inner.lock();
            (inner.state.next_seq(), inner.state.covers(), inner.state.last())
        };
        let journal_dir = self.shared.disk.path();
        prove_nothing_owed(covers, last, &journal_dir).map_err(End::Failed)?;
        let close = Close {
            epoch: self.shared.epoch,
            server: self.shared.server,
            covers,
            time_unix_millis: self.shared.clock.unix_millis(),
        };
        let encoded = close.encode(&self.shared.sealer, seq, self.shared.salt());
        let object = encoded.map_err(|error| End::Failed(error.to_string()))?;
        slot::put_until_done(&self.shared, seq, object.parts).await?;
        self.shared.remember(seq).await;
        // It holds nothing that the store does not have: that it cannot be closed or removed loses nothing.
        let closed = self.shared.journal.close().await;
        let removed = journal::discard(&self.shared.disk, self.shared.meta.uuid).await;
        if let Err(error) = closed.and(removed) {
            tracing::warn!(volume = %self.shared.meta.name, "the empty journal could not be removed: {error}");
        }
        Ok(())
    }
}

/// Whoever gives the journal up proves that it may (rule R15): a close entry says that nothing is owed. Fails with the reason.
fn prove_nothing_owed(covers: ChangeNo, last: ChangeNo, journal_dir: &str) -> Result<(), String> {
    if covers != last {
        return Err(format!(
            "it cannot be closed: changes {} to {last} are acknowledged and not in the store; the journal in {journal_dir} keeps \
             them, and the next opening on this host accepts them again",
            covers.next(),
        ));
    }
    Ok(())
}

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

/// As [`upload`], for moved data; `covers` is the last change in the log before it.
async fn upload_move(shared: Arc<Shared>, seq: Seq, covers: ChangeNo, moved: Move) -> Result<Uploaded, End> {
    let (sealer, block_size, salt) = (shared.sealer.clone(), shared.block_size, shared.salt());
    let stamp = shared.stamp(covers);
    let _held = shared.seat.upload(moved.bytes()).await;
    let encode = move || segment::encode_moved(&sealer, seq, salt, block_size, &stamp, &moved.data, moved.as_of);
    let encoded = shared.workers.run(encode).await;
    put(&shared, seq, encoded).await
}

/// Encodes a batch and creates its slot in the log, for as long as that takes.
async fn upload(shared: Arc<Shared>, seq: Seq, batch: Arc<Batch>) -> Result<Uploaded, End> {
    let (sealer, block_size, salt) = (shared.sealer.clone(), shared.block_size, shared.salt());
    let stamp = shared.stamp(batch.covers);
    let _held = shared.seat.upload(batch.buffer.data_bytes()).await;
    let encode = move || {
        let changes: Vec<_> = batch.buffer.iter().map(|(extent, payload)| (extent, payload.clone())).collect();
        segment::encode_segment(&sealer, seq, salt, block_size, &stamp, &changes)
    };
    let encoded = shared.workers.run(encode).await;
    put(&shared, seq, encoded).await
}

async fn put(shared: &Shared, seq: Seq, encoded: Result<EncodedSegment, EncodeError>) -> Result<Uploaded, End> {
    let EncodedSegment { object, placements, info, as_of } =
        encoded.map_err(|error| End::Failed(format!("segment {seq} {error}")))?;
    let sealed = if shared.objects.keeps_sealed() { object.parts.clone() } else { Vec::new() };
    slot::put_until_done(shared, seq, object.parts).await?;
    Ok(Uploaded { seq, info, placements, as_of, sealed })
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_closed_while_the_store_lacks_a_change() {
        let prove = |covers, last| prove_nothing_owed(ChangeNo(covers), ChangeNo(last), "/state/v");
        assert_eq!(prove(7, 7), Ok(()));
        let refused = prove(7, 9).unwrap_err();
        assert!(refused.contains("changes 8 to 9 are acknowledged") && refused.contains("/state/v"), "{refused}");
        prove(9, 7).unwrap_err();
    }
}
