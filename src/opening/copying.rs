//! Copying a snapshot into a volume of another store, and only what differs from the last one that both have.
//!
//! The copy is a volume of its own: what is copied is written to it as a client would, and then it gets a snapshot of the same name and time. By these two a snapshot
//! is known on both sides. Its description says whose copy it is, and which snapshot is under way: so what broke off goes on, and nothing is written over a volume that
//! is something else. What the copy has that its last snapshot has not was written by that: of the same snapshot it is not copied again; of another one it is copied
//! anew, again and again until one is whole. Whoever plans has the copy open, so that what a journal had is in its store.

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::device::{Allocation, Device, DeviceError};
use crate::error::{Result, VolumeError};
use crate::format::meta::{CopiedSnapshot, CopyOf, Meta, VolumeName};
use crate::keyring::Keyring;
use crate::map::Ranges;
use crate::opening::description::Description;
use crate::opening::difference::difference;
use crate::opening::scan::Source;
use crate::outside::Random;
use crate::space::KeptVersion;
use crate::store::Store;
use crate::units::{BlockCount, BlockIndex};

/// Bytes that are read at once, and so many reads.
const PIECE: u64 = 1 << 20;
const PARALLEL: usize = 16;

/// Runs of the snapshot that are looked at together.
const RUNS: usize = 256;

/// What of a snapshot is to be copied.
#[derive(Debug)]
pub struct Plan {
    /// The snapshot that both have, if there is one.
    pub since: Option<String>,
    /// Blocks of which the copy may have something else.
    pub blocks: Ranges,
    /// What broke off before goes on.
    pub goes_on: bool,
    /// What the description of the copy says meanwhile: that snapshot, if nothing else is there than what is copied of it.
    pub under_way: CopiedSnapshot,
}

/// What is known of a snapshot on both sides.
pub fn copied(version: &KeptVersion) -> CopiedSnapshot {
    let label = &version.label;
    CopiedSnapshot { name: label.name.clone(), taken_unix_millis: label.taken_unix_millis }
}

/// Refuses a volume in that store that is no copy of the other one.
pub fn refuse_others<'a>(from: &Source, to: &'a Meta, store: &str) -> Result<&'a CopyOf> {
    match &to.copy {
        None => Err(no_copy(&to.name, store, "is no copy")),
        Some(copy) if copy.uuid != from.meta.uuid => Err(no_copy(&to.name, store, "is a copy of another volume")),
        Some(copy) => Ok(copy),
    }
}

fn no_copy(name: &VolumeName, store: &str, why: &str) -> VolumeError {
    VolumeError::Invalid(format!("volume {name} in {store} {why}; give another name with --as"))
}

/// Finds out what is to be copied of that version; nothing if the copy has it. Refuses a volume that is no copy of it, or was changed by others. The caller has the
/// copy open, and all that was written to it is in its store.
pub async fn plan(from: &Source, version: &KeptVersion, to: &Source) -> Result<Option<Plan>> {
    let copy = refuse_others(from, &to.meta, &to.store.url())?;
    let (name, target) = (&to.meta.name, to.store.url());
    let refuse = |why: &str| no_copy(name, &target, why);
    let theirs = to.versions().await?;
    let scan = to.scan().await?;
    let has = |version: &KeptVersion| theirs.iter().find(|their| copied(their) == copied(version));
    if has(version).is_some() {
        return Ok(None);
    }
    let ours = from.versions().await?;
    let common = ours.iter().rev().find_map(|version| has(version).map(|their| (version, their)));
    if let Some((newer, _)) = common.filter(|(newer, _)| newer.seq > version.seq) {
        return Err(VolumeError::Invalid(format!(
            "the copy in {target} has snapshot {} of volume {} already, which is newer than {}: what is older is not copied into it",
            newer.label.name, from.meta.name, version.label.name
        )));
    }
    if common.is_none() && !theirs.is_empty() {
        return Err(refuse(&format!("has no snapshot that volume {} still has", from.meta.name)));
    }
    let end = |source: &Source, blocks: BlockCount| {
        BlockIndex(blocks.0.max(source.meta.block_size.block_of(source.meta.size).0))
    };
    let (before, their_before) = match common {
        None => (None, None),
        Some((ours, theirs)) => (Some(from.version(ours).await?), Some(to.version(theirs).await?)),
    };
    let since = ranges(difference(to, (their_before, scan), end(to, BlockCount(0))).await?);
    let (under_way, this) = (copy.under_way.as_ref(), copied(version));
    let goes_on = under_way == Some(&this);
    if under_way.is_none() && since.iter().next().is_some() {
        return Err(refuse("was changed by somebody else since its last snapshot"));
    }
    // A clone shows more than its own map has.
    let mut blocks = match from.meta.parent.is_some() && before.is_none() {
        true => whole(version.blocks),
        false => ranges(difference(from, (before, from.version(version).await?), end(from, version.blocks)).await?),
    };
    match goes_on {
        true => since.iter().for_each(|done| blocks.remove(done)),
        false => since.iter().for_each(|stale| blocks.insert(stale)),
    }
    blocks.remove(version.blocks.0..u64::MAX);
    // What another one has left is told from what this one copies only once this one is whole.
    let of = if under_way.is_none() || goes_on { this } else { CopiedSnapshot::default() };
    Ok(Some(Plan { since: common.map(|(ours, _)| ours.label.name.clone()), blocks, goes_on, under_way: of }))
}

fn whole(blocks: BlockCount) -> Ranges {
    let mut all = Ranges::default();
    all.insert(0..blocks.0);
    all
}

fn ranges(found: Vec<(crate::units::Extent, Allocation)>) -> Ranges {
    let mut all = Ranges::default();
    found.into_iter().for_each(|(extent, _)| all.insert(extent.start.0..extent.end().0));
    all
}

/// Says in its description whose copy a volume is, and which snapshot is under way.
pub async fn mark(
    store: &dyn Store,
    description: &Description,
    copy: CopyOf,
    random: &Random,
    keyring: Option<&Keyring>,
) -> Result<()> {
    let meta = Meta { copy: Some(copy), ..description.meta.clone() };
    description.replace(store, random, &meta, keyring).await
}

/// What is to be written of the bytes of a plan.
#[derive(Debug, Default)]
pub struct Work {
    /// Ranges with data: offset and length.
    pub data: Vec<(u64, u64)>,
    /// Ranges without.
    pub empty: Vec<(u64, u64)>,
}

impl Work {
    /// Looks into the maps of the snapshot.
    pub async fn of(plan: &Plan, from: &dyn Device) -> std::result::Result<Work, DeviceError> {
        let info = from.info();
        let (unit, mut work) = (u64::from(info.block_size), Work::default());
        for run in plan.blocks.iter() {
            let (mut at, end) = (run.start * unit, (run.end * unit).min(info.size));
            while at < end {
                for run in from.extents(at, end - at, RUNS).await? {
                    let list = if run.allocation == Allocation::Data { &mut work.data } else { &mut work.empty };
                    match list.last_mut() {
                        Some((offset, len)) if *offset + *len == at => *len += run.len,
                        _ => list.push((at, run.len)),
                    }
                    at += run.len;
                }
            }
        }
        Ok(work)
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.data.iter().map(|(_, len)| len).sum()
    }

    /// Does it; `tell` learns of all bytes of data that were written so far.
    pub async fn carry_out(
        self,
        from: &dyn Device,
        to: &dyn Device,
        tell: impl Fn(u64),
    ) -> std::result::Result<(), DeviceError> {
        for (offset, len) in self.empty {
            to.trim(offset, len, false).await?;
        }
        let pieces = self.data.into_iter().flat_map(|(offset, len)| {
            let starts = (offset..offset + len).step_by(PIECE as usize);
            starts.map(move |start| (start, PIECE.min(offset + len - start)))
        });
        let reads = pieces.map(|(offset, len)| async move { Ok((offset, from.read(offset, len as u32).await?)) });
        let mut done = 0;
        stream::iter(reads)
            .buffered(PARALLEL)
            .try_for_each(|(offset, pieces)| {
                let len = pieces.len();
                done += len;
                let done = done;
                let tell = &tell;
                async move {
                    to.write(offset, pieces.concat().into(), false).await?;
                    tell(done);
                    Ok(())
                }
            })
            .await
    }
}
