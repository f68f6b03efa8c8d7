//! The transmission phase of one connection (proto.md, "Transmission", "Terminating the transmission phase").
//!
//! One task reads requests and writes replies. It polls each request once itself, so that what the device answers at
//! once costs no task of its own, and hands a read that must wait to a task. Changes nearly always wait, many of them
//! for the same write to the journal, so they stay with the one task: the journal then wakes one task for all of them,
//! and their replies go out together. So requests run concurrently and are answered in any order (rule R3). What is in
//! flight is bounded by [`super::admission`]: without room the task does not read.
//!
//! How it ends:
//!
//! | end | requests in flight | replies |
//! | --- | --- | --- |
//! | DISC | finish | are written, then the socket closes (K9) |
//! | shutdown of the server | finish; new ones get ESHUTDOWN | are written, then the socket closes (E1) |
//! | client gone, evicted, or broke the protocol | reads are given up, the others go on ([`Leftover`]) | are thrown away |
//!
//! A change that a client sent in full is carried out even if the client leaves before the reply; a WRITE whose
//! payload was cut short never reaches the device.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::admission::{Admission, Room, Ticket};
use super::chunk::{Asked, Done, Failure};
use super::clients;
use super::hosts::Visit;
use super::incoming::{self, Incoming};
use super::negotiate::{Agreed, minimum_block_size};
use super::options::Options;
use super::phase::Phases;
use super::reply::{Answer, Batch, Replies, errno};
use super::request::{self, Payload, Refused, Request, Terms};
use super::status::{self, Descriptor};
use super::wire::{BadMagic, RequestHeader, allocation, changed};
use crate::device::{Device, DeviceError, Pieces, RUNS_MAX, Version};
use crate::human;

/// How long a session that the server ended waits for the client to close, so that a reset does not overtake the
/// last replies.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of read data after which replies are written before more requests are taken: while they are still in the
/// processor's cache, and before the client gets bored.
const WRITE_AFTER: u64 = 256 << 10;

/// What a session serves, and within which limits.
pub struct Setup<'a> {
    /// The export's name, for the log.
    pub export: String,
    /// The number of the connection, for the log.
    pub connection: u64,
    /// The export.
    pub device: Arc<dyn Device>,
    /// What the handshake agreed on.
    pub agreed: Agreed,
    /// Whether this client may only read, though the export may be writable.
    pub read_only: bool,
    /// What keeps other hosts away.
    pub visit: Option<Visit>,
    /// The client, among all that are attached.
    pub client: Arc<clients::Client>,
    /// Whether the client connects again by itself, and sends what has no reply once more (SUCCEED).
    pub comes_back: bool,
    /// The limits.
    pub options: &'a Options,
    /// The room of this connection.
    pub admission: Admission,
    /// The room that all connections share.
    pub room: Arc<Room>,
    /// When to end.
    pub phases: Phases,
    /// What the client sent ahead during the handshake.
    pub rest: BytesMut,
}

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// The client said DISC.
    Disconnected,
    /// The client closed without DISC, between requests.
    Closed,
    /// The server shut down.
    ShutDown,
    /// An operator ended the connection.
    Evicted,
    /// A request did not begin as a request must.
    BadMagic,
    /// A request that is refused said that so many bytes of payload follow.
    EndlessPayload(u64),
    /// The connection failed, or the client closed or stalled in the middle of something.
    Lost(io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Disconnected => f.write_str("the client disconnected"),
            End::Closed => f.write_str("the client closed the connection"),
            End::ShutDown => f.write_str("the server shuts down"),
            End::Evicted => f.write_str("it was evicted"),
            End::BadMagic => f.write_str("a request had the wrong magic number"),
            End::EndlessPayload(len) => write!(f, "a request that was refused had a payload of {len} bytes"),
            // What rustls says of a client that does not end TLS, too, is for programmers.
            End::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the connection was lost: it ended in the middle, or without a goodbye")
            }
            End::Lost(error) => write!(f, "the connection was lost: {error}"),
        }
    }
}

/// What a session leaves behind.
#[derive(Debug)]
pub struct Leftover {
    /// Why it ended.
    pub end: End,
    /// What keeps other hosts away until the changes are made.
    pub visit: Option<Visit>,
    /// Changes and flushes that are still being carried out, by whoever polls them.
    pub changes: Changes,
    /// Whether the device may hold changes of this client that no flush of this client covers.
    pub unflushed: bool,
}

/// Changes and flushes under way. None of them panics.
pub type Changes = FuturesUnordered<BoxFuture<'static, ()>>;

/// Serves requests until the session ends. Dropping it gives up what is in flight.
pub async fn run<R, W>(mut setup: Setup<'_>, read: R, write: W) -> Leftover
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let replies = Arc::new(Replies::default());
    let mut writer =
        Writer { io: write, replies: replies.clone(), patience: Patience::of(setup.options), room: setup.room.clone() };
    let visit = setup.visit.take();
    let mut session = Session::new(setup, read, replies.clone());
    let end = exchange(&mut session, &mut writer).await;
    replies.close();
    if matches!(end, End::Disconnected | End::ShutDown) {
        let _ = timeout(LINGER, writer.io.shutdown()).await;
    }
    if matches!(end, End::ShutDown) {
        let _ = timeout(LINGER, session.incoming.until_closed()).await;
    }
    let changes = std::mem::take(&mut *session.changes.lock());
    let unflushed = session.client.unflushed.load(Ordering::Acquire) || !changes.is_empty();
    Leftover { end, visit, changes, unflushed }
}

/// Reads and writes side by side; writing goes first, so that a client with much to say still gets its replies.
async fn exchange<R, W>(session: &mut Session<R>, writer: &mut Writer<W>) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (replies, changes, attached) =
        (session.replies.clone(), session.changes.clone(), session.client.attached.clone());
    let mut evicted = pin!(attached.evicted());
    let go_on =
        |context: &mut Context<'_>| while let Poll::Ready(Some(())) = changes.lock().poll_next_unpin(context) {};
    let mut writing = pin!(writer.run());
    let end = {
        let mut taking = pin!(session.take_requests());
        poll_fn(|context| {
            if evicted.as_mut().poll(context).is_ready() {
                return Poll::Ready(End::Evicted);
            }
            if let Poll::Ready(error) = writing.as_mut().poll(context) {
                return Poll::Ready(End::Lost(error));
            }
            let (taken, answered) = replies.watch(|| {
                let taken = taking.as_mut().poll(context);
                go_on(context);
                taken
            });
            match taken {
                Poll::Ready(end) => Poll::Ready(end),
                // What was answered just now goes out just now.
                Poll::Pending if answered => writing.as_mut().poll(context).map(End::Lost),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    };
    if matches!(end, End::Disconnected | End::ShutDown) {
        let mut all_answered = pin!(session.admission.all_answered());
        let finished = poll_fn(|context| {
            go_on(context);
            if evicted.as_mut().poll(context).is_ready() {
                return Poll::Ready(Some(End::Evicted));
            }
            match writing.as_mut().poll(context) {
                Poll::Ready(error) => Poll::Ready(Some(End::Lost(error))),
                Poll::Pending => all_answered.as_mut().poll(context).map(|()| None),
            }
        });
        if let Some(broken_off) = finished.await {
            return broken_off;
        }
    }
    end
}

/// How long a read is held, and how many bytes it has at most: see [`Client::hold`].
const HELD: Duration = Duration::from_millis(50);
const HELD_LEN: u32 = 4096;

/// What the requests of one connection share.
struct Client {
    export: String,
    connection: u64,
    device: Arc<dyn Device>,
    /// The minimum block size that it was told.
    unit: u32,
    /// Whether `base:allocation` is among its contexts.
    allocation: bool,
    /// The versions since which it wants to know what has changed, by the order of their contexts.
    changed: Vec<Version>,
    failures: AtomicU64,
    unflushed: AtomicBool,
    attached: Arc<clients::Client>,
    comes_back: bool,
}

struct Session<R> {
    incoming: Incoming<R>,
    terms: Terms,
    admission: Admission,
    replies: Arc<Replies>,
    client: Arc<Client>,
    phases: Phases,
    shutting_down: bool,
    /// Requests that change nothing: dropped with the session.
    reads: JoinSet<()>,
    /// Requests that are carried out even if the client leaves. [`exchange`] polls them.
    changes: Arc<Mutex<Changes>>,
    /// Bytes of read data that were answered here since the last chance to write.
    unwritten: u64,
}

impl<R: AsyncRead + Unpin> Session<R> {
    fn new(setup: Setup<'_>, read: R, replies: Arc<Replies>) -> Session<R> {
        let info = setup.device.info();
        let Agreed { style, allocation, changed } = setup.agreed;
        let contexts = u32::from(allocation) + changed.len() as u32; // few: see `negotiate`
        let client = Client {
            export: setup.export,
            connection: setup.connection,
            device: setup.device,
            unit: minimum_block_size(setup.options.minimum_block_size, &info),
            allocation,
            changed,
            failures: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            attached: setup.client,
            comes_back: setup.comes_back,
        };
        let terms = Terms {
            size: info.size,
            read_only: info.read_only || setup.read_only,
            max_payload: setup.options.max_payload,
            style,
            contexts,
        };
        Session {
            incoming: Incoming::new(read, style, setup.rest, setup.options.stall_timeout, setup.room.clone()),
            terms,
            admission: setup.admission,
            replies,
            client: Arc::new(client),
            phases: setup.phases,
            shutting_down: false,
            reads: JoinSet::new(),
            changes: Arc::default(),
            unwritten: 0,
        }
    }

    async fn take_requests(&mut self) -> End {
        loop {
            let header = match self.next_header().await {
                Ok(header) => header,
                Err(end) => return end,
            };
            // The volume may have been made larger or smaller since the client was told its size.
            self.terms.size = self.client.device.info().size;
            let parsed = match self.shutting_down {
                true => request::refuse_for_shutdown(&header, &self.terms),
                false => request::parse(&header, &self.terms),
            };
            let done = match parsed {
                Ok(Request::Disconnect) => return End::Disconnected,
                Ok(request) => self.accept(&header, request).await,
                Err(Refused { payload: Payload::Endless(len), .. }) => return End::EndlessPayload(len),
                Err(Refused { errno, why, payload: Payload::Skip(len) }) => {
                    self.refuse(&header, Failure { errno, why: why.into(), offset: None }, len).await
                }
            };
            if let Err(error) = done {
                return End::Lost(error);
            }
        }
    }

    /// The next request. While shutting down it ends as soon as all is answered and no request has arrived; for a client that comes
    /// back, without looking whether one has: what it gets no reply for it sends again, to whoever serves then.
    async fn next_header(&mut self) -> Result<RequestHeader, End> {
        let header = loop {
            if self.client.comes_back && self.phases.is_draining() {
                return Err(End::ShutDown);
            }
            if let Some(header) = self.incoming.buffered_header() {
                break header;
            }
            tokio::select! {
                biased;
                () = self.phases.draining(), if !self.shutting_down => self.shutting_down = true,
                header = self.incoming.header() => match header {
                    Ok(Some(header)) => break header,
                    Ok(None) => return Err(End::Closed),
                    Err(error) => return Err(End::Lost(error)),
                },
                () = self.admission.all_answered(), if self.shutting_down => return Err(End::ShutDown),
            }
        };
        header.map_err(|BadMagic| End::BadMagic)
    }

    async fn refuse(&mut self, header: &RequestHeader, failure: Failure, payload: u64) -> io::Result<()> {
        let failures = self.client.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let (export, connection, why) = (&self.client.export, self.client.connection, &failure.why);
        match failures.is_power_of_two() {
            true => tracing::info!(export, connection, ?header, failures, "request refused: {why}"),
            false => tracing::debug!(export, connection, ?header, failures, "request refused: {why}"),
        }
        let ticket = self.admission.slot().await;
        self.incoming.skip(payload).await?;
        self.answer(header, ticket).send(Err(failure));
        Ok(())
    }

    fn answer(&self, header: &RequestHeader, ticket: Ticket) -> Answer {
        Answer::new(Asked::new(header, self.terms.style), self.replies.clone(), ticket)
    }

    async fn accept(&mut self, header: &RequestHeader, request: Request) -> io::Result<()> {
        self.client.attached.took_request();
        let ticket = self.admission.admit(request.payload()).await;
        let payload = match request {
            Request::Write { len, .. } => self.incoming.payload(len).await?,
            _ => Bytes::new(),
        };
        let answer = self.answer(header, ticket);
        self.start(request, carry_out(self.client.clone(), request, payload, answer)).await;
        Ok(())
    }

    /// Begins the work here. If it has to wait, a change goes on here and anything else in a task. If the device panics
    /// where that does not end the process (see [`crate::outside::panics`]), the work is dropped, and its [`Answer`] tells
    /// the client.
    async fn start(&mut self, request: Request, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = AssertUnwindSafe(work).catch_unwind().map(drop).boxed();
        if poll_fn(|context| Poll::Ready(work.poll_unpin(context))).await.is_pending() {
            if request.is_change() || request == Request::Flush {
                self.changes.lock().push(work);
            } else {
                while self.reads.try_join_next().is_some() {}
                self.reads.spawn(work);
            }
        } else if let Request::Read { len, .. } = request {
            self.unwritten += u64::from(len);
        }
        if self.unwritten >= WRITE_AFTER {
            self.unwritten = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Carries out one request and answers it.
async fn carry_out(client: Arc<Client>, request: Request, payload: Bytes, answer: Answer) {
    let flush = request == Request::Flush;
    // A change that is answered from here on counts as not flushed, even if this flush happens to cover it.
    let covered = flush && client.unflushed.swap(false, Ordering::AcqRel);
    let result = perform(&client, request, payload).await;
    match &result {
        Ok(_) if request.is_change() => client.unflushed.store(true, Ordering::Release),
        Err(_) if covered => client.unflushed.store(true, Ordering::Release),
        _ => {}
    }
    match result {
        // An error would go to the programs of a client that could have its answer from the next server.
        Err(DeviceError::ShuttingDown) if client.comes_back => {
            answer.withhold();
            client.attached.evict();
        }
        result => answer.send(result.map_err(|error| client.failed(&request, &error))),
    }
}

/// The device's part: nothing is checked here, see [`request::parse`].
async fn perform(client: &Client, request: Request, payload: Bytes) -> Result<Done, DeviceError> {
    let device = &client.device;
    match request {
        Request::Read { offset, len } => {
            client.hold(offset, len).await;
            return whole(device.read(offset, len).await?, len);
        }
        Request::BlockStatus { offset, len, one, .. } => return client.status(offset, len, one).await,
        Request::Write { offset, fua, .. } => device.write(offset, payload, fua).await?,
        Request::Flush => device.flush().await?,
        Request::Trim { offset, len, fua } => device.trim(offset, len, fua).await?,
        Request::Cache { offset, len } => device.cache(offset, len).await?,
        Request::WriteZeroes { offset, len, no_hole, fua } => device.write_zeroes(offset, len, no_hole, fua).await?,
        Request::Nothing | Request::Disconnect => {}
    }
    Ok(Done::Nothing)
}

/// A reply whose data is too short or too long would put the client out of step for ever.
fn whole(pieces: Pieces, len: u32) -> Result<Done, DeviceError> {
    match pieces.len() {
        sum if sum == u64::from(len) => Ok(Done::Data(pieces)),
        sum => Err(DeviceError::Io(format!("the device gave {sum} bytes where {len} were asked for"))),
    }
}

fn known(descriptors: Option<Vec<Descriptor>>, runs: usize, len: u64) -> Result<Vec<Descriptor>, DeviceError> {
    descriptors.ok_or_else(|| DeviceError::Io(format!("the device knows of {runs} runs, not of the {len} bytes")))
}

impl Client {
    /// A client that comes back reads the first block again and again when its volume is about to leave, so that something is under way whenever its kernel's
    /// timer goes off (see `attach/supervisor`). The answer takes a while: a few reads are enough then.
    async fn hold(&self, offset: u64, len: u32) {
        if self.comes_back && offset == 0 && len <= HELD_LEN && self.attached.is_about_to_part() {
            tokio::time::sleep(HELD).await;
        }
    }

    async fn status(&self, offset: u64, len: u64, one: bool) -> Result<Done, DeviceError> {
        let is_fine = self.unit <= self.device.info().block_size;
        // Several runs may be one descriptor if they are finer than what the client reckons with.
        let most = if one && is_fine { 1 } else { RUNS_MAX };
        let asked = status::Asked { offset, len, one, unit: self.unit };
        let mut contexts = Vec::new();
        if self.allocation {
            let runs = self.device.extents(offset, len, most).await?;
            contexts.push((allocation::ID, known(status::descriptors(&runs, &asked), runs.len(), len)?));
        }
        for (id, version) in (changed::FIRST_ID..).zip(&self.changed) {
            let compared = self.device.compare(version, offset, len, most).await?;
            contexts.push((id, known(status::changes(&compared, &asked), compared.len(), len)?));
        }
        Ok(Done::Status(contexts))
    }

    /// Says what failed and how the client is told. In a long outage every request may fail: the 1st, 2nd, 4th, 8th …
    /// failure of a connection is a warning, or, if the client is to blame, worth a line.
    fn failed(&self, request: &Request, error: &DeviceError) -> Failure {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let (export, connection) = (self.export.as_str(), self.connection);
        match error {
            _ if !failures.is_power_of_two() => {
                tracing::debug!(export, connection, ?request, failures, "request failed: {error}");
            }
            DeviceError::Io(_) | DeviceError::Unreadable { .. } | DeviceError::Fenced(_) => {
                tracing::warn!(export, connection, ?request, failures, "request failed: {error}");
            }
            _ => tracing::info!(export, connection, ?request, failures, "request refused: {error}"),
        }
        let offset = match error {
            DeviceError::Unreadable { offset, .. } => Some(*offset),
            _ => None,
        };
        Failure { errno: errno(error), why: error.to_string().into(), offset }
    }
}

struct Writer<W> {
    io: W,
    replies: Arc<Replies>,
    patience: Patience,
    room: Arc<Room>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes replies as they come, for ever: it returns only if that fails.
    async fn run(&mut self) -> io::Error {
        let mut batch = Batch::default();
        loop {
            self.replies.take(&mut batch).await;
            if let Err(error) = self.write(&mut batch).await {
                return error;
            }
        }
    }

    /// Writes a batch, and what a stream such as that of TLS has taken and not sent.
    async fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        let mut idle = Duration::ZERO;
        loop {
            let look = self.patience.look_after();
            let all_taken = !batch.has_remaining();
            let step = async {
                match all_taken {
                    true => self.io.flush().await.map(|()| 1),
                    false => self.io.write_buf(batch).await,
                }
            };
            match timeout(look, step).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(_)) if all_taken => return Ok(()),
                Ok(done) => {
                    done?;
                    idle = Duration::ZERO;
                }
                Err(_) => {
                    idle += look;
                    self.patience.check(idle, self.room.is_contended())?;
                }
            }
        }
    }
}

/// How long a client may fetch nothing of the replies that wait for it. They hold memory, for ever if nobody put an end to
/// it: also where no other client wants it just now.
#[derive(Clone, Copy, Debug)]
struct Patience {
    while_others_wait: Duration,
    at_most: Duration,
}

impl Patience {
    fn of(options: &Options) -> Patience {
        Patience { while_others_wait: options.stall_timeout, at_most: options.client_timeout }
    }

    /// How often to look.
    fn look_after(&self) -> Duration {
        self.while_others_wait.min(self.at_most)
    }

    /// Fails if a client that has fetched nothing for so long is to be dropped.
    fn check(&self, idle: Duration, others_wait: bool) -> io::Result<()> {
        if idle >= self.at_most {
            let text = format!("the client fetched nothing of its replies for {}", human::exact_duration(idle));
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        match others_wait && idle >= self.while_others_wait {
            true => Err(incoming::stalled("fetching its replies")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use tokio::io::ReadBuf;
    use tokio::time::Instant;

    use super::super::admission::Gauge;
    use super::super::hosts::Host;
    use super::super::phase::Life;
    use super::super::wire::{SIMPLE_REPLY_BYTES, command};
    use super::*;
    use crate::device::memory::MemoryDevice;

    /// Requests that have arrived; no more will.
    struct Arrived(Bytes);

    impl AsyncRead for Arrived {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            let now = self.0.len().min(into.remaining());
            into.put_slice(&self.0.split_to(now));
            Poll::Ready(Ok(()))
        }
    }

    /// The bytes of each system call.
    #[derive(Clone, Default)]
    struct Calls(Arc<parking_lot::Mutex<Vec<usize>>>);

    impl AsyncWrite for Calls {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let len = parts.iter().map(|part| part.len()).sum();
            self.0.lock().push(len);
            Poll::Ready(Ok(len))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(no: u64) -> [u8; RequestHeader::BYTES] {
        let (flags, command, cookie) = (0, command::READ, no);
        RequestHeader { flags, command, cookie, offset: no * 4096, len: 4096 }.encode()
    }

    fn setup<'a>(options: &'a Options, clients: &Arc<clients::Clients>, life: &Life, comes_back: bool) -> Setup<'a> {
        let room = Arc::new(Room::new(options));
        let (peer, export) = ("a test".to_owned(), "disk".to_owned());
        let party = clients::Party { peer, host: Host::Local, export, evicted: Arc::default() };
        let attached = clients.attach(party, Gauge::default(), None);
        let client = attached.client.clone();
        // For as long as the test.
        std::mem::forget(attached);
        Setup {
            export: "disk".into(),
            connection: 1,
            device: Arc::new(MemoryDevice::new(1 << 20)),
            agreed: Agreed::default(),
            read_only: false,
            visit: None,
            client,
            comes_back,
            options,
            admission: Admission::new(options, room.clone()),
            room,
            phases: life.phases(),
            rest: BytesMut::new(),
        }
    }

    #[tokio::test]
    async fn requests_that_are_answered_at_once_are_replied_to_together_without_a_task_switch() {
        let arrived = Arrived((0..32).flat_map(read).collect());
        let (calls, wakes, options) = (Calls::default(), Arc::new(Wakes::default()), Options::default());
        let (clients, life) = (Arc::default(), Life::new());
        let mut session = pin!(run(setup(&options, &clients, &life, false), arrived, calls.clone()));
        let waker = Waker::from(wakes.clone());
        let polled = poll_fn(|_| Poll::Ready(session.as_mut().poll(&mut Context::from_waker(&waker)))).await;
        assert!(polled.is_pending());
        assert_eq!(*calls.0.lock(), [32 * (SIMPLE_REPLY_BYTES + 4096)], "one system call for all replies");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn reads_of_the_first_block_take_a_while_when_their_volume_is_about_to_leave() {
        let options = Options::default();
        for (block, comes_back, is_told) in [(0, true, true), (0, true, false), (0, false, true), (1, true, true)] {
            let (calls, clients, life, begun) = (Calls::default(), Arc::default(), Life::new(), Instant::now());
            let setup = setup(&options, &clients, &life, comes_back);
            if is_told {
                clients.announce("disk", Duration::from_secs(9));
            }
            let session = run(setup, Arrived(read(block).to_vec().into()), calls.clone());
            let answered = async {
                while calls.0.lock().is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                leftover = session => panic!("{}", leftover.end),
                () = answered => {}
            }
            let is_held = begun.elapsed() >= HELD;
            assert_eq!(is_held, block == 0 && comes_back && is_told, "{block} {comes_back} {is_told}");
        }
    }
}
