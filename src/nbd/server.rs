//! The server: listens, counts connections, serves each in a task of its own, and shuts down in order.
//!
//! Shutdown goes through the phases of `phase`. *Draining*: the sockets stop listening, handshakes are
//! answered with ERR_SHUTDOWN, requests in flight finish, later ones get ESHUTDOWN, and each connection closes when
//! its last reply is written (rules C7, H11, E1). *Closed*, after `shutdown_timeout`: what is left is given up.
//! Every task is counted, so that [`Server::shutdown`] returns when none is left.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_vsock::VsockStream;

use super::access::{Caller, Origin, Refusals, Rule, Who};
use super::admission::{Admission, Room};
use super::clients::{ClientInfo, Clients, Line, Party};
use super::flusher::Flusher;
use super::handshake::{self, Entered, Handshake, HandshakeError, Outcome, Visitor};
use super::hosts::{Host, Hosts};
use super::listen::{Door, ListenAddr, Listener, Stream};
use super::options::Options;
use super::phase::{Life, Phase, TaskGuard};
use super::session::{self, Leftover, Setup};
use super::tls::{self, Tls, TlsError, TlsMode};
use crate::device::{Device, Exports};

/// How long changes of a client that has gone may take until they are given up.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when a connection cannot be accepted, for lack of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server. Dropping it closes every connection at once; [`Server::shutdown`] is the orderly way.
pub struct Server {
    core: Arc<Core>,
    listeners: Mutex<Vec<(Listener, Way)>>,
    addresses: Vec<ListenAddr>,
}

impl Server {
    /// Listens on the addresses; clients wait until [`Server::run`]. It fails if an option is out of bounds, or an
    /// address cannot be had; the error names it.
    pub async fn bind(options: Options, addresses: Vec<ListenAddr>, exports: Arc<dyn Exports>) -> io::Result<Server> {
        Server::open(options, addresses.into_iter().map(Door::from).collect(), exports).await
    }

    /// The same, through doors of any kind. It fails also if the files of TLS cannot be used.
    pub async fn open(options: Options, doors: Vec<Door>, exports: Arc<dyn Exports>) -> io::Result<Server> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        options.check().map_err(|error| invalid(error.to_string()))?;
        options.check_access().map_err(|why| invalid(format!("nbd.access: {why}")))?;
        let tls = Tls::load(&options.tls).await.map_err(|error| invalid(error.to_string()))?;
        let mut listeners = Vec::with_capacity(doors.len());
        for Door { at, tls, allow, socket } in doors {
            let listener = Listener::open(at, socket, options.client_timeout).await?;
            let mode = tls.unwrap_or_else(|| listener.usual_tls(options.tls.mode));
            listeners.push((listener, Way { tls: mode, allow: allow.into() }));
        }
        let modes = listeners.iter().map(|(_, way)| way.tls).chain([options.tls.mode]);
        let most = modes.max().unwrap_or_default();
        if tls.is_none() && most > TlsMode::Off {
            return Err(invalid(TlsError::missing("certificate").to_string()));
        }
        // `serve` is a way in as well, where there is no other.
        let most = listeners.iter().map(|(_, way)| way.tls).max().unwrap_or(options.tls.mode);
        options.tls.check_use(most, !options.access.is_empty()).map_err(|error| invalid(error.to_string()))?;
        let addresses = listeners.iter().map(|(listener, _)| listener.address()).collect::<io::Result<_>>()?;
        let core = Core {
            room: Arc::new(Room::new(&options)),
            places: Arc::new(Semaphore::new(options.max_connections)),
            full: AtomicBool::new(false),
            turned_away: Refusals::default(),
            connections: AtomicU64::new(0),
            refused: Refusals::default(),
            tls,
            flusher: Flusher::default(),
            hosts: Arc::default(),
            clients: Arc::default(),
            life: Life::new(),
            access: RwLock::new(options.access.clone().into()),
            most,
            options,
            exports,
        };
        Ok(Server { core: Arc::new(core), listeners: Mutex::new(listeners), addresses })
    }

    /// Where it listens: with the ports that were taken, in the order of the addresses that were asked for.
    pub fn addresses(&self) -> &[ListenAddr] {
        &self.addresses
    }

    /// Accepts clients, and returns when the server has shut down. Clients are served even if this is dropped.
    pub async fn run(&self) {
        for (listener, way) in std::mem::take(&mut *self.listeners.lock()) {
            tokio::spawn(self.core.clone().accept(listener, way, self.core.life.task()));
        }
        let mut phases = self.core.life.phases();
        match &self.core.tls {
            Some(tls) => tokio::select! {
                biased;
                () = phases.draining() => {}
                () = tls.keep_fresh() => {}
            },
            None => phases.draining().await,
        }
        self.core.life.no_tasks().await;
    }

    /// Serves one client over any stream, until it has left or the server has shut down. `peer` says who it is, for
    /// the log, and `host` where it comes from. TLS is what the options say for TCP.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(&self, stream: S, peer: &str, host: Host) {
        if let Some(place) = self.core.admit() {
            let way = Way { tls: self.core.options.tls.mode, allow: Arc::default() };
            let connection = self.core.connections.fetch_add(1, Ordering::Relaxed) + 1;
            let guest = Guest { peer, connection, host, origin: Origin::Unknown };
            self.core.serve(Locked(stream), &way, guest, place).await;
        }
    }

    /// From now on these rules say who may use what; clients that are attached stay. Fails, and changes nothing, if they cannot be; the
    /// error is a sentence.
    pub fn set_access(&self, rules: Vec<Rule>) -> Result<(), String> {
        let options = Options { access: rules, ..self.core.options.clone() };
        options.check_access().map_err(|why| format!("nbd.access: {why}"))?;
        options.tls.check_use(self.core.most, !options.access.is_empty()).map_err(|error| error.to_string())?;
        *self.core.access.write() = options.access.into();
        Ok(())
    }

    /// The clients that are attached.
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.core.clients.list()
    }

    /// Whether there are clients that connect again by themselves, and so want to know beforehand (SUCCEED).
    pub fn has_clients_that_come_back(&self) -> bool {
        self.core.clients.has_members()
    }

    /// The clients of an export that come back will be told that it leaves this server, and believe it for so long.
    pub fn announce(&self, export: &str, within: Duration) {
        self.core.clients.announce(export, within);
    }

    /// Bytes of payload and read data that are in flight for all clients, and how many may be.
    pub fn bytes_in_flight(&self) -> (u64, u64) {
        self.core.room.bytes_in_flight()
    }

    /// Whether it takes nothing new any more.
    pub fn is_draining(&self) -> bool {
        self.core.life.phases().is_draining()
    }

    /// Ends the connections of an export's clients: of all, or of those from that address (with or without its port).
    /// Returns the addresses of the clients that go. What a client sent in full is still carried out; nothing keeps it from
    /// coming back.
    pub fn evict(&self, export: &str, address: Option<&str>) -> Vec<String> {
        self.core.clients.evict(export, address)
    }

    /// Shuts down: stops listening, lets requests in flight finish for at most `shutdown_timeout`, and closes.
    /// Returns when no connection and no flush is left; calling it twice does no harm.
    pub async fn shutdown(&self) {
        let Core { life, options, .. } = &*self.core;
        life.reach(Phase::Draining);
        drop(std::mem::take(&mut *self.listeners.lock()));
        if tokio::time::timeout(options.shutdown_timeout, life.no_tasks()).await.is_err() {
            let tasks = life.task_count();
            tracing::warn!(tasks, "closing connections whose requests did not finish within nbd.shutdown_timeout");
        }
        life.reach(Phase::Closed);
        life.no_tasks().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.core.life.reach(Phase::Closed);
    }
}

/// What the tasks of a server share.
struct Core {
    options: Options,
    exports: Arc<dyn Exports>,
    room: Arc<Room>,
    places: Arc<Semaphore>,
    /// Whether the last client found no place; so that the log says it once.
    full: AtomicBool,
    /// Clients that no list let in.
    turned_away: Refusals,
    /// Connections so far.
    connections: AtomicU64,
    /// Options for exports that no rule lets their clients use.
    refused: Refusals,
    tls: Option<Tls>,
    flusher: Flusher,
    hosts: Arc<Hosts>,
    clients: Arc<Clients>,
    life: Life,
    /// Who may use what; those of the options at first.
    access: RwLock<Arc<[Rule]>>,
    /// How much TLS there is at most, of all ways in.
    most: TlsMode,
}

/// A connection's place among `max_connections`, and its place among the tasks.
type Place = (OwnedSemaphorePermit, TaskGuard);

/// What a door asks of those who come through it.
#[derive(Clone, Debug)]
struct Way {
    tls: TlsMode,
    allow: Arc<[Who]>,
}

/// Who comes.
struct Guest<'a> {
    peer: &'a str,
    /// The number of its connection, by which lines of the log belong together.
    connection: u64,
    host: Host,
    origin: Origin,
}

impl Core {
    /// Accepts clients until the server drains.
    async fn accept(self: Arc<Core>, listener: Listener, way: Way, _task: TaskGuard) {
        let mut phases = self.life.phases();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = phases.draining() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    failing = false;
                    if !self.lets_in(&stream, &way) {
                        continue;
                    }
                    if let Some(place) = self.admit() {
                        tokio::spawn(self.clone().serve_stream(stream, way.clone(), place));
                    }
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!("cannot accept connections, trying again: {error}");
                    }
                    failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Whether the list of a door lets a client in.
    fn lets_in(&self, stream: &Stream, way: &Way) -> bool {
        if way.allow.is_empty() || way.allow.iter().any(|who| who.is(stream.origin(), None)) {
            return true;
        }
        if let Some(count) = self.turned_away.count() {
            let peer = stream.peer();
            tracing::warn!(peer, count, "turned a client away: its listener's list does not let it in");
        }
        false
    }

    /// A place for one more connection, unless there is none or the server drains.
    fn admit(&self) -> Option<Place> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            if !self.full.swap(true, Ordering::Relaxed) {
                let limit = self.options.max_connections;
                tracing::warn!(limit, "nbd.max_connections is reached: more clients are turned away");
            }
            return None;
        };
        self.full.store(false, Ordering::Relaxed);
        // First count, then look: so shutdown either sees the task or is seen.
        let task = self.life.task();
        (!self.life.phases().is_draining()).then_some((place, task))
    }

    async fn serve_stream(self: Arc<Core>, stream: Stream, way: Way, place: Place) {
        let peer = stream.peer();
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let guest = Guest { peer: &peer, connection, host: stream.host(), origin: stream.origin() };
        match stream {
            Stream::Tcp(stream, _) => self.serve(stream, &way, guest, place).await,
            Stream::Unix(stream) => self.serve(stream, &way, guest, place).await,
            Stream::Vsock(stream, _) => self.serve(stream, &way, guest, place).await,
        }
    }

    async fn serve<S: Halves>(&self, stream: S, way: &Way, guest: Guest<'_>, place: Place) {
        let mut phases = self.life.phases();
        let peer = guest.peer;
        tokio::select! {
            biased;
            () = phases.closed() => tracing::debug!(peer, "connection given up"),
            () = self.talk(stream, way, guest) => {}
        }
        drop(place);
    }

    async fn talk<S: Halves>(&self, mut stream: S, way: &Way, guest: Guest<'_>) {
        let handshake = Handshake::new(&self.options, way.tls.at_first());
        let mut caller = Caller { origin: guest.origin, tls: false, certificate: None };
        let evicted = Arc::new(Notify::new());
        let outcome = self.shake_hands(&mut stream, handshake, &guest, &caller, &evicted).await;
        // A second hold on the socket, which those who only stall are not given: they would take the files of others.
        let line = matches!(outcome, Some(Outcome::Enter(_) | Outcome::StartTls(_)))
            .then(|| stream.line(self.options.client_timeout))
            .flatten();
        let later = match outcome {
            Some(Outcome::Enter(entered)) => return self.attend(stream, guest, line, &caller, evicted, entered).await,
            Some(Outcome::StartTls(later)) => later,
            Some(Outcome::Left) | None => return,
        };
        // TLS is offered only if there is some.
        let Some(tls) = &self.tls else { return };
        let (peer, connection) = (guest.peer, guest.connection);
        let (mut stream, handshake) = match later.over_tls(tls.accept(stream.into_whole())).await {
            Ok((stream, handshake)) => (Locked(stream), handshake),
            Err(error) => return tracing::info!(peer, connection, "handshake broken off: {error}"),
        };
        caller.tls = true;
        caller.certificate = tls::names_of_client(&stream.0);
        if let Some(Outcome::Enter(entered)) = self.shake_hands(&mut stream, handshake, &guest, &caller, &evicted).await
        {
            self.attend(stream, guest, line, &caller, evicted, entered).await;
        }
    }

    async fn attend<S: Halves>(
        &self,
        mut stream: S,
        guest: Guest<'_>,
        line: Option<Line>,
        caller: &Caller,
        evicted: Arc<Notify>,
        entered: Entered,
    ) {
        let Guest { peer, connection, host, .. } = guest;
        let Entered { entry, device, agreed, read_only, visit, member, coming, rest } = entered;
        let export = entry.name;
        let admission = Admission::new(&self.options, self.room.clone());
        let party = Party { peer: peer.to_owned(), host, export: export.clone(), evicted };
        let attached = self.clients.attach(party, admission.gauge(), line);
        drop(coming);
        let certificate = caller.certificate.as_ref().map(|names| names.join(", "));
        tracing::info!(peer, connection, export, tls = caller.tls, certificate, read_only, "client attached");
        let setup = Setup {
            export: export.clone(),
            connection,
            device: device.clone(),
            agreed,
            read_only,
            visit,
            client: attached.client.clone(),
            comes_back: member.is_some(),
            options: &self.options,
            admission,
            room: self.room.clone(),
            phases: self.life.phases(),
            rest,
        };
        let (read, write) = stream.halves();
        let leftover = session::run(setup, read, write).await;
        tracing::info!(
            peer,
            connection,
            export,
            requests = attached.client.requests(),
            "client left: {}",
            leftover.end
        );
        drop((stream, attached));
        self.settle(leftover, export, device).await;
        // Whoever takes its place has waited for its last changes.
        drop(member);
    }

    async fn shake_hands<S: Halves>(
        &self,
        stream: &mut S,
        handshake: Handshake,
        guest: &Guest<'_>,
        caller: &Caller,
        evicted: &Arc<Notify>,
    ) -> Option<Outcome> {
        let mut phases = self.life.phases();
        let rules = Arc::clone(&self.access.read());
        let visitor = Visitor {
            peer: guest.peer,
            connection: guest.connection,
            host: guest.host,
            caller: caller.clone(),
            rules: &rules,
            refused: &self.refused,
            hosts: self.hosts.clone(),
            clients: self.clients.clone(),
            evicted,
        };
        let (peer, connection) = (guest.peer, guest.connection);
        let outcome = tokio::select! {
            biased;
            // One that another of its client takes the place of, or that is to have what is given away.
            () = evicted.notified() => {
                tracing::info!(peer, connection, "evicted in the handshake");
                return None;
            }
            outcome = handshake::run(stream.whole(), handshake, &visitor, &*self.exports, &self.options, &mut phases) => outcome,
        };
        match outcome {
            Ok(Outcome::Left) | Err(HandshakeError::Lost(_)) => {
                tracing::debug!(peer, "client left during the handshake");
                None
            }
            Ok(outcome) => Some(outcome),
            Err(error) => {
                tracing::info!(peer, connection, "handshake broken off: {error}");
                None
            }
        }
    }

    /// Sees to what a client left behind: its last changes, and a flush of what it had not flushed.
    async fn settle(&self, leftover: Leftover, export: String, device: Arc<dyn Device>) {
        let mut changes = leftover.changes;
        let all = async { while changes.next().await.is_some() {} };
        if tokio::time::timeout(LEFTOVER_TIMEOUT, all).await.is_err() {
            tracing::warn!(
                export,
                changes = changes.len(),
                "gave up requests of a client that left: they take too long"
            );
        }
        drop((changes, leftover.visit));
        if leftover.unflushed {
            self.flusher.start(&self.life, export, device);
        }
    }
}

/// A stream that can be read and written side by side.
trait Halves: Send {
    /// Both at once, for the handshake.
    fn whole(&mut self) -> &mut (impl AsyncRead + AsyncWrite + Unpin + Send);

    /// The same for good, for TLS.
    fn into_whole(self) -> impl AsyncRead + AsyncWrite + Unpin + Send;

    /// The reading and the writing half, for the session.
    fn halves(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send);

    /// The way to ask whether its host is still there, if there is one. Without it, that takes longer to be found out. (The kernel
    /// itself ends what is no TCP when the process, or the machine, is gone.)
    fn line(&self, _client_timeout: Duration) -> Option<Line> {
        None
    }
}

impl Halves for TcpStream {
    fn whole(&mut self) -> &mut (impl AsyncRead + AsyncWrite + Unpin + Send) {
        self
    }

    fn into_whole(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
        self
    }

    fn halves(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send) {
        self.split()
    }

    fn line(&self, client_timeout: Duration) -> Option<Line> {
        Line::of(self, client_timeout).ok()
    }
}

/// Streams that split by themselves, and of which there is no more to know.
macro_rules! halves {
    ($($stream:ty),+) => {$(
        impl Halves for $stream {
            fn whole(&mut self) -> &mut (impl AsyncRead + AsyncWrite + Unpin + Send) {
                self
            }

            fn into_whole(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
                self
            }

            fn halves(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send) {
                self.split()
            }
        }
    )+};
}

halves!(UnixStream, VsockStream);

/// Any other stream, such as one of TLS: its halves take turns under a lock.
struct Locked<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Halves for Locked<S> {
    fn whole(&mut self) -> &mut (impl AsyncRead + AsyncWrite + Unpin + Send) {
        &mut self.0
    }

    fn into_whole(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
        self.0
    }

    fn halves(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send) {
        tokio::io::split(&mut self.0)
    }
}
