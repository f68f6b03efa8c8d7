//! The S3 server of the tests as a program, for tests in shell:
//!
//! ```text
//! cargo run --example s3-test-server -- --port 9000 --bucket disks --access A --secret S --directory /tmp/objects
//! ```
//!
//! It checks signatures and honours create-only PUT, also in races. Without `--directory` objects live in memory.
//! `--overwrite` makes it ignore `If-None-Match`, as some stores do. It prints one line when it is ready.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../tests/support/s3_server.rs"]
#[allow(dead_code)]
mod s3_server;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ashlar::outside::{Random, Workers};
use ashlar::store::Store;
use ashlar::store::file::FileStore;
use ashlar::store::memory::MemoryStore;
use clap::Parser;

/// An S3 server for tests: one bucket, in memory or in a directory.
#[derive(Parser)]
struct Arguments {
    /// The port to listen on, on the loopback; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The name of the bucket.
    #[arg(long, default_value = "disks")]
    bucket: String,
    /// The access key id.
    #[arg(long, default_value = "test-access")]
    access: String,
    /// The secret access key.
    #[arg(long, default_value = "test-secret")]
    secret: String,
    /// Where objects live; in memory without it.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Overwrite objects even if the request says If-None-Match.
    #[arg(long)]
    overwrite: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let store: Arc<dyn Store> = match arguments.directory {
        Some(path) => Arc::new(FileStore::open(path, Workers::Threads, Random::system()).await?),
        None => Arc::new(MemoryStore::new()),
    };
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), arguments.port);
    let (bucket, access, secret) = (&arguments.bucket, &arguments.access, &arguments.secret);
    let server = s3_server::S3Server::start_at(address, bucket, access, secret, store).await?;
    server.behaviour.lock().overwrites = arguments.overwrite;
    println!("endpoint={} bucket={bucket}", server.endpoint());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
