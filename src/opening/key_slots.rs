//! The key slots of an encrypted volume: list, add, remove, change; and the rotation of its data key. Each is one new
//! description; none touches data. What was sealed with a rotated key is sealed anew by garbage collection.

use crate::error::{Result, VolumeError};
use crate::format::meta::{Meta, VolumeName};
use crate::keyring::slot::{Cost, NewSlot, SLOTS_MAX};
use crate::keyring::unlock::Opened;
use crate::keyring::{Encryption, KeySlot, Keyring, Locked, RecoveryKey, Secret, Secrets, SlotKind};
use crate::opening::description::{self, Description};
use crate::opening::handed::Heirs;
use crate::outside::{Clock, Random};
use crate::store::Store;

/// Who changes slots: where the volume is, and what unlocks it now.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The volume.
    pub name: &'a VolumeName,
    /// What unlocks it.
    pub secrets: &'a Secrets,
    /// For salts and keys.
    pub random: &'a Random,
    /// For the time of creation.
    pub clock: &'a Clock,
}

/// The slots of a volume, and the generation of its data key. Needs no key; proves nothing.
pub async fn list(store: &dyn Store, name: &VolumeName) -> Result<Encryption> {
    let description = description::load(store, name).await?;
    description.meta.encryption.ok_or_else(|| not_encrypted(name))
}

fn not_encrypted(name: &VolumeName) -> VolumeError {
    VolumeError::Invalid(format!(
        "volume {name} is not encrypted and has no key slots; a volume is encrypted when it is created"
    ))
}

/// An unlocked description.
struct Unlocked {
    description: Description,
    encryption: Encryption,
    opened: Opened,
    keyring: Keyring,
}

/// What came of [`Slots::rotate`].
#[derive(Debug)]
#[must_use]
pub struct Rotation {
    /// The new generation.
    pub generation: u8,
    /// Its clones, which were given the new data key.
    pub clones: Vec<String>,
    /// The new recovery key. It may be all that opens the volume also where the outcome is an error: nobody knows what became
    /// of a PUT that got no answer.
    pub recovery: Option<RecoveryKey>,
    /// Whether the new description is in place.
    pub outcome: Result<()>,
}

impl Slots<'_> {
    /// Adds a slot that the secret opens; returns its id.
    pub async fn add(&self, secret: &Secret, cost: Cost) -> Result<u8> {
        self.add_from(&NewSlot::of(secret, cost)).await
    }

    /// Adds a slot for a recovery key, and returns both.
    pub async fn add_recovery(&self) -> Result<(u8, RecoveryKey)> {
        let key = RecoveryKey::new(self.random.bytes());
        let id = self.add_from(&NewSlot::Recovery(&key)).await?;
        Ok((id, key))
    }

    async fn add_from(&self, from: &NewSlot<'_>) -> Result<u8> {
        let mut unlocked = self.unlock().await?;
        let id = unlocked.encryption.free_id().ok_or_else(|| {
            VolumeError::Invalid(format!("volume {} has {SLOTS_MAX} key slots, the most there may be", self.name))
        })?;
        let slot = self.slot(&unlocked, id, from)?;
        unlocked.encryption.slots.push(slot);
        unlocked.encryption.slots.sort_by_key(|slot| slot.id);
        self.replace(unlocked).await?;
        Ok(id)
    }

    /// Removes a slot; what opened it opens the volume no more. The last one stays.
    pub async fn remove(&self, id: u8) -> Result<SlotKind> {
        let mut unlocked = self.unlock().await?;
        let slots = &mut unlocked.encryption.slots;
        let at = slots.iter().position(|slot| slot.id == id).ok_or_else(|| {
            VolumeError::Invalid(format!("volume {} has no key slot {id}; `ashlar key list` shows all", self.name))
        })?;
        if slots.len() == 1 {
            return Err(VolumeError::Invalid(format!(
                "slot {id} is the only one of volume {}: without it nobody could open it again; add another first",
                self.name
            )));
        }
        let kind = slots.remove(at).kind;
        self.replace(unlocked).await?;
        Ok(kind)
    }

    /// Gives the slot that was opened another secret; returns its id.
    pub async fn change(&self, secret: &Secret, cost: Cost) -> Result<u8> {
        let mut unlocked = self.unlock().await?;
        let id = unlocked.opened.id;
        let slot = self.slot(&unlocked, id, &NewSlot::of(secret, cost))?;
        unlocked.encryption.slots.iter_mut().filter(|slot| slot.id == id).for_each(|old| *old = slot.clone());
        self.replace(unlocked).await?;
        Ok(id)
    }

    /// Draws a new data key. Only the slot that was opened gets it, and a recovery key if there was one: the secrets of
    /// the other slots are not here, and a key that leaked must not lead to the new one. Clones are given it, too: their secrets must be here.
    pub async fn rotate(&self, cost: Cost) -> Result<Rotation> {
        let mut unlocked = self.unlock().await?;
        let meta = unlocked.description.meta.clone();
        let heirs = Heirs::of(self.store, &meta, self.secrets).await?;
        let new_key = Locked::take(&mut self.random.bytes());
        let keyring = unlocked.keyring.rotated(new_key).ok_or_else(|| {
            VolumeError::Invalid(format!("volume {} has had 255 data keys, the most there may be", self.name))
        })?;
        let had_recovery = unlocked.encryption.slots.iter().any(|slot| slot.kind == SlotKind::Recovery);
        let recovery = had_recovery.then(|| RecoveryKey::new(self.random.bytes()));
        if let Some(parent) = &mut unlocked.description.meta.parent {
            parent.hand_to(meta.uuid, (&unlocked.keyring, &keyring)).map_err(VolumeError::Invalid)?;
        }
        let mut rotated =
            Unlocked { encryption: Encryption::of(unlocked.description.meta.uuid, &keyring), keyring, ..unlocked };
        // A recovery key that unlocked is used up: the new one takes its place.
        let opened_by_recovery = rotated.opened.kind == SlotKind::Recovery;
        let kept = (!opened_by_recovery).then(|| NewSlot::of(&rotated.opened.secret, cost));
        let from = [kept, recovery.as_ref().map(NewSlot::Recovery)];
        let slots = (1..).zip(from.into_iter().flatten()).map(|(id, from)| self.slot(&rotated, id, &from));
        rotated.encryption.slots = slots.collect::<Result<_>>()?;
        let generation = rotated.encryption.generation;
        let handed = heirs.hand(self.store, self.random, meta.uuid, &rotated.keyring).await;
        let keyring = rotated.keyring.clone();
        let replaced = match handed {
            Ok(()) => self.replace(rotated).await,
            Err(error) => Err(error),
        };
        let outcome = match replaced {
            Ok(()) => self.hand_again(&meta, &keyring).await,
            // Whoever was faster may have given the clones his key before us.
            Err(error) => match self.unlock().await {
                Ok(now) => self.hand_again(&meta, &now.keyring).await.and(Err(error)),
                Err(_) => Err(error),
            },
        };
        Ok(Rotation { generation, clones: heirs.names(), recovery, outcome })
    }

    /// Gives these data keys to all clones that have others: of those that were made meanwhile, and of another rotation at the same time.
    async fn hand_again(&self, meta: &Meta, keyring: &Keyring) -> Result<()> {
        Heirs::of(self.store, meta, self.secrets).await?.hand(self.store, self.random, meta.uuid, keyring).await
    }

    async fn unlock(&self) -> Result<Unlocked> {
        let description = description::load(self.store, self.name).await?;
        let encryption = description.meta.encryption.clone().ok_or_else(|| not_encrypted(self.name))?;
        let locked = |why| VolumeError::Locked { name: self.name.to_string(), why };
        let uuid = description.meta.uuid;
        let (opened, keyring) = self.secrets.open(self.name.as_str(), uuid, &encryption).await.map_err(locked)?;
        description.prove(&keyring)?;
        Ok(Unlocked { description, encryption, opened, keyring })
    }

    fn slot(&self, unlocked: &Unlocked, id: u8, from: &NewSlot<'_>) -> Result<KeySlot> {
        let (volume, now) = (unlocked.description.meta.uuid, self.clock.unix_millis());
        let slot = KeySlot::new(id, volume, &unlocked.keyring, from, self.random.bytes(), now);
        slot.map_err(|error| VolumeError::Invalid(error.to_string()))
    }

    async fn replace(&self, unlocked: Unlocked) -> Result<()> {
        let Unlocked { description, encryption, keyring, .. } = unlocked;
        let meta = Meta { encryption: Some(encryption), ..description.meta.clone() };
        description.replace(self.store, self.random, &meta, Some(&keyring)).await
    }
}
