//! The beat of a member: its key and its content.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Key;

/// Where pools lie in a store. No volume can have that name.
const POOLS: &str = ".ashlar-pool";

/// The most characters of a pool's name.
pub const POOL_NAME_MAX: usize = 64;

/// The name of a pool: 1 to [`POOL_NAME_MAX`] letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolName(String);

impl PoolName {
    /// Checks a name.
    pub fn new(name: &str) -> Option<PoolName> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        ((1..=POOL_NAME_MAX).contains(&name.len()) && name.bytes().all(is_good)).then(|| PoolName(name.to_owned()))
    }

    /// What the keys of all beats begin with.
    pub fn prefix(&self) -> String {
        format!("{POOLS}/{}/", self.0)
    }

    /// The key of a beat.
    pub fn key(&self, member: Uuid, beat: u64) -> Option<Key> {
        Key::new(format!("{}{member}/{beat:016x}", self.prefix())).ok()
    }

    /// Whose beat that is, and which. `None` if it is none.
    pub fn parse(&self, key: &Key) -> Option<(Uuid, u64)> {
        let (member, beat) = key.as_str().strip_prefix(&self.prefix())?.split_once('/')?;
        let parsed = (member.parse().ok()?, u64::from_str_radix(beat, 16).ok()?);
        (self.key(parsed.0, parsed.1)? == *key).then_some(parsed)
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a member says in a beat: a JSON object. Fields that are not known are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The name of its host.
    pub host: String,
    /// The volumes that it has, or is about to open.
    pub volumes: BTreeSet<String>,
    /// The volumes that did not open here, for other reasons than that another server has them: better another one has them.
    #[serde(default)]
    pub unable: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_beat_it_is() {
        let pool = PoolName::new("rack-1").unwrap();
        let key = pool.key(Uuid::from_u128(7), 258).unwrap();
        assert_eq!(key.as_str(), ".ashlar-pool/rack-1/00000000-0000-0000-0000-000000000007/0000000000000102");
        assert_eq!(pool.parse(&key), Some((Uuid::from_u128(7), 258)));
        for stranger in [
            ".ashlar-pool/rack-1/x/0000000000000102",
            ".ashlar-pool/rack-1/00000000-0000-0000-0000-000000000007/102",
            ".ashlar-pool/rack-2/00000000-0000-0000-0000-000000000007/0000000000000102",
        ] {
            assert_eq!(pool.parse(&Key::new(stranger).unwrap()), None, "{stranger}");
        }
        for bad in ["", "a/b", "a.b", "ä", &"a".repeat(65)] {
            assert_eq!(PoolName::new(bad), None, "{bad}");
        }
    }
}
