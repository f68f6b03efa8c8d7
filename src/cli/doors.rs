//! Where a server listens: what the configuration says, and what systemd hands over (sd_listen_fds(3)).
//!
//! Sockets that systemd has opened take the place of `serve.listen` and `serve.socket`, each unless it is set somewhere;
//! `serve.listeners` are opened in any case.

use std::net::SocketAddr;

use listenfd::ListenFd;

use super::failure::Failure;
use crate::config::{Effective, Listen, Mode, Origin, Owner, Place};
use crate::nbd::listen::At;
use crate::nbd::{Door, ListenAddr, SocketMode};

/// All of them; it fails if there is none.
pub async fn of(config: &Effective) -> Result<Vec<Door>, Failure> {
    let mut doors = given()?;
    let has_given = !doors.is_empty();
    let opens = |key: &str| !has_given || config.origin(key) != Origin::Default;
    if let (Listen::Address(address), true) = (&config.serve.listen, opens("serve.listen")) {
        doors.push(Door::from(ListenAddr::Tcp(resolve(config, "serve.listen", address).await?)));
    }
    if let (Some(path), true) = (config.serve.socket.path(&config.state), opens("serve.socket")) {
        let socket = socket_mode(config, "serve.socket_owner", config.serve.socket_mode, &config.serve.socket_owner)?;
        doors.push(Door { socket, ..Door::from(ListenAddr::Unix(path)) });
    }
    for listener in &config.serve.listeners {
        let address = match &listener.address {
            Place::Tcp(address) => ListenAddr::Tcp(resolve(config, "serve.listeners", address).await?),
            Place::Unix(path) => ListenAddr::Unix(path.clone()),
            Place::Vsock(address) => ListenAddr::Vsock(*address),
        };
        let socket = socket_mode(config, "serve.listeners", listener.mode, &listener.owner)?;
        doors.push(Door { at: At::Address(address), tls: listener.tls, allow: listener.allow.clone(), socket });
    }
    match doors.is_empty() {
        true => Err(config.refuse("serve.socket", "serve.listen is none as well; give at least one of them").into()),
        false => Ok(doors),
    }
}

/// What systemd has opened.
fn given() -> Result<Vec<Door>, Failure> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len()).map(|number| Ok(door(take(&mut sockets, number)?))).collect()
}

fn take(sockets: &mut ListenFd, number: usize) -> Result<At, Failure> {
    if let Ok(Some(tcp)) = sockets.take_tcp_listener(number) {
        return Ok(At::GivenTcp(tcp));
    }
    match sockets.take_unix_listener(number) {
        Ok(Some(unix)) => Ok(At::GivenUnix(unix)),
        _ => Err(Failure::failed(format!(
            "socket {} that systemd hands over is no TCP and no Unix socket that listens; see ListenStream= and Accept=no in \
             config/systemd/ashlar.socket",
            number + 1
        ))),
    }
}

fn door(at: At) -> Door {
    Door { at, tls: None, allow: Vec::new(), socket: SocketMode::default() }
}

/// The address of a host: IPv4 if it has one, as clients mostly try that first.
pub async fn resolve(config: &Effective, key: &str, address: &str) -> Result<SocketAddr, Failure> {
    let refuse = |why: String| Failure::from(config.refuse(key, why));
    let found = tokio::net::lookup_host(address).await.map_err(|error| refuse(format!("{address}: {error}")))?;
    found.min_by_key(SocketAddr::is_ipv6).ok_or_else(|| refuse(format!("{address}: this name has no address")))
}

fn socket_mode(config: &Effective, key: &str, mode: Mode, owner: &Owner) -> Result<SocketMode, Failure> {
    let id = |name: &Option<String>, file: &str| match name {
        None => Ok(None),
        Some(name) => id(name, file).map(Some).ok_or_else(|| {
            Failure::from(config.refuse(key, format!("there is no {name:?} in {file}; a number does as well")))
        }),
    };
    Ok(SocketMode { mode: mode.0, user: id(&owner.user, "/etc/passwd")?, group: id(&owner.group, "/etc/group")? })
}

/// The number of a user or a group: itself, or as the file has it.
fn id(name: &str, file: &str) -> Option<u32> {
    name.parse().ok().or_else(|| id_in(name, &std::fs::read_to_string(file).ok()?))
}

fn id_in(name: &str, entries: &str) -> Option<u32> {
    let mut entries = entries.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1))?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name() {
        let entries = "root:x:0:0:root:/root:/bin/sh\ndisk:x:6:\n";
        assert_eq!((id_in("root", entries), id_in("disk", entries), id_in("dis", entries)), (Some(0), Some(6), None));
        assert_eq!(id("1234", "/nowhere"), Some(1234));
    }
}
