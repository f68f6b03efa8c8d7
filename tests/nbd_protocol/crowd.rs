//! Crowds that stop in the middle of the handshake, each client in a place of its own, and one that is attached.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{ListenAddr, Options, Server};
use tokio::net::TcpStream;

use crate::client::{Client, info_data, opt, option, rep, within};
use crate::world::SIZE;

const CROWD: usize = 300;

async fn start(options: Options) -> (Arc<Server>, std::net::SocketAddr) {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE)));
    let address = ListenAddr::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Arc::new(Server::bind(options, vec![address], Arc::new(exports)).await.unwrap());
    tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    let ListenAddr::Tcp(address) = server.addresses()[0].clone() else { panic!("it is TCP") };
    (server, address)
}

async fn connect(address: std::net::SocketAddr) -> Client {
    let stream = within(TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap(); // what it sends in parts would wait for each other
    Client::new(stream)
}

/// A client that says a part of what it should and then nothing, and where the server got to.
async fn stalled(address: std::net::SocketAddr, number: usize) -> Client {
    let mut client = connect(address).await;
    let go = option(opt::GO, &info_data("disk0", &[]));
    // An option of 4 GiB, which is skipped, and one whose data never comes.
    let endless = [b"IHAVEOPT", &99_u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    let owed = [b"IHAVEOPT", &opt::GO.to_be_bytes()[..], &(64_u32 << 10).to_be_bytes(), &[0x61; 60 << 10]].concat();
    match number % 6 {
        0 => {}
        1 => assert_eq!(client.bytes(18).await.len(), 18),
        2 => client.send(&[0, 0]).await,
        step => {
            client.greet().await;
            client.send([&go[..11], &owed, &endless][step - 3]).await;
        }
    }
    client
}

/// Tries until there is a place; then it is through the greeting.
async fn come_in(address: std::net::SocketAddr) -> Client {
    let tries = async {
        loop {
            let mut client = connect(address).await;
            if client.try_bytes(18).await.is_ok() {
                client.send(&3_u32.to_be_bytes()).await;
                return client;
            }
        }
    };
    within(tries).await
}

/// How many files of this process are each connection that has the port at its near end: the kernel names sockets by a number.
fn times_held(port: u16) -> Vec<usize> {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    // A file may be closed meanwhile.
    let links: Vec<_> = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = sockets.filter(|socket| socket[1].ends_with(&format!(":{port:04X}")) && socket[3] == "01");
    let times = |number: &str| links.iter().filter(|link| link.as_os_str() == &*format!("socket:[{number}]")).count();
    established.map(|socket| times(socket[9])).collect()
}

/// C6: whoever is attached is answered as before, and so is whoever comes when the crowd has left. (When it does not leave, its time
/// is over one day: `c6_a_client_that_dawdles_is_dropped`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_r11_a_crowd_that_stalls_in_the_handshake_holds_up_nobody_who_is_attached() {
    let handshake_timeout = Duration::from_secs(3600);
    let (server, address) =
        start(Options { max_connections: CROWD + 1, handshake_timeout, ..Options::default() }).await;
    let mut attached = connect(address).await;
    attached.go("disk0").await;
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        crowd.push(stalled(address, number).await);
        let offset = number as u64 * 512;
        assert_eq!(attached.write(0, offset, &[number as u8; 512]).await, 0);
        assert_eq!(attached.read(offset, 512).await.unwrap(), [number as u8; 512]);
    }
    assert_eq!(server.clients().len(), 1, "the others are not attached");
    let mut held = times_held(address.port());
    held.sort_unstable_by(|a, b| b.cmp(a));
    assert!(held.len() > CROWD && held[0] == 2 && held[1] == 1, "the attached is held twice, and no other: {held:?}");
    drop(crowd);
    let mut late = come_in(address).await;
    assert_eq!(late.ask(opt::LIST, b"").await, rep::SERVER);
    assert_eq!(late.option_reply().await.reply_type, rep::ACK);
    late.only_go("disk0").await;
    late.disconnect().await;
    attached.disconnect().await;
    within(server.shutdown()).await;
}

/// C6: who comes when all places are taken is closed at once; nobody waits for it, and who has a place keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_a_crowd_beyond_the_places_is_turned_away_and_the_attached_stay() {
    let handshake_timeout = Duration::from_secs(3600);
    let (server, address) = start(Options { max_connections: 8, handshake_timeout, ..Options::default() }).await;
    let mut attached = connect(address).await;
    attached.go("disk0").await;
    let mut holding = Vec::new();
    for _ in 0..7 {
        let mut client = connect(address).await;
        client.greet().await;
        holding.push(client);
    }
    for number in 0..CROWD {
        connect(address).await.expect_closed().await;
        assert_eq!(attached.read(0, 4096).await.unwrap().len(), 4096, "{number}");
    }
    // A place that is given back is one.
    holding.pop();
    assert_eq!(come_in(address).await.ask(opt::LIST, b"").await, rep::SERVER);
    attached.disconnect().await;
    within(server.shutdown()).await;
}
