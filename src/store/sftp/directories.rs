//! The directories of a store on an SFTP server, and what this process knows to be durable about them; and which root it is.
//!
//! The rules are those of a store in a local directory (`store/file/create.rs`, `store/file/identity.rs`), with what SFTP has: a directory is synced
//! through a handle that OPEN gives for it (that of OPENDIR cannot be), and the root is known by a mark in it alone, since no server tells device and
//! inode.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::tree::{MARK, TEMPORARY};
use super::super::{ErrorKind, StoreError};
use super::NO_FSYNC;
use super::session::{Answer, Failure, Session};

/// A temporary file older than this was left behind by a writer that died.
const TEMPORARY_SECONDS_MAX: u64 = 24 * 60 * 60;

/// See the module.
#[derive(Debug)]
pub struct Directories {
    root: String,
    /// Whether a server that cannot sync is accepted.
    allow_unsynced: bool,
    /// Directories that exist by a durable path.
    made: Mutex<HashSet<String>>,
    /// Directories in which every name that another process left is durable.
    settled: Mutex<HashSet<String>>,
    /// The path of the mark by which the root is known, once one was seen or made.
    mark: Mutex<Option<String>>,
}

impl Directories {
    /// Of the store at `root`.
    pub fn new(root: String, allow_unsynced: bool) -> Directories {
        Directories { root, allow_unsynced, made: Mutex::default(), settled: Mutex::default(), mark: Mutex::default() }
    }

    /// Where temporary files live.
    pub fn temporary(&self) -> String {
        format!("{}/{TEMPORARY}", self.root)
    }

    /// Makes the names in a directory durable.
    pub async fn sync(&self, session: &Arc<Session>, directory: &str) -> Answer<()> {
        if !session.syncs() {
            return if self.allow_unsynced { Ok(()) } else { Err(Failure::Unsupported(NO_FSYNC.into())) };
        }
        session.open(directory).await?.sync().await
    }

    /// Whether the root was seen: then nobody may make it, or what is directly in it for our own use.
    pub fn is_known(&self) -> bool {
        self.mark.lock().is_some()
    }

    /// Makes a directory, and those above it, durably. A root that was seen is not made again.
    pub async fn make(&self, session: &Arc<Session>, directory: &str) -> Answer<()> {
        // Upwards to what is durable, or was there before the store, ...
        let mut steps = Vec::new();
        for directory in ancestors(directory) {
            if self.made.lock().contains(directory) || directory == self.root && self.is_known() {
                break;
            }
            let is_made = self.try_to_make(session, directory).await?;
            steps.push((directory, is_made));
            // Below the root another process may have made it a moment ago; above, only our own making is our business.
            let is_below_root = directory != self.root && directory.starts_with(self.root.as_str());
            if is_made == Some(true) || is_made == Some(false) && !is_below_root {
                break;
            }
        }
        // ... and down again.
        for (directory, is_made) in steps.into_iter().rev() {
            if is_made.is_none() && self.try_to_make(session, directory).await?.is_none() {
                return Err(Failure::Absent);
            }
            if let Some(parent) = parent(directory)
                && (is_made != Some(false) || directory != self.root)
            {
                self.sync(session, parent).await?;
            }
            self.made.lock().insert(directory.to_owned());
        }
        Ok(())
    }

    /// Whether it was made, or was there already; `None` if what it belongs into is not there.
    async fn try_to_make(&self, session: &Arc<Session>, directory: &str) -> Answer<Option<bool>> {
        match session.make_directory(directory).await {
            Ok(()) => Ok(Some(true)),
            Err(Failure::Absent) => Ok(None),
            // SFTP has no word for "it is there already".
            Err(failure @ (Failure::Unspecific(_) | Failure::Refused | Failure::Unsupported(_))) => {
                match session.look(directory).await {
                    Ok(found) if found.is_directory != Some(false) || found.is_special => Ok(Some(false)),
                    _ => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// Somebody removed a directory, and perhaps others above or below it: the next [`Self::make`] looks again.
    pub fn forget(&self, directory: &str) {
        let mut made = self.made.lock();
        made.retain(|known| !is_at_or_above(known, directory) && !is_at_or_above(directory, known));
    }

    /// Once per process and directory: makes the names beside `path`, and the directories that lead there, durable, before anything is
    /// concluded from an object found there. Who may not sync, does not write either.
    pub async fn settle_names_beside(&self, session: &Arc<Session>, path: &str) -> Answer<()> {
        let above: Vec<&str> =
            ancestors(path).skip(1).take_while(|directory| directory.starts_with(self.root.as_str())).collect();
        for directory in &above {
            if self.settled.lock().contains(*directory) {
                break;
            }
            match self.sync(session, directory).await {
                Err(Failure::Refused) => {}
                synced => synced?,
            }
        }
        self.settled.lock().extend(above.into_iter().map(str::to_owned));
        Ok(())
    }

    /// Looks whether the root is still the one that was seen: below a filesystem that was unmounted on the server, there is a directory of the same
    /// path, in which everything is absent and every PUT succeeds. `Retryable` while it is not.
    pub async fn check(&self, session: &Arc<Session>) -> Answer<()> {
        let known = self.mark.lock().clone();
        let Some(mark) = known else { return self.find_mark(session).await.map(drop) };
        match session.look(&mark).await {
            Ok(_) => Ok(()),
            Err(Failure::Absent) => Err(Failure::Lost(StoreError::new(
                ErrorKind::Retryable,
                format!(
                    "the store's directory {} on the server is gone, or another one than that which was opened (its mark {mark} is not \
                     there): is its filesystem mounted? If somebody removed the mark, start this program anew",
                    self.root
                ),
            ))),
            Err(failure) => Err(failure),
        }
    }

    /// The first mark of those that are there; whether there is one.
    async fn find_mark(&self, session: &Arc<Session>) -> Answer<bool> {
        let names = match session.names(&self.temporary()).await {
            Err(Failure::Absent) => return Ok(false),
            names => names?,
        };
        let marks =
            names.into_iter().filter(|(name, found)| name.starts_with(MARK) && found.is_directory != Some(false));
        let Some(first) = marks.map(|(name, _)| name).min() else { return Ok(false) };
        self.mark.lock().get_or_insert(format!("{}/{first}", self.temporary()));
        Ok(true)
    }

    /// For a writer, once its first temporary file is there: puts a mark into the root, unless there is one, and removes temporary files that
    /// nobody can be writing any more. Their age is measured against the one that was made just now, by the server's clock.
    pub async fn settle_in(&self, session: &Arc<Session>, fresh: &str, uuid: &str) -> Answer<()> {
        if self.mark.lock().is_some() {
            return Ok(());
        }
        if !self.find_mark(session).await? {
            let mark = format!("{}/{MARK}{uuid}", self.temporary());
            session.make_directory(&mark).await?;
            self.mark.lock().get_or_insert(mark);
        }
        let names = session.names(&self.temporary()).await?;
        let fresh = fresh.rsplit('/').next();
        let now = names.iter().find(|(name, _)| Some(name.as_str()) == fresh).and_then(|(_, found)| found.changed);
        for (name, found) in &names {
            let age = now.zip(found.changed).and_then(|(now, changed)| now.checked_sub(changed));
            if found.is_directory == Some(false) && age.is_some_and(|age| age > TEMPORARY_SECONDS_MAX) {
                session.remove_some_time(&format!("{}/{name}", self.temporary()));
            }
        }
        Ok(())
    }
}

/// Whether `above` is `path`, or a directory that leads there.
fn is_at_or_above(above: &str, path: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path, and the directories above it: `/a/b`, `/a`; or of one of the home directory `a/b`, `a`.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| parent(path).filter(|above| !matches!(*above, "/" | ".")))
}

/// The directory of a path; none of `/`.
pub fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/') {
        _ if matches!(path, "/" | ".") => None,
        Some(("", _)) => Some("/"),
        Some((parent, _)) => Some(parent),
        None => Some("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above() {
        let above = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(above("/a/b/c"), ["/a/b/c", "/a/b", "/a"]);
        assert_eq!(above("a/b"), ["a/b", "a"]);
        for (above, path, expected) in
            [("/a", "/a/b", true), ("/a", "/a", true), ("/a", "/ab", false), ("/a/b", "/a", false), ("a", "a/b", true)]
        {
            assert_eq!(is_at_or_above(above, path), expected, "{above} {path}");
        }
        assert_eq!(
            [parent("/a"), parent("a"), parent("/"), parent("."), parent("/a/b")],
            [Some("/"), Some("."), None, None, Some("/a")]
        );
    }
}
