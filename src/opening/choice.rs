//! Which of the snapshots of a volume is meant: by its name, or by a time. Pure.

use crate::error::{Result, VolumeError};
use crate::format::meta::VolumeName;
use crate::human::{date, parse_date};
use crate::opening::past::no_snapshot;
use crate::space::KeptVersion;

/// A snapshot that can be meant.
pub trait Choice {
    /// Its name.
    fn name(&self) -> &str;

    /// When it was taken, in milliseconds since 1970.
    fn taken_unix_millis(&self) -> u64;

    /// Somebody deleted it, and clones need it.
    fn is_hidden(&self) -> bool {
        false
    }
}

impl Choice for KeptVersion {
    fn name(&self) -> &str {
        &self.label.name
    }

    fn taken_unix_millis(&self) -> u64 {
        self.label.taken_unix_millis
    }

    fn is_hidden(&self) -> bool {
        self.label.is_hidden()
    }
}

/// The one of that name; else, if that is a time, the newest that was not taken later, to the second. `kept` is the oldest first: what came
/// later into the log is newer, whatever the clock said.
pub fn choose<'a, T: Choice>(kept: &'a [T], volume: &VolumeName, wanted: &str) -> Result<&'a T> {
    let kept = || kept.iter().filter(|snapshot| !snapshot.is_hidden());
    if let Some(named) = kept().find(|snapshot| snapshot.name() == wanted) {
        return Ok(named);
    }
    let Ok(time) = parse_date(wanted) else {
        return Err(no_snapshot(volume, wanted, kept().map(T::name)));
    };
    let is_there = |snapshot: &&T| snapshot.taken_unix_millis() / 1000 <= time / 1000;
    kept().rfind(is_there).ok_or_else(|| {
        let oldest = kept().min_by_key(|snapshot| snapshot.taken_unix_millis());
        let has = match oldest {
            Some(oldest) => format!("its oldest is {}, of {}", oldest.name(), date(oldest.taken_unix_millis())),
            None => "it has none".to_owned(),
        };
        VolumeError::Invalid(format!("volume {volume} has no snapshot that was taken until {}; {has}", date(time)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Taken(&'static str, &'static str, u64);

    impl Choice for Taken {
        fn name(&self) -> &str {
            self.0
        }

        fn taken_unix_millis(&self) -> u64 {
            parse_date(self.1).unwrap() + self.2
        }
    }

    fn chosen(kept: &[Taken], wanted: &str) -> std::result::Result<&'static str, String> {
        let volume = VolumeName::new("db").unwrap();
        choose(kept, &volume, wanted).map(|chosen| chosen.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_time_means_the_newest_that_was_not_taken_later() {
        let kept = [
            Taken("first", "2026-11-26T04:00", 0),
            Taken("2026-11-28", "2026-11-27T03:59:59", 999),
            Taken("third", "2026-11-27T04:00", 1),
            Taken("last", "2026-11-27T05:00:30", 0),
        ];
        for (wanted, found) in [
            ("2026-11-26T04:00", "first"),
            ("2026-11-27", "first"),
            ("2026-11-27T03:59", "first"),
            ("2026-11-27T03:59:59Z", "2026-11-28"),
            ("2026-11-27T04:00", "third"),
            ("2026-11-27T05:00", "third"),
            ("2026-11-27T05:00:30", "last"),
            ("2030-01-01", "last"),
            // What is named so is meant.
            ("2026-11-28", "2026-11-28"),
            ("2026-11-28T00:00", "last"),
        ] {
            assert_eq!(chosen(&kept, wanted), Ok(found), "{wanted}");
        }
        assert_eq!(
            chosen(&kept, "2026-11-26T03:59:59"),
            Err("volume db has no snapshot that was taken until 2026-11-26T03:59:59Z; its oldest is first, of 2026-11-26T04:00:00Z".into())
        );
        assert_eq!(
            chosen(&[], "2026-11-26"),
            Err("volume db has no snapshot that was taken until 2026-11-26T00:00:00Z; it has none".into())
        );
        let none = chosen(&kept, "monday").unwrap_err();
        assert!(none.starts_with("volume db has no snapshot \"monday\"; it has first, "), "{none}");
    }

    #[test]
    fn newer_is_what_came_later_into_the_log() {
        let kept = [Taken("a", "2026-11-27T04:00", 0), Taken("b", "2026-11-27T01:00", 0)];
        assert_eq!(chosen(&kept, "2026-11-27T05:00"), Ok("b"), "the clock went back between them");
        assert_eq!(
            chosen(&kept, "2026-11-27T00:00").unwrap_err().split_once("oldest is ").unwrap().1,
            "b, of 2026-11-27T01:00:00Z"
        );
    }
}
