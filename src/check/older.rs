//! When the newest checkpoint cannot be read: an older one and the log after it may tell the same.
//!
//! A checkpoint adds nothing to the log before it, so an older one is as good if every entry of the log from there up to
//! what the newest covers is still there. Mostly it is not: what was dead as of the newest was deleted after it. An older one
//! with a part of the log would be the volume as it was once, which is worse than damaged: it is never taken.

use super::Report;
use crate::error::{Result, VolumeError};
use crate::format::places::further_place;
use crate::opening::scan::{Scan, Source};
use crate::store::Key;
use crate::units::Seq;

/// The key of an object that was found at one of its places.
fn own_key(key: &Key) -> Key {
    further_place(key).map_or_else(|| key.clone(), |(own, _)| own)
}

/// The volume by an older checkpoint, if that is all of it; `damaged` is the object that could not be read. Says what is
/// missing if not.
pub async fn scan(source: &Source, damaged: &Key, report: &mut Report) -> Result<Option<Scan>> {
    let mut listed = source.list_checkpoints().await?;
    let newest = match listed.pop_last() {
        Some(newest) if source.keys.checkpoint(newest) == own_key(damaged) => newest,
        _ => return Ok(None),
    };
    for older in listed.into_iter().rev().chain([Seq(0)]) {
        let place = match older {
            Seq(0) => "the beginning of the log".to_owned(),
            older => format!("the checkpoint {}", source.keys.checkpoint(older)),
        };
        match source.scan_after(older).await {
            Ok(scan) if scan.committed >= newest => {
                report.add(&format!("{place} and the log after it tell the same: --repair goes back to it"));
                report.instead_of_newest = Some(older.0);
                return Ok(Some(scan));
            }
            Ok(scan) => {
                let gap = source.keys.segment(scan.next);
                report.add(&format!("{place} cannot take its place: of the log after that, {gap} is gone"));
            }
            Err(VolumeError::Corrupt { key, why }) => {
                report.add(&format!("{place} cannot take its place: {key}: {why}"));
            }
            Err(error) if error.is_not_found() => {
                report.add(&format!("{place} cannot take its place: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
