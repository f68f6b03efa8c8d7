//! How connections end: by DISC, by surprise, by the server's shutdown; and what becomes of the requests in flight.

use std::time::Duration;

use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::device::{DeviceError, ExportError};
use ashlar::nbd::Options;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{ESHUTDOWN, Reply, cmd, request, within};
use crate::world::{Gate, SIZE, World};

const WRITE: Call = Call::Write { offset: 512, len: 3, fua: false };

async fn gated(holds: fn(&Call) -> bool) -> (World, Gate) {
    let gate = Gate::default();
    (World::of(Options::default(), MemoryDevice::new(SIZE).with_hook(gate.hook(holds))).await, gate)
}

fn held(call: &Call) -> bool {
    matches!(call, Call::Read { offset: 0, .. }) || *call == WRITE
}

fn begin_shutdown(world: &World) -> JoinHandle<()> {
    let server = world.server.clone();
    tokio::spawn(async move { server.shutdown().await })
}

#[tokio::test(start_paused = true)]
async fn k9_disc_waits_for_what_is_in_flight_and_is_not_answered() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    let write = [request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat();
    client.send(&[request(0, cmd::READ, 1, 0, 16), write, request(0xffff, cmd::DISC, 3, 7, 7)].concat()).await;
    gate.holds(2).await;
    gate.release(Ok(()));
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 1 });
    client.bytes(16).await;
    gate.release(Err(DeviceError::Io("no space on the journal's disk".to_owned())));
    assert_eq!(client.reply().await, Reply { error: 5, cookie: 2 });
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k10_a_client_that_changed_something_and_left_is_followed_by_a_flush() {
    for by_disc in [true, false] {
        let (world, gate) = gated(|_| false).await;
        let mut client = world.attach().await;
        assert_eq!(client.write(0, 512, b"abc").await, 0);
        if by_disc {
            client.disconnect().await;
        } else {
            drop(client);
        }
        gate.saw(Call::Flush).await;
        world.all_gone().await;
    }
}

#[tokio::test(start_paused = true)]
async fn k10_a_client_that_only_read_or_flushed_itself_is_not_followed_by_a_flush() {
    let (world, gate) = gated(|_| false).await;
    let mut reader = world.attach().await;
    reader.read(0, 16).await.unwrap();
    reader.disconnect().await;
    let mut writer = world.attach().await;
    assert_eq!(writer.write(0, 512, b"abc").await, 0);
    assert_eq!(writer.call(0, cmd::FLUSH, 0, 0).await, 0);
    writer.disconnect().await;
    world.all_gone().await;
    world.server.shutdown().await;
    assert_eq!(gate.calls(), [Call::Read { offset: 0, len: 16 }, WRITE, Call::Flush]);
}

#[tokio::test(start_paused = true)]
async fn k10_many_clients_that_leave_share_one_flush_and_a_second() {
    let (world, gate) = gated(|call| *call == Call::Flush).await;
    for _ in 0..10 {
        let mut client = world.attach().await;
        assert_eq!(client.write(0, 512, b"abc").await, 0);
        client.disconnect().await;
    }
    world.all_gone().await;
    let flushes = || gate.calls().iter().filter(|&&call| call == Call::Flush).count();
    gate.holds(1).await;
    assert_eq!(flushes(), 1);
    gate.release(Err(DeviceError::Io("the store is away".to_owned())));
    gate.holds(1).await;
    gate.release(Ok(()));
    world.server.shutdown().await;
    assert_eq!(flushes(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_gives_up_its_reads() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 16)).await;
    gate.holds(1).await;
    let begin = Instant::now();
    drop(client);
    world.all_gone().await;
    gate.all_given_up().await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

/// Data that nobody will fetch makes room at once, also while a change of the same client is still being made.
#[tokio::test(start_paused = true)]
async fn a_client_that_left_makes_room() {
    let gate = Gate::default();
    let options = Options {
        max_payload: 4 << 20,
        bytes_in_flight: 8 << 20,
        total_bytes_in_flight: 4 << 20,
        ..Options::default()
    };
    let world = World::of(options, MemoryDevice::new(16 << 20).with_hook(gate.hook(held))).await;
    let (mut leaving, mut other) = (world.attach().await, world.attach().await);
    leaving.send(&[request(0, cmd::WRITE, 1, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(1).await;
    // One read is being written, the other waits for its turn.
    leaving.send(&request(0, cmd::READ, 2, 4096, 2 << 20)).await;
    assert_eq!(leaving.reply().await.cookie, 2);
    leaving.send(&request(0, cmd::READ, 3, 512, (2 << 20) - 10)).await;
    gate.saw(Call::Read { offset: 512, len: (2 << 20) - 10 }).await;
    let begin = Instant::now();
    drop(leaving);
    assert_eq!(other.read(4096, 3 << 20).await.unwrap().len(), 3 << 20);
    assert_eq!(begin.elapsed(), Duration::ZERO);
    gate.release(Ok(()));
    other.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k10_a_flush_that_failed_covers_nothing() {
    let (world, gate) = gated(|call| *call == Call::Flush).await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 512, b"abc").await, 0);
    client.send(&request(0, cmd::FLUSH, 1, 0, 0)).await;
    gate.holds(1).await;
    gate.release(Err(DeviceError::Io("the store is away".to_owned())));
    assert_eq!(client.reply().await.error, 5);
    client.disconnect().await;
    gate.holds(1).await;
    gate.release(Ok(()));
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_sent_in_full_is_made_though_the_client_left() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&[request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(1).await;
    drop(client);
    assert_eq!(gate.release(Ok(())), WRITE);
    gate.saw(Call::Flush).await;
    world.all_gone().await;
    assert_eq!(world.attach().await.read(512, 3).await.unwrap(), b"abc");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_never_ends_is_given_up_after_the_client_left() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&[request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(1).await;
    drop(client);
    let begin = Instant::now();
    world.all_gone().await;
    assert_eq!(begin.elapsed().as_secs(), 10);
    gate.all_given_up().await;
}

/// With one place for a connection, a single leak would turn the next client away.
#[tokio::test(start_paused = true)]
async fn a_client_may_leave_at_any_byte_of_a_request_and_a_payload_cut_short_is_not_written() {
    let gate = Gate::default();
    let options = Options { max_connections: 1, ..Options::default() };
    let world = World::of(options, MemoryDevice::new(SIZE).with_hook(gate.hook(|_| false))).await;
    let all = [
        request(0, cmd::READ, 1, 0, 512),
        [request(0, cmd::WRITE, 1, SIZE, 20), vec![1; 20]].concat(),
        [request(0, cmd::WRITE, 1, 512, 3), b"abc".to_vec()].concat(),
    ];
    let all = all.concat();
    for cut in 0..all.len() {
        let mut client = world.attach().await;
        client.send(&all[..cut]).await;
        drop(client);
        world.all_gone().await;
    }
    assert!(!gate.calls().contains(&WRITE));
    let mut client = world.attach().await;
    client.send(&all).await;
    gate.saw(WRITE).await;
    drop(client);
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn e1_c7_shutdown_finishes_what_is_in_flight_refuses_the_rest_and_closes() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 16)).await;
    gate.holds(1).await;
    let shutdown = begin_shutdown(&world);
    tokio::task::yield_now().await; // the shutdown has begun: one thread runs all tasks in turn

    client.send(&request(0, cmd::READ, 2, 512, 16)).await;
    assert_eq!(client.reply().await, Reply { error: ESHUTDOWN, cookie: 2 });
    assert_eq!(client.write(0, 512, b"abc").await, ESHUTDOWN);
    assert_eq!(client.call(0, cmd::FLUSH, 0, 0).await, ESHUTDOWN);
    assert!(!shutdown.is_finished());

    gate.release(Ok(()));
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 1 });
    client.bytes(16).await;
    client.expect_closed().await;
    drop(client);
    within(shutdown).await.unwrap();
    world.all_gone().await;
    assert!(!gate.calls().contains(&WRITE));
}

#[tokio::test(start_paused = true)]
async fn e1_disc_ends_a_session_during_shutdown_too() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 16)).await;
    gate.holds(1).await;
    let shutdown = begin_shutdown(&world);
    tokio::task::yield_now().await;
    client.send(&request(0, cmd::DISC, 0, 0, 0)).await;
    gate.release(Ok(()));
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 1 });
    client.bytes(16).await;
    client.expect_closed().await;
    within(shutdown).await.unwrap();
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_idle_clients_is_quick_even_if_they_do_not_close() {
    let (world, _gate) = gated(held).await;
    let idle = [world.attach().await, world.attach().await];
    let begin = Instant::now();
    world.server.shutdown().await;
    assert!(begin.elapsed() <= Duration::from_secs(2), "{:?}", begin.elapsed());
    for mut client in idle {
        client.expect_closed().await;
    }
    world.all_gone().await;
    world.server.shutdown().await; // again, without harm
}

/// A socket that is closed with unread bytes is reset, and a reset may overtake replies: so the server says that it is
/// done, and reads on until the client has closed too.
#[tokio::test(start_paused = true)]
async fn c7_shutdown_leaves_the_client_time_to_close() {
    let (world, _gate) = gated(held).await;
    let mut client = world.attach().await;
    let shutdown = begin_shutdown(&world);
    client.expect_closed().await;
    client.send(&request(0, cmd::READ, 1, 512, 16)).await; // too late, and no broken pipe
    client.finish_sending().await;
    let begin = Instant::now();
    within(shutdown).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_accepted_while_requests_finish() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 16)).await;
    gate.holds(1).await;
    let shutdown = begin_shutdown(&world);
    tokio::task::yield_now().await;
    world.connect().expect_closed().await;
    assert!(!shutdown.is_finished());
    drop(client);
    within(shutdown).await.unwrap();
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_up_what_does_not_finish_in_time() {
    let (world, gate) = gated(held).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 16)).await;
    client.send(&[request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(2).await;
    let begin = Instant::now();
    world.server.shutdown().await;
    assert_eq!(begin.elapsed().as_secs(), 30);
    client.expect_closed().await;
    gate.all_given_up().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_the_flush_that_follows_a_client() {
    let (world, gate) = gated(|call| *call == Call::Flush).await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 512, b"abc").await, 0);
    client.disconnect().await;
    gate.holds(1).await;
    let shutdown = begin_shutdown(&world);
    tokio::task::yield_now().await;
    assert!(!shutdown.is_finished());
    gate.release(Ok(()));
    within(shutdown).await.unwrap();
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_nobody_is_served() {
    let (world, _gate) = gated(held).await;
    world.server.shutdown().await;
    world.connect().expect_closed().await;
    world.all_gone().await;
}

/// An export that opens just as the server shuts down must not begin a session.
#[tokio::test(start_paused = true)]
async fn h11_an_export_that_opens_during_shutdown_is_refused() {
    use crate::client::{info_data, opt, option, rep};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    struct Waits(Arc<Semaphore>);

    #[async_trait::async_trait]
    impl ashlar::device::Exports for Waits {
        async fn list(&self) -> Result<Vec<ashlar::device::ExportEntry>, ExportError> {
            Ok(vec![])
        }

        async fn open(
            &self,
            name: &str,
        ) -> Result<(ashlar::device::ExportEntry, Arc<dyn ashlar::device::Device>), ExportError> {
            self.0.acquire().await.unwrap().forget();
            let entry = ashlar::device::ExportEntry { name: name.to_owned(), description: String::new() };
            Ok((entry, Arc::new(MemoryDevice::new(SIZE))))
        }
    }

    let open = Arc::new(Semaphore::new(0));
    let world = World::new(Options::default(), Waits(open.clone())).await;
    let mut client = world.connect();
    client.greet().await;
    client.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    tokio::task::yield_now().await;
    let shutdown = begin_shutdown(&world);
    tokio::task::yield_now().await;
    open.add_permits(1);
    assert_eq!(client.option_reply().await.reply_type, rep::ERR_SHUTDOWN);
    drop(client);
    within(shutdown).await.unwrap();
    world.all_gone().await;
}
