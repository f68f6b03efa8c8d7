//! The handshake through the real server.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::device::{Device, ExportEntry, ExportError, Exports};
use ashlar::nbd::{Host, Options};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::client::{Client, cmd, info_data, opt, option, rep, request};
use crate::world::{SIZE, World, read_only};

#[tokio::test(start_paused = true)]
async fn go_tells_size_and_flags_and_begins_transmission() {
    let world = World::small().await;
    let mut client = world.connect();
    let info = client.go("disk0").await;
    assert_eq!((info.size, info.flags), (SIZE, 0xd6d));
    assert_eq!(client.read(0, 16).await, Ok(vec![0; 16]));
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn o1_h4_export_name_begins_transmission_with_or_without_zeroes() {
    let world = World::small().await;
    for (flags, answer) in [(3_u32, 10), (1, 134), (0, 134)] {
        let mut client = world.connect();
        client.bytes(18).await;
        client.send(&flags.to_be_bytes()).await;
        client.send(&option(opt::EXPORT_NAME, b"disk0")).await;
        assert_eq!(client.bytes(answer).await[..8], SIZE.to_be_bytes());
        assert_eq!(client.read(0, 16).await, Ok(vec![0; 16]));
        client.disconnect().await;
    }
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn o2_export_name_of_no_export_closes() {
    let world = World::small().await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(opt::EXPORT_NAME, b"nope")).await;
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn h2_fault_3_an_unknown_client_flag_closes() {
    let world = World::small().await;
    let mut client = world.connect();
    client.bytes(18).await;
    client.send(&[0, 0, 0, 0x04 | 0x03]).await;
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn h12_requests_sent_along_with_go_are_answered() {
    let world = World::small().await;
    let mut client = world.connect();
    let everything = [
        &3_u32.to_be_bytes()[..],
        &option(opt::EXPORT_NAME, b"disk0"),
        &request(0, cmd::WRITE, 1, 10, 5),
        b"hello",
        &request(0, cmd::READ, 2, 10, 5),
        &request(0, cmd::DISC, 3, 0, 0),
    ];
    client.send(&everything.concat()).await;
    client.bytes(18 + 10).await;
    assert_eq!(client.reply().await.cookie, 1);
    assert_eq!(client.reply().await.cookie, 2);
    assert_eq!(client.bytes(5).await, b"hello");
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn h7_fault_14_an_option_larger_than_any_buffer_is_skipped_in_step() {
    let world = World::small().await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(0x5a5a, &vec![0x49; 3 << 20])).await;
    assert_eq!(client.option_reply().await.reply_type, rep::ERR_UNSUP);
    client.send(&option(opt::GO, &info_data("nope", &[]))).await;
    let refusal = client.option_reply().await;
    assert_eq!(refusal.reply_type, rep::ERR_UNKNOWN);
    assert_eq!(refusal.data, b"no export named \"nope\"; see the list of exports");
    client.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    assert_eq!(client.option_reply().await.reply_type, rep::INFO);
    drop(client);
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn o4_abort_is_acknowledged_and_the_client_closes() {
    let world = World::small().await;
    for waits_for_reply in [true, false] {
        let mut client = world.connect();
        client.greet().await;
        client.send(&option(opt::ABORT, &[])).await;
        if waits_for_reply {
            assert_eq!(client.option_reply().await.reply_type, rep::ACK);
            tokio::time::sleep(Duration::from_secs(5)).await;
            client.send(b"the server has not closed before the client").await;
        }
        drop(client);
        world.all_gone().await;
    }
}

/// With one place for a connection, a single leak would turn the next client away.
#[tokio::test(start_paused = true)]
async fn h10_a_client_may_leave_at_any_byte() {
    let options = Options { max_connections: 1, ..Options::default() };
    let world = World::of(options, MemoryDevice::new(SIZE)).await;
    let all = [
        &3_u32.to_be_bytes()[..],
        &option(opt::LIST, &[]),
        &option(99, b"unknown"),
        &option(opt::GO, &info_data("disk0", &[0, 1, 2, 3])),
    ];
    let all = all.concat();
    for cut in 0..=all.len() {
        let mut client = world.connect();
        client.send(&all[..cut]).await;
        drop(client);
        world.all_gone().await;
    }
    world.attach().await.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn c6_a_client_that_dawdles_is_dropped() {
    let world = World::small().await;
    let begin = Instant::now();
    let mut silent = world.connect();
    silent.bytes(18).await;
    silent.expect_closed().await;
    assert_eq!(begin.elapsed().as_secs(), 10);

    let mut dripping = world.connect();
    dripping.greet().await;
    let begin = Instant::now();
    let closed = loop {
        // One unknown option each three seconds never ends a handshake.
        tokio::time::sleep(Duration::from_secs(3)).await;
        if dripping.try_send(&option(99, &[])).await.is_err() {
            break begin.elapsed();
        }
    };
    assert!((9..=12).contains(&closed.as_secs()), "{closed:?}");
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn c6_too_many_options_close() {
    let world = World::of(Options { max_options: 2, ..Options::default() }, MemoryDevice::new(SIZE)).await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(99, &[]).repeat(3)).await;
    assert_eq!(client.option_reply().await.reply_type, rep::ERR_UNSUP);
    assert_eq!(client.option_reply().await.reply_type, rep::ERR_UNSUP);
    client.expect_closed().await;
    world.all_gone().await;
}

/// Opening a volume may mean recovery; the client is not to blame.
struct SlowToOpen(MemoryExports);

#[async_trait]
impl Exports for SlowToOpen {
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        self.0.list().await
    }

    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        tokio::time::sleep(Duration::from_secs(25)).await;
        self.0.open(name).await
    }
}

#[tokio::test(start_paused = true)]
async fn time_that_an_export_takes_to_open_is_not_the_clients() {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE)));
    let world = World::new(Options::default(), SlowToOpen(exports)).await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(opt::INFO, &info_data("disk0", &[]))).await;
    while client.option_reply().await.reply_type != rep::ACK {}
    tokio::time::sleep(Duration::from_secs(9)).await;
    client.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    while client.option_reply().await.reply_type != rep::ACK {}
    client.disconnect().await;
    world.all_gone().await;
}

/// What cannot be opened is no reason to stay: options that were sent ahead would add up.
#[tokio::test(start_paused = true)]
async fn c6_exports_that_fail_to_open_hold_a_place_for_a_bounded_time() {
    let world = World::new(Options::default(), SlowToOpen(MemoryExports::new())).await;
    let (mut client, begin) = (world.connect_by(64 << 10), Instant::now());
    client.greet().await;
    client.send(&option(opt::INFO, &info_data("disk0", &[])).repeat(20)).await;
    for _ in 0..2 {
        assert_eq!(client.option_reply().await.reply_type, rep::ERR_UNKNOWN);
    }
    client.expect_closed().await;
    assert_eq!(begin.elapsed(), Duration::from_secs(50), "and the third is not asked for");
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn h11_a_handshake_during_shutdown_is_refused() {
    let world = World::small().await;
    let mut haggling = world.connect();
    haggling.greet().await;
    haggling.send(&option(99, &[])).await;
    assert_eq!(haggling.option_reply().await.reply_type, rep::ERR_UNSUP);

    let shutdown = tokio::spawn({
        let server = world.server.clone();
        async move { server.shutdown().await }
    });
    tokio::task::yield_now().await; // the shutdown has begun: one thread runs all tasks in turn
    haggling.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    assert_eq!(haggling.option_reply().await.reply_type, rep::ERR_SHUTDOWN);
    haggling.send(&option(opt::ABORT, &[])).await;
    assert_eq!(haggling.option_reply().await.reply_type, rep::ACK);
    drop(haggling);
    shutdown.await.unwrap();
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn h11_a_client_that_haggles_on_does_not_hold_up_a_shutdown() {
    let world = World::small().await;
    let mut silent = world.connect();
    silent.greet().await;
    let begin = Instant::now();
    world.server.shutdown().await;
    assert_eq!(begin.elapsed().as_secs(), 1);
    silent.expect_closed().await;
    world.all_gone().await;
}

const ELSEWHERE: Host = Host::Remote(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)));

/// What a client of another host is answered to an option for "disk0"; it stays in the handshake unless it is let in.
async fn from_elsewhere(world: &World, asked: u32) -> (u32, Client) {
    let mut client = world.connect_from(ELSEWHERE, 4096);
    client.greet().await;
    client.send(&option(asked, &info_data("disk0", &[]))).await;
    loop {
        let reply = client.option_reply().await;
        if reply.reply_type != rep::INFO {
            return (reply.reply_type, client);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn m5_o15_clients_of_a_second_host_are_refused_until_the_first_has_left() {
    // Short, as the client that waits in its handshake is patient for 10 s only.
    let options = Options { attach_wait: Duration::from_secs(1), ..Options::default() };
    let world = World::of(options, MemoryDevice::new(SIZE)).await;
    let (one, two) = (world.attach().await, world.attach().await);
    let (info, _waiting) = from_elsewhere(&world, opt::INFO).await;
    let (go, mut waiting) = from_elsewhere(&world, opt::GO).await;
    assert_eq!((info, go), (rep::ERR_POLICY, rep::ERR_POLICY));

    let mut closed = world.connect_from(ELSEWHERE, 4096);
    closed.greet().await;
    closed.send(&option(opt::EXPORT_NAME, b"disk0")).await;
    closed.expect_closed().await;

    one.disconnect().await;
    assert_eq!(from_elsewhere(&world, opt::GO).await.0, rep::ERR_POLICY);
    two.disconnect().await;
    // The server closes a socket a moment before the visit is over.
    while from_elsewhere(&world, opt::INFO).await.0 != rep::ACK {
        tokio::task::yield_now().await;
    }
    waiting.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    while waiting.option_reply().await.reply_type != rep::ACK {}
    assert_eq!(waiting.read(0, 16).await, Ok(vec![0; 16]));
    waiting.disconnect().await;
}

/// GOs that are sent ahead do not wait one after the other: the place of a connection would be held for as long.
#[tokio::test(start_paused = true)]
async fn c6_m5_only_the_first_go_of_a_handshake_waits_for_another_host() {
    let world = World::small().await;
    let _first = world.attach().await;
    let (mut second, begin) = (world.connect_from(ELSEWHERE, 64 << 10), Instant::now());
    second.greet().await;
    second.send(&option(opt::GO, &info_data("disk0", &[])).repeat(20)).await;
    for _ in 0..20 {
        assert_eq!(second.option_reply().await.reply_type, rep::ERR_POLICY);
        assert_eq!(begin.elapsed(), Options::default().attach_wait);
    }
    second.expect_closed().await;
    assert_eq!(begin.elapsed(), Options::default().attach_wait + Options::default().handshake_timeout);
}

/// The first host may be gone: it is asked before a second is refused. Whoever only wants to know does not wait for that.
#[tokio::test(start_paused = true)]
async fn m5_a_second_host_waits_for_a_first_that_may_be_gone_and_comes_in_when_it_is() {
    let world = World::small().await;
    let first = world.attach().await;
    let begin = Instant::now();
    assert_eq!(from_elsewhere(&world, opt::INFO).await.0, rep::ERR_POLICY);
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(from_elsewhere(&world, opt::GO).await.0, rep::ERR_POLICY);
    assert_eq!(begin.elapsed(), Options::default().attach_wait);

    // Longer than a client may take for a handshake: it is not the client that is slow.
    let (mut second, begin) = (world.connect_from(ELSEWHERE, 4096), Instant::now());
    second.greet().await;
    second.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    drop(first);
    while second.option_reply().await.reply_type != rep::ACK {}
    assert_eq!(begin.elapsed(), Duration::from_secs(12));
    assert_eq!(second.read(0, 16).await, Ok(vec![0; 16]));
    second.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn m5_a_second_host_that_waits_does_not_hold_up_a_shutdown() {
    let world = World::small().await;
    let _first = world.attach().await;
    let mut second = world.connect_from(ELSEWHERE, 4096);
    second.greet().await;
    second.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shutdown = {
        let server = world.server.clone();
        tokio::spawn(async move { server.shutdown().await })
    };
    assert_eq!(second.option_reply().await.reply_type, rep::ERR_SHUTDOWN);
    drop(second);
    shutdown.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn m5_several_hosts_may_share_what_is_read_only_or_said_to_be_shared() {
    let shared = Options { shared: true, ..Options::default() };
    for world in [
        World::of(shared, MemoryDevice::new(SIZE)).await,
        World::of(Options::default(), MemoryDevice::with_info(read_only())).await,
    ] {
        let here = world.attach().await;
        let (answer, there) = from_elsewhere(&world, opt::GO).await;
        assert_eq!(answer, rep::ACK);
        there.disconnect().await;
        here.disconnect().await;
        world.all_gone().await;
    }
}
