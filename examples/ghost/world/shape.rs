//! Which block lies where in a ghost, and what it holds: all of it computed, nothing kept.
//!
//! The volume is cut into as many stripes as a segment has blocks, each as long as there are segments, and every stripe has a keyed
//! permutation of its own that deals its blocks to the segments. So the blocks of a segment lie all over the volume, neighbours lie in
//! different segments, and either way is found in constant time, because the place of a block in its segment is the order of its stripe.
//!
//! In a segment of random writes a block's place is its stripe only about: chance brings more blocks from one part of the volume than from
//! another. Here segments go in pairs, which take turns of [`TURN`] stripes: one takes the blocks of both, then the other does. So the
//! pages of the map are as long, and compress as badly, as those of a volume that was written at random.

/// Stripes that one segment of a pair takes in a row.
const TURN: u64 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks of a segment, and so the number of stripes.
    pub segment_blocks: u64,
    /// Segments, an even number.
    pub segments: u64,
    /// Of so many segments one is hollow: three of four of its blocks were given up. 0: none is.
    pub hollow_every: u64,
    /// Says which of all ghosts of that size it is.
    pub key: u64,
}

/// A block in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment, from 0.
    pub segment: u64,
    /// Its place among the blocks of the segment, in their order, from 0.
    pub rank: u64,
}

/// Of the blocks of a hollow segment one of so many is live.
const HOLLOW_LIVE: u64 = 4;

impl Shape {
    /// A volume of `bytes` in segments of `segment_bytes`, both counted in blocks of 4 KiB. The bytes must be an even number of segments,
    /// and a segment a multiple of 512 KiB.
    pub fn new(bytes: u64, segment_bytes: u64, key: u64) -> Shape {
        let (blocks, segment_blocks) = (bytes / BLOCK, segment_bytes / BLOCK);
        let segments = blocks / segment_blocks;
        assert!(segment_blocks.is_multiple_of(2 * TURN), "a segment of a ghost is a multiple of 512 KiB");
        assert!(segments * segment_blocks * BLOCK == bytes, "a ghost is a multiple of its segments");
        assert!(segments >= 2 && segments.is_multiple_of(2), "a ghost has an even number of segments");
        Shape { blocks, segment_blocks, segments, hollow_every: 0, key }
    }

    /// Where a block lies.
    pub fn place(&self, block: u64) -> Place {
        let (stripe, at) = (block / self.segments, block % self.segments);
        let slot = self.undo(stripe, at);
        let pair = slot / 2;
        let partner = self.deal(stripe, slot ^ 1);
        let first = mix(self.key ^ pair) & 1;
        let in_first_turn = (stripe + self.lead(pair)) % (2 * TURN) < TURN;
        let segment = 2 * pair + (first ^ u64::from(!in_first_turn));
        let rank = 2 * self.stripes_before(segment, stripe) + u64::from(at > partner);
        Place { segment, rank }
    }

    /// Which block lies there.
    pub fn block(&self, Place { segment, rank }: Place) -> u64 {
        let stripe = self.stripe_of(segment, rank / 2);
        let pair = segment / 2;
        let both = [self.deal(stripe, 2 * pair), self.deal(stripe, 2 * pair + 1)];
        let at = if rank.is_multiple_of(2) { both[0].min(both[1]) } else { both[0].max(both[1]) };
        stripe * self.segments + at
    }

    /// Whether a block still is where it was written; else it was given up.
    pub fn is_live(&self, place: Place) -> bool {
        !self.is_hollow(place.segment) || place.rank.is_multiple_of(HOLLOW_LIVE)
    }

    fn is_hollow(&self, segment: u64) -> bool {
        self.hollow_every > 0 && segment % self.hollow_every == self.hollow_every / 2
    }

    /// Live blocks of a segment.
    pub fn live_blocks(&self, segment: u64) -> u64 {
        if self.is_hollow(segment) { self.segment_blocks / HOLLOW_LIVE } else { self.segment_blocks }
    }

    /// What the block held when the ghost was made, and after it was written `version` times: bytes that nobody compresses, and that no other
    /// block or version has.
    pub fn content(&self, block: u64, version: u64) -> Vec<u8> {
        let mut state = mix(mix(self.key ^ block) ^ version);
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
        while bytes.len() < BLOCK as usize {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            bytes.extend_from_slice(&mix(state).to_le_bytes());
        }
        bytes
    }

    /// How far a pair is in its turns at the first stripe.
    fn lead(&self, pair: u64) -> u64 {
        mix(self.key ^ !pair) % (2 * TURN)
    }

    /// The stripes that a segment takes: so many from the first on, then, from that stripe on, [`TURN`] of every two turns.
    fn turns(&self, segment: u64) -> (u64, u64) {
        let pair = segment / 2;
        let is_first = segment % 2 == mix(self.key ^ pair) & 1;
        let phase = (self.lead(pair) + if is_first { 0 } else { TURN }) % (2 * TURN);
        (TURN.saturating_sub(phase), 2 * TURN - phase)
    }

    /// How many stripes a segment takes before one that it takes.
    fn stripes_before(&self, segment: u64, stripe: u64) -> u64 {
        let (at_once, then) = self.turns(segment);
        match stripe.checked_sub(then) {
            None => stripe,
            Some(later) => at_once + later / (2 * TURN) * TURN + later % (2 * TURN),
        }
    }

    /// The stripe that a segment takes after so many others.
    fn stripe_of(&self, segment: u64, before: u64) -> u64 {
        let (at_once, then) = self.turns(segment);
        match before.checked_sub(at_once) {
            None => before,
            Some(later) => then + later / TURN * 2 * TURN + later % TURN,
        }
    }

    /// The permutation of a stripe.
    fn deal(&self, stripe: u64, slot: u64) -> u64 {
        let (mask, shift, keys) = self.rounds(stripe);
        let mut at = slot;
        loop {
            for (key, (times, _)) in keys.iter().zip(TIMES) {
                at = at.wrapping_mul(times).wrapping_add(*key) & mask;
                at ^= at >> shift;
            }
            if at < self.segments {
                return at;
            }
        }
    }

    /// And back.
    fn undo(&self, stripe: u64, at: u64) -> u64 {
        let (mask, shift, keys) = self.rounds(stripe);
        let mut slot = at;
        loop {
            for (key, (_, back)) in keys.iter().zip(TIMES).rev() {
                slot ^= slot >> shift;
                slot = slot.wrapping_sub(*key).wrapping_mul(back) & mask;
            }
            if slot < self.segments {
                return slot;
            }
        }
    }

    /// Numbers of just enough bits are permuted; half of them, rounded up, are mixed into the rest: that undoes itself.
    fn rounds(&self, stripe: u64) -> (u64, u32, [u64; 3]) {
        let bits = (u64::BITS - (self.segments - 1).leading_zeros()).max(2);
        let key = mix(self.key ^ stripe.rotate_left(32));
        ((1 << bits) - 1, bits.div_ceil(2), [key, key.rotate_left(21), key.rotate_left(42)])
    }
}

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// Odd numbers, and what undoes a multiplication with each.
const TIMES: [(u64, u64); 3] =
    [with_inverse(0x9e37_79b9_7f4a_7c15), with_inverse(0xbf58_476d_1ce4_e5b9), with_inverse(0x94d0_49bb_1331_11eb)];

const fn with_inverse(odd: u64) -> (u64, u64) {
    let (mut inverse, mut round) = (odd, 0);
    while round < 6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    (odd, inverse)
}

/// A number that looks like any other (the last step of splitmix64).
pub fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
