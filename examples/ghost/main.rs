//! What a volume of any size costs, shown on a ghost of one ([`world`]): `cargo run --release --example ghost -- --size 1TiB`.
//!
//! Prints one JSON object with what was measured; `scripts/bench --scale` runs it for several sizes and makes a table of them, each line
//! with its goal. What each measurement does is said at its head in [`measure`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a measurement that cannot go on, stops
#![allow(clippy::disallowed_methods)] // it measures real time, and reads what the kernel says of this process

mod measure;
mod setting;
mod world;

use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use serde_json::{Map, Value};

/// Measures a ghost.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Bytes of the volume.
    #[arg(long)]
    size: ByteSize,
    /// Bytes of its segments; by default 64 MiB from 16 TiB on, else 8 MiB.
    #[arg(long)]
    segment: Option<ByteSize>,
    /// No ghost, but a real volume, which is written before each measurement: it must fit into memory.
    #[arg(long)]
    real: bool,
    /// Bytes to be written at random.
    #[arg(long, default_value = "1GiB")]
    write: ByteSize,
    /// What a request to the store takes.
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    round_trip: Duration,
    /// How long it is to be quiet before what it then holds is measured.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// How long collection may take to move all that it looked for at once.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// The measurements to be made.
    #[arg(long, value_delimiter = ',', default_value = "open,idle,write,kill,gc")]
    only: Vec<String>,
}

fn main() {
    ashlar::cli::allocator::limit_arenas();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let found = runtime.block_on(async {
        tokio::spawn(ashlar::cli::allocator::give_back_when_quiet());
        measured(&arguments).await
    });
    println!("{}", Value::Object(found));
    // What is left under way is of no interest.
    runtime.shutdown_background();
}

async fn measured(arguments: &Arguments) -> Map<String, Value> {
    let mut found = Map::new();
    found.insert("size".into(), arguments.size.as_u64().into());
    for what in &arguments.only {
        eprintln!("{}: {what}", arguments.size.display().iec());
        let more = match what.as_str() {
            "open" => measure::open(arguments).await,
            "idle" => measure::idle(arguments).await,
            "write" => measure::write(arguments).await,
            "kill" => measure::kill(arguments).await,
            "gc" => measure::collection(arguments).await,
            other => panic!("there is no measurement {other:?}; there are open, idle, write, kill and gc"),
        };
        eprintln!("{}", Value::Object(more.clone()));
        found.extend(more);
    }
    found
}
