//! A second store behind the first: what is copied next, how far behind it is, what is deleted there. Pure.
//!
//! The mirror of a volume has the keys and bytes of the first store, and goes through states in which that once was, plus objects that nobody
//! needs. So what holds of every state of the first store holds of every state of the mirror: it opens, and is a prefix of the accepted
//! changes (rule R3). How:
//!
//! 1. The log is copied in its order, one object after the other, and only what is committed ([`plan`]). So at most one slot is under way, and
//!    it is the first free one: where a fence goes.
//! 2. A checkpoint is copied once all before it in the log is, and no checkpoint is passed by. What it needs is there then.
//! 3. The first store keeps what is not copied yet: no slot from the next one on is deleted, and no checkpoint after the last one
//!    ([`crate::engine::doomed`]). So the mirror never has a gap.
//! 4. What the first store deleted is deleted here when a checkpoint is here that is at least as new as the one which made it needless, and a while
//!    later ([`notes`]).
//! 5. Only the description has another key: `<name>/mirror/<n>`. Nobody opens a mirror by accident.
//!
//! `volume/mirror.rs` carries it out, and `opening/promote.rs` makes a volume of a mirror.

pub mod options;
pub mod plan;
pub mod lag;
pub mod notes;

#[cfg(test)]
mod model_tests;

pub use lag::Lag;
pub use notes::Notes;
pub use options::Options;
pub use plan::{First, Plan, Step};
