//! The head of a segment: who wrote it, which changes it completes, which extents it holds and how long their frames
//! are.
//!
//! The entries are sorted by block and do not overlap: a segment is the *result* of its changes, so the order among
//! them does not matter any more. Each data entry is one frame. In bytes an entry costs a varint for the gap to the
//! entry before and its kind, one for its length, and one for its frame: about 7 bytes for a random 4 KiB block of a
//! volume of some TiB.

use std::sync::Arc;

use uuid::Uuid;

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{FRAME_OVERHEAD, SEALED_BYTES_MAX};
use crate::codec::object::{CARRYING, REFERRING};
use crate::codec::seal::Salt;
use crate::map::SegmentInfo;
use crate::map::placement::Placement;
use crate::space::Cargo;
use crate::units::{
    BlockCount, BlockIndex, ChangeNo, Epoch, Extent, FRAME_BLOCKS_MAX, FrameAddr, Location, ORDINAL_MAX, Seq,
    VOLUME_BLOCKS_MAX,
};

/// The head of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// The server that wrote it.
    pub server: Uuid,
    /// The last change that it and its predecessors contain.
    pub covers: ChangeNo,
    /// What it holds, sorted by block, not overlapping, none empty.
    pub entries: Vec<Entry>,
    /// If its data was moved here by garbage collection (then it holds nothing else): it counts only for blocks whose
    /// data lies, when this segment takes effect, in a segment at or before this one. Whatever changed a block
    /// meanwhile wins, live and in recovery.
    pub as_of: Option<Seq>,
    /// If it carries other segments, what it says of that. Then all that it holds is what the head or a version that is kept needed of them; it changes no map.
    pub cargo: Option<Box<Cargo>>,
    /// The segments that it refers to, in order, and how many of its blocks are there. They stay as long as it is in the store. What was moved refers to none.
    pub refers: Arc<Vec<(Seq, u32)>>,
}

/// One extent of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blocks.
    pub extent: Extent,
    /// What they hold from now on.
    pub kind: EntryKind,
}

/// What the blocks of an entry hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// One frame of this segment.
    Data {
        /// The frame's sealed length in bytes.
        stored_len: u32,
    },
    /// Allocated zero.
    Zero,
    /// Nothing.
    Hole,
}

// The two low bits of an entry's first varint.
const DATA: u64 = 0;
const ZERO: u64 = 1;
const HOLE: u64 = 2;
/// Data, in a segment of moved data. A reader of version 1 refuses it: to it, it would look like a newer write.
const MOVED: u64 = 3;

/// The fewest bytes that an entry takes.
const ENTRY_BYTES_MIN: usize = 2;

impl SegmentHead {
    /// As bytes. The entries must be as their description says.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(64 + self.entries.len() * 8);
        w.varint(self.epoch.0);
        w.uuid(self.server);
        w.varint(self.covers.0);
        w.varint(self.entries.len() as u64);
        let mut end = BlockIndex(0);
        for Entry { extent, kind } in &self.entries {
            let gap = (extent.start - end).0 << 2;
            let count_less_one = extent.count.0 - 1;
            match kind {
                EntryKind::Data { stored_len } => {
                    w.varint(gap | if self.as_of.is_some() { MOVED } else { DATA });
                    w.varint(count_less_one);
                    w.varint(u64::from(*stored_len));
                }
                EntryKind::Zero => {
                    w.varint(gap | ZERO);
                    w.varint(count_less_one);
                }
                EntryKind::Hole => {
                    w.varint(gap | HOLE);
                    w.varint(count_less_one);
                }
            }
            end = extent.end();
        }
        if let Some(as_of) = self.as_of {
            w.varint(as_of.0);
        }
        if let Some(cargo) = &self.cargo {
            write_seqs(&mut w, &cargo.victims);
            write_seqs(&mut w, &cargo.versions);
        }
        if !self.refers.is_empty() {
            write_refers(&mut w, &self.refers);
        }
        w.finish()
    }

    /// The format version in which it is written.
    pub(super) fn version(&self) -> Option<u16> {
        let refers = (!self.refers.is_empty()).then_some(REFERRING);
        refers.or(self.cargo.as_ref().map(|_| CARRYING))
    }

    /// From the bytes of the head of an object of that format version, whose frames begin at `frames_at`.
    pub(super) fn decode(head: &[u8], frames_at: u32, version: u16) -> Result<SegmentHead, Malformed> {
        let mut r = Reader::new(head);
        let epoch = Epoch(r.ordinal()?);
        let server = r.uuid()?;
        let covers = ChangeNo(r.ordinal()?);
        let count = r.count(ENTRY_BYTES_MIN)?;
        let mut entries = Vec::with_capacity(count);
        let mut end = BlockIndex(0);
        let mut object_end = frames_at;
        let mut moved = 0;
        for _ in 0..count {
            let (entry, is_moved) = decode_entry(&mut r, end)?;
            moved += usize::from(is_moved);
            if let EntryKind::Data { stored_len } = entry.kind {
                object_end = object_end.checked_add(stored_len).ok_or_else(|| r.bad("frames beyond 4 GiB"))?;
            }
            end = entry.extent.end();
            entries.push(entry);
        }
        let as_of = match moved {
            0 => None,
            _ if moved < count => return Err(r.bad("moved data beside other entries")),
            _ => Some(Seq(r.ordinal()?)),
        };
        let cargo = match as_of {
            _ if !(CARRYING..REFERRING).contains(&version) => None,
            Some(as_of) => Some(Box::new(Cargo { victims: read_seqs(&mut r)?, versions: read_seqs(&mut r)?, as_of })),
            None => return Err(r.bad("a segment that carries others and has nothing of them")),
        };
        if cargo.as_ref().is_some_and(|cargo| cargo.victims.last().is_none_or(|last| *last > cargo.as_of)) {
            return Err(r.bad("a segment that carries none, or newer ones than it can"));
        }
        let refers = if version < REFERRING { Vec::new() } else { read_refers(&mut r)? };
        if version >= REFERRING && (as_of.is_some() || refers.is_empty()) {
            return Err(r.bad("a segment that refers to none, or was moved"));
        }
        r.finish()?;
        Ok(SegmentHead { epoch, server, covers, entries, as_of, cargo, refers: Arc::new(refers) })
    }

    /// What it does to the map if it stands at `seq` and its frames begin at byte `frames_at`; in the order of blocks.
    pub fn placements(&self, seq: Seq, frames_at: u32) -> Vec<(Extent, Placement)> {
        let mut offset = frames_at;
        let place = |entry: &Entry| match entry.kind {
            EntryKind::Data { stored_len } => {
                let frame = FrameAddr { seq, offset, len: stored_len };
                offset += stored_len;
                (entry.extent, Placement::Data(Location { frame, block: 0 }))
            }
            EntryKind::Zero => (entry.extent, Placement::Zero),
            EntryKind::Hole => (entry.extent, Placement::Hole),
        };
        self.entries.iter().map(place).collect()
    }

    /// Its frames and the blocks that each holds, in order.
    pub fn frames(&self, seq: Seq, frames_at: u32) -> Vec<(Extent, FrameAddr)> {
        let frame = |(extent, placement)| match placement {
            Placement::Data(location) => Some((extent, location.frame)),
            Placement::Zero | Placement::Hole => None,
        };
        self.placements(seq, frames_at).into_iter().filter_map(frame).collect()
    }

    /// What is known of it at its birth, when all that it brought is live.
    pub fn info(&self, salt: Salt, frames_at: u32) -> SegmentInfo {
        let (mut stored_bytes, mut blocks) = (u64::from(frames_at), 0);
        for entry in &self.entries {
            if let EntryKind::Data { stored_len } = entry.kind {
                stored_bytes += u64::from(stored_len);
                // At most 128 for each of less than 2^26 entries (the bound of a head).
                blocks += entry.extent.count.0 as u32;
            }
        }
        SegmentInfo { salt, stored_bytes, blocks, live_blocks: blocks }
    }
}

fn write_seqs(w: &mut Writer, seqs: &[Seq]) {
    w.varint(seqs.len() as u64);
    seqs.iter().fold(0, |last, seq| {
        w.varint(seq.0 - last);
        seq.0
    });
}

/// In order, without doubles.
fn read_seqs(r: &mut Reader<'_>) -> Result<Vec<Seq>, Malformed> {
    let count = r.count(1)?;
    let (mut seqs, mut last) = (Vec::with_capacity(count), 0u64);
    for n in 0..count {
        let gap = r.varint()?;
        last =
            last.checked_add(gap).filter(|seq| *seq <= ORDINAL_MAX).ok_or_else(|| r.bad("a place beyond any log"))?;
        if n > 0 && gap == 0 {
            return Err(r.bad("a place of the log that stands there twice"));
        }
        seqs.push(Seq(last));
    }
    Ok(seqs)
}

fn write_refers(w: &mut Writer, refers: &[(Seq, u32)]) {
    w.varint(refers.len() as u64);
    refers.iter().fold(0, |last, (seq, blocks)| {
        w.varint(seq.0 - last);
        w.varint((*blocks).into());
        seq.0
    });
}

/// In order, without doubles, of one block at least each.
fn read_refers(r: &mut Reader<'_>) -> Result<Vec<(Seq, u32)>, Malformed> {
    let count = r.count(2)?;
    let (mut refers, mut last) = (Vec::with_capacity(count), 0u64);
    for _ in 0..count {
        let gap = r.varint()?;
        let seq = last.checked_add(gap).filter(|seq| gap > 0 && *seq <= ORDINAL_MAX);
        last = seq.ok_or_else(|| r.bad("segments that it refers to are out of order"))?;
        match r.varint_u32()? {
            0 => return Err(r.bad("a segment that it refers to for nothing")),
            blocks => refers.push((Seq(last), blocks)),
        }
    }
    Ok(refers)
}

/// An entry, and whether it is moved data.
fn decode_entry(r: &mut Reader<'_>, end: BlockIndex) -> Result<(Entry, bool), Malformed> {
    let first = r.varint()?;
    let start = BlockIndex(end.0 + (first >> 2));
    let count_less_one = r.varint()?;
    if start.0 >= VOLUME_BLOCKS_MAX || count_less_one >= VOLUME_BLOCKS_MAX - start.0 {
        return Err(r.bad("an extent beyond the end of any volume"));
    }
    let extent = Extent { start, count: BlockCount(count_less_one + 1) };
    let kind = match first & 3 {
        DATA | MOVED => EntryKind::Data { stored_len: decode_frame_len(r, extent.count)? },
        ZERO => EntryKind::Zero,
        _ => EntryKind::Hole,
    };
    Ok((Entry { extent, kind }, first & 3 == MOVED))
}

fn decode_frame_len(r: &mut Reader<'_>, blocks: BlockCount) -> Result<u32, Malformed> {
    if blocks.0 > FRAME_BLOCKS_MAX {
        return Err(r.bad("a frame of more than 64 KiB of data"));
    }
    match r.varint_u32()? {
        len if (FRAME_OVERHEAD as u32 + 1..=SEALED_BYTES_MAX).contains(&len) => Ok(len),
        _ => Err(r.bad("a frame of a length that cannot be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ORDINAL_MAX;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let kind = prop_oneof![
            (21u32..=SEALED_BYTES_MAX).prop_map(|stored_len| EntryKind::Data { stored_len }),
            Just(EntryKind::Zero),
            Just(EntryKind::Hole),
        ];
        let gap = prop_oneof![Just(0), 0u64..100, 0u64..1 << 40];
        let count = prop_oneof![Just(1), 1u64..=128, 1u64..1 << 40];
        prop::collection::vec((gap, count, kind), 0..40).prop_map(|list| {
            let mut end = 0;
            list.into_iter()
                .map(|(gap, count, kind)| {
                    let count = if matches!(kind, EntryKind::Data { .. }) { count.min(128) } else { count };
                    let extent = Extent::new(end + gap, count);
                    end = extent.end().0;
                    Entry { extent, kind }
                })
                .collect()
        })
    }

    fn head(entries: Vec<Entry>) -> SegmentHead {
        SegmentHead {
            epoch: Epoch(3),
            server: Uuid::from_u128(7),
            covers: ChangeNo(1 << 40),
            entries,
            as_of: None,
            cargo: None,
            refers: Arc::default(),
        }
    }

    proptest! {
        #[test]
        fn a_head_comes_back(entries in entries()) {
            let head = head(entries);
            prop_assert_eq!(SegmentHead::decode(&head.encode(), 48, 2), Ok(head));
        }

        #[test]
        fn a_head_of_moved_data_comes_back(entries in entries(), as_of in 0..=ORDINAL_MAX) {
            let is_data = |entry: &Entry| matches!(entry.kind, EntryKind::Data { .. });
            let entries: Vec<_> = entries.into_iter().filter(is_data).collect();
            let as_of = (!entries.is_empty()).then_some(Seq(as_of));
            let head = SegmentHead { as_of, ..head(entries) };
            prop_assert_eq!(SegmentHead::decode(&head.encode(), 48, 2), Ok(head));
        }

        #[test]
        fn a_head_of_a_carrier_comes_back(
            entries in entries(), at in 1..1_u64 << 40, seqs in prop::collection::btree_set(0_u64..1 << 40, 1..20),
        ) {
            let is_data = |entry: &Entry| matches!(entry.kind, EntryKind::Data { .. });
            let entries: Vec<_> = entries.into_iter().filter(is_data).collect();
            let victims: Vec<Seq> = seqs.iter().copied().map(Seq).collect();
            let as_of = Seq(at.max(victims[victims.len() - 1].0));
            let cargo = Cargo { victims, versions: seqs.into_iter().skip(1).map(Seq).collect(), as_of };
            let head = SegmentHead { as_of: Some(as_of), cargo: Some(Box::new(cargo)), ..head(entries) };
            let decoded = SegmentHead::decode(&head.encode(), 48, CARRYING);
            match head.entries.is_empty() {
                true => prop_assert!(decoded.is_err()),
                false => prop_assert_eq!(decoded, Ok(head)),
            }
        }

        #[test]
        fn a_head_that_refers_to_others_comes_back(
            entries in entries(), to in prop::collection::btree_map(1_u64..1 << 40, 1_u32.., 1..20), as_of in any::<bool>(),
        ) {
            let refers: Vec<(Seq, u32)> = to.into_iter().map(|(seq, blocks)| (Seq(seq), blocks)).collect();
            let head = SegmentHead { refers: Arc::new(refers), ..head(entries) };
            let decode = |head: &SegmentHead| SegmentHead::decode(&head.encode(), 48, REFERRING);
            let none = SegmentHead { refers: Arc::default(), ..head.clone() };
            prop_assert!(decode(&none).is_err());
            prop_assert_eq!(decode(&head), Ok(head.clone()));
            let is_data = |entry: &Entry| matches!(entry.kind, EntryKind::Data { .. });
            if as_of && !head.entries.is_empty() && head.entries.iter().all(is_data) {
                let moved = SegmentHead { as_of: Some(Seq(1)), ..head };
                prop_assert!(decode(&moved).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_mean_one_head(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = bytes;
            if bytes.len() > 18 {
                // So that most cases reach the entries.
                bytes[0] = 1;
                bytes[17] = 1;
                bytes[18] &= 7;
            }
            for version in [2, CARRYING, REFERRING] {
                if let Ok(head) = SegmentHead::decode(&bytes, 48, version) {
                    prop_assert_eq!(&head.encode(), &bytes);
                    prop_assert_eq!(head.version().unwrap_or(2), version);
                }
            }
        }
    }

    fn decode_one(gap_and_kind: u64, count_less_one: u64, len: u64) -> Result<SegmentHead, &'static str> {
        let mut bytes = head(vec![]).encode();
        bytes.pop();
        let mut w = Writer::new();
        w.varint(1);
        w.varint(gap_and_kind);
        w.varint(count_less_one);
        if [DATA, MOVED].contains(&(gap_and_kind & 3)) {
            w.varint(len);
        }
        if gap_and_kind & 3 == MOVED {
            w.varint(7); // as of
        }
        bytes.extend(w.finish());
        SegmentHead::decode(&bytes, 48, 2).map_err(|e| e.what)
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        assert!(decode_one(DATA, 0, 21).is_ok());
        assert_eq!(decode_one(DATA, 0, 20), Err("a frame of a length that cannot be"));
        assert_eq!(decode_one(DATA, 0, 65557), Err("a frame of a length that cannot be"));
        assert_eq!(decode_one(DATA, 128, 21), Err("a frame of more than 64 KiB of data"));
        assert_eq!(decode_one(MOVED, 0, 21).map(|head| head.as_of), Ok(Some(Seq(7))));
        assert_eq!(decode_one(MOVED, 128, 21), Err("a frame of more than 64 KiB of data"));
        assert!(decode_one(HOLE, VOLUME_BLOCKS_MAX - 1, 0).is_ok());
        assert_eq!(decode_one(HOLE, VOLUME_BLOCKS_MAX, 0), Err("an extent beyond the end of any volume"));
        assert_eq!(decode_one((VOLUME_BLOCKS_MAX << 2) | ZERO, 0, 0), Err("an extent beyond the end of any volume"));
        assert_eq!(decode_one(u64::MAX - 2, u64::MAX, 0), Err("an extent beyond the end of any volume"));
    }

    #[test]
    fn moved_data_stands_alone() {
        let data = |n| Entry { extent: Extent::new(n, 1), kind: EntryKind::Data { stored_len: 30 } };
        let zero = Entry { extent: Extent::new(5, 1), kind: EntryKind::Zero };
        let mixed = SegmentHead { as_of: Some(Seq(1)), ..head(vec![data(1), zero]) };
        let refused = SegmentHead::decode(&mixed.encode(), 48, 2).map_err(|e| e.what);
        assert_eq!(refused, Err("moved data beside other entries"));
    }

    #[test]
    fn frames_beyond_the_largest_object_are_refused() {
        let entry = |n| Entry { extent: Extent::new(n, 1), kind: EntryKind::Data { stored_len: 60_000 } };
        let bytes = head((0..10).map(entry).collect()).encode();
        assert!(SegmentHead::decode(&bytes, u32::MAX - 600_000, 2).is_ok());
        assert_eq!(SegmentHead::decode(&bytes, u32::MAX - 599_999, 2).map_err(|e| e.what), Err("frames beyond 4 GiB"));
    }

    #[test]
    fn a_random_block_costs_at_most_eight_bytes() {
        let frame =
            |n: u64| Entry { extent: Extent::new(n * 2_000_003, 1), kind: EntryKind::Data { stored_len: 4116 } };
        let bytes = head((0..2048).map(frame).collect()).encode().len();
        assert!(bytes < 2048 * 8, "{bytes} bytes");
    }
}
