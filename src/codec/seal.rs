//! The seal: a tag before every frame and over every head that proves before use that the bytes are unharmed and are
//! the ones that belong in this place (rule R9).
//!
//! Each encoding of each object has its own key, derived from the volume's uuid, the kind, the place in the log, and
//! the salt that was drawn for this encoding. A frame's tag covers its byte offset too. So an object that is copied to
//! another place, kind or volume does not open, and neither does a frame at another offset.
//!
//! This is [`Seal::Blake3`]: it protects against decay, cut-off and mix-up, not against somebody who knows the uuid
//! and wants to forge. An encrypted volume will derive the object keys from its data key instead and use
//! [`Seal::ChaCha20Poly1305`]; that is why keys go through [`Sealer`] and why the layout has the room that the AEAD's
//! tag needs.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::CorruptError;
use super::object::ObjectKind;
use crate::units::Seq;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// The random bytes of one encoding of an object, stored in its prefix.
pub type Salt = [u8; 16];

/// The separation of our use of BLAKE3's key derivation from all others.
const KEY_CONTEXT: &str = "ashlar 2026 object key v1: volume uuid, kind, seq, salt";

/// How the objects of a volume are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// Plain text with a keyed BLAKE3 tag, cut to 16 bytes.
    #[serde(rename = "blake3")]
    Blake3 = 0,
    /// Encrypted. Reserved: not yet written, refused when read.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305 = 1,
}

impl Seal {
    /// The seal of that number.
    pub fn from_byte(byte: u8) -> Result<Seal, CorruptError> {
        match byte {
            0 => Ok(Seal::Blake3),
            1 => Ok(Seal::ChaCha20Poly1305),
            other => Err(CorruptError::UnknownSeal(other)),
        }
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Seal::Blake3 => "BLAKE3",
            Seal::ChaCha20Poly1305 => "ChaCha20-Poly1305 (encryption)",
        })
    }
}

/// Makes the keys of a volume's objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sealer {
    volume: Uuid,
}

impl Sealer {
    /// Of an unencrypted volume.
    pub fn new(volume: Uuid) -> Sealer {
        Sealer { volume }
    }

    /// How it seals.
    pub fn seal(&self) -> Seal {
        Seal::Blake3
    }

    /// The key of one encoding of one object.
    pub fn object_key(&self, kind: ObjectKind, seq: Seq, salt: &Salt) -> ObjectKey {
        let mut material = [0; 41];
        material[..16].copy_from_slice(self.volume.as_bytes());
        material[16] = kind as u8;
        material[17..25].copy_from_slice(&seq.0.to_le_bytes());
        material[25..].copy_from_slice(salt);
        ObjectKey(blake3::derive_key(KEY_CONTEXT, &material))
    }
}

/// Seals and opens the frames and the head of one object.
#[derive(Clone)]
pub struct ObjectKey([u8; 32]);

impl ObjectKey {
    /// The tag of `parts` joined, at byte `offset` of the object. Offset 0 is the head; frames lie beyond it.
    pub(super) fn tag(&self, offset: u32, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&u64::from(offset).to_le_bytes());
        for part in parts {
            hasher.update(part);
        }
        let mut tag = [0; TAG_BYTES];
        hasher.finalize_xof().fill(&mut tag);
        tag
    }

    /// Seals in place the frame at byte `offset` of the object: `sealed` is room for the tag, then the body.
    pub(super) fn seal_frame(&self, offset: u32, sealed: &mut [u8]) {
        let (tag, body) = sealed.split_at_mut(TAG_BYTES);
        tag.copy_from_slice(&self.tag(offset, &[body]));
    }

    /// The body of the sealed frame that was read from byte `offset` of the object.
    pub fn open_frame(&self, offset: u32, sealed: &Bytes) -> Result<Bytes, CorruptError> {
        let (tag, body) = sealed
            .split_at_checked(TAG_BYTES)
            .ok_or(CorruptError::Truncated { have: sealed.len() as u64, need: super::frame::FRAME_OVERHEAD as u64 })?;
        if self.tag(offset, &[body]) == tag { Ok(sealed.slice(TAG_BYTES..)) } else { Err(CorruptError::TagMismatch) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &ObjectKey, offset: u32) -> Bytes {
        let mut frame = vec![0; TAG_BYTES];
        frame.extend_from_slice(b"some body");
        key.seal_frame(offset, &mut frame);
        frame.into()
    }

    #[test]
    fn a_frame_opens_only_in_its_own_volume_kind_place_encoding_and_offset() {
        let key =
            |volume, kind, seq, salt| Sealer::new(Uuid::from_u128(volume)).object_key(kind, Seq(seq), &[salt; 16]);
        let own = key(1, ObjectKind::Segment, 7, 9);
        let frame = sealed(&own, 100);
        assert_eq!(own.open_frame(100, &frame).unwrap(), &b"some body"[..]);
        for (other, offset) in [
            (key(2, ObjectKind::Segment, 7, 9), 100),
            (key(1, ObjectKind::Checkpoint, 7, 9), 100),
            (key(1, ObjectKind::Segment, 8, 9), 100),
            (key(1, ObjectKind::Segment, 7, 8), 100),
            (own.clone(), 101),
        ] {
            assert_eq!(other.open_frame(offset, &frame), Err(CorruptError::TagMismatch));
        }
        assert!(matches!(own.open_frame(100, &frame.slice(..15)), Err(CorruptError::Truncated { .. })));
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = Sealer::new(Uuid::nil()).object_key(ObjectKind::Fence, Seq(1), &[0; 16]);
        assert_eq!(format!("{key:?}"), "ObjectKey");
    }
}
