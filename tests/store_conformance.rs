//! One suite of cases for every backend and every wrapper. See `support/conformance.rs` for the cases.
//!
//! With `ASHLAR_TEST_S3_ENDPOINT`, `…_BUCKET`, `…_ACCESS` and `…_SECRET` set, the cases of `external_s3` run against
//! that server (`scripts/s3/conformance` starts one); without, they run against the server in this process. With `ASHLAR_TEST_SFTP_URL`
//! and `…_CONFIG` (a file for `ssh -F`) set, those of `external_sftp` run against that server (`scripts/stores sftp`), else against
//! OpenSSH's `sftp-server` without a network. With `ASHLAR_TEST_WEBDAV_URL` (and `WEBDAV_PASSWORD`) set, those of `external_webdav` run against that server
//! (`scripts/stores webdav`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::Store;
use ashlar::store::faults::{FaultOptions, FaultyStore};
use ashlar::store::file::FileStore;
use ashlar::store::limit::{LimitOptions, LimitStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::meter::MeterStore;
use ashlar::store::open::{StoreOptions, stack};
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::store::s3::S3Store;
use ashlar::store::s3::credentials::Environment;
use ashlar::store::s3::options::S3Options;
use ashlar::store::tiers::{BesideStore, Cooling, Near, TieredStore};
use ashlar::store::webdav::options::WebdavOptions;
use ashlar::store::webdav::{self, WebdavStore};
use support::conformance::Subject;
use support::dav_server::DavServer;
use support::s3_server::S3Server;
use support::sftp_server::SftpServer;

fn subject(store: impl Store + 'static, keep: impl Send + 'static, rounds: usize) -> Subject {
    Subject { store: Arc::new(store), keep: Box::new(keep), rounds }
}

async fn file_store(workers: Workers) -> (tempfile::TempDir, FileStore) {
    let root = tempfile::tempdir().unwrap();
    // Below the directory that exists, so that the first PUT has to make the root.
    let store = FileStore::open(root.path().join("store"), workers, Random::system()).await.unwrap();
    (root, store)
}

mod memory {
    use super::*;

    async fn make() -> Subject {
        subject(MemoryStore::new(), (), 500)
    }
    conformance!(make);
}

mod file {
    use super::*;

    async fn make() -> Subject {
        let (root, store) = file_store(Workers::Threads).await;
        subject(store, root, 100)
    }
    conformance!(make);
}

/// Several handles of one directory, as of several servers: every operation goes to the next.
mod file_shared {
    use super::*;

    async fn make() -> Subject {
        let root = tempfile::tempdir().unwrap();
        let mut handles = Vec::new();
        for seed in 0..4 {
            handles.push(FileStore::open(root.path(), Workers::Threads, Random::seeded(seed)).await.unwrap());
        }
        subject(support::rotate::Rotate::new(handles), root, 100)
    }
    conformance!(make);
}

mod retry {
    use super::*;

    /// Over a store that refuses a third of all requests, without applying them.
    async fn make() -> Subject {
        let faults = FaultOptions { refuse: 200, throttle: 100, short: 50, ..FaultOptions::default() };
        let inner = FaultyStore::new(Arc::new(MemoryStore::new()), faults, Random::seeded(1));
        let quick = RetryOptions { pause_min: Duration::from_micros(10), ..RetryOptions::default() };
        let quick = RetryOptions { pause_max: Duration::from_micros(100), ..quick };
        subject(RetryStore::new(Arc::new(inner), quick, Random::seeded(2)), (), 100)
    }
    conformance!(make);
}

/// Two stores behind one door, all of it log.
mod tiers {
    use super::*;

    async fn make() -> Subject {
        let near = Near { store: Arc::new(MemoryStore::new()), cooling: Cooling::default() };
        let tiered = TieredStore::new(near, Arc::new(MemoryStore::new()), String::new());
        tiered.look().await.unwrap();
        subject(tiered, (), 100)
    }
    conformance!(make);
}

/// The same for whoever does not know of the near one.
mod beside {
    use super::*;

    async fn make() -> Subject {
        let near = Near { store: Arc::new(MemoryStore::new()), cooling: Cooling::default() };
        subject(BesideStore::new(Arc::new(MemoryStore::new()), near), (), 100)
    }
    conformance!(make);
}

mod limit {
    use super::*;

    async fn make() -> Subject {
        let options = LimitOptions { reads: 1, writes: 2, deletes: 1, background: 1 };
        subject(LimitStore::new(Arc::new(MemoryStore::new()), options), (), 100)
    }
    conformance!(make);
}

mod meter {
    use super::*;

    async fn make() -> Subject {
        subject(MeterStore::new(Arc::new(MemoryStore::new()), Arc::default()), (), 100)
    }
    conformance!(make);
}

mod faults {
    use super::*;

    /// Delays only: they must change the order of things, and nothing else.
    async fn make() -> Subject {
        let delays = FaultOptions { delay_spread: Duration::from_micros(300), ..FaultOptions::default() };
        subject(FaultyStore::new(Arc::new(MemoryStore::new()), delays, Random::seeded(1)), (), 100)
    }
    conformance!(make);
}

mod tower {
    use super::*;

    async fn make() -> Subject {
        let (root, store) = file_store(Workers::Threads).await;
        let opened = stack(Arc::new(store), &StoreOptions::default(), &Random::system());
        Subject { store: opened.store, keep: Box::new(root), rounds: 20 }
    }
    conformance!(make);
}

/// Client credentials and options for a server.
fn client(endpoint: &str, bucket: &str, prefix: &str, access: &str, secret: &str, options: S3Options) -> S3Store {
    // A busy disk below the server takes its time for a thousand deletions.
    let stall_timeout = std::time::Duration::from_secs(300);
    let options = S3Options { endpoint: Some(endpoint.into()), allow_http: true, stall_timeout, ..options };
    let variables = [("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)];
    let variables: HashMap<String, String> = variables.map(|(name, value)| (name.into(), value.into())).into();
    S3Store::new(bucket, prefix, &options, &Environment::Fixed(variables), Clock::System).unwrap()
}

mod s3 {
    use super::*;

    /// A prefix, bodies unsigned but with a checksum.
    async fn make() -> Subject {
        let server = S3Server::start(Arc::new(MemoryStore::new())).await;
        let (access, secret) = (&server.access_key, &server.secret_key);
        let store = client(&server.endpoint(), &server.bucket, "a/prefix", access, secret, S3Options::default());
        subject(store, server, 50)
    }
    conformance!(make);
}

mod s3_signed_virtual_host {
    use super::*;
    use ashlar::store::s3::options::Addressing;

    /// No prefix, the bucket in the host, every body signed.
    async fn make() -> Subject {
        let server = S3Server::start(Arc::new(MemoryStore::new())).await;
        let endpoint = format!("http://localhost:{}", server.address.port());
        let options = S3Options {
            addressing: Addressing::VirtualHost,
            sign_payload: true,
            checksum: false,
            ..S3Options::default()
        };
        let (access, secret) = (&server.access_key, &server.secret_key);
        let store = client(&endpoint, &server.bucket, "", access, secret, options);
        subject(store, server, 20)
    }
    conformance!(make);
}

/// A directory and a bucket served over it are one store.
mod s3_over_file {
    use super::*;

    async fn make() -> Subject {
        let (root, files) = file_store(Workers::Threads).await;
        let server = S3Server::start(Arc::new(files.clone())).await;
        let (access, secret) = (&server.access_key, &server.secret_key);
        let bucket = client(&server.endpoint(), &server.bucket, "", access, secret, S3Options::default());
        let both: Vec<Arc<dyn Store>> = vec![Arc::new(files), Arc::new(bucket)];
        subject(support::rotate::Rotate::of(both), (root, server), 30)
    }
    conformance!(make);
}

mod external_s3 {
    use super::*;

    async fn make() -> Subject {
        let set = |name: &str| std::env::var(format!("ASHLAR_TEST_S3_{name}")).ok();
        let (Some(endpoint), Some(bucket), Some(access), Some(secret)) =
            (set("ENDPOINT"), set("BUCKET"), set("ACCESS"), set("SECRET"))
        else {
            let server = S3Server::start(Arc::new(MemoryStore::new())).await;
            let (access, secret) = (&server.access_key, &server.secret_key);
            let store = client(&server.endpoint(), &server.bucket, "external", access, secret, S3Options::default());
            return subject(store, server, 5);
        };
        let store = client(&endpoint, &bucket, "conformance", &access, &secret, S3Options::default());
        // Real servers have their bad moments; what is retried must not look different.
        let store = RetryStore::new(Arc::new(store), RetryOptions::default(), Random::system());
        subject(store, (), 20)
    }
    conformance!(make);
}

mod sftp {
    use super::*;

    async fn make() -> Subject {
        let server = SftpServer::new();
        subject(server.plain(), server, 20)
    }
    conformance!(make);
}

/// A server without hard links and without limits: RENAME takes their place, and READs are short.
mod sftp_by_rename {
    use super::*;

    async fn make() -> Subject {
        let server = SftpServer::new();
        let store = server.store(&server.options("poor", "exec $SERVER -P hardlink,limits"));
        subject(store, server, 20)
    }
    conformance!(make);
}

/// A local directory and the same over SFTP are one store.
mod sftp_over_file {
    use super::*;

    async fn make() -> Subject {
        let server = SftpServer::new();
        let files = FileStore::open(server.root(), Workers::Threads, Random::system()).await.unwrap();
        let both: Vec<Arc<dyn Store>> = vec![Arc::new(files), Arc::new(server.plain())];
        subject(support::rotate::Rotate::of(both), server, 20)
    }
    conformance!(make);
}

mod external_sftp {
    use super::*;
    use ashlar::store::sftp::options::SftpOptions;
    use ashlar::store::sftp::{Address, SftpStore};

    async fn make() -> Subject {
        let set = |name: &str| std::env::var(format!("ASHLAR_TEST_SFTP_{name}")).ok();
        let (Some(url), Some(config)) = (set("URL"), set("CONFIG")) else {
            let server = SftpServer::new();
            return subject(server.plain(), server, 5);
        };
        let address = Address::parse(url.strip_prefix("sftp://").unwrap()).unwrap();
        let options = SftpOptions { config_file: Some(config.into()), ..SftpOptions::default() };
        // A server takes only so many logins at once, and refuses the rest.
        let store = SftpStore::new(address, &options, Random::system());
        subject(RetryStore::new(Arc::new(store), RetryOptions::default(), Random::system()), (), 20)
    }
    conformance!(make);
}

fn dav_store(url: &str, environment: &Environment, ca_bundle: Option<PathBuf>) -> WebdavStore {
    let options = WebdavOptions { allow_http: true, allow_unsynced: true, ca_bundle, ..WebdavOptions::default() };
    let (scheme, rest) = url.split_once("://").unwrap();
    let address = webdav::Address::parse(webdav::Address::scheme(scheme).unwrap(), rest).unwrap();
    WebdavStore::new(address, &options, environment, Random::system()).unwrap()
}

mod webdav_in_process {
    use super::*;

    async fn make() -> Subject {
        let server = DavServer::start().await;
        let store = dav_store(&server.url("conformance"), &Environment::Fixed(HashMap::new()), None);
        subject(store, server, 20)
    }
    conformance!(make);
}

mod external_webdav {
    use super::*;

    async fn make() -> Subject {
        let Ok(url) = std::env::var("ASHLAR_TEST_WEBDAV_URL") else {
            let server = DavServer::start().await;
            let store = dav_store(&server.url("external"), &Environment::Fixed(HashMap::new()), None);
            return subject(store, server, 5);
        };
        // Where user and certificates stand is the program's own business.
        let certificates = std::env::var_os("ASHLAR_STORE__WEBDAV__CA_BUNDLE").map(PathBuf::from);
        let store = dav_store(&url, &Environment::Process, certificates);
        subject(RetryStore::new(Arc::new(store), RetryOptions::default(), Random::system()), (), 20)
    }
    conformance!(make);
}
