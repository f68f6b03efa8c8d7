//! Listing a tree of files in byte order of keys. Of the tree only the directories are read that can hold what is wanted.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

use super::super::tree::{Wanted, sorted_name};
use super::super::{Key, ObjectEntry};

/// Up to `limit` objects below `root` whose key begins with `prefix` and is greater than `after`, in byte order.
pub fn list(root: &Path, prefix: &str, after: Option<&str>, limit: usize) -> io::Result<Vec<ObjectEntry>> {
    let mut found = Vec::new();
    collect(&Wanted { prefix, after: after.unwrap_or_default(), limit }, root, "", &mut found)?;
    Ok(found)
}

/// The distinct first segments of all keys below `root`, in order.
pub fn list_top(root: &Path) -> io::Result<Vec<String>> {
    let mut tops: Vec<String> = names(root, "")?
        .into_iter()
        .filter(|name| !name.is_directory() || holds_object(&root.join(name.plain())))
        .map(|name| name.plain().to_owned())
        .collect();
    tops.sort_unstable();
    Ok(tops)
}

/// Whether there is an object anywhere below `directory`; when in doubt, there is.
pub fn holds_object(directory: &Path) -> bool {
    list(directory, "", None, 1).map_or(true, |found| !found.is_empty())
}

/// Adds what is wanted of `directory`, whose keys begin with `base` ("" or ending in `/`).
fn collect(wanted: &Wanted<'_>, directory: &Path, base: &str, found: &mut Vec<ObjectEntry>) -> io::Result<()> {
    let mut names = names(directory, base)?;
    names.retain(|name| wanted.may_hold(&format!("{base}{}", name.sorted)));
    names.sort_unstable_by(|a, b| a.sorted.cmp(&b.sorted));
    for name in names {
        if found.len() >= wanted.limit {
            break;
        }
        let path = format!("{base}{}", name.sorted);
        if name.is_directory() {
            collect(wanted, &name.entry.path(), &path, found)?;
            continue;
        }
        match name.entry.metadata() {
            Ok(file) => found.extend(Key::new(path).ok().map(|key| ObjectEntry { key, size: file.len() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // deleted meanwhile
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An entry of a directory that can be an object or lead to objects.
struct Name {
    /// The name, with a `/` behind it if it is a directory.
    sorted: String,
    entry: DirEntry,
}

impl Name {
    fn is_directory(&self) -> bool {
        self.sorted.ends_with('/')
    }

    fn plain(&self) -> &str {
        self.sorted.trim_end_matches('/')
    }
}

/// The entries of a directory that concern us; none if it does not exist (any more).
fn names(directory: &Path, base: &str) -> io::Result<Vec<Name>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_directory = match entry.file_type() {
            Ok(kind) if kind.is_dir() => true,
            Ok(kind) if kind.is_file() => false,
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        names.extend(sorted_name(base, &name, is_directory).map(|sorted| Name { sorted, entry }));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_links_and_temporaries_are_not_objects() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        ["v/a", "v/b~", "v/with space", ".ashlar-tmp/1", "w/.hidden"].into_iter().for_each(make);
        std::os::unix::fs::symlink(root.path().join("v/a"), root.path().join("v/link")).unwrap();
        fs::create_dir_all(root.path().join("empty/segments")).unwrap();
        let keys: Vec<String> =
            list(root.path(), "", None, 9).unwrap().iter().map(|object| object.key.to_string()).collect();
        assert_eq!(keys, ["v/a", "w/.hidden"]);
        assert_eq!(list_top(root.path()).unwrap(), ["v", "w"]);
    }
}
