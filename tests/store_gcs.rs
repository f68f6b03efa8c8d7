//! The client of Google Cloud Storage against a server in this process that keeps conditions. `scripts/stores gcs` has the life of a volume, and an emulator that must be refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::gcs::GcsStore;
use ashlar::store::gcs::options::GcsOptions;
use ashlar::store::open::{Access, Fencing, Outside, StoreOptions, open};
use ashlar::store::probe::{CreateOnly, CutPut, Trial, probe};
use ashlar::store::s3::credentials::Environment;
use ashlar::store::{ErrorKind, Key, Store, list_all};
use bytes::Bytes;
use support::conformance::Subject;
use support::gcs_server::GcsServer;

fn environment(server: &GcsServer) -> Environment {
    Environment::Fixed(HashMap::from([("STORAGE_EMULATOR_HOST".to_owned(), server.address.to_string())]))
}

fn options() -> GcsOptions {
    GcsOptions { allow_http: true, ..GcsOptions::default() }
}

fn store_of(rest: &str, server: &GcsServer) -> GcsStore {
    GcsStore::new(rest, &options(), &environment(server)).unwrap()
}

fn store(server: &GcsServer) -> GcsStore {
    store_of("disks/a/prefix", server)
}

fn key(path: impl Into<String>) -> Key {
    Key::new(path).unwrap()
}

mod strict {
    use super::*;

    async fn make() -> Subject {
        let server = GcsServer::start().await;
        Subject { store: Arc::new(store(&server)), keep: Box::new(server), rounds: 20 }
    }
    conformance!(make);
}

/// As the emulator of PyPI is, but for its ignorance of conditions.
mod terse {
    use super::*;

    async fn make() -> Subject {
        let server = GcsServer::start().await;
        (server.bucket.lock().is_terse, server.bucket.lock().lists_all) = (true, true);
        Subject { store: Arc::new(store_of("disks", &server)), keep: Box::new(server), rounds: 5 }
    }
    conformance!(make);
}

#[tokio::test]
async fn one_wins_the_race_and_an_upload_that_is_cut_leaves_nothing() {
    let server = GcsServer::start().await;
    let store = store(&server);
    let found = probe(&store, &store, &Random::system(), Trial::All).await.unwrap();
    assert!(found.create_only == CreateOnly::Honoured && found.is_good_to_look(), "{found:?}");
    assert_eq!(found.cut_put, CutPut::Nothing);
    assert!(server.bucket.lock().objects.is_empty());
}

#[tokio::test]
async fn a_server_that_ignores_the_condition_is_used_in_verified_mode() {
    let server = GcsServer::start().await;
    server.bucket.lock().overwrites = true;
    let outside = Outside {
        clock: Clock::System,
        random: Random::system(),
        workers: Workers::Threads,
        environment: environment(&server),
    };
    let options = StoreOptions { url: "gs://disks".into(), gcs: options(), ..StoreOptions::default() };
    let opened = open(&options, Access::Write, &outside).await.unwrap();
    assert_eq!(opened.finding.unwrap().create_only, CreateOnly::Ignored);
    assert!(!opened.store.keeps_create_only());
    let strict = StoreOptions { fencing: Fencing::CreateOnly, ..options };
    assert!(open(&strict, Access::Write, &outside).await.unwrap_err().message.contains("[A10]"));
}

/// Whether the object or the bucket is not there is said in words only, by some not at all; a 404 of something in between says neither.
#[tokio::test]
async fn only_what_is_known_to_be_absent_is_absent() {
    for is_terse in [false, true] {
        let server = GcsServer::start().await;
        server.bucket.lock().is_terse = is_terse;
        let (here, nowhere) = (store(&server), store_of("nowhere", &server));
        here.put(&key("v/10"), vec![Bytes::from_static(b"there")]).await.unwrap();
        assert_eq!(here.get(&key("v/1")).await.unwrap_err().kind, ErrorKind::NotFound);
        here.delete(&[key("v/1")]).await.unwrap();
        for error in [
            nowhere.get(&key("v/1")).await.unwrap_err(),
            nowhere.put(&key("v/1"), vec![]).await.unwrap_err(),
            nowhere.list("", None).await.unwrap_err(),
            nowhere.list_top().await.unwrap_err(),
            nowhere.delete(&[key("v/1")]).await.unwrap_err(),
        ] {
            let expected =
                if is_terse && error.message.starts_with("PUT") { ErrorKind::Retryable } else { ErrorKind::Invalid };
            assert_eq!(error.kind, expected, "{error}");
            assert!(expected != ErrorKind::Invalid || error.message.contains("create the bucket nowhere"), "{error}");
        }
        server.bucket.lock().refuses = Some((404, "<html>not here</html>"));
        let error = here.get(&key("v/10")).await.unwrap_err();
        assert!(error.kind != ErrorKind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn a_page_of_something_in_between_is_no_object_and_no_listing() {
    let server = GcsServer::start().await;
    let store = store(&server);
    server.bucket.lock().refuses = Some((200, "<html>Log in</html>"));
    for error in [
        store.get(&key("v/1")).await.unwrap_err(),
        store.put(&key("v/1"), vec![]).await.unwrap_err(),
        list_all(&store, "").await.unwrap_err(),
    ] {
        assert!(error.kind == ErrorKind::Retryable && error.message.contains("proxy"), "{error}");
    }
}

/// An emulator is asked without credentials; whatever else is asked by who the file says, and what is wrong with that is said.
#[tokio::test]
async fn who_asks_is_what_the_environment_says() {
    let server = GcsServer::start().await;
    store(&server).put(&key("v/1"), vec![]).await.unwrap();
    assert_eq!(server.bucket.lock().authorization, None);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("account.json");
    let with_file = || {
        let variables = [("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), file.to_str().unwrap().to_owned())];
        let endpoint = Some(format!("http://{}", server.address));
        GcsStore::new("disks", &GcsOptions { endpoint, ..options() }, &Environment::Fixed(variables.into()))
    };
    for content in [
        None,
        Some("{\"type\": \"external_account\"}"),
        Some("{\"type\": \"service_account\", \"private_key\": \"hunter2\"}"),
    ] {
        content.iter().for_each(|content| std::fs::write(&file, content).unwrap());
        let error = with_file().unwrap_err();
        assert!(
            error.kind == ErrorKind::Invalid && error.message.contains("GOOGLE_APPLICATION_CREDENTIALS"),
            "{error}"
        );
        assert!(!error.message.contains("hunter2"), "{error}");
    }
    let made = std::process::Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]).output().unwrap();
    assert!(made.status.success());
    let account = serde_json::json!({
        "type": "service_account",
        "client_email": "disks@project.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": String::from_utf8(made.stdout).unwrap(),
    });
    std::fs::write(&file, account.to_string()).unwrap();
    let store = with_file().unwrap();
    store.put(&key("v/2"), vec![]).await.unwrap();
    let said = server.bucket.lock().authorization.clone().unwrap();
    // Head, claims, signature.
    assert!(said.starts_with("Bearer ey") && said.split('.').count() == 3, "{said}");
    server.bucket.lock().refuses = Some((401, "{\"error\":{\"message\":\"Invalid Credentials\"}}"));
    let error = store.get(&key("v/2")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{error}");
}
