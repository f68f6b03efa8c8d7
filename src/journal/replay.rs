//! What the files of a journal directory mean together. Pure: the files' bytes in, the changes out.
//!
//! The identity file (number 0) says whose journal this is. The others, in order of their numbers, form a chain of
//! records with consecutive change numbers. Reading goes on to the first place where the chain breaks:
//!
//! | case | found | meaning | done |
//! | --- | --- | --- | --- |
//! | A | the file ends after a whole record | it was left in good order, or what followed was never handed to the disk | go on with the next file |
//! | B | something that is no record (torn, cut, stale) | the host died while it was written, or the disk damaged it | the file ends here; go on with the next file |
//! | C | the next file begins with the change after the last one read | rotation, or a server that went on after case B | its records follow |
//! | D | the next file begins earlier | a server that went on when less of the file before could be read | the newer file counts from its first change on |
//! | E | the next file begins later | changes between are lost | stop: what follows is void |
//! | F | a file whose header does not verify | begun and never synced, or given up as a spare | it is void |
//!
//! So the result is a run of consecutive changes, and all that was synced is in it unless the disk itself lost it.

use bytes::Bytes;
use uuid::Uuid;

use crate::change::Numbered;
use crate::journal::JournalError;
use crate::journal::record::{self, FIRST_RECORD, FileHeader, HeaderFault, RecordFault};
use crate::units::{ChangeNo, Epoch};

/// A file as read from the directory.
#[derive(Clone, Debug)]
pub struct FileBytes {
    /// Its name.
    pub name: String,
    /// All of it.
    pub bytes: Bytes,
}

/// What the files say together.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The header of the identity file.
    pub identity: FileHeader,
    /// The epoch of the last record; 0 without one.
    pub epoch: Epoch,
    /// Consecutive changes.
    pub changes: Vec<Numbered>,
    /// The files that they come from, in order.
    pub chain: Vec<ChainFile>,
    /// Names of the files that count no more: to be removed before anything is appended.
    pub void: Vec<String>,
    /// The greatest number seen in a header or a name.
    pub greatest: u64,
    /// A sync had failed while files of the chain were in use: what was read may not be on the disk.
    pub doubtful: bool,
    /// Where and why the chain broke (cases B, E), for people.
    pub note: Option<String>,
}

/// One file of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFile {
    /// Its name.
    pub name: String,
    /// The number of its last good record, or the one before its first change.
    pub last: ChangeNo,
    /// Where its last good record ends.
    pub end: u64,
}

/// The name of a file that is created with this number. A recycled file keeps its name; its header has the say.
pub fn file_name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

/// The number in a name made by [`file_name`].
pub fn number_in_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

const SUFFIX: &str = ".journal";

/// Puts the files of directory `dir` together. `None` if there is no journal.
pub fn replay(dir: &str, volume: Uuid, files: &[FileBytes]) -> Result<Option<Replay>, JournalError> {
    let mut named = Vec::new();
    let mut void = Vec::new();
    for file in files {
        match FileHeader::decode(&file.bytes) {
            Ok(header) => named.push((header, file)),
            Err(HeaderFault::Broken) => void.push(file.name.clone()),
            Err(HeaderFault::Unknown { what, value }) => {
                let what = format!("journal file {dir}/{} has {what} {value}", file.name);
                return Err(JournalError::Unknown { what });
            }
        }
    }
    named.sort_by_key(|(header, _)| header.number);
    check_identity(dir, volume, &named)?;
    let Some(((identity, identity_file), rest)) = named.split_first() else {
        return no_header(dir, &void);
    };
    if identity.number != 0 {
        let what = format!("the identity file of the journal in {dir} is missing or does not verify");
        return Err(JournalError::Damaged { what });
    }
    let mut chain = Chain::default();
    for (header, file) in rest {
        chain.add(dir, header, file);
    }
    void.extend(chain.void);
    let in_names = files.iter().filter_map(|file| number_in_name(&file.name));
    let greatest = named.iter().map(|(header, _)| header.number).chain(in_names).max().unwrap_or_default();
    let doubt = record::decode_doubt(&identity.key(), &identity_file.bytes);
    Ok(Some(Replay {
        identity: identity.clone(),
        epoch: chain.epoch,
        changes: chain.changes,
        doubtful: chain.numbers.iter().any(|number| doubt.is_some_and(|doubt| *number <= doubt)),
        chain: chain.files,
        void,
        greatest,
        note: chain.note,
    }))
}

/// All files belong to one journal, of this volume, and no two are the same.
fn check_identity(dir: &str, volume: Uuid, named: &[(FileHeader, &FileBytes)]) -> Result<(), JournalError> {
    for (header, _) in named {
        if header.volume != volume {
            return Err(JournalError::Foreign { dir: dir.to_owned(), theirs: header.volume, ours: volume });
        }
    }
    for pair in named.windows(2) {
        let [(a, file_a), (b, file_b)] = pair else { continue };
        if a.id != b.id || a.number == b.number || a.block_size != b.block_size {
            let what = format!("{} and {} in {dir} are of two different journals", file_a.name, file_b.name);
            return Err(JournalError::Damaged { what });
        }
    }
    Ok(())
}

/// Without any header: a creation that was cut short leaves the identity file alone; more is damage.
fn no_header(dir: &str, void: &[String]) -> Result<Option<Replay>, JournalError> {
    if void.iter().all(|name| *name == file_name(0)) {
        return Ok(None);
    }
    let what = format!("no file of the journal in {dir} has a header that verifies");
    Err(JournalError::Damaged { what })
}

#[derive(Default)]
struct Chain {
    epoch: Epoch,
    changes: Vec<Numbered>,
    epochs: Vec<Epoch>,
    files: Vec<ChainFile>,
    numbers: Vec<u64>,
    void: Vec<String>,
    note: Option<String>,
    broken: bool,
}

impl Chain {
    fn add(&mut self, dir: &str, header: &FileHeader, file: &FileBytes) {
        let expected = self.files.last().map_or(header.first, |file| file.last.next());
        if self.broken || header.first > expected {
            if !self.broken {
                let lost = ChangeNo(header.first.0 - 1);
                self.say(format!("changes {expected} to {lost} are missing before {dir}/{}", file.name));
            }
            self.broken = true;
            self.void.push(file.name.clone());
            return;
        }
        self.forget_from(header.first);
        let (end, fault) = self.read(header, file);
        if fault != RecordFault::End {
            self.say(format!("{dir}/{} ends at byte {end} of {}: {fault}", file.name, file.bytes.len()));
        }
        let last = self.changes.last().map_or(ChangeNo(header.first.0.saturating_sub(1)), |change| change.no);
        self.files.push(ChainFile { name: file.name.clone(), last, end });
        self.numbers.push(header.number);
    }

    /// Case D: a newer file begins at `first`.
    fn forget_from(&mut self, first: ChangeNo) {
        let keep = self.changes.partition_point(|change| change.no < first);
        self.changes.truncate(keep);
        self.epochs.truncate(keep);
        self.epoch = self.epochs.last().copied().unwrap_or_default();
        for file in &mut self.files {
            file.last = file.last.min(ChangeNo(first.0.saturating_sub(1)));
        }
    }

    /// Takes the records of one file, up to the first that is none or does not follow.
    fn read(&mut self, header: &FileHeader, file: &FileBytes) -> (u64, RecordFault) {
        let key = header.key();
        let mut expected = header.first;
        let mut offset = FIRST_RECORD;
        loop {
            let (record, next) = match record::decode(&key, header.block_size, &file.bytes, offset) {
                Ok(read) => read,
                Err(fault) => return (offset, fault),
            };
            if record.numbered.no != expected || record.epoch < self.epoch {
                return (offset, RecordFault::Broken);
            }
            self.epoch = record.epoch;
            self.epochs.push(record.epoch);
            self.changes.push(record.numbered);
            expected = expected.next();
            offset = next;
        }
    }

    fn say(&mut self, note: String) {
        match &mut self.note {
            Some(notes) => *notes = format!("{notes}; {note}"),
            None => self.note = Some(note),
        }
    }
}
