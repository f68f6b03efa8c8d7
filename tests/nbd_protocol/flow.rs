//! Many requests at a time, on one connection and on several: order, bounds, fairness.

use std::time::Duration;

use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::nbd::Options;
use tokio::time::Instant;

use crate::client::{Client, Reply, cmd, request, within};
use crate::world::{Gate, SIZE, World};

fn is_read(call: &Call) -> bool {
    matches!(call, Call::Read { .. })
}

/// Reads at 0 wait for the gate, all else is answered at once.
fn waits_at_zero(call: &Call) -> bool {
    matches!(call, Call::Read { offset: 0, .. } | Call::Write { offset: 0, .. })
}

async fn gated(options: Options, holds: fn(&Call) -> bool) -> (World, Gate) {
    let gate = Gate::default();
    let device = MemoryDevice::new(64 << 20).with_hook(gate.hook(holds));
    (World::of(options, device).await, gate)
}

#[tokio::test(start_paused = true)]
async fn r3_fault_12_requests_overtake_one_that_waits_for_the_store() {
    let (world, gate) = gated(Options::default(), waits_at_zero).await;
    let mut client = world.attach().await;
    let requests = [
        request(0, cmd::READ, 1, 0, 512),
        request(0, cmd::READ, 2, 4096, 512),
        [request(0, cmd::WRITE, 3, 8192, 3), b"abc".to_vec()].concat(),
        request(0, cmd::FLUSH, 4, 0, 0),
        request(0, 99, 5, 0, 0),
    ];
    client.send(&requests.concat()).await;
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 2 });
    client.bytes(512).await;
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 3 });
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 4 });
    assert_eq!(client.reply().await, Reply { error: 22, cookie: 5 });
    gate.release(Ok(()));
    assert_eq!(client.reply().await, Reply { error: 0, cookie: 1 });
    client.bytes(512).await;
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r2_two_requests_with_one_cookie_are_answered_twice() {
    let (world, gate) = gated(Options::default(), is_read).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, u64::MAX, 0, 8).repeat(2)).await;
    gate.holds(2).await;
    for _ in 0..2 {
        gate.release(Ok(()));
        assert_eq!(client.reply().await, Reply { error: 0, cookie: u64::MAX });
        client.bytes(8).await;
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r7_a_fua_write_is_answered_when_the_device_says_it_is_stable() {
    let (world, gate) = gated(Options::default(), |call| matches!(call, Call::Write { fua: true, .. })).await;
    let mut client = world.attach().await;
    client.send(&[request(1, cmd::WRITE, 1, 0, 3), b"abc".to_vec(), request(0, cmd::READ, 2, 0, 3)].concat()).await;
    assert_eq!(client.reply().await.cookie, 2);
    client.bytes(3).await;
    gate.release(Ok(()));
    assert_eq!(client.reply().await.cookie, 1);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r12_requests_in_flight_are_bounded_by_not_reading() {
    let (world, gate) = gated(Options { requests_in_flight: 4, ..Options::default() }, is_read).await;
    let mut client = world.attach().await;
    for cookie in 0..10 {
        client.send(&request(0, cmd::READ, cookie, cookie * 512, 512)).await;
    }
    for answered in 0..10 {
        gate.holds((10 - answered).min(4)).await;
        assert_eq!(gate.calls().len(), (answered + 4).min(10), "never more than four");
        gate.release(Ok(()));
        assert_eq!(client.reply().await.cookie, answered as u64);
        client.bytes(512).await;
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r12_bytes_in_flight_are_bounded_by_not_reading() {
    let options = Options { bytes_in_flight: 32 << 20, ..Options::default() };
    let (world, gate) = gated(options, is_read).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 1, 0, 20 << 20)).await;
    client.send(&request(0, cmd::READ, 2, 0, 20 << 20)).await;
    client.send(&request(0, cmd::FLUSH, 3, 0, 0)).await;
    gate.holds(1).await;
    gate.release(Ok(()));
    assert_eq!(client.reply().await.cookie, 1);
    assert_eq!(gate.calls().len(), 1, "the second has to wait until the client has fetched the first");
    client.bytes(20 << 20).await;
    gate.holds(1).await;
    gate.release(Ok(()));
    let mut cookies = [client.reply().await.cookie, 0];
    if cookies[0] == 2 {
        client.bytes(20 << 20).await;
    }
    cookies[1] = client.reply().await.cookie;
    if cookies[1] == 2 {
        client.bytes(20 << 20).await;
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [2, 3]);
    client.disconnect().await;
    world.all_gone().await;
}

/// Even errors are not queued without end for a client that does not fetch them.
#[tokio::test(start_paused = true)]
async fn r12_a_client_that_fetches_no_replies_is_not_read_from() {
    let (world, _gate) =
        gated(Options { requests_in_flight: 8, client_timeout: DAY, ..Options::default() }, is_read).await;
    let mut client = world.connect_by(256);
    client.go("disk0").await;
    let flood = request(0, 99, 0, 0, 0).repeat(1000);
    let sending = tokio::time::timeout(Duration::from_secs(3600), client.try_send(&flood));
    assert!(sending.await.is_err(), "the pipes and the server hold a few dozens of a thousand");
    drop(client);
    world.all_gone().await;
}

/// Options under which one client's read fills the server.
fn tight() -> Options {
    let (max_payload, total_bytes_in_flight) = (4 << 20, 4 << 20);
    Options { max_payload, bytes_in_flight: 8 << 20, total_bytes_in_flight, ..Options::default() }
}

async fn fill_the_room(client: &mut Client) {
    client.send(&request(0, cmd::READ, 1, 4096, 4 << 20)).await;
    client.reply().await; // the data is ready, and not fetched
}

#[tokio::test(start_paused = true)]
async fn r11_a_client_that_fetches_nothing_does_not_hold_up_the_others() {
    let (world, _gate) = gated(tight(), waits_at_zero).await;
    let (mut slow, mut other) = (world.attach().await, world.attach().await);
    fill_the_room(&mut slow).await;
    for round in 0..20 {
        assert_eq!(other.write(0, 8192 + round, b"data").await, 0);
        assert_eq!(other.read(8192 + round, 4).await.unwrap(), b"data");
    }
    other.disconnect().await;
    slow.bytes(4 << 20).await;
    slow.disconnect().await;
    world.all_gone().await;
}

/// A TRIM needs no room but its own: it is carried out and answered while a READ waits for the store, and while the reply to
/// one lies there because nobody fetches it.
#[tokio::test(start_paused = true)]
async fn r3_r11_a_trim_is_answered_while_a_reply_is_stuck() {
    let (world, gate) = gated(tight(), waits_at_zero).await;
    let (mut waiting, mut slow) = (world.attach().await, world.attach().await);
    fill_the_room(&mut slow).await;
    waiting.send(&request(0, cmd::READ, 1, 0, 512)).await;
    gate.holds(1).await;
    assert_eq!(waiting.call(0, cmd::TRIM, 1 << 20, 1 << 20).await, 0, "others, and a READ of its own, are stuck");

    // Behind its own reply it cannot come, but it is done all the same.
    slow.send(&request(0, cmd::TRIM, 2, 8 << 20, 1 << 20)).await;
    gate.saw(Call::Trim { offset: 8 << 20, len: 1 << 20, fua: false }).await;
    assert_eq!(slow.bytes(4 << 20).await.len(), 4 << 20);
    assert_eq!(slow.reply().await, Reply { error: 0, cookie: 2 });

    gate.release(Ok(()));
    assert_eq!(waiting.reply().await, Reply { error: 0, cookie: 1 });
    waiting.bytes(512).await;
    waiting.disconnect().await;
    slow.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r11_a_client_that_stalls_while_others_wait_is_dropped() {
    let (world, _gate) = gated(Options { client_timeout: DAY, ..tight() }, waits_at_zero).await;
    let (mut slow, mut other) = (world.attach().await, world.attach().await);
    fill_the_room(&mut slow).await;

    tokio::time::sleep(DAY / 2).await;
    slow.bytes(1 << 20).await; // nobody waited: it may take half a day off

    let begin = Instant::now();
    assert_eq!(other.read(4096, 3 << 20).await.unwrap().len(), 3 << 20);
    assert!((20..=40).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    assert!(slow.rest().await.len() < 3 << 20, "it was dropped");
    other.disconnect().await;
    world.all_gone().await;
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What it was sent stays in memory until it fetches it: not for ever, even where nobody else wants the room.
#[tokio::test(start_paused = true)]
async fn r11_a_client_that_fetches_nothing_is_dropped_although_nobody_waits() {
    let gate = Gate::default();
    let device = MemoryDevice::new(64 << 20).with_hook(gate.hook(|_| false));
    let options = Options { client_timeout: Duration::from_secs(45), stall_timeout: DAY, ..Options::default() };
    let world = World::of(options, device).await;
    let (mut stuck, mut other) = (world.attach().await, world.attach().await);
    for cookie in 0..200 {
        stuck.send(&request(0, cmd::READ, cookie, 0, 1 << 20)).await;
    }
    let begin = Instant::now();
    // It may be slow: whatever it fetches counts as life.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(44)).await;
        stuck.bytes(100 << 10).await;
    }
    let held = |world: &World| world.server.clients().into_iter().map(|client| client.bytes_in_flight).max();
    assert_eq!(held(&world), Some(64 << 20), "bounded by bytes_in_flight");
    assert_eq!(gate.calls().len(), 65, "one more than what it has not fetched");
    assert_eq!(other.read(4096, 4096).await.unwrap().len(), 4096, "others go on meanwhile");
    let before = Instant::now();
    within(async {
        while world.server.clients().len() == 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!((44..=47).contains(&before.elapsed().as_secs()), "{:?}, {:?}", before.elapsed(), begin.elapsed());
    assert_eq!(held(&world), Some(0));
    other.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r11_a_client_that_stalls_in_a_payload_while_others_wait_is_dropped() {
    let (world, gate) = gated(tight(), waits_at_zero).await;
    let (mut slow, mut other) = (world.attach().await, world.attach().await);
    slow.send(&request(0, cmd::WRITE, 1, 4096, 4 << 20)).await;
    slow.send(&[1; 1000]).await;
    assert_eq!(other.read(4096, 3 << 20).await.unwrap(), vec![0; 3 << 20]);
    slow.expect_closed().await;
    other.disconnect().await;
    world.all_gone().await;
    assert!(gate.calls().iter().all(is_read), "a payload that was cut short is never written");
}

#[tokio::test(start_paused = true)]
async fn m1_m2_m4_connections_share_the_device() {
    let (world, gate) = gated(Options::default(), |call| *call == Call::Flush).await;
    let (mut a, mut b, lost) = (world.attach().await, world.attach().await, world.attach().await);
    assert_eq!(a.write(0, 100, b"from a").await, 0);
    assert_eq!(b.read(100, 6).await.unwrap(), b"from a");

    b.send(&request(0, cmd::FLUSH, 1, 0, 0)).await;
    gate.holds(1).await;
    drop(lost);
    assert_eq!(gate.calls()[0], Call::Write { offset: 100, len: 6, fua: false }, "before the flush began");
    gate.release(Ok(()));
    assert_eq!(b.reply().await, Reply { error: 0, cookie: 1 });
    assert_eq!(a.read(100, 6).await.unwrap(), b"from a");
    b.disconnect().await;
    a.finish_sending().await;
    gate.holds(1).await; // the flush that follows a
    gate.release(Ok(()));
    world.all_gone().await;
}

/// M3, fault 13: two connections write into the two halves of one block, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn m3_fault_13_two_writers_into_one_block_lose_nothing() {
    let world = World::small().await;
    let writer = async |mark: u8, offset: u64| {
        let mut client = world.attach().await;
        for round in 0..500 {
            let data = [mark ^ round as u8; 2048];
            assert_eq!(client.write(0, offset, &data).await, 0);
            assert_eq!(client.read(offset, 2048).await.unwrap(), data);
        }
        client.disconnect().await;
    };
    tokio::join!(writer(0x00, 4096), writer(0xff, 6144));
    world.all_gone().await;
}

/// A deep queue of mixed requests over every kind of path: each is answered once, with its own data.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_in_flight_are_each_answered_once() {
    let device = MemoryDevice::new(SIZE).with_hook(std::sync::Arc::new(|call| {
        Box::pin(async move {
            // Some wait a little, so that replies come out of order.
            if matches!(call, Call::Read { offset, .. } if offset % 3 == 0) {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }));
    let world = World::of(Options::default(), device).await;
    let mut filler = world.attach().await;
    let content: Vec<u8> = (0..SIZE as u32).map(|at| (at / 7) as u8).collect();
    assert_eq!(filler.write(0, 0, &content).await, 0);
    filler.disconnect().await;

    let mut client = world.connect_by(8 << 10);
    client.go("disk0").await;
    let (mut sender, mut receiver) = client.split();
    let range = |cookie: u64| (cookie * 811 % (SIZE - 5000), (cookie * 37 % 5000) as u32);
    let sending = async {
        for cookie in 0..1000 {
            let (offset, len) = range(cookie);
            sender.send(&request(0, cmd::READ, cookie, offset, len)).await;
        }
    };
    let receiving = async {
        let mut answered = vec![0; 1000];
        for _ in 0..1000 {
            let reply = receiver.reply().await;
            assert_eq!(reply.error, 0);
            let (offset, len) = range(reply.cookie);
            let data = receiver.bytes(len as usize).await;
            assert!(data == content[offset as usize..][..len as usize]);
            answered[reply.cookie as usize] += 1;
        }
        assert_eq!(answered, vec![1; 1000]);
    };
    tokio::join!(sending, receiving);
    sender.send(&request(0, cmd::DISC, 0, 0, 0)).await;
    receiver.expect_closed().await;
    world.all_gone().await;
}
