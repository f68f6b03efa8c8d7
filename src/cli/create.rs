//! `ashlar create`: a new, empty volume.

use super::failure::{Failure, Outcome};
use super::{output, outside, runtime};
use crate::config::Effective;
use crate::human::{exact_bytes, parse_bytes};
use crate::store::open::Access;
use crate::units::BlockSize;
use crate::volume::{self, CreateOptions, Meta, VolumeError, VolumeName};

/// Makes a new, empty volume. It takes no space until something is written to it.
///
/// The size is what the disk shows; the store holds only what is written, compressed. The block size is the unit in
/// which space is given out and given back, and cannot be changed later; 4KiB suits ext4, xfs, btrfs, LVM and databases.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes: 4096, 64KiB, 10G, 1.5T; K, M, G, T count in 1024, KB, MB, GB in 1000.

Examples:
  ashlar create db --size 100G
  ashlar create old --size 20G --block-size 512 --store s3://my-bucket/disks --json")]
pub struct Args {
    /// The volume's name: letters, digits, '.', '_' and '-', at most 64
    name: VolumeName,

    /// How large the disk is, such as 100G; a multiple of the block size
    #[arg(long, value_parser = parse_bytes)]
    size: u64,

    /// The unit of mapping: a power of two from 512 to 64KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size, default_value = "4KiB")]
    block_size: BlockSize,

    /// Print a JSON object that describes the volume
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    Meta::check_size(args.size, args.block_size).map_err(|error| Failure::usage(format!("--size: {error}")))?;
    let (url, meta) = runtime()?.block_on(create(args, config))?;
    if args.json {
        return output::json(&serde_json::json!({
            "name": meta.name,
            "uuid": meta.uuid,
            "size": meta.size,
            "block_size": meta.block_size,
            "created_unix_millis": meta.created_unix_millis,
            "store": url,
        }));
    }
    output::text(format!(
        "created volume {} in {url}: {}, blocks of {}, uuid {}\nserve it with: ashlar serve {} --store {url}",
        meta.name,
        exact_bytes(meta.size),
        exact_bytes(meta.block_size.bytes().into()),
        meta.uuid,
        meta.name,
    ))
}

async fn create(args: &Args, config: &Effective) -> Result<(String, Meta), Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    let (clock, random, _) = outside::real();
    let options = CreateOptions { size: args.size, block_size: args.block_size };
    let created = volume::create(&*store, &random, &clock, &args.name, options).await;
    let meta = created.map_err(|error| match error {
        VolumeError::Invalid(_) => Failure::usage(error),
        error => Failure::failed(error),
    })?;
    Ok((store.url(), meta))
}

fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    BlockSize::new(bytes).map_err(|error| error.to_string())
}
