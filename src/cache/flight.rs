//! Single flight: many who want one thing wait for one fetch of it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::{Mutex, MutexGuard};

/// A fetch that several wait for; its result is cloned to each.
pub type Flight<V> = Shared<BoxFuture<'static, V>>;

/// The fetches under way, by what they bring. One fetch may bring several things.
///
/// A flight is driven by whoever waits for it: if the first waiter goes away, the next one drives it on. If all go away,
/// it ends where it is, and gives back what it holds.
#[derive(Debug)]
pub struct Flights<K, V> {
    under_way: UnderWay<K, V>,
    /// Tells a flight from the one that brought the same thing before.
    launched: AtomicU64,
}

type Weak<V> = WeakShared<BoxFuture<'static, V>>;
type Table<K, V> = HashMap<K, (u64, Weak<V>)>;
type UnderWay<K, V> = Arc<Mutex<Table<K, V>>>;

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
    /// The table, for this caller alone: what it does not find and launches, nobody else launches meanwhile. Not to be
    /// held across an await, nor while a flight is dropped.
    pub fn board(&self) -> Board<'_, K, V> {
        Board { flights: self, table: self.under_way.lock() }
    }
}

/// See [`Flights::board`].
pub struct Board<'a, K, V> {
    flights: &'a Flights<K, V>,
    table: MutexGuard<'a, Table<K, V>>,
}

impl<K, V> Board<'_, K, V>
where
    K: Hash + Eq + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The flight that brings `key`, if one is under way.
    pub fn find(&self, key: K) -> Option<Flight<V>> {
        self.table.get(&key).and_then(|(_, flight)| flight.upgrade())
    }

    /// Puts a fetch of `keys` under way. Nothing happens until somebody awaits it.
    pub fn launch(&mut self, keys: Vec<K>, fetch: impl Future<Output = V> + Send + 'static) -> Flight<V> {
        let number = self.flights.launched.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { table: self.flights.under_way.clone(), keys: keys.clone(), number };
        let flight = async move {
            let result = fetch.await;
            drop(landing);
            result
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            self.table.extend(keys.into_iter().map(|key| (key, (number, weak.clone()))));
        }
        flight
    }
}

/// Takes a flight out of the table when it has landed, or when nobody waits for it any more.
struct Landing<K: Hash + Eq, V> {
    table: UnderWay<K, V>,
    keys: Vec<K>,
    number: u64,
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        for key in &self.keys {
            if table.get(key).is_some_and(|(other, _)| *other == self.number) {
                table.remove(key);
            }
        }
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
        let first = flights.board().launch(vec![1, 2], async move {
            tokio::task::yield_now().await;
            count.fetch_add(1, Ordering::Relaxed) + 10
        });
        let second = flights.board().find(2).unwrap();
        drop(first); // the first waiter gives up; the second drives the flight on
        assert_eq!(second.await, 10);
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
        assert!(flights.board().find(1).is_none() && flights.board().find(2).is_none());
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_gives_back_what_it_holds() {
        let flights = Flights::<u32, u32>::default();
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let held = permits.clone();
        let flight = flights.board().launch(vec![1], async move {
            let _permit = held.acquire().await;
            std::future::pending().await
        });
        assert!(futures::poll!(flight.clone()).is_pending());
        assert_eq!(permits.available_permits(), 0);
        drop(flight);
        assert_eq!(permits.available_permits(), 1);
        assert!(flights.board().find(1).is_none() && flights.under_way.lock().is_empty());
    }
}
