//! The table of segments: which objects of the log are in the store, the salts that open them, and how many of their blocks the map
//! still needs. Pure; knows no I/O and no time (rule R13).
//!
//! Nothing in it grows with the data but what lies in the store. Segments are kept by *spans* of [`SPAN`] consecutive seqs. Of each span there are
//! two pages in checkpoint objects, which come in on demand and leave as pages of the map do: *salts*, written once, which is all that a read needs,
//! and *counters*. A *summary* of each span is always in memory, some hundred bytes of it, and finds what is worth collecting.
//!
//! Deaths are blind. Which segment a dead block was in is known, its page need not be: the death is a *delta*, and what is counted of a
//! segment is what its page says, less the deltas that are newer than the page:
//!
//! ```text
//!  newest layer (memory) ─checkpoint→ folded into pages of counters, where that pays
//!  births and deltas                 └ or written as they are: lists of deltas, few, of sizes that double
//! ```
//!
//! So random overwrites of a hundred terabytes, which kill a block here and there in every segment, put two or three bytes each, and pages
//! are written anew once many deltas have come together ([`fold`]).
//!
//! A count is never too low. Every death is counted once: in the layer of the checkpoint interval in which it was found, and then in the one
//! checkpoint that this layer became. A page or a list says as of which checkpoint it is; what an older list says of a span is void once the span's
//! counters were written again. A segment is doomed only when page and durable lists together say that nothing in it is live
//! ([`Space::dead`]); what a checkpoint under way or no checkpoint covers does not count for that.

pub mod candidates;
pub mod carriers;
pub mod counter;
pub mod deltas;
pub mod directory;
pub mod fold;
pub mod kept;
pub mod page_format;
pub mod references;
pub mod summary;
pub mod table;
pub mod view;

#[cfg(test)]
mod model_tests;

pub use candidates::{Order, Want};
pub use carriers::{Cargo, Carrier, Carriers};
pub use counter::{Counted, Counter, SegmentInfo, Totals};
pub use deltas::{Delta, Layer};
pub use directory::{Durable, List, Listed, SpanEntry, TableRoot};
pub use fold::{Bounds, Fold, Folded, Progress};
pub use kept::{CloneRef, KeptVersion, Label};
pub use references::References;
pub use summary::Summary;
pub use table::{Snapshot, Space, Superseded};
pub use view::View;

use std::collections::BTreeSet;

use crate::codec::EncodeError;
use crate::units::{PageRef, Seq};

/// Consecutive seqs that one page of counters is about.
pub const SPAN: u64 = 1024;

/// The number of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

impl Span {
    /// The span of a segment.
    pub fn of(seq: Seq) -> Span {
        Span(seq.0 / SPAN)
    }

    /// Its first seq.
    pub fn first(self) -> Seq {
        Seq(self.0 * SPAN)
    }

    /// Its last seq.
    pub fn last(self) -> Seq {
        Seq(self.0 * SPAN + (SPAN - 1))
    }

    /// The group of the directory in which it stands.
    pub fn group(self) -> u64 {
        self.0 / GROUP
    }
}

/// Consecutive spans that one page of the directory is about.
pub const GROUP: u64 = 128;

/// What a page of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// What is counted of the segments of a span.
    Counters,
    /// Their salts.
    Salts,
    /// Entries of spans.
    Directory,
    /// Deltas.
    Deltas,
}

/// A page of the table in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// What is counted of the segments of a span.
    Counters(Counted),
    /// Their salts.
    Salts(Vec<(Seq, [u8; 16])>),
    /// Entries of spans.
    Directory(Vec<SpanEntry>),
    /// Deltas.
    Deltas(Vec<(Seq, Delta)>),
}

impl Page {
    /// Bytes that it takes in memory.
    pub fn memory(&self) -> usize {
        match self {
            Page::Counters(counters) => counters.capacity() * size_of::<(Seq, Counter)>(),
            Page::Salts(salts) => salts.capacity() * size_of::<(Seq, [u8; 16])>(),
            Page::Directory(entries) => entries.capacity() * size_of::<SpanEntry>(),
            Page::Deltas(deltas) => deltas.capacity() * size_of::<(Seq, Delta)>(),
        }
    }
}

/// A page that is needed: what it is to be, and of which span or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    /// What it is.
    pub kind: PageKind,
    /// The number of the span, or of the group of a directory page; 0 of deltas.
    pub number: u64,
    /// Where it lies.
    pub at: PageRef,
}

/// Pages that must be in memory before the answer is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need(pub BTreeSet<PageAt>);

impl From<PageAt> for Need {
    fn from(page: PageAt) -> Need {
        Need(BTreeSet::from([page]))
    }
}

/// Hands out pages that are in memory.
pub trait Pages {
    /// The page that lies there, if it is in memory.
    fn page(&self, at: &PageRef) -> Option<&Page>;

    /// As [`Pages::page`], of a page of counters.
    fn counters(&self, span: Span, at: &PageRef) -> Result<&Counted, Need> {
        match self.page(at) {
            Some(Page::Counters(counters)) => Ok(counters),
            _ => Err(PageAt { kind: PageKind::Counters, number: span.0, at: *at }.into()),
        }
    }

    /// As [`Pages::page`], of a page of salts.
    fn salts(&self, span: Span, at: &PageRef) -> Result<&[(Seq, [u8; 16])], Need> {
        match self.page(at) {
            Some(Page::Salts(salts)) => Ok(salts),
            _ => Err(PageAt { kind: PageKind::Salts, number: span.0, at: *at }.into()),
        }
    }
}

/// Where the pages of a checkpoint go.
pub trait Sink {
    /// Puts one page; returns where it will lie.
    fn put(&mut self, bytes: &[u8], page: Page) -> Result<PageRef, EncodeError>;
}
