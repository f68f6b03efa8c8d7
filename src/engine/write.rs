//! WRITE, TRIM, WRITE_ZEROES, FLUSH: accept under one short lock, acknowledge when a killed server would not lose it,
//! and wait for durability where it was asked for.

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::cache::Purpose;
use crate::change::Change;
use crate::device::DeviceError;
use crate::engine::budget::Room;
use crate::engine::buffer;
use crate::engine::core::End;
use crate::engine::ledger::{By, Ledger, Refusal};
use crate::engine::purse::{Thrift, WRITE_WAITS};
use crate::engine::shared::Shared;
use crate::format::segment::Durability;
use crate::peer::sender::Promise;
use crate::units::{BlockCount, ChangeNo, Extent};

impl Shared {
    /// Accepts `data` at `offset`. Partial blocks at its edges are completed under a lock on their range.
    pub(crate) async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.afford().await?;
        self.write_now(offset, data, fua).await
    }

    async fn write_now(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        if data.is_empty() {
            return Ok(());
        }
        let cover = self.facts.block_size.cover(offset, data.len() as u64);
        let aligned = self.facts.block_size.bytes_in(cover.count) == data.len() as u64;
        let last = match aligned {
            true => self.accept_all(self.split(cover, data), Who::Client).await?,
            false => {
                let completing = self.begin_completing(cover).await?;
                let whole = self.complete(offset, data, cover).await?;
                self.accept_all(self.split(cover, whole), Who::Completer(&completing)).await?
            }
        };
        self.acknowledge(last, fua).await
    }

    /// Gives up the whole blocks inside the range. A hint: nothing internal makes it fail.
    pub(crate) async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), DeviceError> {
        let extent = self.facts.block_size.inside(offset, len);
        if extent.is_empty() {
            return Ok(());
        }
        self.afford().await?;
        let last = self.accept_all(vec![self.hole(extent)], Who::Client).await?;
        self.acknowledge(last, fua).await
    }

    /// Zeroes exactly the range: whole blocks by the map, edges by writing.
    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.afford().await?;
        let inside = self.facts.block_size.inside(offset, len);
        if inside.is_empty() {
            return self.write_now(offset, zeroes(len), fua).await;
        }
        let (start, end) =
            (self.facts.block_size.offset_of(inside.start), self.facts.block_size.offset_of(inside.end()));
        if offset < start {
            self.write_now(offset, zeroes(start - offset), fua).await?;
        }
        if end < offset + len {
            self.write_now(end, zeroes(offset + len - end), fua).await?;
        }
        let change = if no_hole { Change::Zero(inside) } else { self.hole(inside) };
        let last = self.accept_all(vec![change], Who::Client).await?;
        self.acknowledge(last, fua).await
    }

    /// The extent has nothing any more. A clone has zeros there: where it has nothing it shows what its parent has.
    fn hole(&self, extent: Extent) -> Change {
        if self.doors.below().is_some() { Change::Zero(extent) } else { Change::Hole(extent) }
    }

    /// Returns once every change accepted so far is stable, as the configured durability says (rule R3).
    pub(crate) async fn flush(&self) -> Result<(), DeviceError> {
        self.check_open()?;
        let last = self.ledger().log().last();
        let _waits = self.waits.flushes.one_more();
        self.stable(last).await
    }

    /// Returns once the change is committed in the store.
    pub(crate) async fn committed(&self, no: ChangeNo) -> Result<(), DeviceError> {
        if self.hurry(no) {
            return Ok(());
        }
        let done = self.waits.progress.wait_for(|progress| progress.covers >= no || progress.end.is_some()).await;
        if done.covers >= no { Ok(()) } else { Err(done.end.unwrap_or(End::Closed).into()) }
    }

    /// Nothing up to that change is to wait until there is more to put. Whether the store has all of it.
    pub(crate) fn hurry(&self, no: ChangeNo) -> bool {
        let has = self.ledger().want(no);
        if !has {
            self.waits.wake.notify_one();
        }
        has
    }

    async fn stable(&self, no: ChangeNo) -> Result<(), DeviceError> {
        match self.facts.options.durability {
            Durability::Store => self.committed(no).await,
            // A journal that cannot be written promises nothing: the store must have it.
            Durability::Journal => match self.doors.journal.synced(no).await {
                Ok(()) => self.check_open(),
                Err(_) => self.committed(no).await,
            },
            Durability::Peer => match self.on_both(no, Promise::Kept).await {
                true => self.check_open(),
                false => self.committed(no).await,
            },
        }
    }

    /// Returns once the change and all before it are in the local journal and in the peer's copy, either of which is then complete by itself. False if that
    /// cannot be: then the store has to have them. Each of both is waited for while the other is.
    async fn on_both(&self, no: ChangeNo, promise: Promise) -> bool {
        let Some(standby) = self.doors.standby.get() else { return false };
        let local = async {
            match promise {
                Promise::Had => self.doors.journal.written(no).await,
                Promise::Kept => self.doors.journal.synced(no).await,
            }
            .map_err(drop)
        };
        let peer = async { standby.answers(no, promise).await.then_some(()).ok_or(()) };
        let both = futures::future::try_join(local, peer).await.is_ok();
        // What lies beyond the end that the store knows is not there for who takes the volume over.
        both && self.waits.owed_size.now().is_none()
    }

    /// Returns once the change survives the death of this process.
    async fn acknowledge(&self, no: ChangeNo, fua: bool) -> Result<(), DeviceError> {
        // FUA is a FLUSH of its own change.
        let _waits = fua.then(|| self.waits.flushes.one_more());
        if self.facts.options.durability == Durability::Peer {
            return self.acknowledge_by_peer(no, fua).await;
        }
        if self.doors.journal.written(no).await.is_err() {
            self.journal_suspended();
            return self.committed(no).await;
        }
        if fua { self.stable(no).await } else { self.check_open() }
    }

    /// The same, and not lost with this host either: a device that is attached goes on at the peer with all that its programs were told is written.
    async fn acknowledge_by_peer(&self, no: ChangeNo, fua: bool) -> Result<(), DeviceError> {
        let is_on_both = self.on_both(no, if fua { Promise::Kept } else { Promise::Had }).await;
        if is_on_both {
            return self.check_open();
        }
        if self.doors.journal.progress().suspended.is_some() {
            self.journal_suspended();
        }
        self.committed(no).await
    }

    /// Gives up all from the end that was lowered on, and returns once that is committed in the store ([`crate::opening::resize`]).
    pub(crate) async fn give_up(&self, beyond: Extent) -> Result<(), DeviceError> {
        let last = self.accept_all(vec![Change::Hole(beyond)], Who::Shrinker).await?;
        self.committed(last).await
    }

    /// Accepts the changes in order and returns the number of the last.
    async fn accept_all(&self, changes: Vec<Change>, who: Who<'_>) -> Result<ChangeNo, DeviceError> {
        let mut last = ChangeNo(0);
        let is_split = changes.len() > 1;
        for change in changes {
            let kept = self.wait_for_room(buffer::cost(&change)).await?.keep();
            // The parts are committed one by one, and each would keep all of the payload until the last of them is.
            let change = if is_split { change.into_own() } else { change };
            last = self.accept(change, who).await?;
            kept.accepted();
        }
        Ok(last)
    }

    async fn accept(&self, change: Change, who: Who<'_>) -> Result<ChangeNo, DeviceError> {
        let extent = change.extent();
        loop {
            let freed = self.waits.completed.notified();
            {
                let mut ledger = self.ledger();
                self.check_open()?;
                match ledger.may_accept(extent, who.into()) {
                    Ok(()) => return Ok(self.accept_locked(&mut ledger, change)),
                    Err(Refusal::BeyondEnd) => return Err(DeviceError::BeyondEnd),
                    Err(Refusal::NotNow) => {}
                }
            }
            freed.await;
        }
    }

    /// Sequence number, write buffer and journal queue under one lock, so that all three have one order.
    pub(super) fn accept_locked(&self, ledger: &mut Ledger, change: Change) -> ChangeNo {
        let (numbered, is_due) = ledger.accept(change, Instant::now());
        let no = numbered.no;
        if let Some(witness) = &self.doors.witness.0 {
            witness(&numbered);
        }
        if let Some(standby) = self.doors.standby.get() {
            standby.append(&numbered);
        }
        self.doors.journal.append(self.facts.epoch, numbered);
        if is_due {
            self.waits.wake.notify_one();
        }
        no
    }

    /// Waits until there is something to spend on requests, for a while: nobody waits for ever because others spend it.
    async fn afford(&self) -> Result<(), DeviceError> {
        let latest = Instant::now() + WRITE_WAITS;
        let mut held = None;
        loop {
            self.check_open()?;
            let at = Instant::now();
            let until = match self.doors.purse.advice(at) {
                (Thrift::Spent, Some(until)) if at < latest => until.min(latest),
                _ => return Ok(()),
            };
            held.get_or_insert_with(|| self.waits.held.one_more());
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = self.waits.progress.wait_for(|progress| progress.end.is_some()) => {}
            }
        }
    }

    /// Waits until `cost` more bytes may be dirty (rule R6: the client waits, it gets no error for being fast).
    pub(super) async fn wait_for_room(&self, cost: u64) -> Result<Room<'_>, DeviceError> {
        let permits = cost.min(u64::from(u32::MAX)) as u32;
        if let Some(room) = self.doors.seat.try_room(permits) {
            return Ok(room);
        }
        let _waiting = self.waiting_for_room();
        tokio::select! {
            biased;
            room = self.doors.seat.room(permits) => room.ok_or_else(|| self.end_error()),
            // What all volumes share does not end with this one.
            _ = self.waits.progress.wait_for(|progress| progress.end.is_some()) => Err(self.end_error()),
        }
    }

    /// Cuts a write into changes that fit into a segment.
    fn split(&self, extent: Extent, data: Bytes) -> Vec<Change> {
        let bytes = self.facts.options.segment_size.min(self.facts.options.dirty_bytes / 4);
        let step = (bytes / u64::from(self.facts.block_size.bytes())).max(1);
        let mut changes = Vec::with_capacity(1);
        let mut at = 0;
        while at < extent.count.0 {
            let count = step.min(extent.count.0 - at);
            let part = Extent { start: extent.start + BlockCount(at), count: BlockCount(count) };
            let from = self.facts.block_size.bytes_in(BlockCount(at)) as usize;
            let to = from + self.facts.block_size.bytes_in(part.count) as usize;
            changes.push(Change::Write(part, data.slice(from..to)));
            at += count;
        }
        changes
    }

    /// `data` with the rest of its first and last block around it.
    async fn complete(&self, offset: u64, data: Bytes, cover: Extent) -> Result<Bytes, DeviceError> {
        let start = self.facts.block_size.offset_of(cover.start);
        let end = self.facts.block_size.offset_of(cover.end());
        let mut whole = BytesMut::with_capacity((end - start) as usize);
        for bytes in self.read(start, offset - start, Purpose::Read).await?.into_bytes() {
            whole.extend_from_slice(&bytes);
        }
        whole.extend_from_slice(&data);
        let data_end = offset + data.len() as u64;
        for bytes in self.read(data_end, end - data_end, Purpose::Read).await?.into_bytes() {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    async fn begin_completing(&self, extent: Extent) -> Result<Completing<'_>, DeviceError> {
        loop {
            let freed = self.waits.completed.notified();
            {
                let mut ledger = self.ledger();
                self.check_open()?;
                if ledger.begin_completing(extent) {
                    return Ok(Completing { shared: self, extent });
                }
            }
            freed.await;
        }
    }
}

/// Who changes a range.
#[derive(Clone, Copy)]
enum Who<'a> {
    /// A client: waits for whoever completes partial blocks there.
    Client,
    /// Who completes partial blocks there, and nobody else meanwhile.
    Completer(#[allow(dead_code, reason = "having it is the proof")] &'a Completing<'a>),
    /// Who makes the volume smaller: may give up what lies beyond its end.
    Shrinker,
}

impl From<Who<'_>> for By {
    fn from(who: Who<'_>) -> By {
        match who {
            Who::Client => By::Client,
            Who::Completer(_) => By::Completer,
            Who::Shrinker => By::Shrinker,
        }
    }
}

/// A range whose partial blocks its holder completes: nobody else writes there meanwhile.
struct Completing<'a> {
    shared: &'a Shared,
    extent: Extent,
}

impl Drop for Completing<'_> {
    fn drop(&mut self) {
        self.shared.ledger().end_completing(self.extent);
        self.shared.waits.completed.notify_waiters();
    }
}

fn zeroes(len: u64) -> Bytes {
    BytesMut::zeroed(len as usize).freeze()
}
