//! The program as people and scripts use it: real processes, exit codes, exact words.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a test may fail, and looks at files itself

mod bench;
mod doctor;
mod program;
mod refusals;
mod encryption;
mod schedule;
mod settings;
mod serving;
mod looking_on;
mod log;
mod metrics;
mod signals;
mod operating;
mod resizing;
mod replacing;
mod handing_over;
mod pools;
mod tiers;
mod tls;
mod top;
mod rollback;
mod clones;
mod copies;
mod mirror;
mod standby;
mod images;
mod snapshots;
mod upgrading;
mod attach;
