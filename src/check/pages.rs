//! Walking over all of a map, a few pages in memory at a time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Report, lose};
use crate::error::{Result, VolumeError};
use crate::map::{
    Deaths, Entry, Leaf, MapPage, NeedPages, PAGE_BLOCKS, PageAt, PageIndex, PageKind, PageRef, Placement, Ranges, walk,
};
use crate::opening::scan::{Scan, Source};
use crate::space::Carriers;
use crate::units::{BlockCount, BlockIndex, Extent, FrameAddr, Location, Seq};

/// Bytes of pages that stay in memory for the next step.
const MEMORY: usize = 64 << 20;

/// What a page that cannot be read holds: blocks of a segment that is not there.
const LOST: Seq = Seq(u64::MAX);

/// Blocks of one entry of it: as many as can be told apart in a frame, and more only if there would be a million of them.
const LOST_BLOCKS: u64 = 1 << 15;
const LOST_ENTRIES: u64 = 1 << 20;

/// The pages of a map.
#[derive(Default)]
pub struct Walk {
    /// What is carried is visited as if it were placed in its carrier, in a frame of no length.
    carriers: Arc<Carriers>,
    /// In place of those that cannot be read, which are reported once.
    lost: HashMap<PageRef, Arc<MapPage>>,
    /// Those that were read.
    read: BTreeSet<PageRef>,
}

impl Walk {
    /// Of a map of which these segments carry some of what it names.
    pub fn new(carriers: Arc<Carriers>) -> Walk {
        Walk { carriers, ..Walk::default() }
    }

    /// An entry that is carried says so.
    fn held(&self, entry: Entry) -> Entry {
        match entry.placement {
            Placement::Data(Location { frame, .. }) if self.carriers.holder(frame.seq) != frame.seq => {
                let frame = FrameAddr { seq: self.carriers.holder(frame.seq), offset: 0, len: 0 };
                Entry { placement: Placement::Data(Location { frame, block: 0 }), ..entry }
            }
            _ => entry,
        }
    }

    /// Whether every page could be read so far.
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty()
    }

    /// How many pages were read.
    pub fn pages(&self) -> u64 {
        self.read.len() as u64
    }

    /// Visits everything that is mapped, in order. All that a page which cannot be read is to hold is lost, unless a newer one hides
    /// it. Returns what died and was not counted yet.
    pub async fn each(
        &mut self,
        source: &Source,
        scan: &Scan,
        report: &mut Report,
        lost: &mut Ranges,
        mut visit: impl FnMut(&Entry),
    ) -> Result<Deaths> {
        let mut deaths = Deaths::default();
        let mut loaded: HashMap<PageRef, Arc<MapPage>> = HashMap::new();
        let mut walk = walk::Walk::new(scan.map.runs(), scan.map.tables());
        loop {
            let page = |at: &PageRef| self.lost.get(at).or_else(|| loaded.get(at)).map(|page| &**page);
            let stretch = match walk.next(&page) {
                Ok(Some(stretch)) => stretch,
                Ok(None) => break,
                Err(NeedPages(missing)) => {
                    self.load(source, scan, report, missing, &mut loaded).await?;
                    continue;
                }
            };
            deaths.add(&stretch.deaths);
            for entry in stretch.entries {
                match entry.placement {
                    Placement::Data(location) if location.frame.seq == LOST => lose(lost, entry.extent),
                    Placement::Hole => {}
                    _ => visit(&self.held(entry)),
                }
            }
            if loaded.values().map(|page| page.memory()).sum::<usize>() > MEMORY {
                loaded.clear();
            }
        }
        Ok(deaths)
    }

    async fn load(
        &mut self,
        source: &Source,
        scan: &Scan,
        report: &mut Report,
        missing: Vec<PageAt>,
        loaded: &mut HashMap<PageRef, Arc<MapPage>>,
    ) -> Result<()> {
        let info = |page: &PageAt| scan.checkpoints.get(&page.at.checkpoint).copied().unwrap_or_default();
        let wanted = missing.iter().map(|page| (*page, info(page))).collect();
        if let Ok(pages) = source.objects.pages(wanted).await {
            self.read.extend(pages.iter().map(|(at, _)| *at));
            loaded.extend(pages);
            return Ok(());
        }
        for page in missing {
            match source.objects.pages(vec![(page, info(&page))]).await {
                Ok(pages) => {
                    self.read.extend(pages.iter().map(|(at, _)| *at));
                    loaded.extend(pages);
                }
                Err(error) => {
                    note(source, page.at, report, error.into())?;
                    self.lose(page, scan.map.volume().end());
                }
            }
        }
        Ok(())
    }

    /// In place of this page stands one that says of all its blocks that they are lost.
    fn lose(&mut self, page: PageAt, end: BlockIndex) {
        let end = match page.kind {
            PageKind::Fixed => PageIndex(page.first.0 / PAGE_BLOCKS).extent().end(),
            PageKind::Leaf | PageKind::Index | PageKind::Table(_) | PageKind::Carrier(_) => {
                end.max(BlockIndex(page.first.0 + 1))
            }
        };
        let each = LOST_BLOCKS.max((end.0 - page.first.0).div_ceil(LOST_ENTRIES));
        let entry = |start: u64| Entry {
            extent: Extent { start: BlockIndex(start), count: BlockCount((end.0 - start).min(each)) },
            placement: Placement::Data(Location {
                frame: FrameAddr { seq: LOST, offset: start as u32, len: 0 },
                block: 0,
            }),
            owes: false,
        };
        let entries: Vec<Entry> = (page.first.0..end.0).step_by(each as usize).map(entry).collect();
        let leaf = Arc::new(MapPage::Leaf(Leaf::new(&entries)));
        match page.kind {
            PageKind::Leaf | PageKind::Fixed | PageKind::Table(_) | PageKind::Carrier(_) => {
                drop(self.lost.insert(page.at, leaf))
            }
            PageKind::Index => {
                let at = PageRef { checkpoint: LOST, offset: self.lost.len() as u32, len: 0 };
                self.lost.insert(at, leaf);
                self.lost.insert(page.at, Arc::new(MapPage::Index(vec![(page.first, at)])));
            }
        }
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
