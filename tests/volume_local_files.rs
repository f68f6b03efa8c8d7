//! What becomes of a volume when the files of its server's state directory are damaged, vanish, or were copied: never wrong data,
//! never two servers that both believe themselves the writer, and no loss of what was promised that is not said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::crash::{CrashDisk, DiskFaults};
use ashlar::format::segment::Durability;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::memory::MemoryStore;
use ashlar::volume::{self, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeError, VolumeName};
use bytes::Bytes;

const BLOCK: u64 = 4096;

struct World {
    store: Arc<dyn Store>,
    random: Random,
    options: Options,
}

impl World {
    async fn new(durability: Durability) -> World {
        let (store, random) = (Arc::new(MemoryStore::default()), Random::seeded(7));
        let create = CreateOptions { size: 64 << 20, ..CreateOptions::default() };
        volume::create(&*store, &random, &Clock::System, &name(), create).await.unwrap();
        // Nothing gets into the store by time alone, unless a test waits for it.
        let options = Options { durability, writeback_delay: Duration::from_secs(3600), ..Options::default() };
        World { store, random, options }
    }

    async fn open(&self, disk: &CrashDisk, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            clock: Clock::Manual(Arc::default()),
            ..outside::plain(self.store.clone(), Arc::new(disk.clone()), self.random.clone())
        };
        // Small files, so that there are several.
        let journal = journal::Options { file_bytes: 32 << 10, ..journal::Options::default() };
        Volume::open(outside, &name(), self.options.clone(), journal, flags).await
    }

    async fn refused(&self, disk: &CrashDisk, flags: OpenFlags) -> String {
        self.open(disk, flags).await.unwrap_err().to_string()
    }

    /// A server that wrote blocks 0 to 29, flushed, and was killed: none of them is in the store.
    async fn killed(&self) -> CrashDisk {
        let disk = CrashDisk::new(1);
        let volume = self.open(&disk, NONE).await.unwrap();
        for i in 0..30 {
            volume.write(i * BLOCK, data(i), self.options.durability == Durability::Journal).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(volume);
        disk.kill()
    }
}

const NONE: OpenFlags = OpenFlags {
    takeover: false,
    accept_loss: false,
    drop_journal: false,
    accept_rollback: false,
    accept_log_loss: false,
    breaks_line: false,
};
const TAKEOVER: OpenFlags = OpenFlags { takeover: true, ..NONE };
const ACCEPT_LOSS: OpenFlags = OpenFlags { accept_loss: true, ..NONE };
const ACCEPT_ROLLBACK: OpenFlags = OpenFlags { accept_rollback: true, ..NONE };
const DROP_JOURNAL: OpenFlags = OpenFlags { drop_journal: true, ..NONE };

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

fn data(seed: u64) -> Bytes {
    vec![seed as u8 + 1; BLOCK as usize].into()
}

async fn block(volume: &Volume, index: u64) -> u8 {
    let read = volume.read(index * BLOCK, BLOCK as u32).await.unwrap().concat();
    assert!(read.iter().all(|byte| *byte == read[0]), "a block is one write or none");
    read[0]
}

/// How many of the blocks 0 to 29 are there; what is there is a prefix of what was written.
async fn prefix(volume: &Volume) -> u64 {
    let mut len = 0;
    for i in 0..30 {
        match block(volume, i).await {
            0 => {}
            byte => {
                assert_eq!((byte, len), (i as u8 + 1, i), "a hole before block {i}");
                len = i + 1;
            }
        }
    }
    len
}

async fn journal_files(disk: &CrashDisk) -> Vec<String> {
    let mut names = disk.list("").await.unwrap();
    names.retain(|name| name.ends_with(".journal"));
    names
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_read_is_set_aside_by_the_flag_that_its_message_names() {
    for (durability, unreadable) in
        [(Durability::Store, false), (Durability::Store, true), (Durability::Journal, false)]
    {
        let world = World::new(durability).await;
        let disk = world.killed().await;
        let files = journal_files(&disk).await;
        for name in &files {
            assert!(disk.damage(name, 80, 1));
        }
        if unreadable {
            disk.break_reads_of(&files[1]);
        }
        let before = disk.stored_bytes();
        let refused = world.refused(&disk, NONE).await;
        assert!(refused.contains("--drop-journal") && refused.contains("/crash-disk"), "{refused}");
        // It may have been another server's: each danger has its own flag.
        let refused = world.refused(&disk, DROP_JOURNAL).await;
        assert!(refused.contains("--takeover"), "{refused}");
        let mut flags = OpenFlags { takeover: true, ..DROP_JOURNAL };
        if durability == Durability::Journal {
            let refused = world.refused(&disk, flags).await;
            assert!(refused.contains("--accept-loss"), "{refused}");
            flags.accept_loss = true;
        }
        assert!(disk.stored_bytes() == before && journal_files(&disk).await == files, "a refusal touches nothing");
        let volume = world.open(&disk, flags).await.unwrap();
        assert_eq!(prefix(&volume).await, 0);
        assert_eq!(disk.list("dropped-1").await.unwrap(), files, "what was dropped is kept");
        volume.close().await.unwrap();
        world.open(&disk, NONE).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_synced_record_that_the_disk_damaged_is_owed_and_not_a_torn_tail() {
    let world = World::new(Durability::Journal).await;
    let disk = world.killed().await;
    let files = journal_files(&disk).await;
    assert!(files.len() > 4, "{files:?}");
    // The second record of each file that has records.
    let mut refusals = 0;
    for name in &files[1..] {
        for power_loss in [false, true] {
            let copy = disk.copy(3);
            copy.damage(name, 4096 + 4160 + 70, 1);
            let copy = if power_loss { copy.crash() } else { copy };
            match world.open(&copy, NONE).await {
                Ok(_) => panic!("{name}: opened"),
                Err(VolumeError::JournalCut { .. }) => refusals += 1,
                // A spare holds nothing; the fence that the first opening put is no matter here.
                Err(other) => panic!("{name}: {other}"),
            }
            if refusals == 6 {
                return;
            }
        }
    }
}

/// The store has the first of many segments, and the server dies: what the others would have brought is in the journal.
#[tokio::test(start_paused = true)]
async fn the_journal_keeps_a_change_until_the_store_has_it() {
    let mut world = World::new(Durability::Store).await;
    let near = world.store.clone();
    let second = FaultOptions { delay_min: Duration::from_secs(1), ..FaultOptions::default() };
    world.store = Arc::new(FaultyStore::new(near.clone(), second, Random::seeded(3)));
    (world.options.segment_size, world.options.upload_window) = (64 << 10, 1);
    let disk = CrashDisk::new(1);
    let volume = world.open(&disk, NONE).await.unwrap();
    for i in 0..30 {
        volume.write(i * BLOCK, data(i), false).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let segments = ashlar::store::list_all(&*near, "").await.unwrap();
    let segments = segments.iter().filter(|entry| entry.key.as_str().contains("/segments/")).count();
    assert_eq!(segments, 2, "the fence and one segment");
    drop(volume);
    world.store = near;
    let volume = world.open(&disk.kill(), NONE).await.unwrap();
    assert_eq!(prefix(&volume).await, 30);
}

/// With durability "journal" the disk has what a FLUSH covered, not only its cache.
#[tokio::test(start_paused = true)]
async fn what_was_flushed_to_the_journal_survives_the_death_of_the_host() {
    for seed in 0..8 {
        let world = World::new(Durability::Journal).await;
        let disk = CrashDisk::new(seed);
        let volume = world.open(&disk, NONE).await.unwrap();
        for i in 0..30 {
            volume.write(i * BLOCK, data(i), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        drop(volume);
        let volume = world.open(&disk.crash(), NONE).await.unwrap();
        assert_eq!(prefix(&volume).await, 30, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_accepted_loss_the_volume_goes_on_with_what_is_there_and_asks_no_more() {
    let world = World::new(Durability::Journal).await;
    let disk = world.killed().await;
    let files = journal_files(&disk).await;
    assert!(disk.damage(&files[2], 4096 + 4160 + 70, 1));
    let refused = world.refused(&disk, NONE).await;
    let words = ["has lost changes that were on the disk: it ends at change ", "does not verify", "--accept-loss"];
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    let refused = world.refused(&disk, OpenFlags { drop_journal: true, ..ACCEPT_LOSS }).await;
    assert!(refused.starts_with("--drop-journal was given") && refused.contains("leave it out"), "{refused}");
    let volume = world.open(&disk, ACCEPT_LOSS).await.unwrap();
    let there = prefix(&volume).await;
    assert!((1..30).contains(&there), "{there}");
    volume.write(there * BLOCK, data(there), true).await.unwrap();
    drop(volume);
    let disk = disk.crash();
    let volume = world.open(&disk, NONE).await.unwrap();
    assert_eq!(prefix(&volume).await, there + 1);
}

#[tokio::test(start_paused = true)]
async fn whichever_local_file_vanishes_or_is_cut_what_was_flushed_is_there_or_asked_for() {
    for durability in [Durability::Journal, Durability::Store] {
        let base = World::new(durability).await;
        let disk = base.killed().await;
        let mut said = 0;
        for name in disk.list("").await.unwrap() {
            for cut in [None, Some(0), Some(100), Some(5000)] {
                // The store as it was, too: each time it is the first opening.
                let store = Arc::new(MemoryStore::default());
                for entry in ashlar::store::list_all(&*base.store, "").await.unwrap() {
                    store.put(&entry.key, vec![base.store.get(&entry.key).await.unwrap()]).await.unwrap();
                }
                let world = World { store, random: Random::seeded(8), options: base.options.clone() };
                let copy = disk.copy(4);
                match cut {
                    None => copy.remove(&name).await.unwrap(),
                    Some(len) if copy.cut(&name, len) => {}
                    Some(_) => continue,
                }
                let mut opened = world.open(&copy, NONE).await;
                if matches!(opened, Err(VolumeError::SeenUnreadable { .. })) {
                    assert!(name.starts_with("seen-"), "{name}");
                    opened = world.open(&copy, ACCEPT_ROLLBACK).await;
                }
                match opened {
                    Ok(volume) => {
                        let there = prefix(&volume).await;
                        assert!(
                            durability == Durability::Store || there == 30,
                            "{name} cut to {cut:?}: {there} are there"
                        );
                    }
                    Err(VolumeError::JournalCut { .. } | VolumeError::StoreBehind { .. }) => said += 1,
                    Err(other) => panic!("{name} cut to {cut:?}: {other}"),
                }
            }
        }
        assert!(said > 3, "{said}");
    }
}

/// An older copy of the store would pass for the present one, be the volume encrypted or not. What the flag accepts is that, once; a
/// journal that is here is replayed all the same, and a client's device does not go on as if nothing had been.
#[tokio::test(start_paused = true)]
async fn of_a_volume_whose_past_cannot_be_read_the_present_is_not_taken_on_trust() {
    for unreadable in [false, true] {
        let world = World::new(Durability::Journal).await;
        let disk = world.killed().await;
        let seen = disk.list("").await.unwrap().into_iter().find(|name| name.starts_with("seen-")).unwrap();
        match unreadable {
            true => disk.break_reads_of(&seen),
            false => assert!(disk.damage(&seen, 10, 1)),
        }
        let before = ashlar::store::list_all(&*world.store, "").await.unwrap();
        let refused = world.refused(&disk, NONE).await;
        assert!(refused.contains(&seen) && refused.contains("open with --accept-rollback"), "{refused}");
        assert_eq!(ashlar::store::list_all(&*world.store, "").await.unwrap(), before, "a refusal touches nothing");
        let volume = world.open(&disk, ACCEPT_ROLLBACK).await.unwrap();
        assert_eq!(prefix(&volume).await, 30);
        let (epoch, _, since) = volume.line();
        assert_eq!(since, epoch, "nobody knows of what was acknowledged before");
        volume.close().await.unwrap();
        if !unreadable {
            // What is seen now can be read.
            world.open(&disk, NONE).await.unwrap().close().await.unwrap();
            assert!(world.refused(&disk, ACCEPT_ROLLBACK).await.contains("leave it out"));
        }
    }
}

/// A clone of a machine, a backup that was put back: two servers over copies of one directory.
#[tokio::test(start_paused = true)]
async fn of_two_servers_over_copies_of_one_directory_one_goes_on_and_the_other_is_refused_in_words() {
    for durability in [Durability::Store, Durability::Journal] {
        let world = World::new(durability).await;
        let disk = world.killed().await;
        let copy = disk.copy(5);
        let first = world.open(&disk, NONE).await.unwrap();
        assert_eq!(prefix(&first).await, 30);
        first.write(0, data(100), true).await.unwrap();
        let refused = world.refused(&copy, NONE).await;
        assert!(refused.contains("has this server's own identity: there is a copy"), "{refused}");
        assert!(refused.contains("--drop-journal"), "{refused}");
        first.write(BLOCK, data(101), true).await.unwrap();
        assert_eq!(block(&first, 0).await, 101);
        // Also when the first is gone: the journal of the copy is behind.
        drop(first);
        let disk = disk.kill();
        assert!(world.refused(&copy, NONE).await.contains("a copy"));
        let first = world.open(&disk, NONE).await.unwrap();
        assert_eq!((block(&first, 0).await, block(&first, 1).await), (101, 102));
    }
}

/// A state directory that two hosts share, where a lock does not reach across: the second takes the volume from the first, and the first
/// can never commit again, however late it tries.
#[tokio::test(start_paused = true)]
async fn a_server_whose_directory_another_one_resumed_never_believes_itself_committed() {
    for copied in [false, true] {
        let mut world = World::new(Durability::Store).await;
        (world.options.checkpoint_interval, world.options.writeback_delay) =
            (Duration::from_secs(1), Duration::from_secs(60));
        let disk = CrashDisk::new(1);
        let first = world.open(&disk, NONE).await.unwrap();
        first.write(0, data(1), true).await.unwrap();
        // It has nothing left to do, and makes no request by which it could find out.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let theirs = if copied { disk.copy(6) } else { disk.clone() };
        let second = world.open(&theirs, NONE).await.unwrap();
        second.write(0, data(2), true).await.unwrap();
        // Long enough for checkpoints, and for what is dead to be deleted.
        tokio::time::sleep(Duration::from_secs(600)).await;
        second.write(BLOCK, data(3), true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        second.close().await.unwrap();
        let error = first.write(0, data(4), true).await.unwrap_err().to_string();
        assert!(error.contains("was taken over by"), "{error}");
        drop((first, second));
        let third = world.open(&CrashDisk::new(9), NONE).await.unwrap();
        assert_eq!((block(&third, 0).await, block(&third, 1).await), (3, 4));
        third.close().await.unwrap();
        let report = ashlar::check::check(&world.store, &name(), true, &|_, _| {}, &Secrets::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flag_is_refused_where_its_danger_is_not_there() {
    let world = World::new(Durability::Store).await;
    let disk = CrashDisk::new(1);
    let rollback = OpenFlags { accept_rollback: true, ..NONE };
    for (flags, flag) in [
        (TAKEOVER, "--takeover"),
        (ACCEPT_LOSS, "--accept-loss"),
        (DROP_JOURNAL, "--drop-journal"),
        (rollback, "--accept-rollback"),
    ] {
        let refused = world.refused(&disk, flags).await;
        assert!(refused.starts_with(&format!("{flag} was given for volume \"v\", but ")), "{refused}");
    }
    world.open(&disk, NONE).await.unwrap();
}

/// A volume that ended is opened again while clients still hold the old one: nothing of the old journal may be under way then.
#[tokio::test(start_paused = true)]
async fn a_volume_that_ended_leaves_no_journal_at_work_once_it_is_closed() {
    let world = World::new(Durability::Store).await;
    let disk = CrashDisk::new(1);
    let volume = world.open(&disk, NONE).await.unwrap();
    volume.write(0, data(0), true).await.unwrap();
    let second = world.open(&CrashDisk::new(2), TAKEOVER).await.unwrap();
    // Its journal has a new file to make, and the disk takes its time.
    disk.set_faults(DiskFaults { delay_max: Duration::from_millis(50), ..DiskFaults::default() });
    for i in 0..7 {
        volume.write(i * BLOCK, data(i), false).await.unwrap();
    }
    assert!(volume.write(0, data(9), true).await.is_err());
    assert!(volume.close().await.is_err());
    let before = disk.operations();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(disk.operations(), before, "somebody still holds it: {:?}", volume.status().ended);
    drop(second);
}
