//! Where the objects of a volume lie in a store: the only place that spells a key.
//!
//! Descriptions lie under the volume's name, because they say whose the name is; everything else lies in a folder that
//! carries the first eight digits of the volume's uuid, so that a name that is used again meets nothing old (rule R16).
//! Volumes of the layout before have everything directly under the name.
//!
//! Numbers are 16 lower-case hexadecimal digits, so that the order of keys is the order of numbers. Segments are spread
//! over 256 prefixes by the low byte of their seq, because stores scale by prefix.

use uuid::Uuid;

use crate::format::digest::Stretch;
use crate::format::marks::{Claim, Mark, Placed};
use crate::format::meta::{Layout, Meta, VolumeName};
use crate::format::places::further_place;
use crate::store::Key;
use crate::units::{Epoch, ORDINAL_MAX, Seq};

/// The keys of one volume.
#[derive(Clone, Debug)]
pub struct Keys {
    name: VolumeName,
    /// Without the slash at its end.
    folder: String,
}

impl Keys {
    /// The keys of the volume that is described so.
    pub fn of(meta: &Meta) -> Keys {
        let folder = match meta.layout {
            Layout::ByName => meta.name.to_string(),
            Layout::ByUuid => format!("{}/{}", meta.name, folder_of(meta.uuid)),
        };
        Keys { name: meta.name.clone(), folder }
    }

    /// `<name>/`: everything of all volumes that ever had that name.
    pub fn everything(name: &VolumeName) -> String {
        format!("{name}/")
    }

    /// `<name>/meta/`: the descriptions of all volumes that ever had that name, in one sequence of numbers.
    pub fn metas(name: &VolumeName) -> String {
        format!("{name}/meta/")
    }

    /// `<name>/meta/<n>`.
    pub fn meta(name: &VolumeName, n: u64) -> Key {
        key(format!("{name}/meta/{n:016x}"))
    }

    /// `<name>/mirror/`: descriptions of a volume of which this is the mirror.
    pub fn mirrors(name: &VolumeName) -> String {
        format!("{name}/mirror/")
    }

    /// `<name>/mirror/<n>`: description n, in a mirror.
    pub fn mirror(name: &VolumeName, n: u64) -> Key {
        key(format!("{name}/mirror/{n:016x}"))
    }

    /// Whether that is a description of this volume's name.
    pub fn is_meta(&self, other: &Key) -> bool {
        Keys::number(other).is_some_and(|n| *other == Keys::meta(&self.name, n))
    }

    /// `<name>/<uuid>/`: the folder of a volume in the layout by uuid.
    pub fn folder(name: &VolumeName, uuid: Uuid) -> String {
        format!("{name}/{}/", folder_of(uuid))
    }

    /// Everything of the volume but, in the layout by uuid, its descriptions: `<name>/<uuid>/`, or `<name>/`.
    pub fn all(&self) -> String {
        format!("{}/", self.folder)
    }

    /// `<folder>/segments/`: the log.
    pub fn segments(&self) -> String {
        format!("{}/segments/", self.folder)
    }

    /// `<folder>/segments/<low byte of seq>/`: a part of the log.
    pub fn segments_of(&self, low: u8) -> String {
        format!("{}/segments/{low:02x}/", self.folder)
    }

    /// `<folder>/segments/<low byte of seq>/<seq>`: a slot of the log.
    pub fn segment(&self, seq: Seq) -> Key {
        key(format!("{}/segments/{:02x}/{:016x}", self.folder, seq.0 & 0xff, seq.0))
    }

    /// `<folder>/near/<uuid>`: says of a store that it has the log of the volume.
    pub fn near(&self, id: Uuid) -> Key {
        key(format!("{}/near/{id}", self.folder))
    }

    /// `<folder>/fences/`: what decides about epochs in verified mode.
    pub fn fences(&self) -> String {
        format!("{}/fences/", self.folder)
    }

    /// `<folder>/fences/<epoch>-<nonce>`.
    pub fn claim(&self, claim: Claim) -> Key {
        key(format!("{}/fences/{:016x}-{:016x}", self.folder, claim.epoch.0, claim.nonce))
    }

    /// `<folder>/fences/<epoch>-<nonce>-<slot>-<epoch that it follows>`.
    pub fn fence(&self, Placed { claim, slot, after }: Placed) -> Key {
        key(format!("{}-{:016x}-{:016x}", self.claim(claim), slot.0, after.0))
    }

    /// The key of a claim or a fence.
    pub fn of_mark(&self, mark: Mark) -> Key {
        match mark {
            Mark::Claim(claim) => self.claim(claim),
            Mark::Fence(placed) => self.fence(placed),
        }
    }

    /// After every claim and fence of this epoch, and before those of the next.
    pub fn last_of(&self, epoch: Epoch) -> Key {
        key(format!("{}/fences/{:016x}-z", self.folder, epoch.0))
    }

    /// What a key in `fences/` says, at whatever place the object is.
    pub fn mark(&self, key: &Key) -> Option<Mark> {
        let own = further_place(key).map_or_else(|| key.clone(), |(own, _)| own);
        let mut parts = own.as_str().strip_prefix(&self.fences())?.split('-');
        let (epoch, nonce) = (Epoch(ordinal(parts.next()?)?), hex(parts.next()?)?);
        let claim = Claim { epoch, nonce };
        match (parts.next(), parts.next(), parts.next()) {
            (None, None, None) => Some(Mark::Claim(claim)),
            (Some(slot), Some(after), None) => {
                Some(Mark::Fence(Placed { claim, slot: Seq(ordinal(slot)?), after: Epoch(ordinal(after)?) }))
            }
            _ => None,
        }
    }

    /// `<name>/meta/<n>-<nonce>`: who wants to put that description, in verified mode.
    pub fn meta_claim(name: &VolumeName, n: u64, nonce: u64) -> Key {
        key(format!("{name}/meta/{n:016x}-{nonce:016x}"))
    }

    /// The number of a description that somebody wants to put.
    pub fn claimed_meta(key: &Key) -> Option<u64> {
        let (number, nonce) = key.as_str().rsplit('/').next()?.split_once('-')?;
        hex(nonce)?;
        ordinal(number)
    }

    /// Whether the key is one in `fences/`, of whatever volume.
    pub fn is_fence(key: &Key) -> bool {
        key.as_str().rsplit('/').nth(1) == Some("fences")
    }

    /// `<folder>/checkpoints/`.
    pub fn checkpoints(&self) -> String {
        format!("{}/checkpoints/", self.folder)
    }

    /// `<folder>/checkpoints/<seq>`.
    pub fn checkpoint(&self, seq: Seq) -> Key {
        key(format!("{}/checkpoints/{:016x}", self.folder, seq.0))
    }

    /// `<folder>/checkpoints/digest-<first>-<last>`: behind all checkpoints, and no number, so that whoever looks for those does not find it.
    pub fn digest(&self, Stretch { first, last }: Stretch) -> Key {
        key(format!("{}/checkpoints/digest-{:016x}-{:016x}", self.folder, first.0, last.0))
    }

    /// Of which slots a digest tells, if the key is that of one.
    pub fn stretch(&self, key: &Key) -> Option<Stretch> {
        let numbers = key.as_str().strip_prefix(&self.checkpoints())?.strip_prefix("digest-")?;
        let (first, last) = numbers.split_once('-')?;
        let stretch = Stretch { first: Seq(ordinal(first)?), last: Seq(ordinal(last)?) };
        // No other spelling of it.
        (stretch.first <= stretch.last && *key == self.digest(stretch)).then_some(stretch)
    }

    /// Whether that is a digest of some volume.
    pub fn is_digest(key: &Key) -> bool {
        key.as_str().contains("/checkpoints/digest-")
    }

    /// The number at the end of a key of ours, if there is one.
    pub fn number(key: &Key) -> Option<u64> {
        ordinal(key.as_str().rsplit('/').next()?)
    }

    /// Whether that is a slot of the log of some volume.
    pub fn is_slot(key: &Key) -> bool {
        Keys::number(key).is_some() && key.as_str().rsplit('/').nth(2) == Some("segments")
    }
}

/// One that counts something: `None` if it cannot be ours.
fn ordinal(digits: &str) -> Option<u64> {
    hex(digits).filter(|&number| number <= ORDINAL_MAX)
}

/// A number as keys have it.
fn hex(digits: &str) -> Option<u64> {
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The first eight hexadecimal digits of a volume's uuid.
fn folder_of(uuid: Uuid) -> String {
    uuid.simple().to_string()[..FOLDER_DIGITS].to_owned()
}

const FOLDER_DIGITS: usize = 8;

#[allow(clippy::expect_used)] // a volume's name and these words consist of the characters that a key may have
fn key(path: String) -> Key {
    Key::new(path).expect("a volume's keys are well-formed")
}
