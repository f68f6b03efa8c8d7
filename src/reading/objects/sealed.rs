//! Frames that are fetched before it is known what opens them: the page that says so comes at the same time, and a cold read has one round trip
//! less to wait for. Nothing is believed of them until they are opened, and what cannot be opened then is read as if it had not been fetched.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::{Brought, How, Inner, Objects, ReadError};
use crate::cache::Purpose;
use crate::reading::fetch::{self, Get};
use crate::units::FrameAddr;

/// Frames as they lie in the store.
pub type Sealed = HashMap<FrameAddr, Bytes>;

impl Objects {
    /// Those of the frames that lie in the store only, and that nobody is bringing. What is not there is left out. Fails if the store does not answer: it was
    /// asked for as long as a read waits.
    pub async fn sealed(&self, mut frames: Vec<FrameAddr>) -> Result<Sealed, ReadError> {
        let inner = &self.inner;
        {
            let board = inner.frames.board();
            frames.retain(|frame| board.find(*frame).is_none());
        }
        frames.retain(|frame| inner.cache.get(inner.volume, *frame, Purpose::Read).is_none());
        if let Some(disk) = inner.cache.disk() {
            frames = disk.find(inner.volume, frames).1;
        }
        let gets = fetch::plan(frames, inner.read_gap, inner.read_max);
        let fetched = try_join_all(gets.into_iter().map(|get| inner.fetch(get))).await?;
        Ok(fetched.into_iter().flatten().collect())
    }
}

impl Inner {
    async fn fetch(&self, Get { seq, range, frames }: Get) -> Result<Sealed, ReadError> {
        let start = range.start;
        let bytes = match self.read(&self.keys.segment(seq), range).await {
            Ok(bytes) => bytes,
            Err(away @ ReadError::Store { .. }) if away.is_retryable() => return Err(away),
            Err(_) => return Ok(Sealed::new()),
        };
        let cut = |frame: FrameAddr| {
            let from = (u64::from(frame.offset) - start) as usize;
            (frame, bytes.slice(from..from + frame.len as usize))
        };
        Ok(frames.into_iter().map(cut).collect())
    }

    /// Opens a frame that was fetched before. If it is not what was written, it is read again.
    pub(super) async fn open_fetched(self: Arc<Self>, frame: FrameAddr, sealed: Bytes, how: Arc<How>) -> Brought {
        let piece = sealed.len() as u64;
        match self.open(vec![(frame, sealed)], piece, &how).await?.pop() {
            Some((frame, Ok(data))) => Ok(Arc::new(HashMap::from([(frame, data)]))),
            _ => self.bring_all(vec![frame], &how).await,
        }
    }
}
