//! What the journal owes and to whom. Plain data, changed under one short lock: callers append and wait here, the
//! writer takes batches and reports progress here. Nothing in it waits or does I/O.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use crate::change::Numbered;
use crate::journal::{JournalError, Progress, record};
use crate::units::{ChangeNo, Epoch};

/// A record on its way to the file.
pub type Queued = (Epoch, Numbered);

/// One of the promises that a caller can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Handed to the operating system.
    Written,
    /// On the disk.
    Synced,
}

/// Whether records are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// They are written as they come.
    Running,
    /// A write or sync failed: they are dropped until a restart.
    Suspended(String),
    /// Old files are being removed; new records queue behind that.
    Restarting,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    /// Whether records are taken.
    pub phase: Phase,
    /// No more records are expected: write and sync what there is, then end.
    pub closing: bool,
    /// All up to here are covered by the store; the journal need not hold them.
    pub released: ChangeNo,
    /// Bytes of the files in use.
    pub stored_bytes: u64,
    next: ChangeNo,
    epoch: Epoch,
    written: ChangeNo,
    synced: ChangeNo,
    /// What an earlier life is known to have synced.
    synced_before: ChangeNo,
    queue: VecDeque<Queued>,
    unwritten: Unwritten,
    /// By promise.
    waiters: [BTreeMap<(ChangeNo, u64), Waiter>; 2],
    waiter_no: u64,
}

/// The records that are in memory: queued, or being written.
#[derive(Debug, Default)]
struct Unwritten {
    /// Their numbers and bytes.
    records: VecDeque<(ChangeNo, u64)>,
    /// So many of them, from the first on, are covered by the store.
    covered: usize,
    /// Bytes of those.
    covered_bytes: u64,
}

impl Unwritten {
    /// All up to `no` are in the file.
    fn written(&mut self, no: ChangeNo) {
        while let Some((_, bytes)) = self.records.pop_front_if(|(first, _)| *first <= no) {
            if self.covered > 0 {
                self.covered -= 1;
                self.covered_bytes -= bytes;
            }
        }
    }

    /// The store covers all up to `no`.
    fn cover(&mut self, no: ChangeNo) {
        for (_, bytes) in self.records.iter().skip(self.covered).take_while(|(next, _)| *next <= no) {
            self.covered += 1;
            self.covered_bytes += bytes;
        }
    }
}

type Waiter = oneshot::Sender<Result<(), JournalError>>;

/// The answer to "is it so far?".
pub enum Asked {
    /// Yes, or it will not be.
    Known(Result<(), JournalError>),
    /// Told later.
    Later(oneshot::Receiver<Result<(), JournalError>>),
}

impl State {
    /// The next record will be `next`; those before are in the files, of which all up to `synced` are on the disk, and those
    /// up to `synced_before` were, before they were written once more.
    pub fn new(next: ChangeNo, epoch: Epoch, synced: ChangeNo, synced_before: ChangeNo) -> State {
        State {
            phase: Phase::Running,
            closing: false,
            released: ChangeNo(0),
            stored_bytes: 0,
            next,
            epoch,
            written: before(next),
            synced: synced.min(before(next)),
            synced_before: synced_before.min(before(next)),
            queue: VecDeque::new(),
            unwritten: Unwritten::default(),
            waiters: Default::default(),
            waiter_no: 0,
        }
    }

    /// Takes a record. One that does not follow the one before would make the file end there for every reader, so
    /// it suspends the journal, and says so in the result.
    pub fn append(&mut self, epoch: Epoch, numbered: Numbered) -> Result<(), String> {
        if matches!(self.phase, Phase::Suspended(_)) || self.closing {
            return Ok(());
        }
        if numbered.no != self.next || epoch < self.epoch {
            let (no, next, known) = (numbered.no, self.next, self.epoch);
            return Err(format!("change {no} of epoch {epoch} was appended where {next} of epoch {known} was due"));
        }
        self.next = self.next.next();
        self.epoch = epoch;
        self.unwritten.records.push_back((numbered.no, record::record_len(&numbered.change)));
        self.queue.push_back((epoch, numbered));
        Ok(())
    }

    /// Bytes of records that the store covers and that are in memory all the same, because the disk has not taken them yet.
    pub fn kept_bytes(&self) -> u64 {
        self.unwritten.covered_bytes
    }

    /// Whether `promise` holds for `no` and all before it, or a place in the line.
    pub fn ask(&mut self, promise: Promise, no: ChangeNo) -> Asked {
        if no <= self.reached(promise) {
            return Asked::Known(Ok(()));
        }
        if let Phase::Suspended(reason) = &self.phase {
            return Asked::Known(Err(JournalError::Suspended { reason: reason.clone() }));
        }
        if self.closing {
            return Asked::Known(Err(JournalError::Closed));
        }
        let (tell, told) = oneshot::channel();
        self.waiter_no += 1;
        self.waiters[promise as usize].insert((no, self.waiter_no), tell);
        Asked::Later(told)
    }

    /// How far things are.
    pub fn progress(&self) -> Progress {
        let suspended = match &self.phase {
            Phase::Suspended(reason) => Some(reason.clone()),
            Phase::Running | Phase::Restarting => None,
        };
        Progress { appended: before(self.next), written: self.written, synced: self.synced, suspended }
    }

    /// The next records to write: at least one if there is any, otherwise as many as fit `room` bytes.
    pub fn take_batch(&mut self, room: u64, records_max: usize) -> Vec<Queued> {
        let mut bytes = 0;
        let fitting = self.queue.iter().take(records_max).take_while(|(_, numbered)| {
            bytes += record::record_len(&numbered.change);
            bytes <= room
        });
        let count = fitting.count().max(1).min(self.queue.len());
        self.queue.drain(..count).collect()
    }

    /// The first queued record: its number, and its bytes.
    pub fn first_queued(&self) -> Option<(ChangeNo, u64)> {
        self.queue.front().map(|(_, numbered)| (numbered.no, record::record_len(&numbered.change)))
    }

    /// What a mark says now.
    pub fn mark(&self) -> ChangeNo {
        self.synced.max(self.synced_before)
    }

    /// Up to where a sync is worth starting now: somebody waits for something that is written.
    pub fn sync_due(&self) -> Option<ChangeNo> {
        let first = self.waiters[Promise::Synced as usize].keys().next().map(|(no, _)| *no);
        let due = self.closing && self.queue.is_empty() || first.is_some_and(|no| no <= self.written);
        (due && self.synced < self.written).then_some(self.written)
    }

    /// All up to `no` keep this promise now.
    pub fn reached_now(&mut self, promise: Promise, no: ChangeNo) {
        match promise {
            Promise::Written => {
                self.written = self.written.max(no);
                self.unwritten.written(no);
            }
            Promise::Synced => self.synced = self.synced.max(no),
        }
        self.tell_reached(promise);
    }

    /// All up to `no` are covered by the store: whatever was promised of them is kept.
    pub fn release(&mut self, no: ChangeNo) {
        self.released = self.released.max(no);
        self.unwritten.cover(no);
        self.tell_reached(Promise::Written);
        self.tell_reached(Promise::Synced);
    }

    /// A write or sync failed. Tells all who wait; returns whether this is news.
    pub fn suspend(&mut self, reason: &str) -> bool {
        if matches!(self.phase, Phase::Suspended(_)) {
            return false;
        }
        self.phase = Phase::Suspended(reason.to_owned());
        self.forget_queue();
        self.tell_all(&JournalError::Suspended { reason: reason.to_owned() });
        true
    }

    /// Forgets all; the next record will be `no`. Refused if a change from `no` on was reported as written.
    pub fn restart_from(&mut self, no: ChangeNo) -> bool {
        if no <= self.written {
            return false;
        }
        self.release(before(no));
        self.tell_all(&JournalError::Suspended { reason: format!("the journal was begun anew at change {no}") });
        self.phase = Phase::Restarting;
        self.forget_queue();
        self.next = no;
        self.written = before(no);
        self.synced = before(no);
        self.synced_before = before(no);
        self.released = before(no);
        true
    }

    /// Nothing is left to do and nothing is expected.
    pub fn finished(&self) -> bool {
        let idle = self.queue.is_empty() && (self.synced == self.written) && self.phase == Phase::Running;
        self.closing && (idle || matches!(self.phase, Phase::Suspended(_)))
    }

    fn forget_queue(&mut self) {
        self.queue.clear();
        self.unwritten = Unwritten::default();
    }

    fn reached(&self, promise: Promise) -> ChangeNo {
        let reached = match promise {
            Promise::Written => self.written,
            Promise::Synced => self.synced,
        };
        reached.max(self.released)
    }

    fn tell_reached(&mut self, promise: Promise) {
        let reached = self.reached(promise);
        let waiters = &mut self.waiters[promise as usize];
        let beyond = waiters.split_off(&(reached.next(), 0));
        for (_, tell) in std::mem::replace(waiters, beyond) {
            // Who no longer listens needs no answer.
            let _ = tell.send(Ok(()));
        }
    }

    fn tell_all(&mut self, error: &JournalError) {
        for (_, tell) in self.waiters.iter_mut().flat_map(std::mem::take) {
            let _ = tell.send(Err(error.clone()));
        }
    }
}

fn before(no: ChangeNo) -> ChangeNo {
    ChangeNo(no.0.saturating_sub(1))
}
