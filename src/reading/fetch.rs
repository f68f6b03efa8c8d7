//! The read planner: which ranges of which segments bring the frames that are missing. Pure.

use std::ops::Range;

use crate::codec::frame::FRAME_OVERHEAD;
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
/// may be longer). What sealing added to each frame does not count: else a read of just `max` bytes of the volume would take two.
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
                    && range.end.max(get.range.end) - get.range.start <= max + overhead(get.frames.len() + 1) =>
            {
                get.range.end = get.range.end.max(range.end);
                get.frames.push(frame);
            }
            _ => gets.push(Get { seq: frame.seq, range, frames: vec![frame] }),
        }
    }
    gets
}

fn overhead(frames: usize) -> u64 {
    (frames * FRAME_OVERHEAD) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::SEALED_BYTES_MAX;
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

    #[test]
    fn as_much_data_as_the_most_bytes_takes_one_get() {
        const SEALED: u32 = SEALED_BYTES_MAX;
        let stored = |frames: u32| (0..frames).map(|no| frame(1, no * SEALED, SEALED)).collect::<Vec<_>>();
        let counts = |frames| plan(stored(frames), 0, 1 << 20).iter().map(|get| get.frames.len()).collect::<Vec<_>>();
        assert_eq!((counts(16), counts(17), counts(32)), (vec![16], vec![16, 1], vec![16, 16]));
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
                prop_assert!(get.frames.len() == 1 || get.range.end - get.range.start <= max + overhead(get.frames.len()));
                for f in get.frames {
                    prop_assert!(f.seq == get.seq && get.range.start <= u64::from(f.offset));
                    prop_assert!(u64::from(f.offset) + u64::from(f.len) <= get.range.end);
                }
            }
        }
    }
}
