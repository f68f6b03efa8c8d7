//! What becomes of a volume beside its own lives, in a world with a family: it is rolled back to a snapshot, has clones, which are volumes
//! like it from the next life on, become independent and are deleted, and a schedule takes snapshots and lets them go.
//!
//! The oracle learns what a clone begins as from the record of its parent: there must be a number of changes, not below what was acknowledged when
//! somebody asked for it, after which the parent was that. A rollback that broke off is done, or not begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::opening::scan::Source;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::retention::{Schedule, is_automatic};
use ashlar::space::{CloneRef, Label};
use ashlar::store::Store;
use ashlar::store::faults::{Counted, Trap};
use ashlar::units::{BlockSize, ChangeNo, Seq};
use ashlar::volume::clones::{self, Wanted};
use ashlar::volume::{
    self, Budget, CreateOptions, Meta, OpenFlags, Options, Past, Volume, VolumeError, VolumeName, description,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::hosts::Stand;
use crate::life::{Life, Open, Server, image_of};
use crate::places::BLOCK;
use crate::record::{Floors, Record};
use crate::seals;
use crate::snapshots::Snapshots;
use crate::world::{Vol, World};

/// More would make a world slow.
const CLONES_MAX: usize = 3;

/// What a world with a family has.
pub struct Family {
    pub random: Random,
    /// Goes on with the world's time.
    pub clock: Arc<AtomicU64>,
    births: Births,
    _ticking: JoinSet<()>,
}

/// What came of it, over all lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    pub rollbacks: u64,
    pub clones: u64,
    /// Of snapshots that a schedule took.
    pub clones_of_automatic: u64,
    /// Independent clones, at openings.
    pub independent: u64,
    pub deleted: u64,
    /// Versions that nobody can name, at openings.
    pub hidden: u64,
}

impl Events {
    pub fn plus(self, other: Events) -> Events {
        Events {
            rollbacks: self.rollbacks + other.rollbacks,
            clones: self.clones + other.clones,
            clones_of_automatic: self.clones_of_automatic + other.clones_of_automatic,
            independent: self.independent + other.independent,
            deleted: self.deleted + other.deleted,
            hidden: self.hidden + other.hidden,
        }
    }
}

/// Clones that somebody asked for, and of which no server has heard yet.
#[derive(Clone, Default)]
struct Births(Arc<Mutex<Vec<Birth>>>);

#[derive(Clone)]
struct Birth {
    name: VolumeName,
    parent: VolumeName,
    /// What of the parent was acknowledged when it was asked for.
    floor: ChangeNo,
    /// It was acknowledged.
    is_made: bool,
    of_automatic: bool,
}

/// A volume that is a clone.
pub struct Origin {
    birth: Birth,
    /// The version that it shows.
    seq: Seq,
    /// It has been opened: it is known what it began as.
    is_known: bool,
    /// Somebody wants it gone.
    goes: bool,
    /// Somebody tried to delete it, and may have taken it for that.
    was_taken: bool,
}

impl Origin {
    /// Somebody wants it gone.
    pub fn goes(&self) -> bool {
        self.goes
    }

    /// Somebody tried to delete it, and may have taken it for that.
    pub fn was_taken(&self) -> bool {
        self.was_taken
    }
}

/// A rollback that somebody asked for, and what came of it if that is known.
pub struct GoingBack {
    before: String,
    image: Vec<u8>,
    is_done: bool,
}

impl Family {
    pub fn new(random: Random) -> Family {
        let clock = Arc::new(AtomicU64::new(0));
        let (mut ticking, ticks) = (JoinSet::new(), clock.clone());
        ticking.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                ticks.fetch_add(1000, Ordering::Relaxed);
            }
        });
        Family { random, clock, births: Births::default(), _ticking: ticking }
    }

    /// Sets somebody to work on each volume who makes clones of it, and makes it independent if it is one.
    pub fn start_nurses(
        &self,
        life: &mut Life,
        requests: u64,
        (options, secrets): (&CreateOptions, &ashlar::keyring::Secrets),
    ) {
        for open in &life.open {
            let nurse = Nurse {
                volume: open.volume.clone(),
                store: life.server.store.clone(),
                floors: open.floors.clone(),
                snapshots: open.snapshots.clone(),
                births: self.births.clone(),
                random: Random::seeded(self.random.below(u64::MAX)),
                options: CreateOptions { size: open.places.size, ..options.clone() },
                secrets: secrets.clone(),
            };
            life.clients.spawn(nurse.work(requests));
        }
    }
}

struct Nurse {
    volume: Arc<Volume>,
    store: Arc<dyn Store>,
    floors: Floors,
    snapshots: Snapshots,
    births: Births,
    random: Random,
    options: CreateOptions,
    secrets: ashlar::keyring::Secrets,
}

impl Nurse {
    /// One thing after the other; ends early if one fails.
    async fn work(self, requests: u64) {
        for _ in 0..requests {
            tokio::time::sleep(Duration::from_millis(self.random.below(3000))).await;
            let done = match self.random.below(3) {
                0 if self.volume.meta().parent.is_some() => self.detach().await,
                _ => self.make_clone().await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// For a while.
    async fn detach(&self) -> Result<(), VolumeError> {
        let mut from = 0;
        for _ in 0..1 + self.random.below(5) {
            match self.volume.detach(from, Duration::from_millis(self.random.below(500))).await {
                Ok(None) => return Ok(()),
                Ok(Some(far)) => from = far.at,
                // Snapshots and clones of it show the parent, or it is done.
                Err(VolumeError::Invalid(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn make_clone(&self) -> Result<(), VolumeError> {
        let Some(number) = self.births.begin(self.volume.meta().name.clone(), &self.floors) else { return Ok(()) };
        // Also of those that a schedule took, and will want to let go.
        let there = self.volume.snapshots();
        let named: Vec<&str> =
            there.iter().filter(|it| !it.label.is_hidden()).map(|it| it.label.name.as_str()).collect();
        let ours = self.snapshots.there();
        let snapshot = match (self.random.below(3), named.len() as u64) {
            (0, _) | (_, 0) => None,
            (1, _) if !ours.is_empty() => Some(ours[self.random.below(ours.len() as u64) as usize].as_str()),
            (_, len) => Some(named[self.random.below(len) as usize]),
        };
        if let Some(snapshot) = snapshot {
            let of_automatic = is_automatic(snapshot);
            self.births.change(number, |birth| *birth = Birth { floor: ChangeNo(0), of_automatic, ..birth.clone() });
        }
        let name = self.births.get(number).name;
        // Each name is used once: nothing comes before it.
        let clone = CloneRef { uuid: self.random.uuid(), name: name.to_string(), after: 0 };
        let shown = match self.volume.register_clone(snapshot, 1, clone.clone()).await {
            // It went meanwhile.
            Err(VolumeError::NoSnapshot { .. }) => return Ok(()),
            shown => shown?,
        };
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let parent = &self.volume.meta().name;
        let parent = Source::of(self.store.clone(), parent, &Options::default(), Some(near), &self.secrets).await?;
        let wanted = Wanted { name, options: self.options.clone() };
        let clock = Clock::Manual(Arc::default());
        clones::make(&parent, &self.random, &clock, wanted, (&clone, shown.seq)).await?;
        self.births.change(number, |birth| birth.is_made = true);
        Ok(())
    }
}

impl Births {
    /// Somebody asks for a clone of that volume; nothing if there are enough.
    fn begin(&self, parent: VolumeName, floors: &Floors) -> Option<usize> {
        let mut births = self.0.lock();
        let name = VolumeName::new(format!("c{}", births.len())).unwrap();
        (births.len() < CLONES_MAX).then(|| {
            births.push(Birth { name, parent, floor: floors.now().acknowledged, is_made: false, of_automatic: false });
            births.len() - 1
        })
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Birth)) {
        change(&mut self.0.lock()[number]);
    }

    fn get(&self, number: usize) -> Birth {
        self.0.lock()[number].clone()
    }

    fn all(&self) -> Vec<Birth> {
        self.0.lock().clone()
    }
}

impl World {
    /// How a clone is made.
    pub fn create_options(&self, block_size: BlockSize) -> CreateOptions {
        CreateOptions {
            block_size,
            encryption: self.encrypted.then(seals::encryption),
            fenced_by: self.climate.way.fenced_by,
            ..CreateOptions::default()
        }
    }

    /// Sets nurses to work, in a world with a family.
    pub fn start_nurses(&self, life: &mut Life, requests: u64) {
        let Some(family) = &self.family else { return };
        let options = self.create_options(BlockSize::new(BLOCK).unwrap());
        family.start_nurses(life, requests, (&options, &self.secrets));
    }

    /// Gives some volumes a schedule of a few seconds.
    pub async fn schedule_some(&self) {
        let Some(family) = &self.family else { return };
        for vol in &self.volumes {
            if family.random.below(2) == 0 {
                let every = Duration::from_secs(1 + family.random.below(4));
                let keep = ["1 x 1s", "2 x 2s, 2 x 20s", "5 x 1s"][family.random.below(3) as usize];
                self.schedule(vol, Some(Schedule::new(every, keep.parse().unwrap()).unwrap())).await;
            }
        }
    }

    async fn schedule(&self, vol: &Vol, schedule: Option<Schedule>) {
        let found = description::load(&*self.store, &vol.name).await.unwrap();
        let sealer = found.unlock(&self.secrets).await.unwrap();
        let meta = Meta { schedule, ..found.meta.clone() };
        found.replace(&*self.store, &self.random, &meta, sealer.keyring()).await.unwrap();
    }

    /// Clones that were made are volumes from now on; those that somebody deleted are not.
    pub async fn adopt(&mut self) {
        let Some(Family { random, births, .. }) = &self.family else { return };
        let (random, births) = (random.clone(), births.all());
        let mut gone = Vec::new();
        for (at, vol) in self.volumes.iter().enumerate() {
            if vol.origin.as_ref().is_some_and(|origin| origin.goes) {
                match description::load(&*self.store, &vol.name).await {
                    Err(VolumeError::NotFound { .. }) => gone.push(at),
                    found => drop(found.unwrap()),
                }
            }
        }
        for at in gone.into_iter().rev() {
            self.departs(at);
        }
        for birth in births {
            if self.departed.contains(&birth.name) || self.volumes.iter().any(|vol| vol.name == birth.name) {
                continue;
            }
            let (uuid, seq) = match description::load(&*self.store, &birth.name).await {
                Ok(found) => (found.meta.uuid, Seq(found.meta.parent.unwrap().version)),
                Err(VolumeError::NotFound { .. }) => {
                    assert!(!birth.is_made, "clone {} was acknowledged and is not there", birth.name);
                    continue;
                }
                // Its creation broke off, and the store kept a part of the description.
                Err(VolumeError::Corrupt { .. }) if !birth.is_made => continue,
                Err(other) => panic!("{other}"),
            };
            let parent = self.volumes.iter().find(|vol| vol.name == birth.parent).unwrap();
            let places = parent.places.clone();
            let disks = [self.climate.disk(&random), self.climate.disk(&random)];
            let record = Record::new(places.clone());
            let (name, floors, snapshots) = (birth.name.clone(), Floors::default(), Snapshots::default());
            let origin = Some(Origin { birth, seq, is_known: false, goes: false, was_taken: false });
            let (going_back, stand) = (None, Stand::default());
            self.volumes.push(Vol { name, uuid, places, disks, record, floors, snapshots, origin, going_back, stand });
        }
    }

    /// It is gone for good.
    pub fn departs(&mut self, at: usize) {
        self.events.deleted += 1;
        let vol = self.volumes.remove(at);
        tracing::info!(clone = %vol.name, "a clone is gone");
        self.departed.push(vol.name);
    }

    /// A clone that nobody was told of, and that its parent does not know: it is none.
    pub fn is_stillborn(&self, of: usize, error: &VolumeError) -> bool {
        let origin = self.volumes[of].origin.as_ref();
        origin.is_some_and(|origin| !origin.birth.is_made && !origin.is_known)
            && matches!(error, VolumeError::Invalid(why) if why.contains("is a clone of"))
    }

    /// A volume that is open for the first time since it was made, or rolled back, is what it must be; that is what it is from then on.
    pub async fn learn_base(&mut self, of: usize, volume: &Arc<Volume>) {
        let places = self.volumes[of].places.clone();
        if let Some(origin) = self.volumes[of].origin.as_ref().filter(|origin| !origin.is_known) {
            let image = image_of(&**volume, &places).await;
            let parent = self.volumes.iter().find(|vol| vol.name == origin.birth.parent).unwrap();
            let Origin { birth, seq, .. } = origin;
            assert!(
                parent.record.was(&image, birth.floor, *seq),
                "clone {} is nothing that its parent was",
                birth.name
            );
            tracing::info!(clone = %birth.name, of = %birth.parent, %seq, "a clone is opened for the first time");
            let vol = &mut self.volumes[of];
            vol.record.is_made(ChangeNo(0), Seq(0), image);
            self.events.clones += 1;
            self.events.clones_of_automatic += u64::from(vol.origin.as_ref().unwrap().birth.of_automatic);
            vol.origin.as_mut().unwrap().is_known = true;
        }
        let is_independent = self.volumes[of].origin.is_some() && volume.meta().parent.is_none();
        self.events.independent += u64::from(is_independent);
        self.events.hidden += volume.snapshots().iter().filter(|kept| kept.label.is_hidden()).count() as u64;
        let Some(going) = &self.volumes[of].going_back else { return };
        let kept = volume.snapshots().into_iter().find(|kept| kept.label.name == going.before);
        let is_done = match &kept {
            None => false,
            Some(_) => image_of(&**volume, &places).await == going.image,
        };
        assert!(is_done || !going.is_done, "a rollback was acknowledged and is not done");
        let vol = &mut self.volumes[of];
        let going = vol.going_back.take().unwrap();
        tracing::info!(volume = %vol.name, is_done, "somebody rolled it back");
        if let Some(kept) = kept.filter(|_| is_done) {
            vol.record.is_made(ChangeNo(volume.status().accepted), kept.seq, going.image);
            self.events.rollbacks += 1;
        }
    }

    /// Rolls volumes back that nobody has, in a world with a family. Whether all are closed in good order afterwards.
    pub async fn roll_back_some(&mut self, number: usize) -> bool {
        let mut all_closed = true;
        for of in 0..self.volumes.len() {
            let Some(family) = &self.family else { return true };
            let there = self.volumes[of].snapshots.there();
            if there.is_empty() || family.random.below(3) > 0 || self.volumes[of].going_back.is_some() {
                continue;
            }
            let to = there[family.random.below(there.len() as u64) as usize].clone();
            let trap = (family.random.below(2) == 0).then(|| 1 + family.random.below(20));
            let before = format!("before{}", family.random.below(u64::MAX));
            let image = self.image_in(of, &to).await;
            let server = self.server(number);
            if let Some(k) = trap {
                server.faults.set_trap(Counted::Mutations, k, Trap::CutBefore);
            }
            let vol = &mut self.volumes[of];
            vol.snapshots.is_asked_for(&before, vol.floors.now().acknowledged);
            vol.going_back = Some(GoingBack { before: before.clone(), image, is_done: false });
            let outside = self.outside(of, &server, Record::new(self.volumes[of].places.clone()).witness());
            let vol = &self.volumes[of];
            let label = Label { name: before.clone(), ..Label::default() };
            let (options, journal) = (self.climate.options.clone(), World::journal_options());
            let flags = OpenFlags::default();
            let going = Volume::roll_back(outside, &vol.name, options, journal, flags, (&to, label));
            let faults = server.faults.clone();
            let done = tokio::select! {
                biased;
                () = faults.isolated() => None,
                done = self.within_a_day("rolling back", going) => Some(done),
            };
            server.faults.isolate();
            let vol = &mut self.volumes[of];
            vol.disks[number] = vol.disks[number].kill();
            match done {
                Some(Ok(_)) => {
                    vol.snapshots.is_taken(&before);
                    vol.going_back.as_mut().unwrap().is_done = true;
                }
                Some(Err(error)) => {
                    assert!(!matches!(error, VolumeError::Invalid(_) | VolumeError::Held { .. }), "{error}");
                    all_closed = false;
                }
                None => all_closed = false,
            }
        }
        all_closed
    }

    /// What was in a snapshot, by the record.
    async fn image_in(&self, of: usize, snapshot: &str) -> Vec<u8> {
        let vol = &self.volumes[of];
        let (store, options): (Arc<dyn Store>, _) = (self.store.clone(), &self.climate.options);
        let near = (Arc::new(BlockCache::in_memory(1 << 20)), Workers::Inline);
        let source = Source::of(store.clone(), &vol.name, options, Some(near.clone()), &self.secrets).await.unwrap();
        let versions = source.versions().await.unwrap();
        let seq = versions.iter().find(|kept| kept.label.name == snapshot).unwrap().seq;
        let budget = Budget::new(options);
        let past = Past::open(store, &vol.name, snapshot, options, &budget, near, &self.secrets).await.unwrap();
        vol.record.image_at(past.covers(), seq)
    }

    /// Deletes a clone, whoever has it, in a world with a family.
    pub async fn delete_perhaps(&mut self, number: usize) {
        let Some(family) = &self.family else { return };
        let clones: Vec<usize> = (0..self.volumes.len()).filter(|at| self.volumes[*at].origin.is_some()).collect();
        if clones.is_empty() || family.random.below(3) > 0 {
            return;
        }
        let at = clones[family.random.below(clones.len() as u64) as usize];
        let trap = (family.random.below(2) == 0).then(|| 1 + family.random.below(20));
        let server = self.server(number);
        if let Some(k) = trap {
            server.faults.set_trap(Counted::Mutations, k, Trap::CutBefore);
        }
        let origin = self.volumes[at].origin.as_mut().unwrap();
        (origin.goes, origin.was_taken) = (true, true);
        let faults = server.faults.clone();
        let deleting = self.delete(at, &server, &server.store);
        let done = tokio::select! {
            biased;
            () = faults.isolated() => None,
            done = self.within_a_day("deleting a clone", deleting) => Some(done),
        };
        server.faults.isolate();
        match done {
            Some(Ok(_)) => self.departs(at),
            Some(Err(VolumeError::Invalid(why))) => {
                assert!(why.contains("has clones"), "{why}");
                self.volumes[at].origin.as_mut().unwrap().goes = false;
            }
            // It may have been taken for that, and then its journal is not gone on with.
            Some(Err(_)) | None => self.volumes[at].floors = Floors::default(),
        }
    }

    async fn delete(&self, at: usize, server: &Server, store: &Arc<dyn Store>) -> Result<u64, VolumeError> {
        self.delete_named(&self.volumes[at].name, server, store).await
    }

    async fn delete_named(
        &self,
        name: &VolumeName,
        server: &Server,
        store: &Arc<dyn Store>,
    ) -> Result<u64, VolumeError> {
        let (clock, random) = (self.clock(), Random::seeded(self.random_of_family().below(u64::MAX)));
        let identity = World::identity(server.number);
        volume::delete(store, &random, &clock, &identity, name, true, &self.secrets, &|_| ()).await
    }

    fn random_of_family(&self) -> &Random {
        self.family.as_ref().map_or(&self.random, |family| &family.random)
    }

    /// Ends all clones and the schedules of a life that is the last one, and with them the versions that nobody can name.
    pub async fn disband(&mut self, life: &mut Life) {
        let Some(Family { births, .. }) = &self.family else { return };
        // One of which the description arrived after this life had begun is nobody's.
        for birth in births.all().into_iter().rev() {
            let is_ours = self.volumes.iter().any(|vol| vol.name == birth.name);
            if !is_ours && description::load(&*self.store, &birth.name).await.is_ok() {
                let store: Arc<dyn Store> = self.store.clone();
                self.delete_named(&birth.name, &life.server, &store).await.unwrap();
            }
        }
        // Clones of clones come after what they are clones of.
        while self.volumes.last().is_some_and(|vol| vol.origin.is_some()) {
            let Open { volume, .. } = life.open.pop().unwrap();
            self.within_a_day("closing a clone", volume.close()).await.unwrap();
            let store: Arc<dyn Store> = self.store.clone();
            self.delete(self.volumes.len() - 1, &life.server, &store).await.unwrap();
            self.volumes.pop();
        }
        for (open, vol) in life.open.iter().zip(&self.volumes) {
            self.schedule(vol, None).await;
            self.within_a_day("reloading", open.volume.reload()).await.unwrap();
            for version in open.volume.snapshots().iter().filter(|version| version.label.is_hidden()) {
                for clone in &version.label.clones {
                    let forgotten = open.volume.forget_gone_clone(clone.uuid);
                    self.within_a_day("forgetting a clone", forgotten).await.unwrap();
                }
            }
            for kept in open.volume.snapshots().iter().filter(|kept| kept.label.is_hidden()) {
                assert!(kept.label.clones.is_empty(), "{kept:?}");
            }
        }
    }
}
