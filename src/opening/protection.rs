//! Snapshots that nobody deletes before a date: neither by name, nor by a schedule, nor with the volume.
//!
//! Each says so itself, where it is listed; who lets one go is stopped by the engine ([`Shared::change_versions`]). Who deletes the volume
//! looks at them before it takes the volume from anybody, and once more when nobody can take another one. If they cannot be read, because the
//! volume is damaged or locked, its description says until when it is to be kept: never earlier than any snapshot that was
//! acknowledged says, since it is put first.

use crate::engine::shared::Shared;
use crate::error::{Result, VolumeError};
use crate::format::meta::{Meta, VolumeName};
use crate::human::date;

impl Shared {
    /// Has the description say that snapshots may be kept until then, in milliseconds since 1970, if it does not; `generously` is what it
    /// then says, so that those which follow need not change it again.
    pub(crate) async fn protect_until(&self, until: u64, generously: u64) -> Result<()> {
        let _turn = self.description_turn().await?;
        if self.protected_until() >= until {
            return Ok(());
        }
        self.check_open()?;
        let found = self.follow_newest().await?;
        if found.meta.keep_until_unix_millis >= until {
            return Ok(());
        }
        let meta = Meta { keep_until_unix_millis: generously.max(until), ..found.meta.clone() };
        let keyring = self.doors.sealer.keyring();
        found.replace(&*self.doors.store, &self.doors.random, &meta, keyring).await?;
        self.follow_newest().await.map(drop)
    }
}

/// Refuses to delete a volume of which one of these snapshots, names and times until when they are kept, is not to go yet.
pub fn refuse_deletion<'a>(
    volume: &VolumeName,
    mut kept: impl Iterator<Item = (&'a str, u64)>,
    now_unix_millis: u64,
) -> Result<()> {
    match kept.find(|(_, until)| *until > now_unix_millis) {
        None => Ok(()),
        Some((name, until)) => Err(VolumeError::Invalid(format!(
            "volume {volume} has a snapshot {name} that is to be kept until {}; it cannot be deleted before",
            date(until)
        ))),
    }
}

/// The same of a volume whose snapshots cannot be read.
pub(super) fn refuse_unread(meta: &Meta, now_unix_millis: u64) -> Result<()> {
    match meta.keep_until_unix_millis > now_unix_millis {
        false => Ok(()),
        true => Err(VolumeError::Invalid(format!(
            "volume {} may have snapshots that are to be kept until {}, which cannot be read; it cannot be deleted before",
            meta.name,
            date(meta.keep_until_unix_millis)
        ))),
    }
}
