//! `ashlar list`: what is in the store.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;

use super::failure::{Failure, Outcome};
use super::{output, outside, runtime, secrets};
use crate::config::Effective;
use crate::human::{about_bytes, exact_bytes};
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{self, HolderInfo, Info, VolumeError, VolumeName};

/// Lists the volumes of the store. Changes nothing, and may be used while they are served.
///
/// SIZE is what the disk shows; MAPPED is how much of it holds data; STORED is what its objects in the store take;
/// SERVER is the host that has it open, or did not close it, and WHERE says whether that is this host, by its name. At which
/// addresses a server listens is not in the store: its configuration says so, on its host. An encrypted volume whose key is not given is shown as locked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar list\n  ashlar list --store s3://my-bucket/disks --json")]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Volumes that are looked at at one time.
const PARALLEL: usize = 8;

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let (url, volumes) = runtime()?.block_on(inspect_all(config))?;
    let is_broken = |info: &Result<_, _>| matches!(info, Err(error) if !matches!(error, VolumeError::Locked { .. }));
    let broken = volumes.iter().filter(|(_, info)| is_broken(info)).count();
    match args.json {
        true => output::json(&volumes.iter().map(to_json).collect::<Vec<_>>())?,
        false if volumes.is_empty() => {
            output::text(format!("no volume in {url}; make one with: ashlar create NAME --size 100G"))?;
        }
        false => output::text(table(&volumes))?,
    }
    match broken {
        0 => Ok(()),
        _ => Err(Failure::failed(format!("{broken} of {} volumes cannot be described", volumes.len()))),
    }
}

type Listed = (VolumeName, Result<Info, VolumeError>);

async fn inspect_all(config: &Effective) -> Result<(String, Vec<Listed>), Failure> {
    let store = outside::open_store(config, Access::Read).await?.store;
    let names = volume::names(&*store).await?;
    if names.is_empty() && outside::has_had_volumes(config).await {
        outside::refuse_emptied(config, &*store).await?;
    }
    let secrets = secrets::of_configuration(config);
    let inspect = |name: VolumeName| {
        let (store, secrets): (Arc<dyn Store>, _) = (Arc::clone(&store), secrets.clone());
        async move {
            let info = volume::inspect(&store, &name, &secrets).await;
            (name, info)
        }
    };
    let volumes = stream::iter(names).map(inspect).buffered(PARALLEL).collect().await;
    Ok((store.url(), volumes))
}

fn to_json((name, info): &Listed) -> serde_json::Value {
    match info {
        Ok(info) => {
            let mut described = serde_json::json!(info);
            if let Some(holder) = &info.holder {
                described["holder"]["this_host"] = is_here(holder).into();
            }
            described
        }
        Err(error) => serde_json::json!({ "name": name, "error": error.to_string() }),
    }
}

fn is_here(holder: &HolderInfo) -> bool {
    holder.is_on(&outside::host_name())
}

fn table(volumes: &[Listed]) -> String {
    let row = |(name, info): &Listed| match info {
        Ok(info) => vec![
            name.to_string(),
            exact_bytes(info.size),
            about_bytes(info.mapped_bytes),
            about_bytes(info.stored_bytes),
            info.objects.to_string(),
            info.snapshots.to_string(),
            info.holder.as_ref().map_or("-", |holder| &holder.server_name).to_owned(),
            info.holder
                .as_ref()
                .map_or("-", |holder| if is_here(holder) { "this host" } else { "elsewhere" })
                .to_owned(),
        ],
        Err(VolumeError::Locked { .. }) => vec![name.to_string(), "locked".to_owned()],
        Err(_) => vec![name.to_string(), "error".to_owned()],
    };
    let head = ["NAME", "SIZE", "MAPPED", "STORED", "OBJECTS", "SNAPSHOTS", "SERVER", "WHERE"];
    let why = volumes.iter().filter_map(|(name, info)| match info {
        Ok(_) | Err(VolumeError::Locked { .. }) => None,
        Err(error) => Some(format!("\n\n{name}: {error}")),
    });
    output::table(&head, volumes.iter().map(row)) + &why.collect::<String>()
}
