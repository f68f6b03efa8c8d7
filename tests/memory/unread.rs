//! Clients of a volume that ask and never read: what their replies hold is bounded, and a client that reads is served.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::device::memory::MemoryExports;
use ashlar::nbd::{self, Host, Server};
use ashlar::volume::Options;

use crate::client::{Client, request};
use crate::counting::Count;
use crate::replies::open;

const MIB: u64 = 1 << 20;
const CLIENTS: usize = 6;
const READ: u16 = 0;

/// Bytes in flight: of one client, and of all.
const OF_ONE: usize = 32 << 20;
const OF_ALL: usize = 64 << 20;

/// Connections, tasks, and the frames that a reply under way was cut from.
const FIXED: u64 = 4 * MIB;

fn connect(server: &Arc<Server>) -> Client {
    let (near, far) = tokio::io::duplex(4096);
    let server = server.clone();
    tokio::spawn(async move { server.serve(far, "a test", Host::Local).await });
    Client::new(near)
}

#[tokio::test(start_paused = true)]
async fn replies_that_nobody_reads_hold_no_more_than_is_configured() {
    let (mut count, folder) = (Count::begin(), tempfile::tempdir().unwrap());
    let volume = open(64 * MIB, Options::default(), folder.path()).await;
    // Pieces that lie in frames with others, and long ones.
    for at in 0..64 {
        volume.write(at * MIB, vec![at as u8 + 1; MIB as usize].into(), false).await.unwrap();
        volume.write(at * MIB + 8192, vec![0x77; 4096].into(), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    let options = nbd::Options { bytes_in_flight: OF_ONE, total_bytes_in_flight: OF_ALL, ..nbd::Options::default() };
    let exports = MemoryExports::new().with("v", "", volume.clone());
    let server = Arc::new(Server::bind(options, vec![], Arc::new(exports)).await.unwrap());
    count.again();

    let mut silent = Vec::new();
    for n in 0..CLIENTS as u64 {
        let mut client = connect(&server);
        client.go("v").await;
        for i in 0..64 {
            let len = if i % 2 == 0 { MIB } else { 64 << 10 };
            client.send(&request(0, READ, i, (n * 5 + i) % 63 * MIB + 4096, len as u32)).await;
        }
        silent.push(client);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bound = OF_ALL as u64 + CLIENTS as u64 * MIB + FIXED;
    println!("{} KiB are held, {} at most, of {}", count.now() >> 10, count.most() >> 10, bound >> 10);
    assert!(count.now() >= OF_ALL as u64 / 2, "{} bytes: the replies are not there, this proves nothing", count.now());
    assert!(
        count.most() <= bound,
        "{} bytes for {CLIENTS} clients that do not read, {bound} are allowed",
        count.most()
    );

    let mut reader = connect(&server);
    reader.go("v").await;
    assert_eq!(reader.read(5 * MIB, 4096).await.unwrap(), vec![6; 4096], "others are served");
    drop(silent);
    drop(reader);
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("{} KiB stay", count.now() >> 10);
    assert!(count.now() <= FIXED, "{} bytes stay after they have left", count.now());
}
