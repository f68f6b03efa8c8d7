//! A mirror ([`crate::mirror`]) becomes a volume of its own.
//!
//! 1. It is read as it stands, and what it lacks is told. One that a server did not close is promoted only if that is asked for.
//! 2. A fence goes into the first free slot of its log: whoever copies into it finds other bytes there, and ends. That fence is never deleted, as one that
//!    displaces a server. If an object is in the slot when the fence arrives, it counts, and the mirror is read again.
//! 3. A close entry follows: whoever opens the volume next has nothing to take from anybody.
//! 4. The description goes where those of volumes are. From here on it is a volume.
//!
//! A promotion that breaks off before 4 leaves a mirror that gets no more, and is promoted again. The fence must come first: without it there would be a volume
//! into which somebody still copies.

use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::codec::EncodeError;
use crate::engine::options::Options;
use crate::engine::slot::{self, Put};
use crate::error::{Holder, Result, VolumeError};
use crate::format::meta::VolumeName;
use crate::format::segment::{Close, Durability, Fence, LogObject};
use crate::keyring::Secrets;
use crate::opening::description::{self, Description};
use crate::opening::recover::ServerIdentity;
use crate::opening::scan::{Scan, Source};
use crate::outside::{Clock, Random};
use crate::reading::{Slot, slots};
use crate::store::Store;
use crate::units::{ChangeNo, Epoch, Seq};

/// How often it is begun again because the server of the first store copies on.
const TRIES: usize = 16;

/// Slots that are looked at at once.
const PARALLEL: usize = 16;

/// What a mirror holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last change.
    pub covers: ChangeNo,
    /// The last slot of the log.
    pub committed: Seq,
    /// The next one.
    pub next: Seq,
    /// The server that had the volume last; nothing if none had.
    pub holder: Option<Holder>,
    /// Whether it closed the volume, and the mirror has that.
    pub is_closed: bool,
}

/// What it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    /// Changes.
    pub changes: u64,
    /// Objects of the log.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects of the log that the first store does not have any more; they are not in the bytes.
    pub gone: u64,
}

/// A mirror that was looked at.
#[derive(Debug)]
pub struct Found {
    source: Source,
    description: Description,
    scan: Scan,
}

fn position(scan: &Scan) -> Position {
    Position {
        covers: scan.covers,
        committed: scan.committed,
        next: scan.next,
        holder: scan.fence.as_ref().map(|(_, fence)| Holder::of(fence)),
        is_closed: scan.closed,
    }
}

/// Looks at a mirror. Fails if there is none of that name, or if it was promoted.
pub async fn look(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<Found> {
    let description = find(&**store, name).await?;
    let source = Source::described(store.clone(), description.clone(), &Options::default(), None, secrets).await?;
    source.meta.check_store(&**store)?;
    let scan = source.scan().await?;
    Ok(Found { source, description, scan })
}

async fn find(store: &dyn Store, name: &VolumeName) -> Result<Description> {
    if description::newest(store, name).await?.is_some_and(|found| !found.meta.deleted) {
        return Err(VolumeError::Invalid(format!(
            "volume {name} in {} is a volume and no mirror, or was promoted already: serve it as any other",
            store.url()
        )));
    }
    description::mirrored(store, name).await?.ok_or_else(|| {
        VolumeError::Invalid(format!(
            "there is no mirror of volume {name} in {}, or its first copy is not done yet: then it holds no state of the volume",
            store.url()
        ))
    })
}

impl Found {
    /// What it holds.
    pub fn position(&self) -> Position {
        position(&self.scan)
    }

    /// What it lacks of what the first store has.
    pub async fn lacks(&self, first: Arc<dyn Store>, secrets: &Secrets) -> Result<Lack> {
        let meta = &self.source.meta;
        let first = Source::of(first, &meta.name, &Options::default(), None, secrets).await?;
        if first.meta.uuid != meta.uuid {
            return Err(VolumeError::Invalid(format!(
                "{} holds another volume {}, {}",
                first.store.url(),
                meta.name,
                first.meta.uuid
            )));
        }
        let there = first.scan().await?;
        let mut lack = Lack { changes: there.covers.0.saturating_sub(self.scan.covers.0), ..Lack::default() };
        let slots = (self.scan.next.0..=there.committed.0).map(Seq);
        let first = &first;
        let reads = slots
            .map(|seq| async move { (seq, slots::read_slot(&*first.store, &first.keys, &first.sealer, seq).await) });
        let mut reads = stream::iter(reads).buffered(PARALLEL);
        let mut next = self.scan.next;
        while let Some((seq, read)) = reads.next().await {
            // Void.
            if seq < next {
                continue;
            }
            next = seq.next();
            match read? {
                Slot::Holds(read, _) => {
                    lack.objects += 1;
                    lack.bytes += read.total();
                    if let LogObject::Fence(fence) = &read.object {
                        next = fence.continues_at;
                    }
                }
                Slot::Free | Slot::Torn(_) => lack.gone += 1,
            }
        }
        Ok(lack)
    }

    /// Makes a volume of it (see the module): what it held then. With `takeover` also if a server did not close it.
    pub async fn promote(
        self,
        (random, clock): (&Random, &Clock),
        server: &ServerIdentity,
        secrets: &Secrets,
        takeover: bool,
    ) -> Result<Position> {
        let Found { source, description, mut scan } = self;
        let name = &source.meta.name;
        for _ in 0..TRIES {
            if let Some((_, fence)) = scan.fence.as_ref().filter(|_| !scan.closed && !takeover) {
                return Err(VolumeError::Invalid(format!(
                    "the mirror of volume {name} ends within what {} wrote, which did not close the volume, or the mirror lacks that: promote it with --takeover if that server is gone, or if what it \
                     writes from now on need not come here",
                    Holder::of(fence)
                )));
            }
            let held = position(&scan);
            if put_fence(&source, &scan, random, clock, server).await? {
                let description = described_last(&source, description, secrets).await?;
                return match description::put_promoted(&*source.store, &description).await? {
                    Some(_) => {
                        forget(&*source.store, name).await;
                        Ok(held)
                    }
                    None => Err(VolumeError::Invalid(format!(
                        "somebody else made a volume {name} in {} at the same time; look with `ashlar info`",
                        source.store.url()
                    ))),
                };
            }
            scan = source.scan().await?;
        }
        Err(VolumeError::Invalid(format!(
            "the mirror of volume {name} changes too fast to be promoted: stop the server that copies into it, or try again"
        )))
    }
}

/// Steps 2 and 3. Whether the fence took the slot.
async fn put_fence(
    source: &Source,
    scan: &Scan,
    random: &Random,
    clock: &Clock,
    server: &ServerIdentity,
) -> Result<bool> {
    let bad = |error: EncodeError| VolumeError::Invalid(error.to_string());
    let (store, sealer, time_unix_millis) = (&*source.store, &source.sealer, clock.unix_millis());
    let old = scan.fence.as_ref().map(|(_, fence)| fence);
    let strays = old.filter(|_| !scan.closed).map_or(1, |fence| u64::from(fence.window).max(1));
    let (seq, epoch) = (scan.next, old.map_or(Epoch(0), |fence| fence.epoch).next());
    let fence = Fence {
        epoch,
        server: server.uuid,
        server_name: server.name.clone(),
        time_unix_millis,
        journal: random.uuid(),
        window: 1,
        continues_at: Seq(seq.0 + strays),
        durability: old.map_or(Durability::Store, |fence| fence.durability),
        covers: scan.covers,
        displaces: true,
    };
    let key = source.keys.segment(seq);
    let object = fence.encode(sealer, seq, sealer.salt(random.bytes())).map_err(bad)?;
    let put = slot::put_fence(store, &key, object.parts, sealer, seq).await;
    match put.map_err(VolumeError::store(format!("writing {key}")))? {
        Put::Ours(_) => {}
        Put::Taken(_) => return Ok(false),
        Put::Torn => return Err(VolumeError::Invalid(slot::torn_for_fences(&key))),
    }
    let (seq, key) = (fence.continues_at, source.keys.segment(fence.continues_at));
    let close = Close { epoch, server: server.uuid, covers: scan.covers, time_unix_millis };
    let object = close.encode(sealer, seq, sealer.salt(random.bytes())).map_err(bad)?;
    let put = slot::put_log_object(store, &key, object.parts, sealer, seq).await;
    match put.map_err(VolumeError::store(format!("writing {key}")))? {
        Put::Ours(_) => Ok(true),
        // Somebody else promotes it, too.
        Put::Taken(_) => Ok(false),
        Put::Torn => Err(VolumeError::Invalid(slot::torn(&key))),
    }
}

/// The newest description, now that nothing more comes into the log.
async fn described_last(source: &Source, known: Description, secrets: &Secrets) -> Result<Description> {
    let newest = find(&*source.store, &source.meta.name).await?;
    if newest.number <= known.number {
        return Ok(known);
    }
    newest.unlock(secrets).await?;
    Ok(newest)
}

/// It is no mirror any more. That this is not said there costs nothing: it is a volume first.
async fn forget(store: &dyn Store, name: &VolumeName) {
    let forgotten = async {
        let keys: Vec<_> = description::mirror_numbers(store, name).await?.into_values().flatten().collect();
        store.delete(&keys).await.map_err(VolumeError::store("deleting descriptions of the mirror"))
    };
    if let Err(error) = forgotten.await {
        tracing::debug!(volume = %name, "descriptions of the mirror stay: {error}");
    }
}
