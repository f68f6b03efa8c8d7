//! OpenSSH's own `sftp-server`, without a network: a script that takes the place of `ssh` starts it on this host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a test that cannot go on, stops

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ashlar::outside::Random;
use ashlar::store::sftp::options::SftpOptions;
use ashlar::store::sftp::{Address, SftpStore};
use tempfile::TempDir;

/// Where Debian and most others have it; other places are looked at, too.
const PLACES: [&str; 3] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];

/// A directory that is served.
pub struct SftpServer {
    top: TempDir,
}

impl SftpServer {
    /// Of a directory that is not there yet.
    pub fn new() -> SftpServer {
        SftpServer { top: tempfile::tempdir().unwrap() }
    }

    /// The root of the store.
    pub fn root(&self) -> PathBuf {
        self.top.path().join("below/store")
    }

    /// A file beside it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// Options with a script of that name in the place of `ssh`; in `commands`, `$SERVER` is the real server.
    pub fn options(&self, name: &str, commands: &str) -> SftpOptions {
        let server = PLACES.iter().find(|place| Path::new(place).exists()).unwrap_or_else(|| {
            panic!("there is no sftp-server in {PLACES:?}: install openssh-sftp-server and run the tests again")
        });
        let ssh = self.beside(name);
        std::fs::write(&ssh, format!("#!/bin/sh\nSERVER={server}\n{commands}\n")).unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
        SftpOptions { ssh, ..SftpOptions::default() }
    }

    /// A store behind that.
    pub fn store(&self, options: &SftpOptions) -> SftpStore {
        SftpStore::new(self.address(), options, Random::system())
    }

    /// A store behind the server as it is.
    pub fn plain(&self) -> SftpStore {
        self.store(&self.options("plain", "exec $SERVER"))
    }

    /// Its address.
    pub fn address(&self) -> Address {
        Address::parse(&format!("host{}", self.root().display())).unwrap()
    }

    /// The names in the directory of temporary files, but for marks.
    pub fn temporaries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root().join(".ashlar-tmp")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("root-")).collect()
    }
}
