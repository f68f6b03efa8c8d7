//! Objects as plain files: the key is the path below the root, so that a directory on a laptop, a parallel
//! filesystem that many hosts mount, and a bucket served over that directory are the same store.
//!
//! What a PUT does, in this order (the order is the promise):
//! 1. write the body to a file of a unique name in `.ashlar-tmp/` (a large one past the page cache: [`direct`]) and fsync it;
//! 2. make the directories of the key, and fsync each directory that leads there, once per process;
//! 3. hard-link the file to the key's path ([`naming`]). Linking fails if the path is taken, whoever took it on whatever host, so
//!    that exactly one writer wins, and a reader sees the whole object or none. Where the filesystem has no hard
//!    links, `renameat2(RENAME_NOREPLACE)` does the same;
//! 4. fsync the directory, remove the temporary name;
//! 5. look whether the object is there by its name.
//!
//! A crash before 3 leaves a temporary file, which no listing shows; opening the store removes those older than a
//! day, by the filesystem's own clock. A crash between 3 and 4 leaves an object that is whole, but whose name may
//! not be durable yet; therefore whoever finds an object in a directory for the first time fsyncs that directory
//! before anything is built on what it read.
//!
//! Names outside the alphabet of [`Key`], symbolic links and special files are not objects: no listing shows them.
//! A key cannot be an object and the directory of others at once (`a` and `a/b`).
//!
//! Before and after everything that is done, the root is looked at: if it is not the directory that was opened, because its
//! filesystem was unmounted, nothing counts that was found or made there ([`identity`]).
//!
//! Large ranges are read past the page cache, too.
//!
//! [`create`] makes files, [`walk`] lists them; this file joins them to the trait and keeps blocking calls off the
//! reactor.

#![allow(clippy::disallowed_methods)] // this is the door to the files of a store

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::buffers::Buffers;
use super::memory::PAGE_OBJECTS;
use super::tree::TEMPORARY;
use super::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};
use crate::outside::{Random, Workers};

mod create;
mod direct;
mod durability;
mod identity;
mod naming;
mod walk;

use create::Directories;
use identity::Seen;

/// A store in a directory.
#[derive(Clone, Debug)]
pub struct FileStore {
    root: Arc<Root>,
    workers: Workers,
    random: Random,
}

/// What the blocking side needs.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    directories: Directories,
}

impl FileStore {
    /// Opens the store at `path`, which need not exist yet: the first PUT makes it. Removes temporary files that
    /// writers left behind more than a day ago. `Invalid` if `path` is something else than a directory.
    pub async fn open(path: impl Into<PathBuf>, workers: Workers, random: Random) -> Result<FileStore> {
        let path = path.into();
        // From here on it does not matter what the current directory is.
        let path = std::path::absolute(&path).map_err(|error| failure("open the store", &path, &error))?;
        let root = Arc::new(Root { directories: Directories::new(path.clone()), path });
        let marker = random.uuid().to_string();
        let store = FileStore { root, workers, random };
        store
            .blocking(move |root| {
                create::sweep(&root.path.join(TEMPORARY), &marker);
                Ok(())
            })
            .await?;
        Ok(store)
    }

    /// Keeps so many bytes of memory for the next reads and writes, at most.
    pub fn with_idle_buffers(self, bytes: u64) -> FileStore {
        self.root.directories.direct.buffers.keep_at_most(bytes);
        self
    }

    /// The memory that waits for the next reads and writes.
    pub fn buffers(&self) -> Buffers {
        self.root.directories.direct.buffers.clone()
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Root) -> Result<T> + Send + 'static) -> Result<T> {
        let root = self.root.clone();
        self.workers.run(move || root.inside(work)).await
    }
}

/// What who writes to a store at `path` should know of the filesystem, if that forgets, or answers fsync without doing it.
pub async fn caution(path: &str, workers: Workers) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    workers.run(move || durability::caution(&path)).await
}

#[async_trait]
impl Store for FileStore {
    fn url(&self) -> String {
        format!("file://{}", self.root.path.display())
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let (key, random) = (key.clone(), self.random.clone());
        let temporary = format!("{TEMPORARY}/{}", random.uuid());
        self.blocking(move |root| {
            let path = root.path_of(&key)?;
            match create::create(&root.directories, &root.path.join(temporary), &path, &body) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::already_exists(&key)),
                made => made.map_err(|error| failure("create", &path, &error)),
            }?;
            root.directories.mark(|| random.uuid().to_string());
            Ok(())
        })
        .await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let key = key.clone();
        self.blocking(move |root| root.read(&key, range)).await.map(|front| front.bytes)
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let key = key.clone();
        self.blocking(move |root| root.read(&key, 0..len)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.get_range(key, 0..u64::MAX).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let (prefix, after) = (prefix.to_owned(), start_after.cloned());
        self.blocking(move |root| {
            walk::list(&root.path, &prefix, after.as_ref().map(Key::as_str), PAGE_OBJECTS)
                .map(|found| ListPage::new(found, true))
                .map_err(|error| failure("list", &root.path, &error))
        })
        .await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.blocking(|root| walk::list_top(&root.path).map_err(|error| failure("list", &root.path, &error))).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let keys = keys.to_vec();
        self.blocking(move |root| root.delete(&keys)).await
    }
}

impl Root {
    /// Does something in the directory that is the store's. Whatever was found or made while another one was in its place does
    /// not count.
    fn inside<T>(&self, work: impl FnOnce(&Root) -> Result<T>) -> Result<T> {
        if self.directories.check()? == Seen::Again {
            self.directories.forget();
        }
        let done = work(self);
        self.directories.check()?;
        done
    }

    /// The file of a key; `Invalid` for keys that no file can have.
    fn path_of(&self, key: &Key) -> Result<PathBuf> {
        let ours = key.as_str().split('/').next() == Some(TEMPORARY);
        if ours || key.as_str().split('/').any(|part| part.len() > 255) {
            return Err(StoreError::invalid(format!("{key} cannot be a key of a file store")));
        }
        Ok(self.path.join(key.as_str()))
    }

    fn read(&self, key: &Key, range: Range<u64>) -> Result<Front> {
        let path = self.path_of(key)?;
        match self.read_path(&path, range) {
            Ok(Some(front)) => Ok(front),
            Ok(None) => Err(StoreError::not_found(key)),
            Err(error) if is_absent(&error) => Err(StoreError::not_found(key)),
            Err(error) => Err(failure("read", &path, &error)),
        }
    }

    /// `None` if what is there is no plain file.
    fn read_path(&self, path: &Path, range: Range<u64>) -> io::Result<Option<Front>> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(None);
        }
        self.directories.settle_names_beside(path)?;
        let start = range.start.min(found.len());
        let end = range.end.clamp(start, found.len());
        let direct = &self.directories.direct;
        if direct.suits_range(end - start)
            && let Some(body) = direct.read(path, start..end)?
        {
            return Ok(Some(Front { bytes: body, total: Some(found.len()) }));
        }
        let mut body = vec![0; (end - start) as usize];
        file.read_exact_at(&mut body, start)?;
        Ok(Some(Front { bytes: body.into(), total: Some(found.len()) }))
    }

    fn delete(&self, keys: &[Key]) -> Result<()> {
        let mut parents: Vec<PathBuf> = Vec::new();
        let mut tops: Vec<PathBuf> = Vec::new();
        for key in keys {
            let path = self.path_of(key)?;
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(failure("delete", &path, &error)),
            }
            parents.extend(path.parent().map(Path::to_path_buf));
            if let Some((top, _)) = key.as_str().split_once('/') {
                tops.push(self.path.join(top));
            }
        }
        for parent in distinct(parents) {
            self.directories.sync(&parent).map_err(|error| failure("sync", &parent, &error))?;
        }
        for top in distinct(tops) {
            self.directories.tidy(&top);
        }
        Ok(())
    }
}

/// Whether an error says that there is no such object: also if a part of its path is a file, or all of it a directory.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
}

fn distinct(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// What an error of the filesystem means to who asked. A full disk counts as something that passes: data that is
/// already acknowledged waits for room.
fn failure(verb: &str, path: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
        Io::InvalidFilename | Io::NotADirectory | Io::IsADirectory | Io::Unsupported | Io::CrossesDevices => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Retryable,
    };
    StoreError::new(kind, format!("cannot {verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key::new(path).unwrap()
    }

    /// As a mount that vanishes and comes back.
    #[tokio::test]
    async fn a_root_that_is_away_is_no_empty_store_and_nothing_is_made_in_its_place() {
        let top = tempfile::tempdir().unwrap();
        let (root, away) = (top.path().join("store"), top.path().join("away"));
        let store = FileStore::open(&root, Workers::Threads, Random::seeded(1)).await.unwrap();
        let (one, two) = (key("v/segments/00/1"), key("v/segments/00/2"));
        let body = || vec![Bytes::from_static(b"body")];
        store.put(&one, body()).await.unwrap();
        fs::rename(&root, &away).unwrap();
        for is_mount_point_left in [false, true] {
            if is_mount_point_left {
                fs::create_dir(&root).unwrap();
            }
            let failures = [
                store.put(&two, body()).await.unwrap_err(),
                store.get(&one).await.unwrap_err(),
                store.get_range(&one, 1..2).await.unwrap_err(),
                store.list("v/", None).await.unwrap_err(),
                store.list_top().await.unwrap_err(),
                store.delete(std::slice::from_ref(&one)).await.unwrap_err(),
            ];
            for failure in failures {
                assert_eq!(failure.kind, ErrorKind::Retryable);
                assert!(failure.message.ends_with(": is its filesystem mounted?"), "{failure}");
            }
            assert_eq!(root.exists(), is_mount_point_left);
        }
        assert!(fs::read_dir(&root).unwrap().next().is_none(), "something was made in another directory");
        fs::remove_dir(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        store.put(&two, body()).await.unwrap();
        assert_eq!(store.list("v/", None).await.unwrap().len(), 2);
        // What comes back with other numbers is known by its mark, and nothing that was known of its directories holds.
        let copy = std::process::Command::new("cp").arg("-a").args([&root, &away]).status().unwrap();
        assert!(copy.success());
        fs::remove_dir_all(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        fs::remove_dir_all(root.join("v")).unwrap();
        store.put(&one, body()).await.unwrap();
        assert_eq!(store.get(&one).await.unwrap(), "body");
        assert_eq!(store.list("v/", None).await.unwrap().len(), 1);
    }

    /// It vanishes in the middle of something: what is found to be absent, or was made elsewhere, does not count.
    #[tokio::test]
    async fn what_is_concluded_while_the_root_goes_away_does_not_count() {
        let top = tempfile::tempdir().unwrap();
        let (path, away) = (top.path().join("store"), top.path().join("away"));
        fs::create_dir(&path).unwrap();
        let root = Root { directories: Directories::new(path.clone()), path: path.clone() };
        let vanishes = root.inside(|root| {
            fs::rename(&path, &away).unwrap();
            fs::create_dir(&path).unwrap();
            create::create(&root.directories, &path.join(".ashlar-tmp/1"), &path.join("v/1"), &[]).unwrap();
            Ok(())
        });
        assert_eq!(vanishes.unwrap_err().kind, ErrorKind::Retryable);
        fs::rename(&path, top.path().join("mount-point")).unwrap();
        fs::rename(&away, &path).unwrap();
        let absent = root.inside(|root| {
            fs::rename(&path, &away).unwrap();
            root.read(&key("v/1"), 0..1)
        });
        assert_eq!(absent.unwrap_err().kind, ErrorKind::Retryable);
    }
}
