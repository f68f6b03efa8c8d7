//! The memory of a server as a whole, by one number: `memory` of the configuration. `docs/memory.md` is the account.
//!
//! - [`machine`]: how much there is, for the process: what the host has, or less, if its control groups say so.
//! - [`division`]: how that number is divided before anything is there: a part for each kind of thing. Pure.
//! - [`balance`]: who gives way while the server runs: the cache has what the others leave. Pure.
//! - [`keeper`]: the task that looks, decides and has it done.
//!
//! What is counted, and how a bound is changed, is handed in.

pub mod balance;
pub mod division;
pub mod keeper;
pub mod machine;

pub use balance::{Balance, Limits, Seen};
pub use division::Share;
pub use keeper::{Keeper, Pressure};
pub use machine::Machine;
