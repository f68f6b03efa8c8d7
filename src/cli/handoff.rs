//! `ashlar handoff`: gives one volume of a running server to another host.

use super::failure::{Failure, Outcome};
use super::{control, output, runtime, status};
use crate::config::Effective;
use crate::volume::VolumeName;

/// Closes one volume of the server on this host, so that a server on another host can open it without --takeover.
///
/// The server brings everything into the store while it goes on serving, then ends the connections of the volume's clients and closes it.
/// From then on it tells whoever asks for the volume where it went. If the store does not take everything within
/// serve.handoff_timeout, the volume stays where it is. The other server need not be told: one that serves all volumes, or was started
/// with --wait, opens it when a client asks.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar handoff db --to host2
  ashlar handoff db --back         serve it here again, if nobody else has it")]
pub struct Args {
    /// The volume's name
    name: VolumeName,

    /// Where clients find it from now on: a host, an address, or any words that help them
    #[arg(long, value_name = "HOST", required_unless_present = "back", value_parser = parse_place)]
    to: Option<String>,

    /// Forget that it was handed over: it is opened here again when a client asks
    #[arg(long, conflicts_with = "to")]
    back: bool,
}

/// The longest name of a place, in bytes: it must fit into an answer of NBD.
const PLACE_MAX: usize = 255;

fn parse_place(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it names no place".to_owned()),
        place if place.len() > PLACE_MAX || place.chars().any(char::is_control) => {
            Err(format!("accepted is one line of at most {PLACE_MAX} bytes"))
        }
        place => Ok(place.to_owned()),
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let said = runtime()?.block_on(hand_over(args, config))?;
    output::text(said)
}

async fn hand_over(args: &Args, config: &Effective) -> Result<String, Failure> {
    let (name, state) = (&args.name, &config.state);
    let running = control::ask(state).await.map_err(|error| status::no_answer(state, &error))?;
    let Some(to) = &args.to else {
        control::take_back(state, name).await.map_err(Failure::failed)?;
        return Ok(format!("volume {name} is opened here again when a client asks for it"));
    };
    if !running.volumes.iter().any(|volume| volume.name == name.as_str()) {
        return Err(Failure::failed(format!(
            "volume {name} is not open on the server on {}: there is nothing to hand over",
            state.display()
        )));
    }
    let within = config.serve.handoff_timeout;
    let stays = |why: String| Failure::failed(format!("volume {name} stays here: {why}"));
    control::settle(state, Some(name), within).await.map_err(stays)?;
    control::hand_over(state, name, to, within).await.map_err(Failure::failed)?;
    Ok(format!("volume {name} is closed here; a server on {to} can open it now"))
}
