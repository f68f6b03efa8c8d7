//! `ashlar import` and `ashlar export`: disk images, by qemu-img, which knows them all.
//!
//! A server of this program's own, on a Unix socket that nobody else finds, has the volume meanwhile; its state is in a directory of its own, so that a server of this host
//! goes on. qemu-img copies between that and the image: holes stay holes, both ways.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::create::{NewKeys, recovery_text};
use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::snapshot::{self, Wish};
use super::{output, outside, runtime};
use crate::codec::frame::Compression;
use crate::config::{Effective, Flag};
use crate::device::AT;
use crate::human::{exact_bytes, parse_bytes};
use crate::store::Store;
use crate::store::open::Access;
use crate::units::BlockSize;
use crate::volume::{self, CreateOptions, FencedBy, VolumeName};

/// Makes a volume of a disk image: raw, qcow2, vmdk, vdi, vhdx, or what else qemu-img reads, or of an NBD export.
///
/// It is done by qemu-img, which must be installed (package qemu-utils). What the image does not hold takes no space in the store either.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar import web.qcow2 web
  ashlar import disk.img db --format raw --size 100G
  ashlar import nbd://192.0.2.7/old db --encrypt")]
pub struct ImportArgs {
    /// The image, or nbd://HOST/NAME or nbd+unix:///NAME?socket=PATH
    #[arg(value_name = "FILE|URL")]
    image: String,

    /// The name of the new volume
    #[arg(value_name = "NAME")]
    name: VolumeName,

    /// The format of the image, such as raw or qcow2, if it is not to be guessed; a raw image can be made to look like another one
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// How large the disk is, such as 100G; as large as the image at least, and that if it is left out
    #[arg(long, value_parser = parse_bytes)]
    size: Option<u64>,

    /// How data is compressed: lz4, zstd:1 to zstd:19, or none
    #[arg(long, value_name = "WAY", default_value = "lz4")]
    compression: Compression,

    #[command(flatten)]
    keys: NewKeys,
}

/// Writes a volume, or a snapshot of it, into a disk image.
///
/// It is done by qemu-img, which must be installed (package qemu-utils). What the volume does not hold takes no space in the image, where its format can say that. Without
/// @SNAPSHOT one is taken for it, and deleted afterwards.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar export db@monday monday.img
  ashlar export db@monday monday.qcow2 --format qcow2")]
pub struct ExportArgs {
    /// A volume, or a snapshot of it by name or time
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    source: ExportName,

    /// The image; there must be none of that name
    #[arg(value_name = "FILE")]
    image: PathBuf,

    /// The format of the image, such as raw or qcow2
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    format: String,
}

/// How the program was called: the server is called with the same.
#[derive(Debug)]
pub struct Called {
    /// The configuration file that was named.
    pub file: Option<PathBuf>,
    /// The flags that set a key.
    pub flags: Vec<Flag>,
}

/// Runs `ashlar import`.
pub fn import(args: &ImportArgs, config: &Effective, called: &Called) -> Outcome {
    let (size, recovery) = runtime()?.block_on(bring_in(args, config, called))?;
    output::text(format!(
        "created volume {} of {}: {}{}",
        args.name,
        args.image,
        exact_bytes(size),
        recovery.map_or_else(String::new, |key| recovery_text(&key)),
    ))
}

/// Runs `ashlar export`.
pub fn export(args: &ExportArgs, config: &Effective, called: &Called) -> Outcome {
    if args.image.exists() {
        return Err(Failure::usage(format!("{} is there already, and is not written over", args.image.display())));
    }
    let snapshot = runtime()?.block_on(bring_out(args, config, called))?;
    output::text(format!("wrote {snapshot} to {}", args.image.display()))
}

async fn bring_in(args: &ImportArgs, config: &Effective, called: &Called) -> Result<(u64, Option<String>), Failure> {
    let ImportArgs { image, name, format, .. } = args;
    let format_of: Vec<&str> = format.iter().flat_map(|format| ["-f", format.as_str()]).collect();
    let said = qemu_img(&[&["info", "--output=json"], &format_of[..], &[image]].concat(), Stdio::piped()).await?;
    let image_size =
        serde_json::from_slice::<serde_json::Value>(&said).ok().and_then(|said| said["virtual-size"].as_u64());
    let image_size =
        image_size.ok_or_else(|| Failure::failed(format!("qemu-img does not say how large {image} is")))?;
    let block_size = BlockSize::default();
    let size = args.size.unwrap_or(image_size.next_multiple_of(block_size.bytes().into()));
    if size < image_size {
        return Err(Failure::usage(format!("--size: {image} has {image_size} bytes, which is more than {size}")));
    }
    volume::Meta::check_size(size, block_size).map_err(|bad| Failure::usage(format!("--size: {bad}")))?;
    let store = outside::open_store(config, Access::Write).await?.store;
    let options = CreateOptions {
        size,
        block_size,
        compression: args.compression,
        encryption: args.keys.ask(name, config).await?,
        fenced_by: FencedBy::on(&*store),
        copy: None,
        settings: volume::Settings::new(),
    };
    let (clock, random, _) = outside::real();
    let created = volume::create(&*store, &random, &clock, name, options).await?;
    let recovery = created.recovery.map(|key| key.to_text().to_string());
    let filled = async {
        let server = Server::start(name.as_str(), &store, config, called).await?;
        let uri = server.uri(name.as_str());
        let words = [&["convert", "-n", "--target-is-zero"], &format_of[..], &["-O", "raw", image, &uri]].concat();
        let converted = convert(&words).await;
        let stopped = server.stop().await;
        converted?;
        stopped
    };
    filled.await.map_err(|failure| {
        Failure::failed(format!(
            "volume {name} is there and not all of {image} is in it: {failure:?}; delete it (ashlar delete {name}) before you try again{}",
            recovery.as_deref().map_or_else(String::new, recovery_text)
        ))
    })?;
    Ok((size, recovery))
}

/// Returns what was written.
async fn bring_out(args: &ExportArgs, config: &Effective, called: &Called) -> Result<String, Failure> {
    let ExportName { volume, snapshot } = &args.source;
    let (name, taken) = match snapshot {
        Some(which) => (which.as_str().to_owned(), None),
        None => {
            let wish = Wish::Take { name: None, keep_until_unix_millis: 0 };
            let taken = snapshot::change(volume, wish, config).await?;
            let name = taken.ok_or_else(|| Failure::failed("the server took no snapshot, and does not say why"))?.name;
            (name.clone(), Some(name))
        }
    };
    let export = format!("{volume}{AT}{name}");
    let store = outside::open_store(config, Access::Read).await?.store;
    let written = async {
        let server = Server::start(&export, &store, config, called).await?;
        let uri = server.uri(&export);
        let image = args.image.to_string_lossy();
        let converted = convert(&["convert", "-f", "raw", "-O", &args.format, &uri, &*image]).await;
        let stopped = server.stop().await;
        converted?;
        stopped
    };
    let written = written.await;
    if let Some(name) = taken {
        snapshot::change(volume, Wish::Delete { name }, config).await?;
    }
    written?;
    Ok(if snapshot.is_some() { export } else { volume.to_string() })
}

/// Runs `qemu-img convert`, which shows how far it is where somebody looks.
async fn convert(words: &[&str]) -> Outcome {
    let (shown, out) = match std::io::stdout().is_terminal() {
        true => (&["-p"][..], Stdio::inherit()),
        false => (&[][..], Stdio::null()),
    };
    qemu_img(&[&words[..1], shown, &words[1..]].concat(), out).await.map(drop)
}

/// Runs qemu-img; what it says on its standard output, if that is asked for.
async fn qemu_img(words: &[&str], out: Stdio) -> Result<Vec<u8>, Failure> {
    let child = Command::new("qemu-img").args(words).stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::failed("qemu-img is not installed, which reads and writes images: it is in the package qemu-utils")
        }
        _ => Failure::failed(format!("qemu-img cannot be started: {error}")),
    })?;
    let ended = child.wait_with_output().await.map_err(Failure::failed)?;
    match ended.status.success() {
        true => Ok(ended.stdout),
        false => Err(Failure::failed(String::from_utf8_lossy(&ended.stderr).trim().to_owned())),
    }
}

/// A server of one export, for this program alone.
struct Server {
    child: Child,
    socket: PathBuf,
}

/// How long it may take to start, and to bring everything into the store.
const START: Duration = Duration::from_secs(120);

/// How often its socket is tried.
const AGAIN: Duration = Duration::from_millis(50);

impl Server {
    async fn start(
        export: &str,
        store: &Arc<dyn Store>,
        config: &Effective,
        called: &Called,
    ) -> Result<Server, Failure> {
        // A state directory of its own, as a server of this host may have the other one.
        let state = config.state.join("images").join(export);
        let socket = state.join("ashlar.sock");
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let mut command = Command::new(program);
        command.args(["serve", export, "--listen", "none", "--socket"]).arg(&socket);
        command.arg("--store").arg(store.url()).arg("--state").arg(&state);
        if let Some(file) = &called.file {
            command.arg("--config").arg(file);
        }
        let own = called.flags.iter().filter(|flag| !["store.url", "state"].contains(&flag.key));
        command.args(own.flat_map(|flag| [flag.name, flag.value.as_str()]));
        // What it does is no news to whoever waits for it; what goes wrong is.
        command.env("ASHLAR_LOG__LEVEL", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Failure::failed)?;
        let ready = async {
            while UnixStream::connect(&socket).await.is_err() {
                if child.try_wait().map_err(Failure::failed)?.is_some() {
                    return Err(Failure::failed(format!("{export} cannot be served; why is said above")));
                }
                tokio::time::sleep(AGAIN).await;
            }
            Ok(())
        };
        let ready = tokio::time::timeout(START, ready).await;
        ready.map_err(|_| Failure::failed(format!("{export} was not served within {} s", START.as_secs())))??;
        Ok(Server { child, socket })
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Stops it: what was written is in the store then.
    async fn stop(mut self) -> Outcome {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            kill_process(pid, Signal::TERM).map_err(Failure::failed)?;
        }
        let ended = self.child.wait().await.map_err(Failure::failed)?;
        match ended.success() {
            true => Ok(()),
            false => {
                Err(Failure::failed("not all that was written could be brought into the store; why is said above"))
            }
        }
    }
}
