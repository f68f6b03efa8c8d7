//! The numbers and layouts of the NBD protocol, and nothing else: no decision is taken here.
//!
//! Section names after § are those of `doc/proto.md` of the NetworkBlockDevice project. All integers are big
//! endian. Three fixed headers are read (client flags, option, request) and three kinds of bytes are written
//! (greeting, option reply, simple reply).
//!
//! ```text
//! greeting       NBDMAGIC u64 | IHAVEOPT u64 | handshake flags u16                       18 bytes
//! client flags   u32                                                                      4
//! option         IHAVEOPT u64 | option u32 | length u32 | data                           16 + length
//! option reply   magic u64 | option u32 | type u32 | length u32 | data                   20 + length
//! request        magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u32  28 (+ payload of WRITE)
//! simple reply   magic u32 | error u32 | cookie u64                                       16 (+ data of READ)
//! ```

use bytes::{BufMut, BytesMut};

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
/// The TCP port that IANA gave to NBD. § Protocol phases.
pub const DEFAULT_PORT: u16 = 10809;
/// The most bytes that a string may have: names, descriptions, error texts. § Conventions.
pub const STRING_BYTES_MAX: usize = 4096;
/// Zeroes that follow the answer to EXPORT_NAME unless NO_ZEROES was agreed. § NBD_OPT_EXPORT_NAME.
pub const EXPORT_NAME_PAD: usize = 124;

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
}

/// Types of option reply. § Option reply types.
pub mod reply_type {
    /// The option is done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// Set in the type of every error.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option is known and not allowed here.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data makes no sense.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
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
    /// FLUSH and FUA on one connection cover all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
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
}

/// Flags of a request. § Command flags.
pub mod command_flag {
    /// Reply when the change is stable.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES: keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
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
    /// Bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Its length in bytes.
    pub const BYTES: usize = 28;

    /// Reads one; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<RequestHeader> {
        let [
            m0,
            m1,
            m2,
            m3,
            f0,
            f1,
            t0,
            t1,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
            o0,
            o1,
            o2,
            o3,
            o4,
            o5,
            o6,
            o7,
            l0,
            l1,
            l2,
            l3,
        ] = *bytes;
        (u32::from_be_bytes([m0, m1, m2, m3]) == REQUEST_MAGIC).then(|| RequestHeader {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Writes one, as a client does.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.len);
        bytes
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
                Some(header) => prop_assert_eq!(header.encode(), bytes),
                None => prop_assert_ne!(&bytes[..4], &REQUEST_MAGIC.to_be_bytes()[..]),
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
