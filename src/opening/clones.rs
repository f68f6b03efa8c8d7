//! Clones: volumes that show, where nothing was written to them, a version of another volume in the same store.
//!
//! A clone has a description of its own that names its parent, a log, a map and keys of its own, and nothing of its parent's data. Its parent knows
//! it: the version that it shows says so, where it is listed, and is not let go as long as that is so ([`Shared::change_versions`]).
//!
//! 1. The server that has the parent *registers* the clone: the description of the parent says that there may be clones, then a checkpoint
//!    says of the version: this clone, with this uuid and name, whose description will come after number `n` of that name.
//! 2. The clone is made: one description, create-only, after number `n`.
//!
//! So there is never a clone that its parent does not know. One that is registered and was never made, because somebody died between the two, is in
//! nobody's way: whoever wants to let the version go looks for each clone of it ([`alive`]). If the name has no description after `n`, it puts
//! one that says *deleted*: of that and of the clone's own only one gets the number. So what is gone is gone for good.
//!
//! A version that somebody deletes while a clone needs it is *hidden*: it has no name any more that anybody could give, and goes when a version
//! is next changed after its last clone is gone. A volume with clones is not deleted; if its versions cannot be read, the descriptions of all
//! volumes of the store say whose clones they are ([`children`]).
//!
//! An encrypted clone has its parent's data keys, sealed with its own ([`HandedKeys`]); the parent's secrets do not open it, and its own do not open the
//! parent. When the parent's data key is rotated its clones are given the new one ([`handed`](super::handed)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cache::BlockCache;
use crate::codec::seal::Sealer;
use crate::engine::below::Below;
use crate::engine::budget::Budget;
use crate::engine::detach::Taken;
use crate::engine::options::Options;
use crate::engine::shared::Shared;
use crate::error::{Result, VolumeError};
use crate::format::meta::{Meta, Parent, VolumeName};
use crate::human::few;
use crate::keyring::HandedKeys;
use crate::opening::description::{self, Description};
use crate::opening::handed::Handed;
use crate::opening::lifecycle::{self, CreateOptions, Created};
use crate::opening::near;
use crate::opening::past::{Past, named};
use crate::opening::scan::Source;
use crate::outside::{Clock, Random, Workers};
use crate::space::kept::{CLONES_MAX, Change};
use crate::space::{CloneRef, KeptVersion, Label};
use crate::store::Store;
use crate::units::Seq;

/// Descriptions that are read at once.
const PARALLEL: usize = 16;

/// What is below that volume; nothing if it is no clone. Its own data keys come from `above`, if it is below a clone, too.
pub(crate) fn below<'a>(
    clone: &'a Source,
    options: &'a Options,
    budget: &'a Budget,
    cache: (Arc<BlockCache>, Workers),
    above: Option<Arc<Handed>>,
) -> BoxFuture<'a, Result<Option<Below>>> {
    Box::pin(async move {
        let Some(parent) = &clone.meta.parent else { return Ok(None) };
        let volume = &parent.volume;
        let lost = |why: &str| lost(clone.meta.name.as_str(), (volume, parent.uuid), why);
        let described = match description::load(&*clone.store, volume).await {
            Err(VolumeError::NotFound { .. }) => return Err(lost("which is not in the store any more")),
            loaded => loaded?,
        };
        if described.meta.uuid != parent.uuid {
            return Err(lost("which is not in the store any more: another volume has that name now"));
        }
        let handed = Handed::open(clone, parent, &described.meta, above).map_err(lost)?;
        let keyring = handed.as_ref().map(|handed| handed.keyring().clone());
        if let Some(keyring) = &keyring {
            described.prove(keyring)?;
        }
        let sealer = Sealer::new(parent.uuid, keyring);
        let (store, tiers) = near::store_of(clone.store.clone(), &described.meta).await?;
        let source = Source::unlocked(store, tiers, described, sealer, options, Some(cache.clone()));
        let is_it = |versions: &[KeptVersion]| {
            let found = versions.iter().find(|version| version.seq == Seq(parent.version));
            let knows = |version: &&KeptVersion| version.label.clones.iter().any(|known| known.uuid == clone.meta.uuid);
            found.filter(knows).cloned().ok_or_else(|| lost(NOT_KEPT))
        };
        let past = Past::of_source(source, is_it, options, budget, cache, handed).await?;
        past.bring_index();
        Ok(Some(Below::new(Arc::new(past))))
    })
}

/// How far a clone is that becomes independent, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detaching {
    /// It has what it shows up to there.
    pub at: u64,
    /// It has all of it there.
    pub of: u64,
}

/// What a clone is to be, and of what.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: VolumeName,
    /// Size, compression and keys; the block size is its parent's.
    pub options: CreateOptions,
}

/// A clone of that name that its parent may be told of: in a place in which nothing is yet.
pub async fn plan(store: &dyn Store, random: &Random, name: &VolumeName) -> Result<CloneRef> {
    let (after, uuid) = lifecycle::free_place(store, random, name).await?;
    Ok(CloneRef { uuid, name: name.to_string(), after })
}

/// Makes a clone of a version that is kept, which its parent knows of: one object, whatever the size.
pub async fn make(
    parent: &Source,
    random: &Random,
    clock: &Clock,
    wanted: Wanted,
    (clone, version): (&CloneRef, Seq),
) -> Result<Created> {
    let Wanted { name, options } = wanted;
    let (mut meta, keyring, recovery) = lifecycle::describe_new(&name, clone.uuid, random, clock, &options)?;
    let keys = match (parent.sealer.keyring(), &keyring) {
        (None, _) => None,
        (Some(keys), Some(own)) => Some(HandedKeys::of((parent.meta.uuid, keys), (clone.uuid, own))),
        (Some(_), None) => {
            return Err(VolumeError::Invalid(format!(
                "volume {} is encrypted, so its clone {name} must be, too: give it a key of its own",
                parent.meta.name
            )));
        }
    };
    meta.parent = Some(Parent { volume: parent.meta.name.clone(), uuid: parent.meta.uuid, version: version.0, keys });
    meta.log = near::of_new(&*parent.store, random, &meta).await?;
    let put = description::put(&*parent.store, random, clone.after, &meta, keyring.as_ref()).await?;
    let Some(number) = put else {
        let newest = description::newest(&*parent.store, &name).await?;
        return Err(match newest.is_some_and(|newest| newest.meta.uuid == clone.uuid) {
            false => VolumeError::AlreadyExists { name: name.to_string(), store: parent.store.url() },
            true => VolumeError::Invalid(format!(
                "volume {} changed its snapshots before its clone {name} was there, and gave that up; try again",
                parent.meta.name
            )),
        });
    };
    if let Err(error) = is_shown(parent, clone, version, meta.size).await {
        let mut after = number;
        // A rotation of its parent's data key may have found it, and put another description.
        while description::put(&*parent.store, random, after, &meta.tombstone(), None).await?.is_none() {
            match description::newest(&*parent.store, &name).await? {
                Some(newest) if newest.meta.uuid == clone.uuid && !newest.meta.deleted => after = newest.number,
                _ => break,
            }
        }
        return Err(error);
    }
    Ok(Created { meta, recovery })
}

/// Fails unless the parent keeps the version for the clone, which has so many bytes, and has the keys that were handed on.
async fn is_shown(parent: &Source, clone: &CloneRef, version: Seq, size: u64) -> Result<()> {
    let Meta { name, uuid, block_size, .. } = &parent.meta;
    let knows = |kept: &KeptVersion| kept.seq == version && kept.label.clones.iter().any(|known| known == clone);
    let kept = match parent.versions().await {
        // If the data key was rotated, that says so.
        Err(error) => {
            prove_again(parent).await?;
            return Err(error);
        }
        kept => kept?,
    };
    let kept = kept.iter().find(|kept| knows(kept)).ok_or_else(|| lost(&clone.name, (name, *uuid), NOT_KEPT))?;
    let shown = block_size.bytes_in(kept.blocks);
    if size < shown {
        return Err(VolumeError::Invalid(format!(
            "clone {} cannot have {size} bytes: what it shows has {shown}",
            clone.name
        )));
    }
    prove_again(parent).await
}

/// Fails unless the parent still has the keys that were handed on.
async fn prove_again(parent: &Source) -> Result<()> {
    match parent.sealer.keyring() {
        Some(keys) => description::load(&*parent.store, &parent.meta.name).await?.prove(keys),
        None => Ok(()),
    }
}

/// What a clone shows is not there.
fn lost(clone: &str, (parent, uuid): (&VolumeName, Uuid), why: &str) -> VolumeError {
    VolumeError::Invalid(format!("volume {clone} is a clone of volume {parent} ({uuid}), {why}"))
}

const NOT_KEPT: &str = "which has not kept what it is a clone of";

/// Whether there is such a clone of that volume. One that was registered and not made yet never will be.
async fn is_alive(store: &dyn Store, random: &Random, parent: &Meta, clone: &CloneRef) -> Result<bool> {
    let Ok(name) = VolumeName::new(clone.name.as_str()) else { return Ok(false) };
    loop {
        let newest = description::newest(store, &name).await?;
        let number = newest.as_ref().map_or(0, |newest| newest.number);
        if number > clone.after {
            return Ok(newest.is_some_and(|Description { meta, .. }| {
                meta.uuid == clone.uuid && !meta.deleted && meta.parent.is_some()
            }));
        }
        let never = Meta { name: name.clone(), uuid: clone.uuid, ..parent.clone() }.tombstone();
        if description::put(store, random, clone.after, &never, None).await?.is_some() {
            return Ok(false);
        }
    }
}

/// Those of the clones that are there.
pub(super) async fn alive(
    store: &dyn Store,
    random: &Random,
    parent: &Meta,
    clones: &[CloneRef],
) -> Result<Vec<CloneRef>> {
    let each: Vec<_> = clones.iter().map(|clone| is_alive(store, random, parent, clone).boxed()).collect();
    let found: Vec<bool> = stream::iter(each).buffered(PARALLEL).try_collect().await?;
    Ok(clones.iter().zip(found).filter(|(_, is_alive)| *is_alive).map(|(clone, _)| clone.clone()).collect())
}

/// A volume that says that it is a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Its name.
    pub name: VolumeName,
    /// Its uuid.
    pub uuid: Uuid,
    /// What it shows.
    pub version: Seq,
}

/// The volumes of the store that are clones of that volume, by their descriptions.
pub(crate) async fn children(store: &dyn Store, parent: Uuid) -> Result<Vec<Child>> {
    let names = lifecycle::names(store).await?;
    let each: Vec<_> = names.iter().map(|name| description::newest(store, name).boxed()).collect();
    let found: Vec<_> = stream::iter(each).buffered(PARALLEL).try_collect().await?;
    let child = |Description { meta, .. }: Description| {
        let shown = meta.parent.filter(|of| of.uuid == parent && !meta.deleted)?;
        Some(Child { name: meta.name, uuid: meta.uuid, version: Seq(shown.version) })
    };
    Ok(found.into_iter().flatten().filter_map(child).collect())
}

/// That nothing is to be done to that volume because of its clones.
pub(super) fn has_clones<'a>(volume: &VolumeName, what: &str, clones: impl Iterator<Item = &'a str>) -> VolumeError {
    VolumeError::Invalid(format!(
        "volume {volume} has clones, which show its data: {}; {what}: delete them first, or make them independent with ashlar clone --detach",
        few(clones)
    ))
}

impl Shared {
    /// Has a version know a clone, so that it stays: that of this name; without one a new one, which nobody can name. The caller has the turn.
    pub(crate) async fn register_clone(
        &self,
        snapshot: Option<&str>,
        now_unix_millis: u64,
        clone: CloneRef,
    ) -> Result<KeptVersion> {
        self.say_that_there_may_be_clones().await?;
        let (name, uuid) = (&self.facts.meta.name, clone.uuid);
        let versions = self.versions();
        let known: usize = versions.iter().map(|version| version.label.clones.len()).sum();
        if known >= CLONES_MAX {
            return Err(VolumeError::Invalid(format!(
                "volume {name} has {known} clones, the most that there may be; delete some, or clone a clone"
            )));
        }
        match snapshot {
            Some(snapshot) => {
                let KeptVersion { seq, mut label, .. } = named(&versions, name, snapshot)?.clone();
                label.clones.push(clone);
                self.change_versions(Change { relabel: [(seq, label)].into(), ..Change::default() }).await?;
            }
            None => {
                let label = Label { taken_unix_millis: now_unix_millis, clones: vec![clone], ..Label::default() };
                self.keep(label.hidden(), BTreeSet::new()).await?;
            }
        }
        let versions = self.versions();
        let has = |version: &&KeptVersion| version.label.clones.iter().any(|known| known.uuid == uuid);
        let found = versions.iter().find(has).cloned();
        found
            .ok_or_else(|| VolumeError::Invalid(format!("volume {name} has lost its version for the clone; try again")))
    }

    /// Lets a version go that nobody needs, or hides it, if clones do: then those. The caller has the turn.
    pub(crate) async fn drop_or_hide(&self, version: &KeptVersion) -> Result<Vec<CloneRef>> {
        let KeptVersion { seq, label, .. } = version;
        let clones = self.alive_clones(&label.clones).await?;
        let drop = if clones.is_empty() { [*seq].into() } else { BTreeSet::new() };
        let mut left = Label { clones: clones.clone(), ..label.clone() };
        if !clones.is_empty() {
            left = left.hidden();
        }
        let relabel = if left == *label { BTreeMap::new() } else { [(*seq, left)].into() };
        self.change_versions(Change { relabel, drop, ..Change::default() }).await?;
        Ok(clones)
    }

    /// Forgets the clones that are gone of those versions, and lets those go that somebody deleted and that have none. The caller has the turn.
    pub(crate) async fn forget_gone_clones(&self, of: impl Fn(&Label) -> bool) -> Result<()> {
        let versions: Vec<_> = self.versions().into_iter().filter(|version| of(&version.label)).collect();
        let known: Vec<_> = versions.iter().flat_map(|version| version.label.clones.clone()).collect();
        let alive = self.alive_clones(&known).await?;
        let mut change = Change::default();
        for KeptVersion { seq, label, .. } in versions {
            let mut clones = label.clones.clone();
            clones.retain(|clone| alive.contains(clone));
            if label.is_hidden() && clones.is_empty() {
                change.drop.insert(seq);
            }
            if clones != label.clones {
                change.relabel.insert(seq, Label { clones, ..label });
            }
        }
        match change.drop.is_empty() && change.relabel.is_empty() {
            true => Ok(()),
            false => self.change_versions(change).await,
        }
    }

    /// Makes a clone independent: writes what it shows of its parent into it, while it is served, and then says so in its description. It does so from that
    /// byte on and for that time at most, and returns how far it is, if that is not all. Whoever says a byte too far on loses nothing: all is looked at once more in the end.
    pub(crate) async fn detach(&self, from: u64, within: Duration) -> Result<Option<Detaching>> {
        let Some(parent) = self.facts.meta.parent.as_ref().filter(|_| self.doors.below().is_some()) else {
            return Err(VolumeError::Invalid(format!(
                "volume {} is no clone, or independent already",
                self.facts.meta.name
            )));
        };
        if !self.versions().is_empty() {
            let _turn = self.versions_turn().await?;
            self.forget_gone_clones(Label::is_hidden).await?;
        }
        self.refuse_snapshots_of_parent(parent)?;
        let Taken { at, of, .. } = self.take_over_from(from, within).await?;
        if at < of {
            return Ok(Some(Detaching { at, of }));
        }
        let Taken { last, at, of } = self.take_over_from(0, within).await?;
        if at < of {
            return Ok(Some(Detaching { at, of }));
        }
        self.committed(last).await?;
        // A snapshot that was taken meanwhile shows the parent as long as it is there.
        let _versions = self.versions_turn().await?;
        self.refuse_snapshots_of_parent(parent)?;
        // Whoever reads only checkpoints must find all of it in the newest, when the description says no more whose clone it is.
        self.change_versions(Change::default()).await?;
        let _turn = self.description_turn().await?;
        self.check_open()?;
        let found = self.follow_newest().await?;
        let meta = Meta { parent: None, ..found.meta.clone() };
        let keyring = self.doors.sealer.keyring();
        let prove = || self.prove_unfenced();
        let replaced = found.replace_as_owner(&*self.doors.store, &self.doors.random, &meta, keyring, prove).await;
        // It may be there also if that failed.
        let is_there = self.follow_newest().await.is_ok_and(|newest| newest.meta.parent.is_none());
        if replaced.is_ok() || is_there {
            self.doors.is_independent();
            return Ok(None);
        }
        replaced.map(|_| None)
    }

    fn refuse_snapshots_of_parent(&self, parent: &Parent) -> Result<()> {
        let (versions, name) = (self.versions(), &self.facts.meta.name);
        let clones: Vec<_> = versions.iter().flat_map(|version| &version.label.clones).collect();
        match versions.is_empty() {
            true => Ok(()),
            false if !clones.is_empty() => {
                let clones = clones.iter().map(|clone| clone.name.as_str());
                Err(has_clones(name, "it cannot be made independent", clones))
            }
            false => Err(VolumeError::Invalid(format!(
                "volume {name} has snapshots that show volume {}: {}; delete them, then it can be made independent",
                parent.volume,
                few(versions.iter().map(|version| version.label.name.as_str()))
            ))),
        }
    }

    async fn alive_clones(&self, clones: &[CloneRef]) -> Result<Vec<CloneRef>> {
        alive(&*self.doors.store, &self.doors.random, &self.facts.meta, clones).await
    }

    /// Before a version has the first clone: whoever cannot read that must not delete the volume.
    async fn say_that_there_may_be_clones(&self) -> Result<()> {
        let _turn = self.description_turn().await?;
        self.check_open()?;
        let found = self.follow_newest().await?;
        if found.meta.may_have_clones {
            return Ok(());
        }
        let meta = Meta { may_have_clones: true, ..found.meta.clone() };
        found.replace(&*self.doors.store, &self.doors.random, &meta, self.doors.sealer.keyring()).await?;
        self.follow_newest().await.map(drop)
    }
}
