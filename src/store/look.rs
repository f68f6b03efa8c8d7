//! A store whose create-only PUTs are nothing to rely on: who uses it has to look afterwards (`opening/verified.rs`).

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Front, Key, ListPage, Result, Store};

/// The store inside, and a word of warning.
#[derive(Debug)]
pub struct LookStore(pub Arc<dyn Store>);

#[async_trait]
impl Store for LookStore {
    fn url(&self) -> String {
        self.0.url()
    }

    fn keeps_create_only(&self) -> bool {
        false
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.0.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.0.get_range(key, range).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.0.get_front(key, len).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.0.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.0.list_top().await
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(LookStore(self.0.background()?)))
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.0.delete(keys).await
    }

    fn retains(&self) -> bool {
        self.0.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        self.0.retain(key, until_unix_millis).await
    }
}
