//! Checkpoints. The order is the safety argument, together with that of [`super::deletion`]; the code follows the
//! numbers.
//!
//! 1. Under one lock: what was committed since the last one, the runs below it, the table of segments, the last committed slot S and
//!    its change number. What is committed from here on goes into a new table.
//! 2. The newest table becomes a run, and runs are merged a few steps further ([`crate::map::layout`]). Merging finds blocks that died and
//!    were not counted yet.
//! 3. One object, `checkpoints/S`, holds the new pages and the root. When it is in the store, the checkpoint is
//!    durable: opening needs no segment at or before S for its head any more.
//! 4. The map learns what its runs are now. Segments without live blocks *as of 1* are dead for ever: no later change
//!    brings a block back to them. Checkpoint objects older than S in which no run of 3 has a page are superseded. Both
//!    are doomed now.
//!
//! Nothing here is urgent: whatever the store refuses is tried again with the next checkpoint.

use std::sync::Arc;

use crate::codec::EncodeError;
use crate::engine::Event;
use crate::engine::backoff::Backoff;
use crate::engine::core::End;
use crate::engine::ledger::{CheckpointPlan, Written};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, Put};
use crate::format::root::{self, EncodedCheckpoint, Root};
use crate::map::compaction::Sizes;
use crate::map::layout::{LaidOut, Layout, Progress};
use crate::map::{Checkpointed, MapSnapshot, NeedPages};
use crate::reading::objects::{LoadedPages, ReadError};
use crate::store::ErrorKind;
use crate::units::{BlockCount, Seq};

/// This part of what the map may have in memory may be pages that a checkpoint has just written.
const KEEP_PART: usize = 2;

/// How often in a row pages for a merge are asked for in vain.
const LOAD_TRIES: u32 = 8;

/// Writes one checkpoint; step 1 is [`Ledger::begin_checkpoint`].
///
/// [`Ledger::begin_checkpoint`]: crate::engine::ledger::Ledger
pub(super) async fn run(shared: Arc<Shared>, plan: CheckpointPlan) -> Event {
    let seq = plan.root.seq;
    let written = async {
        let laid_out = lay_out(&shared, seq, &plan.map, plan.merge_all).await?;
        write(&shared, plan, laid_out).await
    };
    match written.await {
        Ok(()) => {
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
                Progress::GoOn => {}
                progress => return Ok((layout, progress)),
            }
        };
        let progress;
        (layout, progress) = shared.doors.workers.run(go_on).await.map_err(failed)?;
        match progress {
            Progress::Needs(need) => match load(shared, need).await {
                Ok(pages) => layout.take_pages(pages),
                Err(error) => {
                    tracing::warn!(volume = %shared.facts.meta.name, "the runs of the map are not merged further this time: {error}");
                    layout.give_up();
                }
            },
            Progress::GoOn => {}
            Progress::Done => return Ok(layout.into_laid_out()),
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
async fn write(shared: &Shared, plan: CheckpointPlan, laid_out: LaidOut) -> Result<(), End> {
    let LaidOut { runs, deaths, frames, pages, has_begun_all } = laid_out;
    let CheckpointPlan { map, root, bytes, .. } = plan;
    let mut usage = map.usage;
    deaths.iter().for_each(|(seq, blocks)| usage.dead_blocks(seq, BlockCount(blocks)));
    let seq = root.seq;
    let dead = usage.dead(seq);
    let segments = usage.iter().map(|(seq, info)| (seq, *info)).collect();
    let account = shared.facts.account_before.plus(&root.account.with_requests(&shared.doors.meter.snapshot()));
    let root = Root { segments, runs, account, fence: Some(shared.facts.fence.clone()), ..root };
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
    let (map, checkpoints) = (Checkpointed { runs, deaths, pages }, checkpoints.into_iter().collect());
    let now = shared.now();
    let mut ledger = shared.ledger();
    ledger.checkpoint_written(Written { seq, map, checkpoints, dead, has_begun_all, bytes }, now.map_memory, now.at);
    tracing::debug!(volume = %shared.facts.meta.name, %seq, doomed = ledger.doomed().len(), "checkpoint");
    Ok(())
}
