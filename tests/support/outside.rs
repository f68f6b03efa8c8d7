//! What most tests have around a volume.

use std::sync::Arc;

use ashlar::cache::BlockCache;
use ashlar::disk::Disk;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::Store;
use ashlar::volume::{Budget, Outside, ServerIdentity, Witness};

/// One server that keeps nothing in its cache, has the usual budgets, no key and no record, and does its work where it waits.
pub fn plain(store: Arc<dyn Store>, disk: Arc<dyn Disk>, random: Random) -> Outside {
    Outside {
        store,
        disk,
        cache: Arc::new(BlockCache::in_memory(0)),
        budget: Budget::default(),
        clock: Clock::System,
        random,
        workers: Workers::Inline,
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "one".into() },
        secrets: Secrets::default(),
        witness: Witness::default(),
    }
}
