//! Linux: its NBD client over generic netlink.
//!
//! One thread makes all changes, in order, and keeps its socket for as long as the process lives: kernels to come shut a
//! device down when the socket closes that connected it. Its number is what /sys shows of the device, and so leads to this process. A
//! second thread hears of dead connections. Neither is ever waited for by anything on the way of data.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use tokio::sync::{Mutex, mpsc as channel, oneshot};

use super::kernel::{Kernel, KernelError, Setup, Sockets};
use super::netlink::{self, DeviceStatus, Line, Message};
use super::supervisor::TICK;
use super::sysfs;
use crate::outside::Workers;

/// Dead connections that have been heard of and not been looked at.
const HEARD_MAX: usize = 1024;

/// The kernel of this host.
pub struct Linux {
    asks: mpsc::Sender<(Message, oneshot::Sender<io::Result<Vec<Message>>>)>,
    dead: Mutex<channel::Receiver<u32>>,
}

impl Linux {
    /// Opens the sockets, and starts the threads. They end with the process.
    pub fn open() -> Result<Linux, KernelError> {
        let line = open_line()?;
        let ears = open_line()?;
        ears.listen()?;
        let (asks, asked) = mpsc::channel();
        let (tell, dead) = channel::channel(HEARD_MAX);
        drop(tokio::spawn(Workers::Threads.run(move || answer(line, &asked))));
        drop(tokio::spawn(Workers::Threads.run(move || hear(&ears, &tell))));
        Ok(Linux { asks, dead: Mutex::new(dead) })
    }

    /// The devices that there are.
    pub async fn devices(&self) -> Result<Vec<DeviceStatus>, KernelError> {
        let answers = self.ask(Message::status()).await?;
        Ok(answers.iter().flat_map(Message::devices).collect())
    }

    async fn ask(&self, message: Message) -> io::Result<Vec<Message>> {
        let (tell, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that speaks to the kernel is gone");
        self.asks.send((message, tell)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn open_line() -> Result<Line, KernelError> {
    Line::open().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KernelError::NoClient,
        _ => error.into(),
    })
}

/// Makes changes, one after the other.
fn answer(mut line: Line, asked: &mpsc::Receiver<(Message, oneshot::Sender<io::Result<Vec<Message>>>)>) {
    while let Ok((message, tell)) = asked.recv() {
        // Whoever asked may have gone.
        let _ = tell.send(line.ask(message));
    }
}

/// Hears of dead connections until nobody wants to know.
fn hear(ears: &Line, tell: &channel::Sender<u32>) {
    loop {
        match ears.hear() {
            Ok(message) if message.command == netlink::command::LINK_DEAD => {
                if message.device().is_some_and(|device| tell.blocking_send(device).is_err()) {
                    return;
                }
            }
            Ok(_) => {}
            // More was said than the socket could hold. Our own sockets show the rest.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
            Err(error) => return tracing::warn!("the kernel cannot be listened to any more: {error}"),
        }
    }
}

fn refusal(device: u32, error: io::Error) -> KernelError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => KernelError::Denied,
        Some(Errno::BUSY) => KernelError::Busy(device),
        // What RECONFIGURE says of a device that is being taken down, or is not there.
        Some(Errno::INVAL | Errno::NODEV) => KernelError::NotAttached(device),
        _ => KernelError::Other(error),
    }
}

#[async_trait]
impl Kernel for Linux {
    async fn connect(&self, setup: Setup, sockets: Sockets) -> Result<u32, KernelError> {
        let answers = self.ask(Message::connect(&setup, &sockets)).await.map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                // Here it is about what was asked for.
                Some(Errno::INVAL | Errno::NODEV) => KernelError::Other(error),
                _ => refusal(setup.device.unwrap_or(0), error),
            }
        })?;
        let device = answers.iter().find_map(Message::device).or(setup.device);
        let device = device.ok_or_else(|| io::Error::other("the kernel does not say which device it made"))?;
        if setup.timeout.is_zero() {
            self.set_tick(device, TICK).await;
        }
        Ok(device)
    }

    async fn hand_over(&self, device: u32, backend: String, sockets: Sockets) -> Result<(), KernelError> {
        let asked = self.ask(Message::hand_over(device, &backend, &sockets)).await;
        asked.map(drop).map_err(|error| refusal(device, error))
    }

    async fn resize(&self, device: u32, backend: String, size: u64, sector_size: u32) -> Result<(), KernelError> {
        let asked = self.ask(Message::resize(device, &backend, size, sector_size)).await;
        asked.map(drop).map_err(|error| refusal(device, error))
    }

    async fn disconnect(&self, device: u32) -> Result<(), KernelError> {
        let asked = self.ask(Message::disconnect(device)).await;
        asked.map(drop).map_err(|error| refusal(device, error))
    }

    async fn read(&self, device: u32, sector_size: u32) -> io::Result<()> {
        Workers::Threads.run(move || sysfs::read_direct(device, sector_size)).await
    }

    async fn keep_busy(&self, device: u32, sector_size: u32, is_wanted: Arc<AtomicBool>) {
        let read = move || sysfs::read_while(device, sector_size, || is_wanted.load(Ordering::Relaxed));
        if let Err(error) = Workers::Threads.run(read).await {
            tracing::debug!(device, "it is not kept busy: {error}");
        }
    }

    async fn flush(&self, device: u32) -> io::Result<()> {
        Workers::Threads.run(move || sysfs::flush(device)).await
    }

    async fn set_tick(&self, device: u32, tick: Duration) {
        // On a thread of its own: kernels since 6.11 let it wait for the requests that are under way.
        let set = Workers::Threads.run(move || sysfs::set_request_tick(device, tick.as_millis())).await;
        if let Err(error) = set {
            tracing::warn!("requests may wait up to 30 s after a reconnect: {error}");
        }
    }

    async fn in_use(&self, device: u32) -> bool {
        // One that cannot be opened is taken to be in use, so that nothing is pulled out from under it.
        Workers::Threads.run(move || sysfs::is_claimed(device).unwrap_or(true)).await
    }

    async fn link_dead(&self) -> u32 {
        match self.dead.lock().await.recv().await {
            Some(device) => device,
            None => std::future::pending().await,
        }
    }
}
