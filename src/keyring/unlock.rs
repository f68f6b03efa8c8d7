//! From secrets to a keyring: the one way in which a volume is unlocked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::slot::{BadSlot, Encryption};
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

    /// Who is told of everything that is sealed.
    pub fn witness(&self) -> Option<Arc<SealWitness>> {
        self.witness.clone()
    }

    /// Opens the first slot that one of the secrets fits.
    pub async fn unlock(&self, name: &str, volume: Uuid, by: &Encryption) -> Result<Keyring, UnlockError> {
        if let Some(known) = self.unlocked.lock().get(&volume).filter(|known| known.by == *by) {
            return Ok(known.keyring.clone());
        }
        let (_, current) = self.open_slot(name, volume, by).await?;
        let keyring = by.keyring(volume, current, self.witness.clone()).ok_or(UnlockError::Retired)?;
        self.remember(volume, by.clone(), keyring.clone());
        Ok(keyring)
    }

    /// Keeps a keyring that was made here: its volume need not be unlocked again.
    pub fn remember(&self, volume: Uuid, by: Encryption, keyring: Keyring) {
        self.unlocked.lock().insert(volume, Unlocked { by, keyring });
    }

    /// The id of the slot that one of the secrets opens, and the data key.
    pub async fn open_slot(&self, name: &str, volume: Uuid, by: &Encryption) -> Result<(u8, Locked), UnlockError> {
        let source = self.source.as_ref().ok_or(UnlockError::NoKey)?;
        let secrets = source.secrets(name).await.map_err(UnlockError::Source)?;
        if secrets.is_empty() {
            return Err(UnlockError::NoKey);
        }
        let by = by.clone();
        self.workers.run(move || try_all(volume, &by, &secrets)).await
    }
}

/// Slots whose key is cheap come first; a bad slot matters only if no other opens.
fn try_all(volume: Uuid, by: &Encryption, secrets: &[Secret]) -> Result<(u8, Locked), UnlockError> {
    let mut slots: Vec<_> = by.slots.iter().collect();
    slots.sort_by_key(|slot| (slot.argon2id.is_some(), slot.id));
    let mut bad = None;
    for slot in slots {
        for secret in secrets {
            match slot.open(volume, by.generation, secret) {
                Ok(Some(key)) => return Ok((slot.id, key)),
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
