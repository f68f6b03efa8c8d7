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

use super::buffers::IDLE_BYTES;
use super::faults::{FaultOptions, FaultyStore};
use super::file::FileStore;
use super::health::Health;
use super::hedge::{HedgeOptions, HedgeStore};
use super::limit::{LimitOptions, LimitStore};
use super::memory::MemoryStore;
use super::meter::{Meter, MeterStore};
use super::probe::{Finding, WRITERS, glance, probe, refusal};
use super::retry::{RetryOptions, RetryStore};
use super::s3::S3Store;
use super::s3::credentials::Environment;
use super::s3::options::S3Options;
use super::{ErrorKind, Result, Store, StoreError};
use crate::outside::{Clock, Random, Workers};

/// Which store, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// `file://PATH` (relative paths too), `s3://BUCKET` or `s3://BUCKET/PREFIX`, or `memory://`.
    pub url: String,
    /// What keeps two servers from writing to one volume.
    pub fencing: Fencing,
    /// The older spelling of `fencing = "unsafe"`.
    #[serde(skip_serializing)]
    pub unsafe_no_fencing: Option<bool>,
    /// Bytes of memory that reads and writes used and that are kept for the next ones.
    #[serde(with = "crate::human::bytes")]
    pub idle_buffers: u64,
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

/// What keeps two servers from writing to one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// What the store can do, as a probe finds; a store that can do nothing of it is refused.
    #[default]
    Auto,
    /// Create-only PUT; a store that does not pass the probe is refused.
    CreateOnly,
    /// Nothing: only your own care keeps two servers from opening one volume, and if they do, both destroy it.
    Unsafe,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            url: "file://./ashlar-data".into(),
            fencing: Fencing::Auto,
            unsafe_no_fencing: None,
            idle_buffers: IDLE_BYTES,
            s3: S3Options::default(),
            retry: RetryOptions::default(),
            limit: LimitOptions::default(),
            hedge: HedgeOptions::default(),
            faults: FaultOptions::default(),
        }
    }
}

impl StoreOptions {
    /// What is to keep servers apart, be it by the older spelling.
    pub fn fencing(&self) -> Fencing {
        if self.unsafe_no_fencing == Some(true) { Fencing::Unsafe } else { self.fencing }
    }

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
    /// Writing too: the store is probed, and refused if it cannot keep two servers apart.
    Write,
    /// Writing too, to a store that passed the probe not long ago: only the first step is tried again, and only in a bucket.
    WriteUnprobed,
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
    /// What a probe found, if there was one.
    pub finding: Option<Finding>,
    /// What fails just now.
    pub health: Health,
}

/// Opens the store that `options` name.
pub async fn open(options: &StoreOptions, access: Access, outside: &Outside) -> Result<Opened> {
    let (backend, s3) = backend(options, outside).await?;
    let opened = Opened { s3, ..stack(backend.clone(), options, &outside.random) };
    if options.unsafe_no_fencing.is_some() {
        warn!(
            "store.unsafe_no_fencing has a new name: write store.fencing = \"unsafe\" for true, and nothing for false"
        );
    }
    let opened = match (access, options.fencing()) {
        (Access::Read, _) => Ok(opened),
        (Access::WriteUnprobed, Fencing::Auto | Fencing::CreateOnly) if opened.s3.is_none() => Ok(opened),
        (Access::WriteUnprobed, Fencing::Auto | Fencing::CreateOnly) => {
            // A bucket's versioning may have been switched on since, and only the reply to a PUT says so.
            let finding = glance(&*opened.store, &outside.random).await?;
            if finding.is_good() { Ok(opened) } else { Err(refusal(&opened.store.url(), &finding)) }
        }
        (_, Fencing::Unsafe) => open_unsafe(opened, backend, options, outside).await,
        (Access::Write, Fencing::Auto | Fencing::CreateOnly) => {
            let finding = try_out(backend, options, outside).await?;
            if finding.is_good() && !finding.is_whole() {
                warn!(
                    "{} is slow: it was tried out only in part, and is again with the next start (seen: {})",
                    opened.store.url(),
                    finding.seen()
                );
            }
            match finding.is_good() {
                true => Ok(Opened { finding: Some(finding), ..opened }),
                false => Err(refusal(&opened.store.url(), &finding)),
            }
        }
    }?;
    warn_of_versions(&opened, options);
    Ok(opened)
}

/// Nothing keeps two servers apart, and somebody accepted that. The condition is left out of PUTs where the store refuses it;
/// where it honours it, if only one by one, it does some good.
async fn open_unsafe(
    opened: Opened,
    backend: Arc<dyn Store>,
    options: &StoreOptions,
    outside: &Outside,
) -> Result<Opened> {
    let why = match try_out(backend, options, outside).await {
        Ok(finding) if finding.is_good() => {
            let url = opened.store.url();
            warn!("store.fencing = \"unsafe\" is not needed: {url} passed the probe ({})", finding.seen());
            return Ok(Opened { finding: Some(finding), ..opened });
        }
        Ok(finding) => {
            let refusal = refusal(&opened.store.url(), &finding);
            warn!("store.fencing = \"unsafe\" accepts this: {refusal}");
            return Ok(Opened { finding: Some(finding), ..opened });
        }
        Err(error) if error.kind == ErrorKind::Invalid => error,
        Err(error) => return Err(error),
    };
    let s3 = S3Options { unconditional: true, ..options.s3.clone() };
    let options = StoreOptions { s3, ..options.clone() };
    let (backend, s3) = self::backend(&options, outside).await?;
    let opened = Opened { s3, ..stack(backend, &options, &outside.random) };
    // A store that refuses PUTs of any kind says so here, and not in the middle of a volume.
    put_once(&*opened.store, &outside.random).await?;
    warn!("store.fencing = \"unsafe\": PUTs to {} go without If-None-Match, because {why}", opened.store.url());
    Ok(opened)
}

/// Probes a backend, through a tower of its own: however few writes are configured, those of a race are all under way.
async fn try_out(backend: Arc<dyn Store>, options: &StoreOptions, outside: &Outside) -> Result<Finding> {
    let limit = LimitOptions { writes: options.limit.writes.max(WRITERS), ..options.limit };
    let tower = stack(backend.clone(), &StoreOptions { limit, ..options.clone() }, &outside.random);
    probe(&*tower.store, &*backend, &outside.random).await
}

async fn put_once(store: &dyn Store, random: &Random) -> Result<()> {
    let key = super::Key::new(format!("{}/{}", super::probe::PROBE, random.uuid()))?;
    store.put(&key, vec![]).await?;
    store.delete(&[key]).await
}

/// What is at the bottom of the tower.
async fn backend(options: &StoreOptions, outside: &Outside) -> Result<(Arc<dyn Store>, Option<Arc<S3Store>>)> {
    let mut s3 = None;
    let backend: Arc<dyn Store> = match Address::parse(&options.url)? {
        Address::Memory => Arc::new(MemoryStore::new()),
        Address::File(path) => {
            let files = FileStore::open(path, outside.workers, outside.random.clone()).await?;
            Arc::new(files.with_idle_buffers(options.idle_buffers))
        }
        Address::S3 { bucket, prefix } => {
            let (environment, clock) = (&outside.environment, outside.clock.clone());
            let bucket = S3Store::new(bucket, prefix, &options.s3, environment, clock)?;
            let store = Arc::new(bucket.with_idle_buffers(options.idle_buffers));
            s3 = Some(Arc::clone(&store));
            store
        }
    };
    Ok((backend, s3))
}

/// What was asked of the bucket has told, if it keeps old versions.
fn warn_of_versions(opened: &Opened, options: &StoreOptions) {
    if !options.s3.delete_versions && opened.s3.as_ref().is_some_and(|s3| s3.keeps_versions()) {
        warn!("{}", kept_versions(&opened.store.url()));
    }
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
    Opened { store: Arc::new(retry), meter, s3: None, finding: None, health }
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

    #[test]
    fn the_older_spelling_of_unsafe_is_understood() {
        let fencing = |text| toml::from_str::<StoreOptions>(text).unwrap().fencing();
        assert_eq!(fencing(""), Fencing::Auto);
        assert_eq!(fencing("fencing = \"create-only\""), Fencing::CreateOnly);
        assert_eq!(fencing("unsafe_no_fencing = false"), Fencing::Auto);
        for text in ["unsafe_no_fencing = true", "fencing = \"unsafe\""] {
            assert_eq!(fencing(text), Fencing::Unsafe);
        }
        let error = toml::from_str::<StoreOptions>("fencing = \"none\"").unwrap_err().to_string();
        assert!(error.contains("`auto`, `create-only`, `unsafe`"), "{error}");
    }

    #[tokio::test]
    async fn a_store_that_passes_the_probe_is_opened_for_writing_and_says_what_was_found() {
        let memory = StoreOptions { url: "memory://".into(), ..StoreOptions::default() };
        let opened = open(&memory, Access::Write, &Outside::real()).await.unwrap();
        assert!(opened.finding.is_some_and(|finding| finding.is_good()));
        let unprobed = open(&memory, Access::WriteUnprobed, &Outside::real()).await.unwrap();
        assert_eq!((unprobed.finding, unprobed.meter.snapshot().bytes_put), (None, 0));
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
