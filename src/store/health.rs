//! What is wrong with a store just now: a small record that whoever tries again feeds, and whoever looks on reads.
//!
//! An operation that fails and is tried again is a trouble from its first failure until it succeeds or is given up. There may
//! be many at once, of which a GET that works ends none: a store over its quota takes no PUT and answers every GET. What is
//! told is one sentence: since when the oldest has lasted, and what the newest failure said.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::StoreError;

/// The operations that fail just now. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Troubles>>);

/// What is wrong.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When the oldest operation that still fails began.
    pub since: Instant,
    /// The newest failure.
    pub what: StoreError,
}

/// The record: plain data.
#[derive(Debug, Default)]
struct Troubles {
    next: u64,
    /// The operations that fail, with their begin.
    failing: BTreeMap<u64, Instant>,
    /// The newest failure.
    what: Option<StoreError>,
    /// Attempts that failed and were followed by another.
    failed: u64,
}

impl Health {
    /// What is wrong, if something is.
    pub fn trouble(&self) -> Option<Trouble> {
        let troubles = self.0.lock();
        let since = troubles.failing.values().min()?;
        Some(Trouble { since: *since, what: troubles.what.clone()? })
    }

    /// Attempts that failed so far.
    pub fn failed_attempts(&self) -> u64 {
        self.0.lock().failed
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
    pub fn failed(&mut self, what: StoreError) {
        let mut troubles = self.health.0.lock();
        let id = *self.id.get_or_insert_with(|| {
            troubles.next += 1;
            troubles.next
        });
        troubles.failing.entry(id).or_insert(self.began);
        troubles.what = Some(what);
        troubles.failed += 1;
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
    use crate::store::ErrorKind;

    fn quota() -> StoreError {
        StoreError::new(ErrorKind::Denied, "PUT answers 403 QuotaExceeded")
    }

    fn told(trouble: Option<Trouble>) -> Option<(Instant, String)> {
        trouble.map(|trouble| (trouble.since, trouble.what.message))
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_from_the_begin_of_the_oldest_operation_that_fails_to_the_end_of_the_last() {
        let health = Health::default();
        let begin = Instant::now();
        let (mut put, mut other) = (health.begin(), health.begin());
        assert!(health.trouble().is_none());
        tokio::time::advance(Duration::from_secs(60)).await;
        put.failed(quota());
        assert_eq!(told(health.trouble()), Some((begin, quota().message)));
        assert_eq!(health.trouble().unwrap().what.kind, ErrorKind::Denied);
        let mut later = health.begin();
        later.failed(StoreError::new(ErrorKind::Retryable, "PUT answers 503"));
        assert_eq!(told(health.trouble()), Some((begin, "PUT answers 503".into())));
        put.failed(quota());
        other.failed(StoreError::new(ErrorKind::Retryable, "still"));
        drop((put, other));
        assert_eq!(health.trouble().unwrap().since, begin + Duration::from_secs(60));
        // What never failed ends nothing.
        drop(health.begin());
        assert!(health.trouble().is_some());
        drop(later);
        assert!(health.trouble().is_none());
        assert_eq!(health.failed_attempts(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_troubles_the_longer_one_counts_and_the_volume_has_the_word() {
        let trouble = |what: &str| {
            let what = StoreError::new(ErrorKind::Retryable, what);
            Some(Trouble { since: Instant::now(), what })
        };
        let volume = trouble("writing a segment");
        tokio::time::advance(Duration::from_secs(1)).await;
        let store = trouble("PUT");
        let worst =
            |store: &Option<Trouble>, volume: &Option<Trouble>| told(Trouble::worst(store.clone(), volume.clone()));
        assert_eq!(worst(&store, &volume), told(volume.clone()));
        assert_eq!(worst(&store, &None), told(store));
        assert_eq!(worst(&None, &volume), told(volume));
        assert_eq!(worst(&None, &None), None);
    }
}
