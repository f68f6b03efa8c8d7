//! Before and around serving: making a volume, reading it as it stands, taking it, describing and resizing it, deleting it.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`scan`], [`told`], [`verdict`], [`recover`] | opening: what is there, and what digests tell of it, what that means, what is done |
//! | [`verified`] | one writer on a store that cannot create a key for one only |
//! | [`lifecycle`], [`removal`] | create, inspect, list; delete |
//! | [`protection`] | what nobody deletes before a date |
//! | [`follow`] | a volume that another server writes: reading its newest checkpoint |
//! | [`choice`] | which snapshot is meant, by name or by time |
//! | [`past`], [`clones`], [`handed`], [`difference`], [`copying`] | versions that are kept: reading one; volumes that begin as one, and how they have their parent's data keys; in what two differ; copying one into another store |
//! | [`promote`] | a mirror becomes a volume |
//! | [`description`], [`key_slots`], [`resize`] | what a volume is, which secrets open it, how large it is |

pub mod scan;
mod told;
pub mod verdict;
pub(crate) mod recover;
pub mod verified;
pub mod lifecycle;
pub(crate) mod near;
pub mod choice;
pub mod follow;
mod removal;
pub mod protection;
pub mod description;
pub mod key_slots;
pub mod resize;
pub mod past;
pub(crate) mod older;
pub mod clones;
mod handed;
pub mod difference;
pub mod copying;
pub mod promote;

pub use follow::{Follower, Glass};
pub use lifecycle::{CreateOptions, Created, HolderInfo, Info, NewEncryption, create, inspect, names};
pub use past::Past;
pub use recover::{Outside, ServerIdentity};
pub use removal::delete;
pub use verdict::OpenFlags;
