//! `ashlar delete`: a volume and all its data, for good.

use std::io::IsTerminal;
use std::sync::Arc;

use dialoguer::Input;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::failure::{Failure, Outcome};
use super::{control, output, outside, runtime, secrets};
use crate::config::Effective;
use crate::human::{about_bytes, counted, few};
use crate::keyring::Secrets;
use crate::opening::past::{self, Snapshot};
use crate::opening::protection;
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{self, VolumeError, VolumeName, description};

/// Deletes a volume with all its data, for good. Asks to type its name.
///
/// A volume with snapshots is refused unless --with-snapshots: they go with it. One with a snapshot that is to be kept until a date (`ashlar
/// snapshot keep`) is refused before that date, whatever flags are given.
///
/// A volume that the server of this host has open and no client uses is closed there first. One that has clients, one
/// that another server has, or that was not closed, is refused unless --takeover: whoever has it can then write no more. If the
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

    /// Delete its snapshots, too
    #[arg(long)]
    with_snapshots: bool,

    /// Delete it although a server did not close it
    #[arg(long)]
    takeover: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let runtime = runtime()?;
    let store = runtime.block_on(outside::open_store(config, Access::Write))?.store;
    let secrets = secrets::of(config);
    let (clock, random, _) = outside::real();
    let kept = runtime.block_on(past::snapshots(&store, &args.name, &secrets));
    refuse_for_snapshots(&args.name, &snapshots_of(kept)?, args.with_snapshots, clock.unix_millis())?;
    if !args.yes {
        ask(&args.name, &runtime.block_on(describe(&store, &args.name, &secrets))?)?;
    }
    runtime.block_on(close_here(args, &store.url(), config))?;
    let server = outside::passing_identity(&random);
    let parent = runtime.block_on(parent_of(&store, &args.name));
    let bar = bars.add(bar(&args.name));
    let gone = |objects| bar.set_position(objects);
    let deleted = volume::delete(&store, &random, &clock, &server, &args.name, args.takeover, &secrets, &gone);
    let deleted = runtime.block_on(deleted);
    bar.finish_and_clear();
    let was_open = runtime.block_on(take_back(&args.name, config));
    let objects = deleted.map_err(|error| match error {
        VolumeError::Held { name, holder } => Failure::failed(format!(
            "volume {name:?} was opened by {holder} and not closed; if it is to go all the same, delete it with --takeover: that \
             server can then write no more"
        )),
        error => Failure::from(error),
    })?;
    if let Some((parent, uuid)) = parent {
        runtime.block_on(super::clone::forget(&parent, uuid, config));
    }
    let again = match was_open {
        true => "; the server that runs here serves a new volume of that name once it is restarted",
        false => "",
    };
    output::text(format!(
        "deleted volume {} with {} from {}{again}",
        args.name,
        counted(objects, "object"),
        store.url()
    ))
}

/// How many there are is not known before all are listed.
fn bar(name: &VolumeName) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} deleting {msg}: {human_pos} objects are gone, {per_sec}");
    ProgressBar::no_length()
        .with_message(name.to_string())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Where the server of this host says that a volume is that it closed to have it deleted. If that broke off, what one reads there helps.
const DELETED: &str = "nobody, for it was to be deleted (if it is still there: ashlar handoff --back)";

/// Has the server of this host, if it closed the volume for that, forget it; whether it did. It may have done so for an earlier try.
async fn take_back(name: &VolumeName, config: &Effective) -> bool {
    let Ok(running) = control::ask(&config.state).await else { return false };
    let is_it = running.moved.iter().any(|moved| moved.volume == name.as_str() && moved.to == DELETED);
    if is_it && let Err(why) = control::take_back(&config.state, name).await {
        tracing::warn!("the server that runs here opens no volume named {name} until it is restarted: {why}");
    }
    is_it
}

/// Has the server of this host close the volume, if it has it open and nobody uses it.
async fn close_here(args: &Args, store: &str, config: &Effective) -> Outcome {
    let name = &args.name;
    let Ok(running) = control::ask(&config.state).await else { return Ok(()) };
    if running.store != store || !running.volumes.iter().any(|volume| volume.name == name.as_str()) {
        return Ok(());
    }
    let is_of_it = |export: &str| export.split('@').next() == Some(name.as_str());
    let clients = running.clients.iter().filter(|client| is_of_it(&client.export)).count() as u64;
    if clients > 0 && args.takeover {
        return Ok(());
    }
    if clients > 0 {
        return Err(Failure::failed(format!(
            "volume {name} is served here and has {}: detach them, or end their connections with ashlar evict {name}",
            counted(clients, "client")
        )));
    }
    let within = config.serve.handoff_timeout;
    control::hand_over(&config.state, name, DELETED, within).await.map_err(Failure::failed)
}

/// Whose clone a volume is, and its uuid, if it is one.
async fn parent_of(store: &Arc<dyn Store>, name: &VolumeName) -> Option<(VolumeName, uuid::Uuid)> {
    let meta = description::load(&**store, name).await.ok()?.meta;
    Some((meta.parent?.volume, meta.uuid))
}

/// The snapshots of a volume, as far as they can be read: if they cannot, deleting says by itself what stands in the way.
fn snapshots_of(read: Result<Vec<Snapshot>, VolumeError>) -> Result<Vec<Snapshot>, Failure> {
    match read {
        Err(VolumeError::Corrupt { .. } | VolumeError::Locked { .. } | VolumeError::NotFound { .. }) => Ok(Vec::new()),
        read => read.map_err(Failure::failed),
    }
}

/// Snapshots are what somebody wanted to keep. `now` is in milliseconds since 1970.
fn refuse_for_snapshots(volume: &VolumeName, kept: &[Snapshot], with_snapshots: bool, now: u64) -> Outcome {
    // Also deleting itself would refuse; it is better not to ask for the name first.
    let protected = kept.iter().map(|snapshot| (snapshot.name.as_str(), snapshot.keep_until_unix_millis));
    protection::refuse_deletion(volume, protected, now).map_err(Failure::failed)?;
    let shown: Vec<&Snapshot> = kept.iter().filter(|snapshot| !snapshot.deleted).collect();
    if shown.is_empty() || with_snapshots {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "volume {volume} has {}, which would go with it: {}; delete them first, or give --with-snapshots",
        counted(shown.len() as u64, "snapshot"),
        few(shown.iter().map(|snapshot| snapshot.name.as_str()))
    )))
}

/// What is about to go.
async fn describe(store: &Arc<dyn Store>, name: &VolumeName, secrets: &Secrets) -> Result<String, Failure> {
    match volume::inspect(store, name, secrets).await {
        Ok(info) => {
            let (data, objects) = (about_bytes(info.mapped_bytes), counted(info.objects, "object"));
            let snapshots = match info.snapshots {
                0 => String::new(),
                kept => format!(", {}", counted(kept, "snapshot")),
            };
            Ok(format!("{data} of data, {objects}{snapshots}"))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, keep_until_unix_millis: u64) -> Snapshot {
        Snapshot {
            name: name.into(),
            taken_unix_millis: 1,
            keep_until_unix_millis,
            size: 4096,
            seq: 1,
            only_bytes: 0,
            clones: Vec::new(),
            deleted: false,
        }
    }

    #[test]
    fn snapshots_go_only_if_that_is_said_and_those_that_are_to_be_kept_do_not() {
        let name = VolumeName::new("db").unwrap();
        let said =
            |kept: &[Snapshot], with, now| refuse_for_snapshots(&name, kept, with, now).map_err(|no| no.to_string());
        assert_eq!(said(&[], false, 5), Ok(()));
        let kept = [snapshot("a", 0), snapshot("b", 5)];
        assert_eq!(said(&kept, true, 5), Ok(()));
        let refused = said(&kept, false, 5).unwrap_err();
        assert!(refused.starts_with("volume db has 2 snapshots, which would go with it: a, b; "), "{refused}");
        let refused = said(&kept, true, 4).unwrap_err();
        assert!(refused.contains("a snapshot b that is to be kept until 1970-01-01T00:00:00Z"), "{refused}");
    }
}
