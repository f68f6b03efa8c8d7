//! The engine of an open volume.
//!
//! One struct decides everything, the [`core`]: log, write buffer, map, space. It is plain data; it knows no I/O, and the time is an
//! argument. [`Core::handle`] takes what happened and returns what is to be done. One task, the [`shell`], runs that as tasks that it owns and
//! turns their ends into events; it awaits nothing else. Clients' reads and writes take their answers from the core under one short
//! lock.
//!
//! ```text
//!  WRITE, READ ──one short lock──┐                          ┌─ uploads, commits          (here)
//!                                ▼                          │
//!          Event ─────────────→ core ──→ Effects ─→ shell ──┼─ checkpoint, digest, collection,
//!            ▲                                              │  deletion, sweep          (handed in: upkeep)
//!            └────────────── what came of it ───────────────┘
//! ```
//!
//! | file | what it decides, or does |
//! | --- | --- |
//! | [`core`] | which part's turn it is: uploads, commits, checkpoints, closing; the time at which something is due |
//! | [`ledger`] | what a volume has and knows: log, map, what is doomed, what it cost |
//! | [`log`], [`buffer`], [`ages`] | the way of a change from the write buffer to the map |
//! | [`collection`], [`deletions`], [`doomed`], [`sweeps`] | when space is won back, and how hard; what is to be deleted |
//! | [`digests`] | when slots of the log are told of in one object more, which saves the next opening requests |
//! | [`options`], [`settings`], [`budget`] | what an operator may tune of a server, and of one volume; what volumes may hold in memory, one by one and together, and where they wait for it |
//! | [`purse`] | what volumes may spend on requests, one by one and together, and how sparing that makes them |
//! | [`deduplication`] | what of a batch is stored already |
//! | [`shell`], [`work`], [`upload`], [`commit`], [`slot`], [`backoff`] | the tasks |
//! | [`write`], [`read`], [`extents`], [`compare`], [`prefetch`] | the requests of clients, and what they will ask for next |
//! | [`below`], [`detach`] | what a clone shows of its parent; how it becomes independent |
//! | [`seen`], [`unbroken`] | what this server knows of the volume from before |
//! | [`shared`], [`watched`] | what all of these share, and how they wait for each other |

pub mod cooling;
pub mod core;
pub mod ledger;
pub mod log;
pub mod buffer;
mod ages;
pub mod collection;
pub mod deduplication;
pub mod deletions;
pub mod doomed;
pub mod digests;
pub mod following;
pub mod growth;
pub mod sweeps;
pub mod budget;
pub mod purse;
pub(crate) mod shared;
pub(crate) mod shell;
mod work;
pub(crate) mod commit;
pub(crate) mod slot;
mod upload;
pub mod versions;
pub(crate) mod backoff;
pub mod options;
pub mod settings;
pub(crate) mod seen;
pub mod unbroken;
pub(crate) mod upper;
pub(crate) mod prefetch;
pub(crate) mod below;
pub(crate) mod read;
mod write;
pub(crate) mod detach;
pub(crate) mod extents;
pub(crate) mod compare;
pub(crate) mod watched;

#[cfg(test)]
mod model_tests;

pub use core::{Chore, Core, Effect, Event, Now};
pub use shared::Witness;
