//! What is between two hosts, and between each of them and the store: what of it gets through is said in one place, the [`Sky`].

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::disk::crash::CrashDisk;
use ashlar::disk::{Disk, DiskFile};
use ashlar::outside::Random;
use ashlar::peer::keeper::Keeper;
use ashlar::peer::standby::Pipe;
use ashlar::store::{Key, ListPage, Store};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

/// Bytes of a direction that are neither here nor there.
const WAY_BYTES: usize = 16 << 10;

/// What gets through just now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sky {
    /// Nothing that a host says arrives at the other one.
    pub cut: [bool; 2],
    /// A host stands still.
    pub still: [bool; 2],
    /// A host does not reach the store.
    pub no_store: [bool; 2],
    /// Over older connections nothing arrives any more, and nobody is told.
    pub silent_before: u64,
    /// Older connections are broken.
    pub broken_before: u64,
}

impl Sky {
    fn passes(&self, from: usize, connection: u64) -> bool {
        !self.cut[from] && self.still == [false; 2] && connection >= self.silent_before
    }
}

/// A process that keeps copies, and what it serves.
#[derive(Clone, Default)]
pub struct Host {
    pub keeper: Arc<Mutex<Option<Keeper>>>,
    pub serving: Arc<Mutex<JoinSet<()>>>,
    pub clock: Arc<AtomicU64>,
}

/// The disks of volumes, of both hosts.
pub type Disks = Arc<Mutex<HashMap<Uuid, [CrashDisk; 2]>>>;

/// The way from one host to the other.
#[derive(Clone)]
pub struct Net {
    pub sky: watch::Receiver<Sky>,
    /// The other one.
    pub keeper: Host,
    pub connections: Arc<AtomicU64>,
    pub from: usize,
    pub random: Random,
    pub delay: Duration,
}

impl Net {
    /// Connects.
    pub async fn dial(self) -> io::Result<Box<dyn Pipe>> {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let [there, back] = [self.from, 1 - self.from].map(|from| self.way(from, connection));
        there.is_open().await;
        back.is_open().await;
        let Some(keeper) = self.keeper.keeper.lock().clone() else { return Err(io::Error::other("nobody listens")) };
        let (near, near_far) = duplex(WAY_BYTES);
        let (far_near, far) = duplex(WAY_BYTES);
        let (a, b) = tokio::io::split(near_far);
        let (c, d) = tokio::io::split(far_near);
        tokio::spawn(there.carry(a, d));
        tokio::spawn(back.carry(c, b));
        self.keeper.serving.lock().spawn(async move { drop(keeper.serve(far, "the other host").await) });
        Ok(Box::new(near))
    }

    fn way(&self, from: usize, connection: u64) -> Way {
        let random = Random::seeded(self.random.below(u64::MAX));
        Way { sky: self.sky.clone(), from, connection, random, delay: self.delay }
    }
}

/// One direction of a connection.
struct Way {
    sky: watch::Receiver<Sky>,
    from: usize,
    connection: u64,
    random: Random,
    delay: Duration,
}

impl Way {
    async fn until(&self, is_so: impl FnMut(&Sky) -> bool) {
        if self.sky.clone().wait_for(is_so).await.is_err() {
            // The world is over.
            std::future::pending::<()>().await;
        }
    }

    async fn is_open(&self) {
        self.until(|sky| sky.passes(self.from, self.connection)).await;
    }

    /// Carries bytes until an end is gone, or the connection is broken.
    async fn carry(self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let carried = async {
            let mut bytes = vec![0; WAY_BYTES];
            loop {
                let read = from.read(&mut bytes).await.unwrap_or(0);
                self.is_open().await;
                sleep(Duration::from_micros(self.random.below(self.delay.as_micros() as u64 + 1))).await;
                self.is_open().await;
                if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
                    drop(to.shutdown().await);
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.until(|sky| self.connection < sky.broken_before) => {}
            () = carried => {}
        }
    }
}

/// The disk of a volume on a host as it is now.
#[derive(Clone)]
pub struct Now {
    pub disks: Disks,
    pub volume: Uuid,
    pub host: usize,
}

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Now({} on host {})", self.volume, self.host)
    }
}

impl Now {
    fn disk(&self) -> CrashDisk {
        self.disks.lock()[&self.volume][self.host].clone()
    }
}

#[async_trait]
impl Disk for Now {
    fn path(&self) -> String {
        self.disk().path()
    }

    fn host_life(&self) -> Option<String> {
        self.disk().host_life()
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk().list(dir).await
    }

    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk().create(name).await
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk().open(name).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.disk().remove(name).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().rename(from, to).await
    }
}

/// A store as a host reaches it, which may stand still, or be cut off.
#[derive(Debug)]
pub struct Reached {
    pub inner: Arc<dyn Store>,
    pub sky: watch::Receiver<Sky>,
    pub host: usize,
}

impl Reached {
    async fn by<T>(&self, request: impl Future<Output = ashlar::store::Result<T>>) -> ashlar::store::Result<T> {
        self.until(|sky| !sky.still[self.host] && !sky.no_store[self.host]).await;
        let answer = request.await;
        self.until(|sky| !sky.still[self.host]).await;
        answer
    }

    async fn until(&self, is_so: impl FnMut(&Sky) -> bool) {
        if self.sky.clone().wait_for(is_so).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Store for Reached {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        self.by(self.inner.put(key, body)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.by(self.inner.get_range(key, range)).await
    }

    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.by(self.inner.get(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.by(self.inner.list(prefix, start_after)).await
    }

    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.by(self.inner.list_top()).await
    }

    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        self.by(self.inner.delete(keys)).await
    }
}
