//! What a server tells of itself in one document: `ashlar status --json`, and what the page and `ashlar top` show. Its fields are
//! stable; `docs/status.md` lists them, and a test compares.

use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::control::Insight;
use super::doing::{doing, health};
use super::logging::{self, LogStatus};
use super::schedule::{ScheduleStatus, SoFar};
use super::trouble::StoreTrouble;
use crate::cache;
use crate::memory::machine;
use crate::nbd::ClientInfo;
use crate::store::health::Trouble;
use crate::store::meter::{Meter, Outcomes};
use crate::tally::Tallied;
use crate::volume::clones::Detaching;
use crate::volume::purse::Left;
use crate::volume::{Locked, Mirrored, NearStatus, Peered, Status, Volume};

/// What a server tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in milliseconds since 1970.
    #[serde(default)]
    pub since_unix_millis: u64,
    /// When it said this, in milliseconds since 1970.
    #[serde(default)]
    pub unix_millis: u64,
    /// Its store.
    pub store: String,
    /// How the store is doing, in one sentence.
    #[serde(default)]
    pub store_health: String,
    /// What is wrong with its store, if anything is.
    pub store_trouble: Option<StoreTrouble>,
    /// What was asked of the store since the start, by kind.
    #[serde(default)]
    pub store_requests: Vec<StoreRequests>,
    /// What that and what is stored costs.
    #[serde(default)]
    pub cost: ServerCost,
    /// What is left of what the server may spend on requests, by bound.
    #[serde(default)]
    pub budget: Vec<Left>,
    /// Its log.
    pub log: LogStatus,
    /// Its cache.
    pub cache: cache::Status,
    /// What it holds in memory of what it may, by bound.
    #[serde(default)]
    pub memory: Vec<MemoryBound>,
    /// What all of it takes.
    #[serde(default)]
    pub memory_total: MemoryTotal,
    /// The clients that are attached, by volume.
    pub clients: Vec<ClientStatus>,
    /// The volumes that are to be served, by name; none, if that is whatever the store has.
    #[serde(default)]
    pub named: Vec<String>,
    /// The open volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// Volumes that ended and that no client has got again, by name. What was acknowledged and is not in the store is in the journal.
    #[serde(default)]
    pub ended: Vec<EndedVolume>,
    /// Volumes that are there and did not open when a client last asked for them, by name.
    #[serde(default)]
    pub unopened: Vec<UnopenedVolume>,
    /// What is kept of other servers' journals, if anything is to be.
    #[serde(default)]
    pub copies: Option<Copies>,
    /// The volumes that were handed over since the start, by name.
    #[serde(default)]
    pub moved: Vec<Moved>,
}

/// Requests of one kind to the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreRequests {
    /// The kind: `put`, `get`, `list` or `delete`.
    pub kind: String,
    /// Requests that were answered, be it that there is no such object, or is one already.
    pub answered: u64,
    /// Requests that failed in a way that may pass.
    pub retryable: u64,
    /// Requests that were refused, or were wrong.
    pub refused: u64,
    /// Requests that nobody waited for any more.
    pub given_up: u64,
    /// Requests that have not ended.
    pub under_way: u64,
    /// How long those that ended took together, in seconds; those that were given up aside.
    pub seconds: f64,
}

/// What a server's store costs, in US dollars.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerCost {
    /// Whose prices all of this is reckoned at, and as of when.
    #[serde(default)]
    pub prices: String,
    /// All requests since the start of the server, those of no volume and those that were repeated too.
    pub requests_since_start_dollars: f64,
    /// A month of what the open volumes store now.
    pub storage_month_dollars: f64,
}

/// A bound on what a server holds in memory. See `docs/memory.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBound {
    /// The key of the configuration that sets it.
    pub key: String,
    /// Bytes that are held.
    pub used: u64,
    /// Bytes that may be.
    pub bound: u64,
}

/// The memory of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryTotal {
    /// Bytes that it takes: what is resident, with what nobody counts.
    pub resident: u64,
    /// Bytes that it may take: `memory` of the configuration.
    pub bound: u64,
}

/// A volume that ended while this server had it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndedVolume {
    /// Its name.
    pub name: String,
    /// Why it ended.
    pub why: String,
}

/// A volume that does not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnopenedVolume {
    /// Its name.
    pub name: String,
    /// When it first did not, in milliseconds since 1970.
    pub since_unix_millis: u64,
    /// Why, the last time.
    pub why: String,
}

/// A volume that was handed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// Its name.
    pub volume: String,
    /// Where it is found.
    pub to: String,
}

/// One open volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// What it is doing, in a few words.
    #[serde(default)]
    pub doing: String,
    /// What is wrong with the store as far as this volume knows, if anything is.
    pub store_trouble: Option<StoreTrouble>,
    /// What clients asked of it since it was opened, by operation.
    #[serde(default)]
    pub operations: Vec<OperationStatus>,
    /// What it costs.
    #[serde(default)]
    pub cost: VolumeCost,
    /// What is left of what it may spend on requests, by bound.
    #[serde(default)]
    pub budget: Vec<Left>,
    /// Its schedule of snapshots, if it has one.
    #[serde(default)]
    pub schedule: Option<ScheduleStatus>,
    /// How far the store has locked what snapshots need that are kept until a date, if it is to.
    #[serde(default)]
    pub snapshot_lock: Option<Locked>,
    /// Of a clone that becomes independent, how far it is.
    #[serde(default)]
    pub detaching: Option<Detaching>,
    /// How far its mirror is, if it has one.
    #[serde(default)]
    pub mirror: Option<Mirrored>,
    /// What of its log is in a store of its own, if it has one.
    #[serde(default)]
    pub near: Option<NearStatus>,
    /// How it stands to its peer, if its durability asks for one.
    #[serde(default)]
    pub peer: Option<Peered>,
    /// Numbers of it.
    #[serde(flatten)]
    pub status: Status,
}

/// Requests of clients of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// The kind: `read`, `write`, `flush`, `trim`, `write_zeroes`, `cache` or `block_status`.
    pub operation: String,
    /// Requests that were carried out or failed.
    pub requests: u64,
    /// Bytes that they were about, failed ones aside.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What a volume costs, in US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeCost {
    /// Its requests since it was opened here.
    pub requests_since_open_dollars: f64,
    /// Its requests since it was created.
    pub requests_since_creation_dollars: f64,
    /// A month of what is stored now.
    pub storage_month_dollars: f64,
}

/// What is kept of other servers' journals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Bytes that they take.
    pub bytes: u64,
    /// Of so many volumes one is written just now.
    pub written: u64,
}

/// One client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The volume that it uses.
    pub export: String,
    /// Where it comes from: address and port, or the user and process at the far end of a Unix socket.
    pub address: String,
    /// When it was attached, in milliseconds since 1970.
    pub since_unix_millis: u64,
    /// Requests that were taken from it.
    pub requests: u64,
    /// Of those, requests that are not answered, or whose reply it has not fetched.
    pub requests_in_flight: u64,
    /// Bytes of payload and read data that are held for it.
    pub bytes_in_flight: u64,
}

impl Insight {
    /// What the server does that has these volumes open.
    pub fn status(&self, open: &[(String, Arc<Volume>)]) -> ServerStatus {
        let troubles = open.iter().map(|(_, volume)| volume.trouble());
        let worst = troubles.fold(self.health.trouble(), Trouble::worst);
        let clients: Vec<_> = self.server.clients().into_iter().map(|client| self.client(client)).collect();
        let mut volumes: Vec<_> = open.iter().map(|(name, volume)| self.volume(name, volume, &clients)).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let waiting = volumes.iter().map(|volume| volume.status.flushes_waiting).sum();
        let store_trouble = worst.map(|trouble| StoreTrouble::new(&trouble, waiting, &self.clock));
        ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since_unix_millis: self.since_unix_millis,
            unix_millis: self.clock.unix_millis(),
            store: self.store.clone(),
            store_health: health(store_trouble.as_ref(), self.health.failed_attempts()),
            store_trouble,
            store_requests: store_requests(&self.meter),
            cost: ServerCost {
                prices: self.budget.purse().prices().told(),
                requests_since_start_dollars: self.budget.purse().prices().prices().of_requests(&self.meter.snapshot()),
                // The sum of no fractions is -0.0.
                storage_month_dollars: volumes
                    .iter()
                    .map(|volume| volume.cost.storage_month_dollars)
                    .fold(0.0, Add::add),
            },
            budget: self.budget.purse().left(Instant::now()),
            log: logging::status(),
            memory: self.memory(&volumes),
            memory_total: MemoryTotal { resident: machine::resident().unwrap_or_default(), bound: self.memory },
            cache: self.cache.status(),
            moved: self.exports.moved().into_iter().map(|(volume, to)| Moved { volume, to }).collect(),
            clients,
            named: self.exports.named().unwrap_or_default(),
            volumes,
            ended: self.exports.ended().into_iter().map(|(name, why)| EndedVolume { name, why }).collect(),
            unopened: self.unopened(),
            copies: self.keeper.as_ref().map(|keeper| Copies { bytes: keeper.used(), written: keeper.kept() as u64 }),
        }
    }

    fn unopened(&self) -> Vec<UnopenedVolume> {
        let now = self.clock.unix_millis();
        let since = |since: Instant| now.saturating_sub(since.elapsed().as_millis() as u64);
        let unopened = self.exports.unopened().into_iter();
        unopened.map(|(name, at, why)| UnopenedVolume { name, since_unix_millis: since(at), why }).collect()
    }

    fn memory(&self, volumes: &[VolumeStatus]) -> Vec<MemoryBound> {
        let (used, cache, log, in_flight) =
            (self.budget.used(), self.cache.status(), logging::waiting(), self.server.bytes_in_flight());
        let map = volumes.iter().map(|volume| volume.status.map_memory).sum();
        let bounds = [
            ("nbd.total_bytes_in_flight", in_flight),
            ("volume.total_dirty_bytes", (used.dirty, used.dirty_bound)),
            ("volume.total_upload_bytes", (used.uploads, used.uploads_bound)),
            ("volume.total_map_memory", (map, used.map_bound)),
            ("cache.memory", (cache.memory_used, cache.memory_size)),
            ("store.idle_buffers", self.buffers.kept_bytes()),
            ("log.buffer", log),
        ];
        bounds.into_iter().map(|(key, (used, bound))| MemoryBound { key: key.to_owned(), used, bound }).collect()
    }

    /// What is wrong with the store, as far as no volume knows more.
    pub fn trouble(&self) -> Option<StoreTrouble> {
        self.health.trouble().map(|trouble| StoreTrouble::new(&trouble, 0, &self.clock))
    }

    /// Why a volume has ended, if it has, and what is wrong with the store as far as it knows.
    pub fn standing(&self, volume: &Volume) -> (Option<String>, Option<StoreTrouble>) {
        let Status { ended, flushes_waiting, .. } = volume.status();
        (ended, self.trouble_of(volume, flushes_waiting))
    }

    fn trouble_of(&self, volume: &Volume, flushes_waiting: u64) -> Option<StoreTrouble> {
        let worst = Trouble::worst(self.health.trouble(), volume.trouble());
        worst.map(|trouble| StoreTrouble::new(&trouble, flushes_waiting, &self.clock))
    }

    fn volume(&self, name: &str, volume: &Volume, clients: &[ClientStatus]) -> VolumeStatus {
        let (status, prices) = (volume.status(), self.budget.purse().prices().prices());
        let theirs = clients.iter().filter(|client| client.export == name);
        let in_flight = theirs.map(|client| client.requests_in_flight).sum();
        VolumeStatus {
            name: name.to_owned(),
            doing: doing(&status, in_flight),
            store_trouble: self.trouble_of(volume, status.flushes_waiting),
            operations: volume.operations().into_iter().map(operation).collect(),
            cost: VolumeCost {
                requests_since_open_dollars: status.since_open.request_cost(&prices),
                requests_since_creation_dollars: status.since_creation.request_cost(&prices),
                storage_month_dollars: prices.of_month(status.stored_bytes),
            },
            budget: volume.left_to_spend(),
            schedule: volume
                .scheduled()
                .map(|scheduled| ScheduleStatus::new(scheduled, &self.so_far(volume, &status), &prices)),
            snapshot_lock: volume.locked(),
            detaching: volume.detaching(),
            mirror: volume.mirrored(),
            near: volume.near(),
            peer: volume.peered(),
            status,
        }
    }

    /// What a volume has done so far.
    fn so_far(&self, volume: &Volume, status: &Status) -> SoFar {
        let age = self.clock.unix_millis().saturating_sub(volume.meta().created_unix_millis);
        SoFar { age: Duration::from_millis(age), account: status.since_creation, live_bytes: status.live_bytes }
    }

    fn client(&self, client: ClientInfo) -> ClientStatus {
        let ClientInfo { address, export, attached_for, requests, requests_in_flight, bytes_in_flight } = client;
        let since_unix_millis = self.clock.unix_millis().saturating_sub(attached_for.as_millis() as u64);
        ClientStatus { export, address, since_unix_millis, requests, requests_in_flight, bytes_in_flight }
    }
}

fn operation((operation, tallied): (&str, Tallied)) -> OperationStatus {
    let Tallied { count, bytes, failed, durations: _ } = tallied;
    OperationStatus { operation: operation.to_owned(), requests: count, bytes, errors: failed }
}

fn store_requests(meter: &Meter) -> Vec<StoreRequests> {
    let of = |(kind, outcomes): (&str, Outcomes)| StoreRequests {
        kind: kind.to_owned(),
        answered: outcomes.answered,
        retryable: outcomes.retryable,
        refused: outcomes.failed,
        given_up: outcomes.given_up,
        under_way: outcomes.under_way(),
        seconds: outcomes.durations.seconds,
    };
    meter.outcomes().into_iter().map(of).collect()
}

/// Documents for tests.
#[cfg(test)]
pub mod example {
    use super::*;
    use crate::cache::disk;
    use crate::cli::schedule::MonthOfSchedule;
    use crate::codec::frame::Compression;
    use crate::codec::seal::Seal;
    use crate::volume::purse::Thrift;
    use crate::volume::{Account, DedupStatus, GcStatus, Standing, WaitsFor};

    /// What a volume says that does nothing.
    pub fn quiet() -> Status {
        Status {
            size: 1 << 30,
            dirty_bytes: 0,
            dirty_bound: 1 << 20,
            dirty_millis: 0,
            accepted: 0,
            committed: 0,
            epoch: 1,
            map_memory: 0,
            flushes_waiting: 0,
            writes_waiting: 0,
            writes_held: 0,
            uploads: 0,
            upload_bytes: 0,
            journal_bytes: 0,
            journal_suspended: None,
            block_size: 4096,
            size_owed: false,
            dedup: Some(DedupStatus::default()),
            retries: 0,
            ended: None,
            mapped_bytes: 0,
            stored_bytes: 0,
            live_bytes: 0,
            dead_bytes: 0,
            sparse_bytes: 0,
            objects: 0,
            snapshots: 0,
            newest_snapshot_unix_millis: 0,
            newest_snapshot_held_bytes: 0,
            snapshots_held_bytes: Some(0),
            clones: vec!["word".to_owned()],
            clones_held_bytes: Some(0),
            seal: Seal::Blake3,
            compression: Compression::None,
            retired_bytes: 0,
            gc: GcStatus { backlog_bytes: 0, doomed_objects: 0, segments_written: 0, damaged_segments: 0 },
            since_open: Account::default(),
            since_creation: Account::default(),
        }
    }

    fn trouble() -> Option<StoreTrouble> {
        let (what, sentence) = (String::new(), String::new());
        Some(StoreTrouble { since_unix_millis: 1, seconds: 1, what, flushes_waiting: 0, sentence })
    }

    fn left() -> Vec<Left> {
        vec![Left { key: "word".to_owned(), allowed: 1.0, left_ratio: 0.25, thrift: Thrift::Sparing }]
    }

    /// A document in which nothing is missing.
    pub fn whole() -> ServerStatus {
        let word = || "word".to_owned();
        let disk = disk::Status {
            size: 1,
            used: 1,
            frames: 1,
            hits: 1,
            misses: 1,
            bad: 0,
            written: 1,
            dropped: 0,
            off: Some(word()),
        };
        let status = Status { journal_suspended: Some(word()), ended: Some(word()), ..quiet() };
        let volume = VolumeStatus {
            name: word(),
            doing: doing(&status, 0),
            store_trouble: trouble(),
            operations: vec![operation(("read", Tallied::default()))],
            cost: VolumeCost::default(),
            budget: left(),
            schedule: Some(ScheduleStatus {
                every: word(),
                keep: word(),
                keep_for: Some(word()),
                automatic: 1,
                trouble: Some(word()),
                cost: MonthOfSchedule::default(),
            }),
            snapshot_lock: Some(Locked { trouble: Some(word()), ..Locked::default() }),
            detaching: Some(Detaching { at: 1, of: 2 }),
            mirror: Some(Mirrored {
                url: word(),
                state: Standing::Following,
                lag_millis: 0,
                lag_bytes: 0,
                next_slot: 1,
                checkpoint: 0,
                objects: 0,
                bytes: 0,
                deleted_objects: 0,
                damaged_objects: 0,
                held_bytes: 0,
                trouble: Some(word()),
            }),
            near: Some(NearStatus { url: word(), trouble: Some(word()), ..NearStatus::default() }),
            peer: Some(Peered {
                address: word(),
                waits_for: WaitsFor::Store,
                millis: 1,
                trouble: Some(word()),
                falls: 1,
                lag_bytes: 0,
            }),
            status,
        };
        let client = ClientStatus {
            export: word(),
            address: word(),
            since_unix_millis: 1,
            requests: 1,
            requests_in_flight: 0,
            bytes_in_flight: 0,
        };
        ServerStatus {
            version: word(),
            pid: 1,
            since_unix_millis: 1,
            unix_millis: 2,
            store: word(),
            store_health: word(),
            store_trouble: trouble(),
            store_requests: store_requests(&Meter::default()),
            cost: ServerCost::default(),
            budget: left(),
            log: LogStatus { lines_dropped: 0, lines_held_back: 0 },
            cache: cache::Status { memory_size: 1, memory_used: 0, memory_hits: 0, memory_misses: 0, disk: Some(disk) },
            memory: vec![MemoryBound { key: word(), used: 0, bound: 1 }],
            memory_total: MemoryTotal { resident: 1, bound: 2 },
            clients: vec![client],
            named: vec![word()],
            volumes: vec![volume],
            ended: vec![EndedVolume { name: word(), why: word() }],
            unopened: vec![UnopenedVolume { name: word(), since_unix_millis: 1, why: word() }],
            moved: vec![Moved { volume: word(), to: word() }],
            copies: Some(Copies { bytes: 1, written: 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::example::whole;
    use super::*;

    /// The fields below a value, by path, and what they are.
    fn fields(path: &str, value: &Value, all: &mut BTreeMap<String, &'static str>) {
        let kind = match value {
            Value::Object(inner) => {
                let path = |name| if path.is_empty() { name } else { format!("{path}.{name}") };
                return inner.iter().for_each(|(name, value)| fields(&path(name.clone()), value, all));
            }
            Value::Array(inner) => return inner.iter().for_each(|value| fields(&format!("{path}[]"), value, all)),
            Value::Number(_) => "number",
            Value::String(_) => "text",
            Value::Bool(_) => "truth",
            Value::Null => "nothing",
        };
        all.insert(path.to_owned(), kind);
    }

    /// What is stable is written down, and what is written down is there.
    #[test]
    fn the_documented_fields_of_the_status_are_those_that_exist() {
        let mut there = BTreeMap::new();
        fields("", &serde_json::to_value(whole()).unwrap(), &mut there);
        let page = include_str!("../../docs/status.md");
        let row = |line: &'static str| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
            let [field, kind, meaning] = cells[..] else { panic!("three columns: {line}") };
            assert!(meaning.len() > 5, "{line}");
            Some((field.trim_end_matches('`').to_owned(), kind.trim_end_matches(", or null")))
        };
        let documented: BTreeMap<String, &str> = page.lines().filter_map(row).collect();
        assert!(there.len() > 100);
        for (field, kind) in &there {
            assert_eq!(documented.get(field), Some(kind), "{field}: docs/status.md has it otherwise, or not");
        }
        assert_eq!(documented.len(), there.len(), "docs/status.md has fields that are not there");
    }

    /// The document of a server of an older version, which knew less, can be read: `serve --replace` asks it.
    #[test]
    fn a_document_with_only_the_first_fields_is_read() {
        let mut older = serde_json::to_value(whole()).unwrap();
        let newer = [
            "version",
            "since_unix_millis",
            "unix_millis",
            "store_health",
            "store_requests",
            "cost",
            "budget",
            "named",
        ];
        let removed = |object: &mut Value, names: &[&str]| {
            names.iter().for_each(|name| drop(object.as_object_mut().unwrap().remove(*name).unwrap()));
        };
        removed(&mut older, &newer);
        removed(
            &mut older["volumes"][0],
            &[
                "doing",
                "operations",
                "cost",
                "budget",
                "schedule",
                "snapshot_lock",
                "detaching",
                "mirror",
                "near",
                "peer",
            ],
        );
        let read: ServerStatus = serde_json::from_value(older).unwrap();
        assert_eq!((read.pid, read.volumes.len(), read.store_requests.len()), (1, 1, 0));
    }
}
