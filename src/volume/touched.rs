//! Which pages of the map a batch of changes needs in memory when it takes effect, and what they take there.
//!
//! One commit changes the map under one lock and so needs all of them at once. On a volume of a TiB that was written densely and at
//! random, a segment of small blocks would bring in gigabytes. So a batch, and a segment of moved data, ends when its pages take what
//! a commit may have ([`super::budget::Seat::commit_memory`]), or one page more. That costs PUTs, and only there.

use std::collections::BTreeSet;

use crate::map::{ExtentMap, PageIndex};
use crate::units::{BlockIndex, Extent};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pages: BTreeSet<PageIndex>,
    bytes: u64,
}

impl Touched {
    /// A change of that extent is in the batch. Pages that it covers whole are not needed; so those at its ends are looked at, and
    /// data in one change is too short to have others.
    pub fn note(&mut self, extent: Extent, map: &ExtentMap) {
        if extent.is_empty() {
            return;
        }
        for block in [extent.start, BlockIndex(extent.end().0 - 1)] {
            let page = PageIndex::of(block);
            if self.pages.insert(page) {
                self.bytes += map.page_memory(page);
            }
        }
    }

    /// Bytes that the pages take in memory, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
