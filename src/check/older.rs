//! When the newest checkpoint cannot be read: an older one and the log after it may tell the same.
//!
//! A checkpoint adds nothing to the log before it but what it says of snapshots, so of the disk an older one is as good if every entry of the log from there up to
//! what the newest covers is still there. One that does not know a clone, which its volume is to keep something for, is not: the clone would be lost. Mostly it is not: what was dead as of the newest was deleted after it. An older one
//! with a part of the log would be the volume as it was once, which is worse than damaged: it is never taken.

use super::Report;
use crate::error::{Result, VolumeError};
use crate::format::places::further_place;
use crate::opening::clones::{self, Child};
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
                if let Some(clone) = forgotten_clone(source, &scan).await? {
                    let name = clone.name;
                    report.add(&format!(
                        "{place} cannot take its place: it does not know clone {name}, which shows what was kept after it"
                    ));
                    continue;
                }
                report.add(&format!(
                    "{place} and the log after it tell the same of the disk: --repair goes back to it; its snapshots are those of then"
                ));
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

/// A clone that the versions which are kept there do not know.
async fn forgotten_clone(source: &Source, scan: &Scan) -> Result<Option<Child>> {
    if !source.meta.may_have_clones {
        return Ok(None);
    }
    let kept = &scan.map.space().durable().kept;
    let knows = |child: &Child| {
        let shown = kept.iter().find(|version| version.seq == child.version);
        shown.is_some_and(|version| version.label.clones.iter().any(|known| known.uuid == child.uuid))
    };
    let children = clones::children(&*source.store, source.meta.uuid).await?;
    Ok(children.into_iter().find(|child| !knows(child)))
}
