//! Objects that nobody owns: what a displaced server put into a slot that a fence had voided and that was swept already, or
//! what is left of a deletion that a dying server had begun and no table remembers. They cost money, not data.
//!
//! They are found by listing the volume's folder, rarely ([`crate::engine::sweeps`]). One that two listings find, a grace time apart, is
//! deleted.
//!
//! Nothing is deleted on doubt: an object beyond the end of the log may be on its way to being committed; a fence that
//! displaced a server stays for ever (see [`crate::opening::scan::follow_fence`]); what cannot be read, or is no object of a volume at
//! all, is reported and left alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::engine::Event;
use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::engine::slot::{self, ProofError};
use crate::error::VolumeError;
use crate::format::keys::Keys;
use crate::format::places::further_place;
use crate::format::segment::LogObject;
use crate::reading::objects::ReadError;
use crate::reading::{Slot, slots};
use crate::space::{Counted, Span};
use crate::store::{ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};
use crate::units::Seq;

/// Who owns an object of a volume's folder, as far as its key tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The volume needs it, or may in a moment.
    Volume,
    /// A slot of the log that no table names: nobody's, unless it is a fence that stays.
    FenceOrNobody(Seq),
    /// Nobody.
    Nobody,
    /// It is no object of ours.
    Foreign,
}

/// What the tables of a volume name.
#[derive(Debug, Default)]
pub struct Tables {
    /// Segments.
    pub segments: BTreeSet<Seq>,
    /// Spans of the table that cannot be read: whatever is in them may be needed.
    pub unknown: BTreeSet<Span>,
    /// Slots from here on may be on their way.
    pub next: Seq,
    /// Checkpoint objects.
    pub checkpoints: BTreeSet<Seq>,
    /// Checkpoints after this one may be on their way.
    pub checkpointed: Seq,
}

impl Tables {
    fn has(&self, seq: Seq) -> bool {
        self.segments.contains(&seq) || seq >= self.next || self.unknown.contains(&Span::of(seq))
    }

    /// Whose object that is.
    pub fn owner(&self, keys: &Keys, key: &Key) -> Owner {
        // Whatever stands beside an object is its owner's.
        let own = further_place(key).map(|(own, _)| own);
        let key = own.as_ref().unwrap_or(key);
        if let Some(stretch) = keys.stretch(key) {
            return if stretch.last > self.checkpointed { Owner::Volume } else { Owner::Nobody };
        }
        match Keys::number(key).map(Seq) {
            None if keys.mark(key).is_some() => Owner::Volume,
            Some(_) if keys.is_meta(key) => Owner::Volume,
            Some(seq) if *key == keys.checkpoint(seq) => {
                match self.checkpoints.contains(&seq) || seq > self.checkpointed {
                    true => Owner::Volume,
                    false => Owner::Nobody,
                }
            }
            Some(seq) if *key == keys.segment(seq) => match self.has(seq) {
                true => Owner::Volume,
                false => Owner::FenceOrNobody(seq),
            },
            _ => Owner::Foreign,
        }
    }
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that were deleted.
    pub removed: Vec<Key>,
    /// Objects that belong to nobody and were left alone, because they cannot be read or are not ours.
    pub left: Vec<Key>,
}

/// Why a sweep broke off.
pub(crate) enum Failed {
    /// The store did not answer: there will be another one.
    Store(StoreError),
    /// The volume is not ours any more.
    Ended(End),
}

/// A sweep: see [`sweep_suspects`].
pub(crate) async fn run(shared: Arc<Shared>, suspects: BTreeSet<Key>) -> Event {
    match sweep_suspects(&shared, &suspects).await {
        Ok(found) => Event::Swept(Ok(found)),
        Err(Failed::Store(error)) => Event::Swept(Err(error)),
        Err(Failed::Ended(end)) => Event::Ended(end),
    }
}

/// Deletes those of the suspects that still belong to nobody, and returns the new ones.
async fn sweep_suspects(shared: &Shared, suspects: &BTreeSet<Key>) -> Result<BTreeSet<Key>, Failed> {
    let (orphans, left) = find(shared).await.map_err(Failed::Store)?;
    if !left.is_empty() {
        tracing::warn!(volume = %shared.facts.meta.name, first = %left[0], objects = left.len(), "objects that belong to nobody are left alone");
    }
    let (confirmed, fresh): (Vec<Key>, Vec<Key>) = orphans.into_iter().partition(|key| suspects.contains(key));
    remove(shared, &confirmed).await?;
    Ok(fresh.into_iter().collect())
}

/// Deletes at once whatever belongs to nobody. The caller has just taken the volume: nobody else writes to it.
pub(crate) async fn sweep_now(shared: &Shared) -> Result<Swept, Failed> {
    let (removed, left) = find(shared).await.map_err(Failed::Store)?;
    remove(shared, &removed).await?;
    Ok(Swept { removed, left })
}

async fn remove(shared: &Shared, orphans: &[Key]) -> Result<(), Failed> {
    if orphans.is_empty() {
        return Ok(());
    }
    // What nobody owned when it was found is nobody's, unless somebody took the volume.
    let from = {
        let committed = shared.ledger().log().committed();
        committed.next().max(shared.facts.fence.1.continues_at)
    };
    slot::prove_unfenced(shared, from).await.map_err(|error| match error {
        ProofError::Store(error) => Failed::Store(error),
        ProofError::Fenced(end) => Failed::Ended(end),
    })?;
    shared.doors.store.delete(orphans).await.map_err(Failed::Store)?;
    tracing::info!(volume = %shared.facts.meta.name, objects = orphans.len(), first = %orphans[0], "deleted objects that belonged to nobody");
    Ok(())
}

/// The objects that belong to nobody, and those of them that are to be left alone.
async fn find(shared: &Shared) -> Result<(Vec<Key>, Vec<Key>), StoreError> {
    let listed = list_all(&*shared.doors.background, &shared.doors.keys.all()).await?;
    // After the listing: whatever it shows was begun before, and is in the tables by now or still under way.
    let tables = tables(shared).await?;
    let (mut orphans, mut left) = (Vec::new(), Vec::new());
    for ObjectEntry { key, .. } in listed {
        let owner = tables.owner(&shared.doors.keys, &key);
        match verdict(&*shared.doors.background, &shared.doors.keys, &shared.doors.sealer, &key, owner).await? {
            Verdict::Owned => {}
            Verdict::Orphan => orphans.push(key),
            Verdict::LeaveAlone => left.push(key),
        }
    }
    Ok((orphans, left))
}

/// What the tables name now. While pages of them are read, segments may be deleted, but none before `next` is added.
pub(crate) async fn tables(shared: &Shared) -> Result<Tables, StoreError> {
    let _reading = shared.begin_reading();
    let (mut tables, spans) = {
        let ledger = shared.ledger();
        let log = ledger.log();
        let tables = Tables {
            next: log.committed().next(),
            checkpoints: ledger.known_checkpoints(),
            checkpointed: log.checkpointed(),
            ..Tables::default()
        };
        (tables, log.map.space().spans().collect::<Vec<_>>())
    };
    for span in spans {
        match counters(shared, span).await? {
            Some(counters) => tables.segments.extend(counters.into_iter().map(|(seq, _)| seq)),
            None => drop(tables.unknown.insert(span)),
        }
    }
    Ok(tables)
}

/// What the table of segments says of a span; nothing if it cannot be read.
pub(crate) async fn counters(shared: &Shared, span: Span) -> Result<Option<Counted>, StoreError> {
    let mut pages = HashMap::new();
    loop {
        let asked = shared.ledger().log().map.counters(span, &pages);
        match asked {
            Ok(counters) => return Ok(Some(counters)),
            Err(need) => match shared.fetch_pages(need).await {
                Ok(loaded) => pages.extend(loaded),
                Err(ReadError::Store { source, .. }) if source.kind != ErrorKind::NotFound => return Err(source),
                Err(_) => return Ok(None),
            },
        }
    }
}

/// What is to become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Owned,
    /// It may go.
    Orphan,
    /// It belongs to nobody, but it stays.
    LeaveAlone,
}

/// Decides by the owner, and by the object itself where its key is not enough.
pub async fn verdict(
    store: &dyn Store,
    keys: &Keys,
    sealer: &crate::codec::seal::Sealer,
    key: &Key,
    owner: Owner,
) -> Result<Verdict, StoreError> {
    let seq = match owner {
        Owner::Volume => return Ok(Verdict::Owned),
        Owner::Nobody => return Ok(Verdict::Orphan),
        Owner::Foreign => return Ok(Verdict::LeaveAlone),
        Owner::FenceOrNobody(seq) => seq,
    };
    let mut slot = slots::read_slot(store, keys, sealer, seq).await;
    if matches!(slot, Ok(Slot::Free)) {
        // What stood before it in the slot is gone, or all of the slot.
        slot = slots::read_log_object(store, key.clone(), sealer, seq).await;
    }
    match slot {
        Ok(Slot::Holds(read, _)) => match read.object {
            LogObject::Fence(fence) if fence.displaces => Ok(Verdict::Owned),
            _ => Ok(Verdict::Orphan),
        },
        Ok(Slot::Torn(torn)) if torn.head.is_some() => Ok(Verdict::Orphan),
        Ok(Slot::Torn(_)) => Ok(Verdict::LeaveAlone),
        Ok(Slot::Free) => Ok(Verdict::Owned),
        Err(gone) if gone.is_not_found() => Ok(Verdict::Owned),
        Err(VolumeError::Store { source, .. }) => Err(source),
        Err(_) => Ok(Verdict::LeaveAlone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::Compression;
    use crate::format::meta::{FencedBy, Layout, Meta, VolumeName};
    use crate::units::BlockSize;

    #[test]
    fn what_stands_in_a_page_that_cannot_be_read_has_an_owner() {
        let keys = Keys::of(&Meta {
            name: VolumeName::new("v").unwrap(),
            uuid: uuid::Uuid::from_u128(1),
            size: 1 << 30,
            block_size: BlockSize::default(),
            created_unix_millis: 0,
            compression: Compression::Lz4,
            encryption: None,
            deleted: false,
            layout: Layout::ByUuid,
            fenced_by: FencedBy::CreateOnly,
            schedule: None,
            keep_until_unix_millis: 0,
            parent: None,
            may_have_clones: false,
            copy: None,
            settings: Default::default(),
            log: None,
        });
        let tables = Tables { next: Seq(5000), unknown: BTreeSet::from([Span(2)]), ..Tables::default() };
        let owner = |seq| tables.owner(&keys, &keys.segment(Seq(seq)));
        assert_eq!(owner(2047), Owner::FenceOrNobody(Seq(2047)));
        assert_eq!([owner(2048), owner(3071), owner(5000)], [Owner::Volume; 3]);
        assert_eq!(owner(3072), Owner::FenceOrNobody(Seq(3072)));
    }
}
