//! The newest layer of the map: what was committed since the last checkpoint, in memory.

use std::collections::BTreeMap;

use super::{Entry, Found, Placement};
use crate::units::{BlockCount, BlockIndex, Extent};

/// What one entry costs in memory, in bytes, tree overhead included: measured on tables that were filled in sequence, whose nodes are
/// half full (`tests/memory/map.rs`).
const ENTRY_MEMORY: usize = 112;

/// Entries that are sorted and do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    entries: BTreeMap<BlockIndex, (BlockCount, Placement, bool)>,
}

fn entry((&start, &(count, placement, owes)): (&BlockIndex, &(BlockCount, Placement, bool))) -> Entry {
    Entry { extent: Extent { start, count }, placement, owes }
}

impl Table {
    /// Its entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().map(entry)
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        self.entries.len() * ENTRY_MEMORY
    }

    /// Takes out what it says of the blocks of `extent`, in order.
    pub fn take(&mut self, extent: Extent) -> Vec<Entry> {
        let mut taken = Vec::new();
        while let Some(have) = self.entries.range(..extent.end()).next_back().map(entry) {
            let Some(part) = have.within(&extent) else { break };
            self.entries.remove(&have.extent.start);
            if have.extent.start < part.extent.start {
                self.put(Entry { extent: Extent::between(have.extent.start, part.extent.start), ..have });
            }
            if let Some(rest) =
                have.within(&Extent::between(part.extent.end(), have.extent.end().max(part.extent.end())))
            {
                self.put(rest);
            }
            taken.push(part);
        }
        taken.reverse();
        taken
    }

    /// Adds an entry where there is none. Neighbours that it continues become one with it; of the parts of one frame, that needs them in their
    /// order. Most entries are whole frames, which have no such neighbours, and are not looked for.
    pub fn insert(&mut self, mut new: Entry) {
        let block = match new.placement {
            Placement::Data(location) => Some(location.block),
            Placement::Zero | Placement::Hole => None,
        };
        if block != Some(0)
            && let Some(mut before) = self.entries.range(..new.extent.start).next_back().map(entry)
            && before.join(&new)
        {
            self.entries.remove(&before.extent.start);
            new = before;
        }
        if block.is_none()
            && let Some(after) = self.entries.range(new.extent.end()..).next().map(entry)
            && new.join(&after)
        {
            self.entries.remove(&after.extent.start);
        }
        self.put(new);
    }

    fn put(&mut self, entry: Entry) {
        self.entries.insert(entry.extent.start, (entry.extent.count, entry.placement, entry.owes));
    }

    /// Nothing lies below it any more.
    pub fn owe_nothing(&mut self) {
        self.entries.values_mut().for_each(|(_, _, owes)| *owes = false);
    }

    /// What it says of `extent`, in order and without gaps; nothing where it is silent.
    pub fn lookup(&self, extent: Extent, found: impl FnMut(Extent, Option<Entry>)) {
        let first = self.entries.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        fill(extent, self.entries.range(first..extent.end().max(first)).map(entry), found);
    }

    /// Where the entry begins that so many others precede from `block` on; nothing if there are not as many.
    pub fn start_after(&self, block: BlockIndex, others: usize) -> Option<BlockIndex> {
        self.entries.range(block..).nth(others).map(|(start, _)| *start)
    }

    /// What it says of the first block of `extent`, clipped to it, or how far it says nothing.
    pub fn first(&self, extent: Extent) -> Found {
        let before = self.entries.range(..=extent.start).next_back().map(entry);
        match before.and_then(|entry| entry.within(&extent)) {
            Some(entry) => Found::Entry(entry),
            None => {
                let next = self.entries.range(extent.start..extent.end()).next();
                Found::Gap(Extent::between(extent.start, next.map_or(extent.end(), |(&start, _)| start)))
            }
        }
    }

    /// Whether it says something of every block of `extent`.
    pub fn covers(&self, extent: Extent) -> bool {
        let mut at = extent.start;
        for entry in self.iter() {
            if entry.extent.start > at {
                return false;
            }
            at = at.max(entry.extent.end());
            if at >= extent.end() {
                return true;
            }
        }
        extent.is_empty()
    }
}

/// Hands over the parts of `entries` inside `extent`, which are sorted, and the gaps between.
pub(super) fn fill(extent: Extent, entries: impl Iterator<Item = Entry>, mut found: impl FnMut(Extent, Option<Entry>)) {
    let mut at = extent.start;
    for entry in entries {
        let Some(part) = entry.within(&extent) else { continue };
        if at < part.extent.start {
            found(Extent::between(at, part.extent.start), None);
        }
        at = part.extent.end();
        found(part.extent, Some(part));
    }
    if at < extent.end() {
        found(Extent::between(at, extent.end()), None);
    }
}
