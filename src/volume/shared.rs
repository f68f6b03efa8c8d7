//! What the tasks of an open volume share: the state under its lock, the doors, and the ways to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use crate::codec::frame::Compression;
use crate::codec::seal::{Salt, Sealer};
use crate::device::DeviceError;
use crate::disk::Disk;
use crate::journal::Journal;
use crate::keyring::{Keyring, Secrets};
use crate::map::{NeedPages, PageAt};
use crate::outside::{Clock, Random, Workers};
use crate::segment::{Fence, Stamp};
use crate::store::Store;
use crate::store::health::Health;
use crate::store::meter::Meter;
use crate::units::{BlockIndex, BlockSize, ChangeNo, Epoch, Seq};
use crate::volume::GcStatus;
use crate::volume::account::Account;
use crate::volume::ages::Ages;
use crate::volume::budget::{Budget, Seat};
use crate::volume::description::Description;
use crate::volume::error::VolumeError;
use crate::volume::keys::Keys;
use crate::volume::meta::Meta;
use crate::volume::objects::{LoadedPages, Objects, WantedPage};
use crate::volume::options::Options;
use crate::volume::recover::Witness;
use crate::volume::root::CheckpointInfo;
use crate::volume::seen::{self, Seen};
use crate::volume::state::State;
use crate::volume::unbroken::Line;
use crate::volume::watched::Watched;

/// See the module.
#[derive(Debug)]
pub struct Shared {
    /// Its description when it was opened; how large it is now and how it compresses may have changed since.
    pub meta: Meta,
    /// Bytes of the volume; changed only while the lock of `inner` is held.
    size: AtomicU64,
    pub block_size: BlockSize,
    pub options: Options,
    /// Our fence, and where it stands in the log.
    pub fence: (Seq, Fence),
    /// Fences in the log after the checkpoint that the opening began with; ours is one.
    pub fences_since: u32,
    /// Since when nothing acknowledged was lost.
    pub line: Line,
    pub epoch: Epoch,
    pub server: Uuid,
    pub store: Arc<dyn Store>,
    /// The same, for reads of collection and sweeping.
    pub background: Arc<dyn Store>,
    pub keys: Keys,
    pub sealer: Sealer,
    pub objects: Objects,
    /// Counts the requests of this volume.
    pub meter: Arc<Meter>,
    /// What the volume had cost before we opened it.
    pub account_before: Account,
    pub journal: Journal,
    /// The journal's directory.
    pub disk: Arc<dyn Disk>,
    pub clock: Clock,
    pub random: Random,
    pub workers: Workers,
    /// What unlocks the volume when its description changes.
    pub secrets: Secrets,
    pub witness: Witness,
    /// Held for a few synchronous lines, never across an await.
    pub inner: Mutex<Inner>,
    /// How far commits have come, and whether the volume has ended.
    pub progress: Watched<Progress>,
    /// What it may hold in memory.
    pub seat: Seat,
    /// What is tried again just now.
    pub health: Health,
    /// Flushes, and changes with FUA, that wait for the store or the journal.
    pub flushes: Count,
    /// Writers that wait for room.
    waiting: Count,
    closing: AtomicBool,
    /// There is something for the log task to decide.
    pub wake: Notify,
    /// A range is no longer being completed, or accepting goes on after a pause.
    pub completed: Notify,
    /// A read ended.
    pub read_ended: Notify,
    /// Whose turn it is to load pages to say what is known of a range: one at a time, however many clients ask.
    pub loading_for_extents: Semaphore,
    /// Whose turn it is to follow the description, or to change it.
    pub describing: Semaphore,
}

/// What the lock guards.
#[derive(Debug)]
pub struct Inner {
    pub state: State,
    /// The number of the newest description that we know.
    pub description: u64,
    /// Nothing is accepted at this block or later, although the volume may still be larger ([`super::resize`]).
    pub lowered: Option<BlockIndex>,
    /// The checkpoint objects that hold pages of the newest root.
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
    /// What is still to be deleted.
    pub doomed: Doomed,
    /// Bytes written and moved since the volume was opened; the meter has the requests.
    pub account: Account,
    /// How new frames are compressed.
    pub compression: Compression,
    /// Something may still be sealed with a rotated data key.
    pub may_reseal: bool,
    /// The next checkpoint that can is to begin a merge of all runs of the map.
    pub merge_all: bool,
    /// What garbage collection has done.
    pub gc: GcStatus,
    /// When a change was committed last.
    pub committed_at: Option<Instant>,
    /// Since when the oldest change waits in the buffer.
    pub active_since: Option<Instant>,
    /// When changes were accepted.
    pub ages: Ages,
    /// Since when a commit waits for a checkpoint.
    pub uncheckpointed_since: Option<Instant>,
    /// Room of committed changes that nobody gets yet, because the journal still keeps their records in memory.
    pub withheld: u64,
    /// Accepting pauses while a failed journal is begun anew.
    pub paused: bool,
    /// The journal failed; when to try it again.
    pub journal_retry: Option<Instant>,
}

/// Objects that nothing needs any more, as of the newest durable checkpoint.
#[derive(Debug, Default)]
pub struct Doomed {
    /// Dead segments.
    pub segments: BTreeSet<Seq>,
    /// Their bytes.
    pub bytes: u64,
    /// Checkpoint objects that hold no page of the map.
    pub checkpoints: BTreeSet<Seq>,
    /// The store did not delete them when it was asked last: nobody knows when they will go.
    pub is_stuck: bool,
}

impl Doomed {
    /// Whether nothing is to be deleted.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.checkpoints.is_empty()
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.segments.len() + self.checkpoints.len()
    }
}

/// How far the volume has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Every change up to this one is committed.
    pub covers: ChangeNo,
    /// Nothing is accepted or committed any more.
    pub end: Option<End>,
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

/// The parts that recovery hands over.
pub struct Parts {
    pub meta: Meta,
    pub description: u64,
    pub options: Options,
    pub fence: (Seq, Fence),
    pub fences_since: u32,
    pub line: Line,
    pub budget: Budget,
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub sealer: Sealer,
    pub objects: Objects,
    pub meter: Arc<Meter>,
    pub account_before: Account,
    pub journal: Journal,
    pub disk: Arc<dyn Disk>,
    pub clock: Clock,
    pub random: Random,
    pub workers: Workers,
    pub secrets: Secrets,
    pub witness: Witness,
    pub state: State,
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
    pub doomed: Doomed,
}

impl Shared {
    /// An open volume whose buffer may hold replayed changes already.
    pub fn new(parts: Parts) -> Shared {
        let replayed = parts.state.dirty_bytes();
        let seat = parts.budget.seat(&parts.options, replayed);
        let covers = parts.state.covers();
        let mut inner = Inner {
            state: parts.state,
            description: parts.description,
            lowered: None,
            checkpoints: parts.checkpoints,
            doomed: parts.doomed,
            committed_at: None,
            account: Account::default(),
            compression: parts.meta.compression,
            may_reseal: parts.sealer.keyring().is_some_and(Keyring::has_retired),
            merge_all: false,
            gc: GcStatus::default(),
            active_since: None,
            ages: Ages::default(),
            uncheckpointed_since: None,
            withheld: 0,
            paused: false,
            journal_retry: None,
        };
        inner.note_age();
        inner.note_commit();
        inner.ages.accepted(covers.next(), covers);
        Shared {
            block_size: parts.meta.block_size,
            size: AtomicU64::new(parts.meta.size),
            meta: parts.meta,
            options: parts.options,
            epoch: parts.fence.1.epoch,
            server: parts.fence.1.server,
            fence: parts.fence,
            fences_since: parts.fences_since,
            line: parts.line,
            background: parts.store.background().unwrap_or_else(|| parts.store.clone()),
            store: parts.store,
            keys: parts.keys,
            sealer: parts.sealer,
            objects: parts.objects,
            meter: parts.meter,
            account_before: parts.account_before,
            journal: parts.journal,
            disk: parts.disk,
            clock: parts.clock,
            random: parts.random,
            workers: parts.workers,
            secrets: parts.secrets,
            witness: parts.witness,
            inner: Mutex::new(inner),
            progress: Watched::new(Progress { covers, end: None }),
            seat,
            health: Health::default(),
            flushes: Count::default(),
            waiting: Count::default(),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
            completed: Notify::new(),
            read_ended: Notify::new(),
            loading_for_extents: Semaphore::new(1),
            describing: Semaphore::new(1),
        }
    }

    /// A salt for a new object.
    pub fn salt(&self) -> Salt {
        self.sealer.salt(self.random.bytes())
    }

    /// What a segment that contains all changes up to `covers` says of itself.
    pub fn stamp(&self, covers: ChangeNo) -> Stamp {
        let compression = self.inner.lock().compression;
        Stamp { epoch: self.epoch, server: self.server, covers, compression }
    }

    /// Keeps on the local disk how far the volume is: `committed` is the last slot of the log. Failing is said, and
    /// weakens only the notice of a store that was put back.
    pub async fn remember(&self, committed: Seq) {
        let (covers, description) = {
            let inner = self.inner.lock();
            (inner.state.covers(), inner.description)
        };
        let seen = Seen::new(self.epoch, committed, covers, description, self.sealer.seal());
        let seen = Seen { line: Some(self.line.clone()), ..seen };
        if let Err(error) = seen::write(&self.disk, &seen).await {
            tracing::warn!(volume = %self.meta.name, "what was seen of it cannot be kept in {}: {error}", self.disk.path());
        }
    }

    /// Bytes of the volume as it is now.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Takes over what a newer description says that was read and belongs to the volume: keys, compression, size.
    pub async fn follow(&self, description: &Description) -> Result<(), VolumeError> {
        if description.meta.uuid != self.meta.uuid {
            return Err(VolumeError::Invalid(format!("volume {} is another one now", self.meta.name)));
        }
        let known = self.inner.lock().description;
        if description.number < known {
            let what = format!("this server has its description {known}, and the store {}", description.number);
            return Err(VolumeError::RolledBack { name: self.meta.name.to_string(), what });
        }
        let sealer = description.unlock(&self.secrets).await?;
        match (self.sealer.keyring(), sealer.keyring()) {
            (Some(ours), Some(newer)) => ours.follow(newer),
            (None, None) => {}
            _ => return Err(VolumeError::Invalid(format!("volume {} cannot change its seal", self.meta.name))),
        }
        self.adopt(description.number, &description.meta)
    }

    /// Takes over what a proven description says, but for its keys.
    pub fn adopt(&self, number: u64, meta: &Meta) -> Result<(), VolumeError> {
        {
            let mut inner = self.inner.lock();
            inner.description = number;
            inner.compression = meta.compression;
            inner.may_reseal = self.sealer.keyring().is_some_and(Keyring::has_retired);
            inner.resize(self.block_size.block_of(meta.size)).map_err(|beyond| {
                VolumeError::Invalid(format!(
                    "the description of volume {} says that it has {} bytes, but this server serves {} and what lies at byte {} \
                     was not given up: it goes on with the size that it has; make the volume as large again with `ashlar resize`",
                    self.meta.name,
                    meta.size,
                    self.size(),
                    self.block_size.offset_of(beyond),
                ))
            })?;
            self.size.store(meta.size, Ordering::Release);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Fails if the volume is closing or has ended.
    pub fn check_open(&self) -> Result<(), DeviceError> {
        if let Some(end) = &self.progress.now().end {
            return Err(end.clone().into());
        }
        self.check_served()
    }

    /// Fails if the volume is being closed, or is closed: another server may have it then, and in it what is not known here.
    pub fn check_served(&self) -> Result<(), DeviceError> {
        if self.is_closing() { Err(DeviceError::ShuttingDown) } else { Ok(()) }
    }

    /// No more changes are accepted.
    pub fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether the volume is being closed.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Ends the volume: everybody who waits is told.
    pub fn end(&self, end: End) {
        self.progress.change(|progress| progress.end = Some(end));
        self.seat.close();
        self.completed.notify_waiters();
    }

    /// Why nothing is accepted any more.
    pub fn end_error(&self) -> DeviceError {
        self.progress.now().end.clone().unwrap_or(End::Closed).into()
    }

    /// Gives the room of committed changes back, but for as much as the journal still keeps in memory of what is committed (rule R6).
    /// Called again, with nothing, when that becomes less.
    pub fn give_back_room(&self, committed: u64) {
        let mut inner = self.inner.lock();
        inner.withheld += committed;
        let back = inner.withheld.saturating_sub(self.journal.kept_bytes());
        inner.withheld -= back;
        drop(inner);
        self.seat.give_back(back);
    }

    /// Counts a writer as waiting for room until the guard is dropped.
    pub fn waiting_for_room(&self) -> impl Drop + '_ {
        self.waiting.one_more()
    }

    /// Whether a writer waits for room.
    pub fn is_short_of_room(&self) -> bool {
        self.writers_waiting() > 0
    }

    /// Writers that wait for room.
    pub fn writers_waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The journal failed: the log task begins it anew when everything is committed.
    pub fn journal_suspended(&self) {
        let mut inner = self.inner.lock();
        if inner.journal_retry.is_none() {
            inner.journal_retry = Some(Instant::now() + super::write::JOURNAL_RETRY);
            self.wake.notify_one();
        }
    }
}

/// How many do something just now.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

impl Count {
    /// Counts one more until the guard is dropped.
    pub fn one_more(&self) -> impl Drop + '_ {
        struct One<'a>(&'a AtomicUsize);
        impl Drop for One<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        One(&self.0)
    }

    /// How many there are.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// The first block at which nothing is accepted.
    pub fn end(&self) -> BlockIndex {
        self.lowered.unwrap_or(self.state.map.volume().end())
    }

    /// The volume ends there from now on. Fails with the first block that would be cut off and that was not given up before.
    fn resize(&mut self, end: BlockIndex) -> Result<(), BlockIndex> {
        if end < self.end() {
            return Err(end);
        }
        self.state.map.resize(end - BlockIndex(0))?;
        self.lowered = None;
        Ok(())
    }

    /// Brings pages into the map. Whoever asked for them looks under the same lock: they may leave again after it.
    pub fn take_pages(&mut self, pages: LoadedPages) {
        for (at, page) in pages {
            self.state.map.page_loaded(at, page);
        }
    }

    /// Keeps `active_since` true; whether the buffer just became non-empty.
    pub fn note_age(&mut self) -> bool {
        if !self.state.has_active() {
            self.active_since = None;
            return false;
        }
        let began = self.active_since.is_none();
        if began {
            self.active_since = Some(Instant::now());
        }
        began
    }

    /// Keeps `uncheckpointed_since` true.
    pub fn note_commit(&mut self) {
        match self.state.needs_checkpoint() {
            true => drop(self.uncheckpointed_since.get_or_insert_with(Instant::now)),
            false => self.uncheckpointed_since = None,
        }
    }

    /// Bytes of objects that are still needed and sealed with a rotated data key.
    pub fn retired_bytes(&self, sealer: &Sealer) -> u64 {
        let segments = self.state.map.usage().iter().map(|(_, info)| (info.salt, info.live_bytes()));
        let bytes = |seq: &Seq| self.state.map.runs().iter().filter_map(|run| run.objects.get(seq)).sum::<u64>();
        let tables = self.checkpoints.iter().map(|(seq, info)| (info.salt, bytes(seq)));
        segments.chain(tables).filter(|(salt, _)| sealer.is_retired(salt)).map(|(_, bytes)| bytes).sum()
    }

    /// These pages and what is needed to read them. What a checkpoint has made needless meanwhile is left out: whoever asked for it
    /// looks again.
    pub fn wanted(&self, need: NeedPages) -> Vec<WantedPage> {
        let wanted = |page: PageAt| Some((page, *self.checkpoints.get(&page.at.checkpoint)?));
        need.0.into_iter().filter_map(wanted).collect()
    }
}
