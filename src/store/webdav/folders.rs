//! The folders of a WebDAV store: made when they are needed, the root known by a mark, and what writers that died left behind.
//!
//! The rules are those of a store over SFTP (`store/sftp/directories.rs`), but that nothing can be made durable here.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::BoxFuture;
use http::header;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::super::tree::MARK;
use super::super::{ErrorKind, Result, StoreError};
use super::answers::since_1970;
use super::requests::Requests;

/// Where folders are filled, below the root. No key has such a name.
const TEMPORARY: &str = "=ashlar-tmp";

/// A folder in [`TEMPORARY`] that is older than this was left behind by a writer that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// See the module.
#[derive(Debug)]
pub struct Folders {
    root: String,
    /// Folders that are there.
    made: Mutex<HashSet<String>>,
    /// The path of the mark by which the root is known, once one was seen or made.
    mark: Mutex<Option<String>>,
    /// Whether this process has looked after the root, as writers do first.
    settled: OnceCell<()>,
}

impl Folders {
    /// Of the store at `root`, without `/` at its end.
    pub fn new(root: String) -> Folders {
        Folders { root, made: Mutex::default(), mark: Mutex::default(), settled: OnceCell::new() }
    }

    /// Where folders are filled before they get their names.
    pub fn temporary(&self) -> String {
        format!("{}/{TEMPORARY}", self.root)
    }

    /// Makes a folder, without `/` at its end, and those above it. A root that was seen is not made again.
    pub fn make<'a>(&'a self, requests: &'a Requests, words: &'a str, folder: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.made.lock().contains(folder) {
                return Ok(());
            }
            let is_ours = |folder: &str| folder == self.root || folder == self.temporary();
            if is_ours(folder) && self.mark.lock().is_some() {
                return self.check(requests, words).await;
            }
            let path = format!("{folder}/");
            if !requests.make_folder(words, &path).await? {
                let Some((above, _)) = folder.rsplit_once('/').filter(|(above, _)| !above.is_empty()) else {
                    return Err(gone(&self.root));
                };
                self.made.lock().remove(above);
                self.make(requests, words, above).await?;
                if !requests.make_folder(words, &path).await? {
                    let message =
                        format!("{words}: the folder {path} cannot be made, what it belongs into keeps being removed");
                    return Err(StoreError::new(ErrorKind::Retryable, message));
                }
            }
            self.made.lock().insert(folder.to_owned());
            Ok(())
        })
    }

    /// Somebody removed a folder, and perhaps others above or below it: the next [`Self::make`] looks again.
    pub fn forget(&self, folder: &str) {
        let is_at_or_above = |above: &str, path: &str| {
            path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.made.lock().retain(|known| !is_at_or_above(known, folder) && !is_at_or_above(folder, known));
    }

    /// Looks whether the root is still the one that was seen: where a filesystem was unmounted on the server everything is absent and every PUT succeeds.
    /// `Retryable` while it is not. That a server answers here as WebDAV does is also what tells its 404 from that of a proxy.
    pub async fn check(&self, requests: &Requests, words: &str) -> Result<()> {
        let known = self.mark.lock().clone();
        let there = match &known {
            Some(mark) => requests.find(words, &format!("{mark}/"), "0").await?.is_some(),
            None => return self.find_mark(requests, words).await,
        };
        if there { Ok(()) } else { Err(gone(&self.root)) }
    }

    async fn find_mark(&self, requests: &Requests, words: &str) -> Result<()> {
        let Some((listing, _)) = requests.find(words, &format!("{}/", self.temporary()), "1").await? else {
            return Ok(());
        };
        let first = listing.inside.into_iter().map(|found| found.name).filter(|name| name.starts_with(MARK)).min();
        if let Some(first) = first {
            self.mark.lock().get_or_insert(format!("{}/{first}", self.temporary()));
        }
        Ok(())
    }

    /// For a writer, before anything else and once: puts a mark into the root, unless there is one, and removes what nobody can be filling any more. Ages
    /// are measured by the server's clock.
    pub async fn settle(&self, requests: &Requests, words: &str, uuid: &str) -> Result<()> {
        let settle = || async {
            self.find_mark(requests, words).await?;
            if self.mark.lock().is_none() {
                let mark = format!("{}/{MARK}{uuid}", self.temporary());
                self.make(requests, words, &mark).await?;
                self.mark.lock().get_or_insert(mark);
            }
            let left = requests.find(words, &format!("{}/", self.temporary()), "1").await?;
            let Some((listing, headers)) = left else { return Err(gone(&self.root)) };
            let now = headers.get(header::DATE).and_then(|date| since_1970(date.to_str().ok()?));
            for found in listing.inside {
                let age = now.zip(found.changed).and_then(|(now, changed)| now.checked_sub(changed));
                if found.is_folder && !found.name.starts_with(MARK) && age.is_some_and(|age| age > TEMPORARY_AGE_MAX) {
                    requests.delete(words, &format!("{}/{}/", self.temporary(), found.name)).await?;
                }
            }
            Ok(())
        };
        self.settled.get_or_try_init(settle).await.copied()
    }
}

fn gone(root: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Retryable,
        format!(
            "the store's folder {root}/ on the server is gone, or another one than that which was opened (its mark is not there): is its filesystem \
             mounted? If somebody removed the mark, start this program anew"
        ),
    )
}
