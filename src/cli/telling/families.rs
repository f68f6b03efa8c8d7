//! The metrics of a server, by name: pure. `docs/metrics.md` has them in a table, which a test compares with what comes out of here.
//!
//! Names follow Prometheus: `ashlar_`, what it is, its base unit, and `_total` for what only grows. The values are those of
//! `ashlar status --json`.

use std::collections::BTreeSet;

use super::Readings;
use crate::cli::document::{ClientStatus, EndedVolume, VolumeStatus};
use crate::metrics::{Family, Kind, Value};
use crate::store::meter::Outcomes;
use crate::tally::Tallied;
use crate::volume::DedupStatus;
use crate::volume::purse::Left;
use crate::volume::{Mirrored, NearStatus, Peered, Standing, Status, WaitsFor};

use Kind::{Counter, Gauge, Histogram};

/// All of them.
pub fn families(readings: &Readings) -> Vec<Family> {
    let mut all = of_server(readings);
    all.extend(of_store(readings));
    all.extend(of_cache(readings));
    all.extend(of_volumes(&readings.status.volumes));
    all.extend(of_standing(readings));
    all.extend(of_clients(readings));
    all.extend(of_operations(readings));
    all
}

fn of_server(readings: &Readings) -> Vec<Family> {
    let build = Family::new("ashlar_build_info", Gauge, "The version of the server; the value is 1.");
    let dropped = Family::new("ashlar_log_lines_dropped_total", Counter, "Lines of the log that could not be written.");
    let mut used = Family::new("ashlar_memory_used_bytes", Gauge, "Memory that is held of what a bound allows.");
    let mut bound =
        Family::new("ashlar_memory_bound_bytes", Gauge, "Memory that may be held, by the key that sets it.");
    for memory in &readings.status.memory {
        used = used.number([("bound", &memory.key)], memory.used as f64);
        bound = bound.number([("bound", &memory.key)], memory.bound as f64);
    }
    let total = &readings.status.memory_total;
    let resident = Family::new("ashlar_memory_resident_bytes", Gauge, "Memory that the process takes.");
    let limit = Family::new("ashlar_memory_limit_bytes", Gauge, "Memory that the process may take.");
    let mut left = Family::new(
        "ashlar_budget_left_ratio",
        Gauge,
        "What is left of what the server can save up of a budget: from 0.5 down collection and the write-back wait, from 0 down writes, too.",
    );
    for Left { key, left_ratio, .. } in &readings.status.budget {
        left = left.number([("bound", key)], *left_ratio);
    }
    let copies = Family::new(
        "ashlar_copies_bytes",
        Gauge,
        "Bytes that copies of other servers' journals take; of a server that takes some.",
    );
    let copies = readings.status.copies.iter().fold(copies, |family, copies| family.number([], copies.bytes as f64));
    vec![
        copies,
        left,
        build.number([("version", env!("CARGO_PKG_VERSION"))], 1.0),
        dropped.number([], readings.status.log.lines_dropped as f64),
        used,
        bound,
        resident.number([], total.resident as f64),
        limit.number([], total.bound as f64),
    ]
}

fn of_store(readings: &Readings) -> Vec<Family> {
    let store = &readings.store;
    let mut requests = Family::new(
        "ashlar_store_requests_total",
        Counter,
        "Requests to the store that have ended: answered, failed in a way that may pass, refused, or given up.",
    );
    let mut under_way =
        Family::new("ashlar_store_requests_under_way", Gauge, "Requests to the store that have not ended.");
    let mut took = Family::new(
        "ashlar_store_request_duration_seconds",
        Histogram,
        "How long requests to the store took, those that were given up aside.",
    );
    for (kind, outcomes) in &store.outcomes {
        let Outcomes { answered, retryable, failed, given_up, durations, begun: _ } = outcomes;
        for (result, count) in
            [("answered", answered), ("retryable", retryable), ("refused", failed), ("given_up", given_up)]
        {
            requests = requests.number([("kind", kind), ("result", result)], *count as f64);
        }
        under_way = under_way.number([("kind", kind)], outcomes.under_way() as f64);
        took.push([("kind", kind)], Value::Distribution(*durations));
    }
    let one = |name, kind, help, value: f64| Family::new(name, kind, help).number([], value);
    let trouble = readings.status.store_trouble.as_ref().map_or(0, |trouble| trouble.seconds);
    vec![
        requests,
        under_way,
        took,
        one(
            "ashlar_store_sent_bytes_total",
            Counter,
            "Bytes of the bodies of PUTs, failed ones included.",
            store.metered.bytes_put as f64,
        ),
        one("ashlar_store_received_bytes_total", Counter, "Bytes that GETs returned.", store.metered.bytes_got as f64),
        one(
            "ashlar_store_objects_deleted_total",
            Counter,
            "Objects whose deletion was asked for.",
            store.metered.objects_deleted as f64,
        ),
        one(
            "ashlar_store_retries_total",
            Counter,
            "Attempts that failed and were followed by another.",
            store.retries as f64,
        ),
        one("ashlar_store_hedges_total", Counter, "GETs that were asked a second time.", store.hedges as f64),
        one(
            "ashlar_store_trouble_seconds",
            Gauge,
            "How long the oldest operation has failed that is tried again, 0 if there is none.",
            trouble as f64,
        ),
    ]
}

fn of_cache(readings: &Readings) -> Vec<Family> {
    const MEMORY: [(&str, &str); 1] = [("tier", "memory")];
    const DISK: [(&str, &str); 1] = [("tier", "disk")];
    let cache = &readings.status.cache;
    let disk = cache.disk.as_ref();
    let both = |name, kind, help, memory: u64, of_disk: Option<u64>| {
        let family = Family::new(name, kind, help).number(MEMORY, memory as f64);
        match of_disk {
            Some(value) => family.number(DISK, value as f64),
            None => family,
        }
    };
    let only_disk = |name, kind, help, value: Option<u64>| {
        let family = Family::new(name, kind, help);
        match value {
            Some(value) => family.number(DISK, value as f64),
            None => family,
        }
    };
    vec![
        both(
            "ashlar_cache_hits_total",
            Counter,
            "Frames that were looked for in a tier of the cache and were there.",
            cache.memory_hits,
            disk.map(|disk| disk.hits),
        ),
        both(
            "ashlar_cache_misses_total",
            Counter,
            "Frames that were looked for in a tier of the cache and were not there.",
            cache.memory_misses,
            disk.map(|disk| disk.misses),
        ),
        both(
            "ashlar_cache_used_bytes",
            Gauge,
            "Bytes that a tier of the cache takes.",
            cache.memory_used,
            disk.map(|disk| disk.used),
        ),
        both(
            "ashlar_cache_size_bytes",
            Gauge,
            "Bytes that a tier of the cache may take.",
            cache.memory_size,
            disk.map(|disk| disk.size),
        ),
        only_disk(
            "ashlar_cache_bad_frames_total",
            Counter,
            "Frames on the disk that did not prove themselves and were fetched from the store.",
            disk.map(|disk| disk.bad),
        ),
        only_disk(
            "ashlar_cache_dropped_frames_total",
            Counter,
            "Frames that the disk was too slow to take.",
            disk.map(|disk| disk.dropped),
        ),
        only_disk(
            "ashlar_cache_off",
            Gauge,
            "1 if the tier on the disk has turned itself off.",
            disk.map(|disk| u64::from(disk.off.is_some())),
        ),
    ]
}

/// A number of an open volume.
type OfStatus = fn(&Status) -> f64;

/// What of an open volume's status is a number, by name.
const OF_VOLUME: [(&str, Kind, &str, OfStatus); 31] = [
    ("ashlar_volume_size_bytes", Gauge, "The size of the disk.", |status| status.size as f64),
    ("ashlar_volume_mapped_bytes", Gauge, "Bytes that hold data.", |status| status.mapped_bytes as f64),
    ("ashlar_volume_stored_bytes", Gauge, "Bytes of its objects in the store.", |status| status.stored_bytes as f64),
    ("ashlar_volume_live_bytes", Gauge, "Stored bytes that are live.", |status| status.live_bytes as f64),
    (
        "ashlar_volume_dead_bytes",
        Gauge,
        "Stored bytes of segments in which nothing is live; they go after the next checkpoint.",
        |status| status.dead_bytes as f64,
    ),
    ("ashlar_volume_sparse_bytes", Gauge, "Dead bytes in segments that are partly live.", |status| {
        status.sparse_bytes as f64
    }),
    ("ashlar_volume_objects", Gauge, "Segments and checkpoints in the store.", |status| status.objects as f64),
    ("ashlar_volume_snapshots", Gauge, "Snapshots that are kept.", |status| status.snapshots as f64),
    (
        "ashlar_volume_newest_snapshot_held_bytes",
        Gauge,
        "Bytes, before compression, that the volume needs no more and its newest snapshot does.",
        |status| status.newest_snapshot_held_bytes as f64,
    ),
    ("ashlar_volume_retired_key_bytes", Gauge, "Live bytes that are sealed with a rotated data key.", |status| {
        status.retired_bytes as f64
    }),
    ("ashlar_volume_dirty_bytes", Gauge, "Bytes that were acknowledged and are not in the store.", |status| {
        status.dirty_bytes as f64
    }),
    ("ashlar_volume_dirty_bound_bytes", Gauge, "As many bytes may be dirty; then writes wait.", |status| {
        status.dirty_bound as f64
    }),
    (
        "ashlar_volume_dirty_age_seconds",
        Gauge,
        "How long the oldest change has waited that is not in the store, 0 if there is none.",
        |status| status.dirty_millis as f64 / 1000.0,
    ),
    (
        "ashlar_volume_flushes_waiting",
        Gauge,
        "FLUSHes, and writes with FUA, that wait until what was written is stable.",
        |status| status.flushes_waiting as f64,
    ),
    ("ashlar_volume_writes_waiting", Gauge, "Writes that wait for room among the dirty bytes.", |status| {
        status.writes_waiting as f64
    }),
    ("ashlar_volume_writes_held", Gauge, "Writes that wait because a budget is spent.", |status| {
        status.writes_held as f64
    }),
    ("ashlar_volume_journal_bytes", Gauge, "Bytes of the journal's files that hold changes.", |status| {
        status.journal_bytes as f64
    }),
    (
        "ashlar_volume_journal_suspended",
        Gauge,
        "1 if the journal takes no changes, so that writes wait for the store.",
        |status| f64::from(u8::from(status.journal_suspended.is_some())),
    ),
    ("ashlar_volume_uploads", Gauge, "Segments that are on their way to the store.", |status| status.uploads as f64),
    ("ashlar_volume_upload_bytes", Gauge, "Bytes of changes in the segments on their way.", |status| {
        status.upload_bytes as f64
    }),
    (
        "ashlar_volume_retries_total",
        Counter,
        "The volume's own attempts that failed and were followed by another.",
        |status| status.retries as f64,
    ),
    ("ashlar_volume_map_memory_bytes", Gauge, "Bytes of the extent map in memory.", |status| status.map_memory as f64),
    (
        "ashlar_volume_gc_backlog_bytes",
        Gauge,
        "Bytes that garbage collection will free when the volume is quiet.",
        |status| status.gc.backlog_bytes as f64,
    ),
    ("ashlar_volume_gc_segments_written_total", Counter, "Segments that garbage collection has written.", |status| {
        status.gc.segments_written as f64
    }),
    ("ashlar_volume_gc_moved_bytes_total", Counter, "Bytes that garbage collection wrote again.", |status| {
        status.since_open.bytes_moved as f64
    }),
    ("ashlar_volume_doomed_objects", Gauge, "Objects that wait for their deletion.", |status| {
        status.gc.doomed_objects as f64
    }),
    ("ashlar_volume_damaged_segments", Gauge, "Segments that garbage collection could not read.", |status| {
        status.gc.damaged_segments as f64
    }),
    ("ashlar_volume_written_bytes_total", Counter, "Bytes of clients that became durable in the store.", |status| {
        status.since_open.bytes_written as f64
    }),
    ("ashlar_volume_store_sent_bytes_total", Counter, "Bytes of the bodies of the volume's PUTs.", |status| {
        status.since_open.bytes_put as f64
    }),
    ("ashlar_volume_store_received_bytes_total", Counter, "Bytes that the volume's GETs returned.", |status| {
        status.since_open.bytes_got as f64
    }),
    ("ashlar_volume_epoch", Gauge, "How often the volume was opened.", |status| status.epoch as f64),
];

/// A number of how an open volume is de-duplicated.
type OfDedup = fn(&DedupStatus) -> f64;

/// What of that is a number, by name.
const DEDUP: [(&str, Kind, &str, OfDedup); 4] = [
    (
        "ashlar_volume_dedup_saved_bytes_total",
        Counter,
        "Bytes of clients that were stored already, before compression; of a volume that is de-duplicated.",
        |dedup| dedup.saved_bytes as f64,
    ),
    ("ashlar_volume_dedup_index_bytes", Gauge, "Bytes in memory that say what is stored already.", |dedup| {
        dedup.index_bytes as f64
    }),
    ("ashlar_volume_dedup_referring_segments", Gauge, "Segments that refer to data in others.", |dedup| {
        dedup.referring_segments as f64
    }),
    ("ashlar_volume_dedup_referred_segments", Gauge, "Segments to whose data others refer.", |dedup| {
        dedup.referred_segments as f64
    }),
];

/// A number of what is in a store for logs of an open volume.
type OfNear = fn(&NearStatus) -> f64;

/// What of that is a number, by name.
const NEAR: [(&str, Kind, &str, OfNear); 3] = [
    (
        "ashlar_volume_near_bytes",
        Gauge,
        "Bytes of the log that are in a store of their own, and would be lost with it; of a volume that has one.",
        |near| near.bytes as f64,
    ),
    (
        "ashlar_volume_near_oldest_seconds",
        Gauge,
        "How long the oldest of them has been there, as far as that is since the volume was opened.",
        |near| near.oldest_millis as f64 / 1000.0,
    ),
    (
        "ashlar_volume_near_cooled_bytes_total",
        Counter,
        "Bytes that have moved from there to where everything else is.",
        |near| near.cooled_bytes as f64,
    ),
];

/// A number of how an open volume stands to its peer.
type OfPeer = fn(&Peered) -> f64;

/// What of a peer is a number, by name.
const PEER: [(&str, Kind, &str, OfPeer); 3] = [
    (
        "ashlar_volume_peer_answers",
        Gauge,
        "1 if a flush waits for the peer, 0 if for the store because the peer is away; of a volume with durability \"peer\".",
        |peer| f64::from(u8::from(peer.waits_for == WaitsFor::Peer)),
    ),
    ("ashlar_volume_peer_falls_total", Counter, "How often the peer was lost since the volume was opened.", |peer| {
        peer.falls as f64
    }),
    ("ashlar_volume_peer_lag_bytes", Gauge, "Bytes that are under way to the peer.", |peer| peer.lag_bytes as f64),
];

/// A number of the mirror of an open volume.
type OfMirror = fn(&Mirrored) -> f64;

/// What of a mirror is a number, by name.
const MIRROR: [(&str, Kind, &str, OfMirror); 6] = [
    (
        "ashlar_volume_mirror_following",
        Gauge,
        "1 if the mirror is a state of the volume and goes on; 0 in a first copy, before it is reached, and when it has ended; of a volume with a mirror.",
        |mirror| f64::from(u8::from(mirror.state == Standing::Following)),
    ),
    (
        "ashlar_volume_mirror_lag_seconds",
        Gauge,
        "How long the oldest of what the mirror lacks has been committed, as far as that is since the volume was opened.",
        |mirror| mirror.lag_millis as f64 / 1000.0,
    ),
    ("ashlar_volume_mirror_lag_bytes", Gauge, "Bytes of objects that the mirror lacks.", |mirror| {
        mirror.lag_bytes as f64
    }),
    (
        "ashlar_volume_mirror_held_bytes",
        Gauge,
        "Bytes of dead segments that stay until the mirror has them.",
        |mirror| mirror.held_bytes as f64,
    ),
    ("ashlar_volume_mirror_copied_bytes_total", Counter, "Bytes that were copied into the mirror.", |mirror| {
        mirror.bytes as f64
    }),
    (
        "ashlar_volume_mirror_damaged_objects",
        Gauge,
        "Objects that were damaged in the first store when they were to be copied.",
        |mirror| mirror.damaged_objects as f64,
    ),
];

fn of_volumes(volumes: &[VolumeStatus]) -> Vec<Family> {
    let numbers = OF_VOLUME.iter().map(|(name, kind, help, of)| {
        let empty = Family::new(name, *kind, help);
        volumes.iter().fold(empty, |family, volume| family.number([("volume", &volume.name)], of(&volume.status)))
    });
    let mut requests = Family::new(
        "ashlar_volume_store_requests_total",
        Counter,
        "Requests of the volume to the store; those that the store made us repeat count once.",
    );
    let mut trouble = Family::new(
        "ashlar_volume_trouble_seconds",
        Gauge,
        "How long the oldest operation has failed that the volume or its store tries again, 0 if there is none.",
    );
    let mut request_cost = Family::new(
        "ashlar_volume_request_cost_dollars",
        Gauge,
        "What the requests of the volume have cost since it was created, at the prices of the configuration.",
    );
    let mut storage_cost = Family::new(
        "ashlar_volume_storage_cost_dollars",
        Gauge,
        "What a month of storing what is stored now costs, at the prices of the configuration.",
    );
    let mut left = Family::new(
        "ashlar_volume_budget_left_ratio",
        Gauge,
        "What is left of what the volume can save up of its own budget: from 0.5 down collection and the write-back wait, from 0 down writes, too.",
    );
    let mut newest = Family::new(
        "ashlar_volume_newest_snapshot_timestamp_seconds",
        Gauge,
        "When the newest snapshot was taken, in seconds since 1970; of a volume that has one.",
    );
    let mut held = Family::new(
        "ashlar_volume_snapshots_held_bytes",
        Gauge,
        "Bytes, before compression, that the volume needs no more and its snapshots, or its clones, do; absent until that is known.",
    );
    let mut for_clones = Family::new(
        "ashlar_volume_clones_held_bytes",
        Gauge,
        "Of those, bytes that only clones need: neither the volume nor a snapshot that anybody can name does; absent until that is known.",
    );
    let mirrors = MIRROR.map(|(name, kind, help, of)| {
        let mirrored = volumes.iter().filter_map(|volume| Some((&volume.name, volume.mirror.as_ref()?)));
        mirrored
            .fold(Family::new(name, kind, help), |family, (name, mirror)| family.number([("volume", name)], of(mirror)))
    });
    let dedups = DEDUP.map(|(name, kind, help, of)| {
        let with = volumes.iter().filter_map(|volume| Some((&volume.name, volume.status.dedup.as_ref()?)));
        with.fold(Family::new(name, kind, help), |family, (name, dedup)| family.number([("volume", name)], of(dedup)))
    });
    let nears = NEAR.map(|(name, kind, help, of)| {
        let with = volumes.iter().filter_map(|volume| Some((&volume.name, volume.near.as_ref()?)));
        with.fold(Family::new(name, kind, help), |family, (name, near)| family.number([("volume", name)], of(near)))
    });
    let peers = PEER.map(|(name, kind, help, of)| {
        let with = volumes.iter().filter_map(|volume| Some((&volume.name, volume.peer.as_ref()?)));
        with.fold(Family::new(name, kind, help), |family, (name, peer)| family.number([("volume", name)], of(peer)))
    });
    for VolumeStatus { name, store_trouble, status, cost, budget, .. } in volumes {
        if status.newest_snapshot_unix_millis > 0 {
            newest = newest.number([("volume", name)], status.newest_snapshot_unix_millis as f64 / 1000.0);
        }
        if let Some(bytes) = status.snapshots_held_bytes {
            held = held.number([("volume", name)], bytes as f64);
        }
        if let Some(bytes) = status.clones_held_bytes {
            for_clones = for_clones.number([("volume", name)], bytes as f64);
        }
        for Left { key, left_ratio, .. } in budget {
            left = left.number([("volume", name), ("bound", key)], *left_ratio);
        }
        request_cost = request_cost.number([("volume", name)], cost.requests_since_creation_dollars);
        storage_cost = storage_cost.number([("volume", name)], cost.storage_month_dollars);
        let account = &status.since_open;
        for (kind, count) in
            [("put", account.puts), ("get", account.gets), ("list", account.lists), ("delete", account.deletes)]
        {
            requests = requests.number([("volume", name), ("kind", kind)], count as f64);
        }
        let seconds = store_trouble.as_ref().map_or(0, |trouble| trouble.seconds);
        trouble = trouble.number([("volume", name)], seconds as f64);
    }
    let others = [requests, trouble, request_cost, storage_cost, left, newest, held, for_clones];
    numbers.chain(others).chain(mirrors).chain(dedups).chain(nears).chain(peers).collect()
}

/// Which volumes there are, and which ended.
fn of_standing(readings: &Readings) -> Vec<Family> {
    let status = &readings.status;
    let is_good = |volume: &&VolumeStatus| volume.status.ended.is_none();
    let open: BTreeSet<&String> = status.volumes.iter().filter(is_good).map(|volume| &volume.name).collect();
    let names = status.volumes.iter().map(|volume| &volume.name);
    let gone: BTreeSet<&String> = status.ended.iter().map(|EndedVolume { name, .. }| name).collect();
    let known: BTreeSet<&String> = names.chain(&status.named).chain(gone.iter().copied()).collect();
    let mut is_open =
        Family::new("ashlar_volume_open", Gauge, "1 if a volume that is to be served is open, 0 if it is not.");
    let mut ended = Family::new(
        "ashlar_volume_ended",
        Gauge,
        "1 if a volume has ended here although nobody closed it: another server took it, or it is damaged.",
    );
    for name in known {
        let has_ended =
            gone.contains(name) || status.volumes.iter().any(|volume| volume.name == *name && !is_good(&volume));
        is_open = is_open.number([("volume", name)], f64::from(u8::from(open.contains(name))));
        ended = ended.number([("volume", name)], f64::from(u8::from(has_ended)));
    }
    vec![is_open, ended]
}

fn of_clients(readings: &Readings) -> Vec<Family> {
    let status = &readings.status;
    let sum = |name: &str, of: fn(&ClientStatus) -> u64| -> f64 {
        status.clients.iter().filter(|client| client.export == name).map(|client| of(client) as f64).sum()
    };
    let family = |name, help, of: fn(&ClientStatus) -> u64| {
        let empty = Family::new(name, Gauge, help);
        status
            .volumes
            .iter()
            .fold(empty, |family, volume| family.number([("volume", &volume.name)], sum(&volume.name, of)))
    };
    vec![
        family("ashlar_volume_clients", "Connections of clients that are attached.", |_| 1),
        family(
            "ashlar_volume_requests_in_flight",
            "Requests of clients that are not answered, or whose reply is not fetched.",
            |client| client.requests_in_flight,
        ),
        family(
            "ashlar_volume_in_flight_bytes",
            "Bytes of payload and read data that are held for clients.",
            |client| client.bytes_in_flight,
        ),
    ]
}

fn of_operations(readings: &Readings) -> Vec<Family> {
    let mut requests =
        Family::new("ashlar_volume_requests_total", Counter, "Requests of clients that were carried out or failed.");
    let mut bytes = Family::new(
        "ashlar_volume_request_bytes_total",
        Counter,
        "Bytes that requests of clients were about, failed ones aside.",
    );
    let mut errors = Family::new("ashlar_volume_request_errors_total", Counter, "Requests of clients that failed.");
    let mut took = Family::new(
        "ashlar_volume_request_duration_seconds",
        Histogram,
        "How long the volume took for requests of clients, the way to and from the client aside; of those that did not wait one in 16 is timed.",
    );
    for (volume, operations) in &readings.operations {
        for (operation, Tallied { count, bytes: of, failed, durations }) in operations {
            let labels = [("volume", volume.as_str()), ("operation", *operation)];
            requests = requests.number(labels, *count as f64);
            bytes = bytes.number(labels, *of as f64);
            errors = errors.number(labels, *failed as f64);
            took.push(labels, Value::Distribution(*durations));
        }
    }
    vec![requests, bytes, errors, took]
}
