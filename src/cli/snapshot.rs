//! `ashlar snapshot`: a volume as it was, kept.
//!
//! Whoever has the volume changes its snapshots: the server on this host, asked through its control socket, or this process, if no server has
//! it. Looking at them needs the store only.

use std::sync::Arc;

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::export_name::{ExportName, SnapshotName, SnapshotOrTime, parse_snapshot};
use super::failure::{Failure, Outcome};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime, secrets};
use crate::config::Effective;
use crate::device::AT;
use crate::human::{about_bytes, date, exact_bytes, few, parse_date};
use crate::opening::choice::choose;
use crate::opening::past::{self, Snapshot};
use crate::space::{CloneRef, Label};
use crate::store::Store;
use crate::store::open::Access;
use crate::units::BlockCount;
use crate::volume::{Volume, VolumeError, VolumeName};

/// Keeps a volume as it is now, and shows and deletes what is kept.
///
/// A snapshot is what a power cut would leave: everything that was written before the command, whether it was flushed or not. It costs one
/// PUT, copies nothing, and takes the space of what is overwritten or given up afterwards. It is served as VOLUME@NAME, read-only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Taking, deleting and renaming is done by the server that has the volume, which must be on this host; or by the command itself, if none has it.

Examples:
  ashlar snapshot create db                  named by its time
  ashlar snapshot create db@before-upgrade
  ashlar snapshot create db@audit --keep-until 2027-01-31
  ashlar snapshot list db
  ashlar attach db@before-upgrade            the disk as it was, beside the volume
  ashlar snapshot delete db@before-upgrade

docs/snapshots.md says how to mount one, and what it costs.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes a snapshot, also while the volume is served
    Create {
        /// The volume, and the name of the snapshot; without one it is named by its time, such as 20261128T021500Z
        #[arg(value_name = "VOLUME[@NAME]")]
        name: ExportName,

        /// Nobody can delete it before that time, in UTC, such as 2026-12-24 or 2026-12-24T18:00, neither by name nor with the volume
        #[arg(long, value_name = "DATE", value_parser = parse_date)]
        keep_until: Option<u64>,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Has a snapshot kept until a date: nobody can delete it before; that date can be made later, never earlier
    Keep {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        name: SnapshotName,

        /// The time, in UTC, such as 2026-12-24 or 2026-12-24T18:00
        #[arg(long, value_name = "DATE", value_parser = parse_date)]
        until: u64,
    },
    /// Lists the snapshots of a volume, oldest first; changes nothing
    ///
    /// ONLY is what nobody but this snapshot holds, before compression: what deleting it frees, in the end. What was overwritten since the
    /// newest checkpoint of the volume is counted later.
    List {
        /// The volume
        volume: VolumeName,

        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Describes a snapshot; changes nothing
    Info {
        /// The snapshot; or a time in UTC, such as VOLUME@2026-11-27T04:00: the newest that was not taken later
        #[arg(value_name = "VOLUME@NAME")]
        name: SnapshotOrTime,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Gives a snapshot another name; clients that have it keep it
    Rename {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        name: SnapshotName,

        /// Its new name, without the volume
        #[arg(value_name = "NEW", value_parser = parse_snapshot)]
        to: VolumeName,
    },
    /// Deletes a snapshot, for good; who reads it gets errors from then on
    Delete {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        name: SnapshotName,
    },
}

/// What is to become of the snapshots of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Wish {
    /// One is taken.
    Take {
        /// Its name; else it is named by its time.
        name: Option<String>,
        /// Nobody deletes it before, in milliseconds since 1970; 0 if it may go.
        #[serde(default, skip_serializing_if = "is_zero")]
        keep_until_unix_millis: u64,
    },
    /// One is to be kept until then.
    Keep {
        /// Its name.
        name: String,
        /// In milliseconds since 1970.
        until_unix_millis: u64,
    },
    /// One gets another name.
    Rename {
        /// Its name.
        name: String,
        /// Its new one.
        to: String,
    },
    /// One goes.
    Delete {
        /// Its name.
        name: String,
    },
    /// One stays for a clone that is to be made.
    Clone {
        /// Its name; else a new one, which nobody can name.
        snapshot: Option<String>,
        /// The clone's uuid.
        uuid: Uuid,
        /// Its name.
        name: String,
        /// The newest description of that name.
        after: u64,
    },
    /// A clone is gone, or independent.
    ForgetClone {
        /// Its uuid.
        uuid: Uuid,
    },
}

impl Wish {
    /// Does that to an open volume; `now` is in milliseconds since 1970. Returns what was taken.
    pub async fn carry_out(self, volume: &Volume, now: u64) -> Result<Option<Snapshot>, VolumeError> {
        match self {
            Wish::Take { name, keep_until_unix_millis } => {
                let name = name.unwrap_or_default();
                let label = Label { name, taken_unix_millis: now, keep_until_unix_millis, clones: Vec::new() };
                let kept = volume.take_snapshot(label).await?;
                if keep_until_unix_millis > 0 {
                    volume.settle_locks().await?;
                }
                // Nothing has died since.
                return Ok(Some(Snapshot::of(&kept, volume.meta().block_size, BlockCount(0))));
            }
            Wish::Rename { name, to } => volume.rename_snapshot(&name, &to).await?,
            Wish::Keep { name, until_unix_millis } => {
                volume.keep_snapshot_until(&name, until_unix_millis).await?;
                volume.settle_locks().await?;
            }
            Wish::Delete { name } => {
                let needed_by = volume.delete_snapshot(&name).await?;
                if !needed_by.is_empty() {
                    tracing::info!(volume = %volume.meta().name, snapshot = name, "it is deleted, and stays for its clones until they are gone: {}", few(needed_by.iter().map(String::as_str)));
                }
            }
            Wish::Clone { snapshot, uuid, name, after } => {
                let kept = volume.register_clone(snapshot.as_deref(), now, CloneRef { uuid, name, after }).await?;
                return Ok(Some(Snapshot::of(&kept, volume.meta().block_size, BlockCount(0))));
            }
            Wish::ForgetClone { uuid } => volume.forget_gone_clone(uuid).await?,
        }
        Ok(None)
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let runtime = runtime()?;
    match &args.command {
        Command::Create { name: ExportName { volume, snapshot }, keep_until, json } => {
            let keep_until_unix_millis = keep_until.unwrap_or_default();
            let name =
                snapshot.as_ref().map(|name| parse_snapshot(name.as_str())).transpose().map_err(Failure::usage)?;
            let wish = Wish::Take { name: name.as_ref().map(VolumeName::to_string), keep_until_unix_millis };
            let taken = runtime.block_on(change(volume, wish, config))?;
            let taken = taken.ok_or_else(|| Failure::failed("the server took no snapshot, and does not say why"))?;
            match json {
                true => output::json(&taken),
                false => output::text(format!(
                    "took snapshot {volume}{AT}{}{}",
                    taken.name,
                    kept_until(keep_until_unix_millis)
                )),
            }
        }
        Command::List { volume, json } => {
            let snapshots = runtime.block_on(look(volume, config))?;
            match json {
                true => output::json(&snapshots),
                false if snapshots.is_empty() => output::text(format!(
                    "volume {volume} has no snapshot; take one with: ashlar snapshot create {volume}"
                )),
                false => output::text(table(&snapshots)),
            }
        }
        Command::Info { name: SnapshotOrTime { volume, which: name }, json } => {
            let snapshots = runtime.block_on(look(volume, config))?;
            let found = choose(&snapshots, volume, name.as_str())?;
            match json {
                true => output::json(found),
                false => output::text(output::pairs(describe(volume, found))),
            }
        }
        Command::Rename { name: SnapshotName { volume, name }, to } => {
            let wish = Wish::Rename { name: name.to_string(), to: to.to_string() };
            runtime.block_on(change(volume, wish, config))?;
            output::text(format!("snapshot {volume}{AT}{name} is {volume}{AT}{to} now"))
        }
        Command::Keep { name: SnapshotName { volume, name }, until } => {
            let wish = Wish::Keep { name: name.to_string(), until_unix_millis: *until };
            runtime.block_on(change(volume, wish, config))?;
            output::text(format!("snapshot {volume}{AT}{name}{}", kept_until(*until)))
        }
        Command::Delete { name: SnapshotName { volume, name } } => {
            let wish = Wish::Delete { name: name.to_string() };
            let clones = runtime.block_on(clones_of(volume, name.as_str(), config));
            runtime.block_on(change(volume, wish, config))?;
            let stays = match clones.is_empty() {
                true => String::new(),
                false => {
                    format!("; it stays for its clones until they are gone: {}", few(clones.iter().map(String::as_str)))
                }
            };
            output::text(format!("deleted snapshot {volume}{AT}{name}{stays}"))
        }
    }
}

/// What follows on the name of a snapshot that nobody deletes before.
fn kept_until(unix_millis: u64) -> String {
    if unix_millis == 0 { String::new() } else { format!(", which nobody can delete before {}", date(unix_millis)) }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The clones that show a snapshot; none that is known, if it cannot be read.
async fn clones_of(volume: &VolumeName, name: &str, config: &Effective) -> Vec<String> {
    let found = look(volume, config).await.unwrap_or_default();
    found.into_iter().find(|snapshot| snapshot.name == name).map(|found| found.clones).unwrap_or_default()
}

/// What of a volume is kept, as it stands in the store.
async fn look(volume: &VolumeName, config: &Effective) -> Result<Vec<Snapshot>, Failure> {
    let store = outside::open_store(config, Access::Read).await?.store;
    Ok(past::snapshots(&store, volume, &secrets::of(config)).await?)
}

/// Changes the snapshots of a volume, through the server on this host if it has the volume. Returns what was taken.
pub async fn change(volume: &VolumeName, wish: Wish, config: &Effective) -> Result<Option<Snapshot>, Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    match control::snapshots_if_served(&config.state, &store.url(), volume, &wish).await {
        None => change_here(volume, wish, store, config).await,
        Some(done) => done.map_err(Failure::failed),
    }
}

/// No server on this host has the volume: opens it for the moment.
async fn change_here(
    name: &VolumeName,
    wish: Wish,
    store: Arc<dyn Store>,
    config: &Effective,
) -> Result<Option<Snapshot>, Failure> {
    let volumes = StoreVolumes::of_command(store, config).await?;
    let what = if matches!(wish, Wish::Clone { .. }) { "have it cloned" } else { "change its snapshots" };
    let volume = volumes.open_volume(name).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => Failure::failed(format!(
            "volume {name} is open on {holder}: only that server can {what}; give the command there, or stop it first"
        )),
        error => error.into(),
    })?;
    let done = wish.carry_out(&volume, outside::real().0.unix_millis()).await;
    volume.close().await?;
    Ok(done?)
}

fn table(snapshots: &[Snapshot]) -> String {
    let row = |snapshot: &Snapshot| {
        vec![
            if snapshot.deleted { "(deleted)".to_owned() } else { snapshot.name.clone() },
            date(snapshot.taken_unix_millis),
            exact_bytes(snapshot.size),
            about_bytes(snapshot.only_bytes),
            few(snapshot.clones.iter().map(String::as_str)),
        ]
    };
    let has_clones = snapshots.iter().any(|snapshot| !snapshot.clones.is_empty());
    let head = ["NAME", "TAKEN", "SIZE", "ONLY", "CLONES"];
    let columns = if has_clones { 5 } else { 4 };
    output::table(&head[..columns], snapshots.iter().map(row).map(|row| row[..columns].to_vec()))
}

fn describe(volume: &VolumeName, snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let Snapshot { name, taken_unix_millis, keep_until_unix_millis, size, seq, only_bytes, clones, .. } = snapshot;
    let mut lines = vec![
        ("snapshot", format!("{volume}{AT}{name}")),
        ("taken", date(*taken_unix_millis)),
        ("size", format!("{} ({size} bytes)", exact_bytes(*size))),
        ("only it holds", format!("{} ({only_bytes} bytes), before compression", about_bytes(*only_bytes))),
        ("is the volume", format!("after segment {seq} of its log")),
    ];
    if *keep_until_unix_millis > 0 {
        lines.push(("kept until", date(*keep_until_unix_millis)));
    }
    if !clones.is_empty() {
        lines.push(("clones", few(clones.iter().map(String::as_str))));
    }
    lines
}
