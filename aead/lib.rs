//! ChaCha20-Poly1305 (RFC 8439), in place.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Bytes of a nonce. A pair of key and nonce seals one text only.
pub const NONCE_BYTES: usize = 12;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// Encrypts `text`, bound to `associated`, and returns its tag; nothing if it has more than 256 GiB.
pub fn seal(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    associated: &[u8],
    text: &mut [u8],
) -> Option<[u8; TAG_BYTES]> {
    let cipher = ChaCha20Poly1305::new(&Key::from(*key));
    let tag = cipher.encrypt_inout_detached(&Nonce::from(*nonce), associated, text.into());
    tag.ok().map(Into::into)
}

/// Decrypts `text`, if it was sealed with that tag and bound to `associated`. If not, `text` is of no use any more.
#[must_use]
pub fn open(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    associated: &[u8],
    tag: &[u8; TAG_BYTES],
    text: &mut [u8],
) -> bool {
    let cipher = ChaCha20Poly1305::new(&Key::from(*key));
    cipher.decrypt_inout_detached(&Nonce::from(*nonce), associated, text.into(), &Tag::from(*tag)).is_ok()
}
