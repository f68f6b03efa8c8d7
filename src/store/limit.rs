//! A bound on requests under way. Reads, writes and deletes have shares of their own, so that uploads and garbage
//! collection never starve a reader, nor the other way round; at a bound, the next one waits its turn.
//!
//! A permit is held for one attempt only: [`super::retry`] stands above this wrapper and pauses without one.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Key, ObjectEntry, Result, Store, StoreError};

/// How many requests of each kind are under way at once. At least 1 each; 0 counts as 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOptions {
    /// GETs and listings.
    pub reads: usize,
    /// PUTs.
    pub writes: usize,
    /// Batches of DELETEs.
    pub deletes: usize,
}

impl Default for LimitOptions {
    fn default() -> Self {
        LimitOptions { reads: 64, writes: 32, deletes: 4 }
    }
}

/// A store below, with bounded concurrency.
#[derive(Debug)]
pub struct LimitStore {
    inner: Arc<dyn Store>,
    reads: Semaphore,
    writes: Semaphore,
    deletes: Semaphore,
}

impl LimitStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, options: LimitOptions) -> LimitStore {
        let share = |requests: usize| Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS));
        LimitStore {
            inner,
            reads: share(options.reads),
            writes: share(options.writes),
            deletes: share(options.deletes),
        }
    }
}

async fn turn(share: &Semaphore) -> Result<SemaphorePermit<'_>> {
    // Nobody closes it; if somebody did, requests would end instead of waiting for ever.
    share.acquire().await.map_err(|_| StoreError::invalid("the store is closed"))
}

#[async_trait]
impl Store for LimitStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let _turn = turn(&self.writes).await?;
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let _turn = turn(&self.reads).await?;
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let _turn = turn(&self.reads).await?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<Vec<ObjectEntry>> {
        let _turn = turn(&self.reads).await?;
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let _turn = turn(&self.reads).await?;
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let _turn = turn(&self.deletes).await?;
        self.inner.delete(keys).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::outside::Random;
    use crate::store::faults::{FaultOptions, FaultyStore};
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn writes_queue_and_reads_pass_by() {
        let slow = FaultOptions { delay_min: Duration::from_secs(1), ..FaultOptions::default() };
        let inner = FaultyStore::new(Arc::new(MemoryStore::new()), slow, Random::seeded(1));
        let store = LimitStore::new(Arc::new(inner), LimitOptions { reads: 1, writes: 2, deletes: 0 });
        let key = |n: u32| Key::new(format!("v/{n}")).unwrap();
        let begin = Instant::now();
        let puts = (0..10).map(|n| {
            let (store, key) = (&store, key(n));
            async move { store.put(&key, vec![]).await.unwrap() }
        });
        let writing = async { futures::future::join_all(puts).await.len() };
        let reading = async { timeout(Duration::from_millis(1500), store.get(&key(99))).await.unwrap().unwrap_err() };
        let (written, _) = tokio::join!(writing, reading);
        assert_eq!((written, begin.elapsed()), (10, Duration::from_secs(5)));
        store.delete(&[key(0)]).await.unwrap();
    }
}
