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
use tracing::warn;

use super::exports::VolumeExports;
use super::logging::{self, LogStatus};
use super::store_volumes::StoreVolumes;
use crate::cache::{self, BlockCache};
use crate::volume::{Status, VolumeName};

/// The socket's name in the state directory.
const SOCKET: &str = "control.sock";

/// How long a status may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest request in bytes.
const REQUEST_MAX: u64 = 4096;

/// What can be asked of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The status of every open volume: a [`ServerStatus`].
    Status,
    /// Take over what is new in the description of this volume; it is opened if it is not open. A [`Reloaded`].
    Reload(String),
}

/// The answer to [`Request::Reload`]: null, or why it was not done.
type Reloaded = Option<String>;

/// What a server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its process.
    pub pid: u32,
    /// Its store.
    pub store: String,
    /// Its log.
    pub log: LogStatus,
    /// Its cache.
    pub cache: cache::Status,
    /// The open volumes, by name.
    pub volumes: Vec<VolumeStatus>,
}

/// One open volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// What it is doing.
    #[serde(flatten)]
    pub status: Status,
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

/// Answers, one after the other, until the task is dropped.
pub async fn serve(
    listener: UnixListener,
    store: String,
    cache: Arc<BlockCache>,
    exports: VolumeExports<StoreVolumes>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answered = tokio::time::timeout(RELOAD_PATIENCE, answer(stream, &store, &cache, &exports)).await;
                if let Ok(Err(error)) = answered {
                    warn!("somebody asked for something and left: {error}");
                }
            }
            Err(error) => {
                warn!("the status cannot be asked for: {error}");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    store: &str,
    cache: &BlockCache,
    exports: &VolumeExports<StoreVolumes>,
) -> io::Result<()> {
    let mut line = Vec::new();
    BufReader::new((&mut stream).take(REQUEST_MAX)).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice(&line)? {
        Request::Status => serde_json::to_vec(&status(store, cache, exports))?,
        Request::Reload(name) => serde_json::to_vec(&reload(&name, exports).await)?,
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

async fn reload(name: &str, exports: &VolumeExports<StoreVolumes>) -> Reloaded {
    let volume = match exports.volume(name).await {
        Ok(volume) => volume,
        Err(error) => return Some(error.to_string()),
    };
    volume.reload().await.err().map(|error| error.to_string())
}

fn status(store: &str, cache: &BlockCache, exports: &VolumeExports<StoreVolumes>) -> ServerStatus {
    let volumes = exports.open_volumes().into_iter();
    let mut volumes: Vec<_> = volumes.map(|(name, volume)| VolumeStatus { name, status: volume.status() }).collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let (store, log) = (store.to_owned(), logging::status());
    ServerStatus { pid: std::process::id(), store, log, cache: cache.status(), volumes }
}

/// Asks the server that has the state directory for its status.
pub async fn ask(state: &Path) -> io::Result<ServerStatus> {
    request(state, &Request::Status, PATIENCE).await
}

/// How long a server may take to open a volume and read its description.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

/// Tells the server that has the state directory that a description is new; whether there is such a server, and why it
/// did not take it over.
pub async fn reload_if_served(state: &Path, store: &str, name: &VolumeName) -> Result<bool, String> {
    match ask(state).await {
        Ok(status) if status.store == store => {}
        _ => return Ok(false),
    }
    let request = Request::Reload(name.to_string());
    match self::request::<Reloaded>(state, &request, RELOAD_PATIENCE).await {
        Ok(None) => Ok(true),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
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
