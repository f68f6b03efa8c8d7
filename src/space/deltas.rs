//! What happened to segments since their page was written, without a look at the page.

use std::collections::BTreeMap;

use super::{Counted, Counter, SegmentInfo, Span, kept};
use crate::units::Seq;

/// What happened to one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta {
    /// So many of its blocks died; at least one.
    Died(u32),
    /// So many of its blocks died, which were all, and its object was deleted.
    Gone(u32),
}

impl Delta {
    /// Both. More deaths than a segment can have blocks contradict it whatever their number is.
    pub fn and(self, later: Delta) -> Delta {
        match (self, later) {
            (Delta::Died(some), Delta::Died(more)) => Delta::Died(some.saturating_add(more)),
            (Delta::Died(some) | Delta::Gone(some), Delta::Died(more) | Delta::Gone(more)) => {
                Delta::Gone(some.saturating_add(more))
            }
        }
    }

    /// How many blocks died.
    pub fn blocks(self) -> u64 {
        let (Delta::Died(blocks) | Delta::Gone(blocks)) = self;
        blocks.into()
    }

    /// Whether the object was deleted.
    pub fn is_gone(self) -> bool {
        matches!(self, Delta::Gone(_))
    }
}

/// What is left of a segment, or that it is gone. Fails closed: where counts contradict each other a live block stays, so that it is
/// never deleted.
pub fn apply(counter: Counter, delta: Delta) -> Result<Option<Counter>, Contradiction> {
    match delta {
        Delta::Gone(blocks) if counter.live_blocks == blocks => Ok(None),
        Delta::Gone(_) => Err(Contradiction::of(counter)),
        Delta::Died(blocks) => match counter.live_blocks.checked_sub(blocks) {
            Some(live_blocks) => Ok(Some(Counter { live_blocks, ..counter })),
            None => Err(Contradiction::of(counter)),
        },
    }
}

/// Counts that cannot be: a bug or a damaged page. The segment counts as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction(pub Counter);

impl Contradiction {
    fn of(counter: Counter) -> Contradiction {
        Contradiction(Counter { live_blocks: counter.live_blocks.max(1), ..counter })
    }
}

/// What happened between two checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Segments that took effect, with what is live of them now.
    pub births: BTreeMap<Seq, SegmentInfo>,
    /// What happened to older ones.
    pub deltas: BTreeMap<Seq, Delta>,
    /// Before all of `deltas`, all older segments died.
    pub all_died: bool,
    /// Deaths that the newest version holds that is kept: they are not counted.
    pub held: kept::Deaths,
}

/// What an entry of a layer takes in memory, tree overhead included, about.
const ENTRY_MEMORY: usize = 64;

impl Layer {
    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> usize {
        (self.births.len() + self.deltas.len() + self.held.len()) * ENTRY_MEMORY
    }

    /// Something happened to an older segment.
    pub fn note(&mut self, seq: Seq, delta: Delta) {
        self.deltas.entry(seq).and_modify(|before| *before = before.and(delta)).or_insert(delta);
    }

    /// So many deaths of an older segment were counted elsewhere; whether they were noted here.
    pub fn take_back(&mut self, seq: Seq, blocks: u64) -> bool {
        let Some(Delta::Died(died)) = self.deltas.get_mut(&seq) else { return false };
        let Some(left) = u32::try_from(blocks).ok().and_then(|blocks| died.checked_sub(blocks)) else { return false };
        *died = left;
        if left == 0 {
            self.deltas.remove(&seq);
        }
        true
    }

    /// Blocks of a segment were found dead by merges of the map.
    pub fn note_deaths(&mut self, seq: Seq, blocks: u64) -> Result<(), Contradiction> {
        let died = Delta::Died(u32::try_from(blocks).unwrap_or(u32::MAX));
        let Some(info) = self.births.get_mut(&seq) else {
            self.note(seq, died);
            return Ok(());
        };
        let left = apply(info.counter(), died);
        let (Ok(Some(counter)) | Err(Contradiction(counter))) = left else { return Ok(()) };
        info.live_blocks = counter.live_blocks;
        left.map(|_| ())
    }

    /// Does to the segments of a span what happened; returns how many contradictions there were.
    pub fn apply_to(&self, span: Span, counters: &mut Counted) -> u64 {
        if self.all_died {
            counters.iter_mut().for_each(|(_, counter)| counter.live_blocks = 0);
        }
        let deltas = self.deltas.range(span.first()..=span.last()).map(|(seq, delta)| (*seq, *delta));
        let contradictions = apply_all(deltas, counters);
        let is_sorted_after = |counters: &Counted, seq: Seq| counters.last().is_none_or(|(last, _)| *last < seq);
        for (seq, info) in self.births.range(span.first()..=span.last()) {
            match counters.binary_search_by_key(seq, |(seq, _)| *seq) {
                Ok(at) => counters[at].1 = info.counter(),
                Err(_) if is_sorted_after(counters, *seq) => counters.push((*seq, info.counter())),
                Err(at) => counters.insert(at, (*seq, info.counter())),
            }
        }
        contradictions
    }
}

/// Does to segments what happened to them; both in order. Of a segment that is not there, only that it is gone is no contradiction.
pub fn apply_all(deltas: impl Iterator<Item = (Seq, Delta)>, counters: &mut Counted) -> u64 {
    let (mut contradictions, mut gone) = (0, Vec::new());
    let mut at = 0;
    for (seq, delta) in deltas {
        at += counters[at..].partition_point(|(have, _)| *have < seq);
        let Some((_, counter)) = counters.get_mut(at).filter(|(have, _)| *have == seq) else {
            contradictions += u64::from(!delta.is_gone());
            continue;
        };
        match apply(*counter, delta) {
            Ok(Some(left)) => *counter = left,
            Ok(None) => gone.push(seq),
            Err(Contradiction(left)) => {
                *counter = left;
                contradictions += 1;
            }
        }
    }
    if !gone.is_empty() {
        counters.retain(|(seq, _)| gone.binary_search(seq).is_err());
    }
    contradictions
}
