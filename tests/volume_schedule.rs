//! The schedule of a volume: snapshots that are taken and go by themselves, over days of virtual time; and those that nobody deletes before a
//! date.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

#[path = "support/outside.rs"]
mod outside;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::retention::Schedule;
use ashlar::space::{CloneRef, Label};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, Faults, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::clones::{self, Wanted};
use ashlar::volume::{
    self, Budget, CreateOptions, Meta, OpenFlags, Options, Outside, Past, ServerIdentity, Volume, VolumeName,
};
use bytes::Bytes;

const BLOCK: usize = 4096;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// 2026-11-28 02:15:00 UTC.
const BEGIN: u64 = 1_795_832_100_000;

/// A store with one volume, the disk of its server, and a clock.
struct World {
    store: Arc<MemoryStore>,
    faulty: Arc<FaultyStore>,
    faults: Faults,
    disk: CrashDisk,
    clock: Arc<AtomicU64>,
    random: Random,
    options: Options,
}

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

impl World {
    async fn new() -> World {
        let (store, random) = (Arc::new(MemoryStore::default()), Random::seeded(1));
        let clock = Arc::new(AtomicU64::new(BEGIN));
        let options = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::Manual(clock.clone()), &name(), options).await.unwrap();
        let faulty = Arc::new(FaultyStore::new(store.clone(), FaultOptions::default(), Random::seeded(1)));
        let (faults, disk) = (faulty.faults(), CrashDisk::new(1));
        World { store, faulty, faults, disk, clock, random, options: Options::default() }
    }

    /// Puts a description with that schedule.
    async fn schedule(&self, schedule: Option<(u64, &str)>) {
        let found = volume::description::load(&*self.store, &name()).await.unwrap();
        let schedule =
            schedule.map(|(every, keep)| Schedule::new(Duration::from_secs(every), keep.parse().unwrap()).unwrap());
        let meta = Meta { schedule, ..found.meta.clone() };
        found.replace(&*self.store, &self.random, &meta, None).await.unwrap();
    }

    async fn scheduled(every: u64, keep: &str) -> World {
        let world = World::new().await;
        world.schedule(Some((every, keep))).await;
        world
    }

    async fn open(&self) -> Arc<Volume> {
        self.open_by(1, Arc::new(self.disk.clone()), OpenFlags::default()).await
    }

    async fn open_by(&self, server: u128, disk: Arc<dyn Disk>, flags: OpenFlags) -> Arc<Volume> {
        let outside = Outside {
            cache: Arc::new(BlockCache::in_memory(1 << 20)),
            clock: Clock::Manual(self.clock.clone()),
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(server), name: server.to_string() },
            ..outside::plain(self.faulty.clone(), disk, self.random.clone())
        };
        Volume::open(outside, &name(), self.options.clone(), journal::Options::default(), flags).await.unwrap()
    }

    /// Both clocks go on, the wall's in steps of a second.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.clock.fetch_add(1000, Ordering::Relaxed);
        }
    }

    async fn first_bytes_of(&self, snapshot: &str) -> Vec<u8> {
        let cache = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let (budget, secrets) = (Budget::default(), Secrets::default());
        let past = Past::open(self.store.clone(), &name(), snapshot, &self.options, &budget, cache, &secrets).await;
        past.unwrap().read(0, 8).await.unwrap().concat()
    }

    /// Makes a clone of a snapshot.
    async fn clone_of(&self, parent: &Volume, snapshot: &str, to: &str) -> CloneRef {
        let (clock, store) = (Clock::Manual(self.clock.clone()), self.store.clone() as Arc<dyn Store>);
        let to = VolumeName::new(to).unwrap();
        let clone = clones::plan(&*store, &self.random, &to).await.unwrap();
        let shown = parent.register_clone(Some(snapshot), clock.unix_millis(), clone.clone()).await.unwrap();
        let source = Source::of(store, &name(), &self.options, None, &Secrets::default()).await.unwrap();
        let (size, block_size) = (source.meta.size, source.meta.block_size);
        let wanted = Wanted { name: to, options: CreateOptions { size, block_size, ..CreateOptions::default() } };
        clones::make(&source, &self.random, &clock, wanted, (&clone, shown.seq)).await.unwrap();
        clone
    }

    async fn delete(&self, clone: &str) {
        let (clock, store) = (Clock::Manual(self.clock.clone()), self.store.clone() as Arc<dyn Store>);
        let server = ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "1".into() };
        let (clone, secrets) = (VolumeName::new(clone).unwrap(), Secrets::default());
        volume::delete(&store, &self.random, &clock, &server, &clone, false, &secrets, &|_| ()).await.unwrap();
    }

    async fn is_clean(&self) {
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
}

/// The number is in the first bytes.
async fn write(volume: &Volume, number: u64) {
    let mut block = vec![0; BLOCK];
    block[..8].copy_from_slice(&number.to_le_bytes());
    volume.write(0, block.into(), false).await.unwrap();
}

/// Names and times, oldest first.
fn snapshots(volume: &Volume) -> Vec<(String, u64)> {
    volume.snapshots().into_iter().map(|kept| (kept.label.name, kept.label.taken_unix_millis)).collect()
}

fn trouble(volume: &Volume) -> Option<String> {
    volume.scheduled().unwrap().trouble
}

fn by_hand(name: &str) -> Label {
    Label { name: name.into(), taken_unix_millis: 1, keep_until_unix_millis: 0, ..Label::default() }
}

/// What clones show stays, beside what the policy wants. Once they are gone, it is the policy's again, or goes, if somebody deleted it.
#[tokio::test(start_paused = true)]
async fn clones_keep_automatic_snapshots() {
    let world = World::scheduled(MINUTE, "2 x 1m").await;
    let volume = world.open().await;
    let mut names = Vec::new();
    for number in 0..2 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
        names.push(snapshots(&volume).pop().unwrap().0);
    }
    let (named, deleted) =
        (world.clone_of(&volume, &names[0], "a").await, world.clone_of(&volume, &names[1], "b").await);
    let automatic = |volume: &Volume| volume.scheduled().unwrap().automatic;
    for number in 2..9 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    let there = snapshots(&volume).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!((there.len(), &there[..2]), (4, &names[..]), "two that clones show, and the two newest");
    assert_eq!(volume.delete_snapshot(&names[1]).await.unwrap(), ["b"]);
    write(&volume, 9).await;
    world.pass(MINUTE).await;
    assert_eq!((volume.snapshots().len(), automatic(&volume)), (4, 3), "one has no name any more");
    assert_eq!((world.first_bytes_of(&names[0]).await, trouble(&volume)), (0_u64.to_le_bytes().to_vec(), None));

    for clone in [named, deleted] {
        world.delete(&clone.name).await;
        volume.forget_gone_clone(clone.uuid).await.unwrap();
    }
    assert!(!volume.snapshots().iter().any(|kept| kept.label.is_hidden()), "what was deleted has gone");
    write(&volume, 10).await;
    world.pass(MINUTE).await;
    let there = snapshots(&volume).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert!(there.len() == 2 && !there.contains(&names[0]), "the policy lets the other one go: {there:?}");
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// Somebody writes once a minute; the server stops, or dies, now and then. Each minute gets its snapshot, and those stay that the policy
/// names, with what was in them.
#[tokio::test(start_paused = true)]
async fn a_busy_day() {
    const KEEP: &str = "10 x 1m, 6 x 1h, 2 x 12h";
    let mut world = World::scheduled(MINUTE, KEEP).await;
    let mut volume = world.open().await;
    // Between the times at which snapshots are due.
    world.pass(30).await;
    let (mut taken, mut held) = (Vec::new(), BTreeMap::new());
    for minute in 0..DAY / MINUTE {
        write(&volume, minute).await;
        world.pass(MINUTE).await;
        let newest = snapshots(&volume).pop().unwrap();
        held.insert(newest.0.clone(), minute);
        taken.push(newest);
        assert_eq!(held.len(), taken.len(), "minute {minute} got none");
        assert!(snapshots(&volume).len() <= 18);
        if minute % 97 == 96 {
            match minute % 2 {
                0 => volume.close().await.unwrap(),
                _ => world.disk = world.disk.kill(),
            }
            drop(volume);
            volume = world.open().await;
        }
    }
    let times: Vec<u64> = taken.iter().map(|(_, at)| *at).collect();
    let stays = KEEP.parse::<ashlar::retention::Keep>().unwrap().stays(&times);
    let expected: Vec<_> = taken.into_iter().zip(stays).filter_map(|(one, stays)| stays.then_some(one)).collect();
    assert_eq!(snapshots(&volume), expected);
    assert_eq!(volume.scheduled().unwrap().automatic, expected.len() as u64);
    for (name, _) in expected {
        assert_eq!(world.first_bytes_of(&name).await, held[&name].to_le_bytes()[..], "{name}");
    }
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// Nobody writes: nothing is asked of the store, and nothing goes for time that passes; also not after a restart.
#[tokio::test(start_paused = true)]
async fn an_idle_day() {
    let world = World::scheduled(MINUTE, "3 x 1m").await;
    let volume = world.open().await;
    world.pass(HOUR).await;
    assert_eq!(snapshots(&volume), [], "there is nothing yet");
    for number in 0..2 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    world.pass(HOUR).await;
    let there = snapshots(&volume);
    assert_eq!(there.len(), 2);
    let asked = world.faults.operations();
    world.pass(DAY).await;
    assert_eq!(world.faults.operations(), asked, "an idle volume asks nothing");
    assert_eq!(snapshots(&volume), there);
    volume.close().await.unwrap();
    for _ in 0..2 {
        let volume = world.open().await;
        world.pass(HOUR).await;
        assert_eq!(snapshots(&volume), there, "what is there is known after a restart");
        volume.close().await.unwrap();
    }
    // What the journal brought back counts as a change.
    let volume = world.open().await;
    write(&volume, 2).await;
    drop(volume);
    let world = World { disk: world.disk.kill(), ..world };
    let volume = world.open().await;
    world.pass(2 * MINUTE).await;
    assert_eq!(snapshots(&volume).len(), 3);
}

/// A server that was displaced takes none any more, and its successor goes on.
#[tokio::test(start_paused = true)]
async fn a_server_that_was_displaced_takes_none() {
    let world = World::scheduled(MINUTE, "100").await;
    let first = world.open().await;
    world.pass(30).await;
    for number in 0..5 {
        write(&first, number).await;
        world.pass(MINUTE).await;
    }
    let before = snapshots(&first);
    assert_eq!(before.len(), 5);
    let flags = OpenFlags { takeover: true, ..OpenFlags::default() };
    let second = world.open_by(2, Arc::new(CrashDisk::new(2)), flags).await;
    let block = Bytes::from(vec![9; BLOCK]);
    assert!(first.write(0, block.clone(), true).await.is_err());
    for number in 5..10 {
        let _ = first.write(0, block.clone(), false).await;
        write(&second, number).await;
        world.pass(MINUTE).await;
    }
    assert_eq!(snapshots(&first), before);
    assert_eq!(first.scheduled().unwrap().trouble, None, "it is not the schedule that says so");
    let after = snapshots(&second);
    assert_eq!((after.len(), &after[..5]), (10, &before[..]));
    assert_eq!(world.first_bytes_of(&after[9].0).await, 9_u64.to_le_bytes()[..]);
    second.close().await.unwrap();
    world.is_clean().await;
}

/// The store is away for an hour: one snapshot waits for it, and those that were due meanwhile are left out.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_an_hour() {
    let world = World::scheduled(MINUTE, "1000").await;
    let volume = world.open().await;
    world.pass(30).await;
    write(&volume, 0).await;
    world.pass(MINUTE).await;
    assert_eq!(snapshots(&volume).len(), 1);
    world.faults.set_options(FaultOptions { refuse: 1000, ..FaultOptions::default() });
    for number in 0..60 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    assert_eq!(snapshots(&volume).len(), 1);
    world.faults.set_options(FaultOptions::default());
    world.pass(30).await;
    assert_eq!(snapshots(&volume).len(), 2, "the one that waited");
    for number in 60..65 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    let there = snapshots(&volume).len();
    // What came while the one was on its way is one more.
    assert!((7..=8).contains(&there), "{there}");
    assert_eq!(trouble(&volume), None);
}

/// After an opening the newest snapshot is asked up to where it goes: if the store does not say, that is told, and tried again.
#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_asked_again() {
    let world = World::scheduled(MINUTE, "1000").await;
    let volume = world.open().await;
    write(&volume, 0).await;
    world.pass(2 * MINUTE).await;
    volume.close().await.unwrap();
    let volume = world.open().await;
    let there = snapshots(&volume);
    world.faults.set_options(FaultOptions { refuse: 1000, ..FaultOptions::default() });
    world.pass(10 * MINUTE).await;
    let why = trouble(&volume).unwrap();
    assert!(why.contains("reading v/"), "{why}");
    world.faults.set_options(FaultOptions::default());
    world.pass(2 * MINUTE).await;
    assert_eq!((trouble(&volume), snapshots(&volume)), (None, there));
}

/// A volume has no more snapshots than it may have, whoever takes them.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_full_says_so() {
    let mut world = World::scheduled(MINUTE, "2, 9 x 1m").await;
    world.options.max_snapshots = 4;
    let volume = world.open().await;
    world.pass(30).await;
    volume.take_snapshot(by_hand("mine")).await.unwrap();
    for number in 0..6 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    assert_eq!(snapshots(&volume).len(), 4);
    let why = "volume v has as many snapshots as it may have (volume.max_snapshots is 4); delete some, or keep fewer";
    assert_eq!(trouble(&volume).as_deref(), Some(why));
    assert_eq!(volume.take_snapshot(by_hand("more")).await.unwrap_err().to_string(), why);
    volume.delete_snapshot("mine").await.unwrap();
    world.pass(MINUTE).await;
    assert_eq!((snapshots(&volume).len(), trouble(&volume)), (4, None));
}

/// The schedule is changed while the volume is open: it begins, keeps less, and ends. What is not automatic stays.
#[tokio::test(start_paused = true)]
async fn a_schedule_changes_under_way() {
    let world = World::new().await;
    let volume = world.open().await;
    world.pass(HOUR).await;
    write(&volume, 0).await;
    world.pass(HOUR).await;
    assert_eq!((volume.scheduled(), snapshots(&volume)), (None, vec![]));
    world.schedule(Some((HOUR, "9"))).await;
    volume.reload().await.unwrap();
    world.pass(1).await;
    assert_eq!(snapshots(&volume).len(), 1, "the first one comes at once");
    for number in 1..7 {
        write(&volume, number).await;
        world.pass(HOUR).await;
    }
    volume.take_snapshot(by_hand("mine")).await.unwrap();
    let there: Vec<String> = snapshots(&volume).into_iter().map(|(name, _)| name).collect();
    assert_eq!(there.len(), 8);
    volume.rename_snapshot(&there[1], "saved").await.unwrap();
    // Nobody writes, and fewer are to be kept all the same.
    world.schedule(Some((2 * HOUR, "2"))).await;
    volume.reload().await.unwrap();
    world.pass(2 * HOUR).await;
    let left: Vec<String> = snapshots(&volume).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["saved", &there[5], &there[6], "mine"]);
    world.schedule(None).await;
    volume.reload().await.unwrap();
    write(&volume, 7).await;
    world.pass(DAY).await;
    assert_eq!((volume.scheduled(), snapshots(&volume).len()), (None, 4));
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// Names that a schedule gives are its own: what somebody takes by hand never goes because of its name.
#[tokio::test(start_paused = true)]
async fn nobody_else_names_one_as_a_schedule_does() {
    let world = World::scheduled(MINUTE, "9").await;
    let volume = world.open().await;
    write(&volume, 0).await;
    world.pass(MINUTE).await;
    volume.take_snapshot(by_hand("mine")).await.unwrap();
    for name in ["auto-20261128T021500Z", "auto-mine"] {
        let why = format!(
            "a snapshot cannot be named {name:?}: names that begin with \"auto-\" are of automatic snapshots, which go by themselves; choose another"
        );
        assert_eq!(volume.take_snapshot(by_hand(name)).await.unwrap_err().to_string(), why);
        assert_eq!(volume.rename_snapshot("mine", name).await.unwrap_err().to_string(), why);
    }
    assert_eq!(snapshots(&volume).len(), 2);
}

/// Somebody has one kept until a date: neither a name, nor a policy, nor an hour of trying brings that nearer.
#[tokio::test(start_paused = true)]
async fn nobody_deletes_a_snapshot_before_its_date() {
    let world = World::scheduled(MINUTE, "1").await;
    let volume = world.open().await;
    let until = |seconds: u64| BEGIN + seconds * 1000;
    let error = |done: Result<(), volume::VolumeError>| done.unwrap_err().to_string();
    let label = Label {
        name: "mine".into(),
        taken_unix_millis: BEGIN,
        keep_until_unix_millis: until(HOUR),
        ..Label::default()
    };
    let over = Label { keep_until_unix_millis: BEGIN, ..label.clone() };
    let refused = volume.take_snapshot(over).await.unwrap_err().to_string();
    assert_eq!(refused, "a snapshot cannot be kept until 2026-11-28T02:15:00Z, which is over: give a time to come");
    volume.take_snapshot(label).await.unwrap();
    write(&volume, 1).await;
    world.pass(MINUTE).await;
    let automatic = snapshots(&volume)[1].0.clone();
    volume.keep_snapshot_until(&automatic, until(2 * HOUR)).await.unwrap();
    let until_one = "snapshot mine of volume v is to be kept until 2026-11-28T03:15:00Z: ";
    assert_eq!(
        error(volume.delete_snapshot("mine").await.map(drop)),
        format!("{until_one}nobody can delete it before")
    );
    let earlier = volume.keep_snapshot_until("mine", until(HOUR - 1)).await;
    assert_eq!(error(earlier), format!("{until_one}that can be made later, not earlier"));
    volume.keep_snapshot_until("mine", until(HOUR)).await.unwrap();
    volume.rename_snapshot("mine", "ours").await.unwrap();
    assert!(error(volume.delete_snapshot("ours").await.map(drop)).contains("nobody can delete it before"));
    volume.keep_snapshot_until("ours", until(HOUR + 5)).await.unwrap();
    // The policy wants one, and there are new ones all the time.
    for number in 2..10 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
    }
    let names = |volume: &Volume| snapshots(volume).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!((names(&volume).len(), &names(&volume)[..2]), (3, &["ours".to_owned(), automatic.clone()][..]));
    volume.close().await.unwrap();
    let volume = world.open().await;
    world.pass(HOUR - 9 * MINUTE + 4).await;
    assert!(volume.delete_snapshot("ours").await.is_err());
    world.pass(1).await;
    volume.delete_snapshot("ours").await.unwrap();
    assert_eq!(names(&volume)[0], automatic);
    // And the other goes by itself, when its time has come.
    world.pass(HOUR).await;
    assert_eq!(names(&volume).len(), 1);
    volume.close().await.unwrap();
    world.is_clean().await;
}

/// A schedule that keeps each for ten minutes, and the policy says one: there are ten, the description is changed seldom, and what was taken
/// stays its time when the schedule is another one.
#[tokio::test(start_paused = true)]
async fn a_schedule_keeps_each_for_a_while() {
    let world = World::new().await;
    let schedule = Schedule::new(Duration::from_secs(MINUTE), "1".parse().unwrap()).unwrap();
    let keeping = schedule.clone().kept_for(Some(Duration::from_secs(10 * MINUTE))).unwrap();
    let set = async |schedule: &Schedule| {
        let found = volume::description::load(&*world.store, &name()).await.unwrap();
        let meta = Meta { schedule: Some(schedule.clone()), ..found.meta.clone() };
        found.replace(&*world.store, &world.random, &meta, None).await.unwrap();
    };
    set(&keeping).await;
    let volume = world.open().await;
    world.pass(30).await;
    let begun = volume::description::load(&*world.store, &name()).await.unwrap().number;
    for number in 0..30 {
        write(&volume, number).await;
        world.pass(MINUTE).await;
        let there = snapshots(&volume).len();
        assert_eq!(there, 10.min(number as usize + 1), "after {number} minutes");
    }
    let found = volume::description::load(&*world.store, &name()).await.unwrap();
    assert_eq!(found.number, begun + 1, "one change of the description is enough for a day");
    let newest = volume.snapshots().pop().unwrap();
    assert!(found.meta.keep_until_unix_millis >= newest.label.keep_until_unix_millis);
    assert!(volume.delete_snapshot(&newest.label.name).await.is_err());
    set(&schedule).await;
    volume.reload().await.unwrap();
    world.pass(2 * MINUTE).await;
    assert!(snapshots(&volume).len() > 5, "what was taken stays its time");
    world.pass(10 * MINUTE).await;
    assert_eq!(snapshots(&volume).len(), 1);
}

/// The wall clock jumps: a minute has one snapshot all the same, and as many stay.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps() {
    let world = World::scheduled(MINUTE, "5 x 1m, 3 x 1h").await;
    let mut volume = world.open().await;
    world.pass(30).await;
    let mut names = BTreeSet::new();
    for minute in 0..40 {
        // A year ahead, and all the way back; an hour back and forth each minute.
        match minute {
            10 => world.clock.fetch_add(365 * DAY * 1000, Ordering::Relaxed),
            20 => world.clock.swap(BEGIN, Ordering::Relaxed),
            30.. if minute % 2 == 0 => world.clock.fetch_add(HOUR * 1000, Ordering::Relaxed),
            30.. => world.clock.fetch_sub(HOUR * 1000, Ordering::Relaxed),
            _ => 0,
        };
        write(&volume, minute).await;
        world.pass(MINUTE).await;
        let there = snapshots(&volume);
        let fresh = there.iter().filter(|(name, _)| names.insert(name.clone())).count();
        assert_eq!(fresh, 1, "minute {minute}: {there:?}");
        assert!(there.len() >= 5.min(minute as usize + 1), "minute {minute}: {there:?}");
        assert_eq!(world.first_bytes_of(&there.last().unwrap().0).await, minute.to_le_bytes()[..]);
    }
    // A server that starts again and again while its clock is behind takes none each time.
    world.clock.store(BEGIN - DAY * 1000, Ordering::Relaxed);
    let there = snapshots(&volume);
    for number in 0..10 {
        volume.close().await.unwrap();
        drop(volume);
        volume = world.open().await;
        write(&volume, number).await;
        world.pass(5).await;
    }
    assert_eq!(snapshots(&volume), there);
}

/// What `ashlar set` says that a snapshot costs is what it costs, with all that is written for it and what goes: two PUTs and two GETs at most.
#[tokio::test(start_paused = true)]
async fn a_snapshot_costs_what_is_said() {
    let world = World::scheduled(HOUR, "3").await;
    let volume = world.open().await;
    // Short of the time at which one is due, so that nothing else puts what was written.
    world.pass(HOUR - 2).await;
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for number in 0..48 {
        let before = volume.store_requests().snapshot();
        for block in 0..8 {
            let at = (number * 31 + block * 17) % 256;
            volume.write(at * BLOCK as u64, Bytes::from(vec![number as u8 + 1; BLOCK]), false).await.unwrap();
        }
        world.pass(HOUR).await;
        let after = volume.store_requests().snapshot();
        assert_eq!(snapshots(&volume).len(), 3.min(number as usize + 1));
        puts.push(after.put.count - before.put.count);
        gets.push(after.get.count - before.get.count);
    }
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    assert_eq!(puts.iter().max(), Some(&2), "{puts:?}");
    assert!(sum(&gets) <= 2 * gets.len() as u64, "{gets:?}");
}
