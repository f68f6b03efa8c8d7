//! The places of one object in a store. An object has one key; if the store kept only the first part of it (a PUT whose
//! connection broke), what is there stays as it is, and the object is created at the next place: `<key>.1`, `<key>.2`, …
//! The first *whole* object among the places is the object; see [`crate::engine::slot`] for why that is safe.

use crate::store::{Key, StoreError};

/// The places that an object can have: its key, and so many less one beside it. A store that cuts off this many uploads
/// of one object in a row is of no use.
pub(crate) const PLACES_MAX: u8 = 8;

/// The places that a fence can have. It is small, and gets through where segments are cut; with places of its own it takes a slot
/// whose others are all torn, and the volume goes on.
pub(crate) const FENCE_PLACES_MAX: u8 = 16;

/// The key of the `n`-th place of an object; the one of place 0 is the object's own.
pub(crate) fn place(key: &Key, n: u8) -> Result<Key, StoreError> {
    match n {
        0 => Ok(key.clone()),
        n => Key::new(format!("{key}.{n}")),
    }
}

/// The object's own key and the number of the place, if `key` is one of its further places.
pub(crate) fn further_place(key: &Key) -> Option<(Key, u8)> {
    let (own, n) = key.as_str().rsplit_once('.')?;
    let n = n.parse().ok().filter(|n| (1..FENCE_PLACES_MAX).contains(n))?;
    let own = Key::new(own).ok()?;
    (place(&own, n).ok()? == *key).then_some((own, n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_whose_it_is() {
        let key = Key::new("v/segments/07/0000000000000007").unwrap();
        assert_eq!(place(&key, 0).unwrap(), key);
        for n in 1..FENCE_PLACES_MAX {
            let there = place(&key, n).unwrap();
            assert_eq!(there.as_str(), format!("v/segments/07/0000000000000007.{n}"));
            assert_eq!(further_place(&there), Some((key.clone(), n)));
        }
        for other in ["v/meta/1", "v/a.0", "v/a.16", "v/a.01", "v/a.x", "a.b/c"] {
            assert_eq!(further_place(&Key::new(other).unwrap()), None, "{other}");
        }
    }
}
