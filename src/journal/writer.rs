//! The task that owns the files. It starts what can be started (one write, one sync, one chore), waits for any of
//! them or for a wake-up, notes the result, and starts again.
//!
//! Order of things on the disk, where it matters:
//!
//! 1. The identity file is synced before any other file is created, and removed after all others.
//! 2. A file's header is durable before its first record is written.
//! 3. What an earlier server left is written once more and synced before it counts as synced.
//! 4. A sync covers every file with unsynced records, oldest first, before [`Promise::Synced`] is given. Files whose
//!    release is under way are among them: until it is done they are part of the chain.
//! 5. Files of released records go one by one, oldest first, each durably before the next.
//! 6. After a failure all old files are gone, durably, and the mark is of what is left, before a new one is begun.
//! 7. A mark says only what a sync has returned for. One that says less than the one before it, and one with a new name, is synced
//!    before anything that relies on it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::codec::EncodeError;
use crate::disk::{Disk, DiskFile};
use crate::journal::find::{Found, failed, failure, journal_files, remove_files};
use crate::journal::mark::Mark;
use crate::journal::record::{self, FIRST_RECORD, FileHeader, FileKey, HEAD_BYTES};
use crate::journal::replay::{ChainFile, file_name};
use crate::journal::state::{Phase, Promise, Queued, State};
use crate::journal::{Doors, JournalError, Options, Shared};
use crate::units::{BlockSize, ChangeNo, Epoch};

/// One write takes at most this many bytes of records, unless a single record is larger.
const BATCH_BYTES: u64 = 16 << 20;
/// One write takes at most this many records.
const BATCH_RECORDS: usize = 1024;
/// Tagging more than this would hold up the reactor, so it goes to the workers. A queue of 32 small writes is less.
const INLINE_BYTES: u64 = 256 << 10;
/// Files that are kept for use again. With the one in use, and at the default size, they hold the default bound on dirty
/// bytes, so that a server under load makes no new ones.
const SPARES_MAX: usize = 3;
/// The size of the first file that is laid out.
const LAID_OUT_FIRST: u64 = 4 << 20;
/// Zeros are written in pieces of this many bytes,
const ZERO_BYTES: u64 = 1 << 20;
/// which consist of parts of this many.
const ZERO_PART: u64 = 64 << 10;

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
    /// The next ones, ready for use.
    spares: VecDeque<Current>,
    /// The size for which the last file was made.
    size: u64,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    writing: bool,
    syncing: bool,
    marking: bool,
    chore: bool,
}

/// The file that says whose journal this is.
#[derive(Clone)]
struct Identity {
    name: String,
    header: FileHeader,
    /// The newest mark in it.
    mark: Mark,
}

/// A file that is being filled, or will be. Its header is on the disk.
#[derive(Clone)]
struct Current {
    name: String,
    file: Arc<dyn DiskFile>,
    key: FileKey,
    /// Where the next record goes.
    end: u64,
    /// It is full at so many bytes, if there is a spare.
    size: u64,
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
    /// Bytes that need not be laid out any more.
    laid_out: u64,
    dirty: bool,
}

/// Something ended.
enum Event {
    /// The end of the file, and the last change.
    Wrote(Result<(u64, ChangeNo), String>),
    Synced(Result<ChangeNo, String>),
    /// The identity file has this mark.
    Marked(Result<Mark, String>),
    /// A new file is ready for use.
    Prepared(Result<Current, String>),
    /// The oldest file is no more, or has become a spare.
    GivenUp(Result<Option<Current>, String>),
    /// All old files are gone, and the mark is of what is left.
    Cleared(Result<Mark, String>),
}

/// See [`crate::journal::Journal::create`].
pub(super) async fn create(
    doors: Doors,
    options: Options,
    id: Uuid,
    block_size: BlockSize,
    first: ChangeNo,
) -> Result<Writer, JournalError> {
    let disk = &doors.disk;
    let leftovers = journal_files(disk).await?;
    if crate::journal::find(disk, &doors.sealer).await?.is_some() {
        return Err(JournalError::Exists { dir: disk.path() });
    }
    remove_files(disk, leftovers).await?;
    let header = FileHeader::new(&doors.sealer, id, block_size, 0, doors.random.bytes());
    // Nothing was synced yet, and everything before `first` is covered.
    let before = ChangeNo(first.0.saturating_sub(1));
    let mark = Mark { synced: before, ..Mark::default() };
    let identity = create_identity(&doors, header, mark).await?;
    let state = State::new(first, Epoch(0), before, before);
    Ok(Writer::new(doors, options, identity, 0, state))
}

async fn create_identity(doors: &Doors, header: FileHeader, mark: Mark) -> Result<Identity, JournalError> {
    let (disk, name) = (&doors.disk, new_name(doors, 0));
    let file = disk.create(&name).await.map_err(|err| failed(disk, "create", &name, &err))?;
    file.write_at(0, vec![header.encode(&name)]).await.map_err(|err| failed(disk, "write", &name, &err))?;
    let mut identity = Identity { name, header, mark };
    put_marks(disk, &mut identity).await.map_err(|what| JournalError::Disk { what })?;
    file.sync().await.map_err(|err| failed(disk, "sync", &identity.name, &err))?;
    Ok(identity)
}

/// See [`crate::journal::Journal::resume`].
pub(super) async fn resume(doors: Doors, options: Options, found: &Found, next: ChangeNo, named_by: Uuid) -> Writer {
    let goes_on = found.last().is_some_and(|last| last.next() == next);
    let epoch = if goes_on { found.epoch } else { Epoch(0) };
    let first = found.changes.first().filter(|_| goes_on).map_or(next, |first| first.no);
    let synced = ChangeNo(first.0.saturating_sub(1));
    let state = State::new(next, epoch, synced, found.synced);
    let disk = doors.disk.clone();
    let taken = async {
        let header = found.identity.clone();
        let mut identity = match &found.identity_name {
            Some(name) => Identity { name: name.clone(), header, mark: found.mark.clone() },
            None => create_identity(&doors, header, Mark::default()).await?,
        };
        identity.mark = identity.mark.named(state.mark(), named_by, doors.random.uuid());
        Ok::<_, JournalError>((take_over(&disk, found, &mut identity, goes_on).await?, identity))
    };
    match taken.await {
        Ok((full, identity)) => {
            let mut writer = Writer::new(doors, options, identity, found.greatest, state);
            writer.full = full;
            writer.count_bytes();
            writer
        }
        // What was found is in the caller's hands, and need not be lost because the disk is full or broken.
        Err(failed) => {
            let name = found.identity_name.clone().unwrap_or_else(|| new_name(&doors, 0));
            // The new name may be in the file or not: the one that the log knows certainly is.
            let mark = Mark { names: vec![named_by], ..found.mark.clone() };
            let identity = Identity { name, header: found.identity.clone(), mark };
            let writer = Writer::new(doors, options, identity, found.greatest, state);
            writer.shared.suspend(&disk.path(), &failed.to_string());
            writer
        }
    }
}

/// Makes the files of an earlier server our own, and removes those that do not count.
async fn take_over(
    disk: &Arc<dyn Disk>,
    found: &Found,
    identity: &mut Identity,
    goes_on: bool,
) -> Result<VecDeque<Full>, JournalError> {
    let name = &identity.name.clone();
    let file = disk.open(name).await.map_err(|err| failed(disk, "open", name, &err))?;
    redirty(disk, name, &file, vec![identity.header.encode(name)]).await?;
    put_marks(disk, identity).await.map_err(|what| JournalError::Disk { what })?;
    file.sync().await.map_err(|err| failed(disk, "sync", name, &err))?;
    remove_files(disk, found.void.clone()).await?;
    if !goes_on {
        remove_files(disk, found.chain.iter().map(|file| file.name.clone()).collect()).await?;
        return Ok(VecDeque::new());
    }
    let mut full = VecDeque::new();
    for found in &found.chain {
        full.push_back(adopt(disk, found).await?);
    }
    Ok(full)
}

/// The same after all old files are gone; if the identity file was never made, it is made now.
async fn mark_durably(doors: &Doors, identity: &Identity) -> Result<(), JournalError> {
    let disk = &doors.disk;
    put_mark(disk, identity).await.map_err(|what| JournalError::Disk { what })?;
    let file = disk.open(&identity.name).await.map_err(|err| failed(disk, "open", &identity.name, &err))?;
    file.sync().await.map_err(|err| failed(disk, "sync", &identity.name, &err))
}

/// Writes the mark to one place and its successor, which says the same, to the other, without syncing them. So nothing of earlier
/// marks is left: a file that lost its end with the power may give an older one back when it grows.
async fn put_marks(disk: &Arc<dyn Disk>, identity: &mut Identity) -> Result<(), String> {
    put_mark(disk, identity).await?;
    identity.mark = identity.mark.next(identity.mark.synced);
    put_mark(disk, identity).await
}

/// Writes the mark of the identity file, without syncing it.
async fn put_mark(disk: &Arc<dyn Disk>, identity: &Identity) -> Result<(), String> {
    let Identity { name, header, mark } = identity;
    let written = async {
        let file = disk.open(name).await?;
        file.write_at(mark.place(), vec![mark.encode(&header.used(name))]).await
    };
    written.await.map_err(|err| failure(disk, "mark", name, &err))
}

/// A file of an earlier server, whose records still count.
async fn adopt(disk: &Arc<dyn Disk>, found: &ChainFile) -> Result<Full, JournalError> {
    let (name, bytes) = (found.name.clone(), found.good.len() as u64);
    let file = disk.open(&name).await.map_err(|err| failed(disk, "open", &name, &err))?;
    let mark = end_mark().slice(..found.rest.min(HEAD_BYTES as u64) as usize);
    redirty(disk, &name, &file, vec![found.good.clone(), mark]).await?;
    Ok(Full { name, file, last: found.last, bytes, laid_out: bytes + found.rest, dirty: true })
}

/// Writes what was read once more, so that the next sync is about it. The server before may have died of, or right
/// after, a sync that failed: then its pages are clean in the page cache, never reached the disk, and a sync would
/// succeed without them.
async fn redirty(
    disk: &Arc<dyn Disk>,
    name: &str,
    file: &Arc<dyn DiskFile>,
    read: Vec<Bytes>,
) -> Result<(), JournalError> {
    file.write_at(0, read).await.map_err(|err| failed(disk, "write", name, &err))
}

impl Writer {
    fn new(doors: Doors, options: Options, identity: Identity, serial: u64, state: State) -> Writer {
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), let_go: Notify::new() });
        Writer {
            shared,
            doors,
            options,
            identity,
            serial,
            current: None,
            full: VecDeque::new(),
            spares: VecDeque::new(),
            size: 0,
            running: FuturesUnordered::new(),
            writing: false,
            syncing: false,
            marking: false,
            chore: false,
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn dir(&self) -> String {
        self.doors.disk.path()
    }

    /// By which a fence is to name the journal.
    pub(super) fn name(&self) -> Uuid {
        self.identity.mark.names.last().copied().unwrap_or(self.identity.header.id)
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
                if !self.marking {
                    self.start_mark();
                }
                if !self.chore {
                    self.start_chore();
                }
            }
        }
    }

    fn start_write(&mut self) {
        let shared = self.shared();
        let mut state = shared.state.lock();
        let Some((first, bytes)) = state.first_queued() else { return };
        let full = |current: &Current| current.end.saturating_add(bytes) > self.limit(current) && current.is_used();
        if self.current.as_ref().is_none_or(full) {
            // Without a spare there will be one soon: see `start_chore`.
            let Some(spare) = self.spares.pop_front() else { return };
            self.rotate(spare, first);
        }
        let Some(current) = self.current.clone() else { return };
        let room = self.limit(&current).saturating_sub(current.end).min(BATCH_BYTES);
        let batch = state.take_batch(room, BATCH_RECORDS);
        let synced = state.mark();
        let doors = self.doors.clone();
        self.writing = true;
        self.running.push(Box::pin(async move { Event::Wrote(write(&doors, current, synced, batch).await) }));
    }

    /// The file is full at so many bytes. What there is instead of a spare is the file at hand.
    fn limit(&self, current: &Current) -> u64 {
        if self.spares.is_empty() { self.options.file_bytes.max(current.size) } else { current.size }
    }

    /// Records go to `next` from now on, the first of them being `first`.
    fn rotate(&mut self, next: Current, first: ChangeNo) {
        if let Some(Current { name, file, end, size, dirty, .. }) = self.current.replace(next) {
            let last = ChangeNo(first.0.saturating_sub(1));
            self.full.push_back(Full { name, file, last, bytes: end, laid_out: end.max(size), dirty });
        }
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

    /// Says in the identity file what is synced now. Nobody waits for it.
    fn start_mark(&mut self) {
        let synced = self.shared.state.lock().mark();
        if synced <= self.identity.mark.synced {
            return;
        }
        let (disk, mut identity) = (self.doors.disk.clone(), self.identity.clone());
        identity.mark = identity.mark.next(synced);
        self.marking = true;
        self.running
            .push(Box::pin(async move { Event::Marked(put_mark(&disk, &identity).await.map(|()| identity.mark)) }));
    }

    /// Sees to it that there is a spare in time, and gives up the oldest file if the store covers it.
    fn start_chore(&mut self) {
        let (released, closing) = {
            let state = self.shared.state.lock();
            (state.released, state.closing && state.first_queued().is_none())
        };
        let doors = self.doors.clone();
        let oldest = self.full.front().filter(|full| full.last <= released);
        let oldest = oldest.map(|full| (full.name.clone(), Arc::clone(&full.file), full.laid_out));
        let needed = self.current.as_ref().is_none_or(|current| current.end > current.size / 2);
        let work: BoxFuture<'static, Event> = match (oldest, self.spares.len()) {
            (Some((name, file, laid_out)), ..SPARES_MAX) => {
                let (header, laying) = (self.next_header(), self.laying(laid_out));
                Box::pin(
                    async move { Event::GivenUp(prepare(&doors, name, file, header, true, laying).await.map(Some)) },
                )
            }
            (Some((name, ..)), _) => Box::pin(async move { Event::GivenUp(remove(&doors, name).await) }),
            (None, 0) if needed && !closing => {
                let (header, laying) = (self.next_header(), self.laying(0));
                Box::pin(async move { Event::Prepared(create_file(&doors, header, laying).await) })
            }
            (None, _) => return,
        };
        self.chore = true;
        self.running.push(work);
    }

    /// How the next file is laid out, of which `laid_out` bytes are.
    fn laying(&mut self, laid_out: u64) -> Laying {
        let most = self.options.file_bytes;
        if !self.options.lay_out {
            return Laying { from: most, size: most };
        }
        self.size = self.size.saturating_mul(2).max(LAID_OUT_FIRST).min(most);
        Laying { from: laid_out.max(FIRST_RECORD), size: self.size.max(laid_out.min(most)) }
    }

    fn start_clear(&mut self) {
        let (doors, mut identity) = (self.doors.clone(), self.identity.clone());
        identity.mark = identity.mark.next(self.shared.state.lock().mark());
        self.current = None;
        self.full.clear();
        self.spares.clear();
        self.running.push(Box::pin(async move {
            let cleared = async {
                let mut names = journal_files(&doors.disk).await?;
                names.retain(|name| *name != identity.name);
                remove_files(&doors.disk, names).await?;
                mark_durably(&doors, &identity).await
            };
            Event::Cleared(cleared.await.map(|()| identity.mark).map_err(|err| err.to_string()))
        }));
    }

    fn finish(&mut self, event: Event) {
        let failure = match event {
            Event::Wrote(result) => {
                self.writing = false;
                result.map(|(end, last)| self.wrote(end, last)).err()
            }
            Event::Synced(result) => {
                self.syncing = false;
                result.map(|up_to| self.reached(Promise::Synced, up_to)).err()
            }
            Event::Prepared(result) => {
                self.chore = false;
                result.map(|spare| self.spares.push_back(spare)).err()
            }
            Event::GivenUp(result) => {
                self.chore = false;
                result.map(|spare| self.given_up(spare)).err()
            }
            Event::Marked(result) => {
                self.marking = false;
                result.map(|mark| self.identity.mark = mark).err()
            }
            Event::Cleared(result) => result.map(|mark| self.cleared(mark)).err(),
        };
        if let Some(reason) = failure {
            self.shared.suspend(&self.dir(), &reason);
        }
        self.count_bytes();
    }

    fn wrote(&mut self, end: u64, last: ChangeNo) {
        if let Some(current) = &mut self.current {
            current.end = end;
            // Also if a sync is under way: it may or may not have seen this.
            current.dirty = true;
        }
        self.reached(Promise::Written, last);
    }

    fn given_up(&mut self, spare: Option<Current>) {
        self.full.pop_front();
        self.spares.extend(spare);
    }

    fn reached(&self, promise: Promise, no: ChangeNo) {
        let mut state = self.shared.state.lock();
        // What ends after a failure or a restart belongs to the past.
        if state.phase == Phase::Running {
            let kept = state.kept_bytes();
            state.reached_now(promise, no);
            if state.kept_bytes() < kept {
                self.shared.let_go.notify_one();
            }
        }
    }

    fn cleared(&mut self, mark: Mark) {
        self.identity.mark = mark;
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

    fn next_header(&mut self) -> FileHeader {
        self.serial += 1;
        let FileHeader { id, block_size, .. } = self.identity.header;
        FileHeader::new(&self.doors.sealer, id, block_size, self.serial, self.doors.random.bytes())
    }
}

impl Current {
    fn is_used(&self) -> bool {
        self.end > FIRST_RECORD
    }
}

/// Writes records behind those in the file. Returns where they end, and the last change.
async fn write(
    doors: &Doors,
    current: Current,
    synced: ChangeNo,
    batch: Vec<Queued>,
) -> Result<(u64, ChangeNo), String> {
    let bytes: u64 = batch.iter().map(|(_, numbered)| record::record_len(&numbered.change)).sum();
    let last = batch.last().map_or(ChangeNo(0), |(_, numbered)| numbered.no);
    let (key, at) = (current.key.clone(), current.end);
    let mut parts = match bytes > INLINE_BYTES {
        true => doors.workers.run(move || encode(&key, at, synced, batch)).await,
        false => encode(&key, at, synced, batch),
    }
    .map_err(|error| error.to_string())?;
    if current.recycled {
        parts.push(end_mark());
    }
    let written = current.file.write_at(at, parts).await;
    written.map_err(|err| failure(&doors.disk, "write", &current.name, &err))?;
    Ok((at + bytes, last))
}

/// The records as parts of one vectored write: heads from one allocation, data as it came, if it is not encrypted.
fn encode(key: &FileKey, mut offset: u64, synced: ChangeNo, batch: Vec<Queued>) -> Result<Vec<Bytes>, EncodeError> {
    let mut heads = BytesMut::with_capacity(batch.len() * HEAD_BYTES);
    let mut data = Vec::with_capacity(batch.len());
    for (epoch, numbered) in batch {
        let mut head = [0; HEAD_BYTES];
        let len = record::record_len(&numbered.change);
        data.push(record::encode(key, offset, synced, epoch, numbered, &mut head)?);
        heads.extend_from_slice(&head);
        offset += len;
    }
    let mut heads = heads.freeze();
    let mut parts = Vec::with_capacity(data.len() * 2);
    for data in data {
        parts.push(heads.split_to(HEAD_BYTES));
        if !data.is_empty() {
            parts.push(data);
        }
    }
    Ok(parts)
}

/// What makes old bytes behind the last record an end.
fn end_mark() -> Bytes {
    Bytes::from_static(&[0; HEAD_BYTES])
}

async fn remove(doors: &Doors, name: String) -> Result<Option<Current>, String> {
    let removed = doors.disk.remove(&name).await;
    removed.map(|()| None).map_err(|err| failure(&doors.disk, "remove", &name, &err))
}

async fn create_file(doors: &Doors, header: FileHeader, laying: Laying) -> Result<Current, String> {
    let name = new_name(doors, header.number);
    let created = doors.disk.create(&name).await;
    let file = created.map_err(|err| failure(&doors.disk, "create", &name, &err))?;
    prepare(doors, name, file, header, false, laying).await
}

/// How a file is laid out: zeros from `from` to `size`.
#[derive(Clone, Copy)]
struct Laying {
    from: u64,
    size: u64,
}

/// Puts a header into the file, durably. From then on, what was in it before is no record of any journal.
async fn prepare(
    doors: &Doors,
    name: String,
    file: Arc<dyn DiskFile>,
    header: FileHeader,
    recycled: bool,
    laying: Laying,
) -> Result<Current, String> {
    let prepared: io::Result<()> = async {
        lay_out(&*file, laying).await?;
        // Nothing but the header's sector changes: until it does, old records stand whole behind the old header.
        file.write_durably_at(0, vec![header.encode(&name)]).await
    }
    .await;
    prepared.map_err(|err| failure(&doors.disk, "prepare", &name, &err))?;
    let key = header.key(&doors.sealer).map_err(|error| error.to_string())?;
    Ok(Current { name, file, key, end: FIRST_RECORD, size: laying.size, recycled, dirty: false })
}

/// Fills the file with zeros that are on the disk. A disk that is too full for it is left as it is: records may still fit.
async fn lay_out(file: &dyn DiskFile, laying: Laying) -> io::Result<()> {
    let mut at = laying.from;
    while at < laying.size {
        let end = laying.size.min(at + ZERO_BYTES);
        let parts = (at..end).step_by(ZERO_PART as usize).map(|from| zeros((end - from).min(ZERO_PART)));
        match file.write_at(at, parts.collect()).await {
            Err(err) if err.kind() == io::ErrorKind::StorageFull => break,
            written => written?,
        }
        at = end;
    }
    if laying.from < laying.size { file.sync().await } else { Ok(()) }
}

/// At most [`ZERO_PART`] of them.
fn zeros(len: u64) -> Bytes {
    static ZEROS: [u8; ZERO_PART as usize] = [0; ZERO_PART as usize];
    Bytes::from_static(&ZEROS[..len as usize])
}

fn new_name(doors: &Doors, number: u64) -> String {
    file_name(number, u32::from_le_bytes(doors.random.bytes()))
}
