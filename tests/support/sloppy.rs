//! A store on which create-only PUTs are nothing to rely on: half of those of a taken key replace what is there and succeed. Some
//! PUTs end without an answer and land minutes later, whoever is still there to see it; of claims and fences also all that are tried
//! again on the same way, until whoever tries gives up. It keeps only that what was answered is seen by every later GET and LIST.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ashlar::outside::Random;
use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Key, ListPage, Result, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;

/// See the module.
#[derive(Clone, Debug)]
pub struct Sloppy {
    /// What it holds.
    pub objects: MemoryStore,
    random: Random,
    /// One PUT of so many lands late; 0 for none.
    late: u64,
    /// Claims and fences that get no answer on this way any more.
    silent: Arc<Mutex<BTreeSet<Key>>>,
}

/// The latest that a PUT lands.
pub const LATEST: Duration = Duration::from_secs(600);

impl Sloppy {
    /// Over these objects.
    pub fn new(objects: MemoryStore, random: Random, late: u64) -> Sloppy {
        Sloppy { objects, random, late, silent: Arc::default() }
    }

    async fn pause(&self) {
        sleep(Duration::from_micros(self.random.below(20_000))).await;
    }
}

#[async_trait]
impl Store for Sloppy {
    fn url(&self) -> String {
        "sloppy://".into()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let body = Bytes::from(body.concat());
        let is_silent = self.silent.lock().contains(key);
        if is_silent || self.late > 0 && self.random.below(self.late) == 0 {
            if key.as_str().contains("/fences/") {
                self.silent.lock().insert(key.clone());
            }
            let (objects, key_there) = (self.objects.clone(), key.clone());
            let after = Duration::from_millis(self.random.below(LATEST.as_millis() as u64));
            tokio::spawn(async move {
                sleep(after).await;
                objects.replace(&key_there, body);
            });
            self.pause().await;
            return Err(StoreError::new(ErrorKind::Retryable, format!("cannot put {key}: no answer")));
        }
        self.pause().await;
        let is_taken = self.objects.get(key).await.is_ok();
        if is_taken && self.random.below(2) == 0 {
            return Err(StoreError::already_exists(key));
        }
        self.objects.replace(key, body);
        self.pause().await;
        Ok(())
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.pause().await;
        let got = self.objects.get_range(key, range).await;
        self.pause().await;
        got
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.pause().await;
        let got = self.objects.get(key).await;
        self.pause().await;
        got
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.pause().await;
        let listed = self.objects.list(prefix, start_after).await;
        self.pause().await;
        listed
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.objects.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.pause().await;
        let deleted = self.objects.delete(keys).await;
        self.pause().await;
        deleted
    }
}
