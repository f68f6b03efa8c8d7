//! What is in the store, as bytes and as values: descriptions, log objects, checkpoints, and how they are called. Pure: it does not
//! know where objects live. `docs/format.md` is the account, `tests/golden/` the proof.

pub mod keys;
pub(crate) mod places;
pub mod meta;
pub mod segment;
pub mod root;
pub mod digest;
pub mod account;
pub mod marks;
