use super::*;
use crate::disk::crash::{CrashDisk, DiskFaults};
use crate::outside::Random;
use crate::units::Seq;
use proptest::prelude::*;

const SIZE: u64 = SIZE_MIN;
const VOLUME: Uuid = Uuid::from_u128(1);

fn frame(no: u64, len: u32) -> FrameAddr {
    FrameAddr { seq: Seq(no), offset: 48, len }
}

/// What the frame of that number holds.
fn content(volume: Uuid, no: u64, len: u32) -> Bytes {
    let pattern: Vec<u8> = (0..61).map(|i| i ^ no as u8).chain(no.to_le_bytes()).chain(volume.into_bytes()).collect();
    let mut bytes = pattern.repeat(len as usize / pattern.len() + 1);
    bytes.truncate(len as usize);
    bytes.into()
}

async fn start(disk: &CrashDisk) -> DiskTier {
    let tier = DiskTier::start(Arc::new(disk.clone()), SIZE);
    tier.settled().await;
    tier
}

fn offer(tier: &DiskTier, volume: Uuid, no: u64, len: u32) {
    tier.offer(volume, &content(volume, no, len), 48, [frame(no, len)]);
}

async fn read(tier: &DiskTier, volume: Uuid, no: u64, len: u32) -> Option<Bytes> {
    let (runs, missing) = tier.find(volume, vec![frame(no, len)]);
    assert_eq!(runs.len() + missing.len(), 1);
    Some(tier.read(runs.first()?).await?[0].1.clone())
}

#[tokio::test(start_paused = true)]
async fn frames_survive_a_restart_and_belong_to_their_volume() {
    let disk = CrashDisk::new(1);
    let other = Uuid::from_u128(2);
    let tier = start(&disk).await;
    for no in 0..100 {
        offer(&tier, VOLUME, no, 1000 + no as u32);
    }
    offer(&tier, other, 200, 5000);
    tier.settled().await;
    drop(tier);
    let tier = start(&disk.kill()).await;
    assert_eq!(tier.status().frames, 101);
    for no in 0..100 {
        let len = 1000 + no as u32;
        assert_eq!(read(&tier, VOLUME, no, len).await, Some(content(VOLUME, no, len)));
        assert_eq!(read(&tier, other, no, len).await, None);
    }
    assert_eq!(read(&tier, other, 200, 5000).await, Some(content(other, 200, 5000)));
    // It goes on in the same slab.
    offer(&tier, VOLUME, 300, 5000);
    tier.settled().await;
    assert_eq!(disk_names(&disk).await, ["slab-00000001"]);
}

async fn disk_names(disk: &CrashDisk) -> Vec<String> {
    disk.kill().list("").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn neighbours_are_read_together() {
    let tier = start(&CrashDisk::new(1)).await;
    let body = content(VOLUME, 0, 10 * 4096);
    let frames: Vec<_> = (0..10).map(|i| FrameAddr { seq: Seq(1), offset: 48 + i * 4096, len: 4096 }).collect();
    tier.offer(VOLUME, &body, 48, frames.clone());
    tier.settled().await;
    let (runs, missing) = tier.find(VOLUME, [&frames[..], &[frame(9, 9)]].concat());
    assert_eq!((runs.len(), missing), (1, vec![frame(9, 9)]));
    let read = tier.read(&runs[0]).await.unwrap();
    assert_eq!(read.iter().map(|(_, bytes)| bytes.to_vec()).collect::<Vec<_>>().concat(), body);
}

#[tokio::test(start_paused = true)]
async fn the_bound_holds_the_oldest_go_and_what_is_asked_for_stays() {
    const LEN: u32 = 60_000;
    let disk = CrashDisk::new(1);
    let tier = start(&disk).await;
    for no in 0..2000 {
        offer(&tier, VOLUME, no, LEN);
        tier.settled().await;
        assert!(disk.stored_bytes() <= SIZE && tier.status().used <= SIZE, "{} bytes", disk.stored_bytes());
        // The first three are asked for now and then.
        if no >= 2 && no % 50 == 0 {
            for hot in 0..3 {
                assert_eq!(read(&tier, VOLUME, hot, LEN).await, Some(content(VOLUME, hot, LEN)), "after {no}");
            }
        }
    }
    assert_eq!(read(&tier, VOLUME, 3, LEN).await, None, "nobody asked for it");
    for no in 1800..2000 {
        assert_eq!(read(&tier, VOLUME, no, LEN).await, Some(content(VOLUME, no, LEN)));
    }
    assert!(disk.stored_bytes() > SIZE / 10 * 8, "the room is used: {}", disk.stored_bytes());
    // A tier that has become smaller keeps to its new size, and to its newest frames.
    drop(tier);
    let disk = disk.kill();
    let tier = DiskTier::start(Arc::new(disk.clone()), SIZE / 4);
    tier.settled().await;
    assert!(disk.stored_bytes() <= SIZE / 4);
    assert_eq!(read(&tier, VOLUME, 1999, LEN).await, Some(content(VOLUME, 1999, LEN)));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_turns_the_tier_off_and_gets_its_space_back() {
    let disk = CrashDisk::new(1);
    let tier = start(&disk).await;
    offer(&tier, VOLUME, 1, 50_000);
    tier.settled().await;
    disk.limit_bytes(100_000);
    for no in 2..10 {
        offer(&tier, VOLUME, no, 50_000);
        tier.settled().await;
        let _ = read(&tier, VOLUME, no, 50_000).await;
    }
    let status = tier.status();
    assert!(status.off.as_ref().unwrap().starts_with("writing failed: "), "{status:?}");
    assert_eq!((status.used, status.frames, read(&tier, VOLUME, 1, 50_000).await), (0, 0, None));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(disk.stored_bytes(), 0);
    // The next start tries again.
    disk.limit_bytes(u64::MAX);
    drop(tier);
    assert_eq!(start(&disk.kill()).await.status().off, None);
}

#[tokio::test(start_paused = true)]
async fn a_failing_disk_turns_the_tier_off_and_no_read_waits_for_it() {
    let (write, create) =
        (DiskFaults { write: 1000, ..DiskFaults::default() }, DiskFaults { create: 1000, ..DiskFaults::default() });
    for faults in [write, create] {
        let disk = CrashDisk::new(1);
        let tier = start(&disk).await;
        disk.set_faults(faults);
        offer(&tier, VOLUME, 1, 5000);
        tier.settled().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(tier.status().off.is_some(), "{faults:?}");
        offer(&tier, VOLUME, 2, 5000);
        assert_eq!((read(&tier, VOLUME, 1, 5000).await, tier.status().dropped), (None, 1));
    }
    // Reads fail: the life of this disk is over.
    let disk = CrashDisk::new(1);
    let tier = start(&disk).await;
    offer(&tier, VOLUME, 1, 5000);
    tier.settled().await;
    let next = disk.kill();
    assert_eq!(read(&tier, VOLUME, 1, 5000).await, None);
    assert!(tier.status().off.unwrap().starts_with("a read failed: "));
    // A disk that does not answer.
    let tier = start(&next).await;
    next.set_faults(DiskFaults { delay_max: 100 * PATIENCE, ..DiskFaults::default() });
    let began = tokio::time::Instant::now();
    assert_eq!(read(&tier, VOLUME, 1, 5000).await, None);
    assert_eq!(
        (began.elapsed(), tier.status().off.unwrap()),
        (PATIENCE, "a read failed: no answer in 10 s".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_read_at_the_start_is_off() {
    let disk = CrashDisk::new(1);
    let _next = disk.kill();
    let tier = DiskTier::start(Arc::new(disk), SIZE);
    tier.settled().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(tier.status().off.unwrap().starts_with("reading what is there failed: "));
    let tier = DiskTier::unusable("/there", SIZE, "it is taken");
    offer(&tier, VOLUME, 1, 5000);
    assert_eq!((read(&tier, VOLUME, 1, 5000).await, tier.status().off), (None, Some("it is taken".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn what_comes_faster_than_the_disk_writes_is_dropped_and_nobody_waits() {
    let disk = CrashDisk::new(1);
    let tier = start(&disk).await;
    disk.set_faults(DiskFaults { delay_max: Duration::from_secs(4), ..DiskFaults::default() });
    let began = tokio::time::Instant::now();
    for no in 0..1000 {
        offer(&tier, VOLUME, no, 100_000);
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let dropped = tier.status().dropped;
    assert!((250..400).contains(&dropped), "{dropped}");
    // Who wants all of it kept, waits for room before each offer.
    for no in 1000..1100 {
        tier.wait_for_room(100_000).await;
        offer(&tier, VOLUME, no, 100_000);
    }
    tier.settled().await;
    assert_eq!((tier.status().dropped, tier.status().written + dropped), (dropped, 1100));
    // Who waits for a disk that never answers, does not wait for ever.
    disk.set_faults(DiskFaults { delay_max: 1000 * PATIENCE, ..DiskFaults::default() });
    offer(&tier, VOLUME, 2000, 100_000);
    tier.wait_for_room(QUEUE_BYTES).await;
    assert_eq!(tier.status().off.unwrap(), "writing failed: no answer in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_frame_is_forgotten_until_it_is_offered_again() {
    let disk = CrashDisk::new(1);
    let tier = start(&disk).await;
    offer(&tier, VOLUME, 1, 5000);
    tier.settled().await;
    let (runs, _) = tier.find(VOLUME, vec![frame(1, 5000)]);
    tier.reject(VOLUME, &runs[0], frame(1, 5000));
    assert_eq!((read(&tier, VOLUME, 1, 5000).await, tier.status().bad), (None, 1));
    offer(&tier, VOLUME, 1, 5000);
    tier.settled().await;
    assert_eq!(read(&tier, VOLUME, 1, 5000).await, Some(content(VOLUME, 1, 5000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is offered and asked for, and however often the process is killed: what is found is what was offered, and
    /// the bound holds. After a loss of power what is found may be rubbish, which the seal of its object finds out; nothing
    /// breaks.
    #[test]
    fn what_is_found_is_what_was_offered(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let random = Random::seeded(seed);
            let mut disk = CrashDisk::new(seed);
            let mut tier = start(&disk).await;
            let mut lost_power = false;
            for _ in 0..500 {
                let (volume, no) = (Uuid::from_u128(u128::from(random.below(2))), random.below(1000));
                let len_of = |no: u64| [4116, 65_556, 65_556][(no % 3) as usize];
                let len = len_of(no);
                match random.below(40) {
                    0 => {
                        drop(tier);
                        let crash = random.below(3) == 0;
                        lost_power |= crash;
                        disk = if crash { disk.crash() } else { disk.kill() };
                        tier = start(&disk).await;
                    }
                    1..25 => {
                        (no..no + 4).for_each(|no| offer(&tier, volume, no, len_of(no)));
                        if random.below(4) == 0 {
                            tier.settled().await;
                        }
                    }
                    _ => {
                        let (runs, _) = tier.find(volume, vec![frame(no, len)]);
                        if let Some(run) = runs.first() {
                            let found = tier.read(run).await.unwrap()[0].1.clone();
                            assert!(lost_power || found == content(volume, no, len));
                            if found != content(volume, no, len) {
                                tier.reject(volume, run, frame(no, len));
                            }
                        }
                    }
                }
                assert!(disk.stored_bytes() <= SIZE);
                assert_eq!(tier.status().off, None);
            }
        });
    }
}
