//! `ashlar copy`: a snapshot into another store.

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::create::{NewKeys, recovery_text};
use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::outside::Cache;
use super::snapshot::{self, Wish};
use super::store_volumes::StoreVolumes;
use super::{effective, output, outside, runtime, secrets};
use crate::codec::frame::Compression;
use crate::config::{Effective, Flag};
use crate::device::AT;
use crate::engine::options::Options;
use crate::format::account::Account;
use crate::format::meta::CopyOf;
use crate::human::{about_bytes, counted};
use crate::opening::choice::choose;
use crate::opening::copying::{self, Plan};
use crate::opening::description;
use crate::opening::scan::Source;
use crate::space::KeptVersion;
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{self, Budget, Copied, CreateOptions, FencedBy, Past, VolumeError, VolumeName};

/// Copies a snapshot of a volume into another store: a directory, a bucket, or whatever else `store.url` may name.
///
/// The copy is a volume there, with keys and compression of its own, and gets a snapshot of the same name. The first time all is copied, later what differs from the newest
/// snapshot that both have. Without @SNAPSHOT one is taken for it, named by its time. What breaks off goes on when the command is given again.
///
/// Nobody may write to the copy: a volume that is something else, or was changed by somebody, is refused. Its snapshots may be read, served and cloned.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar copy db@monday file:///mnt/backup
  ashlar copy db s3://other-bucket/disks --to-config other.toml --compression zstd:9
  ashlar serve db@monday --store file:///mnt/backup --state ./restore

Options of the other store (keys, endpoint, region) come from --to-config, or are those of this one.
docs/copies.md says how to have one made each night, and how to come back from it.")]
pub struct Args {
    /// The volume, or a snapshot of it by name or time
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    source: ExportName,

    /// The other store, as store.url has it
    #[arg(value_name = "URL")]
    target: String,

    /// The name of the copy, if it is to be another
    #[arg(long = "as", value_name = "NAME")]
    name: Option<VolumeName>,

    /// Read the options of the other store, and the keys of the copy, from this configuration file
    #[arg(long, value_name = "FILE")]
    to_config: Option<PathBuf>,

    /// How a new copy is compressed: lz4, zstd:1 to zstd:19, or none; as the volume if it is left out
    #[arg(long, value_name = "WAY")]
    compression: Option<Compression>,

    #[command(flatten)]
    keys: NewKeys,

    /// Print a JSON object when it is done
    #[arg(long)]
    json: bool,
}

/// What came of it.
struct Done {
    version: KeptVersion,
    /// Nothing if the copy had it.
    copied: Option<Copied>,
    account: Account,
}

/// Runs the command. `file` is the configuration file that was named.
pub fn run(args: &Args, config: &Effective, file: Option<PathBuf>, bars: &MultiProgress) -> Outcome {
    let state = config.state.join("copies").to_string_lossy().into_owned();
    let flags = [("URL", "store.url", args.target.clone()), ("--state", "state", state)];
    let flags = flags.into_iter().map(|(name, key, value)| Flag { name, key, value });
    let to = effective(args.to_config.clone().or(file), flags.collect())?;
    let name = args.name.as_ref().unwrap_or(&args.source.volume);
    let mut recovery = None;
    let copied = runtime()?.block_on(copy(args, name, config, &to, bars, &mut recovery));
    if let (Err(_), Some(key)) = (&copied, &recovery) {
        output::text(format!("the copy is made, and goes on when the command is given again{}", recovery_text(key)))?;
    }
    let Done { version, copied, account } = copied?;
    let (since, bytes) = copied.map(|copied| (copied.since, copied.bytes)).unzip();
    let since = since.flatten();
    let dollars = account.request_cost(&to.prices.prices());
    let snapshot = format!("{name}{AT}{}", version.label.name);
    if args.json {
        return output::json(&serde_json::json!({
            "volume": name.as_str(),
            "snapshot": version.label.name,
            "since": since,
            "copied_bytes": bytes.unwrap_or_default(),
            "put_bytes": account.bytes_put,
            "puts": account.puts,
            "dollars": dollars,
            "recovery_key": recovery,
            "store": args.target,
        }));
    }
    let recovery = recovery.map_or_else(String::new, |key| recovery_text(&key));
    let Some(bytes) = bytes else {
        return output::text(format!("{} has {snapshot} already{recovery}", args.target));
    };
    let since = since.map_or_else(|| "all of it".to_owned(), |since| format!("what differs from {since}"));
    output::text(format!(
        "copied {snapshot} into {}, {since}: {} of data, {} in {}, about ${:.4} for requests{recovery}",
        args.target,
        about_bytes(bytes),
        about_bytes(account.bytes_put),
        counted(account.puts, "PUT"),
        dollars,
    ))
}

async fn copy(
    args: &Args,
    name: &VolumeName,
    config: &Effective,
    to: &Effective,
    bars: &MultiProgress,
    recovery: &mut Option<String>,
) -> Result<Done, Failure> {
    let volume = &args.source.volume;
    let store = outside::open_store(config, Access::Read).await?.store;
    let target = outside::open_store(to, Access::Write).await?.store;
    if store.url() == target.url() && name == volume {
        return Err(Failure::usage(format!(
            "{} is where volume {volume} is: a copy has another store, or another name",
            target.url()
        )));
    }
    let which = match &args.source.snapshot {
        Some(which) => which.as_str().to_owned(),
        None => {
            let wish = Wish::Take { name: None, keep_until_unix_millis: 0 };
            let taken = snapshot::change(volume, wish, config).await?;
            taken.ok_or_else(|| Failure::failed("the server took no snapshot, and does not say why"))?.name
        }
    };
    let (_, _, workers) = outside::real();
    let near = (Arc::clone(&Cache::in_memory(config).blocks), workers);
    let from = Source::of(store.clone(), volume, &Options::default(), Some(near.clone()), &secrets::of(config)).await?;
    let version = choose(&from.versions().await?, volume, &which)?.clone();
    *recovery = make_target(args, (name, &*target), (&from, &version), to).await?;
    copying::refuse_others(&from, &description::load(&*target, name).await?.meta, &target.url())?;
    let volumes = StoreVolumes::of_copy(target.clone(), to).await?;
    let copy = volumes.open_volume(name).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => Failure::failed(format!(
            "the copy, volume {name}, is open on {holder}: nobody may have it while it is copied into; stop that server first"
        )),
        error => error.into(),
    })?;
    let (budget, keys) = (Budget::new(&config.volume), secrets::of(config));
    let past = Past::open(store, volume, &version.label.name, &config.volume, &budget, near, &keys);
    let style = ProgressStyle::with_template("copying {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = bars.add(ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
    let begins = |plan: &Plan, bytes| {
        tell(args, bars, plan, bytes, to);
        bar.set_length(bytes);
    };
    let copied = match past.await {
        Ok(past) => copy.copy_in(&from, &version, &past, begins, |done| bar.set_position(done)).await,
        Err(error) => Err(error),
    };
    bar.finish_and_clear();
    let closed = copy.close().await;
    let copied = copied?;
    closed?;
    Ok(Done { version, copied, account: copy.status().since_open })
}

/// Makes the copy, if there is none. Returns its recovery key.
async fn make_target(
    args: &Args,
    (name, target): (&VolumeName, &dyn Store),
    (from, version): (&Source, &KeptVersion),
    to: &Effective,
) -> Result<Option<String>, Failure> {
    match description::load(target, name).await {
        Err(VolumeError::NotFound { .. }) => {}
        loaded => return Ok(loaded.map(|_| None)?),
    }
    let encryption = args.keys.ask(name, to).await?;
    if encryption.is_none() && from.meta.encryption.is_some() && !args.keys.is_refused() {
        return Err(Failure::usage(format!(
            "volume {} is encrypted, and its copy would not be: give the copy a key (--encrypt, or keys in --to-config), or --no-encryption",
            from.meta.name
        )));
    }
    let options = CreateOptions {
        size: from.meta.block_size.bytes_in(version.blocks),
        block_size: from.meta.block_size,
        compression: args.compression.unwrap_or(from.meta.compression),
        encryption,
        fenced_by: FencedBy::on(target),
        copy: Some(CopyOf { uuid: from.meta.uuid, under_way: None }),
        settings: from.meta.settings.clone(),
    };
    let (clock, random, _) = outside::real();
    let created = volume::create(target, &random, &clock, name, options).await?;
    Ok(created.recovery.map(|key| key.to_text().to_string()))
}

/// Says what is about to be done, where somebody looks.
fn tell(args: &Args, bars: &MultiProgress, plan: &Plan, bytes: u64, to: &Effective) {
    let what = match (&plan.since, plan.goes_on) {
        (_, true) => "what is left of it".to_owned(),
        (Some(since), false) => format!("what differs from {since}"),
        (None, false) => "all of it".to_owned(),
    };
    let puts = bytes.div_ceil(to.volume.segment_size);
    let cost = Account { puts, ..Account::default() }.request_cost(&to.prices.prices());
    // Nobody who reads the output of a script is told.
    let _ = bars.println(format!(
        "copying {}: {what}, {} of data before compression; about {}, ${cost:.4}, and ${:.2} a month",
        args.source,
        about_bytes(bytes),
        counted(puts, "PUT"),
        to.prices.prices().of_month(bytes),
    ));
}
