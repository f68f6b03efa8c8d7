//! Offline verification: does the volume in the store hold together, and if not, which bytes of it are lost? Reads only; the
//! same code that tests run after every recovery.
//!
//! What is checked, in this order:
//!
//! 1. The description, the newest checkpoint's root, every log entry after it: authenticated, in order, of the right epoch. Of a clone also
//!    that its parent is there, and has kept what the clone shows. If the
//!    newest root cannot be read, an older one with the whole log after it takes its place ([`older`]).
//! 2. Every page of the map and of the table of segments: authenticated, inside its range.
//! 3. Every segment that the map needs: there, of the recorded length, its head authenticated; every extent that the map
//!    places in it lies in one of its frames, at the blocks which that frame holds.
//! 4. The live blocks of every segment, counted anew from the map; and that nothing is mapped beyond the end of the volume.
//! 5. With `data`: every frame of those segments, read and opened. Harm to a frame that neither the map nor a snapshot needs any
//!    more is no damage: it goes with its segment, and a repair leaves it behind.
//!
//! Whatever a damaged page, segment or frame was to hold is lost, and reported by its place in the volume ([`Report::lost`]).
//! Neither the map nor the extents are ever in memory as a whole: pages are walked over ([`pages`]) once, and once more for each
//! group of segments whose heads are in memory ([`segments`]).
//!
//! Objects that belong to the volume's folder but to nothing in it are counted, not complained about: a server that died
//! leaves some, and they cost money, not data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::cache::BlockCache;
use crate::change::Numbered;
use crate::engine::budget::Budget;
use crate::engine::options::Options;
use crate::error::{Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::meta::VolumeName;
use crate::keyring::Secrets;
use crate::map::{Entry, Placement, Ranges};
use crate::opening::clones;
use crate::opening::scan::{Scan, Source};
use crate::outside::Workers;
use crate::space::kept::Deaths;
use crate::store::{Key, Store, list_all};
use crate::units::{BlockSize, ChangeNo, Extent, Seq};
use crate::upkeep::sweep::{self, Tables, Verdict};

mod older;
mod pages;
pub mod repair;
mod segments;
mod table;
mod versions;

use pages::Walk;
use table::Known;

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// What is wrong; empty if the volume is sound.
    pub problems: Vec<Problem>,
    /// What of the volume cannot be read, or not be trusted: sorted, apart from each other.
    pub lost: Vec<ByteRange>,
    /// What of it the journal of this server brings back when it opens the volume, if somebody looked.
    pub in_journal: Vec<ByteRange>,
    /// The checkpoint from which everything can be read in place of the newest, which cannot; 0 is the beginning of the log.
    pub instead_of_newest: Option<u64>,
    /// The volume that it shows where nothing was written to it, and that is not looked at here, if it is a clone.
    pub shows: Option<String>,
    /// Segments whose heads were read.
    pub segments: u64,
    /// Pages of the map that were read.
    pub pages: u64,
    /// Frames that were opened (with `data`).
    pub frames: u64,
    /// Bytes of the volume that hold data.
    pub mapped_bytes: u64,
    /// Objects in the volume's folder.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Objects that nothing needs and that no table lists for deletion: left by servers that died.
    pub orphans: Vec<String>,
    /// The last change that is in the store; none if the log could not be read.
    #[serde(skip)]
    pub covers: Option<ChangeNo>,
    #[serde(skip)]
    block_size: BlockSize,
}

/// A part of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Notes which of what is lost these changes of a journal overwrite.
    pub fn look_into_journal(&mut self, changes: &[Numbered]) {
        let lost = self.lost.iter().map(|range| (range.offset, range.offset + range.length));
        let mut found = Ranges::default();
        for (start, end) in lost {
            for numbered in changes {
                let extent = numbered.change.extent();
                let first = self.block_size.bytes_in(crate::units::BlockCount(extent.start.0));
                let last = self.block_size.bytes_in(crate::units::BlockCount(extent.end().0));
                found.insert(first.max(start)..last.min(end).max(first.max(start)));
            }
        }
        self.in_journal = byte_ranges(&found, 1);
    }

    /// Says more of the last problem.
    fn add(&mut self, words: &str) {
        if let Some(problem) = self.problems.last_mut() {
            problem.what.push_str("; ");
            problem.what.push_str(words);
        }
    }

    fn problem(&mut self, object: impl ToString, what: String) {
        self.problems.push(Problem { object: object.to_string(), what });
    }
}

fn byte_ranges(runs: &Ranges, unit: u64) -> Vec<ByteRange> {
    runs.iter().map(|run| ByteRange { offset: run.start * unit, length: (run.end - run.start) * unit }).collect()
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Told of every step: how many segments are done, of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// How often a check begins again because the volume's owner went on meanwhile.
const RECHECKS: usize = 4;

/// Checks a volume. Damage is reported, not returned as an error; an error means that the check could not be made.
pub async fn check(
    store: &Arc<dyn Store>,
    name: &VolumeName,
    data: bool,
    progress: Progress<'_>,
    secrets: &Secrets,
) -> Result<Report> {
    let mut tries = 0;
    loop {
        let (report, seen) = check_once(store, name, data, progress, secrets).await?;
        tries += 1;
        if report.is_clean() || tries == RECHECKS {
            return Ok(report);
        }
        // A server that serves the volume may have deleted what was being read, after a newer checkpoint.
        // Or somebody has made the volume larger meanwhile.
        let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
        if (source.description, source.list_checkpoints().await?.last().copied().unwrap_or_default()) == seen {
            return Ok(report);
        }
    }
}

async fn check_once(
    store: &Arc<dyn Store>,
    name: &VolumeName,
    data: bool,
    progress: Progress<'_>,
    secrets: &Secrets,
) -> Result<(Report, (u64, Seq))> {
    let mut report = Report { volume: name.to_string(), ..Report::default() };
    let source = match Source::of(store.clone(), name, &Options::default(), None, secrets).await {
        Ok(source) => source,
        Err(VolumeError::Corrupt { key, why }) => {
            report.problem(key, why);
            return Ok((report, (0, Seq(0))));
        }
        Err(error) => return Err(error),
    };
    report.block_size = source.meta.block_size;
    report.shows = source.meta.parent.as_ref().map(|parent| parent.volume.to_string());
    let Some(scan) = scan(&source, &mut report).await? else {
        report.lost = vec![ByteRange { offset: 0, length: source.meta.size }];
        return Ok((report, (source.description, Seq(0))));
    };
    report.covers = Some(scan.covers);
    check_parent(&source, &mut report).await?;
    let prefix = source.keys.all();
    let listed = list_all(&*source.store, &prefix).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    report.objects = listed.len() as u64;
    report.stored_bytes = listed.iter().map(|entry| entry.size).sum();
    let sizes: HashMap<Key, u64> = listed.into_iter().map(|entry| (entry.key, entry.size)).collect();

    let mut lost = Ranges::default();
    let carriers = scan.map.space().carriers().clone();
    let mut walk = Walk::new(carriers.clone());
    let known = table::read(&source, &scan, &sizes, &mut report).await?;
    let held = versions::held(&source, &scan, &mut report).await?;
    let live = count_live(&source, &scan, &known, held.as_ref(), &mut walk, &mut report, &mut lost).await?;
    segments::check(&source, &scan, &known, &mut walk, &live, &sizes, data, progress, &mut report, &mut lost).await?;
    let (end, unit) = (source.meta.size / u64::from(report.block_size.bytes()), report.block_size.bytes().into());
    lost.remove(end..u64::MAX);
    report.lost = byte_ranges(&lost, unit);
    for version in scan.map.space().durable().kept.clone() {
        versions::check(&source, &version, &carriers, &known, &sizes, data, progress, &mut report).await?;
    }
    find_orphans(&source, &scan, known, &sizes, &mut report).await?;
    report.problems.sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
    // Head and snapshots share what they need.
    report.problems.dedup();
    Ok((report, (source.description, scan.checkpointed)))
}

/// What a clone shows must be there, and be kept. What it holds is for a check of its parent to say.
async fn check_parent(source: &Source, report: &mut Report) -> Result<()> {
    let near = (Arc::new(BlockCache::in_memory(0)), Workers::Inline);
    match clones::below(source, &Options::default(), &Budget::default(), near, None).await {
        Ok(_) => Ok(()),
        Err(VolumeError::Corrupt { key, why }) => {
            report.problem(key, why);
            Ok(())
        }
        Err(VolumeError::Invalid(why)) => {
            report.problem(Keys::meta(&source.meta.name, source.description), why);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Step 1; nothing if the volume cannot be read at all.
async fn scan(source: &Source, report: &mut Report) -> Result<Option<Scan>> {
    match source.scan_slots().await {
        Ok(scan) => Ok(Some(scan)),
        Err(VolumeError::Corrupt { key, why }) => {
            report.problem(&key, why);
            older::scan(source, &key, report).await
        }
        Err(error) => Err(error),
    }
}

/// Step 4: how many blocks the map needs in each segment.
async fn count_live(
    source: &Source,
    scan: &Scan,
    known: &Known,
    held: Option<&Deaths>,
    walk: &mut Walk,
    report: &mut Report,
    lost: &mut Ranges,
) -> Result<BTreeMap<Seq, u64>> {
    let mut live: BTreeMap<Seq, u64> = BTreeMap::new();
    let mut blocks = 0;
    let (end, mut beyond) = (source.meta.block_size.block_of(source.meta.size), None);
    let count = |entry: &Entry| {
        if entry.extent.end() > end {
            beyond = beyond.or(Some(entry.extent.start.max(end)));
        }
        if let Placement::Data(location) = entry.placement {
            blocks += entry.extent.count.0;
            *live.entry(location.frame.seq).or_default() += entry.extent.count.0;
        }
    };
    let (deaths, mut died) = (walk.each(source, scan, report, lost, count).await?, Deaths::new());
    let carriers = scan.map.space().carriers();
    deaths.iter().for_each(|(seq, blocks)| *died.entry(carriers.holder(seq)).or_default() += blocks);
    if let Some(block) = beyond {
        let what = format!(
            "the volume ends at block {end}, but the map holds block {block}: larger again, it would show that"
        );
        report.problem(Keys::meta(&source.meta.name, source.description), what);
    }
    report.pages += walk.pages();
    report.mapped_bytes = blocks * u64::from(source.meta.block_size.bytes());
    for (&seq, info) in &known.segments {
        // What died and was not counted yet is found when layers of the map meet, as here.
        let counted = live.get(&seq).copied().unwrap_or(0) + died.get(&seq).copied().unwrap_or(0);
        // What the map does not need any more, a snapshot may.
        let counted = counted + held.and_then(|held| held.get(&seq).copied()).unwrap_or(0);
        // What lies in pages that cannot be read is not counted.
        if held.is_some() && counted != u64::from(info.live_blocks) && walk.is_whole() && known.is_counted(seq) {
            let what = format!(
                "the table says that {} of its blocks are live or not counted, the map and snapshots say {counted}",
                info.live_blocks
            );
            report.problem(source.keys.segment(seq), what);
        }
    }
    for &seq in live.keys().filter(|seq| known.lacks(**seq)) {
        report.problem(source.keys.segment(seq), "the map needs it, but the table of segments does not list it".into());
    }
    let inconsistencies = scan.map.space().inconsistencies;
    if inconsistencies > 0 && walk.is_whole() {
        let what = format!("{inconsistencies} counts of live blocks contradicted each other");
        report.problem(source.keys.segment(scan.committed), what);
    }
    Ok(live)
}

/// Adds blocks to what is lost.
fn lose(lost: &mut Ranges, extent: Extent) {
    lost.insert(extent.start.0..extent.end().0);
}

/// Objects that nothing owns. Slots beyond the end of the log may be on their way to being committed.
async fn find_orphans(
    source: &Source,
    scan: &Scan,
    known: Known,
    sizes: &HashMap<Key, u64>,
    report: &mut Report,
) -> Result<()> {
    let tables = Tables {
        segments: known.segments.into_keys().collect(),
        unknown: known.unknown,
        next: scan.next,
        checkpoints: scan.checkpoints.keys().copied().chain([scan.checkpointed]).collect(),
        checkpointed: scan.checkpointed,
    };
    for key in sizes.keys() {
        let owner = tables.owner(&source.keys, key);
        let verdict = sweep::verdict(&*source.store, &source.keys, &source.sealer, key, owner).await;
        match verdict.map_err(VolumeError::store(format!("reading {key}")))? {
            Verdict::Owned => {}
            Verdict::Orphan | Verdict::LeaveAlone => report.orphans.push(key.to_string()),
        }
    }
    report.orphans.sort();
    Ok(())
}
