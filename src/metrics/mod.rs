//! What the server tells of itself to those who watch it, over HTTP, on a listener of its own: a page for people ([`web`]), `/metrics` for Prometheus, `/healthz`
//! (the process lives) and `/readyz` (it is of use). `docs/metrics.md` lists the metrics.
//!
//! Looking on changes nothing (rule R17). A client that hangs or reads slowly has one of `max_connections` places for `timeout` at
//! most, and nothing else: a connection carries one request and has a task of its own; a page is put together from a snapshot, by a
//! worker, one page at a time, and no lock of the service is held while it is written or sent.
//!
//! Who may look ([`gate`], pure): on loopback whoever is on this host; elsewhere who shows the token or a certificate. This room
//! does not know volumes: what there is to tell comes from a [`Teller`].

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::human::{self, exact_duration};
use crate::nbd::{TlsMode, TlsOptions};

mod family;
mod gate;
mod serve;
mod web;

pub use family::{Family, Kind, Sample, Value, page};
pub use gate::fault;
pub use serve::{Listener, check_files};

/// What can be told.
#[async_trait]
pub trait Teller: Send + Sync + 'static {
    /// What the server is doing, as a JSON document: that of `ashlar status --json`.
    async fn status(&self) -> Vec<u8>;

    /// What it was doing at moments after this one, in milliseconds since 1970, as a JSON document.
    async fn samples(&self, after_unix_millis: u64) -> Vec<u8>;

    /// The metrics as of now.
    async fn metrics(&self) -> Vec<Family>;

    /// Why the server is not of use just now, one sentence for each reason; empty if it is.
    async fn troubles(&self) -> Vec<String>;
}

/// The listener for those who watch, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The TCP address to listen on, `HOST:PORT`; none if it is not set. One that is not of this host alone asks for a token, or for
    /// client certificates.
    pub listen: Option<String>,

    /// A file with the token in its first line; who asks for metrics must show it (`Authorization: Bearer …`).
    pub token_file: Option<PathBuf>,

    /// Connections at one time; more wait to be accepted. From 1 to 1024.
    pub max_connections: usize,

    /// How long one connection may take in all, be it for TLS, for its request or to fetch the answer. From 1 s to 10 min.
    #[serde(with = "human::duration")]
    pub timeout: Duration,

    /// `/readyz` says no once an operation on the store has failed for so long. From 1 s to 1 day.
    #[serde(with = "human::duration")]
    pub store_patience: Duration,

    /// How far back the plots of the page go; a fixed number of samples covers it. From 1 min to 1 day.
    #[serde(with = "human::duration")]
    pub history: Duration,

    /// TLS of this listener.
    pub tls: Files,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: None,
            token_file: None,
            max_connections: 8,
            timeout: Duration::from_secs(10),
            store_patience: Duration::from_secs(60),
            history: Duration::from_secs(3600),
            tls: Files::default(),
        }
    }
}

/// The files of TLS. With a certificate clients must speak it, and with authorities show a certificate of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// The listener's certificate and those that lead to its authority, in PEM.
    pub certificate: Option<PathBuf>,

    /// The key of the certificate, in PEM, not encrypted.
    pub key: Option<PathBuf>,

    /// The certificates of authorities, in PEM: every client must show a certificate that one of them signed.
    pub client_ca: Option<PathBuf>,

    /// How often the files are looked at. From 1 s to 1 day.
    #[serde(with = "human::duration")]
    pub reload_interval: Duration,
}

impl Default for Files {
    fn default() -> Files {
        let TlsOptions { certificate, key, client_ca, reload_interval, mode: _ } = TlsOptions::default();
        Files { certificate, key, client_ca, reload_interval }
    }
}

impl Files {
    fn options(&self) -> TlsOptions {
        let Files { certificate, key, client_ca, reload_interval } = self.clone();
        TlsOptions { mode: TlsMode::Required, certificate, key, client_ca, reload_interval }
    }
}

/// The most connections that may be allowed.
const CONNECTIONS_MAX: usize = 1024;
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
const HISTORY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(86_400));
const A_DAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));

impl Options {
    /// Checks each option against its bounds; the error is the key below `metrics`, and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(address) = self.listen.as_ref().filter(|address| !is_host_and_port(address)) {
            let why = format!("HOST:PORT, such as 127.0.0.1:10811 or [::1]:10811, and not {address:?}");
            return Err(("listen", why));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.max_connections) {
            return Err(("max_connections", format!("1 to {CONNECTIONS_MAX}")));
        }
        let durations = [
            ("timeout", self.timeout, TIMEOUT),
            ("store_patience", self.store_patience, A_DAY),
            ("history", self.history, HISTORY),
            ("tls.reload_interval", self.tls.reload_interval, A_DAY),
        ];
        match durations.into_iter().find(|(_, value, (least, most))| !(least..=most).contains(&value)) {
            Some((key, _, (least, most))) => {
                Err((key, format!("{} to {}", exact_duration(least), exact_duration(most))))
            }
            None => Ok(()),
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_its_bounds_is_named_with_what_is_accepted() {
        let of = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().unwrap_err()
        };
        Options::default().check().unwrap();
        assert_eq!(of(|options| options.max_connections = 0), ("max_connections", "1 to 1024".to_owned()));
        assert_eq!(of(|options| options.timeout = Duration::from_millis(1)), ("timeout", "1s to 10m".to_owned()));
        assert_eq!(of(|options| options.store_patience = Duration::ZERO), ("store_patience", "1s to 1day".to_owned()));
        assert_eq!(of(|options| options.history = Duration::ZERO), ("history", "1m to 1day".to_owned()));
        assert_eq!(of(|options| options.tls.reload_interval = Duration::ZERO).0, "tls.reload_interval");
        for bad in ["here", ":10811", "::1:10811", "127.0.0.1:port", ""] {
            let options = Options { listen: Some(bad.to_owned()), ..Options::default() };
            assert_eq!(options.check().unwrap_err().0, "listen", "{bad:?}");
        }
        for good in ["127.0.0.1:0", "[::1]:10811", "metrics.example:10811"] {
            Options { listen: Some(good.to_owned()), ..Options::default() }.check().unwrap();
        }
    }
}
