//! What commands open of the outside: the store, the state directory, the identity of this server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::failure::Failure;
use super::probes::{self, Probed};
use crate::cache::BlockCache;
use crate::cache::disk::DiskTier;
use crate::config::{self, Config, Effective, Inputs};
use crate::disk::Disk;
use crate::disk::local::{DirLock, LocalDisk};
use crate::outside::{Clock, Random, Workers};
use crate::store::open::{Access, Fencing, Opened, StoreOptions};
use crate::store::probe::Finding;
use crate::store::retry::RetryOptions;
use crate::store::s3::options::ObjectLock;
use crate::store::tiers::{BesideStore, Near};
use crate::store::{self, ErrorKind, Store};
use crate::volume::{Mirror, ServerIdentity, VolumeName};

/// The store that the configuration names. One that is written to is probed, unless it passed not long ago.
pub async fn open_store(config: &Effective, access: Access) -> Result<Opened, Failure> {
    config.store.check_url().map_err(|error| config.refuse("store.url", error.message))?;
    let access = match access {
        Access::Write => recall_probe(config).await.map_or(access, |probed| Access::WriteUnprobed(probed.found)),
        Access::Read | Access::WriteUnprobed(_) => access,
    };
    let opened = open_with(&config.store, access).await?;
    if let Some(found) = opened.finding {
        remember_probe(config, found).await;
    }
    let Some(options) = log_store(config)? else { return Ok(opened) };
    let near = open_beside(&options, access, &config.state).await.map_err(|error| match error.kind {
        ErrorKind::Invalid => Failure::usage(format!("store.log: {error}")),
        _ => Failure::failed(format!("store.log: {error}")),
    })?;
    for (key, store) in [("store.log", &near), ("store.url", &opened.store)] {
        if access != Access::Read && !store.keeps_create_only() {
            let url = store.url();
            return Err(config.refuse(key, format!("{url} does not keep create-only PUTs apart, which a log in a store of its own needs, there and where everything else is")).into());
        }
    }
    let near = Near { store: near, cooling: config.store.cooling() };
    Ok(Opened { store: Arc::new(BesideStore::new(opened.store, near)), ..opened })
}

/// How the store for logs is reached: nothing if there is none.
fn log_store(config: &Effective) -> Result<Option<StoreOptions>, Failure> {
    let store = &config.store;
    if store.log.is_empty() {
        return match &store.log_config {
            None => Ok(None),
            Some(_) => Err(config
                .refuse("store.log_config", "store.log says where the store for logs is, and is not set")
                .into()),
        };
    }
    let options = reached_by(config, "store.log_config", store.log_config.as_ref())?;
    let options = StoreOptions { url: store.log.clone(), ..options };
    options.check_url().map_err(|error| config.refuse("store.log", error.message))?;
    if options.url == store.url && options.endpoint() == store.endpoint() {
        return Err(config.refuse("store.log", "that is the store itself: one for logs is another one").into());
    }
    // Somebody would rely on locks that are not there.
    if [store, &options].iter().any(|store| store.s3.object_lock != ObjectLock::Off) {
        let why = "nothing is locked of a volume whose log is in a store of its own, and store.s3.object_lock is set: leave one of both out";
        return Err(config.refuse("store.log", why).into());
    }
    Ok(Some(options))
}

/// The `[store]` of that configuration file, or without one this configuration's own.
fn reached_by(config: &Effective, key: &str, file: Option<&PathBuf>) -> Result<StoreOptions, Failure> {
    let Some(file) = file else { return Ok(config.store.clone()) };
    let inputs = Inputs { file: Some(file.clone()), ..Inputs::default() };
    let loaded = config::load(inputs).map_err(|error| config.refuse(key, error.to_string()))?;
    Ok(loaded.store.clone())
}

/// The second store that the configuration names, if it names one; opened when it is needed.
pub fn mirror(config: &Effective) -> Result<Option<Mirror>, Failure> {
    let Some(options) = mirror_store(config)? else { return Ok(None) };
    let opened = Arc::new(tokio::sync::OnceCell::new());
    let (url, state) = (options.url.clone(), config.state.clone());
    let open = move || {
        let (opened, options, state) = (Arc::clone(&opened), options.clone(), state.clone());
        async move { opened.get_or_try_init(|| open_mirror(&options, &state)).await.cloned() }.boxed()
    };
    Ok(Some(Mirror::new(url, config.mirror.clone(), Arc::new(open))))
}

/// How the mirror's store is reached: nothing if there is none.
pub fn mirror_store(config: &Effective) -> Result<Option<StoreOptions>, Failure> {
    let mirror = &config.mirror;
    if mirror.url.is_empty() {
        return match &mirror.config {
            None => Ok(None),
            Some(_) => {
                Err(config.refuse("mirror.config", "mirror.url says where the mirror is, and is not set").into())
            }
        };
    }
    let mut options = reached_by(config, "mirror.config", mirror.config.as_ref())?;
    options.url.clone_from(&mirror.url);
    options.check_url().map_err(|error| config.refuse("mirror.url", error.message))?;
    if options.url == config.store.url && options.endpoint() == config.store.endpoint() {
        return Err(config.refuse("mirror.url", "that is the store itself: a mirror is another one").into());
    }
    Ok(Some(options))
}

/// For how long a request to the mirror is repeated before its task is told, which tries again for ever, and says so.
const MIRROR_PATIENCE: Duration = Duration::from_secs(10);

async fn open_mirror(options: &StoreOptions, state: &Path) -> store::Result<Arc<dyn Store>> {
    let RetryOptions { read_limit, write_limit, .. } = options.retry;
    let (read_limit, write_limit) = (read_limit.min(MIRROR_PATIENCE), write_limit.min(MIRROR_PATIENCE));
    let options = &StoreOptions { retry: RetryOptions { read_limit, write_limit, ..options.retry }, ..options.clone() };
    open_beside(options, Access::Write, state).await
}

/// A store beside the first one. One that is written to is probed, unless it passed not long ago.
async fn open_beside(options: &StoreOptions, access: Access, state: &Path) -> store::Result<Arc<dyn Store>> {
    let disk = LocalDisk::new(state, Workers::Threads);
    let probed = match access {
        Access::Read => None,
        Access::Write | Access::WriteUnprobed(_) => probes::recall(&disk, options, Clock::System.unix_millis()).await,
    };
    let access = match (access, probed) {
        (Access::Read, _) => Access::Read,
        (_, probed) => probed.map_or(Access::Write, |probed| Access::WriteUnprobed(probed.found)),
    };
    let opened = store::open::open(options, access, &store::open::Outside::real()).await?;
    if let Some(found) = opened.finding {
        probes::remember(&disk, options, &Probed::new(options, Clock::System.unix_millis(), found), false).await;
    }
    Ok(opened.store)
}

/// The store that the options name.
pub async fn open_with(options: &StoreOptions, access: Access) -> Result<Opened, Failure> {
    let outside = store::open::Outside::real();
    store::open::open(options, access, &outside).await.map_err(|error| match error.kind {
        ErrorKind::Invalid => Failure::usage(error),
        _ => Failure::failed(error),
    })
}

/// Whether volumes of this very store were served from this state directory. To be asked before the store is opened.
pub async fn has_had_volumes(config: &Effective) -> bool {
    let disk = LocalDisk::new(&config.state, Workers::Threads);
    let is_volume = |name: &String| Uuid::try_parse(name).is_ok();
    probes::is_known(&disk, &config.store).await
        && disk.directories().await.is_ok_and(|names| names.iter().any(is_volume))
}

/// Refuses a store in which nothing is left, not even of a volume that was deleted, although volumes of it were served here: that
/// it is empty must not be taken for the truth.
pub async fn refuse_emptied(config: &Effective, store: &dyn Store) -> Result<(), Failure> {
    let tops = store.list_top().await.map_err(Failure::failed)?;
    if tops.iter().any(|top| VolumeName::new(top).is_ok()) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{} is empty, but volumes of it were served from the state directory {}: is its filesystem mounted, or its bucket another \
         one? If it is meant to be empty, `ashlar create` makes a volume there",
        store.url(),
        config.state.display()
    )))
}

async fn recall_probe(config: &Effective) -> Option<Probed> {
    let disk = LocalDisk::new(&config.state, Workers::Threads);
    let is_unsafe = config.store.fencing() == Fencing::Unsafe;
    if is_unsafe { None } else { probes::recall(&disk, &config.store, Clock::System.unix_millis()).await }
}

/// Remembers what a probe found just now.
pub async fn remember_probe(config: &Effective, found: Finding) -> Probed {
    let probed = Probed::new(&config.store, Clock::System.unix_millis(), found);
    // One that was named is made for it: `create` and then `serve` is one probe. The default one is left to the server.
    let makes_directory = config.state != Config::default().state;
    probes::remember(&LocalDisk::new(&config.state, Workers::Threads), &config.store, &probed, makes_directory).await;
    probed
}

/// The state directory, for this process alone until it is dropped.
#[derive(Debug)]
pub struct State {
    /// The directory.
    pub disk: LocalDisk,
    /// Who this server is; the same for the life of the directory.
    pub server: ServerIdentity,
    _lock: DirLock,
}

impl State {
    /// Takes the directory that the configuration names; makes it if there is none.
    pub async fn take(config: &Effective, random: &Random) -> Result<State, Failure> {
        State::take_within(config, random, Duration::ZERO).await
    }

    /// As [`State::take`], but waits so long for a process that has the directory, and that of the disk cache, to be gone.
    pub async fn take_within(config: &Effective, random: &Random, within: Duration) -> Result<State, Failure> {
        let disk = LocalDisk::new(&config.state, Workers::Threads);
        let failed = |error| Failure::failed(format!("state directory: {error}"));
        let until = Instant::now() + within;
        let lock = lock_until(&disk, until).await.map_err(failed)?;
        if within > Duration::ZERO && config.cache.disk.size > 0 {
            // A process that ends lets go of one after the other. Whether the cache can be had is found out when it is opened.
            drop(lock_until(&cache_disk(config), until).await);
        }
        let server = identity(&disk, random).await.map_err(failed)?;
        Ok(State { disk, server, _lock: lock })
    }

    /// The directory of a volume's journal.
    pub fn journal_disk(&self, volume: Uuid) -> Arc<dyn Disk> {
        Arc::new(self.disk.below(&volume.to_string()))
    }
}

/// The directory of a volume's journal, for looking only.
pub fn journal_disk(config: &Effective, volume: Uuid) -> Arc<dyn Disk> {
    Arc::new(LocalDisk::new(&config.state, Workers::Threads).below(&volume.to_string()))
}

/// The cache of a server, and its directory for this process alone.
#[derive(Debug)]
pub struct Cache {
    /// The cache.
    pub blocks: Arc<BlockCache>,
    _lock: Option<DirLock>,
}

impl Cache {
    /// For a command that is done in a moment: in memory only.
    pub fn in_memory(config: &Effective) -> Cache {
        Cache { blocks: Arc::new(BlockCache::in_memory(config.cache.memory)), _lock: None }
    }
}

/// How often a directory is tried that another process has.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

async fn lock_until(disk: &LocalDisk, until: Instant) -> std::io::Result<DirLock> {
    loop {
        match disk.lock().await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                tokio::time::sleep(LOCK_AGAIN).await;
            }
            locked => return locked,
        }
    }
}

/// The directory of the disk cache.
fn cache_disk(config: &Config) -> LocalDisk {
    LocalDisk::new(cache_directory(config), Workers::Threads)
}

/// Where it is.
pub fn cache_directory(config: &Config) -> PathBuf {
    config.cache.disk.directory.clone().unwrap_or_else(|| config.state.join(CACHE))
}

/// The cache that the configuration describes. A directory that cannot be had is no reason not to serve: then the tier
/// is off, and says so.
pub async fn open_cache(config: &Effective) -> Cache {
    let (options, least) = (&config.cache, config.division().cache_least());
    if options.disk.size == 0 {
        return Cache { blocks: Arc::new(BlockCache::elastic(options.memory, least, None)), _lock: None };
    }
    let disk = cache_disk(config);
    let (tier, lock) = match disk.lock().await {
        Ok(lock) => (DiskTier::start(Arc::new(disk), options.disk.size), Some(lock)),
        Err(error) => (DiskTier::unusable(&disk.path(), options.disk.size, &error.to_string()), None),
    };
    Cache { blocks: Arc::new(BlockCache::elastic(options.memory, least, Some(tier))), _lock: lock }
}

/// The directory of the disk cache in the state directory.
const CACHE: &str = "cache";

/// The identity for a command that is done in a moment, beside a server that may have the state directory.
pub fn passing_identity(random: &Random) -> ServerIdentity {
    ServerIdentity { uuid: random.uuid(), name: host_name() }
}

/// The name of this host.
pub fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// The file that keeps this server's uuid, as text.
const IDENTITY: &str = "server-id";

/// The identity that the directory keeps. The caller holds its lock, so nobody else makes one meanwhile.
async fn identity(disk: &dyn Disk, random: &Random) -> std::io::Result<ServerIdentity> {
    let kept = disk.list("").await?.iter().any(|name| name == IDENTITY);
    let text = if kept { read_text(disk).await? } else { String::new() };
    let uuid = match text.trim() {
        // Also what a crash leaves between the file's creation and its first sync: then nobody has seen the uuid yet.
        "" => make_identity(disk, random, kept).await?,
        text => text.parse().map_err(|_| {
            let place = disk.path();
            std::io::Error::other(format!(
                "the file {IDENTITY} in {place} holds {text:?}, which is not a uuid; restore it, or remove it to begin as \
                 a new server"
            ))
        })?,
    };
    Ok(ServerIdentity { uuid, name: host_name() })
}

async fn read_text(disk: &dyn Disk) -> std::io::Result<String> {
    const LONGEST: usize = 256;
    let bytes = disk.open(IDENTITY).await?.read_at(0, LONGEST).await?;
    // A torn write may have left zeros.
    Ok(String::from_utf8_lossy(&bytes).trim_matches('\0').to_owned())
}

async fn make_identity(disk: &dyn Disk, random: &Random, kept: bool) -> std::io::Result<Uuid> {
    let uuid = random.uuid();
    let file = if kept { disk.open(IDENTITY).await? } else { disk.create(IDENTITY).await? };
    file.write_at(0, vec![Bytes::from(format!("{uuid}\n"))]).await?;
    file.sync().await?;
    Ok(uuid)
}

/// Wall time, randomness and workers of a real process.
pub fn real() -> (Clock, Random, Workers) {
    (Clock::System, Random::system(), Workers::Threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::crash::CrashDisk;

    #[tokio::test]
    async fn an_identity_once_given_out_is_kept_whenever_the_host_dies() {
        for operation in 0..8 {
            let disk = CrashDisk::new(1);
            disk.cut_at(operation);
            let before = identity(&disk, &Random::seeded(1)).await;
            let after = disk.crash();
            let again = identity(&after, &Random::seeded(2)).await.unwrap();
            if let Ok(before) = before {
                assert_eq!(before.uuid, again.uuid, "cut at operation {operation}");
            }
        }
    }

    #[tokio::test]
    async fn an_identity_that_is_no_uuid_is_refused_with_the_way_out() {
        let disk = CrashDisk::new(1);
        disk.create(IDENTITY).await.unwrap().write_at(0, vec![Bytes::from_static(b"nonsense")]).await.unwrap();
        let error = identity(&disk, &Random::seeded(1)).await.unwrap_err().to_string();
        assert!(
            error.ends_with(
                "holds \"nonsense\", which is not a uuid; restore it, or remove it to begin as a new server"
            ),
            "{error}"
        );
    }
}
