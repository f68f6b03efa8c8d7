//! A clone becomes independent: what it shows of its parent is written into it, piece by piece, as a client would.
//!
//! Clients go on meanwhile. A piece is accepted under the lock under which their changes are, and only if the clone has still nothing there: so
//! what a client wrote counts, before and after. What breaks off goes on where it was: what is written is not looked at again.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use crate::change::Change;
use crate::device::{Allocation, DeviceError};
use crate::engine::below::Below;
use crate::engine::buffer;
use crate::engine::ledger::{By, Refusal};
use crate::engine::log::Piece;
use crate::engine::read::io_error;
use crate::engine::shared::{Doors, Shared};
use crate::reading::objects::LoadedPages;
use crate::units::{ChangeNo, Extent};

/// Bytes that are written at once.
const PIECE: u64 = 1 << 20;

/// Runs of the parent that are looked at together.
const RUNS: usize = 256;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The last change that was accepted for it.
    pub last: ChangeNo,
    /// The byte up to which the clone has all that it shows.
    pub at: u64,
    /// It has all of it here.
    pub of: u64,
}

impl Doors {
    /// It has all that it shows.
    pub(crate) fn is_independent(&self) {
        *self.below.lock() = None;
    }
}

impl Shared {
    /// Writes what a clone shows of its parent into it, from that byte on, and for that time at most, in which what it has already does not count. Nothing of
    /// a volume that is none.
    pub(crate) async fn take_over_from(&self, from: u64, within: Duration) -> Result<Taken, DeviceError> {
        let mut last = self.ledger().log().last();
        let Some(below) = self.doors.below() else { return Ok(Taken { last, at: from, of: from }) };
        let of = below.device().info().size.min(self.size());
        let (mut at, until) = (from, Instant::now() + within);
        while at < of {
            for run in below.device().extents(at, of - at, RUNS).await? {
                let end = at + run.len;
                while run.allocation == Allocation::Data && at < end {
                    let len = PIECE.min(end - at);
                    let taken = self.take_over(&below, self.facts.block_size.cover(at, len)).await?;
                    at += len;
                    last = taken.unwrap_or(last);
                    if taken.is_some() && Instant::now() >= until {
                        return Ok(Taken { last, at, of });
                    }
                }
                at = end;
            }
        }
        Ok(Taken { last, at: of, of })
    }

    /// Writes what is below into the clone where it has nothing; the last change, if there was any.
    async fn take_over(&self, below: &Below, extent: Extent) -> Result<Option<ChangeNo>, DeviceError> {
        let (mut last, mut rest) = (None, vec![extent]);
        while let Some(extent) = rest.pop() {
            let holes = self.holes(extent).await?;
            if holes != [extent] {
                rest.extend(holes);
                continue;
            }
            let block_size = self.facts.block_size;
            let (offset, len) = (block_size.offset_of(extent.start), block_size.bytes_in(extent.count));
            let mut data = BytesMut::with_capacity(len as usize);
            // A piece is far shorter than a request may be.
            for bytes in below.device().read(offset, len as u32).await?.into_bytes() {
                data.extend_from_slice(&bytes);
            }
            let change = Change::Write(extent, data.freeze());
            match self.accept_where_nothing_is(change).await? {
                Some(no) => last = Some(no),
                None => rest.push(extent),
            }
        }
        Ok(last)
    }

    /// The parts of the extent in which the clone has nothing.
    async fn holes(&self, extent: Extent) -> Result<Vec<Extent>, DeviceError> {
        let mut loaded = LoadedPages::new();
        loop {
            let planned = self.ledger().plan_read(extent, loaded.clone(), self.doors.seat.map_memory());
            match planned {
                Ok(pieces) => return Ok(joined_holes(&pieces)),
                Err(lacking) => loaded.extend(self.fetch_pages(lacking.into()).await.map_err(io_error)?),
            }
        }
    }

    /// Accepts the change if nothing is in all of its extent.
    async fn accept_where_nothing_is(&self, change: Change) -> Result<Option<ChangeNo>, DeviceError> {
        let kept = self.wait_for_room(buffer::cost(&change)).await?.keep();
        let extent = change.extent();
        let mut loaded = LoadedPages::new();
        loop {
            let freed = self.waits.completed.notified();
            let need = {
                let map_memory = self.doors.seat.map_memory();
                let mut ledger = self.ledger();
                self.check_open()?;
                match ledger.may_accept(extent, By::Client) {
                    Err(Refusal::BeyondEnd) => return Err(DeviceError::BeyondEnd),
                    Err(Refusal::NotNow) => None,
                    Ok(()) => match ledger.plan_read(extent, loaded.clone(), map_memory) {
                        Ok(pieces) if joined_holes(&pieces) == [extent] => {
                            let no = self.accept_locked(&mut ledger, change);
                            kept.accepted();
                            return Ok(Some(no));
                        }
                        Ok(_) => return Ok(None),
                        Err(lacking) => Some(lacking.into()),
                    },
                }
            };
            match need {
                Some(need) => loaded.extend(self.fetch_pages(need).await.map_err(io_error)?),
                None => freed.await,
            }
        }
    }
}

/// The holes among pieces that are in order, neighbours joined.
fn joined_holes(pieces: &[(Extent, Piece)]) -> Vec<Extent> {
    let mut holes: Vec<Extent> = Vec::new();
    for (extent, _) in pieces.iter().filter(|(_, piece)| matches!(piece, Piece::Hole)) {
        match holes.last_mut() {
            Some(last) if last.end() == extent.start => last.count += extent.count,
            _ => holes.push(*extent),
        }
    }
    holes
}
