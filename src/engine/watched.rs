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
