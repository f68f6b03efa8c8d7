//! `ashlar create`: a new, empty volume.

use std::path::Path;

use super::client_lines::Quoted;
use super::failure::{Failure, Outcome};
use super::settings::{self, Setting};
use super::{output, outside, runtime, secrets};
use crate::codec::frame::Compression;
use crate::config::Effective;
use crate::human::{exact_bytes, parse_bytes};
use crate::store::open::Access;
use crate::units::BlockSize;
use crate::volume::{
    self, BadSize, CreateOptions, Created, FencedBy, Meta, NewEncryption, Settings, VolumeError, VolumeName,
};

/// Makes a new, empty volume. It takes no space until something is written to it.
///
/// The size is what the disk shows; the store holds only what is written, compressed. The block size is the unit in
/// which space is given out and given back, and cannot be changed later; 4KiB suits ext4, xfs, btrfs, LVM and databases.
///
/// With a key (--passphrase-file, --key-file, --key-command or the [keys] of the configuration, or --encrypt to be asked)
/// the volume is encrypted: whoever can read the store then sees its name, its size and how large its objects are. A
/// recovery key is printed once, for the day when the other one is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes: 4096, 64KiB, 10G, 1.5T; K, M, G, T count in 1024, KB, MB, GB in 1000.

Examples:
  ashlar create db --size 100G
  ashlar create db --size 100G --passphrase-file /etc/ashlar/db.key
  ashlar create db --size 100G --set durability=journal --set segment_size=16MiB
  ashlar create old --size 20G --block-size 512 --store s3://my-bucket/disks --json")]
pub struct Args {
    /// The volume's name: letters, digits, '.', '_' and '-', at most 64
    name: VolumeName,

    /// How large the disk is, such as 100G; a multiple of the block size
    #[arg(long, value_parser = parse_bytes)]
    size: u64,

    /// The unit of mapping: a power of two from 512 to 64KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size, default_value = "4KiB")]
    block_size: BlockSize,

    /// How data is compressed: lz4, zstd:1 to zstd:19, or none; `ashlar set` changes it later
    #[arg(long, value_name = "WAY", default_value = "lz4")]
    compression: Compression,

    /// A setting of the volume's own, which beats the configuration of whoever serves it; see `ashlar set`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<Setting>,

    #[command(flatten)]
    keys: NewKeys,

    /// Print a JSON object that describes the volume
    #[arg(long)]
    json: bool,
}

/// How a new volume is to be unlocked, if it is to be encrypted.
#[derive(Debug, clap::Args)]
pub struct NewKeys {
    /// Encrypt the volume; asks for a passphrase if no key is configured
    #[arg(long, conflicts_with = "no_encryption")]
    encrypt: bool,

    /// Do not encrypt the volume although a key is configured
    #[arg(long)]
    no_encryption: bool,

    /// Do not make a recovery key
    #[arg(long)]
    no_recovery_key: bool,
}

impl NewKeys {
    /// Whether it was said that the volume is not to be encrypted.
    pub fn is_refused(&self) -> bool {
        self.no_encryption
    }

    /// What unlocks a new volume of that name; asks for it if that was said.
    pub async fn ask(&self, name: &VolumeName, config: &Effective) -> Result<Option<NewEncryption>, Failure> {
        if self.no_encryption {
            return Ok(None);
        }
        let secret = match secrets::configured(config, name).await? {
            Some(secret) => secret,
            None if self.encrypt => secrets::ask_for_new(name)?,
            None => return Ok(None),
        };
        let cost = secrets::cost();
        Ok(Some(NewEncryption { secret, cost, recovery: !self.no_recovery_key }))
    }
}

/// A volume that was just created in that store, as a document.
pub fn describe(meta: &Meta, recovery: Option<&str>, store: &str) -> serde_json::Value {
    serde_json::json!({
        "name": meta.name,
        "uuid": meta.uuid,
        "size": meta.size,
        "block_size": meta.block_size,
        "compression": meta.compression,
        "settings": meta.settings,
        "seal": meta.seal(),
        "fencing": meta.fenced_by,
        "recovery_key": recovery,
        "created_unix_millis": meta.created_unix_millis,
        "store": store,
    })
}

/// Runs the command. `flags` are those that serve the volume again.
pub fn run(args: &Args, config: &Effective, flags: &str) -> Outcome {
    Meta::check_size(args.size, args.block_size).map_err(|error| refuse_size(args.size, &error))?;
    let (url, Created { meta, recovery }) = runtime()?.block_on(create(args, config))?;
    let recovery = recovery.map(|key| key.to_text());
    if args.json {
        return output::json(&describe(&meta, recovery.as_ref().map(|key| key.as_str()), &url));
    }
    let store = Quoted(Path::new(&url));
    output::text(format!(
        "created volume {} in {url}: {}, blocks of {}, {}, uuid {}{}\nserve it with: ashlar serve {} --store {store}{flags}",
        meta.name,
        exact_bytes(meta.size),
        exact_bytes(meta.block_size.bytes().into()),
        if meta.encryption.is_some() { "encrypted" } else { "not encrypted" },
        meta.uuid,
        recovery.map_or_else(String::new, |key| recovery_text(&key)),
        meta.name,
    ))
}

/// A size that cannot be, and both ways out where there are two: sizes in 1000, such as 100GB, are whole sectors of 512 bytes.
fn refuse_size(size: u64, error: &BadSize) -> Failure {
    let whole_sectors = size.is_multiple_of(512) && matches!(error, BadSize::NotBlocks { .. });
    let or = if whole_sectors { "; or give --block-size 512" } else { "" };
    Failure::usage(format!("--size: {error}{or}"))
}

/// What is said of a recovery key.
pub fn recovery_text(key: &str) -> String {
    format!(
        "\n\n  recovery key: {key}\n  It opens the volume like a passphrase. Write it down now: it is not shown again.\n"
    )
}

async fn create(args: &Args, config: &Effective) -> Result<(String, Created), Failure> {
    let store = outside::open_store(config, Access::Write).await?.store;
    let (clock, random, _) = outside::real();
    let options = CreateOptions {
        size: args.size,
        block_size: args.block_size,
        compression: args.compression,
        encryption: args.keys.ask(&args.name, config).await?,
        fenced_by: FencedBy::on(&*store),
        copy: None,
        settings: settings::with(&Settings::new(), &args.settings, config)?,
    };
    let created = volume::create(&*store, &random, &clock, &args.name, options).await;
    let created = created.map_err(|error| match error {
        VolumeError::Invalid(_) => Failure::usage(error),
        error => Failure::from(error),
    })?;
    Ok((store.url(), created))
}

fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    BlockSize::new(bytes).map_err(|error| error.to_string())
}
