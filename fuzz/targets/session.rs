//! A whole session over a device in memory: the handshake goes well, then comes whatever the fuzzer sends. The server must
//! come to an end by itself, within its memory, and what it says must be replies.
//!
//! The first byte says how wide the pipe is.
#![no_main]

use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{Host, Options, Server};
use ashlar_fuzz::{fair, within};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What comes before the requests: the flags FIXED_NEWSTYLE and NO_ZEROES, and EXPORT_NAME "disk".
const HANDSHAKE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
/// What the server says to that: its greeting, and size and flags of the export.
const WELCOME_BYTES: usize = 18 + 10;
const REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();

/// The bounds of the server.
fn options() -> Options {
    Options {
        max_connections: 1,
        max_payload: 1 << 20,
        requests_in_flight: 16,
        bytes_in_flight: 2 << 20,
        total_requests_in_flight: 16,
        total_bytes_in_flight: 2 << 20,
        ..Options::default()
    }
}

/// What they allow, the device, the pipe, and what the client has heard.
const MEMORY: usize = (2 << 20) + (2 << 20) + (2 << 20);

fuzz_target!(|data: &[u8]| {
    let Some((&first, sent)) = data.split_first() else { return };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Whoever waits for a timeout does not wait for long.
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    within(MEMORY + fair(sent.len()), || runtime.block_on(session(first, sent)));
});

async fn session(first: u8, sent: &[u8]) {
    let exports = MemoryExports::new().with("disk", "", Arc::new(MemoryDevice::new(1 << 20)));
    let server = Server::bind(options(), Vec::new(), Arc::new(exports)).await.expect("a server without listeners");
    let (client, theirs) = tokio::io::duplex(16 << (first % 13));
    let (mut reading, mut writing) = tokio::io::split(client);
    let send = async {
        let _ = writing.write_all(HANDSHAKE).await;
        let _ = writing.write_all(sent).await;
        let _ = writing.shutdown().await;
    };
    let receive = async {
        let (mut buffer, mut beginning) = ([0; 4096], Vec::new());
        while let Ok(len @ 1..) = reading.read(&mut buffer).await {
            let room = (WELCOME_BYTES + 16usize).saturating_sub(beginning.len());
            beginning.extend_from_slice(&buffer[..len.min(room)]);
        }
        beginning
    };
    let (_, _, heard) = tokio::join!(server.serve(theirs, "fuzz", Host::Local), send, receive);
    if let Some(reply) = heard.get(WELCOME_BYTES..).filter(|reply| !reply.is_empty()) {
        assert!(reply.starts_with(&REPLY_MAGIC) && reply.len() == 16, "no reply: {reply:02x?}");
    }
}
