//! Volumes that need not be open: create, list, describe. Deleting is [`super::removal`].

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use uuid::Uuid;

use crate::codec::frame::Compression;
use crate::codec::seal::Seal;
use crate::engine::options::Options;
use crate::engine::settings;
use crate::error::{Result, VolumeError};
use crate::format::account::Account;
use crate::format::keys::Keys;
use crate::format::meta::{CopyOf, FencedBy, Layout, Meta, Settings, VolumeName};
use crate::gc;
use crate::keyring::slot::{Cost, NewSlot};
use crate::keyring::{Encryption, KeySlot, Keyring, Locked, RecoveryKey, Secret, Secrets};
use crate::opening::removal::{self, DELETING_IT};
use crate::opening::scan::{Scan, Source};
use crate::opening::{description, near};
use crate::outside::{Clock, Random};
use crate::space::kept::Deaths;
use crate::space::{Counted, KeptVersion, Span, kept};
use crate::store::{Key, ObjectEntry, Store, list_all};
use crate::units::{BlockCount, BlockSize, Epoch};

/// What a new volume is to be.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes; a multiple of the block size.
    pub size: u64,
    /// The unit of mapping.
    pub block_size: BlockSize,
    /// How frames are compressed.
    pub compression: Compression,
    /// How it is unlocked, if it is to be encrypted.
    pub encryption: Option<NewEncryption>,
    /// What keeps two servers from writing to it.
    pub fenced_by: FencedBy,
    /// Whose copy it is to be, if it is to be one.
    pub copy: Option<CopyOf>,
    /// What beats the configuration of whoever serves it.
    pub settings: Settings,
}

/// How a new volume is to be unlocked.
#[derive(Clone, Debug)]
pub struct NewEncryption {
    /// What opens its first slot.
    pub secret: Secret,
    /// What trying a passphrase costs.
    pub cost: Cost,
    /// Whether there is to be a recovery key.
    pub recovery: bool,
}

/// What came of [`create`].
#[derive(Debug)]
pub struct Created {
    /// The volume.
    pub meta: Meta,
    /// Its recovery key: nobody will learn it who does not learn it now.
    pub recovery: Option<RecoveryKey>,
}

/// Creates a volume: one object, its description, under the number after the newest that the name ever had. Only one can
/// get that number, so there are never two volumes of a name. What is left of a deleted one goes first.
pub async fn create(
    store: &dyn Store,
    random: &Random,
    clock: &Clock,
    name: &VolumeName,
    options: CreateOptions,
) -> Result<Created> {
    Meta::check_size(options.size, options.block_size).map_err(|error| VolumeError::Invalid(error.to_string()))?;
    let (before, uuid) = free_place(store, random, name).await?;
    let (mut meta, keyring, recovery) = describe_new(name, uuid, random, clock, &options)?;
    meta.log = near::of_new(store, random, &meta).await?;
    match description::put(store, random, before, &meta, keyring.as_ref()).await? {
        Some(_) => Ok(Created { meta, recovery }),
        None => Err(VolumeError::AlreadyExists { name: name.to_string(), store: store.url() }),
    }
}

/// The description after which that of a new volume of this name comes, and its uuid. What is left of a deleted one goes first.
pub(super) async fn free_place(store: &dyn Store, random: &Random, name: &VolumeName) -> Result<(u64, Uuid)> {
    let described =
        async { tokio::try_join!(description::newest(store, name), description::newest_number(store, name)) };
    let ((newest, number), uuid, ()) =
        tokio::try_join!(described, unused_uuid(store, random, name), description::refuse_mirror(store, name))?;
    let before = match newest {
        // Only parts of descriptions: of a creation that broke off, unless there is more than that.
        None if number > 0 => {
            refuse_data_without_description(store, name, number).await?;
            0
        }
        None => 0,
        Some(newest) if newest.meta.deleted => {
            removal::clear(store, &newest, &|_| ()).await?;
            newest.number
        }
        Some(_) => return Err(VolumeError::AlreadyExists { name: name.to_string(), store: store.url() }),
    };
    Ok((before, uuid))
}

/// Fails if there is anything of that name but descriptions: a volume of that name had written, and the description that is a part was whole.
async fn refuse_data_without_description(store: &dyn Store, name: &VolumeName, number: u64) -> Result<()> {
    let (prefix, descriptions) = (format!("{name}/"), Keys::metas(name));
    let page = store.list(&prefix, None).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    match page.iter().find(|entry| !entry.key.as_str().starts_with(&descriptions)) {
        None => Ok(()),
        Some(entry) => Err(VolumeError::Corrupt {
            key: Keys::meta(name, number),
            why: format!(
                "only the first part of the description is there, and {} is of a volume of that name: bring the description back from a copy of the bucket, or take \
                 another name",
                entry.key
            ),
        }),
    }
}

/// The description of a new volume, with its keys.
pub(super) fn describe_new(
    name: &VolumeName,
    uuid: Uuid,
    random: &Random,
    clock: &Clock,
    options: &CreateOptions,
) -> Result<(Meta, Option<Keyring>, Option<RecoveryKey>)> {
    Meta::check_size(options.size, options.block_size).map_err(|error| VolumeError::Invalid(error.to_string()))?;
    let now = clock.unix_millis();
    let (encryption, keyring, recovery) = match &options.encryption {
        Some(new) => encrypt(uuid, random, now, new)?,
        None => (None, None, None),
    };
    let meta = Meta {
        name: name.clone(),
        uuid,
        size: options.size,
        block_size: options.block_size,
        created_unix_millis: now,
        compression: options.compression,
        encryption,
        deleted: false,
        layout: Layout::ByUuid,
        fenced_by: options.fenced_by,
        schedule: None,
        keep_until_unix_millis: 0,
        parent: None,
        may_have_clones: false,
        copy: options.copy.clone(),
        settings: options.settings.clone(),
        log: None,
    };
    Ok((meta, keyring, recovery))
}

/// A uuid whose folder is empty: its first digits may be those of a volume that had the name before.
async fn unused_uuid(store: &dyn Store, random: &Random, name: &VolumeName) -> Result<Uuid> {
    loop {
        let uuid = random.uuid();
        let folder = Keys::folder(name, uuid);
        let listed = store.list(&folder, None).await.map_err(VolumeError::store(format!("listing {folder}")))?;
        if listed.is_empty() && near::is_free(store, name, uuid).await? {
            return Ok(uuid);
        }
    }
}

/// A data key, and the first ways to it.
#[allow(clippy::type_complexity)] // three things that belong to one volume, or none of them
fn encrypt(
    volume: Uuid,
    random: &Random,
    now: u64,
    new: &NewEncryption,
) -> Result<(Option<Encryption>, Option<Keyring>, Option<RecoveryKey>)> {
    let keyring = Keyring::new((1, Locked::take(&mut random.bytes())), [], None);
    let mut encryption = Encryption::of(volume, &keyring);
    let recovery = new.recovery.then(|| RecoveryKey::new(random.bytes()));
    let from = [Some(NewSlot::of(&new.secret, new.cost)), recovery.as_ref().map(NewSlot::Recovery)];
    for (id, from) in (1..).zip(from.into_iter().flatten()) {
        let slot = KeySlot::new(id, volume, &keyring, &from, random.bytes(), now);
        encryption.slots.push(slot.map_err(|error| VolumeError::Invalid(error.to_string()))?);
    }
    Ok((Some(encryption), Some(keyring), recovery))
}

/// The names of all volumes of a store, in order. Folders that are no volumes are passed over; one whose description cannot be understood is one: it is damaged, or of a
/// newer ashlar, and must not keep anybody from the others.
pub async fn names(store: &dyn Store) -> Result<Vec<VolumeName>> {
    let tops = store.list_top().await.map_err(VolumeError::store(format!("listing {}", store.url())))?;
    let names = tops.into_iter().filter_map(|top| VolumeName::new(top).ok()).map(|name| async {
        let is_there = match description::newest(store, &name).await {
            Err(VolumeError::Corrupt { .. }) => true,
            newest => newest?.is_some_and(|found| !found.meta.deleted),
        };
        Ok::<_, VolumeError>(is_there.then_some(name))
    });
    let named: Vec<Option<VolumeName>> = stream::iter(names).buffered(PARALLEL).try_collect().await?;
    Ok(named.into_iter().flatten().collect())
}

/// Descriptions that are read at once.
const PARALLEL: usize = 16;

/// A volume as it stands in the store.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// What its objects are bound to.
    pub uuid: Uuid,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub block_size: u32,
    /// How its objects are sealed.
    pub seal: Seal,
    /// How new frames are compressed.
    pub compression: Compression,
    /// When it was created: milliseconds since 1970.
    pub created_unix_millis: u64,
    /// Settings of its own, which beat the configuration of whoever serves it.
    pub settings: Settings,
    /// Bytes that hold data, by the map: what the client wrote and did not give up, all-zero blocks aside.
    pub mapped_bytes: u64,
    /// Bytes of its objects in the store.
    pub stored_bytes: u64,
    /// Of those, bytes of what is live: after compression, frames and heads in proportion.
    pub live_bytes: u64,
    /// Of those, bytes of segments in which nothing is live.
    pub dead_bytes: u64,
    /// Of those, dead bytes in segments that are partly live.
    pub sparse_bytes: u64,
    /// What garbage collection will free when the volume is quiet, by its own settings, and else the default ones.
    pub gc_backlog_bytes: u64,
    /// Its objects in the store.
    pub objects: u64,
    /// Snapshots that are kept.
    pub snapshots: u64,
    /// Bytes, before compression, that the volume needs no more and that snapshots, or what is kept for clones, do.
    pub snapshots_held_bytes: u64,
    /// Of these, bytes that only clones of snapshots need which were deleted, or of what was newest when they were made.
    pub clones_held_bytes: u64,
    /// The clones of it that it knows.
    pub clones: Vec<String>,
    /// The volume whose clone it is, if it is one.
    pub parent: Option<String>,
    /// Segments whose last live block is gone and that wait for a checkpoint to be deleted.
    pub dead_objects: u64,
    /// What keeps two servers from writing to it.
    pub fencing: FencedBy,
    /// The newest fence's epoch; 0 if it was never opened.
    pub epoch: u64,
    /// The server that has it open or did not close it.
    pub holder: Option<HolderInfo>,
    /// The last slot of the log that took effect.
    pub last_commit_seq: u64,
    /// The last change that is in the store.
    pub last_commit_change: u64,
    /// The slot that the newest checkpoint covers.
    pub checkpoint_seq: u64,
    /// What it had cost at the newest checkpoint, since it was created.
    pub since_creation: Account,
}

/// A [`crate::error::Holder`] as data.
#[derive(Clone, Debug, Serialize)]
pub struct HolderInfo {
    /// Its identity.
    pub server: Uuid,
    /// Its host's name.
    pub server_name: String,
    /// When it took the volume: milliseconds since 1970, by its own clock.
    pub since_unix_millis: u64,
}

impl HolderInfo {
    /// Whether it is on the host of that name.
    pub fn is_on(&self, host: &str) -> bool {
        self.server_name.strip_suffix(DELETING_IT).unwrap_or(&self.server_name) == host
    }
}

fn clones_of(kept: &[KeptVersion]) -> Vec<String> {
    kept.iter().flat_map(|version| &version.label.clones).map(|clone| clone.name.clone()).collect()
}

/// How often a volume is looked at that its owner changes meanwhile.
const LOOKS: usize = 4;

/// The volume, its objects, and those that are dead and not deleted yet.
async fn look(source: &Source) -> Result<(Scan, Vec<ObjectEntry>, Counted, (BlockCount, BlockCount))> {
    let mut scan = source.scan().await?;
    let counted = source.count_few(&mut scan).await;
    pass_over_damage(counted)?;
    let prefix = source.keys.all();
    let listed = list_all(&*source.store, &prefix).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    // The newest root still lists the objects that were deleted after it.
    let there: HashSet<&Key> = listed.iter().map(|entry| &entry.key).collect();
    let spans: Vec<Span> = scan.map.space().spans_with_dead(Span(0)).collect();
    let mut dead = Counted::new();
    for span in spans {
        let counters = source.with_pages(&scan, |scan, pages| scan.map.counters(span, pages)).await;
        let counters = pass_over_damage(counters)?.unwrap_or_default();
        let is_there = |seq| there.contains(&source.keys.segment(seq));
        dead.extend(
            counters.into_iter().filter(|(seq, counter)| counter.is_dead() && *seq <= scan.committed && is_there(*seq)),
        );
    }
    let kept = &scan.map.space().durable().kept;
    let lists = kept.iter().map(|version| source.held(&scan.checkpoints, version));
    let mut lists = stream::iter(lists).buffered(PARALLEL).map(pass_over_damage).try_collect::<Vec<_>>().await?;
    if let Some(newest) = lists.last_mut().and_then(Option::as_mut) {
        let since = scan.map.space().held_since();
        since.into_iter().for_each(|(seq, blocks)| *newest.entry(seq).or_default() += blocks);
    }
    let held = BlockCount(lists.iter().flatten().flat_map(Deaths::values).sum());
    let for_clones =
        kept::for_clones(kept.iter().zip(&lists).filter_map(|(version, held)| Some((version, held.as_ref()?))));
    Ok((scan, listed, dead, (held, for_clones)))
}

/// What is damaged is for `check` to say.
fn pass_over_damage<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(VolumeError::Corrupt { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Describes a volume, be it open somewhere or not. Changes nothing.
pub async fn inspect(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<Info> {
    let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
    let mut tries = 0;
    let (scan, listed, dead, (held, for_clones)) = loop {
        match look(&source).await {
            // A server that serves it may have deleted what was being read, after a newer checkpoint.
            Err(error) if error.is_not_found() && tries < LOOKS => tries += 1,
            looked => break looked?,
        }
    };
    let totals = scan.map.space().totals();
    let options = settings::tuned(&Options::default(), &source.meta.settings).map(|tuned| tuned.options);
    let options = options.unwrap_or_default();
    let holder = scan.fence.as_ref().filter(|_| !scan.closed).map(|(_, fence)| HolderInfo {
        server: fence.server,
        server_name: fence.server_name.clone(),
        since_unix_millis: fence.time_unix_millis,
    });
    Ok(Info {
        name: name.to_string(),
        uuid: source.meta.uuid,
        size: source.meta.size,
        block_size: source.meta.block_size.bytes(),
        seal: source.meta.seal(),
        compression: source.meta.compression,
        created_unix_millis: source.meta.created_unix_millis,
        settings: source.meta.settings.clone(),
        mapped_bytes: totals.live_blocks * u64::from(source.meta.block_size.bytes()),
        stored_bytes: listed.iter().map(|entry| entry.size).sum(),
        objects: listed.len() as u64,
        snapshots: kept::shown(&scan.map.space().durable().kept),
        snapshots_held_bytes: source.meta.block_size.bytes_in(held),
        clones_held_bytes: source.meta.block_size.bytes_in(for_clones),
        clones: clones_of(&scan.map.space().durable().kept),
        parent: source.meta.parent.as_ref().map(|parent| parent.volume.to_string()),
        dead_objects: dead.len() as u64,
        live_bytes: totals.live_bytes,
        dead_bytes: dead.iter().map(|(_, counter)| counter.stored_bytes).sum(),
        sparse_bytes: totals.sparse_bytes(),
        gc_backlog_bytes: gc::excess(&totals, &options.gc, gc::Activity::Quiet),
        fencing: source.meta.fenced_by,
        epoch: scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch).0,
        holder,
        last_commit_seq: scan.committed.0,
        last_commit_change: scan.covers.0,
        checkpoint_seq: scan.checkpointed.0,
        since_creation: scan.account,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_on_the_host_of_its_name_also_while_it_deletes_the_volume() {
        let on_alpha = |server_name: &str| {
            HolderInfo { server: Uuid::nil(), server_name: server_name.into(), since_unix_millis: 0 }.is_on("alpha")
        };
        assert!(on_alpha("alpha"));
        assert!(on_alpha("alpha (deleting it)"));
        assert!(!on_alpha("beta"));
        assert!(!on_alpha("alpha2"));
    }
}
