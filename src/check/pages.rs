//! Walking over all pages of a map, a few in memory at a time.

use std::collections::BTreeSet;

use super::{Report, lose};
use crate::map::{NeedPages, Page, PageIndex, PageRef, Runs};
use crate::volume::error::{Result, VolumeError};
use crate::volume::scan::{Scan, Source};

/// Pages that are fetched at once.
const AT_ONCE: usize = 16;

/// Bytes of pages that stay in memory for the next walk, beside those that the log has changed.
const MEMORY: usize = 64 << 20;

/// The pages of a map.
pub struct Walk {
    pages: Vec<PageIndex>,
    /// Those that cannot be read: reported once.
    damaged: BTreeSet<PageIndex>,
    /// A page that was dropped unread could not be counted.
    is_counted: bool,
}

impl Walk {
    /// Over the map of this scan. Pages that the log dropped without reading them still count as live: accounts for them first.
    pub async fn over(source: &Source, scan: &mut Scan, report: &mut Report) -> Result<Walk> {
        let mut walk = Walk { pages: scan.map.page_indices(), damaged: BTreeSet::new(), is_counted: true };
        let released = scan.map.take_released(u64::MAX);
        for chunk in released.chunks(AT_ONCE) {
            for &(index, at) in chunk {
                let salt = scan.checkpoints.get(&at.checkpoint).map_or_else(Default::default, |info| info.salt);
                match source.objects.pages(vec![(index, at, salt)]).await {
                    Ok(pages) => pages.iter().for_each(|(_, _, page)| scan.map.account_released(page)),
                    Err(error) => {
                        // Nothing is lost with it: it was dropped whole.
                        walk.is_counted = false;
                        note(source, at, report, error.into())?;
                    }
                }
            }
        }
        Ok(walk)
    }

    /// Whether every page could be read so far.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.is_counted
    }

    /// Visits every page that can be read, in order. All that one which cannot is to hold is lost.
    pub async fn each(
        &mut self,
        source: &Source,
        scan: &mut Scan,
        report: &mut Report,
        lost: &mut Runs,
        mut visit: impl FnMut(PageIndex, &Page),
    ) -> Result<()> {
        for chunk in self.pages.chunks(AT_ONCE) {
            let missing = chunk.iter().filter(|index| !self.damaged.contains(index));
            let missing: Vec<_> = missing.filter_map(|&index| Some((index, scan.map.stored(index)?))).collect();
            if !missing.is_empty() && source.load_pages(scan, NeedPages(missing.clone())).await.is_err() {
                for (index, at) in missing {
                    if let Err(error) = source.load_pages(scan, NeedPages(vec![(index, at)])).await {
                        note(source, at, report, error)?;
                        self.damaged.insert(index);
                        lose(lost, index.extent());
                    }
                }
            }
            for &index in chunk {
                if let Some(page) = scan.map.page(index) {
                    visit(index, page);
                }
            }
            scan.map.evict(MEMORY);
        }
        Ok(())
    }
}

/// Damage and missing objects are findings; everything else ends the check.
fn note(source: &Source, at: PageRef, report: &mut Report, error: VolumeError) -> Result<()> {
    match error {
        VolumeError::Corrupt { key, why } => report.problem(key, why),
        missing if missing.is_not_found() => {
            report
                .problem(source.keys.checkpoint(at.checkpoint), "it is missing, and the map needs a page in it".into());
        }
        other => return Err(other),
    }
    Ok(())
}
