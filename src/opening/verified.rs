//! One writer on a store that cannot create a key for one only (rule R4, *verified* mode): several create-only PUTs of one
//! key may succeed there, or overwrite each other, and late ones land whenever they like. It must only keep that a PUT which
//! returned is seen by every later GET and LIST. Then whoever writes and looks afterwards, while another does the same the
//! other way round, cannot both overlook each other:
//!
//! 1. No two servers ever write one key. Segments of an epoch begin beyond all that the epoch before can have in flight
//!    ([`Fence::continues_at`](crate::format::segment::Fence)), checkpoints are named by a slot that their writer committed, and what
//!    decides about epochs carries a random nonce.
//! 2. Whoever takes the volume puts a *claim* to an epoch that is higher than every one in `fences/`, and then looks: if
//!    there is another claim to this epoch or a higher one, it withdraws its own, pauses for a random time and begins again. So
//!    of two claims to one epoch one is alone at most, and nobody has to outlive a server that died with its claim: the
//!    next claim is higher.
//! 3. With its claim in place it reads the log. Where it ends now the old epoch ends: the old writer commits nothing after
//!    this, because of 5. It puts a *fence* that says so: the slot where the old epoch ends, the epoch that it follows.
//!    From then on the claim stays, also if the fence gets no answer: it may land any time, and nobody may have gone on meanwhile
//!    without having seen one of both.
//! 4. It looks once more. If there is a higher claim by now, whoever put that may not have seen the fence, and this server
//!    gives way before it has written anything else. Otherwise every later claim sees the fence and follows it.
//! 5. A writer puts a segment, then looks for anything higher than its own epoch, and commits only if there is nothing. So a
//!    FLUSH takes two round trips. The same look is the proof before anything is deleted. While there is a claim and no fence of it, the
//!    writer waits: who withdraws its claim has put no fence.
//! 6. A fence whose server gave way in step 4, or died there, or whose PUT arrived late, may stand beside the log. It is
//!    told from a true one by what the others say: the newest fence counts, and the one that it follows, and so on
//!    ([`Listed::chain`]). Nothing was ever committed under one that is not in this chain.
//!    One that is there in part only counts as a claim: its server has not come to step 4.
//! 7. Objects in slots that a fence has voided are passed over, whatever came there and whenever.
//!
//! Descriptions are put the same way, with their number for the epoch ([`super::description`]).
//!
//! Claims and fences before that of the oldest checkpoint that is there are deleted at the next opening. The newest one stays for ever: a
//! writer that was displaced finds it whenever it wakes up.

use std::time::Duration;

use crate::engine::slot::{self, Put, look};
use crate::error::{Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::marks::{Claim, Listed, Placed};
use crate::format::segment::Fence;
use crate::opening::scan::{Scan, Source};
use crate::outside::Random;
use crate::store::{ErrorKind, Key, Store, list_all};
use crate::units::Epoch;

/// What is in `fences/`.
pub async fn list(store: &dyn Store, keys: &Keys) -> Result<Listed> {
    let listed = list_all(store, &keys.fences()).await;
    let listed = listed.map_err(VolumeError::store(format!("listing {}", keys.fences())))?;
    Ok(Listed::of(keys, &listed))
}

/// Step 2: wants the epoch after all that are known. The caller looks.
pub async fn claim(store: &dyn Store, keys: &Keys, listed: &Listed, random: &Random) -> Result<Claim> {
    let epoch = listed.next_epoch().ok_or_else(|| {
        VolumeError::Invalid(format!(
            "{} holds the highest epoch that there can be; nobody can take the volume",
            keys.fences()
        ))
    })?;
    let claim = Claim { epoch, nonce: random.below(u64::MAX) };
    let put = put_mark(store, &keys.claim(claim)).await;
    if put.is_err() {
        // It may be there all the same, and would keep the writer waiting.
        withdraw(store, keys, claim).await;
    }
    put.map(|()| claim)
}

/// Puts a claim: its key says everything. One that is there is ours, of an earlier try.
pub(crate) async fn put_mark(store: &dyn Store, key: &Key) -> Result<()> {
    match store.put(key, Vec::new()).await {
        Err(error) if error.kind != ErrorKind::AlreadyExists => {
            Err(VolumeError::Store { doing: format!("writing {key}"), source: error })
        }
        _ => Ok(()),
    }
}

/// Steps 3 and 4: puts the fence of a claim, to which `scan` has seen the log; nothing if somebody has a higher claim by now. Returns
/// its bytes in the store.
pub(crate) async fn place(
    store: &dyn Store,
    source: &Source,
    scan: &Scan,
    claim: Claim,
    fence: &Fence,
    random: &Random,
) -> Result<Option<u32>> {
    let after = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
    let key = source.keys.fence(Placed { claim, slot: scan.next, after });
    let encoded = fence.encode(&source.sealer, scan.next, source.sealer.salt(random.bytes()));
    let object = encoded.map_err(|error| VolumeError::Invalid(error.to_string()))?;
    let stored_bytes = object.frames_at;
    match slot::put(store, &key, object.parts, &|_| false)
        .await
        .map_err(VolumeError::store(format!("writing {key}")))?
    {
        Put::Ours(_) => {}
        Put::Taken(_) | Put::Torn => return Err(VolumeError::Invalid(slot::torn(&key))),
    }
    let higher = look(store, &source.keys, claim.epoch).await;
    let higher = higher.map_err(VolumeError::store(format!("looking into {}", source.keys.fences())))?;
    Ok(higher.is_none().then_some(stored_bytes))
}

/// Takes a claim back. That it cannot makes the next one higher, and whoever has the volume believe that it was taken.
pub async fn withdraw(store: &dyn Store, keys: &Keys, claim: Claim) {
    take_back(store, keys.claim(claim)).await;
}

/// Deletes a claim.
pub(crate) async fn take_back(store: &dyn Store, key: Key) {
    if let Err(error) = store.delete(std::slice::from_ref(&key)).await {
        tracing::warn!("{key} could not be taken back: {error}");
    }
}

/// Gives the other one time, each time more.
pub async fn give_way(random: &Random, turn: usize) {
    let most = PAUSE.as_millis() as u64 * 2u64.pow(turn.min(5) as u32);
    tokio::time::sleep(Duration::from_millis(1 + random.below(most))).await;
}

/// The longest pause after the first meeting; after each further one twice as long.
const PAUSE: Duration = Duration::from_millis(200);
