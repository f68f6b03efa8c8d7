//! Several handles of one store; every operation goes to the next of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ashlar::store::{Key, ListPage, Result, Store};
use async_trait::async_trait;
use bytes::Bytes;

#[derive(Debug)]
pub struct Rotate {
    handles: Vec<Arc<dyn Store>>,
    next: AtomicUsize,
}

impl Rotate {
    pub fn new(handles: Vec<impl Store + 'static>) -> Rotate {
        Rotate::of(handles.into_iter().map(|handle| Arc::new(handle) as Arc<dyn Store>).collect())
    }

    pub fn of(handles: Vec<Arc<dyn Store>>) -> Rotate {
        Rotate { handles, next: AtomicUsize::new(0) }
    }

    fn next(&self) -> &dyn Store {
        self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()].as_ref()
    }
}

#[async_trait]
impl Store for Rotate {
    fn url(&self) -> String {
        self.handles[0].url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.next().put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.next().get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.next().get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.next().list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.next().list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.next().delete(keys).await
    }
}
