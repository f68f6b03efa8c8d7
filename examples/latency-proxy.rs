//! A TCP proxy that makes a near store far away, for benchmarks, and counts what is asked of it:
//!
//! ```text
//! cargo run --release --example latency-proxy -- --listen 127.0.0.1:9001 --to 127.0.0.1:7480 --round-trip 20ms
//! ```
//!
//! Each direction is delayed by half of the round trip; the bandwidth is not limited, since any number of bytes may
//! be on their way. Whatever passes is read along as HTTP/1.1, so that the requests of every program behind it are
//! counted in one and the same way. A connection to the port of `--counters` gets the counts as one line of JSON.
//!
//! What it does not do: delay the opening of a connection (all who are measured keep theirs), TLS, HTTP/2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use clap::Parser;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Delays what passes, and counts it.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to connect to.
    #[arg(long)]
    to: SocketAddr,
    /// Where the counts are told.
    #[arg(long)]
    counters: SocketAddr,
    /// The round trip that is added.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    round_trip: Duration,
}

/// What passed since the start.
#[derive(Debug, Default, Serialize)]
struct Counts {
    put: u64,
    get: u64,
    head: u64,
    list: u64,
    /// Requests that delete one object, or a batch of them.
    delete: u64,
    other: u64,
    /// Bytes of the bodies of requests.
    bytes_up: u64,
    /// Bytes of replies, with their heads.
    bytes_down: u64,
    /// Connections that were not understood; what passes on them is not counted.
    not_understood: u64,
}

type Counter = Arc<Mutex<Counts>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let counts = Counter::default();
    tokio::spawn(tell(TcpListener::bind(arguments.counters).await?, counts.clone()));
    let listener = TcpListener::bind(arguments.listen).await?;
    println!("ready");
    loop {
        let (client, _) = listener.accept().await?;
        let Ok(server) = TcpStream::connect(arguments.to).await else { continue };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let delay = arguments.round_trip / 2;
        let (up, down) = (counts.clone(), counts.clone());
        let mut requests = Requests::default();
        pass(client_read, server_write, delay, move |bytes| requests.note(bytes, &mut up.lock()));
        pass(server_read, client_write, delay, move |bytes| down.lock().bytes_down += bytes.len() as u64);
    }
}

async fn tell(listener: TcpListener, counts: Counter) {
    while let Ok((mut asking, _)) = listener.accept().await {
        let line = serde_json::to_string(&*counts.lock()).expect("counts are plain numbers");
        let _ = asking.write_all(format!("{line}\n").as_bytes()).await;
    }
}

/// Bytes of one direction that are on their way and that nobody has taken yet; far more than delay times bandwidth
/// of the loopback at 20 ms.
const CHUNKS_UNDER_WAY: usize = 4096;
const CHUNK_BYTES: usize = 128 << 10;

fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut note: impl FnMut(&[u8]) + Send + 'static,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_UNDER_WAY);
    tokio::spawn(async move {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            note(&buffer);
            if sender.send((Instant::now() + delay, buffer.freeze())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            if !delay.is_zero() {
                sleep_until(due).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
}

/// Reads along with the requests of one connection.
#[derive(Default)]
struct Requests {
    head: BytesMut,
    body_left: u64,
    lost: bool,
}

/// A head longer than this is none.
const HEAD_BYTES_MAX: usize = 64 << 10;

impl Requests {
    fn note(&mut self, mut bytes: &[u8], counts: &mut Counts) {
        while !bytes.is_empty() && !self.lost {
            let body = self.body_left.min(bytes.len() as u64);
            self.body_left -= body;
            counts.bytes_up += body;
            bytes.advance(body as usize);
            if bytes.is_empty() {
                return;
            }
            let searched = self.head.len().saturating_sub(3);
            self.head.extend_from_slice(bytes);
            let Some(at) = self.head[searched..].windows(4).position(|four| four == b"\r\n\r\n") else {
                self.lose_if(self.head.len() > HEAD_BYTES_MAX, counts);
                return;
            };
            let head_len = searched + at + 4;
            let taken = head_len - (self.head.len() - bytes.len());
            bytes.advance(taken);
            let head = String::from_utf8_lossy(&self.head[..head_len]).into_owned();
            self.head.clear();
            self.begin(&head, counts);
        }
    }

    fn begin(&mut self, head: &str, counts: &mut Counts) {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let header = |name: &str| {
            let mut pairs = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
            pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
        };
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match method {
            "PUT" => counts.put += 1,
            "HEAD" => counts.head += 1,
            "DELETE" => counts.delete += 1,
            "POST" if has("delete") => counts.delete += 1,
            "GET" if ["list-type", "prefix", "marker", "max-keys", "delimiter"].into_iter().any(has) => {
                counts.list += 1
            }
            "GET" => counts.get += 1,
            _ => counts.other += 1,
        }
        self.body_left = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        self.lose_if(header("transfer-encoding").is_some(), counts);
    }

    fn lose_if(&mut self, lost: bool, counts: &mut Counts) {
        if lost {
            self.lost = true;
            counts.not_understood += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_however_they_are_cut() {
        let stream = b"PUT /b/k HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /b/k HTTP/1.1\r\n\r\n\
            GET /b?list-type=2&prefix=x HTTP/1.1\r\n\r\nPOST /b?delete HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc\
            DELETE /b/k HTTP/1.1\r\n\r\nHEAD /b/k HTTP/1.1\r\n\r\n";
        for size in 1..stream.len() {
            let (mut requests, mut counts) = (Requests::default(), Counts::default());
            stream.chunks(size).for_each(|chunk| requests.note(chunk, &mut counts));
            let Counts { put, get, head, list, delete, other, bytes_up, not_understood, .. } = counts;
            assert_eq!((put, get, head, list, delete, other), (1, 1, 1, 1, 2, 0), "cut at {size}");
            assert_eq!((bytes_up, not_understood), (8, 0), "cut at {size}");
        }
    }
}
