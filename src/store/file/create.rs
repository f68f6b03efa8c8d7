//! Making files that are whole, durable and never overwritten, and the directories that lead to them.
//! The order of steps is in the essay of the parent module.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::Result;
use super::direct::Direct;
use super::identity::{Identity, Seen};
use super::naming::Naming;
use super::walk;
use crate::outside::directory::Numbers;

/// A temporary file older than this was left behind by a writer that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a directory that vanishes under our hands (another host tidied it away) is made again.
const PLACE_ATTEMPTS: usize = 5;

/// Steps 1 to 5: `path` holds `body` durably, or is as it was. `AlreadyExists` if it was taken.
pub fn create(directories: &Directories, temporary: &Path, path: &Path, body: &[Bytes]) -> io::Result<()> {
    let written = write_temporary(directories, temporary, body);
    let placed = written.and_then(|()| place(directories, temporary, path));
    // After a rename it is gone already, and if this fails a later sweep takes it.
    let _ = fs::remove_file(temporary);
    placed.and_then(|()| look(path, body))
}

/// Step 5: the name leads to something of that length. If the root was away between two looks at it, it does not.
fn look(path: &Path, body: &[Bytes]) -> io::Result<()> {
    match fs::symlink_metadata(path)?.len() == body.iter().map(|part| part.len() as u64).sum::<u64>() {
        true => Ok(()),
        false => Err(io::Error::other("what was made is not there")),
    }
}

fn write_temporary(directories: &Directories, temporary: &Path, body: &[Bytes]) -> io::Result<()> {
    // If a sync fails, the pages may already count as clean: never again with the same file. A retry writes a new one.
    if directories.direct.suits(body.iter().map(Bytes::len).sum()) {
        directories.make_parent(temporary)?;
        match directories.direct.write(temporary, body)? {
            Some(file) => return file.sync_all(),
            None => drop(fs::remove_file(temporary)), // it need not have been made
        }
    }
    let open = || OpenOptions::new().write(true).create_new(true).open(temporary);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            directories.make_parent(temporary)?;
            open()?
        }
        opened => opened?,
    };
    let mut slices: Vec<IoSlice<'_>> = body.iter().map(|part| IoSlice::new(part)).collect();
    write_all_vectored(&mut file, &mut slices)?;
    file.sync_all()
}

fn write_all_vectored(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0); // drops empty parts, which would look like a write of nothing
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives the temporary file its final name, unless that is taken.
fn place(directories: &Directories, temporary: &Path, path: &Path) -> io::Result<()> {
    for _ in 0..PLACE_ATTEMPTS {
        directories.make_parent(path)?;
        match directories.naming.give(temporary, path) {
            Ok(()) => return directories.sync_parent(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return directories.taken(temporary, path, error);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && temporary.try_exists()? => {
                directories.forget_parent(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("its directory keeps being removed"))
}

/// Makes the names in a directory durable. A filesystem that cannot sync directories is taken to keep them at once.
fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Removes temporary files that nobody can be writing any more. Their age is measured against a file made just now,
/// so that neither this host's clock nor another's matters. Whatever fails here is left for the next time.
pub fn sweep(temporaries: &Path, marker: &str) {
    let _ = sweep_older_than(temporaries, marker, TEMPORARY_AGE_MAX);
}

fn sweep_older_than(temporaries: &Path, marker: &str, age_max: Duration) -> io::Result<()> {
    let entries = fs::read_dir(temporaries)?;
    let marker = temporaries.join(marker);
    let now = OpenOptions::new().write(true).create_new(true).open(&marker)?.metadata()?.modified()?;
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|found| found.modified());
        if modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > age_max)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    fs::remove_file(marker)
}

/// The directories of a store, and what this process knows to be durable about them.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    /// Which directory the root is.
    identity: Identity,
    /// Directories that exist by a durable path.
    made: Mutex<HashSet<PathBuf>>,
    /// Directories in which every name that another process left is durable.
    settled: Mutex<HashSet<PathBuf>>,
    /// How large files are written and read.
    pub direct: Direct,
    /// How files get their names.
    naming: Naming,
    /// How the names in a directory are made durable.
    sync: fn(&Path) -> io::Result<()>,
}

impl Directories {
    /// Of the store at `root`.
    pub fn new(root: PathBuf) -> Directories {
        Directories {
            root,
            identity: Identity::default(),
            made: Mutex::default(),
            settled: Mutex::default(),
            direct: Direct::default(),
            naming: Naming::default(),
            sync: sync_directory,
        }
    }

    /// Looks whether the root is the store's. `Retryable` while it is not.
    pub fn check(&self) -> Result<Seen> {
        self.identity.check(&self.root)
    }

    /// Marks the root, so that it is known again when its filesystem was mounted anew.
    pub fn mark(&self, uuid: impl FnOnce() -> String) {
        self.identity.mark(&self.root, uuid);
    }

    /// The filesystem was mounted anew: what is there, and what of it is durable, is not known any more.
    pub fn forget(&self) {
        self.made.lock().clear();
        self.settled.lock().clear();
    }

    /// Makes the names in a directory durable.
    pub fn sync(&self, directory: &Path) -> io::Result<()> {
        (self.sync)(directory)
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.sync(parent))
    }

    /// The path is taken: by a directory, by us (the reply to our own link was lost on the way from a file server: it is our file), or
    /// by another writer, whose name must be durable before anything is concluded from it.
    fn taken(&self, temporary: &Path, path: &Path, error: io::Error) -> io::Result<()> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is the directory of other objects"));
        }
        self.sync_parent(path)?;
        let (ours, there) = (fs::symlink_metadata(temporary)?, fs::symlink_metadata(path)?);
        // Two names alone say nothing: a backup may have given ours another one. Nor do the numbers of a filesystem that makes them up.
        match ours.nlink() > 1 && Numbers::of(&ours) == Numbers::of(&there) {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Makes the directory of `path`, and those above it, durably.
    fn make_parent(&self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.make(parent))
    }

    fn make(&self, directory: &Path) -> io::Result<()> {
        if directory.as_os_str().is_empty() || self.made.lock().contains(directory) {
            return Ok(());
        }
        if directory == self.root && self.identity.is_known() {
            // Whoever looks next says it better.
            return fs::metadata(directory).map(drop);
        }
        let is_new = match fs::create_dir(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parent(directory)?;
                fs::create_dir(directory).or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                })?;
                true
            }
            Err(error) => return Err(error),
        };
        // Below the root another process may have made it a moment ago; above, only our own making is our business.
        let is_below_root = directory != self.root && directory.starts_with(&self.root);
        if is_below_root {
            self.make_parent(directory)?;
        }
        if is_new || is_below_root {
            self.sync_parent(directory)?;
        }
        self.made.lock().insert(directory.to_path_buf());
        Ok(())
    }

    /// Another process removed the directory of `path`: the next [`Self::make_parent`] looks again.
    fn forget_parent(&self, path: &Path) {
        let mut made = self.made.lock();
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.root)) {
            made.remove(directory);
        }
    }

    /// Once per process and directory: makes the names beside `path`, and the directories that lead there, durable,
    /// before anything is concluded from an object found there. Who may not sync, does not write either.
    pub fn settle_names_beside(&self, path: &Path) -> io::Result<()> {
        let above = || path.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.root));
        for directory in above() {
            if self.settled.lock().contains(directory) {
                break;
            }
            match self.sync(directory) {
                Err(error) if is_not_a_writer(&error) => {}
                synced => synced?,
            }
        }
        self.settled.lock().extend(above().map(Path::to_path_buf));
        Ok(())
    }

    /// Removes the tree below `top` if there is no object in it: a deleted volume leaves nothing behind.
    /// A writer that is about to put something there makes its directories again.
    pub fn tidy(&self, top: &Path) {
        if walk::holds_object(top) {
            return;
        }
        self.made.lock().retain(|directory| !directory.starts_with(top));
        remove_empty_tree(top);
    }
}

fn is_not_a_writer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Removing a directory that is not empty fails, which is all the care that this takes.
fn remove_empty_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_removes_only_what_is_old() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        fs::write(&old, "left behind").unwrap();
        sweep(root.path(), "marker");
        assert!(old.exists());
        File::options().write(true).open(&old).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::write(root.path().join("new"), "being written").unwrap();
        sweep(root.path(), "marker");
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["new"]);
    }

    thread_local! {
        /// What this thread made durable: each directory, and whether anything was in it.
        static SYNCED: std::cell::RefCell<Vec<(PathBuf, bool)>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    fn synced() -> Vec<(PathBuf, bool)> {
        SYNCED.take()
    }

    /// After a loss of power an object that was answered for is there by its name: each directory that leads to it was synced
    /// after the name was in it.
    #[test]
    fn every_name_that_leads_to_an_object_is_durable_before_it_is_answered_for() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("store");
        let mut directories = Directories::new(root.clone());
        directories.sync = |directory| {
            let holds_names = fs::read_dir(directory)?.next().is_some();
            SYNCED.with_borrow_mut(|synced| synced.push((directory.to_path_buf(), holds_names)));
            Ok(())
        };
        let put =
            |name: &str| create(&directories, &root.join(".tmp/1"), &root.join(name), &[Bytes::from_static(b"1")]);
        put("v/segments/00/1").unwrap();
        let of_first = synced();
        for directory in [top.path().to_path_buf(), root.clone(), root.join("v"), root.join("v/segments")] {
            assert!(of_first.contains(&(directory.clone(), true)), "{}: {of_first:?}", directory.display());
        }
        assert_eq!(of_first.last(), Some(&(root.join("v/segments/00"), true)), "the object's own name comes last");
        // The way there is durable already.
        put("v/segments/00/2").unwrap();
        assert_eq!(synced(), [(root.join("v/segments/00"), true)]);
        // Nor is anything concluded from another's object before its name is durable.
        assert_eq!(put("v/segments/00/2").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(synced(), [(root.join("v/segments/00"), true)]);
    }

    #[test]
    fn a_directory_that_vanished_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::new(root.path().to_path_buf());
        let (temporary, path) = (root.path().join(".tmp/1"), root.path().join("v/segments/00/1"));
        create(&directories, &temporary, &path, &[Bytes::from_static(b"one")]).unwrap();
        fs::remove_dir_all(root.path().join("v")).unwrap(); // by another host
        create(&directories, &temporary, &path, &[Bytes::from_static(b"two")]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn our_own_link_whose_reply_was_lost_counts_as_ours() {
        let root = tempfile::tempdir().unwrap();
        let (temporary, path) = (root.path().join("temporary"), root.path().join("object"));
        fs::write(&temporary, "mine").unwrap();
        fs::hard_link(&temporary, &path).unwrap();
        let directories = Directories::new(root.path().to_path_buf());
        place(&directories, &temporary, &path).unwrap();

        // One that somebody linked elsewhere, such as a backup, is not there for that.
        let other = root.path().join("other");
        fs::write(&other, "not mine").unwrap();
        for is_linked_elsewhere in [false, true] {
            if is_linked_elsewhere {
                fs::hard_link(&other, root.path().join("backup")).unwrap();
            }
            let error = place(&directories, &other, &path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
    }
}
