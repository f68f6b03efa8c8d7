//! The limits of the NBD server, by name. What a client may make the server hold is their sum (rules R6 and R11 of
//! the design): a bound is met by waiting, by an error reply, or, in the handshake, by closing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::{self, Rule};
use super::tls::{RELOAD_INTERVAL, TlsOptions};
use crate::human;

/// Limits of an NBD server; the defaults suit a host with a few hundred MiB to spare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Connections at one time, over all listeners; more are closed as soon as they are accepted. At least 1.
    pub max_connections: usize,

    /// How long a client may keep the server waiting in the whole handshake before it is dropped. Time that the
    /// server itself takes to open an export does not count, nor what else it takes, up to `attach_wait` in all. At least 1 ms.
    #[serde(with = "human::duration")]
    pub handshake_timeout: Duration,

    /// Options that a client may send in one handshake before it is dropped. Tools that list exports send a few for
    /// each. At least 1.
    pub max_options: u32,

    /// Bytes of data of one option that are looked at; a longer one is skipped and refused. From 8 KiB, so that the
    /// longest export name fits, to 16 MiB.
    #[serde(with = "human::bytes")]
    pub max_option_bytes: u32,

    /// Bytes that a client may send in one handshake, skipped data included, before it is dropped. At least
    /// `max_option_bytes`.
    #[serde(with = "human::bytes")]
    pub max_handshake_bytes: u64,

    /// Whether clients may list the exports (NBD_OPT_LIST); if not, they must know the name.
    pub list_exports: bool,

    /// Whether clients of several hosts may be attached to one writable export at the same time. If not, those of a
    /// second host are refused: two hosts that mount one filesystem destroy it.
    pub shared: bool,

    /// Bytes that one READ or WRITE may move; a larger one is refused. From 1 MiB to 1 GiB. Clients that do not ask
    /// take 32 MiB for granted.
    #[serde(with = "human::bytes")]
    pub max_payload: u32,

    /// The minimum block size in bytes that clients are told; those that obey it make no request that is not aligned to it.
    /// Others are served all the same, down to one byte. An export whose size is no multiple of it tells a smaller one. A
    /// power of two from 1 to 64 KiB.
    #[serde(with = "human::bytes")]
    pub minimum_block_size: u32,

    /// Requests of one connection that may be in flight: taken from the socket and not yet answered. At least 1.
    pub requests_in_flight: usize,

    /// Bytes of payload and read data that one connection may have in flight. At least `max_payload`.
    #[serde(with = "human::bytes")]
    pub bytes_in_flight: usize,

    /// Requests of all connections together that may be in flight. At least 1.
    pub total_requests_in_flight: usize,

    /// Bytes of payload and read data that all connections together may have in flight. At least `max_payload`.
    /// Beyond it each connection may still have one request of at most 1 MiB, so that clients which do not fetch
    /// their replies cannot hold up the others.
    #[serde(with = "human::bytes")]
    pub total_bytes_in_flight: usize,

    /// How long a client may show no life before it is dropped: its host answers nothing (TCP), or it fetches nothing of the
    /// replies that wait for it. Until then no other host may attach its export. From 2 s to 1 day.
    #[serde(with = "human::duration")]
    pub client_timeout: Duration,

    /// How long a client of a second host is kept waiting while the first host, which has the export, is asked whether it
    /// is still there; then it is refused. Once in a handshake: whoever asks again is refused at once. At least 1 ms.
    #[serde(with = "human::duration")]
    pub attach_wait: Duration,

    /// How long a client that other clients wait for may leave a request half sent, or a reply half fetched, before
    /// it is dropped. At least 1 ms.
    #[serde(with = "human::duration")]
    pub stall_timeout: Duration,

    /// How long a shutdown waits for requests in flight before it closes their connections. At least 1 ms.
    #[serde(with = "human::duration")]
    pub shutdown_timeout: Duration,

    /// Who may use which exports, and how; the first rule that speaks of an export decides. None: whoever comes in may use all.
    pub access: Vec<Rule>,

    /// TLS.
    pub tls: TlsOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_connections: 256,
            handshake_timeout: Duration::from_secs(10),
            max_options: 1024,
            max_option_bytes: 64 << 10,
            max_handshake_bytes: 32 << 20,
            list_exports: true,
            shared: false,
            max_payload: 32 << 20,
            minimum_block_size: 1,
            requests_in_flight: 256,
            bytes_in_flight: 64 << 20,
            total_requests_in_flight: 4096,
            total_bytes_in_flight: 512 << 20,
            client_timeout: Duration::from_secs(45),
            attach_wait: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(20),
            shutdown_timeout: Duration::from_secs(30),
            access: Vec::new(),
            tls: TlsOptions::default(),
        }
    }
}

/// More than this would overflow the counters that keep the bounds.
const COUNT_MAX: usize = 1 << 30;
/// More than this would overflow the counters that keep the bounds; also the most that a 32-bit size allows.
const BYTES_MAX: usize = (usize::MAX >> 5) + 1;
/// Beyond this a timer would not be a limit; it also keeps sums of times in range.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The bounds of `client_timeout`: TCP counts questions in whole seconds, and takes no longer pauses between them than 9 hours.
pub(super) const CLIENT_TIMEOUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(24 * 3600));

impl Options {
    /// Checks each limit against its bounds; the error names the first that is wrong.
    pub fn check(&self) -> Result<(), BadOptions> {
        let payload = self.max_payload as usize;
        within("max_connections", self.max_connections, 1, COUNT_MAX)?;
        lasting("handshake_timeout", self.handshake_timeout)?;
        within("max_options", self.max_options as usize, 1, COUNT_MAX)?;
        sized("max_option_bytes", self.max_option_bytes as usize, 8 << 10, 16 << 20)?;
        let handshake_bytes = usize::try_from(self.max_handshake_bytes).unwrap_or(usize::MAX);
        sized("max_handshake_bytes", handshake_bytes, self.max_option_bytes as usize, BYTES_MAX)?;
        sized("max_payload", payload, 1 << 20, 1 << 30)?;
        block_sized("minimum_block_size", self.minimum_block_size)?;
        within("requests_in_flight", self.requests_in_flight, 1, COUNT_MAX)?;
        sized("bytes_in_flight", self.bytes_in_flight, payload, BYTES_MAX)?;
        within("total_requests_in_flight", self.total_requests_in_flight, 1, COUNT_MAX)?;
        sized("total_bytes_in_flight", self.total_bytes_in_flight, payload, BYTES_MAX)?;
        let (min, max) = CLIENT_TIMEOUT;
        bounded("client_timeout", self.client_timeout, min, max, human::exact_duration)?;
        lasting("attach_wait", self.attach_wait)?;
        lasting("stall_timeout", self.stall_timeout)?;
        lasting("shutdown_timeout", self.shutdown_timeout)?;
        let (min, max) = RELOAD_INTERVAL;
        bounded("tls.reload_interval", self.tls.reload_interval, min, max, human::exact_duration)
    }

    /// Checks the rules of `access`; the error is a sentence.
    pub fn check_access(&self) -> Result<(), String> {
        if let Some(fault) = access::fault(&self.access) {
            return Err(fault);
        }
        let number = |is: fn(&Rule) -> bool| self.access.iter().position(is).map(|at| at + 1);
        match (number(|rule| rule.tls), number(Rule::names_certificates)) {
            (_, Some(number)) if self.tls.client_ca.is_none() => {
                Err(format!("rule {number} names certificates, and nothing says whose are good: set nbd.tls.client_ca"))
            }
            (Some(number), _) if self.tls.certificate.is_none() => Err(format!(
                "rule {number} asks for TLS, and there is none: set nbd.tls.mode, nbd.tls.certificate and nbd.tls.key"
            )),
            _ => Ok(()),
        }
    }
}

/// An option out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nbd.{key} = {value} is out of bounds; accepted is {min} to {max}")]
pub struct BadOptions {
    /// The name of the option.
    pub key: &'static str,
    value: String,
    /// The least that is accepted.
    pub min: String,
    /// The most that is accepted.
    pub max: String,
}

fn within(key: &'static str, value: usize, min: usize, max: usize) -> Result<(), BadOptions> {
    bounded(key, value, min, max, |count| count.to_string())
}

fn sized(key: &'static str, value: usize, min: usize, max: usize) -> Result<(), BadOptions> {
    bounded(key, value, min, max, |bytes| human::exact_bytes(bytes as u64))
}

fn block_sized(key: &'static str, value: u32) -> Result<(), BadOptions> {
    match value.is_power_of_two() && value <= 64 << 10 {
        true => Ok(()),
        false => {
            let value = human::exact_bytes(u64::from(value));
            Err(BadOptions { key, value, min: "1 B".to_owned(), max: "64 KiB, powers of two".to_owned() })
        }
    }
}

fn lasting(key: &'static str, value: Duration) -> Result<(), BadOptions> {
    bounded(key, value, Duration::from_millis(1), DURATION_MAX, human::exact_duration)
}

fn bounded<T: Copy + PartialOrd>(
    key: &'static str,
    value: T,
    min: T,
    max: T,
    text: fn(T) -> String,
) -> Result<(), BadOptions> {
    match (min..=max).contains(&value) {
        true => Ok(()),
        false => Err(BadOptions { key, value: text(value), min: text(min), max: text(max) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_bounds() {
        assert_eq!(Options::default().check(), Ok(()));
    }

    /// Fault 9: also a minimum block size that the protocol does not know.
    #[test]
    fn an_option_out_of_bounds_is_named_with_what_is_accepted() {
        let options = Options { bytes_in_flight: 4096, ..Options::default() };
        assert_eq!(
            options.check().unwrap_err().to_string(),
            "nbd.bytes_in_flight = 4 KiB is out of bounds; accepted is 32 MiB to 512 PiB"
        );
        let options = Options { stall_timeout: Duration::ZERO, ..Options::default() };
        assert_eq!(
            options.check().unwrap_err().to_string(),
            "nbd.stall_timeout = 0s is out of bounds; accepted is 1ms to 30days"
        );
        for (bad, said) in [(0, "0 B"), (3000, "3000 B"), (128 << 10, "128 KiB")] {
            let options = Options { minimum_block_size: bad, ..Options::default() };
            assert_eq!(
                options.check().unwrap_err().to_string(),
                format!("nbd.minimum_block_size = {said} is out of bounds; accepted is 1 B to 64 KiB, powers of two")
            );
        }
        let options = Options { client_timeout: Duration::from_secs(86_401), ..Options::default() };
        assert_eq!(
            options.check().unwrap_err().to_string(),
            "nbd.client_timeout = 1day 1s is out of bounds; accepted is 2s to 1day"
        );
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let error = toml::from_str::<Options>("max_conections = 3").unwrap_err().to_string();
        assert!(error.contains("unknown field `max_conections`"), "{error}");
    }
}
