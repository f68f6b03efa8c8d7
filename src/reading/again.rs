//! Reading again what did not prove itself. A bit may flip on the way from the store, where nothing but our tags would notice;
//! then an object that is whole looks damaged, torn, or somebody else's. Each of these ends a volume, or its log, so none
//! is believed after one read. What proves itself (a tag, or every byte of ours) is believed at once.

use bytes::Bytes;

use crate::error::VolumeError;
use crate::store::{ErrorKind, Key, Store, StoreError};

/// So many reads must agree on what none of them proves.
pub(crate) const READS: usize = 3;

/// Reads until something proves itself, or `READS` times. Where reads disagree, damage counts: it is refused, while what is torn is
/// given up.
pub(crate) async fn until_proven<T, F>(read: impl Fn() -> F, is_torn: impl Fn(&T) -> bool) -> Result<T, VolumeError>
where
    F: Future<Output = Result<T, VolumeError>>,
{
    let mut found = read().await;
    for _ in 1..READS {
        match &found {
            Ok(it) if !is_torn(it) => return found,
            Err(error) if !is_damage(error) => return found,
            _ => {}
        }
        let next = read().await;
        if !(is_damage_of(&found) && next.as_ref().is_ok_and(&is_torn)) {
            found = next;
        }
    }
    found
}

fn is_damage_of<T>(found: &Result<T, VolumeError>) -> bool {
    found.as_ref().is_err_and(is_damage)
}

fn is_damage(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Corrupt { .. })
}

/// All bytes of an object: as soon as they prove themselves, or when `READS` reads in a row brought the same. Fails as a store does
/// that is worth another try if that does not happen.
pub(crate) async fn settled(
    store: &dyn Store,
    key: &Key,
    is_proven: impl Fn(&Bytes) -> bool + Send,
) -> Result<Bytes, StoreError> {
    let mut found = store.get(key).await?;
    let mut same = 1;
    for _ in 0..READS * READS {
        if same == READS || is_proven(&found) {
            return Ok(found);
        }
        let next = store.get(key).await?;
        same = if next == found { same + 1 } else { 1 };
        found = next;
    }
    let why = format!("reading {key} brings other bytes each time: something on the way to the store changes them");
    Err(StoreError::new(ErrorKind::Retryable, why))
}
