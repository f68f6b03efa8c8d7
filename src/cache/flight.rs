//! Single flight: many who want one thing wait for one fetch of it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

/// A fetch that several wait for; its result is cloned to each.
pub type Flight<V> = Shared<BoxFuture<'static, V>>;

/// The fetches under way, by what they bring. One fetch may bring several things.
///
/// A flight is driven by whoever waits for it: if the first waiter goes away, the next one drives it on.
#[derive(Debug)]
pub struct Flights<K, V> {
    under_way: UnderWay<K, V>,
    /// Tells a flight from the one that brought the same thing before.
    launched: AtomicU64,
}

type UnderWay<K, V> = Arc<Mutex<HashMap<K, (u64, Flight<V>)>>>;

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights { under_way: Arc::default(), launched: AtomicU64::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The flight that brings `key`, if one is under way.
    pub fn find(&self, key: K) -> Option<Flight<V>> {
        self.under_way.lock().get(&key).map(|(_, flight)| flight.clone())
    }

    /// Puts a fetch of `keys` under way. Nothing happens until somebody awaits it.
    pub fn launch(&self, keys: Vec<K>, fetch: impl Future<Output = V> + Send + 'static) -> Flight<V> {
        let number = self.launched.fetch_add(1, Ordering::Relaxed);
        let (table, landed) = (self.under_way.clone(), keys.clone());
        let flight = async move {
            let result = fetch.await;
            let mut table = table.lock();
            for key in landed {
                if table.get(&key).is_some_and(|(other, _)| *other == number) {
                    table.remove(&key);
                }
            }
            result
        }
        .boxed()
        .shared();
        let mut table = self.under_way.lock();
        for key in keys {
            table.insert(key, (number, flight.clone()));
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[tokio::test]
    async fn many_waiters_share_one_fetch_and_a_later_one_starts_anew() {
        let flights = Flights::<u32, u32>::default();
        let fetches = Arc::new(AtomicU32::new(0));
        let count = fetches.clone();
        let first = flights.launch(vec![1, 2], async move {
            tokio::task::yield_now().await;
            count.fetch_add(1, Ordering::Relaxed) + 10
        });
        let second = flights.find(2).unwrap();
        drop(first); // the first waiter gives up; the second drives the flight on
        assert_eq!(second.await, 10);
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
        assert!(flights.find(1).is_none() && flights.find(2).is_none());
    }
}
