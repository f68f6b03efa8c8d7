//! What a schedule of snapshots costs, and how it is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::format::account::Account;
use crate::human::{about_bytes, counted};
use crate::retention::Schedule;
use crate::store::prices::Prices;
use crate::volume::Scheduled;

/// The schedule of a volume, and at most what it costs a month.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// The time between two snapshots.
    pub every: String,
    /// Which of them stay.
    pub keep: String,
    /// How long each of them stays at least, if that is said.
    #[serde(default)]
    pub keep_for: Option<String>,
    /// Automatic snapshots that are kept.
    pub automatic: u64,
    /// Why the last one that was due was not taken, if it is so.
    pub trouble: Option<String>,
    /// What it costs.
    #[serde(flatten)]
    pub cost: MonthOfSchedule,
}

/// What a schedule costs a month if somebody writes all the time, in US dollars. Nothing is taken, and no request
/// made, while nobody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MonthOfSchedule {
    /// Snapshots that are taken.
    pub snapshots_month: u64,
    /// Their requests.
    pub requests_month_dollars: f64,
    /// Bytes that those hold that are kept, beside what the volume has itself.
    pub held_bytes: u64,
    /// A month of these.
    pub storage_month_dollars: f64,
}

/// What the volume has done so far, from which it is guessed what it will do.
#[derive(Clone, Copy, Debug)]
pub struct SoFar {
    /// For how long it has been there.
    pub age: Duration,
    /// What was put meanwhile.
    pub account: Account,
    /// Bytes of what is live in it.
    pub live_bytes: u64,
}

const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// PUTs of one snapshot: the checkpoint, and the segment that a FLUSH ends before it is full.
const PUTS: u64 = 2;

/// GETs of one: that nobody else has taken the volume, and what one that goes has held. Deleting is free.
const GETS: u64 = 2;

impl MonthOfSchedule {
    /// Of a volume that goes on as so far. Between two snapshots that stay at most what was put meanwhile is held, and at most as much as the volume has.
    pub fn new(schedule: &Schedule, so_far: &SoFar, prices: &Prices) -> MonthOfSchedule {
        let SoFar { age, account, live_bytes } = so_far;
        let snapshots_month = MONTH.as_secs() / schedule.every().as_secs().max(1);
        // A volume that was just made has put little.
        let rate = account.bytes_put as f64 / age.as_secs_f64().max(1.0);
        let held = |(count, gap): (u64, Duration)| count as f64 * (rate * gap.as_secs_f64()).min(*live_bytes as f64);
        let held_bytes = schedule.gaps().map(held).sum::<f64>() as u64;
        MonthOfSchedule {
            snapshots_month,
            requests_month_dollars: Account {
                puts: snapshots_month * PUTS,
                gets: snapshots_month * GETS,
                ..Account::default()
            }
            .request_cost(prices),
            held_bytes,
            storage_month_dollars: prices.of_month(held_bytes),
        }
    }

    /// In one sentence.
    pub fn told(&self) -> String {
        format!(
            "a month of it is at most {} with {} and {}, about ${:.2}, and nothing while nobody writes; if it is written to as so far, they hold about \
             {}, ${:.2} a month, and what garbage collection leaves alone for them",
            counted(self.snapshots_month, "snapshot"),
            counted(self.snapshots_month * PUTS, "PUT"),
            counted(self.snapshots_month * GETS, "GET"),
            self.requests_month_dollars,
            about_bytes(self.held_bytes),
            self.storage_month_dollars,
        )
    }
}

/// When and what, in a few words.
pub fn terms(schedule: &Schedule) -> String {
    let most = counted(schedule.most(), "snapshot");
    let at_least = at_least(schedule.keep_for_text().as_deref());
    format!("one each {}, of which {} are kept{at_least} ({most} at most)", schedule.every_text(), schedule.keep())
}

fn at_least(keep_for: Option<&str>) -> String {
    keep_for.map_or_else(String::new, |keep_for| format!(", and each for {keep_for} whatever anybody says"))
}

impl ScheduleStatus {
    /// As it is.
    pub fn new(scheduled: Scheduled, so_far: &SoFar, prices: &Prices) -> ScheduleStatus {
        let Scheduled { schedule, automatic, trouble } = scheduled;
        ScheduleStatus {
            every: schedule.every_text(),
            keep: schedule.keep().to_string(),
            keep_for: schedule.keep_for_text(),
            automatic,
            trouble,
            cost: MonthOfSchedule::new(&schedule, so_far, prices),
        }
    }

    /// For people.
    pub fn told(&self) -> String {
        let ScheduleStatus { every, keep, keep_for, automatic, trouble, cost } = self;
        let trouble = trouble.as_ref().map_or_else(String::new, |why| format!("; the last one was not taken: {why}"));
        let at_least = at_least(keep_for.as_deref());
        format!("one each {every}, of which {keep} are kept{at_least}: there are {automatic}{trouble}; {}", cost.told())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn month(every: u64, keep: &str, bytes_put: u64, live_bytes: u64) -> MonthOfSchedule {
        let schedule = Schedule::new(Duration::from_secs(every), keep.parse().unwrap()).unwrap();
        let account = Account { bytes_put, ..Account::default() };
        MonthOfSchedule::new(
            &schedule,
            &SoFar { age: Duration::from_secs(3600), account, live_bytes },
            &Prices::default(),
        )
    }

    #[test]
    fn a_minute_costs_half_a_dollar_a_month_in_requests() {
        let month = month(60, "60 x 1m", 0, GIB);
        assert_eq!(month.snapshots_month, 43_200);
        assert!((month.requests_month_dollars - 0.46656).abs() < 1e-9, "{month:?}");
        assert_eq!((month.held_bytes, month.storage_month_dollars), (0, 0.0));
    }

    #[test]
    fn what_is_held_is_what_was_put_meanwhile_and_no_more_than_the_volume_has() {
        // A GiB an hour: 60 minutes hold one, and each hour another.
        assert_eq!(month(60, "60 x 1m, 24 x 1h", GIB, 100 * GIB).held_bytes, 25 * GIB);
        assert_eq!(month(60, "60 x 1m, 24 x 1h", GIB, GIB / 2).held_bytes, 13 * GIB);
        // Of those that are taken each hour, 5 of a minute are 5 of an hour.
        assert_eq!(month(3600, "5 x 1m", GIB, 100 * GIB).held_bytes, 5 * GIB);
        assert_eq!(month(3600, "5", GIB, 100 * GIB).held_bytes, 5 * GIB);
    }

    #[test]
    fn what_may_not_go_is_held_as_well() {
        let schedule = Schedule::new(Duration::from_secs(3600), "5".parse().unwrap()).unwrap();
        let schedule = schedule.kept_for(Some(Duration::from_secs(25 * 3600))).unwrap();
        let account = Account { bytes_put: GIB, ..Account::default() };
        let so_far = SoFar { age: Duration::from_secs(3600), account, live_bytes: 100 * GIB };
        assert_eq!(MonthOfSchedule::new(&schedule, &so_far, &Prices::default()).held_bytes, 30 * GIB);
        assert_eq!(
            terms(&schedule),
            "one each 1h, of which 5 are kept, and each for 25h whatever anybody says (30 snapshots at most)"
        );
    }

    #[test]
    fn it_is_told_in_a_sentence() {
        let said = month(3600, "24 x 1h", GIB, 100 * GIB).told();
        assert_eq!(
            said,
            "a month of it is at most 720 snapshots with 1440 PUTs and 1440 GETs, about $0.01, and nothing while nobody writes; if it is written to as so \
             far, they hold about 24.0 GiB, $0.59 a month, and what garbage collection leaves alone for them"
        );
    }
}
