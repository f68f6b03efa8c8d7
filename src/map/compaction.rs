//! Which runs of the map are merged, and how: in small steps, a few with each checkpoint.
//!
//! Runs of about one size are merged into one ([`Sizes::fan_in`] of them); and when what lies above the last run has become a part of it
//! ([`LAST_PART`]), everything is merged into a new last run, below which there is nothing. A merge goes through the volume from its first
//! block to its last: what is before has gone into the output, what is after still is in the inputs, so that every step is durable by
//! itself and no step is long.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::leaf_format::{encode_index, encode_leaf};
use super::merge::{merge, settle};
use super::{Deaths, Entry, Leaf, MapPage, NeedPages, PageAt, PageKind, PageRef, Part, Run};
use crate::codec::EncodeError;
use crate::units::{BlockIndex, Extent, Seq};

/// How runs are cut and merged.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// So many runs of about one size are merged.
    pub fan_in: usize,
    /// Runs of fewer entries are of one size.
    pub small_run: u64,
    /// All is merged at once if there is something to be counted in so few entries.
    pub few_entries: u64,
    /// Entries of a leaf: some 20 KiB in the store, 48 in memory.
    pub leaf_entries: usize,
    /// A run of so many leaves needs no index pages.
    pub leaves_in_root: usize,
    /// Leaves that an index page finds.
    pub index_leaves: usize,
    /// Leaves of each run that one step reads.
    pub step_leaves: usize,
    /// Entries that a merge reads with each checkpoint at least.
    pub step_entries: u64,
    /// Sealed bytes that a merge writes with one checkpoint, after which it waits for the next one; more if the checkpoint adds much,
    pub bytes: u64,
    /// or if all is to be merged.
    pub bytes_all: u64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            fan_in: 6,
            small_run: 4096,
            few_entries: 64 << 10,
            leaf_entries: 2048,
            leaves_in_root: 16,
            index_leaves: 1024,
            step_leaves: 16,
            step_entries: 64 << 10,
            bytes: 16 << 20,
            bytes_all: 64 << 20,
        }
    }
}

/// All is merged into a new last run when what lies above it has this part of its entries,
const LAST_PART: u64 = 3;

/// or if this part of the live blocks may be dead and not counted; sooner if it costs little, because there are few entries.
const OWING_PART: u64 = 8;
const OWING_PART_FEW: u64 = 64;
const NOT_MANY: u64 = 1 << 20;

/// The block after the last of the largest volume.
pub const END: BlockIndex = BlockIndex(u64::MAX);

/// Decides which runs are merged from now on: puts an output in front of them. Returns whether `all` of them are.
pub fn begin_merges(runs: &mut Vec<Run>, live_blocks: u64, all: bool, sizes: &Sizes) -> bool {
    let is_whole = |run: &&Run| run.part == Part::Whole;
    let suffix = runs.len() - runs.iter().rev().take_while(is_whole).count();
    // For all of them, those that are being merged have to be done first.
    if is_last_due(&runs[suffix..], live_blocks, all && suffix == 0, sizes) {
        group(runs, suffix..runs.len(), true);
        if suffix == 0 {
            return true;
        }
    }
    if all {
        return runs.is_empty();
    }
    let prefix = runs.iter().take_while(|run| run.part == Part::Whole && !run.is_last).count();
    let level = |run: &Run| {
        (run.entries / sizes.small_run).max(1).ilog(sizes.fan_in as u64) + u32::from(run.entries >= sizes.small_run)
    };
    let levels: Vec<u32> = runs[..prefix].iter().map(level).collect();
    let mut most = 0;
    for (i, level) in levels.iter().enumerate() {
        most = most.max(*level);
        // Those behind that are as small are merged along.
        let ends = levels.get(i + 1).is_none_or(|next| *next > most);
        if ends && i + 1 >= sizes.fan_in {
            group(runs, 0..i + 1, false);
            return false;
        }
    }
    runs.is_empty()
}

fn is_last_due(runs: &[Run], live_blocks: u64, all: bool, sizes: &Sizes) -> bool {
    let (above, last): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|run| !run.is_last);
    let sum = |runs: &[&Run]| runs.iter().map(|run| run.entries).sum::<u64>();
    let owing: u64 = above.iter().fold(0, |sum, run| sum.saturating_add(run.owing));
    match above.is_empty() {
        true => all && !last.is_empty(),
        false => {
            let entries = sum(&above) + sum(&last);
            let part = if entries <= NOT_MANY { OWING_PART_FEW } else { OWING_PART };
            all || sum(&above) * LAST_PART >= sum(&last)
                || owing > 0 && entries <= sizes.few_entries
                || owing >= (live_blocks / part).max(1)
        }
    }
}

fn group(runs: &mut Vec<Run>, inputs: Range<usize>, is_last: bool) {
    runs[inputs.clone()].iter_mut().for_each(|run| run.part = Part::Input);
    let through = runs[inputs.start].through;
    let output = Run { part: Part::Output, upto: BlockIndex(0), through, is_last, ..Run::empty() };
    runs.insert(inputs.start, output);
}

/// The merges under way: the place of the output, and of its inputs behind it.
pub fn merges(runs: &[Run]) -> Vec<(usize, Range<usize>)> {
    let output = |(i, run): (usize, &Run)| {
        let inputs = runs[i + 1..].iter().take_while(|run| run.part == Part::Input).count();
        (run.part == Part::Output).then_some((i, i + 1..i + 1 + inputs))
    };
    runs.iter().enumerate().filter_map(output).collect()
}

/// What one step of a merge brought.
#[derive(Debug, Default)]
pub struct Step {
    /// The entries of the output, in order.
    pub entries: Vec<Entry>,
    /// Where the next step begins; [`END`] after the last.
    pub to: BlockIndex,
    /// What died.
    pub deaths: Deaths,
    /// By input, the pages that are no longer needed.
    pub spent: Vec<Vec<PageRef>>,
    /// Entries that were read.
    pub read: u64,
}

/// What these runs say together from block `from` on, of a few pages of each, unless pages are missing. Nothing lies below them if
/// they are `last`.
pub fn step<'a>(
    inputs: &[Run],
    from: BlockIndex,
    last: bool,
    leaves_each: usize,
    page: &impl Fn(&PageRef) -> Option<&'a MapPage>,
) -> Result<Step, NeedPages> {
    let mut missing = Vec::new();
    let leaves: Vec<Vec<PageAt>> =
        inputs.iter().map(|run| next_leaves(run, from, leaves_each, page, &mut missing)).collect();
    if !missing.is_empty() {
        return Err(NeedPages(missing));
    }
    let end = |leaves: &Vec<PageAt>| leaves.get(leaves_each).map_or(END, |leaf| leaf.first);
    let to = leaves.iter().map(end).min().unwrap_or(END);
    let needed = |leaves: &Vec<PageAt>| leaves.iter().take_while(|leaf| leaf.first < to).copied().collect::<Vec<_>>();
    let needed: Vec<Vec<PageAt>> = leaves.iter().map(needed).collect();
    let missing: Vec<PageAt> = needed.iter().flatten().filter(|leaf| page(&leaf.at).is_none()).copied().collect();
    if !missing.is_empty() {
        return Err(NeedPages(missing));
    }
    let mut step = Step { to, ..Step::default() };
    let part = Extent::between(from, to);
    for (run, needed) in inputs.iter().zip(&needed) {
        let part = part.intersect(&Extent::between(run.from, run.upto.max(run.from)));
        let mut entries = Vec::new();
        for (i, leaf) in needed.iter().enumerate() {
            // A leaf ends where the next one begins.
            let end = needed.get(i + 1).map_or(to, |next| next.first);
            let Some(part) = part.and_then(|part| part.intersect(&Extent::between(leaf.first, end))) else { continue };
            if let Some(MapPage::Leaf(leaf)) = page(&leaf.at) {
                entries.extend(leaf.overlapping(part).filter_map(|entry| entry.within(&part)));
            }
        }
        step.read += entries.len() as u64;
        step.entries = match step.entries.is_empty() {
            true => entries,
            false => merge(&step.entries, &entries, &mut step.deaths),
        };
    }
    if last {
        step.entries = settle(step.entries);
    }
    step.spent = inputs.iter().zip(&leaves).map(|(run, leaves)| spent(run, leaves, from, to)).collect();
    Ok(step)
}

/// The leaves of a run from `from` on: one more than a step reads, if there are as many.
fn next_leaves<'a>(
    run: &Run,
    from: BlockIndex,
    count: usize,
    page: &impl Fn(&PageRef) -> Option<&'a MapPage>,
    missing: &mut Vec<PageAt>,
) -> Vec<PageAt> {
    let mut leaves = Vec::new();
    for leaf in run.leaves(from, page).take(count + 1) {
        match leaf {
            Ok(leaf) => leaves.push(leaf),
            Err(index) => {
                missing.push(index);
                break;
            }
        }
    }
    leaves
}

/// The pages of an input that end between `from` and `to`.
fn spent(run: &Run, leaves: &[PageAt], from: BlockIndex, to: BlockIndex) -> Vec<PageRef> {
    let ends = |next: BlockIndex| from < next && next <= to;
    let leaves = leaves.windows(2).filter(|pair| ends(pair[1].first)).map(|pair| pair[0].at);
    let indexes =
        run.pages.windows(2).filter(|pair| run.kind == PageKind::Index && ends(pair[1].0)).map(|pair| pair[0].1);
    leaves.chain(indexes).collect()
}

/// Takes a step into the runs: the inputs lose what went into the output at `output`, whose entries were written already.
pub fn advance(runs: &mut Vec<Run>, output: usize, inputs: Range<usize>, step: &Step) {
    for (run, spent) in runs[inputs.clone()].iter_mut().zip(&step.spent) {
        run.from = step.to;
        for at in spent {
            run.let_go(at);
        }
    }
    runs[output].upto = step.to;
    if step.to == END {
        runs[output].part = Part::Whole;
        runs.drain(inputs);
    }
}

impl Run {
    /// A run that says nothing.
    pub fn empty() -> Run {
        Run {
            part: Part::Whole,
            from: BlockIndex(0),
            upto: END,
            through: Seq(0),
            is_last: false,
            kind: PageKind::Leaf,
            pages: Arc::default(),
            entries: 0,
            owing: 0,
            objects: BTreeMap::new(),
        }
    }

    fn let_go(&mut self, at: &PageRef) {
        if let Some(bytes) = self.objects.get_mut(&at.checkpoint) {
            *bytes = bytes.saturating_sub(u64::from(at.len));
            if *bytes == 0 {
                self.objects.remove(&at.checkpoint);
            }
        }
    }
}

/// Where pages go.
pub trait Pages {
    /// Puts one page; returns where it will lie.
    fn put(&mut self, bytes: &[u8], page: MapPage) -> Result<PageRef, EncodeError>;
}

/// Writes entries at the end of a run.
pub struct RunWriter {
    sizes: Sizes,
    run: Run,
    entries: Vec<Entry>,
    leaves: Vec<(BlockIndex, PageRef)>,
}

impl RunWriter {
    /// Goes on with `run`.
    pub fn new(run: Run, sizes: Sizes) -> RunWriter {
        RunWriter { sizes, run, entries: Vec::new(), leaves: Vec::new() }
    }

    /// The last index page of the run, which [`RunWriter::finish`] writes anew if it is not full.
    pub fn tail(run: &Run) -> Option<PageAt> {
        let (first, at) = run.pages.last().filter(|_| run.kind == PageKind::Index)?;
        Some(PageAt { first: *first, at: *at, kind: PageKind::Index })
    }

    /// Adds entries behind those that it has.
    pub fn add(&mut self, entries: Vec<Entry>, pages: &mut impl Pages) -> Result<(), EncodeError> {
        self.run.entries += entries.len() as u64;
        let owing = entries
            .iter()
            .filter(|entry| entry.owes)
            .fold(0, |sum: u64, entry| sum.saturating_add(entry.extent.count.0));
        self.run.owing = self.run.owing.saturating_add(owing);
        self.entries.extend(entries);
        let whole = self.entries.len() / self.sizes.leaf_entries * self.sizes.leaf_entries;
        let rest = self.entries.split_off(whole);
        let full = std::mem::replace(&mut self.entries, rest);
        full.chunks(self.sizes.leaf_entries).try_for_each(|entries| self.leaf(entries, pages))
    }

    fn leaf(&mut self, entries: &[Entry], pages: &mut impl Pages) -> Result<(), EncodeError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let at = pages.put(&encode_leaf(entries)?, MapPage::Leaf(Leaf::new(entries)))?;
        self.leaves.push((first.extent.start, at));
        self.own(at);
        Ok(())
    }

    fn own(&mut self, at: PageRef) {
        *self.run.objects.entry(at.checkpoint).or_default() += u64::from(at.len);
    }

    /// The run with what was added; `tail` is its last index page ([`RunWriter::tail`]).
    pub fn finish(mut self, tail: Option<&MapPage>, pages: &mut impl Pages) -> Result<Run, EncodeError> {
        let rest = std::mem::take(&mut self.entries);
        self.leaf(&rest, pages)?;
        let new = std::mem::take(&mut self.leaves);
        if new.is_empty() {
            return Ok(self.run);
        }
        let mut have = self.run.pages.to_vec();
        if self.run.kind == PageKind::Leaf && have.len() + new.len() <= self.sizes.leaves_in_root {
            have.extend(new);
            self.run.pages = Arc::new(have);
            return Ok(self.run);
        }
        let mut leaves = match (self.run.kind, tail) {
            (PageKind::Leaf, _) => std::mem::take(&mut have),
            (_, Some(MapPage::Index(leaves))) if leaves.len() < self.sizes.index_leaves => {
                have.pop().iter().for_each(|(_, at)| self.run.let_go(at));
                leaves.clone()
            }
            _ => Vec::new(),
        };
        leaves.extend(new);
        for leaves in leaves.chunks(self.sizes.index_leaves) {
            let at = pages.put(&encode_index(leaves)?, MapPage::Index(leaves.to_vec()))?;
            self.own(at);
            have.extend(leaves.first().map(|(first, _)| (*first, at)));
        }
        (self.run.kind, self.run.pages) = (PageKind::Index, Arc::new(have));
        Ok(self.run)
    }
}
