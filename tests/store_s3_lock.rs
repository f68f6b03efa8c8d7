//! Object lock of buckets. With `ASHLAR_TEST_S3_LOCKED_BUCKET` (a bucket that was created with it) and the variables of `store_conformance.rs` set, the last test
//! runs against that server, which must refuse to delete what is locked; without, it says so and does nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::memory::MemoryStore;
use ashlar::store::open::{Access, Fencing, Opened, Outside, StoreOptions, open};
use ashlar::store::probe::{CreateOnly, CutPut, Finding, Looks};
use ashlar::store::s3::S3Store;
use ashlar::store::s3::credentials::Environment;
use ashlar::store::s3::options::{ObjectLock, S3Options};
use ashlar::store::{ErrorKind, Key, Store, StoreError, list_all};
use ashlar::volume::{
    self, Budget, CreateOptions, FencedBy, OpenFlags, Options, Past, ServerIdentity, Volume, VolumeName,
};
use bytes::Bytes;
use support::s3_server::{Misanswer, S3Server};

fn key(path: &str) -> Key {
    Key::new(path).unwrap()
}

fn environment(access: &str, secret: &str) -> Environment {
    let variables = [("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)];
    Environment::Fixed(variables.map(|(name, value)| (name.into(), value.into())).into())
}

fn options(endpoint: &str, object_lock: ObjectLock) -> S3Options {
    S3Options { endpoint: Some(endpoint.into()), allow_http: true, object_lock, ..S3Options::default() }
}

fn client(server: &S3Server, object_lock: ObjectLock) -> S3Store {
    let environment = environment(&server.access_key, &server.secret_key);
    S3Store::new("disks", "p", &options(&server.endpoint(), object_lock), &environment, Clock::System).unwrap()
}

async fn start() -> S3Server {
    let server = S3Server::start(Arc::new(MemoryStore::new())).await;
    server.behaviour.lock().keeps_versions = true;
    server.behaviour.lock().locks = Some(BTreeMap::new());
    server
}

#[tokio::test]
async fn an_object_is_locked_as_it_shows() {
    let server = start().await;
    for (object_lock, mode) in [(ObjectLock::Governance, "GOVERNANCE"), (ObjectLock::Compliance, "COMPLIANCE")] {
        let store = client(&server, object_lock);
        let key = key(&format!("v/{mode}"));
        store.put(&key, vec![Bytes::from_static(b"body")]).await.unwrap();
        store.retain(&key, 1_800_000_000_001).await.unwrap();
        let locks = server.behaviour.lock().locks.clone().unwrap();
        // A part of a second is a whole one.
        let until = "2027-01-15T08:00:01.000Z";
        assert_eq!(locks[&format!("p/v/{mode}")], (mode.to_owned(), until.to_owned()));
        let headers = server.behaviour.lock().put_headers.clone();
        let of_objects = ["if-none-match", "x-amz-checksum-crc32c"];
        assert!(headers.iter().all(|(name, _)| !of_objects.contains(&name.as_str())), "{headers:?}");
        assert_eq!(store.get(&key).await.unwrap(), "body");
    }
    let store = client(&server, ObjectLock::Governance);
    assert!(store.retains() && !client(&server, ObjectLock::Off).retains());
    assert_eq!(store.retain(&key("v/2"), 1).await.unwrap_err().kind, ErrorKind::NotFound);
    server.answer_next("PUT", Misanswer::Error(403, "AccessDenied"));
    let denied = store.retain(&key("v/GOVERNANCE"), 1).await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::Denied);
    assert!(denied.message.contains("may lock objects in bucket disks (PutObjectRetention)"), "{denied}");
    assert_eq!(client(&server, ObjectLock::Off).retain(&key("v/1"), 1).await.unwrap_err().kind, ErrorKind::Invalid);
}

async fn opened(server: &S3Server, s3: S3Options, access: Access) -> Result<Opened, StoreError> {
    let environment = environment(&server.access_key, &server.secret_key);
    let outside = Outside { clock: Clock::System, random: Random::system(), workers: Workers::Threads, environment };
    open(&StoreOptions { url: "s3://disks/p".into(), s3, ..StoreOptions::default() }, access, &outside).await
}

#[tokio::test]
async fn a_bucket_without_object_lock_is_refused_where_it_is_asked_for() {
    let server = start().await;
    let found = Finding { create_only: CreateOnly::Honoured, cut_put: CutPut::Nothing, looks: Looks::NotTried };
    let (read, write) = (Access::Read, Access::WriteUnprobed(found));
    let compliance = options(&server.endpoint(), ObjectLock::Compliance);
    assert!(opened(&server, compliance.clone(), write).await.unwrap().store.retains());

    let both = S3Options { delete_versions: true, ..compliance.clone() };
    let told = opened(&server, both, write).await.unwrap_err().message;
    let expected = "store.s3.object_lock = \"compliance\" does not go with store.s3.delete_versions = true, since locked versions cannot be deleted: ";
    assert!(told.starts_with(expected), "{told}");

    let store = client(&server, ObjectLock::Compliance);
    server.answer_next("GET", Misanswer::Xml("<ObjectLockConfiguration/>"));
    assert!(store.check_object_lock(false).await.is_err(), "it does not say that it is enabled");
    server.answer_next("GET", Misanswer::Error(403, "AccessDenied"));
    let told = store.check_object_lock(false).await.unwrap_err().message;
    assert!(told.contains("(GetBucketObjectLockConfiguration)"), "{told}");
    server.behaviour.lock().locks = None;
    let told = opened(&server, compliance.clone(), write).await.unwrap_err().message;
    let expected = "store.s3.object_lock = \"compliance\" asks for object lock, and the bucket of s3://disks/p has none: take a bucket that was created with it, \
                    or set store.s3.object_lock = \"off\"";
    assert_eq!(told, expected);
    // Who only reads locks nothing, and who asks for none needs none.
    opened(&server, compliance, read).await.unwrap();
    opened(&server, options(&server.endpoint(), ObjectLock::Off), write).await.unwrap();
}

fn volume_name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

async fn all_of(device: &dyn Device) -> Vec<u8> {
    device.read(0, 1 << 20).await.unwrap().concat().to_vec()
}

/// Somebody with our credentials deletes every version of every object that he can, in a real bucket.
#[tokio::test]
async fn a_snapshot_outlives_whoever_deletes_all_versions() {
    let set = |name: &str| std::env::var(format!("ASHLAR_TEST_S3_{name}")).ok();
    let external = (set("ENDPOINT"), set("LOCKED_BUCKET"), set("ACCESS"), set("SECRET"));
    let (Some(endpoint), Some(bucket), Some(access), Some(secret)) = external else {
        eprintln!("skipped, because ASHLAR_TEST_S3_LOCKED_BUCKET names no bucket");
        return;
    };
    let (random, prefix) = (Random::system(), format!("lock-{}", Random::system().uuid()));
    let environment = environment(&access, &secret);
    let outside = Outside {
        clock: Clock::System,
        random: random.clone(),
        workers: Workers::Threads,
        environment: environment.clone(),
    };
    // radosgw 16.2 ignores If-None-Match where versions are kept.
    let fencing = Fencing::Auto;
    let s3 = options(&endpoint, ObjectLock::Governance);
    let options =
        StoreOptions { url: format!("s3://{bucket}/{prefix}"), fencing, s3: s3.clone(), ..StoreOptions::default() };
    let opened = open(&options, Access::Write, &outside).await.unwrap();
    let store = opened.store;
    let fenced_by = if store.keeps_create_only() { FencedBy::CreateOnly } else { FencedBy::Verified };
    let create = CreateOptions { size: 1 << 20, fenced_by, ..CreateOptions::default() };
    volume::create(&*store, &random, &Clock::System, &volume_name(), create).await.unwrap();
    let name = volume_name();
    let volume = Volume::open(
        volume::Outside {
            cache: Arc::new(BlockCache::in_memory(1 << 20)),
            server: ServerIdentity { uuid: random.uuid(), name: "one".into() },
            ..support::outside::plain(store.clone(), Arc::new(CrashDisk::new(1)), random.clone())
        },
        &name,
        Options::default(),
        journal::Options::default(),
        OpenFlags::default(),
    );
    let volume = volume.await.unwrap();
    volume.write(4096, Bytes::from(random.bytes::<{ 64 << 10 }>().to_vec()), true).await.unwrap();
    let now = Clock::System.unix_millis();
    let until = now + 40_000;
    let label =
        Label { name: "kept".into(), taken_unix_millis: now, keep_until_unix_millis: until, ..Label::default() };
    volume.take_snapshot(label).await.unwrap();
    volume.settle_locks().await.unwrap();
    let kept = all_of(&*volume).await;
    volume.write(0, Bytes::from(vec![7; 128 << 10]), true).await.unwrap();
    volume.close().await.unwrap();

    // Versions, not only what shows.
    let s3 = S3Options { object_lock: ObjectLock::Off, delete_versions: true, ..s3 };
    let attacker = S3Store::new(&bucket, &prefix, &s3, &environment, Clock::System).unwrap();
    // It learns from a PUT that there are versions.
    attacker.put(&key("v/attacker"), vec![Bytes::new()]).await.unwrap();
    let (mut refused, mut gone) = (0, 0);
    for entry in list_all(&*store, "").await.unwrap() {
        match attacker.delete(std::slice::from_ref(&entry.key)).await {
            Ok(()) => gone += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused >= 3 && gone >= 2, "{refused} refused, {gone} gone");
    let past = || async {
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let (options, budget, secrets) = (Options::default(), Budget::default(), Secrets::default());
        Past::open(store.clone(), &volume_name(), "kept", &options, &budget, near, &secrets).await
    };
    assert!(all_of(&past().await.unwrap()).await == kept);

    // Then it may go.
    let left = Duration::from_millis(until.saturating_sub(Clock::System.unix_millis()) + 2000);
    tokio::time::sleep(left).await;
    for entry in list_all(&*store, "").await.unwrap() {
        attacker.delete(&[entry.key]).await.unwrap();
    }
    assert_eq!(list_all(&*store, "").await.unwrap(), []);
}
