//! Every decision about a device, as plain data: what has happened in, what is to be done out. No I/O, no time.
//!
//! ```text
//! Dialing ──> Connecting ──> Proving ─────────────────────────────> Attached <──> Doubting, Sizing
//!    │  ^                       ^  └──────> Sizing ───────────────────^ │             │
//!    v  │                       │                                       │ a connection ends, or the server hangs
//!  Waiting  <── Dialing <───────┼───────────────────────────────────────┴─────────────┘
//!                  └─> Draining ┴ HandingOver            any ──> Leaving ──> Ended
//! ```
//!
//! | phase | what ends it | at the latest after | and then |
//! | --- | --- | --- | --- |
//! | Dialing | the server answers, or not | what a dial may take (`dial`) | the next server, or Waiting |
//! | Waiting | | a pause, at most [`PAUSE_MAX`] | Dialing |
//! | Connecting | the kernel answers | [`KERNEL`] | the end |
//! | Draining | the kernel says that every old connection is dead | [`GRACE`] | HandingOver |
//! | HandingOver | the kernel answers | `--dead-timeout` (said after [`KERNEL`]) | Leaving |
//! | Proving | a read comes back | [`PROOF`], and more each time | Dialing; at first Leaving |
//! | Sizing | the kernel answers | [`KERNEL`] | Attached, or Dialing if a connection ended meanwhile |
//! | Attached | something happens; every [`ASK`] the server is asked | | |
//! | Doubting | a read comes back: Attached | [`DOUBT`] | Dialing the next server |
//! | Leaving | the kernel answers | [`FAREWELL`], twice | the end |
//!
//! - A kernel ignores new sockets while old ones live. So when one connection ends, all are ended, and new ones are handed over once
//!   the kernel has said that every old one is dead (*Draining*), or has not for [`GRACE`].
//! - Attached means that a read came back, past every cache, whatever the kernel says of itself (*Proving*).
//! - A kernel that is told a size may wait for requests, and those for sockets. So sockets are handed over alone, and the size
//!   is sent when requests have been seen to be answered (*Sizing*). It is sent each time: kernels may fall back to the first.
//! - A kernel that is told *another* size lets no request begin until those that are under way are answered (since 6.10), and takes
//!   no sockets until then. So it is told only once a flush has come back: whatever the server has just then, it gets it into the store.
//! - A request that was under way when its connection ended is sent again when the kernel looks at it, every [`TICK`]. A server that
//!   will leave says so before: then the kernel is told to look more often, until there is another. Its timer is punctual only while
//!   requests are under way whenever it goes off (a second late, else): so some are then. A look that finds no other connection
//!   is in vain, and the next comes a second later; but before a look decides, it waits until no request is on its way to a connection (Linux
//!   since 6.2, and 6.1.x: `blk_mq_timeout_work`). So in an outage one read is always on its way, and the look ends when there is a connection.
//! - A server that hangs (stopped, swapped out) keeps its connections. It is asked for the size of its volume on a connection of its
//!   own: that also says whether it lives. One that is silent may only be short of files; so a read decides (*Doubting*). A server that
//!   greets, and whose store is away, is waited for.
//! - A server that lost something acknowledged, or has another volume, ends the device: see [`super::identity`].
//! - An answer that is late (a dial, a read) is recognised by the phase it finds.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dial::DialError;
use super::handshake::Offer;
use super::identity::{self, Break, Identity};
use super::kernel::{KernelError, Setup};
use super::sysfs;
use crate::human::{exact_bytes, exact_duration};
use crate::nbd::wire::transmission_flag;

/// How long the kernel may take to see that connections which were ended here are dead.
pub const GRACE: Duration = Duration::from_secs(3);
/// How long the first read may take. It doubles with each read that is late, since the store behind a server may be slow or away.
pub const PROOF: Duration = Duration::from_secs(60);
/// The most it grows to.
pub const PROOF_MAX: Duration = Duration::from_secs(3600);
/// The pause before all servers are tried again, at first; then it doubles each time.
pub const PAUSE: Duration = Duration::from_millis(50);
/// How often it does not: a volume that is handed over is mostly there within a second.
pub const EAGER: u32 = 20;
/// The most it grows to.
pub const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long the kernel may take to end connections in good order, and then once more when they have been cut here.
pub const FAREWELL: Duration = Duration::from_secs(10);
/// How long the kernel may take to answer what it is told.
pub const KERNEL: Duration = Duration::from_secs(60);
/// How often the server is asked whether it lives, and how large its volume is.
pub const ASK: Duration = Duration::from_millis(250);
/// How often the kernel looks at a request that has no answer, where there is one connection and no time limit: if the connection that
/// it was sent on is not there any more, it is sent again. So programs may wait for so much longer than a server is away. (The
/// kernel logs a line for each request each time, so not more often.)
pub const TICK: Duration = Duration::from_secs(3);
/// The same when the server has said that it will leave.
pub const QUICK_TICK: Duration = Duration::from_millis(100);
/// How long a read may take when the server was silent.
pub const DOUBT: Duration = Duration::from_secs(10);
/// How often a device that is in use is looked at, when it is to be left.
pub const LOOK: Duration = Duration::from_secs(1);

/// The block sizes that the kernel takes.
pub const SECTOR_MIN: u32 = 512;
/// Likewise.
pub const SECTOR_MAX: u32 = 4096;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The volume's name.
    pub volume: String,
    /// How many servers there are to try.
    pub servers: usize,
    /// Which device; `None` lets the kernel choose.
    pub device: Option<u32>,
    /// How many connections; at least one.
    pub connections: usize,
    /// The kernel's block size in bytes; `None` takes the volume's, within what the kernel can.
    pub sector_size: Option<u32>,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// After how long an unanswered request is taken to another connection; zero is never.
    pub timeout: Duration,
    /// How long the device lives without a server.
    pub dead_timeout: Duration,
}

/// Timers. One that was set earlier means nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The phase with that number takes too long, or may go on.
    Phase(u64),
    /// The outage with that number takes too long.
    Outage(u64),
    /// It is time to look whether the device is in use.
    Look,
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A server answered, or did not.
    Dialed(Result<Offer, DialError>),
    /// The kernel made a device, or did not.
    Connected(Result<u32, KernelError>),
    /// The kernel took new sockets, or did not.
    HandedOver(Result<(), KernelError>),
    /// The kernel heard the size.
    Resized(Result<(), KernelError>),
    /// Whether the kernel still has the device.
    StillAttached(Result<(), KernelError>),
    /// A read came back.
    Read(Result<(), String>),
    /// The read that waited for a connection is over.
    Waited,
    /// A flush came back.
    Flushed(Result<(), String>),
    /// What a server says that was asked so (see [`Effect::Ask`]).
    Told(u64, Result<Offer, DialError>),
    /// The kernel gave up a connection of that device.
    LinkDead(u32),
    /// A socket of those that the kernel was given for the so-manieth time has ended.
    SocketEnded(u64),
    /// A timer.
    Woke(Timer),
    /// Somebody wants the device gone, if nobody uses it.
    Stop,
    /// Somebody wants it gone in any case.
    Force,
    /// Whether it is in use.
    InUse(bool),
    /// The kernel let go of the device, or did not.
    Disconnected(Result<(), KernelError>),
}

/// How much a word weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// As it should be.
    Info,
    /// Somebody may want to look.
    Warning,
}

/// What is to be done. Each answers with an event, but for the last three, [`Effect::Tick`] and [`Effect::KeepBusy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to that server, as often as planned.
    Dial(usize),
    /// Make a device of the connections.
    Connect(Setup),
    /// Give the device the connections.
    HandOver {
        /// The device.
        device: u32,
        /// Its backend's name.
        backend: String,
    },
    /// Tell it its size.
    Resize {
        /// The device.
        device: u32,
        /// Its backend's name.
        backend: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        sector_size: u32,
    },
    /// Ask whether it is still attached.
    LookAttached {
        /// The device.
        device: u32,
        /// Its backend's name.
        backend: String,
    },
    /// Read from it.
    Read {
        /// The device.
        device: u32,
        /// Bytes.
        sector_size: u32,
    },
    /// Read from it while it has no connection: the read is on its way until there is one.
    WaitInKernel {
        /// The device.
        device: u32,
        /// Bytes.
        sector_size: u32,
    },
    /// Have everything that was written to it flushed.
    Flush(u32),
    /// Ask a server what it offers, on a connection of its own that takes nobody's place.
    Ask {
        /// Which server.
        server: usize,
        /// The question's number, for its answer.
        number: u64,
    },
    /// Have the kernel look so often at a request of it that has no answer.
    Tick(u32, Duration),
    /// Keep requests to it under way, or do so no more.
    KeepBusy {
        /// The device.
        device: u32,
        /// Bytes.
        sector_size: u32,
        /// Whether.
        busy: bool,
    },
    /// Look whether it is in use.
    LookInUse(u32),
    /// Have the kernel end it.
    Disconnect(u32),
    /// Wake up later.
    Wake(Timer, Duration),
    /// End the sockets that the kernel has.
    EndSockets,
    /// Tell people.
    Say(Weight, String),
    /// It is attached, for the first time.
    Ready(u32),
    /// The end: done, or why not.
    End(Result<(), String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Dialing,
    Waiting,
    Connecting,
    Draining,
    HandingOver,
    Proving,
    Sizing,
    Attached,
    Doubting,
    Leaving,
    Ended,
}

/// A device as it stands.
#[derive(Clone, Debug)]
struct Device {
    number: u32,
    backend: String,
    /// As the kernel has it, as far as is known.
    size: u64,
    sector_size: u32,
    flags: u16,
    /// Of the server that it spoke to last.
    identity: Identity,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    plan: Plan,
    phase: Phase,
    phase_number: u64,
    device: Option<Device>,
    /// What the server offers whose connections are not in the kernel yet.
    offer: Option<(Offer, Identity)>,
    server: usize,
    /// Dials in a row that failed, and for each server the last reason that was said.
    failed_dials: u32,
    said: BTreeMap<usize, String>,
    /// How often the kernel was given sockets.
    generation: u64,
    /// Connections of which the kernel has not said that they are dead.
    live_links: usize,
    /// One ended while the kernel was busy.
    lost: bool,
    outage: u64,
    /// What the server has said last of the volume's size.
    offered_size: u64,
    /// The size that the kernel is being told.
    telling: Option<u64>,
    reading: bool,
    /// A read is on its way to a connection.
    waiting: bool,
    flushing: bool,
    /// The server has said that it will leave.
    is_leaving: bool,
    /// The kernel looks at requests often.
    is_quick: bool,
    proof: Duration,
    ready: bool,
    stopping: bool,
    said_in_use: bool,
    outcome: Result<(), String>,
    /// Whether the sockets were cut while the kernel took its time to let go.
    cut: bool,
    effects: Vec<Effect>,
}

impl Supervisor {
    /// A device that is to be, and what to do first.
    pub fn new(plan: Plan) -> (Supervisor, Vec<Effect>) {
        let mut supervisor = Supervisor {
            plan,
            phase: Phase::Dialing,
            phase_number: 0,
            device: None,
            offer: None,
            server: 0,
            failed_dials: 0,
            said: BTreeMap::new(),
            generation: 0,
            live_links: 0,
            lost: false,
            outage: 0,
            offered_size: 0,
            telling: None,
            reading: false,
            waiting: false,
            flushing: false,
            is_leaving: false,
            is_quick: false,
            proof: PROOF,
            ready: false,
            stopping: false,
            said_in_use: false,
            outcome: Ok(()),
            cut: false,
            effects: Vec::new(),
        };
        supervisor.dial();
        let effects = std::mem::take(&mut supervisor.effects);
        (supervisor, effects)
    }

    /// How often the kernel was given sockets so far; those of the last time are what [`Event::SocketEnded`] is about.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes in what has happened, and returns what is to be done.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        if self.phase != Phase::Ended {
            self.take(event);
        }
        std::mem::take(&mut self.effects)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Dialed(dialed) if self.phase == Phase::Dialing => self.dialed(dialed),
            Event::Connected(connected) if self.phase == Phase::Connecting => self.connected(connected),
            Event::HandedOver(result) if self.phase == Phase::HandingOver => self.handed_over(result),
            Event::Resized(result) => self.resized(result),
            Event::StillAttached(Err(KernelError::NotAttached(_))) if self.is_out() => self.detached(),
            Event::Read(result) => {
                self.reading = false;
                match self.phase {
                    Phase::Proving => self.proved(result),
                    // Also an error is an answer.
                    Phase::Doubting => self.attached(),
                    _ => {}
                }
            }
            Event::Waited => self.waiting = false,
            Event::Flushed(result) => {
                self.flushing = false;
                if result.is_ok() && self.phase == Phase::Attached {
                    self.flushed();
                }
            }
            Event::Told(number, told) if self.phase == Phase::Attached && number == self.phase_number => {
                self.told(told)
            }
            Event::LinkDead(device) if self.device.as_ref().is_some_and(|own| own.number == device) => {
                self.live_links = self.live_links.saturating_sub(1);
                match self.phase {
                    Phase::Draining if self.live_links == 0 => self.hand_over(),
                    Phase::Dialing | Phase::Waiting if self.live_links == 0 => self.wait_in_kernel(),
                    _ => self.connection_ended("the kernel gave up a connection"),
                }
            }
            Event::SocketEnded(generation) if generation == self.generation => {
                self.connection_ended("a connection ended");
            }
            Event::Woke(Timer::Phase(number)) if number == self.phase_number => self.phase_is_late(),
            Event::Woke(Timer::Outage(number)) if number == self.outage && self.is_out() => {
                let time = exact_duration(self.plan.dead_timeout);
                self.give_up(format!("no server came back within {time} (--dead-timeout); what waited has failed"));
            }
            Event::Woke(Timer::Look) => self.look_in_use(),
            Event::Stop => self.stop(),
            Event::Force => self.leave(Ok(()), true),
            Event::InUse(in_use) if self.stopping => self.may_leave(in_use),
            Event::Disconnected(result) if self.phase == Phase::Leaving => self.let_go(result),
            _ => {}
        }
    }

    /// Whether there is a device, and it has no server.
    fn is_out(&self) -> bool {
        self.device.is_some()
            && !matches!(self.phase, Phase::Leaving | Phase::Ended | Phase::Connecting)
            && !self.has_server()
            && self.ready
    }

    /// Whether the device has connections that work, as far as is known.
    fn has_server(&self) -> bool {
        matches!(self.phase, Phase::Attached | Phase::Doubting | Phase::Sizing)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_number += 1;
    }

    fn wake(&mut self, after: Duration) {
        self.effects.push(Effect::Wake(Timer::Phase(self.phase_number), after));
    }

    fn say(&mut self, weight: Weight, words: impl Into<String>) {
        self.effects.push(Effect::Say(weight, words.into()));
    }

    fn dial(&mut self) {
        self.enter(Phase::Dialing);
        self.offer = None;
        self.effects.push(Effect::Dial(self.server));
    }

    /// All is well.
    fn attached(&mut self) {
        self.enter(Phase::Attached);
        self.wake(ASK);
    }

    fn dialed(&mut self, dialed: Result<Offer, DialError>) {
        let offer = match dialed {
            Ok(offer) => offer,
            Err(error) => return self.no_offer(error.to_string()),
        };
        let Some(identity) = offer.identity else {
            return self.no_offer(
                "the server does not say which volume it has, so that nobody could tell after a restart whether it is the same; \
                 update ashlar there"
                    .to_owned(),
            );
        };
        let Some(device) = self.device.clone() else {
            return match self.setup(&offer, &identity) {
                Ok(setup) => self.connect(setup, offer, identity),
                Err(why) => self.end(Err(why)),
            };
        };
        let smaller = Break::Smaller { before: device.size, now: offer.size };
        let same = identity::compare(&device.identity, &identity);
        if let Err(why) = same.and(if offer.size < device.size { Err(smaller) } else { Ok(()) }) {
            return self.give_up(why.to_string());
        }
        // What an operator can put right is waited for.
        if !offer.size.is_multiple_of(u64::from(device.sector_size)) {
            return self
                .no_offer(format!("its size is no multiple of the device's block size, {}", device.sector_size));
        }
        if self.flags(&offer) & transmission_flag::READ_ONLY > device.flags & transmission_flag::READ_ONLY {
            return self.no_offer("the server lets nobody write now, and the device is writable".to_owned());
        }
        if device.flags & !self.flags(&offer) & !transmission_flag::READ_ONLY != 0 {
            return self.no_offer("the server can do less than the one before".to_owned());
        }
        self.failed_dials = 0;
        self.said.clear();
        self.offered_size = offer.size;
        self.is_leaving = offer.is_leaving;
        self.offer = Some((offer, identity));
        match self.live_links {
            0 => self.hand_over(),
            _ => {
                self.enter(Phase::Draining);
                self.wake(GRACE);
            }
        }
    }

    /// A server cannot be had: the next, and after the last a pause.
    fn no_offer(&mut self, why: String) {
        self.failed_dials = self.failed_dials.saturating_add(1);
        if self.device.is_none() && self.failed_dials as usize >= self.plan.servers {
            return self.end(Err(why));
        }
        if self.said.get(&self.server) != Some(&why) {
            self.say(Weight::Warning, format!("no connection to server {}: {why}; trying on", self.server + 1));
            self.said.insert(self.server, why);
        }
        self.server = (self.server + 1) % self.plan.servers;
        let servers = (self.plan.servers as u32).max(1); // a handful that somebody wrote down
        if !self.failed_dials.is_multiple_of(servers) {
            return self.dial();
        }
        let rounds = self.failed_dials / servers;
        self.enter(Phase::Waiting);
        let factor = 1_u32 << rounds.saturating_sub(EAGER).min(16);
        self.wake((PAUSE * factor).min(PAUSE_MAX));
        self.look_attached();
    }

    fn look_attached(&mut self) {
        if let Some(Device { number, backend, .. }) = self.device.clone() {
            self.effects.push(Effect::LookAttached { device: number, backend });
        }
    }

    fn flags(&self, offer: &Offer) -> u16 {
        offer.flags | if self.plan.read_only { transmission_flag::READ_ONLY } else { 0 }
    }

    /// How the kernel is to set the device up; or why it cannot.
    fn setup(&self, offer: &Offer, identity: &Identity) -> Result<Setup, String> {
        let Plan { volume, connections, sector_size, .. } = &self.plan;
        let usual = offer.preferred_block.max(offer.minimum_block).clamp(SECTOR_MIN, SECTOR_MAX);
        let sector_size = sector_size.unwrap_or(usual);
        if sector_size < offer.minimum_block {
            return Err(format!(
                "--sector-size {sector_size} is less than the {} that the server takes (nbd.minimum_block_size)",
                offer.minimum_block
            ));
        }
        if offer.size == 0 || !offer.size.is_multiple_of(u64::from(sector_size)) {
            return Err(format!(
                "volume {volume} has {}, no multiple of {sector_size}; give a smaller --sector-size, such as {SECTOR_MIN}",
                exact_bytes(offer.size)
            ));
        }
        if *connections > 1 && offer.flags & transmission_flag::CAN_MULTI_CONN == 0 {
            return Err("the server allows one connection only; leave --connections out".to_owned());
        }
        Ok(Setup {
            device: self.plan.device,
            size: offer.size,
            sector_size,
            flags: self.flags(offer),
            timeout: self.plan.timeout,
            dead_timeout: self.plan.dead_timeout,
            backend: sysfs::backend(volume, &identity.volume.to_string()),
        })
    }

    fn connect(&mut self, setup: Setup, offer: Offer, identity: Identity) {
        self.enter(Phase::Connecting);
        self.offer = Some((offer, identity));
        self.generation += 1;
        self.effects.push(Effect::Connect(setup));
        self.wake(KERNEL);
    }

    fn connected(&mut self, connected: Result<u32, KernelError>) {
        let (number, (offer, identity)) = match (connected, self.offer.take()) {
            (Ok(number), Some(offer)) => (number, offer),
            (Ok(_), None) => return, // one is kept while the kernel connects
            (Err(error), _) => return self.end(Err(error.to_string())),
        };
        let setup = match self.setup(&offer, &identity) {
            Ok(setup) => setup,
            Err(why) => return self.end(Err(why)),
        };
        let Setup { size, sector_size, flags, backend, .. } = setup;
        self.offered_size = size;
        self.device = Some(Device { number, backend, size, sector_size, flags, identity });
        self.live_links = self.plan.connections;
        match self.stopping || self.lost {
            true if self.stopping => self.leave(Ok(()), false),
            true => self.leave(Err("the connection ended at once".to_owned()), true),
            false => self.prove(),
        }
    }

    fn hand_over(&mut self) {
        let Some(Device { number, backend, .. }) = self.device.clone() else { return };
        self.enter(Phase::HandingOver);
        self.lost = false;
        self.generation += 1;
        self.live_links = self.plan.connections;
        self.effects.push(Effect::HandOver { device: number, backend });
        self.wake(KERNEL);
    }

    fn handed_over(&mut self, result: Result<(), KernelError>) {
        match result {
            Ok(()) => {}
            Err(KernelError::NotAttached(_)) => return self.detached(),
            Err(error) => return self.give_up(error.to_string()),
        }
        // From here on changes may be acknowledged by this server.
        if let (Some(device), Some((_, identity))) = (&mut self.device, &self.offer) {
            device.identity = *identity;
        }
        match self.lost {
            true => self.lose("a connection ended"),
            false => self.prove(),
        }
    }

    fn prove(&mut self) {
        let Some(Device { number, sector_size, .. }) = self.device.clone() else { return };
        self.enter(Phase::Proving);
        self.wake(self.proof);
        self.read(number, sector_size);
    }

    /// One is enough, and it has its own time.
    fn wait_in_kernel(&mut self) {
        if let (Some(&Device { number, sector_size, .. }), false) = (self.device.as_ref(), self.waiting) {
            self.waiting = true;
            self.effects.push(Effect::WaitInKernel { device: number, sector_size });
        }
    }

    /// One read at a time: one that is under way waits for the same.
    fn read(&mut self, device: u32, sector_size: u32) {
        if !self.reading {
            self.reading = true;
            self.effects.push(Effect::Read { device, sector_size });
        }
    }

    fn proved(&mut self, result: Result<(), String>) {
        match result {
            Err(why) if !self.ready => {
                return self.leave(Err(format!("the first read from the device failed: {why}")), true);
            }
            // It came back, that is what counts: a damaged block must not take the rest of the disk away.
            Err(why) => {
                self.say(Weight::Warning, format!("the device is connected, but its first block cannot be read: {why}"))
            }
            Ok(()) => {}
        }
        self.proof = PROOF;
        let Some(&Device { number, size, .. }) = self.device.as_ref() else { return };
        match (self.ready, self.telling) {
            (true, None) => self.tell_size(size),
            // The kernel still thinks about the last one.
            (true, Some(_)) => self.connected_again(),
            (false, _) => {
                self.ready = true;
                self.effects.push(Effect::Ready(number));
                self.attached();
            }
        }
    }

    fn connected_again(&mut self) {
        self.offer = None;
        self.say(Weight::Info, format!("connected again, to server {}", self.server + 1));
        self.attached();
        self.adapt();
    }

    fn tell_size(&mut self, size: u64) {
        let Some(Device { number, backend, sector_size, .. }) = self.device.clone() else { return };
        self.telling = Some(size);
        self.enter(Phase::Sizing);
        self.effects.push(Effect::Resize { device: number, backend, size, sector_size });
        self.wake(KERNEL);
    }

    fn resized(&mut self, result: Result<(), KernelError>) {
        let Some(size) = self.telling.take() else { return };
        match (result, &mut self.device) {
            (Ok(()), Some(device)) => {
                if size > device.size {
                    let words = format!("the volume has grown: the disk has {} now", exact_bytes(size));
                    self.effects.push(Effect::Say(Weight::Info, words));
                }
                device.size = size;
            }
            (Ok(()), None) => {}
            (Err(error), _) => self.say(Weight::Warning, format!("the kernel does not take the size: {error}")),
        }
        if self.phase == Phase::Sizing {
            self.sized();
        }
    }

    /// The kernel has the size, or will not have it for now.
    fn sized(&mut self) {
        match (self.lost, self.offer.is_some()) {
            // It was there: this is another outage, which has its own time.
            (true, _) => {
                self.offer = None;
                self.lose("a connection ended");
            }
            (false, true) => self.connected_again(),
            (false, false) => self.attached(),
        }
    }

    /// Whether the device is to become larger.
    fn must_grow(&self) -> bool {
        let Some(device) = &self.device else { return false };
        let is_whole = self.offered_size.is_multiple_of(u64::from(device.sector_size));
        self.offered_size > device.size && is_whole && self.telling.is_none()
    }

    /// Whether the kernel is to look at requests more often, or less often, than it does.
    fn must_change_tick(&self) -> bool {
        self.plan.timeout.is_zero() && self.is_quick != self.is_leaving
    }

    /// Begins to make the device what it should be now. The kernel may hold requests back for that until those under way are answered.
    fn adapt(&mut self) {
        if let (Some(device), true, false) = (&self.device, self.must_grow() || self.must_change_tick(), self.flushing)
        {
            self.flushing = true;
            self.effects.push(Effect::Flush(device.number));
        }
    }

    /// Requests are answered.
    fn flushed(&mut self) {
        let Some(&Device { number: device, sector_size, .. }) = self.device.as_ref() else { return };
        if self.must_change_tick() {
            self.is_quick = self.is_leaving;
            let tick = if self.is_quick { QUICK_TICK } else { TICK };
            self.effects.push(Effect::Tick(device, tick));
            self.effects.push(Effect::KeepBusy { device, sector_size, busy: self.is_quick });
        }
        if self.must_grow() {
            self.tell_size(self.offered_size);
        }
    }

    /// What the server says while all is well.
    fn told(&mut self, told: Result<Offer, DialError>) {
        let Some(device) = self.device.clone() else { return };
        match told {
            Err(DialError::Silent) => return self.doubt(device),
            // A server that lets nobody in any more, or is about to end, still serves who is in.
            Err(_) => {}
            Ok(offer) if offer.identity.is_none_or(|identity| identity.volume != device.identity.volume) => {}
            Ok(offer) => {
                if offer.size < device.size && offer.size != self.offered_size {
                    let size = exact_bytes(offer.size);
                    let words = format!(
                        "the volume has {size} now, and the disk is larger: what lies beyond fails; detach and attach it anew"
                    );
                    self.say(Weight::Warning, words);
                }
                self.offered_size = offer.size;
                self.is_leaving = offer.is_leaving;
                self.adapt();
            }
        }
        self.wake(ASK);
    }

    /// The server does not answer: is it only that it takes no more connections?
    fn doubt(&mut self, Device { number, sector_size, .. }: Device) {
        self.enter(Phase::Doubting);
        self.wake(DOUBT);
        self.read(number, sector_size);
    }

    fn connection_ended(&mut self, how: &str) {
        match self.phase {
            Phase::Attached | Phase::Doubting => self.lose(how),
            Phase::Proving if self.ready => self.lose(how),
            Phase::Proving => self.leave(Err("the connection ended at once".to_owned()), true),
            Phase::Connecting | Phase::HandingOver | Phase::Sizing => self.lost = true,
            Phase::Dialing | Phase::Waiting | Phase::Draining | Phase::Leaving | Phase::Ended => {}
        }
    }

    /// The device has no server: whatever lives of its connections is ended, and new ones are made.
    fn lose(&mut self, how: &str) {
        if self.has_server() {
            self.outage += 1;
            self.effects.push(Effect::Wake(Timer::Outage(self.outage), self.plan.dead_timeout));
            self.say(Weight::Warning, format!("{how}: connecting again; programs wait"));
        }
        self.lost = false;
        self.effects.push(Effect::EndSockets);
        self.look_attached();
        self.dial();
        if self.live_links == 0 {
            self.wait_in_kernel();
        }
    }

    fn phase_is_late(&mut self) {
        match self.phase {
            Phase::Waiting => self.dial(),
            Phase::Draining => self.hand_over(),
            Phase::Proving if !self.ready => {
                let words = format!("a read from the device did not come back within {}", exact_duration(self.proof));
                self.leave(Err(words), true);
            }
            Phase::Proving => {
                let words = format!("a read did not come back within {}: connecting again", exact_duration(self.proof));
                self.say(Weight::Warning, words);
                self.proof = (self.proof * 2).min(PROOF_MAX);
                self.lose("a read is late");
            }
            Phase::Attached => {
                self.effects.push(Effect::Ask { server: self.server, number: self.phase_number });
            }
            Phase::Doubting => {
                self.server = (self.server + 1) % self.plan.servers;
                self.lose("the server does not answer");
            }
            Phase::Connecting => {
                let words = format!("the kernel did not make the device within {}", exact_duration(KERNEL));
                self.end(Err(words));
            }
            Phase::HandingOver => {
                let words =
                    "the kernel has not taken the new connections yet: it may wait for requests, and those for it";
                self.say(Weight::Warning, words);
            }
            Phase::Sizing => {
                let words = "the kernel has not taken the size yet: it waits for requests that are under way";
                self.say(Weight::Warning, words);
                self.sized();
            }
            Phase::Leaving if !self.cut => {
                self.cut = true;
                self.effects.push(Effect::EndSockets);
                self.wake(FAREWELL);
            }
            Phase::Leaving => self.end(Err("the kernel does not let go of the device".to_owned())),
            // A dial has its own time.
            Phase::Dialing | Phase::Ended => {}
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        match (&self.device, self.phase) {
            (_, Phase::Leaving | Phase::Connecting) => {}
            (None, _) => self.end(Ok(())),
            (Some(_), _) => self.look_in_use(),
        }
    }

    fn look_in_use(&mut self) {
        if let (Some(device), true) = (&self.device, self.phase != Phase::Leaving) {
            self.effects.push(Effect::LookInUse(device.number));
        }
    }

    fn may_leave(&mut self, in_use: bool) {
        if !in_use {
            return self.leave(Ok(()), false);
        }
        if !self.said_in_use {
            self.said_in_use = true;
            let words = "the device is in use (mounted, swap, or below another device): going on until it is not; a second \
                         signal, or `ashlar detach --force`, ends it now";
            self.say(Weight::Warning, words);
        }
        self.effects.push(Effect::Wake(Timer::Look, LOOK));
    }

    /// Somebody else ended the device.
    fn detached(&mut self) {
        self.say(Weight::Info, "the device was detached");
        self.end(Ok(()));
    }

    fn give_up(&mut self, why: String) {
        self.leave(Err(why), true);
    }

    /// Has the kernel end the device. `cut`: whether its sockets are ended first, so that nothing can wait for a server.
    fn leave(&mut self, outcome: Result<(), String>, cut: bool) {
        if self.phase == Phase::Leaving {
            if cut && !self.cut {
                self.cut = true;
                self.effects.push(Effect::EndSockets);
            }
            return;
        }
        let Some(device) = &self.device else {
            // Of a device that the kernel is about to make, the number will be known.
            return match self.phase {
                Phase::Connecting => self.stopping = true,
                _ => self.end(outcome),
            };
        };
        let number = device.number;
        self.outcome = outcome;
        self.cut = cut;
        self.enter(Phase::Leaving);
        if cut {
            self.effects.push(Effect::EndSockets);
        }
        self.effects.push(Effect::Disconnect(number));
        self.wake(FAREWELL);
    }

    fn let_go(&mut self, result: Result<(), KernelError>) {
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        match (outcome, result) {
            (Ok(()), Err(error)) if !matches!(error, KernelError::NotAttached(_)) => self.end(Err(error.to_string())),
            (outcome, _) => self.end(outcome),
        }
    }

    fn end(&mut self, outcome: Result<(), String>) {
        self.enter(Phase::Ended);
        self.effects.push(Effect::EndSockets);
        self.effects.push(Effect::End(outcome));
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
