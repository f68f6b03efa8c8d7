//! Room for requests: what a client may have in flight, on its connection and on the server.
//!
//! A request is carried out only with a [`Ticket`]; while there is none, the session does not read from the socket, so
//! that TCP slows the client down (rule R12). A ticket is given back in parts, each as soon as what it stands for
//! is over:
//!
//! | part | stands for | held until |
//! | --- | --- | --- |
//! | slot of the connection | a request that is not answered | its reply is written |
//! | bytes of the connection and of the server | payload of a WRITE | the device has taken it |
//! | | data of a READ | the reply is written |
//! | request of the server | work of the device | the device is done |
//!
//! A client that does not fetch its replies keeps its bytes, until it is dropped (`client_timeout`, or `stall_timeout` if
//! others wait). So that such clients cannot hold up the others when they
//! have used up the server's room together (rule R11), every connection has a place of its own for one request of
//! at most [`OWN_PLACE_BYTES`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::options::Options;

/// The most bytes that a request may hold to fit into its connection's own place.
pub const OWN_PLACE_BYTES: u32 = 1 << 20;

/// The room that all connections share.
#[derive(Debug)]
pub struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    byte_count: usize,
    waiting: AtomicUsize,
}

impl Room {
    /// Room for `total_requests_in_flight` and `total_bytes_in_flight`.
    pub fn new(options: &Options) -> Room {
        Room {
            requests: Arc::new(Semaphore::new(options.total_requests_in_flight)),
            bytes: Arc::new(Semaphore::new(options.total_bytes_in_flight)),
            byte_count: options.total_bytes_in_flight,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Bytes of payload and read data that are in flight, and how many may be, but for the places of their own that connections have.
    pub fn bytes_in_flight(&self) -> (u64, u64) {
        let used = self.byte_count.saturating_sub(self.bytes.available_permits());
        (used as u64, self.byte_count as u64)
    }

    /// Whether a request waits for room that other connections hold.
    pub fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn try_share(&self, bytes: u32) -> Option<Share> {
        let request = self.requests.clone().try_acquire_owned().ok()?;
        let bytes = match bytes {
            0 => None,
            bytes => Some(self.bytes.clone().try_acquire_many_owned(bytes).ok()?),
        };
        Some(Share::OfServer { _request: request, bytes })
    }

    async fn share(&self, bytes: u32) -> Share {
        let request = acquire(&self.requests, 1).await;
        let bytes = match bytes {
            0 => None,
            bytes => Some(acquire(&self.bytes, bytes).await),
        };
        Share::OfServer { _request: request, bytes }
    }
}

/// The room of one connection.
#[derive(Debug)]
pub struct Admission {
    slots: Arc<Semaphore>,
    slot_count: usize,
    bytes: Arc<Semaphore>,
    byte_count: usize,
    own_place: Arc<Semaphore>,
    room: Arc<Room>,
}

impl Admission {
    /// Room for `requests_in_flight` and `bytes_in_flight`, within the server's.
    pub fn new(options: &Options, room: Arc<Room>) -> Admission {
        Admission {
            slots: Arc::new(Semaphore::new(options.requests_in_flight)),
            slot_count: options.requests_in_flight,
            bytes: Arc::new(Semaphore::new(options.bytes_in_flight)),
            byte_count: options.bytes_in_flight,
            own_place: Arc::new(Semaphore::new(1)),
            room,
        }
    }

    /// Shows from now on what is in use.
    pub fn gauge(&self) -> Gauge {
        let Admission { slots, slot_count, bytes, byte_count, .. } = self;
        Gauge { slots: InUse(slots.clone(), *slot_count), bytes: InUse(bytes.clone(), *byte_count) }
    }

    /// Waits for room for a request that holds `bytes`, which is at most `max_payload`.
    pub async fn admit(&self, bytes: u32) -> Ticket {
        let mut ticket = self.slot().await;
        if bytes > 0 {
            ticket.bytes = Some(acquire(&self.bytes, bytes).await);
        }
        ticket.share = match self.room.try_share(bytes) {
            Some(share) => share,
            None => self.wait_for_share(bytes).await,
        };
        ticket
    }

    /// Waits for room for a reply without data.
    pub async fn slot(&self) -> Ticket {
        Ticket { slot: acquire(&self.slots, 1).await, bytes: None, share: Share::None }
    }

    /// Waits until every request is answered and its reply written. Nobody may ask for room meanwhile.
    pub async fn all_answered(&self) {
        // Options::check keeps the count far below 2^32.
        let _all = acquire(&self.slots, self.slot_count as u32).await;
    }

    async fn wait_for_share(&self, bytes: u32) -> Share {
        let _waiting = Waiting::new(&self.room.waiting);
        let has_own_place = bytes <= OWN_PLACE_BYTES;
        tokio::select! {
            biased;
            share = self.room.share(bytes) => share,
            place = acquire(&self.own_place, 1), if has_own_place => Share::OwnPlace { _place: place },
        }
    }
}

/// What a connection has in flight.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    slots: InUse,
    bytes: InUse,
}

/// Permits, and how many there are in all.
#[derive(Clone, Debug)]
struct InUse(Arc<Semaphore>, usize);

impl Default for InUse {
    fn default() -> InUse {
        InUse(Arc::new(Semaphore::new(0)), 0)
    }
}

impl InUse {
    fn count(&self) -> u64 {
        self.1.saturating_sub(self.0.available_permits()) as u64
    }
}

impl Gauge {
    /// Requests that are not answered, or whose reply is not fetched.
    pub fn requests_in_flight(&self) -> u64 {
        self.slots.count()
    }

    /// Bytes of payload and read data.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes.count()
    }
}

/// Leave for one request; dropping it gives everything back.
#[derive(Debug)]
pub struct Ticket {
    #[expect(dead_code, reason = "held for its Drop")]
    slot: OwnedSemaphorePermit,
    bytes: Option<OwnedSemaphorePermit>,
    share: Share,
}

impl Ticket {
    /// The device is done; `data` says whether the reply carries bytes. Keeps what the reply still needs.
    pub fn device_is_done(&mut self, data: bool) {
        if !data {
            self.bytes = None;
            self.share = Share::None;
        } else if let Share::OfServer { bytes, .. } = &mut self.share {
            self.share = Share::Data { _bytes: bytes.take() };
        }
    }
}

#[derive(Debug)]
enum Share {
    None,
    OfServer { _request: OwnedSemaphorePermit, bytes: Option<OwnedSemaphorePermit> },
    Data { _bytes: Option<OwnedSemaphorePermit> },
    OwnPlace { _place: OwnedSemaphorePermit },
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    match semaphore.clone().acquire_many_owned(count).await {
        Ok(permit) => permit,
        // Only a closed semaphore fails, and none of ours is ever closed.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn options() -> Options {
        Options {
            requests_in_flight: 4,
            bytes_in_flight: 100,
            total_requests_in_flight: 3,
            total_bytes_in_flight: 150,
            ..Options::default()
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[test]
    fn r12_a_connection_is_bounded_in_requests_and_in_bytes() {
        let room = Arc::new(Room::new(&Options { total_requests_in_flight: 99, ..options() }));
        let admission = Admission::new(&options(), room);
        let first = now(admission.admit(100)).unwrap();
        assert!(now(admission.admit(1)).is_none());
        drop(first);
        let mut slots: Vec<_> = (0..4).map(|_| now(admission.admit(1)).unwrap()).collect();
        assert!(now(admission.slot()).is_none());
        assert!(now(admission.all_answered()).is_none());
        slots.pop();
        assert!(now(admission.slot()).is_some());
        slots.clear();
        assert!(now(admission.all_answered()).is_some());
    }

    #[test]
    fn r11_when_others_hold_the_room_a_connection_has_one_place_of_its_own() {
        let room = Arc::new(Room::new(&options()));
        let [greedy, other] = [(); 2].map(|()| Admission::new(&options(), room.clone()));
        let _held = [now(greedy.admit(99)).unwrap(), now(other.admit(51)).unwrap()];
        let own = now(other.admit(10)).expect("its own place");
        assert!(now(other.admit(10)).is_none(), "one request only");
        drop(own);
        assert!(now(other.admit(10)).is_some());
    }

    #[test]
    fn a_request_too_large_for_its_own_place_waits_and_is_seen_waiting() {
        let large = OWN_PLACE_BYTES + 1;
        let options =
            Options { bytes_in_flight: 2 * large as usize, total_bytes_in_flight: large as usize, ..options() };
        let room = Arc::new(Room::new(&options));
        let [one, two] = [(); 2].map(|()| Admission::new(&options, room.clone()));
        let held = now(one.admit(large)).unwrap();
        {
            let mut waiting = std::pin::pin!(two.admit(large));
            assert!(waiting.as_mut().now_or_never().is_none());
            assert!(room.is_contended());
            drop(held);
            assert!(waiting.now_or_never().is_some());
        }
        assert!(!room.is_contended());
    }

    #[test]
    fn when_the_device_is_done_only_data_keeps_bytes() {
        let room = Arc::new(Room::new(&options()));
        let admission = Admission::new(&options(), room.clone());
        let mut write = now(admission.admit(60)).unwrap();
        let mut read = now(admission.admit(40)).unwrap();
        assert_eq!((room.requests.available_permits(), room.bytes.available_permits()), (1, 50));
        write.device_is_done(false);
        read.device_is_done(true);
        assert_eq!((room.requests.available_permits(), room.bytes.available_permits()), (3, 110));
        assert_eq!((admission.slots.available_permits(), admission.bytes.available_permits()), (2, 60));
        drop((read, write));
        assert_eq!((room.bytes.available_permits(), admission.bytes.available_permits()), (150, 100));
    }
}
