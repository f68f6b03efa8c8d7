//! Sealing: a batch of changes becomes a segment object. This is the CPU-heavy part (comparing, compressing, hashing),
//! to be called through [`crate::outside::Workers`].
//!
//! 1. Blocks that are all zero are mapped as zero instead of being stored (older kernels zero by writing zeros).
//! 2. Neighbours of one kind are joined, across the changes that they came with.
//! 3. Data is cut into frames at multiples of 64 KiB *of the volume*, so that an overwrite of a range lines up with
//!    the frames of the earlier write and kills them whole.
//! 4. Frames are compressed, then everything is sealed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::head::{Entry, EntryKind, SegmentHead};
use super::reference::{self, Part, Reference};
use crate::codec::EncodeError;
use crate::codec::frame::{Compression, Frames, LENT_BYTES_MIN};
use crate::codec::object::{Encoded, ObjectKind, encode, encode_as};
use crate::codec::seal::{Salt, Seal, Sealer};
use crate::map::SegmentInfo;
use crate::map::placement::Placement;
use crate::space::Cargo;
use crate::units::{
    BlockCount, BlockIndex, BlockSize, ChangeNo, Epoch, Extent, FRAME_BYTES_MAX, Seq, VOLUME_BLOCKS_MAX,
};

/// What an extent of a batch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Data, as long as the extent.
    Data(Bytes),
    /// Allocated zero.
    Zero,
    /// Nothing.
    Hole,
}

/// Who seals, how frames are compressed, and how far the history reaches with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch.
    pub epoch: Epoch,
    /// The server.
    pub server: Uuid,
    /// The last change that the segment and its predecessors contain.
    pub covers: ChangeNo,
    /// How its frames are compressed.
    pub compression: Compression,
}

/// A segment ready for the store, and what it does once it is there.
#[derive(Clone, Debug)]
pub struct EncodedSegment {
    /// The object.
    pub object: Encoded,
    /// What it does to the map, in the order of blocks: the same that recovery finds in it.
    pub placements: Vec<(Extent, Placement)>,
    /// What to keep of it.
    pub info: SegmentInfo,
    /// What it says of moved data.
    pub moved: Option<Moved>,
    /// See [`SegmentHead::refers`].
    pub refers: Vec<(Seq, u32)>,
    /// The extents whose frames are references.
    pub referring: Vec<Extent>,
}

/// Blocks of a batch whose data is stored already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referred {
    /// The blocks.
    pub extent: Extent,
    /// Where they are, in order; as many blocks together.
    pub parts: Vec<Part>,
}

impl Referred {
    /// Where the blocks of a part of it are.
    fn within(&self, extent: &Extent) -> Vec<Part> {
        let (mut at, mut within) = (self.extent.start, Vec::new());
        for part in &self.parts {
            let here = Extent { start: at, count: BlockCount(part.blocks.into()) };
            at = here.end();
            if let Some(common) = here.intersect(extent) {
                let skip = (common.start - here.start).0 as u8;
                within.push(Part { block: part.block + skip, blocks: common.count.0 as u8, ..*part });
            }
        }
        within
    }
}

/// What a segment of moved data says of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// See [`SegmentHead::as_of`].
    pub as_of: Seq,
    /// See [`SegmentHead::cargo`].
    pub cargo: Option<Cargo>,
}

/// Seals `changes`, which are sorted by block, not overlapping and not empty, into the segment at `seq`.
pub fn encode_segment(
    sealer: &Sealer,
    seq: Seq,
    salt: Salt,
    block_size: BlockSize,
    stamp: &Stamp,
    changes: &[(Extent, Payload)],
) -> Result<EncodedSegment, EncodeError> {
    encode_referring(sealer, seq, salt, block_size, stamp, changes, &[])
}

/// The same of a batch of which these blocks, sorted and not overlapping, are stored already: it refers to where they are. All of them are data, and none is zero.
pub fn encode_referring(
    sealer: &Sealer,
    seq: Seq,
    salt: Salt,
    block_size: BlockSize,
    stamp: &Stamp,
    changes: &[(Extent, Payload)],
    referred: &[Referred],
) -> Result<EncodedSegment, EncodeError> {
    check_batch(block_size, changes)?;
    encode_plan(sealer, seq, salt, stamp, Plan::of(block_size, changes, referred), None)
}

/// Seals data that was copied from segments at or before `as_of`, sorted by block, into the segment at `seq`; it will
/// count only where nothing changed since, or carry these segments. All of it is stored as it is, blocks of zero too: a blank entry would count
/// without a condition.
pub fn encode_moved(
    sealer: &Sealer,
    seq: Seq,
    salt: Salt,
    block_size: BlockSize,
    stamp: &Stamp,
    data: &[(Extent, Bytes)],
    moved: Moved,
) -> Result<EncodedSegment, EncodeError> {
    let changes: Vec<_> = data.iter().map(|(extent, data)| (*extent, Payload::Data(data.clone()))).collect();
    check_batch(block_size, &changes)?;
    encode_plan(sealer, seq, salt, stamp, Plan::of_data(block_size, data), Some(moved))
}

fn encode_plan(
    sealer: &Sealer,
    seq: Seq,
    salt: Salt,
    stamp: &Stamp,
    plan: Plan,
    moved: Option<Moved>,
) -> Result<EncodedSegment, EncodeError> {
    // What is moved may be a small part of the memory in which it came, and that is not to stay until a slow store has it.
    let lends = sealer.seal() == Seal::Blake3 && moved.is_none();
    let (entries, frames) = plan.compress(seq, stamp.compression, lends)?;
    let (refers, referring) = plan.refers();
    let Stamp { epoch, server, covers, .. } = *stamp;
    let as_of = moved.as_ref().map(|moved| moved.as_of);
    let cargo = moved.as_ref().and_then(|moved| moved.cargo.clone()).map(Box::new);
    let head = SegmentHead { epoch, server, covers, entries, as_of, cargo, refers: Arc::new(refers.clone()) };
    let head_bytes = head.encode();
    let object = match head.version() {
        Some(version) => encode_as(sealer, ObjectKind::Segment, version, seq, salt, &head_bytes, frames)?,
        None => encode(sealer, ObjectKind::Segment, seq, salt, &head_bytes, frames)?,
    };
    let (placements, info) = (head.placements(seq, object.frames_at), head.info(salt, object.frames_at));
    Ok(EncodedSegment { object, placements, info, moved, refers, referring })
}

/// Refuses a batch from which a segment would come that nobody could read.
fn check_batch(block_size: BlockSize, changes: &[(Extent, Payload)]) -> Result<(), EncodeError> {
    let mut end = BlockIndex(0);
    for (extent, payload) in changes {
        let Extent { start, count } = *extent;
        if start < end || count.0 == 0 || start.0 >= VOLUME_BLOCKS_MAX || count.0 > VOLUME_BLOCKS_MAX - start.0 {
            return Err(EncodeError::new(format!(
                "{count} blocks from block {start} after block {end}: no sorted batch"
            )));
        }
        if let Payload::Data(data) = payload
            && data.len() as u64 != block_size.bytes_in(count)
        {
            return Err(EncodeError::new(format!(
                "{} bytes of data for {count} blocks from block {start}",
                data.len()
            )));
        }
        end = extent.end();
    }
    Ok(())
}

/// The entries of the segment to be, with the data of each still in the pieces that it came in.
struct Plan<'r> {
    block_bytes: usize,
    /// What is stored already and was not reached yet, and what was.
    referred: &'r [Referred],
    runs: Vec<Run>,
    pieces: Vec<Bytes>,
}

/// Blocks of one kind; if they are data, one frame.
struct Run {
    extent: Extent,
    content: RunContent,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunContent {
    /// These of the plan's pieces, joined.
    Data {
        first_piece: usize,
        pieces: usize,
    },
    /// The same; what they hold is stored already, and this of the plan's places says where.
    Referred {
        first_piece: usize,
        pieces: usize,
        place: usize,
    },
    Zero,
    Hole,
}

impl<'r> Plan<'r> {
    fn of(block_size: BlockSize, changes: &[(Extent, Payload)], referred: &'r [Referred]) -> Plan<'r> {
        let block_bytes = block_size.bytes() as usize;
        let mut plan = Plan { block_bytes, referred, runs: Vec::with_capacity(changes.len()), pieces: Vec::new() };
        for (extent, payload) in changes {
            match payload {
                Payload::Data(data) => plan.push_data(extent.start, data),
                Payload::Zero => plan.push_blank(*extent, RunContent::Zero),
                Payload::Hole => plan.push_blank(*extent, RunContent::Hole),
            }
        }
        plan
    }

    /// All of it data, none of the runs across the end of a frame.
    fn of_data(block_size: BlockSize, data: &[(Extent, Bytes)]) -> Plan<'r> {
        let block_bytes = block_size.bytes() as usize;
        let mut plan = Plan { block_bytes, referred: &[], runs: Vec::with_capacity(data.len()), pieces: Vec::new() };
        for (extent, data) in data {
            let (mut at, mut rest) = (extent.start, data.clone());
            while !rest.is_empty() {
                let blocks = plan.blocks_to_cut(at).min(rest.len() / block_bytes);
                plan.push_piece(Extent::new(at.0, blocks as u64), rest.split_to(blocks * block_bytes));
                at = at + BlockCount(blocks as u64);
            }
        }
        plan
    }

    /// Splits data into runs that are all zero or all not, none of them across the end of a frame.
    fn push_data(&mut self, start: BlockIndex, data: &Bytes) {
        let (mut at, mut rest) = (start, data.clone());
        while !rest.is_empty() {
            let place = self.referred.partition_point(|referred| referred.extent.end() <= at);
            let next = self.referred.get(place).map(|referred| referred.extent);
            if let Some(stored) = next.filter(|stored| stored.start <= at) {
                let whole = Extent { start: at, count: BlockCount((rest.len() / self.block_bytes) as u64) };
                let most = (stored.end() - at).0.min(self.blocks_to_cut(at) as u64).min(whole.count.0);
                let extent = Extent { start: at, count: BlockCount(most) };
                self.pieces.push(rest.split_to(most as usize * self.block_bytes));
                let content = RunContent::Referred { first_piece: self.pieces.len() - 1, pieces: 1, place };
                self.push_referred(Run { extent, content });
                at = extent.end();
                continue;
            }
            let until = next.map_or(usize::MAX, |stored| (stored.start - at).0 as usize);
            let zero = is_zero(&rest[..self.block_bytes]);
            let blocks = rest
                .chunks_exact(self.block_bytes)
                .take(self.blocks_to_cut(at).min(until))
                .take_while(|block| is_zero(block) == zero)
                .count();
            let piece = rest.split_to(blocks * self.block_bytes);
            let extent = Extent::new(at.0, blocks as u64);
            match zero {
                true => self.push_blank(extent, RunContent::Zero),
                false => self.push_piece(extent, piece),
            }
            at = extent.end();
        }
    }

    /// How many blocks from `at` on may share a frame.
    fn blocks_to_cut(&self, at: BlockIndex) -> usize {
        let frame_blocks = u64::from(FRAME_BYTES_MAX) / self.block_bytes as u64;
        (frame_blocks - at.0 % frame_blocks) as usize
    }

    fn push_piece(&mut self, extent: Extent, piece: Bytes) {
        let starts_frame = extent.start.0.is_multiple_of(u64::from(FRAME_BYTES_MAX) / self.block_bytes as u64);
        self.pieces.push(piece);
        match self.runs.last_mut() {
            Some(Run { extent: last, content: RunContent::Data { pieces, .. } })
                if last.end() == extent.start && !starts_frame =>
            {
                last.count += extent.count;
                *pieces += 1;
            }
            _ => {
                let content = RunContent::Data { first_piece: self.pieces.len() - 1, pieces: 1 };
                self.runs.push(Run { extent, content });
            }
        }
    }

    /// A reference goes on across the changes that it came with, but not across the end of a frame.
    fn push_referred(&mut self, run: Run) {
        let starts_frame = run.extent.start.0.is_multiple_of(u64::from(FRAME_BYTES_MAX) / self.block_bytes as u64);
        let RunContent::Referred { place, .. } = run.content else { return };
        match self.runs.last_mut() {
            Some(Run { extent: last, content: RunContent::Referred { pieces, place: before, .. } })
                if last.end() == run.extent.start && *before == place && !starts_frame =>
            {
                last.count += run.extent.count;
                *pieces += 1;
            }
            _ => self.runs.push(run),
        }
    }

    /// The segments that it refers to, how many blocks of each, and the extents of which it does.
    fn refers(&self) -> (Vec<(Seq, u32)>, Vec<Extent>) {
        let (mut refers, mut referring) = (BTreeMap::<Seq, u32>::new(), Vec::new());
        for Run { extent, content } in &self.runs {
            let RunContent::Referred { place, .. } = content else { continue };
            referring.push(*extent);
            for part in self.referred[*place].within(extent) {
                *refers.entry(part.frame.seq).or_default() += u32::from(part.blocks);
            }
        }
        (refers.into_iter().collect(), referring)
    }

    fn push_blank(&mut self, extent: Extent, content: RunContent) {
        match self.runs.last_mut() {
            Some(last) if last.content == content && last.extent.end() == extent.start => {
                last.extent.count += extent.count;
            }
            _ => self.runs.push(Run { extent, content }),
        }
    }

    /// Large data in one piece is lent to the frames, if it may be.
    fn compress(&self, seq: Seq, compression: Compression, lends: bool) -> Result<(Vec<Entry>, Frames), EncodeError> {
        let lendable = |pieces: &[Bytes]| lends && matches!(pieces, [one] if one.len() >= LENT_BYTES_MIN);
        let data = || self.runs.iter().filter_map(|run| self.data_of(run));
        let raw_bytes = data().filter(|pieces| !lendable(pieces)).flatten().map(Bytes::len).sum();
        let mut frames = Frames::with_capacity(data().count(), raw_bytes, compression);
        let mut entries = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            if let RunContent::Referred { first_piece, pieces, place } = run.content {
                let parts = self.referred[place].within(&run.extent);
                let digest = reference::digest(&self.pieces[first_piece..first_piece + pieces]);
                let what = Reference { digest, parts }.encode(seq);
                let raw_len = run.extent.count.0 as usize * self.block_bytes;
                let kind = EntryKind::Data { stored_len: frames.push_reference(&what, raw_len)? };
                entries.push(Entry { extent: run.extent, kind });
                continue;
            }
            let kind = match (self.data_of(run), run.content) {
                (Some(pieces), _) if lendable(pieces) => EntryKind::Data { stored_len: frames.lend(&pieces[0])? },
                (Some(pieces), _) => EntryKind::Data { stored_len: frames.push(pieces)? },
                (None, RunContent::Hole) => EntryKind::Hole,
                (None, _) => EntryKind::Zero,
            };
            entries.push(Entry { extent: run.extent, kind });
        }
        Ok((entries, frames))
    }

    /// The pieces of a run of data.
    fn data_of(&self, run: &Run) -> Option<&[Bytes]> {
        match run.content {
            RunContent::Data { first_piece, pieces } => Some(&self.pieces[first_piece..first_piece + pieces]),
            RunContent::Referred { .. } | RunContent::Zero | RunContent::Hole => None,
        }
    }
}

static ZEROS: [u8; BlockSize::MAX as usize] = [0; BlockSize::MAX as usize];

/// Whether a block is all zero: a memcmp, after a look at the first byte, which settles most.
fn is_zero(block: &[u8]) -> bool {
    block.first() == Some(&0) && *block == ZEROS[..block.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::CorruptError;
    use crate::format::segment::{LogObject, Opened, decode_log_object, open_any, open_frame, verify_log_object};
    use crate::keyring::{Keyring, Locked};
    use crate::units::{FrameAddr, Location};
    use proptest::prelude::*;

    const SEQ: Seq = Seq(77);
    const SALT: Salt = [3; 16];

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(1), None)
    }

    fn stamp() -> Stamp {
        Stamp { epoch: Epoch(2), server: Uuid::from_u128(9), covers: ChangeNo(1234), compression: Compression::Lz4 }
    }

    proptest! {
        /// Each block is where it was written or refers to where it was said to be; nothing else changes.
        #[test]
        fn what_is_stored_already_is_referred_to_and_the_rest_is_there(
            pieces in prop::collection::vec((0u64..40, 1u64..60, prop::bool::weighted(0.8)), 1..8),
            runs in prop::collection::vec((0u64..30, 1u64..50), 0..8),
        ) {
            let block_size = BlockSize::default();
            let (mut at, mut changes, mut contents) = (0, Vec::new(), BTreeMap::new());
            for (gap, count, is_data) in pieces {
                at += gap;
                let block = |n: u64| vec![1 + (n % 250) as u8; block_size.bytes() as usize];
                let data = (at..at + count).flat_map(block).collect::<Vec<u8>>();
                changes.push((Extent::new(at, count), if is_data { Payload::Data(data.into()) } else { Payload::Zero }));
                contents.extend((at..at + count).map(|n| (n, is_data.then(|| block(n)))));
                at += count;
            }
            // Runs of data, each in a segment of its own, in frames of twenty blocks.
            let (mut from, mut referred, mut places) = (0, Vec::new(), BTreeMap::new());
            for (no, (gap, most)) in runs.into_iter().enumerate() {
                from += gap;
                let is_data = |n: &u64| matches!(contents.get(n), Some(Some(_)));
                let count = (from..from + most).take_while(is_data).count() as u64;
                if count == 0 {
                    continue;
                }
                let part = |first: u64| Part {
                    frame: FrameAddr { seq: Seq(no as u64 + 1), offset: first as u32 * 100, len: 50 },
                    salt: [no as u8; 16],
                    block: 3,
                    blocks: (count - first).min(20) as u8,
                };
                let parts: Vec<Part> = (0..count).step_by(20).map(part).collect();
                let each = parts.iter().flat_map(|part| (0..part.blocks).map(|n| (part.frame, part.block + n)));
                places.extend((from..).zip(each));
                referred.push(Referred { extent: Extent::new(from, count), parts });
                from += count;
            }
            let encoded = encode_referring(&sealer(), SEQ, SALT, block_size, &stamp(), &changes, &referred).unwrap();
            let bytes = Bytes::from(encoded.object.parts.concat());
            verify_log_object(&sealer(), block_size, SEQ, &bytes).unwrap();
            let read = decode_log_object(&sealer(), SEQ, &bytes).unwrap().whole(bytes.len()).unwrap();
            let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
            prop_assert_eq!(head.refers.iter().map(|(_, blocks)| u64::from(*blocks)).sum::<u64>(), places.len() as u64);
            prop_assert_eq!(&*head.refers, &encoded.refers);
            let mut found = 0;
            for (extent, frame) in head.frames(SEQ, read.frames_at) {
                let sealed = bytes.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
                let of = (extent.start.0..extent.end().0).map(|n| contents[&n].clone().unwrap()).collect::<Vec<_>>();
                found += extent.count.0;
                match open_any(&read.key, frame, &sealed).unwrap() {
                    Opened::Data(data) => {
                        prop_assert_eq!(&data[..], &of.concat()[..]);
                        prop_assert!((extent.start.0..extent.end().0).all(|n| !places.contains_key(&n)));
                        prop_assert!(!encoded.referring.contains(&extent));
                    }
                    Opened::Reference(len, reference) => {
                        prop_assert_eq!(reference.digest, super::reference::digest(&of));
                        prop_assert_eq!(u64::from(len), block_size.bytes_in(extent.count));
                        let each = reference.parts.iter().flat_map(|part| (0..part.blocks).map(|n| (part.frame, part.block + n)));
                        let expected = (extent.start.0..extent.end().0).map(|n| places[&n]);
                        prop_assert!(each.eq(expected), "{:?}", reference);
                        prop_assert!(encoded.referring.contains(&extent));
                    }
                }
            }
            prop_assert_eq!(found, contents.values().flatten().count() as u64);
        }
    }

    fn encode_batch(block_size: BlockSize, changes: &[(Extent, Payload)]) -> EncodedSegment {
        encode_segment(&sealer(), SEQ, SALT, block_size, &stamp(), changes).unwrap()
    }

    fn bytes_of(segment: &EncodedSegment) -> Bytes {
        segment.object.parts.concat().into()
    }

    /// The content of each block, the dumbest way: `None` is a hole, and zero is bytes of zero.
    fn model(block_size: BlockSize, changes: &[(Extent, Payload)]) -> BTreeMap<u64, Option<Vec<u8>>> {
        let bytes = block_size.bytes() as usize;
        let mut blocks = BTreeMap::new();
        for (extent, payload) in changes {
            for i in 0..extent.count.0 {
                let content = match payload {
                    Payload::Data(data) => Some(data[i as usize * bytes..][..bytes].to_vec()),
                    Payload::Zero => Some(vec![0; bytes]),
                    Payload::Hole => None,
                };
                blocks.insert(extent.start.0 + i, content);
            }
        }
        blocks
    }

    /// The same, read back from an object. Checks on the way that no stored block is all zero.
    fn read_back(block_size: BlockSize, bytes: &Bytes) -> BTreeMap<u64, Option<Vec<u8>>> {
        let block_bytes = block_size.bytes() as usize;
        let read = decode_log_object(&sealer(), SEQ, bytes).unwrap().whole(bytes.len()).unwrap();
        let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
        let mut blocks = BTreeMap::new();
        for (extent, placement) in head.placements(SEQ, read.frames_at) {
            let data = match placement {
                Placement::Data(Location { frame, block }) => {
                    assert_eq!(block, 0);
                    let sealed = bytes.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
                    let len = block_size.bytes_in(extent.count) as u32;
                    let data = open_frame(&sealer(), &read.salt, frame, len, &sealed).unwrap();
                    assert!(data.chunks(block_bytes).all(|block| block.iter().any(|byte| *byte != 0)));
                    Some(data)
                }
                Placement::Zero => Some(vec![0; extent.count.0 as usize * block_bytes].into()),
                Placement::Hole => None,
            };
            for i in 0..extent.count.0 {
                let at = i as usize * block_bytes;
                blocks.insert(extent.start.0 + i, data.as_ref().map(|data| data[at..at + block_bytes].to_vec()));
            }
        }
        blocks
    }

    /// Batches over some hundred blocks: gaps or none, zero blocks in the middle of data.
    fn batch() -> impl Strategy<Value = (BlockSize, Vec<(Extent, Payload)>)> {
        let block_size = prop_oneof![Just(512u64), Just(4096), Just(65536)].prop_map(|b| BlockSize::new(b).unwrap());
        let payload = prop_oneof![
            3 => prop::collection::vec(0u8..4, 1..20).prop_map(Some),
            1 => Just(None),
        ];
        let item = (prop_oneof![Just(0u64), 1u64..40], payload, 1u64..30, any::<bool>());
        (block_size, prop::collection::vec(item, 0..12)).prop_map(|(block_size, items)| {
            let mut end = 0;
            let to_change = |(gap, data, blank_count, hole): (u64, Option<Vec<u8>>, u64, bool)| {
                let count = data.as_ref().map_or(blank_count, |fills| fills.len() as u64);
                let extent = Extent::new(end + gap, count);
                end = extent.end().0;
                let payload = match data {
                    Some(fills) => {
                        Payload::Data(fills.iter().flat_map(|fill| vec![*fill; block_size.bytes() as usize]).collect())
                    }
                    None if hole => Payload::Hole,
                    None => Payload::Zero,
                };
                (extent, payload)
            };
            (block_size, items.into_iter().map(to_change).collect())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_batch_comes_back_block_for_block((block_size, changes) in batch()) {
            let segment = encode_batch(block_size, &changes);
            let bytes = bytes_of(&segment);
            prop_assert_eq!(bytes.len() as u64, segment.object.total);
            prop_assert_eq!(read_back(block_size, &bytes), model(block_size, &changes));
        }

        #[test]
        fn the_writer_applies_what_recovery_finds((block_size, changes) in batch()) {
            let segment = encode_batch(block_size, &changes);
            let bytes = bytes_of(&segment);
            let read = decode_log_object(&sealer(), SEQ, &bytes).unwrap().whole(bytes.len()).unwrap();
            let LogObject::Segment(head) = read.object else { panic!("not a segment") };
            prop_assert_eq!(head.placements(SEQ, read.frames_at), segment.placements);
            prop_assert_eq!(head.info(read.salt, read.frames_at), segment.info);
            prop_assert_eq!(segment.info.stored_bytes, segment.object.total);
            let frames: Vec<_> = head.frames(SEQ, read.frames_at).iter().map(|(_, at)| (at.offset, at.len)).collect();
            prop_assert_eq!(frames, segment.object.frames);
            prop_assert_eq!((head.epoch, head.server, head.covers), (Epoch(2), Uuid::from_u128(9), ChangeNo(1234)));
        }

        #[test]
        fn neighbours_are_joined_up_to_multiples_of_64_kib((block_size, changes) in batch()) {
            let segment = encode_batch(block_size, &changes);
            let frame_blocks = 65536 / u64::from(block_size.bytes());
            for pair in segment.placements.windows(2) {
                let [(a, left), (b, right)] = pair else { unreachable!() };
                prop_assert!(a.end() <= b.start);
                let kind = std::mem::discriminant::<Placement>;
                if a.end() == b.start && kind(left) == kind(right) {
                    prop_assert!(matches!(left, Placement::Data(_)));
                    prop_assert_eq!(b.start.0 % frame_blocks, 0);
                }
            }
            for (extent, placement) in &segment.placements {
                if matches!(placement, Placement::Data(_)) {
                    prop_assert!(extent.start.0 % frame_blocks + extent.count.0 <= frame_blocks);
                }
            }
        }
    }

    fn data(blocks: usize, fill: u8) -> Payload {
        Payload::Data(vec![fill; blocks * 4096].into())
    }

    #[test]
    fn a_megabyte_of_zeros_is_mapped_and_not_stored() {
        let segment = encode_batch(BlockSize::default(), &[(Extent::new(3, 256), data(256, 0))]);
        assert_eq!(segment.placements, [(Extent::new(3, 256), Placement::Zero)]);
        assert_eq!((segment.info.blocks, segment.object.frames.len()), (0, 0));
        assert_eq!(segment.object.parts.len(), 1);
    }

    #[test]
    fn a_block_that_is_zero_but_for_its_last_byte_is_stored() {
        let mut block = vec![0; 4096];
        block[4095] = 1;
        let segment = encode_batch(BlockSize::default(), &[(Extent::new(0, 1), Payload::Data(block.into()))]);
        assert!(matches!(segment.placements[..], [(_, Placement::Data(_))]));
        assert_eq!(segment.info.blocks, 1);
    }

    #[test]
    fn two_writes_into_one_64_kib_share_a_frame() {
        let changes = [(Extent::new(17, 2), data(2, 1)), (Extent::new(19, 3), data(3, 2))];
        let segment = encode_batch(BlockSize::default(), &changes);
        assert_eq!(segment.placements.len(), 1);
        assert_eq!(segment.placements[0].0, Extent::new(17, 5));
    }

    /// Of an encrypted volume nothing may go as it lies, and what was moved may be a small part of the memory in which it came.
    #[test]
    fn only_plain_data_of_clients_is_lent() {
        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let (noise, extent) = (Bytes::from(noise), Extent::new(16, 16));
        let keyring = Keyring::new((1, Locked::take(&mut [3; 32])), [], None);
        let encrypted = Sealer::new(Uuid::from_u128(1), Some(keyring));
        let of_client = |sealer: &Sealer| {
            let changes = [(extent, Payload::Data(noise.clone()))];
            encode_segment(sealer, SEQ, sealer.salt(SALT), BlockSize::default(), &stamp(), &changes).unwrap()
        };
        let moved = [(extent, noise.clone())];
        let moved = encode_moved(
            &sealer(),
            SEQ,
            SALT,
            BlockSize::default(),
            &stamp(),
            &moved,
            Moved { as_of: Seq(3), cargo: None },
        )
        .unwrap();
        let is_lent = |segment: EncodedSegment| {
            segment.object.parts.iter().any(|part| noise.as_ptr_range().contains(&part.as_ptr()))
        };
        assert!(is_lent(of_client(&sealer())));
        assert!(!is_lent(of_client(&encrypted)) && !is_lent(moved));
    }

    #[test]
    fn a_trim_of_the_whole_largest_volume_is_one_entry() {
        let segment = encode_batch(BlockSize::new(512).unwrap(), &[(Extent::new(0, VOLUME_BLOCKS_MAX), Payload::Hole)]);
        assert_eq!(segment.placements, [(Extent::new(0, VOLUME_BLOCKS_MAX), Placement::Hole)]);
        assert!(segment.object.total < 100);
    }

    #[test]
    fn a_batch_that_nobody_could_read_is_refused() {
        let refused = |changes: &[(Extent, Payload)]| {
            encode_segment(&sealer(), SEQ, SALT, BlockSize::default(), &stamp(), changes).unwrap_err().to_string()
        };
        let hole = |start, count| (Extent::new(start, count), Payload::Hole);
        assert_eq!(
            refused(&[hole(5, 2), hole(6, 1)]),
            "cannot be encoded: 1 blocks from block 6 after block 7: no sorted batch"
        );
        assert!(refused(&[hole(5, 0)]).contains("no sorted batch"));
        assert!(refused(&[hole(VOLUME_BLOCKS_MAX, 1)]).contains("no sorted batch"));
        assert!(refused(&[hole(1, u64::MAX)]).contains("no sorted batch"));
        assert_eq!(
            refused(&[(Extent::new(5, 3), data(2, 1))]),
            "cannot be encoded: 8192 bytes of data for 3 blocks from block 5"
        );
    }

    #[test]
    fn a_segment_in_another_place_or_volume_does_not_verify() {
        let bytes = bytes_of(&encode_batch(BlockSize::default(), &[(Extent::new(0, 1), data(1, 1))]));
        let verify = |sealer: &Sealer, seq| verify_log_object(sealer, BlockSize::default(), seq, &bytes).map(|_| ());
        assert_eq!(verify(&sealer(), SEQ), Ok(()));
        assert_eq!(verify(&sealer(), Seq(78)), Err(CorruptError::TagMismatch));
        assert_eq!(verify(&Sealer::new(Uuid::from_u128(2), None), SEQ), Err(CorruptError::TagMismatch));
    }
}
