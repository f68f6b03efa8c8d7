//! Memory for keys: a page of its own, locked into RAM if the system allows it, zeroed before it is given back.

use std::fmt;
use std::sync::Once;

use zeroize::Zeroize;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A key in locked memory. Not shown, not copied; compare keys by what they open.
pub struct Locked {
    // Dropped first: the page is unlocked before it is freed.
    _lock: Option<region::LockGuard>,
    page: Box<Page>,
}

/// So large and so aligned that nothing else shares the locked page: locks do not count, the first unlock wins.
#[repr(C, align(4096))]
struct Page {
    key: [u8; KEY_BYTES],
    _rest: [u8; 4096 - KEY_BYTES],
}

impl Locked {
    /// Takes the key out of `key`, which is zeroed.
    pub fn take(key: &mut [u8; KEY_BYTES]) -> Locked {
        let mut page = Box::new(Page { key: [0; KEY_BYTES], _rest: [0; 4096 - KEY_BYTES] });
        let lock = region::lock(&raw const *page, size_of::<Page>()).inspect_err(warn_once).ok();
        page.key.copy_from_slice(key);
        key.zeroize();
        Locked { _lock: lock, page }
    }

    /// The key.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.page.key
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.page.key.zeroize();
    }
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked")
    }
}

fn warn_once(error: &region::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!("keys cannot be locked into memory and may be swapped out ({error}); raise RLIMIT_MEMLOCK, or encrypt the swap");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_moved_into_a_page_of_its_own_and_not_shown() {
        let mut source = [7; KEY_BYTES];
        let locked = Locked::take(&mut source);
        assert_eq!((source, *locked.bytes()), ([0; KEY_BYTES], [7; KEY_BYTES]));
        assert_eq!(std::ptr::from_ref(locked.bytes()).addr() % 4096, 0);
        assert_eq!(format!("{locked:?}"), "Locked");
    }
}
