//! Trying again: what is [`ErrorKind::Retryable`] is repeated with growing, jittered pauses until a limit of time.
//!
//! A PUT whose first attempt was applied but reported as failed finds its own object on the second. That comes back
//! as `AlreadyExists`, like somebody else's object: only who wrote it can tell, by reading it back and comparing.
//!
//! The limit keeps callers in charge. Reads end in an error that a client sees; uploads of acknowledged data are
//! simply asked for again by the volume, for ever. A store that stays away is logged once when it goes and once when
//! it is back, not for every request.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::health::Health;
use super::options::human;
use super::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};
use crate::human::counted;
use crate::outside::Random;

/// How failed requests are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryOptions {
    /// The pause before the second attempt; each further one is twice as long, and up to as much again at random.
    #[serde(with = "human")]
    pub pause_min: Duration,
    /// The longest pause, without its random part.
    #[serde(with = "human")]
    pub pause_max: Duration,
    /// A read or a listing that did not succeed by then fails.
    #[serde(with = "human")]
    pub read_limit: Duration,
    /// A PUT or DELETE that did not succeed by then is handed back; data that was acknowledged to a client is tried
    /// again for ever all the same.
    #[serde(with = "human")]
    pub write_limit: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        RetryOptions {
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
            read_limit: Duration::from_secs(60),
            write_limit: Duration::from_secs(60),
        }
    }
}

/// A store below, tried again.
#[derive(Debug)]
pub struct RetryStore {
    inner: Arc<dyn Store>,
    options: RetryOptions,
    random: Random,
    /// Since when the store has not answered.
    away: Arc<Mutex<Option<Instant>>>,
    /// What fails just now.
    health: Health,
}

/// From this attempt on, a failure is no hiccup any more.
const AWAY_ATTEMPTS: u32 = 4;

impl RetryStore {
    /// Wraps `inner`; the jitter is drawn from `random`.
    pub fn new(inner: Arc<dyn Store>, options: RetryOptions, random: Random) -> RetryStore {
        RetryStore { inner, options, random, away: Arc::default(), health: Health::default() }
    }

    /// What fails just now, to be looked at.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    async fn repeat<'a, T>(&self, limit: Duration, attempt: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let begin = Instant::now();
        let mut attempts_go_on = self.health.begin();
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(self.options.pause_min)
            .with_max_delay(self.options.pause_max)
            .with_jitter()
            .with_jitter_seed(u64::from_le_bytes(self.random.bytes()))
            .without_max_times()
            .build();
        let mut attempts = 1;
        loop {
            let error = match attempt().await {
                Err(error) if error.kind == ErrorKind::Retryable => error,
                ended => {
                    self.ended(&ended);
                    return ended;
                }
            };
            let pause = pauses.next().unwrap_or(self.options.pause_max);
            if begin.elapsed() + pause > limit {
                let spent = humantime::format_duration(Duration::from_millis(begin.elapsed().as_millis() as u64));
                let message = format!("{} (tried {} in {spent})", error.message, counted(attempts.into(), "time"));
                return Err(StoreError::new(error.kind, message));
            }
            self.failed(attempts, begin, &error);
            attempts_go_on.failed(error);
            sleep(pause).await;
            attempts += 1;
        }
    }

    fn failed(&self, attempts: u32, begin: Instant, error: &StoreError) {
        debug!("attempt {attempts}: {error}");
        if attempts < AWAY_ATTEMPTS {
            return;
        }
        let mut away = self.away.lock();
        if away.is_none() {
            *away = Some(begin);
            warn!("store {} is away, trying again: {error}", self.inner.url());
        }
    }

    /// An operation ended. A refusal says nothing of whether the store works: it may have been made without asking it.
    fn ended<T>(&self, result: &Result<T>) {
        if result.as_ref().is_err_and(|error| matches!(error.kind, ErrorKind::Denied | ErrorKind::Invalid)) {
            return;
        }
        if let Some(since) = self.away.lock().take() {
            let spent = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs()));
            info!("store {} answers again after {spent}", self.inner.url());
        }
    }
}

#[async_trait]
impl Store for RetryStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.repeat(self.options.write_limit, || self.inner.put(key, body.clone())).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.repeat(self.options.read_limit, || self.inner.get_range(key, range.clone())).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.repeat(self.options.read_limit, || self.inner.get_front(key, len)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.repeat(self.options.read_limit, || self.inner.get(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.repeat(self.options.read_limit, || self.inner.list(prefix, start_after)).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.repeat(self.options.read_limit, || self.inner.list_top()).await
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        let (inner, away, health) = (self.inner.background()?, self.away.clone(), self.health.clone());
        Some(Arc::new(RetryStore { inner, options: self.options, random: self.random.clone(), away, health }))
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        // What asks nothing of the store says nothing about it.
        if keys.is_empty() {
            return Ok(());
        }
        self.repeat(self.options.write_limit, || self.inner.delete(keys)).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        self.repeat(self.options.write_limit, || self.inner.retain(key, until_unix_millis)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faults::{Counted, FaultOptions, Faults, FaultyStore, Trap};
    use crate::store::memory::MemoryStore;

    fn tower(faults: FaultOptions) -> (MemoryStore, Faults, RetryStore) {
        let memory = MemoryStore::new();
        let faulty = FaultyStore::new(Arc::new(memory.clone()), faults, Random::seeded(1));
        let faults = faulty.faults();
        (memory, faults, RetryStore::new(Arc::new(faulty), RetryOptions::default(), Random::seeded(2)))
    }

    fn key() -> Key {
        Key::new("v/meta/0").unwrap()
    }

    /// E2.
    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_out_with_growing_pauses() {
        let (_, faults, store) = tower(FaultOptions { refuse: 1000, ..FaultOptions::default() });
        let health = store.health();
        let put = tokio::spawn(async move { store.put(&key(), vec![Bytes::new()]).await });
        sleep(Duration::from_secs(30)).await;
        assert!((5..12).contains(&faults.operations()), "{faults:?}");
        let trouble = health.trouble().unwrap();
        assert_eq!(trouble.since.elapsed(), Duration::from_secs(30));
        assert_eq!(trouble.what.message, "cannot put v/meta/0: refused by a fault");
        faults.set_options(FaultOptions::default());
        put.await.unwrap().unwrap();
        assert!(health.trouble().is_none());
    }

    /// E2: what ends in EIO.
    #[tokio::test(start_paused = true)]
    async fn a_limit_ends_it_with_the_cause_and_the_count() {
        let (_, faults, store) = tower(FaultOptions { refuse: 1000, ..FaultOptions::default() });
        let begin = Instant::now();
        let error = store.get(&key()).await.unwrap_err();
        let limit = RetryOptions::default().read_limit;
        assert!((limit / 2..=limit).contains(&begin.elapsed()));
        let tried = format!("cannot get v/meta/0: refused by a fault (tried {} times in ", faults.operations());
        assert!(error.message.starts_with(&tried), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_whose_reply_was_lost_finds_its_own_object() {
        let (memory, faults, store) = tower(FaultOptions::default());
        faults.set_trap(Counted::Operations, 1, Trap::FailAfter);
        let error = store.put(&key(), vec![Bytes::from_static(b"mine")]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        assert_eq!(memory.get(&key()).await.unwrap(), "mine");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_is_back_when_it_answered_and_not_when_nothing_was_asked_of_it_or_it_refused() {
        let (_, faults, store) = tower(FaultOptions { refuse: 1000, ..FaultOptions::default() });
        store.get(&key()).await.unwrap_err();
        let is_away = || store.away.lock().is_some();
        assert!(is_away());
        faults.set_options(FaultOptions::default());
        store.delete(&[]).await.unwrap();
        assert!(is_away(), "nothing was asked");
        store.ended(&Err::<(), _>(StoreError::new(ErrorKind::Denied, "no credentials")));
        assert!(is_away(), "a refusal");
        assert_eq!(store.get(&key()).await.unwrap_err().kind, ErrorKind::NotFound);
        assert!(!is_away());
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_is_tried_again() {
        let (_, faults, store) = tower(FaultOptions::default());
        assert_eq!(store.get(&key()).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(faults.operations(), 1);
    }
}
