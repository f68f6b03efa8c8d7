//! `ashlar serve` from its start to each of its ends, and what the other commands see of it.

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;

fn info(place: &Place, volume: &str) -> Value {
    serde_json::from_str(&place.ok(&["info", volume, "--json"])).unwrap()
}

#[test]
fn without_any_configuration_there_is_a_first_volume_and_the_lines_to_attach_it() {
    let place = Place::new();
    // Another test run may have the default port, so this one thing is chosen.
    let serving = Serving::start(place.command(&["serve", "--listen", "127.0.0.1:0"]));
    let welcome = serving.welcome.clone();
    let socket = serving.socket();
    let port = welcome.lines().find_map(|line| line.strip_prefix("listening on 127.0.0.1:")).unwrap();
    let expected = format!(
        "store {url}\nstate ./ashlar-state\nlistening on 127.0.0.1:{port}\nlistening on {socket}\n\n\
         -b is the disk's sector size: give the same for the life of what is on the disk. An image that was partitioned \
         elsewhere (a cloud image, a virtual machine's disk) needs -b 512.\n\n\
         volume disk0, 10 GiB\n  \
         nbd-client 127.0.0.1 {port} /dev/nbd0 -N disk0 -b 4096 -C 2 -timeout 86400\n  \
         nbd-client -unix {socket} /dev/nbd0 -N disk0 -b 4096 -C 2 -timeout 86400\n  \
         nbd://127.0.0.1:{port}/disk0\n  \
         nbd+unix:///disk0?socket={socket}\n",
        url = place.url(),
        socket = socket.display(),
    );
    assert_eq!(welcome, expected);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    disk.flush().unwrap();
    assert!(disk.holds(0, 7, MIB));
    drop(disk);
    serving.stop();
    assert!(!socket.exists());
    let info = info(&place, "disk0");
    assert_eq!((&info["size"], &info["mapped_bytes"]), (&(10u64 << 30).into(), &MIB.into()));
    assert_eq!(info["holder"], Value::Null);
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; 1.0 MiB of data in "));
}

/// A bug of the server's own, somewhere on the way to the store: it ends at once and says so, rather than going on with a part of
/// itself, and the next start has everything.
#[test]
fn a_panic_ends_the_server_with_its_own_code_and_the_next_start_has_all_that_was_acknowledged() {
    const STEP: usize = 64 << 10;
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let is_said = |code: Option<i32>, said: &str| {
        assert_eq!(code, Some(70), "{said}");
        let words =
            "ashlar: a part of the server has failed, which is a bug, and the server ends: store.faults.panic: ";
        assert!(said.contains(words) && said.contains("what was acknowledged is in the journal"), "{said}");
    };
    // What stands in each step; nothing if a write to it was under way at the end, so that either may be there.
    let mut written: Vec<Option<u8>> = Vec::new();
    let mut lives = 0;
    while lives < 3 {
        let mut command = place.command(&["serve", "--listen", "none"]);
        command.env("ASHLAR_STORE__FAULTS__PANIC", "8").env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
        // It may come to that while the volume is opened, or right after it.
        let serving = match Serving::try_start(command) {
            Ok(serving) => serving,
            Err((code, said)) => {
                is_said(code, &said);
                continue;
            }
        };
        if let Ok(mut disk) = serving.attach("disk0") {
            lives += 1;
            for i in 0.. {
                let at = i as usize % 1000;
                let byte = (lives * 80 + i % 80) as u8;
                written.resize(written.len().max(at + 1), None);
                written[at] = None;
                if disk.write((at * STEP) as u64, byte, STEP).is_err() {
                    break;
                }
                written[at] = Some(byte);
                if i % 2 == 0 && disk.flush().is_err() {
                    break;
                }
            }
        }
        // For one that went on nevertheless.
        serving.signal(Signal::TERM);
        let (code, said) = serving.end();
        is_said(code, &said);
    }
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    assert!(written.len() > 3, "{written:?}");
    for (at, byte) in written.iter().enumerate().filter_map(|(at, byte)| Some((at, (*byte)?))) {
        assert!(disk.holds((at * STEP) as u64, byte, STEP), "step {at}: {byte} was acknowledged");
    }
    drop(disk);
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; "));
}

#[test]
fn a_second_start_finds_what_was_written_and_makes_no_other_volume() {
    let place = Place::new();
    place.ok(&["create", "mine", "--size", "1G"]);
    let serving = place.serve(&[]);
    serving.attach("mine").unwrap().write(4096, 1, 4096).unwrap();
    serving.stop();
    let serving = place.serve(&[]);
    assert!(serving.attach("mine").unwrap().holds(4096, 1, 4096));
    serving.stop();
    let listed: Value = serde_json::from_str(&place.ok(&["list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

/// As after a start of the host at which the store's filesystem was not mounted: a first volume there would take the place of the one
/// that clients come back to.
#[test]
fn a_store_that_is_empty_all_of_a_sudden_gets_no_first_volume() {
    let place = Place::new();
    let serving = place.serve(&[]);
    serving.attach("disk0").unwrap();
    serving.stop();
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    for is_mount_point_left in [false, true] {
        if is_mount_point_left {
            std::fs::create_dir(place.path("ashlar-data")).unwrap();
        }
        let why = "ashlar-data is empty, but volumes of it were served";
        let (code, said) = Serving::try_start(place.command(&["serve", "--listen", "none"])).map(drop).unwrap_err();
        assert!(code == Some(1) && said.contains(why), "{code:?} {said}");
        for command in [&["list"][..], &["list", "--json"]] {
            let ended = place.run(command);
            assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{ended:?}");
            assert!(ended.err.contains(why), "{ended:?}");
        }
        assert_eq!(place.path("ashlar-data").exists(), is_mount_point_left);
    }
    // Another store of this server may well be empty.
    place.serve(&["--store", &format!("file://{}", place.path("other").display())]).stop();
    // Whoever says so begins anew.
    place.ok(&["create", "other", "--size", "1G"]);
    place.serve(&[]).stop();
    std::fs::remove_dir_all(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("away"), place.path("ashlar-data")).unwrap();
    let serving = place.serve(&[]);
    serving.attach("disk0").unwrap();
    serving.stop();
    // A volume that was deleted did not vanish.
    place.ok(&["delete", "disk0", "--yes"]);
    assert!(place.ok(&["list"]).starts_with("no volume in "));
    place.serve(&[]).stop();
}

#[test]
fn a_volume_that_another_process_creates_is_an_export_at_once() {
    let place = Place::new();
    let serving = place.serve(&[]);
    assert!(serving.attach("later").is_err());
    place.ok(&["create", "later", "--size", "64M"]);
    serving.attach("later").unwrap().write(0, 3, 512).unwrap();
    serving.stop();
    assert_eq!(info(&place, "later")["mapped_bytes"], 4096);
}

#[test]
fn only_the_named_volumes_are_served() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "64M"]);
    place.ok(&["create", "b", "--size", "64M"]);
    let serving = place.serve(&["b"]);
    assert!(serving.attach("a").is_err());
    assert!(serving.attach("b").is_ok());
    serving.stop();
    assert_eq!(info(&place, "a")["epoch"], 0);
}

/// F2: no client changes what is served read-only, and the others are as they were; the server takes only those.
#[test]
fn f2_volumes_that_are_served_read_only_are_changed_by_no_client() {
    let place = Place::new();
    for name in ["a", "b"] {
        place.ok(&["create", name, "--size", "64M"]);
        let serving = place.serve(&[name]);
        serving.attach(name).unwrap().write(0, 5, MIB).unwrap();
        serving.stop();
    }
    for (epochs, flag, is_read_only) in
        [([1, 1], "--read-only", [true, true]), ([2, 1], "--read-only=b", [false, true])]
    {
        let serving = place.serve(&["a", "b", flag]);
        let said = serving.welcome.contains("volume a, 64 MiB, read-only\n");
        assert_eq!(said, is_read_only[0], "{}", serving.welcome);
        for ((name, epoch), is_read_only) in ["a", "b"].into_iter().zip(epochs).zip(is_read_only) {
            let mut disk = serving.attach(name).unwrap();
            let written = disk.write(0, 6, 4096).and_then(|()| disk.flush());
            assert_eq!(written.is_err(), is_read_only, "{name} with {flag}: {written:?}");
            assert!(serving.attach(name).unwrap().holds(0, if is_read_only { 5 } else { 6 }, 4096));
            assert_eq!(info(&place, name)["epoch"], epoch, "whether the server has taken it");
        }
        serving.stop();
    }
}

#[test]
fn a_killed_server_loses_no_acknowledged_write() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 9, MIB).unwrap();
    serving.kill();
    assert_eq!(info(&place, "disk0")["mapped_bytes"], 0);
    let serving = place.serve(&[]);
    assert!(serving.attach("disk0").unwrap().holds(0, 9, MIB));
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; 1.0 MiB of data in "));
}

#[test]
fn what_the_journal_holds_gets_into_the_store_even_if_no_client_comes() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 9, MIB).unwrap();
    serving.kill();
    place.serve(&[]).stop();
    assert_eq!(info(&place, "disk0")["mapped_bytes"], MIB);
}

#[test]
fn a_second_signal_leaves_at_once_and_the_journal_keeps_the_rest() {
    let place = Place::new();
    let mut serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 5, MIB).unwrap();
    // The store goes away, so the first signal cannot bring anything into it.
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    std::fs::write(place.path("ashlar-data"), "").unwrap();
    serving.signal(Signal::TERM);
    serving.wait_for_log("trying again");
    serving.insist(Signal::INT);
    let (code, log) = serving.end();
    assert_eq!(code, Some(130), "{log}");
    let words = "leaving at the second signal: 1.0 MiB not in the store yet; the journal in ./ashlar-state keeps what was \
                 acknowledged, and the next start on this host goes on from there";
    assert!(log.contains(words), "{log}");

    std::fs::remove_file(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("away"), place.path("ashlar-data")).unwrap();
    let serving = place.serve(&[]);
    assert!(serving.attach("disk0").unwrap().holds(0, 5, MIB));
    serving.stop();
}

#[test]
fn a_volume_of_another_server_is_taken_only_when_told_to() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let ended = place.run(&["serve", "disk0", "--listen", "none", "--state", "first", "--takeover"]);
    let needless = "ashlar: --takeover was given for volume \"disk0\", but no other server has the volume open; ";
    assert!(ended.code == Some(1) && ended.err.starts_with(needless), "{}", ended.err);
    place.serve(&["disk0", "--state", "dead"]).kill();
    let first = place.serve(&["disk0", "--state", "first", "--takeover"]);
    let mut disk = first.attach("disk0").unwrap();
    disk.write(0, 1, 4096).unwrap();
    disk.flush().unwrap();

    let ended = place.run(&["serve", "disk0", "--listen", "none", "--state", "second"]);
    assert_eq!(ended.code, Some(1));
    let holder = info(&place, "disk0")["holder"].clone();
    let start = format!(
        "ashlar: volume \"disk0\" was opened by server {} ({}) in epoch 2 since ",
        holder["server_name"].as_str().unwrap(),
        holder["server"].as_str().unwrap()
    );
    let end = " and not closed; if that server is gone, open it with --takeover: from then on the other server can write no more [A03]\n";
    assert!(ended.err.starts_with(&start) && ended.err.ends_with(end), "{}", ended.err);

    let second = place.serve(&["disk0", "--state", "second", "--takeover"]);
    assert!(second.attach("disk0").unwrap().holds(0, 1, 4096));
    // The first server's next commit fails, and from then on it has nothing to offer: its flag held for its own start, or
    // else the two would take the volume from each other for ever.
    let _ = disk.write(0, 2, 4096);
    assert!(disk.flush().is_err());
    assert!(first.attach("disk0").is_err());
    assert!(second.attach("disk0").unwrap().holds(0, 1, 4096));
    second.stop();
    // What it acknowledged and could not bring home is not forgotten because a client asked again.
    let status = place.ok(&["status", "--state", "first"]);
    assert!(status.contains("volume disk0 has ended and did not open again: "), "{status}");
    first.signal(Signal::TERM);
    let (code, log) = first.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("volume disk0 did not close: "), "{log}");
    let end = "ashlar: volume disk0 did not close, see above; what is not in the store is in the journal in first";
    assert!(log.ends_with(end), "{log}");
    assert!(!log.contains("everything is in the store"), "{log}");
}

/// It learns of it only at its stop, and says so once.
#[test]
fn a_displaced_server_says_once_at_its_stop_who_took_the_volume() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let first = place.serve(&["disk0", "--state", "first"]);
    let second = place.serve(&["disk0", "--state", "second", "--takeover"]);
    first.signal(Signal::TERM);
    let (code, log) = first.end();
    assert_eq!((code, log.matches(" was taken over by ").count()), (Some(1), 1), "{log}");
    assert!(log.contains("volume disk0 did not close: volume disk0 was taken over by "), "{log}");
    second.stop();
}

#[test]
fn an_open_volume_is_deleted_only_when_told_to() {
    let place = Place::new();
    let serving = place.serve(&["--state", "first"]);
    let _disk = serving.attach("disk0").unwrap();
    let ended = place.run(&["delete", "disk0", "--yes"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains(" and not closed; if it is to go all the same, delete it with --takeover"),
        "{}",
        ended.err
    );
    serving.kill();
    let out = place.ok(&["delete", "disk0", "--yes", "--takeover"]);
    assert!(
        out.starts_with("deleted volume disk0 with ") && out.ends_with(&format!(" object from {}\n", place.url())),
        "{out}"
    );
    let out = place.ok(&["list"]);
    assert_eq!(out, format!("no volume in {}; make one with: ashlar create NAME --size 100G\n", place.url()));
}

#[test]
fn the_service_manager_is_told_when_clients_can_come_and_when_the_end_begins() {
    let place = Place::new();
    let manager = std::os::unix::net::UnixDatagram::bind(place.path("notify")).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let told = || {
        let mut words = [0; 256];
        let len = manager.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..len]).trim().to_owned()
    };
    let mut command = place.command(&["serve", "--listen", "none"]);
    command.env("NOTIFY_SOCKET", place.path("notify"));
    let serving = Serving::start(command);
    assert_eq!(told(), "READY=1");
    serving.stop();
    assert_eq!(told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000");
}

#[test]
fn check_tells_damage_by_its_exit_code() {
    let place = Place::new();
    let serving = place.serve(&[]);
    serving.attach("disk0").unwrap().write(0, 1, MIB).unwrap();
    serving.stop();
    let uuid = info(&place, "disk0")["uuid"].as_str().unwrap().to_owned();
    let segments = place.path(&format!("ashlar-data/disk0/{}/segments", &uuid[..8]));
    let files = |dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let largest = files(segments).flat_map(files).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&largest, bytes).unwrap();

    // The last byte is in a frame: only reading the data finds it.
    place.ok(&["check", "disk0"]);
    let ended = place.run(&["check", "disk0", "--data"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.out.starts_with("disk0: DAMAGED, 1 problem; "), "{}", ended.out);
    let ended = place.run(&["check", "--data", "--json"]);
    let reports: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, reports[0]["problems"].as_array().unwrap().len()), (Some(3), 1));
}

#[test]
fn status_shows_what_a_running_server_does_and_what_it_costs() {
    let place = Place::new();
    let ended = place.run(&["status"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("no server runs on state directory ./ashlar-state"), "{}", ended.err);
    let serving = place.serve(&[]);
    assert!(place.ok(&["status"]).ends_with("no volume is open\n"));
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    let status: Value = serde_json::from_str(&place.ok(&["status", "disk0", "--json"])).unwrap();
    let volume = &status["volumes"][0];
    assert_eq!((&volume["name"], &volume["mapped_bytes"]), (&"disk0".into(), &MIB.into()));
    assert!(volume["since_open"]["puts"].as_u64() >= Some(2), "a fence and a segment: {volume}");
    let text = place.ok(&["status"]);
    for words in ["volume           disk0", "mapped           1.0 MiB", "since the start", "PUTs", "about $0.00"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert_eq!(place.run(&["status", "other"]).code, Some(1));
    serving.stop();
    assert_eq!(place.run(&["status"]).code, Some(1), "a server that has ended does not answer");
    let text = place.ok(&["info", "disk0"]);
    assert!(text.contains("cost so far") && text.contains("bytes put per byte written"), "{text}");
}

/// Also what only waits for the next request: whoever adds up what a server holds misses nothing.
#[test]
fn status_shows_what_of_each_bound_on_memory_is_used() {
    let place = Place::new();
    let mut command = place.command(&["serve", "--listen", "none"]);
    command.env("ASHLAR_STORE__IDLE_BUFFERS", "3MiB").env("ASHLAR_CACHE__MEMORY", "5MiB");
    let serving = Serving::start(command);
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    let bound = |key: &str| {
        let kinds = status["memory"].as_array().unwrap();
        kinds.iter().find(|kind| kind["key"] == key).map(|kind| kind["bound"].as_u64().unwrap() / MIB as u64)
    };
    assert_eq!((bound("store.idle_buffers"), bound("cache.memory")), (Some(3), Some(5)), "{status}");
    serving.stop();
}

/// The least that a server works with by default, and a volume in it.
#[test]
fn a_server_keeps_to_the_memory_that_it_is_given_and_says_how_it_divides_it() {
    let place = Place::new();
    let refused = place.run(&["serve", "--memory", "200MiB"]);
    let words =
        "ashlar: flag --memory \"200MiB\": a server works with 217 MiB at least: set memory to 217 MiB or more, ";
    assert!(refused.code == Some(2) && refused.err.starts_with(words), "{refused:?}");
    let mut serving = place.serve(&["--memory", "217MiB"]);
    let line = serving.wait_for_log("memory: ");
    assert!(line.contains("memory: 217 MiB: requests 32 MiB, dirty bytes 32 MiB, "), "{line}");
    let mut disk = serving.attach("disk0").unwrap();
    let place_of = |at: u8| u64::from(at) * 16 * MIB as u64;
    for at in 0..8 {
        disk.write(place_of(at), at + 1, 16 * MIB).unwrap();
    }
    disk.flush().unwrap();
    assert!((0..8).all(|at| disk.holds(place_of(at), at + 1, 16 * MIB)));
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    let (resident, bound) = (&status["memory_total"]["resident"], &status["memory_total"]["bound"]);
    assert!(*bound == 217 * MIB && resident.as_u64().unwrap() > 0, "{status}");
    let said = place.ok(&["status"]);
    assert!(said.lines().any(|line| line.starts_with("memory ") && line.ends_with(" of 217.0 MiB")), "{said}");
    serving.stop();
}

#[test]
fn warm_fills_the_cache_and_the_disk_keeps_it() {
    let place = Place::new();
    let ended = place.run(&["warm", "disk0"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("no server answers at ./ashlar-state/ashlar.sock"), "{}", ended.err);
    place.serve(&[]).stop();
    let start = || {
        let mut command = place.command(&["serve", "--listen", "none"]);
        command
            .env("ASHLAR_CACHE__MEMORY", "256MiB")
            .env("ASHLAR_CACHE__DISK__SIZE", "64MiB")
            .env("ASHLAR_CACHE__DISK__DIRECTORY", place.path("near"));
        Serving::start(command)
    };
    let serving = start();
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, 16 * MIB).unwrap();
    disk.flush().unwrap();
    serving.kill();
    std::fs::remove_dir_all(place.path("near")).unwrap();
    let serving = start();
    let status = || -> Value { serde_json::from_str(&place.ok(&["status", "--json"])).unwrap() };
    assert_eq!(status()["cache"]["disk"]["frames"], 0);
    let said = place.ok(&["warm", "disk0", "0..16MiB"]);
    assert!(said.starts_with("16.0 MiB of volume disk0 are warm, after "), "{said}");
    let gets = || status()["volumes"][0]["since_open"]["gets"].clone();
    let before = gets();
    assert!(serving.attach("disk0").unwrap().holds(0, 1, 16 * MIB));
    assert_eq!(gets(), before);
    // All of a volume of 10 GiB that is mostly holes, with a word about the room.
    let ended = place.run(&["warm", "disk0"]);
    assert!(ended.code == Some(0) && ended.err.contains("the cache has room for 256.0 MiB of data"), "{ended:?}");
    for (args, code, words) in [
        (["warm", "other", ".."], 1, "volume other cannot be had at"),
        (["warm", "disk0", "1..11G"], 2, "is not within the volume, which has 10737418240 bytes"),
        (["warm", "disk0", "5G"], 2, "is not a range"),
    ] {
        let ended = place.run(&args);
        assert!(ended.code == Some(code) && ended.err.contains(words), "{args:?}: {ended:?}");
    }
    // What has reached the disk is there after a sudden death.
    while status()["cache"]["disk"]["frames"] != 256 {
        std::thread::yield_now();
    }
    serving.kill();
    let serving = start();
    while status()["cache"]["disk"]["frames"] != 256 {
        std::thread::yield_now();
    }
    assert!(serving.attach("disk0").unwrap().holds(0, 1, 16 * MIB));
    assert_eq!(status()["cache"]["disk"]["hits"], 256);
    let text = place.ok(&["status"]);
    assert!(text.contains("of 64.0 MiB on disk (256 frames found there, 0 not, 0 bad)"), "{text}");
    serving.stop();
}

#[test]
fn check_repair_removes_what_nobody_owns_and_nothing_else() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    let folder = format!("disk0/{}", &info(&place, "disk0")["uuid"].as_str().unwrap()[..8]);
    let segment = place.path(&format!("ashlar-data/{folder}/segments/02/0000000000000002"));
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    let copy = std::fs::read(&segment).unwrap();
    disk.write(0, 2, MIB).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let held = place.run(&["check", "disk0", "--repair"]);
    assert_eq!(held.code, Some(1), "its server has the state directory: {held:?}");
    serving.stop();
    assert!(!segment.exists(), "it was dead, and the clean stop deleted it");
    // The next checkpoint forgets it.
    place.serve(&["disk0"]).stop();
    let foreign = place.path(&format!("ashlar-data/{folder}/notes.txt"));
    std::fs::write(&foreign, "mine").unwrap();
    std::fs::write(&segment, copy).unwrap();
    let ended = place.run(&["check", "disk0", "--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = [
        format!("removed {folder}/segments/02/0000000000000002: nothing needs it"),
        format!("left alone {folder}/notes.txt"),
    ];
    assert!(said.iter().all(|words| ended.err.contains(words)), "{}", ended.err);
    assert!(!segment.exists() && foreign.exists());
    assert!(ended.out.starts_with("disk0: clean; 1.0 MiB of data in "), "{}", ended.out);
}

#[test]
fn check_says_what_is_lost_and_brings_back_what_the_disk_cache_has() {
    let place = Place::new();
    std::fs::write(place.path("ashlar.toml"), "[cache.disk]\nsize = \"64MiB\"\n").unwrap();
    let serving = place.serve(&["--socket", "socket"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(3 * MIB as u64, 1, MIB).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let status = || serde_json::from_str::<Value>(&place.ok(&["status", "--json"])).unwrap();
    while status()["cache"]["disk"]["frames"] != 16 {
        std::thread::yield_now();
    }
    serving.stop();
    let folder = format!("ashlar-data/disk0/{}", &info(&place, "disk0")["uuid"].as_str().unwrap()[..8]);
    std::fs::remove_file(place.path(&format!("{folder}/segments/02/0000000000000002"))).unwrap();

    let ended = place.run(&["check", "disk0"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.out.contains("\n  lost: 1048576 bytes from byte 3145728 of the disk\n"), "{}", ended.out);
    let report: Value = serde_json::from_str(&place.run(&["check", "disk0", "--json"]).out).unwrap();
    assert_eq!(report[0]["lost"], serde_json::json!([{ "offset": 3 * MIB, "length": MIB }]));
    assert_eq!((&report[0]["in_journal"], &report[0]["instead_of_newest"]), (&serde_json::json!([]), &Value::Null));

    let ended = place.run(&["check", "disk0", "--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("brought back 1048576 bytes from byte 3145728 of the disk"), "{}", ended.err);
    let serving = place.serve(&["disk0", "--socket", "socket"]);
    assert!(serving.attach("disk0").unwrap().holds(3 * MIB as u64, 1, MIB));
    serving.stop();
}

/// The newest checkpoint cannot be read, and the server died: nobody can open the volume, and the log has everything.
#[test]
fn a_damaged_checkpoint_of_a_dead_server_is_dropped_by_itself_or_when_told_that_it_is_gone() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = place.serve(&["disk0", "--socket", "socket", "--state", "first"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    disk.flush().unwrap();
    let copy = |from: &str, to: &str| {
        let done =
            std::process::Command::new("cp").args(["-a", from, to]).current_dir(place.path(".")).status().unwrap();
        assert!(done.success());
    };
    copy("ashlar-data", "with-the-whole-log");
    serving.stop();
    place.serve(&["disk0", "--state", "first"]).kill();
    // What was deleted is there again.
    copy("with-the-whole-log/.", "ashlar-data");
    let checkpoints = glob(&place.path("ashlar-data/disk0"), "checkpoints");
    let [newest] = &checkpoints[..] else { panic!("{checkpoints:?}") };
    let mut bytes = std::fs::read(newest).unwrap();
    bytes[60] ^= 4;
    std::fs::write(newest, bytes).unwrap();

    let ended = place.run(&["check", "disk0"]);
    assert!(ended.code == Some(3) && ended.out.contains("--repair goes back to it"), "{ended:?}");
    let ended = place.run(&["check", "disk0", "--repair", "--state", "second"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains(" in epoch 2 since ") && ended.err.contains("if it is gone for good, add --takeover"),
        "{ended:?}"
    );
    assert!(ended.out.contains("DAMAGED"), "what is wrong is told all the same: {ended:?}");
    copy("ashlar-data", "as-it-was");
    let ended = place.run(&["check", "disk0", "--repair", "--state", "second", "--takeover"]);
    assert!(ended.code == Some(0) && ended.out.contains("disk0: clean"), "{ended:?}");

    // On the dead server's own host no flag is needed.
    std::fs::remove_dir_all(place.path("ashlar-data")).unwrap();
    std::fs::rename(place.path("as-it-was"), place.path("ashlar-data")).unwrap();
    let ended = place.run(&["check", "disk0", "--repair", "--state", "first"]);
    assert!(ended.code == Some(0) && ended.out.contains("disk0: clean"), "{ended:?}");
    let serving = place.serve(&["disk0", "--state", "first"]);
    assert!(serving.attach("disk0").unwrap().holds(0, 7, MIB));
    serving.stop();
}

/// The files in the folders of that name, in order.
fn glob(folder: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match (entry.is_dir(), folder.ends_with(name)) {
            (true, _) => found.extend(glob(&entry, name)),
            (false, true) => found.push(entry),
            (false, false) => {}
        }
    }
    found.sort();
    found
}

#[test]
fn what_create_prints_serves_the_volume() {
    let place = Place::new();
    let line = |args: &[&str]| place.ok(args).lines().last().unwrap().to_owned();
    let plain = format!("serve it with: ashlar serve a --store {}", place.url());
    assert_eq!(line(&["create", "a", "--size", "1G"]), plain);
    let (state, plain) = ("else where", format!("serve it with: ashlar serve b --store {}", place.url()));
    assert_eq!(line(&["create", "b", "--size", "1G", "--state", state]), format!("{plain} --state 'else where'"));
    // The next command would read another file, and find no key.
    std::fs::write(place.path("other.toml"), "state = \"by-file\"\n").unwrap();
    let hint = line(&["create", "c", "--size", "1G", "--config", "other.toml"]);
    assert!(hint.ends_with(" --config other.toml"), "{hint}");
    std::fs::write(place.path("the key"), [7; 32]).unwrap();
    let hint = line(&["create", "e", "--size", "1G", "--key-file", "the key"]);
    assert!(hint.ends_with(" --key-file 'the key'"), "{hint}");
    let hint = line(&["create", "d", "--size", "1G", "--store", "file://./with space"]);
    assert!(hint.contains(" --store 'file://") && hint.ends_with("/with space'"), "{hint}");
}

/// A client that comes back to a name gets the volume that it had, or none.
#[test]
fn a_new_volume_of_a_name_is_not_served_to_the_clients_of_the_old_one() {
    let place = Place::new();
    let serving = place.serve(&["--socket", "socket"]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    place.ok(&["delete", "disk0", "--yes", "--takeover"]);
    place.ok(&["create", "disk0", "--size", "10G"]);
    disk.write(0, 2, MIB).unwrap();
    assert!(disk.flush().is_err());
    drop(disk);
    assert!(serving.attach("disk0").is_err());
    assert_eq!(info(&place, "disk0")["epoch"], 0, "nobody opened it");
    serving.kill();
    let serving = place.serve(&["disk0"]);
    assert!(serving.attach("disk0").unwrap().holds(0, 0, MIB));
    serving.stop();
}

#[test]
fn create_and_config_speak_json() {
    let place = Place::new();
    let created: Value =
        serde_json::from_str(&place.ok(&["create", "db", "--size", "1.5G", "--block-size", "512", "--json"])).unwrap();
    assert_eq!(
        (&created["name"], &created["size"], &created["block_size"]),
        (&"db".into(), &(3u64 << 29).into(), &512.into())
    );
    assert_eq!(created["uuid"], info(&place, "db")["uuid"]);
    let ended = Ended::of(place.command(&["config", "--json"]).env("ASHLAR_VOLUME__SEGMENT_SIZE", "16M"));
    let config: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(config["volume"]["segment_size"], "16 MiB");
}

#[test]
fn every_command_explains_itself() {
    let place = Place::new();
    let help = place.ok(&["--help"]);
    for code in ["0 ", "1 ", "2 ", "3 ", "70 ", "130 "] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(code)), "exit code {code}is not in:\n{help}");
    }
    for command in ["serve", "create", "list", "info", "status", "top", "evict", "warm", "check", "delete", "config"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in:\n{help}");
        let own = place.ok(&[command, "--help"]);
        assert!(own.contains("\nExamples:\n"), "{command} has no example:\n{own}");
    }
}
