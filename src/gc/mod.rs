//! Garbage collection: when is it worth rewriting segments, and which ones. Pure: [`crate::volume`] asks, reads, writes.
//!
//! A segment whose blocks are all dead costs one DELETE. One that is partly dead (*sparse*) is emptied first: its live
//! blocks are written again, as a segment of moved data, and then it is dead. What that costs and what it frees depends
//! on how long one waits, so there are two bounds on stored bytes in proportion to live ones:
//!
//! - while a client writes, `busy_percent`: rewriting early would copy blocks that the client is about to overwrite;
//! - when it has been quiet for a while, `quiet_percent`: what is dead now stays, and what is live will not die soon.
//!
//! Between `busy_percent` and `limit_percent` the share of time and of upload slots that collection takes grows, from
//! `share_percent` to all of the time and half of the slots; between `limit_percent` and `hold_percent` the client is held
//! back, until its uploads only trickle (see [`pace`]).
//!
//! Victims are taken in the order of `(1 - u) * age / (1 + u)`, where `u` is the live share: what is freed, times how
//! long it has been stable, per byte read and written (cost-benefit, Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", 1992). Age is the distance to the head of the log: no clock.
//! Old data thus ends up in segments of its own, apart from what changes often.
//!
//! The small segments that frequent FLUSHes leave are merged the same way once there are `merge_count` of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;
use crate::space::{Counter, Order, SegmentInfo, Totals, Want};
use crate::units::Seq;

/// What an operator may tune.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Stored bytes, in percent of live ones, above which segments are rewritten while a client writes.
    pub busy_percent: u32,
    /// The same, when no client has written for `quiet_after`.
    pub quiet_percent: u32,
    /// Stored bytes, in percent of live ones, at which collection takes all the time and half of the upload slots.
    pub limit_percent: u32,
    /// Stored bytes, in percent of live ones, at which the client's uploads only trickle while collection works; from
    /// `limit_percent` on it is held back more and more.
    pub hold_percent: u32,
    /// How long nothing may have been committed before the volume counts as quiet.
    #[serde(with = "human::duration")]
    pub quiet_after: Duration,
    /// The part of the time, in percent, that collection takes while a client writes and space is not short.
    pub share_percent: u32,
    /// Less garbage than this is left alone: the requests would cost more.
    #[serde(with = "human::bytes")]
    pub garbage_min: u64,
    /// Bytes of live data, as the client wrote them, that are read and held in memory at once, to be sorted and written again.
    #[serde(with = "human::bytes")]
    pub batch: u64,
    /// So many times that is held for all volumes of a server together.
    pub rounds: u32,
    /// So many small segments (with a sixteenth of `segment_size` of live data or less) are merged.
    pub merge_count: u32,
    /// Objects deleted per second, at most: a trim of terabytes must not crowd out the rest.
    pub delete_rate: u32,
    /// How often the store is listed for objects that nobody owns, as long as something is committed: a quiet volume is not listed.
    #[serde(with = "human::duration")]
    pub sweep_interval: Duration,
    /// How long an object must have had no owner before it is deleted.
    #[serde(with = "human::duration")]
    pub sweep_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            busy_percent: 145,
            quiet_percent: 118,
            limit_percent: 148,
            hold_percent: 156,
            quiet_after: Duration::from_secs(5),
            share_percent: 25,
            garbage_min: 64 << 10,
            batch: 36 << 20,
            rounds: 2,
            merge_count: 64,
            delete_rate: 1000,
            sweep_interval: Duration::from_secs(24 * 3600),
            sweep_grace: Duration::from_secs(3600),
        }
    }
}

/// Whether a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It does.
    Busy,
    /// It has not for [`Options::quiet_after`].
    Quiet,
}

/// Segments that are fuller than this, in percent, are left alone while a client writes: they would be copied for little.
const BUSY_LIVE_MAX_PERCENT: u64 = 85;

/// While a client writes, at most this part of what is live is rewritten at once without need.
const BATCH_PART: u64 = 16;

/// A segment is small if it has at most this part of the size of a full one.
const SMALL_PART: u64 = 16;

/// Bytes to free, to get back to the bound; 0 if it is kept.
pub fn excess(totals: &Totals, options: &Options, activity: Activity) -> u64 {
    let percent = match activity {
        Activity::Busy => options.busy_percent,
        Activity::Quiet => options.quiet_percent,
    };
    let allowed = share(totals.live_bytes, percent.saturating_sub(100));
    match totals.sparse_bytes() {
        little if little < options.garbage_min => 0,
        garbage => garbage.saturating_sub(allowed),
    }
}

/// How hard collection works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The part of the time that it may take, in percent: after working for a while it rests in proportion.
    pub time_percent: u32,
    /// Segments that it may have under way at once, of the window of uploads.
    pub uploads: u32,
    /// What that leaves to the client.
    pub client: Client,
}

/// How far the client is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// It gives slots only to moved data that waits for one.
    Free,
    /// It has the other slots of the window, whether there is something for those of collection or not yet.
    Shares,
    /// While collection works, it has a slot now and then.
    Trickles,
}

/// The share of collection: it gives way to the client, less so the shorter space is. `passing_bytes` take space for a
/// while only: dead objects that will go soon, and segments that are on their way to the store.
pub fn pace(totals: &Totals, passing_bytes: u64, options: &Options, activity: Activity, window: u32) -> Pace {
    let half = (window / 2).max(1);
    if activity == Activity::Quiet {
        return Pace { time_percent: 100, uploads: half, client: Client::Free };
    }
    let garbage = totals.sparse_bytes() + passing_bytes;
    let allowed = |percent: u32| share(totals.live_bytes, percent.saturating_sub(100));
    let (busy, limit, hold) =
        (allowed(options.busy_percent), allowed(options.limit_percent), allowed(options.hold_percent));
    let (pressure, excess) = (part(garbage, busy, limit), part(garbage, limit, hold));
    let base = options.share_percent.clamp(1, 100);
    let most = (window - 1).max(half);
    Pace {
        time_percent: base + (100 - base) * pressure / 100,
        uploads: (half * pressure / 100).max(1) + (most - half) * excess / 100,
        client: match excess {
            0 => Client::Free,
            1..100 => Client::Shares,
            _ => Client::Trickles,
        },
    }
}

/// The totals with what passing bytes leave of the room between `busy_percent` and `hold_percent` taken into account: what
/// is more than the part up to `limit_percent` counts as garbage, so that sparse segments make way for it.
pub fn make_way(totals: &Totals, passing_bytes: u64, options: &Options) -> Totals {
    let free = share(totals.live_bytes, options.limit_percent.saturating_sub(options.busy_percent));
    let most = share(totals.live_bytes, options.hold_percent.saturating_sub(options.limit_percent));
    Totals { stored_bytes: totals.stored_bytes + passing_bytes.saturating_sub(free).min(most), ..*totals }
}

/// How far `value` is on the way between two bounds, in percent.
fn part(value: u64, from: u64, to: u64) -> u32 {
    let to = to.max(from + 1);
    (u128::from(value.clamp(from, to) - from) * 100 / u128::from(to - from)) as u32
}

/// The rest after so much work.
pub fn rest(worked: Duration, pace: Pace) -> Duration {
    worked * (100 - pace.time_percent.min(100)) / pace.time_percent.max(1)
}

/// How much goes into a segment and into a block, in bytes of data as the client wrote it. Memory is taken by data, not by
/// what is left of it in the store; and a segment that is full of data which compresses well cannot become fuller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of a full segment.
    pub segment: u64,
    /// Of a block.
    pub block: u64,
}

/// Where to look for what [`choose`] chooses, in this order: first among sparse segments, then among small ones.
pub fn look(totals: &Totals, head: Seq, sizes: Sizes, options: &Options, activity: Activity) -> Vec<Want> {
    // A round has room for so many.
    let blocks = 2 * options.batch / sizes.block;
    let order = match activity {
        Activity::Busy => Order::Benefit(head),
        Activity::Quiet => Order::Emptiest,
    };
    let freed = excess(totals, options, activity);
    let live = worth_writing(sizes.segment, totals.live_bytes, activity);
    let sparse = (freed > 0).then_some(Want { order, freed, live, blocks, segments: 1 });
    let most = u32::try_from(sizes.segment / SMALL_PART / sizes.block).unwrap_or(u32::MAX);
    let segments = options.merge_count.max(2).into();
    let small = Want { order: Order::Smallest(most), freed: u64::MAX, live: u64::MAX, blocks, segments };
    sparse.into_iter().chain([small]).collect()
}

/// The segments to rewrite next of these, in log order; none if nothing is to be done. `head` is the last place of the log,
/// `spared` are segments that cannot be read or are being rewritten already.
pub fn choose(
    segments: impl Iterator<Item = (Seq, Counter)>,
    totals: &Totals,
    head: Seq,
    sizes: Sizes,
    options: &Options,
    activity: Activity,
    spared: &BTreeSet<Seq>,
) -> Vec<Seq> {
    let excess = excess(totals, options, activity);
    let partly_live = segments.filter(|(seq, info)| info.live_blocks > 0 && !spared.contains(seq));
    let (mut sparse, mut small) = (Vec::new(), Vec::new());
    for (seq, info) in partly_live {
        let candidate = Candidate::new(seq, &info, sizes);
        if excess > 0 && candidate.is_worth_it(activity) {
            sparse.push(candidate);
        }
        if candidate.data <= sizes.segment / SMALL_PART {
            small.push(candidate);
        }
    }
    let mut chosen = match sparse.is_empty() {
        false => take_sparse(sparse, head, sizes.segment, totals.live_bytes, options, activity, excess),
        true if small.len() >= options.merge_count.max(2) as usize => take_small(small, options),
        true => Vec::new(),
    };
    chosen.sort_unstable();
    chosen
}

/// A survey is given up, and what it found of segments that were not moved yet, when the runs of the map that are younger have so many entries: each
/// block is asked of those before it is moved.
pub const SURVEY_AGES: u64 = 4 << 20;

/// What one request brings of the map in a survey, about.
const SURVEY_SPAN: u64 = 16 << 20;

/// A survey finds work for so many bytes of live data for each of its requests, if there is so much to do,
const PER_SPAN: u64 = 2 << 20;

/// and for so many rounds at least.
const SURVEY_ROUNDS: u64 = 4;

/// What a survey found takes this part of `batch` in memory at most, if a block takes so many bytes.
const LIST_PART: u64 = 2;
const LIST_BYTES: u64 = 5;

/// A survey may read so many pages for each block that would otherwise be asked for, and need one of its own: hundreds come with one request.
const PAGES_PER_BLOCK: u64 = 4;

/// Entries of a page of the map, about.
const PAGE_ENTRIES: u64 = 2048;

/// With these options [`look`] and [`choose`] find what a survey is to find for, of a map whose pages take so many bytes: more than is moved at once, and
/// more than must be now.
pub fn to_survey(options: &Options, map_bytes: u64, sizes: Sizes) -> Options {
    let room = (options.batch / LIST_PART / LIST_BYTES).saturating_mul(sizes.block);
    let worth = (map_bytes / SURVEY_SPAN + 1).saturating_mul(PER_SPAN).max(SURVEY_ROUNDS * options.batch);
    Options { batch: worth.min(room), busy_percent: 100, ..options.clone() }
}

/// Whether a survey for segments of so many blocks is better than to ask a map of so many entries for each of them.
pub fn is_survey_worth_it(blocks: u64, entries: u64) -> bool {
    blocks.saturating_mul(PAGES_PER_BLOCK) >= entries / PAGE_ENTRIES
}

/// Of segments that were surveyed, those to rewrite next, in log order: until enough is freed, or there is a round. They were the best when they were chosen,
/// and neighbours are found in the same pages.
pub fn choose_in_order(
    segments: impl Iterator<Item = (Seq, Counter)>,
    totals: &Totals,
    sizes: Sizes,
    options: &Options,
    activity: Activity,
) -> Vec<Seq> {
    let excess = excess(totals, options, activity);
    if excess == 0 {
        return Vec::new();
    }
    let sparse = segments.map(|(seq, counter)| Candidate::new(seq, &counter, sizes));
    take_until_enough(sparse, worth_writing(sizes.segment, totals.live_bytes, activity), options, excess)
}

/// Of segments that kept versions need as they are, those that one segment is to carry next, in log order: of one interval between two versions, with at most
/// `bytes` of data that is needed, `most` of them. Each comes with its interval. The interval is chosen in which that frees most; the emptiest are
/// chosen in it.
pub fn choose_held(
    segments: impl Iterator<Item = (usize, Seq, Counter)>,
    bytes: u64,
    block: u64,
    most: usize,
    options: &Options,
    activity: Activity,
) -> Vec<Seq> {
    let mut intervals: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
    for (interval, seq, counter) in segments.filter(|(_, _, counter)| counter.live_blocks > 0) {
        let candidate = Candidate::new(seq, &counter, Sizes { segment: 0, block });
        if candidate.is_worth_it(activity) {
            intervals.entry(interval).or_default().push(candidate);
        }
    }
    let (mut chosen, mut best) = (Vec::new(), options.garbage_min.saturating_sub(1));
    for candidates in intervals.values_mut() {
        candidates.sort_unstable_by_key(|c| ((u128::from(c.live) << 32) / u128::from(c.stored.max(1)), c.seq));
        let (mut data, mut freed, mut victims) = (0, 0, Vec::new());
        for candidate in candidates.iter().take(most) {
            data += candidate.data;
            if !victims.is_empty() && data > bytes {
                break;
            }
            freed += candidate.stored - candidate.live.min(candidate.stored);
            victims.push(candidate.seq);
        }
        if freed > best {
            (chosen, best) = (victims, freed);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// The segments to rewrite next because of what `is_retired` says of them, in log order.
pub fn choose_retired(
    segments: impl Iterator<Item = (Seq, SegmentInfo)>,
    sizes: Sizes,
    options: &Options,
    spared: &BTreeSet<Seq>,
    is_retired: impl Fn(&SegmentInfo) -> bool,
) -> Vec<Seq> {
    let mut data = 0;
    let retired = segments.filter(|(seq, info)| info.live_blocks > 0 && !spared.contains(seq) && is_retired(info));
    let fits = |(seq, info): &(Seq, SegmentInfo)| {
        let is_first = data == 0;
        data += Candidate::new(*seq, &info.counter(), sizes).data;
        is_first || data <= options.batch
    };
    retired.take_while(fits).map(|(seq, _)| seq).collect()
}

/// Whether [`choose`] may find something, without looking at every segment: merging aside.
pub fn is_due(totals: &Totals, options: &Options, activity: Activity) -> bool {
    excess(totals, options, activity) > 0
}

#[derive(Clone, Copy)]
struct Candidate {
    seq: Seq,
    /// Bytes of the object.
    stored: u64,
    /// Of those, bytes of what is live.
    live: u64,
    /// Bytes of live data.
    data: u64,
}

impl Candidate {
    fn new(seq: Seq, info: &Counter, sizes: Sizes) -> Candidate {
        let data = u64::from(info.live_blocks) * sizes.block;
        Candidate { seq, stored: info.stored_bytes, live: info.live_bytes(), data }
    }

    fn is_worth_it(&self, activity: Activity) -> bool {
        match activity {
            Activity::Busy => self.live * 100 < self.stored * BUSY_LIVE_MAX_PERCENT,
            Activity::Quiet => self.live < self.stored,
        }
    }

    /// Cost-benefit, see the module.
    fn benefit(&self, head: Seq) -> f64 {
        let u = self.live as f64 / self.stored.max(1) as f64;
        let age = head.0.saturating_sub(self.seq.0) + 1;
        (1.0 - u) * age as f64 / (1.0 + u)
    }
}

/// The best ones until enough is freed, but while a client writes at least the worth of some segments, if that is little
/// for this volume: what is written should not be small itself.
fn take_sparse(
    mut sparse: Vec<Candidate>,
    head: Seq,
    segment_size: u64,
    live_bytes: u64,
    options: &Options,
    activity: Activity,
    excess: u64,
) -> Vec<Seq> {
    match activity {
        Activity::Busy => {
            sparse.sort_unstable_by(|a, b| b.benefit(head).total_cmp(&a.benefit(head)).then(a.seq.cmp(&b.seq)))
        }
        // Nothing will die while one waits: the emptiest cost least.
        Activity::Quiet => {
            sparse.sort_unstable_by_key(|c| ((u128::from(c.live) << 32) / u128::from(c.stored.max(1)), c.seq))
        }
    }
    take_until_enough(sparse.into_iter(), worth_writing(segment_size, live_bytes, activity), options, excess)
}

/// Until `excess` is freed and so much written, or there is a round.
fn take_until_enough(
    sparse: impl Iterator<Item = Candidate>,
    worth_writing: u64,
    options: &Options,
    excess: u64,
) -> Vec<Seq> {
    let (mut freed, mut live, mut data) = (0, 0, 0);
    let mut chosen = Vec::new();
    for candidate in sparse {
        let is_enough = freed >= excess && live >= worth_writing;
        if !chosen.is_empty() && (is_enough || data + candidate.data > options.batch) {
            break;
        }
        freed += candidate.stored - candidate.live.min(candidate.stored);
        live += candidate.live;
        data += candidate.data;
        chosen.push(candidate.seq);
    }
    chosen
}

/// So much is rewritten at once, although less would free enough.
fn worth_writing(segment_size: u64, live_bytes: u64, activity: Activity) -> u64 {
    match activity {
        Activity::Busy => (4 * segment_size).min(live_bytes / BATCH_PART).max(segment_size),
        Activity::Quiet => 0,
    }
}

/// The smallest ones: each byte is then merged a few times at most on its way to a full segment. One alone stays as it is.
fn take_small(mut small: Vec<Candidate>, options: &Options) -> Vec<Seq> {
    small.sort_unstable_by_key(|c| (c.data, c.seq));
    let mut data = 0;
    let fits = |candidate: &Candidate| {
        data += candidate.data;
        data <= options.batch
    };
    let fitting: Vec<Seq> = small.into_iter().take_while(fits).map(|candidate| candidate.seq).collect();
    if fitting.len() > 1 { fitting } else { Vec::new() }
}

fn share(bytes: u64, percent: u32) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

/// What stays in the store because other segments refer to it, and what that saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tie {
    /// Bytes of the segment beyond its live ones.
    pub kept_bytes: u64,
    /// Bytes, about, that those who refer to it would take if they had its data themselves.
    pub saved_bytes: u64,
    /// It is sealed with a rotated key, and somebody who refers to it is not.
    pub is_old: bool,
    stored_bytes: u64,
    blocks: u32,
}

impl Tie {
    /// That of a segment to which nobody refers yet.
    pub fn of(counter: &Counter) -> Tie {
        let Counter { stored_bytes, blocks, .. } = *counter;
        Tie { kept_bytes: stored_bytes.saturating_sub(counter.live_bytes()), stored_bytes, blocks, ..Tie::default() }
    }

    /// A segment refers to so many of its blocks; some of those may be dead there.
    pub fn save(&mut self, blocks: u32, by: &Counter) {
        let all = u128::from(self.blocks.max(1)) * u128::from(by.blocks.max(1));
        let saved = u128::from(blocks) * u128::from(by.live_blocks) * u128::from(self.stored_bytes) / all;
        self.saved_bytes += saved as u64;
    }

    /// Whether more stays than is saved.
    pub fn is_worth_untying(&self) -> bool {
        self.is_old || self.kept_bytes > self.saved_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        Sizes { segment: 8 << 20, block: 4096 }
    }

    /// A segment of so many blocks, `live` of them, that were compressed to a hundredth.
    fn compressed(blocks: u32, live: u32) -> Counter {
        Counter { stored_bytes: u64::from(blocks) * 41, blocks, live_blocks: live }
    }

    /// What would be rewritten of these segments, and the bytes that its live blocks take in memory.
    fn chosen(segments: &[Counter], options: &Options, activity: Activity) -> (Vec<Seq>, u64) {
        let numbered = || (1..).map(Seq).zip(segments.iter().copied());
        let mut totals = Totals::default();
        segments.iter().for_each(|counter| totals.count(counter));
        let head = Seq(segments.len() as u64);
        let victims = choose(numbered(), &totals, head, sizes(), options, activity, &BTreeSet::new());
        let live = |seq: &Seq| u64::from(segments[seq.0 as usize - 1].live_blocks) * 4096;
        let opened = victims.iter().map(live).sum();
        (victims, opened)
    }

    #[test]
    fn a_round_is_bounded_by_what_it_takes_in_memory_however_well_that_is_compressed() {
        let options = Options::default();
        for activity in [Activity::Busy, Activity::Quiet] {
            let (victims, opened) = chosen(&[compressed(4096, 2048); 200], &options, activity);
            assert!(victims.len() > 1 && opened <= options.batch, "sparse: {opened} bytes");
        }
        let (victims, opened) = chosen(&[compressed(128, 128); 2000], &options, Activity::Busy);
        assert!(victims.len() > 1 && opened <= options.batch, "small: {opened} bytes");
        let info = SegmentInfo { stored_bytes: 4096 * 41, blocks: 4096, live_blocks: 4096, ..SegmentInfo::default() };
        let retired = choose_retired((1..).map(Seq).zip([info; 200]), sizes(), &options, &BTreeSet::new(), |_| true);
        assert_eq!(retired.len() as u64, options.batch / (4096 * 4096));
    }

    #[test]
    fn a_full_segment_is_not_small_because_it_was_compressed_well() {
        let (victims, _) = chosen(&[compressed(2048, 2048); 200], &Options::default(), Activity::Quiet);
        assert_eq!(victims, []);
    }

    #[test]
    fn one_small_segment_is_not_merged_with_nothing() {
        let options = Options { batch: 1 << 20, ..Options::default() };
        let (victims, _) = chosen(&[compressed(128, 128); 200], &options, Activity::Quiet);
        assert_eq!(victims.len(), 2);
        let options = Options { batch: 1 << 19, ..options };
        assert_eq!(chosen(&[compressed(128, 128); 200], &options, Activity::Quiet).0, []);
    }

    #[test]
    fn a_survey_finds_work_in_proportion_to_what_it_reads_and_to_what_its_list_may_take() {
        let options = Options::default();
        let work = |map_bytes| to_survey(&options, map_bytes, sizes()).batch;
        assert_eq!(work(0), SURVEY_ROUNDS * options.batch);
        assert_eq!(work(2 << 30), 129 * PER_SPAN);
        assert!(work(1 << 50) / 4096 * LIST_BYTES <= options.batch / LIST_PART);
        assert_eq!(work(1 << 50), work(1 << 60));
    }

    #[test]
    fn a_survey_reads_not_much_more_than_asking_for_each_block_would() {
        let dense = |tib: u64| (tib << 40) / 4096;
        assert!(is_survey_worth_it(64 * 2048, dense(1)) && !is_survey_worth_it(8 * 2048, dense(1)));
        assert!(!is_survey_worth_it(1000 * 2048, dense(100)));
    }

    #[test]
    fn what_was_surveyed_is_moved_a_round_at_a_time_as_long_as_something_must() {
        let options = Options::default();
        let counter = compressed(2048, 512);
        let segments = || (1..).map(Seq).zip([counter; 100]);
        let chosen = |totals: &Totals| choose_in_order(segments(), totals, sizes(), &options, Activity::Quiet);
        let mut totals = Totals::default();
        (0..100).for_each(|_| totals.count(&counter));
        assert_eq!(chosen(&totals), (1..=options.batch / (512 * 4096)).map(Seq).collect::<Vec<_>>());
        assert_eq!(chosen(&Totals { live_bytes: totals.stored_bytes, ..totals }), []);
    }

    /// Live bytes of the volume, and a window of uploads.
    const LIVE: u64 = 1 << 30;
    const WINDOW: u32 = 8;

    fn at(stored_percent: u64, passing: u64, window: u32) -> Pace {
        let totals =
            Totals { live_bytes: LIVE, stored_bytes: LIVE / 100 * stored_percent - passing, ..Totals::default() };
        pace(&totals, passing, &Options::default(), Activity::Busy, window)
    }

    #[test]
    fn collection_takes_more_and_more_of_the_window_and_then_the_client_trickles() {
        let all: Vec<_> = [140, 147, 149, 152, 157].map(|percent| at(percent, 0, WINDOW)).into();
        assert_eq!(all[0], Pace { time_percent: 25, uploads: 1, client: Client::Free });
        assert!(all.windows(2).all(|pair| pair[0].uploads <= pair[1].uploads), "{all:?}");
        assert_eq!((all[1].client, all[2].client, all[3].client), (Client::Free, Client::Shares, Client::Shares));
        assert_eq!(all[4], Pace { time_percent: 100, uploads: WINDOW - 1, client: Client::Trickles });
    }

    #[test]
    fn what_passes_counts_as_what_is_sparse_does() {
        assert_eq!(at(153, LIVE / 10, WINDOW), at(153, 0, WINDOW));
    }

    #[test]
    fn a_window_of_one_or_two_has_a_slot_for_collection() {
        for window in [1, 2] {
            for percent in [140, 150, 170] {
                assert_eq!(at(percent, 0, window).uploads, 1);
            }
        }
    }

    #[test]
    fn sparse_segments_make_way_for_what_passes_but_only_so_far() {
        let totals = Totals { live_bytes: LIVE, stored_bytes: 2 * LIVE, ..Totals::default() };
        let more = |passing| make_way(&totals, passing, &Options::default()).stored_bytes - totals.stored_bytes;
        assert_eq!(more(LIVE / 100), 0);
        assert!(more(LIVE / 20) > 0 && more(LIVE) == more(2 * LIVE) && more(LIVE) < LIVE / 10);
    }
}
