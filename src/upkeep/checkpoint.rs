//! Checkpoints. The order is the safety argument, together with that of [`super::deletion`]; the code follows the
//! numbers.
//!
//! 1. Under one lock: what was committed since the last one and what it did to segments, the runs and the table of segments below it, the
//!    last committed slot S and its change number. What is committed from here on goes into a new table, and a new layer of the other.
//! 2. The newest table becomes a run, and runs are merged a few steps further ([`crate::map::layout`]). Merging finds blocks that died and
//!    were not counted yet. With these, what happened to segments becomes pages of their table ([`crate::space::fold`]).
//! 3. One object, `checkpoints/S`, holds the new pages and the root. When it is in the store, the checkpoint is
//!    durable: opening needs no segment at or before S for its head any more.
//! 4. The map learns what its runs and its table are now. Segments without live blocks *as of 3* are dead for ever: no later change
//!    brings a block back to them. Checkpoint objects older than S in which neither a run nor the table of 3 has a page are
//!    superseded. Both are doomed now ([`doom`]).
//!
//! Nothing here is urgent: whatever the store refuses is tried again with the next checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::codec::EncodeError;
use crate::engine::Event;
use crate::engine::backoff::Backoff;
use crate::engine::core::End;
use crate::engine::ledger::{self, CheckpointPlan, Written};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, Put};
use crate::format::root::{self, CheckpointInfo, EncodedCheckpoint, Root};
use crate::map::compaction::Sizes;
use crate::map::layout::{self, LaidOut, Layout};
use crate::map::{Checkpointed, MapPage, MapSnapshot, NeedPages, PageRef};
use crate::reading::objects::{LoadedPages, ReadError};
use crate::space::kept::Deaths;
use crate::space::{self, Bounds, Delta, Fold, Folded, Progress, Span};
use crate::store::ErrorKind;
use crate::units::Seq;

/// This part of what the map may have in memory may be pages that a checkpoint has just written.
const KEEP_PART: usize = 2;
/// The same, of the table of segments.
const KEEP_TABLE_PART: usize = 16;

/// This part of what the map may have in memory may be deltas of segments that wait to be counted into pages.
const DELTAS_PART: usize = 16;

/// How often in a row pages for a merge are asked for in vain.
const LOAD_TRIES: u32 = 8;

/// Writes one checkpoint; step 1 is [`Ledger::begin_checkpoint`].
///
/// [`Ledger::begin_checkpoint`]: crate::engine::ledger::Ledger
pub(super) async fn run(shared: Arc<Shared>, plan: CheckpointPlan) -> Event {
    let seq = plan.root.seq;
    let written = async {
        let laid_out = lay_out(&shared, seq, &plan.map, plan.merge_all).await?;
        let (folded, laid_out) = fold(&shared, plan.map.table, laid_out).await?;
        write(&shared, plan.root, plan.checkpoints, plan.bytes, folded, laid_out).await
    };
    match written.await {
        Ok(()) => {
            tidy(&shared).await;
            doom(&shared).await;
            shared.remember(seq).await;
            Event::Checkpointed
        }
        Err(end) => Event::Ended(end),
    }
}

/// Step 2. Fails only if the volume cannot go on.
async fn lay_out(shared: &Shared, seq: Seq, map: &MapSnapshot, all: bool) -> Result<LaidOut, End> {
    let failed = |error: EncodeError| End::Failed(format!("checkpoint {seq} {error}"));
    let (snapshot, keep) = (map.clone(), shared.doors.seat.map_memory() as usize / KEEP_PART);
    let begun = shared.doors.workers.run(move || Layout::new(seq, &snapshot, all, keep, Sizes::default())).await;
    let mut layout = begun.map_err(failed)?;
    loop {
        let go_on = move || loop {
            match layout.go_on()? {
                layout::Progress::GoOn => {}
                progress => return Ok((layout, progress)),
            }
        };
        let progress;
        (layout, progress) = shared.doors.workers.run(go_on).await.map_err(failed)?;
        match progress {
            layout::Progress::Needs(need) => match load(shared, need).await {
                Ok(pages) => layout.take_pages(pages),
                Err(error) => {
                    tracing::warn!(volume = %shared.facts.meta.name, "the runs of the map are not merged further this time: {error}");
                    layout.give_up();
                }
            },
            layout::Progress::GoOn => {}
            layout::Progress::Done => return Ok(layout.into_laid_out()),
        }
    }
}

/// The other half of step 2. Fails only if the volume cannot go on.
pub(super) async fn fold(
    shared: &Shared,
    mut table: space::Snapshot,
    mut laid_out: LaidOut,
) -> Result<(Folded, LaidOut), End> {
    let seq = laid_out.writer.object();
    let failed = |error: EncodeError| End::Failed(format!("checkpoint {seq} {error}"));
    let bounds = Bounds {
        deltas: shared.doors.seat.map_memory() as usize / DELTAS_PART / size_of::<(Seq, Delta)>(),
        ..Bounds::default()
    };
    table.change.lists = held(shared, &table).await?;
    super::held::learn(shared, &table).await;
    let deaths = std::mem::take(&mut laid_out.deaths);
    // What is sealed with a rotated key is written anew.
    let leave = shared.ledger().retired_checkpoints();
    laid_out.writer.keep(shared.doors.seat.map_memory() as usize / KEEP_TABLE_PART);
    let mut fold = shared.doors.workers.run(move || Fold::new(seq, &table, deaths.iter(), leave, bounds)).await;
    let (mut pages, mut backoff): (HashMap<PageRef, Arc<MapPage>>, _) = (HashMap::new(), Backoff::new(shared));
    loop {
        let go_on = move || {
            let progress = fold.go_on(&pages, &mut laid_out.writer);
            (fold, laid_out, pages, progress)
        };
        let progress;
        (fold, laid_out, pages, progress) = shared.doors.workers.run(go_on).await;
        match progress.map_err(failed)? {
            Progress::GoOn => pages.clear(),
            Progress::Done => break,
            Progress::Needs(need) => match load(shared, need.clone().into()).await {
                Ok(loaded) => pages.extend(loaded),
                Err(error) if fold.give_up() => {
                    tracing::warn!(volume = %shared.facts.meta.name, "deaths are not counted into the table of segments this time: {error}");
                }
                Err(damaged @ ReadError::Corrupt { .. }) => {
                    tracing::error!(volume = %shared.facts.meta.name, "new segments are kept in the root of the checkpoint: {damaged}");
                    fold.set_aside(&need);
                }
                // Segments that took effect belong into these pages.
                Err(error) => slot::bear(shared, error, "reading pages of the table of segments", &mut backoff).await?,
            },
        }
    }
    let finish = move || {
        let folded = fold.finish(&mut laid_out.writer);
        folded.map(|folded| (folded, laid_out))
    };
    shared.doors.workers.run(finish).await.map_err(failed)
}

/// What the versions that go hold in pages that are not in memory.
async fn held(shared: &Shared, table: &space::Snapshot) -> Result<BTreeMap<Seq, Deaths>, End> {
    let (mut lists, mut backoff) = (BTreeMap::new(), Backoff::new(shared));
    for version in table.durable.kept.iter().filter(|version| table.change.drop.contains(&version.seq)) {
        let need: NeedPages = version.unread().into();
        let pages = need.0.len();
        let loaded = loop {
            match load(shared, need.clone()).await {
                Ok(loaded) => break loaded,
                Err(damaged @ ReadError::Corrupt { .. }) => {
                    tracing::error!(volume = %shared.facts.meta.name, "space that only snapshot {} took does not come back: {damaged}", version.label.name);
                    break LoadedPages::new();
                }
                Err(error) => slot::bear(shared, error, "reading what a snapshot holds", &mut backoff).await?,
            }
        };
        let deaths: &mut Deaths = lists.entry(version.seq).or_default();
        if loaded.len() < pages {
            tracing::error!(volume = %shared.facts.meta.name, "space that only snapshot {} took does not come back: a page of what it holds is missing", version.label.name);
        }
        loaded.iter().for_each(|(_, page)| page.add_deaths(deaths));
    }
    Ok(lists)
}

/// The rest of step 4 that can wait, a little under each lock.
pub(super) async fn tidy(shared: &Shared) {
    loop {
        // Not under the lock: `gone` is let go of after it.
        let gone = shared.ledger().tidy();
        if gone.is_none() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Takes note of dead segments that are to be deleted, as far as they are known by name. What cannot be read is left for later.
pub(super) async fn doom(shared: &Shared) {
    let (mut pages, mut from) = (HashMap::new(), Span(0));
    loop {
        let Some((next, need)) = shared.ledger().doom(from, &pages) else { return };
        from = next;
        if need.0.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        pages.clear();
        match load(shared, need).await {
            Ok(loaded) => {
                shared.keep_pages(&loaded).await;
                pages.extend(loaded);
            }
            Err(error) => {
                tracing::warn!(volume = %shared.facts.meta.name, "dead segments are not deleted yet: {error}");
                return;
            }
        }
    }
}

/// Brings pages in for a merge. They take no place from those that clients need. Nobody waits for a merge: what cannot be had after
/// some tries is left to a later checkpoint, and one page that is damaged does not end the volume.
async fn load(shared: &Shared, need: NeedPages) -> Result<LoadedPages, ReadError> {
    let (mut pages, mut rest) = (LoadedPages::new(), Vec::new());
    {
        let ledger = shared.ledger();
        for page in need.0 {
            match ledger.log().map.page(&page.at) {
                Some(have) => pages.push((page.at, have)),
                None => rest.push(page),
            }
        }
    }
    let mut backoff = Backoff::new(shared);
    // After a failure fewer at once: of many requests to a bad store one always fails.
    let (mut at_once, mut failures) = (rest.len(), 0);
    while !rest.is_empty() {
        let some = rest[rest.len() - at_once.min(rest.len())..].to_vec();
        let count = some.len();
        match shared.fetch_pages(NeedPages(some)).await {
            Ok(loaded) => {
                pages.extend(loaded);
                rest.truncate(rest.len() - count);
                (at_once, failures) = (at_once * 2, 0);
            }
            Err(error) => {
                at_once = (at_once / 2).max(1);
                failures += 1;
                match &error {
                    ReadError::Store { source, .. } if source.kind == ErrorKind::Retryable && failures < LOAD_TRIES => {
                        backoff.pause("reading pages of the map to merge them", source).await;
                    }
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(pages)
}

/// Steps 3 and 4.
pub(super) async fn write(
    shared: &Shared,
    root: Root,
    before: Arc<BTreeMap<Seq, CheckpointInfo>>,
    bytes: u64,
    mut folded: Folded,
    laid_out: LaidOut,
) -> Result<(), End> {
    let LaidOut { runs, writer, has_begun_all, .. } = laid_out;
    let (frames, pages) = writer.finish();
    let seq = root.seq;
    folded.durable.needs_as_a_version(runs.iter().flat_map(|run| run.objects.keys().copied()));
    let (table, segments) = (folded.durable.root(), folded.loose.clone());
    let account = shared.facts.account_before.plus(&root.account.with_requests(&shared.doors.meter.snapshot()));
    let listed = before.iter().map(|(seq, info)| (*seq, *info)).collect();
    let root =
        Root { table, segments, checkpoints: listed, runs, account, fence: Some(shared.facts.fence.clone()), ..root };
    let (sealer, salt) = (shared.doors.sealer.clone(), shared.salt());
    let encoded = shared.doors.workers.run(move || root::encode_checkpoint(&sealer, salt, root, frames)).await;
    let EncodedCheckpoint { object, root } = encoded.map_err(|error| End::Failed(error.to_string()))?;

    let key = shared.doors.keys.checkpoint(seq);
    let mut backoff = Backoff::new(shared);
    loop {
        // Only we can have committed slot S, so only we can have put this: an earlier try of this very server.
        match slot::put(&*shared.doors.store, &key, object.parts.clone(), &|_| false).await {
            Ok(Put::Ours(_)) => break,
            Ok(Put::Torn) => return Err(End::Failed(slot::torn(&key))),
            Ok(Put::Taken(_)) => {
                return Err(End::Failed(format!("{key} is there already, but this server did not write it")));
            }
            Err(error) => backoff.pause("writing a checkpoint", &error).await,
        }
    }

    let Root { runs, checkpoints, .. } = root;
    let map = Checkpointed { runs, table: folded, pages };
    let checkpoints = checkpoints.into_iter().collect();
    let superseded = ledger::superseded(&before, &checkpoints);
    let written = Written { seq, map, checkpoints, superseded, has_begun_all, bytes };
    let now = shared.now();
    let (let_go, versions) = {
        let mut ledger = shared.ledger();
        (ledger.checkpoint_written(written, now.map_memory, now.at), ledger.versions_done())
    };
    drop(let_go);
    shared.following.changed();
    shared.waits.progress.change(|progress| progress.versions = versions);
    tracing::debug!(volume = %shared.facts.meta.name, %seq, "checkpoint");
    Ok(())
}
