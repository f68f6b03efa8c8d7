//! The peer: whether it is there and has the same secret, and whether a server here could listen for the journals of others.

use super::finding::{About, Finding};
use crate::cli::{doors, outside, peers};
use crate::config::Effective;
use crate::peer::standby::try_out;

/// Looks at what `[peer]` names; `is_served` says that a server runs, which listens itself.
pub async fn look(config: &Effective, is_served: bool) -> Vec<Finding> {
    let link = match peers::ways(config, &outside::real().1).await {
        Ok((_, link)) => link,
        Err(why) => return vec![About::Peer.wrong(why.to_string())],
    };
    let answer = match &link {
        Some(link) => Some(judge(&link.address, try_out(link).await.map(|after| after.as_micros() as u64))),
        None => None,
    };
    let listens = match config.peer.listen.as_ref().filter(|_| !is_served) {
        Some(listen) => Some(listening(config, listen).await),
        None => None,
    };
    answer.into_iter().chain(listens).collect()
}

fn judge(address: &str, answered: Result<u64, String>) -> Finding {
    match answered {
        Ok(micros) => About::Peer.good(format!(
            "the peer {address} answers after {:.1} ms, and has the same secret",
            micros as f64 / 1000.0
        )),
        Err(why) => About::Peer.doubtful(format!(
            "the peer {address} is away: {why}; with durability \"peer\" writes and flushes are answered when the store has them until it is back, \
             and then by the peer again, by itself"
        )),
    }
}

async fn listening(config: &Effective, listen: &str) -> Finding {
    let resolved = match doors::resolve(config, "peer.listen", listen).await {
        Ok(resolved) => resolved,
        Err(why) => return About::Peer.wrong(why.to_string()),
    };
    match tokio::net::TcpListener::bind(resolved).await {
        Ok(_) => About::Peer.good(format!("a server can listen on {resolved} for the journals of others")),
        Err(error) => About::Peer.wrong(format!(
            "a server cannot listen on {resolved} for the journals of others: {error}; end what does, or choose another address with peer.listen"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Weight;
    use super::*;

    #[test]
    fn a_peer_answers_or_is_away_for_a_reason() {
        let good = About::Peer.good("the peer b:1 answers after 0.4 ms, and has the same secret");
        assert_eq!(judge("b:1", Ok(412)), good);
        let away = judge("b:1", Err("it cannot be reached".into()));
        assert!(away.sentence.starts_with("the peer b:1 is away: it cannot be reached; with durability"), "{away:?}");
        assert_eq!(away.weight, Weight::Doubtful);
    }
}
