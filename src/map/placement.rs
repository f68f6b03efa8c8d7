//! What a log entry does to an extent: the input of the map's one `apply`, the same for live commit and recovery.

use crate::units::Location;

/// Where the blocks of an extent are from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The extent's first block is at this location; the others follow in the same frame.
    Data(Location),
    /// Allocated zero.
    Zero,
    /// Given up.
    Hole,
}
