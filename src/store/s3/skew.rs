//! How far this host's clock is from the store's. A signature holds for some minutes around the store's time, so a clock that is
//! wrong has every request refused; before it comes to that, each answer says what time it is there.

use parking_lot::Mutex;

use crate::outside::Clock;

/// What the newest answer said.
#[derive(Debug)]
pub struct Skew {
    clock: Clock,
    seconds: Mutex<Option<i64>>,
}

impl Skew {
    /// Nothing was said yet.
    pub fn new(clock: Clock) -> Skew {
        Skew { clock, seconds: Mutex::default() }
    }

    /// An answer came just now with this `Date`, which may be missing or nonsense.
    pub fn heard(&self, date: Option<&str>) {
        if let Some(ahead) = date.and_then(|date| ahead(self.clock.unix_millis(), date)) {
            *self.seconds.lock() = Some(ahead);
        }
    }

    /// By how many seconds this host's clock is ahead (or, below zero, behind), if any answer said.
    pub fn seconds(&self) -> Option<i64> {
        *self.seconds.lock()
    }
}

fn ahead(unix_millis: u64, date: &str) -> Option<i64> {
    let there = httpdate::parse_http_date(date).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((unix_millis / 1000) as i64 - there.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_says_how_far_the_clock_is_and_nonsense_says_nothing() {
        let date = "Fri, 15 Jan 2027 08:00:00 GMT";
        for (millis, seconds) in [(1_800_000_000_999, 0), (1_800_003_600_000, 3600), (1_799_999_000_000, -1000)] {
            assert_eq!(ahead(millis, date), Some(seconds));
        }
        assert_eq!((ahead(1, "yesterday"), ahead(1, "")), (None, None));
    }
}
