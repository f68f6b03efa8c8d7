//! What counting costs a request, as it is and counted: one that does nothing, alone and beside another thread, and one that waits for
//! a moment.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ashlar::tally::Tally;
use criterion::{Criterion, Throughput};
use futures::executor::block_on;

const REQUESTS: u64 = 4096;

async fn request(waits: bool) -> Result<u64, Infallible> {
    if waits {
        let mut waiting = true;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            match std::mem::take(&mut waiting) {
                true => std::task::Poll::Pending,
                false => std::task::Poll::Ready(()),
            }
        })
        .await;
    }
    Ok(black_box(7))
}

fn as_they_are(waits: bool) {
    block_on(async {
        for _ in 0..REQUESTS {
            black_box(pin!(request(waits)).await.ok());
        }
    });
}

fn counted(tally: &Tally, waits: bool) {
    block_on(async {
        for _ in 0..REQUESTS {
            black_box(tally.record(4096, request(waits)).await.ok());
        }
    });
}

#[allow(clippy::disallowed_methods)] // a measurement has a thread of its own
pub fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tally");
    group.throughput(Throughput::Elements(REQUESTS));
    let tally = Arc::new(Tally::default());
    for (name, waits) in [("that do not wait", false), ("that wait", true)] {
        group.bench_function(format!("4096 requests {name}"), |bencher| bencher.iter(|| as_they_are(waits)));
        group.bench_function(format!("4096 requests {name}, counted"), |bencher| {
            bencher.iter(|| counted(&tally, waits))
        });
    }
    let (theirs, ended) = (Arc::clone(&tally), Arc::new(AtomicBool::new(false)));
    let their_end = Arc::clone(&ended);
    let beside = std::thread::spawn(move || {
        while !their_end.load(Ordering::Relaxed) {
            counted(&theirs, false);
        }
    });
    let name = "4096 requests that do not wait, counted, beside another thread";
    group.bench_function(name, |bencher| bencher.iter(|| counted(&tally, false)));
    ended.store(true, Ordering::Relaxed);
    beside.join().unwrap();
    group.finish();
}
