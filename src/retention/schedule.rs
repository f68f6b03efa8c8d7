//! When automatic snapshots are taken, and what they are known by.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BadKeep, Keep, short};
use crate::human;

/// How often a volume is kept by itself, and which of these snapshots stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Schedule {
    every: Duration,
    keep: Keep,
    keep_for: Option<Duration>,
}

/// The longest time between two snapshots.
const EVERY_MAX: Duration = Duration::from_secs(366 * super::DAY);

/// A schedule as it is written in a description.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    every: String,
    keep: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_for: Option<String>,
}

impl Schedule {
    /// One each `every`, a whole number of seconds up to 366 days.
    pub fn new(every: Duration, keep: Keep) -> Result<Schedule, BadSchedule> {
        match every.is_zero() || every.subsec_nanos() > 0 || every > EVERY_MAX {
            true => Err(BadSchedule::Every(human::exact_duration(every))),
            false => Ok(Schedule { every, keep, keep_for: None }),
        }
    }

    /// The same, but nobody deletes one of these snapshots before it is so old, whatever the policy says: a whole number of seconds up to a hundred years.
    pub fn kept_for(self, keep_for: Option<Duration>) -> Result<Schedule, BadSchedule> {
        match keep_for {
            Some(bad) if bad.is_zero() || bad.subsec_nanos() > 0 || bad > super::INTERVAL_MAX => {
                Err(BadSchedule::KeepFor(human::exact_duration(bad)))
            }
            keep_for => Ok(Schedule { keep_for, ..self }),
        }
    }

    /// The time between two snapshots.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// The same as people write it.
    pub fn every_text(&self) -> String {
        short(self.every)
    }

    /// Which of them stay.
    pub fn keep(&self) -> &Keep {
        &self.keep
    }

    /// How long each of them stays at least; none if only the policy says what stays.
    pub fn keep_for(&self) -> Option<Duration> {
        self.keep_for
    }

    /// The same as people write it.
    pub fn keep_for_text(&self) -> Option<String> {
        self.keep_for.map(short)
    }

    /// As many snapshots there are at most.
    pub fn most(&self) -> u64 {
        let too_young = self.too_young();
        self.keep.most().saturating_add(too_young)
    }

    /// How many are too young to go, at most.
    fn too_young(&self) -> u64 {
        self.keep_for.map_or(0, |young| young.as_secs().div_ceil(self.every.as_secs().max(1)))
    }

    /// How long the time is from each snapshot that stays to the one before it, at most: so many times so long.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, Duration)> + '_ {
        self.keep.gaps(self.every).chain([(self.too_young(), self.every)])
    }

    /// How long a server waits for the first one after it has opened the volume, or got the schedule. `last` is when the newest was taken, by the
    /// wall clock, in milliseconds since 1970. This is the one place where that clock has a say: where it is behind the label, nobody knows how long
    /// ago that was, and a whole `every` passes, so that a server that restarts all the time does not take one each time.
    pub fn first_wait(&self, last: Option<u64>, now: u64) -> Duration {
        let Some(last) = last else { return Duration::ZERO };
        match now.checked_sub(last) {
            Some(ago) => self.every.saturating_sub(Duration::from_millis(ago)),
            None => self.every,
        }
    }

    /// How long it waits for the next one, so long after the first was due: those that were due while one took its time are left out.
    pub fn next_wait(&self, since_first: Duration) -> Duration {
        let every = self.every.as_nanos().max(1);
        // Less than `every`, which is 366 days at most.
        let over = u64::try_from(since_first.as_nanos() % every).unwrap_or_default();
        self.every.saturating_sub(Duration::from_nanos(over))
    }
}

impl TryFrom<Written> for Schedule {
    type Error = BadSchedule;

    fn try_from(written: Written) -> Result<Schedule, BadSchedule> {
        let every = human::parse_duration(&written.every).map_err(|_| BadSchedule::Every(written.every))?;
        let keep_for =
            written.keep_for.map(|text| human::parse_duration(&text).map_err(|_| BadSchedule::KeepFor(text)));
        Schedule::new(every, written.keep.parse()?)?.kept_for(keep_for.transpose()?)
    }
}

impl From<Schedule> for Written {
    fn from(schedule: Schedule) -> Written {
        let keep_for = schedule.keep_for_text();
        Written { every: schedule.every_text(), keep: schedule.keep.to_string(), keep_for }
    }
}

/// A schedule that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// The time between two snapshots.
    #[error("a snapshot each {0} cannot be: accepted is a whole number of seconds, from 1s to 366d")]
    Every(String),
    /// How long each is kept at least.
    #[error("snapshots that are kept for {0} cannot be: accepted is a whole number of seconds, from 1s to 36500d")]
    KeepFor(String),
    /// The policy.
    #[error(transparent)]
    Keep(#[from] BadKeep),
}

/// What the names of automatic snapshots begin with, and no others; the time at which they were taken follows.
pub const AUTOMATIC: &str = "auto-";

/// Whether a snapshot of that name was taken by a schedule, and goes when its policy says so. One that was given another name stays.
pub fn is_automatic(name: &str) -> bool {
    let digits = |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(time) = name.strip_prefix(AUTOMATIC) else { return false };
    let Some((date, rest)) = time.split_once('T') else { return false };
    let Some((time, number)) = rest.split_once('Z') else { return false };
    let is_number = |number: &str| number.len() >= 3 && digits(number, number.len());
    digits(date, 8) && digits(time, 6) && (number.is_empty() || number.strip_prefix('-').is_some_and(is_number))
}
