//! The last hour of a server, as the page plots it: a ring of samples. Pure; [`super`] fills it.
//!
//! A sample has what happened in each second since the one before, by the difference of two counts, and what there was at its
//! moment. Counts begin at 0 with each opening of a volume, which the epoch tells. What a ring holds is bounded: [`SAMPLES`] of them,
//! each with the sum over all volumes and with the first [`SAMPLED_VOLUMES`] by name.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{Readings, StoreReadings};
use crate::cli::document::VolumeStatus;

/// Samples that are kept: so many cover `metrics.history`.
pub const SAMPLES: usize = 360;

/// Volumes of which a sample has more than the sum.
pub const SAMPLED_VOLUMES: usize = 32;

/// What a sample says of a volume, in this order; those that end in `_bytes` are as of its moment, the others for each second.
pub const VOLUME_SERIES: [&str; 10] = [
    "read_bytes_per_second",
    "written_bytes_per_second",
    "reads_per_second",
    "writes_per_second",
    "flushes_per_second",
    "others_per_second",
    "errors_per_second",
    "dirty_bytes",
    "live_bytes",
    "dead_bytes",
];

/// What a sample says of the store, in this order.
pub const STORE_SERIES: [&str; 8] = [
    "puts_per_second",
    "gets_per_second",
    "lists_per_second",
    "deletes_per_second",
    "sent_bytes_per_second",
    "received_bytes_per_second",
    "dollars_per_hour",
    "trouble",
];

/// Volumes that are remembered, so that one that was closed for a moment goes on where it was.
const KNOWN: usize = 1024;

/// How many of [`VOLUME_SERIES`] are counts at first.
const COUNTS: usize = 7;

type OfVolume = [f32; VOLUME_SERIES.len()];

/// One moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Sample {
    unix_millis: u64,
    store: [f32; STORE_SERIES.len()],
    all: OfVolume,
    #[serde(serialize_with = "by_name")]
    volumes: BTreeMap<Arc<str>, OfVolume>,
}

/// The samples, and what the next one is compared with.
#[derive(Debug)]
pub struct Samples {
    interval: Duration,
    ring: VecDeque<Arc<Sample>>,
    store: [f64; STORE_SERIES.len() - 1],
    volumes: BTreeMap<Arc<str>, Counted>,
}

/// What was counted of a volume.
#[derive(Clone, Copy, Debug)]
struct Counted {
    epoch: u64,
    counts: [u64; COUNTS],
}

fn by_name<S: Serializer>(volumes: &BTreeMap<Arc<str>, OfVolume>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(volumes.iter().map(|(name, of)| (&**name, of)))
}

fn one_by_one<S: Serializer>(samples: &[Arc<Sample>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(samples.iter().map(|sample| &**sample))
}

/// Some of the samples.
#[derive(Serialize)]
pub struct Excerpt {
    interval_millis: u64,
    history_millis: u64,
    store_series: [&'static str; STORE_SERIES.len()],
    volume_series: [&'static str; VOLUME_SERIES.len()],
    #[serde(serialize_with = "one_by_one")]
    samples: Vec<Arc<Sample>>,
}

impl Samples {
    /// None yet, of a server whose counts are all 0; they will cover so much time.
    pub fn new(history: Duration) -> Samples {
        let interval = history / SAMPLES as u32;
        Samples { interval, ring: VecDeque::new(), store: Default::default(), volumes: BTreeMap::new() }
    }

    /// How long after a sample the next one is due.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Adds a sample, taken so long after the one before or the start.
    pub fn add(&mut self, readings: &Readings, since_before: Duration) {
        // Two moments are never one.
        let seconds = since_before.as_secs_f64().max(1e-3);
        let volumes: BTreeMap<Arc<str>, _> =
            readings.status.volumes.iter().map(|volume| self.of(volume, seconds)).collect();
        let store = self.of_store(&readings.store, readings.status.store_trouble.is_some(), seconds);
        let mut all = OfVolume::default();
        volumes.values().for_each(|(_, of)| all.iter_mut().zip(of).for_each(|(sum, value)| *sum += value));
        let shown = volumes.iter().take(SAMPLED_VOLUMES).map(|(name, (_, of))| (Arc::clone(name), *of)).collect();
        if self.volumes.len() > KNOWN {
            self.volumes.retain(|name, _| volumes.contains_key(name));
        }
        self.volumes.extend(volumes.into_iter().map(|(name, (counted, _))| (name, counted)));
        while self.ring.len() >= SAMPLES {
            self.ring.pop_front();
        }
        self.ring.push_back(Arc::new(Sample { unix_millis: readings.status.unix_millis, store, all, volumes: shown }));
    }

    fn of(&self, volume: &VolumeStatus, seconds: f64) -> (Arc<str>, (Counted, OfVolume)) {
        let VolumeStatus { name, operations, status, .. } = volume;
        let (mut counts, mut errors) = ([0; COUNTS], 0);
        for operation in operations {
            let which = match operation.operation.as_str() {
                "read" => 2,
                "write" => 3,
                "flush" => 4,
                _ => 5,
            };
            counts[which] += operation.requests;
            errors += operation.errors;
            if which < 4 {
                counts[which - 2] += operation.bytes;
            }
        }
        counts[6] = errors;
        let known = self.volumes.get_key_value(name.as_str());
        let before = known.map(|(_, counted)| counted).filter(|counted| counted.epoch == status.epoch);
        let before = before.map_or([0; COUNTS], |counted| counted.counts);
        let mut of = OfVolume::default();
        for ((rate, now), before) in of.iter_mut().zip(counts).zip(before) {
            *rate = (now.saturating_sub(before) as f64 / seconds) as f32;
        }
        of[COUNTS..].copy_from_slice(&[
            status.dirty_bytes as f32,
            status.live_bytes as f32,
            (status.dead_bytes + status.sparse_bytes) as f32,
        ]);
        let name = known.map_or_else(|| Arc::from(name.as_str()), |(name, _)| Arc::clone(name));
        (name, (Counted { epoch: status.epoch, counts }, of))
    }

    fn of_store(&mut self, store: &StoreReadings, is_troubled: bool, seconds: f64) -> [f32; STORE_SERIES.len()] {
        let metered = &store.metered;
        let ended = store.outcomes.map(|(_, outcomes)| (outcomes.begun - outcomes.under_way()) as f64);
        let [puts, gets, lists, deletes] = ended;
        // Money by the hour: the rates below are for each second.
        let dollars = 3600.0 * store.dollars;
        let now = [puts, gets, lists, deletes, metered.bytes_put as f64, metered.bytes_got as f64, dollars];
        let mut of = [0.0; STORE_SERIES.len()];
        for ((rate, now), before) in of.iter_mut().zip(now).zip(self.store) {
            *rate = ((now - before).max(0.0) / seconds) as f32;
        }
        of[now.len()] = f32::from(u8::from(is_troubled));
        self.store = now;
        of
    }

    /// The samples later than that moment, in milliseconds since 1970.
    pub fn after(&self, unix_millis: u64) -> Excerpt {
        let interval_millis = self.interval.as_millis() as u64;
        Excerpt {
            interval_millis,
            history_millis: interval_millis * SAMPLES as u64,
            store_series: STORE_SERIES,
            volume_series: VOLUME_SERIES,
            samples: self.ring.iter().filter(|sample| sample.unix_millis > unix_millis).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::document::example::whole;
    use crate::cli::document::{OperationStatus, ServerStatus};
    use crate::store::meter::Meter;
    use crate::store::prices::Prices;

    const INTERVAL: Duration = Duration::from_secs(10);

    /// What a server reads of itself at that second: volumes with an epoch, and reads of 1 KiB each.
    fn readings(second: u64, volumes: &[(&str, u64, u64)]) -> Readings {
        let mut status = whole();
        let example = status.volumes.remove(0);
        for (name, epoch, reads) in volumes {
            let read = OperationStatus { operation: "read".into(), requests: *reads, bytes: reads << 10, errors: 0 };
            let mut volume = VolumeStatus { name: (*name).to_owned(), operations: vec![read], ..example.clone() };
            volume.status.epoch = *epoch;
            status.volumes.push(volume);
        }
        let status = ServerStatus { unix_millis: second * 1000, store_trouble: None, ..status };
        Readings { status, operations: Vec::new(), store: StoreReadings::of(&Meter::default(), &Prices::default(), 0) }
    }

    fn document(samples: &Samples, after: u64) -> Value {
        serde_json::to_value(samples.after(after)).unwrap()
    }

    fn reads(sample: &Value, volume: Option<&str>) -> Option<f64> {
        let of = volume.map_or(&sample["all"], |volume| &sample["volumes"][volume]);
        assert!(of.is_null() || of[0].as_f64().unwrap() == 1024.0 * of[2].as_f64().unwrap(), "{sample}");
        of[2].as_f64()
    }

    #[test]
    fn a_sample_has_rates_that_begin_anew_with_an_epoch() {
        let mut samples = Samples::new(Duration::from_secs(3600));
        assert_eq!(samples.interval(), INTERVAL);
        samples.add(&readings(10, &[("a", 1, 100)]), INTERVAL);
        samples.add(&readings(20, &[("a", 1, 150), ("b", 7, 20)]), INTERVAL);
        // It is opened or closed for a moment: what comes back goes on.
        samples.add(&readings(30, &[("b", 7, 20)]), INTERVAL);
        samples.add(&readings(40, &[("a", 1, 160), ("b", 8, 40)]), INTERVAL);
        let all = document(&samples, 0);
        assert_eq!((&all["interval_millis"], &all["history_millis"]), (&10_000.into(), &3_600_000.into()));
        assert_eq!(all["volume_series"].as_array().unwrap().len(), VOLUME_SERIES.len());
        let all = all["samples"].as_array().unwrap();
        let of = |volume| all.iter().map(|sample| reads(sample, volume)).collect::<Vec<_>>();
        assert_eq!(of(Some("a")), [Some(10.0), Some(5.0), None, Some(1.0)]);
        assert_eq!(of(Some("b")), [None, Some(2.0), Some(0.0), Some(4.0)]);
        assert_eq!(of(None), [Some(10.0), Some(7.0), Some(0.0), Some(5.0)]);
        let newer = document(&samples, 20_000);
        let newer: Vec<_> = newer["samples"].as_array().unwrap().iter().map(|sample| &sample["unix_millis"]).collect();
        assert_eq!(newer, [30_000, 40_000], "only what is later");
    }

    #[test]
    fn samples_take_no_more_memory_however_long_and_of_however_many_volumes() {
        let names: Vec<String> = (0..SAMPLED_VOLUMES + 3).map(|number| format!("v{number:03}")).collect();
        let volumes: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 10)).collect();
        let mut samples = Samples::new(Duration::from_secs(60));
        for second in 1..=SAMPLES as u64 + 5 {
            samples.add(&readings(second, &volumes), Duration::from_secs(1));
        }
        let all = document(&samples, 0);
        let all = all["samples"].as_array().unwrap();
        assert_eq!((all.len(), &all[0]["unix_millis"]), (SAMPLES, &6000.into()));
        assert!(all.iter().all(|sample| sample["volumes"].as_object().unwrap().len() == SAMPLED_VOLUMES));
        let mut first = Samples::new(Duration::from_secs(60));
        first.add(&readings(1, &volumes), Duration::from_secs(1));
        let sum = reads(&document(&first, 0)["samples"][0], None);
        assert_eq!(sum, Some(10.0 * names.len() as f64), "the sum is of all");
        // Volumes that come and go for ever.
        for second in 0..2 * KNOWN as u64 {
            samples.add(&readings(second, &[(&format!("w{second}"), 1, 1)]), Duration::from_secs(1));
        }
        assert!(samples.volumes.len() <= KNOWN + 1);
    }
}
