//! Fetching ahead: one task brings ranges into the cache, in pieces, a few at a time. What it cannot do at once is dropped:
//! whoever reads the range later fetches it then.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use crate::engine::shared::Shared;

/// Bytes of the volume that one piece covers: an eighth of the range, so that its pieces come at the same time, within these
/// bounds. Where the data lies together, a piece is one request; long ones cost the store and us less for each byte.
const PIECE_MIN: u64 = 1 << 20;
const PIECE_MAX: u64 = 4 << 20;

/// Pieces that are fetched at a time.
const PARALLEL: usize = 16;

/// Ranges that may wait.
const QUEUE: usize = 64;

/// The task of one volume.
#[derive(Debug)]
pub(crate) struct Prefetcher {
    ranges: Sender<Range<u64>>,
    task: JoinHandle<()>,
}

impl Prefetcher {
    /// Starts the task; it ends when this is dropped.
    pub fn start(shared: Arc<Shared>) -> Prefetcher {
        let (ranges, wanted) = channel(QUEUE);
        Prefetcher { ranges, task: tokio::spawn(run(shared, wanted)) }
    }

    /// Asks for a range, unless too many wait already.
    pub fn want(&self, range: Range<u64>) {
        let _ = self.ranges.try_send(range);
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(shared: Arc<Shared>, wanted: Receiver<Range<u64>>) {
    let ranges = stream::unfold(wanted, |mut wanted| async { Some((wanted.recv().await?, wanted)) });
    let pieces = ranges.flat_map(|range| {
        let piece = ((range.end - range.start) / 8).next_multiple_of(PIECE_MIN).clamp(PIECE_MIN, PIECE_MAX);
        let starts = (range.start..range.end).step_by(piece as usize);
        stream::iter(starts.map(move |start| (start, piece.min(range.end - start))))
    });
    let fetches = pieces.map(|(start, len)| {
        let shared = &shared;
        async move {
            // Whoever reads this range will see the error again.
            if let Err(error) = shared.prefetch(start, len, PIECE_MAX).await {
                tracing::debug!(start, len, "not fetched ahead: {error}");
            }
        }
    });
    fetches.buffer_unordered(PARALLEL).for_each(|()| std::future::ready(())).await;
}
