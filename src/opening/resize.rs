//! A volume gets another size. That is one new description; the objects and the formats are the same.
//!
//! **Larger**: somebody puts a description with the greater size ([`grow`]), and the server that has the volume follows it
//! ([`Shared::follow`]). Nothing else changes: beyond the end nothing is mapped, so what is new reads as zero. The server itself serves the
//! size first, and puts the description then ([`Shared::grow`]), which may take as long as the store is away: [`growth`] has the steps.
//!
//! **Smaller** ([`Shared::shrink`]): only the server that has the volume may do that, in these steps:
//!
//! 1. The end is *lowered*: under the lock under which changes are accepted, so that from here on none is accepted that ends past
//!    the new end. What was accepted before is committed.
//! 2. If there is data beyond the new end, and nobody said that it may go, that is all: the end is where it was. This is looked at before
//!    step 1, too, so that a client which still uses what lies there gets no error because somebody asked for the wrong size.
//! 3. All from the new end on is given up through the log, like a TRIM: one hole, accepted behind every change that was made there,
//!    and committed. The map and the counts of live blocks know it, and the space comes back.
//! 4. A claim to the next description is put, `meta/<n>-<nonce>`.
//! 5. Proof that nobody took the volume before the claim was there ([`slot::prove_unfenced`]).
//! 6. The description with the smaller size is put under that number: create-only, or as [`super::verified`] says. Then the claim
//!    and the older descriptions are deleted.
//! 7. The server serves the new size.
//!
//! So *nothing is ever mapped beyond the end that the newest description says*, and a volume that grows again reads zeros there:
//!
//! - When the smaller description is there, the hole of step 3 is committed before it, and so in every log that anybody reads who has
//!   read that description. Changes of step 1 come before the hole, in the log and in the journal, whichever of both brings them back:
//!   replaying them is harmless, because the hole follows. After the hole there are none.
//! - A crash up to step 6 leaves the size as it was. After step 3 what was to be cut off is gone, as somebody has asked for; without
//!   data there, nothing is lost.
//! - *Whoever takes the volume meanwhile* puts a fence, and then looks for a newer description and for claims
//!   ([`description::settled_since`]). Either it sees what is there after step 4, or its fence was there before the look of step 5, and
//!   the shrinking ends. If it sees the description, it has the smaller size, and the hole was before its fence. If it sees only the
//!   claim, it puts the description that it knows once more, under a number not lower than the claimed one: then the smaller one, however
//!   late it arrives, does not count, and no change that the new server accepts is ever cut off.
//! - *A step that fails, or whose caller goes away*, from step 6 on leaves the end lowered: the description may be there, or arrive. It
//!   is lifted when the claim was followed or overridden in the same way, with the next reload or resize ([`Shared::reload`]).
//!
//! Requests of clients that do not know of the new end fail there: each is checked against the size of that moment.

use std::io;
use std::sync::Arc;

use crate::codec::seal::Sealer;
use crate::device::{Allocation, DeviceError};
use crate::engine::Event;
use crate::engine::backoff::Backoff;
use crate::engine::growth::{self, Growth};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::error::{Result, VolumeError};
use crate::format::meta::Meta;
use crate::opening::description::{self, Description};
use crate::opening::near;
use crate::outside::Random;
use crate::store::{ErrorKind, Store, StoreError};
use crate::units::{BlockIndex, Extent};

/// Runs that are looked at in one go in search of data beyond the new end.
const RUNS_AT_ONCE: usize = 64;

/// Puts the description of the same volume with a greater size. `sealer` is what unlocking the description gave.
pub async fn grow(
    store: &dyn Store,
    random: &Random,
    description: &Description,
    sealer: &Sealer,
    size: u64,
) -> Result<()> {
    let meta = with_size(&description.meta, size)?;
    if size <= description.meta.size {
        return Err(VolumeError::Invalid(format!(
            "volume {} has {} bytes, which {size} is not more than",
            meta.name, description.meta.size
        )));
    }
    description.replace(store, random, &meta, sealer.keyring()).await
}

/// What describes the same volume with another size, if it can have that.
fn with_size(meta: &Meta, size: u64) -> Result<Meta> {
    Meta::check_size(size, meta.block_size).map_err(|error| VolumeError::Invalid(error.to_string()))?;
    Ok(Meta { size, ..meta.clone() })
}

/// Tells the store the size that is owed, as often as it takes: somebody was told that the volume has it (rule R10).
pub(crate) async fn describe(shared: Arc<Shared>) -> Event {
    let mut backoff = Backoff::new(&shared);
    loop {
        let failed = match shared.describe_owed().await {
            Ok(()) => return Event::Described,
            Err(failed) => failed,
        };
        let from = shared.ledger().first_foreign_slot();
        let (doing, error) = match failed {
            VolumeError::Store { doing, source } => (doing, source),
            // Somebody changed the description at the same time, or took the volume.
            failed => match slot::prove_unfenced(&shared, from).await {
                Err(ProofError::Fenced(end)) => return Event::Ended(end),
                Err(ProofError::Store(source)) => ("looking for another server".into(), source),
                Ok(()) => ("becoming larger".into(), StoreError::new(ErrorKind::Retryable, failed.to_string())),
            },
        };
        backoff.pause(&doing, &error).await;
    }
}

impl Shared {
    /// Makes the volume larger, whether the store answers or not ([`growth`], steps 1 to 3).
    pub async fn grow(&self, size: u64) -> Result<()> {
        self.check_open()?;
        let name = &self.facts.meta.name;
        with_size(&self.facts.meta, size)?;
        let _turn = self.waits.noting_size.lock().await;
        if size <= self.size() {
            return Err(VolumeError::Invalid(format!(
                "volume {name} has {} bytes, which {size} is not more than",
                self.size()
            )));
        }
        if !self.ledger().ask_for_size(size) {
            return Err(VolumeError::Invalid(format!(
                "volume {name} is becoming smaller just now, or it is not known yet whether it did: try again"
            )));
        }
        let asked = AskedFor(self);
        let noted = Growth { epoch: self.facts.epoch.0, size };
        growth::NOTE.write(&*self.doors.disk, &noted).await.map_err(|error| {
            let path = self.doors.disk.path();
            VolumeError::Invalid(format!("the size of volume {name} cannot be noted in {path}, and stays: {error}"))
        })?;
        {
            let mut ledger = self.ledger();
            // Nobody would tell the store.
            self.check_open()?;
            ledger.owe_size();
            self.size_changed(&ledger);
        }
        drop(asked);
        self.waits.wake.notify_one();
        Ok(())
    }

    /// Step 4 of [`growth`]: once.
    async fn describe_owed(&self) -> Result<()> {
        let _turn = self.description_turn().await?;
        let found = self.follow_newest().await?;
        let owed = self.ledger().owed_size();
        if let Some(size) = owed {
            let meta = with_size(&found.meta, size)?;
            let keyring = self.doors.sealer.keyring();
            let prove = || self.prove_unfenced();
            let put = found.replace_as_owner(&*self.doors.store, &self.doors.random, &meta, keyring, prove);
            self.adopt(put.await?, &meta)?;
        }
        if let Err(error) = self.forget_growth().await {
            // The epoch that follows takes no notice of it, and nobody makes the volume smaller before it is gone.
            let path = self.doors.disk.path();
            tracing::warn!(volume = %self.facts.meta.name, "the size that was noted in {path} cannot be removed: {error}");
        }
        Ok(())
    }

    /// Removes the note of a size, unless one is owed again.
    async fn forget_growth(&self) -> io::Result<()> {
        let _turn = self.waits.noting_size.lock().await;
        let owed = self.ledger().owed_size();
        if owed.is_some() { Ok(()) } else { growth::NOTE.forget(&*self.doors.disk).await }
    }

    /// Takes over what is new in the description: keys, compression, size.
    pub async fn reload(&self) -> Result<()> {
        let _turn = self.description_turn().await?;
        self.follow_newest().await.map(drop)
    }

    /// Takes over what a newer description says that was read and belongs to the volume: keys, compression, size.
    async fn follow(&self, description: &Description) -> Result<()> {
        if description.meta.uuid != self.facts.meta.uuid {
            return Err(VolumeError::Invalid(format!("volume {} is another one now", self.facts.meta.name)));
        }
        if description.meta.log != self.facts.meta.log {
            return Err(VolumeError::Invalid(near::elsewhere(&self.facts.meta.name)));
        }
        let known = self.ledger().description();
        if description.number < known {
            let what = format!("this server has its description {known}, and the store {}", description.number);
            return Err(VolumeError::RolledBack { name: self.facts.meta.name.to_string(), what });
        }
        let sealer = description.unlock(&self.doors.secrets).await?;
        match (self.doors.sealer.keyring(), sealer.keyring()) {
            (Some(ours), Some(newer)) => ours.follow(newer),
            (None, None) => {}
            _ => return Err(VolumeError::Invalid(format!("volume {} cannot change its seal", self.facts.meta.name))),
        }
        self.adopt(description.number, &description.meta)
    }

    /// Makes the volume smaller (see the module). What lies beyond the new end is given up; if that is data, only with
    /// `discard_data`.
    pub async fn shrink(&self, size: u64, discard_data: bool) -> Result<()> {
        let _turn = self.description_turn().await?;
        self.check_open()?;
        let found = self.follow_newest().await?;
        // From here on nobody makes it larger: no change is committed until the store knows the size, which waits for this very turn.
        let Some(_barred) = Barred::begin(self) else {
            return Err(VolumeError::Invalid(format!(
                "volume {} became larger, and the store was not told yet: try again when it was",
                self.facts.meta.name
            )));
        };
        // Else it could become as large again after a crash.
        self.forget_growth().await.map_err(|error| {
            let (name, path) = (&self.facts.meta.name, self.doors.disk.path());
            VolumeError::Invalid(format!(
                "volume {name} stays as large: what was noted in {path} cannot be removed: {error}"
            ))
        })?;
        let meta = with_size(&found.meta, size)?;
        if size >= found.meta.size {
            return Err(VolumeError::Invalid(format!(
                "volume {} has {} bytes, which {size} is not less than",
                meta.name, found.meta.size
            )));
        }
        if found.meta.parent.is_some() {
            return Err(VolumeError::Invalid(format!(
                "volume {name} is a clone, and cannot be made smaller: make it independent first, with ashlar clone --detach {name}",
                name = meta.name
            )));
        }
        // First as it is: whoever is refused is mostly refused here, and no client hears of it.
        self.refuse_data_between(size, found.meta.size, discard_data).await?;
        // Step 1.
        let end = self.facts.block_size.block_of(size);
        let mut lowered = Lowered::at(self, end);
        // Step 2.
        self.refuse_data_between(size, found.meta.size, discard_data).await?;
        // Step 3.
        self.give_up(Extent::between(end, self.facts.block_size.block_of(found.meta.size))).await?;
        // Steps 4 to 6.
        lowered.stays = true;
        let keyring = self.doors.sealer.keyring();
        let prove = || self.prove_unfenced();
        match found.replace_as_owner(&*self.doors.store, &self.doors.random, &meta, keyring, prove).await {
            // Step 7.
            Ok(number) => self.adopt(number, &meta),
            Err(error) => self.find_out(size, error).await,
        }
    }

    /// Putting the smaller description failed, and it may be there all the same: whether it is.
    async fn find_out(&self, size: u64, failed: VolumeError) -> Result<()> {
        match self.follow_newest().await {
            Ok(found) if found.meta.size == size => Ok(()),
            Ok(_) => Err(failed),
            Err(unknown) => Err(VolumeError::Invalid(format!(
                "{failed}; whether volume {} has {size} bytes now is not known yet ({unknown}). Until it is, nothing can be written \
                 beyond: try again",
                self.facts.meta.name
            ))),
        }
    }

    /// The newest description, which this server has taken over. Ends a lowered end: the caller has the turn.
    pub(crate) async fn follow_newest(&self) -> Result<Description> {
        let (name, known) = (&self.facts.meta.name, self.ledger().description());
        let is_lowered = self.ledger().is_lowered();
        let overridden = match is_lowered {
            true => description::settled_since(&*self.doors.store, &self.doors.random, name, known).await?,
            false => None,
        };
        let found = match overridden {
            Some(found) => found,
            None => description::settled(&*self.doors.store, &self.doors.random, name).await?,
        };
        self.follow(&found).await?;
        Ok(found)
    }

    /// Step 5.
    pub(crate) async fn prove_unfenced(&self) -> Result<()> {
        let from = self.ledger().first_foreign_slot();
        slot::prove_unfenced(self, from).await.map_err(|error| match error {
            ProofError::Fenced(end) => DeviceError::from(end).into(),
            ProofError::Store(source) => VolumeError::Store { doing: "looking for another server".into(), source },
        })
    }

    /// Step 2, when all that was accepted before is committed, so that zeros are known for what they are.
    async fn refuse_data_between(&self, start: u64, end: u64, discard_data: bool) -> Result<()> {
        let last = self.ledger().log().last();
        self.committed(last).await?;
        if discard_data {
            return Ok(());
        }
        match self.data_between(start, end).await? {
            None => Ok(()),
            Some(byte) => Err(VolumeError::Invalid(format!(
                "volume {} holds data beyond {start} bytes, at byte {byte} and maybe further on: make what is on the disk smaller \
                 first and have it give up the rest (fstrim, blkdiscard), or lose that data with --discard-data",
                self.facts.meta.name
            ))),
        }
    }

    /// The first byte of data in a range, if there is any.
    async fn data_between(&self, start: u64, end: u64) -> Result<Option<u64>> {
        let mut at = start;
        while at < end {
            for run in self.extents(at, end - at, RUNS_AT_ONCE).await? {
                if run.allocation == Allocation::Data {
                    return Ok(Some(at));
                }
                at += run.len;
            }
        }
        Ok(None)
    }

    /// Whose turn it is to follow the description, or to change it.
    pub(super) async fn description_turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        // It is never closed.
        self.waits.describing.acquire().await.map_err(|_| DeviceError::ShuttingDown.into())
    }
}

/// A size that is asked for until this is dropped, unless it is served then.
struct AskedFor<'a>(&'a Shared);

impl Drop for AskedFor<'_> {
    fn drop(&mut self) {
        self.0.ledger().take_size_back();
    }
}

/// Nobody makes the volume larger until this is dropped.
struct Barred<'a>(&'a Shared);

impl Barred<'_> {
    fn begin(shared: &Shared) -> Option<Barred<'_>> {
        let may = shared.ledger().begin_shrinking();
        may.then(|| Barred(shared))
    }
}

impl Drop for Barred<'_> {
    fn drop(&mut self) {
        self.0.ledger().end_shrinking();
    }
}

/// An end that is lowered until this is dropped, or for longer.
struct Lowered<'a> {
    shared: &'a Shared,
    /// It is not known what the description says.
    stays: bool,
}

impl Lowered<'_> {
    fn at(shared: &Shared, end: BlockIndex) -> Lowered<'_> {
        shared.ledger().lower(Some(end));
        Lowered { shared, stays: false }
    }
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.shared.ledger().lower(None);
        }
    }
}
