//! In what two versions of a volume differ, by their maps: no data is read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::device::Allocation;
use crate::error::{Result, VolumeError};
use crate::map::compaction::END;
use crate::map::difference::{Known, between};
use crate::map::walk::Walk;
use crate::map::{MapPage, NeedPages, PageRef};
use crate::opening::scan::{Scan, Source};
use crate::units::{BlockIndex, Extent};

/// Bytes of pages of one map that stay in memory for the next step.
const MEMORY: usize = 16 << 20;

/// A version of a volume, read from its first block to its last.
struct Reader<'a> {
    source: &'a Source,
    scan: Scan,
    loaded: HashMap<PageRef, Arc<MapPage>>,
    known: Known,
}

impl Reader<'_> {
    async fn go_on(&mut self) -> Result<()> {
        loop {
            let map = &self.scan.map;
            let mut walk = Walk::new(map.runs(), map.tables()).starting(self.known.upto());
            let next = walk.next(&|at: &PageRef| self.loaded.get(at).map(|page| &**page));
            match next {
                Ok(stretch) => {
                    let upto = if stretch.is_some() { walk.position() } else { END };
                    self.known.add(stretch.unwrap_or_default().entries, upto);
                    if self.loaded.values().map(|page| page.memory()).sum::<usize>() > MEMORY {
                        self.loaded.clear();
                    }
                    return Ok(());
                }
                Err(NeedPages(need)) => {
                    let info = |at: &PageRef| self.scan.checkpoints.get(&at.checkpoint).copied().unwrap_or_default();
                    let wanted = need.into_iter().map(|page| (page, info(&page.at))).collect();
                    self.loaded.extend(self.source.objects.pages(wanted).await.map_err(VolumeError::from)?);
                }
            }
        }
    }
}

/// The extents in which two versions differ, in order, and what the other has there, up to that block. Without the first, all that the other has.
pub async fn difference(
    source: &Source,
    (one, other): (Option<Scan>, Scan),
    end: BlockIndex,
) -> Result<Vec<(Extent, Allocation)>> {
    let reader = |scan| Reader { source, scan, loaded: HashMap::new(), known: Known::default() };
    let mut nothing = Known::default();
    nothing.add(Vec::new(), END);
    let (mut one, mut other) = (one.map(reader), reader(other));
    let (mut at, mut found) = (BlockIndex(0), Vec::new());
    while at < end {
        for map in one.iter_mut().chain([&mut other]) {
            while map.known.upto() <= at {
                map.go_on().await?;
            }
        }
        let one = one.as_mut().map_or(&mut nothing, |one| &mut one.known);
        let upto = one.upto().min(other.known.upto()).min(end);
        between(Extent::between(at, upto), one, &mut other.known, |extent, has| found.push((extent, has)));
        at = upto;
    }
    Ok(found)
}
