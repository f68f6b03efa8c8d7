//! How the system's allocator is set up, and made to give memory back.

use std::time::Duration;

/// As many arenas as processors, at least two. The GNU allocator makes up to eight for each, and what is freed stays in the
/// arena that it came from: a minute of random writes then held 1.29 GB instead of 0.77 to 0.96, for no gain in speed
/// (`docs/memory.md`). To be called before there are threads.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(2, 64);
        // It takes two numbers and touches nothing of ours. If it refuses, more memory is held, and nothing is wrong.
        #[allow(unsafe_code)] // no safe way to say it from inside the process
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, count as i32);
        }
    }
}

/// Gives back to the system what was freed, again and again when the server has fallen quiet. The GNU allocator keeps it
/// otherwise: small buffers leave holes among what stays, and it looks at the end of its memory only. It never returns.
pub async fn give_back_when_quiet() {
    let mut quiet = Quiet::default();
    loop {
        tokio::time::sleep(QUIET_EVERY).await;
        if quiet.is_time(processor_time()) {
            give_back();
        }
    }
}

/// How often is looked whether the server is quiet.
const QUIET_EVERY: Duration = Duration::from_secs(10);
/// It is if it used less processor time than this meanwhile,
const QUIET_MOST: Duration = Duration::from_millis(500);
/// and there is something to give back if it has used as much as this since the last time.
const WORKED_LEAST: Duration = Duration::from_millis(500);

/// Decides when memory is given back. That takes locks that everybody needs who allocates, so it waits for a quiet moment.
#[derive(Debug, Default)]
struct Quiet {
    last: Duration,
    /// The time when memory was given back last.
    gave_back: Duration,
}

impl Quiet {
    /// Whether it is time, [`QUIET_EVERY`] after the last question; `used` is the processor time of the process so far.
    fn is_time(&mut self, used: Duration) -> bool {
        let is_quiet = used.saturating_sub(self.last) < QUIET_MOST;
        let has_worked = used.saturating_sub(self.gave_back) >= WORKED_LEAST;
        self.last = used;
        if is_quiet && has_worked {
            self.gave_back = used;
        }
        is_quiet && has_worked
    }
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Gives back to the system what was freed, now. It walks through all that is free, and nobody can allocate meanwhile in the part where it is.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // It takes a number and touches only what is free.
        #[allow(unsafe_code)] // no safe way to say it from inside the process
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_work_when_nothing_goes_on() {
        let mut quiet = Quiet::default();
        let used = [100, 200, 5_000, 15_000, 15_200, 15_210, 15_300, 16_000, 16_100, 16_100];
        let times = used.map(|millis| quiet.is_time(Duration::from_millis(millis)));
        assert_eq!(times, [false, false, false, false, true, false, false, false, true, false]);
    }
}
