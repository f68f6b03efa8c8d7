//! The log of a volume moves: from the store where everything else is into one of its own, or back ([`crate::opening::near`]).
//!
//! 1. The volume is opened and closed: its newest checkpoint covers everything.
//! 2. It is opened once more, and nothing is put under way: no client, no chore. What is in its log after the checkpoint is our fence, and the close entry before it.
//! 3. Everything of its log that is in a near store up to the checkpoint is copied, byte for byte, whatever it is.
//! 4. Our fence once more, and a close entry, go where the log is to begin anew: far behind, in the other place, where nobody looks yet. Whoever opens the volume next has nothing to
//!    take from anybody, and its epochs go on.
//! 5. A description says so; as the server that has the volume, with a proof that nobody took it.
//!
//! If it breaks off before 5, the volume is what it was, and the next try begins at another slot. What is left in a near store is nobody's then, and goes but for what is there to stop
//! somebody who wakes up late.

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{OpenFlags, Options, Outside, Volume, VolumeError, VolumeName};
use crate::engine::shared::Shared;
use crate::format::meta::Meta;
use crate::format::segment::{Close, Fence};
use crate::journal;
use crate::opening::description::Description;
use crate::opening::scan::Source;
use crate::opening::{near, recover};
use crate::store::tiers::{Copied, TieredStore};
use crate::store::{Key, StoreError};
use crate::units::Seq;

/// Objects that are copied at once.
const PARALLEL: usize = 4;

impl Volume {
    /// Moves the log of a volume that nobody has into the near store, or back from there. Returns how many bytes were copied.
    pub async fn move_log(
        outside: Outside,
        name: &VolumeName,
        options: Options,
        journal_options: journal::Options,
        to_near: bool,
    ) -> Result<u64, VolumeError> {
        let flags = OpenFlags::default();
        let volume = Volume::open(outside.clone(), name, options.clone(), journal_options.clone(), flags).await?;
        let refused = refuse(volume.meta(), to_near);
        volume.close().await?;
        refused?;
        let shared = recover::open(outside.clone(), name, options, journal_options, flags).await?;
        let moved = go(&shared, &outside, to_near).await;
        let closed = shared.doors.journal.close().await;
        let copied = moved?;
        // It is empty: that it cannot be removed loses nothing.
        if let Err(error) = closed.and(journal::discard(&shared.doors.disk, shared.facts.meta.uuid).await) {
            tracing::warn!(volume = %name, "the empty journal could not be removed: {error}");
        }
        Ok(copied)
    }
}

fn refuse(meta: &Meta, to_near: bool) -> Result<(), VolumeError> {
    let near = meta.log.as_ref().and_then(|log| log.near.as_ref());
    match (near, to_near) {
        (Some(near), true) => {
            Err(VolumeError::Invalid(format!("the log of volume {} is in {} already", meta.name, near.url)))
        }
        (None, false) => {
            Err(VolumeError::Invalid(format!("the log of volume {} is where everything else is already", meta.name)))
        }
        _ => Ok(()),
    }
}

/// Steps 3 to 5.
async fn go(shared: &Shared, outside: &Outside, to_near: bool) -> Result<u64, VolumeError> {
    let (checkpointed, since) = {
        let ledger = shared.ledger();
        (ledger.log().checkpointed(), ledger.log().bytes_since_checkpoint())
    };
    if since > 0 || shared.ledger().log().has_changes() {
        return Err(VolumeError::Invalid(format!(
            "volume {} has changes after its newest checkpoint; try again",
            shared.facts.meta.name
        )));
    }
    let tiers = shared.doors.tiers.as_deref();
    let copied = match tiers {
        None => Vec::new(),
        Some(tiers) => copy_all(shared, tiers, checkpointed).await?,
    };
    let found = shared.follow_newest().await?;
    let log = match to_near {
        true => near::begin(&*outside.store, &shared.doors.random, &found.meta)
            .await?
            .map(Some)
            .ok_or_else(|| VolumeError::Invalid("store.log names no store for the log".into()))?,
        false => None,
    };
    let meta = Meta { log: Some(near::anew(log, checkpointed, shared.facts.epoch)), ..found.meta.clone() };
    begin_anew(shared, outside, &found, &meta).await?;
    let (store, keyring) = (&*outside.store, shared.doors.sealer.keyring());
    found.replace_as_owner(store, &shared.doors.random, &meta, keyring, || shared.prove_unfenced()).await?;
    if let Some(tiers) = tiers {
        let keys: Vec<Key> = copied.iter().filter(|(_, _, is_entry)| !is_entry).map(|(key, ..)| key.clone()).collect();
        if let Err(error) = tiers.delete_near(&keys).await {
            tracing::warn!(volume = %meta.name, "what was moved stays in {}, too: {error}", tiers.near_store().store.url());
        }
    }
    Ok(copied.iter().map(|(_, bytes, _)| bytes).sum())
}

/// Step 3: the keys, their bytes, and whether that may be a fence.
async fn copy_all(
    shared: &Shared,
    tiers: &TieredStore,
    checkpointed: Seq,
) -> Result<Vec<(Key, u64, bool)>, VolumeError> {
    let failed = |source: StoreError| VolumeError::Store { doing: "bringing the log back".into(), source };
    tiers.look().await.map_err(failed)?;
    let covered = tiers.held().into_iter().filter_map(|(key, _)| Some((super::cooling::slot_of(&key)?, key)));
    let covered = covered.filter(|(seq, _)| *seq <= checkpointed);
    let copies = stream::iter(covered.collect::<Vec<_>>()).map(|(seq, key)| copy(shared, tiers, seq, key));
    let copied: Vec<Option<(Key, u64, bool)>> = copies.buffer_unordered(PARALLEL).try_collect().await?;
    Ok(copied.into_iter().flatten().collect())
}

/// One object of the log.
async fn copy(
    shared: &Shared,
    tiers: &TieredStore,
    seq: Seq,
    key: Key,
) -> Result<Option<(Key, u64, bool)>, VolumeError> {
    let failed = |source: StoreError| VolumeError::Store { doing: "bringing the log back".into(), source };
    let is_segment = |bytes: Bytes| super::cooling::is_whole_segment(shared, seq, bytes);
    let mut is_entry = false;
    let mut copied = tiers.copy(&key, is_segment).await.map_err(failed)?;
    if copied == Copied::Unproven {
        // A fence, or a part of something: what reads the same once more is what is there.
        is_entry = true;
        let first = tiers.near_store().store.get(&key).await.map_err(failed)?;
        copied = tiers.copy(&key, |again: Bytes| async move { again == first }).await.map_err(failed)?;
    }
    match copied {
        Copied::Done(bytes) => Ok(Some((key, bytes, is_entry))),
        Copied::Gone => Ok(None),
        Copied::Unproven | Copied::Differs => Err(VolumeError::Invalid(format!(
            "{key} cannot be moved: it is another one in {} than in {}, or reads differently each time",
            tiers.near_store().store.url(),
            tiers.rest_url()
        ))),
    }
}

/// Step 4.
async fn begin_anew(shared: &Shared, outside: &Outside, found: &Description, meta: &Meta) -> Result<(), VolumeError> {
    let described = Description::new(found.number + 1, meta.clone());
    let (store, tiers) = near::store_of(outside.store.clone(), meta).await?;
    let (sealer, options) = (shared.doors.sealer.clone(), &shared.facts.options);
    let source = Source::unlocked(store, tiers, described, sealer, options, None);
    let (at, covers) = (Seq(meta.log.as_ref().map_or(0, |log| log.from)), shared.ledger().log().covers());
    let fence = Fence { continues_at: at.next(), covers, displaces: false, ..shared.facts.fence.1.clone() };
    let (epoch, server, time_unix_millis) = (fence.epoch, fence.server, shared.doors.clock.unix_millis());
    let close = Close { epoch, server, covers, time_unix_millis };
    near::put_entries(&source, at, (&fence, &close), (shared.salt(), shared.salt())).await
}
