//! The upper part of the map in memory: the pages that find its leaves, and the salts of segments. A cold read then asks for a leaf and for its
//! frame, and for nothing else. It comes in once a read lacked a part of it, so a volume that nobody reads costs no request, and takes no more than
//! its share of what the map may have in memory. What is below a clone brings its index when the clone is opened: a disk that is cloned is read.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::engine::log::Lacking;
use crate::engine::shared::Shared;
use crate::map::{NeedPages, PageAt};
use crate::reading::objects::{LoadedPages, ReadError};

/// It may take this part of what the map may have in memory.
const UPPER_PART: u64 = 2;

/// Pages that are asked for at once.
const AT_ONCE: usize = 16;

/// What the read brings that lacked a part of it is not asked for twice.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// A task that brings it in; it ends when this is dropped, or when everything is there.
#[derive(Debug)]
pub(crate) struct Upper(JoinHandle<()>);

impl Upper {
    /// Starts the task.
    pub fn start(work: impl Future<Output = ()> + Send + 'static) -> Upper {
        Upper(tokio::spawn(work))
    }

    /// That of an open volume, once a read lacks a part of it.
    pub fn of_volume(shared: Arc<Shared>) -> Upper {
        Upper::start(async move {
            shared.waits.upper_lacks.notified().await;
            tokio::time::sleep(PAUSE).await;
            let fetch = |pages| {
                let shared = shared.clone();
                async move {
                    let _reading = shared.begin_reading();
                    shared.fetch_pages(pages).await
                }
            };
            let keep = |pages| shared.ledger().bring(pages, shared.doors.seat.map_memory());
            let lacks = || shared.ledger().log().map.upper();
            bring(lacks, shared.doors.seat.map_memory(), fetch, keep).await;
        })
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a read that waits for these pages lacks a part of it.
pub(crate) fn is_lacking(lacking: &Lacking) -> bool {
    lacking.pages.iter().any(|page| page.kind.is_upper())
}

/// Fetches the pages that `lacks` says, and hands them to `keep`, as long as they take no more than their share of `memory`.
pub(crate) async fn bring<F>(
    lacks: impl Fn() -> Vec<PageAt>,
    memory: u64,
    fetch: impl Fn(NeedPages) -> F,
    keep: impl Fn(LoadedPages),
) where
    F: Future<Output = Result<LoadedPages, ReadError>>,
{
    let (mut pages, mut room) = (lacks(), memory / UPPER_PART);
    while !pages.is_empty() {
        let some = pages.drain(..pages.len().min(AT_ONCE)).collect();
        match fetch(NeedPages(some)).await {
            Ok(loaded) => {
                let takes: u64 = loaded.iter().map(|(_, page)| page.memory() as u64).sum();
                let Some(left) = room.checked_sub(takes) else { return };
                room = left;
                keep(loaded);
            }
            // Whoever reads there will see the error.
            Err(error) => return tracing::debug!("the upper part of the map is not brought into memory: {error}"),
        }
    }
}
