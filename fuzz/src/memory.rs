//! An allocator that ends the process when the work under way holds more than it may.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

/// What decoding an input of so many bytes may hold in all: tables of what it describes, some times its length, and the
/// buffers that every decoder has.
pub fn fair(input: usize) -> usize {
    (1 << 20) + 64 * input
}

/// Runs `work`. If it ever holds more than `bytes` of memory beyond what was held before, the process aborts, which is what
/// the fuzzer calls a crash.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    CEILING.store(HELD.load(Ordering::Relaxed) + bytes as isize, Ordering::Relaxed);
    let result = work();
    CEILING.store(isize::MAX, Ordering::Relaxed);
    result
}

/// Bytes that are allocated now.
static HELD: AtomicIsize = AtomicIsize::new(0);
/// How many there may be.
static CEILING: AtomicIsize = AtomicIsize::new(isize::MAX);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grown(by: usize) {
    let held = HELD.fetch_add(by as isize, Ordering::Relaxed) + by as isize;
    // What a panic takes to say where it was does not count; nor what is said here.
    if held > CEILING.load(Ordering::Relaxed) && !std::thread::panicking() {
        let ceiling = CEILING.swap(isize::MAX, Ordering::Relaxed);
        eprintln!("{by} bytes more, and {} more than the input justifies", held - ceiling);
        std::process::abort();
    }
}

fn shrunk(by: usize) {
    HELD.fetch_sub(by as isize, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: see above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: see above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: see above.
        unsafe { System.dealloc(at, layout) }
    }
}
