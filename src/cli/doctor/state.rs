//! The state directory, where the journals are, the directory of the cache, and a store that is a directory: whether they are there, may
//! be written to, have room, and last.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Access, access, statfs};
use tokio::time::Instant;

use super::finding::{About, Finding};
use crate::cli::outside;
use crate::config::{Config, Effective};
use crate::disk::Disk;
use crate::disk::local::LocalDisk;
use crate::human::about_bytes;
use crate::outside::Workers;

/// Small writes that are synced, to see how long that takes.
const SYNCS: usize = 16;

/// A disk that takes longer than this for half of them has every client wait.
const SLOW: Duration = Duration::from_millis(50);

/// What kinds of filesystems do with a journal that others do not, by the kernel's number.
const KINDS: [(u64, &str, &str); 8] = [
    (0x0102_1994, "tmpfs", "is gone when the host restarts"),
    (0x8584_58f6, "ramfs", "is gone when the host restarts"),
    (0x794c_7630, "overlayfs", "is gone when the container is"),
    (0x6969, "NFS", "may go away with its server, and two hosts could have it at once"),
    (0xff53_4d42, "CIFS", "may go away with its server, and two hosts could have it at once"),
    (0xfe53_4d42, "SMB", "may go away with its server, and two hosts could have it at once"),
    (0x6573_5546, "FUSE", "is as durable as what is behind it"),
    (0x0102_1997, "9p", "is as durable as what is behind it"),
];

/// What was found of a directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    is: Is,
    /// Whether everybody may write to it.
    is_open: bool,
    /// Of the filesystem that it is on, or will be: the kernel's number, and bytes that are free.
    filesystem: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Is {
    /// It is there, and may be written to.
    There,
    /// It can be made.
    ToBeMade,
    /// It cannot be used.
    Unusable(io::Error),
}

impl Directory {
    fn look(path: &Path) -> Directory {
        let found = std::fs::metadata(path);
        let may_write = |path: &Path| access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from);
        // Where nothing is yet, the next directory above it that is there.
        let above = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let there = above.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let is = match &found {
            Ok(found) if !found.is_dir() => Is::Unusable(ErrorKind::NotADirectory.into()),
            Ok(_) => may_write(path).map_or_else(Is::Unusable, |()| Is::There),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                may_write(there).map_or_else(Is::Unusable, |()| Is::ToBeMade)
            }
            Err(error) => Is::Unusable(io::Error::new(error.kind(), error.to_string())),
        };
        let filesystem = statfs(there).ok();
        Directory {
            path: path.to_owned(),
            is,
            is_open: found.is_ok_and(|found| found.mode() & 0o002 != 0),
            filesystem: filesystem.map(|found| {
                #[allow(clippy::unnecessary_cast)] // the types differ between machines
                (found.f_type as u64 & 0xffff_ffff, (found.f_bavail as u64).saturating_mul(found.f_bsize as u64))
            }),
        }
    }

    fn kind(&self) -> Option<(&'static str, &'static str)> {
        let (number, _) = self.filesystem?;
        KINDS.iter().find(|(of, ..)| *of == number).map(|(_, name, what)| (*name, *what))
    }

    fn free(&self) -> Option<u64> {
        self.filesystem.map(|(_, free)| free)
    }
}

/// Looks at all of them.
pub async fn look(config: &Effective) -> Vec<Finding> {
    let state = Directory::look(&config.state);
    let mut findings = judge_state(&state, config);
    if matches!(state.is, Is::There) {
        findings.push(judge_trial(&state.path, try_out(&state.path).await));
    }
    if config.cache.disk.size > 0 {
        let cache = Directory::look(&outside::cache_directory(config));
        findings.push(judge_cache(&cache, config));
    }
    if let Some(path) = config.store.url.strip_prefix("file://") {
        findings.extend(judge_store(&Directory::look(Path::new(path)), config));
    }
    findings
}

/// Writes small pieces into a file and syncs each; half of them take no longer than what is returned. The file is gone afterwards.
async fn try_out(path: &Path) -> io::Result<Duration> {
    let disk = LocalDisk::new(path, Workers::Threads);
    let name = format!("doctor-{}", outside::real().1.uuid());
    let file = disk.create(&name).await?;
    let written = async {
        let mut took = Vec::new();
        for n in 0..SYNCS {
            let begun = Instant::now();
            file.write_at(n as u64 * 4096, vec![Bytes::from_static(&[0; 4096])]).await?;
            file.sync().await?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok(took.get(SYNCS / 2).copied().unwrap_or_default())
    };
    let took = written.await;
    disk.remove(&name).await?;
    took
}

fn judge_trial(path: &Path, tried: io::Result<Duration>) -> Finding {
    let path = path.display();
    match tried {
        Err(error) => About::State.wrong(format!(
            "the state directory {path} cannot be written to: {error}; without it no server starts, so give it room, or name another with \
             the key state"
        )),
        Ok(took) if took > SLOW => About::State.doubtful(format!(
            "the disk of the state directory {path} takes {} ms for a small write that lasts (half of {SYNCS}), and with volume.durability \
             = \"journal\" every FLUSH waits for one: use a quicker disk",
            took.as_millis()
        )),
        Ok(took) => About::State.good(format!(
            "a small write into the state directory {path} lasts after {:.1} ms (half of {SYNCS})",
            took.as_secs_f64() * 1000.0
        )),
    }
}

fn judge_state(found: &Directory, config: &Config) -> Vec<Finding> {
    let path = found.path.display();
    let mut findings = Vec::new();
    match &found.is {
        Is::Unusable(error) => {
            return vec![About::State.wrong(format!(
                "the state directory {path} cannot be used by this user: {error}; run this as the user that serves, give the directory to \
                 it (chown), or name another with the key state"
            ))];
        }
        Is::ToBeMade => findings
            .push(About::State.good(format!("the state directory {path} is not there yet; `ashlar serve` makes it"))),
        Is::There => {}
    }
    if found.is_open {
        findings.push(About::State.doubtful(format!(
            "everybody on this host may write to the state directory {path}, and so take journals away: chmod o-w {path}"
        )));
    }
    if let Some((kind, what)) = found.kind() {
        findings.push(About::State.doubtful(format!(
            "the state directory {path} is on {kind}, which {what}: changes that were acknowledged and are not in the store yet would be \
             lost; name a directory on a disk of this host with the key state"
        )));
    }
    let needed = config.volume.total_dirty_bytes + 2 * config.journal.file_bytes;
    match found.free() {
        Some(free) if free < needed => findings.push(About::State.doubtful(format!(
            "the disk of the state directory {path} has {} free, and journals may take {} (volume.total_dirty_bytes and two of \
             journal.file_bytes): when it is full, writes wait for the store; give it room",
            about_bytes(free),
            about_bytes(needed)
        ))),
        Some(free) => findings.push(About::State.good(format!(
            "the disk of the state directory {path} has {} free, and journals take {} at most",
            about_bytes(free),
            about_bytes(needed)
        ))),
        None => {}
    }
    findings
}

fn judge_cache(found: &Directory, config: &Config) -> Finding {
    let (path, size) = (found.path.display(), config.cache.disk.size);
    match (&found.is, found.free()) {
        (Is::Unusable(error), _) => About::State.doubtful(format!(
            "the directory of the cache {path} cannot be used by this user: {error}; the tier on disk would be off: give the directory to \
             the user that serves, or name another with cache.disk.directory"
        )),
        // Of one that is there, part of it is used already.
        (Is::ToBeMade, Some(free)) if free < size => About::State.doubtful(format!(
            "the disk of the cache {path} has {} free, and cache.disk.size is {}: set it lower, or give it room",
            about_bytes(free),
            about_bytes(size)
        )),
        _ => About::State.good(format!("the cache may take {} in {path}", about_bytes(size))),
    }
}

fn judge_store(found: &Directory, config: &Config) -> Vec<Finding> {
    let path = found.path.display();
    let mut findings = Vec::new();
    if let Some((kind @ ("tmpfs" | "ramfs" | "overlayfs"), what)) = found.kind() {
        findings.push(About::Store.doubtful(format!(
            "the store's directory {path} is on {kind}, which {what}, with all volumes: name one on a disk with store.url"
        )));
    }
    let needed = config.volume.total_dirty_bytes;
    match found.free() {
        Some(free) if free < needed => findings.push(About::Store.doubtful(format!(
            "the disk of the store's directory {path} has {} free, less than what may wait to be written to it ({}, \
             volume.total_dirty_bytes): when it is full, writes wait; give it room, or give space back with fstrim",
            about_bytes(free),
            about_bytes(needed)
        ))),
        _ => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Weight;
    use super::*;

    const EXT4: u64 = 0xef53;

    fn directory(is: Is, number: u64, free: u64) -> Directory {
        Directory { path: "/s".into(), is, is_open: false, filesystem: Some((number, free)) }
    }

    fn there() -> Directory {
        directory(Is::There, EXT4, 1 << 40)
    }

    fn weights(findings: &[Finding]) -> Vec<Weight> {
        findings.iter().map(|finding| finding.weight).collect()
    }

    #[test]
    fn a_state_directory_is_judged_by_what_it_is_on() {
        let config = Config::default();
        let judge = |found: &Directory| judge_state(found, &config);
        assert_eq!(weights(&judge(&there())), [Weight::Good]);
        let denied = || Is::Unusable(ErrorKind::PermissionDenied.into());
        let said = judge(&directory(denied(), EXT4, 0));
        assert_eq!(weights(&said), [Weight::Wrong]);
        assert!(
            said[0].sentence.contains("/s cannot be used by this user: permission denied; run this as"),
            "{said:?}"
        );
        let said = judge(&directory(Is::There, EXT4, 100 << 20));
        assert_eq!(weights(&said), [Weight::Doubtful]);
        assert!(said[0].sentence.contains("has 100.0 MiB free, and journals may take 1.1 GiB"), "{said:?}");
        for (number, kind, what) in KINDS {
            let said = judge(&directory(Is::There, number, 1 << 40));
            assert_eq!(weights(&said), [Weight::Doubtful, Weight::Good]);
            assert!(said[0].sentence.contains(&format!("is on {kind}, which {what}")), "{said:?}");
        }
        let said = judge(&Directory { is_open: true, ..there() });
        assert!(said[0].weight == Weight::Doubtful && said[0].sentence.contains("chmod o-w /s"), "{said:?}");
        let said = judge(&directory(Is::ToBeMade, EXT4, 1 << 40));
        assert!(said[0].weight == Weight::Good && said[0].sentence.contains("is not there yet"), "{said:?}");
    }

    #[test]
    fn a_disk_that_fails_is_wrong_and_a_slow_one_doubtful() {
        let judge = |tried| judge_trial(Path::new("/s"), tried);
        let full = judge(Err(io::Error::from_raw_os_error(28)));
        assert!(full.weight == Weight::Wrong && full.sentence.contains("No space left on device"), "{full:?}");
        let slow = judge(Ok(Duration::from_millis(51)));
        assert!(slow.weight == Weight::Doubtful && slow.sentence.contains("takes 51 ms"), "{slow:?}");
        assert_eq!(judge(Ok(SLOW)).weight, Weight::Good);
    }

    #[test]
    fn a_cache_or_a_store_that_has_no_room_is_doubtful() {
        let mut config = Config::default();
        config.cache.disk.size = 1 << 30;
        let said = judge_cache(&directory(Is::ToBeMade, EXT4, 1 << 20), &config);
        assert!(said.weight == Weight::Doubtful && said.sentence.contains("1.0 MiB free"), "{said:?}");
        assert_eq!(judge_cache(&directory(Is::There, EXT4, 1 << 20), &config).weight, Weight::Good, "it may be used");
        let denied = directory(Is::Unusable(ErrorKind::PermissionDenied.into()), EXT4, 1 << 40);
        let said = judge_cache(&denied, &config);
        assert!(said.weight == Weight::Doubtful && said.sentence.contains("tier on disk would be off"), "{said:?}");
        let said = judge_store(&directory(Is::There, 0x0102_1994, 1 << 20), &config);
        assert_eq!(weights(&said), [Weight::Doubtful, Weight::Doubtful], "{said:?}");
        assert!(said[0].sentence.contains("is on tmpfs") && said[1].sentence.contains("has 1.0 MiB free"), "{said:?}");
        assert_eq!(weights(&judge_store(&there(), &config)), []);
    }

    #[tokio::test]
    async fn a_directory_is_tried_and_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        try_out(directory.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let below = directory.path().join("a/b");
        assert!(matches!(Directory::look(&below).is, Is::ToBeMade) && !below.exists());
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(matches!(Directory::look(&directory.path().join("file")).is, Is::Unusable(_)));
    }
}
