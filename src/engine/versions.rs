//! Versions that are kept, on a volume that is open: taking one, and letting one go, is what the next checkpoint does.

use std::collections::BTreeSet;

use tokio::sync::MutexGuard;

use crate::device::DeviceError;
use crate::engine::backoff::Backoff;
use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::space::KeptVersion;
use crate::space::kept::{Change, Label};
use crate::units::{BlockCount, Seq};

impl Shared {
    /// Keeps the volume as it is once everything that was accepted before is in the store, and lets these versions go, with the same checkpoint.
    /// Names are the caller's business.
    pub(crate) async fn keep(&self, label: Label, drop: BTreeSet<Seq>) -> Result<(), DeviceError> {
        let last = self.ledger().log().last();
        self.committed(last).await?;
        let blocks = self.facts.block_size.block_of(self.size()).0;
        let take = Some((label, BlockCount(blocks)));
        self.change_versions(Change { take, drop, ..Change::default() }).await
    }

    /// Does that with the next checkpoints; returns when it is durable, and everybody who takes the volume from now on finds it: a checkpoint
    /// is not put where a fence would meet it, and one of a server that was displaced meanwhile may never be looked at.
    pub(crate) async fn change_versions(&self, change: Change) -> Result<(), DeviceError> {
        self.check_open()?;
        let asked = self.ledger().change_versions(change);
        self.waits.wake.notify_one();
        self.versions_done(asked).await?;
        let mut backoff = Backoff::new(self);
        loop {
            let from = self.ledger().first_foreign_slot();
            match slot::prove_unfenced(self, from).await {
                Ok(()) => return Ok(()),
                Err(ProofError::Fenced(end)) => return Err(end.into()),
                Err(ProofError::Store(error)) => backoff.pause("looking for another server", &error).await,
            }
        }
    }

    /// Waits for the turn to look at the versions that are kept, and to change them. Every change that was asked for before is durable then: one
    /// whose asker went away is done all the same, and what comes next must see it.
    pub(crate) async fn versions_turn(&self) -> Result<MutexGuard<'_, ()>, DeviceError> {
        let turn = self.waits.changing_versions.lock().await;
        let asked = self.ledger().versions_asked();
        self.versions_done(asked).await?;
        Ok(turn)
    }

    async fn versions_done(&self, asked: u64) -> Result<(), DeviceError> {
        let done = self.waits.progress.wait_for(|progress| progress.versions >= asked || progress.end.is_some()).await;
        if done.versions >= asked { Ok(()) } else { Err(done.end.unwrap_or(End::Closed).into()) }
    }

    /// The versions that are kept, oldest first, as of the last durable checkpoint.
    pub(crate) fn versions(&self) -> Vec<KeptVersion> {
        self.ledger().log().map.space().durable().kept.clone()
    }
}
