//! Volumes that need not be open: create, list, describe, delete.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use crate::codec::frame::Compression;
use crate::codec::seal::Seal;
use crate::gc;
use crate::keyring::slot::{Cost, NewSlot};
use crate::keyring::{Encryption, KeySlot, Keyring, Locked, RecoveryKey, Secret, Secrets};
use crate::outside::{Clock, Random};
use crate::store::{Key, Store, list_all};
use crate::units::{BlockSize, Epoch, Seq};
use crate::volume::account::Account;
use crate::volume::description::{self, Description};
use crate::volume::error::{Holder, Result, VolumeError};
use crate::volume::keys::Keys;
use crate::volume::meta::{Meta, VolumeName};
use crate::volume::options::Options;
use crate::volume::recover::ServerIdentity;
use crate::volume::scan::Source;
use crate::volume::slot::{self, Put};

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

/// Creates a volume: one object.
pub async fn create(
    store: &dyn Store,
    random: &Random,
    clock: &Clock,
    name: &VolumeName,
    options: CreateOptions,
) -> Result<Created> {
    Meta::check_size(options.size, options.block_size).map_err(|error| VolumeError::Invalid(error.to_string()))?;
    let taken = || VolumeError::AlreadyExists { name: name.to_string(), store: store.url() };
    let keys = Keys::new(name);
    if description::newest(store, &keys, name).await?.is_some() {
        return Err(taken());
    }
    let uuid = random.uuid();
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
    };
    let encoded = Bytes::from(meta.encode(keyring.as_ref()));
    let put = description::put(store, &keys, 1, encoded).await;
    match put.map_err(VolumeError::store(format!("creating volume {name}")))? {
        Put::Ours(_) => Ok(Created { meta, recovery }),
        Put::Taken(_) => Err(taken()),
        Put::Torn => Err(VolumeError::Invalid(slot::torn(&keys.meta(1)))),
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

/// The names of all volumes of a store, in order. Folders that are no volumes are passed over.
pub async fn names(store: &Arc<dyn Store>) -> Result<Vec<VolumeName>> {
    let tops = store.list_top().await.map_err(VolumeError::store(format!("listing {}", store.url())))?;
    let mut names = Vec::new();
    for name in tops.into_iter().filter_map(|top| VolumeName::new(top).ok()) {
        let newest = description::newest(&**store, &Keys::new(&name), &name).await?;
        if newest.is_some_and(|found| !found.meta.deleted) {
            names.push(name);
        }
    }
    Ok(names)
}

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
    /// What garbage collection will free when the volume is quiet, by default settings.
    pub gc_backlog_bytes: u64,
    /// Its objects in the store.
    pub objects: u64,
    /// Segments whose last live block is gone and that wait for a checkpoint to be deleted.
    pub dead_objects: u64,
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

/// A [`Holder`] as data.
#[derive(Clone, Debug, Serialize)]
pub struct HolderInfo {
    /// Its identity.
    pub server: Uuid,
    /// Its host's name.
    pub server_name: String,
    /// When it took the volume: milliseconds since 1970, by its own clock.
    pub since_unix_millis: u64,
}

/// Describes a volume, be it open somewhere or not. Changes nothing.
pub async fn inspect(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<Info> {
    let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
    let scan = source.scan().await?;
    let prefix = source.keys.all();
    let listed = list_all(&**store, &prefix).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    let totals = scan.map.usage().totals();
    // The newest root still lists the objects that were deleted after it.
    let there: HashSet<&Key> = listed.iter().map(|entry| &entry.key).collect();
    let dead = scan.map.usage().dead(scan.committed);
    let dead: Vec<Seq> = dead.into_iter().filter(|&seq| there.contains(&source.keys.segment(seq))).collect();
    let stored = |seq: &Seq| scan.map.usage().get(*seq).map_or(0, |info| info.stored_bytes);
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
        mapped_bytes: totals.live_blocks * u64::from(source.meta.block_size.bytes()),
        stored_bytes: listed.iter().map(|entry| entry.size).sum(),
        objects: listed.len() as u64,
        dead_objects: dead.len() as u64,
        live_bytes: totals.live_bytes,
        dead_bytes: dead.iter().map(stored).sum(),
        sparse_bytes: totals.sparse_bytes(),
        gc_backlog_bytes: gc::excess(&totals, &gc::Options::default(), gc::Activity::Quiet),
        epoch: scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch).0,
        holder,
        last_commit_seq: scan.committed.0,
        last_commit_change: scan.covers.0,
        checkpoint_seq: scan.checkpointed.0,
        since_creation: scan.account,
    })
}

/// Deletes a volume and returns how many objects went. A volume that a server did not close is refused unless
/// `takeover`: a fence then stops that server first. A tombstone is put before anything is deleted, so that what is left
/// after a crash is never taken for a volume; deleting again finishes the work.
pub async fn delete(
    store: &Arc<dyn Store>,
    random: &Random,
    clock: &Clock,
    server: &ServerIdentity,
    name: &VolumeName,
    takeover: bool,
    secrets: &Secrets,
) -> Result<u64> {
    let keys = Keys::new(name);
    let Some(Description { number, meta, .. }) = description::newest(&**store, &keys, name).await? else {
        return Err(VolumeError::NotFound { name: name.to_string(), store: store.url() });
    };
    let mut last = keys.meta(number);
    if !meta.deleted {
        displace(store, random, clock, server, name, takeover, secrets).await?;
        let tombstone = Bytes::from(Meta { deleted: true, ..meta }.encode(None));
        let put = description::put(&**store, &keys, number + 1, tombstone).await;
        last = match put.map_err(VolumeError::store(format!("giving up volume {name}")))? {
            Put::Ours(key) => key,
            Put::Taken(_) => return Err(description::changed_meanwhile(name)),
            Put::Torn => return Err(VolumeError::Invalid(slot::torn(&keys.meta(number + 1)))),
        };
    }
    let failed = || VolumeError::store(format!("deleting volume {name}"));
    let listed = list_all(&**store, &keys.all()).await.map_err(failed())?;
    let rest: Vec<Key> = listed.into_iter().map(|entry| entry.key).filter(|key| *key != last).collect();
    store.delete(&rest).await.map_err(failed())?;
    store.delete(std::slice::from_ref(&last)).await.map_err(failed())?;
    Ok(rest.len() as u64 + 1)
}

/// Makes sure that no server goes on writing to a volume that is about to go.
async fn displace(
    store: &Arc<dyn Store>,
    random: &Random,
    clock: &Clock,
    server: &ServerIdentity,
    name: &VolumeName,
    takeover: bool,
    secrets: &Secrets,
) -> Result<()> {
    let source = match Source::of(store.clone(), name, &Options::default(), None, secrets).await {
        Ok(source) => source,
        Err(VolumeError::Locked { .. }) if takeover => return Ok(()),
        Err(error) => return Err(error),
    };
    // A damaged or locked volume can be deleted too, but then nothing is known of a server that may have it.
    let scan = match source.scan().await {
        Ok(scan) => scan,
        Err(VolumeError::Corrupt { .. }) if takeover => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some((_, fence)) = scan.fence.as_ref().filter(|_| !scan.closed) else { return Ok(()) };
    if !takeover {
        return Err(VolumeError::Held { name: name.to_string(), holder: Holder::of(fence) });
    }
    let fence = crate::segment::Fence {
        epoch: fence.epoch.next(),
        server: server.uuid,
        server_name: server.name.clone(),
        time_unix_millis: clock.unix_millis(),
        journal: Uuid::nil(),
        window: 1,
        continues_at: Seq(scan.next.0 + u64::from(fence.window).max(1)),
        durability: fence.durability,
        covers: scan.covers,
        displaces: true,
    };
    let key = source.keys.segment(scan.next);
    let object = fence.encode(&source.sealer, scan.next, source.sealer.salt(random.bytes()));
    let object = object.map_err(|error| VolumeError::Invalid(error.to_string()))?;
    let put = slot::put_log_object(&**store, &key, object.parts, &source.sealer, scan.next).await;
    match put.map_err(VolumeError::store(format!("writing {key}")))? {
        Put::Ours(_) => Ok(()),
        Put::Torn => Err(VolumeError::Invalid(slot::torn(&key))),
        Put::Taken(_) => Err(VolumeError::Invalid(format!(
            "volume {name} is being written to right now; stop the server that has it, then delete it"
        ))),
    }
}
