//! The way of a change: write buffer, slots of the log, and the map of what is committed. Pure.
//!
//! ```text
//!  accept ─→ active buffer ─freeze→ frozen batches ─next_upload→ under way (≤ W) ─commit, in order→ map
//!  change:   newest                 waiting             have a seq                                   oldest
//!                                        moved data ─next_move→ ↑
//! ```
//!
//! A read looks from left to right and takes what it finds first.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::change::{Change, Numbered};
use crate::device::Allocation;
use crate::engine::buffer::WriteBuffer;
use crate::format::segment::{Moved, Payload};
use crate::map::{ExtentMap, NeedPages, PageAt, Placement, SegmentInfo};
use crate::part::Owner;
use crate::units::{BlockCount, BlockSize, ChangeNo, Extent, FrameAddr, Location, Seq};

/// So many times `segment_size` is in a segment at most, if uploads keep it waiting or it is moved data.
pub(crate) const LARGE: u64 = 2;

/// A run of accepted changes that will be one segment.
#[derive(Debug)]
pub struct Batch {
    /// The changes, coalesced.
    pub buffer: WriteBuffer,
    /// The last change in it: with its commit, every change up to this one is in the store.
    pub covers: ChangeNo,
}

/// What a piece of a read is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Data or zero that is not in the store yet, and the memory that it keeps; a hole reads as zero.
    Held(Payload, Owner),
    /// Allocated zero, by the map.
    Zero,
    /// Nothing, by the map: zero, or in a clone what its parent has.
    Hole,
    /// Blocks of a frame, from this location on.
    Frame(Location, [u8; 16]),
}

/// What the first block of an extent is, and the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// A change that is not in the map yet.
    Held(Allocation),
    /// What the map says; of what is carried, the place where it was before.
    Placed(Placement),
}

impl First {
    fn allocation(self) -> Allocation {
        match self {
            First::Held(allocation) => allocation,
            First::Placed(placement) => placement.allocation(),
        }
    }
}

/// What is not known yet of a read.
#[derive(Debug, Default)]
pub struct Lacking {
    /// Pages without which it cannot be planned.
    pub pages: BTreeSet<PageAt>,
    /// Frames that it will need: all that is not known of them is what opens them.
    pub frames: Vec<FrameAddr>,
}

impl From<Lacking> for NeedPages {
    fn from(lacking: Lacking) -> NeedPages {
        NeedPages(lacking.pages.into_iter().collect())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    block_size: BlockSize,
    /// The map of what is committed.
    pub map: ExtentMap,
    active: WriteBuffer,
    /// Batches that wait for a slot, oldest first.
    frozen: VecDeque<Arc<Batch>>,
    /// What has a slot and is under way, in the order of the log; nothing for a segment of moved data.
    under_way: VecDeque<Option<Arc<Batch>>>,
    /// The last slot went to a segment of moved data.
    moved_last: bool,
    /// The last accepted change.
    last: ChangeNo,
    /// The last change that is committed.
    covers: ChangeNo,
    /// The last slot of the log that took effect.
    committed: Seq,
    /// The slot that the next segment takes.
    next_seq: Seq,
    /// Bytes of segments that took effect since the last checkpoint.
    bytes_since_checkpoint: u64,
    /// The slot that the last checkpoint covers.
    checkpointed: Seq,
    /// All changes up to here are to be uploaded without waiting for more.
    wanted: ChangeNo,
    /// Ranges whose partial blocks are being completed.
    completing: Vec<Extent>,
    readers: Readers,
}

/// Where an open volume begins: what recovery found.
#[derive(Debug)]
pub struct Origin {
    /// The map after the last slot.
    pub map: ExtentMap,
    /// The last change in it.
    pub covers: ChangeNo,
    /// The last slot of the log: our fence.
    pub committed: Seq,
    /// The slot at which our epoch continues.
    pub next_seq: Seq,
    /// The slot that the newest checkpoint covers; 0 if there is none.
    pub checkpointed: Seq,
    /// Bytes of segments after that checkpoint.
    pub bytes_since_checkpoint: u64,
}

impl Log {
    /// That of a volume that was just opened.
    pub fn new(block_size: BlockSize, origin: Origin) -> Log {
        Log {
            block_size,
            map: origin.map,
            active: WriteBuffer::new(block_size),
            frozen: VecDeque::new(),
            under_way: VecDeque::new(),
            moved_last: false,
            last: origin.covers,
            covers: origin.covers,
            committed: origin.committed,
            next_seq: origin.next_seq,
            bytes_since_checkpoint: origin.bytes_since_checkpoint,
            checkpointed: origin.checkpointed,
            wanted: ChangeNo(0),
            completing: Vec::new(),
            readers: Readers::default(),
        }
    }

    /// Takes a change into the buffer and numbers it. Freezes the buffer when it is full.
    pub fn accept(&mut self, change: Change, segment_size: u64) -> Numbered {
        self.last = self.last.next();
        self.active.insert(self.last, change.clone());
        if self.is_full(segment_size) {
            self.freeze();
        }
        Numbered { no: self.last, change }
    }

    /// Whether the buffer is worth a segment. Behind another one that is under way, or waits, it would hardly be committed
    /// sooner, and a request is saved by filling it up further.
    pub fn is_full(&self, segment_size: u64) -> bool {
        let size = if self.uploading() + self.waiting() > 0 { LARGE * segment_size } else { segment_size };
        // Data that was overwritten in the buffer still takes memory: it counts, but less.
        self.active.data_bytes() >= size || self.active.accepted_bytes() >= 4 * segment_size
    }

    /// The last accepted change.
    pub fn last(&self) -> ChangeNo {
        self.last
    }

    /// The last committed change.
    pub fn covers(&self) -> ChangeNo {
        self.covers
    }

    /// The last slot that took effect.
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// The slot of the next segment.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Whether that slot was given out, and what it is for did not take effect yet.
    pub fn is_under_way(&self, seq: Seq) -> bool {
        seq < self.next_seq && self.oldest_slot().is_some_and(|oldest| seq >= oldest)
    }

    /// The slot of the oldest segment under way: they have neighbouring ones.
    pub fn oldest_slot(&self) -> Option<Seq> {
        (!self.under_way.is_empty()).then(|| Seq(self.next_seq.0 - self.under_way.len() as u64))
    }

    /// Asks for all changes up to `no` to be uploaded at once.
    pub fn want(&mut self, no: ChangeNo) {
        self.wanted = self.wanted.max(no);
    }

    /// Whether the buffer holds changes that somebody waits for.
    pub fn is_wanted(&self) -> bool {
        !self.active.is_empty() && self.wanted > self.frozen.back().map_or(self.assigned(), |batch| batch.covers)
    }

    /// Whether somebody waits for changes that have no slot yet.
    pub fn is_waited_for(&self) -> bool {
        self.wanted > self.assigned()
    }

    /// Whether a change waits in the buffer.
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Whether a change has no slot yet.
    pub fn has_changes(&self) -> bool {
        self.has_active() || self.waiting() > 0
    }

    /// Whether everything that was accepted took effect, wherever it stood on its way, and a checkpoint covers it.
    pub fn is_drained(&self) -> bool {
        self.covers == self.last && self.under_way.is_empty() && !self.needs_checkpoint()
    }

    /// Makes a batch of what the buffer holds.
    pub fn freeze(&mut self) {
        if !self.active.is_empty() {
            let buffer = std::mem::replace(&mut self.active, WriteBuffer::new(self.block_size));
            self.frozen.push_back(Arc::new(Batch { covers: buffer.last(), buffer }));
        }
    }

    /// Makes a batch without a change: it takes a slot of the log, which a checkpoint can stand for.
    pub fn mark(&mut self) {
        let covers = self.frozen.back().map_or(self.assigned(), |batch| batch.covers);
        self.frozen.push_back(Arc::new(Batch { covers, buffer: WriteBuffer::new(self.block_size) }));
    }

    /// The next batch to upload and the slot it takes, unless there is none of either: see [`Log::has_slot`].
    pub fn next_upload(&mut self, window: u32, share: u32) -> Option<(Seq, Arc<Batch>)> {
        if !self.has_slot(window, share) {
            return None;
        }
        let batch = self.frozen.pop_front()?;
        self.under_way.push_back(Some(batch.clone()));
        self.moved_last = false;
        Some((self.take_slot(), batch))
    }

    /// Whether a batch may be put under way: fewer than `window` segments are, fewer than `share` of them batches.
    pub fn has_slot(&self, window: u32, share: u32) -> bool {
        self.under_way.len() < window as usize && self.under_way.len() - self.moving() < share as usize
    }

    /// Segments of moved data under way.
    fn moving(&self) -> usize {
        self.under_way.iter().filter(|batch| batch.is_none()).count()
    }

    /// Whether the last slot went to a segment of moved data.
    pub fn moved_last(&self) -> bool {
        self.moved_last
    }

    /// A slot for a segment of moved data and the last change before it, unless `window` segments are under way,
    /// `moves` of them such ones.
    pub fn next_move(&mut self, window: u32, moves: u32) -> Option<(Seq, ChangeNo)> {
        if self.under_way.len() >= window as usize || self.moving() >= moves as usize {
            return None;
        }
        let covers = self.assigned();
        self.moved_last = true;
        self.under_way.push_back(None);
        Some((self.take_slot(), covers))
    }

    fn take_slot(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        seq
    }

    /// The last change that has a slot.
    fn assigned(&self) -> ChangeNo {
        self.under_way.iter().rev().flatten().next().map_or(self.covers, |batch| batch.covers)
    }

    /// Segments under way.
    pub fn uploading(&self) -> usize {
        self.under_way.len()
    }

    /// Bytes of data in the batches under way.
    pub fn uploading_bytes(&self) -> u64 {
        self.under_way.iter().flatten().map(|batch| batch.buffer.data_bytes()).sum()
    }

    /// Batches that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.frozen.len()
    }

    /// The batch that the oldest upload brings; none if it is moved data.
    pub fn oldest_upload(&self) -> Option<Arc<Batch>> {
        self.under_way.front().cloned().flatten()
    }

    /// The oldest upload is in the store: it takes effect, after `done` of what it places up to `at_most` more. Returns the bytes that its changes no
    /// longer hold; nothing as long as a part of it is left. Until all of it took effect reads find it where it was, and no checkpoint may begin.
    pub fn commit(
        &mut self,
        (seq, info): (Seq, SegmentInfo),
        placements: &[(Extent, Placement)],
        moved: Option<&Moved>,
        done: &mut usize,
        at_most: usize,
    ) -> Result<Option<u64>, NeedPages> {
        match moved {
            Some(Moved { cargo: Some(cargo), .. }) => self.map.carry(seq, info, cargo)?,
            moved => {
                let until = placements.len().min(*done + at_most);
                let born = (*done == 0).then_some((seq, info));
                self.map.apply_part(born, &placements[*done..until], moved.map(|moved| moved.as_of))?;
                *done = until;
                if until < placements.len() {
                    return Ok(None);
                }
            }
        }
        self.committed = seq;
        self.bytes_since_checkpoint += info.stored_bytes;
        let Some(Some(batch)) = self.under_way.pop_front() else { return Ok(Some(0)) };
        self.covers = batch.covers;
        Ok(Some(batch.buffer.accepted_bytes()))
    }

    /// A plan for reading `extent`: its pieces in order, without gaps.
    pub fn plan_read(&mut self, extent: Extent) -> Result<Vec<(Extent, Piece)>, Lacking> {
        let (mut pieces, mut lacking) = (Vec::new(), Lacking::default());
        let mut unknown = vec![extent];
        let sealed = self.frozen.iter().rev().chain(self.under_way.iter().rev().flatten());
        let layers = std::iter::once(&self.active).chain(sealed.map(|batch| &batch.buffer));
        for layer in layers {
            let mut deeper = Vec::new();
            for part in unknown {
                let held = |part, payload, owner| pieces.push((part, Piece::Held(payload, owner)));
                layer.lookup(part, held, |part| deeper.push(part));
            }
            unknown = deeper;
            if unknown.is_empty() {
                break;
            }
        }
        for part in unknown {
            match self.map.lookup(part) {
                Ok(placed) => placed.into_iter().for_each(|(part, placement)| match self.mapped(placement) {
                    Ok(piece) => pieces.push((part, piece)),
                    Err((NeedPages(pages), frame)) => {
                        lacking.pages.extend(pages);
                        lacking.frames.push(frame);
                    }
                }),
                Err(NeedPages(pages)) => lacking.pages.extend(pages),
            }
        }
        if !lacking.pages.is_empty() {
            return Err(lacking);
        }
        pieces.sort_unstable_by_key(|(part, _)| part.start);
        Ok(pieces)
    }

    /// How many blocks of an extent, from its first on, lie in the store as one stream was written: in frames one behind the other, and from the
    /// end of a segment on in the next one. Where pages of the map are missing it is not known: none.
    pub fn written_together(&mut self, extent: Extent) -> u64 {
        let pieces = self.plan_read(extent).unwrap_or_default();
        let frames = pieces.iter().map_while(|(part, piece)| match piece {
            Piece::Frame(place, _) => Some((part.count.0, place.frame)),
            Piece::Held(..) | Piece::Zero | Piece::Hole => None,
        });
        let mut last: Option<FrameAddr> = None;
        let follows = |frame: &FrameAddr, last: FrameAddr| {
            *frame == last
                || frame.seq == last.seq && frame.offset == last.offset + last.len
                || frame.seq.0 == last.seq.0 + 1
        };
        frames
            .take_while(|(_, frame)| last.replace(*frame).is_none_or(|last| follows(frame, last)))
            .map(|(len, _)| len)
            .sum()
    }

    /// What is known of the first block of `extent`, and for how many blocks of it from there on, one at least, without looking
    /// further. The extent is not empty. It looks as [`Log::plan_read`] does: what is zero here reads as zero.
    pub fn first_run(&mut self, extent: Extent) -> Result<(BlockCount, Allocation), NeedPages> {
        let (count, first) = self.first(extent)?;
        Ok((count, first.allocation()))
    }

    /// As [`Log::first_run`], and where it lies.
    pub fn first(&mut self, extent: Extent) -> Result<(BlockCount, First), NeedPages> {
        let mut part = extent;
        let sealed = self.frozen.iter().rev().chain(self.under_way.iter().rev().flatten());
        for layer in std::iter::once(&self.active).chain(sealed.map(|batch| &batch.buffer)) {
            let (count, held) = layer.first(part);
            if let Some(payload) = held {
                return Ok((count, First::Held(allocation_of(payload))));
            }
            part.count = count;
        }
        let (count, placement) = self.map.first(part)?;
        Ok((count, First::Placed(placement)))
    }

    /// Begins to complete partial blocks of `extent`, unless somebody else does in it.
    pub fn begin_completing(&mut self, extent: Extent) -> bool {
        let free = self.is_free(extent);
        if free {
            self.completing.push(extent);
        }
        free
    }

    /// Whether nobody completes partial blocks in `extent`.
    pub fn is_free(&self, extent: Extent) -> bool {
        !self.completing.iter().any(|other| other.overlaps(&extent))
    }

    /// The partial blocks of `extent` are complete, or given up.
    pub fn end_completing(&mut self, extent: Extent) {
        if let Some(at) = self.completing.iter().position(|other| *other == extent) {
            self.completing.swap_remove(at);
        }
    }

    /// Reads under way.
    pub fn readers(&mut self) -> &mut Readers {
        &mut self.readers
    }

    /// Bytes of segments since the last checkpoint.
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.bytes_since_checkpoint
    }

    /// Whether a slot took effect that no checkpoint covers.
    pub fn needs_checkpoint(&self) -> bool {
        self.committed > self.checkpointed
    }

    /// The slot that the newest checkpoint covers.
    pub fn checkpointed(&self) -> Seq {
        self.checkpointed
    }

    /// A checkpoint as of `seq` is durable; `bytes` of segments took effect after it.
    pub fn checkpoint_done(&mut self, seq: Seq, bytes_at_snapshot: u64) {
        self.checkpointed = seq;
        self.bytes_since_checkpoint -= bytes_at_snapshot.min(self.bytes_since_checkpoint);
    }

    /// Bytes accepted and not committed.
    pub fn dirty_bytes(&self) -> u64 {
        let sealed = self.frozen.iter().chain(self.under_way.iter().flatten());
        self.active.accepted_bytes() + sealed.map(|batch| batch.buffer.accepted_bytes()).sum::<u64>()
    }

    fn mapped(&self, placement: Placement) -> Result<Piece, (NeedPages, FrameAddr)> {
        Ok(match placement {
            Placement::Zero => Piece::Zero,
            Placement::Hole => Piece::Hole,
            Placement::Data(location) => {
                let salt = self.map.salt(location.frame.seq).map_err(|need| (need, location.frame))?;
                // A segment that the map points to is in the table; were it not, no salt would open the frame.
                Piece::Frame(location, salt.unwrap_or_default())
            }
        })
    }
}

fn allocation_of(payload: &Payload) -> Allocation {
    match payload {
        Payload::Data(_) => Allocation::Data,
        Payload::Zero => Allocation::Zero,
        Payload::Hole => Allocation::Hole,
    }
}

/// Reads under way, in the order in which they were planned: an object may go only when every read that was planned
/// before it died has ended (rule R7).
#[derive(Debug, Default)]
pub struct Readers {
    next: u64,
    active: BTreeSet<u64>,
}

impl Readers {
    /// A read was planned.
    pub fn begin(&mut self) -> u64 {
        self.next += 1;
        self.active.insert(self.next);
        self.next
    }

    /// It ended.
    pub fn end(&mut self, ticket: u64) {
        self.active.remove(&ticket);
    }

    /// A line: reads planned up to now are before it.
    pub fn line(&self) -> u64 {
        self.next
    }

    /// Whether every read before the line has ended.
    pub fn passed(&self, line: u64) -> bool {
        self.active.first().is_none_or(|&oldest| oldest > line)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SEGMENT: u64 = 8192;

    fn new_log() -> Log {
        let block_size = BlockSize::new(4096).unwrap();
        let origin = Origin {
            map: ExtentMap::new(crate::units::BlockCount(1 << 20)),
            covers: ChangeNo(0),
            committed: Seq(1),
            next_seq: Seq(2),
            checkpointed: Seq(0),
            bytes_since_checkpoint: 0,
        };
        Log::new(block_size, origin)
    }

    fn write(log: &mut Log, block: u64) {
        log.accept(Change::Write(Extent::new(block, 1), Bytes::from(vec![1; 4096])), SEGMENT);
    }

    #[test]
    fn a_batch_fills_up_further_while_others_are_under_way() {
        let mut log = new_log();
        let mut sealed = Vec::new();
        for block in 0..20 {
            write(&mut log, block);
            if let Some((_, batch)) = log.next_upload(8, 8) {
                sealed.push(batch.buffer.data_bytes() / 4096);
            }
        }
        assert_eq!(sealed, [2, 4, 4, 4, 4]);
        assert!(!log.is_full(4 * SEGMENT));
    }

    /// What is newest counts, wherever it stands on its way, and hides what is below it no further than it reaches.
    #[test]
    fn the_first_run_is_what_a_read_would_find() {
        let mut log = new_log();
        let first = |log: &mut Log, from: u64| {
            let (count, allocation) = log.first_run(Extent::new(from, 8 - from)).unwrap();
            (count.0, allocation)
        };
        assert_eq!(first(&mut log, 0), (8, Allocation::Hole));
        (0..4).for_each(|block| write(&mut log, block));
        log.freeze();
        let (seq, _) = log.next_upload(8, 8).unwrap();
        log.accept(Change::Hole(Extent::new(0, 1)), SEGMENT);
        log.freeze();
        log.accept(Change::Zero(Extent::new(2, 1)), SEGMENT);
        for stage in ["under way", "committed"] {
            let runs = [0, 1, 2, 3, 4].map(|from| first(&mut log, from));
            let holds = [Allocation::Hole, Allocation::Data, Allocation::Zero, Allocation::Data, Allocation::Hole];
            assert_eq!(runs.map(|run| run.1), holds, "{stage}");
            assert_eq!(runs.map(|run| run.0), [1, 1, 1, 1, 4], "{stage}");
            if stage == "under way" {
                let frame = crate::units::FrameAddr { seq, offset: 0, len: 1 };
                let placed = [(Extent::new(0, 4), Placement::Data(Location { frame, block: 0 }))];
                let info = SegmentInfo { blocks: 4, live_blocks: 4, ..SegmentInfo::default() };
                log.commit((seq, info), &placed, None, &mut 0, usize::MAX).unwrap();
            }
        }
        write(&mut log, 0);
        assert_eq!(first(&mut log, 0), (1, Allocation::Data), "given up in a batch, and written again");
    }

    /// Frames one behind the other, over the end of a segment; a gap, what is not in the store and a hole end it.
    #[test]
    fn what_was_written_as_one_stream_is_found() {
        let mut log = new_log();
        let commit = |log: &mut Log, frames: &[(u64, u32)]| {
            for (block, _) in frames {
                log.accept(Change::Write(Extent::new(*block, 1), Bytes::from(vec![1; 4096])), 1 << 20);
            }
            log.freeze();
            let (seq, _) = log.next_upload(8, 8).unwrap();
            let placed: Vec<_> = frames
                .iter()
                .map(|(block, offset)| {
                    let frame = FrameAddr { seq, offset: *offset, len: 100 };
                    (Extent::new(*block, 1), Placement::Data(Location { frame, block: 0 }))
                })
                .collect();
            let info = SegmentInfo { blocks: 4, live_blocks: placed.len() as u32, ..SegmentInfo::default() };
            log.commit((seq, info), &placed, None, &mut 0, usize::MAX).unwrap();
        };
        commit(&mut log, &[(0, 0), (1, 100), (2, 200), (3, 300)]);
        commit(&mut log, &[(4, 0), (5, 100), (6, 250), (7, 350)]);
        let together = |log: &mut Log, from: u64| log.written_together(Extent::new(from, 10 - from));
        assert_eq!([0, 2, 5, 6, 7, 8].map(|from| together(&mut log, from)), [6, 4, 1, 2, 1, 0]);
        assert_eq!(log.written_together(Extent::new(0, 3)), 3, "not beyond what was asked for");
        write(&mut log, 2);
        assert_eq!(together(&mut log, 0), 2);
        assert_eq!(together(&mut log, 2), 0);
    }

    #[test]
    fn nothing_is_drained_before_all_that_was_accepted_took_effect() {
        let mut log = new_log();
        log.checkpoint_done(Seq(1), 0);
        assert!(log.is_drained());
        write(&mut log, 1);
        assert!(!log.is_drained(), "it is in the buffer");
        log.freeze();
        assert!(!log.is_drained(), "it waits for a slot");
        let (seq, _) = log.next_upload(1, 1).unwrap();
        assert!(!log.is_drained(), "it is under way");
        log.commit((seq, SegmentInfo::default()), &[], None, &mut 0, 1).unwrap();
        assert!(!log.is_drained(), "no checkpoint covers it");
        log.checkpoint_done(seq, 0);
        assert!(log.is_drained());
    }

    #[test]
    fn a_batch_that_was_filling_up_further_is_full_when_the_others_are_done() {
        let mut log = new_log();
        (0..5).for_each(|block| {
            write(&mut log, block);
            log.next_upload(8, 8);
        });
        assert!(log.has_active() && !log.is_full(SEGMENT), "one under way, three blocks waiting");
        let info = SegmentInfo { salt: [0; 16], stored_bytes: 8192, blocks: 2, live_blocks: 2 };
        log.commit((Seq(2), info), &[], None, &mut 0, 1).unwrap();
        assert!(log.is_full(SEGMENT));
    }

    #[test]
    fn what_was_overwritten_in_the_buffer_counts_too() {
        let mut log = new_log();
        (0..8).for_each(|_| write(&mut log, 5));
        assert_eq!((log.waiting(), log.has_active()), (1, false));
    }
}
