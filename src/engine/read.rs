//! READ: plan under the lock, load missing map pages, fetch missing frames, put the pieces together.

use std::collections::HashMap;
use std::ops::Range;

use crate::cache::Purpose;
use crate::codec::seal::Salt;
use crate::device::{DeviceError, Pieces};
use crate::engine::below::Below;
use crate::engine::log::{Lacking, Piece};
use crate::engine::shared::Shared;
use crate::engine::upper;
use crate::format::keys::Keys;
use crate::format::places;
use crate::format::segment::Payload;
use crate::map::NeedPages;
use crate::part::{self, Part};
use crate::reading::objects::{LoadedPages, Objects, ReadError, Sealed};
use crate::units::{BlockSize, Extent, FrameAddr, Location};

impl Shared {
    /// The bytes `offset .. offset + len` as every acknowledged write left them (rule R5).
    pub(crate) async fn read(&self, offset: u64, len: u64, purpose: Purpose) -> Result<Pieces, DeviceError> {
        if len == 0 {
            return Ok(Pieces::new());
        }
        let (planned, below) = loop {
            let below = self.doors.below();
            let planned = self.plan(self.facts.block_size.cover(offset, len), purpose).await?;
            // A clone may become independent meanwhile: what is a hole then is zero, and what was one before is in the map.
            if self.doors.below().is_some() == below.is_some() {
                break (planned, below);
            }
        };
        let Shared { doors, facts, .. } = self;
        let frames = Frames { objects: &doors.objects, keys: &doors.keys, block_size: facts.block_size, below };
        let Planned { _reading, pieces, sealed } = planned;
        frames.read(&pieces, sealed, offset, len, purpose).await
    }

    /// Asks for the frames of a range to be in the cache, with requests of up to `request` bytes, or what reads make if that
    /// is more.
    pub(crate) async fn prefetch(&self, offset: u64, len: u64, request: u64) -> Result<(), DeviceError> {
        if len > 0 {
            let planned = self.plan(self.facts.block_size.cover(offset, len), Purpose::Ahead).await?;
            let (wanted, sealed) = (wanted(&planned.pieces), Sealed::new());
            self.doors.objects.frames(&wanted, Purpose::Ahead, request, sealed).await.map_err(io_error)?;
            if let Some(below) = self.doors.below() {
                for (_, (offset, len)) in below.parts(&planned.pieces, self.facts.block_size, offset, len) {
                    below.device().cache(offset, len).await?;
                }
            }
        }
        Ok(())
    }

    /// How many bytes of a range, from its beginning on, were written as one stream, as far as that is known without the store.
    pub(crate) fn written_together(&self, range: Range<u64>) -> u64 {
        let extent = self.facts.block_size.cover(range.start, range.end - range.start);
        let together = self.ledger().written_together(extent) * u64::from(self.facts.block_size.bytes());
        together.min(range.end - range.start)
    }

    /// The pages that were missing, from the store; whoever looks again brings them into the map.
    pub(crate) async fn fetch_pages(&self, need: NeedPages) -> Result<LoadedPages, ReadError> {
        let wanted = self.ledger().wanted(need);
        if wanted.is_empty() {
            // A checkpoint came in between. Whoever looks again must not keep everybody else from it.
            tokio::task::yield_now().await;
        }
        self.doors.objects.pages(wanted).await
    }

    /// Pages of the table come into memory, one after the other: all segments that it is about are counted for each.
    pub(crate) async fn keep_pages(&self, pages: &LoadedPages) {
        for page in pages {
            self.ledger().keep_pages(vec![page.clone()]);
            tokio::task::yield_now().await;
        }
    }

    /// A plan, and the promise that the segments it names stay until it is dropped.
    async fn plan(&self, extent: Extent, purpose: Purpose) -> Result<Planned<'_>, DeviceError> {
        let reading = self.begin_reading();
        let (mut loaded, mut sealed) = (LoadedPages::new(), Sealed::new());
        loop {
            let map_memory = self.doors.seat.map_memory();
            let mut lacking = match self.ledger().plan_read(extent, loaded.clone(), map_memory) {
                Ok(pieces) => return Ok(Planned { _reading: reading, pieces, sealed }),
                Err(lacking) => lacking,
            };
            if upper::is_lacking(&lacking) {
                self.waits.upper_lacks.notify_one();
            }
            let frames = worth_fetching(&mut lacking, purpose, &sealed);
            let pages = self.fetch_pages(lacking.into());
            let (pages, fetched) = tokio::join!(pages, self.doors.objects.sealed(frames));
            loaded.extend(pages.map_err(io_error)?);
            sealed.extend(fetched.map_err(io_error)?);
        }
    }

    /// From now until the guard is dropped, no object is deleted that the map refers to now.
    pub(crate) fn begin_reading(&self) -> Reading<'_> {
        Reading { shared: self, ticket: self.ledger().begin_reading() }
    }
}

/// What pieces of a read are fetched with, and put together.
pub(crate) struct Frames<'a> {
    pub objects: &'a Objects,
    pub keys: &'a Keys,
    pub block_size: BlockSize,
    /// Of a clone.
    pub below: Option<Below>,
}

impl Frames<'_> {
    /// The bytes `offset .. offset + len`, which these pieces cover; some of their frames were fetched already.
    pub async fn read(
        &self,
        pieces: &[(Extent, Piece)],
        sealed: Sealed,
        offset: u64,
        len: u64,
        purpose: Purpose,
    ) -> Result<Pieces, DeviceError> {
        let wanted = wanted(pieces);
        let frames = async {
            match wanted.is_empty() {
                true => Ok(HashMap::new()),
                false => {
                    let frames = self.objects.frames(&wanted, purpose, 0, sealed).await;
                    frames.map_err(|error| self.unreadable(error, pieces, offset))
                }
            }
        };
        let (frames, mut below) = match &self.below {
            None => (frames.await?, HashMap::new()),
            Some(below) => futures::try_join!(frames, below.read(pieces, self.block_size, offset, len))?,
        };
        let mut parts = Vec::with_capacity(pieces.len());
        for (part, piece) in pieces {
            if let Some(read) = below.remove(&part.start) {
                parts.push(Cut::Below(read));
                continue;
            }
            // What the client asked for of this piece, in bytes.
            let start = self.block_size.offset_of(part.start);
            let from = offset.saturating_sub(start);
            let to = self.block_size.bytes_in(part.count).min(offset + len - start);
            parts.push(self.cut(piece, from, to, &frames)?);
        }
        Ok(let_go(parts))
    }

    /// The bytes `from .. to` of a piece.
    fn cut(&self, piece: &Piece, from: u64, to: u64, frames: &HashMap<FrameAddr, Part>) -> Result<Cut, DeviceError> {
        Ok(match piece {
            Piece::Held(Payload::Data(data), owner) => {
                Cut::Part(Part::within(data.slice(from as usize..to as usize), *owner))
            }
            Piece::Held(Payload::Zero | Payload::Hole, _) | Piece::Zero | Piece::Hole => Cut::Zeroes(to - from),
            Piece::Frame(location, _) => {
                let skip = u64::from(location.block) * u64::from(self.block_size.bytes());
                let range = (skip + from) as usize..(skip + to) as usize;
                // The map and the frame come from one authenticated segment; were they to disagree, say so.
                let data = frames.get(&location.frame).filter(|part| range.end <= part.data().len());
                let data = data.ok_or_else(|| {
                    let key = self.keys.segment(location.frame.seq);
                    DeviceError::Io(format!(
                        "the frame at byte {} of {key} is shorter than the map says",
                        location.frame.offset
                    ))
                })?;
                Cut::Part(data.slice(range))
            }
        })
    }

    /// What a client is told of frames that cannot be read, with the first byte that is known to be among them.
    fn unreadable(&self, error: ReadError, pieces: &[(Extent, Piece)], offset: u64) -> DeviceError {
        let (ReadError::Store { key, offset: at, .. } | ReadError::Corrupt { key, offset: at, .. }) = &error;
        let own = places::further_place(key).map_or_else(|| key.clone(), |(own, _)| own);
        let is_it = |(_, piece): &&(Extent, Piece)| match piece {
            Piece::Frame(Location { frame, .. }, _) => {
                u64::from(frame.offset) == *at && self.keys.segment(frame.seq) == own
            }
            Piece::Held(..) | Piece::Zero | Piece::Hole => false,
        };
        match pieces.iter().find(is_it) {
            Some((extent, _)) => {
                let offset = offset.max(self.block_size.offset_of(extent.start));
                DeviceError::Unreadable { offset, why: error.to_string() }
            }
            None => io_error(error),
        }
    }
}

/// The frames that are to be fetched beside the pages that say what opens them. Nobody waits for what is fetched ahead.
pub(crate) fn worth_fetching(lacking: &mut Lacking, purpose: Purpose, sealed: &Sealed) -> Vec<FrameAddr> {
    let mut frames = std::mem::take(&mut lacking.frames);
    frames.retain(|frame| purpose != Purpose::Ahead && !sealed.contains_key(frame));
    frames
}

/// What becomes of a piece of a read.
enum Cut {
    Part(Part),
    Zeroes(u64),
    /// What came from the parent of a clone.
    Below(Pieces),
}

/// The bytes that were cut. A reply may stay for long, if its client does not fetch it: see [`part::let_go`].
fn let_go(cuts: Vec<Cut>) -> Pieces {
    /// What a reply has, in order.
    enum Piece {
        Next,
        Zeroes(u64),
        Below(Pieces),
    }
    let (mut parts, mut order) = (Vec::with_capacity(cuts.len()), Vec::with_capacity(cuts.len()));
    for cut in cuts {
        order.push(match cut {
            Cut::Part(part) => {
                parts.push(part);
                Piece::Next
            }
            Cut::Zeroes(len) => Piece::Zeroes(len),
            Cut::Below(read) => Piece::Below(read),
        });
    }
    let (mut data, mut pieces) = (part::let_go(parts).into_iter(), Pieces::new());
    for piece in order {
        match piece {
            Piece::Next => data.next().into_iter().for_each(|data| pieces.push(data)),
            Piece::Zeroes(len) => pieces.push_zeroes(len),
            Piece::Below(read) => pieces.append(read),
        }
    }
    pieces
}

/// Somebody who uses places in the store that the map gave out.
pub(crate) struct Reading<'a> {
    shared: &'a Shared,
    ticket: u64,
}

/// A planned read. While it lives, no segment that it names is deleted.
struct Planned<'a> {
    _reading: Reading<'a>,
    pieces: Vec<(Extent, Piece)>,
    /// Frames that were fetched beside what opens them.
    sealed: Sealed,
}

/// The frames that pieces need, each with what opens it.
fn wanted(pieces: &[(Extent, Piece)]) -> Vec<(FrameAddr, Salt)> {
    let frame = |(_, piece): &(Extent, Piece)| match piece {
        Piece::Frame(location, salt) => Some((location.frame, *salt)),
        Piece::Held(..) | Piece::Zero | Piece::Hole => None,
    };
    let mut frames: Vec<_> = pieces.iter().filter_map(frame).collect();
    frames.dedup();
    frames
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.shared.ledger().end_reading(self.ticket);
        self.shared.waits.read_ended.notify_waiters();
    }
}

/// What a client is told of a read that failed: it was logged with object and offset where it was found.
pub(crate) fn io_error(error: ReadError) -> DeviceError {
    DeviceError::Io(error.to_string())
}
