//! Lets go what is kept for clones that are gone, of which nobody told the server of their parent: they were deleted, or became independent, where it could not be
//! reached. One task for each open volume, which asks the store for each clone, as often as objects are looked for that nobody owns
//! ([`crate::engine::sweeps`]), and nothing of a volume without clones.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::engine::shared::Shared;
use crate::error::VolumeError;

/// The task of one volume; it ends when this is dropped, or with the volume.
#[derive(Debug)]
pub(super) struct CloneWatch(JoinHandle<()>);

impl CloneWatch {
    /// Starts the task.
    pub fn start(shared: Arc<Shared>) -> CloneWatch {
        CloneWatch(tokio::spawn(async move {
            tokio::select! {
                _ = shared.waits.progress.wait_for(|progress| progress.end.is_some()) => {}
                () = watch(&shared) => {}
            }
        }))
    }
}

impl Drop for CloneWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(shared: &Shared) {
    let mut pause = shared.ledger().options().gc.sweep_grace;
    loop {
        sleep(pause).await;
        if let Err(error) = look(shared).await
            && shared.check_open().is_ok()
        {
            let volume = &shared.facts.meta.name;
            tracing::debug!(%volume, "it is not known which of its clones are gone: {error}");
        }
        pause = shared.ledger().options().gc.sweep_interval;
    }
}

async fn look(shared: &Shared) -> Result<(), VolumeError> {
    if shared.versions().iter().all(|version| version.label.clones.is_empty()) {
        return Ok(());
    }
    let _turn = shared.versions_turn().await?;
    shared.forget_gone_clones(|label| !label.clones.is_empty()).await
}
