//! When doomed objects are deleted, and when that is tried again. Pure; `upkeep/deletion` has the order that makes it safe.
//!
//! A store that fails is asked again later, and less and less often: dead objects cost money, nothing else.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::core::{Effect, Report};
use crate::engine::doomed::Planned;
use crate::engine::ledger::Ledger;
use crate::store::StoreError;
use crate::units::Seq;

/// Objects that are deleted in one go: what a store takes in one request.
pub const BATCH: usize = 1000;

/// The pause after a failure; each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_secs(10);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A clean stop waits for so many deletions; more are left to the next opening.
const CLOSE_WAITS_FOR: usize = 10 * BATCH;

/// What is deleted together.
#[derive(Debug)]
pub struct Plan {
    /// Dead segments, checkpoint objects without a page that is needed, and digests of what a checkpoint covers.
    pub objects: Planned,
    /// The first slot that may hold a fence of somebody else.
    pub from: Seq,
    /// Reads before this line may use what is deleted.
    pub line: u64,
}

/// How a run of deletions ended.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is left of what was doomed when it began.
    Done,
    /// The store did not do it.
    Postponed(StoreError),
}

/// The deletions of one volume.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    is_running: bool,
    retry_at: Option<Instant>,
    failures: u32,
    /// A stop waits for none of them, and begins none.
    are_left: bool,
}

impl Deletions {
    /// What is doomed when the volume is closed is left to the next opening.
    pub fn leave(&mut self) {
        self.are_left = true;
    }

    /// Starts if something is doomed and the time has come.
    pub fn start(&mut self, ledger: &mut Ledger, is_closing: bool, at: Instant) -> Option<Plan> {
        let is_time = self.retry_at.is_none_or(|retry| retry <= at);
        if self.is_running || !is_time || (is_closing && self.are_left) || ledger.deletable() == 0 {
            return None;
        }
        self.retry_at = None;
        self.is_running = true;
        let may_delete_checkpoints = ledger.may_delete_checkpoints();
        Some(Plan {
            objects: ledger.doomed.plan(may_delete_checkpoints),
            from: ledger.first_foreign_slot(),
            line: ledger.log.readers().line(),
        })
    }

    /// Takes in how they ended.
    pub fn take(&mut self, ledger: &mut Ledger, outcome: Outcome, at: Instant) -> Option<Effect> {
        self.is_running = false;
        ledger.doomed.is_stuck = matches!(outcome, Outcome::Postponed(_));
        let Outcome::Postponed(error) = outcome else {
            let failed = std::mem::take(&mut self.failures) > 0;
            return failed.then_some(Effect::Report(Report::DeletesAgain));
        };
        let pause = (RETRY_MIN * 2u32.pow(self.failures.min(6))).min(RETRY_MAX);
        self.retry_at = Some(at + pause);
        self.failures += 1;
        let is_first = self.failures == 1;
        Some(Effect::Report(Report::NotDeleted { objects: ledger.doomed.len(), error, is_first }))
    }

    /// When to try again.
    pub fn deadline(&self, is_closing: bool) -> Option<Instant> {
        self.retry_at.filter(|_| !(self.is_running || (is_closing && self.are_left)))
    }

    /// Whether a clean stop need not wait.
    pub fn lets_close(&self, ledger: &Ledger) -> bool {
        let doomed = ledger.deletable();
        doomed == 0 || self.are_left || self.failures > 0 || doomed > CLOSE_WAITS_FOR
    }
}
