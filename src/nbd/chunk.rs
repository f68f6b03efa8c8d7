//! What one reply consists of: a simple reply, or chunks (proto.md, "Simple reply message", "Structured reply chunk message",
//! "Structured reply types"). Decisions only; [`super::reply`] keeps the bytes.
//!
//! | style | success without data | READ | BLOCK_STATUS | error |
//! | --- | --- | --- | --- | --- |
//! | simple | simple reply | simple reply, data | does not occur | simple reply |
//! | structured | simple reply | OFFSET_DATA, OFFSET_HOLE; a READ of nothing: NONE | BLOCK_STATUS | ERROR, ERROR_OFFSET |
//! | extended | NONE | the same, with extended headers | BLOCK_STATUS_EXT | the same |
//!
//! A reply begins when all of it is there, so no error can come up while it is sent (rules K4, K5), and its last chunk says
//! that it is the last. With DF the data is one chunk, whatever of it is zero (K6); as all of it is in memory by then, DF
//! is never refused.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

use super::reply::Batch;
use super::status::Descriptor;
use super::wire::{
    self, ChunkHeader, Errno, REPLY_DONE, RequestHeader, Style, chunk_type, command, command_flag, fit_string,
};
use crate::device::{Piece, Pieces};

/// Zeroes in a row that are worth a chunk of their own. No block is smaller, so no hole of a block or more is ever sent.
const HOLE_MIN: u64 = 512;

/// What a reply has to know of its request.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    cookie: u64,
    offset: u64,
    len: u64,
    style: Style,
    is_read: bool,
    in_one_piece: bool,
}

impl Asked {
    /// Of this request.
    pub fn new(header: &RequestHeader, style: Style) -> Asked {
        Asked {
            cookie: header.cookie,
            offset: header.offset,
            len: header.len,
            style,
            is_read: header.command == command::READ,
            in_one_piece: header.flags & command_flag::DF != 0,
        }
    }
}

/// How a request went well.
#[derive(Debug)]
pub enum Done {
    /// There is nothing to say.
    Nothing,
    /// The data of a READ.
    Data(Pieces),
    /// Of each context of a BLOCK_STATUS, one at least, its number and its descriptors, one at least.
    Status(Vec<(u32, Vec<Descriptor>)>),
}

impl Done {
    /// Whether the reply holds memory for as long as it is not fetched.
    pub fn has_data(&self) -> bool {
        !matches!(self, Done::Nothing)
    }
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error.
    pub errno: Errno,
    /// Why, for people; a simple reply cannot say it.
    pub why: Cow<'static, str>,
    /// The byte of the export that could not be had, if that is known.
    pub offset: Option<u64>,
}

/// Adds a reply to a batch.
pub fn put(batch: &mut Batch, asked: &Asked, result: Result<Done, Failure>) {
    let mut reply = Reply { batch, asked };
    match (asked.style, result) {
        (Style::Simple, Ok(Done::Data(pieces))) => {
            reply.simple(None);
            pieces.into_bytes().for_each(|data| reply.batch.data(data));
        }
        (Style::Simple, Ok(_)) => reply.simple(None),
        (Style::Simple, Err(failure)) => reply.simple(Some(failure.errno)),
        (_, Err(failure)) => reply.error(&failure),
        (_, Ok(Done::Data(pieces))) => reply.content(contents(pieces, asked.in_one_piece)),
        (_, Ok(Done::Status(contexts))) => reply.statuses(&contexts),
        (Style::Structured, Ok(Done::Nothing)) if !asked.is_read => reply.simple(None),
        (_, Ok(Done::Nothing)) => reply.chunk(chunk_type::NONE, true, &[], 0),
    }
}

/// What one content chunk holds.
#[derive(Debug, PartialEq)]
enum Content {
    Data(u64, Vec<Bytes>),
    Hole(u64),
}

/// The content chunks of a READ: what is zero is a hole, unless it is short, or all must be in one piece.
fn contents(pieces: Pieces, in_one_piece: bool) -> Vec<Content> {
    let mut contents = Vec::new();
    for piece in pieces {
        let len = piece.len();
        let bytes: Box<dyn Iterator<Item = Bytes>> = match piece {
            Piece::Zeroes(len) if len >= HOLE_MIN && !in_one_piece => {
                contents.push(Content::Hole(len));
                continue;
            }
            Piece::Zeroes(len) => Box::new(crate::device::zeroes(len)),
            Piece::Data(data) => Box::new(std::iter::once(data)),
        };
        match contents.last_mut() {
            Some(Content::Data(sum, all)) => {
                *sum += len;
                all.extend(bytes);
            }
            _ => contents.push(Content::Data(len, bytes.collect())),
        }
    }
    contents
}

struct Reply<'a> {
    batch: &'a mut Batch,
    asked: &'a Asked,
}

impl Reply<'_> {
    fn simple(&mut self, error: Option<Errno>) {
        self.batch.head(|out| wire::put_simple_reply(out, self.asked.cookie, error));
    }

    /// A chunk: its head, `begin`, and so many bytes that the caller adds.
    fn chunk(&mut self, chunk_type: u16, is_last: bool, begin: &[u8], more: u64) {
        let Asked { cookie, offset, style, .. } = *self.asked;
        let flags = if is_last { REPLY_DONE } else { 0 };
        // The longest is max_payload, which is at most 1 GiB, and eight bytes.
        let len = begin.len() as u32 + more as u32;
        let header = ChunkHeader { flags, chunk_type, cookie, offset, len };
        self.batch.head(|out| {
            header.put(out, style == Style::Extended);
            out.put_slice(begin);
        });
    }

    fn content(&mut self, contents: Vec<Content>) {
        if contents.is_empty() {
            return self.chunk(chunk_type::NONE, true, &[], 0);
        }
        let (mut at, mut left) = (self.asked.offset, contents.len());
        for content in contents {
            left -= 1;
            at += match content {
                Content::Data(len, bytes) => {
                    self.chunk(chunk_type::OFFSET_DATA, left == 0, &at.to_be_bytes(), len);
                    bytes.into_iter().for_each(|bytes| self.batch.data(bytes));
                    len
                }
                Content::Hole(len) => {
                    let mut begin = BytesMut::with_capacity(12);
                    begin.put_u64(at);
                    begin.put_u32(len as u32); // a part of a READ
                    self.chunk(chunk_type::OFFSET_HOLE, left == 0, &begin, 0);
                    len
                }
            };
        }
    }

    fn statuses(&mut self, contexts: &[(u32, Vec<Descriptor>)]) {
        let last = contexts.len().saturating_sub(1);
        contexts
            .iter()
            .enumerate()
            .for_each(|(no, (context, descriptors))| self.status(*context, descriptors, no == last));
    }

    fn status(&mut self, context: u32, descriptors: &[Descriptor], is_last: bool) {
        let mut begin = BytesMut::with_capacity(8 + 16 * descriptors.len());
        begin.put_u32(context);
        if self.asked.style == Style::Extended {
            begin.put_u32(descriptors.len() as u32); // RUNS_MAX at most
            for &(len, flags) in descriptors {
                begin.put_u64(len);
                begin.put_u64(u64::from(flags));
            }
            return self.chunk(chunk_type::BLOCK_STATUS_EXT, is_last, &begin, 0);
        }
        for &(len, flags) in descriptors {
            begin.put_u32(len as u32); // a part of what was asked for with 32 bits
            begin.put_u32(flags);
        }
        self.chunk(chunk_type::BLOCK_STATUS, is_last, &begin, 0);
    }

    /// A partial block that could not be completed may lie outside of what the client asked for: then it is told no offset.
    /// An ERROR_OFFSET to a READ must follow the content at that offset, and there is none: the text has the offset.
    fn error(&mut self, failure: &Failure) {
        let inside = |offset: &u64| offset.checked_sub(self.asked.offset).is_some_and(|into| into < self.asked.len);
        let (text, offset) = match failure.offset.filter(inside) {
            Some(offset) if self.asked.is_read => (Cow::Owned(format!("at byte {offset}: {}", failure.why)), None),
            offset => (Cow::Borrowed(&*failure.why), offset),
        };
        let why = fit_string(&text);
        let mut begin = BytesMut::with_capacity(14 + why.len());
        begin.put_u32(failure.errno as u32);
        begin.put_u16(why.len() as u16); // STRING_BYTES_MAX at most
        begin.put_slice(why.as_bytes());
        if let Some(offset) = offset {
            begin.put_u64(offset);
        }
        let chunk_type = if offset.is_some() { chunk_type::ERROR_OFFSET } else { chunk_type::ERROR };
        self.chunk(chunk_type, true, &begin, 0);
    }
}
