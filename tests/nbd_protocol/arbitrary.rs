//! Whole sessions with clients that proptest makes up.

use ashlar::device::memory::MemoryDevice;
use ashlar::nbd::Options;
use proptest::prelude::*;

use crate::client::{
    EINVAL, ENOSPC, FUA, NO_HOLE, PAYLOAD_LEN, all_options, cmd, extended, info_data, kind, opt, option, request,
};
use crate::world::{SIZE, World};

/// Runs a session on paused time: whatever waits for ever fails at once.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// One request as a client may make it: with its payload, nearly right or not.
fn any_request(is_extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0), 2 => Just(FUA), 1 => Just(NO_HOLE), 1 => 0_u16..64, 1 => any::<u16>()];
    let command = prop_oneof![8 => 0_u16..9, 1 => any::<u16>()];
    let offset = prop_oneof![4 => 0..SIZE, 1 => SIZE - 100..SIZE + 100, 1 => any::<u64>()];
    let len = prop_oneof![6 => 0_u32..9000, 1 => any::<u32>()];
    (flags, command, any::<u64>(), offset, len, any::<u8>()).prop_map(
        move |(flags, command, cookie, offset, len, fill)| {
            let flags = if is_extended && command == cmd::WRITE { flags ^ PAYLOAD_LEN } else { flags };
            let carries = command == cmd::WRITE || is_extended && flags & PAYLOAD_LEN != 0;
            let payload = if carries { len.min(20_000) as usize } else { 0 };
            let header = match is_extended {
                // Some lengths have more than 32 bits.
                true => extended(flags, command, cookie, offset, u64::from(len) << if fill > 250 { 30 } else { 0 }),
                false => request(flags, command, cookie, offset, len),
            };
            [header, vec![fill; payload]].concat()
        },
    )
}

fn any_client() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let begin = |options: Vec<u8>| {
        let begin = [&3_u32.to_be_bytes()[..], &options, &option(opt::GO, &info_data("disk0", &[3]))].concat();
        prop_oneof![9 => Just(begin), 1 => bytes(40)]
    };
    let requests =
        |is_extended| prop::collection::vec(prop_oneof![9 => any_request(is_extended), 1 => bytes(40)], 0..12);
    let simple = (begin(Vec::new()), requests(false));
    let structured = (begin(all_options(opt::STRUCTURED_REPLY, "disk0")), requests(false));
    let extended = (begin(all_options(opt::EXTENDED_HEADERS, "disk0")), requests(true));
    prop_oneof![simple, structured, extended].prop_map(|(begin, parts)| [begin, parts.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever a client sends, and wherever it stops, the server neither panics nor hangs nor leaks a place, and
    /// serves the next client.
    #[test]
    fn r11_a_client_that_sends_anything_harms_nobody(input in any_client(), pipe in 1_usize..5000, half_close: bool) {
        block_on(async {
            let world = World::of(Options { max_connections: 1, ..Options::default() }, MemoryDevice::new(SIZE)).await;
            let mut client = world.connect_by(pipe);
            // Nobody reads: if the pipe fills up, the client leaves in the middle.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), client.try_send(&input)).await;
            if half_close {
                let _ = tokio::time::timeout(std::time::Duration::from_secs(1), client.finish_sending()).await;
            }
            drop(client);
            world.all_gone().await;
            world.attach().await.disconnect().await;
            world.all_gone().await;
        });
    }

    /// Sent in one go, requests are answered each once, as a model says; and the disk ends as the model's. Changes
    /// do not overlap, since the order of overlapping ones is open.
    #[test]
    fn pipelined_requests_are_answered_as_a_model_says(
        steps in prop::collection::vec((0_usize..7, 1_u32..9000, any::<u8>()), 1..30),
        pipe in prop_oneof![1_usize..70_000, 1_usize..64],
    ) {
        block_on(async {
            let world = World::small().await;
            let mut client = world.connect_by(pipe);
            client.go("disk0").await;
            let mut model = vec![0; SIZE as usize];
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            for (step, (kind, len, fill)) in steps.into_iter().enumerate() {
                let (cookie, at) = (step as u64, step * 20_000);
                let area = at..at + len as usize;
                let (command, offset, payload, error) = match kind {
                    0 => (cmd::WRITE, at as u64, len, 0),
                    1 => (cmd::WRITE_ZEROES, at as u64, 0, 0),
                    2 => (cmd::TRIM, at as u64, 0, 0),
                    3 => (cmd::CACHE, at as u64, 0, 0),
                    4 => (cmd::READ, SIZE - 100_000, 0, 0),
                    5 => (cmd::WRITE, SIZE, len, ENOSPC),
                    _ => (99, 0, 0, EINVAL),
                };
                match command {
                    cmd::WRITE if error == 0 => model[area].fill(fill),
                    _ => {}
                }
                sent.extend(request(0, command, cookie, offset, len));
                sent.extend(vec![fill; payload as usize]);
                expected.push((error, if command == cmd::READ { len } else { 0 }));
            }
            // The client sends without reading until the pipe is full, then reads: so sending goes on beside.
            let (mut sending, mut reading) = client.split();
            let count = expected.len();
            let send = sending.send(&sent);
            let read = async {
                let mut answered = vec![0; count];
                for _ in 0..count {
                    let reply = reading.reply().await;
                    let (error, data) = expected[reply.cookie as usize];
                    assert_eq!(reply.error, error);
                    assert_eq!(reading.bytes(data as usize).await, vec![0; data as usize]);
                    answered[reply.cookie as usize] += 1;
                }
                assert_eq!(answered, vec![1; count]);
            };
            tokio::join!(send, read);
            drop((sending, reading));
            world.all_gone().await;
            assert!(world.attach().await.read(0, SIZE as u32).await.unwrap() == model);
        });
    }

    /// K2 to K4: reads that overtake each other come back in chunks, each range once and in full, with DF in one; and what
    /// BLOCK_STATUS calls a hole is what they leave out.
    #[test]
    fn k2_k3_k4_k18_chunks_put_together_are_the_disk(
        writes in prop::collection::vec((0_u64..1 << 23, 1_usize..9000), 0..6),
        asked in prop::collection::vec((0_u64..1 << 23, 1_u32..3 << 20, 0_u16..3), 1..12),
        is_extended: bool, pipe in 1024_usize..70_000,
    ) {
        block_on(async {
            const DISK: u64 = 8 << 20;
            let world = World::of(Options::default(), MemoryDevice::new(DISK)).await;
            let mut writer = world.attach().await;
            let mut model = vec![0; DISK as usize];
            for (offset, len) in writes {
                let len = len.min((DISK - offset) as usize);
                assert_eq!(writer.write(0, offset, &vec![9; len]).await, 0);
                model[offset as usize..offset as usize + len].fill(9);
            }
            let mut client = world.connect_by(pipe);
            client.go_with(if is_extended { opt::EXTENDED_HEADERS } else { opt::STRUCTURED_REPLY }, "disk0").await;
            let asked: Vec<_> =
                asked.into_iter().map(|(at, len, how)| (at, u64::from(len).min(DISK - at), how)).collect();
            let mut sent = Vec::new();
            for (cookie, &(offset, len, how)) in asked.iter().enumerate() {
                let (flags, command) = [(0, cmd::READ), (crate::client::DF, cmd::READ), (0, cmd::BLOCK_STATUS)][how as usize];
                sent.extend(match is_extended {
                    true => extended(flags, command, cookie as u64, offset, len),
                    false => request(flags, command, cookie as u64, offset, len as u32),
                });
            }
            let (mut sending, mut reading) = client.split();
            let read = async {
                let mut left: Vec<Option<u64>> = asked.iter().map(|(_, len, _)| Some(*len)).collect();
                while left.iter().any(Option::is_some) {
                    let chunk = reading.chunk().await;
                    let (offset, len, how) = asked[chunk.cookie as usize];
                    let missing = left[chunk.cookie as usize].as_mut().expect("nothing follows the last chunk");
                    let at = offset + len - *missing;
                    *missing -= match chunk.kind {
                        kind::DATA => {
                            let data = &chunk.payload[8..];
                            assert_eq!(chunk.number(0, 8), at);
                            assert!(data == &model[at as usize..at as usize + data.len()]);
                            data.len() as u64
                        }
                        kind::HOLE if how == 0 => {
                            assert_eq!(chunk.number(0, 8), at);
                            chunk.number(8, 4)
                        }
                        kind::STATUS | kind::STATUS_EXT if how == 2 => {
                            let (begin, each) = if is_extended { (8, 8) } else { (4, 4) };
                            let mut at = at as usize;
                            for place in (begin..chunk.payload.len()).step_by(2 * each) {
                                let len = chunk.number(place, each) as usize;
                                let is_hole = chunk.number(place + each, each) == 3;
                                assert!(!is_hole || model[at..at + len].iter().all(|byte| *byte == 0));
                                at += len;
                            }
                            assert_eq!(at as u64, offset + len);
                            len
                        }
                        other => panic!("type {other:#x}"),
                    };
                    if chunk.is_last {
                        assert_eq!(left[chunk.cookie as usize].take(), Some(0));
                    } else {
                        assert_eq!(how, 0, "one chunk with DF, and of BLOCK_STATUS");
                    }
                }
            };
            tokio::join!(sending.send(&sent), read);
        });
    }
}
