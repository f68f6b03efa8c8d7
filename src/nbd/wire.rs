//! The numbers and layouts of the NBD protocol, and nothing else: no decision is taken here.
//!
//! Section names after § are those of `doc/proto.md` of the NetworkBlockDevice project. All integers are big
//! endian. Four fixed headers are read (client flags, option, request in two widths) and four kinds of bytes are written
//! (greeting, option reply, simple reply, chunk of a structured reply in two widths).
//!
//! ```text
//! greeting       NBDMAGIC u64 | IHAVEOPT u64 | handshake flags u16                       18 bytes
//! client flags   u32                                                                      4
//! option         IHAVEOPT u64 | option u32 | length u32 | data                           16 + length
//! option reply   magic u64 | option u32 | type u32 | length u32 | data                   20 + length
//! request        magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u32  28 (+ payload of WRITE)
//!   extended     the same, another magic, length u64                                      32 (+ payload)
//! simple reply   magic u32 | error u32 | cookie u64                                       16 (+ data of READ)
//! chunk          magic u32 | flags u16 | type u16 | cookie u64 | length u32               20 + length
//!   extended     magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64  32 + length
//! ```
//!
//! Extended headers are those of the document's branch `extension-ext-header`.

use bytes::{Buf, BufMut, BytesMut};
use uuid::Uuid;

/// First word of the greeting, "NBDMAGIC". § Newstyle negotiation.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and first of every option, "IHAVEOPT". § Newstyle negotiation.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply. § Fixed newstyle negotiation.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request. § Request message.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply. § Simple reply message.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply. § Structured reply chunk message.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First word of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of a chunk with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;
/// The TCP port that IANA gave to NBD. § Protocol phases.
pub const DEFAULT_PORT: u16 = 10809;
/// The most bytes that a string may have: names, descriptions, error texts. § Conventions.
pub const STRING_BYTES_MAX: usize = 4096;
/// Zeroes that follow the answer to EXPORT_NAME unless NO_ZEROES was agreed. § NBD_OPT_EXPORT_NAME.
pub const EXPORT_NAME_PAD: usize = 124;

/// Whether a text may be sent as a string. § Conventions (rule C2).
pub fn is_string(text: &str) -> bool {
    text.len() <= STRING_BYTES_MAX && !text.contains('\0')
}

/// As much of a text as may be sent as a string.
pub fn fit_string(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

/// What the server offers in its greeting. § Handshake flags.
pub mod handshake_flag {
    /// The server speaks fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The server can leave out the zeroes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What the client takes up of the offer. § Client flags.
pub mod client_flag {
    /// The client speaks fixed newstyle.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// The client wants no zeroes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u32 = 1 << 1;
    /// Every flag that was offered.
    pub const KNOWN: u32 = FIXED_NEWSTYLE | NO_ZEROES;
}

/// Options. § Option types.
pub mod option {
    /// Choose an export and begin transmission; fails by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin transmission.
    pub const GO: u32 = 7;
    /// Answer in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts of an export.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Headers with 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
    /// Ours, beyond the document ("ashl"): this connection takes the place of earlier ones of the same client.
    pub const SUCCEED: u32 = 0x6173_686c;
}

/// Types of option reply. § Option reply types.
pub mod reply_type {
    /// The option is done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context: its number u32 and its name.
    pub const META_CONTEXT: u32 = 4;
    /// Set in the type of every error.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option is known and not allowed here.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data makes no sense.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// The option, or the export, is for TLS only.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Extended headers were agreed, which exclude the option.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Types of information on an export. § Option reply types, NBD_REP_INFO.
pub mod info {
    /// Size u64 and transmission flags u16.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum u32, preferred u32, maximum payload u32.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do. § Transmission flags.
pub mod transmission_flag {
    /// There are flags; always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works, with NO_HOLE.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// FLUSH and FUA on one connection cover all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands. § Request types.
pub mod command {
    /// Read bytes.
    pub const READ: u16 = 0;
    /// Write the payload.
    pub const WRITE: u16 = 1;
    /// End the session; there is no reply.
    pub const DISC: u16 = 2;
    /// Make stable what was replied to.
    pub const FLUSH: u16 = 3;
    /// Give up bytes.
    pub const TRIM: u16 = 4;
    /// Have bytes near.
    pub const CACHE: u16 = 5;
    /// Zero bytes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Say what bytes are, in the metadata contexts that were selected.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request. § Command flags.
pub mod command_flag {
    /// Reply when the change is stable.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES: keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: the data in one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one descriptor.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: faster than a WRITE, or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload; only with extended headers.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// The last chunk of a reply. § Structured reply flags.
pub const REPLY_DONE: u16 = 1 << 0;

/// Types of chunk. § Structured reply types.
pub mod chunk_type {
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Offset u64 and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset u64 and length u32 of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context u32 and descriptors: length u32, flags u32.
    pub const BLOCK_STATUS: u16 = 5;
    /// Context u32, count u32 and descriptors: length u64, flags u64.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Error u32, length u16 and text.
    pub const ERROR: u16 = 1 << 15 | 1;
    /// The same and an offset u64.
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// The metadata context that is always there. § The base: metadata namespace.
pub mod allocation {
    /// Its name.
    pub const NAME: &str = "base:allocation";
    /// Its number on every connection.
    pub const ID: u32 = 1;
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// It reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

/// Metadata contexts of our own: what has changed since a version (docs/protocol.md, "Beyond the document").
pub mod changed {
    /// What their names begin with; the name of the version follows.
    pub const PREFIX: &str = "ashlar:changed:";
    /// The number of the first that is selected on a connection; the others follow.
    pub const FIRST_ID: u32 = 2;
    /// It may have changed.
    pub const CHANGED: u32 = 1 << 0;
}

/// How requests and replies are laid out on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Style {
    /// Simple replies only.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers, in both directions.
    Extended,
}

/// Errors of a reply. § Error values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// NBD_EPERM: a change to a read-only export.
    Perm = 1,
    /// NBD_EIO: the data could not be read or made stable.
    Io = 5,
    /// NBD_EINVAL: the request makes no sense.
    Invalid = 22,
    /// NBD_ENOSPC: a write beyond the end.
    NoSpace = 28,
    /// NBD_ESHUTDOWN: the server is shutting down.
    Shutdown = 108,
}

/// The greeting: fixed newstyle and NO_ZEROES, nothing else.
pub fn put_greeting(out: &mut BytesMut) {
    out.put_u64(NBDMAGIC);
    out.put_u64(IHAVEOPT);
    out.put_u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
}

/// The data of SUCCEED: whose connection it is, and which. uuid 16 bytes | generation u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Succession {
    /// The client; a uuid that it drew.
    pub client: Uuid,
    /// Connections of the client with a lower number are those whose place is taken.
    pub generation: u64,
}

impl Succession {
    /// Its length in bytes.
    pub const BYTES: usize = 24;

    /// Reads one; `None` if the length is another.
    pub fn decode(mut bytes: &[u8]) -> Option<Succession> {
        (bytes.len() == Self::BYTES)
            .then(|| Succession { client: Uuid::from_u128(bytes.get_u128()), generation: bytes.get_u64() })
    }

    /// Writes one, as a client does.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        out.put_u128(self.client.as_u128());
        out.put_u64(self.generation);
        bytes
    }
}

/// The fixed part of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option; any number may arrive.
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Its length in bytes.
    pub const BYTES: usize = 16;

    /// Reads one; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<OptionHeader> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
        let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        (magic == IHAVEOPT).then_some(OptionHeader { option, len })
    }

    /// Writes one, as a client does.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        out.put_u64(IHAVEOPT);
        out.put_u32(self.option);
        out.put_u32(self.len);
        bytes
    }
}

/// One option reply.
pub fn put_option_reply(out: &mut BytesMut, option: u32, reply_type: u32, data: &[u8]) {
    out.reserve(20 + data.len());
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply_type);
    out.put_u32(data.len() as u32); // callers send at most a name and a text of STRING_BYTES_MAX each
    out.put_slice(data);
}

/// What does not begin as a request must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic;

/// A request, as it stands on the wire: nothing in it has been checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// See [`command_flag`]; any bit may arrive.
    pub flags: u16,
    /// See [`command`]; any number may arrive.
    pub command: u16,
    /// The client's own mark, to be echoed.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes; below 2^32 unless the header is extended.
    pub len: u64,
}

impl RequestHeader {
    /// The length of a compact header in bytes.
    pub const BYTES: usize = 28;
    /// The length of an extended header in bytes.
    pub const EXTENDED_BYTES: usize = 32;

    /// Reads a compact one.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<RequestHeader, BadMagic> {
        RequestHeader::decode_after(REQUEST_MAGIC, &mut &bytes[..], |from| u64::from(from.get_u32()))
    }

    /// Reads an extended one.
    pub fn decode_extended(bytes: &[u8; Self::EXTENDED_BYTES]) -> Result<RequestHeader, BadMagic> {
        RequestHeader::decode_after(EXTENDED_REQUEST_MAGIC, &mut &bytes[..], |from| from.get_u64())
    }

    /// `from` is as long as the header.
    fn decode_after(
        magic: u32,
        from: &mut &[u8],
        len: impl FnOnce(&mut &[u8]) -> u64,
    ) -> Result<RequestHeader, BadMagic> {
        if from.get_u32() != magic {
            return Err(BadMagic);
        }
        Ok(RequestHeader {
            flags: from.get_u16(),
            command: from.get_u16(),
            cookie: from.get_u64(),
            offset: from.get_u64(),
            len: len(from),
        })
    }

    /// Writes a compact one, as a client does; of the length its low half.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        self.encode_after(REQUEST_MAGIC, &mut out);
        out.put_u32(self.len as u32);
        bytes
    }

    /// Writes an extended one, as a client does.
    pub fn encode_extended(&self) -> [u8; Self::EXTENDED_BYTES] {
        let mut bytes = [0; Self::EXTENDED_BYTES];
        let mut out = &mut bytes[..];
        self.encode_after(EXTENDED_REQUEST_MAGIC, &mut out);
        out.put_u64(self.len);
        bytes
    }

    fn encode_after(&self, magic: u32, out: &mut &mut [u8]) {
        out.put_u32(magic);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
    }
}

/// The length of a simple reply in bytes, without data.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// A simple reply; data of a READ follows if there is no error.
pub fn put_simple_reply(out: &mut BytesMut, cookie: u64, error: Option<Errno>) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, |errno| errno as u32));
    out.put_u64(cookie);
}

/// The head of a chunk; `len` bytes of payload follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`REPLY_DONE`] or nothing.
    pub flags: u16,
    /// See [`chunk_type`].
    pub chunk_type: u16,
    /// The request's.
    pub cookie: u64,
    /// The request's; an extended header repeats it.
    pub offset: u64,
    /// Bytes of payload.
    pub len: u32,
}

impl ChunkHeader {
    /// Writes one, extended or not.
    pub fn put(&self, out: &mut BytesMut, is_extended: bool) {
        out.put_u32(if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
        out.put_u16(self.flags);
        out.put_u16(self.chunk_type);
        out.put_u64(self.cookie);
        if is_extended {
            out.put_u64(self.offset);
            out.put_u64(u64::from(self.len));
        } else {
            out.put_u32(self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn h1_greeting_offers_fixed_newstyle_and_no_zeroes() {
        let mut out = BytesMut::new();
        put_greeting(&mut out);
        assert_eq!(&out[..], b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn layouts_are_the_documents() {
        let mut out = BytesMut::new();
        put_option_reply(&mut out, option::GO, reply_type::ERR_UNKNOWN, b"no");
        assert_eq!(&out[..], b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x80\x00\x00\x06\x00\x00\x00\x02no");

        out.clear();
        put_simple_reply(&mut out, 0x0102_0304_0506_0708, Some(Errno::Shutdown));
        assert_eq!(&out[..], b"\x67\x44\x66\x98\x00\x00\x00\x6c\x01\x02\x03\x04\x05\x06\x07\x08");

        let request = RequestHeader { flags: 1, command: 6, cookie: 2, offset: 3, len: 4 };
        let bytes = b"\x25\x60\x95\x13\x00\x01\x00\x06\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x04";
        assert_eq!(&request.encode(), bytes);
        let request = RequestHeader { len: 0x0506_0708_090a_0b0c, ..request };
        let bytes =
            b"\x21\xe4\x1c\x71\x00\x01\x00\x06\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\x05\x06\x07\x08\x09\x0a\x0b\x0c";
        assert_eq!(&request.encode_extended(), bytes);

        let chunk = ChunkHeader { flags: REPLY_DONE, chunk_type: chunk_type::ERROR, cookie: 2, offset: 3, len: 6 };
        out.clear();
        chunk.put(&mut out, false);
        assert_eq!(&out[..], b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x02\0\0\0\x06");
        out.clear();
        chunk.put(&mut out, true);
        let bytes = b"\x6e\x8a\x27\x8c\0\x01\x80\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x06";
        assert_eq!(&out[..], bytes);
        assert_eq!(OptionHeader { option: 3, len: 0 }.encode(), *b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    }

    proptest! {
        #[test]
        fn a_request_decodes_if_and_only_if_its_magic_is_right(bytes: [u8; 28], right: bool) {
            let mut bytes = bytes;
            if right {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            match RequestHeader::decode(&bytes) {
                Ok(header) => prop_assert_eq!(header.encode(), bytes),
                Err(BadMagic) => prop_assert_ne!(&bytes[..4], &REQUEST_MAGIC.to_be_bytes()[..]),
            }
        }

        #[test]
        fn an_extended_request_decodes_if_and_only_if_its_magic_is_right(bytes: [u8; 32], right: bool) {
            let mut bytes = bytes;
            if right {
                bytes[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
            }
            match RequestHeader::decode_extended(&bytes) {
                Ok(header) => prop_assert_eq!(header.encode_extended(), bytes),
                Err(BadMagic) => prop_assert_ne!(&bytes[..4], &EXTENDED_REQUEST_MAGIC.to_be_bytes()[..]),
            }
        }

        #[test]
        fn an_option_decodes_if_and_only_if_its_magic_is_right(bytes: [u8; 16], right: bool) {
            let mut bytes = bytes;
            if right {
                bytes[..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
            }
            match OptionHeader::decode(&bytes) {
                Some(header) => prop_assert_eq!(header.encode(), bytes),
                None => prop_assert_ne!(&bytes[..8], &IHAVEOPT.to_be_bytes()[..]),
            }
        }
    }
}
