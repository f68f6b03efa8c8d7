//! The one place that refuses. What leaves here as a [`Request`] may be carried out without another check.
//!
//! The order of the checks decides which error a request with several faults gets: the command must be known, its
//! flags must belong to it, the export must allow it, the range must lie inside. proto.md, "Request types",
//! "Command flags", "Error values", "Size constraints".
//!
//! A refused WRITE still carries its payload: [`Refused::payload`] says how much the caller must read and throw away
//! to stay in step with the client. With extended headers any request may carry one; the flag PAYLOAD_LEN says so, and a WRITE needs none.

use super::wire::{Errno, RequestHeader, Style, command, command_flag};
use crate::device::RUNS_MAX;

/// What a request is checked against: the same for the life of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The most bytes that one READ or WRITE may move.
    pub max_payload: u32,
    /// How requests and replies are laid out.
    pub style: Style,
    /// So many metadata contexts were selected for this export.
    pub contexts: u32,
}

/// A request that may be carried out: it is known, allowed, and lies inside the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send the bytes of a range; at least one, at most `max_payload`.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Take `len` bytes of payload; at least one, at most `max_payload`.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Reply when stable.
        fua: bool,
    },
    /// End the session.
    Disconnect,
    /// Make stable whatever was replied to.
    Flush,
    /// Give up a range of at least one byte.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Reply when stable.
        fua: bool,
    },
    /// Have a range of at least one byte near.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Zero a range of at least one byte. FAST_ZERO does not show here: it is always kept, see `docs/protocol.md`.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Keep the range allocated.
        no_hole: bool,
        /// Reply when stable.
        fua: bool,
    },
    /// Say what a range of at least one byte is.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// With one descriptor.
        one: bool,
        /// In so many contexts.
        contexts: u32,
    },
    /// A request of no bytes: it succeeds and has no effect.
    Nothing,
}

/// Bytes that the reply to a BLOCK_STATUS is counted as for each context: its descriptors in their larger form.
const STATUS_BYTES: u32 = RUNS_MAX as u32 * 16;

/// The most bytes of a CACHE that are thought about: it is a hint, and with extended headers it may name the whole export.
const CACHE_MAX: u64 = 1 << 32;

/// The largest payload that is read to the end only to be refused: with extended headers it could have no end. A compact header
/// cannot say more than 4 GiB, and those are always read.
const SKIPPED_MAX: u64 = 32 << 20;

impl Request {
    /// Bytes of memory that the request holds: the payload of a WRITE, the data of the reply to a READ, the descriptors of a
    /// BLOCK_STATUS.
    pub fn payload(&self) -> u32 {
        match *self {
            Request::Read { len, .. } | Request::Write { len, .. } => len,
            Request::BlockStatus { contexts, .. } => contexts * STATUS_BYTES,
            _ => 0,
        }
    }

    /// Whether it may change what the export holds.
    pub fn is_change(&self) -> bool {
        matches!(self, Request::Write { .. } | Request::Trim { .. } | Request::WriteZeroes { .. })
    }
}

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error.
    pub errno: Errno,
    /// Why, for the log and, in a structured reply, for the client.
    pub why: &'static str,
    /// What follows the header.
    pub payload: Payload,
}

/// What follows a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// So many bytes, which must be read and thrown away.
    Skip(u64),
    /// More bytes than are worth it: the connection ends.
    Endless(u64),
}

/// Checks a request.
pub fn parse(header: &RequestHeader, terms: &Terms) -> Result<Request, Refused> {
    check(header, terms).map_err(|(errno, why)| Refused { errno, why, payload: payload_of(header, terms) })
}

/// Refuses whatever it is, because the server is shutting down; only DISC still means what it says.
pub fn refuse_for_shutdown(header: &RequestHeader, terms: &Terms) -> Result<Request, Refused> {
    match header.command {
        command::DISC => Ok(Request::Disconnect),
        _ => {
            let why = "the server is shutting down";
            Err(Refused { errno: Errno::Shutdown, why, payload: payload_of(header, terms) })
        }
    }
}

type Fault = (Errno, &'static str);

fn check(header: &RequestHeader, terms: &Terms) -> Result<Request, Fault> {
    let &RequestHeader { offset, len, .. } = header;
    let has = |flag| header.flags & flag != 0;
    let fua = has(command_flag::FUA);
    match header.command {
        // No reply is possible, so whatever else it carries does not matter (rule K9).
        command::DISC => return Ok(Request::Disconnect),
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE | command::WRITE_ZEROES => {}
        command::BLOCK_STATUS if terms.contexts > 0 => {}
        command::BLOCK_STATUS => return Err((Errno::Invalid, "no metadata context was selected for this export")),
        _ => return Err((Errno::Invalid, "the command is not known")),
    }
    check_flags(header, terms)?;
    match header.command {
        command::FLUSH => return check_flush(header),
        command::WRITE | command::TRIM | command::WRITE_ZEROES if terms.read_only => {
            return Err((Errno::Perm, "the export is read-only"));
        }
        command::BLOCK_STATUS if len == 0 => return Err((Errno::Invalid, "the status of no bytes was asked for")),
        _ => {}
    }
    if len == 0 {
        return Ok(Request::Nothing);
    }
    check_range(header, terms)?;
    Ok(match header.command {
        // Neither is longer than max_payload.
        command::READ => Request::Read { offset, len: len as u32 },
        command::WRITE => Request::Write { offset, len: len as u32, fua },
        command::TRIM => Request::Trim { offset, len, fua },
        command::CACHE => Request::Cache { offset, len: len.min(CACHE_MAX) },
        command::BLOCK_STATUS => {
            Request::BlockStatus { offset, len, one: has(command_flag::REQ_ONE), contexts: terms.contexts }
        }
        _ => Request::WriteZeroes { offset, len, no_hole: has(command_flag::NO_HOLE), fua },
    })
}

/// FUA is accepted on every command (rule R6), every other flag where it belongs and was negotiated (rule R5).
fn check_flags(header: &RequestHeader, terms: &Terms) -> Result<(), Fault> {
    let is_extended = terms.style == Style::Extended;
    let own = match header.command {
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::READ if terms.style >= Style::Structured => command_flag::DF,
        command::WRITE if is_extended => command_flag::PAYLOAD_LEN,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => 0,
    };
    if header.flags & !(own | command_flag::FUA) != 0 {
        return Err((Errno::Invalid, "a flag does not belong to the command"));
    }
    Ok(())
}

fn check_flush(header: &RequestHeader) -> Result<Request, Fault> {
    match (header.offset, header.len) {
        (0, 0) => Ok(Request::Flush),
        _ => Err((Errno::Invalid, "FLUSH has an offset or a length")),
    }
}

fn check_range(header: &RequestHeader, terms: &Terms) -> Result<(), Fault> {
    let inside = header.offset.checked_add(header.len).is_some_and(|end| end <= terms.size);
    match header.command {
        command::WRITE | command::WRITE_ZEROES if !inside => Err((Errno::NoSpace, "the range ends past the export")),
        _ if !inside => Err((Errno::Invalid, "the range ends past the export")),
        command::READ | command::WRITE if header.len > u64::from(terms.max_payload) => {
            Err((Errno::Invalid, "the payload is larger than the maximum"))
        }
        _ => Ok(()),
    }
}

/// A WRITE always has one: the document wants the flag there, but QEMU's client does not set it (8.2 to 10.0).
fn payload_of(header: &RequestHeader, terms: &Terms) -> Payload {
    let is_flagged = header.command == command::WRITE || header.flags & command_flag::PAYLOAD_LEN != 0;
    match terms.style {
        Style::Extended if !is_flagged => Payload::Skip(0),
        Style::Extended if header.len > u64::from(terms.max_payload).max(SKIPPED_MAX) => Payload::Endless(header.len),
        Style::Extended => Payload::Skip(header.len),
        _ if header.command == command::WRITE => Payload::Skip(header.len),
        _ => Payload::Skip(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms =
        Terms { size: 1 << 20, read_only: false, max_payload: 64 << 10, style: Style::Simple, contexts: 0 };
    /// All that can be negotiated.
    const EXTENDED: Terms = Terms { style: Style::Extended, contexts: 1, ..TERMS };
    const SERVED: [u16; 6] =
        [command::READ, command::WRITE, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES];

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
        long(command, flags, offset, u64::from(len))
    }

    fn long(command: u16, flags: u16, offset: u64, len: u64) -> RequestHeader {
        RequestHeader { flags, command, cookie: 7, offset, len }
    }

    fn errno(header: RequestHeader, terms: &Terms) -> Option<Errno> {
        parse(&header, terms).err().map(|refused| refused.errno)
    }

    #[test]
    fn r4_k23_unknown_commands_are_invalid_and_have_no_payload() {
        for command in [7, 8, 9, 99, u16::MAX] {
            let refused = parse(&header(command, 0, 0, 4096), &TERMS).unwrap_err();
            assert_eq!((refused.errno, refused.payload), (Errno::Invalid, Payload::Skip(0)), "{command}");
        }
    }

    #[test]
    fn r5_r6_each_flag_on_each_command() {
        for command in SERVED {
            for bit in 0..16 {
                let len = if command == command::FLUSH { 0 } else { 512 };
                let allowed = bit == 0 || ([1, 4].contains(&bit) && command == command::WRITE_ZEROES);
                let got = errno(header(command, 1 << bit, 0, len), &TERMS);
                assert_eq!(got, (!allowed).then_some(Errno::Invalid), "command {command}, bit {bit}");
            }
        }
    }

    #[test]
    fn r5_flags_that_were_negotiated_belong_to_their_command_only() {
        let structured = Terms { style: Style::Structured, contexts: 1, ..TERMS };
        for (terms, payload) in [(structured, 0), (EXTENDED, command_flag::PAYLOAD_LEN)] {
            for command in SERVED.into_iter().chain([command::BLOCK_STATUS]) {
                let always = if command == command::WRITE { payload } else { 0 };
                for bit in 0..16 {
                    let len = if command == command::FLUSH { 0 } else { 512 };
                    let allowed = match command {
                        command::READ => bit == 2,
                        command::WRITE => 1 << bit == payload,
                        command::WRITE_ZEROES => [1, 4].contains(&bit),
                        command::BLOCK_STATUS => bit == 3,
                        _ => false,
                    };
                    let got = errno(header(command, always | 1 << bit, 0, len), &terms);
                    assert_eq!(got, (!(allowed || bit == 0)).then_some(Errno::Invalid), "command {command}, bit {bit}");
                }
            }
        }
        assert_eq!(errno(header(command::WRITE, 0, 0, 512), &EXTENDED), None, "QEMU leaves PAYLOAD_LEN out");
    }

    #[test]
    fn k18_k21_r10_block_status_needs_a_context_a_length_and_a_range_inside() {
        let status = |offset, len| long(command::BLOCK_STATUS, 0, offset, len);
        assert_eq!(errno(status(0, 512), &Terms { contexts: 0, ..EXTENDED }), Some(Errno::Invalid));
        for (offset, len) in
            [(0, 0), (1 << 20, 1), (1, 1 << 20), (u64::MAX, 1), (1, u64::MAX), (0, u64::from(u32::MAX))]
        {
            assert_eq!(errno(status(offset, len), &EXTENDED), Some(Errno::Invalid), "{offset} {len}");
        }
        let one = RequestHeader { flags: command_flag::REQ_ONE, ..status(5, (1 << 20) - 5) };
        assert_eq!(
            parse(&one, &EXTENDED),
            Ok(Request::BlockStatus { offset: 5, len: (1 << 20) - 5, one: true, contexts: 1 })
        );
    }

    /// Section 13: the flag says whether there is a payload, whatever the command; only a WRITE has one without it, too.
    #[test]
    fn extended_headers_say_by_a_flag_what_follows() {
        let payload = |command, flags, len| parse(&long(command, flags, 1 << 40, len), &EXTENDED).unwrap_err().payload;
        let flag = command_flag::PAYLOAD_LEN;
        for command in [command::READ, command::WRITE, command::TRIM, command::CACHE, command::BLOCK_STATUS, 99] {
            let unflagged = if command == command::WRITE { Payload::Endless(1 << 60) } else { Payload::Skip(0) };
            assert_eq!(payload(command, 0, 1 << 60), unflagged, "{command}");
            assert_eq!(payload(command, flag, 32 << 20), Payload::Skip(32 << 20), "{command}");
            assert_eq!(payload(command, flag, (32 << 20) + 1), Payload::Endless((32 << 20) + 1), "{command}");
        }
        let whole = Terms { size: 1 << 44, ..EXTENDED };
        let (offset, len) = (0, 1 << 44);
        assert_eq!(parse(&long(command::TRIM, 0, 0, len), &whole), Ok(Request::Trim { offset, len, fua: false }));
        let zeroes = Request::WriteZeroes { offset, len, no_hole: false, fua: true };
        assert_eq!(parse(&long(command::WRITE_ZEROES, 1, 0, len), &whole), Ok(zeroes));
        let hint = Request::Cache { offset, len: CACHE_MAX };
        assert_eq!(parse(&long(command::CACHE, 0, 0, len), &whole), Ok(hint), "a hint has an end");
    }

    #[test]
    fn r5_k8_a_refused_write_says_how_much_payload_follows() {
        for refused in [header(1, 1 << 5, 0, 512), header(1, 0, 1 << 40, 512), header(1, 0, 0, 1 << 19)] {
            assert_eq!(parse(&refused, &TERMS).unwrap_err().payload, Payload::Skip(refused.len));
        }
    }

    #[test]
    fn s7_s8_past_the_end_is_no_space_for_writes_and_invalid_for_others() {
        for (offset, len) in [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1), (u64::MAX - 511, 512), (1 << 63, 4096)] {
            for command in SERVED.into_iter().filter(|&c| c != command::FLUSH) {
                let write = command == command::WRITE || command == command::WRITE_ZEROES;
                let expected = if write { Errno::NoSpace } else { Errno::Invalid };
                assert_eq!(errno(header(command, 0, offset, len), &TERMS), Some(expected), "{command} {offset} {len}");
            }
        }
    }

    #[test]
    fn f2_k17_changes_of_a_read_only_export_are_not_permitted_wherever_they_lie() {
        let terms = Terms { read_only: true, ..TERMS };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            for offset in [0, 1 << 40] {
                assert_eq!(errno(header(command, 0, offset, 512), &terms), Some(Errno::Perm));
            }
        }
        for flags in [command_flag::NO_HOLE, command_flag::FAST_ZERO] {
            assert_eq!(errno(header(command::WRITE_ZEROES, flags, 0, 512), &terms), Some(Errno::Perm));
        }
        for (command, len) in [(command::READ, 512), (command::CACHE, 512), (command::FLUSH, 0)] {
            assert_eq!(errno(header(command, 0, 0, len), &terms), None);
        }
    }

    #[test]
    fn r10_requests_of_no_bytes_succeed_without_effect() {
        for command in SERVED.into_iter().filter(|&c| c != command::FLUSH) {
            for offset in [0, 1 << 20, u64::MAX] {
                assert_eq!(parse(&header(command, 0, offset, 0), &TERMS), Ok(Request::Nothing));
            }
        }
    }

    #[test]
    fn k11_flush_has_neither_offset_nor_length() {
        assert_eq!(parse(&header(command::FLUSH, 0, 0, 0), &TERMS), Ok(Request::Flush));
        assert_eq!(errno(header(command::FLUSH, 0, 1, 0), &TERMS), Some(Errno::Invalid));
        assert_eq!(errno(header(command::FLUSH, 0, 0, 1), &TERMS), Some(Errno::Invalid));
    }

    #[test]
    fn k9_disc_is_taken_whatever_it_carries() {
        assert_eq!(parse(&header(command::DISC, 0xffff, 5, 5), &TERMS), Ok(Request::Disconnect));
        assert_eq!(refuse_for_shutdown(&header(command::DISC, 0xffff, 5, 5), &TERMS), Ok(Request::Disconnect));
    }

    #[test]
    fn s5_s6_only_payloads_are_bounded_by_the_maximum() {
        let terms = Terms { size: 1 << 40, ..TERMS };
        for command in [command::READ, command::WRITE] {
            assert_eq!(errno(header(command, 0, 0, 64 << 10), &terms), None);
            assert_eq!(errno(header(command, 0, 0, (64 << 10) + 1), &terms), Some(Errno::Invalid));
        }
        for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
            assert_eq!(errno(header(command, command_flag::FUA, 0, u32::MAX), &terms), None);
        }
    }

    #[test]
    fn e1_during_shutdown_every_command_is_refused() {
        for command in SERVED {
            let refused = refuse_for_shutdown(&header(command, 0, 0, 512), &TERMS).unwrap_err();
            assert_eq!(refused.errno, Errno::Shutdown);
            assert_eq!(refused.payload, Payload::Skip(if command == command::WRITE { 512 } else { 0 }));
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_inside_the_export(
            flags in prop_oneof![Just(0u16), Just(1), Just(2), Just(1 << 5), any::<u16>()],
            command in prop_oneof![0u16..10, any::<u16>()],
            offset in prop_oneof![0u64..1 << 21, any::<u64>()],
            len in prop_oneof![0u64..1 << 21, (0u64..9).prop_map(|less| (1 << 32) - less), any::<u64>()],
            style in prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)],
            read_only: bool, contexts in 0..3_u32,
        ) {
            let terms = Terms { read_only, style, contexts, ..TERMS };
            let len = if style == Style::Extended { len } else { len & 0xffff_ffff };
            let header = RequestHeader { flags, command, cookie: 0, offset, len };
            let carries = match style {
                Style::Extended => command == command::WRITE || flags & command_flag::PAYLOAD_LEN != 0,
                _ => command == command::WRITE,
            };
            match parse(&header, &terms) {
                Ok(request) => {
                    prop_assert!(!(request.is_change() && read_only));
                    prop_assert!(request.payload() <= terms.max_payload);
                    let taken = matches!(request, Request::Write { .. });
                    prop_assert!(taken == carries || len == 0 || request == Request::Disconnect);
                    if !matches!(request, Request::Nothing | Request::Disconnect) {
                        prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(terms.size));
                    }
                }
                Err(Refused { payload: Payload::Skip(bytes), .. }) => {
                    prop_assert_eq!(bytes, if carries { len } else { 0 });
                }
                Err(Refused { payload: Payload::Endless(bytes), .. }) => {
                    prop_assert!(style == Style::Extended && carries && bytes == len && len > SKIPPED_MAX);
                }
            }
        }
    }
}
