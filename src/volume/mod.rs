//! Volumes.

pub mod meta;
pub mod root;
