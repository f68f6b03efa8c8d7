//! Finding out whether a store keeps what everything rests on: that a create-only PUT of a taken key fails.
//!
//! Some stores accept the condition and overwrite all the same. Two servers that open one volume there would destroy
//! it, so this is asked with a real object before the first write, and not believed from a name or a version.
//! What a probe cannot find: a store that honours the condition one PUT after the other, but not in a race.

use bytes::Bytes;
use tracing::debug;

use super::{ErrorKind, Key, Result, Store, StoreError};
use crate::outside::Random;

/// Whether create-only PUTs are honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateOnly {
    /// The second PUT failed and the first's object is unchanged.
    Honoured,
    /// The second PUT succeeded, or changed the object.
    Ignored,
}

/// The top of the keys of probes; a name that no volume can have.
const PROBE: &str = ".ashlar-probe";

/// Creates an object twice under a random key and deletes it. Fails only if the store cannot be written to or read.
pub async fn probe(store: &dyn Store, random: &Random) -> Result<CreateOnly> {
    let key = Key::new(format!("{PROBE}/{}", random.uuid()))?;
    let asked = ask(store, &key).await;
    if let Err(error) = store.delete(std::slice::from_ref(&key)).await {
        debug!("the probe {key} is left behind: {error}"); // a few bytes; who may not delete is told soon enough
    }
    asked
}

async fn ask(store: &dyn Store, key: &Key) -> Result<CreateOnly> {
    let (first, second) = (Bytes::from(format!("first {key}")), Bytes::from(format!("second {key}")));
    match store.put(key, vec![first.clone()]).await {
        Ok(()) => {}
        // The reply to our own first attempt was lost; the comparison below tells.
        Err(error) if error.kind == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let repeated = store.put(key, vec![second]).await;
    match repeated {
        Ok(()) => return Ok(CreateOnly::Ignored),
        Err(error) if error.kind == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    match store.get(key).await? == first {
        true => Ok(CreateOnly::Honoured),
        false => Ok(CreateOnly::Ignored),
    }
}

/// The refusal to write to a store that ignores create-only PUTs.
pub fn refusal(url: &str) -> StoreError {
    StoreError::invalid(format!(
        "store {url} overwrites objects although asked to create only (If-None-Match), so nothing would stop two \
         servers from destroying each other's volumes; use another store, or set store.unsafe_no_fencing = true if \
         you make sure yourself that only one server ever opens a volume"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
    use crate::store::memory::MemoryStore;
    use crate::store::retry::{RetryOptions, RetryStore};

    #[tokio::test(start_paused = true)]
    async fn a_good_store_passes_and_keeps_nothing_even_if_replies_are_lost() {
        for lost in 0..=3 {
            let memory = MemoryStore::new();
            let faulty = FaultyStore::new(Arc::new(memory.clone()), FaultOptions::default(), Random::seeded(1));
            faulty.faults().set_trap(Counted::Mutations, lost, Trap::FailAfter);
            let store = RetryStore::new(Arc::new(faulty), RetryOptions::default(), Random::seeded(2));
            assert_eq!(probe(&store, &Random::seeded(3)).await.unwrap(), CreateOnly::Honoured, "{lost}");
            assert_eq!(memory.object_count(), 0);
        }
    }
}
