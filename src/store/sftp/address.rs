//! Where an SFTP store is: `sftp://[USER@]HOST[:PORT]/PATH`, as curl and most others read it: the path is absolute, and `/~/PATH` begins in
//! the home directory. HOST may be a name of `~/.ssh/config`.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::super::{Result, StoreError};

/// A store's address, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Who, if somebody else than `ssh` takes by itself.
    pub user: Option<String>,
    /// A name or an address, without brackets.
    pub host: String,
    /// Which, if another than `ssh` takes by itself.
    pub port: Option<u16>,
    /// The root: a path without `/` at its end, absolute or, after `~/` was taken off, of the home directory.
    pub path: String,
}

impl Address {
    /// Reads what stands behind `sftp://`.
    pub fn parse(rest: &str) -> Result<Address> {
        const SHAPE: &str =
            "an SFTP store is sftp://[USER@]HOST[:PORT]/PATH, or sftp://HOST/~/PATH for one below the home directory";
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(StoreError::invalid(
                "the store URL (not shown, since it holds a password) must not hold one; ssh logs in with a key: name it in \
                 store.sftp.identity_file or ~/.ssh/config, or have an agent",
            ));
        }
        let wrong = |what: &str| StoreError::invalid(format!("the store URL \"sftp://{rest}\" has {what}; {SHAPE}"));
        let (host, port) = split_port(place).ok_or_else(|| wrong("a port that is none"))?;
        let good = |word: &str, more: &[u8]| {
            !word.is_empty()
                && !word.starts_with('-')
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b) || more.contains(&b))
        };
        if !good(host, b":%") {
            return Err(wrong("no host, or one that cannot be"));
        }
        if user.is_some_and(|user| !good(user, b"@+$\\")) {
            return Err(wrong("a user that cannot be"));
        }
        let path = percent_decode_str(path.trim_end_matches('/')).decode_utf8();
        let path = path.map_err(|_| wrong("a path that is no UTF-8"))?;
        let path = match path.strip_prefix("~") {
            Some(of_home) if of_home.is_empty() || of_home.starts_with('/') => {
                of_home.trim_start_matches('/').to_owned()
            }
            _ => format!("/{path}"),
        };
        let is_name = |part: &str| !matches!(part, "" | "." | "..");
        match path.trim_start_matches('/').split('/').all(is_name) {
            true if !path.contains(['\0', '\n']) => {
                Ok(Address { user: user.map(str::to_owned), host: host.to_owned(), port, path })
            }
            _ => Err(wrong("no path of a directory of its own")),
        }
    }
}

/// A host without the brackets of an IPv6 address, and its port.
fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match place.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    match port {
        None => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok().filter(|port| *port > 0)?))),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let home = if self.path.starts_with('/') { "" } else { "/~/" };
        write!(f, "sftp://{user}{host}{port}{home}{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = |user: Option<&str>, host: &str, port, path: &str| Address {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        };
        for (rest, expected, shown) in [
            ("box/srv/disks", address(None, "box", None, "/srv/disks"), "sftp://box/srv/disks"),
            ("me@box:2222/srv/", address(Some("me"), "box", Some(2222), "/srv"), "sftp://me@box:2222/srv"),
            ("box/~/disks/a", address(None, "box", None, "disks/a"), "sftp://box/~/disks/a"),
            ("box/~other/a", address(None, "box", None, "/~other/a"), "sftp://box/~other/a"),
            ("[::1]:22/a%20b", address(None, "::1", Some(22), "/a b"), "sftp://[::1]:22/a b"),
            ("u1@x-y.example/v", address(Some("u1"), "x-y.example", None, "/v"), "sftp://u1@x-y.example/v"),
        ] {
            let read = Address::parse(rest).unwrap();
            assert_eq!(read, expected, "{rest}");
            assert_eq!(read.to_string(), shown);
        }
    }

    #[test]
    fn what_cannot_be_an_address_is_told_its_shape_and_no_password_is_repeated() {
        for (rest, why) in [
            ("", "no host"),
            ("/srv", "no host"),
            ("box", "no path"),
            ("box/", "no path"),
            ("box/~", "no path"),
            ("box/~/", "no path"),
            ("box/~/..", "no path"),
            ("box/a/../b", "no path"),
            ("box/a//b", "no path"),
            ("box:0/a", "a port"),
            ("box:ssh/a", "a port"),
            ("-oProxyCommand=x/a", "no host"),
            ("-l@box/a", "a user"),
            ("@box/a", "a user"),
            ("bo x/a", "no host"),
        ] {
            let error = Address::parse(rest).unwrap_err().message;
            assert!(error.contains(why) && error.contains("sftp://[USER@]HOST[:PORT]/PATH"), "{rest}: {error}");
        }
        let error = Address::parse("me:secret@box/a").unwrap_err().message;
        assert!(!error.contains("secret") && error.contains("store.sftp.identity_file"), "{error}");
    }
}
