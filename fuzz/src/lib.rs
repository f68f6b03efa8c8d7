//! What the fuzz targets share: the volume of the golden files, a true seal around what the fuzzer made up, and a bound on memory.
//!
//! A target must neither panic nor hold more memory than its input justifies: [`within`] ends the process if it does, and
//! the fuzzer keeps the input.

pub mod input;
pub mod memory;

use ashlar::codec::frame::{Compression, Frames};
use ashlar::codec::object::{ObjectKind, encode};
use ashlar::codec::seal::{ObjectKey, Sealer, TAG_BYTES};
use ashlar::keyring::{Keyring, Locked};
use ashlar::units::Seq;
use uuid::{Uuid, uuid};

pub use input::Input;
pub use memory::{fair, within};

/// The volume of the golden objects, so that they are whole where the fuzzer begins.
pub const VOLUME: Uuid = uuid!("67e55044-10b1-426f-9247-bb680e5fe0c8");

/// The salt of what is sealed here; of the second generation, as the encrypted golden files are.
pub const SALT: [u8; 16] = *b"\x02alt of a golden";

/// The data keys of the encrypted golden files.
pub fn keyring() -> Keyring {
    let retired = [(1, Locked::take(&mut [9; 32]))];
    let mut current = *b"thirty-two bytes of a golden key";
    Keyring::new((2, Locked::take(&mut current)), retired, None)
}

/// Seals as the golden objects of that kind are sealed.
pub fn sealer(is_encrypted: bool) -> Sealer {
    Sealer::new(VOLUME, is_encrypted.then(keyring))
}

/// An object whose head is `head`, truly sealed, with `body` where its frames lie: what somebody with the key, or a fault of ours,
/// could put there. Without this nothing that the fuzzer makes up gets past the tag. `None` if the head is too long.
pub fn sealed(sealer: &Sealer, kind: ObjectKind, seq: Seq, head: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let none = Frames::with_capacity(0, 0, Compression::None);
    let mut object = encode(sealer, kind, seq, SALT, head, none).ok()?.parts.concat();
    object.extend_from_slice(body);
    Some(object)
}

/// Seals what lies in `object` at `offset` as a frame, if it lies there: room for the tag, then what the fuzzer made up.
pub fn seal_frame(object: &mut [u8], key: &ObjectKey, offset: u32, len: u32) {
    let (begin, end) = (offset as usize, offset as usize + len as usize);
    let frame = object.get_mut(begin..end).and_then(|frame| frame.split_at_mut_checked(TAG_BYTES));
    if let Some((tag, body)) = frame
        && let Ok(made) = key.seal(u64::from(offset), &[], body)
    {
        tag.copy_from_slice(&made);
    }
}
