//! `ashlar bench`: what it says, and that it leaves nothing behind.

use serde_json::Value;

use crate::program::Place;

#[test]
fn a_store_is_measured_and_nothing_is_left_in_it() {
    let place = Place::new();
    place.ok(&["create", "mine", "--size", "1G"]);
    let url = place.url();
    let arguments = ["bench", &url, "--sizes", "4KiB,64KiB", "--parallel", "2", "--requests", "5", "--time", "10s"];
    let said = place.ok(&arguments);
    assert!(said.starts_with(&format!("store {url}\nat most 10 PUTs (340.0 KiB in all), as many GETs, ")), "{said}");
    assert!(said.contains("\nREQUEST  SIZE") && said.contains("\n[volume]\nsegment_size = "), "{said}");
    // What the probe found stands before the figures.
    let found = "16 create-only PUTs at once of each of 16 keys: one succeeded each time";
    let probe = said.lines().find(|line| line.starts_with("probe, version ")).unwrap();
    assert!(probe.ends_with(found), "{said}");
    let json = place.ok(&[&arguments[..], &["--json"]].concat());
    let measured: Value = serde_json::from_str(&json).unwrap();
    let probe = &measured["probe"];
    assert_eq!((probe["url"].as_str(), &probe["found"]["create_only"]), (Some(&*url), &"honoured".into()), "{probe}");
    let cells: Vec<_> = measured["cells"].as_array().unwrap().iter().collect();
    let kinds: Vec<_> = cells.iter().map(|cell| (cell["operation"].as_str().unwrap(), &cell["requests"])).collect();
    let five = Value::from(5);
    assert_eq!(kinds[..4], [("put", &five), ("put", &five), ("get", &five), ("get", &five)]);
    assert_eq!(kinds[4].0, "delete");
    let mut tops = std::fs::read_dir(place.path("ashlar-data")).unwrap();
    assert!(!tops.any(|top| top.unwrap().file_name() == ".ashlar-bench"), "something was left");
    assert!(place.ok(&["check"]).starts_with("mine: clean"));
}

#[test]
fn what_it_recommends_is_a_configuration_that_the_program_takes() {
    let place = Place::new();
    let said = place.ok(&["bench", "memory://", "--requests", "3", "--bytes", "1MiB", "--time", "1s"]);
    let toml = &said[said.find("[volume]").unwrap()..];
    std::fs::write(place.path("ashlar.toml"), toml).unwrap();
    assert!(place.ok(&["config"]).contains("segment_size"));
}

#[test]
fn nonsense_is_refused_before_anything_is_asked_of_the_store() {
    let place = Place::new();
    let ended = place.run(&["bench", "--sizes", "1T"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""));
    assert_eq!(ended.err, "ashlar: objects of 1 TiB cannot be measured; accepted are 1 B to 256 MiB\n");
    assert!(!place.path("ashlar-data").exists());
    assert_eq!(place.run(&["bench", "ftp://host"]).code, Some(2));
}
