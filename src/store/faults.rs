//! A store that misbehaves on purpose: slow, throttled, away, cut off. For the simulation and for benchmarks that
//! want the delay of a far-away store.
//!
//! An operation waits for its delay; then it is *counted*, which is the moment at which it happens or not. Then its
//! fate, drawn on arrival from the seeded generator, decides:
//!
//! | fate       | the store below | the caller                                                        |
//! | ---------- | --------------- | ----------------------------------------------------------------- |
//! | fair       | applied         | gets the reply, after a second delay                              |
//! | refuse     | untouched       | `Retryable` at once                                               |
//! | throttle   | untouched       | `Retryable` at once, in the words of a store that asks to slow down |
//! | fail after | applied         | `Retryable`: the reply was lost                                   |
//! | time-out   | applied or not  | `Retryable`, after `time_out_after`                               |
//! | short      | read            | a GET breaks off in the middle; a DELETE has deleted only a part  |
//! | half       | keeps the first part of a PUT's body | `Retryable`: the connection broke, and the key is taken |
//! | corrupt    | read            | a GET returns one flipped bit                                     |
//!
//! And one that is no fault of a store: whoever asks panics ([`FaultOptions::panic`]).
//!
//! Besides what is random, [`Faults`] sets a trap at the k-th operation, or cuts the wrapper off for ever: from then
//! on nothing reaches the store below and no reply comes back, as if the server had lost its power. Over
//! [`super::memory`], on a current-thread runtime with paused time, counting, applying and cutting are one step, so
//! that one seed replays one run exactly; [`Faults::digest`] says whether it did.

use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::options::human;
use super::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};
use crate::outside::Random;

mod control;

pub use control::{Counted, Faults, Trap};
use control::{Fate, Op};

/// How often, in thousandths of all operations, and how badly the store misbehaves. The default is a faultless store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultOptions {
    /// Every operation waits at least this long before it is applied: the round trip to the store.
    #[serde(with = "human")]
    pub delay_min: Duration,
    /// Beyond `delay_min`, a random time up to this before it is applied, and another before its reply.
    #[serde(with = "human")]
    pub delay_spread: Duration,
    /// Thousandths that fail before they are applied.
    pub refuse: u32,
    /// Thousandths that fail before they are applied, by throttling.
    pub throttle: u32,
    /// Thousandths that are applied, but whose reply is lost.
    pub fail_after: u32,
    /// Thousandths that end only with `time_out_after`, half of them applied.
    pub time_out: u32,
    /// When those end.
    #[serde(with = "human")]
    pub time_out_after: Duration,
    /// Thousandths of GETs and DELETEs that break off in the middle.
    pub short: u32,
    /// Thousandths of GETs that return one flipped bit.
    pub corrupt: u32,
    /// Thousandths of PUTs whose connection breaks; the store keeps the part of the body that came.
    pub half: u32,
    /// Thousandths at which whoever asks panics, instead: what a bug in the program comes to. Drawn only if there are any, so that a
    /// seed of before is the same run.
    pub panic: u32,
}

/// A store below, with faults.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    random: Random,
    faults: Faults,
}

impl FaultyStore {
    /// Wraps `inner`; fates are drawn from `random`.
    pub fn new(inner: Arc<dyn Store>, options: FaultOptions, random: Random) -> FaultyStore {
        FaultyStore { inner, random, faults: Faults::new(options) }
    }

    /// The handle that steers it.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

/// An operation that may be applied now.
struct Passage {
    fate: Fate,
    reply_delay: Duration,
    /// A random number for what breaks off or flips where.
    place: u64,
    time_out_after: Duration,
}

impl FaultyStore {
    /// Waits, counts and decides. After `Ok`, the caller applies the operation at once and hands the result to
    /// [`Self::leave`].
    async fn enter(&self, op: &Op<'_>) -> Result<Passage> {
        let options = self.faults.options();
        self.may_panic(&options, op);
        let (delay, drawn, mut passage) = self.draw(&options);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let Some(fate) = self.faults.count(op, drawn) else { return pending().await };
        passage.fate = fate;
        match fate {
            Fate::Refuse => Err(lost(op, "refused by a fault")),
            Fate::Throttle => Err(lost(op, "SlowDown, by a fault")),
            Fate::TimeOut { applied: false } => {
                sleep(options.time_out_after).await;
                Err(lost(op, "timed out by a fault"))
            }
            _ => Ok(passage),
        }
    }

    #[allow(clippy::panic)] // asked for
    fn may_panic(&self, options: &FaultOptions, op: &Op<'_>) {
        if options.panic > 0 && self.random.below(1000) < u64::from(options.panic) {
            panic!("store.faults.panic: a panic instead of {} {}", op.verb, op.what);
        }
    }

    /// The reply's way back.
    async fn leave<T>(&self, op: &Op<'_>, passage: Passage, result: Result<T>) -> Result<T> {
        if matches!(passage.fate, Fate::CutAfter | Fate::CutHalf) {
            self.faults.isolate();
        }
        if !passage.reply_delay.is_zero() && !self.faults.is_isolated() {
            sleep(passage.reply_delay).await;
        }
        if self.faults.is_isolated() {
            return pending().await;
        }
        match passage.fate {
            Fate::FailAfter => Err(lost(op, "reply lost by a fault")),
            Fate::TimeOut { .. } => {
                sleep(passage.time_out_after).await;
                Err(lost(op, "timed out by a fault"))
            }
            _ => result,
        }
    }

    /// Draws everything about one operation; always the same number of draws, so that runs stay comparable.
    fn draw(&self, options: &FaultOptions) -> (Duration, Fate, Passage) {
        let spread = options.delay_spread.as_micros() as u64 + 1;
        let delay = options.delay_min + Duration::from_micros(self.random.below(spread));
        let reply_delay = Duration::from_micros(self.random.below(spread));
        let (mut roll, place) = (self.random.below(1000), self.random.below(u64::MAX));
        let fates = [
            (options.refuse, Fate::Refuse),
            (options.throttle, Fate::Throttle),
            (options.fail_after, Fate::FailAfter),
            (options.time_out, Fate::TimeOut { applied: place % 2 == 0 }),
            (options.short, Fate::Short),
            (options.corrupt, Fate::Corrupt),
            (options.half, Fate::Half),
        ];
        let mut drawn = Fate::Fair;
        for (thousandths, fate) in fates {
            if roll < u64::from(thousandths) {
                drawn = fate;
                break;
            }
            roll -= u64::from(thousandths);
        }
        (delay, drawn, Passage { fate: drawn, reply_delay, place, time_out_after: options.time_out_after })
    }

    async fn read(&self, key: &Key, work: impl Future<Output = Result<Front>> + Send) -> Result<Front> {
        let op = Op { verb: "get", what: key.as_str(), mutates: false };
        let passage = self.enter(&op).await?;
        let mut result = work.await;
        if let (Fate::Short, Ok(front)) = (passage.fate, &result) {
            result = Err(lost(&op, &format!("connection closed within {} bytes, by a fault", front.bytes.len())));
        }
        if let (Fate::Corrupt | Fate::CorruptAt(_), Ok(front)) = (passage.fate, &mut result) {
            let bit = if let Fate::CorruptAt(bit) = passage.fate { bit } else { passage.place };
            front.bytes = flipped(&front.bytes, bit);
        }
        self.leave(&op, passage, result).await
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let op = Op { verb: "put", what: key.as_str(), mutates: true };
        let passage = self.enter(&op).await?;
        let result = match passage.fate {
            Fate::Half | Fate::CutHalf => {
                let (part, whole) = first_part(body, passage.place);
                let kept = self.inner.put(key, part).await;
                kept.and(Err(lost(&op, &format!("connection broke within {whole} bytes, by a fault"))))
            }
            _ => self.inner.put(key, body).await,
        };
        self.leave(&op, passage, result).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let work = async { Ok(Front { bytes: self.inner.get_range(key, range).await?, total: None }) };
        Ok(self.read(key, work).await?.bytes)
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.read(key, self.inner.get_front(key, len)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let work = async { Ok(Front { bytes: self.inner.get(key).await?, total: None }) };
        Ok(self.read(key, work).await?.bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let op = Op { verb: "list", what: prefix, mutates: false };
        let passage = self.enter(&op).await?;
        let result = self.inner.list(prefix, start_after).await;
        self.leave(&op, passage, result).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let op = Op { verb: "list", what: "/", mutates: false };
        let passage = self.enter(&op).await?;
        let result = self.inner.list_top().await;
        self.leave(&op, passage, result).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let what = keys.iter().map(Key::as_str).collect::<Vec<_>>().join(" ");
        let op = Op { verb: "delete", what: &what, mutates: true };
        let passage = self.enter(&op).await?;
        let result = match passage.fate {
            Fate::Short => {
                let part = passage.place as usize % (keys.len() + 1);
                let deleted = self.inner.delete(&keys[..part]).await;
                deleted.and(Err(lost(&op, "broke off in the middle, by a fault")))
            }
            _ => self.inner.delete(keys).await,
        };
        self.leave(&op, passage, result).await
    }

    fn retains(&self) -> bool {
        self.inner.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        let op = Op { verb: "lock", what: key.as_str(), mutates: true };
        let passage = self.enter(&op).await?;
        let result = self.inner.retain(key, until_unix_millis).await;
        self.leave(&op, passage, result).await
    }
}

fn lost(op: &Op<'_>, cause: &str) -> StoreError {
    StoreError::new(ErrorKind::Retryable, format!("cannot {} {}: {cause}", op.verb, op.what))
}

/// Less than all of a body, maybe nothing of it; and how long it was.
fn first_part(body: Vec<Bytes>, place: u64) -> (Vec<Bytes>, usize) {
    let body = Bytes::from(body.concat());
    (vec![body.slice(..place as usize % body.len().max(1))], body.len())
}

fn flipped(body: &Bytes, place: u64) -> Bytes {
    let mut body = body.to_vec();
    if !body.is_empty() {
        let bit = place as usize % (body.len() * 8);
        body[bit / 8] ^= 1 << (bit % 8);
    }
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn key(n: u64) -> Key {
        Key::new(format!("v/segments/{n:02x}/{n:016x}")).unwrap()
    }

    fn over_memory(options: FaultOptions, seed: u64) -> (MemoryStore, FaultyStore) {
        let memory = MemoryStore::new();
        (memory.clone(), FaultyStore::new(Arc::new(memory), options, Random::seeded(seed)))
    }

    async fn put_concurrently(store: &FaultyStore, count: u64) -> Vec<bool> {
        let puts = (0..count).map(|n| async move { store.put(&key(n), vec![Bytes::new()]).await.is_ok() });
        futures::future::join_all(puts).await
    }

    const ROUGH: FaultOptions = FaultOptions {
        delay_min: Duration::from_millis(1),
        delay_spread: Duration::from_millis(50),
        refuse: 100,
        throttle: 100,
        fail_after: 100,
        time_out: 100,
        time_out_after: Duration::from_secs(30),
        short: 0,
        corrupt: 0,
        half: 0,
        panic: 0,
    };

    #[tokio::test(start_paused = true)]
    async fn one_seed_is_one_run() {
        let mut digests = Vec::new();
        for seed in [1, 1, 2] {
            let (memory, store) = over_memory(ROUGH, seed);
            let replies = put_concurrently(&store, 100).await;
            digests.push((store.faults().digest(), replies, memory.object_count()));
        }
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[0], digests[2]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_leave_some_objects_behind_and_successes_all() {
        let (memory, store) = over_memory(ROUGH, 7);
        let replies = put_concurrently(&store, 1000).await;
        let successes = replies.iter().filter(|reply| **reply).count();
        assert!((500..700).contains(&successes), "{successes}");
        let kept = memory.object_count() - successes;
        assert!((100..200).contains(&kept), "applied, but reported as failed: {kept}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trap_cuts_before_or_after_the_kth_mutation() {
        for (trap, left) in [(Trap::CutBefore, 2), (Trap::CutAfter, 3)] {
            let delays = FaultOptions { delay_spread: Duration::from_millis(20), ..FaultOptions::default() };
            let (memory, store) = over_memory(delays, 3);
            store.faults().set_trap(Counted::Mutations, 3, trap);
            store.get(&key(9)).await.unwrap_err();
            let faults = store.faults();
            tokio::select! {
                _ = put_concurrently(&store, 10) => panic!("a reply came through the cut"),
                () = faults.isolated() => {}
            }
            sleep(Duration::from_secs(60)).await;
            assert_eq!(memory.object_count(), left, "{trap:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trap_fails_one_operation_only() {
        for (trap, left) in [(Trap::FailBefore, 2), (Trap::FailAfter, 3)] {
            let (memory, store) = over_memory(FaultOptions::default(), 3);
            store.faults().set_trap(Counted::Operations, 2, trap);
            assert_eq!(put_concurrently(&store, 3).await, [true, false, true]);
            assert_eq!(memory.object_count(), left, "{trap:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_when_the_cut_comes_never_happens() {
        let delay = FaultOptions { delay_min: Duration::from_secs(1), ..FaultOptions::default() };
        let (memory, store) = over_memory(delay, 3);
        let faults = store.faults();
        let put = tokio::spawn(async move { store.put(&key(0), vec![]).await });
        tokio::task::yield_now().await;
        faults.isolate();
        sleep(Duration::from_secs(60)).await;
        assert!(!put.is_finished());
        assert_eq!((memory.object_count(), faults.operations()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_that_breaks_off_leaves_its_first_part_and_the_key_is_taken() {
        let (memory, store) = over_memory(FaultOptions::default(), 5);
        let store = &store;
        let put =
            |n| async move { store.put(&key(n), vec![Bytes::from_static(b"bo"), Bytes::from_static(b"dy")]).await };
        (0..50).for_each(|k| store.faults().set_trap(Counted::Mutations, 2 * k + 1, Trap::KeepHalf));
        let mut lengths = std::collections::BTreeSet::new();
        for n in 0..50 {
            assert_eq!(put(n).await.unwrap_err().kind, ErrorKind::Retryable);
            assert_eq!(put(n).await.unwrap_err().kind, ErrorKind::AlreadyExists);
            let kept = memory.get(&key(n)).await.unwrap();
            assert!(b"body".starts_with(&kept));
            lengths.insert(kept.len());
        }
        assert_eq!(lengths, (0..4).collect(), "any part, but never the whole");
    }

    #[tokio::test(start_paused = true)]
    async fn short_deletes_delete_a_part_and_corrupt_gets_flip_a_bit() {
        let (memory, store) = over_memory(FaultOptions { short: 1000, ..FaultOptions::default() }, 5);
        let keys: Vec<Key> = (0..100).map(key).collect();
        for key in &keys {
            memory.replace(key, Bytes::from_static(b"body"));
        }
        assert_eq!(store.get(&keys[0]).await.unwrap_err().kind, ErrorKind::Retryable);
        assert_eq!(store.delete(&keys).await.unwrap_err().kind, ErrorKind::Retryable);
        assert!((1..100).contains(&memory.object_count()));

        store.faults().set_options(FaultOptions { corrupt: 1000, ..FaultOptions::default() });
        let body = store.get(&keys[99]).await.unwrap();
        let flipped: u32 = body.iter().zip(b"body").map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((body.len(), flipped), (4, 1));
    }
}
