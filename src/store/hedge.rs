//! Hedged GETs: one that takes longer than its like is asked a second time, and the first good answer counts.
//!
//! Of the GETs of a store most take about the same time, and a few take many times as long: a slow disk, a busy node, a lost
//! packet. Whoever reads waits for the slowest, so those few decide. A second request mostly meets another node.
//!
//! *Longer than its like* is measured: for each class of lengths the time within which 95 of 100 recent GETs were done, times
//! `p95_percent`, and never less than `delay_min`. Until [`SAMPLES_MIN`] have been seen, nothing is asked twice. When the store
//! as a whole slows down, so does that time; and of a hundred GETs at most `share_percent` are asked twice, so a store that is
//! in trouble is not asked for more.
//!
//! An answer is data, or a refusal that would be the same again; a failure that may pass is not, as long as the other request
//! may still succeed. The one that is not needed is dropped. GETs of whole objects are not hedged: nobody knows how long they
//! are.
//!
//! This stands below [`super::limit`], so that waiting for a turn does not count as slowness of the store, and above
//! [`super::meter`], so that every request counts.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::meter::Meter;
use super::options::human;
use super::{ErrorKind, Front, Key, ListPage, Result, Store};

/// When a GET is asked a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HedgeOptions {
    /// Of a hundred GETs, at most so many are asked a second time; 0 turns it off, more than 100 count as 100.
    pub share_percent: u32,
    /// It is done after this many percent of the time within which 95 of 100 recent GETs of like length were done.
    pub p95_percent: u32,
    /// Never earlier than this.
    #[serde(with = "human")]
    pub delay_min: Duration,
}

impl Default for HedgeOptions {
    fn default() -> Self {
        HedgeOptions { share_percent: 5, p95_percent: 150, delay_min: Duration::from_millis(20) }
    }
}

/// GETs of a class that were seen before any of it is hedged.
pub const SAMPLES_MIN: usize = 32;

/// Recent GETs that a class remembers.
const SAMPLES: usize = 128;

/// The quantile is taken anew after so many GETs.
const REFRESH: usize = 8;

/// Second requests that may be saved up.
const BURST: u32 = 8;

/// What one second request costs; each GET earns `share_percent`.
const COST: u32 = 100;

/// Classes of lengths: up to 16 KiB, and then by factors of four.
const CLASSES: usize = 8;
const CLASS_BYTES_MIN: u64 = 16 << 10;

/// A store below, asked twice where it is slow.
#[derive(Debug)]
pub struct HedgeStore {
    inner: Arc<dyn Store>,
    options: HedgeOptions,
    state: Mutex<State>,
    meter: Arc<Meter>,
}

#[derive(Debug, Default)]
struct State {
    classes: [Class; CLASSES],
    /// What was earned and not spent.
    savings: u32,
}

/// The recent times of GETs of like length.
#[derive(Debug, Default)]
struct Class {
    recent: Vec<Duration>,
    seen: usize,
    p95: Duration,
}

impl HedgeStore {
    /// Wraps `inner`; second requests are counted in `meter`.
    pub fn new(inner: Arc<dyn Store>, options: HedgeOptions, meter: Arc<Meter>) -> HedgeStore {
        HedgeStore { inner, options, state: Mutex::default(), meter }
    }

    /// Counts a GET; when it is to be asked a second time, if it may be at all.
    fn begin(&self, class: usize) -> Option<Duration> {
        let mut state = self.state.lock();
        state.savings = (state.savings + self.options.share_percent.min(COST)).min(BURST * COST);
        let class = &state.classes[class];
        (class.seen >= SAMPLES_MIN).then(|| (class.p95 * self.options.p95_percent / 100).max(self.options.delay_min))
    }

    /// Whether one may be asked a second time now.
    fn spend(&self) -> bool {
        let mut state = self.state.lock();
        let rest = state.savings.checked_sub(COST);
        state.savings = rest.unwrap_or(state.savings);
        rest.is_some()
    }

    /// Asks, and once more if that takes too long.
    async fn hedged<T, F>(&self, key: &Key, range: &Range<u64>, ask: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Unpin,
    {
        let (begun, class) = (Instant::now(), class_of(range));
        let delay = self.begin(class);
        let mut first = ask();
        let result = match delay {
            None => first.await,
            Some(delay) => {
                tokio::select! {
                    biased;
                    result = &mut first => result,
                    () = sleep(delay) => match self.spend() {
                        false => first.await,
                        true => {
                            self.meter.hedged();
                            tracing::debug!("{key} at {} takes more than {delay:?}: asked again", range.start);
                            better(first, ask()).await
                        }
                    }
                }
            }
        };
        if result.is_ok() {
            self.note(class, begun.elapsed());
        }
        result
    }

    fn note(&self, class: usize, took: Duration) {
        self.state.lock().classes[class].note(took);
    }
}

impl Class {
    fn note(&mut self, took: Duration) {
        match self.recent.len() < SAMPLES {
            true => self.recent.push(took),
            false => self.recent[self.seen % SAMPLES] = took,
        }
        self.seen += 1;
        if self.seen.is_multiple_of(REFRESH) {
            let mut sorted = self.recent.clone();
            let at = (sorted.len() * 95).div_ceil(100) - 1;
            self.p95 = *sorted.select_nth_unstable(at).1;
        }
    }
}

/// The class of a length.
fn class_of(range: &Range<u64>) -> usize {
    let len = range.end.saturating_sub(range.start).max(1);
    let fours = len.div_ceil(CLASS_BYTES_MIN).next_power_of_two().ilog2().div_ceil(2);
    (fours as usize).min(CLASSES - 1)
}

/// Whether nothing better is to be expected of asking again.
fn is_answer<T>(result: &Result<T>) -> bool {
    !matches!(result, Err(error) if error.kind == ErrorKind::Retryable)
}

#[async_trait]
impl Store for HedgeStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.hedged(key, &range, || self.inner.get_range(key, range.clone())).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.hedged(key, &(0..len), || self.inner.get_front(key, len)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.inner.delete(keys).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        self.inner.retain(key, until_unix_millis).await
    }
}

/// The first answer of two, or the failure of the first if there is none.
async fn better<T>(
    mut first: impl Future<Output = Result<T>> + Unpin,
    mut second: impl Future<Output = Result<T>> + Unpin,
) -> Result<T> {
    tokio::select! {
        biased;
        result = &mut first => match is_answer(&result) {
            true => result,
            false => Some(second.await).filter(is_answer).unwrap_or(result),
        },
        result = &mut second => match is_answer(&result) {
            true => result,
            false => first.await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::store::StoreError;

    /// Answers each GET after the next of these times, or fails; counts them, and those that were dropped.
    #[derive(Debug, Default)]
    struct Script {
        answers: Mutex<VecDeque<(u64, Option<ErrorKind>)>>,
        counts: Mutex<(u32, u32)>,
    }

    struct Dropped<'a>(&'a Script, bool);

    impl Drop for Dropped<'_> {
        fn drop(&mut self) {
            self.0.counts.lock().1 += u32::from(!self.1);
        }
    }

    #[async_trait]
    impl Store for Script {
        fn url(&self) -> String {
            "script://".into()
        }

        async fn put(&self, _: &Key, _: Vec<Bytes>) -> Result<()> {
            Ok(())
        }

        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
            self.counts.lock().0 += 1;
            let mut dropped = Dropped(self, false);
            let (millis, error) = self.answers.lock().pop_front().unwrap_or((10, None));
            sleep(Duration::from_millis(millis)).await;
            dropped.1 = true;
            match error {
                None => Ok(vec![millis as u8; (range.end - range.start) as usize].into()),
                Some(kind) => Err(StoreError::new(kind, format!("{key} after {millis}"))),
            }
        }

        async fn get(&self, _: &Key) -> Result<Bytes> {
            sleep(Duration::from_secs(100)).await;
            Ok(Bytes::new())
        }

        async fn list(&self, _: &str, _: Option<&Key>) -> Result<ListPage> {
            Ok(ListPage::new(Vec::new(), true))
        }

        async fn list_top(&self) -> Result<Vec<String>> {
            Ok(Vec::new())
        }

        async fn delete(&self, _: &[Key]) -> Result<()> {
            Ok(())
        }
    }

    fn key() -> Key {
        Key::new("v/segments/1").unwrap()
    }

    /// A store of which a hundred GETs took 10 ms each.
    async fn settled(options: HedgeOptions) -> (Arc<Script>, HedgeStore) {
        let script = Arc::new(Script::default());
        let store = HedgeStore::new(script.clone(), options, Arc::default());
        for _ in 0..100 {
            store.get_range(&key(), 0..100).await.unwrap();
        }
        *script.counts.lock() = (0, 0);
        (script, store)
    }

    /// One GET with these answers in store: its result, how long it took in milliseconds, requests, and how many were dropped.
    async fn one(
        script: &Script,
        store: &HedgeStore,
        answers: &[(u64, Option<ErrorKind>)],
    ) -> (std::result::Result<u8, ErrorKind>, u128, (u32, u32)) {
        *script.answers.lock() = answers.iter().copied().collect();
        let begun = Instant::now();
        let result = store.get_range(&key(), 0..100).await;
        let counts = std::mem::take(&mut *script.counts.lock());
        (result.map(|data| data[0]).map_err(|error| error.kind), begun.elapsed().as_millis(), counts)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_good_answer_counts_and_the_other_request_is_dropped() {
        let (script, store) = settled(HedgeOptions { share_percent: 100, ..HedgeOptions::default() }).await;
        let (script, store) = (&*script, &store);
        let retryable = Some(ErrorKind::Retryable);
        // 15 ms would be one and a half times the usual, 20 ms is the least.
        assert_eq!(one(script, store, &[(19, None)]).await, (Ok(19), 19, (1, 0)));
        assert_eq!(one(script, store, &[(200, None), (10, None)]).await, (Ok(10), 30, (2, 1)));
        assert_eq!(one(script, store, &[(25, None), (90, None)]).await, (Ok(25), 25, (2, 1)), "the first was faster");
        assert_eq!(one(script, store, &[(25, retryable), (90, None)]).await, (Ok(90), 110, (2, 0)));
        assert_eq!(one(script, store, &[(99, None), (5, retryable)]).await, (Ok(99), 99, (2, 0)));
        let both = one(script, store, &[(30, retryable), (50, retryable)]).await;
        assert_eq!(both, (Err(ErrorKind::Retryable), 70, (2, 0)));
        let gone = one(script, store, &[(200, None), (5, Some(ErrorKind::NotFound))]).await;
        assert_eq!(gone, (Err(ErrorKind::NotFound), 25, (2, 1)));
        assert_eq!(one(script, store, &[(5, retryable)]).await.2, (1, 0), "failures are for whoever retries");
        assert_eq!(store.meter.hedges(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_the_share_is_asked_twice_however_slow_the_store_becomes() {
        let (script, store) = settled(HedgeOptions { p95_percent: 1, ..HedgeOptions::default() }).await;
        let mut requests = 0;
        for _ in 0..1000 {
            // Each is slower than it should be.
            requests += one(&script, &store, &[(30, None), (30, None)]).await.2.0;
        }
        assert!((1050..=1050 + BURST).contains(&requests), "{requests} requests");
        // A store that is slow as a whole is not asked twice at all once that is known.
        let (script, store) = settled(HedgeOptions::default()).await;
        for _ in 0..100 {
            one(&script, &store, &[(300, None), (300, None)]).await.0.unwrap();
        }
        assert_eq!(one(&script, &store, &[(400, None), (10, None)]).await, (Ok((400 % 256) as u8), 400, (1, 0)));
        // None at all, if there is no share.
        let (script, store) = settled(HedgeOptions { share_percent: 0, ..HedgeOptions::default() }).await;
        assert_eq!(one(&script, &store, &[(5000, None)]).await.2.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_asked_twice_before_enough_is_known_and_lengths_are_apart() {
        let script = Arc::new(Script::default());
        let options = HedgeOptions { share_percent: 100, ..HedgeOptions::default() };
        let store = HedgeStore::new(script.clone(), options, Arc::default());
        for _ in 0..SAMPLES_MIN {
            assert_eq!(one(&script, &store, &[(10, None)]).await.2.0, 1);
        }
        script.answers.lock().push_back((500, None));
        store.get_range(&key(), 0..1 << 20).await.unwrap();
        assert_eq!(std::mem::take(&mut *script.counts.lock()).0, 1, "nothing is known of long ones");
        assert_eq!(one(&script, &store, &[(500, None)]).await.2.0, 2);
        let classes = [1, 16 << 10, (16 << 10) + 1, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 1 << 40]
            .map(|len| class_of(&(7..7 + len)));
        assert_eq!(classes, [0, 0, 1, 1, 2, 3, 4, 7]);
    }
}
