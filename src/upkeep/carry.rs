//! Reading what the head, or a version that is kept, needs of old segments, which one new segment is to carry from then on ([`crate::space::carriers`]).
//!
//! 1. The heads of the victims are read: which blocks each brought.
//! 2. The head's map, and then that of each version from the newest to the oldest, is asked for those that nobody was found to need yet. Nobody else needs
//!    anything of them: what the head does not need now, no version will that is taken later. So if another version was taken while the maps were asked,
//!    nothing came of it, and it is done again.
//! 3. What is needed is read, proven, and copied out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::engine::Event;
use crate::engine::collection::Gathered;
use crate::engine::shared::Shared;
use crate::engine::versions::VersionMap;
use crate::error::VolumeError;
use crate::format::root::{CheckpointInfo, Root};
use crate::map::{ExtentMap, NeedPages, PageAt, PageRef, Placement, Table};
use crate::reading::roots::read_root;
use crate::space::{Cargo, Carriers, KeptVersion, Space};
use crate::store::StoreError;
use crate::units::{BlockIndex, Extent, Seq};
use crate::upkeep::gather::{self, Live, Pages, Unread, Victim};

/// Maps of versions that stay in memory for the next time.
const MAPS_MAX: usize = 128;

/// Of which blocks nobody was found yet who needs them, in order, and of which somebody was, by victims.
struct Sought {
    rest: Vec<(Extent, Seq)>,
    needed: HashMap<Seq, Vec<Extent>>,
}

/// Reads what is needed of the victims.
pub(super) async fn run(shared: Arc<Shared>, victims: Vec<Seq>) -> Event {
    let held = shared.doors.seat.round().await.map(Arc::new);
    let _reading = shared.begin_reading();
    let mut gathered = Gathered { cargo: Some(Cargo::default()), ..Gathered::new(held, victims, Seq(0)) };
    if let Err(error) = fill(&shared, &mut gathered).await {
        gathered.failed = Some(error);
    }
    Event::Gathered(gathered)
}

async fn fill(shared: &Shared, gathered: &mut Gathered) -> Result<(), StoreError> {
    let (settled, kept, carriers) = {
        let ledger = shared.ledger();
        let space = ledger.log().map.space();
        (ledger.versions_settled(), space.durable().kept.clone(), space.carriers().clone())
    };
    if settled.is_none() {
        return Ok(());
    }
    let victims = gather::read_heads(shared, gathered).await?;
    let needed = match find_needed(shared, &kept, &carriers, &victims).await {
        Ok(needed) => needed,
        Err(Unread::Store(error)) => return Err(error),
        // One of them went meanwhile.
        Err(Unread::Damaged(_)) if shared.ledger().versions_settled() != settled => return Ok(()),
        Err(Unread::Damaged(why)) => {
            // Not the victims' fault, but what is needed of them cannot be known.
            victims.iter().for_each(|victim| gather::note_damage(gathered, shared, victim.seq, &why));
            return Ok(());
        }
    };
    {
        let ledger = shared.ledger();
        if ledger.versions_settled() != settled {
            return Ok(());
        }
        gathered.as_of = ledger.log().committed();
    }
    let doubled = doubled(&needed);
    let victims: Vec<Victim> = victims.into_iter().filter(|victim| !doubled.contains(&victim.seq)).collect();
    let mut carried: Vec<Seq> = victims.iter().map(|victim| victim.seq).collect();
    if needed.is_empty() {
        gathered.empty.extend(carried);
        return Ok(());
    }
    let live: Live = victims
        .iter()
        .filter_map(|victim| Some((victim.seq, gather::located(victim, needed.get(&victim.seq)?))))
        .collect();
    gather::read_all(shared, gathered, victims, live).await?;
    carried.retain(|seq| !gathered.damaged.contains(seq));
    carried.sort_unstable();
    let versions = kept.iter().map(|version| version.seq).collect();
    gathered.cargo = Some(Cargo { victims: carried, versions, as_of: gathered.as_of });
    Ok(())
}

/// Step 2.
async fn find_needed(
    shared: &Shared,
    kept: &[KeptVersion],
    carriers: &Carriers,
    victims: &[Victim],
) -> Result<HashMap<Seq, Vec<Extent>>, Unread> {
    let mut sought = Sought { rest: gather::extents_of(victims), needed: HashMap::new() };
    let mut pages = Pages::default();
    let mut found = Vec::new();
    while found.len() < sought.rest.len() {
        let (done, need) = {
            let ledger = shared.ledger();
            let named = |extent| ledger.log().map.named_with(extent, &pages.0);
            gather::look_up(&sought.rest[found.len()..], named, |_, _, placed| found.push(placed))
        };
        pages.make_room(done);
        if !need.0.is_empty() {
            pages.0.extend(shared.fetch_pages(need).await?);
        }
    }
    sought.take(found, carriers);
    for version in
        kept.iter().rev().filter(|version| victims.iter().any(|victim| carriers.birth(victim.seq) <= version.seq))
    {
        if sought.rest.is_empty() {
            break;
        }
        let version = map_of(shared, version).await?;
        let (mut pages, mut found) = (Pages::default(), Vec::new());
        while found.len() < sought.rest.len() {
            let named = |extent| version.map.named_with(extent, &pages.0);
            let (done, NeedPages(need)) =
                gather::look_up(&sought.rest[found.len()..], named, |_, _, placed| found.push(placed));
            pages.make_room(done);
            let info = |at: &PageRef| version.checkpoints.get(&at.checkpoint).copied().unwrap_or_default();
            let wanted: Vec<(PageAt, CheckpointInfo)> = need.into_iter().map(|page| (page, info(&page.at))).collect();
            if !wanted.is_empty() {
                pages.0.extend(shared.doors.objects.pages(wanted).await?);
            }
            tokio::task::yield_now().await;
        }
        sought.take(found, carriers);
    }
    Ok(sought.needed)
}

/// Victims that have a block which another one has that stays. There are some after a rollback, when versions of two pasts have lost those between them. They are
/// carried another time.
fn doubled(needed: &HashMap<Seq, Vec<Extent>>) -> BTreeSet<Seq> {
    let mut parts: Vec<(Extent, Seq)> =
        needed.iter().flat_map(|(seq, parts)| parts.iter().map(|part| (*part, *seq))).collect();
    parts.sort_unstable_by_key(|(part, seq)| (part.start, *seq));
    let (mut doubled, mut end) = (BTreeSet::new(), BlockIndex(0));
    for (part, seq) in parts.into_iter() {
        match part.start < end {
            true => drop(doubled.insert(seq)),
            false if !doubled.contains(&seq) => end = part.end(),
            false => {}
        }
    }
    doubled
}

impl Sought {
    /// What one map says of all that is left.
    fn take(&mut self, found: Vec<Vec<(Extent, Placement)>>, carriers: &Carriers) {
        let mut rest = Vec::new();
        for ((_, victim), placed) in self.rest.iter().zip(found) {
            for (part, placement) in placed {
                match placement {
                    Placement::Data(location) if carriers.holder(location.frame.seq) == *victim => {
                        self.needed.entry(*victim).or_default().push(part)
                    }
                    _ => rest.push((part, *victim)),
                }
            }
        }
        self.rest = rest;
    }
}

/// The map of a version.
async fn map_of(shared: &Shared, version: &KeptVersion) -> Result<Arc<VersionMap>, Unread> {
    if let Some(have) = shared.version_maps.lock().get(&version.seq) {
        return Ok(have.clone());
    }
    let doors = &shared.doors;
    let read = read_root(&*doors.background, &doors.keys, &doors.sealer, version.seq, "a snapshot").await;
    let Root { runs, checkpoints, .. } = read.map_err(|error| match error {
        VolumeError::Store { source, .. } => gather::store_failed(source),
        damaged => Unread::Damaged(damaged.to_string()),
    })?;
    let map = ExtentMap::restore(version.blocks, runs, Table::default(), Space::default());
    let map = Arc::new(VersionMap { map, checkpoints: checkpoints.into_iter().collect() });
    let kept: Vec<Seq> = shared.versions().iter().map(|version| version.seq).collect();
    let mut maps = shared.version_maps.lock();
    maps.retain(|seq, _| kept.contains(seq));
    if maps.len() < MAPS_MAX {
        maps.insert(version.seq, map.clone());
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_have_one_block_one_waits() {
        let needed = |of: &[(u64, &[(u64, u64)])]| {
            let parts = |parts: &[(u64, u64)]| parts.iter().map(|(start, count)| Extent::new(*start, *count)).collect();
            of.iter().map(|(seq, of)| (Seq(*seq), parts(of))).collect::<HashMap<Seq, Vec<Extent>>>()
        };
        assert!(doubled(&needed(&[(1, &[(0, 4), (9, 1)]), (2, &[(4, 5)])])).is_empty());
        assert_eq!(
            doubled(&needed(&[(1, &[(0, 4)]), (2, &[(3, 1), (20, 9)]), (3, &[(5, 2), (25, 1)])])),
            [Seq(2)].into()
        );
        assert_eq!(doubled(&needed(&[(1, &[(5, 1)]), (2, &[(5, 1)]), (3, &[(5, 1)])])), [Seq(2), Seq(3)].into());
    }
}
