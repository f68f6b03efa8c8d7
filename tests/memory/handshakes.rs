//! What clients hold that stop in the handshake: no more than one option each, and what was read ahead.

use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{Host, Options, Server};

use crate::client::{Client, opt};
use crate::counting::Count;

const CROWD: u64 = 500;

/// C6: `docs/memory.md` has `max_option_bytes` for each, and this adds what the tasks and the pipes of the test take.
#[tokio::test(start_paused = true)]
async fn c6_handshakes_that_stall_hold_one_option_each() {
    let mut count = Count::begin();
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(1 << 20)));
    let options = Options { max_connections: CROWD as usize, ..Options::default() };
    let (most, timeout) = (u64::from(options.max_option_bytes), options.handshake_timeout);
    let server = Arc::new(Server::bind(options, vec![], Arc::new(exports)).await.unwrap());
    count.again();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let (near, far) = tokio::io::duplex(1 << 10);
        let server = server.clone();
        let served = tokio::spawn(async move { server.serve(far, "a test", Host::Local).await });
        let mut client = Client::new(near);
        client.greet().await;
        // All but the last byte of the longest option that is looked at.
        client.send(&[b"IHAVEOPT", &opt::GO.to_be_bytes()[..], &(most as u32).to_be_bytes()].concat()).await;
        client.send(&vec![0x61; most as usize - 1]).await;
        crowd.push((client, served));
    }
    let each = count.now() / CROWD;
    println!("{} KiB each", each >> 10);
    // Twice 8 KiB to read; 2 KiB are the pipe's, the rest is the tasks'.
    assert!(each >= most - 1, "{each} bytes each: they are held");
    assert!(each <= most + (32 << 10), "{each} bytes each");
    tokio::time::sleep(2 * timeout).await;
    for (client, served) in crowd {
        served.await.unwrap();
        drop(client);
    }
    assert!(count.now() <= 64 << 10, "{} bytes stay behind", count.now());
}
