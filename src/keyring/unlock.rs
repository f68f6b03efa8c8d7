//! From secrets to a keyring: the one way in which a volume is unlocked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::slot::{BadSlot, Encryption, SlotKind};
use super::{Keyring, Locked, SealWitness, Secret};
use crate::outside::Workers;

/// Where secrets come from: configuration, environment, a terminal, a test.
#[async_trait]
pub trait SecretSource: Send + Sync {
    /// What may unlock the volume of that name; none if nothing is configured. The error is a sentence that names the
    /// source and the way out.
    async fn secrets(&self, volume: &str) -> Result<Vec<Secret>, String>;
}

/// Unlocks volumes. What was unlocked once is kept: Argon2id is slow on purpose.
#[derive(Clone, Default)]
pub struct Secrets {
    source: Option<Arc<dyn SecretSource>>,
    workers: Workers,
    required: bool,
    unlocked: Arc<Mutex<HashMap<Uuid, Unlocked>>>,
    witness: Option<Arc<SealWitness>>,
}

struct Unlocked {
    by: Encryption,
    keyring: Keyring,
}

/// Why a volume stays locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    /// Nothing was given.
    #[error("no key was given: use --passphrase-file, --key-file or --key-command, or set one in [keys]")]
    NoKey,
    /// What was given opens no slot.
    #[error("the key that was given opens none of its {slots} key slots; `ashlar key list` shows what they are")]
    WrongKey {
        /// How many there are.
        slots: usize,
    },
    /// A secret could not be had.
    #[error("{0}")]
    Source(String),
    /// The description makes no sense.
    #[error("key slot {id} of its description cannot be used: {why}")]
    Slot {
        /// Its id.
        id: u8,
        /// What is wrong.
        why: BadSlot,
    },
    /// It is not encrypted, and must be.
    #[error("it is not encrypted, and keys.required says that every volume must be")]
    NotEncrypted,
    /// A slot opened, but an older data key did not.
    #[error("a retired data key in its description does not open: it was changed, or put together from two volumes")]
    Retired,
}

impl Secrets {
    /// From this source; passphrases are tried on `workers`.
    pub fn new(source: Arc<dyn SecretSource>, workers: Workers) -> Secrets {
        Secrets { source: Some(source), workers, ..Secrets::default() }
    }

    /// The same, and `witness` is told of everything that is sealed.
    pub fn witnessed(self, witness: Arc<SealWitness>) -> Secrets {
        Secrets { witness: Some(witness), ..self }
    }

    /// Opens the first slot that one of the secrets fits.
    pub async fn unlock(&self, name: &str, volume: Uuid, by: &Encryption) -> Result<Keyring, UnlockError> {
        if let Some(known) = self.unlocked.lock().get(&volume).filter(|known| known.by == *by) {
            return Ok(known.keyring.clone());
        }
        let (_, keyring) = self.open(name, volume, by).await?;
        self.unlocked.lock().insert(volume, Unlocked { by: by.clone(), keyring: keyring.clone() });
        Ok(keyring)
    }

    /// The same, without a memory: also tells what opened which slot.
    pub async fn open(&self, name: &str, volume: Uuid, by: &Encryption) -> Result<(Opened, Keyring), UnlockError> {
        let source = self.source.as_ref().ok_or(UnlockError::NoKey)?;
        let secrets = source.secrets(name).await.map_err(UnlockError::Source)?;
        if secrets.is_empty() {
            return Err(UnlockError::NoKey);
        }
        let (slots, witness) = (by.clone(), self.witness.clone());
        self.workers
            .run(move || {
                let (opened, current) = try_all(volume, &slots, &secrets)?;
                let keyring = slots.keyring(volume, current, witness).ok_or(UnlockError::Retired)?;
                Ok((opened, keyring))
            })
            .await
    }

    /// Refuses volumes that are not encrypted: somebody who can write to the store could put one in an encrypted one's place.
    pub fn requiring_encryption(self, required: bool) -> Secrets {
        Secrets { required, ..self }
    }

    /// Whether volumes that are not encrypted are refused.
    pub fn require_encryption(&self) -> bool {
        self.required
    }
}

/// What opened a slot.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The slot.
    pub id: u8,
    /// Its kind.
    pub kind: SlotKind,
    /// What opened it.
    pub secret: Secret,
}

/// Slots whose key is cheap come first; a bad slot matters only if no other opens.
fn try_all(volume: Uuid, by: &Encryption, secrets: &[Secret]) -> Result<(Opened, Locked), UnlockError> {
    let mut slots: Vec<_> = by.slots.iter().collect();
    slots.sort_by_key(|slot| (slot.argon2id.is_some(), slot.id));
    let mut bad = None;
    for slot in slots {
        for secret in secrets {
            match slot.open(volume, by.generation, secret) {
                Ok(Some(key)) => {
                    return Ok((Opened { id: slot.id, kind: slot.kind, secret: secret.clone() }, key));
                }
                Ok(None) => {}
                Err(why) => bad = Some(UnlockError::Slot { id: slot.id, why }),
            }
        }
    }
    Err(bad.unwrap_or(UnlockError::WrongKey { slots: by.slots.len() }))
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", if self.source.is_some() { "some" } else { "none" })
    }
}
