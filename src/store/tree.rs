//! Objects in a tree of directories, in byte order of keys: what every backend shares whose objects are files. Pure.
//!
//! A directory `a` sorts as `a/`, because all its keys begin so: `a-b` comes before `a/b`, and `a0` after it.

use super::Key;

/// Where temporary files live, below the root. Its name begins with `.`, so it is never a volume.
pub const TEMPORARY: &str = ".ashlar-tmp";

/// What the name of a mark begins with: an empty directory in [`TEMPORARY`] that tells which root this is.
pub const MARK: &str = "root-";

/// What a listing asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the keys begin with; "" is everything.
    pub prefix: &'a str,
    /// What they are greater than; "" is before every key.
    pub after: &'a str,
    /// How many of them are enough.
    pub limit: usize,
}

impl Wanted<'_> {
    /// Whether `path` is wanted, or, if it ends in `/`, may lead to something that is.
    pub fn may_hold(&self, path: &str) -> bool {
        match path.ends_with('/') {
            true => {
                (path.starts_with(self.prefix) || self.prefix.starts_with(path))
                    && (path > self.after || self.after.starts_with(path))
            }
            false => path.starts_with(self.prefix) && path > self.after,
        }
    }
}

/// The name of an entry of the directory `base` ("" is the root), as it sorts: with a `/` behind it if it is a directory. `None` if it
/// concerns no listing.
pub fn sorted_name(base: &str, name: &str, is_directory: bool) -> Option<String> {
    if Key::new(name).is_err() || (base.is_empty() && name == TEMPORARY) {
        return None;
    }
    Some(if is_directory { format!("{name}/") } else { name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_are_read_that_may_hold_what_is_wanted() {
        let holds = |prefix, after, path: &str| Wanted { prefix, after, limit: 1 }.may_hold(path);
        for (prefix, after, path, expected) in [
            ("", "", "a/", true),
            ("a/b", "", "a/", true),
            ("a/b", "", "a/bc/", true),
            ("a/b", "", "a/c/", false),
            ("", "a/b", "a/", true),
            ("", "a/b", "a/b/", true),
            ("", "a/b", "a/a/", false),
            ("", "a/b", "a/b", false),
            ("", "a/b", "a/b-", true),
            ("a", "", "b", false),
        ] {
            assert_eq!(holds(prefix, after, path), expected, "{prefix} {after} {path}");
        }
    }

    #[test]
    fn what_is_no_key_of_ours_has_no_name() {
        assert_eq!(sorted_name("", "v", true).as_deref(), Some("v/"));
        assert_eq!(sorted_name("v/", ".hidden", false).as_deref(), Some(".hidden"));
        assert_eq!(sorted_name("v/", TEMPORARY, true).as_deref(), Some(".ashlar-tmp/"));
        for name in [TEMPORARY, "with space", "..", "."] {
            assert_eq!(sorted_name("", name, true), None, "{name}");
        }
    }
}
