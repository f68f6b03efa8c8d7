//! A store whose PUTs do not end while it hangs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ashlar::store::{Key, ListPage, Store};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Hanging {
    objects: Arc<dyn Store>,
    /// What the keys contain whose PUTs hang.
    what: &'static str,
    hangs: AtomicBool,
    goes_on: Notify,
}

impl Hanging {
    /// Hangs where told to with PUTs of keys that contain `what`.
    pub fn new(objects: Arc<dyn Store>, what: &'static str) -> Arc<Hanging> {
        Arc::new(Hanging { objects, what, hangs: AtomicBool::new(false), goes_on: Notify::new() })
    }

    /// From now on it hangs.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// All PUTs go on.
    pub fn go_on(&self) {
        self.hangs.store(false, Ordering::SeqCst);
        self.goes_on.notify_waiters();
    }
}

#[async_trait]
impl Store for Hanging {
    fn url(&self) -> String {
        self.objects.url()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        loop {
            let goes_on = self.goes_on.notified();
            if !self.hangs.load(Ordering::SeqCst) || !key.to_string().contains(self.what) {
                return self.objects.put(key, body).await;
            }
            goes_on.await;
        }
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.objects.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.objects.list(prefix, after).await
    }
    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        self.objects.delete(keys).await
    }
}
