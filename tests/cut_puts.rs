//! A store that keeps the first part of a PUT whose connection broke: whichever PUT that is, nothing half counts as the
//! whole, nothing that was promised is lost, and the volume goes on. And a way to the store that flips a bit of what is read back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random};
use ashlar::store::faults::{Counted, FaultOptions, Faults, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::{Key, Store};
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeError, VolumeName};
use bytes::Bytes;

const SIZE: u64 = 8 << 20;
const LEN: u32 = 300 << 10;
/// Of one write.
const BLOCKS: u64 = LEN as u64 / 4096;

/// A store that outlives servers, and the disk of one of them.
struct World {
    memory: MemoryStore,
    disk: CrashDisk,
    name: VolumeName,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let name = VolumeName::new("v").unwrap();
        World { memory: MemoryStore::new(), disk: CrashDisk::new(seed), name, seed }
    }

    fn tower(&self) -> (Arc<dyn Store>, Faults) {
        let faulty =
            FaultyStore::new(Arc::new(self.memory.clone()), FaultOptions::default(), Random::seeded(self.seed));
        let faults = faulty.faults();
        (Arc::new(RetryStore::new(Arc::new(faulty), RetryOptions::default(), Random::seeded(1))), faults)
    }

    async fn create(&self, store: &Arc<dyn Store>) -> Result<(), VolumeError> {
        let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
        let random = Random::seeded(self.seed);
        volume::create(&**store, &random, &Clock::Manual(Arc::default()), &self.name, options).await.map(drop)
    }

    async fn open(&self, store: Arc<dyn Store>, disk: &CrashDisk, takeover: bool) -> Result<Arc<Volume>, VolumeError> {
        self.open_with(store, disk, takeover, options()).await
    }

    async fn open_with(
        &self,
        store: Arc<dyn Store>,
        disk: &CrashDisk,
        takeover: bool,
        options: Options,
    ) -> Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            clock: Clock::Manual(Arc::default()),
            ..outside::plain(store, Arc::new(disk.clone()), Random::system())
        };
        let flags = OpenFlags { takeover, ..OpenFlags::default() };
        Volume::open(outside, &self.name, options, journal::Options::default(), flags).await
    }

    /// Nothing in the store is wrong, every frame of it.
    async fn check(&self, when: &str) -> ashlar::check::Report {
        let store: Arc<dyn Store> = Arc::new(self.memory.clone());
        let report = ashlar::check::check(&store, &self.name, true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{when}: {:#?}", report.problems);
        report
    }

    /// Another server finds all writes of a session.
    async fn elsewhere(&self, takeover: bool, when: &str) {
        self.elsewhere_are(3 * BLOCKS, takeover, when).await;
    }

    /// Another server finds so many blocks of the writes of a session, and nothing else of them.
    async fn elsewhere_are(&self, blocks: u64, takeover: bool, when: &str) {
        let volume = self.open(Arc::new(self.memory.clone()), &CrashDisk::new(9), takeover).await;
        let volume = volume.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(blocks_of_a_session(&volume, when).await, blocks, "{when}");
        volume.close().await.unwrap();
        self.check(when).await;
    }
}

fn options() -> Options {
    // Several segments under way, and a checkpoint after the first of them.
    Options { segment_size: 64 << 10, checkpoint_bytes: 100 << 10, ..Options::default() }
}

fn pattern(n: u64) -> Bytes {
    let mut data = vec![0; LEN as usize];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut data);
    data.into()
}

async fn read(volume: &Volume, n: u64) -> Bytes {
    volume.read(n << 20, LEN).await.unwrap().concat().into()
}

/// How many blocks of a session's writes are there: a prefix of them, in their order, and zeros after it. (A write is accepted in
/// parts, of which a server that lost its journal may have the first ones.)
async fn blocks_of_a_session(volume: &Volume, when: &str) -> u64 {
    let (mut found, mut wanted) = (Vec::new(), Vec::new());
    for n in 0..3 {
        found.extend(read(volume, n).await);
        wanted.extend(pattern(n));
    }
    let is_there = |(found, wanted): &(&[u8], &[u8])| found == wanted;
    let there = found.chunks(4096).zip(wanted.chunks(4096)).take_while(is_there).count();
    assert!(
        found[there * 4096..].iter().all(|byte| *byte == 0),
        "{when}: after {there} blocks something else is there"
    );
    there as u64
}

/// How many of a session's writes the client was told of.
#[derive(Default)]
struct Told {
    acknowledged: AtomicU64,
    flushed: AtomicU64,
}

/// What one server does with a new volume.
async fn session(world: &World, store: Arc<dyn Store>) {
    session_telling(world, store, &Told::default()).await;
}

async fn session_telling(world: &World, store: Arc<dyn Store>, told: &Told) {
    world.create(&store).await.unwrap();
    let volume = world.open(store, &world.disk, false).await.unwrap();
    for n in 0..3 {
        volume.write(n << 20, pattern(n), false).await.unwrap();
        told.acknowledged.store(n + 1, Ordering::Relaxed);
        volume.flush().await.unwrap();
        told.flushed.store(n + 1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for n in 0..3 {
        assert_eq!(read(&volume, n).await, pattern(n), "write {n}, by the one who wrote it");
    }
    volume.close().await.unwrap();
}

/// A store to which a PUT takes longer than to the journal, so that a write is acknowledged before its segments are there.
fn near() -> FaultOptions {
    FaultOptions { delay_min: Duration::from_millis(5), ..FaultOptions::default() }
}

/// How many mutations a session has.
async fn mutations(delays: FaultOptions) -> u64 {
    let world = World::new(0);
    let (store, faults) = world.tower();
    faults.set_options(delays);
    session(&world, store).await;
    faults.mutations()
}

#[tokio::test(start_paused = true)]
async fn whichever_put_is_cut_in_the_middle_the_server_goes_on_and_another_finds_everything() {
    let all = mutations(FaultOptions::default()).await;
    assert!(all > 12, "a description, a fence, segments, checkpoints, a close: {all}");
    for k in 1..=all {
        for seed in 0..4 {
            let world = World::new(seed);
            let (store, faults) = world.tower();
            faults.set_trap(Counted::Mutations, k, Trap::KeepHalf);
            session(&world, store).await;
            let when = format!("mutation {k} cut, seed {seed}");
            world.check(&when).await;
            world.elsewhere(false, &when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_put_may_be_cut_in_the_middle_twice() {
    for seed in 0..4 {
        let world = World::new(seed);
        let (store, faults) = world.tower();
        (0..200).filter(|k| k % 3 != 0).for_each(|k| faults.set_trap(Counted::Mutations, k, Trap::KeepHalf));
        session(&world, store).await;
        world.check("all cut").await;
        world.elsewhere(false, "all cut").await;
    }
}

/// Who opens a volume after its server died.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    /// The same server: it has the journal.
    Itself,
    /// The same server after a loss of power: it may have a part of the journal.
    ItselfAfterPowerLoss,
    /// One that has nothing.
    Another,
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_with_a_put_cut_in_the_middle_comes_back_and_so_does_another() {
    let all = mutations(near()).await;
    // How often more was acknowledged than flushed, and how often somebody else found less than was acknowledged.
    let (mut owed, mut less) = (0, 0);
    for k in 2..=all {
        for seed in 0..2 {
            for next in [Next::Itself, Next::ItselfAfterPowerLoss, Next::Another] {
                let when = format!("died at mutation {k}, seed {seed}, then {next:?}");
                let world = World::new(seed);
                let (store, faults) = world.tower();
                faults.set_options(near());
                faults.set_trap(Counted::Mutations, k, Trap::CutHalf);
                let told = Told::default();
                let died = tokio::select! {
                    biased;
                    () = faults.isolated() => true,
                    () = session_telling(&world, store, &told) => false,
                };
                assert!(died, "{when}: there are as many mutations as without a cut");
                world.check(&when).await;
                let (acknowledged, flushed) = (told.acknowledged.into_inner(), told.flushed.into_inner());
                let there = comes_back(&world, next, &when).await;
                // What the client was told is there.
                let promised = if next == Next::Itself { acknowledged } else { flushed } * BLOCKS;
                assert!(there >= promised, "{when}: {promised} blocks were promised, {there} are there");
                owed += u64::from(acknowledged > flushed);
                less += u64::from(there < acknowledged * BLOCKS);
                world.elsewhere_are(there, false, &when).await;
            }
        }
    }
    println!(
        "{all} mutations; {owed} times more was acknowledged than flushed, {less} times less was found than acknowledged"
    );
    assert!(owed > 20 && less > 5, "cuts worth the name: {owed}, {less}");
}

/// A write that no session makes.
const NEW: u64 = 4;

/// A server opens the volume that another left, goes on with a write of its own, and closes. Returns how many blocks of the
/// other's writes it found.
async fn comes_back(world: &World, next: Next, when: &str) -> u64 {
    let disk = match next {
        Next::Itself => world.disk.kill(),
        Next::ItselfAfterPowerLoss => world.disk.crash(),
        Next::Another => CrashDisk::new(8),
    };
    let mut volume = world.open(Arc::new(world.memory.clone()), &disk, false).await;
    if matches!(volume, Err(VolumeError::Held { .. })) && next == Next::Another {
        volume = world.open(Arc::new(world.memory.clone()), &disk, true).await;
    }
    let volume = volume.unwrap_or_else(|error| panic!("{when}: {error}"));
    let there = blocks_of_a_session(&volume, when).await;
    volume.write(NEW << 20, pattern(NEW), true).await.unwrap();
    assert_eq!(read(&volume, NEW).await, pattern(NEW), "{when}");
    volume.close().await.unwrap();
    world.check(when).await;
    there
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_lands_beside_a_torn_segment_stops_the_server_that_tore_it() {
    let world = World::new(2);
    let (store, faults) = world.tower();
    world.create(&store).await.unwrap();
    let volume = world.open(store, &world.disk, false).await.unwrap();
    volume.write(0, pattern(0), true).await.unwrap();
    faults.set_trap(Counted::Mutations, faults.mutations() + 1, Trap::KeepHalf);
    let (torn_at, writer) = (faults.mutations() + 1, volume.clone());
    let writing = tokio::spawn(async move { writer.write(1 << 20, pattern(1), true).await });
    while faults.mutations() < torn_at {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    faults.set_options(FaultOptions { refuse: 1000, ..FaultOptions::default() });
    let other = world.open(Arc::new(world.memory.clone()), &CrashDisk::new(9), true).await.unwrap();
    let keys: Vec<String> = world.memory.objects().into_iter().map(|(key, _)| key.to_string()).collect();
    assert!(keys.iter().any(|key| key.ends_with(".1")), "the fence stands beside what is torn: {keys:?}");
    faults.set_options(FaultOptions::default());
    let error = writing.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("was taken over by server one"), "{error}");
    assert_eq!(read(&other, 0).await, pattern(0));
    assert!(read(&other, 1).await.iter().all(|byte| *byte == 0), "what was never acknowledged is not there");
    other.write(1 << 20, pattern(2), true).await.unwrap();
    other.close().await.unwrap();
    drop(volume);
    world.check("after the takeover").await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_only_a_part_of_one_object_eight_times_in_a_row_ends_the_volume_in_words() {
    let world = World::new(2);
    let (store, faults) = world.tower();
    world.create(&store).await.unwrap();
    let volume = world.open(store.clone(), &world.disk, false).await.unwrap();
    volume.write(0, pattern(0), true).await.unwrap();
    faults.set_options(FaultOptions { half: 1000, ..FaultOptions::default() });
    let write = volume.write(1 << 20, pattern(1).slice(..4096), true);
    let error = tokio::time::timeout(Duration::from_secs(86_400), write).await.expect("it ends").unwrap_err();
    let words = ["the store kept only the first part of v/", ", 8 times in a row: uploads to it break off"];
    assert!(words.iter().all(|words| error.to_string().contains(words)), "{error}");
    assert_eq!(volume.status().ended, Some(error.to_string()));
    volume.close().await.unwrap_err();
    drop(volume);
    // A store that cuts whatever comes, however small, is of no use to anybody.
    let disk = world.disk.kill();
    let refused = world.open(store.clone(), &disk, false).await.unwrap_err().to_string();
    assert!(refused.contains(", 16 times in a row: uploads to it break off"), "{refused}");
    let (torn, _) = refused.strip_prefix(words[0]).unwrap().split_once(',').unwrap();
    let key = format!("v/{torn}");
    let way_out =
        format!("stop every server that has this volume, delete {key} and {key}.1 to {key}.15, and start one");
    assert!(refused.contains(&way_out), "{refused}");
    // Be the store a good one by now, somebody has to delete the parts; then nothing is lost.
    faults.set_options(FaultOptions::default());
    let refused = world.open(store.clone(), &disk, false).await.unwrap_err().to_string();
    assert!(refused.contains(&way_out), "{refused}");
    let places = segments(&world).into_iter().filter(|(place, _)| place.as_str().starts_with(&key));
    assert_eq!(places.filter(|(key, _)| world.memory.remove(key)).count(), 16);
    let volume = world.open(store, &disk, false).await.unwrap();
    assert_eq!(read(&volume, 0).await, pattern(0));
    volume.close().await.unwrap();
    world.check("after the parts were deleted").await;
}

/// As behind a proxy that lets only small bodies through: a fence takes the slot at a place of its own, and nothing has to be
/// deleted by hand. Another server finds that fence, too.
#[tokio::test(start_paused = true)]
async fn a_slot_whose_segment_was_cut_at_every_place_is_taken_by_the_next_fence() {
    let world = World::new(3);
    let (store, faults) = world.tower();
    world.create(&store).await.unwrap();
    let volume = world.open(store.clone(), &world.disk, false).await.unwrap();
    volume.write(0, pattern(0), true).await.unwrap();
    faults.set_options(FaultOptions { half: 1000, ..FaultOptions::default() });
    volume.write(1 << 20, pattern(1), true).await.unwrap_err();
    drop(volume);
    faults.set_options(FaultOptions::default());
    let disk = world.disk.kill();
    // No checkpoint covers the fence, so that whoever comes next has to find it.
    let options = Options { checkpoint_bytes: 1 << 40, ..options() };
    let volume = world.open_with(store.clone(), &disk, false, options).await.unwrap();
    assert_eq!([read(&volume, 0).await, read(&volume, 1).await], [pattern(0), pattern(1)], "its journal had it");
    volume.flush().await.unwrap();
    drop(volume); // It dies.
    let fences = segments(&world).into_iter().filter(|(key, _)| key.as_str().ends_with(".8")).count();
    assert_eq!(fences, 1, "the fence stands behind the parts of a segment");
    world.check("with a fence beyond the places of a segment").await;
    let other = CrashDisk::new(9);
    world.open(store.clone(), &other, false).await.unwrap_err();
    let volume = world.open(store.clone(), &other, true).await.unwrap();
    assert_eq!([read(&volume, 0).await, read(&volume, 1).await], [pattern(0), pattern(1)]);
    volume.close().await.unwrap();
    world.check("taken over").await;
}

/// The segments in the store, in the order of the log.
fn segments(world: &World) -> Vec<(Key, Bytes)> {
    let mut all = world.memory.objects();
    all.retain(|(key, _)| key.as_str().contains("/segments/"));
    all.sort_by_key(|(key, _)| key.as_str().rsplit('/').next().unwrap().to_owned());
    all
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_was_committed_and_is_cut_later_is_damage_and_not_the_end_of_the_log() {
    for (left, opens) in [(2, true), (3000, false)] {
        let world = World::new(2);
        let store: Arc<dyn Store> = Arc::new(world.memory.clone());
        world.create(&store).await.unwrap();
        let options = Options { upload_window: 1, checkpoint_bytes: 1 << 40, ..options() };
        let volume = world.open_with(store.clone(), &world.disk, false, options.clone()).await.unwrap();
        for n in 0..3 {
            volume.write(n << 20, pattern(n).slice(..64 << 10), true).await.unwrap();
        }
        drop(volume);
        // The fence, and three segments; of the second a bit, or most, is missing.
        let (key, whole) = segments(&world)[2].clone();
        world.memory.replace(&key, whole.slice(..whole.len() / left));
        let opened = world.open_with(store.clone(), &world.disk.kill(), false, options).await;
        match opened {
            Ok(volume) => {
                assert!(opens, "half of its head is not there");
                for n in [0, 2] {
                    assert_eq!(volume.read(n << 20, 64 << 10).await.unwrap().concat(), pattern(n)[..64 << 10]);
                }
                volume.read(1 << 20, 64 << 10).await.unwrap_err();
            }
            Err(error) => {
                assert!(!opens, "{error}");
                assert!(error.to_string().contains("it was whole once: the log goes on after it"), "{error}");
            }
        }
        let report = ashlar::check::check(&store, &world.name, true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.problems[0].object, key.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_was_whole_and_is_cut_later_is_damage() {
    let world = World::new(2);
    let (store, _) = world.tower();
    session(&world, store).await;
    let checkpoints = world.memory.objects().into_iter().filter(|(key, _)| key.as_str().contains("/checkpoints/"));
    let mut checkpoints: Vec<_> = checkpoints.collect();
    let (key, whole) = checkpoints.pop().unwrap();
    world.memory.replace(&key, whole.slice(..whole.len() / 2));
    // With an older one, and all of the log since then, nothing would be lost.
    let older: Vec<_> = checkpoints.into_iter().map(|(key, _)| key).collect();
    world.memory.delete(&older).await.unwrap();
    let error = world.open(Arc::new(world.memory.clone()), &CrashDisk::new(9), true).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains(key.as_str()) && said.contains("it was whole once and is damaged"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_description_of_which_only_parts_came_is_no_volume_and_can_be_created_again() {
    let world = World::new(2);
    let (store, faults) = world.tower();
    faults.set_trap(Counted::Mutations, 1, Trap::CutHalf);
    tokio::select! {
        biased;
        () = faults.isolated() => {}
        _ = world.create(&store) => panic!("it was cut off"),
    }
    let (store, _) = world.tower();
    assert_eq!(volume::names(&*store).await.unwrap(), []);
    let error = world.open(store.clone(), &world.disk, false).await.unwrap_err().to_string();
    assert!(error.contains("create it again"), "{error}");
    world.create(&store).await.unwrap();
    assert_eq!(volume::names(&*store).await.unwrap(), std::slice::from_ref(&world.name));
    let again = world.create(&store).await.unwrap_err();
    assert!(matches!(again, VolumeError::AlreadyExists { .. }), "{again}");
    world.open(store, &world.disk, false).await.unwrap().close().await.unwrap();
}

/// Bits of the beginning of an object that are flipped: of its magic, its kind, the length of its head (it then seems to end before
/// its head does), its salt, its tag, its head.
const BITS: [u64; 7] = [3, 80, 12 * 8 + 7, 14 * 8, 17 * 8, 33 * 8, 49 * 8];

/// A life of a server that must read back what it put, because the reply is lost, and ends without a close; then one of another.
async fn two_lives(world: &World, store: &Arc<dyn Store>, faults: &Faults, when: &str) {
    let volume = world.open(store.clone(), &world.disk, false).await.unwrap_or_else(|e| panic!("{when}: {e}"));
    for n in 0..3 {
        faults.set_trap(Counted::Mutations, faults.mutations() + 1, Trap::FailAfter);
        volume.write(n << 20, pattern(n), true).await.unwrap_or_else(|error| panic!("{when}: write {n}: {error}"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(volume);
    let volume = world.open(store.clone(), &CrashDisk::new(9), true).await.unwrap_or_else(|e| panic!("{when}: {e}"));
    for n in 0..3 {
        assert_eq!(read(&volume, n).await, pattern(n), "{when}: write {n}");
    }
    volume.close().await.unwrap_or_else(|error| panic!("{when}: {error}"));
}

#[tokio::test(start_paused = true)]
async fn whichever_read_is_flipped_on_the_way_the_volume_goes_on_and_nothing_is_lost() {
    for bit in BITS {
        for k in 1.. {
            let when = format!("bit {bit} of the read at operation {k} flipped");
            let world = World::new(1);
            let (store, faults) = world.tower();
            world.create(&store).await.unwrap();
            let begin = faults.operations();
            // Twice in a row.
            faults.set_trap(Counted::Operations, begin + k, Trap::Flip(bit));
            faults.set_trap(Counted::Operations, begin + k + 1, Trap::Flip(bit));
            two_lives(&world, &store, &faults, &when).await;
            world.check(&when).await;
            world.elsewhere(false, &when).await;
            if begin + k > faults.operations() {
                assert!(k > 30, "two lives take more than {k} operations");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_is_flipped_on_the_way_is_neither_torn_nor_unknown() {
    for bit in BITS {
        let world = World::new(2);
        let (store, faults) = world.tower();
        world.create(&store).await.unwrap();
        let volume = world.open(store, &world.disk, false).await.unwrap();
        volume.write(0, pattern(0), true).await.unwrap();
        let other = world.open(Arc::new(world.memory.clone()), &CrashDisk::new(9), true).await.unwrap();
        // The PUT finds its slot taken; what it reads back comes next.
        faults.set_trap(Counted::Operations, faults.operations() + 2, Trap::Flip(bit));
        let error = volume.write(1 << 20, pattern(1).slice(..4096), true).await.unwrap_err();
        assert!(error.to_string().contains("was taken over by server one"), "bit {bit}: {error}");
        assert!(segments(&world).iter().all(|(key, _)| !key.as_str().ends_with(".1")), "bit {bit}: it went on beside");
        assert_eq!(read(&other, 0).await, pattern(0));
        other.close().await.unwrap();
    }
}
