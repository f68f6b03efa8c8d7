//! What is wrong with a store just now: a small record that whoever tries again feeds, and whoever looks on reads.
//!
//! An operation that fails and is tried again is a trouble from its first failure until it succeeds or is given up. There may
//! be many at once, of which a GET that works ends none: a store over its quota takes no PUT and answers every GET. What is
//! told is one sentence: since when the oldest has lasted, and what the newest failure said.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The operations that fail just now. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Troubles>>);

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When the oldest operation that still fails began.
    pub since: Instant,
    /// What the newest failure said.
    pub what: String,
}

/// The record: plain data.
#[derive(Debug, Default)]
struct Troubles {
    next: u64,
    /// The operations that fail, with their begin.
    failing: BTreeMap<u64, Instant>,
    /// What the newest failure said.
    what: String,
}

impl Health {
    /// What is wrong, if something is.
    pub fn trouble(&self) -> Option<Trouble> {
        let troubles = self.0.lock();
        let since = troubles.failing.values().min()?;
        Some(Trouble { since: *since, what: troubles.what.clone() })
    }

    /// An operation that begins now, and is well until it says otherwise.
    pub fn begin(&self) -> Attempts {
        Attempts { health: self.clone(), began: Instant::now(), id: None }
    }
}

/// One operation that is tried until it succeeds. Dropping it says that it has, or was given up.
#[derive(Debug)]
pub struct Attempts {
    health: Health,
    began: Instant,
    id: Option<u64>,
}

impl Attempts {
    /// When the operation began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// An attempt failed, and there will be another.
    pub fn failed(&mut self, what: &str) {
        let mut troubles = self.health.0.lock();
        let id = *self.id.get_or_insert_with(|| {
            troubles.next += 1;
            troubles.next
        });
        troubles.failing.entry(id).or_insert(self.began);
        what.clone_into(&mut troubles.what);
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.health.0.lock().failing.remove(&id);
        }
    }
}

impl Trouble {
    /// The worse of two: the longer one, in the words of the second, which knows more of what was being done.
    pub fn worst(store: Option<Trouble>, volume: Option<Trouble>) -> Option<Trouble> {
        match (store, volume) {
            (Some(store), Some(volume)) => Some(Trouble { since: store.since.min(volume.since), what: volume.what }),
            (store, volume) => volume.or(store),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_from_the_begin_of_the_oldest_operation_that_fails_to_the_end_of_the_last() {
        let health = Health::default();
        let begin = Instant::now();
        let (mut put, mut other) = (health.begin(), health.begin());
        assert_eq!(health.trouble(), None);
        tokio::time::advance(Duration::from_secs(60)).await;
        put.failed("PUT answers 403 QuotaExceeded");
        assert_eq!(health.trouble().unwrap(), Trouble { since: begin, what: "PUT answers 403 QuotaExceeded".into() });
        let mut later = health.begin();
        later.failed("PUT answers 503");
        put.failed("PUT answers 403 QuotaExceeded");
        other.failed("still");
        drop((put, other));
        assert_eq!(health.trouble().unwrap().since, begin + Duration::from_secs(60));
        // What never failed ends nothing.
        drop(health.begin());
        assert!(health.trouble().is_some());
        drop(later);
        assert_eq!(health.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_troubles_the_longer_one_counts_and_the_volume_has_the_word() {
        let trouble = |what: &str| Some(Trouble { since: Instant::now(), what: what.to_owned() });
        let volume = trouble("writing a segment");
        tokio::time::advance(Duration::from_secs(1)).await;
        let store = trouble("PUT");
        assert_eq!(Trouble::worst(store.clone(), volume.clone()), volume);
        assert_eq!(Trouble::worst(store.clone(), None), store);
        assert_eq!(Trouble::worst(None, volume.clone()), volume);
        assert_eq!(Trouble::worst(None, None), None);
    }
}
