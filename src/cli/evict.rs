//! `ashlar evict`: ends the connections of clients, such as those of a host that is gone.

use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::{control, output, runtime, status};
use crate::config::Effective;

/// Ends the connections of a volume's clients, so that another host can attach it.
///
/// What a client sent in full is still carried out, and replies are thrown away. A client that is alive may come back at
/// once: detach it there, or it will. A host that is gone is found out by itself within nbd.client_timeout.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
`ashlar status` lists the clients.

Examples:
  ashlar evict db                     all of its clients
  ashlar evict db 10.0.0.5            those of one host
  ashlar evict db 10.0.0.5:51234      one connection")]
pub struct Args {
    /// The volume, or a snapshot of it
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    export: ExportName,

    /// Only clients of this address, with or without its port
    address: Option<String>,

    /// Print a JSON list of the addresses
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let Args { export, address, json } = args;
    let asked = runtime()?.block_on(control::evict(&config.state, export, address.as_deref()));
    let evicted = asked.map_err(|error| status::no_answer(&config.state, &error))?;
    if evicted.is_empty() {
        let whose = address.as_ref().map_or_else(String::new, |address| format!(" from {address}"));
        return Err(Failure::failed(format!(
            "volume {export} has no client{whose} on this server; `ashlar status` lists the clients"
        )));
    }
    match json {
        true => output::json(&evicted),
        false => {
            output::text(evicted.iter().map(|address| format!("evicted {address}")).collect::<Vec<_>>().join("\n"))
        }
    }
}
