//! `ashlar upgrade`: the map of a volume in the newest format.

use super::failure::{Failure, Outcome};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime};
use crate::config::Effective;
use crate::store::open::Access;
use crate::volume::{VolumeError, VolumeName};

/// Writes the map of a volume that an older ashlar made in the newest format.
///
/// Older volumes are served as they are, and their maps move over as they are written: this finishes it, so that nothing is left of
/// the old format. Data is not touched. An ashlar that does not know the new format refuses the volume from then on.
///
/// No server may have the volume open. What breaks off goes on where it was when the command is given again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ashlar upgrade db")]
pub struct Args {
    /// The volume's name
    name: VolumeName,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(upgrade(&args.name, config))?;
    output::text(said)
}

async fn upgrade(name: &VolumeName, config: &Effective) -> Result<String, Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    if control::reload_if_served(&config.state, &store.url(), name).await.unwrap_or(false) {
        return Err(Failure::failed(format!(
            "volume {name} is served from {}: it moves over as it is written; stop that server first to have it done now",
            config.state.display()
        )));
    }
    let volumes = StoreVolumes::of_command(store, config).await?;
    let mut moved = false;
    loop {
        let volume = volumes.open_volume(name).await.map_err(|error| match error {
            VolumeError::Held { holder, .. } => Failure::failed(format!(
                "volume {name} is open on {holder}: its map moves over there as it is written; stop that server first to have it \
                 done now"
            )),
            error => error.into(),
        })?;
        let left = volume.older_pages();
        if left > 0 {
            // The last checkpoint of a clean stop does a part of it, of bounded memory.
            volume.merge_map();
            tracing::info!(volume = %name, left, "pages of the older format are written anew");
            moved = true;
        }
        volume.close().await?;
        if left == 0 {
            let is = if moved { "is in the newest format now" } else { "is in the newest format already" };
            return Ok(format!("the map of volume {name} {is}"));
        }
    }
}
