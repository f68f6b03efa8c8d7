//! How much the versions hold that are kept: what a server does not know of them after an opening is read with the next checkpoints, a little with each. It is for
//! whoever looks on; nothing depends on it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::shared::Shared;
use crate::map::NeedPages;
use crate::space::kept::Deaths;
use crate::space::{self, KeptVersion, List};
use crate::units::Seq;

/// Lists that are read with one checkpoint.
const AT_ONCE: usize = 16;

/// Finds out of some lists how many blocks died by them. What cannot be read now is left for later.
pub(super) async fn learn(shared: &Shared, table: &space::Snapshot) {
    let unknown: Vec<_> = unknown(&table.durable.kept).take(AT_ONCE).collect();
    if unknown.is_empty() || shared.is_closing() {
        return;
    }
    let need = unknown.iter().flat_map(|(list, _)| NeedPages::from(list.need()).0).collect();
    let Ok(loaded) = shared.fetch_pages(NeedPages(need)).await else { return };
    let loaded: HashMap<_, _> = loaded.into_iter().collect();
    for (list, shown) in unknown {
        let pages: Option<Vec<_>> = list.pages.iter().map(|at| loaded.get(at)).collect();
        if let Some(pages) = pages {
            let mut deaths = Deaths::new();
            pages.into_iter().for_each(|page| page.add_deaths(&mut deaths));
            list.know(&deaths, shown);
        }
    }
}

/// Lists of which something is not known that is told: each with the last version before that somebody can name.
fn unknown(kept: &[KeptVersion]) -> impl Iterator<Item = (&Arc<List>, Seq)> {
    let mut shown = Seq(0);
    let lists = kept.iter().flat_map(move |version| {
        let before = shown;
        let is_hidden = version.label.is_hidden();
        if !is_hidden {
            shown = version.seq;
        }
        version.held.iter().map(move |list| (list, before, is_hidden))
    });
    let unknown = lists.filter(|(list, before, is_hidden)| {
        list.known_blocks().is_none() || *is_hidden && list.known_blocks_after(*before).is_none()
    });
    unknown.map(|(list, before, _)| (list, before))
}
