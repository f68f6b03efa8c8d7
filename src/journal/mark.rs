//! Marks: what the identity file says behind its header, and what changes while the journal lives. Pure: bytes in, bytes out.
//!
//! Two sectors, at [`PLACES`], hold one mark each, the older and the newer; each is written whole or not at all:
//!
//! | offset | bytes | mark |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic `AJM1` |
//! | 4 | 1 | how many names, at most 24 |
//! | 5 | 3 | 0 |
//! | 8 | 8 | number: the greater counts |
//! | 16 | 8 | synced: every change up to this one was on the disk |
//! | 24 | 384 | names: by which fences name this journal; the rest 0 |
//! | 408 | 88 | 0 |
//! | 496 | 16 | tag over bytes 0..88 of the file and 0..496 of the mark |
//!
//! **Synced** is written after each sync, and not synced itself: it survives the death of the process at once, and that of the host as
//! soon as the kernel has written it back. An older mark in its place says less, and nothing wrong. It goes back only when
//! an operator accepted a loss; then it is synced before anything is appended.
//!
//! **Names.** Each opening that goes on with a journal draws a new name for it, writes it here, durably, and only then puts the fence
//! that says it. So a copy of the directory, made before, does not know the name in the newest fence, and is not taken for the journal
//! that the volume goes on with. The names before it are kept from the one that the log had on: the PUT of an opening that died may
//! still arrive. Without names the journal is called by its id.
//!
//! Where a journal begins, and where it goes on, both places are written and synced: a place that was left alone could give a mark
//! of an earlier life back, when a file that had lost its end with the power grows again.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::units::ChangeNo;

/// Bytes of a mark: a sector.
pub const MARK_BYTES: usize = 512;

/// Where the mark with an even number stands in the identity file, and that with an odd one.
pub const PLACES: [u64; 2] = [4096, 4608];

/// The most names that a mark has.
pub const NAMES_MAX: usize = 24;

const MAGIC: &[u8; 4] = b"AJM1";
const NAMES_AT: usize = 24;
const TAGGED: usize = 496;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Which mark this is; 0 before the first.
    pub number: u64,
    /// Every change up to this one was on the disk.
    pub synced: ChangeNo,
    /// By which fences name the journal, the latest last.
    pub names: Vec<Uuid>,
}

impl Mark {
    /// The newest mark in the identity file; that before the first if there is none.
    pub fn newest(file: &[u8], header: &[u8]) -> Mark {
        let at = |place: u64| file.get(place as usize..place as usize + MARK_BYTES);
        let marks = PLACES.into_iter().filter_map(at).filter_map(|bytes| Mark::decode(bytes, header));
        marks.max_by_key(|mark| mark.number).unwrap_or_default()
    }

    /// The mark after this one.
    pub fn next(&self, synced: ChangeNo) -> Mark {
        Mark { number: self.number + 1, synced, names: self.names.clone() }
    }

    /// The mark after this one with one more name. Of the others those stay that the log may come to say: `named_by`, which it
    /// says now, and what was drawn later.
    pub fn named(&self, synced: ChangeNo, named_by: Uuid, name: Uuid) -> Mark {
        let from = self.names.iter().position(|known| *known == named_by);
        let mut names = from.map_or(vec![named_by], |from| self.names[from..].to_vec());
        while names.len() >= NAMES_MAX {
            // The oldest of the openings that died: nothing of it is on its way any more.
            names.remove(1);
        }
        names.push(name);
        Mark { number: self.number + 1, synced, names }
    }

    /// Where it stands in the identity file.
    pub fn place(&self) -> u64 {
        PLACES[(self.number % 2) as usize]
    }

    /// Its bytes, in the file that begins with `header`.
    pub fn encode(&self, header: &[u8]) -> Bytes {
        let mut out = BytesMut::zeroed(MARK_BYTES);
        let names = &self.names[..self.names.len().min(NAMES_MAX)];
        out[0..4].copy_from_slice(MAGIC);
        out[4] = names.len() as u8;
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.0.to_le_bytes());
        for (name, to) in names.iter().zip(out[NAMES_AT..].chunks_exact_mut(16)) {
            to.copy_from_slice(name.as_bytes());
        }
        let tag = tag(header, &out[..TAGGED]);
        out[TAGGED..].copy_from_slice(&tag);
        out.freeze()
    }

    fn decode(bytes: &[u8], header: &[u8]) -> Option<Mark> {
        let count = usize::from(bytes[4]);
        if &bytes[0..4] != MAGIC || tag(header, &bytes[..TAGGED]) != bytes[TAGGED..] || count > NAMES_MAX {
            return None;
        }
        let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let names = bytes[NAMES_AT..].chunks_exact(16).take(count);
        let names = names.filter_map(|name| Uuid::from_slice(name).ok()).collect();
        Some(Mark { number: number(8), synced: ChangeNo(number(16)), names })
    }
}

fn tag(header: &[u8], mark: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("ashlar 2026 journal mark");
    let mut tag = [0; 16];
    hasher.update(header).update(mark).finalize_xof().fill(&mut tag);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = &[7; 88];

    fn file(marks: &[&Mark]) -> Vec<u8> {
        let mut file = vec![0; 5120];
        for mark in marks {
            let at = mark.place() as usize;
            file[at..at + MARK_BYTES].copy_from_slice(&mark.encode(HEADER));
        }
        file
    }

    #[test]
    fn the_newest_whole_mark_counts() {
        let (id, name) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = Mark::default().named(ChangeNo(3), id, name);
        let second = first.next(ChangeNo(2));
        assert_eq!(Mark::newest(&file(&[]), HEADER), Mark::default());
        assert_eq!(Mark::newest(&[], HEADER), Mark::default());
        assert_eq!(Mark::newest(&file(&[&first]), HEADER), first);
        let both = file(&[&first, &second]);
        assert_eq!(Mark::newest(&both, HEADER), second, "also if it says less");
        assert_eq!(second.names, [id, name]);
        assert_eq!(Mark::newest(&both, &[8; 88]), Mark::default(), "of another file");
        for at in second.place() as usize..second.place() as usize + MARK_BYTES {
            let mut bad = both.clone();
            bad[at] ^= 1;
            assert_eq!(Mark::newest(&bad, HEADER), first, "byte {at}");
        }
    }

    #[test]
    fn names_are_kept_from_the_one_in_the_log_on_and_never_too_many() {
        let name = Uuid::from_u128;
        let mut mark = Mark::default();
        for i in 1..40 {
            mark = mark.named(ChangeNo(0), name(0), name(i));
            assert!(mark.names.len() <= NAMES_MAX && mark.names[0] == name(0) && mark.names.last() == Some(&name(i)));
        }
        let mark = mark.named(ChangeNo(0), name(38), name(40));
        assert_eq!(mark.names, [name(38), name(39), name(40)]);
    }
}
