//! A server kept within `memory`: what [`crate::memory::keeper`] looks at, and what it does about it.

use std::sync::Arc;

use super::allocator;
use super::control::Insight;
use crate::memory::{Keeper, Limits, Seen, machine};
use crate::volume::Volume;

/// A server that has all of this.
pub struct Server(pub Arc<Insight>);

impl Server {
    fn volumes(&self) -> impl Iterator<Item = Arc<Volume>> + use<> {
        self.0.exports.open_volumes().into_iter().map(|(_, volume)| volume)
    }
}

impl Keeper for Server {
    fn look(&mut self) -> Seen {
        let Insight { budget, buffers, cache, server, .. } = &*self.0;
        let used = budget.used();
        Seen {
            resident: machine::resident(),
            others: server.bytes_in_flight().0
                + used.dirty
                + used.uploads
                + used.collection
                + buffers.kept_bytes().0
                + buffers.spare_bytes()
                + cache.memory_beside(),
            map: self.volumes().map(|volume| volume.map_memory()).sum(),
            cache: cache.memory_used(),
        }
    }

    fn cache(&self) -> u64 {
        self.0.cache.memory_size()
    }

    fn apply(&mut self, limits: &Limits) {
        self.0.cache.resize(limits.cache);
        self.0.budget.set_map_memory(limits.map);
        if limits.map_is_over {
            self.volumes().for_each(|volume| volume.let_map_go());
        }
        if limits.give_back {
            // It takes a while.
            tokio::task::block_in_place(allocator::give_back);
        }
    }
}
