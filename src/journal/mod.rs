//! The journal: the server's local write-ahead log of what is not yet committed in the store.
//!
//! It is there so that a killed server loses nothing that it acknowledged, and, with `durability = "journal"`, so that
//! a FLUSH costs a local disk's latency and no request to the store. It knows changes and their numbers; segments and
//! the map are none of its business.
//!
//! **Promises.** Records are written in the order of [`Journal::append`]. Once [`Journal::written`] returns, the
//! record and all before it survive the death of the process; once [`Journal::synced`] returns, the death of the
//! host. What [`find`] gives back is a run of consecutive changes without a hole, proven by their tags; it holds all
//! that was synced and not released, and after a mere kill all that was written and not released.
//!
//! **States.** *running* → *suspended* at the first failed write or sync: all who wait and all later comers are told
//! at once, records are dropped, nothing is retried (after a failed fdatasync Linux marks the pages clean, so that a
//! second one would lie). The volume then acknowledges by commits alone, and once nothing is owed to the journal any
//! more, begins it anew ([`Journal::restart_from`]): old files removed, a fresh file, *running* again.
//!
//! **Files.** A directory of the journal's own holds the identity file, synced before anything else and removed last,
//! and files of at most about [`Options::file_bytes`]. When the store covers all records of a file it becomes a spare, of
//! which a few are kept, to be the next file: overwriting what the page cache and the filesystem already have is
//! cheaper than making it, and needs no metadata commit at fdatasync. It gets its new header, durably, when it becomes a
//! spare; that sends nothing but the header to the disk, so records that were released before the kernel got round to
//! writing them back never go there. Files go strictly from the oldest.
//!
//! With [`Options::lay_out`] a new file is filled with zeros, durably, before it is used, so that its first use is as
//! cheap to sync as a later one. So that the first record need not wait for long, and a volume that is hardly written to
//! keeps little, the first file is small, and each new one twice as large as the one before. If writing is faster
//! than laying out, the file at hand grows beyond its size rather than keep anybody waiting.
//!
//! **Damage.** Whoever was promised that a change is on the disk is not to lose it unheard. So the journal says, in each record and after
//! each sync in the identity file, up to where it was synced ([`mark`]); [`Found::synced`] is the greatest number that can be
//! proven. A chain that ends before it has lost something. A torn tail behind it is what a crash is.
//!
//! One task owns the files and runs at most one write, one sync, one mark and one chore (removal, making a spare)
//! at a time, side by side: while one sync runs, records are written on, and the next sync covers them all.
//!
//! What it does not do: bound its memory (the volume does: it bounds what is uncommitted, and lets nobody have the room of what is
//! committed while [`Journal::kept_bytes`] says that the disk has not taken it), decide which
//! changes still count (recovery does), keep two servers apart ([`crate::disk::local::LocalDisk::lock`] does).

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::change::Numbered;
use crate::codec::seal::Sealer;
use crate::disk::Disk;
use crate::outside::{Random, Workers};
use crate::units::{BlockSize, ChangeNo, Epoch};

pub mod find;
pub mod mark;
pub mod record;
pub mod replay;
mod state;
mod writer;
#[cfg(test)]
mod tests;

pub use find::{Found, discard, find, set_aside};

use state::{Asked, Promise, State};
use writer::Writer;

/// Settings of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// A file of this many bytes is full and the next one is begun; at least one record goes into each file.
    #[serde(with = "crate::human::bytes")]
    pub file_bytes: u64,
    /// Files are laid out before use: worth it where records are synced. No setting: it follows from what the volume
    /// promises with a FLUSH.
    #[serde(skip)]
    pub lay_out: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { file_bytes: 64 << 20, lay_out: false }
    }
}

/// What the journal needs from outside. The disk is a directory of its own.
#[derive(Clone, Debug)]
pub struct Doors {
    /// The journal's directory.
    pub disk: Arc<dyn Disk>,
    /// For the salts of files.
    pub random: Random,
    /// For tagging large writes.
    pub workers: Workers,
    /// Seals the records; says whose journal it is.
    pub sealer: Sealer,
}

/// Why the journal cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// A write or sync failed; nothing is journalled until [`Journal::restart_from`].
    #[error("the journal is suspended: {reason}")]
    Suspended {
        /// What failed, and where.
        reason: String,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
    /// The directory holds the journal of another volume.
    #[error(
        "the journal in {dir} belongs to volume {theirs}, not to volume {ours}: move that directory aside, put back \
         the one that belongs here, or start with another state directory; it was not touched"
    )]
    Foreign {
        /// The directory.
        dir: String,
        /// Whose journal it is.
        theirs: Uuid,
        /// The volume being opened.
        ours: Uuid,
    },
    /// The files contradict each other, or do not verify where they must.
    #[error(
        "{what}: restore the directory, or open with --drop-journal to set its files aside and go on without the changes \
         that only they hold; it was not touched"
    )]
    Damaged {
        /// What was found, with the directory.
        what: String,
    },
    /// A file is there and the disk does not give it back.
    #[error(
        "{what}: mend the disk, or open with --drop-journal to set the journal's files aside and go on without the changes \
         that only they hold; it was not touched"
    )]
    Unreadable {
        /// What failed, with the file.
        what: String,
    },
    /// A format of another version.
    #[error(
        "{what}, which this version of ashlar does not know: open the volume with the version that wrote it; it was not touched"
    )]
    Unknown {
        /// The file and what it has.
        what: String,
    },
    /// A journal exists already where one was to be created.
    #[error("there is a journal in {dir} already")]
    Exists {
        /// The directory.
        dir: String,
    },
    /// The disk failed while the journal was being opened, created or discarded.
    #[error("{what}")]
    Disk {
        /// What failed, with the file.
        what: String,
    },
}

/// How far the journal is. Numbers are of the last change for which it holds, and for all before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Taken.
    pub appended: ChangeNo,
    /// Handed to the operating system.
    pub written: ChangeNo,
    /// On the disk.
    pub synced: ChangeNo,
    /// Why it is suspended, if it is.
    pub suspended: Option<String>,
}

/// An open journal. Dropping it ends it at once, as a kill would; see [`Journal::close`].
pub struct Journal {
    shared: Arc<Shared>,
    dir: String,
    name: Uuid,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// There may be something to do for the writer.
    wake: Notify,
    /// Records have left the memory.
    let_go: Notify,
}

impl Journal {
    /// Creates a journal whose first change will be `first`. Its identity is durable when this returns.
    pub async fn create(
        doors: Doors,
        options: Options,
        id: Uuid,
        block_size: BlockSize,
        first: ChangeNo,
    ) -> Result<Journal, JournalError> {
        let writer = writer::create(doors, options, id, block_size, first).await?;
        Ok(Journal::start(writer))
    }

    /// Goes on with a journal that was found; `next` is the number of the next change. If that is not the one after
    /// the last that was found, then what was found does not count any more (the store covers it, or it is of no use)
    /// and is removed. Otherwise it stays until released, and [`Journal::synced`] covers it too. If the disk fails at
    /// this, the journal begins suspended. What of it was known to be synced and is not there any more is forgotten.
    pub async fn resume(doors: Doors, options: Options, found: &Found, next: ChangeNo, named_by: Uuid) -> Journal {
        Journal::start(writer::resume(doors, options, found, next, named_by).await)
    }

    /// By which a fence is to name the journal: its id if it was created now, otherwise a new name that is in it, durably; if it
    /// could not be put there, `named_by` again.
    pub fn name(&self) -> Uuid {
        self.name
    }

    /// Queues a record. Never blocks; the order of calls is the order in the file, so numbers are consecutive and
    /// epochs do not go back. While the journal is suspended the record is dropped, and [`Journal::written`] says so.
    pub fn append(&self, epoch: Epoch, numbered: Numbered) {
        let refused = self.shared.state.lock().append(epoch, numbered);
        if let Err(reason) = refused {
            self.shared.suspend(&self.dir, &reason);
        }
        self.shared.wake.notify_one();
    }

    /// Returns once the operating system has the record `no` and all before it.
    pub async fn written(&self, no: ChangeNo) -> Result<(), JournalError> {
        self.reached(Promise::Written, no).await
    }

    /// Returns once the record `no` and all before it are on the disk. Those who wait at the same time share a sync.
    pub async fn synced(&self, no: ChangeNo) -> Result<(), JournalError> {
        self.reached(Promise::Synced, no).await
    }

    /// How far it is, and whether it is suspended.
    pub fn progress(&self) -> Progress {
        self.shared.state.lock().progress()
    }

    /// The store covers all changes up to `covered`: files with nothing later are given up.
    pub fn release(&self, covered: ChangeNo) {
        self.shared.state.lock().release(covered);
        self.shared.wake.notify_one();
    }

    /// Bytes of records that are covered by the store and still in memory, because the disk has not taken them yet: clients may go on
    /// once the store has what they wrote, however slow the disk is.
    pub fn kept_bytes(&self) -> u64 {
        self.shared.state.lock().kept_bytes()
    }

    /// Returns once [`Journal::kept_bytes`] may have become less, also if that was before the call. For one caller at a time.
    pub async fn let_go(&self) {
        self.shared.let_go.notified().await;
    }

    /// Begins anew after a failure: forgets all records and removes their files; the next append is `no`. The caller
    /// vouches that the store covers every change before `no`. Does nothing and returns false if a change from `no`
    /// on was already reported as written: somebody may count on it, so commit that one first.
    pub fn restart_from(&self, no: ChangeNo) -> bool {
        let restarted = self.shared.state.lock().restart_from(no);
        self.shared.wake.notify_one();
        self.shared.let_go.notify_one();
        restarted
    }

    /// Bytes of the files that hold records, released or not.
    pub fn stored_bytes(&self) -> u64 {
        self.shared.state.lock().stored_bytes
    }

    /// Writes and syncs what is queued and ends: when this returns, nothing of it touches the directory any more. The files stay;
    /// [`discard`] removes them.
    pub async fn close(&self) -> Result<(), JournalError> {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_one();
        let task = self.task.lock().take();
        match task {
            None => return Err(JournalError::Closed),
            // It ends by itself; a panic in it or the end of the runtime leaves its state as it was, which we read.
            Some(task) => drop(task.await),
        }
        let progress = self.progress();
        match progress.suspended {
            Some(reason) => Err(JournalError::Suspended { reason }),
            None if progress.synced < progress.appended => Err(JournalError::Closed),
            None => Ok(()),
        }
    }

    fn start(writer: Writer) -> Journal {
        let (shared, dir, name) = (writer.shared(), writer.dir(), writer.name());
        let task = tokio::spawn(writer.run());
        Journal { shared, dir, name, task: Mutex::new(Some(task)) }
    }

    async fn reached(&self, promise: Promise, no: ChangeNo) -> Result<(), JournalError> {
        let asked = self.shared.state.lock().ask(promise, no);
        match asked {
            Asked::Known(answer) => answer,
            Asked::Later(told) => {
                if promise == Promise::Synced {
                    self.shared.wake.notify_one();
                }
                told.await.unwrap_or(Err(JournalError::Closed))
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Shared {
    /// A failure: the one place where the journal's suspension is said in the log.
    fn suspend(&self, dir: &str, reason: &str) {
        if self.state.lock().suspend(reason) {
            self.let_go.notify_one();
            tracing::error!(
                journal = dir,
                reason,
                "the journal is suspended; until it is begun anew, writes are acknowledged when the store has them"
            );
        }
    }
}
