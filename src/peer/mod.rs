//! A peer: another server that keeps a copy of a volume's journal, so that what a client was answered for survives the loss of either host
//! (`durability = "peer"`, docs/standby.md).
//!
//! The server that has the volume is the *sender*, the other one the *keeper*. What the sender accepts it also writes as a journal of its
//! own making, in the format of [`crate::journal`], and sends the bytes; the keeper puts them into files and says how far it has them. A takeover finds a
//! journal that the newest fence names, and goes on with it as with one's own (`opening/verdict.rs`).
//!
//! **What is always so.** Every change for which a client was answered is in the store, or in the copy that the keeper has. Four rules see to it:
//!
//! 1. *The peer's word counts only while the connection lives that it came over* ([`sender`]). Without it everybody waits for the store: a FLUSH, and a WRITE too.
//! 2. *A copy begins where the store ends*: a new one is begun, and takes the place of the one before, only when the store has every change before its first
//!    ([`sender::Sender::begin`]). So nothing is ever sent twice, and there is one copy.
//! 3. *Who takes the volume over stops the copy first* ([`keeper::Keeper::hold`], [`keeping`]): each record that comes later is refused. Once a copy was taken, none of its epoch or of
//!    an earlier one is begun here again, also after a restart ([`copies`]).
//! 4. *A copy goes by the name in the fence* of its epoch, so that no other is taken for it.
//!
//! | file | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`wire`] | the protocol: greetings, frames, their proof; bytes in, messages out | sockets |
//! | [`sender`] | what is sent, and what the peer's word is good for; pure | time, files |
//! | [`stream`] | a copy's bytes: headers, records, where files end; pure | who reads them |
//! | [`keeping`] | what is taken and what is refused; pure | files |
//! | [`copies`] | the keeper's files | the network |
//! | [`keeper`], [`standby`] | waiting: the two ends of a connection | |

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;

pub mod copies;
pub mod keeper;
pub mod keeping;
pub mod sender;
pub mod standby;
pub mod stream;
pub mod wire;
#[cfg(test)]
mod model_tests;

/// `[peer]`: who keeps copies of this server's journals, and whose copies it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Where this server listens for the journals of others, `HOST:PORT`; none if it is not set.
    pub listen: Option<String>,
    /// The server that keeps copies of this one's journals, `HOST:PORT`; none if it is not set.
    pub address: Option<String>,
    /// The file with the secret that both have: 32 bytes or more.
    pub secret_file: Option<PathBuf>,
    /// Whether the peer syncs its file before a FLUSH is answered.
    pub sync: bool,
    /// A peer that answers nothing for so long is away.
    #[serde(with = "human::duration")]
    pub timeout: Duration,
    /// Bytes of a volume that may be under way to the peer; with more it has fallen behind, and is away.
    #[serde(with = "human::bytes")]
    pub lag_bytes: u64,
    /// Bytes that the copies of others may take on this server's disk together.
    #[serde(with = "human::bytes")]
    pub disk_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: None,
            address: None,
            secret_file: None,
            sync: true,
            timeout: Duration::from_secs(2),
            lag_bytes: 64 << 20,
            disk_bytes: 4 << 30,
        }
    }
}

impl Options {
    /// Checks each option against its bounds; the error is the key and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let place = |address: &Option<String>| {
            let is_one = |text: &String| {
                text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            };
            address.as_ref().is_none_or(is_one)
        };
        if !place(&self.listen) {
            return Err(("listen", "HOST:PORT"));
        }
        if !place(&self.address) {
            return Err(("address", "HOST:PORT"));
        }
        if self.secret_file.is_none() && (self.listen.is_some() || self.address.is_some()) {
            return Err((
                "secret_file",
                "a file with 32 bytes or more, the same on both servers, such as `head -c 32 /dev/urandom | base64` makes: whoever reaches the peer could \
                 write volumes without it",
            ));
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(20)).contains(&self.timeout) {
            return Err(("timeout", "100ms to 20s"));
        }
        if !(8 << 20..=4 << 30).contains(&self.lag_bytes) {
            return Err(("lag_bytes", "8 MiB to 4 GiB"));
        }
        match self.disk_bytes >= 64 << 20 {
            true => Ok(()),
            false => Err(("disk_bytes", "64 MiB or more")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_held_to_their_bounds() {
        let default = Options::default();
        default.check().unwrap();
        let secret_file = Some(PathBuf::from("/s"));
        let listens = Options { listen: Some("0.0.0.0:10810".into()), ..default.clone() };
        assert_eq!(listens.check().unwrap_err().0, "secret_file");
        Options { secret_file: secret_file.clone(), ..listens }.check().unwrap();
        let bad = |options: Options| Options { secret_file: secret_file.clone(), ..options }.check().unwrap_err().0;
        assert_eq!(bad(Options { address: Some("b".into()), ..default.clone() }), "address");
        assert_eq!(bad(Options { listen: Some(":1".into()), ..default.clone() }), "listen");
        assert_eq!(bad(Options { timeout: Duration::ZERO, ..default.clone() }), "timeout");
        assert_eq!(bad(Options { lag_bytes: 1, ..default.clone() }), "lag_bytes");
        assert_eq!(bad(Options { disk_bytes: 1, ..default }), "disk_bytes");
    }
}
