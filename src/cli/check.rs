//! `ashlar check`: does what is in the store hold together?

use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::failure::{Failure, Outcome};
use super::outside::State;
use super::store_volumes::StoreVolumes;
use super::{logging, output, outside, runtime, secrets};
use crate::check::{self, ByteRange, Report, repair};
use crate::config::Effective;
use crate::human::{about_bytes, counted};
use crate::journal;
use crate::keyring::Secrets;
use crate::outside::Random;
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{self, OpenFlags, VolumeError, VolumeName, description};

/// Proves that a volume in the store is whole, or says what is damaged. Changes nothing, but with --repair.
///
/// Of a clone it is what is its own, and that its parent keeps what else it shows: whether that is whole, a check of the parent says.
///
/// Reads the description, the log, every page of the map and the head of every segment that the map needs; with --data
/// also every frame of data. A volume that is being served can be checked too; what its server has not committed yet is
/// not in it. Without NAME all volumes of the store are checked.
///
/// Of damage, the report says which bytes of the disk are lost, and which of them the journal of this server has still.
///
/// Objects that nothing needs (a server that died leaves some) are counted and are no damage. A server finds and deletes
/// them by and by; --repair does it now. It also brings back what is provably right: what the journal or the disk cache of this
/// server still has, and, if the newest checkpoint cannot be read, an older one with the whole log after it. Give it --data, too, to
/// bring back data that does not open.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 no damage, 3 damage found, 4 the key is missing or wrong, 1 the check could not be made.

Examples:
  ashlar check
  ashlar check db --data --store s3://my-bucket/disks
  ashlar check db --repair --data  when no server serves it")]
pub struct Args {
    /// The volume's name; none means all volumes of the store
    name: Option<VolumeName>,

    /// Read, decompress and prove all data, too: as much as `ashlar info` calls stored
    #[arg(long)]
    data: bool,

    /// Open the volume as a server does, bring back what can be, delete what nothing needs; then check. Refused while it is served
    #[arg(long, requires = "name")]
    repair: bool,

    /// With --repair: go on although a server did not close the volume, because that server is gone for good
    #[arg(long, requires = "repair")]
    takeover: bool,

    /// Print a JSON array with one report for each volume
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let (checked, not_repaired) = runtime()?.block_on(check_all(args, config, bars))?;
    match args.json {
        true => output::json(&checked)?,
        false if checked.is_empty() => output::text("no volume to check")?,
        false => checked.iter().try_for_each(|checked| output::text(describe(checked)))?,
    }
    if let Some(failure) = not_repaired {
        return Err(failure);
    }
    // Damage is what scripts look for: it goes before a check that could not be made.
    if checked.iter().any(|checked| matches!(checked, Checked::Made(report) if !report.is_clean())) {
        return Err(Failure::Damaged);
    }
    match checked.iter().filter(|checked| matches!(checked, Checked::Failed { .. })).count() {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} checks could not be made", checked.len()))),
    }
}

/// What became of the check of one volume.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Checked {
    Made(Report),
    Failed {
        volume: VolumeName,
        error: String,
        #[serde(skip)]
        is_locked: bool,
    },
}

/// What --repair does after a first check: goes back to an older checkpoint if nothing is lost by it; opens the volume, which brings
/// back what the journal has; writes again what is lost and in the cache; deletes what nobody owns; and closes it.
async fn repair(args: &Args, config: &Effective, name: &VolumeName, bars: &MultiProgress) -> Outcome {
    let random = Random::system();
    let state = State::take(config, &random).await?;
    let store = outside::open_store(config, Access::Write).await?.store;
    let secrets = secrets::of(config);
    let found = match check_one(&store, name.clone(), args.data, bars, &secrets).await {
        Checked::Made(report) => report,
        Checked::Failed { error, is_locked: true, .. } => return Err(Failure::Locked(error)),
        Checked::Failed { error, .. } => return Err(Failure::Failed(error)),
    };
    // While this process holds the state directory, the server that it belongs to is not running.
    let is_gone = |server| args.takeover || server == state.server.uuid;
    if let Some(key) = repair::drop_newest_checkpoint(&store, name, &secrets, &found, is_gone).await? {
        logging::say(&format!("removed {key}: it cannot be read, and an older checkpoint and the log tell the same"));
    }
    let cache = outside::open_cache(config).await;
    if let Some(tier) = cache.blocks.disk() {
        tier.settled().await; // it finds out what it holds
    }
    let flags = OpenFlags { takeover: args.takeover, ..OpenFlags::default() };
    let volumes =
        StoreVolumes::new(store, state, cache, config, secrets, flags, random).with_mirror(outside::mirror(config)?);
    let volume = volumes.open_volume(name).await?;
    let written = repair::write_again(&*volume, &found.lost).await;
    let swept = volume.sweep().await;
    volume.close().await.map_err(Failure::failed)?;
    for range in written.map_err(Failure::failed)? {
        logging::say(&format!(
            "brought back {}: the journal or the cache of this server had it",
            describe_range(&range)
        ));
    }
    let swept = swept.map_err(Failure::failed)?;
    for key in &swept.removed {
        logging::say(&format!("removed {key}: nothing needs it"));
    }
    for key in &swept.left {
        logging::say(&format!("left alone {key}: nothing needs it, but it is not ours or cannot be read"));
    }
    logging::say(&format!("{name}: {} removed", counted(swept.removed.len() as u64, "object")));
    Ok(())
}

/// Notes what of the lost bytes the journal in the state directory has; whoever cannot read it says nothing.
async fn look_into_journal(
    store: &Arc<dyn Store>,
    config: &Effective,
    secrets: &Secrets,
    report: &mut Report,
    name: &VolumeName,
) {
    let Some(covers) = report.covers.filter(|_| !report.lost.is_empty()) else { return };
    let Ok(description) = description::load(&**store, name).await else { return };
    let Ok(sealer) = description.unlock(secrets).await else { return };
    if let Ok(Some(found)) = journal::find(&outside::journal_disk(config, sealer.volume()), &sealer).await {
        report.look_into_journal(found.after(covers));
    }
}

/// What the checks found, after what --repair could do; and why it could not do all of it. What is lost is told in any case.
async fn check_all(
    args: &Args,
    config: &Effective,
    bars: &MultiProgress,
) -> Result<(Vec<Checked>, Option<Failure>), Failure> {
    let not_repaired = match (args.repair, &args.name) {
        (true, Some(name)) => repair(args, config, name, bars).await.err(),
        _ => None,
    };
    let store = outside::open_store(config, Access::Read).await?.store;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => volume::names(&*store).await?,
    };
    let secrets = secrets::of(config);
    let mut checked = Vec::new();
    for name in names {
        let mut made = check_one(&store, name.clone(), args.data, bars, &secrets).await;
        if let Checked::Made(report) = &mut made {
            look_into_journal(&store, config, &secrets, report, &name).await;
        }
        checked.push(made);
    }
    // The one that was asked for is an error of its own, not a line of a list.
    match (args.name.is_some(), checked.pop()) {
        (true, Some(Checked::Failed { error, is_locked: true, .. })) => return Err(Failure::Locked(error)),
        (true, Some(Checked::Failed { error, .. })) => return Err(Failure::Failed(error)),
        (_, last) => checked.extend(last),
    }
    Ok((checked, not_repaired))
}

async fn check_one(
    store: &Arc<dyn Store>,
    name: VolumeName,
    data: bool,
    bars: &MultiProgress,
    secrets: &Secrets,
) -> Checked {
    let bar = bars.add(bar(&name));
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let result = check::check(store, &name, data, &progress, secrets).await;
    bar.finish_and_clear();
    match result {
        Ok(report) => Checked::Made(report),
        Err(error) => {
            let is_locked = matches!(error, VolumeError::Locked { .. });
            Checked::Failed { volume: name, error: error.to_string(), is_locked }
        }
    }
}

fn bar(name: &VolumeName) -> ProgressBar {
    let style = ProgressStyle::with_template("checking {msg} {wide_bar} {pos}/{len} segments {eta}");
    ProgressBar::no_length()
        .with_message(name.to_string())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn describe(checked: &Checked) -> String {
    let report = match checked {
        Checked::Made(report) => report,
        Checked::Failed { volume, error, .. } => return format!("{volume}: not checked: {error}"),
    };
    let mut lines = vec![format!(
        "{}: {}; {} of data in {}, {}, {} read; {}, {}",
        report.volume,
        verdict(report),
        about_bytes(report.mapped_bytes),
        counted(report.segments as u64, "segment"),
        counted(report.pages as u64, "map page"),
        counted(report.frames as u64, "frame"),
        counted(report.objects as u64, "object"),
        about_bytes(report.stored_bytes),
    )];
    if let Some(parent) = &report.shows {
        lines.push(format!(
            "  it is a clone: what it shows of volume {parent} is not looked at here, but by a check of that: ashlar check {parent}"
        ));
    }
    lines.extend(report.problems.iter().map(|problem| format!("  {}: {}", problem.object, problem.what)));
    lines.extend(report.lost.iter().map(|range| format!("  lost: {}", describe_range(range))));
    let in_journal = report.in_journal.iter().map(describe_range);
    lines.extend(in_journal.map(|range| {
        format!("  of that, the journal of this server has {range}: serving the volume here writes it anew")
    }));
    if !report.orphans.is_empty() {
        lines.push(format!("  {} that nothing needs (no damage)", counted(report.orphans.len() as u64, "object")));
    }
    lines.join("\n")
}

fn describe_range(range: &ByteRange) -> String {
    format!("{} bytes from byte {} of the disk", range.length, range.offset)
}

fn verdict(report: &Report) -> String {
    match report.problems.len() as u64 {
        0 => "clean".to_owned(),
        problems => format!("DAMAGED, {}", counted(problems, "problem")),
    }
}
