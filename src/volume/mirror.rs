//! The mirror of an open volume: one task that copies what is committed into a second store, as [`crate::mirror`] says. Nobody waits for it: the data
//! path tells it what there is, and goes on ([`crate::engine::following`]); a clean stop waits a bounded time, and only if it follows.
//!
//! 1. *Where the mirror is* is read in the mirror itself, as whoever promotes it reads it. Before that, nothing of the first store is deleted.
//! 2. *A first copy*, if there is no description: the checkpoint that is newest when it begins and all before it, then the log up to what was committed
//!    when the description was read, and the description last.
//! 3. *Following*: one object after the other. Each is proven before it is put; one that is damaged in the first store is copied as it is, and said.
//! 4. *Deleting* what the first store deleted: what is noted, and what a look through the mirror finds that the tables of the volume do not name. Before
//!    that it is looked whether the mirror was promoted.
//!
//! Whatever fails is tried again, from 1. What ends it for good is told once, in the log and in the status: then nothing is held any more.
//!
//! Whoever promotes the mirror puts a fence into the next slot. This task finds other bytes there, and ends. What it puts or deletes later does no harm: it knows only what is
//! before that slot, and what was dead as of a checkpoint that the mirror had.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::codec::object::Found;
use crate::engine::core::End;
use crate::engine::doomed::Hold;
use crate::engine::shared::Shared;
use crate::engine::slot::{self, Put};
use crate::engine::watched::Watched;
use crate::error::{Holder, VolumeError};
use crate::format::keys::Keys;
use crate::format::meta::FencedBy;
use crate::format::places::{FENCE_PLACES_MAX, PLACES_MAX, further_place, place};
use crate::format::root;
use crate::format::segment::{self, LogObject, LogRead};
use crate::mirror;
use crate::mirror::notes::Deleted;
use crate::mirror::plan::{Described, First, Plan, Step, description_after};
use crate::opening::description::{self, Description};
use crate::opening::scan::Source;
use crate::reading::{Slot, slots};
use crate::space::Span;
use crate::store::{self, ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};
use crate::units::Seq;
use crate::upkeep::sweep::{self, Verdict};

/// Objects that a first copy has under way.
const PARALLEL: usize = 4;

/// How often what does not prove itself is read before it is taken for damaged.
const READS: usize = 3;

/// How often in a row a part of a first copy is tried.
const PART_TRIES: u32 = 10;

/// Objects that are deleted in one go: what a store takes in one request.
const BATCH: usize = 1000;

/// The pause after a failure; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// When a look through the mirror is tried again that a newer checkpoint made void.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// A second store, and how it is used. Clones share it.
#[derive(Clone)]
pub struct Mirror {
    url: String,
    options: mirror::Options,
    open: Arc<Open>,
    pace: Arc<Mutex<Option<Instant>>>,
}

/// Opens the store, or hands out what was opened before.
type Open = dyn Fn() -> BoxFuture<'static, store::Result<Arc<dyn Store>>> + Send + Sync;

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Mirror {
    /// The store of that URL, which `open` opens: when it is needed, and again when that failed.
    pub fn new(url: String, options: mirror::Options, open: Arc<Open>) -> Mirror {
        Mirror { url, options, open, pace: Arc::default() }
    }

    /// When so many bytes more may be copied, by what all volumes together may.
    fn turn(&self, bytes: u64, now: Instant) -> Instant {
        let Some(took) = (bytes * 1_000_000).checked_div(self.options.bandwidth) else { return now };
        let mut next = self.pace.lock();
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + Duration::from_micros(took));
        turn
    }
}

/// How far the mirror of a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// Where it is.
    pub url: String,
    /// What is done just now.
    pub state: Standing,
    /// For how long the oldest of what it lacks has been committed, as far as that is since the volume was opened.
    pub lag_millis: u64,
    /// Bytes that it lacks.
    pub lag_bytes: u64,
    /// The next slot of the log that it gets; 0 as long as that is not known.
    pub next_slot: u64,
    /// Its newest checkpoint; 0 if there is none.
    pub checkpoint: u64,
    /// Objects that were copied since the volume was opened.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects of the mirror that were deleted since then.
    pub deleted_objects: u64,
    /// Objects that were damaged in the first store, and copied as they are, or not at all if they were checkpoints.
    pub damaged_objects: u64,
    /// Bytes of dead objects that stay in the first store until the mirror has them.
    pub held_bytes: u64,
    /// Why it does not go on just now, or has ended for good, if that is so.
    pub trouble: Option<String>,
}

/// What the mirror of a volume is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It is not known yet how far it is.
    #[default]
    Beginning,
    /// There is no volume in it yet.
    FirstCopy,
    /// It goes on with what is committed.
    Following,
    /// It has ended for good.
    Ended,
}

#[derive(Clone, Debug, Default)]
struct State {
    standing: Standing,
    plan: Option<Plan>,
    objects: u64,
    bytes: u64,
    deleted: u64,
    damaged: u64,
    /// Of a first copy, about what is left of it.
    left: u64,
    trouble: Option<String>,
    /// What was committed before the volume was opened is in the lag.
    is_counted: bool,
    is_over: bool,
}

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct Mirroring {
    shared: Arc<Shared>,
    url: String,
    state: Arc<Watched<State>>,
    is_left: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Mirroring {
    /// Starts the task, if there is a mirror. To be called before anything of the volume is deleted.
    pub fn start(shared: Arc<Shared>, mirror: Option<Mirror>) -> Mirroring {
        let (state, is_left) = (Arc::new(Watched::new(State::default())), Arc::new(AtomicBool::new(false)));
        let url = mirror.as_ref().map_or_else(String::new, |mirror| mirror.url.clone());
        let task = mirror.map(|mirror| {
            let _ = shared.ledger().hold(Hold::Everything);
            shared.following.set_on(true);
            let (shared, state, is_left) = (shared.clone(), state.clone(), is_left.clone());
            tokio::spawn(Run { shared, state, is_left, mirror, began: Instant::now() }.until_ended())
        });
        Mirroring { shared, url, state, is_left, task }
    }

    /// How far it is; nothing if there is no mirror.
    pub fn mirrored(&self) -> Option<Mirrored> {
        self.task.as_ref()?;
        let state = self.state.now().clone();
        let (lag, bytes) = self.shared.following.behind();
        let plan = state.plan.unwrap_or(Plan { next: Seq(0), checkpoint: Seq(0) });
        Some(Mirrored {
            url: self.url.clone(),
            state: state.standing,
            lag_millis: lag.as_millis() as u64,
            lag_bytes: bytes + state.left,
            next_slot: plan.next.0,
            checkpoint: plan.checkpoint.0,
            objects: state.objects,
            bytes: state.bytes,
            deleted_objects: state.deleted,
            damaged_objects: state.damaged,
            held_bytes: self.shared.ledger().doomed().held_bytes(),
            trouble: state.trouble,
        })
    }

    /// The volume is closed for somebody who waits for it: the mirror gets the rest from them.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// Of a volume that was closed: waits until the mirror has all, or will not have it from here.
    pub async fn settled(&self) {
        if self.task.is_some() {
            self.state.wait_for(|state| state.is_over).await;
        }
    }
}

impl Drop for Mirroring {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Why copying does not go on.
enum Stop {
    /// Something failed that is tried again.
    Again(String),
    /// For good.
    Ended(String),
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Stop {
        Stop::Again(error.to_string())
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Again(error.to_string())
    }
}

type Result<T> = std::result::Result<T, Stop>;

/// What the task knows.
struct Run {
    shared: Arc<Shared>,
    state: Arc<Watched<State>>,
    is_left: Arc<AtomicBool>,
    mirror: Mirror,
    began: Instant,
}

/// What is known of the mirror, from looking at it until something fails.
struct Session {
    store: Arc<dyn Store>,
    plan: Plan,
    /// The number of its description.
    description: u64,
    described: Option<Described>,
    /// The number of the description of the first store that was looked at last.
    seen: u64,
    /// A description that it is to have, and the slot that comes before.
    pending: Option<(Description, Seq)>,
    /// Checkpoints that are not whole in the first store.
    passed_over: BTreeSet<Seq>,
    /// When it is looked through for what nobody needs.
    sweep_at: Option<Instant>,
}

/// An object of the first store.
struct Object {
    bytes: Bytes,
    /// What it says, if it can be read.
    read: Option<LogRead>,
    is_proven: bool,
}

impl Run {
    async fn until_ended(self) {
        let shared = self.shared.clone();
        let ended = shared.waits.progress.wait_for(|progress| progress.end.is_some());
        tokio::pin! {
            let work = self.work();
        }
        tokio::select! {
            () = &mut work => {}
            progress = ended => {
                let is_closed = matches!(progress.end, Some(End::Closed));
                if is_closed && self.is_worth_a_wait() {
                    let _ = tokio::time::timeout(self.mirror.options.stop_wait, work).await;
                }
            }
        }
        self.state.change(|state| state.is_over = true);
    }

    fn is_worth_a_wait(&self) -> bool {
        let state = self.state.now();
        state.standing == Standing::Following && state.trouble.is_none() && !self.is_left.load(Ordering::Acquire)
    }

    /// Returns when the volume is closed and the mirror has all of it, or when there is no more to be done for good.
    async fn work(&self) {
        let volume = &self.shared.facts.meta.name;
        let mut pause = PAUSE_MIN;
        loop {
            let before = self.state.now().objects;
            match self.session().await {
                Ok(()) => return,
                Err(Stop::Ended(why)) => {
                    tracing::error!(%volume, "the mirror in {} has ended: {why}", self.mirror.url);
                    self.state.change(|state| {
                        (state.standing, state.left) = (Standing::Ended, 0);
                        state.trouble = Some(why);
                    });
                    self.shared.following.set_on(false);
                    self.hold(Hold::Nothing).await;
                    return;
                }
                Err(Stop::Again(why)) => {
                    self.falls_behind(why);
                    if self.state.now().objects > before {
                        pause = PAUSE_MIN;
                    }
                    let jitter = self.shared.doors.random.below(pause.as_millis() as u64 / 2 + 1);
                    tokio::time::sleep(pause + Duration::from_millis(jitter)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Something is to be tried again.
    fn falls_behind(&self, why: String) {
        let volume = &self.shared.facts.meta.name;
        let is_news = self.state.now().trouble.is_none();
        match is_news {
            true => tracing::warn!(%volume, "the mirror in {} falls behind, trying again: {why}", self.mirror.url),
            false => tracing::debug!(%volume, "the mirror is still behind: {why}"),
        }
        self.state.change(|state| state.trouble = Some(why));
    }

    /// It goes on.
    fn fine(&self) {
        if self.state.now().trouble.is_some() {
            tracing::info!(volume = %self.shared.facts.meta.name, "the mirror in {} goes on", self.mirror.url);
            self.state.change(|state| state.trouble = None);
        }
    }

    async fn session(&self) -> Result<()> {
        let meta = &self.shared.facts.meta;
        if meta.parent.is_some() {
            return Err(Stop::Ended(format!(
                "volume {} is a clone, which shows objects of its parent, and has no mirror: make it independent with ashlar clone --detach {0}, and open it again",
                meta.name
            )));
        }
        if meta.log.is_some() {
            return Err(Stop::Ended(format!(
                "volume {} has, or had, its log in a store of its own, and has no mirror: copy its snapshots with ashlar copy, or make it without store.log",
                meta.name
            )));
        }
        if meta.fenced_by == FencedBy::Verified {
            return Err(Stop::Ended(format!(
                "volume {} is in verified mode, and a mirror needs create-only PUTs",
                meta.name
            )));
        }
        let store = (self.mirror.open)().await?;
        if !store.keeps_create_only() {
            return Err(Stop::Ended(format!(
                "{} does not keep create-only PUTs apart, which a mirror needs",
                store.url()
            )));
        }
        self.refuse_promoted(&*store).await?;
        let there = description::mirrored(&*store, &meta.name).await?;
        if let Some(other) = there.as_ref().filter(|there| there.meta.uuid != meta.uuid) {
            return Err(Stop::Ended(format!(
                "{} holds the mirror of another volume {} ({}): make a volume of that with ashlar promote, and delete it with ashlar delete, or name another store",
                store.url(),
                meta.name,
                other.meta.uuid
            )));
        }
        let mut session = match there {
            None => self.first_copy(store).await?,
            Some(there) => self.find_place(store, there).await?,
        };
        self.hold(Hold::Beyond(session.plan)).await;
        self.follow(&mut session).await
    }

    /// Fails if there is a volume where the mirror is to be.
    async fn refuse_promoted(&self, store: &dyn Store) -> Result<()> {
        let meta = &self.shared.facts.meta;
        let Some(found) = description::newest(store, &meta.name).await?.filter(|found| !found.meta.deleted) else {
            return Ok(());
        };
        Err(Stop::Ended(match found.meta.uuid == meta.uuid {
            true => format!(
                "{} holds volume {} itself: the mirror was promoted, or it is the store of this server; nothing is copied there any more",
                store.url(),
                meta.name
            ),
            false => {
                format!("{} holds another volume {}, {}: name another store", store.url(), meta.name, found.meta.uuid)
            }
        }))
    }

    /// Has the first store keep that.
    async fn hold(&self, hold: Hold) {
        loop {
            let more = self.shared.ledger().hold(hold);
            self.shared.waits.wake.notify_one();
            if !more {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// What reads the first store.
    fn first(&self) -> Source {
        let Shared { facts, doors, .. } = &*self.shared;
        Source {
            store: doors.background.clone(),
            keys: doors.keys.clone(),
            meta: facts.meta.clone(),
            description: self.shared.ledger().description(),
            sealer: doors.sealer.clone(),
            objects: doors.objects.clone(),
            tiers: doors.tiers.clone(),
        }
    }

    /// A session with a mirror that is so far.
    fn new_session(&self, store: Arc<dyn Store>, plan: Plan, there: Option<&Description>) -> Session {
        self.state.change(|state| state.plan = Some(plan));
        Session {
            store,
            plan,
            description: there.map_or(0, |there| there.number),
            described: there.map(described),
            seen: 0,
            pending: None,
            passed_over: BTreeSet::new(),
            sweep_at: Some(Instant::now() + self.mirror.options.delete_after),
        }
    }

    /// How far the mirror is; fails if it is not one of this volume as it is.
    async fn find_place(&self, store: Arc<dyn Store>, there: Description) -> Result<Session> {
        let Shared { facts, doors, .. } = &*self.shared;
        let source = Source::unlocked(store.clone(), None, there.clone(), doors.sealer.clone(), &facts.options, None);
        let scan = source.scan().await?;
        let plan = Plan { next: scan.next, checkpoint: scan.checkpointed };
        let committed = self.shared.ledger().log().committed();
        let (at, ours) = &facts.fence;
        if let Some((seq, theirs)) = &scan.fence
            && theirs.epoch >= ours.epoch
            && (seq, theirs.journal) != (at, ours.journal)
        {
            return Err(Stop::Ended(format!(
                "the log of volume {} goes on in {} with {}: a promotion of the mirror began, or {} was put back to an older state; the mirror is as it was",
                facts.meta.name,
                store.url(),
                Holder::of(theirs),
                doors.store.url(),
            )));
        }
        if scan.committed > committed {
            return Err(Stop::Ended(format!(
                "{} has the log of volume {} up to slot {}, and {} only up to slot {committed}: that store was put back to an older state; the mirror is as it was",
                store.url(),
                facts.meta.name,
                scan.committed,
                doors.store.url(),
            )));
        }
        // The same place holds the same object, unless the first store has another history. It may be deleted there.
        let at = |store: Arc<dyn Store>| async move {
            slots::read_slot(&*store, &doors.keys, &doors.sealer, scan.committed).await
        };
        let (ours, theirs) = tokio::join!(at(doors.background.clone()), at(store.clone()));
        if let (Ok(Slot::Holds(ours, _)), Ok(Slot::Holds(theirs, _))) = (ours, theirs)
            && ours.salt != theirs.salt
        {
            return Err(Stop::Ended(format!(
                "slot {} of volume {} is another one in {} than in {}: they went apart; the mirror is as it was",
                scan.committed,
                facts.meta.name,
                store.url(),
                doors.store.url()
            )));
        }
        self.state.change(|state| (state.standing, state.left) = (Standing::Following, 0));
        self.note_backlog(plan.next).await?;
        Ok(self.new_session(store, plan, Some(&there)))
    }

    /// Counts what was committed before the volume was opened here and is not in the mirror.
    async fn note_backlog(&self, next: Seq) -> Result<()> {
        let fence = self.shared.facts.fence.0;
        if next > fence || self.state.now().is_counted {
            return Ok(());
        }
        let _reading = self.shared.begin_reading();
        let mut bytes = 0;
        for span in Span::of(next).0..=Span::of(fence).0 {
            let counters = sweep::counters(&self.shared, Span(span)).await?.unwrap_or_default();
            let lacking = counters.into_iter().filter(|(seq, _)| (next..=fence).contains(seq));
            bytes += lacking.map(|(_, counter)| counter.stored_bytes).sum::<u64>();
        }
        self.shared.following.lag().committed_before(fence, bytes, self.began);
        self.state.change(|state| state.is_counted = true);
        Ok(())
    }

    /// Step 2, but for the log behind the checkpoint, and the description.
    async fn first_copy(&self, store: Arc<dyn Store>) -> Result<Session> {
        self.hold(Hold::Everything).await;
        let total = {
            let ledger = self.shared.ledger();
            ledger.log().map.space().totals().stored_bytes
        };
        self.state.change(|state| (state.standing, state.left) = (Standing::FirstCopy, total));
        let (version, scan) = self.first().checkpointed().await?;
        let plan = Plan { next: scan.next, checkpoint: version.seq };
        let session = self.new_session(store, plan, None);
        let keys = &self.shared.doors.keys;
        if version.seq > Seq(0) {
            for low in 0..=u8::MAX {
                self.copy_part(&session, &keys.segments_of(low)).await?;
            }
            for seq in self.lacking(&session, &keys.checkpoints(), version.seq.next()).await? {
                self.copy_checkpoint(&session, seq).await?;
            }
        }
        self.state.change(|state| state.left = 0);
        self.note_backlog(plan.next).await?;
        Ok(session)
    }

    /// Copies what the mirror lacks of a part of the log. A failure is borne for a while: to begin anew would be to look at all of it again.
    async fn copy_part(&self, session: &Session, prefix: &str) -> Result<()> {
        let mut tries = 0;
        loop {
            let copied = async {
                let lacking = self.lacking(session, prefix, session.plan.next).await?;
                let copies = lacking.into_iter().map(|seq| self.copy_older(session, seq));
                stream::iter(copies).buffer_unordered(PARALLEL).try_collect::<()>().await
            };
            match copied.await {
                Err(Stop::Again(why)) if tries < PART_TRIES => self.falls_behind(why),
                other => return other,
            }
            tries += 1;
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }

    /// The objects of the first store before that one that the mirror does not have, by their lengths.
    async fn lacking(&self, session: &Session, prefix: &str, before: Seq) -> Result<Vec<Seq>> {
        let (here, there) =
            tokio::try_join!(list_all(&*self.shared.doors.background, prefix), list_all(&*session.store, prefix))?;
        let (here, there) = (lengths(here), lengths(there));
        Ok(here
            .into_iter()
            .filter(|(seq, length)| *seq < before && there.get(seq) != Some(length))
            .map(|(seq, _)| seq)
            .collect())
    }

    /// A slot that the checkpoint of a first copy covers. It may be void, or gone.
    async fn copy_older(&self, session: &Session, seq: Seq) -> Result<()> {
        match self.read_slot(seq).await? {
            None => Ok(()),
            Some(object) => self.put_slot(session, seq, object).await.map(drop),
        }
    }

    /// Steps 3 and 4.
    async fn follow(&self, session: &mut Session) -> Result<()> {
        let following = &self.shared.following;
        loop {
            self.look_at_description(session).await?;
            let closed = following.closed_at();
            let first = self.first_has(session, closed);
            match session.plan.step(&first) {
                Some(Step::Description) => self.put_description(session).await?,
                Some(Step::Checkpoint(seq)) => match self.copy_checkpoint(session, seq).await? {
                    true => session.plan.checkpoint_copied(seq),
                    false => drop(session.passed_over.insert(seq)),
                },
                Some(Step::Slot(seq)) => {
                    let Some(object) = self.read_slot(seq).await? else { return Err(self.gap(seq)) };
                    // It may be sealed with keys of a description that was followed meanwhile.
                    if self.shared.ledger().description() > session.seen {
                        continue;
                    }
                    let bytes = object.bytes.len() as u64;
                    let continues_at = self.put_slot(session, seq, object).await?;
                    session.plan.slot_copied(continues_at);
                    following.lag().mirrored(session.plan.next, bytes);
                }
                None => {
                    self.fine();
                    if closed > Seq(0) {
                        return Ok(());
                    }
                    self.delete_due(session).await?;
                    self.wait(session).await;
                    continue;
                }
            }
            self.state.change(|state| state.plan = Some(session.plan));
            self.hold(Hold::Beyond(session.plan)).await;
            self.fine();
            self.delete_due(session).await?;
        }
    }

    /// Until there may be something to do.
    async fn wait(&self, session: &Session) {
        let due = self.shared.following.notes().next_at(session.plan.checkpoint, self.mirror.options.delete_after);
        let sweep = session.sweep_at.filter(|_| self.has_newest_checkpoint(session));
        let until = due.into_iter().chain(sweep).min();
        tokio::select! {
            () = self.shared.following.news.notified() => {}
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
        }
    }

    fn has_newest_checkpoint(&self, session: &Session) -> bool {
        self.shared.ledger().log().checkpointed() <= session.plan.checkpoint
    }

    fn first_has(&self, session: &Session, closed: Seq) -> First {
        let ledger = self.shared.ledger();
        let mut checkpoint = ledger.checkpoint_after(session.plan.checkpoint);
        while let Some(seq) = checkpoint.filter(|seq| session.passed_over.contains(seq)) {
            checkpoint = ledger.checkpoint_after(seq);
        }
        First {
            committed: ledger.log().committed().max(closed),
            checkpoint,
            description: session.pending.as_ref().map(|(_, after)| *after),
        }
    }

    fn gap(&self, seq: Seq) -> Stop {
        let Shared { facts, doors, .. } = &*self.shared;
        Stop::Ended(format!(
            "slot {seq} of volume {name} is not in {url} any more: a server without this mirror in its configuration has deleted it. The mirror is as it was, and can be promoted; for a new \
             one, name another store or prefix",
            name = facts.meta.name,
            url = doors.store.url(),
        ))
    }

    async fn look_at_description(&self, session: &mut Session) -> Result<()> {
        let (meta, known) = (&self.shared.facts.meta, self.shared.ledger().description());
        if known <= session.seen {
            return Ok(());
        }
        let found = description::load(&*self.shared.doors.background, &meta.name).await?;
        if found.meta.uuid != meta.uuid {
            return Err(Stop::Again(format!("volume {} is another one now", meta.name)));
        }
        // After that: what it needs was committed before it was there.
        let committed = self.shared.ledger().log().committed();
        session.seen = found.number.max(known);
        if found.number > session.description {
            let after = description_after(session.described, described(&found), committed);
            session.pending = Some((found, after));
        }
        Ok(())
    }

    async fn put_description(&self, session: &mut Session) -> Result<()> {
        let Some((pending, _)) = session.pending.take() else { return Ok(()) };
        if !description::put_mirrored(&*session.store, &pending).await? {
            return Err(Stop::Ended(format!(
                "{} is there already, and is not what {} has; the mirror is as it was",
                Keys::mirror(&pending.meta.name, pending.number),
                self.shared.doors.store.url()
            )));
        }
        (session.description, session.described) = (pending.number, Some(described(&pending)));
        self.state.change(|state| state.standing = Standing::Following);
        Ok(())
    }

    /// Copies a checkpoint. Whether it is there: not if it is not whole in the first store, where nobody can begin with it either. A newer one will come.
    async fn copy_checkpoint(&self, session: &Session, seq: Seq) -> Result<bool> {
        let Shared { doors, .. } = &*self.shared;
        let own = doors.keys.checkpoint(seq);
        for n in 0..PLACES_MAX {
            let key = place(&own, n)?;
            let (sealer, prove) = (doors.sealer.clone(), move |bytes: &Bytes, sealer: &_| {
                root::verify_checkpoint(sealer, seq, bytes).is_ok()
            });
            let Some((bytes, is_proven)) = self.read(&key, move |bytes| prove(bytes, &sealer)).await? else { break };
            if !is_proven {
                continue;
            }
            self.turn(bytes.len() as u64).await;
            let own = doors.keys.checkpoint(seq);
            match slot::put(&*session.store, &own, vec![bytes.clone()], &|there| {
                is_torn_checkpoint(&doors.sealer, seq, there)
            })
            .await?
            {
                Put::Ours(_) => {}
                Put::Taken(_) => {
                    return Err(Stop::Ended(format!(
                        "{own} is another one in {}; the mirror is as it was",
                        session.store.url()
                    )));
                }
                Put::Torn => return Err(Stop::Again(slot::torn(&own))),
            }
            self.copied(bytes.len() as u64);
            return Ok(true);
        }
        tracing::warn!(volume = %self.shared.facts.meta.name, object = %own, "a checkpoint that is not whole is not copied into the mirror");
        self.state.change(|state| state.damaged += 1);
        Ok(false)
    }

    /// The object of a slot of the log, whole if there is a whole one; nothing if the slot is empty.
    async fn read_slot(&self, seq: Seq) -> Result<Option<Object>> {
        let Shared { doors, facts, .. } = &*self.shared;
        let (own, block_size) = (doors.keys.segment(seq), facts.block_size);
        let mut damaged = None;
        for n in 0..FENCE_PLACES_MAX {
            let sealer = doors.sealer.clone();
            let prove = move |bytes: &Bytes| segment::verify_log_object(&sealer, block_size, seq, bytes).is_ok();
            let Some((bytes, is_proven)) = self.read(&place(&own, n)?, prove).await? else { break };
            let read = match segment::decode_log_object(&doors.sealer, seq, &bytes) {
                Ok(Found::Whole(read)) => Some(read),
                _ => None,
            };
            let is_torn = segment::is_torn(&doors.sealer, seq, &bytes);
            let object = Object { bytes, read, is_proven };
            if !is_torn {
                return Ok(Some(object));
            }
            damaged = Some(object);
        }
        Ok(damaged)
    }

    /// All of an object, and whether it is proven; nothing if it is not there.
    async fn read(
        &self,
        key: &Key,
        prove: impl Fn(&Bytes) -> bool + Clone + Send + 'static,
    ) -> Result<Option<(Bytes, bool)>> {
        let mut tries = 0;
        loop {
            let bytes = match self.shared.doors.background.get(key).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let (prove, looked_at) = (prove.clone(), bytes.clone());
            let is_proven = self.shared.doors.workers.run(move || prove(&looked_at)).await;
            tries += 1;
            if is_proven || tries == READS {
                return Ok(Some((bytes, is_proven)));
            }
        }
    }

    /// Puts the object of a slot into the mirror. Returns where the log goes on, if it is a fence.
    async fn put_slot(&self, session: &Session, seq: Seq, object: Object) -> Result<Option<Seq>> {
        let Shared { doors, facts, .. } = &*self.shared;
        let (key, Object { bytes, read, is_proven }) = (doors.keys.segment(seq), object);
        if !is_proven {
            tracing::error!(volume = %facts.meta.name, object = %key, "it is damaged, and copied into the mirror as it is");
            self.state.change(|state| state.damaged += 1);
        }
        self.turn(bytes.len() as u64).await;
        let fence = read.and_then(|read| match read.object {
            LogObject::Fence(fence) => Some(fence),
            _ => None,
        });
        let (store, parts) = (&*session.store, vec![bytes.clone()]);
        let put = match &fence {
            Some(_) => slot::put_fence(store, &key, parts, &doors.sealer, seq).await?,
            None => slot::put_log_object(store, &key, parts, &doors.sealer, seq).await?,
        };
        match put {
            Put::Ours(_) => {}
            Put::Taken(there) => return Err(self.taken(session, seq, &there)),
            Put::Torn => return Err(Stop::Again(slot::torn(&key))),
        }
        self.copied(bytes.len() as u64);
        Ok(fence.map(|fence| fence.continues_at))
    }

    /// Something else is in a slot of the mirror.
    fn taken(&self, session: &Session, seq: Seq, there: &Bytes) -> Stop {
        let Shared { doors, facts, .. } = &*self.shared;
        let (url, name) = (session.store.url(), &facts.meta.name);
        let fence = match segment::decode_log_object(&doors.sealer, seq, there) {
            Ok(Found::Whole(LogRead { object: LogObject::Fence(fence), .. })) => Some(fence),
            _ => None,
        };
        Stop::Ended(match fence {
            Some(fence) => format!(
                "the mirror of volume {name} in {url} was promoted by {}: it is a volume of its own, and nothing of what is written here comes there any more",
                Holder::of(&fence)
            ),
            None => format!("slot {seq} of volume {name} is another one in {url}; the mirror is as it was"),
        })
    }

    /// Waits for the turn of so many bytes.
    async fn turn(&self, bytes: u64) {
        sleep_until(self.mirror.turn(bytes, Instant::now())).await;
    }

    fn copied(&self, bytes: u64) {
        self.state.change(|state| {
            state.objects += 1;
            state.bytes += bytes;
            state.left = state.left.saturating_sub(bytes);
        });
    }

    /// Step 4.
    async fn delete_due(&self, session: &mut Session) -> Result<()> {
        let (following, after) = (&self.shared.following, self.mirror.options.delete_after);
        // There is no volume in it yet that anybody needs less of.
        if session.described.is_none() {
            return Ok(());
        }
        loop {
            let due = following.notes().due(session.plan.checkpoint, after, Instant::now(), BATCH);
            if due.is_empty() {
                break;
            }
            let keys = &self.shared.doors.keys;
            let named = due.iter().map(|object| match object {
                Deleted::Slot(seq) => keys.segment(*seq),
                Deleted::Checkpoint(seq) => keys.checkpoint(*seq),
            });
            self.delete(session, &named.collect::<Vec<_>>()).await?;
            following.notes().gone(due.len());
        }
        if following.notes().take_lost() {
            session.sweep_at = Some(Instant::now() + after);
        }
        if session.sweep_at.is_some_and(|at| at <= Instant::now()) && self.has_newest_checkpoint(session) {
            session.sweep_at = self.sweep(session).await?;
        }
        Ok(())
    }

    async fn delete(&self, session: &Session, keys: &[Key]) -> Result<()> {
        self.refuse_promoted(&*session.store).await?;
        session.store.delete(keys).await?;
        self.state.change(|state| state.deleted += keys.len() as u64);
        Ok(())
    }

    /// Deletes what the tables of the volume do not name: it was deleted in the first store, as of a checkpoint that the mirror has. Returns when that is to
    /// be done again, if it could not be done.
    async fn sweep(&self, session: &Session) -> Result<Option<Instant>> {
        let Shared { doors, .. } = &*self.shared;
        let listed = list_all(&*session.store, &doors.keys.all()).await?;
        let tables = sweep::tables(&self.shared).await?;
        // What was deleted while the tables were read may have been so as of a newer one.
        if !self.has_newest_checkpoint(session) {
            return Ok(Some(Instant::now() + SWEEP_AGAIN));
        }
        let mut orphans = Vec::new();
        for ObjectEntry { key, .. } in listed {
            let owner = tables.owner(&doors.keys, &key);
            if sweep::verdict(&*session.store, &doors.keys, &doors.sealer, &key, owner).await? == Verdict::Orphan {
                orphans.push(key);
            }
        }
        for batch in orphans.chunks(BATCH) {
            self.delete(session, batch).await?;
        }
        Ok(None)
    }
}

/// What decides when a description is copied.
fn described(description: &Description) -> Described {
    let meta = &description.meta;
    Described { size: meta.size, generation: meta.encryption.as_ref().map_or(0, |encryption| encryption.generation) }
}

/// The longest object of each seq, whatever its place.
fn lengths(listed: Vec<ObjectEntry>) -> BTreeMap<Seq, u64> {
    let mut lengths = BTreeMap::new();
    for ObjectEntry { key, size } in listed {
        let own = further_place(&key).map_or(key, |(own, _)| own);
        if let Some(seq) = Keys::number(&own) {
            let length: &mut u64 = lengths.entry(Seq(seq)).or_default();
            *length = size.max(*length);
        }
    }
    lengths
}

/// Whether all that there is of a checkpoint is its first part.
fn is_torn_checkpoint(sealer: &crate::codec::seal::Sealer, seq: Seq, there: &Bytes) -> bool {
    match root::decode_checkpoint_and_total(sealer, seq, there) {
        Ok(Found::Whole((_, total))) => (there.len() as u64) < total,
        Ok(Found::NeedMore { .. }) => true,
        Err(_) => false,
    }
}
