//! Reading what an earlier server left: [`find`]; removing it: [`discard`], or keeping it out of the way: [`set_aside`].

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use crate::change::Numbered;
use crate::codec::seal::Sealer;
use crate::disk::Disk;
use crate::journal::JournalError;
use crate::journal::mark::Mark;
use crate::journal::record::FileHeader;
use crate::journal::replay::{ChainFile, FileBytes, number_in_name, replay};
use crate::units::{BlockSize, ChangeNo, Epoch};

/// A journal that lies in the directory.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its id.
    pub id: Uuid,
    /// The volume's block size.
    pub block_size: BlockSize,
    /// The epoch of the last change; 0 without one.
    pub epoch: Epoch,
    /// Consecutive changes, the earliest of them perhaps covered by the store already: see [`Found::after`].
    pub changes: Vec<Numbered>,
    /// Where and why reading stopped before the end, for people: torn tail, missing file.
    pub note: Option<String>,
    pub(super) chain: Vec<ChainFile>,
    pub(super) void: Vec<String>,
    pub(super) greatest: u64,
    pub(super) identity: FileHeader,
    pub(super) identity_name: Option<String>,
    pub(super) mark: Mark,
    /// Every change up to this one was on the disk: if [`Found::changes`] end before it, some are lost.
    pub synced: ChangeNo,
    /// By which fences name it.
    pub names: Vec<Uuid>,
}

impl Found {
    /// The number of the last change, if there is any.
    pub fn last(&self) -> Option<ChangeNo> {
        self.changes.last().map(|change| change.no)
    }

    /// Whether it can be told that nothing is missing at the end.
    pub fn is_whole(&self) -> bool {
        self.identity_name.is_some()
    }

    /// The changes after `covered`. Empty if the first of them is not here: what follows a hole is of no use.
    pub fn after(&self, covered: ChangeNo) -> &[Numbered] {
        match self.changes.first() {
            Some(first) if first.no <= covered.next() => {
                let skip = self.changes.partition_point(|change| change.no <= covered);
                &self.changes[skip..]
            }
            _ => &[],
        }
    }
}

/// What lies in the directory: nothing, or a journal of this volume. Changes nothing.
pub async fn find(disk: &Arc<dyn Disk>, sealer: &Sealer) -> Result<Option<Found>, JournalError> {
    let mut files = Vec::new();
    for name in journal_files(disk).await? {
        let bytes = read(disk, &name).await;
        let bytes = bytes.map_err(|err| JournalError::Unreadable { what: failure(disk, "read", &name, &err) })?;
        files.push(FileBytes { name, bytes });
    }
    let replayed = replay(&disk.path(), sealer, &files)?;
    Ok(replayed.map(|replay| Found {
        names: if replay.mark.names.is_empty() { vec![replay.identity.id] } else { replay.mark.names.clone() },
        mark: replay.mark,
        synced: replay.synced,
        id: replay.identity.id,
        block_size: replay.identity.block_size,
        epoch: replay.epoch,
        changes: replay.changes,
        note: replay.note,
        chain: replay.chain,
        void: replay.void,
        greatest: replay.greatest,
        identity: replay.identity,
        identity_name: replay.identity_name,
    }))
}

/// Removes the journal, durably. Newest files first and the identity file last, so that a crash on the way leaves a
/// journal with fewer changes, or none.
pub async fn discard(disk: &Arc<dyn Disk>, volume: Uuid) -> Result<(), JournalError> {
    let names = journal_files(disk).await?;
    for name in &names {
        let header = match disk.open(name).await {
            Ok(file) => file.read_at(0, 4096).await.map_err(|err| failed(disk, "read", name, &err))?,
            Err(err) => return Err(failed(disk, "open", name, &err)),
        };
        if let Ok(header) = FileHeader::decode(name, &header)
            && header.volume != volume
        {
            return Err(JournalError::Foreign { dir: disk.path(), theirs: header.volume, ours: volume });
        }
    }
    remove_files(disk, names).await
}

/// Moves the journal's files into a new directory below theirs, whatever is in them, and says which. The identity file goes first, so
/// that what a crash on the way leaves does not pass for a whole journal. Whoever wants them back moves them back.
pub async fn set_aside(disk: &Arc<dyn Disk>) -> Result<String, JournalError> {
    let mut number = 1;
    let dir = loop {
        let dir = format!("dropped-{number}");
        if disk.list(&dir).await.map_err(|err| failed(disk, "list", &dir, &err))?.is_empty() {
            break dir;
        }
        number += 1;
    };
    let mut names = journal_files(disk).await?;
    names.sort();
    for name in names {
        let moved = disk.rename(&name, &format!("{dir}/{name}")).await;
        moved.map_err(|err| failed(disk, "set aside", &name, &err))?;
    }
    Ok(format!("{}/{dir}", disk.path()))
}

/// Removes files, the identity file last.
pub(super) async fn remove_files(disk: &Arc<dyn Disk>, mut names: Vec<String>) -> Result<(), JournalError> {
    names.sort();
    for name in names.iter().rev() {
        disk.remove(name).await.map_err(|err| failed(disk, "remove", name, &err))?;
    }
    Ok(())
}

/// The journal's files in the directory; others are none of its business.
pub(super) async fn journal_files(disk: &Arc<dyn Disk>) -> Result<Vec<String>, JournalError> {
    let mut names = disk.list("").await.map_err(|err| failed(disk, "list", "", &err))?;
    names.retain(|name| number_in_name(name).is_some());
    Ok(names)
}

/// The sentence for a failure of the disk.
pub(super) fn failed(disk: &Arc<dyn Disk>, verb: &str, name: &str, err: &io::Error) -> JournalError {
    JournalError::Disk { what: failure(disk, verb, name, err) }
}

/// The same as text.
pub(super) fn failure(disk: &Arc<dyn Disk>, verb: &str, name: &str, err: &io::Error) -> String {
    format!("could not {verb} {}/{name}: {err}", disk.path())
}

async fn read(disk: &Arc<dyn Disk>, name: &str) -> io::Result<bytes::Bytes> {
    let file = disk.open(name).await?;
    let len = file.len().await?;
    file.read_at(0, usize::try_from(len).map_err(io::Error::other)?).await
}
