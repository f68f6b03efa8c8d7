//! `ashlar diff`: in what two versions of a volume differ.

use std::sync::Arc;

use serde::Serialize;

use super::export_name::{ExportName, Which};
use super::failure::{Failure, Outcome};
use super::outside::Cache;
use super::{output, outside, runtime, secrets};
use crate::config::Effective;
use crate::device::Allocation;
use crate::engine::options::Options;
use crate::opening::choice::choose;
use crate::opening::difference::difference;
use crate::opening::scan::{Scan, Source};
use crate::store::Store;
use crate::store::open::Access;
use crate::units::{BlockIndex, BlockSize, Extent};

/// Says in what two versions of a volume differ: which ranges, and what the second has there.
///
/// It reads the maps of both and no data, changes nothing, and may be given anywhere. Without @SNAPSHOT a volume is meant as its store has it: what a server
/// has not brought there yet is not in it. What has been written twice with the same content, or was moved by collection, may be said to differ; what
/// differs is always said.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar diff db@monday db@tuesday
  ashlar diff db@monday db --json")]
pub struct Args {
    /// A volume, or a snapshot of it by name or time
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    one: ExportName,

    /// Another version of that volume
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    other: ExportName,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// A range in which they differ.
#[derive(Debug, Serialize)]
struct Range {
    offset: u64,
    length: u64,
    holds: &'static str,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    if args.one.volume != args.other.volume {
        return Err(Failure::usage(format!(
            "{} and {} are not of one volume: only versions of one can be told apart by their maps",
            args.one, args.other
        )));
    }
    let found = runtime()?.block_on(find(args, config))?;
    if args.json {
        return output::json(&found);
    }
    if found.is_empty() {
        return output::text("they do not differ");
    }
    let row = |range: &Range| vec![range.offset.to_string(), range.length.to_string(), range.holds.to_owned()];
    output::text(output::table(&["OFFSET", "LENGTH", "HOLDS"], found.iter().map(row)))
}

async fn find(args: &Args, config: &Effective) -> Result<Vec<Range>, Failure> {
    let store: Arc<dyn Store> = outside::open_store(config, Access::Read).await?.store;
    let near = (Arc::clone(&Cache::in_memory(config).blocks), outside::real().2);
    let source = Source::of(store, &args.one.volume, &Options::default(), Some(near), &secrets::of(config)).await?;
    let (one, size) = version(&source, args.one.snapshot.as_ref()).await?;
    let (other, other_size) = version(&source, args.other.snapshot.as_ref()).await?;
    let block_size = source.meta.block_size;
    let end = BlockIndex(size.max(other_size).div_ceil(block_size.bytes().into()));
    let found = difference(&source, (Some(one), other), end).await?;
    Ok(found.into_iter().map(|(extent, has)| range(block_size, extent, has)).collect())
}

/// That version, and its size.
async fn version(source: &Source, which: Option<&Which>) -> Result<(Scan, u64), Failure> {
    let Some(which) = which else { return Ok((source.scan().await?, source.meta.size)) };
    let versions = source.versions().await?;
    let version = choose(&versions, &source.meta.name, which.as_str())?;
    Ok((source.version(version).await?, source.meta.block_size.bytes_in(version.blocks)))
}

fn range(block_size: BlockSize, extent: Extent, has: Allocation) -> Range {
    Range {
        offset: block_size.offset_of(extent.start),
        length: block_size.bytes_in(extent.count),
        holds: match has {
            Allocation::Data => "data",
            Allocation::Zero => "zero",
            Allocation::Hole => "hole",
        },
    }
}
