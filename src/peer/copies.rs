//! The keeper's files. In the directory of a volume (that of the journal, should this server have the volume) there are
//!
//! | name | what it is |
//! | --- | --- |
//! | `standby-<n>` | the note of what there is: [`Standing`] |
//! | `copy-0/`, `copy-1/` | a journal; the note says which of them is the copy, the other one is of no use |
//!
//! Order of things, where it matters:
//!
//! 1. A copy's identity file is synced before the note names it, and only then the files of the one before go.
//! 2. A takeover notes that the copy is taken, and that none of its epoch begins any more, before the first file moves to the journal's place. The identity file moves last.
//!    Whoever comes after a crash goes on with that ([`finish`]) before anything is looked at.
//! 3. When the fence is in the log, the note forgets the copy ([`taken`]), and goes on saying up to which epoch none begins.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::seal::Sealer;
use crate::disk::note::Note;
use crate::disk::{Disk, DiskFile};
use crate::journal::mark::Mark;
use crate::journal::record::{FIRST_RECORD, FileHeader, HeaderFault};
use crate::journal::replay::number_in_name;
use crate::journal::{self, Found, JournalError};
use crate::peer::keeping::Refusal;
use crate::peer::wire::Begin;
use crate::units::{ChangeNo, Epoch};

const NOTE: Note = Note("standby");
const PLACES: [&str; 2] = ["copy-0", "copy-1"];

/// A copy begins only if there is room for so many bytes.
pub const LEAST_BYTES: u64 = 1 << 20;

/// What a server keeps of another one's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// No copy of an epoch up to this one begins here any more.
    #[serde(default)]
    pub sealed: u64,
    /// The copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,
    /// Whether it was taken: its files are in the journal's place, or on their way.
    #[serde(default)]
    pub taken: bool,
}

/// A copy of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Its directory.
    pub place: String,
    /// Its id.
    pub id: Uuid,
    /// How the fence of its epoch names the journal that it is a copy of.
    pub name: Uuid,
    /// The epoch.
    pub epoch: u64,
    /// The first epoch of which every acknowledged change was there when it began.
    pub since: u64,
    /// In which life of this host it began: what is not synced is there as long as it stays the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
}

/// What there is; nothing if there never was a copy. A note that went bad is an error.
pub async fn standing(disk: &dyn Disk) -> io::Result<Standing> {
    Ok(NOTE.read(disk).await?.unwrap_or_default())
}

/// A copy, and what could be read of it.
#[derive(Debug)]
pub struct FoundCopy {
    /// What is noted of it.
    pub copy: Copy,
    /// Its journal, or why there is none.
    pub found: Result<Option<Found>, JournalError>,
    /// Whether its files are in the journal's place already.
    pub in_place: bool,
}

/// The copy of the journal that a fence names `name`, if there is one. [`finish`] has been called.
pub async fn find(disk: &Arc<dyn Disk>, sealer: &Sealer, name: Uuid) -> io::Result<Option<FoundCopy>> {
    let Standing { copy, taken, .. } = standing(&**disk).await?;
    let Some(copy) = copy.filter(|copy| copy.name == name) else { return Ok(None) };
    let place: Arc<dyn Disk> = match taken {
        true => Arc::clone(disk),
        false => Below::of(disk, &copy.place),
    };
    let found = journal::find(&place, sealer).await;
    Ok(Some(FoundCopy { copy, found, in_place: taken }))
}

/// Brings a takeover to its end that broke off while files moved. To be called before the journal is looked at.
pub async fn finish(disk: &Arc<dyn Disk>) -> io::Result<()> {
    match standing(&**disk).await? {
        Standing { copy: Some(copy), taken: true, .. } => bring(disk, &copy.place).await,
        _ => Ok(()),
    }
}

/// Takes the copy: its files become the journal of this server. There is no other journal in that place.
pub async fn take(disk: &Arc<dyn Disk>, copy: &Copy) -> io::Result<()> {
    let before = standing(&**disk).await?;
    let sealed = before.sealed.max(copy.epoch);
    NOTE.write(&**disk, &Standing { sealed, copy: Some(copy.clone()), taken: true }).await?;
    bring(disk, &copy.place).await
}

/// The files of a copy move to the journal's place, the identity file last: without it no journal passes for whole.
async fn bring(disk: &Arc<dyn Disk>, place: &str) -> io::Result<()> {
    for name in files(disk, place).await?.into_iter().rev() {
        disk.rename(&format!("{place}/{name}"), &name).await?;
    }
    Ok(())
}

/// The volume is this server's, in that epoch. No copy that began before counts any more, here or there. The files of one that was passed over on purpose, `left`, stay until
/// the next copy begins. `keeps` says that this server may keep copies; one that never did needs no note.
pub async fn taken(disk: &Arc<dyn Disk>, epoch: Epoch, left: Option<&Copy>, keeps: bool) -> io::Result<()> {
    let before = NOTE.read::<Standing>(&**disk).await?;
    if before.is_none() && !keeps {
        return Ok(());
    }
    let sealed = before.map_or(0, |before| before.sealed).max(epoch.0);
    NOTE.write(&**disk, &Standing { sealed, copy: None, taken: false }).await?;
    for place in PLACES.into_iter().filter(|place| left.is_none_or(|left| left.place != *place)) {
        clear(disk, place).await?;
    }
    Ok(())
}

/// The files of a copy in order of their numbers: the identity file is the first.
async fn files(disk: &Arc<dyn Disk>, place: &str) -> io::Result<Vec<String>> {
    let mut names = disk.list(place).await?;
    names.retain(|name| number_in_name(name).is_some());
    names.sort();
    Ok(names)
}

async fn clear(disk: &Arc<dyn Disk>, place: &str) -> io::Result<()> {
    for name in files(disk, place).await?.into_iter().rev() {
        disk.remove(&format!("{place}/{name}")).await?;
    }
    Ok(())
}

/// Bytes that the copy of a volume takes.
pub async fn bytes(disk: &Arc<dyn Disk>) -> io::Result<u64> {
    let mut bytes = 0;
    for place in PLACES {
        for name in files(disk, place).await? {
            bytes += disk.open(&format!("{place}/{name}")).await?.len().await?;
        }
    }
    Ok(bytes)
}

/// A copy that is being written. Its own work is files; what may be written is [`super::keeping::Keeping`]'s.
#[derive(Debug)]
pub struct Writing {
    disk: Arc<dyn Disk>,
    place: String,
    id: Uuid,
    volume: Uuid,
    identity: Arc<dyn DiskFile>,
    header: Bytes,
    mark: Mark,
    /// The files with records, oldest first: names, and whether something in them is not synced.
    files: VecDeque<(String, Arc<dyn DiskFile>, bool)>,
}

impl Writing {
    /// Begins a copy in place of the one that is there, of which the store has everything. When this returns it is durable.
    pub async fn begin(disk: &Arc<dyn Disk>, begin: &Begin) -> Result<Writing, Refusal> {
        let (header, mark) = check_identity(begin)?;
        let begun = async {
            let before = standing(&**disk).await?;
            if before.taken {
                // A takeover that was given up: somebody opened the volume since, whose epoch this is. Nothing is removed.
                set_aside(disk).await?;
            }
            let used = before.copy.as_ref().filter(|_| !before.taken).map(|copy| copy.place.as_str());
            let place = PLACES.into_iter().find(|place| Some(*place) != used).unwrap_or(PLACES[0]);
            clear(disk, place).await?;
            let identity = disk.create(&format!("{place}/{}", begin.identity_name)).await?;
            identity.write_at(0, vec![begin.identity.clone()]).await?;
            identity.sync().await?;
            let copy = Copy {
                place: place.to_owned(),
                id: begin.id,
                name: begin.name,
                epoch: begin.epoch.0,
                since: begin.since.0,
                life: disk.host_life(),
            };
            NOTE.write(&**disk, &Standing { sealed: before.sealed, copy: Some(copy), taken: false }).await?;
            if let Some(used) = used {
                clear(disk, used).await?;
            }
            io::Result::Ok((place.to_owned(), identity))
        };
        let (place, identity) = begun.await.map_err(|error| failed(disk, &error))?;
        let (disk, files) = (Arc::clone(disk), VecDeque::new());
        Ok(Writing { disk, place, id: begin.id, volume: begin.volume, identity, header, mark, files })
    }

    /// Begins a file.
    pub async fn new_file(&mut self, name: &str, header: Bytes) -> Result<(), Refusal> {
        let number = number_in_name(name).filter(|number| *number > 0).ok_or_else(|| no_journal("its name"))?;
        let said = decode(name, &header)?;
        if header.len() as u64 != FIRST_RECORD
            || (said.id, said.volume, said.number) != (self.id, self.volume, number)
            || self.files.back().is_some_and(|(last, ..)| last.as_str() >= name)
        {
            return Err(no_journal("its header"));
        }
        let made = async {
            let file = self.disk.create(&format!("{}/{name}", self.place)).await?;
            file.write_durably_at(0, vec![header]).await?;
            io::Result::Ok(file)
        };
        let file = made.await.map_err(|error| failed(&self.disk, &error))?;
        self.files.push_back((name.to_owned(), file, false));
        Ok(())
    }

    /// Writes to the file that was begun last.
    pub async fn write(&mut self, at: u64, bytes: Bytes) -> Result<(), Refusal> {
        let (_, file, dirty) = self.files.back_mut().ok_or(Refusal::Gap)?;
        *dirty = true;
        file.write_at(at, vec![bytes]).await.map_err(|error| failed(&self.disk, &error))
    }

    /// What is to be synced so that all that was written is on the disk.
    pub fn dirty(&mut self) -> Vec<Arc<dyn DiskFile>> {
        let dirty = self.files.iter_mut().filter(|(.., dirty)| *dirty);
        dirty
            .map(|(_, file, dirty)| {
                *dirty = false;
                Arc::clone(file)
            })
            .collect()
    }

    /// Says in the identity file that the peer's word was given for all up to `no`: should it be missed one day, that is known. As in a journal, it is not synced.
    pub async fn mark(&mut self, no: ChangeNo) -> Result<(), Refusal> {
        if no <= self.mark.synced {
            return Ok(());
        }
        self.mark = self.mark.next(no);
        let written = self.identity.write_at(self.mark.place(), vec![self.mark.encode(&self.header)]).await;
        written.map_err(|error| failed(&self.disk, &error))
    }

    /// Removes the oldest file.
    pub async fn give_up_oldest(&mut self) -> Result<(), Refusal> {
        let Some((name, ..)) = self.files.pop_front() else { return Ok(()) };
        let removed = self.disk.remove(&format!("{}/{name}", self.place)).await;
        removed.map_err(|error| failed(&self.disk, &error))
    }

    /// The volume was closed: nothing of the copy is needed.
    pub async fn end(self) -> Result<(), Refusal> {
        let ended = async {
            let before = standing(&*self.disk).await?;
            NOTE.write(&*self.disk, &Standing { copy: None, ..before }).await?;
            clear(&self.disk, &self.place).await
        };
        ended.await.map_err(|error| failed(&self.disk, &error))
    }
}

/// The files of a journal that nobody goes on with, out of the way.
async fn set_aside(disk: &Arc<dyn Disk>) -> io::Result<()> {
    let there = disk.list("").await?.iter().any(|name| number_in_name(name).is_some());
    if there {
        let kept = journal::set_aside(disk).await.map_err(io::Error::other)?;
        tracing::warn!("the files of a takeover that was given up are kept in {kept}");
    }
    Ok(())
}

fn failed(disk: &Arc<dyn Disk>, error: &io::Error) -> Refusal {
    Refusal::Disk(format!("the copy in {} cannot be written: {error}", disk.path()))
}

fn no_journal(what: &str) -> Refusal {
    Refusal::NoJournal(what.to_owned())
}

fn decode(name: &str, bytes: &[u8]) -> Result<FileHeader, Refusal> {
    FileHeader::decode(name, bytes).map_err(|fault: HeaderFault| Refusal::NoJournal(fault.to_string()))
}

/// The used part of the header of an identity file, and the mark in it.
fn check_identity(begin: &Begin) -> Result<(Bytes, Mark), Refusal> {
    let header = decode(&begin.identity_name, &begin.identity)?;
    let used = header.used(&begin.identity_name);
    let mark = Mark::newest(&begin.identity, &used);
    let is_so = (header.id, header.volume, header.number) == (begin.id, begin.volume, 0)
        && number_in_name(&begin.identity_name) == Some(0)
        && mark.names == [begin.name]
        && mark.synced.next() == begin.first;
    if is_so { Ok((used, mark)) } else { Err(no_journal("its identity file")) }
}

/// A directory below another one, as a disk.
#[derive(Debug)]
struct Below {
    disk: Arc<dyn Disk>,
    dir: String,
}

impl Below {
    fn of(disk: &Arc<dyn Disk>, dir: &str) -> Arc<dyn Disk> {
        Arc::new(Below { disk: Arc::clone(disk), dir: dir.to_owned() })
    }

    fn at(&self, name: &str) -> String {
        if name.is_empty() { self.dir.clone() } else { format!("{}/{name}", self.dir) }
    }
}

#[async_trait]
impl Disk for Below {
    fn path(&self) -> String {
        format!("{}/{}", self.disk.path(), self.dir)
    }

    fn host_life(&self) -> Option<String> {
        self.disk.host_life()
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(&self.at(dir)).await
    }

    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.create(&self.at(name)).await
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(&self.at(name)).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(&self.at(name)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.at(from), &self.at(to)).await
    }
}
