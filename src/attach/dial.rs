//! Connections to a server, in their transmission phase: as many as a kernel is to have.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::handshake::{Handshake, Offer, Refusal};
use super::kernel::Sockets;
use crate::nbd::KeepAlive;
use crate::nbd::wire::Succession;

/// How long a connection, and the answer to its greeting, may take. Opening a volume may take long: a server that opens it says
/// nothing meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);

/// After how long a host that does not answer is given up: its kernel answers for a server that is only slow. And after how long a server
/// that does not greet is: that needs neither its store nor the volume.
const SILENCE: Duration = Duration::from_secs(20);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Host and port.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => f.write_str(address),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there are no connections.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The server cannot be reached, or ends the connection.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// It takes the connection, and says nothing at all.
    #[error("the server takes the connection and says nothing: it hangs, or takes no more clients")]
    Silent,
    /// It can, and does not let this client in.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Its connections are not of one disk.
    #[error("the server changed between two connections")]
    Unsteady,
}

/// Connects so many times, in the place of the client's earlier connections.
pub async fn dial(
    place: &Place,
    volume: &str,
    connections: usize,
    succession: Succession,
) -> Result<(Offer, Sockets), DialError> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server does not answer");
    let all = async {
        // All at once: they are of one generation, and none ends another.
        let dialed = (0..connections).map(|_| connect(place, Handshake::new(volume, succession)));
        let dialed = try_join_all(dialed).await?;
        let (offers, sockets): (Vec<_>, Sockets) =
            dialed.into_iter().map(|(offer, socket)| (offer, Arc::new(socket))).unzip();
        match &offers[..] {
            [first, rest @ ..] if rest.iter().all(|offer| offer == first) => Ok((first.clone(), sockets)),
            _ => Err(DialError::Unsteady),
        }
    };
    timeout(PATIENCE, all).await.map_err(late)?
}

/// Asks a server what it offers, on a connection that takes nobody's place and ends.
pub async fn ask(place: &Place, volume: &str) -> Result<Offer, DialError> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server does not answer");
    let asked = connect(place, Handshake::asking(volume));
    timeout(PATIENCE, asked).await.map_err(late)?.map(|(offer, _)| offer)
}

async fn connect(place: &Place, handshake: Handshake) -> Result<(Offer, OwnedFd), DialError> {
    match place {
        Place::Tcp(address) => {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the host does not answer");
            let mut stream = timeout(SILENCE, TcpStream::connect(address)).await.map_err(late)??;
            stream.set_nodelay(true)?;
            KeepAlive::usual(SILENCE).set(&stream)?;
            let offer = shake_hands(&mut stream, handshake).await?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok((offer, stream.into()))
        }
        Place::Unix(path) => {
            let mut stream = UnixStream::connect(path).await?;
            let offer = shake_hands(&mut stream, handshake).await?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok((offer, stream.into()))
        }
    }
}

async fn shake_hands(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut handshake: Handshake,
) -> Result<Offer, DialError> {
    let mut buffer = [0; 4096];
    loop {
        let reading = stream.read(&mut buffer);
        let read = match handshake.is_greeted() {
            false => timeout(SILENCE, reading).await.map_err(|_| DialError::Silent)??,
            // From now on it may be opening the volume.
            true => reading.await?,
        };
        if read == 0 {
            let words = "the server closed the connection";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, words).into());
        }
        if let Some(offer) = handshake.take(&buffer[..read])? {
            return Ok(offer);
        }
        stream.write_all(&handshake.output()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_told_from_one_that_is_slow() {
        let (mut near, _far) = tokio::io::duplex(4096);
        let begun = tokio::time::Instant::now();
        let silent = shake_hands(&mut near, Handshake::asking("db")).await;
        assert!(matches!(silent, Err(DialError::Silent)), "{silent:?}");
        assert_eq!(begun.elapsed(), SILENCE);
        // It has greeted, and takes its time to open the volume.
        let (mut near, mut far) = tokio::io::duplex(4096);
        let mut greeting = bytes::BytesMut::new();
        crate::nbd::wire::put_greeting(&mut greeting);
        far.write_all(&greeting).await.unwrap();
        let asked = timeout(5 * SILENCE, shake_hands(&mut near, Handshake::asking("db"))).await;
        assert!(asked.is_err());
    }

    /// The way to a server may be long: it is gone once, and not once for each connection.
    #[tokio::test]
    async fn all_connections_are_made_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap().to_string());
        // It greets nobody before all are there, and then ends.
        let server = async {
            let mut connections = Vec::new();
            for _ in 0..3 {
                connections.push(listener.accept().await.unwrap().0);
            }
        };
        let succession = Succession { client: uuid::Uuid::from_u128(7), generation: 2 };
        let dialed = dial(&place, "db", 3, succession);
        let ((), dialed) = tokio::join!(server, timeout(SILENCE, dialed));
        assert!(matches!(dialed, Ok(Err(DialError::Unreachable(_)))), "{dialed:?}");
    }
}
