//! The seal: a tag before every frame and over every head that proves before use that the bytes are unharmed and are
//! the ones that belong in this place (rule R9); in an encrypted volume, encryption too.
//!
//! Each encoding of each object has its own key, derived from the volume's uuid, the kind, the place in the log, and
//! the salt that was drawn for this encoding; in an encrypted volume, from its data key as well. Head and frames are told
//! apart by their byte offset: it is hashed into the tag, or is the nonce. So an object that is copied to another
//! place, kind or volume does not open, and neither does a frame at another offset.
//!
//! - [`Seal::Blake3`] protects against decay, cut-off and mix-up, not against somebody who knows the uuid and forges.
//! - [`Seal::ChaCha20Poly1305`] (RFC 8439) also keeps secrets and resists forgery. A pair of key and nonce seals one text
//!   only: the salt is new for each encoding, and within an object no two texts share an offset. The first byte of the
//!   salt is the generation of the data key.

use std::fmt;
use std::sync::Arc;

use ashlar_aead as aead;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::object::ObjectKind;
use super::{CorruptError, EncodeError};
use crate::keyring::{Generation, KEY_BYTES, Keyring, SealWitness, derive};
use crate::units::Seq;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// The random bytes of one encoding of an object, stored in its prefix.
pub type Salt = [u8; 16];

/// The separation of our uses of BLAKE3's key derivation from each other and from all others.
const KEY_CONTEXT: &str = "ashlar 2026 object key v1: volume uuid, kind, seq, salt";
const DATA_KEY_CONTEXT: &str = "ashlar 2026 encrypted object key v1: data key, volume uuid, kind, seq, salt";

/// The offset of a head; frames lie beyond it.
const HEAD: u32 = 0;

/// How the objects of a volume are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// Plain text with a keyed BLAKE3 tag, cut to 16 bytes.
    #[serde(rename = "blake3")]
    Blake3 = 0,
    /// Encrypted.
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
            Seal::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

/// Makes the keys of a volume's objects. Cheap to clone; clones see a rotation of the data key.
#[derive(Clone, Debug)]
pub struct Sealer {
    volume: Uuid,
    keyring: Option<Keyring>,
}

impl Sealer {
    /// Of a volume, encrypted if there is a keyring.
    pub fn new(volume: Uuid, keyring: Option<Keyring>) -> Sealer {
        Sealer { volume, keyring }
    }

    /// The volume.
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// How it seals.
    pub fn seal(&self) -> Seal {
        if self.keyring.is_some() { Seal::ChaCha20Poly1305 } else { Seal::Blake3 }
    }

    /// The data keys, if the volume is encrypted.
    pub fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// The salt for a new encoding, made from random bytes.
    pub fn salt(&self, random: [u8; 16]) -> Salt {
        let mut salt = random;
        if let Some(keyring) = &self.keyring {
            salt[0] = keyring.current().0;
        }
        salt
    }

    /// The data key with which an object with this salt is sealed; 0 without encryption.
    pub fn generation_of(&self, salt: &Salt) -> Generation {
        if self.keyring.is_some() { salt[0] } else { 0 }
    }

    /// Whether an object with this salt is sealed with a data key that has been rotated since.
    pub fn is_retired(&self, salt: &Salt) -> bool {
        self.keyring.as_ref().is_some_and(|keyring| keyring.current().0 != salt[0])
    }

    /// The key of one encoding of one object.
    pub fn object_key(&self, kind: ObjectKind, seq: Seq, salt: &Salt) -> Result<ObjectKey, CorruptError> {
        let mut material = [0; 41];
        material[..16].copy_from_slice(self.volume.as_bytes());
        material[16] = kind as u8;
        material[17..25].copy_from_slice(&seq.0.to_le_bytes());
        material[25..].copy_from_slice(salt);
        self.key(DATA_KEY_CONTEXT, KEY_CONTEXT, salt, &material)
    }

    /// The key for what `contexts` and `material` name (encrypted, plain); `salt` is part of the material.
    pub fn key(&self, encrypted: &str, plain: &str, salt: &Salt, material: &[u8]) -> Result<ObjectKey, CorruptError> {
        let Some(keyring) = &self.keyring else { return Ok(ObjectKey::Blake3(blake3::derive_key(plain, material))) };
        let data_key = keyring.key(salt[0]).ok_or(CorruptError::UnknownGeneration(salt[0]))?;
        let key = AeadKey(derive(encrypted, data_key.bytes(), material));
        Ok(ObjectKey::ChaCha20Poly1305(key, Witness(keyring.witness())))
    }
}

/// Seals and opens the frames and the head of one object.
#[derive(Clone)]
pub enum ObjectKey {
    /// Tags only.
    Blake3([u8; KEY_BYTES]),
    /// Encrypts.
    ChaCha20Poly1305(AeadKey, Witness),
}

/// A key that is zeroed after use.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct AeadKey([u8; KEY_BYTES]);

/// Who is told of everything that is sealed: nobody, but in tests.
#[derive(Clone)]
pub struct Witness(Option<Arc<SealWitness>>);

impl ObjectKey {
    /// Seals `head`, which follows `prefix` in the object, in place, and returns its tag.
    pub(super) fn seal_head(&self, prefix: &[u8], head: &mut [u8]) -> Result<[u8; TAG_BYTES], EncodeError> {
        self.seal(u64::from(HEAD), prefix, head)
    }

    /// The head that follows `prefix` in the object.
    pub(super) fn open_head(&self, prefix: &[u8], tag: &[u8], head: Bytes) -> Result<Bytes, CorruptError> {
        self.open(u64::from(HEAD), prefix, tag, head)
    }

    /// Seals in place the frame at byte `offset` of the object: `sealed` is room for the tag, then the body.
    pub(super) fn seal_frame(&self, offset: u32, sealed: &mut [u8]) -> Result<(), EncodeError> {
        let (tag, body) = sealed.split_at_mut(TAG_BYTES);
        tag.copy_from_slice(&self.seal(u64::from(offset), &[], body)?);
        Ok(())
    }

    /// Puts the tag of the frame at byte `offset` of the object into `begin`: room for it, and the body but for its `data`, which is
    /// elsewhere and stays as it is.
    pub(super) fn tag_lent_frame(&self, offset: u32, begin: &mut [u8], data: &[u8]) -> Result<(), EncodeError> {
        let ObjectKey::Blake3(key) = self else {
            return Err(EncodeError::new("data that is lent and to be encrypted"));
        };
        let (room, header) = begin.split_at_mut(TAG_BYTES);
        room.copy_from_slice(&tag(key, u64::from(offset), &[header, data]));
        Ok(())
    }

    /// The body of the sealed frame that was read from byte `offset` of the object.
    pub fn open_frame(&self, offset: u32, sealed: &Bytes) -> Result<Bytes, CorruptError> {
        let (tag, _) = sealed
            .split_at_checked(TAG_BYTES)
            .ok_or(CorruptError::Truncated { have: sealed.len() as u64, need: super::frame::FRAME_OVERHEAD as u64 })?;
        self.open(u64::from(offset), &[], tag, sealed.slice(TAG_BYTES..))
    }

    /// Seals `text` in place under the nonce `offset`, bound to `associated`, and returns the tag. An offset seals one
    /// text only.
    pub fn seal(&self, offset: u64, associated: &[u8], text: &mut [u8]) -> Result<[u8; TAG_BYTES], EncodeError> {
        match self {
            ObjectKey::Blake3(key) => Ok(tag(key, offset, &[associated, text])),
            ObjectKey::ChaCha20Poly1305(key, witness) => {
                if let Some(tell) = &witness.0 {
                    tell(&key.0, offset, &[associated, text].concat());
                }
                aead::seal(&key.0, &nonce(offset), associated, text)
                    .ok_or_else(|| EncodeError::new("a text of more than 256 GiB"))
            }
        }
    }

    /// The text that was sealed under the nonce `offset`, bound to `associated`, with this tag.
    pub fn open(&self, offset: u64, associated: &[u8], tag_found: &[u8], text: Bytes) -> Result<Bytes, CorruptError> {
        match self {
            ObjectKey::Blake3(key) if tag(key, offset, &[associated, &text]) == tag_found => Ok(text),
            ObjectKey::Blake3(_) => Err(CorruptError::TagMismatch),
            ObjectKey::ChaCha20Poly1305(key, _) => {
                let tag = tag_found.try_into().map_err(|_| CorruptError::TagMismatch)?;
                let mut opened = BytesMut::from(&text[..]);
                match aead::open(&key.0, &nonce(offset), associated, tag, &mut opened) {
                    true => Ok(opened.freeze()),
                    false => Err(CorruptError::TagMismatch),
                }
            }
        }
    }
}

fn nonce(offset: u64) -> [u8; aead::NONCE_BYTES] {
    let mut nonce = [0; aead::NONCE_BYTES];
    nonce[..8].copy_from_slice(&offset.to_le_bytes());
    nonce
}

/// So much of what is tagged is put into one piece before it is hashed: as many chunks as BLAKE3 hashes side by side.
const BEGIN_BYTES: usize = 16 << 10;

/// BLAKE3 of the offset and the parts, one behind the other. It hashes chunks side by side if they lie in one piece and begin at a
/// multiple of their number, which they would not behind a first piece of eight bytes: for a frame of 4 KiB that takes twice as long.
fn tag(key: &[u8; KEY_BYTES], offset: u64, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    let mut begin = [0; BEGIN_BYTES];
    begin[..8].copy_from_slice(&offset.to_le_bytes());
    let mut filled = 8;
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(BEGIN_BYTES - filled));
        begin[filled..filled + first.len()].copy_from_slice(first);
        filled += first.len();
        if !rest.is_empty() {
            if hasher.count() == 0 {
                hasher.update(&begin);
            }
            hasher.update(rest);
        }
    }
    if hasher.count() == 0 {
        hasher.update(&begin[..filled]);
    }
    let mut tag = [0; TAG_BYTES];
    hasher.finalize_xof().fill(&mut tag);
    tag
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Locked;

    fn keyring(byte: u8) -> Keyring {
        Keyring::new((1, Locked::take(&mut [byte; KEY_BYTES])), [], None)
    }

    /// A plain one and an encrypted one.
    fn sealers(volume: u128) -> [Sealer; 2] {
        [None, Some(keyring(3))].map(|keyring| Sealer::new(Uuid::from_u128(volume), keyring))
    }

    fn sealed(key: &ObjectKey, offset: u32) -> Bytes {
        let mut frame = vec![0; TAG_BYTES];
        frame.extend_from_slice(b"some body");
        key.seal_frame(offset, &mut frame).unwrap();
        frame.into()
    }

    #[test]
    fn a_frame_opens_only_in_its_own_volume_kind_place_encoding_and_offset() {
        for way in [0, 1] {
            let key = |volume, kind, seq, salt: u8| {
                sealers(volume)[way]
                    .object_key(kind, Seq(seq), &[1, salt, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                    .unwrap()
            };
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
    }

    #[test]
    fn encrypted_text_is_not_readable_and_opens_with_its_data_key_only() {
        let key =
            |byte| Sealer::new(Uuid::nil(), Some(keyring(byte))).object_key(ObjectKind::Segment, Seq(1), &[1; 16]);
        let frame = sealed(&key(3).unwrap(), 100);
        assert!(!frame.windows(4).any(|window| window == b"body"));
        assert_eq!(key(4).unwrap().open_frame(100, &frame), Err(CorruptError::TagMismatch));
        assert_eq!(sealers(0)[0].seal(), Seal::Blake3);
        assert_eq!(sealers(0)[1].seal(), Seal::ChaCha20Poly1305);
    }

    #[test]
    fn after_a_rotation_the_new_key_seals_and_the_old_one_opens() {
        let sealer = Sealer::new(Uuid::nil(), Some(keyring(3)));
        let clone = sealer.clone();
        let old_salt = sealer.salt([9; 16]);
        let frame = sealed(&sealer.object_key(ObjectKind::Segment, Seq(1), &old_salt).unwrap(), 100);
        let rotated = keyring(3).rotated(Locked::take(&mut [4; KEY_BYTES])).unwrap();
        sealer.keyring().unwrap().follow(&rotated);
        let new_salt = clone.salt([9; 16]);
        assert_eq!((old_salt[0], new_salt[0]), (1, 2));
        assert!(clone.is_retired(&old_salt) && !clone.is_retired(&new_salt));
        let open = |salt| clone.object_key(ObjectKind::Segment, Seq(1), salt).unwrap().open_frame(100, &frame);
        assert_eq!(open(&old_salt).unwrap(), &b"some body"[..]);
        assert_eq!(open(&new_salt), Err(CorruptError::TagMismatch));
        assert!(clone.object_key(ObjectKind::Segment, Seq(1), &[3; 16]).is_err());
    }

    /// However it is put together: the tag is that of docs/format.md.
    #[test]
    fn a_tag_is_the_hash_of_offset_and_parts_in_one_piece_whatever_their_lengths() {
        let data: Vec<u8> = (0..3 * BEGIN_BYTES).map(|i| (i / 3) as u8).collect();
        let key = [7; KEY_BYTES];
        for first in [0, 4, BEGIN_BYTES - 9, BEGIN_BYTES - 8, BEGIN_BYTES - 7, 2 * BEGIN_BYTES] {
            for second in [0, 1, BEGIN_BYTES - 8, BEGIN_BYTES] {
                let (head, text) = data[..first + second].split_at(first);
                let whole = [&77u64.to_le_bytes()[..], head, text].concat();
                let expected = blake3::keyed_hash(&key, &whole);
                assert_eq!(tag(&key, 77, &[head, text]), expected.as_bytes()[..TAG_BYTES], "{first} + {second}");
            }
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        for sealer in sealers(0) {
            let key = sealer.object_key(ObjectKind::Fence, Seq(1), &[1; 16]).unwrap();
            assert_eq!(format!("{key:?}"), "ObjectKey");
        }
    }
}
