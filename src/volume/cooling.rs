//! What of a log has cooled moves from the store that is near to the other one: one task for each open volume that has its log in a near store
//! ([`crate::store::tiers`]).
//!
//! 1. Which: segments that a durable checkpoint covers, and that are old, or too many ([`crate::engine::cooling`]). Fences and close entries stay: they decide who has a slot.
//! 2. Each is read, proven with the tags of all its frames, put into the rest under the same key, and read back there, every byte.
//! 3. Proof that nobody has taken the volume, as before a deletion ([`slot::prove_unfenced`]), and that its log was not given up.
//! 4. They are deleted in the near store.
//!
//! A crash between 2 and 4 leaves two objects with the same bytes; the next server finds that out in 2, and goes on.
//!
//! Why a slot may become free again that way: the same is true of one whose segment is dead and was deleted ([`crate::upkeep`]). Whoever takes the volume from an older
//! look at it, and gets its fence into such a slot, finds a checkpoint at or beyond it, and that its fence is void, and deletes it in the near store alone. If it dies before
//! that, the next server that opens the volume does so ([`Run::clear_void`]). Meanwhile the server that has the volume knows that the slot
//! has cooled, and reads the segment where it is. A PUT of our own that arrives late brings the bytes that were there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::codec::object::{self, Found, ObjectKind};
use crate::engine::backoff::Backoff;
use crate::engine::cooling::{self, is_covered, plan};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::engine::watched::Watched;
use crate::format::keys::Keys;
use crate::format::places::further_place;
use crate::format::segment::{self, LogObject, LogRead};
use crate::store::tiers::{Copied, TieredStore};
use crate::store::{Key, StoreError};
use crate::units::Seq;

/// Objects that move before there is another proof.
const BATCH: usize = 64;

/// Objects that are copied at once.
const PARALLEL: usize = 4;

/// How often it is looked, without a request, whether something has cooled.
const LOOK: Duration = Duration::from_secs(30);
/// The least time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct CoolingTask {
    tiers: Option<Arc<TieredStore>>,
    state: Arc<Watched<State>>,
    task: Option<JoinHandle<()>>,
}

/// What of a volume is in the store that is near.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearStatus {
    /// Where that is.
    pub url: String,
    /// Bytes of the log that are there, and would be lost with it.
    pub bytes: u64,
    /// Objects of the log that are there.
    pub objects: u64,
    /// How long the oldest has been there, as far as that is since the volume was opened, in milliseconds.
    pub oldest_millis: u64,
    /// Bytes that have moved since the volume was opened.
    pub cooled_bytes: u64,
    /// Why nothing moves just now, if it is so.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct State {
    cooled_bytes: u64,
    trouble: Option<String>,
}

impl CoolingTask {
    /// Starts the task, if the log is in a store of its own.
    pub fn start(shared: Arc<Shared>) -> CoolingTask {
        let state = Arc::new(Watched::new(State::default()));
        let tiers = shared.doors.tiers.clone();
        let task = tiers.clone().map(|tiers| {
            let store = tiers.for_background();
            let run = Run { shared, tiers: store, state: state.clone(), stays: parking_lot::Mutex::default() };
            tokio::spawn(run.until_ended())
        });
        CoolingTask { tiers, state, task }
    }

    /// What is near; nothing if the log is where everything else is.
    pub fn status(&self) -> Option<NearStatus> {
        let tiers = self.tiers.as_ref()?;
        let (held, State { cooled_bytes, trouble }) = (tiers.held(), self.state.now().clone());
        Some(NearStatus {
            url: tiers.near_store().store.url(),
            bytes: held.iter().map(|(_, held)| held.bytes).sum(),
            objects: held.len() as u64,
            oldest_millis: cooling::oldest(&held, Instant::now()).as_millis() as u64,
            cooled_bytes,
            trouble,
        })
    }
}

impl Drop for CoolingTask {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Run {
    shared: Arc<Shared>,
    tiers: TieredStore,
    state: Arc<Watched<State>>,
    /// What was looked at and does not move.
    stays: parking_lot::Mutex<BTreeSet<Key>>,
}

/// Why it does not go on.
enum Stop {
    /// The store failed.
    Store(StoreError),
    /// The volume is not this server's any more.
    Fenced,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

impl Run {
    async fn until_ended(self) {
        let shared = self.shared.clone();
        tokio::select! {
            _ = shared.waits.progress.wait_for(|progress| progress.end.is_some()) => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut backoff = Backoff::new(&self.shared);
        let mut has_looked = false;
        loop {
            let step = async {
                if !has_looked {
                    self.tiers.look().await?;
                    self.clear_void().await?;
                }
                self.step().await
            };
            match step.await {
                Ok(next) => {
                    has_looked = true;
                    self.state.change(|state| state.trouble = None);
                    backoff = Backoff::new(&self.shared);
                    tokio::time::sleep_until(next).await;
                }
                Err(Stop::Fenced) => return,
                Err(Stop::Store(error)) => {
                    self.state.change(|state| state.trouble = Some(error.to_string()));
                    backoff.pause("moving what has cooled out of the near store", &error).await;
                }
            }
        }
    }

    /// A fence in a slot whose segment has cooled is void: whoever put it saw an older log, and died before it found that out. It goes, since it hides the segment.
    async fn clear_void(&self) -> Result<(), Stop> {
        let (mut void, checkpointed) = (Vec::new(), self.shared.ledger().log().checkpointed());
        let small =
            self.tiers.held().into_iter().filter(|(_, held)| held.bytes <= object::bytes_max(ObjectKind::Fence));
        for (key, _) in small {
            let Some(seq) = slot_of(&key).filter(|seq| is_covered(*seq, checkpointed)) else { continue };
            let Some(cooled) = self.tiers.get_rest(&key).await? else { continue };
            if is_whole_segment(&self.shared, seq, cooled).await {
                void.push(key);
            }
        }
        if void.is_empty() {
            return Ok(());
        }
        self.prove_ours().await?;
        tracing::warn!(volume = %self.shared.facts.meta.name, first = %void[0], objects = void.len(), "deleted what hid segments that have cooled");
        Ok(self.tiers.delete_near(&void).await?)
    }

    /// Moves what is due, as much as one proof is for. Returns when to look again.
    async fn step(&self) -> Result<Instant, Stop> {
        let (now, cooling) = (Instant::now(), self.tiers.near_store().cooling);
        let checkpointed = self.shared.ledger().log().checkpointed();
        let may_move = |key: &Key| {
            let stays = self.stays.lock().contains(key);
            !stays && slot_of(key).is_some_and(|seq| is_covered(seq, checkpointed))
        };
        let due = plan(&self.tiers.held(), may_move, now, &cooling);
        if due.due.is_empty() {
            let pause = LOOK.min(cooling.after / 8).max(LOOK_MIN);
            return Ok(due.next.map_or(now + pause, |next| next.clamp(now + LOOK_MIN, now + pause)));
        }
        let some = due.due.into_iter().take(BATCH);
        let copies = stream::iter(some).map(|key| self.copy(key)).buffer_unordered(PARALLEL);
        let copied: Vec<Option<(Key, u64)>> = copies.try_collect().await?;
        let copied: Vec<(Key, u64)> = copied.into_iter().flatten().collect();
        if copied.is_empty() {
            return Ok(now);
        }
        self.prove_ours().await?;
        let keys: Vec<Key> = copied.iter().map(|(key, _)| key.clone()).collect();
        self.tiers.delete_near(&keys).await?;
        let bytes: u64 = copied.iter().map(|(_, bytes)| bytes).sum();
        self.state.change(|state| state.cooled_bytes += bytes);
        tracing::debug!(volume = %self.shared.facts.meta.name, objects = keys.len(), bytes, "moved what has cooled");
        Ok(now)
    }

    /// Step 2; nothing if the object stays, or is gone.
    async fn copy(&self, key: Key) -> Result<Option<(Key, u64)>, Stop> {
        let Some(seq) = slot_of(&key) else { return Ok(None) };
        let prove = |bytes: Bytes| is_whole_segment(&self.shared, seq, bytes);
        let why = match self.tiers.copy(&key, prove).await? {
            Copied::Done(bytes) => return Ok(Some((key, bytes))),
            Copied::Gone => return Ok(None),
            Copied::Unproven => "it is no whole segment",
            Copied::Differs => {
                tracing::error!(volume = %self.shared.facts.meta.name, object = %key, "it does not move: there is something else under its key in {}", self.tiers.rest_url());
                "there is something else in the rest"
            }
        };
        tracing::debug!(volume = %self.shared.facts.meta.name, object = %key, "it stays in the near store: {why}");
        self.stays.lock().insert(key);
        Ok(None)
    }

    /// Step 3.
    async fn prove_ours(&self) -> Result<(), Stop> {
        let from = self.shared.ledger().first_foreign_slot();
        match slot::prove_unfenced(&self.shared, from).await {
            Ok(()) => Ok(()),
            Err(ProofError::Store(error)) => Err(Stop::Store(error)),
            Err(ProofError::Fenced(end)) => {
                self.shared.core().fail(end);
                self.shared.waits.wake.notify_one();
                Err(Stop::Fenced)
            }
        }
    }
}

/// Whether those are all the bytes of a segment, and each frame of it is good.
pub(super) async fn is_whole_segment(shared: &Shared, seq: Seq, bytes: Bytes) -> bool {
    let (sealer, block_size) = (shared.doors.sealer.clone(), shared.facts.block_size);
    let prove = move || {
        let is_segment = matches!(
            segment::decode_log_object(&sealer, seq, &bytes),
            Ok(Found::Whole(LogRead { object: LogObject::Segment(_), .. }))
        );
        is_segment && segment::verify_log_object(&sealer, block_size, seq, &bytes).is_ok()
    };
    shared.doors.workers.run(prove).await
}

/// The slot of an object of the log, at whatever place.
pub(super) fn slot_of(key: &Key) -> Option<Seq> {
    let own = further_place(key).map_or_else(|| key.clone(), |(own, _)| own);
    Keys::number(&own).map(Seq)
}
