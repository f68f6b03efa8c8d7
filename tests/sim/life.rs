//! One life of one server: what its volumes share, the open volumes, and their clients.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::outside::Random;
use ashlar::store::faults::{FaultOptions, Faults, FaultyStore};
use ashlar::store::hedge::HedgeOptions;
use ashlar::store::limit::LimitOptions;
use ashlar::store::look::LookStore;
use ashlar::store::open::{StoreOptions, stack};
use ashlar::store::retry::RetryOptions;
use ashlar::store::{Key, ListPage, Store};
use ashlar::units::ChangeNo;
use ashlar::volume::{Budget, FencedBy, Options, Volume};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::task::JoinSet;

use crate::client::{Client, Weights};
use crate::places::Places;
use crate::record::{Floors, Record};
use crate::snapshots::Snapshots;

/// What the volumes of a server share.
#[derive(Clone)]
pub struct Server {
    pub number: usize,
    pub store: Arc<dyn Store>,
    pub faults: Faults,
    pub cache: Arc<BlockCache>,
    pub budget: Budget,
}

/// How the way to the store is.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub faults: FaultOptions,
    /// How much longer a DELETE takes.
    pub delete_delay: Duration,
    pub limit: LimitOptions,
    /// What keeps the servers apart.
    pub fenced_by: FencedBy,
}

impl Server {
    /// A server over the tower that is shipped. It is impatient, so that what gives up after a while and what never does
    /// are both tried.
    pub fn new(
        number: usize,
        store: Arc<dyn Store>,
        way: Way,
        cache: BlockCache,
        options: &Options,
        random: &Random,
    ) -> Server {
        let faulty = FaultyStore::new(store, way.faults, Random::seeded(random.below(u64::MAX)));
        let faults = faulty.faults();
        let backend = Arc::new(SlowDeletes { inner: faulty, delay: way.delete_delay });
        let retry = RetryOptions {
            pause_min: Duration::from_millis(5),
            pause_max: Duration::from_millis(200),
            read_limit: Duration::from_secs(5),
            write_limit: Duration::from_secs(3),
        };
        let hedge = HedgeOptions { share_percent: 50, p95_percent: 100, delay_min: Duration::from_millis(1) };
        let options_of_store = StoreOptions { retry, hedge, limit: way.limit, ..StoreOptions::default() };
        let tower = stack(backend, &options_of_store, &Random::seeded(random.below(u64::MAX)));
        let store: Arc<dyn Store> = match way.fenced_by {
            FencedBy::CreateOnly => tower.store,
            FencedBy::Verified => Arc::new(LookStore(tower.store)),
        };
        Server { number, store, faults, cache: Arc::new(cache), budget: Budget::new(options) }
    }
}

/// An open volume.
pub struct Open {
    pub volume: Arc<Volume>,
    pub places: Arc<Places>,
    pub disk: CrashDisk,
    pub record: Record,
    pub floors: Floors,
    pub snapshots: Snapshots,
}

/// See the module.
pub struct Life {
    pub server: Server,
    pub open: Vec<Open>,
    pub clients: JoinSet<()>,
    may_be_displaced: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Life {
    /// Of a server whose volumes are yet to be opened; `done` counts what clients get done.
    pub fn new(server: Server, done: Arc<AtomicU64>) -> Life {
        Life { server, open: Vec::new(), clients: JoinSet::new(), may_be_displaced: Arc::default(), done }
    }

    fn client(&self, of: &Open) -> Client {
        Client {
            volume: of.volume.clone(),
            record: of.record.clone(),
            floors: of.floors.clone(),
            places: of.places.clone(),
            faults: self.server.faults.clone(),
            may_be_displaced: self.may_be_displaced.clone(),
            done: self.done.clone(),
        }
    }

    /// Sets clients of every volume to work: each one thing after the other, all at once.
    pub fn start_clients(&mut self, clients: u64, requests: u64, weights: Weights, random: &Random) {
        for of in 0..self.open.len() {
            for number in 0..clients {
                let client = self.client(&self.open[of]);
                let random = Random::seeded(random.below(u64::MAX) ^ number);
                self.clients.spawn(client.run(requests, weights, random));
            }
        }
    }

    /// Sets somebody to work on each volume who takes snapshots and deletes them.
    pub fn start_keepers(&mut self, requests: u64, random: &Random) {
        for of in &self.open {
            let (volume, floors) = (of.volume.clone(), of.floors.clone());
            let random = Random::seeded(random.below(u64::MAX));
            self.clients.spawn(of.snapshots.clone().keep(volume, floors, requests, random));
        }
    }

    /// Writes into every cluster of every wide volume, unless the power goes meanwhile.
    pub async fn fill(&self, random: &Random) {
        let filling = async {
            for open in self.open.iter().filter(|open| open.places.are_wide()) {
                self.client(open).fill(random).await;
            }
        };
        tokio::select! {
            biased;
            () = self.server.faults.isolated() => {}
            () = filling => {}
        }
    }

    /// From now on another server may take the volumes.
    pub fn may_be_displaced(&self) {
        self.may_be_displaced.store(true, Ordering::Relaxed);
    }

    /// All clients have come to their end.
    pub async fn clients_end(&mut self) {
        while let Some(ended) = self.clients.join_next().await {
            if let Err(failed) = ended
                && failed.is_panic()
            {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
    }

    /// Every volume is as its clients left it, who are gone.
    pub async fn is_as_recorded(&self, when: &str) {
        for open in &self.open {
            open.is_as_recorded(when).await;
        }
    }

    /// Nothing reaches the store or the disk any more; the clients and the volumes are gone. Of each volume its disk, its
    /// floors, and what is committed.
    pub async fn end(mut self) -> Vec<(CrashDisk, Floors, ChangeNo)> {
        self.server.faults.isolate();
        let committed: Vec<_> = self.open.iter().map(|open| ChangeNo(open.volume.status().committed)).collect();
        self.clients.abort_all();
        self.clients_end().await;
        let ended = self.open.into_iter().zip(committed);
        ended.map(|(open, committed)| (open.disk, open.floors, committed)).collect()
    }
}

impl Open {
    /// The volume is as its clients left it.
    pub async fn is_as_recorded(&self, when: &str) {
        let expected = self.record.image();
        let image = self.image().await;
        let wrong = image.iter().zip(&expected).position(|(byte, expected)| byte != expected);
        assert_eq!(wrong, None, "{when}: a watched byte is not what was sent last ({} changes)", self.record.len());
    }

    /// The watched bytes as the volume has them.
    async fn image(&self) -> Vec<u8> {
        image_of(&*self.volume, &self.places).await
    }
}

/// The watched bytes as a device has them.
pub async fn image_of(device: &dyn Device, places: &Places) -> Vec<u8> {
    let reads = places.areas().iter().map(|area| read_until_it_works(device, area.clone()));
    stream::iter(reads).buffered(8).concat().await
}

/// The store may fail a read for longer than a request is retried: a client gets an error and asks again.
async fn read_until_it_works(volume: &dyn Device, range: Range<u64>) -> Vec<u8> {
    for _ in 0..10_000 {
        match volume.read(range.start, (range.end - range.start) as u32).await {
            Ok(pieces) => return pieces.concat(),
            Err(error) => assert!(error.to_string().contains("by a fault"), "{error}; {:?}", volume.info()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a read never works");
}

/// A store that takes its time to delete.
#[derive(Debug)]
struct SlowDeletes {
    inner: FaultyStore,
    delay: Duration,
}

#[async_trait]
impl Store for SlowDeletes {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.inner.delete(keys).await
    }
}
