//! Objects: created once, read in ranges, listed in order, deleted (rule R1). The one door to the object store.
//!
//! Backends (`file`, `memory`, `s3`, `sftp`, `webdav`, `azure`, `gcs`) implement [`Store`]; wrappers (`retry`, `limit`, `hedge`, `meter`, `faults`)
//! implement it around another store. [`open`] assembles the tower, bottom to top, on one page.
//! Nothing here knows a format of ours.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use memory::PAGE_OBJECTS;

pub mod open;
pub mod memory;
pub mod file;
pub mod s3;
pub mod retry;
pub mod health;
pub mod limit;
pub mod hedge;
pub mod meter;
pub mod prices;
pub mod faults;
pub mod probe;
pub mod look;
pub mod tiers;
pub mod progress;
pub mod tree;
pub mod sftp;
pub mod web;
pub mod webdav;
pub mod tokens;
pub mod azure;
pub mod gcs;
pub mod buffers;
pub mod options;

/// A relative path of an object: segments of `[A-Za-z0-9._-]` joined by `/`, none of them empty, `.` or `..`.
/// The same on every backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Checks a key.
    pub fn new(path: impl Into<String>) -> Result<Key> {
        let path = path.into();
        let good = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        match path.split('/').all(good) {
            true => Ok(Key(path)),
            false => Err(StoreError::invalid(format!("{path:?} is not a key of an object"))),
        }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
}

/// What may be done about a failure (one kind, one action).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// A create-only PUT found the key taken. After an ambiguous failure this may be our own object: read it back.
    AlreadyExists,
    /// Time-out, throttling, a 5xx, a broken connection: try again. What was asked may or may not have happened.
    Retryable,
    /// Refused: credentials or permissions. Worth trying again only because somebody may mend them.
    Denied,
    /// The request, the address or the configuration is wrong: bucket missing, bad URL, bad key, bad range.
    Invalid,
}

/// A failure of a store, with the store's own words in `message`; never a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What may be done about it.
    pub kind: ErrorKind,
    /// One sentence that names the object and the cause.
    pub message: String,
}

impl StoreError {
    /// A failure of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> StoreError {
        StoreError { kind, message: message.into() }
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> StoreError {
        StoreError::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::NotFound`] of that key.
    pub fn not_found(key: &Key) -> StoreError {
        StoreError::new(ErrorKind::NotFound, format!("there is no object {key}"))
    }

    /// [`ErrorKind::AlreadyExists`] of that key.
    pub fn already_exists(key: &Key) -> StoreError {
        StoreError::new(ErrorKind::AlreadyExists, format!("object {key} exists already"))
    }
}

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A place that keeps objects. All methods may run concurrently. A completed PUT or DELETE is visible to every
/// later GET and LIST (read-after-write and list-after-write consistency).
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Where this is, for people: a URL without secrets.
    fn url(&self) -> String;

    /// Creates the object from `body`'s parts joined; `AlreadyExists` if there is one of that key, which is then
    /// unchanged. Returns once the object is durable. Readers see all of it or nothing.
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()>;

    /// The bytes `range` of the object, cut at its end; an empty result if `range.start` is at or beyond the end. They do
    /// not keep much more memory than their length.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes>;

    /// The first `len` bytes of the object, as [`Store::get_range`] brings them, and how long all of it is, if the store says so with
    /// the same answer.
    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        Ok(Front { bytes: self.get_range(key, 0..len).await?, total: None })
    }

    /// The whole object.
    async fn get(&self, key: &Key) -> Result<Bytes>;

    /// All objects whose key begins with `prefix` (a plain string prefix; "" is everything), in byte order of
    /// keys, after `start_after` if given. At most one page, which says whether it is known to be the last one.
    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage>;

    /// The distinct first path segments of all keys ("directories" at the top), in order.
    async fn list_top(&self) -> Result<Vec<String>>;

    /// Whether `AlreadyExists` can be relied on: of many PUTs of one key exactly one succeeds. Where not, a later PUT may replace
    /// the object of an earlier one, or both may succeed.
    fn keeps_create_only(&self) -> bool {
        true
    }

    /// The same store for work that nobody waits for, with a share of its own of what is under way; `None` if it makes no
    /// difference.
    fn background(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// A nearer store beside this one, for the logs of volumes that have theirs there; `None` if there is none ([`tiers`]).
    fn near(&self) -> Option<tiers::Near> {
        None
    }

    /// Begins to create an object: sends `part`, promises `missing` bytes more, and sends nothing else until this is dropped,
    /// as if the connection had broken. Ends early, with true, if the store answers all the same; with false, at once, if
    /// the backend cannot do that. For the probe; wrappers do not pass it on.
    async fn begin_put(&self, _key: &Key, _part: Bytes, _missing: u64) -> bool {
        false
    }

    /// Deletes the objects, in batches where the store has them; one that does not exist counts as deleted.
    async fn delete(&self, keys: &[Key]) -> Result<()>;

    /// Whether [`Store::retain`] is there to be used.
    fn retains(&self) -> bool {
        false
    }

    /// Has the store keep what the object holds until then, in milliseconds since 1970, whoever deletes it: a DELETE hides it, and succeeds. `NotFound` if
    /// there is no such object. That is never made earlier.
    async fn retain(&self, key: &Key, _until_unix_millis: u64) -> Result<()> {
        Err(StoreError::invalid(format!("{key} cannot be locked: {} has no object lock", self.url())))
    }
}

/// The first bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// They.
    pub bytes: Bytes,
    /// Bytes of all of it, if the store said so.
    pub total: Option<u64>,
}

/// A page of a listing: objects in byte order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    entries: Vec<ObjectEntry>,
    is_last: bool,
}

impl ListPage {
    /// A page; the store says whether it ends the listing. A full one is not believed to: asking once more costs less than what a store
    /// that miscounts would hide.
    pub fn new(entries: Vec<ObjectEntry>, is_last: bool) -> ListPage {
        let is_last = entries.is_empty() || is_last && entries.len() < PAGE_OBJECTS;
        ListPage { entries, is_last }
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        self.is_last
    }
}

impl Deref for ListPage {
    type Target = [ObjectEntry];

    fn deref(&self) -> &[ObjectEntry] {
        &self.entries
    }
}

impl IntoIterator for ListPage {
    type Item = ObjectEntry;
    type IntoIter = std::vec::IntoIter<ObjectEntry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// All pages of a listing.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<ObjectEntry>> {
    list_after(store, prefix, None).await
}

/// All pages of a listing after that key.
pub async fn list_after(store: &dyn Store, prefix: &str, start_after: Option<&Key>) -> Result<Vec<ObjectEntry>> {
    let mut all: Vec<ObjectEntry> = Vec::new();
    loop {
        let page = store.list(prefix, all.last().map(|entry| &entry.key).or(start_after)).await?;
        let is_last = page.is_last();
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::meter::{Meter, MeterStore};

    /// One request tells all of a short listing; after a full page there is another one, whatever the store says of it.
    #[tokio::test]
    async fn nothing_is_asked_for_after_the_last_page() {
        for (objects, requests) in [(0, 1), (3, 1), (PAGE_OBJECTS - 1, 1), (PAGE_OBJECTS, 2), (PAGE_OBJECTS + 1, 2)] {
            let meter = Arc::new(Meter::default());
            let store = MeterStore::new(Arc::new(MemoryStore::new()), meter.clone());
            for n in 0..objects {
                store.put(&Key::new(format!("v/{n:04}")).unwrap(), vec![]).await.unwrap();
            }
            assert_eq!(list_all(&store, "v/").await.unwrap().len(), objects);
            assert_eq!(meter.snapshot().list.count, requests, "{objects} objects");
        }
    }
}
