//! The S3 client in a bucket that keeps old versions of objects. With `ASHLAR_TEST_S3_VERSIONED_BUCKET` and the variables
//! of `store_conformance.rs` set, the last test runs against that server too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::sync::Arc;

use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::memory::MemoryStore;
use ashlar::store::open::{Access, Fencing, Outside, StoreOptions, open};
use ashlar::store::probe::{CreateOnly, CutPut, Finding, Looks};
use ashlar::store::s3::S3Store;
use ashlar::store::s3::credentials::Environment;
use ashlar::store::s3::options::S3Options;
use ashlar::store::s3::versions::Kept;
use ashlar::store::{ErrorKind, Key, Store, list_all};
use bytes::Bytes;
use support::s3_server::{Misanswer, S3Server};

fn key(path: &str) -> Key {
    Key::new(path).unwrap()
}

fn environment(access: &str, secret: &str) -> Environment {
    let variables = [("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)];
    Environment::Fixed(variables.map(|(name, value)| (name.into(), value.into())).into())
}

fn options(endpoint: &str, delete_versions: bool) -> S3Options {
    S3Options { endpoint: Some(endpoint.into()), allow_http: true, delete_versions, ..S3Options::default() }
}

fn client(server: &S3Server, delete_versions: bool) -> S3Store {
    let environment = environment(&server.access_key, &server.secret_key);
    S3Store::new("disks", "p", &options(&server.endpoint(), delete_versions), &environment, Clock::System).unwrap()
}

async fn start() -> (MemoryStore, S3Server) {
    let memory = MemoryStore::new();
    let server = S3Server::start(Arc::new(memory.clone())).await;
    server.behaviour.lock().keeps_versions = true;
    (memory, server)
}

async fn put(store: &S3Store, path: &str) {
    store.put(&key(path), vec![Bytes::from_static(b"body")]).await.unwrap();
}

/// What the bucket still has, hidden or not: data and markers.
fn left(server: &S3Server) -> (usize, usize) {
    let behaviour = server.behaviour.lock();
    let all = || behaviour.versions.values().flatten();
    (all().filter(|(_, content)| content.is_some()).count(), all().filter(|(_, content)| content.is_none()).count())
}

#[tokio::test]
async fn such_a_bucket_is_noticed_without_a_request_of_its_own() {
    let (_, server) = start().await;
    let store = client(&server, false);
    assert!(!store.keeps_versions());
    put(&store, "v/1").await;
    assert!(store.keeps_versions());
    assert_eq!(server.behaviour.lock().requests.len(), 1);
    // And without a PUT by asking.
    assert_eq!(client(&server, false).has_versions().await, Some(true));
    server.behaviour.lock().keeps_versions = false;
    let plain = client(&server, false);
    put(&plain, "v/2").await;
    assert!(!plain.keeps_versions());
    assert_eq!(plain.has_versions().await, Some(false));
    server.answer_next("GET", Misanswer::Error(403, "AccessDenied"));
    assert_eq!(plain.has_versions().await, None, "who may not ask does not know");
}

const RULES: &str = "<?xml version=\"1.0\"?><LifecycleConfiguration>\
    <Rule><ID>old</ID><Filter><Prefix>p/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>\
    <Rule><ID>logs</ID><Filter><Prefix>logs/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>\
    <Rule><ID>cold</ID><Filter></Filter><Status>Enabled</Status><Transition><Days>90</Days><StorageClass>DEEP_ARCHIVE</StorageClass></Transition></Rule>\
    <Rule><ID>tidy</ID><Filter></Filter><Status>Enabled</Status>\
    <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule>\
    </LifecycleConfiguration>";

#[tokio::test]
async fn lifecycle_rules_that_take_away_what_is_kept_are_found() {
    let (_, server) = start().await;
    let store = client(&server, false);
    server.answer_next("GET", Misanswer::Xml(RULES));
    let harms = store.harmful_rules().await.unwrap();
    let said: Vec<(&str, &str)> = harms.iter().map(|harm| (&*harm.rule, &*harm.what)).collect();
    let expected = [("old", "deletes objects after 30 days"), ("cold", "moves objects to DEEP_ARCHIVE after 90 days")];
    assert_eq!(said, expected);
    assert!(server.behaviour.lock().requests.last().unwrap().1.contains("?lifecycle"));
    server.answer_next("GET", Misanswer::Error(404, "NoSuchLifecycleConfiguration"));
    assert_eq!(store.harmful_rules().await.unwrap(), []);
    server.answer_next("GET", Misanswer::Error(403, "AccessDenied"));
    let denied = store.harmful_rules().await.unwrap_err().message;
    assert!(denied.contains("let the credentials ask for the rules (GetLifecycleConfiguration)"), "{denied}");
}

#[tokio::test]
async fn an_answer_says_how_far_the_clock_is_from_the_stores() {
    let (_, server) = start().await;
    let millis = Clock::System.unix_millis() + 3_600_000;
    let clock = Clock::Manual(Arc::new(millis.into()));
    let environment = environment(&server.access_key, &server.secret_key);
    let store = S3Store::new("disks", "p", &options(&server.endpoint(), false), &environment, clock).unwrap();
    assert_eq!(store.clock_ahead(), None, "nothing was answered yet");
    put(&store, "v/1").await;
    // The server's clock goes on while the other stands.
    let ahead = store.clock_ahead().unwrap();
    assert!((3000..=3601).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn what_is_deleted_stays_and_is_counted_unless_versions_are_deleted() {
    let (_, server) = start().await;
    let store = client(&server, false);
    let keys = [key("v/1"), key("v/2"), key("w/1")];
    for key in &keys {
        put(&store, key.as_str()).await;
    }
    let there = Kept { versions: 2, bytes: 8, ..Kept::default() };
    assert_eq!(store.kept("v/").await.unwrap(), there, "nothing of it is old");
    store.delete(&keys).await.unwrap();
    assert_eq!(list_all(&store, "").await.unwrap(), []);
    assert_eq!(left(&server), (3, 3), "this is why");
    assert_eq!(store.kept("v/").await.unwrap(), Kept { old_versions: 2, old_bytes: 8, ..there });

    let store = client(&server, true);
    put(&store, "v/3").await;
    store.delete(&[key("v/1"), key("v/2"), key("v/3"), key("v/never")]).await.unwrap();
    assert_eq!(left(&server), (1, 1), "another volume's are left");
    store.delete(&keys).await.unwrap();
    assert_eq!(left(&server), (0, 0));
    assert_eq!(store.kept("").await.unwrap(), Kept::default());
}

#[tokio::test]
async fn no_older_version_shows_at_any_moment() {
    for batch_answer in [None, Some((501, "NotImplemented"))] {
        let (memory, server) = start().await;
        server.behaviour.lock().batch_answer = batch_answer;
        let plain = client(&server, false);
        for _ in 0..3 {
            put(&plain, "v/1").await;
            put(&plain, "v/2").await;
            plain.delete(&[key("v/1"), key("v/2")]).await.unwrap();
        }
        let store = client(&server, true);
        put(&store, "v/1").await;
        put(&store, "v/3").await;
        assert_eq!(left(&server), (8, 6));
        store.delete(&[key("v/3"), key("v/2"), key("v/1")]).await.unwrap();
        assert_eq!(left(&server), (0, 0));
        assert_eq!(server.behaviour.lock().undead, Vec::<String>::new());
        assert_eq!(memory.object_count(), 0);
    }
}

#[tokio::test]
async fn a_deletion_that_broke_off_is_finished_by_the_next() {
    for broken in 0..4 {
        let (_, server) = start().await;
        let store = client(&server, true);
        for path in ["v/1", "v/2"] {
            put(&store, path).await;
            let plain = client(&server, false);
            plain.delete(&[key(path)]).await.unwrap();
            put(&store, path).await;
        }
        let keys = [key("v/1"), key("v/2")];
        // Of the POSTs of a deletion (hide, data, markers), one fails.
        for _ in 0..broken {
            server.answer_next("POST", Misanswer::ErrorAfter(503, "SlowDown"));
        }
        for _ in 0..broken {
            assert_eq!(store.delete(&keys).await.unwrap_err().kind, ErrorKind::Retryable);
        }
        store.delete(&keys).await.unwrap();
        assert_eq!(left(&server), (0, 0), "{broken}");
        assert_eq!(server.behaviour.lock().undead, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_version_that_a_listing_leaves_out_behind_a_marker_is_found_all_the_same() {
    let (_, server) = start().await;
    let (plain, store) = (client(&server, false), client(&server, true));
    put(&plain, "v/1").await;
    plain.delete(&[key("v/1")]).await.unwrap();
    put(&store, "v/1").await;
    put(&store, "v/2").await;
    server.behaviour.lock().loses_first_version = true;
    store.delete(&[key("v/1"), key("v/2")]).await.unwrap();
    assert_eq!(left(&server), (0, 0));
    put(&store, "v/1").await;
    store.delete(&[key("v/1")]).await.unwrap();
    assert_eq!(left(&server), (0, 0));
}

#[tokio::test]
async fn many_keys_cost_few_listings() {
    let (_, server) = start().await;
    server.behaviour.lock().versions_page = Some(100);
    let store = client(&server, true);
    let keys: Vec<Key> = (0..450).map(|n| key(&format!("v/{n:04}"))).collect();
    for key in &keys {
        put(&store, key.as_str()).await;
    }
    let listings = || server.behaviour.lock().requests.iter().filter(|(_, path)| path.contains("versions")).count();
    store.delete(&keys[100..150]).await.unwrap();
    assert_eq!(listings(), 1);
    store.delete(&[keys[0].clone(), keys[449].clone()]).await.unwrap();
    assert_eq!(listings(), 3);
    let rest: Vec<Key> = keys[1..100].iter().chain(&keys[150..449]).cloned().collect();
    store.delete(&rest).await.unwrap();
    assert!(listings() <= 3 + 5, "{}", listings());
    assert_eq!(left(&server), (0, 0));
    // Only what is gone already costs one by one.
    let before = listings();
    store.delete(&keys[..3]).await.unwrap();
    assert_eq!(listings(), before + 4);
}

#[tokio::test]
async fn a_bucket_without_versions_is_not_asked_for_any() {
    let (_, server) = start().await;
    server.behaviour.lock().keeps_versions = false;
    let store = client(&server, true);
    put(&store, "v/1").await;
    put(&store, "v/2").await;
    store.delete(&[key("v/1"), key("v/2")]).await.unwrap();
    assert_eq!((server.count("GET"), server.count("POST")), (0, 1));
}

#[tokio::test]
async fn who_may_not_delete_versions_is_told_what_to_allow() {
    let (_, server) = start().await;
    let store = client(&server, true);
    put(&store, "v/1").await;
    server.answer_next("GET", Misanswer::Error(403, "AccessDenied"));
    let error = store.delete(&[key("v/1")]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message.contains("ListBucketVersions"), "{error}");
}

#[tokio::test]
async fn a_store_that_is_opened_without_a_probe_deletes_versions_before_anything_is_put() {
    let (_, server) = start().await;
    put(&client(&server, false), "v/1").await;
    let environment = environment(&server.access_key, &server.secret_key);
    let outside = Outside { clock: Clock::System, random: Random::system(), workers: Workers::Threads, environment };
    let s3 = options(&server.endpoint(), true);
    let options = StoreOptions { url: "s3://disks/p".into(), s3, ..StoreOptions::default() };
    let found = Finding { create_only: CreateOnly::Honoured, cut_put: CutPut::Nothing, looks: Looks::NotTried };
    let access = Access::WriteUnprobed(found);
    let opened = open(&options, access, &outside).await.unwrap();
    opened.store.delete(&[key("v/1")]).await.unwrap();
    assert_eq!(left(&server), (0, 0));
    assert!(opened.s3.unwrap().keeps_versions(), "and can warn of it");

    // radosgw 16.2 does so from the moment that versioning is switched on, whatever it passed before.
    server.behaviour.lock().overwrites = true;
    let strict = StoreOptions { fencing: Fencing::CreateOnly, ..options.clone() };
    let error = open(&strict, access, &outside).await.unwrap_err();
    assert!(error.message.contains("cannot keep two servers apart"), "{error}");
    assert!(!open(&options, access, &outside).await.unwrap().store.keeps_create_only());
    server.behaviour.lock().overwrites = false;
    server.behaviour.lock().requests.clear();
    open(&options, access, &outside).await.unwrap();
    assert!(server.count("PUT") <= 2, "the race is not run again");
}

/// On a server out of this process if there is one.
#[tokio::test]
async fn the_whole_tower_gives_space_back() {
    let set = |name: &str| std::env::var(format!("ASHLAR_TEST_S3_{name}")).ok();
    let (_, server) = start().await;
    let external = (set("ENDPOINT"), set("VERSIONED_BUCKET"), set("ACCESS"), set("SECRET"));
    let (endpoint, bucket, environment) = match external {
        (Some(endpoint), Some(bucket), Some(access), Some(secret)) => (endpoint, bucket, environment(&access, &secret)),
        _ => (server.endpoint(), "disks".to_owned(), environment(&server.access_key, &server.secret_key)),
    };
    let prefix = format!("versions-{}", Random::system().uuid());
    let outside = Outside { clock: Clock::System, random: Random::system(), workers: Workers::Threads, environment };
    // radosgw 16.2 ignores If-None-Match where versions are kept, and is refused there; what it deletes is worth a look.
    let fencing = Fencing::Unsafe;
    let tower = async |delete_versions| {
        let s3 = options(&endpoint, delete_versions);
        let options = StoreOptions { url: format!("s3://{bucket}/{prefix}"), fencing, s3, ..StoreOptions::default() };
        open(&options, Access::Write, &outside).await.unwrap()
    };
    let careless = tower(false).await;
    let keys: Vec<Key> = (0..7).map(|n| key(&format!("v/segments/{n:02}"))).collect();
    for key in &keys {
        careless.store.put(key, vec![Bytes::from(vec![1; 1000])]).await.unwrap();
    }
    careless.store.delete(&keys[..3]).await.unwrap();
    let s3 = careless.s3.unwrap();
    assert!(s3.keeps_versions());
    assert_eq!(s3.has_versions().await, Some(true));
    assert_eq!(s3.kept("v/").await.unwrap(), Kept { versions: 7, bytes: 7000, old_versions: 3, old_bytes: 3000 });

    let careful = tower(true).await;
    careful.store.put(&keys[0], vec![Bytes::from(vec![2; 10])]).await.unwrap();
    careful.store.delete(&keys).await.unwrap();
    assert_eq!(s3.kept("v/").await.unwrap(), Kept::default());
    for key in &keys {
        assert_eq!(careful.store.get(key).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}
