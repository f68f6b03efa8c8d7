//! A volume that another server writes, read as of its newest checkpoint.
//!
//! It takes nothing, as [`Past`] does not: no fence, no PUT, no DELETE; credentials that can GET and LIST are enough. Whoever reads gets a
//! *whole checkpoint*, always: a request is answered from one version from its beginning to its end, and never from an older one than
//! a request before it.
//!
//! - **Looking for news** is done when a request comes and the last look is longer ago than `follow`: one LIST, of what is behind the checkpoint that
//!   is known. Only if there is a newer one, it is opened. While nobody reads nothing is asked.
//! - **The writer deletes** what its newest checkpoint does not need, also under whoever reads an older one. So what fails is looked into: if there is a newer
//!   checkpoint, the request is answered anew, from that. What the writer deletes is deleted after that checkpoint is there, so it is found.
//! - **A store that is away** while news are looked for leaves what is known: that goes on being served as far as the cache has it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::cache::BlockCache;
use crate::device::{Allocation, Compared, Device, DeviceError, DeviceInfo, Pieces, Run, Version};
use crate::engine::budget::Budget;
use crate::engine::options::Options;
use crate::error::{Result, VolumeError};
use crate::format::meta::VolumeName;
use crate::keyring::Secrets;
use crate::opening::past::Past;
use crate::outside::Workers;
use crate::store::Store;

/// How often a request is answered anew because its version was superseded while it was read.
const TRIES: usize = 16;

/// How long a request waits for a look at a store that does not answer, before it goes on with what is known.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a follower reads through.
#[derive(Clone, Debug)]
pub struct Glass {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The options of a volume, as far as reading goes.
    pub options: Options,
    /// What it may hold in memory, with the others.
    pub budget: Budget,
    /// The cache, and the workers that open what is read.
    pub near: (Arc<BlockCache>, Workers),
    /// The secrets that open it.
    pub secrets: Secrets,
}

/// A volume that is followed. See the module.
#[derive(Debug)]
pub struct Follower {
    glass: Glass,
    name: VolumeName,
    uuid: Uuid,
    follow: Duration,
    seen: Mutex<Seen>,
    /// One looks at a time; the others get what it finds.
    looking: tokio::sync::Mutex<()>,
}

/// What is known.
#[derive(Debug)]
struct Seen {
    newest: Arc<Past>,
    /// When it was looked for last.
    at: Instant,
    /// Whether that failed, which was said.
    failed: bool,
}

impl Follower {
    /// Opens the newest checkpoint of that volume, and looks for newer ones as often as `follow` says while somebody reads.
    pub async fn open(glass: Glass, name: &VolumeName, follow: Duration) -> Result<Follower> {
        let newest = Arc::new(glass.newest(name).await?);
        let uuid = newest.meta().uuid;
        let seen = Mutex::new(Seen { newest, at: Instant::now(), failed: false });
        Ok(Follower { glass, name: name.clone(), uuid, follow, seen, looking: tokio::sync::Mutex::default() })
    }

    /// Which volume it is.
    pub fn volume(&self) -> Uuid {
        self.uuid
    }

    fn known(&self) -> Arc<Past> {
        self.seen.lock().newest.clone()
    }

    /// What was looked for lately.
    fn fresh(&self) -> Option<Arc<Past>> {
        let seen = self.seen.lock();
        (seen.at.elapsed() < self.follow).then(|| seen.newest.clone())
    }

    /// The newest version, as far as it was looked for lately.
    async fn current(&self) -> std::result::Result<Arc<Past>, DeviceError> {
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        // The turn may be had by somebody whose look never ends.
        let looked = timeout(PATIENCE, async {
            let _turn = self.looking.lock().await;
            match self.fresh() {
                Some(fresh) => Ok(fresh),
                None => self.look().await,
            }
        });
        let looked = looked.await;
        let why = match looked {
            Ok(Ok(newest)) => return Ok(newest),
            // It is not there any more, or nobody may read it: that is no matter of trying again.
            Ok(Err(gone @ (VolumeError::NotFound { .. } | VolumeError::Locked { .. } | VolumeError::Invalid(_)))) => {
                return Err(DeviceError::Io(gone.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store does not answer within {} s", PATIENCE.as_secs()),
        };
        let mut seen = self.seen.lock();
        seen.at = Instant::now();
        if !std::mem::replace(&mut seen.failed, true) {
            tracing::warn!(volume = %self.name, "what is new in it is not known, and what was is served on: {why}");
        }
        Ok(seen.newest.clone())
    }

    /// A version that is newer than that, if there is one: looked for at once.
    async fn newer_than(&self, past: &Arc<Past>) -> Result<Option<Arc<Past>>> {
        let _turn = self.looking.lock().await;
        let known = self.known();
        let newest = if known.version().seq > past.version().seq { known } else { self.look().await? };
        Ok((newest.version().seq > past.version().seq).then_some(newest))
    }

    /// Looks whether there is a newer version. The caller has the turn.
    async fn look(&self) -> Result<Arc<Past>> {
        let known = self.known();
        let found = if known.is_superseded().await? { Some(self.glass.newest(&self.name).await?) } else { None };
        let other = found.as_ref().map(|found| found.meta().uuid).filter(|uuid| *uuid != self.uuid);
        if let Some(other) = other {
            let why = format!("volume {} is another one now ({other}) than the one that is followed", self.name);
            return Err(VolumeError::Invalid(why));
        }
        let mut seen = self.seen.lock();
        // What is not whole yet does not count, and what is older never does.
        if let Some(newer) = found.filter(|found| found.version().seq > known.version().seq) {
            seen.newest = Arc::new(newer);
        }
        seen.at = Instant::now();
        if std::mem::replace(&mut seen.failed, false) {
            tracing::info!(volume = %self.name, "what is new in it is known again");
        }
        Ok(seen.newest.clone())
    }

    /// Answers a request from one version, the newest.
    async fn answer<T, F>(&self, read: impl Fn(Arc<Past>) -> F) -> std::result::Result<T, DeviceError>
    where
        F: Future<Output = std::result::Result<T, DeviceError>>,
    {
        let mut past = self.current().await?;
        for _ in 0..TRIES {
            let failed = match read(past.clone()).await {
                Err(failed) => failed,
                answered => return answered,
            };
            match self.newer_than(&past).await {
                Ok(Some(newer)) => past = newer,
                Ok(None) | Err(_) => return Err(failed),
            }
        }
        read(past).await
    }

    fn refused<T>(&self) -> std::result::Result<T, DeviceError> {
        Err(DeviceError::ReadOnly(format!("volume {} is only followed here", self.name)))
    }
}

impl Glass {
    /// Opens the newest checkpoint.
    async fn newest(&self, name: &VolumeName) -> Result<Past> {
        let Glass { store, options, budget, near, secrets } = self;
        Past::newest(store.clone(), name, options, budget, near.clone(), secrets).await
    }
}

/// Bytes of the range that the version has; the volume may have been larger when the client asked.
fn inside(past: &Past, offset: u64, len: u64) -> u64 {
    past.info().size.saturating_sub(offset).min(len)
}

#[async_trait]
impl Device for Follower {
    fn info(&self) -> DeviceInfo {
        self.known().info()
    }

    async fn read(&self, offset: u64, len: u32) -> std::result::Result<Pieces, DeviceError> {
        let read = |past: Arc<Past>| async move {
            let inside = inside(&past, offset, len.into());
            // Not more than `len`.
            let mut pieces = past.read(offset, inside as u32).await?;
            if inside < u64::from(len) {
                pieces.push_zeroes(u64::from(len) - inside);
            }
            Ok(pieces)
        };
        self.answer(read).await
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
        self.answer(|past: Arc<Past>| async move { past.cache(offset, inside(&past, offset, len)).await }).await
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> std::result::Result<Vec<Run>, DeviceError> {
        let look = |past: Arc<Past>| async move {
            match inside(&past, offset, len) {
                0 => Ok(vec![Run { len, allocation: Allocation::Hole }]),
                inside => past.extents(offset, inside, most).await,
            }
        };
        self.answer(look).await
    }

    async fn versions(&self) -> std::result::Result<Vec<Version>, DeviceError> {
        self.answer(|past: Arc<Past>| async move { past.versions().await }).await
    }

    async fn compare(
        &self,
        since: &Version,
        offset: u64,
        len: u64,
        most: usize,
    ) -> std::result::Result<Vec<Compared>, DeviceError> {
        let compare = |past: Arc<Past>| async move {
            match inside(&past, offset, len) {
                0 => Ok(vec![Compared { len, differs: true }]),
                inside => past.compare(since, offset, inside, most).await,
            }
        };
        self.answer(compare).await
    }
}
