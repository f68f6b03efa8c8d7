//! Signals that are no kill: each ends the server in good order, or leaves it alone.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Place, Serving, Terminal, in_a_session};

const MIB: usize = 1 << 20;

/// A server whose terminal that is.
fn on(place: &Place, terminal: &Terminal) -> Serving {
    let mut command = place.command(&["serve", "--listen", "none"]);
    command.env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
    Serving::start(in_a_session(&command, Some(terminal)))
}

#[test]
fn a_closed_terminal_and_sigquit_end_the_server_as_sigterm_does() {
    for signal in [Signal::HUP, Signal::QUIT] {
        let (place, terminal) = (Place::new(), Terminal::open());
        let serving = on(&place, &terminal);
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
    let (place, terminal) = (Place::new(), Terminal::open());
    let mut serving = on(&place, &terminal);
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

#[test]
fn sighup_changes_budget_and_prices_of_open_volumes() {
    let place = Place::new();
    let mut serving = without_a_terminal(&place);
    let disk = serving.attach("disk0").unwrap();
    let configure = |text: &str| std::fs::write(place.path("ashlar.toml"), format!("{FIRST}{text}")).unwrap();
    let status = || serde_json::from_str::<Value>(&place.ok(&["status", "--json"])).unwrap();
    let budgets = |status: &Value| {
        let allowed =
            |budget: &Value| (budget["key"].as_str().unwrap().to_owned(), budget["allowed"].as_f64().unwrap());
        let of = |list: &Value| list.as_array().unwrap().iter().map(allowed).collect::<Vec<_>>();
        (of(&status["budget"]), of(&status["volumes"][0]["budget"]))
    };
    assert_eq!(budgets(&status()), (vec![], vec![]));
    configure(
        "[budget]\ndollars_per_day = 1.5\n[budget.volume]\nrequests_per_second = 40\n[prices]\nput_thousand = 5.0\n",
    );
    serving.signal(Signal::HUP);
    serving.wait_for_log("reloaded: budget.dollars_per_day = 1.5, and no longer 0.0");
    serving.wait_for_log("reloaded: budget.volume.requests_per_second = 40, and no longer 0");
    serving.wait_for_log("reloaded: prices.put_thousand = 5.0");
    let now = status();
    let of_each = ("budget.volume.requests_per_second".to_owned(), 40.0);
    assert_eq!(budgets(&now), (vec![("budget.dollars_per_day".to_owned(), 1.5)], vec![of_each.clone()]));
    assert!(now["cost"]["prices"].as_str().unwrap().ends_with("but for what [prices] says otherwise"));
    let puts = now["volumes"][0]["since_open"]["puts"].as_f64().unwrap();
    assert!(now["cost"]["requests_since_start_dollars"].as_f64().unwrap() >= puts * 0.005, "{now}");
    // What the volume sets itself stays.
    place.ok(&["set", "disk0", "budget.volume.dollars_per_day=0.25"]);
    configure("[budget.volume]\nrequests_per_second = 40\ndollars_per_day = 9.0\n");
    serving.signal(Signal::HUP);
    serving.wait_for_log("reloaded: budget.volume.dollars_per_day = 9.0, and no longer 0.0");
    let own = ("budget.volume.dollars_per_day".to_owned(), 0.25);
    assert_eq!(budgets(&status()), (vec![], vec![of_each, own]));
    drop(disk);
    serving.stop();
}

const FIRST: &str = "[volume]\ndirty_bytes = \"64MiB\"\n";

/// As a service manager starts it.
fn without_a_terminal(place: &Place) -> Serving {
    std::fs::write(place.path("ashlar.toml"), FIRST).unwrap();
    Serving::start(in_a_session(&place.command(&["serve", "--listen", "none"]), None))
}

#[test]
fn without_a_terminal_sighup_has_the_configuration_read_again() {
    let place = Place::new();
    let mut serving = without_a_terminal(&place);
    let mut before = serving.attach("disk0").unwrap();
    let configure = |text: &str| std::fs::write(place.path("ashlar.toml"), text).unwrap();
    configure(
        "[log]\nlevel = \"debug\"\n[volume]\ndirty_bytes = \"32MiB\"\n\
         [[nbd.access]]\nexports = [\"another\"]\nwrite = [\"unix\"]\n",
    );
    serving.signal(Signal::HUP);
    let said = serving.wait_for_log("reloaded: log.level");
    assert!(said.contains("log.level = \"debug\", and no longer \"info\""), "{said}");
    serving.wait_for_log("reloaded: nbd.access");
    let said = serving.wait_for_log("not reloaded");
    assert!(
        said.contains("volume.dirty_bytes = \"32 MiB\" takes effect at the next start; until then it is \"64 MiB\""),
        "{said}"
    );
    serving.attach("disk0").err().expect("no rule lets anybody use it");
    before.write(0, 1, 4096).expect("who is attached stays");
    serving.wait_for_log("DEBUG");
    // What is wrong changes nothing, and is said.
    configure("[log]\nlevel = \"warn\"\n[nbd]\nacess = []\n");
    serving.signal(Signal::HUP);
    let said = serving.wait_for_log("the configuration is as before");
    assert!(said.contains("there is no such key; did you mean nbd.access?"), "{said}");
    serving.attach("disk0").err().expect("the rules are those from before");
    configure(FIRST);
    serving.signal(Signal::HUP);
    serving.wait_for_log("reloaded: log.level");
    serving.wait_for_log("reloaded: nbd.access");
    drop(before);
    drop(serving.attach("disk0").unwrap());
    serving.signal(Signal::HUP);
    serving.wait_for_log("nothing has changed");
    serving.stop();
}
