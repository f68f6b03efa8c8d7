//! Requests as they come in: headers through a buffer, so that many cost one system call, payloads straight into
//! memory of their own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::admission::Room;
use super::wire::{BadMagic, RequestHeader, Style};

/// Bytes that are read ahead while requests are small.
const READ_AHEAD: usize = 32 << 10;

/// The reading half of a connection in its transmission phase.
#[derive(Debug)]
pub struct Incoming<R> {
    io: R,
    style: Style,
    buffer: BytesMut,
    /// How much to read ahead next time. After a payload larger than [`READ_AHEAD`] it is one header: more would be
    /// the start of the next payload, and would have to be copied.
    read_ahead: usize,
    stall_timeout: Duration,
    room: Arc<Room>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads from `io`, beginning with `rest`, which was read before. A client that others wait for may leave a
    /// payload half sent for `stall_timeout`.
    pub fn new(io: R, style: Style, rest: BytesMut, stall_timeout: Duration, room: Arc<Room>) -> Incoming<R> {
        Incoming { io, style, buffer: rest, read_ahead: READ_AHEAD, stall_timeout, room }
    }

    /// The next header, if it has been read already.
    pub fn buffered_header(&mut self) -> Option<Result<RequestHeader, BadMagic>> {
        let header = match self.style {
            Style::Simple | Style::Structured => RequestHeader::decode(self.buffer.first_chunk()?),
            Style::Extended => RequestHeader::decode_extended(self.buffer.first_chunk()?),
        };
        self.buffer.advance(self.header_bytes());
        Some(header)
    }

    fn header_bytes(&self) -> usize {
        match self.style {
            Style::Simple | Style::Structured => RequestHeader::BYTES,
            Style::Extended => RequestHeader::EXTENDED_BYTES,
        }
    }

    /// Waits for the next header; `None` if the client closed instead. Nothing is lost if the wait is given up.
    pub async fn header(&mut self) -> io::Result<Option<Result<RequestHeader, BadMagic>>> {
        loop {
            if let Some(header) = self.buffered_header() {
                return Ok(Some(header));
            }
            self.buffer.reserve(self.read_ahead);
            let count = self.io.read_buf(&mut (&mut self.buffer).limit(self.read_ahead)).await?;
            self.read_ahead = READ_AHEAD;
            match (count, self.buffer.is_empty()) {
                (0, true) => return Ok(None),
                (0, false) => return Err(cut_short("a request")),
                _ => {}
            }
        }
    }

    /// Reads a payload into memory of exactly its length. The rest of a short one comes with the requests behind it, and needs no system call of its own.
    pub async fn payload(&mut self, len: u32) -> io::Result<Bytes> {
        let len = len as usize;
        while len <= READ_AHEAD && self.buffer.len() < len {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.reserve(READ_AHEAD);
            let read = self.read_some(&mut buffer, READ_AHEAD).await;
            self.buffer = buffer;
            read?;
        }
        let mut payload = BytesMut::with_capacity(len);
        let here = self.buffer.len().min(len);
        payload.put_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        while payload.len() < len {
            let left = len - payload.len();
            self.read_some(&mut payload, left).await?;
        }
        if len > READ_AHEAD {
            self.read_ahead = self.header_bytes();
        }
        Ok(payload.freeze())
    }

    /// Reads a payload of any length and throws it away.
    pub async fn skip(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        let mut scratch = BytesMut::new();
        loop {
            let here = left.min(self.buffer.len() as u64);
            self.buffer.advance(here as usize);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            scratch.clear();
            scratch.reserve(READ_AHEAD);
            left -= self.read_some(&mut scratch, left.min(READ_AHEAD as u64) as usize).await? as u64;
        }
    }

    /// Reads and throws away whatever comes, until the client closes.
    pub async fn until_closed(&mut self) {
        self.buffer.reserve(READ_AHEAD);
        loop {
            self.buffer.clear();
            match self.io.read_buf(&mut (&mut self.buffer).limit(READ_AHEAD)).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    async fn read_some(&mut self, into: &mut BytesMut, most: usize) -> io::Result<usize> {
        loop {
            let mut into = into.limit(most);
            match tokio::time::timeout(self.stall_timeout, self.io.read_buf(&mut into)).await {
                Ok(Ok(0)) => return Err(cut_short("a payload")),
                Ok(done) => return done,
                Err(_) if self.room.is_contended() => return Err(stalled("sending a payload")),
                Err(_) => {}
            }
        }
    }
}

/// The error for a client that stopped in the middle of something while others waited for the room that it holds.
pub fn stalled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the client stalled while {what}, and others waited"))
}

fn cut_short(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the client closed in the middle of {what}"))
}
