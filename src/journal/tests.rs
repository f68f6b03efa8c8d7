//! The journal on a disk that crashes: named behaviours, then every crash of many schedules against a dumb model.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::Change;
use crate::disk::crash::{CrashDisk, DiskFaults};
use crate::keyring::{Keyring, Locked};
use crate::units::Extent;

const BLOCK: u64 = 512;

fn volume() -> Uuid {
    Uuid::from_u128(7)
}

/// Of an encrypted volume: what holds for it holds for a plain one.
fn sealer() -> Sealer {
    Sealer::new(volume(), Some(Keyring::new((1, Locked::take(&mut [3; 32])), [], None)))
}

fn doors(disk: &CrashDisk) -> Doors {
    // Each life draws other names and salts, as in life.
    let random = Random::seeded(disk.operations());
    Doors { disk: Arc::new(disk.clone()), random, workers: Workers::Inline, sealer: sealer() }
}

fn small() -> Options {
    Options { file_bytes: 8192, lay_out: true }
}

/// As [`small`], of files that grow.
fn growing() -> Options {
    Options { lay_out: false, ..small() }
}

fn block_size() -> BlockSize {
    BlockSize::new(BLOCK).unwrap()
}

/// A write whose data tells its number and epoch.
fn change(no: u64, epoch: u64, blocks: u64) -> Numbered {
    let data: Vec<u8> = (0..blocks * BLOCK).map(|i| (i / 8 + no * 31 + epoch * 101) as u8).collect();
    Numbered { no: ChangeNo(no), change: Change::Write(Extent::new(no, blocks), Bytes::from(data)) }
}

async fn create(disk: &CrashDisk, options: Options) -> Journal {
    Journal::create(doors(disk), options, Uuid::from_u128(9), block_size(), ChangeNo(1)).await.unwrap()
}

/// The log names it by the last of its names.
async fn resume(disk: &CrashDisk, options: Options, found: &Found, next: ChangeNo) -> Journal {
    let named_by = *found.names.last().unwrap();
    Journal::resume(doors(disk), options, found, next, named_by).await
}

async fn found(disk: &CrashDisk) -> Found {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    find(&disk, &sealer()).await.unwrap().unwrap()
}

fn append(journal: &Journal, numbers: impl IntoIterator<Item = u64>) {
    numbers.into_iter().for_each(|no| journal.append(Epoch(1), change(no, 1, 1)));
}

/// The name of the file that was created with this number.
async fn file_named(disk: &CrashDisk, number: u64) -> String {
    let names = disk.list("").await.unwrap();
    names.into_iter().find(|name| replay::number_in_name(name) == Some(number)).unwrap()
}

/// Lets the writer do all that it can without time passing.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_survives_a_kill_and_what_was_synced_a_crash() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=40);
    journal.synced(ChangeNo(40)).await.unwrap();
    append(&journal, 41..=60);
    journal.written(ChangeNo(60)).await.unwrap();
    let disk = disk.kill();
    assert_eq!(found(&disk).await.changes, (1..=60).map(|no| change(no, 1, 1)).collect::<Vec<_>>());
    let after = found(&disk.crash()).await;
    assert!(after.last() >= Some(ChangeNo(40)), "{after:?}");
    assert_eq!((after.id, after.epoch, after.block_size), (Uuid::from_u128(9), Epoch(1), block_size()));
}

/// What the store covers and the disk has not taken is in memory: whoever bounds that has to know it.
#[tokio::test(start_paused = true)]
async fn what_is_released_before_it_is_written_is_kept_until_it_is() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=40);
    assert_eq!(journal.kept_bytes(), 0, "none of it is released");
    journal.release(ChangeNo(10));
    let ten = journal.kept_bytes();
    journal.release(ChangeNo(30));
    assert!(ten > 0 && journal.kept_bytes() > 2 * ten, "{ten}, then {}", journal.kept_bytes());
    // Whoever needs no promise of the journal any more goes on at once.
    journal.written(ChangeNo(30)).await.unwrap();
    assert!(journal.kept_bytes() > 0);
    while journal.kept_bytes() > 0 {
        journal.let_go().await;
    }
    journal.written(ChangeNo(40)).await.unwrap();
    journal.release(ChangeNo(40));
    assert_eq!(journal.kept_bytes(), 0, "it was written before it was released");
    append(&journal, 41..=50);
    journal.release(ChangeNo(45));
    assert!(journal.kept_bytes() > 0);
    // A journal that fails forgets what it was to write.
    disk.set_faults(DiskFaults { write: 1000, ..DiskFaults::default() });
    while journal.kept_bytes() > 0 {
        journal.let_go().await;
    }
    assert!(journal.progress().suspended.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_created_journal_is_there_before_anything_is_appended() {
    let disk = CrashDisk::new(1);
    create(&disk, small()).await;
    let after = found(&disk.crash()).await;
    assert_eq!((after.id, after.changes.len()), (Uuid::from_u128(9), 0));
}

#[tokio::test(start_paused = true)]
async fn waiters_share_a_sync_and_writes_do_not_wait_for_it() {
    let disk = CrashDisk::new(1);
    let journal = Arc::new(create(&disk, Options::default()).await);
    settle().await;
    disk.set_faults(DiskFaults { delay_max: Duration::from_millis(10), ..DiskFaults::default() });
    let before = disk.operations();
    append(&journal, 1..=50);
    let waits: Vec<_> = (1..=50)
        .map(|no| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move { journal.synced(ChangeNo(no)).await })
        })
        .collect();
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One write, one sync for the fifty, and the mark (an opening and a write).
    assert_eq!(disk.operations() - before, 4);
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_suspends_and_tells_everybody_at_once() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, growing()).await;
    append(&journal, 1..=3);
    journal.synced(ChangeNo(3)).await.unwrap();
    disk.limit_bytes(disk.stored_bytes() + 100);
    append(&journal, 4..=6);
    let refused = journal.written(ChangeNo(4)).await.unwrap_err();
    let file = file_named(&disk, 1).await;
    let reason = format!("could not write /crash-disk/{file}: No space left on device (os error 28)");
    assert_eq!(refused, JournalError::Suspended { reason: reason.clone() });
    assert_eq!(refused.to_string(), format!("the journal is suspended: {reason}"));
    append(&journal, 7..=7);
    assert_eq!(journal.synced(ChangeNo(7)).await.unwrap_err(), refused);
    // What was promised before holds.
    journal.synced(ChangeNo(3)).await.unwrap();
    assert_eq!(journal.progress().suspended, Some(reason));
    assert_eq!(found(&disk.kill()).await.last(), Some(ChangeNo(3)));
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_journal_begins_anew_with_the_given_change() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=30);
    journal.written(ChangeNo(30)).await.unwrap();
    disk.set_faults(DiskFaults { sync: 1000, ..DiskFaults::default() });
    assert!(matches!(journal.synced(ChangeNo(30)).await, Err(JournalError::Suspended { .. })));
    disk.set_faults(DiskFaults::default());
    append(&journal, 31..=40);
    assert!(!journal.restart_from(ChangeNo(30)), "change 30 was reported as written");
    assert!(journal.restart_from(ChangeNo(36)), "changes 31 to 35 never were");
    append(&journal, 36..=38);
    journal.synced(ChangeNo(38)).await.unwrap();
    journal.synced(ChangeNo(35)).await.unwrap();
    let after = found(&disk.crash()).await;
    assert_eq!(after.changes, (36..=38).map(|no| change(no, 1, 1)).collect::<Vec<_>>());
}

/// The kernel reports a failed fdatasync once and marks the pages clean. The next process reads the records from the
/// page cache, syncs successfully, and would promise what the disk never got.
#[tokio::test(start_paused = true)]
async fn a_successor_of_a_failed_sync_does_not_trust_the_page_cache() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=3);
    journal.written(ChangeNo(3)).await.unwrap();
    disk.set_faults(DiskFaults { sync: 1000, ..DiskFaults::default() });
    assert!(journal.synced(ChangeNo(3)).await.is_err());
    disk.set_faults(DiskFaults::default());
    let disk = disk.kill();
    let journal = resume(&disk, small(), &found(&disk).await, ChangeNo(4)).await;
    journal.synced(ChangeNo(3)).await.unwrap();
    assert_eq!(found(&disk.crash()).await.last(), Some(ChangeNo(3)));
}

#[tokio::test(start_paused = true)]
async fn released_files_are_reused_or_removed() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    for round in 0..50 {
        append(&journal, round * 20 + 1..=round * 20 + 20);
        journal.synced(ChangeNo(round * 20 + 20)).await.unwrap();
        journal.release(ChangeNo(round * 20 + 10));
        settle().await;
        assert!(disk.stored_bytes() < 8 * 8192, "{}", disk.stored_bytes());
        assert!(journal.stored_bytes() < 5 * 8192);
    }
    let after = found(&disk.crash()).await;
    let uncovered: Vec<_> = (991..=1000).map(|no| change(no, 1, 1)).collect();
    assert_eq!(after.after(ChangeNo(990)), uncovered);
    assert_eq!(after.note, None, "the end of a recycled file is an end, not damage");
    assert_eq!(after.after(ChangeNo(10)), [], "what follows a hole is of no use");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_laid_out_does_not_grow_and_its_end_is_an_end() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=1);
    journal.synced(ChangeNo(1)).await.unwrap();
    settle().await;
    let before = disk.stored_bytes();
    append(&journal, 2..=5);
    journal.synced(ChangeNo(5)).await.unwrap();
    assert_eq!(disk.stored_bytes(), before);
    let after = found(&disk.crash()).await;
    assert_eq!((after.last(), after.note), (Some(ChangeNo(5)), None));
}

#[tokio::test(start_paused = true)]
async fn files_that_are_laid_out_double_up_to_their_bound() {
    let disk = CrashDisk::new(1);
    let options = Options { file_bytes: 10 << 20, lay_out: true };
    let journal = create(&disk, options).await;
    for no in 1..=80 {
        journal.append(Epoch(1), change(no, 1, (512 << 10) / BLOCK));
        journal.synced(ChangeNo(no)).await.unwrap();
        settle().await;
    }
    let mut lens = Vec::new();
    for name in disk.list("").await.unwrap().iter().skip(1) {
        lens.push(disk.open(name).await.unwrap().len().await.unwrap() >> 20);
    }
    assert_eq!(lens, [4, 8, 10, 10, 10, 10]);
    assert_eq!(found(&disk.crash()).await.last(), Some(ChangeNo(80)));
}

#[tokio::test(start_paused = true)]
async fn a_disk_too_full_for_laying_out_still_takes_records() {
    let disk = CrashDisk::new(1);
    disk.limit_bytes(8 << 10);
    let journal = create(&disk, Options { file_bytes: 1 << 20, lay_out: true }).await;
    append(&journal, 1..=1);
    journal.synced(ChangeNo(1)).await.unwrap_err();
    disk.limit_bytes(16 << 10);
    journal.restart_from(ChangeNo(1));
    append(&journal, 1..=2);
    journal.synced(ChangeNo(2)).await.unwrap();
    assert_eq!(found(&disk.crash()).await.last(), Some(ChangeNo(2)));
}

#[tokio::test(start_paused = true)]
async fn a_record_larger_than_a_file_gets_one_of_its_own() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=1);
    journal.append(Epoch(1), change(2, 1, (32 << 20) / BLOCK));
    append(&journal, 3..=3);
    journal.synced(ChangeNo(3)).await.unwrap();
    let after = found(&disk.crash()).await;
    assert_eq!(after.changes, [change(1, 1, 1), change(2, 1, (32 << 20) / BLOCK), change(3, 1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn trims_and_zeroes_of_any_length_are_small_records() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    let all = Extent::new(0, u64::MAX / BLOCK);
    let changes = [
        Numbered { no: ChangeNo(1), change: Change::Hole(all) },
        Numbered { no: ChangeNo(2), change: Change::Zero(all) },
    ];
    changes.iter().for_each(|numbered| journal.append(Epoch(3), numbered.clone()));
    journal.close().await.unwrap();
    assert_eq!(found(&disk.crash()).await.changes, changes);
}

#[tokio::test(start_paused = true)]
async fn close_syncs_and_refuses_what_comes_later() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=3);
    journal.close().await.unwrap();
    append(&journal, 4..=4);
    assert_eq!(journal.written(ChangeNo(4)).await, Err(JournalError::Closed));
    let disk = disk.crash();
    assert_eq!(found(&disk).await.last(), Some(ChangeNo(3)));
    let door: Arc<dyn Disk> = Arc::new(disk.clone());
    discard(&door, volume()).await.unwrap();
    assert!(find(&door, &sealer()).await.unwrap().is_none());
    assert_eq!(door.list("").await.unwrap(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_change_out_of_order_suspends_rather_than_making_a_file_that_ends_there() {
    for bad in [(1, 5), (1, 3), (0, 4)] {
        let disk = CrashDisk::new(1);
        let journal = create(&disk, small()).await;
        append(&journal, 1..=3);
        journal.append(Epoch(bad.0), change(bad.1, 1, 1));
        let refused = journal.written(ChangeNo(4)).await.unwrap_err().to_string();
        assert!(refused.contains("was appended where 4 of epoch 1 was due"), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_another_volume_is_refused_and_left_alone() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=3);
    journal.close().await.unwrap();
    let door: Arc<dyn Disk> = Arc::new(disk.clone());
    let other = Uuid::from_u128(8);
    let expected = "the journal in /crash-disk belongs to volume 00000000-0000-0000-0000-000000000007, not to volume \
                    00000000-0000-0000-0000-000000000008: move that directory aside, put back the one that belongs \
                    here, or start with another state directory; it was not touched";
    assert_eq!(find(&door, &Sealer::new(other, None)).await.unwrap_err().to_string(), expected);
    assert_eq!(discard(&door, other).await.unwrap_err().to_string(), expected);
    let created = Journal::create(
        Doors { sealer: Sealer::new(other, None), ..doors(&disk) },
        small(),
        other,
        block_size(),
        ChangeNo(1),
    )
    .await;
    assert_eq!(created.unwrap_err().to_string(), expected);
    let again = Journal::create(doors(&disk), small(), other, block_size(), ChangeNo(1)).await;
    assert_eq!(again.unwrap_err(), JournalError::Exists { dir: "/crash-disk".to_owned() });
    assert_eq!(found(&disk).await.last(), Some(ChangeNo(3)));
}

#[tokio::test(start_paused = true)]
async fn damage_to_synced_bytes_is_noticed_and_said() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, growing()).await;
    append(&journal, 1..=3);
    journal.close().await.unwrap();
    let at = record::FIRST_RECORD + (64 + BLOCK) + 70;
    let name = file_named(&disk, 1).await;
    assert!(disk.damage(&name, at, 4));
    let after = found(&disk).await;
    assert_eq!(after.last(), Some(ChangeNo(1)));
    let note = format!("/crash-disk/{name} ends at byte 4672 of 5824: the record does not verify");
    assert_eq!(after.note, Some(note));
    assert_eq!(after.synced, ChangeNo(3), "what was there is known");
    // Without its identity it is not known whether it is whole.
    assert!(after.is_whole());
    assert!(disk.damage(&file_named(&disk, 0).await, 20, 1));
    let after = found(&disk).await;
    assert!(!after.is_whole() && after.last() == Some(ChangeNo(1)));
    // Files that contradict each other say nothing.
    assert!(disk.damage(&file_named(&disk, 1).await, 20, 1));
    let door: Arc<dyn Disk> = Arc::new(disk.clone());
    let refused = find(&door, &sealer()).await.unwrap_err().to_string();
    let expected = "no file of the journal in /crash-disk has a header that verifies: restore the directory, or open with \
                    --drop-journal to set its files aside and go on without the changes that only they hold; it was not touched";
    assert_eq!(refused, expected);
    disk.break_reads_of(&name);
    let refused = find(&door, &sealer()).await.unwrap_err();
    assert!(matches!(refused, JournalError::Unreadable { .. }), "{refused}");
    let before = disk.stored_bytes();
    assert_eq!(set_aside(&door).await.unwrap(), "/crash-disk/dropped-1");
    assert!(find(&door, &sealer()).await.unwrap().is_none());
    assert_eq!((door.list("dropped-1").await.unwrap().len(), disk.stored_bytes()), (2, before), "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn what_was_set_aside_is_a_journal_again_when_it_is_moved_back() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    append(&journal, 1..=3);
    journal.close().await.unwrap();
    let door: Arc<dyn Disk> = Arc::new(disk.clone());
    set_aside(&door).await.unwrap();
    create(&disk, small()).await.close().await.unwrap();
    assert_eq!(set_aside(&door).await.unwrap(), "/crash-disk/dropped-2");
    for name in door.list("dropped-1").await.unwrap() {
        door.rename(&format!("dropped-1/{name}"), &name).await.unwrap();
    }
    assert_eq!(found(&disk).await.last(), Some(ChangeNo(3)));
}

/// A crash while files are set aside leaves no journal that passes for whole with fewer changes.
#[tokio::test(start_paused = true)]
async fn setting_aside_that_is_cut_short_leaves_nothing_that_passes_for_whole() {
    for operation in 0..8 {
        let disk = CrashDisk::new(operation);
        let journal = create(&disk, small()).await;
        append(&journal, 1..=40);
        journal.close().await.unwrap();
        drop(journal);
        disk.cut_at(disk.operations() + operation);
        let door: Arc<dyn Disk> = Arc::new(disk.clone());
        let done = set_aside(&door).await;
        let disk = disk.crash();
        let door: Arc<dyn Disk> = Arc::new(disk.clone());
        let left = find(&door, &sealer()).await.unwrap();
        let whole = left.as_ref().is_some_and(Found::is_whole);
        assert!(!whole || left.unwrap().last() == Some(ChangeNo(40)), "{operation}");
        assert!(done.is_err() || door.list("").await.unwrap().is_empty());
    }
}

/// Every file of the journal, gone: what was synced is never missed unheard.
#[tokio::test(start_paused = true)]
async fn whichever_file_vanishes_what_was_synced_is_missed() {
    let whole = CrashDisk::new(1);
    let journal = create(&whole, small()).await;
    append(&journal, 1..=60);
    journal.synced(ChangeNo(60)).await.unwrap();
    settle().await;
    drop(journal);
    let names = whole.list("").await.unwrap();
    let mut missed = 0;
    for name in &names {
        for cut in [None, Some(0), Some(4000), Some(5000)] {
            let disk = whole.copy(2);
            match cut {
                None => disk.remove(name).await.unwrap(),
                Some(len) if disk.cut(name, len) => {}
                Some(_) => continue,
            }
            let disk = disk.kill();
            let after = found(&disk).await;
            let held = after.last().unwrap_or_default();
            let begins = after.changes.first().is_none_or(|first| first.no == ChangeNo(1));
            let said = !after.is_whole() || after.synced > held || !begins;
            assert!(said || held == ChangeNo(60), "{name} cut to {cut:?}: ends at {held}, marked {}", after.synced);
            missed += u32::from(said);
        }
    }
    assert!(missed > 10, "{missed} of {}", names.len());
}

/// A loss that was accepted is not asked about again.
#[tokio::test(start_paused = true)]
async fn a_journal_that_goes_on_after_a_loss_is_whole_again() {
    for identity in [false, true] {
        let disk = CrashDisk::new(1);
        let journal = create(&disk, small()).await;
        append(&journal, 1..=60);
        journal.synced(ChangeNo(60)).await.unwrap();
        settle().await;
        drop(journal);
        let lost = file_named(&disk, if identity { 0 } else { 2 }).await;
        disk.remove(&lost).await.unwrap();
        let disk = disk.kill();
        let after = found(&disk).await;
        let next = after.last().unwrap().next();
        assert!(!after.is_whole() || after.synced >= next);
        let journal = resume(&disk, small(), &after, next).await;
        let there = found(&disk).await;
        assert!(there.is_whole() && there.synced < next, "{identity}: {} of {next}", there.synced);
        append(&journal, next.0..next.0 + 3);
        journal.synced(next).await.unwrap();
        let there = found(&disk.crash()).await;
        assert!(there.is_whole() && Some(there.synced) <= there.last() && there.last() >= Some(next), "{identity}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_goes_on_has_a_new_name_that_a_copy_does_not_know() {
    let disk = CrashDisk::new(1);
    let journal = create(&disk, small()).await;
    let id = journal.name();
    append(&journal, 1..=3);
    journal.close().await.unwrap();
    let copy = disk.copy(2);
    let journal = resume(&disk, small(), &found(&disk).await, ChangeNo(4)).await;
    let name = journal.name();
    assert_eq!(found(&copy).await.names, [id]);
    assert_eq!(found(&disk.crash()).await.names, [id, name], "the fence may have been put or not");
    let failing = copy.kill();
    failing.set_faults(DiskFaults { sync: 1000, ..DiskFaults::default() });
    let journal = resume(&failing, small(), &found(&failing).await, ChangeNo(4)).await;
    assert_eq!(journal.name(), id, "no fence names what is not on the disk");
}

// ---------------------------------------------------------------------------------------------------------------
// Every crash of a schedule.

/// What the volume might do with its journal.
#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        blocks: u64,
    },
    WaitWritten,
    WaitSynced,
    /// Somebody else waits, while this one goes on.
    SyncInBackground,
    /// Releases this part (of 256) of what was appended.
    Release(u8),
    /// Lets time pass, so that operations under way go on.
    Pause(u64),
    /// If suspended: commits all but this many changes, begins anew and appends those again.
    Restart(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..6_u64, 0..6_u64).prop_map(|(count, blocks)| Step::Append { count, blocks }),
        2 => Just(Step::WaitWritten),
        2 => Just(Step::WaitSynced),
        2 => Just(Step::SyncInBackground),
        1 => any::<u8>().prop_map(Step::Release),
        2 => (0..3000_u64).prop_map(Step::Pause),
        1 => (0..6_u64).prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 1..14)
}

fn faults() -> impl Strategy<Value = DiskFaults> {
    let often = || prop_oneof![3 => Just(0_u32), 1 => Just(100_u32)];
    (often(), often(), often(), often(), prop_oneof![Just(0), Just(2000_u64)]).prop_map(
        |(write, sync, create, remove, delay)| DiskFaults {
            write,
            sync,
            create,
            remove,
            delay_max: Duration::from_micros(delay),
        },
    )
}

/// The dumb model: all changes in order, and what was promised of them.
#[derive(Default)]
struct Model {
    changes: Vec<Numbered>,
    written: u64,
    synced: u64,
    released: u64,
    epoch: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.changes.len() as u64
    }

    /// What must be there after a kill or a crash, and that everything there is right; then what is there is what was.
    fn check(&mut self, found: Option<&Found>, killed: bool) {
        let none = Vec::new();
        let there = found.map_or(&none, |found| &found.changes);
        // Nothing was damaged: no crash looks like a loss.
        if let Some(found) = found {
            let reach = found.last().unwrap_or_default().0.max(self.released);
            assert!(found.is_whole() && found.synced.0 <= reach, "{} was synced, {reach} is there", found.synced);
        }
        for pair in there.windows(2) {
            assert_eq!(pair[0].no.next(), pair[1].no);
        }
        let first = there.first().map_or(1, |numbered| numbered.no.0);
        assert!(first <= self.released + 1, "begins with {first}, released {}", self.released);
        let usable = found.map_or(&[][..], |found| found.after(ChangeNo(self.released)));
        for numbered in usable {
            let same = self.changes.get(numbered.no.0 as usize - 1) == Some(numbered);
            assert!(same, "change {} never was (released {}, last {})", numbered.no, self.released, self.last());
        }
        let last = usable.last().map_or(self.released, |numbered| numbered.no.0);
        let floor = if killed { self.written.max(self.synced) } else { self.synced };
        assert!(last >= floor, "{last} is the last, {floor} was promised (released {})", self.released);
        self.changes.truncate(last as usize);
        (self.written, self.synced) = (self.written.min(last), self.synced.min(last));
    }
}

/// One life: opens what is there, then follows the steps until they end or the disk is cut.
async fn live(disk: &CrashDisk, steps: &[Step], model: &mut Model, faults: DiskFaults, lays_out: u64) {
    let door: Arc<dyn Disk> = Arc::new(disk.clone());
    let Ok(found) = find(&door, &sealer()).await else { return };
    let next = ChangeNo(model.last() + 1);
    // One life may lay files out, and the next not.
    let options = if model.epoch % 2 == lays_out { small() } else { growing() };
    let opened = match &found {
        None => Journal::create(doors(disk), options, Uuid::from_u128(9), block_size(), next).await,
        Some(found) => Ok(resume(disk, options, found, next).await),
    };
    let Ok(journal) = opened else { return };
    let journal = Arc::new(journal);
    let synced = Arc::new(AtomicU64::new(model.synced));
    disk.set_faults(faults);
    model.epoch += 1;
    for step in steps {
        match step {
            Step::Append { count, blocks } => {
                for _ in 0..*count {
                    let no = model.last() + 1;
                    let mut numbered = change(no, model.epoch, *blocks);
                    if *blocks == 0 {
                        numbered.change = Change::Hole(Extent::new(no, model.epoch));
                    }
                    journal.append(Epoch(model.epoch), numbered.clone());
                    model.changes.push(numbered);
                }
            }
            Step::WaitWritten => {
                if journal.written(ChangeNo(model.last())).await.is_ok() {
                    model.written = model.last();
                }
            }
            Step::WaitSynced => {
                if journal.synced(ChangeNo(model.last())).await.is_ok() {
                    model.synced = model.last();
                }
            }
            Step::SyncInBackground => {
                let (journal, synced, no) = (Arc::clone(&journal), Arc::clone(&synced), model.last());
                tokio::spawn(async move {
                    if journal.synced(ChangeNo(no)).await.is_ok() {
                        synced.fetch_max(no, Ordering::Relaxed);
                    }
                });
            }
            Step::Release(part) => {
                model.released = model.released.max(model.last() * u64::from(*part) / 256);
                journal.release(ChangeNo(model.released));
            }
            Step::Pause(micros) => tokio::time::sleep(Duration::from_micros(*micros)).await,
            Step::Restart(back) => {
                if journal.progress().suspended.is_some() {
                    let no = model.last() + 1 - back.min(&(model.last() - model.released));
                    let no = if journal.restart_from(ChangeNo(no)) { no } else { model.last() + 1 };
                    assert!(no <= model.last() || journal.restart_from(ChangeNo(no)));
                    model.released = no - 1;
                    for numbered in &model.changes[no as usize - 1..] {
                        journal.append(Epoch(model.epoch), numbered.clone());
                    }
                }
            }
        }
        model.synced = model.synced.max(synced.load(Ordering::Relaxed));
        if disk.is_cut() {
            return;
        }
    }
}

/// A first life with a cut, a check, a second life with another cut, a check, and a third opening.
async fn lives(seed: u64, steps: &[Step], faults: DiskFaults, cut: u64, kills: [bool; 3]) -> u64 {
    let disk = CrashDisk::new(seed);
    let mut model = Model::default();
    disk.cut_at(cut);
    live(&disk, steps, &mut model, faults, seed % 2).await;
    let operations = disk.operations();
    let mut disk = disk;
    for (round, kill) in kills.into_iter().enumerate() {
        disk.set_faults(DiskFaults::default());
        disk = if kill { disk.kill() } else { disk.crash() };
        let door: Arc<dyn Disk> = Arc::new(disk.clone());
        let found = find(&door, &sealer()).await.unwrap();
        model.check(found.as_ref(), kill);
        if round < 2 {
            disk.cut_at(disk.operations() + 10 + (seed ^ cut) % 40);
            live(&disk, steps, &mut model, faults, seed % 2).await;
        }
    }
    operations
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_operation_is_the_last_what_was_promised_is_there(
        seed in any::<u64>(), steps in steps(), faults in faults(), kills in any::<[bool; 3]>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let operations = lives(seed, &steps, faults, u64::MAX, kills).await;
            for cut in 1..=operations {
                lives(seed, &steps, faults, cut, kills).await;
            }
        });
    }
}

/// A file that lost its end with the power may give an older mark back when it grows: the simulation found a journal that no longer
/// knew the name in the fence.
#[tokio::test]
async fn whichever_mark_is_lost_the_other_one_knows_the_newest_name() {
    let disk = CrashDisk::new(1);
    drop(create(&disk, small()).await);
    let disk = disk.kill();
    let name = resume(&disk, small(), &found(&disk).await, ChangeNo(1)).await.name();
    let disk = disk.kill();
    for place in mark::PLACES {
        let disk = disk.copy(place);
        let identity = found(&disk).await.identity_name.unwrap();
        disk.damage(&identity, place + 20, 1);
        assert_eq!(found(&disk).await.names.last(), Some(&name), "without the mark at {place}");
    }
}
