//! `ashlar handoff`: a volume goes from one server to another that waits for it.

use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;

/// The server of another host: a state directory of its own over the same store.
fn elsewhere(place: &Place, args: &[&str]) -> std::process::Command {
    let mut command = place.command(&["serve", "--listen", "none", "--state", "elsewhere"]);
    command.args(args).env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
    command
}

fn moved(place: &Place) -> Value {
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    status["moved"].clone()
}

fn refused(place: &Place, args: &[&str], words: &str) {
    let ended = place.run(args);
    assert!(ended.code.is_some_and(|code| code != 0) && ended.err.contains(words), "{args:?}: {ended:?}");
}

#[test]
fn a_volume_goes_to_a_server_that_waits_for_it_without_a_takeover_and_the_others_stay() {
    let place = Place::new();
    for name in ["a", "b"] {
        place.ok(&["create", name, "--size", "1G"]);
    }
    let mut here = place.serve(&["a", "b"]);
    let (mut of_a, mut of_b) = (here.attach("a").unwrap(), here.attach("b").unwrap());
    of_a.write(0, 1, MIB).unwrap();
    of_b.write(0, 2, MIB).unwrap();
    // Without --wait it does not begin.
    let held = Ended::of(&mut elsewhere(&place, &["a"]));
    assert!(held.code == Some(1) && held.err.contains("was opened by server"), "{held:?}");
    let mut there = Serving::start(elsewhere(&place, &["a", "--wait"]));
    there.wait_for_log("waiting: it is tried again whenever a client asks");
    assert!(there.attach("a").is_err());
    of_a.write(MIB as u64, 3, MIB).unwrap();

    refused(&place, &["handoff", "c", "--to", "host2"], "volume c is not open on the server");
    refused(&place, &["handoff", "a"], "--to");
    refused(&place, &["handoff", "a", "--to", " "], "names no place");
    refused(&place, &["handoff", "a", "--back"], "was not handed over");
    assert_eq!(
        place.ok(&["handoff", "a", "--to", "host2"]),
        "volume a is closed here; a server on host2 can open it now\n"
    );
    // Its client is gone, and hears where to go; that of the other volume has noticed nothing.
    assert!(of_a.write(0, 9, MIB).is_err());
    assert!(here.attach("a").is_err());
    assert!(here.wait_for_log("which does not open").contains("volume a moved to host2; attach it there"));
    of_b.write(MIB as u64, 4, MIB).unwrap();
    of_b.flush().unwrap();
    assert_eq!(moved(&place)[0], serde_json::json!({ "volume": "a", "to": "host2" }));
    assert!(place.ok(&["status"]).contains("volume a moved to host2"));
    refused(&place, &["status", "a"], "volume a moved to host2");

    let mut of_a = there.attach("a").unwrap();
    assert!(of_a.holds(0, 1, MIB) && of_a.holds(MIB as u64, 3, MIB));
    of_a.write(0, 5, MIB).unwrap();
    // It does not come back while the other one has it, and comes back when that hands it back.
    assert_eq!(place.ok(&["handoff", "a", "--back"]), "volume a is opened here again when a client asks for it\n");
    assert!(here.attach("a").is_err());
    assert!(here.wait_for_log("which does not open").contains("was opened by server"));
    place.ok(&["handoff", "a", "--to", "host1", "--state", "elsewhere"]);
    assert!(here.attach("a").unwrap().holds(0, 5, MIB));
    there.stop();
    here.stop();
    for name in ["a", "b"] {
        assert!(place.ok(&["check", name, "--data"]).starts_with(&format!("{name}: clean; 2.0 MiB of data in ")));
    }
}

#[test]
fn a_volume_that_the_store_does_not_take_in_time_stays() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    let segments = place.refuse_segments("disk0");
    disk.write(0, 2, MIB).unwrap();
    let mut handoff = place.command(&["handoff", "disk0", "--to", "host2"]);
    let ended = Ended::of(handoff.env("ASHLAR_SERVE__HANDOFF_TIMEOUT", "1s"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("volume disk0 stays here: not everything that was written is in the store"),
        "{ended:?}"
    );
    disk.write(MIB as u64, 3, MIB).unwrap();
    assert!(moved(&place).as_array().unwrap().is_empty());
    segments.accept();
    disk.flush().unwrap();
    assert!(disk.holds(0, 2, MIB) && disk.holds(MIB as u64, 3, MIB));
    serving.stop();
}

/// A volume that the server here has open, and that nobody uses, can be deleted beside it.
#[test]
fn a_volume_that_is_open_here_and_unused_can_be_deleted() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "1G"]);
    let mut here = place.serve(&[]);
    let mut client = here.attach("a").unwrap();
    client.write(0, 1, MIB).unwrap();
    refused(
        &place,
        &["delete", "a", "--yes"],
        "volume a is served here and has 1 client: detach them, or end their connections",
    );
    client.write(0, 2, MIB).unwrap();
    drop(client);
    here.wait_for_log("client left");
    let said = place.ok(&["delete", "a", "--yes"]);
    assert!(said.starts_with("deleted volume a with ") && said.contains("once it is restarted"), "{said}");
    assert_eq!(moved(&place), serde_json::json!([]));
    assert!(here.attach("a").is_err());
    // Clients of the old one might come back to a new one of that name.
    place.ok(&["create", "a", "--size", "2G"]);
    assert!(here.attach("a").is_err());
    here.wait_for_log("restart the server to serve it");

    // A deletion that broke off after the server had closed the volume: the same command again forgets that, too.
    place.ok(&["create", "b", "--size", "1G"]);
    drop(here.attach("b").unwrap());
    here.wait_for_log("client left");
    place.ok(&[
        "handoff",
        "b",
        "--to",
        "nobody, for it was to be deleted (if it is still there: ashlar handoff --back)",
    ]);
    assert!(here.attach("b").is_err());
    place.ok(&["delete", "b", "--yes"]);
    assert_eq!(moved(&place), serde_json::json!([]));
}

#[test]
fn the_list_says_whether_the_server_of_a_volume_is_on_this_host() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M"]);
    let holder = || serde_json::from_str::<Value>(&place.ok(&["list", "--json"])).unwrap()[0]["holder"].clone();
    assert!(holder().is_null(), "{}", holder());
    let server = place.serve(&["disk0"]);
    assert_eq!(holder()["this_host"], true, "{}", holder());
    let table = place.ok(&["list"]);
    assert!(table.lines().nth(1).unwrap().trim_end().ends_with("this host"), "{table}");
    server.stop();
    assert!(holder().is_null(), "{}", holder());
}
