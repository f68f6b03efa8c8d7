//! The life of a server as its tasks see it: it runs, then drains, then is closed; and how many tasks there still are.

use tokio::sync::watch;

/// What the server is about; it only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted and requests served.
    Running,
    /// Nothing new is taken; what is in flight finishes.
    Draining,
    /// Everything stops at once.
    Closed,
}

/// A task's view of the phase.
#[derive(Clone, Debug)]
pub struct Phases(watch::Receiver<Phase>);

impl Phases {
    /// Whether the server takes nothing new.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// Waits until the server takes nothing new.
    pub async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until everything must stop.
    pub async fn closed(&mut self) {
        self.reached(Phase::Closed).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // An error says that the server is gone: everything must stop then, too.
        let _ = self.0.wait_for(|&now| now >= phase).await;
    }
}

/// The server's side: moves the phase on, and waits for the tasks.
#[derive(Debug)]
pub struct Life {
    phase: watch::Sender<Phase>,
    tasks: watch::Sender<usize>,
}

impl Life {
    /// A server that runs and has no tasks.
    pub fn new() -> Life {
        Life { phase: watch::Sender::new(Phase::Running), tasks: watch::Sender::new(0) }
    }

    /// A view for a task.
    pub fn phases(&self) -> Phases {
        Phases(self.phase.subscribe())
    }

    /// Moves on to `phase`, unless it is there or beyond already.
    pub fn reach(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let moves = *now < phase;
            *now = phase.max(*now);
            moves
        });
    }

    /// Counts a task until the guard is dropped.
    pub fn task(&self) -> TaskGuard {
        self.tasks.send_modify(|count| *count += 1);
        TaskGuard(self.tasks.clone())
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> usize {
        *self.tasks.borrow()
    }

    /// Waits until there is no task.
    pub async fn no_tasks(&self) {
        // The sender is borrowed meanwhile, so this cannot fail.
        let _ = self.tasks.subscribe().wait_for(|&count| count == 0).await;
    }
}

impl Default for Life {
    fn default() -> Life {
        Life::new()
    }
}

/// See [`Life::task`].
#[derive(Debug)]
pub struct TaskGuard(watch::Sender<usize>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
