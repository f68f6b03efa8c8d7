//! What is going on, in a few words for people: pure.

use super::trouble::{StoreTrouble, flushes_wait};
use crate::human::{about_bytes, counted};
use crate::volume::Status;

/// What a volume is doing while so many requests of clients are under way: what is worst comes first.
pub fn doing(status: &Status, requests_in_flight: u64) -> String {
    if let Some(why) = &status.ended {
        return format!("ended: {why}");
    }
    let gc = &status.gc;
    let said = [
        (gc.damaged_segments > 0).then(|| format!("{} cannot be read", counted(gc.damaged_segments, "segment"))),
        status.size_owed.then(|| "the store does not know its size yet".to_owned()),
        status.journal_suspended.as_ref().map(|why| format!("writes wait for the store: {why}")),
        (status.writes_waiting > 0)
            .then(|| format!("{} held back for lack of room", counted(status.writes_waiting, "write"))),
        (status.writes_held > 0)
            .then(|| format!("{} held back as the budget is spent", counted(status.writes_held, "write"))),
        (status.flushes_waiting > 0).then(|| flushes_wait(status.flushes_waiting)),
        (requests_in_flight > 0).then(|| format!("{} under way", counted(requests_in_flight, "request"))),
        (status.uploads > 0).then(|| {
            format!("uploading {} ({})", counted(status.uploads, "segment"), about_bytes(status.upload_bytes))
        }),
        (status.uploads == 0 && status.dirty_bytes > 0)
            .then(|| format!("gathering {}", about_bytes(status.dirty_bytes))),
        (gc.doomed_objects > 0).then(|| format!("deleting {}", counted(gc.doomed_objects, "object"))),
        (gc.backlog_bytes > 0).then(|| format!("{} to be freed", about_bytes(gc.backlog_bytes))),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    if said.is_empty() { "idle".to_owned() } else { said.join(", ") }
}

/// How the store is doing, of which so many attempts were repeated since the start.
pub fn health(trouble: Option<&StoreTrouble>, repeated: u64) -> String {
    match (trouble, repeated) {
        (Some(trouble), _) => trouble.sentence.clone(),
        (None, 0) => "store answers".to_owned(),
        (None, repeated) => format!("store answers; {} repeated since the start", counted(repeated, "attempt")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::example::quiet;
    use crate::volume::GcStatus;

    #[test]
    fn a_volume_says_what_it_does_and_the_worst_first() {
        assert_eq!(doing(&quiet(), 0), "idle");
        let gathering = Status { dirty_bytes: 3 << 20, ..quiet() };
        assert_eq!(doing(&gathering, 2), "2 requests under way, gathering 3.0 MiB");
        let uploading = Status { uploads: 1, upload_bytes: 1 << 20, flushes_waiting: 1, ..gathering };
        assert_eq!(doing(&uploading, 0), "1 flush waits, uploading 1 segment (1.0 MiB)");
        let gc = GcStatus { backlog_bytes: 1 << 30, doomed_objects: 2, segments_written: 9, damaged_segments: 1 };
        let collecting = Status { gc, writes_waiting: 4, ..quiet() };
        assert_eq!(
            doing(&collecting, 0),
            "1 segment cannot be read, 4 writes held back for lack of room, deleting 2 objects, 1.0 GiB to be freed"
        );
        let spent = Status { writes_held: 2, flushes_waiting: 1, ..quiet() };
        assert_eq!(doing(&spent, 0), "2 writes held back as the budget is spent, 1 flush waits");
        let grown = Status { size_owed: true, flushes_waiting: 1, ..quiet() };
        assert_eq!(doing(&grown, 0), "the store does not know its size yet, 1 flush waits");
        let without_journal = Status { journal_suspended: Some("the disk is full".into()), ..quiet() };
        assert_eq!(doing(&without_journal, 0), "writes wait for the store: the disk is full");
        let ended = Status { ended: Some("taken by host b".into()), ..collecting };
        assert_eq!(doing(&ended, 9), "ended: taken by host b", "nothing else counts");
    }

    #[test]
    fn a_store_that_answers_says_what_had_to_be_repeated() {
        assert_eq!(health(None, 0), "store answers");
        assert_eq!(health(None, 1), "store answers; 1 attempt repeated since the start");
        let sentence = "store away since noon".to_owned();
        let away = StoreTrouble { since_unix_millis: 0, seconds: 1, what: String::new(), flushes_waiting: 0, sentence };
        assert_eq!(health(Some(&away), 7), "store away since noon");
    }
}
