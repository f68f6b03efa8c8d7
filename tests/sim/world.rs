//! A world: the store that outlives everything, servers with their disks, and the lives that follow one another.

use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::disk::DiskTier;
use ashlar::cache::{self, BlockCache};
use ashlar::disk::crash::{CrashDisk, DiskFaults};
use ashlar::gc;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::keyring::slot::Cost;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::segment::Durability;
use ashlar::store::Store;
use ashlar::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
use ashlar::store::hedge::{HedgeOptions, HedgeStore};
use ashlar::store::memory::MemoryStore;
use ashlar::store::retry::{RetryOptions, RetryStore};
use ashlar::units::{BlockSize, ChangeNo};
use ashlar::volume::key_slots::Slots;
use ashlar::volume::{
    self, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::life::{Life, Weights};
use crate::oracle::{BLOCK, Floors, History, VOLUME_BLOCKS};
use crate::seals::{self, Seals};

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

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Close,
    Kill,
    PowerLoss,
    /// Another server takes over; this one is gone.
    Takeover,
    /// Another server takes over, and this one goes on without knowing.
    Zombie,
}

pub struct World {
    random: Random,
    store: Arc<MemoryStore>,
    name: VolumeName,
    options: Options,
    store_faults: FaultOptions,
    disk_faults: DiskFaults,
    /// The disks of the two servers.
    disks: [CrashDisk; 2],
    /// The disks of their caches, if they have such.
    caches: Option<[CrashDisk; 2]>,
    /// Bytes of their caches in memory.
    cache_memory: u64,
    /// Decides about caches only, so that what else happens in a world is as it was before there were any.
    cache_random: Random,
    history: History,
    floors: Floors,
    /// Segments of moved data, over all lives.
    collected: u64,
    /// What unlocks the volume if it is encrypted; it sees everything that is sealed.
    secrets: Secrets,
    seals: Seals,
    encrypted: bool,
}

impl World {
    /// A whole world: several lives. Returns a digest of what is in the store at the end, and how many segments garbage
    /// collection wrote on the way.
    pub async fn lives(seed: u64) -> (String, u64) {
        let mut world = World::new(seed).await;
        let mut server = 0;
        let mut closed = true;
        let mut log = String::new();
        let mut zombies = Vec::new();
        for _ in 0..2 + world.random.below(5) {
            let (mut life, displaced) = world.open(server, closed).await;
            for zombie in zombies.drain(..) {
                world.bury(zombie, displaced).await;
            }
            let (clients, operations) = (1 + world.random.below(4), world.random.below(60));
            let weights = Weights::draw(&world.random);
            life.start_clients(clients, operations, weights, &world.random);
            let death = world.live(&mut life).await;
            world.collected += life.volume.status().gc.segments_written;
            tracing::info!(server, ?death, history = %life.history.len(), status = ?life.volume.status(), "a life ends");
            log.push_str(&format!("{server} {death:?} {} {:?}; ", life.history.len(), life.floors.now()));
            closed = false;
            world.rotate_perhaps().await;
            match death {
                Death::Close => closed = world.close(life, server).await,
                Death::Kill | Death::PowerLoss => world.crash(life, server, death).await,
                Death::Takeover | Death::Zombie => {
                    let other = 1 - server;
                    world.promise_for_others(&life);
                    if death == Death::Zombie {
                        zombies.push((life, server));
                    } else {
                        let (disk, ..) = life.end().await;
                        world.disks[server] = disk.kill();
                    }
                    server = other;
                }
            }
            if zombies.is_empty() {
                world.check().await;
            }
        }
        let (mut life, displaced) = world.open(server, closed).await;
        for zombie in zombies.drain(..) {
            world.bury(zombie, displaced).await;
        }
        world.empty(&mut life).await;
        world.close(life, server).await;
        let mut objects = world.store.objects();
        objects.sort();
        assert_eq!(world.encrypted, world.seals.count() > 0, "everything that an encrypted volume writes is sealed");
        let contents = blake3::hash(format!("{objects:?}").as_bytes());
        (format!("{log}{contents}"), world.collected)
    }

    /// A new data key, in the middle of everything: the server that has the volume does not know of it.
    async fn rotate_perhaps(&self) {
        if self.encrypted && self.random.below(3) == 0 {
            let (random, clock) = (&self.random, &Clock::Manual(Arc::default()));
            let slots = Slots { store: &*self.store, name: &self.name, secrets: &self.secrets, random, clock };
            slots.rotate(Cost::LEAST).await.unwrap();
        }
    }

    /// One life without random faults, cut at one operation; then a recovery by the same server, and one by another.
    pub async fn cut(seed: u64, end: End) -> Operations {
        let mut world = World::new(seed).await;
        world.store_faults = FaultOptions { delay_spread: Duration::from_millis(5), ..FaultOptions::default() };
        world.disk_faults = DiskFaults { delay_max: Duration::from_millis(1), ..DiskFaults::default() };
        world.disks[0].set_faults(world.disk_faults);
        let store = world.faulty();
        let faults = store.faults();
        match end {
            End::Never => {}
            End::Store { k, trap } => faults.set_trap(Counted::Mutations, k, trap),
            End::Disk { k } => world.disks[0].cut_at(k),
        }
        let opening = world.try_open(0, store.clone(), OpenFlags::default());
        let opened = tokio::time::timeout(Duration::from_secs(60), opening).await;
        let died = match opened {
            Ok(Ok(volume)) => {
                let mut life = world.life(volume, 0, store);
                let weights = Weights::draw(&world.random);
                life.start_clients(2, 40, weights, &world.random);
                let finished = async {
                    while life.clients.join_next().await.is_some() {}
                    life.volume.close().await.unwrap();
                };
                let _ = tokio::time::timeout(Duration::from_secs(60), finished).await;
                let (disk, _, floors, _) = life.end().await;
                world.floors = floors;
                disk
            }
            // Cut while it was being opened: nothing was accepted.
            Ok(Err(_)) | Err(_) => {
                faults.isolate();
                world.disks[0].clone()
            }
        };
        let counted = Operations { store: faults.mutations(), disk: died.operations() };
        let kill = world.random.below(2) == 0;
        world.disks[0] = if kill { died.kill() } else { died.crash() };
        let floor = world.floors.now();
        let needed = if kill { floor.acknowledged } else { floor.flushed };
        world.store_faults = FaultOptions::default();
        world.check().await;
        let store = world.faulty();
        let volume = world.try_open(0, store.clone(), OpenFlags::default()).await.unwrap();
        world.judge(ChangeNo(volume.status().accepted), needed, "after the cut");
        let life = world.life(volume, 0, store);
        assert_eq!(life.image().await, world.history.image(), "after the cut at {end:?}");
        world.close(life, 0).await;
        let (life, _) = world.open(1, true).await;
        assert_eq!(life.image().await, world.history.image(), "elsewhere, after the cut at {end:?}");
        counted
    }

    async fn new(seed: u64) -> World {
        let random = Random::seeded(seed);
        let store = Arc::new(MemoryStore::default());
        let name = VolumeName::new("v").unwrap();
        let create = CreateOptions {
            size: VOLUME_BLOCKS * BLOCK as u64,
            block_size: BlockSize::new(BLOCK as u64).unwrap(),
            encryption: (seed % 4 < 2).then(seals::encryption),
            ..CreateOptions::default()
        };
        let seals = Seals::default();
        volume::create(&*store, &random, &Clock::Manual(Arc::default()), &name, create).await.unwrap();
        let pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
        let mut options = Options {
            durability: if random.below(2) == 0 { Durability::Store } else { Durability::Journal },
            segment_size: 64 << 10,
            writeback_delay: Duration::from_millis(pick(&[10, 200, 5000])),
            dirty_bytes: pick(&[512 << 10, 4 << 20]),
            upload_window: pick(&[1, 2, 5]) as u32,
            map_memory: pick(&[0, 1 << 20]),
            checkpoint_bytes: pick(&[4 << 10, 64 << 10, 1 << 30]),
            checkpoint_interval: Duration::from_millis(pick(&[50, 1000, 30_000])),
            retry_pause_max: Duration::from_millis(500),
            gc: gc::Options {
                busy_percent: pick(&[105, 110, 145]) as u32,
                quiet_percent: 105,
                limit_percent: pick(&[146, 200]) as u32,
                quiet_after: Duration::from_millis(pick(&[10, 500, 5000])),
                share_percent: pick(&[100, 25, 1]) as u32,
                sweep_interval: Duration::from_secs(pick(&[10, 86_400])),
                sweep_grace: Duration::from_secs(pick(&[1, 3600])),
                garbage_min: pick(&[1, 1, 16 << 10]),
                batch: pick(&[64 << 10, 256 << 10]),
                merge_count: pick(&[2, 8, 64]) as u32,
                ..gc::Options::default()
            },
            ..Options::default()
        };
        options.gc.hold_percent = options.gc.limit_percent + 1;
        let store_faults = FaultOptions {
            delay_spread: Duration::from_millis(pick(&[1, 20, 100])),
            refuse: pick(&[0, 0, 20, 200]) as u32,
            throttle: pick(&[0, 0, 20]) as u32,
            fail_after: pick(&[0, 0, 20, 200]) as u32,
            time_out: pick(&[0, 0, 20]) as u32,
            time_out_after: Duration::from_secs(2),
            short: pick(&[0, 0, 20]) as u32,
            // Not from the world's own generator, so that older seeds stay what they were but for this.
            half: [0, 0, 10, 50][Random::seeded(seed ^ 0x4a1f).below(4) as usize],
            ..FaultOptions::default()
        };
        let disk_faults = DiskFaults {
            write: pick(&[0, 0, 0, 5]) as u32,
            sync: pick(&[0, 0, 0, 20]) as u32,
            delay_max: Duration::from_millis(pick(&[0, 2, 30])),
            ..DiskFaults::default()
        };
        let disk = || {
            let disk = CrashDisk::new(random.below(u64::MAX));
            disk.set_faults(disk_faults);
            disk
        };
        let disks = [disk(), disk()];
        let cache_random = Random::seeded(!seed);
        let caches = (cache_random.below(2) == 0).then(|| [CrashDisk::new(seed), CrashDisk::new(!seed)]);
        let cache_memory = cache_random.below(2) * (64 << 10);
        let (history, floors) = (History::default(), Floors::default());
        World {
            random,
            store,
            name,
            options,
            store_faults,
            disk_faults,
            disks,
            caches,
            cache_memory,
            cache_random,
            history,
            floors,
            collected: 0,
            secrets: seals.secrets(),
            seals,
            encrypted: seed % 4 < 2,
        }
    }

    fn faulty(&self) -> Arc<FaultyStore> {
        let random = Random::seeded(self.random.below(u64::MAX));
        Arc::new(FaultyStore::new(self.store.clone(), self.store_faults, random))
    }

    /// A cache for the next life of a server. Its disk has died since the last one, and may have decayed.
    fn cache(&mut self, server: usize) -> BlockCache {
        let Some(caches) = &mut self.caches else { return BlockCache::in_memory(self.cache_memory) };
        let disk = &mut caches[server];
        *disk = if self.cache_random.below(2) == 0 { disk.kill() } else { disk.crash() };
        for _ in 0..self.cache_random.below(8) {
            disk.damage("slab-00000001", self.cache_random.below(disk.stored_bytes() + 1), 1);
        }
        disk.set_faults(self.disk_faults);
        BlockCache::new(self.cache_memory, Some(DiskTier::start(Arc::new(disk.clone()), cache::disk::SIZE_MIN)))
    }

    /// Opens with a history of its own, still empty: a displaced server may be adding to the old one until the fence.
    async fn try_open(
        &mut self,
        server: usize,
        store: Arc<dyn Store>,
        flags: OpenFlags,
    ) -> Result<Arc<Volume>, VolumeError> {
        let history = History::default();
        // Impatient, so that what gives up after a while and what never does are both tried.
        let retry = RetryOptions {
            pause_min: Duration::from_millis(5),
            pause_max: Duration::from_millis(200),
            read_limit: Duration::from_secs(5),
            write_limit: Duration::from_secs(3),
        };
        let hedge = HedgeOptions { share_percent: 50, p95_percent: 100, delay_min: Duration::from_millis(1) };
        let outside = Outside {
            store: Arc::new(RetryStore::new(
                Arc::new(HedgeStore::new(store, hedge)),
                retry,
                Random::seeded(self.random.below(u64::MAX)),
            )),
            disk: Arc::new(self.disks[server].clone()),
            cache: Arc::new(self.cache(server)),
            budget: ashlar::volume::Budget::default(),
            clock: Clock::Manual(Arc::default()),
            random: Random::seeded(self.random.below(u64::MAX)),
            workers: Workers::Inline,
            server: ServerIdentity { uuid: Uuid::from_u128(server as u128 + 1), name: format!("server-{server}") },
            secrets: self.secrets.clone(),
            witness: history.witness(),
        };
        let journal = journal::Options { file_bytes: 64 << 10, ..journal::Options::default() };
        let volume = Volume::open(outside, &self.name, self.options.clone(), journal, flags).await?;
        // Nobody uses the volume yet: it stands at the first k of what was accepted before.
        history.begin_with(&self.history, ChangeNo(volume.status().accepted));
        self.history = history;
        Ok(volume)
    }

    fn life(&self, volume: Arc<Volume>, server: usize, store: Arc<FaultyStore>) -> Life {
        Life {
            volume,
            disk: self.disks[server].clone(),
            faults: store.faults(),
            history: self.history.clone(),
            floors: self.floors.clone(),
            clients: JoinSet::new(),
        }
    }

    /// Opens the volume on a server, with the flags that the refusals ask for, and judges what is there. Also returns
    /// how many changes were recovered.
    async fn open(&mut self, server: usize, closed: bool) -> (Life, ChangeNo) {
        let mut flags = OpenFlags::default();
        for _ in 0..10_000 {
            let store = self.faulty();
            match self.try_open(server, store.clone(), flags).await {
                Ok(volume) => {
                    let needed = self.floors.now().acknowledged;
                    let k = ChangeNo(volume.status().accepted);
                    self.judge(k, needed, "after opening");
                    let life = self.life(volume, server, store);
                    assert_eq!(life.image().await, self.history.image(), "after opening");
                    return (life, k);
                }
                Err(VolumeError::Held { .. }) => {
                    assert!(!closed && !flags.takeover, "a closed volume is held by nobody");
                    flags.takeover = true;
                }
                Err(VolumeError::Owed { .. }) => {
                    assert!(self.options.durability == Durability::Journal && !flags.accept_loss);
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
                Err(other) => panic!("{other}"),
            }
            store.faults().isolate();
            self.disks[server] = self.disks[server].kill();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the volume cannot be opened");
    }

    /// The recovered volume has the first `k` changes: as many as were promised, and it goes on from there.
    fn judge(&mut self, k: ChangeNo, needed: ChangeNo, when: &str) {
        assert!(k >= needed, "{when}: {needed} changes were promised, {k} are there");
        // What a kill left in the page cache of the journal's disk is there now, but the next power loss may take it.
        self.floors = Floors::reset(k, self.floors.now().flushed.min(k));
    }

    /// Lets the clients work for a while and decides how this life ends.
    async fn live(&mut self, life: &mut Life) -> Death {
        let deaths = [
            Death::Close,
            Death::Kill,
            Death::Kill,
            Death::PowerLoss,
            Death::PowerLoss,
            Death::Takeover,
            Death::Zombie,
        ];
        let death = deaths[self.random.below(deaths.len() as u64) as usize];
        if self.random.below(4) == 0 {
            let k = life.faults.mutations() + 1 + self.random.below(30);
            let trap = if self.random.below(2) == 0 { Trap::CutBefore } else { Trap::CutAfter };
            life.faults.set_trap(Counted::Mutations, k, trap);
        }
        let patience = Duration::from_millis(self.random.below(20_000));
        let finished = async { while life.clients.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            _ = tokio::time::timeout(patience, finished) => {}
            () = life.faults.isolated() => {}
        }
        life.faults.set_trap(Counted::Mutations, u64::MAX, Trap::CutBefore);
        // Whoever is cut off from the store cannot close.
        if death == Death::Close && life.faults.is_isolated() { Death::Kill } else { death }
    }

    /// A clean stop; or, if a trap that was set cuts the server off meanwhile, a kill after all. Says which.
    async fn close(&mut self, mut life: Life, server: usize) -> bool {
        let faults = life.faults.clone();
        let closing = async {
            while life.clients.join_next().await.is_some() {}
            tracing::info!(status = ?life.volume.status(), "closing");
            // Nothing is under way: the volume is what was accepted, all of it.
            assert_eq!(life.image().await, life.history.image(), "before closing");
            life.volume.close().await.unwrap();
        };
        tokio::select! {
            biased;
            () = faults.isolated() => {
                self.crash(life, server, Death::Kill).await;
                return false;
            }
            () = closing => {}
        }
        let all = life.history.len();
        let (disk, ..) = life.end().await;
        self.disks[server] = disk.kill();
        self.floors = Floors::reset(all, all);
        true
    }

    async fn crash(&mut self, life: Life, server: usize, death: Death) {
        let (disk, _, floors, committed) = life.end().await;
        let floor = floors.now();
        let stable = floor.flushed.max(committed);
        let promised = if death == Death::Kill { floor.acknowledged.max(stable) } else { stable };
        self.disks[server] = if death == Death::Kill { disk.kill() } else { disk.crash() };
        self.disks[server].set_faults(self.disk_faults);
        self.floors = Floors::reset(promised, stable);
    }

    /// What another server must find: what is committed, and with durability "store" what was flushed.
    fn promise_for_others(&mut self, life: &Life) {
        let committed = ChangeNo(life.volume.status().committed);
        let flushed = match self.options.durability {
            Durability::Store => life.floors.now().flushed,
            Durability::Journal => ChangeNo(0),
        };
        self.floors = Floors::reset(committed.max(flushed), committed.max(flushed));
    }

    /// A server that was displaced while it went on: nothing that it did after the other's opening took effect, and with
    /// durability "store" it promised nothing after it either.
    async fn bury(&mut self, (life, server): (Life, usize), recovered: ChangeNo) {
        tokio::time::sleep(Duration::from_millis(self.random.below(3000))).await;
        let committed = ChangeNo(life.volume.status().committed);
        assert!(committed <= recovered, "a displaced server committed {committed} changes of {recovered}");
        if self.options.durability == Durability::Store {
            let flushed = life.floors.now().flushed;
            assert!(flushed <= recovered, "a displaced server promised {flushed} changes of {recovered}");
        }
        let (disk, ..) = life.end().await;
        self.disks[server] = disk.kill();
    }

    /// The volume in the store holds together, whoever died in the middle of what.
    async fn check(&self) {
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &self.name, true, &|_, _| {}, &self.secrets).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
    }

    /// A volume that is trimmed whole and left alone keeps no segments but the fences that stay, and asks for nothing more.
    async fn empty(&mut self, life: &mut Life) {
        use ashlar::device::Device;
        life.faults.set_options(FaultOptions::default());
        life.volume.trim(0, VOLUME_BLOCKS * BLOCK as u64, true).await.unwrap();
        // Deletions that failed are tried again after ten minutes at most.
        tokio::time::sleep(Duration::from_secs(1300)).await;
        let status = life.volume.status();
        assert_eq!((status.mapped_bytes, status.dead_bytes, status.gc.doomed_objects), (0, 0, 0), "{status:?}");
        let store: Arc<dyn Store> = self.store.clone();
        let report = ashlar::check::check(&store, &self.name, false, &|_, _| {}, &self.secrets).await.unwrap();
        assert_eq!(report.segments, 0, "{report:?}");
        let info = volume::inspect(&store, &self.name, &self.secrets).await.unwrap();
        assert_eq!((info.mapped_bytes, info.dead_objects), (0, 0), "{info:?}");
        let asked = life.volume.status().since_open;
        tokio::time::sleep(Duration::from_secs(1300)).await;
        assert_eq!(life.volume.status().since_open, asked, "an idle volume makes no request");
    }
}
