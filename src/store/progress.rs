//! When a request last moved: the watch over those that stall.
//!
//! A total time limit alone is wrong twice: it kills a large upload on a slow link that is doing well, and it waits
//! minutes for a connection that died at once. So whoever moves bytes marks each piece, and what goes without a mark for
//! too long has failed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// When something last moved. Clones share it.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    /// Of something that moved just now.
    pub fn begin() -> Progress {
        Progress(Arc::new(Mutex::new(Instant::now())))
    }

    /// It moves.
    pub fn mark(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Runs `work` to its end; `None` if `stall` passes without a mark. That somebody begins to watch is none: others may have
    /// waited for long.
    pub async fn watch<T>(&self, stall: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let began = Instant::now();
        let deadline = || began.max(*self.0.lock()) + stall;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(deadline()) => {
                    if deadline() <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_long_but_not_stand_still() {
        let (stall, step) = (Duration::from_secs(10), Duration::from_secs(7));
        let progress = Progress::begin();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(step).await;
                progress.mark();
            }
        };
        assert_eq!(progress.watch(stall, slow).await, Some(()));
        let before = Instant::now();
        assert_eq!(progress.watch(stall, std::future::pending::<()>()).await, None);
        assert_eq!(before.elapsed(), stall);
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_to_wait_makes_nobody_else_wait_longer() {
        let (stall, progress) = (Duration::from_secs(10), Progress::begin());
        let before = Instant::now();
        let never = || progress.watch(stall, std::future::pending::<()>());
        let later = async {
            tokio::time::sleep(stall / 2).await;
            never().await
        };
        let first = async { (never().await, before.elapsed()) };
        assert_eq!(tokio::join!(first, later), ((None, stall), None));
        assert_eq!(before.elapsed(), stall + stall / 2);
    }
}
