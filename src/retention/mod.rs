//! Which automatic snapshots stay, and when the next is due. Pure: knows no clock, no store and no volume.
//!
//! A policy is a list of rules such as `24 x 1h`: time is a grid of intervals, and of each of the newest so many intervals *that have any
//! snapshot* the newest snapshot stays. What no rule wants goes.
//!
//! * Intervals without a snapshot do not count. A volume at which nobody writes loses nothing by time passing.
//! * The newest, not the oldest: it is what the interval ended with, the newest snapshot of all always stays, and a rule's
//!   choice stays its choice when others go (below).
//! * What is newer is what came later into the log. The times are labels made by a wall clock, which may jump: they only say where an
//!   interval ends, that is where the next snapshot has another place in the grid. So a jump makes an interval end too early, and a clock
//!   that jumps all the time makes every snapshot an interval of its own: the newest so many still stay.
//!
//! Thinning may run at any times, also never for a while: what a rule wants in the end it has wanted ever since it was taken, because what comes
//! later only adds newer intervals. And thinning again takes no more: between two intervals that a rule wants each one keeps its newest
//! snapshot, so that none of them become one.

mod schedule;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;

pub use schedule::{AUTOMATIC, Schedule, is_automatic};

/// Rules that a policy may have.
const RULES_MAX: usize = 16;

/// The longest interval: a hundred years.
const INTERVAL_MAX: Duration = Duration::from_secs(36_500 * DAY);

const DAY: u64 = 24 * 60 * 60;

/// Which snapshots stay: those that any of the rules wants. Never without a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Keep {
    rules: Vec<Rule>,
}

/// The newest snapshot of each of so many intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    /// How many; at least 1.
    count: u32,
    /// How long an interval is, whole seconds; none if each snapshot is one of its own.
    interval: Option<Duration>,
}

impl Keep {
    /// As many snapshots stay at most.
    pub fn most(&self) -> u64 {
        self.rules.iter().map(|rule| u64::from(rule.count)).sum()
    }

    /// How long the time is from each snapshot that stays to the one before it, at most: so many times so long, of a schedule that takes one in each `every`.
    pub fn gaps(&self, every: Duration) -> impl Iterator<Item = (u64, Duration)> + '_ {
        self.rules.iter().map(move |rule| (rule.count.into(), rule.interval.unwrap_or(every).max(every)))
    }

    /// Which of the snapshots stay that were taken at these times (milliseconds since 1970), in the order in which they were taken.
    pub fn stays(&self, taken: &[u64]) -> Vec<bool> {
        let mut stays = vec![false; taken.len()];
        for rule in &self.rules {
            let place = |at: usize| match rule.interval {
                // An interval has a second at least.
                Some(interval) => taken[at] / 1000 / interval.as_secs().max(1),
                None => at as u64,
            };
            let (mut newer, mut left) = (None, rule.count);
            for at in (0..taken.len()).rev() {
                if newer.replace(place(at)) == Some(place(at)) {
                    continue;
                }
                if left == 0 {
                    break;
                }
                left -= 1;
                stays[at] = true;
            }
        }
        stays
    }
}

impl FromStr for Keep {
    type Err = BadKeep;

    fn from_str(text: &str) -> Result<Keep, BadKeep> {
        let rules: Vec<Rule> = text.split(',').map(rule).collect::<Result<_, _>>()?;
        match rules.len() {
            0..=RULES_MAX => Ok(Keep { rules }),
            rules => {
                Err(BadKeep { what: format!("a policy of {rules} rules"), why: format!("has more than {RULES_MAX}") })
            }
        }
    }
}

fn rule(text: &str) -> Result<Rule, BadKeep> {
    let bad = |why: String| BadKeep { what: format!("{:?}", text.trim()), why };
    let (count, interval) = match text.split_once(['x', '×']) {
        Some((count, interval)) => (count, Some(interval)),
        None => (text, None),
    };
    let count = match count.trim().parse() {
        Ok(0) => return Err(bad("keeps nothing".into())),
        Ok(count) if count <= COUNT_MAX => count,
        Ok(_) => return Err(bad(format!("keeps more than {COUNT_MAX}"))),
        Err(_) => return Err(bad("has no number that could be kept".into())),
    };
    let interval =
        interval.map(|text| human::parse_duration(text).map_err(|error| bad(format!("is no rule: {error}"))));
    let interval = interval.transpose()?;
    match interval {
        Some(interval) if interval.is_zero() || interval.subsec_nanos() > 0 || interval > INTERVAL_MAX => {
            Err(bad("has an interval that is not a whole number of seconds, up to 36500d".into()))
        }
        interval => Ok(Rule { count, interval }),
    }
}

/// More snapshots than any rule may keep; how many a volume may have in all is an option of its server.
const COUNT_MAX: u32 = 1_000_000;

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Rule { count, interval }) in self.rules.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            match interval {
                Some(interval) => write!(f, "{comma}{count} x {}", short(*interval))?,
                None => write!(f, "{comma}{count}")?,
            }
        }
        Ok(())
    }
}

/// A duration of whole seconds in the largest unit that divides it.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(DAY, "d"), (3600, "h"), (60, "m")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)).unwrap_or((1, "s"));
    format!("{}{name}", seconds / unit)
}

impl TryFrom<String> for Keep {
    type Error = BadKeep;

    fn try_from(text: String) -> Result<Keep, BadKeep> {
        text.parse()
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> String {
        keep.to_string()
    }
}

/// A text that does not say which snapshots are to be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {why}; accepted are rules such as \"60 x 1m, 24 x 1h, 30 x 1d\" (of each of the newest 60 minutes that have a snapshot, the \
     newest one, and so on), or a number: the newest so many"
)]
pub struct BadKeep {
    what: String,
    why: String,
}

#[cfg(test)]
mod tests;
