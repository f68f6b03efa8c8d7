//! `ashlar resize`, with a server on this host, with one elsewhere, and with none.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Place, Serving};

const GIB: u64 = 1 << 30;
const MIB: usize = 1 << 20;

fn json(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.ok(args)).unwrap()
}

fn size(place: &Place) -> Value {
    json(place, &["info", "disk0", "--json"])["size"].take()
}

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

#[test]
fn a_volume_that_is_served_becomes_larger_and_smaller_under_its_clients() {
    let place = Place::new();
    let serving = place.serve(&[]);
    // A client that knew the size before, and asks for more; the second never asks for anything that is not there.
    let mut early = serving.attach_as_if("disk0", 30 * GIB);
    early.write(0, 1, MIB).unwrap();
    assert!(early.write(15 * GIB, 2, MIB).is_err() || early.flush().is_err());
    let mut early = serving.attach_as_if("disk0", 30 * GIB);
    early.write(0, 1, MIB).unwrap();
    early.flush().unwrap();

    let said = place.ok(&["resize", "disk0", "+10G"]);
    assert!(said.starts_with("volume disk0 has 20 GiB now; clients that attach it from now on see that"), "{said}");
    assert_eq!(serving.size_of("disk0"), 20 * GIB);
    assert_eq!(json(&place, &["status", "--json"])["volumes"][0]["size"], 20 * GIB);
    assert_eq!(size(&place), 20 * GIB);
    early.write(15 * GIB, 2, MIB).unwrap();
    early.flush().unwrap();
    assert!(early.holds(15 * GIB, 2, MIB));
    assert!(serving.attach("disk0").unwrap().holds(15 * GIB, 2, MIB));
    assert_eq!(place.ok(&["resize", "disk0", "20G"]), "volume disk0 has 20 GiB already\n");

    refused(&place, &["resize", "disk0", "-5G"], 2, "15 GiB is less than the 20 GiB that volume disk0 has");
    refused(&place, &["resize", "disk0", "40G", "--shrink"], 2, "leave out --shrink");
    refused(&place, &["resize", "disk0", "10G", "--discard-data"], 2, "--shrink");
    refused(&place, &["resize", "disk0", "-30G"], 2, "from which that size cannot be reached");
    refused(&place, &["resize", "disk0", "20G1"], 2, "is not a size");
    refused(&place, &["resize", "disk0", "21474836481"], 2, "4096");
    refused(&place, &["resize", "disk0", "-20G", "--shrink"], 2, "at least one block");
    let at = 15 * GIB;
    refused(
        &place,
        &["resize", "disk0", "10G", "--shrink"],
        1,
        &format!("holds data beyond 10737418240 bytes, at byte {at} "),
    );
    early.write(16 * GIB, 3, MIB).unwrap();
    early.flush().unwrap();

    let said = place.ok(&["resize", "disk0", "--shrink", "--discard-data", "-10G"]);
    assert_eq!(said, "volume disk0 has 10 GiB now; what lay beyond is given up\n");
    assert_eq!((serving.size_of("disk0"), size(&place)), (10 * GIB, (10 * GIB).into()));
    early.write(10 * GIB - MIB as u64, 4, MIB).unwrap();
    early.flush().unwrap();
    assert!(early.write(15 * GIB, 5, MIB).is_err() || early.flush().is_err());
    assert_eq!(json(&place, &["info", "disk0", "--json"])["mapped_bytes"], 2 * MIB);

    place.ok(&["resize", "disk0", "20G"]);
    let mut late = serving.attach("disk0").unwrap();
    assert!(late.holds(15 * GIB, 0, MIB) && late.holds(16 * GIB, 0, MIB) && late.holds(10 * GIB - MIB as u64, 4, MIB));
    serving.kill();
    let serving = place.serve(&[]);
    assert!(serving.attach("disk0").unwrap().holds(0, 1, MIB));
    assert_eq!(serving.size_of("disk0"), 20 * GIB);
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; 2.0 MiB of data in "));
}

#[test]
fn a_volume_becomes_larger_while_the_store_of_its_server_is_away() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut early = serving.attach("disk0").unwrap();
    early.write(0, 1, MIB).unwrap();
    early.flush().unwrap();
    let (store, away) = (place.path("ashlar-data"), place.path("away"));
    std::fs::rename(&store, &away).unwrap();
    std::fs::create_dir(&store).unwrap();

    let begun = Instant::now();
    let said = place.ok(&["resize", "disk0", "+10G"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for the store: {:?}", begun.elapsed());
    assert!(said.starts_with("volume disk0 has 20 GiB now, which clients see that attach it from now on. "), "{said}");
    assert!(said.contains("The store does not answer, and is told as soon as it does"), "{said}");
    assert_eq!(serving.size_of("disk0"), 20 * GIB);
    let volume = json(&place, &["status", "--json"])["volumes"][0].take();
    assert_eq!((&volume["size"], &volume["size_owed"]), (&(20 * GIB).into(), &true.into()));
    let shown = place.ok(&["status"]);
    assert!(shown.contains("the store does not know its size yet"), "{shown}");
    serving.attach("disk0").unwrap().write(15 * GIB, 2, MIB).unwrap();
    serving.kill();
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    assert_eq!(size(&place), 10 * GIB);

    let serving = place.serve(&[]);
    assert_eq!((serving.size_of("disk0"), size(&place)), (20 * GIB, (20 * GIB).into()));
    let mut late = serving.attach("disk0").unwrap();
    assert!(late.holds(0, 1, MIB) && late.holds(15 * GIB, 2, MIB));
    drop(late);
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; 2.0 MiB of data in "));
}

#[test]
fn a_volume_that_nobody_serves_becomes_larger_and_smaller() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "10G"]);
    let said = place.ok(&["resize", "disk0", "1T"]);
    assert!(said.starts_with("volume disk0 has 1 TiB now; a server elsewhere"), "{said}");
    let serving = place.serve(&[]);
    serving.attach("disk0").unwrap().write(500 * GIB, 1, MIB).unwrap();
    serving.kill();
    // Only the journal knows of it.
    refused(&place, &["resize", "disk0", "100G", "--shrink"], 1, "holds data beyond");
    place.ok(&["resize", "disk0", "100G", "--shrink", "--discard-data"]);
    assert_eq!(size(&place), 100 * GIB);
    place.ok(&["resize", "disk0", "1T"]);
    let serving = place.serve(&[]);
    assert!(serving.attach("disk0").unwrap().holds(500 * GIB, 0, MIB));
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; 0 B of data in "));
}

#[test]
fn only_the_server_that_has_it_makes_a_volume_smaller() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "10G"]);
    let mut command = place.command(&["serve", "disk0", "--listen", "none", "--state", "elsewhere"]);
    command.env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
    let serving = Serving::start(command);
    refused(&place, &["resize", "disk0", "1G", "--shrink"], 1, "only that server can make it smaller");
    // Larger it is made by whoever has the store; the server learns of it with the next command that it gets, or when it opens it.
    place.ok(&["resize", "disk0", "20G"]);
    assert_eq!(serving.size_of("disk0"), 10 * GIB);
    assert_eq!(
        place.ok(&["resize", "disk0", "1G", "--shrink", "--state", "elsewhere"]),
        "volume disk0 has 1 GiB now; what lay beyond is given up\n"
    );
    assert_eq!(serving.size_of("disk0"), GIB);
    serving.stop();
}

#[test]
fn an_encrypted_volume_is_resized_by_whoever_has_its_key() {
    let place = Place::new();
    std::fs::write(place.path("pass"), "correct horse").unwrap();
    std::fs::set_permissions(place.path("pass"), PermissionsExt::from_mode(0o600)).unwrap();
    let key = ["--passphrase-file", "pass"];
    place.ok(&[&["create", "disk0", "--size", "10G"][..], &key].concat());
    refused(&place, &["resize", "disk0", "20G"], 4, "stays locked");
    place.ok(&[&["resize", "disk0", "20G"][..], &key].concat());
    let serving = place.serve(&key);
    serving.attach("disk0").unwrap().write(15 * GIB, 1, MIB).unwrap();
    place.ok(&[&["resize", "disk0", "30G"][..], &key].concat());
    assert_eq!(serving.size_of("disk0"), 30 * GIB);
    // The server has the key.
    place.ok(&["resize", "disk0", "10G", "--shrink", "--discard-data"]);
    assert_eq!(serving.size_of("disk0"), 10 * GIB);
    serving.stop();
    assert!(place.ok(&[&["check", "--data"][..], &key].concat()).contains("disk0: clean"));
}
