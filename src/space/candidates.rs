//! What may be worth collecting. Costs what is looked at: spans are found by live share and age, or by size, the best first, and only
//! those are loaded that have enough of it. Which segments are then chosen is [`crate::gc`]'s business.

use std::collections::BTreeSet;

use super::summary::{SHARES, SMALL, share_of, small_of};
use super::{Counted, Counter, Need, Pages, SPAN, Space, Span};
use crate::units::Seq;

/// Spans that are asked for at one time.
const AT_ONCE: usize = 16;

/// Of volumes of so few spans all segments are looked at.
pub const FEW_SPANS: usize = 16;

/// Which segments are best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By what is freed, times age, per byte read and written; age is the distance to this head of the log.
    Benefit(Seq),
    /// The emptiest.
    Emptiest,
    /// The smallest, of up to so many live blocks.
    Smallest(u32),
}

/// What is wanted of [`Space::candidates`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The best first.
    pub order: Order,
    /// There is enough when moving them would free so many bytes,
    pub freed: u64,
    /// and so many bytes of their objects are live,
    pub live: u64,
    /// or when so many blocks of them are live.
    pub blocks: u64,
    /// Fewer than so many are not worth a look.
    pub segments: u64,
}

/// How much was found.
#[derive(Default)]
struct Found {
    freed: u64,
    live: u64,
    blocks: u64,
}

impl Found {
    fn is_enough(&self, want: &Want) -> bool {
        self.blocks >= want.blocks || self.freed >= want.freed && self.live >= want.live
    }

    fn add(&mut self, counter: &Counter) {
        self.freed += counter.sparse_bytes();
        self.live += counter.live_bytes();
        self.blocks += u64::from(counter.live_blocks);
    }
}

impl Space {
    /// Segments of which the best are among the best of all, in the order of the log: those of the best spans, until there is enough.
    /// All, if there are few. `spared` ones do not count.
    pub fn candidates(&self, want: &Want, spared: &BTreeSet<Seq>, pages: &dyn Pages) -> Result<Counted, Need> {
        if !self.has(want.order, want.segments) {
            return Ok(Counted::new());
        }
        let (mut found, mut have) = (Found::default(), Counted::new());
        let (mut looked, mut need) = (BTreeSet::new(), Need::default());
        // Moving what a kept version needs as well would free nothing.
        let is_free = |seq: Seq| !self.is_held(seq);
        let few = if self.span_count() <= FEW_SPANS { self.spans().collect() } else { Vec::new() };
        let is_all = !few.is_empty();
        let mut best = Best::new(self, want.order);
        let mut few = few.into_iter();
        while let Some((span, class)) =
            few.next().map(|span| (span, None)).or_else(|| if is_all { None } else { best.next(self) })
        {
            if !is_all && found.is_enough(want) || need.0.len() >= AT_ONCE {
                break;
            }
            if span.last() <= self.kept() {
                continue;
            }
            match self.span(span, pages) {
                Ok(counters) => {
                    let is_it = |counter: &Counter| class.is_none() || class_of(want.order, counter) == class;
                    let is_wanted =
                        |(seq, counter): &&(Seq, Counter)| is_it(counter) && is_free(*seq) && !spared.contains(seq);
                    counters.iter().filter(is_wanted).for_each(|(_, counter)| found.add(counter));
                    if looked.insert(span) {
                        have.extend(counters.into_iter().filter(|(seq, _)| is_free(*seq)));
                    }
                }
                Err(lacks) => {
                    found.guess(self, span, class);
                    need.0.extend(lacks.0);
                }
            }
        }
        if !need.0.is_empty() {
            return Err(need);
        }
        have.sort_unstable_by_key(|(seq, _)| *seq);
        Ok(have)
    }
}

impl Space {
    /// Segments that kept versions need as they are, of the spans with the emptiest of them, and carriers of such.
    pub fn held_candidates(&self, spared: &BTreeSet<Seq>, pages: &dyn Pages) -> Result<Counted, Need> {
        let carriers = self.carriers().iter().map(|(seq, _)| Span::of(*seq));
        let upto = Span::of(self.kept());
        let emptiest = self.by_share.iter().flat_map(|spans| spans.range(..=upto).copied());
        let (mut spans, mut need, mut have) = (BTreeSet::new(), Need::default(), Counted::new());
        spans.extend(carriers.rev().take(AT_ONCE));
        for span in emptiest {
            if spans.len() >= 2 * AT_ONCE {
                break;
            }
            spans.insert(span);
        }
        for span in spans {
            match self.span(span, pages) {
                Ok(counters) => {
                    have.extend(counters.into_iter().filter(|(seq, _)| self.is_held(*seq) && !spared.contains(seq)))
                }
                Err(lacks) => need.0.extend(lacks.0),
            }
        }
        if need.0.is_empty() { Ok(have) } else { Err(need) }
    }

    /// Whether there are so many segments that an order is about, as far as is known without pages; small ones may be among them that
    /// are too large.
    fn has(&self, order: Order, segments: u64) -> bool {
        let of = |(class, span): (usize, &Span)| {
            let summary = self.summary(*span)?;
            Some(u64::from(match order {
                Order::Benefit(_) | Order::Emptiest => summary.shares[class].segments,
                Order::Smallest(_) => summary.small[class],
            }))
        };
        let sets = Best::sets(self, order)[..classes(order)].iter().enumerate();
        let from = Span::of(self.kept());
        let mut counts =
            sets.flat_map(|(class, spans)| spans.range(from..).map(move |span| (class, span))).filter_map(of);
        let mut have = 0;
        while have < segments {
            let Some(more) = counts.next() else { return false };
            have += more;
        }
        true
    }
}

/// How many classes an order is about.
fn classes(order: Order) -> usize {
    match order {
        Order::Benefit(_) | Order::Emptiest => SHARES,
        // The last class may have some that are small enough, too.
        Order::Smallest(most) => SMALL.iter().position(|upto| most <= *upto).map_or(SMALL.len(), |class| class + 1),
    }
}

impl Found {
    /// Of a span that is not in memory.
    fn guess(&mut self, space: &Space, span: Span, class: Option<usize>) {
        let (Some(summary), Some(class)) = (space.summary(span), class) else { return };
        let share = summary.shares.get(class).copied().unwrap_or_default();
        let live = share.stored_bytes * (2 * class as u64 + 1) / (2 * SHARES as u64);
        self.live += live;
        self.freed += share.stored_bytes - live;
    }
}

fn class_of(order: Order, counter: &Counter) -> Option<usize> {
    match order {
        Order::Benefit(_) | Order::Emptiest => share_of(counter),
        Order::Smallest(most) => small_of(counter).filter(|_| counter.live_blocks <= most),
    }
}

/// The spans and classes, the best first: of each class the oldest is the best.
struct Best {
    order: Order,
    /// Of each class, the next span.
    next: Vec<Option<Span>>,
}

impl Best {
    fn new(space: &Space, order: Order) -> Best {
        let sets = Best::sets(space, order);
        let from = Span::of(space.kept());
        Best { order, next: sets[..classes(order)].iter().map(|spans| spans.range(from..).next().copied()).collect() }
    }

    fn sets(space: &Space, order: Order) -> &[BTreeSet<Span>] {
        match order {
            Order::Benefit(_) | Order::Emptiest => &space.by_share,
            Order::Smallest(_) => &space.by_size,
        }
    }

    fn next(&mut self, space: &Space) -> Option<(Span, Option<usize>)> {
        let classes = self.next.iter().enumerate().filter_map(|(class, span)| Some((class, (*span)?)));
        let (class, span) = match self.order {
            Order::Benefit(head) => classes.max_by(|a, b| benefit(head, *a).total_cmp(&benefit(head, *b)))?,
            Order::Emptiest | Order::Smallest(_) => classes.min()?,
        };
        let after = (std::ops::Bound::Excluded(span), std::ops::Bound::Unbounded);
        self.next[class] = Best::sets(space, self.order)[class].range(after).next().copied();
        Some((span, Some(class)))
    }
}

/// The most that a segment of that class in that span can bring: of the least live share, and the oldest.
fn benefit(head: Seq, (class, span): (usize, Span)) -> f64 {
    let u = class as f64 / SHARES as f64;
    let age = head.0.saturating_sub(span.0 * SPAN) + 1;
    (1.0 - u) * age as f64 / (1.0 + u)
}
