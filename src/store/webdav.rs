//! Objects on a WebDAV server: `webdavs://[USER@]HOST[:PORT]/PATH`.
//!
//! An object `a/b` is a *folder* `a/b=/` with one file in it, `data`. No condition of PUT, no lock and no MOVE of a file had one winner on all servers that
//! were tried; a MOVE of a folder with `Overwrite: F` had, since it ends in a rename(2), which replaces no directory that has something in it. So a
//! PUT does this:
//! 1. make a folder of a unique name in `=ashlar-tmp/` (one is made beside each PUT for the next, so that this costs no round trip);
//! 2. PUT the body into it. What is cut leaves its half there, without a name, also on servers that keep halves;
//! 3. make the folders of the key, each once per process;
//! 4. MOVE the folder to the key's name. A taken name is answered with 412, 207, 403, 405 or 500, a missing folder with 409, 404, 207 or 500: unless it is 412, a
//!    look at both names tells. An object that is there while ours is no more where it was may be ours: that is an answer that was lost, no refusal.
//!
//! What nobody needs any more in `=ashlar-tmp/` is removed by whoever opens the store a day later. Not at once: a MOVE that was not answered may still come,
//! and a folder that it finds empty would take the name for ever.
//!
//! No object is ever shown whose folder is empty: DELETE takes the file first, and a server that dies then leaves the folder. Folders of keys stay:
//! WebDAV can only delete a folder with all that has come into it meanwhile.
//!
//! Nothing in WebDAV makes a file durable, and no server that was tried syncs one. So the store is refused for writing unless
//! `store.webdav.allow_unsynced` says that this is known.
//!
//! Read downwards: this file joins everything to the trait; [`folders`], [`requests`], [`answers`] (pure), [`address`] (pure), [`options`].

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::memory::PAGE_OBJECTS;
use super::s3::credentials::Environment;
use super::tree::Wanted;
use super::web::{Web, WebOptions};
use super::{ErrorKind, Front, Key, ListPage, ObjectEntry, Result, Store, StoreError};
use crate::outside::Random;

pub mod options;
mod address;
mod requests;
mod answers;
mod folders;

pub use address::Address;

use folders::Folders;
use options::WebdavOptions;
use requests::{Asked, Requests};

/// The file of an object in its folder.
const DATA: &str = "data";

/// What ends the name of an object's folder, and stands before a dot. No key has it, so no folder of keys does.
const OBJECT: char = '=';

/// How often a folder that vanishes under our hands is made again.
const PLACE_ATTEMPTS: usize = 5;

/// Questions of all listings that are under way at once.
const LOOKS: usize = 16;

/// Deletes that are under way at once.
const DELETES: usize = 16;

/// Folders that were made for the next PUTs, at most.
const SPARES: usize = 16;

/// A store below a folder of a WebDAV server.
pub struct WebdavStore {
    address: Address,
    options: WebdavOptions,
    requests: Requests,
    folders: Folders,
    random: Random,
    looks: Semaphore,
    /// Empty folders in the temporary one.
    spares: Mutex<Vec<String>>,
}

impl WebdavStore {
    /// The store at that address. Sends nothing yet. `Invalid` for settings that cannot be.
    pub fn new(
        address: Address,
        options: &WebdavOptions,
        environment: &Environment,
        random: Random,
    ) -> Result<WebdavStore> {
        if !address.tls && !options.allow_http {
            return Err(StoreError::invalid(format!(
                "the store URL is {address}, over which everybody on the way can read and change the data, and read the password; use webdavs://, or set \
                 store.webdav.allow_http = true"
            )));
        }
        let web = WebOptions {
            section: "webdav",
            endpoint_key: "the store URL (webdav://)",
            ca_bundle: options.ca_bundle.clone(),
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
            request_timeout: options.request_timeout,
            idle_connections_max: options.idle_connections_max,
        };
        let endpoint = address.endpoint();
        let web = Web::new(web, environment, &endpoint)?;
        let login = address::login(&address, options, environment)?;
        Ok(WebdavStore {
            requests: Requests { web, endpoint, login },
            folders: Folders::new(address.root.clone()),
            address,
            options: options.clone(),
            random,
            looks: Semaphore::new(LOOKS),
            spares: Mutex::default(),
        })
    }

    /// The folder of a key, without `/` at its end.
    fn folder(&self, key: &Key) -> String {
        format!("{}/{}{OBJECT}", self.address.root, encoded(key.as_str()))
    }

    async fn create(&self, words: &str, key: &Key, body: Vec<Bytes>) -> Result<()> {
        if !self.options.allow_unsynced {
            return Err(StoreError::invalid(format!(
                "WebDAV has no word for making things durable, so what the server at {} acknowledges may be lost with its power: use another way to that \
                 storage (sftp:// has one), or set store.webdav.allow_unsynced = true if that server keeps what it acknowledges, or if that is no matter",
                self.address.endpoint()
            )));
        }
        self.folders.settle(&self.requests, words, &self.random.uuid().to_string()).await?;
        let filled = self.fill(words, body).await?;
        self.place(words, key, &filled).await
    }

    /// A folder of a unique name, with the body in it.
    async fn fill(&self, words: &str, body: Vec<Bytes>) -> Result<String> {
        let spare = self.spares.lock().pop();
        let (folder, is_spare) = match spare {
            Some(spare) => (spare, true),
            None => (self.empty_folder(words).await?, false),
        };
        let path = format!("{folder}/{DATA}");
        let put = self.requests.put(words, &path, body.clone());
        let (put, next) = tokio::join!(put, self.next_spare(words));
        if let Ok(Some(next)) = next {
            self.spares.lock().push(next);
        }
        let answer = put?;
        let folder = match answer.status.as_u16() {
            200 | 201 | 204 => return Ok(folder),
            // It may have been taken for one of a writer that died.
            404 | 409 | 500.. if is_spare => self.empty_folder(words).await?,
            _ => folder,
        };
        let answer = match is_spare {
            true => self.requests.put(words, &format!("{folder}/{DATA}"), body).await?,
            false => answer,
        };
        match answer.status.as_u16() {
            200 | 201 | 204 => Ok(folder),
            // Nobody uses the folder again: a gateway may have answered, and behind it the body may still arrive, over that of another key.
            _ => Err(self.requests.failure(Asked { words, verb: "PUT" }, &answer)),
        }
    }

    async fn next_spare(&self, words: &str) -> Result<Option<String>> {
        if self.spares.lock().len() >= SPARES {
            return Ok(None);
        }
        self.empty_folder(words).await.map(Some)
    }

    async fn empty_folder(&self, words: &str) -> Result<String> {
        let folder = format!("{}/{}", self.folders.temporary(), self.random.uuid());
        match self.requests.make_folder(words, &format!("{folder}/")).await? {
            true => Ok(folder),
            false => {
                self.folders.check(&self.requests, words).await?;
                Err(StoreError::new(ErrorKind::Retryable, format!("{words}: {folder}/ cannot be made")))
            }
        }
    }

    /// Gives the filled folder the name of the key, unless that is taken.
    async fn place(&self, words: &str, key: &Key, filled: &str) -> Result<()> {
        let (from, to) = (format!("{filled}/"), format!("{}/", self.folder(key)));
        let parent = to.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        let is_there = |folder: String| async move {
            let found = self.requests.find(words, &format!("{folder}{DATA}"), "0").await?;
            Ok::<bool, StoreError>(found.is_some())
        };
        let mut last = None;
        for _ in 0..PLACE_ATTEMPTS {
            if parent != self.address.root {
                self.folders.make(&self.requests, words, &parent).await?;
            }
            let answer = self.requests.rename(words, &from, &to).await?;
            let refused = self.requests.failure(Asked { words, verb: "MOVE" }, &answer);
            match answer.status.as_u16() {
                200 | 201 | 204 => return Ok(()),
                412 if is_there(to.clone()).await? => {
                    self.throw_away(words, &from).await;
                    return Err(StoreError::already_exists(key));
                }
                412 => {
                    return Err(StoreError::new(
                        ErrorKind::Retryable,
                        format!(
                            "{words}: the server says that {to} is taken, and nothing is in it: somebody deletes it just now, or a delete was cut \
                             short; if this goes on, remove that folder on the server"
                        ),
                    ));
                }
                207 | 400.. => {
                    let (is_taken, is_ours_here) = tokio::try_join!(is_there(to.clone()), is_there(from.clone()))?;
                    match (is_taken, is_ours_here) {
                        (true, true) => {
                            self.throw_away(words, &from).await;
                            return Err(StoreError::already_exists(key));
                        }
                        // Nobody but us moves it: what is there may be ours.
                        (_, false) => return Err(StoreError::new(ErrorKind::Retryable, refused.message)),
                        (false, true) => self.folders.forget(&parent),
                    }
                }
                _ => return Err(refused),
            }
            last = Some(refused);
        }
        self.folders.check(&self.requests, words).await?;
        Err(last.unwrap_or_else(|| StoreError::new(ErrorKind::Retryable, words)))
    }

    /// Removes a filled folder whose MOVE was refused. What stays is for a later sweep.
    async fn throw_away(&self, words: &str, folder: &str) {
        let _ = self.requests.delete(words, folder).await;
    }

    /// The bytes of `range`, or all. Nothing of what lies beyond the end.
    async fn fetch(&self, words: &str, key: &Key, range: Option<Range<u64>>) -> Result<Front> {
        let path = format!("{}/{DATA}", self.folder(key));
        match self.requests.get(words, key, &path, range).await? {
            Some(front) => Ok(front),
            None => {
                self.folders.check(&self.requests, words).await?;
                Err(StoreError::not_found(key))
            }
        }
    }

    async fn look(&self, words: &str, path: &str, depth: &str) -> Result<Option<answers::Listing>> {
        let _permit = self.looks.acquire().await.map_err(|error| StoreError::invalid(error.to_string()))?;
        Ok(self.requests.find(words, path, depth).await?.map(|(listing, _)| listing))
    }

    /// What is wanted of the folder whose keys begin with `base` ("" or ending in `/`), in order.
    fn collect<'a>(
        &'a self,
        words: &'a str,
        wanted: Wanted<'a>,
        base: String,
    ) -> BoxFuture<'a, Result<Vec<ObjectEntry>>> {
        Box::pin(async move {
            let mut names = self.names(words, &base).await?;
            names.retain(|name| wanted.may_hold(&format!("{base}{name}")));
            let ahead = names.into_iter().map(|name| {
                let path = format!("{base}{name}");
                async move {
                    match path.ends_with('/') {
                        true => self.collect(words, wanted, path).await,
                        false => Ok(self.object(words, path).await?.into_iter().collect()),
                    }
                }
            });
            let (mut ahead, mut found) = (stream::iter(ahead).buffered(LOOKS), Vec::new());
            while found.len() < wanted.limit
                && let Some(some) = ahead.next().await
            {
                found.extend(some?);
            }
            found.truncate(wanted.limit);
            Ok(found)
        })
    }

    /// The object of that key, if there is one: not every folder of an object has one in it.
    async fn object(&self, words: &str, path: String) -> Result<Option<ObjectEntry>> {
        let key = Key::new(path)?;
        let found = self.look(words, &format!("{}/{DATA}", self.folder(&key)), "0").await?;
        let size = found.and_then(|found| found.itself.size);
        Ok(size.map(|size| ObjectEntry { key, size }))
    }

    /// The names that may lead to objects, as they sort.
    async fn names(&self, words: &str, base: &str) -> Result<Vec<String>> {
        let folder = format!("{}/{}", self.address.root, encoded(base));
        let Some(listing) = self.look(words, &folder, "1").await? else { return Ok(Vec::new()) };
        let name = |found: answers::Found| if found.is_folder { sorted_name(&found.name) } else { None };
        let mut names: Vec<String> = listing.inside.into_iter().filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn page(&self, words: &str, wanted: Wanted<'_>) -> Result<Vec<ObjectEntry>> {
        // Who is asked for what begins with "a/b/c" need not read "" and "a/" first.
        let base = wanted.prefix.rfind('/').map_or("", |end| &wanted.prefix[..=end]);
        let found = match base.is_empty() || Key::new(base.trim_end_matches('/')).is_ok() {
            true => self.collect(words, wanted, base.to_owned()).await?,
            false => Vec::new(),
        };
        self.folders.check(&self.requests, words).await?;
        Ok(found)
    }

    async fn tops(&self, words: &str) -> Result<Vec<String>> {
        let mut tops = Vec::new();
        for name in self.names(words, "").await? {
            let one = Wanted { prefix: &name, after: "", limit: 1 };
            let holds = match name.ends_with('/') {
                true => !self.collect(words, one, name.clone()).await?.is_empty(),
                false => self.object(words, name.clone()).await?.is_some(),
            };
            if holds {
                tops.push(name.trim_end_matches('/').to_owned());
            }
        }
        self.folders.check(&self.requests, words).await?;
        tops.sort_unstable();
        tops.dedup();
        Ok(tops)
    }

    async fn remove(&self, words: &str, keys: &[Key]) -> Result<()> {
        self.folders.check(&self.requests, words).await?;
        let paths: Vec<String> = keys.iter().map(|key| Ok(format!("{}/", self.folder(key)))).collect::<Result<_>>()?;
        let removals = paths.into_iter().map(|path| async move { self.requests.delete(words, &path).await });
        // One that fails keeps none of the others from going: what is asked for again is less.
        let removed: Vec<Result<()>> = stream::iter(removals).buffer_unordered(DELETES).collect().await;
        removed.into_iter().collect()
    }
}

/// A key, or the front of one, as names of folders: none of them begins with a dot, which some servers hide or refuse.
fn encoded(path: &str) -> String {
    let name = |name: &str| if name.starts_with('.') { format!("{OBJECT}{name}") } else { name.to_owned() };
    path.split('/').map(name).collect::<Vec<_>>().join("/")
}

/// The other way, of one name: as it sorts, with a `/` behind it if it is a folder of keys. `None` if it concerns no listing.
fn sorted_name(folder: &str) -> Option<String> {
    let (name, is_object) = folder.strip_suffix(OBJECT).map_or((folder, false), |name| (name, true));
    let name = name.strip_prefix(OBJECT).filter(|name| name.starts_with('.')).unwrap_or(name);
    Key::new(name).ok()?;
    Some(if is_object { name.to_owned() } else { format!("{name}/") })
}

impl std::fmt::Debug for WebdavStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebdavStore").field("address", &self.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for WebdavStore {
    fn url(&self) -> String {
        self.address.to_string()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let words = &format!("PUT of {key}");
        self.requests.web.within(words, self.create(words, key, body)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let words = &format!("GET of {key}");
        if range.is_empty() {
            // No range header asks for nothing; one byte tells whether there is such an object.
            self.requests.web.within(words, self.fetch(words, key, Some(0..1))).await?;
            return Ok(Bytes::new());
        }
        Ok(self.requests.web.within(words, self.fetch(words, key, Some(range))).await?.bytes)
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let words = &format!("GET of {key}");
        self.requests.web.within(words, self.fetch(words, key, Some(0..len.max(1)))).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let words = &format!("GET of {key}");
        Ok(self.requests.web.within(words, self.fetch(words, key, None)).await?.bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let words = &format!("listing of {prefix:?}");
        let after = start_after.map(Key::as_str).unwrap_or_default();
        let wanted = Wanted { prefix, after, limit: PAGE_OBJECTS };
        let found = self.requests.web.within(words, self.page(words, wanted)).await?;
        Ok(ListPage::new(found, true))
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let words = "listing of the top";
        self.requests.web.within(words, self.tops(words)).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let words = &format!("DELETE of {}", crate::human::counted(keys.len() as u64, "object"));
        self.requests.web.within(words, self.remove(words, keys)).await
    }
}
