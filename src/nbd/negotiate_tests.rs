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
    agreed: Agreed,
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
    tls: Tls,
    versions: Vec<Version>,
}

fn scene() -> Scene {
    let (exports, versions) = (vec!["disk0"], Vec::new());
    Scene { options: Options::default(), exports, device: DEVICE, shutting_down: false, tls: Tls::Off, versions }
}

fn version(number: u64) -> Version {
    Version { name: format!("day{number}"), number }
}

fn base() -> Contexts {
    Contexts { allocation: true, ..Contexts::default() }
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

    fn look(&self, name: &str, contexts: &Contexts) -> Result<Vec<Version>, ExportError> {
        self.open(name)?;
        Ok(self.versions.iter().filter(|version| contexts.wants(version)).cloned().collect())
    }

    /// Feeds the client's bytes in pieces of `piece` bytes.
    fn hear_in(&self, piece: usize, input: &[u8]) -> Heard {
        let mut negotiation = Negotiation::new(Limits::from(&self.options)).with_tls(self.tls);
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
                Step::Open { name, .. } if name == "secret" && self.tls != Tls::Running => negotiation.needs_tls(),
                Step::Open { name, .. } => negotiation.opened(self.open(&name)),
                Step::Look { name, contexts } => negotiation.looked(self.look(&name, &contexts)),
                step => break step,
            }
            let bound = self.options.max_option_bytes as usize + OptionHeader::BYTES + piece;
            assert!(negotiation.input.len() <= bound, "holds no more than one option and what was read ahead");
        };
        let agreed = negotiation.agreed();
        let rest = [&negotiation.into_rest()[..], &pieces.flatten().copied().collect::<Vec<u8>>()].concat();
        let (replies, tail) = parse_replies(&output[18..]);
        Heard { greeting: output[..18].to_vec(), replies, tail, step, agreed, rest }
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
        assert_eq!(heard.tail[..10], *b"\0\0\0\0\x40\0\0\0\x0d\x6d");
        assert!(heard.tail[10..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn h5_c5_an_option_without_its_magic_closes() {
    let heard = scene().hear(&[b"IHAVEOPS\0\0\0\x03\0\0\0\0".to_vec()]);
    assert_eq!(heard.step, Step::Close(CloseReason::BadMagic));
    assert!(heard.replies.is_empty());
}

/// Byte by byte: magic, the option, the type, the length, the data.
#[test]
fn h6_a_reply_has_the_magic_of_replies_and_repeats_the_option() {
    for number in [0_u32, 4, 12, 99, u32::MAX] {
        let mut negotiation = Negotiation::new(Limits::from(&Options::default()));
        negotiation.receive(&[flags(NO_ZEROES), opt(number, b"xyz"), opt(option::ABORT, b"")].concat());
        assert_eq!(negotiation.step(), Step::Finish);
        let said = negotiation.take_output();
        let text = "the option is not known to this server";
        let unsupported = [
            &[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9][..],
            &number.to_be_bytes(),
            &[0x80, 0, 0, 1, 0, 0, 0, text.len() as u8],
            text.as_bytes(),
        ];
        let acknowledged = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(said[18..], [&unsupported.concat()[..], &acknowledged].concat());
    }
}

#[test]
fn h7_o9_fault_14_unknown_options_of_any_length_are_unsupported_and_leave_no_trace() {
    // 4 was withdrawn.
    for unknown in [0, 4, 12, 255, u32::MAX] {
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
fn s2_o18_the_minimum_block_size_is_what_is_configured_and_fits_the_export() {
    for (configured, size, told) in [
        (1, 1 << 30, 1),
        (4096, 1 << 30, 4096),
        (65536, 1 << 30, 65536),
        (65536, (1 << 30) + 4096, 4096),
        (4096, 1001, 1),
        (4096, 0, 4096),
    ] {
        let options = Options { minimum_block_size: configured, ..Options::default() };
        let scene = Scene { options, device: DeviceInfo { size, ..DEVICE }, ..scene() };
        let heard = scene.hear(&[go("disk0")]);
        let mut data = &heard.replies[1].2[2..];
        assert_eq!((data.get_u32(), data.get_u32()), (told, told.max(4096)), "{configured} {size}");
        assert_eq!(heard.step, Step::Enter, "it is never required");
    }
}

/// F1, F2, F3, F4, F5, F6, F7, F8, F9, F10, F11, F12, F13.
#[test]
fn f1_to_f13_flags_say_what_the_export_can_do_and_what_was_agreed() {
    let flags = |read_only, style| transmission_flags(&DeviceInfo { read_only, ..DEVICE }, style);
    // HAS_FLAGS, FLUSH, FUA, MULTI_CONN, CACHE; then TRIM, WRITE_ZEROES and FAST_ZERO, or READ_ONLY (fault 11); DF with structured
    // replies. Clear: ROTATIONAL (4), RESIZE (9), BLOCK_STATUS_PAYLOAD (12).
    let always = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
    for (style, in_one_piece) in [(Style::Simple, 0), (Style::Structured, 1 << 7), (Style::Extended, 1 << 7)] {
        assert_eq!(flags(false, style), always | 1 << 5 | 1 << 6 | 1 << 11 | in_one_piece);
        assert_eq!(flags(true, style), always | 1 << 1 | in_one_piece);
    }
}

const STRUCTURED: Agreed = Agreed { style: Style::Structured, allocation: false, changed: Vec::new() };
const SELECTED: Agreed = Agreed { style: Style::Structured, allocation: true, changed: Vec::new() };

fn structured() -> Vec<u8> {
    opt(option::STRUCTURED_REPLY, &[])
}

fn contexts_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let queries_bytes: Vec<u8> = queries.iter().flat_map(|query| counted(query)).collect();
    [counted(name), (queries.len() as u32).to_be_bytes().to_vec(), queries_bytes].concat()
}

fn set(name: &str, queries: &[&[u8]]) -> Vec<u8> {
    opt(option::SET_META_CONTEXT, &contexts_data(name.as_bytes(), queries))
}

fn list(name: &str, queries: &[&[u8]]) -> Vec<u8> {
    opt(option::LIST_META_CONTEXT, &contexts_data(name.as_bytes(), queries))
}

fn select(name: &str) -> Vec<u8> {
    set(name, &[b"base:allocation"])
}

/// What a client agrees on that says this and then GO.
fn agreed(options: &[Vec<u8>], name: &str) -> Agreed {
    let heard = scene().hear(&[options, &[go(name)]].concat());
    assert_eq!(heard.step, Step::Enter);
    heard.agreed
}

#[test]
fn o20_h9_structured_replies_are_agreed_and_data_is_invalid() {
    let heard = scene().hear(&[opt(option::STRUCTURED_REPLY, b"x"), go("disk0")]);
    assert_eq!((heard.types()[0], heard.agreed), (reply_type::ERR_INVALID, Agreed::default()));
    let heard = scene().hear(&[structured(), structured(), go("disk0")]);
    assert_eq!((heard.types()[..2].to_vec(), heard.agreed.clone()), (vec![reply_type::ACK; 2], STRUCTURED));
    let flags = |heard: &Heard| heard.replies[heard.replies.len() - 3].2[10..12].to_vec();
    assert_eq!(flags(&heard), [0x0d, 0xed], "DF is offered");
    assert_eq!(flags(&scene().hear(&[go("disk0")])), [0x0d, 0x6d], "and not to others (rule F7)");
    let heard = scene().hear(&[structured(), opt(option::EXPORT_NAME, b"disk0")]);
    assert_eq!((heard.agreed, heard.tail[..10].to_vec()), (STRUCTURED, b"\0\0\0\0\x40\0\0\0\x0d\xed".to_vec()));
}

#[test]
fn o21_o26_contexts_before_structured_replies_are_invalid_and_not_selected() {
    let heard = scene().hear(&[list("disk0", &[]), select("disk0"), structured(), go("disk0")]);
    assert_eq!(heard.types()[..3], [reply_type::ERR_INVALID, reply_type::ERR_INVALID, reply_type::ACK]);
    assert_eq!(heard.agreed, STRUCTURED);
}

#[test]
fn o22_o23_malformed_contexts_are_invalid_and_leave_no_trace() {
    let good = contexts_data(b"disk0", &[b"base:allocation"]);
    let (mut count, mut long_name) = (good.clone(), good.clone());
    count[12] = 2;
    long_name[3] = 200;
    let mut endless = good.clone();
    endless[9..13].fill(0xff);
    for bad in [
        vec![],
        vec![0; 3],
        vec![0; 7],
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
        count,
        long_name,
        endless,
        [&[0xff; 4], &good[4..]].concat(),
        contexts_data(b"di\0sk", &[]),
        contexts_data(&[0xff], &[]),
        contexts_data(b"disk0", &[b"base:all\0cation"]),
        contexts_data(b"disk0", &[&[b':'; 4097]]),
        contexts_data(b"disk0", &[b"base:allocation", &[0xff, b':']]),
        contexts_data(b"disk0", &[b"base:allocation", b"allocation"]),
        contexts_data(b"disk0", &[b""]),
    ] {
        for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            let heard = scene().hear(&[structured(), opt(option, &bad), select("disk0"), go("disk0")]);
            let types = [reply_type::ACK, reply_type::ERR_INVALID, reply_type::META_CONTEXT, reply_type::ACK];
            assert_eq!((&heard.types()[..4], heard.agreed), (&types[..], SELECTED), "{bad:?}");
        }
    }
}

#[test]
fn o24_o25_list_names_the_one_context_there_is() {
    let base = (option::LIST_META_CONTEXT, reply_type::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec());
    for (queries, found) in [
        (&[][..], true),
        (&[b"base:".as_slice()], true),
        (&[b"base:allocation"], true),
        (&[b"base:allocation", b"base:", b"base:allocation"], true),
        (&[b"x-other:all", b"base:allocation"], true),
        (&[b"base:unknown"], false),
        (&[b"base:Allocation"], false),
        (&[b"x-other:"], false),
        (&[b":"], false),
    ] {
        let heard = scene().hear(&[structured(), list("disk0", queries)]);
        let expected = if found { vec![base.clone()] } else { vec![] };
        let (ack, replies) = heard.replies[1..].split_last().unwrap();
        assert_eq!((replies, ack.1), (&expected[..], reply_type::ACK), "{queries:?}");
    }
    assert_eq!(agreed(&[structured(), list("disk0", &[])], "disk0"), STRUCTURED, "a list selects nothing");
    assert_eq!(agreed(&[structured(), select("disk0"), list("disk0", &[])], "disk0"), SELECTED, "nor takes it back");
}

#[test]
fn o25_o27_set_selects_what_is_named_in_full() {
    let heard = scene().hear(&[structured(), set("disk0", &[b"base:allocation", b"base:x", b"base:allocation"])]);
    let selected = (option::SET_META_CONTEXT, reply_type::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec());
    assert_eq!(heard.replies[1..], [selected, (option::SET_META_CONTEXT, reply_type::ACK, vec![])]);
    for queries in [&[][..], &[b"base:".as_slice()], &[b"base:unknown"], &[b"qemu:dirty-bitmap:x"]] {
        let heard = scene().hear(&[structured(), select("disk0"), set("disk0", queries), go("disk0")]);
        assert_eq!(heard.types()[3], reply_type::ACK, "no error, and nothing selected: {queries:?}");
        assert_eq!(heard.agreed, STRUCTURED, "the selection before is gone: {queries:?}");
    }
}

/// Contexts of our own: one for each version that there is, by its name in full.
#[test]
fn o24_o25_what_has_changed_is_a_context_of_each_version() {
    let scene = Scene { versions: (1..6).map(version).collect(), ..scene() };
    let context =
        |option, id: u32, name: &str| (option, reply_type::META_CONTEXT, [&id.to_be_bytes(), name.as_bytes()].concat());
    let listed = |queries: &[&[u8]]| {
        let heard = scene.hear(&[structured(), list("disk0", queries)]);
        assert_eq!(heard.types().last(), Some(&reply_type::ACK));
        let replies = &heard.replies[1..heard.replies.len() - 1];
        replies.iter().map(|reply| String::from_utf8(reply.2[4..].to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let days = (1..6).map(|n| format!("ashlar:changed:day{n}")).collect::<Vec<_>>();
    assert_eq!(listed(&[]), [&["base:allocation".to_owned()], &days[..]].concat());
    assert_eq!((listed(&[b"ashlar:"]), listed(&[b"ashlar:changed:"])), (days.clone(), days.clone()));
    assert_eq!(listed(&[b"ashlar:changed:day4", b"ashlar:changed:day9", b"ashlar:other:day1"]), days[3..4]);

    let set_both = set("disk0", &[b"ashlar:changed:day4", b"base:allocation", b"ashlar:changed:day2"]);
    let heard = scene.hear(&[structured(), set_both.clone(), go("disk0")]);
    let option = option::SET_META_CONTEXT;
    let (base, two, four) = (
        context(option, 1, "base:allocation"),
        context(option, 2, "ashlar:changed:day2"),
        context(option, 3, "ashlar:changed:day4"),
    );
    assert_eq!(heard.replies[1..5], [base, two, four, (option, reply_type::ACK, vec![])]);
    assert_eq!(heard.agreed, Agreed { changed: vec![version(2), version(4)], ..SELECTED });

    for (queries, changed) in [
        (&[b"ashlar:changed:day4".as_slice(), b"ashlar:changed:day4"][..], vec![version(4)]),
        (&[b"ashlar:changed:"], vec![]),
        (&[b"ashlar:", b"ashlar:changed:DAY4", b"ashlar:changed:day", b"ashlar:changed:day4 "], vec![]),
    ] {
        let heard = scene.hear(&[structured(), set_both.clone(), set("disk0", queries), go("disk0")]);
        assert_eq!(heard.agreed, Agreed { changed, ..STRUCTURED }, "{queries:?}");
    }
}

#[test]
fn o27_so_many_contexts_of_what_has_changed_and_no_more() {
    let scene = Scene { versions: (1..99).map(version).collect(), ..scene() };
    let asked = |count: u64| {
        let queries: Vec<Vec<u8>> = (1..=count).map(|n| format!("ashlar:changed:day{n}").into_bytes()).collect();
        queries
    };
    for (count, list_is, set_is) in [
        (4, reply_type::ACK, reply_type::ACK),
        (5, reply_type::ACK, reply_type::ERR_TOO_BIG),
        (64, reply_type::ACK, reply_type::ERR_TOO_BIG),
        (65, reply_type::ERR_TOO_BIG, reply_type::ERR_TOO_BIG),
    ] {
        let queries = asked(count);
        let queries: Vec<&[u8]> = queries.iter().map(|query| &query[..]).collect();
        let heard = scene.hear(&[structured(), list("disk0", &queries)]);
        assert_eq!(heard.types().last(), Some(&list_is), "{count}");
        let heard = scene.hear(&[structured(), select("disk0"), set("disk0", &queries), go("disk0")]);
        assert!(heard.types().contains(&set_is), "{count}");
        let changed = if count == 4 { (1..5).map(version).collect() } else { vec![] };
        assert_eq!(heard.agreed, Agreed { changed, ..STRUCTURED }, "{count}");
    }
}

#[test]
fn o27_a_set_that_fails_clears_the_selection_too() {
    let too_long = contexts_data(b"disk0", &vec![b"base:allocation".as_slice(); 10_000]);
    for (failing, reply_type) in [
        (opt(option::SET_META_CONTEXT, b"x"), reply_type::ERR_INVALID),
        (set("nope", &[b"base:allocation"]), reply_type::ERR_UNKNOWN),
        (set("busy", &[b"base:allocation"]), reply_type::ERR_POLICY),
        (opt(option::SET_META_CONTEXT, &too_long), reply_type::ERR_TOO_BIG),
    ] {
        let heard = scene().hear(&[structured(), select("disk0"), failing, go("disk0")]);
        assert_eq!((heard.types()[3], heard.agreed), (reply_type, STRUCTURED));
    }
}

/// The empty name and the name that it stands for count as two, as the client must send the same bytes.
#[test]
fn o27_a_selection_holds_for_the_export_that_it_named() {
    let scene = Scene { exports: vec!["disk0", "disk1"], ..scene() };
    for (selected, entered, holds) in [
        ("disk0", "disk0", true),
        ("", "", true),
        ("disk1", "disk0", false),
        ("disk0", "disk1", false),
        ("", "disk0", false),
    ] {
        let heard = scene.hear(&[structured(), select(selected), go("nope"), go(entered)]);
        assert_eq!((heard.step, heard.agreed.allocation), (Step::Enter, holds), "{selected} {entered}");
        let by_name = scene.hear(&[structured(), select(selected), opt(option::EXPORT_NAME, entered.as_bytes())]);
        assert_eq!((by_name.step, by_name.agreed.allocation), (Step::Enter, holds), "{selected} {entered}");
    }
}

#[test]
fn o28_contexts_of_no_export_are_unknown_and_thousands_of_queries_are_answered_once() {
    let many = vec![b"base:allocation".as_slice(); 3000];
    let heard = scene().hear(&[structured(), list("nope", &[]), set("nope", &[]), set("disk0", &many)]);
    let types = [reply_type::ERR_UNKNOWN, reply_type::ERR_UNKNOWN, reply_type::META_CONTEXT, reply_type::ACK];
    assert_eq!(heard.types()[1..], types);
    let heard = scene().hear(&[structured(), list("disk0", &vec![b"a:".as_slice(); 9000]), go("disk0")]);
    assert_eq!((heard.types()[1], heard.agreed), (reply_type::ACK, STRUCTURED));
}

/// Section 13 of the list.
#[test]
fn o29_extended_headers_take_the_place_of_structured_replies_and_need_go() {
    let extended = opt(option::EXTENDED_HEADERS, &[]);
    let heard = scene().hear(&[opt(option::EXTENDED_HEADERS, b"x"), go("disk0")]);
    assert_eq!((heard.types()[0], heard.agreed), (reply_type::ERR_INVALID, Agreed::default()));
    for before in [vec![], structured()] {
        let heard =
            scene().hear(&[before, extended.clone(), extended.clone(), structured(), select("disk0"), go("disk0")]);
        let asked =
            |option| heard.replies.iter().filter(|reply| reply.0 == option).map(|reply| reply.1).collect::<Vec<_>>();
        assert_eq!(asked(option::EXTENDED_HEADERS), [reply_type::ACK; 2]);
        assert_eq!(asked(option::STRUCTURED_REPLY).last(), Some(&reply_type::ERR_EXT_HEADER_REQD));
        assert_eq!(heard.agreed, Agreed { style: Style::Extended, ..SELECTED });
    }
    let heard = scene().hear(&[extended, opt(option::EXPORT_NAME, b"disk0")]);
    assert_eq!((heard.step, heard.tail.len()), (Step::Close(CloseReason::OnlyGo), 0));
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
    let query = prop_oneof![3 => Just(b"base:allocation".to_vec()), 1 => Just(b"base:".to_vec()), 1 => bytes(0..9)];
    let contexts = prop::collection::vec(query, 0..4)
        .prop_map(|queries| contexts_data(b"disk0", &queries.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    let data = prop_oneof![info, contexts, bytes(0..40), Just(Vec::new()), bytes(9000..9001)];
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

fn starttls() -> Vec<u8> {
    opt(option::STARTTLS, b"")
}

fn with_tls(tls: Tls) -> Scene {
    Scene { tls, exports: vec!["disk0", "secret"], ..scene() }
}

#[test]
fn o10_starttls_carries_no_data_is_said_once_and_only_where_there_is_tls() {
    for (tls, data, expected) in [
        (Tls::Off, &b""[..], reply_type::ERR_UNSUP),
        (Tls::Off, b"x", reply_type::ERR_INVALID),
        (Tls::Offered, b"x", reply_type::ERR_INVALID),
        (Tls::Required, b"x", reply_type::ERR_INVALID),
        (Tls::Running, b"", reply_type::ERR_INVALID),
        (Tls::Running, b"x", reply_type::ERR_INVALID),
    ] {
        let heard = with_tls(tls).hear(&[opt(option::STARTTLS, data)]);
        assert_eq!((heard.types(), heard.step), (vec![expected], Step::Read), "{tls:?} {data:?}");
    }
    for tls in [Tls::Offered, Tls::Required] {
        let heard = with_tls(tls).hear(&[starttls()]);
        assert_eq!((heard.types(), heard.step), (vec![reply_type::ACK], Step::StartTls));
    }
}

#[test]
fn o11_plain_text_behind_starttls_is_no_part_of_what_tls_protects() {
    for behind in [go("disk0"), vec![0x16], opt(option::ABORT, b"")] {
        let heard = with_tls(Tls::Required).hear(&[starttls(), behind]);
        assert_eq!(heard.step, Step::Close(CloseReason::PlainBehindStartTls));
        assert_eq!(heard.replies, [], "not even an ACK");
    }
}

#[test]
fn o11_starttls_forgets_what_was_said_before_but_for_the_flags_and_the_counts() {
    let options = Options { max_options: 3, ..Options::default() };
    let mut negotiation = Negotiation::new(Limits::from(&options)).with_tls(Tls::Offered);
    negotiation.receive(&[flags(1), opt(99, b""), starttls()].concat());
    assert_eq!(negotiation.step(), Step::StartTls);
    // The ACK is not taken: what was to be said in plain text is never said over TLS.
    let mut negotiation = negotiation.over_tls();
    assert_eq!(negotiation.take_output(), "");
    assert_eq!(negotiation.step(), Step::Read);
    negotiation.receive(&[opt(option::EXPORT_NAME, b"disk0"), opt(99, b"")].concat());
    assert_eq!(negotiation.step(), Step::Open { name: "disk0".to_owned(), only_info: false });
    negotiation.opened(scene().open("disk0"));
    assert_eq!(negotiation.take_output().len(), 10 + EXPORT_NAME_PAD, "the flag of before TLS holds");
    let mut counted = with_tls(Tls::Offered);
    counted.options = options;
    let heard = counted.hear(&[opt(99, b""), opt(99, b""), opt(99, b""), starttls()]);
    assert_eq!(heard.step, Step::Close(CloseReason::TooManyOptions));
}

#[test]
fn t2_without_tls_nobody_is_told_to_begin_it() {
    let all = [opt(99, b""), go("secret"), opt(option::INFO, &info_data(b"secret", &[])), go("none"), starttls()];
    let heard = with_tls(Tls::Off).hear(&all);
    assert!(!heard.types().contains(&reply_type::ERR_TLS_REQD), "{heard:?}");
    assert_eq!(heard.types()[1..3], [reply_type::ERR_POLICY; 2]);
}

#[test]
fn t3_where_tls_is_required_every_option_but_starttls_and_abort_is_told_so() {
    let options = [
        go("disk0"),
        opt(option::INFO, &info_data(b"none", &[])),
        opt(option::LIST, b""),
        opt(option::LIST, b"data"),
        opt(8, b""),
        opt(10, &[7; 40]),
        opt(0x1234, &[0; 100_000]),
        opt(option::GO, b"malformed"),
    ];
    let heard = with_tls(Tls::Required).hear(&options);
    assert_eq!((heard.types(), heard.step), (vec![reply_type::ERR_TLS_REQD; options.len()], Step::Read));
    let heard = with_tls(Tls::Required).hear(&[opt(option::ABORT, b"")]);
    assert_eq!((heard.types(), heard.step), (vec![reply_type::ACK], Step::Finish));
    let heard = with_tls(Tls::Required).hear(&[opt(option::EXPORT_NAME, b"disk0")]);
    assert_eq!((heard.replies, heard.step), (vec![], Step::Close(CloseReason::NoSuchExport)));
}

#[test]
fn t4_where_tls_is_offered_only_info_and_go_of_an_export_for_tls_are_told_so() {
    let info = |name: &str| opt(option::INFO, &info_data(name.as_bytes(), &[]));
    let heard = with_tls(Tls::Offered).hear(&[info("secret"), go("secret"), opt(99, b""), go("none"), info("disk0")]);
    let (required, unknown) = (reply_type::ERR_TLS_REQD, reply_type::ERR_UNKNOWN);
    assert_eq!(heard.types()[..4], [required, required, reply_type::ERR_UNSUP, unknown]);
    assert_eq!(heard.types().last(), Some(&reply_type::ACK));
    let heard = with_tls(Tls::Offered).hear(&[opt(option::EXPORT_NAME, b"secret")]);
    assert_eq!((heard.replies, heard.step), (vec![], Step::Close(CloseReason::NoSuchExport)));
}

#[test]
fn t5_over_tls_nobody_is_told_to_begin_it() {
    let heard = with_tls(Tls::Running).hear(&[opt(99, b""), go("none"), go("secret")]);
    assert_eq!(heard.types()[..2], [reply_type::ERR_UNSUP, reply_type::ERR_UNKNOWN]);
    assert_eq!(heard.step, Step::Enter);
}

#[test]
fn o11_structured_replies_extended_headers_and_contexts_of_before_tls_are_forgotten() {
    for before in [option::STRUCTURED_REPLY, option::EXTENDED_HEADERS] {
        let mut negotiation = Negotiation::new(Limits::from(&Options::default())).with_tls(Tls::Offered);
        negotiation.receive(
            &[
                flags(3),
                opt(before, b""),
                opt(option::SET_META_CONTEXT, &contexts_data(b"disk0", &[b"base:allocation"])),
            ]
            .concat(),
        );
        assert_eq!(negotiation.step(), Step::Look { name: "disk0".to_owned(), contexts: base() });
        negotiation.looked(Ok(Vec::new()));
        negotiation.receive(&starttls());
        assert_eq!(negotiation.step(), Step::StartTls);
        let mut negotiation = negotiation.over_tls();
        negotiation.receive(&go("disk0"));
        assert_eq!(negotiation.step(), Step::Open { name: "disk0".to_owned(), only_info: false });
        negotiation.opened(scene().open("disk0"));
        assert_eq!(negotiation.agreed(), Agreed::default());
    }
}

#[test]
fn t4_contexts_of_an_export_that_is_served_over_tls_only_are_told_over_tls_only() {
    let mut negotiation = Negotiation::new(Limits::from(&Options::default())).with_tls(Tls::Offered);
    negotiation.receive(
        &[
            flags(3),
            opt(option::STRUCTURED_REPLY, b""),
            opt(option::SET_META_CONTEXT, &contexts_data(b"secret", &[b"base:allocation"])),
        ]
        .concat(),
    );
    assert_eq!(negotiation.step(), Step::Look { name: "secret".to_owned(), contexts: base() });
    negotiation.needs_tls();
    assert_eq!(negotiation.step(), Step::Read, "the next option");
    let said = negotiation.take_output();
    let reply = &said[said.len() - 8 - "this export is served over TLS only; begin with STARTTLS".len()..];
    assert_eq!(reply[..4], reply_type::ERR_TLS_REQD.to_be_bytes());
}
