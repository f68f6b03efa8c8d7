//! What a kernel with an NBD client can be asked. The real one is [`super::linux`]; a test brings its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;

/// Sockets in their transmission phase. The kernel holds its own references to them.
pub type Sockets = Vec<Arc<OwnedFd>>;

/// How a device is to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Which device; `None` lets the kernel choose one that is free.
    pub device: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// The logical block size in bytes.
    pub sector_size: u32,
    /// What the export can do (transmission flags of the protocol).
    pub flags: u16,
    /// After how long an unanswered request is taken to another connection; zero is never.
    pub timeout: Duration,
    /// How long requests wait while there is no connection.
    pub dead_timeout: Duration,
    /// What is behind the device, so that nothing else is put there.
    pub backend: String,
}

/// Why the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It has no NBD client, or the module is not loaded.
    #[error("this kernel has no NBD client; load it with `modprobe nbd`")]
    NoClient,
    /// Only root may do that.
    #[error("only root (CAP_SYS_ADMIN) may set up NBD devices")]
    Denied,
    /// The device is in use.
    #[error("/dev/nbd{0} is attached already; `ashlar attach --list` shows to what")]
    Busy(u32),
    /// The device is not attached, or not any more.
    #[error("/dev/nbd{0} is not attached")]
    NotAttached(u32),
    /// Anything else.
    #[error("the kernel refuses: {0}")]
    Other(#[from] io::Error),
}

/// A kernel with an NBD client. A call may take as long as it likes, and the others go on meanwhile, unless they change a device too.
#[async_trait]
pub trait Kernel: Send + Sync + 'static {
    /// Makes a device of the sockets, and returns its number.
    async fn connect(&self, setup: Setup, sockets: Sockets) -> Result<u32, KernelError>;

    /// Gives a device new sockets in place of dead ones. A kernel ignores those for which none is dead.
    async fn hand_over(&self, device: u32, backend: String, sockets: Sockets) -> Result<(), KernelError>;

    /// Tells a device its size. It may wait for requests that are under way.
    async fn resize(&self, device: u32, backend: String, size: u64, sector_size: u32) -> Result<(), KernelError>;

    /// Ends the connections of a device. Requests that wait fail.
    async fn disconnect(&self, device: u32) -> Result<(), KernelError>;

    /// Reads the first bytes of a device, past every cache.
    async fn read(&self, device: u32, sector_size: u32) -> io::Result<()>;

    /// Reads the first bytes of a device again and again, past every cache, as long as that is wanted and works.
    async fn keep_busy(&self, device: u32, sector_size: u32, is_wanted: Arc<AtomicBool>);

    /// Has everything that was written to a device flushed.
    async fn flush(&self, device: u32) -> io::Result<()>;

    /// Has the kernel look so often at a request of a device that has no answer. It may wait for requests that are under way.
    async fn set_tick(&self, device: u32, tick: Duration);

    /// Whether a filesystem, swap or another device is on it.
    async fn in_use(&self, device: u32) -> bool;

    /// Waits until the kernel gives up a connection of a device, and returns the device's number.
    async fn link_dead(&self) -> u32;
}
