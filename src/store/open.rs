//! From a URL to a store that is ready for use: the tower, bottom to top, on one page.
//!
//! ```text
//! look      says that create-only PUTs are nothing to rely on, where that is so
//! retry     repeats what may pass, pausing
//! limit     bounds what is under way, reads apart from writes
//! hedge     asks a second time for what takes too long
//! meter     counts every attempt
//! faults    misbehaves, if asked to
//! file | memory | s3 | sftp | webdav | azure | gcs
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::azure::AzureStore;
use super::azure::options::AzureOptions;
use super::buffers::{Buffers, IDLE_BYTES};
use super::faults::{FaultOptions, FaultyStore};
use super::file::{self, FileStore};
use super::gcs::GcsStore;
use super::gcs::options::GcsOptions;
use super::health::Health;
use super::hedge::{HedgeOptions, HedgeStore};
use super::limit::{LimitOptions, LimitStore};
use super::look::LookStore;
use super::memory::MemoryStore;
use super::meter::{Meter, MeterStore};
use super::probe::{CreateOnly, Finding, Trial, WRITERS, glance, probe, refusal};
use super::retry::{RetryOptions, RetryStore};
use super::s3::S3Store;
use super::s3::credentials::Environment;
use super::s3::options::S3Options;
use super::sftp::options::SftpOptions;
use super::sftp::{self, SftpStore};
use super::tiers::Cooling;
use super::webdav::options::WebdavOptions;
use super::webdav::{self, WebdavStore};
use super::{ErrorKind, Result, Store, StoreError};
use crate::outside::{Clock, Random, Workers};

/// Which store, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// `file://PATH` (relative paths too), `s3://BUCKET` or `s3://BUCKET/PREFIX`, `sftp://[USER@]HOST[:PORT]/PATH`,
    /// `webdavs://[USER@]HOST[:PORT]/PATH`, `az://CONTAINER[/PREFIX]`, `gs://BUCKET[/PREFIX]`, or `memory://`.
    pub url: String,
    /// A store for the logs of volumes, near or fast, as `url` has it; "" for none. Those that are made from now on have theirs there.
    pub log: String,
    /// A configuration file of which `[store]` says how to reach it; the same as this store without one.
    pub log_config: Option<PathBuf>,
    /// How old what is there becomes before it moves here.
    #[serde(with = "crate::human::duration")]
    pub cool_after: Duration,
    /// Bytes of the log of one volume that stay there at most, but for what is too new for any other place.
    #[serde(with = "crate::human::bytes")]
    pub log_size: u64,
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
    /// How to reach an SFTP store.
    pub sftp: SftpOptions,
    /// How to reach a WebDAV store.
    pub webdav: WebdavOptions,
    /// How to reach a store in Azure Blob Storage.
    pub azure: AzureOptions,
    /// How to reach a store in Google Cloud Storage.
    pub gcs: GcsOptions,
    /// How failed requests are repeated.
    pub retry: RetryOptions,
    /// How many requests are under way at once.
    pub limit: LimitOptions,
    /// When a GET is asked a second time.
    pub hedge: HedgeOptions,
    /// Faults to inject: for tests, and for benchmarks that want the delay of a far-away store.
    pub faults: FaultOptions,
}

/// The longest that something stays in a store for logs because it is new.
const COOL_AFTER_MAX: Duration = Duration::from_secs(30 * 86400);

/// What keeps two servers from writing to one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// What the store can do, as a probe finds: create-only PUT, else writing and looking; a store that can do neither is refused.
    #[default]
    Auto,
    /// Create-only PUT; a store that does not pass the probe is refused.
    CreateOnly,
    /// Writing and looking afterwards, whatever create-only PUTs do there: a FLUSH takes two round trips.
    Verified,
    /// Nothing: only your own care keeps two servers from opening one volume, and if they do, both destroy it.
    Unsafe,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            url: "file://./ashlar-data".into(),
            log: String::new(),
            log_config: None,
            cool_after: Cooling::default().after,
            log_size: Cooling::default().size,
            fencing: Fencing::Auto,
            unsafe_no_fencing: None,
            idle_buffers: IDLE_BYTES,
            s3: S3Options::default(),
            sftp: SftpOptions::default(),
            webdav: WebdavOptions::default(),
            azure: AzureOptions::default(),
            gcs: GcsOptions::default(),
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

    /// What the configuration says of where the store is beside its URL: an endpoint, and in Azure the account.
    pub fn endpoint(&self) -> Option<String> {
        let AzureOptions { account, endpoint, .. } = &self.azure;
        if self.url.starts_with("gs://") {
            return self.gcs.endpoint.clone();
        }
        match self.url.starts_with("az://") {
            true if account.is_none() => endpoint.clone(),
            true => Some([account.as_deref(), endpoint.as_deref()].map(Option::unwrap_or_default).join(" ")),
            false => self.s3.endpoint.clone(),
        }
    }

    /// When what is in the store for logs moves here.
    pub fn cooling(&self) -> Cooling {
        Cooling { after: self.cool_after, size: self.log_size }
    }

    /// Checks what is said of the store for logs; the error is the key and what is accepted.
    pub fn check_cooling(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        match self.cool_after <= COOL_AFTER_MAX {
            true => Ok(()),
            false => Err(("cool_after", "0s to 30d")),
        }
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
    /// Writing too, to a store of which a probe found this not long ago: only the first step is tried again, and only in a bucket.
    WriteUnprobed(Finding),
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
    /// Memory of the backend that waits for its next reads and writes.
    pub buffers: Buffers,
}

/// Opens the store that `options` name.
pub async fn open(options: &StoreOptions, access: Access, outside: &Outside) -> Result<Opened> {
    let (backend, s3, buffers) = backend(options, outside).await?;
    let opened = Opened { s3, buffers, ..stack(backend.clone(), options, &outside.random) };
    if options.unsafe_no_fencing.is_some() {
        warn!(
            "store.unsafe_no_fencing has a new name: write store.fencing = \"unsafe\" for true, and nothing for false"
        );
    }
    let opened = match (access, options.fencing()) {
        (Access::Read, _) => Ok(opened),
        (_, Fencing::Unsafe) => open_unsafe(opened, backend, options, outside).await,
        (Access::WriteUnprobed(finding), fencing) => match Kept::by(fencing, &finding) {
            Some(Kept::Looks) => to_look(opened, &finding, options, outside).await,
            // A bucket's versioning may have been switched on since, and only the reply to a PUT says so.
            Some(Kept::CreateOnly)
                if opened.s3.is_none() || glance(&*opened.store, &outside.random).await?.is_good() =>
            {
                Ok(opened)
            }
            _ => open_probed(opened, backend, options, outside).await,
        },
        (Access::Write, _) => open_probed(opened, backend, options, outside).await,
    }?;
    if let Some(s3) = opened.s3.as_ref().filter(|_| access != Access::Read) {
        s3.check_object_lock(options.s3.delete_versions).await?;
    }
    warn_of_versions(&opened, options);
    if let Address::File(path) = Address::parse(&options.url)?
        && access != Access::Read
        && let Some(caution) = file::caution(path, outside.workers).await
    {
        warn!("{caution}");
    }
    Ok(opened)
}

/// Finds out what can be relied on, and refuses the store if that is nothing.
async fn open_probed(
    opened: Opened,
    backend: Arc<dyn Store>,
    options: &StoreOptions,
    outside: &Outside,
) -> Result<Opened> {
    let (fencing, url) = (options.fencing(), opened.store.url());
    let finding = find_out(backend, fencing, options, outside).await?;
    let opened = match Kept::by(fencing, &finding) {
        Some(Kept::CreateOnly) => opened,
        Some(Kept::Looks) => to_look(opened, &finding, options, outside).await?,
        None => return Err(refusal(&url, &finding)),
    };
    let seen = finding.seen();
    if !finding.is_whole() {
        warn!("{url} is slow: it was tried out only in part, and is again with the next start (seen: {seen})");
    }
    Ok(Opened { finding: Some(finding), ..opened })
}

/// What of a store keeps two servers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// Of many create-only PUTs one succeeds.
    CreateOnly,
    /// Who writes and looks afterwards sees the others.
    Looks,
}

impl Kept {
    /// What of it is to be relied on, of what was found; nothing if the store is to be refused.
    fn by(fencing: Fencing, finding: &Finding) -> Option<Kept> {
        let create_only = (fencing != Fencing::Verified && finding.is_good()).then_some(Kept::CreateOnly);
        let looks = (fencing != Fencing::CreateOnly && finding.is_good_to_look()).then_some(Kept::Looks);
        create_only.or(looks)
    }
}

impl Finding {
    /// Whether a store of which this was found may be written to.
    pub fn is_enough_for(&self, fencing: Fencing) -> bool {
        Kept::by(fencing, self).is_some()
    }
}

/// A store on which nobody relies on create-only PUTs. The condition is left out where it is refused.
async fn to_look(opened: Opened, finding: &Finding, options: &StoreOptions, outside: &Outside) -> Result<Opened> {
    let opened = match finding.create_only {
        CreateOnly::Refused => {
            let (backend, s3, buffers) = backend(&unconditional(options), outside).await?;
            Opened { s3, buffers, ..stack(backend, options, &outside.random) }
        }
        _ => opened,
    };
    if options.fencing() == Fencing::Auto {
        warn!(
            "create-only PUTs do not keep two servers apart in {} (seen: {}): new volumes are made for verified mode, in which a \
             FLUSH takes two round trips",
            opened.store.url(),
            finding.seen()
        );
    }
    Ok(Opened { store: Arc::new(LookStore(opened.store)), ..opened })
}

fn unconditional(options: &StoreOptions) -> StoreOptions {
    StoreOptions {
        s3: S3Options { unconditional: true, ..options.s3.clone() },
        azure: AzureOptions { unconditional: true, ..options.azure.clone() },
        ..options.clone()
    }
}

/// Probes for what `fencing` may rely on.
async fn find_out(
    backend: Arc<dyn Store>,
    fencing: Fencing,
    options: &StoreOptions,
    outside: &Outside,
) -> Result<Finding> {
    let trial = if fencing == Fencing::Verified { Trial::All } else { Trial::CreateOnly };
    match try_out(backend, options, outside, trial).await {
        Err(error) if error.kind == ErrorKind::Invalid && fencing != Fencing::CreateOnly => {
            let options = unconditional(options);
            let backend = self::backend(&options, outside).await?.0;
            // What was wrong with the request may have been something else than the condition.
            try_out(backend, &options, outside, Trial::Looks).await.map_err(|_| error)
        }
        found => found,
    }
}

/// Tries out what keeps two servers apart in a store, and deletes what that leaves. Whether it is enough is not asked.
pub async fn examine(options: &StoreOptions, outside: &Outside) -> Result<Finding> {
    let (backend, ..) = backend(options, outside).await?;
    find_out(backend, options.fencing(), options, outside).await
}

/// Nothing keeps two servers apart, and somebody accepted that. The condition is left out of PUTs where the store refuses it;
/// where it honours it, if only one by one, it does some good.
async fn open_unsafe(
    opened: Opened,
    backend: Arc<dyn Store>,
    options: &StoreOptions,
    outside: &Outside,
) -> Result<Opened> {
    let why = match try_out(backend, options, outside, Trial::CreateOnly).await {
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
    let (backend, s3, buffers) = self::backend(&unconditional(options), outside).await?;
    let opened = Opened { s3, buffers, ..stack(backend, options, &outside.random) };
    // A store that refuses PUTs of any kind says so here, and not in the middle of a volume.
    put_once(&*opened.store, &outside.random).await?;
    warn!("store.fencing = \"unsafe\": PUTs to {} go without If-None-Match, because {why}", opened.store.url());
    Ok(opened)
}

/// Probes a backend, through a tower of its own: however few writes are configured, those of a race are all under way.
async fn try_out(backend: Arc<dyn Store>, options: &StoreOptions, outside: &Outside, trial: Trial) -> Result<Finding> {
    let limit = LimitOptions { writes: options.limit.writes.max(WRITERS), ..options.limit };
    let tower = stack(backend.clone(), &StoreOptions { limit, ..options.clone() }, &outside.random);
    probe(&*tower.store, &*backend, &outside.random, trial).await
}

async fn put_once(store: &dyn Store, random: &Random) -> Result<()> {
    let key = super::Key::new(format!("{}/{}", super::probe::PROBE, random.uuid()))?;
    store.put(&key, vec![]).await?;
    store.delete(&[key]).await
}

/// What is at the bottom of the tower; the same, if it is S3; its memory.
type Backend = (Arc<dyn Store>, Option<Arc<S3Store>>, Buffers);

async fn backend(options: &StoreOptions, outside: &Outside) -> Result<Backend> {
    match Address::parse(&options.url)? {
        Address::Memory => Ok((Arc::new(MemoryStore::new()), None, Buffers::default())),
        Address::File(path) => {
            let files = FileStore::open(path, outside.workers, outside.random.clone()).await?;
            let files = files.with_idle_buffers(options.idle_buffers);
            let buffers = files.buffers();
            Ok((Arc::new(files), None, buffers))
        }
        Address::S3 { bucket, prefix } => {
            let (environment, clock) = (&outside.environment, outside.clock.clone());
            let bucket = S3Store::new(bucket, prefix, &options.s3, environment, clock)?;
            let store = Arc::new(bucket.with_idle_buffers(options.idle_buffers));
            let buffers = store.buffers();
            Ok((store.clone(), Some(store), buffers))
        }
        Address::Sftp(address) => {
            let store = SftpStore::new(address, &options.sftp, outside.random.clone());
            Ok((Arc::new(store), None, Buffers::default()))
        }
        Address::Webdav(address) => {
            let random = outside.random.clone();
            let store = WebdavStore::new(address, &options.webdav, &outside.environment, random)?;
            Ok((Arc::new(store), None, Buffers::default()))
        }
        Address::Azure(rest) => {
            let store = AzureStore::new(rest, &options.azure, &outside.environment, outside.random.clone())?;
            Ok((Arc::new(store), None, Buffers::default()))
        }
        Address::Google(rest) => {
            let store = GcsStore::new(rest, &options.gcs, &outside.environment)?;
            Ok((Arc::new(store), None, Buffers::default()))
        }
    }
}

/// What was asked of the bucket has told, if it keeps old versions.
fn warn_of_versions(opened: &Opened, options: &StoreOptions) {
    let wants_versions = options.s3.delete_versions || opened.store.retains();
    if !wants_versions && opened.s3.as_ref().is_some_and(|s3| s3.keeps_versions()) {
        warn!("{}", kept_versions(&opened.store.url()));
    }
}

/// What it means that a bucket keeps old versions.
pub fn kept_versions(url: &str) -> String {
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
        store = Arc::new(HedgeStore::new(store, options.hedge, meter.clone()));
    }
    store = Arc::new(LimitStore::new(store, options.limit));
    let retry = RetryStore::new(store, options.retry, random.clone());
    let health = retry.health();
    Opened { store: Arc::new(retry), meter, s3: None, finding: None, health, buffers: Buffers::default() }
}

/// A store URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Address<'a> {
    Memory,
    File(&'a str),
    S3 { bucket: &'a str, prefix: &'a str },
    Sftp(sftp::Address),
    Webdav(webdav::Address),
    Azure(&'a str),
    Google(&'a str),
}

impl Address<'_> {
    fn parse(url: &str) -> Result<Address<'_>> {
        const ACCEPTED: &str = "accepted are file://PATH, s3://BUCKET[/PREFIX], sftp://[USER@]HOST[:PORT]/PATH, \
             webdavs://[USER@]HOST[:PORT]/PATH, az://CONTAINER[/PREFIX], gs://BUCKET[/PREFIX] and memory://";
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
            "az" => Ok(Address::Azure(rest)),
            "gs" => Ok(Address::Google(rest)),
            "sftp" => sftp::Address::parse(rest).map(Address::Sftp),
            scheme if let Some(tls) = webdav::Address::scheme(scheme) => {
                webdav::Address::parse(tls, rest).map(Address::Webdav)
            }
            _ => Err(StoreError::invalid(format!("store URLs of scheme {scheme:?} are unknown; {ACCEPTED}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::probe::{CutPut, Looks};

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
            "store URLs of scheme \"ftp\" are unknown; accepted are file://PATH, s3://BUCKET[/PREFIX], \
             sftp://[USER@]HOST[:PORT]/PATH, webdavs://[USER@]HOST[:PORT]/PATH, az://CONTAINER[/PREFIX], gs://BUCKET[/PREFIX] and memory://"
        );
        assert_eq!(
            say("./data"),
            "the store URL \"./data\" has no scheme; accepted are file://PATH, s3://BUCKET[/PREFIX], \
             sftp://[USER@]HOST[:PORT]/PATH, webdavs://[USER@]HOST[:PORT]/PATH, az://CONTAINER[/PREFIX], gs://BUCKET[/PREFIX] and memory://"
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
        assert!(error.contains("`auto`, `create-only`, `verified`, `unsafe`"), "{error}");
    }

    #[tokio::test]
    async fn verified_relies_on_looks_only_and_says_so() {
        let fencing = Fencing::Verified;
        let memory = StoreOptions { url: "memory://".into(), fencing, ..StoreOptions::default() };
        let opened = open(&memory, Access::Write, &Outside::real()).await.unwrap();
        assert!(opened.finding.is_some_and(|found| found.is_good() && found.is_good_to_look()));
        assert!(!opened.store.keeps_create_only());
        let unprobed = open(&memory, Access::WriteUnprobed(opened.finding.unwrap()), &Outside::real()).await.unwrap();
        assert!(!unprobed.store.keeps_create_only());
    }

    #[test]
    fn what_is_relied_on_is_what_was_found_and_configured() {
        let finding = |create_only, looks| Finding { create_only, cut_put: CutPut::Nothing, looks };
        let [good, raced, bad] = [
            finding(CreateOnly::Honoured, Looks::NotTried),
            finding(CreateOnly::Ignored, Looks::Seen),
            finding(CreateOnly::Ignored, Looks::Missed),
        ];
        for (fencing, expected) in [
            (Fencing::Auto, [Some(Kept::CreateOnly), Some(Kept::Looks), None]),
            (Fencing::CreateOnly, [Some(Kept::CreateOnly), None, None]),
            (Fencing::Verified, [None, Some(Kept::Looks), None]),
        ] {
            assert_eq!([good, raced, bad].map(|found| Kept::by(fencing, &found)), expected, "{fencing:?}");
        }
        // What a broken PUT leaves there would take the place of what was whole.
        assert_eq!(Kept::by(Fencing::Auto, &Finding { cut_put: CutPut::Half, ..raced }), None);
    }

    #[tokio::test]
    async fn a_store_that_passes_the_probe_is_opened_for_writing_and_says_what_was_found() {
        let memory = StoreOptions { url: "memory://".into(), ..StoreOptions::default() };
        let opened = open(&memory, Access::Write, &Outside::real()).await.unwrap();
        assert!(opened.finding.is_some_and(|finding| finding.is_good()));
        let access = Access::WriteUnprobed(opened.finding.unwrap());
        let unprobed = open(&memory, access, &Outside::real()).await.unwrap();
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
