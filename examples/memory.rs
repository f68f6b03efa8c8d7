//! Serves one writable export from memory, to try clients by hand:
//! `cargo run --example memory -- 127.0.0.1:10809 /tmp/nbd.sock`, then `nbdinfo nbd://127.0.0.1/`.

use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::{ListenAddr, Options, Server};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let addresses = std::env::args().skip(1).map(|argument| match argument.parse() {
        Ok(address) => ListenAddr::Tcp(address),
        Err(_) => ListenAddr::Unix(argument.into()),
    });
    let disk = Arc::new(MemoryDevice::new(1 << 30));
    let exports = MemoryExports::new().with("disk0", "1 GiB of memory", disk).with_default("disk0");
    let server = Arc::new(Server::bind(Options::default(), addresses.collect(), Arc::new(exports)).await?);
    println!("listening on {:?}", server.addresses());
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    running.await.map_err(std::io::Error::other)
}
