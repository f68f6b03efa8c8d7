//! What happened in each second between two documents of a server: pure.

use std::collections::BTreeMap;

use crate::cli::document::{ServerStatus, VolumeStatus};

/// What happened in each second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of each volume that was open both times.
    pub volumes: BTreeMap<String, OfVolume>,
    /// Of all of them.
    pub all: OfVolume,
    /// Requests to the store that ended.
    pub store: f64,
}

/// Of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OfVolume {
    /// Bytes that clients read.
    pub read: f64,
    /// Bytes that they wrote.
    pub written: f64,
    /// Requests of theirs that ended.
    pub requests: f64,
}

/// The rates between two documents; none if they are not of one server, or of one moment.
pub fn between(before: &ServerStatus, now: &ServerStatus) -> Option<Rates> {
    let is_same = (before.pid, before.since_unix_millis) == (now.pid, now.since_unix_millis);
    let seconds = now.unix_millis.saturating_sub(before.unix_millis) as f64 / 1000.0;
    if !is_same || seconds <= 0.0 {
        return None;
    }
    let mut rates = Rates { store: ended(now).saturating_sub(ended(before)) as f64 / seconds, ..Rates::default() };
    for volume in &now.volumes {
        let is_it = |other: &&VolumeStatus| other.name == volume.name && other.status.epoch == volume.status.epoch;
        let Some(known) = before.volumes.iter().find(is_it) else { continue };
        let rate = |of: fn(&VolumeStatus) -> u64| of(volume).saturating_sub(of(known)) as f64 / seconds;
        let of = OfVolume {
            read: rate(|volume| bytes(volume, "read")),
            written: rate(|volume| bytes(volume, "write")),
            requests: rate(|volume| volume.operations.iter().map(|operation| operation.requests).sum()),
        };
        rates.all.read += of.read;
        rates.all.written += of.written;
        rates.all.requests += of.requests;
        rates.volumes.insert(volume.name.clone(), of);
    }
    Some(rates)
}

fn bytes(volume: &VolumeStatus, operation: &str) -> u64 {
    volume.operations.iter().filter(|of| of.operation == operation).map(|of| of.bytes).sum()
}

fn ended(status: &ServerStatus) -> u64 {
    let of = status.store_requests.iter().map(|kind| kind.answered + kind.retryable + kind.refused + kind.given_up);
    of.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::OperationStatus;
    use crate::cli::document::example::whole;

    #[test]
    fn rates_are_of_one_server_and_of_volumes_that_stayed_open() {
        let at = |millis: u64, read: u64, puts: u64| {
            let mut status = whole();
            status.unix_millis = millis;
            status.store_requests[0].answered = puts;
            status.volumes[0].operations =
                vec![OperationStatus { operation: "read".into(), requests: read, bytes: read << 10, errors: 0 }];
            status
        };
        let rates = between(&at(1000, 10, 5), &at(5000, 50, 13)).unwrap();
        let of = OfVolume { read: 10.0 * 1024.0, written: 0.0, requests: 10.0 };
        assert_eq!((rates.all, rates.volumes["word"], rates.store), (of, of, 2.0));
        assert_eq!(between(&at(1000, 0, 0), &at(1000, 9, 9)), None, "of one moment");
        let mut other = at(5000, 50, 13);
        other.since_unix_millis += 1;
        assert_eq!(between(&at(1000, 10, 5), &other), None, "it was started again");
        let mut reopened = at(5000, 50, 13);
        reopened.volumes[0].status.epoch += 1;
        assert_eq!(between(&at(1000, 10, 5), &reopened).unwrap().all, OfVolume::default());
    }
}
