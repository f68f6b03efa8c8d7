//! Steering a store with faults: counters, traps, the cut, and the digest of what happened.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::FaultOptions;

/// What happens at a counted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Neither it nor anything later reaches the store.
    CutBefore,
    /// It is applied; its reply and everything later is lost.
    CutAfter,
    /// It fails without being applied; what comes later is fair again.
    FailBefore,
    /// It is applied, but reported as failed; what comes later is fair again.
    FailAfter,
    /// A PUT leaves the first part of its body, and fails; what comes later is fair again.
    KeepHalf,
    /// A PUT leaves the first part of its body; its reply and everything later is lost.
    CutHalf,
    /// A GET returns this bit flipped (counted from the first, beyond the end anew); the object is as it was.
    Flip(u64),
}

/// Which operations a trap counts, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// All.
    Operations,
    /// PUTs and DELETEs only: cutting between two reads leaves nothing different behind.
    Mutations,
}

/// The handle by which a test steers a [`FaultyStore`].
#[derive(Clone)]
pub struct Faults(Arc<Control>);

struct Control {
    state: Mutex<State>,
    cut: AtomicBool,
    /// The cut has happened. Not a `tokio::sync::watch`: that wakes those who wait in a random order (rule R14).
    was_cut: Notify,
}

#[derive(Default)]
struct State {
    options: FaultOptions,
    traps: Vec<(Counted, u64, Trap)>,
    operations: u64,
    mutations: u64,
    digest: blake3::Hasher,
}

impl Faults {
    pub(super) fn new(options: FaultOptions) -> Faults {
        let state = Mutex::new(State { options, ..State::default() });
        Faults(Arc::new(Control { state, cut: AtomicBool::new(false), was_cut: Notify::new() }))
    }

    /// Cuts the wrapper off the store below for ever.
    pub fn isolate(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.was_cut.notify_waiters();
    }

    /// Whether it is cut off.
    pub fn is_isolated(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }

    /// Waits until it is cut off, by a trap or by hand.
    pub async fn isolated(&self) {
        loop {
            // Before the look, so that a cut right after it is not missed.
            let cut = self.0.was_cut.notified();
            if self.is_isolated() {
                return;
            }
            cut.await;
        }
    }

    /// Sets a trap at the `k`-th operation of those counted, from 1 since the wrapper was made.
    pub fn set_trap(&self, counted: Counted, k: u64, trap: Trap) {
        self.0.state.lock().traps.push((counted, k, trap));
    }

    /// Changes the random faults from now on: an outage begins (`refuse: 1000`) or ends.
    pub fn set_options(&self, options: FaultOptions) {
        self.0.state.lock().options = options;
    }

    /// Operations counted so far; an operation that comes after the cut is not.
    pub fn operations(&self) -> u64 {
        self.0.state.lock().operations
    }

    /// PUTs and DELETEs counted so far.
    pub fn mutations(&self) -> u64 {
        self.0.state.lock().mutations
    }

    /// A digest of every operation counted so far, its fate included, in order: equal for two runs of one seed.
    pub fn digest(&self) -> String {
        self.0.state.lock().digest.finalize().to_hex().to_string()
    }

    pub(super) fn options(&self) -> FaultOptions {
        self.0.state.lock().options
    }

    /// Counts an operation; `None` if nothing passes any more.
    pub(super) fn count(&self, op: &Op<'_>, drawn: Fate) -> Option<Fate> {
        if self.is_isolated() {
            return None;
        }
        let mut state = self.0.state.lock();
        state.operations += 1;
        state.mutations += u64::from(op.mutates);
        let fate = match state.trap(op.mutates) {
            Some(Trap::CutBefore) => {
                self.isolate();
                return None;
            }
            Some(Trap::CutAfter) => Fate::CutAfter,
            Some(Trap::FailBefore) => Fate::Refuse,
            Some(Trap::FailAfter) => Fate::FailAfter,
            Some(Trap::KeepHalf) => Fate::Half,
            Some(Trap::CutHalf) => Fate::CutHalf,
            Some(Trap::Flip(bit)) => Fate::CorruptAt(bit),
            None => drawn,
        };
        let line = format!("{} {} {} {fate:?}\n", state.operations, op.verb, op.what);
        state.digest.update(line.as_bytes());
        Some(fate)
    }
}

impl State {
    fn trap(&self, mutates: bool) -> Option<Trap> {
        let here = |&&(counted, k, _): &&(Counted, u64, Trap)| match counted {
            Counted::Operations => k == self.operations,
            Counted::Mutations => mutates && k == self.mutations,
        };
        self.traps.iter().find(here).map(|&(_, _, trap)| trap)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        write!(f, "Faults({} operations, {:?}, isolated: {})", state.operations, state.options, self.is_isolated())
    }
}

/// What an operation is, for counting and for messages.
pub(super) struct Op<'a> {
    pub verb: &'static str,
    pub what: &'a str,
    pub mutates: bool,
}

/// What happens to an operation; the table at the head of the parent module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Fair,
    Refuse,
    Throttle,
    FailAfter,
    TimeOut { applied: bool },
    Short,
    Corrupt,
    CorruptAt(u64),
    Half,
    CutAfter,
    CutHalf,
}
