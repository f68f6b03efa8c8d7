//! Where secrets come from: files, a command, the environment, a terminal. They go from here into [`Secret`]s, which are
//! zeroed, and nowhere else.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dialoguer::Password;
use parking_lot::Mutex;
use tokio::process::Command;
use tokio::time::Instant;
use tracing::warn;
use zeroize::{Zeroize, Zeroizing};

use super::failure::Failure;
use super::hygiene;
use crate::config::{Effective, Keys};
use crate::human;
use crate::keyring::secret::SECRET_BYTES_MAX;
use crate::keyring::slot::Cost;
use crate::keyring::unlock::SecretSource;
use crate::keyring::{Secret, Secrets};
use crate::outside::Workers;
use crate::volume::VolumeName;

/// How long a command may take to print a passphrase: somebody may have to touch a token.
const COMMAND_PATIENCE: Duration = Duration::from_secs(120);

/// What unlocks volumes, by the configuration; a terminal is asked if nothing is configured.
pub fn of(config: &Effective) -> Secrets {
    let source = Configured { keys: config.keys.clone(), may_ask: true };
    Secrets::new(Arc::new(source), Workers::Threads).requiring_encryption(config.keys.required)
}

/// What unlocks volumes, by the configuration alone: for many volumes at once.
pub fn of_configuration(config: &Effective) -> Secrets {
    let source = Configured { keys: config.keys.clone(), may_ask: false };
    Secrets::new(Arc::new(source), Workers::Threads).requiring_encryption(config.keys.required)
}

/// The configured secrets for a new slot of the volume: the first of them is used.
pub async fn configured(config: &Effective, volume: &VolumeName) -> Result<Option<Secret>, Failure> {
    let source = Configured { keys: config.keys.clone(), may_ask: false };
    let secrets = source.secrets(volume.as_str()).await.map_err(Failure::usage)?;
    Ok(secrets.into_iter().next())
}

struct Configured {
    keys: Keys,
    may_ask: bool,
}

#[async_trait]
impl SecretSource for Configured {
    async fn secrets(&self, volume: &str) -> Result<Vec<Secret>, String> {
        hygiene::keep_memory_private();
        let keys = &self.keys;
        let path = |template: &str| (!template.is_empty()).then(|| template.replace("{volume}", volume));
        let mut secrets = Vec::new();
        if let Some(path) = path(&keys.key_file) {
            secrets.push(key_file(&path)?);
        }
        if let Some(path) = path(&keys.passphrase_file) {
            secrets.push(passphrase_file(&path)?);
        }
        if let Some(command) = path(&keys.command) {
            secrets.push(run(&command, volume).await?);
        }
        if !keys.passphrase.is_empty() {
            secrets.push(Secret::Passphrase(Zeroizing::new(keys.passphrase.clone())));
        }
        if secrets.is_empty() && self.may_ask && is_interactive() {
            let prompt = format!("Passphrase of volume {volume}");
            secrets.push(Workers::Threads.run(move || ask(&prompt)).await?);
        }
        Ok(secrets)
    }
}

/// The passphrase in a file.
pub fn passphrase_file(path: &str) -> Result<Secret, String> {
    Secret::passphrase(read(path)?).map_err(|error| format!("the passphrase file {path}: {error}"))
}

/// The content of a key file.
pub fn key_file(path: &str) -> Result<Secret, String> {
    Secret::key_file(read(path)?).map_err(|error| format!("the key file {path}: {error}"))
}

/// The files of which it was said that others can read them: a server reads them for each volume.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

#[allow(clippy::disallowed_methods)] // secrets do not go through the disk's door: they must not be copied about
fn read(path: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: std::io::Error| format!("the key file {path} cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 && SAID.lock().insert(path.to_owned()) {
        warn!("{path} holds a secret and can be read by others (mode {:o}); chmod 600 {path}", metadata.mode() & 0o777);
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What the command prints.
async fn run(command: &str, volume: &str) -> Result<Secret, String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("ASHLAR_VOLUME", volume).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = tokio::time::timeout(COMMAND_PATIENCE, shell.kill_on_drop(true).output()).await;
    let mut output = output
        .map_err(|_| {
            format!("the key command {command:?} did not end within {}", human::exact_duration(COMMAND_PATIENCE))
        })?
        .map_err(|error| format!("the key command {command:?} cannot be run: {error}"))?;
    let printed = Zeroizing::new(std::mem::take(&mut output.stdout));
    match output.status.success() {
        true => {
            Secret::passphrase(printed).map_err(|error| format!("what the key command {command:?} printed: {error}"))
        }
        false => Err(format!("the key command {command:?} failed: {}", output.status)),
    }
}

/// What trying a passphrase is to cost on this machine: half a second, with as much memory as it can well spare.
pub fn cost() -> Cost {
    const MEMORY_KIB: std::ops::RangeInclusive<u64> = 32 << 10..=256 << 10;
    const AIM: Duration = Duration::from_millis(500);
    const PASSES_MAX: u32 = 32;
    let info = rustix::system::sysinfo();
    let part = info.totalram.saturating_mul(u64::from(info.mem_unit)) / 16 / 1024;
    let mut cost = Cost { memory_kib: part.clamp(*MEMORY_KIB.start(), *MEMORY_KIB.end()) as u32, passes: 1, lanes: 1 };
    loop {
        let began = Instant::now();
        // Only its time matters, and that it can be done at all.
        let is_possible = cost.derive(b"a passphrase", &[0; 16]).is_ok();
        let took = began.elapsed().max(Duration::from_millis(1));
        if (is_possible && took <= 2 * AIM) || u64::from(cost.memory_kib) <= *MEMORY_KIB.start() {
            cost.passes = (AIM.as_millis() / took.as_millis()).clamp(1, u128::from(PASSES_MAX)) as u32;
            return cost;
        }
        cost.memory_kib /= 2;
    }
}

/// Whether there is somebody to ask.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// A passphrase that somebody types.
fn ask(prompt: &str) -> Result<Secret, String> {
    let typed = Password::new().with_prompt(prompt).interact().map_err(|error| format!("the terminal: {error}"))?;
    Ok(Secret::Passphrase(Zeroizing::new(typed)))
}

/// A new passphrase that somebody types twice.
pub fn ask_for_new(volume: &VolumeName) -> Result<Secret, Failure> {
    hygiene::keep_memory_private();
    if !is_interactive() {
        return Err(Failure::usage(
            "there is no terminal to ask for a passphrase; give it with --passphrase-file, --key-file or --key-command",
        ));
    }
    let password = Password::new()
        .with_prompt(format!("New passphrase of volume {volume}"))
        .with_confirmation("The same once more", "they differ; again");
    let mut typed = password.interact().map_err(Failure::failed)?;
    let bytes = Zeroizing::new(typed.as_bytes().to_vec());
    typed.zeroize();
    Secret::passphrase(bytes).map_err(Failure::usage)
}
