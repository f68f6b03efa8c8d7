//! Where the server listens, as it is written in the configuration.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A TCP address `HOST:PORT`, or `none`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// No TCP.
    None,
    /// `127.0.0.1:10809`, `[::1]:10809` or `localhost:10809`; port 0 is any free port.
    Address(String),
}

impl Default for Listen {
    fn default() -> Self {
        Listen::Address("127.0.0.1:10809".to_owned())
    }
}

impl TryFrom<String> for Listen {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "none" {
            return Ok(Listen::None);
        }
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
        });
        if good { Ok(Listen::Address(text)) } else { Err(LISTEN_ACCEPTED) }
    }
}

const LISTEN_ACCEPTED: &str = "accepted is HOST:PORT, such as 127.0.0.1:10809, [::1]:10809 or 0.0.0.0:10809 (all addresses), \
     or none for no TCP; more places, also Unix sockets and vsock, go into nbd.listeners";

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        match listen {
            Listen::None => "none".to_owned(),
            Listen::Address(address) => address,
        }
    }
}

/// The path of a Unix socket, `auto` or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Socket {
    /// `ashlar.sock` in the state directory.
    #[default]
    Auto,
    /// No Unix socket.
    None,
    /// At this path.
    Path(PathBuf),
}

impl Socket {
    /// The path, given the state directory; `None` for no Unix socket.
    pub fn path(&self, state: &Path) -> Option<PathBuf> {
        match self {
            Socket::Auto => Some(state.join("ashlar.sock")),
            Socket::None => None,
            Socket::Path(path) => Some(path.clone()),
        }
    }
}

/// `sockaddr_un.sun_path` has 108 bytes, the last of them zero.
const SOCKET_PATH_MAX: usize = 107;

impl TryFrom<String> for Socket {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Socket::Auto),
            "none" => Ok(Socket::None),
            "" => Err("accepted is a path, auto (ashlar.sock in the state directory) or none"),
            path if path.len() > SOCKET_PATH_MAX => Err("the path of a Unix socket can have at most 107 bytes"),
            path => Ok(Socket::Path(path.into())),
        }
    }
}

impl From<Socket> for String {
    fn from(socket: Socket) -> String {
        match socket {
            Socket::Auto => "auto".to_owned(),
            Socket::None => "none".to_owned(),
            // Came from a String, so nothing is lost.
            Socket::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:10809", "[::1]:0", "localhost:65535", "none"] {
            let listen = Listen::try_from(good.to_owned()).unwrap();
            assert_eq!(String::from(listen), good);
        }
        for bad in ["", "localhost", ":10809", "::1:10809", "host:65536", "host:"] {
            assert_eq!(Listen::try_from(bad.to_owned()), Err(LISTEN_ACCEPTED), "{bad:?}");
        }
    }

    #[test]
    fn the_socket_lies_in_the_state_directory_unless_told_otherwise() {
        let path = |text: &str| Socket::try_from(text.to_owned()).unwrap().path(Path::new("/s"));
        assert_eq!(path("auto"), Some("/s/ashlar.sock".into()));
        assert_eq!(path("none"), None);
        assert_eq!(path("/run/x.sock"), Some("/run/x.sock".into()));
        assert!(Socket::try_from("x".repeat(108)).is_err());
    }
}
