//! What a running server tells those who watch it: its metrics, and whether it is of use.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::control::Insight;
use super::document::ServerStatus;
use crate::metrics::{Family, Teller};
use crate::outside::Workers;
use crate::store::meter::{Meter, Metered, Outcomes};
use crate::store::prices::Prices;
use crate::tally::Tallied;
use crate::volume::Volume;

mod families;
mod ready;
mod samples;

use families::families;
use ready::{Look, Seen};
use samples::Samples;

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
    /// What the requests cost, in US dollars.
    pub dollars: f64,
    /// GETs that were asked a second time.
    pub hedges: u64,
    /// Attempts that failed and were followed by another.
    pub retries: u64,
}

impl StoreReadings {
    fn of(meter: &Meter, prices: &Prices, retries: u64) -> StoreReadings {
        let metered = meter.snapshot();
        let dollars = prices.of_requests(&metered);
        StoreReadings { outcomes: meter.outcomes(), metered, dollars, hedges: meter.hedges(), retries }
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
            store: StoreReadings::of(
                &self.meter,
                &self.budget.purse().prices().prices(),
                self.health.failed_attempts(),
            ),
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

/// An [`Insight`], and what it was in the last hour.
pub struct Telling {
    insight: Arc<Insight>,
    samples: Mutex<Samples>,
}

impl Telling {
    /// Samples will cover so much time.
    pub fn new(insight: Arc<Insight>, history: Duration) -> Telling {
        Telling { insight, samples: Mutex::new(Samples::new(history)) }
    }

    /// Takes samples, until the task is dropped.
    pub async fn keep_samples(&self) {
        let mut ticks = interval(self.samples.lock().interval());
        // A sample that is late is no reason for several at once.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = ticks.tick().await;
        loop {
            ticks.tick().await;
            let (insight, open) = (Arc::clone(&self.insight), self.insight.open().await);
            let readings = Workers::Threads.run(move || insight.readings(&open)).await;
            let now = Instant::now();
            self.samples.lock().add(&readings, now - before);
            before = now;
        }
    }
}

#[async_trait]
impl Teller for Telling {
    async fn status(&self) -> Vec<u8> {
        let (insight, open) = (Arc::clone(&self.insight), self.insight.open().await);
        // Plain numbers and names always become JSON.
        Workers::Threads.run(move || serde_json::to_vec(&insight.status(&open)).unwrap_or_default()).await
    }

    async fn samples(&self, after_unix_millis: u64) -> Vec<u8> {
        let excerpt = self.samples.lock().after(after_unix_millis);
        Workers::Threads.run(move || serde_json::to_vec(&excerpt).unwrap_or_default()).await
    }

    async fn metrics(&self) -> Vec<Family> {
        let (insight, open) = (Arc::clone(&self.insight), self.insight.open().await);
        // Some hundred numbers for each volume: nothing that a task of the service should wait for.
        Workers::Threads.run(move || families(&insight.readings(&open))).await
    }

    async fn troubles(&self) -> Vec<String> {
        self.insight.look().await.troubles(self.insight.store_patience)
    }
}
