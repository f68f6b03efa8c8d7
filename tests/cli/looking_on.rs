//! Looking on changes nothing (rule R17): whoever reads what a server says may go away, stop reading, or have a full disk.

use std::fs::{File, OpenOptions};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Place, Serving, Unread};

const MIB: usize = 1 << 20;

/// A place that takes no byte.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn nowhere() -> Stdio {
    File::open("/dev/null").unwrap().into()
}

fn lines_dropped(place: &Place) -> u64 {
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    status["log"]["lines_dropped"].as_u64().unwrap()
}

/// For how many seconds the store has failed, as the server says.
fn away_for(place: &Place) -> Option<u64> {
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    status["store_trouble"]["seconds"].as_u64()
}

/// Clients come and go, and the end is a clean one.
fn serves_to_the_end(place: &Place, server: Unread) {
    for round in 0..3 {
        let mut disk = server.attach("disk0").unwrap();
        disk.write(0, round, MIB).unwrap();
        disk.flush().unwrap();
        assert!(disk.holds(0, round, MIB));
    }
    server.signal(Signal::TERM);
    assert_eq!(server.end(), Some(0));
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; "));
}

#[test]
fn a_log_on_a_full_disk_is_dropped_and_counted_and_the_service_goes_on() {
    let place = Place::new();
    let server = Serving::unread(&place, place.command(&["serve", "--listen", "none"]), Stdio::null(), full());
    drop(server.attach("disk0").unwrap());
    assert!(lines_dropped(&place) > 0);
    let text = place.ok(&["status"]);
    assert!(text.contains(" of the log, which could not be written"), "{text}");
    serves_to_the_end(&place, server);
}

#[test]
fn a_log_whose_reader_went_away_is_dropped_and_the_service_goes_on() {
    let place = Place::new();
    let command = place.command(&["serve", "--listen", "none"]);
    let mut server = Serving::unread(&place, command, Stdio::null(), Stdio::piped());
    drop(server.take_err());
    serves_to_the_end(&place, server);
}

/// A client is attached, nobody reads the log any more, and then the store goes away for a while, which is said in the log by those
/// who bring the client's data there: they go on nevertheless.
#[test]
fn a_log_whose_reader_went_away_is_no_harm_to_a_client_while_the_store_is_away() {
    let place = Place::new();
    let command = place.command(&["serve", "--listen", "none"]);
    let mut server = Serving::unread(&place, command, Stdio::null(), Stdio::piped());
    let mut disk = server.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    drop(server.take_err());
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    std::fs::write(place.path("ashlar-data"), "").unwrap();
    let flushing = std::thread::spawn(move || {
        disk.write(0, 2, MIB).unwrap();
        disk.flush().unwrap();
        disk
    });
    // Long enough for it to be no hiccup any more.
    while away_for(&place).is_none_or(|seconds| seconds < 4) {
        assert!(!flushing.is_finished(), "a FLUSH was answered while the store is away");
    }
    assert!(lines_dropped(&place) > 0, "it was said into the void");
    std::fs::remove_file(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("away"), place.path("ashlar-data")).unwrap();
    let mut disk = flushing.join().unwrap();
    disk.write(MIB as u64, 3, MIB).unwrap();
    disk.flush().unwrap();
    assert!(disk.holds(0, 2, MIB) && disk.holds(MIB as u64, 3, MIB));
    drop(disk);
    serves_to_the_end(&place, server);
}

#[test]
fn a_log_whose_reader_stopped_reading_is_dropped_and_the_service_goes_on() {
    let place = Place::new();
    let mut command = place.command(&["serve", "--listen", "none"]);
    command.env("ASHLAR_LOG__LEVEL", "debug").env("ASHLAR_LOG__BUFFER", "4KiB");
    let mut server = Serving::unread(&place, command, Stdio::null(), Stdio::piped());
    let err = server.take_err().unwrap();
    // Some lines for each client: first the pipe is full, then the buffer.
    while lines_dropped(&place) == 0 {
        drop(server.attach("disk0").unwrap());
    }
    serves_to_the_end(&place, server);
    drop(err);
}

#[test]
fn a_welcome_that_cannot_be_printed_is_no_reason_not_to_serve() {
    let place = Place::new();
    let command = place.command(&["serve", "--listen", "none"]);
    serves_to_the_end(&place, Serving::unread(&place, command, full(), full()));
    // Not even open for writing.
    let place = Place::new();
    let command = place.command(&["serve", "--listen", "none"]);
    serves_to_the_end(&place, Serving::unread(&place, command, nowhere(), nowhere()));
}

/// The words at the end go the way of the log: a server that fails still ends with its own code.
#[test]
fn a_failure_that_cannot_be_said_keeps_its_exit_code() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let first = place.serve(&["disk0", "--state", "first"]);
    for err in [full(), nowhere()] {
        let mut second = place.command(&["serve", "disk0", "--listen", "none", "--state", "second"]);
        assert_eq!(second.stdout(Stdio::null()).stderr(err).status().unwrap().code(), Some(1));
    }
    first.stop();
}
