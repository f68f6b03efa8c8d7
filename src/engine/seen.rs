//! What this server saw of a volume last, kept beside its journal: so that it notices when somebody puts an older copy of
//! the store in place of the present one. Each old object is genuine, so no tag tells.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::seal::Seal;
use crate::disk::Disk;
use crate::disk::note::Note;
use crate::engine::unbroken::Line;
use crate::units::{ChangeNo, Epoch, Seq};

/// A state of the volume that was in the store. None of its numbers ever becomes smaller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The newest epoch.
    pub epoch: u64,
    /// The last slot of the log that took effect.
    pub committed: u64,
    /// The last change in the log.
    pub covers: u64,
    /// The number of the description.
    pub description: u64,
    /// How the volume is sealed.
    pub seal: Seal,
    /// Since which epoch nothing acknowledged was lost, as far as this server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Line>,
}

const NOTE: Note = Note("seen");

impl Seen {
    /// A state.
    pub fn new(epoch: Epoch, committed: Seq, covers: ChangeNo, description: u64, seal: Seal) -> Seen {
        Seen { epoch: epoch.0, committed: committed.0, covers: covers.0, description, seal, line: None }
    }

    /// What of `now` is older than this; nothing if all is as new.
    pub fn newer_than(&self, now: &Seen) -> Option<String> {
        let pairs = [
            ("epoch", self.epoch, now.epoch),
            ("segment", self.committed, now.committed),
            ("change", self.covers, now.covers),
            ("description", self.description, now.description),
        ];
        if self.seal != Seal::Blake3 && now.seal == Seal::Blake3 {
            return Some(format!("this server saw it sealed with {}, and now it is not encrypted", self.seal));
        }
        let older = pairs.into_iter().find(|(_, seen, now)| now < seen);
        older
            .map(|(what, seen, now)| format!("this server saw it at {what} {seen}, and the store ends at {what} {now}"))
    }
}

/// What was seen last; nothing on a server that never had the volume. Files of which none is whole are an error.
pub async fn read(disk: &dyn Disk) -> io::Result<Option<Seen>> {
    NOTE.read(disk).await
}

/// Keeps what was seen now in place of what was seen before.
pub async fn write(disk: &Arc<dyn Disk>, seen: &Seen) -> io::Result<()> {
    NOTE.write(&**disk, seen).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(epoch: u64, committed: u64, covers: u64, description: u64) -> Seen {
        Seen { epoch, committed, covers, description, seal: Seal::ChaCha20Poly1305, line: None }
    }

    #[test]
    fn any_number_that_went_back_is_noticed() {
        let last = seen(3, 40, 500, 2);
        assert_eq!(last.newer_than(&last), None);
        assert_eq!(last.newer_than(&seen(4, 41, 501, 3)), None);
        for older in [seen(2, 41, 501, 3), seen(4, 39, 501, 3), seen(4, 41, 499, 3), seen(4, 41, 501, 1)] {
            assert!(last.newer_than(&older).is_some(), "{older:?}");
        }
        let plain = Seen { seal: Seal::Blake3, ..seen(4, 41, 501, 3) };
        assert!(last.newer_than(&plain).unwrap().contains("not encrypted"));
        assert_eq!(
            last.newer_than(&seen(3, 40, 90, 2)).unwrap(),
            "this server saw it at change 500, and the store ends at change 90"
        );
    }
}
