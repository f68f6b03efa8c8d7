//! `ashlar info`: one volume, described.

use super::failure::{Failure, Outcome};
use super::{output, outside, runtime, secrets, status};
use crate::codec::seal::Seal;
use crate::config::Effective;
use crate::human::{about_bytes, counted, date, exact_bytes, few};
use crate::store::open::{Access, Opened};
use crate::store::prices::Prices;
use crate::store::s3::S3Store;
use crate::store::s3::versions::Kept;
use crate::volume::{self, Info, VolumeName};

/// Describes a volume as it stands in the store. Changes nothing, and may be used while it is served.
///
/// What a server has acknowledged and not committed yet is not counted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar info disk0\n  ashlar info db --store s3://my-bucket/disks --json")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let (info, kept) = runtime()?.block_on(async {
        let Opened { store, s3, .. } = outside::open_store(config, Access::Read).await?;
        let info = volume::inspect(&store, &args.name, &secrets::of(config)).await?;
        Ok::<_, Failure>((info, kept_versions(s3.as_deref(), &args.name).await))
    })?;
    match args.json {
        true => output::json(&Described { info: &info, kept_versions: kept }),
        false => output::text(output::pairs(describe(&info, kept, &config.prices.prices()))),
    }
}

/// A volume, and what its bucket holds of it.
#[derive(serde::Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    info: &'a Info,
    /// In a bucket that keeps old versions: all of them.
    kept_versions: Option<Kept>,
}

/// What a bucket that keeps old versions holds of a volume, which is more than what the volume knows of. `None` if it
/// keeps none, or does not say.
async fn kept_versions(s3: Option<&S3Store>, name: &VolumeName) -> Option<Kept> {
    let s3 = s3?;
    match s3.has_versions().await? {
        true => s3.kept(&format!("{name}/")).await.ok(),
        false => None,
    }
}

fn describe(info: &Info, kept: Option<Kept>, prices: &Prices) -> Vec<(&'static str, String)> {
    let with_bytes = |bytes: u64| format!("{} ({bytes} bytes)", about_bytes(bytes));
    let holder = match &info.holder {
        Some(holder) => format!("{} ({}) since {}", holder.server_name, holder.server, date(holder.since_unix_millis)),
        None => "nobody: closed, or never opened".to_owned(),
    };
    let paid_bytes = kept.map_or(info.stored_bytes, |kept| kept.bytes);
    let cost = prices.of_month(paid_bytes);
    let mut lines = vec![
        ("name", info.name.clone()),
        ("uuid", info.uuid.to_string()),
        ("created", date(info.created_unix_millis)),
        ("size", format!("{} ({} bytes)", exact_bytes(info.size), info.size)),
        ("block size", exact_bytes(info.block_size.into())),
        ("fencing", info.fencing.to_string()),
        ("encryption", if info.seal == Seal::Blake3 { "none".into() } else { info.seal.to_string() }),
        ("mapped", with_bytes(info.mapped_bytes)),
        ("stored", status::space(info.stored_bytes, info.live_bytes, info.dead_bytes, info.sparse_bytes)),
        ("compression", format!("{}, {}", info.compression, status::ratio(info.mapped_bytes, info.live_bytes))),
        ("settings", settings(info)),
        ("objects", format!("{}, of them dead {}", info.objects, info.dead_objects)),
        ("snapshots", snapshots(info)),
        ("gc", format!("{} to be freed when quiet", about_bytes(info.gc_backlog_bytes))),
        ("cost so far", status::account(&info.since_creation, info.since_creation.request_cost(prices))),
        ("cost a month", format!("about ${cost:.2} for what is stored now")),
        ("epoch", info.epoch.to_string()),
        ("held by", holder),
        ("last commit", format!("segment {}, change {}", info.last_commit_seq, info.last_commit_change)),
        ("checkpoint", format!("covers segment {}", info.checkpoint_seq)),
    ];
    if !info.clones.is_empty() {
        let clones = few(info.clones.iter().map(String::as_str));
        let kept = about_bytes(info.clones_held_bytes);
        lines.push(("clones", format!("{clones}; {kept} are kept for clones alone")));
    }
    if let Some(parent) = &info.parent {
        lines.push(("clone of", parent.clone()));
    }
    if let Some(kept) = kept {
        lines.push(("old versions", old_versions(kept)));
    }
    lines
}

fn settings(info: &Info) -> String {
    match info.settings.is_empty() {
        true => "none of its own: as the configuration of whoever serves it".to_owned(),
        false => volume::settings::listed(&info.settings),
    }
}

fn snapshots(info: &Info) -> String {
    match info.snapshots {
        0 => "none".to_owned(),
        kept => format!(
            "{kept}, which keep {} that the volume needs no more; see `ashlar snapshot list {}`",
            about_bytes(info.snapshots_held_bytes),
            info.name
        ),
    }
}

/// What a bucket keeps of a volume beside what is there.
fn old_versions(kept: Kept) -> String {
    match kept.old_versions {
        0 => "none, though the bucket keeps them".to_owned(),
        versions => format!(
            "{} in {} of what was deleted: the bucket keeps them, and they are paid for; store.s3.delete_versions = true or a \
             lifecycle rule ends that",
            about_bytes(kept.old_bytes),
            counted(versions, "version"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_what_a_bucket_has_beside_the_volume() {
        let kept = |old_versions, old_bytes| Kept {
            versions: 3 + old_versions,
            bytes: 750 + old_bytes,
            old_versions,
            old_bytes,
        };
        assert_eq!(old_versions(kept(0, 0)), "none, though the bucket keeps them");
        let said = old_versions(kept(10, 32 << 20));
        assert!(said.starts_with("32.0 MiB in 10 versions of what was deleted: "), "{said}");
        assert!(said.contains("store.s3.delete_versions = true"), "{said}");
    }
}
