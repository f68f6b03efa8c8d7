//! The policy of garbage collection on simulated workloads: how many bytes it writes for each that the client writes, and
//! how much is stored for each live byte. The table that this prints stands in `docs/garbage-collection.md`:
//! `cargo test --test gc_policy -- --nocapture`.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ashlar::gc::{self, Activity, Options};
use ashlar::map::{MapPage, PageRef};
use ashlar::outside::Random;
use ashlar::space::{SegmentInfo, Space, Span};
use ashlar::units::Seq;

/// Blocks of the simulated volume: 1 GiB of 4 KiB.
const BLOCKS: usize = 1 << 18;
const BLOCK: u64 = 4096;
/// Blocks of a full segment: 8 MiB.
const SEGMENT_BLOCKS: usize = 2048;
/// Checkpoint, and with it deletion, when this much is dead, or a sixteenth of what is live.
const DEAD_BYTES_MIN: u64 = 16 << 20;

/// A volume of blocks: which segment each is in.
struct Simulation {
    options: Options,
    random: Random,
    map: Vec<Option<Seq>>,
    contents: BTreeMap<Seq, Vec<u32>>,
    space: Space,
    head: Seq,
    buffer: Vec<u32>,
    written: u64,
    moved: u64,
    /// The most that was stored for each live byte since [`Simulation::measure`], in percent.
    stored_max: u64,
}

impl Simulation {
    fn new() -> Simulation {
        Simulation {
            options: Options::default(),
            random: Random::seeded(1),
            map: vec![None; BLOCKS],
            contents: BTreeMap::new(),
            space: Space::default(),
            head: Seq(0),
            buffer: Vec::new(),
            written: 0,
            moved: 0,
            stored_max: 0,
        }
    }

    fn measure(&mut self) {
        (self.written, self.moved, self.stored_max) = (0, 0, 0);
    }

    fn write(&mut self, block: usize) {
        self.buffer.push(block as u32);
        if self.buffer.len() == SEGMENT_BLOCKS {
            self.flush();
        }
    }

    /// Commits what is buffered, and lets collection do what it wants to do meanwhile.
    fn flush(&mut self) {
        let mut blocks = std::mem::take(&mut self.buffer);
        self.written += blocks.len() as u64;
        blocks.sort_unstable();
        blocks.dedup();
        self.commit(blocks);
        self.collect(Activity::Busy);
        let totals = self.space.totals();
        if totals.dead_bytes > DEAD_BYTES_MIN.max(totals.live_bytes / 16) {
            self.delete_dead();
        }
        let totals = self.space.totals();
        self.stored_max = self.stored_max.max(totals.stored_bytes * 100 / totals.live_bytes.max(1));
    }

    fn commit(&mut self, blocks: Vec<u32>) {
        self.head = self.head.next();
        let count = blocks.len() as u32;
        let info = SegmentInfo {
            stored_bytes: u64::from(count) * (BLOCK + 28),
            blocks: count,
            live_blocks: count,
            ..SegmentInfo::default()
        };
        self.space.born(self.head, info);
        for &block in &blocks {
            self.kill(block as usize);
            self.map[block as usize] = Some(self.head);
        }
        self.contents.insert(self.head, blocks);
    }

    fn kill(&mut self, block: usize) {
        if let Some(seq) = self.map[block].take() {
            self.space.died(seq, 1, &no_pages());
        }
    }

    fn trim(&mut self, blocks: std::ops::Range<usize>) {
        blocks.for_each(|block| self.kill(block));
    }

    fn collect(&mut self, activity: Activity) {
        loop {
            let totals = self.space.totals();
            let size = gc::Sizes { segment: SEGMENT_BLOCKS as u64 * BLOCK, block: BLOCK };
            let (options, none) = (&self.options, BTreeSet::new());
            let wants = gc::look(&totals, self.head, size, options, activity);
            let choose = |want| {
                let candidates = self.space.candidates(&want, &none, &no_pages()).unwrap();
                gc::choose(candidates.into_iter(), &totals, self.head, size, options, activity, &none)
            };
            let victims = wants.into_iter().map(choose).find(|victims| !victims.is_empty()).unwrap_or_default();
            if victims.is_empty() {
                return;
            }
            let is_live = |seq: Seq, block: &u32| self.map[*block as usize] == Some(seq);
            let mut live: Vec<u32> = (victims.iter())
                .flat_map(|&seq| self.contents[&seq].iter().copied().filter(move |block| is_live(seq, block)))
                .collect();
            live.sort_unstable();
            self.moved += live.len() as u64;
            live.chunks(SEGMENT_BLOCKS)
                .map(<[u32]>::to_vec)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|blocks| self.commit(blocks));
        }
    }

    fn delete_dead(&mut self) {
        let spans: Vec<Span> = self.space.spans_with_dead(Span(0)).collect();
        let counted = spans.into_iter().flat_map(|span| self.space.span(span, &no_pages()).unwrap());
        let dead: Vec<_> = counted.filter(|(_, counter)| counter.is_dead()).collect();
        for (seq, counter) in dead {
            self.space.forget(seq, counter.stored_bytes, &no_pages());
            self.contents.remove(&seq);
        }
    }

    /// The quiet minute after which the bill is looked at.
    fn quiet(&mut self) -> Line {
        self.flush();
        self.delete_dead();
        let (written, moved, stored_max) = (self.written, self.moved, self.stored_max);
        self.collect(Activity::Quiet);
        self.delete_dead();
        let totals = self.space.totals();
        let per_written = |moved: u64| moved as f64 / written.max(1) as f64;
        Line {
            moved_busy: per_written(moved),
            moved_quiet: per_written(self.moved - moved),
            stored_busy: stored_max as f64 / 100.0,
            stored_quiet: totals.stored_bytes as f64 / (totals.live_blocks.max(1) * BLOCK) as f64,
            objects: totals.objects,
        }
    }
}

/// All of its table is what no checkpoint has written.
fn no_pages() -> HashMap<PageRef, Arc<MapPage>> {
    HashMap::new()
}

/// What a workload cost.
struct Line {
    moved_busy: f64,
    moved_quiet: f64,
    stored_busy: f64,
    stored_quiet: f64,
    objects: u64,
}

fn print(name: &str, line: &Line) {
    println!(
        "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        line.moved_busy, line.stored_busy, line.moved_quiet, line.stored_quiet, line.objects
    );
}

/// Every block once.
fn fill(simulation: &mut Simulation) {
    (0..BLOCKS).for_each(|block| simulation.write(block));
    simulation.flush();
    simulation.measure();
}

/// Zipf with exponent 0.99, by the approximation of Gray et al., "Quickly Generating Billion-Record Synthetic Databases";
/// ranks are spread over the volume by a multiplication.
struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zetan: f64,
    eta: f64,
}

impl Zipf {
    fn new(n: usize, theta: f64) -> Zipf {
        let zeta = |n: usize| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let zetan = zeta(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / zetan);
        Zipf { n: n as f64, theta, alpha: 1.0 / (1.0 - theta), zetan, eta }
    }

    fn draw(&self, random: &Random) -> usize {
        let u = random.below(1 << 53) as f64 / (1u64 << 53) as f64;
        let uz = u * self.zetan;
        let rank = if uz < 1.0 {
            0.0
        } else if uz < 1.0 + 0.5f64.powf(self.theta) {
            1.0
        } else {
            self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha)
        };
        ((rank as usize).min(BLOCKS - 1) * 0x9E37_79B1) % BLOCKS
    }
}

const ROUNDS: usize = 6;

type Workload = fn() -> Line;

fn uniform() -> Line {
    let mut s = Simulation::new();
    fill(&mut s);
    for round in 0..ROUNDS {
        if round == 2 {
            s.measure(); // from here on it is in its steady state
        }
        (0..BLOCKS).for_each(|_| {
            let block = s.random.below(BLOCKS as u64) as usize;
            s.write(block);
        });
    }
    s.quiet()
}

fn zipf() -> Line {
    let mut s = Simulation::new();
    fill(&mut s);
    let zipf = Zipf::new(BLOCKS, 0.99);
    for round in 0..2 * ROUNDS {
        if round == 4 {
            s.measure();
        }
        (0..BLOCKS).for_each(|_| {
            let block = zipf.draw(&s.random);
            s.write(block);
        });
    }
    s.quiet()
}

fn sequential() -> Line {
    let mut s = Simulation::new();
    fill(&mut s);
    (0..4).for_each(|_| (0..BLOCKS).for_each(|block| s.write(block)));
    s.quiet()
}

fn fill_trim_fill() -> Line {
    let mut s = Simulation::new();
    fill(&mut s);
    for round in 0..4 {
        // Files of 256 KiB to 1 MiB, every other one deleted.
        let mut at = 0;
        while at < BLOCKS {
            let len = (64 + s.random.below(192) as usize).min(BLOCKS - at);
            if s.random.below(2) == 0 {
                s.trim(at..at + len);
                if round < 3 {
                    (at..at + len).for_each(|block| s.write(block));
                }
            }
            at += len;
        }
    }
    s.quiet()
}

/// A database: a log written in a ring with a FLUSH every 16 blocks, and pages written back, most of them hot.
fn database() -> Line {
    let mut s = Simulation::new();
    fill(&mut s);
    let (log, pages) = (BLOCKS / 16, BLOCKS - BLOCKS / 16);
    let zipf = Zipf::new(pages, 0.8);
    let mut at = 0;
    for _ in 0..20_000 {
        (0..16).for_each(|_| {
            s.write(at % log);
            at += 1;
        });
        (0..16).for_each(|_| {
            let page = log + zipf.draw(&s.random) % pages;
            s.write(page);
        });
        s.flush();
    }
    s.quiet()
}

#[test]
fn space_and_writes_stay_within_their_bounds() {
    println!(
        "| workload | moved per byte written | most stored per live byte | moved in the quiet, per byte written | stored per live byte after it | objects |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    let workloads: [(&str, Workload, f64); 5] = [
        ("uniform overwrite of 1 GiB, 4 KiB", uniform, 1.5),
        ("zipf 0.99 overwrite of 1 GiB, 4 KiB", zipf, 0.7),
        ("sequential overwrite of 1 GiB", sequential, 0.1),
        ("fill, delete files, fill", fill_trim_fill, 0.7),
        ("database: log with FLUSHes, pages", database, 1.5),
    ];
    for (name, run, moved_max) in workloads {
        let line = run();
        print(name, &line);
        assert!(line.moved_busy <= moved_max, "{name}: moves {} for each byte written", line.moved_busy);
        assert!(line.stored_busy <= 1.6, "{name}: stores {}", line.stored_busy);
        assert!(line.stored_quiet <= 1.25, "{name}: stores {} after a quiet minute", line.stored_quiet);
    }
}
