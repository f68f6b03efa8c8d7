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

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::EncodeError;
use crate::map::compaction::Sizes;
use crate::map::layout::{LaidOut, Layout, Progress};
use crate::map::{Checkpointed, MapSnapshot, NeedPages};
use crate::store::ErrorKind;
use crate::units::{BlockCount, Seq};
use crate::volume::backoff::Backoff;
use crate::volume::objects::{LoadedPages, ReadError};
use crate::volume::root::{self, CheckpointInfo, EncodedCheckpoint, Root};
use crate::volume::shared::{End, Shared};
use crate::volume::slot::{self, Put};

/// This part of what the map may have in memory may be pages that a checkpoint has just written.
const KEEP_PART: usize = 2;

/// How often in a row pages for a merge are asked for in vain.
const LOAD_TRIES: u32 = 8;

/// Writes one checkpoint. Fails only if the volume cannot go on.
pub(super) async fn run(shared: Arc<Shared>) -> Result<(), End> {
    let Snapshot { map, root, merge_all, bytes } = snapshot(&shared);
    let seq = root.seq;
    let laid_out = lay_out(&shared, seq, &map, merge_all).await?;
    write(&shared, map, root, laid_out, bytes).await?;
    shared.remember(seq).await;
    Ok(())
}

/// Step 2. Fails only if the volume cannot go on.
async fn lay_out(shared: &Shared, seq: Seq, map: &MapSnapshot, all: bool) -> Result<LaidOut, End> {
    let failed = |error: EncodeError| End::Failed(format!("checkpoint {seq} {error}"));
    let (snapshot, keep) = (map.clone(), shared.seat.map_memory() as usize / KEEP_PART);
    let begun = shared.workers.run(move || Layout::new(seq, &snapshot, all, keep, Sizes::default())).await;
    let mut layout = begun.map_err(failed)?;
    loop {
        let go_on = move || loop {
            match layout.go_on()? {
                Progress::GoOn => {}
                progress => return Ok((layout, progress)),
            }
        };
        let progress;
        (layout, progress) = shared.workers.run(go_on).await.map_err(failed)?;
        match progress {
            Progress::Needs(need) => match load(shared, need).await {
                Ok(pages) => layout.take_pages(pages),
                Err(error) => {
                    tracing::warn!(volume = %shared.meta.name, "the runs of the map are not merged further this time: {error}");
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
        let inner = shared.inner.lock();
        for page in need.0 {
            match inner.state.map.page(&page.at) {
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
async fn write(shared: &Shared, map: MapSnapshot, root: Root, laid_out: LaidOut, bytes: u64) -> Result<(), End> {
    let LaidOut { runs, deaths, frames, pages, has_begun_all } = laid_out;
    let mut usage = map.usage;
    deaths.iter().for_each(|(seq, blocks)| usage.dead_blocks(seq, BlockCount(blocks)));
    let seq = root.seq;
    let dead = usage.dead(seq);
    let segments = usage.iter().map(|(seq, info)| (seq, *info)).collect();
    let root = Root { segments, runs, ..root };
    let (sealer, salt) = (shared.sealer.clone(), shared.salt());
    let encoded = shared.workers.run(move || root::encode_checkpoint(&sealer, salt, root, frames)).await;
    let EncodedCheckpoint { object, root } = encoded.map_err(|error| End::Failed(error.to_string()))?;

    let key = shared.keys.checkpoint(seq);
    let mut backoff = Backoff::new(shared);
    loop {
        // Only we can have committed slot S, so only we can have put this: an earlier try of this very server.
        match slot::put(&*shared.store, &key, object.parts.clone(), &|_| false).await {
            Ok(Put::Ours(_)) => break,
            Ok(Put::Torn) => return Err(End::Failed(slot::torn(&key))),
            Ok(Put::Taken(_)) => {
                return Err(End::Failed(format!("{key} is there already, but this server did not write it")));
            }
            Err(error) => backoff.pause("writing a checkpoint", &error).await,
        }
    }

    let mut inner = shared.inner.lock();
    let Root { runs, checkpoints, .. } = root;
    inner.state.map.checkpointed(Checkpointed { runs, deaths, pages });
    // What was kept only because it had to be written may go.
    inner.state.map.evict(shared.seat.map_memory() as usize);
    let kept: BTreeMap<Seq, CheckpointInfo> = checkpoints.into_iter().collect();
    let before = std::mem::take(&mut inner.checkpoints).into_keys().chain([inner.state.checkpointed()]);
    let superseded: Vec<Seq> = before.filter(|old| old.0 > 0 && !kept.contains_key(old)).collect();
    inner.doomed.checkpoints.extend(superseded);
    // What is not in the table any more was deleted while this checkpoint was written.
    let dead: Vec<_> = dead.into_iter().filter_map(|seq| Some((seq, *inner.state.map.usage().get(seq)?))).collect();
    inner.doomed.bytes = dead.iter().map(|(_, info)| info.stored_bytes).sum();
    inner.doomed.segments = dead.into_iter().map(|(seq, _)| seq).collect();
    inner.checkpoints = kept;
    inner.merge_all &= !has_begun_all;
    inner.state.checkpoint_done(seq, bytes);
    inner.uncheckpointed_since = None;
    inner.note_commit();
    tracing::debug!(volume = %shared.meta.name, %seq, doomed = inner.doomed.len(), "checkpoint");
    Ok(())
}

/// The volume at one instant.
struct Snapshot {
    map: MapSnapshot,
    /// But for its runs and segments.
    root: Root,
    /// Everything is to be merged into one run.
    merge_all: bool,
    bytes: u64,
}

/// Step 1.
fn snapshot(shared: &Shared) -> Snapshot {
    let mut inner = shared.inner.lock();
    let seq = inner.state.committed();
    let root = Root {
        seq,
        covers: inner.state.covers(),
        next_slot: slot_after(shared, seq),
        fence: Some(shared.fence.clone()),
        checkpoints: inner.checkpoints.iter().map(|(&seq, &info)| (seq, info)).collect(),
        account: shared.account_before.plus(&inner.account.with_requests(&shared.meter.snapshot())),
        ..Root::default()
    };
    let bytes = inner.state.bytes_since_checkpoint();
    let merge_all = inner.merge_all;
    Snapshot { map: inner.state.map.begin_checkpoint(), root, merge_all, bytes }
}

/// The first slot after S that may hold a fence of somebody else.
pub(super) fn slot_after(shared: &Shared, seq: Seq) -> Seq {
    if seq <= shared.fence.0 { shared.fence.1.continues_at } else { seq.next() }
}
