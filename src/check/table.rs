//! Step 2, of the table of segments: every page of it, and what it says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Report;
use crate::error::{Result, VolumeError};
use crate::map::{MapPage, NeedPages, PageRef};
use crate::opening::scan::{Scan, Source};
use crate::space::{SegmentInfo, Span};
use crate::store::Key;
use crate::units::Seq;

/// What the table says of the segments.
#[derive(Debug, Default)]
pub struct Known {
    /// Those that it names.
    pub segments: BTreeMap<Seq, SegmentInfo>,
    /// Spans of which a page cannot be read.
    pub unknown: BTreeSet<Span>,
}

impl Known {
    /// Whether it can be known how many blocks of a segment are live.
    pub fn is_counted(&self, seq: Seq) -> bool {
        !self.unknown.contains(&Span::of(seq))
    }

    /// Whether the table could name the segment, and does not.
    pub fn lacks(&self, seq: Seq) -> bool {
        self.is_counted(seq) && !self.segments.contains_key(&seq)
    }
}

/// Reads all of it. Where counters cannot be read, but salts can, a segment can be opened all the same: its length is then the one that it
/// has in the store.
pub async fn read(source: &Source, scan: &Scan, sizes: &HashMap<Key, u64>, report: &mut Report) -> Result<Known> {
    let mut known = Known::default();
    let spans: Vec<Span> = scan.map.space().spans().collect();
    for span in spans {
        let mut pages = HashMap::new();
        loop {
            match scan.map.infos(span, &pages) {
                Ok(infos) => {
                    known.segments.extend(infos);
                    break;
                }
                Err(need) => {
                    if load(source, scan, need, &mut pages, report).await? {
                        continue;
                    }
                    known.unknown.insert(span);
                    let info = |(seq, salt)| {
                        let stored_bytes = sizes.get(&source.keys.segment(seq)).copied().unwrap_or_default();
                        (seq, SegmentInfo { salt, stored_bytes, ..SegmentInfo::default() })
                    };
                    known.segments.extend(scan.map.salts(span, &pages).into_iter().map(info));
                    break;
                }
            }
        }
        report.pages += pages.len() as u64;
    }
    Ok(known)
}

/// Whether all pages that are needed could be had. Each that could not is a problem.
async fn load(
    source: &Source,
    scan: &Scan,
    need: NeedPages,
    pages: &mut HashMap<PageRef, Arc<MapPage>>,
    report: &mut Report,
) -> Result<bool> {
    let mut is_whole = true;
    for page in need.0 {
        match source.pages(&scan.checkpoints, NeedPages(vec![page])).await {
            Ok(loaded) => pages.extend(loaded),
            Err(VolumeError::Corrupt { key, why }) => {
                report.problem(key, why);
                is_whole = false;
            }
            Err(missing) if missing.is_not_found() => {
                let what = "it is missing, and the table of segments needs a page in it";
                report.problem(source.keys.checkpoint(page.at.checkpoint), what.into());
                is_whole = false;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(is_whole)
}
