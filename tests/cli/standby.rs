//! `durability = "peer"`: another server keeps a copy of the journal, and takes the volume over.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const BLOCK: usize = 4096;

/// A place with a volume, the secret, and the address of the peer.
fn place() -> (Place, String) {
    let place = Place::new();
    place.ok(&["create", "db", "--size", "64M"]);
    std::fs::write(place.path("secret"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (place, free.to_string())
}

/// A server as on a host of its own, over a store of which each request takes 20 ms.
fn command(place: &Place, state: &str, args: &[&str]) -> Command {
    let mut command = place.command(&["serve", "--listen", "none", "--state", state]);
    command.args(args).env("ASHLAR_PEER__SECRET_FILE", place.path("secret"));
    command.env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h").env("ASHLAR_STORE__FAULTS__DELAY_MIN", "20ms");
    command
}

/// The one that has the volume.
fn server(place: &Place, peer: &str) -> Serving {
    let mut command = command(place, "a", &["db"]);
    command.env("ASHLAR_PEER__ADDRESS", peer).env("ASHLAR_VOLUME__DURABILITY", "peer");
    Serving::start(command)
}

/// The one that keeps copies.
fn keeper(place: &Place, peer: &str, args: &[&str]) -> Command {
    let mut command = command(place, "b", args);
    command.env("ASHLAR_PEER__LISTEN", peer);
    command
}

fn status(place: &Place, state: &str) -> Value {
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json", "--state", state])).unwrap();
    status
}

/// Waits until a FLUSH waits for that.
fn until(place: &Place, waits_for: &str) -> Value {
    let begun = Instant::now();
    loop {
        let peer = status(place, "a")["volumes"][0]["peer"].clone();
        if peer["waits_for"] == waits_for {
            return peer;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{peer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_is_killed_and_its_disk_is_gone_and_the_peer_has_all_that_was_acknowledged() {
    let (place, peer) = place();
    let b = Serving::start(keeper(&place, &peer, &[]));
    let a = server(&place, &peer);
    until(&place, "peer");
    let mut disk = a.attach("db").unwrap();
    for block in 0..64 {
        disk.write(block * BLOCK as u64, 7, BLOCK).unwrap();
        if block % 8 == 0 {
            disk.flush().unwrap();
        }
    }
    disk.write(0, 9, BLOCK).unwrap();
    let said = place.ok(&["status", "--state", "a"]);
    assert!(said.contains(&format!("{peer} has kept a copy of the journal for ")), "{said}");
    let said = place.ok(&["status", "--state", "b"]);
    assert!(
        said.contains("copies of other servers' journals take ") && said.contains("; of 1 volume one is written"),
        "{said}"
    );
    // Nobody takes the volume by only asking for it.
    assert!(b.attach("db").is_err());
    disk.write(BLOCK as u64, 8, BLOCK).unwrap();
    a.kill();
    drop(disk);
    std::fs::remove_dir_all(place.path("a")).unwrap();

    let begun = Instant::now();
    let taken = Serving::start(keeper(&place, &peer, &["db", "--takeover", "--replace"]));
    let mut disk = taken.attach("db").unwrap();
    assert!(disk.holds(0, 9, BLOCK));
    let took = begun.elapsed();
    println!("taken over in {took:?}");
    assert!(disk.holds(BLOCK as u64, 8, BLOCK) && disk.holds(2 * BLOCK as u64, 7, 62 * BLOCK));
    assert!(took < Duration::from_secs(60), "{took:?}");
    drop(b);
    // It is the peer's volume now, without a peer of its own.
    disk.write(0, 3, BLOCK).unwrap();
    disk.flush().unwrap();
    drop(disk);
    taken.stop();
    let again = Serving::start(command(&place, "c", &["db"]));
    assert!(again.attach("db").unwrap().holds(0, 3, BLOCK));
    again.stop();
}

#[test]
fn a_peer_that_goes_and_comes_back_is_said() {
    let (place, peer) = place();
    let mut a = server(&place, &peer);
    a.wait_for_log("is away, so writes and flushes are answered when the store has them");
    let mut disk = a.attach("db").unwrap();
    disk.write(0, 1, BLOCK).unwrap();
    disk.flush().unwrap();
    let said = place.ok(&["status", "--state", "a"]);
    assert!(said.contains("so writes and flushes wait for the store"), "{said}");
    let b = Serving::start(keeper(&place, &peer, &[]));
    until(&place, "peer");
    disk.write(0, 2, BLOCK).unwrap();
    disk.flush().unwrap();
    b.kill();
    let away = until(&place, "store");
    assert_eq!(away["falls"], 1, "{away}");
    disk.write(0, 3, BLOCK).unwrap();
    disk.flush().unwrap();
    // Another secret is another server.
    std::fs::write(place.path("other"), "another-secret-of-32-bytes-or-more").unwrap();
    let mut stranger = keeper(&place, &peer, &[]);
    stranger.env("ASHLAR_PEER__SECRET_FILE", place.path("other"));
    let stranger = Serving::start(stranger);
    a.wait_for_log("the secret in peer.secret_file is another one there");
    assert_eq!(until(&place, "store")["falls"], 1);
    stranger.stop();
    drop(disk);
    a.stop();
}

#[test]
fn the_doctor_tries_the_peer() {
    let (place, peer) = place();
    std::fs::write(place.path("other"), "another-secret-of-32-bytes-or-more").unwrap();
    let found = |secret: &str, weight: &str| -> String {
        let mut command = place.command(&["doctor", "--json", "--state", "c"]);
        command.env("ASHLAR_SERVE__LISTEN", "none").env("ASHLAR_PEER__ADDRESS", &peer);
        let ended = Ended::of(command.env("ASHLAR_PEER__SECRET_FILE", place.path(secret)));
        let found: Value = serde_json::from_str(&ended.out).unwrap();
        let of_peer = found["findings"].as_array().unwrap().iter().find(|finding| finding["about"] == "peer").unwrap();
        assert_eq!(of_peer["weight"], weight, "{of_peer}");
        of_peer["sentence"].as_str().unwrap().to_owned()
    };
    let away = found("secret", "doubtful");
    assert!(away.contains("is away: it cannot be reached"), "{away}");
    let b = Serving::start(keeper(&place, &peer, &[]));
    let there = found("secret", "good");
    assert!(there.starts_with(&format!("the peer {peer} answers after ")), "{there}");
    let other = found("other", "doubtful");
    assert!(other.contains("the secret in peer.secret_file is another one there"), "{other}");
    b.stop();
}

#[test]
fn what_a_configuration_of_peers_lacks_is_said() {
    let (place, peer) = place();
    let refused = |set: &[(&str, &str)], words: &str| {
        let mut command = place.command(&["serve", "db", "--listen", "none"]);
        for (key, value) in set {
            command.env(key, value);
        }
        let ended = Ended::of(&mut command);
        assert!(ended.code == Some(2) && ended.err.contains(words), "{ended:?}");
    };
    let (address, listen) = (("ASHLAR_PEER__ADDRESS", peer.as_str()), ("ASHLAR_PEER__LISTEN", peer.as_str()));
    refused(&[("ASHLAR_VOLUME__DURABILITY", "peer")], "peer.address, which says where that is, is not set");
    refused(&[address], "accepted is a file with 32 bytes or more, the same on both servers");
    std::fs::write(place.path("short"), "short").unwrap();
    refused(&[listen, ("ASHLAR_PEER__SECRET_FILE", "short")], "accepted is a file of 32 bytes or more");
    refused(&[address, ("ASHLAR_PEER__SECRET_FILE", "none")], "No such file");
    refused(&[("ASHLAR_PEER__LISTEN", "nowhere")], "accepted is HOST:PORT");
}
