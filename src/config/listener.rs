//! A listener beyond the usual two, as it is written in the configuration, and the file of a Unix socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Listen, Socket};
use crate::nbd::access::Who;
use crate::nbd::{TlsMode, VsockAddress};

/// `[[serve.listeners]]`: one more place to listen on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Where.
    pub address: Place,
    /// Whether clients speak over TLS; not set, as `nbd.tls.mode` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMode>,
    /// Who may come in; empty is everybody.
    #[serde(default)]
    pub allow: Vec<Who>,
    /// The permissions of a Unix socket's file.
    #[serde(default)]
    pub mode: Mode,
    /// The owner of a Unix socket's file.
    #[serde(default)]
    pub owner: Owner,
}

impl Listener {
    /// What is said and cannot be kept; the error is a sentence without its subject.
    pub(super) fn fault(&self) -> Option<String> {
        if let Some(who) = self.allow.iter().find(|who| matches!(who, Who::Certificate(_))) {
            return Some(format!(
                "lets {who} in, and a certificate is not shown yet when a client comes in: name it in nbd.access, and require TLS here"
            ));
        }
        let says = self.mode.0.is_some() || self.owner != Owner::default();
        match &self.address {
            Place::Unix(_) => None,
            place if says => Some(format!(
                "has a mode or an owner, which {} has no file for: take them out, or name a Unix socket (a path with a slash)",
                String::from(place.clone())
            )),
            Place::Tcp(_) | Place::Vsock(_) => None,
        }
    }
}

/// A TCP address `HOST:PORT`, the path of a Unix socket, which has a slash in it, or `vsock:CID:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// TCP.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
    /// Vsock.
    Vsock(VsockAddress),
}

impl TryFrom<String> for Place {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const ACCEPTED: &str = "accepted is HOST:PORT, such as [::]:10809, the path of a Unix socket with a slash in it, or vsock:CID:PORT";
        if text.contains('/') {
            return match Socket::try_from(text)? {
                Socket::Path(path) => Ok(Place::Unix(path)),
                Socket::Auto | Socket::None => Err(ACCEPTED),
            };
        }
        if text.starts_with("vsock:") {
            return text.parse().map(Place::Vsock);
        }
        match Listen::try_from(text) {
            Ok(Listen::Address(address)) => Ok(Place::Tcp(address)),
            Ok(Listen::None) | Err(_) => Err(ACCEPTED),
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        match place {
            Place::Tcp(address) => address,
            // Came from a String, so nothing is lost.
            Place::Unix(path) => path.to_string_lossy().into_owned(),
            Place::Vsock(address) => address.to_string(),
        }
    }
}

/// Permissions in octal, such as `0660`; empty is what the process gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub Option<u32>);

impl TryFrom<String> for Mode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() {
            return Ok(Mode(None));
        }
        let digits = text.chars().all(|digit| digit.is_digit(8)) && text.len() <= 4;
        let mode = digits.then(|| u32::from_str_radix(&text, 8).ok()).flatten().filter(|&mode| mode <= 0o777);
        mode.map(|mode| Mode(Some(mode)))
            .ok_or("accepted are permissions in octal, such as \"0660\", or \"\" for what umask leaves")
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> String {
        mode.0.map(|mode| format!("{mode:04o}")).unwrap_or_default()
    }
}

/// `USER`, `USER:GROUP` or `:GROUP`, by name or number; empty is the process's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner {
    /// The user.
    pub user: Option<String>,
    /// The group.
    pub group: Option<String>,
}

impl TryFrom<String> for Owner {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let owner = match text.split_once(':') {
            Some((user, group)) => Owner { user: some(user), group: some(group) },
            None => Owner { user: some(&text), group: None },
        };
        let names = [&owner.user, &owner.group];
        let odd = |name: &String| name.contains([':', ' ', '/']);
        match names.into_iter().flatten().any(odd) || text == ":" {
            true => Err("accepted is USER, USER:GROUP or :GROUP, such as \"root:disk\", or \"\" for the server's own"),
            false => Ok(owner),
        }
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        let group = owner.group.map(|group| format!(":{group}")).unwrap_or_default();
        owner.user.unwrap_or_default() + &group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_or_a_path_with_a_slash() {
        let place = |text: &str| Place::try_from(text.to_owned());
        assert_eq!(place("[::]:10809"), Ok(Place::Tcp("[::]:10809".into())));
        assert_eq!(place("./nbd.sock"), Ok(Place::Unix("./nbd.sock".into())));
        assert_eq!(place("vsock:any:10809"), Ok(Place::Vsock("vsock:any:10809".parse().unwrap())));
        for text in ["[::]:10809", "./nbd.sock", "vsock:1:5", "vsock:any:0"] {
            assert_eq!(String::from(place(text).unwrap()), text);
        }
        for bad in ["none", "auto", "", "nbd.sock", "::1:5", "vsock:1", "vsock:any:-1"] {
            assert!(place(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn modes_and_owners_are_read_as_they_are_written() {
        for good in ["", "0660", "0600"] {
            assert_eq!(String::from(Mode::try_from(good.to_owned()).unwrap()), good);
        }
        assert_eq!(Mode::try_from("660".to_owned()).unwrap(), Mode(Some(0o660)));
        for bad in ["rw", "0o660", "888", "1777", "00660"] {
            assert!(Mode::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for good in ["", "root", "root:disk", ":6"] {
            assert_eq!(String::from(Owner::try_from(good.to_owned()).unwrap()), good);
        }
        for bad in [":", "a:b:c", "a b"] {
            assert!(Owner::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
