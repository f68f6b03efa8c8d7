//! What the log says of the life of a volume: one line when it is opened, one when it is closed, each with what a person wants to know
//! then. Pure but for the log.

use std::time::Duration;

use tracing::info;

use super::logging::LIFE;
use crate::human::{about_bytes, counted, exact_bytes};
use crate::store::prices::Prices;
use crate::tally::Tallied;
use crate::volume::{Settings, Status, Volume, settings};

/// Says that a volume was opened, which took so long.
pub fn opened(volume: &Volume, took: Duration) {
    let (meta, status) = (volume.meta(), volume.status());
    let what = opening(&status, took) + &own(&meta.settings);
    info!(target: LIFE, volume = %meta.name, uuid = %meta.uuid, epoch = status.epoch, "opened: {what}");
}

/// Says that a volume was closed, which had been open for so long.
pub fn closed(volume: &Volume, open_for: Duration, prices: &Prices) {
    let (meta, status) = (volume.meta(), volume.status());
    let what = closing(&status, &volume.operations(), open_for, prices);
    info!(target: LIFE, volume = %meta.name, uuid = %meta.uuid, epoch = status.epoch, "closed: {what}");
}

/// What does not come from this server's configuration.
fn own(set: &Settings) -> String {
    if set.is_empty() { String::new() } else { format!(", with settings of its own: {}", settings::listed(set)) }
}

fn opening(status: &Status, took: Duration) -> String {
    let asked = &status.since_open;
    let restored = match status.dirty_bytes {
        0 => String::new(),
        bytes => format!("{} brought back from the journal, ", about_bytes(bytes)),
    };
    format!(
        "{} large, {} mapped, {} stored in {}, {restored}with {} in {}",
        exact_bytes(status.size),
        about_bytes(status.mapped_bytes),
        about_bytes(status.stored_bytes),
        counted(status.objects, "object"),
        counted(asked.puts + asked.gets + asked.lists + asked.deletes, "request"),
        humantime::format_duration(Duration::from_millis(took.as_millis() as u64)),
    )
}

fn closing(status: &Status, operations: &[(&str, Tallied)], open_for: Duration, prices: &Prices) -> String {
    let of = |wanted: &str| {
        let tallied = operations.iter().find(|(name, _)| *name == wanted).map(|(_, tallied)| tallied);
        tallied.map_or((0, 0), |tallied| (tallied.count, tallied.bytes))
    };
    let moved = |name| {
        let (count, bytes) = of(name);
        format!("{} ({})", counted(count, name), about_bytes(bytes))
    };
    let failed: u64 = operations.iter().map(|(_, tallied)| tallied.failed).sum();
    let flushes = match of("flush").0 {
        1 => "1 flush".to_owned(),
        flushes => format!("{flushes} flushes"),
    };
    let cost = &status.since_open;
    format!(
        "after {}, {}, {}, {flushes}, {failed} failed, {} stored, {} and {} for about ${:.4}",
        humantime::format_duration(Duration::from_secs(open_for.as_secs())),
        moved("read"),
        moved("write"),
        about_bytes(status.stored_bytes),
        counted(cost.puts, "PUT"),
        counted(cost.gets, "GET"),
        cost.request_cost(prices),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::example::quiet;
    use crate::volume::Account;

    #[test]
    fn an_opening_says_what_is_there_and_what_it_took() {
        let since_open = Account { puts: 1, gets: 3, lists: 2, ..Account::default() };
        let status = Status { mapped_bytes: 3 << 20, stored_bytes: 1 << 20, objects: 4, since_open, ..quiet() };
        let took = Duration::from_micros(45_678);
        let said = "1 GiB large, 3.0 MiB mapped, 1.0 MiB stored in 4 objects, with 6 requests in 45ms";
        assert_eq!(opening(&status, took), said);
        let restored = opening(&Status { dirty_bytes: 8192, ..status }, took);
        assert!(restored.contains("4 objects, 8.0 KiB brought back from the journal, with 6 requests"), "{restored}");
    }

    #[test]
    fn an_opening_says_what_the_volume_sets_itself() {
        assert_eq!(own(&Settings::new()), "");
        let set = [("volume.durability", "journal"), ("volume.segment_size", "16 MiB")];
        let set = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(own(&set), ", with settings of its own: volume.durability = journal, volume.segment_size = 16 MiB");
    }

    #[test]
    fn a_closing_says_what_was_asked_and_what_it_cost() {
        let since_open = Account { puts: 1000, gets: 1, ..Account::default() };
        let status = Status { stored_bytes: 1 << 20, since_open, ..quiet() };
        let tallied = |count, bytes, failed| Tallied { count, bytes, failed, ..Tallied::default() };
        let operations =
            [("read", tallied(1, 4096, 0)), ("write", tallied(20, 1 << 20, 2)), ("flush", tallied(1, 0, 1))];
        assert_eq!(
            closing(&status, &operations, Duration::from_millis(61_900), &Prices::default()),
            "after 1m 1s, 1 read (4.0 KiB), 20 writes (1.0 MiB), 1 flush, 3 failed, 1.0 MiB stored, 1000 PUTs and 1 GET for about $0.0050"
        );
    }
}
