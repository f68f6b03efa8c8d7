//! `ashlar status`: what a running server is doing, and what it costs.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::control;
use super::document::{ClientStatus, EndedVolume, MemoryTotal, ServerStatus, UnopenedVolume, VolumeStatus};
use super::failure::{Failure, Outcome};
use super::{output, runtime};
use crate::cache;
use crate::config::Effective;
use crate::human::{about_bytes, counted, date, few};
use crate::volume::DedupStatus;
use crate::volume::clones::Detaching;
use crate::volume::purse::{Left, Thrift};
use crate::volume::{Account, Locked, Mirrored, NearStatus, Peered, Standing, Status, VolumeName, WaitsFor};

/// Shows what the server of this state directory is doing: its open volumes, their space and what they cost, the clients that
/// are attached, and what is wrong with the store.
///
/// Costs are estimates at the list prices that `prices` in the server's configuration chooses.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ashlar status\n  ashlar status db --json\n  ashlar status --state /var/lib/ashlar"
)]
pub struct Args {
    /// Only this volume
    name: Option<VolumeName>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let asked = runtime()?.block_on(control::ask(&config.state));
    let mut status = asked.map_err(|error| no_answer(&config.state, &error))?;
    if let Some(name) = &args.name {
        status.volumes.retain(|volume| volume.name == name.as_str());
        status.clients.retain(|client| client.export == name.as_str());
        status.ended.retain(|ended| ended.name == name.as_str());
        status.unopened.retain(|unopened| unopened.name == name.as_str());
        if let Some(moved) = status.moved.iter().find(|moved| moved.volume == name.as_str()) {
            return Err(Failure::failed(format!("volume {name} moved to {}; ask there", moved.to)));
        }
        if status.volumes.is_empty() && status.ended.is_empty() && status.unopened.is_empty() {
            return Err(Failure::failed(format!(
                "volume {name} is not open on this server; see `ashlar info {name}`, or attach it first"
            )));
        }
    }
    if args.json {
        return output::json(&status);
    }
    let none = status.volumes.is_empty().then(|| "no volume is open".to_owned());
    let ended = status
        .ended
        .iter()
        .map(|EndedVolume { name, why }| format!("volume {name} has ended and did not open again: {why}"));
    let unopened = status.unopened.iter().map(|UnopenedVolume { name, since_unix_millis, why }| {
        format!("volume {name} has not opened since {}, when it was asked for: {why}", date(*since_unix_millis))
    });
    let volumes = status.volumes.iter().map(|volume| output::pairs(describe(volume)));
    let clients = (!status.clients.is_empty()).then(|| describe_clients(&status.clients));
    output::text(
        [head(&status)]
            .into_iter()
            .chain(none)
            .chain(ended)
            .chain(unopened)
            .chain(volumes)
            .chain(clients)
            .collect::<Vec<_>>()
            .join("\n\n"),
    )
}

/// Why a server cannot be asked, and the way out.
pub fn no_answer(state: &Path, error: &io::Error) -> Failure {
    let state = state.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::failed(format!(
            "no server runs on state directory {state}; start one with `ashlar serve`, name another with --state, or see \
             `ashlar info` for a volume as it is in the store"
        )),
        _ => Failure::failed(format!("the server on state directory {state} does not answer: {error}")),
    }
}

fn head(status: &ServerStatus) -> String {
    let mut lines = vec![format!("server {} on {}", status.pid, status.store)];
    lines.extend(status.store_trouble.as_ref().map(|trouble| trouble.sentence.clone()));
    lines.extend(status.budget.iter().map(told));
    lines.extend(describe_memory(&status.memory_total));
    lines.push(describe_cache(&status.cache));
    lines.extend(status.moved.iter().map(|moved| format!("volume {} moved to {}", moved.volume, moved.to)));
    lines.extend(status.copies.as_ref().map(|copies| {
        let (bytes, written) = (about_bytes(copies.bytes), counted(copies.written, "volume"));
        format!("copies of other servers' journals take {bytes}; of {written} one is written")
    }));
    if status.log.lines_dropped > 0 {
        let lines_dropped = counted(status.log.lines_dropped, "line");
        lines.push(format!("dropped {lines_dropped} of the log, which could not be written"));
    }
    lines.join("\n")
}

fn describe_clients(clients: &[ClientStatus]) -> String {
    let row = |client: &ClientStatus| {
        vec![
            client.address.clone(),
            client.export.clone(),
            date(client.since_unix_millis),
            client.requests.to_string(),
            format!("{}, {}", client.requests_in_flight, about_bytes(client.bytes_in_flight)),
        ]
    };
    output::table(&["CLIENT", "VOLUME", "SINCE", "REQUESTS", "IN FLIGHT"], clients.iter().map(row))
}

/// None of a server that does not say it.
fn describe_memory(MemoryTotal { resident, bound }: &MemoryTotal) -> Option<String> {
    (*bound > 0).then(|| format!("memory {} of {}", about_bytes(*resident), about_bytes(*bound)))
}

fn describe_cache(cache: &cache::Status) -> String {
    let memory = format!("cache {} of {} in memory", about_bytes(cache.memory_used), about_bytes(cache.memory_size));
    let Some(disk) = &cache.disk else { return memory };
    if let Some(why) = &disk.off {
        return format!("{memory}; on disk it is off: {why}");
    }
    format!(
        "{memory}, {} of {} on disk ({} frames found there, {} not, {} bad)",
        about_bytes(disk.used),
        about_bytes(disk.size),
        disk.hits,
        disk.misses,
        disk.bad
    )
}

fn describe(volume: &VolumeStatus) -> Vec<(&'static str, String)> {
    let VolumeStatus {
        name,
        doing,
        store_trouble,
        cost,
        budget,
        schedule,
        snapshot_lock,
        detaching,
        mirror,
        near,
        peer,
        status,
        ..
    } = volume;
    let mut lines = vec![
        ("volume", name.clone()),
        ("doing", doing.clone()),
        ("size", about_bytes(status.size)),
        ("mapped", about_bytes(status.mapped_bytes)),
        ("stored", space(status.stored_bytes, status.live_bytes, status.dead_bytes, status.sparse_bytes)),
        ("compression", format!("{}, {}", status.compression, ratio(status.mapped_bytes, status.live_bytes))),
        ("objects", status.objects.to_string()),
        ("snapshots", snapshots(status)),
        ("not yet stored", about_bytes(status.dirty_bytes)),
        (
            "gc",
            format!(
                "{} to be freed when quiet, {} to be deleted, {} rewritten since the start",
                about_bytes(status.gc.backlog_bytes),
                counted(status.gc.doomed_objects, "object"),
                counted(status.gc.segments_written, "segment"),
            ),
        ),
        ("since the start", account(&status.since_open, cost.requests_since_open_dollars)),
        ("since creation", account(&status.since_creation, cost.requests_since_creation_dollars)),
        ("a month of it", format!("about ${:.2} for what is stored now", cost.storage_month_dollars)),
    ];
    lines.extend(budget.iter().map(|left| ("budget", told(left))));
    lines.extend(schedule.as_ref().map(|schedule| ("snapshots", schedule.told())));
    lines.extend(snapshot_lock.as_ref().map(|lock| ("object lock", lock_told(lock))));
    if !status.clones.is_empty() {
        lines.push(("clones", clones(status)));
    }
    lines.extend(detaching.map(|far| ("independent", detaching_told(name, far))));
    lines.extend(mirror.as_ref().map(|mirror| ("mirror", mirror_told(mirror))));
    lines.extend(near.as_ref().map(|near| ("log", near_told(near))));
    lines.extend(peer.as_ref().map(|peer| ("peer", peer_told(peer))));
    lines.extend(status.dedup.as_ref().map(|dedup| ("de-duplicated", dedup_told(dedup))));
    if status.flushes_waiting > 0 {
        lines.push(("flushes waiting", status.flushes_waiting.to_string()));
    }
    lines.extend(store_trouble.as_ref().map(|trouble| ("trouble", trouble.sentence.clone())));
    if status.retired_bytes > 0 {
        let left = about_bytes(status.retired_bytes);
        lines.push(("key rotation", format!("{left} are still sealed with an older data key")));
    }
    if status.gc.damaged_segments > 0 {
        lines.push((
            "damaged",
            format!("{}; see `ashlar check {name}`", counted(status.gc.damaged_segments, "segment")),
        ));
    }
    lines.extend(status.ended.clone().map(|why| ("ended", why)));
    lines
}

/// How many snapshots there are, how old the newest is, and what only snapshots need since it was taken.
fn snapshots(status: &Status) -> String {
    match (status.snapshots, status.newest_snapshot_unix_millis) {
        (0, _) | (_, 0) => status.snapshots.to_string(),
        (kept, taken) => {
            let all = status.snapshots_held_bytes.filter(|_| kept > 1);
            let all = all.map_or_else(String::new, |held| format!("; all keep {}", about_bytes(held)));
            let newest = about_bytes(status.newest_snapshot_held_bytes);
            format!("{kept}, the newest of {}, which keeps {newest} that the volume needs no more{all}", date(taken))
        }
    }
}

/// What clones it has, and what is kept for nobody else.
fn clones(status: &Status) -> String {
    let kept = status.clones_held_bytes.map(|held| format!("; {} are kept for clones alone", about_bytes(held)));
    few(status.clones.iter().map(String::as_str)) + &kept.unwrap_or_default()
}

/// How far a clone is that becomes independent.
fn detaching_told(name: &str, Detaching { at, of }: Detaching) -> String {
    format!("{} of {}; ashlar clone --detach {name} goes on with it", about_bytes(at), about_bytes(of))
}

/// How far its mirror is.
fn mirror_told(mirror: &Mirrored) -> String {
    let Mirrored { url, state, lag_millis, lag_bytes, held_bytes, trouble, damaged_objects, .. } = mirror;
    let far = match (state, lag_millis, lag_bytes) {
        (Standing::Ended, ..) => "has ended".to_owned(),
        (Standing::Beginning, ..) => "is not reached yet".to_owned(),
        (Standing::FirstCopy, _, bytes) => format!("is being copied, {} are left", about_bytes(*bytes)),
        (Standing::Following, 0, 0) => "has all that is committed".to_owned(),
        (Standing::Following, millis, bytes) => {
            let behind = Duration::from_millis(millis - millis % 100);
            format!("is {} and {} behind", humantime::format_duration(behind), about_bytes(*bytes))
        }
    };
    let held = match held_bytes {
        0 => String::new(),
        held => format!("; {} that are dead stay in the store until then", about_bytes(*held)),
    };
    let damaged = match damaged_objects {
        0 => String::new(),
        damaged => format!("; {} damaged, see the log", counted(*damaged, "object")),
    };
    let trouble = trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    format!("{url} {far}{held}{damaged}{trouble}")
}

/// What a FLUSH waits for, and why it is not the peer.
fn peer_told(peer: &Peered) -> String {
    let Peered { address, waits_for, millis, trouble, falls, .. } = peer;
    let lasts = humantime::format_duration(Duration::from_millis(millis - millis % 100));
    let times = match falls {
        0 => String::new(),
        falls => format!("; it was lost {} since the start", counted(*falls, "time")),
    };
    match waits_for {
        WaitsFor::Peer => format!("{address} has kept a copy of the journal for {lasts}{times}"),
        WaitsFor::Store => {
            let why = trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            format!("away for {lasts}, so writes and flushes wait for the store{why}{times}")
        }
    }
}

/// What of the log is in a store of its own.
fn dedup_told(dedup: &DedupStatus) -> String {
    let DedupStatus { saved_bytes, index_bytes, referring_segments, referred_segments, .. } = dedup;
    format!(
        "{} written since the start were stored already, {} referring and {referred_segments} referred to; {} in memory say what is stored",
        about_bytes(*saved_bytes),
        counted(*referring_segments, "segment"),
        about_bytes(*index_bytes)
    )
}

fn near_told(near: &NearStatus) -> String {
    let NearStatus { url, bytes, oldest_millis, cooled_bytes, trouble, .. } = near;
    let age = humantime::format_duration(Duration::from_secs(oldest_millis / 1000));
    let trouble = trouble.as_ref().map_or_else(String::new, |why| format!("; nothing moves just now: {why}"));
    format!(
        "{} are only in {url}, the oldest for {age}; {} have moved from there since the start{trouble}",
        about_bytes(*bytes),
        about_bytes(*cooled_bytes)
    )
}

/// How far the store has locked what snapshots need.
fn lock_told(lock: &Locked) -> String {
    let Locked { until_unix_millis, is_behind, objects, trouble } = lock;
    match (trouble, until_unix_millis) {
        (Some(trouble), _) => format!("what snapshots need is not locked in the store: {trouble}"),
        (None, _) if *is_behind => {
            format!("what snapshots need is being locked in the store: {}", counted(*objects, "object"))
        }
        (None, 0) => "no snapshot is kept until a date".to_owned(),
        (None, until) => format!("what snapshots need is locked in the store until {}", date(*until)),
    }
}

/// What is left of a bound on what may be spent, and what that means.
fn told(left: &Left) -> String {
    let Left { key, allowed, left_ratio, thrift } = left;
    let percent = (100.0 * left_ratio.max(0.0)).round();
    match thrift {
        Thrift::Free => format!("{key} = {allowed}: {percent} % of what can be saved up is left"),
        Thrift::Sparing => format!(
            "{key} = {allowed}: {percent} % of what can be saved up is left: collection and the write-back wait"
        ),
        Thrift::Spent => format!("{key} = {allowed} is spent: writes wait, collection and the write-back too"),
    }
}

/// Stored bytes, and what they are.
pub fn space(stored: u64, live: u64, dead: u64, sparse: u64) -> String {
    format!(
        "{} ({} live, {} dead, {} dead among the live, {} of tables)",
        about_bytes(stored),
        about_bytes(live),
        about_bytes(dead),
        about_bytes(sparse),
        about_bytes(stored.saturating_sub(live + dead + sparse))
    )
}

/// How much smaller data is in the store.
pub fn ratio(mapped: u64, live: u64) -> String {
    match live {
        0 => "-".to_owned(),
        live => format!("{:.2} x", mapped as f64 / live as f64),
    }
}

/// Requests and what they cost.
pub fn account(account: &Account, dollars: f64) -> String {
    let amplification = match account.bytes_written {
        0 => String::new(),
        written => format!(", {:.2} bytes put per byte written", account.bytes_put as f64 / written as f64),
    };
    format!(
        "{}, {}, {}, {}: about ${dollars:.4}{amplification}",
        counted(account.puts, "PUT"),
        counted(account.gets, "GET"),
        counted(account.lists, "LIST"),
        counted(account.deletes, "DELETE"),
    )
}
