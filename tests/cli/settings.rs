//! `ashlar set NAME KEY=VALUE`: settings that live with the volume, and beat the configuration of whoever serves it.

use ashlar::format::meta::{Meta, VolumeName};
use serde_json::Value;

use crate::program::{Ended, Place, Serving};

fn info(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.ok(&["info", name, "--json"])).unwrap()
}

fn dirty(place: &Place) -> u64 {
    let status: Value = serde_json::from_str(&place.ok(&["status", "disk0", "--json"])).unwrap();
    status["volumes"][0]["dirty_bytes"].as_u64().unwrap()
}

/// A server of another host, as far as it goes: with its own state directory, and a configuration that says the opposite.
fn serve_elsewhere(place: &Place) -> Serving {
    let mut command = place.command(&["serve", "disk0", "--listen", "none", "--state", "other"]);
    command.env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h").env("ASHLAR_VOLUME__DURABILITY", "store");
    Serving::start(command)
}

#[test]
fn what_a_volume_sets_holds_on_every_host() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M", "--set", "durability=journal"]);
    let said = place.ok(&["set", "disk0", "volume.max_snapshots=1", "segment_size=4194304"]);
    assert_eq!(
        said,
        "volume disk0 has volume.max_snapshots = 1, from the next time it is opened on\n\
         volume disk0 has volume.segment_size = 4 MiB, from the next time it is opened on\n"
    );
    let expected = serde_json::json!({
        "volume.durability": "journal", "volume.max_snapshots": "1", "volume.segment_size": "4 MiB"
    });
    assert_eq!(info(&place, "disk0")["settings"], expected);
    let line = "volume.durability = journal, volume.max_snapshots = 1, volume.segment_size = 4 MiB";
    assert!(place.ok(&["info", "disk0"]).contains(line));
    for serve in [|place: &Place| place.serve(&["disk0"]), serve_elsewhere] {
        let serving = serve(&place);
        let mut disk = serving.attach("disk0").unwrap();
        // The store takes nothing, and FLUSH is answered all the same.
        let refused = place.refuse_segments("disk0");
        disk.write(0, 7, 4096).unwrap();
        disk.flush().unwrap();
        refused.accept();
        drop(disk);
        serving.signal(rustix::process::Signal::TERM);
        let (code, log) = serving.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("with settings of its own: {line}")), "{log}");
    }
    place.ok(&["set", "disk0", "--unset", "durability", "--unset", "volume.max_snapshots", "--unset", "segment_size"]);
    assert_eq!(info(&place, "disk0")["settings"], serde_json::json!({}));
    assert!(place.ok(&["info", "disk0"]).contains("none of its own: as the configuration of whoever serves it"));
}

#[test]
fn what_can_takes_effect_on_an_open_volume_and_what_cannot_is_said() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M"]);
    let serving = place.serve(&["disk0"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, 4096).unwrap();
    assert!(dirty(&place) > 0, "the server's configuration waits for an hour");
    let said = place.ok(&["set", "disk0", "durability=journal", "writeback_delay=10ms", "max_snapshots=1"]);
    assert_eq!(
        said,
        "volume disk0 has volume.durability = journal, from the next time it is opened on: the server that runs here has it open, and \
         goes on as before until it is restarted, or hands the volume over\n\
         volume disk0 has volume.max_snapshots = 1, from now on\n\
         volume disk0 has volume.writeback_delay = 10ms, from now on\n"
    );
    while dirty(&place) > 0 {}
    place.ok(&["snapshot", "create", "disk0@one"]);
    let ended = place.run(&["snapshot", "create", "disk0@two"]);
    assert!(ended.code == Some(1) && ended.err.contains("(volume.max_snapshots is 1)"), "{ended:?}");
    place.ok(&["set", "disk0", "budget.volume.requests_per_second=9"]);
    let status = place.ok(&["status", "disk0"]);
    assert!(status.contains("budget.volume.requests_per_second = 9: "), "{status}");
    // What it is served with is nothing new.
    let said = place.ok(&["set", "disk0", "durability=store"]);
    assert_eq!(said, "volume disk0 has volume.durability = store, from now on\n");
    let said = place.ok(&["set", "disk0", "--unset", "max_snapshots"]);
    assert_eq!(said, "volume disk0 has volume.max_snapshots as the configuration of whoever serves it, from now on\n");
    place.ok(&["snapshot", "create", "disk0@two"]);
    drop(disk);
    serving.stop();
}

#[test]
fn clones_and_copies_begin_with_the_settings_of_their_volume() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M", "--set", "durability=journal"]);
    place.ok(&["clone", "disk0", "again"]);
    place.ok(&["snapshot", "create", "disk0@one"]);
    let copies = format!("file://{}", place.path("copies").display());
    place.ok(&["copy", "disk0@one", &copies]);
    let journal = serde_json::json!({ "volume.durability": "journal" });
    place.ok(&["set", "disk0", "--unset", "durability"]);
    assert_eq!(info(&place, "again")["settings"], journal);
    let copy: Value = serde_json::from_str(&place.ok(&["info", "disk0", "--json", "--store", &copies])).unwrap();
    assert_eq!(copy["settings"], journal);
}

#[test]
fn settings_that_cannot_be_are_refused_and_change_nothing() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M"]);
    let refused = |args: &[&str], words: &str| {
        let ended = place.run(&[&["set", "disk0"], args].concat());
        assert!(ended.code == Some(2) && ended.err.contains(words), "{args:?}: {ended:?}");
    };
    refused(&["durability"], "accepted is KEY=VALUE, such as durability=journal");
    refused(&["durability=perhaps"], "volume.durability = perhaps: accepted is one of store, journal, peer");
    refused(
        &["dirty_bytes=1G"],
        "dirty_bytes = 1G: a volume has no such setting of its own; it can have volume.durability,",
    );
    refused(&["gc.busy_percent=90"], "volume.gc.busy_percent = 90: accepted is gc.quiet_percent or more");
    let beside =
        "volume.segment_size = 256 MiB cannot be beside the configuration's volume.total_upload_bytes = 512 MiB";
    refused(&["segment_size=256MiB"], beside);
    refused(
        &["--unset", "durability"],
        "--unset volume.durability: volume disk0 has no such setting of its own; it has none",
    );
    refused(&["durability=store", "--unset", "durability"], "volume.durability: it is either set or unset");
    place.ok(&["set", "disk0", "max_snapshots=3"]);
    refused(&["--snapshots-every", "1h", "--snapshots-keep", "7"], "a volume may have 3 (volume.max_snapshots)");
    assert_eq!(info(&place, "disk0")["settings"], serde_json::json!({ "volume.max_snapshots": "3" }));
}

/// Neither what it does not know nor what it cannot keep is passed over: somebody may rely on it.
#[test]
fn a_server_that_cannot_keep_a_setting_does_not_open_the_volume() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "64M", "--set", "segment_size=64MiB"]);
    let serve = |uploads: &str| {
        let mut command = place.command(&["serve", "disk0", "--listen", "none"]);
        Ended::of(command.env("ASHLAR_VOLUME__TOTAL_UPLOAD_BYTES", uploads))
    };
    let ended = serve("128MiB");
    let words = "volume disk0 has settings of its own that this server cannot keep: volume.segment_size = 64 MiB cannot be beside the \
                 configuration's volume.total_upload_bytes = 128 MiB: accepted is 4 times volume.segment_size or more; change";
    assert!(ended.code == Some(1) && ended.err.contains(words), "{ended:?}");

    // As a later ashlar may write it.
    let name = VolumeName::new("disk0").unwrap();
    let path = place.path("ashlar-data/disk0/meta/0000000000000001");
    let mut meta = Meta::decode(&name, &std::fs::read(&path).unwrap()).unwrap();
    meta.settings = [("volume.news".to_owned(), "1".to_owned())].into();
    std::fs::write(&path, meta.encode(None)).unwrap();
    let ended = serve("512MiB");
    let words = "volume.news = 1: a volume has no such setting of its own; it can have volume.durability,";
    assert!(ended.code == Some(1) && ended.err.contains(words), "{ended:?}");
    assert!(place.ok(&["info", "disk0"]).contains("volume.news = 1"));
    place.ok(&["set", "disk0", "--unset", "volume.news"]);
    place.serve(&["disk0"]).stop();
}

/// A volume that is to be de-duplicated is, and what refers to what is read by everybody.
#[test]
fn a_volume_is_de_duplicated_where_it_says_so() {
    let place = Place::new();
    let refused = place.run(&["create", "web", "--size", "64M", "--set", "dedup=perhaps"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("volume.dedup = perhaps: accepted is true or false"), "{}", refused.err);
    place.ok(&["create", "web", "--size", "64M", "--set", "dedup=true"]);
    let serving = place.serve(&["web"]);
    let mut disk = serving.attach("web").unwrap();
    for at in [0, 20] {
        (0..64).for_each(|n| disk.write((at << 20) + n * 4096, n as u8 + 1, 4096).unwrap());
        disk.flush().unwrap();
    }
    let status: serde_json::Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    let dedup = &status["volumes"][0]["dedup"];
    assert_eq!((&dedup["saved_bytes"], &dedup["referred_segments"]), (&(64 * 4096).into(), &1.into()), "{dedup}");
    let said = place.ok(&["status", "web"]);
    assert!(said.contains("256.0 KiB written since the start were stored already"), "{said}");
    assert!((0..64).all(|n| disk.holds((20 << 20) + n * 4096, n as u8 + 1, 4096)));
    drop(disk);
    serving.stop();
    assert!(place.ok(&["check", "web", "--data"]).starts_with("web: clean"));
    place.ok(&["export", "web", "web.img"]);
    let image = std::fs::read(place.path("web.img")).unwrap();
    assert!(image[20 << 20..][..64 * 4096] == image[..64 * 4096] && image[63 * 4096] == 64);
}
