//! SUCCEED, an option of our own: a client that connects again waits until nothing of its earlier connections can take effect.

use ashlar::device::DeviceError;
use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::nbd::{Host, Options};
use tokio::time::Instant;

use crate::client::{Client, Reply, cmd, info_data, opt, option, rep, request, within};
use crate::world::{Gate, SIZE, World};

const SUCCEED: u32 = 0x6173_686c;
const WRITE: Call = Call::Write { offset: 512, len: 3, fua: false };

/// The first write to a place is held up.
async fn gated() -> (World, Gate) {
    let gate = Gate::default();
    let first = std::sync::atomic::AtomicBool::new(true);
    let holds = move |call: &Call| *call == WRITE && first.swap(false, std::sync::atomic::Ordering::Relaxed);
    (World::of(Options::default(), MemoryDevice::new(SIZE).with_hook(gate.hook(holds))).await, gate)
}

fn succession(client: u8, generation: u64) -> Vec<u8> {
    [&[client; 16][..], &generation.to_be_bytes()].concat()
}

async fn attach(world: &World, client: u8, generation: u64) -> Client {
    let mut connected = world.connect();
    connected.greet().await;
    assert_eq!(connected.ask(SUCCEED, &succession(client, generation)).await, rep::ACK);
    connected.only_go("disk0").await;
    connected
}

#[tokio::test(start_paused = true)]
async fn a_write_of_an_earlier_connection_does_not_come_back_over_a_later_one() {
    let (world, gate) = gated().await;
    let mut before = attach(&world, 1, 1).await;
    before.send(&[request(0, cmd::WRITE, 2, 512, 3), b"old".to_vec()].concat()).await;
    gate.holds(1).await;
    // The server has not seen that it is gone: the network is.
    let mut after = world.connect();
    after.greet().await;
    after.send(&option(SUCCEED, &succession(1, 2))).await;
    let mut answer = Box::pin(after.option_reply());
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut answer).is_pending(), "a write of the connection before is under way");
    }
    gate.release(Ok(()));
    assert_eq!(within(answer).await.reply_type, rep::ACK);
    after.only_go("disk0").await;
    assert_eq!(after.write(0, 512, b"new").await, 0);
    drop(before);
    drop(after);
    world.all_gone().await;
    assert_eq!(world.attach().await.read(512, 3).await.unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_is_given_up_and_does_not_come_back_either() {
    let (world, gate) = gated().await;
    let mut before = attach(&world, 1, 1).await;
    before.send(&[request(0, cmd::WRITE, 2, 512, 3), b"old".to_vec()].concat()).await;
    gate.holds(1).await;
    let begun = Instant::now();
    let mut after = attach(&world, 1, 2).await;
    assert_eq!(begun.elapsed().as_secs(), 10);
    gate.all_given_up().await;
    assert_eq!(after.write(0, 512, b"new").await, 0);
    assert_eq!(after.read(512, 3).await.unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn connections_of_one_generation_and_of_other_clients_stay() {
    let world = World::small().await;
    let mut all = Vec::new();
    for (client, generation) in [(1, 7), (1, 7), (2, 1), (1, 3)] {
        all.push(attach(&world, client, generation).await);
    }
    let mut plain = world.attach().await;
    for client in all.iter_mut().chain([&mut plain]) {
        assert_eq!(client.write(0, 0, b"x").await, 0);
    }
    let _next = attach(&world, 1, 8).await;
    for (number, mut client) in all.into_iter().enumerate() {
        match number {
            2 => assert_eq!(client.write(0, 0, b"x").await, 0),
            _ => client.expect_closed().await,
        }
    }
    assert_eq!(plain.write(0, 0, b"x").await, 0);
}

/// It may be one that the client gave up, and that the network still holds.
#[tokio::test(start_paused = true)]
async fn an_earlier_connection_that_is_still_in_its_handshake_ends_too() {
    let world = World::small().await;
    let mut before = world.connect();
    before.greet().await;
    assert_eq!(before.ask(SUCCEED, &succession(1, 1)).await, rep::ACK);
    // This one waits for a host that has the disk.
    let _owner = {
        let mut owner = world.connect_from(Host::Remote([10, 0, 0, 5].into()), 4096);
        owner.go("disk0").await;
        owner
    };
    let mut waits = world.connect_from(Host::Remote([10, 0, 0, 6].into()), 4096);
    waits.greet().await;
    assert_eq!(waits.ask(SUCCEED, &succession(2, 1)).await, rep::ACK);
    waits.send(&option(opt::GO, &info_data("disk0", &[]))).await;
    let begun = Instant::now();
    for client in [1, 2] {
        let mut after = world.connect();
        after.greet().await;
        assert_eq!(after.ask(SUCCEED, &succession(client, 2)).await, rep::ACK);
    }
    before.expect_closed().await;
    waits.expect_closed().await;
    assert_eq!(begun.elapsed().as_millis(), 0);
}

/// What has no reply it sends again, to whoever serves next; an error would go to its programs. (Other clients are told: E1.)
#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_gets_no_error_of_a_server_that_stops() {
    let (world, gate) = gated().await;
    let mut client = attach(&world, 1, 1).await;
    client.send(&[request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(1).await;
    let server = world.server.clone();
    let stopping = tokio::spawn(async move { server.shutdown().await });
    tokio::task::yield_now().await; // it has begun: one thread runs all tasks in turn
    client.send(&request(0, cmd::READ, 3, 512, 16)).await;
    client.send(&[request(0, cmd::WRITE, 4, 4096, 3), b"def".to_vec()].concat()).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gate.release(Ok(()));
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 2 });
    client.expect_closed().await;
    drop(client);
    within(stopping).await.unwrap();
    assert!(!gate.calls().contains(&Call::Write { offset: 4096, len: 3, fua: false }));
}

/// The volume is closed under it: for another server, or because it ended.
#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_gets_no_error_of_a_volume_that_is_closed() {
    let (world, gate) = gated().await;
    let mut client = attach(&world, 1, 1).await;
    client.send(&[request(0, cmd::WRITE, 2, 512, 3), b"abc".to_vec()].concat()).await;
    gate.holds(1).await;
    gate.release(Err(DeviceError::ShuttingDown));
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test]
async fn data_of_another_length_is_refused_and_the_handshake_goes_on() {
    let world = World::small().await;
    let mut client = world.connect();
    client.greet().await;
    for data in [&[][..], &[0; 23], &[0; 25]] {
        assert_eq!(client.ask(SUCCEED, data).await, 0x8000_0003);
    }
    client.only_go("disk0").await;
    assert_eq!(client.write(0, 0, b"x").await, 0);
}
