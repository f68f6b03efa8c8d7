//! Bad input, each with its exact words and its exit code.

use crate::program::{Ended, Place};

/// The command fails with this code and says this, and nothing else.
#[track_caller]
fn refused(place: &Place, args: &[&str], code: i32, words: &str) {
    let ended = place.run(args);
    assert_eq!((ended.code, ended.err.trim_end()), (Some(code), words), "{args:?}");
    assert_eq!(ended.out, "");
}

#[test]
fn a_size_of_zero() {
    refused(
        &Place::new(),
        &["create", "a", "--size", "0"],
        2,
        "ashlar: --size: a volume of size 0 cannot be: give it at least one block",
    );
}

#[test]
fn a_size_that_is_none() {
    refused(
        &Place::new(),
        &["create", "a", "--size", "10 potatoes"],
        2,
        "error: invalid value '10 potatoes' for '--size <SIZE>': \"10 potatoes\" is not a size; accepted is a number with a unit, \
         such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024)\n\nFor more information, try '--help'.",
    );
}

#[test]
fn a_size_that_is_no_whole_number_of_blocks() {
    refused(
        &Place::new(),
        &["create", "a", "--size", "10GB", "--block-size", "64K"],
        2,
        "ashlar: --size: size 10000000000 is not a multiple of the block size 65536; the next that is would be 10000007168; or give --block-size 512",
    );
}

#[test]
fn a_block_size_that_is_no_power_of_two() {
    refused(
        &Place::new(),
        &["create", "a", "--size", "1G", "--block-size", "3000"],
        2,
        "error: invalid value '3000' for '--block-size <SIZE>': block size 3000 is not a power of two from 512 B to 64 KiB; \
         4 KiB suits most filesystems\n\nFor more information, try '--help'.",
    );
}

#[test]
fn a_name_that_no_volume_can_have() {
    refused(
        &Place::new(),
        &["create", "a/b", "--size", "1G"],
        2,
        "error: invalid value 'a/b' for '<NAME>': volume name \"a/b\" contains '/'; letters, digits, '.', '_' and '-' are accepted\
         \n\nFor more information, try '--help'.",
    );
}

#[test]
fn a_name_that_is_taken() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "1G"]);
    refused(
        &place,
        &["create", "a", "--size", "2G"],
        1,
        &format!("ashlar: there is a volume \"a\" in {} already; choose another name or delete it first", place.url()),
    );
}

#[test]
fn a_store_of_an_unknown_scheme() {
    let place = Place::new();
    let why = "store URLs of scheme \"ftp\" are unknown; accepted are file://PATH, s3://BUCKET[/PREFIX], \
               sftp://[USER@]HOST[:PORT]/PATH, webdavs://[USER@]HOST[:PORT]/PATH, az://CONTAINER[/PREFIX], gs://BUCKET[/PREFIX] and memory://";
    refused(&place, &["list", "--store", "ftp://x/y"], 2, &format!("ashlar: flag --store \"ftp://x/y\": {why}"));
    std::fs::write(place.path("ashlar.toml"), "[store]\nurl = \"ftp://x/y\"\n").unwrap();
    refused(&place, &["list"], 2, &format!("ashlar: ashlar.toml: store.url = \"ftp://x/y\": {why}"));
}

#[test]
fn an_unknown_key_in_the_file() {
    let place = Place::new();
    std::fs::write(place.path("ashlar.toml"), "[journal]\nfile_size = \"1G\"\n").unwrap();
    refused(
        &place,
        &["config"],
        2,
        "ashlar: ashlar.toml: journal.file_size = \"1G\": there is no such key; [journal] has file_bytes",
    );
}

#[test]
fn an_unknown_key_in_the_environment() {
    let ended = Ended::of(Place::new().command(&["list"]).env("ASHLAR_CACHE__MEMRY", "1G"));
    assert_eq!(ended.code, Some(2));
    assert_eq!(
        ended.err,
        "ashlar: environment variable ASHLAR_CACHE__MEMRY = \"1G\": there is no such key; did you mean ASHLAR_CACHE__MEMORY? \
         [cache] has disk, memory\n"
    );
}

#[test]
fn a_bad_value_in_the_file_the_environment_and_a_flag() {
    let place = Place::new();
    std::fs::write(place.path("other.toml"), "[volume]\ndurability = \"maybe\"\n").unwrap();
    refused(
        &place,
        &["list", "--config", "other.toml"],
        2,
        "ashlar: other.toml: volume.durability = \"maybe\": accepted is store or journal or peer",
    );
    let ended = Ended::of(place.command(&["list"]).env("ASHLAR_VOLUME__UPLOAD_WINDOW", "0"));
    let words = "ashlar: environment variable ASHLAR_VOLUME__UPLOAD_WINDOW = 0: accepted is 1 to 1024\n";
    assert_eq!((ended.code, ended.err.as_str()), (Some(2), words));
    refused(
        &place,
        &["serve", "--listen", "10809"],
        2,
        "ashlar: flag --listen \"10809\": accepted is HOST:PORT, such as 127.0.0.1:10809, [::1]:10809 or 0.0.0.0:10809 (all \
         addresses), or none for no TCP; more places, also Unix sockets and vsock, go into nbd.listeners",
    );
    refused(
        &place,
        &["serve", "--listen", "none", "--socket", "none"],
        2,
        "ashlar: flag --socket \"none\": serve.listen is none as well; give at least one of them",
    );
    let ended = Ended::of(place.command(&["list"]).env("ASHLAR_LOG__LEVEL", "loud=noise"));
    let words = "ashlar: environment variable ASHLAR_LOG__LEVEL = \"loud=noise\": accepted is error, warn, info, debug, trace or \
                 off, or a list such as info,ashlar::store=debug\n";
    assert_eq!((ended.code, ended.err.as_str()), (Some(2), words));
}

#[test]
fn a_configuration_file_that_is_not_there() {
    refused(
        &Place::new(),
        &["list", "--config", "nowhere.toml"],
        2,
        "ashlar: configuration file nowhere.toml: No such file or directory (os error 2)",
    );
}

#[test]
fn a_read_only_volume_that_is_not_served() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "64M"]);
    place.ok(&["create", "b", "--size", "64M"]);
    for (args, stranger) in [(&["serve", "--read-only=a,typo"][..], "typo"), (&["serve", "a", "--read-only=b"], "b")] {
        let ended = place.run(args);
        let words = format!("{stranger} is none of the volumes that are served; name those, or give \"*\" for all");
        assert!(ended.code == Some(2) && ended.err.contains(&words), "{:?} {}", ended.code, ended.err);
        assert!(ended.err.contains("--read-only"), "{}", ended.err);
    }
}

#[test]
fn an_unknown_volume() {
    let place = Place::new();
    let words = format!(
        "ashlar: there is no volume \"a\" in {}; `ashlar list` shows what is there, `ashlar create` makes one",
        place.url()
    );
    for args in [&["info", "a"][..], &["check", "a"], &["delete", "a", "--yes"], &["serve", "a"]] {
        refused(&place, args, 1, &words);
    }
}

#[test]
fn deleting_without_a_terminal_to_ask_on() {
    let place = Place::new();
    place.ok(&["create", "a", "--size", "1G"]);
    refused(
        &place,
        &["delete", "a"],
        2,
        "ashlar: there is no terminal to ask whether volume a is to be deleted; give --yes to delete it without asking",
    );
    assert!(place.ok(&["list"]).contains("1 GiB"));
}

#[test]
fn taking_over_without_saying_what() {
    let ended = Place::new().run(&["serve", "--takeover"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.err.starts_with("error: the following required arguments were not provided:\n  <VOLUME[@SNAPSHOT]>..."),
        "{}",
        ended.err
    );
}

#[test]
fn a_state_directory_of_another_server() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let ended = place.run(&["serve", "--listen", "none"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.starts_with("ashlar: state directory: ./ashlar-state is in use by process ")
            && ended.err.ends_with(": stop that server, or give this one a state directory of its own [A11]\n"),
        "{}",
        ended.err
    );
    serving.stop();
}

#[test]
fn an_address_that_is_taken() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let words = format!(
        "ashlar: cannot listen on {address}: Address already in use (os error 98); stop the other server or choose another address"
    );
    place.ok(&["create", "a", "--size", "1G"]);
    refused(&place, &["serve", "a", "--listen", &address], 1, &words);
    // Nothing was taken that another server would have to be told about.
    let info: serde_json::Value = serde_json::from_str(&place.ok(&["info", "a", "--json"])).unwrap();
    assert_eq!(info["epoch"], 0);
}

#[test]
fn a_file_is_checked_as_a_server_would_take_it_and_nothing_else_counts() {
    let place = Place::new();
    let write = |text: &str| std::fs::write(place.path("new.toml"), text).unwrap();
    // The file of the working directory, and the environment, are others'.
    std::fs::write(place.path("ashlar.toml"), "nonsense").unwrap();
    let check =
        || Ended::of(place.command(&["config", "check", "new.toml"]).env("ASHLAR_LOG__LEVEL", "nonsense=nonsense"));
    write("[log]\nlevel = \"debug\"\n[serve]\nvolumes = [\"db\"]\nread_only = [\"db\"]\n");
    let ended = check();
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "new.toml: a server takes it; it sets 3 keys\n"),
        "{ended:?}"
    );
    write("[serve]\nvolume = [\"db\"]\n");
    let ended = check();
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.err.contains("new.toml: serve.volume") && ended.err.contains("did you mean serve.volumes?"),
        "{ended:?}"
    );
    // All that is wrong beyond the keys is said at once.
    write(
        "[serve]\nvolumes = [\"db\"]\nread_only = [\"logs\"]\n[log]\nlevel = \"a=b=c\"\n[metrics]\ntoken_file = \"absent\"\n\
         [nbd.tls]\nmode = \"required\"\ncertificate = \"absent.pem\"\nkey = \"absent.pem\"\n[store]\nurl = \"ftp://x\"\n",
    );
    let ended = check();
    assert_eq!((ended.code, ended.err.lines().count()), (Some(2), 5), "{ended:?}");
    for words in ["serve.read_only", "log.level", "metrics.token_file = absent", "absent.pem", "ftp"] {
        assert!(ended.err.contains(words), "{words}: {ended:?}");
    }
    let ended = place.run(&["config", "check", "absent.toml"]);
    assert!(ended.code == Some(2) && ended.err.contains("absent.toml"), "{ended:?}");
    assert!(!place.path("ashlar-state").exists() && !place.path("ashlar-data").exists(), "it only looks");
}
