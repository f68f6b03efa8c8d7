//! `ashlar bench`: how fast is a store, seen from here, and which settings suit it?
//!
//! [`plan`] says what will be asked of the store, and at most how often; [`measure`] asks it, and cleans up;
//! [`recommend`] makes settings out of what was measured. The first and the last are pure. [`dedup`] is about data, not about stores.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use self::measure::{Cell, Measured};
use self::plan::{Operation, Plan};
use super::failure::{Failure, Outcome};
use super::{output, outside, runtime};
use crate::config::{Effective, Flag};
use crate::human::{about_bytes, exact_bytes, parse_bytes};
use crate::outside::Random;
use crate::store::hedge::HedgeOptions;
use crate::store::limit::LimitOptions;
use crate::store::open::{Access, StoreOptions};

mod dedup;
pub mod measure;
pub mod plan;
mod recommend;

/// Measures a store by object size and parallelism, and recommends settings for it.
///
/// Writes objects of random data below .ashlar-bench/ in the store, reads ranges of them and deletes them again; volumes
/// are not touched, and no volume can have that name. It says first what that costs at most.
///
/// Measure from the host that will serve the volumes, at a time when little else goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar bench
  ashlar bench s3://my-bucket/disks
  ashlar bench s3://my-bucket/disks --sizes 8MiB --parallel 1,16 --time 10s --json
  ashlar bench --dedup web db@monday
  ashlar bench --dedup ./web.img ./db.img /dev/nbd0")]
pub struct Args {
    /// The store; the configured one if not named [key: store.url]
    #[arg(value_name = "STORE-URL")]
    url: Option<String>,

    /// Sizes of the objects that are put, and of the ranges that are read
    #[arg(long, value_delimiter = ',', default_value = "4KiB,128KiB,1MiB,8MiB", value_parser = parse_bytes)]
    sizes: Vec<u64>,

    /// Requests under way at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..=1024))]
    parallel: Vec<u32>,

    /// Each combination is measured for at most this long ...
    #[arg(long, default_value = "3s", value_parser = crate::human::parse_duration)]
    time: Duration,

    /// ... and with at most this many requests ...
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,

    /// ... and this many bytes, but with one request at least
    #[arg(long, default_value = "256MiB", value_parser = parse_bytes)]
    bytes: u64,

    /// Say instead what de-duplication would save of what is in these volumes of the configured store, snapshots of them, disk images (raw), or devices, one after the other
    #[arg(long, value_name = "VOLUME[@SNAPSHOT]|FILE", num_args = 1.., conflicts_with_all = ["url", "sizes", "parallel", "time", "requests", "bytes"])]
    dedup: Vec<dedup::Image>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The flags that set a key of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let url = self.url.clone();
        url.into_iter().map(|value| Flag { name: "STORE-URL", key: "store.url", value }).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    if !args.dedup.is_empty() {
        return dedup::run(&args.dedup, config, args.json);
    }
    let plan = Plan::new(&args.sizes, &args.parallel, args.time, args.requests, args.bytes).map_err(Failure::usage)?;
    if !args.json {
        output::text(format!("store {}\n{}\n", config.store.url, plan.cost()))?;
    }
    let measured = runtime()?.block_on(measure_store(&plan, config, bars))?;
    match args.json {
        true => output::json(&measured),
        false => {
            if let Some(probe) = &measured.probe {
                output::text(format!("probe, version {}: {}\n", probe.version, probe.found.seen()))?;
            }
            output::text(table(&measured.cells))?;
            output::text(format!("\n{LEGEND}"))?;
            output::text(format!("\n{}", recommend::settings(&measured).to_toml()))
        }
    }
}

async fn measure_store(plan: &Plan, config: &Effective, bars: &MultiProgress) -> Result<Measured, Failure> {
    config.store.check_url().map_err(|error| config.refuse("store.url", error.message))?;
    let most = plan.parallel_max() as usize;
    // The configured bounds are what is to be found out, and every request is to be seen as it is.
    let limit = LimitOptions { reads: most, writes: most, ..config.store.limit };
    let hedge = HedgeOptions { share_percent: 0, ..config.store.hedge };
    let options = StoreOptions { limit, hedge, ..config.store.clone() };
    // A bench tries the store anew, whatever is remembered of it.
    let opened = outside::open_with(&options, Access::Write).await?;
    let probe = match opened.finding {
        Some(found) => Some(outside::remember_probe(config, found).await),
        None => None,
    };
    let bar = bars.add(bar(plan.cells().len() as u64));
    let say = |cell: &plan::Request| {
        bar.set_message(format!("{} {} × {}", cell.operation, exact_bytes(cell.size), cell.parallel));
        bar.inc(1);
    };
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    let measured = measure::measure(opened.store, plan, &Random::system(), &say, interrupted).await;
    bar.finish_and_clear();
    Ok(Measured { probe, ..measured.map_err(Failure::failed)? })
}

fn bar(cells: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("measuring {msg:24} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(cells).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What the figures are.
const LEGEND: &str = "\
PARALLEL is how many requests were under way at once. Half of the requests were answered within P50, 99 of 100 within P99,
with what failed and was tried again. REQUESTS/S and BYTES/S are those of all requests under way together.";

fn table(cells: &[Cell]) -> String {
    let header = ["REQUEST", "SIZE", "PARALLEL", "P50", "P99", "REQUESTS/S", "BYTES/S"];
    let rows = cells.iter().map(|cell| {
        let bytes = match cell.operation {
            Operation::Delete => "-".to_owned(),
            _ => about_bytes(cell.bytes_per_second() as u64),
        };
        vec![
            cell.operation.to_string(),
            exact_bytes(cell.size),
            cell.parallel.to_string(),
            millis(cell.p50_micros),
            millis(cell.p99_micros),
            format!("{:.0}", cell.requests_per_second()),
            bytes,
        ]
    });
    output::table(&header, rows)
}

fn millis(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}
