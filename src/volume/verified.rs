//! One writer on a store that cannot create a key for one only (rule R4, *verified* mode): several create-only PUTs of one
//! key may succeed there, or overwrite each other, and late ones land whenever they like. It must only keep that a PUT which
//! returned is seen by every later GET and LIST. Then whoever writes and looks afterwards, while another does the same the
//! other way round, cannot both overlook each other:
//!
//! 1. No two servers ever write one key. Segments of an epoch begin beyond all that the epoch before can have in flight
//!    ([`Fence::continues_at`](crate::segment::Fence)), checkpoints are named by a slot that their writer committed, and what
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

use std::collections::BTreeMap;
use std::time::Duration;

use crate::outside::Random;
use crate::segment::Fence;
use crate::store::{ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};
use crate::units::{Epoch, ORDINAL_MAX, Seq};
use crate::volume::error::{Result, VolumeError};
use crate::volume::keys::Keys;
use crate::volume::scan::{Scan, Source};
use crate::engine::slot::{self, Put};

/// Who wants an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The epoch.
    pub epoch: Epoch,
    /// Told apart from every other claim by this.
    pub nonce: u64,
}

/// What the key of a fence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Whose it is.
    pub claim: Claim,
    /// The first slot that the epoch before does not have.
    pub slot: Seq,
    /// The epoch that it follows; 0 if it is the first.
    pub after: Epoch,
}

/// An object in `fences/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A claim.
    Claim(Claim),
    /// A fence.
    Fence(Placed),
}

impl Mark {
    /// Whose it is.
    pub fn claim(self) -> Claim {
        match self {
            Mark::Claim(claim) => claim,
            Mark::Fence(placed) => placed.claim,
        }
    }
}

/// What is in `fences/`, in the order of epochs.
#[derive(Clone, Debug, Default)]
pub struct Listed(Vec<Mark>);

impl Listed {
    /// Of a listing; what is nothing of ours is passed over.
    pub fn of(keys: &Keys, entries: &[ObjectEntry]) -> Listed {
        let mut marks: Vec<Mark> = entries.iter().filter_map(|entry| keys.mark(&entry.key)).collect();
        marks.sort_by_key(|mark| mark.claim());
        marks.dedup();
        Listed(marks)
    }

    /// The epoch for the next claim: higher than every one that was ever seen.
    pub fn next_epoch(&self) -> Option<Epoch> {
        let newest = self.0.last().map_or(Epoch(0), |mark| mark.claim().epoch);
        (newest.0 < ORDINAL_MAX).then(|| newest.next())
    }

    /// The epoch of the newest fence; 0 if there is none.
    pub fn newest_fence(&self) -> Epoch {
        let fence = self.0.iter().rev().find(|mark| matches!(mark, Mark::Fence(_)));
        fence.map_or(Epoch(0), |mark| mark.claim().epoch)
    }

    /// Whether somebody else wants this epoch, or has a higher one.
    pub fn contests(&self, claim: Claim) -> bool {
        self.0.iter().map(|mark| mark.claim()).any(|other| other != claim && other.epoch >= claim.epoch)
    }

    /// The fences that count, after that of epoch `base`: the newest, the one that it follows, and so on; in the order of
    /// epochs. Nothing if one of them is not there.
    pub fn chain(&self, base: Epoch) -> Option<Vec<Placed>> {
        let fences = self.0.iter().filter_map(|mark| match mark {
            Mark::Fence(placed) => Some((placed.claim.epoch, *placed)),
            Mark::Claim(_) => None,
        });
        let fences: BTreeMap<Epoch, Placed> = fences.collect();
        let mut chain = Vec::new();
        let mut epoch = fences.last_key_value().map_or(base, |(newest, _)| *newest);
        while epoch > base {
            let placed = *fences.get(&epoch)?;
            chain.push(placed);
            // A fence follows an earlier one, or somebody forged its key.
            epoch = Some(placed.after).filter(|after| *after < epoch)?;
        }
        // Whoever wrote the base was in the chain.
        (epoch == base || chain.is_empty()).then(|| chain.into_iter().rev().collect())
    }

    /// Takes a fence for a mere claim: it is not whole.
    pub fn pass_over(&mut self, placed: Placed) {
        self.0
            .iter_mut()
            .filter(|mark| **mark == Mark::Fence(placed))
            .for_each(|mark| *mark = Mark::Claim(placed.claim));
    }

    /// The keys of what is before an epoch.
    pub fn before(&self, keys: &Keys, epoch: Epoch) -> Vec<Key> {
        self.0.iter().filter(|mark| mark.claim().epoch < epoch).map(|mark| keys.of_mark(*mark)).collect()
    }
}

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

/// So long a writer waits for a claim to be withdrawn, or followed by its fence, before it takes the volume for taken.
pub(crate) const CLAIM_LASTS: Duration = Duration::from_secs(60);

/// How often it looks meanwhile.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The longest pause after the first meeting; after each further one twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether there is anything higher than this epoch (steps 4 and 5): a fence if there is one, else a claim. One request.
pub async fn look(store: &dyn Store, keys: &Keys, epoch: Epoch) -> std::result::Result<Option<Mark>, StoreError> {
    let listed = store.list(&keys.fences(), Some(&keys.last_of(epoch))).await?;
    let higher = || listed.iter().rev().filter_map(|entry| keys.mark(&entry.key));
    Ok(higher().find(|mark| matches!(mark, Mark::Fence(_))).or_else(|| higher().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: u64, nonce: u64) -> Claim {
        Claim { epoch: Epoch(epoch), nonce }
    }

    fn fence(epoch: u64, slot: u64, after: u64) -> Mark {
        Mark::Fence(Placed { claim: claim(epoch, 0), slot: Seq(slot), after: Epoch(after) })
    }

    #[test]
    fn two_claims_to_one_epoch_contest_each_other_and_a_higher_one_contests_both() {
        let listed = Listed(vec![fence(1, 4, 0), Mark::Claim(claim(2, 7)), Mark::Claim(claim(2, 9))]);
        assert!(listed.contests(claim(2, 7)) && listed.contests(claim(2, 9)));
        assert_eq!(listed.next_epoch(), Some(Epoch(3)));
        let alone = Listed(vec![fence(1, 4, 0), Mark::Claim(claim(2, 7)), Mark::Claim(claim(3, 1))]);
        assert!(!alone.contests(claim(3, 1)), "a lower one will see this one");
        assert!(alone.contests(claim(2, 7)));
        assert!(Listed(vec![fence(2, 4, 0)]).contests(claim(2, 7)), "a fence is a claim, too");
        assert_eq!(Listed(vec![Mark::Claim(claim(ORDINAL_MAX, 0))]).next_epoch(), None);
    }

    #[test]
    fn only_what_the_newest_fence_follows_counts() {
        let epochs = |listed: &Listed, base| {
            listed.chain(Epoch(base)).map(|chain| chain.iter().map(|placed| placed.claim.epoch.0).collect::<Vec<_>>())
        };
        // The fence of epoch 5 was put too late: that of 6 follows 4.
        let listed =
            Listed(vec![fence(3, 9, 0), fence(4, 20, 3), fence(5, 30, 4), fence(6, 31, 4), Mark::Claim(claim(9, 1))]);
        assert_eq!(epochs(&listed, 0), Some(vec![3, 4, 6]));
        assert_eq!(epochs(&listed, 4), Some(vec![6]));
        assert_eq!(epochs(&listed, 6), Some(vec![]));
        assert_eq!(epochs(&listed, 7), Some(vec![]), "the checkpoint is newer than the listing");
        assert_eq!(epochs(&listed, 5), None, "nobody wrote a checkpoint in an epoch that does not count");
        assert_eq!(epochs(&Listed(vec![fence(4, 20, 3)]), 0), None, "a fence is missing");
        assert_eq!(epochs(&Listed(vec![fence(4, 20, 4)]), 0), None, "forged");
        assert_eq!(epochs(&Listed::default(), 0), Some(vec![]));
    }
}
