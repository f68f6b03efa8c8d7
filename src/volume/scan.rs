//! Reading a volume as it stands in the store: description, newest checkpoint, the log after it. Changes nothing; opening,
//! `info` and `check` all begin here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use crate::cache::BlockCache;
use crate::codec::object::Found;
use crate::codec::seal::Sealer;
use crate::keyring::Secrets;
use crate::map::{ExtentMap, NeedPages, PageIndex, Runs, SegmentInfo, Usage};
use crate::outside::Workers;
use crate::segment::{self, Fence, LogObject, LogRead};
use crate::store::{Key, Store, StoreError, list_all};
use crate::units::{BlockCount, ChangeNo, Epoch, Seq};
use crate::volume::account::Account;
use crate::volume::description::{self, Description};
use crate::volume::error::{Result, VolumeError};
use crate::volume::keys::Keys;
use crate::volume::meta::{Meta, VolumeName};
use crate::volume::objects::Objects;
use crate::volume::options::Options;
use crate::volume::root::{self, CheckpointInfo, Root};
use crate::volume::seen::Seen;

/// How much of an object is asked for first: the heads of most segments and small checkpoints are shorter.
const HEAD_GUESS: u64 = 64 << 10;

/// Slots that are probed at once: few at first, because most volumes were closed or checkpointed just before.
const PROBE_FIRST: u64 = 4;
/// The most slots that are probed at once.
const PROBE_MAX: u64 = 128;

/// How often a scan begins again because the volume's owner wrote a checkpoint and deleted what the scan was reading.
const RESCANS: usize = 8;

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
    /// Segments that were dead in it.
    pub doomed: BTreeSet<Seq>,
    /// Bytes of segments after it.
    pub bytes_since_checkpoint: u64,
    /// The last change that is committed.
    pub covers: ChangeNo,
    /// The newest fence and where it stands.
    pub fence: Option<(Seq, Fence)>,
    /// Whether the newest fence's server closed the volume.
    pub closed: bool,
    /// The last slot that took effect; 0 if there is none.
    pub committed: Seq,
    /// The first slot that is free.
    pub next: Seq,
    /// What the volume had cost at the newest checkpoint.
    pub account: Account,
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
        let keys = Keys::new(name);
        let description = description::load(&*store, &keys, name).await?;
        let sealer = description.unlock(&keys, secrets).await?;
        let Description { meta, number, .. } = description;
        let (cache, workers) = cache.unwrap_or_else(|| (Arc::new(BlockCache::in_memory(16 << 20)), Workers::Inline));
        let objects = Objects::new(store.clone(), keys.clone(), meta.uuid, sealer.clone(), cache, workers, options);
        Ok(Source { store, keys, meta, description: number, sealer, objects })
    }

    /// Reads the volume. Begins again if its owner deleted, after a newer checkpoint, what was being read.
    pub async fn scan(&self) -> Result<Scan> {
        let mut tries = 0;
        loop {
            let (root, listed) = self.newest_root().await?;
            let before = root.seq;
            match self.scan_from(root, listed).await {
                Ok(scan) => return Ok(scan),
                Err(error) if error.is_not_found() && tries < RESCANS && self.has_moved(before).await? => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// What a server that has seen this remembers.
    pub fn seen(&self, scan: &Scan) -> Seen {
        let epoch = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
        Seen::new(epoch, scan.committed, scan.covers, self.description, self.sealer.seal())
    }

    /// The seqs of all checkpoints.
    pub async fn list_checkpoints(&self) -> Result<BTreeSet<Seq>> {
        let listed = list_all(&*self.store, &self.keys.checkpoints()).await;
        let listed = listed.map_err(VolumeError::store(format!("listing {}", self.keys.checkpoints())))?;
        Ok(listed.iter().filter_map(|entry| Keys::number(&entry.key)).map(Seq).collect())
    }

    async fn has_moved(&self, before: Seq) -> Result<bool> {
        Ok(self.list_checkpoints().await?.last().is_some_and(|&newest| newest > before))
    }

    /// The root of the newest checkpoint, or that of an empty volume.
    async fn newest_root(&self) -> Result<(Root, BTreeSet<Seq>)> {
        let mut tries = 0;
        loop {
            let listed = self.list_checkpoints().await?;
            let Some(&seq) = listed.last() else {
                return Ok((Root { next_slot: Seq(1), ..Root::default() }, listed));
            };
            let key = self.keys.checkpoint(seq);
            let decode = |bytes: &Bytes| root::decode_checkpoint(&self.sealer, seq, bytes);
            match read_head(&*self.store, &key, decode).await {
                Ok(root) => return Ok((root, listed)),
                Err(error) if error.is_not_found() && tries < RESCANS => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn scan_from(&self, root: Root, listed: BTreeSet<Seq>) -> Result<Scan> {
        let mut scan = restore(&self.meta, root, listed);
        let mut width = PROBE_FIRST;
        loop {
            let slots = (scan.next.0..scan.next.0 + width).map(Seq);
            let probes =
                slots.map(|seq| async move { (seq, read_slot(&*self.store, &self.keys, &self.sealer, seq).await) });
            let probed = join_all(probes).await;
            self.load_pages_for(&mut scan, &probed).await?;
            for (seq, probe) in probed {
                if seq != scan.next {
                    break; // a fence sent us further on
                }
                match probe? {
                    Some(read) => self.apply(&mut scan, seq, read).await?,
                    None => return Ok(scan),
                }
            }
            width = (width * 2).min(PROBE_MAX);
        }
    }

    /// Brings the pages that these segments change into the map at once, not for one segment after the other. Some of
    /// them may turn out to be void; then a page is there that nobody needed.
    async fn load_pages_for(&self, scan: &mut Scan, probed: &[(Seq, Result<Option<LogRead>>)]) -> Result<()> {
        let mut missing = BTreeMap::new();
        for (seq, probe) in probed {
            if let Ok(Some(LogRead { object: LogObject::Segment(head), frames_at, .. })) = probe {
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
        let begins = matches!(read.object, LogObject::Fence(_));
        if read.object.epoch() != (if begins { epoch.next() } else { epoch }) {
            return Err(wrong(format!("it is of epoch {}, but the log is in epoch {epoch}", read.object.epoch())));
        }
        if read.object.covers() < scan.covers {
            return Err(wrong(format!("it ends at change {}, before change {}", read.object.covers(), scan.covers)));
        }
        scan.covers = read.object.covers();
        scan.committed = seq;
        scan.next = seq.next();
        match read.object {
            LogObject::Segment(head) => {
                let info = head.info(read.salt, read.frames_at);
                let placements = head.placements(seq, read.frames_at);
                scan.bytes_since_checkpoint += info.stored_bytes;
                while let Err(need) = scan.map.apply(seq, info, &placements, head.as_of) {
                    self.load_pages(scan, need).await?;
                }
            }
            LogObject::Fence(fence) => {
                follow_fence(&mut scan.map, seq, &fence, scan.closed, read.frames_at);
                scan.next = fence.continues_at;
                scan.fence = Some((seq, fence));
                scan.closed = false;
            }
            LogObject::Close(_) => {
                scan.map.usage_mut().born(seq, entry_info(read.frames_at));
                scan.closed = true;
            }
        }
        Ok(())
    }

    /// Brings pages into the map of a scan.
    pub async fn load_pages(&self, scan: &mut Scan, need: NeedPages) -> Result<()> {
        let salt = |seq: Seq| scan.checkpoints.get(&seq).map_or_else(Default::default, |info| info.salt);
        let wanted = need.0.into_iter().map(|(index, at)| (index, at, salt(at.checkpoint))).collect();
        for (index, at, page) in self.objects.pages(wanted).await? {
            scan.map.page_loaded(index, at, page);
        }
        Ok(())
    }
}

/// Accounts for a fence and the slots that it voids: entries without data, deleted after the next checkpoint. Not so a
/// fence that displaced a server which may still be alive: that server finds out by failing to put its next segment
/// into this very slot, however late it wakes up, so this fence stays for as long as the volume.
pub fn follow_fence(map: &mut ExtentMap, seq: Seq, fence: &Fence, after_close: bool, stored_bytes: u32) {
    let usage = map.usage_mut();
    if !fence.displaces {
        usage.born(seq, entry_info(stored_bytes));
    }
    if !after_close {
        (seq.next().0..fence.continues_at.0).for_each(|void| usage.born(Seq(void), SegmentInfo::default()));
    }
}

/// A log entry without data.
pub fn entry_info(stored_bytes: u32) -> SegmentInfo {
    SegmentInfo { stored_bytes: u64::from(stored_bytes), ..SegmentInfo::default() }
}

/// The volume as of a checkpoint.
fn restore(meta: &Meta, root: Root, listed: BTreeSet<Seq>) -> Scan {
    let mut zeroed = Runs::default();
    root.zeroed.iter().for_each(|(PageIndex(first), count)| zeroed.insert(*first..first + count));
    let blocks = BlockCount(meta.size / u64::from(meta.block_size.bytes()));
    let usage = Usage::from_segments(root.segments);
    Scan {
        doomed: usage.dead(root.seq).into_iter().collect(),
        map: ExtentMap::restore(blocks, root.pages, zeroed, usage),
        checkpoints: root.checkpoints.into_iter().collect(),
        checkpointed: root.seq,
        listed,
        bytes_since_checkpoint: 0,
        covers: root.covers,
        fence: root.fence,
        closed: false,
        committed: root.seq,
        next: root.next_slot,
        account: root.account,
    }
}

/// What stands in a slot of the log; `None` if it is free.
pub async fn read_slot(store: &dyn Store, keys: &Keys, sealer: &Sealer, seq: Seq) -> Result<Option<LogRead>> {
    let decode = |bytes: &Bytes| segment::decode_log_object(sealer, seq, bytes);
    match read_head(store, &keys.segment(seq), decode).await {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads as much of an object as its head takes.
async fn read_head<T>(
    store: &dyn Store,
    key: &Key,
    decode: impl Fn(&Bytes) -> std::result::Result<Found<T>, crate::codec::CorruptError>,
) -> Result<T> {
    let failed = |error: StoreError| VolumeError::Store { doing: format!("reading {key}"), source: error };
    let begin = store.get_range(key, 0..HEAD_GUESS).await.map_err(failed)?;
    match decode(&begin).map_err(VolumeError::corrupt(key))? {
        Found::Whole(it) => Ok(it),
        Found::NeedMore { total } => {
            let more = store.get_range(key, 0..total).await.map_err(failed)?;
            let found = decode(&more).and_then(|found| found.whole(more.len()));
            found.map_err(VolumeError::corrupt(key))
        }
    }
}

impl From<crate::volume::objects::ReadError> for VolumeError {
    fn from(error: crate::volume::objects::ReadError) -> VolumeError {
        use crate::volume::objects::ReadError;
        match error {
            ReadError::Store { key, offset, source } => {
                VolumeError::Store { doing: format!("reading {key} at {offset}"), source }
            }
            ReadError::Corrupt { key, offset, why } => {
                VolumeError::Corrupt { key, why: format!("at byte {offset}: {why}") }
            }
        }
    }
}
