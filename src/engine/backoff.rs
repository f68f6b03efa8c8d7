//! Trying again for ever, with growing pauses: for what is already acknowledged (rule R10).

use std::time::Duration;

use crate::engine::shared::Shared;
use crate::store::StoreError;
use crate::store::health::Attempts;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);

/// The pauses of one operation that must succeed in the end.
pub(crate) struct Backoff {
    volume: String,
    random: crate::outside::Random,
    max: Duration,
    next: Duration,
    tries: u64,
    /// The volume's record of what fails.
    attempts: Attempts,
}

impl Backoff {
    pub(crate) fn new(shared: &Shared) -> Backoff {
        let max = shared.facts.options.retry_pause_max;
        let volume = shared.facts.meta.name.to_string();
        let attempts = shared.doors.health.begin();
        Backoff { volume, random: shared.doors.random.clone(), max, next: FIRST.min(max), tries: 0, attempts }
    }

    /// Says what failed (the first time, and then as the pauses double) and waits, with jitter. `doing` need not name the object:
    /// the error does.
    pub(crate) async fn pause(&mut self, doing: &str, error: &StoreError) {
        self.tries += 1;
        self.attempts.failed(StoreError::new(error.kind, format!("{doing}: {error}")));
        if self.tries.is_power_of_two() {
            tracing::warn!(volume = self.volume, tries = self.tries, "{doing}: {error}; trying again");
        }
        let spread = self.random.below(self.next.as_millis() as u64 / 2 + 1);
        tokio::time::sleep(self.next - Duration::from_millis(spread)).await;
        self.next = (self.next * 2).min(self.max);
    }
}
