//! What the map says of an extent, and an entry of one of its layers.

use crate::device::Allocation;
use crate::units::{BlockCount, Extent, Location};

/// Where the blocks of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The extent's first block is at this location; the others follow in the same frame.
    Data(Location),
    /// Allocated zero.
    Zero,
    /// Given up. In a layer this hides what the layers below say.
    Hole,
}

impl Placement {
    /// The placement of the block `count` further on in the same extent.
    pub fn skip(self, count: BlockCount) -> Placement {
        match self {
            Placement::Data(location) => Placement::Data(location.skip(count)),
            other => other,
        }
    }

    /// What it says without a place.
    pub fn allocation(self) -> Allocation {
        match self {
            Placement::Data(_) => Allocation::Data,
            Placement::Zero => Allocation::Zero,
            Placement::Hole => Allocation::Hole,
        }
    }

    /// Whether `next`, `count` blocks further on, goes on where this ends.
    fn goes_on(self, count: BlockCount, next: Placement) -> bool {
        match (self, next) {
            (Placement::Data(here), Placement::Data(there)) => {
                here.frame == there.frame && u64::from(here.block) + count.0 == u64::from(there.block)
            }
            (here, there) => here == there,
        }
    }
}

/// What one layer of the map says of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blocks, one at least.
    pub extent: Extent,
    /// Where they are.
    pub placement: Placement,
    /// Whether the first entry below it, for each of its blocks, still counts as live: nobody has looked yet what this one took the
    /// place of. Who brings both together counts it as dead.
    pub owes: bool,
}

impl Entry {
    /// The part of it inside `extent`, if any.
    pub fn within(&self, extent: &Extent) -> Option<Entry> {
        let part = self.extent.intersect(extent)?;
        Some(Entry { extent: part, placement: self.placement.skip(part.start - self.extent.start), owes: self.owes })
    }

    /// Makes it longer by `next` if that continues it.
    pub fn join(&mut self, next: &Entry) -> bool {
        let joins = self.extent.end() == next.extent.start
            && self.owes == next.owes
            && self.placement.goes_on(self.extent.count, next.placement);
        if joins {
            self.extent.count += next.extent.count;
        }
        joins
    }
}
