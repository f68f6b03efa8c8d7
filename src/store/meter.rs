//! Counting: requests by kind, bytes both ways, failures, time. Every attempt counts, as it does on the bill, so this
//! wrapper stands below [`super::retry`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::tiers::Near;
use super::{ErrorKind, Front, Key, ListPage, Result, Store};
use crate::tally::{Distribution, Durations};

/// What was asked of a store since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metered {
    /// PUTs, those that lock objects among them.
    pub put: Requests,
    /// GETs, whole and of ranges.
    pub get: Requests,
    /// Pages of listings.
    pub list: Requests,
    /// DELETEs; a batch of up to 1000 counts as one.
    pub delete: Requests,
    /// Objects whose deletion was asked for.
    pub objects_deleted: u64,
    /// Bytes of the bodies of PUTs, those of failed ones included.
    pub bytes_put: u64,
    /// Bytes that GETs returned.
    pub bytes_got: u64,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Requests that were begun, also those that failed or were given up.
    pub count: u64,
    /// Requests that failed in a way that may pass.
    pub retryable: u64,
    /// Requests that were refused, or were wrong. `NotFound` and `AlreadyExists` are answers, no failures.
    pub failed: u64,
    /// The time that those took together which ended, in microseconds.
    pub micros: u64,
}

impl Metered {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.put.count + self.get.count + self.list.count + self.delete.count
    }
}

/// The counters; read them with [`Meter::snapshot`].
#[derive(Debug, Default)]
pub struct Meter {
    put: Counters,
    get: Counters,
    list: Counters,
    delete: Counters,
    objects_deleted: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
    hedges: AtomicU64,
}

impl Meter {
    /// The counts as of now.
    pub fn snapshot(&self) -> Metered {
        Metered {
            put: self.put.snapshot(),
            get: self.get.snapshot(),
            list: self.list.snapshot(),
            delete: self.delete.snapshot(),
            objects_deleted: self.objects_deleted.load(Ordering::Relaxed),
            bytes_put: self.bytes_put.load(Ordering::Relaxed),
            bytes_got: self.bytes_got.load(Ordering::Relaxed),
        }
    }

    /// What came of the requests, by kind.
    pub fn outcomes(&self) -> [(&'static str, Outcomes); 4] {
        let Meter { put, get, list, delete, .. } = self;
        [("put", put.outcomes()), ("get", get.outcomes()), ("list", list.outcomes()), ("delete", delete.outcomes())]
    }

    /// A GET was asked a second time.
    pub fn hedged(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    /// GETs that were asked a second time.
    pub fn hedges(&self) -> u64 {
        self.hedges.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Counters {
    count: AtomicU64,
    retryable: AtomicU64,
    failed: AtomicU64,
    answered: AtomicU64,
    given_up: AtomicU64,
    micros: AtomicU64,
    durations: Durations,
}

/// What came of the requests of one kind. Those that are missing from the sum are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcomes {
    /// Requests that were begun.
    pub begun: u64,
    /// Requests that were answered, be it that there is no such object, or is one already.
    pub answered: u64,
    /// Requests that failed in a way that may pass.
    pub retryable: u64,
    /// Requests that were refused, or were wrong.
    pub failed: u64,
    /// Requests of which nobody wanted the answer any more.
    pub given_up: u64,
    /// How long those took that have ended, but for those that were given up; what was asked of the store as one counts once.
    pub durations: Distribution,
}

impl Outcomes {
    /// Requests that are under way.
    pub fn under_way(&self) -> u64 {
        let Outcomes { begun, answered, retryable, failed, given_up, durations: _ } = self;
        begun.saturating_sub(answered + retryable + failed + given_up)
    }
}

impl Counters {
    fn snapshot(&self) -> Requests {
        Requests {
            count: self.count.load(Ordering::Relaxed),
            retryable: self.retryable.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }

    fn outcomes(&self) -> Outcomes {
        // The sum of what ended is never ahead of what began.
        let [given_up, failed, retryable, answered] =
            [&self.given_up, &self.failed, &self.retryable, &self.answered].map(|count| count.load(Ordering::Relaxed));
        let (durations, begun) = (self.durations.snapshot(), self.count.load(Ordering::Relaxed));
        Outcomes { begun, answered, retryable, failed, given_up, durations }
    }

    async fn record<T>(&self, requests: u64, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.count.fetch_add(requests, Ordering::Relaxed);
        let mut under_way = UnderWay { counters: self, requests, begun: Instant::now(), became: &self.given_up };
        let result = work.await;
        under_way.ended(result.as_ref().err().map(|error| error.kind));
        result
    }
}

/// Requests that are under way; when it is dropped, they count as what became of them.
struct UnderWay<'a> {
    counters: &'a Counters,
    requests: u64,
    begun: Instant,
    became: &'a AtomicU64,
}

impl UnderWay<'_> {
    fn ended(&mut self, error: Option<ErrorKind>) {
        let (counters, took) = (self.counters, self.begun.elapsed());
        counters.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        counters.durations.record(took);
        self.became = match error {
            Some(ErrorKind::Retryable) => &counters.retryable,
            Some(ErrorKind::Denied | ErrorKind::Invalid) => &counters.failed,
            None | Some(ErrorKind::NotFound | ErrorKind::AlreadyExists) => &counters.answered,
        };
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.became.fetch_add(self.requests, Ordering::Relaxed);
    }
}

/// A store below, counted.
#[derive(Debug)]
pub struct MeterStore {
    inner: Arc<dyn Store>,
    meter: Arc<Meter>,
}

impl MeterStore {
    /// Wraps `inner`; counts go to `meter`.
    pub fn new(inner: Arc<dyn Store>, meter: Arc<Meter>) -> MeterStore {
        MeterStore { inner, meter }
    }

    async fn got(&self, work: impl Future<Output = Result<Bytes>>) -> Result<Bytes> {
        let body = self.meter.get.record(1, work).await?;
        self.meter.bytes_got.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok(body)
    }
}

#[async_trait]
impl Store for MeterStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let len: u64 = body.iter().map(|part| part.len() as u64).sum();
        self.meter.bytes_put.fetch_add(len, Ordering::Relaxed);
        self.meter.put.record(1, self.inner.put(key, body)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.got(self.inner.get_range(key, range)).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let front = self.meter.get.record(1, self.inner.get_front(key, len)).await?;
        self.meter.bytes_got.fetch_add(front.bytes.len() as u64, Ordering::Relaxed);
        Ok(front)
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.got(self.inner.get(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.meter.list.record(1, self.inner.list(prefix, start_after)).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.meter.list.record(1, self.inner.list_top()).await
    }

    fn keeps_create_only(&self) -> bool {
        self.inner.keeps_create_only()
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(MeterStore::new(self.inner.background()?, self.meter.clone())))
    }

    fn near(&self) -> Option<Near> {
        let Near { store, cooling } = self.inner.near()?;
        Some(Near { store: Arc::new(MeterStore::new(store, self.meter.clone())), cooling })
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.meter.objects_deleted.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.meter.delete.record(keys.len().div_ceil(1000) as u64, self.inner.delete(keys)).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        // It is one, and is billed as one.
        self.meter.put.record(1, self.inner.retain(key, until_unix_millis)).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outside::Random;
    use crate::store::faults::{FaultOptions, FaultyStore};
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn requests_bytes_time_and_failures_are_counted() {
        let meter = Arc::new(Meter::default());
        let slow = FaultOptions { delay_min: Duration::from_millis(3), ..FaultOptions::default() };
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new()), slow, Random::seeded(1));
        let faults = faulty.faults();
        let store = MeterStore::new(Arc::new(faulty), meter.clone());
        let key = Key::new("v/meta/0").unwrap();
        store.put(&key, vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")]).await.unwrap();
        store.put(&key, vec![]).await.unwrap_err();
        store.get_range(&key, 1..2).await.unwrap();
        store.get(&key).await.unwrap();
        store.list("", None).await.unwrap();
        store.delete(&vec![key.clone(); 1001]).await.unwrap();
        faults.set_options(FaultOptions { refuse: 1000, ..slow });
        store.get(&key).await.unwrap_err();

        let of = |count, retryable, millis: u64| Requests { count, retryable, failed: 0, micros: 1000 * millis };
        let expected = Metered {
            put: of(2, 0, 6),
            get: of(3, 1, 9),
            list: of(1, 0, 3),
            delete: of(2, 0, 3),
            objects_deleted: 1001,
            bytes_put: 3,
            bytes_got: 4,
        };
        let counted = meter.snapshot();
        let whole_millis = |requests: Requests| Requests { micros: requests.micros / 1000 * 1000, ..requests };
        let counted = Metered { put: whole_millis(counted.put), get: whole_millis(counted.get), ..counted };
        let counted = Metered { list: whole_millis(counted.list), delete: whole_millis(counted.delete), ..counted };
        assert_eq!(counted, expected);
        assert_eq!(counted.requests(), 8);

        let [(_, puts), (_, gets), (_, lists), (_, deletes)] = meter.outcomes();
        assert_eq!((puts.answered, gets.answered, gets.retryable, lists.answered, deletes.answered), (2, 2, 1, 1, 2));
        assert_eq!((gets.durations.count(), deletes.durations.count()), (3, 1), "a call is timed as one");
        // Of one of which the answer is not wanted any more, nothing but that is known.
        let mut unwanted = store.get(&key);
        assert!(futures::poll!(&mut unwanted).is_pending());
        assert_eq!(meter.outcomes()[1].1.under_way(), 1);
        drop(unwanted);
        let (_, gets) = meter.outcomes()[1];
        assert_eq!((gets.begun, gets.given_up, gets.under_way(), gets.durations.count()), (4, 1, 0, 3));
    }
}
