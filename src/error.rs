//! Why a volume cannot be had, by what the operator can do about it.

use std::fmt;

use uuid::Uuid;

use crate::codec::CorruptError;
use crate::device::DeviceError;
use crate::format::meta::WrongStore;
use crate::format::segment::Fence;
use crate::human::counted;
use crate::journal::JournalError;
use crate::keyring::UnlockError;
use crate::reading::ReadError;
use crate::store::{ErrorKind, Key, StoreError};
use crate::units::Epoch;

/// The result of an operation on a volume.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// A failure, as one sentence that names the thing and the way out.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no such volume.
    #[error("there is no volume {name:?} in {store}; `ashlar list` shows what is there, `ashlar create` makes one")]
    NotFound {
        /// The name asked for.
        name: String,
        /// The store's URL.
        store: String,
    },
    /// There is only a mirror of it.
    #[error(
        "volume {name} in {store} is a mirror, which nobody may open: `ashlar promote {name}` makes a volume of it, and ends the mirror"
    )]
    IsMirror {
        /// The name asked for.
        name: String,
        /// The store's URL.
        store: String,
    },
    /// The volume has no such snapshot.
    #[error("volume {volume} has no snapshot {snapshot:?}; it has {has}")]
    NoSnapshot {
        /// The volume.
        volume: String,
        /// The name asked for.
        snapshot: String,
        /// Those that it has: a part of the sentence.
        has: String,
    },
    /// The name is taken.
    #[error("there is a volume {name:?} in {store} already; choose another name or delete it first")]
    AlreadyExists {
        /// The name asked for.
        name: String,
        /// The store's URL.
        store: String,
    },
    /// It is encrypted, and the key is missing or wrong; or it is not, and must be.
    #[error("volume {name:?} stays locked: {why} [A01]")]
    Locked {
        /// The volume.
        name: String,
        /// Why.
        why: UnlockError,
    },
    /// It has a setting of its own that this server does not know, or cannot keep.
    #[error(
        "volume {name} has settings of its own that this server cannot keep: {why}; change this server's configuration, set another value with `ashlar set {name} KEY=VALUE`, or leave it to the server with `ashlar set {name} --unset KEY`"
    )]
    Settings {
        /// The volume.
        name: String,
        /// What cannot be.
        why: String,
    },
    /// Its log is in a store of its own, which is not at hand.
    #[error(
        "the log of volume {name} is in a store of its own, {log} when that was made, and {what}; set store.log to where that is now, or, if it is lost, open with \
         --accept-log-loss: what had not moved from there is gone then [A13]"
    )]
    LogNotHere {
        /// The volume.
        name: String,
        /// Where the log was.
        log: String,
        /// What was found instead: a part of the sentence.
        what: String,
    },
    /// A name, size or the like that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The store failed.
    #[error("{doing}: {source}")]
    Store {
        /// What was being done.
        doing: String,
        /// The store's own words.
        source: StoreError,
    },
    /// An object is there but is not what was written.
    #[error(
        "object {key} is corrupt: {why}; `ashlar check` reads the whole volume and names every damaged object [A02]"
    )]
    Corrupt {
        /// The object.
        key: Key,
        /// What is wrong with it.
        why: String,
    },
    /// Another server opened the volume and did not close it.
    #[error(
        "volume {name:?} was opened by {holder} and not closed; if that server is gone, open it with --takeover: from \
         then on the other server can write no more [A03]"
    )]
    Held {
        /// The volume.
        name: String,
        /// Who holds it.
        holder: Holder,
    },
    /// The last writer may have acknowledged changes that only its journal holds, and that journal is not here.
    #[error(
        "volume {name:?} was served with durability \"journal\" or \"peer\" by {holder}, which did not close it, and its journal \
         is not in {journal_dir}: changes that it acknowledged since then may be missing; stop that server and bring its journal \
         here, or open the volume on its peer, or accept their loss with --accept-loss [A04]"
    )]
    Owed {
        /// The volume.
        name: String,
        /// Who held it.
        holder: Holder,
        /// Where the journal was looked for.
        journal_dir: String,
    },
    /// A journal is here that the newest fence does not name.
    #[error(
        "{journal_dir} holds a journal of volume {name:?} with {} from epoch {epoch} that the volume \
         has moved on without: it was taken over by {holder}{copied}; open with --drop-journal to set its files aside and go on \
         without them [A05]",
        counted(*changes as u64, "change")
    )]
    StaleJournal {
        /// The volume.
        name: String,
        /// Where the journal is.
        journal_dir: String,
        /// How many changes it holds.
        changes: usize,
        /// The epoch they were accepted in.
        epoch: Epoch,
        /// Who took the volume since.
        holder: Box<Holder>,
        /// What follows if that has our own identity.
        copied: &'static str,
    },
    /// The journal ends before what was on the disk.
    #[error(
        "the journal of volume {name:?} in {journal_dir} {has_lost} changes that were on the disk: it ends at change {last}{synced} \
         ({note}); restore the directory, or go on with what is there and accept the loss of the rest with --accept-loss [A06]"
    )]
    JournalCut {
        /// The volume.
        name: String,
        /// Where the journal is.
        journal_dir: String,
        /// Whether it has surely lost something: a part of the sentence.
        has_lost: &'static str,
        /// The last change that can be had.
        last: u64,
        /// And the last that was there, if that is known: a part of the sentence.
        synced: String,
        /// Where and why reading stopped.
        note: String,
    },
    /// A flag was given whose danger is not there.
    #[error(
        "{flag} was given for volume {name:?}, but {}; a flag that accepts a danger is for that danger only: leave it out",
        flag.needless_because()
    )]
    NeedlessFlag {
        /// The volume.
        name: String,
        /// The flag.
        flag: Flag,
    },
    /// What was seen of the volume before cannot be read.
    #[error(
        "what this server has seen of volume {name:?} before cannot be read ({why}), so that an older copy of the store would pass \
         for the present one; mend the directory, or open with --accept-rollback if nobody put one there [A07]"
    )]
    SeenUnreadable {
        /// The volume.
        name: String,
        /// What failed.
        why: String,
    },
    /// The store holds an older state than this server has seen.
    #[error(
        "volume {name:?} has gone back: {what}; somebody restored an old copy of the store, or wants you to \
         take it for the present one; if you did it, open with --accept-rollback [A08]"
    )]
    RolledBack {
        /// The volume.
        name: String,
        /// What is older than what was seen.
        what: String,
    },
    /// The journal continues beyond what the store has: the store lost something.
    #[error(
        "the journal in {journal_dir} begins at change {journal_first} of volume {name:?}, but the store ends at change \
         {store_last}: the store has lost what was committed between, or the journal its oldest file; restore it, or open with \
         --drop-journal to set the journal's files aside and go on from what is in the store [A09]"
    )]
    StoreBehind {
        /// The volume.
        name: String,
        /// Where the journal is.
        journal_dir: String,
        /// The first change in the journal.
        journal_first: u64,
        /// The last change in the store.
        store_last: u64,
    },
    /// Somebody else took the volume while it was being opened.
    #[error("volume {name:?} was taken by {holder} while it was being opened here; nothing was written")]
    LostRace {
        /// The volume.
        name: String,
        /// The winner.
        holder: Holder,
    },
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The open volume failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl VolumeError {
    /// A store failure while `doing` something.
    pub fn store(doing: impl Into<String>) -> impl FnOnce(StoreError) -> VolumeError {
        let doing = doing.into();
        move |source| VolumeError::Store { doing, source }
    }

    /// An object that does not decode.
    pub fn corrupt(key: &Key) -> impl FnOnce(CorruptError) -> VolumeError {
        let key = key.clone();
        move |error| VolumeError::Corrupt { key, why: error.to_string() }
    }

    /// Whether this is the store saying that an object is missing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, VolumeError::Store { source, .. } if source.kind == ErrorKind::NotFound)
    }
}

/// The server that has a volume, or had it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its identity.
    pub server: Uuid,
    /// Its host's name.
    pub server_name: String,
    /// The epoch that its fence began.
    pub epoch: Epoch,
    /// When it took the volume: milliseconds since 1970, by its own clock.
    pub since_unix_millis: u64,
}

impl Holder {
    /// There is none.
    pub fn nobody() -> Holder {
        Holder { server: Uuid::nil(), server_name: "none".into(), epoch: Epoch(0), since_unix_millis: 0 }
    }

    /// The server that put a fence.
    pub fn of(fence: &Fence) -> Holder {
        Holder {
            server: fence.server,
            server_name: fence.server_name.clone(),
            epoch: fence.epoch,
            since_unix_millis: fence.time_unix_millis,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.since_unix_millis);
        let since = humantime::format_rfc3339_seconds(since);
        write!(f, "server {} ({}) in epoch {} since {since}", self.server_name, self.server, self.epoch)
    }
}

/// One of the flags with which an operator allows a danger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// [`crate::opening::verdict::OpenFlags::takeover`]
    Takeover,
    /// [`crate::opening::verdict::OpenFlags::accept_loss`]
    AcceptLoss,
    /// [`crate::opening::verdict::OpenFlags::drop_journal`]
    DropJournal,
    /// [`crate::opening::verdict::OpenFlags::accept_rollback`]
    AcceptRollback,
    /// [`crate::opening::verdict::OpenFlags::accept_log_loss`]
    AcceptLogLoss,
}

impl Flag {
    /// Why nobody needs it here.
    pub fn needless_because(self) -> &'static str {
        match self {
            Flag::Takeover => "no other server has the volume open",
            Flag::AcceptLoss => "nothing that was promised is missing",
            Flag::DropJournal => "no journal is in the way",
            Flag::AcceptRollback => "the store is not older than what this server has seen",
            Flag::AcceptLogLoss => "its log is at hand",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flag::Takeover => "--takeover",
            Flag::AcceptLoss => "--accept-loss",
            Flag::DropJournal => "--drop-journal",
            Flag::AcceptRollback => "--accept-rollback",
            Flag::AcceptLogLoss => "--accept-log-loss",
        })
    }
}

impl From<WrongStore> for VolumeError {
    fn from(error: WrongStore) -> VolumeError {
        VolumeError::Invalid(error.to_string())
    }
}

impl From<ReadError> for VolumeError {
    fn from(error: ReadError) -> VolumeError {
        match error {
            ReadError::Store { key, offset, source } => {
                VolumeError::Store { doing: format!("reading {key} at {offset}"), source }
            }
            ReadError::Corrupt { key, offset, why } => {
                VolumeError::Corrupt { key, why: format!("at byte {offset}: {why}") }
            }
        }
    }
}
