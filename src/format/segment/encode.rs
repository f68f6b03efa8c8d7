//! Sealing: a batch of changes becomes a segment object. This is the CPU-heavy part (comparing, compressing, hashing),
//! to be called through [`crate::outside::Workers`].
//!
//! 1. Blocks that are all zero are mapped as zero instead of being stored (older kernels zero by writing zeros).
//! 2. Neighbours of one kind are joined, across the changes that they came with.
//! 3. Data is cut into frames at multiples of 64 KiB *of the volume*, so that an overwrite of a range lines up with
//!    the frames of the earlier write and kills them whole.
//! 4. Frames are compressed, then everything is sealed.

use bytes::Bytes;
use uuid::Uuid;

use super::head::{Entry, EntryKind, SegmentHead};
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
    check_batch(block_size, changes)?;
    encode_plan(sealer, seq, salt, stamp, Plan::of(block_size, changes), None)
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
    let (entries, frames) = plan.compress(stamp.compression, lends)?;
    let Stamp { epoch, server, covers, .. } = *stamp;
    let as_of = moved.as_ref().map(|moved| moved.as_of);
    let cargo = moved.as_ref().and_then(|moved| moved.cargo.clone());
    let head = SegmentHead { epoch, server, covers, entries, as_of, cargo };
    let head_bytes = head.encode();
    let object = match head.version() {
        Some(version) => encode_as(sealer, ObjectKind::Segment, version, seq, salt, &head_bytes, frames)?,
        None => encode(sealer, ObjectKind::Segment, seq, salt, &head_bytes, frames)?,
    };
    let (placements, info) = (head.placements(seq, object.frames_at), head.info(salt, object.frames_at));
    Ok(EncodedSegment { object, placements, info, moved })
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
struct Plan {
    block_bytes: usize,
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
    Zero,
    Hole,
}

impl Plan {
    fn of(block_size: BlockSize, changes: &[(Extent, Payload)]) -> Plan {
        let block_bytes = block_size.bytes() as usize;
        let mut plan = Plan { block_bytes, runs: Vec::with_capacity(changes.len()), pieces: Vec::new() };
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
    fn of_data(block_size: BlockSize, data: &[(Extent, Bytes)]) -> Plan {
        let block_bytes = block_size.bytes() as usize;
        let mut plan = Plan { block_bytes, runs: Vec::with_capacity(data.len()), pieces: Vec::new() };
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
            let zero = is_zero(&rest[..self.block_bytes]);
            let blocks = rest
                .chunks_exact(self.block_bytes)
                .take(self.blocks_to_cut(at))
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

    fn push_blank(&mut self, extent: Extent, content: RunContent) {
        match self.runs.last_mut() {
            Some(last) if last.content == content && last.extent.end() == extent.start => {
                last.extent.count += extent.count;
            }
            _ => self.runs.push(Run { extent, content }),
        }
    }

    /// Large data in one piece is lent to the frames, if it may be.
    fn compress(&self, compression: Compression, lends: bool) -> Result<(Vec<Entry>, Frames), EncodeError> {
        let lendable = |pieces: &[Bytes]| lends && matches!(pieces, [one] if one.len() >= LENT_BYTES_MIN);
        let data = || self.runs.iter().filter_map(|run| self.data_of(run));
        let raw_bytes = data().filter(|pieces| !lendable(pieces)).flatten().map(Bytes::len).sum();
        let mut frames = Frames::with_capacity(data().count(), raw_bytes, compression);
        let mut entries = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
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
            RunContent::Zero | RunContent::Hole => None,
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
    use crate::format::segment::{LogObject, decode_log_object, open_frame, verify_log_object};
    use crate::keyring::{Keyring, Locked};
    use crate::units::Location;
    use proptest::prelude::*;

    const SEQ: Seq = Seq(77);
    const SALT: Salt = [3; 16];

    fn sealer() -> Sealer {
        Sealer::new(Uuid::from_u128(1), None)
    }

    fn stamp() -> Stamp {
        Stamp { epoch: Epoch(2), server: Uuid::from_u128(9), covers: ChangeNo(1234), compression: Compression::Lz4 }
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
