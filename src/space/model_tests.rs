//! The table against a plain one, whatever checkpoints, losses, deletions and forgotten pages come between.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::page_format;
use super::*;
use crate::units::{BlockCount, PageRef};

#[derive(Clone, Debug)]
enum Step {
    /// A segment of so many blocks takes effect; so many slots are left out.
    Born { blocks: u32, gap: u64 },
    /// Blocks of segments die.
    Died(Vec<(prop::sample::Index, u32)>),
    /// A segment takes effect that carries some of those that the last checkpoint knows, and carriers.
    Carry(Vec<prop::sample::Index>),
    /// What is dead as of the last checkpoint is deleted, so many.
    Delete(usize),
    /// A checkpoint, which finds deaths and may never become durable; what happens while it is under way; whether pages can be had.
    Checkpoint { found: Vec<(prop::sample::Index, u32)>, during: Vec<Step>, is_lost: bool, has_pages: Has },
    /// All pages leave.
    Forget,
    /// All older blocks die.
    AllDied,
    /// The table as a server finds it that opens the volume.
    Reopen,
}

/// Which pages a checkpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    All,
    Needed,
    None,
}

/// Pages in memory.
#[derive(Default, Clone)]
struct Memory(HashMap<PageRef, Page>);

impl Pages for Memory {
    fn page(&self, at: &PageRef) -> Option<&Page> {
        self.0.get(at)
    }
}

/// The pages of one checkpoint.
struct Object {
    seq: Seq,
    offset: u32,
    bytes: HashMap<PageRef, Vec<u8>>,
}

impl Sink for Object {
    fn put(&mut self, bytes: &[u8], _page: Page) -> Result<PageRef, EncodeError> {
        let at = PageRef { checkpoint: self.seq, offset: self.offset, len: bytes.len() as u32 };
        self.offset += at.len;
        self.bytes.insert(at, bytes.to_vec());
        Ok(at)
    }
}

type Plain = BTreeMap<Seq, SegmentInfo>;

/// The table as it should be.
#[derive(Clone, Debug, Default)]
struct Model {
    plain: Plain,
    /// Live blocks of segments by the places at which maps have them.
    named: BTreeMap<Seq, u32>,
    /// Who carries a segment.
    holder: BTreeMap<Seq, Seq>,
}

impl Model {
    fn born(&mut self, seq: Seq, info: SegmentInfo) {
        self.plain.insert(seq, info);
        self.named.insert(seq, info.live_blocks);
    }

    fn died(&mut self, seq: Seq, blocks: u32) {
        *self.named.get_mut(&seq).unwrap() -= blocks;
        let holder = self.holder.get(&seq).copied().unwrap_or(seq);
        self.plain.get_mut(&holder).unwrap().live_blocks -= blocks;
    }

    fn carry(&mut self, seq: Seq, info: SegmentInfo, victims: &[Seq]) {
        let live_blocks =
            victims.iter().map(|victim| std::mem::take(&mut self.plain.get_mut(victim).unwrap().live_blocks)).sum();
        self.plain.insert(seq, SegmentInfo { live_blocks, ..info });
        let of_carriers = self.holder.values_mut().filter(|holder| victims.contains(holder));
        of_carriers.for_each(|holder| *holder = seq);
        let named = victims.iter().filter(|victim| self.named.contains_key(victim));
        self.holder.extend(named.map(|victim| (*victim, seq)));
    }

    fn forget(&mut self, seq: Seq) {
        self.plain.remove(&seq);
        self.holder.retain(|_, holder| *holder != seq);
    }
}

/// What is logged since the last checkpoint.
#[derive(Clone, Debug)]
enum Logged {
    Born(Seq, SegmentInfo),
    Died(Seq, u32),
    Carried(Seq, SegmentInfo, Cargo),
}

struct World {
    bounds: Bounds,
    space: Space,
    memory: Memory,
    store: HashMap<PageRef, Vec<u8>>,
    model: Model,
    /// The last durable checkpoint: its seq, root, and what was live in it.
    base: (Seq, TableRoot, Vec<(Seq, SegmentInfo)>, Model),
    log: Vec<Logged>,
    next: u64,
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let tiny = Bounds {
        deltas: 6,
        part: 0,
        few: 1,
        deltas_of_few: 5,
        spans_in_root: 2,
        deltas_in_root: 1,
        lists: 3,
        objects: 4,
        spans: 3,
    };
    let other = Bounds { deltas: 40, part: 1, few: 0, ..tiny };
    prop_oneof![3 => Just(tiny), 2 => Just(other), 1 => Just(Bounds::default())]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let deaths = || prop::collection::vec((any::<prop::sample::Index>(), 1_u32..60), 0..8);
    let change = || {
        prop_oneof![
            6 => (0_u32..100, prop_oneof![4 => Just(0), 1 => 1_u64..2 * SPAN]).prop_map(|(blocks, gap)| Step::Born { blocks, gap }),
            8 => deaths().prop_map(Step::Died),
            3 => (0_usize..9).prop_map(Step::Delete),
            3 => prop::collection::vec(any::<prop::sample::Index>(), 1..5).prop_map(Step::Carry),
        ]
    };
    let during = prop::collection::vec(change(), 0..5);
    let checkpoint = (
        deaths(),
        during,
        prop::bool::weighted(0.15),
        prop_oneof![6 => Just(Has::All), 1 => Just(Has::Needed), 1 => Just(Has::None)],
    );
    let step = prop_oneof![
        16 => change(),
        8 => checkpoint.prop_map(|(found, during, is_lost, has_pages)| Step::Checkpoint { found, during, is_lost, has_pages }),
        3 => Just(Step::Forget),
        1 => Just(Step::AllDied),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn read_back(page: &PageAt, store: &HashMap<PageRef, Vec<u8>>) -> Page {
    page_format::decode(page.kind, page.number, &store[&page.at]).unwrap()
}

impl World {
    fn new(bounds: Bounds) -> World {
        World {
            bounds,
            space: Space::default(),
            memory: Memory::default(),
            store: HashMap::new(),
            model: Model::default(),
            base: (Seq(0), TableRoot::default(), Vec::new(), Model::default()),
            log: Vec::new(),
            next: 1,
        }
    }

    fn load(&mut self, need: Need) {
        for page in need.0 {
            self.memory.0.insert(page.at, read_back(&page, &self.store));
            if page.kind == PageKind::Counters {
                self.space.counters_loaded(Span(page.number), &self.memory);
            }
        }
    }

    /// Segments that have so many live blocks, and how many of them are to die.
    fn victims(&self, deaths: &[(prop::sample::Index, u32)]) -> Vec<(Seq, u32)> {
        let mut live: Vec<(Seq, u32)> = self.model.named.iter().map(|(seq, live)| (*seq, *live)).collect();
        let mut victims = Vec::new();
        for (at, blocks) in deaths {
            live.retain(|(_, live)| *live > 0);
            if live.is_empty() {
                break;
            }
            let at = at.index(live.len());
            let blocks = (*blocks).min(live[at].1);
            live[at].1 -= blocks;
            victims.push((live[at].0, blocks));
        }
        victims
    }

    fn step(&mut self, step: Step) {
        let is_checkpoint = matches!(step, Step::Checkpoint { .. });
        self.take_step(step);
        if !is_checkpoint {
            while self.space.sum_up_more(&self.memory) {}
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Born { blocks, gap } => {
                let seq = Seq(self.next + gap);
                self.next = seq.0 + 1;
                let salt = [seq.0 as u8; 16];
                let info = SegmentInfo { salt, stored_bytes: u64::from(blocks) * 100, blocks, live_blocks: blocks };
                self.space.born(seq, info);
                self.model.born(seq, info);
                self.log.push(Logged::Born(seq, info));
            }
            Step::Died(deaths) => {
                for (seq, blocks) in self.victims(&deaths) {
                    self.space.died(seq, blocks.into(), &self.memory);
                    self.model.died(seq, blocks);
                    self.log.push(Logged::Died(seq, blocks));
                }
            }
            Step::Delete(most) => {
                for (seq, counter) in self.dead().into_iter().take(most) {
                    self.space.forget(seq, counter.stored_bytes, &self.memory);
                    self.model.forget(seq);
                }
            }
            Step::Carry(victims) => {
                let is_carrier = |seq: &Seq| self.model.holder.values().any(|holder| holder == seq);
                let live = self.model.plain.iter().filter(|(_, info)| info.live_blocks > 0).map(|(seq, _)| *seq);
                let live: Vec<Seq> = live.filter(|seq| *seq <= self.base.0 || is_carrier(seq)).collect();
                if live.is_empty() {
                    return;
                }
                let victims: BTreeSet<Seq> = victims.iter().map(|victim| live[victim.index(live.len())]).collect();
                let seq = Seq(self.next);
                self.next += 1;
                let info = SegmentInfo { salt: [seq.0 as u8; 16], stored_bytes: 700, blocks: 7, live_blocks: 7 };
                let cargo =
                    Cargo { victims: victims.into_iter().collect(), versions: Vec::new(), as_of: Seq(seq.0 - 1) };
                self.carry(seq, info, &cargo);
                self.log.push(Logged::Carried(seq, info, cargo));
            }
            Step::Checkpoint { found, during, is_lost, has_pages } if self.next > self.base.0.0 + 1 => {
                self.checkpoint(&found, during, is_lost, has_pages)
            }
            Step::Checkpoint { .. } => {}
            Step::Forget => self.memory.0.clear(),
            Step::AllDied => {
                let since: BTreeSet<Seq> = self
                    .log
                    .iter()
                    .filter_map(|logged| match logged {
                        Logged::Born(seq, _) => Some(*seq),
                        Logged::Died(..) | Logged::Carried(..) => None,
                    })
                    .collect();
                let of = self.model.named.iter().filter(|(seq, _)| since.contains(seq));
                let live: HashMap<Seq, u64> = of.map(|(seq, live)| (*seq, (*live).into())).collect();
                if self.space.all_died_but(&live) {
                    let died = self.model.named.iter().filter(|(seq, live)| !since.contains(seq) && **live > 0);
                    for (seq, live) in died.map(|(seq, live)| (*seq, *live)).collect::<Vec<_>>() {
                        self.log.push(Logged::Died(seq, live));
                        self.model.died(seq, live);
                    }
                }
            }
            Step::Reopen => self.reopen(),
        }
    }

    /// What may be deleted; nothing of it is live, and was not as of the last checkpoint either.
    fn dead(&mut self) -> Counted {
        let (mut dead, mut from) = (Counted::new(), Span(0));
        loop {
            let Some(span) = self.space.spans_with_dead(from).next() else { break };
            match self.space.dead(span, &self.memory) {
                Ok(some) => dead.extend(some),
                Err(need) => {
                    self.load(need);
                    continue;
                }
            }
            from = Span(span.0 + 1);
        }
        for (seq, _) in &dead {
            assert_eq!(
                self.base.3.plain.get(seq).map(|info| info.live_blocks),
                Some(0),
                "segment {seq} is not dead in the checkpoint"
            );
            assert_eq!(
                self.model.plain.get(seq).map(|info| info.live_blocks),
                Some(0),
                "segment {seq} is not dead, or gone"
            );
        }
        dead
    }

    fn reopen(&mut self) {
        let (seq, root, loose, model) = self.base.clone();
        self.memory.0.clear();
        let durable = loop {
            match Durable::new(seq, &root, &self.memory) {
                Ok(durable) => break durable,
                Err(need) => {
                    need.0.iter().for_each(|page| drop(self.memory.0.insert(page.at, read_back(page, &self.store))))
                }
            }
        };
        assert_eq!(durable.root(), root);
        self.space = Space::restore(durable, loose);
        // What was deleted since is there again, and dead; it is deleted once more.
        self.model = model;
        for logged in self.log.clone() {
            match logged {
                Logged::Born(seq, info) => {
                    self.space.born(seq, info);
                    self.model.born(seq, info);
                }
                Logged::Died(seq, blocks) => {
                    self.space.died(seq, blocks.into(), &self.memory);
                    self.model.died(seq, blocks);
                }
                Logged::Carried(seq, info, cargo) => self.carry(seq, info, &cargo),
            }
        }
    }

    fn carry(&mut self, seq: Seq, info: SegmentInfo, cargo: &Cargo) {
        while let Err(need) = self.space.carry(seq, info, cargo, &self.memory) {
            self.load(need);
        }
        // What died and is not counted yet is among what it seems to have brought.
        let blocks = self.space.counter(seq, &self.memory).unwrap().unwrap().blocks;
        assert!(blocks >= info.blocks);
        self.model.carry(seq, SegmentInfo { blocks, ..info }, &cargo.victims);
    }

    fn checkpoint(&mut self, found: &[(prop::sample::Index, u32)], during: Vec<Step>, is_lost: bool, has_pages: Has) {
        let at = Seq(self.next - 1);
        let snapshot = self.space.begin_checkpoint();
        let (logged, mut model) = (self.log.len(), self.model.clone());
        // Blocks that died before and that nobody has counted yet.
        let found = self.victims(found);
        for (seq, blocks) in &found {
            self.model.died(*seq, *blocks);
            model.died(*seq, *blocks);
        }
        for step in during {
            self.step(step);
        }
        let mut fold = Fold::new(
            at,
            &snapshot,
            found.iter().map(|(seq, blocks)| (*seq, (*blocks).into())),
            BTreeSet::new(),
            self.bounds,
        );
        let mut object = Object { seq: at, offset: 0, bytes: HashMap::new() };
        loop {
            match fold.go_on(&self.memory.clone(), &mut object).unwrap() {
                Progress::GoOn => {}
                Progress::Needs(need) => {
                    if has_pages == Has::All || !fold.give_up() && has_pages == Has::Needed {
                        self.load(need);
                    } else if has_pages == Has::None {
                        fold.set_aside(&need);
                    }
                }
                Progress::Done => break,
            }
        }
        let folded = fold.finish(&mut object).unwrap();
        assert_eq!(folded.contradictions, 0);
        if is_lost {
            // What it found is found again by the next one.
            return self.reopen();
        }
        let (root, loose) = (folded.durable.root(), folded.loose.clone());
        assert!(root.lists.len() <= self.bounds.lists.max(1));
        assert!(root.objects.iter().all(|seq| *seq <= at));
        self.store.extend(object.bytes);
        // Its sums are made anew only after the next step, or with more that come.
        drop(self.space.checkpointed(folded, &self.memory));
        // A deletion that ended before is in no checkpoint yet: what it deleted may be deleted again.
        self.base = (at, root, loose, model);
        self.log.drain(..logged);
        let objects = self.base.1.objects.clone();
        self.store.retain(|at, _| objects.contains(&at.checkpoint));
        self.memory.0.retain(|at, _| objects.contains(&at.checkpoint));
    }

    fn check(&mut self) {
        let spans: BTreeSet<Span> =
            self.model.plain.keys().map(|seq| Span::of(*seq)).chain(self.space.spans()).collect();
        let mut all = Vec::new();
        for span in spans {
            let infos = loop {
                match self.space.infos(span, &self.memory) {
                    Ok(infos) => break infos,
                    Err(need) => self.load(need),
                }
            };
            for (seq, info) in &infos {
                let one = self.space.counter(*seq, &self.memory).unwrap();
                assert_eq!(one, Some(info.counter()), "segment {seq} by itself");
            }
            all.extend(infos);
        }
        assert_eq!(all, self.model.plain.iter().map(|(seq, info)| (*seq, *info)).collect::<Vec<_>>());
        assert_eq!(self.space.inconsistencies, 0);
        for seq in self.model.named.keys() {
            let holder = self.model.holder.get(seq).unwrap_or(seq);
            assert_eq!(self.space.carriers().holder(*seq), *holder, "what maps place in {seq}");
        }
    }

    /// All pages are in memory: sums are exact, and every segment that is worth something is found.
    fn check_sums(&mut self) {
        while self.space.sum_up_more(&self.memory) {}
        let spans: Vec<Span> = self.space.spans().collect();
        for span in spans {
            while let Err(need) = self.space.span(span, &self.memory) {
                self.load(need);
            }
            self.space.counters_loaded(span, &self.memory);
        }
        let mut totals = Totals::default();
        self.model.plain.values().for_each(|info| totals.count(&info.counter()));
        assert_eq!(self.space.totals(), totals);
        for (seq, info) in &self.model.plain {
            let summary = self.space.summary(Span::of(*seq)).unwrap();
            let class = summary::share_of(&info.counter());
            assert!(class.is_none_or(
                |class| summary.shares[class].segments > 0 && self.space.by_share[class].contains(&Span::of(*seq))
            ));
            assert!(info.live_blocks > 0 || self.space.with_dead.contains(&Span::of(*seq)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_table_is_the_plain_one(steps in steps(), bounds in bounds()) {
        let mut world = World::new(bounds);
        for (n, step) in steps.into_iter().enumerate() {
            world.step(step);
            // Mostly nothing is loaded: then most deaths are blind.
            if n % 7 == 0 {
                world.check();
            }
        }
        world.check();
        world.check_sums();
        world.dead();
    }
}

/// A table whose pages are all in the store, and none in memory.
struct Cold {
    space: Space,
    store: HashMap<PageRef, Vec<u8>>,
    at: u64,
    /// Objects that the next checkpoint is to leave behind.
    leave: BTreeSet<Seq>,
}

impl Cold {
    fn new(segments: impl Iterator<Item = (u64, u32, u32)>) -> Cold {
        let info = |(seq, blocks, live_blocks)| {
            (Seq(seq), SegmentInfo { salt: [7; 16], stored_bytes: u64::from(blocks) * 4096, blocks, live_blocks })
        };
        let space = Space::restore(Durable::default(), segments.map(info));
        let at = space.spans().last().unwrap().last().0;
        let mut cold = Cold { space, store: HashMap::new(), at, leave: BTreeSet::new() };
        cold.checkpoint();
        cold
    }

    /// Returns the bytes that it put, and how many pages it read.
    fn checkpoint(&mut self) -> (usize, usize) {
        self.at += 1;
        let snapshot = self.space.begin_checkpoint();
        let mut fold =
            Fold::new(Seq(self.at), &snapshot, std::iter::empty(), std::mem::take(&mut self.leave), Bounds::default());
        let (mut object, mut memory) =
            (Object { seq: Seq(self.at), offset: 0, bytes: HashMap::new() }, Memory::default());
        loop {
            match fold.go_on(&memory, &mut object).unwrap() {
                Progress::GoOn => {}
                Progress::Needs(need) => {
                    memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, &self.store))))
                }
                Progress::Done => break,
            }
        }
        let folded = fold.finish(&mut object).unwrap();
        let put = object.bytes.values().map(Vec::len).sum();
        self.store.extend(object.bytes);
        let objects = folded.durable.objects();
        self.store.retain(|at, _| objects.contains_key(&at.checkpoint));
        drop(self.space.checkpointed(folded, &Memory::default()));
        while self.space.sum_up_more(&Memory::default()) {}
        (put, memory.0.len())
    }

    /// Candidates, and the spans of the pages that they took.
    fn candidates(&self, want: Want) -> (Vec<u64>, BTreeSet<u64>) {
        let (mut memory, mut spans) = (Memory::default(), BTreeSet::new());
        loop {
            match self.space.candidates(&want, &BTreeSet::new(), &memory) {
                Ok(found) => return (found.into_iter().map(|(seq, _)| seq.0 / SPAN).collect(), spans),
                Err(need) => {
                    spans.extend(need.0.iter().map(|page| page.number));
                    memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, &self.store))));
                }
            }
        }
    }
}

/// Of forty full spans, one old one has half empty segments, and a new one hardly live ones.
#[test]
fn only_what_is_worth_it_is_looked_at() {
    let live = |span| match span {
        3 => 1000,
        30 => 100,
        _ => 2048,
    };
    let cold = Cold::new((0..40).flat_map(|span| (1..6).map(move |n| (span * SPAN + n, 2048, live(span)))));
    let want = |order| Want { order, freed: 4 << 20, live: 0, blocks: 1 << 20, segments: 1 };
    let only = |span| (vec![span; 5], BTreeSet::from([span]));
    assert_eq!(cold.candidates(want(Order::Emptiest)), only(30));
    assert_eq!(cold.candidates(want(Order::Benefit(Seq(40 * SPAN)))), only(3), "it is four times as old");
    assert_eq!(cold.candidates(want(Order::Smallest(128))), only(30), "the only small ones");
    let few = cold.candidates(Want { segments: 6, ..want(Order::Smallest(128)) });
    assert_eq!(few, (vec![], BTreeSet::new()), "five are not worth a look");
    let both = cold.candidates(Want { freed: 50 << 20, ..want(Order::Emptiest) });
    assert_eq!(both.1, BTreeSet::from([3, 30]), "and no others, if that is not enough");
}

/// A block here and there of every segment dies: little is put (of 4 KiB that were written 24 bytes), no page is read but for those that it
/// pays to fold, and all of it is counted.
#[test]
fn random_deaths_cost_some_bytes_each() {
    const SEGMENTS: u64 = 80 * SPAN;
    let mut cold = Cold::new((1..SEGMENTS).map(|seq| (seq, 16384, 16384)));
    let (mut state, mut died, mut put, mut read) = (1_u64, HashMap::<u64, u32>::new(), 0, 0);
    const EACH: u64 = 8 << 10;
    for _ in 0..16 {
        for _ in 0..EACH {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let seq = 1 + (state >> 33) % (SEGMENTS - 1);
            cold.space.died(Seq(seq), 1, &Memory::default());
            *died.entry(seq).or_default() += 1;
        }
        let (bytes, pages) = cold.checkpoint();
        (put, read) = (put + bytes, read + pages);
    }
    let deaths = 16 * EACH as usize;
    assert!(put < 24 * deaths, "{put} bytes for {deaths} deaths");
    assert!(read < 16 * 40, "{read} pages of 80 spans in 16 checkpoints");
    assert!(cold.space.durable().root().lists.len() <= Bounds::default().lists);
    let mut memory = Memory::default();
    for seq in 1..SEGMENTS {
        let counter = loop {
            match cold.space.counter(Seq(seq), &memory) {
                Ok(counter) => break counter.unwrap(),
                Err(need) => memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, &cold.store)))),
            }
        };
        assert_eq!(counter.live_blocks, 16384 - died.get(&seq).copied().unwrap_or(0), "segment {seq}");
    }
}

/// The table lies in few objects, however many checkpoints there were.
#[test]
fn the_table_lies_in_few_objects() {
    let mut cold = Cold::new((1..4 * SPAN).map(|seq| (seq, 100, 100)));
    for n in 0..400_u64 {
        let seq = Seq(cold.at + 100);
        cold.at = seq.0;
        cold.space.born(seq, SegmentInfo { blocks: 9, live_blocks: 9, stored_bytes: 900, ..SegmentInfo::default() });
        cold.space.died(Seq(1 + n % 4000), 1, &Memory::default());
        let (put, _) = cold.checkpoint();
        assert!(put < 1 << 20, "{put} bytes in one checkpoint");
        let objects = cold.space.durable().objects().len();
        assert!(objects <= Bounds::default().objects + 2, "{objects} objects");
    }
}

/// What is sealed with a retired key, say.
#[test]
fn objects_can_be_left_behind() {
    let mut cold = Cold::new((1..40 * SPAN).step_by(100).map(|seq| (seq, 100, 100)));
    let first = cold.at;
    (0..5000).for_each(|n| cold.space.died(Seq(1 + 100 * n % (39 * SPAN)), 1, &Memory::default()));
    cold.checkpoint();
    assert!(cold.space.durable().objects().contains_key(&Seq(first)));
    cold.leave = cold.space.durable().objects().into_keys().collect();
    cold.checkpoint();
    assert_eq!(cold.space.durable().objects().into_keys().collect::<Vec<_>>(), [Seq(cold.at)]);
}

/// Slots that a fence voided lie beyond the checkpoint that a server writes first: what may come into them is not to be deleted yet.
#[test]
fn what_lies_behind_the_checkpoint_is_not_doomed() {
    let mut cold = Cold::new([(1, 5, 0), (2, 5, 5), (3, 5, 0)].into_iter());
    let dead = |cold: &Cold| {
        let mut memory = Memory::default();
        loop {
            match cold.space.dead(Span(cold.at / SPAN), &memory) {
                Ok(dead) => return dead.into_iter().map(|(seq, _)| seq.0 - SPAN).collect::<Vec<_>>(),
                Err(need) => memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, &cold.store)))),
            }
        }
    };
    let void = |space: &mut Space, seq| space.born(Seq(seq), SegmentInfo::default());
    assert_eq!(cold.at, SPAN, "the next checkpoint is one further");
    (1..4).for_each(|n| void(&mut cold.space, SPAN + n));
    assert_eq!(dead(&cold), [] as [u64; 0], "no checkpoint knows them");
    cold.checkpoint();
    assert_eq!(dead(&cold), [1]);
    cold.checkpoint();
    assert_eq!(dead(&cold), [1, 2]);
}

/// Of a span of which all died, what was deleted before is of a size that the table does not know. Once the last of it is deleted, nobody needs
/// a page of it any more, so the sums must be right by then.
#[test]
fn of_a_span_that_is_emptied_nothing_is_left_in_the_sums() {
    let bounds = Bounds { deltas: 40, part: 1, few: 0, ..Bounds::default() };
    let mut world = World::new(bounds);
    let checkpoint = || Step::Checkpoint { found: Vec::new(), during: Vec::new(), is_lost: false, has_pages: Has::All };
    (0..20).for_each(|_| world.step(Step::Born { blocks: 10, gap: 0 }));
    world.step(checkpoint());
    world.space.died(Seq(3), 10, &world.memory);
    world.model.died(Seq(3), 10);
    world.step(Step::Born { blocks: 1, gap: 3 * SPAN });
    world.step(checkpoint());
    world.check_sums();
    world.step(Step::Delete(1));
    assert!(!world.model.plain.contains_key(&Seq(3)));
    world.step(Step::AllDied);
    world.step(Step::Born { blocks: 1, gap: 0 });
    world.step(checkpoint());
    world.step(Step::Delete(100));
    let mut totals = Totals::default();
    world.model.plain.values().for_each(|info| totals.count(&info.counter()));
    assert_eq!((world.model.plain.len(), world.space.totals()), (1, totals));
}

#[test]
fn what_is_contradicted_keeps_a_block() {
    let mut cold = Cold::new([(1, 5, 2)].into_iter());
    let none = Memory::default();
    cold.space.died(Seq(1), 3, &none);
    cold.checkpoint();
    assert_eq!(cold.space.inconsistencies, 1);
    let memory = Memory(
        cold.store
            .iter()
            .filter_map(|(at, bytes)| Some((*at, page_format::decode(PageKind::Counters, 0, bytes).ok()?)))
            .collect(),
    );
    assert_eq!(cold.space.counter(Seq(1), &memory).unwrap().unwrap().live_blocks, 2);
    // Nor does one that is live vanish because somebody says that it was deleted.
    cold.space.forget(Seq(1), 5 * 4096, &none);
    cold.checkpoint();
    assert!(cold.space.inconsistencies > 1);
    cold.space.died(Seq(9999), 1, &none);
    assert_eq!(cold.space.spans().collect::<Vec<_>>(), [Span(0)]);
}

/// Whoever keeps a version of which the carrier does not know, of before it was made, goes on with what that version needs.
#[test]
fn what_carries_others_without_knowing_a_version_has_no_effect() {
    let mut cold = Cold::new([(1, 5, 3), (2, 5, 4), (3, 5, 5)].into_iter());
    let version = Seq(cold.at + 1);
    let label = Label { name: "a".into(), ..Label::default() };
    let take = kept::Change { take: Some((label, BlockCount(9))), ..kept::Change::default() };
    cold.space.change_versions(version, take);
    cold.checkpoint();
    let carries = |space: &mut Space, store: &HashMap<PageRef, Vec<u8>>, seq, versions: Vec<Seq>, as_of| {
        let cargo = Cargo { victims: vec![Seq(1), Seq(2)], versions, as_of: Seq(as_of) };
        let mut memory = Memory::default();
        let info = SegmentInfo { blocks: 7, live_blocks: 7, ..SegmentInfo::default() };
        while let Err(need) = space.carry(Seq(seq), info, &cargo, &memory) {
            memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, store))));
        }
        [1, 2, seq].map(|seq| {
            loop {
                match space.counter(Seq(seq), &memory) {
                    Ok(counter) => break counter.unwrap().live_blocks,
                    Err(need) => memory.0.extend(need.0.iter().map(|page| (page.at, read_back(page, store)))),
                }
            }
        })
    };
    let (space, store, at) = (&mut cold.space, &cold.store, cold.at);
    assert_eq!(carries(space, store, at + 2, vec![], at + 1), [3, 4, 0]);
    assert_eq!(carries(space, store, at + 3, vec![Seq(version.0 - 1)], at + 2), [3, 4, 0]);
    assert!(space.carriers().is_empty());
    // One that is taken after it was known what is needed needs no more than that.
    assert_eq!(carries(space, store, at + 4, vec![version], at + 3), [0, 0, 7]);
    assert_eq!(space.carriers().holder(Seq(2)), Seq(at + 4));
}
