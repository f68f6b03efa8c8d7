//! Deleting a volume for good, and what stays so that nobody who still has it can do harm (rules R4, R16).
//!
//! 1. Scan. A volume that a server did not close is refused, unless told otherwise; one with a snapshot that is to be kept until later is
//!    refused whatever is told ([`super::protection`]), also after step 2, when no server can keep one any more.
//! 2. A fence goes into the first free slot of the log, also if the volume is closed: a server that is opening it right
//!    now must not get the slot.
//! 3. A tombstone becomes the newest description. From here on the name is free, and nobody finds the volume any more.
//! 4. Look again: whoever took the volume between 2 and 3 is fenced, too. Whoever takes it later looks for a tombstone after
//!    its fence ([`super::recover`], step 5) and finds this one.
//! 5. List everything under the name, a page at a time; look once more that nobody has made a new volume, delete all of the page but the tombstone and
//!    the fences. The descriptions go last: without them an encrypted volume could not be fenced in step 4.
//!
//! The tombstone and the fences stay for ever; together they take less than a KiB for each server that was displaced. A
//! displaced server finds its fence in the slot that it needs next, however late it wakes up, and tells its clients. A
//! request of its that is under way all the time may still bring an object: into its own dead folder, where it costs money
//! until the name is deleted or used again ([`clear`]), and nothing else.
//!
//! Whatever dies between two steps leaves one of these:
//!
//! | what is there | `list`, `serve` | `create` | `delete` |
//! | --- | --- | --- | --- |
//! | nothing, or a tombstone | no such volume | makes one | no such volume |
//! | a description (of [`create`](super::create): its only step) | a volume | refuses | from step 1 |
//! | 2: a fence of ours behind the log | the volume; `serve` wants `--takeover` | refuses | from step 2, which is done already; wants no `--takeover` |
//! | 3, 4: a tombstone, all data | no such volume | finishes 5, makes one | from step 4 |
//! | 5: a tombstone, some data | no such volume | finishes 5, makes one | from step 4; a log that cannot be read is passed over |
//! | a tombstone, and a description after it | the new volume | refuses | from step 1, the new one; 5 finishes both |

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use uuid::Uuid;

use crate::codec::object::{self, ObjectKind};
use crate::engine::options::Options;
use crate::engine::slot::{self, Put};
use crate::error::{Holder, Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::meta::{FencedBy, Meta, VolumeName};
use crate::format::places;
use crate::format::segment::{Durability, Fence};
use crate::keyring::Secrets;
use crate::opening::clones;
use crate::opening::description::{self, Description};
use crate::opening::protection::{refuse_deletion, refuse_unread};
use crate::opening::recover::ServerIdentity;
use crate::opening::scan::{Scan, Source};
use crate::opening::verified;
use crate::outside::{Clock, Random};
use crate::space::KeptVersion;
use crate::store::{ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};
use crate::units::{Epoch, Seq};

/// How often a step begins again because others wrote to the volume meanwhile.
const TRIES: usize = 16;

/// What the fence of whoever deletes a volume has behind the name of its host.
pub const DELETING_IT: &str = " (deleting it)";

/// Objects that are looked into at once.
const PARALLEL: usize = 16;

/// Told how many objects are gone.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Deletes a volume and returns how many objects went. A volume that a server did not close is refused unless
/// `takeover`: that server then finds out with its next commit. Deleting again finishes what was interrupted.
///
/// A volume that is damaged, or locked because its key is not here, is deleted only with `takeover`, and then a server that
/// still has it is not stopped: where its log ends is not known.
///
/// One with a snapshot that is to be kept until later is refused, whatever is asked for ([`super::protection`]).
///
/// `progress` is told how many objects are gone, each time that more are.
#[allow(clippy::too_many_arguments)]
pub async fn delete(
    store: &Arc<dyn Store>,
    random: &Random,
    clock: &Clock,
    server: &ServerIdentity,
    name: &VolumeName,
    takeover: bool,
    secrets: &Secrets,
    progress: Progress<'_>,
) -> Result<u64> {
    let absent = || VolumeError::NotFound { name: name.to_string(), store: store.url() };
    let removal = Removal { store, random, clock, server };
    for _ in 0..TRIES {
        let newest = description::newest(&**store, name).await?.ok_or_else(absent)?;
        if newest.meta.deleted {
            let before = description::before(&**store, &newest).await?;
            if let Some(source) = removal.source(before, true, secrets).await? {
                removal.displace(&source, true).await?;
            }
            return match clear(&**store, &newest, progress).await? {
                0 => Err(absent()),
                objects => Ok(objects),
            };
        }
        newest.meta.check_store(&**store)?;
        let source = removal.source(Some(newest.clone()), takeover, secrets).await?;
        removal.refuse_protected(&newest, source.as_ref(), takeover).await?;
        if let Some(source) = &source {
            removal.displace(source, takeover).await?;
            removal.refuse_protected(&newest, Some(source), takeover).await?;
        }
        let meta = newest.meta.tombstone();
        let Some(number) = description::put(&**store, random, newest.number, &meta, None).await? else {
            continue; // somebody changed the description, or deletes the volume too
        };
        if let Some(source) = &source {
            removal.displace(source, true).await?;
        }
        return clear(&**store, &Description::new(number, meta), progress).await;
    }
    Err(VolumeError::Invalid(format!("the description of volume {name} changes too fast to be deleted; try again")))
}

/// Who deletes.
struct Removal<'a> {
    store: &'a Arc<dyn Store>,
    random: &'a Random,
    clock: &'a Clock,
    server: &'a ServerIdentity,
}

impl Removal<'_> {
    /// What reads the volume; nothing if its key is not here and that is accepted.
    async fn source(
        &self,
        description: Option<Description>,
        takeover: bool,
        secrets: &Secrets,
    ) -> Result<Option<Source>> {
        let Some(description) = description else { return Ok(None) };
        match Source::described(self.store.clone(), description, &Options::default(), None, secrets).await {
            Ok(source) => Ok(Some(source)),
            Err(VolumeError::Locked { .. } | VolumeError::Corrupt { .. } | VolumeError::LogNotHere { .. })
                if takeover =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses if one of its snapshots is not to go yet; if they cannot be read, and that is accepted, the description says whether.
    async fn refuse_protected(&self, newest: &Description, source: Option<&Source>, takeover: bool) -> Result<()> {
        let now = self.clock.unix_millis();
        let kept = match source {
            None => None,
            Some(source) => match source.versions().await {
                Ok(kept) => Some(kept),
                Err(error) if takeover && (error.is_not_found() || matches!(error, VolumeError::Corrupt { .. })) => {
                    None
                }
                Err(error) => return Err(error),
            },
        };
        match kept {
            None => refuse_unread(&newest.meta, now)?,
            Some(ref kept) => {
                let kept = kept.iter().map(|kept| (kept.label.name.as_str(), kept.label.keep_until_unix_millis));
                refuse_deletion(&newest.meta.name, kept, now)?;
            }
        }
        self.refuse_cloned(&newest.meta, kept).await
    }

    /// Refuses if there are clones of it, by its versions, or by their own descriptions: it may have been repaired to a state from before they
    /// were made. Those that its versions, as far as they can be read, know and that are not made yet never will be.
    async fn refuse_cloned(&self, meta: &Meta, kept: Option<Vec<KeptVersion>>) -> Result<()> {
        let known: Vec<_> = kept.into_iter().flatten().flat_map(|version| version.label.clones).collect();
        let alive = clones::alive(&**self.store, self.random, meta, &known).await?;
        let mut clones: Vec<String> = alive.into_iter().map(|clone| clone.name).collect();
        if clones.is_empty() && meta.may_have_clones {
            let children = clones::children(&**self.store, meta.uuid).await?;
            clones = children.into_iter().map(|child| child.name.to_string()).collect();
        }
        match clones.is_empty() {
            true => Ok(()),
            false => Err(clones::has_clones(&meta.name, "it cannot be deleted", clones.iter().map(String::as_str))),
        }
    }

    /// Steps 1 and 2: puts a fence behind the log, unless there is one of a deletion already.
    async fn displace(&self, source: &Source, takeover: bool) -> Result<()> {
        for turn in 0..TRIES {
            let scan = match source.scan().await {
                Ok(scan) => scan,
                // What is damaged, or half deleted already, tells nothing of a server that may have it. In verified mode a claim is
                // enough to stop that, wherever its log ends.
                Err(error) if takeover && (error.is_not_found() || matches!(error, VolumeError::Corrupt { .. })) => {
                    if source.meta.fenced_by == FencedBy::Verified {
                        let listed = verified::list(&**self.store, &source.keys).await?;
                        verified::claim(&**self.store, &source.keys, &listed, self.random).await?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            match &scan.fence {
                Some((at, fence)) if is_of_deletion(fence) && scan.committed == *at => return Ok(()),
                Some((_, fence)) if !scan.closed && !takeover && !is_of_deletion(fence) => {
                    return Err(VolumeError::Held { name: source.meta.name.to_string(), holder: Holder::of(fence) });
                }
                _ => {}
            }
            let is_placed = match source.meta.fenced_by {
                FencedBy::CreateOnly => self.put_fence(source, &scan).await?,
                FencedBy::Verified => self.put_verified(source, &scan, turn).await?,
            };
            if is_placed {
                return Ok(());
            }
        }
        Err(VolumeError::Invalid(format!(
            "volume {} is being written to too fast to be fenced; stop the server that has it, then delete it",
            source.meta.name
        )))
    }

    /// Whether our fence is the end of the log now.
    async fn put_fence(&self, source: &Source, scan: &Scan) -> Result<bool> {
        let fence = self.fence(scan, scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch).next());
        let key = source.keys.segment(scan.next);
        let object = fence.encode(&source.sealer, scan.next, source.sealer.salt(self.random.bytes()));
        let object = object.map_err(|error| VolumeError::Invalid(error.to_string()))?;
        let put = slot::put_fence(&*source.store, &key, object.parts, &source.sealer, scan.next).await;
        match put.map_err(VolumeError::store(format!("writing {key}")))? {
            Put::Ours(_) => {}
            Put::Taken(_) => return Ok(false),
            Put::Torn => return Err(VolumeError::Invalid(slot::torn_for_fences(&key))),
        }
        // The slot may have been free only because its owner deleted it after a checkpoint: then the log ends further on.
        // That fence stays where it is, and is deleted or kept with the others.
        Ok(source.newest_checkpoint_after(scan.checkpointed).await?.is_none_or(|newest| newest < scan.next))
    }

    /// The same in verified mode. The caller looked at the volume before the claim was there: what it decided must still hold.
    async fn put_verified(&self, source: &Source, before: &Scan, turn: usize) -> Result<bool> {
        let store = &**self.store;
        let claim = verified::claim(store, &source.keys, &before.fences, self.random).await?;
        let scan = source.scan().await;
        let epoch = |scan: &Scan| scan.fence.as_ref().map(|(_, fence)| fence.epoch);
        let may_place =
            |scan: &Scan| !scan.fences.contests(claim) && epoch(scan) == epoch(before) && scan.closed == before.closed;
        match scan {
            Ok(scan) if may_place(&scan) => {
                // The claim stays from here on, whatever becomes of the fence.
                let fence = self.fence(&scan, claim.epoch);
                Ok(verified::place(store, source, &scan, claim, &fence, self.random).await?.is_some())
            }
            other => {
                verified::withdraw(store, &source.keys, claim).await;
                verified::give_way(self.random, turn).await;
                other.map(|_| false)
            }
        }
    }

    fn fence(&self, scan: &Scan, epoch: Epoch) -> Fence {
        let old = scan.fence.as_ref().map(|(_, fence)| fence).filter(|_| !scan.closed);
        let strays = old.map_or(1, |fence| u64::from(fence.window).max(1));
        Fence {
            epoch,
            server: self.server.uuid,
            server_name: format!("{}{DELETING_IT}", self.server.name),
            time_unix_millis: self.clock.unix_millis(),
            journal: OF_DELETION,
            window: 1,
            continues_at: Seq(scan.next.0 + strays),
            durability: old.map_or(Durability::Store, |fence| fence.durability),
            covers: scan.covers,
            displaces: true,
        }
    }
}

/// The journal that the fence of a deletion names: none.
const OF_DELETION: Uuid = Uuid::nil();

/// Whether it was put by somebody who deletes the volume, and not by a server.
fn is_of_deletion(fence: &Fence) -> bool {
    fence.journal == OF_DELETION
}

/// Step 5: deletes what is left of all volumes that had the name, and returns how many objects that were. If somebody has
/// made a new one meanwhile, only what is surely not of that one. A page of the listing at a time, however many there are: what is
/// deleted stays so if it breaks off.
pub(crate) async fn clear(store: &dyn Store, tombstone: &Description, progress: Progress<'_>) -> Result<u64> {
    let name = &tombstone.meta.name;
    let failed = || VolumeError::store(format!("deleting what is left of volume {name}"));
    let (prefix, dead) = (Keys::everything(name), Keys::of(&tombstone.meta));
    let folders = [dead.segments(), dead.checkpoints()];
    let (mut metas, mut listed, mut after, mut gone) = (Vec::new(), Vec::<ObjectEntry>::new(), None, 0);
    loop {
        let page = store.list(&prefix, after.as_ref()).await.map_err(failed())?;
        let is_last = page.is_last();
        listed.extend(page);
        after = listed.last().map(|entry| entry.key.clone()).or(after);
        // The places of one object are judged together, and the next page may have more of the last one.
        let begun = if is_last { Vec::new() } else { split_off_last(&mut listed) };
        // What a volume has comes after its description: if there is none after the tombstone now, all that was listed is old.
        let is_free = description::newest(store, name).await?.is_some_and(|newest| newest.number == tombstone.number);
        let is_old = |key: &Key| match Keys::claimed_meta(key) {
            // Somebody may be about to create the volume that follows.
            Some(number) => number < tombstone.number,
            None => !Keys::is_fence(key) && (is_free || folders.iter().any(|folder| key.as_str().starts_with(folder))),
        };
        let old = std::mem::replace(&mut listed, begun).into_iter().filter(|entry| is_old(&entry.key));
        let (descriptions, objects): (Vec<_>, Vec<_>) = old.partition(|entry| dead.is_meta(&entry.key));
        metas.extend(descriptions.into_iter().map(|entry| entry.key));
        let rest = without_fences(store, objects).await.map_err(failed())?;
        if !rest.is_empty() {
            store.delete(&rest).await.map_err(failed())?;
            gone += rest.len() as u64;
            progress(gone);
        }
        if is_last {
            break;
        }
    }
    gone += clear_near(store, &tombstone.meta).await?;
    metas.retain(|key| Keys::number(key) < Some(tombstone.number));
    if !metas.is_empty() {
        store.delete(&metas).await.map_err(failed())?;
    }
    Ok(gone + metas.len() as u64)
}

/// The same in the store that has its log, if that is a store of its own and at hand. What says whose log that is stays there with the fences.
async fn clear_near(store: &dyn Store, dead: &Meta) -> Result<u64> {
    let id = dead.log.as_ref().and_then(|log| log.near.as_ref()).map(|near| near.id);
    let (Some(id), Some(near)) = (id, store.near()) else { return Ok(0) };
    let failed =
        || VolumeError::store(format!("deleting what is left of volume {} in {}", dead.name, near.store.url()));
    let keys = Keys::of(dead);
    match near.store.get(&keys.near(id)).await {
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(0),
        found => drop(found.map_err(failed())?),
    }
    let listed = list_all(&*near.store, &keys.segments()).await.map_err(failed())?;
    let rest = without_fences(&*near.store, listed).await.map_err(failed())?;
    near.store.delete(&rest).await.map_err(failed())?;
    Ok(rest.len() as u64)
}

/// Takes the last object out, whatever stands at its places.
fn split_off_last(listed: &mut Vec<ObjectEntry>) -> Vec<ObjectEntry> {
    let Some(last) = listed.last().map(|entry| place_of(&entry.key).0) else { return Vec::new() };
    let before = listed.iter().rposition(|entry| place_of(&entry.key).0 != last);
    listed.split_off(before.map_or(0, |before| before + 1))
}

/// The keys of those that may go: no fence, and nothing at a place before a fence's own.
async fn without_fences(store: &dyn Store, objects: Vec<ObjectEntry>) -> std::result::Result<Vec<Key>, StoreError> {
    let fences = stream::iter(&objects).map(|entry| is_fence(store, entry)).buffered(PARALLEL);
    let fences: Vec<bool> = fences.try_collect().await?;
    let found = objects.iter().zip(fences).filter(|(_, is_fence)| *is_fence).map(|(entry, _)| place_of(&entry.key));
    let mut fences: BTreeMap<Key, u8> = BTreeMap::new();
    for (own, place) in found {
        let last = fences.entry(own).or_default();
        *last = place.max(*last);
    }
    // Whatever torn object is at a place before a fence's own must stay, or that place were free again.
    let stays = |key: &Key| {
        let (own, place) = place_of(key);
        fences.get(&own).is_some_and(|last| place <= *last)
    };
    Ok(objects.into_iter().map(|entry| entry.key).filter(|key| !stays(key)).collect())
}

/// An object's own key, and which of its places that is.
fn place_of(key: &Key) -> (Key, u8) {
    places::further_place(key).unwrap_or_else(|| (key.clone(), 0))
}

/// Whether an object is a fence, as far as can be told without a key.
async fn is_fence(store: &dyn Store, entry: &ObjectEntry) -> std::result::Result<bool, StoreError> {
    if !Keys::is_slot(&place_of(&entry.key).0) || entry.size > object::bytes_max(ObjectKind::Fence) {
        return Ok(false);
    }
    match store.get_range(&entry.key, 0..object::PREFIX_BYTES as u64).await {
        Ok(begin) => Ok(object::kind_of(&begin) == Some(ObjectKind::Fence)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
