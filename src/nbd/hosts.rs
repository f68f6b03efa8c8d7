//! Which host uses which export (rule M5). NBD lets any number of clients attach one export, and a filesystem that two
//! hosts mount is destroyed in minutes. So while clients of one host are attached to a writable export, those of other
//! hosts are refused, unless the operator says `shared`. All connections of one host belong together: one client
//! opens several.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::device::ExportError;

/// The host that a client runs on, as far as the connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// This one.
    Local,
    /// One with that address.
    Remote(IpAddr),
    /// A virtual machine, or the host of this one, by its CID.
    Vsock(u32),
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
            Host::Vsock(cid) => write!(f, "vsock:{cid}"),
        }
    }
}

/// The hosts that are attached: for each export its host, and how many of its clients.
#[derive(Debug, Default)]
pub struct Hosts {
    here: Mutex<HashMap<String, (Host, usize)>>,
    /// The last client of an export has left.
    left: Notify,
}

impl Hosts {
    /// Lets a client of `host` attach `export` until the visit is dropped, unless another host is there.
    pub fn enter(self: &Arc<Hosts>, export: &str, host: Host) -> Result<Visit, InUse> {
        let mut hosts = self.here.lock();
        let (here, clients) = hosts.entry(export.to_owned()).or_insert((host, 0));
        if *here != host {
            return Err(InUse { export: export.to_owned(), by: *here });
        }
        *clients += 1;
        Ok(Visit { hosts: Arc::clone(self), export: export.to_owned() })
    }

    /// The same, but waits while another host is there.
    pub async fn enter_later(self: &Arc<Hosts>, export: &str, host: Host) -> Visit {
        loop {
            let mut left = pin!(self.left.notified());
            // First listen, then look, so that nobody leaves unseen.
            left.as_mut().enable();
            match self.enter(export, host) {
                Ok(visit) => return visit,
                Err(_) => left.await,
            }
        }
    }
}

/// Why a client was not let in: another host has the export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{export:?} is in use by {by}, and a filesystem that two hosts mount is destroyed: detach it there; if that host is gone, \
     end its connections with `ashlar evict {export}` on the server; set nbd.shared = true if what is on it is made for \
     several hosts"
)]
pub struct InUse {
    export: String,
    /// The host that has it.
    pub by: Host,
}

impl From<InUse> for ExportError {
    fn from(in_use: InUse) -> ExportError {
        ExportError::Unavailable(in_use.to_string())
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
        let mut hosts = self.hosts.here.lock();
        if let Some((_, clients)) = hosts.get_mut(&self.export) {
            *clients -= 1;
            if *clients == 0 {
                hosts.remove(&self.export);
                self.hosts.left.notify_waiters();
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
            "\"disk0\" is in use by 10.0.0.5, and a filesystem that two hosts mount is destroyed: detach it there; if that \
             host is gone, end its connections with `ashlar evict disk0` on the server; set nbd.shared = true if what is on \
             it is made for several hosts"
        );
        hosts.enter("disk1", Host::Local).unwrap();
        drop(first);
        assert!(hosts.enter("disk0", Host::Local).is_err());
        drop(second);
        hosts.enter("disk0", Host::Local).unwrap();
        assert!(hosts.here.lock().is_empty());
    }

    #[tokio::test]
    async fn m5_whoever_waits_gets_in_when_the_last_client_has_left() {
        let hosts = Arc::new(Hosts::default());
        let visits = [hosts.enter("disk0", OTHER).unwrap(), hosts.enter("disk0", OTHER).unwrap()];
        let mut waiting =
            [pin!(hosts.enter_later("disk0", Host::Local)), pin!(hosts.enter_later("disk0", Host::Local))];
        for visit in visits {
            assert!(futures::poll!(&mut waiting[0]).is_pending() && futures::poll!(&mut waiting[1]).is_pending());
            drop(visit);
        }
        for waits in waiting {
            waits.await;
        }
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
