//! `ashlar serve`: volumes over NBD, until a signal.
//!
//! Start: see [`super::start`]. Stop, at SIGTERM or SIGINT: accept no more, finish what is in flight, bring everything into the store, end. A second
//! signal ends at once; the journal keeps the rest, and the next start on this host goes on from there.

use std::sync::Arc;

use indicatif::MultiProgress;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::failure::{Failure, Outcome};
use super::start::{Running, start};
use super::{drain, output, runtime};
use crate::config::{Effective, Flag};
use crate::human::about_bytes;
use crate::volume::{OpenFlags, VolumeName};

/// Serves volumes over NBD until SIGTERM or Ctrl-C.
///
/// Without any configuration: the volumes of ./ashlar-data, on 127.0.0.1:10809 and on a Unix socket; if there is none
/// yet, a thin one of 10 GiB called disk0 is made. The lines that attach the volumes are printed.
///
/// With no VOLUME named, every volume of the store can be had, also one that is created later; it is opened when a
/// client first asks for it. Volumes that are named are opened at once.
///
/// The first SIGTERM or Ctrl-C brings everything into the store before the server ends; a second one ends it at once,
/// and the journal in the state directory keeps what is not in the store.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NBD has no passwords: whoever reaches the address can read and write the volumes.

Examples:
  ashlar serve
  ashlar serve db logs --store s3://my-bucket/disks --listen 0.0.0.0:10809
  ashlar serve db --takeover       after the server that had it died with its disk")]
pub struct Args {
    /// The volumes to serve; none means all of the store [key: serve.volumes]
    #[arg(value_name = "VOLUME")]
    volumes: Vec<VolumeName>,

    /// TCP address to listen on, or "none" [key: serve.listen]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Unix socket to listen on, "auto" or "none" [key: serve.socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,

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
}

impl Args {
    /// The flags that set a key of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let names: Vec<&str> = self.volumes.iter().map(VolumeName::as_str).collect();
        let volumes = (!names.is_empty()).then(|| names.join(","));
        let flags = [
            ("VOLUME", "serve.volumes", volumes),
            ("--listen", "serve.listen", self.listen.clone()),
            ("--socket", "serve.socket", self.socket.clone()),
        ];
        flags.into_iter().filter_map(|(name, key, value)| Some(Flag { name, key, value: value? })).collect()
    }

    fn open_flags(&self) -> OpenFlags {
        OpenFlags {
            takeover: self.takeover,
            accept_loss: self.accept_loss,
            drop_journal: self.drop_journal,
            accept_rollback: self.accept_rollback,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(args, config, bars));
    // Whatever is still under way is given up, so that a second signal does not wait for it.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let mut signals = Signals::listen()?;
    let running = tokio::select! {
        started = start(config, args.open_flags()) => started?,
        () = signals.next() => return Err(Failure::LeftEarly),
    };
    output::text(&running.welcome)?;
    notify(&[NotifyState::Ready]);
    let server = Arc::clone(&running.server);
    tokio::spawn(async move { server.run().await });
    signals.next().await;
    notify(&[NotifyState::Stopping, drain::more_time()]);
    info!("stopping: bringing everything into the store; a second signal leaves at once");
    tokio::select! {
        outcome = stop(&running, config, bars) => outcome,
        () = signals.next() => Err(leave_early(&running, config)),
    }
}

async fn stop(running: &Running, config: &Effective, bars: &MultiProgress) -> Outcome {
    running.server.shutdown().await;
    let problems = drain::close_all(&running.exports, bars).await;
    if problems.is_empty() {
        info!("everything is in the store");
        return Ok(());
    }
    let state = config.state.display();
    let said = problems.iter().map(|(name, why)| format!("volume {name} did not close: {why}"));
    let rest = format!("what is not in the store is in the journal in {state}");
    Err(Failure::Failed(said.chain([rest]).collect::<Vec<_>>().join("\nashlar: ")))
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

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::failed);
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells systemd, if it started this process; without it this does nothing.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager cannot be told: {error}");
    }
}
