//! `ashlar attach`: a volume as a device of this host's kernel, for as long as the process lives. See [`crate::attach`].

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::serve::notify;
use super::{logging, output, runtime, signals};
use crate::attach::dial::Place;
use crate::attach::kernel::KernelError;
use crate::attach::linux::Linux;
use crate::attach::run::{self, Notice, Order};
use crate::attach::supervisor::{Plan, SECTOR_MAX, SECTOR_MIN, Weight};
use crate::attach::sysfs;
use crate::config::{self, Effective, Listen};
use crate::human::{exact_bytes, parse_bytes, parse_duration};
use crate::outside::Random;

/// Attaches a volume as a disk of this host, and keeps it attached while its server comes and goes.
///
/// Needs root and the kernel's nbd module (`modprobe nbd`). Stays in the foreground: it is what connects again when the server is
/// gone, to the same one or to the next of --server. Programs that use the disk wait meanwhile, and see no error. Ends when it
/// is told to (SIGTERM, Ctrl-C, `ashlar detach`), once nobody uses the disk; told again a second or more later, at once. It ends the disk by itself, with exit
/// code 1, if the server lost changes that it had acknowledged, or has another volume of that name.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar attach db                                    at the server that the configuration describes; prints the device
  ashlar attach db /dev/nbd3 --server 10.0.0.7:10809,10.0.0.8:10809
  ashlar attach db --server unix:/run/ashlar.sock --sector-size 512
  ashlar attach db@monday                             the disk as it was, read-only
  ashlar attach --list

docs/attach.md has recipes for systemd, fstab, LVM and RAID.")]
pub struct Args {
    /// The volume, or a snapshot of it
    #[arg(value_name = "VOLUME[@SNAPSHOT]", required_unless_present = "list")]
    volume: Option<ExportName>,

    /// The device, such as /dev/nbd0; without it the kernel takes one that is free
    #[arg(value_parser = parse_device)]
    device: Option<u32>,

    /// Where its servers are, HOST:PORT or unix:PATH, best first; without it, where serve.socket or serve.listen say
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', value_parser = parse_place)]
    server: Vec<Place>,

    /// The disk's sector size, 512 to 4KiB; without it the volume's block size, at most 4KiB. Keep it for the life of what is on the disk
    #[arg(long, value_name = "SIZE", value_parser = parse_sector_size)]
    sector_size: Option<u32>,

    /// Connections to the server; more than one needs --timeout
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    connections: u16,

    /// Let nobody write to the disk
    #[arg(long)]
    read_only: bool,

    /// Give a connection up that leaves a request unanswered for so long; without it, requests wait as long as the server does
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// Give the disk up, with errors for whoever uses it, if no server can be had for so long
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = parse_timeout)]
    dead_timeout: Duration,

    /// Show what is attached instead
    #[arg(long, conflicts_with_all = ["volume", "device", "server", "sector_size", "connections", "read_only", "timeout", "dead_timeout"])]
    list: bool,

    /// With --list: print a JSON array
    #[arg(long, requires = "list")]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let runtime = runtime()?;
    let outcome = match &args.volume {
        Some(volume) => runtime.block_on(attach(volume, args, config)),
        None => runtime.block_on(list(args.json)),
    };
    // Threads that wait for the kernel are not waited for.
    runtime.shutdown_background();
    outcome
}

async fn attach(volume: &ExportName, args: &Args, config: &Effective) -> Outcome {
    if args.connections > 1 && args.timeout.is_none() {
        return Err(Failure::usage(
            "--connections needs --timeout, such as --timeout 60s: with several connections the kernel takes the requests of a dead \
             one to another only after that time",
        ));
    }
    let servers = match &args.server[..] {
        [] => vec![usual_server(config)?],
        servers => servers.to_vec(),
    };
    let plan = Plan {
        volume: volume.to_string(),
        servers: servers.len(),
        device: args.device,
        connections: usize::from(args.connections),
        sector_size: args.sector_size,
        read_only: args.read_only,
        timeout: args.timeout.unwrap_or_default(),
        dead_timeout: args.dead_timeout,
    };
    let places = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let orders = orders()?;
    let kernel = Arc::new(Linux::open().map_err(Failure::failed)?);
    let tell = |notice| match notice {
        Notice::Ready(device) => ready(volume, device, &places),
        Notice::Said(Weight::Info, words) => {
            info!("{words}");
            notify(&[NotifyState::Status(&words)]);
        }
        Notice::Said(Weight::Warning, words) => {
            warn!("{words}");
            notify(&[NotifyState::Status(&words)]);
        }
    };
    let outcome = run::run(kernel, plan, servers, Random::system().uuid(), orders, tell).await;
    notify(&[NotifyState::Stopping]);
    outcome.map_err(|why| Failure::failed(format!("volume {volume} at {places}: {why}")))
}

fn ready(volume: &ExportName, device: u32, places: &str) {
    let path = sysfs::path(device);
    let size = sysfs::size(device).map_or_else(String::new, |size| format!(", {}", exact_bytes(size)));
    info!("volume {volume} of {places} is {}{size}", path.display());
    // For scripts that let the kernel choose.
    if let Err(error) = logging::print_aside(path.display().to_string()) {
        warn!("the device cannot be printed: {error}");
    }
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("attached as {}", path.display()))]);
}

/// The server that the configuration describes: its Unix socket if it has one.
fn usual_server(config: &Effective) -> Result<Place, Failure> {
    match (config.serve.socket.path(&config.state), &config.serve.listen) {
        (Some(path), _) => Ok(Place::Unix(path)),
        (None, Listen::Address(address)) => Ok(Place::Tcp(address.clone())),
        (None, Listen::None) => {
            Err(config.refuse("serve.socket", "serve.listen is none as well; name a server with --server").into())
        }
    }
}

/// Signals as orders: the first of those that stop is a wish, a second a while later is meant, and SIGQUIT as well.
fn orders() -> Result<mpsc::Receiver<Order>, Failure> {
    let listen = |kind| signal(kind).map_err(Failure::failed);
    let mut stop = vec![listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
    if !signals::is_ignored(SignalKind::hangup()) {
        stop.push(listen(SignalKind::hangup())?);
    }
    let mut quit = listen(SignalKind::quit())?;
    let (tell, orders) = mpsc::channel(4);
    drop(tokio::spawn(async move {
        let mut first_at: Option<Instant> = None;
        loop {
            let quits = tokio::select! {
                () = signals::any(&mut stop) => false,
                _ = quit.recv() => true,
            };
            let order = order(first_at.map(|first| first.elapsed()), quits);
            first_at.get_or_insert_with(Instant::now);
            match order {
                Some(order) if tell.send(order).await.is_err() => return,
                _ => {}
            }
        }
    }));
    Ok(orders)
}

/// What a signal means that comes so long after the first; `quits` says that it is SIGQUIT.
fn order(after_the_first: Option<Duration>, quits: bool) -> Option<Order> {
    match after_the_first {
        _ if quits => Some(Order::Force),
        None => Some(Order::Stop),
        // A disk that is in use must not be torn off because two processes passed one wish on.
        Some(after) => signals::is_second(after).then_some(Order::Force),
    }
}

/// An NBD device that is attached.
#[derive(Debug, Serialize)]
struct Listed {
    /// Its path.
    device: String,
    /// The volume, if `ashlar attach` attached it.
    volume: Option<String>,
    /// Bytes.
    size: Option<u64>,
    /// Whether nobody may write to it.
    read_only: bool,
    /// The process that connects it again, if one lives.
    supervisor: Option<u32>,
}

async fn list(json: bool) -> Outcome {
    let kernel = Linux::open().map_err(Failure::failed)?;
    let attached = attached(&kernel).await.map_err(Failure::failed)?;
    let listed: Vec<Listed> = attached.into_iter().map(describe).collect();
    match json {
        true => output::json(&listed),
        false if listed.is_empty() => output::text("nothing is attached"),
        false => output::text(output::table(&["DEVICE", "VOLUME", "SIZE", "", "SUPERVISOR"], listed.iter().map(row))),
    }
}

/// The numbers of the devices that are attached, in order.
pub async fn attached(kernel: &Linux) -> Result<Vec<u32>, KernelError> {
    let mut devices: Vec<u32> =
        kernel.devices().await?.into_iter().filter(|device| device.connected).map(|device| device.device).collect();
    devices.sort_unstable();
    Ok(devices)
}

fn describe(device: u32) -> Listed {
    let backend = sysfs::backend_of(device);
    Listed {
        device: sysfs::path(device).display().to_string(),
        volume: backend.as_deref().and_then(sysfs::volume_of).map(str::to_owned),
        size: sysfs::size(device),
        read_only: sysfs::is_read_only(device),
        supervisor: sysfs::attached_by(device).and_then(sysfs::supervisor),
    }
}

fn row(listed: &Listed) -> Vec<String> {
    let unknown = || "-".to_owned();
    vec![
        listed.device.clone(),
        listed.volume.clone().unwrap_or_else(unknown),
        listed.size.map_or_else(unknown, exact_bytes),
        if listed.read_only { "read-only".to_owned() } else { String::new() },
        listed.supervisor.map_or_else(unknown, |pid| pid.to_string()),
    ]
}

fn parse_device(text: &str) -> Result<u32, String> {
    sysfs::number(text).ok_or_else(|| format!("{text:?} is no NBD device; accepted is /dev/nbdN, such as /dev/nbd0"))
}

fn parse_place(text: &str) -> Result<Place, String> {
    let place = config::Place::try_from(text.strip_prefix("unix:").unwrap_or(text).to_owned());
    match (place, text.starts_with("unix:")) {
        (Ok(config::Place::Unix(path)), _) => Ok(Place::Unix(path)),
        (Ok(config::Place::Tcp(address)), false) => Ok(Place::Tcp(address)),
        _ => Err(format!("{text:?} is no server; accepted is HOST:PORT, such as 10.0.0.7:10809, or unix:/PATH")),
    }
}

fn parse_sector_size(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    let within = u32::try_from(bytes).ok().filter(|size| (SECTOR_MIN..=SECTOR_MAX).contains(size));
    within.filter(|size| size.is_power_of_two()).ok_or_else(|| {
        format!("{text:?} is no sector size; accepted are 512, 1024, 2048 and 4096, which is all that the kernel takes")
    })
}

/// The kernel counts in seconds, and more than a year in its own ticks might not fit.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(365 * 86_400);
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    match time >= Duration::from_secs(1) && time <= MOST && time.subsec_nanos() == 0 {
        true => Ok(time),
        false => Err(format!("{text:?} is out of bounds; accepted is 1s to 365days, in whole seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_or_paths() {
        assert_eq!(parse_place("10.0.0.7:10809"), Ok(Place::Tcp("10.0.0.7:10809".into())));
        assert_eq!(parse_place("unix:/run/a.sock"), Ok(Place::Unix("/run/a.sock".into())));
        assert_eq!(parse_place("/run/a.sock"), Ok(Place::Unix("/run/a.sock".into())));
        for bad in ["", "host", "unix:", "unix:host:1", "none"] {
            assert!(parse_place(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_second_signal_tears_a_disk_off_only_if_it_is_a_second_wish() {
        let after = |millis| Some(Duration::from_millis(millis));
        assert_eq!(order(None, false), Some(Order::Stop));
        assert_eq!([order(after(0), false), order(after(999), false)], [None, None]);
        assert_eq!(order(after(1000), false), Some(Order::Force));
        assert_eq!([order(None, true), order(after(0), true)], [Some(Order::Force), Some(Order::Force)]);
    }

    #[test]
    fn what_the_kernel_cannot_take_is_refused() {
        assert_eq!(parse_sector_size("512"), Ok(512));
        assert_eq!(parse_sector_size("4KiB"), Ok(4096));
        for bad in ["256", "8KiB", "1000", "x"] {
            assert!(parse_sector_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_timeout("90s"), Ok(Duration::from_secs(90)));
        for bad in ["0s", "500ms", "2years", "90"] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }
}
