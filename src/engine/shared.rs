//! What the tasks of an open volume share: the core under its lock, what does not change, the doors, and the ways to wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use crate::change::Numbered;
use crate::codec::seal::{Salt, Sealer};
use crate::device::DeviceError;
use crate::disk::Disk;
use crate::engine::below::Below;
use crate::engine::budget::{Budget, Seat};
use crate::engine::core::{Core, End, Now};
use crate::engine::deduplication::Dedup;
use crate::engine::digests::Digests;
use crate::engine::doomed::Doomed;
use crate::engine::following::Following;
use crate::engine::ledger::{Ledger, Rules};
use crate::engine::log::Log;
use crate::engine::options::Options;
use crate::engine::purse::{OwnAllowance, Purse};
use crate::engine::seen::{self, Seen};
use crate::engine::settings::{self, Tuned};
use crate::engine::unbroken::Line;
use crate::engine::versions::VersionMap;
use crate::engine::watched::Watched;
use crate::error::VolumeError;
use crate::format::account::Account;
use crate::format::keys::Keys;
use crate::format::meta::Meta;
use crate::format::root::CheckpointInfo;
use crate::format::segment::{Fence, Stamp};
use crate::journal::Journal;
use crate::keyring::Secrets;
use crate::outside::lock::{Held, Lock};
use crate::outside::{Clock, Random, Workers};
use crate::peer::standby::Standby;
use crate::peer::{copies, keeper};
use crate::reading::objects::Objects;
use crate::retention::Schedule;
use crate::store::Store;
use crate::store::health::Health;
use crate::store::meter::Meter;
use crate::store::tiers::TieredStore;
use crate::units::{BlockSize, ChangeNo, Epoch, Seq};

/// See the module.
#[derive(Debug)]
pub struct Shared {
    /// What does not change.
    pub facts: Facts,
    /// The ways out.
    pub doors: Doors,
    /// The ways to wait.
    pub waits: Waits,
    /// What its mirror is told.
    pub following: Following,
    /// Held for a few synchronous lines, never across an await.
    core: Lock<Core>,
    /// Bytes of the volume; changed only while the lock of the core is held.
    size: AtomicU64,
    /// What the newest description that we know says of it ([`Meta::keep_until_unix_millis`]).
    protected_until: AtomicU64,
    is_closing: AtomicBool,
    /// Settings of the volume that take effect when it is next opened.
    later: parking_lot::Mutex<Vec<String>>,
    /// Maps of versions that are kept, as far as they were read.
    pub version_maps: parking_lot::Mutex<BTreeMap<Seq, Arc<VersionMap>>>,
}

/// What is true of a volume for as long as it is open.
#[derive(Debug)]
pub struct Facts {
    /// Its description when it was opened; how large it is now and how it compresses may have changed since.
    pub meta: Meta,
    /// The unit of mapping.
    pub block_size: BlockSize,
    /// What the operator set, of the server and of the volume, when it was opened; [`Ledger::options`] knows what holds now.
    pub options: Options,
    /// The server's alone.
    pub configured: Options,
    /// Our fence, and where it stands in the log.
    pub fence: (Seq, Fence),
    /// Our epoch.
    pub epoch: Epoch,
    /// This server.
    pub server: Uuid,
    /// Since when nothing acknowledged was lost.
    pub line: Line,
    /// What the volume had cost before we opened it.
    pub account_before: Account,
}

/// Whatever the tasks of a volume ask for something.
#[derive(Debug)]
pub struct Doors {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same, for reads of collection and sweeping.
    pub background: Arc<dyn Store>,
    /// The store, if the log is in another one than the rest.
    pub tiers: Option<Arc<TieredStore>>,
    /// Where objects lie in it.
    pub keys: Keys,
    /// How they are sealed.
    pub sealer: Sealer,
    /// Frames and pages of the map.
    pub objects: Objects,
    /// Counts the requests of this volume.
    pub meter: Arc<Meter>,
    /// What is tried again just now.
    pub health: Health,
    /// What it may hold in memory.
    pub seat: Seat,
    /// What it may spend on requests.
    pub purse: Purse,
    /// What is stored already, if the volume is de-duplicated.
    pub(crate) dedup: Option<Arc<Dedup>>,
    /// The journal.
    pub journal: Journal,
    /// The peer that keeps a copy of the journal, if the volume is to have one and the server knows one.
    pub standby: OnceLock<Arc<Standby>>,
    /// As long as it is there, nobody else's copy of this volume's journal is taken here.
    pub held: parking_lot::Mutex<Option<keeper::Held>>,
    /// The journal's directory.
    pub disk: Arc<dyn Disk>,
    /// Wall time.
    pub clock: Clock,
    /// Randomness.
    pub random: Random,
    /// Threads that encode.
    pub workers: Workers,
    /// What unlocks the volume when its description changes.
    pub secrets: Secrets,
    /// Sees every change that is accepted.
    pub witness: Witness,
    /// Of a clone, until it is independent.
    pub(super) below: parking_lot::Mutex<Option<Below>>,
}

impl Doors {
    /// What a clone shows where it has nothing; nothing of other volumes.
    pub fn below(&self) -> Option<Below> {
        self.below.lock().clone()
    }
}

/// Told of every change in the order of acceptance, under the volume's lock: what an oracle needs that judges what a
/// recovery brought back. Servers have none.
#[derive(Clone, Default)]
pub struct Witness(pub Option<Arc<Tell>>);

type Tell = dyn Fn(&Numbered) + Send + Sync;

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness({})", if self.0.is_some() { "some" } else { "none" })
    }
}

/// What the tasks of a volume wait for.
#[derive(Debug)]
pub struct Waits {
    /// How far commits have come, and whether the volume has ended.
    pub progress: Watched<Progress>,
    /// There is something for the core to decide.
    pub wake: Notify,
    /// A range is no longer being completed, or accepting goes on after a pause.
    pub completed: Notify,
    /// A read ended.
    pub read_ended: Notify,
    /// A read lacked a page of the upper part of the map.
    pub upper_lacks: Notify,
    /// Flushes, and changes with FUA, that wait for the store or the journal.
    pub flushes: Count,
    /// Writes that wait until there is something to spend.
    pub held: Count,
    /// Whose turn it is to load pages to say what is known of a range: one at a time, however many clients ask.
    pub loading_for_extents: Semaphore,
    /// Whose turn it is to follow the description, or to change it.
    pub describing: Semaphore,
    /// Whose turn it is to note a size that is owed, or to remove what was noted.
    pub noting_size: tokio::sync::Mutex<()>,
    /// What [`Ledger::owed_size`] says.
    pub owed_size: Watched<Option<u64>>,
    /// Who changes the versions that are kept: one at a time, so that names stay unique.
    pub(super) changing_versions: tokio::sync::Mutex<()>,
    /// What the newest description that we know says of automatic snapshots.
    pub schedule: Watched<Option<Schedule>>,
}

/// How far the volume has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Every change up to this one is committed.
    pub covers: ChangeNo,
    /// So many changes of the versions that are kept are durable: see [`Ledger::change_versions`].
    pub versions: u64,
    /// Nothing is accepted or committed any more.
    pub end: Option<End>,
}

/// The parts that recovery hands over.
pub struct Parts {
    pub meta: Meta,
    pub description: u64,
    pub options: Options,
    pub configured: Options,
    pub allowance: OwnAllowance,
    pub fence: (Seq, Fence),
    pub fences_since: u32,
    pub line: Line,
    pub budget: Budget,
    pub store: Arc<dyn Store>,
    pub tiers: Option<Arc<TieredStore>>,
    pub keys: Keys,
    pub sealer: Sealer,
    pub objects: Objects,
    pub meter: Arc<Meter>,
    pub account_before: Account,
    pub journal: Journal,
    pub held: Option<keeper::Held>,
    pub disk: Arc<dyn Disk>,
    pub clock: Clock,
    pub random: Random,
    pub workers: Workers,
    pub secrets: Secrets,
    pub witness: Witness,
    pub below: Option<Below>,
    pub log: Log,
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
    pub doomed: Doomed,
    pub digests: Digests,
}

impl Shared {
    /// An open volume whose buffer may hold replayed changes already.
    pub fn new(parts: Parts) -> Shared {
        let Parts { meta, options, log, .. } = parts;
        let seat = parts.budget.seat(&options, log.dirty_bytes());
        let dedup = options.dedup.then(|| {
            Arc::new(Dedup::new(parts.random.bytes(), meta.block_size, options.dedup_run, parts.budget.dedup()))
        });
        let covers = log.covers();
        let now = Instant::now();
        let purse = parts.budget.purse().of_volume(parts.meter.clone(), parts.allowance, now);
        let rules = Rules {
            options: options.clone(),
            block_size: meta.block_size,
            fence: parts.fence.0,
            continues_at: parts.fence.1.continues_at,
            fences_since: parts.fences_since,
            sealer: parts.sealer.clone(),
        };
        let tuned = settings::tuned(&parts.configured, &meta.settings);
        let later =
            tuned.map_or_else(|_| Vec::new(), |tuned| settings::later(&options, &tuned.options.for_volume(meta.size)));
        let described = (parts.description, meta.compression);
        let schedule = Watched::new(meta.schedule.clone());
        let ledger = Ledger::new(rules, log, described, parts.checkpoints, (parts.doomed, parts.digests), now);
        Shared {
            size: AtomicU64::new(meta.size),
            protected_until: AtomicU64::new(meta.keep_until_unix_millis),
            is_closing: AtomicBool::new(false),
            later: parking_lot::Mutex::new(later),
            version_maps: parking_lot::Mutex::default(),
            following: Following::default(),
            core: Lock::new(Core::new(ledger, now)),
            facts: Facts {
                block_size: meta.block_size,
                meta,
                options,
                configured: parts.configured,
                epoch: parts.fence.1.epoch,
                server: parts.fence.1.server,
                fence: parts.fence,
                line: parts.line,
                account_before: parts.account_before,
            },
            doors: Doors {
                background: parts.store.background().unwrap_or_else(|| parts.store.clone()),
                store: parts.store,
                tiers: parts.tiers,
                keys: parts.keys,
                sealer: parts.sealer,
                objects: parts.objects,
                meter: parts.meter,
                health: Health::default(),
                seat,
                dedup,
                purse,
                journal: parts.journal,
                standby: OnceLock::new(),
                held: parking_lot::Mutex::new(parts.held),
                disk: parts.disk,
                clock: parts.clock,
                random: parts.random,
                workers: parts.workers,
                secrets: parts.secrets,
                witness: parts.witness,
                below: parking_lot::Mutex::new(parts.below),
            },
            waits: Waits {
                progress: Watched::new(Progress { covers, versions: 0, end: None }),
                wake: Notify::new(),
                completed: Notify::new(),
                read_ended: Notify::new(),
                upper_lacks: Notify::new(),
                flushes: Count::default(),
                held: Count::default(),
                loading_for_extents: Semaphore::new(1),
                describing: Semaphore::new(1),
                noting_size: tokio::sync::Mutex::default(),
                owed_size: Watched::new(None),
                changing_versions: tokio::sync::Mutex::default(),
                schedule,
            },
        }
    }

    /// The core, locked: for a few synchronous lines, never across an await.
    #[track_caller]
    pub fn core(&self) -> Held<'_, Core> {
        self.core.lock()
    }

    /// What the volume has and knows, under the same lock.
    #[track_caller]
    pub fn ledger(&self) -> Held<'_, Ledger> {
        Held::map(self.core.lock(), |core| &mut core.ledger)
    }

    /// What decisions are made by.
    pub fn now(&self) -> Now {
        let at = Instant::now();
        Now { at, map_memory: self.doors.seat.map_memory(), thrift: self.doors.purse.advice(at) }
    }

    /// A salt for a new object.
    pub fn salt(&self) -> Salt {
        self.doors.sealer.salt(self.doors.random.bytes())
    }

    /// What a segment that contains all changes up to `covers` says of itself.
    pub fn stamp(&self, covers: ChangeNo) -> Stamp {
        let compression = self.ledger().compression();
        Stamp { epoch: self.facts.epoch, server: self.facts.server, covers, compression }
    }

    /// Keeps on the local disk how far the volume is: `committed` is the last slot of the log. Failing is said, and
    /// weakens only the notice of a store that was put back.
    pub async fn remember(&self, committed: Seq) {
        let (covers, description) = {
            let ledger = self.ledger();
            (ledger.log().covers(), ledger.description())
        };
        let seen = Seen::new(self.facts.epoch, committed, covers, description, self.doors.sealer.seal());
        let seen = Seen { line: Some(self.facts.line.clone()), ..seen };
        if let Err(error) = seen::write(&self.doors.disk, &seen).await {
            tracing::warn!(volume = %self.facts.meta.name, "what was seen of it cannot be kept in {}: {error}", self.doors.disk.path());
        }
    }

    /// What this server kept for another one is of an epoch that is over. That it stays costs its room, and nothing else: no fence names it.
    pub async fn forget_copies(&self, left: Option<&copies::Copy>, keeps: bool) {
        if let Err(error) = copies::taken(&self.doors.disk, self.facts.epoch, left, keeps).await {
            let dir = self.doors.disk.path();
            tracing::warn!(volume = %self.facts.meta.name, "the copy of a journal in {dir} cannot be removed: {error}");
        }
    }

    /// Bytes of the volume as it is now.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// No snapshot is to be kept longer than until then, as far as the newest description goes that we know; in milliseconds since 1970.
    pub fn protected_until(&self) -> u64 {
        self.protected_until.load(Ordering::Acquire)
    }

    /// Takes over what a proven description says, but for its keys.
    pub fn adopt(&self, number: u64, meta: &Meta) -> Result<(), VolumeError> {
        // All of it, or nothing.
        let tuned = self.tuned(meta)?;
        {
            let mut ledger = self.ledger();
            ledger.adopt(number, meta).map_err(|beyond| {
                VolumeError::Invalid(format!(
                    "the description of volume {} says that it has {} bytes, but this server serves {} and what lies at byte {} \
                     was not given up: it goes on with the size that it has; make the volume as large again with `ashlar resize`",
                    self.facts.meta.name,
                    meta.size,
                    self.size(),
                    self.facts.block_size.offset_of(beyond),
                ))
            })?;
            self.size_changed(&ledger);
        }
        self.protected_until.store(meta.keep_until_unix_millis, Ordering::Release);
        self.waits.schedule.change(|schedule| schedule.clone_from(&meta.schedule));
        self.tune(tuned);
        self.following.changed();
        self.waits.wake.notify_one();
        Ok(())
    }

    /// Another size is served from here on, or another is owed.
    pub fn size_changed(&self, ledger: &Ledger) {
        self.size.store(ledger.size(), Ordering::Release);
        self.waits.owed_size.change(|owed| *owed = ledger.owed_size());
    }

    /// What holds for it by what its description sets.
    fn tuned(&self, meta: &Meta) -> Result<Tuned, VolumeError> {
        settings::tuned(&self.facts.configured, &meta.settings).map_err(|bad| {
            let name = &self.facts.meta.name;
            VolumeError::Invalid(format!(
                "this server goes on with what volume {name} was, and cannot open it anew: {bad}; set another value, or remove it with ashlar set {name} --unset KEY"
            ))
        })
    }

    /// Takes that over, as far as an open volume can.
    fn tune(&self, tuned: Tuned) {
        let Facts { options: open, .. } = &self.facts;
        self.doors.purse.set_own(tuned.allowance);
        let options = tuned.options.for_volume(self.facts.meta.size);
        *self.later.lock() = settings::later(open, &options);
        self.ledger().set_options(settings::at_once(open, &options));
    }

    /// The keys of those settings of its description that take effect when it is next opened.
    pub fn later(&self) -> Vec<String> {
        self.later.lock().clone()
    }

    /// Fails if the volume is closing or has ended.
    pub fn check_open(&self) -> Result<(), DeviceError> {
        if let Some(end) = &self.waits.progress.now().end {
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
        self.is_closing.store(true, Ordering::Release);
        self.core().begin_closing();
        self.waits.wake.notify_one();
    }

    /// See [`Core::leave_deletions`].
    pub fn leave_deletions(&self) {
        self.core().leave_deletions();
        self.waits.wake.notify_one();
    }

    /// Whether the volume is being closed.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Ends the volume: everybody who waits is told.
    pub fn end(&self, end: End) {
        self.waits.progress.change(|progress| progress.end = Some(end));
        self.doors.seat.close();
        self.waits.completed.notify_waiters();
    }

    /// Why nothing is accepted any more.
    pub fn end_error(&self) -> DeviceError {
        self.waits.progress.now().end.clone().unwrap_or(End::Closed).into()
    }

    /// Gives the room of committed changes back, but for as much as the journal still keeps in memory of what is committed (rule R6).
    /// Called again, with nothing, when that becomes less.
    pub fn give_back_room(&self, committed: u64) {
        let back = self.ledger().room_back(committed, self.doors.journal.kept_bytes());
        self.doors.seat.give_back(back);
    }

    /// Counts a writer as waiting for room until the guard is dropped.
    pub fn waiting_for_room(&self) -> impl Drop + '_ {
        struct Waiting<'a>(&'a Shared);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.ledger().end_waiting();
            }
        }
        self.ledger().begin_waiting();
        self.waits.wake.notify_one();
        Waiting(self)
    }

    /// The journal failed: it is begun anew when everything is committed.
    pub fn journal_suspended(&self) {
        if self.ledger().journal_failed(Instant::now()) {
            self.waits.wake.notify_one();
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
