//! `ashlar diff` and `ashlar copy`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use ashlar::outside::Random;
use serde_json::Value;

use crate::program::{Place, Serving};

const MIB: usize = 1 << 20;

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

/// A volume of some MiB, and what it is in two snapshots; it is not served any more.
fn two_snapshots(place: &Place, args: &[&str]) {
    let serving = place.serve(args);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, 2 * MIB).unwrap();
    disk.write(64 << 20, 2, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@monday"]);
    disk.write(MIB as u64, 3, MIB / 2).unwrap();
    place.ok(&["snapshot", "create", "disk0@tuesday"]);
    drop(disk);
    serving.stop();
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn serve_copy(place: &Place, volume: &str, more: &[&str]) -> Serving {
    let store = format!("file://{}", place.path("backup").display());
    let state = place.path("restore-state").display().to_string();
    place.serve(&[&[volume, "--store", &store, "--state", &state], more].concat())
}

#[test]
fn what_differs_is_said_of_two_versions_of_a_volume() {
    let place = Place::new();
    two_snapshots(&place, &[]);
    let found = json(&place.ok(&["diff", "disk0@monday", "disk0@tuesday", "--json"]));
    let range = |offset, length: usize, holds| serde_json::json!({"offset": offset, "length": length, "holds": holds});
    assert_eq!(found, Value::Array(vec![range(MIB, MIB / 2, "data")]));
    assert_eq!(place.ok(&["diff", "disk0@tuesday", "disk0"]), "they do not differ\n");
    let serving = place.serve(&["disk0"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(9 << 20, 4, MIB).unwrap();
    disk.flush().unwrap();
    let said = place.ok(&["diff", "disk0@monday", "disk0"]);
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [vec!["OFFSET", "LENGTH", "HOLDS"], vec!["1048576", "524288", "data"], vec!["9437184", "1048576", "data"]]
    );
    drop(disk);
    serving.stop();
    refused(
        &place,
        &["diff", "disk0@monday", "disk1@monday"],
        2,
        "disk0@monday and disk1@monday are not of one volume",
    );
    refused(&place, &["diff", "disk0@monday", "disk0@x"], 1, "no snapshot \"x\"; it has monday, tuesday");
}

#[test]
fn a_snapshot_is_copied_into_another_store_and_then_what_differs() {
    let place = Place::new();
    two_snapshots(&place, &[]);
    let backup = format!("file://{}", place.path("backup").display());
    let first = json(&place.ok(&["copy", "disk0@monday", &backup, "--compression", "none", "--json"]));
    assert_eq!((&first["copied_bytes"], &first["since"]), (&(3 * MIB).into(), &Value::Null), "{first}");
    let put = |copied: &Value| copied["put_bytes"].as_u64().unwrap();
    assert!(put(&first) < 3 * MIB as u64 + (64 << 10), "{first}");
    let said = place.ok(&["copy", "disk0@monday", &backup]);
    assert_eq!(said, format!("{backup} has disk0@monday already\n"));
    let second = json(&place.ok(&["copy", "disk0@tuesday", &backup, "--json"]));
    assert_eq!((&second["copied_bytes"], &second["since"]), (&(MIB / 2).into(), &"monday".into()), "{second}");
    assert!(put(&second) < (MIB / 2) as u64 + (64 << 10), "{second}");
    refused(&place, &["copy", "disk0@monday", "file:///dev/null/x"], 2, "cannot reach /dev/null/x");
    let serving = serve_copy(&place, "disk0", &[]);
    for (snapshot, holds) in [("disk0@monday", 1), ("disk0@tuesday", 3), ("disk0", 3)] {
        let mut disk = serving.attach(snapshot).unwrap();
        assert!(disk.holds(0, 1, MIB) && disk.holds(MIB as u64, holds, MIB / 2), "{snapshot}");
        assert!(disk.holds((MIB + MIB / 2) as u64, 1, MIB / 2) && disk.holds(64 << 20, 2, MIB), "{snapshot}");
    }
    // Somebody who writes to it makes it something else.
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 9, MIB).unwrap();
    drop(disk);
    serving.stop();
    refused(
        &place,
        &["copy", "disk0", &backup],
        1,
        "was changed by somebody else since its last snapshot; give another name with --as",
    );
    place.ok(&["create", "other", "--size", "8M", "--store", &backup]);
    place.ok(&["create", "mine", "--size", "8M"]);
    place.ok(&["snapshot", "create", "mine@a"]);
    refused(&place, &["copy", "mine@a", &backup, "--as", "other"], 1, "is no copy; give another name with --as");
    place.ok(&["delete", "other", "--yes", "--store", &backup]);
    place.ok(&["copy", "mine@a", &backup, "--as", "other"]);
    refused(
        &place,
        &["copy", "disk0@tuesday", &backup, "--as", "other"],
        1,
        "is a copy of another volume; give another name with --as",
    );
    let store = format!("file://{}", place.path("ashlar-data").display());
    refused(
        &place,
        &["copy", "disk0@tuesday", &store],
        2,
        "is where volume disk0 is: a copy has another store, or another name",
    );
    place.ok(&["copy", "disk0@tuesday", &store, "--as", "second"]);
    refused(
        &place,
        &["copy", "disk0@monday", &store, "--as", "second"],
        1,
        "which is newer than monday: what is older is not copied into it",
    );
    assert!(place.ok(&["check", "second", "--data"]).contains("second: clean"));
    // Without a name a snapshot is taken, which grows with its volume.
    place.ok(&["resize", "mine", "16M"]);
    let copied = json(&place.ok(&["copy", "mine", &backup, "--as", "other", "--json"]));
    assert_eq!((&copied["since"], &copied["copied_bytes"]), (&"a".into(), &0.into()), "{copied}");
    let info = json(&place.ok(&["info", "other", "--store", &backup, "--json"]));
    assert_eq!((&info["size"], &info["snapshots"]), (&(16 << 20).into(), &2.into()));
}

/// What broke off goes on, and is not copied twice; another snapshot over it is right, too.
#[test]
fn a_copy_that_breaks_off_goes_on() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    for at in 0..96 {
        disk.write(at * MIB as u64, at as u8 + 1, MIB).unwrap();
    }
    place.ok(&["snapshot", "create", "disk0@monday"]);
    let backup = format!("file://{}", place.path("backup").display());
    let is_begun = || {
        let info = place.run(&["info", "disk0", "--store", &backup, "--json"]);
        info.code == Some(0) && json(&info.out)["stored_bytes"].as_u64().unwrap() > 4096
    };
    let mut copying = place.command(&["copy", "disk0@monday", &backup]).spawn().unwrap();
    while !is_begun() && copying.try_wait().unwrap().is_none() {}
    copying.kill().unwrap();
    copying.wait().unwrap();
    disk.write(0, 200, MIB).unwrap();
    place.ok(&["snapshot", "create", "disk0@tuesday"]);
    // What the one that broke off left is not taken for what the other one has.
    place.ok(&["copy", "disk0@tuesday", &backup]);
    let serving_copy = serve_copy(&place, "disk0", &[]);
    let mut copy = serving_copy.attach("disk0@tuesday").unwrap();
    assert!(copy.holds(0, 200, MIB));
    assert!((1..96).all(|at| copy.holds(at * MIB as u64, at as u8 + 1, MIB)));
    drop((copy, disk));
    serving_copy.stop();
    serving.stop();
}

/// Whatever happens to a volume, and wherever copying breaks off: a copy that is done is the snapshot, in all of its bytes.
#[test]
fn histories_of_copies() {
    const UNIT: usize = 256 << 10;
    let seed = std::env::var("ASHLAR_TEST_SEED").map_or(0, |seed| seed.parse().unwrap());
    let (random, place) = (Random::seeded(seed), Place::new());
    let below = |n: u64| random.below(n) as usize;
    let backup = format!("file://{}", place.path("backup").display());
    place.ok(&["create", "disk0", "--size", "4M"]);
    let serving = place.serve(&["disk0"]);
    let mut holds = vec![0_u8; 16];
    let mut kept: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in 0..20 {
        let mut disk = serving.attach("disk0").unwrap();
        for _ in 0..1 + below(4) {
            let at = below(holds.len() as u64);
            let byte = [0, step as u8 + 1][below(3).min(1)];
            disk.write((at * UNIT) as u64, byte, UNIT).unwrap();
            holds[at] = byte;
        }
        drop(disk);
        if below(4) == 0 {
            let units = 8 + 4 * below(4);
            let size = (units * UNIT).to_string();
            match units.cmp(&holds.len()) {
                std::cmp::Ordering::Less => drop(place.ok(&["resize", "disk0", &size, "--shrink", "--discard-data"])),
                std::cmp::Ordering::Greater => drop(place.ok(&["resize", "disk0", &size])),
                std::cmp::Ordering::Equal => {}
            }
            holds.resize(units, 0);
        }
        let snapshot = format!("disk0@s{step:02}");
        place.ok(&["snapshot", "create", &snapshot]);
        for _ in 0..below(3) {
            let mut copying = place
                .command(&["copy", &snapshot, &backup])
                .stderr(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(random.below(250)));
            copying.kill().unwrap();
            copying.wait().unwrap();
        }
        // Some break off for good.
        if below(3) > 0 {
            place.ok(&["copy", &snapshot, &backup]);
            kept.insert(snapshot, holds.clone());
        }
    }
    serving.stop();
    let serving_copy = serve_copy(&place, "disk0", &[]);
    for (snapshot, holds) in &kept {
        assert_eq!(serving_copy.size_of(snapshot), (holds.len() * UNIT) as u64, "seed {seed}: {snapshot}");
        let mut copy = serving_copy.attach(snapshot).unwrap();
        let wrong: Vec<usize> =
            (0..holds.len()).filter(|at| !copy.holds((at * UNIT) as u64, holds[*at], UNIT)).collect();
        assert!(wrong.is_empty(), "seed {seed}: {snapshot} is not what it was in units {wrong:?}");
    }
    serving_copy.stop();
}

/// What is not a copy, and what shows another volume, is never taken for a new one.
#[test]
fn a_volume_that_is_something_else_is_never_copied_into() {
    let place = Place::new();
    two_snapshots(&place, &[]);
    let backup = format!("file://{}", place.path("backup").display());
    place.ok(&["create", "other", "--size", "8M", "--store", &backup, "--state", "elsewhere"]);
    for name in ["clone", "small"] {
        match name {
            "clone" => drop(place.ok(&["clone", "other", name, "--store", &backup, "--state", "elsewhere"])),
            _ => drop(place.ok(&["create", name, "--size", "10G", "--block-size", "512", "--store", &backup])),
        }
        refused(&place, &["copy", "disk0@monday", &backup, "--as", name], 1, "is no copy; give another name with --as");
    }
}

/// A copy has keys of its own, or it was said that it has none.
#[test]
fn a_copy_is_encrypted_with_its_own_key() {
    let place = Place::new();
    for (name, byte) in [("here.key", 1), ("there.key", 2)] {
        std::fs::write(place.path(name), [byte; 32]).unwrap();
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::fs::write(place.path("ashlar.toml"), "[keys]\nkey_file = \"here.key\"\n").unwrap();
    std::fs::write(place.path("there.toml"), "[keys]\nkey_file = \"there.key\"\n").unwrap();
    std::fs::write(place.path("none.toml"), "").unwrap();
    two_snapshots(&place, &[]);
    let backup = format!("file://{}", place.path("backup").display());
    refused(
        &place,
        &["copy", "disk0@monday", &backup, "--to-config", "none.toml"],
        2,
        "volume disk0 is encrypted, and its copy would not be",
    );
    let said = place.ok(&["copy", "disk0@monday", &backup, "--to-config", "there.toml"]);
    assert!(said.contains("recovery key: "), "{said}");
    place.ok(&["copy", "disk0@tuesday", &backup, "--to-config", "there.toml"]);
    place.ok(&["copy", "disk0@monday", &backup, "--to-config", "none.toml", "--no-encryption", "--as", "plain"]);
    assert_eq!(place.run(&["check", "disk0", "--store", &backup]).code, Some(4));
    assert!(
        place.ok(&["check", "disk0", "--data", "--store", &backup, "--config", "there.toml"]).contains("disk0: clean")
    );
    let serving = serve_copy(&place, "disk0", &["--config", "there.toml"]);
    assert!(serving.attach("disk0@tuesday").unwrap().holds(MIB as u64, 3, MIB / 2));
    serving.stop();
    let serving = serve_copy(&place, "plain", &[]);
    assert!(serving.attach("plain").unwrap().holds(0, 1, 2 * MIB));
    serving.stop();
}
