//! `ashlar rollback`, with a server on this host, with one elsewhere, and with none.

use serde_json::Value;

use crate::program::{Place, Serving};

const MIB: usize = 1 << 20;

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

/// The snapshot that the command says what was newest is in.
fn before(said: &str) -> String {
    let (_, name) = said.trim_end().split_once("what it was before is snapshot disk0@").unwrap();
    name.to_owned()
}

#[test]
fn a_served_volume_goes_back_once_its_clients_are_gone() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, 2 * MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@first"]);
    disk.write(0, 2, MIB).unwrap();
    refused(&place, &["rollback", "disk0@first"], 1, "volume disk0 is attached by 1 client, whose disk would change");
    refused(&place, &["rollback", "disk0@x", "--disconnect"], 1, "no snapshot \"x\"; it has first");
    refused(&place, &["rollback", "disk0"], 2, "accepted is VOLUME@NAME");
    // Whoever has it is disconnected, and what was not flushed is kept all the same.
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 3, MIB).unwrap();
    let said = place.ok(&["rollback", "disk0@first", "--disconnect"]);
    assert!(
        said.starts_with("volume disk0 is what it was in first; what it was before is snapshot disk0@20"),
        "{said}"
    );
    assert!(disk.flush().is_err() || disk.write(0, 9, MIB).is_err() || disk.flush().is_err());
    let mut disk = serving.attach("disk0").unwrap();
    assert!(disk.holds(0, 1, 2 * MIB));
    let newest = before(&said);
    assert!(serving.attach(&format!("disk0@{newest}")).unwrap().holds(0, 3, MIB));
    disk.write(MIB as u64, 4, MIB).unwrap();
    drop(disk);
    // And forth again; nobody has it any more.
    let said = place.ok(&["rollback", &format!("disk0@{newest}"), "--disconnect"]);
    let mut disk = serving.attach("disk0").unwrap();
    assert!(disk.holds(0, 3, MIB) && disk.holds(MIB as u64, 1, MIB));
    assert!(serving.attach(&format!("disk0@{}", before(&said))).unwrap().holds(MIB as u64, 4, MIB));
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    assert_eq!(
        (&status["moved"], &status["volumes"][0]["snapshots"]),
        (&Value::Array(Vec::new()), &3.into()),
        "{status}"
    );
    serving.stop();
    assert!(place.ok(&["check", "--data"]).contains("disk0: clean"));
}

#[test]
fn a_volume_that_nobody_serves_goes_back_and_one_that_is_served_elsewhere_does_not() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = place.serve(&["disk0"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@a"]);
    disk.write(0, 2, MIB).unwrap();
    serving.kill();
    // Only the journal has what was written last: it is in the snapshot of what was newest.
    let newest = before(&place.ok(&["rollback", "disk0@a"]));
    let serving = Serving::start(place.command(&["serve", "disk0", "--listen", "none", "--state", "elsewhere"]));
    refused(&place, &["rollback", "disk0@a"], 1, "only that server can roll it back");
    serving.stop();
    let serving = place.serve(&[]);
    assert!(serving.attach("disk0").unwrap().holds(0, 1, MIB));
    assert!(serving.attach(&format!("disk0@{newest}")).unwrap().holds(0, 2, MIB));
    serving.stop();
    place.ok(&["snapshot", "delete", &format!("disk0@{newest}")]);
    assert!(place.ok(&["check", "--data"]).contains("disk0: clean; 1.0 MiB of data"));
    // Its snapshot is larger than it is now.
    place.ok(&["resize", "disk0", "512M", "--shrink"]);
    refused(&place, &["rollback", "disk0@a"], 1, "make it as large first, with ashlar resize disk0 1073741824");
}
