//! The store: whether it answers, what the credentials may, what of it keeps two servers apart, whether a bucket keeps or takes away what it
//! should not, how far its clock is, and how fast it is.
//!
//! A store that is away is tried for a shorter time than a server would try it: who runs this waits for an answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::finding::{About, Finding};
use crate::cli::bench::measure::{Cell, measure};
use crate::cli::bench::plan::{Operation, Plan};
use crate::cli::outside;
use crate::config::Effective;
use crate::human::about_bytes;
use crate::outside::Random;
use crate::store::open::{Access, Fencing, Opened, Outside, StoreOptions, examine, kept_versions};
use crate::store::probe::{Finding as Found, refusal};
use crate::store::retry::RetryOptions;
use crate::store::s3::S3Store;
use crate::store::s3::lifecycle::Harm;
use crate::store::s3::options::{ObjectLock, S3Options};
use crate::store::{ErrorKind, Key, Store, StoreError, list_all};

/// How long one operation is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stores refuse what is signed with a clock that is so far off, or soon will.
const FAR_OFF: i64 = 5 * 60;

/// A clock that NTP sets is not so far off.
const OFF: i64 = 30;

/// A small PUT that takes longer has every FLUSH take as long.
const SLOW: Duration = Duration::from_secs(1);

/// A store that takes fewer bytes in a second.
const NARROW: u64 = 1 << 20;

/// What is measured: small and large objects, one by one and a few at once.
const SIZES: [u64; 2] = [4 << 10, 4 << 20];
const PARALLEL: [u32; 2] = [1, 4];
const TIME: Duration = Duration::from_secs(2);
const REQUESTS: u64 = 20;
const BYTES: u64 = 32 << 20;

/// Looks at the store; its URL as a server says it, if it could be opened.
pub async fn look(config: &Effective) -> (Vec<Finding>, Option<String>) {
    // Of an URL that cannot be, the configuration's check says so.
    if config.store.check_url().is_err() {
        return (Vec::new(), None);
    }
    let retry = &config.store.retry;
    let retry = RetryOptions {
        read_limit: retry.read_limit.min(PATIENCE),
        write_limit: retry.write_limit.min(PATIENCE),
        ..*retry
    };
    let options = StoreOptions { retry, ..config.store.clone() };
    let has_had_volumes = outside::has_had_volumes(config).await;
    let Opened { store, s3, .. } = match outside::open_with(&options, Access::Read).await {
        Ok(opened) => opened,
        Err(why) => return (vec![About::Store.wrong(why.to_string())], None),
    };
    let url = store.url();
    if url.starts_with("memory:") {
        let forgets = "store.url = \"memory://\" keeps volumes for as long as a server lives; name a directory (file://PATH) or a bucket";
        return (vec![About::Store.doubtful(forgets)], Some(url));
    }
    let mut findings = Vec::new();
    if has_had_volumes && let Err(emptied) = outside::refuse_emptied(config, &*store).await {
        findings.push(About::Store.wrong(emptied.to_string()));
    }
    if let Some(path) = url.strip_prefix("file://").filter(|path| !Path::new(path).exists()) {
        findings.push(About::Store.doubtful(not_made(path)));
        return (findings, Some(url));
    }
    let permissions = permissions(&*store, &Random::system()).await;
    let works = permissions.iter().all(|(_, tried)| tried.is_ok());
    findings.extend(judge_permissions(&url, &permissions));
    if works {
        findings.extend(volumes(&*store, &config.serve.volumes).await);
        let examined = examine(&options, &Outside::real()).await;
        findings.push(judge_probe(&url, options.fencing(), examined));
        let keeps_versions = s3.as_ref().is_some_and(|s3| s3.keeps_versions());
        match keeps_versions && !options.s3.delete_versions {
            true if options.s3.object_lock != ObjectLock::Off => {}
            true => findings.push(About::Store.doubtful(not_measured(&url))),
            false => findings.extend(speed(store, &url).await),
        }
    }
    if let Some(s3) = s3 {
        if answers(&permissions) {
            findings.extend(bucket(&s3, &url, works, &options.s3).await);
        }
        findings.extend(s3.clock_ahead().map(judge_clock));
    }
    (findings, Some(url))
}

/// Of a directory that the first PUT would make, which is not for a look at it to do.
fn not_made(path: &str) -> String {
    format!(
        "the store's directory {path} is not there: `ashlar create` makes it with a first volume; if there are volumes, is its filesystem mounted?"
    )
}

/// What is asked for, and what came of it; what was not tried, as an earlier one is needed for it, is left out.
type Tried = (&'static str, Result<(), StoreError>);

/// Tries one after the other what a server does with objects.
async fn permissions(store: &dyn Store, random: &Random) -> Vec<Tried> {
    let Ok(key) = Key::new(format!(".ashlar-probe/{}/doctor", random.uuid())) else { return Vec::new() };
    let body = Bytes::from_static(b"ashlar doctor");
    let listed = list_all(store, ".ashlar-probe/").await.map(drop);
    let is_away = matches!(&listed, Err(error) if error.kind != ErrorKind::Denied);
    let mut tried = vec![("list objects", listed)];
    if is_away {
        return tried;
    }
    let put = store.put(&key, vec![body.clone()]).await;
    let is_there = put.is_ok();
    tried.push(("put objects", put));
    if is_there {
        let got = store.get(&key).await.and_then(|got| match got == body {
            true => Ok(()),
            false => Err(StoreError::invalid(format!("the store returned other data for {key} than was put there"))),
        });
        tried.push(("get objects", got));
        tried.push(("delete objects", store.delete(std::slice::from_ref(&key)).await));
    }
    tried
}

fn judge_permissions(url: &str, tried: &[Tried]) -> Vec<Finding> {
    let failed: Vec<Finding> = tried
        .iter()
        .filter_map(|(what, tried)| {
            let error = tried.as_ref().err()?;
            Some(About::Store.wrong(match error.kind {
                ErrorKind::Denied => format!("{url} does not let this server {what}: {error}"),
                ErrorKind::Retryable => {
                    format!("{url} is away: {error}; see the network, store.s3.endpoint and the store itself")
                }
                _ => format!("a server cannot {what} in {url}: {error}"),
            }))
        })
        .collect();
    match failed.is_empty() {
        true => vec![About::Store.good(format!("{url} lets this server list, put, get and delete objects"))],
        false => failed,
    }
}

/// Whether the store answers, be it that it refuses; of one that does not, nothing else can be found out.
fn answers(tried: &[Tried]) -> bool {
    tried.iter().all(|(_, tried)| tried.as_ref().err().is_none_or(|error| error.kind == ErrorKind::Denied))
}

/// What was put for that would stay, and be paid for.
fn not_measured(url: &str) -> String {
    format!(
        "how fast {url} is was not measured, because the bucket keeps what is deleted; `ashlar bench` measures it, and leaves its objects as old \
         versions"
    )
}

/// Whether the volumes are there that are to be served.
async fn volumes(store: &dyn Store, named: &[String]) -> Vec<Finding> {
    match store.list_top().await {
        Ok(tops) => judge_volumes(&store.url(), named, &tops),
        Err(error) => vec![About::Store.wrong(format!("the volumes of {} cannot be listed: {error}", store.url()))],
    }
}

fn judge_volumes(url: &str, named: &[String], tops: &[String]) -> Vec<Finding> {
    let missing = named.iter().filter(|name| !tops.contains(name));
    let missing = missing.map(|name| {
        About::Store.wrong(format!(
            "there is no volume {name:?} in {url}, and serve.volumes names it; `ashlar list` shows what is there, `ashlar create` makes one"
        ))
    });
    missing.collect()
}

fn judge_probe(url: &str, fencing: Fencing, found: Result<Found, StoreError>) -> Finding {
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return About::Store.wrong(format!("whether {url} keeps two servers apart cannot be tried: {error}"));
        }
    };
    let seen = found.seen();
    match (found.is_enough_for(fencing), fencing) {
        (false, Fencing::Unsafe) => {
            About::Store.doubtful(format!("store.fencing = \"unsafe\" accepts this: {}", refusal(url, &found)))
        }
        (false, _) => About::Store.wrong(refusal(url, &found).message),
        (true, Fencing::Verified) => About::Store.good(format!(
            "{url} keeps two servers apart in verified mode, in which a FLUSH takes two round trips (seen: {seen})"
        )),
        (true, _) if !found.is_good() => About::Store.doubtful(format!(
            "create-only PUTs do not keep two servers apart in {url} (seen: {seen}): new volumes are made for verified mode, in which a FLUSH \
             takes two round trips, and volumes that rely on such PUTs are refused"
        )),
        (true, _) => About::Store.good(format!("{url} keeps two servers apart ({seen})")),
    }
}

/// What only buckets have. Whether it keeps versions shows only where something could be put.
async fn bucket(s3: &S3Store, url: &str, has_put: bool, options: &S3Options) -> Vec<Finding> {
    let mut findings = vec![judge_rules(url, s3.harmful_rules().await)];
    let deletes_versions = options.delete_versions;
    if options.object_lock != ObjectLock::Off {
        findings.push(judge_lock(url, options.object_lock, s3.check_object_lock(deletes_versions).await));
    } else if has_put && !s3.keeps_versions() {
        findings.push(About::Store.good(format!("the bucket of {url} keeps no old versions of objects")));
    } else if has_put {
        let listed = if deletes_versions { Some(s3.kept(".ashlar-probe/").await.map(drop)) } else { None };
        findings.push(judge_versions(url, listed));
    }
    findings
}

fn judge_rules(url: &str, rules: Result<Vec<Harm>, StoreError>) -> Finding {
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => {
            return About::Store.doubtful(format!(
                "whether a lifecycle rule of the bucket takes away what {url} keeps cannot be found out: {error}"
            ));
        }
    };
    if rules.is_empty() {
        return About::Store.good(format!("no lifecycle rule of the bucket takes away what {url} keeps"));
    }
    let said: Vec<String> = rules.iter().map(|Harm { rule, what }| format!("rule {rule:?} {what}")).collect();
    About::Store.wrong(format!(
        "lifecycle rules of the bucket destroy volumes in {url}: {}; take the store's prefix out of them",
        said.join(", ")
    ))
}

/// Of a bucket that is to have object lock.
fn judge_lock(url: &str, lock: ObjectLock, found: Result<(), StoreError>) -> Finding {
    match found {
        Ok(()) => About::Store.good(format!(
            "the bucket of {url} has object lock ({}); what is deleted there stays until a lifecycle rule expires noncurrent versions",
            lock.name()
        )),
        Err(error) => About::Store.wrong(error.to_string()),
    }
}

/// Of a bucket that keeps old versions; `listed` is what came of listing them, if they are to be deleted.
fn judge_versions(url: &str, listed: Option<Result<(), StoreError>>) -> Finding {
    match listed {
        None => About::Store.doubtful(kept_versions(url)),
        Some(Ok(())) => {
            About::Store.good(format!("the bucket of {url} keeps old versions of objects, and those of what is deleted are deleted, too"))
        }
        Some(Err(error)) => About::Store.wrong(format!(
            "the bucket of {url} keeps old versions of objects, and with store.s3.delete_versions they are to be deleted: {error}"
        )),
    }
}

fn judge_clock(ahead: i64) -> Finding {
    let off = humantime::format_duration(Duration::from_secs(ahead.unsigned_abs()));
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    match ahead.abs() {
        seconds if seconds >= FAR_OFF => About::Machine.wrong(format!(
            "this host's clock is {off} {way} the store's, which refuses what is signed for another time; let NTP set it"
        )),
        seconds if seconds >= OFF => About::Machine.doubtful(format!(
            "this host's clock is {off} {way} the store's, which refuses what is signed for a time that is minutes away; let NTP set it"
        )),
        _ => About::Machine.good(format!("this host's clock and the store's differ by less than {OFF} s")),
    }
}

async fn speed(store: Arc<dyn Store>, url: &str) -> Vec<Finding> {
    let Ok(plan) = Plan::new(&SIZES, &PARALLEL, TIME, REQUESTS, BYTES) else { return Vec::new() };
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    match measure(store, &plan, &Random::system(), &|_| {}, interrupted).await {
        Ok(measured) => judge_speed(url, &measured.cells),
        Err(error) => vec![About::Store.wrong(format!("how fast {url} is cannot be measured: {error}"))],
    }
}

fn judge_speed(url: &str, cells: &[Cell]) -> Vec<Finding> {
    let cell = |operation, size, parallel| {
        let is = |cell: &&Cell| cell.operation == operation && cell.size == size && cell.parallel == parallel;
        cells.iter().find(is)
    };
    let [small, large] = SIZES;
    let [one, few] = PARALLEL;
    let latency = cell(Operation::Put, small, one).zip(cell(Operation::Get, small, one));
    let bandwidth = cell(Operation::Put, large, few).zip(cell(Operation::Get, large, few));
    let millis = |cell: &Cell| format!("{:.1} ms", cell.p50_micros as f64 / 1000.0);
    let (mut findings, mut good) = (Vec::new(), Vec::new());
    if let Some((put, get)) = latency {
        let said = format!("half of small PUTs take less than {}, of small GETs {}", millis(put), millis(get));
        match put.p50_micros > SLOW.as_micros() as u64 {
            true => findings.push(About::Store.doubtful(format!(
                "{url} is far away: {said}, and every FLUSH takes as long as a PUT; serve from nearer, or see volume.durability = \"journal\" in \
                 docs/semantics.md"
            ))),
            false => good.push(said),
        }
    }
    if let Some((put, get)) = bandwidth {
        let each = |cell: &Cell| cell.bytes_per_second() as u64;
        let said = format!("it takes {} and gives {} in a second", about_bytes(each(put)), about_bytes(each(get)));
        match each(put).min(each(get)) < NARROW {
            true => {
                findings.push(About::Store.doubtful(format!(
                    "the way to {url} is narrow: {said}; `ashlar bench` says which settings suit it"
                )))
            }
            false => good.push(said),
        }
    }
    if !good.is_empty() {
        findings.push(About::Store.good(format!("{url}: {}", good.join("; "))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::finding::Weight;
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::probe::{CreateOnly, CutPut, Looks};
    use crate::store::{ListPage, Result};

    const URL: &str = "s3://disks";

    #[track_caller]
    fn is(finding: &Finding, weight: Weight, words: &str) {
        assert!(finding.weight == weight && finding.sentence.contains(words), "{finding:?}");
    }

    /// A store that refuses one thing, in one way.
    #[derive(Debug)]
    struct Refusing(MemoryStore, &'static str, ErrorKind);

    impl Refusing {
        fn check(&self, what: &str) -> Result<()> {
            if self.1 == what { Err(StoreError::new(self.2, format!("{what} says no"))) } else { Ok(()) }
        }
    }

    #[async_trait]
    impl Store for Refusing {
        fn url(&self) -> String {
            URL.into()
        }

        async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
            self.check("put objects")?;
            self.0.put(key, body).await
        }

        async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes> {
            self.check("get objects")?;
            self.0.get_range(key, range).await
        }

        async fn get(&self, key: &Key) -> Result<Bytes> {
            self.check("get objects")?;
            self.0.get(key).await
        }

        async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
            self.check("list objects")?;
            self.0.list(prefix, start_after).await
        }

        async fn list_top(&self) -> Result<Vec<String>> {
            self.check("list objects")?;
            self.0.list_top().await
        }

        async fn delete(&self, keys: &[Key]) -> Result<()> {
            self.check("delete objects")?;
            self.0.delete(keys).await
        }
    }

    #[tokio::test]
    async fn each_permission_that_is_missing_is_named_and_the_others_are_tried() {
        for (what, tried_in_all) in [("list objects", 4), ("put objects", 2), ("get objects", 4), ("delete objects", 4)]
        {
            let store = Refusing(MemoryStore::new(), what, ErrorKind::Denied);
            let tried = permissions(&store, &Random::seeded(1)).await;
            assert_eq!(tried.len(), tried_in_all, "{what}");
            let findings = judge_permissions(URL, &tried);
            assert_eq!(findings.len(), 1, "{findings:?}");
            is(&findings[0], Weight::Wrong, &format!("{URL} does not let this server {what}: {what} says no"));
            assert!(answers(&tried), "a refusal is an answer");
        }
        let store = Refusing(MemoryStore::new(), "", ErrorKind::Denied);
        is(&judge_permissions(URL, &permissions(&store, &Random::seeded(1)).await)[0], Weight::Good, "put, get");
        assert!(list_all(&store.0, "").await.unwrap().is_empty(), "nothing is left");
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_once() {
        let store = Refusing(MemoryStore::new(), "list objects", ErrorKind::Retryable);
        let tried = permissions(&store, &Random::seeded(1)).await;
        assert_eq!(tried.len(), 1);
        is(&judge_permissions(URL, &tried)[0], Weight::Wrong, "s3://disks is away: list objects says no; see");
        assert!(!answers(&tried));
        let missing = Refusing(MemoryStore::new(), "list objects", ErrorKind::Invalid);
        let tried = permissions(&missing, &Random::seeded(1)).await;
        assert!(!answers(&tried));
        is(&judge_permissions(URL, &tried)[0], Weight::Wrong, "cannot list objects in s3://disks");
    }

    #[test]
    fn a_volume_that_is_to_be_served_and_is_not_there_is_wrong() {
        let (named, tops) = (["db".to_owned(), "logs".to_owned()], ["db".to_owned()]);
        let findings = judge_volumes(URL, &named, &tops);
        assert_eq!(findings.len(), 1);
        is(&findings[0], Weight::Wrong, "there is no volume \"logs\" in s3://disks");
    }

    #[test]
    fn what_the_probe_found_is_judged_by_what_is_configured() {
        let good = Found { create_only: CreateOnly::Honoured, cut_put: CutPut::Nothing, looks: Looks::NotTried };
        let looks = Found { create_only: CreateOnly::Ignored, looks: Looks::Seen, ..good };
        let neither = Found { looks: Looks::Missed, ..looks };
        let judge = |fencing, found| judge_probe(URL, fencing, Ok(found));
        is(&judge(Fencing::Auto, good), Weight::Good, "keeps two servers apart (16 create-only PUTs");
        is(&judge(Fencing::Auto, looks), Weight::Doubtful, "new volumes are made for verified mode");
        is(&judge(Fencing::Verified, looks), Weight::Good, "in verified mode");
        is(&judge(Fencing::CreateOnly, looks), Weight::Wrong, "or set store.fencing = \"verified\"");
        is(&judge(Fencing::Auto, neither), Weight::Wrong, "cannot keep two servers apart");
        is(&judge(Fencing::Unsafe, neither), Weight::Doubtful, "\"unsafe\" accepts this: store s3://disks cannot");
        let untried = judge_probe(URL, Fencing::Auto, Err(StoreError::invalid("no")));
        is(&untried, Weight::Wrong, "cannot be tried: no");
    }

    #[test]
    fn rules_versions_and_the_clock_have_their_sentences() {
        let rules = vec![Harm { rule: "old".into(), what: "deletes objects after 30 days".into() }];
        is(
            &judge_rules(URL, Ok(rules)),
            Weight::Wrong,
            "rule \"old\" deletes objects after 30 days; take the store's prefix",
        );
        is(&judge_rules(URL, Ok(vec![])), Weight::Good, "no lifecycle rule");
        is(&judge_rules(URL, Err(StoreError::invalid("no"))), Weight::Doubtful, "cannot be found out: no");
        let locked = judge_lock(URL, ObjectLock::Governance, Ok(()));
        is(&locked, Weight::Good, "has object lock (governance); what is deleted there stays until");
        is(&judge_lock(URL, ObjectLock::Compliance, Err(StoreError::invalid("no"))), Weight::Wrong, "no");
        is(&judge_versions(URL, None), Weight::Doubtful, "Set store.s3.delete_versions = true");
        is(&judge_versions(URL, Some(Ok(()))), Weight::Good, "are deleted, too");
        is(&judge_versions(URL, Some(Err(StoreError::invalid("no")))), Weight::Wrong, "are to be deleted: no");
        is(&judge_clock(0), Weight::Good, "less than 30 s");
        is(&judge_clock(-40), Weight::Doubtful, "is 40s behind the store's");
        is(&judge_clock(3600), Weight::Wrong, "is 1h ahead of the store's");
    }

    #[test]
    fn a_store_that_is_far_away_or_narrow_is_doubtful() {
        let cells = |p50_micros, seconds| {
            let of = |operation| {
                let all = SIZES.iter().flat_map(|&size| PARALLEL.iter().map(move |&parallel| (size, parallel)));
                all.map(move |(size, parallel)| Cell {
                    operation,
                    size,
                    parallel,
                    requests: 4,
                    seconds,
                    p50_micros,
                    p99_micros: 0,
                })
            };
            of(Operation::Put).chain(of(Operation::Get)).collect::<Vec<_>>()
        };
        let quick = judge_speed(URL, &cells(20_000, 1.0));
        assert_eq!(quick.len(), 1);
        is(
            &quick[0],
            Weight::Good,
            "half of small PUTs take less than 20.0 ms, of small GETs 20.0 ms; it takes 16.0 MiB and",
        );
        let far = judge_speed(URL, &cells(1_100_000, 1.0));
        is(&far[0], Weight::Doubtful, "s3://disks is far away");
        let narrow = judge_speed(URL, &cells(1000, 17.0));
        is(&narrow[0], Weight::Doubtful, "the way to s3://disks is narrow: it takes 963.8 KiB and");
        assert_eq!((far.len(), narrow.len()), (2, 2));
    }
}
