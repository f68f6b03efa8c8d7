//! A whole session over a device in memory: the handshake goes well, then comes whatever the fuzzer sends. The server must
//! come to an end by itself, within its memory, and what it says must be replies.
//!
//! The first byte says how wide the pipe is, and which style of requests and replies was agreed on.
#![no_main]

use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{Host, Options, Server};
use ashlar_fuzz::{fair, within};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The flags FIXED_NEWSTYLE and NO_ZEROES.
const FLAGS: &[u8] = b"\0\0\0\x03";
/// SET_META_CONTEXT for "disk": `base:allocation`.
const SELECT: &[u8] = b"IHAVEOPT\0\0\0\x0a\0\0\0\x1f\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation";
/// GO "disk".
const GO: &[u8] = b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0";

/// What comes before the requests, how much the server says to it, and the magic numbers with which replies may begin.
fn handshake(style: u8) -> (Vec<u8>, usize, &'static [u32]) {
    // An option's reply has 20 bytes; INFO carries 12 and 14, a context 19.
    let entered = 18 + 20 + (20 + 19) + 20 + (20 + 12) + (20 + 14) + 20;
    match style % 3 {
        0 => ([FLAGS, b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk"].concat(), 18 + 10, &[0x6744_6698]),
        1 => {
            let structured = b"IHAVEOPT\0\0\0\x08\0\0\0\0";
            ([FLAGS, structured, SELECT, GO].concat(), entered, &[0x6744_6698, 0x668e_33ef])
        }
        _ => ([FLAGS, b"IHAVEOPT\0\0\0\x0b\0\0\0\0", SELECT, GO].concat(), entered, &[0x6e8a_278c]),
    }
}

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
    let (handshake, welcome_bytes, magics) = handshake(first / 13);
    let send = async {
        let _ = writing.write_all(&handshake).await;
        let _ = writing.write_all(sent).await;
        let _ = writing.shutdown().await;
    };
    let receive = async {
        let (mut buffer, mut beginning) = ([0; 4096], Vec::new());
        while let Ok(len @ 1..) = reading.read(&mut buffer).await {
            let room = (welcome_bytes + 16).saturating_sub(beginning.len());
            beginning.extend_from_slice(&buffer[..len.min(room)]);
        }
        beginning
    };
    let (_, _, heard) = tokio::join!(server.serve(theirs, "fuzz", Host::Local), send, receive);
    if let Some(reply) = heard.get(welcome_bytes..).filter(|reply| !reply.is_empty()) {
        let is_reply = magics.iter().any(|magic| reply.starts_with(&magic.to_be_bytes())) && reply.len() == 16;
        assert!(is_reply, "no reply: {reply:02x?}");
    }
}
