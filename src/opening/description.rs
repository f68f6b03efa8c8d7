//! A volume's description in the store: read the newest, unlock what it describes, put the next.
//!
//! It is also the claim to the name: all volumes that ever had a name have their descriptions in one sequence of numbers, each
//! created once, and the highest that is whole counts. Of two servers that create a volume of that name at once, or of one that deletes it
//! and one that changes it, only one gets the next number. The highest number is never deleted, not even that of a volume
//! that is gone: so the next number is free for one more only, however late a request arrives.
//!
//! Who makes a volume smaller puts a claim to the number, too ([`super::resize`]), so that whoever takes the volume meanwhile sees it.
//!
//! On a store that cannot create a key for one only, whoever wants a number puts a claim to it first, and looks, and looks again
//! when the description is there; see [`super::verified`] for why.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::codec::seal::Sealer;
use crate::engine::slot::{self, Put};
use crate::error::{Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::meta::{FencedBy, Meta, VolumeName};
use crate::format::places::further_place;
use crate::keyring::{Keyring, Secrets, UnlockError};
use crate::opening::verified::{give_way, put_mark, take_back};
use crate::outside::Random;
use crate::reading::again;
use crate::store::{ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};

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
        Some(_) => Err(absent(store, name).await?),
        None => Err(match newest_number(store, name).await? {
            0 => absent(store, name).await?,
            torn => VolumeError::Corrupt {
                key: Keys::meta(name, torn),
                why:
                    "only the first part of the description is there; if creating the volume broke off, create it again"
                        .into(),
            },
        }),
    }
}

/// There is no such volume, or only its mirror.
async fn absent(store: &dyn Store, name: &VolumeName) -> Result<VolumeError> {
    let is_mirror = !mirror_numbers(store, name).await?.is_empty();
    let (name, store) = (name.to_string(), store.url());
    Ok(match is_mirror {
        false => VolumeError::NotFound { name, store },
        true => VolumeError::IsMirror { name, store },
    })
}

/// The newest description, for a server that is about to rely on it. In verified mode the newest one may still lose against somebody
/// who wanted to follow the one before it, and then what was sealed with its keys could not be opened: waits until nobody wants a
/// higher number, and puts the same one once more, above all claims, if that takes too long.
pub async fn settled(store: &dyn Store, random: &Random, name: &VolumeName) -> Result<Description> {
    for turn in 0..2 * CLAIMS {
        let found = load(store, name).await?;
        if found.meta.fenced_by != FencedBy::Verified || wanted(store, name).await?.highest <= found.number {
            return Ok(found);
        }
        if turn < CLAIMS {
            give_way(random, turn).await;
        } else {
            put_verified(store, random, found.number, name, found.bytes.clone(), unguarded).await?;
        }
    }
    Err(changed_meanwhile(name))
}

/// The description of a volume that this server has taken, unless it is still number `known` and nobody wants a higher one. Who wants
/// one may have had the volume before, and be about to make it smaller ([`super::resize`]): that must not count any more if it does
/// not yet. So the newest is put once more, above all claims; in verified mode only if they are not withdrawn.
pub(crate) async fn settled_since(
    store: &dyn Store,
    random: &Random,
    name: &VolumeName,
    known: u64,
) -> Result<Option<Description>> {
    for turn in 0..2 * CLAIMS {
        let Wanted { newest, highest } = wanted(store, name).await?;
        if newest == known && highest == known {
            return Ok(None);
        }
        let found = load(store, name).await?;
        if found.number >= highest {
            return Ok(Some(found));
        }
        match found.meta.fenced_by {
            FencedBy::Verified if turn < CLAIMS => give_way(random, turn).await,
            FencedBy::Verified => drop(put_verified(store, random, found.number, name, found.bytes, unguarded).await?),
            FencedBy::CreateOnly => drop(put_created(store, found.number, name, found.bytes).await?),
        }
    }
    Err(changed_meanwhile(name))
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
            let bytes = match read(store, name, &key).await {
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

/// The newest description of a mirror ([`crate::mirror`]); nothing if there is none that is whole.
pub async fn mirrored(store: &dyn Store, name: &VolumeName) -> Result<Option<Description>> {
    for (number, places) in mirror_numbers(store, name).await?.into_iter().rev() {
        for key in places {
            let bytes = match read(store, name, &key).await {
                // Somebody has put a newer one, and deleted this.
                Err(error) if error.kind == ErrorKind::NotFound => continue,
                read => read.map_err(VolumeError::store(format!("reading {key}")))?,
            };
            if Meta::is_torn(&bytes) {
                continue;
            }
            let meta =
                Meta::decode(name, &bytes).map_err(|error| VolumeError::Corrupt { key, why: error.to_string() })?;
            return Ok(Some(Description { number, meta, bytes }));
        }
    }
    Ok(None)
}

/// Refuses a name that only a mirror has: a volume of that name would be in its way.
pub(super) async fn refuse_mirror(store: &dyn Store, name: &VolumeName) -> Result<()> {
    match mirror_numbers(store, name).await?.is_empty() {
        true => Ok(()),
        false => Err(VolumeError::IsMirror { name: name.to_string(), store: store.url() }),
    }
}

/// The numbers of the descriptions of a mirror, each with the keys that it has, in order.
pub(crate) async fn mirror_numbers(store: &dyn Store, name: &VolumeName) -> Result<BTreeMap<u64, Vec<Key>>> {
    let prefix = Keys::mirrors(name);
    let listed = list_all(store, &prefix).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    let mut numbers: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
    for ObjectEntry { key, .. } in listed {
        let own = further_place(&key).map_or_else(|| key.clone(), |(own, _)| own);
        if let Some(number) = Keys::number(&own) {
            numbers.entry(number).or_default().push(key);
        }
    }
    Ok(numbers)
}

/// Puts a description into a mirror, byte for byte, and deletes those before it: they may hold key slots that are to be gone. Whether it is there;
/// not if another one has its number.
pub(crate) async fn put_mirrored(store: &dyn Store, description: &Description) -> Result<bool> {
    let name = &description.meta.name;
    let key = Keys::mirror(name, description.number);
    let put = slot::put(store, &key, vec![description.bytes.clone()], &|there| Meta::is_torn(there)).await;
    match put.map_err(VolumeError::store(format!("writing {key}")))? {
        Put::Ours(_) => {}
        Put::Taken(_) => return Ok(false),
        Put::Torn => return Err(VolumeError::Invalid(slot::torn(&key))),
    }
    let old: Vec<Key> =
        mirror_numbers(store, name).await?.range(..description.number).flat_map(|(_, keys)| keys.clone()).collect();
    if !old.is_empty() {
        store.delete(&old).await.map_err(VolumeError::store(format!("deleting older descriptions of {name}")))?;
    }
    Ok(true)
}

/// Makes a volume of a mirror: puts its description where those of volumes are, byte for byte, under a number that is not lower than its own. Returns
/// that number; nothing if somebody else was faster.
pub(super) async fn put_promoted(store: &dyn Store, description: &Description) -> Result<Option<u64>> {
    let name = &description.meta.name;
    let before = newest_number(store, name).await?.max(description.number.saturating_sub(1));
    put_created(store, before, name, description.bytes.clone()).await
}

/// The bytes of a description, for certain.
async fn read(store: &dyn Store, name: &VolumeName, key: &Key) -> std::result::Result<Bytes, StoreError> {
    again::settled(store, key, |bytes| !Meta::is_torn(bytes) && Meta::decode(name, bytes).is_ok()).await
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
    Ok(list(store, name).await?.iter().filter_map(Keys::number).collect())
}

/// The keys of all descriptions of that name, and of the claims to put one.
async fn list(store: &dyn Store, name: &VolumeName) -> Result<Vec<Key>> {
    let listed = list_all(store, &Keys::metas(name)).await;
    let listed = listed.map_err(VolumeError::store(format!("looking for volume {name}")))?;
    Ok(listed.into_iter().map(|entry| entry.key).collect())
}

/// The description that the tombstone took the place of, for as long as it is there.
pub async fn before(store: &dyn Store, tombstone: &Description) -> Result<Option<Description>> {
    let name = &tombstone.meta.name;
    let mut numbers = numbers(store, name).await?;
    numbers.sort_unstable();
    for number in numbers.into_iter().rev().filter(|number| *number < tombstone.number) {
        let key = Keys::meta(name, number);
        let bytes = match read(store, name, &key).await {
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
        let generation = self.meta.encryption.as_ref().map(|encryption| encryption.generation);
        self.meta.prove(&self.bytes, keyring).map_err(|error| match generation {
            // Whoever has the keys from before cannot prove it, and has nothing to believe either.
            Some(generation) if generation > keyring.current().0 => VolumeError::Invalid(format!(
                "the data key of volume {} was rotated at the same time ({generation} is the newest); try again",
                self.meta.name
            )),
            _ => VolumeError::Corrupt { key: self.key(), why: error.to_string() },
        })
    }

    /// Puts the description that follows this one, and deletes those before it: they may hold key slots that are
    /// to be gone. Fails if somebody else was faster.
    pub async fn replace(
        &self,
        store: &dyn Store,
        random: &Random,
        meta: &Meta,
        keyring: Option<&Keyring>,
    ) -> Result<()> {
        if put(store, random, self.number, meta, keyring).await?.is_none() {
            return Err(changed_meanwhile(&meta.name));
        }
        self.delete_old(store).await
    }

    /// As [`Description::replace`], for what only the server may change that has the volume: `prove` shows that it still has it, when
    /// a claim to the number is there. Returns the number. If this fails, the description may be there all the same, or arrive, until
    /// [`settled_since`] returned.
    pub(crate) async fn replace_as_owner<F: Future<Output = Result<()>>>(
        &self,
        store: &dyn Store,
        random: &Random,
        meta: &Meta,
        keyring: Option<&Keyring>,
        prove: impl Fn() -> F,
    ) -> Result<u64> {
        meta.check_store(store)?;
        let (name, encoded) = (&meta.name, Bytes::from(meta.encode(keyring)));
        let placed = match meta.fenced_by {
            FencedBy::Verified => put_verified(store, random, self.number, name, encoded, prove).await?,
            FencedBy::CreateOnly => {
                let claim = Keys::meta_claim(name, self.number + 1, random.below(u64::MAX));
                put_mark(store, &claim).await?;
                if let Err(error) = prove().await {
                    take_back(store, claim).await;
                    return Err(error);
                }
                let placed = put_created(store, self.number, name, encoded).await?;
                take_back(store, claim).await;
                placed
            }
        };
        let number = placed.ok_or_else(|| changed_meanwhile(name))?;
        self.delete_old(store).await?;
        Ok(number)
    }

    /// Deletes this description, those before it, and the claims to their numbers.
    async fn delete_old(&self, store: &dyn Store) -> Result<()> {
        let name = &self.meta.name;
        let old = list(store, name).await?.into_iter();
        let old =
            old.filter(|key| Keys::number(key).or_else(|| Keys::claimed_meta(key)).is_some_and(|n| n <= self.number));
        let old: Vec<Key> = old.collect();
        store.delete(&old).await.map_err(VolumeError::store(format!("deleting older descriptions of {name}")))
    }
}

/// Puts the description that follows number `before`, or a later one if only parts of others' or of earlier tries have the numbers
/// between. Returns its number; nothing if somebody else was faster.
pub(crate) async fn put(
    store: &dyn Store,
    random: &Random,
    before: u64,
    meta: &Meta,
    keyring: Option<&Keyring>,
) -> Result<Option<u64>> {
    meta.check_store(store)?;
    let encoded = Bytes::from(meta.encode(keyring));
    match meta.fenced_by {
        FencedBy::CreateOnly => put_created(store, before, &meta.name, encoded).await,
        FencedBy::Verified => put_verified(store, random, before, &meta.name, encoded, unguarded).await,
    }
}

/// What [`put_verified`] is to do between claim and description where there is nothing to do.
async fn unguarded() -> Result<()> {
    Ok(())
}

async fn put_created(store: &dyn Store, before: u64, name: &VolumeName, encoded: Bytes) -> Result<Option<u64>> {
    let first = before + 1;
    let place = |n| Ok(Keys::meta(name, first + u64::from(n)));
    match slot::put_at(store, &place, vec![encoded], &|there| Meta::is_torn(there)).await {
        Ok(Put::Ours(key)) => Ok(Keys::number(&key)),
        Ok(Put::Taken(_)) => Ok(None),
        Ok(Put::Torn) => Err(VolumeError::Invalid(slot::torn(&Keys::meta(name, first)))),
        // Whoever was faster has been followed by somebody else already.
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(VolumeError::Store { doing: format!("writing a description of volume {name}"), source: error })
        }
    }
}

/// How often a claim gives way.
const CLAIMS: usize = 8;

/// Claim, look, put, look. Before it puts anything, `prove` must hold.
async fn put_verified<F: Future<Output = Result<()>>>(
    store: &dyn Store,
    random: &Random,
    before: u64,
    name: &VolumeName,
    encoded: Bytes,
    prove: impl Fn() -> F,
) -> Result<Option<u64>> {
    for turn in 0..CLAIMS {
        let Wanted { newest: listed, highest } = wanted(store, name).await?;
        // Parts of earlier tries are in nobody's way.
        if listed != before && newest(store, name).await?.map_or(0, |found| found.number) != before {
            return Ok(None);
        }
        let number = highest + 1;
        let claim = Keys::meta_claim(name, number, random.below(u64::MAX));
        put_mark(store, &claim).await?;
        let is_alone = is_alone(store, name, &claim, listed, number).await;
        if !matches!(is_alone, Ok(true)) {
            take_back(store, claim).await;
            is_alone?;
            give_way(random, turn).await;
            continue;
        }
        if let Err(error) = prove().await {
            take_back(store, claim).await;
            return Err(error);
        }
        let key = Keys::meta(name, number);
        match slot::put_at(store, &|_| Ok(key.clone()), vec![encoded.clone()], &|_| false).await {
            Ok(Put::Ours(_)) => {}
            Ok(Put::Taken(_) | Put::Torn) => return Err(VolumeError::Invalid(slot::torn(&key))),
            Err(source) => return Err(VolumeError::Store { doing: format!("writing {key}"), source }),
        }
        // Whoever claims a higher number from here on sees this one and follows it; who did before may not have.
        let placed = is_newest(store, random, name, number).await;
        take_back(store, claim).await;
        return placed;
    }
    Err(changed_meanwhile(name))
}

/// Whether nobody else wants this number or a higher one, and there is still no description after `newest`.
async fn is_alone(store: &dyn Store, name: &VolumeName, own: &Key, newest: u64, number: u64) -> Result<bool> {
    let listed = list(store, name).await?;
    let is_rival = |key: &Key| key != own && Keys::claimed_meta(key).is_some_and(|other| other >= number);
    Ok(!listed.iter().any(|key| is_rival(key) || Keys::number(key).is_some_and(|other| other > newest)))
}

/// Whether the description that was just put stays the newest. Waits for higher claims to be withdrawn.
async fn is_newest(store: &dyn Store, random: &Random, name: &VolumeName, number: u64) -> Result<Option<u64>> {
    for turn in 0..CLAIMS {
        let Wanted { newest, highest } = wanted(store, name).await?;
        if newest > number {
            return Ok(None);
        }
        if highest == number {
            return Ok(Some(number));
        }
        give_way(random, turn).await;
    }
    Err(VolumeError::Invalid(format!(
        "the description of volume {name} is being changed by somebody else at the same time, and it is not known whose counts; look \
         with `ashlar info`, and try again"
    )))
}

/// The numbers of a volume's descriptions.
struct Wanted {
    /// The highest that there is.
    newest: u64,
    /// The highest that anybody wants.
    highest: u64,
}

async fn wanted(store: &dyn Store, name: &VolumeName) -> Result<Wanted> {
    let listed = list(store, name).await?;
    let newest = listed.iter().filter_map(Keys::number).max().unwrap_or(0);
    let claimed = listed.iter().filter_map(Keys::claimed_meta).max().unwrap_or(0);
    Ok(Wanted { newest, highest: newest.max(claimed) })
}
