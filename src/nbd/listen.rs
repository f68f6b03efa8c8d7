//! Where clients come in: TCP and Unix sockets, and vsock.
//!
//! The file of a Unix socket outlives a server that was killed. It is replaced only if nobody listens on it any more,
//! and removed at the end only if it is still the one that was made here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio_vsock::{VsockListener, VsockStream};

use super::access::{Origin, Who};
use super::clients::KeepAlive;
use super::hosts::Host;
use super::tls::TlsMode;
use super::vsock::VsockAddress;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// An IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A port of vsock.
    Vsock(VsockAddress),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(address) => address.fmt(f),
            ListenAddr::Unix(path) => path.display().fmt(f),
            ListenAddr::Vsock(address) => address.fmt(f),
        }
    }
}

/// A way in: where to listen, and who may come.
#[derive(Debug)]
pub struct Door {
    /// The address, or a socket that listens already.
    pub at: At,
    /// Whether clients speak over TLS; not set, as [`super::TlsOptions`] says.
    pub tls: Option<TlsMode>,
    /// Who may come in; empty is everybody.
    pub allow: Vec<Who>,
    /// Who may use the file of a Unix socket.
    pub socket: SocketMode,
}

/// Where a door is.
#[derive(Debug)]
pub enum At {
    /// To be listened on.
    Address(ListenAddr),
    /// A TCP socket that somebody else has opened, such as systemd.
    GivenTcp(std::net::TcpListener),
    /// A Unix socket that somebody else has opened; its file is theirs.
    GivenUnix(std::os::unix::net::UnixListener),
}

/// The permissions and the owner of a Unix socket's file, where they are not what the process gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketMode {
    /// Permissions, as chmod takes them; who may write may connect.
    pub mode: Option<u32>,
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

impl From<ListenAddr> for Door {
    /// For everybody, with the TLS of the options.
    fn from(address: ListenAddr) -> Door {
        Door { at: At::Address(address), tls: None, allow: Vec::new(), socket: SocketMode::default() }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// TCP, and the `client_timeout` of its connections.
    Tcp(TcpListener, Duration),
    /// A Unix socket, and its file, if that was made here.
    Unix(UnixListener, Option<SocketFile>),
    /// Vsock.
    Vsock(VsockListener),
}

/// A connection, and who it is.
#[derive(Debug)]
pub enum Stream {
    /// TCP, without Nagle's delay (rule C1).
    Tcp(TcpStream, SocketAddr),
    /// A Unix socket.
    Unix(UnixStream),
    /// Vsock.
    Vsock(VsockStream, VsockAddress),
}

impl Listener {
    /// Listens; the error names the address and the way out. Hosts of TCP clients that answer nothing for `client_timeout`
    /// are given up.
    pub async fn open(at: At, socket: SocketMode, client_timeout: Duration) -> io::Result<Listener> {
        match at {
            At::Address(address) => Listener::bind(&address, socket, client_timeout).await,
            At::GivenTcp(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(TcpListener::from_std(listener)?, client_timeout))
            }
            At::GivenUnix(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
            }
        }
    }

    async fn bind(address: &ListenAddr, socket: SocketMode, client_timeout: Duration) -> io::Result<Listener> {
        let bound = match address {
            ListenAddr::Tcp(address) => bind_tcp(*address, client_timeout),
            ListenAddr::Unix(path) => bind_unix(path, socket).await,
            ListenAddr::Vsock(address) => VsockListener::bind(address.to_listen()).map(Listener::Vsock),
        };
        bound.map_err(|error| {
            let way_out = way_out(address, &error);
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{way_out}"))
        })
    }

    /// The address that clients use: with the port that was taken.
    pub fn address(&self) -> io::Result<ListenAddr> {
        match self {
            Listener::Tcp(listener, _) => Ok(ListenAddr::Tcp(listener.local_addr()?)),
            Listener::Unix(_, Some(file)) => Ok(ListenAddr::Unix(file.path.clone())),
            Listener::Unix(listener, None) => {
                let address = listener.local_addr()?;
                Ok(ListenAddr::Unix(address.as_pathname().unwrap_or(Path::new("(no name)")).to_owned()))
            }
            Listener::Vsock(listener) => Ok(ListenAddr::Vsock(VsockAddress::of(listener.local_addr()?))),
        }
    }

    /// What TLS is here if nobody says more than what it is for TCP: nobody is on the way of a Unix socket. Nor of vsock, but whoever
    /// is at its far end is another machine.
    pub fn usual_tls(&self, for_tcp: TlsMode) -> TlsMode {
        match self {
            Listener::Tcp(..) | Listener::Vsock(..) => for_tcp,
            Listener::Unix(..) => for_tcp.min(TlsMode::Allowed),
        }
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener, client_timeout) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                KeepAlive::usual(*client_timeout).set(&stream)?;
                Ok(Stream::Tcp(stream, peer))
            }
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
            Listener::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Stream::Vsock(stream, VsockAddress::of(peer)))
            }
        }
    }
}

impl Stream {
    /// Where it comes from.
    pub fn host(&self) -> Host {
        match self {
            Stream::Tcp(stream, peer) => match stream.local_addr() {
                Ok(local) => Host::of(peer.ip(), local.ip()),
                Err(_) => Host::Remote(peer.ip()),
            },
            Stream::Unix(_) => Host::Local,
            Stream::Vsock(stream, peer) => match stream.local_addr() {
                Ok(local) if peer.is_here(VsockAddress::of(local)) => Host::Local,
                _ => Host::Vsock(peer.cid()),
            },
        }
    }

    /// What the rules of access know it by.
    pub fn origin(&self) -> Origin {
        match self {
            Stream::Tcp(_, peer) => Origin::Ip(peer.ip().to_canonical()),
            Stream::Unix(stream) => Origin::Unix(stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid()))),
            Stream::Vsock(_, peer) => Origin::Vsock(peer.cid()),
        }
    }

    /// Who it is, for the log.
    pub fn peer(&self) -> String {
        match self {
            Stream::Tcp(_, peer) => peer.to_string(),
            Stream::Unix(stream) => match stream.peer_cred() {
                Ok(credentials) => match credentials.pid() {
                    Some(pid) => format!("uid {} pid {pid}", credentials.uid()),
                    None => format!("uid {}", credentials.uid()),
                },
                Err(_) => "unix socket".to_owned(),
            },
            Stream::Vsock(_, peer) => peer.to_string(),
        }
    }
}

/// What to do about an address that cannot be listened on.
fn way_out(address: &ListenAddr, error: &io::Error) -> &'static str {
    match (address, Errno::from_io_error(error)) {
        (ListenAddr::Vsock(_), Some(Errno::AFNOSUPPORT | Errno::NODEV)) => {
            "; this kernel has no vsock: load vhost_vsock on a host of virtual machines, vmw_vsock_virtio_transport in one, or \
             vsock_loopback for this machine only"
        }
        (ListenAddr::Vsock(_), Some(Errno::ADDRNOTAVAIL)) => {
            "; this machine has no such CID: vsock:any:PORT listens on all that it has"
        }
        _ if error.kind() == io::ErrorKind::AddrInUse => "; stop the other server or choose another address",
        _ => "",
    }
}

fn bind_tcp(address: SocketAddr, client_timeout: Duration) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(BACKLOG)?, client_timeout))
}

async fn bind_unix(path: &Path, mode: SocketMode) -> io::Result<Listener> {
    let socket = UnixSocket::new_stream()?;
    match socket.bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).await?;
            socket.bind(path)?;
        }
        bound => bound?,
    }
    let file = SocketFile::new(path)?;
    // Nobody can connect before it listens, so nobody comes in between.
    mode.set(path)?;
    Ok(Listener::Unix(socket.listen(BACKLOG)?, Some(file)))
}

impl SocketMode {
    fn set(&self, path: &Path) -> io::Result<()> {
        let saying =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("its {what} cannot be set: {error}"));
        if self.user.is_some() || self.group.is_some() {
            chown(path, self.user, self.group).map_err(|error| saying("owner", error))?;
        }
        match self.mode {
            Some(mode) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .map_err(|error| saying("mode", error)),
            None => Ok(()),
        }
    }
}

/// Removes the socket file of a server that is gone.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |text| Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("there is a file of that name, and it is not a socket");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => in_use("another server listens there"),
    }
}

/// The file of a Unix socket that listens; dropping it removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), device_and_inode: device_and_inode(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).is_ok_and(|now| now == self.device_and_inode) {
            // If it cannot be removed, the next server finds it stale and replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt;

    use super::super::admission::Gauge;
    use super::super::clients::{Clients, Line, Party};
    use super::super::options::CLIENT_TIMEOUT;
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(45);

    async fn accepted(client_timeout: Duration) -> (TcpStream, Stream) {
        let address = ListenAddr::Tcp("127.0.0.1:0".parse().unwrap());
        let listener = Listener::bind(&address, SocketMode::default(), client_timeout).await.unwrap();
        let ListenAddr::Tcp(address) = listener.address().unwrap() else { panic!("it is TCP") };
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap())
    }

    /// Seconds until a silent connection is asked, between two questions, and until it is given up.
    fn times(stream: &TcpStream) -> (u64, u64, u64) {
        assert!(sockopt::socket_keepalive(stream).unwrap());
        let idle = sockopt::tcp_keepidle(stream).unwrap().as_secs();
        let interval = sockopt::tcp_keepintvl(stream).unwrap().as_secs();
        (idle, interval, u64::from(sockopt::tcp_user_timeout(stream).unwrap()) / 1000)
    }

    #[tokio::test]
    async fn c1_accepted_tcp_sockets_have_no_delay_and_find_out_dead_hosts() {
        let (client, accepted) = accepted(TIMEOUT).await;
        assert_eq!(accepted.host(), Host::Local);
        let Stream::Tcp(stream, peer) = accepted else { panic!("it is TCP") };
        assert!(stream.nodelay().unwrap());
        assert_eq!(times(&stream), (9, 5, 45));
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn the_system_takes_what_the_options_accept() {
        let (min, max) = CLIENT_TIMEOUT;
        for (client_timeout, expected) in [(min, (1, 1, 2)), (max, (17_280, 9_600, 86_400))] {
            let (_client, Stream::Tcp(stream, _)) = accepted(client_timeout).await else { panic!("it is TCP") };
            assert_eq!(times(&stream), expected);
        }
    }

    #[tokio::test]
    async fn a_host_is_asked_every_second_while_somebody_waits_for_the_answer() {
        let (_client, accepted) = accepted(TIMEOUT).await;
        let clients = std::sync::Arc::new(Clients::default());
        let host = accepted.host();
        let Stream::Tcp(stream, _) = &accepted else { panic!("it is TCP") };
        let line = Line::of(stream, TIMEOUT).unwrap();
        let (peer, export) = ("a test".to_owned(), "disk0".to_owned());
        let party = Party { peer, host, export, evicted: std::sync::Arc::default() };
        let _attached = clients.attach(party, Gauge::default(), Some(line));
        let none = [clients.ask("disk1", Host::Remote([10, 0, 0, 1].into())), clients.ask("disk0", host)];
        assert_eq!(times(stream), (9, 5, 45), "another export, and its own host");
        drop(none);
        let other = Host::Remote([10, 0, 0, 1].into());
        let (one, two) = (clients.ask("disk0", other), clients.ask("disk0", other));
        assert_eq!(times(stream), (1, 1, 13));
        drop(one);
        assert_eq!(times(stream), (1, 1, 13));
        drop(two);
        assert_eq!(times(stream), (9, 5, 45));
    }

    /// Whether or not the kernel that runs this has vsock.
    #[tokio::test]
    async fn vsock_is_listened_on_or_refused_with_a_way_out() {
        let address = ListenAddr::Vsock("vsock:any:0".parse().unwrap());
        match Listener::bind(&address, SocketMode::default(), TIMEOUT).await {
            Ok(listener) => {
                let ListenAddr::Vsock(address) = listener.address().unwrap() else { panic!("it is vsock") };
                assert_ne!(address.port(), 0);
                assert!(address.to_string().starts_with("vsock:any:"), "{address}");
                assert_eq!(listener.usual_tls(TlsMode::Required), TlsMode::Required, "it is another machine");
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.starts_with("cannot listen on vsock:any:0: ") && text.contains("; this kernel has no vsock"),
                    "{text}"
                );
            }
        }
        for (errno, says) in [
            (Errno::AFNOSUPPORT, "; this kernel has no vsock: load "),
            (Errno::ADDRNOTAVAIL, "; this machine has no such CID: "),
            (Errno::ADDRINUSE, "; stop the other server"),
        ] {
            assert!(way_out(&address, &errno.into()).starts_with(says), "{errno}");
        }
        let tcp = ListenAddr::Tcp("127.0.0.1:0".parse().unwrap());
        assert_eq!(way_out(&tcp, &Errno::AFNOSUPPORT.into()), "");
    }

    #[tokio::test]
    async fn a_socket_file_that_another_server_made_meanwhile_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let old = Listener::bind(&ListenAddr::Unix(path.clone()), SocketMode::default(), TIMEOUT).await.unwrap();
        std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        let _new = Listener::bind(&ListenAddr::Unix(path.clone()), SocketMode::default(), TIMEOUT).await.unwrap();
        drop(old);
        assert!(path.exists());
    }
}
