//! Deleting what is doomed (rule R7). The numbers go on from those of [`super::checkpoint`]:
//!
//! 5. Proof that no other server took the volume before the newest checkpoint was durable (see
//!    [`slot::prove_unfenced`]): whoever takes it from now on lists the checkpoints after putting its fence, and so starts
//!    from that checkpoint or a later one, which needs nothing of what is doomed.
//! 6. Reads that were planned before have ended: no later one can name a doomed object.
//! 7. DELETE, a batch at a time and no faster than `gc.delete_rate`, and then the tables forget. A crash before that
//!    leaves the objects in the checkpoint's table, dead: the next opening deletes them, before its own checkpoint, so
//!    that its table forgets them.
//!
//! A store that fails is asked again later, and less and less often: dead objects cost money, nothing else. TRIM and
//! everything else goes on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{ErrorKind, Key, StoreError};
use crate::units::Seq;
use crate::volume::checkpoint;
use crate::volume::effect::{self, Effect};
use crate::volume::shared::{End, Inner, Shared};
use crate::volume::slot::{self, ProofError};

/// Objects that are deleted in one go: what a store takes in one request.
const BATCH: usize = 1000;

/// The pause after a failure; each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_secs(10);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A clean stop waits for so many deletions; more are left to the next opening.
const CLOSE_WAITS_FOR: usize = 10 * BATCH;

/// The deletions of one volume; the log task owns it.
#[derive(Default)]
pub(super) struct Deletion {
    running: Option<Effect<Result<Outcome, End>>>,
    retry_at: Option<Instant>,
    failures: u32,
}

/// How a run of deletions ended.
pub(super) enum Outcome {
    /// Nothing is left of what was doomed when it began.
    Done,
    /// The store did not do it.
    Postponed(StoreError),
}

impl Deletion {
    /// Starts if something is doomed and the time has come.
    pub fn start(&mut self, shared: &Arc<Shared>) {
        let is_time = self.retry_at.is_none_or(|at| at <= Instant::now());
        if self.running.is_some() || !is_time {
            return;
        }
        if !shared.inner.lock().doomed.is_empty() {
            self.retry_at = None;
            self.running = Some(Effect::start(run(shared.clone())));
        }
    }

    /// The result of the run under way; never, if there is none.
    pub async fn ended(&mut self) -> Result<Outcome, End> {
        effect::ended(&mut self.running).await
    }

    /// Takes in what [`Deletion::ended`] returned.
    pub fn take(&mut self, shared: &Shared, outcome: Outcome) {
        shared.inner.lock().doomed.is_stuck = matches!(outcome, Outcome::Postponed(_));
        let Outcome::Postponed(error) = outcome else {
            if self.failures > 0 {
                tracing::info!(volume = %shared.meta.name, "dead objects are deleted again");
            }
            self.failures = 0;
            return;
        };
        let objects = shared.inner.lock().doomed.len();
        match (self.failures, error.kind) {
            (0, ErrorKind::Denied) => tracing::error!(
                volume = %shared.meta.name,
                objects,
                "the store refuses to delete, so space does not come back; allow DELETE for these credentials: {error}"
            ),
            (0, _) => tracing::warn!(volume = %shared.meta.name, objects, "dead objects are not deleted yet: {error}"),
            _ => tracing::debug!(volume = %shared.meta.name, objects, "dead objects are still not deleted: {error}"),
        }
        let pause = (RETRY_MIN * 2u32.pow(self.failures.min(6))).min(RETRY_MAX);
        self.retry_at = Some(Instant::now() + pause);
        self.failures += 1;
    }

    /// When to try again.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.running.is_none())
    }

    /// Whether a clean stop need not wait.
    pub fn lets_close(&self, inner: &Inner) -> bool {
        let doomed = inner.doomed.len();
        doomed == 0 || self.failures > 0 || doomed > CLOSE_WAITS_FOR
    }
}

/// Steps 5 to 7.
async fn run(shared: Arc<Shared>) -> Result<Outcome, End> {
    let (segments, checkpoints, from, line) = {
        let mut inner = shared.inner.lock();
        let segments: Vec<Seq> = inner.doomed.segments.iter().copied().collect();
        let checkpoints: Vec<Seq> = inner.doomed.checkpoints.iter().copied().collect();
        // What is committed is ours.
        let from = checkpoint::slot_after(&shared, inner.state.committed());
        (segments, checkpoints, from, inner.state.readers().line())
    };
    match slot::prove_unfenced(&shared, from).await {
        Ok(()) => {}
        Err(ProofError::Fenced(end)) => return Err(end),
        Err(ProofError::Store(error)) => return Ok(Outcome::Postponed(error)),
    }
    loop {
        let ended = shared.read_ended.notified();
        if shared.inner.lock().state.readers().passed(line) {
            break;
        }
        ended.await;
    }
    for batch in checkpoints.chunks(BATCH) {
        let keys: Vec<Key> = batch.iter().map(|&seq| shared.keys.checkpoint(seq)).collect();
        if let Err(error) = shared.store.delete(&keys).await {
            return Ok(Outcome::Postponed(error));
        }
        let doomed = &mut shared.inner.lock().doomed.checkpoints;
        for seq in batch {
            doomed.remove(seq);
        }
    }
    for batch in segments.chunks(BATCH) {
        let began = Instant::now();
        let keys: Vec<Key> = batch.iter().map(|&seq| shared.keys.segment(seq)).collect();
        if let Err(error) = shared.store.delete(&keys).await {
            return Ok(Outcome::Postponed(error));
        }
        forget(&shared, batch);
        let least = Duration::from_secs(batch.len() as u64) / shared.options.gc.delete_rate.max(1);
        if batch.len() == BATCH {
            tokio::time::sleep_until(began + least).await;
        }
    }
    Ok(Outcome::Done)
}

/// The objects are gone.
fn forget(shared: &Shared, segments: &[Seq]) {
    let mut inner = shared.inner.lock();
    for seq in segments {
        let bytes = inner.state.map.usage().get(*seq).map_or(0, |info| info.stored_bytes);
        inner.doomed.bytes = inner.doomed.bytes.saturating_sub(bytes);
        inner.doomed.segments.remove(seq);
        inner.state.map.usage_mut().forget(*seq);
    }
}
