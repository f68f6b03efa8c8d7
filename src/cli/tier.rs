//! `ashlar tier`: the log of a volume moves into the store for logs, or back.

use super::failure::{Failure, Outcome};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime};
use crate::config::Effective;
use crate::human::exact_bytes;
use crate::store::open::Access;
use crate::volume::{VolumeError, VolumeName};

/// Moves the log of a volume into the store that store.log names, or back.
///
/// A volume that is made while store.log is set has its log there from the beginning. This is for one that was made without, and for leaving that store: then all
/// that is only there is copied first. Data is not touched otherwise.
///
/// No server may have the volume open. What breaks off is done again when the command is given again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ashlar tier db
  ashlar tier db --end

docs/tiers.md says what a store for logs is for.")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// Bring the log back to where everything else is
    #[arg(long)]
    end: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(tier(args, config))?;
    output::text(said)
}

async fn tier(Args { name, end }: &Args, config: &Effective) -> Result<String, Failure> {
    if config.store.log.is_empty() {
        return Err(Failure::usage(
            "store.log names the store for logs, and is not set: also to leave it, it is needed once more",
        ));
    }
    let store = outside::open_store(config, Access::Write).await?.store;
    if control::reload_if_served(&config.state, &store.url(), name).await.unwrap_or(false) {
        return Err(Failure::failed(format!(
            "volume {name} is served from {}: stop that server first, its log is in use",
            config.state.display()
        )));
    }
    let volumes = StoreVolumes::of_command(store.clone(), config).await?;
    let copied = volumes.move_log(name, !end).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => {
            Failure::failed(format!("volume {name} is open on {holder}: stop that server first, its log is in use"))
        }
        error => error.into(),
    })?;
    Ok(match end {
        true => format!(
            "the log of volume {name} is in {} again, with everything else; {} were copied",
            store.url(),
            exact_bytes(copied)
        ),
        false => {
            format!("the log of volume {name} is in {} from now on: it cannot be opened without that", config.store.log)
        }
    })
}
