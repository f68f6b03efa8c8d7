//! `ashlar clone`, with a server on this host and with none, and with keys.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::program::{Ended, Place};

const MIB: usize = 1 << 20;

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

#[test]
fn a_clone_of_a_served_volume_is_served_beside_it_and_becomes_independent() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, 2 * MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@monday"]);
    disk.write(0, 2, MIB).unwrap();
    let said = place.ok(&["clone", "disk0@monday", "try"]);
    assert!(
        said.starts_with("created volume try in file://") && said.contains(", a clone of disk0@monday: "),
        "{said}"
    );
    let now: Value = serde_json::from_str(&place.ok(&["clone", "disk0", "now", "--json"])).unwrap();
    assert_eq!((&now["parent"], &now["parent_snapshot"]), (&"disk0".into(), &Value::Null), "{now}");
    refused(&place, &["clone", "disk0", "now"], 1, "there is a volume \"now\" in");
    refused(&place, &["clone", "disk0@tuesday", "x"], 1, "no snapshot \"tuesday\"; it has monday");
    refused(
        &place,
        &["clone", "disk0@monday", "x", "--size", "1M"],
        1,
        "clone x cannot have 1048576 bytes: what it shows has",
    );
    refused(&place, &["clone", "disk0"], 2, "<NAME>");
    refused(&place, &["clone", "--detach", "disk0"], 1, "volume disk0 is no clone, or independent already");
    refused(
        &place,
        &["clone", "--detach", "disk0@monday"],
        2,
        "--detach wants a volume, and disk0@monday is a snapshot",
    );
    let (mut tried, mut nowed) = (serving.attach("try").unwrap(), serving.attach("now").unwrap());
    assert!(tried.holds(0, 1, 2 * MIB) && nowed.holds(0, 2, MIB) && nowed.holds(MIB as u64, 1, MIB));
    tried.write(0, 3, MIB / 2).unwrap();
    assert!(disk.holds(0, 2, MIB) && tried.holds(0, 3, MIB / 2) && tried.holds((MIB / 2) as u64, 1, MIB));
    let listed = place.ok(&["snapshot", "list", "disk0"]);
    assert!(listed.lines().any(|line| line.starts_with("monday") && line.trim_end().ends_with("try")), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("(deleted)") && line.trim_end().ends_with("now")), "{listed}");
    let said = place.ok(&["snapshot", "delete", "disk0@monday"]);
    assert!(said.starts_with("deleted snapshot disk0@monday"), "{said}");
    assert!(serving.attach("disk0@monday").is_err());
    refused(
        &place,
        &["delete", "disk0", "--yes", "--takeover"],
        1,
        "which show its data: try, now; it cannot be deleted",
    );
    let info: Value = serde_json::from_str(&place.ok(&["info", "disk0", "--json"])).unwrap();
    assert_eq!((&info["snapshots"], &info["clones"]), (&0.into(), &serde_json::json!(["try", "now"])));
    assert!(place.ok(&["info", "try"]).lines().any(|line| line.starts_with("clone of") && line.ends_with(" disk0")));
    let told = place.ok(&["status", "disk0"]);
    // The first MiB is only what "try" shows.
    let line =
        |line: &str| line.starts_with("clones ") && line.ends_with(" try, now; 1.0 MiB are kept for clones alone");
    assert!(told.lines().any(line), "{told}");
    assert_eq!(place.ok(&["clone", "--detach", "try"]), "volume try is independent of disk0\n");
    assert!(tried.holds(0, 3, MIB / 2) && tried.holds((MIB / 2) as u64, 1, MIB));
    drop((disk, tried, nowed));
    serving.stop();
    // A clone goes, and what only it needed.
    place.ok(&["delete", "now", "--yes"]);
    let info: Value = serde_json::from_str(&place.ok(&["info", "disk0", "--json"])).unwrap();
    assert_eq!(info["clones"], serde_json::json!([]));
    assert_eq!(place.ok(&["snapshot", "list", "disk0", "--json"]).trim(), "[]");
    place.ok(&["delete", "disk0", "--yes"]);
    assert!(place.ok(&["check", "--data"]).contains("try: clean"));
    let serving = place.serve(&["try"]);
    assert!(serving.attach("try").unwrap().holds(0, 3, MIB / 2));
    serving.stop();
}

/// A server of this host that serves only some volumes says what to do about the others.
#[test]
fn a_clone_that_is_not_served_is_made_independent_with_a_state_of_its_own() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = place.serve(&["disk0"]);
    serving.attach("disk0").unwrap().write(0, 1, MIB).unwrap();
    place.ok(&["clone", "disk0", "try"]);
    refused(
        &place,
        &["clone", "--detach", "try"],
        1,
        "the server of this state directory serves no volume try: if there is one,",
    );
    assert_eq!(place.ok(&["clone", "--detach", "try", "--state", "elsewhere"]), "volume try is independent of disk0\n");
    serving.stop();
    assert!(place.ok(&["check", "try", "--data"]).contains("try: clean"));
}

/// A directory with a key for each volume.
fn place_with_keys() -> Place {
    let place = Place::new();
    for (name, byte) in [("parent.key", 1), ("child.key", 2), ("grandchild.key", 3)] {
        std::fs::write(place.path(name), [byte; 32]).unwrap();
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    place
}

fn locked(ended: &Ended) {
    assert_eq!(ended.code, Some(4), "{ended:?}");
}

#[test]
fn a_clone_opens_with_its_own_key_and_keeps_doing_so_when_keys_change() {
    let place = place_with_keys();
    let each = ["--key-file", "{volume}.key"];
    let with = |args: &[&'static str]| [args, &each].concat();
    place.ok(&with(&["create", "parent", "--size", "1G"]));
    let serving = place.serve(&with(&["parent"]));
    serving.attach("parent").unwrap().write(0, 1, 2 * MIB).unwrap();
    serving.stop();
    refused(&place, &["clone", "parent", "child"], 4, "volume \"parent\" stays locked");
    refused(
        &place,
        &with(&["clone", "parent", "child", "--no-encryption"]),
        2,
        "volume parent is encrypted, so its clone child must be, too",
    );
    let said = place.ok(&with(&["clone", "parent", "child"]));
    assert!(said.contains(", encrypted, ") && said.contains("recovery key: "), "{said}");
    place.ok(&with(&["clone", "child", "grandchild"]));
    // One key opens no other volume, and a clone needs no other.
    locked(&place.run(&["check", "child", "--data", "--key-file", "parent.key"]));
    locked(&place.run(&["check", "parent", "--data", "--key-file", "child.key"]));
    assert!(place.ok(&["check", "child", "--data", "--key-file", "child.key"]).contains("child: clean"));
    refused(
        &place,
        &["key", "rotate", "parent", "--drop-other-slots", "--key-file", "parent.key"],
        1,
        "volume parent has a clone child, which must be given the new data key, and child stays locked",
    );
    let said = place.ok(&with(&["key", "rotate", "parent", "--drop-other-slots"]));
    assert!(said.contains("parent seals with data key 2 from now on; its clones have it, too: child"), "{said}");
    assert!(said.contains("all of volume parent is sealed with the new data key"), "{said}");
    let holds = |volume: &'static str| {
        let serving = place.serve(&[volume, "--key-file", &format!("{volume}.key")]);
        let mut disk = serving.attach(volume).unwrap();
        assert!(disk.holds(0, 1, 2 * MIB), "{volume}");
        disk.write(8 << 20, 7, MIB).unwrap();
        drop(disk);
        serving.stop();
    };
    holds("grandchild");
    // A slot of the parent that is gone opens no child, and one that is new does not either.
    let said = place.ok(&with(&["key", "rotate", "grandchild", "--drop-other-slots"]));
    assert!(said.contains("volume grandchild seals with data key 2 from now on"), "{said}");
    for volume in ["grandchild", "child", "parent"] {
        holds(volume);
    }
    place.ok(&with(&["clone", "--detach", "grandchild"]));
    place.ok(&with(&["delete", "child", "--yes"]));
    place.ok(&with(&["key", "rotate", "parent", "--drop-other-slots"]));
    place.ok(&with(&["delete", "parent", "--yes"]));
    holds("grandchild");
    assert!(place.ok(&with(&["check", "--data"])).contains("grandchild: clean"));
}
