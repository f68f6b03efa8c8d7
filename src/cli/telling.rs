//! What a running server tells those who watch it: its metrics, and whether it is of use.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::control::Insight;
use super::document::ServerStatus;
use crate::metrics::{Family, Teller};
use crate::outside::Workers;
use crate::store::meter::{Meter, Metered, Outcomes};
use crate::tally::Tallied;
use crate::volume::Volume;

mod families;
mod ready;

use families::families;
use ready::{Look, Seen};

/// How long a volume that is being opened or closed is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// All that the metrics are made of, as of one moment.
#[derive(Clone, Debug)]
pub struct Readings {
    /// What `ashlar status` says.
    pub status: ServerStatus,
    /// What clients asked of the open volumes, by name and operation.
    pub operations: Vec<(String, [(&'static str, Tallied); 7])>,
    /// What the store was asked for.
    pub store: StoreReadings,
}

/// What a store was asked for since the start.
#[derive(Clone, Copy, Debug)]
pub struct StoreReadings {
    /// What came of it, by kind.
    pub outcomes: [(&'static str, Outcomes); 4],
    /// How many bytes and objects.
    pub metered: Metered,
    /// GETs that were asked a second time.
    pub hedges: u64,
    /// Attempts that failed and were followed by another.
    pub retries: u64,
}

impl StoreReadings {
    fn of(meter: &Meter, retries: u64) -> StoreReadings {
        StoreReadings { outcomes: meter.outcomes(), metered: meter.snapshot(), hedges: meter.hedges(), retries }
    }
}

impl Insight {
    /// The volumes that are open, or would be if they were not being opened or closed.
    async fn open(&self) -> Vec<(String, Arc<Volume>)> {
        let seen = self.exports.look(PATIENCE).await;
        seen.into_iter().filter_map(|(name, volume)| Some((name, volume?))).collect()
    }

    fn readings(&self, open: &[(String, Arc<Volume>)]) -> Readings {
        Readings {
            status: self.status(open),
            operations: open.iter().map(|(name, volume)| (name.clone(), volume.operations())).collect(),
            store: StoreReadings::of(&self.meter, self.health.failed_attempts()),
        }
    }

    async fn look(&self) -> Look {
        let seen = self.exports.look(PATIENCE).await;
        let seen = seen.into_iter().map(|(name, volume)| match volume {
            None => (name, Seen::Busy),
            Some(volume) => {
                let (ended, trouble) = self.standing(&volume);
                (name, Seen::Open { ended, trouble })
            }
        });
        Look {
            stopping: self.server.is_draining(),
            named: self.exports.named().unwrap_or_default(),
            seen: seen.collect(),
            ended: self.exports.ended(),
            moved: self.exports.moved().into_iter().map(|(name, _)| name).collect(),
            trouble: self.trouble(),
        }
    }
}

/// An [`Insight`] that is shared.
#[derive(Clone)]
pub struct Telling(pub Arc<Insight>);

#[async_trait]
impl Teller for Telling {
    async fn metrics(&self) -> Vec<Family> {
        let (insight, open) = (Arc::clone(&self.0), self.0.open().await);
        // Some hundred numbers for each volume: nothing that a task of the service should wait for.
        Workers::Threads.run(move || families(&insight.readings(&open))).await
    }

    async fn troubles(&self) -> Vec<String> {
        self.0.look().await.troubles(self.0.store_patience)
    }
}
