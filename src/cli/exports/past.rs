//! Snapshots as exports: `VOLUME@SNAPSHOT`, of every volume that may be had here, to be read only.
//!
//! A snapshot is looked up in the store whenever a client asks for it, so that a name stands for what it stands for now, wherever it
//! was taken, renamed or deleted. Clients of one snapshot share what is open of it; it is given up with the last of them. Nobody is asked and nothing
//! is taken: the volume may be open here, elsewhere, or nowhere.
//!
//! A volume that is to be read only is an export of the same kind: what is served is its newest checkpoint.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use tracing::debug;

use super::{Shared, VolumeExports, Volumes, export_error};
use crate::device::{AT, Device, ExportError};

/// Volumes of which it is found out at once which snapshots they have.
const PARALLEL: usize = 16;

/// What clients have open of what is only read, by its identity.
pub(super) struct Shelf<P>(Mutex<HashMap<String, Weak<P>>>);

impl<P> Default for Shelf<P> {
    fn default() -> Self {
        Shelf(Mutex::default())
    }
}

impl<P> Shelf<P> {
    /// What clients have open of that identity, or else this.
    fn share(&self, identity: String, opened: P) -> Arc<P> {
        let mut open = self.0.lock();
        open.retain(|_, past| past.strong_count() > 0);
        if let Some(shared) = open.get(&identity).and_then(Weak::upgrade) {
            return shared;
        }
        let opened = Arc::new(opened);
        open.insert(identity, Arc::downgrade(&opened));
        opened
    }
}

impl<V: Volumes> VolumeExports<V> {
    /// The snapshot of that export; opens it if need be.
    pub async fn past(&self, name: &str, volume: &str, snapshot: &str) -> Result<Arc<V::Past>, ExportError> {
        let Shared { only, closing, volumes, pasts, .. } = &*self.0;
        if only.as_ref().is_some_and(|only| !only.contains(name) && !only.contains(volume)) {
            return Err(ExportError::Unknown(name.to_owned()));
        }
        if closing.load(Ordering::SeqCst) {
            return Err(ExportError::ShuttingDown);
        }
        let opened = volumes.open_past(volume, snapshot).await.map_err(|failure| export_error(name, failure))?;
        Ok(pasts.share(V::past_identity(&opened), opened))
    }

    /// The volume of that name, which is to be read only; opens it if need be.
    pub async fn followed(&self, name: &str) -> Result<Arc<V::Followed>, ExportError> {
        let Shared { only, closing, volumes, followed, .. } = &*self.0;
        if only.as_ref().is_some_and(|only| !only.contains(name)) {
            return Err(ExportError::Unknown(name.to_owned()));
        }
        if closing.load(Ordering::SeqCst) {
            return Err(ExportError::ShuttingDown);
        }
        let opened = volumes.follow(name).await.map_err(|failure| export_error(name, failure))?;
        let shared = followed.share(V::followed_identity(&opened), opened);
        // What others have open may not know of the newest yet: whoever comes is to be told the size of now. If it fails, so will reading.
        let _ = shared.cache(0, 0).await;
        Ok(shared)
    }

    /// All exports: the volumes, each with its snapshots behind it, oldest first.
    pub(super) async fn all_names(&self) -> Result<Vec<String>, String> {
        let mut names = self.names().await?;
        // Of a volume that is served all snapshots are listed, also those that were named.
        if let Some(only) = &self.0.only {
            names.retain(|name| name.split_once(AT).is_none_or(|(volume, _)| !only.contains(volume)));
        }
        let open: HashMap<String, Arc<V::Volume>> = self.open_volumes().into_iter().collect();
        let with_snapshots = names.into_iter().map(|name| {
            let open = open.get(&name).filter(|volume| !V::lost(volume)).map(Arc::clone);
            async move {
                let snapshots = if name.contains(AT) { Vec::new() } else { self.snapshots_of(&name, open).await };
                let snapshots = snapshots.into_iter().map(|snapshot| format!("{name}{AT}{snapshot}"));
                let snapshots: Vec<String> = snapshots.collect();
                (name, snapshots)
            }
        });
        let listed: Vec<_> = stream::iter(with_snapshots).buffered(PARALLEL).collect().await;
        Ok(listed.into_iter().flat_map(|(name, snapshots)| std::iter::once(name).chain(snapshots)).collect())
    }

    /// What is locked or damaged is listed without: whoever asks for a snapshot of it is told.
    async fn snapshots_of(&self, name: &str, open: Option<Arc<V::Volume>>) -> Vec<String> {
        self.0.volumes.snapshots(name, open).await.unwrap_or_else(|why| {
            debug!("the snapshots of volume {name} are not listed: {why}");
            Vec::new()
        })
    }
}
