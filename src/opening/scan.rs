//! Reading a volume as it stands in the store: description, newest checkpoint, the log after it. Changes nothing; opening,
//! `info` and `check` all begin here. Only whole objects count; why a torn one may be passed over is said in
//! [`slot`](crate::engine::slot).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use crate::cache::BlockCache;
use crate::codec::seal::Sealer;
use crate::engine::options::Options;
use crate::engine::seen::Seen;
use crate::error::{Result, VolumeError};
use crate::format::account::Account;
use crate::format::digest::Stretch;
use crate::format::keys::Keys;
use crate::format::marks::{Listed, Placed};
use crate::format::meta::{FencedBy, Meta, VolumeName};
use crate::format::places::{PLACES_MAX, place};
use crate::format::root::{self, CheckpointInfo, Root};
use crate::format::segment::{Fence, LogObject, LogRead};
use crate::keyring::Secrets;
use crate::map::{Entry, ExtentMap, MapPage, NeedPages, PageRef, Placement, SegmentInfo, Table};
use crate::opening::description::{self, Description};
use crate::opening::told::Told;
use crate::opening::{near, verified};
use crate::outside::Workers;
use crate::reading::again;
use crate::reading::objects::Objects;
use crate::reading::slots::{Head, read_head_of, read_places, read_slot};
use crate::reading::{Slot, Torn};
use crate::space::candidates::FEW_SPANS;
use crate::space::kept::Deaths;
use crate::space::{Carriers, Durable, KeptVersion, Space, Span};
use crate::store::tiers::TieredStore;
use crate::store::{Key, ObjectEntry, Store, StoreError, list_after, list_all};
use crate::units::{BlockCount, BlockIndex, ChangeNo, Epoch, Extent, Seq};

/// Slots that are probed at once: few at first, because most volumes were closed or checkpointed just before.
const PROBE_FIRST: u64 = 4;
/// As many behind what digests tell of, and the last slot of that: it has mostly fewer than that which have no digest.
const PROBE_TOLD: u64 = 1 + PROBE_FIRST;
/// Then twice as many each time, up to so many,
const PROBE_MANY: u64 = 16;
/// and beyond, this part of what was found so far: the last probes find nothing, and the others wait for each other.
const PROBE_PART: u64 = 4;
/// The most slots that are probed at once.
const PROBE_MAX: u64 = 128;

/// How often a scan begins again because the volume's owner wrote a checkpoint and deleted what the scan was reading.
const RESCANS: usize = 8;

/// What is wrong with an object that is not there.
const MISSING: &str = "it is not there, but the log goes on after it";

/// The handles that a scan reads through.
#[derive(Clone, Debug)]
pub struct Source {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where its objects are.
    pub keys: Keys,
    /// Its newest description.
    pub meta: Meta,
    /// The number of the description.
    pub description: u64,
    /// What proves its objects.
    pub sealer: Sealer,
    /// Its frames and pages.
    pub objects: Objects,
    /// The store, if the log is in another one than the rest.
    pub tiers: Option<Arc<TieredStore>>,
}

/// A volume as it stands in the store.
#[derive(Debug)]
pub struct Scan {
    /// The map after the last slot.
    pub map: ExtentMap,
    /// Checkpoint objects that hold pages of the newest root.
    pub checkpoints: BTreeMap<Seq, CheckpointInfo>,
    /// The newest checkpoint; 0 if there is none.
    pub checkpointed: Seq,
    /// All checkpoint objects that are there.
    pub listed: BTreeSet<Seq>,
    /// All digests that are there.
    pub digests: BTreeSet<Stretch>,
    /// Segments that were dead in it and their bytes, as far as somebody looked: see [`Source::look_for_dead`].
    pub doomed: BTreeMap<Seq, u64>,
    /// Bytes of segments after it.
    pub bytes_since_checkpoint: u64,
    /// The last change that is committed.
    pub covers: ChangeNo,
    /// The newest fence and where it stands.
    pub fence: Option<(Seq, Fence)>,
    /// Fences in the log after the newest checkpoint.
    pub fences_since: u32,
    /// Whether the newest fence's server closed the volume.
    pub closed: bool,
    /// The last slot that took effect; 0 if there is none.
    pub committed: Seq,
    /// The first slot that is free.
    pub next: Seq,
    /// What the volume had cost at the newest checkpoint.
    pub account: Account,
    /// The first part of an object that stands in the first free slot; it never took effect.
    pub torn: Option<Torn>,
    /// In verified mode: all claims and fences.
    pub fences: Listed,
    /// The epoch that wrote the newest checkpoint; 0 if there is none.
    pub based_on: Epoch,
}

/// Where a scan begins.
struct Base {
    root: Root,
    listed: Listing,
    /// The newest checkpoint of which there is only a part, if it is newer than the root.
    torn: Option<Seq>,
}

impl Source {
    /// The volume of that name, unlocked, with a cache of its own or the server's, whose workers open what is read.
    pub async fn of(
        store: Arc<dyn Store>,
        name: &VolumeName,
        options: &Options,
        cache: Option<(Arc<BlockCache>, Workers)>,
        secrets: &Secrets,
    ) -> Result<Source> {
        let description = description::load(&*store, name).await?;
        Source::described(store, description, options, cache, secrets).await
    }

    /// The volume that is described so.
    pub async fn described(
        store: Arc<dyn Store>,
        description: Description,
        options: &Options,
        cache: Option<(Arc<BlockCache>, Workers)>,
        secrets: &Secrets,
    ) -> Result<Source> {
        let sealer = description.unlock(secrets).await?;
        let (store, tiers) = near::store_of(store, &description.meta).await?;
        Ok(Source::unlocked(store, tiers, description, sealer, options, cache))
    }

    /// The volume that is described so, unlocked already, with its log found already.
    pub(crate) fn unlocked(
        store: Arc<dyn Store>,
        tiers: Option<Arc<TieredStore>>,
        description: Description,
        sealer: Sealer,
        options: &Options,
        cache: Option<(Arc<BlockCache>, Workers)>,
    ) -> Source {
        let keys = Keys::of(&description.meta);
        let Description { meta, number, .. } = description;
        let (cache, workers) = cache.unwrap_or_else(|| (Arc::new(BlockCache::in_memory(16 << 20)), Workers::Inline));
        let objects = Objects::new(
            store.clone(),
            keys.clone(),
            (meta.uuid, meta.block_size),
            sealer.clone(),
            cache,
            workers,
            options.read_limits(),
        );
        Source { store, keys, meta, description: number, sealer, objects, tiers }
    }

    /// Reads the volume. Begins again if its owner deleted, after a newer checkpoint, what was being read.
    pub async fn scan(&self) -> Result<Scan> {
        self.scan_by(Told::new).await
    }

    /// The same from what stands in the slots of the log, whatever digests tell.
    pub async fn scan_slots(&self) -> Result<Scan> {
        self.scan_by(|_| Told::default()).await
    }

    async fn scan_by(&self, told: impl Fn(&Listing) -> Told) -> Result<Scan> {
        let mut tries = 0;
        loop {
            let Base { root, listed, torn } = self.newest_root().await?;
            let before = root.seq;
            let told = told(&listed);
            match self.scan_from(root, listed, told).await {
                Ok(scan) => match torn.filter(|torn| scan.committed < *torn) {
                    None => return Ok(scan),
                    Some(_) if tries < RESCANS => tries += 1,
                    Some(torn) => return Err(self.lost_checkpoint(torn, &scan)),
                },
                Err(error) if error.is_not_found() && tries < RESCANS && self.may_have_moved(before).await? => {
                    tries += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The log does not reach a torn checkpoint: it was whole once, and what it made needless was deleted.
    fn lost_checkpoint(&self, torn: Seq, scan: &Scan) -> VolumeError {
        let why = format!(
            "only its first part is there, and without it the log ends at slot {}: it was whole once and is damaged",
            scan.committed
        );
        VolumeError::Corrupt { key: self.keys.checkpoint(torn), why }
    }

    /// Reads the volume from an older checkpoint on, or from the beginning of the log (0). What has been deleted since may be
    /// missing: the scan then ends too early.
    pub async fn scan_after(&self, checkpoint: Seq) -> Result<Scan> {
        let listed = self.checkpoint_sizes().await?;
        let root = match checkpoint {
            Seq(0) => Root { next_slot: Seq(1), ..Root::default() },
            seq => self.read_root(seq, &listed.sizes).await?.ok_or_else(|| VolumeError::Corrupt {
                key: self.keys.checkpoint(seq),
                why: "only its first part is there".into(),
            })?,
        };
        self.scan_from(root, listed, Told::default()).await
    }

    /// The epoch in which the oldest checkpoint was written that is there: whoever goes back to it needs the fences from then on.
    /// Nothing if it cannot be read.
    pub async fn oldest_epoch(&self) -> Result<Option<Epoch>> {
        let listed = self.checkpoint_sizes().await?;
        let Some(&oldest) = listed.seqs().first() else { return Ok(None) };
        Ok(self.read_root(oldest, &listed.sizes).await?.map(|root| epoch_of(&root)))
    }

    /// What a server that has seen this remembers.
    pub fn seen(&self, scan: &Scan) -> Seen {
        let epoch = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
        Seen::new(epoch, scan.committed, scan.covers, self.description, self.sealer.seal())
    }

    /// The versions that are kept, oldest first.
    pub async fn versions(&self) -> Result<Vec<KeptVersion>> {
        Ok(self.versions_and_checkpoints().await?.0)
    }

    /// The versions that are kept, oldest first, and the checkpoints in which it stands what they hold ([`Source::held`]).
    pub async fn versions_and_checkpoints(&self) -> Result<(Vec<KeptVersion>, BTreeMap<Seq, CheckpointInfo>)> {
        let root = self.newest_root().await?.root;
        Ok((root.table.kept, root.checkpoints.into_iter().collect()))
    }

    /// What the newest checkpoint says of versions, and of segments that carry others; and which it is.
    pub async fn past(&self) -> Result<(Seq, Vec<KeptVersion>, Arc<Carriers>)> {
        let Root { seq, table, .. } = self.newest_root().await?.root;
        Ok((seq, table.kept, Arc::new(Carriers::new(table.carriers))))
    }

    /// The newest checkpoint, as a version without a name that nobody keeps.
    pub async fn checkpointed(&self) -> Result<(KeptVersion, Scan)> {
        let root = self.newest_root().await?.root;
        let blocks = BlockCount(self.meta.block_size.block_of(self.meta.size).0);
        let version = KeptVersion { seq: root.seq, blocks, ..KeptVersion::default() };
        let space = self.table(&root).await?;
        Ok((version, restore(&self.meta, root, &Listing::default(), space)))
    }

    /// Whether there is an object of a checkpoint after that one, whole or not.
    pub async fn has_checkpoint_after(&self, seq: Seq) -> Result<bool> {
        let folder = self.keys.checkpoints();
        // Behind it are its own further places, which are few: a page has more.
        let listed = self.store.list(&folder, Some(&self.keys.checkpoint(seq))).await;
        let listed = listed.map_err(VolumeError::store(format!("listing {folder}")))?;
        Ok(listed
            .iter()
            .filter_map(|entry| Keys::number(&entry.key))
            .any(|number| number > seq.0 && self.counts(number)))
    }

    /// A version that is kept, as it was.
    pub async fn version(&self, version: &KeptVersion) -> Result<Scan> {
        let seq = version.seq;
        let root =
            self.read_root(seq, &self.checkpoint_sizes().await?.sizes).await?.ok_or_else(|| VolumeError::Corrupt {
                key: self.keys.checkpoint(seq),
                why: "a snapshot needs it, and it is not there, or only its first part".into(),
            })?;
        let space = self.table(&root).await?;
        let size = self.meta.block_size.bytes_in(version.blocks);
        Ok(restore(&Meta { size, ..self.meta.clone() }, root, &Listing::default(), space))
    }

    /// The deaths that a version holds which is kept; its pages are in these checkpoints.
    pub async fn held(&self, checkpoints: &BTreeMap<Seq, CheckpointInfo>, version: &KeptVersion) -> Result<Deaths> {
        let mut held = version.deaths();
        for (_, page) in self.pages(checkpoints, version.unread().into()).await? {
            page.add_deaths(&mut held);
        }
        Ok(held)
    }

    /// The newest checkpoint after that one, whole or not. Those before it are not listed again: of an old volume there are thousands.
    pub async fn newest_checkpoint_after(&self, seq: Seq) -> Result<Option<Seq>> {
        let folder = self.keys.checkpoints();
        let listed = list_after(&*self.store, &folder, Some(&self.keys.checkpoint(seq))).await;
        let listed = listed.map_err(VolumeError::store(format!("listing {folder}")))?;
        // Its own further places lie behind it.
        let numbers = listed.iter().filter_map(|entry| Keys::number(&entry.key)).filter(|number| self.counts(*number));
        Ok(numbers.map(Seq).filter(|newer| *newer > seq).max())
    }

    /// Whether the log that took the place of another one begins in that slot.
    fn begins_anew_at(&self, seq: Seq) -> bool {
        self.meta.log.as_ref().is_some_and(|log| log.from == seq.0)
    }

    /// Whether that checkpoint is one of its history: not if a server wrote it whose log was given up.
    fn counts(&self, checkpoint: u64) -> bool {
        self.meta.log.as_ref().is_none_or(|log| log.counts(checkpoint))
    }

    /// The seqs of all checkpoints.
    pub async fn list_checkpoints(&self) -> Result<BTreeSet<Seq>> {
        Ok(self.checkpoint_sizes().await?.seqs())
    }

    /// All objects of checkpoints and their lengths in bytes, and all digests.
    async fn checkpoint_sizes(&self) -> Result<Listing> {
        let listed = list_all(&*self.store, &self.keys.checkpoints()).await;
        let listed = listed.map_err(VolumeError::store(format!("listing {}", self.keys.checkpoints())))?;
        let mut found = Listing::default();
        for ObjectEntry { key, size } in listed {
            match self.keys.stretch(&key) {
                Some(stretch) => drop(found.digests.insert(stretch, size)),
                None => drop(found.sizes.insert(key, size)),
            }
        }
        Ok(found)
    }

    /// In verified mode, whether a fence came since the fences were listed: then what stands in the slots is no longer what the scan
    /// takes it for.
    async fn taken_meanwhile(&self, scan: &Scan, key: &Key) -> Result<Option<VolumeError>> {
        if self.meta.fenced_by != FencedBy::Verified {
            return Ok(None);
        }
        let now = verified::list(&*self.store, &self.keys).await?;
        let moved = || VolumeError::Store { doing: format!("reading {key}"), source: StoreError::not_found(key) };
        Ok((now.newest_fence() > scan.fences.newest_fence()).then(moved))
    }

    /// Whether it is worth beginning again when something is missing. In verified mode that was found out where it is missing.
    async fn may_have_moved(&self, before: Seq) -> Result<bool> {
        Ok(self.meta.fenced_by == FencedBy::Verified || self.has_moved(before).await?)
    }

    async fn has_moved(&self, before: Seq) -> Result<bool> {
        Ok(self.newest_checkpoint_after(before).await?.is_some())
    }

    /// The root of the newest checkpoint that is whole, or that of an empty volume.
    async fn newest_root(&self) -> Result<Base> {
        let mut tries = 0;
        'again: loop {
            let listed = self.checkpoint_sizes().await?;
            let mut torn = None;
            for &seq in listed.seqs().iter().rev().filter(|seq| self.counts(seq.0)) {
                match self.read_root(seq, &listed.sizes).await {
                    Ok(Some(root)) => return Ok(Base { root, listed, torn }),
                    Ok(None) => {
                        let key = self.keys.checkpoint(seq);
                        tracing::warn!(object = %key, "only the first part of this checkpoint is there, because its upload broke off; the one before it counts");
                        torn = torn.or(Some(seq));
                    }
                    Err(error) if error.is_not_found() && tries < RESCANS => {
                        tries += 1;
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok(Base { root: Root { next_slot: Seq(1), ..Root::default() }, listed, torn });
        }
    }

    /// The root of a checkpoint; nothing if no place of it holds a whole object.
    async fn read_root(&self, seq: Seq, sizes: &HashMap<Key, u64>) -> Result<Option<Root>> {
        let own = self.keys.checkpoint(seq);
        for n in 0..PLACES_MAX {
            let key = place(&own, n).map_err(VolumeError::store("reading checkpoints"))?;
            let Some(&size) = sizes.get(&key) else { break };
            let decode = |bytes: &Bytes| root::decode_checkpoint_and_total(&self.sealer, seq, bytes);
            let read = || read_head_of(&*self.store, &key, size, decode);
            match again::until_proven(read, |head| matches!(head, Head::Torn)).await? {
                Head::There((root, total), _) if size >= total => return Ok(Some(root)),
                Head::There(..) | Head::Torn => {}
            }
        }
        Ok(None)
    }

    async fn scan_from(&self, root: Root, listed: Listing, mut told: Told) -> Result<Scan> {
        let space = self.table(&root).await?;
        let mut scan = restore(&self.meta, root, &listed, space);
        let anew = self.meta.log.as_ref().and_then(|log| log.begins_after(scan.checkpointed.0));
        scan.next = anew.map_or(scan.next, Seq);
        let mut fences = self.fences_after(&mut scan).await?.into_iter().peekable();
        let (mut width, mut found) = (PROBE_FIRST, 0);
        loop {
            while let Some((slot, read)) = fences.next_if(|(slot, _)| *slot == scan.next) {
                self.apply(&mut scan, slot, read).await?;
            }
            // The epoch ends there, whatever came into the slots from there on.
            let ends = fences.peek().map(|(slot, _)| *slot);
            let most = ends.map_or(u64::MAX, |end| end.0.saturating_sub(scan.next.0));
            if most == 0 {
                return Err(self
                    .broken(&scan, self.keys.segment(scan.next), "the log passes by a fence that counts")
                    .await);
            }
            // The last slot that a digest tells of is read as well: only if that stands there as it is told, all before it took effect.
            let told_slots = told.slots(self, &scan, most).await;
            let from = told_slots.last().map_or(scan.next, |(seq, _)| *seq);
            let wide = if told_slots.is_empty() { width } else { PROBE_TOLD };
            // Mostly a fence stands here, and what is behind it is told again.
            let again = told.begins_after(from).map_or(u64::MAX, |seq| seq.0);
            let end = (from.0 + wide).min(again).min(scan.next.0.saturating_add(most));
            let probes = (from.0..end).map(|seq| async move {
                (Seq(seq), read_slot(&*self.store, &self.keys, &self.sealer, Seq(seq)).await)
            });
            let mut probed = join_all(probes).await;
            if !told_slots.is_empty() {
                let Some(slots) = told.proven(&self.keys, told_slots, probed.first()) else { continue };
                probed.splice(0..0, slots);
                width = PROBE_FIRST / 2;
            } else {
                found += end - from.0;
            }
            self.load_pages_for(&mut scan, &probed).await?;
            width = wider(width, found);
            for (seq, probe) in probed {
                if seq != scan.next {
                    // A fence sent us further on. What was read behind it was for nothing, and mostly the next fence is near.
                    width = PROBE_FIRST;
                    break;
                }
                match probe? {
                    Slot::Holds(read, key) => {
                        if let Err(error) = self.apply(&mut scan, seq, read).await {
                            return Err(self.taken_meanwhile(&scan, &key).await?.unwrap_or(error));
                        }
                    }
                    Slot::Free if ends.is_some() => {
                        return Err(self.broken(&scan, self.keys.segment(seq), MISSING).await);
                    }
                    Slot::Free => return Ok(scan),
                    Slot::Torn(_) if ends.is_some() || self.was_committed(&scan).await? => {
                        self.apply_committed(&mut scan, seq).await?;
                    }
                    Slot::Torn(torn) => return Ok(Scan { torn: Some(torn), ..scan }),
                }
            }
        }
    }

    /// In verified mode, the fences that count after that of the checkpoint. They are listed after the checkpoint was read, so
    /// that none is missing that another server deleted for the sake of a newer one, unless there is a newer one.
    async fn fences_after(&self, scan: &mut Scan) -> Result<Vec<(Seq, LogRead)>> {
        if self.meta.fenced_by != FencedBy::Verified {
            return Ok(Vec::new());
        }
        scan.fences = verified::list(&*self.store, &self.keys).await?;
        let mut listed = scan.fences.clone();
        loop {
            let Some(chain) = listed.chain(scan.based_on) else {
                let key = self.keys.last_of(scan.based_on);
                return Err(self
                    .broken(scan, key, "a fence after this place that a later one follows is missing")
                    .await);
            };
            let reads = join_all(chain.iter().map(|placed| self.read_fence(scan, *placed))).await;
            let reads: Vec<Option<LogRead>> = reads.into_iter().collect::<Result<_>>()?;
            match reads.iter().position(Option::is_none) {
                None => return Ok(chain.iter().map(|placed| placed.slot).zip(reads.into_iter().flatten()).collect()),
                // Whoever puts it has not got further, and gives way to whoever wants the volume now.
                Some(torn) if torn + 1 == chain.len() => listed.pass_over(chain[torn]),
                Some(torn) => {
                    let key = self.keys.fence(chain[torn]);
                    return Err(VolumeError::Corrupt { key, why: "only the first part of the fence is there".into() });
                }
            }
        }
    }

    /// A fence; nothing if there is only a part of it.
    async fn read_fence(&self, scan: &Scan, placed: Placed) -> Result<Option<LogRead>> {
        let own = self.keys.fence(placed);
        match read_places(&*self.store, &own, &self.sealer, placed.slot).await? {
            Slot::Holds(read, key) => match &read.object {
                LogObject::Fence(fence) if fence.epoch == placed.claim.epoch => Ok(Some(read)),
                _ => Err(VolumeError::Corrupt { key, why: "it is not the fence that its key says".into() }),
            },
            Slot::Torn(_) => Ok(None),
            Slot::Free => Err(self.broken(scan, own, MISSING).await),
        }
    }

    /// The log does not hold together: because its owner has written a newer checkpoint meanwhile and deleted what the one before
    /// it needs, or because it is damaged.
    async fn broken(&self, scan: &Scan, key: Key, why: &str) -> VolumeError {
        match self.has_moved(scan.checkpointed).await {
            Ok(true) => VolumeError::Store { doing: format!("reading {key}"), source: StoreError::not_found(&key) },
            Ok(false) => VolumeError::Corrupt { key, why: why.to_owned() },
            Err(error) => error,
        }
    }

    /// Whether the next slot of the log was committed whatever stands in it now: a server fills at most its window beyond
    /// the last committed one.
    async fn was_committed(&self, scan: &Scan) -> Result<bool> {
        let window = scan.fence.as_ref().map_or(1, |(_, fence)| u64::from(fence.window).max(1));
        let beyond = Seq(scan.next.0.saturating_add(window));
        Ok(!matches!(read_slot(&*self.store, &self.keys, &self.sealer, beyond).await?, Slot::Free))
    }

    /// A slot takes effect that was committed, although there was only a part of an object when it was looked at: a server that is alive put
    /// it beside that since, or has deleted it already. Or it was cut later: then the ranges that are gone are read errors, the rest is good.
    async fn apply_committed(&self, scan: &mut Scan, seq: Seq) -> Result<()> {
        let Torn { key, head } = match read_slot(&*self.store, &self.keys, &self.sealer, seq).await? {
            Slot::Holds(read, _) => return self.apply(scan, seq, read).await,
            Slot::Free => return Err(self.broken(scan, self.keys.segment(seq), MISSING).await),
            Slot::Torn(torn) => torn,
        };
        let cut = "only its first part is there, but it was whole once: the log goes on after it";
        let Some(read) = head else { return Err(self.broken(scan, key, cut).await) };
        tracing::error!(object = %key, "{cut}");
        self.apply(scan, seq, *read).await
    }

    /// Brings the pages that these segments change into the map at once, not for one segment after the other. Some of
    /// them may turn out to be void; then a page is there that nobody needed.
    async fn load_pages_for(&self, scan: &mut Scan, probed: &[(Seq, Result<Slot>)]) -> Result<()> {
        let mut missing = BTreeSet::new();
        for (seq, probe) in probed {
            if let Ok(Slot::Holds(LogRead { object: LogObject::Segment(head), frames_at, .. }, _)) = probe
                && head.cargo.is_none()
            {
                missing.extend(scan.map.missing_for(&head.placements(*seq, *frames_at), head.as_of));
            }
        }
        match missing.is_empty() {
            true => Ok(()),
            false => self.load_pages(scan, NeedPages(missing.into_iter().collect())).await,
        }
    }

    /// One slot of the log takes effect, as it did when it was committed.
    async fn apply(&self, scan: &mut Scan, seq: Seq, read: LogRead) -> Result<()> {
        let wrong = |why: String| VolumeError::Corrupt { key: self.keys.segment(seq), why };
        let epoch = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
        let is_verified = self.meta.fenced_by == FencedBy::Verified;
        let fits = match &read.object {
            // Claims that came to nothing have used up the epochs between.
            LogObject::Fence(fence) if is_verified => fence.epoch > epoch,
            // Of a log that begins anew, nothing says how far the one before it had come.
            LogObject::Fence(fence) if self.begins_anew_at(seq) => fence.epoch > epoch,
            LogObject::Fence(fence) => fence.epoch == epoch.next(),
            other => other.epoch() == epoch,
        };
        if !fits {
            return Err(wrong(format!("it is of epoch {}, but the log is in epoch {epoch}", read.object.epoch())));
        }
        // Nothing else proves that the key of a fence names the one before it.
        let is_skipped =
            is_verified && matches!(read.object, LogObject::Fence(_)) && read.object.covers() > scan.covers;
        if read.object.covers() < scan.covers || is_skipped {
            return Err(wrong(format!(
                "it ends at change {}, and the log before it at {}",
                read.object.covers(),
                scan.covers
            )));
        }
        scan.covers = read.object.covers();
        scan.committed = seq;
        scan.next = seq.next();
        match read.object {
            LogObject::Segment(head) => {
                let info = head.info(read.salt, read.frames_at);
                let placements = head.placements(seq, read.frames_at);
                scan.bytes_since_checkpoint += info.stored_bytes;
                scan.map.refer(seq, &head.refers);
                let apply = |map: &mut ExtentMap| match &head.cargo {
                    Some(cargo) => map.carry(seq, info, cargo),
                    None => map.apply(seq, info, &placements, head.as_of),
                };
                while let Err(need) = apply(&mut scan.map) {
                    match self.load_pages(scan, need).await {
                        // It is not known how much it carries. What it was to carry is still there.
                        Err(VolumeError::Corrupt { key, why }) if head.cargo.is_some() => {
                            tracing::error!(object = %key, "segment {seq} carries nothing: {why}");
                            scan.map.born(seq, SegmentInfo { live_blocks: 0, ..info });
                            break;
                        }
                        loaded => loaded?,
                    }
                }
            }
            LogObject::Fence(fence) => {
                scan.fences_since += 1;
                let strays = scan.fence.as_ref().filter(|_| !scan.closed).map_or(1, |(_, old)| u64::from(old.window));
                if fence.continues_at.0 - seq.0 > strays {
                    return Err(wrong(format!(
                        "it is a fence after which the log continues at slot {}, but the epoch before had {strays} in flight \
                         at most",
                        fence.continues_at
                    )));
                }
                follow_fence(&mut scan.map, seq, &fence, scan.closed, read.frames_at);
                scan.next = fence.continues_at;
                scan.fence = Some((seq, fence));
                scan.closed = false;
            }
            LogObject::Close(_) => {
                scan.map.born(seq, entry_info(read.frames_at));
                scan.closed = true;
            }
        }
        Ok(())
    }

    /// Brings pages into the map of a scan.
    pub async fn load_pages(&self, scan: &mut Scan, need: NeedPages) -> Result<()> {
        for (at, page) in self.pages(&scan.checkpoints, need).await? {
            scan.map.page_loaded(at, page);
        }
        Ok(())
    }

    /// Pages, as they lie in these checkpoints.
    pub async fn pages(
        &self,
        checkpoints: &BTreeMap<Seq, CheckpointInfo>,
        need: NeedPages,
    ) -> Result<Vec<(PageRef, Arc<MapPage>)>> {
        let info = |seq: &Seq| checkpoints.get(seq).copied().unwrap_or_default();
        let wanted = need.0.into_iter().map(|page| (page, info(&page.at.checkpoint))).collect();
        Ok(self.objects.pages(wanted).await?)
    }

    /// What `ask` says of the scan, with the pages that it needs; they do not stay.
    pub async fn with_pages<T>(
        &self,
        scan: &Scan,
        ask: impl Fn(&Scan, &HashMap<PageRef, Arc<MapPage>>) -> std::result::Result<T, NeedPages>,
    ) -> Result<T> {
        let mut pages = HashMap::new();
        loop {
            match ask(scan, &pages) {
                Ok(said) => return Ok(said),
                Err(need) => pages.extend(self.pages(&scan.checkpoints, need).await?),
            }
        }
    }

    /// The table of segments as a root says.
    async fn table(&self, root: &Root) -> Result<Space> {
        let checkpoints = root.checkpoints.iter().copied().collect();
        let mut pages: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
        loop {
            match Durable::new(root.seq, &root.table, &pages) {
                Ok(durable) => return Ok(Space::restore(durable, root.segments.iter().copied())),
                Err(need) => pages.extend(self.pages(&checkpoints, need.into()).await?),
            }
        }
    }

    /// Brings the pages of a small table into memory: then all that is said of it is exact, and a read needs no more of them.
    pub async fn count_few(&self, scan: &mut Scan) -> Result<()> {
        let space = scan.map.space();
        let few = space.spans().take(if space.span_count() <= FEW_SPANS { FEW_SPANS } else { 0 });
        let missing: BTreeSet<_> = few.flat_map(|span| scan.map.lacks(span)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.load_pages(scan, NeedPages(missing.into_iter().collect())).await
    }

    /// As [`Source::count_few`], and adds to what is doomed what was dead as of the checkpoint. What cannot be read, or is not in memory, is
    /// left for later: nobody waits for deletions.
    pub async fn look_for_dead(&self, scan: &mut Scan) {
        if let Err(error) = self.count_few(scan).await {
            tracing::warn!(volume = %self.meta.name, "counters of segments are not in memory yet: {error}");
        }
        let spans: Vec<Span> = scan.map.space().spans_with_dead(Span(0)).take(FEW_SPANS).collect();
        let dead = spans.into_iter().filter_map(|span| scan.map.dead(span, &HashMap::new()).ok()).flatten();
        scan.doomed.extend(dead.map(|(seq, counter)| (seq, counter.stored_bytes)));
        // Also what the root says itself: the log behind it may refer to some.
        let references = scan.map.space().references().clone();
        scan.doomed.retain(|seq, _| !references.holds(*seq));
    }
}

/// How many slots to probe next, after so many were, and found something.
fn wider(width: u64, found: u64) -> u64 {
    (width * 2).min(PROBE_MANY.max(found / PROBE_PART)).clamp(PROBE_FIRST, PROBE_MAX)
}

/// Accounts for a fence and the slots that it voids: entries without data, deleted after the next checkpoint. Not so a
/// fence that displaced a server which may still be alive: that server finds out by failing to put its next segment
/// into this very slot, however late it wakes up, so this fence stays for as long as the volume.
pub fn follow_fence(map: &mut ExtentMap, seq: Seq, fence: &Fence, after_close: bool, stored_bytes: u32) {
    if !fence.displaces {
        map.born(seq, entry_info(stored_bytes));
    }
    if !after_close {
        (seq.next().0..fence.continues_at.0).for_each(|void| map.born(Seq(void), SegmentInfo::default()));
    }
}

/// A log entry without data.
pub fn entry_info(stored_bytes: u32) -> SegmentInfo {
    SegmentInfo { stored_bytes: u64::from(stored_bytes), ..SegmentInfo::default() }
}

/// The volume as of a checkpoint.
fn restore(meta: &Meta, root: Root, listed: &Listing, space: Space) -> Scan {
    let based_on = epoch_of(&root);
    let blocks = BlockCount(meta.size / u64::from(meta.block_size.bytes()));
    let mut newest = Table::default();
    let volume = Extent { start: BlockIndex(0), count: blocks };
    for extent in root.zeroed.iter().filter_map(|extent| extent.intersect(&volume)) {
        newest.insert(Entry { extent, placement: Placement::Zero, owes: false });
    }
    let dead = root.segments.iter().filter(|(seq, info)| *seq <= root.seq && info.live_blocks == 0);
    Scan {
        doomed: dead.map(|(seq, info)| (*seq, info.stored_bytes)).collect(),
        map: ExtentMap::restore(blocks, root.runs, newest, space),
        checkpoints: root.checkpoints.into_iter().collect(),
        checkpointed: root.seq,
        listed: listed.seqs(),
        digests: listed.digests.keys().copied().collect(),
        bytes_since_checkpoint: 0,
        covers: root.covers,
        based_on,
        fence: root.fence,
        fences_since: 0,
        closed: false,
        committed: root.seq,
        next: root.next_slot,
        account: root.account,
        torn: None,
        fences: Listed::default(),
    }
}

/// The epoch in which a checkpoint was written.
fn epoch_of(root: &Root) -> Epoch {
    root.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch)
}

/// What lies beside the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    /// Objects of checkpoints, and their lengths in bytes.
    sizes: HashMap<Key, u64>,
    /// Digests, and their lengths in bytes.
    pub digests: BTreeMap<Stretch, u64>,
}

impl Listing {
    /// The checkpoints, by their own keys.
    fn seqs(&self) -> BTreeSet<Seq> {
        self.sizes.keys().filter_map(Keys::number).map(Seq).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many segments there are, few probes find nothing, and few wait for those before them.
    #[test]
    fn probes_are_as_many_as_what_was_found_suggests() {
        for segments in [0, 3, 66, 128, 1000, 50_000] {
            let (mut probed, mut rounds, mut width) = (0, 0, PROBE_FIRST);
            while probed <= segments {
                (probed, rounds) = (probed + width, rounds + 1);
                width = wider(width, probed);
            }
            assert!(
                probed - segments <= PROBE_MANY.max(segments / PROBE_PART).clamp(PROBE_FIRST, PROBE_MAX),
                "{segments}: {probed}"
            );
            assert!(rounds <= 12 + segments / 100, "{segments}: {rounds} rounds");
        }
    }
}
