//! When the store is looked through for objects that nobody owns. Pure; [`crate::upkeep::sweep`] says what such objects are.
//!
//! Rarely: `gc.sweep_grace` after the opening, then every `gc.sweep_interval`. Whether a sweep is due is asked when something was
//! committed, and never of a volume that is quiet: such a volume makes no request, and what nobody owns waits with it.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::engine::core::Report;
use crate::gc::Options;
use crate::store::{Key, StoreError};

/// The sweeps of one volume.
#[derive(Debug)]
pub(super) struct Sweeps {
    is_running: bool,
    next_at: Instant,
    /// Found by the last sweep for the first time.
    suspects: BTreeSet<Key>,
    /// Something was committed since the last look at the time.
    is_active: bool,
}

impl Sweeps {
    /// Of a volume that was opened now.
    pub fn new(at: Instant, options: &Options) -> Sweeps {
        Sweeps { is_running: false, next_at: at + options.sweep_grace, suspects: BTreeSet::new(), is_active: false }
    }

    /// Something was committed.
    pub fn note_commit(&mut self) {
        self.is_active = true;
    }

    /// Begins a sweep if something was committed and the time has come: the suspects of the one before.
    pub fn start(&mut self, is_closing: bool, at: Instant) -> Option<BTreeSet<Key>> {
        let is_active = std::mem::take(&mut self.is_active);
        if !is_active || self.is_running || at < self.next_at || is_closing {
            return None;
        }
        self.is_running = true;
        Some(std::mem::take(&mut self.suspects))
    }

    /// Takes in what a sweep found.
    pub fn take(&mut self, found: Result<BTreeSet<Key>, StoreError>, at: Instant, options: &Options) -> Option<Report> {
        self.is_running = false;
        let failed = found.map(|suspects| self.suspects = suspects).err();
        let pause = if self.suspects.is_empty() { options.sweep_interval } else { options.sweep_grace };
        self.next_at = at + pause;
        failed.map(Report::SweepBrokeOff)
    }
}
