//! `ashlar delete`: a volume and all its data, for good.

use std::io::IsTerminal;
use std::sync::Arc;

use dialoguer::Input;

use super::failure::{Failure, Outcome};
use super::{output, outside, runtime, secrets};
use crate::config::Effective;
use crate::human::{about_bytes, counted};
use crate::keyring::Secrets;
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{self, VolumeError, VolumeName, description};

/// Deletes a volume with all its data, for good. Asks to type its name.
///
/// A volume that a server has open, or did not close, is refused unless --takeover: that server can then write no more. If the
/// volume is damaged or its key is not here, --takeover deletes it too, but then a server that has it must be stopped first.
/// If deleting is interrupted, give the same command again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar delete scratch\n  ashlar delete scratch --yes")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// Delete it although a server did not close it
    #[arg(long)]
    takeover: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let runtime = runtime()?;
    let store = runtime.block_on(outside::open_store(config, Access::Write))?.store;
    let secrets = secrets::of(config);
    if !args.yes {
        ask(&args.name, &runtime.block_on(describe(&store, &args.name, &secrets))?)?;
    }
    let (clock, random, _) = outside::real();
    let server = outside::passing_identity(&random);
    let deleted = volume::delete(&store, &random, &clock, &server, &args.name, args.takeover, &secrets);
    let objects = runtime.block_on(deleted).map_err(|error| match error {
        VolumeError::Held { name, holder } => Failure::failed(format!(
            "volume {name:?} was opened by {holder} and not closed; if it is to go all the same, delete it with --takeover: that \
             server can then write no more"
        )),
        error => Failure::from(error),
    })?;
    output::text(format!("deleted volume {} with {} from {}", args.name, counted(objects, "object"), store.url()))
}

/// What is about to go.
async fn describe(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<String, Failure> {
    match volume::inspect(store, name, secrets).await {
        Ok(info) => Ok(format!("{} of data, {}", about_bytes(info.mapped_bytes), counted(info.objects, "object"))),
        // Deleting may still be what is wanted, and says by itself what stands in the way.
        Err(VolumeError::Corrupt { .. }) => Ok("damaged".to_owned()),
        Err(VolumeError::Locked { .. }) => Ok("encrypted, and the key is not here".to_owned()),
        Err(error @ VolumeError::NotFound { .. }) => match description::newest(&**store, name).await? {
            Some(_) => Ok("deleted already, but perhaps not all of it".to_owned()),
            None => Err(error.into()),
        },
        Err(error) => Err(Failure::failed(error)),
    }
}

fn ask(name: &VolumeName, what: &str) -> Outcome {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "there is no terminal to ask whether volume {name} is to be deleted; give --yes to delete it without asking"
        )));
    }
    let prompt = format!("Volume {name} ({what}) will be gone for good. Type its name to delete it");
    let typed: String = Input::new().with_prompt(prompt).allow_empty(true).interact_text().map_err(Failure::failed)?;
    match typed.trim() == name.as_str() {
        true => Ok(()),
        false => Err(Failure::failed(format!("{typed:?} is not {name:?}; nothing was deleted", name = name.as_str()))),
    }
}
