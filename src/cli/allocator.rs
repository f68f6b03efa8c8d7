//! How the system's allocator is set up.

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
