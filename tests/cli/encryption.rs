//! Encrypted volumes, as a user has them: created with a key, unlocked with it, keys changed, nothing shown.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;

use super::program::{Ended, Place};

const PASSPHRASE: &str = "correct horse battery staple";
const MIB: usize = 1 << 20;

/// A directory with a file for each secret.
fn place() -> Place {
    let place = Place::new();
    let line = format!("{PASSPHRASE}\n");
    let secrets: [(&str, &[u8]); 4] =
        [("passphrase", line.as_bytes()), ("other", b"another passphrase"), ("wrong", b"wrong"), ("key", &[0xA7; 32])];
    for (name, secret) in secrets {
        std::fs::write(place.path(name), secret).unwrap();
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    place
}

fn create(place: &Place) -> Value {
    let args = ["create", "db", "--size", "1G", "--passphrase-file", "passphrase", "--json"];
    serde_json::from_str(&place.ok(&args)).unwrap()
}

/// A server of all volumes goes on without one whose key it has not, and says each thing once, however many volumes there are.
#[test]
fn a_server_of_all_volumes_says_once_what_is_amiss_with_keys() {
    let place = place();
    create(&place);
    place.ok(&["create", "other", "--size", "1G", "--passphrase-file", "other"]);
    place.ok(&["create", "third", "--size", "1G", "--passphrase-file", "passphrase"]);
    std::fs::set_permissions(place.path("passphrase"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let serving = place.serve(&["--passphrase-file", "passphrase"]);
    drop(serving.attach("third").unwrap());
    serving.signal(rustix::process::Signal::TERM);
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("volume \"other\" stays locked").count(), 1, "{log}");
    assert_eq!(log.matches("passphrase holds a secret and can be read by others (mode 644)").count(), 1, "{log}");
}

fn locked(ended: &Ended, words: &str) {
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.err.contains("volume \"db\" stays locked") && ended.err.contains(words), "{}", ended.err);
}

#[test]
fn an_encrypted_volume_opens_with_its_key_and_says_at_once_if_that_is_wrong() {
    let place = place();
    assert_eq!(create(&place)["seal"], "chacha20-poly1305");
    for command in ["info", "check", "serve"] {
        locked(&place.run(&[command, "db"]), "no key was given");
        locked(&place.run(&[command, "db", "--passphrase-file", "wrong"]), "opens none of its 2 key slots");
    }
    assert!(place.ok(&["list"]).contains("locked"));
    let missing = place.run(&["info", "db", "--key-file", "nowhere"]);
    locked(&missing, "the key file nowhere cannot be read: No such file or directory");

    let serving = place.serve(&["db", "--passphrase-file", "passphrase"]);
    assert!(serving.welcome.contains("volume db, 1 GiB, encrypted"), "{}", serving.welcome);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, b'q', MIB).unwrap();
    disk.flush().unwrap();
    serving.stop();
    assert!(place.ok(&["check", "db", "--data", "--passphrase-file", "passphrase"]).contains("clean"));
    let serving = place.serve(&["db", "--passphrase-file", "passphrase"]);
    assert!(serving.attach("db").unwrap().holds(0, b'q', MIB));
    serving.stop();
}

#[test]
fn a_killed_server_finds_its_sealed_journal() {
    let place = place();
    create(&place);
    let serving = place.serve(&["db", "--passphrase-file", "passphrase"]);
    serving.attach("db").unwrap().write(4096, b'w', MIB).unwrap();
    serving.kill();
    let serving = place.serve(&["--passphrase-file", "passphrase"]);
    assert!(serving.attach("db").unwrap().holds(4096, b'w', MIB));
    serving.stop();
}

#[test]
fn a_key_comes_from_a_file_the_environment_a_command_or_the_recovery_key() {
    let place = place();
    let created = create(&place);
    std::fs::write(place.path("paper"), created["recovery_key"].as_str().unwrap().to_lowercase()).unwrap();
    std::fs::create_dir(place.path("keys")).unwrap();
    std::fs::write(place.path("keys/db"), PASSPHRASE).unwrap();
    place.ok(&["info", "db", "--passphrase-file", "paper"]);
    place.ok(&["info", "db", "--passphrase-file", "keys/{volume}"]);
    place.ok(&["info", "db", "--key-command", "test $ASHLAR_VOLUME = db && cat keys/{volume}"]);
    let environment = Ended::of(place.command(&["info", "db"]).env("ASHLAR_KEYS__PASSPHRASE", PASSPHRASE));
    assert_eq!(environment.code, Some(0), "{environment:?}");
    std::fs::write(place.path("ashlar.toml"), "[keys]\npassphrase_file = \"keys/{volume}\"\n").unwrap();
    place.ok(&["info", "db"]);
    locked(&place.run(&["info", "db", "--key-command", "exit 7"]), "the key command \"exit 7\" failed: exit status: 7");
    // With a key in the configuration new volumes are encrypted too.
    std::fs::write(place.path("keys/second"), "its own").unwrap();
    assert!(place.ok(&["create", "second", "--size", "1G"]).contains("encrypted"));
    place.ok(&["info", "second"]);
    assert!(place.ok(&["create", "third", "--size", "1G", "--no-encryption"]).contains("not encrypted"));
}

#[test]
fn bad_secrets_are_refused_before_anything_is_created() {
    let place = place();
    std::fs::write(place.path("empty"), "\n").unwrap();
    std::fs::write(place.path("short"), [7; 31]).unwrap();
    for (flag, file, words) in [
        ("--passphrase-file", "empty", "the passphrase file empty: it is empty"),
        ("--key-file", "short", "the key file short: a key file of 31 bytes could be guessed"),
        ("--passphrase-file", "key", "the passphrase file key: it is not UTF-8 text"),
    ] {
        let ended = place.run(&["create", "db", "--size", "1G", flag, file]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains(words), "{}", ended.err);
    }
    let ended = place.run(&["create", "db", "--size", "1G", "--encrypt"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("there is no terminal to ask for a passphrase"), "{}", ended.err);
    assert!(place.ok(&["list"]).contains("no volume in"));
}

#[test]
fn slots_come_and_go_and_data_stays() {
    let place = place();
    create(&place);
    let slots =
        |place: &Place| -> Vec<Value> { serde_json::from_str(&place.ok(&["key", "list", "db", "--json"])).unwrap() };
    let add = ["key", "add", "db", "--passphrase-file", "passphrase", "--new-key-file", "key"];
    assert!(place.ok(&add).contains("added slot 3"));
    place.ok(&["info", "db", "--key-file", "key"]);
    let change = ["key", "change", "db", "--passphrase-file", "passphrase", "--new-passphrase-file", "other"];
    assert!(place.ok(&change).contains("slot 1 of volume db opens with the new passphrase only"));
    locked(&place.run(&["info", "db", "--passphrase-file", "passphrase"]), "opens none of its 3");
    place.ok(&["info", "db", "--passphrase-file", "other"]);
    assert!(place.ok(&["key", "remove", "db", "1", "--key-file", "key"]).contains("removed slot 1 (passphrase)"));
    place.ok(&["key", "remove", "db", "2", "--key-file", "key"]);
    let last = place.run(&["key", "remove", "db", "3", "--key-file", "key"]);
    assert!(last.code == Some(1) && last.err.contains("slot 3 is the only one"), "{last:?}");
    assert!(place.run(&["key", "remove", "db", "9", "--key-file", "key"]).err.contains("has no key slot 9"));
    assert_eq!(slots(&place).len(), 1);
    assert_eq!((&slots(&place)[0]["slot"], &slots(&place)[0]["kind"]), (&3.into(), &"key-file".into()));
    // What opened the removed slots is not in the store any more.
    let metas: Vec<_> = std::fs::read_dir(place.path("ashlar-data/db/meta")).unwrap().collect();
    assert_eq!(metas.len(), 1);
    place.ok(&["create", "plain", "--size", "1G"]);
    assert!(place.run(&["key", "list", "plain"]).err.contains("volume plain is not encrypted"));
}

#[test]
fn a_data_key_is_rotated_with_and_without_a_server() {
    let place = place();
    create(&place);
    let with_key = ["db", "--passphrase-file", "passphrase"];
    let serving = place.serve(&with_key);
    let mut disk = serving.attach("db").unwrap();
    disk.write(0, b'r', 3 * MIB).unwrap();
    disk.flush().unwrap();
    let rotated = place.ok(&["key", "rotate", "db", "--passphrase-file", "passphrase"]);
    assert!(rotated.contains("seals with data key 2 from now on") && rotated.contains("recovery key: "), "{rotated}");
    assert!(rotated.contains("all earlier recovery keys, which open the volume no longer"), "{rotated}");
    assert!(rotated.contains("all of volume db is sealed with the new data key"), "{rotated}");
    assert!(disk.holds(0, b'r', 3 * MIB));
    serving.stop();
    let rotated = place.ok(&["key", "rotate", "db", "--passphrase-file", "passphrase"]);
    assert!(rotated.contains("data key 3") && rotated.contains("all of volume db"), "{rotated}");
    assert!(place.ok(&["check", "db", "--data", "--passphrase-file", "passphrase"]).contains("clean"));
    let serving = place.serve(&with_key);
    assert!(serving.attach("db").unwrap().holds(0, b'r', 3 * MIB));
    // What snapshots need stays as it is, and nobody waits for it.
    place.ok(&["snapshot", "create", "db@kept"]);
    let rotated = place.ok(&["key", "rotate", "db", "--passphrase-file", "passphrase"]);
    assert!(rotated.contains("but for what its snapshots and clones need of what was written before"), "{rotated}");
    assert!(!place.ok(&["status", "db"]).contains("key rotation"));
    place.ok(&["snapshot", "delete", "db@kept"]);
    serving.stop();
    // Secrets that are not here cannot be given the new key.
    place.ok(&["key", "add", "db", "--passphrase-file", "passphrase", "--new-key-file", "key"]);
    let refused = place.run(&["key", "rotate", "db", "--key-file", "key"]);
    assert!(refused.code == Some(2) && refused.err.contains("--drop-other-slots"), "{refused:?}");
    place.ok(&["key", "rotate", "db", "--key-file", "key", "--drop-other-slots"]);
    locked(&place.run(&["info", "db", "--passphrase-file", "passphrase"]), "opens none of its 2");
}

#[test]
fn compression_is_changed_while_a_server_has_the_volume() {
    let place = place();
    let key = ["--passphrase-file", "passphrase"];
    let serving = place.serve(&key);
    let mut disk = serving.attach("disk0").unwrap();
    assert!(
        place
            .ok(&["set", "disk0", "--compression", "zstd:7", "--passphrase-file", "passphrase"])
            .contains("zstd:7, from now on")
    );
    disk.write(0, b'z', MIB).unwrap();
    disk.flush().unwrap();
    // Twice, and with the same keys: what the server knows already must not stand in its way.
    place.ok(&["set", "disk0", "--compression", "zstd:7", "--passphrase-file", "passphrase"]);
    let status: Value = serde_json::from_str(&place.ok(&["status", "disk0", "--json"])).unwrap();
    assert_eq!(status["volumes"][0]["compression"], "zstd:7");
    serving.stop();
    assert!(
        place
            .ok(&["set", "disk0", "--compression", "none", "--passphrase-file", "passphrase"])
            .contains("the next time it is opened")
    );
    let serving = place.serve(&key);
    let mut disk = serving.attach("disk0").unwrap();
    assert!(disk.holds(0, b'z', MIB));
    disk.write(MIB as u64, b'n', MIB).unwrap();
    disk.flush().unwrap();
    serving.stop();
    let info: Value =
        serde_json::from_str(&place.ok(&["info", "disk0", "--json", "--passphrase-file", "passphrase"])).unwrap();
    assert!(info["stored_bytes"].as_u64().unwrap() > MIB as u64, "the second MiB is stored as it is: {info}");
    let bad = place.run(&["set", "disk0", "--compression", "gzip"]);
    assert!(bad.code == Some(2) && bad.err.contains("accepted are lz4, zstd, zstd:1 to zstd:19, and none"), "{bad:?}");
}

#[test]
fn a_store_that_was_put_back_is_noticed() {
    let place = place();
    create(&place);
    let serve = |args: &[&str]| place.serve(&[&["db", "--passphrase-file", "passphrase"], args].concat());
    let write = |byte| {
        let serving = serve(&[]);
        let mut disk = serving.attach("db").unwrap();
        disk.write(0, byte, MIB).unwrap();
        disk.flush().unwrap();
        serving.stop();
    };
    let copy = |from: &str, to: &str| {
        let _ = std::fs::remove_dir_all(place.path(to));
        let copied = std::process::Command::new("cp").arg("-a").args([place.path(from), place.path(to)]).status();
        assert!(copied.unwrap().success());
    };
    write(b'1');
    copy("ashlar-data", "backup");
    write(b'2');
    copy("backup", "ashlar-data");
    let refused = place.run(&["serve", "db", "--listen", "none", "--passphrase-file", "passphrase"]);
    assert!(refused.code == Some(1) && refused.err.contains("volume \"db\" has gone back"), "{refused:?}");
    assert!(refused.err.contains("--accept-rollback"), "{}", refused.err);
    let serving = serve(&["--accept-rollback"]);
    assert!(serving.attach("db").unwrap().holds(0, b'1', MIB));
    serving.stop();
    serve(&[]).stop();
}

#[test]
fn with_keys_required_a_plain_volume_is_refused() {
    let place = place();
    place.ok(&["create", "db", "--size", "1G"]);
    let ended = Ended::of(place.command(&["info", "db"]).env("ASHLAR_KEYS__REQUIRED", "true"));
    locked(&ended, "it is not encrypted, and keys.required says that every volume must be");
}

/// Runs a command on a terminal of its own, where somebody answers each question; returns all that it showed.
fn on_a_terminal(place: &Place, args: &[&str], answers: &[(&str, &str)]) -> (Option<i32>, String) {
    use rustix::termios::{LocalModes, tcgetattr};
    let (mut child, mut screen) = super::program::on_a_terminal(place.command(args));
    let (mut shown, mut answered, mut buffer) = (String::new(), 0, [0; 4096]);
    // Reading fails once nobody has the terminal any more.
    while let Ok(read @ 1..) = screen.read(&mut buffer) {
        shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if let Some((question, answer)) = answers.get(answered)
            && shown.contains(question)
        {
            // Whatever comes before the echo is turned off is thrown away, as for every program that asks for secrets.
            while tcgetattr(&screen).unwrap().local_modes.contains(LocalModes::ECHO)
                && child.try_wait().unwrap().is_none()
            {
                std::thread::yield_now();
            }
            writeln!(screen, "{answer}").unwrap();
            answered += 1;
        }
    }
    (child.wait().unwrap().code(), shown)
}

#[test]
fn a_terminal_is_asked_where_no_key_is_configured() {
    let place = place();
    let twice = [("New passphrase of volume db", "typed in"), ("The same once more", "typed in")];
    let (code, shown) = on_a_terminal(&place, &["create", "db", "--size", "1G", "--encrypt"], &twice);
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("typed in"), "what is typed is not shown: {shown}");
    let info = |answer| on_a_terminal(&place, &["info", "db"], &[("Passphrase of volume db", answer)]);
    assert_eq!(info("typed in").0, Some(0));
    assert_eq!(info("something else").0, Some(4));
}

/// Whether the memory of a process holds the bytes; `None` if this user may not look.
fn memory_holds(pid: u32, wanted: &[u8]) -> Option<bool> {
    let memory = match std::fs::File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return None,
        Err(error) => panic!("{error}"),
    };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let readable = maps.lines().filter(|line| line.contains(" rw"));
    Some(readable.into_iter().any(|line| {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        // Some mappings cannot be read although they say so.
        let read = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, start).unwrap_or(0);
        contains(&bytes[..read], wanted)
    }))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let first = wanted[0];
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// The passphrase is nowhere that somebody else may look: neither in the log at its most talkative, nor in the arguments,
/// nor in what configuration and status show, nor in memory any more; the process leaves no core dump, and its keys are locked.
#[test]
fn secrets_stay_in_the_process() {
    let place = place();
    create(&place);
    let mut command = place.command(&["serve", "db", "--listen", "none", "--passphrase-file", "passphrase"]);
    command.env("ASHLAR_LOG__LEVEL", "trace").stdin(Stdio::null());
    let serving = super::program::Serving::start(command);
    serving.attach("db").unwrap().write(0, 1, MIB).unwrap();
    let of_process = |name: &str| std::fs::read(format!("/proc/{}/{name}", serving.pid())).unwrap();
    let text = |name: &str| String::from_utf8(of_process(name)).unwrap();
    let limits = text("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let status = text("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    assert_ne!(locked.trim(), "0 kB", "the data key is locked into memory");
    // Once the volume is unlocked, the passphrase is gone. Whoever is not root is not even allowed to look.
    if let Some(holds) = memory_holds(serving.pid(), PASSPHRASE.as_bytes()) {
        assert!(!holds, "the passphrase is still in memory");
        assert_eq!(memory_holds(serving.pid(), b"ashlar-state"), Some(true), "the search finds what is there");
    }
    let arguments = of_process("cmdline");
    let shown = [place.ok(&["status", "--json"]), place.ok(&["config", "--passphrase-file", "passphrase"])];
    serving.signal(rustix::process::Signal::TERM);
    let (code, log) = serving.end();
    assert_eq!(code, Some(0));
    let environment = Ended::of(
        place.command(&["config", "--json"]).env("ASHLAR_KEYS__PASSPHRASE", PASSPHRASE).env("RUST_BACKTRACE", "1"),
    );
    for place in [log.as_bytes(), &arguments, shown[0].as_bytes(), shown[1].as_bytes(), environment.out.as_bytes()] {
        assert!(!place.windows(13).any(|window| window == b"correct horse"));
    }
    assert!(environment.out.contains("\"***\""), "{}", environment.out);
}
