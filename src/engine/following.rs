//! What an open volume tells its mirror, if it has one ([`crate::mirror`]): what was committed, and what was deleted. Whoever tells it waits for nobody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::mirror::notes::Deleted;
use crate::mirror::{Lag, Notes};
use crate::units::Seq;

/// See the module.
#[derive(Debug, Default)]
pub struct Following {
    /// Somebody follows.
    is_on: AtomicBool,
    lag: Mutex<Lag>,
    notes: Mutex<Notes>,
    /// The slot of the close entry; 0 before there is one.
    closed: AtomicU64,
    /// There is something new.
    pub news: Notify,
}

impl Following {
    /// Somebody follows from now on, or nobody does any more.
    pub fn set_on(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Release);
        if !is_on {
            *self.lag.lock() = Lag::default();
            *self.notes.lock() = Notes::default();
        }
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// A slot of the log took effect; it has so many bytes.
    pub fn committed(&self, slot: Seq, bytes: u64) {
        if self.is_on() {
            self.lag.lock().committed(slot, bytes, Instant::now());
            self.news.notify_one();
        }
    }

    /// A checkpoint is durable, or the volume is described anew.
    pub fn changed(&self) {
        if self.is_on() {
            self.news.notify_one();
        }
    }

    /// Objects were deleted when that was the newest checkpoint.
    pub fn deleted(&self, objects: impl IntoIterator<Item = Deleted>, checkpoint: Seq) {
        if self.is_on() {
            let now = Instant::now();
            let mut notes = self.notes.lock();
            objects.into_iter().for_each(|object| notes.add(object, checkpoint, now));
            self.news.notify_one();
        }
    }

    /// The volume was closed, with an entry in that slot.
    pub fn closed(&self, slot: Seq, bytes: u64) {
        self.committed(slot, bytes);
        self.closed.store(slot.0, Ordering::Release);
        self.news.notify_one();
    }

    /// The slot of the close entry; 0 before there is one.
    pub fn closed_at(&self) -> Seq {
        Seq(self.closed.load(Ordering::Acquire))
    }

    /// How far the mirror is behind: not to be held across an await.
    pub fn lag(&self) -> MutexGuard<'_, Lag> {
        self.lag.lock()
    }

    /// What was deleted: not to be held across an await.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }

    /// Since when the mirror lacks something, and how many bytes.
    pub fn behind(&self) -> (Duration, u64) {
        let lag = self.lag.lock();
        (lag.since(Instant::now()), lag.bytes())
    }
}
