//! What a volume does when little is left of its budget: over a memory store, with virtual time, in which the store answers at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::outside::{Clock, Random};
use ashlar::store::Store;
use ashlar::store::memory::MemoryStore;
use ashlar::store::prices::PriceOptions;
use ashlar::volume::purse::{self, Allowance, Purse, Thrift};
use ashlar::volume::{self, Budget, CreateOptions, OpenFlags, Options, Outside, Volume, VolumeName};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

const BLOCK: u64 = 4096;

async fn open(allowance: Allowance) -> Arc<Volume> {
    let random = Random::seeded(7);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let name = VolumeName::new("v").unwrap();
    let create = CreateOptions { size: 4 << 20, ..CreateOptions::default() };
    volume::create(&*store, &random, &Clock::System, &name, create).await.unwrap();
    let options = Options { segment_size: 256 << 10, ..Options::default() };
    let each = purse::Options { volume: allowance, ..purse::Options::default() };
    let purse = Purse::new(&each, PriceOptions::default(), Arc::default(), Instant::now());
    let outside = Outside {
        budget: Budget::new(&options).with_purse(purse),
        ..outside::plain(store, Arc::new(CrashDisk::new(7)), random)
    };
    Volume::open(outside, &name, options, journal::Options::default(), OpenFlags::default()).await.unwrap()
}

fn requests(volume: &Volume) -> u64 {
    volume.store_requests().snapshot().requests()
}

fn thrift(volume: &Volume) -> Thrift {
    volume.left_to_spend()[0].thrift
}

/// Bytes that do not compress.
async fn write(volume: &Volume, block: u64, fua: bool) {
    let mut data = vec![0; BLOCK as usize];
    blake3::Hasher::new().update(&block.to_le_bytes()).finalize_xof().fill(&mut data);
    volume.write(block * BLOCK, data.into(), fua).await.unwrap();
}

/// A program that syncs each of its writes: the writes keep to the bound, and no FLUSH waits.
#[tokio::test(start_paused = true)]
async fn writes_keep_to_the_bound_and_no_flush_waits() {
    let volume = open(Allowance { requests_per_second: 1, ..Allowance::default() }).await;
    let (begin, before) = (Instant::now(), requests(&volume));
    for n in 0..100 {
        write(&volume, n, false).await;
        let asked = Instant::now();
        volume.flush().await.unwrap();
        assert_eq!(asked.elapsed(), Duration::ZERO, "FLUSH {n}");
    }
    let (spent, seconds) = (requests(&volume) - before, begin.elapsed().as_secs());
    println!("{spent} requests in {seconds} s");
    assert!(spent >= 100 && seconds >= 85, "each FLUSH is a PUT, and ten are saved up: {spent} in {seconds} s");
    // What one write brings about beyond the bound: its segment, and what a checkpoint and deletions ask meanwhile.
    assert!(spent <= 10 + seconds + 5, "{spent} in {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_holds_a_write_but_neither_a_read_nor_a_flush_and_not_for_ever() {
    let volume = open(Allowance { requests_per_second: 1, ..Allowance::default() }).await;
    write(&volume, 0, true).await;
    write(&volume, 1, false).await;
    let begin = Instant::now();
    for _ in 0..40 {
        volume.read(0, BLOCK as u32).await.unwrap();
    }
    assert_eq!((thrift(&volume), begin.elapsed()), (Thrift::Spent, Duration::ZERO));
    let writing = tokio::spawn({
        let volume = volume.clone();
        async move { volume.write(2 * BLOCK, Bytes::from(vec![1; BLOCK as usize]), false).await }
    });
    let trimming = tokio::spawn({
        let volume = volume.clone();
        async move { volume.trim(3 * BLOCK, BLOCK, false).await }
    });
    sleep(Duration::from_millis(10)).await;
    let status = volume.status();
    assert_eq!((status.writes_held, status.accepted), (2, 2));
    volume.flush().await.unwrap();
    assert_eq!((begin.elapsed().as_secs(), volume.status().committed), (0, 2), "a FLUSH is what was promised");
    // No more than ten seconds' worth is owed.
    writing.await.unwrap().unwrap();
    trimming.await.unwrap().unwrap();
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(9) && waited <= purse::WRITE_WAITS, "{waited:?}");
    assert_eq!(volume.status().writes_held, 0);
    // Reads that go on and on end no write.
    let reading = tokio::spawn({
        let volume = volume.clone();
        async move {
            loop {
                volume.read(0, BLOCK as u32).await.unwrap();
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    for _ in 0..3 {
        write(&volume, 4, true).await;
    }
    let begin = Instant::now();
    write(&volume, 4, true).await;
    assert_eq!(begin.elapsed().as_secs(), purse::WRITE_WAITS.as_secs());
    reading.abort();
}

/// A cent a day: an hour's worth of it are 80 PUTs.
#[tokio::test(start_paused = true)]
async fn with_little_left_collection_and_write_back_wait_and_with_more_they_go_on() {
    let volume = open(Allowance { dollars_per_day: 0.01, ..Allowance::default() }).await;
    write(&volume, 0, false).await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!((volume.status().dirty_bytes, thrift(&volume)), (0, Thrift::Free));
    for block in 0..1024 {
        write(&volume, block, false).await;
    }
    volume.flush().await.unwrap();
    // Of each segment a third.
    for block in (0..1024).step_by(3) {
        write(&volume, block, false).await;
    }
    volume.flush().await.unwrap();
    while thrift(&volume) == Thrift::Free {
        write(&volume, 0, true).await;
    }
    for _ in 0..8 {
        write(&volume, 0, true).await;
    }
    let moved = volume.status().gc.segments_written;
    write(&volume, 1, false).await;
    sleep(Duration::from_secs(55)).await;
    let status = volume.status();
    assert_eq!(thrift(&volume), Thrift::Sparing);
    assert!(status.dirty_bytes > 0 && status.gc.backlog_bytes > 0, "{status:?}");
    sleep(Duration::from_secs(10)).await;
    let status = volume.status();
    assert_eq!((status.dirty_bytes, status.gc.segments_written), (0, moved), "nobody waits for longer than a minute");
    sleep(Duration::from_secs(3600)).await;
    let status = volume.status();
    assert!(status.gc.segments_written > moved && status.gc.backlog_bytes == 0, "{status:?}");
    assert_eq!(thrift(&volume), Thrift::Free);
}
