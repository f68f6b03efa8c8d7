//! Since which epoch nothing was lost that a client had its reply for: flushed or not. Pure.
//!
//! A client whose server is started again goes on as if nothing had happened: what it was told is written, it never writes again.
//! So whoever reconnects a device must know whether a server still has every acknowledged change, not only the flushed ones. An
//! epoch continues the one before it if that was closed, or if its journal is here, whole, and this host has not lost its memory
//! since (what is in a journal and not synced survives the process, not the host). Everything else breaks the line: another server's
//! journal is elsewhere, a power loss may have torn the end off, an operator accepted a loss or an older store.
//!
//! When in doubt, the line is broken: a device is then given up that might have gone on.

use serde::{Deserialize, Serialize};

use crate::units::Epoch;

/// What a server keeps of it, with what it has seen of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The first epoch of which every acknowledged change is here.
    pub since: u64,
    /// The life of the host in which this was written.
    pub host_life: Option<String>,
}

/// How an epoch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The epoch before was closed: all of it is in the store.
    Closed,
    /// With the whole journal of the epoch before.
    Resumed,
    /// With the whole copy that this server, as its peer, has of the journal of the epoch before: all that was acknowledged is in that copy, or in the store.
    Kept {
        /// The first epoch of which that was so when the copy began.
        since: u64,
        /// Whether this host has not lost its memory since.
        same_life: bool,
    },
    /// In any other way.
    Broken,
}

/// The line of an epoch. `before` is the epoch before it, `kept` what this server kept of the volume last, in which epoch.
pub fn continued(
    start: Start,
    epoch: Epoch,
    before: Epoch,
    kept: Option<(Epoch, &Line)>,
    host_life: Option<String>,
) -> Line {
    let same_life = kept.is_some_and(|(_, line)| line.host_life.is_some() && line.host_life == host_life);
    let goes_on = match start {
        Start::Closed => true,
        Start::Resumed => same_life,
        Start::Kept { same_life, .. } => same_life,
        Start::Broken => false,
    };
    // What was kept of an older epoch says nothing of those in between.
    let since = match kept {
        _ if !goes_on => epoch.0,
        _ if let Start::Kept { since, .. } = start => since,
        Some((of, line)) if of == before => line.since,
        _ => before.0,
    };
    Line { since, host_life }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(since: u64, life: &str) -> Line {
        Line { since, host_life: Some(life.to_owned()) }
    }

    fn since(start: Start, kept: Option<(u64, &Line)>, life: Option<&str>) -> u64 {
        let kept = kept.map(|(epoch, line)| (Epoch(epoch), line));
        continued(start, Epoch(7), Epoch(6), kept, life.map(str::to_owned)).since
    }

    #[test]
    fn a_line_goes_on_only_where_everything_acknowledged_is_here() {
        let line = kept(2, "a");
        let here = Some((6, &line));
        assert_eq!(since(Start::Resumed, here, Some("a")), 2);
        assert_eq!(since(Start::Closed, here, Some("b")), 2);
        // The host died: what was not synced is gone.
        assert_eq!(since(Start::Resumed, here, Some("b")), 7);
        assert_eq!(since(Start::Resumed, here, None), 7);
        assert_eq!(since(Start::Broken, here, Some("a")), 7);
        // Another server closed it: of what was before that, nothing is known here.
        assert_eq!(since(Start::Closed, None, Some("a")), 6);
        assert_eq!(since(Start::Closed, Some((5, &line)), Some("a")), 6);
        assert_eq!(since(Start::Resumed, Some((5, &line)), Some("a")), 6);
        assert_eq!(since(Start::Resumed, None, Some("a")), 7);
        let nameless = Line { since: 2, host_life: None };
        assert_eq!(since(Start::Resumed, Some((6, &nameless)), None), 7);
    }
}
