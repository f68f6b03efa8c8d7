//! The system's allocator, and how many bytes it has given out.

#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static ALONE: Mutex<()> = Mutex::new(());

fn gave(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        gave(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        gave(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are given out.
pub fn now() -> u64 {
    NOW.load(Ordering::Relaxed) as u64
}

/// Bytes beyond those of the moment at which counting began. While it lives, no other test counts.
pub struct Count {
    before: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Count {
    /// Begins to count.
    pub fn begin() -> Count {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        Count { before, _alone: alone }
    }

    /// Takes what is held now for what was held at the beginning.
    pub fn again(&mut self) {
        self.before = NOW.load(Ordering::Relaxed);
        MOST.store(self.before, Ordering::Relaxed);
    }

    /// Bytes now.
    pub fn now(&self) -> u64 {
        NOW.load(Ordering::Relaxed).saturating_sub(self.before) as u64
    }

    /// The most that there were.
    pub fn most(&self) -> u64 {
        MOST.load(Ordering::Relaxed).saturating_sub(self.before) as u64
    }
}
