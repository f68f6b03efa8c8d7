//! `ashlar clone`: a volume that begins as a version of another one.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::create::{self, NewKeys, recovery_text};
use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::outside::Cache;
use super::snapshot::{self, Wish};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime, secrets};
use crate::codec::frame::Compression;
use crate::config::Effective;
use crate::device::AT;
use crate::engine::options::Options;
use crate::human::{exact_bytes, parse_bytes};
use crate::opening::choice::choose;
use crate::opening::description;
use crate::opening::past;
use crate::opening::scan::Source;
use crate::store::Store;
use crate::store::open::Access;
use crate::units::Seq;
use crate::volume::clones::{self, Detaching, Wanted};
use crate::volume::{CreateOptions, Created, FencedBy, VolumeError, VolumeName};

/// Makes a volume that begins as another one is, or was in a snapshot; or makes such a volume independent.
///
/// A clone is there at once, whatever the size: no data is copied. It is a volume as any other, with its own size, settings, keys and snapshots, and what is written to
/// it is its own; what is not written shows what its parent held. So the parent must stay: it is not deleted while it has clones, and the snapshot that a
/// clone shows stays until the last of its clones is gone, also if somebody deletes it.
///
/// Without @SNAPSHOT the clone is what the volume is now, as a power cut would leave it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar clone db@before-upgrade try        a disk to try something on
  ashlar clone db try --size 200G           as db is now, and larger
  ashlar clone golden web --key-file '/etc/ashlar/{volume}.key'
  ashlar clone --detach try                 copies what try shows of db into it

The clone of a filesystem has its UUID: docs/snapshots.md says how to mount both on one host.")]
pub struct Args {
    /// What is cloned: a volume, or a snapshot of it by name or time; with --detach the clone
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    source: ExportName,

    /// The name of the new volume
    #[arg(value_name = "NAME", required_unless_present = "detach")]
    name: Option<VolumeName>,

    /// Make a clone independent of its parent, which may go then; it may be in use. What breaks off goes on when the command is given again
    #[arg(long, conflicts_with_all = ["name", "size", "compression", "encrypt", "no_encryption", "no_recovery_key", "json"])]
    detach: bool,

    /// How large the disk is, such as 100G; as large as what is cloned at least, and that if it is left out
    #[arg(long, value_parser = parse_bytes)]
    size: Option<u64>,

    /// How data is compressed: lz4, zstd:1 to zstd:19, or none; as in the parent if it is left out
    #[arg(long, value_name = "WAY")]
    compression: Option<Compression>,

    #[command(flatten)]
    keys: NewKeys,

    /// Print a JSON object that describes the volume
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let runtime = runtime()?;
    let ExportName { volume, snapshot } = &args.source;
    let Some(name) = &args.name else {
        if snapshot.is_some() {
            return Err(Failure::usage(format!("--detach wants a volume, and {} is a snapshot", args.source)));
        }
        let parent = runtime.block_on(detach(volume, config, bars))?;
        return output::text(format!("volume {volume} is independent of {parent}"));
    };
    let (url, from, Created { meta, recovery }) = runtime.block_on(clone(args, name, config))?;
    let recovery = recovery.map(|key| key.to_text());
    if args.json {
        let mut described = create::describe(&meta, recovery.as_ref().map(|key| key.as_str()), &url);
        described["parent"] = volume.as_str().into();
        described["parent_snapshot"] = from.into();
        return output::json(&described);
    }
    let from = from.map_or_else(|| format!("{volume} as it is now"), |snapshot| format!("{volume}{AT}{snapshot}"));
    output::text(format!(
        "created volume {name} in {url}, a clone of {from}: {}, {}, uuid {}{}",
        exact_bytes(meta.size),
        if meta.encryption.is_some() { "encrypted" } else { "not encrypted" },
        meta.uuid,
        recovery.map_or_else(String::new, |key| recovery_text(&key)),
    ))
}

/// Returns where the clone is and what it is of, too.
async fn clone(
    args: &Args,
    name: &VolumeName,
    config: &Effective,
) -> Result<(String, Option<String>, Created), Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    let (clock, random, workers) = outside::real();
    let ExportName { volume, snapshot } = &args.source;
    let near = (Arc::clone(&Cache::in_memory(config).blocks), workers);
    let parent =
        Source::of(store.clone(), volume, &Options::default(), Some(near.clone()), &secrets::of(config)).await?;
    let from = match snapshot {
        Some(which) => {
            let versions = past::versions(&store, volume, &secrets::of(config)).await?;
            Some(choose(&versions, volume, which.as_str())?.label.name.clone())
        }
        None => None,
    };
    let keys = args.keys.ask(name, config).await?;
    if parent.sealer.keyring().is_some() && keys.is_none() {
        return Err(Failure::usage(format!(
            "volume {volume} is encrypted, so its clone {name} must be, too: give it a key, or --encrypt to be asked for one"
        )));
    }
    if let Some(size) = args.size {
        crate::volume::Meta::check_size(size, parent.meta.block_size)
            .map_err(|bad| Failure::usage(format!("--size: {bad}")))?;
    }
    let clone = clones::plan(&*store, &random, name).await?;
    let wish = Wish::Clone { snapshot: from.clone(), uuid: clone.uuid, name: clone.name.clone(), after: clone.after };
    let shown = snapshot::change(volume, wish, config).await?;
    let shown = shown.ok_or_else(|| Failure::failed("the server kept nothing for the clone, and does not say why"))?;
    let options = CreateOptions {
        size: args.size.unwrap_or(shown.size),
        block_size: parent.meta.block_size,
        compression: args.compression.unwrap_or(parent.meta.compression),
        encryption: keys,
        fenced_by: FencedBy::on(&*store),
        copy: None,
        settings: parent.meta.settings.clone(),
    };
    let wanted = Wanted { name: name.clone(), options };
    match clones::make(&parent, &random, &clock, wanted, (&clone, Seq(shown.seq))).await {
        Ok(created) => Ok((store.url(), from, created)),
        Err(error) => {
            // What is there for it goes at once, or with the next change of snapshots.
            drop(snapshot::change(volume, Wish::ForgetClone { uuid: clone.uuid }, config).await);
            Err(error.into())
        }
    }
}

/// Returns the volume of which it was a clone.
async fn detach(name: &VolumeName, config: &Effective, bars: &MultiProgress) -> Result<VolumeName, Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    let meta = description::load(&*store, name).await?.meta;
    let parent =
        meta.parent.ok_or_else(|| Failure::failed(format!("volume {name} is no clone, or independent already")))?;
    let style = ProgressStyle::with_template("copying {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = bars.add(ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
    let done = detach_with(name, store, config, &bar).await;
    bar.finish_and_clear();
    done?;
    forget(&parent.volume, meta.uuid, config).await;
    Ok(parent.volume)
}

/// Through the server on this host, if there is one for the store.
async fn detach_with(
    name: &VolumeName,
    store: Arc<dyn Store>,
    config: &Effective,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let (url, mut from) = (store.url(), 0);
    loop {
        match control::detach_if_served(&config.state, &url, name, from).await {
            None => return detach_here(name, store, config, bar).await,
            Some(done) => match done.map_err(Failure::failed)? {
                None => return Ok(()),
                Some(far) => from = show(bar, far),
            },
        }
    }
}

fn show(bar: &ProgressBar, Detaching { at, of }: Detaching) -> u64 {
    bar.set_length(of);
    bar.set_position(at);
    at
}

/// No server on this host has the store: opens it for the moment.
async fn detach_here(
    name: &VolumeName,
    store: Arc<dyn Store>,
    config: &Effective,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let volumes = StoreVolumes::of_command(store, config).await?;
    let volume = volumes.open_volume(name).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => Failure::failed(format!(
            "volume {name} is open on {holder}: only that server can make it independent; give the command there, or stop it first"
        )),
        error => error.into(),
    })?;
    let mut from = 0;
    let detached = loop {
        match volume.detach(from, LOOK).await {
            Ok(Some(far)) => from = show(bar, far),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    volume.close().await?;
    Ok(detached?)
}

/// How often it is shown how far a clone is.
const LOOK: Duration = Duration::from_millis(500);

/// Tells a volume that a clone of it is gone; if that cannot be done now, it finds out when its snapshots are next deleted.
pub async fn forget(parent: &VolumeName, clone: uuid::Uuid, config: &Effective) {
    if let Err(why) = snapshot::change(parent, Wish::ForgetClone { uuid: clone }, config).await {
        tracing::debug!(volume = %parent, "it does not know yet that its clone {clone} is gone: {why:?}");
    }
}
