//! A volume whose log is in a store of its own ([`crate::store::tiers`]): which that is, and what is left when it is lost.
//!
//! The description names it by an id, and an object under that id is in the near store ([`Keys::near`]): put there before the description says so, never deleted while
//! the volume is. So a store that is empty, or another one, is never taken for the log of the volume, nor is one in which that is looked for without a near store: both
//! would show the volume as it was at the newest checkpoint, and a fence that is put there would stop nobody.
//!
//! **The near store is lost** ([`reach`], if somebody accepts that): what had cooled is in the rest, and so are description and checkpoints. The log is *given up*:
//!
//! 1. A description says that the log begins anew, in whatever near store there is now, or in the rest, at a slot far behind the newest checkpoint
//!    (`from`). From here on nothing counts that a server puts into the old one, should it be there after all: its slots and its checkpoints are before `from`. It
//!    finds the description before it deletes anything, or moves anything out of the old one ([`slot::prove_unfenced`]).
//! 2. The newest checkpoint before `from` is looked for: what that needs nobody deletes any more who looked before he deleted, and what a later one
//!    made needless was deleted only after that one was there, which is found then. A second description says which it is (`after`).
//! 3. The volume is opened: as of that checkpoint, and then the log from `from` on. What the checkpoint needs and had not cooled is gone: reading it is an error that names the
//!    segment, and never zeros.
//!
//! If it breaks off after 1, the next opening goes on with 2.
//!
//! **The log moves**, into a near store or back (`volume/log_moving.rs`), in the same way, but everything that the checkpoint needs is in the rest before, and the server that has the volume says so, with a proof that nobody took
//! it ([`Description::replace_as_owner`]). Whoever takes it at the same time looks for a newer description after its fence, and gives up if that has another log.
//!
//! [`slot::prove_unfenced`]: crate::engine::slot

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::codec::EncodeError;
use crate::codec::seal::Salt;
use crate::engine::options::Options;
use crate::engine::slot::{self, Put};
use crate::error::{Flag, Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::meta::{FencedBy, LogPlace, Meta, NearLog, VolumeName};
use crate::format::segment::{Close, Fence};
use crate::keyring::Secrets;
use crate::opening::description::{self, Description};
use crate::opening::scan::Source;
use crate::outside::Random;
use crate::store::tiers::{Near, TieredStore};
use crate::store::{ErrorKind, Key, Store, StoreError};
use crate::units::{Epoch, Seq};

/// So far behind the newest checkpoint begins a log that took the place of another one: nobody fills as many slots as long as it goes without a look at the description.
const FAR: u64 = 1 << 32;

/// The store that a volume uses, and the same once more if its log is in a near one. Fails if that is not at hand.
pub(crate) async fn store_of(store: Arc<dyn Store>, meta: &Meta) -> Result<(Arc<dyn Store>, Option<Arc<TieredStore>>)> {
    let Some(log) = meta.log.as_ref().and_then(|log| log.near.as_ref()) else { return Ok((store, None)) };
    let near = at_hand(&*store, meta, log).await?;
    let tiered = Arc::new(TieredStore::new(near, store, Keys::of(meta).segments()));
    Ok((tiered.clone(), Some(tiered)))
}

/// The near store, if it is the one that has the log.
async fn at_hand(store: &dyn Store, meta: &Meta, log: &NearLog) -> Result<Near> {
    let lost = |what: String| VolumeError::LogNotHere { name: meta.name.to_string(), log: log.url.clone(), what };
    let Some(near) = store.near() else { return Err(lost("store.log names none".into())) };
    let key = Keys::of(meta).near(log.id);
    match near.store.get(&key).await {
        Ok(_) => Ok(near),
        Err(error) if error.kind == ErrorKind::NotFound => Err(lost(format!(
            "{}, which store.log names, is not it, or is empty: {key} is not there",
            near.store.url()
        ))),
        Err(source) => {
            Err(VolumeError::Store { doing: format!("looking for the log of volume {}", meta.name), source })
        }
    }
}

/// Has the near store, if there is one, be known as that of the log of a volume which is described so.
pub(crate) async fn begin(store: &dyn Store, random: &Random, meta: &Meta) -> Result<Option<NearLog>> {
    let Some(near) = store.near() else { return Ok(None) };
    if meta.fenced_by == FencedBy::Verified || !near.store.keeps_create_only() || !store.keeps_create_only() {
        return Err(VolumeError::Invalid(format!(
            "volume {} cannot have its log in {}: both stores must keep create-only PUTs apart; leave store.log out, or name other stores",
            meta.name,
            near.store.url()
        )));
    }
    let log = NearLog { id: random.uuid(), url: near.store.url() };
    let key = Keys::of(meta).near(log.id);
    let text = format!("the log of volume {} ({}) is here\n", meta.name, meta.uuid);
    let put = near.store.put(&key, vec![Bytes::from(text)]).await;
    // Nobody else has that id: it is there from an earlier try.
    let put = put.or_else(|error| if error.kind == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) });
    put.map_err(VolumeError::store(format!("writing {key} to {}", near.store.url())))?;
    Ok(Some(log))
}

/// What the description of a new volume says of its log, which is near if there is a near store.
pub(super) async fn of_new(store: &dyn Store, random: &Random, meta: &Meta) -> Result<Option<LogPlace>> {
    let near = begin(store, random, meta).await?;
    Ok(near.map(|near| LogPlace { near: Some(near), ..LogPlace::default() }))
}

/// Whether the near store, if there is one, has nothing of a volume with that uuid.
pub(super) async fn is_free(store: &dyn Store, name: &VolumeName, uuid: Uuid) -> Result<bool> {
    let Some(near) = store.near() else { return Ok(true) };
    let folder = Keys::folder(name, uuid);
    let listed = near.store.list(&folder, None).await;
    Ok(listed.map_err(VolumeError::store(format!("listing {folder} in {}", near.store.url())))?.is_empty())
}

/// Said to a server that finds that the log of its volume is another one now.
pub(crate) fn elsewhere(name: &VolumeName) -> String {
    format!(
        "the log of volume {name} was given up by somebody, or moved, and is another one now: what this server had of it counts no more; open the volume anew"
    )
}

/// Steps 1 and 2, as far as they are needed: the description with which the volume can be opened. A log that is not at hand is given up only if somebody accepts that, and
/// nobody may who need not.
pub(super) async fn reach(
    store: &Arc<dyn Store>,
    random: &Random,
    secrets: &Secrets,
    mut described: Description,
    accepts: bool,
) -> Result<Description> {
    let lost = match described.meta.log.as_ref().and_then(|log| log.near.as_ref()) {
        None => None,
        Some(log) => match at_hand(&**store, &described.meta, log).await {
            Ok(_) => None,
            Err(lost @ VolumeError::LogNotHere { .. }) => Some(lost),
            Err(error) => return Err(error),
        },
    };
    match (lost, accepts) {
        (None, true) if described.meta.log.as_ref().is_none_or(is_known) => {
            return Err(VolumeError::NeedlessFlag { name: described.meta.name.to_string(), flag: Flag::AcceptLogLoss });
        }
        (Some(lost), false) => return Err(lost),
        (Some(_), true) => described = give_up(store, random, secrets, described).await?,
        (None, _) => {}
    }
    match described.meta.log.as_ref().is_none_or(is_known) {
        true => Ok(described),
        false => find_last(store, random, secrets, described).await,
    }
}

/// Whether step 2 is done, or not to be done.
fn is_known(log: &LogPlace) -> bool {
    log.from == 0 || log.after.is_some()
}

/// Step 1.
async fn give_up(
    store: &Arc<dyn Store>,
    random: &Random,
    secrets: &Secrets,
    described: Description,
) -> Result<Description> {
    let near = begin(&**store, random, &described.meta).await?;
    let newest = rest(store, &described, secrets).await?.list_checkpoints().await?.last().copied();
    let before = described.meta.log.as_ref().map_or(0, |log| log.from);
    let log = LogPlace { near, from: begins(newest.unwrap_or_default().max(Seq(before))), after: None };
    tracing::warn!(volume = %described.meta.name, from = log.from, "the log is given up: what had not moved to {} is lost", store.url());
    put(store, random, secrets, described, log).await
}

/// Step 2.
async fn find_last(
    store: &Arc<dyn Store>,
    random: &Random,
    secrets: &Secrets,
    described: Description,
) -> Result<Description> {
    let after = rest(store, &described, secrets).await?.checkpointed().await?.0.seq;
    let log = LogPlace { after: Some(after.0), ..described.meta.log.clone().unwrap_or_default() };
    put(store, random, secrets, described, log).await
}

/// What reads the volume in the rest alone.
async fn rest(store: &Arc<dyn Store>, described: &Description, secrets: &Secrets) -> Result<Source> {
    let sealer = described.unlock(secrets).await?;
    Ok(Source::unlocked(store.clone(), None, described.clone(), sealer, &Options::default(), None))
}

/// What a description says when the log goes on in that place after that checkpoint, which covers all of it.
pub(crate) fn anew(near: Option<NearLog>, checkpoint: Seq, epoch: Epoch) -> LogPlace {
    // Not where an earlier try of the same began.
    LogPlace { near, from: begins(checkpoint) + epoch.0, after: Some(checkpoint.0) }
}

/// Puts what a log begins with that nobody has.
pub(crate) async fn put_entries(
    source: &Source,
    at: Seq,
    (fence, close): (&Fence, &Close),
    (salt, other): (Salt, Salt),
) -> Result<()> {
    let (store, sealer) = (&*source.store, &source.sealer);
    let bad = |error: EncodeError| VolumeError::Invalid(error.to_string());
    let (key, object) = (source.keys.segment(at), fence.encode(sealer, at, salt).map_err(bad)?);
    let put = slot::put_fence(store, &key, object.parts, sealer, at).await;
    is_ours(source, &key, put)?;
    let at = fence.continues_at;
    let (key, object) = (source.keys.segment(at), close.encode(sealer, at, other).map_err(bad)?);
    let put = slot::put_log_object(store, &key, object.parts, sealer, at).await;
    is_ours(source, &key, put)
}

fn is_ours(source: &Source, key: &Key, put: std::result::Result<Put, StoreError>) -> Result<()> {
    match put.map_err(VolumeError::store(format!("writing {key}")))? {
        Put::Ours(_) => Ok(()),
        Put::Taken(_) => {
            let name = &source.meta.name;
            Err(VolumeError::Invalid(format!("volume {name} was taken by somebody else meanwhile")))
        }
        Put::Torn => Err(VolumeError::Invalid(slot::torn(key))),
    }
}

/// The slot at which a log begins that takes the place of one with that last checkpoint.
fn begins(newest: Seq) -> u64 {
    newest.0 + FAR
}

async fn put(
    store: &Arc<dyn Store>,
    random: &Random,
    secrets: &Secrets,
    described: Description,
    log: LogPlace,
) -> Result<Description> {
    let sealer = described.unlock(secrets).await?;
    let meta = Meta { log: Some(log), ..described.meta.clone() };
    described.replace(&**store, random, &meta, sealer.keyring()).await?;
    description::settled(&**store, random, &meta.name).await
}
