//! The data keys of a parent in the hands of its clones. They stand in the description of each clone, sealed with the clone's own
//! ([`HandedKeys`](crate::keyring::HandedKeys)).
//!
//! When the data key of a parent is rotated, its clones have the new one first, then it: whoever has it too early loses nothing, and whoever would have it
//! late could not read what is sealed with it. So the secrets of all clones must be there. A clone that was made meanwhile has looked at the parent's
//! description after its own was there ([`clones::make`]): either it has seen the rotation and is gone, or the rotation sees it, which looks once more at
//! the end.
//!
//! Whoever reads a parent below a clone when its data key is rotated looks into the clone's description again, once something cannot be read ([`Handed::renew`]).

use std::sync::Arc;

use uuid::Uuid;

use super::clones::{self, Child};
use super::description::{self, Description};
use crate::error::{Result, VolumeError};
use crate::format::meta::{Meta, Parent, VolumeName};
use crate::keyring::{HandedKeys, Keyring, Secrets};
use crate::opening::scan::Source;
use crate::outside::Random;
use crate::store::Store;

/// Where the data keys come from with which somebody reads a parent.
#[derive(Debug)]
pub(crate) struct Handed {
    store: Arc<dyn Store>,
    clone: (VolumeName, Uuid, Keyring),
    parent: Uuid,
    /// With which it is read.
    keyring: Keyring,
    /// Where the clone's own come from, if that is below a clone, too.
    above: Option<Arc<Handed>>,
}

impl Handed {
    /// The data keys of the parent of a clone; nothing if neither is encrypted. The one that its description has been written with is the current one: while the
    /// key is being rotated that may be the one before the newest. The error says what is wrong with the parent.
    pub fn open(
        clone: &Source,
        parent: &Parent,
        described: &Meta,
        above: Option<Arc<Handed>>,
    ) -> std::result::Result<Option<Arc<Handed>>, &'static str> {
        let Some((keys, own)) = parent.keys.as_ref().zip(clone.sealer.keyring()) else {
            return match described.encryption {
                Some(_) => Err("which is encrypted, and it has no keys of it"),
                None => Ok(None),
            };
        };
        let opened = keys.open(parent.uuid, (clone.meta.uuid, own));
        let opened = opened.ok_or("whose data keys it has, but they do not open with its own")?;
        let seals = described.encryption.as_ref().and_then(|encryption| opened.sealing_with(encryption.generation));
        let keyring = seals.ok_or(
            "which has got another data key since, and it has not: rotate the parent's once more, with the secrets of both",
        )?;
        let clone_is = (clone.meta.name.clone(), clone.meta.uuid, own.clone());
        Ok(Some(Arc::new(Handed { store: clone.store.clone(), clone: clone_is, parent: parent.uuid, keyring, above })))
    }

    /// Those with which the parent is read; they become more.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Looks whether the clone has been given newer ones; whether it has.
    pub async fn renew(&self) -> bool {
        if let Some(above) = &self.above {
            Box::pin(above.renew()).await;
        }
        let (name, uuid, own) = &self.clone;
        let newer = description::load(&*self.store, name).await.ok().and_then(|found| {
            found.prove(own).ok()?;
            let parent = found.meta.parent.filter(|parent| found.meta.uuid == *uuid && parent.uuid == self.parent)?;
            parent.keys?.open(self.parent, (*uuid, own))
        });
        let newer = newer.filter(|newer| newer.key(self.keyring.current().0).is_some());
        let Some(newer) = newer.filter(|newer| newer.current().0 > self.keyring.newest()) else { return false };
        self.keyring.follow(&newer);
        true
    }
}

/// The clones of a volume whose data key is rotated, unlocked.
#[derive(Debug, Default)]
pub(super) struct Heirs(Vec<(Description, Keyring)>);

impl Heirs {
    /// All that there are.
    pub async fn of(store: &dyn Store, parent: &Meta, secrets: &Secrets) -> Result<Heirs> {
        let mut heirs = Heirs::default();
        if !parent.may_have_clones {
            return Ok(heirs);
        }
        for Child { name, uuid, .. } in clones::children(store, parent.uuid).await? {
            let description = description::load(store, &name).await?;
            let Some(encryption) = &description.meta.encryption else { continue };
            let unlocked = secrets.unlock(name.as_str(), uuid, encryption).await;
            let keyring = unlocked.map_err(|why| {
                VolumeError::Invalid(format!(
                    "volume {} has a clone {name}, which must be given the new data key, and {name} stays locked: {why}; \
                     keys.key_file and keys.passphrase_file may have {{volume}} in them; or make {name} independent with ashlar clone --detach",
                    parent.name
                ))
            })?;
            description.prove(&keyring)?;
            heirs.0.push((description, keyring));
        }
        Ok(heirs)
    }

    /// Gives them these data keys of their parent, unless they have them.
    pub async fn hand(&self, store: &dyn Store, random: &Random, parent: Uuid, keys: &Keyring) -> Result<()> {
        for (description, own) in &self.0 {
            let mut meta = description.meta.clone();
            let Some(of) = meta.parent.as_mut().filter(|of| of.uuid == parent) else { continue };
            let has = of.keys.as_ref().and_then(|has| has.open(parent, (meta.uuid, own)));
            let (generation, key) = keys.current();
            if has.is_some_and(|has| has.key(generation).is_some_and(|has| has.bytes() == key.bytes())) {
                continue;
            }
            of.keys = Some(HandedKeys::of((parent, keys), (meta.uuid, own)));
            description.replace(store, random, &meta, Some(own)).await?;
        }
        Ok(())
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|(description, _)| description.meta.name.to_string()).collect()
    }
}
