//! `ashlar doctor`: looks at everything that a disk needs, as somebody whose disk does not work would, and says what to do.
//!
//! Each part looks, and then judges what it saw with plain functions: the [`machine`], the [`state`] directory and its disk, the [`store`], the [`peer`], the
//! [`server`] that has the state directory, the [`devices`] of this host. What others find out already is asked of them: the
//! configuration's own checks, the probe of the store, what `bench` measures, what a server says of itself. Nothing is changed: objects and
//! files that are needed for a trial are deleted again, and no volume is opened.

use indicatif::MultiProgress;

use self::finding::{About, Finding, Findings};
use super::failure::{Failure, Outcome};
use super::{config_check, control, logging, output, runtime};
use crate::config::Effective;

mod finding;
mod machine;
mod state;
mod store;
mod peer;
mod server;
mod devices;

/// Looks at the configuration, the machine, the state directory, the store, the peer, the server and the devices, and says what is wrong and what to do.
///
/// The worst comes first, one sentence each. What is doubtful works, but costs or will cost something; what is good was looked at. Run it
/// as the user that serves, with the configuration of the server.
///
/// Nothing is changed. In the store, objects below .ashlar-probe/ and .ashlar-bench/ are written, read and deleted (some 500 requests,
/// and 64 MiB each way, at most), while servers go on. In a bucket that keeps old versions, where they would stay, the speed is not measured.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 0 if nothing is wrong, be something doubtful; else 1.

Examples:
  ashlar doctor
  ashlar doctor --config /etc/ashlar/ashlar.toml --json")]
pub struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. A configuration that cannot be had is a finding like others.
pub fn run(args: &Args, config: Result<Effective, Failure>, bars: &MultiProgress) -> Outcome {
    let findings = match config {
        Err(why) => vec![About::Configuration.wrong(why.to_string())],
        Ok(config) => {
            // A log that cannot be had is among what is found.
            let _ = logging::start(&config, bars, logging::Speaker::Command);
            let runtime = runtime()?;
            let findings = runtime.block_on(look(&config));
            // A device that does not answer holds a thread for as long as it likes.
            runtime.shutdown_background();
            findings
        }
    };
    let findings = Findings::new(findings);
    match args.json {
        true => output::json(&findings)?,
        false => output::text(findings.lines())?,
    }
    if findings.wrong > 0 { Err(Failure::Unwell) } else { Ok(()) }
}

async fn look(config: &Effective) -> Vec<Finding> {
    let asked = control::ask(&config.state).await;
    let pid = asked.as_ref().ok().map(|status| status.pid);
    let mut findings = configuration(config).await;
    findings.extend(machine::look(config, pid));
    findings.extend(state::look(config).await);
    let (of_store, url) = store::look(config).await;
    findings.extend(of_store);
    findings.extend(peer::look(config, pid.is_some()).await);
    findings.extend(server::look(config, &asked, url.as_deref()).await);
    findings.extend(devices::look().await);
    findings
}

async fn configuration(config: &Effective) -> Vec<Finding> {
    let faults = config_check::faults(config).await;
    let set = config.keys_set();
    match faults.is_empty() {
        true => vec![About::Configuration.good(format!("a server takes the configuration; it sets {set} of its keys"))],
        false => faults.into_iter().map(|fault| About::Configuration.wrong(fault)).collect(),
    }
}
