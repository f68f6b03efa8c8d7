//! Read-ahead: which bytes to fetch before they are asked for. Pure: reads in, ranges out.
//!
//! Several streams are followed at once, each known by where its next read is expected. A read that falls there, or a
//! little behind or beyond it (a client with several requests under way does not keep them in order), continues the
//! stream. From the third such read on the range ahead is asked for, at first as long as a few of those reads, or many where the data was
//! written as one stream as well, and twice as long each time, up to the bound. Reads that continue nothing begin a stream of their own in the place of the one that
//! rested longest; so reads at random cost nothing but this table.
//!
//! What is fetched ahead waits in the block cache. So all streams together have a budget of bytes, which those that are
//! under way share: one may run far ahead, sixteen at once only a little each.

use std::ops::Range;

/// Streams that are followed at once.
const STREAMS: usize = 16;

/// Reads that continue a stream before anything is fetched ahead.
const CONFIDENT: u32 = 2;

/// The first range ahead, in lengths of the read that asks for it.
const FIRST_READS: u64 = 4;

/// The same, at most, of what was written as one stream.
const FIRST_TOGETHER_READS: u64 = 64;

/// A stream that was not continued in so many reads has ended, or rests: it has no part in the budget.
const RESTING: u64 = 256;

/// How far behind and beyond the expected place a read may begin, in its own lengths.
const BEHIND_READS: u64 = 16;
const BEYOND_READS: u64 = 32;

/// The streams of one volume.
#[derive(Debug)]
pub struct ReadAhead {
    streams: Vec<Stream>,
    window_max: u64,
    budget: u64,
    size: u64,
    tick: u64,
}

/// What a read says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// It continues a stream.
    pub in_stream: bool,
    /// What is worth fetching now: a range behind it that was not returned before.
    pub ahead: Option<Range<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where the next read is expected: behind the furthest one.
    next: u64,
    /// What lies before this was asked for already.
    ahead: u64,
    window: u64,
    hits: u32,
    used: u64,
}

impl ReadAhead {
    /// Of a volume of `size` bytes; at most `window_max` bytes are fetched ahead of a read, and `budget` ahead of all streams
    /// together; none if one of them is 0.
    pub fn new(size: u64, window_max: u64, budget: u64) -> ReadAhead {
        ReadAhead { streams: Vec::new(), window_max, budget, size, tick: 0 }
    }

    /// The volume has so many bytes from now on.
    pub fn resize(&mut self, size: u64) {
        self.size = size;
    }

    /// All streams together may be ahead by so many bytes from now on.
    pub fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    /// Takes note of a read. `together` is asked, once for a stream, how many bytes of a range, from its beginning on, were written as one stream.
    pub fn read(&mut self, offset: u64, len: u64, together: impl FnOnce(Range<u64>) -> u64) -> Advice {
        if self.window_max == 0 || self.budget == 0 || len == 0 {
            return Advice::default();
        }
        self.tick += 1;
        let (tick, end) = (self.tick, offset + len);
        let window_max = self.window_max.min(self.budget / self.under_way().max(1));
        let continues = |stream: &&mut Stream| {
            offset + len * BEHIND_READS >= stream.next && offset <= stream.next + len * BEYOND_READS
        };
        let Some(stream) = self.streams.iter_mut().find(continues) else {
            self.begin(Stream { next: end, ahead: end, window: 0, hits: 0, used: tick });
            return Advice::default();
        };
        (stream.used, stream.hits) = (tick, stream.hits.saturating_add(1));
        stream.next = stream.next.max(end);
        stream.ahead = stream.ahead.max(stream.next);
        let in_stream = stream.hits >= CONFIDENT;
        // Half a window before it runs dry, so that the next one is there in time.
        if !in_stream || stream.ahead - stream.next > stream.window.min(window_max) / 2 {
            return Advice { in_stream, ahead: None };
        }
        if stream.window == 0 {
            let first = (len * FIRST_TOGETHER_READS).min(window_max);
            let look = stream.ahead..(stream.ahead + first).min(self.size);
            stream.window = if look.is_empty() { 0 } else { together(look) / 2 };
        }
        stream.window = (stream.window * 2).max(len * FIRST_READS).min(window_max);
        let range = stream.ahead..(stream.next + stream.window).min(self.size);
        stream.ahead = stream.ahead.max(range.end);
        Advice { in_stream, ahead: (!range.is_empty()).then_some(range) }
    }

    /// Streams that have a part in the budget.
    fn under_way(&self) -> u64 {
        let runs = |stream: &&Stream| stream.hits >= CONFIDENT && stream.used + RESTING > self.tick;
        self.streams.iter().filter(runs).count() as u64
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() < STREAMS {
            return self.streams.push(stream);
        }
        if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::Random;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 40;
    const MAX: u64 = 16 << 20;

    #[test]
    fn a_stream_is_fetched_ahead_in_growing_windows_up_to_the_bound() {
        let mut ahead = ReadAhead::new(SIZE, MAX, 16 * MAX);
        let len = 128 << 10;
        let ranges: Vec<_> = (0..2000).filter_map(|i| ahead.read(i * len, len, |_| 0).ahead).collect();
        assert_eq!(ranges[0], 3 * len..3 * len + 4 * len);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "without gaps or doubles");
        let longest = ranges.iter().map(|range| range.end - range.start).max().unwrap();
        assert!((MAX / 2..=MAX).contains(&longest), "{longest}");
        assert!(ranges.len() < 60, "few and long: {}", ranges.len());
    }

    #[test]
    fn the_first_window_is_long_where_the_data_was_written_as_one_stream() {
        let len = 256 << 10;
        for (written, first) in [(0, 4 * len), (3 << 20, 3 << 20), (u64::MAX, MAX)] {
            let (mut ahead, mut asked) = (ReadAhead::new(SIZE, MAX, 16 * MAX), 0);
            let together = |range: Range<u64>| written.min(range.end - range.start);
            let mut ranges = (0..100).filter_map(|i| {
                ahead
                    .read(i * len, len, |range| {
                        asked += 1;
                        together(range)
                    })
                    .ahead
            });
            assert_eq!(ranges.next(), Some(3 * len..3 * len + first));
            assert!(ranges.count() > 0);
            assert_eq!(asked, 1, "once for a stream");
        }
        // Small reads do not open it as far.
        let mut ahead = ReadAhead::new(SIZE, MAX, 16 * MAX);
        let first = (0..3).find_map(|i| ahead.read(i * 4096, 4096, |range| range.end - range.start).ahead);
        assert_eq!(first, Some(3 * 4096..(3 + FIRST_TOGETHER_READS) * 4096));
    }

    #[test]
    fn sixteen_streams_and_reads_out_of_order_are_followed() {
        let mut ahead = ReadAhead::new(SIZE, MAX, 16 * MAX);
        let len = 64 << 10;
        let mut fetched = [0; 16];
        for i in 0..64u64 {
            for stream in 0..16u64 {
                // Of each four reads the second and third change places.
                let i = [i, i + 1, i - i.min(1), i][(i % 4) as usize];
                if let Some(range) = ahead.read((stream << 32) + i * len, len, |_| 0).ahead {
                    fetched[stream as usize] += range.end - range.start;
                }
            }
        }
        assert!(fetched.iter().all(|bytes| *bytes >= 48 * len), "{fetched:?}");
    }

    #[test]
    fn streams_that_run_together_share_the_budget_and_one_alone_may_have_it_all() {
        const BUDGET: u64 = 8 << 20;
        let mut ahead = ReadAhead::new(SIZE, MAX, BUDGET);
        let len = 64 << 10;
        for streams in [1, 4, 16, 1u64] {
            // How far the furthest range of each stream reached beyond its reads in the end.
            let mut reach = vec![0; streams as usize];
            for i in 0..2000 {
                for stream in 0..streams {
                    let at = (stream << 32) + (streams << 28) + i * len;
                    let advice = ahead.read(at, len, |_| 0);
                    assert!(advice.in_stream || i < 3);
                    if let Some(range) = advice.ahead
                        && i > 1500
                    {
                        reach[stream as usize] = range.end - (at + len);
                    }
                }
            }
            let together: u64 = reach.iter().sum();
            assert!((BUDGET / 2..=BUDGET).contains(&together), "{streams} streams: {together}");
        }
    }

    #[test]
    fn reads_at_random_fetch_next_to_nothing() {
        let (mut ahead, random) = (ReadAhead::new(1 << 30, MAX, MAX), Random::seeded(3));
        let fetched: u64 = (0..10_000)
            .filter_map(|_| ahead.read(random.below(1 << 18) * 4096, 4096, |_| 0).ahead)
            .map(|range| range.end - range.start)
            .sum();
        assert!(fetched < 10_000 * 4096 / 20, "{fetched} bytes ahead of 40 MB of random reads");
    }

    proptest! {
        #[test]
        fn ranges_are_within_bounds(reads in prop::collection::vec((0u64..1 << 24, 1u64..1 << 20, any::<u32>()), 1..200)) {
            let mut ahead = ReadAhead::new(1 << 24, 1 << 20, 1 << 22);
            for (offset, len, part) in reads {
                let together = |range: Range<u64>| u64::from(part) % (range.end - range.start + 1);
                if let Some(range) = ahead.read(offset, len, together).ahead {
                    prop_assert!(range.start < range.end && range.end <= 1 << 24);
                    prop_assert!(range.end - range.start <= 1 << 20);
                }
            }
        }
    }
}
