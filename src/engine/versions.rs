//! Versions that are kept, on a volume that is open: taking one, and letting one go, is what the next checkpoint does.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::MutexGuard;

use crate::device::DeviceError;
use crate::engine::backoff::Backoff;
use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::error::VolumeError;
use crate::format::meta::VolumeName;
use crate::format::root::CheckpointInfo;
use crate::human::{date, few};
use crate::map::ExtentMap;
use crate::space::KeptVersion;
use crate::space::kept::{Change, Label};
use crate::units::{BlockCount, Seq};

/// The map of a version that is kept: but for its pages, some kilobytes.
#[derive(Debug)]
pub struct VersionMap {
    /// The map.
    pub map: ExtentMap,
    /// The checkpoint objects in which it has pages.
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
}

impl Shared {
    /// Keeps the volume as it is once everything that was accepted before is in the store, and lets these versions go, with the same checkpoint.
    /// Names are the caller's business.
    pub(crate) async fn keep(&self, label: Label, drop: BTreeSet<Seq>) -> Result<(), VolumeError> {
        let last = self.ledger().log().last();
        self.committed(last).await?;
        let blocks = self.facts.block_size.block_of(self.size()).0;
        let take = Some((label, BlockCount(blocks)));
        self.change_versions(Change { take, drop, ..Change::default() }).await
    }

    /// Does that with the next checkpoints; returns when it is durable, and everybody who takes the volume from now on finds it: a checkpoint
    /// is not put where a fence would meet it, and one of a server that was displaced meanwhile may never be looked at. What is to be kept until
    /// later is not let go, and not kept for a shorter time: the caller has the turn.
    pub(crate) async fn change_versions(&self, change: Change) -> Result<(), VolumeError> {
        self.check_open()?;
        refuse_to_shorten(&self.facts.meta.name, &self.versions(), &change, self.doors.clock.unix_millis())?;
        let asked = self.ledger().change_versions(change);
        self.waits.wake.notify_one();
        self.versions_done(asked).await?;
        let mut backoff = Backoff::new(self);
        loop {
            let from = self.ledger().first_foreign_slot();
            match slot::prove_unfenced(self, from).await {
                Ok(()) => return Ok(()),
                Err(ProofError::Fenced(end)) => return Err(DeviceError::from(end).into()),
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

/// Refuses a change that lets a version go before its time, or brings that nearer, or that clones need. This is the one place that every change passes.
fn refuse_to_shorten(
    volume: &VolumeName,
    kept: &[KeptVersion],
    change: &Change,
    now_unix_millis: u64,
) -> Result<(), VolumeError> {
    for KeptVersion { seq, label, .. } in kept {
        let Label { name, keep_until_unix_millis: until, .. } = label;
        let label_then = change.relabel.get(seq);
        let is_hidden = label_then.is_some_and(Label::is_hidden);
        if (change.drop.contains(seq) || is_hidden) && *until > now_unix_millis {
            return Err(VolumeError::Invalid(format!(
                "snapshot {name} of volume {volume} is to be kept until {}: nobody can delete it before",
                date(*until)
            )));
        }
        if label_then.is_some_and(|label| label.keep_until_unix_millis < *until) {
            return Err(VolumeError::Invalid(format!(
                "snapshot {name} of volume {volume} is to be kept until {}: that can be made later, not earlier",
                date(*until)
            )));
        }
        let clones = &label_then.unwrap_or(label).clones;
        if change.drop.contains(seq) && !clones.is_empty() {
            return Err(VolumeError::Invalid(format!(
                "a version of volume {volume} cannot go: clones show it, {}",
                few(clones.iter().map(|clone| clone.name.as_str()))
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::CloneRef;

    #[test]
    fn a_version_goes_when_its_time_has_come_and_that_never_comes_nearer() {
        let volume = VolumeName::new("v").unwrap();
        let label = |until| Label { name: "s".into(), keep_until_unix_millis: until, ..Label::default() };
        let kept = [KeptVersion { seq: Seq(4), label: label(5000), ..KeptVersion::default() }];
        let refused = |change: Change, now| {
            refuse_to_shorten(&volume, &kept, &change, now).map_err(|error| error.to_string()).err()
        };
        let drop = |seq| Change { drop: [Seq(seq)].into(), ..Change::default() };
        let until = "snapshot s of volume v is to be kept until 1970-01-01T00:00:05Z: ";
        assert_eq!(refused(drop(4), 4999), Some(format!("{until}nobody can delete it before")));
        assert_eq!((refused(drop(4), 5000), refused(drop(3), 0)), (None, None));
        let relabel = |until| Change { relabel: [(Seq(4), label(until))].into(), ..Change::default() };
        let shorter = Some(format!("{until}that can be made later, not earlier"));
        let clones = vec![CloneRef { uuid: uuid::Uuid::nil(), name: "c".into(), after: 0 }];
        let cloned = [KeptVersion { seq: Seq(4), label: Label { clones, ..label(0) }, ..KeptVersion::default() }];
        let refused_cloned = |change: Change| refuse_to_shorten(&volume, &cloned, &change, 0).is_err();
        let forgets = Change { relabel: [(Seq(4), label(0))].into(), ..drop(4) };
        assert_eq!((refused_cloned(drop(4)), refused_cloned(forgets)), (true, false));
        let hides = Change { relabel: [(Seq(4), label(5000).hidden())].into(), ..Change::default() };
        assert_eq!(
            (refused(hides.clone(), 4999), refused(hides, 5000)),
            (Some(format!("{until}nobody can delete it before")), None)
        );
        // Whatever the time is: it may be a clock that jumped.
        assert_eq!((refused(relabel(4999), 0), refused(relabel(0), 9000)), (shorter.clone(), shorter));
        assert_eq!((refused(relabel(5000), 0), refused(relabel(5001), 0)), (None, None));
    }
}
