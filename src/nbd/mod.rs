//! The NBD server: what a client sees of a [`crate::device::Device`].
//!
//! It speaks fixed newstyle with simple and structured replies, extended headers and the metadata contexts `base:allocation` and `ashlar:changed`
//! (proto.md of the NetworkBlockDevice project; the rules that the code and its tests cite by id, such as R12, are those of
//! the project's conformance list). It knows devices and exports
//! by their traits only: nothing of volumes, stores or configuration files.
//!
//! The way of a connection:
//!
//! ```text
//! server ── accept ──> handshake ── negotiate (no I/O) ──> session ─┬─ request: refuse, or a typed request
//!                                                                   ├─ admission: wait for room, do not read
//!                                                                   ├─ device: run, many at a time
//!                                                                   └─ reply: batch, write, give room back
//! ```
//!
//! [`access`] says who may come in, and to which export; with STARTTLS the handshake begins again over [`tls`].

pub mod options;
pub mod server;
pub mod listen;
mod vsock;
mod phase;
mod handshake;
pub mod negotiate;
mod session;
mod incoming;
pub mod request;
mod admission;
mod reply;
mod chunk;
mod status;
mod flusher;
pub mod hosts;
pub mod access;
pub mod tls;
mod clients;
pub mod wire;

pub use clients::{ClientInfo, KeepAlive};
pub use hosts::Host;
pub use listen::{Door, ListenAddr, SocketMode};
pub use options::Options;
pub use server::Server;
pub use tls::{Tls, TlsMode, TlsOptions};
pub use vsock::VsockAddress;
