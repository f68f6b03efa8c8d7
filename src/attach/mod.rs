//! The client's side: a device of the kernel's NBD client that outlives the server behind it.
//!
//! Linux keeps the requests of a device while its connections are dead, if somebody will bring new ones in time. That
//! somebody is a process that stays: it shakes hands with the server, gives the sockets to the kernel, sees when they end,
//! connects again, to the same server or another, and gives the kernel the new ones. Programs wait meanwhile, and see no error.
//!
//! ```text
//!            server ──(fixed newstyle)── handshake ── dial ──┐
//!                                                            ├── run: waits, does ── supervisor: decides
//! kernel ──(generic netlink, /sys, /dev/nbdN)── kernel ──────┘                        └─ identity: is it the same disk?
//! ```
//!
//! - [`supervisor`] is plain data: events in, effects out. [`run`] waits for it, and nothing that it waits for keeps it from
//!   hearing the rest.
//! - [`identity`] says whether a server that came back still has everything that it ever acknowledged. If not, the device is
//!   given up: a filesystem must not go on upon a disk that lost writes which it counts on.
//! - [`handshake`] is the client's half of the negotiation, without I/O.
//! - [`kernel`] is what a kernel can be asked; [`linux`] is the real one, [`netlink`] its messages.

pub mod supervisor;
pub mod identity;
pub mod handshake;
pub mod dial;
pub mod run;
pub mod kernel;
pub mod linux;
mod netlink;
pub mod sysfs;
