//! `ashlar import` and `ashlar export`, by the real qemu-img.

use std::process::Command;

use crate::program::Place;

const MIB: usize = 1 << 20;

/// qemu-img is part of what tests need: one that is missing is installed.
fn qemu_img(place: &Place, args: &[&str]) -> String {
    let run = || Command::new("qemu-img").args(args).current_dir(place.path("")).output();
    let ended = run().or_else(|_| {
        let installed = Command::new("apt-get").args(["install", "-y", "-q", "qemu-utils"]).status().unwrap();
        assert!(installed.success());
        run()
    });
    let ended = ended.unwrap();
    assert!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn an_image_becomes_a_volume_and_a_snapshot_an_image() {
    let place = Place::new();
    // 5 MiB of data in 65 MiB and a half block.
    let mut image = vec![0; 65 * MIB + 512];
    image[MIB..6 * MIB].fill(7);
    image[65 * MIB..].fill(9);
    std::fs::write(place.path("disk.img"), &image).unwrap();
    qemu_img(&place, &["convert", "-f", "raw", "-O", "qcow2", "disk.img", "disk.qcow2"]);
    let said = place.ok(&["import", "disk.qcow2", "web"]);
    assert!(said.contains("created volume web of disk.qcow2: 66564 KiB"), "{said}");
    let info: serde_json::Value = serde_json::from_str(&place.ok(&["info", "web", "--json"])).unwrap();
    assert_eq!(info["mapped_bytes"], (5 * MIB + 4096) as u64, "holes stay holes: {info}");
    assert!(place.ok(&["check", "web", "--data"]).contains("web: clean"));
    let small = place.run(&["import", "disk.img", "db", "--format", "raw", "--size", "1M"]);
    assert_eq!(small.code, Some(2), "{small:?}");
    assert!(small.err.contains("disk.img has 68157952 bytes, which is more than 1048576"), "{}", small.err);
    let missing = place.run(&["import", "nothing.img", "db"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.err.contains("nothing.img"), "{}", missing.err);
    place.ok(&["import", "disk.img", "db", "--format", "raw", "--size", "80M"]);
    // A server of this host goes on, and has a part in it.
    let serving = place.serve(&["web"]);
    let mut disk = serving.attach("web").unwrap();
    disk.write(32 << 20, 3, MIB).unwrap();
    image[32 * MIB..33 * MIB].fill(3);
    place.ok(&["snapshot", "create", "web@monday"]);
    place.ok(&["export", "web@monday", "out.qcow2", "--format", "qcow2"]);
    place.ok(&["export", "web", "out.img"]);
    let there = place.run(&["export", "web", "out.img"]);
    assert_eq!(
        (there.code, there.err.contains("out.img is there already, and is not written over")),
        (Some(2), true),
        "{there:?}"
    );
    drop(disk);
    serving.stop();
    qemu_img(&place, &["compare", "-f", "qcow2", "-F", "raw", "out.qcow2", "out.img"]);
    let out = std::fs::read(place.path("out.img")).unwrap();
    assert!(out[..image.len()] == image[..] && out[image.len()..].iter().all(|byte| *byte == 0));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(place.path("out.img")).unwrap());
    assert!(blocks * 512 < 12 * MIB as u64, "{blocks} blocks of 512 bytes");
    assert_eq!(place.ok(&["snapshot", "list", "web"]).lines().count(), 2, "the one that was taken for it is gone");
}
