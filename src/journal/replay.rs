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
//! | F | the next file has no record, and a later one has | the records between are lost: files are used in order | stop, as in E |
//! | | the next file has no record, nor has a later one | the spare | it is void |
//! | G | a file whose header does not verify | the server died while it made the file | it is void: a header is durable before the first record |
//!
//! So the result is a run of consecutive changes. All that was synced and not released is in it, and it begins no later
//! than with the first change that was not released, unless the disk itself lost something.
//!
//! Whether it did is told by the *marks* (see [`super::mark`]; records have them too): the greatest one that can be proven anywhere, in
//! front of a break or behind it. A chain that ends before it has lost what was on the disk. A newer file that begins earlier
//! (case D) takes back what files before it say of the changes from there on: that loss was accepted.
//!
//! Without the identity file the others still say whose journal this is and what is in it, but not whether anything is
//! missing at the end: the result is then not *whole*.

use bytes::Bytes;

use crate::change::Numbered;
use crate::codec::seal::Sealer;
use crate::journal::JournalError;
use crate::journal::mark::Mark;
use crate::journal::record::{self, FIRST_RECORD, FileHeader, FileKey, HeaderFault, Record, RecordFault};
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
    /// The header of the identity file, or what it must have said.
    pub identity: FileHeader,
    /// Its name; none if it is missing.
    pub identity_name: Option<String>,
    /// The newest mark in it.
    pub mark: Mark,
    /// Every change up to this one was on the disk once.
    pub synced: ChangeNo,
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
    /// It, to the end of its last good record.
    pub good: Bytes,
    /// Bytes behind that.
    pub rest: u64,
}

/// The name of a file that is created as number `number`. The random half keeps it from ever being used again, which
/// the header relies on. A recycled file keeps its name; its header says which number it is now.
pub fn file_name(number: u64, random: u32) -> String {
    format!("{number:016x}-{random:08x}{SUFFIX}")
}

/// The number in a name made by [`file_name`].
pub fn number_in_name(name: &str) -> Option<u64> {
    let (number, random) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let hex = |digits: &str| digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let ours = number.len() == 16 && random.len() == 8 && hex(number) && hex(random);
    ours.then(|| u64::from_str_radix(number, 16).ok()).flatten()
}

const SUFFIX: &str = ".journal";

/// Puts the files of directory `dir` together. `None` if there is no journal.
pub fn replay(dir: &str, sealer: &Sealer, files: &[FileBytes]) -> Result<Option<Replay>, JournalError> {
    let mut named = Vec::new();
    let mut void = Vec::new();
    for file in files {
        match FileHeader::decode(&file.name, &file.bytes) {
            Ok(header) => named.push((header, file)),
            Err(HeaderFault::Broken) => void.push(file.name.clone()),
            Err(HeaderFault::Unknown { what, value }) => {
                let what = format!("journal file {dir}/{} has {what} {value}", file.name);
                return Err(JournalError::Unknown { what });
            }
        }
    }
    named.sort_by_key(|(header, _)| header.number);
    check_identity(dir, sealer, &named)?;
    let Some((first, file)) = named.first() else {
        return no_header(dir, &void);
    };
    let mut chain = Chain::default();
    let is_identified = first.number == 0;
    let (identity, identity_name, mark) = match is_identified {
        true => (first.clone(), Some(file.name.clone()), Mark::newest(&file.bytes, &first.used(&file.name))),
        false => {
            chain.say(format!("the identity file of the journal in {dir} is missing or does not verify"));
            (FileHeader { number: 0, version: FileHeader::NEWEST, ..first.clone() }, None, Mark::default())
        }
    };
    for (header, file) in named.iter().skip(usize::from(is_identified)) {
        chain.add(dir, sealer, header, file)?;
    }
    void.extend(chain.void);
    void.extend(chain.empty);
    let in_names = files.iter().filter_map(|file| number_in_name(&file.name));
    let greatest = named.iter().map(|(header, _)| header.number).chain(in_names).max().unwrap_or_default();
    Ok(Some(Replay {
        identity,
        identity_name,
        synced: mark.synced.max(chain.synced),
        mark,
        epoch: chain.epochs.last().copied().unwrap_or_default(),
        changes: chain.changes,
        chain: chain.files,
        void,
        greatest,
        note: chain.note,
    }))
}

/// All files belong to one journal, of this volume, and no two are the same.
fn check_identity(dir: &str, sealer: &Sealer, named: &[(FileHeader, &FileBytes)]) -> Result<(), JournalError> {
    for (header, _) in named {
        if header.volume != sealer.volume() {
            return Err(JournalError::Foreign { dir: dir.to_owned(), theirs: header.volume, ours: sealer.volume() });
        }
        if header.seal != sealer.seal() {
            let (found, expected) = (header.seal, sealer.seal());
            let what = format!("the journal in {dir} is sealed with {found} where {expected} is expected");
            return Err(JournalError::Damaged { what });
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
    if void.iter().all(|name| number_in_name(name) == Some(0)) {
        return Ok(None);
    }
    let what = format!("no file of the journal in {dir} has a header that verifies");
    Err(JournalError::Damaged { what })
}

#[derive(Default)]
struct Chain {
    changes: Vec<Numbered>,
    epochs: Vec<Epoch>,
    files: Vec<ChainFile>,
    void: Vec<String>,
    /// Files without records so far.
    empty: Vec<String>,
    note: Option<String>,
    broken: bool,
    /// The greatest mark.
    synced: ChangeNo,
}

impl Chain {
    fn add(&mut self, dir: &str, sealer: &Sealer, header: &FileHeader, file: &FileBytes) -> Result<(), JournalError> {
        let key = header.key(sealer).map_err(|error| JournalError::Damaged {
            what: format!("journal file {dir}/{} cannot be read: {error}", file.name),
        })?;
        let (records, end, fault) = read(&key, header, file);
        let behind = match fault {
            RecordFault::End => ChangeNo(0),
            _ => record::mark_behind(&key, header.block_size, &file.bytes, end as u64),
        };
        let mark = records.iter().map(|record| record.synced).max().unwrap_or_default().max(behind);
        let Some((first, epoch)) = records.first().map(|record| (record.numbered.no, record.epoch)) else {
            self.synced = self.synced.max(mark);
            self.empty.push(file.name.clone());
            return Ok(());
        };
        if !self.broken {
            self.look_for_a_hole(dir, first, epoch, &file.name);
        }
        if self.broken {
            self.synced = self.synced.max(mark);
            self.void.push(file.name.clone());
            return Ok(());
        }
        if fault != RecordFault::End {
            self.say(format!("{dir}/{} ends at byte {end} of {}: {fault}", file.name, file.bytes.len()));
        }
        self.forget_from(first);
        self.synced = self.synced.max(mark);
        let mut last = first;
        for record in records {
            last = record.numbered.no;
            self.epochs.push(record.epoch);
            self.changes.push(record.numbered);
        }
        let good = file.bytes.slice(..end);
        self.files.push(ChainFile { name: file.name.clone(), last, good, rest: (file.bytes.len() - end) as u64 });
        Ok(())
    }

    /// Cases E and F; and epochs never go back.
    fn look_for_a_hole(&mut self, dir: &str, first: ChangeNo, epoch: Epoch, name: &str) {
        let expected = self.changes.last().map(|change| change.no.next());
        if let Some(empty) = self.empty.first() {
            self.say(format!("the records of {dir}/{empty} are lost"));
            self.broken = true;
        } else if let Some(expected) = expected.filter(|expected| first > *expected) {
            self.say(format!("changes {expected} to {} are missing before {dir}/{name}", before(first)));
            self.broken = true;
        } else if self.epochs.last().is_some_and(|last| *last > epoch) {
            self.say(format!("{dir}/{name} is of epoch {epoch}, before that of the file before it"));
            self.broken = true;
        }
    }

    /// Case D: a newer file begins at `first`.
    fn forget_from(&mut self, first: ChangeNo) {
        let keep = self.changes.partition_point(|change| change.no < first);
        self.changes.truncate(keep);
        self.epochs.truncate(keep);
        self.synced = self.synced.min(before(first));
        for file in &mut self.files {
            file.last = file.last.min(before(first));
        }
    }

    fn say(&mut self, note: String) {
        match &mut self.note {
            Some(notes) => *notes = format!("{notes}; {note}"),
            None => self.note = Some(note),
        }
    }
}

/// The records of a file up to the first that is none or does not follow the one before, where they end, and why.
fn read(key: &FileKey, header: &FileHeader, file: &FileBytes) -> (Vec<Record>, usize, RecordFault) {
    let mut records: Vec<Record> = Vec::new();
    let mut end = (FIRST_RECORD as usize).min(file.bytes.len());
    loop {
        let (record, next) = match record::decode(key, header.block_size, &file.bytes, end as u64) {
            Ok(read) => read,
            Err(fault) => return (records, end, fault),
        };
        let follows = |last: &Record| last.numbered.no.next() == record.numbered.no && last.epoch <= record.epoch;
        if !records.last().is_none_or(follows) {
            return (records, end, RecordFault::Broken);
        }
        records.push(record);
        end = next as usize;
    }
}

fn before(no: ChangeNo) -> ChangeNo {
    ChangeNo(no.0.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::change::Change;
    use crate::codec::seal::Seal;
    use crate::keyring::{Keyring, Locked};
    use crate::units::{BlockSize, Extent};

    const VOLUME: Uuid = Uuid::from_u128(5);

    fn header(number: u64) -> FileHeader {
        FileHeader {
            id: Uuid::from_u128(1),
            volume: VOLUME,
            number,
            block_size: BlockSize::new(512).unwrap(),
            seal: Seal::Blake3,
            salt: [number as u8; 16],
            version: FileHeader::NEWEST,
        }
    }

    fn sealer() -> Sealer {
        Sealer::new(VOLUME, None)
    }

    fn trim(no: u64) -> Numbered {
        Numbered { no: ChangeNo(no), change: Change::Hole(Extent::new(no, 1)) }
    }

    /// A file that holds changes of an epoch.
    fn file(number: u64, nos: impl IntoIterator<Item = u64>, epoch: u64) -> FileBytes {
        marked(number, nos, epoch, 0)
    }

    /// The same, with a mark in each record.
    fn marked(number: u64, nos: impl IntoIterator<Item = u64>, epoch: u64, synced: u64) -> FileBytes {
        let (name, header) = (file_name(number, 7), header(number));
        let mut bytes = BytesMut::from(&header.encode(&name)[..]);
        for no in nos {
            let mut head = [0; record::HEAD_BYTES];
            let key = header.key(&sealer()).unwrap();
            record::encode(&key, bytes.len() as u64, ChangeNo(synced), Epoch(epoch), trim(no), &mut head).unwrap();
            bytes.extend_from_slice(&head);
        }
        FileBytes { name, bytes: bytes.freeze() }
    }

    fn identity() -> FileBytes {
        file(0, [], 0)
    }

    /// The numbers of the changes, the epoch, how many files are void, the note.
    fn read(files: &[FileBytes]) -> (Vec<u64>, u64, usize, Option<String>) {
        let replay = replay("/j", &sealer(), files).unwrap().unwrap();
        let nos = replay.changes.iter().map(|change| change.no.0).collect();
        (nos, replay.epoch.0, replay.void.len(), replay.note)
    }

    fn cut(mut file: FileBytes, bytes: usize) -> FileBytes {
        file.bytes.truncate(file.bytes.len() - bytes);
        file
    }

    #[test]
    fn a_plain_journal_is_none_of_an_encrypted_volume() {
        let keyring = Keyring::new((1, Locked::take(&mut [3; 32])), [], None);
        let error = replay("/j", &Sealer::new(VOLUME, Some(keyring)), &[identity()]).unwrap_err().to_string();
        assert!(
            error.starts_with("the journal in /j is sealed with BLAKE3 where ChaCha20-Poly1305 is expected"),
            "{error}"
        );
    }

    #[test]
    fn cases_a_and_c_whole_files_follow_each_other_in_order_of_their_numbers() {
        let files = [file(3, 6..8, 3), identity(), file(1, 1..4, 2), file(2, 4..6, 2)];
        assert_eq!(read(&files), (vec![1, 2, 3, 4, 5, 6, 7], 3, 0, None));
    }

    #[test]
    fn case_b_a_torn_record_ends_its_file_and_the_next_may_go_on_from_there() {
        let torn = || cut(file(1, 1..4, 2), 1);
        let note = "/j/0000000000000001-00000007.journal ends at byte 4224 of 4287: the record is cut off";
        assert_eq!(read(&[identity(), torn()]), (vec![1, 2], 2, 0, Some(note.to_owned())));
        assert_eq!(read(&[identity(), torn(), file(2, 3..5, 4)]).0, [1, 2, 3, 4]);
    }

    #[test]
    fn a_record_out_of_order_ends_its_file() {
        assert_eq!(read(&[identity(), file(1, [1, 2, 4, 5], 2)]).0, [1, 2]);
        assert_eq!(read(&[identity(), file(1, [1, 1], 2)]).0, [1]);
        assert_eq!(read(&[identity(), file(1, 1..3, 2), file(2, 3..5, 1)]).0, [1, 2], "an epoch went back");
    }

    #[test]
    fn case_d_a_newer_file_that_begins_earlier_counts_from_there() {
        let files = [identity(), file(1, 1..6, 2), file(2, 6..8, 2), file(3, 4..6, 5)];
        assert_eq!(read(&files), (vec![1, 2, 3, 4, 5], 5, 0, None));
    }

    #[test]
    fn case_e_a_hole_ends_the_chain() {
        let files = [identity(), file(1, 1..3, 2), file(2, 4..6, 2), file(3, 3..9, 2)];
        let note = "changes 3 to 3 are missing before /j/0000000000000002-00000007.journal";
        assert_eq!(read(&files), (vec![1, 2], 2, 2, Some(note.to_owned())));
    }

    #[test]
    fn case_f_an_empty_file_is_the_spare_or_a_hole() {
        let files = [identity(), file(1, 1..3, 2), file(3, [], 2)];
        assert_eq!(read(&files), (vec![1, 2], 2, 1, None));
        let note = "the records of /j/0000000000000002-00000007.journal are lost";
        let files = [identity(), file(1, 1..3, 2), file(2, [], 2), file(3, 3..5, 2)];
        assert_eq!(read(&files), (vec![1, 2], 2, 2, Some(note.to_owned())));
        let files = [identity(), file(2, [], 2), file(3, 3..5, 2), file(4, 5..7, 2)];
        assert_eq!(read(&files), (vec![], 0, 3, Some(note.to_owned())));
    }

    #[test]
    fn case_g_a_file_without_a_header_is_void() {
        let mut blank = file(2, 3..5, 2);
        blank.bytes = [&[0; 4096][..], &blank.bytes[4096..]].concat().into();
        let empty = FileBytes { name: file_name(4, 7), bytes: Bytes::new() };
        let files = [identity(), file(1, 1..3, 2), blank, file(3, 3..5, 2), empty];
        assert_eq!(read(&files), (vec![1, 2, 3, 4], 2, 2, None));
    }

    #[test]
    fn nothing_and_a_creation_cut_short_are_no_journal() {
        assert!(replay("/j", &sealer(), &[]).unwrap().is_none());
        assert!(replay("/j", &sealer(), &[cut(identity(), 4090)]).unwrap().is_none());
        assert_eq!(read(&[identity()]), (vec![], 0, 0, None));
    }

    #[test]
    fn what_cannot_come_from_a_crash_is_an_error_that_says_so() {
        let mut stranger = header(2);
        stranger.id = Uuid::from_u128(2);
        let name = file_name(2, 7);
        let stranger = FileBytes { bytes: stranger.encode(&name), name };
        let mut newer = BytesMut::from(&identity().bytes[..]);
        newer[8] = 9;
        let newer = FileBytes { name: identity().name, bytes: newer.freeze() };
        let tail = "restore the directory, or open with --drop-journal to set its files aside and go on without the changes \
                    that only they hold; it was not touched";
        let cases = [
            (vec![cut(identity(), 4090), cut(file(1, [], 2), 4090)], format!("no file of the journal in /j has a header that verifies: {tail}")),
            (
                vec![identity(), file(1, 1..3, 2), stranger],
                format!("0000000000000001-00000007.journal and 0000000000000002-00000007.journal in /j are of two different journals: {tail}"),
            ),
            (
                vec![newer],
                "journal file /j/0000000000000000-00000007.journal has format version 9, which this version of ashlar does not know: \
                 open the volume with the version that wrote it; it was not touched".to_owned(),
            ),
        ];
        for (files, expected) in cases {
            assert_eq!(replay("/j", &sealer(), &files).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_journal_without_its_identity_is_read_and_not_whole() {
        let replay = replay("/j", &sealer(), &[cut(identity(), 4090), file(1, 1..3, 2)]).unwrap().unwrap();
        assert_eq!((replay.changes.len(), replay.identity_name, replay.identity.id), (2, None, header(0).id));
        assert_eq!(replay.note.unwrap(), "the identity file of the journal in /j is missing or does not verify");
    }

    #[test]
    fn the_greatest_mark_is_found_before_and_behind_a_break() {
        let synced = |files: &[FileBytes]| replay("/j", &sealer(), files).unwrap().unwrap().synced.0;
        let damaged = |mut file: FileBytes, record: usize| {
            let mut bytes = BytesMut::from(&file.bytes[..]);
            bytes[4096 + 64 * record + 20] ^= 1;
            file.bytes = bytes.freeze();
            file
        };
        assert_eq!(synced(&[identity(), file(1, 1..9, 2)]), 0, "nothing is said");
        assert_eq!(synced(&[identity(), marked(1, 3..9, 2, 2)]), 2);
        assert_eq!(synced(&[identity(), damaged(marked(1, 3..9, 2, 2), 0)]), 2, "a record behind it says so");
        let whole = || [marked(1, 1..4, 2, 0), marked(2, 4..6, 2, 3), marked(3, 6..8, 2, 5)];
        let [one, two, three] = whole();
        assert_eq!(synced(&[identity(), one, two.clone(), three]), 5);
        let [one, _, three] = whole();
        assert_eq!(synced(&[identity(), one.clone(), three]), 5, "case E");
        let accepted = marked(4, 4..5, 3, 0);
        assert_eq!(synced(&[identity(), marked(1, 1..12, 2, 8), accepted]), 3, "case D: the loss was accepted");
        let mut marked_file = BytesMut::from(&identity().bytes[..]);
        let mark = Mark { number: 4, synced: ChangeNo(7), names: vec![] };
        marked_file.extend_from_slice(&mark.encode(&header(0).used(&identity().name)));
        let identity = FileBytes { bytes: marked_file.freeze(), ..identity() };
        assert_eq!(synced(&[identity, one]), 7);
    }

    #[test]
    fn names_are_read_back_and_others_left_alone() {
        assert_eq!(number_in_name(&file_name(u64::MAX, u32::MAX)), Some(u64::MAX));
        let short = "1-2.journal";
        for other in ["lock", short, "", "0000000000000001-00000007.journal~", "000000000000000g-00000007.journal"] {
            assert_eq!(number_in_name(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_files_give_consecutive_changes(
            starts in prop::collection::vec((1..30_u64, 0..8_u64, 0..200_usize), 0..8),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut files = vec![identity()];
            for (number, (first, count, lost)) in (1..).zip(starts) {
                let mut file = file(number, first..first + count, 1);
                file.bytes.truncate(file.bytes.len() - lost.min(file.bytes.len()));
                file.bytes = [&file.bytes[..], &noise].concat().into();
                files.push(file);
            }
            let (nos, ..) = read(&files);
            for pair in nos.windows(2) {
                prop_assert_eq!(pair[0] + 1, pair[1]);
            }
        }
    }
}
