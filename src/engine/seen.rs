//! What this server saw of a volume last, kept beside its journal: so that it notices when somebody puts an older copy of
//! the store in place of the present one. Each old object is genuine, so no tag tells.
//!
//! A file `seen-<n>` holds a JSON object, a newline, and the BLAKE3 of both as hexadecimal digits. The highest whole one
//! counts; the next is written, and gets its name once it is on the disk, before the one before it is removed.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::seal::Seal;
use crate::disk::Disk;
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

const PREFIX: &str = "seen-";
/// The next one, until it is whole.
const UNFINISHED: &str = "seen.unfinished";
const HASH_BYTES: usize = 64;
const LONGEST: usize = 4096;

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

    fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default(); // numbers and a word always have a JSON form
        bytes.push(b'\n');
        let hash = blake3::hash(&bytes).to_hex();
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Seen> {
        let (json, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
        (blake3::hash(json).to_hex().as_bytes() == hash).then(|| serde_json::from_slice(json).ok()).flatten()
    }
}

/// What was seen last; nothing on a server that never had the volume. Files of which none is whole are an error: a file gets its
/// name when it is whole and on the disk.
pub async fn read(disk: &dyn Disk) -> io::Result<Option<Seen>> {
    let mut damaged = None;
    for (_, name) in files(disk).await?.into_iter().rev() {
        let read = async { disk.open(&name).await?.read_at(0, LONGEST).await };
        let bytes = read.await.map_err(|error| io::Error::other(format!("{}/{name}: {error}", disk.path())))?;
        if let Some(seen) = Seen::decode(&bytes) {
            return Ok(Some(seen));
        }
        damaged = Some(name);
    }
    match damaged {
        Some(name) => Err(io::Error::other(format!("{}/{name} is damaged", disk.path()))),
        None => Ok(None),
    }
}

/// Keeps what was seen now in place of what was seen before.
pub async fn write(disk: &Arc<dyn Disk>, seen: &Seen) -> io::Result<()> {
    let before = files(&**disk).await?;
    let number = before.last().map_or(0, |(number, _)| *number) + 1;
    // What a crash left of an earlier try.
    disk.remove(UNFINISHED).await?;
    let file = disk.create(UNFINISHED).await?;
    file.write_at(0, vec![Bytes::from(seen.encode())]).await?;
    file.sync().await?;
    disk.rename(UNFINISHED, &format!("{PREFIX}{number:016x}")).await?;
    for (_, name) in before {
        disk.remove(&name).await?;
    }
    Ok(())
}

async fn files(disk: &dyn Disk) -> io::Result<Vec<(u64, String)>> {
    let number = |name: &String| u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok();
    let names = disk.list("").await?.into_iter();
    let mut files: Vec<_> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::crash::CrashDisk;

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

    #[tokio::test]
    async fn the_newest_whole_one_counts_whenever_the_host_dies() {
        for operation in 0..16 {
            let crash_disk = CrashDisk::new(operation);
            let disk: Arc<dyn Disk> = Arc::new(crash_disk.clone());
            write(&disk, &seen(1, 1, 1, 1)).await.unwrap();
            crash_disk.cut_at(crash_disk.operations() + operation);
            let written = write(&disk, &seen(2, 2, 2, 2)).await;
            let found = read(&crash_disk.crash()).await.unwrap().unwrap();
            match written {
                Ok(()) => assert_eq!(found.epoch, 2, "cut at operation {operation}"),
                Err(_) => assert!(found.epoch == 1 || found.epoch == 2, "cut at operation {operation}"),
            }
        }
    }

    #[tokio::test]
    async fn the_first_one_is_whole_or_not_there_whenever_the_host_dies() {
        for operation in 1..16 {
            let crash_disk = CrashDisk::new(operation);
            crash_disk.cut_at(operation);
            let written = write(&(Arc::new(crash_disk.clone()) as Arc<dyn Disk>), &seen(1, 1, 1, 1)).await;
            let found = read(&crash_disk.crash()).await.unwrap();
            assert!(found.is_some() || written.is_err(), "cut at operation {operation}");
        }
    }

    #[tokio::test]
    async fn a_file_that_went_bad_is_not_taken_for_none() {
        let disk = CrashDisk::new(1);
        write(&(Arc::new(disk.clone()) as Arc<dyn Disk>), &seen(1, 1, 1, 1)).await.unwrap();
        let name = "seen-0000000000000001";
        assert!(disk.cut(name, 20));
        let refused = read(&disk).await.unwrap_err().to_string();
        assert_eq!(refused, "/crash-disk/seen-0000000000000001 is damaged");
        disk.break_reads_of(name);
        read(&disk).await.unwrap_err();
        disk.remove(name).await.unwrap();
        assert_eq!(read(&disk).await.unwrap(), None);
    }
}
