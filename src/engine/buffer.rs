//! The write buffer: accepted changes that are not yet in the store. Overwrites coalesce here. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::change::Change;
use crate::format::segment::Payload;
use crate::part::Owner;
use crate::units::{BlockCount, BlockIndex, BlockSize, ChangeNo, Extent};

/// What a change costs in memory beside its data, in bytes, rounded up.
pub const CHANGE_OVERHEAD: u64 = 256;

/// The state that a run of changes leaves: disjoint extents, the newest change of each block.
#[derive(Clone, Debug)]
pub struct WriteBuffer {
    block_size: BlockSize,
    extents: BTreeMap<BlockIndex, Held>,
    data_bytes: u64,
    accepted_bytes: u64,
    last: ChangeNo,
}

/// What is held of an extent.
#[derive(Clone, Debug)]
struct Held {
    count: BlockCount,
    payload: Payload,
    /// The data of the change that it came with, all of which stays in memory as long as a part of it is used.
    owner: Owner,
}

impl WriteBuffer {
    /// An empty buffer.
    pub fn new(block_size: BlockSize) -> WriteBuffer {
        WriteBuffer { block_size, extents: BTreeMap::new(), data_bytes: 0, accepted_bytes: 0, last: ChangeNo(0) }
    }

    /// Takes in the next change.
    pub fn insert(&mut self, no: ChangeNo, change: Change) {
        self.accepted_bytes += cost(&change);
        self.last = no;
        let (extent, payload) = match change {
            Change::Write(extent, data) => (extent, Payload::Data(data)),
            Change::Zero(extent) => (extent, Payload::Zero),
            Change::Hole(extent) => (extent, Payload::Hole),
        };
        let owner = match &payload {
            Payload::Data(data) => Owner::of(data),
            Payload::Zero | Payload::Hole => Owner::NONE,
        };
        self.cut_out(extent);
        self.data_bytes += data_len(&payload);
        self.extents.insert(extent.start, Held { count: extent.count, payload, owner });
    }

    /// Whether no change was taken in.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes of data that the newest state holds.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Bytes that all changes took when they were accepted: what they may hold in memory, overwritten or not.
    pub fn accepted_bytes(&self) -> u64 {
        self.accepted_bytes
    }

    /// The last change taken in.
    pub fn last(&self) -> ChangeNo {
        self.last
    }

    /// Its extents in the order of blocks.
    pub fn iter(&self) -> impl Iterator<Item = (Extent, &Payload)> {
        self.extents.iter().map(|(&start, held)| (Extent { start, count: held.count }, &held.payload))
    }

    /// Hands what it holds of `extent` to `held`, with the memory that it keeps, and the blocks it knows nothing of to
    /// `unknown`.
    pub fn lookup(
        &self,
        extent: Extent,
        mut held: impl FnMut(Extent, Payload, Owner),
        mut unknown: impl FnMut(Extent),
    ) {
        let first = self.extents.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        let mut at = extent.start;
        for (&start, Held { count, payload, owner }) in self.extents.range(first..extent.end().max(first)) {
            let have = Extent { start, count: *count };
            let Some(part) = have.intersect(&extent) else { continue };
            if at < part.start {
                unknown(Extent::between(at, part.start));
            }
            held(part, self.slice(payload, have, part), *owner);
            at = part.end();
        }
        if at < extent.end() {
            unknown(Extent::between(at, extent.end()));
        }
    }

    /// What it holds of the first block of `extent`, if anything, and for how many blocks of it from there on, one at least,
    /// that is so. The extent is not empty.
    pub fn first(&self, extent: Extent) -> (BlockCount, Option<&Payload>) {
        if let Some((&start, held)) = self.extents.range(..=extent.start).next_back()
            && let Some(part) = (Extent { start, count: held.count }).intersect(&extent)
        {
            return (part.count, Some(&held.payload));
        }
        let next = self.extents.range(extent.start..extent.end()).next();
        (next.map_or(extent.end(), |(&start, _)| start) - extent.start, None)
    }

    /// Forgets what it holds of `extent`.
    fn cut_out(&mut self, extent: Extent) {
        while let Some((&start, held)) = self.extents.range(..extent.end()).next_back() {
            let have = Extent { start, count: held.count };
            let Some(gone) = have.intersect(&extent) else { break };
            let Some(Held { payload, owner, .. }) = self.extents.remove(&start) else { break };
            self.data_bytes -= data_len(&payload);
            for kept in [Extent::between(start, gone.start), Extent::between(gone.end(), have.end())] {
                if !kept.is_empty() {
                    let part = self.slice(&payload, have, kept);
                    self.data_bytes += data_len(&part);
                    self.extents.insert(kept.start, Held { count: kept.count, payload: part, owner });
                }
            }
        }
    }

    /// The part of the payload of `whole` that belongs to `part`.
    fn slice(&self, payload: &Payload, whole: Extent, part: Extent) -> Payload {
        match payload {
            Payload::Data(data) => {
                let from = self.block_size.bytes_in(part.start - whole.start) as usize;
                Payload::Data(data.slice(from..from + self.block_size.bytes_in(part.count) as usize))
            }
            Payload::Zero => Payload::Zero,
            Payload::Hole => Payload::Hole,
        }
    }
}

/// Bytes that a change counts against the bound on dirty bytes.
pub fn cost(change: &Change) -> u64 {
    change.data_len() + CHANGE_OVERHEAD
}

fn data_len(payload: &Payload) -> u64 {
    match payload {
        Payload::Data(data) => Bytes::len(data) as u64,
        Payload::Zero | Payload::Hole => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 40;

    fn change() -> impl Strategy<Value = Change> {
        (0..BLOCKS, 1..=BLOCKS, 0u8..4, any::<u8>()).prop_map(|(start, count, kind, fill)| {
            let extent = Extent::new(start, count.min(BLOCKS - start));
            match kind {
                0 => Change::Zero(extent),
                1 => Change::Hole(extent),
                _ => Change::Write(extent, Bytes::from(vec![fill; extent.count.0 as usize * 512])),
            }
        })
    }

    proptest! {
        /// The dumb model: one entry a block.
        #[test]
        fn the_buffer_equals_an_array(changes in prop::collection::vec(change(), 0..40), from in 0..BLOCKS, len in 0..BLOCKS) {
            let block_size = BlockSize::new(512).unwrap();
            let mut buffer = WriteBuffer::new(block_size);
            let mut model: Vec<Option<Payload>> = vec![None; BLOCKS as usize];
            for (no, change) in (1..).zip(changes) {
                for block in change.extent().start.0..change.extent().end().0 {
                    model[block as usize] = Some(match &change {
                        Change::Write(_, data) => Payload::Data(data.slice(..512)),
                        Change::Zero(_) => Payload::Zero,
                        Change::Hole(_) => Payload::Hole,
                    });
                }
                buffer.insert(ChangeNo(no), change);
                let data = model.iter().flatten().map(data_len).sum::<u64>();
                prop_assert_eq!(buffer.data_bytes(), data);
            }
            let extent = Extent::new(from, len.min(BLOCKS - from));
            let seen = std::cell::RefCell::new(Vec::new());
            let note = |part: Extent, payload: Option<Payload>| {
                let mut seen = seen.borrow_mut();
                for i in 0..part.count.0 as usize {
                    let one = match &payload {
                        Some(Payload::Data(data)) => Some(Payload::Data(data.slice(i * 512..(i + 1) * 512))),
                        other => other.clone(),
                    };
                    seen.push((part.start.0 + i as u64, one));
                }
            };
            buffer.lookup(extent, |part, payload, _| note(part, Some(payload)), |part| note(part, None));
            let seen = seen.into_inner();
            let expected: Vec<_> =
                (extent.start.0..extent.end().0).map(|block| (block, model[block as usize].clone())).collect();
            prop_assert_eq!(seen, expected);
            let mut rest = extent;
            while !rest.is_empty() {
                let (count, held) = buffer.first(rest);
                prop_assert!(count.0 > 0 && count <= rest.count);
                for block in rest.start.0..rest.start.0 + count.0 {
                    let model = model[block as usize].as_ref();
                    prop_assert_eq!(held.map(std::mem::discriminant), model.map(std::mem::discriminant));
                }
                rest = Extent::between(rest.start + count, rest.end());
            }
        }
    }
}
