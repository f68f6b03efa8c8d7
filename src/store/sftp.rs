//! Objects as plain files on a server that speaks SFTP: the key is the path below the root, as in a store in a local directory
//! ([`super::file`]), so that the directory may be served in either way.
//!
//! What a PUT does, in this order (the order is the promise; what stands together is asked at once):
//! 1. make a file of a unique name in `.ashlar-tmp/`;
//! 2. write the body to it, and sync it (`fsync@openssh.com`);
//! 3. make the directories of the key, and sync each that leads there, once per process;
//! 4. hard-link the file to the key's path (`hardlink@openssh.com`), which fails if that is taken. Where the server or its filesystem has no
//!    links, RENAME of version 3 does it, which does not replace either; the probe finds out whether that is so;
//! 5. sync the directory; look whether the object is there as long as it should be, and whether the root is still the store's;
//! 6. remove the temporary name.
//!
//! So an upload that is cut leaves a temporary file at most, which no listing shows and whoever writes next removes after a day. A crash
//! of the server's host between 4 and 5 leaves a whole object whose name may not be durable; therefore whoever finds one in a directory for the
//! first time syncs that before anything is built on it ([`directories`]).
//!
//! SFTP says FAILURE for a name that is taken, a full disk, and a filesystem that is read-only: a look at the name tells the first from
//! the others, which may pass.
//!
//! Read downwards: this file joins everything to the trait; [`directories`] is what is known of directories; [`session`] is one connection,
//! [`ssh`] the program under it; [`options`] is what can be set, [`address`] reads the URL.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::{StreamExt, stream};
use tokio::sync::Mutex;

use super::memory::PAGE_OBJECTS;
use super::tree::{TEMPORARY, Wanted, sorted_name};
use super::{ErrorKind, Key, ListPage, ObjectEntry, Result, Store, StoreError};
use crate::outside::Random;

pub mod options;
mod address;
mod ssh;
mod session;
mod directories;

pub use address::Address;

use directories::{Directories, parent};
use options::SftpOptions;
use session::{Failure, File, Session};

/// How often a directory that vanishes under our hands (another host tidied it away) is made again.
const PLACE_ATTEMPTS: usize = 5;

/// Directories that lie side by side and are read at once, for a listing.
const DIRECTORIES_AHEAD: usize = 8;

/// What a server lacks that cannot make files durable.
const NO_FSYNC: &str = "it has no fsync@openssh.com";

/// Files that are deleted at once.
const DELETES: usize = 32;

/// A store below a directory of an SFTP server.
#[derive(Debug)]
pub struct SftpStore {
    pool: Pool,
    directories: Directories,
    address: Address,
    options: SftpOptions,
    random: Random,
}

impl SftpStore {
    /// The store at that address. Connects with the first request.
    pub fn new(address: Address, options: &SftpOptions, random: Random) -> SftpStore {
        SftpStore {
            pool: Pool::new(address.clone(), options),
            directories: Directories::new(address.path.clone(), options.allow_unsynced),
            address,
            options: options.clone(),
            random,
        }
    }

    /// The file of a key; `Invalid` for keys that are ours.
    fn path_of(&self, key: &Key) -> Result<String> {
        match key.as_str().split('/').next() == Some(TEMPORARY) {
            true => Err(StoreError::invalid(format!("{key} cannot be a key of an SFTP store"))),
            false => Ok(format!("{}/{key}", self.address.path)),
        }
    }

    /// Waits for one request, but not for ever, and says what went wrong with what.
    async fn request<T>(
        &self,
        what: impl Fn() -> String,
        work: impl Future<Output = std::result::Result<T, Ended>>,
    ) -> Result<T> {
        let limit = self.options.request_timeout;
        let failed = |kind, why: &dyn std::fmt::Display| {
            StoreError::new(kind, format!("cannot {} on {}: {why}", what(), self.address))
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Ended::For(error))) => Err(error),
            Ok(Err(Ended::Failed(failure))) => Err(match &failure {
                Failure::Lost(error) => failed(error.kind, error),
                Failure::Refused => {
                    failed(ErrorKind::Denied, &"permission denied; check whom the directory belongs to")
                }
                Failure::Unsupported(said) if said == NO_FSYNC => failed(
                    ErrorKind::Invalid,
                    &"the server cannot make files durable (it has no fsync@openssh.com), so what it acknowledges may be lost with its \
                      power; use another server, or set store.sftp.allow_unsynced = true if that is no matter",
                ),
                Failure::Unsupported(_) => failed(ErrorKind::Invalid, &failure),
                Failure::Absent | Failure::Unspecific(_) => failed(ErrorKind::Retryable, &failure),
            }),
            Err(_) => {
                let limit = humantime::format_duration(limit);
                Err(failed(ErrorKind::Retryable, &format!("no end after {limit} (store.sftp.request_timeout)")))
            }
        }
    }

    async fn create(&self, key: &Key, path: &str, body: &[Bytes]) -> std::result::Result<(), Ended> {
        let (session, directories) = (&self.pool.session(Use::Writes).await?, &self.directories);
        let path_of_temporary = format!("{}/{}", directories.temporary(), self.random.uuid());
        let temporary = Temporary { session, path: path_of_temporary, is_removed: AtomicBool::new(false) };
        let file = match session.create(&temporary.path).await {
            Err(Failure::Absent) if !directories.is_known() => {
                directories.make(session, &directories.temporary()).await?;
                session.create(&temporary.path).await?
            }
            Err(Failure::Absent) => {
                directories.check(session).await?;
                return Err(Failure::Absent.into());
            }
            file => file?,
        };
        if !session.syncs() && !self.options.allow_unsynced {
            return Err(Failure::Unsupported(NO_FSYNC.into()).into());
        }
        file.write(body, session.syncs()).await?;
        drop(file);
        directories.settle_in(session, &temporary.path, &self.random.uuid().to_string()).await?;
        let folder = self.place(session, &temporary.path, path, key).await?;
        let synced = async {
            match &folder {
                Some(folder) => folder.sync().await,
                None => Ok(()),
            }
        };
        let looked = async {
            let len: u64 = body.iter().map(|part| part.len() as u64).sum();
            match session.look(path).await? {
                found if found.size == len && found.is_directory != Some(true) => Ok(()),
                _ => Err(Failure::Unspecific("what was made is not there".into())),
            }
        };
        let removed = async {
            temporary.remove().await;
            Ok(())
        };
        tokio::try_join!(synced, directories.check(session), looked, removed)?;
        Ok(())
    }

    /// Gives the temporary file its final name, unless that is taken. The directory of that name, open, if it can be synced.
    async fn place(
        &self,
        session: &Arc<Session>,
        temporary: &str,
        path: &str,
        key: &Key,
    ) -> std::result::Result<Option<File>, Ended> {
        let folder = parent(path).unwrap_or_default();
        let mut links = session.links();
        for _ in 0..PLACE_ATTEMPTS {
            self.directories.make(session, folder).await?;
            let placed = async {
                if links { session.link(temporary, path).await } else { session.rename(temporary, path).await }
            };
            let opened = async { if session.syncs() { session.open(folder).await.map(Some) } else { Ok(None) } };
            let failure = match tokio::join!(placed, opened) {
                (Ok(()), opened) => return Ok(opened?),
                (Err(Failure::Absent), _) => {
                    self.directories.forget(folder);
                    continue;
                }
                (Err(failure @ Failure::Lost(_)), _) => return Err(failure.into()),
                (Err(failure), _) => failure,
            };
            match session.look(path).await {
                Ok(found) if found.is_directory == Some(true) => {
                    let message = format!("{path} on the server is the directory of other objects");
                    return Err(Ended::For(StoreError::invalid(message)));
                }
                Ok(_) => {
                    // Its name must be durable before anything is concluded from it.
                    self.directories.sync(session, folder).await?;
                    return Err(Ended::For(StoreError::already_exists(key)));
                }
                // The filesystem below may have no links, of which SFTP says no more than of a full disk.
                Err(Failure::Absent) if links => links = false,
                Err(Failure::Absent) => return Err(failure.into()),
                Err(failure) => return Err(failure.into()),
            }
        }
        self.directories.check(session).await?;
        Err(Failure::Unspecific("its directory keeps being removed".into()).into())
    }

    /// The bytes of `range`, or all; `None` if there is no such object.
    async fn fetch(&self, path: &str, range: Range<u64>) -> std::result::Result<Option<Bytes>, Ended> {
        let session = &self.pool.session(Use::Reads).await?;
        let file = match session.open(path).await {
            Err(Failure::Absent) => {
                self.directories.check(session).await?;
                return Ok(None);
            }
            file => file?,
        };
        let read = async {
            let range = match range.is_empty() || range.end == u64::MAX {
                true => match file.look().await? {
                    found if found.is_directory == Some(true) => return Ok(None),
                    found => range.start..range.end.min(found.size).max(range.start),
                },
                false => range,
            };
            match file.read(range).await {
                // A directory can be opened, but not read.
                Err(failure @ (Failure::Unspecific(_) | Failure::Unsupported(_))) => match file.look().await? {
                    found if found.is_directory == Some(true) => Ok(None),
                    _ => Err(failure),
                },
                read => read.map(Some),
            }
        };
        let settled = async {
            match self.directories.settle_names_beside(session, path).await {
                // Who reads need not be able to sync.
                Err(Failure::Unsupported(_) | Failure::Unspecific(_)) => Ok(()),
                settled => settled,
            }
        };
        Ok(tokio::try_join!(read, settled)?.0)
    }

    /// What is wanted of the directory whose keys begin with `base` ("" or ending in `/`), in order.
    fn collect<'a>(
        &'a self,
        session: &'a Arc<Session>,
        wanted: Wanted<'a>,
        base: String,
    ) -> BoxFuture<'a, std::result::Result<Vec<ObjectEntry>, Failure>> {
        Box::pin(async move {
            let mut names = self.names(session, &base).await?;
            names.retain(|(name, _)| wanted.may_hold(&format!("{base}{name}")));
            let ahead = names.into_iter().map(|(name, size)| {
                let path = format!("{base}{name}");
                async move {
                    match path.ends_with('/') {
                        true => self.collect(session, wanted, path).await,
                        false => Ok(Key::new(path).ok().map(|key| ObjectEntry { key, size }).into_iter().collect()),
                    }
                }
            });
            let (mut ahead, mut found) = (stream::iter(ahead).buffered(DIRECTORIES_AHEAD), Vec::new());
            while found.len() < wanted.limit
                && let Some(some) = ahead.next().await
            {
                found.extend(some?);
            }
            found.truncate(wanted.limit);
            Ok(found)
        })
    }

    /// The names that may lead to objects, as they sort, and the sizes of files; none if there is no such directory.
    async fn names(&self, session: &Arc<Session>, base: &str) -> std::result::Result<Vec<(String, u64)>, Failure> {
        let directory = format!("{}/{base}", self.address.path);
        let entries = match session.names(directory.trim_end_matches('/')).await {
            Err(Failure::Absent) => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::with_capacity(entries.len());
        for (name, mut found) in entries {
            if found.is_directory.is_none() {
                found = match session.look(&format!("{directory}{name}")).await {
                    Err(Failure::Absent) => continue, // deleted meanwhile
                    found => found?,
                };
            }
            if !found.is_special {
                let sorted = sorted_name(base, &name, found.is_directory == Some(true));
                names.extend(sorted.map(|name| (name, found.size)));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    async fn page(&self, wanted: Wanted<'_>) -> std::result::Result<Vec<ObjectEntry>, Ended> {
        let session = &self.pool.session(Use::Reads).await?;
        let found = self.collect(session, wanted, String::new()).await?;
        self.directories.check(session).await?;
        Ok(found)
    }

    async fn tops(&self) -> std::result::Result<Vec<String>, Ended> {
        let session = &self.pool.session(Use::Reads).await?;
        let mut tops = Vec::new();
        for (name, _) in self.names(session, "").await? {
            let one = Wanted { prefix: &name, after: "", limit: 1 };
            if !name.ends_with('/') || !self.collect(session, one, name.clone()).await?.is_empty() {
                tops.push(name.trim_end_matches('/').to_owned());
            }
        }
        self.directories.check(session).await?;
        tops.sort_unstable();
        Ok(tops)
    }

    async fn remove(&self, keys: &[Key]) -> std::result::Result<(), Ended> {
        let session = &self.pool.session(Use::Writes).await?;
        let paths: Vec<String> = keys.iter().map(|key| self.path_of(key)).collect::<Result<_>>().map_err(Ended::For)?;
        self.directories.check(session).await?;
        for some in paths.chunks(DELETES) {
            try_join_all(some.iter().map(|path| remove_file(session, path))).await?;
        }
        let parents = distinct(paths.iter().filter_map(|path| parent(path)).collect());
        try_join_all(parents.iter().map(|parent| async {
            match self.directories.sync(session, parent).await {
                Err(Failure::Absent) => Ok(()), // tidied away with all that was in it
                synced => synced,
            }
        }))
        .await?;
        let tops = keys.iter().filter_map(|key| Some(key.as_str().split_once('/')?.0)).collect();
        for top in distinct(tops) {
            let base = format!("{top}/");
            let any = Wanted { prefix: &base, after: "", limit: 1 };
            if self.collect(session, any, base.clone()).await?.is_empty() {
                self.tidy(session, format!("{}/{top}", self.address.path)).await;
            }
        }
        self.directories.check(session).await?;
        Ok(())
    }

    /// Removes a tree in which no object was: a deleted volume leaves nothing behind. What is not empty stays, and a writer that is
    /// about to put something there makes its directories again.
    fn tidy<'a>(&'a self, session: &'a Arc<Session>, directory: String) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for (name, found) in session.names(&directory).await.unwrap_or_default() {
                if found.is_directory == Some(true) {
                    self.tidy(session, format!("{directory}/{name}")).await;
                }
            }
            self.directories.forget(&directory);
            let _ = session.remove_directory(&directory).await;
        })
    }
}

/// Removes a file; one that is not there, or is a directory, counts as removed.
async fn remove_file(session: &Session, path: &str) -> std::result::Result<(), Failure> {
    match session.remove(path).await {
        Ok(()) | Err(Failure::Absent) => Ok(()),
        Err(failure @ Failure::Lost(_)) => Err(failure),
        Err(failure) => match session.look(path).await {
            Err(Failure::Absent) => Ok(()),
            Ok(found) if found.is_directory == Some(true) => Ok(()),
            _ => Err(failure),
        },
    }
}

fn distinct(mut names: Vec<&str>) -> Vec<&str> {
    names.sort_unstable();
    names.dedup();
    names
}

/// Why a request did not succeed.
enum Ended {
    /// The server's answer, or none.
    Failed(Failure),
    /// What has its sentence already.
    For(StoreError),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

/// A temporary file, removed when nobody needs it any more, whatever became of the PUT.
struct Temporary<'a> {
    session: &'a Session,
    path: String,
    is_removed: AtomicBool,
}

impl Temporary<'_> {
    /// Removes it, now that it has another name. After a RENAME it is gone; what stays is for a later sweep.
    async fn remove(&self) {
        let _ = self.session.remove(&self.path).await;
        self.is_removed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_removed.load(Ordering::Relaxed) {
            self.session.remove_some_time(&self.path);
        }
    }
}

#[async_trait]
impl Store for SftpStore {
    fn url(&self) -> String {
        self.address.to_string()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let path = self.path_of(key)?;
        self.request(|| format!("put {key}"), self.create(key, &path, &body)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let path = self.path_of(key)?;
        let found = self.request(|| format!("get {key}"), self.fetch(&path, range)).await?;
        found.ok_or_else(|| StoreError::not_found(key))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.get_range(key, 0..u64::MAX).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let after = start_after.map(Key::as_str).unwrap_or_default();
        let wanted = Wanted { prefix, after, limit: PAGE_OBJECTS };
        let found = self.request(|| format!("list {prefix:?}"), self.page(wanted)).await?;
        Ok(ListPage::new(found, true))
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.request(|| "list the top".to_owned(), self.tops()).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.request(|| format!("delete {}", crate::human::counted(keys.len() as u64, "object")), self.remove(keys))
            .await
    }
}

/// What a connection is wanted for: uploads never delay reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Reads,
    Writes,
}

/// The connections, made when they are needed, and again when they are over.
#[derive(Debug)]
struct Pool {
    address: Address,
    options: SftpOptions,
    reads: Vec<Mutex<Option<Arc<Session>>>>,
    writes: Vec<Mutex<Option<Arc<Session>>>>,
    turn: AtomicUsize,
}

impl Pool {
    fn new(address: Address, options: &SftpOptions) -> Pool {
        let places = |count: usize| (0..count.max(1)).map(|_| Mutex::default()).collect();
        let reads = options.connections_max.div_ceil(2);
        Pool {
            address,
            options: options.clone(),
            reads: places(reads),
            writes: places(options.connections_max.saturating_sub(reads)),
            turn: AtomicUsize::new(0),
        }
    }

    /// A connection, each time the next one.
    async fn session(&self, wanted: Use) -> std::result::Result<Arc<Session>, Ended> {
        let places = if wanted == Use::Reads || self.options.connections_max < 2 { &self.reads } else { &self.writes };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut place = places[turn % places.len()].lock().await;
        match &*place {
            Some(session) if !session.is_over() => Ok(session.clone()),
            _ => {
                let session = Session::connect(&self.address, &self.options).await.map_err(Failure::Lost)?;
                *place = Some(session.clone());
                Ok(session)
            }
        }
    }
}
