//! `store.log`, `ashlar tier` and `--accept-log-loss`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::Place;

const BLOCK: usize = 4096;

/// A place with a store for logs in the directory `near`, whose content cools soon.
fn tiered() -> Place {
    let place = Place::new();
    configure(&place, "200ms");
    place
}

fn configure(place: &Place, cool_after: &str) {
    let near = place.path("near");
    let text = format!(
        "[store]\nlog = \"file://{}\"\ncool_after = \"{cool_after}\"\n[volume]\ncheckpoint_interval = \"1s\"\n",
        near.display()
    );
    std::fs::write(place.path("ashlar.toml"), text).unwrap();
}

fn near(place: &Place) -> Value {
    let status: Value = serde_json::from_str(&place.ok(&["status", "db", "--json"])).unwrap();
    status["volumes"][0]["near"].clone()
}

fn until(place: &Place, is_so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let now = near(place);
        if is_so(&now) {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{now}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

#[test]
fn the_log_cools_and_its_store_is_lost() {
    let place = tiered();
    place.ok(&["create", "db", "--size", "64M"]);
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, 1, 8 * BLOCK).unwrap();
    disk.flush().unwrap();
    let now = until(&place, |now| now["cooled_bytes"].as_u64() > Some(0));
    assert!(now["url"].as_str().unwrap().ends_with("/near"), "{now}");
    assert!(place.ok(&["status"]).contains("have moved from there since the start"));
    drop(disk);
    serving.kill();
    // What is in a checkpoint and has not cooled is lost with the store for logs.
    configure(&place, "1h");
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    disk.write((1 << 20) as u64, 2, 8 * BLOCK).unwrap();
    disk.flush().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    drop(disk);
    serving.kill();
    std::fs::remove_dir_all(place.path("near")).unwrap();
    refused(&place, &["serve", "db", "--listen", "none"], 1, "open with --accept-log-loss");
    refused(&place, &["check", "db"], 1, "the log of volume db is in a store of its own");
    std::fs::remove_dir_all(place.path("ashlar-state")).unwrap();
    let serving = place.serve(&["db", "--takeover", "--accept-log-loss"]);
    let mut disk = serving.attach("db").unwrap();
    assert!(disk.holds(0, 1, 8 * BLOCK));
    drop(disk);
    serving.stop();
    let checked = place.run(&["check", "db"]);
    assert!(checked.code != Some(0) && (checked.out.clone() + &checked.err).contains("/segments/"), "{checked:?}");
    refused(&place, &["serve", "db", "--listen", "none", "--accept-log-loss"], 1, "its log is at hand");
}

#[test]
fn the_log_moves_there_and_back_and_wrong_settings_are_refused_in_words() {
    let place = Place::new();
    place.ok(&["create", "db", "--size", "64M"]);
    refused(&place, &["tier", "db"], 2, "store.log names the store for logs, and is not set");
    configure(&place, "1h");
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, 7, 8 * BLOCK).unwrap();
    disk.flush().unwrap();
    assert!(near(&place).is_null());
    refused(&place, &["tier", "db"], 1, "stop that server first");
    drop(disk);
    serving.stop();
    assert!(place.ok(&["tier", "db"]).contains("it cannot be opened without that"));
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    assert!(disk.holds(0, 7, 8 * BLOCK));
    disk.write(0, 8, 8 * BLOCK).unwrap();
    disk.flush().unwrap();
    assert!(near(&place)["bytes"].as_u64() > Some(100));
    drop(disk);
    serving.stop();
    assert!(place.ok(&["tier", "db", "--end"]).contains("is in file://"));
    std::fs::remove_dir_all(place.path("near")).unwrap();
    std::fs::write(place.path("ashlar.toml"), "").unwrap();
    place.ok(&["check", "db", "--data"]);
    let serving = place.serve(&["db"]);
    assert!(serving.attach("db").unwrap().holds(0, 8, 8 * BLOCK));
    serving.stop();
    let with = |text: &str, words: &str| {
        std::fs::write(place.path("ashlar.toml"), text).unwrap();
        refused(&place, &["create", "other", "--size", "1M"], 2, words);
    };
    with("[store]\nlog_config = \"x.toml\"\n", "store.log says where the store for logs is, and is not set");
    with("[store]\nlog = \"file://./ashlar-data\"\n", "that is the store itself");
    with(
        "[store]\nlog = \"memory://\"\ns3.object_lock = \"compliance\"\n",
        "nothing is locked of a volume whose log is",
    );
    with("[store]\nlog = \"nowhere\"\n", "has no scheme");
    with("[store]\nlog = \"memory://\"\ncool_after = \"31d\"\n", "accepted is 0s to 30d");
}
