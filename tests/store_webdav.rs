//! The client of WebDAV against a server in this process, which does what real ones were seen to do. Real ones: `scripts/stores webdav`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::open::{Access, Fencing, Outside, StoreOptions, open};
use ashlar::store::probe::{CreateOnly, Trial, probe};
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::s3::credentials::Environment;
use ashlar::store::webdav::options::WebdavOptions;
use ashlar::store::webdav::{Address, WebdavStore};
use ashlar::store::{ErrorKind, Key, Result, Store, list_all};
use bytes::Bytes;
use support::dav_server::DavServer;

fn options() -> WebdavOptions {
    WebdavOptions { allow_http: true, allow_unsynced: true, ..WebdavOptions::default() }
}

fn store_with(server: &DavServer, options: &WebdavOptions, variables: &[(&str, &str)]) -> Result<WebdavStore> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let environment = Environment::Fixed(variables.collect::<HashMap<_, _>>());
    let address = Address::parse(false, &format!("{}/dav/a%20store", server.address)).unwrap();
    WebdavStore::new(address, options, &environment, Random::system())
}

fn store(server: &DavServer) -> WebdavStore {
    store_with(server, &options(), &[]).unwrap()
}

fn key(path: &str) -> Key {
    Key::new(path).unwrap()
}

fn body(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

/// What lies in the temporary folder, without marks.
fn temporary(server: &DavServer) -> Vec<String> {
    let tree = server.tree.lock();
    let inside = tree.nodes.keys().filter_map(|node| node.strip_prefix("/dav/a store/=ashlar-tmp/"));
    inside.filter(|node| !node.starts_with("root-")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_put_takes_two_round_trips_once_the_folders_are_there_and_each_object_is_a_folder() {
    let server = DavServer::start().await;
    let store = store(&server);
    store.put(&key("v/segments/0"), body("first")).await.unwrap();
    let before = server.tree.lock().requests.len();
    store.put(&key("v/segments/1"), body("second")).await.unwrap();
    let requests: Vec<String> = server.tree.lock().requests[before..].iter().map(|(verb, _)| verb.clone()).collect();
    let mut sorted = requests.clone();
    sorted.sort();
    assert_eq!(sorted, ["MKCOL", "MOVE", "PUT"], "a folder for the next PUT is made beside this one");
    assert_eq!(requests[2], "MOVE");
    let tree = server.tree.lock();
    assert_eq!(tree.nodes["/dav/a store/v/segments/1=/data"].as_deref(), Some(&b"second"[..]));
}

/// What a server says when the name is taken, or a folder is missing, is the server's own.
#[tokio::test]
async fn a_taken_name_is_known_whatever_the_server_says_and_the_loser_leaves_nothing() {
    for (taken, missing) in [(412, 409), (207, 404), (500, 409), (423, 500), (403, 409), (405, 409)] {
        let server = DavServer::start().await;
        (server.tree.lock().taken, server.tree.lock().missing) = (taken, missing);
        let store = store(&server);
        store.put(&key("v/1"), body("first")).await.unwrap();
        let error = store.put(&key("v/1"), body("second")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "{taken}: {error}");
        assert_eq!(store.get(&key("v/1")).await.unwrap(), "first");
        let left = temporary(&server);
        assert!(left.iter().all(|node| !node.contains('/')), "{taken}: only empty folders: {left:?}");
        // Somebody tidied the folder away.
        let folders: Vec<String> = server.tree.lock().nodes.keys().filter(|n| n.contains("/v")).cloned().collect();
        folders.iter().for_each(|folder| drop(server.tree.lock().nodes.remove(folder)));
        store.put(&key("v/2"), body("third")).await.unwrap();
        assert_eq!(store.get(&key("v/2")).await.unwrap(), "third");
    }
}

/// An answer that was lost is no refusal: the object may be ours.
#[tokio::test]
async fn a_move_that_was_done_and_answered_with_an_error_is_found_to_be_ours() {
    let server = DavServer::start().await;
    let store = store(&server);
    store.put(&key("v/0"), body("before")).await.unwrap();
    server.tree.lock().lost_moves = 1;
    assert_eq!(store.put(&key("v/1"), body("mine")).await.unwrap_err().kind, ErrorKind::Retryable);
    assert_eq!(store.get(&key("v/1")).await.unwrap(), "mine");
    // Tried again, it is taken; whoever put it reads it back.
    let store = RetryStore::new(Arc::new(store), RetryOptions::default(), Random::system());
    server.tree.lock().lost_moves = 1;
    assert_eq!(store.put(&key("v/2"), body("mine")).await.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(store.get(&key("v/2")).await.unwrap(), "mine");
}

/// Servers that keep half of a PUT that broke off keep it where no object is.
#[tokio::test]
async fn half_a_put_gets_no_name() {
    let server = DavServer::start().await;
    let store = store(&server);
    store.put(&key("v/0"), body("before")).await.unwrap();
    // The folder made before is given up, and a fresh one tried: both are cut.
    server.tree.lock().cut_puts = 2;
    assert_eq!(store.put(&key("v/1"), body("whole")).await.unwrap_err().kind, ErrorKind::Retryable);
    assert_eq!(store.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    store.put(&key("v/1"), body("whole")).await.unwrap();
    assert_eq!(store.get(&key("v/1")).await.unwrap(), "whole");
}

/// What was refused may still arrive, if a gateway refused it: never where the body of another key is.
#[tokio::test]
async fn no_folder_is_filled_twice() {
    let server = DavServer::start().await;
    let store = store(&server);
    for number in 0..12 {
        // With a folder made before, and without.
        server.tree.lock().cut_puts = number % 4;
        let put = store.put(&key(&format!("v/{number}")), body("whole")).await;
        assert_eq!(put.is_ok(), number % 4 < 2, "{number}");
    }
    let mut filled: Vec<String> =
        server.tree.lock().requests.iter().filter(|(verb, _)| verb == "PUT").map(|(_, path)| path.clone()).collect();
    let count = filled.len();
    filled.sort();
    filled.dedup();
    assert_eq!(filled.len(), count);
}

#[tokio::test]
async fn a_folder_without_an_object_is_none_and_blocks_nothing_silently() {
    let server = DavServer::start().await;
    let store = store(&server);
    store.put(&key("v/0"), body("there")).await.unwrap();
    server.tree.lock().nodes.insert("/dav/a store/v/1=".into(), None);
    assert_eq!(store.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(list_all(&store, "v/").await.unwrap().len(), 1);
    assert_eq!(store.list_top().await.unwrap(), ["v"]);
    let error = store.put(&key("v/1"), body("new")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Retryable && error.message.contains("remove that folder"), "{error}");
    store.delete(&[key("v/1")]).await.unwrap();
    store.put(&key("v/1"), body("new")).await.unwrap();
    server.tree.lock().nodes.insert("/dav/a store/empty".into(), None);
    assert_eq!(store.list_top().await.unwrap(), ["v"]);
}

/// A filesystem that is no more mounted on the server leaves a folder of the same path, in which everything is absent.
#[tokio::test]
async fn another_root_than_the_one_that_was_opened_is_a_store_that_is_away() {
    let server = DavServer::start().await;
    let (writer, reader) = (store(&server), store(&server));
    writer.put(&key("v/0"), body("there")).await.unwrap();
    assert_eq!(reader.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::NotFound);
    let whole = server.tree.lock().nodes.clone();
    server.tree.lock().nodes.retain(|node, _| !node.starts_with("/dav/a store/"));
    for store in [&writer, &reader] {
        for error in [
            store.get(&key("v/0")).await.unwrap_err(),
            store.list("v/", None).await.unwrap_err(),
            store.list_top().await.unwrap_err(),
            store.delete(&[key("v/0")]).await.unwrap_err(),
        ] {
            assert!(error.kind == ErrorKind::Retryable && error.message.contains("mounted"), "{error}");
        }
    }
    let error = writer.put(&key("v/1"), body("lost")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Retryable && error.message.contains("mounted"), "{error}");
    assert!(!server.tree.lock().nodes.keys().any(|node| node.starts_with("/dav/a store/")), "nothing was made");
    server.tree.lock().nodes = whole;
    writer.put(&key("v/1"), body("kept")).await.unwrap();
    assert_eq!(reader.get(&key("v/1")).await.unwrap(), "kept");
}

#[tokio::test]
async fn what_writers_that_died_left_is_removed_after_a_day_by_the_servers_clock() {
    let server = DavServer::start().await;
    store(&server).put(&key("v/0"), body("there")).await.unwrap();
    for (name, changed) in [("old", "Fri, 27 Nov 2026 00:59:59 GMT"), ("young", "Sat, 28 Nov 2026 01:00:01 GMT")] {
        let mut tree = server.tree.lock();
        let path = format!("/dav/a store/=ashlar-tmp/{name}");
        tree.nodes.insert(path.clone(), None);
        tree.nodes.insert(format!("{path}/data"), Some(Bytes::from_static(b"half")));
        tree.changed.insert(path, changed);
    }
    store(&server).put(&key("v/1"), body("there")).await.unwrap();
    let left = temporary(&server);
    assert!(left.contains(&"young/data".into()) && !left.iter().any(|node| node.starts_with("old")), "{left:?}");
}

#[tokio::test]
async fn one_wins_the_race_and_a_server_where_several_do_is_caught() {
    let server = DavServer::start().await;
    let store = store(&server);
    let found = probe(&store, &store, &Random::system(), Trial::All).await.unwrap();
    assert!(found.create_only == CreateOnly::Honoured && found.is_good_to_look(), "{found:?}");
    assert_eq!(list_all(&store, "").await.unwrap(), []);
    server.tree.lock().races = true;
    let found = probe(&store, &store, &Random::system(), Trial::CreateOnly).await.unwrap();
    assert!(matches!(found.create_only, CreateOnly::Raced { .. }) && found.is_good_to_look(), "{found:?}");
}

#[tokio::test]
async fn a_store_is_written_to_only_by_who_knows_that_it_makes_nothing_durable() {
    let server = DavServer::start().await;
    let outside = Outside {
        clock: Clock::System,
        random: Random::system(),
        workers: Workers::Threads,
        environment: Environment::Fixed(HashMap::new()),
    };
    let careless = StoreOptions {
        url: server.url("dav"),
        webdav: WebdavOptions { allow_unsynced: false, ..options() },
        ..StoreOptions::default()
    };
    for fencing in [Fencing::Auto, Fencing::CreateOnly, Fencing::Verified, Fencing::Unsafe] {
        let options = StoreOptions { fencing, ..careless.clone() };
        let error = open(&options, Access::Write, &outside).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("store.webdav.allow_unsynced"), "{error}");
    }
    assert_eq!((server.count("MKCOL"), server.count("PUT")), (0, 0));
    let knowing = StoreOptions { webdav: options(), ..careless.clone() };
    open(&knowing, Access::Write, &outside).await.unwrap().store.put(&key("v/0"), body("there")).await.unwrap();
    let opened = open(&careless, Access::Read, &outside).await.unwrap();
    assert_eq!(opened.store.get(&key("v/0")).await.unwrap(), "there");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_way_out() {
    let server = DavServer::start().await;
    let plain = WebdavOptions { allow_http: false, ..options() };
    let error = store_with(&server, &plain, &[]).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("store.webdav.allow_http"), "{error}");
    server.tree.lock().login = Some("Basic bWU6c2VjcmV0");
    let login = [("WEBDAV_USERNAME", "me"), ("WEBDAV_PASSWORD", "secret")];
    store_with(&server, &options(), &login).unwrap().put(&key("v/0"), body("there")).await.unwrap();
    let wrong = store_with(&server, &options(), &[login[0], ("WEBDAV_PASSWORD", "wr0ng")]).unwrap();
    for error in [
        wrong.get(&key("v/0")).await.unwrap_err(),
        wrong.put(&key("v/1"), vec![]).await.unwrap_err(),
        wrong.list("", None).await.unwrap_err(),
        wrong.delete(&[key("v/0")]).await.unwrap_err(),
    ] {
        assert!(error.kind == ErrorKind::Denied && error.message.contains("WEBDAV_PASSWORD"), "{error}");
        assert!(!error.message.contains("wr0ng") && !format!("{wrong:?}").contains("wr0ng"), "{error}");
    }
    server.tree.lock().login = None;
    let store = store(&server);
    for (refusal, kind, said) in [
        ((405, "x", "y"), ErrorKind::Invalid, "is WebDAV switched on"),
        ((301, "location", "http://other/"), ErrorKind::Invalid, "http://other/"),
        ((200, "x", "y"), ErrorKind::Invalid, "is there a WebDAV server"),
        ((503, "x", "y"), ErrorKind::Retryable, "503"),
    ] {
        server.tree.lock().refuses = Some(refusal);
        let error = store.list("", None).await.unwrap_err();
        assert!(error.kind == kind && error.message.contains(said), "{refusal:?}: {error:?}");
    }
    // A 404 of something in between is not the end of the log.
    server.tree.lock().refuses = None;
    store.put(&key("v/2"), vec![]).await.unwrap();
    server.tree.lock().refuses = Some((404, "x", "y"));
    assert_eq!(store.get(&key("v/0")).await.unwrap_err().kind, ErrorKind::Retryable);
    server.tree.lock().refuses = None;
    // No name begins with a dot: servers hide such names, or refuse them.
    store.put(&key(".a/.b"), body("dots")).await.unwrap();
    assert!(server.tree.lock().nodes.contains_key("/dav/a store/=.a/=.b=/data"));
    assert_eq!(list_all(&store, ".a/").await.unwrap()[0].key, key(".a/.b"));
}
