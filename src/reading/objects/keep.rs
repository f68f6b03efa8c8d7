//! What is committed goes into the cache: opened into memory, as it was when it was written, and sealed to the disk tier,
//! as it went to the store. So what was written lately is read without a request.
//!
//! It costs no more memory than the cache has anyway: a frame stays in a client's payload only if frames fill that, since a slice of it keeps
//! all of it alive, and is copied together from the changes that it was made of otherwise, by the workers. What
//! garbage collection moves goes to the disk only: nobody has asked for it.

use bytes::Bytes;

use super::Objects;
use crate::cache::{Content, Purpose};
use crate::map::Placement;
use crate::units::{Extent, FrameAddr};

/// Batches of fewer bytes are copied at once: that takes less time than going to the workers.
const INLINE_BYTES: u64 = 256 << 10;

impl Objects {
    /// Waits until the disk tier takes so many bytes more; at once if there is none.
    pub async fn wait_for_room(&self, bytes: u64) {
        if let Some(disk) = self.inner.cache.disk() {
            disk.wait_for_room(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
        }
    }

    /// Whether [`Objects::keep_sealed`] has somewhere to put things.
    pub fn keeps_sealed(&self) -> bool {
        self.inner.cache.disk().is_some()
    }

    /// Puts the frames of a segment that is about to take effect into memory. `content` has what it brings, `bytes` of it: the data of an extent, if it has
    /// all of it.
    pub async fn keep_opened(
        &self,
        placements: &[(Extent, Placement)],
        bytes: u64,
        content: impl Fn(Extent) -> Option<Content> + Send + 'static,
    ) {
        let (inner, frames) = (self.inner.clone(), frames_of(placements));
        let keep = move || {
            for (extent, frame) in frames {
                if let Some(content) = content(extent) {
                    inner.cache.insert(inner.volume, frame, content, Purpose::Read);
                }
            }
        };
        if bytes <= INLINE_BYTES { keep() } else { self.inner.workers.run(keep).await }
    }

    /// Offers the frames of a segment in the store, whose object is `parts` joined, to the disk tier.
    pub fn keep_sealed(&self, placements: &[(Extent, Placement)], parts: &[Bytes]) {
        let Some(disk) = self.inner.cache.disk() else { return };
        let frames = frames_of(placements);
        let mut start = 0;
        for part in parts {
            let end = start + part.len() as u64;
            let inside = frames.iter().map(|(_, frame)| *frame).filter(|frame| {
                let offset = u64::from(frame.offset);
                start <= offset && offset + u64::from(frame.len) <= end
            });
            let inside: Vec<FrameAddr> = inside.collect();
            if !inside.is_empty() {
                disk.offer(self.inner.volume, part, start, inside);
            }
            start = end;
        }
    }
}

fn frames_of(placements: &[(Extent, Placement)]) -> Vec<(Extent, FrameAddr)> {
    let frame = |(extent, placement): &(Extent, Placement)| match placement {
        Placement::Data(location) => Some((*extent, location.frame)),
        Placement::Zero | Placement::Hole => None,
    };
    placements.iter().filter_map(frame).collect()
}
