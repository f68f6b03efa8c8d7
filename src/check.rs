//! Offline verification: does the volume in the store hold together? Reads only; the same code that tests run after every
//! recovery.
//!
//! What is checked, in this order:
//!
//! 1. The description, the newest checkpoint's root, every log entry after it: authenticated, in order, of the right epoch.
//! 2. Every page of the map: authenticated, inside its range.
//! 3. Every segment that the map needs: there, of the recorded length, its head authenticated; every extent that the map
//!    places in it lies in one of its frames, at the blocks which that frame holds.
//! 4. The live blocks of every segment, counted anew from the map.
//! 5. With `data`: every frame of those segments, read and opened.
//!
//! Objects that belong to the volume's folder but to nothing in it are counted, not complained about: a server that died
//! leaves some, and they cost money, not data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde::Serialize;

use crate::keyring::Secrets;
use crate::map::{Content, Mapped, NeedPages, SegmentInfo};
use crate::segment::{self, LogObject};
use crate::store::{Key, Store, list_all};
use crate::units::{BlockCount, Extent, Seq};
use crate::volume::error::{Result, VolumeError};
use crate::volume::keys::Keys;
use crate::volume::meta::VolumeName;
use crate::volume::options::Options;
use crate::volume::places::{PLACES_MAX, place};
use crate::volume::scan::{self, Scan, Slot, Source};
use crate::volume::sweep::{self, Tables, Verdict};

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// What is wrong; empty if the volume is sound.
    pub problems: Vec<Problem>,
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
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
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

/// Requests under way at once.
const PARALLEL: usize = 16;

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
        let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
        if source.list_checkpoints().await?.last().copied().unwrap_or_default() == seen {
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
) -> Result<(Report, Seq)> {
    let mut report = Report { volume: name.to_string(), ..Report::default() };
    let source = match Source::of(store.clone(), name, &Options::default(), None, secrets).await {
        Ok(source) => source,
        Err(error) => return damaged(report, error),
    };
    let mut scan = match source.scan().await {
        Ok(scan) => scan,
        Err(error) => return damaged(report, error),
    };
    let prefix = source.keys.all();
    let listed = list_all(&**store, &prefix).await.map_err(VolumeError::store(format!("listing {prefix}")))?;
    report.objects = listed.len() as u64;
    report.stored_bytes = listed.iter().map(|entry| entry.size).sum();
    let sizes: HashMap<Key, u64> = listed.into_iter().map(|entry| (entry.key, entry.size)).collect();

    let wanted = read_map(&source, &mut scan, &mut report).await?;
    count_live(&source.keys, &scan, &wanted, &mut report);
    let total = wanted.len() as u64;
    let checks = wanted.iter().map(|(&seq, placed)| {
        let info = scan.map.usage().get(seq).copied();
        let there = info.and_then(|info| find_place(&source.keys.segment(seq), info.stored_bytes, &sizes));
        check_segment(&source, seq, placed, info.zip(there), data)
    });
    let mut checks = stream::iter(checks).buffer_unordered(PARALLEL);
    while let Some(result) = checks.next().await {
        let (frames, problems) = result?;
        report.segments += 1;
        report.frames += frames;
        report.problems.extend(problems);
        progress(report.segments, total);
    }
    find_orphans(&source, &scan, &sizes, &mut report).await?;
    report.problems.sort_by(|a, b| a.object.cmp(&b.object));
    Ok((report, scan.checkpointed))
}

/// A volume that cannot be opened at all is a finding too, if damage is the reason.
fn damaged(mut report: Report, error: VolumeError) -> Result<(Report, Seq)> {
    match error {
        VolumeError::Corrupt { key, why } => {
            report.problems.push(Problem { object: key.to_string(), what: why });
            Ok((report, Seq(0)))
        }
        other => Err(other),
    }
}

/// What the map places in each segment. Brings every page into memory once, and lets it go again.
async fn read_map(source: &Source, scan: &mut Scan, report: &mut Report) -> Result<BTreeMap<Seq, Vec<Mapped>>> {
    let mut wanted: BTreeMap<Seq, Vec<Mapped>> = BTreeMap::new();
    // Pages that the log dropped without reading them still count as live: account for them first.
    for (index, at) in scan.map.take_released(u64::MAX) {
        let salt = scan.checkpoints.get(&at.checkpoint).map_or_else(Default::default, |info| info.salt);
        match source.objects.pages(vec![(index, at, salt)]).await {
            Ok(pages) => pages.iter().for_each(|(_, _, page)| scan.map.account_released(page)),
            Err(error) => note(source, report, error.into())?,
        }
    }
    for (index, at) in scan.map.unloaded() {
        match source.load_pages(scan, NeedPages(vec![(index, at)])).await {
            Ok(()) => {}
            Err(error) => note(source, report, error)?,
        }
    }
    for (_, page) in scan.map.loaded() {
        report.pages += 1;
        for mapped in page.iter() {
            if let Content::Data(location) = mapped.content {
                report.mapped_bytes += source.meta.block_size.bytes_in(mapped.extent.count);
                wanted.entry(location.frame.seq).or_default().push(mapped);
            }
        }
    }
    Ok(wanted)
}

/// Damage and missing objects are findings; everything else ends the check.
fn note(source: &Source, report: &mut Report, error: VolumeError) -> Result<()> {
    let problem = match error {
        VolumeError::Corrupt { key, why } => Problem { object: key.to_string(), what: why },
        missing if missing.is_not_found() => Problem { object: source.keys.checkpoints(), what: missing.to_string() },
        other => return Err(other),
    };
    report.problems.push(problem);
    Ok(())
}

/// Step 4.
fn count_live(keys: &Keys, scan: &Scan, wanted: &BTreeMap<Seq, Vec<Mapped>>, report: &mut Report) {
    let mut problem = |seq: Seq, what: String| {
        report.problems.push(Problem { object: keys.segment(seq).to_string(), what });
    };
    for (seq, info) in scan.map.usage().iter() {
        let counted: u64 = wanted.get(&seq).into_iter().flatten().map(|mapped| mapped.extent.count.0).sum();
        if counted != u64::from(info.live_blocks) {
            problem(
                seq,
                format!("the table says that {} of its blocks are live, the map needs {counted}", info.live_blocks),
            );
        }
    }
    for &seq in wanted.keys().filter(|&&seq| scan.map.usage().get(seq).is_none()) {
        problem(seq, "the map needs it, but the table of segments does not list it".into());
    }
    if scan.map.usage().inconsistencies > 0 {
        problem(
            scan.committed,
            format!("{} counts of live blocks contradicted each other", scan.map.usage().inconsistencies),
        );
    }
}

/// Steps 3 and 5, for one segment.
async fn check_segment(
    source: &Source,
    seq: Seq,
    placed: &[Mapped],
    there: Option<(SegmentInfo, (Key, u64))>,
    data: bool,
) -> Result<(u64, Vec<Problem>)> {
    let key = source.keys.segment(seq);
    let problem = |what: String| vec![Problem { object: key.to_string(), what }];
    let Some((info, (place, size))) = there else {
        return Ok((0, problem("it is missing, and the map needs it".into())));
    };
    if size != info.stored_bytes {
        return Ok((0, problem(format!("it is {size} bytes long where {} are expected", info.stored_bytes))));
    }
    let read = match scan::read_slot(&*source.store, &source.keys, &source.sealer, seq).await {
        Ok(Slot::Holds(read, _)) => read,
        Ok(_) => return Ok((0, problem("it is missing, and the map needs it".into()))),
        Err(VolumeError::Corrupt { why, .. }) => return Ok((0, problem(why))),
        Err(other) => return Err(other),
    };
    let LogObject::Segment(head) = &read.object else {
        return Ok((0, problem("the map needs data in it, but it is no segment".into())));
    };
    if read.salt != info.salt {
        return Ok((0, problem("it is another encoding than the one that was committed".into())));
    }
    let frames: HashMap<_, _> =
        head.frames(seq, read.frames_at).into_iter().map(|(extent, frame)| (frame, extent)).collect();
    let misplaced = placed.iter().find(|mapped| !is_in_frame(mapped, &frames));
    if let Some(mapped) = misplaced {
        return Ok((0, problem(format!("it has no frame where the map places blocks from {}", mapped.extent.start))));
    }
    if !data {
        return Ok((0, Vec::new()));
    }
    let bytes: Bytes = source.store.get(&place).await.map_err(VolumeError::store(format!("reading {place}")))?;
    match segment::verify_log_object(&source.sealer, source.meta.block_size, seq, &bytes) {
        Ok(_) => Ok((frames.len() as u64, Vec::new())),
        Err(error) => Ok((0, problem(error.to_string()))),
    }
}

/// The place of an object that has that length, or else its first place; and the length of what is there.
fn find_place(own: &Key, bytes: u64, sizes: &HashMap<Key, u64>) -> Option<(Key, u64)> {
    let there = |n| {
        let key = place(own, n).ok()?;
        sizes.get(&key).map(|size| (key, *size))
    };
    (0..PLACES_MAX).filter_map(there).find(|(_, size)| *size == bytes).or_else(|| there(0))
}

/// Whether the frame holds, at the position that the map says, exactly these blocks.
fn is_in_frame(mapped: &Mapped, frames: &HashMap<crate::units::FrameAddr, Extent>) -> bool {
    let Content::Data(location) = mapped.content else { return true };
    frames.get(&location.frame).is_some_and(|extent| {
        let start = extent.start + BlockCount(u64::from(location.block));
        mapped.extent.start == start && mapped.extent.end() <= extent.end()
    })
}

/// Objects that nothing owns. Slots beyond the end of the log may be on their way to being committed.
async fn find_orphans(source: &Source, scan: &Scan, sizes: &HashMap<Key, u64>, report: &mut Report) -> Result<()> {
    let tables = Tables {
        segments: scan.map.usage().iter().map(|(seq, _)| seq).collect(),
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
