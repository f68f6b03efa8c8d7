//! The read planner: which ranges of which segments bring the frames that are missing. Pure.

use std::ops::Range;

use crate::units::{FrameAddr, Seq};

/// One ranged GET and the frames that it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// The segment.
    pub seq: Seq,
    /// The bytes of its object.
    pub range: Range<u64>,
    /// The frames inside, in the order of their offsets.
    pub frames: Vec<FrameAddr>,
}

/// Joins frames of one segment that lie at most `gap` bytes apart into one GET of at most `max` bytes (a single frame
/// may be longer).
pub fn plan(mut frames: Vec<FrameAddr>, gap: u64, max: u64) -> Vec<Get> {
    frames.sort_unstable();
    frames.dedup();
    let mut gets: Vec<Get> = Vec::new();
    for frame in frames {
        let range = u64::from(frame.offset)..u64::from(frame.offset) + u64::from(frame.len);
        match gets.last_mut() {
            Some(get)
                if get.seq == frame.seq
                    && range.start <= get.range.end + gap
                    && range.end.max(get.range.end) - get.range.start <= max =>
            {
                get.range.end = get.range.end.max(range.end);
                get.frames.push(frame);
            }
            _ => gets.push(Get { seq: frame.seq, range, frames: vec![frame] }),
        }
    }
    gets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(seq: u64, offset: u32, len: u32) -> FrameAddr {
        FrameAddr { seq: Seq(seq), offset, len }
    }

    #[test]
    fn neighbours_join_and_far_ones_do_not() {
        let gets = plan(vec![frame(1, 110, 10), frame(1, 100, 10), frame(1, 200, 10), frame(2, 120, 5)], 8, 1000);
        let ranges: Vec<_> = gets.iter().map(|get| (get.seq.0, get.range.clone())).collect();
        assert_eq!(ranges, [(1, 100..120), (1, 200..210), (2, 120..125)]);
    }

    proptest! {
        #[test]
        fn every_frame_is_brought_once_and_within_bounds(
            offsets in prop::collection::vec((1u64..4, 0u32..4000, 1u32..300), 0..40), gap in 0u64..200, max in 1u64..2000,
        ) {
            let frames: Vec<_> = offsets.into_iter().map(|(seq, offset, len)| frame(seq, offset, len)).collect();
            let gets = plan(frames.clone(), gap, max);
            let mut brought: Vec<_> = gets.iter().flat_map(|get| get.frames.clone()).collect();
            let mut wanted = frames;
            wanted.sort_unstable();
            wanted.dedup();
            brought.sort_unstable();
            prop_assert_eq!(brought, wanted);
            for get in gets {
                prop_assert!(get.frames.len() == 1 || get.range.end - get.range.start <= max);
                for f in get.frames {
                    prop_assert!(f.seq == get.seq && get.range.start <= u64::from(f.offset));
                    prop_assert!(u64::from(f.offset) + u64::from(f.len) <= get.range.end);
                }
            }
        }
    }
}
