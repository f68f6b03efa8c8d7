//! What is known of a span of the table without its page: sums, and how many segments there are of which live share and size.

use super::counter::{Counter, Totals};

/// Classes of partly live segments, by the share of their blocks that is live: of so many equal parts.
pub const SHARES: usize = 8;

/// Classes of segments by live blocks: up to these many each.
pub const SMALL: [u32; 5] = [8, 32, 128, 512, 2048];

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments, void slots of the log among them.
    pub segments: u32,
    /// Segments without a live block, void slots among them.
    pub dead: u32,
    /// Sums.
    pub totals: Totals,
    /// Partly live segments by live share.
    pub shares: [Share; SHARES],
    /// Segments with live blocks, by how many: those of [`SMALL`] sizes.
    pub small: [u32; SMALL.len()],
}

/// Partly live segments of about one live share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub segments: u32,
    /// Their bytes.
    pub stored_bytes: u64,
}

/// The class of a segment that is partly live.
pub fn share_of(counter: &Counter) -> Option<usize> {
    let is_partly = counter.live_blocks > 0 && counter.live_blocks < counter.blocks;
    is_partly.then(|| (u64::from(counter.live_blocks) * SHARES as u64 / u64::from(counter.blocks)) as usize)
}

/// The class of a segment of few live blocks.
pub fn small_of(counter: &Counter) -> Option<usize> {
    let fits = SMALL.iter().position(|most| counter.live_blocks <= *most);
    fits.filter(|_| counter.live_blocks > 0)
}

impl Summary {
    /// Of these segments.
    pub fn of<'a>(counters: impl IntoIterator<Item = &'a Counter>) -> Summary {
        let mut summary = Summary::default();
        counters.into_iter().for_each(|counter| summary.add(counter));
        summary
    }

    /// One segment more.
    pub fn add(&mut self, counter: &Counter) {
        self.segments += 1;
        self.dead += u32::from(counter.is_dead());
        self.totals.add(&Totals::of(counter));
        if let Some(class) = share_of(counter) {
            self.shares[class].segments += 1;
            self.shares[class].stored_bytes += counter.stored_bytes;
        }
        if let Some(class) = small_of(counter) {
            self.small[class] += 1;
        }
    }

    /// One segment less. What was estimated may be less than what is taken from it.
    pub fn remove(&mut self, counter: &Counter) {
        self.segments = self.segments.saturating_sub(1);
        self.dead = self.dead.saturating_sub(u32::from(counter.is_dead()));
        self.totals.subtract(&Totals::of(counter));
        if let Some(class) = share_of(counter) {
            let share = &mut self.shares[class];
            share.segments = share.segments.saturating_sub(1);
            share.stored_bytes = share.stored_bytes.saturating_sub(counter.stored_bytes);
        }
        if let Some(class) = small_of(counter) {
            self.small[class] = self.small[class].saturating_sub(1);
        }
    }

    /// So many blocks of it died, nobody knows of which segments: the classes stay as they are.
    pub fn estimate_deaths(&mut self, blocks: u64) {
        let Totals { live_blocks, live_bytes, .. } = &mut self.totals;
        let part = u128::from(*live_bytes) * u128::from(blocks.min(*live_blocks)) / u128::from((*live_blocks).max(1));
        *live_bytes -= part as u64;
        *live_blocks = live_blocks.saturating_sub(blocks);
    }

    /// None of its segments has a live block any more.
    pub fn kill(&mut self) {
        let Totals { objects, stored_bytes, .. } = self.totals;
        *self = Summary {
            segments: self.segments,
            dead: self.segments,
            totals: Totals {
                objects,
                stored_bytes,
                dead_objects: objects,
                dead_bytes: stored_bytes,
                ..Totals::default()
            },
            ..Summary::default()
        };
    }
}
