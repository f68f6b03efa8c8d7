//! Which host uses which export (rule M5). NBD lets any number of clients attach one export, and a filesystem that two
//! hosts mount is destroyed in minutes. So while clients of one host are attached to a writable export, those of other
//! hosts are refused, unless the operator says `shared`. All connections of one host belong together: one client
//! opens several.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::ExportError;

/// The host that a client runs on, as far as the connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// This one.
    Local,
    /// One with that address.
    Remote(IpAddr),
}

impl Host {
    /// The host at the far end of a TCP connection.
    pub fn of(peer: IpAddr, local: IpAddr) -> Host {
        match peer.to_canonical() {
            ip if ip.is_loopback() || ip == local.to_canonical() => Host::Local,
            ip => Host::Remote(ip),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Local => f.write_str("this host"),
            Host::Remote(ip) => ip.fmt(f),
        }
    }
}

/// The hosts that are attached: for each export its host, and how many of its clients.
#[derive(Debug, Default)]
pub struct Hosts(Mutex<HashMap<String, (Host, usize)>>);

impl Hosts {
    /// Lets a client of `host` attach `export` until the visit is dropped, unless another host is there.
    pub fn enter(self: &Arc<Hosts>, export: &str, host: Host) -> Result<Visit, ExportError> {
        let mut hosts = self.0.lock();
        let (here, clients) = hosts.entry(export.to_owned()).or_insert((host, 0));
        if *here != host {
            return Err(ExportError::Unavailable(format!(
                "{export:?} is in use by {here}, and a filesystem that two hosts mount is destroyed: detach it there, or \
                 set nbd.shared = true if what is on it is made for several hosts"
            )));
        }
        *clients += 1;
        Ok(Visit { hosts: Arc::clone(self), export: export.to_owned() })
    }
}

/// One client's use of an export.
#[derive(Debug)]
pub struct Visit {
    hosts: Arc<Hosts>,
    export: String,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut hosts = self.hosts.0.lock();
        if let Some((_, clients)) = hosts.get_mut(&self.export) {
            *clients -= 1;
            if *clients == 0 {
                hosts.remove(&self.export);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: Host = Host::Remote(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)));

    #[test]
    fn m5_a_second_host_waits_until_the_last_client_of_the_first_has_left() {
        let hosts = Arc::new(Hosts::default());
        let first = hosts.enter("disk0", OTHER).unwrap();
        let second = hosts.enter("disk0", OTHER).unwrap();
        assert_eq!(
            hosts.enter("disk0", Host::Local).unwrap_err().to_string(),
            "\"disk0\" is in use by 10.0.0.5, and a filesystem that two hosts mount is destroyed: detach it there, or set \
             nbd.shared = true if what is on it is made for several hosts"
        );
        hosts.enter("disk1", Host::Local).unwrap();
        drop(first);
        assert!(hosts.enter("disk0", Host::Local).is_err());
        drop(second);
        hosts.enter("disk0", Host::Local).unwrap();
        assert!(hosts.0.lock().is_empty());
    }

    #[test]
    fn loopback_and_ones_own_address_are_this_host() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (peer, local) in [("127.0.0.1", "127.0.0.1"), ("::ffff:127.0.0.2", "::1"), ("10.0.0.1", "::ffff:10.0.0.1")]
        {
            assert_eq!(Host::of(ip(peer), ip(local)), Host::Local);
        }
        assert_eq!(Host::of(ip("::ffff:10.0.0.5"), ip("10.0.0.1")), OTHER);
    }
}
