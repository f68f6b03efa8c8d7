//! Lines that would be said again and again, such as whenever somebody knocks: of one kind (one place in the code) only so many are
//! written within some seconds; the next one that is written says how many were not.
//!
//! What is said once for each volume is of no such kind (see [`LIFE`]), and neither is what somebody asked for with `debug`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// The target of lines that are said once in the life of a volume.
pub const LIFE: &str = "ashlar::life";

/// In so much time a kind may say so much.
const WINDOW: Duration = Duration::from_secs(10);

/// What each kind has said.
#[derive(Debug)]
pub struct Floods {
    /// Lines of one kind within a window.
    burst: u32,
    kinds: Mutex<HashMap<Identifier, Kind>>,
    held_back: AtomicU64,
}

/// What one kind has said.
#[derive(Clone, Copy, Debug)]
struct Kind {
    begun: Instant,
    said: u32,
    /// Lines that were held back and that no line has told of yet.
    held_back: u64,
}

impl Floods {
    /// With so many lines of a kind in a window; 0 is any number.
    pub fn new(burst: u32) -> Floods {
        Floods { burst, kinds: Mutex::default(), held_back: AtomicU64::new(0) }
    }

    /// Whether a line of that kind may be written now, and then how many were not since the last one that was.
    pub fn admit(&self, meta: &Metadata<'_>) -> Option<u64> {
        if self.burst == 0 || meta.target() == LIFE || *meta.level() > Level::INFO {
            return Some(0);
        }
        let now = Instant::now();
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(meta.callsite()).or_insert(Kind { begun: now, said: 0, held_back: 0 });
        let admitted = kind.admit(now, self.burst);
        if admitted.is_none() {
            self.held_back.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Lines that were held back since the start.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }
}

impl Kind {
    fn admit(&mut self, now: Instant, burst: u32) -> Option<u64> {
        if now.duration_since(self.begun) >= WINDOW {
            (self.begun, self.said) = (now, 0);
        }
        if self.said < burst {
            self.said += 1;
            return Some(std::mem::take(&mut self.held_back));
        }
        self.held_back += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_says_so_much_in_a_window_and_then_how_much_it_did_not() {
        let begun = Instant::now();
        let mut kind = Kind { begun, said: 0, held_back: 0 };
        let mut at = |seconds| kind.admit(begun + Duration::from_secs(seconds), 2);
        assert_eq!([at(0), at(1), at(2), at(9)], [Some(0), Some(0), None, None]);
        assert_eq!([at(10), at(11), at(12)], [Some(2), Some(0), None]);
        assert_eq!([at(100), at(101)], [Some(1), Some(0)]);
    }
}
