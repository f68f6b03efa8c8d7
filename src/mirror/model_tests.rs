//! The plan against a plain model of two stores: whatever happens in the first one, and wherever copying is cut off, the mirror is a volume that
//! opens, and holds what the first one held after some slot of its log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::notes::{Deleted, Notes};
use super::plan::{Described, First, Plan, Step, description_after};
use crate::units::Seq;

const BLOCKS: u64 = 8;

/// What each block holds: the slot that wrote it.
type Content = BTreeMap<u64, u64>;

#[derive(Clone, Debug)]
enum Slot {
    /// Writes that block.
    Segment { block: u64, generation: u8 },
    /// Gives up all from that block on.
    Hole { from: u64, generation: u8 },
    /// The log goes on there.
    Fence { continues_at: u64, generation: u8 },
    /// Of a server that did not know that it was displaced.
    Stray,
}

#[derive(Clone, Debug)]
struct Checkpoint {
    generation: u8,
    content: Content,
    /// The checkpoint that has the page of each block.
    pages: BTreeMap<u64, u64>,
    next: u64,
}

/// The objects of a store.
#[derive(Clone, Debug, Default)]
struct Objects {
    slots: BTreeMap<u64, Slot>,
    checkpoints: BTreeMap<u64, Checkpoint>,
    description: Option<(u64, Described)>,
}

impl Objects {
    /// What is read by whoever opens it, and the last slot that counts; nothing if there is no volume.
    fn open(&self) -> Option<(u64, u64, Content)> {
        let (_, described) = self.description?;
        let opens = |generation: u8| assert!(generation <= described.generation, "it is sealed with a newer key");
        let (mut content, mut next, mut last, mut base) = (Content::new(), 1, 0, 0);
        if let Some((seq, newest)) = self.checkpoints.last_key_value() {
            opens(newest.generation);
            for page in newest.pages.values() {
                assert!(self.checkpoints.contains_key(page), "checkpoint {seq} needs {page}");
            }
            for slot in newest.content.values() {
                assert!(self.slots.contains_key(slot), "checkpoint {seq} needs slot {slot}");
            }
            (content, next, last, base) = (newest.content.clone(), newest.next, *seq, *seq);
        }
        while let Some(slot) = self.slots.get(&next) {
            last = next;
            next += 1;
            match slot {
                Slot::Segment { block, generation } => {
                    opens(*generation);
                    content.insert(*block, last);
                }
                Slot::Hole { from, generation } => {
                    opens(*generation);
                    content.retain(|block, _| block < from);
                }
                Slot::Fence { continues_at, generation } => {
                    opens(*generation);
                    next = *continues_at;
                }
                Slot::Stray => panic!("slot {last} is void"),
            }
        }
        Some((base, last, content))
    }
}

struct World {
    first: Objects,
    next: u64,
    committed: u64,
    /// The content after each slot.
    history: BTreeMap<u64, Content>,
    /// Of the last checkpoint on, which blocks changed.
    changed: BTreeSet<u64>,
    mirror: Objects,
    plan: Plan,
    notes: Notes,
    now: Instant,
    /// The description that waits, as it was seen.
    pending: Option<(u64, Seq)>,
    /// The largest volume since a description was seen last.
    largest: u64,
    /// Descriptions were missed of which the last does not tell.
    missed: bool,
    before_the_first: bool,
}

const DELETE_AFTER: Duration = Duration::from_secs(10);

impl World {
    fn new() -> World {
        let described = Described { size: BLOCKS, generation: 1 };
        World {
            first: Objects { description: Some((1, described)), ..Objects::default() },
            next: 1,
            committed: 0,
            history: [(0, Content::new())].into(),
            changed: BTreeSet::new(),
            mirror: Objects::default(),
            plan: Plan { next: Seq(1), checkpoint: Seq(0) },
            notes: Notes::default(),
            now: Instant::now(),
            pending: None,
            largest: BLOCKS,
            missed: false,
            before_the_first: true,
        }
    }

    fn described(&self) -> Described {
        self.first.description.unwrap().1
    }

    fn content(&self) -> Content {
        self.history[&self.committed].clone()
    }

    fn commit(&mut self, slot: Slot) {
        let (mut content, seq) = (self.content(), self.next);
        self.next += 1;
        match &slot {
            Slot::Segment { block, .. } => {
                content.insert(*block, seq);
                self.changed.insert(*block);
            }
            Slot::Hole { from, .. } => {
                content.retain(|block, _| block < from);
                self.changed.extend(*from..BLOCKS * 2);
            }
            Slot::Fence { continues_at, .. } => {
                // What is on its way lands in slots that are void, or too late.
                let void = (self.next..*continues_at).step_by(2).map(|void| (void, Slot::Stray));
                self.first.slots.extend(void);
                self.next = *continues_at;
            }
            Slot::Stray => unreachable!(),
        }
        self.first.slots.insert(seq, slot);
        self.committed = seq;
        self.history.insert(seq, content);
    }

    fn write(&mut self, block: u64) {
        let described = self.described();
        self.commit(Slot::Segment { block: block % described.size, generation: described.generation });
    }

    fn describe(&mut self, described: Described) {
        let number = self.first.description.unwrap().0 + 1;
        self.first.description = Some((number, described));
        self.largest = self.largest.max(described.size);
    }

    fn resize(&mut self, size: u64) {
        let described = self.described();
        if size < described.size {
            self.commit(Slot::Hole { from: size, generation: described.generation });
        }
        self.describe(Described { size, ..described });
    }

    fn checkpoint(&mut self, merges: bool) {
        if self.committed == 0 || self.first.checkpoints.contains_key(&self.committed) {
            return;
        }
        let (content, seq) = (self.content(), self.committed);
        let before = self.first.checkpoints.last_key_value().map(|(_, newest)| newest.pages.clone());
        let before = before.unwrap_or_default();
        let page = |block: &u64| match before.get(block).filter(|_| !merges && !self.changed.contains(block)) {
            Some(page) => (*block, *page),
            None => (*block, seq),
        };
        let pages = content.keys().map(page).collect();
        let generation = self.described().generation;
        self.first.checkpoints.insert(seq, Checkpoint { generation, content, pages, next: self.next });
        self.changed.clear();
    }

    /// Deletes what the newest checkpoint does not need, as far as the mirror has it; the first store's own rule, and the line that is held.
    fn delete(&mut self) {
        let Some((&newest, checkpoint)) = self.first.checkpoints.last_key_value() else { return };
        let (hold, at) = (self.plan, self.now);
        let needed: BTreeSet<u64> = checkpoint.content.values().copied().collect();
        let pages: BTreeSet<u64> = checkpoint.pages.values().copied().collect();
        let dead: Vec<u64> = self.first.slots.range(..=newest).map(|(seq, _)| *seq).collect();
        let may_go = |seq: &u64| !needed.contains(seq) && !self.before_the_first && hold.has(Seq(*seq));
        for seq in dead.into_iter().filter(may_go).collect::<Vec<_>>() {
            self.first.slots.remove(&seq);
            self.notes.add(Deleted::Slot(Seq(seq)), Seq(newest), at);
        }
        let old: Vec<u64> = self.first.checkpoints.range(..newest).map(|(seq, _)| *seq).collect();
        let may_go = |seq: &u64| !pages.contains(seq) && !self.before_the_first && *seq <= hold.checkpoint.0;
        for seq in old.into_iter().filter(may_go).collect::<Vec<_>>() {
            self.first.checkpoints.remove(&seq);
            self.notes.add(Deleted::Checkpoint(Seq(seq)), Seq(newest), at);
        }
    }

    fn copy(&mut self) {
        let (number, described) = self.first.description.unwrap();
        if self.mirror.description.is_none_or(|(there, _)| there < number) {
            if self.pending.is_none_or(|(seen, _)| seen < number) {
                let there = self.mirror.description.map(|(_, described)| described);
                // What description_after cannot know, or gives up for the keys.
                self.missed |= there.is_some_and(|there| {
                    let rotated = there.generation < described.generation;
                    rotated && described.size < there.size || self.largest > described.size.max(there.size)
                });
                self.largest = described.size;
                self.pending = Some((number, description_after(there, described, Seq(self.committed))));
            }
        } else {
            self.pending = None;
        }
        let first = First {
            committed: Seq(self.committed),
            checkpoint: self.first.checkpoints.range(self.plan.checkpoint.0 + 1..).next().map(|(seq, _)| Seq(*seq)),
            description: self.pending.map(|(_, after)| after),
        };
        match self.plan.step(&first) {
            None => {}
            Some(Step::Description) => {
                self.mirror.description = self.first.description;
                self.before_the_first = false;
            }
            Some(Step::Checkpoint(Seq(seq))) => {
                self.mirror.checkpoints.insert(seq, self.first.checkpoints[&seq].clone());
                self.plan.checkpoint_copied(Seq(seq));
            }
            Some(Step::Slot(Seq(seq))) => {
                let slot = self.first.slots.get(&seq).expect("the first store keeps what is not copied").clone();
                let continues_at = match &slot {
                    Slot::Fence { continues_at, .. } => Some(Seq(*continues_at)),
                    _ => None,
                };
                self.mirror.slots.insert(seq, slot);
                self.plan.slot_copied(continues_at);
            }
        }
    }

    fn delete_in_mirror(&mut self) {
        let due = self.notes.due(self.plan.checkpoint, DELETE_AFTER, self.now, 3);
        for object in &due {
            match object {
                Deleted::Slot(Seq(seq)) => self.mirror.slots.retain(|slot, _| slot != seq),
                Deleted::Checkpoint(Seq(seq)) => self.mirror.checkpoints.retain(|checkpoint, _| checkpoint != seq),
            }
        }
        self.notes.gone(due.len());
    }

    /// The server of the first store begins anew: what it knew is gone, and the mirror says how far it is.
    fn restart(&mut self) {
        (self.notes, self.pending, self.largest) = (Notes::default(), None, self.described().size.max(self.largest));
        self.commit(Slot::Fence { continues_at: self.next + 3, generation: self.described().generation });
        if let Some((_, last, _)) = self.mirror.open() {
            let next = match self.mirror.slots.get(&last) {
                Some(Slot::Fence { continues_at, .. }) => *continues_at,
                _ => last + 1,
            };
            let checkpoint = self.mirror.checkpoints.last_key_value();
            let next = checkpoint.map_or(next, |(_, newest)| next.max(newest.next));
            let found = Plan { next: Seq(next), checkpoint: Seq(checkpoint.map_or(0, |(seq, _)| *seq)) };
            assert_eq!(found, self.plan);
        }
    }

    fn check(&self) {
        let Some((_, last, content)) = self.mirror.open() else { return };
        assert_eq!(content, self.history[&last], "after slot {last}");
        let size = self.mirror.description.unwrap().1.size;
        assert!(self.missed || content.keys().all(|block| *block < size), "it holds something beyond its end");
    }
}

#[derive(Clone, Debug)]
enum Happens {
    Write(u64),
    Fence(u64),
    Checkpoint(bool),
    Delete,
    Rotate,
    Resize(u64),
    Copy,
    CopyAll,
    DeleteInMirror,
    Time(u64),
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (0..BLOCKS * 2).prop_map(Happens::Write),
        1 => (1..5u64).prop_map(Happens::Fence),
        4 => any::<bool>().prop_map(Happens::Checkpoint),
        4 => Just(Happens::Delete),
        1 => Just(Happens::Rotate),
        1 => (1..BLOCKS * 2).prop_map(Happens::Resize),
        10 => Just(Happens::Copy),
        1 => Just(Happens::CopyAll),
        4 => Just(Happens::DeleteInMirror),
        3 => (1..20u64).prop_map(Happens::Time),
        1 => Just(Happens::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_cut_of_the_mirror_is_a_state_of_the_first_store(steps in prop::collection::vec(happens(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Happens::Write(block) => world.write(block),
                Happens::Fence(further) => {
                    let generation = world.described().generation;
                    world.commit(Slot::Fence { continues_at: world.next + further, generation });
                }
                Happens::Checkpoint(merges) => world.checkpoint(merges),
                Happens::Delete => world.delete(),
                Happens::Rotate => {
                    let described = world.described();
                    world.describe(Described { generation: described.generation + 1, ..described });
                }
                Happens::Resize(size) => world.resize(size),
                Happens::Copy => world.copy(),
                Happens::CopyAll => (0..300).for_each(|_| {
                    world.copy();
                    world.check();
                }),
                Happens::DeleteInMirror => world.delete_in_mirror(),
                Happens::Time(seconds) => world.now += Duration::from_secs(seconds),
                Happens::Restart => world.restart(),
            }
            world.check();
        }
        // In the end it has all.
        (0..500).for_each(|_| world.copy());
        world.check();
        prop_assert_eq!(world.plan.next, Seq(world.next));
        prop_assert_eq!(world.mirror.open().unwrap().2, world.content());
    }
}
