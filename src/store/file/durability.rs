//! What is known of the filesystem under a store, of which no system call says that it fails: one that forgets, or that answers fsync without doing it. Looked up where the store is opened for writing,
//! and said; refused is nothing, since a store in memory has its uses. The table is pure.

use std::fs;
use std::path::Path;

/// A mount, as `/proc/self/mountinfo` has it.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    kind: &'a str,
    /// Options of the mount and of its filesystem.
    options: Vec<&'a str>,
}

/// What should be known of where `path` lies, if anything: the nearest directory of it that is there.
pub fn caution(path: &Path) -> Option<String> {
    let there = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let why = of(&mount_of(&mounts, &there)?)?;
    Some(format!("the store's directory {} {why}", path.display()))
}

/// The mount in which that absolute path lies: of the longest mount points the last, which hides the others.
fn mount_of<'a>(mounts: &'a str, path: &Path) -> Option<Mount<'a>> {
    let read = |line: &'a str| {
        let (of_mount, of_filesystem) = line.split_once(" - ")?;
        let mut fields = of_mount.split(' ').skip(4);
        let (point, own) = (unescaped(fields.next()?), fields.next()?);
        let mut fields = of_filesystem.split(' ');
        let (kind, all) = (fields.next()?, fields.nth(1)?);
        let options = own.split(',').chain(all.split(',')).collect();
        path.starts_with(&point).then_some((point.len(), Mount { kind, options }))
    };
    mounts.lines().filter_map(read).max_by_key(|(len, _)| *len).map(|(_, mount)| mount)
}

/// A name in which blanks and the like are three octal digits behind a `\`.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |name, (escape, plain)| name.replace(escape, plain))
}

fn of(mount: &Mount<'_>) -> Option<&'static str> {
    let has = |option: &str| mount.options.contains(&option);
    match mount.kind {
        "tmpfs" | "ramfs" => {
            Some("is in memory (tmpfs): all volumes are gone when this host stops, whatever FLUSH said")
        }
        // Linux 6.18 writes it in the second way.
        "overlay" if has("volatile") || has("fsync=volatile") => Some(
            "is on an overlay that is mounted volatile: nothing there is made durable, and it may not mount again after a crash",
        ),
        "fuse.sshfs" => Some(
            "is mounted by sshfs, which makes files durable and not their names: what FLUSH promised may be lost with the server's power; sftp:// reaches the same \
             server and makes both durable",
        ),
        "cifs" | "smb3" if has("nostrictsync") => {
            Some("is mounted with nostrictsync: the server is not asked to make anything durable")
        }
        "ext4" | "ext3" | "xfs" if has("nobarrier") || has("barrier=0") => Some(
            "is on a filesystem without barriers: a disk that keeps writes in its own memory may lose what FLUSH promised",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:30 / /mnt/with\\040blank rw - tmpfs tmpfs rw,size=1k
31 27 0:31 / /srv rw - ext4 /dev/vdb rw,nobarrier
32 31 0:32 / /srv/box rw,nosuid shared:1 - fuse.sshfs me@box:/ rw,user_id=0
33 27 0:33 / /over rw - overlay overlay rw,lowerdir=/a,volatile
36 27 0:36 / /newer rw - overlay overlay rw,uuid=on,fsync=volatile
34 27 0:34 / /over rw - nfs4 server:/x rw,hard
35 27 0:35 / /share rw,nostrictsync - cifs //server/x rw";

    #[test]
    fn what_forgets_or_syncs_nothing_is_known_by_its_mount() {
        let said = |path: &str| of(&mount_of(MOUNTS, Path::new(path)).unwrap());
        for (path, expected) in [
            ("/data", None),
            ("/mnt/with blank/store", Some("is in memory")),
            ("/mnt/without", None),
            ("/srv/disks", Some("without barriers")),
            ("/srv/boxes", Some("without barriers")),
            ("/srv/box/disks", Some("sftp://")),
            ("/over/x", None),
            ("/newer/x", Some("mounted volatile")),
            ("/share", Some("nostrictsync")),
        ] {
            match (said(path), expected) {
                (None, None) => {}
                (Some(said), Some(expected)) => assert!(said.contains(expected), "{path}: {said}"),
                other => panic!("{path}: {other:?}"),
            }
        }
        let without_the_last = MOUNTS.lines().filter(|line| !line.starts_with("34")).collect::<Vec<_>>().join("\n");
        assert!(of(&mount_of(&without_the_last, Path::new("/over/x")).unwrap()).unwrap().contains("volatile"));
    }

    #[test]
    fn a_store_in_memory_is_known_before_it_is_made() {
        // /dev/shm is in memory on every Linux.
        let said = caution(Path::new("/dev/shm/not/yet/there")).unwrap();
        assert!(said.starts_with("the store's directory /dev/shm/not/yet/there is in memory"), "{said}");
    }
}
