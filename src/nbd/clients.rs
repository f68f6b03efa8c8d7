//! The clients that are attached: who they are, what they hold, and the ways to be rid of one that is dead.
//!
//! NBD has no question that a server may ask, so a client whose host is gone is found out by TCP alone ([`KeepAlive`]): its
//! kernel answers nothing any more. While a second host waits for the export, the first is asked every second.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::admission::Gauge;
use super::hosts::Host;
use super::wire::Succession;

/// The clients of a server.
#[derive(Debug, Default)]
pub struct Clients {
    next: AtomicU64,
    attached: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// The connections that have said whose they are, until nothing is left of them.
    members: Mutex<BTreeMap<u64, (Succession, Arc<Notify>)>>,
    /// One of them has left.
    member_left: Notify,
}

/// One client in its transmission phase.
#[derive(Debug)]
pub struct Client {
    peer: String,
    host: Host,
    export: String,
    since: Instant,
    requests: AtomicU64,
    gauge: Gauge,
    evicted: Arc<Notify>,
    /// Its TCP connection.
    line: Option<Line>,
}

/// What there is to tell of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// Where it comes from: address and port, or the user and process at the far end of a Unix socket.
    pub address: String,
    /// The export that it uses.
    pub export: String,
    /// How long it has been attached.
    pub attached_for: Duration,
    /// Requests that were taken from it.
    pub requests: u64,
    /// Of those, requests that are not answered, or whose reply it has not fetched.
    pub requests_in_flight: u64,
    /// Bytes of payload and read data that are held for it.
    pub bytes_in_flight: u64,
}

impl Clients {
    /// Counts a client as attached until the guard is dropped.
    pub fn attach(
        self: &Arc<Clients>,
        peer: &str,
        host: Host,
        export: &str,
        gauge: Gauge,
        line: Option<Line>,
        member: Option<&Member>,
    ) -> Attached {
        let client = Arc::new(Client {
            peer: peer.to_owned(),
            host,
            export: export.to_owned(),
            since: Instant::now(),
            requests: AtomicU64::new(0),
            gauge,
            evicted: member.map_or_else(Arc::default, |member| Arc::clone(&member.evicted)),
            line,
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.attached.lock().insert(id, Arc::clone(&client));
        Attached { clients: Arc::clone(self), id, client }
    }

    /// All of them, those of one export together, the oldest first.
    pub fn list(&self) -> Vec<ClientInfo> {
        let mut all: Vec<ClientInfo> = self.attached.lock().values().map(|client| client.info()).collect();
        all.sort_by(|a, b| a.export.cmp(&b.export));
        all
    }

    /// The addresses of those that use an export.
    pub fn addresses(&self, export: &str) -> Vec<String> {
        let attached = self.attached.lock();
        attached.values().filter(|client| client.export == export).map(|client| client.peer.clone()).collect()
    }

    /// Ends the connections of an export's clients: of all, or of those from that address (with or without its port).
    /// Returns the addresses of the clients that go.
    pub fn evict(&self, export: &str, address: Option<&str>) -> Vec<String> {
        let attached = self.attached.lock();
        let meant = attached.values().filter(|client| client.export == export && client.is_at(address));
        meant.map(|client| client.evict()).collect()
    }

    /// Counts a connection among those of its client until the guard is dropped.
    pub fn join(self: &Arc<Clients>, succession: Succession) -> Member {
        let (id, evicted) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        self.members.lock().insert(id, (succession, Arc::clone(&evicted)));
        Member { clients: Arc::clone(self), id, evicted }
    }

    /// Ends the earlier connections of the same client, and returns when nothing is left of them: no request that was
    /// taken from them takes effect any more. One that the client sends again here, and then overwrites, would else come back.
    pub async fn succeed(&self, succession: Succession) {
        loop {
            let mut left = pin!(self.member_left.notified());
            // First listen, then look, so that nobody leaves unseen.
            left.as_mut().enable();
            if !self.evict_before(succession) {
                return;
            }
            left.await;
        }
    }

    /// Whether there are any.
    fn evict_before(&self, Succession { client, generation }: Succession) -> bool {
        let members = self.members.lock();
        let mut before =
            members.values().filter(|(member, _)| member.client == client && member.generation < generation).peekable();
        let found = before.peek().is_some();
        before.for_each(|(_, evicted)| evicted.notify_one());
        found
    }

    /// Asks the hosts of an export's clients, other than `but`, every second whether they are still there, until the guard is
    /// dropped.
    pub fn ask(&self, export: &str, but: Host) -> Asking {
        let attached = self.attached.lock();
        let others = attached.values().filter(|client| client.export == export && client.host != but);
        let asked = others.filter(|client| client.line.as_ref().inspect(|line| line.ask()).is_some());
        // A connection that ends meanwhile must not be held open by those who ask.
        Asking(asked.map(Arc::downgrade).collect())
    }
}

impl Client {
    /// One more request was taken.
    pub fn took_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were taken.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until somebody wants it gone.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    fn evict(&self) -> String {
        self.evicted.notify_one();
        self.peer.clone()
    }

    fn is_at(&self, address: Option<&str>) -> bool {
        let Some(address) = address else { return true };
        let of_host = match self.host {
            Host::Remote(ip) => address.parse().is_ok_and(|asked: std::net::IpAddr| asked.to_canonical() == ip),
            // The address of these is their host's and a port.
            Host::Local | Host::Vsock(_) => false,
        };
        // The address of a client on this host has its port behind the last colon, too.
        of_host || self.peer == address || self.peer.rsplit_once(':').is_some_and(|(ip, _)| ip == address)
    }

    fn info(&self) -> ClientInfo {
        ClientInfo {
            address: self.peer.clone(),
            export: self.export.clone(),
            attached_for: self.since.elapsed(),
            requests: self.requests(),
            requests_in_flight: self.gauge.requests_in_flight(),
            bytes_in_flight: self.gauge.bytes_in_flight(),
        }
    }
}

/// See [`Clients::attach`].
#[derive(Debug)]
pub struct Attached {
    clients: Arc<Clients>,
    id: u64,
    /// The client.
    pub client: Arc<Client>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.clients.attached.lock().remove(&self.id);
    }
}

/// See [`Clients::join`].
#[derive(Debug)]
pub struct Member {
    clients: Arc<Clients>,
    id: u64,
    evicted: Arc<Notify>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.clients.members.lock().remove(&self.id);
        self.clients.member_left.notify_waiters();
    }
}

/// See [`Clients::ask`].
#[derive(Debug)]
pub struct Asking(Vec<Weak<Client>>);

impl Drop for Asking {
    fn drop(&mut self) {
        let here = self.0.iter().filter_map(Weak::upgrade);
        here.for_each(|client| client.line.iter().for_each(Line::leave_alone));
    }
}

/// A TCP connection, to ask whether the host at its end is still there.
#[derive(Debug)]
pub struct Line {
    socket: OwnedFd,
    client_timeout: Duration,
    /// How many ask.
    asking: AtomicUsize,
}

impl Line {
    /// The line of a socket, which is held open for as long as the line.
    pub fn of(socket: &impl AsFd, client_timeout: Duration) -> io::Result<Line> {
        Ok(Line { socket: socket.as_fd().try_clone_to_owned()?, client_timeout, asking: AtomicUsize::new(0) })
    }

    fn ask(&self) {
        if self.asking.fetch_add(1, Ordering::Relaxed) == 0 {
            self.set(KeepAlive::asking(self.client_timeout));
        }
    }

    fn leave_alone(&self) {
        if self.asking.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.set(KeepAlive::usual(self.client_timeout));
        }
    }

    fn set(&self, keep_alive: KeepAlive) {
        // A connection that has just ended cannot be asked, and need not be.
        if let Err(error) = keep_alive.set(&self.socket) {
            tracing::debug!("a connection cannot be asked whether it lives: {error}");
        }
    }
}

/// How TCP finds out that the host of a client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// A connection that was silent for this long is asked whether it lives ...
    pub idle: Duration,
    /// ... and asked again after this long.
    pub interval: Duration,
    /// A connection that answered nothing for this long is given up (TCP_USER_TIMEOUT): neither such a question, nor data,
    /// nor the question whether it takes data again.
    pub give_up: Duration,
}

impl KeepAlive {
    /// A host that is silent for longer than `client_timeout` is given up.
    pub fn usual(client_timeout: Duration) -> KeepAlive {
        KeepAlive {
            idle: seconds(client_timeout / IDLE_PART),
            interval: seconds(client_timeout / INTERVAL_PART),
            give_up: client_timeout,
        }
    }

    /// The same while somebody waits for the answer. A host that is there has answered within `idle` at the latest, so that
    /// it is given up only if it fails to answer [`QUESTIONS`] questions in a row.
    pub fn asking(client_timeout: Duration) -> KeepAlive {
        let usual = KeepAlive::usual(client_timeout);
        KeepAlive { idle: SECOND, interval: SECOND, give_up: usual.give_up.min(usual.idle + QUESTIONS * SECOND) }
    }

    /// Has a socket do so.
    pub fn set(&self, socket: &impl AsFd) -> io::Result<()> {
        let give_up = u32::try_from(self.give_up.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, give_up)?;
        sockopt::set_tcp_keepintvl(socket, self.interval)?;
        sockopt::set_socket_keepalive(socket, true)?;
        // Last: it sets the timer of a connection that is silent now.
        Ok(sockopt::set_tcp_keepidle(socket, self.idle)?)
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Questions that a host may leave unanswered while it is asked every second.
const QUESTIONS: u32 = 4;
/// The part of `client_timeout` after which a silent connection is asked.
const IDLE_PART: u32 = 5;
/// The part of `client_timeout` between two questions.
const INTERVAL_PART: u32 = 9;

/// TCP counts these in whole seconds, at least one.
fn seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::super::options::Options;
    use super::*;

    fn attach(clients: &Arc<Clients>, peer: &str, export: &str) -> Attached {
        let host = match peer.parse::<std::net::SocketAddr>() {
            Ok(address) if !address.ip().is_loopback() => Host::Remote(address.ip()),
            _ => Host::Local,
        };
        clients.attach(peer, host, export, Gauge::default(), None, None)
    }

    #[tokio::test]
    async fn a_successor_waits_until_nothing_is_left_of_those_before() {
        let clients = Arc::new(Clients::default());
        let of = |client, generation| Succession { client: uuid::Uuid::from_u128(client), generation };
        let [before, beside, other] = [of(1, 1), of(1, 2), of(2, 1)].map(|succession| clients.join(succession));
        let gauge = Gauge::default();
        let attached = clients.attach("10.0.0.5:4000", Host::Local, "disk0", gauge, None, Some(&before));
        let mut succeeds = pin!(clients.succeed(of(1, 2)));
        assert!(futures::poll!(&mut succeeds).is_pending());
        attached.client.evicted().await;
        drop(attached);
        assert!(futures::poll!(&mut succeeds).is_pending(), "what it left behind is not settled");
        drop(before);
        succeeds.await;
        for stays in [&beside, &other] {
            assert!(futures::poll!(pin!(stays.evicted.notified())).is_pending());
        }
    }

    #[test]
    fn a_client_is_listed_for_as_long_as_it_is_attached() {
        let clients = Arc::new(Clients::default());
        let (_b, a) = (attach(&clients, "10.0.0.5:4000", "b"), attach(&clients, "uid 0 pid 7", "a"));
        a.client.took_request();
        let listed: Vec<_> = clients.list().into_iter().map(|c| (c.address, c.export, c.requests)).collect();
        let line = |address: &str, export: &str, requests| (address.to_owned(), export.to_owned(), requests);
        assert_eq!(listed, [line("uid 0 pid 7", "a", 1), line("10.0.0.5:4000", "b", 0)]);
        drop(a);
        assert_eq!(clients.list().len(), 1);
        assert!(clients.addresses("a").is_empty());
    }

    #[tokio::test]
    async fn whoever_is_meant_is_evicted_and_nobody_else() {
        let clients = Arc::new(Clients::default());
        let peers = ["10.0.0.5:4000", "10.0.0.5:4001", "10.0.0.6:4000", "127.0.0.1:4000", "uid 0 pid 7"];
        let all: Vec<_> = peers.iter().map(|peer| attach(&clients, peer, "disk0")).collect();
        let _other = attach(&clients, "10.0.0.5:4002", "disk1");
        for (address, meant) in [
            (Some("10.0.0.5"), &peers[..2]),
            (Some("::ffff:10.0.0.6"), &peers[2..3]),
            (Some("10.0.0.5:4001"), &peers[1..2]),
            (Some("127.0.0.1"), &peers[3..4]),
            (Some("uid 0 pid 7"), &peers[4..]),
            (Some("10.0.0.7"), &[]),
            (None, &peers[..]),
        ] {
            assert_eq!(clients.evict("disk0", address), meant, "{address:?}");
        }
        assert_eq!(clients.evict("disk2", None), [""; 0]);
        for attached in &all {
            attached.client.evicted().await;
        }
    }

    #[test]
    fn a_silent_host_is_given_up_within_a_minute_by_default_and_never_for_one_lost_question() {
        let timeout = Options::default().client_timeout;
        let usual = KeepAlive::usual(timeout);
        assert!(usual.give_up + usual.interval <= Duration::from_secs(60), "{usual:?}");
        assert!(usual.idle + 3 * usual.interval < usual.give_up, "{usual:?}");
        let asking = KeepAlive::asking(timeout);
        assert!(asking.give_up >= usual.idle + 4 * asking.interval, "{asking:?}");
        assert!(asking.give_up + 2 * asking.interval <= Options::default().attach_wait, "{asking:?}");
        // TCP takes no time below a second.
        assert_eq!(KeepAlive::usual(Duration::from_secs(2)).interval, SECOND);
        assert_eq!(KeepAlive::asking(Duration::from_secs(2)).give_up, Duration::from_secs(2));
    }
}
