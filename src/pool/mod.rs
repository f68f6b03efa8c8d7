//! Servers that share the volumes of a store among themselves, by what they see in the store alone: no clock is compared, and nobody leads.
//!
//! - Each member puts a *beat* into the store again and again: a small object that names it and the volumes that it has ([`beat`]).
//! - A member whose beat does not change for a while, as another one counts it, is *gone* for that one ([`roster`]). It may live all the same:
//!   whoever takes a volume from it fences it, as with every takeover, and it can write no more.
//! - Which member is to have a volume follows from the names of the volume and of the living members, so that all come to one answer
//!   without asking ([`sharing`]). If two do not see the same members, both may try; the store lets one of them have it.

pub mod beat;
pub mod roster;
pub mod sharing;
