//! From a URL to a store that is ready for use: the tower, bottom to top, on one page.
//!
//! ```text
//! retry     repeats what may pass, pausing
//! limit     bounds what is under way, reads apart from writes
//! hedge     asks a second time for what takes too long
//! meter     counts every attempt
//! faults    misbehaves, if asked to
//! file | memory | s3
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::faults::{FaultOptions, FaultyStore};
use super::file::FileStore;
use super::health::Health;
use super::hedge::{HedgeOptions, HedgeStore};
use super::limit::{LimitOptions, LimitStore};
use super::memory::MemoryStore;
use super::meter::{Meter, MeterStore};
use super::probe::{CreateOnly, probe, refusal};
use super::retry::{RetryOptions, RetryStore};
use super::s3::S3Store;
use super::s3::credentials::Environment;
use super::s3::options::S3Options;
use super::{Result, Store, StoreError};
use crate::outside::{Clock, Random, Workers};

/// Which store, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// `file://PATH` (relative paths too), `s3://BUCKET` or `s3://BUCKET/PREFIX`, or `memory://`.
    pub url: String,
    /// Accepts a store without create-only PUT. Then nothing but your own care keeps two servers from opening one
    /// volume, and if they do, both destroy it.
    pub unsafe_no_fencing: bool,
    /// How to reach an S3 store.
    pub s3: S3Options,
    /// How failed requests are repeated.
    pub retry: RetryOptions,
    /// How many requests are under way at once.
    pub limit: LimitOptions,
    /// When a GET is asked a second time.
    pub hedge: HedgeOptions,
    /// Faults to inject: for tests, and for benchmarks that want the delay of a far-away store.
    pub faults: FaultOptions,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            url: "file://./ashlar-data".into(),
            unsafe_no_fencing: false,
            s3: S3Options::default(),
            retry: RetryOptions::default(),
            limit: LimitOptions::default(),
            hedge: HedgeOptions::default(),
            faults: FaultOptions::default(),
        }
    }
}

impl StoreOptions {
    /// Checks the URL, without going there.
    pub fn check_url(&self) -> Result<()> {
        Address::parse(&self.url).map(|_| ())
    }
}

/// What a store needs of the outside (rule R14).
#[derive(Clone, Debug)]
pub struct Outside {
    /// For the expiry of credentials.
    pub clock: Clock,
    /// For jitter, unique names, faults.
    pub random: Random,
    /// For blocking file operations.
    pub workers: Workers,
    /// For the place of credentials.
    pub environment: Environment,
}

impl Outside {
    /// The real one.
    pub fn real() -> Outside {
        Outside {
            clock: Clock::System,
            random: Random::system(),
            workers: Workers::Threads,
            environment: Environment::Process,
        }
    }
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and listing only: nothing is asked of the store yet.
    Read,
    /// Writing too: the store is probed, and refused if it overwrites.
    Write,
}

/// A store that is ready for use.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The tower.
    pub store: Arc<dyn Store>,
    /// What was asked of the backend at its bottom.
    pub meter: Arc<Meter>,
    /// The backend, if it is S3: for what only buckets have.
    pub s3: Option<Arc<S3Store>>,
    /// What fails just now.
    pub health: Health,
}

/// Opens the store that `options` name.
pub async fn open(options: &StoreOptions, access: Access, outside: &Outside) -> Result<Opened> {
    let mut s3 = None;
    let backend: Arc<dyn Store> = match Address::parse(&options.url)? {
        Address::Memory => Arc::new(MemoryStore::new()),
        Address::File(path) => Arc::new(FileStore::open(path, outside.workers, outside.random.clone()).await?),
        Address::S3 { bucket, prefix } => {
            let (environment, clock) = (&outside.environment, outside.clock.clone());
            let store = Arc::new(S3Store::new(bucket, prefix, &options.s3, environment, clock)?);
            s3 = Some(Arc::clone(&store));
            store
        }
    };
    let opened = Opened { s3, ..stack(backend, options, &outside.random) };
    if access == Access::Write && probe(opened.store.as_ref(), &outside.random).await? == CreateOnly::Ignored {
        let refusal = refusal(&opened.store.url());
        match options.unsafe_no_fencing {
            true => warn!("store.unsafe_no_fencing accepts this: {refusal}"),
            false => return Err(refusal),
        }
    }
    // The probe's PUT has told.
    if !options.s3.delete_versions && opened.s3.as_ref().is_some_and(|s3| s3.keeps_versions()) {
        warn!("{}", kept_versions(&opened.store.url()));
    }
    Ok(opened)
}

/// What it means that a bucket keeps old versions.
fn kept_versions(url: &str) -> String {
    format!(
        "the bucket of {url} keeps old versions of objects: what is deleted there (after TRIM, overwriting, `ashlar delete`) \
         stays stored and is paid for. Set store.s3.delete_versions = true, or let a lifecycle rule expire noncurrent \
         versions, or suspend versioning"
    )
}

/// The wrappers around a backend.
pub fn stack(backend: Arc<dyn Store>, options: &StoreOptions, random: &Random) -> Opened {
    let meter = Arc::new(Meter::default());
    let mut store = backend;
    if options.faults != FaultOptions::default() {
        store = Arc::new(FaultyStore::new(store, options.faults, random.clone()));
    }
    store = Arc::new(MeterStore::new(store, meter.clone()));
    if options.hedge.share_percent > 0 {
        store = Arc::new(HedgeStore::new(store, options.hedge));
    }
    store = Arc::new(LimitStore::new(store, options.limit));
    let retry = RetryStore::new(store, options.retry, random.clone());
    let health = retry.health();
    Opened { store: Arc::new(retry), meter, s3: None, health }
}

/// A store URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Address<'a> {
    Memory,
    File(&'a str),
    S3 { bucket: &'a str, prefix: &'a str },
}

impl Address<'_> {
    fn parse(url: &str) -> Result<Address<'_>> {
        const ACCEPTED: &str = "accepted are file://PATH, s3://BUCKET[/PREFIX] and memory://";
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(StoreError::invalid(format!("the store URL {url:?} has no scheme; {ACCEPTED}")));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(Address::Memory),
            "memory" => Err(StoreError::invalid(format!("the store URL {url:?} has a path; memory:// has none"))),
            "file" if rest.is_empty() => {
                Err(StoreError::invalid(format!("the store URL {url:?} has no path; {ACCEPTED}")))
            }
            "file" => Ok(Address::File(rest)),
            "s3" if rest.contains('@') => Err(StoreError::invalid(
                "the store URL (not shown, since it holds an @) must not hold credentials; they come from the \
                 environment or a profile, see store.s3.credentials",
            )),
            "s3" => {
                let rest = rest.trim_end_matches('/');
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                Ok(Address::S3 { bucket, prefix })
            }
            _ => Err(StoreError::invalid(format!("store URLs of scheme {scheme:?} are unknown; {ACCEPTED}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(Address::parse("memory://").unwrap(), Address::Memory);
        assert_eq!(Address::parse("file://./ashlar-data").unwrap(), Address::File("./ashlar-data"));
        assert_eq!(Address::parse("file:///srv/a").unwrap(), Address::File("/srv/a"));
        assert_eq!(Address::parse("s3://disks").unwrap(), Address::S3 { bucket: "disks", prefix: "" });
        assert_eq!(Address::parse("s3://disks/a/b/").unwrap(), Address::S3 { bucket: "disks", prefix: "a/b" });
    }

    #[test]
    fn a_wrong_url_is_told_what_is_accepted_and_a_secret_in_it_is_not_repeated() {
        let say = |url| Address::parse(url).unwrap_err().message;
        assert_eq!(
            say("ftp://host/x"),
            "store URLs of scheme \"ftp\" are unknown; accepted are file://PATH, s3://BUCKET[/PREFIX] and memory://"
        );
        assert_eq!(
            say("./data"),
            "the store URL \"./data\" has no scheme; accepted are file://PATH, s3://BUCKET[/PREFIX] and memory://"
        );
        assert!(say("file://").contains("has no path"));
        assert!(say("memory://x").contains("has a path"));
        assert!(!say("s3://AKIA:secret@disks").contains("secret"));
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_refused_for_writing_unless_the_risk_is_accepted() {
        let message = refusal("s3://disks").message;
        assert!(message.contains("s3://disks") && message.contains("store.unsafe_no_fencing = true"));
        let memory = StoreOptions { url: "memory://".into(), ..StoreOptions::default() };
        open(&memory, Access::Write, &Outside::real()).await.unwrap();
    }

    #[test]
    fn options_are_human_and_unknown_ones_are_errors() {
        let text = "url = \"s3://b\"\n[s3]\naddressing = \"virtual-host\"\nstall_timeout = \"1m 30s\"\n";
        let options: StoreOptions = toml::from_str(text).unwrap();
        assert_eq!(options.s3.stall_timeout.as_secs(), 90);
        let back: StoreOptions = toml::from_str(&toml::to_string(&options).unwrap()).unwrap();
        assert_eq!(back, options);
        let say = |text| toml::from_str::<StoreOptions>(text).unwrap_err().to_string();
        assert!(say("[s3]\nsecret = 1").contains("secret"));
        assert!(say("[retry]\npause_min = 5").contains("pause_min"));
        assert!(say("[retry]\npause_min = \"5 lightyears\"").contains("\"5 lightyears\" is not a duration"));
    }
}
