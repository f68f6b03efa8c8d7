//! The files of a journal, and its marks.
//!
//! The first byte says how they are read: as bytes of one file and its name, that of the golden files; or as a plan after which whole files are made,
//! with true tags, and then harmed. Plain or encrypted.
#![no_main]

use ashlar::change::{Change, Numbered};
use ashlar::codec::seal::Sealer;
use ashlar::journal::mark::Mark;
use ashlar::journal::record::{self, FIRST_RECORD, FileHeader, HEAD_BYTES};
use ashlar::journal::replay::{FileBytes, file_name, number_in_name, replay};
use ashlar::units::{BlockCount, BlockIndex, BlockSize, ChangeNo, Epoch, Extent};
use ashlar_fuzz::{Input, fair, keyring, within};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uuid::{Uuid, uuid};

/// The volume of the golden journals.
const VOLUME: Uuid = uuid!("10111213-1415-1617-1819-1a1b1c1d1e1f");
/// The name of their files.
const NAME: &str = "0000000000000003-00c0ffee.journal";

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let first = input.u8();
    let sealer = Sealer::new(VOLUME, (first & 1 != 0).then(keyring));
    let files = match first & 2 {
        0 => vec![FileBytes { name: NAME.to_owned(), bytes: Bytes::copy_from_slice(input.0) }],
        _ => planned(&sealer, &mut input),
    };
    let bytes = files.iter().map(|file| file.bytes.len()).sum();
    within(fair(bytes), || look(&sealer, &files));
});

fn look(sealer: &Sealer, files: &[FileBytes]) {
    let Ok(Some(replay)) = replay("/fuzz", sealer, files) else { return };
    let follows = |pair: &[Numbered]| pair[1].no == pair[0].no.next();
    assert!(replay.changes.windows(2).all(follows), "changes that are replayed are consecutive");
    let named = replay.chain.iter().map(|file| &file.name).chain(&replay.void).chain(&replay.identity_name);
    assert!(named.count() <= files.len(), "a file is in the chain, or void, or the identity file");
    assert!(replay.synced >= replay.mark.synced);
}

/// Up to four files. The identity file may have marks; each may be harmed.
fn planned(sealer: &Sealer, input: &mut Input<'_>) -> Vec<FileBytes> {
    let mut files = Vec::new();
    while !input.is_empty() && files.len() < 4 {
        let number = u64::from(input.u8() % 6);
        let name = file_name(number, files.len() as u32);
        let mut bytes = file(sealer, number, &name, input);
        harm(&mut bytes, input);
        assert_eq!(number_in_name(&name), Some(number));
        files.push(FileBytes { name, bytes: bytes.into() });
    }
    files
}

fn file(sealer: &Sealer, number: u64, name: &str, input: &mut Input<'_>) -> Vec<u8> {
    let block_size = BlockSize::new(512).expect("a block size");
    let version = 1 + u16::from(input.u8() % 3);
    let header = FileHeader { version, ..FileHeader::new(sealer, Uuid::nil(), block_size, number, [1; 16]) };
    let mut bytes = header.encode(name).to_vec();
    let Ok(key) = header.key(sealer) else { return bytes };
    for _ in 0..input.u8() % 8 {
        if number == 0 {
            let names = vec![Uuid::nil(); usize::from(input.u8() % 30)];
            let mark = Mark { number: input.number(), synced: ChangeNo(input.number()), names };
            bytes.extend_from_slice(&mark.encode(&header.used(name)));
            continue;
        }
        let (epoch, synced) = (Epoch(input.number()), ChangeNo(input.number()));
        let numbered = Numbered { no: ChangeNo(input.number()), change: change(input) };
        let mut head = [0; HEAD_BYTES];
        if let Ok(data) = record::encode(&key, bytes.len() as u64, synced, epoch, numbered, &mut head) {
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&data);
        }
    }
    bytes
}

/// A change that need not make sense: its tag will be right all the same.
fn change(input: &mut Input<'_>) -> Change {
    let kind = input.u8();
    let extent = Extent { start: BlockIndex(input.number()), count: BlockCount(input.number()) };
    match kind % 4 {
        0 => Change::Zero(extent),
        1 => Change::Hole(extent),
        // Data of a right length, most of the time.
        2 => Change::Write(extent, Bytes::from(vec![kind; 512 * (extent.count.0 % 8) as usize])),
        _ => Change::Write(extent, Bytes::copy_from_slice(input.piece())),
    }
}

/// Cut off, overwritten, and with something stale behind its end, or not.
fn harm(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    match input.u8() % 8 {
        0 => bytes.truncate(FIRST_RECORD as usize + usize::from(input.u16())),
        1 => bytes.truncate(usize::from(input.u16())),
        2 => bytes.extend_from_slice(input.piece()),
        3 => {
            let at = FIRST_RECORD as usize + usize::from(input.u16());
            bytes.get_mut(at..).unwrap_or_default().iter_mut().zip(input.piece()).for_each(|(to, from)| *to = *from);
        }
        4 => {
            let (at, bits) = (usize::from(input.u16()), input.u8());
            bytes.get_mut(at..).and_then(|rest| rest.first_mut()).into_iter().for_each(|byte| *byte ^= bits);
        }
        _ => {}
    }
}
