//! `ashlar rollback`: a snapshot becomes the newest state of its volume.

use super::export_name::SnapshotName;
use super::failure::{Failure, Outcome};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime};
use crate::config::Effective;
use crate::device::AT;
use crate::store::open::Access;
use crate::volume::VolumeError;

/// Makes a snapshot the newest state of its volume.
///
/// What was newest is kept as a snapshot, named by the time, so nothing is lost: going back to that one undoes it. No data is copied; the map of the volume is
/// read once, and that of the snapshot. The volume keeps its size.
///
/// Nobody may have the volume mounted: a filesystem does not notice that its disk has changed. A server on this host refuses while clients have it, unless it is to
/// end their connections; a disk of `ashlar attach` is given up then, and programs on it see errors. A volume that a server on another host has is
/// refused: give the command there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar rollback db@before-upgrade
  ashlar rollback db@before-upgrade --disconnect      whoever has it")]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "VOLUME@NAME")]
    name: SnapshotName,

    /// End the connections of clients that have the volume
    #[arg(long)]
    disconnect: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let SnapshotName { volume, name } = &args.name;
    let before = runtime()?.block_on(roll_back(args, config))?;
    output::text(format!(
        "volume {volume} is what it was in {name}; what it was before is snapshot {volume}{AT}{before}"
    ))
}

/// Returns the snapshot of what was newest.
async fn roll_back(args: &Args, config: &Effective) -> Result<String, Failure> {
    let SnapshotName { volume, name } = &args.name;
    let store = outside::open_store(config, Access::Write).await?.store;
    if let Some(done) = control::roll_back_if_served(&config.state, &store.url(), (volume, name), args.disconnect).await
    {
        return done.map_err(Failure::failed);
    }
    let volumes = StoreVolumes::of_command(store, config).await?;
    let kept = volumes.roll_back(volume, name.as_str()).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => Failure::failed(format!(
            "volume {volume} is open on {holder}: only that server can roll it back; give the command there, or stop it first"
        )),
        error => error.into(),
    })?;
    Ok(kept.label.name)
}
