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

/// A volume counts as the image that it was made of, whatever of it is in the log only, and so does a snapshot of it.
#[test]
fn a_volume_is_counted_as_the_image_that_it_holds() {
    const MIB: usize = 1 << 20;
    let place = Place::new();
    let mut image = vec![0; 33 * MIB];
    let mut x = 1_u64;
    for byte in &mut image[3 * MIB + 4096..5 * MIB + 12288] {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1);
        *byte = (x >> 56) as u8;
    }
    image.copy_within(3 * MIB + 4096..4 * MIB, 20 * MIB);
    std::fs::write(place.path("disk.img"), &image).unwrap();
    place.ok(&["import", "disk.img", "web", "--format", "raw"]);
    let counted = |of: &[&str]| {
        let said = place.ok(&[&["bench", "--json", "--dedup"], of].concat());
        let rows: Vec<Value> = serde_json::from_str(&said).unwrap();
        let without_name = |mut row: Value| {
            row.as_object_mut().unwrap().remove("image");
            row
        };
        rows.into_iter().map(without_name).collect::<Vec<Value>>()
    };
    let one = counted(&["disk.img"]).remove(0);
    assert!(one["blocks"].as_u64() < one["compressed"].as_u64(), "{one}");
    assert_eq!(counted(&["web"]), std::slice::from_ref(&one));
    place.ok(&["snapshot", "create", "web@monday"]);
    let serving = place.serve(&["web"]);
    let mut disk = serving.attach("web").unwrap();
    disk.write(32 << 20, 3, 4096).unwrap();
    disk.flush().unwrap();
    let both = counted(&["web@monday", "web"]);
    assert_eq!(both[0], one);
    assert_eq!(both[1]["data"].as_u64(), one["data"].as_u64().map(|data| data + 4096), "{both:?}");
    drop(disk);
    serving.stop();
    let neither = place.run(&["bench", "--dedup", "nobody"]);
    assert_eq!(neither.code, Some(1), "{neither:?}");
    assert!(neither.err.contains("there is no file nobody here, and as a volume: "), "{}", neither.err);
}
