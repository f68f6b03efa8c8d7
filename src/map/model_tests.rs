//! The map against a plain table of blocks: what it says, whatever checkpoints, merges and forgotten pages come between, and what it
//! counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::compaction::Sizes;
use super::layout::{Layout, Progress};
use super::leaf_format::{decode_index, decode_leaf, encode_index, encode_leaf};
use super::survey::Taken;
use super::*;
use crate::space::{self, Bounds, Durable, Fold, Space};
use crate::units::{BlockCount, FrameAddr, Location, Seq};

const BLOCKS: u64 = 3000;

#[derive(Clone, Debug)]
enum Step {
    /// A segment: extents of some blocks each, data, zero or hole.
    Commit(Vec<(u64, u64, u8)>),
    /// Data of what was mapped so many steps ago is moved.
    Move { at: u64, len: u64, ago: usize },
    /// A checkpoint, and what is committed while it is under way; it may never become durable.
    /// Of the pages that merging needs, the first so many can be had.
    Checkpoint { all: bool, during: Vec<Step>, is_lost: bool, pages: usize },
    /// All clean pages leave.
    Forget,
    /// From now on live blocks are counted at once, or not.
    Exact(bool),
    /// The map as a server finds it that opens the volume.
    Reopen,
}

/// All of it smaller, so that a small map has pages, indexes and merges that take several checkpoints.
fn tiny() -> Sizes {
    Sizes {
        fan_in: 3,
        small_run: 32,
        few_entries: 0,
        leaf_entries: 8,
        leaves_in_root: 2,
        index_leaves: 4,
        step_leaves: 2,
        step_entries: 20,
        ..Sizes::default()
    }
}

fn sizes() -> impl Strategy<Value = Sizes> {
    prop_oneof![3 => Just(tiny()), 1 => Just(Sizes::default())]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = || (0..BLOCKS, prop_oneof![8 => 1_u64..20, 1 => 1..BLOCKS], 0_u8..6);
    let change = || {
        prop_oneof![
            1 => (4_u8..6).prop_map(|kind| Step::Commit(vec![(0, BLOCKS, kind)])),
            8 => prop::collection::vec(extent(), 1..30).prop_map(Step::Commit),
            3 => (0..BLOCKS, 1_u64..400, 0_usize..8).prop_map(|(at, len, ago)| Step::Move { at, len, ago }),
        ]
    };
    let during = prop::collection::vec(change(), 0..4);
    let pages = prop_oneof![3 => Just(usize::MAX), 1 => 0..30_usize];
    let checkpoint = (prop::bool::weighted(0.2), during, prop::bool::weighted(0.1), pages);
    let step = prop_oneof![
        15 => change(),
        6 => checkpoint.prop_map(|(all, during, is_lost, pages)| Step::Checkpoint { all, during, is_lost, pages }),
        2 => Just(Step::Forget),
        1 => any::<bool>().prop_map(Step::Exact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..80)
}

/// The map and the model side by side.
struct World {
    sizes: Sizes,
    map: ExtentMap,
    store: HashMap<PageRef, MapPage>,
    model: Vec<Option<Placement>>,
    seq: u64,
    /// Place in the log and model at each commit.
    past: Vec<(u64, Vec<Option<Placement>>)>,
    /// The last checkpoint, and the log after it.
    base: (u64, Vec<Run>, Durable),
    log: Vec<Logged>,
}

type Logged = (u64, SegmentInfo, Vec<(Extent, Placement)>, Option<Seq>);

/// A page as a reader of the store gets it.
fn read_back(first: BlockIndex, page: &MapPage) -> MapPage {
    match page {
        MapPage::Leaf(leaf) => {
            let bytes = encode_leaf(&leaf.iter().collect::<Vec<_>>()).unwrap();
            MapPage::Leaf(Leaf::new(&decode_leaf(first, &bytes).unwrap()))
        }
        MapPage::Index(pages) => MapPage::Index(decode_index(first, &encode_index(pages).unwrap()).unwrap()),
        MapPage::Table(page) => MapPage::Table(page.clone()),
        MapPage::Carrier(places) => MapPage::Carrier(places.clone()),
    }
}

impl World {
    fn new(sizes: Sizes) -> World {
        World {
            sizes,
            map: ExtentMap::new(BlockCount(BLOCKS)),
            store: HashMap::new(),
            model: vec![None; BLOCKS as usize],
            seq: 0,
            past: Vec::new(),
            base: (0, Vec::new(), Durable::default()),
            log: Vec::new(),
        }
    }

    fn load(store: &HashMap<PageRef, MapPage>, map: &mut ExtentMap, NeedPages(need): NeedPages) {
        for page in need {
            map.page_loaded(page.at, Arc::new(read_back(page.first, &store[&page.at])));
        }
    }

    fn apply(&mut self, changes: Vec<(Extent, Placement)>, as_of: Option<Seq>) {
        let blocks: u64 = changes
            .iter()
            .filter(|(_, placement)| matches!(placement, Placement::Data(_)))
            .map(|(extent, _)| extent.count.0)
            .sum();
        let info = SegmentInfo {
            blocks: blocks as u32,
            live_blocks: blocks as u32,
            stored_bytes: 1000,
            ..SegmentInfo::default()
        };
        while let Err(need) = self.map.apply(Seq(self.seq), info, &changes, as_of) {
            World::load(&self.store, &mut self.map, need);
        }
        self.log.push((self.seq, info, changes, as_of));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(extents) => {
                self.seq += 1;
                let mut offset = 0;
                let mut changes = Vec::new();
                for (at, len, kind) in extents {
                    let len = len.min(BLOCKS - at).min(if kind < 4 { 100 } else { BLOCKS });
                    offset += 1000;
                    let frame = FrameAddr { seq: Seq(self.seq), offset, len: 500 };
                    let placement = match kind {
                        4 => Placement::Zero,
                        5 => Placement::Hole,
                        _ => Placement::Data(Location { frame, block: u16::from(kind) }),
                    };
                    changes.push((Extent::new(at, len), placement));
                    for n in 0..len {
                        self.model[(at + n) as usize] = Some(placement.skip(BlockCount(n)));
                    }
                }
                self.past.push((self.seq, self.model.clone()));
                self.apply(changes, None);
            }
            Step::Move { at, len, ago } => {
                let Some((as_of, then)) = self.past.len().checked_sub(1 + ago).map(|at| self.past[at].clone()) else {
                    return;
                };
                self.seq += 1;
                let mut changes = Vec::new();
                for block in at..(at + len).min(BLOCKS) {
                    let Some(Placement::Data(from)) = then[block as usize] else { continue };
                    let frame = FrameAddr { seq: Seq(self.seq), offset: block as u32 * 10, len: 10 };
                    let to = Placement::Data(Location { frame, block: 0 });
                    changes.push((Extent::new(block, 1), to));
                    if self.model[block as usize] == Some(Placement::Data(from)) {
                        self.model[block as usize] = Some(to);
                    }
                }
                // Others were moved meanwhile: the past of a later move is this one.
                self.past.push((self.seq, self.model.clone()));
                self.apply(changes, Some(Seq(as_of)));
            }
            Step::Checkpoint { all, during, is_lost, pages } if self.seq > self.base.0 => {
                self.checkpoint(all, during, is_lost, pages)
            }
            Step::Checkpoint { .. } => {}
            Step::Forget => self.map.evict(0),
            Step::Exact(exact) => self.map.count_exactly_within(if exact { u64::MAX } else { 0 }),
            Step::Reopen => self.reopen(),
        }
    }

    fn reopen(&mut self) {
        let (_, runs, durable) = self.base.clone();
        self.map = ExtentMap::restore(BlockCount(BLOCKS), runs, Table::default(), Space::restore(durable, []));
        for (seq, info, changes, as_of) in &self.log {
            while let Err(need) = self.map.apply(Seq(*seq), *info, changes, *as_of) {
                World::load(&self.store, &mut self.map, need);
            }
        }
    }

    fn checkpoint(&mut self, all: bool, during: Vec<Step>, is_lost: bool, mut left: usize) {
        let at = self.seq;
        let snapshot = self.map.begin_checkpoint();
        for step in during {
            self.step(step);
            self.check().unwrap();
        }
        let mut layout = Layout::new(Seq(at), &snapshot, all, if all { usize::MAX } else { 0 }, self.sizes).unwrap();
        loop {
            match layout.go_on().unwrap() {
                Progress::GoOn => {}
                Progress::Needs(NeedPages(need)) if need.len() > left => layout.give_up(),
                Progress::Needs(NeedPages(need)) => {
                    left -= need.len();
                    let page = |page: &PageAt| (page.at, Arc::new(read_back(page.first, &self.store[&page.at])));
                    let pages: Vec<_> = need.iter().map(page).collect();
                    layout.take_pages(pages);
                }
                Progress::Done => break,
            }
        }
        let mut done = layout.into_laid_out();
        let mut fold = Fold::new(Seq(at), &snapshot.table, done.deaths.iter(), BTreeSet::new(), self.bounds());
        let mut loaded: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
        loop {
            match fold.go_on(&loaded, &mut done.writer).unwrap() {
                space::Progress::GoOn => {}
                space::Progress::Needs(need) => {
                    let NeedPages(need) = need.into();
                    if need.len() > left && fold.give_up() {
                        continue;
                    }
                    left = left.saturating_sub(need.len());
                    let page = |page: &PageAt| (page.at, Arc::new(read_back(page.first, &self.store[&page.at])));
                    loaded.extend(need.iter().map(page));
                }
                space::Progress::Done => break,
            }
        }
        let table = fold.finish(&mut done.writer).unwrap();
        let written = std::mem::take(&mut done.writer.all);
        let (_, pages) = done.writer.finish();
        if is_lost {
            return self.reopen();
        }
        self.store.extend(written);
        self.base = (at, done.runs.clone(), table.durable.clone());
        self.log.retain(|(seq, ..)| *seq > at);
        let runs = done.runs.iter().flat_map(|run| run.objects.keys().copied());
        let objects: BTreeSet<Seq> = runs.chain(table.durable.objects().into_keys()).collect();
        drop(self.map.checkpointed(Checkpointed { runs: done.runs, table, pages }));
        while self.map.tidy(|checkpoint| objects.contains(&checkpoint)).is_some() {}
        // Objects in which no run has pages are gone.
        self.store.retain(|at, _| objects.contains(&at.checkpoint));
    }

    /// One more look of a survey, and what happens before it is taken in.
    fn survey(&mut self, survey: &mut Survey, between: Vec<Step>) {
        if survey.position().is_none() {
            return between.into_iter().for_each(|step| self.step(step));
        }
        let runs = self.map.shared_runs().clone();
        let mut loaded: HashMap<PageRef, MapPage> = HashMap::new();
        let mut strip = loop {
            match survey.read(&runs, self.map.space().carriers(), &|at| loaded.get(at)) {
                Ok(strip) => break strip,
                Err(NeedPages(need)) => {
                    let page = |page: PageAt| (page.at, read_back(page.first, &self.store[&page.at]));
                    loaded.extend(need.into_iter().map(page));
                }
            }
        };
        between.into_iter().for_each(|step| self.step(step));
        // Nothing of it counts once the map has other runs.
        let end = if Arc::ptr_eq(&runs, self.map.shared_runs()) { Taken::All } else { Taken::Stale };
        let taken = loop {
            match survey.take(&mut strip, &self.map, 3) {
                Taken::Some => {}
                taken => break taken,
            }
        };
        assert_eq!(taken, end);
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let all = Extent::new(0, BLOCKS);
        let placed = loop {
            match self.map.lookup(all) {
                Ok(placed) => break placed,
                Err(need) => World::load(&self.store, &mut self.map, need),
            }
        };
        let mut says = Vec::new();
        for (extent, placement) in placed {
            prop_assert_eq!(extent.start.0, says.len() as u64);
            says.extend((0..extent.count.0).map(|n| placement.skip(BlockCount(n))));
        }
        let model: Vec<Placement> = self.model.iter().map(|block| block.unwrap_or(Placement::Hole)).collect();
        prop_assert_eq!(&says, &model);
        let mut at = 0;
        while at < BLOCKS {
            let rest = Extent::new(at, BLOCKS - at);
            let (count, placement) = loop {
                match self.map.first(rest) {
                    Ok(first) => break first,
                    Err(need) => World::load(&self.store, &mut self.map, need),
                }
            };
            prop_assert!(count.0 > 0);
            for n in 0..count.0 {
                prop_assert_eq!(placement.skip(BlockCount(n)), model[(at + n) as usize], "block {}", at + n);
            }
            at += count.0;
        }
        let live = self.live();
        for (seq, info) in self.infos() {
            let needed = live.get(&seq).copied().unwrap_or(0);
            prop_assert!(
                u64::from(info.live_blocks) >= needed,
                "segment {}: {} counted, {} live",
                seq,
                info.live_blocks,
                needed
            );
        }
        prop_assert_eq!(self.map.space().inconsistencies, 0);
        Ok(())
    }

    fn live(&self) -> BTreeMap<Seq, u64> {
        let mut live = BTreeMap::new();
        for block in self.model.iter().flatten() {
            if let Placement::Data(location) = block {
                *live.entry(location.frame.seq).or_default() += 1;
            }
        }
        live
    }

    /// What the table of segments says, whatever of it is in memory.
    fn infos(&self) -> Vec<(Seq, SegmentInfo)> {
        let more: HashMap<PageRef, Arc<MapPage>> =
            self.store.iter().map(|(at, page)| (*at, Arc::new(page.clone()))).collect();
        let spans = self.map.space().spans();
        spans.flat_map(|span| self.map.infos(span, &more).unwrap()).collect()
    }

    fn bounds(&self) -> Bounds {
        match self.sizes.fan_in == tiny().fan_in {
            true => Bounds {
                deltas: 3,
                part: 0,
                few: 0,
                deltas_of_few: 1,
                spans_in_root: 0,
                deltas_in_root: 1,
                lists: 2,
                objects: 3,
                spans: 1,
            },
            false => Bounds::default(),
        }
    }

    fn is_counted(&self) -> bool {
        let live = self.live();
        self.infos().into_iter().all(|(seq, info)| u64::from(info.live_blocks) == live.get(&seq).copied().unwrap_or(0))
    }
}

fn data(seq: u64, start: u64, count: u64) -> (Extent, Placement) {
    let frame = FrameAddr { seq: Seq(seq), offset: 0, len: 100 };
    (Extent::new(start, count), Placement::Data(Location { frame, block: 0 }))
}

fn brings(blocks: u32) -> SegmentInfo {
    SegmentInfo { blocks, live_blocks: blocks, ..SegmentInfo::default() }
}

/// What changes of one segment take the place of is looked up for all of them at once; where they meet or overlap, nothing dies twice.
#[test]
fn changes_that_overlap_count_what_is_below_once() {
    let mut map = ExtentMap::new(BlockCount(100));
    map.count_exactly_within(u64::MAX);
    map.apply(Seq(1), brings(20), &[data(1, 0, 20)], None).unwrap();
    let _under_way = map.begin_checkpoint();
    map.apply(Seq(2), brings(2), &[data(2, 4, 2)], None).unwrap();
    map.apply(Seq(3), brings(21), &[data(3, 12, 6), data(3, 0, 8), data(3, 3, 7)], None).unwrap();
    let live = |seq| map.counter(Seq(seq)).unwrap().map(|counter| counter.live_blocks);
    assert_eq!([live(1), live(2), live(3)], [Some(4), Some(0), Some(16)]);
    assert_eq!(map.space().inconsistencies, 0);
}

/// A frame that takes the place of several things, some of them known and some not, is as few entries as it can be.
#[test]
fn the_parts_of_a_frame_become_one_entry() {
    let mut map = ExtentMap::new(BlockCount(100));
    map.count_exactly_within(u64::MAX);
    map.apply(Seq(1), brings(6), &[data(1, 4, 2), data(1, 8, 4)], None).unwrap();
    map.apply(Seq(2), brings(16), &[data(2, 0, 16)], None).unwrap();
    let zeroes = [(20, 5), (30, 5), (25, 5)].map(|(start, count)| (Extent::new(start, count), Placement::Zero));
    map.apply(Seq(3), brings(0), &zeroes, None).unwrap();
    let entries: Vec<Extent> = map.tables().flat_map(Table::iter).map(|entry| entry.extent).collect();
    assert_eq!(entries, [Extent::new(0, 16), Extent::new(20, 15)]);
}

/// Where everything was changed since the last checkpoint, nothing is below any more that somebody could owe for.
#[test]
fn what_hides_all_runs_owes_nothing() {
    let run = Run { entries: 1, ..Run::empty() };
    let mut map = ExtentMap::restore(BlockCount(100), vec![run], Table::default(), Space::default());
    map.apply(Seq(1), brings(60), &[data(1, 0, 60)], None).unwrap();
    assert!(map.tables().flat_map(Table::iter).all(|entry| entry.owes));
    map.apply(Seq(2), brings(0), &[(Extent::new(60, 40), Placement::Hole)], None).unwrap();
    let MapSnapshot { newest, runs, .. } = map.begin_checkpoint();
    assert!(runs.is_empty() && newest.len() == 2 && newest.iter().all(|entry| !entry.owes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens, it says what was committed, and counts at least what is live; and when everything is merged, exactly that.
    #[test]
    fn the_map_is_the_model(steps in steps(), sizes in sizes()) {
        let mut world = World::new(sizes);
        for step in steps {
            world.step(step);
            world.check()?;
        }
        // Merges under way come first.
        for _ in 0..8 {
            world.step(Step::Commit(vec![(0, 1, 0)]));
            world.step(Step::Checkpoint { all: true, during: Vec::new(), is_lost: false, pages: usize::MAX });
            world.check()?;
        }
        prop_assert!(world.is_counted());
        prop_assert!(world.map.runs().len() <= 1, "{:?}", world.map.runs());
    }

    /// Whatever happens while a survey goes on and after it: of what it found in a segment, exactly that is still there which did not change since it began.
    #[test]
    fn a_survey_finds_what_is_live(
        before in steps(),
        during in prop::collection::vec((0..3_u8, steps()), 1..4),
        sizes in sizes(),
        (of, which) in (1..4_u64, 0..4_u64),
    ) {
        let mut world = World::new(sizes);
        before.into_iter().for_each(|step| world.step(step));
        let as_of = Seq(world.seq);
        let victims: Vec<Seq> = (1..=as_of.0).filter(|seq| seq % of == which % of).map(Seq).collect();
        let mut survey = Survey::of(victims.iter().copied());
        for (reads, steps) in during {
            for n in 0..=reads {
                // What happens between reading and taking, and what happens between two of these.
                let steps = if n == reads { steps.clone() } else { Vec::new() };
                world.survey(&mut survey, steps);
            }
        }
        while survey.position().is_some() {
            world.survey(&mut survey, Vec::new());
        }
        let mut found = BTreeMap::new();
        for (victim, parts) in survey.into_live() {
            for part in parts.iter() {
                let unchanged = loop {
                    match world.map.unchanged_with(part, as_of, &HashMap::new()) {
                        Ok(unchanged) => break unchanged,
                        Err(need) => World::load(&world.store, &mut world.map, need),
                    }
                };
                let blocks = unchanged.iter().flat_map(|part| part.start.0..part.end().0);
                found.extend(blocks.map(|block| (block, victim)));
            }
        }
        let is_in_a_victim = |(block, placement): (usize, &Option<Placement>)| match placement {
            Some(Placement::Data(location)) if victims.contains(&location.frame.seq) => Some((block as u64, location.frame.seq)),
            _ => None,
        };
        let live: BTreeMap<u64, Seq> = world.model.iter().enumerate().filter_map(is_in_a_victim).collect();
        prop_assert_eq!(found, live);
    }

    /// While all of the map may be in memory, every count is exact at once.
    #[test]
    fn a_small_map_is_counted_at_once(steps in steps(), sizes in sizes()) {
        let mut world = World::new(sizes);
        world.step(Step::Exact(true));
        for step in steps {
            if !matches!(step, Step::Exact(_) | Step::Reopen | Step::Checkpoint { is_lost: true, .. }) {
                world.step(step);
                world.check()?;
                prop_assert!(world.is_counted());
            }
        }
    }
}

/// Runs stay few, however many checkpoints there are, and each writes little.
#[test]
fn runs_stay_few() {
    let sizes = tiny();
    let mut world = World::new(sizes);
    let (mut most, mut state) = (0, 1_u64);
    for n in 0..400 {
        let extents = (0..8).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % BLOCKS
        });
        let extents = extents.map(|at| (at, 1, 0)).collect();
        world.step(Step::Commit(extents));
        world.step(Step::Checkpoint { all: false, during: Vec::new(), is_lost: false, pages: usize::MAX });
        most = most.max(world.map.runs().len());
        if n % 50 == 0 {
            world.check().unwrap();
        }
    }
    assert!(most <= 6 * sizes.fan_in, "{most} runs");
}
