//! The head becomes a version that is kept: one checkpoint, which has that version's map.
//!
//! Nobody changes the volume meanwhile: this is done between its opening and its first change. What the head was is kept as the newest version before,
//! so nothing of it is lost, and all of it is *held* by that one. What the version needs is needed once more, by the head: it is counted a second time, since
//! the deaths of the first time may be held already. So the counts stay what they are to be: for each block, how many of head and versions in a row need it.
//!
//! If it breaks off anywhere, the checkpoint is not there, and the volume is what it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::device::DeviceError;
use crate::engine::core::End;
use crate::engine::shared::Shared;
use crate::error::{Result, VolumeError};
use crate::format::root::{CheckpointInfo, Root};
use crate::map::layout::LaidOut;
use crate::map::walk::Walk;
use crate::map::{Deaths, MapPage, NeedPages, PageRef, PageWriter, Run, Table};
use crate::reading::roots::read_root;
use crate::space::KeptVersion;
use crate::units::Seq;
use crate::upkeep::checkpoint;

/// Bytes in memory of pages that were read for the walk and stay for its next step.
const LOADED_MEMORY: usize = 16 << 20;

/// Makes that version the head. The caller has just opened the volume, and everything that it is now is kept as its newest version.
pub(crate) async fn roll_back(shared: &Shared, version: &KeptVersion) -> Result<()> {
    let doors = &shared.doors;
    let Root { runs, checkpoints, .. } =
        read_root(&*doors.store, &doors.keys, &doors.sealer, version.seq, "the snapshot").await?;
    let revived = everything(shared, &runs, &[], &checkpoints.into_iter().collect()).await?;
    let (before, tables, of_head) = {
        let ledger = shared.ledger();
        let map = &ledger.log().map;
        (map.runs().to_vec(), map.tables().cloned().collect::<Vec<Table>>(), ledger.checkpoints().clone())
    };
    let deaths = everything(shared, &before, &tables, &of_head).await?;
    let mut plan = shared.ledger().begin_checkpoint();
    let seq = plan.root.seq;
    plan.map.table.revived = revived.iter().collect();
    let keep = doors.seat.map_memory() as usize / 16;
    let laid_out = LaidOut { runs, deaths, writer: PageWriter::new(seq, keep), has_begun_all: false };
    let written = async {
        let (folded, laid_out) = checkpoint::fold(shared, plan.map.table, laid_out).await?;
        checkpoint::write(shared, plan.root, plan.checkpoints, plan.bytes, folded, laid_out).await
    };
    written.await.map_err(|end: End| DeviceError::from(end))?;
    checkpoint::tidy(shared).await;
    checkpoint::doom(shared).await;
    shared.remember(seq).await;
    Ok(())
}

/// How many blocks of each segment are counted as live because of these layers: those that they show, and those that one hides and nobody has counted as
/// dead yet. The tables are newest first.
async fn everything(
    shared: &Shared,
    runs: &[Run],
    tables: &[Table],
    checkpoints: &BTreeMap<Seq, CheckpointInfo>,
) -> Result<Deaths> {
    let (mut all, mut loaded) = (Deaths::default(), HashMap::<PageRef, Arc<MapPage>>::new());
    let mut walk = Walk::new(runs, tables.iter());
    loop {
        match walk.next(&|at: &PageRef| loaded.get(at).map(|page| &**page)) {
            Ok(None) => return Ok(all),
            Ok(Some(stretch)) => {
                all.add(&stretch.deaths);
                stretch.entries.iter().for_each(|entry| all.note(entry));
                if loaded.values().map(|page| page.memory()).sum::<usize>() > LOADED_MEMORY {
                    loaded.clear();
                }
            }
            Err(NeedPages(need)) => {
                let info = |at: &PageRef| checkpoints.get(&at.checkpoint).copied().unwrap_or_default();
                let wanted = need.into_iter().map(|page| (page, info(&page.at))).collect();
                loaded.extend(shared.doors.objects.pages(wanted).await.map_err(VolumeError::from)?);
            }
        }
        tokio::task::yield_now().await;
    }
}
