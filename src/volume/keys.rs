//! Where the objects of a volume lie in a store: the only place that spells a key.
//!
//! Descriptions lie under the volume's name, because they say whose the name is; everything else lies in a folder that
//! carries the first eight digits of the volume's uuid, so that a name that is used again meets nothing old (rule R16).
//! Volumes of the layout before have everything directly under the name.
//!
//! Numbers are 16 lower-case hexadecimal digits, so that the order of keys is the order of numbers. Segments are spread
//! over 256 prefixes by the low byte of their seq, because stores scale by prefix.

use uuid::Uuid;

use crate::store::Key;
use crate::units::Seq;
use crate::volume::meta::{Layout, Meta, VolumeName};

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

    /// `<folder>/segments/<low byte of seq>/<seq>`: a slot of the log.
    pub fn segment(&self, seq: Seq) -> Key {
        key(format!("{}/segments/{:02x}/{:016x}", self.folder, seq.0 & 0xff, seq.0))
    }

    /// `<folder>/checkpoints/`.
    pub fn checkpoints(&self) -> String {
        format!("{}/checkpoints/", self.folder)
    }

    /// `<folder>/checkpoints/<seq>`.
    pub fn checkpoint(&self, seq: Seq) -> Key {
        key(format!("{}/checkpoints/{:016x}", self.folder, seq.0))
    }

    /// The number at the end of a key of ours, if there is one.
    pub fn number(key: &Key) -> Option<u64> {
        let digits = key.as_str().rsplit('/').next()?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
    }

    /// Whether that is a slot of the log of some volume.
    pub fn is_slot(key: &Key) -> bool {
        Keys::number(key).is_some() && key.as_str().rsplit('/').nth(2) == Some("segments")
    }
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
