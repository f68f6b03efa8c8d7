//! The keeper's end of connections. What is taken is decided in [`super::keeping`], what files there are is [`super::copies`]'; this waits.
//!
//! Each connection is about one volume. While a sync runs, records are taken on; the next sync covers them all. Whatever goes wrong is said to the sender, and
//! the connection ends; the copy stays as it is.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use crate::disk::{Disk, DiskFile};
use crate::outside::Random;
use crate::peer::copies::{self, Writing};
use crate::peer::keeping::{Keeping, Refusal};
use crate::peer::wire::{
    Begin, Decoder, Encoder, GREETING_BYTES, Message, Role, Secret, greeting, read_greeting, ways,
};
use crate::units::{ChangeNo, Epoch};

/// Connections at one time; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a connection may take to greet.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection over which nothing came for so long is closed. A sender asks several times in that time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Answers that wait to be sent take at most so many bytes, before no more is read.
const ANSWERS_BYTES: usize = 64 << 10;

/// The directory of a volume.
pub type DiskOf = Arc<dyn Fn(Uuid) -> Arc<dyn Disk> + Send + Sync>;

/// Keeps copies of other servers' journals.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

struct Inner {
    disk_of: DiskOf,
    secret: Secret,
    random: Random,
    /// What all copies may take.
    disk_bytes: u64,
    used: AtomicU64,
    slots: Mutex<HashMap<Uuid, Arc<Slot>>>,
    connections: Semaphore,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("used", &self.used()).finish_non_exhaustive()
    }
}

/// One volume.
struct Slot {
    volume: Uuid,
    disk: Arc<dyn Disk>,
    keeping: Mutex<Keeping>,
    /// Whether `keeping` has what is noted on the disk.
    is_loaded: Mutex<bool>,
    /// Whoever touches files has it.
    writing: tokio::sync::Mutex<Option<Writing>>,
    /// Bytes of it that are among the used ones.
    counted: AtomicU64,
}

/// This server has the volume, or takes it: nothing of a copy of it is taken until this is dropped.
pub struct Held(Arc<Slot>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({})", self.0.volume)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What was taken meanwhile is in the note.
        *self.0.is_loaded.lock() = false;
        self.0.keeping.lock().let_go(Epoch(0));
    }
}

impl Keeper {
    /// Keeps copies in the directories that `disk_of` gives for volumes.
    pub fn new(disk_of: DiskOf, secret: Secret, random: Random, disk_bytes: u64) -> Keeper {
        let connections = Semaphore::new(CONNECTIONS_MAX);
        let (used, slots) = (AtomicU64::new(0), Mutex::default());
        Keeper(Arc::new(Inner { disk_of, secret, random, disk_bytes, used, slots, connections }))
    }

    /// Counts what the copies of that volume take, from an earlier life.
    pub async fn count(&self, volume: Uuid) -> io::Result<()> {
        self.0.recount(&self.0.slot(volume)).await
    }

    /// Bytes that copies take.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Volumes of which a copy is written just now.
    pub fn kept(&self) -> usize {
        let slots = self.0.slots.lock();
        slots.values().filter(|slot| slot.keeping.lock().bytes() > 0).count()
    }

    /// From here on each record of that volume is refused. What was said to be had is in the files when this returns, and nothing more comes.
    pub async fn hold(&self, volume: Uuid) -> Held {
        let slot = self.0.slot(volume);
        slot.keeping.lock().hold();
        let held = Held(Arc::clone(&slot));
        // Somebody may be writing what nobody will be told of.
        *slot.writing.lock().await = None;
        self.0.used.fetch_sub(slot.counted.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        held
    }

    /// Serves a connection to its end. The error is for the log.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(&self, stream: S, from: &str) -> Result<(), String> {
        let Ok(_place) = self.0.connections.try_acquire() else {
            return Err(format!("there are {CONNECTIONS_MAX} connections already"));
        };
        let mut connection = Connection::greet(&self.0, stream).await?;
        let ended = connection.run().await;
        if let (Ok(()), Some(Turn { slot, .. })) = (&ended, &connection.turn) {
            tracing::info!(volume = %slot.volume, from, "the connection for its journal has ended; the copy stays");
        }
        ended
    }
}

impl Inner {
    fn slot(&self, volume: Uuid) -> Arc<Slot> {
        let make = || {
            Arc::new(Slot {
                volume,
                disk: (self.disk_of)(volume),
                keeping: Mutex::default(),
                is_loaded: Mutex::new(false),
                writing: tokio::sync::Mutex::default(),
                counted: AtomicU64::new(0),
            })
        };
        Arc::clone(self.slots.lock().entry(volume).or_insert_with(make))
    }

    async fn recount(&self, slot: &Slot) -> io::Result<()> {
        let bytes = copies::bytes(&slot.disk).await?;
        self.used.fetch_sub(slot.counted.swap(bytes, Ordering::Relaxed), Ordering::Relaxed);
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn room(&self) -> u64 {
        self.disk_bytes.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn grew(&self, slot: &Slot, bytes: u64) {
        slot.counted.fetch_add(bytes, Ordering::Relaxed);
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrank(&self, slot: &Slot, bytes: u64) {
        // A holder may have taken it off the count.
        let taken = |counted: u64| Some(counted.saturating_sub(bytes));
        let before = slot.counted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).unwrap_or_default();
        self.used.fetch_sub(before.min(bytes), Ordering::Relaxed);
    }
}

/// A copy that this connection has begun.
struct Turn {
    slot: Arc<Slot>,
    turn: u64,
    unsynced_counts: bool,
}

struct Connection<'a, S> {
    keeper: &'a Inner,
    stream: S,
    encoder: Encoder,
    decoder: Decoder,
    answers: BytesMut,
    turn: Option<Turn>,
    /// A sync under way, and up to which change.
    syncing: Option<BoxFuture<'static, (ChangeNo, io::Result<()>)>>,
    /// What came after that was begun is to be synced, too.
    sync_again: bool,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'a, S> {
    async fn greet(keeper: &'a Inner, mut stream: S) -> Result<Connection<'a, S>, String> {
        let own = keeper.random.bytes();
        let greeted = timeout(GREETING_TIMEOUT, async {
            stream.write_all(&greeting(Role::Keeper, &own)).await?;
            let mut theirs = [0; GREETING_BYTES];
            stream.read_exact(&mut theirs).await?;
            io::Result::Ok(theirs)
        });
        let theirs = greeted.await.map_err(|_| "it did not greet in time")?.map_err(|error| error.to_string())?;
        let theirs = read_greeting(&theirs, Role::Sender).map_err(|error| error.to_string())?;
        let (encoder, decoder) = ways(&keeper.secret, Role::Keeper, &theirs, &own);
        let (answers, turn, syncing) = (BytesMut::new(), None, None);
        Ok(Connection { keeper, stream, encoder, decoder, answers, turn, syncing, sync_again: false })
    }

    async fn run(&mut self) -> Result<(), String> {
        let ended = self.serve().await;
        if let Err(why) = &ended {
            self.encoder.put(&Message::Refused(why.clone()), &mut self.answers);
            // Whether it arrives makes no difference.
            drop(timeout(GREETING_TIMEOUT, self.stream.write_all_buf(&mut self.answers)).await);
            drop(timeout(GREETING_TIMEOUT, self.stream.shutdown()).await);
        }
        ended
    }

    async fn serve(&mut self) -> Result<(), String> {
        loop {
            let (mut reads, mut writes) = tokio::io::split(&mut self.stream);
            let syncing = self.syncing.as_mut();
            let synced = async move {
                match syncing {
                    Some(sync) => sync.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What is had is said before more is taken.
                biased;
                (no, synced) = synced => {
                    self.syncing = None;
                    synced.map_err(|error| format!("the copy cannot be synced: {error}"))?;
                    self.synced(no).await.map_err(|refusal| refusal.to_string())?;
                }
                written = writes.write_buf(&mut self.answers), if !self.answers.is_empty() => {
                    written.map_err(|error| error.to_string())?;
                    continue;
                }
                read = timeout(IDLE_TIMEOUT, reads.read_buf(self.decoder.buffer())), if self.answers.len() < ANSWERS_BYTES => {
                    match read {
                        Err(_) => return Err(format!("nothing came for {} s", IDLE_TIMEOUT.as_secs())),
                        Ok(Ok(0)) => return Ok(()),
                        Ok(read) => drop(read.map_err(|error| error.to_string())?),
                    }
                    while let Some(message) = self.decoder.take_message().map_err(|error| error.to_string())? {
                        self.take(message).await.map_err(|refusal| refusal.to_string())?;
                    }
                }
            }
            self.say_what_is_had().await.map_err(|refusal| refusal.to_string())?;
        }
    }

    /// Only what the sender is told counts, and only the one at turn is told.
    async fn say_what_is_had(&mut self) -> Result<(), Refusal> {
        let Some(Turn { slot, turn, unsynced_counts }) = &self.turn else {
            self.encoder.put(&Message::Has { had: ChangeNo(0), kept: ChangeNo(0) }, &mut self.answers);
            return Ok(());
        };
        let mut writing = slot.writing.lock().await;
        let (had, kept) = slot.keeping.lock().has(*turn)?;
        if let Some(writing) = &mut *writing {
            // Before it is said.
            writing.mark(if *unsynced_counts { had } else { kept }).await?;
        }
        self.encoder.put(&Message::Has { had, kept }, &mut self.answers);
        Ok(())
    }

    async fn take(&mut self, message: Message) -> Result<(), Refusal> {
        match message {
            Message::Begin(begin) => {
                self.turn = Some(self.begin(&begin).await?);
                self.encoder.put(&Message::Ready, &mut self.answers);
                Ok(())
            }
            Message::Ask => Ok(()),
            message => {
                let Some(Turn { slot, turn, .. }) = &self.turn else { return Err(Refusal::Gap) };
                let (slot, turn) = (Arc::clone(slot), *turn);
                self.go_on(&slot, turn, message).await
            }
        }
    }

    async fn begin(&mut self, begin: &Begin) -> Result<Turn, Refusal> {
        let slot = self.keeper.slot(begin.volume);
        let mut writing = slot.writing.lock().await;
        let failed = |error: io::Error| Refusal::Disk(error.to_string());
        if !*slot.is_loaded.lock() {
            let standing = copies::standing(&*slot.disk).await.map_err(failed)?;
            let mut keeping = slot.keeping.lock();
            keeping.seal(Epoch(standing.sealed));
            keeping.know(Epoch(standing.copy.map_or(0, |copy| copy.epoch)));
            *slot.is_loaded.lock() = true;
        }
        {
            let mut keeping = slot.keeping.lock();
            keeping.may_begin(begin.epoch)?;
            // The copy in whose place it comes goes.
            if self.keeper.room() + slot.counted.load(Ordering::Relaxed) < copies::LEAST_BYTES {
                return Err(Refusal::Full);
            }
            keeping.interrupt();
        }
        *writing = None;
        let begun = Writing::begin(&slot.disk, begin).await?;
        // A holder waits for its turn at the files, and finds what is there then.
        slot.keeping.lock().may_begin(begin.epoch)?;
        *writing = Some(begun);
        let turn = slot.keeping.lock().begun(begin.epoch, begin.first);
        self.keeper.recount(&slot).await.map_err(failed)?;
        drop(writing);
        tracing::info!(volume = %begin.volume, epoch = %begin.epoch, first = %begin.first, "a copy of its journal begins here");
        Ok(Turn { slot, turn, unsynced_counts: begin.unsynced_counts })
    }

    async fn go_on(&mut self, slot: &Arc<Slot>, turn: u64, message: Message) -> Result<(), Refusal> {
        let mut guard = slot.writing.lock().await;
        slot.keeping.lock().is_at_turn(turn)?;
        let Some(writing) = &mut *guard else { return Err(Refusal::NotAtTurn) };
        match message {
            Message::File { name, header } => {
                let bytes = header.len() as u64;
                writing.new_file(&name, header).await?;
                slot.keeping.lock().new_file(bytes);
                self.keeper.grew(slot, bytes);
            }
            Message::Records { at, last, bytes } => {
                let len = bytes.len() as u64;
                slot.keeping.lock().may_write(turn, at, len, self.keeper.room())?;
                writing.write(at, bytes).await?;
                slot.keeping.lock().wrote(len, last);
                self.keeper.grew(slot, len);
            }
            Message::Covered(no) => {
                let covered = slot.keeping.lock().covered(no);
                for _ in 0..covered {
                    writing.give_up_oldest().await?;
                    let bytes = slot.keeping.lock().gave_up();
                    self.keeper.shrank(slot, bytes);
                }
            }
            Message::Sync if self.syncing.is_some() => self.sync_again = true,
            Message::Sync => {
                let had = slot.keeping.lock().has(turn)?.0;
                self.syncing = Some(sync(writing.dirty(), had));
            }
            Message::End => {
                slot.keeping.lock().interrupt();
                if let Some(writing) = guard.take() {
                    writing.end().await?;
                }
                self.keeper.recount(slot).await.map_err(|error| Refusal::Disk(error.to_string()))?;
                self.turn = None;
                tracing::info!(volume = %slot.volume, "it was closed in good order, and its copy is gone");
            }
            // A keeper's words do not come from a sender.
            _ => return Err(Refusal::Gap),
        }
        Ok(())
    }

    async fn synced(&mut self, no: ChangeNo) -> Result<(), Refusal> {
        let Some(Turn { slot, turn, .. }) = &self.turn else { return Ok(()) };
        let mut writing = slot.writing.lock().await;
        let had = {
            let mut keeping = slot.keeping.lock();
            keeping.is_at_turn(*turn)?;
            keeping.synced(no);
            keeping.has(*turn)?.0
        };
        if let (true, Some(writing)) = (std::mem::take(&mut self.sync_again), &mut *writing) {
            self.syncing = Some(sync(writing.dirty(), had));
        }
        Ok(())
    }
}

fn sync(files: Vec<Arc<dyn DiskFile>>, no: ChangeNo) -> BoxFuture<'static, (ChangeNo, io::Result<()>)> {
    async move {
        for file in files {
            if let Err(error) = file.sync().await {
                return (no, Err(error));
            }
        }
        (no, Ok(()))
    }
    .boxed()
}
