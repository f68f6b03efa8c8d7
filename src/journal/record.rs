//! The bytes of a journal file: a header, then records one after another. Pure: bytes in, bytes out.
//!
//! All integers are little-endian. A file begins with its header, in one sector, so that it is written whole or not at all:
//!
//! | offset | bytes | header |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `ASHLJRNL` |
//! | 8 | 2 | version, 4 |
//! | 10 | 1 | seal: 0 = BLAKE3 tags, 1 = ChaCha20-Poly1305 |
//! | 11 | 1 | 0 |
//! | 12 | 4 | block size of the volume in bytes |
//! | 16 | 16 | journal id |
//! | 32 | 16 | volume uuid |
//! | 48 | 8 | file number; 0 is the identity file, which holds no records |
//! | 56 | 16 | salt, drawn anew for each use of the file; sealed: the first byte is the generation of the data key |
//! | 72 | 16 | tag over bytes 0..72 and the name of the file |
//! | 88 | 4008 | not used, not read |
//!
//! A record is a head of 64 bytes and the data of a write, which is whole blocks:
//!
//! | offset | bytes | record |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic `AJR1` |
//! | 4 | 1 | kind: 1 write, 2 zero, 3 hole |
//! | 5 | 3 | synced: how many changes before this one the last change lies that is known to be on the disk; 0: nothing is said |
//! | 8 | 8 | epoch |
//! | 16 | 8 | change number |
//! | 24 | 8 | first block |
//! | 32 | 8 | blocks |
//! | 40 | 8 | bytes of data that follow: all blocks' for a write, 0 otherwise |
//! | 48 | 16 | tag over the digest of the data (16 bytes), head 0..48 and the record's offset in the file (8 bytes) |
//! | 64 | … | data |
//!
//! The head of a record of an encrypted volume:
//!
//! | offset | bytes | sealed record |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic `AJR1` |
//! | 4 | 1 | kind |
//! | 5 | 3 | synced: how many changes before this one the last change lies that is known to be on the disk; 0: nothing is said |
//! | 8 | 8 | bytes of data that follow |
//! | 16 | 16 | tag |
//! | 32 | 32 | sealed: epoch, change number, first block, blocks |
//! | 64 | … | sealed: data |
//!
//! The bytes from 32 on are one ChaCha20-Poly1305 text under the nonce of the record's offset in the file, bound to the
//! bytes before the tag. Nothing is ever appended to a file of an earlier server, so no offset is sealed twice under one salt.
//!
//! The tag of a plain record is BLAKE3, cut to 16 bytes, under a key derived from journal id, volume, file number and salt; the digest of the data is XXH3 of 128 bits
//! under a secret made of that key (`docs/decisions/0005-digests-of-the-journal.md`). So a record
//! proves itself only in the file, at the place and in the use of that file for which it was written: what an earlier
//! use of a recycled file, another journal or a stale disk block left there never passes. The header is bound to the
//! file's name, half of which is drawn at random, for the same reason: blocks of a removed file may come to light in a
//! new one after a crash, and must not pass for it.
//!
//! The number in `synced` is the *mark*: whoever finds the record knows that what is up to there was once promised to be on the
//! disk, so that its absence is a loss and no torn tail. In versions 1 and 2 these bytes are 0. Marks also stand in the
//! identity file: see [`super::mark`].
//!
//! Zero bytes where a head would be are an end: a file that was used before carries 64 of them behind its last record.

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use twox_hash::xxhash3_128;
use uuid::Uuid;

use crate::change::{Change, Numbered};
use crate::codec::seal::{ObjectKey, Salt, Seal, Sealer};
use crate::codec::{CorruptError, EncodeError};
use crate::units::{BlockSize, ChangeNo, Epoch, Extent, ORDINAL_MAX};

/// Where the first record of a file lies; the room before it is the header's.
pub const FIRST_RECORD: u64 = 4096;

/// Bytes of a record before its data.
pub const HEAD_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"ASHLJRNL";
/// What is written. Version 3 is read too: its tags cover the data itself. So is version 2: its records have no mark. So is version 1: its tags cover
/// a record's offset and head before its data.
const VERSION: u16 = 4;
const MARKED_SINCE: u16 = 3;
/// A mark that lies further back is not written.
const MARK_MAX: u64 = (1 << 24) - 1;
const HEADER_USED: usize = 88;
const HEADER_TAGGED: usize = 72;
const RECORD_MAGIC: &[u8; 4] = b"AJR1";
const HEAD_TAGGED: usize = 48;

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The journal, drawn at its creation.
    pub id: Uuid,
    /// The volume whose changes it holds.
    pub volume: Uuid,
    /// Grows with every file begun; 0 is the identity file.
    pub number: u64,
    /// The volume's block size: the unit of the extents.
    pub block_size: BlockSize,
    /// How its records are sealed.
    pub seal: Seal,
    /// Makes the keys of this use of the file its own.
    pub salt: Salt,
    /// The version of the format: what is written is [`FileHeader::NEWEST`].
    pub version: u16,
}

/// Why a header was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderFault {
    /// Cut, blank, torn or damaged: the file holds nothing that could be proven.
    #[error("its header does not verify")]
    Broken,
    /// Whole, but of a format that this program does not know.
    #[error(
        "it has {what} {value}, which this version of ashlar does not know; open it with the version that wrote it"
    )]
    Unknown {
        /// `format version` or `seal`.
        what: &'static str,
        /// The value found.
        value: u16,
    },
}

impl FileHeader {
    /// The version that files are begun with.
    pub const NEWEST: u16 = VERSION;

    /// The header of a file that is begun now; `random` makes its salt.
    pub fn new(sealer: &Sealer, id: Uuid, block_size: BlockSize, number: u64, random: [u8; 16]) -> FileHeader {
        let (volume, seal, salt) = (sealer.volume(), sealer.seal(), sealer.salt(random));
        FileHeader { id, volume, number, block_size, seal, salt, version: VERSION }
    }

    /// The header's room, [`FIRST_RECORD`] bytes, in the file of that name.
    pub fn encode(&self, name: &str) -> Bytes {
        let mut out = BytesMut::zeroed(FIRST_RECORD as usize);
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&self.version.to_le_bytes());
        out[10] = self.seal as u8;
        out[12..16].copy_from_slice(&self.block_size.bytes().to_le_bytes());
        out[16..32].copy_from_slice(self.id.as_bytes());
        out[32..48].copy_from_slice(self.volume.as_bytes());
        out[48..56].copy_from_slice(&self.number.to_le_bytes());
        out[56..72].copy_from_slice(&self.salt);
        let tag = header_tag(&out[..HEADER_TAGGED], name);
        out[72..88].copy_from_slice(&tag);
        out.freeze()
    }

    /// The part of the header in which something stands.
    pub fn used(&self, name: &str) -> Bytes {
        self.encode(name).slice(..HEADER_USED)
    }

    /// Reads the header at the beginning of `file`, which has that name.
    pub fn decode(name: &str, file: &[u8]) -> Result<FileHeader, HeaderFault> {
        let head = file.get(..HEADER_USED).ok_or(HeaderFault::Broken)?;
        // Version and seal come before the tag: another version may well compute its tag differently. There is no
        // version 0: a write was cut short behind the magic.
        let version = u16::from_le_bytes(array(&head[8..10]));
        if &head[0..8] != MAGIC || version == 0 {
            return Err(HeaderFault::Broken);
        }
        if version > VERSION {
            return Err(HeaderFault::Unknown { what: "format version", value: version });
        }
        let seal =
            Seal::from_byte(head[10]).map_err(|_| HeaderFault::Unknown { what: "seal", value: u16::from(head[10]) })?;
        if header_tag(&head[..HEADER_TAGGED], name) != head[72..88] || head[11] != 0 {
            return Err(HeaderFault::Broken);
        }
        let block_size = u32::from_le_bytes(array(&head[12..16]));
        Ok(FileHeader {
            id: Uuid::from_bytes(array(&head[16..32])),
            volume: Uuid::from_bytes(array(&head[32..48])),
            number: u64_at(head, 48),
            block_size: BlockSize::new(u64::from(block_size)).map_err(|_| HeaderFault::Broken)?,
            seal,
            salt: array(&head[56..72]),
            version,
        })
    }

    /// The key under which the file's records are sealed.
    pub fn key(&self, sealer: &Sealer) -> Result<FileKey, CorruptError> {
        let mut material = [0; 56];
        material[0..16].copy_from_slice(self.id.as_bytes());
        material[16..32].copy_from_slice(self.volume.as_bytes());
        material[32..40].copy_from_slice(&self.number.to_le_bytes());
        material[40..56].copy_from_slice(&self.salt);
        let key = sealer.key(SEALED_RECORDS, PLAIN_RECORDS, &self.salt, &material)?;
        let mut digests = [0; SECRET_BYTES];
        if let ObjectKey::Blake3(key) = &key {
            blake3::Hasher::new_derive_key(DIGESTS).update(key).finalize_xof().fill(&mut digests);
        }
        Ok(FileKey { key, digests, version: self.version })
    }
}

const PLAIN_RECORDS: &str = "ashlar 2026 journal records";
const SEALED_RECORDS: &str = "ashlar 2026 encrypted journal records";

const DIGESTS: &str = "ashlar 2026 digests of journal records";

/// The secret of XXH3, as long as the one that it has otherwise. It takes none that is shorter than 136.
const SECRET_BYTES: usize = 192;
const _: () = assert!(SECRET_BYTES >= 136);

/// The key of one use of one file.
#[derive(Clone)]
pub struct FileKey {
    key: ObjectKey,
    /// The secret of the digests, if the records are plain.
    digests: [u8; SECRET_BYTES],
    version: u16,
}

/// One record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Every change up to this one was on the disk when the record was written; 0: nothing is said.
    pub synced: ChangeNo,
    /// The epoch in which the change was accepted.
    pub epoch: Epoch,
    /// The change.
    pub numbered: Numbered,
}

/// Why no record was read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordFault {
    /// The file ends here as it should.
    #[error("the file ends")]
    End,
    /// There are bytes, but not a record that proves itself.
    #[error("the record does not verify")]
    Broken,
    /// A head whose data lies beyond the end of the file.
    #[error("the record is cut off")]
    Cut,
}

/// Bytes that the record of `change` takes.
pub fn record_len(change: &Change) -> u64 {
    HEAD_BYTES as u64 + change.data_len()
}

/// Writes the head of the record that will stand at `offset`, and returns the data that follows it in the file. Every change
/// up to `synced` is on the disk.
pub fn encode(
    key: &FileKey,
    offset: u64,
    synced: ChangeNo,
    epoch: Epoch,
    numbered: Numbered,
    head: &mut [u8; HEAD_BYTES],
) -> Result<Bytes, EncodeError> {
    let Numbered { no, change } = numbered;
    let extent = change.extent();
    let (kind, data) = match change {
        Change::Write(_, data) => (1, data),
        Change::Zero(_) => (2, Bytes::new()),
        Change::Hole(_) => (3, Bytes::new()),
    };
    let numbers = [epoch.0, no.0, extent.start.0, extent.count.0];
    *head = [0; HEAD_BYTES];
    head[0..4].copy_from_slice(RECORD_MAGIC);
    head[4] = kind;
    if key.version >= MARKED_SINCE {
        let back = no.0.checked_sub(synced.0).filter(|back| *back <= MARK_MAX && synced.0 > 0).unwrap_or_default();
        head[5..8].copy_from_slice(&back.to_le_bytes()[..3]);
    }
    match &key.key {
        ObjectKey::Blake3(tag_key) => {
            put_numbers(&mut head[8..40], &numbers);
            head[40..48].copy_from_slice(&(data.len() as u64).to_le_bytes());
            let tag = record_tag(tag_key, key, offset, &head[..HEAD_TAGGED], &data);
            head[48..64].copy_from_slice(&tag);
            Ok(data)
        }
        sealing => {
            head[8..16].copy_from_slice(&(data.len() as u64).to_le_bytes());
            let mut text = BytesMut::with_capacity(NUMBERS_BYTES + data.len());
            text.extend_from_slice(&[0; NUMBERS_BYTES]);
            put_numbers(&mut text, &numbers);
            text.extend_from_slice(&data);
            let tag = sealing.seal(offset, &head[..16], &mut text)?;
            head[16..32].copy_from_slice(&tag);
            head[32..64].copy_from_slice(&text.split_to(NUMBERS_BYTES));
            Ok(text.freeze())
        }
    }
}

/// Epoch, change number, first block, blocks.
const NUMBERS_BYTES: usize = 32;

fn put_numbers(to: &mut [u8], numbers: &[u64; 4]) {
    for (to, number) in to.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
}

/// Reads the record at `offset` of `file`; plain data is a slice of `file`, not a copy. Also says where the next begins.
pub fn decode(key: &FileKey, block_size: BlockSize, file: &Bytes, offset: u64) -> Result<(Record, u64), RecordFault> {
    let rest = usize::try_from(offset).ok().and_then(|at| file.get(at..)).unwrap_or_default();
    if rest.iter().take(HEAD_BYTES).all(|byte| *byte == 0) {
        return Err(RecordFault::End);
    }
    let head = rest.get(..HEAD_BYTES).ok_or(RecordFault::Cut)?;
    if &head[0..4] != RECORD_MAGIC {
        return Err(RecordFault::Broken);
    }
    let len = u64_at(head, data_len_at(key));
    let data_end = usize::try_from(len).ok().and_then(|len| HEAD_BYTES.checked_add(len)).ok_or(RecordFault::Cut)?;
    let data = rest.get(HEAD_BYTES..data_end).ok_or(RecordFault::Cut)?;
    let (numbers, data) = match &key.key {
        ObjectKey::Blake3(tag_key) => {
            if record_tag(tag_key, key, offset, &head[..HEAD_TAGGED], data) != head[48..64] {
                return Err(RecordFault::Broken);
            }
            (array::<NUMBERS_BYTES>(&head[8..40]), file.slice_ref(data))
        }
        sealing => {
            let text = file.slice_ref(&rest[HEAD_BYTES - NUMBERS_BYTES..data_end]);
            let opened = sealing.open(offset, &head[..16], &head[16..32], text).map_err(|_| RecordFault::Broken)?;
            (array(&opened[..NUMBERS_BYTES]), opened.slice(NUMBERS_BYTES..))
        }
    };
    let number = |at: usize| u64_at(&numbers, at * 8);
    let extent = Extent::new(number(2), number(3));
    let change = match head[4] {
        1 if Some(len) == extent.count.0.checked_mul(u64::from(block_size.bytes())) => Change::Write(extent, data),
        2 if len == 0 => Change::Zero(extent),
        3 if len == 0 => Change::Hole(extent),
        _ => return Err(RecordFault::Broken),
    };
    let back = u64::from(u32::from_le_bytes([head[5], head[6], head[7], 0]));
    let no = ChangeNo(number(1));
    let is_marked = key.version >= MARKED_SINCE && back < no.0;
    let is_beyond = no.0.max(number(0)) > ORDINAL_MAX;
    if is_beyond || back > 0 && !is_marked || extent.start.0.checked_add(extent.count.0).is_none() {
        return Err(RecordFault::Broken);
    }
    let synced = if back > 0 { ChangeNo(no.0 - back) } else { ChangeNo(0) };
    let record = Record { synced, epoch: Epoch(number(0)), numbered: Numbered { no, change } };
    Ok((record, offset + data_end as u64))
}

/// The greatest mark of the records behind `offset`, where reading stopped at something that is none. They prove themselves, but
/// with what is missing before them they are of no use. Records begin at multiples of 64. Data may look like heads, so
/// the work is bounded: a few times the file.
pub fn mark_behind(key: &FileKey, block_size: BlockSize, file: &Bytes, offset: u64) -> ChangeNo {
    let (mut at, mut work, mut mark) = (offset + HEAD_BYTES as u64, 0, ChangeNo(0));
    while work < SEARCH_FACTOR * file.len() as u64 {
        let Some(begin) = usize::try_from(at).ok().and_then(|at| file.get(at..at + HEAD_BYTES)) else { break };
        let mut next = at + HEAD_BYTES as u64;
        if begin.starts_with(RECORD_MAGIC) {
            work += (file.len() as u64 - at).min(u64_at(begin, data_len_at(key)));
            if let Ok((record, end)) = decode(key, block_size, file, at) {
                mark = mark.max(record.synced);
                next = end;
            }
        }
        at = next;
    }
    mark
}

/// See [`mark_behind`].
const SEARCH_FACTOR: u64 = 4;

/// Where in a head the length of the data stands.
fn data_len_at(key: &FileKey) -> usize {
    if matches!(key.key, ObjectKey::Blake3(_)) { 40 } else { 8 }
}

fn header_tag(tagged: &[u8], name: &str) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("ashlar 2026 journal file header");
    hasher.update(tagged).update(name.as_bytes());
    array(&hasher.finalize().as_bytes()[..16])
}

/// Since version 4 over a digest of the data, which takes a tenth of the time. What follows has a fixed length, so no two records give the same input.
fn record_tag(key: &[u8; 32], file: &FileKey, offset: u64, head: &[u8], data: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    match file.version {
        1 => hasher.update(&offset.to_le_bytes()).update(head).update(data),
        2 | 3 => hasher.update(data).update(head).update(&offset.to_le_bytes()),
        _ => hasher.update(&digest(&file.digests, data)).update(head).update(&offset.to_le_bytes()),
    };
    array(&hasher.finalize().as_bytes()[..16])
}

fn digest(secret: &[u8; SECRET_BYTES], data: &[u8]) -> [u8; 16] {
    // It fails only if the secret is too short, which it is not.
    xxhash3_128::Hasher::oneshot_with_secret(secret, data).unwrap_or_default().to_le_bytes()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(&bytes[at..at + 8]))
}

/// The first `N` bytes; every caller passes a slice of constant, sufficient length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keyring::{Keyring, Locked};

    const NAME: &str = "0000000000000003-00c0ffee.journal";

    fn header() -> FileHeader {
        FileHeader {
            id: Uuid::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f),
            volume: Uuid::from_u128(0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f),
            number: 3,
            block_size: BlockSize::new(512).unwrap(),
            seal: Seal::Blake3,
            salt: *b"0123456789abcdef",
            version: FileHeader::NEWEST,
        }
    }

    /// The header of an encrypted volume's journal: its salt begins with the generation of the data key.
    fn sealed_header() -> FileHeader {
        FileHeader { seal: Seal::ChaCha20Poly1305, salt: *b"\x01123456789abcdef", ..header() }
    }

    fn key(header: &FileHeader) -> FileKey {
        let keyring = Keyring::new((1, Locked::take(&mut [3; 32])), [], None);
        let keyring = (header.seal == Seal::ChaCha20Poly1305).then_some(keyring);
        // A salt of another generation has no key: then nothing can be read.
        let sealer = Sealer::new(header.volume, keyring);
        header.key(&sealer).unwrap()
    }

    fn changes() -> [Change; 3] {
        let data: Vec<u8> = (0..1024_u32).map(|i| (i * 7 / 3) as u8).collect();
        [
            Change::Write(Extent::new(5, 2), Bytes::from(data)),
            Change::Zero(Extent::new(0, 1 << 40)),
            Change::Hole(Extent::new(9, 1)),
        ]
    }

    /// A file with one record of each kind.
    fn file() -> Bytes {
        file_of(&header())
    }

    fn file_of(header: &FileHeader) -> Bytes {
        let mut out = BytesMut::from(&header.encode(NAME)[..]);
        for (no, change) in (17..).zip(changes()) {
            let mut head = [0; HEAD_BYTES];
            let numbered = Numbered { no: ChangeNo(no), change };
            let data = encode(&key(header), out.len() as u64, ChangeNo(15), Epoch(4), numbered, &mut head).unwrap();
            out.extend_from_slice(&head);
            out.extend_from_slice(&data);
        }
        out.freeze()
    }

    fn read(file: &Bytes) -> (Vec<Record>, RecordFault) {
        let Ok(header) = FileHeader::decode(NAME, file) else { return (Vec::new(), RecordFault::Broken) };
        let (mut records, mut offset) = (Vec::new(), FIRST_RECORD);
        loop {
            match decode(&key(&header), header.block_size, file, offset) {
                Ok((record, next)) => {
                    records.push(record);
                    offset = next;
                }
                Err(fault) => return (records, fault),
            }
        }
    }

    /// Golden files are decoded for ever, and the encoder must still yield them byte for byte: a difference is a change
    /// of format, which needs a new version. `ASHLAR_BLESS_GOLDEN=1` writes them anew.
    #[test]
    fn the_format_is_what_it_always_was() {
        let identity = FileHeader { number: 0, ..header() };
        let identity = identity.encode(NAME);
        let sealed = file_of(&sealed_header());
        for (name, encoded) in
            [("journal", &file()[..]), ("journal-identity", &identity[..]), ("journal-sealed", &sealed[..])]
        {
            let path = format!("{}/tests/golden/v4/{name}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("ASHLAR_BLESS_GOLDEN").is_some() {
                std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
                std::fs::write(&path, encoded).unwrap();
            }
            let stored = std::fs::read(&path).unwrap();
            let differs = stored.iter().zip(encoded).position(|(a, b)| a != b);
            assert!(stored == encoded, "{name}: the encoder yields other bytes from {differs:?} on");
        }
    }

    /// The records of the file without their marks.
    fn unmarked(file: &Bytes) -> (Vec<Record>, RecordFault) {
        let (mut records, fault) = read(file);
        records.iter_mut().for_each(|record| record.synced = ChangeNo(0));
        (records, fault)
    }

    #[test]
    fn journals_of_versions_1_and_2_are_read_and_say_nothing_of_what_was_synced() {
        let sealed = file_of(&sealed_header());
        for (version, name, expected, newest) in [
            (1, "v1/journal", header(), file()),
            (2, "v2/journal", header(), file()),
            (2, "v2/journal-sealed", sealed_header(), sealed),
        ] {
            let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
            let old = Bytes::from(std::fs::read(path).unwrap());
            assert_eq!(FileHeader::decode(NAME, &old), Ok(FileHeader { version, ..expected }));
            assert_eq!(read(&old), unmarked(&newest), "{name}");
            assert!(!read(&old).0.is_empty());
        }
    }

    #[test]
    fn journals_of_version_3_are_read() {
        for (name, header) in [("journal", header()), ("journal-sealed", sealed_header())] {
            let path = format!("{}/tests/golden/v3/{name}", env!("CARGO_MANIFEST_DIR"));
            let old = Bytes::from(std::fs::read(path).unwrap());
            assert_eq!(FileHeader::decode(NAME, &old), Ok(FileHeader { version: 3, ..header.clone() }));
            assert_eq!(read(&old), read(&file_of(&header)), "{name}");
            assert!(!read(&old).0.is_empty());
        }
    }

    #[test]
    fn a_mark_that_lies_too_far_back_is_not_written() {
        for (no, synced, expected) in
            [(17, 16, 16), (17, 0, 0), (17, 17, 0), (17, 30, 0), (1 << 24, 1, 1), ((1 << 24) + 1, 1, 0)]
        {
            let mut head = [0; HEAD_BYTES];
            let numbered = Numbered { no: ChangeNo(no), change: Change::Hole(Extent::new(0, 1)) };
            encode(&key(&header()), FIRST_RECORD, ChangeNo(synced), Epoch(4), numbered, &mut head).unwrap();
            let file = Bytes::from([&header().encode(NAME)[..], &head].concat());
            assert_eq!(read(&file).0[0].synced, ChangeNo(expected), "{synced} before {no}");
        }
    }

    #[test]
    fn data_full_of_heads_does_not_make_the_search_for_a_mark_long() {
        let mut file = BytesMut::from(&file()[..]);
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(RECORD_MAGIC);
        head[40..48].copy_from_slice(&(1u64 << 19).to_le_bytes());
        file[FIRST_RECORD as usize] ^= 1;
        (0..16_384).for_each(|_| file.extend_from_slice(&head));
        let mark = mark_behind(&key(&header()), header().block_size, &file.freeze(), FIRST_RECORD);
        assert_eq!(mark, ChangeNo(15), "and those near by are found");
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let expected: Vec<Record> = (17..)
            .zip(changes())
            .map(|(no, change)| Record {
                synced: ChangeNo(15),
                epoch: Epoch(4),
                numbered: Numbered { no: ChangeNo(no), change },
            })
            .collect();
        for header in [header(), sealed_header()] {
            let file = file_of(&header);
            assert_eq!(FileHeader::decode(NAME, &file), Ok(header));
            assert_eq!(read(&file), (expected.clone(), RecordFault::End));
        }
    }

    #[test]
    fn sealed_records_tell_their_kind_and_length_only() {
        let file = file_of(&sealed_header());
        let Change::Write(_, data) = &changes()[0] else { unreachable!() };
        assert!(!file.windows(16).any(|window| window == &data[..16]));
        let record = &file[FIRST_RECORD as usize..];
        assert_eq!((&record[..4], record[4], &record[8..16]), (&RECORD_MAGIC[..], 1, &1024u64.to_le_bytes()[..]));
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        for header in [header(), sealed_header()] {
            each_flipped_bit_is_noticed_in(&file_of(&header));
        }
    }

    fn each_flipped_bit_is_noticed_in(file: &Bytes) {
        let good = read(file).0;
        let unused = HEADER_USED..FIRST_RECORD as usize;
        for byte in (0..file.len()).filter(|byte| !unused.contains(byte)) {
            for bit in 0..8 {
                let mut bad = BytesMut::from(&file[..]);
                bad[byte] ^= 1 << bit;
                let (records, fault) = read(&bad.freeze());
                assert!(records.len() < good.len() && fault != RecordFault::End, "bit {bit} of byte {byte}");
                assert_eq!(records, good[..records.len()], "what comes before is read");
            }
        }
    }

    #[test]
    fn each_truncation_is_noticed_or_leaves_whole_records() {
        for header in [header(), sealed_header()] {
            each_truncation_is_noticed_in(&file_of(&header));
        }
    }

    fn each_truncation_is_noticed_in(file: &Bytes) {
        let good = read(file).0;
        let ends = [FIRST_RECORD as usize, 5184, 5248, 5312];
        for len in 0..=file.len() {
            let (records, fault) = read(&file.slice(..len));
            let whole = ends.iter().filter(|end| **end <= len).count().saturating_sub(1);
            assert_eq!(records, good[..whole], "{len}");
            assert_eq!(
                fault == RecordFault::End,
                ends.contains(&len) || (HEADER_USED..ends[0]).contains(&len),
                "{len}"
            );
        }
    }

    #[test]
    fn a_record_passes_at_its_own_place_only() {
        let record = file().slice(FIRST_RECORD as usize..5184);
        let mut moved = BytesMut::from(&file()[..]);
        moved.extend_from_slice(&record);
        let (records, fault) = read(&moved.clone().freeze());
        assert_eq!((records.len(), fault), (3, RecordFault::Broken), "elsewhere in the same file");
        type Alter = fn(&mut FileHeader);
        let others: [Alter; 4] = [
            |header| header.number += 1,
            |header| header.id = Uuid::nil(),
            |header| header.volume = Uuid::nil(),
            |header| header.salt[0] ^= 1,
        ];
        for alter in others {
            let mut header = header();
            alter(&mut header);
            moved[..FIRST_RECORD as usize].copy_from_slice(&header.encode(NAME));
            assert_eq!(read(&moved.clone().freeze()), (Vec::new(), RecordFault::Broken), "{header:?}");
        }
        assert_eq!(FileHeader::decode("0000000000000003-00c0ffef.journal", &file()), Err(HeaderFault::Broken));
    }

    #[test]
    fn an_unknown_version_or_seal_is_not_taken_for_damage() {
        let mut file = BytesMut::from(&file()[..]);
        file[8] = 5;
        let refused = FileHeader::decode(NAME, &file).unwrap_err();
        assert_eq!(refused, HeaderFault::Unknown { what: "format version", value: 5 });
        file[8] = 4;
        file[10] = 2;
        let refused = FileHeader::decode(NAME, &file).unwrap_err();
        assert_eq!(refused, HeaderFault::Unknown { what: "seal", value: 2 });
    }

    #[test]
    fn an_impossible_record_is_refused_even_if_its_tag_is_right() {
        // A tag proves who wrote it, not that the writer was sane: lengths still must agree.
        let bad = [
            Change::Write(Extent::new(5, 2), Bytes::from(vec![1; 512])),
            Change::Write(Extent::new(0, u64::MAX), Bytes::new()),
            Change::Hole(Extent::new(2, u64::MAX)),
        ];
        for change in bad {
            let numbered = Numbered { no: ChangeNo(17), change };
            let mut head = [0; HEAD_BYTES];
            for header in [header(), sealed_header()] {
                let data =
                    encode(&key(&header), FIRST_RECORD, ChangeNo(9), Epoch(4), numbered.clone(), &mut head).unwrap();
                let file = Bytes::from([&header.encode(NAME)[..], &head, &data].concat());
                assert_eq!(read(&file), (Vec::new(), RecordFault::Broken), "{numbered:?}");
            }
        }
    }

    #[test]
    fn a_change_after_which_none_could_come_is_refused() {
        for header in [header(), sealed_header()] {
            for (no, expected) in [(ORDINAL_MAX, RecordFault::End), (ORDINAL_MAX + 1, RecordFault::Broken)] {
                let mut head = [0; HEAD_BYTES];
                let numbered = Numbered { no: ChangeNo(no), change: Change::Hole(Extent::new(0, 1)) };
                encode(&key(&header), FIRST_RECORD, ChangeNo(0), Epoch(4), numbered, &mut head).unwrap();
                let file = Bytes::from([&header.encode(NAME)[..], &head].concat());
                assert_eq!(read(&file).1, expected, "{no}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in prop::collection::vec(any::<u8>(), 0..6000), keep in 0..5300_usize) {
            let mut file = BytesMut::from(&file()[..keep]);
            file.extend_from_slice(&noise);
            read(&file.freeze());
            read(&Bytes::from(noise.clone()));
        }
    }
}
