//! What frames keep alive beside themselves: they may lie in memory that came with others, which is there until the last of them has gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use crate::part::{Owner, Part};

/// The memory that frames of a cache share.
#[derive(Debug, Default)]
pub struct Sharing(Mutex<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Frames of each.
    owners: HashMap<Owner, usize>,
    /// Bytes of all of them.
    kept: usize,
    /// Bytes of their frames.
    frames: usize,
}

impl Sharing {
    /// A frame of it is there.
    pub fn came(&self, frame: &Part) {
        let (owner, mut shared) = (frame.owner(), self.0.lock());
        shared.frames += frame.data().len();
        let count = shared.owners.entry(owner).or_default();
        *count += 1;
        if *count == 1 {
            shared.kept += owner.bytes();
        }
    }

    /// It has gone.
    pub fn went(&self, frame: &Part) {
        let (owner, mut shared) = (frame.owner(), self.0.lock());
        shared.frames -= frame.data().len();
        if let Entry::Occupied(mut count) = shared.owners.entry(owner) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
                shared.kept -= owner.bytes();
            }
        }
    }

    /// Bytes that are kept alive and are no frame's.
    pub fn beside(&self) -> u64 {
        let shared = self.0.lock();
        shared.kept.saturating_sub(shared.frames) as u64
    }
}
