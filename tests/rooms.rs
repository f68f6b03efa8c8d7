//! The rooms of `ARCHITECTURE.md`: an arrow means "may use", and nothing points back up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What every room may use.
const EVERYBODY: &[&str] = &["units", "human", "change", "part", "tally", "outside", "device"];

/// Rooms, from the lowest on, and what else they may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("disk", &[]),
    ("keyring", &[]),
    ("codec", &["keyring"]),
    ("store", &["memory"]),
    ("space", &["codec"]),
    ("map", &["space", "codec"]),
    ("gc", &["space"]),
    ("mirror", &[]),
    ("retention", &[]),
    ("format", &["map", "space", "codec", "keyring", "store", "retention"]),
    ("dedup", &["format", "codec"]),
    ("cache", &["disk"]),
    ("journal", &["codec", "keyring", "disk"]),
    ("peer", &["journal", "codec", "keyring", "disk"]),
    // A failure has a reason wherever it happens, and is told by everybody above.
    ("error", &["format", "journal", "keyring", "store", "codec", "reading"]),
    ("reading", &["cache", "format", "map", "codec", "store", "error"]),
    (
        "engine",
        &[
            "reading",
            "format",
            "map",
            "space",
            "gc",
            "dedup",
            "mirror",
            "retention",
            "cache",
            "journal",
            "peer",
            "store",
            "codec",
            "keyring",
            "disk",
            "error",
            "memory",
        ],
    ),
    ("upkeep", &["engine", "cache", "reading", "format", "map", "space", "mirror", "codec", "store", "error"]),
    (
        "opening",
        &[
            "engine", "reading", "format", "map", "space", "gc", "mirror", "cache", "journal", "peer", "store",
            "codec", "keyring", "disk", "error",
        ],
    ),
    ("nbd", &[]),
    ("attach", &["nbd"]),
    ("pool", &["store"]),
    ("metrics", &["nbd"]),
    ("memory", &[]),
];

fn sources(at: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The rooms that a file names in its code; tests may look anywhere.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let named = lines.flat_map(|line| line.split("crate::").skip(1));
    named.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn nothing_points_back_up() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = BTreeMap::new();
    for (room, may_use) in ROOMS {
        let mut files = Vec::new();
        match root.join(room).is_dir() {
            true => sources(&root.join(room), &mut files),
            false => files.push(root.join(format!("{room}.rs"))),
        }
        files.retain(|file| !file.file_name().unwrap().to_string_lossy().ends_with("tests.rs"));
        assert!(!files.is_empty(), "there is no room {room}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let allowed = |name: &String| {
                *name == *room || may_use.contains(&name.as_str()) || EVERYBODY.contains(&name.as_str())
            };
            let others: Vec<_> = used(&text).into_iter().filter(|name| !allowed(name)).collect();
            if !others.is_empty() {
                wrong.insert(file.strip_prefix(&root).unwrap().to_path_buf(), others);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_rooms_use_each_other() {
    let uses: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    for (room, may_use) in ROOMS {
        // `error` has the reasons of `reading`, which fails with it.
        let back = may_use.iter().filter(|other| uses.get(**other).is_some_and(|back| back.contains(room)));
        let back: Vec<_> = back
            .filter(|other| (*room, **other) != ("error", "reading") && (*room, **other) != ("reading", "error"))
            .collect();
        assert!(back.is_empty(), "{room} and {back:?}");
    }
}
