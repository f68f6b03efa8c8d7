//! Deleting what is doomed (rule R7). The numbers go on from those of [`super::checkpoint`]:
//!
//! 5. Proof that no other server took the volume before the newest checkpoint was durable (see
//!    [`slot::prove_unfenced`]): whoever takes it from now on lists the checkpoints after putting its fence, and so starts
//!    from that checkpoint or a later one, which needs nothing of what is doomed. A server that was displaced and does not know it
//!    still writes checkpoints: superseded ones therefore stay until one of ours is durable, beyond all of its
//!    ([`crate::engine::deletions`]). Segments that were dead in any checkpoint are dead in its, too: all read one log.
//! 6. Reads that were planned before have ended: no later one can name a doomed object.
//! 7. DELETE, a batch at a time and no faster than `gc.delete_rate`, and then the tables forget. A crash before that
//!    leaves the objects in the checkpoint's table, dead: the next opening deletes them, before its own checkpoint, so
//!    that its table forgets them.
//!
//! Digests of what the newest checkpoint covers go with superseded checkpoints. Nothing needs them; it is only that none is left behind.
//!
//! TRIM and everything else goes on meanwhile. A mirror is told what is gone, and as of which checkpoint.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::Event;
use crate::engine::deletions::{BATCH, Outcome, Plan};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::format::digest::Stretch;
use crate::format::keys::Keys;
use crate::mirror::notes::Deleted;
use crate::store::Key;
use crate::units::Seq;
use crate::upkeep::checkpoint;

/// So many deleted segments leave the tables under one lock: each takes a microsecond or two.
const FORGET_AT_ONCE: usize = 128;

/// An object beside the log.
enum Beside {
    Digest(Stretch),
    Checkpoint(Seq),
}

impl Beside {
    fn key(&self, keys: &Keys) -> Key {
        match self {
            Beside::Digest(stretch) => keys.digest(*stretch),
            Beside::Checkpoint(seq) => keys.checkpoint(*seq),
        }
    }

    fn checkpoint(&self) -> Option<Seq> {
        match self {
            Beside::Digest(_) => None,
            Beside::Checkpoint(seq) => Some(*seq),
        }
    }
}

/// Steps 5 to 7.
pub(super) async fn run(shared: Arc<Shared>, plan: Plan) -> Event {
    let Plan { objects, from, line } = plan;
    match slot::prove_unfenced(&shared, from).await {
        Ok(()) => {}
        Err(ProofError::Fenced(end)) => return Event::Ended(end),
        Err(ProofError::Store(error)) => return Event::Deleted(Outcome::Postponed(error)),
    }
    loop {
        let ended = shared.waits.read_ended.notified();
        if shared.ledger().has_passed(line) {
            break;
        }
        ended.await;
    }
    let (store, keys) = (&shared.doors.store, &shared.doors.keys);
    let segments: Vec<Seq> = objects.segments().collect();
    // Digests need no request of their own: mostly there are a few of both.
    let digests = objects.digests().map(Beside::Digest);
    let beside: Vec<Beside> = digests.chain(objects.checkpoints().map(Beside::Checkpoint)).collect();
    for batch in beside.chunks(BATCH) {
        let named: Vec<Key> = batch.iter().map(|object| object.key(keys)).collect();
        if let Err(error) = store.delete(&named).await {
            return Event::Deleted(Outcome::Postponed(error));
        }
        let checkpoints: Vec<Seq> = batch.iter().filter_map(Beside::checkpoint).collect();
        let newest = {
            let mut ledger = shared.ledger();
            ledger.digests_deleted(batch.len() - checkpoints.len());
            ledger.checkpoints_deleted(checkpoints.len());
            ledger.log().checkpointed()
        };
        shared.following.deleted(checkpoints.into_iter().map(Deleted::Checkpoint), newest);
    }
    for batch in segments.chunks(BATCH) {
        let began = Instant::now();
        let named: Vec<Key> = batch.iter().map(|&seq| keys.segment(seq)).collect();
        if let Err(error) = store.delete(&named).await {
            return Event::Deleted(Outcome::Postponed(error));
        }
        for part in batch.chunks(FORGET_AT_ONCE) {
            shared.ledger().segments_deleted(part);
        }
        let newest = shared.ledger().log().checkpointed();
        shared.following.deleted(batch.iter().copied().map(Deleted::Slot), newest);
        let least = Duration::from_secs(batch.len() as u64) / shared.ledger().options().gc.delete_rate.max(1);
        if batch.len() == BATCH {
            tokio::time::sleep_until(began + least).await;
        }
    }
    shared.ledger().planned_is_gone();
    drop(objects);
    // There may have been more than were known by name.
    checkpoint::doom(&shared).await;
    Event::Deleted(Outcome::Done)
}
