//! The S3 client against a server that misbehaves: wrong answers, lost replies, silence, wrong keys.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::memory::MemoryStore;
use ashlar::store::open::{Access, Fencing, Outside, StoreOptions, open};
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::s3::S3Store;
use ashlar::store::s3::credentials::Environment;
use ashlar::store::s3::options::S3Options;
use ashlar::store::{ErrorKind, Key, Store, StoreError, list_all};
use bytes::Bytes;
use parking_lot::Mutex;
use support::s3_server::{Misanswer, S3Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn key(path: &str) -> Key {
    Key::new(path).unwrap()
}

fn body() -> Vec<Bytes> {
    vec![Bytes::from_static(b"body")]
}

fn environment(access: &str, secret: &str) -> Environment {
    let variables = [("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)];
    Environment::Fixed(variables.map(|(name, value)| (name.into(), value.into())).into())
}

fn options(server: &S3Server) -> S3Options {
    S3Options { endpoint: Some(server.endpoint()), allow_http: true, ..S3Options::default() }
}

fn client_with(server: &S3Server, bucket: &str, options: &S3Options) -> S3Store {
    let environment = environment(&server.access_key, &server.secret_key);
    S3Store::new(bucket, "", options, &environment, Clock::System).unwrap()
}

async fn start() -> (MemoryStore, S3Server, S3Store) {
    let memory = MemoryStore::new();
    let server = S3Server::start(Arc::new(memory.clone())).await;
    let store = client_with(&server, &server.bucket, &options(&server));
    (memory, server, store)
}

/// The failure of each operation, in the order put, get, list, delete.
async fn failures(store: &dyn Store) -> [StoreError; 4] {
    [
        store.put(&key("v/1"), body()).await.unwrap_err(),
        store.get(&key("v/1")).await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
        store.delete(&[key("v/1")]).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn every_put_is_create_only_and_carries_a_checksum_and_a_length() {
    let (_, server, store) = start().await;
    store.put(&key("v/1"), vec![Bytes::from_static(b"1234"), Bytes::from_static(b"56789")]).await.unwrap();
    let headers: HashMap<String, String> = server.behaviour.lock().put_headers.iter().cloned().collect();
    assert_eq!(headers["if-none-match"], "*");
    assert_eq!(headers["x-amz-checksum-crc32c"], "4waSgw=="); // CRC-32C of "123456789" is E3069283
    assert_eq!(headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
    assert_eq!(headers["content-length"], "9");

    let signing = S3Options { sign_payload: true, checksum: false, ..options(&server) };
    client_with(&server, &server.bucket, &signing).put(&key("v/2"), body()).await.unwrap();
    let headers: HashMap<String, String> = server.behaviour.lock().put_headers.iter().cloned().collect();
    assert!(!headers.contains_key("x-amz-checksum-crc32c"));
    assert_eq!(headers["x-amz-content-sha256"].len(), 64);
}

#[tokio::test]
async fn a_missing_bucket_is_named_with_its_endpoint() {
    let (_, server, _) = start().await;
    let store = client_with(&server, "elsewhere", &options(&server));
    for error in failures(&store).await {
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        let sentence = format!("there is no bucket elsewhere at {} (404 NoSuchBucket", server.endpoint());
        assert!(error.message.starts_with(&sentence), "{error}");
        assert!(error.message.contains("create it, or check the store URL and store.s3.endpoint"), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied_by_code_and_never_shown() {
    let (_, server, _) = start().await;
    for (access, secret, code, advice) in [
        (&*server.access_key, "wrong-secret", "SignatureDoesNotMatch", "check the secret access key"),
        ("unknown-access", "wrong-secret", "InvalidAccessKeyId", "check the access key id"),
    ] {
        let store =
            S3Store::new(&server.bucket, "", &options(&server), &environment(access, secret), Clock::System).unwrap();
        for error in failures(&store).await {
            assert_eq!(error.kind, ErrorKind::Denied, "{error}");
            assert!(error.message.contains(code) && error.message.contains(advice), "{error}");
            assert!(!format!("{error:?} {store:?}").contains("wrong-secret"), "{error}");
        }
    }
}

#[tokio::test]
async fn without_credentials_the_sentence_says_what_was_tried() {
    let (_, server, _) = start().await;
    let nothing = [("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let nothing = Environment::Fixed(nothing.map(|(name, value)| (name.into(), value.into())).into());
    let store = S3Store::new(&server.bucket, "", &options(&server), &nothing, Clock::System).unwrap();
    let error = store.get(&key("v/1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(
        error.message.ends_with(
            "no credentials for the store (environment: none; profile: none; web identity: none; container: none; \
             instance: none); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name store.s3.profile or \
             store.s3.credentials"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn keys_that_were_rotated_in_a_file_are_taken_up() {
    let (_, server, _) = start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |secret: &str| {
        let access = &server.access_key;
        let text = format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
        std::fs::write(file.path(), text).unwrap();
    };
    write("old-secret");
    let variables = [("AWS_SHARED_CREDENTIALS_FILE".to_owned(), file.path().to_str().unwrap().to_owned())];
    let environment = Environment::Fixed(variables.into());
    let store = S3Store::new(&server.bucket, "", &options(&server), &environment, Clock::System).unwrap();
    assert_eq!(store.put(&key("v/1"), body()).await.unwrap_err().kind, ErrorKind::Denied);
    write(&server.secret_key);
    let store = RetryStore::new(Arc::new(store), RetryOptions::default(), Random::seeded(1));
    store.put(&key("v/1"), body()).await.unwrap();
}

/// A server of one canned answer, which logs nothing.
async fn canned(answer: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}

#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn not_even_the_most_talkative_log_holds_a_secret() {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    subscriber.init(); // the log crate's records too
    let endpoint = canned("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let variables = [
        ("AWS_ACCESS_KEY_ID", "some-access"),
        ("AWS_SECRET_ACCESS_KEY", "hush-secret"),
        ("AWS_SESSION_TOKEN", "hush-token"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into())).into();
    let options = S3Options { endpoint: Some(endpoint), allow_http: true, ..S3Options::default() };
    let store = S3Store::new("disks", "", &options, &Environment::Fixed(variables), Clock::System).unwrap();
    let store = RetryStore::new(Arc::new(store), RetryOptions::default(), Random::seeded(1));
    for error in failures(&store).await {
        tracing::error!("{error} {error:?} {store:?}");
    }
    let text = String::from_utf8(logged.0.lock().clone()).unwrap();
    assert!(text.contains("was refused by") && text.contains("hyper_util"), "nothing was logged: {text}");
    assert!(!text.contains("hush"), "{}", text.lines().find(|line| line.contains("hush")).unwrap_or_default());
}

#[tokio::test]
async fn answers_of_the_server_become_kinds() {
    use ErrorKind::*;
    let (_, server, store) = start().await;
    for (method, status, code, kind) in [
        ("PUT", 412, "PreconditionFailed", AlreadyExists),
        ("PUT", 409, "ConditionalRequestConflict", Retryable),
        ("PUT", 404, "NoSuchKey", Retryable),
        ("PUT", 503, "SlowDown", Retryable),
        ("PUT", 500, "InternalError", Retryable),
        ("PUT", 403, "AccessDenied", Denied),
        ("PUT", 501, "NotImplemented", Invalid),
        ("PUT", 400, "BadDigest", Retryable),
        ("GET", 404, "NoSuchKey", NotFound),
        ("GET", 403, "AccessDenied", Denied),
        ("GET", 403, "RequestTimeTooSkewed", Retryable),
        ("GET", 400, "ExpiredToken", Retryable),
        ("GET", 429, "TooManyRequests", Retryable),
        ("GET", 301, "PermanentRedirect", Invalid),
    ] {
        server.answer_next(method, Misanswer::Error(status, code));
        let result = match method {
            "PUT" => store.put(&key("v/1"), body()).await,
            _ => store.get(&key("v/1")).await.map(drop),
        };
        let error = result.unwrap_err();
        assert_eq!(error.kind, kind, "{method} {status} {code}: {error}");
        if !matches!(kind, NotFound | AlreadyExists) {
            assert!(error.message.contains(&format!("{status} {code}: on purpose")), "{error}");
        }
    }
}

#[tokio::test]
async fn the_page_of_a_proxy_never_means_that_there_is_no_object() {
    let (_, server, store) = start().await;
    store.put(&key("v/1"), body()).await.unwrap();
    server.answer_next("GET", Misanswer::Page(404));
    assert_eq!(store.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::Retryable);
    server.answer_next("GET", Misanswer::Page(404));
    assert_eq!(store.list("", None).await.unwrap_err().kind, ErrorKind::Retryable);
    // An error that is no XML leaves its status.
    server.answer_next("GET", Misanswer::Page(502));
    assert!(store.get(&key("v/1")).await.unwrap_err().message.ends_with(" with 502"));
    // And a page with status 200, as of a portal that wants a login, is neither an empty store nor a durable object.
    server.answer_next("GET", Misanswer::Page(200));
    assert_eq!(store.list("", None).await.unwrap_err().kind, ErrorKind::Retryable);
    server.answer_next("GET", Misanswer::Page(200));
    assert_eq!(store.list_top().await.unwrap_err().kind, ErrorKind::Retryable);
    server.answer_next("PUT", Misanswer::Page(200));
    assert_eq!(store.put(&key("v/2"), body()).await.unwrap_err().kind, ErrorKind::Retryable);
}

#[tokio::test]
async fn a_listing_that_makes_no_sense_takes_no_task_with_it() {
    let (_, server, store) = start().await;
    for strange in [
        "<ListBucketResult><IsTruncated>True</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Key>v/1</Key><Size>many</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>v/1</Key>",
        "<ListBucketResult><IsTruncated>false</IsTruncated>",
        "<ListBucketResult></ListBucketResult>",
        "",
    ] {
        server.answer_next("GET", Misanswer::Xml(strange));
        assert_eq!(store.list("", None).await.unwrap_err().kind, ErrorKind::Retryable, "{strange}");
    }
}

#[tokio::test]
async fn lost_connections_and_silence_are_retryable_within_the_stall_limit() {
    let (_, server, _) = start().await;
    let quick = S3Options { stall_timeout: Duration::from_millis(200), ..options(&server) };
    let store = client_with(&server, &server.bucket, &quick);
    store.put(&key("v/1"), body()).await.unwrap();
    for misanswer in [Misanswer::Silence, Misanswer::Close, Misanswer::HalfABody] {
        server.answer_next("GET", misanswer);
        let begin = tokio::time::Instant::now();
        let error = store.get(&key("v/1")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Retryable, "{misanswer:?}: {error}");
        assert!(error.message.starts_with("GET of v/1 got no answer from http://127.0.0.1:"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{misanswer:?}");
        assert_eq!(store.get(&key("v/1")).await.unwrap(), "body");
    }
    let total = S3Options { request_timeout: Duration::from_millis(200), ..options(&server) };
    let store = client_with(&server, &server.bucket, &total);
    server.answer_next("GET", Misanswer::Silence);
    assert!(store.get(&key("v/1")).await.unwrap_err().message.contains("no end after 200ms"));

    let nobody = S3Options { endpoint: Some("http://127.0.0.1:9".into()), ..options(&server) };
    let error = client_with(&server, &server.bucket, &nobody).get(&key("v/1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retryable);
    assert!(error.message.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_no_mystery() {
    let (_, server, _) = start().await;
    let tls = S3Options { endpoint: Some(format!("https://{}", server.address)), ..S3Options::default() };
    let error = client_with(&server, &server.bucket, &tls).get(&key("v/1")).await.unwrap_err();
    assert!(error.message.starts_with("GET of v/1 got no answer from https://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_put_whose_reply_was_lost_says_already_exists_when_tried_again() {
    let (memory, server, _) = start().await;
    let opened = open_tower(&server, Fencing::Auto, Access::Read).await.unwrap();
    server.answer_next("PUT", Misanswer::ErrorAfter(500, "InternalError"));
    let error = opened.put(&key("v/1"), body()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    assert_eq!(memory.get(&key("prefix/v/1")).await.unwrap(), "body");
    assert_eq!(server.count("PUT"), 2);
}

#[tokio::test]
async fn what_radosgw_does_now_and_then_is_tried_again() {
    let (_, server, _) = start().await;
    let opened = open_tower(&server, Fencing::Auto, Access::Read).await.unwrap();
    for answer in [(404, "NoSuchKey"), (409, "ConditionalRequestConflict"), (503, "SlowDown")] {
        server.answer_next("PUT", Misanswer::Error(answer.0, answer.1));
    }
    opened.put(&key("v/1"), body()).await.unwrap();
    assert_eq!(opened.get(&key("v/1")).await.unwrap(), "body");
}

async fn open_tower(server: &S3Server, fencing: Fencing, access: Access) -> Result<Arc<dyn Store>, StoreError> {
    let quick = Duration::from_millis(1);
    let options = StoreOptions {
        url: format!("s3://{}/prefix", server.bucket),
        fencing,
        s3: options(server),
        retry: RetryOptions { pause_min: quick, pause_max: quick, ..RetryOptions::default() },
        ..StoreOptions::default()
    };
    let environment = environment(&server.access_key, &server.secret_key);
    let outside = Outside { clock: Clock::System, random: Random::seeded(1), workers: Workers::Threads, environment };
    open(&options, access, &outside).await.map(|opened| opened.store)
}

#[tokio::test]
async fn a_store_that_overwrites_is_not_relied_on() {
    let (memory, server, _) = start().await;
    assert!(open_tower(&server, Fencing::Auto, Access::Write).await.unwrap().keeps_create_only());
    server.behaviour.lock().overwrites = true;
    open_tower(&server, Fencing::Auto, Access::Read).await.unwrap();
    assert!(!open_tower(&server, Fencing::Auto, Access::Write).await.unwrap().keeps_create_only());
    let error = open_tower(&server, Fencing::CreateOnly, Access::Write).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(
        error.message,
        "store s3://disks/prefix cannot keep two servers apart, so nothing would stop them from destroying each other's \
         volumes (seen: a create-only PUT (If-None-Match: *) of a taken key succeeded; a PUT that broke off left nothing; who \
         wrote and looked afterwards saw the others, 4 times); use another store, or set store.fencing = \"verified\", or set \
         store.fencing = \"unsafe\" if you make sure yourself that only one server ever opens a volume [A10]"
    );
    open_tower(&server, Fencing::Unsafe, Access::Write).await.unwrap();
    assert_eq!(memory.object_count(), 0, "probes are deleted");
}

#[tokio::test]
async fn a_put_that_is_begun_and_broken_off_leaves_nothing_on_a_good_store() {
    use ashlar::store::probe::{CutPut, Trial, probe};
    let (memory, server, store) = start().await;
    let found = probe(&store, &store, &Random::seeded(1), Trial::CreateOnly).await.unwrap();
    assert!(found.is_good() && found.cut_put == CutPut::Nothing, "{found:?}");
    assert_eq!(memory.object_count(), 0);
    assert!(server.count("PUT") > 2 + 256, "the race, and the one that breaks off");
}

#[tokio::test]
async fn a_store_that_refuses_the_condition_is_written_to_without_it() {
    // The last says of every key that it is taken.
    for (status, code, said) in [
        (501, "NotImplemented", "NotImplemented"),
        (400, "InvalidArgument", "InvalidArgument"),
        (412, "PreconditionFailed", "says that it is taken, and nothing is there"),
    ] {
        let (memory, server, _) = start().await;
        server.behaviour.lock().refuses_condition = Some((status, code));
        let error = open_tower(&server, Fencing::CreateOnly, Access::Write).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(said), "{error}");
        for (fencing, n) in [(Fencing::Unsafe, 1), (Fencing::Auto, 2), (Fencing::Verified, 3)] {
            let store = open_tower(&server, fencing, Access::Write).await.unwrap();
            assert_eq!(store.keeps_create_only(), fencing == Fencing::Unsafe);
            let key = key(&format!("v/{n}"));
            store.put(&key, body()).await.unwrap();
            assert_eq!(store.get(&key).await.unwrap(), "body");
            assert_eq!(memory.object_count(), n, "probes are deleted");
        }
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_probed_says_why() {
    let (_, server, _) = start().await;
    server.answer_next("PUT", Misanswer::Error(403, "AccessDenied"));
    let error = open_tower(&server, Fencing::Auto, Access::Write).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message.contains("403 AccessDenied"), "{error}");
    assert!(error.message.contains("may put, get, list and delete objects in bucket disks"), "{error}");
}

#[tokio::test]
async fn deletes_go_one_by_one_where_batches_are_unknown_or_forbidden() {
    for (status, code) in [(501, "NotImplemented"), (403, "AccessDenied"), (405, "MethodNotAllowed")] {
        let (memory, server, store) = start().await;
        let keys: Vec<Key> = (0..20).map(|n| key(&format!("v/{n}"))).collect();
        keys.iter().for_each(|key| memory.replace(key, Bytes::new()));
        server.behaviour.lock().batch_answer = Some((status, code));
        store.delete(&keys[..10]).await.unwrap();
        store.delete(&keys[10..]).await.unwrap();
        assert_eq!(memory.object_count(), 0);
        assert_eq!((server.count("POST"), server.count("DELETE")), (1, 20), "remembered after {status}");
    }
    let (memory, server, store) = start().await;
    memory.replace(&key("v/1"), Bytes::new());
    server.behaviour.lock().batch_answer = Some((503, "SlowDown"));
    let error = store.delete(&[key("v/1"), key("v/2")]).await.unwrap_err();
    assert_eq!((error.kind, server.count("DELETE")), (ErrorKind::Retryable, 0));
}

#[tokio::test]
async fn foreign_keys_in_the_bucket_neither_show_nor_end_a_listing() {
    let (memory, server, store) = start().await;
    // More than a page of foreign keys stands before and between ours.
    let foreign = |n: u32| format!("v/0 foreign & <odd>/{n:05} ä+%");
    server.behaviour.lock().foreign_keys = (0..1500).map(foreign).chain(["v/".into(), "top/".into()]).collect();
    for path in ["v/1", "v/2/3", "a/b"] {
        memory.replace(&key(path), Bytes::from_static(b"x"));
    }
    let paths = |entries: Vec<ashlar::store::ObjectEntry>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.key.to_string()).collect()
    };
    assert_eq!(paths(list_all(&store, "v/").await.unwrap()), ["v/1", "v/2/3"]);
    assert_eq!(paths(list_all(&store, "").await.unwrap()), ["a/b", "v/1", "v/2/3"]);
    assert_eq!(store.list_top().await.unwrap(), ["a", "top", "v"]);
}

#[tokio::test]
async fn list_top_goes_on_beyond_a_page() {
    let (memory, _server, store) = start().await;
    let tops: Vec<String> = (0..2300).map(|n| format!("volume-{n:05}")).collect();
    for top in &tops {
        memory.replace(&key(&format!("{top}/meta/0")), Bytes::new());
        memory.replace(&key(&format!("{top}/segments/00/0")), Bytes::new());
    }
    assert_eq!(store.list_top().await.unwrap(), tops);
}

#[tokio::test]
async fn plain_http_is_used_only_if_asked_for() {
    let (_, server, _) = start().await;
    let plain = S3Options { allow_http: false, ..options(&server) };
    let error = S3Store::new("disks", "", &plain, &environment("a", "s"), Clock::System).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("store.s3.allow_http = true"), "{error}");
}
