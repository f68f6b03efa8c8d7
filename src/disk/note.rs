//! Small documents on the local disk, each under a name of its own: the newest whole one counts, whenever the host dies.
//!
//! A file `<name>-<n>` (16 hexadecimal digits) holds a JSON object, a newline, and the BLAKE3 of both as hexadecimal digits. The highest
//! whole one counts; the next is written as `<name>.unfinished`, and gets its name once it is on the disk, before the one before it is removed.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::Disk;

const HASH_BYTES: usize = 64;
/// Bytes that are read of one.
const LONGEST: usize = 4096;

/// The name of a document.
#[derive(Clone, Copy, Debug)]
pub struct Note(pub &'static str);

impl Note {
    /// The newest one; nothing if there is none. Files of which none is whole are an error: a file gets its name when it is whole and on
    /// the disk.
    pub async fn read<T: DeserializeOwned>(self, disk: &dyn Disk) -> io::Result<Option<T>> {
        let mut damaged = None;
        for (_, name) in self.files(disk).await?.into_iter().rev() {
            let read = async { disk.open(&name).await?.read_at(0, LONGEST).await };
            let bytes = read.await.map_err(|error| io::Error::other(format!("{}/{name}: {error}", disk.path())))?;
            if let Some(value) = decode(&bytes) {
                return Ok(Some(value));
            }
            damaged = Some(name);
        }
        match damaged {
            Some(name) => Err(io::Error::other(format!("{}/{name} is damaged", disk.path()))),
            None => Ok(None),
        }
    }

    /// Keeps this in place of what was kept before. It is on the disk when this returns; if it fails, it may be, too.
    pub async fn write(self, disk: &dyn Disk, value: &impl Serialize) -> io::Result<()> {
        let bytes = encode(value)?;
        let before = self.files(disk).await?;
        let number = before.last().map_or(0, |(number, _)| *number) + 1;
        let unfinished = format!("{}.unfinished", self.0);
        // What a crash left of an earlier try.
        disk.remove(&unfinished).await?;
        let file = disk.create(&unfinished).await?;
        file.write_at(0, vec![Bytes::from(bytes)]).await?;
        file.sync().await?;
        disk.rename(&unfinished, &format!("{}{number:016x}", self.prefix())).await?;
        self.remove(disk, before).await
    }

    /// There is none any more when this returns.
    pub async fn forget(self, disk: &dyn Disk) -> io::Result<()> {
        let all = self.files(disk).await?;
        self.remove(disk, all).await
    }

    /// The oldest first: what is left if this breaks off is the newest.
    async fn remove(self, disk: &dyn Disk, files: Vec<(u64, String)>) -> io::Result<()> {
        for (_, name) in files {
            disk.remove(&name).await?;
        }
        Ok(())
    }

    async fn files(self, disk: &dyn Disk) -> io::Result<Vec<(u64, String)>> {
        let prefix = self.prefix();
        let number = |name: &String| u64::from_str_radix(name.strip_prefix(&prefix)?, 16).ok();
        let names = disk.list("").await?.into_iter();
        let mut files: Vec<_> = names.filter_map(|name| Some((number(&name)?, name))).collect();
        files.sort_unstable();
        Ok(files)
    }

    fn prefix(self) -> String {
        format!("{}-", self.0)
    }
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    let hash = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(hash.as_bytes());
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (json, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
    (blake3::hash(json).to_hex().as_bytes() == hash).then(|| serde_json::from_slice(json).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::crash::CrashDisk;

    const NOTE: Note = Note("n");

    #[tokio::test]
    async fn the_newest_whole_one_counts_whenever_the_host_dies() {
        for operation in 0..16 {
            let disk = CrashDisk::new(operation);
            NOTE.write(&disk, &1).await.unwrap();
            disk.cut_at(disk.operations() + operation);
            let written = NOTE.write(&disk, &2).await;
            let found: u64 = NOTE.read(&disk.crash()).await.unwrap().unwrap();
            match written {
                Ok(()) => assert_eq!(found, 2, "cut at operation {operation}"),
                Err(_) => assert!(found == 1 || found == 2, "cut at operation {operation}"),
            }
        }
    }

    #[tokio::test]
    async fn the_first_one_is_whole_or_not_there_whenever_the_host_dies() {
        for operation in 1..16 {
            let disk = CrashDisk::new(operation);
            disk.cut_at(operation);
            let written = NOTE.write(&disk, &1).await;
            let found: Option<u64> = NOTE.read(&disk.crash()).await.unwrap();
            assert!(found.is_some() || written.is_err(), "cut at operation {operation}");
        }
    }

    #[tokio::test]
    async fn what_is_forgotten_does_not_come_back_and_what_is_not_is_whole() {
        for operation in 0..16 {
            let disk = CrashDisk::new(operation);
            NOTE.write(&disk, &1).await.unwrap();
            Note("other").write(&disk, &3).await.unwrap();
            disk.cut_at(disk.operations() + operation);
            let forgotten = NOTE.forget(&disk).await;
            let disk = disk.crash();
            let found: Option<u64> = NOTE.read(&disk).await.unwrap();
            assert!(found.is_none() || forgotten.is_err(), "cut at operation {operation}");
            assert_eq!(Note("other").read::<u64>(&disk).await.unwrap(), Some(3));
        }
    }

    #[tokio::test]
    async fn a_file_that_went_bad_is_not_taken_for_none() {
        let disk = CrashDisk::new(1);
        NOTE.write(&disk, &"many words, so that there is something to cut").await.unwrap();
        let name = "n-0000000000000001";
        assert!(disk.cut(name, 20));
        let refused = NOTE.read::<String>(&disk).await.unwrap_err().to_string();
        assert_eq!(refused, "/crash-disk/n-0000000000000001 is damaged");
        disk.break_reads_of(name);
        NOTE.read::<String>(&disk).await.unwrap_err();
        disk.remove(name).await.unwrap();
        assert_eq!(NOTE.read::<String>(&disk).await.unwrap(), None);
    }
}
