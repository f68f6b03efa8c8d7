//! What `check` says of damage, to the byte, and what `check --repair` brings back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::ops::Range;
use std::sync::Arc;

use ashlar::cache::BlockCache;
use ashlar::change::{Change, Numbered};
use ashlar::check::{self, ByteRange, Report, repair};
use ashlar::codec::seal::Sealer;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::root::verify_checkpoint;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random};
use ashlar::space::Label;
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, ListPage, Store, StoreError};
use ashlar::units::{ChangeNo, Extent, Seq};
use ashlar::volume::{self, CreateOptions, FencedBy, OpenFlags, Options, Outside, Volume, VolumeError, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Two pages of the map, of 64 MiB each.
const SIZE: u64 = 100 << 20;

struct World {
    memory: MemoryStore,
    disk: CrashDisk,
    cache: Arc<BlockCache>,
    random: Random,
    /// Nothing is deleted: as if the server had died before, or somebody had put it back.
    keeps_all: bool,
}

/// A store that deletes nothing of the log and the map, and says that it did.
#[derive(Debug)]
struct KeepsAll(MemoryStore);

#[async_trait]
impl Store for KeepsAll {
    fn url(&self) -> String {
        self.0.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<(), StoreError> {
        self.0.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(key, range).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage, StoreError> {
        self.0.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>, StoreError> {
        self.0.list_top().await
    }

    async fn delete(&self, keys: &[Key]) -> Result<(), StoreError> {
        let fences: Vec<Key> = keys.iter().filter(|key| key.as_str().contains("/fences/")).cloned().collect();
        self.0.delete(&fences).await
    }
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

impl World {
    async fn new() -> World {
        World::fenced_by(FencedBy::default()).await
    }

    async fn fenced_by(fenced_by: FencedBy) -> World {
        let (memory, random) = (MemoryStore::default(), Random::seeded(7));
        let options = CreateOptions { size: SIZE, fenced_by, ..CreateOptions::default() };
        volume::create(&memory, &random, &Clock::System, &name(), options).await.unwrap();
        World {
            memory,
            disk: CrashDisk::new(7),
            cache: Arc::new(BlockCache::in_memory(64 << 20)),
            random,
            keeps_all: false,
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        match self.keeps_all {
            true => Arc::new(KeepsAll(self.memory.clone())),
            false => Arc::new(self.memory.clone()),
        }
    }

    async fn open(&self) -> Arc<Volume> {
        let outside = Outside {
            cache: self.cache.clone(),
            ..outside::plain(self.store(), Arc::new(self.disk.clone()), self.random.clone())
        };
        let flags = OpenFlags::default();
        Volume::open(outside, &name(), Options::default(), journal::Options::default(), flags).await.unwrap()
    }

    fn noise(&self, len: u64) -> Bytes {
        (0..len).map(|_| self.random.below(256) as u8).collect::<Vec<_>>().into()
    }

    /// Where the pages of a checkpoint end, in bytes before its end.
    async fn pages(&self, checkpoint: &Key) -> Vec<usize> {
        let uuid = volume::inspect(&self.store(), &name(), &Secrets::default()).await.unwrap().uuid;
        let seq = Seq(u64::from_str_radix(checkpoint.as_str().rsplit('/').next().unwrap(), 16).unwrap());
        let bytes = self.memory.get(checkpoint).await.unwrap();
        let own = verify_checkpoint(&Sealer::new(uuid, None), seq, &bytes).unwrap().own;
        (1..=own.len()).map(|n| own[n..].iter().map(|len| *len as usize).sum()).collect()
    }

    /// Opens, writes, closes.
    async fn write(&self, writes: &[(u64, &Bytes)]) {
        self.begin(writes).await.close().await.unwrap();
    }

    /// Opens and writes.
    async fn begin(&self, writes: &[(u64, &Bytes)]) -> Arc<Volume> {
        let volume = self.open().await;
        for (at, data) in writes {
            volume.write(*at, (*data).clone(), true).await.unwrap();
        }
        volume
    }

    async fn check(&self, data: bool) -> Report {
        check::check(&self.store(), &name(), data, &|_, _| {}, &Secrets::default()).await.unwrap()
    }

    /// The objects whose key contains that, in order.
    fn keys(&self, part: &str) -> Vec<Key> {
        self.memory.objects().into_iter().map(|(key, _)| key).filter(|key| key.as_str().contains(part)).collect()
    }

    fn largest_segment(&self) -> Key {
        let objects = self.memory.objects().into_iter().filter(|(key, _)| key.as_str().contains("/segments/"));
        objects.max_by_key(|(_, body)| body.len()).unwrap().0
    }

    async fn damage_newest_checkpoint(&self) -> Key {
        let newest = self.keys("/checkpoints/").pop().unwrap();
        let mut body = self.memory.get(&newest).await.unwrap().to_vec();
        body[60] ^= 4;
        self.memory.replace(&newest, body.into());
        newest
    }

    async fn flip(&self, key: &Key, from_end: usize) {
        let mut body = self.memory.get(key).await.unwrap().to_vec();
        let at = body.len() - 1 - from_end;
        body[at] ^= 1;
        self.memory.replace(key, body.into());
    }
}

/// Ranges in KiB.
fn ranges(lost: &[(u64, u64)]) -> Vec<ByteRange> {
    lost.iter().map(|(start, end)| ByteRange { offset: start * KIB, length: (end - start) * KIB }).collect()
}

#[tokio::test]
async fn of_a_segment_that_is_missing_the_lost_bytes_are_named_and_nothing_else() {
    let world = World::new().await;
    let (data, block) = (world.noise(256 * KIB), world.noise(4 * KIB));
    world.write(&[(64 * KIB, &data), (128 * KIB, &block), (70 << 20, &block)]).await;
    assert!(world.check(true).await.lost.is_empty());
    let segment = world.largest_segment();
    world.memory.remove(&segment);
    for data in [false, true] {
        let report = world.check(data).await;
        assert_eq!(report.lost, ranges(&[(64, 128), (132, 320)]), "what was overwritten since is elsewhere");
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert_eq!(report.problems[0].object, segment.to_string());
    }
}

#[tokio::test]
async fn of_a_frame_that_does_not_open_only_its_own_blocks_are_lost() {
    let world = World::new().await;
    let data = world.noise(256 * KIB);
    world.write(&[(64 * KIB, &data)]).await;
    let segment = world.largest_segment();
    world.flip(&segment, 0).await;
    assert!(world.check(false).await.is_clean(), "nobody has read it");
    assert_eq!(world.check(true).await.lost, ranges(&[(256, 320)]));
    world.flip(&segment, 2 * 65556).await;
    let report = world.check(true).await;
    assert_eq!(report.lost, ranges(&[(128, 192), (256, 320)]));
    assert!(report.problems[0].what.starts_with("2 of its frames; the first at byte "), "{:?}", report.problems);
    assert_eq!(report.frames, 2, "of four");
}

#[tokio::test]
async fn of_a_segment_that_was_cut_the_first_part_is_good() {
    let world = World::new().await;
    world.write(&[(64 * KIB, &world.noise(256 * KIB))]).await;
    let segment = world.largest_segment();
    let whole = world.memory.get(&segment).await.unwrap();
    world.memory.replace(&segment, whole.slice(..whole.len() - 65556 - 1));
    let report = world.check(false).await;
    assert_eq!(report.lost, ranges(&[(192, 320)]), "{:?}", report.problems);
    let volume = world.open().await;
    assert!(volume.read(64 * KIB, 128 << 10).await.is_ok());
}

/// As after a repair: what was brought back stands elsewhere, and the harm stays where it is until the segment is emptied.
#[tokio::test]
async fn harm_to_what_nothing_needs_any_more_is_no_damage() {
    for (is_cut, has_snapshot) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new().await;
        let volume = world.begin(&[(64 * KIB, &world.noise(256 * KIB))]).await;
        if has_snapshot {
            let label =
                Label { name: "kept".into(), taken_unix_millis: 1, keep_until_unix_millis: 0, ..Label::default() };
            volume.take_snapshot(label).await.unwrap();
        }
        volume.close().await.unwrap();
        let segment = world.largest_segment();
        match is_cut {
            true => {
                let whole = world.memory.get(&segment).await.unwrap();
                world.memory.replace(&segment, whole.slice(..whole.len() - 1));
            }
            false => world.flip(&segment, 0).await,
        }
        let report = world.check(true).await;
        assert_eq!((report.lost, report.problems.is_empty()), (ranges(&[(256, 320)]), false));
        world.write(&[(256 * KIB, &world.noise(64 * KIB))]).await;
        let report = world.check(true).await;
        assert_eq!((&report.lost, report.is_clean()), (&vec![], !has_snapshot), "{:?}", report.problems);
        if has_snapshot {
            let objects: Vec<&str> = report.problems.iter().map(|problem| problem.object.as_str()).collect();
            assert!(objects.contains(&segment.as_str()), "{objects:?}");
            assert!(report.problems.iter().any(|problem| problem.what == "snapshot kept has lost 16 blocks"));
        }
    }
}

#[tokio::test]
async fn of_a_page_that_cannot_be_read_all_is_lost_and_of_the_other_nothing() {
    let world = World::new().await;
    let block = world.noise(4 * KIB);
    let many: Vec<(u64, &Bytes)> = (0..12).map(|n| (n * 64 * KIB, &block)).collect();
    world.write(&many).await;
    // One block is not worth a merge: it lies in a page of its own.
    world.write(&[(70 << 20, &block)]).await;
    let newest = world.keys("/checkpoints/").pop().unwrap();
    let pages = world.pages(&newest).await;
    world.flip(&newest, pages[0]).await;
    let report = world.check(false).await;
    assert_eq!(report.lost, ranges(&[(70 << 10, 100 << 10)]));
    assert_eq!((report.pages, report.problems.len()), (3, 1), "with two of the table: {:?}", report.problems);
}

#[tokio::test]
async fn without_salts_nothing_can_be_opened_and_without_counters_everything() {
    for (page, lost) in [(1, vec![(0, 4), (64, 68)]), (2, vec![])] {
        let world = World::new().await;
        let block = world.noise(4 * KIB);
        world.write(&[(0, &block), (64 * KIB, &block)]).await;
        let newest = world.keys("/checkpoints/").pop().unwrap();
        let pages = world.pages(&newest).await;
        assert_eq!(pages.len(), 3, "a leaf, salts, counters");
        world.flip(&newest, pages[page]).await;
        let report = world.check(true).await;
        assert_eq!(report.lost, ranges(&lost));
        assert_eq!(report.problems[0].object, newest.to_string());
        assert_eq!(report.orphans, Vec::<String>::new(), "what may be needed is nobody's to delete");
        // Served, it says the same, and takes what is written to it.
        for n in 1..3 {
            let volume = world.open().await;
            assert_eq!(volume.read(0, 4096).await.is_err(), !lost.is_empty());
            volume.write(n * MIB, block.clone(), true).await.unwrap();
            volume.close().await.unwrap();
            let volume = world.open().await;
            for n in 1..=n {
                assert_eq!(volume.read(n * MIB, 4096).await.unwrap().concat(), block);
            }
            volume.close().await.unwrap();
        }
        let report = world.check(true).await;
        assert_eq!(report.lost, ranges(&lost));
    }
}

#[tokio::test]
async fn what_the_cache_has_is_written_again_and_what_it_has_not_stays_lost() {
    for is_cached in [true, false] {
        let mut world = World::new().await;
        let (data, other) = (world.noise(256 * KIB), world.noise(8 * KIB));
        world.write(&[(64 * KIB, &data)]).await;
        world.memory.remove(&world.largest_segment());
        if !is_cached {
            world.cache = Arc::new(BlockCache::in_memory(0));
        }
        let lost = world.check(true).await.lost;
        assert_eq!(lost, ranges(&[(64, 320)]));
        let volume = world.open().await;
        volume.write(100 * KIB, other.clone(), false).await.unwrap();
        let written = repair::write_again(&*volume, &lost).await.unwrap();
        volume.close().await.unwrap();
        let report = world.check(true).await;
        if is_cached {
            assert_eq!(written, lost);
            assert!(report.is_clean(), "{:?}", report.problems);
            let mut expected = data.to_vec();
            expected[36 << 10..44 << 10].copy_from_slice(&other);
            let volume = world.open().await;
            assert_eq!(volume.read(64 * KIB, 256 << 10).await.unwrap().concat(), expected);
        } else {
            assert_eq!(written, ranges(&[(100, 108)]), "only what was written since");
            assert_eq!(report.lost, ranges(&[(64, 100), (108, 320)]));
        }
    }
}

#[tokio::test]
async fn what_the_journal_has_of_it_is_named() {
    let world = World::new().await;
    world.write(&[(64 * KIB, &world.noise(256 * KIB))]).await;
    world.memory.remove(&world.largest_segment());
    let mut report = world.check(false).await;
    let change = |no, change| Numbered { no: ChangeNo(no), change };
    let write = |block, count| Change::Write(Extent::new(block, count), Bytes::from(vec![1; count as usize * 4096]));
    report.look_into_journal(&[
        change(5, write(0, 20)),
        change(6, Change::Hole(Extent::new(30, 2))),
        change(7, write(32, 1)),
        change(8, write(79, 100)),
        change(9, write(1000, 1)),
    ]);
    assert_eq!(report.in_journal, ranges(&[(64, 80), (120, 132), (316, 320)]));
}

/// Two rounds of writing; what the second one deleted is there as well, or not. Also returns what is at the beginning.
async fn with_a_damaged_newest_checkpoint(keeps_all: bool) -> (World, Key, Bytes) {
    let mut world = World::new().await;
    let (first, second) = (world.noise(128 * KIB), world.noise(64 * KIB));
    world.write(&[(0, &first)]).await;
    world.keeps_all = keeps_all;
    world.write(&[(0, &second)]).await;
    world.keeps_all = false;
    let newest = world.damage_newest_checkpoint().await;
    (world, newest, [&second[..], &first[64 << 10..]].concat().into())
}

#[tokio::test]
async fn an_older_checkpoint_with_the_whole_log_after_it_takes_the_place_of_one_that_cannot_be_read() {
    let (world, newest, data) = with_a_damaged_newest_checkpoint(true).await;
    let report = world.check(true).await;
    assert!(report.instead_of_newest.is_some() && report.lost.is_empty(), "{report:#?}");
    assert!(
        report.problems[0].what.ends_with(
            "the log after it tell the same of the disk: --repair goes back to it; its snapshots are those of then"
        ),
        "{report:#?}"
    );
    let dropped =
        repair::drop_newest_checkpoint(&world.store(), &name(), &Secrets::default(), &report, |_| false).await.unwrap();
    assert_eq!(dropped, Some(newest));
    let volume = world.open().await;
    assert_eq!(volume.read(0, 128 << 10).await.unwrap().concat(), data, "all that was ever acknowledged");
    volume.close().await.unwrap();
    assert!(world.check(true).await.is_clean());
}

/// In verified mode an opening deletes the fences that are no longer needed: those that an older checkpoint needs are.
#[tokio::test]
async fn an_older_checkpoint_keeps_the_fences_after_it() {
    let mut world = World::fenced_by(FencedBy::Verified).await;
    let data = world.noise(64 * KIB);
    world.write(&[(0, &data)]).await;
    world.keeps_all = true;
    // Two lives that end without a checkpoint, one that writes one, and one that clears.
    drop(world.begin(&[(64 * KIB, &data)]).await);
    drop(world.begin(&[(128 * KIB, &data)]).await);
    world.write(&[(192 * KIB, &data)]).await;
    drop(world.begin(&[]).await);
    world.damage_newest_checkpoint().await;
    let report = world.check(true).await;
    assert!(report.instead_of_newest.is_some() && report.lost.is_empty(), "{report:#?}");
}

#[tokio::test]
async fn with_a_gap_in_the_log_nothing_is_dropped_and_the_gap_is_named() {
    let (world, newest, _) = with_a_damaged_newest_checkpoint(false).await;
    let report = world.check(true).await;
    assert_eq!((report.instead_of_newest, &report.lost), (None, &ranges(&[(0, SIZE / KIB)])));
    let what = &report.problems[0].what;
    assert!(what.contains("cannot take its place: of the log after that, v/") && what.contains(" is gone"), "{what}");
    let dropped =
        repair::drop_newest_checkpoint(&world.store(), &name(), &Secrets::default(), &report, |_| false).await.unwrap();
    assert_eq!(dropped, None);
    assert!(world.memory.get(&newest).await.is_ok());
}

#[tokio::test]
async fn a_checkpoint_is_not_dropped_under_a_server_that_may_be_alive() {
    let (world, newest, _) = with_a_damaged_newest_checkpoint(true).await;
    let close =
        world.keys("/segments/").into_iter().max_by_key(|key| key.as_str().rsplit('/').next().map(str::to_owned));
    world.memory.remove(&close.unwrap());
    let report = world.check(true).await;
    assert!(report.instead_of_newest.is_some());
    let drop = |is_gone: bool| {
        let (store, report) = (world.store(), report.clone());
        let one = uuid::Uuid::from_u128(1);
        async move {
            let is_gone = |server| is_gone && server == one;
            repair::drop_newest_checkpoint(&store, &name(), &Secrets::default(), &report, is_gone).await
        }
    };
    let dropped = drop(false).await;
    assert!(matches!(dropped, Err(VolumeError::Invalid(_))), "{dropped:?}");
    assert!(world.memory.get(&newest).await.is_ok());
    assert_eq!(drop(true).await.unwrap(), Some(newest), "whoever knows that it is gone may");
}
