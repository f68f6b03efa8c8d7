//! A world: the store that outlives everything, servers with their disks, and the lives that follow one another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::cache::disk::DiskTier;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::format::segment::Durability;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::keyring::slot::Cost;
use ashlar::opening::key_slots::Slots;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::store::Store;
use ashlar::store::faults::{Counted, FaultOptions, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::units::{BlockSize, ChangeNo};
use ashlar::volume::{
    self, Beside, CreateOptions, FencedBy, OpenFlags, Outside, ServerIdentity, Volume, VolumeError, VolumeName, Witness,
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::client::{STUCK, Weights};
use crate::climate::Climate;
use crate::family::{Events, Family, GoingBack, Origin};
use crate::hosts::{Hosts, Stand, Standing};
use crate::life::{Life, Open, Server};
use crate::places::{BLOCK, Places};
use crate::record::{Floors, Record};
use crate::seals::{self, Seals};
use crate::sloppy::Sloppy;
use crate::snapshots::Snapshots;

/// How many operations a schedule has.
#[derive(Debug, Clone, Copy)]
pub struct Operations {
    pub store: u64,
    pub disk: u64,
}

/// Where a schedule is cut.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Never,
    Store { k: u64, trap: Trap },
    Disk { k: u64 },
}

/// What a world came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened: how each life ended, every request to the store, what is in it at the end.
    pub digest: String,
    /// Segments that garbage collection wrote.
    pub collected: u64,
    /// Bytes that were stored already when clients wrote them.
    pub saved: u64,
    /// Requests of clients that ended.
    pub requests: u64,
    /// What became of families.
    pub events: Events,
    /// What became of two hosts.
    pub standing: Standing,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// A clean stop when the clients have finished.
    Close,
    /// A clean stop while they write.
    CloseUnderLoad,
    Kill,
    PowerLoss,
    /// Another server takes over; this one is gone.
    Takeover,
    /// Another server takes over, and this one goes on without knowing.
    Zombie,
}

/// One volume, over all lives.
pub struct Vol {
    pub name: VolumeName,
    pub uuid: Uuid,
    pub places: Arc<Places>,
    /// The journal's disks, of the two servers.
    pub disks: [CrashDisk; 2],
    pub record: Record,
    pub floors: Floors,
    pub snapshots: Snapshots,
    /// It is a clone.
    pub origin: Option<Origin>,
    /// Somebody asked for it to be rolled back, and it was not opened since.
    pub going_back: Option<GoingBack>,
    /// In a world of two hosts that stand by for each other.
    pub stand: Stand,
}

pub struct World {
    pub random: Random,
    pub store: Arc<MemoryStore>,
    pub climate: Climate,
    pub volumes: Vec<Vol>,
    /// If volumes are rolled back, and have clones and schedules.
    pub family: Option<Family>,
    /// If the servers stand by for each other.
    pub hosts: Option<Hosts>,
    pub standing: Standing,
    /// Names of clones that are gone.
    pub departed: Vec<VolumeName>,
    pub events: Events,
    /// The disks of the servers' caches, if they have such.
    caches: Option<[CrashDisk; 2]>,
    /// Segments of moved data, over all lives.
    collected: u64,
    /// Bytes that were stored already when clients wrote them.
    saved: u64,
    done: Arc<AtomicU64>,
    log: String,
    /// What unlocks the volumes if they are encrypted; it sees everything that is sealed.
    pub secrets: Secrets,
    seals: Seals,
    pub encrypted: bool,
}

/// Whether volumes of a world have a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Alone,
    Family,
    /// Two hosts that stand by for each other.
    Hosts,
}

/// A quarter of all worlds is in verified mode.
fn fenced_by(seed: u64) -> FencedBy {
    if matches!(seed % 8, 3 | 5) { FencedBy::Verified } else { FencedBy::CreateOnly }
}

/// Whether equal data is stored once, and clients write much that is equal. Worlds that were found something in before that was possible are what they were.
fn repeats(seed: u64) -> bool {
    REPEATING.contains(&seed) || seed > 1_795_900_000_000 && seed.is_multiple_of(3)
}

/// Seeds of worlds of which that is so.
pub const REPEATING: Range<u64> = 300..400;

impl World {
    /// A whole world: several lives.
    pub async fn lives(seed: u64, kind: Kind) -> Outcome {
        let random = Random::seeded(seed);
        let mut climate = Climate::draw(&random, fenced_by(seed));
        climate.options.dedup = repeats(seed);
        climate.options.dedup_run = 4 * BLOCK;
        let mut world = World::new(seed, random, climate, kind).await;
        world.schedule_some().await;
        let mut server = 0;
        let mut closed = true;
        let mut zombies = Vec::new();
        for number in 0..2 + world.random.below(5) {
            let (mut life, recovered) = world.open(server, closed, false).await;
            world.bury_all(&mut zombies, &recovered).await;
            if number == 0 {
                world.within_a_day("filling", life.fill(&world.random)).await;
            }
            let death = world.live(&mut life).await;
            world.leave(&life);
            world.collected += life.open.iter().map(|open| open.volume.status().gc.segments_written).sum::<u64>();
            world.saved +=
                life.open.iter().filter_map(|open| Some(open.volume.status().dedup?.saved_bytes)).sum::<u64>();
            world.note(&life, death);
            world.rotate_perhaps().await;
            closed = false;
            match death {
                Death::Close => closed = world.close(life, false).await,
                Death::CloseUnderLoad => closed = world.close(life, true).await,
                Death::Kill | Death::PowerLoss => world.crash(life, death).await,
                Death::Takeover | Death::Zombie => {
                    world.promise_for_others(&life);
                    world.changes_hands(&life);
                    if death == Death::Zombie {
                        life.may_be_displaced();
                        world.write_on(&mut life);
                        zombies.push(life);
                    } else {
                        world.forget(life, true).await;
                    }
                    server = 1 - server;
                }
            }
            if zombies.is_empty() {
                world.check().await;
                closed = closed && world.roll_back_some(server).await;
                world.delete_perhaps(server).await;
            }
        }
        let (mut life, recovered) = world.open(server, closed, true).await;
        world.bury_all(&mut zombies, &recovered).await;
        world.clears_up(server, true);
        world.empty(&mut life).await;
        world.note(&life, Death::Close);
        world.close(life, false).await;
        let mut objects = world.store.objects();
        objects.sort();
        assert_eq!(world.encrypted, world.seals.count() > 0, "everything that an encrypted volume writes is sealed");
        let contents = blake3::hash(format!("{objects:?}").as_bytes());
        let (digest, requests) = (format!("{}{contents}", world.log), world.done.load(Ordering::Relaxed));
        Outcome {
            digest,
            collected: world.collected,
            saved: world.saved,
            requests,
            events: world.events,
            standing: world.standing,
        }
    }

    /// One life without random faults, cut at one operation; then a recovery by the same server, and one by another.
    pub async fn cut(seed: u64, end: End, kind: Kind) -> Operations {
        let random = Random::seeded(seed);
        let mut climate = Climate::draw(&random, fenced_by(seed)).fair();
        climate.options.dedup = repeats(seed);
        climate.options.dedup_run = 4 * BLOCK;
        climate.way.faults.delay_spread = Duration::from_millis(5);
        climate.disk_faults.delay_max = Duration::from_millis(1);
        let mut world = World::new(seed, random, climate, kind).await;
        let server = world.server(0);
        let faults = server.faults.clone();
        match end {
            End::Never => {}
            End::Store { k, trap } => faults.set_trap(Counted::Mutations, k, trap),
            End::Disk { k } => world.volumes[0].disks[0].cut_at(k),
        }
        let mut life = Life::new(server, world.done.clone());
        let opening = world.try_open(0, &life.server, OpenFlags::default(), false);
        let died = match timeout(Duration::from_secs(60), opening).await {
            Ok(Ok(open)) => {
                life.open.push(open);
                let weights = Weights::draw(&world.random);
                life.start_clients(2, 40, weights, &world.random);
                life.start_keepers(2, &world.random);
                world.start_nurses(&mut life, 2);
                let finished = async {
                    life.clients_end().await;
                    life.open[0].volume.close().await.unwrap();
                };
                let _ = timeout(Duration::from_secs(60), finished).await;
                let (disk, floors, _) = life.end().await.remove(0);
                world.volumes[0].floors = floors;
                disk
            }
            // Cut while it was being opened: nothing was accepted.
            Ok(Err(_)) | Err(_) => {
                faults.isolate();
                world.volumes[0].disks[0].clone()
            }
        };
        let counted = Operations { store: faults.mutations(), disk: died.operations() };
        let kill = world.random.below(2) == 0;
        world.volumes[0].disks[0] = if kill { died.kill() } else { died.crash() };
        let floor = world.volumes[0].floors.now();
        let needed = if kill { floor.acknowledged } else { floor.flushed };
        world.climate = world.climate.fair();
        world.check().await;
        let mut life = Life::new(world.server(0), world.done.clone());
        // A fence may get no answer for as long as anybody tries: whoever tries anew has another one.
        let open = loop {
            match world.try_open(0, &life.server, OpenFlags::default(), false).await {
                Err(VolumeError::Store { .. }) => world.volumes[0].disks[0] = world.volumes[0].disks[0].kill(),
                tried => break tried.unwrap(),
            }
        };
        life.open.push(open);
        world.volumes[0].judge(&life.open[0].volume, needed, "after the cut");
        life.open[0].floors = world.volumes[0].floors.clone();
        life.is_as_recorded(&format!("after the cut at {end:?}")).await;
        world.judge_snapshots(&life).await;
        world.close(life, false).await;
        let (life, _) = world.open(1, true, false).await;
        life.is_as_recorded(&format!("elsewhere, after the cut at {end:?}")).await;
        counted
    }

    async fn new(seed: u64, random: Random, mut climate: Climate, kind: Kind) -> World {
        let hosts = (kind == Kind::Hosts).then(|| Hosts::new(Random::seeded(seed.rotate_left(32)), &mut climate));
        let family = (kind == Kind::Family).then(|| Family::new(Random::seeded(!seed)));
        let store = Arc::new(MemoryStore::default());
        let (seals, encrypted) = (Seals::default(), seed % 4 < 2);
        let mut volumes = Vec::new();
        for number in 0..climate.volumes {
            // One wide volume is as good as several.
            let is_wide = number == 0 && climate.is_wide;
            let places = Arc::new(if is_wide { Places::wide(&random) } else { Places::narrow() });
            let create = CreateOptions {
                size: places.size,
                block_size: BlockSize::new(BLOCK).unwrap(),
                encryption: encrypted.then(seals::encryption),
                fenced_by: climate.way.fenced_by,
                ..CreateOptions::default()
            };
            let name = VolumeName::new(format!("v{number}")).unwrap();
            let created =
                volume::create(&*store, &random, &Clock::Manual(Arc::default()), &name, create).await.unwrap();
            let disks = [climate.disk(&random), climate.disk(&random)];
            let record = Record::new(places.clone());
            let (floors, snapshots) = (Floors::default(), Snapshots::default());
            let (uuid, origin, going_back, stand) = (created.meta.uuid, None, None, Stand::default());
            volumes.push(Vol { name, uuid, places, disks, record, floors, snapshots, origin, going_back, stand });
        }
        let caches = climate.has_disk_cache.then(|| [climate.disk(&random), climate.disk(&random)]);
        World {
            random,
            store,
            climate,
            volumes,
            family,
            hosts,
            standing: Standing::default(),
            departed: Vec::new(),
            events: Events::default(),
            caches,
            collected: 0,
            saved: 0,
            done: Arc::default(),
            log: String::new(),
            secrets: seals.secrets(),
            seals,
            encrypted,
        }
    }

    /// Whatever a server that is there is asked to do comes to an end.
    pub async fn within_a_day<T>(&self, doing: &str, what: impl Future<Output = T>) -> T {
        let done = timeout(STUCK, what).await;
        done.unwrap_or_else(|_| panic!("{doing} has made no progress for a day"))
    }

    /// For the digest, and for whoever follows a run.
    fn note(&mut self, life: &Life, death: Death) {
        let digest = life.server.faults.digest();
        self.log.push_str(&format!("server {} {death:?} {digest}; ", life.server.number));
        for open in &life.open {
            let (changes, floor, status) = (open.record.len(), open.floors.now(), open.volume.status());
            tracing::info!(server = life.server.number, ?death, %changes, ?status, "a life ends");
            self.log.push_str(&format!("{changes} {floor:?} {}; ", status.committed));
        }
    }

    /// A server in a new life, without volumes.
    pub fn server(&mut self, number: usize) -> Server {
        let cache = self.cache(number);
        let store: Arc<dyn Store> = match self.climate.way.fenced_by {
            FencedBy::CreateOnly => self.store.clone(),
            // Several win there, some of them late.
            FencedBy::Verified => {
                let random = Random::seeded(self.random.below(u64::MAX));
                Arc::new(Sloppy::new((*self.store).clone(), random, 100))
            }
        };
        let store = match &self.hosts {
            Some(hosts) => hosts.reaching(number, store),
            None => store,
        };
        Server::new(number, store, self.climate.way, cache, &self.climate.options, &self.random)
    }

    /// A cache for the next life of a server. Its disk has died since the last one, may have decayed, or is a new one.
    fn cache(&mut self, server: usize) -> BlockCache {
        let memory = self.climate.cache_memory;
        let Some(caches) = &mut self.caches else { return BlockCache::in_memory(memory) };
        let disk = &mut caches[server];
        *disk = match self.random.below(3) {
            0 => disk.kill(),
            1 => disk.crash(),
            _ => self.climate.disk(&self.random),
        };
        for _ in 0..self.random.below(8) {
            disk.damage("slab-00000001", self.random.below(disk.stored_bytes() + 1), 1);
        }
        disk.set_faults(self.climate.disk_faults);
        BlockCache::new(memory, Some(DiskTier::start(Arc::new(disk.clone()), ashlar::cache::disk::SIZE_MIN)))
    }

    /// Opens with a record of its own, still empty: a displaced server may be adding to the old one until the fence.
    async fn try_open(
        &mut self,
        of: usize,
        server: &Server,
        flags: OpenFlags,
        is_last: bool,
    ) -> Result<Open, VolumeError> {
        self.show_disks();
        let record = Record::new(self.volumes[of].places.clone());
        let (disk, outside) =
            (self.volumes[of].disks[server.number].clone(), self.outside(of, server, record.witness()));
        let (name, options) = (&self.volumes[of].name, self.climate.options.clone());
        let beside = self.hosts.as_ref().map_or_else(Beside::default, |hosts| hosts.beside(server.number, is_last));
        let volume = Volume::open_beside(outside, name, options, World::journal_options(), flags, beside).await?;
        self.learn_base(of, &volume).await;
        self.is_opened(of, &volume);
        let vol = &mut self.volumes[of];
        // Nobody uses the volume yet: it stands at the first k of what was accepted before.
        record.begin_with(&vol.record, ChangeNo(volume.status().accepted));
        vol.record = record.clone();
        let (places, floors, snapshots) = (vol.places.clone(), vol.floors.clone(), vol.snapshots.clone());
        Ok(Open { volume, places, disk, record, floors, snapshots })
    }

    /// What that volume has of a server that opens it.
    pub fn outside(&self, of: usize, server: &Server, witness: Witness) -> Outside {
        Outside {
            store: server.store.clone(),
            disk: Arc::new(self.volumes[of].disks[server.number].clone()),
            cache: server.cache.clone(),
            budget: server.budget.clone(),
            clock: self.hosts.as_ref().map_or_else(|| self.clock(), |hosts| hosts.clock(server.number)),
            random: Random::seeded(self.random.below(u64::MAX)),
            workers: Workers::Inline,
            server: World::identity(server.number),
            secrets: self.secrets.clone(),
            witness,
        }
    }

    pub fn clock(&self) -> Clock {
        Clock::Manual(self.family.as_ref().map_or_else(Arc::default, |family| family.clock.clone()))
    }

    pub fn identity(server: usize) -> ServerIdentity {
        ServerIdentity { uuid: Uuid::from_u128(server as u128 + 1), name: format!("server-{server}") }
    }

    pub fn journal_options() -> journal::Options {
        journal::Options { file_bytes: 64 << 10, ..journal::Options::default() }
    }

    /// Opens all volumes on a server and judges what is there. Also returns how many changes of each were recovered.
    async fn open(&mut self, number: usize, closed: bool, is_last: bool) -> (Life, Vec<ChangeNo>) {
        self.stands_up(number);
        let mut life = Life::new(self.server(number), self.done.clone());
        let mut recovered = Vec::new();
        self.adopt().await;
        let mut of = 0;
        while of < self.volumes.len() {
            let open = timeout(STUCK, self.open_one(of, &life.server, closed, is_last)).await;
            let Some(open) = open.unwrap_or_else(|_| panic!("opening has made no progress for a day")) else {
                self.departs(of);
                continue;
            };
            recovered.push(ChangeNo(open.volume.status().accepted));
            life.open.push(open);
            of += 1;
        }
        for (open, vol) in life.open.iter().zip(&self.volumes) {
            let kept: Vec<_> =
                open.volume.snapshots().into_iter().map(|it| (it.seq, it.label.name, it.label.clones.len())).collect();
            tracing::info!(volume = %vol.name, ?kept, "opened");
        }
        self.within_a_day("reading after opening", life.is_as_recorded("after opening")).await;
        self.judge_snapshots(&life).await;
        (life, recovered)
    }

    /// With the flags that the refusals ask for; nothing of a clone that never was one.
    async fn open_one(&mut self, of: usize, server: &Server, closed: bool, is_last: bool) -> Option<Open> {
        let mut flags = OpenFlags::default();
        for _ in 0..10_000 {
            match self.try_open(of, server, flags, is_last).await {
                Ok(mut open) => {
                    if flags.takeover {
                        self.is_taken(!flags.accept_loss);
                    }
                    self.judge_the_line(of, None);
                    let needed = self.volumes[of].floors.now().acknowledged;
                    self.volumes[of].judge(&open.volume, needed, "after opening");
                    open.floors = self.volumes[of].floors.clone();
                    return Some(open);
                }
                Err(VolumeError::Held { .. }) => {
                    let was_taken = self.volumes[of].origin.as_ref().is_some_and(Origin::was_taken);
                    assert!((!closed || was_taken) && !flags.takeover, "a closed volume is held by nobody");
                    flags.takeover = true;
                }
                Err(VolumeError::Owed { .. }) => {
                    assert!(self.climate.options.durability != Durability::Store && !flags.accept_loss);
                    flags.accept_loss = true;
                }
                Err(VolumeError::JournalCut { .. }) if self.may_be_cut() => {
                    assert!(!flags.accept_loss);
                    flags.accept_loss = true;
                }
                Err(VolumeError::StaleJournal { .. }) => flags.drop_journal = true,
                Err(VolumeError::Store { .. }) => {}
                // A try that put its fence and died of something else took the volume: the next one resumes.
                Err(VolumeError::NeedlessFlag { .. }) => {
                    assert_ne!(flags, OpenFlags::default());
                    flags = OpenFlags::default();
                }
                // A zombie's checkpoint let go of its fence between our listing and our look at that slot: the first
                // look saw the epoch before, the second one this. Refusing is right, asking again helps.
                Err(VolumeError::LostRace { .. }) => {}
                Err(VolumeError::Journal(_)) => {}
                // One that was to be displaced, and writes as fast as ever.
                Err(VolumeError::Invalid(why)) if self.hosts.is_some() && why.contains("changes too fast") => {}
                Err(error) if self.is_stillborn(of, &error) => return None,
                Err(other) => panic!("{other}"),
            }
            let disk = &mut self.volumes[of].disks[server.number];
            *disk = disk.kill();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the volume cannot be opened");
    }

    /// Lets the clients work for a while and decides how this life ends.
    async fn live(&mut self, life: &mut Life) -> Death {
        let deaths = [
            Death::Close,
            Death::CloseUnderLoad,
            Death::CloseUnderLoad,
            Death::Kill,
            Death::Kill,
            Death::PowerLoss,
            Death::PowerLoss,
            Death::Takeover,
            Death::Zombie,
        ];
        let death = match deaths[self.random.below(deaths.len() as u64) as usize] {
            Death::CloseUnderLoad if self.hosts.is_some() => Death::Takeover,
            Death::Kill if self.hosts.is_some() && self.random.below(2) == 0 => Death::Zombie,
            death => death,
        };
        let faults = life.server.faults.clone();
        if self.random.below(4) == 0 {
            let k = faults.mutations() + 1 + self.random.below(30);
            let trap = if self.random.below(2) == 0 { Trap::CutBefore } else { Trap::CutAfter };
            faults.set_trap(Counted::Mutations, k, trap);
        }
        let (clients, requests) = match death {
            Death::CloseUnderLoad => (1 + self.random.below(6), 1500),
            _ => (1 + self.random.below(4), self.random.below(60)),
        };
        let weights = match self.random.below(2) {
            0 if death == Death::CloseUnderLoad => Weights::load(&self.random),
            _ => Weights::draw(&self.random),
        };
        let (requests, weights) = match &self.hosts {
            // Long enough for something to happen.
            Some(hosts) => (20 + hosts.random.below(80), weights.slowly()),
            None => (requests, weights),
        };
        life.start_clients(clients, requests, weights, &self.random);
        if self.random.below(2) == 0 {
            life.start_keepers(1 + self.random.below(6), &self.random);
        }
        self.start_nurses(life, 4);
        let (number, patience) = (life.server.number, Duration::from_millis(self.random.below(20_000)));
        tokio::select! {
            biased;
            _ = timeout(patience, life.clients_end()) => {}
            () = faults.isolated() => {}
            () = self.weather(number) => {}
        }
        if death != Death::Zombie {
            self.clears_up(life.server.number, false);
        }
        faults.set_trap(Counted::Mutations, u64::MAX, Trap::CutBefore);
        for open in &life.open {
            let ended = open.volume.status().ended;
            assert!(ended.is_none(), "a volume that nobody took has ended: {ended:?}");
        }
        // Whoever is cut off from the store cannot close.
        match death {
            Death::Close | Death::CloseUnderLoad if faults.is_isolated() => Death::Kill,
            death => death,
        }
    }

    /// A clean stop, with clients at work or after them; or, if a trap that was set cuts the server off meanwhile, a kill
    /// after all. Says which.
    async fn close(&mut self, mut life: Life, under_load: bool) -> bool {
        let faults = life.server.faults.clone();
        let closing = async {
            if !under_load {
                life.clients_end().await;
                // Nothing is under way: the volumes are what was accepted, all of it.
                life.is_as_recorded("before closing").await;
            }
            for open in &life.open {
                if open.record.len().0.is_multiple_of(2) {
                    open.volume.leave_deletions();
                }
            }
            let closes = life.open.iter().map(|open| open.volume.close());
            futures::future::join_all(closes).await.into_iter().for_each(|closed| closed.unwrap());
            life.clients_end().await;
        };
        tokio::select! {
            biased;
            () = faults.isolated() => {
                self.crash(life, Death::Kill).await;
                return false;
            }
            done = timeout(STUCK, closing) => {
                let stuck = || panic!("closing has made no progress for a day: {:?}", life.open.iter().map(|open| open.volume.status()).collect::<Vec<_>>());
                done.unwrap_or_else(|_| stuck());
            }
        }
        // Without clients at work all that was accepted was acknowledged, or given up by a client that was told so.
        let promised: Vec<ChangeNo> = life
            .open
            .iter()
            .map(|open| if under_load { open.floors.now().acknowledged } else { open.record.len() })
            .collect();
        let number = life.server.number;
        for ((vol, (disk, ..)), promised) in self.volumes.iter_mut().zip(life.end().await).zip(promised) {
            vol.disks[number] = disk.kill();
            vol.floors = Floors::reset(promised, promised);
        }
        self.falls_down(number, false);
        true
    }

    async fn crash(&mut self, life: Life, death: Death) {
        let number = life.server.number;
        for (vol, (disk, floors, committed)) in self.volumes.iter_mut().zip(life.end().await) {
            let floor = floors.now();
            let stable = floor.flushed.max(committed);
            let promised = if death == Death::Kill { floor.acknowledged.max(stable) } else { stable };
            vol.disks[number] = if death == Death::Kill { disk.kill() } else { disk.crash() };
            vol.disks[number].set_faults(self.climate.disk_faults);
            vol.floors = Floors::reset(promised, stable);
        }
        self.falls_down(number, false);
    }

    /// What another server must find: what is committed, with durability "store" what was flushed, and with "peer" all.
    fn promise_for_others(&mut self, life: &Life) {
        for (of, open) in life.open.iter().enumerate() {
            let committed = ChangeNo(open.volume.status().committed);
            let (promised, stable) = match self.climate.options.durability {
                Durability::Store => {
                    (committed.max(open.floors.now().flushed), committed.max(open.floors.now().flushed))
                }
                Durability::Journal => (committed, committed),
                Durability::Peer => self.promised(of, open),
            };
            self.volumes[of].floors = Floors::reset(promised, stable);
        }
    }

    async fn bury_all(&mut self, zombies: &mut Vec<Life>, recovered: &[ChangeNo]) {
        for zombie in std::mem::take(zombies) {
            self.bury(zombie, recovered).await;
        }
    }

    /// A server that was displaced while it went on: nothing that it did after the other's opening took effect, and with
    /// durability "store" it promised nothing after it either.
    async fn bury(&mut self, life: Life, recovered: &[ChangeNo]) {
        self.wakes_up(life.server.number);
        tokio::time::sleep(Duration::from_millis(self.random.below(3000))).await;
        for (of, (open, &recovered)) in life.open.iter().zip(recovered).enumerate() {
            self.judge_displaced(of, open, recovered);
            let committed = ChangeNo(open.volume.status().committed);
            assert!(committed <= recovered, "a displaced server committed {committed} changes of {recovered}");
            if self.climate.options.durability == Durability::Store {
                let flushed = open.floors.now().flushed;
                assert!(flushed <= recovered, "a displaced server promised {flushed} changes of {recovered}");
            }
        }
        self.forget(life, false).await;
    }

    /// The server is gone; its disks stay, unless its host is lost for good.
    async fn forget(&mut self, life: Life, for_good: bool) {
        let number = life.server.number;
        for (vol, (disk, ..)) in self.volumes.iter_mut().zip(life.end().await) {
            vol.disks[number] = disk.kill();
        }
        self.falls_down(number, for_good);
    }

    /// A new data key, in the middle of everything: the server that has the volume does not know of it.
    async fn rotate_perhaps(&self) {
        if !self.encrypted || self.random.below(3) > 0 {
            return;
        }
        let (random, clock) = (&self.random, &Clock::Manual(Arc::default()));
        for vol in &self.volumes {
            let slots = Slots { store: &*self.store, name: &vol.name, secrets: &self.secrets, random, clock };
            slots.rotate(Cost::LEAST).await.unwrap().outcome.unwrap();
        }
    }

    /// Every snapshot is as it was.
    async fn judge_snapshots(&self, life: &Life) {
        let store: Arc<dyn Store> = self.store.clone();
        let options = &self.climate.options;
        for (open, vol) in life.open.iter().zip(&self.volumes) {
            let Open { volume, snapshots, places, record, .. } = open;
            let judged = snapshots.judge(volume, &vol.name, &store, options, &self.secrets, places, record);
            self.within_a_day("reading snapshots", judged).await;
        }
    }

    /// The volumes in the store hold together, whoever died in the middle of what.
    async fn check(&self) {
        let store: Arc<dyn Store> = self.store.clone();
        for vol in self.volumes.iter().filter(|vol| !vol.origin.as_ref().is_some_and(Origin::goes)) {
            let report = ashlar::check::check(&store, &vol.name, true, &|_, _| {}, &self.secrets).await.unwrap();
            assert!(report.is_clean(), "{:#?}", report.problems);
        }
    }

    /// Volumes that are trimmed whole and left alone keep no segments but the fences that stay, and ask for nothing more.
    async fn empty(&mut self, life: &mut Life) {
        life.server.faults.set_options(FaultOptions::default());
        self.disband(life).await;
        for open in &life.open {
            for kept in open.volume.snapshots() {
                let deleted = open.volume.delete_snapshot(&kept.label.name);
                self.within_a_day("deleting a snapshot", deleted).await.unwrap();
            }
            let whole = crate::record::Asked::zeroes(0..open.places.size);
            let trim = whole.by(open.volume.trim(0, open.places.size, true));
            self.within_a_day("trimming", trim).await.unwrap();
        }
        // Deletions that failed are tried again after ten minutes at most.
        tokio::time::sleep(Duration::from_secs(1300)).await;
        let store: Arc<dyn Store> = self.store.clone();
        for (open, vol) in life.open.iter().zip(&self.volumes) {
            let status = open.volume.status();
            assert_eq!((status.mapped_bytes, status.dead_bytes, status.gc.doomed_objects), (0, 0, 0), "{status:?}");
            let report = ashlar::check::check(&store, &vol.name, false, &|_, _| {}, &self.secrets).await.unwrap();
            assert_eq!(report.segments, 0, "{report:?}");
            let info = volume::inspect(&store, &vol.name, &self.secrets).await.unwrap();
            // What lands late, after it was deleted, stays until the next sweep.
            let lands_late = self.climate.way.fenced_by == FencedBy::Verified;
            assert!(info.mapped_bytes == 0 && (info.dead_objects == 0 || lands_late), "{info:?}");
        }
        let asked = || life.open.iter().map(|open| open.volume.status().since_open).collect::<Vec<_>>();
        let before = asked();
        tokio::time::sleep(Duration::from_secs(1300)).await;
        assert_eq!(asked(), before, "an idle volume makes no request");
    }
}

impl Vol {
    /// The recovered volume has the first k changes: as many as were promised, and it goes on from there.
    fn judge(&mut self, volume: &Volume, needed: ChangeNo, when: &str) {
        let k = ChangeNo(volume.status().accepted);
        assert!(k >= needed, "{when}: {needed} changes were promised, {k} are there");
        // What a kill left in the page cache of the journal's disk is there now, but the next power loss may take it.
        self.floors = Floors::reset(k, self.floors.now().flushed.min(k));
    }
}
