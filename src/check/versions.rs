//! Step 6: the versions that are kept. What each needs is there, and the table of segments counts it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pages::Walk;
use super::table::Known;
use super::{Progress, Report, segments};
use crate::error::{Result, VolumeError};
use crate::human::few;
use crate::map::{Entry, Placement, Ranges};
use crate::opening::scan::{Scan, Source};
use crate::space::kept::Deaths;
use crate::space::{Carriers, KeptVersion};
use crate::store::Key;
use crate::units::Seq;

/// The deaths that versions hold, which the table counts as live; nothing if not all of it can be read.
pub async fn held(source: &Source, scan: &Scan, report: &mut Report) -> Result<Option<Deaths>> {
    let (mut all, carriers) = (Deaths::new(), scan.map.space().carriers());
    let mut add = |held: Deaths| {
        held.into_iter().for_each(|(seq, blocks)| *all.entry(carriers.holder(seq)).or_default() += blocks);
    };
    add(scan.map.space().held());
    let versions = &scan.map.space().durable().kept;
    for version in versions.iter().rev().skip(1) {
        match source.held(&scan.checkpoints, version).await {
            Ok(held) => add(held),
            Err(VolumeError::Corrupt { key, why }) => {
                report.problem(key, why);
                return Ok(None);
            }
            Err(missing) if missing.is_not_found() => {
                report.problem(source.keys.checkpoint(version.seq), format!("{missing}"));
                return Ok(None);
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Some(all))
}

/// Checks one version.
#[allow(clippy::too_many_arguments)] // the parts of one check
pub async fn check(
    source: &Source,
    version: &KeptVersion,
    carriers: &Arc<Carriers>,
    known: &Known,
    sizes: &HashMap<Key, u64>,
    data: bool,
    progress: Progress<'_>,
    report: &mut Report,
) -> Result<()> {
    let label = &version.label;
    let name = match label.is_hidden() {
        false => format!("snapshot {}", label.name),
        true => format!("what clones show of it ({})", few(label.clones.iter().map(|clone| clone.name.as_str()))),
    };
    let scan = match source.version(version).await {
        Ok(scan) => scan,
        Err(VolumeError::Corrupt { key, why }) => {
            report.problem(key, format!("{name} cannot be read: {why}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let (mut walk, mut lost, mut live) = (Walk::new(carriers.clone()), Ranges::default(), BTreeMap::<Seq, u64>::new());
    let count = |entry: &Entry| {
        if let Placement::Data(location) = entry.placement {
            *live.entry(location.frame.seq).or_default() += entry.extent.count.0;
        }
    };
    walk.each(source, &scan, report, &mut lost, count).await?;
    for (&seq, &blocks) in &live {
        let counted = known.segments.get(&seq).map_or(0, |info| u64::from(info.live_blocks));
        if counted < blocks && known.is_counted(seq) {
            let what = format!("{name} needs {blocks} blocks of it, the table of segments counts {counted}");
            report.problem(source.keys.segment(seq), what);
        }
    }
    segments::check(source, &scan, known, &mut walk, &live, sizes, data, progress, report, &mut lost).await?;
    let blocks: u64 = lost.iter().map(|run| run.end - run.start).sum();
    if blocks > 0 {
        let what = format!("{name} has lost {blocks} blocks");
        report.problem(source.keys.checkpoint(version.seq), what);
    }
    Ok(())
}
