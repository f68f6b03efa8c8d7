//! The chores of an open volume: what tidies it. Each is a task that the engine's shell starts when the core says so
//! ([`crate::engine::Chore`]) and that enters its result into the ledger; nothing here decides when.
//!
//! [`checkpoint`] and [`deletion`] hold the whole order of R7 in numbered steps.

mod carry;
mod checkpoint;
mod deletion;
mod digest;
mod gather;
mod held;
mod survey;
pub mod rollback;
pub mod sweep;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::engine::shared::Shared;
use crate::engine::{Chore, Event};

/// Does a chore; the event that it ends with.
pub(crate) fn perform(shared: Arc<Shared>, chore: Chore) -> BoxFuture<'static, Event> {
    match chore {
        Chore::Checkpoint(plan) => checkpoint::run(shared, *plan).boxed(),
        Chore::Digest(plan) => digest::run(shared, plan).boxed(),
        Chore::Look(need) => gather::look(shared, need).boxed(),
        Chore::Survey(victims, as_of) => survey::run(shared, victims, as_of).boxed(),
        Chore::Gather(victims, as_of, surveyed) => gather::run(shared, victims, as_of, surveyed).boxed(),
        Chore::Carry(victims) => carry::run(shared, victims).boxed(),
        Chore::Delete(plan) => deletion::run(shared, plan).boxed(),
        Chore::Sweep(suspects) => sweep::run(shared, suspects).boxed(),
    }
}
