//! The handshake rules (H, O, C, F, S of the conformance list), one client at a time, without a socket.

use proptest::prelude::*;

use super::*;
use crate::device::ExportEntry;

const NO_ZEROES: u32 = 3;
const DEVICE: DeviceInfo = DeviceInfo { size: 1 << 30, block_size: 4096, read_only: false };

/// Option, type, data.
type Reply = (u32, u32, Vec<u8>);

/// What a server says and does when it hears all of `input`.
#[derive(Debug, PartialEq)]
struct Heard {
    greeting: Vec<u8>,
    replies: Vec<Reply>,
    /// What follows the replies and is none: the answer to EXPORT_NAME.
    tail: Vec<u8>,
    step: Step,
    rest: Vec<u8>,
}

impl Heard {
    fn types(&self) -> Vec<u32> {
        self.replies.iter().map(|reply| reply.1).collect()
    }
}

struct Scene {
    options: Options,
    exports: Vec<&'static str>,
    device: DeviceInfo,
    shutting_down: bool,
}

fn scene() -> Scene {
    Scene { options: Options::default(), exports: vec!["disk0"], device: DEVICE, shutting_down: false }
}

impl Scene {
    fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        let entry = |name: &&str| ExportEntry { name: (*name).to_owned(), description: format!("about {name}") };
        Ok(self.exports.iter().map(entry).collect())
    }

    /// "" is the first export; "busy" exists and cannot be had.
    fn open(&self, name: &str) -> Result<(ExportEntry, DeviceInfo), ExportError> {
        match self.list()?.into_iter().find(|entry| name.is_empty() || entry.name == name) {
            Some(entry) => Ok((entry, self.device)),
            None if name == "busy" => Err(ExportError::Unavailable("busy is being repaired".to_owned())),
            None => Err(ExportError::Unknown(name.to_owned())),
        }
    }

    /// Feeds the client's bytes in pieces of `piece` bytes.
    fn hear_in(&self, piece: usize, input: &[u8]) -> Heard {
        let mut negotiation = Negotiation::new(Limits::from(&self.options));
        if self.shutting_down {
            negotiation.shut_down();
        }
        let (mut pieces, mut output) = (input.chunks(piece.max(1)), Vec::new());
        let step = loop {
            let step = negotiation.step();
            output.extend_from_slice(&negotiation.take_output());
            match step {
                Step::Read => match pieces.next() {
                    Some(piece) => negotiation.receive(piece),
                    None => break Step::Read,
                },
                Step::List => negotiation.listed(self.list()),
                Step::Open { name, .. } => negotiation.opened(self.open(&name)),
                step => break step,
            }
            let bound = self.options.max_option_bytes as usize + OptionHeader::BYTES + piece;
            assert!(negotiation.input.len() <= bound, "holds no more than one option and what was read ahead");
        };
        let rest = [&negotiation.into_rest()[..], &pieces.flatten().copied().collect::<Vec<u8>>()].concat();
        let (replies, tail) = parse_replies(&output[18..]);
        Heard { greeting: output[..18].to_vec(), replies, tail, step, rest }
    }

    fn hear(&self, options: &[Vec<u8>]) -> Heard {
        self.hear_in(1 << 20, &[flags(NO_ZEROES), options.concat()].concat())
    }
}

fn parse_replies(mut bytes: &[u8]) -> (Vec<Reply>, Vec<u8>) {
    let mut replies = Vec::new();
    while bytes.len() >= 20 && bytes[..8] == wire::OPTION_REPLY_MAGIC.to_be_bytes() {
        bytes.advance(8);
        let (option, reply_type, len) = (bytes.get_u32(), bytes.get_u32(), bytes.get_u32() as usize);
        replies.push((option, reply_type, bytes[..len].to_vec()));
        bytes.advance(len);
    }
    (replies, bytes.to_vec())
}

fn flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

fn opt(option: u32, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option, len: data.len() as u32 }.encode()[..], data].concat()
}

fn info_data(name: &[u8], asked: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(asked.len() as u16).to_be_bytes());
    data.extend(asked.iter().flat_map(|info| info.to_be_bytes()));
    data
}

fn go(name: &str) -> Vec<u8> {
    opt(option::GO, &info_data(name.as_bytes(), &[]))
}

/// The kinds of information in a run of INFO replies.
fn kinds(heard: &Heard) -> Vec<u16> {
    let infos = heard.replies.iter().filter(|reply| reply.1 == reply_type::INFO);
    infos.map(|(_, _, data)| u16::from_be_bytes([data[0], data[1]])).collect()
}

#[test]
fn h1_c4_the_greeting_is_fixed_newstyle_with_no_zeroes() {
    assert_eq!(scene().hear_in(1, &[]).greeting, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn h2_fault_3_a_client_flag_that_was_not_offered_closes() {
    for bit in 2..32 {
        let heard = scene().hear_in(4, &flags(1 << bit | 1));
        assert_eq!(heard.step, Step::Close(CloseReason::UnknownFlags(1 << bit | 1)));
        assert!(heard.replies.is_empty() && heard.tail.is_empty());
    }
    for known in 0..4 {
        assert_eq!(scene().hear_in(4, &flags(known)).step, Step::Read);
    }
}

#[test]
fn h3_h4_o1_export_name_is_served_with_zeroes_unless_agreed_otherwise() {
    for client_flags in 0..4 {
        let heard = scene().hear_in(7, &[flags(client_flags), opt(option::EXPORT_NAME, b"disk0")].concat());
        assert_eq!(heard.step, Step::Enter);
        assert_eq!(heard.tail.len(), if client_flags & 2 == 0 { 134 } else { 10 });
        assert_eq!(heard.tail[..10], *b"\0\0\0\0\x40\0\0\0\x05\x6d");
        assert!(heard.tail[10..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn h5_c5_an_option_without_its_magic_closes() {
    let heard = scene().hear(&[b"IHAVEOPS\0\0\0\x03\0\0\0\0".to_vec()]);
    assert_eq!(heard.step, Step::Close(CloseReason::BadMagic));
    assert!(heard.replies.is_empty());
}

#[test]
fn h7_o9_o20_o29_fault_14_unknown_options_of_any_length_are_unsupported_and_leave_no_trace() {
    // 4 was withdrawn; 8 to 11 are structured replies, metadata contexts and extended headers, which are not served.
    for unknown in [0, 4, 8, 9, 10, 11, 12, 255, u32::MAX] {
        for len in [0, 1, 4096, 10_000, 1 << 20] {
            let heard = scene().hear(&[opt(unknown, &vec![0x49; len]), opt(option::LIST, &[])]);
            assert_eq!(heard.types(), [reply_type::ERR_UNSUP, reply_type::SERVER, reply_type::ACK], "{unknown} {len}");
            assert_eq!(heard.replies[0].0, unknown);
            assert!(is_string(str::from_utf8(&heard.replies[0].2).unwrap()));
        }
    }
}

#[test]
fn h8_a_known_option_that_is_too_long_is_skipped_and_refused() {
    let long = vec![0; 64 * 1024 + 1];
    let heard = scene().hear(&[opt(option::INFO, &long), opt(option::GO, &long), go("disk0")]);
    assert_eq!(heard.types()[..2], [reply_type::ERR_TOO_BIG; 2]);
    assert_eq!(heard.step, Step::Enter);
}

#[test]
fn h8_c6_more_bytes_than_the_limit_close() {
    let scene = Scene { options: Options { max_handshake_bytes: 1 << 20, ..Options::default() }, ..scene() };
    let heard = scene.hear_in(4096, &[flags(1), opt(99, &vec![0; 2 << 20])].concat());
    assert_eq!(heard.step, Step::Close(CloseReason::TooManyBytes));
    assert!(heard.rest.len() > (1 << 20) - 8192, "closed as soon as the limit was passed");
}

#[test]
fn c6_more_options_than_the_limit_close() {
    let scene = Scene { options: Options { max_options: 3, ..Options::default() }, ..scene() };
    let heard = scene.hear(&vec![opt(99, &[]); 4]);
    assert_eq!(heard.types(), [reply_type::ERR_UNSUP; 3]);
    assert_eq!(heard.step, Step::Close(CloseReason::TooManyOptions));
}

#[test]
fn h11_while_shutting_down_all_is_refused_but_abort() {
    let scene = Scene { shutting_down: true, ..scene() };
    let heard = scene.hear(&[
        opt(option::LIST, &[]),
        opt(99, b"x"),
        opt(option::INFO, &info_data(b"disk0", &[])),
        go("disk0"),
        opt(option::STARTTLS, &[]),
        opt(option::ABORT, &[]),
    ]);
    assert_eq!(heard.types(), [[reply_type::ERR_SHUTDOWN; 5].as_slice(), &[reply_type::ACK]].concat());
    assert_eq!(heard.step, Step::Finish);
    let heard = scene.hear(&[opt(option::EXPORT_NAME, b"disk0")]);
    assert_eq!((heard.step, heard.tail.len()), (Step::Close(CloseReason::NoSuchExport), 0));
}

#[test]
fn h12_o16_what_follows_go_belongs_to_the_transmission_phase() {
    let heard = scene().hear(&[go("disk0"), b"\x25\x60\x95\x13 and more".to_vec()]);
    assert_eq!(heard.step, Step::Enter);
    assert_eq!(heard.rest, b"\x25\x60\x95\x13 and more");
    assert!(heard.tail.is_empty(), "no padding after GO");
}

#[test]
fn o2_c3_export_name_that_cannot_be_served_closes_without_a_byte() {
    for name in [b"nope".to_vec(), b"busy".to_vec(), b"di\0sk".to_vec(), vec![0xff, 0xfe], vec![b'a'; 4097]] {
        let heard = scene().hear(&[opt(option::EXPORT_NAME, &name)]);
        assert_eq!(heard.step, Step::Close(CloseReason::NoSuchExport));
        assert!(heard.replies.is_empty() && heard.tail.is_empty());
    }
}

#[test]
fn o3_the_empty_name_is_the_default_export() {
    let named = scene().hear(&[opt(option::GO, &info_data(b"", &[info::NAME]))]);
    assert_eq!(named.step, Step::Enter);
    assert_eq!(named.replies[2].2, b"\0\x01disk0", "and is told its canonical name");
    assert_eq!(scene().hear(&[opt(option::EXPORT_NAME, b"")]).step, Step::Enter);

    let none = Scene { exports: vec![], ..scene() };
    assert_eq!(none.hear(&[go("")]).types(), [reply_type::ERR_UNKNOWN]);
    assert_eq!(none.hear(&[opt(option::EXPORT_NAME, b"")]).step, Step::Close(CloseReason::NoSuchExport));
}

#[test]
fn o4_abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"goodbye"] {
        let heard = scene().hear(&[opt(option::ABORT, data)]);
        assert_eq!((heard.types(), heard.step), (vec![reply_type::ACK], Step::Finish));
    }
}

#[test]
fn o5_fault_2_list_sends_one_reply_for_each_export() {
    for exports in [vec![], vec!["disk0"], vec!["a", "b", "c"]] {
        let scene = Scene { exports: exports.clone(), ..scene() };
        let heard = scene.hear(&[opt(option::LIST, &[])]);
        let (ack, servers) = heard.replies.split_last().unwrap();
        assert_eq!((ack.1, ack.2.len(), servers.len()), (reply_type::ACK, 0, exports.len()));
        for (name, (option, reply_type, data)) in exports.iter().zip(servers) {
            let expected = [&(name.len() as u32).to_be_bytes(), name.as_bytes(), b"about ", name.as_bytes()].concat();
            assert_eq!((*option, *reply_type, data), (option::LIST, reply_type::SERVER, &expected));
        }
    }
}

#[test]
fn o6_list_with_data_is_invalid() {
    assert_eq!(scene().hear(&[opt(option::LIST, b"x")]).types(), [reply_type::ERR_INVALID]);
}

#[test]
fn o7_list_can_be_switched_off() {
    let scene = Scene { options: Options { list_exports: false, ..Options::default() }, ..scene() };
    let heard = scene.hear(&[opt(option::LIST, &[]), go("disk0")]);
    assert_eq!((heard.types()[0], heard.step), (reply_type::ERR_POLICY, Step::Enter));
}

#[test]
fn o10_starttls_is_declined() {
    let heard = scene().hear(&[opt(option::STARTTLS, &[]), opt(option::STARTTLS, b"x"), go("disk0")]);
    assert_eq!(heard.types()[..2], [reply_type::ERR_UNSUP, reply_type::ERR_INVALID]);
    assert_eq!(heard.step, Step::Enter);
}

#[test]
fn o12_o17_fault_15_malformed_info_and_go_are_invalid_and_a_good_go_follows() {
    let good = info_data(b"disk0", &[0, 3]);
    let mut too_many = good.clone();
    too_many[10] = 1;
    for bad in [
        vec![],
        vec![0; 5],
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        [&good[..], &[0, 1]].concat(),
        [&[0, 0, 0, 12], &good[4..]].concat(),
        [&[0xff; 4], &good[4..]].concat(),
        too_many,
        info_data(b"di\0sk", &[]),
        info_data(&[0xff], &[]),
        info_data(&[b'a'; 4097], &[]),
    ] {
        let heard = scene().hear(&[opt(option::INFO, &bad), opt(option::GO, &bad), opt(option::GO, &good)]);
        assert_eq!(heard.types()[..2], [reply_type::ERR_INVALID; 2], "{bad:?}");
        assert_eq!(heard.step, Step::Enter);
    }
}

#[test]
fn o13_o19_information_not_understood_is_ignored_and_what_is_asked_twice_is_answered_once() {
    let asked = [info::NAME, 77, info::NAME, info::DESCRIPTION, info::DESCRIPTION, 0xffff, info::EXPORT];
    let heard = scene().hear(&[opt(option::INFO, &info_data(b"disk0", &asked))]);
    assert_eq!(kinds(&heard), [info::EXPORT, info::BLOCK_SIZE, info::NAME, info::DESCRIPTION]);
    assert_eq!(heard.types().last(), Some(&reply_type::ACK));
    assert_eq!(heard.replies[2].2, b"\0\x01disk0");
    assert_eq!(heard.replies[3].2, b"\0\x02about disk0");
}

#[test]
fn o14_o17_an_unknown_export_gets_no_information_and_the_client_may_go_on() {
    let heard = scene().hear(&[go("nope"), go("busy"), opt(option::INFO, &info_data(b"nope", &[3])), go("disk0")]);
    assert_eq!(heard.types()[..3], [reply_type::ERR_UNKNOWN, reply_type::ERR_POLICY, reply_type::ERR_UNKNOWN]);
    assert_eq!(heard.replies[1].2, b"busy is being repaired");
    assert_eq!(heard.step, Step::Enter);
}

#[test]
fn o15_info_before_go_gets_the_same_answer() {
    let data = info_data(b"disk0", &[1, 2, 3]);
    let heard = scene().hear(&[opt(option::INFO, &data), opt(option::GO, &data)]);
    let answers: Vec<_> = heard.replies.iter().map(|(_, reply_type, data)| (reply_type, data)).collect();
    assert_eq!(answers[..answers.len() / 2], answers[answers.len() / 2..]);
    assert_eq!(heard.step, Step::Enter);
}

#[test]
fn o18_s1_s3_s10_block_sizes_are_told_and_never_required() {
    for (block_size, preferred) in [(512, 512), (4096, 4096), (65536, 65536), (1, 512), (3000, 4096)] {
        let scene = Scene { device: DeviceInfo { block_size, ..DEVICE }, ..scene() };
        let heard = scene.hear(&[go("disk0")]);
        assert_eq!(kinds(&heard), [info::EXPORT, info::BLOCK_SIZE]);
        let mut data = &heard.replies[1].2[2..];
        assert_eq!((data.get_u32(), data.get_u32(), data.get_u32()), (1, preferred, 32 << 20));
    }
}

#[test]
fn f1_to_f13_flags_say_what_the_export_can_do() {
    let flags = |read_only| transmission_flags(&DeviceInfo { read_only, ..DEVICE });
    // HAS_FLAGS, FLUSH, FUA, MULTI_CONN, CACHE; then TRIM and WRITE_ZEROES, or READ_ONLY (fault 11). Clear: ROTATIONAL (4),
    // DF (7), RESIZE (9), FAST_ZERO (11), BLOCK_STATUS_PAYLOAD (12).
    assert_eq!(flags(false), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10 | 1 << 5 | 1 << 6);
    assert_eq!(flags(true), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10 | 1 << 1);
}

#[test]
fn c2_what_is_not_a_string_is_never_sent() {
    let long: &'static str = "ü".repeat(3000).leak();
    let scene = Scene { exports: vec!["a\0b", long, "good"], ..scene() };
    let heard = scene.hear(&[opt(option::LIST, &[])]);
    assert_eq!(heard.types(), [reply_type::SERVER, reply_type::ACK], "only the good name is listed");

    assert_eq!(fit_string(long).len(), 4096);
    assert_eq!(fit_string(&format!("a{long}")).len(), 4095, "cut between characters");
    assert_eq!(fit_string("one\0two"), "one");
}

#[test]
fn an_answer_that_nobody_asked_for_changes_nothing() {
    let mut negotiation = Negotiation::new(Limits::from(&Options::default()));
    negotiation.take_output();
    negotiation.listed(scene().list());
    negotiation.opened(scene().open("disk0"));
    assert_eq!((negotiation.step(), negotiation.take_output().len()), (Step::Read, 0));
}

/// Bytes that are often nearly right.
fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |len| prop::collection::vec(any::<u8>(), len);
    let name = prop_oneof![Just(b"disk0".to_vec()), Just(Vec::new()), bytes(0..20)];
    let info = (name, prop::collection::vec(any::<u16>(), 0..5)).prop_map(|(name, asked)| info_data(&name, &asked));
    let data = prop_oneof![info, bytes(0..40), Just(Vec::new()), bytes(9000..9001)];
    let option = (prop_oneof![0u32..13, any::<u32>()], data).prop_map(|(option, data)| opt(option, &data));
    let flags = prop_oneof![9 => (0u32..4).prop_map(flags), 1 => bytes(0..5)];
    let piece = prop_oneof![9 => option, 1 => bytes(0..40)];
    (flags, prop::collection::vec(piece, 0..8)).prop_map(|(flags, pieces)| [flags, pieces.concat()].concat())
}

proptest! {
    #[test]
    fn r11_arbitrary_bytes_never_panic_and_hold_no_more_than_the_limit(
        input in client_bytes(), piece in 1usize..5000, shutting_down: bool,
    ) {
        let options = Options { max_option_bytes: 8 << 10, max_handshake_bytes: 20_000, ..Options::default() };
        Scene { options, shutting_down, ..scene() }.hear_in(piece, &input);
    }

    #[test]
    fn the_answer_does_not_depend_on_how_the_bytes_arrive(input in client_bytes(), piece in 1usize..50) {
        prop_assert_eq!(scene().hear_in(piece, &input), scene().hear_in(1 << 20, &input));
    }
}
