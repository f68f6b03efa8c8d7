//! The policy against a dumb model, and the schedule by its cases.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn keep(text: &str) -> Keep {
    text.parse().unwrap()
}

const MINUTE: u64 = 60_000;

/// Times, of those that stay.
fn stay(policy: &str, taken: &[u64]) -> Vec<u64> {
    let stays = keep(policy).stays(taken);
    taken.iter().zip(stays).filter(|(_, stays)| *stays).map(|(at, _)| *at).collect()
}

#[test]
fn a_policy_is_read_and_written() {
    for (text, written) in [
        ("60 x 1m, 24 x 1h, 30 x 1d, 12 x 30d", "60 x 1m, 24 x 1h, 30 x 1d, 12 x 30d"),
        ("60x1m,24 × 60m", "60 x 1m, 24 x 1h"),
        ("7", "7"),
        (" 7 , 2 x 1h 30m ", "7, 2 x 90m"),
        ("1 x 61s", "1 x 61s"),
    ] {
        assert_eq!(keep(text).to_string(), written);
        assert_eq!(keep(written), keep(text));
    }
    assert_eq!(keep("60 x 1m, 24 x 1h, 7").most(), 91);
}

#[test]
fn what_is_no_policy_is_refused_with_a_sentence() {
    let error = |text: &str| text.parse::<Keep>().unwrap_err().to_string();
    let accepted = "; accepted are rules such as \"60 x 1m, 24 x 1h, 30 x 1d\" (of each of the newest 60 minutes that have a snapshot, \
                    the newest one, and so on), or a number: the newest so many";
    for (text, begins) in [
        ("", "\"\" has no number that could be kept"),
        ("24 x 1h,", "\"\" has no number that could be kept"),
        ("all", "\"all\" has no number that could be kept"),
        ("0 x 1h", "\"0 x 1h\" keeps nothing"),
        ("-1", "\"-1\" has no number that could be kept"),
        ("1000001", "\"1000001\" keeps more than 1000000"),
        ("5 x 0s", "\"5 x 0s\" has an interval that is not a whole number of seconds, up to 36500d"),
        ("5 x 1500ms", "\"5 x 1500ms\" has an interval that is not a whole number of seconds, up to 36500d"),
        ("5 x 40000d", "\"5 x 40000d\" has an interval that is not a whole number of seconds, up to 36500d"),
    ] {
        assert_eq!(error(text), format!("{begins}{accepted}"));
    }
    assert!(error("5 x 7").starts_with("\"5 x 7\" is no rule: \" 7\" is not a duration"), "{}", error("5 x 7"));
    assert!(error(&["1"; 17].join(",")).starts_with("a policy of 17 rules has more than 16"));
}

#[test]
fn of_each_interval_that_has_any_the_newest_stays() {
    let minutes: Vec<u64> = (0..180).map(|minute| minute * MINUTE).collect();
    assert_eq!(stay("2 x 1h", &minutes), [119 * MINUTE, 179 * MINUTE]);
    assert_eq!(stay("3, 2 x 1h", &minutes), [119, 177, 178, 179].map(|minute| minute * MINUTE));
    // A week in which nobody wrote: nothing goes for that.
    assert_eq!(stay("3 x 1h", &[0, 1, 10_000 * MINUTE, 10_001 * MINUTE]), [1, 10_001 * MINUTE]);
    assert_eq!(stay("1", &[]), [0; 0]);
}

#[test]
fn a_clock_that_jumps_deletes_nothing_that_it_should_not() {
    // A day ahead for two snapshots, and back.
    let ahead = [0, 1, 2, 1442, 1443, 3, 4].map(|minute| minute * MINUTE);
    assert_eq!(stay("7 x 1m", &ahead), ahead);
    assert_eq!(stay("3 x 1h", &ahead), [2, 1443, 4].map(|minute| minute * MINUTE));
    // For ever in 1970, or each time somewhere else.
    assert_eq!(stay("5", &[0; 9]), [0; 5]);
    assert_eq!(stay("5 x 1h", &[0; 9]), [0; 1]);
    let wild = [9, 2, 7, 0, 5].map(|day| day * 1440 * MINUTE);
    assert_eq!(stay("4 x 1d", &wild), wild[1..]);
}

#[test]
fn the_next_one_is_due_by_the_time_that_passed() {
    let schedule = Schedule::new(Duration::from_secs(60), keep("7")).unwrap();
    let wait = |last, now| schedule.first_wait(last, now).as_secs();
    assert_eq!((wait(None, 5), wait(Some(0), 20_000), wait(Some(0), 60_000), wait(Some(0), u64::MAX)), (0, 40, 0, 0));
    assert_eq!((wait(Some(1), 0), wait(Some(u64::MAX), 0)), (60, 60), "the clock went back");
    let next = |seconds| schedule.next_wait(Duration::from_secs(seconds)).as_secs();
    assert_eq!((next(0), next(59), next(60), next(3601)), (60, 1, 60, 59), "nothing is made up for");
}

#[test]
fn a_schedule_comes_back_from_json_and_is_checked() {
    let schedule = Schedule::new(Duration::from_secs(3600), keep("24 x 1h,7x1d")).unwrap();
    let json = serde_json::to_string(&schedule).unwrap();
    assert_eq!(json, r#"{"every":"1h","keep":"24 x 1h, 7 x 1d"}"#);
    assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    let kept_for = schedule.clone().kept_for(Some(Duration::from_secs(90_000))).unwrap();
    assert_eq!((schedule.most(), kept_for.most()), (31, 31 + 25));
    let json = serde_json::to_string(&kept_for).unwrap();
    assert_eq!(json, r#"{"every":"1h","keep":"24 x 1h, 7 x 1d","keep_for":"25h"}"#);
    assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), kept_for);
    let error = schedule.kept_for(Some(Duration::ZERO)).unwrap_err().to_string();
    assert_eq!(
        error,
        "snapshots that are kept for 0s cannot be: accepted is a whole number of seconds, from 1s to 36500d"
    );
    for bad in [
        r#"{"every":"1h","keep":"7","keep_for":"0s"}"#,
        r#"{"every":"1h","keep":"7","keep_for":"36501d"}"#,
        r#"{"every":"0s","keep":"7"}"#,
        r#"{"every":"500ms","keep":"7"}"#,
        r#"{"every":"367d","keep":"7"}"#,
        r#"{"every":"1h","keep":""}"#,
        r#"{"every":"1h"}"#,
        r#"{"every":"1h","keep":"7","more":1}"#,
    ] {
        assert!(serde_json::from_str::<Schedule>(bad).is_err(), "{bad}");
    }
    let error = Schedule::new(Duration::from_millis(500), keep("7")).unwrap_err().to_string();
    assert_eq!(error, "a snapshot each 500ms cannot be: accepted is a whole number of seconds, from 1s to 366d");
}

#[test]
fn automatic_snapshots_are_known_by_their_names() {
    for name in ["auto-20261128T021500Z", "auto-20261128T021500Z-002", "auto-20261128T021500Z-1000"] {
        assert!(is_automatic(name), "{name}");
    }
    for other in [
        "auto-",
        "auto-db",
        "20261128T021500Z",
        "auto-20261128T021500",
        "auto-20261128T021500Z-",
        "auto-20261128T021500Z-old",
    ] {
        assert!(!is_automatic(other), "{other}");
    }
}

/// What the documentation says, as dumb as it can be: for each rule, cut the list where the interval changes, and take the last of the last
/// so many pieces.
fn model(rules: &[(u32, Option<u64>)], taken: &[u64]) -> BTreeSet<usize> {
    let mut stay = BTreeSet::new();
    for (count, seconds) in rules {
        let mut pieces: Vec<Vec<usize>> = Vec::new();
        for (at, millis) in taken.iter().enumerate() {
            let is_same =
                |before: &usize| seconds.is_some_and(|of| taken[*before] / (1000 * of) == millis / (1000 * of));
            match pieces.last_mut().filter(|piece| piece.last().is_some_and(is_same)) {
                Some(piece) => piece.push(at),
                None => pieces.push(vec![at]),
            }
        }
        stay.extend(pieces.iter().rev().take(*count as usize).filter_map(|piece| piece.last()));
    }
    stay
}

fn policy(rules: &[(u32, Option<u64>)]) -> Keep {
    let texts = rules.iter().map(|(count, seconds)| match seconds {
        Some(seconds) => format!("{count} x {seconds}s"),
        None => count.to_string(),
    });
    keep(&texts.collect::<Vec<_>>().join(", "))
}

fn rules() -> impl Strategy<Value = Vec<(u32, Option<u64>)>> {
    let rule = (1_u32..6, proptest::option::of(prop_oneof![Just(1_u64), Just(7), Just(60), 1_u64..500]));
    proptest::collection::vec(rule, 1..4)
}

/// Takes the snapshots one after the other, and thins after those that `thins` says. The last thinning comes at the end.
fn live(policy: &Keep, taken: &[u64], thins: impl Fn(usize) -> bool) -> Vec<(usize, u64)> {
    let mut there: Vec<(usize, u64)> = Vec::new();
    for (at, millis) in taken.iter().enumerate() {
        there.push((at, *millis));
        if thins(at) || at + 1 == taken.len() {
            let times: Vec<u64> = there.iter().map(|(_, millis)| *millis).collect();
            let mut stays = policy.stays(&times).into_iter();
            there.retain(|_| stays.next().unwrap());
        }
    }
    there
}

proptest! {
    #[test]
    fn what_stays_is_what_the_model_says(rules in rules(), taken in proptest::collection::vec(0_u64..1_000_000, 0..60)) {
        let policy = policy(&rules);
        let stays = policy.stays(&taken);
        let stay: BTreeSet<usize> = (0..taken.len()).filter(|at| stays[*at]).collect();
        prop_assert_eq!(&stay, &model(&rules, &taken));
        prop_assert!(stay.len() as u64 <= policy.most());
        prop_assert!(taken.is_empty() || stay.contains(&(taken.len() - 1)), "the newest stays");
        let times: Vec<u64> = stay.iter().map(|at| taken[*at]).collect();
        prop_assert!(policy.stays(&times).into_iter().all(|stays| stays), "thinning again takes no more");
    }

    #[test]
    fn it_does_not_matter_when_it_is_thinned(
        rules in rules(), steps in proptest::collection::vec(0_u64..100_000, 1..60), pattern: u64,
    ) {
        let policy = policy(&rules);
        let taken: Vec<u64> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
        let always = live(&policy, &taken, |_| true);
        prop_assert_eq!(&live(&policy, &taken, |_| false), &always);
        prop_assert_eq!(&live(&policy, &taken, |at| pattern >> (at % 64) & 1 == 1), &always);
    }

    #[test]
    fn whatever_the_clock_says_nothing_goes_early_that_stays_at_last(
        rules in rules(), taken in proptest::collection::vec(0_u64..1_000_000, 1..60), pattern: u64,
    ) {
        let policy = policy(&rules);
        let once = live(&policy, &taken, |_| false);
        let often = live(&policy, &taken, |at| pattern >> (at % 64) & 1 == 1);
        prop_assert!(once.iter().all(|stayed| often.contains(stayed)));
    }

    #[test]
    fn policies_read_back(rules in rules()) {
        let policy = policy(&rules);
        prop_assert_eq!(policy.to_string().parse::<Keep>(), Ok(policy));
    }

    #[test]
    fn any_text_is_read_or_refused_without_panic(text in "[0-9x×, smhd.]{0,24}") {
        let _ = text.parse::<Keep>();
        let _ = is_automatic(&text);
    }
}
