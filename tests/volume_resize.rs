//! A volume that becomes larger and smaller (`src/opening/resize.rs`): nothing that is cut off comes back, and nothing that was
//! acknowledged is cut off, wherever a server dies or is displaced meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::device::{Allocation, Device, DeviceError};
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::description::{self, Description};
use ashlar::outside::{Clock, Random};
use ashlar::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, ListPage, Result, Store, list_all};
use ashlar::volume::{
    self, CreateOptions, FencedBy, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName, resize,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

const MIB: u64 = 1 << 20;
/// A page of the map has 64 MiB: the ends lie in three of them, none at an edge.
const LARGE: u64 = 200 * MIB;
const SMALL: u64 = 100 * MIB;
const BLOCK: usize = 4096;

/// Where data is, by the byte at which it begins: before and behind the smaller end, at both of them, and in between a whole page.
const PLACES: [u64; 6] = [0, SMALL - BLOCK as u64, SMALL, 130 * MIB, 190 * MIB, LARGE - BLOCK as u64];

struct World {
    store: MemoryStore,
    random: Random,
}

impl World {
    async fn new(fenced_by: FencedBy) -> World {
        let (store, random) = (MemoryStore::new(), Random::seeded(11));
        let options = CreateOptions { size: LARGE, fenced_by, ..CreateOptions::default() };
        volume::create(&store, &random, &Clock::System, &name(), options).await.unwrap();
        World { store, random }
    }

    async fn open(
        &self,
        server: u128,
        disk: &CrashDisk,
        flags: OpenFlags,
    ) -> std::result::Result<Arc<Volume>, VolumeError> {
        self.open_over(Arc::new(self.store.clone()), server, disk, flags).await
    }

    async fn open_over(
        &self,
        store: Arc<dyn Store>,
        server: u128,
        disk: &CrashDisk,
        flags: OpenFlags,
    ) -> std::result::Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: format!("number-{server}") },
            ..outside::plain(store, Arc::new(disk.clone()), self.random.clone())
        };
        let options = Options { writeback_delay: Duration::from_secs(3600), ..Options::default() };
        Volume::open(outside, &name(), options, journal::Options::default(), flags).await
    }

    /// By a server that had nothing to do with it yet, whoever has it.
    async fn take(&self, server: u128) -> Arc<Volume> {
        let disk = CrashDisk::new(server as u64);
        match self.open(server, &disk, OpenFlags { takeover: true, ..OpenFlags::default() }).await {
            Err(VolumeError::NeedlessFlag { .. }) => self.open(server, &disk, OpenFlags::default()).await.unwrap(),
            taken => taken.unwrap(),
        }
    }

    async fn described(&self) -> Description {
        description::load(&self.store, &name()).await.unwrap()
    }

    async fn grow(&self, size: u64) -> std::result::Result<(), VolumeError> {
        let found = self.described().await;
        let sealer = found.unlock(&Secrets::default()).await?;
        resize::grow(&self.store, &self.random, &found, &sealer, size).await
    }

    async fn check(&self) {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
    }

    /// What is left of a volume that was to become smaller: sound; what lies before the smaller end is there; and if it became smaller,
    /// nothing comes back when it grows again.
    async fn judge(&self, volume: Arc<Volume>, what: &str) -> u64 {
        let size = volume.status().size;
        assert!([SMALL, LARGE].contains(&size), "{what}: {size}");
        for place in PLACES.into_iter().filter(|place| *place < SMALL) {
            assert_eq!(read(&volume, place).await, vec![mark(place); BLOCK], "{what}: at {place}");
        }
        if size == SMALL {
            self.grow(LARGE).await.unwrap();
            volume.reload().await.unwrap();
            assert_nothing_beyond(&volume, what).await;
        }
        volume.close().await.unwrap();
        self.check().await;
        size
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn mark(place: u64) -> u8 {
    1 + (place / MIB) as u8
}

async fn write_all(volume: &Volume) {
    // A page of the map that is zero as a whole, with the smaller end in it, and parts of others.
    volume.write_zeroes(60 * MIB, 100 * MIB, true, false).await.unwrap();
    for place in PLACES {
        volume.write(place, Bytes::from(vec![mark(place); BLOCK]), false).await.unwrap();
    }
}

async fn read(volume: &Volume, place: u64) -> Vec<u8> {
    volume.read(place, BLOCK as u32).await.unwrap().concat()
}

async fn assert_nothing_beyond(volume: &Volume, what: &str) {
    for place in PLACES.into_iter().filter(|place| *place >= SMALL) {
        assert_eq!(read(volume, place).await, vec![0; BLOCK], "{what}: old data at {place}");
    }
    let runs = volume.extents(SMALL, LARGE - SMALL, 100).await.unwrap();
    assert!(runs.iter().all(|run| run.allocation != Allocation::Data), "{what}: {runs:?}");
}

#[tokio::test]
async fn a_volume_that_grows_costs_nothing_and_reads_zeros_there() {
    let world = World::new(FencedBy::CreateOnly).await;
    let disk = CrashDisk::new(1);
    let volume = world.open(1, &disk, OpenFlags::default()).await.unwrap();
    write_all(&volume).await;
    let objects = list_all(&world.store, "v/").await.unwrap().len();
    for size in [LARGE + BLOCK as u64, 1 << 40, 8 << 60] {
        let size = size.min((1 << 63) - 65536);
        world.grow(size).await.unwrap();
        assert_eq!(
            list_all(&world.store, "v/").await.unwrap().len(),
            objects,
            "one description in the place of another"
        );
        let before = volume.status();
        volume.reload().await.unwrap();
        assert_eq!((volume.status().size, volume.info().size), (size, size));
        assert_eq!(volume.status().since_open.puts, before.since_open.puts);
        let end = size - BLOCK as u64;
        assert_eq!(read(&volume, end).await, vec![0; BLOCK]);
        volume.write(end, Bytes::from(vec![9; BLOCK]), false).await.unwrap();
        assert_eq!(read(&volume, end).await, vec![9; BLOCK]);
    }
    world.grow(1 << 40).await.unwrap_err();
    assert_eq!(volume.status().dirty_bytes, before_bytes(&volume), "nothing was written for it");
    drop(volume);
    let volume = world.open(1, &disk.kill(), OpenFlags::default()).await.unwrap();
    for place in PLACES {
        assert_eq!(read(&volume, place).await, vec![mark(place); BLOCK]);
    }
    assert_eq!(read(&volume, (1 << 40) - BLOCK as u64).await, vec![9; BLOCK]);
    volume.close().await.unwrap();
    world.check().await;
}

/// What was accepted: a zeroing, and nine blocks; none is in the store.
fn before_bytes(volume: &Volume) -> u64 {
    assert_eq!(volume.status().accepted, PLACES.len() as u64 + 4);
    volume.status().dirty_bytes
}

#[tokio::test]
async fn a_volume_is_not_cut_where_data_is_unless_that_may_be_lost() {
    let world = World::new(FencedBy::CreateOnly).await;
    let volume = world.open(1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    write_all(&volume).await;
    let refused = volume.shrink(SMALL, false).await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("data beyond {SMALL} bytes, at byte {SMALL} ")) && refused.contains("--discard-data"),
        "{refused}"
    );
    assert_eq!(volume.status().size, LARGE);
    volume.write(SMALL, Bytes::from(vec![7; BLOCK]), false).await.unwrap();
    for size in [0, SMALL + 1, LARGE, LARGE + 1, u64::MAX] {
        assert!(matches!(volume.shrink(size, true).await, Err(VolumeError::Invalid(_))), "{size}");
    }
    // Zeros are no data, be they written or not.
    volume.trim(SMALL, LARGE - SMALL, false).await.unwrap();
    volume.write(SMALL + 8192, Bytes::from(vec![0; BLOCK]), false).await.unwrap();
    volume.write_zeroes(150 * MIB, 50 * MIB, true, false).await.unwrap();
    volume.shrink(SMALL, false).await.unwrap();
    assert_eq!((volume.status().size, volume.info().size), (SMALL, SMALL));
    assert_eq!(world.described().await.meta.size, SMALL);
    assert_eq!(world.judge(volume, "trimmed").await, SMALL);
}

#[tokio::test]
async fn what_is_cut_off_is_gone_and_its_space_comes_back() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let world = World::new(fenced_by).await;
        let volume = world.open(1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
        write_all(&volume).await;
        let data: Vec<u8> = (0..8 * MIB).map(|i| ((i * i) >> 7) as u8).collect();
        volume.write(140 * MIB, data.into(), false).await.unwrap();
        volume.flush().await.unwrap();
        assert!(volume.status().mapped_bytes > 8 * MIB);
        volume.shrink(SMALL, true).await.unwrap();
        assert_eq!(volume.status().mapped_bytes, 2 * BLOCK as u64);
        // A client that does not know of it.
        let late = volume.write(SMALL - 4096, Bytes::from(vec![5; 2 * BLOCK]), false).await;
        assert!(matches!(late, Err(DeviceError::BeyondEnd)), "{late:?}");
        assert!(volume.write(SMALL + 1, Bytes::from(vec![5; 10]), false).await.is_err());
        assert!(
            volume.trim(SMALL, MIB, false).await.is_err()
                && volume.write_zeroes(SMALL, MIB, true, false).await.is_err()
        );
        assert_eq!(volume.read(SMALL - 4096, 2 * BLOCK as u32).await.unwrap().concat()[BLOCK..], [0; BLOCK]);
        assert_eq!(list_all(&world.store, "v/meta/").await.unwrap().len(), 1, "claims and older descriptions are gone");
        world.grow(LARGE).await.unwrap();
        volume.reload().await.unwrap();
        assert_nothing_beyond(&volume, "grown again").await;
        volume.write(SMALL, Bytes::from(vec![6; BLOCK]), false).await.unwrap();
        volume.close().await.unwrap();
        let volume = world.take(2).await;
        assert_eq!(read(&volume, SMALL).await, vec![6; BLOCK]);
        assert_eq!(volume.status().mapped_bytes, 3 * BLOCK as u64);
        volume.close().await.unwrap();
        assert!(world.store.total_bytes() < MIB, "{} bytes are left", world.store.total_bytes());
        world.check().await;
    }
}

/// Somebody asked for the wrong size: a filesystem that uses what lies beyond must not notice.
#[tokio::test(start_paused = true)]
async fn who_is_refused_for_data_beyond_the_end_disturbs_no_client_there() {
    for k in 1.. {
        let world = World::new(FencedBy::CreateOnly).await;
        let gate = Gate::new(world.store.clone());
        let volume =
            world.open_over(Arc::new(gate.clone()), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
        write_all(&volume).await;
        gate.hold(k);
        let mut shrinking = Box::pin(volume.shrink(SMALL, false));
        let is_held = tokio::select! {
            refused = &mut shrinking => { refused.unwrap_err(); false }
            () = gate.is_held.notified() => true,
        };
        volume.write(150 * MIB, Bytes::from(vec![8; BLOCK]), false).await.unwrap();
        if !is_held {
            break;
        }
        gate.go_on.notify_one();
        shrinking.await.unwrap_err();
        assert_eq!(read(&volume, 150 * MIB).await, [8; BLOCK]);
    }
}

/// Changes that are under way beyond the new end while it is lowered: whatever was acknowledged is before the hole.
#[tokio::test]
async fn writers_who_do_not_know_of_the_new_end_are_refused_and_bring_nothing_back() {
    let world = World::new(FencedBy::CreateOnly).await;
    let disk = CrashDisk::new(1);
    let volume = world.open(1, &disk, OpenFlags::default()).await.unwrap();
    write_all(&volume).await;
    let writers = (0..8u64).map(|n| {
        let volume = volume.clone();
        async move {
            let mut refused = false;
            for turn in 0..200u64 {
                // Not aligned, so that blocks are completed.
                let written =
                    volume.write(SMALL + n * MIB + turn * 100, Bytes::from(vec![n as u8 + 1; 5000]), false).await;
                assert!(!(refused && written.is_ok()), "once refused, always refused");
                refused |= written.is_err();
                tokio::task::yield_now().await;
            }
            refused
        }
    });
    let (refused, shrunk) = tokio::join!(futures::future::join_all(writers), volume.shrink(SMALL, true));
    shrunk.unwrap();
    assert!(refused.iter().all(|refused| *refused));
    volume.write(4096, Bytes::from(vec![3; 10]), false).await.unwrap();
    drop(volume);
    // The journal has all of it: the writes, the hole, and what came after.
    let volume = world.open(1, &disk.kill(), OpenFlags::default()).await.unwrap();
    assert_eq!(volume.read(4096, 10).await.unwrap().concat(), [3; 10]);
    assert_eq!(world.judge(volume, "replayed").await, SMALL);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_while_a_volume_becomes_smaller_leaves_it_large_or_small() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let (mut sizes, mut done) = (Vec::new(), false);
        for k in 1.. {
            for trap in [Trap::CutBefore, Trap::CutAfter, Trap::CutHalf] {
                let world = World::new(fenced_by).await;
                let (disk, what) = (CrashDisk::new(1), format!("{fenced_by}, {trap:?} at {k}"));
                let faulty =
                    FaultyStore::new(Arc::new(world.store.clone()), FaultOptions::default(), Random::seeded(k));
                let faults = faulty.faults();
                let store: Arc<dyn Store> = Arc::new(faulty);
                let mut volume = world.open_over(store.clone(), 1, &disk, OpenFlags::default()).await.unwrap();
                write_all(&volume).await;
                volume.flush().await.unwrap();
                if k % 3 == 0 {
                    // The pages of the map are in a checkpoint, and not in memory.
                    volume.close().await.unwrap();
                    volume = world.open_over(store, 1, &disk, OpenFlags::default()).await.unwrap();
                }
                volume.write(130 * MIB, Bytes::from(vec![99; BLOCK]), false).await.unwrap();
                faults.set_trap(Counted::Mutations, faults.mutations() + k, trap);
                tokio::select! {
                    shrunk = volume.shrink(SMALL, true) => drop(shrunk),
                    () = faults.isolated() => {}
                }
                done = !faults.is_isolated();
                drop(volume);
                // The server comes back, or another one takes the volume.
                let volume = match k % 2 {
                    0 => world.open(1, &disk.kill(), OpenFlags::default()).await.unwrap(),
                    _ => world.take(2).await,
                };
                sizes.push(world.judge(volume, &what).await);
            }
            if done {
                break;
            }
        }
        assert!(sizes.contains(&LARGE) && sizes.contains(&SMALL), "{sizes:?}");
    }
}

/// A store that holds one operation back until it is told to go on.
#[derive(Clone)]
struct Gate(Arc<Gated>);

struct Gated {
    inner: MemoryStore,
    count: AtomicU64,
    held: AtomicU64,
    is_held: Notify,
    go_on: Notify,
}

impl std::ops::Deref for Gate {
    type Target = Gated;
    fn deref(&self) -> &Gated {
        &self.0
    }
}

impl Gate {
    fn new(inner: MemoryStore) -> Gate {
        let held = AtomicU64::new(u64::MAX);
        Gate(Arc::new(Gated { inner, count: AtomicU64::new(0), held, is_held: Notify::new(), go_on: Notify::new() }))
    }
}

impl Gated {
    /// Holds the `k`-th operation from now on back, counted from 1.
    fn hold(&self, k: u64) {
        self.held.store(self.count.load(Ordering::SeqCst) + k, Ordering::SeqCst);
    }

    async fn pass(&self) {
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.held.load(Ordering::SeqCst) {
            self.is_held.notify_one();
            self.go_on.notified().await;
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

#[async_trait]
impl Store for Gate {
    fn url(&self) -> String {
        self.inner.url()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        // It is on its way: it arrives, also if whoever sent it has gone away.
        let (this, key) = (self.0.clone(), key.clone());
        let sent = tokio::spawn(async move {
            this.pass().await;
            this.inner.put(&key, body).await
        });
        sent.await.unwrap()
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.pass().await;
        self.inner.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.pass().await;
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.pass().await;
        self.inner.list(prefix, start_after).await
    }
    async fn list_top(&self) -> Result<Vec<String>> {
        self.pass().await;
        self.inner.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.pass().await;
        self.inner.delete(keys).await
    }
}

/// What a server that has just taken the volume acknowledges beyond the smaller end, if it has the larger one.
async fn acknowledge_beyond(volume: &Volume) -> bool {
    if volume.status().size == SMALL {
        return false;
    }
    volume.write(150 * MIB, Bytes::from(vec![77; BLOCK]), false).await.unwrap();
    volume.flush().await.unwrap();
    true
}

/// After both servers: what the taker acknowledged is there, and what the other one cut off is not.
async fn judge_after_takeover(world: &World, taker: Arc<Volume>, acknowledged: bool, what: &str) -> u64 {
    drop(taker);
    let volume = world.take(3).await;
    if acknowledged {
        assert_eq!(volume.status().size, LARGE, "{what}: an acknowledged write was cut off");
        assert_eq!(read(&volume, 150 * MIB).await, vec![77; BLOCK], "{what}");
    }
    world.judge(volume, what).await
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_displaced_while_it_makes_a_volume_smaller_cuts_nothing_off() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let mut sizes = Vec::new();
        for k in 1.. {
            let (world, what) = (World::new(fenced_by).await, format!("{fenced_by}, held at {k}"));
            let gate = Gate::new(world.store.clone());
            let store: Arc<dyn Store> = Arc::new(gate.clone());
            let volume = world.open_over(store, 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
            write_all(&volume).await;
            volume.flush().await.unwrap();
            gate.hold(k);
            let shrinking = tokio::spawn({
                let volume = volume.clone();
                async move { volume.shrink(SMALL, true).await.map_err(|error| error.to_string()) }
            });
            tokio::select! {
                () = gate.is_held.notified() => {}
                () = async { while !shrinking.is_finished() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
            }
            if shrinking.is_finished() {
                shrinking.await.unwrap().unwrap();
                break;
            }
            let taker = world.take(2).await;
            let acknowledged = acknowledge_beyond(&taker).await;
            gate.go_on.notify_one();
            let shrunk = shrinking.await.unwrap();
            assert!(!(acknowledged && shrunk.is_ok()), "{what}: it says that the volume is smaller");
            drop(volume);
            sizes.push(judge_after_takeover(&world, taker, acknowledged, &what).await);
        }
        assert!(sizes.contains(&LARGE) && sizes.contains(&SMALL), "{fenced_by}: {sizes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_a_volume_which_becomes_smaller_meanwhile_serves_what_there_is() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let mut sizes = Vec::new();
        for k in 1.. {
            let (world, what) = (Arc::new(World::new(fenced_by).await), format!("{fenced_by}, taker held at {k}"));
            let volume = world.open(1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
            write_all(&volume).await;
            volume.flush().await.unwrap();
            let gate = Gate::new(world.store.clone());
            gate.hold(k);
            let taking = tokio::spawn({
                let (world, store) = (world.clone(), Arc::new(gate.clone()) as Arc<dyn Store>);
                let flags = OpenFlags { takeover: true, ..OpenFlags::default() };
                async move { world.open_over(store, 2, &CrashDisk::new(2), flags).await.unwrap() }
            });
            tokio::select! {
                () = gate.is_held.notified() => {}
                () = async { while !taking.is_finished() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
            }
            let is_last = taking.is_finished();
            if !is_last {
                // Its claim may be there, for which the other one waits; not for ever.
                let shrunk = tokio::time::timeout(Duration::from_secs(300), volume.shrink(SMALL, true)).await.unwrap();
                gate.go_on.notify_one();
                let taker = taking.await.unwrap();
                let acknowledged = acknowledge_beyond(&taker).await;
                assert!(!(acknowledged && shrunk.is_ok()), "{what}: both sizes are served");
                drop(volume);
                sizes.push(judge_after_takeover(&world, taker, acknowledged, &what).await);
            }
            if is_last {
                break;
            }
        }
        assert!(sizes.contains(&LARGE) && sizes.contains(&SMALL), "{fenced_by}: {sizes:?}");
    }
}

/// Whoever asked for it goes away in the middle, and what is on its way arrives later than anything else.
#[tokio::test(start_paused = true)]
async fn a_shrinking_that_is_given_up_is_done_or_not_and_nothing_that_is_acknowledged_later_is_cut_off() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let mut sizes = Vec::new();
        for k in 1.. {
            let (world, what) = (World::new(fenced_by).await, format!("{fenced_by}, given up at {k}"));
            let (gate, disk) = (Gate::new(world.store.clone()), CrashDisk::new(1));
            let volume = world.open_over(Arc::new(gate.clone()), 1, &disk, OpenFlags::default()).await.unwrap();
            write_all(&volume).await;
            volume.flush().await.unwrap();
            gate.hold(k);
            tokio::select! {
                shrunk = volume.shrink(SMALL, true) => {
                    shrunk.unwrap();
                    break;
                }
                () = gate.is_held.notified() => {}
            }
            // Its commit may be what is held: it needs that to be given up.
            let reloading = tokio::time::timeout(Duration::from_secs(60), volume.reload());
            let followed = reloading.await.unwrap().map_err(|error| error.to_string());
            let write = volume.write(150 * MIB, Bytes::from(vec![77; BLOCK]), false).await;
            let size = volume.status().size;
            assert_eq!(write.is_ok(), followed.is_ok() && size == LARGE, "{what}: {followed:?}, {write:?}");
            gate.go_on.notify_one();
            if write.is_ok() {
                volume.flush().await.unwrap();
            }
            let volume = match k % 2 {
                0 => {
                    drop(volume);
                    world.open(1, &disk.kill(), OpenFlags::default()).await.unwrap()
                }
                _ => volume,
            };
            if write.is_ok() {
                assert_eq!(volume.status().size, LARGE, "{what}: an acknowledged write was cut off");
                assert_eq!(read(&volume, 150 * MIB).await, vec![77; BLOCK], "{what}");
            }
            sizes.push(world.judge(volume, &what).await);
        }
        assert!(sizes.contains(&LARGE) && sizes.contains(&SMALL), "{fenced_by}: {sizes:?}");
    }
}

/// The store answers with an error, whether it did it or not; the same server goes on.
#[tokio::test(start_paused = true)]
async fn a_shrinking_that_the_store_fails_leaves_a_server_that_knows_the_size() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        for (k, trap) in (1..30).flat_map(|k| [(k, Trap::FailBefore), (k, Trap::FailAfter), (k, Trap::KeepHalf)]) {
            let (world, what) = (World::new(fenced_by).await, format!("{fenced_by}, {trap:?} at {k}"));
            let disk = CrashDisk::new(1);
            let faulty = FaultyStore::new(Arc::new(world.store.clone()), FaultOptions::default(), Random::seeded(k));
            let faults = faulty.faults();
            let volume = world.open_over(Arc::new(faulty), 1, &disk, OpenFlags::default()).await.unwrap();
            write_all(&volume).await;
            volume.flush().await.unwrap();
            faults.set_trap(Counted::Mutations, faults.mutations() + k, trap);
            let shrunk = volume.shrink(SMALL, true).await;
            let size = world.described().await.meta.size;
            assert_eq!(volume.status().size, size, "{what}: {shrunk:?}");
            assert!(size == SMALL || shrunk.is_err(), "{what}: {shrunk:?}");
            let written = volume.write(150 * MIB, Bytes::from(vec![0; BLOCK]), false).await;
            assert_eq!(written.is_ok(), size == LARGE, "{what}: {written:?} after {shrunk:?}");
            world.judge(volume, &what).await;
        }
    }
}

/// Whatever of the store it waits for, clients do not.
#[tokio::test(start_paused = true)]
async fn while_a_resize_waits_for_the_store_the_volume_is_served() {
    for k in 1.. {
        let world = World::new(FencedBy::CreateOnly).await;
        let gate = Gate::new(world.store.clone());
        let volume =
            world.open_over(Arc::new(gate.clone()), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
        write_all(&volume).await;
        world.grow(2 * LARGE).await.unwrap();
        gate.hold(k);
        let resize = async {
            volume.reload().await.unwrap();
            volume.shrink(SMALL, true).await.unwrap();
        };
        tokio::pin!(resize);
        let is_held = tokio::select! {
            () = &mut resize => false,
            () = gate.is_held.notified() => true,
        };
        volume.write(MIB, Bytes::from(vec![8; BLOCK]), false).await.unwrap();
        assert_eq!(read(&volume, MIB).await, [8; BLOCK]);
        if !is_held {
            break;
        }
        gate.go_on.notify_one();
        resize.await;
        assert_eq!(volume.status().size, SMALL);
    }
}

/// A description that says less than what is there, which no server writes.
#[tokio::test]
async fn what_is_mapped_beyond_the_end_is_found_by_check_and_a_server_does_not_take_it_over() {
    let world = World::new(FencedBy::CreateOnly).await;
    let disk = CrashDisk::new(1);
    let volume = world.open(1, &disk, OpenFlags::default()).await.unwrap();
    write_all(&volume).await;
    let found = world.described().await;
    let meta = volume::Meta { size: SMALL, ..found.meta.clone() };
    found.replace(&world.store, &world.random, &meta, None).await.unwrap();
    let refused = volume.reload().await.unwrap_err().to_string();
    assert!(refused.contains("goes on with the size that it has"), "{refused}");
    assert_eq!(volume.status().size, LARGE);
    volume.close().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(world.store.clone());
    let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
    let end = SMALL / BLOCK as u64;
    let what = format!("the volume ends at block {end}, but the map holds block {end}");
    assert!(report.problems.iter().any(|problem| problem.what.starts_with(&what)), "{:#?}", report.problems);
}
