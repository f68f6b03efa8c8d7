//! The volumes of a store as exports: listed from the store each time, so that one which another process has just
//! created is there, and opened when a client first asks for them.
//!
//! - One volume is opened once, however many clients ask at the same time, and stays open until the server stops. The
//!   opening is a task of its own: a client that goes away half-way does not leave a volume half open.
//! - A volume that does not open is reported in the log and to the client, with the reason and the way out; the others
//!   go on, and the next client that asks tries again.
//! - A volume that ended, because another server took it over or its log is damaged, is given up; the next client that asks
//!   tries to open it again. Until that succeeds it is not forgotten: its journal may hold what was acknowledged.
//! - A volume that was handed over to another server is closed, and whoever asks for it is told where it went, until that is taken back
//!   or the server starts anew.
//! - A volume that is to be read only is not taken: it is followed, as another server writes it ([`past`]).
//! - A snapshot is an export of its own, beside its volume: see [`past`].
//! - One listing of the store is under way at a time, whatever clients do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::attach::identity::LEAVING;
use crate::config::ALL;
use crate::device::read_only::ReadOnly;
use crate::device::{AT, Device, ExportEntry, ExportError, Exports};

mod past;

use past::Shelf;

/// Where volumes come from. The server's are in a store; a test's are not.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// An open volume.
    type Volume: Device + 'static;

    /// A snapshot of a volume.
    type Past: Device + 'static;

    /// A volume that another server writes.
    type Followed: Device + 'static;

    /// The names of all volumes.
    async fn names(&self) -> Result<Vec<String>, String>;

    /// Opens a volume.
    async fn open(&self, name: &str) -> Result<Arc<Self::Volume>, OpenFailure>;

    /// The names of the snapshots of a volume, oldest first; `open` is the volume, if it is open here.
    async fn snapshots(&self, name: &str, open: Option<Arc<Self::Volume>>) -> Result<Vec<String>, String>;

    /// Opens a snapshot of a volume, which is to be read only.
    async fn open_past(&self, volume: &str, snapshot: &str) -> Result<Self::Past, OpenFailure>;

    /// As [`Volumes::identity`], of a snapshot. One that is taken later under the same name has another.
    fn past_identity(past: &Self::Past) -> String;

    /// Opens a volume that is to be read only, without taking it.
    async fn follow(&self, name: &str) -> Result<Self::Followed, OpenFailure>;

    /// As [`Volumes::identity`], of a volume that is followed: another than that of the volume, which is ahead of it.
    fn followed_identity(followed: &Self::Followed) -> String;

    /// Whether an open volume is of no use any more, because another server took it.
    fn lost(volume: &Self::Volume) -> bool;

    /// What clients are told of the disk, so that they recognise it: see [`crate::attach::identity`].
    fn identity(volume: &Self::Volume) -> String;

    /// Bytes of acknowledged changes that are not in the store yet.
    fn dirty_bytes(volume: &Self::Volume) -> u64;

    /// Brings everything into the store and gives the volume back.
    async fn close(&self, volume: &Self::Volume) -> Result<(), String>;
}

/// Why a volume does not open.
#[derive(Debug)]
pub enum OpenFailure {
    /// There is none of that name.
    Unknown,
    /// There is one; the text says why it does not open, and the way out.
    Refused(String),
    /// Another server has it open; the text says who.
    Held(String),
}

/// The exports of a server. Clones share them.
pub struct VolumeExports<V: Volumes>(Arc<Shared<V>>);

struct Shared<V: Volumes> {
    volumes: V,
    /// The only volumes that are served, and the only snapshots of other volumes; `None` is all.
    only: Option<BTreeSet<String>>,
    read_only: ReadOnlyVolumes,
    /// The volumes of a pool that are this server's; `None` if it is in no pool, and may open every one.
    claimed: Option<Mutex<BTreeSet<String>>>,
    slots: Mutex<HashMap<String, Slot<V::Volume>>>,
    pasts: Shelf<V::Past>,
    followed: Shelf<V::Followed>,
    /// Volumes that ended and were not opened again, and why they ended.
    ended: Mutex<BTreeMap<String, String>>,
    /// Volumes that are there and did not open when they were last asked for: since when, and why the last time.
    unopened: Mutex<BTreeMap<String, (Instant, String)>>,
    /// The volumes that will soon be handed over or closed, and until when that is to be believed.
    leaving: Mutex<HashMap<String, Instant>>,
    /// The volumes that were handed over.
    moved: Mutex<BTreeMap<String, Moved>>,
    listing: tokio::sync::Mutex<()>,
    closing: AtomicBool,
}

/// Which volumes are only read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOnlyVolumes(BTreeSet<String>);

impl ReadOnlyVolumes {
    /// The volumes named, or all if a name is [`ALL`].
    pub fn new(names: &[String]) -> ReadOnlyVolumes {
        ReadOnlyVolumes(names.iter().cloned().collect())
    }

    /// Whether it is all of them.
    pub fn is_all(&self) -> bool {
        self.0.contains(ALL)
    }

    /// Whether that volume is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(ALL) || self.0.contains(name)
    }

    /// A name that is none of `names`: most likely a slip, which would leave another volume open to changes.
    pub fn stranger<'a>(&'a self, names: &[&str]) -> Option<&'a str> {
        self.0.iter().map(String::as_str).find(|name| *name != ALL && !names.contains(name))
    }
}

/// A volume that was handed over.
struct Moved {
    /// Where it went.
    to: String,
    /// Whether it is still being closed here.
    is_closing: bool,
}

/// Why a volume is not taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTakenBack {
    /// There is nothing to take back.
    #[error("volume {0} was not handed over by this server")]
    IsHere(String),
    /// What was begun cannot be stopped: the end of its log may be in the store already.
    #[error(
        "volume {name} is still being closed for {to}, because the store has not taken everything yet: it can be taken back when \
         `ashlar status` does not show it any more"
    )]
    IsClosing {
        /// The volume.
        name: String,
        /// Where it is to go.
        to: String,
    },
}

/// The place of one volume; locked while it is opened or closed.
type Slot<T> = Arc<tokio::sync::Mutex<Option<Arc<T>>>>;

impl<V: Volumes> Clone for VolumeExports<V> {
    fn clone(&self) -> Self {
        VolumeExports(Arc::clone(&self.0))
    }
}

impl<V: Volumes> VolumeExports<V> {
    /// Serves the volumes named, or all if none is.
    pub fn new(volumes: V, only: &[String], read_only: ReadOnlyVolumes) -> VolumeExports<V> {
        Self::with_claims(volumes, only, read_only, None)
    }

    /// As [`VolumeExports::new`], but only those that were claimed: the others are those of other servers of the pool.
    pub fn of_pool(volumes: V, only: &[String], read_only: ReadOnlyVolumes) -> VolumeExports<V> {
        Self::with_claims(volumes, only, read_only, Some(Mutex::default()))
    }

    fn with_claims(
        volumes: V,
        only: &[String],
        read_only: ReadOnlyVolumes,
        claimed: Option<Mutex<BTreeSet<String>>>,
    ) -> VolumeExports<V> {
        let only = (!only.is_empty()).then(|| only.iter().cloned().collect());
        VolumeExports(Arc::new(Shared {
            volumes,
            only,
            read_only,
            claimed,
            slots: Mutex::default(),
            pasts: Shelf::default(),
            followed: Shelf::default(),
            ended: Mutex::default(),
            unopened: Mutex::default(),
            leaving: Mutex::default(),
            moved: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
        }))
    }

    /// The names of all volumes that are served, in order, and of snapshots that were named.
    pub async fn names(&self) -> Result<Vec<String>, String> {
        if let Some(only) = &self.0.only {
            return Ok(only.iter().cloned().collect());
        }
        let _one_at_a_time = self.0.listing.lock().await;
        let mut names = self.0.volumes.names().await?;
        names.sort();
        Ok(names)
    }

    /// The open volume of that name; opens it if need be.
    pub async fn volume(&self, name: &str) -> Result<Arc<V::Volume>, ExportError> {
        if self.0.only.as_ref().is_some_and(|only| !only.contains(name)) {
            return Err(ExportError::Unknown(name.to_owned()));
        }
        if self.0.read_only.contains(name) {
            return Err(ExportError::Elsewhere(format!(
                "volume {name} is only read by this server (serve.read_only): whoever writes it, or opens it for the moment, is asked for that"
            )));
        }
        if self.0.claimed.as_ref().is_some_and(|claimed| !claimed.lock().contains(name)) {
            return Err(match self.0.moved.lock().get(name) {
                Some(Moved { to, .. }) => moved(name, to),
                None => ExportError::Elsewhere(format!(
                    "volume {name} is not served by this server of its pool now; `ashlar list` says which one has it"
                )),
            });
        }
        let (exports, name) = (self.clone(), name.to_owned());
        match tokio::spawn(async move { exports.open_in_slot(&name).await }).await {
            Ok(result) => result,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            // The runtime is going down.
            Err(_) => Err(ExportError::ShuttingDown),
        }
    }

    /// Opens a volume of the pool, which is this server's from now on, if it opens.
    pub async fn claim(&self, name: &str) -> Result<(), ExportError> {
        if let Some(claimed) = &self.0.claimed {
            claimed.lock().insert(name.to_owned());
        }
        let opened = self.volume(name).await;
        if opened.is_err() {
            self.unclaim(name);
        }
        opened.map(drop)
    }

    /// A volume of the pool is not this server's any more.
    pub fn unclaim(&self, name: &str) {
        if let Some(claimed) = &self.0.claimed {
            claimed.lock().remove(name);
        }
    }

    /// The volumes of the pool that are this server's, or will be once they have opened.
    pub fn claimed(&self) -> BTreeSet<String> {
        self.0.claimed.as_ref().map(|claimed| claimed.lock().clone()).unwrap_or_default()
    }

    async fn open_in_slot(&self, name: &str) -> Result<Arc<V::Volume>, ExportError> {
        let slot = Arc::clone(self.0.slots.lock().entry(name.to_owned()).or_default());
        let mut place = slot.lock().await;
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(ExportError::ShuttingDown);
        }
        if let Some(Moved { to, .. }) = self.0.moved.lock().get(name) {
            return Err(moved(name, to));
        }
        if let Some(lost) = place.take_if(|volume| V::lost(volume)) {
            // It can bring nothing home any more; closing lets go of its journal. Its error has been logged when it was lost.
            if let Err(why) = self.volumes().close(&lost).await {
                self.0.ended.lock().insert(name.to_owned(), why);
            }
        }
        if let Some(volume) = &*place {
            return Ok(Arc::clone(volume));
        }
        match self.0.volumes.open(name).await {
            Ok(volume) => {
                // It opens only with what its journal holds.
                self.0.ended.lock().remove(name);
                self.0.unopened.lock().remove(name);
                Ok(Arc::clone(place.insert(volume)))
            }
            Err(failure) => {
                self.forget(name, &slot);
                self.note_unopened(name, &failure);
                Err(export_error(name, failure))
            }
        }
    }

    /// Whoever looks on sees that a volume is asked for in vain. One that is not there is nobody's trouble but the asker's.
    fn note_unopened(&self, name: &str, failure: &OpenFailure) {
        let mut unopened = self.0.unopened.lock();
        match failure {
            OpenFailure::Unknown => drop(unopened.remove(name)),
            OpenFailure::Refused(why) | OpenFailure::Held(why) => {
                let since = unopened.get(name).map_or_else(Instant::now, |(since, _)| *since);
                unopened.insert(name.to_owned(), (since, why.clone()));
            }
        }
    }

    /// Closes an open volume, which is found at `to` from now on. Whoever asks for it meanwhile is told so. If it does not close, it is
    /// of no use any more, as one that another server took. `part` is called when nobody gets the volume any more, to part with those
    /// who have it. Whoever hands over what is being handed over waits for the same end, and has the last word on where it goes.
    pub async fn hand_over(&self, name: &str, to: &str, part: impl FnOnce()) -> Result<(), String> {
        let slot = self.0.slots.lock().get(name).map(Arc::clone);
        let absent = || format!("volume {name} is not open here");
        let slot = slot.ok_or_else(absent)?;
        let volume = {
            // Waits for an opening under way. The lock is not held while closing, so that others can look.
            let place = slot.lock().await;
            let volume = place.clone().ok_or_else(absent)?;
            self.0.moved.lock().insert(name.to_owned(), Moved { to: to.to_owned(), is_closing: true });
            volume
        };
        part();
        info!("handing volume {name} over to {to}");
        let closed = self.volumes().close(&volume).await;
        slot.lock().await.take_if(|there| Arc::ptr_eq(there, &volume));
        self.forget(name, &slot);
        self.unclaim(name);
        self.0.leaving.lock().remove(name);
        match &closed {
            Ok(()) => {
                info!("volume {name} can be opened by {to} now");
                if let Some(moved) = self.0.moved.lock().get_mut(name) {
                    moved.is_closing = false;
                }
            }
            Err(why) => {
                error!("volume {name} did not close: {why}");
                self.0.ended.lock().insert(name.to_owned(), why.clone());
                self.0.moved.lock().remove(name);
            }
        }
        closed
    }

    /// Has clients told that this volume will soon be handed over or closed; it is believed for so long.
    pub fn announce(&self, name: &str, within: Duration) {
        self.0.leaving.lock().insert(name.to_owned(), Instant::now() + within);
    }

    /// What clients are told of the disk.
    fn description(&self, name: &str, volume: &V::Volume) -> String {
        let is_leaving = self.0.leaving.lock().get(name).is_some_and(|until| Instant::now() < *until);
        V::identity(volume) + if is_leaving { LEAVING } else { "" }
    }

    /// Where its volumes come from.
    pub fn volumes(&self) -> &V {
        &self.0.volumes
    }

    /// Forgets that a volume was handed over.
    pub fn take_back(&self, name: &str) -> Result<(), NotTakenBack> {
        let mut moved = self.0.moved.lock();
        match moved.get(name) {
            None => Err(NotTakenBack::IsHere(name.to_owned())),
            Some(Moved { to, is_closing: true }) => {
                Err(NotTakenBack::IsClosing { name: name.to_owned(), to: to.clone() })
            }
            Some(_) => {
                moved.remove(name);
                Ok(())
            }
        }
    }

    /// The volumes that were handed over, and where they went.
    pub fn moved(&self) -> Vec<(String, String)> {
        self.0.moved.lock().iter().map(|(name, moved)| (name.clone(), moved.to.clone())).collect()
    }

    /// Removes a slot that stayed empty, so that names which clients make up are not kept.
    fn forget(&self, name: &str, slot: &Slot<V::Volume>) {
        let mut slots = self.0.slots.lock();
        // Besides the map and the caller somebody may wait for the same slot; then it stays, and they remove it.
        if slots.get(name).is_some_and(|found| Arc::ptr_eq(found, slot)) && Arc::strong_count(slot) <= 2 {
            slots.remove(name);
        }
    }

    /// The names of the volumes that are open, and their bytes that are not in the store yet.
    pub fn dirty_bytes(&self) -> Vec<(String, u64)> {
        self.open_volumes().into_iter().map(|(name, volume)| (name, V::dirty_bytes(&volume))).collect()
    }

    /// The volumes that are open, by name, in no order.
    pub fn open_volumes(&self) -> Vec<(String, Arc<V::Volume>)> {
        let slots = self.0.slots.lock();
        let open = |(name, slot): (&String, &Slot<V::Volume>)| {
            // One that is being opened has nothing to tell yet.
            Some((name.clone(), slot.try_lock().ok()?.clone()?))
        };
        slots.iter().filter_map(open).collect()
    }

    /// The only volumes that are served; `None` is all. Snapshots are not among them: they are open while somebody reads them.
    pub fn named(&self) -> Option<Vec<String>> {
        Some(self.0.only.as_ref()?.iter().filter(|name| !name.contains(AT)).cloned().collect())
    }

    /// The volumes that are open, in order of their names; without the volume, those that are being opened or closed for longer than
    /// `patience`. A client that just asks for one that is open hides it from nobody.
    pub async fn look(&self, patience: Duration) -> Vec<(String, Option<Arc<V::Volume>>)> {
        let slots: BTreeMap<_, _> =
            self.0.slots.lock().iter().map(|(name, slot)| (name.clone(), Arc::clone(slot))).collect();
        let looks = slots.into_iter().map(|(name, slot)| async move {
            match timeout(patience, slot.lock()).await {
                Ok(place) => place.clone().map(|volume| (name, Some(volume))),
                Err(_) => Some((name, None)),
            }
        });
        futures::future::join_all(looks).await.into_iter().flatten().collect()
    }

    /// The volumes that ended and were not opened again, and why they ended, by name.
    pub fn ended(&self) -> Vec<(String, String)> {
        self.0.ended.lock().iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// The volumes that did not open when they were last asked for, since when, and why the last time, by name.
    pub fn unopened(&self) -> Vec<(String, Instant, String)> {
        self.0.unopened.lock().iter().map(|(name, (since, why))| (name.clone(), *since, why.clone())).collect()
    }

    /// Opens no volume any more and closes those that are open, all at once. Says in the log what goes wrong, as it does, also
    /// with those that ended before; returns it by name.
    pub async fn close(&self) -> Vec<(String, String)> {
        self.0.closing.store(true, Ordering::SeqCst);
        let slots: Vec<_> = self.0.slots.lock().iter().map(|(name, slot)| (name.clone(), Arc::clone(slot))).collect();
        let closed = slots.into_iter().map(|(name, slot)| async move {
            // Waits for an opening under way; the lock is not held while closing, so that dirty_bytes can look.
            let volume = slot.lock().await.clone()?;
            match self.volumes().close(&volume).await {
                Ok(()) => {
                    info!("volume {name} is closed");
                    None
                }
                Err(why) => Some(not_closed((name, why))),
            }
        });
        let before: Vec<_> = self.ended().into_iter().map(not_closed).collect();
        let failed = futures::future::join_all(closed).await;
        before.into_iter().chain(failed.into_iter().flatten()).collect()
    }
}

/// Says that a volume did not close, and why.
fn not_closed(problem: (String, String)) -> (String, String) {
    error!("volume {} did not close: {}", problem.0, problem.1);
    problem
}

fn moved(name: &str, to: &str) -> ExportError {
    ExportError::Elsewhere(format!("volume {name} moved to {to}; attach it there"))
}

fn export_error(name: &str, failure: OpenFailure) -> ExportError {
    match failure {
        OpenFailure::Unknown => ExportError::Unknown(name.to_owned()),
        OpenFailure::Refused(why) => ExportError::Unavailable(why),
        OpenFailure::Held(why) => ExportError::Elsewhere(why),
    }
}

#[async_trait]
impl<V: Volumes> Exports for VolumeExports<V> {
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        let names = self.all_names().await.map_err(ExportError::Unavailable)?;
        Ok(names.into_iter().map(entry).collect())
    }

    async fn default_name(&self) -> Result<Option<String>, ExportError> {
        let names = self.names().await.map_err(ExportError::Unavailable)?;
        Ok(<[String; 1]>::try_from(names).ok().map(|[only]| only))
    }

    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        let name = match name {
            "" => self.default_name().await?.ok_or_else(|| ExportError::Unknown(String::new()))?,
            name => name.to_owned(),
        };
        let opened = match name.split_once(AT) {
            Some((volume, snapshot)) => self.open_snapshot(&name, volume, snapshot).await,
            None => self.open_volume(&name).await,
        };
        let (description, device) = opened.inspect_err(|error| {
            if let ExportError::Unavailable(why) | ExportError::Elsewhere(why) = error {
                warn!("a client asked for {name}, which does not open: {why}");
            }
        })?;
        Ok((ExportEntry { name, description }, device))
    }
}

/// What clients are told of a disk, and the disk.
type Described = (String, Arc<dyn Device>);

impl<V: Volumes> VolumeExports<V> {
    async fn open_volume(&self, name: &str) -> Result<Described, ExportError> {
        if self.0.read_only.contains(name) {
            let followed = self.followed(name).await?;
            return Ok((V::followed_identity(&followed), Arc::new(ReadOnly::new(followed))));
        }
        let volume = self.volume(name).await?;
        Ok((self.description(name, &volume), volume))
    }

    async fn open_snapshot(&self, name: &str, volume: &str, snapshot: &str) -> Result<Described, ExportError> {
        let past = self.past(name, volume, snapshot).await?;
        Ok((V::past_identity(&past), past))
    }
}

fn entry(name: String) -> ExportEntry {
    ExportEntry { name, description: String::new() }
}

#[cfg(test)]
mod tests;
