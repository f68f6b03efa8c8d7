//! Taking a slot of the log: a create-only PUT whose outcome is certain in the end (rules R1, R4, R10).

use bytes::Bytes;
use futures::future::join_all;

use crate::codec::object::Found;
use crate::segment::{self, LogObject};
use crate::store::{ErrorKind, Key, Store, StoreError};
use crate::units::Seq;
use crate::volume::backoff::Backoff;
use crate::volume::error::{Holder, VolumeError};
use crate::volume::scan;
use crate::volume::shared::{End, Shared};

/// What stands in a slot that was to be taken.
#[derive(Debug)]
pub(super) enum PutSlot {
    /// Ours, from this try or an earlier one whose answer was lost.
    Ours,
    /// Something else.
    Taken(Bytes),
}

/// How much of an object is read to tell whose it is: its prefix has a random salt and a tag.
const IDENTITY_BYTES: usize = 48;

/// Puts an object into a slot once; after "already exists", reads back what is there and compares.
pub(super) async fn put(store: &dyn Store, key: &Key, parts: Vec<Bytes>) -> Result<PutSlot, StoreError> {
    let identity: Vec<u8> = parts.iter().flatten().copied().take(IDENTITY_BYTES).collect();
    match store.put(key, parts).await {
        Ok(()) => Ok(PutSlot::Ours),
        Err(error) if error.kind == ErrorKind::AlreadyExists => {
            let there = store.get(key).await?;
            match there.starts_with(&identity) {
                true => Ok(PutSlot::Ours),
                false => Ok(PutSlot::Taken(there)),
            }
        }
        Err(error) => Err(error),
    }
}

/// Puts an object into a slot, for as long as the store takes to accept it. Fails only if somebody else has the slot.
pub(super) async fn put_until_done(shared: &Shared, seq: Seq, parts: Vec<Bytes>) -> Result<(), End> {
    let key = shared.keys.segment(seq);
    let mut backoff = Backoff::new(shared);
    loop {
        match put(&*shared.store, &key, parts.clone()).await {
            Ok(PutSlot::Ours) => return Ok(()),
            Ok(PutSlot::Taken(there)) => return Err(whose(shared, seq, &there)),
            Err(error) => backoff.pause(&format!("writing {key}"), &error).await,
        }
    }
}

/// Somebody else's object stands in our slot: the volume is no longer ours.
fn whose(shared: &Shared, seq: Seq, there: &Bytes) -> End {
    match segment::decode_log_object(&shared.sealer, seq, there) {
        Ok(Found::Whole(read)) => taken_by(shared, seq, &read.object),
        _ => End::Failed(format!("{} holds an object that is not ours and cannot be read", shared.keys.segment(seq))),
    }
}

fn taken_by(shared: &Shared, seq: Seq, object: &LogObject) -> End {
    let name = &shared.meta.name;
    End::Fenced(match object {
        LogObject::Fence(fence) => {
            let holder = Holder::of(fence);
            format!("volume {name} was taken over by {holder}; this server can write no more")
        }
        other => format!(
            "volume {name} was taken over: slot {seq} of its log holds an object of epoch {}; this server can write no more",
            other.epoch()
        ),
    })
}

/// Proves that no other server had taken the volume when this was called: walks from the first slot that is not
/// committed to the first that is free. A fence can only ever be put into a free slot, so whoever takes the volume after
/// this call also sees what was in the store before it. Fails with the fence if one is found.
///
/// Slots are filled meanwhile, maybe faster than they can be read one after the other: twice as many are read at once each
/// time that none of the last ones was free.
pub(super) async fn prove_unfenced(shared: &Shared, from: Seq) -> Result<(), ProofError> {
    let (mut seq, mut count) = (from, 1);
    loop {
        let reads = (0..count).map(|i| scan::read_slot(&*shared.store, &shared.keys, &shared.sealer, Seq(seq.0 + i)));
        for found in join_all(reads).await {
            match found {
                Ok(None) => return Ok(()),
                Ok(Some(read)) if read.object.epoch() == shared.epoch => seq = seq.next(),
                Ok(Some(read)) => return Err(ProofError::Fenced(taken_by(shared, seq, &read.object))),
                Err(VolumeError::Store { source, .. }) => return Err(ProofError::Store(source)),
                Err(damaged) => return Err(ProofError::Fenced(End::Failed(damaged.to_string()))),
            }
        }
        count = (count * 2).min(PROOF_READS);
    }
}

/// Slots that a proof reads at once at most.
const PROOF_READS: u64 = 64;

/// Why a proof failed.
pub(super) enum ProofError {
    /// The store did not answer.
    Store(StoreError),
    /// There is a fence, or worse.
    Fenced(End),
}
