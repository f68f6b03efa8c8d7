//! The table of segments by itself: nothing of the map is in it, so that it can be as large as that of 100 TiB.
//!
//! All segments are there and live. Then, of each checkpoint, new segments take effect, and as many blocks as they bring die at random
//! places; segments that are moved are not in it. Printed is what checkpoints put for it for each byte written, once all pages
//! were written anew, what a root takes, and how long the lock of a volume is held for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashlar::map::{MapPage, NeedPages, PageAt, PageRef, PageWriter, SegmentInfo};
use ashlar::outside::Random;
use ashlar::space::{Bounds, Durable, Fold, Folded, Order, Progress, Space, Want};
use ashlar::units::Seq;

use super::{BLOCK, Store};

/// Bytes that are written between two checkpoints.
const WRITTEN: u64 = 512 << 20;

/// Checkpoints that are measured.
const CHECKPOINTS: u64 = 40;

pub fn measure(segment_mib: u64, sizes: impl Iterator<Item = u64>) {
    println!(
        "| volume | segments | spans | put per byte written | pages read per checkpoint | root | memory beside pages | a death | \
         snapshot | longest step | when durable | choosing |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for gib in sizes {
        of(gib, segment_mib << 20);
    }
}

fn of(gib: u64, segment: u64) {
    let sealer = ashlar::codec::seal::Sealer::new(uuid::Uuid::from_u128(1), None);
    let mut store = Store { sealer, objects: HashMap::new(), infos: Default::default(), put: 0 };
    let (random, segments, blocks) = (Random::seeded(gib), (gib << 30) / segment, (segment / BLOCK) as u32);
    let info = |_: &u64| SegmentInfo {
        salt: random.bytes(),
        stored_bytes: segment + random.below(100_000),
        blocks,
        live_blocks: blocks,
    };
    let mut space = Space::restore(Durable::default(), (1..=segments).map(|seq| (Seq(seq), info(&seq))));
    let none: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
    let (mut seq, mut times) = (segments, Times::default());
    checkpoint(&mut space, &mut store, Seq(seq), &mut times);
    (store.put, times) = (0, Times::default());
    let fresh = WRITTEN.div_ceil(segment);
    for _ in 0..CHECKPOINTS {
        for _ in 0..fresh {
            seq += 1;
            space.born(Seq(seq), info(&seq));
        }
        let began = Instant::now();
        for _ in 0..WRITTEN / BLOCK {
            space.died(Seq(1 + random.below(segments)), 1, &none);
        }
        times.deaths += began.elapsed();
        checkpoint(&mut space, &mut store, Seq(seq), &mut times);
    }
    let began = Instant::now();
    let want = Want { order: Order::Benefit(Seq(seq)), freed: 64 << 20, live: 32 << 20, blocks: 16 << 10, segments: 1 };
    let (mut pages, mut looks) = (none.clone(), 0);
    let mut loading = Duration::ZERO;
    while let Err(need) = space.candidates(&want, &BTreeSet::new(), &pages) {
        let loads = Instant::now();
        looks += need.0.len();
        pages.extend(NeedPages::from(need).0.iter().map(|page| (page.at, store.get(page))));
        loading += loads.elapsed();
    }
    let choosing = began.elapsed() - loading;
    assert!(space.spans().all(|span| space.summary(span).is_some()) && looks < 200);
    println!(
        "| {gib} GiB | {segments} | {} | {:.5} | {:.0} | {:.1} KiB | {:.1} MiB | {:.2} µs | {:.3} ms | {:.1} ms | {:.2} ms | {:.2} ms, {looks} pages |",
        space.span_count(),
        store.put as f64 / (CHECKPOINTS * WRITTEN) as f64,
        times.loaded as f64 / CHECKPOINTS as f64,
        times.root as f64 / 1024.0,
        space.memory() as f64 / f64::from(1 << 20),
        times.deaths.as_secs_f64() * 1e6 / (CHECKPOINTS * WRITTEN / BLOCK) as f64,
        times.snapshot.as_secs_f64() * 1e3,
        times.step.as_secs_f64() * 1e3,
        times.durable.as_secs_f64() * 1e3,
        choosing.as_secs_f64() * 1e3,
    );
}

/// The longest of each, but for `deaths` and `loaded`, which are sums.
#[derive(Default)]
struct Times {
    deaths: Duration,
    loaded: u64,
    root: u64,
    snapshot: Duration,
    step: Duration,
    durable: Duration,
}

fn checkpoint(space: &mut Space, store: &mut Store, seq: Seq, times: &mut Times) {
    let began = Instant::now();
    let snapshot = space.begin_checkpoint();
    times.snapshot = times.snapshot.max(began.elapsed());
    let mut writer = PageWriter::new(seq, 0);
    let began = Instant::now();
    let fold = Fold::new(seq, &snapshot, std::iter::empty(), Default::default(), Bounds::default());
    times.step = times.step.max(began.elapsed());
    let (folded, step) = self::fold(fold, &mut writer, |page| {
        times.loaded += 1;
        store.get(&page)
    });
    times.step = times.step.max(step);
    let (frames, _) = writer.finish();
    let (before, pages) = (store.put, frames.total());
    store.checkpoint(seq, Vec::new(), folded.durable.root(), frames);
    times.root = times.root.max(store.put - before - pages);
    let began = Instant::now();
    drop(space.checkpointed(folded, &HashMap::<PageRef, Arc<MapPage>>::new()));
    times.durable = times.durable.max(began.elapsed());
    while space.sum_up_more(&HashMap::<PageRef, Arc<MapPage>>::new()) {}
}

/// Also tells the longest step.
pub fn fold(
    mut fold: Fold,
    writer: &mut PageWriter,
    mut load: impl FnMut(PageAt) -> Arc<MapPage>,
) -> (Folded, Duration) {
    let (mut pages, mut longest): (HashMap<PageRef, Arc<MapPage>>, _) = (HashMap::new(), Duration::ZERO);
    loop {
        let began = Instant::now();
        let progress = fold.go_on(&pages, writer).unwrap();
        longest = longest.max(began.elapsed());
        match progress {
            Progress::GoOn => pages.clear(),
            Progress::Needs(need) => {
                pages.extend(NeedPages::from(need).0.into_iter().map(|page| (page.at, load(page))))
            }
            Progress::Done => break,
        }
    }
    let began = Instant::now();
    let folded = fold.finish(writer).unwrap();
    (folded, longest.max(began.elapsed()))
}
