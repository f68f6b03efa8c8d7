//! What is below a clone: a version of another volume, which never changes. Where the clone has nothing of its own, that is what it shows.
//!
//! A clone never has a hole where its parent has data: what is given up in it becomes allocated zero ([`Shared::trim`](super::shared::Shared::trim)).
//! So what the map of a clone does not know was never touched since it was made, and is its parent's, whatever was merged,
//! collected or recovered meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;

use crate::device::{Allocation, Device, DeviceError, Pieces, Run};
use crate::engine::log::Piece;
use crate::units::{BlockIndex, BlockSize, Extent};

/// See the module.
#[derive(Clone)]
pub struct Below(Arc<dyn Device>);

impl std::fmt::Debug for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Below({:?})", self.0.info())
    }
}

impl Below {
    /// That device, which nobody writes to.
    pub fn new(device: Arc<dyn Device>) -> Below {
        Below(device)
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.0
    }

    /// Of the bytes `offset .. offset + len`, which these pieces cover, those that are its own: the block with which the piece begins, and
    /// offset and length of what it has of that.
    pub fn parts(
        &self,
        pieces: &[(Extent, Piece)],
        block_size: BlockSize,
        offset: u64,
        len: u64,
    ) -> Vec<(BlockIndex, (u64, u64))> {
        let end = self.0.info().size.min(offset + len);
        let holes = pieces.iter().filter(|(_, piece)| matches!(piece, Piece::Hole));
        let within = holes.map(|(extent, _)| {
            let from = block_size.offset_of(extent.start).max(offset);
            (extent.start, (from, block_size.offset_of(extent.end()).min(end).saturating_sub(from)))
        });
        within.filter(|(_, (_, len))| *len > 0).collect()
    }

    /// Reads those; each is as long as the piece is within the range.
    pub async fn read(
        &self,
        pieces: &[(Extent, Piece)],
        block_size: BlockSize,
        offset: u64,
        len: u64,
    ) -> Result<HashMap<BlockIndex, Pieces>, DeviceError> {
        let ends: HashMap<BlockIndex, BlockIndex> =
            pieces.iter().map(|(extent, _)| (extent.start, extent.end())).collect();
        let reads = self.parts(pieces, block_size, offset, len).into_iter().map(|(start, (from, own))| {
            let whole = block_size.offset_of(ends[&start]).min(offset + len) - from;
            async move {
                let mut read = Pieces::new();
                let mut at = from;
                while at < from + own {
                    // A range is as long as a request, and may be a little longer where blocks are completed.
                    let step = (from + own - at).min(STEP);
                    read.append(self.0.read(at, step as u32).await?);
                    at += step;
                }
                if whole > own {
                    read.push_zeroes(whole - own);
                }
                Ok::<_, DeviceError>((start, read))
            }
        });
        Ok(try_join_all(reads).await?.into_iter().collect())
    }

    /// What is known of a range that begins at `offset`, of which the clone knows this: at most so many runs, which may end sooner.
    pub async fn extents(&self, own: Vec<Run>, offset: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        let (mut runs, mut at, size) = (Vec::<Run>::new(), offset, self.0.info().size);
        for run in own {
            let end = at + run.len;
            while at < end {
                let known = match run.allocation {
                    Allocation::Hole if at < size => self.0.extents(at, end.min(size) - at, most).await?,
                    allocation => vec![Run { len: end - at, allocation }],
                };
                if known.is_empty() {
                    return Ok(runs);
                }
                for Run { len, allocation } in known {
                    let is_full = runs.len() == most;
                    match runs.last_mut() {
                        Some(last) if last.allocation == allocation => last.len += len,
                        _ if is_full => return Ok(runs),
                        _ => runs.push(Run { len, allocation }),
                    }
                    at += len;
                }
            }
        }
        Ok(runs)
    }
}

/// Bytes that are read at once.
const STEP: u64 = 32 << 20;
