//! Durations of configuration files, in human units: the same spellings as everywhere.

pub use crate::human::duration as human;
