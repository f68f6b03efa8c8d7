//! Creating an object for certain (rules R1, R4, R10): a slot of the log, a checkpoint, a description. A create-only PUT may
//! end without an answer, or with "already exists" after an earlier try of ours. Then what is there is read back, all of
//! it, and compared with what was sent:
//!
//! | what is there | it is | what is done |
//! | --- | --- | --- |
//! | every byte of ours | ours, from a try whose answer was lost | done |
//! | less than all of ours, or a *torn* object of another server | what a store kept of a PUT whose connection broke | the next place |
//! | anything else | somebody else's | the caller decides |
//!
//! Only the first of these proves itself. The others are believed when the store has said the same several times
//! ([`crate::reading::again`]): a bit that flips on the way would make a fence look torn, and its server would write on beside it.
//!
//! A torn object is never deleted, finished or believed. The argument:
//!
//! 1. An object has *places*: its key, then `<key>.1`, `<key>.2`, … ([`crate::format::places`]; of a description: the next number).
//!    Nobody looks at a place before the one before it holds a torn object, and whoever wants to create the object then
//!    tries the next one, create-only.
//! 2. What is at a place stays the same for as long as anybody may want the object: a store shows an object whole or not
//!    at all and never changes it (what it kept of a broken PUT is what it shows then), and we overwrite nothing. So all
//!    servers agree on which places are torn, and on the first that is not. That one *is* the object.
//! 3. So one slot has one winner, as without torn objects: a segment and a fence that want the same slot meet at the same
//!    place. If the fence wins, the writer finds it and is fenced; if the segment wins, the taker finds it and scans on.
//!    A fence has more places than a segment: it is small, and gets through where segments are cut (a limit of a proxy).
//!    If all places of the segment are torn, its writer gives up and ends; the fence of the next opening takes the slot at a
//!    place that no segment tries, and everybody reads that far. So nothing need be deleted for the volume to go on.
//! 4. A PUT that was given up and arrives late finds its place taken, or wins a place that was free, with the very bytes
//!    that were to be there. Neither does harm; this is why nothing is ever deleted and created again. (A late *DELETE*
//!    would: one that was repeated because its answer was lost may arrive after a fence was put into the slot that the
//!    first one freed, and two servers would write.)
//! 5. Nothing is acknowledged before its object is whole at its place: the PUT succeeded there, or every byte was read
//!    back. So a slot whose places are all torn was never acknowledged: for a recovery it is the end of the log, as a
//!    free slot is. What was in flight behind it is void as it always was.
//! 6. An object that was whole and was cut by the store later (damage) looks the same. It is told apart where it can be: if
//!    a slot is filled that its server can only have filled after a commit of this one, the torn one was committed and is
//!    reported as damaged; the journal and what this server has seen of the volume refuse a log that is too short.
//! 7. A checkpoint that is torn at all its places was never durable, so nothing was deleted for its sake: the one before
//!    it and the log from there are complete. If the log does not reach it from there, it was durable: that is damage.
//! 8. A store that shows a part of an object *while it is uploaded* breaks 2, and two servers could disagree. The probe
//!    looks for that ([`crate::store::probe`]).

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use crate::codec::object::Found;
use crate::codec::seal::Sealer;
use crate::engine::backoff::Backoff;
use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::error::{Holder, VolumeError};
use crate::format::keys::Keys;
use crate::format::marks::Mark;
use crate::format::meta::{FencedBy, Meta};
use crate::format::places::{self, FENCE_PLACES_MAX, PLACES_MAX};
use crate::format::segment::{self, LogObject};
use crate::reading::again;
use crate::reading::objects::ReadError;
use crate::reading::{Slot, slots};
use crate::store::{ErrorKind, Key, Store, StoreError, list_all};
use crate::units::{Epoch, Seq};

/// What became of an object that was to be created.
#[derive(Debug)]
pub(crate) enum Put {
    /// It is there, whole, under this key.
    Ours(Key),
    /// Something else is there.
    Taken(Bytes),
    /// The store keeps only parts of it.
    Torn,
}

/// Says of an object that another server put whether it is torn.
type IsTorn<'a> = &'a (dyn Fn(&Bytes) -> bool + Send + Sync);

/// Creates an object once, at the first place that is not torn. Fails if the store does; whoever tries again goes the same
/// way and finds what it left.
pub(crate) async fn put(
    store: &dyn Store,
    key: &Key,
    parts: Vec<Bytes>,
    is_torn: IsTorn<'_>,
) -> Result<Put, StoreError> {
    put_at(store, &|n| places::place(key, n), parts, is_torn).await
}

/// [`put`] of a segment or a close into a slot of the log.
pub(crate) async fn put_log_object(
    store: &dyn Store,
    key: &Key,
    parts: Vec<Bytes>,
    sealer: &Sealer,
    seq: Seq,
) -> Result<Put, StoreError> {
    put(store, key, parts, &|there| segment::is_torn(sealer, seq, there)).await
}

/// [`put`] of a fence into a slot of the log.
pub(crate) async fn put_fence(
    store: &dyn Store,
    key: &Key,
    parts: Vec<Bytes>,
    sealer: &Sealer,
    seq: Seq,
) -> Result<Put, StoreError> {
    let is_torn = |there: &Bytes| segment::is_torn(sealer, seq, there);
    put_within(store, &|n| places::place(key, n), FENCE_PLACES_MAX, parts, &is_torn).await
}

/// [`put`], with places of the caller's own.
pub(crate) async fn put_at(
    store: &dyn Store,
    place: &(dyn Fn(u8) -> Result<Key, StoreError> + Send + Sync),
    parts: Vec<Bytes>,
    is_torn: IsTorn<'_>,
) -> Result<Put, StoreError> {
    put_within(store, place, PLACES_MAX, parts, is_torn).await
}

async fn put_within(
    store: &dyn Store,
    place: &(dyn Fn(u8) -> Result<Key, StoreError> + Send + Sync),
    places: u8,
    parts: Vec<Bytes>,
    is_torn: IsTorn<'_>,
) -> Result<Put, StoreError> {
    for n in 0..places {
        let key = place(n)?;
        match store.put(&key, parts.clone()).await {
            Ok(()) => return Ok(Put::Ours(key)),
            Err(error) if error.kind == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let there = again::settled(store, &key, |there| of_ours(&parts, there) == Share::All).await?;
        match of_ours(&parts, &there) {
            Share::All => return Ok(Put::Ours(key)),
            Share::Part => {}
            Share::None if is_torn(&there) => {}
            Share::None => return Ok(Put::Taken(there)),
        }
        tracing::warn!(object = %key, bytes = there.len(), "the store kept only a part of a PUT that broke off; going on beside it");
    }
    Ok(Put::Torn)
}

/// How much of ours an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    All,
    /// Its first part, maybe nothing.
    Part,
    /// It is something else.
    None,
}

/// Compares every byte.
fn of_ours(parts: &[Bytes], there: &Bytes) -> Share {
    let mut rest = &there[..];
    for part in parts {
        let common = rest.len().min(part.len());
        if rest[..common] != part[..common] {
            return Share::None;
        }
        rest = &rest[common..];
        if common < part.len() {
            return Share::Part;
        }
    }
    if rest.is_empty() { Share::All } else { Share::None }
}

/// Why an object cannot be created. The next opening needs nothing of it: it finds another key, or a place for its fence.
pub(crate) fn torn(key: &Key) -> String {
    torn_times(key, PLACES_MAX)
}

/// Why a fence cannot be created, and the way out. By hand, because nothing here can tell that no other server is trying: one
/// that goes on at a later place while the first is free again would believe itself committed where nobody looks. With all
/// of them stopped, what arrives late changes nothing: whole at the first place it is found, anywhere else it is not looked at.
pub(crate) fn torn_for_fences(key: &Key) -> String {
    format!(
        "{}; once the store takes whole objects, stop every server that has this volume, delete {key} and {key}.1 to {key}.{}, \
         and start one: none of these is whole, so nothing in them was ever acknowledged",
        torn_times(key, FENCE_PLACES_MAX),
        FENCE_PLACES_MAX - 1
    )
}

fn torn_times(key: &Key, times: u8) -> String {
    format!(
        "the store kept only the first part of {key}, {times} times in a row: uploads to it break off; look for a proxy or a limit \
         on the way to the store"
    )
}

/// Puts an object into a slot, for as long as the store takes to accept it; in verified mode looks afterwards. Fails only if somebody
/// else has the slot, or the volume.
pub(crate) async fn put_until_done(shared: &Shared, seq: Seq, parts: Vec<Bytes>) -> Result<(), End> {
    let key = shared.doors.keys.segment(seq);
    let mut backoff = Backoff::new(shared);
    loop {
        match put_log_object(&*shared.doors.store, &key, parts.clone(), &shared.doors.sealer, seq).await {
            Ok(Put::Ours(_)) => break,
            Ok(Put::Taken(there)) => return Err(whose(shared, seq, &there)),
            Ok(Put::Torn) => return Err(torn_or_taken(shared, seq, &key).await),
            Err(error) => backoff.pause("writing to the log", &error).await,
        }
    }
    if shared.facts.meta.fenced_by != FencedBy::Verified {
        return Ok(());
    }
    let mut backoff = Backoff::new(shared);
    loop {
        match prove_no_claim(shared).await {
            Ok(()) => return Ok(()),
            Err(ProofError::Fenced(end)) => return Err(end),
            Err(ProofError::Store(error)) => backoff.pause("looking for a server that takes the volume", &error).await,
        }
    }
}

/// Step 5 of [`crate::opening::verified`].
async fn prove_no_claim(shared: &Shared) -> Result<(), ProofError> {
    let began = Instant::now();
    loop {
        match look(&*shared.doors.store, &shared.doors.keys, shared.facts.epoch).await {
            Ok(None) => return Ok(()),
            Ok(Some(Mark::Claim(_))) if began.elapsed() < CLAIM_LASTS => sleep(LOOK_AGAIN).await,
            Ok(Some(mark)) => return Err(ProofError::Fenced(claimed_by(shared, mark).await)),
            Err(error) => return Err(ProofError::Store(error)),
        }
    }
}

/// Who that is stands in the fence, if it is there already and can be read.
async fn claimed_by(shared: &Shared, mark: Mark) -> End {
    if let Mark::Fence(placed) = mark {
        let key = shared.doors.keys.fence(placed);
        let read = slots::read_log_object(&*shared.doors.store, key, &shared.doors.sealer, placed.slot).await;
        if let Ok(Slot::Holds(read, _)) = read {
            return taken_by(shared, placed.slot, &read.object);
        }
    }
    End::Fenced(format!(
        "volume {} was taken over: {} is there; this server can write no more [A12]",
        shared.facts.meta.name,
        shared.doors.keys.of_mark(mark)
    ))
}

/// Somebody else's object stands in our slot: the volume is no longer ours.
fn whose(shared: &Shared, seq: Seq, there: &Bytes) -> End {
    match segment::decode_log_object(&shared.doors.sealer, seq, there) {
        Ok(Found::Whole(read)) => taken_by(shared, seq, &read.object),
        _ => End::Failed(format!(
            "{} holds an object that is not ours and cannot be read",
            shared.doors.keys.segment(seq)
        )),
    }
}

/// All places of our object are torn. At one that only a fence can have there may be one.
async fn torn_or_taken(shared: &Shared, seq: Seq, key: &Key) -> End {
    match slots::read_slot(&*shared.doors.store, &shared.doors.keys, &shared.doors.sealer, seq).await {
        Ok(Slot::Holds(read, _)) => taken_by(shared, seq, &read.object),
        _ => End::Failed(torn(key)),
    }
}

fn taken_by(shared: &Shared, seq: Seq, object: &LogObject) -> End {
    let name = &shared.facts.meta.name;
    End::Fenced(match object {
        LogObject::Fence(fence) => {
            let holder = Holder::of(fence);
            format!("volume {name} was taken over by {holder}; this server can write no more [A12]")
        }
        other => format!(
            "volume {name} was taken over: slot {seq} of its log holds an object of epoch {}; this server can write no more [A12]",
            other.epoch()
        ),
    })
}

/// Proves that no other server had taken the volume when this was called: looks at every slot from the first that is not committed to the next
/// that will be given out. A fence can only ever be put into a free slot, and whoever puts one takes the first that is free, so it is in one of
/// these; it stays for ever, as it displaced us. That a slot is free says nothing of those behind it: what we put there took effect at a
/// successor, which may have deleted it since. Whoever takes the volume after this call sees what was in the store before it. Fails with the
/// fence if one is found.
///
/// In verified mode one look is enough: whoever claims the volume after it reads the checkpoints after the claim.
pub(crate) async fn prove_unfenced(shared: &Shared, from: Seq) -> Result<(), ProofError> {
    if shared.facts.meta.fenced_by == FencedBy::Verified {
        return prove_no_claim(shared).await;
    }
    if shared.facts.meta.log.is_some() {
        prove_log_counts(shared).await?;
    }
    let next = shared.ledger().log().next_seq();
    for some in (from.0..=next.0.max(from.0)).collect::<Vec<_>>().chunks(PROOF_READS) {
        let reads = some
            .iter()
            .map(|seq| slots::read_slot(&*shared.doors.store, &shared.doors.keys, &shared.doors.sealer, Seq(*seq)));
        for (seq, found) in some.iter().zip(join_all(reads).await) {
            match found {
                // A fence would be at the first place that is not torn.
                Ok(Slot::Free | Slot::Torn(_)) => {}
                Ok(Slot::Holds(read, _)) if read.object.epoch() == shared.facts.epoch => {}
                Ok(Slot::Holds(read, _)) => {
                    return Err(ProofError::Fenced(taken_by(shared, Seq(*seq), &read.object)));
                }
                Err(VolumeError::Store { source, .. }) => return Err(ProofError::Store(source)),
                Err(damaged) => return Err(ProofError::Fenced(End::Failed(damaged.to_string()))),
            }
        }
    }
    Ok(())
}

/// Proves that the log which this server has was the volume's when this was called: somebody may have given it up because it was not at hand there
/// ([`crate::store::tiers`]), and then no fence in it says so, but a newer description.
async fn prove_log_counts(shared: &Shared) -> Result<(), ProofError> {
    let (store, meta, known) = (&*shared.doors.store, &shared.facts.meta, shared.ledger().description());
    let listed = list_all(store, &Keys::metas(&meta.name)).await.map_err(ProofError::Store)?;
    let newer = listed.iter().filter(|entry| Keys::number(&entry.key).is_some_and(|number| number > known));
    for entry in newer {
        let is_proven = |bytes: &Bytes| Meta::decode(&meta.name, bytes).is_ok();
        let bytes = match again::settled(store, &entry.key, is_proven).await {
            // An even newer one took its place.
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Err(ProofError::Store(StoreError::new(ErrorKind::Retryable, error.message)));
            }
            read => read.map_err(ProofError::Store)?,
        };
        if Meta::is_torn(&bytes) {
            continue;
        }
        let decoded = Meta::decode(&meta.name, &bytes);
        let newer = decoded.map_err(|error| ProofError::Fenced(End::Failed(format!("{}: {error}", entry.key))))?;
        if newer.uuid != meta.uuid || newer.log != meta.log {
            let why = format!(
                "volume {} was taken over: its log was given up by somebody, or moved, and is another one now; this server can write no more [A12]",
                meta.name
            );
            return Err(ProofError::Fenced(End::Fenced(why)));
        }
    }
    Ok(())
}

/// What follows when a page could not be read that the volume needs to go on: a pause, if it may come back. A page that is gone was deleted
/// by somebody who took the volume, unless the volume is damaged: the store is asked which, so that clients are told the truth.
pub(crate) async fn bear(shared: &Shared, error: ReadError, doing: &str, backoff: &mut Backoff) -> Result<(), End> {
    let source = match error {
        ReadError::Store { source, .. } if source.kind != ErrorKind::NotFound => source,
        ReadError::Corrupt { .. } => return Err(End::Failed(error.to_string())),
        ReadError::Store { .. } => {
            let from = shared.ledger().first_foreign_slot();
            match prove_unfenced(shared, from).await {
                Ok(()) => return Err(End::Failed(error.to_string())),
                Err(ProofError::Fenced(end)) => return Err(end),
                Err(ProofError::Store(source)) => source,
            }
        }
    };
    backoff.pause(doing, &source).await;
    Ok(())
}

/// So long a writer waits for a claim to be withdrawn, or followed by its fence, before it takes the volume for taken.
pub(crate) const CLAIM_LASTS: Duration = Duration::from_secs(60);

/// How often it looks meanwhile.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Whether there is anything higher than this epoch (steps 4 and 5): a fence if there is one, else a claim. One request.
pub async fn look(store: &dyn Store, keys: &Keys, epoch: Epoch) -> std::result::Result<Option<Mark>, StoreError> {
    let listed = store.list(&keys.fences(), Some(&keys.last_of(epoch))).await?;
    let higher = || listed.iter().rev().filter_map(|entry| keys.mark(&entry.key));
    Ok(higher().find(|mark| matches!(mark, Mark::Fence(_))).or_else(|| higher().next()))
}

/// Slots that a proof reads at once at most.
const PROOF_READS: usize = 64;

/// Why a proof failed.
pub(crate) enum ProofError {
    /// The store did not answer.
    Store(StoreError),
    /// There is a fence, or worse.
    Fenced(End),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::Random;
    use crate::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
    use crate::store::memory::MemoryStore;
    use crate::store::retry::{RetryOptions, RetryStore};
    use std::sync::Arc;

    fn parts() -> Vec<Bytes> {
        vec![Bytes::from_static(b"head, "), Bytes::new(), Bytes::from_static(b"frames")]
    }

    #[test]
    fn only_every_byte_is_ours() {
        let whole = parts().concat();
        let share = |there: &[u8]| of_ours(&parts(), &Bytes::copy_from_slice(there));
        assert_eq!(share(&whole), Share::All);
        (0..whole.len()).for_each(|cut| assert_eq!(share(&whole[..cut]), Share::Part, "{cut}"));
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_eq!(share(&other), Share::None, "{at}");
        }
        assert_eq!(share(&[&whole[..], b"!"].concat()), Share::None);
        assert_eq!(of_ours(&[], &Bytes::new()), Share::All);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_torn_stays_and_the_next_place_has_one_winner() {
        let key = Key::new("v/segments/01/0000000000000001").unwrap();
        let memory = MemoryStore::new();
        let faulty = FaultyStore::new(Arc::new(memory.clone()), FaultOptions::default(), Random::seeded(1));
        [1, 3].into_iter().for_each(|k| faulty.faults().set_trap(Counted::Mutations, k, Trap::KeepHalf));
        let store = RetryStore::new(Arc::new(faulty), RetryOptions::default(), Random::seeded(2));
        let second = places::place(&key, 2).unwrap();
        let put_ours = || put(&store, &key, parts(), &|_| false);
        assert!(matches!(put_ours().await.unwrap(), Put::Ours(at) if at == second));
        assert!(matches!(put_ours().await.unwrap(), Put::Ours(at) if at == second), "found again");
        assert_eq!(memory.object_count(), 3);
        // Somebody else calls the two parts torn, too, and finds the winner.
        let other = vec![Bytes::from_static(b"a fence")];
        let lost = put(&store, &key, other, &|there| there.len() < 12).await.unwrap();
        assert!(matches!(lost, Put::Taken(there) if there == parts().concat()));
    }

    #[tokio::test]
    async fn a_store_that_never_takes_all_of_it_is_given_up() {
        let key = Key::new("v/meta/1").unwrap();
        let memory = MemoryStore::new();
        (0..PLACES_MAX).for_each(|n| memory.replace(&places::place(&key, n).unwrap(), Bytes::from_static(b"he")));
        assert!(matches!(put(&memory, &key, parts(), &|_| false).await.unwrap(), Put::Torn));
        assert!(torn(&key).contains("8 times"));
    }
}
