//! What the map of a densely written volume costs: `cargo run --release --example scale -- 1 10 100` (sizes in GiB of 4 KiB blocks), and
//! what its table of segments costs by itself: `… scale -- table 8 1 1000`, segments of 8 MiB, sizes in GiB.
//!
//! Every block of the volume is mapped, each by itself, at a place of its own. Then blocks are overwritten at random, in segments of
//! 2048, with a checkpoint after each 512 MiB, as the log of a volume does it; checkpoints lie in memory, as they would in the store, table of segments included. Printed is
//! what checkpoints put for each byte written, how many runs there are, what a commit takes, and how many pages a cold lookup of one block asks
//! for. Nothing of the store or of the segments themselves is in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a measurement that cannot go on, stops
#![allow(clippy::disallowed_methods)] // it measures real time

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashlar::codec::frame::Frames;
use ashlar::codec::seal::Sealer;
use ashlar::format::root::{CheckpointInfo, Root, encode_checkpoint, open_page, place_of};
use ashlar::map::compaction::{RunWriter, Sizes};
use ashlar::map::layout::{Layout, Progress};
use ashlar::map::{
    Checkpointed, Entry, ExtentMap, MapPage, NeedPages, PageAt, PageKind, PageRef, PageWriter, Placement, Run,
    SegmentInfo, Table,
};
use ashlar::outside::Random;
use ashlar::space::{Bounds, Durable, Fold, Space, TableRoot};
use ashlar::units::{BlockCount, Extent, FrameAddr, Location, Seq};
use bytes::Bytes;

#[path = "scale/table.rs"]
mod table;

const BLOCK: u64 = 4096;
const SEGMENT: u64 = 2048;
const SEGMENTS_PER_CHECKPOINT: u64 = 64;
const FRAME: u32 = 4116;
/// What the map may take in memory.
const MEMORY: usize = 256 << 20;
/// This part of it may be all of a map that is counted exactly (`engine/commit.rs`).
const EXACT_PART: usize = 8;

/// The checkpoints as they lie in the store.
struct Store {
    sealer: Sealer,
    objects: HashMap<Seq, Bytes>,
    infos: BTreeMap<Seq, CheckpointInfo>,
    /// What checkpoints have put.
    put: u64,
}

impl Store {
    fn get(&self, page: &PageAt) -> Arc<MapPage> {
        let info = self.infos[&page.at.checkpoint];
        let from = place_of(&info, &page.at) as usize;
        let sealed = self.objects[&page.at.checkpoint].slice(from..from + page.at.len as usize);
        Arc::new(open_page(&self.sealer, &info, page, &sealed).unwrap())
    }

    /// A checkpoint; what nothing needs any more is gone after it. Returns its runs.
    fn checkpoint(&mut self, seq: Seq, runs: Vec<Run>, table: TableRoot, frames: Frames) -> Vec<Run> {
        let root = Root {
            seq,
            next_slot: seq.next(),
            table,
            checkpoints: self.infos.iter().map(|(seq, info)| (*seq, *info)).collect(),
            runs,
            ..Root::default()
        };
        let encoded = encode_checkpoint(&self.sealer, [7; 16], root, frames).unwrap();
        self.put += encoded.object.total;
        self.objects.insert(seq, encoded.object.parts.concat().into());
        self.infos = encoded.root.checkpoints.into_iter().collect();
        self.objects.retain(|seq, _| self.infos.contains_key(seq));
        encoded.root.runs
    }

    fn bytes(&self) -> u64 {
        self.objects.values().map(|object| object.len() as u64).sum()
    }
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == "table").is_some() {
        let segment = args.next().expect("the size of a segment in MiB").parse().expect("MiB");
        return table::measure(segment, args.map(|size| gib(&size)));
    }
    println!(
        "| volume | map in the store | put per byte written | runs, most | longest commit of 2048 blocks | mean | longest step of a checkpoint | pages of a cold read |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for size in args {
        measure(gib(&size));
    }
}

fn gib(size: &str) -> u64 {
    size.parse().expect("sizes in GiB")
}

/// Every block mapped, each to a place of its own.
fn dense(blocks: u64, store: &mut Store) -> (Vec<Run>, Space) {
    let segments = blocks.div_ceil(SEGMENT);
    let info = |_| SegmentInfo {
        blocks: SEGMENT as u32,
        live_blocks: SEGMENT as u32,
        stored_bytes: 8 << 20,
        ..SegmentInfo::default()
    };
    let mut space = Space::restore(Durable::default(), (1..=segments).map(|seq| (Seq(seq), info(seq))));
    let mut writer = PageWriter::new(Seq(segments), 0);
    let mut run = RunWriter::new(Run { is_last: true, through: Seq(segments), ..Run::empty() }, Sizes::default());
    for start in (0..blocks).step_by(1 << 16) {
        // A permutation: every segment has its blocks all over the volume.
        let entry = |block: u64| {
            let place = block.wrapping_mul(0x9e37_79b9_7f4a_7c15 | 1) % blocks;
            let frame =
                FrameAddr { seq: Seq(1 + place / SEGMENT), offset: (place % SEGMENT) as u32 * FRAME, len: FRAME };
            Entry {
                extent: Extent::new(block, 1),
                placement: Placement::Data(Location { frame, block: 0 }),
                owes: false,
            }
        };
        run.add((start..blocks.min(start + (1 << 16))).map(entry).collect(), &mut writer).unwrap();
    }
    let run = run.finish(None, &mut writer).unwrap();
    let none: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
    let fold =
        Fold::new(Seq(segments), &space.begin_checkpoint(), std::iter::empty(), Default::default(), Bounds::default());
    let folded = table::fold(fold, &mut writer, |_| panic!("a table that is new has no pages")).0;
    let runs = store.checkpoint(Seq(segments), vec![run], folded.durable.root(), writer.finish().0);
    drop(space.checkpointed(folded, &none));
    while space.sum_up_more(&none) {}
    store.put = 0;
    (runs, space)
}

fn measure(gib: u64) {
    let blocks = (gib << 30) / BLOCK;
    let sealer = Sealer::new(uuid::Uuid::from_u128(1), None);
    let mut store = Store { sealer, objects: HashMap::new(), infos: BTreeMap::new(), put: 0 };
    let random = Random::seeded(gib);
    let (runs, space) = dense(blocks, &mut store);
    let mut map = ExtentMap::restore(BlockCount(blocks), runs, Table::default(), space);
    let mut seq = blocks.div_ceil(SEGMENT);
    let (mut written, mut most_runs, mut longest, mut sum, mut longest_step) =
        (0, 0, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    // Until what is above the last run was merged into it once, and half as long again.
    let checkpoints = (blocks / 2 / (SEGMENT * SEGMENTS_PER_CHECKPOINT)).max(6);
    for _ in 0..checkpoints {
        for _ in 0..SEGMENTS_PER_CHECKPOINT {
            seq += 1;
            let mut at: Vec<u64> = (0..SEGMENT).map(|_| random.below(blocks)).collect();
            at.sort_unstable();
            at.dedup();
            let change = |(n, block): (usize, &u64)| {
                let frame = FrameAddr { seq: Seq(seq), offset: n as u32 * FRAME, len: FRAME };
                (Extent::new(*block, 1), Placement::Data(Location { frame, block: 0 }))
            };
            let changes: Vec<_> = at.iter().enumerate().map(change).collect();
            let count = changes.len() as u32;
            let info =
                SegmentInfo { blocks: count, live_blocks: count, stored_bytes: 8 << 20, ..SegmentInfo::default() };
            let began = Instant::now();
            map.count_exactly_within((MEMORY / EXACT_PART) as u64);
            while let Err(NeedPages(need)) = map.apply(Seq(seq), info, &changes, None) {
                need.iter().for_each(|page| map.page_loaded(page.at, store.get(page)));
            }
            let took = began.elapsed();
            (longest, sum) = (longest.max(took), sum + took);
            written += u64::from(count) * BLOCK;
            map.evict(MEMORY);
        }
        let step = checkpoint(&mut map, &mut store, Seq(seq));
        longest_step = longest_step.max(step);
        most_runs = most_runs.max(map.runs().len());
    }
    let pages = cold_reads(&mut map, &store, blocks, &random);
    println!(
        "| {gib} GiB | {:.1} MiB | {:.4} | {most_runs} | {:.2} ms | {:.2} ms | {:.1} ms | {pages:.1} |",
        store.bytes() as f64 / f64::from(1 << 20),
        store.put as f64 / written as f64,
        longest.as_secs_f64() * 1e3,
        sum.as_secs_f64() * 1e3 / (checkpoints * SEGMENTS_PER_CHECKPOINT) as f64,
        longest_step.as_secs_f64() * 1e3,
    );
}

/// Returns the longest time that a step of it took.
fn checkpoint(map: &mut ExtentMap, store: &mut Store, seq: Seq) -> Duration {
    let snapshot = map.begin_checkpoint();
    let mut longest = Duration::ZERO;
    let mut layout = Layout::new(seq, &snapshot, false, MEMORY / 2, Sizes::default()).unwrap();
    loop {
        let began = Instant::now();
        let progress = layout.go_on().unwrap();
        longest = longest.max(began.elapsed());
        match progress {
            Progress::GoOn => {}
            Progress::Needs(NeedPages(need)) => {
                let pages: Vec<_> =
                    need.iter().map(|page| (page.at, map.page(&page.at).unwrap_or_else(|| store.get(page)))).collect();
                layout.take_pages(pages);
            }
            Progress::Done => break,
        }
    }
    let mut done = layout.into_laid_out();
    let fold = Fold::new(seq, &snapshot.table, done.deaths.iter(), Default::default(), Bounds::default());
    let load = |page: PageAt| map.page(&page.at).unwrap_or_else(|| store.get(&page));
    let (folded, step) = table::fold(fold, &mut done.writer, load);
    let (frames, pages) = done.writer.finish();
    let runs = store.checkpoint(seq, done.runs, folded.durable.root(), frames);
    drop(map.checkpointed(Checkpointed { runs, table: folded, pages }));
    while map.tidy(|checkpoint| store.infos.contains_key(&checkpoint)).is_some() {}
    map.evict(MEMORY);
    longest.max(step)
}

/// Pages that a lookup of a block asks for when none is in memory but indexes.
fn cold_reads(map: &mut ExtentMap, store: &Store, blocks: u64, random: &Random) -> f64 {
    const READS: u64 = 200;
    let mut asked = 0;
    for _ in 0..READS {
        map.evict(0);
        let block = Extent::new(random.below(blocks), 1);
        while let Err(NeedPages(need)) = map.lookup(block) {
            asked += need.iter().filter(|page| page.kind != PageKind::Index).count() as u64;
            need.iter().for_each(|page| map.page_loaded(page.at, store.get(page)));
        }
    }
    asked as f64 / READS as f64
}
