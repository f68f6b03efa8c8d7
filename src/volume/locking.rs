//! Object lock of an open volume: one task that has the store keep what snapshots need that are kept until a date ([`crate::store::Store::retain`]), if the store can.
//!
//! What such a snapshot needs lies in the log up to it, in the checkpoint objects that it names, and in the description. So
//!
//! 1. at the first time, and whenever the date is a later one, everything of the log that is there is locked, as it is listed, with the checkpoints, and what
//!    decides about epochs;
//! 2. after that, what has come since: the log from there up to the newest such snapshot, and its checkpoint objects;
//! 3. segments that have come to carry what was needed of others ([`crate::space::carriers`]). What they carry is locked itself, and stays so; they are for a
//!    date that comes to be a later one.
//!
//! Of a clone, everything of its parents' logs that is there at the first time and whenever the date is a later one, too: what it shows of them lies in
//! that, wherever their servers put it later. They are listed until all was there that a listing had, since their servers go on meanwhile.
//!
//! All of it until the date that the description says, which is never earlier than that of a snapshot, and for a schedule generous: so an object is locked
//! anew once in the time for which each is kept, not with each snapshot. What is collected meanwhile is hidden, and stays in the bucket.
//!
//! What was locked is not written down anywhere: whoever opens the volume begins with the first step. A failure is told once, and tried again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::engine::backoff::Backoff;
use crate::engine::shared::Shared;
use crate::engine::watched::Watched;
use crate::error::VolumeError;
use crate::format::keys::Keys;
use crate::format::meta::VolumeName;
use crate::format::places::{PLACES_MAX, place};
use crate::human::date;
use crate::opening::description::{self, Description};
use crate::space::{Carriers, KeptVersion};
use crate::store::{ErrorKind, Key, StoreError};
use crate::units::Seq;

/// Objects that are locked at once.
const PARALLEL: usize = 8;

/// How often a parent is listed whose server deletes what was listed; what that was is no part of a version then, or the server has put it elsewhere before.
const PASSES: usize = 4;

/// How often it is looked whether segments have come to carry others. Without a reason this asks nothing of the store.
const LOOK: Duration = Duration::from_secs(60);

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct Locker {
    shared: Arc<Shared>,
    state: Arc<Watched<State>>,
    task: Option<JoinHandle<()>>,
}

/// How far the store has locked what snapshots need that are kept until a date.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// All of it is, until then, in milliseconds since 1970; 0 before that.
    pub until_unix_millis: u64,
    /// There is more to be locked.
    pub is_behind: bool,
    /// Objects that were locked since the volume was opened, each time counted.
    pub objects: u64,
    /// Why it does not go on just now, if it is so.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct State {
    done: Done,
    objects: u64,
    trouble: Option<String>,
}

/// What is locked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Done {
    /// All of it until then, in milliseconds since 1970.
    until: u64,
    /// The log up to there.
    through: Seq,
    checkpoints: BTreeSet<Seq>,
    carriers: BTreeSet<Seq>,
    description: u64,
}

impl Done {
    /// What is to be locked; nothing if no snapshot is kept until later.
    fn wanted(kept: &[KeptVersion], carriers: &Carriers, (description, until): (u64, u64), now: u64) -> Option<Done> {
        let held: Vec<_> = kept.iter().filter(|version| version.label.keep_until_unix_millis > now).collect();
        let through = held.last()?.seq;
        let longest = held.iter().map(|version| version.label.keep_until_unix_millis).max()?;
        let carry = carriers.iter().map(|(seq, _)| *seq).filter(|seq| carriers.birth(*seq) <= through);
        Some(Done {
            until: until.max(longest),
            through,
            checkpoints: held.iter().flat_map(|version| version.objects.iter().copied()).collect(),
            carriers: carry.collect(),
            description,
        })
    }

    fn covers(&self, wanted: &Done) -> bool {
        self.until >= wanted.until
            && self.through >= wanted.through
            && self.checkpoints.is_superset(&wanted.checkpoints)
            && self.carriers.is_superset(&wanted.carriers)
            && self.description >= wanted.description
    }
}

impl Locker {
    /// Starts the task, if the store can do that.
    pub fn start(shared: Arc<Shared>) -> Locker {
        let state = Arc::new(Watched::new(State::default()));
        let run = Run { shared: shared.clone(), state: state.clone() };
        let task = shared.doors.store.retains().then(|| tokio::spawn(run.until_ended()));
        Locker { shared, state, task }
    }

    /// How far it is; nothing if the store has no object lock, or it is not to be used.
    pub fn locked(&self) -> Option<Locked> {
        self.task.as_ref()?;
        let State { done, objects, trouble } = self.state.now().clone();
        let is_behind = wanted(&self.shared).is_some_and(|wanted| !done.covers(&wanted));
        Some(Locked { until_unix_millis: done.until, is_behind, objects, trouble })
    }

    /// Waits until everything is locked that is to be. Fails if that does not go on.
    pub async fn settled(&self) -> Result<(), VolumeError> {
        if self.task.is_none() {
            return Ok(());
        }
        let asked = |state: &State| {
            state.trouble.is_some() || wanted(&self.shared).is_none_or(|wanted| state.done.covers(&wanted))
        };
        let state = tokio::select! {
            state = self.state.wait_for(asked) => state,
            _ = self.shared.waits.progress.wait_for(|progress| progress.end.is_some()) => self.state.now().clone(),
        };
        let name = &self.shared.facts.meta.name;
        match (state.trouble, wanted(&self.shared)) {
            (Some(trouble), _) => Err(VolumeError::Invalid(format!(
                "snapshots of volume {name} are kept, and not locked in the store yet, which is tried again while it is open: {trouble}"
            ))),
            (None, Some(wanted)) if !state.done.covers(&wanted) => Err(VolumeError::Invalid(format!(
                "snapshots of volume {name} are kept, and not locked in the store until {}: the volume was closed before",
                date(wanted.until)
            ))),
            _ => Ok(()),
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What is to be locked of a volume as it is now.
fn wanted(shared: &Shared) -> Option<Done> {
    let (kept, carriers, description) = {
        let ledger = shared.ledger();
        let space = ledger.log().map.space();
        (space.durable().kept.clone(), space.carriers().clone(), ledger.description())
    };
    Done::wanted(&kept, &carriers, (description, shared.protected_until()), shared.doors.clock.unix_millis())
}

/// What the task knows.
struct Run {
    shared: Arc<Shared>,
    state: Arc<Watched<State>>,
}

impl Run {
    async fn until_ended(self) {
        let shared = self.shared.clone();
        // Whatever it waits for goes on without it, or is nothing that anybody else waits for.
        tokio::select! {
            _ = shared.waits.progress.wait_for(|progress| progress.end.is_some()) => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        loop {
            let versions = self.shared.waits.progress.now().versions;
            while let Some(wanted) = wanted(&self.shared)
                && !self.state.now().done.covers(&wanted)
            {
                let done = self.state.now().done.clone();
                self.lock(&done, &wanted).await;
                let until = wanted.until.max(done.until);
                let checkpoints = &done.checkpoints | &wanted.checkpoints;
                let carriers = &done.carriers | &wanted.carriers;
                self.state.change(|state| {
                    state.done = Done { until, checkpoints, carriers, ..wanted };
                    state.trouble = None;
                });
                tracing::debug!(volume = %self.shared.facts.meta.name, until = date(until), "what snapshots need is locked in the store");
            }
            // There may be nothing to lock any more, because its time is over.
            self.state.change(|_| {});
            let changed = self.shared.waits.progress.wait_for(|progress| progress.versions != versions);
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// Locks what is wanted and not done.
    async fn lock(&self, done: &Done, wanted: &Done) {
        let (keys, until) = (&self.shared.doors.keys, wanted.until);
        if until > done.until {
            for prefix in [keys.segments(), keys.checkpoints(), keys.fences()] {
                self.lock_listed(&prefix, until).await;
            }
            self.lock_parents(until).await;
        } else {
            for seq in done.through.0 + 1..=wanted.through.0 {
                self.lock_places(keys.segment(Seq(seq)), until).await;
            }
        }
        for seq in wanted.checkpoints.difference(&done.checkpoints) {
            self.lock_places(keys.checkpoint(*seq), until).await;
        }
        for seq in wanted.carriers.difference(&done.carriers) {
            self.lock_places(keys.segment(*seq), until).await;
        }
        if until > done.until || wanted.description > done.description {
            let key = Keys::meta(&self.shared.facts.meta.name, wanted.description);
            self.until_it_works(|| self.lock_if_there(&key, until)).await;
        }
    }

    /// Locks everything of the volumes that a clone shows.
    async fn lock_parents(&self, until: u64) {
        let mut shown = self.shared.facts.meta.parent.clone().filter(|_| self.shared.doors.below().is_some());
        while let Some(parent) = shown {
            let found = self.until_it_works(|| self.description(&parent.volume)).await;
            let keys = Keys::of(&found.meta);
            for _ in 0..PASSES {
                let mut was_all_there = true;
                for prefix in [keys.segments(), keys.checkpoints(), keys.fences()] {
                    was_all_there &= self.lock_listed(&prefix, until).await;
                }
                if was_all_there {
                    break;
                }
            }
            let key = Keys::meta(&found.meta.name, found.number);
            self.until_it_works(|| self.lock_if_there(&key, until)).await;
            shown = found.meta.parent;
        }
    }

    async fn description(&self, volume: &VolumeName) -> Result<Description, StoreError> {
        description::load(&*self.shared.doors.background, volume).await.map_err(|error| match error {
            VolumeError::Store { source, .. } => source,
            error => StoreError::new(ErrorKind::Invalid, error.to_string()),
        })
    }

    /// Locks everything whose key begins so; whether nothing of it was deleted meanwhile.
    async fn lock_listed(&self, prefix: &str, until: u64) -> bool {
        let store = &self.shared.doors.background;
        let (mut after, mut was_all_there) = (None::<Key>, true);
        loop {
            let page = self.until_it_works(|| store.list(prefix, after.as_ref())).await;
            let Some(last) = page.last() else { return was_all_there };
            let last = last.key.clone();
            // Digests are needed by no snapshot, and go with the next checkpoint.
            let locked: Vec<&Key> = page.iter().map(|entry| &entry.key).filter(|key| !Keys::is_digest(key)).collect();
            let lock_page = || {
                let each: Vec<_> = locked.iter().map(|key| self.lock_if_there(key, until)).collect();
                stream::iter(each).buffer_unordered(PARALLEL).try_fold(true, async |all, one| Ok(all && one))
            };
            was_all_there &= self.until_it_works(lock_page).await;
            if page.is_last() {
                return was_all_there;
            }
            after = Some(last);
        }
    }

    /// Locks an object at each place where it may be.
    async fn lock_places(&self, own: Key, until: u64) {
        for n in 0..PLACES_MAX {
            let Ok(key) = place(&own, n) else { return };
            if !self.until_it_works(|| self.lock_if_there(&key, until)).await {
                return;
            }
        }
    }

    /// Whether the object is there; what was deleted meanwhile is not needed any more.
    async fn lock_if_there(&self, key: &Key, until: u64) -> Result<bool, StoreError> {
        match self.shared.doors.store.retain(key, until).await {
            Ok(()) => {
                // Nobody waits for a count.
                self.state.now().objects += 1;
                Ok(true)
            }
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn until_it_works<T, F: Future<Output = Result<T, StoreError>>>(&self, work: impl Fn() -> F) -> T {
        let (mut backoff, mut has_failed) = (Backoff::new(&self.shared), false);
        loop {
            match work().await {
                Ok(done) => {
                    if has_failed {
                        self.state.change(|state| state.trouble = None);
                    }
                    return done;
                }
                Err(error) => {
                    has_failed = true;
                    self.state.change(|state| state.trouble = Some(error.to_string()));
                    backoff.pause("locking what snapshots need", &error).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Carrier, Label};

    fn version(seq: u64, until: u64, objects: &[u64]) -> KeptVersion {
        let label = Label { keep_until_unix_millis: until, ..Label::default() };
        let objects = objects.iter().copied().map(Seq).collect();
        KeptVersion { seq: Seq(seq), label, objects, ..KeptVersion::default() }
    }

    fn seqs(seqs: &[u64]) -> BTreeSet<Seq> {
        seqs.iter().copied().map(Seq).collect()
    }

    #[test]
    fn what_is_kept_until_later_is_wanted_and_what_carries_some_of_it() {
        let kept = [version(4, 50, &[2, 4]), version(9, 80, &[4, 9]), version(12, 0, &[12])];
        let carrier = |carried: &[u64]| Carrier { carried: carried.iter().copied().map(Seq).collect(), salt: [0; 16] };
        let carriers = Carriers::new([(Seq(14), carrier(&[3, 7])), (Seq(15), carrier(&[10, 11]))]);
        let wanted = |until, now| Done::wanted(&kept, &carriers, (3, until), now);
        let both =
            Done { until: 80, through: Seq(9), checkpoints: seqs(&[2, 4, 9]), carriers: seqs(&[14]), description: 3 };
        assert_eq!(wanted(0, 49), Some(both.clone()));
        assert_eq!(wanted(100, 49), Some(Done { until: 100, ..both.clone() }), "as generous as the description");
        let newest = Done { checkpoints: seqs(&[4, 9]), ..both.clone() };
        assert_eq!((wanted(0, 50), wanted(100, 80)), (Some(newest.clone()), None));
        assert!(both.covers(&newest) && !newest.covers(&both) && !Done::default().covers(&newest));
        let lacks = |done: Done| !done.covers(&both);
        assert!(lacks(Done { until: 79, ..both.clone() }) && lacks(Done { through: Seq(8), ..both.clone() }));
        assert!(lacks(Done { carriers: seqs(&[]), ..both.clone() }) && lacks(Done { description: 2, ..both.clone() }));
    }
}
