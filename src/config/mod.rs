//! The configuration: defaults < `ashlar.toml` < `ASHLAR_*` environment < flags.
//!
//! Each room has its own `Options`; [`Config`] only puts them side by side, one section each, and [`load`] fills them.
//! Nothing below the command line reads a file, a variable or a flag.
//!
//! - The file is `ashlar.toml` in the working directory, if there is one, or what `--config` names (which must exist).
//! - A variable is `ASHLAR_` and the key in capitals, `__` between section and key: `ASHLAR_STORE__S3__ENDPOINT`. Lists are
//!   separated by commas.
//! - An unknown key, or a value that is not accepted, is an error that names where it was written, the key, the value
//!   and what is accepted ([`ConfigError`]).
//! - What holds of the server's memory follows from `memory`, unless it is set by itself ([`Division`]).
//! - Sizes and durations are in human units in every layer ([`crate::human`]).
//!
//! `config/default.toml` is this module's reference for users; a test holds it equal to [`Config::default`], key by key.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;
use crate::store::open::StoreOptions;
use crate::store::prices::PriceOptions;
use crate::volume::purse;
use crate::{cache, journal, metrics, mirror, nbd, peer, volume};

mod endpoint;
mod error;
mod layers;
mod listener;
mod show;
mod change;
mod memory;

pub use change::Change;
pub use endpoint::{Listen, Socket};
pub use error::ConfigError;
pub use layers::{Flag, Inputs, load};
pub use listener::{Listener, Mode, Owner, Place};
pub use memory::{Division, Memory};
pub use show::{Effective, Origin};

/// The configuration file that is read if it exists and `--config` names no other.
pub const FILE: &str = "ashlar.toml";

/// What the names of environment variables begin with.
pub const ENVIRONMENT_PREFIX: &str = "ASHLAR_";

/// What the names of variables begin with that are for the project's own tests and scripts, and no configuration.
pub const TEST_PREFIX: &str = "ASHLAR_TEST_";

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory for what this server keeps on its own disk: its identity and the journals.
    pub state: PathBuf,
    /// How much memory the server may take. Bounds that are not set by themselves follow from it.
    pub memory: Memory,
    /// Where the volumes live, and how the store is used.
    pub store: StoreOptions,
    /// A second store behind the first.
    pub mirror: mirror::Options,
    /// What the store bills.
    pub prices: PriceOptions,
    /// What may be spent on requests to it.
    pub budget: purse::Options,
    /// What is served, and where.
    pub serve: Serve,
    /// Limits of the NBD server.
    pub nbd: nbd::Options,
    /// Volumes: durability, buffers, checkpoints.
    pub volume: volume::Options,
    /// The server's local log of what is not in the store yet.
    pub journal: journal::Options,
    /// Who keeps copies of this server's journals, and whose copies it keeps.
    pub peer: peer::Options,
    /// Clean blocks near the reader.
    pub cache: cache::Options,
    /// What unlocks encrypted volumes.
    pub keys: Keys,
    /// What the server tells those who watch it.
    pub metrics: metrics::Options,
    /// The log on standard error.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            state: "./ashlar-state".into(),
            memory: Memory::Auto,
            store: StoreOptions::default(),
            mirror: mirror::Options::default(),
            prices: PriceOptions::default(),
            budget: purse::Options::default(),
            serve: Serve::default(),
            nbd: nbd::Options::default(),
            volume: volume::Options::default(),
            journal: journal::Options::default(),
            peer: peer::Options::default(),
            cache: cache::Options::default(),
            keys: Keys::default(),
            metrics: metrics::Options::default(),
            log: Log::default(),
        }
    }
}

/// `[serve]`: what is served, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// The TCP address to listen on.
    pub listen: Listen,
    /// The Unix socket to listen on.
    pub socket: Socket,
    /// The permissions of that socket's file.
    pub socket_mode: Mode,
    /// The owner of that socket's file.
    pub socket_owner: Owner,
    /// Further places to listen on.
    pub listeners: Vec<Listener>,
    /// Names of the volumes to serve; none means every volume of the store, also those created later.
    pub volumes: Vec<String>,
    /// Names of volumes that are only read, each of them served; [`ALL`] alone for every volume. They are not taken: another server may write them.
    pub read_only: Vec<String>,
    /// How old what is known of those may be when a client reads: then it is looked whether there is a newer checkpoint.
    #[serde(with = "human::duration")]
    pub follow: Duration,
    /// How long a server that is to leave, or to hand a volume over, may take to bring everything into the store.
    #[serde(with = "human::duration")]
    pub handoff_timeout: Duration,
    /// The pool of servers that share its volumes with this one: letters, digits, `-` and `_`.
    pub claim: Option<String>,
    /// How often a server of a pool says that it lives, and looks who else does.
    #[serde(with = "human::duration")]
    pub claim_beat: Duration,
    /// After how long without that it is taken to be gone.
    #[serde(with = "human::duration")]
    pub claim_patience: Duration,
}

impl Default for Serve {
    fn default() -> Self {
        Serve {
            listen: Listen::default(),
            socket: Socket::default(),
            socket_mode: Mode::default(),
            socket_owner: Owner::default(),
            listeners: Vec::new(),
            volumes: Vec::new(),
            read_only: Vec::new(),
            follow: Duration::from_secs(1),
            handoff_timeout: Duration::from_secs(60),
            claim: None,
            claim_beat: Duration::from_secs(10),
            claim_patience: Duration::from_secs(40),
        }
    }
}

/// In place of names: every volume.
pub const ALL: &str = "*";

/// `[keys]`: where the keys of encrypted volumes come from. All that are set are tried. In paths and the command
/// `{volume}` stands for the volume's name.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// A file with a passphrase (or the recovery key) in its first line; "" for none.
    pub passphrase_file: String,
    /// A file of at least 32 random bytes; "" for none.
    pub key_file: String,
    /// A shell command that prints a passphrase, such as that of a password manager; "" for none.
    pub command: String,
    /// The passphrase itself, for environments that hand out secrets in variables; "" for none.
    pub passphrase: String,
    /// Whether volumes that are not encrypted are refused.
    pub required: bool,
}

impl Keys {
    /// Whether something is set.
    pub fn is_set(&self) -> bool {
        let Keys { passphrase_file, key_file, command, passphrase, required: _ } = self;
        [passphrase_file, key_file, command, passphrase].iter().any(|value| !value.is_empty())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("passphrase_file", &self.passphrase_file)
            .field("key_file", &self.key_file)
            .field("command", &self.command)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// `[log]`: the log on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How much: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a list such as `info,ashlar::store=debug`.
    pub level: String,
    /// For people or for programs.
    pub format: LogFormat,
    /// Whether each line begins with its priority, for journald.
    pub priorities: LogPriorities,
    /// Lines of one kind that are written within ten seconds, of a server; further ones are held back and counted. 0 is any number.
    pub burst: u32,
    /// Bytes of a server's log that may wait to be written. Further lines are dropped and counted. From 4 KiB to 1 GiB.
    #[serde(with = "human::bytes")]
    pub buffer: u64,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
            priorities: LogPriorities::Auto,
            burst: 100,
            buffer: 1 << 20,
        }
    }
}

impl Log {
    /// Checks each option against its bounds; the error is the key and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        match (4 << 10..=1 << 30).contains(&self.buffer) {
            true => Ok(()),
            false => Err(("buffer", "4 KiB to 1 GiB")),
        }
    }
}

/// Whether a priority stands before each line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogPriorities {
    /// Where journald reads the log.
    Auto,
    /// Always, for other readers that know them.
    Always,
    /// Never.
    Never,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line of text for people.
    Text,
    /// One JSON object for each line.
    Json,
}

#[cfg(test)]
mod tests;
