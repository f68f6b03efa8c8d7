//! A volume's description in the store: read the newest, unlock what it describes, put the next.

use bytes::Bytes;

use crate::codec::seal::Sealer;
use crate::keyring::{Keyring, Secrets, UnlockError};
use crate::store::{ErrorKind, Key, Store, StoreError, list_all};
use crate::volume::error::{Result, VolumeError};
use crate::volume::keys::Keys;
use crate::volume::meta::{Meta, VolumeName};
use crate::volume::slot::{self, Put};

/// A description as it was read.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its number.
    pub number: u64,
    /// What it says.
    pub meta: Meta,
    bytes: Bytes,
}

/// The newest description of a volume; a volume that is being deleted is not there any more.
pub async fn load(store: &dyn Store, keys: &Keys, name: &VolumeName) -> Result<Description> {
    match newest(store, keys, name).await? {
        Some(found) if !found.meta.deleted => Ok(found),
        Some(_) => Err(VolumeError::NotFound { name: name.to_string(), store: store.url() }),
        None => Err(match numbers(store, keys, name).await?.into_iter().max() {
            None => VolumeError::NotFound { name: name.to_string(), store: store.url() },
            Some(torn) => VolumeError::Corrupt {
                key: keys.meta(torn),
                why:
                    "only the first part of the description is there; if creating the volume broke off, create it again"
                        .into(),
            },
        }),
    }
}

/// How often reading begins again because somebody put a newer description and deleted the one that was listed.
const TRIES: usize = 4;

/// The newest description, be it of a deleted volume.
pub async fn newest(store: &dyn Store, keys: &Keys, name: &VolumeName) -> Result<Option<Description>> {
    let mut tries = 0;
    'again: loop {
        let mut numbers = numbers(store, keys, name).await?;
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let key = keys.meta(number);
            let bytes = match store.get(&key).await {
                Err(error) if error.kind == ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                    continue 'again;
                }
                read => read.map_err(VolumeError::store(format!("reading {key}")))?,
            };
            if Meta::is_torn(&bytes) {
                tracing::warn!(object = %key, "only the first part of this description is there, because its upload broke off; the one before it counts");
                continue;
            }
            let meta =
                Meta::decode(name, &bytes).map_err(|error| VolumeError::Corrupt { key, why: error.to_string() })?;
            return Ok(Some(Description { number, meta, bytes }));
        }
        return Ok(None);
    }
}

/// Puts a description: number `first`, or a later one if only parts of others' or of earlier tries have those before it.
pub(super) async fn put(
    store: &dyn Store,
    keys: &Keys,
    first: u64,
    encoded: Bytes,
) -> std::result::Result<Put, StoreError> {
    let place = |n| Ok(keys.meta(first + u64::from(n)));
    slot::put_at(store, &place, vec![encoded], &|there| Meta::is_torn(there)).await
}

/// Somebody else put the description that was to follow.
pub(super) fn changed_meanwhile(name: &VolumeName) -> VolumeError {
    VolumeError::Invalid(format!(
        "the description of volume {name} was changed by somebody else at the same time; try again"
    ))
}

async fn numbers(store: &dyn Store, keys: &Keys, name: &VolumeName) -> Result<Vec<u64>> {
    let listed = list_all(store, &keys.metas()).await;
    let listed = listed.map_err(VolumeError::store(format!("looking for volume {name}")))?;
    Ok(listed.iter().filter_map(|entry| Keys::number(&entry.key)).collect())
}

impl Description {
    /// What seals and opens the volume's objects. If it is encrypted, one of the secrets must open one of its slots, and
    /// the description must have been written by somebody with the key.
    pub async fn unlock(&self, keys: &Keys, secrets: &Secrets) -> Result<Sealer> {
        let name = self.meta.name.as_str();
        let locked = |why| VolumeError::Locked { name: name.to_owned(), why };
        let Some(encryption) = &self.meta.encryption else {
            return match secrets.require_encryption() {
                true => Err(locked(UnlockError::NotEncrypted)),
                false => Ok(Sealer::new(self.meta.uuid, None)),
            };
        };
        let keyring = secrets.unlock(name, self.meta.uuid, encryption).await.map_err(locked)?;
        self.prove(keys, &keyring)?;
        Ok(Sealer::new(self.meta.uuid, Some(keyring)))
    }

    /// That somebody with the key wrote it.
    pub fn prove(&self, keys: &Keys, keyring: &Keyring) -> Result<()> {
        let forged = |error: crate::volume::meta::MetaError| VolumeError::Corrupt {
            key: keys.meta(self.number),
            why: error.to_string(),
        };
        self.meta.prove(&self.bytes, keyring).map_err(forged)
    }

    /// Puts the description that follows this one, and deletes those before it: they may hold key slots that are
    /// to be gone. Fails if somebody else was faster.
    pub async fn replace(&self, store: &dyn Store, keys: &Keys, meta: &Meta, keyring: Option<&Keyring>) -> Result<()> {
        let next = self.number + 1;
        let put = put(store, keys, next, Bytes::from(meta.encode(keyring))).await;
        match put.map_err(VolumeError::store(format!("writing {}", keys.meta(next))))? {
            Put::Ours(_) => {}
            Put::Taken(_) => return Err(changed_meanwhile(&meta.name)),
            Put::Torn => return Err(VolumeError::Invalid(slot::torn(&keys.meta(next)))),
        }
        let old = numbers(store, keys, &meta.name).await?.into_iter().filter(|number| *number <= self.number);
        let old: Vec<Key> = old.map(|number| keys.meta(number)).collect();
        store.delete(&old).await.map_err(VolumeError::store(format!("deleting older descriptions of {}", meta.name)))
    }
}
