//! The NBD server as clients see it: well-behaved ones, and all the others. Names begin with the ids of the rules of
//! the project's NBD conformance list that a test shows to be kept ("fault n": its list of faults found elsewhere); `docs/conformance.md` is the list.
//! The handshake's rules are tested without sockets beside `src/nbd/negotiate.rs`, refusals beside `request.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../support/nbd_client.rs"]
#[allow(dead_code)]
mod client;
mod world;

mod handshake;
mod requests;
mod structured;
mod status;
mod extended;
mod flow;
mod endings;
mod sockets;
mod tls;
mod access;
mod crowd;
mod evictions;
mod succession;
mod arbitrary;
