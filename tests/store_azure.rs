//! The client of Azure Blob Storage against Azurite, which `scripts/stores azure` starts. Run by that only (`test = false` in Cargo.toml): it needs
//! `ASHLAR_TEST_AZURE_ENDPOINT`, `…_ACCOUNT`, `…_KEY`, `…_CONTAINER`, and `…_SAS`, a token with which it asks for what the client never does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar::outside::Random;
use ashlar::store::azure::AzureStore;
use ashlar::store::azure::options::AzureOptions;
use ashlar::store::probe::{CreateOnly, CutPut, Trial, probe};
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::s3::credentials::Environment;
use ashlar::store::{ErrorKind, Key, Store, list_all};
use bytes::Bytes;
use support::conformance::Subject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn set(name: &str) -> String {
    let name = format!("ASHLAR_TEST_AZURE_{name}");
    std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/stores azure"))
}

fn environment(variables: &[(&str, String)]) -> Environment {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Environment::Fixed(variables.collect::<HashMap<_, _>>())
}

fn options() -> AzureOptions {
    AzureOptions {
        endpoint: Some(set("ENDPOINT")),
        account: Some(set("ACCOUNT")),
        allow_http: true,
        ..AzureOptions::default()
    }
}

fn store_of(rest: &str, environment: &Environment) -> AzureStore {
    AzureStore::new(rest, &options(), environment, Random::system()).unwrap()
}

fn store() -> AzureStore {
    store_of(&format!("{}/a/prefix", set("CONTAINER")), &environment(&[("AZURE_STORAGE_KEY", set("KEY"))]))
}

fn key(path: impl Into<String>) -> Key {
    Key::new(path).unwrap()
}

fn fresh() -> Key {
    key(format!("fresh-{}/1", Random::system().uuid()))
}

mod by_key {
    use super::*;

    async fn make() -> Subject {
        Subject { store: Arc::new(store()), keep: Box::new(()), rounds: 20 }
    }
    conformance!(make);
}

mod by_token {
    use super::*;

    async fn make() -> Subject {
        let store = store_of(&set("CONTAINER"), &environment(&[("AZURE_STORAGE_SAS_TOKEN", set("SAS"))]));
        Subject { store: Arc::new(store), keep: Box::new(()), rounds: 5 }
    }
    conformance!(make => create_only, ranges, a_big_object, listing_order, deletes);
}

#[tokio::test]
async fn one_wins_the_race_and_an_upload_that_is_cut_leaves_nothing() {
    let store = store();
    let found = probe(&store, &store, &Random::system(), Trial::All).await.unwrap();
    assert!(found.create_only == CreateOnly::Honoured && found.is_good_to_look(), "{found:?}");
    assert_eq!(found.cut_put, CutPut::Nothing);
}

/// A PUT as some other program makes it; the status.
async fn ask(path: &str, query: &str, body: &str) -> u16 {
    let endpoint: http::Uri = set("ENDPOINT").parse().unwrap();
    let authority = endpoint.authority().unwrap().as_str();
    let mut connection = tokio::net::TcpStream::connect(authority).await.unwrap();
    let target = format!("{}/{}/{path}?{query}&{}", endpoint.path(), set("CONTAINER"), set("SAS"));
    let len = body.len();
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().parse().unwrap()
}

/// The name of a block, as other programs draw them: a uuid in words.
const SOMEBODYS: &str = "MDEyMzQ1NjctODlhYi1jZGVmLTAxMjMtNDU2Nzg5YWJjZGVm";

/// Azurite 3.37.0 answers BlobAlreadyExists to every Put Blob from then on, while nobody finds the blob.
#[tokio::test]
async fn blocks_that_somebody_staged_and_never_committed_block_no_create() {
    let store = store();
    for body in ["whole", ""] {
        let key = fresh();
        let path = format!("a/prefix/{key}");
        assert_eq!(ask(&path, &format!("comp=block&blockid={SOMEBODYS}"), "half").await, 201);
        assert_eq!(store.get(&key).await.unwrap_err().kind, ErrorKind::NotFound);
        store.put(&key, vec![Bytes::from_static(body.as_bytes())]).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), body);
        assert_eq!(
            store.put(&key, vec![Bytes::from_static(b"other")]).await.unwrap_err().kind,
            ErrorKind::AlreadyExists
        );
        assert_eq!(store.get(&key).await.unwrap(), body);
        store.delete(&[key]).await.unwrap();
    }
    // Beside short names none can be drawn that surely nobody else draws.
    let key = fresh();
    assert_eq!(ask(&format!("a/prefix/{key}"), "comp=block&blockid=c2hvcnQ%3D", "half").await, 201);
    let error = store.put(&key, vec![Bytes::from_static(b"whole")]).await.unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message.contains("never committed"), "{error}");
}

/// Of many that meet such blocks at once, one wins.
#[tokio::test]
async fn a_race_over_blocks_that_nobody_committed_has_one_winner() {
    // Who looks for blocks when the winner has thrown them away tries again.
    let store = Arc::new(RetryStore::new(Arc::new(store()), RetryOptions::default(), Random::system()));
    for _ in 0..10 {
        let key = fresh();
        assert_eq!(ask(&format!("a/prefix/{key}"), &format!("comp=block&blockid={SOMEBODYS}"), "half").await, 201);
        let writers = (0..8u8).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                store.put(&key, vec![Bytes::from(vec![writer; 5000])]).await.map_err(|error| error.kind)
            })
        });
        let results: Vec<_> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<usize> = (0..8).filter(|writer| results[*writer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert!(
            results.iter().filter_map(|result| result.err()).all(|kind| kind == ErrorKind::AlreadyExists),
            "{results:?}"
        );
        assert_eq!(store.get(&key).await.unwrap(), vec![winners[0] as u8; 5000]);
        store.delete(&[key]).await.unwrap();
    }
}

/// The marker of a page is the server's own; a listing that begins in the middle, by whoever has read no page, has none.
#[tokio::test]
async fn a_listing_begins_anywhere_and_foreign_names_neither_show_nor_end_it() {
    let (store, base) = (store(), fresh().to_string());
    let keys: Vec<Key> = (0..1100).map(|n| key(format!("{base}/{n:05}"))).collect();
    futures::future::join_all(keys.iter().map(|key| store.put(key, vec![])))
        .await
        .into_iter()
        .collect::<Result<Vec<()>, _>>()
        .unwrap();
    assert_eq!(
        ask(&format!("a/prefix/{base}/00500%20foreign"), "comp=blocklist", "<BlockList></BlockList>").await,
        201
    );
    let listed = |after: usize| {
        let (store, base, key) = (self::store(), base.clone(), keys[after].clone());
        async move { store.list(&format!("{base}/"), Some(&key)).await.unwrap() }
    };
    for after in [0, 499, 500, 999, 1000, 1098] {
        assert_eq!(listed(after).await[0].key, keys[after + 1]);
    }
    assert_eq!(*listed(1099).await, []);
    assert_eq!(list_all(&store, &format!("{base}/")).await.unwrap().len(), 1100);
    store.delete(&keys).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_way_out() {
    let (container, good) = (set("CONTAINER"), ("AZURE_STORAGE_KEY", set("KEY")));
    let wrong = environment(&[("AZURE_STORAGE_KEY", "d3Jvbmc=".into())]);
    let error = store_of(&container, &wrong).list("", None).await.unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message.contains("AZURE_STORAGE_KEY"), "{error}");
    let error = store_of("nowhere", &environment(std::slice::from_ref(&good))).put(&fresh(), vec![]).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("create the container"), "{error}");
    let no_key = environment(&[("AZURE_STORAGE_KEY", "no base64!".into())]);
    let error = AzureStore::new(&container, &options(), &no_key, Random::system()).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && !error.message.contains("no base64"), "{error}");
    // Nobody listens on the discard port.
    let nobody = AzureOptions { endpoint: Some("http://127.0.0.1:9/x".into()), ..options() };
    let store =
        AzureStore::new(&container, &nobody, &environment(std::slice::from_ref(&good)), Random::system()).unwrap();
    let error = store.get(&fresh()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Retryable && error.message.contains("Connection refused"), "{error}");
    let plain = AzureOptions { endpoint: Some(set("ENDPOINT").replace("http:", "https:")), ..options() };
    let plain = AzureOptions { connect_timeout: Duration::from_secs(60), ..plain };
    let store = AzureStore::new(&container, &plain, &environment(&[good]), Random::system()).unwrap();
    let error = store.get(&fresh()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message.contains("store.azure.allow_http = true"), "{error}");
}
