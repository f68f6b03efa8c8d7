//! Watches everything that is sealed in a world: no pair of key and nonce may ever seal two texts, whatever crashes, is
//! tried again, or goes on as a zombie. With ChaCha20 a second text under a pair gives away both.

use std::collections::HashMap;
use std::sync::Arc;

use ashlar::keyring::slot::Cost;
use ashlar::keyring::unlock::SecretSource;
use ashlar::keyring::{Secret, Secrets};
use ashlar::outside::Workers;
use ashlar::volume::NewEncryption;
use async_trait::async_trait;
use parking_lot::Mutex;

/// What was sealed.
#[derive(Clone, Default)]
pub struct Seals(Arc<Mutex<Sealed>>);

/// By key and nonce, the hash of the text.
type Sealed = HashMap<([u8; 32], u64), blake3::Hash>;

impl Seals {
    /// How many texts were sealed.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// What unlocks the world's volume, and records what is sealed from then on.
    pub fn secrets(&self) -> Secrets {
        let sealed = self.0.clone();
        let witness = move |key: &[u8; 32], nonce: u64, text: &[u8]| {
            let hash = blake3::hash(text);
            let before = sealed.lock().insert((*key, nonce), hash);
            assert!(before.is_none_or(|before| before == hash), "a pair of key and nonce sealed a second text");
        };
        Secrets::new(Arc::new(TheKey), Workers::Inline).witnessed(Arc::new(witness))
    }
}

/// How an encrypted world's volume is created.
pub fn encryption() -> NewEncryption {
    NewEncryption { secret: key(), cost: Cost::LEAST, recovery: false }
}

fn key() -> Secret {
    Secret::key_file(vec![7; 32].into()).unwrap()
}

struct TheKey;

#[async_trait]
impl SecretSource for TheKey {
    async fn secrets(&self, _volume: &str) -> Result<Vec<Secret>, String> {
        Ok(vec![key()])
    }
}
