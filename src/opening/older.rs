//! Versions that a device is compared with: their maps, a few at a time, whoever asks. What differs is decided in [`crate::engine::compare`].

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::device::{Compared, DeviceError, Version};
use crate::engine::budget::Seat;
use crate::engine::compare::{Side, compare};
use crate::error::{Result, VolumeError};
use crate::opening::past::Past;
use crate::opening::scan::Source;
use crate::space::KeptVersion;

/// So many maps stay open beside a device.
const MAPS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Older {
    /// The one that was asked for last is the last.
    maps: Mutex<VecDeque<Arc<Past>>>,
    /// Whose turn it is to load pages, or to open one: one at a time, however many clients ask.
    turn: Semaphore,
}

impl Default for Older {
    fn default() -> Older {
        Older { maps: Mutex::default(), turn: Semaphore::new(1) }
    }
}

/// The versions that can be named, of those that are kept.
pub(crate) fn named(kept: &[KeptVersion]) -> Vec<Version> {
    let shown = kept.iter().filter(|version| !version.label.is_hidden());
    shown.map(|version| Version { name: version.label.name.clone(), number: version.seq.0 }).collect()
}

/// That it was deleted, or is only kept for clones.
pub(crate) fn gone(since: &Version) -> DeviceError {
    DeviceError::Io(format!("snapshot {} was deleted: what has changed since is not known any more", since.name))
}

impl Older {
    /// See [`crate::device::Device::compare`]: with a version of the volume that `source` reads, whose map has a place beside `seat`.
    pub async fn compare(
        &self,
        new: &impl Side,
        source: impl FnOnce() -> Source,
        seat: &Seat,
        (since, range, most): (&Version, (u64, u64), usize),
    ) -> std::result::Result<Vec<Compared>, DeviceError> {
        let old = match self.known(since) {
            Some(old) => old,
            None => self.open(source(), seat, since).await?,
        };
        let block_size = old.meta().block_size;
        let compared = compare((new, &*old), &self.turn, block_size, range, most).await;
        compared.map_err(|error| not_known(since, &error))
    }

    fn known(&self, since: &Version) -> Option<Arc<Past>> {
        let mut maps = self.maps.lock();
        let at = maps.iter().position(|old| old.version().seq.0 == since.number)?;
        let old = maps.remove(at)?;
        maps.push_back(old.clone());
        Some(old)
    }

    async fn open(&self, source: Source, seat: &Seat, since: &Version) -> std::result::Result<Arc<Past>, DeviceError> {
        let _turn = self.turn.acquire().await;
        if let Some(old) = self.known(since) {
            return Ok(old);
        }
        let old = look_for(source, seat, since).await.map_err(|error| not_known(since, &error))?;
        let old = Arc::new(old.ok_or_else(|| gone(since))?);
        let mut maps = self.maps.lock();
        if maps.len() >= MAPS {
            maps.pop_front();
        }
        maps.push_back(old.clone());
        Ok(old)
    }
}

/// Nothing if it is not kept any more.
async fn look_for(source: Source, seat: &Seat, since: &Version) -> Result<Option<Past>> {
    let versions = source.versions().await?;
    let is_it = |version: &&KeptVersion| version.seq.0 == since.number && !version.label.is_hidden();
    match versions.into_iter().find(|version| is_it(&version)) {
        Some(version) => Past::map_of(source, version, seat.beside()).await.map(Some),
        None => Ok(None),
    }
}

fn not_known(since: &Version, why: &impl std::fmt::Display) -> DeviceError {
    let name = &since.name;
    DeviceError::Io(format!(
        "what has changed since snapshot {name} is not known, unless it is still there and this passes: {why}"
    ))
}

/// The versions that a reader of the volume finds now.
pub(crate) async fn found(source: &Source) -> std::result::Result<Vec<Version>, DeviceError> {
    let versions = source.versions().await.map_err(|error: VolumeError| DeviceError::Io(error.to_string()))?;
    Ok(named(&versions))
}
