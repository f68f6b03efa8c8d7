//! `ashlar detach`: ends a device, with or without the process that keeps it attached, with or without a server.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use super::attach::attached;
use super::failure::{Failure, Outcome};
use super::{output, runtime};
use crate::attach::kernel::{Kernel, KernelError};
use crate::attach::linux::Linux;
use crate::attach::sysfs;
use crate::outside::Workers;

/// How long the end of a device may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to see whether a device is in use.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is looked whether it is over.
const POLL: Duration = Duration::from_millis(50);

/// Ends a disk that `ashlar attach`, or another NBD client, attached to this host.
///
/// One that is in use (mounted, swap, below another device) is left alone, unless --force is given: then whatever waits for it gets an
/// error, and the device is free when the last that has it open lets go of it. That works also when its server, or its `ashlar
/// attach`, is gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar detach db\n  ashlar detach /dev/nbd0 --force")]
pub struct Args {
    /// The device, such as /dev/nbd0, or the volume
    #[arg(value_name = "DEVICE|VOLUME")]
    what: String,

    /// Detach it although it is in use
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let runtime = runtime()?;
    let outcome = runtime.block_on(detach(args));
    runtime.shutdown_background();
    outcome
}

async fn detach(args: &Args) -> Outcome {
    let kernel = Linux::open().map_err(Failure::failed)?;
    let devices = attached(&kernel).await.map_err(Failure::failed)?;
    let device = find(&args.what, &devices, sysfs::backend_of)?;
    detach_one(&kernel, device, args.force).await
}

/// The device that is meant.
fn find(what: &str, devices: &[u32], backend_of: impl Fn(u32) -> Option<String>) -> Result<u32, Failure> {
    let found: Vec<u32> = match sysfs::number(what) {
        Some(number) => devices.iter().copied().filter(|device| *device == number).collect(),
        None => {
            let is_meant =
                |device: &u32| backend_of(*device).is_some_and(|backend| sysfs::volume_of(&backend) == Some(what));
            devices.iter().copied().filter(is_meant).collect()
        }
    };
    match found[..] {
        [device] => Ok(device),
        // Two servers may have a volume of that name each, and a RAID may be on both.
        [_, _, ..] => {
            let paths = found.iter().map(|device| sysfs::path(*device).display().to_string()).collect::<Vec<_>>();
            Err(Failure::failed(format!("{what} is attached more than once: name one of {}", paths.join(", "))))
        }
        [] => Err(Failure::failed(format!("{what} is not attached; `ashlar attach --list` shows what is"))),
    }
}

async fn detach_one(kernel: &Linux, device: u32, force: bool) -> Outcome {
    let path = sysfs::path(device);
    let path = path.display();
    if !force && is_in_use(device).await {
        return Err(Failure::failed(format!(
            "{path} is in use (mounted, swap, or below another device); let go of it first, or give --force: what is \
             not written yet is then lost"
        )));
    }
    let by = sysfs::attached_by(device).and_then(sysfs::supervisor);
    let told = by.is_some_and(|process| tell(process, force));
    if told {
        wait_until(|| sysfs::attached_by(device).and_then(sysfs::supervisor).is_none()).await;
    }
    if !told || force && sysfs::attached_by(device).is_some() {
        end(kernel, device).await?;
    }
    if wait_until_gone(device, force).await {
        return output::text(format!("detached {path}"));
    }
    match force {
        true => output::text(format!("ended {path}; it is free when whoever has it open lets go of it")),
        false => Err(Failure::failed(format!("{path} was not let go of within {} s; see --force", PATIENCE.as_secs()))),
    }
}

/// One that cannot be looked at is taken to be in use.
async fn is_in_use(device: u32) -> bool {
    let look = Workers::Threads.run(move || sysfs::is_claimed(device).unwrap_or(true));
    timeout(LOOK, look).await.unwrap_or(true)
}

fn tell(process: u32, force: bool) -> bool {
    let signal = if force { Signal::QUIT } else { Signal::TERM };
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    process.is_some_and(|process| kill_process(process, signal).is_ok())
}

async fn end(kernel: &Linux, device: u32) -> Outcome {
    match timeout(PATIENCE, kernel.disconnect(device)).await {
        Ok(Ok(()) | Err(KernelError::NotAttached(_))) => Ok(()),
        Ok(Err(error)) => Err(Failure::failed(error)),
        Err(_) => Err(Failure::failed(format!(
            "the kernel does not let go of {}: a request is stuck in a connection that nobody ends; end the server, or what is \
             between, and try again",
            sysfs::path(device).display()
        ))),
    }
}

/// Whether the device is free in time. Of one that is in use, the kernel shows it no more only when the last user has left.
async fn wait_until_gone(device: u32, force: bool) -> bool {
    if force && is_in_use(device).await {
        return false;
    }
    wait_until(|| sysfs::attached_by(device).is_none()).await
}

async fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_detached_by_name_only_where_that_is_one_device() {
        let backend_of = |device| match device {
            0 | 1 => Some(sysfs::backend("disk0", "a uuid")),
            2 => Some(sysfs::backend("db", "a uuid")),
            _ => None,
        };
        let found = |what| find(what, &[0, 1, 2, 3], backend_of).map_err(|failure| format!("{failure:?}"));
        assert_eq!(found("db"), Ok(2));
        assert_eq!(found("/dev/nbd1"), Ok(1));
        assert_eq!(found("nbd3"), Ok(3));
        assert!(found("disk0").unwrap_err().contains("name one of /dev/nbd0, /dev/nbd1"));
        for absent in ["other", "nbd4"] {
            assert!(found(absent).unwrap_err().contains("is not attached"), "{absent}");
        }
    }
}
