//! `ashlar resize`: another size for a volume, also while it is served.

use std::cmp::Ordering;
use std::str::FromStr;
use std::sync::Arc;

use super::failure::{Failure, Outcome};
use super::store_volumes::StoreVolumes;
use super::{control, output, outside, runtime, secrets};
use crate::config::Effective;
use crate::human::{exact_bytes, parse_bytes};
use crate::opening::description::{self, Description};
use crate::store::Store;
use crate::store::open::Access;
use crate::units::BlockSize;
use crate::volume::{Meta, VolumeError, VolumeName, resize};

/// Makes a volume larger or smaller, also while it is served.
///
/// Larger takes no space and no time, and what is new reads as zeros. A server on this host has the new size at once, also while its store
/// does not answer; one elsewhere takes it over when it opens the volume next. A disk of `ashlar attach` grows by itself within seconds. Other clients learn the size when
/// they attach: a virtual machine, and a /dev/nbdN of nbd-client, keep the old one until they are attached anew. Then the filesystem is grown
/// as on any disk (resize2fs, xfs_growfs, lvextend).
///
/// Smaller must be asked for with --shrink, and is refused while there is data beyond the new end: make the filesystem smaller
/// first, and have it give up the rest. The server that has the volume must be on this host, or none must have it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes: as for `ashlar create`; with + or - in front of them, so much more or less than now.

Examples:
  ashlar resize db 200G
  ashlar resize db +50G
  ashlar resize db 20G --shrink
  ashlar resize db 20G --shrink --discard-data    what lies beyond is lost")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// How large it is to be, such as 200G, or how much larger or smaller, such as +50G
    #[arg(allow_hyphen_values = true)]
    size: Target,

    /// Make it smaller
    #[arg(long)]
    shrink: bool,

    /// Lose the data that lies beyond the new end
    #[arg(long, requires = "shrink")]
    discard_data: bool,
}

/// A size, or a difference, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Is(u64),
    More(u64),
    Less(u64),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (kind, number): (fn(u64) -> Target, &str) = match text.split_at_checked(1) {
            Some(("+", number)) => (Target::More, number),
            Some(("-", number)) => (Target::Less, number),
            _ => (Target::Is, text),
        };
        parse_bytes(number).map(kind).map_err(|error| error.to_string())
    }
}

impl Target {
    /// The new size of a volume that has `now` bytes; nothing if no number can say it.
    fn of(self, now: u64) -> Option<u64> {
        match self {
            Target::Is(size) => Some(size),
            Target::More(more) => now.checked_add(more),
            Target::Less(less) => now.checked_sub(less),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(resize(args, config))?;
    output::text(said)
}

async fn resize(args: &Args, config: &Effective) -> Result<String, Failure> {
    let name = &args.name;
    if let Some(done) = grow_served(args, config).await {
        return done;
    }
    let opened = outside::open_store(config, Access::Write).await?;
    let found = description::load(&*opened.store, name).await?;
    let now = found.meta.size;
    let size = args.size.of(now).ok_or_else(|| {
        Failure::usage(format!("volume {name} has {}, from which that size cannot be reached", exact_bytes(now)))
    })?;
    Meta::check_size(size, found.meta.block_size).map_err(Failure::usage)?;
    match size.cmp(&now) {
        Ordering::Equal => Ok(format!("volume {name} has {} already", exact_bytes(now))),
        Ordering::Greater if args.shrink => Err(Failure::usage(format!(
            "{} is more than the {} that volume {name} has: leave out --shrink, which is for making it smaller",
            exact_bytes(size),
            exact_bytes(now)
        ))),
        Ordering::Greater => grow(name, found, size, &*opened.store, config).await,
        Ordering::Less if !args.shrink => Err(Failure::usage(format!(
            "{} is less than the {} that volume {name} has: make what is on it smaller first, then give --shrink",
            exact_bytes(size),
            exact_bytes(now)
        ))),
        Ordering::Less => shrink(args, size, opened.store, config).await,
    }
}

/// A server on this host has the volume open, and makes it larger itself: the store need not answer. Nothing if there is none, it is not to become larger,
/// or the server does not say.
async fn grow_served(args: &Args, config: &Effective) -> Option<Result<String, Failure>> {
    let name = &args.name;
    let status = control::ask(&config.state).await.ok()?;
    let served = &status.volumes.iter().find(|served| served.name == name.as_str())?.status;
    let size = args.size.of(served.size).filter(|size| *size > served.size && !args.shrink)?;
    // One of an older version does not say, and knows of no such request.
    let block_size = BlockSize::new(served.block_size.into()).ok()?;
    if let Err(bad) = Meta::check_size(size, block_size) {
        return Some(Err(Failure::usage(bad)));
    }
    // Reading asks nothing of the store.
    let url = outside::open_with(&config.store, Access::Read).await.ok()?.store.url();
    if url != status.store {
        return None;
    }
    let is = format!("volume {name} has {} now", exact_bytes(size));
    Some(match control::grow(&config.state, name, size).await? {
        Ok(true) => Ok(format!("{is}; {SEEN_BY_CLIENTS}")),
        Ok(false) => Ok(format!(
            "{is}, which clients see that attach it from now on. The store does not answer, and is told as soon as it does. Until then the size is kept \
             in {} only, nothing that is written gets into the store, and disks of `ashlar attach` grow if its durability is \"journal\", else as soon as \
             a FLUSH comes back",
            config.state.display()
        )),
        Err(why) => Err(Failure::failed(why)),
    })
}

const SEEN_BY_CLIENTS: &str = "clients that attach it from now on see that, disks of `ashlar attach` within seconds, the others when they attach it anew";

async fn grow(
    name: &VolumeName,
    found: Description,
    size: u64,
    store: &dyn Store,
    config: &Effective,
) -> Result<String, Failure> {
    let (_, random, _) = outside::real();
    let sealer = found.unlock(&secrets::of(config)).await?;
    resize::grow(store, &random, &found, &sealer, size).await?;
    let is = format!("volume {name} has {} now", exact_bytes(size));
    Ok(match control::reload_if_served(&config.state, &store.url(), name).await {
        Ok(false) => format!("{is}; a server elsewhere that has it open serves that when it opens it next"),
        Ok(true) if serves(name, size, config).await => {
            format!("{is}; {SEEN_BY_CLIENTS}")
        }
        Ok(true) => {
            format!("{is}, but the server on {} does not serve that before it is restarted", config.state.display())
        }
        Err(why) => format!("{is}, but the server on {} did not take that over: {why}", config.state.display()),
    })
}

/// Whether the server on the state directory serves the volume with that size: one of an older version does not take it over.
async fn serves(name: &VolumeName, size: u64, config: &Effective) -> bool {
    let status = control::ask(&config.state).await;
    status.is_ok_and(|status| status.volumes.iter().any(|it| it.name == name.as_str() && it.status.size == size))
}

async fn shrink(args: &Args, size: u64, store: Arc<dyn Store>, config: &Effective) -> Result<String, Failure> {
    let Args { name, discard_data, .. } = args;
    let url = store.url();
    match control::shrink_if_served(&config.state, &url, name, size, *discard_data).await {
        Ok(true) => {}
        Ok(false) => shrink_here(args, size, store, config).await?,
        Err(why) => return Err(Failure::failed(why)),
    }
    Ok(format!("volume {name} has {} now; what lay beyond is given up", exact_bytes(size)))
}

/// No server on this host has the volume: opens it for the moment.
async fn shrink_here(args: &Args, size: u64, store: Arc<dyn Store>, config: &Effective) -> Result<(), Failure> {
    let volumes = StoreVolumes::of_command(store, config).await?;
    let volume = volumes.open_volume(&args.name).await.map_err(|error| match error {
        VolumeError::Held { holder, .. } => Failure::failed(format!(
            "volume {} is open on {holder}: only that server can make it smaller; give the command there, or stop it first",
            args.name
        )),
        error => error.into(),
    })?;
    let shrunk = volume.shrink(size, args.discard_data).await;
    volume.close().await?;
    Ok(shrunk?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_one_or_a_difference() {
        let of = |text: &str| text.parse::<Target>().map(|target| target.of(10 << 30));
        assert_eq!(of("20G"), Ok(Some(20 << 30)));
        assert_eq!(of("+5G"), Ok(Some(15 << 30)));
        assert_eq!(of("-5G"), Ok(Some(5 << 30)));
        assert_eq!(of("-11G"), Ok(None));
        assert!(of("5 potatoes").is_err() && of("+-5G").is_err() && of("").is_err());
    }
}
