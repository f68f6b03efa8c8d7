//! `ashlar attach` over a real server and a kernel of our own, which treats sockets as Linux does: it keeps requests while it has no
//! live connection, and ignores new sockets while an old one lives.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ashlar::attach::dial::Place as Server;
use ashlar::attach::kernel::{Kernel, KernelError, Setup, Sockets};
use ashlar::attach::run::{self, Notice, Order};
use ashlar::attach::supervisor::{Plan, QUICK_TICK, TICK};
use ashlar::nbd::wire::{RequestHeader, SIMPLE_REPLY_MAGIC, command};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::program::{Place, Serving};

const DEVICE: u32 = 7;
const BLOCK: usize = 4096;

/// A request that waits for its reply: how long the data of the reply is, and who wants it.
type Waiting = HashMap<u64, (usize, oneshot::Sender<Vec<u8>>)>;

/// A connection that the kernel has.
struct Link {
    write: Mutex<OwnedWriteHalf>,
    waiting: parking_lot::Mutex<Waiting>,
    dead: watch::Sender<bool>,
}

#[derive(Clone, Default)]
enum State {
    #[default]
    Free,
    Attached(Arc<Link>),
    Disconnected,
}

/// The kernel.
struct Fake {
    state: watch::Sender<State>,
    setups: parking_lot::Mutex<Vec<Setup>>,
    sizes: parking_lot::Mutex<Vec<u64>>,
    ticks: parking_lot::Mutex<Vec<Duration>>,
    ignored: AtomicUsize,
    /// Those that keep it busy.
    readers: watch::Sender<usize>,
    cookies: AtomicU64,
    died: mpsc::UnboundedSender<u32>,
    deaths: Mutex<mpsc::UnboundedReceiver<u32>>,
}

impl Fake {
    fn new() -> Arc<Fake> {
        let (died, deaths) = mpsc::unbounded_channel();
        Arc::new(Fake {
            state: watch::Sender::default(),
            setups: parking_lot::Mutex::default(),
            sizes: parking_lot::Mutex::default(),
            ticks: parking_lot::Mutex::default(),
            ignored: AtomicUsize::new(0),
            readers: watch::Sender::default(),
            cookies: AtomicU64::new(1),
            died,
            deaths: Mutex::new(deaths),
        })
    }

    fn link(&self, sockets: &Sockets) -> Arc<Link> {
        let stream = StdUnixStream::from(sockets[0].try_clone().unwrap());
        stream.set_nonblocking(true).unwrap();
        let (read, write) = UnixStream::from_std(stream).unwrap().into_split();
        let link = Arc::new(Link {
            write: Mutex::new(write),
            waiting: parking_lot::Mutex::default(),
            dead: watch::Sender::new(false),
        });
        tokio::spawn(receive(Arc::clone(&link), read, self.died.clone()));
        link
    }

    /// What a program on the device does: it waits as long as it takes.
    async fn request(&self, command: u16, offset: u64, len: usize, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut state = self.state.subscribe();
        loop {
            let is_of_use = |state: &State| match state {
                State::Attached(link) => !*link.dead.borrow(),
                State::Disconnected => true,
                State::Free => false,
            };
            let link = match &*state.wait_for(is_of_use).await.unwrap() {
                State::Attached(link) => Arc::clone(link),
                _ => return Err(io::Error::other("EIO")),
            };
            let cookie = self.cookies.fetch_add(1, Ordering::Relaxed);
            let (tell, reply) = oneshot::channel();
            let expected = if command == command::READ { len } else { 0 };
            link.waiting.lock().insert(cookie, (expected, tell));
            let header = RequestHeader { flags: 0, command, cookie, offset, len: len as u64 };
            let sent = link.write.lock().await.write_all(&[&header.encode()[..], data].concat()).await;
            if sent.is_ok()
                && !*link.dead.borrow()
                && let Ok(data) = reply.await
            {
                return Ok(data);
            }
            // It is sent again on the next connection.
            link.dead.subscribe().wait_for(|dead| *dead).await.unwrap();
            state.mark_changed();
        }
    }

    async fn write(&self, block: u64, byte: u8) -> io::Result<()> {
        self.request(command::WRITE, block * BLOCK as u64, BLOCK, &[byte; BLOCK]).await.map(drop)
    }

    async fn holds(&self, block: u64, byte: u8) -> bool {
        self.request(command::READ, block * BLOCK as u64, BLOCK, &[]).await.unwrap() == [byte; BLOCK]
    }

    async fn is_read_by(&self, readers: usize) {
        within(self.readers.subscribe().wait_for(|count| *count == readers)).await.unwrap();
    }

    fn free(&self) -> KernelError {
        KernelError::NotAttached(DEVICE)
    }
}

/// Takes replies until the connection ends, as the kernel's receiver does.
async fn receive(link: Arc<Link>, mut read: OwnedReadHalf, died: mpsc::UnboundedSender<u32>) {
    let all = async {
        loop {
            assert_eq!(read.read_u32().await?, SIMPLE_REPLY_MAGIC);
            assert_eq!(read.read_u32().await?, 0, "a program must see no error");
            let cookie = read.read_u64().await?;
            let (len, tell) = link.waiting.lock().remove(&cookie).unwrap();
            let mut data = vec![0; len];
            read.read_exact(&mut data).await?;
            let _ = tell.send(data);
        }
        #[allow(unreachable_code)] // names the type
        Ok::<(), io::Error>(())
    };
    let _ = all.await;
    link.dead.send_replace(true);
    link.waiting.lock().clear();
    let _ = died.send(DEVICE);
}

#[async_trait]
impl Kernel for Fake {
    async fn connect(&self, setup: Setup, sockets: Sockets) -> Result<u32, KernelError> {
        let link = self.link(&sockets);
        self.setups.lock().push(setup);
        self.state.send_replace(State::Attached(link));
        Ok(DEVICE)
    }

    async fn hand_over(&self, _: u32, backend: String, sockets: Sockets) -> Result<(), KernelError> {
        assert_eq!(self.setups.lock().last().unwrap().backend, backend);
        let State::Attached(link) = self.state.borrow().clone() else { return Err(self.free()) };
        match (sockets.is_empty(), *link.dead.borrow()) {
            (true, _) => {}
            (false, true) => drop(self.state.send_replace(State::Attached(self.link(&sockets)))),
            (false, false) => drop(self.ignored.fetch_add(1, Ordering::Relaxed)),
        }
        Ok(())
    }

    async fn resize(&self, _: u32, _: String, size: u64, _: u32) -> Result<(), KernelError> {
        self.sizes.lock().push(size);
        Ok(())
    }

    async fn disconnect(&self, _: u32) -> Result<(), KernelError> {
        match self.state.send_replace(State::Disconnected) {
            State::Attached(_) => Ok(()),
            _ => Err(self.free()),
        }
    }

    async fn read(&self, _: u32, sector_size: u32) -> io::Result<()> {
        self.request(command::READ, 0, sector_size as usize, &[]).await.map(drop)
    }

    async fn keep_busy(&self, _: u32, sector_size: u32, is_wanted: Arc<AtomicBool>) {
        // The kernel's reader has a thread of its own: it goes on also if nobody waits for it.
        let (readers, is_still) = (self.readers.clone(), Arc::clone(&is_wanted));
        readers.send_modify(|count| *count += 1);
        tokio::spawn(async move {
            while is_still.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            readers.send_modify(|count| *count -= 1);
        });
        while is_wanted.load(Ordering::Relaxed) && self.read(DEVICE, sector_size).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn flush(&self, _: u32) -> io::Result<()> {
        self.request(command::FLUSH, 0, 0, &[]).await.map(drop)
    }

    async fn set_tick(&self, _: u32, tick: Duration) {
        self.ticks.lock().push(tick);
    }

    async fn in_use(&self, _: u32) -> bool {
        false
    }

    async fn link_dead(&self) -> u32 {
        self.deaths.lock().await.recv().await.unwrap()
    }
}

/// A device that is attached.
struct Attached {
    kernel: Arc<Fake>,
    orders: mpsc::Sender<Order>,
    said: mpsc::UnboundedReceiver<String>,
    end: JoinHandle<Result<(), String>>,
}

async fn attach(servers: &[&Serving]) -> Attached {
    let kernel = Fake::new();
    let places: Vec<Server> = servers.iter().map(|serving| Server::Unix(serving.socket())).collect();
    let plan = Plan {
        volume: "disk0".into(),
        servers: places.len(),
        device: None,
        connections: 1,
        sector_size: None,
        read_only: false,
        timeout: Duration::ZERO,
        dead_timeout: Duration::from_secs(3600),
    };
    let (orders, ordered) = mpsc::channel(1);
    let (tell, mut said) = mpsc::unbounded_channel();
    let told = move |notice| {
        let words = match notice {
            Notice::Ready(device) => format!("ready {device}"),
            Notice::Said(_, words) => words,
        };
        let _ = tell.send(words);
    };
    let end = tokio::spawn(run::run(kernel.clone(), plan, places, uuid::Uuid::from_u128(1), ordered, told));
    assert_eq!(within(said.recv()).await.unwrap(), format!("ready {DEVICE}"));
    Attached { kernel, orders, said, end }
}

/// Nothing is waited for for ever.
async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(150), what).await.unwrap()
}

impl Attached {
    async fn hears(&mut self, words: &str) {
        within(async { while !self.said.recv().await.unwrap().contains(words) {} }).await;
    }

    async fn leaves(self) {
        self.orders.send(Order::Stop).await.unwrap();
        assert_eq!(within(self.end).await.unwrap(), Ok(()));
        assert!(self.kernel.write(0, 1).await.is_err());
        self.kernel.is_read_by(0).await;
    }

    /// The device was given up: why, and programs know.
    async fn given_up(self) -> String {
        let why = within(self.end).await.unwrap().unwrap_err();
        assert!(self.kernel.write(0, 1).await.is_err());
        why
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_outlives_its_server_and_programs_see_no_error() {
    let place = Place::new();
    let mut serving = place.serve(&[]);
    let mut attached = attach(&[&serving]).await;
    assert_eq!(attached.kernel.setups.lock()[0].size, 10 << 30);
    let (stop, stopped) = watch::channel(false);
    let kernel = attached.kernel.clone();
    let load = tokio::spawn(async move {
        let mut written = 0;
        while !*stopped.borrow() {
            kernel.write(written % 256, written as u8).await.unwrap();
            written += 1;
            if written.is_multiple_of(16) {
                kernel.request(command::FLUSH, 0, 0, &[]).await.unwrap();
            }
        }
        written
    });
    for round in 0..4 {
        // A planned stop answers no request with an error either.
        if round % 2 == 0 {
            serving.kill()
        } else {
            serving.stop()
        }
        attached.hears("programs wait").await;
        serving = place.serve(&[]);
        attached.hears("connected again").await;
    }
    stop.send_replace(true);
    let written: u64 = within(load).await.unwrap();
    for block in written.saturating_sub(256)..written {
        assert!(attached.kernel.holds(block % 256, block as u8).await, "block {block} of {written}");
    }
    assert_eq!(attached.kernel.ignored.load(Ordering::Relaxed), 0, "sockets were handed over while old ones lived");
    assert_eq!(*attached.kernel.sizes.lock(), [10 << 30; 4]);
    attached.leaves().await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_grows_with_its_volume_also_while_it_is_served() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut attached = attach(&[&serving]).await;
    attached.kernel.write(3, 5).await.unwrap();
    place.ok(&["resize", "disk0", "20G"]);
    attached.hears("the volume has grown: the disk has 20 GiB now").await;
    assert_eq!(*attached.kernel.sizes.lock(), [20 << 30]);
    assert!(attached.kernel.holds(3, 5).await);
    // While nobody tells.
    serving.stop();
    attached.hears("programs wait").await;
    place.ok(&["resize", "disk0", "30G"]);
    let serving = place.serve(&[]);
    attached.hears("the volume has grown: the disk has 30 GiB now").await;
    assert_eq!(*attached.kernel.sizes.lock(), [20 << 30, 20 << 30, 30 << 30]);
    attached.leaves().await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_hand_over_to_another_server_is_no_break() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let (first, second) = (["--state", "first"], ["--state", "second"]);
    let serving = place.serve(&second);
    let there = serving.socket();
    serving.stop();
    let serving = place.serve(&first);
    let mut attached = attach(&[&serving]).await;
    attached.kernel.write(3, 5).await.unwrap();
    serving.stop();
    attached.hears("programs wait").await;
    // The address is that of whoever serves now.
    let serving = place.serve(&second);
    std::os::unix::fs::symlink(there, place.path("first/ashlar.sock")).unwrap();
    attached.hears("connected again").await;
    assert!(attached.kernel.holds(3, 5).await);
    attached.leaves().await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_hears_beforehand_that_its_volume_will_be_handed_over() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut attached = attach(&[&serving]).await;
    attached.kernel.write(3, 5).await.unwrap();
    place.ok(&["handoff", "disk0", "--to", "host2"]);
    assert_eq!(*attached.kernel.ticks.lock(), [QUICK_TICK]);
    attached.kernel.is_read_by(4).await;
    attached.hears("volume disk0 moved to host2").await;
    place.ok(&["handoff", "disk0", "--back"]);
    attached.hears("connected again").await;
    assert!(attached.kernel.holds(3, 5).await);
    within(async {
        while *attached.kernel.ticks.lock() != [QUICK_TICK, TICK] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    attached.kernel.is_read_by(0).await;
    attached.leaves().await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_left_while_its_server_leaves_is_not_kept_busy() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let attached = attach(&[&serving]).await;
    place.ok(&["handoff", "disk0", "--to", "host2"]);
    attached.kernel.is_read_by(4).await;
    attached.orders.send(Order::Force).await.unwrap();
    within(attached.end).await.unwrap().unwrap();
    attached.kernel.is_read_by(0).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_acknowledged_changes_ends_the_device() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = place.serve(&["disk0"]);
    let mut attached = attach(&[&serving]).await;
    attached.kernel.request(command::FLUSH, 0, 0, &[]).await.unwrap();
    // Acknowledged, and not flushed: it is in the journal of this server alone.
    attached.kernel.write(3, 5).await.unwrap();
    serving.kill();
    attached.hears("programs wait").await;
    std::fs::rename(place.path("ashlar-state"), place.path("lost")).unwrap();
    let serving = place.serve(&["disk0", "--takeover"]);
    let why = attached.given_up().await;
    assert!(why.starts_with("changes may be missing that were acknowledged: since this device spoke"), "{why}");
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_volume_of_the_name_ends_the_device() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut attached = attach(&[&serving]).await;
    serving.stop();
    attached.hears("programs wait").await;
    place.ok(&["delete", "disk0", "--yes"]);
    place.ok(&["create", "disk0", "--size", "10G"]);
    let serving = place.serve(&[]);
    let why = attached.given_up().await;
    assert!(why.starts_with("the server has another volume of that name now"), "{why}");
    serving.stop();
}
