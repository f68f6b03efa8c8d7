//! Two servers and one volume, at the moments in which one that is displaced could do harm: what is in whose way is held up
//! on purpose until the other has come to the worst point. Random meetings of the kind are the simulation's (`tests/sim`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ashlar::codec::frame::Compression;
use ashlar::codec::seal::Sealer;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::keys::Keys;
use ashlar::format::segment::{self, Payload, Stamp};
use ashlar::journal;
use ashlar::outside::{Clock, Random};
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, ListPage, Store, list_all};
use ashlar::units::{BlockSize, ChangeNo, Epoch, Extent, Seq};
use ashlar::volume::{
    self, CreateOptions, FencedBy, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

const BLOCK: u64 = 4096;
/// Blocks that are written lie so far apart, in bytes.
const PAGE: u64 = 1024 * BLOCK;

/// A way to the store on which PUTs, or GETs, of some keys can be held up.
#[derive(Debug)]
struct Gate {
    objects: Arc<MemoryStore>,
    /// Keys that contain this.
    of: &'static str,
    /// GETs are held up, not PUTs.
    is_for_reads: bool,
    is_closed: AtomicBool,
    opened: Notify,
    /// Somebody waits.
    held: Notify,
}

impl Gate {
    fn open(objects: &Arc<MemoryStore>, of: &'static str) -> Arc<Gate> {
        Gate::new(objects, of, false)
    }

    fn of_reads(objects: &Arc<MemoryStore>, of: &'static str) -> Arc<Gate> {
        Gate::new(objects, of, true)
    }

    fn new(objects: &Arc<MemoryStore>, of: &'static str, is_for_reads: bool) -> Arc<Gate> {
        let (opened, held) = (Notify::new(), Notify::new());
        Arc::new(Gate { objects: objects.clone(), of, is_for_reads, is_closed: AtomicBool::new(false), opened, held })
    }

    async fn pass(&self, key: &Key, is_read: bool) {
        while is_read == self.is_for_reads && key.as_str().contains(self.of) && self.is_closed.load(Ordering::Relaxed) {
            self.held.notify_one();
            self.opened.notified().await;
        }
    }

    fn set_closed(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Ordering::Relaxed);
        self.opened.notify_waiters();
    }
}

#[async_trait]
impl Store for Gate {
    fn url(&self) -> String {
        self.objects.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        self.pass(key, false).await;
        self.objects.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.pass(key, true).await;
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

/// A way to the store on which PUTs of segments can land and get no answer for a while.
#[derive(Debug)]
struct NoAnswer {
    inner: Arc<Gate>,
    is_silent: AtomicBool,
    landed: Notify,
    answered: Notify,
}

#[async_trait]
impl Store for NoAnswer {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> ashlar::store::Result<()> {
        let done = self.inner.put(key, body).await;
        if key.as_str().contains("/segments/") && self.is_silent.load(Ordering::Relaxed) {
            self.landed.notify_one();
            self.answered.notified().await;
        }
        done
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> ashlar::store::Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> ashlar::store::Result<Bytes> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> ashlar::store::Result<ListPage> {
        self.inner.list(prefix, after).await
    }

    async fn list_top(&self) -> ashlar::store::Result<Vec<String>> {
        self.inner.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> ashlar::store::Result<()> {
        self.inner.delete(keys).await
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn takeover() -> OpenFlags {
    OpenFlags { takeover: true, ..OpenFlags::default() }
}

async fn created() -> Arc<MemoryStore> {
    created_in(FencedBy::CreateOnly).await
}

async fn created_in(fenced_by: FencedBy) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::default());
    let create = CreateOptions { size: 16 * PAGE, fenced_by, ..CreateOptions::default() };
    volume::create(&*store, &Random::seeded(1), &Clock::System, &name(), create).await.unwrap();
    store
}

/// Opens for a server of that number, which has a disk of its own. Its memory holds the whole map: a checkpoint is due by time alone, not after
/// each commit, so that one writes many pages.
async fn open(
    store: Arc<dyn Store>,
    server: u64,
    disk: &CrashDisk,
    flags: OpenFlags,
) -> Result<Arc<Volume>, VolumeError> {
    let outside = Outside {
        server: ServerIdentity { uuid: uuid::Uuid::from_u128(server.into()), name: format!("number-{server}") },
        ..outside::plain(store, Arc::new(disk.clone()), Random::seeded(server))
    };
    let mut options = Options::default();
    // No collection: a segment of moved data would take the slot that a test is about.
    options.gc.merge_count = 1_000_000;
    (options.gc.quiet_percent, options.gc.busy_percent) = (90_000, 90_001);
    (options.gc.limit_percent, options.gc.hold_percent) = (90_002, 90_003);
    Volume::open(outside, &name(), options, journal::Options::default(), flags).await
}

async fn write(volume: &Volume, offset: u64, byte: u8) {
    volume.write(offset, Bytes::from(vec![byte; BLOCK as usize]), true).await.unwrap();
}

async fn byte_at(volume: &Volume, offset: u64) -> u8 {
    let block = volume.read(offset, BLOCK as u32).await.unwrap().concat();
    assert!(block.iter().all(|byte| *byte == block[0]));
    block[0]
}

/// Long enough for a checkpoint and the deletions after it.
async fn minutes() {
    tokio::time::sleep(Duration::from_secs(180)).await;
}

async fn keys(store: &MemoryStore) -> Keys {
    Keys::of(&volume::description::load(store, &name()).await.unwrap().meta)
}

/// A run of twelve blocks in one checkpoint, of which three were written again since and lie in a second one: with one more the next
/// checkpoint merges them, and the first one can go. Returns the key of the first.
async fn prepare_pages(volume: &Volume, store: &MemoryStore) -> Key {
    for page in 0..12 {
        write(volume, page * PAGE, 1).await;
    }
    minutes().await;
    let checkpoints = || async { list_all(store, &keys(store).await.checkpoints()).await.unwrap() };
    let first = checkpoints().await;
    assert_eq!(first.len(), 1, "all blocks are in one checkpoint");
    for page in [0, 1, 3] {
        write(volume, page * PAGE, 2).await;
    }
    minutes().await;
    assert_eq!(checkpoints().await.len(), 2, "the others are still in the first one");
    first[0].key.clone()
}

async fn last_segment(store: &MemoryStore) -> Seq {
    let listed = list_all(store, &keys(store).await.segments()).await.unwrap();
    Seq(listed.iter().filter_map(|entry| Keys::number(&entry.key)).max().unwrap())
}

/// Step 5 of deleting: the pages that a taker may still read were superseded by a checkpoint that it does not know of.
#[tokio::test(start_paused = true)]
async fn a_displaced_server_deletes_nothing_that_its_successor_began_with() {
    displaced_while_deleting(FencedBy::CreateOnly).await;
}

#[tokio::test(start_paused = true)]
async fn nor_does_one_in_verified_mode() {
    displaced_while_deleting(FencedBy::Verified).await;
}

async fn displaced_while_deleting(fenced_by: FencedBy) {
    let store = created_in(fenced_by).await;
    let gate = Gate::open(&store, "/checkpoints/");
    let old = open(gate.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    let first = prepare_pages(&old, &store).await;
    // Its next checkpoint is under way when it is displaced.
    gate.set_closed(true);
    write(&old, 0, 3).await;
    gate.held.notified().await;
    let new = open(store.clone(), 2, &CrashDisk::new(2), takeover()).await.unwrap();
    gate.set_closed(false);
    // Long enough for the deletion, and not for a checkpoint of the new one.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(store.get(&first).await.is_ok(), "the new one may read it");
    assert_eq!(byte_at(&new, 2 * PAGE).await, 1, "its page is read from the first checkpoint");
    assert_eq!((byte_at(&new, 0).await, byte_at(&new, PAGE).await), (3, 2));
    let ended = old.status().ended.unwrap_or_default();
    assert!(ended.contains("was taken over by server number-2"), "{ended:?}");
    new.close().await.unwrap();
}

/// What it uploaded last took effect at its successor, which has deleted it since: the slot is free again, and the fence stands behind it.
#[tokio::test(start_paused = true)]
async fn a_displaced_server_finds_the_fence_behind_a_slot_that_its_successor_emptied() {
    let store = created().await;
    let gate = Gate::open(&store, "/checkpoints/");
    let (landed, answered) = (Notify::new(), Notify::new());
    let way = Arc::new(NoAnswer { inner: gate.clone(), is_silent: AtomicBool::new(false), landed, answered });
    let old = open(way.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    let first = prepare_pages(&old, &store).await;
    gate.set_closed(true);
    write(&old, 0, 3).await;
    gate.held.notified().await;
    way.is_silent.store(true, Ordering::Relaxed);
    let writer = old.clone();
    let writing = tokio::spawn(async move { writer.write(5 * PAGE, Bytes::from(vec![4; BLOCK as usize]), true).await });
    way.landed.notified().await;
    let last = keys(&store).await.segment(last_segment(&store).await);
    let new = open(store.clone(), 2, &CrashDisk::new(2), takeover()).await.unwrap();
    assert_eq!(byte_at(&new, 5 * PAGE).await, 4, "it took effect");
    write(&new, 5 * PAGE, 5).await;
    minutes().await;
    assert!(store.get(&last).await.is_err(), "nothing needs it any more");
    // It wakes up, and would delete what its checkpoint made needless.
    gate.set_closed(false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let ended = old.status().ended.unwrap_or_default();
    assert!(ended.contains("was taken over by server number-2"), "{ended:?}, {:?}", store.get(&first).await.is_ok());
    writing.abort();
    new.close().await.unwrap();
}

/// A checkpoint of a server that died lands late, when its successor has begun without it. Whoever takes the volume next begins with it, and finds
/// superseded what the successor, which does not know of all this, still builds its next checkpoint on: that one may be the newest for the
/// server after it.
#[tokio::test(start_paused = true)]
async fn a_taker_deletes_no_checkpoint_before_its_own_is_durable() {
    late_checkpoint(FencedBy::CreateOnly).await;
}

#[tokio::test(start_paused = true)]
async fn nor_does_a_taker_in_verified_mode() {
    late_checkpoint(FencedBy::Verified).await;
}

async fn late_checkpoint(fenced_by: FencedBy) {
    let store = created_in(fenced_by).await;
    let gate = Gate::open(&store, "/checkpoints/");
    let died = open(gate.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    let first = prepare_pages(&died, &store).await;
    gate.set_closed(true);
    write(&died, 0, 3).await;
    gate.held.notified().await;
    let unaware = open(store.clone(), 2, &CrashDisk::new(2), takeover()).await.unwrap();
    gate.set_closed(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let checkpoints = || async { list_all(&*store, &keys(&store).await.checkpoints()).await.unwrap() };
    let late = checkpoints().await.pop().unwrap().key;
    assert_ne!(late, first);
    let taker = open(store.clone(), 3, &CrashDisk::new(3), takeover()).await.unwrap();
    // Long enough for deletions, and not for a checkpoint.
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(taker);
    minutes().await;
    assert!(checkpoints().await.pop().unwrap().key > late, "the one that is unaware wrote a checkpoint");
    drop(unaware);
    let last = open(store.clone(), 4, &CrashDisk::new(4), takeover()).await.unwrap();
    for (page, byte) in [(2, 1), (0, 3), (1, 2), (3, 2), (11, 1)] {
        assert_eq!(byte_at(&last, page * PAGE).await, byte, "page {page}");
    }
    minutes().await;
    assert!(store.get(&first).await.is_err(), "it goes in the end");
    last.close().await.unwrap();
}

/// Step 6 of deleting: what a read that was planned before may still ask for stays until it has ended.
#[tokio::test(start_paused = true)]
async fn an_object_that_a_read_under_way_asks_for_is_not_deleted() {
    let store = created().await;
    let gate = Gate::of_reads(&store, "/segments/02/");
    let volume = open(gate.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    write(&volume, 0, 1).await;
    let segment = keys(&store).await.segment(Seq(2));
    assert_eq!(last_segment(&store).await, Seq(2));
    gate.set_closed(true);
    let reader = volume.clone();
    let reading = tokio::spawn(async move { byte_at(&reader, 0).await });
    gate.held.notified().await;
    // Dead at once, and a checkpoint says so.
    write(&volume, 0, 2).await;
    minutes().await;
    assert!(store.get(&segment).await.is_ok(), "a read under way asks for it");
    gate.set_closed(false);
    assert_eq!(reading.await.unwrap(), 1, "what was there when the read was planned");
    minutes().await;
    assert!(store.get(&segment).await.is_err(), "nobody can ask for it any more");
    assert_eq!(byte_at(&volume, 0).await, 2);
    volume.close().await.unwrap();
}

/// Step 5 of opening: the slot of the fence was free only because its owner had deleted it.
#[tokio::test(start_paused = true)]
async fn a_fence_in_a_slot_that_was_used_and_deleted_is_void() {
    let store = created().await;
    let old = open(store.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    write(&old, 0, 1).await;
    let slot = Seq(last_segment(&store).await.0 + 1);
    let gate = Gate::open(&store, "/segments/");
    gate.set_closed(true);
    let (way, disk) = (gate.clone(), CrashDisk::new(2));
    let taking = tokio::spawn(async move { open(way, 2, &disk, takeover()).await.unwrap() });
    // It has looked, and is about to put its fence into the first free slot.
    gate.held.notified().await;
    for byte in 2..6 {
        write(&old, 0, byte).await;
    }
    minutes().await;
    let there = store.get(&keys(&store).await.segment(slot)).await;
    assert!(there.is_err(), "the slot was used, is covered by a checkpoint, and was deleted");
    gate.set_closed(false);
    let new = taking.await.unwrap();
    assert_eq!(byte_at(&new, 0).await, 5, "what was durable before the takeover is there after it");
    write(&new, 0, 6).await;
    assert!(old.write(0, Bytes::from(vec![7; BLOCK as usize]), true).await.is_err());
    assert_eq!(byte_at(&new, 0).await, 6);
    new.close().await.unwrap();
}

/// Whatever stands in a slot of the log counts only for the epoch in which the log is.
#[tokio::test(start_paused = true)]
async fn an_object_of_another_epoch_in_the_log_is_refused() {
    for epoch in [0, 2] {
        let (store, disk) = (created().await, CrashDisk::new(1));
        let volume = open(store.clone(), 1, &disk, OpenFlags::default()).await.unwrap();
        write(&volume, 0, 1).await;
        assert_eq!(volume.status().epoch, 1);
        let sealer = Sealer::new(volume.meta().uuid, None);
        drop(volume);
        let seq = Seq(last_segment(&store).await.0 + 1);
        let stamp = Stamp {
            epoch: Epoch(epoch),
            server: uuid::Uuid::from_u128(1),
            covers: ChangeNo(2),
            compression: Compression::None,
        };
        let data = Payload::Data(Bytes::from(vec![9; BLOCK as usize]));
        let block_size = BlockSize::new(BLOCK).unwrap();
        let salt = sealer.salt([7; 16]);
        let changes = [(Extent::new(0, 1), data)];
        let segment = segment::encode_segment(&sealer, seq, salt, block_size, &stamp, &changes).unwrap();
        let key = keys(&store).await.segment(seq);
        store.put(&key, segment.object.parts).await.unwrap();
        let refused = open(store, 1, &disk.kill(), OpenFlags::default()).await.unwrap_err().to_string();
        let expected = format!("it is of epoch {epoch}, but the log is in epoch 1");
        assert!(refused.contains(&expected) && refused.contains(key.as_str()), "{refused}");
    }
}

/// Step 5 of opening, the other half: the fence holds, but the owner's checkpoint has let go of what the scan refers to.
#[tokio::test(start_paused = true)]
async fn a_taker_that_was_overtaken_by_a_checkpoint_scans_again() {
    let store = created().await;
    let owners_way = Gate::open(&store, "/checkpoints/");
    let old = open(owners_way.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
    let first = prepare_pages(&old, &store).await;
    // Its next checkpoint is under way when the taker looks, and there when the taker's fence is.
    owners_way.set_closed(true);
    write(&old, 0, 3).await;
    owners_way.held.notified().await;
    let gate = Gate::open(&store, "/segments/");
    gate.set_closed(true);
    let (way, disk) = (gate.clone(), CrashDisk::new(2));
    let taking = tokio::spawn(async move { open(way, 2, &disk, takeover()).await.unwrap() });
    gate.held.notified().await;
    owners_way.set_closed(false);
    minutes().await;
    assert!(store.get(&first).await.is_err(), "a page that the taker found is gone");
    gate.set_closed(false);
    let new = taking.await.unwrap();
    for (page, byte) in [(2, 1), (0, 3), (1, 2)] {
        assert_eq!(byte_at(&new, page * PAGE).await, byte, "page {page}");
    }
    new.close().await.unwrap();
}

/// The owner is about to put a segment beside the torn first try when a taker looks at the slot, and far beyond it when the taker looks there: the
/// slot was not whole once and cut later.
#[tokio::test(start_paused = true)]
async fn a_segment_that_is_put_beside_a_torn_one_while_a_taker_looks_is_no_damage() {
    for is_deleted in [false, true] {
        let store = created().await;
        let owners_way = Gate::open(&store, "03.1");
        owners_way.set_closed(true);
        let old = open(owners_way.clone(), 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
        write(&old, 0, 1).await;
        // What the store kept of the first try; the taker finds it after one segment.
        let torn = keys(&store).await.segment(Seq(3));
        store.put(&torn, Vec::new()).await.unwrap();
        let writer = old.clone();
        let writing = tokio::spawn(async move { write(&writer, 5 * PAGE, 2).await });
        owners_way.held.notified().await;
        // So far ahead the log is looked at to find out whether it goes on.
        let gate = Gate::of_reads(&store, "/000000000000000b");
        gate.set_closed(true);
        let (way, disk) = (gate.clone(), CrashDisk::new(2));
        let taking = tokio::spawn(async move { open(way, 2, &disk, takeover()).await });
        gate.held.notified().await;
        owners_way.set_closed(false);
        writing.await.unwrap();
        for n in 0..9 {
            write(&old, 6 * PAGE + n * BLOCK, 3).await;
        }
        if is_deleted {
            write(&old, 5 * PAGE, 4).await;
            minutes().await;
            assert!(store.get(&torn).await.is_err(), "nothing needs it any more");
        }
        gate.set_closed(false);
        let new = taking.await.unwrap().unwrap_or_else(|error| panic!("deleted: {is_deleted}: {error}"));
        assert_eq!((byte_at(&new, 0).await, byte_at(&new, 6 * PAGE + 8 * BLOCK).await), (1, 3));
        assert_eq!(byte_at(&new, 5 * PAGE).await, if is_deleted { 4 } else { 2 });
        new.close().await.unwrap();
    }
}

/// What one writer costs: a FLUSH waits for the PUT of its segment, and in verified mode for a look at the fences as well.
#[tokio::test(start_paused = true)]
async fn a_flush_takes_one_round_trip_and_two_in_verified_mode() {
    for (fenced_by, round_trips) in [(FencedBy::CreateOnly, 1), (FencedBy::Verified, 2)] {
        let far = FaultOptions { delay_min: Duration::from_millis(100), ..FaultOptions::default() };
        let way = Arc::new(FaultyStore::new(created_in(fenced_by).await, far, Random::seeded(1)));
        let volume = open(way, 1, &CrashDisk::new(1), OpenFlags::default()).await.unwrap();
        for round in 0..3 {
            let before = volume.status().since_open;
            volume.write(round * BLOCK, Bytes::from(vec![1; BLOCK as usize]), false).await.unwrap();
            let began = tokio::time::Instant::now();
            volume.flush().await.unwrap();
            let took = began.elapsed().as_millis();
            assert!((100 * round_trips..100 * round_trips + 50).contains(&took), "{fenced_by:?}: {took} ms");
            let after = volume.status().since_open;
            let asked = (after.puts - before.puts, after.lists - before.lists, after.gets - before.gets);
            assert_eq!(asked, (1, round_trips as u64 - 1, 0), "{fenced_by:?}");
        }
        volume.close().await.unwrap();
    }
}

/// Of openings that are killed before a checkpoint is due, the later ones read no more than the first. A fence that displaced somebody
/// stays for ever; in verified mode, where it need not, what is in the store does not grow either.
#[tokio::test(start_paused = true)]
async fn a_server_that_dies_soon_after_each_opening_does_not_make_the_next_one_longer() {
    for fenced_by in [FencedBy::CreateOnly, FencedBy::Verified] {
        let store = created_in(fenced_by).await;
        let mut disk = CrashDisk::new(1);
        let mut costs = Vec::new();
        for _ in 0..40 {
            let volume = open(store.clone(), 1, &disk, OpenFlags::default()).await.unwrap();
            let gets = volume.status().since_open.gets;
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(volume);
            disk = disk.kill();
            let checkpoints = list_all(&*store, &keys(&store).await.checkpoints()).await.unwrap().len();
            costs.push((gets, store.object_count(), checkpoints));
        }
        let most = |some: &[(u64, usize, usize)]| some.iter().map(|(gets, ..)| *gets).max();
        assert!(most(&costs[20..]) <= most(&costs[..20]), "{fenced_by:?}: {costs:?}");
        assert!(most(&costs) <= Some(40), "a few for each fence since the checkpoint: {costs:?}");
        assert!(costs.iter().all(|(.., checkpoints)| *checkpoints <= 1), "{fenced_by:?}: {costs:?}");
        if fenced_by == FencedBy::Verified {
            assert!(costs.iter().all(|(_, objects, _)| *objects <= 24), "{costs:?}");
        }
    }
}
