//! What is wrong with the store, in one sentence.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human::date;
use crate::outside::Clock;
use crate::store::health::Trouble;
use crate::store::{ErrorKind, StoreError};

/// What is wrong with the store just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreTrouble {
    /// When it began, in milliseconds since 1970.
    pub since_unix_millis: u64,
    /// For how many seconds it has lasted.
    pub seconds: u64,
    /// What the newest failure said.
    pub what: String,
    /// FLUSHes, and changes with FUA, that wait meanwhile.
    pub flushes_waiting: u64,
    /// All of it.
    pub sentence: String,
}

impl StoreTrouble {
    /// What is wrong now, while so many flushes wait.
    pub fn new(trouble: &Trouble, flushes_waiting: u64, clock: &Clock) -> StoreTrouble {
        StoreTrouble::at(trouble.since.elapsed(), &trouble.what, flushes_waiting, clock.unix_millis())
    }

    fn at(lasts: Duration, what: &StoreError, flushes_waiting: u64, now_unix_millis: u64) -> StoreTrouble {
        let since_unix_millis = now_unix_millis.saturating_sub(lasts.as_millis() as u64);
        let seconds = lasts.as_secs();
        let (since, lasted) = (date(since_unix_millis), humantime::format_duration(Duration::from_secs(seconds)));
        let flushes = flushes_wait(flushes_waiting);
        let trouble = trouble(what.kind);
        let sentence = format!("{trouble} since {since} ({lasted}), {flushes}: {what}");
        StoreTrouble { since_unix_millis, seconds, what: what.message.clone(), flushes_waiting, sentence }
    }
}

/// How many flushes wait.
pub fn flushes_wait(number: u64) -> String {
    match number {
        0 => "no flush waits".to_owned(),
        1 => "1 flush waits".to_owned(),
        more => format!("{more} flushes wait"),
    }
}

/// What a kind of failure is called.
fn trouble(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Retryable => "store away",
        // Permissions, credentials, a quota: somebody has to do something.
        ErrorKind::Denied => "store refuses",
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::AlreadyExists => "store unusable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_one_sentence_that_says_since_when_why_and_who_waits() {
        let now = 1_800_000_000_000;
        let trouble = |kind, lasts, what: &str, flushes| {
            StoreTrouble::at(Duration::from_millis(lasts), &StoreError::new(kind, what), flushes, now)
        };
        let full = trouble(ErrorKind::Denied, 192_700, "PUT answers 403 QuotaExceeded", 2);
        assert_eq!(
            full.sentence,
            "store refuses since 2027-01-15T07:56:47Z (3m 12s), 2 flushes wait: PUT answers 403 QuotaExceeded"
        );
        assert_eq!((full.since_unix_millis, full.seconds), (now - 192_700, 192));
        let sentence = |kind, flushes| trouble(kind, 0, "x", flushes).sentence;
        let away = sentence(ErrorKind::Retryable, 0);
        assert_eq!(away, "store away since 2027-01-15T08:00:00Z (0s), no flush waits: x");
        let unusable = sentence(ErrorKind::Invalid, 1);
        assert_eq!(unusable, "store unusable since 2027-01-15T08:00:00Z (0s), 1 flush waits: x");
    }
}
