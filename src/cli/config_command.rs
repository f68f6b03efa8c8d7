//! `ashlar config`: the configuration in effect.

use super::failure::Outcome;
use super::output;
use crate::config::Effective;

/// Prints every key with its value in effect, as TOML; a comment names the file, the variable or the flag that set it.
///
/// Secrets are masked. The output is a complete configuration file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ashlar config\n  ASHLAR_LOG__LEVEL=debug ashlar config --json")]
pub struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    match args.json {
        true => output::json(&config.to_json()),
        false => output::text(config.to_toml().trim_end()),
    }
}
