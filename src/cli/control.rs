//! How other commands talk to a running server: a Unix socket in the state directory, for its owner alone. Whoever
//! connects sends one line with a JSON [`Request`], gets one JSON document, and the end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

use super::document::ServerStatus;
use super::export_name::ExportName;
use super::exports::VolumeExports;
use super::snapshot::Wish;
use super::store_volumes::StoreVolumes;
use crate::cache::BlockCache;
use crate::device::ExportError;
use crate::human::exact_duration;
use crate::nbd::Server;
use crate::opening::past::Snapshot;
use crate::outside::Clock;
use crate::peer::keeper::Keeper;
use crate::store::buffers::Buffers;
use crate::store::health::Health;
use crate::store::meter::Meter;
use crate::volume::clones::Detaching;
use crate::volume::{Budget, Volume, VolumeName};

/// The socket's name in the state directory.
const SOCKET: &str = "control.sock";

/// How long a status may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it takes until clients that come back know that a volume will leave, and what they had asked for before is answered.
const LEAVING_KNOWN: Duration = Duration::from_millis(2500);

/// How long what they write meanwhile may take into the store, before the rest is brought there while they wait.
const LEAVING_SAVED: Duration = Duration::from_secs(1);

/// How long they believe it, if it does not.
const LEAVING_BELIEVED: Duration = Duration::from_secs(30);

/// The longest request in bytes.
const REQUEST_MAX: u64 = 4096;

/// What can be asked of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The status of every open volume: a [`ServerStatus`].
    Status,
    /// End the connections of a volume's clients: an [`Evicted`].
    Evict {
        /// The volume.
        export: String,
        /// Only those of this address, with or without its port.
        address: Option<String>,
    },
    /// Take over what is new in the description of this volume; it is opened if it is not open. A [`Reloaded`].
    Reload(String),
    /// Which settings of this volume, if it is open, take effect when it is next opened: their keys.
    LaterSettings(String),
    /// Bring all that was accepted into the store: of this volume, or of all that are open; they are served meanwhile. A
    /// [`Settled`].
    Settle {
        /// The volume.
        export: Option<String>,
        /// How long that may take; then everything is as before.
        within_millis: u64,
    },
    /// Close this volume, which is found elsewhere from now on. A [`HandedOver`].
    HandOver {
        /// The volume.
        export: String,
        /// Where it is found.
        to: String,
    },
    /// Forget that this volume was handed over. A [`TakenBack`].
    TakeBack(String),
    /// Stop, as after SIGTERM: another process takes this one's place. A [`Leaving`].
    Leave,
    /// Make this volume larger, whether the store answers or not; it is opened if it is not open. A [`Grown`].
    Grow {
        /// The volume.
        export: String,
        /// Its new size in bytes.
        size: u64,
    },
    /// Make this volume smaller; it is opened if it is not open. A [`Shrunk`].
    Shrink {
        /// The volume.
        export: String,
        /// Its new size in bytes.
        size: u64,
        /// Data beyond may be lost.
        discard_data: bool,
    },
    /// Change the snapshots of this volume; it is opened if it is not open. A [`SnapshotsChanged`].
    Snapshots {
        /// The volume.
        export: String,
        /// What is to become of them.
        wish: Wish,
    },
    /// Make a snapshot of this volume its newest state. A [`RolledBack`].
    RollBack {
        /// The volume.
        export: String,
        /// The snapshot.
        snapshot: String,
        /// The connections of clients that have it end.
        disconnect: bool,
    },
    /// Make this volume independent of the one whose clone it is, from that byte on, for a while; it is opened if it is not open. A
    /// [`Detached`].
    DetachClone {
        /// The volume.
        export: String,
        /// The byte.
        from: u64,
    },
}

/// The answer to [`Request::DetachClone`]: how far it is, if it is not done; or why it was not done.
type Detached = Result<Option<Detaching>, String>;

/// The answer to [`Request::Settle`]: null, or why it was not done.
type Settled = Option<String>;

/// The answer to [`Request::HandOver`]: null, or why it was not done.
type HandedOver = Option<String>;

/// The answer to [`Request::TakeBack`]: null, or why it was not done.
type TakenBack = Option<String>;

/// The answer to [`Request::Leave`]: the process that leaves.
type Leaving = u32;

/// The answer to [`Request::Grow`]: whether the store knows the size already, or why it was not done.
type Grown = Result<bool, String>;

/// The answer to [`Request::Shrink`]: null, or why it was not done.
type Shrunk = Option<String>;

/// The answer to [`Request::Snapshots`]: the snapshot that was taken, if one was to be; or why it was not done.
type SnapshotsChanged = Result<Option<Snapshot>, String>;

/// The answer to [`Request::RollBack`]: the snapshot of what was newest; or why it was not done.
type RolledBack = Result<String, String>;

/// The answer to [`Request::Reload`]: null, or why it was not done.
type Reloaded = Option<String>;

/// The answer to [`Request::Evict`]: the addresses of the clients whose connections end.
pub type Evicted = Vec<String>;

/// What a server knows of itself, to answer from.
pub struct Insight {
    /// Bytes that the process may take.
    pub memory: u64,
    /// Its store.
    pub store: String,
    /// What fails there.
    pub health: Health,
    /// What was asked of it.
    pub meter: Arc<Meter>,
    /// Memory that waits for the next reads and writes of the store.
    pub buffers: Buffers,
    /// What the volumes may hold in memory together.
    pub budget: Budget,
    /// How long an operation on the store may fail until the server is of no use.
    pub store_patience: Duration,
    /// Its cache.
    pub cache: Arc<BlockCache>,
    /// Its volumes.
    pub exports: VolumeExports<StoreVolumes>,
    /// What keeps copies of other servers' journals here, if it is to.
    pub keeper: Option<Keeper>,
    /// Its clients.
    pub server: Arc<Server>,
    /// Its clock.
    pub clock: Clock,
    /// When it started, in milliseconds since 1970.
    pub since_unix_millis: u64,
    /// Told when it is to stop.
    pub leave: Arc<Notify>,
}

/// Where the socket is.
pub fn path(state: &Path) -> PathBuf {
    state.join(SOCKET)
}

/// Listens; the caller holds the lock of the state directory, so that a socket which is there was left by a server that
/// died.
#[allow(clippy::disallowed_methods)] // a socket is no file that could be lost: the disk's door is for journals
pub fn listen(state: &Path) -> io::Result<UnixListener> {
    let path = path(state);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers, a few at a time: what waits for the store does not keep a status waiting. Until the task is dropped.
pub async fn serve(listener: UnixListener, insight: Arc<Insight>) {
    let mut answers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if answers.len() < ANSWERS_MAX => accepted,
            Some(_) = answers.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => drop(answers.spawn(take(stream, Arc::clone(&insight)))),
            Err(error) => {
                warn!("the status cannot be asked for: {error}");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn take(stream: UnixStream, insight: Arc<Insight>) {
    if let Ok(Err(error)) = tokio::time::timeout(ANSWER_PATIENCE, answer(stream, &insight)).await {
        warn!("somebody asked for something and left: {error}");
    }
}

async fn answer(mut stream: UnixStream, insight: &Arc<Insight>) -> io::Result<()> {
    let mut line = Vec::new();
    let read = async { BufReader::new((&mut stream).take(REQUEST_MAX)).read_until(b'\n', &mut line).await };
    // Whoever connects and says nothing must not keep the others waiting for long.
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let request = serde_json::from_slice(&line)?;
    let leaves = matches!(request, Request::Leave);
    let answer = match request {
        Request::Status => serde_json::to_vec(&insight.status(&insight.exports.open_volumes()))?,
        Request::Reload(name) => serde_json::to_vec(&reload(&name, &insight.exports).await)?,
        Request::LaterSettings(name) => {
            let open = insight.exports.open_volumes().into_iter().find(|(open, _)| *open == name);
            serde_json::to_vec(&open.map_or_else(Vec::new, |(_, volume)| volume.later_settings()))?
        }
        Request::Settle { export, within_millis } => {
            let within = Duration::from_millis(within_millis);
            let settled = settle_volumes(export.as_deref(), within, &insight.exports).await;
            // Whoever asks for that takes the volumes away next.
            if settled.is_none() {
                announce(export.as_deref(), &insight.server, &insight.exports).await;
            }
            serde_json::to_vec(&settled)?
        }
        Request::HandOver { export, to } => {
            serde_json::to_vec(&hand_volume_over(export, to, Arc::clone(insight)).await)?
        }
        Request::TakeBack(export) => {
            let taken_back: TakenBack = insight.exports.take_back(&export).err().map(|why| why.to_string());
            serde_json::to_vec(&taken_back)?
        }
        Request::Leave => serde_json::to_vec(&std::process::id())?,
        Request::Grow { export, size } => serde_json::to_vec(&grow_here(&export, size, &insight.exports).await)?,
        Request::Shrink { export, size, discard_data } => {
            serde_json::to_vec(&shrink(&export, size, discard_data, &insight.exports).await)?
        }
        Request::Snapshots { export, wish } => {
            let now = insight.clock.unix_millis();
            serde_json::to_vec(&change_snapshots(export, wish, now, insight.exports.clone()).await)?
        }
        Request::RollBack { export, snapshot, disconnect } => {
            serde_json::to_vec(&roll_back(export, snapshot, disconnect, Arc::clone(insight)).await)?
        }
        Request::DetachClone { export, from } => {
            serde_json::to_vec(&detach_clone(export, from, insight.exports.clone()).await)?
        }
        Request::Evict { export, address } => serde_json::to_vec(&insight.evict(&export, address.as_deref()))?,
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    if leaves {
        // Only now: whoever asked is still there.
        insight.leave.notify_one();
    }
    Ok(())
}

async fn reload(name: &str, exports: &VolumeExports<StoreVolumes>) -> Reloaded {
    let volume = match volume(name, exports).await {
        Ok(volume) => volume,
        Err(why) => return Some(why),
    };
    volume.reload().await.err().map(|error| error.to_string())
}

async fn settle_volumes(export: Option<&str>, within: Duration, exports: &VolumeExports<StoreVolumes>) -> Settled {
    let open = exports.open_volumes().into_iter().filter(|(name, _)| export.is_none_or(|export| name == export));
    let all = futures::future::join_all(open.map(async |(name, volume)| (name, volume.save().await)));
    match tokio::time::timeout(within, all).await {
        Ok(saved) => saved.into_iter().find_map(|(name, saved)| Some(format!("volume {name}: {}", saved.err()?))),
        Err(_) => Some(format!(
            "not everything that was written is in the store within serve.handoff_timeout ({}); see `ashlar status`",
            exact_duration(within)
        )),
    }
}

/// Has the clients that come back told that one volume, or all that are open, will soon be gone, and waits until they know:
/// `ashlar attach` asks several times a second, and has the kernel prepared then. What they have written by then is brought into the store, and what
/// can be done by the next server is left to it, so that they wait for little.
pub async fn announce(export: Option<&str>, server: &Server, exports: &VolumeExports<StoreVolumes>) {
    if server.has_clients_that_come_back() {
        let open = exports.open_volumes();
        for (name, volume) in open.iter().filter(|(name, _)| export.is_none_or(|export| name == export)) {
            exports.announce(name, LEAVING_BELIEVED);
            server.announce(name, LEAVING_BELIEVED);
            volume.leave_deletions();
        }
        tokio::time::sleep(LEAVING_KNOWN).await;
        // What does not get there in time gets there when the volume is closed.
        let _ = settle_volumes(export, LEAVING_SAVED, exports).await;
    }
}

async fn hand_volume_over(export: String, to: String, insight: Arc<Insight>) -> HandedOver {
    // To its end, whatever becomes of whoever asked.
    let handing = tokio::spawn(async move {
        let part = || drop(insight.server.evict(&export, None));
        insight.exports.hand_over(&export, &to, part).await.err()
    });
    match handing.await {
        Ok(why) => why,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Err(_) => Some("the server is shutting down".to_owned()),
    }
}

async fn roll_back(export: String, snapshot: String, disconnect: bool, insight: Arc<Insight>) -> RolledBack {
    // To its end, whatever becomes of whoever asked.
    let rolling = tokio::spawn(async move {
        let clients = insight.server.clients().into_iter().filter(|client| client.export == export).count();
        if clients > 0 && !disconnect {
            return Err(format!(
                "volume {export} is attached by {clients} client{}, whose disk would change below a filesystem that does not notice: unmount and detach it \
                 first, or end all connections with --disconnect",
                if clients == 1 { "" } else { "s" }
            ));
        }
        let name = VolumeName::new(export.as_str()).map_err(|error| error.to_string())?;
        volume(&export, &insight.exports).await?;
        let part = || drop(insight.server.evict(&export, None));
        insight.exports.hand_over(&export, "its past (ashlar rollback is under way)", part).await?;
        let rolled = insight.exports.volumes().roll_back(&name, &snapshot).await;
        insight.exports.take_back(&export).map_err(|error| error.to_string())?;
        rolled.map(|kept| kept.label.name).map_err(|error| error.to_string())
    });
    match rolling.await {
        Ok(rolled) => rolled,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Err(_) => Err("the server is shutting down".to_owned()),
    }
}

/// A volume that this server has, or may open.
async fn volume(name: &str, exports: &VolumeExports<StoreVolumes>) -> Result<Arc<Volume>, String> {
    exports.volume(name).await.map_err(|error| match error {
        ExportError::Unknown(_) => format!(
            "the server of this state directory serves no volume {name}: if there is one, serve it, too, or give this command a directory of \
             its own with --state"
        ),
        error => error.to_string(),
    })
}

async fn grow_here(name: &str, size: u64, exports: &VolumeExports<StoreVolumes>) -> Grown {
    let volume = volume(name, exports).await?;
    volume.grow(size, GROWS_FOR).await.map_err(|error| error.to_string())
}

async fn shrink(name: &str, size: u64, discard_data: bool, exports: &VolumeExports<StoreVolumes>) -> Shrunk {
    let volume = match volume(name, exports).await {
        Ok(volume) => volume,
        Err(why) => return Some(why),
    };
    volume.shrink(size, discard_data).await.err().map(|error| error.to_string())
}

async fn change_snapshots(
    export: String,
    wish: Wish,
    now: u64,
    exports: VolumeExports<StoreVolumes>,
) -> SnapshotsChanged {
    let volume = volume(&export, &exports).await?;
    wish.carry_out(&volume, now).await.map_err(|error| error.to_string())
}

async fn detach_clone(export: String, from: u64, exports: VolumeExports<StoreVolumes>) -> Detached {
    let volume = volume(&export, &exports).await?;
    volume.detach(from, DETACHES_FOR).await.map_err(|error| error.to_string())
}

impl Insight {
    fn evict(&self, export: &str, address: Option<&str>) -> Evicted {
        let evicted = self.server.evict(export, address);
        for address in &evicted {
            warn!(export, address, "evicting a client, as it was asked for");
        }
        evicted
    }
}

/// Has the server that has the state directory evict clients.
pub async fn evict(state: &Path, export: &ExportName, address: Option<&str>) -> io::Result<Evicted> {
    let request = Request::Evict { export: export.to_string(), address: address.map(str::to_owned) };
    self::request(state, &request, PATIENCE).await
}

/// Has the server that has the state directory bring what was accepted into the store, and says why it did not.
pub async fn settle(state: &Path, export: Option<&VolumeName>, within: Duration) -> Result<(), String> {
    let within_millis = within.as_millis() as u64;
    let request = Request::Settle { export: export.map(VolumeName::to_string), within_millis };
    match self::request::<Settled>(state, &request, within + PATIENCE).await {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(not_understood(&error)),
    }
}

/// Has the server that has the state directory close a volume for another one, and says why it did not.
pub async fn hand_over(state: &Path, name: &VolumeName, to: &str, within: Duration) -> Result<(), String> {
    let request = Request::HandOver { export: name.to_string(), to: to.to_owned() };
    match self::request::<HandedOver>(state, &request, within + PATIENCE).await {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(why),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(format!(
            "volume {name} is closed to clients, but not everything is in the store yet: the server goes on bringing it there; \
             `ashlar info {name}` says when nobody has it any more"
        )),
        Err(error) => Err(not_understood(&error)),
    }
}

/// Has the server that has the state directory forget that it handed a volume over, and says why it does not.
pub async fn take_back(state: &Path, name: &VolumeName) -> Result<(), String> {
    let request = Request::TakeBack(name.to_string());
    match self::request::<TakenBack>(state, &request, PATIENCE).await {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(not_understood(&error)),
    }
}

/// Has the server that has the state directory stop, and says why it does not.
pub async fn leave(state: &Path) -> Result<Leaving, String> {
    request(state, &Request::Leave, PATIENCE).await.map_err(|error| not_understood(&error))
}

fn not_understood(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        _ => format!(
            "it does not understand what it is asked for, and may be of an older version ({error}); stop it with SIGTERM"
        ),
    }
}

/// Asks the server that has the state directory for its status.
pub async fn ask(state: &Path) -> io::Result<ServerStatus> {
    request(state, &Request::Status, PATIENCE).await
}

/// How long a server may take to open a volume and read its description.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long a server may take to make a volume smaller: what was written must be in the store first.
const SHRINK_PATIENCE: Duration = Duration::from_secs(600);

/// How long a server may take to change snapshots: what was written must be in the store first.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);

/// How long any answer may take: longer than whoever asks waits.
const ANSWER_PATIENCE: Duration = Duration::from_secs(660);

/// Requests that are answered at one time.
const ANSWERS_MAX: usize = 16;

/// Whether a server has the state directory, and that store.
async fn has_store(state: &Path, store: &str) -> bool {
    ask(state).await.is_ok_and(|status| status.store == store)
}

/// Has the server that has the state directory change the snapshots of a volume; nothing if there is no such server. Else the snapshot that
/// was taken, if one was to be, or why it was not done.
pub async fn snapshots_if_served(
    state: &Path,
    store: &str,
    name: &VolumeName,
    wish: &Wish,
) -> Option<SnapshotsChanged> {
    if !has_store(state, store).await {
        return None;
    }
    let request = Request::Snapshots { export: name.to_string(), wish: wish.clone() };
    let unknown = |error| {
        format!(
            "the server on {} did not answer ({error}), or is of an older version: what there is now says `ashlar snapshot list {name}`",
            state.display()
        )
    };
    let answer = self::request::<SnapshotsChanged>(state, &request, SNAPSHOT_PATIENCE).await;
    Some(answer.map_err(unknown).flatten())
}

/// Has the server that has the state directory make a clone independent, from that byte on, for a while; nothing if there is no such server.
pub async fn detach_if_served(state: &Path, store: &str, name: &VolumeName, from: u64) -> Option<Detached> {
    if !has_store(state, store).await {
        return None;
    }
    let request = Request::DetachClone { export: name.to_string(), from };
    let unknown = |error| {
        format!(
            "the server on {} did not answer ({error}), or is of an older version; what was copied stays, and the command goes on with it",
            state.display()
        )
    };
    Some(self::request::<Detached>(state, &request, SNAPSHOT_PATIENCE).await.map_err(unknown).flatten())
}

/// How long a server makes a clone independent before it says how far it is.
const DETACHES_FOR: Duration = Duration::from_secs(2);

/// Has the server that has the state directory roll a volume back; nothing if there is no such server. Else the snapshot of what was newest, or why it
/// was not done.
pub async fn roll_back_if_served(
    state: &Path,
    store: &str,
    (name, snapshot): (&VolumeName, &VolumeName),
    disconnect: bool,
) -> Option<RolledBack> {
    if !has_store(state, store).await {
        return None;
    }
    let request = Request::RollBack { export: name.to_string(), snapshot: snapshot.to_string(), disconnect };
    let unknown = |error| {
        format!(
            "the server on {} did not answer ({error}), or is of an older version: whether it was done says `ashlar snapshot list {name}`, which has \
             the state before it as its newest then",
            state.display()
        )
    };
    Some(self::request::<RolledBack>(state, &request, SNAPSHOT_PATIENCE).await.map_err(unknown).flatten())
}

/// How long a server waits for the store to learn a size before it says that it was not told yet.
const GROWS_FOR: Duration = Duration::from_millis(500);

/// Has the server that has the state directory make a volume larger; whether the store knows that, or why it was not done. Nothing if it does not say.
pub async fn grow(state: &Path, name: &VolumeName, size: u64) -> Option<Grown> {
    let request = Request::Grow { export: name.to_string(), size };
    self::request::<Grown>(state, &request, PATIENCE).await.ok()
}

/// Has the server that has the state directory make a volume smaller; whether there is such a server, and why it did not.
pub async fn shrink_if_served(
    state: &Path,
    store: &str,
    name: &VolumeName,
    size: u64,
    discard_data: bool,
) -> Result<bool, String> {
    if !has_store(state, store).await {
        return Ok(false);
    }
    let request = Request::Shrink { export: name.to_string(), size, discard_data };
    match self::request::<Shrunk>(state, &request, SHRINK_PATIENCE).await {
        Ok(None) => Ok(true),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(format!(
            "the server on {} did not answer ({error}): whether the volume is smaller now says `ashlar info {name}`",
            state.display()
        )),
    }
}

/// Tells the server that has the state directory that a description is new; whether there is such a server, and why it
/// did not take it over.
pub async fn reload_if_served(state: &Path, store: &str, name: &VolumeName) -> Result<bool, String> {
    if !has_store(state, store).await {
        return Ok(false);
    }
    let request = Request::Reload(name.to_string());
    match self::request::<Reloaded>(state, &request, RELOAD_PATIENCE).await {
        Ok(None) => Ok(true),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

/// The keys of the settings of a volume that take effect when it is next opened, as the server knows that has it open. One that does not
/// answer any more has it open no more.
pub async fn later_settings(state: &Path, name: &VolumeName) -> Vec<String> {
    request(state, &Request::LaterSettings(name.to_string()), PATIENCE).await.unwrap_or_default()
}

async fn request<T: DeserializeOwned>(state: &Path, request: &Request, patience: Duration) -> io::Result<T> {
    let mut stream = UnixStream::connect(path(state)).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(&line).await?;
        stream.read_to_end(&mut answer).await
    };
    tokio::time::timeout(patience, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(serde_json::from_slice(&answer)?)
}
