//! `[mirror]`: a second store behind the first.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;

/// Where the mirror is, and what it may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The second store, as `store.url` has it; "" for none.
    pub url: String,
    /// A configuration file of which `[store]` says how to reach it; the same as the first store without one.
    pub config: Option<PathBuf>,
    /// Bytes that are copied in a second, of all volumes of a server together; 0 is any number.
    #[serde(with = "human::bytes")]
    pub bandwidth: u64,
    /// For how long the mirror keeps what the first store has deleted.
    #[serde(with = "human::duration")]
    pub delete_after: Duration,
    /// How long a volume that is being closed waits for its mirror, if that follows.
    #[serde(with = "human::duration")]
    pub stop_wait: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            url: String::new(),
            config: None,
            bandwidth: 0,
            delete_after: Duration::from_secs(3600),
            stop_wait: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// Checks each option against its bounds; the error is the key and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.bandwidth != 0 && self.bandwidth < 64 << 10 {
            return Err(("bandwidth", "64 KiB or more in a second, or 0 for any number"));
        }
        if self.delete_after > Duration::from_secs(30 * 86400) {
            return Err(("delete_after", "0s to 30d"));
        }
        match self.stop_wait <= Duration::from_secs(600) {
            true => Ok(()),
            false => Err(("stop_wait", "0s to 10m")),
        }
    }
}
