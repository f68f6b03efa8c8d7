//! The SFTP client against OpenSSH's server when something goes wrong: connections cut at every byte, servers that cannot sync, roots that vanish,
//! answers that can mean two things. The server runs without a network (`support/sftp_server.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ashlar::outside::Random;
use ashlar::store::probe::{CreateOnly, Trial, probe};
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::sftp::options::SftpOptions;
use ashlar::store::{ErrorKind, Key, Store, StoreError, list_all};
use bytes::Bytes;
use support::sftp_server::SftpServer;

fn key(path: &str) -> Key {
    Key::new(path).unwrap()
}

fn body(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

/// The failure of each operation.
async fn failures(store: &dyn Store) -> [StoreError; 5] {
    [
        store.put(&key("v/2"), body("2")).await.unwrap_err(),
        store.get(&key("v/1")).await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
        store.list_top().await.unwrap_err(),
        store.delete(&[key("v/1")]).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn exactly_one_wins_the_race_with_links_and_with_rename() {
    for commands in ["exec $SERVER", "exec $SERVER -P hardlink"] {
        let server = SftpServer::new();
        let store = server.store(&server.options("ssh", commands));
        let found = probe(&store, &store, &Random::seeded(1), Trial::All).await.unwrap();
        assert!(found.create_only == CreateOnly::Honoured && found.is_good_to_look(), "{commands}: {found:?}");
        assert!(list_all(&store, "").await.unwrap().is_empty());
    }
}

/// What a PUT that returned rests on, in the words of the server's own log.
#[tokio::test]
async fn body_and_name_are_synced_in_the_order_that_makes_an_object_durable() {
    let server = SftpServer::new();
    let log = server.beside("log");
    let options = server.options("ssh", &format!("exec $SERVER -e -l DEBUG3 2>>{}", log.display()));
    let store = server.store(&options);
    store.put(&key("v/segments/00/1"), body("first")).await.unwrap();
    let of_first = fs::read_to_string(&log).unwrap();
    fs::write(&log, "").unwrap();
    store.put(&key("v/segments/00/2"), body("second")).await.unwrap();
    let of_second = fs::read_to_string(&log).unwrap();
    let place = |log: &str, what: &[&str]| {
        let found = log.lines().position(|line| what.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("{what:?} is not in\n{log}"))
    };
    let (root, folder) = (server.root(), server.root().join("v/segments/00"));
    let (of_temporaries, of_folder) =
        (format!("{}/", root.join(".ashlar-tmp").display()), format!("fsync \"{}\"", folder.display()));
    for (log, name) in [(&of_first, "1\""), (&of_second, "2\"")] {
        let written = place(log, &["write \"", &of_temporaries]);
        let linked = place(log, &["hardlink old", name]);
        let synced = place(log, &["fsync \"", &of_temporaries]);
        assert!((written..linked).contains(&synced), "the body was not synced before it had its name:\n{log}");
        assert!(log.lines().skip(linked).any(|line| line.contains(&of_folder)), "its name was not synced:\n{log}");
    }
    // The way there is durable, too, and only once.
    for above in [
        root.parent().unwrap().parent().unwrap(),
        root.parent().unwrap(),
        &root,
        &root.join("v"),
        &root.join("v/segments"),
    ] {
        let synced = format!("fsync \"{}\"", above.display());
        place(&of_first, &[&synced]);
        assert!(!of_second.contains(&synced), "{synced}:\n{of_second}");
    }
}

#[tokio::test]
async fn an_upload_that_is_cut_shows_nothing_and_takes_no_key() {
    let server = SftpServer::new();
    let cut = server.store(&server.options("cut", "dd bs=1 count=300000 2>/dev/null | $SERVER"));
    let whole = Bytes::from(vec![7; 1 << 20]);
    let error = cut.put(&key("v/1"), vec![whole.clone()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retryable, "{error}");
    let store = server.plain();
    assert_eq!(server.temporaries().len(), 1, "the half that came");
    assert_eq!(list_all(&store, "").await.unwrap(), []);
    assert_eq!(store.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::NotFound);
    store.put(&key("v/1"), vec![whole.clone()]).await.unwrap();
    assert!(store.get(&key("v/1")).await.unwrap() == whole);
}

/// Whatever answer is the last that comes, the object is whole or absent, what was said to be there is there, and who tries again finds its own.
#[tokio::test]
async fn a_connection_may_end_after_any_byte_of_the_answers() {
    let server = SftpServer::new();
    server.plain().put(&key("v/0"), body("0")).await.unwrap();
    let (mut failed, mut succeeded, mut found_its_own) = (0, 0, 0);
    for (n, bytes) in (1..4000).step_by(37).enumerate() {
        let options = server.options("ssh", &format!("$SERVER | (dd bs=1 count={bytes} 2>/dev/null; kill -9 $$)"));
        let path = key(&format!("v/segments/{n}/1"));
        let put = server.store(&options).put(&path, body("whole")).await;
        let store = server.plain();
        match put {
            Ok(()) => succeeded += 1,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Retryable, "{error}");
                failed += 1;
                match store.put(&path, body("whole")).await {
                    Err(error) if error.kind == ErrorKind::AlreadyExists => found_its_own += 1,
                    put => put.unwrap(),
                }
            }
        }
        assert_eq!(store.get(&path).await.unwrap(), "whole");
        // A listing of what was left behind would be ever longer.
        for left in server.temporaries() {
            fs::remove_file(server.root().join(".ashlar-tmp").join(left)).unwrap();
        }
    }
    assert!(failed > 10 && succeeded > 3 && found_its_own > 1, "{failed} {succeeded} {found_its_own}");
}

#[tokio::test]
async fn a_connection_that_ended_is_made_again() {
    let server = SftpServer::new();
    server.plain().put(&key("v/1"), body("there")).await.unwrap();
    let store = server.store(&server.options("ssh", "dd bs=1 count=2000 2>/dev/null | $SERVER"));
    let quick = RetryOptions { pause_min: Duration::from_millis(1), ..RetryOptions::default() };
    let store = RetryStore::new(Arc::new(store), quick, Random::seeded(1));
    for _ in 0..50 {
        assert_eq!(store.get(&key("v/1")).await.unwrap(), "there");
    }
}

#[tokio::test]
async fn a_server_that_cannot_sync_is_refused_unless_that_is_no_matter() {
    let server = SftpServer::new();
    let options = server.options("ssh", "exec $SERVER -P fsync");
    let error = server.store(&options).put(&key("v/1"), body("1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("store.sftp.allow_unsynced = true"), "{error}");
    assert_eq!(list_all(&server.plain(), "").await.unwrap(), []);
    let store = server.store(&SftpOptions { allow_unsynced: true, ..options });
    store.put(&key("v/1"), body("1")).await.unwrap();
    assert_eq!(store.get(&key("v/1")).await.unwrap(), "1");
    store.delete(&[key("v/1")]).await.unwrap();
}

/// FAILURE is for a name that is taken, and for a directory in the way; what else it is for may pass.
#[tokio::test]
async fn a_directory_in_the_way_is_no_object_that_is_there_already() {
    let server = SftpServer::new();
    let store = server.plain();
    store.put(&key("v/a/b"), body("x")).await.unwrap();
    let error = store.put(&key("v/a"), body("y")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("directory of other objects"), "{error}");
    let error = store.put(&key("v/a/b/c"), body("y")).await.unwrap_err();
    assert!(!matches!(error.kind, ErrorKind::AlreadyExists | ErrorKind::NotFound), "{error}");
    assert_eq!(store.get(&key("v/a/b")).await.unwrap(), "x");
    assert!(server.temporaries().is_empty());
}

#[tokio::test]
async fn a_server_that_takes_no_writes_says_so_and_can_be_read() {
    let server = SftpServer::new();
    server.plain().put(&key("v/1"), body("there")).await.unwrap();
    let store = server.store(&server.options("ssh", "exec $SERVER -R"));
    assert_eq!(store.put(&key("v/2"), body("2")).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(store.delete(&[key("v/1")]).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(store.get(&key("v/1")).await.unwrap(), "there");
    assert_eq!(store.list_top().await.unwrap(), ["v"]);
}

/// As a filesystem that is unmounted on the server and comes back.
#[tokio::test]
async fn a_root_that_is_away_is_no_empty_store_and_nothing_is_made_in_its_place() {
    let server = SftpServer::new();
    let store = server.plain();
    store.put(&key("v/1"), body("1")).await.unwrap();
    let away = server.beside("away");
    fs::rename(server.root(), &away).unwrap();
    for is_mount_point_left in [false, true] {
        if is_mount_point_left {
            fs::create_dir(server.root()).unwrap();
        }
        for failure in failures(&store).await {
            assert_eq!(failure.kind, ErrorKind::Retryable);
            assert!(failure.message.contains("is its filesystem mounted?"), "{failure}");
        }
        assert_eq!(server.root().exists(), is_mount_point_left);
    }
    assert!(fs::read_dir(server.root()).unwrap().next().is_none(), "something was made in another directory");
    fs::remove_dir(server.root()).unwrap();
    fs::rename(&away, server.root()).unwrap();
    store.put(&key("v/2"), body("2")).await.unwrap();
    assert_eq!(list_all(&store, "v/").await.unwrap().len(), 2);
    // Another process knows the root by the same mark.
    let other = server.plain();
    assert_eq!(other.get(&key("v/1")).await.unwrap(), "1");
    other.put(&key("v/3"), body("3")).await.unwrap();
    let marks = fs::read_dir(server.root().join(".ashlar-tmp")).unwrap().count();
    assert_eq!(marks, 1);
}

#[tokio::test]
async fn what_writers_left_behind_is_removed_after_a_day() {
    let server = SftpServer::new();
    server.plain().put(&key("v/1"), body("1")).await.unwrap();
    let temporary = |name: &str, age: u64| {
        let file = fs::File::create(server.root().join(".ashlar-tmp").join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    };
    temporary("old", 25 * 3600);
    temporary("young", 23 * 3600);
    let store = server.plain();
    store.put(&key("v/2"), body("2")).await.unwrap();
    // Nobody waits for that, but what is asked after it on the same connection, of which there are two, is answered after it.
    for n in 3..7 {
        store.put(&key(&format!("v/{n}")), body("n")).await.unwrap();
    }
    assert_eq!(server.temporaries(), ["young"]);
}

#[tokio::test]
async fn what_stalls_or_is_no_sftp_is_said_and_tried_again() {
    let server = SftpServer::new();
    let quick = Duration::from_millis(200);
    let of = |name: &str, commands: &str| SftpOptions {
        stall_timeout: quick,
        connect_timeout: Duration::from_secs(5),
        ..server.options(name, commands)
    };
    let dumb = SftpOptions { connect_timeout: quick, ..of("dumb", "exec sleep 1000") };
    let broken = "echo 'ssh: connect to host host port 22: Connection refused' >&2; exit 255";
    for (options, said) in [
        (dumb, "not connected after 200ms (store.sftp.connect_timeout)"),
        (
            of("stalls", "dd bs=1 count=400 2>/dev/null | ($SERVER; exec sleep 1000)"),
            "nothing sent or received over SFTP for 200ms",
        ),
        (
            of("chatty", "echo Welcome to the machine; exec $SERVER"),
            "does a start-up file of the shell there print something?",
        ),
        (of("refused", broken), "Connection refused"),
    ] {
        let error = server.store(&options).put(&key("v/1"), vec![Bytes::from(vec![0; 3000])]).await.unwrap_err();
        assert!(error.kind == ErrorKind::Retryable && error.message.contains(said), "{said}: {error}");
    }
    let denied = of("denied", "echo 'me@host: Permission denied (publickey).' >&2; exit 255");
    assert_eq!(server.store(&denied).get(&key("v/1")).await.unwrap_err().kind, ErrorKind::Denied);
    let none = SftpOptions { ssh: "/nowhere/ssh".into(), ..SftpOptions::default() };
    let error = server.store(&none).get(&key("v/1")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("install openssh-client"), "{error}");
}
