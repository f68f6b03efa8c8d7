//! `ashlar key rotate`: a new data key, and the progress of what is sealed anew with it.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::signal::ctrl_c;

use super::control;
use super::create::recovery_text;
use super::failure::{Failure, Outcome};
use super::key::Place;
use super::output;
use super::outside::{self, Cache, State};
use super::secrets;
use super::store_volumes::StoreVolumes;
use crate::config::Effective;
use crate::human::{about_bytes, few};
use crate::keyring::SlotKind;
use crate::opening::key_slots::{self, Rotation};
use crate::outside::Random;
use crate::volume::{OpenFlags, Status, VolumeError, VolumeName};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Runs the command.
pub async fn run(name: &VolumeName, drop_other_slots: bool, config: &Effective, bars: &MultiProgress) -> Outcome {
    let place = Place::open(config).await?;
    let slots = key_slots::list(&*place.store, name).await?.slots;
    let others = slots.iter().filter(|slot| slot.kind != SlotKind::Recovery).count().saturating_sub(1);
    if others > 0 && !drop_other_slots {
        return Err(Failure::usage(format!(
            "volume {name} has {others} more key slots, whose secrets are not here to be given the new data key: give \
             --drop-other-slots to lose them, and add them again afterwards"
        )));
    }
    let Rotation { generation, clones, recovery, outcome } = place.slots(name).rotate(secrets::cost()).await?;
    if let (Err(_), Some(key)) = (&outcome, &recovery) {
        let text = recovery_text(&key.to_text());
        output::text(format!(
            "if this change took effect although it failed, volume {name} has another recovery key now{text}"
        ))?;
    }
    outcome?;
    let recovery = recovery.map_or_else(String::new, |key| {
        recovery_text(&key.to_text())
            + "  It takes the place of all earlier recovery keys, which open the volume no longer.\n"
    });
    let given = match clones.is_empty() {
        true => String::new(),
        false => format!("; its clones have it, too: {}", few(clones.iter().map(String::as_str))),
    };
    output::text(format!("volume {name} seals with data key {generation} from now on{given}{recovery}"))?;
    let bar = bars.add(bar());
    let served = control::reload_if_served(&config.state, &place.store.url(), name).await;
    let outcome = match served {
        Ok(true) => watch_server(name, config, &bar).await,
        Ok(false) => seal_here(place, name, config, &bar).await,
        Err(why) => Err(Failure::failed(format!(
            "the new data key is there, but the server on {} does not use it yet: {why}",
            config.state.display()
        ))),
    };
    bar.finish_and_clear();
    outcome?.map_or(Ok(()), output::text)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("sealing anew {wide_bar} {bytes}/{total_bytes} {eta}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

const GOES_ON: &str = "interrupted; what is left is sealed anew whenever the volume is open";

/// What is said at the end.
type Said = Option<String>;

/// The server that has the volume does the work.
async fn watch_server(name: &VolumeName, config: &Effective, bar: &ProgressBar) -> Result<Said, Failure> {
    loop {
        let status = control::ask(&config.state).await.map_err(|error| {
            Failure::failed(format!("the server went away ({error}); what is left is sealed anew when it is back"))
        })?;
        let volume = status.volumes.into_iter().find(|volume| volume.name == name.as_str());
        let (left, keeps) = volume.map_or((0, false), |volume| (volume.status.retired_bytes, keeps(&volume.status)));
        if show(bar, left) {
            return Ok(Some(done(name, keeps)));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = ctrl_c() => return Ok(Some(GOES_ON.to_owned())),
        }
    }
}

/// No server has the volume: open it and let garbage collection do the work.
async fn seal_here(place: Place, name: &VolumeName, config: &Effective, bar: &ProgressBar) -> Result<Said, Failure> {
    let random = Random::system();
    let state = State::take(config, &random).await?;
    let cache = Cache::in_memory(config);
    let volumes = StoreVolumes::new(place.store, state, cache, config, place.secrets, OpenFlags::default(), random)
        .with_mirror(outside::mirror(config)?);
    let volume = match volumes.open_volume(name).await {
        Ok(volume) => volume,
        Err(VolumeError::Held { holder, .. }) => {
            return Ok(Some(format!(
                "{holder} has the volume open, and goes on with the old data key until it opens it again"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let keeps = keeps(&volume.status());
    let interrupted = loop {
        let status = volume.status();
        if let Some(why) = status.ended {
            return Err(Failure::failed(why));
        }
        if show(bar, status.retired_bytes) {
            break false;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = ctrl_c() => break true,
        }
    };
    volume.close().await?;
    Ok(Some(match interrupted {
        true => GOES_ON.to_owned(),
        false => done(name, keeps),
    }))
}

/// Whether older versions of it are kept.
fn keeps(status: &Status) -> bool {
    status.snapshots > 0 || !status.clones.is_empty()
}

fn done(name: &VolumeName, keeps: bool) -> String {
    let rest = match keeps {
        true => {
            " but for what its snapshots and clones need of what was written before: that stays as it is until they are gone, or collection moves it"
        }
        false => "",
    };
    format!("all of volume {name} is sealed with the new data key{rest}")
}

/// Shows how much is left; whether that is nothing.
fn show(bar: &ProgressBar, left: u64) -> bool {
    let total = bar.length().unwrap_or(0).max(left);
    bar.set_length(total);
    bar.set_position(total - left);
    bar.set_message(about_bytes(left));
    left == 0
}
