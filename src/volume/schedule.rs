//! The schedule of an open volume: one task that takes automatic snapshots when they are due and something has changed, and lets those
//! go that the policy does not want any more, with the same checkpoint. What is decided is [`crate::retention`]; this waits for it.
//!
//! It asks the store nothing while nobody writes, but for the first time after an opening: then it reads up to which change the newest automatic
//! snapshot goes. One is taken at a time; what was due meanwhile is left out. What does not succeed is told once, and tried again when the
//! next is due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::engine::shared::Shared;
use crate::error::VolumeError;
use crate::format::meta::VolumeName;
use crate::reading::roots::read_root;
use crate::retention::{AUTOMATIC, Schedule, is_automatic};
use crate::space::kept::{Change, name_by_time, shown};
use crate::space::{KeptVersion, Label};
use crate::units::{ChangeNo, Seq};

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct Scheduler {
    shared: Arc<Shared>,
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

/// What the schedule of an open volume does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// The schedule.
    pub schedule: Schedule,
    /// Automatic snapshots that are kept.
    pub automatic: u64,
    /// Why the last one that was due was not taken, or none went, if it is so.
    pub trouble: Option<String>,
}

/// Why a volume gets no more snapshots.
pub(super) fn too_many(volume: &VolumeName, most: u64) -> String {
    format!(
        "volume {volume} has as many snapshots as it may have (volume.max_snapshots is {most}); delete some, or keep fewer"
    )
}

impl Scheduler {
    /// Starts the task.
    pub fn start(shared: Arc<Shared>) -> Scheduler {
        let trouble = Arc::default();
        let run = Run { shared: shared.clone(), trouble: Arc::clone(&trouble), known: None };
        Scheduler { shared, trouble, task: tokio::spawn(run.until_ended()) }
    }

    /// What it does, if there is a schedule.
    pub fn scheduled(&self) -> Option<Scheduled> {
        let schedule = self.shared.waits.schedule.now().clone()?;
        let automatic = automatic(&self.shared.versions()).count() as u64;
        Some(Scheduled { schedule, automatic, trouble: self.trouble.lock().clone() })
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task knows.
struct Run {
    shared: Arc<Shared>,
    trouble: Arc<Mutex<Option<String>>>,
    /// The newest automatic snapshot of which it is known up to which change it goes, and that.
    known: Option<(Seq, ChangeNo)>,
}

/// What is to be done when a snapshot is due.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    take: Option<Label>,
    drop: BTreeSet<Seq>,
    /// One would be taken if the volume had not as many as it may have.
    is_full: bool,
}

impl Run {
    async fn until_ended(mut self) {
        let shared = self.shared.clone();
        // Whatever it waits for goes on without it, or is nothing that anybody else waits for.
        tokio::select! {
            _ = shared.waits.progress.wait_for(|progress| progress.end.is_some()) => {}
            () = self.follow() => {}
        }
    }

    /// Follows the schedule, and each that comes in its place.
    async fn follow(&mut self) {
        let shared = self.shared.clone();
        loop {
            let Some(schedule) = shared.waits.schedule.wait_for(Option::is_some).await else { continue };
            let last = automatic(&shared.versions()).next_back().map(|last| last.label.taken_unix_millis);
            let first = Instant::now() + schedule.first_wait(last, shared.doors.clock.unix_millis());
            let mut due = first;
            while is_due(&shared, &schedule, due).await {
                let done = self.take_turn(&schedule).await;
                self.tell(done);
                let now = Instant::now();
                due = now + schedule.next_wait(now.saturating_duration_since(first));
            }
            self.trouble.lock().take();
        }
    }

    /// Takes a snapshot if anything has changed since the last one, and lets go what is not to be kept any more.
    async fn take_turn(&mut self, schedule: &Schedule) -> Result<(), VolumeError> {
        let shared = self.shared.clone();
        let _turn = shared.versions_turn().await?;
        // Before anything else, so that what comes from here on counts for the next one.
        let last = shared.ledger().log().last();
        let kept = shared.versions();
        let has_changed = self.covered(&kept).await? < last;
        let most = shared.ledger().options().max_snapshots;
        let plan = plan(&kept, schedule, has_changed, shared.doors.clock.unix_millis(), most);
        let is_full = plan.is_full;
        match plan {
            Plan { take: Some(label), drop, .. } => {
                let (name, until) = (label.name.clone(), label.keep_until_unix_millis);
                shared.protect_until(until, until.saturating_add(generosity(schedule))).await?;
                shared.keep(label, drop).await?;
                let versions = shared.versions();
                let taken = versions.iter().find(|version| version.label.name == name);
                self.known = taken.map(|version| (version.seq, last));
                tracing::debug!(volume = %shared.facts.meta.name, snapshot = name, "kept");
            }
            Plan { drop, .. } if !drop.is_empty() => {
                shared.change_versions(Change { drop, ..Change::default() }).await?;
            }
            _ => {}
        }
        if is_full { Err(VolumeError::Invalid(too_many(&shared.facts.meta.name, most))) } else { Ok(()) }
    }

    /// Up to which change the newest automatic snapshot goes; 0 if there is none.
    async fn covered(&mut self, kept: &[KeptVersion]) -> Result<ChangeNo, VolumeError> {
        let Some(seq) = automatic(kept).next_back().map(|newest| newest.seq) else { return Ok(ChangeNo(0)) };
        if let Some((known, covers)) = self.known
            && known == seq
        {
            return Ok(covers);
        }
        let doors = &self.shared.doors;
        let covers = read_root(&*doors.store, &doors.keys, &doors.sealer, seq, "a snapshot").await?.covers;
        self.known = Some((seq, covers));
        Ok(covers)
    }

    /// Says what went wrong, once, and that it is over.
    fn tell(&self, done: Result<(), VolumeError>) {
        let volume = &self.shared.facts.meta.name;
        let mut trouble = self.trouble.lock();
        match done {
            Ok(()) if trouble.take().is_some() => tracing::info!(%volume, "automatic snapshots are taken again"),
            Ok(()) => {}
            // It is not the schedule that says so.
            Err(_) if self.shared.check_open().is_err() => {}
            Err(error) => {
                let why = error.to_string();
                if trouble.replace(why.clone()).is_none() {
                    tracing::warn!(%volume, "an automatic snapshot was not taken, and is tried again when the next is due: {why}");
                }
            }
        }
    }
}

/// Waits until then; whether that is still the schedule.
async fn is_due(shared: &Shared, schedule: &Schedule, due: Instant) -> bool {
    let is_other = |now: &Option<Schedule>| now.as_ref() != Some(schedule);
    tokio::select! {
        biased;
        _ = shared.waits.schedule.wait_for(is_other) => false,
        () = sleep_until(due) => true,
    }
}

/// How much longer than a snapshot is to be kept the description says it, so that not each changes the description: as long again, a day at least.
fn generosity(schedule: &Schedule) -> u64 {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    schedule.keep_for().map_or(0, |keep_for| millis(keep_for).max(DAY))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The automatic snapshots, oldest first.
fn automatic(kept: &[KeptVersion]) -> impl DoubleEndedIterator<Item = &KeptVersion> {
    kept.iter().filter(|version| is_automatic(&version.label.name))
}

/// What is to be done at that time, to a volume that may have `most` snapshots.
fn plan(kept: &[KeptVersion], schedule: &Schedule, has_changed: bool, now: u64, most: u64) -> Plan {
    let there: Vec<&KeptVersion> = automatic(kept).collect();
    let goes = |takes: bool| -> BTreeSet<Seq> {
        let times = there.iter().map(|version| version.label.taken_unix_millis);
        let stays = schedule.keep().stays(&times.chain(takes.then_some(now)).collect::<Vec<_>>());
        let may_go = |label: &Label| label.keep_until_unix_millis <= now && label.clones.is_empty();
        let gone = there.iter().zip(stays).filter(|(version, stays)| !stays && may_go(&version.label));
        gone.map(|(version, _)| version.seq).collect()
    };
    let drop = goes(has_changed);
    let has_room = shown(kept) - (drop.len() as u64) < most;
    if !has_changed || !has_room {
        return Plan { take: None, drop: goes(false), is_full: has_changed };
    }
    let is_taken = |name: &str| kept.iter().any(|version| version.label.name.strip_prefix(AUTOMATIC) == Some(name));
    let name = format!("{AUTOMATIC}{}", name_by_time(now, is_taken));
    let until = schedule.keep_for().map_or(0, |keep_for| now.saturating_add(millis(keep_for)));
    let label = Label { name, taken_unix_millis: now, keep_until_unix_millis: until, ..Label::default() };
    Plan { take: Some(label), drop, is_full: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(seq: u64, name: &str, minute: u64, keep_until: u64) -> KeptVersion {
        let label = Label {
            name: name.into(),
            taken_unix_millis: minute * 60_000,
            keep_until_unix_millis: keep_until,
            ..Label::default()
        };
        KeptVersion { seq: Seq(seq), label, ..KeptVersion::default() }
    }

    fn kept() -> Vec<KeptVersion> {
        vec![
            version(10, "auto-19700101T000000Z", 0, 0),
            version(20, "by-hand", 1, 0),
            version(30, "auto-19700101T000200Z", 2, 600_000),
            version(40, "auto-19700101T000300Z", 3, 0),
            version(50, "auto-19700101T000400Z", 4, 0),
        ]
    }

    fn schedule(keep: &str) -> Schedule {
        Schedule::new(Duration::from_secs(60), keep.parse().unwrap()).unwrap()
    }

    #[test]
    fn each_is_kept_as_long_as_the_schedule_says() {
        let until = |keep_for| {
            let schedule = schedule("2").kept_for(keep_for).unwrap();
            plan(&kept(), &schedule, true, 300_000, 99).take.unwrap().keep_until_unix_millis
        };
        assert_eq!((until(None), until(Some(Duration::from_secs(7)))), (0, 307_000));
    }

    #[test]
    fn only_automatic_ones_go_and_none_that_is_to_be_kept() {
        let two = schedule("2");
        let Plan { take, drop, is_full } = plan(&kept(), &two, true, 300_000, 99);
        let label = take.unwrap();
        assert_eq!((label.name.as_str(), label.taken_unix_millis), ("auto-19700101T000500Z", 300_000));
        assert_eq!((drop, is_full), ([Seq(10), Seq(40)].into(), false));
        let until = plan(&kept(), &two, true, 600_000, 99).drop;
        assert_eq!(until, [Seq(10), Seq(30), Seq(40)].into(), "its time has come");
    }

    #[test]
    fn without_changes_the_policy_is_followed_all_the_same() {
        let plan = |keep: &str| plan(&kept(), &schedule(keep), false, 900_000, 99);
        assert_eq!(plan("4"), Plan { take: None, drop: BTreeSet::new(), is_full: false });
        assert_eq!(plan("1"), Plan { take: None, drop: [Seq(10), Seq(30), Seq(40)].into(), is_full: false });
    }

    #[test]
    fn none_is_taken_beyond_what_the_volume_may_have() {
        let plan = |keep: &str, most| plan(&kept(), &schedule(keep), true, 900_000, most);
        assert_eq!(plan("9", 5), Plan { take: None, drop: BTreeSet::new(), is_full: true });
        assert!(plan("9", 6).take.is_some());
        assert!(plan("4", 5).take.is_some(), "another one makes room");
        // What goes only because of the one that is not taken does not go.
        assert_eq!(plan("4", 4), Plan { take: None, drop: BTreeSet::new(), is_full: true });
    }
}
