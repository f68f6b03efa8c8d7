//! Reading a volume's objects, proven before use: frames and pages of the map through the cache, log objects from their slots. It does not know
//! what is dirty.

pub mod objects;
pub mod fetch;
pub(crate) mod slots;
pub(crate) mod again;
pub(crate) mod roots;

pub use objects::{ReadError, ReadLimits};
pub use slots::{Slot, Torn};
