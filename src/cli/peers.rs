//! `[peer]`: the listener for other servers' journals, and the way to the server that keeps this one's. What is said over a connection is [`crate::peer`]'s.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::doors;
use super::failure::Failure;
use super::outside::State;
use crate::config::Effective;
use crate::outside::{Random, Workers};
use crate::peer::keeper::Keeper;
use crate::peer::standby::{Link, Pipe};
use crate::peer::wire::{SECRET_MIN, Secret};

/// The longest file with a secret.
const SECRET_FILE_MAX: u64 = 64 << 10;

/// What the configuration says of peers.
#[derive(Default)]
pub struct Peers {
    /// The way to the server that keeps copies of this one's journals.
    pub link: Option<Link>,
    /// What keeps copies of others' here.
    pub keeper: Option<Keeper>,
    listener: Option<TcpListener>,
}

/// Reads the secret and listens. Nothing is served yet: see [`Peers::listen`].
pub async fn of(config: &Effective, state: &State, random: &Random) -> Result<Peers, Failure> {
    let options = &config.peer;
    let (Some(secret), link) = ways(config, random).await? else { return Ok(Peers::default()) };
    let Some(listen) = &options.listen else { return Ok(Peers { link, ..Peers::default() }) };
    let address = doors::resolve(config, "peer.listen", listen).await?;
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.map_err(|error| config.refuse("peer.listen", format!("cannot listen on {address}: {error}")))?;
    let disk = state.disk.clone();
    let disk_of = move |volume: uuid::Uuid| Arc::new(disk.below(&volume.to_string())) as Arc<dyn crate::disk::Disk>;
    let keeper = Keeper::new(Arc::new(disk_of), secret, random.clone(), options.disk_bytes);
    let failed = |error: io::Error| Failure::failed(format!("state directory: {error}"));
    for name in state.disk.directories().await.map_err(failed)? {
        if let Ok(volume) = uuid::Uuid::try_parse(&name) {
            keeper.count(volume).await.map_err(failed)?;
        }
    }
    info!("journals of other servers are taken on {address}");
    Ok(Peers { link, keeper: Some(keeper), listener: Some(listener) })
}

/// The secret, and the way to the server that keeps copies of this one's journals; neither if the configuration names no peer.
pub async fn ways(config: &Effective, random: &Random) -> Result<(Option<Secret>, Option<Link>), Failure> {
    let options = &config.peer;
    let Some(secret_file) =
        options.secret_file.as_ref().filter(|_| options.listen.is_some() || options.address.is_some())
    else {
        return Ok((None, None));
    };
    let secret = secret(secret_file).await.map_err(|why| config.refuse("peer.secret_file", why))?;
    let link = options.address.clone().map(|address| Link {
        address: address.clone(),
        dial: Arc::new(move || dial(address.clone()).boxed()),
        secret: secret.clone(),
        random: random.clone(),
        options: options.clone(),
    });
    Ok((Some(secret), link))
}

impl Peers {
    /// Takes connections, for as long as the process lives.
    pub fn listen(&mut self) {
        let (Some(keeper), Some(listener)) = (self.keeper.clone(), self.listener.take()) else { return };
        drop(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => drop(tokio::spawn(serve(keeper.clone(), stream, from.to_string()))),
                    Err(error) => {
                        warn!("a connection for journals is not taken: {error}");
                        tokio::time::sleep(crate::peer::standby::RETRY_PAUSE).await;
                    }
                }
            }
        }));
    }
}

async fn serve(keeper: Keeper, stream: TcpStream, from: String) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(from, "{error}");
    }
    if let Err(why) = keeper.serve(stream, &from).await {
        warn!(from, "a connection for journals is ended: {why}");
    }
}

async fn dial(address: String) -> io::Result<Box<dyn Pipe>> {
    let stream = TcpStream::connect(address).await?;
    // A record of four kilobytes must not wait for an acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn secret(path: &Path) -> Result<Secret, String> {
    let path = path.to_owned();
    Workers::Threads
        .run(move || {
            let said = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
            let bytes = read(&path).map_err(|error| said(&error))?;
            Secret::of(&bytes).ok_or_else(|| {
                let few = format!("accepted is a file of {SECRET_MIN} bytes or more, the same on both servers, such as of `head -c 32 /dev/urandom | base64`");
                said(&few)
            })
        })
        .await
}

#[allow(clippy::disallowed_methods)] // no file of ours: the disk's door is for what must not be lost
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > SECRET_FILE_MAX {
        return Err(io::Error::other("accepted is a file of at most 64 KiB"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let path = path.display();
        warn!("peer.secret_file = {path}: other users may read the secret: chmod 600 {path}");
    }
    std::fs::read(path).map(Zeroizing::new)
}
