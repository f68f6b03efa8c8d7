//! Walking over all that the layers of a map say together, a few pages in memory at a time. Pure: it says which pages it needs.

use super::compaction::{END, step};
use super::merge::merge;
use super::{Deaths, Entry, MapPage, NeedPages, PageRef, Run, Table};
use crate::units::{BlockIndex, Extent};

/// Leaves of each run that are looked at together.
const LEAVES: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Walk<'a> {
    runs: &'a [Run],
    /// Newest first.
    tables: Vec<&'a Table>,
    from: BlockIndex,
}

/// What stands in some blocks in a row.
#[derive(Debug, Default)]
pub struct Stretch {
    /// In order; holes may be among it.
    pub entries: Vec<Entry>,
    /// What newer layers hide of older ones, and nobody has counted as dead yet.
    pub deaths: Deaths,
}

impl<'a> Walk<'a> {
    /// Over these runs, newest first, and the tables above them, newest first.
    pub fn new(runs: &'a [Run], tables: impl Iterator<Item = &'a Table>) -> Walk<'a> {
        Walk { runs, tables: tables.collect(), from: BlockIndex(0) }
    }

    /// From that block on.
    pub fn starting(self, from: BlockIndex) -> Walk<'a> {
        Walk { from, ..self }
    }

    /// Everything before this block has been said.
    pub fn position(&self) -> BlockIndex {
        self.from
    }

    /// What comes next; nothing after the end.
    pub fn next<'p>(&mut self, page: &impl Fn(&PageRef) -> Option<&'p MapPage>) -> Result<Option<Stretch>, NeedPages> {
        if self.from >= END {
            return Ok(None);
        }
        let stepped = step(self.runs, self.from, false, LEAVES, page)?;
        let part = Extent::between(self.from, stepped.to);
        let mut deaths = stepped.deaths;
        let over = |below: Vec<Entry>, table: &&Table| merge(&within(table, part), &below, &mut deaths);
        let entries = self.tables.iter().rev().fold(stepped.entries, over);
        self.from = stepped.to;
        Ok(Some(Stretch { entries, deaths }))
    }
}

fn within(table: &Table, part: Extent) -> Vec<Entry> {
    let mut entries = Vec::new();
    table.lookup(part, |_, entry| entries.extend(entry));
    entries
}
