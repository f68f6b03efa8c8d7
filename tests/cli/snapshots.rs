//! `ashlar snapshot`, with a server on this host, with one elsewhere, and with none; snapshots as exports; and those of a volume that is
//! deleted.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;

fn json(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.ok(args)).unwrap()
}

fn names(place: &Place) -> Vec<String> {
    let listed = json(place, &["snapshot", "list", "disk0", "--json"]);
    listed.as_array().unwrap().iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

#[test]
fn a_served_volume_has_its_snapshots_taken_shown_renamed_and_deleted() {
    let place = Place::new();
    let serving = place.serve(&[]);
    assert_eq!(
        place.ok(&["snapshot", "list", "disk0"]),
        "volume disk0 has no snapshot; take one with: ashlar snapshot create disk0\n"
    );
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, 2 * MIB).unwrap();
    // It was not flushed: it is in it all the same.
    assert_eq!(place.ok(&["snapshot", "create", "disk0@first"]), "took snapshot disk0@first\n");
    disk.write(0, 2, MIB).unwrap();
    let taken = json(&place, &["snapshot", "create", "disk0", "--json"]);
    let by_time = taken["name"].as_str().unwrap();
    assert!(by_time.len() == 16 && by_time.starts_with("20") && by_time.ends_with('Z'), "{by_time}");
    assert_eq!((&taken["size"], &taken["only_bytes"]), (&(10_u64 << 30).into(), &0.into()));
    assert!(taken["taken_unix_millis"].as_u64() > Some(1 << 40) && taken["seq"].as_u64() > Some(0), "{taken}");

    // What is looked at is in the store, and nothing of it changes.
    disk.write(0, 3, 2 * MIB).unwrap();
    // What has died is counted by the next checkpoint: a stop makes one.
    serving.stop();
    let listed = json(&place, &["snapshot", "list", "disk0", "--json"]);
    let only: Vec<&Value> = listed.as_array().unwrap().iter().map(|snapshot| &snapshot["only_bytes"]).collect();
    // The second MiB is in both.
    assert_eq!(only, [&Value::from(MIB), &Value::from(MIB)], "{listed}");
    assert_eq!(names(&place), ["first", by_time]);
    let text = place.ok(&["snapshot", "list", "disk0"]);
    assert!(text.starts_with("NAME ") && text.contains("\nfirst ") && text.contains("  10 GiB  1.0 MiB"), "{text}");
    assert_eq!(json(&place, &["snapshot", "info", "disk0@first", "--json"]), listed[0]);
    let text = place.ok(&["snapshot", "info", "disk0@first"]);
    assert!(
        text.starts_with("snapshot       disk0@first\n") && text.contains("1.0 MiB (1048576 bytes), before"),
        "{text}"
    );
    let info = json(&place, &["info", "disk0", "--json"]);
    // Of the first MiB each has its own, and that of the second both.
    assert_eq!((&info["snapshots"], &info["snapshots_held_bytes"]), (&2.into(), &(3 * MIB).into()));
    let line = "2, which keep 3.0 MiB that the volume needs no more; see `ashlar snapshot list disk0`";
    assert!(place.ok(&["info", "disk0"]).contains(line));
    assert_eq!(json(&place, &["list", "--json"])[0]["snapshots"], 2);
    let serving = place.serve(&["disk0"]);
    let status = json(&place, &["status", "--json"])["volumes"][0].take();
    assert_eq!((&status["snapshots"], &status["snapshots_held_bytes"]), (&2.into(), &(3 * MIB).into()));
    let told = place.ok(&["status", "disk0"]);
    assert!(told.contains("that the volume needs no more; all keep 3.0 MiB"), "{told}");
    assert_eq!(names(&place), ["first", by_time]);

    refused(&place, &["snapshot", "create", "disk0@first"], 1, "volume disk0 has a snapshot \"first\" already");
    refused(&place, &["snapshot", "delete", "disk0@monday"], 1, "no snapshot \"monday\"; it has first, 20");
    refused(&place, &["snapshot", "info", "disk0@monday"], 1, "no snapshot \"monday\"; it has first, 20");
    refused(&place, &["snapshot", "rename", "disk0@first", by_time], 1, "already");
    refused(&place, &["snapshot", "rename", "disk0@first", "a/b"], 2, "a snapshot cannot be named so");
    refused(&place, &["snapshot", "create", "disk0@"], 2, "a snapshot cannot be named so");
    refused(&place, &["snapshot", "delete", "disk0"], 2, "accepted is VOLUME@NAME");
    refused(&place, &["snapshot", "create", "db"], 1, "serves no volume db: if there is one,");

    assert_eq!(
        place.ok(&["snapshot", "rename", "disk0@first", "oldest"]),
        "snapshot disk0@first is disk0@oldest now\n"
    );
    assert_eq!(
        place.ok(&["snapshot", "delete", &format!("disk0@{by_time}")]),
        format!("deleted snapshot disk0@{by_time}\n")
    );
    assert_eq!(names(&place), ["oldest"]);
    // What both needed is the first one's alone now.
    assert_eq!(json(&place, &["snapshot", "info", "disk0@oldest", "--json"])["only_bytes"], 2 * MIB);
    serving.kill();
    let serving = place.serve(&[]);
    assert_eq!(names(&place), ["oldest"]);
    serving.stop();
    assert!(place.ok(&["check", "--data"]).contains("disk0: clean"));
}

#[test]
fn a_volume_that_nobody_serves_is_opened_for_its_snapshots_and_closed() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = place.serve(&["disk0"]);
    serving.attach("disk0").unwrap().write(0, 1, MIB).unwrap();
    serving.kill();
    // Only the journal has what was written: it is in the snapshot.
    place.ok(&["snapshot", "create", "disk0@a"]);
    place.ok(&["snapshot", "create", "disk0@b"]);
    place.ok(&["snapshot", "rename", "disk0@b", "c"]);
    assert_eq!(json(&place, &["info", "disk0", "--json"])["holder"], Value::Null);
    assert_eq!(names(&place), ["a", "c"]);
    place.ok(&["snapshot", "delete", "disk0@c"]);
    assert_eq!(names(&place), ["a"]);
    refused(&place, &["snapshot", "delete", "disk0@c"], 1, "no snapshot \"c\"; it has a");
    refused(&place, &["snapshot", "list", "db"], 1, "there is no volume \"db\"");
    assert!(place.ok(&["check", "--data"]).contains("disk0: clean; 1.0 MiB of data"));
}

#[test]
fn only_the_server_that_has_a_volume_changes_its_snapshots_and_anybody_lists_them() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = Serving::start(place.command(&["serve", "disk0", "--listen", "none", "--state", "elsewhere"]));
    for args in [&["create", "disk0"][..], &["delete", "disk0@a"], &["rename", "disk0@a", "b"]] {
        refused(&place, &[&["snapshot"], args].concat(), 1, "only that server can change its snapshots");
    }
    place.ok(&["snapshot", "create", "disk0@a", "--state", "elsewhere"]);
    assert_eq!(names(&place), ["a"]);
    serving.stop();
}

#[test]
fn a_volume_goes_with_its_snapshots_only_if_that_is_said() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    place.ok(&["snapshot", "create", "disk0@a"]);
    place.ok(&["snapshot", "create", "disk0@b"]);
    refused(&place, &["delete", "disk0", "--yes"], 1, "volume disk0 has 2 snapshots, which would go with it: a, b; ");
    refused(&place, &["delete", "disk0", "--yes", "--takeover"], 1, "or give --with-snapshots");
    place.ok(&["delete", "disk0", "--yes", "--with-snapshots"]);
    refused(&place, &["snapshot", "list", "disk0"], 1, "there is no volume \"disk0\"");
}

#[test]
fn a_snapshot_that_is_kept_until_a_date_goes_by_no_command_before() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let said = place.ok(&["snapshot", "create", "disk0@a", "--keep-until", "2099-12-24"]);
    assert_eq!(said, "took snapshot disk0@a, which nobody can delete before 2099-12-24T00:00:00Z\n");
    place.ok(&["snapshot", "create", "disk0@b"]);
    let keep = |name: &str, until: &str| place.ok(&["snapshot", "keep", name, "--until", until]);
    assert_eq!(
        keep("disk0@b", "2099-12-24T18:00"),
        "snapshot disk0@b, which nobody can delete before 2099-12-24T18:00:00Z\n"
    );
    let try_all = || {
        let until = "snapshot a of volume disk0 is to be kept until 2099-12-24T00:00:00Z: ";
        refused(&place, &["snapshot", "delete", "disk0@a"], 1, &format!("{until}nobody can delete it before"));
        let earlier = ["snapshot", "keep", "disk0@a", "--until", "2099-12-23"];
        refused(&place, &earlier, 1, &format!("{until}that can be made later, not earlier"));
        let whole =
            "volume disk0 has a snapshot a that is to be kept until 2099-12-24T00:00:00Z; it cannot be deleted before";
        for flags in [&["--yes"][..], &["--yes", "--with-snapshots", "--takeover"]] {
            refused(&place, &[&["delete", "disk0"], flags].concat(), 1, whole);
        }
    };
    try_all();
    let serving = place.serve(&[]);
    try_all();
    let past = ["snapshot", "create", "disk0@c", "--keep-until", "2001-01-01T00:00:00Z"];
    refused(&place, &past, 1, "which is over: give a time to come");
    refused(&place, &["snapshot", "create", "disk0@c", "--keep-until", "soon"], 2, "\"soon\" is not a time");
    serving.stop();
    assert_eq!(names(&place), ["a", "b"]);
    assert!(place.ok(&["snapshot", "info", "disk0@a"]).contains("kept until     2099-12-24T00:00:00Z"));
}

/// Where it is read, and where it is only looked at; what changes snapshots wants a name.
#[test]
fn a_time_means_the_newest_snapshot_that_was_not_taken_later() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@a"]);
    disk.write(0, 2, MIB).unwrap();
    let then = "disk0@2099-12-24T18:00";
    let mut past = serving.attach(then).unwrap();
    assert!(past.holds(0, 1, MIB));
    assert!(past.write(0, 3, 4096).is_err());
    assert_eq!(json(&place, &["snapshot", "info", then, "--json"])["name"], "a");
    let none = "volume disk0 has no snapshot that was taken until 2001-01-01T00:00:00Z; its oldest is a, of 20";
    refused(&place, &["snapshot", "info", "disk0@2001-01-01"], 1, none);
    assert!(serving.attach("disk0@2001-01-01").is_err());
    // A name that is a time as well is that name.
    place.ok(&["snapshot", "create", "disk0@2001-01-01"]);
    assert!(serving.attach("disk0@2001-01-01").unwrap().holds(0, 2, MIB));
    refused(&place, &["snapshot", "create", then], 2, "a snapshot cannot be named so: ");
    refused(&place, &["snapshot", "delete", then], 2, "a snapshot cannot be named so: ");
    refused(&place, &["snapshot", "info", "disk0@18:00"], 2, "\"18:00\" is not a time; accepted is one in UTC");
    serving.stop();
    let serving = Serving::start(place.command(&["serve", then, "--listen", "none", "--state", "elsewhere"]));
    assert!(serving.attach(then).unwrap().holds(0, 2, MIB));
    serving.stop();
}

#[test]
fn a_snapshot_is_read_beside_its_volume_while_that_is_written() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@a"]);
    let mut past = serving.attach("disk0@a").unwrap();
    disk.write(0, 2, MIB).unwrap();
    place.ok(&["resize", "disk0", "20G"]);
    assert!(past.holds(0, 1, MIB) && past.holds(MIB as u64, 0, MIB) && disk.holds(0, 2, MIB));
    assert_eq!((serving.size_of("disk0@a"), serving.size_of("disk0")), (10 << 30, 20 << 30));
    assert!(past.write(0, 3, MIB).is_err() || past.flush().is_err());
    let mut past = serving.attach("disk0@a").unwrap();
    assert!(past.holds(0, 1, MIB));
    // There is still one volume, and its snapshot is an export of its own: with its clients, and to be evicted from.
    assert!(serving.attach("").unwrap().holds(0, 2, MIB));
    let status = json(&place, &["status", "--json"]);
    assert_eq!(status["volumes"].as_array().unwrap().len(), 1);
    let clients = status["clients"].as_array().unwrap().iter().filter(|client| client["export"] == "disk0@a");
    assert!(clients.count() >= 1, "{status}");
    assert!(place.ok(&["warm", "disk0@a", "0..1M"]).ends_with("are warm, after 0.0 s\n"));
    assert!(place.ok(&["evict", "disk0@a"]).starts_with("evicted "));
    // What is renamed is found under its new name, what is gone nowhere, and what has its name is that.
    place.ok(&["snapshot", "rename", "disk0@a", "b"]);
    place.ok(&["snapshot", "create", "disk0@a"]);
    assert!(serving.attach("disk0@b").unwrap().holds(0, 1, MIB) && serving.attach("disk0@a").unwrap().holds(0, 2, MIB));
    place.ok(&["snapshot", "delete", "disk0@b"]);
    assert!(serving.attach("disk0@b").is_err());
    serving.stop();
}

/// All that is below a directory, and when it was changed; but for the place of temporary files, which whoever opens the directory looks through.
fn below(directory: &Path, found: &mut Vec<(String, SystemTime)>) {
    if directory.ends_with(".ashlar-tmp") {
        return;
    }
    found.push((directory.display().to_string(), directory.metadata().unwrap().modified().unwrap()));
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => below(&entry, found),
            false => found.push((entry.display().to_string(), entry.metadata().unwrap().modified().unwrap())),
        }
    }
}

/// No fence, no PUT, no probe: any number of servers, beside the one that has the volume, with credentials that can only read.
#[test]
fn servers_of_snapshots_change_nothing_in_the_store_and_disturb_nobody() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@a"]);
    // What it deletes meanwhile would be taken for what the others do.
    serving.stop();
    let store = || {
        let mut found = Vec::new();
        below(&place.path("ashlar-data"), &mut found);
        found.sort();
        found
    };
    let before = store();
    let start = |state: &str| {
        let read_only = ["serve", "disk0@a", "--read-only=disk0@a", "--listen", "none", "--state", state];
        Serving::start(place.command(&read_only))
    };
    let others = ["one", "two"].map(start);
    for other in &others {
        assert!(other.welcome.contains("\nsnapshot disk0@a, 10 GiB, read-only\n"), "{}", other.welcome);
        assert!(other.attach("disk0@a").unwrap().holds(0, 1, MIB));
        assert!(other.attach("").unwrap().holds(0, 1, MIB));
        assert!(other.attach("disk0").is_err());
    }
    assert_eq!(store(), before);
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 2, MIB).unwrap();
    disk.flush().unwrap();
    let [one, two] = others;
    assert!(two.attach("disk0@a").unwrap().holds(0, 1, MIB));
    two.stop();
    place.ok(&["snapshot", "delete", "disk0@a"]);
    assert!(one.attach("disk0@a").is_err());
    one.stop();
    assert!(disk.holds(0, 2, MIB));
    serving.stop();
}

/// Says so when it is dropped, also if something fails meanwhile.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Three servers show the same, each read from front to back over and over, while a fourth one overwrites all of the volume, and takes and deletes
/// other snapshots.
#[test]
fn one_snapshot_is_served_by_three_servers_at_once_while_a_fourth_writes() {
    const PIECES: u64 = 8;
    let offset = |piece: u64| piece * MIB as u64;
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G", "--compression", "none"]);
    let mut command = place.command(&["serve", "disk0", "--listen", "none"]);
    command.env("ASHLAR_VOLUME__SEGMENT_SIZE", "1MiB");
    let writer = Serving::start(command);
    let mut disk = writer.attach("disk0").unwrap();
    for piece in 0..PIECES {
        disk.write(offset(piece), piece as u8, MIB).unwrap();
    }
    place.ok(&["snapshot", "create", "disk0@a"]);
    let readers = ["one", "two", "three"].map(|state| {
        let mut command =
            place.command(&["serve", "disk0@a", "--read-only=disk0@a", "--listen", "none", "--state", state]);
        // So little that what is read again comes from the store again.
        command.env("ASHLAR_CACHE__MEMORY", "1MiB");
        Serving::start(command)
    });
    let (over, passes) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for (reader, passes) in readers.iter().zip(&passes) {
            let (mut past, over) = (reader.attach("disk0@a").unwrap(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert!((0..PIECES).all(|piece| past.holds(offset(piece), piece as u8, MIB)));
                    assert!(past.holds(offset(PIECES), 0, MIB));
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Until each has read all of it twice beside all that.
        for round in 0.. {
            for piece in 0..=PIECES {
                disk.write(offset(piece), 100 + (round % 100) as u8, MIB).unwrap();
            }
            disk.flush().unwrap();
            place.ok(&["snapshot", "create", "disk0@b"]);
            place.ok(&["snapshot", "delete", "disk0@b"]);
            if round >= 2 && passes.iter().all(|passes| passes.load(Ordering::Relaxed) >= 2) {
                break;
            }
            assert!(round < 500, "a reader stands still: {passes:?}");
        }
    });
    // One that goes is no loss to the others, and none of them was in the way of who writes.
    let [one, two, three] = readers;
    one.kill();
    assert!(two.attach("disk0@a").unwrap().holds(0, 0, MIB) && three.attach("").unwrap().holds(offset(1), 1, MIB));
    disk.flush().unwrap();
    two.stop();
    three.stop();
    drop(disk);
    writer.stop();
    assert!(place.ok(&["check", "disk0", "--data"]).starts_with("disk0: clean; "));
}

/// Another server writes it: what its newest checkpoint has is served, nothing is taken, and nothing is written.
#[test]
fn a_volume_that_another_server_writes_is_followed() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    // A checkpoint.
    place.ok(&["snapshot", "create", "disk0@a"]);
    let follow = |name: &str, flags: &[&str]| {
        let args = [&["serve", name, "--read-only", "--listen", "none", "--state", "elsewhere"], flags].concat();
        place.command(&args)
    };
    let follower = Serving::start(follow("disk0", &[]));
    assert!(follower.welcome.contains("\nvolume disk0, 10 GiB, read-only\n"), "{}", follower.welcome);
    let mut followed = follower.attach("disk0").unwrap();
    assert!(followed.holds(0, 1, MIB));
    assert!(followed.write(0, 9, 4096).is_err());
    disk.write(0, 2, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@b"]);
    // Within a second it is looked for.
    while !followed.holds(0, 2, MIB) {}
    assert!(follower.attach("disk0@a").unwrap().holds(0, 1, MIB), "its snapshots are there, too");
    let refused_there = |args: &[&str]| {
        let elsewhere = [args, &["--state", "elsewhere"]].concat();
        refused(&place, &elsewhere, 1, "volume disk0 is only read by this server (serve.read_only)");
    };
    refused_there(&["snapshot", "create", "disk0@c"]);
    refused_there(&["snapshot", "delete", "disk0@a"]);
    refused_there(&["resize", "disk0", "1G", "--shrink"]);
    assert_eq!(names(&place), ["a", "b"]);
    // The writer goes, and the other one changes nothing.
    serving.stop();
    let store = || {
        let mut found = Vec::new();
        below(&place.path("ashlar-data"), &mut found);
        found.sort();
        found
    };
    let before = store();
    assert!(followed.holds(0, 2, MIB));
    follower.stop();
    Serving::start(follow("disk0", &[])).stop();
    assert_eq!(store(), before);
    for flag in ["--takeover", "--wait", "--accept-loss"] {
        let ended = Ended::of(&mut follow("disk0", &[flag]));
        assert!(ended.code == Some(2) && ended.err.contains("what is only read is taken from nobody"), "{ended:?}");
    }
    let ended = Ended::of(&mut follow("db", &[]));
    assert!(ended.code == Some(1) && ended.err.contains("there is no volume \"db\""), "{ended:?}");
}

/// A server that only reads makes no first volume.
#[test]
fn a_server_that_only_reads_makes_no_volume() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "1G"]);
    place.ok(&["delete", "a", "--yes"]);
    // It prints no volume, which would say that it is ready.
    let serving = Serving::unread(
        &place,
        place.command(&["serve", "--read-only", "--listen", "none"]),
        Stdio::null(),
        Stdio::null(),
    );
    assert!(serving.attach("disk0").is_err());
    assert_eq!(place.ok(&["list", "--json"]).trim(), "[]");
}

#[test]
fn a_server_of_snapshots_needs_them_and_no_flags_for_volumes() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    place.ok(&["snapshot", "create", "disk0@a"]);
    let refused =
        |args: &[&str], code, words| refused(&place, &[&["serve", "--listen", "none"], args].concat(), code, words);
    refused(&["disk0@b"], 1, "\"disk0@b\"");
    refused(&["disk0@a", "--takeover"], 2, "what is only read is taken from nobody");
    refused(&["disk0@a", "--read-only=disk0"], 2, "disk0 is none of the volumes that are served");
    refused(&["disk0@"], 2, "a snapshot cannot be named so");
    let serving = place.serve(&["disk0", "disk0@a"]);
    assert!(serving.attach("disk0@a").is_ok() && serving.attach("disk0").is_ok());
    serving.stop();
}
