//! The server's side of `ashlar status`: a Unix socket in the state directory. Whoever connects gets one JSON document
//! with the status of every open volume, and the end. Nothing can be asked for or changed through it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::exports::VolumeExports;
use super::store_volumes::StoreVolumes;
use crate::cache::{self, BlockCache};
use crate::volume::Status;

/// The socket's name in the state directory.
const SOCKET: &str = "control.sock";

/// How long somebody may take to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its process.
    pub pid: u32,
    /// Its store.
    pub store: String,
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
                let answered = tokio::time::timeout(PATIENCE, answer(stream, &store, &cache, &exports)).await;
                if let Ok(Err(error)) = answered {
                    warn!("somebody asked for the status and left: {error}");
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
    let volumes = exports.open_volumes().into_iter();
    let mut volumes: Vec<_> = volumes.map(|(name, volume)| VolumeStatus { name, status: volume.status() }).collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let status = ServerStatus { pid: std::process::id(), store: store.to_owned(), cache: cache.status(), volumes };
    stream.write_all(&serde_json::to_vec(&status)?).await?;
    stream.shutdown().await
}

/// Asks the server that has the state directory.
pub async fn ask(state: &Path) -> io::Result<ServerStatus> {
    let mut stream = UnixStream::connect(path(state)).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(serde_json::from_slice(&answer)?)
}
