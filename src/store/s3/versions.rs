//! Buckets that keep old versions of objects. There a DELETE frees nothing: it hides the object behind a marker, and what
//! is hidden stays stored and is paid for. That suits nobody whose TRIM is to give space back.
//!
//! * Such a bucket is noticed by the reply to a PUT, which names the version that it made, and costs no request.
//! * With `store.s3.delete_versions`, what is deleted is deleted in all its versions. Their ids are not remembered (that
//!   would be a table as long as the log, for something that most buckets do not have) but listed. The listing is
//!   read from key to key ([`Scan`]): keys that stand close together are found on one page of 1000, and no key costs
//!   more than a page. So it costs at most about one request for each object that is deleted, as its PUT did.
//! * At no moment may an older version show: an object that comes back from the dead could be taken for one of the log.
//!   So a key that has more than one version is hidden by a marker first, then its versions are deleted, and its markers
//!   last ([`Plan`]). Whatever is interrupted is done again by the next DELETE of that key.

use std::collections::{BTreeMap, BTreeSet};

use rusoto_s3::{
    GetBucketVersioningRequest, ListObjectVersionsOutput, ListObjectVersionsRequest, ObjectIdentifier, S3,
};
use serde::Serialize;

use super::answers::{Refused, strange};
use super::errors::Asked;
use super::{BATCH_KEYS_MAX, Doomed, Result, S3Store, decoded};
use crate::store::Key;

/// What a bucket holds of some objects, with all that is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Versions that hold data.
    pub versions: u64,
    /// Their bytes, all of which are paid for.
    pub bytes: u64,
    /// Of the versions, those of objects that were deleted or replaced.
    pub old_versions: u64,
    /// Their bytes.
    pub old_bytes: u64,
}

/// One version of an object, or a marker that hides the older ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    path: String,
    id: String,
    is_marker: bool,
    is_latest: bool,
    size: u64,
}

/// A page of a listing of versions, and where the next one begins.
#[derive(Debug, Default)]
struct Page {
    versions: Vec<Version>,
    next: Option<Start>,
}

/// Where a page begins: after that key, or after that version of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Start {
    key: Option<String>,
    version: Option<String>,
}

impl S3Store {
    /// Whether the bucket kept a version of something that was PUT here.
    pub fn keeps_versions(&self) -> bool {
        self.versions.lock().are_kept
    }

    /// Whether the bucket says that it keeps versions, or did once; `None` if it does not say.
    pub async fn has_versions(&self) -> Option<bool> {
        let request = GetBucketVersioningRequest { bucket: self.place.bucket.clone(), ..Default::default() };
        let said = self.request(Asked::Versioning, self.client.get_bucket_versioning(request)).await;
        said.ok().map(|versioning| versioning.status.is_some())
    }

    /// All versions of objects whose key begins with `prefix`, counted.
    pub async fn kept(&self, prefix: &str) -> Result<Kept> {
        let (mut kept, mut start) = (Kept::default(), Some(Start::default()));
        while let Some(from) = start {
            let page = self.page_of_versions(prefix, from).await?;
            for version in page.versions.iter().filter(|version| !version.is_marker) {
                kept.versions += 1;
                kept.bytes += version.size;
                kept.old_versions += u64::from(!version.is_latest);
                kept.old_bytes += if version.is_latest { 0 } else { version.size };
            }
            start = page.next;
        }
        Ok(kept)
    }

    /// Deletes these objects with all their versions, in the order of [`Plan`].
    pub(super) async fn delete_with_versions(&self, keys: &[Key]) -> Result<()> {
        let mut versions = self.versions_of(keys).await?;
        let shown = shown_over_older(&versions);
        if !shown.is_empty() {
            let shown: Vec<Key> = keys.iter().filter(|key| shown.contains(&self.path(key))).cloned().collect();
            self.delete_doomed(shown.iter().map(Doomed::whole).collect()).await?;
            versions.retain(|version| !shown.iter().any(|key| self.path(key) == version.path));
            versions.extend(self.versions_of(&shown).await?);
        }
        let by_path: BTreeMap<String, &Key> = keys.iter().map(|key| (self.path(key), key)).collect();
        let Plan { data, markers } = Plan::of(versions);
        for step in [data, markers] {
            let doomed = step.into_iter().filter_map(|version| {
                Some(Doomed { key: by_path.get(&version.path).copied()?, version: Some(version.id) })
            });
            self.delete_doomed(doomed.collect()).await?;
        }
        Ok(())
    }

    /// All versions of these objects. A key of which no page showed the newest version is listed once more by itself: it may
    /// be gone, but there are servers that leave out what stands right behind a marker (`docs/stores.md`).
    async fn versions_of(&self, keys: &[Key]) -> Result<Vec<Version>> {
        let mut found = self.scan(keys).await?;
        let newest: BTreeSet<String> =
            found.iter().filter(|version| version.is_latest).map(|version| version.path.clone()).collect();
        let doubtful: Vec<&Key> = keys.iter().filter(|key| !newest.contains(&self.path(key))).collect();
        found.retain(|version| newest.contains(&version.path));
        for key in doubtful {
            let (path, mut start) = (self.path(key), Some(Start::default()));
            while let Some(from) = start {
                let page = self.page_of_versions(key.as_str(), from).await?;
                let is_past = page.versions.iter().any(|version| version.path > path);
                found.extend(page.versions.into_iter().filter(|version| version.path == path));
                start = page.next.filter(|_| !is_past);
            }
        }
        Ok(found)
    }

    async fn scan(&self, keys: &[Key]) -> Result<Vec<Version>> {
        let mut scan = Scan::new(keys.iter().map(|key| self.path(key)));
        let mut found = Vec::new();
        while let Some(start) = scan.start.take() {
            let page = self.page_of_versions("", start).await?;
            found.extend(scan.take(page));
        }
        Ok(found)
    }

    async fn page_of_versions(&self, prefix: &str, start: Start) -> Result<Page> {
        let request = ListObjectVersionsRequest {
            bucket: self.place.bucket.clone(),
            prefix: Some(format!("{}{prefix}", self.prefix)),
            encoding_type: Some("url".into()), // as in listings of objects
            key_marker: start.key.clone(),
            version_id_marker: start.version.clone(),
            ..ListObjectVersionsRequest::default()
        };
        let asked = Asked::Versions(prefix);
        let listed = self.request(asked, self.client.list_object_versions(request)).await?;
        let page = read_page(&listed).filter(|page| page.next.as_ref() != Some(&start));
        page.ok_or_else(|| self.unanswered(asked, &strange("a listing of versions")))
    }

    /// Deletes what is named, in batches where the store has them.
    pub(super) async fn delete_doomed(&self, doomed: Vec<Doomed<'_>>) -> Result<()> {
        for batch in doomed.chunks(BATCH_KEYS_MAX) {
            if batch.len() == 1 || !self.has_batches() {
                self.delete_singly(batch).await?;
                continue;
            }
            match self.delete_batch(batch).await {
                Ok(()) => {}
                Err(Refused { answer: Some(answer), .. }) if answer.refuses_batch() => {
                    self.delete_singly(batch).await?;
                    self.forget_batches(answer.status);
                }
                Err(refused) => return Err(refused.error),
            }
        }
        Ok(())
    }
}

impl Doomed<'_> {
    /// What the typed API calls it.
    pub(super) fn identifier(&self, store: &S3Store) -> ObjectIdentifier {
        ObjectIdentifier { key: store.path(self.key), version_id: self.version.clone() }
    }
}

/// What a listing says; `None` if it says nothing that makes sense.
fn read_page(listed: &ListObjectVersionsOutput) -> Option<Page> {
    let is_encoded = listed.encoding_type.is_some();
    let mut versions = Vec::new();
    for version in listed.versions.iter().flatten() {
        let path = decoded(is_encoded, version.key.as_deref()?)?;
        let size = version.size.unwrap_or_default().max(0) as u64;
        let (id, is_latest) = (version.version_id.clone()?, version.is_latest.unwrap_or_default());
        versions.push(Version { path, id, is_marker: false, is_latest, size });
    }
    for marker in listed.delete_markers.iter().flatten() {
        let path = decoded(is_encoded, marker.key.as_deref()?)?;
        let (id, is_latest) = (marker.version_id.clone()?, marker.is_latest.unwrap_or_default());
        versions.push(Version { path, id, is_marker: true, is_latest, size: 0 });
    }
    // rusoto reads any page as an empty listing.
    let next = match listed.is_truncated {
        None if versions.is_empty() => return None,
        None | Some(false) => None,
        Some(true) => {
            let key = Some(decoded(is_encoded, listed.next_key_marker.as_deref()?)?);
            Some(Start { key, version: listed.next_version_id_marker.clone().filter(|id| !id.is_empty()) })
        }
    };
    Some(Page { versions, next })
}

/// Finds the versions of some keys in the listing of all, without reading what lies far between them.
#[derive(Debug)]
struct Scan {
    /// In order.
    wanted: Vec<String>,
    /// Where the next page begins, if there is one to read.
    start: Option<Start>,
}

impl Scan {
    fn new(wanted: impl Iterator<Item = String>) -> Scan {
        let mut wanted: Vec<String> = wanted.collect();
        wanted.sort_unstable();
        wanted.dedup();
        let start = wanted.first().map(|first| Start { key: Some(before(first)), version: None });
        Scan { wanted, start }
    }

    /// What is wanted of a page; sets where the next one begins.
    fn take(&mut self, page: Page) -> Vec<Version> {
        let last = page.versions.iter().map(|version| version.path.clone()).max();
        self.start = match (page.next, last) {
            (None, _) => None,
            (next, None) => next,
            (next, Some(last)) => match self.wanted.iter().find(|path| **path >= last) {
                None => None,
                // There may be more of its versions.
                Some(wanted) if *wanted == last => next,
                Some(wanted) if before(wanted) > last => Some(Start { key: Some(before(wanted)), version: None }),
                Some(_) => next,
            },
        };
        page.versions.into_iter().filter(|version| self.wanted.binary_search(&version.path).is_ok()).collect()
    }
}

/// A key that stands closely before `path`, whose last byte is one of [`Key`]'s alphabet, all of which is below `~`.
fn before(path: &str) -> String {
    let mut start = path.to_owned();
    let last = start.pop().unwrap_or('0');
    start.push(char::from_u32(u32::from(last) - 1).unwrap_or_default());
    start.push('~');
    start
}

/// Keys that show data now and have older versions, which would show if the newest were deleted.
fn shown_over_older(versions: &[Version]) -> Vec<String> {
    let latest = versions.iter().filter(|version| version.is_latest && !version.is_marker);
    let has_more = |path: &str| versions.iter().filter(|version| version.path == path).count() > 1;
    latest.map(|version| version.path.clone()).filter(|path| has_more(path)).collect()
}

/// In which order versions are deleted, once no key shows data that has older ones: first all data, then the markers,
/// which until then keep the data hidden.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    data: Vec<Version>,
    markers: Vec<Version>,
}

impl Plan {
    fn of(versions: Vec<Version>) -> Plan {
        let (markers, data) = versions.into_iter().partition(|version| version.is_marker);
        Plan { data, markers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(path: &str, id: &str, is_marker: bool, is_latest: bool) -> Version {
        Version { path: path.into(), id: id.into(), is_marker, is_latest, size: 1 }
    }

    #[test]
    fn the_place_before_a_key_lets_no_other_key_of_ours_in_between() {
        const ALPHABET: &str = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
        for last in ALPHABET.chars() {
            let path = format!("v/a{last}");
            let start = before(&path);
            assert!(start < path, "{start} {path}");
            for other in ALPHABET.chars().filter(|other| *other < last) {
                for tail in ["", "-", "z", "zzzz", "/z"] {
                    assert!(format!("v/a{other}{tail}") < start, "{other}{tail} {start}");
                }
            }
        }
    }

    /// A listing of these paths, one version each, read page by page; what was found, and how many pages that took.
    fn scan(wanted: &[String], all: &[String], page_len: usize) -> (Vec<String>, usize) {
        let mut scan = Scan::new(wanted.iter().cloned());
        let (mut found, mut pages) = (Vec::new(), 0);
        while let Some(start) = scan.start.take() {
            let key = start.key.unwrap();
            let rest: Vec<&String> = all.iter().filter(|path| **path > key).collect();
            let versions = rest.iter().take(page_len).map(|path| version(path, "1", false, true)).collect();
            let last = rest.iter().take(page_len).next_back().map(|path| (*path).clone());
            let next = (rest.len() > page_len).then_some(Start { key: last, version: Some("1".into()) });
            found.extend(scan.take(Page { versions, next }).into_iter().map(|version| version.path));
            pages += 1;
            assert!(pages <= all.len() + wanted.len(), "it never ends");
        }
        (found, pages)
    }

    #[test]
    fn keys_are_found_with_few_pages() {
        let all: Vec<String> = (0..10_000).map(|n| format!("v/{n:05}")).collect();
        let check = |wanted: &[String], pages_max| {
            let (found, pages) = scan(wanted, &all, 1000);
            assert_eq!(found, wanted);
            assert!(pages <= pages_max, "{pages} pages");
        };
        check(&all[..10], 1);
        check(&all[4990..5010], 1);
        check(&all, 11);
        check(&[all[0].clone(), all[5000].clone(), all[9999].clone()], 3);
        let every_20th: Vec<String> = all.iter().step_by(20).cloned().collect();
        check(&every_20th, 11);
        let gone = scan(&["v/x".into(), "u".into()], &all, 1000);
        assert!(gone.0.is_empty() && gone.1 <= 2, "{gone:?}");
        assert_eq!(scan(&[], &all, 1000), (Vec::new(), 0));
    }

    #[test]
    fn a_key_with_more_versions_than_a_page_is_read_to_its_end() {
        let mut scan = Scan::new(["v/1".to_owned(), "v/2".to_owned()].into_iter());
        let inside = Start { key: Some("v/1".into()), version: Some("7".into()) };
        scan.take(Page { versions: vec![version("v/1", "7", false, true)], next: Some(inside.clone()) });
        assert_eq!(scan.start, Some(inside));
    }

    #[test]
    fn no_older_version_shows_on_the_way() {
        // Of what a real history leaves: written, deleted, written again, deleted; and only once written.
        let histories = [
            vec![version("a", "1", false, true)],
            vec![version("b", "2", true, true), version("b", "1", false, false)],
            vec![version("c", "3", false, true), version("c", "2", true, false), version("c", "1", false, false)],
        ];
        let all: Vec<Version> = histories.iter().flatten().cloned().collect();
        assert_eq!(shown_over_older(&all), ["c"], "hidden first");
        let Plan { data, markers } = Plan::of(all);
        assert!(data.iter().all(|version| !version.is_marker) && markers.iter().all(|version| version.is_marker));
        assert_eq!((data.len(), markers.len()), (4, 2));
    }
}
