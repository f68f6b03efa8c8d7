//! Objects in memory: the store of tests and of the simulation.
//!
//! Clones share the same objects. Every operation is one step under one lock and never waits, so that a seeded run
//! on a current-thread runtime is exact. [`MemoryStore::fork`] and [`MemoryStore::replace`] are what a simulation
//! and a test of damage need beyond the [`Store`] trait.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::{ErrorKind, Front, Key, ListPage, ObjectEntry, Result, Store, StoreError};

/// A listing returns at most this many objects at once, as S3 does.
pub const PAGE_OBJECTS: usize = 1000;

/// A store in memory; clones are handles of the same objects.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<Key, Bytes>>>,
    /// What is locked until when, deleted or not; nothing of a store without object lock.
    locked: Option<Arc<Mutex<BTreeMap<Key, Locked>>>>,
}

#[derive(Debug, Clone)]
struct Locked {
    until_unix_millis: u64,
    body: Bytes,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// An empty store with object lock.
    pub fn with_object_lock() -> MemoryStore {
        MemoryStore { locked: Some(Arc::default()), ..MemoryStore::default() }
    }

    /// An independent copy as of now: what a crash at this moment leaves to the next server.
    pub fn fork(&self) -> MemoryStore {
        MemoryStore { objects: Arc::new(Mutex::new(self.objects.lock().clone())), locked: None }
    }

    /// What somebody leaves who deletes all that he can at that time, with what only was hidden brought back.
    pub fn wreck(&self, unix_millis: u64) -> MemoryStore {
        let locked = self.locked.iter().flat_map(|locked| locked.lock().clone());
        let rest = locked.filter(|(_, locked)| locked.until_unix_millis > unix_millis);
        let objects = rest.map(|(key, Locked { body, .. })| (key, body)).collect();
        MemoryStore { objects: Arc::new(Mutex::new(objects)), locked: None }
    }

    /// Overwrites or creates an object: damage, which the [`Store`] trait cannot do.
    pub fn replace(&self, key: &Key, body: Bytes) {
        self.objects.lock().insert(key.clone(), body);
    }

    /// Removes one object at once; false if there was none.
    pub fn remove(&self, key: &Key) -> bool {
        self.objects.lock().remove(key).is_some()
    }

    /// All objects, in order of keys.
    pub fn objects(&self) -> Vec<(Key, Bytes)> {
        self.objects.lock().iter().map(|(key, body)| (key.clone(), body.clone())).collect()
    }

    /// How many objects there are.
    pub fn object_count(&self) -> usize {
        self.objects.lock().len()
    }

    /// The bytes of all objects together.
    pub fn total_bytes(&self) -> u64 {
        self.objects.lock().values().map(|body| body.len() as u64).sum()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> String {
        "memory://".into()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let body = joined(body);
        let mut objects = self.objects.lock();
        if objects.contains_key(key) {
            return Err(StoreError::already_exists(key));
        }
        objects.insert(key.clone(), body);
        Ok(())
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let whole = self.get(key).await?;
        let end = range.end.min(whole.len() as u64);
        let start = range.start.min(end);
        Ok(whole.slice(start as usize..end as usize))
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let whole = self.get(key).await?;
        let total = Some(whole.len() as u64);
        Ok(Front { bytes: whole.slice(..whole.len().min(len as usize)), total })
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.objects.lock().get(key).cloned().ok_or_else(|| StoreError::not_found(key))
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let objects = self.objects.lock();
        let from = match start_after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(Key(prefix.to_owned())), // not a checked key, only a place in the order
        };
        let found = objects
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .take(PAGE_OBJECTS)
            .map(|(key, body)| ObjectEntry { key: key.clone(), size: body.len() as u64 })
            .collect();
        Ok(ListPage::new(found, true))
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let objects = self.objects.lock();
        let mut tops: Vec<&str> = objects.keys().map(top_of).collect();
        tops.sort_unstable(); // keys are in order, their first segments nearly: `a.b/c` comes before `a/c`
        tops.dedup();
        Ok(tops.into_iter().map(str::to_owned).collect())
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let mut objects = self.objects.lock();
        for key in keys {
            objects.remove(key);
        }
        Ok(())
    }

    fn retains(&self) -> bool {
        self.locked.is_some()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        let Some(locked) = &self.locked else {
            return Err(StoreError::invalid(format!("{key} cannot be locked: a store without object lock")));
        };
        let body = self.get(key).await?;
        let mut locked = locked.lock();
        let before = locked.get(key).map_or(0, |locked| locked.until_unix_millis);
        if before > until_unix_millis {
            return Err(StoreError::new(ErrorKind::Denied, format!("{key} is locked for longer")));
        }
        locked.insert(key.clone(), Locked { until_unix_millis, body });
        Ok(())
    }
}

/// The first path segment of a key.
fn top_of(key: &Key) -> &str {
    key.as_str().split('/').next().unwrap_or_default()
}

/// The parts as one buffer; a single part is taken as it is.
fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in &parts {
        whole.extend_from_slice(part);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fork_is_independent_and_a_clone_is_not() {
        let key = Key::new("v/meta/0").unwrap();
        let store = MemoryStore::new();
        let (fork, clone) = (store.fork(), store.clone());
        store.put(&key, vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]).await.unwrap();
        assert_eq!(fork.object_count(), 0);
        assert_eq!(clone.get(&key).await.unwrap(), "ab");
        assert_eq!((clone.object_count(), clone.total_bytes()), (1, 2));
    }
}
