//! `ashlar key`: the key slots of an encrypted volume.

use std::sync::Arc;

use clap::Subcommand;
use indicatif::MultiProgress;

use super::create::recovery_text;
use super::failure::{Failure, Outcome};
use super::{output, outside, rotate, runtime, secrets};
use crate::config::Effective;
use crate::human::date;
use crate::keyring::{KeySlot, Secret, Secrets, SlotKind};
use crate::opening::key_slots::{self, Slots};
use crate::outside::{Clock, Random};
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::VolumeName;

/// Lists, adds, removes and changes what opens an encrypted volume; none of it rewrites data.
///
/// The volume is unlocked with the configured key (--passphrase-file, --key-file, --key-command, [keys]), or a terminal
/// is asked. A recovery key can be given wherever a passphrase can.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar key list db
  ashlar key add db --passphrase-file old --new-passphrase-file new
  ashlar key add db --recovery-key
  ashlar key remove db 2
  ashlar key rotate db             draws a new data key and seals everything anew, in the background")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the slots of a volume; needs no key
    List {
        /// The volume's name
        name: VolumeName,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Adds a slot; what opens it opens the volume
    Add {
        /// The volume's name
        name: VolumeName,
        #[command(flatten)]
        new: New,
        /// Make a recovery key and print it once
        #[arg(long, conflicts_with_all = ["new_passphrase_file", "new_key_file"])]
        recovery_key: bool,
    },
    /// Removes a slot; the last one stays
    Remove {
        /// The volume's name
        name: VolumeName,
        /// The slot's number, as `ashlar key list` shows it
        slot: u8,
    },
    /// Changes what opens the slot that the configured key opens
    Change {
        /// The volume's name
        name: VolumeName,
        #[command(flatten)]
        new: New,
    },
    /// Draws a new data key and seals everything anew with it
    ///
    /// Only the key that unlocks the volume now keeps its slot, and a new recovery key takes the place of the old one: the
    /// other secrets are not here, and a key that leaked must not lead to the new one. Add the others again afterwards.
    /// Clones of the volume are given the new data key, so their keys must be configured, too.
    ///
    /// Data is sealed anew by garbage collection, while the volume is served or, if no server has it, by this command.
    /// It may be interrupted at any time, and goes on by itself whenever the volume is open.
    Rotate {
        /// The volume's name
        name: VolumeName,
        /// Rotate although slots are lost whose secrets are not here
        #[arg(long)]
        drop_other_slots: bool,
    },
}

/// Where a new secret comes from; a terminal is asked if nothing is given.
#[derive(Debug, clap::Args)]
struct New {
    /// File with the new passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    new_passphrase_file: Option<String>,

    /// File with 32 random bytes or more that opens the volume
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<String>,
}

impl New {
    fn secret(&self, name: &VolumeName) -> Result<Secret, Failure> {
        match (&self.new_passphrase_file, &self.new_key_file) {
            (Some(path), _) => secrets::passphrase_file(path).map_err(Failure::usage),
            (None, Some(path)) => secrets::key_file(path).map_err(Failure::usage),
            (None, None) => secrets::ask_for_new(name),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let runtime = runtime()?;
    match &args.command {
        Command::List { name, json } => runtime.block_on(list(name, *json, config)),
        Command::Add { name, new, recovery_key } => runtime.block_on(add(name, new, *recovery_key, config)),
        Command::Remove { name, slot } => runtime.block_on(remove(name, *slot, config)),
        Command::Change { name, new } => runtime.block_on(change(name, new, config)),
        Command::Rotate { name, drop_other_slots } => {
            runtime.block_on(rotate::run(name, *drop_other_slots, config, bars))
        }
    }
}

/// What a change of slots needs.
pub struct Place {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What unlocks the volume.
    pub secrets: Secrets,
    random: Random,
    clock: Clock,
}

impl Place {
    /// By the configuration.
    pub async fn open(config: &Effective) -> Result<Place, Failure> {
        let store = outside::open_store(config, Access::Write).await?.store;
        let (clock, random, _) = outside::real();
        Ok(Place { store, secrets: secrets::of(config), random, clock })
    }

    /// Of this volume.
    pub fn slots<'a>(&'a self, name: &'a VolumeName) -> Slots<'a> {
        Slots { store: &*self.store, name, secrets: &self.secrets, random: &self.random, clock: &self.clock }
    }
}

async fn list(name: &VolumeName, json: bool, config: &Effective) -> Outcome {
    let store = outside::open_store(config, Access::Read).await?.store;
    let encryption = key_slots::list(&*store, name).await?;
    if json {
        let slots: Vec<_> = encryption.slots.iter().map(slot_json).collect();
        return output::json(&slots);
    }
    let rows = encryption.slots.iter().map(|slot| {
        let cost = slot.argon2id.map_or_else(
            || "-".to_owned(),
            |cost| format!("argon2id, {} MiB × {}", cost.memory_kib >> 10, cost.passes),
        );
        vec![slot.id.to_string(), slot.kind.to_string(), date(slot.created_unix_millis), cost]
    });
    output::text(output::table(&["slot", "opened by", "made", "cost of a try"], rows))?;
    output::text(format!("data key {}", encryption.generation))
}

fn slot_json(slot: &KeySlot) -> serde_json::Value {
    serde_json::json!({
        "slot": slot.id,
        "kind": slot.kind,
        "created_unix_millis": slot.created_unix_millis,
        "argon2id": slot.argon2id,
    })
}

async fn add(name: &VolumeName, new: &New, recovery_key: bool, config: &Effective) -> Outcome {
    let place = Place::open(config).await?;
    if recovery_key {
        let (id, key) = place.slots(name).add_recovery().await?;
        return output::text(format!("added slot {id} to volume {name}{}", recovery_text(&key.to_text())));
    }
    let secret = new.secret(name)?;
    let id = place.slots(name).add(&secret, secrets::cost()).await?;
    output::text(format!("added slot {id} to volume {name}: it opens with the new {}", kind(&secret)))
}

async fn remove(name: &VolumeName, slot: u8, config: &Effective) -> Outcome {
    let place = Place::open(config).await?;
    let kind = place.slots(name).remove(slot).await?;
    output::text(format!("removed slot {slot} ({kind}) of volume {name}"))
}

async fn change(name: &VolumeName, new: &New, config: &Effective) -> Outcome {
    let place = Place::open(config).await?;
    let secret = new.secret(name)?;
    let id = place.slots(name).change(&secret, secrets::cost()).await?;
    output::text(format!(
        "slot {id} of volume {name} opens with the new {} only; tell the servers that serve it",
        kind(&secret)
    ))
}

fn kind(secret: &Secret) -> SlotKind {
    match secret {
        Secret::Passphrase(_) => SlotKind::Passphrase,
        Secret::KeyFile(_) => SlotKind::KeyFile,
    }
}
