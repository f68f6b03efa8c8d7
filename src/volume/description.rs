//! A volume's description in the store: read the newest, unlock what it describes, put the next.
//!
//! It is also the claim to the name: all volumes that ever had a name have their descriptions in one sequence of numbers, each
//! created once, and the highest that is whole counts. Of two servers that create a volume of that name at once, or of one that deletes it
//! and one that changes it, only one gets the next number. The highest number is never deleted, not even that of a volume
//! that is gone: so the next number is free for one more only, however late a request arrives.

use bytes::Bytes;

use crate::codec::seal::Sealer;
use crate::keyring::{Keyring, Secrets, UnlockError};
use crate::store::{ErrorKind, Key, Store, list_all};
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
pub async fn load(store: &dyn Store, name: &VolumeName) -> Result<Description> {
    match newest(store, name).await? {
        Some(found) if !found.meta.deleted => Ok(found),
        Some(_) => Err(VolumeError::NotFound { name: name.to_string(), store: store.url() }),
        None => Err(match newest_number(store, name).await? {
            0 => VolumeError::NotFound { name: name.to_string(), store: store.url() },
            torn => VolumeError::Corrupt {
                key: Keys::meta(name, torn),
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
pub async fn newest(store: &dyn Store, name: &VolumeName) -> Result<Option<Description>> {
    let mut tries = 0;
    'again: loop {
        let mut numbers = numbers(store, name).await?;
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let key = Keys::meta(name, number);
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

/// Somebody else put the description that was to follow.
fn changed_meanwhile(name: &VolumeName) -> VolumeError {
    VolumeError::Invalid(format!(
        "the description of volume {name} was changed by somebody else at the same time; try again"
    ))
}

/// The highest number that a description of that name has, whole or torn; 0 if there is none.
pub async fn newest_number(store: &dyn Store, name: &VolumeName) -> Result<u64> {
    Ok(numbers(store, name).await?.into_iter().max().unwrap_or(0))
}

async fn numbers(store: &dyn Store, name: &VolumeName) -> Result<Vec<u64>> {
    let listed = list_all(store, &Keys::metas(name)).await;
    let listed = listed.map_err(VolumeError::store(format!("looking for volume {name}")))?;
    Ok(listed.iter().filter_map(|entry| Keys::number(&entry.key)).collect())
}

/// The description that the tombstone took the place of, for as long as it is there.
pub async fn before(store: &dyn Store, tombstone: &Description) -> Result<Option<Description>> {
    let name = &tombstone.meta.name;
    let mut numbers = numbers(store, name).await?;
    numbers.sort_unstable();
    for number in numbers.into_iter().rev().filter(|number| *number < tombstone.number) {
        let key = Keys::meta(name, number);
        let bytes = match store.get(&key).await {
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            read => read.map_err(VolumeError::store(format!("reading {key}")))?,
        };
        if !Meta::is_torn(&bytes) {
            let meta = Meta::decode(name, &bytes).ok().filter(|meta| meta.uuid == tombstone.meta.uuid);
            return Ok(meta.map(|meta| Description { number, meta, bytes }));
        }
    }
    Ok(None)
}

impl Description {
    /// One that was just put.
    pub fn new(number: u64, meta: Meta) -> Description {
        Description { number, bytes: Bytes::from(meta.encode(None)), meta }
    }

    /// What seals and opens the volume's objects. If it is encrypted, one of the secrets must open one of its slots, and
    /// the description must have been written by somebody with the key.
    pub async fn unlock(&self, secrets: &Secrets) -> Result<Sealer> {
        let name = self.meta.name.as_str();
        let locked = |why| VolumeError::Locked { name: name.to_owned(), why };
        let Some(encryption) = &self.meta.encryption else {
            return match secrets.require_encryption() {
                true => Err(locked(UnlockError::NotEncrypted)),
                false => Ok(Sealer::new(self.meta.uuid, None)),
            };
        };
        let keyring = secrets.unlock(name, self.meta.uuid, encryption).await.map_err(locked)?;
        self.prove(&keyring)?;
        Ok(Sealer::new(self.meta.uuid, Some(keyring)))
    }

    /// Its own key.
    fn key(&self) -> Key {
        Keys::meta(&self.meta.name, self.number)
    }

    /// That somebody with the key wrote it.
    pub fn prove(&self, keyring: &Keyring) -> Result<()> {
        let forged =
            |error: crate::volume::meta::MetaError| VolumeError::Corrupt { key: self.key(), why: error.to_string() };
        self.meta.prove(&self.bytes, keyring).map_err(forged)
    }

    /// Puts the description that follows this one, and deletes those before it: they may hold key slots that are
    /// to be gone. Fails if somebody else was faster.
    pub async fn replace(&self, store: &dyn Store, meta: &Meta, keyring: Option<&Keyring>) -> Result<()> {
        if put(store, self.number + 1, meta, keyring).await?.is_none() {
            return Err(changed_meanwhile(&meta.name));
        }
        let old = numbers(store, &meta.name).await?.into_iter().filter(|number| *number <= self.number);
        let old: Vec<Key> = old.map(|number| Keys::meta(&meta.name, number)).collect();
        store.delete(&old).await.map_err(VolumeError::store(format!("deleting older descriptions of {}", meta.name)))
    }
}

/// Puts a description under the number `first`, or a later one if only parts of others' or of earlier tries have those before
/// it. Returns its number; nothing if somebody else was faster.
pub(super) async fn put(store: &dyn Store, first: u64, meta: &Meta, keyring: Option<&Keyring>) -> Result<Option<u64>> {
    let place = |n| Ok(Keys::meta(&meta.name, first + u64::from(n)));
    let encoded = vec![Bytes::from(meta.encode(keyring))];
    match slot::put_at(store, &place, encoded, &|there| Meta::is_torn(there)).await {
        Ok(Put::Ours(key)) => Ok(Keys::number(&key)),
        Ok(Put::Taken(_)) => Ok(None),
        Ok(Put::Torn) => Err(VolumeError::Invalid(slot::torn(&Keys::meta(&meta.name, first)))),
        // Whoever was faster has been followed by somebody else already.
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(VolumeError::Store { doing: format!("writing a description of volume {}", meta.name), source: error })
        }
    }
}
