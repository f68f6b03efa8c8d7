//! `ashlar upgrade`: the map of an older volume in the newest format.

use std::path::Path;

use crate::program::Place;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy(&entry, &to),
            false => assert!(std::fs::copy(&entry, &to).unwrap() > 0),
        }
    }
}

#[test]
fn an_older_volume_is_brought_into_the_newest_format_once() {
    let place = Place::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/volume-v2"), &place.path("ashlar-data"));
    assert!(place.ok(&["check", "v", "--data"]).starts_with("v: clean"));
    let serving = place.serve(&["v"]);
    let refused = place.run(&["upgrade", "v"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("it moves over as it is written; stop that server first"), "{}", refused.err);
    drop(serving);
    assert_eq!(place.ok(&["upgrade", "v"]), "the map of volume v is in the newest format now\n");
    assert_eq!(place.ok(&["upgrade", "v"]), "the map of volume v is in the newest format already\n");
    assert!(place.ok(&["check", "v", "--data"]).starts_with("v: clean"));
    let refused = place.run(&["upgrade", "w"]);
    assert!(refused.code == Some(1) && refused.err.contains("no volume"), "{refused:?}");
}
