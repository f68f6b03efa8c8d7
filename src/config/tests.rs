use std::ffi::OsString;

use figment::value::Value;

use super::layers::known_keys;
use super::show::leaves;
use super::*;

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
    };
    load(inputs).map_err(|error| error.to_string().replace(&file.display().to_string(), "test.toml"))
}

fn error_of(toml: &str, variables: &[(&str, &str)], flags: &[(&'static str, &'static str, &str)]) -> String {
    load_from(toml, variables, flags).unwrap_err()
}

#[test]
fn the_reference_file_equals_the_defaults() {
    let effective = load_from(REFERENCE, &[], &[]).unwrap();
    assert_eq!(*effective, Config::default());
}

#[test]
fn the_reference_file_has_every_key() {
    let written: toml::Table = REFERENCE.parse().unwrap();
    for (key, value) in leaves(&known_keys().unwrap()) {
        let found = key.split('.').try_fold(toml::Value::Table(written.clone()), |at, part| at.get(part).cloned());
        let last = key.rsplit('.').next().unwrap();
        match value {
            Value::Empty(..) => {
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
    let listen = "accepted is HOST:PORT, such as 127.0.0.1:10809, [::1]:10809 or 0.0.0.0:10809 (all addresses), or none for no TCP";
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
