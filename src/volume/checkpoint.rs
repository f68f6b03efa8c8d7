//! Checkpoints. The order is the safety argument, together with that of [`super::deletion`]; the code follows the
//! numbers.
//!
//! 1. Pages that were dropped unread are read and their blocks counted as dead, so that the counts are exact.
//! 2. Under one lock: the changed pages, the table of segments, the last committed slot S and its change number.
//! 3. One object, `checkpoints/S`, holds the changed pages and the root. When it is in the store, the checkpoint is
//!    durable: opening needs no segment at or before S for its head any more.
//! 4. The map learns where its pages lie now. Segments without live blocks *as of 2* are dead for ever: no later change
//!    brings a block back to them. Checkpoint objects older than S without a page in the root of 3 are superseded. Both
//!    are doomed now.
//!
//! Nothing here is urgent: whatever the store refuses is tried again with the next checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::map::{NeedPages, Page, PageIndex, PageRef};
use crate::store::ErrorKind;
use crate::units::Seq;
use crate::volume::backoff::Backoff;
use crate::volume::objects::ReadError;
use crate::volume::root::{self, CheckpointInfo, EncodedCheckpoint, Root};
use crate::volume::shared::{End, Shared};
use crate::volume::slot::{self, Put};

/// Checkpoint objects that hold fewer live bytes of pages than this share (of 100) are emptied with the next one.
const MIN_LIVE_PERCENT: u64 = 50;

/// Sealed bytes of pages that one checkpoint brings into memory to write them anew: this part of what the map may take,
/// since a page takes some times as much in memory. What is left waits for the next checkpoint.
const REWRITE_PART: u64 = 32;

/// Sealed bytes of dropped pages that are read at once to count what was in them.
const COUNT_BYTES: u64 = 2 << 20;

/// Writes one checkpoint. Fails only if the volume cannot go on.
pub(super) async fn run(shared: Arc<Shared>) -> Result<(), End> {
    load_for_rewrite(&shared).await;
    let snapshot = loop {
        account_released(&shared).await?;
        if let Some(snapshot) = snapshot(&shared) {
            break snapshot;
        }
    };
    let seq = snapshot.root.seq;
    write(&shared, snapshot).await?;
    shared.remember(seq).await;
    Ok(())
}

/// Step 1, some pages at a time; after a failure fewer, down to a single one: of many requests to a bad store one always fails.
async fn account_released(shared: &Shared) -> Result<(), End> {
    let mut backoff = Backoff::new(shared);
    let mut bytes = COUNT_BYTES;
    loop {
        let released = shared.inner.lock().state.map.take_released(bytes);
        if released.is_empty() {
            return Ok(());
        }
        match shared.fetch_pages(NeedPages(released.clone())).await {
            Ok(pages) => {
                let mut inner = shared.inner.lock();
                pages.iter().for_each(|(_, _, page)| inner.state.map.account_released(page));
                bytes = (bytes * 2).clamp(1, COUNT_BYTES);
            }
            Err(error) => {
                bytes = released.iter().map(|(_, at)| u64::from(at.len)).sum::<u64>() / 2;
                shared.inner.lock().state.map.put_back_released(released);
                match error {
                    ReadError::Store { source, .. } if source.kind != ErrorKind::NotFound => {
                        backoff.pause("reading dropped pages of the map", &source).await;
                    }
                    damaged => return Err(End::Failed(damaged.to_string())),
                }
            }
        }
    }
}

/// Brings in pages of mostly superseded checkpoint objects, and of those that are sealed with a rotated data key, so that
/// they are written anew and the objects can go. Failing is harmless: the objects stay a little longer.
async fn load_for_rewrite(shared: &Shared) {
    let wanted = {
        let inner = shared.inner.lock();
        let mut live: BTreeMap<Seq, u64> = BTreeMap::new();
        for (_, at) in inner.state.map.stored_pages() {
            *live.entry(at.checkpoint).or_default() += u64::from(at.len);
        }
        let is_wanted = |(seq, info): &(&Seq, &CheckpointInfo)| {
            let live = live.get(seq).copied().unwrap_or(0);
            live > 0 && (live * 100 < info.page_bytes * MIN_LIVE_PERCENT || shared.sealer.is_retired(&info.salt))
        };
        let objects: BTreeSet<Seq> = inner.checkpoints.iter().filter(is_wanted).map(|(seq, _)| *seq).collect();
        if objects.is_empty() {
            return;
        }
        let mut pages: Vec<_> =
            inner.state.map.stored_pages().filter(|(_, at)| objects.contains(&at.checkpoint)).collect();
        // Object by object, so that as many as possible can go.
        pages.sort_unstable_by_key(|(index, at)| (at.checkpoint, *index));
        within(pages, shared.seat.map_memory() / REWRITE_PART)
    };
    let absent = {
        let inner = shared.inner.lock();
        NeedPages(wanted.iter().copied().filter(|(index, _)| !inner.state.map.has_page(*index)).collect())
    };
    match shared.fetch_pages(absent).await {
        Ok(pages) => {
            let mut inner = shared.inner.lock();
            inner.take_pages(pages);
            wanted.into_iter().for_each(|(index, at)| inner.state.map.mark_for_rewrite(index, at));
        }
        Err(error) => {
            tracing::warn!(volume = %shared.meta.name, "pages of older checkpoints are not rewritten this time: {error}");
        }
    }
}

/// The first of the pages, of so many sealed bytes together, one at least.
fn within(mut pages: Vec<(PageIndex, PageRef)>, bytes: u64) -> Vec<(PageIndex, PageRef)> {
    let mut sum = 0;
    let fits = pages.iter().take_while(|(_, at)| {
        sum += u64::from(at.len);
        sum <= bytes
    });
    let count = fits.count().max(1);
    pages.truncate(count);
    pages
}

/// Steps 2 to 4.
async fn write(shared: &Shared, snapshot: Snapshot) -> Result<(), End> {
    let Snapshot { changed, root, dead, bytes } = snapshot;
    let seq = root.seq;
    let (sealer, salt, pages) = (shared.sealer.clone(), shared.salt(), changed.clone());
    let encode = move || {
        let mapped: Vec<_> = pages.iter().map(|(index, page)| (*index, page.iter().collect())).collect();
        root::encode_checkpoint(&sealer, salt, root, &mapped)
    };
    let encoded = shared.workers.run(encode).await;
    let EncodedCheckpoint { object, refs, root } = encoded.map_err(|error| End::Failed(error.to_string()))?;

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
    let refs: BTreeMap<PageIndex, PageRef> = refs.into_iter().collect();
    let pages = changed.into_iter().map(|(index, page)| (index, page, refs.get(&index).copied())).collect();
    inner.state.map.checkpointed(pages);
    // What was kept only because it had to be written may go.
    inner.state.map.evict(shared.seat.map_memory() as usize);
    let kept: BTreeMap<Seq, CheckpointInfo> = root.checkpoints.iter().copied().collect();
    let before = std::mem::take(&mut inner.checkpoints).into_keys().chain([inner.state.checkpointed()]);
    let superseded: Vec<Seq> = before.filter(|old| old.0 > 0 && !kept.contains_key(old)).collect();
    inner.doomed.checkpoints.extend(superseded);
    // What is not in the table any more was deleted while this checkpoint was written.
    let dead: Vec<_> = dead.into_iter().filter_map(|seq| Some((seq, *inner.state.map.usage().get(seq)?))).collect();
    inner.doomed.bytes = dead.iter().map(|(_, info)| info.stored_bytes).sum();
    inner.doomed.segments = dead.into_iter().map(|(seq, _)| seq).collect();
    inner.checkpoints = kept;
    inner.state.checkpoint_done(seq, bytes);
    inner.uncheckpointed_since = None;
    inner.note_commit();
    tracing::debug!(volume = %shared.meta.name, %seq, doomed = inner.doomed.len(), "checkpoint");
    Ok(())
}

/// The volume at one instant.
struct Snapshot {
    changed: Vec<(PageIndex, Arc<Page>)>,
    root: Root,
    dead: Vec<Seq>,
    bytes: u64,
}

/// Step 2; nothing if pages were dropped unread since step 1.
fn snapshot(shared: &Shared) -> Option<Snapshot> {
    let inner = shared.inner.lock();
    let map = inner.state.map.snapshot()?;
    let seq = inner.state.committed();
    let dead = map.usage.dead(seq);
    let root = Root {
        seq,
        covers: inner.state.covers(),
        next_slot: slot_after(shared, seq),
        fence: Some(shared.fence.clone()),
        zeroed: map.zeroed.iter().map(|run| (PageIndex(run.start), run.end - run.start)).collect(),
        segments: map.usage.iter().map(|(seq, info)| (seq, *info)).collect(),
        checkpoints: inner.checkpoints.iter().map(|(&seq, &info)| (seq, info)).collect(),
        pages: map.unchanged,
        account: shared.account_before.plus(&inner.account.with_requests(&shared.meter.snapshot())),
    };
    let bytes = inner.state.bytes_since_checkpoint();
    Some(Snapshot { changed: map.changed, root, dead, bytes })
}

/// The first slot after S that may hold a fence of somebody else.
pub(super) fn slot_after(shared: &Shared, seq: Seq) -> Seq {
    if seq <= shared.fence.0 { shared.fence.1.continues_at } else { seq.next() }
}
