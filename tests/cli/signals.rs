//! Signals that are no kill: each ends the server in good order, or leaves it alone.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Place, Serving};

const MIB: usize = 1 << 20;

#[test]
fn a_closed_terminal_and_sigquit_end_the_server_as_sigterm_does() {
    for signal in [Signal::HUP, Signal::QUIT] {
        let place = Place::new();
        let serving = place.serve(&[]);
        serving.attach("disk0").unwrap().write(0, 5, MIB).unwrap();
        serving.signal(signal);
        let (code, log) = serving.end();
        assert_eq!(code, Some(0), "{signal:?}: {log}");
        assert!(log.contains("everything is in the store"), "{signal:?}: {log}");
        let info: Value = serde_json::from_str(&place.ok(&["info", "disk0", "--json"])).unwrap();
        assert_eq!((&info["mapped_bytes"], &info["holder"]), (&MIB.into(), &Value::Null), "{signal:?}");
    }
}

/// A terminal that closes sends SIGHUP to its jobs once or twice: that must not be taken for "leave at once".
#[test]
fn a_second_sighup_is_not_the_signal_to_leave_at_once() {
    let place = Place::new();
    let mut serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 5, MIB).unwrap();
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    std::fs::write(place.path("ashlar-data"), "").unwrap();
    serving.signal(Signal::HUP);
    serving.wait_for_log("trying again");
    serving.signal(Signal::HUP);
    std::fs::remove_file(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("away"), place.path("ashlar-data")).unwrap();
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
}

/// A service manager and a wrapper may pass the same wish on: that must not be taken for "leave at once" either.
#[test]
fn signals_that_come_together_are_one_wish() {
    let place = Place::new();
    let mut serving = place.serve(&[]);
    serving.attach("disk0").unwrap().write(0, 5, MIB).unwrap();
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    std::fs::write(place.path("ashlar-data"), "").unwrap();
    [Signal::TERM, Signal::INT, Signal::TERM].into_iter().for_each(|signal| serving.signal(signal));
    serving.wait_for_log("trying again");
    std::fs::remove_file(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("away"), place.path("ashlar-data")).unwrap();
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn under_nohup_a_closed_terminal_changes_nothing() {
    let place = Place::new();
    let program = place.command(&["serve", "--listen", "none"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(program.get_program()).args(program.get_args());
    command.current_dir(program.get_current_dir().unwrap());
    let serving = Serving::start(command);
    serving.signal(Signal::HUP);
    // One after the other: what was sent before is handled before the next signal ends it.
    assert!(place.ok(&["status"]).contains("server "));
    serving.attach("disk0").unwrap().write(0, 1, 4096).unwrap();
    serving.stop();
}
