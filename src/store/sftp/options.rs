//! How to reach an SFTP store. There is no place for a password here: `ssh` finds keys, agents and known hosts as it always does.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::options::human;

/// How to reach an SFTP store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftpOptions {
    /// The program that makes connections: OpenSSH's `ssh`, by name or path.
    pub ssh: PathBuf,
    /// A file that `ssh` reads in place of `~/.ssh/config` and `/etc/ssh/ssh_config`.
    pub config_file: Option<PathBuf>,
    /// A private key, beside those that `ssh` finds itself. One with a passphrase needs an agent.
    pub identity_file: Option<PathBuf>,
    /// The file in which the server's key must stand, in place of `~/.ssh/known_hosts`.
    pub known_hosts_file: Option<PathBuf>,
    /// Accepts a server that cannot make files and directories durable (without `fsync@openssh.com`): what it acknowledged may be lost
    /// with its power.
    pub allow_unsynced: bool,
    /// Connections that are made, at most; half of them, rounded up, are for reads.
    pub connections_max: usize,
    /// A connection that is not established by then has failed.
    #[serde(with = "human")]
    pub connect_timeout: Duration,
    /// A connection has failed if for this long neither side has sent anything, although something was asked.
    #[serde(with = "human")]
    pub stall_timeout: Duration,
    /// A request has failed after this long, even if it still makes progress.
    #[serde(with = "human")]
    pub request_timeout: Duration,
}

impl Default for SftpOptions {
    fn default() -> Self {
        SftpOptions {
            ssh: "ssh".into(),
            config_file: None,
            identity_file: None,
            known_hosts_file: None,
            allow_unsynced: false,
            connections_max: 4,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(300),
        }
    }
}
