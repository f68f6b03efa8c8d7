//! `ashlar set`: what may change in the life of a volume.

use super::failure::{Failure, Outcome};
use super::{control, output, outside, runtime, secrets};
use crate::codec::frame::Compression;
use crate::config::Effective;
use crate::format::meta::Meta;
use crate::opening::description;
use crate::store::open::Access;
use crate::volume::VolumeName;

/// Changes a setting of a volume, also while it is served.
///
/// A new compression holds for what is written from now on; what is there stays as it is until garbage collection
/// rewrites it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar set db --compression zstd:3\n  ashlar set db --compression none")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// How data is compressed: lz4, zstd:1 to zstd:19, or none
    #[arg(long, value_name = "WAY")]
    compression: Compression,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(set(args, config))?;
    output::text(said)
}

async fn set(args: &Args, config: &Effective) -> Result<String, Failure> {
    let Args { name, compression } = args;
    let store = outside::open_store(config, Access::Write).await?.store;
    let (_, random, _) = outside::real();
    let found = description::load(&*store, name).await?;
    let sealer = found.unlock(&secrets::of(config)).await?;
    let meta = Meta { compression: *compression, ..found.meta.clone() };
    found.replace(&*store, &random, &meta, sealer.keyring()).await?;
    let served = control::reload_if_served(&config.state, &store.url(), name).await.map_err(Failure::failed)?;
    let when = if served { "now" } else { "the next time it is opened" };
    Ok(format!("volume {name} compresses with {compression}, from {when} on"))
}
