//! How much the versions hold that are kept: what a server does not know of them after an opening is read with the next checkpoints, a little with each. It is for
//! whoever looks on; nothing depends on it.

use std::collections::HashMap;

use crate::engine::shared::Shared;
use crate::map::{MapPage, NeedPages};
use crate::space;
use crate::space::kept::Deaths;

/// Lists that are read with one checkpoint.
const AT_ONCE: usize = 16;

/// Finds out of some lists how many blocks died by them. What cannot be read now is left for later.
pub(super) async fn learn(shared: &Shared, table: &space::Snapshot) {
    let lists = table.durable.kept.iter().flat_map(|version| &version.held);
    let unknown: Vec<_> = lists.filter(|list| list.known_blocks().is_none()).take(AT_ONCE).collect();
    if unknown.is_empty() || shared.is_closing() {
        return;
    }
    let need = unknown.iter().flat_map(|list| NeedPages::from(list.need()).0).collect();
    let Ok(loaded) = shared.fetch_pages(NeedPages(need)).await else { return };
    let loaded: HashMap<_, _> = loaded.into_iter().collect();
    for list in unknown {
        let pages: Option<Vec<_>> = list.pages.iter().map(|at| loaded.get(at)).collect();
        if let Some(pages) = pages {
            list.know(pages.into_iter().map(|page| blocks(page)).sum());
        }
    }
}

fn blocks(page: &MapPage) -> u64 {
    let mut deaths = Deaths::new();
    page.add_deaths(&mut deaths);
    deaths.values().sum()
}
