//! Finding what is live of many victims of garbage collection by one walk over the map ([`crate::map::survey`]).
//!
//! 1. The pages that the walk needs next are read, of each run some that lie behind them along with them: [`AHEAD_BYTES`] together. They
//!    stay sealed until it is their turn. So a run takes one request for each index page and its leaves, mostly.
//! 2. What the runs say of the next blocks is worked out by a worker thread.
//! 3. Under the lock, that is taken in together with what lies above the runs; or, if a checkpoint came in between, done again.
//!
//! A survey takes minutes on a large volume. It keeps objects from being deleted only for as long as one of these steps takes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use crate::codec::seal::Sealer;
use crate::engine::Event;
use crate::engine::collection::{SurveyFailed, Surveyed};
use crate::engine::shared::Shared;
use crate::format::root::{self, CheckpointInfo, place_of};
use crate::map::survey::{Strip, Survey, Taken, leaves_ahead};
use crate::map::{MapPage, NeedPages, PageAt, PageKind, PageRef, Run};
use crate::space::Carriers;
use crate::units::Seq;
use crate::upkeep::gather::Unread;

/// Sealed bytes of pages that are read ahead, of all runs together.
const AHEAD_BYTES: u64 = 24 << 20;

/// Entries above the runs that are looked at under one lock, about.
const ENTRIES_OF_A_HOLD: usize = 2048;

/// Of one run at least.
const AHEAD_OF_ONE: u64 = 256 << 10;

/// A walk, and the pages for it.
struct Scan {
    survey: Survey,
    pieces: Vec<Piece>,
    opened: HashMap<PageRef, Arc<MapPage>>,
    /// They did not prove themselves: they are asked for in the ordinary way, which tries again, and elsewhere.
    doubted: HashSet<PageRef>,
}

/// A part of a checkpoint object, sealed.
struct Piece {
    object: Seq,
    info: CheckpointInfo,
    from: u64,
    bytes: Bytes,
    /// A page was cut out of it in this step.
    is_used: bool,
}

/// What came of one try.
enum Tried {
    Read(Strip),
    Needs(Vec<PageAt>),
}

/// Finds what is live of the victims. The map is as of `as_of` or later.
pub(super) async fn run(shared: Arc<Shared>, victims: Vec<Seq>, as_of: Seq) -> Event {
    let _held = shared.doors.seat.round().await;
    let scan =
        Scan { survey: Survey::of(victims), pieces: Vec::new(), opened: HashMap::new(), doubted: HashSet::new() };
    let surveyed = match walk(&shared, scan).await {
        Ok(survey) => {
            let live: BTreeMap<_, _> = survey.into_live().map(|(seq, parts)| (seq, Arc::new(parts))).collect();
            Ok(Surveyed { as_of, live })
        }
        Err(Unread::Store(error)) => Err(SurveyFailed::Store(error.to_string())),
        Err(Unread::Damaged(why)) => Err(SurveyFailed::Damaged(why)),
    };
    Event::Surveyed(surveyed)
}

async fn walk(shared: &Arc<Shared>, mut scan: Scan) -> Result<Survey, Unread> {
    while scan.survey.position().is_some() {
        // What the runs name now stays until this step is done.
        let _reading = shared.begin_reading();
        let (runs, carriers) = {
            let ledger = shared.ledger();
            let map = &ledger.log().map;
            (map.shared_runs().clone(), map.space().carriers().clone())
        };
        let (back, strip) = step(shared, scan, &runs, &carriers).await?;
        scan = back;
        if let Some(mut strip) = strip {
            while scan.survey.take(&mut strip, &shared.ledger().log().map, ENTRIES_OF_A_HOLD) == Taken::Some {
                tokio::task::yield_now().await;
            }
            scan.tidy();
        }
    }
    Ok(scan.survey)
}

/// Steps 1 and 2. Nothing, if the runs are not those of the map any more.
async fn step(
    shared: &Arc<Shared>,
    mut scan: Scan,
    runs: &Arc<Vec<Run>>,
    carriers: &Arc<Carriers>,
) -> Result<(Scan, Option<Strip>), Unread> {
    loop {
        let (work, sealer) = ((runs.clone(), carriers.clone()), shared.doors.sealer.clone());
        let (back, tried) = shared
            .doors
            .workers
            .run(move || {
                let tried = scan.try_step(&work.0, &work.1, &sealer);
                (scan, tried)
            })
            .await;
        scan = back;
        match tried {
            Tried::Read(strip) => return Ok((scan, Some(strip))),
            Tried::Needs(need) => {
                if !scan.bring(shared, runs, need).await? {
                    return Ok((scan, None));
                }
            }
        }
    }
}

impl Piece {
    /// The sealed bytes of a page, if they are in it.
    fn cut(&self, at: &PageRef) -> Option<Bytes> {
        let begin =
            u64::from(place_of(&self.info, at)).checked_sub(self.from).filter(|_| at.checkpoint == self.object)?;
        let end = begin + u64::from(at.len);
        (end <= self.bytes.len() as u64).then(|| self.bytes.slice(begin as usize..end as usize))
    }
}

impl Scan {
    /// Looks as far as it has pages, and opens those that it has.
    fn try_step(&mut self, runs: &Arc<Vec<Run>>, carriers: &Carriers, sealer: &Sealer) -> Tried {
        loop {
            let page = |at: &PageRef| self.opened.get(at).map(|page| &**page);
            let need = match self.survey.read(runs, carriers, &page) {
                Ok(strip) => return Tried::Read(strip),
                Err(NeedPages(need)) => need,
            };
            let before = self.opened.len();
            for page in &need {
                let of = |(at, piece): (usize, &Piece)| Some((at, piece.cut(&page.at)?));
                let Some((at, sealed)) = self.pieces.iter().enumerate().find_map(of) else { continue };
                let piece = &mut self.pieces[at];
                piece.is_used = true;
                match root::open_page(sealer, &piece.info, page, &sealed) {
                    Ok(opened) => drop(self.opened.insert(page.at, Arc::new(opened))),
                    Err(_) => drop(self.doubted.insert(page.at)),
                }
            }
            if self.opened.len() == before {
                return Tried::Needs(need);
            }
        }
    }

    /// Brings in pages that are needed, and those that will be next. Returns false if a checkpoint came in between.
    async fn bring(&mut self, shared: &Shared, runs: &[Run], need: Vec<PageAt>) -> Result<bool, Unread> {
        {
            let ledger = shared.ledger();
            let page = |page: &PageAt| Some((page.at, ledger.log().map.page(&page.at)?));
            self.opened.extend(need.iter().filter_map(page));
        }
        let is_due = |pages: &&Ahead| need.contains(&pages.first) && !self.doubted.contains(&pages.first.at);
        let ahead = self.plan(runs);
        let reads = ahead.iter().filter(is_due).map(|ahead| read_ahead(shared, ahead));
        self.pieces.extend(join_all(reads).await.into_iter().flatten());
        let lacks = |scan: &Scan| need.iter().filter(|page| !scan.has(&page.at)).copied().collect::<Vec<_>>();
        let lacking = lacks(self);
        if !lacking.is_empty() {
            self.opened.extend(shared.fetch_pages(NeedPages(lacking)).await?);
        }
        Ok(lacks(self).is_empty())
    }

    fn has(&self, at: &PageRef) -> bool {
        let is_there = || !self.doubted.contains(at) && self.pieces.iter().any(|piece| piece.cut(at).is_some());
        self.opened.contains_key(at) || is_there()
    }

    /// What was looked at is not needed again, but what finds pages that are not, and what has further ones.
    fn tidy(&mut self) {
        let from = self.survey.position();
        let finds_more = |page: &MapPage| match page {
            MapPage::Index(leaves) => leaves.last().is_some_and(|(first, _)| Some(*first) >= from),
            _ => false,
        };
        self.opened.retain(|_, page| finds_more(page));
        self.pieces.retain_mut(|piece| std::mem::take(&mut piece.is_used));
        self.doubted.clear();
    }

    /// Of each run, what is to be read next with one request. The more a run has, the more of it, but not in proportion: that takes the fewest requests.
    fn plan(&self, runs: &[Run]) -> Vec<Ahead> {
        let Some(from) = self.survey.position() else { return Vec::new() };
        let weight = |run: &Run| (run.entries + 1).isqrt();
        let all: u64 = runs.iter().map(weight).sum();
        let page = |at: &PageRef| self.opened.get(at).map(|page| &**page);
        let of = |run: &Run| {
            let bytes = u128::from(AHEAD_BYTES) * u128::from(weight(run)) / u128::from(all.max(1));
            let bytes = (bytes as u64).max(AHEAD_OF_ONE);
            let pages = leaves_ahead(run, from, bytes, |at| self.has(at), &page);
            let (first, last) = (*pages.first()?, pages.last()?.at);
            // The leaves that an index page finds were mostly written just before it.
            let before = if first.kind == PageKind::Index { bytes } else { 0 };
            Some(Ahead { first, before, to: u64::from(last.offset) + u64::from(last.len) })
        };
        runs.iter().filter_map(of).collect()
    }
}

/// What is to be read with one request.
struct Ahead {
    first: PageAt,
    /// Bytes before it.
    before: u64,
    /// Where it ends, among the pages of its object.
    to: u64,
}

/// Nothing if that fails.
async fn read_ahead(shared: &Shared, ahead: &Ahead) -> Option<Piece> {
    let (PageAt { at, .. }, info) = shared.ledger().wanted(NeedPages(vec![ahead.first])).pop()?;
    let begin = u64::from(place_of(&info, &at));
    let (from, to) = (begin.saturating_sub(ahead.before), begin + ahead.to - u64::from(at.offset));
    let key = shared.doors.keys.checkpoint(at.checkpoint);
    let bytes = shared.doors.background.get_range(&key, from..to).await.ok()?;
    Some(Piece { object: at.checkpoint, info, from, bytes, is_used: false })
}
