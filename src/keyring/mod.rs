//! The keys of an encrypted volume.
//!
//! ```text
//! secret (passphrase, key file, recovery key)
//!    │ Argon2id, or BLAKE3 for what is random already           [`slot`]
//!    ▼
//! slot key ── opens ──► data key (random, 32 bytes; one for each generation)   [`Keyring`]
//!                          │ BLAKE3: volume, kind, seq, salt                   [`crate::codec::seal`]
//!                          ▼
//!                       object key ── ChaCha20-Poly1305, nonce = byte offset
//! ```
//!
//! Slots stand in the volume's description; adding, changing and removing one rewrites that small object and no data.
//! Rotation draws a new data key: what is written from then on is sealed with it, and the keys before it are kept,
//! sealed with the new one, to read what is older. The generation is the first byte of every object's salt.
//!
//! A clone has its parent's data keys, sealed with its own current one ([`HandedKeys`]).
//!
//! Nothing here reads files, environment or terminals: secrets are handed in ([`unlock::SecretSource`]).

pub mod locked;
pub mod secret;
pub mod slot;
pub mod unlock;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use zeroize::Zeroize;

pub use locked::{KEY_BYTES, Locked};
pub use secret::{RecoveryKey, Secret};
pub use slot::{Encryption, HandedKeys, KeySlot, SlotKind};
pub use unlock::{Secrets, UnlockError};

/// The number of a data key, from 1; each rotation takes the next.
pub type Generation = u8;

/// The data keys of a volume, all generations. Clones share them, so that a rotation reaches everybody who seals.
#[derive(Clone)]
pub struct Keyring(Arc<Ring>);

struct Ring {
    keys: RwLock<Keys>,
    witness: Option<Arc<SealWitness>>,
}

#[derive(Clone)]
struct Keys {
    current: (Generation, Arc<Locked>),
    retired: BTreeMap<Generation, Arc<Locked>>,
}

/// Told of everything that is sealed: key, nonce, text. For the test that proves that no pair of key and nonce ever seals
/// two texts; servers have none.
pub type SealWitness = dyn Fn(&[u8; KEY_BYTES], u64, &[u8]) + Send + Sync;

impl Keyring {
    /// With these data keys: the current one and those before it.
    pub fn new(
        current: (Generation, Locked),
        retired: impl IntoIterator<Item = (Generation, Locked)>,
        witness: Option<Arc<SealWitness>>,
    ) -> Keyring {
        let shared = |(generation, key)| (generation, Arc::new(key));
        let keys = Keys { current: shared(current), retired: retired.into_iter().map(shared).collect() };
        Keyring(Arc::new(Ring { keys: RwLock::new(keys), witness }))
    }

    /// The data key that seals.
    pub fn current(&self) -> (Generation, Arc<Locked>) {
        self.0.keys.read().current.clone()
    }

    /// The data key of that generation.
    pub fn key(&self, generation: Generation) -> Option<Arc<Locked>> {
        let keys = self.0.keys.read();
        match keys.current.0 == generation {
            true => Some(keys.current.1.clone()),
            false => keys.retired.get(&generation).cloned(),
        }
    }

    /// The same data keys, of which that one seals; nothing if it is not there. For whoever only reads.
    pub fn sealing_with(&self, generation: Generation) -> Option<Keyring> {
        let mut keys = self.0.keys.read().clone();
        if keys.current.0 != generation {
            let (number, key) = std::mem::replace(&mut keys.current, (generation, keys.retired.remove(&generation)?));
            keys.retired.insert(number, key);
        }
        Some(Keyring(Arc::new(Ring { keys: RwLock::new(keys), witness: self.0.witness.clone() })))
    }

    /// The highest generation of a data key that is there.
    pub fn newest(&self) -> Generation {
        let keys = self.0.keys.read();
        keys.retired.keys().copied().chain([keys.current.0]).max().unwrap_or(keys.current.0)
    }

    /// The data keys before the current one.
    pub fn retired(&self) -> Vec<(Generation, Arc<Locked>)> {
        self.0.keys.read().retired.iter().map(|(generation, key)| (*generation, key.clone())).collect()
    }

    /// Whether there are data keys before the current one.
    pub fn has_retired(&self) -> bool {
        !self.0.keys.read().retired.is_empty()
    }

    /// Takes over what another keyring of the same volume holds: from now on its current key seals.
    pub fn follow(&self, newer: &Keyring) {
        // It may be this very one: its lock must be free again.
        let newer = newer.0.keys.read().clone();
        *self.0.keys.write() = newer;
    }

    /// A keyring with one more data key, which seals from now on; none after 255 generations.
    pub fn rotated(&self, key: Locked) -> Option<Keyring> {
        let keys = self.0.keys.read();
        let (current, old) = keys.current.clone();
        let next = current.checked_add(1)?;
        let mut retired = keys.retired.clone();
        retired.insert(current, old);
        let keys = RwLock::new(Keys { current: (next, Arc::new(key)), retired });
        Some(Keyring(Arc::new(Ring { keys, witness: self.0.witness.clone() })))
    }

    /// Who is told of everything that is sealed.
    pub fn witness(&self) -> Option<Arc<SealWitness>> {
        self.0.witness.clone()
    }

    /// A key for another purpose, which `context` names, derived from the current data key and `material`.
    pub fn derive(&self, context: &str, material: &[u8]) -> [u8; KEY_BYTES] {
        derive(context, self.current().1.bytes(), material)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring(generation {})", self.current().0)
    }
}

/// A key for the purpose that `context` names, derived from `key` and `material`.
pub fn derive(context: &str, key: &[u8; KEY_BYTES], material: &[u8]) -> [u8; KEY_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(key).update(material);
    let derived = *hasher.finalize().as_bytes();
    hasher.zeroize();
    derived
}
