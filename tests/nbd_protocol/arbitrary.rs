//! Whole sessions with clients that proptest makes up.

use ashlar::device::memory::MemoryDevice;
use ashlar::nbd::Options;
use proptest::prelude::*;

use crate::client::{EINVAL, ENOSPC, FUA, NO_HOLE, cmd, info_data, opt, option, request};
use crate::world::{SIZE, World};

/// Runs a session on paused time: whatever waits for ever fails at once.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// One request as a client may make it: with its payload, nearly right or not.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0), 2 => Just(FUA), 1 => Just(NO_HOLE), 1 => any::<u16>()];
    let command = prop_oneof![8 => 0_u16..9, 1 => any::<u16>()];
    let offset = prop_oneof![4 => 0..SIZE, 1 => SIZE - 100..SIZE + 100, 1 => any::<u64>()];
    let len = prop_oneof![6 => 0_u32..9000, 1 => any::<u32>()];
    (flags, command, any::<u64>(), offset, len, any::<u8>()).prop_map(|(flags, command, cookie, offset, len, fill)| {
        let payload = if command == cmd::WRITE { len.min(20_000) as usize } else { 0 };
        [request(flags, command, cookie, offset, len), vec![fill; payload]].concat()
    })
}

fn any_client() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let begin = [&3_u32.to_be_bytes()[..], &option(opt::GO, &info_data("disk0", &[3]))].concat();
    let begin = prop_oneof![9 => Just(begin), 1 => bytes(40)];
    let part = prop_oneof![9 => any_request(), 1 => bytes(40)];
    (begin, prop::collection::vec(part, 0..12)).prop_map(|(begin, parts)| [begin, parts.concat()].concat())
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
        steps in prop::collection::vec((0_usize..7, 1_u32..9000, any::<u8>()), 1..30), pipe in 1_usize..70_000,
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
}
