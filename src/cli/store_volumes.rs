//! The volumes of a store, as [`super::exports`] wants them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::exports::{OpenFailure, Volumes};
use super::failure::Failure;
use super::life;
use super::outside::{self, Cache, State};
use super::peers::Peers;
use super::secrets;
use crate::attach::identity::Identity;
use crate::codec::seal::Sealer;
use crate::config::{Config, Effective};
use crate::journal;
use crate::keyring::Secrets;
use crate::opening::description::{self, Description};
use crate::opening::{Follower, Glass, past};
use crate::outside::{Clock, Random, Workers};
use crate::space::{KeptVersion, Label};
use crate::store::Store;
use crate::units::Seq;
use crate::volume::{
    self, Beside, Budget, Mirror, OpenFlags, Outside, Past, Purse, ServerIdentity, Volume, VolumeError, VolumeName,
    Witness,
};

/// Opens volumes of one store for this server.
pub struct StoreVolumes {
    outside: Outside,
    state: State,
    _cache: Cache,
    options: volume::Options,
    journal: journal::Options,
    flags: OpenFlags,
    follow: Duration,
    mirror: Option<Mirror>,
    peers: Peers,
    /// The volumes that were opened once. What an operator allowed with a flag holds for the first time only, or else
    /// two servers that were both told to take a volume would take it from each other for ever. And a client that comes
    /// back to a name comes back to the same volume, or to none: a new one of that name is not what it has mounted.
    opened: Mutex<BTreeMap<VolumeName, Uuid>>,
    /// What the next opening of a volume may do.
    allowed: Mutex<BTreeMap<VolumeName, OpenFlags>>,
    /// What was in the way of volumes that did not open.
    obstacles: Mutex<BTreeMap<VolumeName, Obstacle>>,
}

/// What is in the way of a volume, as far as a pool knows a way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another server has it.
    Holder(Uuid),
    /// The journal here holds changes without which another server has moved on.
    LeftBehind,
}

impl StoreVolumes {
    /// The volumes of `store`, with the configuration's options.
    pub fn new(
        store: Arc<dyn Store>,
        state: State,
        cache: Cache,
        config: &Config,
        secrets: Secrets,
        flags: OpenFlags,
        random: Random,
    ) -> StoreVolumes {
        let outside = Outside {
            store,
            disk: Arc::new(state.disk.clone()),
            cache: Arc::clone(&cache.blocks),
            budget: Budget::new(&config.volume),
            clock: Clock::System,
            random,
            workers: Workers::Threads,
            server: state.server.clone(),
            secrets,
            witness: Witness::default(),
        };
        StoreVolumes {
            outside,
            state,
            _cache: cache,
            options: config.volume.clone(),
            journal: config.journal.clone(),
            flags,
            follow: config.serve.follow,
            mirror: None,
            peers: Peers::default(),
            opened: Mutex::default(),
            allowed: Mutex::default(),
            obstacles: Mutex::default(),
        }
    }

    /// The same, with what they may spend on requests.
    pub fn with_purse(mut self, purse: Purse) -> StoreVolumes {
        self.outside.budget = self.outside.budget.with_purse(purse);
        self
    }

    /// The same, with a second store behind the first, if there is one.
    pub fn with_mirror(mut self, mirror: Option<Mirror>) -> StoreVolumes {
        self.mirror = mirror;
        self
    }

    /// The same, with who keeps copies of its journals, and whose are kept.
    pub fn with_peers(mut self, peers: Peers) -> StoreVolumes {
        self.peers = peers;
        self
    }

    /// For a command that opens a volume for the moment, because no server on this host has it: takes the state directory.
    pub async fn of_command(store: Arc<dyn Store>, config: &Effective) -> Result<StoreVolumes, Failure> {
        let mirror = outside::mirror(config)?;
        Ok(StoreVolumes::of_copy(store, config).await?.with_mirror(mirror))
    }

    /// As [`StoreVolumes::of_command`], for a volume that is a copy in another store: it has no mirror.
    pub async fn of_copy(store: Arc<dyn Store>, config: &Effective) -> Result<StoreVolumes, Failure> {
        let random = Random::system();
        let state = State::take(config, &random).await?;
        let (cache, secrets) = (Cache::in_memory(config), secrets::of(config));
        Ok(StoreVolumes::new(store, state, cache, config, secrets, OpenFlags::default(), random))
    }

    /// What its volumes may hold in memory together.
    pub fn budget(&self) -> Budget {
        self.outside.budget.clone()
    }

    /// The description of a volume.
    pub async fn describe(&self, name: &VolumeName) -> Result<Description, VolumeError> {
        description::load(&*self.outside.store, name).await
    }

    /// Unlocks a volume: once, whoever needs it later.
    pub async fn unlock(&self, described: &Description) -> Result<Sealer, VolumeError> {
        described.unlock(&self.outside.secrets).await
    }

    /// Whether this server's journal holds changes of the volume. A journal that cannot be read counts, because it is
    /// damaged or locked: opening says what is wrong with it.
    pub async fn has_journal(&self, described: &Description) -> bool {
        let Ok(sealer) = self.unlock(described).await else { return true };
        let found = journal::find(&self.state.journal_disk(sealer.volume()), &sealer).await;
        found.map_or(true, |found| found.is_some_and(|found| !found.changes.is_empty()))
    }

    /// Makes a snapshot the newest state of a volume that is not open here; what was newest is kept, named by the time.
    pub async fn roll_back(&self, name: &VolumeName, snapshot: &str) -> Result<KeptVersion, VolumeError> {
        let uuid = self.describe(name).await?.meta.uuid;
        let outside = Outside { disk: self.state.journal_disk(uuid), ..self.outside.clone() };
        let before = Label { taken_unix_millis: self.outside.clock.unix_millis(), ..Label::default() };
        let (options, journal) = (self.options.clone(), self.journal.clone());
        let (flags, mirror, to) = (self.flags, self.mirror.clone(), (snapshot, before));
        Volume::roll_back_with(outside, name, options, journal, flags, to, mirror).await
    }

    /// Moves the log of a volume that is not open here into the store for logs, or back. Returns how many bytes were copied.
    pub async fn move_log(&self, name: &VolumeName, to_near: bool) -> Result<u64, VolumeError> {
        let uuid = self.describe(name).await?.meta.uuid;
        let outside = Outside { disk: self.state.journal_disk(uuid), ..self.outside.clone() };
        Volume::move_log(outside, name, self.options.clone(), self.journal.clone(), to_near).await
    }

    /// Says what the next opening of a volume may do.
    pub fn allow_next(&self, name: &VolumeName, flags: OpenFlags) {
        self.allowed.lock().insert(name.clone(), flags);
    }

    /// What was in the way of a volume that did not open; told once.
    pub fn obstacle(&self, name: &VolumeName) -> Option<Obstacle> {
        self.obstacles.lock().remove(name)
    }

    /// Who this server is.
    pub fn server(&self) -> &ServerIdentity {
        &self.state.server
    }

    /// Opens a volume for this server.
    pub async fn open_volume(&self, name: &VolumeName) -> Result<Arc<Volume>, VolumeError> {
        let uuid = self.describe(name).await?.meta.uuid;
        let outside = Outside { disk: self.state.journal_disk(uuid), ..self.outside.clone() };
        let before = self.opened.lock().get(name).copied();
        if let Some(before) = before.filter(|before| *before != uuid) {
            return Err(VolumeError::Invalid(format!(
                "volume {name} is another one now ({uuid}) than the one that this server had ({before}), whose clients might \
                 come back to it; restart the server to serve it"
            )));
        }
        let flags = if before.is_none() { self.flags } else { OpenFlags::default() };
        let flags = self.allowed.lock().remove(name).unwrap_or(flags);
        let begun = Instant::now();
        let (options, journal, mirror) = (self.options.clone(), self.journal.clone(), self.mirror.clone());
        let beside = Beside { mirror, peer: self.peers.link.clone(), keeper: self.peers.keeper.clone() };
        let opened = Volume::open_beside(outside, name, options, journal, flags, beside).await;
        let volume = opened.inspect_err(|error| {
            let obstacle = match error {
                VolumeError::Held { holder, .. } => Obstacle::Holder(holder.server),
                // One that has this server's own identity is a copy of it: nobody knows which of the two has moved on.
                VolumeError::StaleJournal { holder, .. } if holder.server != self.state.server.uuid => {
                    Obstacle::LeftBehind
                }
                _ => return,
            };
            self.obstacles.lock().insert(name.clone(), obstacle);
        })?;
        life::opened(&volume, begun.elapsed());
        self.opened.lock().insert(name.clone(), volume.meta().uuid);
        Ok(volume)
    }
}

#[async_trait]
impl Volumes for StoreVolumes {
    type Volume = Volume;
    type Past = Past;
    type Followed = Follower;

    async fn names(&self) -> Result<Vec<String>, String> {
        let names = volume::names(&*self.outside.store).await.map_err(|error| {
            warn!("the volumes of {} cannot be listed: {error}", self.outside.store.url());
            error.to_string()
        })?;
        Ok(names.into_iter().map(String::from).collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<Volume>, OpenFailure> {
        // What cannot be a name is not in the store either.
        let name = VolumeName::new(name).map_err(|_| OpenFailure::Unknown)?;
        self.open_volume(&name).await.map_err(failure)
    }

    async fn snapshots(&self, name: &str, open: Option<Arc<Volume>>) -> Result<Vec<String>, String> {
        let kept = match open {
            Some(volume) => volume.snapshots(),
            None => {
                let name = VolumeName::new(name).map_err(|bad| bad.to_string())?;
                let kept = past::versions(&self.outside.store, &name, &self.outside.secrets).await;
                kept.map_err(|error| error.to_string())?
            }
        };
        let shown = kept.into_iter().filter(|version| !version.label.is_hidden());
        Ok(shown.map(|version| version.label.name).collect())
    }

    async fn open_past(&self, volume: &str, snapshot: &str) -> Result<Past, OpenFailure> {
        let volume = VolumeName::new(volume).map_err(|_| OpenFailure::Unknown)?;
        let Outside { store, cache, workers, budget, secrets, .. } = &self.outside;
        let near = (Arc::clone(cache), *workers);
        let opened = Past::open(Arc::clone(store), &volume, snapshot, &self.options, budget, near, secrets).await;
        opened.map_err(failure)
    }

    fn past_identity(past: &Past) -> String {
        let version = past.version();
        Identity::of_version(past.meta().uuid, version.seq, version.label.taken_unix_millis).to_string()
    }

    async fn follow(&self, name: &str) -> Result<Follower, OpenFailure> {
        let name = VolumeName::new(name).map_err(|_| OpenFailure::Unknown)?;
        let Outside { store, cache, workers, budget, secrets, .. } = self.outside.clone();
        let glass = Glass { store, options: self.options.clone(), budget, near: (cache, workers), secrets };
        Follower::open(glass, &name, self.follow).await.map_err(failure)
    }

    fn followed_identity(followed: &Follower) -> String {
        // No version that is kept has that place.
        Identity::of_version(followed.volume(), Seq(0), 0).to_string()
    }

    fn lost(volume: &Volume) -> bool {
        volume.status().ended.is_some()
    }

    fn identity(volume: &Volume) -> String {
        let (epoch, opening, unbroken_since) = volume.line();
        Identity { volume: volume.meta().uuid, epoch, opening, unbroken_since }.to_string()
    }

    fn dirty_bytes(volume: &Volume) -> u64 {
        volume.status().dirty_bytes
    }

    async fn close(&self, volume: &Volume) -> Result<(), String> {
        volume.close().await.map_err(|error| error.to_string())?;
        if let Some(open_for) = volume.was_open_for() {
            life::closed(volume, open_for, &self.outside.budget.purse().prices().prices());
        }
        Ok(())
    }
}

fn failure(error: VolumeError) -> OpenFailure {
    match error {
        VolumeError::NotFound { .. } | VolumeError::NoSnapshot { .. } => OpenFailure::Unknown,
        VolumeError::Held { .. } => OpenFailure::Held(error.to_string()),
        error => OpenFailure::Refused(error.to_string()),
    }
}
