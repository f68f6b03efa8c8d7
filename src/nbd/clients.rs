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
    /// The connections that are about to be attached, until they are.
    coming: Mutex<BTreeMap<u64, Party>>,
    /// The connections that have said whose they are, until nothing is left of them.
    members: Mutex<BTreeMap<u64, (Succession, Arc<Notify>)>>,
    /// One of them has left.
    member_left: Notify,
}

/// Who uses which export, or is about to.
#[derive(Clone, Debug)]
pub struct Party {
    /// Who it is, for people.
    pub peer: String,
    /// Where it comes from.
    pub host: Host,
    /// The export.
    pub export: String,
    /// Told when somebody wants it gone.
    pub evicted: Arc<Notify>,
}

/// One client in its transmission phase.
#[derive(Debug)]
pub struct Client {
    party: Party,
    since: Instant,
    requests: AtomicU64,
    gauge: Gauge,
    /// Its TCP connection.
    line: Option<Line>,
    /// Until when it believes that its volume will soon leave this server.
    believes_until: Mutex<Option<Instant>>,
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
    pub fn attach(self: &Arc<Clients>, party: Party, gauge: Gauge, line: Option<Line>) -> Attached {
        let (since, requests, believes_until) = (Instant::now(), AtomicU64::new(0), Mutex::default());
        let client = Arc::new(Client { party, since, requests, gauge, line, believes_until });
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
        attached.values().map(|client| &client.party).filter(|party| party.export == export).map(Party::name).collect()
    }

    /// Counts a connection as one that is about to be attached until the guard is dropped, which is to be when it is attached. It is
    /// counted before it is decided whether it gets its export: so whoever refuses an export from now on, and then evicts
    /// its clients, misses nobody.
    pub fn come(self: &Arc<Clients>, party: Party) -> Coming {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.coming.lock().insert(id, party);
        Coming { clients: Arc::clone(self), id }
    }

    /// Ends the connections of an export's clients: of all, or of those from that address (with or without its port).
    /// Returns the addresses of the clients that go.
    pub fn evict(&self, export: &str, address: Option<&str>) -> Vec<String> {
        let is_meant = |party: &&Party| party.export == export && party.is_at(address);
        // In the order in which they go from one to the other, so that nobody slips through; some are seen in both.
        let mut meant: Vec<Party> = self.coming.lock().values().filter(is_meant).cloned().collect();
        for party in self.attached.lock().values().map(|client| &client.party).filter(is_meant) {
            if !meant.iter().any(|seen| Arc::ptr_eq(&seen.evicted, &party.evicted)) {
                meant.push(party.clone());
            }
        }
        meant.iter().for_each(|party| party.evicted.notify_one());
        meant.iter().map(Party::name).collect()
    }

    /// The clients of an export will be told that it leaves this server, and believe it for so long.
    pub fn announce(&self, export: &str, within: Duration) {
        for client in self.attached.lock().values().filter(|client| client.party.export == export) {
            *client.believes_until.lock() = Some(Instant::now() + within);
        }
    }

    /// Counts a connection among those of its client until the guard is dropped. `evicted` is told when a later one takes its place.
    pub fn join(self: &Arc<Clients>, succession: Succession, evicted: Arc<Notify>) -> Member {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.members.lock().insert(id, (succession, evicted));
        Member { clients: Arc::clone(self), id }
    }

    /// Whether any client has said that it comes back.
    pub fn has_members(&self) -> bool {
        !self.members.lock().is_empty()
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
        let others = attached.values().filter(|client| client.party.export == export && client.party.host != but);
        let asked = others.filter(|client| client.line.as_ref().inspect(|line| line.ask()).is_some());
        // A connection that ends meanwhile must not be held open by those who ask.
        Asking(asked.map(Arc::downgrade).collect())
    }
}

impl Party {
    fn name(&self) -> String {
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

    /// Whether it believes that its volume will soon leave this server.
    pub fn is_about_to_part(&self) -> bool {
        self.believes_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Has its connection end.
    pub fn evict(&self) {
        self.party.evicted.notify_one();
    }

    /// Waits until somebody wants it gone.
    pub async fn evicted(&self) {
        self.party.evicted.notified().await;
    }

    fn info(&self) -> ClientInfo {
        ClientInfo {
            address: self.party.name(),
            export: self.party.export.clone(),
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

/// See [`Clients::come`].
#[derive(Debug)]
pub struct Coming {
    clients: Arc<Clients>,
    id: u64,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.clients.coming.lock().remove(&self.id);
    }
}

/// See [`Clients::join`].
#[derive(Debug)]
pub struct Member {
    clients: Arc<Clients>,
    id: u64,
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

    fn party(peer: &str, export: &str) -> Party {
        let host = match peer.parse::<std::net::SocketAddr>() {
            Ok(address) if !address.ip().is_loopback() => Host::Remote(address.ip()),
            _ => Host::Local,
        };
        Party { peer: peer.to_owned(), host, export: export.to_owned(), evicted: Arc::default() }
    }

    fn attach(clients: &Arc<Clients>, peer: &str, export: &str) -> Attached {
        clients.attach(party(peer, export), Gauge::default(), None)
    }

    #[tokio::test]
    async fn a_successor_waits_until_nothing_is_left_of_those_before() {
        let clients = Arc::new(Clients::default());
        let of = |client, generation| Succession { client: uuid::Uuid::from_u128(client), generation };
        let parties = [(); 3].map(|()| party("10.0.0.5:4000", "disk0"));
        let join = |at: usize, succession| clients.join(succession, Arc::clone(&parties[at].evicted));
        let (before, _beside, _other) = (join(0, of(1, 1)), join(1, of(1, 2)), join(2, of(2, 1)));
        let attached = clients.attach(parties[0].clone(), Gauge::default(), None);
        let mut succeeds = pin!(clients.succeed(of(1, 2)));
        assert!(futures::poll!(&mut succeeds).is_pending());
        attached.client.evicted().await;
        drop(attached);
        assert!(futures::poll!(&mut succeeds).is_pending(), "what it left behind is not settled");
        drop(before);
        succeeds.await;
        for stays in &parties[1..] {
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
        // And those who are about to be attached, in each moment of it.
        let comes = party("10.0.0.8:4000", "disk0");
        let coming = clients.come(comes.clone());
        assert_eq!(clients.evict("disk0", Some("10.0.0.8")), ["10.0.0.8:4000"]);
        comes.evicted.notified().await;
        let _attached = clients.attach(comes.clone(), Gauge::default(), None);
        assert_eq!(clients.evict("disk0", Some("10.0.0.8")), ["10.0.0.8:4000"], "once, though it is seen twice");
        drop(coming);
        assert_eq!(clients.evict("disk0", Some("10.0.0.8")), ["10.0.0.8:4000"]);
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
