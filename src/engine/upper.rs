//! The upper part of the map in memory: the pages that find its leaves, and the salts of segments. A cold read then asks for a leaf and for its
//! frame, and for nothing else. It comes in once a read lacked a part of it, so a volume that nobody reads costs no request, and takes no more than
//! its share of what the map may have in memory.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::engine::log::Lacking;
use crate::engine::shared::Shared;
use crate::map::NeedPages;

/// It may take this part of what the map may have in memory.
const UPPER_PART: u64 = 2;

/// Pages that are asked for at once.
const AT_ONCE: usize = 16;

/// The task of one volume.
#[derive(Debug)]
pub(crate) struct Upper(JoinHandle<()>);

impl Upper {
    /// Starts the task; it ends when this is dropped, or when everything is there.
    pub fn start(shared: Arc<Shared>) -> Upper {
        Upper(tokio::spawn(async move {
            shared.waits.upper_lacks.notified().await;
            shared.bring_upper().await;
        }))
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// A read waits for these pages.
    pub(crate) fn note_lacking(&self, lacking: &Lacking) {
        if lacking.pages.iter().any(|page| page.kind.is_upper()) {
            self.waits.upper_lacks.notify_one();
        }
    }

    async fn bring_upper(&self) {
        let upper = self.ledger().log().map.upper();
        let mut room = self.doors.seat.map_memory() / UPPER_PART;
        for pages in upper.chunks(AT_ONCE) {
            let _reading = self.begin_reading();
            match self.fetch_pages(NeedPages(pages.to_vec())).await {
                Ok(loaded) => {
                    let takes: u64 = loaded.iter().map(|(_, page)| page.memory() as u64).sum();
                    let Some(left) = room.checked_sub(takes) else { return };
                    room = left;
                    self.ledger().bring(loaded, self.doors.seat.map_memory());
                }
                // Whoever reads there will see the error.
                Err(error) => return tracing::debug!("the upper part of the map is not brought into memory: {error}"),
            }
        }
    }
}
