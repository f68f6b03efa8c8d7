//! Bringing back what redundancy allows, and nothing else.
//!
//! | damage | what has it still | what is done |
//! | --- | --- | --- |
//! | a segment, or a frame of it | the journal of this server | opening accepts its changes again |
//! | | the cache on the local disk, whose frames are proven | what is read from it is written again |
//! | the newest checkpoint | an older one and the whole log after it | the damaged one is deleted |
//!
//! The caller has taken the volume, or nobody can: no other server has it open.

use std::sync::Arc;

use super::{ByteRange, Report};
use crate::device::{Device, DeviceError};
use uuid::Uuid;

use crate::engine::options::Options;
use crate::error::{Holder, Result, VolumeError};
use crate::format::meta::VolumeName;
use crate::format::places::{PLACES_MAX, place};
use crate::keyring::Secrets;
use crate::map::Ranges;
use crate::opening::scan::Source;
use crate::store::{Key, Store};
use crate::units::FRAME_BYTES_MAX;

/// Deletes the newest checkpoint if the check found that it cannot be read and that nothing is lost without it. Nobody can open
/// the volume while it is there, so nobody writes another one meanwhile but a server that has the volume open, and that may
/// delete what the older checkpoint needs: refuses if a server did not close it, unless that one `is_gone`. Returns what it
/// deleted.
pub async fn drop_newest_checkpoint(
    store: &Arc<dyn Store>,
    name: &VolumeName,
    secrets: &Secrets,
    report: &Report,
    is_gone: impl Fn(Uuid) -> bool,
) -> Result<Option<Key>> {
    let Some(older) = report.instead_of_newest else { return Ok(None) };
    if !report.lost.is_empty() {
        return Ok(None);
    }
    let source = Source::of(store.clone(), name, &Options::default(), None, secrets).await?;
    let scan = source.scan_after(crate::units::Seq(older)).await?;
    if let Some((_, fence)) = scan.fence.as_ref().filter(|(_, fence)| !scan.closed && !is_gone(fence.server)) {
        return Err(VolumeError::Invalid(format!(
            "the newest checkpoint of volume {name} is damaged and could be dropped, but {} did not close the volume; stop that \
             server, or let it write the next checkpoint; if it is gone for good, add --takeover",
            Holder::of(fence)
        )));
    }
    match scan.listed.last() {
        Some(newest) if newest.0 > older && scan.committed >= *newest => {
            let key = source.keys.checkpoint(*newest);
            let failed = || VolumeError::store(format!("deleting {key}"));
            let places = (0..PLACES_MAX).map(|n| place(&key, n)).collect::<std::result::Result<Vec<Key>, _>>();
            store.delete(&places.map_err(failed())?).await.map_err(failed())?;
            Ok(Some(key))
        }
        _ => Ok(None),
    }
}

/// Writes again what of these ranges can be read from somewhere: from what the journal brought back, or from the cache.
/// Returns what was written. The volume is served to nobody.
pub async fn write_again(device: &dyn Device, lost: &[ByteRange]) -> std::result::Result<Vec<ByteRange>, DeviceError> {
    let block = u64::from(device.info().block_size);
    let mut written = Ranges::default();
    for range in lost {
        let end = range.offset + range.length;
        let mut at = range.offset;
        while at < end {
            // The blocks of one frame share their fate, but the blocks of two need not.
            let piece = (u64::from(FRAME_BYTES_MAX) - at % u64::from(FRAME_BYTES_MAX)).min(end - at);
            if !again(device, at, piece, &mut written).await? {
                for at in (at..at + piece).step_by(block as usize) {
                    again(device, at, block, &mut written).await?;
                }
            }
            at += piece;
        }
    }
    device.flush().await?;
    Ok(super::byte_ranges(&written, 1))
}

/// Whether these bytes could be read, and are written again.
async fn again(device: &dyn Device, at: u64, len: u64, written: &mut Ranges) -> std::result::Result<bool, DeviceError> {
    let Ok(pieces) = device.read(at, len as u32).await else { return Ok(false) };
    device.write(at, pieces.concat().into(), false).await?;
    written.insert(at..at + len);
    Ok(true)
}
