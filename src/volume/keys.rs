//! Where the objects of a volume lie in a store: the only place that spells a key.
//!
//! Numbers are 16 lower-case hexadecimal digits, so that the order of keys is the order of numbers. Segments are spread
//! over 256 prefixes by the low byte of their seq, because stores scale by prefix.

use crate::store::Key;
use crate::units::Seq;
use crate::volume::meta::VolumeName;

/// The keys of one volume.
#[derive(Clone, Debug)]
pub struct Keys(VolumeName);

impl Keys {
    /// The keys of the volume of that name.
    pub fn new(name: &VolumeName) -> Keys {
        Keys(name.clone())
    }

    /// `<volume>/`: everything of the volume.
    pub fn all(&self) -> String {
        format!("{}/", self.0)
    }

    /// `<volume>/meta/`.
    pub fn metas(&self) -> String {
        format!("{}/meta/", self.0)
    }

    /// `<volume>/meta/<n>`.
    pub fn meta(&self, n: u64) -> Key {
        self.key(format!("{}/meta/{n:016x}", self.0))
    }

    /// `<volume>/segments/`: the log.
    pub fn segments(&self) -> String {
        format!("{}/segments/", self.0)
    }

    /// `<volume>/segments/<low byte of seq>/<seq>`: a slot of the log.
    pub fn segment(&self, seq: Seq) -> Key {
        self.key(format!("{}/segments/{:02x}/{:016x}", self.0, seq.0 & 0xff, seq.0))
    }

    /// `<volume>/checkpoints/`.
    pub fn checkpoints(&self) -> String {
        format!("{}/checkpoints/", self.0)
    }

    /// `<volume>/checkpoints/<seq>`.
    pub fn checkpoint(&self, seq: Seq) -> Key {
        self.key(format!("{}/checkpoints/{:016x}", self.0, seq.0))
    }

    /// The number at the end of a key of ours, if there is one.
    pub fn number(key: &Key) -> Option<u64> {
        let digits = key.as_str().rsplit('/').next()?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
    }

    #[allow(clippy::expect_used)] // a volume's name and these words consist of the characters that a key may have
    fn key(&self, path: String) -> Key {
        Key::new(path).expect("a volume's keys are well-formed")
    }
}
