//! Two hosts that stand by for each other (`durability = "peer"`): whoever has the volumes sends their journals to the other one. Between them is a network that
//! delays, breaks and silences connections, and is cut one way or both; either host stands still and goes on, with a clock of its own; the peer's process dies, its host loses
//! power or is lost with its disk, and so is the host that serves, for good.
//!
//! A host that stands still hears and says nothing: what its timers do meanwhile shows when it goes on. That a host's clock is fast or slow is, for what waits, a `peer.timeout`
//! that is shorter or longer: each opening draws its own.
//!
//! What is asked, beside all that any world is: whatever was acknowledged is there when the other host takes the volumes over, as long as that one has lost nothing since; a
//! server that was displaced has acknowledged nothing that is not there; and no device goes on where something is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar::disk::Disk;
use ashlar::format::segment::Durability;
use ashlar::outside::{Clock, Random};
use ashlar::peer;
use ashlar::peer::keeper::Keeper;
use ashlar::peer::standby::{Link, WaitsFor};
use ashlar::peer::wire::Secret;
use ashlar::store::Store;
use ashlar::units::ChangeNo;
use ashlar::volume::{Beside, Volume};
use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::Weights;
use crate::climate::Climate;
use crate::life::{Life, Open};
use crate::network::{Disks, Host, Net, Now, Reached, Sky};
use crate::world::{Vol, World};

/// A timeout that does not end while anything is looked at.
const LONG: Duration = Duration::from_secs(3600);

/// See the module.
pub struct Hosts {
    pub random: Random,
    sky: watch::Sender<Sky>,
    hosts: [Host; 2],
    connections: Arc<AtomicU64>,
    /// The volumes' disks as they are now.
    disks: Disks,
    options: peer::Options,
    delay: Duration,
    /// What the peer has lost since it was made sure of the last time.
    lost: Lost,
    _ticking: JoinSet<()>,
}

/// What a host has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Lost {
    #[default]
    Nothing,
    /// What was not synced.
    Power,
    /// Everything.
    Disk,
}

/// What is known of one volume in such a world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stand {
    /// With so many changes it was opened.
    opened_with: ChangeNo,
    /// What another server must find of those that the last one acknowledged.
    promised: Promised,
    /// What the last server had acknowledged when it was left.
    acknowledged: ChangeNo,
    /// A device goes on with what was opened last.
    goes_on: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Promised {
    /// What the store has.
    #[default]
    Committed,
    Flushed,
    All,
}

/// What came of it, over all lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Takeovers with a copy, of all volumes.
    pub taken: u64,
    /// Changes that were acknowledged and nowhere but in the copy then.
    pub only_in_copy: u64,
    /// Takeovers without one, of a server that had none.
    pub owed: u64,
    /// Servers that went on and were displaced, of which everything acknowledged must be there.
    pub displaced: u64,
    /// How often a peer was lost.
    pub falls: u64,
    /// Lives that ended while the peer's word counted.
    pub by_peer: u64,
    /// Peers that lost power, and hosts that were lost with their disks.
    pub lost: u64,
    /// How often a host stood still.
    pub still: u64,
    /// Ways that were cut.
    pub cut: u64,
}

impl Standing {
    pub fn plus(self, other: Standing) -> Standing {
        Standing {
            taken: self.taken + other.taken,
            only_in_copy: self.only_in_copy + other.only_in_copy,
            owed: self.owed + other.owed,
            displaced: self.displaced + other.displaced,
            falls: self.falls + other.falls,
            by_peer: self.by_peer + other.by_peer,
            lost: self.lost + other.lost,
            still: self.still + other.still,
            cut: self.cut + other.cut,
        }
    }

    /// The least of all.
    pub fn rarest(self) -> u64 {
        let Standing { taken, only_in_copy, owed, displaced, falls, by_peer, lost, still, cut } = self;
        [taken, only_in_copy, owed, displaced, falls, by_peer, lost, still, cut].into_iter().min().unwrap_or_default()
    }
}

impl Hosts {
    /// Makes a climate one of two hosts.
    pub fn new(random: Random, climate: &mut Climate) -> Hosts {
        climate.options.durability = Durability::Peer;
        let pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
        let options = peer::Options {
            sync: random.below(3) > 0,
            lag_bytes: pick(&[32 << 10, 64 << 20, 64 << 20]),
            disk_bytes: pick(&[2 << 20, 4 << 30]),
            ..peer::Options::default()
        };
        let delay = Duration::from_millis(pick(&[1, 20, 200]));
        let (hosts, mut ticking) = (<[Host; 2]>::default(), JoinSet::new());
        for host in &hosts {
            // They do not agree, and one of them is faster.
            host.clock.store(1_800_000_000_000 + random.below(100_000_000_000), Ordering::Relaxed);
            let (clock, tick) = (host.clock.clone(), 900 + random.below(200));
            ticking.spawn(async move {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    clock.fetch_add(tick, Ordering::Relaxed);
                }
            });
        }
        Hosts {
            random,
            sky: watch::Sender::default(),
            hosts,
            connections: Arc::default(),
            disks: Arc::default(),
            options,
            delay,
            lost: Lost::Nothing,
            _ticking: ticking,
        }
    }

    /// The clock of a host.
    pub fn clock(&self, host: usize) -> Clock {
        Clock::Manual(self.hosts[host].clock.clone())
    }

    /// What stands beside a volume that is opened on a host.
    pub fn beside(&self, host: usize, is_last: bool) -> Beside {
        let millis = [300, 300, 1000, 2000, 2000, 20_000, LONG.as_millis() as u64];
        let drawn = Duration::from_millis(millis[self.random.below(millis.len() as u64) as usize]);
        // What runs for long is not asked four times a second.
        let timeout = if is_last { LONG } else { drawn };
        let net = Net {
            sky: self.sky.subscribe(),
            keeper: self.hosts[1 - host].clone(),
            connections: self.connections.clone(),
            from: host,
            random: Random::seeded(self.random.below(u64::MAX)),
            delay: self.delay,
        };
        let link = Link {
            address: format!("host-{}", 1 - host),
            dial: Arc::new(move || net.clone().dial().boxed()),
            secret: secret(),
            random: Random::seeded(self.random.below(u64::MAX)),
            options: peer::Options { timeout, ..self.options.clone() },
        };
        Beside { peer: Some(link), keeper: self.hosts[host].keeper.lock().clone(), ..Beside::default() }
    }

    /// The store as a host reaches it.
    pub fn reaching(&self, host: usize, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Reached { inner: store, sky: self.sky.subscribe(), host })
    }

    fn change(&self, change: impl FnOnce(&mut Sky)) {
        self.sky.send_modify(change);
    }

    /// Whether a host stands still, or does not reach the store.
    fn wake(&self, host: usize) {
        self.change(|sky| (sky.still[host], sky.no_store[host]) = (false, false));
    }

    /// A process that keeps copies begins, in the place of the one before.
    fn start(&self, host: usize) {
        self.stop(host);
        let disks = self.disks.clone();
        let disk_of = move |volume| Arc::new(Now { disks: disks.clone(), volume, host }) as Arc<dyn Disk>;
        let random = Random::seeded(self.random.below(u64::MAX));
        let keeper = Keeper::new(Arc::new(disk_of), secret(), random, self.options.disk_bytes);
        *self.hosts[host].keeper.lock() = Some(keeper);
    }

    /// It is gone, and with it what it served.
    fn stop(&self, host: usize) {
        *self.hosts[host].keeper.lock() = None;
        *self.hosts[host].serving.lock() = JoinSet::new();
    }

    fn is_up(&self, host: usize) -> bool {
        self.hosts[host].keeper.lock().is_some()
    }

    /// How many copies a host's process has begun.
    fn copies(&self, host: usize) -> usize {
        self.hosts[host].keeper.lock().as_ref().map_or(0, Keeper::kept)
    }

    /// What the next server is to find of this volume.
    fn promised(&self, vol: &Vol, open: &Open, copies_are_new: bool) -> Promised {
        let told = open.volume.peered().unwrap();
        // A copy began in this opening: then the store had all before. Or what was there at the beginning is in the store by now.
        let is_beyond_its_beginning = told.waits_for == WaitsFor::Peer
            || told.falls > 0
            || open.volume.status().committed >= vol.stand.opened_with.0;
        match if copies_are_new { Lost::Nothing } else { self.lost } {
            _ if !is_beyond_its_beginning => Promised::Committed,
            Lost::Nothing => Promised::All,
            Lost::Power if self.options.sync => Promised::Flushed,
            Lost::Power | Lost::Disk => Promised::Committed,
        }
    }
}

fn secret() -> Secret {
    Secret::of(b"a secret of two hosts in a simulation").unwrap()
}

impl World {
    /// A host is about to open the volumes.
    pub fn stands_up(&mut self, number: usize) {
        self.show_disks();
        let Some(hosts) = &mut self.hosts else { return };
        // What is there at the beginning is in no copy that counts.
        hosts.lost = Lost::Nothing;
        hosts.wake(number);
        // A process that was there takes over, or a new one does in its place.
        if !hosts.is_up(number) || hosts.random.below(2) == 0 {
            for vol in &mut self.volumes {
                vol.disks[number] = vol.disks[number].kill();
            }
            hosts.start(number);
            self.show_disks();
        }
        let Some(hosts) = &self.hosts else { return };
        if !hosts.is_up(1 - number) && hosts.random.below(4) > 0 {
            hosts.start(1 - number);
        }
    }

    /// Disks were exchanged for what is there after a death.
    pub fn show_disks(&self) {
        let Some(hosts) = &self.hosts else { return };
        *hosts.disks.lock() = self.volumes.iter().map(|vol| (vol.uuid, vol.disks.clone())).collect();
    }

    /// A process has ended on its host, which may be lost for good with its disks.
    pub fn falls_down(&mut self, number: usize, for_good: bool) {
        let Some(hosts) = &self.hosts else { return };
        hosts.stop(number);
        if for_good && hosts.random.below(2) == 0 {
            self.standing.lost += 1;
            for vol in &mut self.volumes {
                vol.disks[number] = self.climate.disk(&hosts.random);
            }
        }
        if hosts.random.below(3) > 0 {
            hosts.start(number);
        }
        self.show_disks();
    }

    /// It is open: what is there is where it begins.
    pub fn is_opened(&mut self, of: usize, volume: &Volume) {
        let (epoch, _, since) = volume.line();
        let stand = &mut self.volumes[of].stand;
        stand.opened_with = ChangeNo(volume.status().accepted);
        stand.goes_on = since < epoch;
    }

    /// No device goes on where anything is missing that was acknowledged before.
    pub fn judge_the_line(&self, of: usize, acknowledged: Option<ChangeNo>) {
        let Vol { stand, name, .. } = &self.volumes[of];
        let (has, acknowledged) = (stand.opened_with, acknowledged.unwrap_or(stand.acknowledged));
        assert!(!stand.goes_on || has >= acknowledged, "a device goes on with {has} changes of {acknowledged}: {name}");
    }

    /// A life is at its end; the other host may have the volumes next.
    pub fn leave(&mut self, life: &Life) {
        let Some(hosts) = &self.hosts else { return };
        let copies_are_new = hosts.copies(1 - life.server.number) == self.volumes.len();
        for (vol, open) in self.volumes.iter_mut().zip(&life.open) {
            vol.stand.promised = hosts.promised(vol, open, copies_are_new);
            vol.stand.acknowledged = open.floors.now().acknowledged;
            let told = open.volume.peered().unwrap();
            self.standing.falls += told.falls;
            self.standing.by_peer += u64::from(told.waits_for == WaitsFor::Peer);
        }
    }

    /// What the other host must find of a volume that it takes over: all, and what of it the loss of that host's power leaves.
    pub fn promised(&self, of: usize, open: &Open) -> (ChangeNo, ChangeNo) {
        let committed = ChangeNo(open.volume.status().committed);
        let Some(hosts) = &self.hosts else { return (committed, committed) };
        let floor = open.floors.now();
        let flushed = if hosts.options.sync { floor.flushed.max(committed) } else { committed };
        match self.volumes[of].stand.promised {
            Promised::All => (floor.acknowledged.max(committed), flushed),
            Promised::Flushed => (flushed, flushed),
            Promised::Committed => (committed, committed),
        }
    }

    /// The other host gets the volumes.
    pub fn changes_hands(&mut self, life: &Life) {
        for (vol, open) in self.volumes.iter().zip(&life.open) {
            if vol.stand.promised == Promised::All {
                let committed = open.volume.status().committed;
                self.standing.only_in_copy += open.floors.now().acknowledged.0.saturating_sub(committed);
            }
        }
    }

    /// A volume is taken over with what a copy has, or without one.
    pub fn is_taken(&mut self, with_copy: bool) {
        let count = if with_copy { &mut self.standing.taken } else { &mut self.standing.owed };
        *count += 1;
    }

    /// Whether a copy may have lost what it was promised to have.
    pub fn may_be_cut(&self) -> bool {
        self.hosts.as_ref().is_some_and(|hosts| !hosts.options.sync)
    }

    /// Who is about to be displaced has clients, in a world of two hosts.
    pub fn write_on(&self, life: &mut Life) {
        if let Some(hosts) = &self.hosts {
            let requests = hosts.random.below(60);
            life.start_clients(2, requests, Weights::draw(&hosts.random).slowly(), &hosts.random);
        }
    }

    /// A displaced server that stood still goes on, and reaches everything.
    pub fn wakes_up(&self, number: usize) {
        if let Some(hosts) = &self.hosts {
            hosts.wake(number);
            if hosts.random.below(2) == 0 {
                hosts.change(|sky| sky.cut = [false; 2]);
            }
        }
    }

    /// It has acknowledged nothing that its successor, which has `recovered`, does not have.
    pub fn judge_displaced(&mut self, of: usize, open: &Open, recovered: ChangeNo) {
        if self.hosts.is_none() {
            return;
        }
        let floor = open.floors.now();
        let must = match self.volumes[of].stand.promised {
            Promised::All => floor.acknowledged,
            Promised::Flushed => floor.flushed,
            Promised::Committed => ChangeNo(0),
        };
        assert!(must <= recovered, "a displaced server acknowledged {must} changes of {recovered}");
        self.judge_the_line(of, Some(floor.acknowledged));
        self.standing.displaced += u64::from(must > ChangeNo(0));
    }

    /// Everything reaches everybody again: what is done now must come to an end whatever the peer does, and its host stands.
    pub fn clears_up(&mut self, number: usize, all: bool) {
        let Some(hosts) = &self.hosts else { return };
        hosts.wake(number);
        if all {
            hosts.wake(1 - number);
            hosts.change(|sky| sky.cut = [false; 2]);
        }
    }

    /// What happens to two hosts while the one of that number serves. Never ends.
    pub async fn weather(&mut self, number: usize) {
        loop {
            let Some(hosts) = &mut self.hosts else { return std::future::pending().await };
            sleep(Duration::from_millis(hosts.random.below(2000))).await;
            let (peer, newest) = (1 - number, hosts.connections.load(Ordering::Relaxed) + 1);
            let before = *hosts.sky.borrow();
            if !hosts.is_up(peer) && hosts.random.below(2) == 0 {
                hosts.start(peer);
            }
            let event = hosts.random.below(20);
            tracing::debug!(event, number, "the weather changes");
            match event {
                0 => hosts.change(|sky| sky.cut[number] = true),
                1 => hosts.change(|sky| sky.cut[peer] = true),
                2 => hosts.change(|sky| sky.cut = [true; 2]),
                3..=6 => hosts.change(|sky| sky.cut = [false; 2]),
                7 => hosts.change(|sky| sky.broken_before = newest),
                8 => hosts.change(|sky| sky.silent_before = newest),
                9 => hosts.change(|sky| sky.still[number] = true),
                10 => hosts.change(|sky| sky.still[peer] = true),
                11..=13 => hosts.change(|sky| sky.still = [false; 2]),
                14 => hosts.change(|sky| sky.no_store[number] = true),
                15 | 16 => hosts.change(|sky| sky.no_store[number] = false),
                // The peer's process dies.
                17 => {
                    hosts.stop(peer);
                    self.volumes.iter_mut().for_each(|vol| vol.disks[peer] = vol.disks[peer].kill());
                }
                // Its host is gone, and comes back, or another one comes in its place.
                18 => {
                    let with_disk = hosts.random.below(2) == 0;
                    hosts.lost = hosts.lost.max(if with_disk { Lost::Disk } else { Lost::Power });
                    self.standing.lost += 1;
                    hosts.stop(peer);
                    for vol in &mut self.volumes {
                        vol.disks[peer] =
                            if with_disk { self.climate.disk(&hosts.random) } else { vol.disks[peer].crash() };
                        vol.disks[peer].set_faults(self.climate.disk_faults);
                    }
                }
                _ => {}
            }
            let after = *hosts.sky.borrow();
            let more = |before: [bool; 2], after: [bool; 2]| (0..2).filter(|i| after[*i] && !before[*i]).count() as u64;
            self.standing.cut += more(before.cut, after.cut);
            self.standing.still += more(before.still, after.still);
            self.show_disks();
        }
    }
}
