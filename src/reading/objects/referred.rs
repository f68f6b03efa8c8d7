//! Frames that refer to data in other segments: that is read, from wherever it is, and put together. What is kept of it in memory is under the place of the frame that refers, so that
//! the next read looks no further; on the disk both lie as they are in the store.
//!
//! Whoever brings a frame that refers waits for those who bring what it refers to, and these wait for nobody: they are others, even where both want the same frame.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use super::{How, Inner, Objects, ReadError, Sealed, corrupt};
use crate::cache::Content;
use crate::codec::CorruptError;
use crate::codec::seal::Salt;
use crate::format::segment::Reference;
use crate::part::Part;
use crate::units::FrameAddr;

/// A frame, how many bytes it stands for, and where they are.
type Referring = (FrameAddr, u32, Reference);

/// What came of a frame.
type Resolved = (FrameAddr, Result<Content, CorruptError>);

impl Inner {
    /// What these frames stand for. Fails if the store does not have it, or has something else there.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        referring: Vec<Referring>,
        how: &How,
    ) -> Result<Vec<Resolved>, ReadError> {
        if how.is_referred {
            // Nobody refers to references: whoever says so is not believed, and nobody goes round in circles.
            let refused = |(frame, ..): Referring| (frame, Err(CorruptError::OtherData));
            return Ok(referring.into_iter().map(refused).collect());
        }
        let wanted: HashMap<FrameAddr, Salt> =
            referring.iter().flat_map(|(.., of)| of.parts.iter().map(|part| (part.frame, part.salt))).collect();
        let mut data: HashMap<FrameAddr, Part> = HashMap::with_capacity(wanted.len());
        let bring: BoxFuture<'_, Result<(), ReadError>> = Box::pin(async {
            let mut missing = Vec::new();
            for (frame, salt) in &wanted {
                match self.cache.get(self.volume, *frame, how.purpose) {
                    Some(have) => drop(data.insert(*frame, have)),
                    None => missing.push((*frame, *salt)),
                }
            }
            let objects = Objects { inner: self.clone() };
            let flights = objects.flights(missing, &mut data, how.purpose, how.request, Sealed::new(), true);
            let mut landing: FuturesUnordered<_> = flights.into_iter().collect();
            while let Some(brought) = landing.next().await {
                data.extend(brought?.iter().map(|(frame, part)| (*frame, part.clone())));
            }
            Ok(())
        });
        bring.await?;
        let block_bytes = self.block_bytes;
        let work = move || {
            let resolve = |(frame, len, of): Referring| {
                let part = |of: &FrameAddr| data.get(of).map(|part| &part.data()[..]);
                (frame, of.resolve(len, block_bytes, part), of)
            };
            referring.into_iter().map(resolve).collect::<Vec<_>>()
        };
        let resolved = self.workers.run(work).await;
        let content = |(frame, data, of): (FrameAddr, Result<Vec<u8>, CorruptError>, Reference)| match data {
            Ok(data) => Ok((frame, Ok(Content::Own(data.into())))),
            // The frame is good, and so is each that it refers to; no other place of either will be.
            Err(why) => {
                let at = of.parts.first().map_or(frame, |part| part.frame);
                Err(corrupt(&self.keys.segment(at.seq), at.offset.into(), why))
            }
        };
        resolved.into_iter().map(content).collect()
    }
}
