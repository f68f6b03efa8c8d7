//! The past of a volume: a version that is kept, read as a device that nothing changes.
//!
//! It takes nothing: no fence, no PUT, no DELETE. Credentials that can GET and LIST are enough, any number of servers may read one version at
//! once, and a server that writes the volume meanwhile is not asked and not disturbed. Should somebody delete the snapshot, reads fail
//! from then on.

use std::collections::BTreeMap;
use std::iter;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cache::{BlockCache, Purpose};
use crate::device::{Compared, Device, DeviceError, DeviceInfo, Pieces, Run, Version};
use crate::engine::below::Below;
use crate::engine::budget::{Budget, Seat};
use crate::engine::compare::Side;
use crate::engine::extents::{LOADS_MAX, Stopped, Walk};
use crate::engine::log::{Log, Origin};
use crate::engine::options::Options;
use crate::engine::read::{Frames, io_error, worth_fetching};
use crate::engine::upper::{self, Upper};
use crate::error::{Result, VolumeError};
use crate::format::meta::{Meta, VolumeName};
use crate::format::root::CheckpointInfo;
use crate::human::few;
use crate::keyring::Secrets;
use crate::map::{NeedPages, PageAt, PageKind};
use crate::opening::choice::{Choice, choose};
use crate::opening::clones;
use crate::opening::handed::Handed;
use crate::opening::older::{self, Older};
use crate::opening::scan::{Scan, Source};
use crate::outside::Workers;
use crate::reading::objects::{LoadedPages, ReadError, Sealed};
use crate::space::{KeptVersion, kept};
use crate::store::Store;
use crate::units::{BlockCount, BlockSize, ChangeNo, Seq};

/// A version of a volume, to be read. See the module.
#[derive(Debug)]
pub struct Past {
    source: Source,
    version: KeptVersion,
    checkpoints: Arc<BTreeMap<Seq, CheckpointInfo>>,
    /// Nothing is ever in it but the map.
    log: Arc<Mutex<Log>>,
    /// The checkpoint that says who carries what it needs.
    followed: Mutex<Seq>,
    seat: Seat,
    /// Of a clone.
    below: Option<Below>,
    /// Below an encrypted clone.
    handed: Option<Arc<Handed>>,
    /// What brings the upper part of the map into memory, once a read lacked some of it.
    upper: OnceLock<Upper>,
    /// What brings the pages that find its leaves, without waiting for a read.
    index: OnceLock<Upper>,
    /// What it was compared with.
    older: Older,
}

impl Side for Past {
    fn look<T>(&self, loaded: &LoadedPages, look: impl FnOnce(&mut Log) -> T) -> T {
        self.with_pages(loaded, look)
    }

    async fn load(&self, need: NeedPages) -> std::result::Result<LoadedPages, DeviceError> {
        fetch(&self.source, &self.checkpoints, need).await.map_err(io_error)
    }
}

/// Pages, as they lie in these checkpoints.
async fn fetch(
    source: &Source,
    checkpoints: &BTreeMap<Seq, CheckpointInfo>,
    need: NeedPages,
) -> std::result::Result<LoadedPages, ReadError> {
    let info = |seq: &Seq| checkpoints.get(seq).copied().unwrap_or_default();
    source.objects.pages(need.0.into_iter().map(|page| (page, info(&page.at.checkpoint))).collect()).await
}

/// The versions of a volume that are kept, oldest first. Changes nothing.
pub async fn versions(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<Vec<KeptVersion>> {
    let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
    source.versions().await
}

/// A version that is kept, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_millis: u64,
    /// Nobody deletes it before, in milliseconds since 1970; 0 if it may go.
    pub keep_until_unix_millis: u64,
    /// Bytes of the volume then.
    pub size: u64,
    /// The place of the log that it is the volume after.
    pub seq: u64,
    /// Bytes that only it holds, before compression: neither the volume nor another snapshot needs them. As far as that was found out by the
    /// newest checkpoint: what has been overwritten since is counted later.
    pub only_bytes: u64,
    /// The clones that show it where nothing was written to them: as long as there is one, it stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clones: Vec<String>,
    /// Somebody deleted it, and it is there for its clones only: nobody can name it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

impl Snapshot {
    /// That version, of which so many blocks are needed by nobody else.
    pub fn of(version: &KeptVersion, block_size: BlockSize, only: BlockCount) -> Snapshot {
        let KeptVersion { seq, label, blocks, .. } = version;
        Snapshot {
            name: label.name.clone(),
            taken_unix_millis: label.taken_unix_millis,
            keep_until_unix_millis: label.keep_until_unix_millis,
            size: block_size.bytes_in(*blocks),
            seq: seq.0,
            only_bytes: block_size.bytes_in(only),
            clones: label.clones.iter().map(|clone| clone.name.clone()).collect(),
            deleted: label.is_hidden(),
        }
    }
}

impl Choice for Snapshot {
    fn name(&self) -> &str {
        &self.name
    }

    fn taken_unix_millis(&self) -> u64 {
        self.taken_unix_millis
    }

    fn is_hidden(&self) -> bool {
        self.deleted
    }
}

/// The snapshots of a volume as of its newest checkpoint, oldest first, be it open somewhere or not. Changes nothing.
pub async fn snapshots(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<Vec<Snapshot>> {
    let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
    let mut tries = 0;
    loop {
        match look(&source).await {
            // A server that serves it may have deleted what was being read, after a newer checkpoint.
            Err(error) if error.is_not_found() && tries < LOOKS => tries += 1,
            looked => return looked,
        }
    }
}

/// How often a volume is looked at that its owner changes meanwhile.
const LOOKS: usize = 4;

/// Versions of which it is found out at once what they hold.
const PARALLEL: usize = 8;

async fn look(source: &Source) -> Result<Vec<Snapshot>> {
    let (versions, checkpoints) = source.versions_and_checkpoints().await?;
    let before = iter::once(Seq(0)).chain(versions.iter().map(|version| version.seq));
    let snapshots = versions.iter().zip(before).map(|(version, before)| {
        let checkpoints = &checkpoints;
        async move {
            let held = source.held(checkpoints, version).await?;
            Ok(Snapshot::of(version, source.meta.block_size, kept::only_its_own(before, &held)))
        }
    });
    stream::iter(snapshots).buffered(PARALLEL).try_collect().await
}

/// The version of that name among those that are kept.
pub fn named<'a>(versions: &'a [KeptVersion], volume: &VolumeName, name: &str) -> Result<&'a KeptVersion> {
    let shown = || versions.iter().filter(|version| !version.label.is_hidden());
    let has = || shown().map(|version| version.label.name.as_str());
    shown().find(|version| version.label.name == name).ok_or_else(|| no_snapshot(volume, name, has()))
}

/// That there is no snapshot of that name, but those.
pub fn no_snapshot<'a>(volume: &VolumeName, name: &str, has: impl Iterator<Item = &'a str>) -> VolumeError {
    VolumeError::NoSnapshot { volume: volume.to_string(), snapshot: name.to_owned(), has: few(has) }
}

impl Past {
    /// Opens the snapshot of that name, with the server's cache and what its volumes may hold in memory together.
    pub async fn open(
        store: Arc<dyn Store>,
        volume: &VolumeName,
        snapshot: &str,
        options: &Options,
        budget: &Budget,
        (cache, workers): (Arc<BlockCache>, Workers),
        secrets: &Secrets,
    ) -> Result<Past> {
        let near = (cache, workers);
        let source = Source::of(store, volume, options, Some(near.clone()), secrets).await?;
        let is_it = |versions: &[KeptVersion]| choose(versions, volume, snapshot).cloned();
        Past::of_source(source, is_it, options, budget, near, None).await
    }

    /// Opens the version that is chosen among those that are kept.
    pub(super) async fn of_source(
        source: Source,
        choose: impl FnOnce(&[KeptVersion]) -> Result<KeptVersion>,
        options: &Options,
        budget: &Budget,
        near: (Arc<BlockCache>, Workers),
        handed: Option<Arc<Handed>>,
    ) -> Result<Past> {
        let (newest, versions, carriers) = source.past().await?;
        let version = choose(&versions)?;
        let mut scan = source.version(&version).await?;
        scan.map.follow_carriers(carriers);
        let below = clones::below(&source, options, budget, near, handed.clone()).await?;
        let past = Past::of(source, version, scan, budget.seat(options, 0), below);
        Ok(Past { followed: Mutex::new(newest), handed, ..past })
    }

    /// Opens the newest checkpoint, which nobody keeps: what its owner deletes after the next one fails to be read from then on.
    pub(super) async fn newest(
        store: Arc<dyn Store>,
        volume: &VolumeName,
        options: &Options,
        budget: &Budget,
        near: (Arc<BlockCache>, Workers),
        secrets: &Secrets,
    ) -> Result<Past> {
        let mut tries = 0;
        loop {
            let source = Source::of(store.clone(), volume, options, Some(near.clone()), secrets).await?;
            match source.checkpointed().await {
                Err(error) if error.is_not_found() && tries < LOOKS => tries += 1,
                found => {
                    let (version, scan) = found?;
                    let below = clones::below(&source, options, budget, near, None).await?;
                    return Ok(Past::of(source, version, scan, budget.seat(options, 0), below));
                }
            }
        }
    }

    /// Opens a volume as its store has it now, with the log behind its newest checkpoint. Nobody keeps that: what its owner deletes meanwhile fails to be read.
    pub async fn head(
        store: Arc<dyn Store>,
        volume: &VolumeName,
        options: &Options,
        budget: &Budget,
        near: (Arc<BlockCache>, Workers),
        secrets: &Secrets,
    ) -> Result<Past> {
        let source = Source::of(store, volume, options, Some(near.clone()), secrets).await?;
        let scan = source.scan().await?;
        let blocks = scan.map.volume().count;
        let version = KeptVersion { seq: scan.committed, blocks, ..KeptVersion::default() };
        let below = clones::below(&source, options, budget, near, None).await?;
        Ok(Past::of(source, version, scan, budget.seat(options, 0), below))
    }

    /// That version, for its map alone: of a clone it does not show what is below.
    pub(super) async fn map_of(source: Source, version: KeptVersion, seat: Seat) -> Result<Past> {
        let scan = source.version(&version).await?;
        Ok(Past::of(source, version, scan, seat, None))
    }

    fn of(source: Source, version: KeptVersion, scan: Scan, seat: Seat, below: Option<Below>) -> Past {
        let Scan { map, checkpoints, covers, committed, next, .. } = scan;
        let origin =
            Origin { map, covers, committed, next_seq: next, checkpointed: committed, bytes_since_checkpoint: 0 };
        let log = Arc::new(Mutex::new(Log::new(source.meta.block_size, origin)));
        let (followed, checkpoints) = (Mutex::new(version.seq), Arc::new(checkpoints));
        Past {
            source,
            version,
            checkpoints,
            log,
            followed,
            seat,
            below,
            handed: None,
            upper: OnceLock::new(),
            index: OnceLock::new(),
            older: Older::default(),
        }
    }

    /// Whether a newer checkpoint than it has begun to be there: one LIST.
    pub(super) async fn is_superseded(&self) -> Result<bool> {
        self.source.has_checkpoint_after(self.version.seq).await
    }

    /// The description of its volume.
    pub fn meta(&self) -> &Meta {
        &self.source.meta
    }

    /// Which version it is.
    pub fn version(&self) -> &KeptVersion {
        &self.version
    }

    /// The last change in it.
    pub fn covers(&self) -> ChangeNo {
        self.log.lock().covers()
    }

    /// Looks into the map with the pages that were loaded for it.
    fn with_pages<T>(&self, loaded: &LoadedPages, look: impl FnOnce(&mut Log) -> T) -> T {
        let mut log = self.log.lock();
        for (at, page) in loaded {
            log.map.page_loaded(*at, page.clone());
        }
        let found = look(&mut log);
        log.map.evict(self.seat.map_memory() as usize);
        found
    }

    async fn load(&self, need: NeedPages, loaded: &mut LoadedPages) -> std::result::Result<(), DeviceError> {
        loaded.extend(fetch(&self.source, &self.checkpoints, need).await.map_err(io_error)?);
        Ok(())
    }

    /// Has the upper part of the map brought into memory, unless that was begun.
    fn bring_upper(&self) {
        self.upper.get_or_init(|| self.bring(upper::PAUSE, |_| true));
    }

    /// Has the pages brought into memory that find the leaves of the map: for whoever will surely be read.
    pub(super) fn bring_index(&self) {
        self.index.get_or_init(|| self.bring(Duration::ZERO, |page| page.kind == PageKind::Index));
    }

    /// Brings those pages of the upper part into memory, after a pause.
    fn bring(&self, pause: Duration, is_wanted: impl Fn(&PageAt) -> bool + Send + Sync + 'static) -> Upper {
        let (source, checkpoints, log) = (self.source.clone(), self.checkpoints.clone(), self.log.clone());
        let memory = self.seat.map_memory();
        Upper::start(async move {
            tokio::time::sleep(pause).await;
            let keep = |pages: LoadedPages| {
                let mut log = log.lock();
                pages.into_iter().for_each(|(at, page)| log.map.page_loaded(at, page));
                log.map.evict(memory as usize);
            };
            let fetch = |need| {
                let (source, checkpoints) = (source.clone(), checkpoints.clone());
                async move { fetch(&source, &checkpoints, need).await }
            };
            let lacks = || log.lock().map.upper().into_iter().filter(&is_wanted).collect();
            upper::bring(lacks, memory, fetch, keep).await;
        })
    }

    /// Something that a snapshot needs could not be read: whether the owner has put it elsewhere since that checkpoint, which is known then, be it by
    /// another read, or has sealed it with a data key that is here only now. Of a checkpoint that nobody keeps a newer one is no help.
    async fn has_moved_since(&self, before: Seq) -> bool {
        if self.version.label.name.is_empty() {
            return false;
        }
        if let Some(handed) = &self.handed {
            handed.renew().await;
        }
        let Ok((newest, _, carriers)) = self.source.past().await else { return false };
        let mut followed = self.followed.lock();
        if newest > *followed {
            *followed = newest;
            self.log.lock().map.follow_carriers(carriers);
        }
        *followed > before
    }

    async fn read_for(&self, offset: u64, len: u64, purpose: Purpose) -> std::result::Result<Pieces, DeviceError> {
        let mut tries = 0;
        loop {
            let before = *self.followed.lock();
            match self.read_once(offset, len, purpose).await {
                // Somebody else may have looked while this read went on.
                Err(_) if tries < LOOKS && (*self.followed.lock() > before || self.has_moved_since(before).await) => {
                    tries += 1;
                }
                read => return read,
            }
        }
    }

    async fn read_once(&self, offset: u64, len: u64, purpose: Purpose) -> std::result::Result<Pieces, DeviceError> {
        if len == 0 {
            return Ok(Pieces::new());
        }
        let block_size = self.source.meta.block_size;
        let extent = block_size.cover(offset, len);
        let (mut loaded, mut sealed) = (LoadedPages::new(), Sealed::new());
        let pieces = loop {
            let mut lacking = match self.with_pages(&loaded, |log| log.plan_read(extent)) {
                Ok(pieces) => break pieces,
                Err(lacking) => lacking,
            };
            if upper::is_lacking(&lacking) {
                self.bring_upper();
            }
            let frames = worth_fetching(&mut lacking, purpose, &sealed);
            let pages = self.load(lacking.into(), &mut loaded);
            let (pages, fetched) = tokio::join!(pages, self.source.objects.sealed(frames));
            pages?;
            sealed.extend(fetched.map_err(io_error)?);
        };
        let below = self.below.clone();
        let frames = Frames { objects: &self.source.objects, keys: &self.source.keys, block_size, below };
        frames.read(&pieces, sealed, offset, len, purpose).await
    }

    fn refused<T>(&self) -> std::result::Result<T, DeviceError> {
        Err(DeviceError::ReadOnly(format!(
            "it is snapshot {} of volume {}",
            self.version.label.name, self.source.meta.name
        )))
    }
}

#[async_trait]
impl Device for Past {
    fn info(&self) -> DeviceInfo {
        let block_size = self.source.meta.block_size;
        DeviceInfo { size: block_size.bytes_in(self.version.blocks), block_size: block_size.bytes(), read_only: true }
    }

    async fn read(&self, offset: u64, len: u32) -> std::result::Result<Pieces, DeviceError> {
        self.read_for(offset, len.into(), Purpose::Read).await
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> std::result::Result<(), DeviceError> {
        self.refused()
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> std::result::Result<(), DeviceError> {
        self.refused()
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> std::result::Result<(), DeviceError> {
        self.refused()
    }

    async fn flush(&self) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    async fn cache(&self, offset: u64, len: u64) -> std::result::Result<(), DeviceError> {
        // In pieces: a hint is no reason to hold the whole range in memory.
        for start in (offset..offset + len).step_by(CACHE_PIECE as usize) {
            self.read_for(start, CACHE_PIECE.min(offset + len - start), Purpose::Ahead).await?;
        }
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> std::result::Result<Vec<Run>, DeviceError> {
        let block_size = self.source.meta.block_size;
        let mut walk = Walk::new(block_size.cover(offset, len), most);
        let (mut loaded, mut loads) = (LoadedPages::new(), 0);
        loop {
            match self.with_pages(&loaded, |log| walk.go_on(log)) {
                Stopped::Done => break,
                Stopped::Resting => tokio::task::yield_now().await,
                Stopped::Needs(_) if loads >= LOADS_MAX && walk.has_found() => break,
                Stopped::Needs(need) => {
                    loads += 1;
                    match self.load(need, &mut loaded).await {
                        Ok(()) => {}
                        // What is known is true, and the rest will be asked for again.
                        Err(_) if walk.has_found() => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        let runs = walk.runs(block_size, offset, len);
        match &self.below {
            None => Ok(runs),
            Some(below) => below.extents(runs, offset, most).await,
        }
    }

    async fn versions(&self) -> std::result::Result<Vec<Version>, DeviceError> {
        older::found(&self.source).await
    }

    async fn compare(
        &self,
        since: &Version,
        offset: u64,
        len: u64,
        most: usize,
    ) -> std::result::Result<Vec<Compared>, DeviceError> {
        let asked = (since, (offset, len), most);
        self.older.compare(self, || self.source.clone(), &self.seat, asked).await
    }
}

/// Bytes of an NBD CACHE request that are fetched at once.
const CACHE_PIECE: u64 = 8 << 20;
