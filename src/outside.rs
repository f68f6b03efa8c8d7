//! The outside as it is handed in (rule R14): wall time, randomness and CPU workers, so that one seed replays one
//! run. The object store and the local disk are doors of their own ([`crate::store::Store`], [`crate::disk::Disk`]);
//! monotonic time is `tokio::time`, which a test can pause.

pub mod lock;
pub mod directory;
pub mod panics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

/// Wall time, for people's eyes only: no decision rests on it.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's.
    System,
    /// A test's: milliseconds since 1970, moved by hand.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Milliseconds since 1970.
    #[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
    pub fn unix_millis(&self) -> u64 {
        match self {
            Clock::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64,
            Clock::Manual(millis) => millis.load(Ordering::Relaxed),
        }
    }
}

/// Randomness: uuids, salts, jitter.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    #[allow(clippy::disallowed_methods)] // the one place that draws a seed
    pub fn system() -> Random {
        Random(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// Seeded by a test.
    pub fn seeded(seed: u64) -> Random {
        Random(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A random (version 4) uuid.
    pub fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.bytes()).into_uuid()
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.lock().fill_bytes(&mut bytes);
        bytes
    }

    /// A number from 0 up to, and without, `end` (which is at least 1).
    pub fn below(&self, end: u64) -> u64 {
        u64::from_le_bytes(self.bytes()) % end.max(1)
    }
}

/// Where work goes that would hold up the reactor: compression, sealing, hashing of whole segments.
#[derive(Clone, Copy, Debug, Default)]
pub enum Workers {
    /// tokio's blocking threads.
    Threads,
    /// At once, on the caller's task: what a seeded run needs.
    #[default]
    Inline,
}

impl Workers {
    /// Runs `work` and returns its result.
    #[allow(clippy::disallowed_methods)] // the one place that moves work to threads
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Workers::Inline => work(),
            Workers::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(result) => result,
                // The closure panicked: hand the panic on to the task that asked.
                Err(failed) => std::panic::resume_unwind(failed.into_panic()),
            },
        }
    }
}

/// Lets other threads have their turn in the middle of long work. A kernel that does not preempt lets a thread run to its next
/// tick, 4 ms at 250 Hz, while a client waits for its reply.
#[derive(Debug, Default)]
pub struct Turns {
    worked: usize,
}

impl Turns {
    /// Between two turns for others, in bytes worked upon: a tenth of a millisecond at most. A turn is a switch of tasks wherever anybody wants it.
    const BYTES: usize = 256 << 10;

    /// So many more bytes were worked upon.
    pub fn worked(&mut self, bytes: usize) {
        self.worked += bytes;
        if self.worked >= Turns::BYTES {
            self.worked = 0;
            std::thread::yield_now();
        }
    }
}
