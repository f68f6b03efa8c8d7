//! Reading what is live in the victims of garbage collection.
//!
//! 1. The heads of all victims of the round are read: which blocks each brought.
//! 2. The map is asked which of them are live, in the order of blocks over all victims together: so each page of the map is
//!    needed once in a round, however many victims have blocks in it. Pages that are not in memory are read in groups, used
//!    and let go: they take no place from those that clients need, and nobody can throw them out before they were used.
//!    What a survey found in them ([`super::survey`]) is asked for instead, if there was one, and only of what changed since it began.
//! 3. The frames with live blocks are read, proven, and what is live is copied out.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::cache::Purpose;
use crate::codec::CorruptError;
use crate::codec::seal::Salt;
use crate::engine::Event;
use crate::engine::collection::{Gathered, Surveyed};
use crate::engine::shared::Shared;
use crate::error::VolumeError;
use crate::format::segment::{self, LogObject, LogRead};
use crate::map::{MapPage, NeedPages, PageAt, PageRef, Placement};
use crate::reading::again::READS;
use crate::reading::fetch;
use crate::reading::objects::{ReadError, Sealed};
use crate::reading::{Slot, slots};
use crate::space::{Counter, SegmentInfo, Span};
use crate::store::{ErrorKind, Key, StoreError};
use crate::units::{Extent, FrameAddr, Location, Seq};

/// Victims whose heads, or small objects, are read at one time: what is looked up next has to wait for all of them.
const HEADS: usize = 16;

/// Victims of which live data is read at one time.
const PARALLEL: usize = 4;

/// Objects up to this length, and those that are mostly live, are read whole: one request instead of several.
const WHOLE_BYTES: u64 = 512 << 10;

/// Of one round, so many times `gc.batch` may be objects that are read whole: they are in memory until all is looked up.
const WHOLE_BATCHES: u64 = 2;

/// Whoever knows what is live in an object reads it whole up to this length, if what is live is all over it.
const WHOLE_MAX: u64 = 16 << 20;

/// Dead bytes between live frames that are read along with them: collection is not in a hurry, requests cost money.
const READ_GAP: u64 = 256 << 10;

/// The most that one request reads.
const READ_MAX: u64 = 8 << 20;

/// Extents that are looked up in the map under one lock.
const LOOKUPS: usize = 256;

/// Sealed bytes of pages of the map that are read for one group, one extent's at least.
const GROUP_BYTES: u64 = 2 << 20;

/// Bytes in memory of pages that stay for the next group.
const GROUP_MEMORY: usize = 16 << 20;

/// Why something could not be read.
pub(super) enum Unread {
    /// The store failed; worth trying again.
    Store(StoreError),
    /// It is not what was written, or not there.
    Damaged(String),
}

impl From<ReadError> for Unread {
    fn from(error: ReadError) -> Unread {
        match error {
            ReadError::Store { source, .. } => Unread::Store(source),
            damaged => Unread::Damaged(damaged.to_string()),
        }
    }
}

/// A victim whose head was read.
pub(super) struct Victim {
    pub(super) seq: Seq,
    /// Where it lies.
    key: Key,
    pub(super) read: LogRead,
    /// The object, if it was read whole.
    whole: Option<Bytes>,
    pub(super) extents: Vec<Extent>,
}

/// The live parts of each victim, in the order of blocks.
pub(super) type Live = HashMap<Seq, Vec<(Extent, Location)>>;

/// Brings in pages of the table of segments; they are also in memory then.
pub(super) async fn look(shared: Arc<Shared>, need: NeedPages) -> Event {
    let _reading = shared.begin_reading();
    let loaded = shared.fetch_pages(need).await.map_err(|error| error.to_string());
    if let Ok(loaded) = &loaded {
        shared.keep_pages(loaded).await;
    }
    Event::Looked(loaded)
}

/// Reads what is live in the victims. The map is as of `as_of` or later.
pub(super) async fn run(shared: Arc<Shared>, victims: Vec<Seq>, as_of: Seq, surveyed: Option<Surveyed>) -> Event {
    let held = shared.doors.seat.round().await.map(Arc::new);
    let _reading = shared.begin_reading();
    let mut gathered = Gathered::new(held, victims, as_of);
    let filled = match surveyed {
        Some(surveyed) => fill_surveyed(&shared, &mut gathered, &surveyed).await,
        None => fill(&shared, &mut gathered).await,
    };
    gathered.failed = filled.err();
    Event::Gathered(gathered)
}

/// What a survey found in the victims is asked for only whether it changed since; then one victim after the other is read.
async fn fill_surveyed(shared: &Shared, gathered: &mut Gathered, surveyed: &Surveyed) -> Result<(), StoreError> {
    let mut live = match still_live(shared, &gathered.victims, surveyed).await {
        Ok(live) => live,
        Err(Unread::Store(error)) => return Err(error),
        Err(Unread::Damaged(why)) => {
            let victims = gathered.victims.clone();
            victims.iter().for_each(|seq| note_damage(gathered, shared, *seq, &why));
            return Ok(());
        }
    };
    let mut parts = Vec::new();
    for seq in gathered.victims.clone() {
        match live.remove(&seq) {
            Some(live) => parts.push((seq, is_read_whole(shared, seq, &live), live)),
            None => gathered.empty.push(seq),
        }
    }
    let reads = parts.into_iter().map(|(seq, whole, parts)| async move {
        let read = async {
            let Some(victim) = read_head(shared, seq, whole).await? else { return Ok(None) };
            Ok(Some(read_live(shared, &victim, &located(&victim, &parts)).await?))
        };
        (seq, read.await)
    });
    for (seq, read) in stream::iter(reads).buffered(PARALLEL).collect::<Vec<_>>().await {
        match read {
            Ok(Some(data)) => gathered.data.extend(data),
            Ok(None) => gathered.empty.push(seq), // it died meanwhile
            Err(Unread::Store(error)) => return Err(error),
            Err(Unread::Damaged(why)) => note_damage(gathered, shared, seq, &why),
        }
    }
    gathered.data.sort_unstable_by_key(|(extent, _)| extent.start);
    Ok(())
}

/// Whether a victim is read whole of which these parts are live: if they are in so many places that what lies between would be read along with
/// them.
fn is_read_whole(shared: &Shared, seq: Seq, parts: &[Extent]) -> bool {
    let counter = shared.ledger().log().map.counter(seq).ok().flatten();
    let blocks: u64 = parts.iter().map(|part| part.count.0).sum();
    counter.is_some_and(|info| {
        let is_most = blocks * 2 > u64::from(info.blocks);
        let is_scattered = parts.len() as u64 * READ_GAP > info.stored_bytes;
        info.stored_bytes <= WHOLE_BYTES || info.stored_bytes <= WHOLE_MAX && (is_most || is_scattered)
    })
}

async fn fill(shared: &Shared, gathered: &mut Gathered) -> Result<(), StoreError> {
    let victims = read_heads(shared, gathered).await?;
    let live = match live_parts(shared, &victims).await {
        Ok(live) => live,
        Err(Unread::Store(error)) => return Err(error),
        Err(Unread::Damaged(why)) => {
            // Not the victims' fault, but what is live in them cannot be known.
            victims.iter().for_each(|victim| note_damage(gathered, shared, victim.seq, &why));
            return Ok(());
        }
    };
    for victim in &victims {
        if !live.contains_key(&victim.seq) {
            gathered.empty.push(victim.seq);
        }
    }
    read_all(shared, gathered, victims, live).await
}

/// Step 1.
pub(super) async fn read_heads(shared: &Shared, gathered: &mut Gathered) -> Result<Vec<Victim>, StoreError> {
    let planned = plan(shared, &gathered.victims);
    let heads = planned.into_iter().map(|(seq, whole)| async move { (seq, read_head(shared, seq, whole).await) });
    let mut victims = Vec::new();
    for (seq, head) in stream::iter(heads).buffered(HEADS).collect::<Vec<_>>().await {
        match head {
            Ok(Some(victim)) => victims.push(victim),
            Ok(None) => gathered.empty.push(seq), // it died meanwhile
            Err(Unread::Store(error)) => return Err(error),
            Err(Unread::Damaged(why)) => note_damage(gathered, shared, seq, &why),
        }
    }
    Ok(victims)
}

/// Step 3: the data of these parts of the victims.
pub(super) async fn read_all(
    shared: &Shared,
    gathered: &mut Gathered,
    victims: Vec<Victim>,
    mut live: Live,
) -> Result<(), StoreError> {
    let parts = victims.into_iter().filter_map(|victim| live.remove(&victim.seq).map(|live| (victim, live)));
    let reads = parts.map(|(victim, live)| async move {
        let seq = victim.seq;
        (seq, read_live(shared, &victim, &live).await)
    });
    for (seq, read) in stream::iter(reads).buffered(PARALLEL).collect::<Vec<_>>().await {
        match read {
            Ok(data) => gathered.data.extend(data),
            Err(Unread::Store(error)) => return Err(error),
            Err(Unread::Damaged(why)) => note_damage(gathered, shared, seq, &why),
        }
    }
    gathered.data.sort_unstable_by_key(|(extent, _)| extent.start);
    Ok(())
}

pub(super) fn note_damage(gathered: &mut Gathered, shared: &Shared, seq: Seq, why: &str) {
    tracing::error!(object = %shared.doors.keys.segment(seq), "not collected: {why}");
    gathered.damaged.push(seq);
}

/// The victims, and which of them are read whole.
fn plan(shared: &Shared, victims: &[Seq]) -> Vec<(Seq, bool)> {
    let ledger = shared.ledger();
    let mut room = WHOLE_BATCHES * shared.facts.options.gc.batch;
    let mut is_whole = |info: &Counter| {
        let pays = info.stored_bytes <= WHOLE_BYTES || info.live_bytes() * 2 > info.stored_bytes;
        let fits = pays && info.stored_bytes <= room;
        room -= if fits { info.stored_bytes } else { 0 };
        fits
    };
    // They were chosen by their counters; where these have left meanwhile, ranges are read.
    let counter = |seq| ledger.log().map.counter(seq).ok().flatten();
    victims.iter().map(|&seq| (seq, counter(seq).as_ref().is_some_and(&mut is_whole))).collect()
}

/// What the table says of a segment; nothing if it is gone.
async fn info_of(shared: &Shared, seq: Seq) -> Result<Option<SegmentInfo>, Unread> {
    let mut pages = HashMap::new();
    loop {
        let asked = shared.ledger().log().map.infos(Span::of(seq), &pages);
        match asked {
            Ok(infos) => return Ok(infos.into_iter().find(|(have, _)| *have == seq).map(|(_, info)| info)),
            Err(need) => pages.extend(shared.fetch_pages(need).await?),
        }
    }
}

/// The head of one victim, and its object if that is to be read `whole`; nothing if it died meanwhile.
async fn read_head(shared: &Shared, seq: Seq, whole: bool) -> Result<Option<Victim>, Unread> {
    let Some(info) = info_of(shared, seq).await? else { return Ok(None) };
    let mut key = shared.doors.keys.segment(seq);
    let mut whole = match whole {
        true => Some(shared.doors.background.get(&key).await.map_err(store_failed)?),
        false => None,
    };
    let decode = |bytes: &Bytes| {
        let read = segment::decode_log_object(&shared.doors.sealer, seq, bytes);
        read.and_then(|found| found.whole(bytes.len())).ok()
    };
    let read = match whole.as_ref().filter(|bytes| bytes.len() as u64 == info.stored_bytes).and_then(decode) {
        Some(read) => read,
        // It was not asked for at once, or what came is not the whole of it, or does not prove itself.
        None => {
            match slots::read_slot(&*shared.doors.background, &shared.doors.keys, &shared.doors.sealer, seq).await {
                Ok(Slot::Holds(read, place)) => {
                    (key, whole) = (place, None);
                    read
                }
                Ok(_) => return Err(Unread::Damaged("it is missing or cut short, and the map needs it".into())),
                Err(VolumeError::Store { source, .. }) => return Err(Unread::Store(source)),
                Err(damaged) => return Err(Unread::Damaged(damaged.to_string())),
            }
        }
    };
    let LogObject::Segment(head) = &read.object else {
        return Err(Unread::Damaged("the map needs data in it, but it is no segment".into()));
    };
    if read.salt != info.salt {
        return Err(Unread::Damaged("it is another encoding than the one that was committed".into()));
    }
    let extents = head.frames(seq, read.frames_at).into_iter().map(|(extent, _)| extent).collect();
    Ok(Some(Victim { seq, key, read, whole, extents }))
}

/// The parts of the victims' extents that the map still places in them.
async fn live_parts(shared: &Shared, victims: &[Victim]) -> Result<Live, Unread> {
    let extents = extents_of(victims);
    let (mut live, mut pages) = (Live::new(), Pages::default());
    let mut rest = &extents[..];
    while !rest.is_empty() {
        let (done, need) = {
            let ledger = shared.ledger();
            look_up(
                rest,
                |extent| ledger.log().map.lookup_with(extent, &pages.0),
                |_, seq, placed| {
                    let placed = placed.into_iter().filter_map(|(extent, placement)| match placement {
                        Placement::Data(location) if location.frame.seq == seq => Some((extent, location)),
                        _ => None,
                    });
                    let placed: Vec<(Extent, Location)> = placed.collect();
                    if !placed.is_empty() {
                        live.entry(seq).or_default().extend(placed);
                    }
                },
            )
        };
        rest = &rest[done..];
        pages.make_room(done);
        if !need.0.is_empty() {
            pages.0.extend(shared.fetch_pages(need).await?);
        }
    }
    Ok(live)
}

/// The parts that a survey found, as far as they did not change since.
async fn still_live(
    shared: &Shared,
    victims: &[Seq],
    surveyed: &Surveyed,
) -> Result<HashMap<Seq, Vec<Extent>>, Unread> {
    let found = |seq: &Seq| {
        let (seq, parts) = (*seq, surveyed.live.get(seq));
        parts.into_iter().flat_map(|parts| parts.iter()).map(move |part| (part, seq))
    };
    let mut found: Vec<(Extent, Seq)> = victims.iter().flat_map(found).collect();
    found.sort_unstable_by_key(|(part, _)| part.start);
    let (mut parts, mut pages) = (HashMap::<Seq, Vec<Extent>>::new(), Pages::default());
    let mut rest = &found[..];
    while !rest.is_empty() {
        let (done, need) = {
            let ledger = shared.ledger();
            let map = &ledger.log().map;
            look_up(
                rest,
                |extent| map.unchanged_with(extent, surveyed.as_of, &pages.0),
                // What another segment carries by now is in that one.
                |_, seq, unchanged| {
                    if map.space().carriers().holder(seq) == seq {
                        parts.entry(seq).or_default().extend(unchanged);
                    }
                },
            )
        };
        rest = &rest[done..];
        pages.make_room(done);
        if !need.0.is_empty() {
            pages.0.extend(shared.fetch_pages(need).await?);
        }
    }
    parts.retain(|_, parts| !parts.is_empty());
    Ok(parts)
}

/// Where the parts lie in a victim, in the order of blocks.
pub(super) fn located(victim: &Victim, parts: &[Extent]) -> Vec<(Extent, Location)> {
    let LogObject::Segment(head) = &victim.read.object else { return Vec::new() };
    let mut parts = parts.to_vec();
    parts.sort_unstable_by_key(|part| part.start);
    let frames = head.frames(victim.seq, victim.read.frames_at);
    let mut located = Vec::with_capacity(parts.len());
    for part in parts {
        let from = frames.partition_point(|(extent, _)| extent.end() <= part.start);
        for (extent, frame) in frames[from..].iter().take_while(|(extent, _)| extent.start < part.end()) {
            if let Some(within) = extent.intersect(&part) {
                let location = Location { frame: *frame, block: 0 }.skip(within.start - extent.start);
                located.push((within, location));
            }
        }
    }
    located
}

/// What the victims brought, in the order of blocks over all of them.
pub(super) fn extents_of(victims: &[Victim]) -> Vec<(Extent, Seq)> {
    let of = |victim: &Victim| victim.extents.iter().map(|extent| (*extent, victim.seq)).collect::<Vec<_>>();
    let mut extents: Vec<(Extent, Seq)> = victims.iter().flat_map(of).collect();
    extents.sort_unstable_by_key(|(extent, seq)| (extent.start, *seq));
    extents
}

/// Pages that came in for a group of lookups.
#[derive(Default)]
pub(super) struct Pages(pub(super) HashMap<PageRef, Arc<MapPage>>);

impl Pages {
    /// Neighbours need the same pages. Those that brought nothing further have to stay: one page finds the next.
    pub(super) fn make_room(&mut self, done: usize) {
        if done > 0 && self.0.values().map(|page| page.memory()).sum::<usize>() > GROUP_MEMORY {
            self.0.clear();
        }
    }
}

/// Looks the first of these extents up, as far as pages are there; returns how many, and the pages that the next ones
/// lack: of [`GROUP_BYTES`] together, or one extent's.
pub(super) fn look_up<T>(
    extents: &[(Extent, Seq)],
    lookup: impl Fn(Extent) -> Result<T, NeedPages>,
    mut found: impl FnMut(Extent, Seq, T),
) -> (usize, NeedPages) {
    let (mut need, mut bytes, mut done) = (HashMap::new(), 0, 0);
    for (extent, seq) in &extents[..extents.len().min(LOOKUPS)] {
        match lookup(*extent) {
            Ok(placed) if need.is_empty() => {
                done += 1;
                found(*extent, *seq, placed);
            }
            Ok(_) => {}
            Err(NeedPages(missing)) => {
                let fresh: Vec<PageAt> = missing.into_iter().filter(|page| !need.contains_key(&page.at)).collect();
                let more: u64 = fresh.iter().map(|page| u64::from(page.at.len)).sum();
                if !need.is_empty() && bytes + more > GROUP_BYTES {
                    break;
                }
                bytes += more;
                need.extend(fresh.into_iter().map(|page| (page.at, page)));
            }
        }
    }
    (done, NeedPages(need.into_values().collect()))
}

/// The data of what is live in one victim, read again where it does not prove itself.
async fn read_live(
    shared: &Shared,
    victim: &Victim,
    live: &[(Extent, Location)],
) -> Result<Vec<(Extent, Bytes)>, Unread> {
    if let LogObject::Segment(head) = &victim.read.object
        && !head.refers.is_empty()
    {
        return read_referring(shared, victim, live).await;
    }
    let mut read = read_live_once(shared, victim, victim.whole.clone(), live.to_vec()).await;
    for _ in 1..READS {
        if matches!(read, Err(Unread::Damaged(_))) {
            read = read_live_once(shared, victim, None, live.to_vec()).await;
        }
    }
    read
}

/// The same of a victim that refers to others: what is live of it is read as clients read it.
async fn read_referring(
    shared: &Shared,
    victim: &Victim,
    live: &[(Extent, Location)],
) -> Result<Vec<(Extent, Bytes)>, Unread> {
    let mut wanted: Vec<(FrameAddr, Salt)> =
        live.iter().map(|(_, location)| (location.frame, victim.read.salt)).collect();
    wanted.dedup();
    let frames = shared.doors.objects.frames(&wanted, Purpose::Ahead, READ_MAX, Sealed::new()).await;
    let frames = frames.map_err(|error| match error {
        ReadError::Store { source, .. } => store_failed(source),
        damaged => Unread::Damaged(damaged.to_string()),
    })?;
    let block_bytes = shared.facts.block_size.bytes() as usize;
    let cut = |(extent, location): &(Extent, Location)| {
        let (from, len) = (usize::from(location.block) * block_bytes, extent.count.0 as usize * block_bytes);
        let part = frames.get(&location.frame).and_then(|frame| frame.data().get(from..from + len));
        let part = part.ok_or_else(|| Unread::Damaged("a frame of it is shorter than the map says".into()))?;
        Ok((*extent, Bytes::copy_from_slice(part)))
    };
    live.iter().map(cut).collect()
}

async fn read_live_once(
    shared: &Shared,
    victim: &Victim,
    whole: Option<Bytes>,
    live: Vec<(Extent, Location)>,
) -> Result<Vec<(Extent, Bytes)>, Unread> {
    let (key, read) = (&victim.key, victim.read.clone());
    let mut bytes = Pieces(Vec::new());
    match whole {
        Some(object) => bytes.0.push((0, object)),
        None => {
            let frames = live.iter().map(|(_, location)| location.frame).collect();
            let gets = fetch::plan(frames, READ_GAP, READ_MAX);
            let gets = gets
                .into_iter()
                .map(|get| async move { (get.range.start, shared.doors.background.get_range(key, get.range).await) });
            for (start, got) in stream::iter(gets).buffered(PARALLEL).collect::<Vec<_>>().await {
                bytes.0.push((start, got.map_err(store_failed)?));
            }
        }
    }
    let block_bytes = shared.facts.block_size.bytes() as usize;
    let opened = shared.doors.workers.run(move || open(&read, &live, &bytes, block_bytes)).await;
    opened.map_err(|why| Unread::Damaged(why.to_string()))
}

pub(super) fn store_failed(error: StoreError) -> Unread {
    match error.kind {
        ErrorKind::NotFound => Unread::Damaged(error.to_string()),
        _ => Unread::Store(error),
    }
}

/// Parts of an object, by the offset at which each begins.
struct Pieces(Vec<(u64, Bytes)>);

impl Pieces {
    fn frame(&self, frame: FrameAddr) -> Result<Bytes, CorruptError> {
        let (from, to) = (u64::from(frame.offset), u64::from(frame.offset) + u64::from(frame.len));
        let piece = self.0.iter().find(|(start, bytes)| *start <= from && to <= start + bytes.len() as u64);
        let (start, bytes) = piece.ok_or(CorruptError::Truncated { have: 0, need: to })?;
        Ok(bytes.slice((from - start) as usize..(to - start) as usize))
    }
}

/// Proves the frames and copies out what is live in them.
fn open(
    read: &LogRead,
    live: &[(Extent, Location)],
    bytes: &Pieces,
    block_bytes: usize,
) -> Result<Vec<(Extent, Bytes)>, CorruptError> {
    // Live parts come in the order of blocks, and so of frames.
    let mut opened: Option<(FrameAddr, Bytes)> = None;
    let mut data = Vec::with_capacity(live.len());
    for (extent, location) in live {
        let frame = match opened.take().filter(|(frame, _)| *frame == location.frame) {
            Some((_, frame)) => frame,
            None => segment::open_frame_up_to(&read.key, location.frame, &bytes.frame(location.frame)?)?,
        };
        let (from, len) = (usize::from(location.block) * block_bytes, extent.count.0 as usize * block_bytes);
        let part = frame
            .get(from..from + len)
            .ok_or(CorruptError::FrameLength { found: frame.len() as u32, expected: (from + len) as u32 })?;
        data.push((*extent, Bytes::copy_from_slice(part)));
        opened = Some((location.frame, frame));
    }
    Ok(data)
}
