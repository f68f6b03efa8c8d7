//! Reading the root of a checkpoint that is known to be there.

use crate::codec::seal::Sealer;
use crate::error::{Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::places::{PLACES_MAX, place};
use crate::format::root::{self, Root};
use crate::reading::again;
use crate::reading::slots::{Head, read_head};
use crate::store::Store;
use crate::units::Seq;

/// The root of that checkpoint, which was whole once. `needed_by` is who needs it, for people.
pub async fn read_root(store: &dyn Store, keys: &Keys, sealer: &Sealer, seq: Seq, needed_by: &str) -> Result<Root> {
    let own = keys.checkpoint(seq);
    for n in 0..PLACES_MAX {
        let key = place(&own, n).map_err(VolumeError::store("reading checkpoints"))?;
        let read = || read_head(store, &key, |bytes| root::decode_checkpoint_and_total(sealer, seq, bytes));
        match again::until_proven(read, |head| matches!(head, Head::Torn)).await? {
            Head::There((root, _), _) => return Ok(root),
            Head::Torn => {}
        }
    }
    Err(VolumeError::Corrupt { key: own, why: format!("{needed_by} needs it, and only its first part is there") })
}
