//! What the volume may be: the accepted changes in order, and how many of them must be there.

use std::sync::Arc;

use ashlar::change::{Change, Numbered};
use ashlar::units::ChangeNo;
use ashlar::volume::Witness;
use parking_lot::Mutex;

/// Places where clients write: clusters of blocks around page boundaries, so that a small volume has several pages.
pub const CLUSTERS: [u64; 4] = [0, 16_350, 32_700, 49_100];
/// Blocks of a cluster.
pub const CLUSTER_BLOCKS: u64 = 64;
/// Blocks of the volume: four pages, the last one cut short.
pub const VOLUME_BLOCKS: u64 = 49_200;
/// Bytes of a block.
pub const BLOCK: usize = 512;

/// The blocks that are looked at: the clusters and a few that only whole-volume changes touch.
pub fn watched() -> impl Iterator<Item = u64> {
    CLUSTERS.into_iter().flat_map(|start| start..start + CLUSTER_BLOCKS).chain([
        8_000,
        20_000,
        40_000,
        VOLUME_BLOCKS - 1,
    ])
}

/// The changes that one server accepted, on top of what it found.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Vec<Change>>>);

impl History {
    /// Takes over the first `k` changes of an older history.
    pub fn begin_with(&self, older: &History, k: ChangeNo) {
        let older = older.0.lock();
        assert!(k.0 as usize <= older.len(), "the volume claims {k} changes, {} were accepted", older.len());
        *self.0.lock() = older[..k.0 as usize].to_vec();
    }

    /// Records what a volume accepts.
    pub fn witness(&self) -> Witness {
        let changes = self.0.clone();
        Witness(Some(Arc::new(move |numbered: &Numbered| {
            let mut changes = changes.lock();
            assert_eq!(changes.len() as u64 + 1, numbered.no.0, "change numbers are consecutive");
            changes.push(numbered.change.clone());
        })))
    }

    /// How many changes were accepted.
    pub fn len(&self) -> ChangeNo {
        ChangeNo(self.0.lock().len() as u64)
    }

    /// The first change after `since` of the same kind and extent as `change`: not later than the one that was meant.
    pub fn first_like(&self, since: ChangeNo, change: &Change) -> Option<ChangeNo> {
        let changes = self.0.lock();
        let like = |other: &Change| {
            other.extent() == change.extent() && std::mem::discriminant(other) == std::mem::discriminant(change)
        };
        let at = changes.iter().skip(since.0 as usize).position(like)?;
        Some(ChangeNo(since.0 + at as u64 + 1))
    }

    /// The watched blocks after all of its changes; `None` is zero.
    pub fn image(&self) -> Vec<Option<bytes::Bytes>> {
        let changes = self.0.lock();
        watched()
            .map(|block| {
                let last =
                    changes.iter().rev().find(|change| change.extent().contains(ashlar::units::BlockIndex(block)));
                match last {
                    Some(Change::Write(extent, data)) => {
                        let from = (block - extent.start.0) as usize * BLOCK;
                        let data = data.slice(from..from + BLOCK);
                        data.iter().any(|byte| *byte != 0).then_some(data)
                    }
                    _ => None,
                }
            })
            .collect()
    }
}

/// How many changes must survive.
#[derive(Clone, Default)]
pub struct Floors(Arc<Mutex<Floor>>);

#[derive(Clone, Copy, Default, Debug)]
pub struct Floor {
    /// Acknowledged: survive a kill.
    pub acknowledged: ChangeNo,
    /// Covered by a FLUSH or FUA: survive as the durability says.
    pub flushed: ChangeNo,
}

impl Floors {
    /// What is promised now.
    pub fn now(&self) -> Floor {
        *self.0.lock()
    }

    /// What is promised when a server begins or has ended.
    pub fn reset(acknowledged: ChangeNo, flushed: ChangeNo) -> Floors {
        Floors(Arc::new(Mutex::new(Floor { acknowledged, flushed })))
    }

    /// A change was acknowledged.
    pub fn acknowledge(&self, no: ChangeNo, fua: bool) {
        let mut floor = self.0.lock();
        floor.acknowledged = floor.acknowledged.max(no);
        if fua {
            floor.flushed = floor.flushed.max(no);
        }
    }

    /// A FLUSH that began when `acknowledged` was promised has returned.
    pub fn flush(&self, acknowledged: ChangeNo) {
        let mut floor = self.0.lock();
        floor.flushed = floor.flushed.max(acknowledged);
    }
}
