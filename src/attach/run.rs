//! Waits for a device and does what [`super::supervisor`] decides. Everything that takes time is a task of its own that ends with an
//! event, so that nothing can keep the next event from being heard.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use super::dial::{Place, ask, dial};
use super::kernel::{Kernel, Sockets};
use super::supervisor::{Effect, Event, Plan, Supervisor, Weight};
use crate::nbd::wire::Succession;
use crate::outside::Workers;

/// What somebody wants of a device that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Leave, once nobody uses it.
    Stop,
    /// Leave now.
    Force,
}

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It is attached, for the first time.
    Ready(u32),
    /// Words for the log.
    Said(Weight, String),
}

/// So many read when a device is to be kept busy: the server takes its time for each, so a few are always under way.
const READERS: usize = 4;

/// Events that wait to be heard.
const EVENTS_MAX: usize = 256;

/// Attaches a volume, and keeps it attached until somebody wants it gone or it cannot go on. The error says why.
/// `client` is a uuid of which nobody else knows: servers take it for the owner of the connections.
pub async fn run(
    kernel: Arc<dyn Kernel>,
    plan: Plan,
    servers: Vec<Place>,
    client: Uuid,
    mut orders: mpsc::Receiver<Order>,
    mut tell: impl FnMut(Notice),
) -> Result<(), String> {
    let (volume, connections) = (plan.volume.clone(), plan.connections);
    let (mut supervisor, mut effects) = Supervisor::new(plan);
    let (events, mut happened) = mpsc::channel(EVENTS_MAX);
    let dials = Arc::default();
    let hands = Hands { kernel, servers, volume, connections, client, dials, events };
    let mut tasks = JoinSet::new();
    tasks.spawn(hands.clone().hear_of_links());
    let (mut dialed, mut held) = (Sockets::new(), Sockets::new());
    let mut is_alone = false;
    let mut readers = Readers::default();
    loop {
        for effect in effects {
            match effect {
                Effect::Say(weight, words) => tell(Notice::Said(weight, words)),
                Effect::Ready(device) => tell(Notice::Ready(device)),
                Effect::EndSockets => end(std::mem::take(&mut held)),
                Effect::End(outcome) => return outcome,
                Effect::KeepBusy { device, sector_size, busy } => {
                    if busy {
                        let is_wanted = readers.renew();
                        for _ in 0..READERS {
                            tasks.spawn(hands.clone().keep_busy(device, sector_size, Arc::clone(&is_wanted)));
                        }
                    } else {
                        readers.stop();
                    }
                }
                Effect::Connect(_) | Effect::HandOver { .. } => {
                    held = std::mem::take(&mut dialed);
                    tasks.spawn(hands.clone().watch(held.clone(), supervisor.generation()));
                    tasks.spawn(hands.clone().give(effect, held.clone()));
                }
                effect => drop(tasks.spawn(hands.clone().carry_out(effect))),
            }
        }
        while tasks.try_join_next().is_some() {}
        let event = tokio::select! {
            happened = happened.recv() => match happened {
                Some(Happened::Dialed(offer, sockets)) => {
                    dialed = sockets;
                    Event::Dialed(Ok(offer))
                }
                Some(Happened::Event(event)) => event,
                // `hands` keeps the channel open.
                None => return Ok(()),
            },
            order = orders.recv(), if !is_alone => match order {
                Some(Order::Stop) => Event::Stop,
                Some(Order::Force) => Event::Force,
                // Nobody is there any more who could want it.
                None => {
                    is_alone = true;
                    Event::Force
                }
            },
        };
        effects = supervisor.handle(event);
    }
}

/// Those that keep a device busy. They end when they are told to, and soon after this.
#[derive(Default)]
struct Readers(Arc<AtomicBool>);

impl Readers {
    /// The flag of the next ones, which is theirs alone: those before may not have seen yet that they are to end.
    fn renew(&mut self) -> Arc<AtomicBool> {
        self.stop();
        self.0 = Arc::new(AtomicBool::new(true));
        Arc::clone(&self.0)
    }

    fn stop(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop();
    }
}

enum Happened {
    Dialed(super::handshake::Offer, Sockets),
    Event(Event),
}

/// What does things, one task for each.
#[derive(Clone)]
struct Hands {
    kernel: Arc<dyn Kernel>,
    servers: Vec<Place>,
    volume: String,
    connections: usize,
    client: Uuid,
    /// How often it was tried to connect.
    dials: Arc<AtomicU64>,
    events: mpsc::Sender<Happened>,
}

impl Hands {
    async fn tell(&self, event: Event) {
        // Whoever listened has ended.
        let _ = self.events.send(Happened::Event(event)).await;
    }

    async fn carry_out(self, effect: Effect) {
        let event = match effect {
            Effect::Dial(server) => return self.dial(server).await,
            Effect::Wake(timer, after) => {
                sleep(after).await;
                Event::Woke(timer)
            }
            Effect::Resize { device, backend, size, sector_size } => {
                Event::Resized(self.kernel.resize(device, backend, size, sector_size).await)
            }
            Effect::LookAttached { device, backend } => {
                Event::StillAttached(self.kernel.hand_over(device, backend, Sockets::new()).await)
            }
            Effect::Read { device, sector_size } => {
                Event::Read(self.kernel.read(device, sector_size).await.map_err(|error| error.to_string()))
            }
            Effect::WaitInKernel { device, sector_size } => {
                // It may fail with the device; what becomes of it is nobody's business.
                let _ = self.kernel.read(device, sector_size).await;
                Event::Waited
            }
            Effect::Flush(device) => Event::Flushed(self.kernel.flush(device).await.map_err(|error| error.to_string())),
            Effect::Tick(device, tick) => return self.kernel.set_tick(device, tick).await,
            Effect::Ask { server, number } => match self.servers.get(server) {
                Some(place) => Event::Told(number, ask(place, &self.volume).await),
                None => return,
            },
            Effect::LookInUse(device) => Event::InUse(self.kernel.in_use(device).await),
            Effect::Disconnect(device) => Event::Disconnected(self.kernel.disconnect(device).await),
            // Done by the loop, without waiting.
            Effect::Connect(_) | Effect::HandOver { .. } | Effect::EndSockets | Effect::KeepBusy { .. } => return,
            Effect::Say(..) | Effect::Ready(_) | Effect::End(_) => return,
        };
        self.tell(event).await;
    }

    async fn dial(self, server: usize) {
        let Some(place) = self.servers.get(server) else { return };
        let generation = self.dials.fetch_add(1, Ordering::Relaxed) + 1;
        let succession = Succession { client: self.client, generation };
        match dial(place, &self.volume, self.connections, succession).await {
            Ok((offer, sockets)) => drop(self.events.send(Happened::Dialed(offer, sockets)).await),
            Err(error) => self.tell(Event::Dialed(Err(error))).await,
        }
    }

    async fn give(self, effect: Effect, sockets: Sockets) {
        let event = match effect {
            Effect::Connect(setup) => Event::Connected(self.kernel.connect(setup, sockets).await),
            Effect::HandOver { device, backend } => {
                Event::HandedOver(self.kernel.hand_over(device, backend, sockets).await)
            }
            _ => return,
        };
        self.tell(event).await;
    }

    async fn keep_busy(self, device: u32, sector_size: u32, is_wanted: Arc<AtomicBool>) {
        self.kernel.keep_busy(device, sector_size, is_wanted).await;
    }

    /// Waits until one of the sockets ends, at either end. What is read from them wakes nobody here.
    async fn watch(self, sockets: Sockets, generation: u64) {
        Workers::Threads.run(move || wait_for_end(&sockets)).await;
        self.tell(Event::SocketEnded(generation)).await;
    }

    async fn hear_of_links(self) {
        loop {
            let device = self.kernel.link_dead().await;
            self.tell(Event::LinkDead(device)).await;
        }
    }
}

fn wait_for_end(sockets: &[Arc<OwnedFd>]) {
    let mut polled: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(&**socket, PollFlags::RDHUP)).collect();
    // It fails for a moment only: interrupted, or out of memory.
    while !polled.is_empty() && !matches!(poll(&mut polled, None), Ok(ended) if ended > 0) {}
}

fn end(sockets: Sockets) {
    for socket in sockets {
        // One that has ended by itself is what is wanted.
        let _ = shutdown(socket.as_fd(), Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_that_have_not_seen_their_end_yet_are_not_called_back_by_the_next() {
        let mut readers = Readers::default();
        let first = readers.renew();
        readers.stop();
        let second = readers.renew();
        assert!(!first.load(Ordering::Relaxed));
        assert!(second.load(Ordering::Relaxed));
        let third = readers.renew();
        assert!(!second.load(Ordering::Relaxed));
        drop(readers);
        assert!(!third.load(Ordering::Relaxed));
    }
}
