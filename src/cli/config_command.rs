//! `ashlar config`: the configuration in effect.

use std::path::{Path, PathBuf};

use super::failure::Outcome;
use super::output;
use crate::config::Effective;

/// Prints every key with its value in effect, as TOML; a comment names the file, the variable or the flag that set it.
///
/// Secrets are masked. The output is a complete configuration file.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Examples:\n  ashlar config\n  ashlar config check /etc/ashlar/ashlar.toml\n  ASHLAR_LOG__LEVEL=debug ashlar config --json"
)]
pub struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What else can be done.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Says whether a server would take a configuration file, and what is wrong with it if it would not
    ///
    /// Only the file counts: no variables and no flags. Keys, values, names of volumes, certificates, keys and the token are looked at,
    /// as a server does when it starts; the store is not asked. Exit code 0 if all is well, else 2.
    Check {
        /// The file
        file: PathBuf,
    },
}

impl Args {
    /// The file that is to be checked, whatever the configuration in effect is.
    pub fn file_to_check(&self) -> Option<&Path> {
        self.command.as_ref().map(|Command::Check { file }| file.as_path())
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    match args.json {
        true => output::json(&config.to_json()),
        false => output::text(config.to_toml().trim_end()),
    }
}
