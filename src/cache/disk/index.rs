//! Which frames the disk tier has, and where. It knows no I/O: the slabs' files are only kept here.
//!
//! A frame takes 16 bytes and the map's slack, so the index says less than it could: keys are 64 bits of a hash, and
//! lengths stand in the tables of the slabs. Two frames with one key cost a miss, no more: what is read proves itself.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use uuid::Uuid;

use crate::disk::DiskFile;
use crate::units::FrameAddr;

/// Offsets in slabs are below this; the bit above says that the frame was asked for since it was written.
pub const SLAB_BYTES_MAX: u64 = HIT as u64 - 1;

const HIT: u32 = 1 << 31;

/// The key of a frame: the same in every run and on every host.
pub fn key_of(volume: Uuid, frame: FrameAddr) -> u64 {
    let mut name = [0; 32];
    name[..16].copy_from_slice(volume.as_bytes());
    name[16..24].copy_from_slice(&frame.seq.0.to_le_bytes());
    name[24..28].copy_from_slice(&frame.offset.to_le_bytes());
    name[28..].copy_from_slice(&frame.len.to_le_bytes());
    let hash = blake3::hash(&name);
    hash.as_bytes()[..8].iter().fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the slab.
    pub slab: u32,
    at_and_hit: u32,
}

impl Place {
    /// At that offset of that slab; not asked for yet.
    pub fn new(slab: u32, at: u64) -> Place {
        Place { slab, at_and_hit: at as u32 & !HIT }
    }

    /// The offset in the slab.
    pub fn at(self) -> u64 {
        u64::from(self.at_and_hit & !HIT)
    }
}

/// One file.
#[derive(Debug)]
pub struct Slab {
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Frames that the index finds in it.
    pub frames: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    places: HashMap<u64, Place, BuildHasherDefault<KeyIsHash>>,
    slabs: BTreeMap<u32, Slab>,
}

impl Index {
    /// Takes in a slab without frames.
    pub fn add_slab(&mut self, number: u32, file: Arc<dyn DiskFile>, bytes: u64) {
        self.slabs.insert(number, Slab { file, bytes, frames: 0 });
    }

    /// Notes that a frame lies there; an older place of it is forgotten.
    pub fn insert(&mut self, key: u64, place: Place) {
        let Some(slab) = self.slabs.get_mut(&place.slab) else { return };
        slab.frames += 1;
        if let Some(old) = self.places.insert(key, place) {
            self.forget_in(old);
        }
    }

    /// Where the frame is, for a read: it counts as asked for.
    pub fn find(&mut self, key: u64) -> Option<(Place, Arc<dyn DiskFile>)> {
        let place = self.places.get_mut(&key)?;
        place.at_and_hit |= HIT;
        let file = self.slabs.get(&place.slab)?.file.clone();
        Some((*place, file))
    }

    /// Whether the frame is there.
    pub fn contains(&self, key: u64) -> bool {
        self.places.contains_key(&key)
    }

    /// Forgets a frame, if it is still found at `place`; whether it was asked for, if it was.
    pub fn remove(&mut self, key: u64, place: Place) -> Option<bool> {
        let found = *self.places.get(&key)?;
        if (found.slab, found.at()) != (place.slab, place.at()) {
            return None;
        }
        self.places.remove(&key);
        self.forget_in(found);
        Some(found.at_and_hit & HIT != 0)
    }

    /// The slab grew.
    pub fn set_slab_bytes(&mut self, number: u32, bytes: u64) {
        if let Some(slab) = self.slabs.get_mut(&number) {
            slab.bytes = slab.bytes.max(bytes);
        }
    }

    /// Frames that the index finds in a slab.
    pub fn frames_in(&self, number: u32) -> u32 {
        self.slabs.get(&number).map_or(0, |slab| slab.frames)
    }

    /// The oldest slab.
    pub fn oldest(&self) -> Option<(u32, &Slab)> {
        self.slabs.first_key_value().map(|(number, slab)| (*number, slab))
    }

    /// The number of the newest slab.
    pub fn newest(&self) -> Option<u32> {
        self.slabs.last_key_value().map(|(number, _)| *number)
    }

    /// Takes a slab out, with whatever is still found in it.
    pub fn remove_slab(&mut self, number: u32) {
        let left = self.slabs.remove(&number).map_or(0, |slab| slab.frames);
        // Only if the tables of the slab have changed since they were read.
        if left > 0 {
            self.places.retain(|_, place| place.slab != number);
        }
    }

    /// Forgets everything; the numbers of the slabs that there were.
    pub fn clear(&mut self) -> Vec<u32> {
        self.places = HashMap::default();
        std::mem::take(&mut self.slabs).into_keys().collect()
    }

    /// Bytes of all slabs.
    pub fn bytes(&self) -> u64 {
        self.slabs.values().map(|slab| slab.bytes).sum()
    }

    /// Frames that are found.
    pub fn frames(&self) -> u64 {
        self.places.len() as u64
    }

    fn forget_in(&mut self, place: Place) {
        if let Some(slab) = self.slabs.get_mut(&place.slab) {
            slab.frames -= 1;
        }
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::crash::CrashDisk;
    use crate::units::Seq;

    #[test]
    fn keys_differ_by_volume_and_place_and_stay_the_same_for_ever() {
        let frame = FrameAddr { seq: Seq(7), offset: 48, len: 4116 };
        let key = key_of(Uuid::from_u128(1), frame);
        assert_eq!(key, 0xbc8d_a014_81d9_c464, "what an older version wrote is found");
        for (volume, other) in [
            (2, frame),
            (1, FrameAddr { seq: Seq(8), ..frame }),
            (1, FrameAddr { offset: 49, ..frame }),
            (1, FrameAddr { len: 4117, ..frame }),
        ] {
            assert_ne!(key_of(Uuid::from_u128(volume), other), key);
        }
    }

    #[tokio::test]
    async fn a_frame_is_found_in_its_newest_place_and_goes_with_its_slab() {
        let disk = CrashDisk::new(1);
        let mut index = Index::default();
        for number in [1, 2] {
            index.add_slab(number, disk.create(&number.to_string()).await.unwrap(), 100);
        }
        index.insert(5, Place::new(1, 10));
        index.insert(6, Place::new(1, 20));
        index.insert(5, Place::new(2, 30));
        assert_eq!((index.frames_in(1), index.frames_in(2), index.frames(), index.bytes()), (1, 1, 2, 200));
        assert_eq!(index.find(5).unwrap().0.at(), 30);
        assert_eq!(index.remove(5, Place::new(1, 10)), None, "that is not where it is");
        assert_eq!(index.remove(5, Place::new(2, 30)), Some(true), "it was asked for");
        assert_eq!(index.oldest().unwrap().0, 1);
        index.remove_slab(1);
        assert!(!index.contains(6) && index.find(6).is_none());
        assert_eq!((index.frames(), index.newest()), (0, Some(2)));
        index.insert(9, Place::new(1, 0));
        assert!(!index.contains(9), "the slab is gone");
    }
}
