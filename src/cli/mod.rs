//! The command line: one file for each command, and what they share.
//!
//! A command reads the configuration ([`crate::config`]), opens what it needs from the outside, does one thing and ends
//! with an exit code that a script can rely on ([`failure`]). Results go to standard output, as text or, with `--json`,
//! as one JSON document; everything else (the log, bars, questions) goes to standard error.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use indicatif::MultiProgress;
use tokio::runtime::{self, Runtime};

use crate::config::{self, Effective, Flag, Inputs};
use crate::memory::Machine;

mod serve;
mod start;
mod replace;
mod exports;
mod store_volumes;
mod keeping;
mod life;
mod client_lines;
mod attach;
mod detach;
mod drain;
mod snapshot;
mod export_name;
mod wanted;
mod claim;
mod signals;
mod create;
mod clone;
mod image;
mod copy;
mod promote;
mod diff;
mod list;
mod info;
mod status;
mod top;
mod document;
mod doing;
mod trouble;
mod tier;
mod upgrade;
mod control;
mod telling;
mod evict;
mod handoff;
mod warm;
mod check;
mod set;
mod settings;
mod resize;
mod key;
mod rollback;
mod rotate;
mod schedule;
mod delete;
mod bench;
mod doctor;
mod config_command;
mod config_check;
mod reload;
mod doors;
mod tls;
mod outside;
mod probes;
mod secrets;
mod hygiene;
mod files;
pub mod allocator;
mod output;
mod peers;
mod logging;
mod failure;

use client_lines::Quoted;
use failure::{Failure, Outcome};
use image::Called;
use logging::Speaker;
use reload::Reloading;

/// Runs the command that the arguments name, and returns the exit code.
pub fn run() -> ExitCode {
    // clap prints usage errors by itself and exits with 2.
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => {
            logging::finish();
            ExitCode::SUCCESS
        }
        Err(failure) => failure.report(),
    }
}

/// The command line as plain data, for its manual.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Block devices out of object storage.
///
/// ashlar keeps volumes in a directory or a bucket and serves them as disks over NBD, the Linux kernel's network block
/// device. Begin with `ashlar serve`: it makes a first volume and prints the command that attaches it.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    /// Read this configuration file instead of ./ashlar.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the volumes live: file://PATH, s3://BUCKET/PREFIX, sftp://HOST/PATH, webdavs://HOST/PATH, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or memory:// [key: store.url]
    #[arg(long, global = true, value_name = "URL")]
    store: Option<String>,

    /// Directory for this server's identity and journals [key: state]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<String>,

    /// File with the passphrase, or recovery key, of encrypted volumes; {volume} is the name [key: keys.passphrase_file]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Keys")]
    passphrase_file: Option<String>,

    /// File with 32 random bytes or more that opens encrypted volumes [key: keys.key_file]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Keys")]
    key_file: Option<String>,

    /// Shell command that prints the passphrase of encrypted volumes [key: keys.command]
    #[arg(long, global = true, value_name = "COMMAND", help_heading = "Keys")]
    key_command: Option<String>,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Configuration: built-in defaults < ashlar.toml < ASHLAR_* environment < flags. `ashlar config` prints what is in effect.

Exit codes:
  0    done; for check: no damage
  1    failed; for doctor: something is wrong; for serve: also when data could not be brought into the store before the end
  2    wrong usage or configuration
  3    check found damage
  4    the volume is encrypted, and the key is missing or wrong
  70   a part of the server failed, which is a bug; the journal keeps what is not in the store
  130  serve was told to stop twice, or before it had begun, and left at once; the journal keeps what is not in the store

Examples:
  ashlar serve
  ashlar create db --size 100G --store s3://my-bucket/disks
  ashlar serve db --store s3://my-bucket/disks
  ashlar check db --data";

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Create(create::Args),
    List(list::Args),
    Info(info::Args),
    Status(status::Args),
    Top(top::Args),
    Evict(evict::Args),
    Handoff(handoff::Args),
    Warm(warm::Args),
    Attach(attach::Args),
    Detach(detach::Args),
    Check(check::Args),
    Set(set::Args),
    Resize(resize::Args),
    Snapshot(snapshot::Args),
    Rollback(rollback::Args),
    Clone(clone::Args),
    Diff(diff::Args),
    Copy(copy::Args),
    Promote(promote::Args),
    Import(image::ImportArgs),
    Export(image::ExportArgs),
    Upgrade(upgrade::Args),
    Tier(tier::Args),
    Key(key::Args),
    Delete(delete::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Tls(tls::Args),
    Config(config_command::Args),
}

impl Command {
    fn speaker(&self) -> Speaker {
        match self {
            Command::Serve(_) | Command::Attach(_) => Speaker::Service,
            _ => Speaker::Command,
        }
    }
}

impl Cli {
    fn run(self) -> Outcome {
        if let Command::Config(args) = &self.command
            && let Some(file) = args.file_to_check()
        {
            return config_check::run(file);
        }
        if let Command::Doctor(args) = &self.command {
            return doctor::run(args, effective(self.config.clone(), self.flags()), &MultiProgress::new());
        }
        let flags = self.flags();
        let config = effective(self.config.clone(), flags.clone())?;
        let bars = MultiProgress::new();
        logging::start(&config, &bars, self.command.speaker())?;
        match self.command {
            Command::Serve(args) => serve::run(&args, &config, Reloading::new(self.config, flags, &config), &bars),
            Command::Create(args) => create::run(&args, &config, &said_again(self.config.as_deref(), &flags)),
            Command::List(args) => list::run(&args, &config),
            Command::Info(args) => info::run(&args, &config),
            Command::Status(args) => status::run(&args, &config),
            Command::Top(args) => top::run(&args, &config),
            Command::Evict(args) => evict::run(&args, &config),
            Command::Handoff(args) => handoff::run(&args, &config),
            Command::Warm(args) => warm::run(&args, &config, &bars),
            Command::Attach(args) => attach::run(&args, &config),
            Command::Detach(args) => detach::run(&args),
            Command::Set(args) => set::run(&args, &config),
            Command::Resize(args) => resize::run(&args, &config),
            Command::Snapshot(args) => snapshot::run(&args, &config),
            Command::Rollback(args) => rollback::run(&args, &config),
            Command::Clone(args) => clone::run(&args, &config, &bars),
            Command::Diff(args) => diff::run(&args, &config),
            Command::Copy(args) => copy::run(&args, &config, self.config, &bars),
            Command::Promote(args) => promote::run(&args, &config),
            Command::Import(args) => image::import(&args, &config, &Called { file: self.config, flags }),
            Command::Export(args) => image::export(&args, &config, &Called { file: self.config, flags }),
            Command::Upgrade(args) => upgrade::run(&args, &config),
            Command::Tier(args) => tier::run(&args, &config),
            Command::Key(args) => key::run(&args, &config, &bars),
            Command::Check(args) => check::run(&args, &config, &bars),
            Command::Delete(args) => delete::run(&args, &config, &bars),
            Command::Bench(args) => bench::run(&args, &config, &bars),
            // It is without a configuration, too, and has run already.
            Command::Doctor(args) => doctor::run(&args, Ok(config), &bars),
            Command::Tls(args) => tls::run(&args, outside::real().0.unix_millis()),
            Command::Config(args) => config_command::run(&args, &config),
        }
    }

    /// The flags that set a key of the configuration.
    fn flags(&self) -> Vec<Flag> {
        let common = [
            ("--store", "store.url", &self.store),
            ("--state", "state", &self.state),
            ("--passphrase-file", "keys.passphrase_file", &self.passphrase_file),
            ("--key-file", "keys.key_file", &self.key_file),
            ("--key-command", "keys.command", &self.key_command),
        ];
        let common =
            common.into_iter().filter_map(|(name, key, value)| Some(Flag { name, key, value: value.clone()? }));
        let own = match &self.command {
            Command::Serve(args) => args.flags(),
            Command::Warm(args) => args.flags(),
            Command::Bench(args) => args.flags(),
            _ => Vec::new(),
        };
        common.chain(own).collect()
    }
}

/// The flags, but for the store, as a shell reads them: for a hint at the next command, which finds nothing of that by itself. It
/// reads ashlar.toml, and the same variables.
fn said_again(file: Option<&Path>, flags: &[Flag]) -> String {
    let file = file.map(|file| format!(" --config {}", Quoted(file)));
    let others = flags.iter().filter(|flag| flag.key != "store.url");
    file.into_iter().chain(others.map(|flag| format!(" {} {}", flag.name, Quoted(Path::new(&flag.value))))).collect()
}

/// Where commands run.
fn runtime() -> Result<Runtime, Failure> {
    allocator::limit_arenas();
    runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)
}

fn effective(file: Option<PathBuf>, flags: Vec<Flag>) -> Result<Effective, Failure> {
    let environment = std::env::vars_os().collect();
    Ok(config::load(Inputs { file, environment, flags, machine: Machine::look() })?)
}
