//! Extended headers: section 13 of the conformance list. QEMU speaks them from 8.2 on, and not all of them; so this client does.

use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::nbd::Options;

use crate::client::{
    Client, DF, EINVAL, ENOSPC, FAST_ZERO, FUA, PAYLOAD_LEN, REQ_ONE, cmd, extended, kind, opt, option, request,
};
use crate::world::{Gate, SIZE, World};

const TIB: u64 = 1 << 40;

/// Sends a request without payload; its reply is one chunk, which is the last and repeats cookie and offset.
async fn call(client: &mut Client, flags: u16, command: u16, offset: u64, len: u64) -> crate::client::Chunk {
    client.send(&extended(flags, command, 0xfeed, offset, len)).await;
    let chunk = client.chunk().await;
    assert_eq!((chunk.is_last, chunk.cookie, chunk.offset), (true, 0xfeed, Some(offset)));
    chunk
}

async fn error(client: &mut Client, flags: u16, command: u16, offset: u64, len: u64) -> u32 {
    match call(client, flags, command, offset, len).await {
        done if done.kind == kind::NONE => {
            assert_eq!(done.payload, b"");
            0
        }
        failed => failed.failure().0,
    }
}

async fn watched(size: u64) -> (World, Gate) {
    let gate = Gate::default();
    (World::of(Options::default(), MemoryDevice::new(size).with_hook(gate.hook(|_| false))).await, gate)
}

#[tokio::test(start_paused = true)]
async fn all_replies_are_extended_and_repeat_the_offset() {
    let (world, _) = watched(SIZE).await;
    let mut client = world.connect();
    let info = client.go_with(opt::EXTENDED_HEADERS, "disk0").await;
    assert_eq!(info.flags & (1 << 7 | 1 << 12), 1 << 7, "F7, F12");
    client.send(&[extended(PAYLOAD_LEN | FUA, cmd::WRITE, 1, 5, 3), b"abc".to_vec()].concat()).await;
    let chunk = client.chunk().await;
    assert_eq!((chunk.kind, chunk.cookie, chunk.offset), (kind::NONE, 1, Some(5)));
    let chunk = call(&mut client, DF, cmd::READ, 4, 5).await;
    assert_eq!((chunk.kind, chunk.number(0, 8), &chunk.payload[8..]), (kind::DATA, 4, &b"\0abc\0"[..]));
    let chunk = call(&mut client, 0, cmd::READ, 0, 0).await;
    assert_eq!((chunk.kind, chunk.payload.len()), (kind::NONE, 0));
    assert_eq!(error(&mut client, 0, cmd::FLUSH, 0, 0).await, 0);
    assert_eq!(error(&mut client, 0, 99, 77, 4096).await, EINVAL);
    assert_eq!(error(&mut client, 0, cmd::READ, SIZE, 1).await, EINVAL);
    client.send(&extended(0, cmd::DISC, 0, 0, 0)).await;
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn s6_one_request_may_name_the_whole_of_16_tib() {
    let (world, gate) = watched(16 * TIB).await;
    let mut client = world.attach_with(opt::EXTENDED_HEADERS).await;
    let (offset, len) = (0, 16 * TIB);
    assert_eq!(error(&mut client, 0, cmd::TRIM, offset, len).await, 0);
    assert_eq!(error(&mut client, FAST_ZERO, cmd::WRITE_ZEROES, offset, len).await, 0);
    assert_eq!(error(&mut client, 0, cmd::CACHE, offset, len).await, 0);
    let expected = [
        Call::Trim { offset, len, fua: false },
        Call::WriteZeroes { offset, len, no_hole: false, fua: false },
        Call::Cache { offset, len: 1 << 32 }, // a hint
    ];
    assert_eq!(gate.calls(), expected);
    for (flags, found) in [(0, 1), (REQ_ONE, 1)] {
        let chunk = call(&mut client, flags, cmd::BLOCK_STATUS, offset, len).await;
        assert_eq!((chunk.kind, chunk.payload.len()), (kind::STATUS_EXT, 8 + 16 * found));
        assert_eq!((chunk.number(0, 4), chunk.number(4, 4)), (1, found as u64));
        assert_eq!((chunk.number(8, 8), chunk.number(16, 8)), (16 * TIB, 3));
    }
    // Nothing wraps at 2^32, at the end of the export, or at 2^64.
    for (offset, len) in
        [(1, 16 * TIB), (16 * TIB, 1), (u64::MAX, u64::MAX), (1, u64::MAX), (16 * TIB - 1, (1 << 32) + 1)]
    {
        assert_eq!(error(&mut client, 0, cmd::TRIM, offset, len).await, EINVAL);
        assert_eq!(error(&mut client, 0, cmd::BLOCK_STATUS, offset, len).await, EINVAL);
        assert_eq!(error(&mut client, 0, cmd::CACHE, offset, len).await, EINVAL);
        assert_eq!(error(&mut client, 0, cmd::WRITE_ZEROES, offset, len).await, ENOSPC);
    }
    // A READ is bounded by what may be sent, however many bits its length has.
    for len in [(32 << 20) + 1, 1 << 32, (1 << 32) + 512, 16 * TIB] {
        assert_eq!(error(&mut client, 0, cmd::READ, 0, len).await, EINVAL);
    }
}

/// The flag says that a payload follows, whatever the command: it is read, and the request refused.
#[tokio::test(start_paused = true)]
async fn a_payload_that_does_not_belong_there_is_thrown_away() {
    let (world, gate) = watched(SIZE).await;
    let mut client = world.attach_with(opt::EXTENDED_HEADERS).await;
    for command in [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS, 99] {
        let payload = vec![0x21; 1 << 20];
        client.send(&[extended(PAYLOAD_LEN, command, 3, 0, 1 << 20), payload].concat()).await;
        assert_eq!(client.chunk().await.failure().0, EINVAL, "{command}");
    }
    client.send(&[extended(PAYLOAD_LEN, cmd::WRITE, 3, SIZE - 1, 2), b"xx".to_vec()].concat()).await;
    assert_eq!(client.chunk().await.failure().0, ENOSPC);
    assert_eq!(gate.calls(), []);
    assert_eq!(error(&mut client, 0, cmd::FLUSH, 0, 0).await, 0, "still in step");
}

/// The document wants the flag on each WRITE. QEMU (8.2 to 10.0) does not set it, and sends the payload.
#[tokio::test(start_paused = true)]
async fn k8_a_write_has_a_payload_without_the_flag_too() {
    let (world, gate) = watched(SIZE).await;
    let mut client = world.attach_with(opt::EXTENDED_HEADERS).await;
    client.send(&[extended(FUA, cmd::WRITE, 1, 5, 3), b"abc".to_vec()].concat()).await;
    assert_eq!(client.chunk().await.kind, kind::NONE);
    let chunk = call(&mut client, DF, cmd::READ, 4, 5).await;
    assert_eq!(&chunk.payload[8..], b"\0abc\0");
    client.send(&[extended(0, cmd::WRITE, 3, SIZE - 1, 2), b"xx".to_vec()].concat()).await;
    assert_eq!(client.chunk().await.failure().0, ENOSPC);
    assert_eq!(gate.calls().len(), 2);
    assert_eq!(error(&mut client, 0, cmd::FLUSH, 0, 0).await, 0, "still in step");
}

#[tokio::test(start_paused = true)]
async fn c5_a_payload_that_nobody_can_wait_for_ends_the_connection() {
    for (command, len) in [(cmd::WRITE, (32 << 20) + 1), (cmd::WRITE, 1 << 32), (cmd::TRIM, 1 << 40), (99, u64::MAX)] {
        let (world, gate) = watched(16 * TIB).await;
        let mut client = world.attach_with(opt::EXTENDED_HEADERS).await;
        client.send(&extended(PAYLOAD_LEN, command, 3, 0, len)).await;
        client.expect_closed().await;
        world.all_gone().await;
        assert_eq!(gate.calls(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn r1_each_style_has_its_own_magic() {
    let (world, _) = watched(SIZE).await;
    let mut client = world.attach_with(opt::EXTENDED_HEADERS).await;
    client.send(&[request(0, cmd::READ, 1, 0, 16), vec![0; 4]].concat()).await;
    client.expect_closed().await;
    for mut client in [world.attach().await, world.attach_with(opt::STRUCTURED_REPLY).await] {
        client.send(&extended(0, cmd::READ, 1, 0, 16)).await;
        client.expect_closed().await;
    }
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn export_name_after_extended_headers_closes() {
    let (world, _) = watched(SIZE).await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(opt::EXTENDED_HEADERS, &[])).await;
    client.option_reply().await;
    client.send(&option(opt::EXPORT_NAME, b"disk0")).await;
    client.expect_closed().await;
    world.all_gone().await;
}
