//! What every object of a volume is made of: the container, its seal, compressed frames, and cursors over bytes.
//! Pure (rule R13): bytes in, bytes out; knows neither where objects live nor what their heads mean.
//!
//! From the inside out:
//!
//! | layer | what it adds |
//! | --- | --- |
//! | [`cursor`] | numbers, strings and uuids in bytes, bounds-checked |
//! | [`frame`] | up to 64 KiB of data, compressed if that helps, with its length |
//! | [`seal`] | a tag that proves that a frame or head is unharmed and the one that belongs here (rule R9) |
//! | [`object`] | magic, version, kind, head and frames in one object |
//!
//! Decoders treat what they are given as hostile: they never panic, never allocate more than a fixed bound or a small
//! multiple of their input, and say in words what is wrong. The caller knows the object's name and adds it.
//!
//! Byte tables: `docs/format.md`.

pub mod cursor;
pub mod frame;
pub mod object;
pub mod seal;

use cursor::Malformed;

/// Why bytes that were read back are not accepted (rule R9). The text says what is wrong with "it", the object or the
/// frame; the caller names the object and the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorruptError {
    /// The first bytes are not ours.
    #[error("it does not begin with ashlar's magic number: another program wrote it, or overwrote it")]
    BadMagic,
    /// A later format.
    #[error("its format version {found} is unknown (this ashlar reads up to {known}): a newer ashlar is needed")]
    UnknownVersion {
        /// What it says.
        found: u16,
        /// The newest that we read.
        known: u16,
    },
    /// No kind of object has this number.
    #[error("its kind {0} is unknown")]
    UnknownKind(u8),
    /// A good object in a place where its kind does not belong.
    #[error("it is a {found}, which does not belong here")]
    WrongKind {
        /// What it says that it is.
        found: object::ObjectKind,
    },
    /// Encrypted in a volume that is not, or the other way round.
    #[error("it is sealed with {found} where {expected} is expected: it was put here by somebody else")]
    OtherSeal {
        /// What it says.
        found: seal::Seal,
        /// What the volume has.
        expected: seal::Seal,
    },
    /// Sealed with a data key that the volume's description does not list.
    #[error("it is sealed with data key {0}, which the volume's description does not list")]
    UnknownGeneration(u8),
    /// No seal has this number.
    #[error("its seal {0} is unknown")]
    UnknownSeal(u8),
    /// A reference whose places hold something else than it says.
    #[error("the places that it refers to hold other data than it was written for")]
    OtherData,
    /// Harmed, or not the one that belongs in this volume and place.
    #[error("its tag does not match: bytes changed, or it was moved here from another place or volume")]
    TagMismatch,
    /// It ends early.
    #[error("it is truncated: {have} bytes where {need} are needed")]
    Truncated {
        /// Its length in bytes.
        have: u64,
        /// What its beginning promises.
        need: u64,
    },
    /// It goes on where it should end.
    #[error("it is {have} bytes long where {need} are expected")]
    Overlong {
        /// Its length in bytes.
        have: u64,
        /// What its beginning promises.
        need: u64,
    },
    /// The head claims an absurd length.
    #[error("its head claims {len} bytes, more than the {max} that a {kind} may have")]
    HeadTooLong {
        /// What it claims.
        len: u32,
        /// The bound of its kind.
        max: u32,
        /// Its kind.
        kind: object::ObjectKind,
    },
    /// The codec byte of a frame is unknown.
    #[error("its frame is compressed with codec {0}, which is unknown")]
    UnknownCodec(u8),
    /// A frame of another length than what refers to it says.
    #[error("its frame holds {found} bytes of data where {expected} are expected")]
    FrameLength {
        /// What the frame says.
        found: u32,
        /// What refers to it says.
        expected: u32,
    },
    /// A frame beyond the bound.
    #[error("its frame claims {found} bytes of data, more than the {max} that are allowed")]
    FrameTooLong {
        /// What is claimed.
        found: u32,
        /// The bound.
        max: u32,
    },
    /// The compressed data does not yield what was promised.
    #[error("its frame does not decompress to the {0} bytes that it promises")]
    BadCompression(u32),
    /// The seal is good but the content makes no sense: a bug wrote it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Why something cannot be encoded: it is beyond a bound of the format or contradicts itself. A bug of the caller,
/// found before anything that could not be read back is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be encoded: {0}")]
pub struct EncodeError(pub(crate) String);

impl EncodeError {
    /// With the reason.
    pub fn new(reason: impl Into<String>) -> EncodeError {
        EncodeError(reason.into())
    }
}

/// `Ok` if `have` bytes are what is needed.
pub(crate) fn expect_len(have: usize, need: u64) -> Result<(), CorruptError> {
    match have as u64 {
        have if have < need => Err(CorruptError::Truncated { have, need }),
        have if have > need => Err(CorruptError::Overlong { have, need }),
        _ => Ok(()),
    }
}
