//! Addresses of vsock, the sockets between a virtual machine and its host: a number for the machine (its CID), and a port.

use std::fmt;
use std::str::FromStr;

/// Every CID of this machine, where it listens.
const ANY: u32 = u32::MAX;
/// The CID by which a machine reaches itself.
const LOCAL: u32 = 1;
/// Any free port, as the kernel says it.
const PORT_ANY: u32 = u32::MAX;

/// A place to listen on: `vsock:CID:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VsockAddress {
    cid: u32,
    port: u32,
}

/// What is accepted for one.
pub const ACCEPTED: &str = "accepted is vsock:CID:PORT, where CID is any, or a number that this machine has (1 is itself only), and PORT \
                            is a number below 4294967295 (0 is any free one)";

impl VsockAddress {
    /// That of a socket.
    pub fn of(address: tokio_vsock::VsockAddr) -> VsockAddress {
        VsockAddress { cid: address.cid(), port: address.port() }
    }

    /// As the kernel takes it to listen.
    pub fn to_listen(self) -> tokio_vsock::VsockAddr {
        let port = if self.port == 0 { PORT_ANY } else { self.port };
        tokio_vsock::VsockAddr::new(self.cid, port)
    }

    /// The machine.
    pub fn cid(self) -> u32 {
        self.cid
    }

    /// The port.
    pub fn port(self) -> u32 {
        self.port
    }

    /// Whether a client with this address is on the machine that has `local`.
    pub fn is_here(self, local: VsockAddress) -> bool {
        self.cid == LOCAL || self.cid == local.cid
    }
}

impl FromStr for VsockAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<VsockAddress, &'static str> {
        let (cid, port) = text.strip_prefix("vsock:").and_then(|rest| rest.split_once(':')).ok_or(ACCEPTED)?;
        let number = |text: &str| text.parse().ok().filter(|&number| number != u32::MAX).ok_or(ACCEPTED);
        let cid = if cid == "any" { ANY } else { number(cid)? };
        Ok(VsockAddress { cid, port: number(port)? })
    }
}

impl fmt::Display for VsockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cid {
            ANY => write!(f, "vsock:any:{}", self.port),
            cid => write!(f, "vsock:{cid}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_vsock_has_a_machine_and_a_port() {
        for text in ["vsock:any:10809", "vsock:1:0", "vsock:4294967294:4294967294"] {
            assert_eq!(text.parse::<VsockAddress>().unwrap().to_string(), text);
        }
        for text in ["", "vsock", "vsock:", "vsock:1", "vsock::1", "vsock:1:", "vsock:x:1", "vsock:-1:1", "any:1"] {
            assert_eq!(text.parse::<VsockAddress>(), Err(ACCEPTED), "{text}");
        }
        for text in ["vsock:4294967295:1", "vsock:1:4294967295", "vsock:1:2:3", "vsock:4294967296:1"] {
            assert_eq!(text.parse::<VsockAddress>(), Err(ACCEPTED), "{text}");
        }
    }

    #[test]
    fn the_kernel_is_told_what_was_meant() {
        let told = |text: &str| {
            let address = text.parse::<VsockAddress>().unwrap().to_listen();
            (address.cid(), address.port())
        };
        assert_eq!(told("vsock:any:0"), (u32::MAX, u32::MAX));
        assert_eq!(told("vsock:3:10809"), (3, 10809));
    }

    #[test]
    fn a_machine_reaches_itself_by_its_own_number_or_by_1() {
        let address = |cid| VsockAddress { cid, port: 5 };
        assert!(address(1).is_here(address(3)) && address(3).is_here(address(3)));
        assert!(!address(2).is_here(address(3)) && !address(3).is_here(address(2)));
    }
}
