//! The pages of one checkpoint, in the order of their places: of runs of the map, and of the table of segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compaction::Pages;
use super::{MapPage, PageRef};
use crate::codec::EncodeError;
use crate::codec::frame::{Compression, Frames};
use crate::space::{Page, Sink};
use crate::units::Seq;

/// See the module.
pub struct PageWriter {
    object: Seq,
    frames: Frames,
    offset: u32,
    /// As they are in memory, and how many bytes of them may still stay there.
    written: BTreeMap<PageRef, Arc<MapPage>>,
    keep: usize,
    #[cfg(test)]
    pub(crate) all: BTreeMap<PageRef, MapPage>,
}

impl PageWriter {
    /// Of the checkpoint at `object`. Of its pages so many bytes stay in memory.
    pub fn new(object: Seq, keep: usize) -> PageWriter {
        PageWriter {
            object,
            frames: Frames::with_capacity(16, 0, Compression::Lz4),
            offset: 0,
            written: BTreeMap::new(),
            keep,
            #[cfg(test)]
            all: BTreeMap::new(),
        }
    }

    /// The checkpoint.
    pub fn object(&self) -> Seq {
        self.object
    }

    /// Of the pages from here on, so many bytes stay in memory.
    pub fn keep(&mut self, bytes: usize) {
        self.keep = bytes;
    }

    /// A page that was written, if it stayed in memory.
    pub fn page(&self, at: &PageRef) -> Option<&Arc<MapPage>> {
        self.written.get(at)
    }

    /// Sealed bytes up to now.
    pub fn total(&self) -> u64 {
        self.frames.total()
    }

    /// The pages, and some of them as they are in memory.
    pub fn finish(self) -> (Frames, Vec<(PageRef, Arc<MapPage>)>) {
        (self.frames, self.written.into_iter().collect())
    }
}

impl Pages for PageWriter {
    fn put(&mut self, bytes: &[u8], page: MapPage) -> Result<PageRef, EncodeError> {
        let len = self.frames.push(&[bytes])?;
        let at = PageRef { checkpoint: self.object, offset: self.offset, len };
        let end = self.offset.checked_add(len);
        self.offset = end.ok_or_else(|| EncodeError::new("pages of a checkpoint beyond 4 GiB"))?;
        #[cfg(test)]
        self.all.insert(at, page.clone());
        if let Some(keep) = self.keep.checked_sub(page.memory()) {
            self.keep = keep;
            self.written.insert(at, Arc::new(page));
        }
        Ok(at)
    }
}

impl Sink for PageWriter {
    fn put(&mut self, bytes: &[u8], page: Page) -> Result<PageRef, EncodeError> {
        Pages::put(self, bytes, MapPage::Table(page))
    }
}
