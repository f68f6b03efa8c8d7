//! The words with which a client attaches a volume: `nbd-client` lines and NBD URIs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::nbd::VsockAddress;

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The TCP address, with its real port.
    pub tcp: Option<SocketAddr>,
    /// Whether clients must speak over TLS there.
    pub tls: bool,
    /// The Unix socket, as an absolute path.
    pub socket: Option<PathBuf>,
    /// The address of vsock, with its real port.
    pub vsock: Option<VsockAddress>,
    /// This host's name: what clients are told where the address is "all addresses".
    pub host_name: String,
}

/// More connections than one let the kernel use more than one CPU; two are enough for a start.
const CONNECTIONS: u32 = 2;

/// Seconds after which the kernel gives up an unanswered request. With more than one connection Linux takes 30 s unless
/// told otherwise, and then kills the connection, until none is left and the filesystem sees I/O errors (`nbd_xmit_timeout`
/// in drivers/block/nbd.c). The server waits for a store that is away, for hours if need be; so must the kernel.
const TIMEOUT_SECONDS: u32 = 86_400;

/// The kernel takes no logical block beyond a page.
const KERNEL_BLOCK_MAX: u32 = 4096;

impl Listening {
    /// The command lines that attach the volume as `/dev/nbd<device>`, best first.
    pub fn client_lines(&self, volume: &str, block_size: u32, device: usize) -> Vec<String> {
        let block_size = block_size.min(KERNEL_BLOCK_MAX);
        let options = format!("-N {volume} -b {block_size} -C {CONNECTIONS} -timeout {TIMEOUT_SECONDS}");
        // The files are the client's own; docs/tls.md says which.
        let files = if self.tls { " -certfile CERT -keyfile KEY -cacertfile CA" } else { "" };
        let tcp = self
            .tcp
            .map(|tcp| format!("nbd-client {} {} /dev/nbd{device} {options}{files}", self.host(tcp), tcp.port()));
        let unix = |path: &PathBuf| format!("nbd-client -unix {} /dev/nbd{device} {options}", Quoted(path));
        tcp.into_iter().chain(self.socket.as_ref().map(unix)).collect()
    }

    /// The URIs of the volume, best first. Names of volumes need no escapes.
    pub fn uris(&self, volume: &str) -> Vec<String> {
        let scheme = if self.tls { "nbds" } else { "nbd" };
        let tcp = self.tcp.map(|tcp| match tcp.ip() {
            IpAddr::V6(ip) if !ip.is_unspecified() => format!("{scheme}://[{ip}]:{}/{volume}", tcp.port()),
            _ => format!("{scheme}://{}:{}/{volume}", self.host(tcp), tcp.port()),
        });
        let unix = |path: &PathBuf| format!("nbd+unix:///{volume}?socket={}", Escaped(path));
        tcp.into_iter().chain(self.socket.as_ref().map(unix)).collect()
    }

    fn host(&self, tcp: SocketAddr) -> String {
        match tcp.ip().is_unspecified() {
            true => self.host_name.clone(),
            false => tcp.ip().to_string(),
        }
    }
}

/// A path as a shell reads it.
pub struct Quoted<'a>(pub &'a Path);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
        match text.chars().all(plain) {
            true => f.write_str(&text),
            false => write!(f, "'{}'", text.replace('\'', r"'\''")),
        }
    }
}

/// A path in the query of a URI (RFC 3986).
struct Escaped<'a>(&'a Path);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::os::unix::ffi::OsStrExt;
        for &byte in self.0.as_os_str().as_bytes() {
            match byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
                true => write!(f, "{}", byte as char)?,
                false => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(tcp: &str, socket: &str) -> Listening {
        let tcp = (!tcp.is_empty()).then(|| tcp.parse().unwrap());
        let socket = (!socket.is_empty()).then(|| socket.into());
        Listening { tcp, tls: false, socket, vsock: None, host_name: "box".to_owned() }
    }

    #[test]
    fn tcp_and_socket_have_a_line_and_a_uri_each() {
        let both = listening("127.0.0.1:10809", "/run/a.sock");
        assert_eq!(
            both.client_lines("disk0", 4096, 1),
            [
                "nbd-client 127.0.0.1 10809 /dev/nbd1 -N disk0 -b 4096 -C 2 -timeout 86400",
                "nbd-client -unix /run/a.sock /dev/nbd1 -N disk0 -b 4096 -C 2 -timeout 86400",
            ]
        );
        assert_eq!(both.uris("disk0"), ["nbd://127.0.0.1:10809/disk0", "nbd+unix:///disk0?socket=/run/a.sock"]);
    }

    #[test]
    fn where_tls_is_required_tcp_is_named_so() {
        let both = Listening { tls: true, ..listening("127.0.0.1:1", "/s") };
        assert_eq!(both.uris("v"), ["nbds://127.0.0.1:1/v", "nbd+unix:///v?socket=/s"]);
        let [tcp, unix] = &both.client_lines("v", 4096, 0)[..] else { panic!("two lines") };
        assert!(
            tcp.ends_with(" -certfile CERT -keyfile KEY -cacertfile CA") && !unix.contains("CERT"),
            "{tcp}\n{unix}"
        );
    }

    #[test]
    fn the_kernel_gets_no_block_that_it_refuses() {
        let line = |block_size| listening("127.0.0.1:1", "").client_lines("v", block_size, 0).remove(0);
        assert!(line(65536).contains(" -b 4096 "));
        assert!(line(512).contains(" -b 512 "));
    }

    #[test]
    fn an_address_is_one_that_a_client_can_reach() {
        assert_eq!(listening("0.0.0.0:10809", "").uris("v"), ["nbd://box:10809/v"]);
        assert_eq!(listening("[::]:10809", "").uris("v"), ["nbd://box:10809/v"]);
        assert_eq!(listening("[::1]:1", "").uris("v"), ["nbd://[::1]:1/v"]);
        assert!(listening("[::1]:1", "").client_lines("v", 4096, 0)[0].starts_with("nbd-client ::1 1 /dev/nbd0 "));
    }

    #[test]
    fn odd_paths_are_quoted_and_escaped() {
        let odd = listening("", "/a b/it's&.sock");
        assert!(odd.client_lines("v", 4096, 0)[0].starts_with(r"nbd-client -unix '/a b/it'\''s&.sock' /dev/nbd0 "));
        assert_eq!(odd.uris("v"), ["nbd+unix:///v?socket=/a%20b/it%27s%26.sock"]);
    }
}
