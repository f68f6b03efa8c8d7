//! A volume gets the snapshots of another one, in another store: see [`copying`](crate::opening::copying).

use std::cmp::Ordering;

use super::{Volume, VolumeError};
use crate::device::Device;
use crate::engine::options::Options;
use crate::format::meta::CopyOf;
use crate::opening::copying::{self, Plan, Work};
use crate::opening::scan::Source;
use crate::opening::{description, resize};
use crate::space::{KeptVersion, Label};

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The snapshot that both had, if there was one.
    pub since: Option<String>,
    /// Bytes of data.
    pub bytes: u64,
}

impl Volume {
    /// Copies a snapshot into this volume, which nobody else writes to, and keeps it; nothing if it has it. `begins` learns what is to be copied, and how many bytes
    /// of data that is; `tell` how many of them are there. What breaks off goes on when it is copied again.
    pub async fn copy_in(
        &self,
        from: &Source,
        version: &KeptVersion,
        past: &dyn Device,
        begins: impl FnOnce(&Plan, u64),
        tell: impl Fn(u64),
    ) -> Result<Option<Copied>, VolumeError> {
        // What a broken one left in the journal here counts, too.
        self.save().await?;
        let done = CopyOf { uuid: from.meta.uuid, under_way: None };
        let this = self.described().await?;
        let Some(plan) = copying::plan(from, version, &this).await? else {
            if this.meta.copy.as_ref() != Some(&done) {
                self.mark(done).await?;
            }
            return Ok(None);
        };
        let work = Work::of(&plan, past).await?;
        let bytes = work.bytes();
        begins(&plan, bytes);
        self.mark(CopyOf { under_way: Some(plan.under_way.clone()), ..done.clone() }).await?;
        self.fit(from.meta.block_size.bytes_in(version.blocks)).await?;
        work.carry_out(past, self, tell).await?;
        self.keep_copied(Label { clones: Vec::new(), keep_until_unix_millis: 0, ..version.label.clone() }).await?;
        self.mark(done).await?;
        Ok(Some(Copied { since: plan.since, bytes }))
    }

    /// As it stands in its store.
    async fn described(&self) -> Result<Source, VolumeError> {
        let doors = &self.shared.doors;
        let found = description::load(&*doors.store, &self.meta().name).await?;
        Ok(Source::unlocked(
            doors.store.clone(),
            doors.tiers.clone(),
            found,
            doors.sealer.clone(),
            &Options::default(),
            None,
        ))
    }

    async fn mark(&self, copy: CopyOf) -> Result<(), VolumeError> {
        let doors = &self.shared.doors;
        let found = description::load(&*doors.store, &self.meta().name).await?;
        copying::mark(&*doors.store, &found, copy, &doors.random, doors.sealer.keyring()).await?;
        self.reload().await
    }

    /// It is as large as the snapshot: what is cut off, and comes back later, is zero in both.
    async fn fit(&self, size: u64) -> Result<(), VolumeError> {
        match size.cmp(&self.shared.size()) {
            Ordering::Equal => Ok(()),
            Ordering::Less => self.shrink(size, true).await,
            Ordering::Greater => {
                let doors = &self.shared.doors;
                let found = description::load(&*doors.store, &self.meta().name).await?;
                resize::grow(&*doors.store, &doors.random, &found, &doors.sealer, size).await?;
                self.reload().await
            }
        }
    }
}
