//! `ashlar set --snapshots-every`: a schedule is set, told with what it costs, followed, and ended.

use serde_json::Value;

use crate::program::Place;

const EVERY: &str = "--snapshots-every";
const KEEP: &str = "--snapshots-keep";
const KEEP_FOR: &str = "--snapshots-keep-for";

fn volume(place: &Place) -> Value {
    let status: Value = serde_json::from_str(&place.ok(&["status", "disk0", "--json"])).unwrap();
    status["volumes"][0].clone()
}

#[test]
fn a_schedule_is_followed_while_the_volume_is_served() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let said = place.ok(&["set", "disk0", EVERY, "1s", KEEP, "3, 2x60m"]);
    let first = "snapshots of volume disk0 are taken, from the next time it is opened on: one each 1s, of which 3, 2 x 1h are kept (5 snapshots at most)\n\
                 a month of it is at most 2592000 snapshots with 5184000 PUTs and 5184000 GETs, about $27.99, and nothing while nobody writes; if it is \
                 written to as so far, they hold about 0 B, $0.00 a month, and what garbage collection leaves alone for them\n";
    assert_eq!(said, first);
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, 4096).unwrap();
    disk.flush().unwrap();
    while volume(&place)["schedule"]["automatic"] != 1 {}
    let schedule = volume(&place)["schedule"].take();
    assert_eq!(
        (&schedule["every"], &schedule["keep"], &schedule["trouble"]),
        (&"1s".into(), &"3, 2 x 1h".into(), &Value::Null)
    );
    assert_eq!(schedule["snapshots_month"], 2_592_000);
    let told = place.ok(&["status", "disk0"]);
    assert!(told.contains("one each 1s, of which 3, 2 x 1h are kept: there are 1; a month of it is at most"), "{told}");

    // One of the two, and the other stays; what else is set stays as well.
    let said = place.ok(&["set", "disk0", KEEP, "7", "--compression", "none"]);
    let begins = "volume disk0 compresses with none, from now on\n\
                  snapshots of volume disk0 are taken, from now on: one each 1s, of which 7 are kept (7 snapshots at most)\n";
    assert!(said.starts_with(begins), "{said}");
    assert!(place.ok(&["set", "disk0", EVERY, "1h"]).contains("one each 1h, of which 7 are kept"));
    assert_eq!(place.ok(&["set", "disk0", "--compression", "lz4"]), "volume disk0 compresses with lz4, from now on\n");
    assert_eq!(volume(&place)["schedule"]["every"], "1h");

    let said = place.ok(&["set", "disk0", KEEP_FOR, "7d"]);
    let words = "one each 1h, of which 7 are kept, and each for 7d whatever anybody says (175 snapshots at most)";
    assert!(said.contains(words), "{said}");
    assert_eq!(volume(&place)["schedule"]["keep_for"], "7d");
    assert!(place.ok(&["status", "disk0"]).contains("and each for 7d whatever anybody says: there"));
    assert!(!place.ok(&["set", "disk0", KEEP_FOR, "off"]).contains("whatever"));

    let said = place.ok(&["set", "disk0", EVERY, "off"]);
    assert_eq!(said, "no more snapshots of volume disk0 are taken, from now on; those that are there stay\n");
    assert_eq!(volume(&place)["schedule"], Value::Null);
    assert!(!place.ok(&["status", "disk0"]).contains("one each"));
    serving.stop();
}

#[test]
fn what_is_no_schedule_is_refused() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let refused = |args: &[&str], words: &str| {
        let ended = place.run(&[&["set", "disk0"], args].concat());
        assert!(ended.code == Some(2) && ended.err.contains(words), "{args:?}: {ended:?}");
    };
    refused(&[], "--snapshots-every");
    refused(
        &[EVERY, "1h"],
        "has no schedule yet: give both, this one too, such as --snapshots-keep \"24 x 1h, 7 x 1d\"",
    );
    refused(&[KEEP, "7"], "has no schedule yet: give both, this one too, such as --snapshots-every 1h");
    refused(&[EVERY, "off", KEEP, "7"], "--snapshots-every off keeps all that are there: leave --snapshots-keep out");
    refused(
        &[EVERY, "10ms", KEEP, "7"],
        "a snapshot each 10ms cannot be: accepted is a whole number of seconds, from 1s to 366d",
    );
    refused(&[EVERY, "hourly", KEEP, "7"], "\"hourly\" is not a duration");
    refused(&[EVERY, "1h", KEEP, "0 x 1h"], "\"0 x 1h\" keeps nothing; accepted are rules such as");
    refused(
        &[EVERY, "1h", KEEP, "1000, 25 x 1d"],
        "1000, 25 x 1d keeps up to 1025 snapshots, and a volume may have 1024 (volume.max_snapshots)",
    );
    refused(&[KEEP_FOR, "7d"], "has no schedule yet: give both");
    refused(&[EVERY, "off", KEEP_FOR, "7d"], "leave --snapshots-keep-for out");
    refused(&[EVERY, "1h", KEEP, "7", KEEP_FOR, "1ms"], "snapshots that are kept for 1ms cannot be");
    refused(
        &[EVERY, "1m", KEEP, "7", KEEP_FOR, "1d"],
        "7, and each for 1d, keeps up to 1447 snapshots, and a volume may have 1024 (volume.max_snapshots)",
    );
    // Nothing was set.
    assert_eq!(place.ok(&["set", "disk0", EVERY, "off"]).lines().count(), 1);
}
