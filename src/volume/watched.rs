//! A value that tasks wait on. Like `tokio::sync::watch`, but those who wait are woken in the order in which they came:
//! `watch` spreads them over several lists at random, and one seed must replay one run (rule R14).

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Watched<T> {
    /// Begins with `value`.
    pub fn new(value: T) -> Watched<T> {
        Watched { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value as it is; not to be held across an await.
    pub fn now(&self) -> MutexGuard<'_, T> {
        self.value.lock()
    }

    /// Changes the value and wakes all who wait.
    pub fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value.lock());
        self.changed.notify_waiters();
    }

    /// Returns the value once it is as asked.
    pub async fn wait_for(&self, mut asked: impl FnMut(&T) -> bool) -> T {
        loop {
            // Before the look, so that a change right after it is not missed.
            let changed = self.changed.notified();
            let found = Some(self.now()).filter(|value| asked(value)).map(|value| value.clone());
            match found {
                Some(value) => return value,
                None => changed.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_their_order() {
        let watched = Arc::new(Watched::new(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..100)
            .map(|waiter| {
                let (watched, order) = (watched.clone(), order.clone());
                tokio::spawn(async move {
                    assert_eq!(watched.wait_for(|value| *value >= 2).await, 2);
                    order.lock().push(waiter);
                })
            })
            .collect();
        for value in 0..=2 {
            tokio::task::yield_now().await;
            watched.change(|now| *now = value);
        }
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..100).collect::<Vec<_>>());
        assert_eq!(watched.wait_for(|value| *value == 2).await, 2, "at once");
    }
}
