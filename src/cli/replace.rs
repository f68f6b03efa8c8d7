//! `ashlar serve --replace`: takes the place of the server that has the state directory, on the same host.
//!
//! 1. What can be tried beforehand is tried beforehand: the store answers, the volumes that were named are there, and their keys open
//!    them. The server that runs must have the same store.
//! 2. That server is asked to bring everything into the store, and goes on serving meanwhile. If it does not within
//!    `serve.handoff_timeout`, or does not answer, it stays, and this one gives up.
//! 3. It is asked to leave. It ends like after SIGTERM: what is in flight is answered, connections close, volumes are closed. What it
//!    cannot bring into the store within `serve.handoff_timeout` it leaves in the journal.
//! 4. This one takes the state directory as soon as that is free, and begins as ever: whatever a journal holds comes back.
//!
//! From step 3 on it is a stop and a start. Clients are refused or not answered in between, and come back by themselves if they can.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::control;
use super::document::ServerStatus;
use super::failure::Failure;
use super::outside::State;
use super::{secrets, status};
use crate::config::Effective;
use crate::opening::description;
use crate::outside::Random;
use crate::store::Store;
use crate::volume::VolumeName;

/// How much longer than the other server takes at most this one waits for it to be gone.
const MARGIN: Duration = Duration::from_secs(10);

/// The state directory, after whoever had it has left; at once if nobody has it.
pub async fn take(
    config: &Effective,
    store: &Arc<dyn Store>,
    wanted: &[VolumeName],
    random: &Random,
) -> Result<State, Failure> {
    let running = match control::ask(&config.state).await {
        Ok(running) => running,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return State::take(config, random).await;
        }
        Err(error) => return Err(status::no_answer(&config.state, &error)),
    };
    check(config, &running, &**store, wanted).await?;
    let (pid, within) = (running.pid, config.serve.handoff_timeout);
    let stays = |why: String| Failure::failed(format!("the server that runs (process {pid}) goes on: {why}"));
    info!("asking the server that runs (process {pid}) to bring everything into the store, and then to leave");
    control::settle(&config.state, None, within).await.map_err(stays)?;
    control::leave(&config.state).await.map_err(stays)?;
    State::take_within(config, random, within + MARGIN).await
}

/// Step 1.
async fn check(
    config: &Effective,
    running: &ServerStatus,
    store: &dyn Store,
    wanted: &[VolumeName],
) -> Result<(), Failure> {
    let url = store.url();
    if url != running.store {
        return Err(Failure::usage(format!(
            "the server on {} (process {}) has the store {}, and this one would have {url}: --replace is for the same store",
            config.state.display(),
            running.pid,
            running.store
        )));
    }
    if url.starts_with("memory:") {
        return Err(Failure::usage(
            "a store in memory ends with its process: there is nothing that --replace could keep",
        ));
    }
    for name in wanted {
        description::load(store, name).await?.unlock(&secrets::of(config)).await?;
    }
    Ok(())
}
