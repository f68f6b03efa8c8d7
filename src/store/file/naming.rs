//! Giving a file its final name, unless that is taken: by a hard link, or where the filesystem has none, by
//! `renameat2(RENAME_NOREPLACE)`.
//!
//! What a filesystem that can neither says when it is asked differs, and some of it is what others say when they are away
//! or were late. So more than the error decides, in this order:
//!
//! | `link` | then `renameat2` | then | so |
//! | --- | --- | --- | --- |
//! | done | | | placed |
//! | EEXIST | | | taken |
//! | EPERM, ENOTSUP, ENOSYS, EMLINK, EIO | done | | placed |
//! | the same | EEXIST | | taken (also by our own link, whose reply was lost) |
//! | the same | EINVAL, ENOSYS | the name is there | taken: sshfs says EPERM for a race that was lost |
//! | the same | EINVAL, ENOSYS | a trial link works, or one has worked before | the error of `link`: away, or a bad moment |
//! | the same | EINVAL, ENOSYS | a trial link fails too | this filesystem cannot: named at once |
//! | the same | another error | | that error |
//! | another error | | | that error |
//!
//! EIO is the case that needs the trial: rclone mount answers every `link` so, a network filesystem only while it is away. The
//! file that is to be named was written and synced a moment ago, so the filesystem is there; a trial beside it
//! that fails the same way, from a process in which no link ever worked, tells the two apart.

#![allow(clippy::disallowed_methods)] // a part of the door to the files of a store

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// One of the system's two ways to give a name.
type Give = fn(&Path, &Path) -> io::Result<()>;

/// How files get their names.
#[derive(Debug)]
pub struct Naming {
    link: Give,
    rename: Give,
    /// Set once a link worked.
    has_links: AtomicBool,
}

impl Default for Naming {
    /// The system's ways.
    fn default() -> Naming {
        let link: Give = |from, to| fs::hard_link(from, to);
        let rename: Give = |from, to| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?);
        Naming { link, rename, has_links: AtomicBool::new(false) }
    }
}

impl Naming {
    /// Names `temporary` also `path`, or only so. `AlreadyExists` if that is taken, `Unsupported` if the filesystem cannot
    /// do this.
    pub fn give(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        let refused = match self.link(temporary, path) {
            Err(error) if may_lack_links(&error) => error,
            given => return given,
        };
        match (self.rename)(temporary, path) {
            Err(error) if lacks_rename(&error) => Err(self.neither(temporary, path, refused)),
            given => given,
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.link)(from, to)?;
        self.has_links.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What it means that neither way worked.
    fn neither(&self, temporary: &Path, path: &Path, refused: io::Error) -> io::Error {
        if fs::symlink_metadata(path).is_ok() {
            return io::ErrorKind::AlreadyExists.into();
        }
        match self.has_links.load(Ordering::Relaxed) || self.trial(temporary).is_ok() {
            true if refused.kind() == io::ErrorKind::PermissionDenied => {
                io::Error::other(format!("link: {refused}, although this filesystem has hard links"))
            }
            true => refused,
            false => io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "this filesystem has neither hard links (link: {refused}) nor renameat2(RENAME_NOREPLACE), so that two \
                     servers could overwrite each other; put the store on another filesystem, or name a bucket that is \
                     mounted here as s3://BUCKET"
                ),
            ),
        }
    }

    /// Links the temporary file beside itself.
    fn trial(&self, temporary: &Path) -> io::Result<()> {
        let mut name = temporary.as_os_str().to_owned();
        name.push("-trial");
        let name = PathBuf::from(name);
        self.link(temporary, &name)?;
        fs::remove_file(name)
    }
}

fn may_lack_links(error: &io::Error) -> bool {
    let lacks = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK, Errno::IO];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}

fn lacks_rename(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERM: Give = |_, _| Err(Errno::PERM.into());
    const IO: Give = |_, _| Err(Errno::IO.into());
    const INVAL: Give = |_, _| Err(Errno::INVAL.into());
    /// As sshfs when another mount was quicker: the name is there, and the link is refused as if it were not permitted.
    const LATE: Give = |_, to| {
        fs::write(to, "the other's").unwrap();
        Err(Errno::PERM.into())
    };
    /// Links beside the file only: that is, the trial.
    const BESIDE: Give = |from, to| match from.parent() == to.parent() {
        true => fs::hard_link(from, to),
        false => Err(Errno::IO.into()),
    };

    fn system() -> Naming {
        Naming::default()
    }

    struct Room {
        root: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Room {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("tmp")).unwrap();
            fs::write(root.path().join("tmp/1"), "mine").unwrap();
            Room { root }
        }

        fn give(&self, naming: &Naming) -> io::Result<()> {
            naming.give(&self.root.path().join("tmp/1"), &self.root.path().join("object"))
        }

        fn object(&self) -> Option<String> {
            fs::read_to_string(self.root.path().join("object")).ok()
        }
    }

    #[test]
    fn a_link_or_else_a_rename_gives_the_name_and_replaces_nothing() {
        for naming in [system(), Naming { link: PERM, ..system() }, Naming { link: IO, ..system() }] {
            let room = Room::new();
            room.give(&naming).unwrap();
            assert_eq!(room.object().unwrap(), "mine");
            fs::write(room.root.path().join("tmp/1"), "second").unwrap();
            let room = Room::new();
            fs::write(room.root.path().join("object"), "another's").unwrap();
            assert_eq!(room.give(&naming).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(room.object().unwrap(), "another's");
        }
    }

    #[test]
    fn a_filesystem_that_can_neither_is_named_at_once_whatever_it_says() {
        for link in [PERM, IO] {
            let room = Room::new();
            let error = room.give(&Naming { link, rename: INVAL, ..system() }).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
            assert!(
                error.to_string().contains("neither hard links (link: ") && error.to_string().contains("s3://BUCKET")
            );
            assert_eq!(room.object(), None);
        }
    }

    #[test]
    fn one_that_is_away_is_not_taken_for_one_that_cannot() {
        // All fails.
        let room = Room::new();
        let error = room.give(&Naming { link: IO, rename: IO, ..system() }).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
        // It has links, but had a bad moment: known from before, or by trial.
        let known = Naming { link: IO, rename: INVAL, has_links: AtomicBool::new(true) };
        let tried = Naming { link: BESIDE, rename: INVAL, ..system() };
        for naming in [known, tried] {
            let error = room.give(&naming).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{error}");
        }
        let left: Vec<_> = fs::read_dir(room.root.path().join("tmp")).unwrap().collect();
        assert_eq!(left.len(), 1, "the trial leaves nothing behind");
        // And what is refused for a moment there is no lack of permission.
        let known = Naming { link: PERM, rename: INVAL, has_links: AtomicBool::new(true) };
        assert_eq!(room.give(&known).unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn a_lost_race_is_a_taken_name_whatever_it_is_called() {
        let room = Room::new();
        let error = room.give(&Naming { link: LATE, rename: INVAL, ..system() }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(room.object().unwrap(), "the other's");
    }
}
