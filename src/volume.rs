//! Volumes: a virtual disk whose changes are gathered into a log of immutable objects (LSVD, EuroSys 2022).
//!
//! This is the front: a [`Volume`] is a device that a server exports, and everything that a program may do with volumes has its name here. What is
//! behind it:
//!
//! ```text
//! opening ─→ upkeep ─→ engine ─→ reading ─→ map, format, cache, journal, store      (an arrow: may use)
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use uuid::Uuid;

use crate::cache::readahead::ReadAhead;
use crate::cache::{BlockCache, Purpose};
use crate::codec::frame::Compression;
use crate::codec::seal::Seal;
use crate::device::{Compared, Device, DeviceError, DeviceInfo, Pieces, Run, Version};
use crate::engine::core::End;
use crate::engine::prefetch::Prefetcher;
use crate::engine::shared::Shared;
use crate::engine::shell::{self, Upkeep};
use crate::engine::upper::Upper;
use crate::human::date;
use crate::journal;
use crate::opening::older::{self, Older};
use crate::opening::recover;
use crate::opening::scan::Source;
use crate::peer::keeper::Keeper;
use crate::reading::objects::LoadedPages;
use crate::retention::AUTOMATIC;
use crate::space::kept::{self, Change, name_by_time};
use crate::space::{CloneRef, KeptVersion, Label};
use crate::store::health::Trouble;
use crate::store::meter::Meter;
use crate::tally::{Tallied, Tally};
use crate::units::{BlockCount, ChangeNo, Epoch};
use crate::upkeep::{self, sweep};

mod cooling;
mod copies;
mod gone_clones;
mod locking;
mod log_moving;
mod mirror;
mod schedule;
mod standby;

use cooling::CoolingTask;
use gone_clones::CloneWatch;
use locking::Locker;
use mirror::Mirroring;
use schedule::Scheduler;
use standby::StandingBy;

pub use crate::engine::Witness;
pub use crate::engine::budget::{self, Budget};
pub use crate::engine::deduplication::DedupStatus;
pub use crate::engine::ledger::GcStatus;
pub use crate::engine::options::Options;
pub use crate::engine::purse::{self, Purse};
pub use crate::engine::settings;
pub use crate::error::{Holder, VolumeError};
pub use crate::format::account::Account;
pub use crate::format::meta::{BadSize, FencedBy, Meta, Settings, VolumeName};
pub use crate::opening::{
    CreateOptions, Created, HolderInfo, Info, NewEncryption, OpenFlags, Outside, Past, ServerIdentity, clones, create,
    delete, description, inspect, key_slots, names, past, resize,
};
pub use crate::peer::standby::{Link, Peered, WaitsFor};
pub use crate::upkeep::sweep::Swept;
pub use cooling::NearStatus;
pub use copies::Copied;
pub use locking::Locked;
pub use mirror::{Mirror, Mirrored, Standing};
pub use schedule::Scheduled;

/// An open volume. Dropping it without [`Volume::close`] is what a crash is: the journal keeps the rest.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    log: AbortHandle,
    closing: Closing,
    ahead: Mutex<ReadAhead>,
    prefetcher: Prefetcher,
    _upper: Upper,
    operations: Operations,
    /// When it was opened, until that was told.
    opened: Mutex<Option<Instant>>,
    schedule: Scheduler,
    locker: Locker,
    mirroring: Mirroring,
    cooling: CoolingTask,
    standing_by: StandingBy,
    _clones: CloneWatch,
    /// How far it was when it was last asked to become independent, if that is not done.
    detaching: Mutex<Option<clones::Detaching>>,
    /// The versions that it was compared with.
    older: Older,
}

/// What stands beside a volume that is opened.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// A second store that gets what is committed. Whether that can be reached makes no difference to anything else.
    pub mirror: Option<Mirror>,
    /// The peer that keeps a copy of its journal, if its durability asks for one.
    pub peer: Option<Link>,
    /// What takes copies of other servers' journals here: nothing of this volume's from now on.
    pub keeper: Option<Keeper>,
}

/// Refuses what cannot be the name of a snapshot that somebody takes by hand.
fn check_name(name: &str) -> Result<(), VolumeError> {
    if let Err(bad) = VolumeName::new(name) {
        return Err(VolumeError::Invalid(format!("a snapshot cannot be named so: {bad}")));
    }
    match name.starts_with(AUTOMATIC) {
        true => Err(VolumeError::Invalid(format!(
            "a snapshot cannot be named {name:?}: names that begin with {AUTOMATIC:?} are of automatic snapshots, which go by themselves; choose another"
        ))),
        false => Ok(()),
    }
}

/// Refuses a time until when a snapshot is to be kept that is over.
fn check_until(until_unix_millis: u64, now_unix_millis: u64) -> Result<(), VolumeError> {
    match until_unix_millis > now_unix_millis {
        true => Ok(()),
        false => Err(VolumeError::Invalid(format!(
            "a snapshot cannot be kept until {}, which is over: give a time to come",
            date(until_unix_millis)
        ))),
    }
}

/// What clients asked of a volume since it was opened.
#[derive(Debug, Default)]
struct Operations {
    read: Tally,
    write: Tally,
    flush: Tally,
    trim: Tally,
    write_zeroes: Tally,
    cache: Tally,
    block_status: Tally,
}

/// The end of a volume, for everybody who closes it. One of them waiting is enough for all to get on.
type Closing = futures::future::Shared<BoxFuture<'static, Result<(), DeviceError>>>;

/// What an open volume is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of its blocks: a size is a whole number of them.
    #[serde(default)]
    pub block_size: u32,
    /// Whether its description in the store does not say that size yet: it became larger while the store did not answer.
    #[serde(default)]
    pub size_owed: bool,
    /// How it is de-duplicated, if it is.
    #[serde(default)]
    pub dedup: Option<DedupStatus>,
    /// Bytes accepted and not yet in the store.
    pub dirty_bytes: u64,
    /// As many there may be; at the bound writers wait.
    #[serde(default)]
    pub dirty_bound: u64,
    /// How long the oldest of those has waited, in milliseconds, a second too long at most; 0 if there is none.
    #[serde(default)]
    pub dirty_millis: u64,
    /// The last accepted change.
    pub accepted: u64,
    /// The last committed change.
    pub committed: u64,
    /// The epoch that our fence began.
    pub epoch: u64,
    /// Bytes of the extent map in memory.
    pub map_memory: u64,
    /// FLUSHes, and changes with FUA, that wait until everything before them is stable.
    pub flushes_waiting: u64,
    /// Writes that wait for room among the dirty bytes.
    #[serde(default)]
    pub writes_waiting: u64,
    /// Writes that wait because a budget is spent.
    #[serde(default)]
    pub writes_held: u64,
    /// Segments that are under way to the store, or are there and wait for an earlier one.
    #[serde(default)]
    pub uploads: u64,
    /// Bytes of changes in them, as the client wrote them.
    #[serde(default)]
    pub upload_bytes: u64,
    /// Bytes of the journal's files that hold changes.
    #[serde(default)]
    pub journal_bytes: u64,
    /// Why the journal takes no changes just now, if it does not: then a write waits for the store.
    #[serde(default)]
    pub journal_suspended: Option<String>,
    /// Attempts of this volume's own to reach the store that failed and were followed by another, since it was opened.
    #[serde(default)]
    pub retries: u64,
    /// Why the volume has ended, if it has.
    pub ended: Option<String>,
    /// Bytes that hold data, by the map of what is committed.
    pub mapped_bytes: u64,
    /// Bytes of its objects in the store.
    pub stored_bytes: u64,
    /// Of those, bytes of what is live.
    pub live_bytes: u64,
    /// Of those, bytes of segments in which nothing is live: deleted after the next checkpoint.
    pub dead_bytes: u64,
    /// Of those, dead bytes in segments that are partly live.
    pub sparse_bytes: u64,
    /// Segments and checkpoints in the store.
    pub objects: u64,
    /// Snapshots that are kept.
    #[serde(default)]
    pub snapshots: u64,
    /// When the newest of them was taken, in milliseconds since 1970; 0 if there is none.
    #[serde(default)]
    pub newest_snapshot_unix_millis: u64,
    /// Bytes, before compression, that the volume needs no more and that one does.
    #[serde(default)]
    pub newest_snapshot_held_bytes: u64,
    /// Bytes, before compression, that the volume needs no more and that snapshots, or what is kept for clones, do; absent until all of that was read once.
    #[serde(default)]
    pub snapshots_held_bytes: Option<u64>,
    /// Its clones, those of all its versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clones: Vec<String>,
    /// Bytes, before compression, that neither the volume nor a snapshot needs which anybody can name, and that clones do; absent until all of that was read once.
    #[serde(default)]
    pub clones_held_bytes: Option<u64>,
    /// How its objects are sealed.
    pub seal: Seal,
    /// How new frames are compressed.
    pub compression: Compression,
    /// Bytes of live objects that are still sealed with a rotated data key.
    pub retired_bytes: u64,
    /// Garbage collection.
    pub gc: GcStatus,
    /// What it has cost since it was opened here.
    pub since_open: Account,
    /// And since it was created.
    pub since_creation: Account,
}

impl Volume {
    /// Takes the volume for this server and makes it ready: see [`recover`]. The caller holds the lock of the journal's
    /// directory, and has probed that the store honours create-only PUT (rule R4).
    pub async fn open(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        Volume::open_with(outside, name, options, journal_options, flags, None).await
    }

    /// As [`Volume::open`], with a second store that gets what is committed, if there is one. Whether that can be reached makes no difference to
    /// anything else.
    pub async fn open_with(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        flags: OpenFlags,
        mirror: Option<Mirror>,
    ) -> Result<Arc<Volume>, VolumeError> {
        let beside = Beside { mirror, ..Beside::default() };
        Volume::open_beside(outside, name, options, journal_options, flags, beside).await
    }

    /// As [`Volume::open`], with what stands beside it.
    pub async fn open_beside(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        flags: OpenFlags,
        Beside { mirror, peer, keeper }: Beside,
    ) -> Result<Arc<Volume>, VolumeError> {
        options.check()?;
        let cache = outside.cache.clone();
        let opened = Box::pin(recover::open_as_keeper(outside, name, options, journal_options, flags, keeper)).await?;
        Ok(Volume::start(Arc::new(opened), &cache, mirror, peer))
    }

    /// Makes a snapshot the newest state of a volume that nobody has; what was newest is kept as a snapshot with that label, and named by its time
    /// without a name. Returns that one. The size stays; a volume that is smaller than the snapshot is refused. What an attached device had
    /// is gone: none goes on with the volume.
    pub async fn roll_back(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        flags: OpenFlags,
        to: (&str, Label),
    ) -> Result<KeptVersion, VolumeError> {
        Volume::roll_back_with(outside, name, options, journal_options, flags, to, None).await
    }

    /// As [`Volume::roll_back`], with a second store as in [`Volume::open_with`].
    pub async fn roll_back_with(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        flags: OpenFlags,
        (snapshot, before): (&str, Label),
        mirror: Option<Mirror>,
    ) -> Result<KeptVersion, VolumeError> {
        let (first, outside_first) = (mirror.clone(), outside.clone());
        let volume =
            Volume::open_with(outside_first, name, options.clone(), journal_options.clone(), flags, first).await?;
        let kept = volume.keep_before_rollback(snapshot, before).await;
        volume.close().await?;
        let (kept, covers) = kept?;
        let cache = outside.cache.clone();
        let flags = OpenFlags { breaks_line: true, ..OpenFlags::default() };
        let shared = Arc::new(recover::open(outside, name, options, journal_options, flags).await?);
        let done = back_to(&shared, snapshot, &kept, covers).await;
        // It is what it was, or what it is to be: closed in good order.
        Volume::start(shared, &cache, mirror, None).close().await?;
        done.map(|()| kept)
    }

    /// Keeps what is newest, unless it cannot be rolled back to that snapshot. Returns the last change in it, too.
    async fn keep_before_rollback(
        &self,
        snapshot: &str,
        before: Label,
    ) -> Result<(KeptVersion, ChangeNo), VolumeError> {
        let versions = self.snapshots();
        let version = past::named(&versions, &self.meta().name, snapshot)?;
        let (needs, has) = (self.shared.facts.block_size.bytes_in(version.blocks), self.shared.size());
        if needs > has {
            return Err(VolumeError::Invalid(format!(
                "volume {name} has {has} bytes, and its snapshot {snapshot} {needs}: make it as large first, with ashlar resize {name} {needs}",
                name = self.meta().name
            )));
        }
        let kept = self.take_snapshot(before).await?;
        let covers = self.shared.ledger().log().covers();
        Ok((kept, covers))
    }

    /// Whether a version that somebody can name has that number.
    fn has_version(&self, number: u64) -> bool {
        let ledger = self.shared.ledger();
        let mut kept = ledger.log().map.space().durable().kept.iter();
        kept.any(|version| version.seq.0 == number && !version.label.is_hidden())
    }

    /// What reads it as it stands in the store.
    fn source(&self) -> Source {
        let Shared { facts, doors, .. } = &*self.shared;
        Source {
            store: doors.store.clone(),
            keys: doors.keys.clone(),
            meta: facts.meta.clone(),
            description: self.shared.ledger().description(),
            sealer: doors.sealer.clone(),
            objects: doors.objects.clone(),
            tiers: doors.tiers.clone(),
        }
    }

    fn start(shared: Arc<Shared>, cache: &BlockCache, mirror: Option<Mirror>, peer: Option<Link>) -> Arc<Volume> {
        // Before anything is accepted.
        let standing_by = StandingBy::start(shared.clone(), peer);
        // Before anything is deleted.
        let mirroring = Mirroring::start(shared.clone(), mirror);
        let does = Upkeep { chore: upkeep::perform, describe: |shared| resize::describe(shared).boxed() };
        let log = tokio::spawn(shell::run(shared.clone(), does));
        let ahead =
            ReadAhead::new(shared.facts.meta.size, shared.facts.options.read_ahead, cache.memory_size() / AHEAD_PART);
        let ahead = Mutex::new(ahead);
        let prefetcher = Prefetcher::start(shared.clone());
        let upper = Upper::of_volume(shared.clone());
        let abort = log.abort_handle();
        let closing = until_closed(log, shared.clone()).boxed().shared();
        let operations = Operations::default();
        let (schedule, locker) = (Scheduler::start(shared.clone()), Locker::start(shared.clone()));
        let clones = CloneWatch::start(shared.clone());
        let cooling = CoolingTask::start(shared.clone());
        Arc::new(Volume {
            shared,
            log: abort,
            closing,
            ahead,
            prefetcher,
            _upper: upper,
            operations,
            opened: Mutex::new(Some(Instant::now())),
            schedule,
            locker,
            mirroring,
            cooling,
            standing_by,
            _clones: clones,
            detaching: Mutex::default(),
            older: Older::default(),
        })
    }

    /// The clean stop: no more changes, everything committed, a checkpoint, a close entry, an empty journal. Waits as
    /// long as the store takes; giving up on it loses nothing that was acknowledged. Whoever closes it as well waits for the same end.
    pub async fn close(&self) -> Result<(), VolumeError> {
        self.shared.begin_closing();
        self.closing.clone().await?;
        self.standing_by.settled().await;
        self.mirroring.settled().await;
        Ok(())
    }

    /// From now on [`Volume::close`] does not wait until dead objects are deleted; whoever opens the volume next deletes them.
    pub fn leave_deletions(&self) {
        self.mirroring.leave();
        self.shared.leave_deletions();
    }

    /// Takes over what is new in its description: key slots, a new data key, compression, settings, a greater size.
    pub async fn reload(&self) -> Result<(), VolumeError> {
        let reloaded = self.shared.reload().await;
        self.ahead.lock().resize(self.shared.size());
        reloaded
    }

    /// The keys of those of its settings that take effect when it is next opened.
    pub fn later_settings(&self) -> Vec<String> {
        self.shared.later()
    }

    /// Brings everything that was accepted into the store, whatever a FLUSH waits for. It goes on serving meanwhile.
    pub async fn save(&self) -> Result<(), VolumeError> {
        let last = self.shared.ledger().log().last();
        Ok(self.shared.committed(last).await?)
    }

    /// Makes it larger, at once; whether the store knows that within `patience`. Else the server goes on telling it. See [`growth`](crate::engine::growth).
    pub async fn grow(&self, size: u64, patience: Duration) -> Result<bool, VolumeError> {
        self.shared.grow(size).await?;
        self.ahead.lock().resize(self.shared.size());
        let described = self.shared.waits.owed_size.wait_for(Option::is_none);
        Ok(tokio::time::timeout(patience, described).await.is_ok())
    }

    /// Makes it smaller; data beyond the new end is lost with `discard_data`, and else a reason to refuse. See [`resize`].
    pub async fn shrink(&self, size: u64, discard_data: bool) -> Result<(), VolumeError> {
        let shrunk = self.shared.shrink(size, discard_data).await;
        self.ahead.lock().resize(self.shared.size());
        shrunk
    }

    /// Keeps the volume as it is now, with everything that was accepted before: one checkpoint. Without a name it is named by its time.
    /// Fails if the volume has a snapshot of that name.
    pub async fn take_snapshot(&self, mut label: Label) -> Result<KeptVersion, VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        let versions = self.shared.versions();
        let is_taken = |name: &str| versions.iter().any(|version| version.label.name == name);
        if label.name.is_empty() {
            label.name = name_by_time(label.taken_unix_millis, is_taken);
        }
        check_name(&label.name)?;
        let until = label.keep_until_unix_millis;
        if until > 0 {
            check_until(until, label.taken_unix_millis)?;
        }
        if is_taken(&label.name) {
            let why = format!("volume {} has a snapshot {:?} already", self.meta().name, label.name);
            return Err(VolumeError::Invalid(why));
        }
        let most = self.shared.ledger().options().max_snapshots;
        if kept::shown(&versions) >= most {
            return Err(VolumeError::Invalid(schedule::too_many(&self.meta().name, most)));
        }
        self.shared.protect_until(until, until).await?;
        let name = label.name.clone();
        self.shared.keep(label, BTreeSet::new()).await?;
        past::named(&self.shared.versions(), &self.meta().name, &name).cloned()
    }

    /// Keeps what was copied, with the label that it has where it comes from.
    async fn keep_copied(&self, label: Label) -> Result<KeptVersion, VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        let most = self.shared.ledger().options().max_snapshots;
        if kept::shown(&self.shared.versions()) >= most {
            return Err(VolumeError::Invalid(schedule::too_many(&self.meta().name, most)));
        }
        let name = label.name.clone();
        self.shared.keep(label, BTreeSet::new()).await?;
        past::named(&self.shared.versions(), &self.meta().name, &name).cloned()
    }

    /// Lets a snapshot go: what only it needs is deleted. One that clones need has no name from then on, and goes after them: returns
    /// their names. Fails if it is to be kept until later.
    pub async fn delete_snapshot(&self, name: &str) -> Result<Vec<String>, VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        let versions = self.shared.versions();
        let version = past::named(&versions, &self.meta().name, name)?;
        let clones = self.shared.drop_or_hide(version).await?;
        if let Err(error) = self.shared.forget_gone_clones(Label::is_hidden).await {
            tracing::warn!(volume = %self.meta().name, "what is kept for clones that are gone is not let go yet: {error}");
        }
        Ok(clones.into_iter().map(|clone| clone.name).collect())
    }

    /// Has a version of it stay for a clone that is to be made ([`clones`]): that snapshot, or a new version that nobody can name.
    pub async fn register_clone(
        &self,
        snapshot: Option<&str>,
        now_unix_millis: u64,
        clone: CloneRef,
    ) -> Result<KeptVersion, VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        self.shared.register_clone(snapshot, now_unix_millis, clone).await
    }

    /// Makes a clone independent of its parent, while it is served: from that byte on, and for that time at most. Returns how far it is, if it is
    /// not done: it is to be asked for again then. What breaks off goes on where it was. Fails if it has snapshots: they show the parent.
    pub async fn detach(&self, from: u64, within: Duration) -> Result<Option<clones::Detaching>, VolumeError> {
        let far = self.shared.detach(from, within).await?;
        *self.detaching.lock() = far;
        Ok(far)
    }

    /// How far it was when it was last asked to become independent, since it was opened here; nothing if that is done.
    pub fn detaching(&self) -> Option<clones::Detaching> {
        *self.detaching.lock()
    }

    /// Lets go what is kept for this clone only, if that is gone, or independent.
    pub async fn forget_gone_clone(&self, clone: Uuid) -> Result<(), VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        self.shared.forget_gone_clones(|label| label.clones.iter().any(|known| known.uuid == clone)).await
    }

    /// Gives a snapshot another name.
    pub async fn rename_snapshot(&self, name: &str, to: &str) -> Result<(), VolumeError> {
        check_name(to)?;
        let _turn = self.shared.versions_turn().await?;
        let versions = self.shared.versions();
        let version = past::named(&versions, &self.meta().name, name)?;
        if versions.iter().any(|version| version.label.name == to) {
            return Err(VolumeError::Invalid(format!("volume {} has a snapshot {to:?} already", self.meta().name)));
        }
        let label = Label { name: to.into(), ..version.label.clone() };
        let relabel = [(version.seq, label)].into();
        self.shared.change_versions(Change { relabel, ..Change::default() }).await
    }

    /// Has a snapshot kept until then, in milliseconds since 1970: nobody deletes it before. Fails if it is to be kept until later already.
    pub async fn keep_snapshot_until(&self, name: &str, until_unix_millis: u64) -> Result<(), VolumeError> {
        let _turn = self.shared.versions_turn().await?;
        let versions = self.shared.versions();
        let version = past::named(&versions, &self.meta().name, name)?;
        if version.label.keep_until_unix_millis == until_unix_millis {
            return Ok(());
        }
        check_until(until_unix_millis, self.shared.doors.clock.unix_millis())?;
        self.shared.protect_until(until_unix_millis, until_unix_millis).await?;
        let label = Label { keep_until_unix_millis: until_unix_millis, ..version.label.clone() };
        let relabel = [(version.seq, label)].into();
        self.shared.change_versions(Change { relabel, ..Change::default() }).await
    }

    /// What its schedule does, if it has one.
    pub fn scheduled(&self) -> Option<Scheduled> {
        self.schedule.scheduled()
    }

    /// How far its mirror is, if it has one.
    pub fn mirrored(&self) -> Option<Mirrored> {
        self.mirroring.mirrored()
    }

    /// What of its log is in a store of its own; nothing if it has none there.
    pub fn near(&self) -> Option<NearStatus> {
        self.cooling.status()
    }

    /// How far what snapshots need that are kept until a date is locked in the store, if it is to be and the store can.
    pub fn locked(&self) -> Option<Locked> {
        self.locker.locked()
    }

    /// Waits until all of that is locked. Fails if that does not go on: it is tried again all the same, as long as the volume is open.
    pub async fn settle_locks(&self) -> Result<(), VolumeError> {
        self.locker.settled().await
    }

    /// The snapshots that are kept, oldest first.
    pub fn snapshots(&self) -> Vec<KeptVersion> {
        self.shared.versions()
    }

    /// Deletes the objects of its folder that belong to nobody, at once.
    pub async fn sweep(&self) -> Result<Swept, VolumeError> {
        sweep::sweep_now(&self.shared).await.map_err(|failed| match failed {
            sweep::Failed::Store(source) => VolumeError::Store { doing: "sweeping".into(), source },
            sweep::Failed::Ended(end) => DeviceError::from(end).into(),
        })
    }

    /// Pages of its map that are in a format before the layers, and one more if all of its table of segments stands in a root.
    pub fn older_pages(&self) -> u64 {
        let ledger = self.shared.ledger();
        let older = ledger.log().map.runs().iter().filter(|run| run.kind == crate::map::PageKind::Fixed);
        older.map(|run| run.pages.len() as u64).sum::<u64>() + u64::from(ledger.log().map.space().is_in_root())
    }

    /// Has all runs of its map merged, with the next checkpoints.
    pub fn merge_map(&self) {
        self.shared.ledger().merge_map();
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let Shared { facts, doors, waits, .. } = &*self.shared;
        let (lists, since) = self.shared.ledger().log().map.space().newly_held();
        let held = since + lists.iter().map(|list| list.blocks()).sum::<u64>();
        let mut ledger = self.shared.ledger();
        let oldest = ledger.oldest_dirty(tokio::time::Instant::now());
        let size_owed = ledger.owed_size().is_some();
        let ended = waits.progress.now().end.clone();
        let log = ledger.log();
        let totals = log.map.space().totals();
        let held_by_all = log.map.space().held_by_versions();
        let held_for_clones = log.map.space().held_for_clones();
        let kept = &log.map.space().durable().kept;
        let clones = kept.iter().flat_map(|version| &version.label.clones).map(|clone| clone.name.clone()).collect();
        let newest = kept.iter().rfind(|version| !version.label.is_hidden());
        let pages: u64 = log.map.runs().iter().flat_map(|run| run.objects.values()).sum();
        let references = log.map.space().references();
        let referring = (references.iter().count() as u64, references.target_count() as u64);
        let dedup = doors.dedup.as_ref().map(|dedup| dedup.status(referring));
        let since_open = ledger.account().with_requests(&doors.meter.snapshot());
        Status {
            size: self.shared.size(),
            block_size: facts.block_size.bytes(),
            size_owed,
            dedup,
            seal: doors.sealer.seal(),
            compression: ledger.compression(),
            retired_bytes: ledger.retired_bytes(),
            mapped_bytes: facts.block_size.bytes_in(BlockCount(totals.live_blocks)),
            stored_bytes: totals.stored_bytes + pages + log.map.space().durable().bytes(),
            live_bytes: totals.live_bytes,
            dead_bytes: totals.dead_bytes,
            sparse_bytes: totals.sparse_bytes(),
            snapshots: kept::shown(kept),
            newest_snapshot_unix_millis: newest.map_or(0, |version| version.label.taken_unix_millis),
            newest_snapshot_held_bytes: facts.block_size.bytes_in(BlockCount(held)),
            snapshots_held_bytes: held_by_all.map(|blocks| facts.block_size.bytes_in(BlockCount(blocks))),
            clones,
            clones_held_bytes: held_for_clones.map(|blocks| facts.block_size.bytes_in(BlockCount(blocks))),
            objects: totals.objects + ledger.checkpoint_objects() as u64,
            gc: GcStatus {
                backlog_bytes: crate::gc::excess(&totals, &ledger.options().gc, crate::gc::Activity::Quiet),
                doomed_objects: ledger.doomed().len() as u64,
                ..ledger.gc()
            },
            since_open,
            since_creation: facts.account_before.plus(&since_open),
            dirty_bytes: log.dirty_bytes(),
            dirty_bound: facts.options.dirty_bytes,
            dirty_millis: oldest.as_millis() as u64,
            accepted: log.last().0,
            committed: log.covers().0,
            epoch: facts.epoch.0,
            map_memory: log.map.memory() as u64,
            flushes_waiting: waits.flushes.get() as u64,
            writes_waiting: ledger.writers_waiting() as u64,
            writes_held: waits.held.get() as u64,
            uploads: log.uploading() as u64,
            upload_bytes: log.uploading_bytes(),
            journal_bytes: doors.journal.stored_bytes(),
            journal_suspended: doors.journal.progress().suspended,
            retries: doors.health.failed_attempts(),
            ended: ended.map(|end| DeviceError::from(end).to_string()),
        }
    }

    /// How it stands to its peer, if its durability asks for one.
    pub fn peered(&self) -> Option<Peered> {
        self.standing_by.peered()
    }

    /// Bytes that its map takes.
    pub fn map_memory(&self) -> u64 {
        self.shared.ledger().log().map.memory() as u64
    }

    /// Lets go of what its map keeps beyond its part, as when it is asked for something.
    pub fn let_map_go(&self) {
        let part = self.shared.doors.seat.map_memory();
        self.shared.ledger().with_pages(LoadedPages::default(), part, |_| ());
    }

    /// What clients asked of it since it was opened, by the names that operations have in metrics.
    pub fn operations(&self) -> [(&'static str, Tallied); 7] {
        let Operations { read, write, flush, trim, write_zeroes, cache, block_status } = &self.operations;
        [
            ("read", read.snapshot()),
            ("write", write.snapshot()),
            ("flush", flush.snapshot()),
            ("trim", trim.snapshot()),
            ("write_zeroes", write_zeroes.snapshot()),
            ("cache", cache.snapshot()),
            ("block_status", block_status.snapshot()),
        ]
    }

    /// For how long it has been open; told once, to whoever says that it is closed, as several may close it.
    pub fn was_open_for(&self) -> Option<Duration> {
        self.opened.lock().take().map(|opened| opened.elapsed())
    }

    /// What is left of what it may spend on requests, by bound; what its server may spend is the server's.
    pub fn left_to_spend(&self) -> Vec<purse::Left> {
        self.shared.doors.purse.left(tokio::time::Instant::now())
    }

    /// What it asked of the store since it was opened.
    pub fn store_requests(&self) -> &Meter {
        &self.shared.doors.meter
    }

    /// What it tries again and again just now, if anything fails.
    pub fn trouble(&self) -> Option<Trouble> {
        self.shared.doors.health.trouble()
    }

    /// The epoch in which it is open here, what no other opening has in common with this one, and the first epoch of which every
    /// acknowledged change is here: see [`crate::engine::unbroken`].
    pub fn line(&self) -> (Epoch, Uuid, Epoch) {
        (self.shared.facts.epoch, self.shared.facts.fence.1.journal, Epoch(self.shared.facts.line.since))
    }

    /// Its description when it was opened; [`Volume::status`] knows its size and compression as they are now.
    pub fn meta(&self) -> &Meta {
        &self.shared.facts.meta
    }
}

/// Waits for the end of the shell, and lets go of the journal.
async fn until_closed(log: JoinHandle<Result<(), End>>, shared: Arc<Shared>) -> Result<(), DeviceError> {
    let ended = log.await;
    if !matches!(ended, Ok(Ok(()))) {
        // Whoever opens the volume next must not meet a journal that still makes or removes files, whoever still holds this
        // volume. What is queued in it is written first; that it fails has been said.
        drop(shared.doors.journal.close().await);
    }
    // Another server may have its copy kept here again.
    drop(shared.doors.held.lock().take());
    match ended {
        Ok(ended) => ended.map_err(DeviceError::from),
        Err(_) => Err(DeviceError::Io("the shell has died".into())),
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if !self.shared.is_closing() {
            self.log.abort();
        }
    }
}

/// The part of the cache's memory that all streams of a volume together may be ahead: what is fetched ahead must still be
/// there when it is read.
const AHEAD_PART: u64 = 4;

/// Bytes of an NBD CACHE request that are fetched at once.
const CACHE_PIECE: u64 = 8 << 20;

#[async_trait]
impl Device for Volume {
    fn info(&self) -> DeviceInfo {
        let meta = &self.shared.facts.meta;
        DeviceInfo { size: self.shared.size(), block_size: meta.block_size.bytes(), read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        self.shared.check_served()?;
        let advice = {
            let mut ahead = self.ahead.lock();
            ahead.set_budget(self.shared.doors.objects.cache_memory() / AHEAD_PART);
            ahead.read(offset, u64::from(len), |range| self.shared.written_together(range))
        };
        if let Some(range) = advice.ahead {
            self.prefetcher.want(range);
        }
        let purpose = if advice.in_stream { Purpose::Stream } else { Purpose::Read };
        self.operations.read.record(len.into(), self.shared.read(offset, u64::from(len), purpose)).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.operations.write.record(data.len() as u64, self.shared.write(offset, data, fua)).await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), DeviceError> {
        self.operations.trim.record(len, self.shared.trim(offset, len, fua)).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), DeviceError> {
        self.operations.write_zeroes.record(len, self.shared.write_zeroes(offset, len, no_hole, fua)).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.operations.flush.record(0, self.shared.flush()).await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.shared.check_served()?;
        // In pieces that may go before they are all there; a hint is no reason to hold the whole range in memory.
        let end = offset + len;
        let fetch = async {
            for start in (offset..end).step_by(CACHE_PIECE as usize) {
                // As much as a client's requests that are under way together may bring, so that the disk gets it all.
                self.shared.doors.objects.wait_for_room(4 * CACHE_PIECE).await;
                self.shared.prefetch(start, CACHE_PIECE.min(end - start), CACHE_PIECE / 2).await?;
            }
            Ok(())
        };
        self.operations.cache.record(len, fetch).await
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        self.shared.check_served()?;
        self.operations.block_status.record(len, self.shared.extents(offset, len, most)).await
    }

    async fn versions(&self) -> Result<Vec<Version>, DeviceError> {
        Ok(older::named(&self.snapshots()))
    }

    async fn compare(&self, since: &Version, offset: u64, len: u64, most: usize) -> Result<Vec<Compared>, DeviceError> {
        self.shared.check_served()?;
        let compared = async {
            if !self.has_version(since.number) {
                return Err(older::gone(since));
            }
            let _reading = self.shared.begin_reading();
            let asked = (since, (offset, len), most);
            self.older.compare(&*self.shared, || self.source(), &self.shared.doors.seat, asked).await
        };
        self.operations.block_status.record(len, compared).await
    }
}

/// Makes the snapshot the head of a volume that was just opened, if it is still what was kept.
async fn back_to(shared: &Shared, snapshot: &str, kept: &KeptVersion, covers: ChangeNo) -> Result<(), VolumeError> {
    let name = &shared.facts.meta.name;
    let versions = shared.versions();
    let version = past::named(&versions, name, snapshot)?;
    let is_same = {
        let ledger = shared.ledger();
        ledger.log().covers() == covers && ledger.log().last() == covers
    };
    if !is_same || !versions.iter().any(|version| version.seq == kept.seq) {
        return Err(VolumeError::Invalid(format!(
            "volume {name} was changed by somebody else meanwhile, and is not rolled back; what it was before is its snapshot {}",
            kept.label.name
        )));
    }
    upkeep::rollback::roll_back(shared, version).await
}
