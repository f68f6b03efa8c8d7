//! A bound on requests under way. Reads, writes and deletes have shares of their own, and so has what nobody waits for
//! ([`Store::background`]: the reads of garbage collection and sweeps), so that no amount of uploads or of collection delays a
//! reader, nor the other way round; at a bound, the next one of its kind waits its turn.
//!
//! What garbage collection writes is no such work: it is part of the log, and clients' changes after it wait for it.
//!
//! A permit is held for one attempt only: [`super::retry`] stands above this wrapper and pauses without one.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Front, Key, ListPage, Result, Store, StoreError};

/// How many requests of each kind are under way at once. At least 1 each; 0 counts as 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOptions {
    /// GETs and listings.
    pub reads: usize,
    /// PUTs.
    pub writes: usize,
    /// Batches of DELETEs, and locks of objects.
    pub deletes: usize,
    /// GETs and listings of garbage collection and sweeps, beside the others.
    pub background: usize,
}

impl Default for LimitOptions {
    fn default() -> Self {
        LimitOptions { reads: 64, writes: 32, deletes: 4, background: 8 }
    }
}

/// A store below, with bounded concurrency.
#[derive(Debug)]
pub struct LimitStore {
    inner: Arc<dyn Store>,
    shares: Arc<Shares>,
    is_background: bool,
}

#[derive(Debug)]
struct Shares {
    reads: Semaphore,
    writes: Semaphore,
    deletes: Semaphore,
    background: Semaphore,
}

impl LimitStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, options: LimitOptions) -> LimitStore {
        let share = |requests: usize| Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS));
        let shares = Shares {
            reads: share(options.reads),
            writes: share(options.writes),
            deletes: share(options.deletes),
            background: share(options.background),
        };
        LimitStore { inner, shares: Arc::new(shares), is_background: false }
    }

    fn reads(&self) -> &Semaphore {
        if self.is_background { &self.shares.background } else { &self.shares.reads }
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
        let _turn = turn(&self.shares.writes).await?;
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let _turn = turn(self.reads()).await?;
        self.inner.get_range(key, range).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let _turn = turn(self.reads()).await?;
        self.inner.get_front(key, len).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let _turn = turn(self.reads()).await?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let _turn = turn(self.reads()).await?;
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let _turn = turn(self.reads()).await?;
        self.inner.list_top().await
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        let (inner, shares) = (self.inner.clone(), self.shares.clone());
        Some(Arc::new(LimitStore { inner, shares, is_background: true }))
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let _turn = turn(&self.shares.deletes).await?;
        self.inner.delete(keys).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        // Nobody's FLUSH waits for it.
        let _turn = turn(&self.shares.deletes).await?;
        self.inner.retain(key, until_unix_millis).await
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
    use crate::store::meter::{Meter, MeterStore};
    use crate::store::retry::{RetryOptions, RetryStore};

    #[tokio::test(start_paused = true)]
    async fn writes_queue_and_reads_pass_by() {
        let slow = FaultOptions { delay_min: Duration::from_secs(1), ..FaultOptions::default() };
        let inner = FaultyStore::new(Arc::new(MemoryStore::new()), slow, Random::seeded(1));
        let store = LimitStore::new(Arc::new(inner), LimitOptions { reads: 1, writes: 2, deletes: 0, background: 1 });
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

    #[tokio::test(start_paused = true)]
    async fn background_reads_queue_among_themselves() {
        let slow = FaultOptions { delay_min: Duration::from_secs(1), ..FaultOptions::default() };
        let inner = FaultyStore::new(Arc::new(MemoryStore::new()), slow, Random::seeded(1));
        let limit = LimitOptions { reads: 1, writes: 1, deletes: 1, background: 2 };
        // As the tower is built, and as a volume counts its requests.
        let retry = RetryStore::new(
            Arc::new(LimitStore::new(Arc::new(inner), limit)),
            RetryOptions::default(),
            Random::seeded(1),
        );
        let meter = Arc::new(Meter::default());
        let store = MeterStore::new(Arc::new(retry), meter.clone());
        let background = store.background().unwrap();
        let key = Key::new("v/1").unwrap();
        let begin = Instant::now();
        let collecting = async {
            let reads = (0..20).map(|_| background.get_range(&key, 0..1));
            futures::future::join_all(reads).await;
            begin.elapsed()
        };
        let reading = async {
            let _ = store.get_range(&key, 0..1).await;
            begin.elapsed()
        };
        let second = Duration::from_secs(1);
        assert_eq!(tokio::join!(collecting, reading), (10 * second, second));
        assert_eq!(meter.snapshot().get.count, 21);
    }
}
