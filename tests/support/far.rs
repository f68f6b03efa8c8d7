//! A store that is far away: a memory store behind a line with a round trip and a bandwidth. Time is virtual.

use std::ops::Range;
use std::time::Duration;

use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Key, ListPage, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

const ROUND_TRIP: Duration = Duration::from_millis(20);
/// What does not wait for others.
const SMALL: u64 = 64 << 10;

/// A store at the end of a line. Large requests share each direction in the order in which they come; small ones slip through.
#[derive(Debug)]
pub struct Far {
    /// What it holds.
    pub objects: MemoryStore,
    /// Bytes a second, in each direction.
    bandwidth: u64,
    /// When the line is free: to the store, and back.
    free: Mutex<[Instant; 2]>,
    puts: Mutex<u64>,
    /// What it does not do.
    fault: Fault,
}

/// What a store does not do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It does everything.
    None,
    /// Every deletion is refused.
    NoDeletes,
    /// No answer to a GET ever comes.
    NoReads,
    /// A deletion takes a second.
    SlowDeletes,
}

impl Far {
    /// An empty store behind a line that carries `bandwidth` bytes a second.
    pub fn new(bandwidth: u64, fault: Fault) -> Far {
        let free = Mutex::new([Instant::now(); 2]);
        Far { objects: MemoryStore::default(), bandwidth, free, puts: Mutex::new(0), fault }
    }

    /// How many PUTs it has had.
    pub fn puts(&self) -> u64 {
        *self.puts.lock()
    }

    async fn transfer(&self, direction: usize, bytes: u64) {
        let done = if bytes < SMALL {
            Instant::now()
        } else {
            let free = &mut self.free.lock()[direction];
            *free = (*free).max(Instant::now()) + Duration::from_micros(bytes * 1_000_000 / self.bandwidth);
            *free
        };
        tokio::time::sleep_until(done + ROUND_TRIP).await;
    }
}

#[async_trait]
impl Store for Far {
    fn url(&self) -> String {
        self.objects.url()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        self.transfer(0, body.iter().map(|part| part.len() as u64).sum()).await;
        *self.puts.lock() += 1;
        self.objects.put(key, body).await
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.transfer(1, range.end - range.start).await;
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        let found = self.objects.get(key).await;
        if self.fault == Fault::NoReads && found.as_ref().is_ok_and(|bytes| bytes.len() as u64 > SMALL) {
            std::future::pending::<()>().await;
        }
        self.transfer(1, found.as_ref().map_or(0, |bytes| bytes.len() as u64)).await;
        found
    }
    async fn list(&self, prefix: &str, after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.transfer(1, 0).await;
        self.objects.list(prefix, after).await
    }
    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        self.transfer(0, 0).await;
        if self.fault == Fault::SlowDeletes {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if self.fault == Fault::NoDeletes {
            return Err(StoreError::new(ErrorKind::Denied, "deleting is forbidden"));
        }
        self.objects.delete(keys).await
    }
}
