use std::ffi::OsString;

use figment::value::Value;

use super::layers::known_keys;
use super::show::leaves;
use super::*;
use crate::memory::Machine;

/// What the machine of these tests has.
const MACHINE: u64 = 24 << 30;

const REFERENCE: &str = include_str!("../../config/default.toml");

/// Loads what `toml` (as `test.toml`), the variables and the flags say.
fn load_from(
    toml: &str,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Result<Effective, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.toml");
    std::fs::write(&file, toml).unwrap();
    let inputs = Inputs {
        file: Some(file.clone()),
        environment: variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect(),
        flags: flags.iter().map(|(name, key, value)| Flag { name, key, value: (*value).to_owned() }).collect(),
        machine: Machine { host: Some(MACHINE), group: None },
    };
    load(inputs).map_err(|error| error.to_string().replace(&file.display().to_string(), "test.toml"))
}

fn error_of(toml: &str, variables: &[(&str, &str)], flags: &[(&'static str, &'static str, &str)]) -> String {
    load_from(toml, variables, flags).unwrap_err()
}

#[test]
fn the_reference_file_equals_the_defaults() {
    let effective = load_from(REFERENCE, &[], &[]).unwrap();
    assert_eq!(*effective, *load_from("", &[], &[]).unwrap());
    let set = effective.leaves().into_iter().filter(|(key, _)| effective.origin(key) != Origin::Default);
    let (written, default) = (set.map(|(key, _)| key), Config::default());
    let default = Value::serialize(default).unwrap().into_dict().unwrap();
    for key in written.filter(|key| key != "memory") {
        let value = |dict: &figment::value::Dict| leaves(dict).into_iter().find(|(at, _)| *at == key);
        let now = Value::serialize(&*effective).unwrap().into_dict().unwrap();
        assert_eq!(value(&now), value(&default), "what is written is the default");
    }
}

#[test]
fn the_reference_file_has_every_key() {
    let written: toml::Table = REFERENCE.parse().unwrap();
    let nothing = load_from("", &[], &[]).unwrap();
    let follows = nothing.division();
    for (key, value) in leaves(&known_keys().unwrap()) {
        let found = key.split('.').try_fold(toml::Value::Table(written.clone()), |at, part| at.get(part).cloned());
        let last = key.rsplit('.').next().unwrap();
        match value {
            Value::Empty(..) => {
                assert!(REFERENCE.contains(&format!("\n# {last} = ")), "{key} is not in config/default.toml")
            }
            // What follows from `memory` is not set by default.
            _ if follows.note(&key).is_some() && key != "memory" => {
                assert!(found.is_none(), "{key} is set in config/default.toml");
                assert!(REFERENCE.contains(&format!("\n# {last} = ")), "{key} is not in config/default.toml")
            }
            _ => assert!(found.is_some(), "{key} is not in config/default.toml"),
        }
    }
}

#[test]
fn each_layer_overrides_the_one_before() {
    let toml = "[store]\nurl = \"file://a\"\n[serve]\nlisten = \"127.0.0.1:1\"\nsocket = \"/a\"\n";
    let variables = [
        ("ASHLAR_SERVE__LISTEN", "127.0.0.1:2"),
        ("ASHLAR_SERVE__SOCKET", "/b"),
        ("HOME", "/"),
        ("ASHLAR_TEST_X", "1"),
    ];
    let effective = load_from(toml, &variables, &[("--listen", "serve.listen", "127.0.0.1:3")]).unwrap();
    assert_eq!(effective.store.url, "file://a");
    assert_eq!(effective.serve.socket, Socket::Path("/b".into()));
    assert_eq!(effective.serve.listen, Listen::Address("127.0.0.1:3".into()));
    assert_eq!(effective.state, Config::default().state);
}

#[test]
fn a_variable_is_read_as_the_type_of_its_key() {
    let variables = [("ASHLAR_STORE__URL", "2024"), ("ASHLAR_SERVE__VOLUMES", "a, b")];
    let effective = load_from("", &variables, &[]).unwrap();
    assert_eq!(effective.store.url, "2024");
    assert_eq!(effective.serve.volumes, ["a", "b"]);
}

#[test]
fn an_unknown_key_is_refused_by_file_key_value_and_what_is_accepted() {
    assert_eq!(
        error_of("[serve]\nlisen = \"127.0.0.1:1\"\n", &[], &[]),
        "test.toml: serve.lisen = \"127.0.0.1:1\": there is no such key; did you mean serve.listen? [serve] has claim, claim_beat, claim_patience, follow, handoff_timeout, listen, listeners, read_only, socket, socket_mode, socket_owner, volumes"
    );
    assert_eq!(
        error_of("", &[("ASHLAR_SERVE__SOKET", "/a")], &[]),
        "environment variable ASHLAR_SERVE__SOKET = \"/a\": there is no such key; did you mean ASHLAR_SERVE__SOCKET? [serve] has claim, claim_beat, claim_patience, follow, handoff_timeout, listen, listeners, read_only, socket, socket_mode, socket_owner, volumes"
    );
    let at_top = error_of("listen = \"127.0.0.1:1\"\n", &[], &[]);
    assert!(
        at_top.starts_with(
            "test.toml: listen = \"127.0.0.1:1\": there is no such key; did you mean serve.listen? the top level has "
        ),
        "{at_top}"
    );
    let far = error_of("colour = true\n", &[], &[]);
    assert!(far.starts_with("test.toml: colour = true: there is no such key; the top level has "), "{far}");
}

#[test]
fn a_bad_value_is_refused_by_place_key_value_and_what_is_accepted() {
    assert_eq!(
        error_of("[log]\nformat = \"xml\"\n", &[], &[]),
        "test.toml: log.format = \"xml\": accepted is text or json"
    );
    assert_eq!(error_of("state = 5\n", &[], &[]), "test.toml: state = 5: accepted is a text in quotes");
    assert_eq!(
        error_of("serve = 5\n", &[], &[]),
        "test.toml: serve = 5: serve is a section; its keys are claim, claim_beat, claim_patience, follow, handoff_timeout, listen, listeners, read_only, socket, socket_mode, socket_owner, volumes"
    );
    assert_eq!(
        error_of("[serve]\nvolumes = [\"a\", 5]\n", &[], &[]),
        "test.toml: serve.volumes = [\"a\", 5]: item 2: accepted is a text in quotes"
    );
    let listen = "accepted is HOST:PORT, such as 127.0.0.1:10809, [::1]:10809 or 0.0.0.0:10809 (all addresses), \
                  or none for no TCP; more places, also Unix sockets and vsock, go into nbd.listeners";
    assert_eq!(
        error_of("", &[("ASHLAR_SERVE__LISTEN", "here")], &[]),
        format!("environment variable ASHLAR_SERVE__LISTEN = \"here\": {listen}")
    );
    assert_eq!(error_of("", &[], &[("--listen", "serve.listen", "here")]), format!("flag --listen \"here\": {listen}"));
}

#[test]
fn sizes_and_times_are_human_in_every_layer() {
    let variables = [("ASHLAR_VOLUME__DIRTY_BYTES", "1G"), ("ASHLAR_NBD__STALL_TIMEOUT", "1m 30s")];
    let toml = "[volume]\nsegment_size = \"16MiB\"\nread_gap = 4096\n";
    let effective = load_from(toml, &variables, &[]).unwrap();
    assert_eq!((effective.volume.segment_size, effective.volume.read_gap), (16 << 20, 4096));
    assert_eq!(effective.volume.dirty_bytes, 1 << 30);
    assert_eq!(effective.nbd.stall_timeout.as_secs(), 90);
    assert_eq!(
        error_of("[volume]\nsegment_size = \"8 potatoes\"\n", &[], &[]),
        "test.toml: volume.segment_size = \"8 potatoes\": \"8 potatoes\" is not a size; accepted is a number with a unit, \
         such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024)"
    );
    assert_eq!(
        error_of("[volume]\nwriteback_delay = 5\n", &[], &[]),
        "test.toml: volume.writeback_delay = 5: accepted is a duration with its unit, such as 500ms, 5s, 1m 30s or 2h"
    );
    assert_eq!(
        error_of("[nbd]\nmax_payload = \"5G\"\n", &[], &[]),
        "test.toml: nbd.max_payload = \"5G\": 5 GiB is too large here"
    );
}

#[test]
fn what_a_room_refuses_is_told_with_the_place_where_it_was_written() {
    assert_eq!(
        error_of("", &[("ASHLAR_VOLUME__SEGMENT_SIZE", "1K")], &[]),
        "environment variable ASHLAR_VOLUME__SEGMENT_SIZE = \"1K\": accepted is 64 KiB to 1 GiB"
    );
    assert_eq!(
        error_of("[nbd]\nmax_payload = \"4K\"\n", &[], &[]),
        "test.toml: nbd.max_payload = \"4K\": accepted is 1 MiB to 1 GiB"
    );
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_refused_by_name() {
    let missing = load(Inputs { file: Some("/nowhere/x.toml".into()), ..Inputs::default() }).unwrap_err();
    assert_eq!(missing.to_string(), "configuration file /nowhere/x.toml: No such file or directory (os error 2)");
    let broken = error_of("state = \n", &[], &[]);
    assert!(broken.starts_with("configuration file test.toml: ") && broken.contains("line 1"), "{broken}");
}

#[test]
fn the_effective_configuration_reads_back_and_says_where_each_value_came_from() {
    let toml = "[serve]\nvolumes = [\"a\"]\n";
    let effective =
        load_from(toml, &[("ASHLAR_LOG__LEVEL", "debug")], &[("--store", "store.url", "file:///x")]).unwrap();
    let shown = effective.to_toml();
    for line in ["url = \"file:///x\"  # --store", "level = \"debug\"  # ASHLAR_LOG__LEVEL", "socket = \"auto\""] {
        assert!(shown.lines().any(|shown| shown == line), "no line {line:?} in:\n{shown}");
    }
    assert!(shown.contains("volumes = [\"a\"]  # ") && shown.contains("test.toml\n"), "{shown}");
    assert_eq!(*load_from(&shown, &[], &[]).unwrap(), *effective);
    assert_eq!(effective.to_json()["serve"]["volumes"][0], "a");
}

#[test]
fn listeners_and_rules_are_tables_in_a_file_and_in_a_variable() {
    let toml = "[[serve.listeners]]\naddress = \"[::1]:0\"\ntls = \"required\"\nallow = [\"10.0.0.0/8\"]\n\
                [[nbd.access]]\nexports = [\"db*\"]\nwrite = [\"uid:0\"]\n";
    let effective = load_from(toml, &[], &[]).unwrap();
    assert_eq!(effective.serve.listeners[0].address, Place::Tcp("[::1]:0".into()));
    assert_eq!(effective.nbd.access[0].write, ["uid:0".parse().unwrap()]);
    assert_eq!(*load_from(&effective.to_toml(), &[], &[]).unwrap(), *effective, "what is shown reads back");
    let variable = [("ASHLAR_NBD__ACCESS", "[{exports=[\"db*\"],write=[\"uid:0\"]}]")];
    assert_eq!(load_from("", &variable, &[]).unwrap().nbd.access, effective.nbd.access);
}

#[test]
fn a_bad_listener_or_rule_is_refused_by_its_number_and_with_what_is_accepted() {
    for (toml, why) in [
        (
            "[[nbd.access]]\nexports = [\"x\"]\n",
            "rule 1 lets nobody in; name who may in read or write, such as write = [\"anyone\"]",
        ),
        (
            "[[nbd.access]]\nexports = [\"x\"]\nwrite = [\"me\"]\n",
            "\"me\" names nobody; accepted is an address or a range",
        ),
        (
            "[[nbd.access]]\nexports = [\"x\"]\nwirte = []\n",
            "item 1, wirte: there is no such key; accepted are exports, tls, read, write",
        ),
        (
            "[[nbd.access]]\nexports = [\"x\"]\nwrite = [\"cert:a\"]\n",
            "rule 1 names certificates, and nothing says whose are good: set nbd.tls.client_ca",
        ),
        (
            "[[serve.listeners]]\naddress = \"here\"\n",
            "accepted is HOST:PORT, such as [::]:10809, the path of a Unix socket with a slash in it, or vsock:CID:PORT",
        ),
        ("[[serve.listeners]]\naddress = \"/s\"\nmode = \"rw\"\n", "accepted are permissions in octal"),
        (
            "[[serve.listeners]]\naddress = \"/s\"\nmode = \"0660\"\n[[serve.listeners]]\naddress = \"[::1]:5\"\nallow = [\"::1\", \"cert:db1\"]\n",
            "listener 2 lets cert:db1 in, and a certificate is not shown yet when a client comes in: name it in nbd.access",
        ),
        (
            "[[serve.listeners]]\naddress = \"[::1]:5\"\nmode = \"0660\"\n",
            "listener 1 has a mode or an owner, which [::1]:5 has no file for: take them out, or name a Unix socket",
        ),
        ("[[serve.listeners]]\naddress = \"[::1]:5\"\nowner = \"root\"\n", "listener 1 has a mode or an owner"),
        ("[serve]\nsocket_mode = \"999\"\n", "accepted are permissions in octal"),
        ("[nbd.tls]\nmode = \"on\"\n", "accepted is off or allowed or required"),
    ] {
        let said = error_of(toml, &[], &[]);
        assert!(said.starts_with("test.toml: ") && said.contains(why), "{said}\nwithout\n{why}");
    }
}

/// What `toml` says on a machine with so many MiB.
fn on(mib: u64, toml: &str) -> Result<Effective, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.toml");
    std::fs::write(&file, toml).unwrap();
    let machine = Machine { host: (mib > 0).then_some(mib << 20), group: None };
    let loaded = load(Inputs { file: Some(file.clone()), machine, ..Inputs::default() });
    loaded.map_err(|error| error.to_string().replace(&file.display().to_string(), "test.toml"))
}

/// The line at the start, without its first word.
fn line(mib: u64, toml: &str) -> String {
    on(mib, toml).unwrap().division().line().strip_prefix("memory: ").unwrap().to_owned()
}

#[test]
fn memory_that_is_not_set_is_a_part_of_what_there_is() {
    assert_eq!(
        line(24 << 10, ""),
        "4 GiB, a quarter of the 24.0 GiB of the machine, but no more: requests 512 MiB, dirty bytes 1 GiB, uploads 512 MiB, collection 280 MiB, \
         map 640 MiB or more, buffers 64 MiB, cache 296 MiB or more"
    );
    assert_eq!(
        line(4 << 10, ""),
        "1 GiB, a quarter of the 4.0 GiB of the machine: requests 128 MiB, dirty bytes 256 MiB, uploads 128 MiB, collection 80 MiB, \
         map 160 MiB or more, buffers 16 MiB, cache 64 MiB or more"
    );
    assert!(line(1 << 10, "").starts_with("256 MiB, a quarter of the 1.0 GiB of the machine: requests 32 MiB,"));
    assert!(
        line(512, "").contains(
            " MiB, the least that a server works with, as a quarter of the 512.0 MiB of the machine is less: "
        )
    );
    assert!(line(0, "").starts_with("1 GiB, as it cannot be found out how much there is: "));
    let group = Machine { host: Some(24 << 30), group: Some(2 << 30) };
    let grouped = load(Inputs { machine: group, ..Inputs::default() }).unwrap();
    assert!(grouped.division().line().starts_with("memory: 512 MiB, a quarter of the 2.0 GiB of the control group: "));
}

#[test]
fn memory_is_set_as_any_other_key() {
    assert!(line(24 << 10, "memory = \"1GiB\"\n").starts_with("1 GiB: requests 128 MiB,"));
    for written in ["memory = 1073741824\n", "memory = \" 1 GiB \"\n"] {
        assert_eq!(on(8, written).unwrap().memory, Memory::Bytes(1 << 30));
    }
    let by_variable = load_from("", &[("ASHLAR_MEMORY", "512M")], &[("--memory", "memory", "2G")]).unwrap();
    assert_eq!((by_variable.memory, by_variable.volume.total_dirty_bytes), (Memory::Bytes(2 << 30), 512 << 20));
    assert_eq!(load_from("", &[("ASHLAR_MEMORY", "auto")], &[]).unwrap().memory, Memory::Bytes(4 << 30));
    for (written, why) in [
        (
            "\"much\"",
            "\"much\" is not a size; accepted is a number with a unit, such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024), or auto",
        ),
        ("true", "accepted is auto, or a size such as 512MiB or 4GiB"),
        ("-5", "accepted is auto, or a size such as 512MiB or 4GiB"),
    ] {
        assert_eq!(
            on(8, &format!("memory = {written}\n")).unwrap_err(),
            format!("test.toml: memory = {written}: {why}")
        );
    }
}

#[test]
fn what_is_set_by_itself_stays_and_is_taken_off_what_is_divided() {
    let set = on(24 << 10, "memory = \"1GiB\"\n[cache]\nmemory = \"512MiB\"\n[volume]\ntotal_map_memory = \"64MiB\"\n")
        .unwrap();
    assert_eq!((set.cache.memory, set.volume.total_map_memory), (512 << 20, 64 << 20));
    let bounds = set.division().bounds();
    assert_eq!((bounds.cache, bounds.map), (512 << 20..=512 << 20, 64 << 20..=64 << 20));
    // 448 MiB are left for 50 of 64 parts.
    assert_eq!((set.nbd.total_bytes_in_flight, set.volume.total_dirty_bytes), (69 << 20, 139 << 20));
    // More of one part is less of each other one, where it is known how much there is.
    let more = |toml: &str| on(24 << 10, toml).unwrap().volume.total_upload_bytes >> 20;
    assert_eq!(more("memory = \"1GiB\"\n[cache]\nmemory = \"512MiB\"\n"), 66);
    // And comes on top where it is not.
    assert_eq!(more("[cache]\nmemory = \"8GiB\"\n"), 512);
    assert_eq!(
        line(24 << 10, "[cache]\nmemory = \"8GiB\"\n"),
        "11.75 GiB, 4 GiB (a quarter of the 24.0 GiB of the machine, but no more) and what is set by itself: requests 512 MiB, dirty bytes 1 GiB, \
         uploads 512 MiB, collection 280 MiB, map 640 MiB or more, buffers 64 MiB, cache 8 GiB as set"
            .replace("11.75 GiB", "12032 MiB")
    );
}

#[test]
fn what_one_volume_may_have_follows_unless_it_is_set() {
    let of = |toml: &str| {
        let volume = on(24 << 10, toml).unwrap().volume.clone();
        (volume.dirty_bytes >> 20, volume.total_dirty_bytes >> 20)
    };
    assert_eq!(of(""), (256, 1024));
    assert_eq!(of("memory = \"1GiB\"\n"), (192, 256));
    assert_eq!(of("memory = \"256MiB\"\n"), (36, 49));
    assert_eq!(of("[volume]\ntotal_dirty_bytes = \"128MiB\"\n"), (96, 128));
    assert_eq!(of("memory = \"1GiB\"\n[volume]\ndirty_bytes = \"400MiB\"\n"), (400, 400));
    assert_eq!(of("[volume]\ndirty_bytes = \"3GiB\"\n"), (3072, 3072));
    let rounds = |toml: &str| {
        let gc = on(24 << 10, toml).unwrap().volume.gc.clone();
        (gc.rounds, gc.batch >> 20)
    };
    assert_eq!(rounds(""), (2, 36));
    assert_eq!(rounds("memory = \"1GiB\"\n"), (1, 16));
    assert_eq!(rounds("memory = \"256MiB\"\n"), (1, 8));
    assert_eq!(rounds("memory = \"1GiB\"\n[volume.gc]\nbatch = \"4MiB\"\n"), (2, 4));
    assert_eq!(rounds("memory = \"1GiB\"\n[volume.gc]\nrounds = 3\n"), (3, 8));
}

#[test]
fn what_cannot_be_together_is_refused_with_names_values_and_the_least_that_works() {
    let least = "a server works with 217 MiB at least: set memory to 217 MiB or more, leave it out, or lower";
    assert_eq!(
        on(8, "memory = \"100MiB\"\n").unwrap_err(),
        format!("test.toml: memory = \"100MiB\": {least} nbd.max_payload, volume.segment_size or cache.disk.size")
    );
    assert!(on(8, "memory = \"217MiB\"\n").is_ok());
    assert!(on(8, "memory = \"64MiB\"\n[volume]\nsegment_size = \"64KiB\"\n[nbd]\nmax_payload = \"1MiB\"\n").is_err());
    assert!(on(8, "memory = \"68MiB\"\n[volume]\nsegment_size = \"64KiB\"\n[nbd]\nmax_payload = \"1MiB\"\n").is_ok());
    assert_eq!(
        on(24 << 10, "memory = \"1GiB\"\n[cache]\nmemory = \"512MiB\"\n[volume]\ntotal_dirty_bytes = \"512MiB\"\n")
            .unwrap_err(),
        "test.toml: memory = \"1GiB\": with volume.total_dirty_bytes = 512 MiB, cache.memory = 512 MiB, a server works with 1201 MiB at least: set memory to \
         1201 MiB or more, leave it out, or lower those"
    );
    // What is wrong by itself is told first.
    assert!(
        on(8, "memory = \"1GiB\"\n[volume]\nsegment_size = \"5GiB\"\n")
            .unwrap_err()
            .starts_with("test.toml: volume.segment_size = \"5GiB\": accepted is")
    );
}

#[test]
fn whatever_the_machine_has_a_server_that_is_told_nothing_starts() {
    for mib in [1, 64, 300, 512, 1 << 10, 2 << 10, 16 << 10, 1 << 20, 1 << 30] {
        let config = on(mib, "").unwrap();
        let Memory::Bytes(memory) = config.memory else { panic!("it is known") };
        assert!((217 << 20..=4 << 30).contains(&memory), "{memory}");
        let parts: u64 = config.division().parts.iter().sum();
        assert!(parts <= memory, "{parts} of {memory}");
    }
}

#[test]
fn what_follows_from_memory_is_shown_as_that_and_reads_back() {
    let effective = load_from("", &[("ASHLAR_MEMORY", "1GiB"), ("ASHLAR_STORE__IDLE_BUFFERS", "0")], &[]).unwrap();
    let shown = effective.to_toml();
    for line in [
        "memory = \"1 GiB\"  # ASHLAR_MEMORY",
        "idle_buffers = \"0 B\"  # ASHLAR_STORE__IDLE_BUFFERS",
        "total_dirty_bytes = \"260 MiB\"  # of memory",
        "total_map_memory = \"162 MiB\"  # of memory, and more if there is room",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no line {line:?} in:\n{shown}");
    }
    assert!(shown.contains("  # of memory, and what else of it nobody uses\n"), "{shown}");
    assert_eq!(*load_from(&shown, &[], &[]).unwrap(), *effective);
    let nothing = load_from("", &[], &[]).unwrap().to_toml();
    assert!(
        nothing.contains("memory = \"4 GiB\"  # a quarter of the 24.0 GiB of the machine, but no more\n"),
        "{nothing}"
    );
    assert_eq!(*load_from(&nothing, &[], &[]).unwrap(), *load_from("", &[], &[]).unwrap());
}
