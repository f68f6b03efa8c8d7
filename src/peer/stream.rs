//! The bytes of a copy: those of a journal ([`crate::journal::record`]), made by the sender, which has the key. Pure.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::change::Numbered;
use crate::codec::seal::Sealer;
use crate::codec::{CorruptError, EncodeError};
use crate::journal::mark::{Mark, PLACES};
use crate::journal::record::{self, FIRST_RECORD, FileHeader, FileKey, HEAD_BYTES};
use crate::journal::replay::file_name;
use crate::outside::Random;
use crate::peer::wire::{Begin, CHUNK_BYTES, Message};
use crate::units::{BlockSize, ChangeNo, Epoch};

/// A file is full at so many bytes; one record at least goes into each. The peer gives files up when the store has all that is in them.
pub const FILE_BYTES: u64 = 16 << 20;

/// Whose copies they are.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Seals the records; says whose they are.
    pub sealer: Sealer,
    /// The volume's block size.
    pub block_size: BlockSize,
    /// How the fence names the journal.
    pub name: Uuid,
    /// The epoch that the fence began.
    pub epoch: Epoch,
    /// The first epoch of which every acknowledged change is here.
    pub since: Epoch,
    /// Ids and salts.
    pub random: Random,
}

/// Why a copy cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] CorruptError),
    /// A record cannot be sealed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A copy that is being sent.
pub struct Stream {
    origin: Origin,
    id: Uuid,
    number: u64,
    file: Option<(FileKey, u64)>,
}

impl Stream {
    /// A copy with the changes from `first` on, and what is said at its beginning.
    pub fn begin(origin: Origin, first: ChangeNo, unsynced_counts: bool) -> (Stream, Message) {
        let id = origin.random.uuid();
        let (name, header) = header(&origin, id, 0);
        let before = ChangeNo(first.0.saturating_sub(1));
        let mark = Mark { number: 0, synced: before, names: vec![origin.name] };
        let mut identity = BytesMut::from(&header.encode(&name)[..]);
        // In the order of their places; both say the same, so that nothing of an older file counts.
        for (mark, place) in [mark.clone(), mark.next(before)].iter().zip(PLACES) {
            identity.resize(place as usize, 0);
            identity.extend_from_slice(&mark.encode(&header.used(&name)));
        }
        let begin = Begin {
            volume: origin.sealer.volume(),
            id,
            name: origin.name,
            epoch: origin.epoch,
            since: origin.since,
            first,
            unsynced_counts,
            identity_name: name,
            identity: identity.freeze(),
        };
        (Stream { origin, id, number: 0, file: None }, Message::Begin(begin))
    }

    /// What is said to bring these changes there. The peer answers for all up to `synced`.
    pub fn records(&mut self, batch: Vec<Numbered>, synced: ChangeNo) -> Result<Vec<Message>, StreamError> {
        let mut messages = Vec::new();
        let mut chunk = Chunk::default();
        for numbered in batch {
            let (no, len) = (numbered.no, record::record_len(&numbered.change));
            let is_full = |end: u64| end > FIRST_RECORD && end + len > FILE_BYTES;
            if self.file.as_ref().is_none_or(|(_, end)| is_full(*end)) {
                chunk.end(&mut messages);
                messages.push(self.next_file()?);
            }
            let Some((key, end)) = &mut self.file else { continue };
            let mut head = [0; HEAD_BYTES];
            let data = record::encode(key, *end, synced, self.origin.epoch, numbered, &mut head)?;
            if chunk.bytes.is_empty() {
                chunk.at = *end;
            }
            *end += len;
            chunk.add(&head, no, false, &mut messages);
            // The last byte of the record is in this part, whatever is cut.
            chunk.add(&data, no, true, &mut messages);
        }
        chunk.end(&mut messages);
        Ok(messages)
    }

    fn next_file(&mut self) -> Result<Message, StreamError> {
        self.number += 1;
        let (name, header) = header(&self.origin, self.id, self.number);
        self.file = Some((header.key(&self.origin.sealer)?, FIRST_RECORD));
        Ok(Message::File { header: header.encode(&name), name })
    }
}

fn header(origin: &Origin, id: Uuid, number: u64) -> (String, FileHeader) {
    let Origin { sealer, block_size, random, .. } = origin;
    let name = file_name(number, u32::from_le_bytes(random.bytes()));
    (name, FileHeader::new(sealer, id, *block_size, number, random.bytes()))
}

/// A part of a file that is being put together.
#[derive(Default)]
struct Chunk {
    at: u64,
    bytes: BytesMut,
    /// The last change that is whole with it.
    last: ChangeNo,
}

impl Chunk {
    /// Adds a part of the record of change `no`, the last one or not.
    fn add(&mut self, mut part: &[u8], no: ChangeNo, is_last: bool, messages: &mut Vec<Message>) {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(CHUNK_BYTES - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            part = later;
            if part.is_empty() && is_last {
                self.last = no;
            }
            if self.bytes.len() == CHUNK_BYTES {
                self.end(messages);
            }
        }
        // A record without data ends with its head.
        if is_last {
            self.last = no;
            self.mend_last(no, messages);
        }
    }

    /// The head of a record without data may have filled a part.
    fn mend_last(&self, no: ChangeNo, messages: &mut [Message]) {
        if let (true, Some(Message::Records { last, .. })) = (self.bytes.is_empty(), messages.last_mut()) {
            *last = no;
        }
    }

    fn end(&mut self, messages: &mut Vec<Message>) {
        if !self.bytes.is_empty() {
            let bytes: Bytes = self.bytes.split().freeze();
            let at = self.at;
            self.at += bytes.len() as u64;
            messages.push(Message::Records { at, last: self.last, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::change::Change;
    use crate::journal::replay::{FileBytes, replay};
    use crate::keyring::Keyring;
    use crate::units::Extent;

    const BLOCK: usize = 512;

    fn origin(sealer: Sealer) -> Origin {
        Origin {
            sealer,
            block_size: BlockSize::new(BLOCK as u64).unwrap(),
            name: Uuid::from_u128(9),
            epoch: Epoch(4),
            since: Epoch(2),
            random: Random::seeded(5),
        }
    }

    fn write(no: u64, blocks: usize) -> Numbered {
        let extent = Extent::new(no, blocks as u64);
        let change = match blocks % 5 {
            0 => Change::Hole(Extent::new(no, 1)),
            _ => Change::Write(extent, Bytes::from(vec![no as u8; blocks * BLOCK])),
        };
        Numbered { no: ChangeNo(no), change }
    }

    /// Puts messages into files as a keeper does. Returns the files, and after which message which change was whole.
    fn files(messages: &[Message]) -> Vec<FileBytes> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut current = String::new();
        for message in messages {
            match message {
                Message::Begin(begin) => {
                    files.insert(begin.identity_name.clone(), begin.identity.to_vec());
                }
                Message::File { name, header } => {
                    current.clone_from(name);
                    files.insert(name.clone(), header.to_vec());
                }
                Message::Records { at, bytes, .. } => {
                    assert!(bytes.len() <= CHUNK_BYTES);
                    let file = files.get_mut(&current).unwrap();
                    assert_eq!(*at, file.len() as u64);
                    file.extend_from_slice(bytes);
                }
                other => panic!("{other:?}"),
            }
        }
        files.into_iter().map(|(name, bytes)| FileBytes { name, bytes: bytes.into() }).collect()
    }

    /// After each message it is so far what it says; of many messages only some are looked at.
    fn check(sealer: &Sealer, batches: &[Vec<usize>], first: u64) {
        let (mut stream, begin) = Stream::begin(origin(sealer.clone()), ChangeNo(first), false);
        let (mut messages, mut written, mut no) = (vec![begin], Vec::new(), first);
        for batch in batches {
            let batch: Vec<_> = batch.iter().zip(no..).map(|(blocks, no)| write(no, *blocks)).collect();
            no += batch.len() as u64;
            written.extend(batch.clone());
            messages.extend(stream.records(batch, ChangeNo(first)).unwrap());
        }
        let mut has = first - 1;
        for until in 1..=messages.len() {
            if let Message::Records { last, .. } = &messages[until - 1] {
                assert!(last.0 >= has || last.0 == 0);
                has = has.max(last.0);
            }
            if messages.len() > 16 && until % 8 != 0 && until < messages.len() {
                continue;
            }
            let found = replay("/copy", sealer, &files(&messages[..until])).unwrap().unwrap();
            assert_eq!(found.mark.names, [Uuid::from_u128(9)]);
            let whole = (has + 1 - first) as usize;
            assert_eq!(found.changes, written[..whole], "after message {until}");
            assert!(found.identity_name.is_some());
        }
        assert_eq!(has, no - 1);
    }

    fn sealers() -> [Sealer; 2] {
        let keyring = Keyring::new((1, crate::keyring::Locked::take(&mut [3; 32])), [], None);
        [Sealer::new(Uuid::from_u128(1), None), Sealer::new(Uuid::from_u128(1), Some(keyring))]
    }

    #[test]
    fn a_copy_is_a_journal_wherever_it_is_cut_between_two_messages() {
        for sealer in sealers() {
            check(&sealer, &[vec![1, 0, 3], vec![], vec![2, 2, 2, 0, 0]], 7);
            // Records of more than a message, and files that are full.
            check(&sealer, &[vec![3001, 1, 0, 2048 * 3 + 1, 5], vec![16384, 16384, 20001, 1]], 1);
        }
    }

    /// A head that ends a message exactly: 64 bytes are left of it.
    #[test]
    fn a_record_that_ends_with_a_message_is_whole_with_it() {
        let data = CHUNK_BYTES - 64 - 64;
        assert_eq!(data % BLOCK, 384, "so it is made of several");
        let sealer = &sealers()[0];
        // Heads and data that add up to a message: 16 × 64 bytes of heads, 2046 blocks.
        let mut batch = vec![1; 14];
        batch.extend([2032, 0]);
        assert_eq!(14 * (64 + 512) + 64 + 2032 * 512 + 64, CHUNK_BYTES);
        check(sealer, &[batch.clone()], 1);
        batch.push(0);
        check(sealer, &[batch], 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_changes_make_a_journal(batches in proptest::collection::vec(proptest::collection::vec(0_usize..40, 0..20), 0..6)) {
            for sealer in sealers() {
                check(&sealer, &batches, 3);
            }
        }
    }
}
