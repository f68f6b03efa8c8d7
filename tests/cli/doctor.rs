//! `ashlar doctor`: what it says of real places, its exit code, and that it leaves nothing behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Ended, Place};

/// Flags that keep tests from meeting at one port.
const NO_TCP: (&str, &str) = ("ASHLAR_SERVE__LISTEN", "none");

fn doctor(place: &Place, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let arguments = [&["doctor"], args].concat();
    Ended::of(place.command(&arguments).env(NO_TCP.0, NO_TCP.1).envs(variables.iter().copied()))
}

/// The findings of this weight about this.
fn findings(ended: &Ended, weight: &str, about: &str) -> Vec<String> {
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    let all = found["findings"].as_array().unwrap().iter();
    let wanted = all.filter(|finding| finding["weight"] == weight && finding["about"] == about);
    wanted.map(|finding| finding["sentence"].as_str().unwrap().to_owned()).collect()
}

fn files(at: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path);
        }
    }
}

fn all_files(place: &Place) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    files(&place.path("."), &mut found);
    found
}

#[test]
fn a_place_where_all_is_well_is_looked_at_and_left_as_it_was() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "64M"]);
    place.serve(&["a"]).stop();
    let before = all_files(&place);
    let ended = doctor(&place, &["--json"], &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(found["wrong"], 0);
    let url = place.url();
    let store = findings(&ended, "good", "store");
    assert_eq!(store[0], format!("{url} lets this server list, put, get and delete objects"), "{store:?}");
    let probe = "16 create-only PUTs at once of each of 16 keys: one succeeded each time";
    assert_eq!(store[1], format!("{url} keeps two servers apart ({probe})"), "{store:?}");
    let speed = format!("{url}: half of small PUTs take less than ");
    assert!(
        store[2..].iter().any(|sentence| sentence.starts_with(&speed))
            || !findings(&ended, "doubtful", "store").is_empty()
    );
    let set = findings(&ended, "good", "configuration");
    assert_eq!(set, ["a server takes the configuration; it sets 1 of its keys"]);
    let server = findings(&ended, "doubtful", "server");
    assert!(server[0].starts_with("no server runs on state directory ./ashlar-state; start one with"), "{server:?}");
    assert_eq!(all_files(&place), before, "nothing is left behind");
    // The same for people: a line for each, the worst first.
    let said = doctor(&place, &[], &[]);
    assert_eq!(said.out.lines().count(), found["findings"].as_array().unwrap().len());
    let weights: Vec<&str> = said.out.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(
        weights
            .is_sorted_by_key(|weight| ["wrong", "doubtful", "good"].iter().position(|known| known == weight).unwrap())
    );
}

#[test]
fn a_server_that_runs_is_asked() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "64M"]);
    let serving = place.serve(&["a"]);
    let disk = serving.attach("a").unwrap();
    let ended = doctor(&place, &["--json"], &[]);
    let server = format!("server {} has 1 volume open and 1 client attached", serving.pid());
    assert_eq!((ended.code, findings(&ended, "good", "server")), (Some(0), vec![server]), "{ended:?}");
    let other = format!("file://{}", place.path("other").display());
    let ended = doctor(&place, &["--json", "--store", &other], &[]);
    let said = findings(&ended, "doubtful", "server");
    assert_eq!(said.len(), 1, "{ended:?}");
    assert!(said[0].contains(&format!("serves {}, and the configuration names {other}", place.url())), "{said:?}");
    drop(disk);
    serving.stop();
}

#[test]
fn what_is_wrong_ends_it_with_1_and_says_what_to_do() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    place.ok(&["create", "a", "--size", "64M"]);
    std::fs::write(place.path("ashlar-state"), "").unwrap();
    let variables =
        [("ASHLAR_SERVE__LISTEN", &*address), ("ASHLAR_SERVE__VOLUMES", "a,b"), ("ASHLAR_LOG__LEVEL", "a=b=c")];
    let ended = doctor(&place, &["--json"], &variables);
    assert_eq!((ended.code, ended.err.as_str()), (Some(1), ""), "{ended:?}");
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    let wrong: Vec<&str> = found["findings"].as_array().unwrap()[..found["wrong"].as_u64().unwrap() as usize]
        .iter()
        .map(|finding| finding["sentence"].as_str().unwrap())
        .collect();
    for words in [
        "ASHLAR_LOG__LEVEL = \"a=b=c\": accepted is",
        "the state directory ./ashlar-state cannot be used by this user: not a directory",
        "there is no volume \"b\" in",
    ] {
        assert!(wrong.iter().any(|sentence| sentence.contains(words)), "{words}: {wrong:?}");
    }
    std::fs::remove_file(place.path("ashlar-state")).unwrap();
    let ended = doctor(&place, &["--json"], &[("ASHLAR_SERVE__LISTEN", &*address)]);
    let server = findings(&ended, "wrong", "server");
    assert!(
        ended.code == Some(1) && server[0].starts_with(&format!("a server cannot listen on {address}: ")),
        "{ended:?}"
    );
}

#[test]
fn a_configuration_that_cannot_be_had_is_a_finding() {
    let place = Place::new();
    std::fs::write(place.path("ashlar.toml"), "[journal]\nfile_size = \"1G\"\n").unwrap();
    let ended = place.run(&["doctor"]);
    let said = "wrong     configuration  ashlar.toml: journal.file_size = \"1G\": there is no such key; [journal] has file_bytes\n";
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(1), said, ""));
}

#[test]
fn where_nothing_is_yet_nothing_is_made() {
    let place = Place::new();
    let ended = doctor(&place, &["--json"], &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let store = findings(&ended, "doubtful", "store");
    assert!(store.iter().any(|sentence| sentence.contains("is not there: `ashlar create` makes it")), "{store:?}");
    let state = findings(&ended, "good", "state");
    assert!(state[0].contains("is not there yet; `ashlar serve` makes it"), "{state:?}");
    assert!(
        all_files(&place).is_empty() && !place.path("ashlar-data").exists() && !place.path("ashlar-state").exists()
    );
}

#[test]
fn a_store_that_was_emptied_is_wrong() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "64M"]);
    place.serve(&["a"]).stop();
    std::fs::remove_dir_all(place.path("ashlar-data")).unwrap();
    std::fs::create_dir(place.path("ashlar-data")).unwrap();
    let ended = doctor(&place, &["--json"], &[]);
    let store = findings(&ended, "wrong", "store");
    assert!(
        ended.code == Some(1) && store[0].contains("is its filesystem mounted, or its bucket another one?"),
        "{ended:?}"
    );
}
