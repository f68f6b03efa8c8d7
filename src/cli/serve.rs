//! `ashlar serve`: volumes over NBD, until a signal.
//!
//! Start: see [`super::start`]. SIGHUP: see [`super::reload`]. Stop, at SIGTERM, SIGINT, SIGQUIT, or SIGHUP of a terminal that closes: accept no more, finish what is in flight, bring
//! everything into the store, end. A second signal, a while after the first, ends at once; the journal keeps the rest, and the next start on this host
//! goes on from there. So it does, too, for another process that takes its place ([`super::replace`]). A task that panics ends the process, see [`crate::outside::panics`].

use std::sync::Arc;
use std::time::Duration;

use indicatif::MultiProgress;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{info, warn};

use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::reload::Reloading;
use super::start::{Beginning, Running, start};
use super::{allocator, control, drain, logging, runtime, signals};
use crate::config::{ALL, Effective, Flag};
use crate::human::about_bytes;
use crate::outside::panics;
use crate::volume::OpenFlags;

/// Serves volumes over NBD until SIGTERM or Ctrl-C.
///
/// Without any configuration: the volumes of ./ashlar-data, on 127.0.0.1:10809 and on a Unix socket; if there is none
/// yet, a thin one of 10 GiB called disk0 is made. The lines that attach the volumes are printed.
///
/// With no VOLUME named, every volume of the store can be had, also one that is created later; it is opened when a
/// client first asks for it. Volumes that are named are opened at once.
///
/// The snapshots of a volume that is served can be had beside it, read-only, as VOLUME@SNAPSHOT. If only snapshots are named, nothing is
/// written: any number of servers may serve them, also while another one has the volume, with credentials that can only read.
///
/// The first SIGTERM, Ctrl-C, SIGQUIT, or SIGHUP of a terminal that closes, brings everything into the store before the server
/// ends; a second one, a second or more later, ends it at once, and the journal in the state directory keeps what is not in the
/// store. Under nohup SIGHUP is ignored.
///
/// A server without a terminal, such as one of systemd's, reads its configuration again at SIGHUP: log.level, nbd.access,
/// serve.handoff_timeout, budget and prices take effect at once, and the log says what else has changed and waits for the next start. Volumes that
/// are created later, renewed certificates and `ashlar set` need no signal.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NBD has no passwords: whoever reaches the address can read and write the volumes, unless [nbd.tls] and nbd.access of the
configuration say who may.

Examples:
  ashlar serve
  ashlar serve db logs --store s3://my-bucket/disks --listen 0.0.0.0:10809
  ashlar serve db images --read-only=images
  ashlar serve db --read-only      as another server writes it
  ashlar serve db@monday           that snapshot, and nothing else
  ashlar serve db@2026-11-27T04:00 the newest that was not taken later, in UTC
  ashlar serve --replace           in place of the server that runs here, such as after an upgrade
  ashlar serve --claim rack1       one of several servers that share the volumes of the store
  ashlar serve db --takeover       after the server that had it died with its disk")]
pub struct Args {
    /// The volumes to serve, and snapshots of others; none means all volumes of the store [key: serve.volumes]
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    volumes: Vec<ExportName>,

    /// TCP address to listen on, or "none" [key: serve.listen]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Unix socket to listen on, "auto" or "none" [key: serve.socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,

    /// Memory that the server may take in all, such as 1GiB, or "auto" [key: memory]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// Only read these volumes, or all if none is named: they are not taken, and what the newest checkpoint of their writer holds is served
    /// [key: serve.read_only]
    #[arg(long, value_name = "VOLUME,…", num_args = 0..=1, require_equals = true, default_missing_value = ALL)]
    read_only: Option<String>,

    /// Take the named volumes although another server did not close them; it can then write no more
    #[arg(long, requires = "volumes")]
    takeover: bool,

    /// Go on although changes may be missing that only a lost or damaged journal holds
    #[arg(long, requires = "volumes")]
    accept_loss: bool,

    /// Set aside a journal of the named volumes that they have moved on without, or that cannot be read
    #[arg(long, requires = "volumes")]
    drop_journal: bool,

    /// Go on from an older state of the named volumes than this server has seen, because you restored it
    #[arg(long, requires = "volumes")]
    accept_rollback: bool,

    /// Go on although the store that has the log of the named volumes is lost: what had not moved from there is gone
    #[arg(long, requires = "volumes")]
    accept_log_loss: bool,

    /// Begin although other servers have named volumes: they are opened when a client asks and they are free
    ///
    /// Clients are refused meanwhile, and told who has the volume. `ashlar handoff` lets go of one in good order.
    #[arg(long, requires = "volumes", conflicts_with = "takeover")]
    wait: bool,

    /// Share the volumes with the other servers of this pool, and take those of one that is gone [key: serve.claim]
    ///
    /// Each volume is served by one of the servers that run with the same POOL on the same store; clients name all of them
    /// (`ashlar attach --server A,B`). A server that cannot write any more loses its volumes by fences, so clocks do not matter.
    #[arg(long, value_name = "POOL", conflicts_with_all = ["takeover", "accept_loss", "drop_journal", "accept_rollback", "accept_log_loss", "wait"])]
    claim: Option<String>,

    /// Take the place of the server that runs on this state directory, such as one of an older version
    ///
    /// It brings everything into the store and ends; its clients' connections end, too. If it cannot within
    /// serve.handoff_timeout, it goes on, and this one gives up. If none runs, this is an ordinary start.
    #[arg(long)]
    replace: bool,
}

impl Args {
    /// The flags that set a key of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let names: Vec<String> = self.volumes.iter().map(ExportName::to_string).collect();
        let volumes = (!names.is_empty()).then(|| names.join(","));
        let flags = [
            ("VOLUME", "serve.volumes", volumes),
            ("--listen", "serve.listen", self.listen.clone()),
            ("--socket", "serve.socket", self.socket.clone()),
            ("--memory", "memory", self.memory.clone()),
            ("--read-only", "serve.read_only", self.read_only.clone()),
            ("--claim", "serve.claim", self.claim.clone()),
        ];
        flags.into_iter().filter_map(|(name, key, value)| Some(Flag { name, key, value: value? })).collect()
    }

    fn beginning(&self) -> Beginning {
        Beginning { flags: self.open_flags(), replace: self.replace, wait: self.wait }
    }

    fn open_flags(&self) -> OpenFlags {
        OpenFlags {
            takeover: self.takeover,
            accept_loss: self.accept_loss,
            drop_journal: self.drop_journal,
            accept_rollback: self.accept_rollback,
            accept_log_loss: self.accept_log_loss,
            breaks_line: false,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, reloading: Reloading<'_>, bars: &MultiProgress) -> Outcome {
    panics::end_the_process(|words| logging::say_last(&format!("ashlar: {words}")));
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(args, config, reloading, bars));
    // Whatever is still under way is given up, so that a second signal does not wait for it.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &Args, config: &Effective, mut reloading: Reloading<'_>, bars: &MultiProgress) -> Outcome {
    let mut signals = Signals::listen()?;
    let running = tokio::select! {
        started = start(config, args.beginning()) => started?,
        () = signals.first() => return Err(Failure::LeftEarly),
    };
    if let Err(error) = logging::print_aside(running.welcome.clone()) {
        warn!("the lines that attach the volumes cannot be printed: {error}");
    }
    notify(&[NotifyState::Ready]);
    let server = Arc::clone(&running.server);
    tokio::spawn(async move { server.run().await });
    tokio::spawn(allocator::give_back_when_quiet());
    if let Some(timeout) = sd_notify::watchdog_enabled() {
        tokio::spawn(feed_watchdog(timeout));
    }
    let patience = loop {
        tokio::select! {
            wish = signals.wish() => match wish {
                Wish::Stop => break None,
                Wish::Reload => {}
            },
            () = running.leave.notified() => break Some(reloading.latest().serve.handoff_timeout),
        }
        notify(&[NotifyState::Reloading]);
        // A file of some KiB, and then locks that nobody holds for long.
        tokio::task::block_in_place(|| reloading.reload(&running));
        notify(&[NotifyState::Ready]);
    };
    let stopping_since = Instant::now();
    notify(&[NotifyState::Stopping, drain::more_time()]);
    match patience {
        None => info!("stopping: bringing everything into the store; one more signal, in 1 s or later, leaves at once"),
        Some(_) => info!("stopping: another process takes the place of this one; bringing everything into the store"),
    }
    let is_announced = patience.is_some();
    tokio::select! {
        outcome = stop(&running, is_announced, config, bars) => outcome,
        () = signals.another(stopping_since) => Err(leave_early(&running, config)),
        () = elapsed(patience) => Err(leave_to_the_next(&running, config)),
    }
}

/// Waits so long; for ever, if that is not said.
async fn elapsed(patience: Option<Duration>) {
    match patience {
        Some(patience) => tokio::time::sleep(patience).await,
        None => std::future::pending().await,
    }
}

async fn stop(running: &Running, is_announced: bool, config: &Effective, bars: &MultiProgress) -> Outcome {
    if !is_announced {
        control::announce(None, &running.server, &running.exports).await;
    }
    running.server.shutdown().await;
    let problems = drain::close_all(&running.exports, bars).await;
    if problems.is_empty() {
        // Who takes this one's place is the same server.
        if let Some(claiming) = running.claiming.as_ref().filter(|_| !is_announced) {
            claiming.leave().await;
        }
        info!("everything is in the store");
        return Ok(());
    }
    // Why has been said when it happened.
    let names: Vec<&str> = problems.iter().map(|(name, _)| name.as_str()).collect();
    let which = match names.as_slice() {
        [one] => format!("volume {one}"),
        several => format!("volumes {}", several.join(", ")),
    };
    let state = config.state.display();
    Err(Failure::failed(format!(
        "{which} did not close, see above; what is not in the store is in the journal in {state}"
    )))
}

fn leave_to_the_next(running: &Running, config: &Effective) -> Failure {
    let dirty: u64 = running.exports.dirty_bytes().iter().map(|(_, bytes)| bytes).sum();
    Failure::failed(format!(
        "leaving to the next server: {} not in the store within serve.handoff_timeout; the journal in {} keeps them for it",
        about_bytes(dirty),
        config.state.display()
    ))
}

fn leave_early(running: &Running, config: &Effective) -> Failure {
    let dirty: u64 = running.exports.dirty_bytes().iter().map(|(_, bytes)| bytes).sum();
    let state = config.state.display();
    warn!(
        "leaving at the second signal: {} not in the store yet; the journal in {state} keeps what was acknowledged, and \
         the next start on this host goes on from there",
        about_bytes(dirty)
    );
    Failure::LeftEarly
}

/// What a signal says.
enum Wish {
    Stop,
    Reload,
}

/// The signals that a server listens to.
struct Signals {
    /// SIGTERM, SIGINT and SIGQUIT: said twice, with [`signals::SECOND_AFTER`] between, they mean at once.
    stop: Vec<Signal>,
    /// SIGHUP, unless it was ignored at the start: of a terminal that closes, which may send it twice.
    hang_up: Option<Signal>,
    /// SIGHUP where there is no terminal: the configuration is to be read again.
    reload: Option<Signal>,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::failed);
        let stop = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let hang_up = (!signals::is_ignored(SignalKind::hangup())).then(|| listen(SignalKind::hangup())).transpose()?;
        let (hang_up, reload) = match signals::has_terminal() {
            true => (hang_up, None),
            false => (None, hang_up),
        };
        Ok(Signals { stop: stop.into_iter().map(listen).collect::<Result<_, _>>()?, hang_up, reload })
    }

    /// Waits for a signal that says something to a server that runs.
    async fn wish(&mut self) -> Wish {
        let Signals { stop, hang_up, reload } = self;
        tokio::select! {
            biased;
            () = signals::any(hang_up.iter_mut().chain(stop)) => Wish::Stop,
            () = signals::any(reload) => Wish::Reload,
        }
    }

    /// Waits for the first signal to stop, of any kind.
    async fn first(&mut self) {
        signals::any(self.hang_up.iter_mut().chain(&mut self.stop)).await;
    }

    /// Waits for one that means at once, after a first one at `first_at`.
    async fn another(&mut self, first_at: Instant) {
        loop {
            signals::any(&mut self.stop).await;
            if signals::is_second(first_at.elapsed()) {
                return;
            }
        }
    }
}

/// Tells systemd that this process lives, twice in the time that it waits for it. A runtime whose threads all hang says nothing.
async fn feed_watchdog(timeout: Duration) {
    let mut ticks = tokio::time::interval(timeout / 2);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Tells systemd, if it started this process; without it this does nothing.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager cannot be told: {error}");
    }
}
