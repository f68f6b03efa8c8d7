//! Structured replies: what a READ consists of, and how errors are told.

use std::sync::Arc;

use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::device::{Allocation, DeviceError, DeviceInfo, Run};
use ashlar::nbd::Options;

use crate::client::{Client, DF, EINVAL, EIO, ENOSPC, EPERM, ESHUTDOWN, cmd, kind, opt, request};
use crate::world::{Gate, SIZE, Scripted, World, read_only};

const MIB: u64 = 1 << 20;

fn run(len: u64, allocation: Allocation) -> Run {
    Run { len, allocation }
}

/// Reads in chunks, and puts them together: the bytes, and how many of them came over the wire.
async fn read(client: &mut Client, flags: u16, offset: u64, len: u32) -> (Vec<u8>, usize) {
    client.send(&request(flags, cmd::READ, 5, offset, len)).await;
    let (mut bytes, mut sent) = (Vec::new(), 0);
    for chunk in client.chunks().await {
        assert_eq!((chunk.cookie, chunk.offset), (5, None));
        // In order, so without a gap and without an overlap (K3).
        assert_eq!(chunk.number(0, 8), offset + bytes.len() as u64);
        match chunk.kind {
            kind::DATA => {
                assert!(chunk.payload.len() > 8);
                sent += chunk.payload.len() - 8;
                bytes.extend_from_slice(&chunk.payload[8..]);
            }
            kind::HOLE => {
                assert!(chunk.payload.len() == 12 && chunk.number(8, 4) > 0);
                bytes.resize(bytes.len() + chunk.number(8, 4) as usize, 0);
            }
            other => panic!("type {other:#x} in answer to a READ"),
        }
    }
    assert_eq!(bytes.len(), len as usize);
    (bytes, sent)
}

#[tokio::test(start_paused = true)]
async fn k2_k3_k4_k7_holes_are_told_and_never_sent() {
    let world = World::of(Options::default(), MemoryDevice::new(8 * MIB)).await;
    let mut client = world.connect();
    assert_eq!(client.go_with(opt::STRUCTURED_REPLY, "disk0").await.flags & 1 << 7, 1 << 7, "F7");
    let data = vec![0x5a; MIB as usize];
    client.send(&request(0, cmd::WRITE, 1, MIB, MIB as u32)).await;
    client.send(&data).await;
    let reply = client.reply().await;
    assert_eq!((reply.error, reply.cookie), (0, 1), "what has nothing to say may be simple");

    let (bytes, sent) = read(&mut client, 0, 0, 8 << 20).await;
    assert!(bytes == [&vec![0; MIB as usize][..], &data, &vec![0; 6 << 20]].concat());
    assert_eq!(sent, 1 << 20);
    let (bytes, sent) = read(&mut client, 0, MIB - 513, 514).await;
    assert_eq!((&bytes[..], sent), (&[&[0; 513][..], &[0x5a]].concat()[..], 1));
    assert_eq!(read(&mut client, 0, 4 * MIB, 4096).await, (vec![0; 4096], 0));
    // Less than any block is not worth a chunk.
    assert_eq!(read(&mut client, 0, 4 * MIB, 100).await, (vec![0; 100], 100));
    assert_eq!(read(&mut client, 0, MIB - 100, 200).await.1, 200);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k6_df_is_one_chunk_of_data_of_any_length() {
    let world = World::of(Options::default(), MemoryDevice::new(64 * MIB)).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    client.send(&[request(0, cmd::WRITE, 1, MIB, 1), vec![1]].concat()).await;
    client.reply().await;
    for (offset, len) in [(MIB, 1), (0, 65536), (MIB - 5, 65536), (1, 32 << 20)] {
        client.send(&request(DF, cmd::READ, 9, offset, len)).await;
        let chunk = client.chunk().await;
        assert_eq!((chunk.is_last, chunk.kind, chunk.number(0, 8)), (true, kind::DATA, offset));
        let expected: Vec<u8> = (offset..offset + u64::from(len)).map(|at| u8::from(at == MIB)).collect();
        assert!(chunk.payload[8..] == expected);
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn f7_df_without_structured_replies_is_invalid() {
    let world = World::small().await;
    let mut client = world.attach().await;
    assert_eq!(client.call(DF, cmd::READ, 0, 512).await, EINVAL);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k2_r10_a_read_of_nothing_is_a_chunk_too() {
    let world = World::small().await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for offset in [0, SIZE, u64::MAX] {
        client.send(&request(0, cmd::READ, 3, offset, 0)).await;
        let chunk = client.chunk().await;
        assert_eq!((chunk.is_last, chunk.kind, chunk.payload.len()), (true, kind::NONE, 0));
    }
    client.disconnect().await;
    world.all_gone().await;
}

/// Section 9: an error is a chunk with a text, whatever the command.
#[tokio::test(start_paused = true)]
async fn k2_errors_are_chunks_that_say_why() {
    let world = World::of(Options::default(), MemoryDevice::new(SIZE)).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for (flags, command, offset, len, error, why) in [
        (0, cmd::READ, SIZE, 512, EINVAL, "the range ends past the export"),
        (0, cmd::READ, 0, 1, 0, ""),
        (1 << 9, cmd::READ, 0, 512, EINVAL, "a flag does not belong to the command"),
        (0, cmd::TRIM, u64::MAX, 1, EINVAL, "the range ends past the export"),
        (0, cmd::WRITE_ZEROES, SIZE, 1, ENOSPC, "the range ends past the export"),
        (0, 99, 0, 4096, EINVAL, "the command is not known"),
        (DF, cmd::FLUSH, 0, 0, EINVAL, "a flag does not belong to the command"),
    ] {
        client.send(&request(flags, command, 8, offset, len)).await;
        let chunk = client.chunk().await;
        assert!(chunk.is_last && chunk.cookie == 8);
        match error {
            0 => assert_eq!(chunk.kind, kind::DATA),
            error => assert_eq!(chunk.failure(), (error, why.to_owned(), None)),
        }
    }
    client.send(&[request(0, cmd::WRITE, 8, SIZE, 4096), vec![0x66; 4096]].concat()).await;
    assert_eq!(client.chunk().await.failure().0, ENOSPC, "and its payload was thrown away");
    client.disconnect().await;

    let world = World::of(Options::default(), MemoryDevice::with_info(read_only())).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    client.send(&request(0, cmd::TRIM, 8, 0, 512)).await;
    assert_eq!(client.chunk().await.failure(), (EPERM, "the export is read-only".to_owned(), None));
    client.disconnect().await;
}

#[tokio::test(start_paused = true)]
async fn k1_k5_an_error_says_at_which_byte_if_that_lies_in_the_request() {
    for (byte, told) in [(4096, Some(4096)), (4097, Some(4097)), (8191, Some(8191)), (8192, None), (0, None)] {
        let runs = vec![run(SIZE, Allocation::Data)];
        let world = World::of(Options::default(), Scripted { info: read_only(), runs, bad: Some((4096, byte)) }).await;
        let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
        client.send(&request(0, cmd::READ, 8, 4096, 4096)).await;
        let text = told.map(|byte: u64| format!("at byte {byte}: the frame is damaged"));
        let chunk = client.chunk().await;
        assert_eq!(chunk.kind, kind::ERROR, "no content came before, so no ERROR_OFFSET");
        assert_eq!(chunk.failure(), (EIO, text.unwrap_or_else(|| "the frame is damaged".to_owned()), None));
        // A client without structured replies gets the number.
        let mut old = world.attach().await;
        assert_eq!(old.read(4096, 4096).await, Err(EIO));
        assert_eq!(old.read(0, 5).await, Ok(vec![7; 5]));
        old.disconnect().await;
        client.disconnect().await;
    }
}

/// The largest payload that was told, and beside it the head of the chunk and nothing: 8 bytes are its offset.
#[tokio::test(start_paused = true)]
async fn s9_a_reply_is_longer_than_the_largest_payload_by_its_head_only() {
    let options = Options { max_payload: 1 << 20, ..Options::default() };
    let runs = vec![run(8 * MIB, Allocation::Data)];
    let info = DeviceInfo { size: 8 * MIB, ..read_only() };
    let world = World::of(options, Scripted { info, runs, bad: None }).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for flags in [0, DF] {
        client.send(&request(flags, cmd::READ, 8, 512, 1 << 20)).await;
        let chunks = client.chunks().await;
        assert_eq!(chunks.len(), 1);
        assert_eq!((chunks[0].kind, chunks[0].payload.len()), (kind::DATA, (1 << 20) + 8));
    }
    client.send(&request(0, cmd::READ, 8, 512, (1 << 20) + 1)).await;
    assert_eq!(client.chunk().await.failure().0, EINVAL);
    client.disconnect().await;
    world.all_gone().await;
}

/// A text that is too long for a string, or has what none may have, is cut.
#[tokio::test(start_paused = true)]
async fn c2_the_text_of_an_error_is_a_string() {
    let gate = Gate::default();
    let device = MemoryDevice::new(SIZE).with_hook(gate.hook(|call| *call == Call::Flush));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for (error, errno, text) in [
        (DeviceError::Io("ü".repeat(5000)), EIO, "ü".repeat(2048)),
        (DeviceError::Io("before\0after".to_owned()), EIO, "before".to_owned()),
        (DeviceError::ShuttingDown, ESHUTDOWN, "the volume is closing".to_owned()),
    ] {
        client.send(&request(0, cmd::FLUSH, 6, 0, 0)).await;
        gate.holds(1).await;
        gate.release(Err(error));
        assert_eq!(client.chunk().await.failure(), (errno, text, None));
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn e1_during_a_shutdown_requests_are_answered_with_chunks_too() {
    let gate = Gate::default();
    let device = MemoryDevice::new(SIZE).with_hook(gate.hook(|call| *call == Call::Flush));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    client.send(&request(0, cmd::FLUSH, 1, 0, 0)).await;
    gate.holds(1).await;
    let shutdown = tokio::spawn({
        let server = Arc::clone(&world.server);
        async move { server.shutdown().await }
    });
    tokio::task::yield_now().await;
    client.send(&request(0, cmd::READ, 2, 0, 512)).await;
    let chunk = client.chunk().await;
    assert_eq!((chunk.cookie, chunk.failure().0), (2, ESHUTDOWN));
    gate.release(Ok(()));
    assert_eq!(client.reply().await.cookie, 1);
    client.expect_closed().await;
    shutdown.await.unwrap();
}

/// A reply of holes holds nothing, and one of data no more than its length; what it was admitted with is given back
/// when it is fetched.
#[tokio::test(start_paused = true)]
async fn r12_replies_in_chunks_count_as_what_was_asked_for() {
    let options = Options { bytes_in_flight: 1 << 20, max_payload: 1 << 20, ..Options::default() };
    let world = World::of(options, MemoryDevice::new(8 * MIB)).await;
    let mut client = world.connect_by(512);
    client.go_with(opt::STRUCTURED_REPLY, "disk0").await;
    let (mut sending, mut reading) = client.split();
    // 64 times as much as may be in flight: each waits for the one before.
    let send = async {
        for cookie in 0..64 {
            sending.send(&request(DF, cmd::READ, cookie, 0, 1 << 20)).await;
        }
    };
    let receive = async {
        for cookie in 0..64 {
            let chunk = reading.chunk().await;
            assert_eq!((chunk.cookie, chunk.payload.len()), (cookie, (1 << 20) + 8));
        }
    };
    let watch = async {
        for _ in 0..200 {
            tokio::task::yield_now().await;
            assert!(world.server.clients().iter().all(|client| client.bytes_in_flight <= 1 << 20));
        }
    };
    tokio::join!(send, receive, watch);
}
