//! A server over memory, clients over in-memory pipes, and a gate that holds requests of the device up.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar::device::memory::{Call, Hook, MemoryDevice, MemoryExports};
use ashlar::device::{Allocation, Compared, Device, DeviceError, DeviceInfo, Exports, Pieces, Run, Version};
use ashlar::nbd::{Host, Options, Server};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::client::{Client, within};

pub const SIZE: u64 = 1 << 20;

/// A server without listeners: clients come through pipes.
pub struct World {
    pub server: Arc<Server>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl World {
    pub async fn new(options: Options, exports: impl Exports + 'static) -> World {
        let server = Server::bind(options, vec![], Arc::new(exports)).await.unwrap();
        World { server: Arc::new(server), tasks: Mutex::default() }
    }

    /// One export, "disk0", of [`SIZE`] bytes.
    pub async fn small() -> World {
        World::of(Options::default(), MemoryDevice::new(SIZE)).await
    }

    /// One export, "disk0", over that device.
    pub async fn of(options: Options, device: impl Device + 'static) -> World {
        World::new(options, MemoryExports::new().with("disk0", "a disk", Arc::new(device))).await
    }

    /// A client that has just connected, through a pipe of that many bytes in each direction.
    pub fn connect_by(&self, pipe: usize) -> Client {
        self.connect_from(Host::Local, pipe)
    }

    /// A client from another host.
    pub fn connect_from(&self, host: Host, pipe: usize) -> Client {
        let (near, far) = tokio::io::duplex(pipe);
        let server = self.server.clone();
        self.tasks.lock().push(tokio::spawn(async move { server.serve(far, "a test", host).await }));
        Client::new(near)
    }

    pub fn connect(&self) -> Client {
        self.connect_by(64 << 10)
    }

    /// A client in its transmission phase, with structured replies or extended headers and `base:allocation`.
    pub async fn attach_with(&self, style: u32) -> Client {
        let mut client = self.connect();
        client.go_with(style, "disk0").await;
        client
    }

    /// A client in its transmission phase.
    pub async fn attach(&self) -> Client {
        let mut client = self.connect();
        client.go("disk0").await;
        client
    }

    /// All that served the clients is over: nothing leaks, nothing panicked.
    pub async fn all_gone(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            within(task).await.expect("no connection panics");
        }
    }
}

pub fn read_only() -> DeviceInfo {
    DeviceInfo { size: SIZE, block_size: 4096, read_only: true }
}

/// A device that says what a test wants: the runs of which it consists, and where its data cannot be read.
pub struct Scripted {
    pub info: DeviceInfo,
    /// From its start; each has to fill whole bytes of the device.
    pub runs: Vec<Run>,
    /// Reads that begin here fail, with that byte in the error.
    pub bad: Option<(u64, u64)>,
}

impl Scripted {
    /// The part of its runs that lies in a range.
    fn within(&self, offset: u64, len: u64) -> Vec<Run> {
        let (mut at, mut found) = (0, Vec::new());
        for run in &self.runs {
            let (start, end) = (at.max(offset), (at + run.len).min(offset + len));
            if start < end {
                found.push(Run { len: end - start, ..*run });
            }
            at += run.len;
        }
        found
    }
}

#[async_trait]
impl Device for Scripted {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        if let Some((_, byte)) = self.bad.filter(|bad| bad.0 == offset) {
            return Err(DeviceError::Unreadable { offset: byte, why: "the frame is damaged".to_owned() });
        }
        let mut pieces = Pieces::new();
        for run in self.within(offset, len.into()) {
            match run.allocation {
                Allocation::Data => pieces.push(Bytes::from(vec![7; run.len as usize])),
                Allocation::Zero | Allocation::Hole => pieces.push_zeroes(run.len),
            }
        }
        Ok(pieces)
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn cache(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        let mut runs = self.within(offset, len);
        runs.truncate(most);
        Ok(runs)
    }

    /// Two, of which only the first can still be compared with.
    async fn versions(&self) -> Result<Vec<Version>, DeviceError> {
        let version = |name: &str, number| Version { name: name.to_owned(), number };
        Ok(vec![version("monday", 4), version("tuesday", 9)])
    }

    /// Since the first all that is data differs.
    async fn compare(&self, since: &Version, offset: u64, len: u64, most: usize) -> Result<Vec<Compared>, DeviceError> {
        if since.number != 4 {
            return Err(DeviceError::Io(format!("snapshot {} was deleted", since.name)));
        }
        let mut parts: Vec<Compared> = Vec::new();
        for run in self.within(offset, len) {
            let differs = run.allocation == Allocation::Data;
            match parts.last_mut() {
                Some(last) if last.differs == differs => last.len += run.len,
                _ => parts.push(Compared { len: run.len, differs }),
            }
        }
        parts.truncate(most);
        Ok(parts)
    }
}

/// Holds up the calls that a test chose, until it lets them go, and keeps the list of all calls.
#[derive(Clone, Default)]
pub struct Gate(Arc<Shared>);

/// A request that waits for the test's leave.
type Held = (Call, oneshot::Sender<Result<(), DeviceError>>);

#[derive(Default)]
struct Shared {
    held: Mutex<VecDeque<Held>>,
    seen: Mutex<Vec<Call>>,
    changed: Notify,
}

impl Gate {
    /// A hook that holds up the calls for which `holds` is true.
    pub fn hook(&self, holds: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Hook {
        let gate = self.0.clone();
        Arc::new(move |call| {
            gate.seen.lock().push(call);
            let wait = holds(&call).then(|| {
                let (release, wait) = oneshot::channel();
                gate.held.lock().push_back((call, release));
                wait
            });
            gate.changed.notify_waiters();
            Box::pin(async move {
                match wait {
                    // A gate that is gone lets everything fail.
                    Some(wait) => wait.await.unwrap_or_else(|_| Err(DeviceError::Io("the gate is gone".to_owned()))),
                    None => Ok(()),
                }
            })
        })
    }

    /// Waits until `count` calls are held up.
    pub async fn holds(&self, count: usize) {
        self.until(|gate| gate.held.lock().len() >= count).await;
    }

    /// Waits until the call has been made.
    pub async fn saw(&self, call: Call) {
        self.until(|gate| gate.seen.lock().contains(&call)).await;
    }

    /// Lets the call that was held up longest go on, or fail.
    pub fn release(&self, result: Result<(), DeviceError>) -> Call {
        let (call, release) = self.0.held.lock().pop_front().expect("something is held up");
        let _ = release.send(result);
        call
    }

    /// Whether the work behind each call that is held up has been given up.
    pub async fn all_given_up(&self) {
        let held = std::mem::take(&mut *self.0.held.lock());
        for (_, mut release) in held {
            within(release.closed()).await;
        }
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.seen.lock().clone()
    }

    async fn until(&self, done: impl Fn(&Shared) -> bool) {
        let wait = async {
            loop {
                let changed = self.0.changed.notified();
                if done(&self.0) {
                    return;
                }
                changed.await;
            }
        };
        within(wait).await;
    }
}
