//! Snapshots in a world: a keeper takes and deletes them while clients work, and after every opening each that was acknowledged is there, byte
//! for byte as the changes up to its own left the volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::keyring::Secrets;
use ashlar::outside::{Random, Workers};
use ashlar::retention::is_automatic;
use ashlar::space::Label;
use ashlar::store::Store;
use ashlar::units::ChangeNo;
use ashlar::volume::{Budget, Options, Past, Volume, VolumeError, VolumeName};
use parking_lot::Mutex;

use crate::life::image_of;
use crate::places::Places;
use crate::record::{Floors, Record};

/// What was asked for, of one volume, over all lives.
#[derive(Clone, Default)]
pub struct Snapshots(Arc<Mutex<BTreeMap<String, Snapshot>>>);

#[derive(Clone, Copy, Default)]
struct Snapshot {
    /// What was acknowledged when it was asked for.
    floor: ChangeNo,
    /// It was acknowledged.
    is_taken: bool,
    /// Somebody wants it gone; that was acknowledged.
    goes: bool,
    is_gone: bool,
}

impl Snapshots {
    /// Takes and deletes snapshots for a while; ends early if the volume does.
    pub async fn keep(self, volume: Arc<Volume>, floors: Floors, requests: u64, random: Random) {
        for _ in 0..requests {
            tokio::time::sleep(Duration::from_millis(random.below(3000))).await;
            let there = self.there();
            let done = if there.len() > 3 || !there.is_empty() && random.below(3) == 0 {
                let name = &there[random.below(there.len() as u64) as usize];
                self.change(name, |it| it.goes = true);
                let done = volume.delete_snapshot(name).await;
                done.is_ok().then(|| self.change(name, |it| it.is_gone = true))
            } else {
                let name = format!("s{}", self.0.lock().len());
                let floor = floors.now().acknowledged;
                self.change(&name, |it| it.floor = floor);
                let done = volume.take_snapshot(Label { name: name.clone(), ..Label::default() }).await;
                done.is_ok().then(|| self.change(&name, |it| it.is_taken = true))
            };
            if done.is_none() {
                return;
            }
        }
    }

    /// Some that were taken and that nobody wants gone.
    pub fn there(&self) -> Vec<String> {
        let known = self.0.lock();
        known.iter().filter(|(_, it)| it.is_taken && !it.goes).map(|(name, _)| name.clone()).collect()
    }

    /// One of that name is being taken.
    pub fn is_asked_for(&self, name: &str, floor: ChangeNo) {
        self.change(name, |it| it.floor = floor);
    }

    /// It was.
    pub fn is_taken(&self, name: &str) {
        self.change(name, |it| it.is_taken = true);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Snapshot)) {
        change(self.0.lock().entry(name.to_owned()).or_default());
    }

    /// Whether all is there that must be, and nothing that must not; what is there is read through `store`.
    #[allow(clippy::too_many_arguments)] // all that a reader needs
    pub async fn judge(
        &self,
        volume: &Volume,
        name: &VolumeName,
        store: &Arc<dyn Store>,
        options: &Options,
        secrets: &Secrets,
        places: &Places,
        record: &Record,
    ) {
        let known = self.0.lock().clone();
        let kept = volume.snapshots();
        let there: BTreeSet<&String> = kept.iter().map(|kept| &kept.label.name).collect();
        for (name, it) in &known {
            assert!(there.contains(name) || !it.is_taken || it.goes, "snapshot {name} was acknowledged and is gone");
            assert!(!there.contains(name) || !it.is_gone, "snapshot {name} was deleted and is there");
        }
        // What nobody can name is there for its clones, which show it.
        for version in kept.iter().filter(|version| !version.label.is_hidden()) {
            let snapshot = &version.label.name;
            // Those of a schedule come and go by themselves.
            let it = known.get(snapshot).copied().unwrap_or(Snapshot { goes: true, ..Snapshot::default() });
            assert!(known.contains_key(snapshot) || is_automatic(snapshot), "nobody asked for a snapshot {snapshot}");
            let cache = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
            let past = Past::open(store.clone(), name, snapshot, options, &Budget::new(options), cache, secrets).await;
            let past = match past {
                // A checkpoint of a displaced server that let it go landed after the opening: it is the newest until the next one is written.
                Err(VolumeError::NoSnapshot { .. }) if it.goes => continue,
                past => past.unwrap(),
            };
            let (k, floor) = (past.covers(), it.floor);
            assert!(k >= floor && k <= record.len(), "snapshot {snapshot} has {k} changes, {floor} were promised");
            assert!(
                image_of(&past, places).await == record.image_at(k, version.seq),
                "snapshot {snapshot} is not as it was"
            );
        }
    }
}
