//! ashlar turns object storage into block devices: volumes whose data lives in a log of immutable objects, served
//! over NBD. `ARCHITECTURE.md` is the map; modules stand here in the order that a newcomer should read them.

// A standard output or error that fails must not panic, see [`cli`].
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod units;
pub mod human;
pub mod change;
pub mod part;
pub mod tally;
pub mod device;
pub mod nbd;
pub mod volume;
pub mod opening;
pub mod upkeep;
pub mod engine;
pub mod reading;
pub mod map;
pub mod space;
pub mod format;
pub mod error;
pub mod gc;
pub mod dedup;
pub mod mirror;
pub mod retention;
pub mod codec;
pub mod keyring;
pub mod cache;
pub mod journal;
pub mod peer;
pub mod store;
pub mod disk;
pub mod outside;
pub mod metrics;
pub mod memory;
pub mod check;
pub mod pool;
pub mod attach;
pub mod config;
pub mod cli;
