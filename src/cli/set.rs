//! `ashlar set`: what may change in the life of a volume.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use super::failure::{Failure, Outcome};
use super::schedule::{MonthOfSchedule, SoFar, terms};
use super::settings::{self, Setting, SettingKey};
use super::{control, output, outside, runtime, secrets};
use crate::codec::frame::Compression;
use crate::config::Effective;
use crate::format::meta::Meta;
use crate::human::{self, BadDuration};
use crate::opening::description;
use crate::retention::{Keep, Schedule};
use crate::store::open::Access;
use crate::volume::{self, Settings, VolumeName};

/// Changes a setting of a volume, also while it is served.
///
/// A new compression holds for what is written from now on; what is there stays as it is until garbage collection
/// rewrites it.
///
/// KEY=VALUE is a setting of the configuration that this volume has for itself, whoever serves it: durability, segment_size, segment_size_max,
/// writeback_delay, checkpoint_bytes, checkpoint_interval, max_snapshots, gc.* but gc.batch and gc.rounds, and budget.volume.*. It beats the server's
/// configuration, be it stronger or weaker; --unset leaves it to the server again. Durability and the size of segments take effect when the
/// volume is opened next, all else at once. `ashlar info` shows them.
///
/// With --snapshots-every whoever serves the volume takes a snapshot that often, if anything was written since the last one, and
/// deletes those that --snapshots-keep does not keep. "24 x 1h" keeps the newest snapshot of each of the newest 24 hours that have any; a number
/// keeps the newest so many. Only automatic snapshots go, whose names begin with "auto-"; give one another name to keep it.
/// With --snapshots-keep-for nobody can delete one before it is that old, neither by name nor with the volume.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("what").required(true).multiple(true)),
    // What is generated has the name behind its settings.
    override_usage = "ashlar set [OPTIONS] <NAME> [KEY=VALUE]...",
    after_help = "\
Examples:
  ashlar set db --compression zstd:3
  ashlar set db durability=journal writeback_delay=30s budget.volume.dollars_per_day=0.5
  ashlar set db --unset durability
  ashlar set db --snapshots-every 1m --snapshots-keep \"60 x 1m, 24 x 1h, 30 x 1d, 12 x 30d\"
  ashlar set db --snapshots-keep-for 7d
  ashlar set db --snapshots-every off"
)]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// Settings that beat the configuration of whoever serves the volume, such as durability=journal
    #[arg(value_name = "KEY=VALUE", group = "what")]
    settings: Vec<Setting>,

    /// A setting that is left to the configuration of whoever serves the volume
    #[arg(long, value_name = "KEY", group = "what")]
    unset: Vec<SettingKey>,

    /// How data is compressed: lz4, zstd:1 to zstd:19, or none
    #[arg(long, value_name = "WAY", group = "what")]
    compression: Option<Compression>,

    /// How often a snapshot is taken, such as 1m or 1h; or off
    #[arg(long, value_name = "DURATION", group = "what")]
    snapshots_every: Option<Every>,

    /// Which of these snapshots are kept, such as "24 x 1h, 7 x 1d", or 7
    #[arg(long, value_name = "POLICY", group = "what")]
    snapshots_keep: Option<Keep>,

    /// How long each of these snapshots is kept whatever anybody says, such as 7d; or off, for those that are taken from then on
    #[arg(long, value_name = "DURATION", group = "what")]
    snapshots_keep_for: Option<Every>,
}

/// How often.
#[derive(Clone, Copy, Debug)]
enum Every {
    Off,
    Each(Duration),
}

impl FromStr for Every {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Every, BadDuration> {
        Ok(if text == "off" { Every::Off } else { Every::Each(human::parse_duration(text)?) })
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(set(args, config))?;
    output::text(said)
}

async fn set(args: &Args, config: &Effective) -> Result<String, Failure> {
    let name = &args.name;
    let store = outside::open_store(config, Access::Write).await?.store;
    let (clock, random, _) = outside::real();
    let found = description::load(&*store, name).await?;
    let sealer = found.unlock(&secrets::of(config)).await?;
    let settings = changed(args, &found.meta.settings, config)?;
    // What cannot be beside this configuration is no reason not to take it back.
    let options = volume::settings::tuned(&config.volume, &settings).map(|tuned| tuned.options);
    let most = options.map_or(config.volume.max_snapshots, |options| options.max_snapshots);
    let schedule = schedule(args, found.meta.schedule.as_ref(), most)?;
    let is_scheduled =
        args.snapshots_every.is_some() || args.snapshots_keep.is_some() || args.snapshots_keep_for.is_some();
    let month = match &schedule {
        // Before anything changes: looking at it may fail.
        Some(schedule) if is_scheduled => {
            let info = volume::inspect(&store, name, &secrets::of(config)).await?;
            let age = Duration::from_millis(clock.unix_millis().saturating_sub(info.created_unix_millis));
            let so_far = SoFar { age, account: info.since_creation, live_bytes: info.live_bytes };
            Some(MonthOfSchedule::new(schedule, &so_far, &config.prices.prices()))
        }
        _ => None,
    };
    let compression = args.compression.unwrap_or(found.meta.compression);
    let meta = Meta { compression, schedule, settings, ..found.meta.clone() };
    found.replace(&*store, &random, &meta, sealer.keyring()).await?;
    let served = control::reload_if_served(&config.state, &store.url(), name).await.map_err(|why| {
        Failure::failed(format!("it is set in the store, for whoever opens volume {name} next; the server that runs here did not take it over: {why}"))
    })?;
    let when = if served { "now" } else { "the next time it is opened" };
    let later = if served { control::later_settings(&config.state, name).await } else { Vec::new() };
    let mut said: Vec<String> = told(args, &meta.settings, when, &later);
    if let Some(compression) = args.compression {
        said.push(format!("volume {name} compresses with {compression}, from {when} on"));
    }
    match (&meta.schedule, month) {
        (Some(schedule), Some(month)) => {
            said.push(format!("snapshots of volume {name} are taken, from {when} on: {}", terms(schedule)));
            said.push(month.told());
        }
        (None, _) if is_scheduled => {
            said.push(format!(
                "no more snapshots of volume {name} are taken, from {when} on; those that are there stay"
            ));
        }
        _ => {}
    }
    Ok(said.join("\n"))
}

/// The settings that are asked for, in the place of those that were.
fn changed(args: &Args, were: &Settings, config: &Effective) -> Result<Settings, Failure> {
    let Args { name, settings: set, unset, .. } = args;
    let mut kept = were.clone();
    for SettingKey(key) in unset {
        if set.iter().any(|setting| setting.key == *key) {
            return Err(Failure::usage(format!("{key}: it is either set or unset")));
        }
        if kept.remove(key).is_none() {
            let has = if were.is_empty() { "none".to_owned() } else { volume::settings::listed(were) };
            return Err(Failure::usage(format!(
                "--unset {key}: volume {name} has no such setting of its own; it has {has}"
            )));
        }
    }
    settings::with(&kept, set, config)
}

/// What is said of its settings; those `later` wait for the next opening.
fn told(args: &Args, settings: &Settings, when: &str, later: &[String]) -> Vec<String> {
    let set = args.settings.iter().map(|setting| &setting.key);
    let keys: BTreeSet<&String> = set.chain(args.unset.iter().map(|SettingKey(key)| key)).collect();
    let told = |key: &String| {
        let what = match settings.get(key) {
            Some(value) => format!("{key} = {value}"),
            None => format!("{key} as the configuration of whoever serves it"),
        };
        match later.contains(key) {
            true => format!(
                "volume {} has {what}, from the next time it is opened on: the server that runs here has it open, and goes on as before until it is restarted, or hands the volume over",
                args.name
            ),
            false => format!("volume {} has {what}, from {when} on", args.name),
        }
    };
    keys.into_iter().map(told).collect()
}

/// The schedule that is asked for, in the place of the one that was.
fn schedule(args: &Args, was: Option<&Schedule>, most: u64) -> Result<Option<Schedule>, Failure> {
    let Args { name, snapshots_every, snapshots_keep, snapshots_keep_for, .. } = args;
    let keeps = snapshots_keep.is_some() || snapshots_keep_for.is_some();
    let every = match snapshots_every {
        None if !keeps => return Ok(was.cloned()),
        Some(Every::Off) if !keeps => return Ok(None),
        Some(Every::Off) => {
            let flag = if snapshots_keep.is_some() { "--snapshots-keep" } else { "--snapshots-keep-for" };
            return Err(Failure::usage(format!("--snapshots-every off keeps all that are there: leave {flag} out")));
        }
        Some(Every::Each(every)) => Some(*every),
        None => was.map(Schedule::every),
    };
    let keep = snapshots_keep.as_ref().or(was.map(Schedule::keep));
    let (Some(every), Some(keep)) = (every, keep) else {
        let missing = if every.is_none() { "--snapshots-every 1h" } else { "--snapshots-keep \"24 x 1h, 7 x 1d\"" };
        return Err(Failure::usage(format!(
            "volume {name} has no schedule yet: give both, this one too, such as {missing}"
        )));
    };
    let keep_for = match snapshots_keep_for {
        Some(Every::Off) => None,
        Some(Every::Each(keep_for)) => Some(*keep_for),
        None => was.and_then(Schedule::keep_for),
    };
    let schedule = Schedule::new(every, keep.clone()).and_then(|schedule| schedule.kept_for(keep_for));
    let schedule = schedule.map_err(Failure::usage)?;
    if schedule.most() > most {
        let young = schedule.keep_for_text().map_or_else(String::new, |young| format!(", and each for {young},"));
        return Err(Failure::usage(format!(
            "{keep}{young} keeps up to {}, and a volume may have {most} (volume.max_snapshots): keep fewer, or raise that here and where the volume is served",
            human::counted(schedule.most(), "snapshot"),
        )));
    }
    Ok(Some(schedule))
}
