//! Asks the store what is planned, keeps the time, and deletes what it made, also if it was broken off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::plan::{Operation, Plan, Request, SINGLE_DELETES};
use crate::cli::probes::Probed;
use crate::outside::Random;
use crate::store::{Key, Result, Store, StoreError, list_all};

/// The top of all keys: a name that no volume can have.
const TOP: &str = ".ashlar-bench";

/// How the store answered one kind of request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// What was asked.
    pub operation: Operation,
    /// Bytes of each request.
    pub size: u64,
    /// Requests under way at once.
    pub parallel: u32,
    /// Requests that were answered.
    pub requests: u64,
    /// How long all took together.
    pub seconds: f64,
    /// Half of the requests were answered within this time, repetitions of failed ones included.
    pub p50_micros: u64,
    /// 99 of 100.
    pub p99_micros: u64,
}

impl Cell {
    /// Requests answered in a second.
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Bytes moved in a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.requests_per_second() * self.size as f64
    }
}

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// What the probe found before: date, version, outcome.
    pub probe: Option<Probed>,
    /// In the order in which it was measured.
    pub cells: Vec<Cell>,
}

/// Measures; `say` hears of each combination as it begins. When `interrupted` ends, the measuring ends with an error.
/// Either way all objects are deleted.
pub async fn measure(
    store: Arc<dyn Store>,
    plan: &Plan,
    random: &Random,
    say: &(dyn Fn(&Request) + Sync),
    interrupted: impl Future<Output = ()>,
) -> Result<Measured> {
    let bench = Bench {
        run: format!("{TOP}/{}", random.uuid()),
        data: incompressible(plan.size_max(), random),
        put: Mutex::default(),
        serial: AtomicU64::new(0),
        store,
    };
    let mut result = tokio::select! {
        biased;
        () = interrupted => Err(StoreError::invalid("broken off; what was written has been deleted")),
        cells = bench.all(plan, say) => cells.map(|cells| Measured { probe: None, cells }),
    };
    // Also what a request left that was given up half way.
    if let Err(error) = bench.clean_up().await {
        let left = format!("the objects below {}/ in {} could not be deleted: {error}", bench.run, bench.store.url());
        result = Err(StoreError::new(error.kind, left));
    }
    result
}

struct Bench {
    store: Arc<dyn Store>,
    /// What the keys of this run begin with.
    run: String,
    data: Bytes,
    /// The objects, and their sizes.
    put: Mutex<Vec<(Key, u64)>>,
    serial: AtomicU64,
}

impl Bench {
    async fn all(&self, plan: &Plan, say: &(dyn Fn(&Request) + Sync)) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for request in plan.cells() {
            say(&request);
            cells.push(self.cell(&request).await?);
        }
        cells.push(self.deletes().await?);
        Ok(cells)
    }

    async fn cell(&self, request: &Request) -> Result<Cell> {
        let objects: Vec<Key> = match request.operation {
            Operation::Get => self.objects_of(request.size),
            _ => Vec::new(),
        };
        let (next, begin) = (AtomicU64::new(0), Instant::now());
        let one = |_| async {
            let mut times = Vec::new();
            loop {
                let no = next.fetch_add(1, Ordering::Relaxed);
                if no >= request.count || (no > 0 && begin.elapsed() >= request.time) {
                    return Ok::<_, StoreError>(times);
                }
                let begin = Instant::now();
                match request.operation {
                    Operation::Get => self.get(&objects, no, request.size).await?,
                    _ => self.put(request.size).await?,
                }
                times.push(begin.elapsed());
            }
        };
        let times = try_join_all((0..request.parallel).map(one)).await?.concat();
        Ok(cell(request.operation, request.size, request.parallel, begin.elapsed(), times))
    }

    async fn put(&self, size: u64) -> Result<()> {
        let no = self.serial.fetch_add(1, Ordering::Relaxed);
        let key = Key::new(format!("{}/{no:08}", self.run))?;
        self.store.put(&key, vec![self.data.slice(..size as usize)]).await?;
        self.put.lock().push((key, size));
        Ok(())
    }

    async fn get(&self, objects: &[Key], no: u64, size: u64) -> Result<()> {
        // Spread over the objects, so that nobody's cache has it by chance alone.
        let Some(key) = objects.get(no as usize % objects.len().max(1)) else { return Ok(()) };
        let got = self.store.get_range(key, 0..size).await?;
        match got.len() as u64 == size && got == self.data[..size as usize] {
            true => Ok(()),
            false => Err(StoreError::invalid(format!("the store returned other data for {key} than was put there"))),
        }
    }

    fn objects_of(&self, size: u64) -> Vec<Key> {
        self.put.lock().iter().filter(|(_, of)| *of == size).map(|(key, _)| key.clone()).collect()
    }

    async fn deletes(&self) -> Result<Cell> {
        let keys: Vec<Key> = self.put.lock().iter().take(SINGLE_DELETES).map(|(key, _)| key.clone()).collect();
        let (begin, mut times) = (Instant::now(), Vec::new());
        for key in &keys {
            let begin = Instant::now();
            self.store.delete(std::slice::from_ref(key)).await?;
            times.push(begin.elapsed());
        }
        let size = self.put.lock().first().map_or(0, |(_, size)| *size);
        Ok(cell(Operation::Delete, size, 1, begin.elapsed(), times))
    }

    async fn clean_up(&self) -> Result<()> {
        let listed = list_all(&*self.store, &format!("{}/", self.run)).await?;
        let keys: Vec<Key> = listed.into_iter().map(|entry| entry.key).collect();
        match keys.is_empty() {
            true => Ok(()),
            false => self.store.delete(&keys).await,
        }
    }
}

fn cell(operation: Operation, size: u64, parallel: u32, took: Duration, mut times: Vec<Duration>) -> Cell {
    times.sort_unstable();
    let at = |thousandths: usize| {
        let index = (times.len() * thousandths / 1000).min(times.len().saturating_sub(1));
        times.get(index).map_or(0, |time| time.as_micros() as u64)
    };
    Cell {
        operation,
        size,
        parallel,
        requests: times.len() as u64,
        // A store in memory may answer within the clock's resolution.
        seconds: took.as_secs_f64().max(1e-9),
        p50_micros: at(500),
        p99_micros: at(990),
    }
}

fn incompressible(bytes: u64, random: &Random) -> Bytes {
    let mut seed = random.bytes::<32>();
    let mut data = BytesMut::with_capacity(bytes as usize);
    while (data.len() as u64) < bytes {
        seed = *blake3::hash(&seed).as_bytes();
        let mut block = [0; 64 << 10];
        blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut block);
        let left = bytes as usize - data.len();
        data.extend_from_slice(&block[..left.min(block.len())]);
    }
    data.freeze()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::store::faults::{FaultOptions, FaultyStore};
    use crate::store::memory::MemoryStore;

    fn plan() -> Plan {
        Plan::new(&[4096, 1 << 20], &[1, 8], Duration::from_secs(2), 16, 8 << 20).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn latency_and_rate_are_those_of_the_store_and_nothing_is_left() {
        let memory = MemoryStore::new();
        let delay = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
        let store = Arc::new(FaultyStore::new(Arc::new(memory.clone()), delay, Random::seeded(1)));
        let measured = measure(store, &plan(), &Random::seeded(2), &|_| {}, pending()).await.unwrap();
        assert_eq!(memory.object_count(), 0);
        let find = |operation, size, parallel| {
            let mut all = measured.cells.iter();
            all.find(|cell| (cell.operation, cell.size, cell.parallel) == (operation, size, parallel)).unwrap()
        };
        for operation in [Operation::Put, Operation::Get] {
            let (alone, eight) = (find(operation, 4096, 1), find(operation, 4096, 8));
            assert_eq!((alone.requests, alone.p50_micros / 1000), (16, 20));
            assert!((48.0..=50.0).contains(&alone.requests_per_second()), "{alone:?}");
            assert!((390.0..=400.0).contains(&eight.requests_per_second()), "{eight:?}");
            assert_eq!(find(operation, 1 << 20, 8).requests, 8);
        }
        assert_eq!(find(Operation::Delete, 4096, 1).requests, SINGLE_DELETES as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn who_breaks_it_off_leaves_nothing_behind() {
        let memory = MemoryStore::new();
        let delay = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
        let store = Arc::new(FaultyStore::new(Arc::new(memory.clone()), delay, Random::seeded(1)));
        let soon = tokio::time::sleep(Duration::from_millis(110));
        let error = measure(store.clone(), &plan(), &Random::seeded(2), &|_| {}, soon).await.unwrap_err();
        assert_eq!(error.message, "broken off; what was written has been deleted");
        assert_eq!(memory.object_count(), 0);
        measure(store, &plan(), &Random::seeded(2), &|_| {}, ready(())).await.unwrap_err();
    }
}
