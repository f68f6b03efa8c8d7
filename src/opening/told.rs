//! What digests tell of the log ([`crate::format::digest`]), in place of its slots: a few requests instead of one for each slot.
//!
//! A digest is believed only as far as reading the slots would have led, too:
//!
//! 1. It tells of segments alone. Fences and close entries are read where they stand, so nobody passes by one of them.
//! 2. Each front proves that it was made for its slot, and must be of the epoch in which the log is there, and cover no less than the one before.
//!    What does not fit is as if it were not told.
//! 3. The last slot of what is told in one go is read, and must hold that very segment. Only slots that took effect are told of, so whoever filled that one
//!    saw all before it in the store. If it holds something else, or nothing, the digest is of another past than the log, and none of it counts.
//!
//! Whatever is amiss with a digest, the slots are read.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;

use crate::codec::object::Found;
use crate::error::Result;
use crate::format::digest::{self, Stretch};
use crate::format::keys::Keys;
use crate::format::segment::{self, LogObject, LogRead};
use crate::opening::scan::{Listing, Scan, Source};
use crate::reading::Slot;
use crate::store::ErrorKind;
use crate::units::{Epoch, Seq};

/// Digests that are read at once.
const AT_ONCE: usize = 8;
/// Slots that are told of in one go: their heads are in memory.
const SLOTS_AT_ONCE: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Digests that were not read yet.
    unread: Vec<Stretch>,
    fronts: BTreeMap<Seq, Bytes>,
}

/// A slot, and what was found in it.
type Probed = (Seq, Result<Slot>);

impl Told {
    /// What the digests tell that a listing shows.
    pub fn new(listed: &Listing) -> Told {
        let fit = listed.digests.iter().filter(|(_, bytes)| digest::may_be(**bytes));
        Told { unread: fit.map(|(stretch, _)| *stretch).collect(), fronts: BTreeMap::new() }
    }

    /// What is told of the next slots of the log, of so many at most.
    pub async fn slots(&mut self, source: &Source, scan: &Scan, most: u64) -> Vec<(Seq, LogRead)> {
        let next = scan.next;
        self.fronts = self.fronts.split_off(&next);
        self.unread.retain(|stretch| stretch.last >= next);
        while !self.fronts.contains_key(&next) {
            let chosen = self.choose(next);
            if chosen.is_empty() {
                return Vec::new();
            }
            self.unread.retain(|stretch| !chosen.contains(stretch));
            let reads = chosen.iter().map(|stretch| async move { (*stretch, read(source, *stretch).await) });
            for (stretch, fronts) in join_all(reads).await {
                let told = (stretch.first.0..).map(Seq).zip(fronts);
                self.fronts.extend(told.filter(|(seq, _)| *seq >= next));
            }
        }
        let (mut slots, mut covers) = (Vec::new(), scan.covers);
        let epoch = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
        for seq in (next.0..next.0.saturating_add(most)).map(Seq).take(SLOTS_AT_ONCE) {
            let Some(front) = self.fronts.get(&seq) else { break };
            match segment::decode_log_object(&source.sealer, seq, front) {
                Ok(Found::Whole(read)) if fits(&read, epoch) && read.object.covers() >= covers && !scan.closed => {
                    covers = read.object.covers();
                    slots.push((seq, read));
                }
                _ => {
                    self.fronts.remove(&seq);
                    break;
                }
            }
        }
        slots
    }

    /// The next slot after that one of which something is told.
    pub fn begins_after(&self, seq: Seq) -> Option<Seq> {
        let unread = self.unread.iter().map(|stretch| stretch.first).filter(|first| *first > seq).min();
        let read = self.fronts.range(seq.next()..).next().map(|(seq, _)| *seq);
        [unread, read].into_iter().flatten().min()
    }

    /// What is told of these slots, if the last of them, which was read, holds the same; it is not among them.
    pub fn proven(
        &mut self,
        keys: &Keys,
        mut slots: Vec<(Seq, LogRead)>,
        probed: Option<&Probed>,
    ) -> Option<Vec<Probed>> {
        let (last, told) = slots.pop()?;
        let is_there = |read: &LogRead| read.salt == told.salt && read.object == told.object;
        match probed {
            Some((seq, Ok(Slot::Holds(read, _)))) if *seq == last && is_there(read) => {
                Some(slots.into_iter().map(|(seq, read)| (seq, Ok(Slot::Holds(read, keys.segment(seq))))).collect())
            }
            _ => {
                if probed.is_some_and(|(_, found)| found.is_ok()) {
                    tracing::warn!(slot = %keys.segment(last), "a digest tells of this slot what does not stand there; the slots are read instead");
                }
                self.unread.retain(|stretch| !stretch.has(last) && stretch.first > last);
                self.fronts = self.fronts.split_off(&last.next());
                None
            }
        }
    }

    /// The fewest digests that tell of the next slot and of those behind it, without a gap.
    fn choose(&self, mut next: Seq) -> Vec<Stretch> {
        let mut chosen = Vec::new();
        while chosen.len() < AT_ONCE
            && let Some(best) =
                self.unread.iter().filter(|stretch| stretch.has(next)).max_by_key(|stretch| stretch.last)
        {
            chosen.push(*best);
            next = best.last.next();
        }
        chosen
    }
}

fn fits(read: &LogRead, epoch: Epoch) -> bool {
    matches!(&read.object, LogObject::Segment(head) if head.epoch == epoch)
}

/// The fronts in a digest; none if it cannot be had.
async fn read(source: &Source, stretch: Stretch) -> Vec<Bytes> {
    let key = source.keys.digest(stretch);
    let read = source.store.get(&key).await;
    let decoded = read.map(|bytes| digest::decode_digest(&source.sealer, stretch, &bytes));
    match decoded {
        Ok(Ok(fronts)) => fronts,
        Ok(Err(why)) => {
            tracing::debug!(object = %key, "this digest is not used: {why}");
            Vec::new()
        }
        // A checkpoint has made it needless meanwhile.
        Err(error) if error.kind == ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::debug!(object = %key, "this digest is not used: {error}");
            Vec::new()
        }
    }
}
