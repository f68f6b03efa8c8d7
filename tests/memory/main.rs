//! Memory is bounded by configuration (rule R6). An allocator counts what is given out; the account that this proves is
//! `docs/memory.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/nbd_client.rs"]
#[allow(dead_code)]
mod client;
mod counting;
mod hanging;
mod load;
mod slow_disk;
mod collection;
mod replies;
mod unread;
mod handshakes;
mod map;
mod whole;
