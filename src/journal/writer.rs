//! The task that owns the files. It starts what can be started (one write, one sync, one chore), waits for any of
//! them or for a wake-up, notes the result, and starts again.
//!
//! Order of things on the disk, where it matters:
//!
//! 1. The identity file is synced before any other file is created, and removed after all others.
//! 2. What an earlier server left is written once more and synced before it counts as synced.
//! 3. A sync covers every file with unsynced records, oldest first, before [`Promise::Synced`] is given.
//! 4. Files of released records go one by one, oldest first, each durably before the next.
//! 5. A spare's header is blank on the disk before the spare is used.
//! 6. After a failure all old files are gone, durably, before a new one is begun.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::disk::{Disk, DiskFile};
use crate::journal::find::{Found, failed, failure, journal_files, remove_files};
use crate::journal::record::{self, FIRST_RECORD, FileHeader, FileKey, HEAD_BYTES};
use crate::journal::replay::{ChainFile, file_name};
use crate::journal::state::{Phase, Promise, Queued, State};
use crate::journal::{Doors, JournalError, Options, Shared};
use crate::units::{BlockSize, ChangeNo, Epoch};

/// One write takes at most this many bytes of records, unless a single record is larger.
const BATCH_BYTES: u64 = 16 << 20;
/// One write takes at most this many records.
const BATCH_RECORDS: usize = 1024;
/// Tagging more than this would hold up the reactor, so it goes to the workers.
const INLINE_BYTES: u64 = 128 << 10;

/// The owner of the files.
pub(super) struct Writer {
    shared: Arc<Shared>,
    doors: Doors,
    options: Options,
    identity: Identity,
    /// The last number given to a file.
    serial: u64,
    /// The file that records go to.
    current: Option<Current>,
    /// Older files, oldest first.
    full: VecDeque<Full>,
    spare: Option<Spare>,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    writing: bool,
    syncing: bool,
    chore: bool,
}

/// The file that says whose journal this is.
struct Identity {
    name: String,
    header: FileHeader,
}

/// A file that is being filled.
#[derive(Clone)]
struct Current {
    name: String,
    file: Arc<dyn DiskFile>,
    header: FileHeader,
    key: FileKey,
    /// Where the next record goes.
    end: u64,
    /// Something of an earlier use may lie behind `end`.
    recycled: bool,
    /// It holds records that no sync has covered.
    dirty: bool,
}

/// A file that takes no more records.
struct Full {
    name: String,
    file: Arc<dyn DiskFile>,
    last: ChangeNo,
    bytes: u64,
    dirty: bool,
}

/// A file without a header that waits to be used.
struct Spare {
    name: String,
    file: Arc<dyn DiskFile>,
    recycled: bool,
}

/// Something ended.
enum Event {
    Wrote(Result<Wrote, String>),
    Synced(Result<ChangeNo, String>),
    /// A new file is ready for use.
    Prepared(Result<Spare, String>),
    /// The oldest file is no more, or has become the spare.
    GivenUp(Result<Option<Spare>, String>),
    /// All old files are gone.
    Cleared(Result<(), String>),
}

struct Wrote {
    current: Current,
    last: ChangeNo,
}

/// See [`crate::journal::Journal::create`].
pub(super) async fn create(
    doors: Doors,
    options: Options,
    volume: Uuid,
    id: Uuid,
    block_size: BlockSize,
    first: ChangeNo,
) -> Result<Writer, JournalError> {
    let disk = &doors.disk;
    let leftovers = journal_files(disk).await?;
    if crate::journal::find(disk, volume).await?.is_some() {
        return Err(JournalError::Exists { dir: disk.path() });
    }
    remove_files(disk, leftovers).await?;
    let header = FileHeader { id, volume, number: 0, first, block_size, salt: doors.random.bytes() };
    let name = new_name(&doors, 0);
    let identity = disk.create(&name).await.map_err(|err| failed(disk, "create", &name, &err))?;
    identity.write_at(0, vec![header.encode(&name)]).await.map_err(|err| failed(disk, "write", &name, &err))?;
    identity.sync().await.map_err(|err| failed(disk, "sync", &name, &err))?;
    let state = State::new(first, Epoch(0), first);
    Ok(Writer::new(doors, options, Identity { name, header }, 0, state))
}

/// See [`crate::journal::Journal::resume`].
pub(super) async fn resume(
    doors: Doors,
    options: Options,
    found: &Found,
    next: ChangeNo,
) -> Result<Writer, JournalError> {
    let disk = &doors.disk;
    let goes_on = found.last().is_some_and(|last| last.next() == next);
    remove_files(disk, found.void.clone()).await?;
    if !goes_on {
        remove_files(disk, found.chain.iter().map(|file| file.name.clone()).collect()).await?;
    }
    let name = found.identity_name.clone();
    let identity = disk.open(&name).await.map_err(|err| failed(disk, "open", &name, &err))?;
    redirty(disk, &name, &identity, found.identity.encode(&name)).await?;
    identity.sync().await.map_err(|err| failed(disk, "sync", &name, &err))?;
    let epoch = if goes_on { found.epoch } else { Epoch(0) };
    let before_all = found.changes.first().filter(|_| goes_on).map_or(next, |first| first.no);
    let state = State::new(next, epoch, ChangeNo(before_all.0.saturating_sub(1)));
    let mut full = VecDeque::new();
    for file in found.chain.iter().filter(|_| goes_on) {
        full.push_back(adopt(disk, file).await?);
    }
    let identity = Identity { name, header: found.identity.clone() };
    let mut writer = Writer::new(doors, options, identity, found.greatest, state);
    writer.full = full;
    writer.count_bytes();
    Ok(writer)
}

/// A file of an earlier server, whose records still count.
async fn adopt(disk: &Arc<dyn Disk>, found: &ChainFile) -> Result<Full, JournalError> {
    let (name, bytes) = (found.name.clone(), found.good.len() as u64);
    let file = disk.open(&name).await.map_err(|err| failed(disk, "open", &name, &err))?;
    redirty(disk, &name, &file, found.good.clone()).await?;
    Ok(Full { name, file, last: found.last, bytes, dirty: true })
}

/// Writes what was read once more, so that the next sync is about it. The server before may have died of, or right
/// after, a sync that failed: then its pages are clean in the page cache, never reached the disk, and a sync would
/// succeed without them.
async fn redirty(disk: &Arc<dyn Disk>, name: &str, file: &Arc<dyn DiskFile>, read: Bytes) -> Result<(), JournalError> {
    file.write_at(0, vec![read]).await.map_err(|err| failed(disk, "write", name, &err))
}

impl Writer {
    fn new(doors: Doors, options: Options, identity: Identity, serial: u64, state: State) -> Writer {
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() });
        Writer {
            shared,
            doors,
            options,
            identity,
            serial,
            current: None,
            full: VecDeque::new(),
            spare: None,
            running: FuturesUnordered::new(),
            writing: false,
            syncing: false,
            chore: false,
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn dir(&self) -> String {
        self.doors.disk.path()
    }

    pub(super) fn id(&self) -> Uuid {
        self.identity.header.id
    }

    /// The task. Ends once the journal is closed and nothing is left to do.
    pub(super) async fn run(mut self) {
        let shared = self.shared();
        loop {
            self.start();
            if self.running.is_empty() && shared.state.lock().finished() {
                return;
            }
            tokio::select! {
                biased;
                Some(event) = self.running.next(), if !self.running.is_empty() => self.finish(event),
                () = shared.wake.notified() => {}
            }
        }
    }

    /// Starts what can be started.
    fn start(&mut self) {
        let phase = self.shared.state.lock().phase.clone();
        match phase {
            Phase::Suspended(_) => {}
            Phase::Restarting if self.running.is_empty() => self.start_clear(),
            Phase::Restarting => {}
            Phase::Running => {
                if !self.writing {
                    self.start_write();
                }
                if !self.syncing {
                    self.start_sync();
                }
                if !self.chore {
                    self.start_chore();
                }
            }
        }
    }

    fn start_write(&mut self) {
        let mut state = self.shared.state.lock();
        let Some(first_bytes) = state.first_queued() else { return };
        let file_bytes = self.options.file_bytes;
        let fits = |current: &&Current| current.end.saturating_add(first_bytes) <= file_bytes;
        let current = self.current.as_ref().filter(fits).cloned();
        let end = current.as_ref().map_or(FIRST_RECORD, |current| current.end);
        let batch = state.take_batch(file_bytes.saturating_sub(end).min(BATCH_BYTES), BATCH_RECORDS);
        drop(state);
        let Some((_, first)) = batch.first() else { return };
        let (first, doors) = (first.no, self.doors.clone());
        self.writing = true;
        let work: BoxFuture<'static, Event> = match current {
            Some(current) => Box::pin(async move { Event::Wrote(write(&doors, current, Vec::new(), batch).await) }),
            None => {
                let (header, spare) = (self.next_header(first), self.spare.take());
                Box::pin(async move { Event::Wrote(begin(&doors, header, spare, batch).await) })
            }
        };
        self.running.push(work);
    }

    fn start_sync(&mut self) {
        let Some(up_to) = self.shared.state.lock().sync_due() else { return };
        let mut files = Vec::new();
        for full in self.full.iter_mut().filter(|full| full.dirty) {
            full.dirty = false;
            files.push((full.name.clone(), Arc::clone(&full.file)));
        }
        if let Some(current) = self.current.as_mut().filter(|current| current.dirty) {
            current.dirty = false;
            files.push((current.name.clone(), Arc::clone(&current.file)));
        }
        let doors = self.doors.clone();
        self.syncing = true;
        self.running.push(Box::pin(async move {
            for (name, file) in files {
                if let Err(err) = file.sync().await {
                    return Event::Synced(Err(failure(&doors.disk, "sync", &name, &err)));
                }
            }
            Event::Synced(Ok(up_to))
        }));
    }

    /// Gives up the oldest file if the store covers it, or sees to it that there is a spare in time.
    fn start_chore(&mut self) {
        let released = self.shared.state.lock().released;
        let doors = self.doors.clone();
        if let Some(full) = self.full.front().filter(|full| full.last <= released) {
            let (name, file, keep) = (full.name.clone(), Arc::clone(&full.file), self.spare.is_none());
            self.chore = true;
            self.running.push(Box::pin(async move { Event::GivenUp(give_up(&doors, name, file, keep).await) }));
            return;
        }
        let filled = self.current.as_ref().is_none_or(|current| current.end > self.options.file_bytes / 2);
        if self.spare.is_none() && filled && !self.writing && !self.shared.state.lock().closing {
            let number = self.next_number();
            self.chore = true;
            self.running.push(Box::pin(async move { Event::Prepared(create_file(&doors, number).await) }));
        }
    }

    fn start_clear(&mut self) {
        let (doors, identity) = (self.doors.clone(), self.identity.name.clone());
        self.current = None;
        self.full.clear();
        self.spare = None;
        self.running.push(Box::pin(async move {
            let cleared = async {
                let mut names = journal_files(&doors.disk).await?;
                names.retain(|name| *name != identity);
                remove_files(&doors.disk, names).await
            };
            Event::Cleared(cleared.await.map_err(|err| err.to_string()))
        }));
    }

    fn finish(&mut self, event: Event) {
        let failure = match event {
            Event::Wrote(result) => {
                self.writing = false;
                result.map(|wrote| self.wrote(wrote)).err()
            }
            Event::Synced(result) => {
                self.syncing = false;
                result.map(|up_to| self.reached(Promise::Synced, up_to)).err()
            }
            Event::Prepared(result) => {
                self.chore = false;
                result.map(|spare| self.spare = Some(spare)).err()
            }
            Event::GivenUp(result) => {
                self.chore = false;
                result.map(|spare| self.given_up(spare)).err()
            }
            Event::Cleared(result) => result.map(|()| self.cleared()).err(),
        };
        if let Some(reason) = failure {
            self.shared.suspend(&self.dir(), &reason);
        }
        self.count_bytes();
    }

    fn wrote(&mut self, wrote: Wrote) {
        let previous = self.current.replace(wrote.current);
        let same = |a: &Current, b: &Current| a.header.number == b.header.number;
        match (previous, &mut self.current) {
            // A sync that began meanwhile does not cover what was written meanwhile: `dirty` stays set.
            (Some(previous), Some(current)) if !same(&previous, current) => self.full.push_back(Full {
                last: ChangeNo(current.header.first.0.saturating_sub(1)),
                bytes: previous.end,
                dirty: previous.dirty,
                name: previous.name,
                file: previous.file,
            }),
            _ => {}
        }
        self.reached(Promise::Written, wrote.last);
    }

    /// Only now: until a file is gone, or blank, durably, its records are part of the chain, and a sync that left
    /// them out would promise records behind a hole.
    fn given_up(&mut self, spare: Option<Spare>) {
        self.full.pop_front();
        self.spare = self.spare.take().or(spare);
    }

    fn reached(&self, promise: Promise, no: ChangeNo) {
        let mut state = self.shared.state.lock();
        // What ends after a failure or a restart belongs to the past.
        if state.phase == Phase::Running {
            state.reached_now(promise, no);
        }
    }

    fn cleared(&mut self) {
        let mut state = self.shared.state.lock();
        if state.phase == Phase::Restarting {
            state.phase = Phase::Running;
            tracing::info!(journal = self.dir(), "the journal begins anew");
        }
    }

    fn count_bytes(&mut self) {
        let full: u64 = self.full.iter().map(|full| full.bytes).sum();
        let current = self.current.as_ref().map_or(0, |current| current.end);
        self.shared.state.lock().stored_bytes = full + current;
    }

    fn next_header(&mut self, first: ChangeNo) -> FileHeader {
        let (number, salt) = (self.next_number(), self.doors.random.bytes());
        FileHeader { number, first, salt, ..self.identity.header.clone() }
    }

    fn next_number(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

/// Begins a file with its first records.
async fn begin(doors: &Doors, header: FileHeader, spare: Option<Spare>, batch: Vec<Queued>) -> Result<Wrote, String> {
    let spare = match spare {
        Some(spare) => spare,
        None => create_file(doors, header.number).await?,
    };
    let Spare { name, file, recycled } = spare;
    let (key, room) = (header.key(), header.encode(&name));
    let current = Current { name, file, header, key, end: FIRST_RECORD, recycled, dirty: false };
    write(doors, current, vec![room], batch).await
}

/// Writes records behind those in the file; `parts` is what lies between (the header of a new file).
async fn write(
    doors: &Doors,
    mut current: Current,
    mut parts: Vec<Bytes>,
    batch: Vec<Queued>,
) -> Result<Wrote, String> {
    let bytes: u64 = batch.iter().map(|(_, numbered)| record::record_len(&numbered.change)).sum();
    let last = batch.last().map_or(ChangeNo(0), |(_, numbered)| numbered.no);
    let offset = current.end - parts.iter().map(|part| part.len() as u64).sum::<u64>();
    let (key, at) = (current.key.clone(), current.end);
    match bytes > INLINE_BYTES {
        true => parts.extend(doors.workers.run(move || encode(&key, at, batch)).await),
        false => parts.extend(encode(&key, at, batch)),
    }
    if current.recycled {
        parts.push(Bytes::from_static(&[0; HEAD_BYTES]));
    }
    let written = current.file.write_at(offset, parts).await;
    written.map_err(|err| failure(&doors.disk, "write", &current.name, &err))?;
    current.end += bytes;
    current.dirty = true;
    Ok(Wrote { current, last })
}

/// The records as parts of one vectored write: heads from one allocation, data as it came.
fn encode(key: &FileKey, mut offset: u64, batch: Vec<Queued>) -> Vec<Bytes> {
    let mut heads = BytesMut::with_capacity(batch.len() * HEAD_BYTES);
    for (epoch, numbered) in &batch {
        let mut head = [0; HEAD_BYTES];
        record::encode_head(key, offset, *epoch, numbered, &mut head);
        heads.extend_from_slice(&head);
        offset += record::record_len(&numbered.change);
    }
    let mut heads = heads.freeze();
    let mut parts = Vec::with_capacity(batch.len() * 2);
    for (_, numbered) in batch {
        parts.push(heads.split_to(HEAD_BYTES));
        if let crate::change::Change::Write(_, data) = numbered.change {
            parts.push(data);
        }
    }
    parts
}

/// Ends a file's use: removed, or blanked and kept as a spare.
async fn give_up(doors: &Doors, name: String, file: Arc<dyn DiskFile>, keep: bool) -> Result<Option<Spare>, String> {
    if !keep {
        let removed = doors.disk.remove(&name).await;
        return removed.map(|()| None).map_err(|err| failure(&doors.disk, "remove", &name, &err));
    }
    let blanked: io::Result<()> = async {
        file.write_at(0, vec![Bytes::from_static(&[0; FIRST_RECORD as usize])]).await?;
        file.sync().await
    }
    .await;
    blanked.map_err(|err| failure(&doors.disk, "blank", &name, &err))?;
    Ok(Some(Spare { name, file, recycled: true }))
}

fn new_name(doors: &Doors, number: u64) -> String {
    file_name(number, u32::from_le_bytes(doors.random.bytes()))
}

async fn create_file(doors: &Doors, number: u64) -> Result<Spare, String> {
    let name = new_name(doors, number);
    let created = doors.disk.create(&name).await;
    let file = created.map_err(|err| failure(&doors.disk, "create", &name, &err))?;
    Ok(Spare { name, file, recycled: false })
}
