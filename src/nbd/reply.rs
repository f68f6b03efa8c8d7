//! Replies on their way out: one batch that requests add to in any order and that is written in few system calls.
//!
//! An [`Answer`] is the duty to reply to one request: it is fulfilled once by [`Answer::send`], and if it is
//! dropped instead, because the work panicked or was given up, the client gets NBD_EIO. What a reply looks like is decided in
//! [`super::chunk`].

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;

use super::admission::Ticket;
use super::chunk::{self, Asked, Done, Failure};
use super::wire::Errno;
use crate::device::DeviceError;

/// The one place where a failure of a device becomes an error of the protocol (proto.md, "Error values").
pub fn errno(error: &DeviceError) -> Errno {
    match error {
        DeviceError::Io(_) | DeviceError::Unreadable { .. } | DeviceError::Fenced(_) => Errno::Io,
        DeviceError::ReadOnly(_) => Errno::Perm,
        DeviceError::BeyondEnd => Errno::NoSpace,
        DeviceError::ShuttingDown => Errno::Shutdown,
    }
}

/// The replies of one connection that are not written yet.
#[derive(Debug, Default)]
pub struct Replies {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    batch: Batch,
    closed: bool,
    /// Who writes them, if it waits.
    writer: Option<Waker>,
    /// Whoever writes them will look by itself in a moment, and need not be woken.
    looks_soon: bool,
}

impl Replies {
    /// Waits for replies, and takes all there are into `batch`, which is empty.
    pub async fn take(&self, batch: &mut Batch) {
        poll_fn(|context| self.poll_take(context, batch)).await;
    }

    /// As [`Replies::take`]. One at a time may wait.
    fn poll_take(&self, context: &mut Context<'_>, batch: &mut Batch) -> Poll<()> {
        let mut queue = self.queue.lock();
        std::mem::swap(batch, &mut queue.batch);
        if batch.has_remaining() {
            return Poll::Ready(());
        }
        match &mut queue.writer {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Runs `work`, which may answer requests at once, on the task that writes the replies. Says with its result whether
    /// there is something to write: nobody was woken for it. Waking a task that is running costs a wake-up of a
    /// thread that then has nothing to do.
    pub fn watch<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        self.queue.lock().looks_soon = true;
        let result = work();
        let mut queue = self.queue.lock();
        queue.looks_soon = false;
        (result, queue.batch.has_remaining())
    }

    /// Throws away what is queued and whatever comes later: the client is gone.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.batch = Batch::default();
    }

    fn push(&self, asked: &Asked, result: Result<Done, Failure>, ticket: Ticket) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.batch.push(asked, result, ticket);
            let writer = if queue.looks_soon { None } else { queue.writer.take() };
            drop(queue);
            if let Some(writer) = writer {
                writer.wake();
            }
        }
    }
}

/// The duty to answer one request.
#[derive(Debug)]
pub struct Answer {
    asked: Asked,
    replies: Arc<Replies>,
    ticket: Option<Ticket>,
}

impl Answer {
    /// Takes on the duty for that request.
    pub fn new(asked: Asked, replies: Arc<Replies>, ticket: Ticket) -> Answer {
        Answer { asked, replies, ticket: Some(ticket) }
    }

    /// Fulfils it.
    pub fn send(mut self, result: Result<Done, Failure>) {
        self.fulfil(result);
    }

    /// Leaves the request without a reply. The connection has to end then.
    pub fn withhold(mut self) {
        self.ticket = None;
    }

    fn fulfil(&mut self, result: Result<Done, Failure>) {
        if let Some(mut ticket) = self.ticket.take() {
            ticket.device_is_done(result.as_ref().is_ok_and(Done::has_data));
            self.replies.push(&self.asked, result, ticket);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.fulfil(Err(Failure { errno: Errno::Io, why: "the request was given up".into(), offset: None }));
    }
}

/// Replies in the order in which they will be written. As a [`Buf`] it is what remains to be written; a ticket is
/// given back when the last byte of its reply has been.
#[derive(Debug, Default)]
pub struct Batch {
    /// Sealed bytes: runs of headers, and pieces of data between them.
    chunks: VecDeque<Bytes>,
    /// Headers after the last chunk.
    heads: BytesMut,
    /// Bytes not yet written.
    remaining: usize,
    /// Bytes written since the batch began.
    written: u64,
    /// For each reply: at which count of bytes written it is out, and what is given back then.
    tickets: VecDeque<(u64, Ticket)>,
}

impl Batch {
    /// Adds a reply.
    pub fn push(&mut self, asked: &Asked, result: Result<Done, Failure>, ticket: Ticket) {
        chunk::put(self, asked, result);
        self.tickets.push_back((self.written + self.remaining as u64, ticket));
    }

    /// Adds to the reply what `put` appends.
    pub fn head(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let before = self.heads.len();
        put(&mut self.heads);
        self.remaining += self.heads.len() - before;
    }

    /// Adds data to the reply, not empty, as it is.
    pub fn data(&mut self, data: Bytes) {
        self.seal();
        self.remaining += data.len();
        self.chunks.push_back(data);
    }

    fn seal(&mut self) {
        if !self.heads.is_empty() {
            self.chunks.push_back(self.heads.split().freeze());
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&self.heads, |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self.chunks.iter().map(|chunk| &chunk[..]).chain([&self.heads[..]]).filter(|bytes| !bytes.is_empty());
        slices.iter_mut().zip(all).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count()
    }

    fn advance(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                self.heads.advance(left);
                break;
            };
            let here = left.min(chunk.len());
            chunk.advance(here);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
            left -= here;
        }
        self.remaining -= count;
        self.written += count as u64;
        while self.tickets.front().is_some_and(|&(end, _)| end <= self.written) {
            self.tickets.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::super::admission::{Admission, Room};
    use super::super::options::Options;
    use super::super::wire::{RequestHeader, Style};
    use super::*;

    fn asked(cookie: u64) -> Asked {
        Asked::new(&RequestHeader { flags: 0, command: 0, cookie, offset: 0, len: 1 << 20 }, Style::Simple)
    }

    fn admission() -> Admission {
        let options = Options::default();
        Admission::new(&options, Arc::new(Room::new(&options)))
    }

    fn ticket(admission: &Admission) -> Ticket {
        admission.slot().now_or_never().unwrap()
    }

    #[test]
    fn errors_of_a_device_have_the_protocols_numbers() {
        let number = |error: DeviceError| errno(&error) as u32;
        assert_eq!(number(DeviceError::Io(String::new())), 5);
        assert_eq!(number(DeviceError::Unreadable { offset: 0, why: String::new() }), 5);
        assert_eq!(number(DeviceError::Fenced(String::new())), 5);
        assert_eq!(number(DeviceError::ReadOnly(String::new())), 1);
        assert_eq!(number(DeviceError::BeyondEnd), 28);
        assert_eq!(number(DeviceError::ShuttingDown), 108);
    }

    #[test]
    fn an_answer_that_is_dropped_is_an_io_error() {
        let (admission, replies) = (admission(), Arc::new(Replies::default()));
        drop(Answer::new(asked(0x4241), replies.clone(), ticket(&admission)));
        let mut batch = Batch::default();
        replies.take(&mut batch).now_or_never().unwrap();
        assert_eq!(&batch.copy_to_bytes(16)[..], b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0BA");
        assert!(admission.all_answered().now_or_never().is_some());
    }

    #[test]
    fn after_close_answers_are_thrown_away_and_give_back_their_tickets() {
        let (admission, replies) = (admission(), Arc::new(Replies::default()));
        Answer::new(asked(1), replies.clone(), ticket(&admission)).send(Ok(Done::Nothing));
        let late = Answer::new(asked(2), replies.clone(), ticket(&admission));
        replies.close();
        late.send(Ok(Done::Data([Bytes::from_static(b"data")].into_iter().collect())));
        assert!(admission.all_answered().now_or_never().is_some());
        assert!(replies.take(&mut Batch::default()).now_or_never().is_none());
    }

    proptest! {
        /// However the bytes are taken out, they are the replies one after the other, and the tickets come back with
        /// the last byte of each.
        #[test]
        fn a_batch_is_its_replies_in_a_row(
            replies in prop::collection::vec((any::<u64>(), prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..4)), 1..20),
            steps in prop::collection::vec((1usize..40, any::<bool>()), 1..60),
        ) {
            let admission = admission();
            let (mut batch, mut expected, mut ends) = (Batch::default(), Vec::new(), Vec::new());
            for (cookie, pieces) in &replies {
                expected.extend(0x6744_6698_u32.to_be_bytes().into_iter().chain([0; 4]).chain(cookie.to_be_bytes()));
                expected.extend(pieces.iter().flatten());
                ends.push(expected.len());
                let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
                batch.push(&asked(*cookie), Ok(Done::Data(pieces)), ticket(&admission));
            }
            let mut got = Vec::new();
            for (count, vectored) in steps.into_iter().cycle() {
                prop_assert_eq!(batch.remaining(), expected.len() - got.len());
                prop_assert_eq!(batch.tickets.len(), ends.iter().filter(|&&end| end > got.len()).count());
                if !batch.has_remaining() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 3];
                let used = if vectored { batch.chunks_vectored(&mut slices) } else { 0 };
                let seen: Vec<u8> = match vectored {
                    true => slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect(),
                    false => batch.chunk().to_vec(),
                };
                let count = count.min(seen.len());
                got.extend_from_slice(&seen[..count]);
                batch.advance(count);
            }
            prop_assert_eq!(got, expected);
        }
    }
}
