//! `ashlar serve --claim`: servers that share the volumes of a store, and take those of one that is gone.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;

/// A server of the pool, as on a host of its own.
fn member(place: &Place, state: &str) -> Command {
    let mut command = place.command(&["serve", "--listen", "none", "--claim", "rack1", "--state", state]);
    command.env("ASHLAR_SERVE__CLAIM_BEAT", "1s").env("ASHLAR_SERVE__CLAIM_PATIENCE", "4s");
    // Nothing but a FLUSH brings changes into the store.
    command.env("ASHLAR_VOLUME__DURABILITY", "store").env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
    command
}

/// Who has which volumes: their names by the state directory of a server that runs.
fn shares(place: &Place, states: &[&str]) -> BTreeMap<String, Vec<String>> {
    let of = |state: &&str| {
        let status: serde_json::Value =
            serde_json::from_str(&place.ok(&["status", "--json", "--state", state])).unwrap();
        let volumes = status["volumes"].as_array().unwrap();
        ((*state).to_owned(), volumes.iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect())
    };
    states.iter().map(of).collect()
}

/// Waits until those servers have all volumes together, each once, and each server at least so many.
fn shared_out(place: &Place, states: &[&str], volumes: &[String], least: usize) -> BTreeMap<String, Vec<String>> {
    let begun = Instant::now();
    loop {
        let shares = shares(place, states);
        let mut all: Vec<String> = shares.values().flatten().cloned().collect();
        all.sort();
        if all == volumes && shares.values().all(|share| share.len() >= least) {
            return shares;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{shares:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn volumes(place: &Place, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("v{number:02}")).collect();
    for name in &names {
        place.ok(&["create", name, "--size", "1G"]);
    }
    names
}

#[test]
fn servers_share_the_volumes_and_those_of_one_that_is_killed_or_leaves_are_taken() {
    let place = Place::new();
    let names = volumes(&place, 12);
    let a = Serving::start(member(&place, "a"));
    shared_out(&place, &["a"], &names, 12);
    // Of twelve, two servers have three each or more, but for one case in fifty: then the names would have to be others.
    let b = Serving::start(member(&place, "b"));
    let shares = shared_out(&place, &["a", "b"], &names, 1);
    // One that somebody uses stays where it is.
    let (of_a, of_b) = (shares["a"][0].clone(), shares["b"][0].clone());
    let mut client_of_a = a.attach(&of_a).unwrap();
    client_of_a.write(0, 3, MIB).unwrap();
    assert!(a.attach(&of_b).is_err());
    assert!(a.attach("no-such-volume").is_err());

    let mut client = b.attach(&of_b).unwrap();
    client.write(0, 7, MIB).unwrap();
    client.flush().unwrap();
    b.kill();
    shared_out(&place, &["a"], &names, 12);
    assert!(a.attach(&of_b).unwrap().holds(0, 7, MIB));
    // It comes back, and gets those that are not in use.
    let b = Serving::start(member(&place, "b"));
    let shares = shared_out(&place, &["a", "b"], &names, 1);
    assert!(shares["a"].contains(&of_a));
    assert!(client_of_a.holds(0, 3, MIB));

    // The other one leaves in good order: nothing has to be taken over, so nobody waits for that.
    drop(client_of_a);
    a.stop();
    shared_out(&place, &["b"], &names, 12);
    assert!(b.attach(&of_a).unwrap().holds(0, 3, MIB));
    b.stop();
    let left = std::fs::read_dir(place.path("ashlar-data/.ashlar-pool/rack1")).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "beats of servers that have left");
}

#[test]
fn what_an_operator_hands_over_is_taken_by_another_server() {
    let place = Place::new();
    let names = volumes(&place, 2);
    let a = Serving::start(member(&place, "a"));
    shared_out(&place, &["a"], &names, 2);
    let clients: Vec<_> = names.iter().map(|name| a.attach(name).unwrap()).collect();
    let b = Serving::start(member(&place, "b"));
    for name in &names {
        place.ok(&["handoff", name, "--to", "b", "--state", "a"]);
    }
    // Also those that were a's by their names.
    shared_out(&place, &["b"], &names, 2);
    drop(clients);
    b.stop();
    a.stop();
}

#[test]
fn what_is_no_beat_keeps_nobody_from_sharing() {
    let place = Place::new();
    let names = volumes(&place, 1);
    let folder = place.path("ashlar-data/.ashlar-pool/rack1/6d30fe3a-d292-43e9-9eac-71519a805f3e");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0000000000000001"), "no JSON").unwrap();
    std::fs::write(folder.join("what-is-this"), "").unwrap();
    let a = Serving::start(member(&place, "a"));
    // Once the other one is gone, if the volume would be its own by the names.
    shared_out(&place, &["a"], &names, 1);
    a.stop();
}

#[test]
fn a_server_that_stood_still_can_write_no_more_to_what_was_taken_from_it() {
    let place = Place::new();
    let names = volumes(&place, 1);
    let a = Serving::start(member(&place, "a"));
    shared_out(&place, &["a"], &names, 1);
    let mut client = a.attach("v00").unwrap();
    client.write(0, 1, MIB).unwrap();
    client.flush().unwrap();
    a.signal(Signal::STOP);
    let b = Serving::start(member(&place, "b"));
    shared_out(&place, &["b"], &names, 1);
    let mut newer = b.attach("v00").unwrap();
    assert!(newer.holds(0, 1, MIB));
    newer.write(0, 2, MIB).unwrap();
    newer.flush().unwrap();
    a.signal(Signal::CONT);
    assert!(client.write(0, 9, MIB).and_then(|()| client.flush()).is_err());
    assert!(newer.holds(0, 2, MIB));
    // It goes on as a member without that volume.
    let begun = Instant::now();
    while a.attach("v00").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(200));
    }
    shared_out(&place, &["b"], &names, 1);
    b.stop();
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let place = Place::new();
    volumes(&place, 1);
    for (args, code, words) in [
        (&["serve", "--claim", "a b"][..], 2, "the name of a pool is 1 to 64 letters, digits, - and _"),
        (&["serve", "--claim", "p", "--read-only"], 2, "a pool shares volumes that are written"),
        (&["serve", "v00@s", "--claim", "p"], 2, "a pool shares volumes that are written"),
        (&["serve", "v00", "--claim", "p", "--takeover"], 2, "cannot be used with"),
    ] {
        let ended = place.run(args);
        assert!(ended.code == Some(code) && ended.err.contains(words), "{args:?}: {ended:?}");
    }
    let mut hasty = place.command(&["serve", "--claim", "p"]);
    let ended = Ended::of(hasty.env("ASHLAR_SERVE__CLAIM_PATIENCE", "20s"));
    assert!(ended.code == Some(2) && ended.err.contains("three times serve.claim_beat"), "{ended:?}");
}
