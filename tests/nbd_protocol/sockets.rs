//! Real sockets, and an independent client.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{ListenAddr, Options, Server};
use nbd::client::{NbdClient, NbdExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::client::{Client, within};
use crate::world::SIZE;

fn loopback() -> ListenAddr {
    ListenAddr::Tcp("127.0.0.1:0".parse().unwrap())
}

async fn bind(options: Options, addresses: Vec<ListenAddr>) -> std::io::Result<Server> {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE))).with_default("disk0");
    Server::bind(options, addresses, Arc::new(exports)).await
}

async fn start(options: Options, addresses: Vec<ListenAddr>) -> (Arc<Server>, JoinHandle<()>) {
    let server = Arc::new(bind(options, addresses).await.unwrap());
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    (server, running)
}

fn tcp(server: &Server) -> SocketAddr {
    match server.addresses()[0] {
        ListenAddr::Tcp(address) => address,
        _ => panic!("the first address is TCP"),
    }
}

async fn tcp_client(address: SocketAddr) -> Client {
    Client::new(TcpStream::connect(address).await.unwrap())
}

#[tokio::test]
async fn tcp_and_unix_sockets_serve_the_same_exports() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let (server, running) = start(Options::default(), vec![loopback(), ListenAddr::Unix(path.clone())]).await;
    assert_eq!(server.addresses()[1], ListenAddr::Unix(path.clone()));

    let mut a = tcp_client(tcp(&server)).await;
    a.go("disk0").await;
    assert_eq!(a.write(0, 5, b"over tcp").await, 0);
    let mut b = Client::new(UnixStream::connect(&path).await.unwrap());
    b.go("").await;
    assert_eq!(b.read(5, 8).await.unwrap(), b"over tcp");
    a.disconnect().await;
    b.disconnect().await;

    within(server.shutdown()).await;
    within(running).await.unwrap();
    assert!(!path.exists(), "the socket file is gone");
    assert!(TcpStream::connect(tcp(&server)).await.is_err(), "nobody listens");
}

/// Large requests over a real socket: payloads in their own buffers, replies in many vectored writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_over_tcp() {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(64 << 20)));
    let server = Arc::new(Server::bind(Options::default(), vec![loopback()], Arc::new(exports)).await.unwrap());
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    let mut client = tcp_client(tcp(&server)).await;
    client.go("disk0").await;
    let data: Vec<u8> = (0..20 << 20).map(|at: u32| (at / 1000) as u8).collect();
    for (round, len) in [1 << 20, 20 << 20, 100_000, 4096].into_iter().enumerate() {
        assert_eq!(client.write(0, round as u64, &data[..len]).await, 0);
        assert!(client.read(round as u64, len as u32).await.unwrap() == data[..len]);
    }
    client.disconnect().await;
    within(server.shutdown()).await;
    within(running).await.unwrap();
}

#[tokio::test]
async fn c6_clients_beyond_the_limit_are_turned_away_until_one_leaves() {
    let (server, _running) = start(Options { max_connections: 2, ..Options::default() }, vec![loopback()]).await;
    let address = tcp(&server);
    let (mut a, mut b) = (tcp_client(address).await, tcp_client(address).await);
    a.go("disk0").await;
    b.go("disk0").await;
    tcp_client(address).await.expect_closed().await;
    a.disconnect().await;
    // The server closes a's socket a moment before it counts a as gone.
    let mut c = loop {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if tokio::io::AsyncReadExt::read_u64(&mut stream).await.is_ok_and(|magic| magic == 0x4e42_444d_4147_4943) {
            break Client::new(tokio::io::join(tokio::io::AsyncReadExt::chain(&b"NBDMAGIC"[..], dup(&stream)), stream));
        }
    };
    c.go("disk0").await;
    within(server.shutdown()).await;
}

/// A second handle on a socket, to read from it.
fn dup(stream: &TcpStream) -> TcpStream {
    use std::os::fd::AsFd;
    let copy = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned().unwrap());
    TcpStream::from_std(copy).unwrap()
}

#[tokio::test]
async fn dropping_the_server_closes_everything() {
    let (server, running) = start(Options::default(), vec![loopback()]).await;
    let address = tcp(&server);
    let mut client = tcp_client(address).await;
    client.go("disk0").await;
    running.abort();
    let _ = running.await;
    drop(server);
    client.expect_closed().await;
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_socket_file_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a killed server leaves its file");
    let (server, _running) = start(Options::default(), vec![ListenAddr::Unix(path.clone())]).await;
    let mut client = Client::new(UnixStream::connect(&path).await.unwrap());
    client.go("disk0").await;
    client.disconnect().await;
    within(server.shutdown()).await;
}

async fn refusal(path: &Path) -> String {
    bind(Options::default(), vec![ListenAddr::Unix(path.to_owned())]).await.err().expect("it is refused").to_string()
}

#[tokio::test]
async fn a_socket_file_that_somebody_listens_on_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listening = UnixListener::bind(&path).unwrap();
    let expected = format!(
        "cannot listen on {}: another server listens there; stop the other server or choose another address",
        path.display()
    );
    assert_eq!(refusal(&path).await, expected);
    drop(listening);
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let expected = format!(
        "cannot listen on {}: there is a file of that name, and it is not a socket; stop the other server or choose \
         another address",
        path.display()
    );
    assert_eq!(refusal(&path).await, expected);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(Options::default(), vec![ListenAddr::Tcp(address)]).await.err().expect("it is taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let expected = format!(
        "cannot listen on {address}: Address already in use (os error 98); stop the other server or choose another \
         address"
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn an_option_out_of_bounds_is_refused_at_once() {
    let error = bind(Options { max_connections: 0, ..Options::default() }, vec![]).await.err().expect("it is refused");
    assert!(error.to_string().starts_with("nbd.max_connections = 0 is out of bounds"), "{error}");
}

/// The `nbd` crate shares no code and no author with this server.
#[tokio::test]
async fn an_independent_client_reads_what_it_wrote() {
    let (server, _running) = start(Options::default(), vec![loopback()]).await;
    let address = tcp(&server);
    let talk = move || -> std::io::Result<()> {
        let mut stream = std::net::TcpStream::connect(address)?;
        let export = nbd::client::handshake(&mut stream, b"disk0")?;
        assert_eq!((export.size, export.readonly, export.send_flush, export.send_trim), (SIZE, false, true, true));
        let mut disk = NbdClient::new(&mut stream, &export);

        let mut model = vec![0; SIZE as usize];
        for (offset, len) in [(0, 512), (3, 70_000), (SIZE as usize - 10, 10), (100_000, 4096)] {
            let data: Vec<u8> = (0..len).map(|at| (at ^ offset) as u8 | 1).collect();
            disk.seek(SeekFrom::Start(offset as u64))?;
            disk.write_all(&data)?;
            model[offset..offset + len].copy_from_slice(&data);
        }
        disk.flush()?;
        disk.seek(SeekFrom::Start(8192))?;
        disk.trim(16384)?;
        model[8192..24576].fill(0);

        let mut whole = vec![1; SIZE as usize];
        disk.seek(SeekFrom::Start(0))?;
        disk.read_exact(&mut whole)?;
        assert!(whole == model);
        Ok(())
    };
    tokio::task::spawn_blocking(talk).await.unwrap().unwrap();
    within(server.shutdown()).await;
}

#[tokio::test]
async fn an_independent_client_is_told_that_an_export_is_unknown_by_a_closed_connection() {
    let (server, _running) = start(Options::default(), vec![loopback()]).await;
    let address = tcp(&server);
    let talk = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        nbd::client::handshake(&mut stream, b"nope").unwrap_err().kind()
    };
    let kind = tokio::task::spawn_blocking(talk).await.unwrap();
    assert_eq!(kind, std::io::ErrorKind::UnexpectedEof);
    within(server.shutdown()).await;
}

/// The same as with pipes, but with the buffers of the kernel between, and its own idea of a peer that takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_tcp_client_that_never_reads_is_dropped_and_others_do_not_notice() {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(64 << 20)));
    let options = Options { client_timeout: Duration::from_secs(2), ..Options::default() };
    let server = Arc::new(Server::bind(options, vec![loopback()], Arc::new(exports)).await.unwrap());
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    let (mut stuck, mut other) = (tcp_client(tcp(&server)).await, tcp_client(tcp(&server)).await);
    stuck.go("disk0").await;
    other.go("disk0").await;
    for cookie in 0..256 {
        stuck.send(&crate::client::request(0, crate::client::cmd::READ, cookie, 0, 1 << 20)).await;
    }
    let begin = std::time::Instant::now();
    while server.clients().len() == 2 {
        assert!(begin.elapsed() < crate::client::PATIENCE, "it is still there");
        let most = server.clients().iter().map(|client| client.bytes_in_flight).max();
        assert!(most <= Some(64 << 20), "{most:?}");
        assert_eq!(other.read(4096, 4096).await.unwrap().len(), 4096);
    }
    assert_eq!(other.write(0, 0, b"still here").await, 0);
    other.disconnect().await;
    drop(stuck);
    within(server.shutdown()).await;
    within(running).await.unwrap();
}

#[tokio::test]
async fn clients_are_listed_and_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let (server, _running) = start(Options::default(), vec![loopback(), ListenAddr::Unix(path.clone())]).await;
    let (mut a, mut b) = (tcp_client(tcp(&server)).await, Client::new(UnixStream::connect(&path).await.unwrap()));
    a.go("disk0").await;
    b.go("disk0").await;
    assert_eq!(a.write(0, 0, b"x").await, 0);
    let listed = server.clients();
    assert_eq!(listed.iter().map(|client| client.requests).collect::<Vec<_>>(), [1, 0]);
    assert!(listed[0].address.starts_with("127.0.0.1:") && listed[1].address.starts_with("uid "), "{listed:?}");
    assert_eq!(server.evict("disk1", None), [""; 0]);
    assert_eq!(server.evict("disk0", Some("127.0.0.1")), [listed[0].address.clone()]);
    a.expect_closed().await;
    assert_eq!(b.write(0, 0, b"y").await, 0, "nobody else goes");
    assert_eq!(server.evict("disk0", None), [listed[1].address.clone()]);
    b.expect_closed().await;
    within(server.shutdown()).await;
}
