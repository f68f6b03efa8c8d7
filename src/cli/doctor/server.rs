//! The server of the state directory: what it says of itself, or why it does not; and whether one could listen if none runs.

use std::io;
use std::time::Duration;

use super::finding::{About, Finding};
use crate::cli::document::{ServerStatus, VolumeStatus};
use crate::cli::{doors, status};
use crate::config::{Effective, Listen};
use crate::human::counted;
use crate::peer::standby::{Peered, WaitsFor};

/// Looks at what the server answered; `store` is what the configuration names, if it could be opened.
pub async fn look(config: &Effective, asked: &io::Result<ServerStatus>, store: Option<&str>) -> Vec<Finding> {
    match asked {
        Ok(status) => judge(status, store),
        Err(error) if runs_nowhere(error) => {
            let none = About::Server.doubtful(status::no_answer(&config.state, error).to_string());
            [none].into_iter().chain(listening(config).await).collect()
        }
        Err(error) => vec![About::Server.wrong(format!(
            "{}; see its log (journalctl -u ashlar), and whether this user may ask it",
            status::no_answer(&config.state, error)
        ))],
    }
}

fn runs_nowhere(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whether the address is free on which a server would listen.
async fn listening(config: &Effective) -> Option<Finding> {
    let Listen::Address(address) = &config.serve.listen else { return None };
    let resolved = match doors::resolve(config, "serve.listen", address).await {
        Ok(resolved) => resolved,
        Err(why) => return Some(About::Server.wrong(why.to_string())),
    };
    Some(match tokio::net::TcpListener::bind(resolved).await {
        Ok(_) => About::Server.good(format!("a server can listen on {resolved}")),
        Err(error) => About::Server.wrong(format!(
            "a server cannot listen on {resolved}: {error}; end what does, or choose another address with serve.listen"
        )),
    })
}

fn judge(status: &ServerStatus, store: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !status.version.is_empty() && status.version != env!("CARGO_PKG_VERSION") {
        findings.push(About::Server.doubtful(format!(
            "the server is version {}, and this program {}: `ashlar serve --replace` takes its place",
            status.version,
            env!("CARGO_PKG_VERSION")
        )));
    }
    if let Some(store) = store.filter(|store| *store != status.store) {
        findings.push(About::Server.doubtful(format!(
            "the server of this state directory serves {}, and the configuration names {store}: name the configuration of the server with --config",
            status.store
        )));
    }
    if let Some(trouble) = &status.store_trouble {
        findings.push(About::Server.wrong(format!(
            "{}; it goes on by itself once the store answers, and what was found of the store says more",
            trouble.sentence
        )));
    }
    findings.extend(status.ended.iter().map(|ended| {
        About::Server.wrong(format!(
            "volume {} has ended and did not open again: {}; what was acknowledged and is not in the store is in the journal",
            ended.name, ended.why
        ))
    }));
    findings.extend(status.unopened.iter().map(|unopened| {
        About::Server
            .wrong(format!("volume {} did not open when it was last asked for: {}", unopened.name, unopened.why))
    }));
    findings.extend(status.volumes.iter().flat_map(judge_volume));
    if status.log.lines_dropped > 0 {
        findings.push(About::Server.doubtful(format!(
            "the server dropped {} of its log, which could not be written: see who reads it, and its disk",
            counted(status.log.lines_dropped, "line")
        )));
    }
    if let Some(why) = status.cache.disk.as_ref().and_then(|disk| disk.off.as_ref()) {
        findings.push(
            About::Server.doubtful(format!("the cache on disk is off: {why}; mend that, and start the server again")),
        );
    }
    findings.push(About::Server.good(format!(
        "server {} has {} open and {} attached",
        status.pid,
        counted(status.volumes.len() as u64, "volume"),
        counted(status.clients.len() as u64, "client")
    )));
    findings
}

fn judge_volume(VolumeStatus { name, status, peer, .. }: &VolumeStatus) -> Vec<Finding> {
    let ended = status.ended.as_ref().map(|why| {
        About::Server
            .wrong(format!("volume {name} has ended: {why}; it opens again for the next client, if that can be"))
    });
    let suspended = status.journal_suspended.as_ref().map(|why| {
        About::Server.wrong(format!(
            "the journal of volume {name} cannot be written, and so each write waits for the store: {why}; mend its disk (the key state)"
        ))
    });
    let damaged = (status.gc.damaged_segments > 0).then(|| {
        About::Server.wrong(format!(
            "{} of volume {name} cannot be read: `ashlar check {name} --data` says what is lost, and with --repair brings back what it can",
            counted(status.gc.damaged_segments, "segment")
        ))
    });
    let held = (status.writes_waiting > 0).then(|| {
        About::Server.doubtful(format!(
            "{} to volume {name} held back, as its dirty bytes are at their bound: the store takes less than clients write; see volume.dirty_bytes, \
             and `ashlar bench`",
            counted(status.writes_waiting, "write")
        ))
    });
    let peer = peer.as_ref().map(|peer| judge_peer(name, peer));
    [ended, suspended, damaged, held, peer].into_iter().flatten().collect()
}

/// What the flushes of a volume wait for, and since when.
fn judge_peer(name: &str, Peered { address, waits_for, millis, trouble, .. }: &Peered) -> Finding {
    let lasts = humantime::format_duration(Duration::from_secs(millis / 1000));
    let why = trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    match waits_for {
        WaitsFor::Peer => {
            About::Server.good(format!("{address} has kept a whole copy of the journal of volume {name} for {lasts}"))
        }
        WaitsFor::Store if address.is_empty() => About::Server.doubtful(format!(
            "the durability of volume {name} is \"peer\" and this server has none, so writes and flushes are answered when the store has them: name one with peer.address, \
             or `ashlar set {name} durability=store`"
        )),
        WaitsFor::Store => About::Server.doubtful(format!(
            "the peer {address} of volume {name} has been away for {lasts}, so writes and flushes are answered when the store has them{why}; once it is there, a new copy begins by itself"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Weight;
    use super::*;
    use crate::cli::document::example::{quiet, whole};
    use crate::cli::logging::LogStatus;
    use crate::volume::{GcStatus, Status};

    /// A server of which nothing is wrong.
    fn fine() -> ServerStatus {
        let mut status = whole();
        status.version = env!("CARGO_PKG_VERSION").into();
        (status.store_trouble, status.ended, status.unopened) = (None, Vec::new(), Vec::new());
        status.cache.disk = None;
        status.volumes[0] =
            VolumeStatus { store_trouble: None, peer: None, status: quiet(), ..status.volumes[0].clone() };
        status
    }

    #[track_caller]
    fn the_first_is(status: &ServerStatus, weight: Weight, words: &str) {
        let findings = judge(status, Some("word"));
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].weight == weight && findings[0].sentence.contains(words), "{findings:?}");
    }

    #[test]
    fn a_server_that_does_well_is_good() {
        let findings = judge(&fine(), Some("word"));
        assert_eq!(findings, [About::Server.good("server 1 has 1 volume open and 1 client attached")]);
        assert_eq!(judge(&fine(), None), findings, "a store that could not be opened is said elsewhere");
    }

    #[test]
    fn each_thing_that_it_says_of_itself_has_its_sentence() {
        the_first_is(&ServerStatus { version: "0.0.1".into(), ..fine() }, Weight::Doubtful, "serve --replace");
        the_first_is(&ServerStatus { store: "s3://other".into(), ..fine() }, Weight::Doubtful, "serves s3://other");
        let store_trouble = whole().store_trouble;
        the_first_is(&ServerStatus { store_trouble, ..fine() }, Weight::Wrong, "once the store answers");
        let ended = whole().ended;
        the_first_is(&ServerStatus { ended, ..fine() }, Weight::Wrong, "volume word has ended and did not open again");
        let unopened = whole().unopened;
        the_first_is(
            &ServerStatus { unopened, ..fine() },
            Weight::Wrong,
            "volume word did not open when it was last asked for",
        );
        let log = LogStatus { lines_dropped: 3, lines_held_back: 0 };
        the_first_is(&ServerStatus { log, ..fine() }, Weight::Doubtful, "dropped 3 lines of its log");
        let cache = whole().cache;
        the_first_is(&ServerStatus { cache, ..fine() }, Weight::Doubtful, "the cache on disk is off: word");
    }

    #[test]
    fn each_thing_that_it_says_of_a_volume_has_its_sentence() {
        let with = |status: Status| {
            let mut server = fine();
            server.volumes[0].status = status;
            server
        };
        the_first_is(
            &with(Status { ended: Some("why".into()), ..quiet() }),
            Weight::Wrong,
            "volume word has ended: why",
        );
        let suspended = Status { journal_suspended: Some("full".into()), ..quiet() };
        the_first_is(&with(suspended), Weight::Wrong, "the journal of volume word cannot be written");
        let gc = GcStatus { damaged_segments: 2, ..quiet().gc };
        the_first_is(&with(Status { gc, ..quiet() }), Weight::Wrong, "2 segments of volume word cannot be read");
        the_first_is(
            &with(Status { writes_waiting: 1, ..quiet() }),
            Weight::Doubtful,
            "1 write to volume word held back",
        );
    }

    #[test]
    fn whoever_answers_a_flush_is_said_and_since_when() {
        let told = |peer: Peered| {
            let mut server = fine();
            server.volumes[0].peer = Some(peer);
            judge(&server, Some("word")).remove(0)
        };
        let kept = Peered {
            address: "b:1".into(),
            waits_for: WaitsFor::Peer,
            millis: 61_500,
            trouble: None,
            falls: 0,
            lag_bytes: 0,
        };
        let good = About::Server.good("b:1 has kept a whole copy of the journal of volume word for 1m 1s");
        assert_eq!(told(kept.clone()), good);
        let away = told(Peered { waits_for: WaitsFor::Store, trouble: Some("it is silent".into()), ..kept.clone() });
        assert!(
            away.weight == Weight::Doubtful
                && away.sentence.starts_with("the peer b:1 of volume word has been away for 1m 1s, so writes and")
                && away.sentence.contains("when the store has them: it is silent; once"),
            "{away:?}"
        );
        let none = told(Peered { address: String::new(), waits_for: WaitsFor::Store, ..kept });
        assert!(none.weight == Weight::Doubtful && none.sentence.contains("name one with peer.address"), "{none:?}");
    }
}
