//! The one place that refuses. What leaves here as a [`Request`] may be carried out without another check.
//!
//! The order of the checks decides which error a request with several faults gets: the command must be known, its
//! flags must belong to it, the export must allow it, the range must lie inside. proto.md, "Request types",
//! "Command flags", "Error values", "Size constraints".
//!
//! A refused WRITE still carries its payload: [`Refused::payload`] says how much the caller must read and throw away
//! to stay in step with the client.

use super::wire::{Errno, RequestHeader, command, command_flag};

/// What a request is checked against: the same for the life of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The most bytes that one READ or WRITE may move.
    pub max_payload: u32,
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
        len: u32,
        /// Reply when stable.
        fua: bool,
    },
    /// Have a range of at least one byte near.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Zero a range of at least one byte.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Keep the range allocated.
        no_hole: bool,
        /// Reply when stable.
        fua: bool,
    },
    /// A request of no bytes: it succeeds and has no effect.
    Nothing,
}

impl Request {
    /// Bytes of memory that the request holds: the payload of a WRITE, the data of the reply to a READ.
    pub fn payload(&self) -> u32 {
        match *self {
            Request::Read { len, .. } | Request::Write { len, .. } => len,
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
    /// Why, for the log.
    pub why: &'static str,
    /// Bytes of payload that follow and must be thrown away.
    pub payload: u32,
}

/// Checks a request.
pub fn parse(header: &RequestHeader, terms: &Terms) -> Result<Request, Refused> {
    check(header, terms).map_err(|(errno, why)| Refused { errno, why, payload: payload_of(header) })
}

/// Refuses whatever it is, because the server is shutting down; only DISC still means what it says.
pub fn refuse_for_shutdown(header: &RequestHeader) -> Result<Request, Refused> {
    match header.command {
        command::DISC => Ok(Request::Disconnect),
        _ => Err(Refused { errno: Errno::Shutdown, why: "the server is shutting down", payload: payload_of(header) }),
    }
}

type Fault = (Errno, &'static str);

fn check(header: &RequestHeader, terms: &Terms) -> Result<Request, Fault> {
    let &RequestHeader { offset, len, .. } = header;
    let fua = header.flags & command_flag::FUA != 0;
    let no_hole = header.flags & command_flag::NO_HOLE != 0;
    match header.command {
        // No reply is possible, so whatever else it carries does not matter (rule K9).
        command::DISC => return Ok(Request::Disconnect),
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE | command::WRITE_ZEROES => {
            check_flags(header)?
        }
        _ => return Err((Errno::Invalid, "the command is not known")),
    }
    match header.command {
        command::FLUSH => return check_flush(header),
        command::WRITE | command::TRIM | command::WRITE_ZEROES if terms.read_only => {
            return Err((Errno::Perm, "the export is read-only"));
        }
        _ => {}
    }
    if len == 0 {
        return Ok(Request::Nothing);
    }
    check_range(header, terms)?;
    Ok(match header.command {
        command::READ => Request::Read { offset, len },
        command::WRITE => Request::Write { offset, len, fua },
        command::TRIM => Request::Trim { offset, len, fua },
        command::CACHE => Request::Cache { offset, len },
        _ => Request::WriteZeroes { offset, len, no_hole, fua },
    })
}

/// FUA is accepted on every command (rule R6), NO_HOLE on WRITE_ZEROES; no other flag was negotiated (rule R5).
fn check_flags(header: &RequestHeader) -> Result<(), Fault> {
    let allowed = match header.command {
        command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE,
        _ => command_flag::FUA,
    };
    match header.flags & !allowed {
        0 => Ok(()),
        _ => Err((Errno::Invalid, "a flag does not belong to the command")),
    }
}

fn check_flush(header: &RequestHeader) -> Result<Request, Fault> {
    match (header.offset, header.len) {
        (0, 0) => Ok(Request::Flush),
        _ => Err((Errno::Invalid, "FLUSH has an offset or a length")),
    }
}

fn check_range(header: &RequestHeader, terms: &Terms) -> Result<(), Fault> {
    let inside = header.offset.checked_add(u64::from(header.len)).is_some_and(|end| end <= terms.size);
    match header.command {
        command::WRITE | command::WRITE_ZEROES if !inside => Err((Errno::NoSpace, "the range ends past the export")),
        _ if !inside => Err((Errno::Invalid, "the range ends past the export")),
        command::READ | command::WRITE if header.len > terms.max_payload => {
            Err((Errno::Invalid, "the payload is larger than the maximum"))
        }
        _ => Ok(()),
    }
}

fn payload_of(header: &RequestHeader) -> u32 {
    match header.command {
        command::WRITE => header.len,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms { size: 1 << 20, read_only: false, max_payload: 64 << 10 };
    const SERVED: [u16; 6] =
        [command::READ, command::WRITE, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES];

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 7, offset, len }
    }

    fn errno(header: RequestHeader, terms: &Terms) -> Option<Errno> {
        parse(&header, terms).err().map(|refused| refused.errno)
    }

    #[test]
    fn r4_k23_unknown_commands_are_invalid_and_have_no_payload() {
        for command in [7, 8, 9, 99, u16::MAX] {
            let refused = parse(&header(command, 0, 0, 4096), &TERMS).unwrap_err();
            assert_eq!((refused.errno, refused.payload), (Errno::Invalid, 0), "{command}");
        }
    }

    #[test]
    fn r5_r6_each_flag_on_each_command() {
        for command in SERVED {
            for bit in 0..16 {
                let len = if command == command::FLUSH { 0 } else { 512 };
                let allowed = bit == 0 || (bit == 1 && command == command::WRITE_ZEROES);
                let got = errno(header(command, 1 << bit, 0, len), &TERMS);
                assert_eq!(got, (!allowed).then_some(Errno::Invalid), "command {command}, bit {bit}");
            }
        }
    }

    #[test]
    fn r5_k8_a_refused_write_says_how_much_payload_follows() {
        for refused in [header(1, 1 << 5, 0, 512), header(1, 0, 1 << 40, 512), header(1, 0, 0, 1 << 19)] {
            assert_eq!(parse(&refused, &TERMS).unwrap_err().payload, refused.len);
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
        assert_eq!(refuse_for_shutdown(&header(command::DISC, 0xffff, 5, 5)), Ok(Request::Disconnect));
    }

    #[test]
    fn s5_s6_only_payloads_are_bounded_by_the_maximum() {
        let terms = Terms { size: 1 << 40, ..TERMS };
        for command in [command::READ, command::WRITE] {
            assert_eq!(errno(header(command, 0, 0, 64 << 10), &terms), None);
            assert_eq!(errno(header(command, 0, 0, (64 << 10) + 1), &terms), Some(Errno::Invalid));
        }
        for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
            assert_eq!(errno(header(command, 0, 0, u32::MAX), &terms), None);
        }
    }

    #[test]
    fn e1_during_shutdown_every_command_is_refused() {
        for command in SERVED {
            let refused = refuse_for_shutdown(&header(command, 0, 0, 512)).unwrap_err();
            assert_eq!(refused.errno, Errno::Shutdown);
            assert_eq!(refused.payload, if command == command::WRITE { 512 } else { 0 });
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_inside_the_export(
            flags in prop_oneof![Just(0u16), Just(1), Just(2), any::<u16>()],
            command in prop_oneof![0u16..10, any::<u16>()],
            offset in prop_oneof![0u64..1 << 21, any::<u64>()],
            len in prop_oneof![0u32..1 << 21, any::<u32>()],
            read_only: bool,
        ) {
            let terms = Terms { read_only, ..TERMS };
            let header = RequestHeader { flags, command, cookie: 0, offset, len };
            match parse(&header, &terms) {
                Ok(request) => {
                    prop_assert!(!(request.is_change() && read_only));
                    prop_assert!(request.payload() <= terms.max_payload);
                    if !matches!(request, Request::Nothing | Request::Disconnect) {
                        prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(terms.size));
                    }
                }
                Err(refused) => prop_assert_eq!(refused.payload, if command == command::WRITE { len } else { 0 }),
            }
        }
    }
}
