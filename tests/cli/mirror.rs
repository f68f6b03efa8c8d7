//! `[mirror]` and `ashlar promote`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const BLOCK: usize = 4096;

/// A place whose volumes have their mirror in the directory `mirror`.
fn mirrored(more: &str) -> Place {
    let place = Place::new();
    configure(&place, more);
    place.ok(&["create", "db", "--size", "64M"]);
    place
}

fn configure(place: &Place, more: &str) {
    let mirror = url(place);
    std::fs::write(place.path("ashlar.toml"), format!("[mirror]\nurl = \"{mirror}\"\n{more}")).unwrap();
}

fn url(place: &Place) -> String {
    format!("file://{}", place.path("mirror").display())
}

fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
}

fn status(place: &Place) -> Value {
    let status: Value = serde_json::from_str(&place.ok(&["status", "db", "--json"])).unwrap();
    status["volumes"][0]["mirror"].clone()
}

/// Waits until that is said of the mirror.
fn until(place: &Place, is_so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let now = status(place);
        if is_so(&now) {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{now}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has_all(mirror: &Value) -> bool {
    mirror["state"] == "following" && mirror["lag_millis"] == 0 && mirror["lag_bytes"] == 0
}

/// A server of what was promoted, on another host.
fn serve_there(place: &Place, store: &Path) -> Serving {
    let store = format!("file://{}", store.display());
    let mut command = place.command(&["serve", "db", "--listen", "none", "--store", &store, "--state", "elsewhere"]);
    command.env("ASHLAR_MIRROR__URL", "");
    Serving::start(command)
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn the_first_store_is_gone_and_its_mirror_becomes_the_volume() {
    let place = mirrored("");
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, 1, 8 * BLOCK).unwrap();
    disk.write((1 << 20) as u64, 2, 8 * BLOCK).unwrap();
    disk.flush().unwrap();
    until(&place, has_all);
    assert!(place.ok(&["status"]).contains("has all that is committed"));
    let looked = place.ok(&["promote", "db", "--dry-run"]);
    assert!(
        looked.contains("it lacks nothing of what the first store has, beside what its server had not"),
        "{looked}"
    );
    refused(&place, &["promote", "db"], 1, "which did not close the volume");
    refused(&place, &["info", "db", "--store", &url(&place)], 1, "`ashlar promote db` makes a volume of it");
    refused(&place, &["create", "db", "--size", "1M", "--store", &url(&place)], 1, "is a mirror");
    refused(&place, &["delete", "db", "--yes", "--store", &url(&place)], 1, "is a mirror");
    serving.kill();
    std::fs::remove_dir_all(place.path("ashlar-data")).unwrap();
    let said = place.ok(&["promote", "db", "--takeover"]);
    assert!(said.contains("is not known: the first store cannot be compared"), "{said}");
    assert!(said.contains("it is a volume of file://"), "{said}");
    refused(&place, &["promote", "db", "--takeover"], 1, "was promoted already");
    let serving = serve_there(&place, &place.path("mirror"));
    let mut disk = serving.attach("db").unwrap();
    assert!(disk.holds(0, 1, 8 * BLOCK) && disk.holds(1 << 20, 2, 8 * BLOCK));
    disk.write(0, 3, BLOCK).unwrap();
    drop(disk);
    serving.stop();
    place.ok(&["check", "db", "--data", "--store", &url(&place)]);
}

/// Each write is one change of a block of its own: so what is there is a prefix, and which one it is can be said.
fn prefix(place: &Place, store: &Path, writes: u64) -> u64 {
    let url = format!("file://{}", store.display());
    let mut command = place.command(&["promote", "db", "--takeover", "--json", "--store", &url]);
    let ended = Ended::of(command.env("ASHLAR_MIRROR__URL", ""));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&said["promoted"], &said["missing_changes"]), (&true.into(), &Value::Null));
    let covers = said["last_commit_change"].as_u64().unwrap();
    let serving = serve_there(place, store);
    let mut disk = serving.attach("db").unwrap();
    for write in 0..writes {
        let fill = if write < covers { (write % 250) as u8 + 1 } else { 0 };
        assert!(disk.holds(write * BLOCK as u64, fill, BLOCK), "write {write} of {covers}");
    }
    drop(disk);
    serving.stop();
    covers
}

#[test]
fn a_server_that_is_killed_again_and_again_leaves_a_mirror_that_is_a_prefix() {
    let place = mirrored("");
    let (mut writes, mut flushed) = (0, 0);
    for life in 0..6u64 {
        let serving = place.serve(&["db"]);
        let mut disk = serving.attach("db").unwrap();
        // Before the first copy is done there is no volume.
        until(&place, |mirror| mirror["state"] == "following");
        for n in 0..40 + 13 * life {
            disk.write(writes * BLOCK as u64, (writes % 250) as u8 + 1, BLOCK).unwrap();
            writes += 1;
            if n % (3 + life) == 0 {
                disk.flush().unwrap();
                flushed = writes;
            }
        }
        drop(disk);
        if life % 2 == 1 {
            until(&place, has_all);
        }
        serving.kill();
        let cut = place.path(&format!("cut-{life}"));
        copy_directory(&place.path("mirror"), &cut);
        let covers = prefix(&place, &cut, writes);
        assert!(covers <= writes && (life % 2 == 0 || covers >= flushed), "{covers} of {writes}, {flushed} flushed");
        std::fs::remove_dir_all(place.path("elsewhere")).unwrap();
    }
    // In the end it is closed, and all is there.
    let serving = place.serve(&["db"]);
    until(&place, has_all);
    serving.stop();
    let said: Value = serde_json::from_str(&place.ok(&["promote", "db", "--json"])).unwrap();
    assert_eq!([&said["missing_changes"], &said["missing_objects"], &said["missing_bytes"]], [&Value::from(0); 3]);
    assert_eq!((&said["last_commit_change"], &said["closed"]), (&writes.into(), &true.into()));
}

#[test]
fn a_mirror_that_cannot_be_reached_hinders_nobody_and_is_told() {
    let place = mirrored("");
    // Where the mirror is to be there is a file.
    std::fs::write(place.path("mirror"), "").unwrap();
    let serving = place.serve(&["db"]);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, 1, BLOCK).unwrap();
    disk.flush().unwrap();
    let said = until(&place, |mirror| mirror["trouble"].is_string());
    assert_eq!(said["state"], "beginning");
    drop(disk);
    serving.stop();
    std::fs::remove_file(place.path("mirror")).unwrap();
    let serving = place.serve(&["db"]);
    until(&place, has_all);
    serving.stop();
    refused(&place, &["promote", "x"], 1, "there is no mirror of volume x");
    assert!(place.ok(&["promote", "db"]).contains("it lacks nothing of what the first store has\n"));
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let place = mirrored("");
    refused(&place, &["promote", "db", "--from", "file://x"], 2, "--from is for a configuration without mirror.url");
    for (text, words) in [
        ("[mirror]\nurl = \"file://./ashlar-data\"\n", "that is the store itself"),
        ("[mirror]\nurl = \"ftp://x\"\n", "unknown"),
        ("[mirror]\nurl = [\"file://a\", \"file://b\"]\n", "mirror.url"),
        ("[mirror]\nconfig = \"other.toml\"\n", "mirror.url says where the mirror is, and is not set"),
        ("[mirror]\nurl = \"file://m\"\nconfig = \"other.toml\"\n", "other.toml"),
        ("[mirror]\nurl = \"file://m\"\nbandwidth = \"1KiB\"\n", "64 KiB or more in a second"),
        ("[mirror]\nurl = \"file://m\"\ndelete_after = \"40d\"\n", "0s to 30d"),
        ("[mirror]\nurl = \"file://m\"\nstop_wait = \"1h\"\n", "0s to 10m"),
    ] {
        std::fs::write(place.path("ashlar.toml"), text).unwrap();
        refused(&place, &["serve", "db", "--listen", "none"], 2, words);
    }
    // [store] of the other file counts, and the URL of this one.
    std::fs::write(place.path("other.toml"), "[store]\nurl = \"file://elsewhere\"\nfencing = \"create-only\"\n")
        .unwrap();
    configure(&place, "config = \"other.toml\"\n");
    let serving = place.serve(&["db"]);
    until(&place, has_all);
    serving.stop();
    assert!(place.path("mirror/db").exists() && !place.path("elsewhere").exists());
}
