//! Steps 3 and 5: the segments that the map needs, in groups whose heads fit into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::pages::Walk;
use super::table::Known;
use super::{Progress, Report, lose};
use crate::cache::Purpose;
use crate::codec::CorruptError;
use crate::error::{Result, VolumeError};
use crate::format::places::{PLACES_MAX, place};
use crate::format::segment::{self, LogObject, LogRead};
use crate::map::{Entry, Placement, Ranges, SegmentInfo};
use crate::opening::scan::{Scan, Source};
use crate::reading::objects::Sealed;
use crate::reading::{Slot, Torn, slots};
use crate::store::Key;
use crate::units::{BlockCount, Extent, FrameAddr, Seq};

/// Requests under way at once.
const PARALLEL: usize = 16;

/// Segments that are looked into before their frames are counted.
const AT_ONCE: usize = 64;

/// Frames whose places are in memory at once, but for those of the last segments: some 64 bytes each.
const FRAMES_MAX: usize = 1 << 20;

/// What is known of one segment.
#[derive(Default)]
struct Looked {
    /// Which blocks each of its frames holds; nothing if the segment cannot be used.
    frames: Option<HashMap<FrameAddr, Extent>>,
    /// The same in the order of blocks.
    places: Vec<(Extent, FrameAddr)>,
    /// Frames that do not open.
    harmed: HashSet<FrameAddr>,
    /// Frames that were opened.
    opened: u64,
    /// What is wrong with it.
    problem: Option<String>,
    /// What is wrong with what it refers to.
    referred: Option<String>,
}

impl Looked {
    /// The frames that hold blocks of that extent, each with those that it holds, in order.
    fn of(&self, extent: Extent) -> impl Iterator<Item = &(Extent, FrameAddr)> {
        let from = self.places.partition_point(|(place, _)| place.end() <= extent.start);
        self.places[from..].iter().take_while(move |(place, _)| place.start < extent.end())
    }

    /// Whether its frames hold all of the extent.
    fn covers(&self, extent: Extent) -> bool {
        let held: u64 =
            self.of(extent).filter_map(|(place, _)| place.intersect(&extent)).map(|part| part.count.0).sum();
        held == extent.count.0
    }

    /// Whether a frame that holds some of the extent does not open.
    fn harms(&self, extent: Extent) -> bool {
        self.of(extent).any(|(_, frame)| self.harmed.contains(frame))
    }

    fn complain(&self, source: &Source, seq: Seq, report: &mut Report) {
        if let Some(what) = &self.problem {
            report.problem(source.keys.segment(seq), what.clone());
        }
    }
}

/// Checks the segments that hold `live` blocks of the map.
#[allow(clippy::too_many_arguments)] // the parts of one check
pub async fn check(
    source: &Source,
    scan: &Scan,
    known: &Known,
    walk: &mut Walk,
    live: &BTreeMap<Seq, u64>,
    sizes: &HashMap<Key, u64>,
    data: bool,
    progress: Progress<'_>,
    report: &mut Report,
    lost: &mut Ranges,
) -> Result<()> {
    let needed: Vec<Seq> = live.keys().copied().collect();
    let mut group: HashMap<Seq, Looked> = HashMap::new();
    let is_there = |seq: Seq| {
        let bytes = known.segments.get(&seq).map(|info| info.stored_bytes);
        let place = |bytes| find_place(&source.keys.segment(seq), bytes, sizes);
        bytes.is_some_and(|bytes| place(bytes).is_some_and(|(_, size)| size == bytes))
    };
    let is_there = &is_there;
    for (i, chunk) in needed.chunks(AT_ONCE).enumerate() {
        let looks = chunk.iter().map(|&seq| {
            let info = known.segments.get(&seq).copied();
            let there = match info {
                Some(info) => find_place(&source.keys.segment(seq), info.stored_bytes, sizes)
                    .map(|place| (info, place))
                    .ok_or(MISSING),
                None if known.lacks(seq) => Err(MISSING),
                None => Err(UNKNOWN),
            };
            async move { Ok::<_, VolumeError>((seq, look(source, seq, there, data, is_there).await?)) }
        });
        let looked: Vec<(Seq, Looked)> = stream::iter(looks).buffer_unordered(PARALLEL).try_collect().await?;
        for (seq, looked) in looked {
            report.segments += 1;
            report.frames += looked.opened;
            if looked.frames.is_none() {
                looked.complain(source, seq, report);
            }
            progress(report.segments, needed.len() as u64);
            group.insert(seq, looked);
        }
        let frames: usize = group.values().filter_map(|looked| looked.frames.as_ref()).map(HashMap::len).sum();
        if frames >= FRAMES_MAX || (i + 1) * AT_ONCE >= needed.len() {
            compare_places(source, scan, walk, &group, report, lost).await?;
            group.clear();
        }
    }
    Ok(())
}

/// Compares what the map places in a group of segments with what their frames hold. A frame in which it places nothing any more
/// may be harmed: nobody reads it.
async fn compare_places(
    source: &Source,
    scan: &Scan,
    walk: &mut Walk,
    group: &HashMap<Seq, Looked>,
    report: &mut Report,
    lost: &mut Ranges,
) -> Result<()> {
    let mut misplaced: BTreeMap<Seq, Extent> = BTreeMap::new();
    let mut hurt: BTreeSet<Seq> = BTreeSet::new();
    let mut gone = Ranges::default();
    let compare = |entry: &Entry| {
        let Placement::Data(location) = entry.placement else { return };
        let Some(looked) = group.get(&location.frame.seq) else { return };
        let Some(frames) = &looked.frames else { return lose(&mut gone, entry.extent) };
        let (is_placed, is_harmed) = match location.frame.len {
            // Of what it carries the map does not say where it is.
            0 => (looked.covers(entry.extent), looked.harms(entry.extent)),
            _ => (is_in_frame(entry, frames), looked.harmed.contains(&location.frame)),
        };
        if !is_placed {
            misplaced.entry(location.frame.seq).or_insert(entry.extent);
        }
        if is_harmed {
            hurt.insert(location.frame.seq);
        }
        if !is_placed || is_harmed {
            lose(&mut gone, entry.extent);
        }
    };
    walk.each(source, scan, report, lost, compare).await?;
    gone.iter().for_each(|run| lost.insert(run));
    for seq in hurt {
        group[&seq].complain(source, seq, report);
    }
    for (seq, extent) in misplaced {
        let what = format!("it has no frame where the map places blocks from {}", extent.start);
        report.problem(source.keys.segment(seq), what);
    }
    Ok(())
}

const MISSING: &str = "it is missing, and the map needs it";
const UNKNOWN: &str = "it cannot be opened: the salts of its span of the table cannot be read";

/// Looks into one segment.
async fn look(
    source: &Source,
    seq: Seq,
    there: std::result::Result<(SegmentInfo, (Key, u64)), &str>,
    data: bool,
    is_there: &(impl Fn(Seq) -> bool + Sync),
) -> Result<Looked> {
    let unusable = |what: &str| Ok(Looked { problem: Some(what.to_owned()), ..Looked::default() });
    let (info, (place, size)) = match there {
        Ok(there) => there,
        Err(why) => return unusable(why),
    };
    let length = format!("it is {size} bytes long where {} are expected", info.stored_bytes);
    if size > info.stored_bytes {
        return unusable(&length);
    }
    let read = match slots::read_slot(&*source.store, &source.keys, &source.sealer, seq).await {
        Ok(Slot::Holds(read, _)) => read,
        // It was cut: its first part is as good as ever.
        Ok(Slot::Torn(Torn { head: Some(read), .. })) => *read,
        Ok(Slot::Torn(_)) => return unusable(&length),
        Ok(Slot::Free) => return unusable(MISSING),
        Err(VolumeError::Corrupt { why, .. }) => return unusable(&why),
        Err(other) => return Err(other),
    };
    let LogObject::Segment(head) = &read.object else {
        return unusable("the map needs data in it, but it is no segment");
    };
    if read.salt != info.salt {
        return unusable("it is another encoding than the one that was committed");
    }
    let places = head.frames(seq, read.frames_at);
    let frames = Some(places.iter().map(|(extent, frame)| (*frame, *extent)).collect());
    let mut looked = Looked { frames, places, ..Looked::default() };
    let lacks = head.refers.iter().any(|(to, _)| !is_there(*to));
    if !head.refers.is_empty() && (data || lacks) {
        resolve_all(source, &info, &mut looked).await;
    }
    if data {
        open_all(source, &place, &read, &mut looked).await?;
    }
    if looked.problem.is_none() {
        looked.problem = looked.referred.take().map(|why| format!("what it refers to cannot be read: {why}"));
    }
    if size < info.stored_bytes {
        let beyond = |frame: &FrameAddr| u64::from(frame.offset) + u64::from(frame.len) > size;
        looked.harmed.extend(looked.frames.iter().flatten().map(|(frame, _)| *frame).filter(beyond));
        looked.problem = Some(length);
    }
    Ok(looked)
}

/// What it refers to is there, and is what it was: frames for which that is not so are harmed as if they were not there.
async fn resolve_all(source: &Source, info: &SegmentInfo, looked: &mut Looked) {
    let frames: Vec<FrameAddr> = looked.places.iter().map(|(_, frame)| *frame).collect();
    for frame in frames {
        let read = source.objects.frames(&[(frame, info.salt)], Purpose::Ahead, 0, Sealed::new()).await;
        if let Err(error) = read {
            looked.harmed.insert(frame);
            looked.referred.get_or_insert_with(|| error.to_string());
        }
    }
}

/// Step 5.
async fn open_all(source: &Source, place: &Key, read: &LogRead, looked: &mut Looked) -> Result<()> {
    let bytes: Bytes = source.store.get(place).await.map_err(VolumeError::store(format!("reading {place}")))?;
    let mut first: Option<(FrameAddr, CorruptError)> = None;
    for (&frame, &extent) in looked.frames.iter().flatten() {
        let data_len = u32::try_from(source.meta.block_size.bytes_in(extent.count)).unwrap_or(u32::MAX);
        let (start, end) = (frame.offset as usize, (u64::from(frame.offset) + u64::from(frame.len)) as usize);
        let sealed = bytes.slice(start.min(bytes.len())..end.min(bytes.len()));
        let opened = segment::open_any(&read.key, frame, &sealed).and_then(|opened| match opened.len() {
            len if len == data_len => Ok(()),
            found => Err(CorruptError::FrameLength { found, expected: data_len }),
        });
        match opened {
            Ok(()) => looked.opened += 1,
            Err(error) => {
                looked.harmed.insert(frame);
                if first.as_ref().is_none_or(|(before, _)| frame.offset < before.offset) {
                    first = Some((frame, error));
                }
            }
        }
    }
    let problem = first.map(|(frame, error)| match looked.harmed.len() {
        1 => format!("its frame at byte {}: {error}", frame.offset),
        harmed => format!("{harmed} of its frames; the first at byte {}: {error}", frame.offset),
    });
    looked.problem = problem.or(looked.problem.take());
    Ok(())
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
fn is_in_frame(entry: &Entry, frames: &HashMap<FrameAddr, Extent>) -> bool {
    let Placement::Data(location) = entry.placement else { return true };
    frames.get(&location.frame).is_some_and(|extent| {
        let start = extent.start + BlockCount(u64::from(location.block));
        entry.extent.start == start && entry.extent.end() <= extent.end()
    })
}
