//! The sender's end: the connection to the peer, and waiting for its word. What is sent and what its word is good for is decided in [`super::sender`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

use crate::change::Numbered;
use crate::outside::Random;
use crate::peer::Options;
use crate::peer::sender::{Phase, Promise, Sender, Word};
use crate::peer::stream::{Origin, Stream};
use crate::peer::wire::{
    CHUNK_BYTES, Decoder, Encoder, GREETING_BYTES, Message, Role, Secret, greeting, read_greeting, ways,
};
use crate::units::ChangeNo;

/// Between two tries to reach a peer.
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// So often, in its timeout, a peer is asked something.
const ASKS: u32 = 4;
/// Nothing more is put together while so many bytes wait to be sent.
const OUT_BYTES: usize = CHUNK_BYTES;

/// A connection.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// Connects.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Pipe>>> + Send + Sync>;

/// How the peer is reached.
#[derive(Clone)]
pub struct Link {
    /// Where it is, for people.
    pub address: String,
    /// Connects.
    pub dial: Dial,
    /// What both have.
    pub secret: Secret,
    /// Nonces.
    pub random: Random,
    /// Limits.
    pub options: Options,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a FLUSH waits for just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitsFor {
    /// The local journal, and the peer.
    Peer,
    /// The store: there is no peer, or none that has what it needs.
    Store,
}

/// How a volume stands to its peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peered {
    /// Where it is; "" if the server has none.
    pub address: String,
    /// What a FLUSH waits for.
    pub waits_for: WaitsFor,
    /// Since when, in milliseconds.
    pub millis: u64,
    /// Why there is no peer, if there is none and that is known.
    pub trouble: Option<String>,
    /// How often it was lost since the volume was opened.
    pub falls: u64,
    /// Bytes that are under way to it.
    pub lag_bytes: u64,
}

/// The peer of an open volume.
#[derive(Debug)]
pub struct Standby {
    volume: String,
    link: Link,
    sender: Mutex<Sender>,
    /// The peer's word was given, or is not given any more.
    changed: Notify,
    /// There may be something to send.
    wake: Notify,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    since: Instant,
    counts: bool,
    why: Option<String>,
    falls: u64,
}

/// What a connection needs of its volume.
pub struct Needs {
    /// Whose copies they are.
    pub origin: Origin,
    /// Brings all up to a change into the store. False if the volume has ended.
    pub commit: Box<dyn Fn(ChangeNo) -> BoxFuture<'static, bool> + Send + Sync>,
    /// Returns when the volume has ended, with whether it was closed in good order.
    pub ended: BoxFuture<'static, bool>,
}

/// Why a connection is over.
enum Over {
    /// Something is wrong.
    Lost(String),
    /// The volume has ended.
    Ended,
}

impl Standby {
    /// Nobody is reached yet. The next change will be `next`, and the store has all up to `covers`.
    pub fn new(volume: &str, link: Link, next: ChangeNo, covers: ChangeNo) -> Standby {
        let sender = Mutex::new(Sender::new(next, covers, link.options.lag_bytes));
        let told = Mutex::new(Told { since: Instant::now(), counts: false, why: None, falls: 0 });
        let (changed, wake) = (Notify::new(), Notify::new());
        Standby { volume: volume.to_owned(), link, sender, changed, wake, told }
    }

    /// A change was accepted. In the order of their numbers; never waits.
    pub fn append(&self, numbered: &Numbered) {
        if !self.sender.lock().append(numbered) {
            self.changed.notify_waiters();
        }
        self.wake.notify_one();
    }

    /// The store has all up to `covers`.
    pub fn release(&self, covers: ChangeNo) {
        self.sender.lock().release(covers);
        self.wake.notify_one();
    }

    /// Waits for the peer's word on a change and all before it. False if that does not come: then only the store can answer.
    pub async fn answers(&self, no: ChangeNo, promise: Promise) -> bool {
        let promise = if self.link.options.sync { promise } else { Promise::Had };
        loop {
            // Before the look, so that a change right after it is not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let word = self.sender.lock().word(no, promise);
            match word {
                Word::Given => return true,
                Word::None => return false,
                Word::Awaited => {}
            }
            if promise == Promise::Kept {
                self.wake.notify_one();
            }
            changed.await;
        }
    }

    /// After how long a silent peer is away.
    pub fn patience(&self) -> Duration {
        self.link.options.timeout
    }

    /// How it stands.
    pub fn peered(&self) -> Peered {
        let lag_bytes = self.sender.lock().lag();
        let told = self.told.lock();
        Peered {
            address: self.link.address.clone(),
            waits_for: if told.counts { WaitsFor::Peer } else { WaitsFor::Store },
            millis: told.since.elapsed().as_millis() as u64,
            trouble: told.why.clone(),
            falls: told.falls,
            lag_bytes,
        }
    }

    /// Reaches the peer, again and again, until the volume has ended.
    pub async fn keep(&self, mut needs: Needs) {
        loop {
            let dialled = tokio::select! {
                biased;
                dialled = dial(&self.link) => dialled,
                _ = &mut needs.ended => Err(Over::Ended),
            };
            let why = match dialled {
                Ok(pipe) => self.talk(pipe, &mut needs).await,
                Err(over) => over,
            };
            let why = match why {
                Over::Lost(why) => why,
                Over::Ended => {
                    self.lose(None);
                    return;
                }
            };
            self.lose(Some(why));
            tokio::select! {
                biased;
                _ = &mut needs.ended => return,
                () = sleep(RETRY_PAUSE) => {}
            }
        }
    }

    /// Its word counts no more, and everybody who waits is told.
    fn lose(&self, why: Option<String>) {
        self.sender.lock().lose();
        let address = &self.link.address;
        let mut told = self.told.lock();
        if std::mem::take(&mut told.counts) {
            (told.falls, told.since) = (told.falls + 1, Instant::now());
        }
        if let Some(why) = why.filter(|why| told.why.as_ref() != Some(why)) {
            tracing::warn!(
                volume = self.volume,
                "the peer {address} is away, so writes and flushes are answered when the store has them: {why}"
            );
            told.why = Some(why);
        }
        drop(told);
        self.changed.notify_waiters();
    }

    /// Its word counts.
    fn won(&self) {
        let mut told = self.told.lock();
        (told.since, told.counts, told.why) = (Instant::now(), true, None);
        tracing::info!(
            volume = self.volume,
            "the peer {} keeps a copy of the journal: flushes are answered when both have it",
            self.link.address
        );
    }

    async fn talk(&self, pipe: Box<dyn Pipe>, needs: &mut Needs) -> Over {
        match greet(&self.link, pipe).await {
            Ok((pipe, encoder, decoder)) => {
                let connection = self.sender.lock().linked();
                let talk = Talk {
                    standby: self,
                    connection,
                    encoder,
                    decoder,
                    out: BytesMut::new(),
                    stream: None,
                    covered: ChangeNo(0),
                };
                talk.run(pipe, needs).await
            }
            Err(over) => over,
        }
    }
}

/// Both say who they are.
async fn greet(link: &Link, mut pipe: Box<dyn Pipe>) -> Result<(Box<dyn Pipe>, Encoder, Decoder), Over> {
    let Link { secret, random, options, .. } = link;
    let own = random.bytes();
    let greeted = timeout(options.timeout, async {
        pipe.write_all(&greeting(Role::Sender, &own)).await?;
        let mut theirs = [0; GREETING_BYTES];
        pipe.read_exact(&mut theirs).await?;
        io::Result::Ok(theirs)
    });
    let theirs = match greeted.await {
        Ok(Ok(theirs)) => theirs,
        Ok(Err(error)) => return Err(lost(format!("it does not greet: {error}"))),
        Err(_) => return Err(silent(options)),
    };
    let theirs = read_greeting(&theirs, Role::Keeper).map_err(lost)?;
    let (encoder, decoder) = ways(secret, Role::Sender, &own, &theirs);
    Ok((pipe, encoder, decoder))
}

async fn dial(link: &Link) -> Result<Box<dyn Pipe>, Over> {
    match timeout(link.options.timeout, (link.dial)()).await {
        Ok(Ok(pipe)) => Ok(pipe),
        Ok(Err(error)) => Err(lost(format!("it cannot be reached: {error}"))),
        Err(_) => Err(silent(&link.options)),
    }
}

fn silent(options: &Options) -> Over {
    lost(format!("it says nothing for {} (peer.timeout)", humantime::format_duration(options.timeout)))
}

/// Whether the peer is there, speaks the protocol and has the same secret: after how long it answered, or why not. Nothing changes there.
pub async fn try_out(link: &Link) -> Result<Duration, String> {
    let began = Instant::now();
    let asked = async {
        let (mut pipe, mut encoder, mut decoder) = greet(link, dial(link).await?).await?;
        let mut out = BytesMut::new();
        encoder.put(&Message::Ask, &mut out);
        pipe.write_all_buf(&mut out).await.map_err(lost)?;
        loop {
            match decoder.take_message().map_err(lost)? {
                Some(Message::Has { .. }) => return Ok(began.elapsed()),
                Some(Message::Refused(why)) => return Err(lost(format!("it refuses: {why}"))),
                Some(_) => return Err(lost("it says what nobody asked for")),
                None if pipe.read_buf(decoder.buffer()).await.map_err(lost)? == 0 => {
                    return Err(lost("it ended the connection"));
                }
                None => {}
            }
        }
    };
    match timeout(link.options.timeout, asked).await.unwrap_or_else(|_| Err(silent(&link.options))) {
        Ok(after) => Ok(after),
        Err(Over::Lost(why)) => Err(why),
        Err(Over::Ended) => Err("it ended the connection".to_owned()),
    }
}

fn lost(why: impl std::fmt::Display) -> Over {
    Over::Lost(why.to_string())
}

/// One connection.
struct Talk<'a> {
    standby: &'a Standby,
    /// Its number.
    connection: u64,
    encoder: Encoder,
    decoder: Decoder,
    /// What waits to be sent.
    out: BytesMut,
    /// The copy, once it was begun.
    stream: Option<Stream>,
    /// What it was told that the store has.
    covered: ChangeNo,
}

impl Talk<'_> {
    async fn run(mut self, mut pipe: Box<dyn Pipe>, needs: &mut Needs) -> Over {
        let patience = self.standby.link.options.timeout;
        let mut asks = interval(patience / ASKS);
        let mut commit: Option<BoxFuture<'static, bool>> = None;
        let mut heard = Instant::now();
        loop {
            match self.say(&needs.origin) {
                Ok(None) => {}
                Ok(Some(owed)) => commit = commit.or_else(|| Some((needs.commit)(owed))),
                Err(over) => return over,
            }
            let (mut reads, mut writes) = tokio::io::split(&mut pipe);
            tokio::select! {
                biased;
                read = reads.read_buf(self.decoder.buffer()) => {
                    match read {
                        Ok(0) => return lost("it ended the connection"),
                        Err(error) => return lost(error),
                        Ok(_) => heard = Instant::now(),
                    }
                    if let Err(over) = self.hear() {
                        return over;
                    }
                }
                written = writes.write_buf(&mut self.out), if !self.out.is_empty() => {
                    if let Err(error) = written {
                        return lost(error);
                    }
                }
                closed = &mut needs.ended => {
                    if closed {
                        self.end(pipe).await;
                    }
                    return Over::Ended;
                }
                done = wait_for(&mut commit) => {
                    commit = None;
                    if !done {
                        return Over::Ended;
                    }
                }
                () = self.standby.wake.notified() => {}
                _ = asks.tick() => self.encoder.put(&Message::Ask, &mut self.out),
                () = sleep_until(heard + patience) => return silent(&self.standby.link.options),
            }
        }
    }

    /// Puts together what there is to say. Returns what is to be brought into the store before a copy can begin.
    fn say(&mut self, origin: &Origin) -> Result<Option<ChangeNo>, Over> {
        let options = &self.standby.link.options;
        if self.out.len() >= OUT_BYTES {
            return Ok(None);
        }
        let (owed, begins, batch, synced, asks, covers) = {
            let mut sender = self.standby.sender.lock();
            if sender.connection() != self.connection {
                return Err(lost("it has fallen behind by more than peer.lag_bytes"));
            }
            let begins = sender.begin();
            let batch = sender.take(CHUNK_BYTES as u64);
            let promise = if options.sync { Promise::Kept } else { Promise::Had };
            let synced = sender.answered(promise).unwrap_or_default();
            (sender.owed(), begins, batch, synced, sender.asks_for_sync(), sender.covers())
        };
        if let Some(first) = begins {
            let (stream, begin) = Stream::begin(origin.clone(), first, !options.sync);
            self.encoder.put(&begin, &mut self.out);
            self.stream = Some(stream);
        }
        if let (false, Some(stream)) = (batch.is_empty(), &mut self.stream) {
            for message in stream.records(batch, synced).map_err(lost)? {
                self.encoder.put(&message, &mut self.out);
            }
        }
        if asks {
            self.encoder.put(&Message::Sync, &mut self.out);
        }
        if self.stream.is_some() && covers > self.covered {
            self.covered = covers;
            self.encoder.put(&Message::Covered(covers), &mut self.out);
        }
        Ok(owed)
    }

    fn hear(&mut self) -> Result<(), Over> {
        while let Some(message) = self.decoder.take_message().map_err(lost)? {
            let mut sender = self.standby.sender.lock();
            if sender.connection() != self.connection {
                // Said when it is noticed next.
                return Ok(());
            }
            let believed = match message {
                Message::Ready => sender.ready(),
                Message::Has { had, kept } => sender.has(had, kept),
                Message::Refused(why) => return Err(Over::Lost(format!("it refuses: {why}"))),
                _ => Err("it says what only a sender says"),
            };
            let has_won = matches!(message, Message::Ready) && sender.phase() == Phase::Kept;
            drop(sender);
            believed.map_err(lost)?;
            if has_won {
                self.standby.won();
            }
            self.standby.changed.notify_waiters();
        }
        Ok(())
    }

    /// The volume is closed: its copy is not needed. That it cannot be said costs the peer some room, until the next copy begins.
    async fn end(&mut self, mut pipe: Box<dyn Pipe>) {
        if self.stream.is_some() {
            self.encoder.put(&Message::End, &mut self.out);
            let said = async {
                pipe.write_all_buf(&mut self.out).await?;
                pipe.shutdown().await?;
                // Until the other end has read it.
                let mut rest = BytesMut::new();
                while pipe.read_buf(&mut rest).await? > 0 {
                    rest.clear();
                }
                io::Result::Ok(())
            };
            drop(timeout(self.standby.link.options.timeout, said).await);
        }
    }
}

async fn wait_for(commit: &mut Option<BoxFuture<'static, bool>>) -> bool {
    match commit {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}
