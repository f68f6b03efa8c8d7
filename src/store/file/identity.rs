//! Which directory the root of a store is, so that a filesystem that was unmounted is not taken for an empty store.
//!
//! A path does not say it: below a mount that vanished there is an empty directory of the same path, into which every PUT would
//! succeed, and in which every object is absent. So the root is known from the moment at which it was first seen, by
//! device and inode:
//!
//! | at the path there is | it was seen before | so |
//! | --- | --- | --- |
//! | nothing | no | an empty store: the first PUT makes the root |
//! | a directory | no | known from now on |
//! | the same directory | yes | right |
//! | another directory, in which the mark is that was seen | yes | right, and known from now on |
//! | another directory, or a file | yes | away |
//! | nothing | yes | away: nobody makes the root again |
//!
//! The mark is for filesystems that come back with other numbers (a network filesystem that was mounted again): an empty directory
//! `.ashlar-tmp/root-<uuid>`, which the first PUT of whoever finds none makes. Several are no harm. Being a directory it is in no
//! listing, and no sweep of temporary files removes it, nor did one of an earlier version.

#![allow(clippy::disallowed_methods)] // a part of the door to the files of a store

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use parking_lot::Mutex;

use super::super::tree::{MARK, TEMPORARY};
use super::super::{ErrorKind, Result, StoreError};
use super::failure;
use crate::outside::directory::Numbers;

/// See the module.
#[derive(Debug, Default)]
pub struct Identity {
    /// Nothing until the root was seen.
    known: Mutex<Option<Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    numbers: Numbers,
    mark: Option<OsString>,
}

/// What is at the path of a root that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing, and there never was.
    Nothing,
    /// The directory that is known.
    Same,
    /// The directory that is known, with other numbers: what was concluded about what is durable there no longer holds.
    Again,
}

impl Identity {
    /// Whether the root was seen. Then nobody may make it.
    pub fn is_known(&self) -> bool {
        self.known.lock().is_some()
    }

    /// Looks whether the directory at `root` is the store's. `Retryable`, in a sentence for people, while it is not.
    pub fn check(&self, root: &Path) -> Result<Seen> {
        let known = self.known.lock().clone();
        let found = match fs::metadata(root) {
            Ok(found) => found,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failure("reach", root, &error)),
            Err(_) if known.is_none() => return Ok(Seen::Nothing),
            Err(_) => return Err(away(root, "is gone")),
        };
        if !found.is_dir() {
            return Err(match known {
                Some(_) => away(root, "is no directory any more"),
                None => StoreError::invalid(format!(
                    "the store {} is not a directory; name a directory, which may be a new one",
                    root.display()
                )),
            });
        }
        let numbers = Numbers::of(&found);
        match known {
            None => {
                let mark = find_mark(root);
                self.known.lock().get_or_insert(Known { numbers, mark });
                Ok(Seen::Same)
            }
            Some(known) if known.numbers == numbers => Ok(Seen::Same),
            Some(Known { mark: Some(mark), .. }) if is_marked(root, &mark) => {
                *self.known.lock() = Some(Known { numbers, mark: Some(mark) });
                Ok(Seen::Again)
            }
            Some(_) => Err(away(root, "is another one than that which was opened")),
        }
    }

    /// Puts a mark into the root, which was seen and may be written to, unless one is known. Without one, a filesystem that comes back
    /// with other numbers is not known again before the process is started anew, which is all.
    pub fn mark(&self, root: &Path, uuid: impl FnOnce() -> String) {
        let mut known = self.known.lock();
        let Some(Known { mark: mark @ None, .. }) = known.as_mut() else { return };
        let name = OsString::from(format!("{MARK}{}", uuid()));
        if fs::create_dir(root.join(TEMPORARY).join(&name)).is_ok() {
            *mark = Some(name);
        }
    }
}

/// Why the store cannot be used just now.
fn away(root: &Path, what: &str) -> StoreError {
    let message = format!("the store's directory {} {what}: is its filesystem mounted?", root.display());
    StoreError::new(ErrorKind::Retryable, message)
}

fn is_marked(root: &Path, mark: &OsString) -> bool {
    fs::symlink_metadata(root.join(TEMPORARY).join(mark)).is_ok_and(|found| found.is_dir())
}

/// The first mark of those that are there.
fn find_mark(root: &Path) -> Option<OsString> {
    let names = fs::read_dir(root.join(TEMPORARY)).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(MARK.as_bytes()) && is_marked(root, name)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(checked: Result<Seen>) -> String {
        let error = checked.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Retryable);
        error.message
    }

    #[test]
    fn a_root_is_made_once_and_known_from_then_on() {
        let top = tempfile::tempdir().unwrap();
        let (root, away) = (top.path().join("store"), top.path().join("away"));
        let identity = Identity::default();
        assert_eq!(identity.check(&root).unwrap(), Seen::Nothing);
        fs::create_dir(&root).unwrap();
        assert_eq!(identity.check(&root).unwrap(), Seen::Same);
        assert!(identity.is_known());
        fs::rename(&root, &away).unwrap();
        assert!(message(identity.check(&root)).ends_with("/store is gone: is its filesystem mounted?"));
        fs::create_dir(&root).unwrap();
        assert!(message(identity.check(&root)).contains(" is another one than that which was opened: "));
        fs::remove_dir(&root).unwrap();
        fs::write(&root, "").unwrap();
        assert!(message(identity.check(&root)).contains(" is no directory any more: "));
        assert_eq!(Identity::default().check(&root).unwrap_err().kind, ErrorKind::Invalid);
        fs::remove_file(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        assert_eq!(identity.check(&root).unwrap(), Seen::Same);
    }

    /// As a network filesystem that was mounted again.
    #[test]
    fn a_root_with_other_numbers_is_known_by_its_mark() {
        let top = tempfile::tempdir().unwrap();
        let (root, again) = (top.path().join("store"), top.path().join("again"));
        fs::create_dir_all(root.join(TEMPORARY)).unwrap();
        let identity = Identity::default();
        identity.check(&root).unwrap();
        identity.mark(&root, || "1".into());
        identity.mark(&root, || panic!("one is enough"));
        // Others find it, and it says more than being marked at all.
        let other = Identity::default();
        other.check(&root).unwrap();
        other.mark(&root, || panic!("there is one"));
        fs::create_dir_all(again.join(TEMPORARY).join("root-2")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        fs::rename(&again, &root).unwrap();
        for identity in [&identity, &other] {
            assert!(message(identity.check(&root)).contains(" is another one "));
        }
        fs::create_dir(root.join(TEMPORARY).join("root-1")).unwrap();
        for identity in [&identity, &other] {
            assert_eq!(identity.check(&root).unwrap(), Seen::Again);
            assert_eq!(identity.check(&root).unwrap(), Seen::Same);
        }
    }
}
