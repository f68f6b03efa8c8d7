//! Where lines go whose reader may be slow, gone, or on a full disk (rule R17): into a bounded queue, from which a thread of
//! its own writes them. Whoever says something never waits, and never learns that it could not be written: a line that finds
//! no room, or that the place does not take, is dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Bytes that a job holds besides its line.
const JOB_BYTES: usize = 64;

/// A queue of lines and the thread that writes them. Dropping the sink ends the thread when the queue is empty.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Bytes that may wait.
    room: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// A job is being done.
    busy: bool,
    closed: bool,
    /// Lines that were dropped since the start.
    dropped: u64,
}

enum Job {
    Line(Vec<u8>),
    Do(Box<dyn FnOnce() + Send>),
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Line(line) => JOB_BYTES + line.len(),
            Job::Do(_) => JOB_BYTES,
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Queue { jobs, bytes, busy, closed, dropped } = self;
        let jobs = jobs.len();
        write!(f, "Queue {{ jobs: {jobs}, bytes: {bytes}, busy: {busy}, closed: {closed}, dropped: {dropped} }}")
    }
}

impl Sink {
    /// A sink that holds up to `room` bytes of lines and writes each with `write`, which may block.
    pub fn start(
        name: &str,
        room: usize,
        write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Sink> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), room });
        let theirs = Arc::clone(&shared);
        // A thread of its own: one of tokio's could be held up by the reader, and would hold up the end of the runtime.
        std::thread::Builder::new().name(name.to_owned()).spawn(move || theirs.run(write))?;
        Ok(Sink { shared })
    }

    /// Has a line written; it is dropped and counted if there is no room.
    pub fn line(&self, line: impl Into<Vec<u8>>) {
        self.shared.push(Job::Line(line.into()));
    }

    /// Has something done between two lines, such as moving a bar on the same terminal; not at all if there is no room.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        self.shared.push(Job::Do(Box::new(work)));
    }

    /// Has a last line written whatever is queued already.
    pub fn last_line(&self, line: impl Into<Vec<u8>>) {
        self.shared.queue.lock().push(Job::Line(line.into()));
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, but for no longer than `patience`; whether it is.
    pub fn finish(&self, patience: Duration) -> bool {
        let mut queue = self.shared.queue.lock();
        let waits = |queue: &mut Queue| queue.busy || !queue.jobs.is_empty();
        !self.shared.changed.wait_while_for(&mut queue, waits, patience).timed_out()
    }

    /// Bytes of lines that wait to be written, and how many may.
    pub fn waiting(&self) -> (u64, u64) {
        (self.shared.queue.lock().bytes as u64, self.shared.room as u64)
    }

    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.queue.lock().dropped
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Queue {
    fn push(&mut self, job: Job) {
        self.bytes += job.bytes();
        self.jobs.push_back(job);
    }
}

impl Shared {
    fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
        if queue.bytes + job.bytes() <= self.room {
            queue.push(job);
            drop(queue);
            self.changed.notify_all();
        } else if matches!(job, Job::Line(_)) {
            queue.dropped += 1;
        }
    }

    /// The thread: does one job after the other.
    fn run(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        let mut said = 0;
        while let Some(job) = self.next() {
            let failed = match job {
                Job::Line(line) => write(&line).is_err(),
                Job::Do(work) => {
                    work();
                    false
                }
            };
            let missing = self.done(failed, said);
            if missing > said {
                // By the way of every line, so that it has the log's own form.
                tracing::warn!(lines = missing - said, "lines of the log were dropped: they could not be written");
                said = missing;
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.bytes -= job.bytes();
                queue.busy = true;
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Ends a job. Returns how many lines are missing if that may be said now: something was written, and nothing waits.
    fn done(&self, failed: bool, said: u64) -> u64 {
        let mut queue = self.queue.lock();
        queue.busy = false;
        queue.dropped += u64::from(failed);
        let missing = if failed || !queue.jobs.is_empty() { said } else { queue.dropped };
        drop(queue);
        self.changed.notify_all();
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn lines_come_out_in_order_and_work_between_them() {
        let (out, seen) = mpsc::channel();
        let work = out.clone();
        let sink = Sink::start("test", 1 << 20, move |line| {
            out.send(String::from_utf8_lossy(line).into_owned()).unwrap();
            Ok(())
        })
        .unwrap();
        sink.line("one");
        sink.run(move || work.send("work".to_owned()).unwrap());
        sink.line("two");
        assert!(sink.finish(SOON));
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["one", "work", "two"]);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_is_tried() {
        let mut count = 0;
        let sink = Sink::start("test", 1 << 20, move |_| {
            count += 1;
            if count < 3 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
        .unwrap();
        for _ in 0..5 {
            sink.line("line");
        }
        assert!(sink.finish(SOON));
        assert_eq!(sink.dropped(), 2);
    }

    /// A reader that stopped: the queue is bounded, nobody waits, and the end does not either.
    #[test]
    fn a_reader_that_stopped_holds_up_nobody() {
        let (go_on, wait) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let sink = Sink::start("test", 10 * (JOB_BYTES + 4), move |_| {
            let _ = began.send(());
            let _ = wait.recv();
            Ok(())
        })
        .unwrap();
        sink.line("held");
        begun.recv_timeout(SOON).unwrap();
        for _ in 0..100 {
            sink.line("line");
        }
        assert_eq!(sink.dropped(), 90, "ten fit");
        assert!(!sink.finish(Duration::from_millis(1)));
        sink.last_line("the end");
        assert_eq!(sink.dropped(), 90, "the last line has room whatever waits");
        drop(go_on);
        assert!(sink.finish(SOON));
    }
}
