//! The log of a server as programs and people read it: its forms, one line for each event, and no flood.

use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::program::{Place, Serving};

/// Serves volume a with these variables, has a client use it, stops, and returns the log.
fn log_of(place: &Place, variables: &[(&str, &str)]) -> Vec<String> {
    let serving = start(place, variables);
    let mut disk = serving.attach("a").unwrap();
    disk.write(0, 7, 4096).unwrap();
    disk.flush().unwrap();
    assert!(disk.holds(0, 7, 4096));
    drop(disk);
    end(serving)
}

fn start(place: &Place, variables: &[(&str, &str)]) -> Serving {
    if !place.path("ashlar-data").exists() {
        place.ok(&["create", "a", "--size", "64M"]);
    }
    let mut command = place.command(&["serve", "--listen", "none", "a"]);
    command.envs(variables.iter().copied());
    Serving::start(command)
}

fn end(serving: Serving) -> Vec<String> {
    serving.signal(rustix::process::Signal::TERM);
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    log.lines().map(str::to_owned).collect()
}

#[test]
fn a_volume_says_one_line_when_it_is_opened_and_one_when_it_is_closed() {
    let place = Place::new();
    let log = log_of(&place, &[]);
    let with = |words: &str| log.iter().filter(|line| line.contains(words)).collect::<Vec<_>>();
    let (opened, closed) = (with(" opened: "), with(" closed: "));
    assert!(opened.len() == 1 && closed.len() == 1, "{log:#?}");
    assert!(opened[0].contains("INFO opened: 64 MiB large, 0 B mapped, "), "{opened:?}");
    // The client of this test reads and writes in pieces of its own.
    assert!(closed[0].contains(" (4.0 KiB), 1 flush, 0 failed, ") && closed[0].contains(" PUTs and "), "{closed:?}");
    for line in [opened[0], closed[0]] {
        assert!(line.contains("volume=a uuid=") && line.contains(" epoch=1"), "{line}");
    }
    assert!(!log.iter().any(|line| line.starts_with('<')), "no priorities where journald does not read");
}

#[test]
fn a_log_for_programs_is_an_object_for_each_line_and_joins_by_volume_and_connection() {
    let place = Place::new();
    let log = log_of(&place, &[("ASHLAR_LOG__FORMAT", "json")]);
    let log: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let with = |words: &str| log.iter().find(|line| line["message"].as_str().unwrap().starts_with(words)).unwrap();
    for line in &log {
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["target"].is_string(), "{line}");
    }
    let (opened, attached, left) = (with("opened: "), with("client attached"), with("client left"));
    assert_eq!((&opened["volume"], &opened["epoch"]), (&"a".into(), &1.into()), "{opened}");
    assert_eq!((&attached["export"], &attached["connection"]), (&"a".into(), &left["connection"]), "{attached} {left}");
    assert!(attached["connection"].is_u64() && left["requests"].is_u64());
}

#[test]
fn the_last_words_of_a_server_have_the_form_of_its_log() {
    let place = Place::new();
    let mut serving = start(&place, &[("ASHLAR_LOG__FORMAT", "json")]);
    let mut disk = serving.attach("a").unwrap();
    let refused = place.refuse_segments("a");
    disk.write(0, 7, 4096).unwrap();
    serving.insist(rustix::process::Signal::TERM);
    let (code, log) = serving.end();
    assert_eq!(code, Some(130), "{log}");
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    drop(disk);
    refused.accept();
}

#[test]
fn priorities_are_for_journald_and_for_who_asks_for_them() {
    let place = Place::new();
    let log = log_of(&place, &[("ASHLAR_LOG__PRIORITIES", "always")]);
    assert!(log.iter().all(|line| line.starts_with('<')), "{log:#?}");
    let of = |words: &str| log.iter().find(|line| line.contains(words)).unwrap();
    assert!(of(" opened: ").starts_with("<6>"), "{log:#?}");
    let ended = crate::program::Ended::of(
        place.command(&["serve", "b", "--listen", "none"]).env("ASHLAR_LOG__PRIORITIES", "always"),
    );
    assert!(ended.err.starts_with("<3>ashlar: there is no volume \"b\""), "{ended:?}");
    // A variable that was inherited, and is about another stream.
    let log = log_of(&place, &[("JOURNAL_STREAM", "1:2")]);
    assert!(!log.iter().any(|line| line.starts_with('<')), "{log:#?}");
}

#[test]
fn journald_is_known_by_the_stream_that_it_names() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let file = std::fs::File::create(place.path("journal")).unwrap();
    let found = file.metadata().unwrap();
    let stream = format!("{}:{}", found.dev(), found.ino());
    let mut command = place.command(&["serve", "b", "--listen", "none"]);
    command.env("JOURNAL_STREAM", stream).stderr(file);
    assert_eq!(command.status().unwrap().code(), Some(1));
    let said = std::fs::read_to_string(place.path("journal")).unwrap();
    assert!(said.starts_with("<3>ashlar: there is no volume \"b\""), "{said}");
}

#[test]
fn a_request_that_is_refused_is_told() {
    let place = Place::new();
    let serving = start(&place, &[]);
    // A client that was told that it may write, and goes beyond the end.
    let mut disk = serving.attach_as_if("a", 1 << 40);
    assert!(disk.write(1 << 30, 7, 4096).is_err());
    drop(disk);
    let log = end(serving);
    let told = log.iter().find(|line| line.contains("INFO request refused: ")).unwrap_or_else(|| panic!("{log:#?}"));
    assert!(told.contains("export=\"a\" connection=") && told.contains(" failures=1"), "{told}");
}

/// Clients that ask for what is not there are each refused, and each refusal is told; but a crowd of them fills no disk.
#[test]
fn refusals_are_told_and_a_crowd_of_them_is_held_back_and_counted() {
    let place = Place::new();
    let serving = start(&place, &[("ASHLAR_LOG__BURST", "3")]);
    for _ in 0..20 {
        let mut stream = UnixStream::connect(serving.socket()).unwrap();
        assert!(nbd::client::handshake(&mut stream, b"absent").is_err());
    }
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    let log = end(serving);
    let refusals = log.iter().filter(|line| line.contains("refused a client: ")).count();
    // Within one window, or two on a machine that is very slow.
    assert!((3..=6).contains(&refusals), "{log:#?}");
    let first = log.iter().find(|line| line.contains("refused a client: ")).unwrap();
    assert!(first.contains("INFO refused a client: ") && first.contains("export=\"absent\""), "{first}");
    assert!(status["log"]["lines_held_back"].as_u64().unwrap() >= 20 - 6, "{status}");
}

#[test]
fn what_a_volume_says_once_is_never_held_back() {
    let place = Place::new();
    ["a", "b", "c"].iter().for_each(|name| drop(place.ok(&["create", name, "--size", "64M"])));
    let mut command = place.command(&["serve", "--listen", "none", "a", "b", "c"]);
    command.env("ASHLAR_LOG__BURST", "1");
    let log = end(Serving::start(command));
    for words in [" opened: ", " closed: "] {
        assert_eq!(log.iter().filter(|line| line.contains(words)).count(), 3, "{log:#?}");
    }
}
