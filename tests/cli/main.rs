//! The program as people and scripts use it: real processes, exit codes, exact words.

mod program;
mod refusals;
mod serving;
