//! What is known of one segment, and sums over many.

use crate::units::Seq;

/// What is known of a segment that is in the store, for reading, accounting and garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The salt of its encoding: frames cannot be opened without it.
    pub salt: [u8; 16],
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// Data blocks that it brought.
    pub blocks: u32,
    /// How many of them the map still needs, or a few more if not all is counted yet.
    pub live_blocks: u32,
}

impl SegmentInfo {
    /// See [`Counter::live_bytes`].
    pub fn live_bytes(&self) -> u64 {
        self.counter().live_bytes()
    }

    /// But for its salt.
    pub fn counter(&self) -> Counter {
        Counter { stored_bytes: self.stored_bytes, blocks: self.blocks, live_blocks: self.live_blocks }
    }
}

/// What is counted of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// Data blocks that it brought.
    pub blocks: u32,
    /// How many of them the map still needs, or a few more if not all is counted yet.
    pub live_blocks: u32,
}

impl Counter {
    /// Bytes of the object that belong to live blocks: exact but for how much better or worse those compress than the
    /// dead ones.
    pub fn live_bytes(&self) -> u64 {
        match self.blocks {
            0 => 0,
            blocks => (u128::from(self.stored_bytes) * u128::from(self.live_blocks) / u128::from(blocks)) as u64,
        }
    }

    /// What moving it would free.
    pub fn sparse_bytes(&self) -> u64 {
        if self.is_dead() { 0 } else { self.stored_bytes.saturating_sub(self.live_bytes()) }
    }

    /// Whether the map needs nothing of it.
    pub fn is_dead(&self) -> bool {
        self.live_blocks == 0
    }
}

/// Segments with what is counted of them, in the order of the log.
pub type Counted = Vec<(Seq, Counter)>;

/// Sums over segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Objects of the log that are in the store.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Data blocks that the map needs.
    pub live_blocks: u64,
    /// Bytes of the objects that they are in, in proportion: see [`Counter::live_bytes`].
    pub live_bytes: u64,
    /// Objects without a block that the map needs.
    pub dead_objects: u64,
    /// Their bytes.
    pub dead_bytes: u64,
}

impl Totals {
    /// Bytes of objects that are partly live, beyond the live bytes: what rewriting them would free.
    pub fn sparse_bytes(&self) -> u64 {
        self.stored_bytes.saturating_sub(self.dead_bytes + self.live_bytes)
    }

    /// One segment more.
    pub fn count(&mut self, counter: &Counter) {
        self.add(&Totals::of(counter));
    }

    /// More of all.
    pub fn add(&mut self, other: &Totals) {
        self.objects += other.objects;
        self.stored_bytes += other.stored_bytes;
        self.live_blocks += other.live_blocks;
        self.live_bytes += other.live_bytes;
        self.dead_objects += other.dead_objects;
        self.dead_bytes += other.dead_bytes;
    }

    /// Less of all. What was estimated may be less than what is taken from it.
    pub fn subtract(&mut self, other: &Totals) {
        let less = |from: &mut u64, by: u64| *from = from.saturating_sub(by);
        less(&mut self.objects, other.objects);
        less(&mut self.stored_bytes, other.stored_bytes);
        less(&mut self.live_blocks, other.live_blocks);
        less(&mut self.live_bytes, other.live_bytes);
        less(&mut self.dead_objects, other.dead_objects);
        less(&mut self.dead_bytes, other.dead_bytes);
    }

    /// Without the objects in which nothing is live.
    pub fn without_dead(&self) -> Totals {
        Totals {
            objects: self.objects.saturating_sub(self.dead_objects),
            stored_bytes: self.stored_bytes.saturating_sub(self.dead_bytes),
            dead_objects: 0,
            dead_bytes: 0,
            ..*self
        }
    }

    /// Of one segment.
    pub fn of(counter: &Counter) -> Totals {
        // Slots that a fence voided are in the table, but most were never objects.
        let objects = u64::from(counter.stored_bytes > 0);
        let is_dead = counter.is_dead();
        Totals {
            objects,
            stored_bytes: counter.stored_bytes,
            live_blocks: counter.live_blocks.into(),
            live_bytes: counter.live_bytes(),
            dead_objects: if is_dead { objects } else { 0 },
            dead_bytes: if is_dead { counter.stored_bytes } else { 0 },
        }
    }
}
