//! The peer of an open volume: one task that reaches it again and again, for as long as the volume is open ([`crate::peer::standby`]).

use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::format::segment::Durability;
use crate::peer::standby::{Link, Needs, Peered, Standby, WaitsFor};
use crate::peer::stream::Origin;
use crate::units::Epoch;

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct StandingBy {
    standby: Option<Arc<Standby>>,
    /// Since when a volume is without a peer that should have one.
    without: Option<Instant>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl StandingBy {
    /// Starts it, if that is what the volume's durability asks for. To be called before anything is accepted.
    pub fn start(shared: Arc<Shared>, link: Option<Link>) -> StandingBy {
        let without = |since| StandingBy { standby: None, without: since, task: Mutex::default() };
        if shared.facts.options.durability != Durability::Peer {
            return without(None);
        }
        let (last, covers) = {
            let ledger = shared.ledger();
            (ledger.log().last(), ledger.log().covers())
        };
        // What the opening before was answered for is from now on in this journal alone: the fence that is there now names no copy of it.
        shared.hurry(last);
        let Some(link) = link else {
            tracing::warn!(
                volume = %shared.facts.meta.name,
                "its durability is \"peer\" and this server has none (peer.address): writes and flushes are answered when the store has them"
            );
            return without(Some(Instant::now()));
        };
        let (name, epoch, since) = (shared.facts.fence.1.journal, shared.facts.epoch, Epoch(shared.facts.line.since));
        let origin = Origin {
            sealer: shared.doors.sealer.clone(),
            block_size: shared.facts.block_size,
            name,
            epoch,
            since,
            random: shared.doors.random.clone(),
        };
        let standby = Arc::new(Standby::new(shared.facts.meta.name.as_str(), link, last.next(), covers));
        let standby = Arc::clone(shared.doors.standby.get_or_init(|| standby));
        let committer = shared.clone();
        let commit = move |no| {
            let shared = committer.clone();
            async move { shared.committed(no).await.is_ok() }.boxed()
        };
        let ended = async move {
            let progress = shared.waits.progress.wait_for(|progress| progress.end.is_some()).await;
            progress.end == Some(End::Closed)
        };
        let needs = Needs { origin, commit: Box::new(commit), ended: ended.boxed() };
        let keeping = Arc::clone(&standby);
        let task = tokio::spawn(async move { keeping.keep(needs).await });
        StandingBy { standby: Some(standby), without: None, task: Mutex::new(Some(task)) }
    }

    /// Returns once the peer knows that the volume is closed, or cannot be told.
    pub async fn settled(&self) {
        let task = self.task.lock().take();
        if let (Some(mut task), Some(standby)) = (task, &self.standby)
            && timeout(standby.patience() * 2, &mut task).await.is_err()
        {
            task.abort();
        }
    }

    /// How it stands to its peer, if it is to have one.
    pub fn peered(&self) -> Option<Peered> {
        let without = |since: Instant| Peered {
            address: String::new(),
            waits_for: WaitsFor::Store,
            millis: since.elapsed().as_millis() as u64,
            trouble: Some("peer.address is not set on this server".to_owned()),
            falls: 0,
            lag_bytes: 0,
        };
        self.standby.as_ref().map(|standby| standby.peered()).or(self.without.map(without))
    }
}

impl Drop for StandingBy {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}
