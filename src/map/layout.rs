//! What a checkpoint writes of the map: the newest table as a run, and some steps of the merges that are due. Pure: it says which pages
//! it needs, and goes on when it has them.

use std::collections::HashMap;
use std::sync::Arc;

use super::compaction::{self, END, RunWriter, Sizes};
use super::merge::settle;
use super::{Deaths, Entry, MapPage, MapSnapshot, NeedPages, PageAt, PageRef, PageWriter, Part, Run, Table};
use crate::codec::EncodeError;
use crate::units::Seq;

/// Of the newest table, entries that are written in one go.
const CHUNK: usize = 32 << 10;

/// With each checkpoint, a merge reads so many times as many entries as the checkpoint adds, so that it is over before as much has come
/// again; more if it is the one that makes the last run.
const STEP_TIMES: u64 = 3;
const STEP_TIMES_LAST: u64 = 10;

/// Bytes in memory of pages that were read for a merge and stay for its next step.
const LOADED_MEMORY: usize = 8 << 20;

/// See the module.
pub struct Layout {
    sizes: Sizes,
    writer: PageWriter,
    runs: Vec<Run>,
    deaths: Deaths,
    loaded: HashMap<PageRef, Arc<MapPage>>,
    current: Option<Merging>,
    /// Outputs before this place had their turn.
    next: usize,
    /// Entries of the newest table, and sealed bytes of its run.
    added: (u64, u64),
    all: bool,
    has_begun_all: bool,
}

/// A merge that goes on.
struct Merging {
    output: usize,
    run: RunWriter,
    /// The last index page of the output.
    tail: Option<PageAt>,
    /// Entries that were read.
    read: u64,
    /// Sealed bytes of the checkpoint when it began.
    bytes_before: u64,
    /// No more steps, whatever is left.
    is_over: bool,
}

/// What came of it.
pub struct LaidOut {
    /// The runs of the map, newest first.
    pub runs: Vec<Run>,
    /// What merging found dead.
    pub deaths: Deaths,
    /// The pages; those of the table follow.
    pub writer: PageWriter,
    /// A merge of all runs has begun.
    pub has_begun_all: bool,
}

/// How far it is.
pub enum Progress {
    /// There is more to do.
    GoOn,
    /// These pages are needed first.
    Needs(NeedPages),
    /// Nothing is left to do.
    Done,
}

impl Layout {
    /// Of the checkpoint at `seq`; `all` runs are to be merged if that can begin now. Of the pages, so many bytes stay in memory for
    /// whoever needs them next.
    pub fn new(seq: Seq, map: &MapSnapshot, all: bool, keep: usize, sizes: Sizes) -> Result<Layout, EncodeError> {
        // The newest run may be merged at once.
        let writer = PageWriter::new(seq, usize::MAX);
        let mut layout = Layout {
            sizes,
            writer,
            runs: map.runs.to_vec(),
            deaths: Deaths::default(),
            loaded: HashMap::new(),
            current: None,
            next: 0,
            added: (map.newest.len() as u64, 0),
            all,
            has_begun_all: false,
        };
        layout.add_newest(&map.newest)?;
        layout.added.1 = layout.writer.total();
        layout.writer.keep(keep);
        layout.has_begun_all = compaction::begin_merges(&mut layout.runs, map.live_blocks, all, &sizes);
        Ok(layout)
    }

    /// The newest table becomes the first run.
    fn add_newest(&mut self, newest: &Table) -> Result<(), EncodeError> {
        let is_last = self.runs.is_empty();
        let mut run = RunWriter::new(Run { through: self.writer.object(), is_last, ..Run::empty() }, self.sizes);
        let mut entries = newest.iter();
        loop {
            let chunk: Vec<Entry> = entries.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                break;
            }
            run.add(if is_last { settle(chunk) } else { chunk }, &mut self.writer)?;
        }
        let run = run.finish(None, &mut self.writer)?;
        // A last run without pages says up to where in the log there is nothing.
        if is_last || !run.pages.is_empty() {
            self.runs.insert(0, run);
        }
        Ok(())
    }

    /// Pages that were needed.
    pub fn take_pages(&mut self, pages: impl IntoIterator<Item = (PageRef, Arc<MapPage>)>) {
        self.loaded.extend(pages);
    }

    /// Pages that were needed cannot be had: the merge that needs them ends where it stands, and none further begins. Every step
    /// is whole by itself.
    pub fn give_up(&mut self) {
        self.next = usize::MAX;
        if let Some(merging) = &mut self.current {
            // If it was its last index page that could not be had, another one follows it.
            merging.tail = merging.tail.filter(|_| !merging.is_over);
            merging.is_over = true;
        }
    }

    /// Does some more.
    pub fn go_on(&mut self) -> Result<Progress, EncodeError> {
        let Some(mut merging) = self.current.take() else { return Ok(self.begin_next()) };
        let output = merging.output;
        let inputs = compaction::merges(&self.runs).into_iter().find(|(at, _)| *at == output).map(|(_, inputs)| inputs);
        let is_last = self.runs[output].is_last;
        let times = if is_last { STEP_TIMES_LAST } else { STEP_TIMES };
        let (entries, bytes) = match self.all {
            true => (u64::MAX, self.sizes.bytes_all),
            false => ((self.added.0 * times).max(self.sizes.step_entries), self.sizes.bytes.max(self.added.1 * times)),
        };
        merging.is_over |= merging.read >= entries || self.writer.total() - merging.bytes_before >= bytes;
        let Some(inputs) = inputs.filter(|_| self.runs[output].part == Part::Output && !merging.is_over) else {
            return self.finish(merging);
        };
        let from = self.runs.get(inputs.start).map_or(END, |run| run.from);
        let page = |at: &PageRef| {
            let page = self.loaded.get(at).or_else(|| self.writer.page(at));
            page.map(|page| &**page)
        };
        let step = compaction::step(&self.runs[inputs.clone()], from, is_last, self.sizes.step_leaves, &page);
        let step = match step {
            Ok(step) => step,
            Err(need) => {
                self.current = Some(merging);
                return Ok(Progress::Needs(need));
            }
        };
        self.deaths.add(&step.deaths);
        compaction::advance(&mut self.runs, output, inputs, &step);
        merging.read += step.read;
        merging.run.add(step.entries, &mut self.writer)?;
        if self.loaded.values().map(|page| page.memory()).sum::<usize>() > LOADED_MEMORY {
            self.loaded.clear();
        }
        self.current = Some(merging);
        Ok(Progress::GoOn)
    }

    fn begin_next(&mut self) -> Progress {
        let merges = compaction::merges(&self.runs);
        let Some((output, _)) = merges.into_iter().find(|(output, _)| *output >= self.next) else {
            return Progress::Done;
        };
        let run = self.runs[output].clone();
        self.current = Some(Merging {
            output,
            tail: RunWriter::tail(&run),
            run: RunWriter::new(run, self.sizes),
            read: 0,
            bytes_before: self.writer.total(),
            is_over: false,
        });
        Progress::GoOn
    }

    fn finish(&mut self, mut merging: Merging) -> Result<Progress, EncodeError> {
        let page = match merging.tail {
            Some(tail) => match self.loaded.get(&tail.at).cloned() {
                None => {
                    merging.is_over = true;
                    self.current = Some(merging);
                    return Ok(Progress::Needs(NeedPages(vec![tail])));
                }
                page => page,
            },
            None => None,
        };
        let output = merging.output;
        let done = merging.run.finish(page.as_deref(), &mut self.writer)?;
        let Run { part, upto, .. } = self.runs[output];
        self.runs[output] = Run { part, upto, ..done };
        self.next = self.next.max(output + 1);
        Ok(Progress::GoOn)
    }

    /// What came of it.
    pub fn into_laid_out(self) -> LaidOut {
        let Layout { writer, runs, deaths, has_begun_all, .. } = self;
        LaidOut { runs, deaths, writer, has_begun_all }
    }
}
